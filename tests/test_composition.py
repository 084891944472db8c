"""Energy models inside a user's NumPyro model, and BlockGibbs on their sites there."""

import warnings

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import oracles
import pytest
import zoo
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, CustomGibbs, DiscreteGibbs, Gibbs, Predictive
from scipy.special import expit, logsumexp

import pgm_energy as pgm

X = np.array([[-1.2], [0.1], [0.3], [1.6]], np.float32)


def run(kernel, rng_key, *args, num_warmup=300, num_samples=1000, num_chains=1, **options):
    method = options.pop("method", "vectorized")
    kwargs = options.pop("kwargs", {})
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method=method,
        progress_bar=False,
    )
    mcmc.run(rng_key, *args, **options, **kwargs)
    return mcmc


def close_to(draws, exact, limit=5.0):
    """Whether the means of ``(chains, draws, ...)`` lie within 5 MCSE of the exact ones."""
    draws = np.asarray(draws, float)
    error = np.asarray(az.mcse({"x": draws}, method="mean")["x"])
    assert (error < 0.1).all(), f"too few effective draws to say anything: MCSE {error.max()}"
    return bool((np.abs(draws.mean(axis=(0, 1)) - exact) < limit * error).all())


def two_normals(distance):
    """Components at minus and plus ``distance``, weights 0.4 and 0.6."""
    means = jnp.array([[-1.0], [1.0]]) * distance
    return pgm.GaussianMixture(
        weights=jnp.array([0.4, 0.6]),
        means=means,
        covariances=jnp.ones(2),
        covariance_type="spherical",
    )


def labelled(distance=None, x=X):
    """The labels of four rows, of known components or with their distance unknown."""
    if distance is None:
        distance = numpyro.sample("distance", dist.HalfNormal(1.0))
    with numpyro.plate("rows", len(x), dim=-2):
        two_normals(distance)(x=x)


def label_scores(distance, x=X[:, 0]):
    """log w_k + log N(x_n; m_k, 1), shape ``(..., rows, 2)``."""
    means = np.array([-1.0, 1.0]) * np.asarray(distance)[..., None, None]
    return np.log([0.4, 0.6]) - 0.5 * (x[:, None] - means) ** 2 - 0.5 * np.log(2 * np.pi)


# ---- exactness -------------------------------------------------------------------------------


def test_labels_of_known_components_follow_their_joint_law(rng_key):
    """A sweep draws labels afresh from their exact posterior: draws are independent."""
    mcmc = run(pgm.BlockGibbs(labelled), rng_key, 1.0, num_samples=4000, num_warmup=1)
    z = np.asarray(mcmc.get_samples()["z"])
    assert z.shape == (4000, 4, 1)
    assert z.dtype == np.int32
    scores = label_scores(1.0)
    states = np.array(list(np.ndindex(2, 2, 2, 2)))
    joint = np.array([scores[np.arange(4), state].sum() for state in states])
    law = np.exp(joint - logsumexp(joint))
    found = {"z": z[:, :, 0]}
    assert oracles.frequencies_p_value(found, {"z": states}, law) > oracles.ALPHA
    # the control: labels of the rows in another order
    assert oracles.frequencies_p_value(found, {"z": states[:, ::-1]}, law) < oracles.ALPHA


@pytest.fixture(scope="module")
def posterior_by_grid():
    """Mean of the distance, and of each label, labels summed and the distance on a grid."""
    grid = np.linspace(0.0, 6.0, 3001)
    scores = label_scores(grid)
    log_weight = logsumexp(scores, axis=-1).sum(-1) - 0.5 * grid**2
    weight = np.exp(log_weight - logsumexp(log_weight))
    return weight @ grid, weight @ expit(scores[..., 1] - scores[..., 0])


@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable:UserWarning")
def test_labels_beside_nuts_have_the_joint_posterior(rng_key, posterior_by_grid):
    distance, z = posterior_by_grid
    kernel = Gibbs([(pgm.BlockGibbs(labelled), ["z"]), (NUTS(labelled), ["distance"])])
    fields = ("block_states.0.potential_energy", "block_states.0.flip_rate")
    mcmc = run(
        kernel, rng_key, num_samples=4000, num_chains=2, method=jax.vmap, extra_fields=fields
    )
    draws = mcmc.get_samples(True)
    assert close_to(draws["distance"], distance)
    assert close_to(draws["z"][..., 0], z)
    assert not close_to(draws["distance"], distance + 0.15)
    assert not close_to(draws["z"][..., 0], z[::-1])
    # the block was refreshed with what NUTS did after it
    energy = mcmc.get_extra_fields(True)["block_states.0.potential_energy"]
    scores = label_scores(np.asarray(draws["distance"], float))
    expected = np.take_along_axis(scores, np.asarray(draws["z"]), axis=-1).sum((-1, -2))
    np.testing.assert_allclose(energy, -expected, rtol=1e-4)
    flips = mcmc.get_extra_fields(True)["block_states.0.flip_rate"]["z"]
    assert 0 < float(flips.mean()) < 1


