"""EM with missing values, priors, chunks and products, against brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

import pgm_energy as pgm
from pgm_energy.learning.em import batch
from pgm_energy.learning.em.steps import expect
from pgm_energy.models.chunks import arrange

KINDS = ("full", "tied", "diag", "spherical")
DISCRETE = ("bernoulli", "categorical")
WIDTH = 3


def matrices(model):
    """Covariance matrices of a Gaussian mixture, written out."""
    values, (count, width) = np.asarray(model.covariances, float), model.means.shape
    if model.covariance_type == "spherical":
        values = np.broadcast_to(values[:, None], (count, width))
    if values.ndim == 2 and model.covariance_type != "tied":
        return np.stack([np.diag(row) for row in values])
    return np.broadcast_to(values, (count, width, width))


def row_log_likelihood(model, row):
    """log p of what was seen in a row, from the marginals of SciPy's laws."""
    seen = ~np.isnan(row)
    parts = np.log(np.asarray(model.weights, float))
    for k in range(len(parts)):
        if isinstance(model, pgm.GaussianMixture):
            if seen.any():
                mean, cov = np.asarray(model.means, float)[k], matrices(model)[k]
                law = stats.multivariate_normal(mean[seen], cov[np.ix_(seen, seen)])
                parts[k] += law.logpdf(row[seen])
        else:
            probs = np.asarray(model.probs, float)[k]
            if probs.ndim == 1:
                probs = np.stack([1.0 - probs, probs], axis=1)
            states = row[seen].astype(int)
            parts[k] += np.log(probs[seen, states]).sum()
    return logsumexp(parts)


def table(kind, num=60, holes=0.3, seed=0):
    """Rows of two overlapping groups, some values missing; also a row of which nothing is known."""
    rng = np.random.default_rng(seed)
    label = rng.integers(2, size=num)
    if kind in KINDS:
        rows = rng.normal(size=(num, WIDTH)) @ np.array([[1, 0.8, 0], [0, 0.6, 0.3], [0, 0, 1]])
        rows = rows + label[:, None] * [2.0, -1.0, 3.0]
    else:
        states = 2 if kind == "bernoulli" else 3
        rows = (rng.random((num, WIDTH)) < 0.15 + 0.6 * label[:, None]).astype(float)
        rows = rows * (1 if states == 2 else rng.integers(1, 3, size=rows.shape))
    rows[rng.random(rows.shape) < holes] = np.nan
    if holes:
        rows[0] = np.nan
    return rows


def start(kind, rows, num_components=2, **options):
    key = jax.random.key(0)
    if kind in KINDS:
        options["covariance_type"] = kind
        cls = pgm.GaussianMixture
    else:
        cls = pgm.BernoulliMixture if kind == "bernoulli" else pgm.CategoricalMixture
    return cls.init(key, num_components=num_components, data=rows, missing=True, **options)


def fit(model, rows, *, missing=True, key=0, row_weights=None, **settings):
    return pgm.EM(**settings).run(
        jax.random.key(key),
        model,
        rows,
        missing=missing,
        row_weights=row_weights,
        progress_bar=False,
    )


# ---- missing values -----------------------------------------------------------------------------


@pytest.mark.x64
@pytest.mark.parametrize("kind", (*KINDS, *DISCRETE))
def test_missing_values_are_summed_out(kind):
    """The likelihood is SciPy's marginal one, it never falls, and EM ends where it is flat."""
    rows = table(kind)
    result = fit(start(kind, rows), rows, max_steps=3000, tol=1e-13, num_restarts=2)
    exact = sum(row_log_likelihood(result.model, row) for row in rows)
    assert result.log_likelihood == pytest.approx(exact, rel=1e-10)
    size = 4.0 * np.finfo(float).eps * abs(exact) * 2.0
    assert np.diff(result.history).min() >= -size
    assert result.history[-1] > result.history[0] + 0.1
    stuck(result.model, rows)


def stuck(model, rows):
    """No small change of a parameter raises SciPy's marginal likelihood."""
    best = sum(row_log_likelihood(model, row) for row in rows)
    rng = np.random.default_rng(1)
    for size in (1e-2, 1e-3):
        for _ in range(4):
            moved = nearby(model, rng, size)
            assert sum(row_log_likelihood(moved, row) for row in rows) < best + 1e-7


