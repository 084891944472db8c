"""Running moments as pure functions: batch means of every size, AR(1), rounding, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import ALPHA
from scipy import stats
from scipy.signal import lfilter

from pgm_energy import batch_means


@jax.jit
def _all(state, blocks):
    def step(state, block):
        return batch_means.update(state, {"x": block}), None

    return jax.lax.scan(step, state, blocks)[0]


def run(draws, block=1, num_levels=20):
    """Moments of ``(draws, series, ...)``, taken in ``block`` at a time."""
    draws = np.asarray(draws, np.float32)
    blocks = draws.reshape(-1, block, *draws.shape[1:])
    state = batch_means.init({"x": blocks[0]}, num_levels)
    return batch_means.result(_all(state, blocks))["x"]


def chains(rho, num_draws, num_series, seed=0):
    """Stationary AR(1) chains with unit variance."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(num_draws, num_series)) * np.sqrt(1 - rho**2)
    noise[0] = rng.normal(size=num_series)
    return lfilter([1.0], [1.0, -rho], noise, axis=0)


def by_hand(draws, size):
    """Variance of the means of whole batches of all series, about their common mean."""
    count = len(draws) // size
    cut = np.asarray(draws, np.float64)[: count * size]
    return cut.reshape(count, size, -1).mean(axis=1).ravel().var(ddof=1)


@pytest.mark.parametrize(
    "num_draws, num_series, block",
    [(1000, 3, 1), (1000, 3, 8), (37, 1, 1), (4096, 4, 64), (130, 1, 2), (1536, 256, 32)],
)
def test_batch_means_are_those_computed_by_hand(num_draws, num_series, block):
    """Of draws far from zero, whose squares would not fit into single precision."""
    draws = np.float32(1000.0 + chains(0.8, num_draws, num_series))
    found = run(draws, block)
    exact = draws.astype(np.float64)
    assert found.num_batches == num_series * (num_draws // found.batch_size)
    np.testing.assert_allclose(found.mean, exact.mean(), rtol=1e-7)
    np.testing.assert_allclose(found.sd, exact.std(ddof=1), rtol=1e-3)
    variance = by_hand(draws, found.batch_size)
    np.testing.assert_allclose(
        found.mcse, np.sqrt(variance * found.batch_size / draws.size), rtol=1e-3
    )
    time = found.batch_size * variance / exact.var(ddof=1)
    np.testing.assert_allclose(found.autocorrelation_time, time, rtol=2e-3)
    np.testing.assert_allclose(found.ess, draws.size / time, rtol=2e-3)
    if num_series > 1:
        within = exact.var(axis=0, ddof=1).mean()
        between = exact.mean(axis=0).var(ddof=1)
        rhat = np.sqrt((num_draws - 1) / num_draws + between / within)
        np.testing.assert_allclose(found.rhat, rhat, rtol=1e-3)
    else:
        assert np.isnan(found.rhat)


@pytest.mark.parametrize("rho", [0.0, 0.9, -0.5])
def test_the_variance_of_batch_means_is_that_of_an_ar1_chain(rho):
    """In closed form: sigma^2 / b^2 (b + 2 sum_k (b - k) rho^k), and chi-square around it."""
    found = run(chains(rho, 2**14, 64), block=32)
    size, count = found.batch_size, found.num_batches
    lags = np.arange(1, size)
    exact = (size + 2 * np.sum((size - lags) * rho**lags)) / size**2
    measured = found.mcse**2 * (64 * 2**14) / size
    degrees = count - 1  # batches are long enough to be all but independent
    assert size > 100 / (1 - rho)
    low, high = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], degrees) / degrees
    assert low < measured / exact < high
    # the autocorrelation time that everybody knows, and a wrong one refused
    known = (1 + rho) / (1 - rho)
    assert low < found.autocorrelation_time / known * 0.99 < high * 1.02
    wrong = 1.0 if rho else 3.0
    assert not low < found.autocorrelation_time / wrong < high
    bound = stats.t.ppf(1 - ALPHA / 2, degrees)
    assert abs(found.mean) < bound * found.mcse


