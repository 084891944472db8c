"""An energy model is a NumPyro model: plates, handlers, NumPyro's own kernels as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import oracles
import pytest
import zoo
from numpyro import handlers
from numpyro.infer import (
    HMC,
    MCMC,
    NUTS,
    DiscreteGibbs,
    DiscreteHMCGibbs,
    MixedHMC,
    Predictive,
)
from numpyro.infer.util import log_density
from scipy import stats

import pgm_energy as pgm


def minus_energy(model, values):
    return -oracles.energies(model, {k: np.asarray(v)[None] for k, v in values.items()})[0]


def test_trace_has_a_sample_site_per_site_and_one_factor():
    model = zoo.mixed()
    trace = handlers.trace(handlers.seed(model, 0)).get_trace()
    assert list(trace) == ["b", "z", "x", "log_density"]
    for name, site in model.sites.items():
        node = trace[name]
        assert node["type"] == "sample"
        assert not node["is_observed"]
        assert node["value"].shape == site.shape
        assert not np.asarray(node["fn"].log_prob(node["value"])).any(), (
            "the base measure is masked"
        )
        site.check(name, node["value"])
    values = {name: trace[name]["value"] for name in model.sites}
    factor = trace["log_density"]["fn"].log_prob(trace["log_density"]["value"])
    assert float(factor) == pytest.approx(minus_energy(model, values), rel=1e-5)
    returned = handlers.seed(model, 0)()
    assert sorted(returned) == ["b", "x", "z"]


@pytest.mark.parametrize(
    "model", [zoo.rbm("spin", "categorical"), zoo.mixed()], ids=["rbm", "mixed"]
)
def test_log_density_of_numpyro_is_minus_the_energy(model):
    values = zoo.random_values(model)
    found, _ = log_density(model, (), {}, values)
    assert float(found) == pytest.approx(minus_energy(model, values), rel=1e-5)
    first = next(iter(model.sites))
    rest = {k: v for k, v in values.items() if k != first}
    observed, trace = log_density(model, (), {first: values[first]}, rest)
    assert float(observed) == pytest.approx(minus_energy(model, values), rel=1e-5)
    assert trace[first]["is_observed"]


def test_handlers_condition_and_substitute():
    model = zoo.rbm()
    values = zoo.random_values(model)
    expected = minus_energy(model, values)
    conditioned = handlers.condition(model, data={"v": values["v"]})
    found, trace = log_density(conditioned, (), {}, {"h": values["h"]})
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert trace["v"]["is_observed"]
    substituted = handlers.substitute(handlers.seed(model, 1), data=values)
    trace = handlers.trace(substituted).get_trace()
    np.testing.assert_array_equal(trace["v"]["value"], values["v"])
    factor = trace["log_density"]["fn"].log_prob(trace["log_density"]["value"])
    assert float(factor) == pytest.approx(expected, rel=1e-5)
    assert (
        not handlers.trace(handlers.block(handlers.seed(model, 0), hide=["v"])).get_trace().get("v")
    )


@pytest.mark.parametrize(
    "model",
    [zoo.rbm("spin", "binary"), zoo.mixed(), zoo.rbm("categorical", "real")],
    ids=["rbm", "scalar-and-vector", "categorical-real"],
)
@pytest.mark.parametrize("subsample", [False, True])
def test_plates_stand_left_of_the_units(model, subsample):
    """``z`` is one unit, ``x`` a vector: the plate's dimension is left of the widest site."""

    def rows():
        with numpyro.plate("rows", 7, dim=-2, subsample_size=5 if subsample else None):
            return model()

    num = 5 if subsample else 7
    values = handlers.seed(rows, 0)()
    trace = handlers.trace(handlers.seed(rows, 0)).get_trace()
    raw = {}
    for name, site in model.sites.items():
        gap = (1,) * (1 - len(site.shape))
        assert values[name].shape == (num, *gap, *site.shape)
        raw[name] = np.asarray(values[name]).reshape(num, *site.shape)
    node = trace["log_density"]
    factor = np.asarray(node["fn"].log_prob(node["value"])) * (node["scale"] or 1.0)
    assert factor.shape == (num, 1)
    expected = -oracles.energies(model, raw) * (7 / num)
    np.testing.assert_allclose(factor[:, 0], expected, rtol=1e-5)