def nearby(model, rng, size):
    """A mixture a little way off in all parameters."""
    weights = np.asarray(model.weights) * np.exp(size * rng.normal(size=model.num_components))
    changes = {"weights": jnp.asarray(weights / weights.sum())}
    if not isinstance(model, pgm.GaussianMixture):
        probs = np.asarray(model.probs)
        if probs.ndim == 2:
            odds = np.log(probs / (1 - probs)) + size * rng.normal(size=probs.shape)
            changes["probs"] = jnp.asarray(1.0 / (1.0 + np.exp(-odds)))
        else:
            probs = probs * np.exp(size * rng.normal(size=probs.shape))
            changes["probs"] = jnp.asarray(probs / probs.sum(axis=-1, keepdims=True))
        return pgm.replace(model, **changes)
    covariances = np.asarray(model.covariances)
    changes["means"] = model.means + size * rng.normal(size=model.means.shape)
    if model.covariance_type in ("full", "tied"):
        twist = np.eye(WIDTH) + size * rng.normal(size=(WIDTH, WIDTH))
        changes["covariances"] = jnp.asarray(twist @ covariances @ twist.T)
    else:
        spread = np.exp(size * rng.normal(size=covariances.shape))
        changes["covariances"] = jnp.asarray(covariances * spread)
    return pgm.replace(model, **changes)


@pytest.mark.parametrize("kind", (*KINDS, *DISCRETE))
def test_nothing_missing_is_the_ordinary_fit(kind):
    """Rows that happen to be whole give the same result with ``missing=True``."""
    rows = table(kind, holes=0.0)
    begin = start(kind, rows)
    plain = fit(begin, rows, missing=False, max_steps=5, tol=0.0)
    whole = fit(begin, rows, max_steps=5, tol=0.0)
    assert plain.history.tolist() == whole.history.tolist()
    # one value gone from a row that does not count: the way through patterns
    spare = np.concatenate([rows, rows[:1]])
    spare[-1, 1] = np.nan
    weights = np.append(np.ones(len(rows)), 0.0)
    partial = fit(begin, spare, row_weights=weights, max_steps=5, tol=0.0)
    np.testing.assert_allclose(partial.history, plain.history, rtol=2e-5)


def test_missing_values_must_be_asked_for():
    rows = table("full")
    rows[0] = 0.0
    row, column = (int(i) for i in np.argwhere(np.isnan(rows))[0])
    place = f"NaN at row {row}, column {column}"
    begin = start("full", rows)
    with pytest.raises(ValueError, match=place):
        fit(begin, rows, missing=False)
    with pytest.raises(ValueError, match=place):
        pgm.GaussianMixture.init(jax.random.key(0), num_components=2, data=rows)
    rows[:, 2] = np.nan
    with pytest.raises(ValueError, match="column 2 is missing in every row: leave that column out"):
        fit(begin, rows)


