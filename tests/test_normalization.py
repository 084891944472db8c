"""normalize: log Z in the energy, so that parameters may be random; the posterior is exact."""

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
from numpyro.infer import MCMC, NUTS
from numpyro.infer.util import log_density
from scipy.special import logsumexp

import pgm_energy as pgm

PAIRS = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]], np.float32)
ROWS = np.array([[1, 1, 1], [1, 1, -1], [-1, -1, -1], [1, 1, 1], [-1, -1, 1]])


def triangle(coupling, bias):
    """Three spins, one coupling, one bias."""
    return pgm.BoltzmannMachine(weights=coupling * PAIRS, bias=bias * jnp.ones(3), unit=pgm.Spin)


def by_hand(model):
    """log Z of the triangle: four kinds of states, by the number of spins that are up."""
    coupling, bias = model.weights[0, 1], model.bias[0]
    ups = jnp.arange(4)
    total = 2.0 * ups - 3.0
    energy = coupling * 0.5 * (total**2 - 3.0) + bias * total
    return jax.nn.logsumexp(energy, b=jnp.array([1.0, 3.0, 3.0, 1.0]))


def spins(normalize):
    """A posterior of the triangle's two parameters."""

    def posterior():
        coupling = numpyro.sample("coupling", dist.Normal(0.0, 1.0))
        bias = numpyro.sample("bias", dist.Normal(0.0, 0.5))
        with numpyro.plate("rows", len(ROWS), dim=-2):
            normalize(triangle(coupling, bias))(v=ROWS)

    return posterior


def log_joint(coupling, bias):
    """What ``spins`` must be, without the library: priors, statistics of the rows, log Z."""
    states = np.array(list(np.ndindex(2, 2, 2))) * 2 - 1

    def score(s):
        pairs = s[..., 0] * s[..., 1] + s[..., 0] * s[..., 2] + s[..., 1] * s[..., 2]
        return coupling[..., None] * pairs + bias[..., None] * s.sum(-1)

    log_z = logsumexp(score(states), axis=-1)
    prior = -0.5 * coupling**2 - 2.0 * bias**2 - np.log(2 * np.pi * 0.5)
    return score(ROWS).sum(-1) - len(ROWS) * log_z + prior


GRID = np.stack(np.meshgrid(np.linspace(-3, 4, 281), np.linspace(-2.5, 2.5, 201), indexing="ij"))


@pytest.mark.parametrize(
    "normalize",
    [pgm.normalize, lambda model: pgm.normalize(model, by_hand)],
    ids=["exact-sum", "supplied"],
)
def test_the_posterior_density_and_its_gradient_are_exact(normalize):
    def density(theta):
        values = {"coupling": theta[0], "bias": theta[1]}
        return log_density(spins(normalize), (), {}, values)[0]

    points = GRID[:, ::40, ::40].reshape(2, -1).T
    found, gradient = jax.jit(jax.vmap(jax.value_and_grad(density)))(jnp.asarray(points))
    np.testing.assert_allclose(found, log_joint(*points.T), atol=2e-4)
    step = 1e-4
    for i in range(2):
        shift = step * np.eye(2)[i]
        slope = (log_joint(*(points + shift).T) - log_joint(*(points - shift).T)) / (2 * step)
        np.testing.assert_allclose(gradient[:, i], slope, atol=2e-3)


def test_nuts_over_the_parameters_follows_the_grid(rng_key):
    mcmc = MCMC(
        NUTS(spins(lambda model: pgm.normalize(model, by_hand))),
        num_warmup=300,
        num_samples=2000,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(rng_key)
    score = log_joint(*GRID)
    weight = np.exp(score - score.max())
    unnormalised = np.exp(score + len(ROWS) * log_z_on_grid() - np.max(score))
    for i, name in enumerate(("coupling", "bias")):
        draws = np.asarray(mcmc.get_samples(True)[name], float)
        error = float(az.mcse({"x": draws}, method="mean")["x"])
        exact = np.average(GRID[i], weights=weight)
        assert error < 0.05
        assert abs(draws.mean() - exact) < 5 * error
        if name == "coupling":  # the control: what a missing log Z would give
            assert abs(draws.mean() - np.average(GRID[i], weights=unnormalised)) > 5 * error


def log_z_on_grid():
    states = np.array(list(np.ndindex(2, 2, 2))) * 2 - 1
    pairs = np.array([s[0] * s[1] + s[0] * s[2] + s[1] * s[2] for s in states])
    score = GRID[0][..., None] * pairs + GRID[1][..., None] * states.sum(1)
    return logsumexp(score, axis=-1)


def test_without_it_random_parameters_are_refused_with_the_way_out(rng_key):
    message = (
        r"parameters of BoltzmannMachine are random here, but its energy is unnormalised: log Z "
        r"changes with them.*posterior would be wrong.*pgm_energy\.normalize\(model\)"
    )
    with pytest.raises(ValueError, match=message):
        MCMC(NUTS(spins(lambda model: model)), num_warmup=1, num_samples=1).run(rng_key)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: pgm.condition(model, v=np.array([1, np.nan, -1])),
        lambda model: pgm.tilt(model, v=0.5),
    ],
    ids=["condition", "tilt"],
)
def test_what_undoes_it_is_refused_with_the_order_that_works(change):
    """The user has called ``normalize`` already: to be told so again would not help."""

    def density(coupling, change):
        return log_density(change(triangle(coupling, 0.1)), (), {"v": ROWS[0]}, {})[0]

    message = (
        r"BoltzmannMachine, normalised (given|tilted).* are random here.*is not that of "
        r"BoltzmannMachine, normalised any more.*m\(v=x\).*normalise last: pgm_energy\.normalize"
    )
    with pytest.raises(ValueError, match=message):
        jax.grad(density)(0.3, lambda model: change(pgm.normalize(model)))
    slope = jax.grad(density)(0.3, lambda model: pgm.normalize(change(model)))
    assert np.isfinite(slope)


