"""On-line EM, information criteria, and scans over the number of components."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_iris, load_wine
from sklearn.mixture import GaussianMixture as Peer

import pgm_energy as pgm
from pgm_energy.learning.em.online import OnlineEM

KINDS = ("full", "tied", "diag", "spherical")


def groups(num=400, seed=0, holes=0.0):
    """Two groups in two dimensions that overlap a little."""
    rng = np.random.default_rng(seed)
    label = rng.integers(2, size=num)
    rows = rng.normal(size=(num, 2)) @ np.array([[1.0, 0.7], [0.0, 0.6]])
    rows = 1e3 + rows + label[:, None] * [3.2, 0.0]
    rows[rng.random(rows.shape) < holes] = np.nan
    return rows


def bits(num=400, seed=0):
    rng = np.random.default_rng(seed)
    truth = np.array([[0.9, 0.8, 0.1, 0.2, 0.5], [0.2, 0.3, 0.7, 0.9, 0.5]])
    return (rng.random((num, 5)) < truth[rng.integers(2, size=num)]).astype(np.int8)


def start(kind, rows, num_components=2):
    if kind == "bernoulli":
        return pgm.BernoulliMixture.init(jax.random.key(0), num_components=2, data=rows)
    return pgm.GaussianMixture.init(
        jax.random.key(0),
        num_components=num_components,
        data=rows,
        covariance_type=kind,
        missing=True,
    )


def learn(model, batches, *, missing=False, **settings):
    learner = OnlineEM(**settings)
    key = jax.random.key(0)
    return learner.run(key, model, batches, missing=missing, progress_bar=False)


def fit(model, rows, *, missing=False, **settings):
    em = pgm.EM(**settings)
    return em.run(jax.random.key(0), model, rows, missing=missing, progress_bar=False)


# ---- on line ------------------------------------------------------------------------------------


@pytest.mark.x64
@pytest.mark.parametrize("holes", [0.0, 0.2], ids=["whole", "missing"])
@pytest.mark.parametrize("kind", ("full", "bernoulli"))
def test_one_batch_repeated_ends_where_em_does(kind, holes):
    if kind == "bernoulli":
        rows = bits().astype(float)
        rows[:: int(1 / holes) if holes else 1000, 0] = np.nan if holes else rows[0, 0]
    else:
        rows = groups(holes=holes)
    rows, missing = (rows, bool(holes)) if holes or kind != "bernoulli" else (bits(), False)
    whole = bits() if kind == "bernoulli" else groups()
    begin = start(kind, whole)
    result = fit(begin, rows, missing=missing, max_steps=2000, tol=1e-14)
    found = learn(begin, (rows for _ in range(600)), missing=missing)
    # with falling steps the way there is slow, the slower the more is missing
    for ours, theirs in zip(
        jax.tree.leaves(found.model), jax.tree.leaves(result.model), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=5e-3, atol=5e-3)
    mean = result.log_likelihood / len(rows)
    assert found.log_likelihoods[-1] == pytest.approx(mean, abs=1e-5)
    assert found.log_likelihoods[0] < mean - 1e-4
    # the point is stationary: from there, batches move nothing
    again = learn(result.model, [rows] * 3, missing=missing)
    for ours, theirs in zip(
        jax.tree.leaves(again.model), jax.tree.leaves(result.model), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_batches_that_never_come_again_are_enough():
    """One pass over 60,000 rows, 300 at a time, ends near what EM finds with all of them."""
    rows = groups(60_000)
    begin = start("full", rows[:300])
    found = learn(begin, (rows[i : i + 300] for i in range(0, len(rows), 300)))
    best = fit(begin, rows).log_likelihood / len(rows)
    reached = float(pgm.log_likelihood(found.model, rows).mean())
    assert best - 2e-3 < reached <= best + 1e-5
    assert found.num_rows == 60_000
    assert len(found.log_likelihoods) == 200
    assert "200 batches, 60000 rows" in found.message
    # each batch was scored before it was learned from: no better than the truth allows
    assert found.log_likelihoods[100:].mean() == pytest.approx(best, abs=0.02)


@pytest.mark.x64
def test_a_batch_counts_by_its_rows():
    """With ``decay=1`` nothing is forgotten: at fixed parameters all rows count alike."""
    rows = groups(350)
    begin = start("full", rows)
    whole = learn(begin, [rows[:100], rows[100:200], rows[200:250]], decay=1.0)
    # a single component has no E-step: its mean is that of what was seen
    alone = start("full", rows, 1)
    found = learn(alone, [rows[:100], rows[100:200], rows[200:250]], decay=1.0)
    shares = np.repeat([5 / 12, 5 / 12, 1 / 6], [100, 100, 50])  # 1, 1/2, then 1/3 of a half
    shares = shares / np.array([100] * 200 + [50] * 50)
    np.testing.assert_allclose(found.model.means[0], shares @ rows[:250], rtol=1e-12)
    assert np.isfinite(whole.log_likelihoods).all()


@pytest.mark.parametrize(
    "batches, message",
    [
        ([], "batches gave no table at all"),
        ([np.zeros((1, 2))], "2 components need at least as many rows in the first batch, got 1"),
        ([np.zeros((5, 3))], r"batch 1 for site 'x' must have shape \(rows, 2\)"),
        ([groups(9), np.full((3, 2), np.nan)], "NaN at row 0, column 0"),
    ],
)
def test_bad_batches_are_refused(batches, message):
    with pytest.raises(ValueError, match=message):
        learn(start("full", groups()), batches)


@pytest.mark.usefixtures("annotations_unchecked")
def test_misunderstandings_are_refused():
    rows = groups(20)
    model = start("full", rows)
    with pytest.raises(TypeError, match=r"batches must be an iterable of tables.*use EM"):
        learn(model, rows)
    with pytest.raises(TypeError, match="EM fits mixtures, got RBM"):
        learn(pgm.RBM(weights=jnp.ones((2, 2))), [rows])
    with pytest.raises(ValueError, match=r"decay must be a number in \(0.5, 1\], got 0.5"):
        OnlineEM(decay=0.5)


# ---- criteria -----------------------------------------------------------------------------------


def peer_from(begin, data):
    """What scikit-learn finds from the same start."""
    kind, covariances = begin.covariance_type, np.asarray(begin.covariances)
    return Peer(
        begin.num_components,
        covariance_type=kind,
        tol=1e-13,
        reg_covar=0.0,
        max_iter=1000,
        weights_init=np.asarray(begin.weights) / np.asarray(begin.weights).sum(),
        means_init=np.asarray(begin.means),
        precisions_init=np.linalg.inv(covariances) if kind in ("full", "tied") else 1 / covariances,
    ).fit(data)


@pytest.mark.x64
@pytest.mark.parametrize("kind", KINDS)
def test_criteria_are_those_of_scikit_learn(kind):
    data = load_iris().data
    begin = start(kind, data, 3)
    result = fit(begin, data, max_steps=500, tol=1e-12)
    peer = peer_from(begin, data)
    assert result.aic == pytest.approx(peer.aic(data), abs=1e-3)
    assert result.bic == pytest.approx(peer.bic(data), abs=1e-3)
    share = peer.predict_proba(data)
    entropy = -np.sum(share * np.log(np.where(share > 0, share, 1.0)))
    assert result.icl == pytest.approx(peer.bic(data) + 2 * entropy, abs=1e-2)
    assert result.entropy > 0


@pytest.mark.parametrize("make, expected", [("bernoulli", 11), ("categorical", 31)])
def test_parameters_of_discrete_mixtures_are_counted(make, expected):
    """K - 1 weights; K D probabilities, or K D (S - 1) of S = 4 states."""
    if make == "bernoulli":
        model = pgm.BernoulliMixture(weights=[0.5, 0.5], probs=np.full((2, 5), 0.5))
    else:
        model = pgm.CategoricalMixture(weights=[0.5, 0.5], probs=np.full((2, 5, 4), 0.25))
    assert model.num_parameters == expected


@pytest.mark.x64
@pytest.mark.parametrize("kind", KINDS)
def test_wine_reaches_what_scikit_learn_finds(kind):
    """Thirteen columns of very different units, from the same start."""
    data = load_wine().data
    begin = start(kind, data, 3)
    result = fit(begin, data, max_steps=1000, tol=1e-12)
    peer = peer_from(begin, data)
    assert result.log_likelihood == pytest.approx(peer.score(data) * len(data), abs=1e-3)


# ---- scans --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scan():
    rng = np.random.default_rng(3)
    rows = rng.normal(rng.choice([-5.0, 0.0, 5.0], (450, 1)))
    return pgm.scan_components(
        jax.random.key(0),
        pgm.GaussianMixture,
        rows,
        range(1, 5),
        em=pgm.EM(num_restarts=3, max_steps=400),
        progress_bar=False,
    )


def test_a_scan_finds_the_number_of_components(scan):
    assert scan.best().model.num_components == 3
    assert scan.best("icl").model.num_components == 3
    assert scan.num_components == (1, 2, 3, 4)
    table = scan.table
    assert table.index.name == "num_components"
    assert table.num_parameters.tolist() == [2, 5, 8, 11]
    np.testing.assert_allclose(table.aic, 2 * table.num_parameters - 2 * table.log_likelihood)
    np.testing.assert_allclose(table.bic - table.aic, table.num_parameters * (np.log(450) - 2))
    assert (table.icl >= table.bic - 1e-6).all()
    assert (np.diff(table.log_likelihood) > -0.5).all()  # more components fit better


@pytest.mark.usefixtures("annotations_unchecked")
def test_misuse_of_a_scan_is_refused(scan):
    key, rows = jax.random.key(0), groups(20)
    with pytest.raises(ValueError, match="criterion must be one of 'aic', 'bic', 'icl', got 'x'"):
        scan.best("x")
    with pytest.raises(ValueError, match="num_components is empty"):
        pgm.scan_components(key, pgm.GaussianMixture, rows, [])
    with pytest.raises(ValueError, match="num_components must be an integer of at least 1, got 0"):
        pgm.scan_components(key, pgm.GaussianMixture, rows, [0])
    with pytest.raises(TypeError, match="mixture must be a class"):
        pgm.scan_components(key, start("full", rows), rows, [1])  # type: ignore[arg-type]
