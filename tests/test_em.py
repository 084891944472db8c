"""EM against scikit-learn, published figures and exact properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.mixture import GaussianMixture as Peer

import pgm_energy as pgm

KINDS = ("full", "tied", "diag", "spherical")


def bernoulli_rows(num=300, seed=0):
    rng = np.random.default_rng(seed)
    truth = np.array([[0.9, 0.8, 0.1, 0.2, 0.5], [0.2, 0.3, 0.7, 0.9, 0.5]])
    return (rng.random((num, 5)) < truth[rng.integers(2, size=num)]).astype(np.int8)


def fit(model, data, *, key=0, row_weights=None, **settings):
    em = pgm.EM(**settings)
    return em.run(jax.random.key(key), model, data, row_weights=row_weights, progress_bar=False)


def start(kind, data, num_components=2, seed=0):
    if kind in KINDS:
        return pgm.GaussianMixture.init(
            jax.random.key(seed), num_components=num_components, data=data, covariance_type=kind
        )
    cls = {"bernoulli": pgm.BernoulliMixture, "categorical": pgm.CategoricalMixture}[kind]
    return cls.init(jax.random.key(seed), num_components=num_components, data=data)


def rows_of(kind, num=300):
    return load_iris().data[:num] if kind in KINDS else bernoulli_rows(num)


ALL = (*KINDS, "bernoulli", "categorical")


@pytest.mark.x64
@pytest.mark.parametrize("num_components, figure", [(2, -214.3547), (3, -180.1855)])
def test_iris_reaches_the_published_likelihoods(num_components, figure):
    data = load_iris().data
    model = start("full", data, num_components)
    result = fit(model, data, max_steps=1000, tol=1e-9, num_restarts=10)
    assert result.log_likelihood == pytest.approx(figure, abs=1e-2)
    assert result.converged
    assert "floor" not in result.message
    total = float(pgm.log_likelihood(result.model, data).sum())
    assert total == pytest.approx(result.log_likelihood, abs=1e-6)


@pytest.mark.parametrize("num_components, figure", [(2, -214.3547), (3, -180.1855)])
def test_single_precision_is_enough_for_iris(num_components, figure):
    data = load_iris().data
    result = fit(start("full", data, num_components), data, tol=1e-7, num_restarts=6)
    assert result.log_likelihood == pytest.approx(figure, abs=1e-2)


@pytest.mark.x64
@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_of_scikit_learn(kind):
    data = load_iris().data
    begin = start(kind, data, 3)
    precision = np.asarray(begin.covariances)
    precision = np.linalg.inv(precision) if kind in ("full", "tied") else 1.0 / precision
    peer = Peer(
        3,
        covariance_type=kind,
        tol=0.0,
        reg_covar=0.0,
        max_iter=25,
        weights_init=np.asarray(begin.weights) / np.asarray(begin.weights).sum(),
        means_init=np.asarray(begin.means),
        precisions_init=precision,
    )
    with pytest.warns(UserWarning, match="did not converge"):
        peer.fit(data)
    result = fit(begin, data, max_steps=25, tol=0.0)
    np.testing.assert_allclose(result.model.weights, peer.weights_, rtol=1e-6)
    np.testing.assert_allclose(result.model.means, peer.means_, rtol=1e-6)
    np.testing.assert_allclose(result.model.covariances, peer.covariances_, rtol=1e-5, atol=1e-8)
    assert result.log_likelihood == pytest.approx(peer.score(data) * len(data), abs=1e-5)


@pytest.mark.x64
@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_steps_of_discrete_mixtures_are_the_textbook_ones(kind):
    data = bernoulli_rows()
    begin = start(kind, data)
    weights = np.asarray(begin.weights)
    on = np.asarray(begin.probs if kind == "bernoulli" else begin.probs[..., 1])
    for _ in range(10):
        joint = weights * np.prod(np.where(data[:, None], on, 1.0 - on), axis=2)
        share = joint / joint.sum(axis=1, keepdims=True)
        weights, on = share.mean(axis=0), share.T @ data / share.sum(axis=0)[:, None]
    result = fit(begin, data, max_steps=10, tol=0.0)
    found = result.model.probs if kind == "bernoulli" else result.model.probs[..., 1]
    np.testing.assert_allclose(result.model.weights, weights, rtol=1e-9)
    np.testing.assert_allclose(found, on, rtol=1e-9)
    joint = weights * np.prod(np.where(data[:, None], on, 1.0 - on), axis=2)
    assert result.log_likelihood == pytest.approx(np.log(joint.sum(axis=1)).sum(), rel=1e-10)


@pytest.mark.parametrize("x64", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("kind", ALL)
def test_likelihood_never_falls(kind, x64):
    with jax.enable_x64(x64):
        data = rows_of(kind)
        result = fit(start(kind, data, 3, seed=1), data, max_steps=60, tol=0.0)
        eps = jnp.finfo(jnp.result_type(float)).eps
        log_probs = np.asarray(pgm.log_likelihood(result.model, data))
    assert len(result.history) == 61  # tol=0. runs all steps
    assert not result.converged
    assert "max_steps=60" in result.message
    # the sum of |log p_i| varies a little along the way
    assert np.diff(result.history).min() >= -2.0 * 4.0 * eps * np.abs(log_probs).sum()
    assert result.history[-1] > result.history[0]


@pytest.mark.x64
@pytest.mark.parametrize("kind", ALL)
def test_integer_weights_are_repeated_rows(kind):
    data = rows_of(kind, 40)
    drawn = np.random.default_rng(0).integers(len(data), size=len(data))  # as many: one program
    counts = np.bincount(drawn, minlength=len(data))
    begin = start(kind, data)
    weighted = fit(begin, data, row_weights=counts, max_steps=15, tol=0.0)
    repeated = fit(begin, np.repeat(data, counts, axis=0), max_steps=15, tol=0.0)
    for ours, theirs in zip(
        jax.tree.leaves(weighted.model), jax.tree.leaves(repeated.model), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(weighted.history, repeated.history, rtol=1e-10)


def test_the_mixture_of_the_example_is_recovered():
    """Means -1 and 1, deviations 0.5 and 0.8, weights 0.4 and 0.6, from 1,000 draws."""
    rng = np.random.default_rng(1)
    label = rng.random(1000) < 0.6
    data = np.where(label, rng.normal(1.0, 0.8, 1000), rng.normal(-1.0, 0.5, 1000))[:, None]
    result = fit(start("full", data), data, max_steps=2000, tol=1e-8, num_restarts=3)
    order = np.argsort(np.asarray(result.model.means)[:, 0])
    # within five standard errors, from the observed information at the truth
    errors = 5 * np.asarray(standard_errors(data))
    found = np.concatenate(
        [
            np.asarray(result.model.weights)[order][:1],
            np.asarray(result.model.means)[order, 0],
            np.sqrt(np.asarray(result.model.covariances)[order, 0, 0]),
        ]
    )
    assert (np.abs(found - [0.4, -1.0, 1.0, 0.5, 0.8]) < errors).all(), (found, errors)
    assert errors.max() < 0.6  # the bound says something
    truth = pgm.GaussianMixture(
        weights=jnp.array([0.4, 0.6]),
        means=jnp.array([[-1.0], [1.0]]),
        covariances=jnp.array([[[0.25]], [[0.64]]]),
    )
    assert result.log_likelihood > float(pgm.log_likelihood(truth, data).sum())


def standard_errors(data):
    """Standard errors of weight, means and deviations at the truth."""

    def loss(theta):
        weight, means, sds = theta[0], theta[1:3], theta[3:]
        logs = -0.5 * ((data - means) / sds) ** 2 - jnp.log(sds) - 0.5 * jnp.log(2 * jnp.pi)
        return -jax.nn.logsumexp(logs + jnp.log(jnp.stack([weight, 1 - weight])), axis=1).sum()

    with jax.enable_x64(True):
        information = jax.hessian(loss)(jnp.array([0.4, -1.0, 1.0, 0.5, 0.8]))
        return jnp.sqrt(jnp.diagonal(jnp.linalg.inv(information)))


@pytest.mark.parametrize("x64", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_constant_columns_survive(kind, x64):
    rng = np.random.default_rng(0)
    data = np.column_stack([rng.normal(size=60), np.full(60, 1e4 + 0.1), rng.normal(size=60)])
    with jax.enable_x64(x64):
        result = fit(start(kind, data), data, max_steps=50)
    assert np.isfinite(result.log_likelihood)
    np.testing.assert_allclose(result.model.means[:, 1], 1e4 + 0.1, rtol=1e-6)
    if kind != "spherical":
        assert "variance floor" in result.message


@pytest.mark.parametrize("kind", ALL)
def test_all_rows_alike_survive(kind):
    data = np.ones((8, 3))
    result = fit(start(kind, data), data, max_steps=20)
    assert np.isfinite(result.log_likelihood)


@pytest.mark.parametrize("kind", KINDS)
def test_collapsing_components_survive(kind):
    """Two points far from a cloud, and a component that starts on each: variances shrink to 0."""
    rng = np.random.default_rng(0)
    data = np.concatenate([rng.normal(size=(50, 2)), [[8.0, 8.0], [-8.0, 8.0]]])
    begin = start(kind, data, 3)
    means = jnp.array([[0.0, 0.0], [8.0, 8.0], [-8.0, 8.0]])
    result = fit(pgm.replace(begin, means=means), data, max_steps=100)
    assert np.isfinite(result.log_likelihood)
    variances = np.asarray(result.model.covariances)
    if kind in ("full", "tied"):
        variances = np.linalg.eigvalsh(variances)
    assert variances.min() > 0
    if kind != "tied":
        assert "component(s) 1, 2" in result.message


@pytest.mark.x64
def test_a_start_that_collapsed_comes_after_the_others():
    rng = np.random.default_rng(0)
    data = np.concatenate([rng.normal(size=(60, 1)), [[3.0], [3.0]]])
    spike = pgm.GaussianMixture(
        weights=jnp.array([0.97, 0.03]),
        means=jnp.array([[0.0], [3.0]]),
        covariances=jnp.array([[[1.0]], [[1e-4]]]),
    )
    alone = fit(spike, data, max_steps=500)
    assert "variance floor holds up component(s) 1" in alone.message
    both = fit(spike, data, max_steps=500, num_restarts=4)
    assert both.log_likelihoods[0] == pytest.approx(alone.log_likelihood)
    assert both.log_likelihood < alone.log_likelihood
    assert "floor" not in both.message


def test_first_start_is_the_given_model_and_tol_is_per_row():
    data = rows_of("full")
    begin = start("full", data, 3)
    result = fit(begin, data, max_steps=100, tol=1e-3)
    total = float(pgm.log_likelihood(begin, data).sum())
    assert result.history[0] == pytest.approx(total, abs=1e-2)
    steps = np.abs(np.diff(result.history))
    assert result.converged
    assert steps[-1] < 1e-3 * len(data)
    assert (steps[:-1] >= 1e-3 * len(data)).all()
    # the same start, the same result, whatever the key
    again = fit(begin, data, key=5, max_steps=100, tol=1e-3)
    assert again.log_likelihood == result.log_likelihood


def test_units_of_the_data_do_not_matter():
    data = load_iris().data
    plain = fit(start("full", data, 2), data)
    scaled = data * [1e-4, 1.0, 1e3, 1e6] + [5.0, -3.0, 0.0, 1e5]
    other = fit(start("full", scaled, 2), scaled)
    shift = np.log([1e-4, 1.0, 1e3, 1e6]).sum() * len(data)
    assert other.log_likelihood + shift == pytest.approx(plain.log_likelihood, abs=1e-2)


def test_progress_bar_shows_steps(capsys):
    data = bernoulli_rows(50)
    pgm.EM(max_steps=5).run(jax.random.key(0), start("bernoulli", data), data)
    assert "steps" in capsys.readouterr().out


def test_a_model_that_is_no_mixture_is_refused():
    with pytest.raises(TypeError, match="EM fits mixtures, got RBM; learn other models with PCD"):
        fit(pgm.RBM(weights=jnp.ones((2, 2))), np.zeros((3, 2)))


@pytest.mark.parametrize(
    "data, message",
    [
        (np.zeros((0, 4)), "empty"),
        (np.zeros((9, 3)), r"shape \(rows, 4\), got \(9, 3\)"),
        (np.where(np.arange(36).reshape(9, 4) == 22, np.nan, 1.0), "NaN at row 5, column 2"),
        (np.where(np.arange(36).reshape(9, 4) == 22, np.inf, 1.0), "inf at row 5, column 2"),
        (np.zeros((1, 4)), "2 components need at least as many rows of positive weight, got 1"),
    ],
)
def test_bad_data_are_refused(data, message):
    model = start("full", load_iris().data)
    with pytest.raises(ValueError, match=message):
        fit(model, data)


def test_values_outside_the_support_are_refused():
    data = bernoulli_rows(20)
    model = start("bernoulli", data)
    with pytest.raises(ValueError, match="0 and 1, got 2 at row 3, column 1"):
        fit(model, np.where(np.arange(100).reshape(20, 5) == 16, 2, data))
    with pytest.raises(ValueError, match=r"must be 0 or 1, got 0.5 at row 0, column 0"):
        fit(model, data * 0.5 + 0.5 * (1 - data))


@pytest.mark.parametrize(
    "weights, message",
    [
        (np.zeros(20), "all zero"),
        (np.where(np.arange(20) == 4, -1.0, 1.0), "got -1.0 at row 4"),
        (np.where(np.arange(20) == 4, np.nan, 1.0), "got nan at row 4"),
        (np.ones(19), r"shape \(20,\), got \(19,\)"),
        (np.arange(20) == 4, "at least as many rows of positive weight, got 1"),
    ],
)
def test_bad_row_weights_are_refused(weights, message):
    data = bernoulli_rows(20)
    with pytest.raises(ValueError, match=message):
        fit(start("bernoulli", data), data, row_weights=weights)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"max_steps": 0}, "max_steps must be an integer of at least 1, got 0"),
        ({"num_restarts": 0}, "num_restarts must be an integer of at least 1, got 0"),
        ({"tol": -1.0}, "tol must be a number"),
        ({"tol": float("nan")}, "tol must be a number"),
        ({"floor": 0.0}, "floor must be a number"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        pgm.EM(**settings)