def test_nested_plates():
    model = zoo.rbm()

    def rows():
        with numpyro.plate("outer", 3, dim=-3), numpyro.plate("inner", 4, dim=-2):
            return model()

    values = handlers.seed(rows, 0)()
    assert values["v"].shape == (3, 4, 3)
    flat = {k: np.asarray(v).reshape(12, -1) for k, v in values.items()}
    found, _ = log_density(rows, (), {}, values)
    assert float(found) == pytest.approx(-oracles.energies(model, flat).sum(), rel=1e-5)


def test_plate_with_observed_rows():
    model = zoo.mixed()
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(7, 2)), jnp.float32)
    b = jnp.asarray(rng.integers(0, 2, (7, 2)))

    def rows():
        with numpyro.plate("rows", 7, dim=-2):
            return model(x=x, b=b)

    z = jnp.asarray(rng.integers(0, 3, (7, 1)))
    found, _ = log_density(rows, (), {}, {"z": z})
    raw = {"b": b, "z": z[:, 0], "x": x}
    assert float(found) == pytest.approx(-oracles.energies(model, raw).sum(), rel=1e-5)


def rows_of_one_unit():
    """A mixture in one dimension: a plate of any size broadcasts with its single unit."""
    mixture = pgm.GaussianMixture(
        weights=[0.5, 0.5], means=[[-1.0], [1.0]], covariances=[1.0, 1.0],
        covariance_type="spherical",
    )  # fmt: skip
    x = np.random.default_rng(0).normal(size=(20, 1)).astype(np.float32)
    return mixture, pgm.marginalize(mixture, "z"), {"x": x}


def rows_of_spins():
    """As many rows as units."""
    model = zoo.machine(3, pgm.Spin)
    return model, pgm.normalize(model), {"v": np.array([[1, 1, 1], [1, 1, -1], [-1, -1, -1]])}


def rows_of_a_lattice():
    """A plate on the first dimension of the lattice, of its size."""
    model = pgm.ising_lattice((3, 3), 0.2, 0.1)
    return model, pgm.normalize(model), {"v": np.where(np.arange(27).reshape(3, 3, 3) % 4, 1, -1)}


@pytest.mark.parametrize("latent", [False, True], ids=["observed", "latent"])
@pytest.mark.parametrize(
    ("case", "wrong", "right"),
    [(rows_of_one_unit, None, -2), (rows_of_spins, None, -2), (rows_of_a_lattice, -2, -3)],
    ids=["one-unit", "spins", "lattice"],
)
def test_a_plate_that_stands_on_the_units_is_refused(case, wrong, right, latent):
    """It broadcasts, so that every row would silently count as often as there are rows."""
    model, density, data = case()
    num = len(next(iter(data.values())))

    def rows(dim):
        with numpyro.plate("rows", num, dim=dim):
            return (model if latent else density)(**({} if latent else data))

    message = (
        rf"plate 'rows' .*units of {model.title}.* are: .*plate\('rows', \.\.\., dim={right}\)"
    )
    with pytest.raises(ValueError, match=message):
        handlers.seed(rows, 0)(wrong)
    values = handlers.seed(rows, 0)(right)
    assert next(iter(values.values())).shape[0] == num
    if not latent:
        found, _ = log_density(rows, (right,), {}, {})
        expected = pgm.log_likelihood(model, next(iter(data.values())))
        assert float(found) == pytest.approx(float(expected.sum()), rel=1e-5)


@pytest.mark.parametrize("subsample", [None, 5])
def test_a_plate_on_the_units_is_refused_where_shapes_do_not_fit_either(subsample):
    def rows():
        with numpyro.plate("outer", 7, subsample_size=subsample), numpyro.plate("inner", 4):
            return handlers.scope(zoo.mixed(), prefix="a", hide_types=["plate"])()

    # the inner plate has dim=-2 by itself, so that the outer one goes left of it
    with pytest.raises(ValueError, match=r"plate 'outer' .*'outer', \.\.\., dim=-3\)"):
        handlers.seed(rows, 0)()