@pytest.mark.parametrize(
    "model",
    [
        zoo.rbm(),
        zoo.rbm("categorical", "spin", (2, 2)),
        zoo.rbm("real", "binary"),
        pgm.condition(zoo.machine(4, num_hidden=1), v=np.array([1, np.nan, np.nan])),
        pgm.marginalize(zoo.rbm("spin", "binary"), "h"),
        pgm.marginalize(zoo.rbm("real", "binary"), "h"),  # no normal law, but the whole has one
    ],
    ids=["rbm", "categorical", "gaussian", "clamped", "marginal", "gaussian-marginal"],
)
def test_the_exact_sum_is_log_z(model):
    normalized = pgm.normalize(model)
    values = zoo.random_values(model)
    shift = float(model.log_density(values) - normalized.log_density(values))
    whole = model.model if isinstance(model, pgm.transforms.Marginal) else model
    assert shift == pytest.approx(pgm.log_partition(whole).estimate, rel=1e-5)
    assert pgm.log_partition(normalized).estimate == 0


def test_a_likelihood_of_it_needs_no_log_partition():
    model, rows = zoo.machine(4), np.array([[0, 1, 1, 0]])
    found = pgm.log_likelihood(pgm.normalize(model), rows)
    np.testing.assert_allclose(found, pgm.log_likelihood(model, rows), rtol=1e-5)
    assert repr(pgm.normalize(triangle(0.1, 0.1), by_hand)).endswith("log_partition=by_hand)")


def test_a_normalized_model_sits_the_exam():
    pgm.testing.check_energy_model(pgm.normalize(zoo.rbm("spin", "binary")))
    pgm.testing.check_energy_model(pgm.normalize(triangle(0.3, 0.1), by_hand))
    with pytest.raises(pgm.testing.ConformanceError, match="known log Z"):
        pgm.testing.check_energy_model(pgm.normalize(triangle(0.3, 0.1), wrong_by_hand))


def wrong_by_hand(model):
    return by_hand(model) + 0.01


def test_it_has_the_schedule_and_the_law_of_the_model():
    model = zoo.rbm("spin", "categorical", (3, 2))
    normalized = pgm.normalize(model)
    assert pgm.blocks(normalized).groups == pgm.blocks(model).groups
    oracles.assert_invariant(normalized)
    values = zoo.random_values(model)
    new, info = pgm.gibbs_kernel(pgm.blocks(normalized))(jax.random.key(0), values, normalized)
    energy = normalized.energy(**normalized.encode(new))
    assert float(info.energy) == pytest.approx(float(energy), rel=1e-5)


def test_it_composes_with_the_other_transformations():
    """Either order of summing out and normalising gives the same density."""
    model = zoo.rbm()
    v = {"v": np.array([1, 0, 1])}
    first = pgm.normalize(pgm.marginalize(model, "h"))
    second = pgm.marginalize(pgm.normalize(model), "h")
    assert float(first.log_density(v)) == pytest.approx(float(second.log_density(v)), rel=1e-5)
    assert first.known_log_partition == second.known_log_partition == 0
    # given a site the normaliser is another one, so the parameters may not be random any more
    assert pgm.condition(pgm.normalize(model), v=v["v"]).known_log_partition is None
    mixture = pgm.GaussianMixture(weights=[1.0], means=[[0.0]], covariances=[[[1.0]]])
    assert pgm.normalize(mixture) is mixture


def test_supplied_functions_are_evaluated_once_for_all_rows():
    calls = []

    def counted(model):
        def note(value):
            calls.append(value)
            return value

        return jax.pure_callback(note, jax.ShapeDtypeStruct((), jnp.float32), by_hand(model))

    def rows():
        with numpyro.plate("rows", len(ROWS), dim=-2):
            pgm.normalize(triangle(0.2, 0.1), counted)(v=ROWS)

    handlers.seed(rows, 0)()
    assert len(calls) == 1


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(
    ("log_partition", "error", "message"),
    [
        (1.0, TypeError, "must be a function of the model.*got float"),
        (lambda model: model.bias, ValueError, r"must return a scalar, got shape \(3,\)"),
    ],
    ids=["number", "vector"],
)
def test_wrong_functions_are_refused(log_partition, error, message):
    with pytest.raises(error, match=message):
        pgm.normalize(triangle(0.1, 0.1), log_partition)


@pytest.mark.usefixtures("annotations_unchecked")
def test_too_many_states_ask_for_a_function():
    with pytest.raises(ValueError, match=r"2\^17\.0 states.*2\^16.*normalize\(model, log_part"):
        pgm.normalize(zoo.machine(17))
    with pytest.raises(TypeError, match="normalize takes an energy model, got str"):
        pgm.normalize("rbm")