@pytest.mark.x64
def test_imputed_means_follow_the_correlation():
    """A missing column is filled in by regression, so its mean is not that of the seen rows."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4000, 1)) @ np.ones((1, 2)) + 0.1 * rng.normal(size=(4000, 2))
    rows[rows[:, 0] > 0, 1] = np.nan  # missing at random: it depends on what is seen
    result = fit(start("full", rows, 1), rows)
    assert np.nanmean(rows[:, 1]) < -0.7
    np.testing.assert_allclose(result.model.means[0], [0.0, 0.0], atol=0.06)
    np.testing.assert_allclose(result.model.covariances[0, 0, 1], 1.0, atol=0.08)


# ---- chunks and products ------------------------------------------------------------------------


@pytest.mark.parametrize("holes", [0.0, 0.3], ids=["whole", "missing"])
@pytest.mark.parametrize("kind", ("full", "diag", "categorical"))
def test_chunks_change_nothing_but_rounding(kind, holes):
    rows = table(kind, holes=holes)
    begin = start(kind, rows)
    settings = {"max_steps": 8, "tol": 0.0}
    one = fit(begin, rows, chunk_size=1000, **settings)
    many = fit(begin, rows, chunk_size=7, **settings)
    np.testing.assert_allclose(many.history, one.history, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(many.model), jax.tree.leaves(one.model), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


def test_memory_does_not_grow_with_rows():
    """What an E-step needs besides the rows is the same for ten times as many."""
    rng = np.random.default_rng(0)
    sizes = []
    for num in (2_000, 20_000):
        rows = rng.normal(size=(num, 4)).astype(np.float32)
        model = pgm.GaussianMixture.init(jax.random.key(0), num_components=8, data=rows)
        chunks = arrange(rows, np.ones(num, np.float32), 500)
        compiled = jax.jit(lambda m, c: expect(m, c)).lower(model, chunks).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    assert sizes[1] < 1.2 * sizes[0]
    assert sizes[1] < 20_000 * 8 * 4  # a table of responsibilities would be this large


@pytest.mark.parametrize("kind", KINDS)
def test_products_with_features_give_the_same_steps(kind, monkeypatch):
    rng = np.random.default_rng(0)
    rows = table(kind, num=400, holes=0.0) + rng.normal(size=(400, WIDTH))
    begin = start(kind, rows)
    careful = fit(begin, rows, max_steps=10, tol=0.0, num_restarts=2)
    monkeypatch.setattr(batch, "_FAST_WORK", 0)
    used = []
    monkeypatch.setattr(batch, "advance", spy(batch.advance, used))
    fast = fit(begin, rows, max_steps=10, tol=0.0, num_restarts=2)
    assert used == [True, True]  # and it did not lose digits
    np.testing.assert_allclose(fast.history, careful.history, rtol=1e-6)
    assert fast.history[0] != careful.history[0]  # it did go another way
    for a, b in zip(jax.tree.leaves(fast.model), jax.tree.leaves(careful.model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def spy(function, used):
    def called(*args, fast):
        used.append(fast)
        return function(*args, fast=fast)

    return called


def test_products_that_lose_digits_are_redone_with_care(monkeypatch):
    """Two narrow groups far from the mean of the data: their squares cancel in float32."""
    rng = np.random.default_rng(0)
    label = rng.integers(2, size=(300, 1))
    rows = np.where(label, 1e5, -1e5) + rng.normal(size=(300, 2))
    begin = start("full", rows)
    careful = fit(begin, rows, max_steps=10, tol=0.0)
    monkeypatch.setattr(batch, "_FAST_WORK", 0)
    used = []
    monkeypatch.setattr(batch, "advance", spy(batch.advance, used))
    redone = fit(begin, rows, max_steps=10, tol=0.0)
    assert used[0]
    assert not used[-1]
    assert redone.log_likelihood == pytest.approx(careful.log_likelihood, rel=1e-6)


# ---- priors -------------------------------------------------------------------------------------


def log_prior(model, prior, covariance, mean):
    """The log-density of a prior by SciPy, up to a constant."""
    found = prior.weight_rows * np.log(np.asarray(model.weights)).sum()
    width = WIDTH
    covs = matrices(model)
    for k, cov in enumerate(covs):
        if prior.mean_rows:
            law = stats.multivariate_normal(mean, cov / prior.mean_rows)
            found += law.logpdf(np.asarray(model.means)[k])
    if model.covariance_type == "tied":
        covs = covs[:1]
    n = prior.covariance_rows
    for cov in covs if n else ():
        if model.covariance_type in ("full", "tied"):
            found += stats.invwishart(n - width - 1, n * covariance).logpdf(cov)
        elif model.covariance_type == "diag":
            # mode b / (a + 1) with a = n / 2 - 1
            a, b = n / 2 - 1, n * np.diag(covariance) / 2
            found += stats.invgamma(a, scale=b).logpdf(np.diag(cov)).sum()
        else:
            a, b = n * width / 2 - 1, n * np.trace(covariance) / 2
            found += stats.invgamma(a, scale=b).logpdf(cov[0, 0])
    return found


@pytest.mark.x64
@pytest.mark.parametrize("holes", [0.0, 0.3], ids=["whole", "missing"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_posterior_of_a_gaussian_mixture_never_falls_and_ends_flat(kind, holes):
    rows = table(kind, holes=holes)
    covariance = np.diag([1.0, 0.5, 2.0])
    if kind in ("full", "tied"):
        covariance = covariance + 0.2
    given = covariance if kind in ("full", "tied") else np.diag(covariance)
    mean = np.array([0.5, 0.0, 1.0])
    prior = pgm.MixturePrior(
        weight_rows=3.0, mean_rows=4.0, mean=mean, covariance_rows=9.0, covariance=given
    )
    result = fit(start(kind, rows), rows, prior=prior, max_steps=3000, tol=1e-13)
    assert np.diff(result.history).min() >= -1e-11 * abs(result.history[-1])

    def posterior(model):
        exact = sum(row_log_likelihood(model, row) for row in rows)
        return exact + log_prior(model, prior, covariance, mean)

    best, rng = posterior(result.model), np.random.default_rng(2)
    for size in (1e-2, 1e-3):
        for _ in range(6):
            assert posterior(nearby(result.model, rng, size)) < best + 1e-7
    # differences of the history are those of the posterior
    short = fit(start(kind, rows), rows, prior=prior, max_steps=1, tol=0.0)
    rise = best - posterior(short.model)
    assert result.history[-1] - short.history[-1] == pytest.approx(rise, abs=1e-6)
    plain = fit(start(kind, rows), rows, max_steps=3000, tol=1e-13)
    assert plain.log_likelihood > result.log_likelihood


@pytest.mark.x64
@pytest.mark.parametrize("kind", DISCRETE)
def test_the_posterior_of_a_discrete_mixture_is_the_textbook_one(kind):
    """One M-step against counts written out, and a posterior that never falls."""
    rows = table(kind, holes=0.0)
    probs = 0.3 if kind == "bernoulli" else [0.5, 0.3, 0.2]
    prior = pgm.MixturePrior(weight_rows=2.0, prob_rows=5.0, probs=probs)
    begin = start(kind, rows)
    share = np.asarray(pgm.latent_mean(begin, rows))
    result = fit(begin, rows, prior=prior, max_steps=1, tol=0.0)
    mass = share.sum(axis=0)
    np.testing.assert_allclose(result.model.weights, (mass + 2) / (mass + 2).sum(), rtol=1e-10)
    states = np.arange(2 if kind == "bernoulli" else 3)
    counts = np.einsum("nk,nds->kds", share, rows[..., None] == states)
    pulls = np.array([0.7, 0.3] if kind == "bernoulli" else probs)
    expected = (counts + 5.0 * pulls) / (counts.sum(axis=-1, keepdims=True) + 5.0)
    found = result.model.probs
    expected = expected[..., 1] if kind == "bernoulli" else expected
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    long = fit(begin, rows, prior=prior, max_steps=200, tol=0.0)
    assert np.diff(long.history).min() >= -1e-12 * abs(long.history[-1])


def test_a_prior_keeps_components_from_collapsing():
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(size=(60, 2)), [[9.0, 9.0]]])
    begin = pgm.replace(start("full", rows), means=jnp.array([[0.0, 0.0], [9.0, 9.0]]))
    assert "variance floor holds up component(s) 1" in fit(begin, rows).message
    result = fit(begin, rows, prior=pgm.MixturePrior(covariance_rows=5.0))
    assert "floor" not in result.message
    assert np.linalg.eigvalsh(np.asarray(result.model.covariances)).min() > 0.05


def test_units_of_the_data_do_not_matter_to_a_prior():
    rows = table("full", holes=0.0)
    prior = pgm.MixturePrior(weight_rows=1.0, mean_rows=2.0, covariance_rows=6.0)
    one = fit(start("full", rows), rows, prior=prior, max_steps=20, tol=0.0)
    scaled = rows * [1e-3, 1.0, 1e4] + [5.0, 0.0, 1e5]
    other = fit(start("full", scaled), scaled, prior=prior, max_steps=20, tol=0.0)
    shift = len(rows) * np.log([1e-3, 1.0, 1e4]).sum()
    np.testing.assert_allclose(other.history + shift, one.history, atol=1e-2)


@pytest.mark.parametrize(
    "kind, prior, message",
    [
        ("full", {"prob_rows": 1.0}, "a GaussianMixture has no use for the prior's prob_rows"),
        ("bernoulli", {"mean_rows": 1.0}, "no use for the prior's mean_rows; leave it out"),
        ("full", {"mean": [1.0]}, r"the prior's mean must have shape \(3,\), got \(1,\)"),
        ("diag", {"covariance": np.eye(3)}, r"covariance must have shape \(3,\), got \(3, 3\)"),
        ("full", {"covariance": -np.eye(3)}, "symmetric and positive definite"),
        ("bernoulli", {"probs": 1.5}, "must be probabilities"),
        ("full", {"mean": [0.0, np.nan, 0.0]}, "the prior's mean must be finite"),
    ],
)
def test_priors_that_do_not_fit_are_refused(kind, prior, message):
    rows = table(kind, holes=0.0)
    with pytest.raises(ValueError, match=message):
        fit(start(kind, rows), rows, prior=pgm.MixturePrior(**prior))


@pytest.mark.usefixtures("annotations_unchecked")
def test_bad_settings_of_priors_are_refused():
    with pytest.raises(ValueError, match=r"covariance_rows counts rows .* got -1"):
        pgm.MixturePrior(covariance_rows=-1)
    with pytest.raises(TypeError, match="prior must be a MixturePrior, got float"):
        pgm.EM(prior=1.0)  # type: ignore[arg-type]