def marginalized():
    distance = numpyro.sample("distance", dist.HalfNormal(1.0))
    with numpyro.plate("rows", 4, dim=-2):
        pgm.marginalize(two_normals(distance), "z")(x=X)


def test_nuts_on_the_marginalised_model_has_the_same_posterior(rng_key, posterior_by_grid):
    distance, _ = posterior_by_grid
    mcmc = run(NUTS(marginalized), rng_key, num_samples=2000, num_chains=2)
    assert close_to(mcmc.get_samples(True)["distance"], distance)
    assert not close_to(mcmc.get_samples(True)["distance"], distance + 0.15)


V = np.array([[1, 1, 0], [1, 1, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]])


def machine(weight):
    return pgm.RBM(weights=weight * jnp.ones((3, 2)), visible_bias=-0.5 * jnp.ones(3))


def coupled():
    """Hidden units of a normalised machine whose coupling is unknown; in two nested plates."""
    weight = numpyro.sample("weight", dist.Normal(0.5, 0.5))
    with numpyro.plate("twice", 2, dim=-3), numpyro.plate("rows", 5, dim=-2):
        pgm.normalize(machine(weight))(v=np.stack([V, V]))


@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable:UserWarning")
def test_hidden_units_of_a_normalised_machine_beside_nuts(rng_key):
    kernel = Gibbs([(pgm.BlockGibbs(coupled, num_sweeps=2), ["h"]), (NUTS(coupled), None)])
    mcmc = run(kernel, rng_key, num_samples=3000, num_chains=2, method=jax.vmap)
    draws = mcmc.get_samples(True)
    assert draws["h"].shape == (2, 3000, 2, 5, 2)

    grid = np.linspace(-2.0, 3.0, 2001)[:, None]
    on = np.arange(4)  # units that are on, and how many states have so many

    def free(on):
        return -0.5 * on + 2 * np.logaddexp(0, grid * on)

    log_z = logsumexp(free(on), b=[1, 3, 3, 1], axis=1)
    score = 2 * (free(V.sum(1)).sum(1) - 5 * log_z) - 2.0 * (grid[:, 0] - 0.5) ** 2
    weight = np.exp(score - logsumexp(score))
    h = weight @ expit(grid * V.sum(1))
    assert close_to(draws["weight"], weight @ grid[:, 0])
    assert close_to(draws["h"], h[:, None] * np.ones((2, 5, 2)))
    assert not close_to(draws["weight"], weight @ grid[:, 0] + 0.1)


def noisy_field(data):
    """A coupled real and a binary site without a plate, and a likelihood of the real one."""
    values = zoo.rbm("real", "binary", (2, 2))()
    numpyro.sample("data", dist.Normal(values["v"], 0.5), obs=data)


@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable:UserWarning")
def test_a_block_that_others_do_not_depend_on_beside_one_that_they_do(rng_key):
    """``h`` by its energy, ``v`` by NUTS: its density has a term outside of the energy."""
    data = np.array([0.8, -0.4], np.float32)
    kernel = Gibbs([(pgm.BlockGibbs(noisy_field), ["h"]), (NUTS(noisy_field), ["v"])])
    mcmc = run(kernel, rng_key, jnp.asarray(data), num_samples=4000, num_chains=2, method=jax.vmap)
    model = zoo.rbm("real", "binary", (2, 2))
    w, b, c, precision = (
        np.asarray(x, float)
        for x in (model.weights, model.visible_bias, model.hidden_bias, model.visible_precision)
    )
    h = np.array(list(np.ndindex(2, 2)))
    total = precision + 4.0  # the likelihood adds its precision, and its pull
    eta = b + h @ w.T + 4.0 * data
    score = h @ c + (0.5 * eta**2 / total).sum(1)
    p = np.exp(score - logsumexp(score))
    draws = mcmc.get_samples(True)
    assert close_to(draws["h"], p @ h)
    assert close_to(draws["v"], p @ (eta / total))
    assert not close_to(draws["v"], p @ (eta / total) + 0.05)
    with pytest.raises(ValueError, match=r"site 'data' in noisy_field depends on \['v', 'h'\]"):
        run(pgm.BlockGibbs(noisy_field), rng_key, jnp.asarray(data))