def test_every_statistic_has_its_own_shape_and_is_kept_apart():
    rng = np.random.default_rng(1)
    pairs, units = rng.normal(size=(50, 1, 1, 2, 3)), rng.normal(size=(50, 4, 5, 2))
    state = batch_means.init({"pairs": pairs[0], "units": units[0]})
    for pair, unit in zip(pairs, units, strict=True):
        state = batch_means.update(state, {"pairs": pair, "units": unit})
    found = batch_means.result(state)
    np.testing.assert_allclose(found["pairs"].mean, pairs.mean(axis=(0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(found["units"].mean, units.mean(axis=(0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(
        found["units"].sd, units.reshape(-1, 2).std(axis=0, ddof=1), rtol=1e-5
    )
    assert found["pairs"].mean.shape == (2, 3)


def test_a_million_draws_lose_no_precision():
    """Where a float32 sum would: a plain one is the positive control."""
    num = 2**20
    step = np.float32(1.0 + 2**-20)

    @jax.jit
    def long_run(state):
        def more(i, carry):
            state, plain = carry
            bit = (i % 4 == 0).astype(jnp.float32)  # a known mean and variance
            draws = jnp.stack([bit, step + 0 * bit])[None, None]
            return batch_means.update(state, {"x": draws}), plain + draws[0, 0]

        return jax.lax.fori_loop(0, num, more, (state, jnp.zeros(2)))

    state, plain = long_run(batch_means.init({"x": np.zeros((1, 1, 2))}))
    found = batch_means.result(state)["x"]
    assert found.mean[0] == 0.25
    assert found.mean[1] == step
    assert abs(float(plain[1]) / num - step) > 1e-4 * (step - 1)  # the control is off
    np.testing.assert_allclose(found.sd[0], np.sqrt(0.1875 * num / (num - 1)), rtol=1e-7)
    assert found.sd[1] == 0.0
    assert np.isnan(found.mcse[1])


def test_chains_that_stand_apart_are_not_taken_for_good_ones():
    """Each constant: R-hat is infinite. Each moving around its own value: it is large."""
    apart = np.broadcast_to(np.arange(4.0), (512, 4))
    stuck = run(apart)
    assert np.isinf(stuck.rhat)
    moving = run(apart + 0.1 * chains(0.0, 512, 4))
    assert moving.rhat > 5
    assert moving.ess < 0.2 * 4 * 512
    assert run(chains(0.0, 512, 4)).rhat < 1.05


def test_what_is_carried_does_not_grow():
    state = batch_means.init({"x": np.zeros((4, 3, 2, 5))}, num_levels=12)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    assert state.waiting["x"].shape == (12, 3, 2, 5)
    assert state.spread["x"].shape == (14, 2, 2, 5)
    later = _all(state, np.zeros((1000, 4, 3, 2, 5)))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), later) == shapes


def test_wrong_uses_are_refused():
    with pytest.raises(ValueError, match=r"draws a power of two, got \(3, 2\)"):
        batch_means.init({"x": np.zeros((3, 2))})
    with pytest.raises(ValueError, match=r"must have shape \(draws, series, ...\)"):
        batch_means.init({"x": np.zeros(4)})
    state = batch_means.init({"x": np.zeros((2, 2))}, num_levels=2)
    with pytest.raises(ValueError, match="there are no draws yet"):
        batch_means.result(state)
    with pytest.raises(ValueError, match=r"has shape \(1, 2\), but init was given \(2, 2\)"):
        batch_means.update(state, {"x": np.zeros((1, 2))})
    for _ in range(4):
        state = batch_means.update(state, {"x": np.zeros((2, 2))})
    with pytest.raises(ValueError, match="4 updates are more than 2 levels hold"):
        batch_means.result(state)


@pytest.mark.usefixtures("annotations_unchecked")
def test_statistics_are_a_dict_of_the_same_names():
    draws = jnp.zeros((1, 4))
    state = batch_means.init({"x": draws})
    for other in ({"y": draws}, {"x": draws, "y": draws}, {}):
        with pytest.raises(ValueError, match=r"update got .*, but init was given \['x'\]"):
            batch_means.update(state, other)
    for call in (batch_means.init, lambda draws: batch_means.update(state, draws)):
        with pytest.raises(TypeError, match=r"statistics is a dict of arrays .*, got list"):
            call([draws])
    with pytest.raises(ValueError, match=r"statistic 'x' must have shape .*got \(\)"):
        batch_means.init({"x": 1.0})