def test_none_is_not_observed():
    """``def f(v=None): model(v=v)`` is how a NumPyro model is used for prediction too."""
    model = zoo.rbm()
    trace = handlers.trace(handlers.seed(model, 0)).get_trace(v=None, h=np.array([1, 0]))
    assert not trace["v"]["is_observed"]
    assert trace["h"]["is_observed"]
    with pytest.raises(ValueError, match="RBM has no site 'w'"):
        handlers.seed(model, 0)(w=None)


@pytest.mark.parametrize("kernel", [pgm.BlockGibbs, pgm.GibbsWithGradients, DiscreteGibbs])
def test_none_is_not_observed_by_a_kernel(kernel):
    samples = run(kernel(zoo.rbm()), 3, num_warmup=0, v=None, h=jnp.array([1, 0]))
    assert list(samples) == ["v"]


def test_two_models_in_one_need_scopes():
    first, second = zoo.rbm(), zoo.rbm("spin")

    def both():
        return handlers.scope(first, prefix="a")(), handlers.scope(second, prefix="b")()

    trace = handlers.trace(handlers.seed(both, 0)).get_trace()
    names = {"a/v", "a/h", "a/log_density", "b/v", "b/h", "b/log_density"}
    assert set(trace) == names


@pytest.mark.parametrize(
    ("arguments", "observed", "error", "message"),
    [
        ((np.zeros(3),), {}, TypeError, "takes observed sites by name, got 1 positional"),
        ((), {"w": np.zeros(3)}, ValueError, "RBM has no site 'w'; its sites are 'v', 'h'"),
        ((), {"v": np.zeros(4)}, ValueError, r"site 'v' has shape \(3,\), got .* \(4,\)"),
        ((), {"v": np.array([0, 0.5, 1])}, ValueError, r"takes 0 and 1, got 0\.5"),
        ((), {"v": np.array([0, np.nan, 1])}, ValueError, "got NaN .*use condition"),
    ],
)
def test_wrong_arguments_are_told(arguments, observed, error, message):
    with pytest.raises(error, match=message):
        handlers.seed(zoo.rbm(), 0)(*arguments, **observed)


# ---- NumPyro's own kernels -------------------------------------------------------------------


def run(kernel, num_samples, key=0, num_warmup=200, **observed):
    mcmc = MCMC(kernel, num_warmup=num_warmup, num_samples=num_samples, progress_bar=False)
    mcmc.run(jax.random.key(key), **observed)
    return {k: np.asarray(v) for k, v in mcmc.get_samples().items()}


def thinned_p_value(samples, model, every):
    states, probabilities, _ = oracles.law(model)
    thinned = {k: v[::every] for k, v in samples.items() if k in model.sites}
    return oracles.frequencies_p_value(thinned, states, probabilities)


def one_chain(model, num, every, key=1):
    """Our kernel, in the same form as NumPyro's samples."""
    kernel = pgm.gibbs_kernel(pgm.blocks(model))

    @jax.jit
    def chain(key, values):
        def sweep(values, key):
            new, _ = kernel(key, values, model)
            return new, new

        return jax.lax.scan(sweep, values, jax.random.split(key, num))[1]

    start = {k: jnp.zeros(s.shape, s.dtype) for k, s in model.sites.items()}
    return {k: np.asarray(v)[::every] for k, v in chain(jax.random.key(key), start).items()}


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(zoo.rbm("binary", "categorical", (2, 2)), id="rbm"),
        pytest.param(zoo.machine(4), id="machine"),
        pytest.param(pgm.binarize(zoo.machine(4, pgm.Spin, scale=0.3)), id="binarized-spins"),
    ],
)
def test_discrete_gibbs_agrees_with_the_exact_law_and_with_our_kernel(model):
    samples = run(DiscreteGibbs(model), 40_000)
    assert thinned_p_value(samples, model, 20) > oracles.ALPHA
    ours = one_chain(model, 40_000, 1)
    assert thinned_p_value(ours, model, 20) > oracles.ALPHA
    wrong = model.generic(jax.random.key(5))
    wrong = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), wrong)
    assert thinned_p_value(samples, wrong, 20) < oracles.ALPHA
    for name in model.sites:  # the two implementations against each other
        a, b = (s[name].reshape(40_000, -1)[::20].astype(float) for s in (samples, ours))
        error = np.sqrt((a.var(axis=0) + b.var(axis=0)) / len(a))
        assert (np.abs(a.mean(axis=0) - b.mean(axis=0)) < 5.5 * error + 1e-12).all()