def test_real_sites_without_a_term_elsewhere_are_swept_too(rng_key):
    def alone():
        zoo.rbm("real", "binary", (2, 2))()

    draws = run(pgm.BlockGibbs(alone), rng_key, num_chains=8).get_samples(True)
    law = pgm.exact(zoo.rbm("real", "binary", (2, 2)))
    assert close_to(draws["v"], law.means["v"])
    assert close_to(draws["h"], law.means["h"])


def test_two_models_in_scopes_and_a_fixed_unit(rng_key):
    """Each call is swept with its own parameters; clamped units stay where they are."""
    first = zoo.rbm("spin", "binary", (2, 2))
    second = pgm.condition(zoo.machine(3), v=np.array([1, np.nan, np.nan]))

    def both():
        handlers.scope(first, prefix="a")()
        with numpyro.plate("rows", 2, dim=-2):
            handlers.scope(second, prefix="b", hide_types=["plate"])()

    draws = run(pgm.BlockGibbs(both), rng_key, num_chains=8).get_samples(True)
    assert set(draws) == {"a/v", "a/h", "b/v"}
    assert draws["b/v"].shape == (8, 1000, 2, 3)
    law, other = pgm.exact(first), pgm.exact(second)
    assert close_to(draws["a/v"], law.means["v"])
    assert close_to(draws["a/h"], law.means["h"])
    assert (np.asarray(draws["b/v"])[..., 0] == 1).all()
    assert close_to(draws["b/v"][..., 1:], np.stack([other.means["v"][1:]] * 2))


def test_starts_restarts_and_the_model_that_arviz_reads(rng_key):
    kernel = pgm.BlockGibbs(labelled, num_sweeps=3)
    start = {"z": np.ones((2, 4, 1), np.int32)}
    mcmc = run(kernel, rng_key, 1.0, num_samples=3, num_chains=2, init_params=start)
    assert mcmc.sampler.model is labelled
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(mcmc.post_warmup_state.rng_key, 1.0)
    assert mcmc.get_samples()["z"].shape == (6, 4, 1)
    assert repr(kernel) == "BlockGibbs(labelled, num_sweeps=3)"
    state = kernel.init(rng_key, 0, {"z": start["z"][0]}, (1.0,), {})
    assert (state.z["z"] == 1).all()


# ---- what is refused ---------------------------------------------------------------------------


def plain():
    numpyro.sample("mu", dist.Normal())


def masked():
    with handlers.mask(mask=np.array([[True], [False], [True], [True]])):
        labelled(1.0)


def scaled():
    with handlers.scale(scale=2.0):
        labelled(1.0)


def subsampled():
    with numpyro.plate("rows", 8, dim=-2, subsample_size=4):
        two_normals(1.0)(x=X)


def indexed():
    z = zoo.rbm()()["v"]
    numpyro.sample("y", dist.Normal(jnp.array([0.0, 1.0])[z[0]], 1.0), obs=0.3)


def passed_on():
    v = zoo.rbm()()["v"]
    handlers.scope(zoo.rbm(), prefix="b")(v=v)


def parametrised():
    v = handlers.scope(zoo.rbm(), prefix="a")()["v"]
    two_normals(1.0 + v[0])(x=X[0])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (plain, "found no energy model in plain: call one inside it"),
        (lambda: two_normals(1.0)(x=X[0], z=0), "nothing is left to sample: every site"),
        (
            labelled,
            r"samples the sites of energy models, \['z'\]; \['distance'\] of labelled are no such "
            r"sites.*Gibbs\(\[\(BlockGibbs\(model\), \['z'\]\), \(NUTS\(model\), \['distance'\]\)",
        ),
        (masked, "energy of GaussianMixture is scaled or masked in masked"),
        (scaled, "energy of GaussianMixture is scaled or masked in scaled"),
        (subsampled, "energy of GaussianMixture is scaled or masked in subsampled"),
        (indexed, r"site 'y' in indexed depends on \['v', 'h'\]"),
        (passed_on, r"what is given to RBM in passed_on depends on \['v', 'h', 'b/h'\]"),
        (parametrised, "what is given to GaussianMixture in parametrised depends on"),
    ],
    ids=[
        "no-energy",
        "all-observed",
        "plain-site",
        "masked",
        "scaled",
        "subsampled",
        "indexed",
        "passed-on",
        "parameters",
    ],
)
def test_what_would_be_sampled_wrongly_is_refused(model, message, rng_key):
    with pytest.raises(ValueError, match=message):
        run(pgm.BlockGibbs(model), rng_key, num_warmup=1, num_samples=1)


