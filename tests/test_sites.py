"""The four families: encodings, normalisers, laws, and what lies outside their supports."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import stats
from scipy.special import logsumexp

import pgm_energy as pgm

DISCRETE = [
    pytest.param(pgm.Binary(3), id="binary"),
    pytest.param(pgm.Spin(3), id="spin"),
    pytest.param(pgm.Categorical(4, 3), id="categorical"),
    pytest.param(pgm.Categorical(1, 3), id="one-state"),
]
FAMILIES = [*DISCRETE, pytest.param(pgm.Real(3), id="real")]


def random_eta(site, rng, scale=2.0):
    return rng.normal(scale=scale, size=site.encoded_shape)


def probabilities(site, eta):
    """p(state) of every unit, shape + (states,), from exp(<eta, T>) alone."""
    states = oracles.unit_states(site)
    encoded = oracles.encode(site, states)
    logits = eta @ encoded.T if site.event else eta[..., None] * encoded
    return states, np.exp(logits - logsumexp(logits, axis=-1, keepdims=True))


@pytest.mark.parametrize("site", DISCRETE)
@pytest.mark.x64
def test_normalizer_mean_and_log_prob_are_the_sums_over_states(site):
    rng = np.random.default_rng(0)
    eta = random_eta(site, rng)
    states, probs = probabilities(site, eta)
    encoded = oracles.encode(site, states)
    logits = eta @ encoded.T if site.event else eta[..., None] * encoded
    np.testing.assert_allclose(
        site.log_normalizer(jnp.asarray(eta)), logsumexp(logits, axis=-1), rtol=1e-12
    )
    mean = probs @ encoded if site.event else (probs * encoded).sum(axis=-1)
    np.testing.assert_allclose(site.mean(jnp.asarray(eta)), mean, rtol=1e-12, atol=1e-14)
    for values in itertools.product(states, repeat=2):
        values = np.array([*values, states[0]])
        picked = probs[np.arange(3), [int(np.flatnonzero(states == v)[0]) for v in values]]
        log_prob = site.log_prob(jnp.asarray(values), jnp.asarray(eta))
        np.testing.assert_allclose(log_prob, np.log(picked).sum(), rtol=1e-11, atol=1e-13)
        law = site.distribution(jnp.asarray(eta))
        np.testing.assert_allclose(law.log_prob(jnp.asarray(values)), np.log(picked), atol=1e-12)


@pytest.mark.parametrize("site", DISCRETE)
def test_gradient_of_the_normalizer_is_the_mean(site):
    eta = jnp.asarray(random_eta(site, np.random.default_rng(1)))
    gradient = jax.grad(lambda e: jnp.sum(site.log_normalizer(e)))(eta)
    np.testing.assert_allclose(gradient, site.mean(eta), atol=1e-6)


@pytest.mark.parametrize("site", DISCRETE)
def test_samples_follow_the_law(site, rng_key):
    eta = random_eta(site, np.random.default_rng(2), scale=1.0)
    num = 20_000
    draws = np.asarray(
        jax.vmap(lambda k: site.sample(k, jnp.asarray(eta)))(jax.random.split(rng_key, num))
    )
    assert draws.dtype == site.dtype
    states, probs = probabilities(site, eta)
    if len(states) == 1:
        assert (draws == states[0]).all()
        return
    for unit in range(3):
        counts = [(draws[:, unit] == state).sum() for state in states]
        assert oracles.pooled_p_value(counts, num * probs[unit]) > oracles.ALPHA
        wrong = probabilities(site, eta + 0.5 * oracles.encode(site, states[-1]))[1][unit]
        assert oracles.pooled_p_value(counts, num * wrong) < oracles.ALPHA


@pytest.mark.parametrize("large", [90.0, 1e4])
@pytest.mark.parametrize("site", DISCRETE)
def test_large_natural_parameters_stay_finite(site, large, rng_key):
    eta = jnp.full(site.encoded_shape, large)
    for sign in (1.0, -1.0):
        assert np.isfinite(site.log_normalizer(sign * eta)).all()
        assert np.isfinite(site.mean(sign * eta)).all()
        drawn = np.asarray(site.sample(rng_key, sign * eta))
        assert not site.invalid(drawn).any()


@pytest.mark.x64
@pytest.mark.parametrize("matrix", [False, True], ids=["diagonal", "matrix"])
def test_normal_law_is_that_of_its_precision(matrix, rng_key):
    rng = np.random.default_rng(3)
    eta = rng.normal(size=3)
    if matrix:
        factor = rng.normal(size=(3, 3))
        precision = factor @ factor.T + np.eye(3)
    else:
        precision = rng.uniform(0.5, 2.0, 3)
    full = precision if matrix else np.diag(precision)
    covariance = np.linalg.inv(full)
    mean = covariance @ eta
    site = pgm.Real(3, coupled=matrix)
    x = rng.normal(size=3)
    expected = stats.multivariate_normal(mean, covariance).logpdf(x)
    eta, precision = jnp.asarray(eta), jnp.asarray(precision)
    np.testing.assert_allclose(site.log_prob(jnp.asarray(x), eta, precision), expected, rtol=1e-10)
    np.testing.assert_allclose(site.mean(eta, precision), mean, rtol=1e-10)
    law = site.distribution(eta, precision)
    np.testing.assert_allclose(jnp.sum(law.log_prob(jnp.asarray(x))), expected, rtol=1e-6)
    # A(eta) = log of the integral of exp(eta x - x'Lx/2)
    normalizer = 0.5 * eta @ mean + 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    np.testing.assert_allclose(jnp.sum(site.log_normalizer(eta, precision)), normalizer, rtol=1e-10)
    draws = np.asarray(
        jax.vmap(lambda k: site.sample(k, eta, precision))(jax.random.split(rng_key, 5000))
    )
    # whitened draws: their squared norm is chi-square with 3 degrees of freedom, per row
    white = (draws - mean) @ np.linalg.cholesky(full)
    assert stats.kstest((white**2).sum(axis=1), stats.chi2(3).cdf).pvalue > oracles.ALPHA
    assert stats.kstest(white.ravel(), stats.norm.cdf).pvalue > oracles.ALPHA
    wrong = (draws - mean) @ np.linalg.cholesky(1.3 * full)
    assert stats.kstest(wrong.ravel(), stats.norm.cdf).pvalue < oracles.ALPHA


def test_coupled_real_site_of_two_dimensions_keeps_its_shape(rng_key):
    precision = jnp.eye(4) + 0.2
    site = pgm.Real((2, 2), coupled=True)
    eta = jnp.arange(4.0).reshape(2, 2)
    assert site.sample(rng_key, eta, precision).shape == (2, 2)
    assert site.mean(eta, precision).shape == (2, 2)
    law = site.distribution(eta, precision)
    assert law.event_shape == (2, 2)
    expected = stats.multivariate_normal(
        np.linalg.solve(precision, np.arange(4.0)), np.linalg.inv(precision)
    ).logpdf(np.ones(4))
    np.testing.assert_allclose(law.log_prob(jnp.ones((2, 2))), expected, rtol=1e-4)


@pytest.mark.parametrize("site", FAMILIES)
def test_encode_takes_every_numeric_type_and_leading_shape(site):
    kinds = [np.int64, np.uint8, np.float64, np.float32, bool]
    raw = np.broadcast_to(np.ones(3) if site.dtype != jnp.int32 else np.zeros(3), (2, 5, 3))
    for kind in kinds:
        encoded = site.encode(raw.astype(kind))
        assert encoded.shape == (2, 5, *site.encoded_shape)
        assert jnp.issubdtype(encoded.dtype, jnp.floating)
        np.testing.assert_array_equal(encoded, oracles.encode(site, raw))


@pytest.mark.parametrize(
    ("site", "values", "message"),
    [
        (pgm.Binary(3), [0, 2, 1], r"'v' is binary and takes 0 and 1, got 2 at index \(1,\)"),
        (pgm.Binary(3), [0.0, 0.5, 1.0], r"got 0.5 at index \(1,\)"),
        (pgm.Binary(3), [[0, 1, 1], [0, -1, 3]], r"got -1 at row 1, column 1 \(and 1 more\)"),
        (pgm.Spin(3), [1, 0, -1], r"'v' is spin and takes -1 and \+1, got 0 at index \(1,\)"),
        (pgm.Categorical(3, 2), [0, 3], "integers from 0 to 2, got 3"),
        (pgm.Categorical(3, 2), [-1, 0], "integers from 0 to 2, got -1"),
        (pgm.Categorical(3, 2), [0.0, 1.5], "got 1.5"),
        (pgm.Real(2), [0.0, np.inf], "finite numbers, got inf"),
        (pgm.Real(2), [0.0, np.nan], "got NaN at index .*condition"),
        (pgm.Binary(2), [np.nan, 1.0], "got NaN at index .*condition"),
    ],
)
def test_values_outside_the_support_are_refused_with_their_place(site, values, message):
    with pytest.raises(ValueError, match=message):
        site.check("v", values)


def test_values_that_are_no_numbers_are_refused():
    with pytest.raises(TypeError, match="takes numbers, got dtype <U1"):
        pgm.Binary(1).check("v", np.array(["a"]))
    with pytest.raises(TypeError, match="complex"):
        pgm.Real(1).check("v", np.array([1j]))


def test_nan_passes_where_it_is_allowed():
    pgm.Binary(3).check("v", [0, np.nan, 1], allow_nan=True)
    with pytest.raises(ValueError, match=r"got 2\.0"):
        pgm.Binary(3).check("v", [2, np.nan, 1], allow_nan=True)


@pytest.mark.parametrize("shape", [0, -1, (2, 0), 1.5, (2, "a")])
def test_shapes_are_positive_integers(annotations_unchecked, shape):
    with pytest.raises(ValueError, match="positive integer"):
        pgm.Binary(shape)


def test_sites_are_values():
    assert pgm.Binary(3) == pgm.Binary((3,))
    assert pgm.Binary(3) != pgm.Spin(3)
    assert pgm.Categorical(2, 3) != pgm.Categorical(3, 3)
    assert hash(pgm.Real(3)) != hash(pgm.Real(3, coupled=True))
    assert pgm.Spin((2, 3)).size == 6
    assert pgm.Real(()).size == 1
    assert pgm.Binary(3, "visible").dims == ("visible",)
    assert pgm.Categorical(5, (2, 3)).encoded_shape == (2, 3, 5)


def test_bad_descriptions_are_refused(annotations_unchecked):
    with pytest.raises(ValueError, match=r"dims .* name 2 dimensions, the shape is \(3,\)"):
        pgm.Binary(3, dims=("a", "b"))
    with pytest.raises(ValueError, match="num_states must be a positive integer, got 0"):
        pgm.Categorical(0, 3)
    with pytest.raises(ValueError, match=r"num_states .* got 2\.5"):
        pgm.Categorical(2.5, 3)