def test_discrete_gibbs_with_an_observed_site():
    model = zoo.rbm()
    given = np.array([1, 0, 1])
    samples = run(DiscreteGibbs(model), 10_000, v=jnp.asarray(given))
    left = {"h": samples["h"]}
    assert thinned_p_value(left, pgm.condition(model, v=given), 10) > oracles.ALPHA
    assert thinned_p_value(left, pgm.condition(model, v=1 - given), 10) < oracles.ALPHA


def test_discrete_gibbs_refuses_spins_loudly():
    """It takes every support to be 0..K-1: it must not sample -1 and +1 as 0 and 1."""
    with pytest.raises((NotImplementedError, ValueError, AssertionError, RuntimeError)) as caught:
        run(DiscreteGibbs(zoo.machine(3, pgm.Spin)), 10)
    assert str(caught.value)


def gaussian_rbm():
    return zoo.rbm("real", "binary", (2, 2))


def exact_gaussian_rbm(model):
    """States of h, their probabilities, and the mean of v given each."""
    states = np.array(list(np.ndindex(2, 2)))
    weights, bias = np.asarray(model.weights, float), np.asarray(model.visible_bias, float)
    precision = np.asarray(model.visible_precision, float)
    eta = bias + states @ weights.T
    log_weights = states @ np.asarray(model.hidden_bias, float) + (0.5 * eta**2 / precision).sum(1)
    weight = np.exp(log_weights - log_weights.max())
    return states, weight / weight.sum(), eta / precision, precision


def v_cdf(model, unit):
    """Distribution function of one visible unit: a mixture of normals over h."""
    _, probabilities, mean, precision = exact_gaussian_rbm(model)
    scale = 1 / np.sqrt(precision[unit])
    return lambda x: probabilities @ stats.norm.cdf(np.asarray(x)[None], mean[:, unit, None], scale)


def check_visible(v, model, every):
    """Kolmogorov-Smirnov of thinned draws, and a control with the wrong mixture."""
    wrong = pgm.replace(model, visible_bias=model.visible_bias + 1.0)
    for unit in range(2):
        thinned = v[::every, unit]
        assert stats.kstest(thinned, v_cdf(model, unit)).pvalue > oracles.ALPHA
        assert stats.kstest(thinned, v_cdf(wrong, unit)).pvalue < oracles.ALPHA


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda m: DiscreteHMCGibbs(NUTS(m)), id="DiscreteHMCGibbs"),
        pytest.param(
            lambda m: MixedHMC(HMC(m, trajectory_length=1.2), num_discrete_updates=4), id="MixedHMC"
        ),
    ],
)
def test_mixed_kernels_run_on_the_same_object(wrap):
    model = gaussian_rbm()
    samples = run(wrap(model), 8000)
    states, probabilities, _, _ = exact_gaussian_rbm(model)
    thinned = {"h": samples["h"][::8]}
    p_value = oracles.frequencies_p_value(thinned, {"h": states}, probabilities)
    assert p_value > oracles.ALPHA
    flat = np.full(4, 0.25)
    assert oracles.frequencies_p_value(thinned, {"h": states}, flat) < oracles.ALPHA
    check_visible(samples["v"], model, 8)