@pytest.mark.parametrize("option", ["blocks", "observables"])
@pytest.mark.usefixtures("annotations_unchecked")
def test_options_that_need_an_energy_model(option):
    with pytest.raises(ValueError, match=rf"{option}= is for an energy model.*labelled calls"):
        pgm.BlockGibbs(labelled, **{option: {"z": len}})
    with pytest.raises(TypeError, match="BlockGibbs takes an energy model, got ABCMeta"):
        pgm.BlockGibbs(pgm.RBM)


def unnormalised():
    weight = numpyro.sample("weight", dist.Normal(0.5, 0.5))
    with numpyro.plate("rows", 5, dim=-2):
        machine(weight)(v=V)


def test_random_parameters_of_an_unnormalised_energy_are_refused_beside_any_kernel(rng_key):
    """NUTS differentiates with respect to them; beside BlockGibbs a kernel need not."""
    message = "parameters of RBM are random here, but its energy is unnormalised"
    custom = CustomGibbs(lambda rng_key, gibbs_sites, hmc_sites: gibbs_sites)
    for other in (NUTS(unnormalised), custom):
        kernel = Gibbs([(pgm.BlockGibbs(unnormalised), ["h"]), (other, ["weight"])])
        with pytest.raises(ValueError, match=message):
            run(kernel, rng_key, num_warmup=1, num_samples=1)


# ---- the rest of NumPyro -----------------------------------------------------------------------


def test_numpyro_discrete_gibbs_samples_the_labels_of_the_same_model(rng_key):
    """The reference: independent code on the same user's model."""
    z = np.asarray(run(DiscreteGibbs(labelled), rng_key, 1.0, num_samples=2000).get_samples()["z"])
    scores = label_scores(1.0)
    assert close_to(z[None, :, :, 0], expit(scores[:, 1] - scores[:, 0]))


def wide(data):
    """Rows of two columns and a hidden unit each: plates and units of several sizes."""
    shift = numpyro.sample("shift", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    mixture = pgm.GaussianMixture(
        weights=jnp.array([0.3, 0.7]),
        means=jnp.array([[0.0, 0.0], [2.0, 2.0]]) + shift,
        covariances=jnp.ones((2, 2)),
        covariance_type="diag",
    )
    with numpyro.plate("rows", len(data), dim=-2):
        pgm.marginalize(mixture, "z")(x=data)


def test_rows_of_several_units_in_a_plate_do_not_warn(rng_key):
    """NumPyro misses a plate for batch dimensions without one, and units have none."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mcmc = run(NUTS(wide), rng_key, np.ones((3, 2), np.float32), num_warmup=5, num_samples=5)
    assert all(np.isfinite(draws).all() for draws in mcmc.get_samples().values())


def test_handlers_condition_and_predictive_on_a_users_model(rng_key):
    known = handlers.condition(labelled, data={"distance": jnp.float32(1.0)})
    z = run(pgm.BlockGibbs(known), rng_key, num_samples=2000).get_samples()["z"]
    scores = label_scores(1.0)
    assert close_to(np.asarray(z)[None, :, :, 0], expit(scores[:, 1] - scores[:, 0]))

    draws = {"distance": jnp.ones(5), "z": z[:5]}
    found = Predictive(labelled, posterior_samples=draws, return_sites=["z", "x"])(rng_key)
    np.testing.assert_array_equal(found["z"], z[:5])
    np.testing.assert_array_equal(found["x"][0], X)


def test_dimensions_of_a_users_model_have_names(rng_key):
    """Plates by their name, units by the dims of their site."""

    def user(v=None):
        weight = numpyro.sample("weight", dist.Normal(0.5, 0.5))
        with numpyro.plate("rows", 5, dim=-2):
            pgm.normalize(machine(weight))(v=v)

    kernel = Gibbs([(pgm.BlockGibbs(user), ["h"]), (NUTS(user), ["weight"])])
    mcmc = run(kernel, rng_key, num_warmup=2, num_samples=4, method="sequential", kwargs={"v": V})
    tree = az.from_numpyro(mcmc)
    assert tree["posterior"]["h"].dims == ("chain", "draw", "rows", "hidden")
    assert tree["posterior"]["weight"].dims == ("chain", "draw")
    assert tree["observed_data"]["v"].dims == ("rows", "visible")