@pytest.mark.parametrize("kernel", [NUTS, HMC])
@pytest.mark.parametrize(
    ("model", "site"),
    [(zoo.rbm(), "v"), (zoo.machine(3, pgm.Spin), "v"), (zoo.mixed(), "b")],
    ids=["binary", "spin", "mixed"],
)
def test_gradient_kernels_on_discrete_sites_are_refused_with_a_way_out(kernel, model, site):
    message = (
        rf"NUTS and HMC cannot sample the discrete site '{site}' of {type(model).__name__}: "
        r"use BlockGibbs, .*marginalize\(model, .*relax\(model\)"
    )
    with pytest.raises(ValueError, match=message):
        run(kernel(model), 10)


def test_nuts_on_the_marginal_of_a_gaussian_rbm_is_exact(rng_key):
    model = gaussian_rbm()
    marginal = pgm.marginalize(model, "h")
    samples = run(NUTS(marginal), 6000)
    check_visible(samples["v"], model, 4)
    decoded = marginal.decode(rng_key, {"v": jnp.asarray(samples["v"])})
    states, probabilities, _, _ = exact_gaussian_rbm(model)
    thinned = {"h": np.asarray(decoded["h"])[::4]}
    assert oracles.frequencies_p_value(thinned, {"h": states}, probabilities) > oracles.ALPHA


def test_nuts_on_the_rest_when_the_discrete_site_is_observed():
    model = gaussian_rbm()
    samples = run(NUTS(model), 4000, h=jnp.array([1, 0]))
    mean = np.asarray(model.visible_bias + model.weights[:, 0]) / np.asarray(
        model.visible_precision
    )
    scale = 1 / np.sqrt(np.asarray(model.visible_precision))
    white = (samples["v"][::4] - mean) / scale
    assert min(stats.kstest(c, stats.norm.cdf).pvalue for c in white.T) > oracles.ALPHA
    assert stats.kstest(white[:, 0] + 0.3, stats.norm.cdf).pvalue < oracles.ALPHA


def test_nuts_on_the_twin_is_exact(rng_key):
    model = zoo.machine(4, pgm.Spin, scale=0.4)
    twin = pgm.relax(model)
    samples = run(NUTS(twin), 8000)
    decoded = twin.decode(rng_key, {"y": jnp.asarray(samples["y"])})
    assert thinned_p_value({k: np.asarray(v) for k, v in decoded.items()}, model, 4) > oracles.ALPHA
    other = zoo.machine(4, pgm.Spin, scale=0.4, seed=8)
    assert thinned_p_value({k: np.asarray(v) for k, v in decoded.items()}, other, 4) < oracles.ALPHA


def test_an_energy_model_inside_a_larger_numpyro_model():
    """A Gaussian observation of a real site: the energy's factor and NumPyro's sites add up."""
    free = pgm.marginalize(gaussian_rbm(), "h")

    def model(data):
        v = free()["v"]
        numpyro.sample("data", dist.Normal(v, 0.5).to_event(1), obs=data)

    data = jnp.array([1.0, -1.0])
    v = jnp.array([0.3, 0.2])
    found, _ = log_density(model, (data,), {}, {"v": v})
    expected = minus_energy(free, {"v": v}) + stats.norm.logpdf(data, v, 0.5).sum()
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_predictive_warns_of_what_it_cannot_draw():
    """It runs the model forward, and forward a site has its base measure only."""
    model = zoo.rbm()
    draws = {k: jnp.asarray(v) for k, v in zoo.random_values(model, num=6).items()}
    noise = r"site {} of RBM is neither observed nor .*Predictive fills it with noise"
    with pytest.warns(UserWarning, match=noise.format("'h'")):
        found = Predictive(model, posterior_samples={"v": draws["v"]})(jax.random.key(0))
    assert found["h"].shape == (6, 2)
    with pytest.warns(UserWarning, match=noise.format("'v', 'h'")):
        Predictive(model, num_samples=2, parallel=False)(jax.random.key(0), v=None)
    # warnings are errors here: what is known is not drawn
    found = Predictive(model, draws, return_sites=["v"])(jax.random.key(0))
    np.testing.assert_array_equal(found["v"], draws["v"])
    Predictive(model, {"h": draws["h"]}, return_sites=["h"])(jax.random.key(0), v=np.ones(3, int))
