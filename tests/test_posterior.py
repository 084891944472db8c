"""impute, denoise and sample_given against exact enumeration of the posterior of every row."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import ALPHA, encode, frequencies_p_value, law
from scipy import stats
from scipy.special import logsumexp
from test_conditional import HIDDEN, LEVELS, MACHINE, NUM, RBM, REALS, ROWS, normal

import pgm_energy as pgm

NAN = np.nan
#: Every row of four binary units, each 0, 1 or missing.
EVERY_ROW = np.array(list(itertools.product([0.0, 1.0, NAN], repeat=4)))
MODELS = {
    "binary": (RBM, [[1, NAN, NAN, 0], [NAN, 0, 0, NAN]]),
    "spin": (MACHINE, [[NAN, 1, NAN, -1, NAN], [-1, -1, 1, NAN, NAN]]),
    "categorical": (LEVELS, [[NAN, 2, 0], [1, NAN, NAN]]),
    "hidden-units": (HIDDEN, [[NAN, NAN, 1, 1], [0, 1, NAN, NAN]]),
}
FLIPS = np.array([0.1, 0.02, 0.3, 0.5])


def posterior_law(model, row, noise=None):
    """States of the data site and their probabilities given one row, by listing all states.

    Without noise what is seen is certain; with it a unit was replaced with that probability.
    """
    states, joint, _ = law(model)
    site = model.sites["v"]
    options, code = np.unique(states["v"], axis=0, return_inverse=True)
    prior = np.bincount(code.ravel(), joint)
    same = options == row
    if noise is None:
        likelihood = np.where(np.isnan(row), 1.0, same)
    else:
        num_states = len(site.states)
        seen = np.where(same, 1.0 - noise, noise / (num_states - 1))
        likelihood = np.where(np.isnan(row), 1.0, seen)
    weights = prior * likelihood.prod(axis=1)
    return options, weights / weights.sum()


def exact_means(model, rows, noise=None):
    """E[T(v)] of every row."""
    out = []
    for row in rows:
        options, probabilities = posterior_law(model, row, noise)
        out.append(np.tensordot(probabilities, encode(model.sites["v"], options), axes=1))
    return np.array(out)


def spread(site, means):
    """Standard deviation of T(x) of a discrete unit with these means."""
    variance = 1.0 - means**2 if isinstance(site, pgm.Spin) else means * (1.0 - means)
    return np.sqrt(np.maximum(variance, 0.0))


def chain_p_value(posterior, exact, num_chains):
    """That chains with independent means deviate so far somewhere (Bonferroni)."""
    error = np.maximum(posterior.std_error, 1e-6)  # single precision
    t = np.abs(np.asarray(posterior.mean, float) - exact) / error
    return t.size * 2.0 * stats.t(num_chains - 1).sf(t.max())


def every_state(site):
    return np.array(list(itertools.product(site.states, repeat=site.size)))


# ---- exact -----------------------------------------------------------------------------------


def test_impute_of_every_row_is_exact(rng_key):
    """All 81 patterns of a small RBM at once, the empty one and the full ones among them."""
    posterior = pgm.impute(rng_key, RBM, EVERY_ROW, 3)
    exact = exact_means(RBM, EVERY_ROW)
    assert posterior.method == "exact"
    np.testing.assert_allclose(posterior.mean, exact, atol=1e-6)
    np.testing.assert_allclose(posterior.std, spread(RBM.sites["v"], exact), atol=2e-4)
    np.testing.assert_array_equal(posterior.unknown, np.isnan(EVERY_ROW))
    assert (posterior.std_error == 0).all()
    known = ~np.isnan(EVERY_ROW)
    for rows in (posterior.estimate, *posterior.samples):
        assert rows.dtype == np.int8
        np.testing.assert_array_equal(rows[known], EVERY_ROW[known])
    np.testing.assert_array_equal(posterior.estimate, exact > 0.5)
    wrong = pgm.impute(rng_key, pgm.replace(RBM, weights=0.9 * RBM.weights), EVERY_ROW, 3)
    assert np.abs(wrong.mean - exact).max() > 0.01  # the tolerance sees a wrong model


def test_denoise_of_every_row_is_exact(rng_key):
    """Every noisy row, unseen units among them, with a noise of its own at every unit."""
    posterior = pgm.denoise(rng_key, RBM, EVERY_ROW, FLIPS, 3)
    exact = exact_means(RBM, EVERY_ROW, FLIPS)
    assert posterior.method == "exact"
    np.testing.assert_allclose(posterior.mean, exact, atol=1e-6)
    assert posterior.unknown.all()
    # at one half nothing was seen
    blank = EVERY_ROW.copy()
    blank[:, 3] = NAN
    again = pgm.denoise(rng_key, RBM, blank, FLIPS, 3)
    np.testing.assert_allclose(again.mean, posterior.mean, atol=1e-6)
    # the noise matters
    assert np.abs(exact_means(RBM, EVERY_ROW, FLIPS * 0.8) - exact).max() > 0.01


@pytest.mark.parametrize("name", ["spin", "categorical", "hidden-units"])
@pytest.mark.parametrize("task", ["impute", "denoise"])
def test_every_family_is_exact(name, task, rng_key):
    model, patterns = MODELS[name]
    rows = np.array(patterns)
    if task == "impute":
        posterior, noise = pgm.impute(rng_key, model, rows, 2, method="exact"), None
    else:
        rows = np.concatenate([rows, every_state(model.sites["v"])[::7].astype(float)])
        noise = np.linspace(0.05, 0.4, model.sites["v"].size)
        posterior = pgm.denoise(rng_key, model, rows, noise, 2, method="exact")
    exact = exact_means(model, rows, noise)
    np.testing.assert_allclose(posterior.mean, exact, atol=2e-6)
    np.testing.assert_allclose(posterior.std, spread(model.sites["v"], exact), atol=2e-3)


def test_the_estimate_has_the_fewest_wrong_units_in_expectation(rng_key):
    rows = every_state(RBM.sites["v"])
    estimate = pgm.denoise(rng_key, RBM, rows, 0.2, 1).estimate
    moved = 0
    for row, own in zip(rows, estimate, strict=True):
        options, probabilities = posterior_law(RBM, row, 0.2)
        wrong = [(options != other).sum(axis=1) @ probabilities for other in options]
        mine = (options != own).sum(axis=1) @ probabilities
        assert mine <= min(wrong) + 1e-6
        moved += (own != row).any()
    assert moved > 3  # it does not hand the rows back


@pytest.mark.parametrize("num_hidden", [2, 9], ids=["latents-listed", "missing-units-listed"])
def test_the_smaller_side_is_listed(num_hidden, rng_key):
    model = pgm.RBM(weights=normal(8, num_hidden), visible_bias=normal(8))
    rows = np.array([[0, 1, NAN, NAN, 1, NAN, 0, NAN], [0, 1, NAN, 0, 1, NAN, 0, 1]])
    posterior = pgm.impute(rng_key, model, rows, 4)
    size = {2: 4, 9: 16}[num_hidden]
    assert posterior.message == f"exact, {size} states of each row at most"
    np.testing.assert_allclose(posterior.mean, exact_means(model, rows), atol=1e-6)


@pytest.mark.parametrize("num_samples", [1, 300])
def test_auto_does_not_depend_on_the_number_of_samples(num_samples, rng_key):
    """Hidden units are listed here: 2^12 states are few, 2^15 are not."""
    short = {"num_warmup": 1, "num_sweeps": 1, "num_chains": 2}
    for count, method in ((12, "exact"), (15, "gibbs")):
        model = pgm.RBM(weights=normal(count + 1, count, scale=0.1))
        rows = np.full((1, count + 1), NAN)
        assert pgm.impute(rng_key, model, rows, num_samples, **short).method == method


HELD = {
    "data": ({"v": [1, NAN, NAN, NAN]}, [[NAN, NAN, 0, 1], [1, 0, NAN, NAN], [NAN] * 4]),
    "latent": ({"h": [1, NAN, 0]}, [[NAN, NAN, 0, 1], [1, 0, NAN, NAN]]),
    "both": ({"v": [NAN, 0, NAN, NAN], "h": [NAN, 1, NAN]}, [[1, NAN, NAN, NAN], [0, 0, 1, 1]]),
}


@pytest.mark.parametrize("task", ["impute", "denoise"])
@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("machine", ["rbm", "boltzmann", "spins"])
def test_a_model_that_holds_units_itself(machine, held, task, rng_key):
    """Against sums over all states; draws too keep to what is held."""
    if machine == "rbm":
        model = RBM
    else:
        weights = normal(7, 7, scale=0.7)
        unit = pgm.Spin if machine == "spins" else pgm.Binary
        weights = (weights + weights.T) * (1 - np.eye(7))
        model = pgm.BoltzmannMachine(weights=weights, bias=normal(7), num_hidden=3, unit=unit)
    low = -1 if machine == "spins" else 0
    known, rows = HELD[held]
    known = {k: np.where(np.equal(x, 0), low, x) for k, x in known.items()}
    rows = np.where(np.equal(rows, 0), low, np.array(rows, float))
    inner = pgm.condition(model, **known)
    states, joint, _ = law(model)
    fits = np.ones(len(joint), bool)
    for name, row in known.items():
        fits &= (states[name] == row)[:, ~np.isnan(row)].all(axis=1)
    expected = []
    for row in rows:
        seen = np.where(states["v"] == row, 0.8, 0.2 if task == "denoise" else 0.0)
        weights = joint * fits * np.where(np.isnan(row), 1.0, seen).prod(axis=1)
        expected.append(weights @ states["v"] / weights.sum())
    more = {"noise": 0.2} if task == "denoise" else {}
    found = getattr(pgm, task)(rng_key, inner, rows, num_samples=20, **more)
    assert found.method == "exact"
    np.testing.assert_allclose(found.mean, expected, atol=1e-6)
    fixed = ~np.isnan(known.get("v", np.full(4, NAN)))
    assert not found.unknown[:, fixed].any()
    for value in (found.estimate, *found.samples):
        assert (value[:, fixed] == known.get("v", np.zeros(4))[fixed]).all()


def test_rows_of_which_a_model_holds_different_parts(rng_key):
    """The row with most gaps is not the one with most free units."""
    inner = pgm.condition(RBM, v=np.array([1, 0, NAN, NAN]))
    rows = np.array([[NAN, NAN, NAN, 1], [1, NAN, NAN, NAN]])
    found = pgm.impute(rng_key, inner, rows)
    expected = exact_means(RBM, [[1, 0, NAN, 1], [1, 0, NAN, NAN]])
    np.testing.assert_allclose(found.mean, expected, atol=1e-6)
    np.testing.assert_array_equal(found.unknown, [[0, 0, 1, 0], [0, 0, 1, 1]])
    chains = pgm.impute(rng_key, inner, rows, 256, method="gibbs", num_chains=256)
    assert chain_p_value(chains, expected, 256) > ALPHA
    assert "nothing is missing" in pgm.impute(rng_key, inner, [[NAN, NAN, 1, 1]]).message


def test_a_row_that_contradicts_what_a_model_holds(rng_key):
    inner = pgm.condition(RBM, v=np.array([1, NAN, NAN, NAN]))
    rows = np.array([[1, NAN, 0, 1], [0, NAN, 0, 1]])
    for call in (pgm.impute, lambda *args: pgm.sample_given(*args, 4)):
        with pytest.raises(
            ValueError, match=r"holds unit \(0,\) of site 'v' at 1, but row 1 says 0"
        ):
            call(rng_key, inner, rows)


def test_more_free_units_than_listed_are_refused():
    from pgm_energy.conditional.enumeration import FreeStates
    from pgm_energy.conditional.evidence import Evidence

    states = FreeStates((), (("v", RBM.sites["v"], 1),))
    evidence = Evidence({"v": np.zeros((1, 4))}, {"v": np.array([[True, True, False, False]])})
    with pytest.raises(ValueError, match="a row has 2 free units of site 'v', but states of 1"):
        states.positions(RBM, evidence)


def test_auto_samples_where_listing_is_more_work(rng_key):
    model = pgm.RBM(weights=normal(24, 24, scale=0.1))
    short = {"num_warmup": 2, "num_sweeps": 1, "num_chains": 2}
    posterior = pgm.impute(rng_key, model, np.full((1, 24), NAN), 4, **short)
    assert posterior.method == "gibbs"
    with pytest.raises(ValueError, match=r"2\^24.0 states to list, more than the 2\^20 .*'gibbs'"):
        pgm.impute(rng_key, model, np.full((1, 24), NAN), 4, method="exact")


# ---- chains ----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["impute", "denoise"])
def test_means_of_chains_and_their_standard_errors(task, rng_key):
    """All rows at once; weights are mild, because means of few sweeps must be nearly normal."""
    model = pgm.replace(RBM, weights=0.5 * RBM.weights)
    chains = {"num_chains": 256, "num_warmup": 60, "num_sweeps": 8, "method": "gibbs"}
    if task == "impute":
        posterior, noise = pgm.impute(rng_key, model, EVERY_ROW, 256, **chains), None
        wrong = exact_means(pgm.replace(model, weights=0.9 * model.weights), EVERY_ROW)
    else:
        noise = FLIPS
        posterior = pgm.denoise(rng_key, model, EVERY_ROW, noise, 256, **chains)
        wrong = exact_means(model, EVERY_ROW, FLIPS * 0.8)
    exact = exact_means(model, EVERY_ROW, noise)
    assert posterior.method == "gibbs"
    assert chain_p_value(posterior, exact, 256) > ALPHA
    assert chain_p_value(posterior, wrong, 256) < ALPHA
    # averages of conditional means vary less than as many independent draws would
    free = posterior.unknown & (posterior.std > 0.1)
    ratio = posterior.std_error[free] * np.sqrt(256 * 8) / posterior.std[free]
    assert np.median(ratio) < 0.8
    assert (posterior.std_error[~posterior.unknown] == 0).all()


@pytest.mark.parametrize("name", ["spin", "categorical"])
def test_means_of_chains_of_other_families(name, rng_key):
    model, patterns = MODELS[name]
    rows = np.array(patterns)
    chains = {"num_chains": 64, "num_warmup": 60, "num_sweeps": 4, "method": "gibbs"}
    posterior = pgm.impute(rng_key, model, rows, 64, **chains)
    exact = exact_means(model, rows)
    assert chain_p_value(posterior, exact, 64) > ALPHA
    assert chain_p_value(posterior, np.roll(exact, 1, axis=1), 64) < ALPHA


@pgm.struct
class Compared(pgm.EnergyModel):
    """Spins compared with ``==``: sampled by energy differences, no closed conditional."""

    strength: jax.Array

    @property
    def sites(self):
        return {"v": pgm.Spin(4)}

    def energy(self, v):
        return -self.strength * jnp.sum(jnp.where(v[1:] == v[:-1], 1.0, 0.0)) - 0.3 * v[0]


@pytest.mark.filterwarnings("ignore:Compared.* is sampled at 'v' by energy differences:UserWarning")
def test_units_without_a_closed_conditional(rng_key):
    model, rows = Compared(strength=jnp.ones(())), np.array([[NAN, 1, NAN, NAN]])
    exact = exact_means(model, rows)
    np.testing.assert_allclose(pgm.impute(rng_key, model, rows).mean, exact, atol=1e-6)
    posterior = pgm.impute(
        rng_key, model, rows, 256, method="gibbs", num_chains=64, num_warmup=30, num_sweeps=4
    )
    assert chain_p_value(posterior, exact, 64) > ALPHA
    assert chain_p_value(posterior, -exact, 64) < ALPHA


@pytest.mark.parametrize(
    "name, method", [*((name, "gibbs") for name in MODELS), ("categorical", "exact")]
)
def test_samples_are_joint_draws(name, method, rng_key):
    """Two rows with patterns of their own, each repeated: one independent draw per row."""
    model, patterns = MODELS[name]
    patterns = np.array(patterns)
    rows = np.repeat(patterns, 2000, axis=0)
    posterior = pgm.impute(rng_key, model, rows, 1, method=method, num_chains=1, num_warmup=80)
    draws = posterior.samples
    assert draws.shape == (1, *rows.shape)
    assert draws.dtype == np.dtype(model.sites["v"].dtype)
    for row, own in zip(patterns, draws[0].reshape(2, 2000, -1), strict=True):
        free = np.isnan(row)
        assert (own[:, ~free] == row[~free]).all()
        options, probabilities = posterior_law(model, row)
        keep = probabilities > 0
        given, options = {"v": own[:, free]}, {"v": options[keep][:, free]}
        assert frequencies_p_value(given, options, probabilities[keep]) > ALPHA
        assert frequencies_p_value(given, options, np.roll(probabilities[keep], 1)) < ALPHA


@pytest.mark.parametrize("method", ["exact", "gibbs"])
def test_samples_of_denoise_are_joint_draws(method, rng_key):
    row = np.array([1, 0, 1, NAN])
    rows = np.tile(row, (3000, 1))
    posterior = pgm.denoise(rng_key, RBM, rows, 0.25, 1, method=method, num_chains=1, num_warmup=80)
    options, probabilities = posterior_law(RBM, row, 0.25)
    given = {"v": posterior.samples[0]}
    assert frequencies_p_value(given, {"v": options}, probabilities) > ALPHA
    assert frequencies_p_value(given, {"v": options}, posterior_law(RBM, row, 0.4)[1]) < ALPHA


# ---- real units ------------------------------------------------------------------------------


def real_posterior(row, noise=None):
    """Mean and standard deviation of each unit of REALS given one row: a mixture over h."""
    weights, bias = np.asarray(REALS.weights, float), np.asarray(REALS.visible_bias, float)
    precision = np.asarray(REALS.visible_precision, float)
    h = (np.arange(4)[:, None] >> np.arange(2)) & 1
    field = bias + h @ weights.T
    score = h @ np.asarray(REALS.hidden_bias, float)
    seen = ~np.isnan(row)
    if noise is None:
        score = score + field[:, seen] @ row[seen]
        score += 0.5 * (field[:, ~seen] ** 2 / precision[~seen]).sum(axis=1)
        means = np.where(seen, np.nan_to_num(row), field / precision)
        variances = np.where(seen, 0.0, 1.0 / precision)
    else:
        field = field + np.where(seen, np.nan_to_num(row) / noise**2, 0.0)
        precision = precision + seen / noise**2
        score = score + 0.5 * (field**2 / precision).sum(axis=1)
        means, variances = field / precision, 1.0 / precision
    p = np.exp(score - logsumexp(score))
    mean = p @ means
    return mean, np.where(seen & (noise is None), 0.0, np.sqrt(variances + p @ (means - mean) ** 2))


REAL_ROWS = np.array([[0.8, NAN, NAN], [NAN, -1.0, 2.0], [NAN, NAN, NAN], [0.1, 0.2, 0.3]])


@pytest.mark.parametrize("noise", [None, 0.7], ids=["impute", "denoise"])
@pytest.mark.parametrize("method", ["exact", "gibbs"])
def test_real_units(method, noise, rng_key):
    chains = {"method": method, "num_chains": 64, "num_warmup": 60, "num_sweeps": 4}
    if noise is None:
        posterior = pgm.impute(rng_key, REALS, REAL_ROWS, 256, **chains)
    else:
        posterior = pgm.denoise(rng_key, REALS, REAL_ROWS, noise, 256, **chains)
    exact = [real_posterior(np.float32(row).astype(float), noise) for row in REAL_ROWS]
    mean, std = np.array([pair[0] for pair in exact]), np.array([pair[1] for pair in exact])
    np.testing.assert_array_equal(posterior.estimate, posterior.mean.astype(np.float32))
    if method == "exact":
        np.testing.assert_allclose(posterior.mean, mean, atol=1e-6)
        np.testing.assert_allclose(posterior.std, std, atol=1e-5)
    else:
        assert chain_p_value(posterior, mean, 64) > ALPHA
        assert chain_p_value(posterior, mean + 0.05 * std, 64) < ALPHA
        np.testing.assert_allclose(posterior.std, std, rtol=0.05)
    standard = (posterior.samples - mean) / np.where(std > 0, std, 1.0)
    assert np.abs(standard[:, std == 0]).max(initial=0.0) < 1e-6
    if method == "exact":  # independent draws
        z = np.sqrt(256) * standard.mean(axis=0)[std > 0]
        assert np.abs(z).max() < stats.norm.isf(ALPHA / (2 * z.size))
        np.testing.assert_allclose(standard.std(axis=0)[std > 0], 1.0, atol=0.3)


@pytest.mark.parametrize("method", ["exact", "gibbs"])
def test_a_correlated_normal(method, rng_key):
    """A single full covariance: the missing coordinates have the textbook conditional law."""
    covariance = np.array([[1.0, 0.8, 0.0], [0.8, 1.0, 0.3], [0.0, 0.3, 2.0]])
    center = np.array([1.0, -1.0, 0.0])
    model = pgm.GaussianMixture(
        weights=jnp.ones(1), means=center[None], covariances=jnp.asarray(covariance[None])
    )
    row = np.array([2.0, NAN, 1.0])
    seen = [0, 2]
    gain = np.linalg.solve(covariance[np.ix_(seen, seen)], covariance[seen, 1])
    mean = center[1] + gain @ (row[seen] - center[seen])
    deviation = np.sqrt(covariance[1, 1] - gain @ covariance[seen, 1])
    posterior = pgm.impute(
        rng_key, model, np.tile(row, (NUM, 1)), 1, method=method, num_chains=1, num_warmup=30
    )
    np.testing.assert_allclose(posterior.mean[:, 1], mean, rtol=1e-4)
    np.testing.assert_allclose(posterior.std[:, 1], deviation, rtol=1e-3)
    standard = (posterior.samples[0][:, 1] - mean) / deviation
    assert stats.kstest(standard, "norm").pvalue > ALPHA
    assert stats.kstest(standard + 0.2, "norm").pvalue < ALPHA
    np.testing.assert_array_equal(posterior.samples[0][:, seen], np.tile(row[seen], (NUM, 1)))
    # seen through noise: prior precision plus that of the noise
    noisy = pgm.denoise(rng_key, model, row[None], 0.5, 8, method=method, num_warmup=30)
    likelihood = np.diag([4.0, 0.0, 4.0])
    precision = np.linalg.inv(covariance)
    exact = np.linalg.solve(
        precision + likelihood, precision @ center + likelihood @ np.nan_to_num(row)
    )
    np.testing.assert_allclose(noisy.mean[0], exact, rtol=1e-4)
    exact_std = np.sqrt(np.diag(np.linalg.inv(precision + likelihood)))
    np.testing.assert_allclose(noisy.std[0], exact_std, rtol=1e-3)


# ---- rows in and out -------------------------------------------------------------------------


def test_rows_without_gaps_come_back(rng_key):
    for rows in (ROWS, ROWS.astype(float), ROWS.astype(bool)):
        posterior = pgm.impute(rng_key, RBM, rows, 2)
        for value in (posterior.estimate, posterior.mean, *posterior.samples):
            np.testing.assert_array_equal(value, ROWS)
        assert not posterior.std.any()
        assert not posterior.unknown.any()
        assert "nothing is missing" in repr(posterior)
    posterior = pgm.impute(rng_key, RBM, {"v": ROWS}, 1)
    assert posterior.estimate.keys() == {"v"}


def test_only_rows_with_gaps_are_sampled(rng_key):
    """A complete row between others does not change what they get."""
    gappy = np.array([[1, NAN, NAN, 0], [NAN, 0, 0, NAN]])
    mixed = np.array([gappy[0], ROWS[0], gappy[1]])
    short = {"method": "gibbs", "num_warmup": 5, "num_chains": 3}
    alone = pgm.impute(rng_key, RBM, gappy, 7, **short)
    among = pgm.impute(rng_key, RBM, mixed, 7, **short)
    for name in ("estimate", "mean", "std", "std_error", "unknown"):
        np.testing.assert_array_equal(getattr(among, name)[[0, 2]], getattr(alone, name))
    np.testing.assert_array_equal(among.samples[:, [0, 2]], alone.samples)
    np.testing.assert_array_equal(among.samples[:, 1], np.tile(ROWS[0], (7, 1)))


def test_a_single_chain_has_no_standard_error(rng_key):
    posterior = pgm.impute(rng_key, RBM, EVERY_ROW[-3:], 4, method="gibbs", num_chains=1)
    assert np.isnan(posterior.std_error[posterior.unknown]).all()
    assert posterior.std_error.shape == posterior.mean.shape
    assert "standard error of a mean unknown" in repr(posterior)


@pgm.struct
class Pair(pgm.EnergyModel):
    """Two data sites of two families."""

    weights: jax.Array

    @property
    def sites(self):
        return {"a": pgm.Binary(self.weights.shape[0]), "b": pgm.Spin(self.weights.shape[1])}

    def energy(self, a, b):
        return -a @ self.weights @ b


def test_several_data_sites(rng_key):
    model = Pair(weights=normal(2, 2))
    rows = {"a": np.array([[0, NAN], [1, 1]]), "b": np.array([[1, -1], [1, -1]])}
    field = np.asarray(model.weights, float)[1] @ [1, -1]
    posterior = pgm.impute(rng_key, model, rows, 5)
    np.testing.assert_allclose(posterior.mean["a"], [[0, 1 / (1 + np.exp(-field))], [1, 1]])
    np.testing.assert_array_equal(posterior.estimate["b"], rows["b"])
    assert "1 of 4 units of 'a' and 0 of 4 units of 'b' in 2 rows" in repr(posterior)
    noisy = pgm.denoise(rng_key, model, rows, {"a": 0.1, "b": 0.2}, 5)
    again = pgm.denoise(
        rng_key,
        pgm.binarize(model),
        {"a": rows["a"], "b": (rows["b"] + 1) // 2},
        {"a": 0.1, "b": 0.2},
        5,
    )
    np.testing.assert_allclose(noisy.mean["b"], 2 * again.mean["b"] - 1, atol=1e-6)
    assert set(np.unique(again.samples["b"])) <= {0, 1}  # of this model, not of the one inside
    with pytest.raises(ValueError, match="data sites 'a', 'b': give noise as a dict by site"):
        pgm.denoise(rng_key, model, rows, 0.1)
    with pytest.raises(ValueError, match=r"noise is for the data sites \['a', 'b'\], got \['a'\]"):
        pgm.denoise(rng_key, model, rows, {"a": 0.1})


REFUSED = [
    ([[0, NAN, 2, 1]], {}, "takes 0 and 1, got 2.0 at row 0, column 2"),
    ([[0, NAN, np.inf, 1]], {}, "got inf at row 0, column 2"),
    ([[0, NAN, 0.5, 1]], {}, r"got 0\.5 at row 0, column 2"),
    ([[0, NAN, 1]], {}, r"must have shape \(rows, 4\), got \(1, 3\)"),
    (np.zeros((0, 4)), {}, "is empty"),
    ([[0, NAN, 1, 1]], {"num_samples": 0}, "num_samples must be an integer"),
    ([[0, NAN, 1, 1]], {"num_chains": 0}, "num_chains must be an integer"),
    ([[0, NAN, 1, 1]], {"num_sweeps": 0}, "num_sweeps must be an integer"),
    ([[0, NAN, 1, 1]], {"num_warmup": -1}, "num_warmup must be an integer"),
    ([[0, NAN, 1, 1]], {"method": "map"}, "method must be one of 'auto', 'exact', 'gibbs'"),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
@pytest.mark.parametrize("task", ["impute", "denoise"])
def test_bad_rows_and_counts(task, case, rng_key):
    rows, more, message = REFUSED[case]
    more = more if task == "impute" else {"noise": 0.1, **more}
    with pytest.raises(ValueError, match=message):
        getattr(pgm, task)(rng_key, RBM, np.asarray(rows), **more)


@pytest.mark.parametrize(
    "model, noise, message",
    [
        (RBM, 0.0, "at most 0.5; got 0: units that are known for certain are for condition"),
        (RBM, 0.6, "at most 0.5; got 0.6: noise that is wrong more often than chance"),
        (RBM, -0.1, "above 0 and at most 0.5; got -0.1"),
        (RBM, NAN, "got nan"),
        (RBM, [0.1, 0.1, 0.7, 0.1], r"got 0.7 at index \(2,\)"),
        (RBM, [0.1, 0.2], r"must be a number or have shape \(4,\), got \(2,\)"),
        (LEVELS, 0.7, "categorical site 'v' .* at most 0.666667; got 0.7"),
        (REALS, 0.0, "real site 'v' is the standard deviation .* positive and finite; got 0"),
        (REALS, np.inf, "positive and finite; got inf"),
    ],
)
def test_noise_out_of_range(model, noise, message, rng_key):
    site = model.sites["v"]
    with pytest.raises(ValueError, match=message):
        pgm.denoise(rng_key, model, np.zeros((1, site.size)), noise)


def test_noise_that_is_no_number(rng_key):
    with pytest.raises(TypeError, match="noise of site 'v' must be numbers"):
        pgm.denoise(rng_key, RBM, ROWS, "some")


def test_traced_parameters_are_told(rng_key):
    rows = np.array([[0, NAN, 1, 1]])
    with pytest.raises(ValueError, match=r"outside of jit.*sample_given takes a traced model"):
        jax.jit(lambda model: pgm.impute(rng_key, model, rows).mean)(RBM)
    inside = jax.jit(lambda model: pgm.sample_given(rng_key, model, rows, 3, num_warmup=2))(RBM)
    outside = pgm.sample_given(rng_key, RBM, rows, 3, num_warmup=2)
    np.testing.assert_array_equal(inside["v"], outside["v"])


def test_traced_rows_are_told(rng_key):
    rows = np.array([[0, NAN, 1, 1]])
    calls = (
        lambda rows: pgm.sample_given(rng_key, RBM, rows, 3),
        lambda rows: pgm.impute(rng_key, RBM, rows).mean,
        lambda rows: pgm.denoise(rng_key, RBM, rows, 0.1).mean,
    )
    for call in calls:
        with pytest.raises(TypeError, match=r"rows for site 'v' are traced.*vmap over condition"):
            jax.jit(call)(rows)


@pytest.mark.usefixtures("annotations_unchecked")
def test_grey_levels_and_none_are_told_what_helps(rng_key):
    calls = (
        lambda rows: pgm.impute(rng_key, RBM, rows),
        lambda rows: pgm.denoise(rng_key, RBM, rows, 0.1),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"got 0\.5 at row 0.*put NaN where") as told:
            call(np.array([[0, 0.5, 1, 1]]))
        assert "intensities" not in str(told.value)
        with pytest.raises(TypeError, match=r"got None at row 0, column 1; use NaN"):
            call([[0, None, 1, 1]])


# ---- sample_given ----------------------------------------------------------------------------


def test_sample_given_draws_all_sites_of_every_row(rng_key):
    """Patterns that reach into the latent site, many rows and chains of each."""
    patterns = [
        {"v": [1, NAN, NAN, 0], "h": [NAN, NAN, NAN]},
        {"v": [NAN, NAN, NAN, NAN], "h": [1, NAN, 0]},
        {"v": [0, 1, NAN, 1], "h": [NAN, 1, NAN]},
    ]
    rows = {k: np.repeat([p[k] for p in patterns], 250, axis=0) for k in ("v", "h")}
    draws = pgm.sample_given(rng_key, RBM, rows, 8, num_chains=8, num_warmup=60)
    assert {k: v.shape for k, v in draws.items()} == {"v": (8, 750, 4), "h": (8, 750, 3)}
    states, joint, _ = law(RBM)
    for i, pattern in enumerate(patterns):
        fits = np.ones(len(joint), bool)
        for name, row in pattern.items():
            row = np.array(row)
            fits &= (states[name] == row)[:, ~np.isnan(row)].all(axis=1)
        own = {k: np.asarray(v)[:, 250 * i : 250 * (i + 1)] for k, v in draws.items()}
        own = {k: v.reshape(-1, v.shape[-1]) for k, v in own.items()}
        options = {k: v[fits] for k, v in states.items()}
        probabilities = joint[fits] / joint[fits].sum()
        assert frequencies_p_value(own, options, probabilities) > ALPHA
        assert frequencies_p_value(own, options, np.roll(probabilities, 1)) < ALPHA


def test_shapes_and_order_of_sample_given(rng_key):
    rows = np.array([[1, NAN, NAN, 0], [NAN, 0, 0, NAN]])
    grouped = pgm.sample_given(
        rng_key, RBM, rows, 10, num_chains=4, num_warmup=3, group_by_chain=True
    )
    assert {k: v.shape for k, v in grouped.items()} == {"v": (4, 3, 2, 4), "h": (4, 3, 2, 3)}
    flat = pgm.sample_given(rng_key, RBM, rows, 10, num_chains=4, num_warmup=3)
    for name, value in grouped.items():
        expected = np.swapaxes(value, 0, 1).reshape(12, *value.shape[2:])[:10]
        np.testing.assert_array_equal(flat[name], expected)
        assert flat[name].dtype == RBM.sites[name].dtype
    # a site that is known as a whole is handed on
    known = pgm.sample_given(rng_key, RBM, ROWS, 3, num_warmup=1)
    np.testing.assert_array_equal(known["v"], np.broadcast_to(ROWS, (3, 2, 4)))
    assert known["h"].shape == (3, 2, 3)


def test_many_rows_are_sampled_in_parts(rng_key, monkeypatch):
    from pgm_energy.conditional import sampling

    rows = EVERY_ROW[40:51]
    whole = pgm.sample_given(rng_key, RBM, rows, 4, num_warmup=3)
    monkeypatch.setattr(sampling, "_ELEMENTS", 4 * 7 * 4)  # four rows of four chains
    parts = pgm.sample_given(rng_key, RBM, rows, 4, num_warmup=3)
    for name, value in whole.items():
        np.testing.assert_array_equal(parts[name], value)


@pytest.mark.parametrize(
    "rows, more, message",
    [
        ({"v": ROWS, "h": np.ones((2, 3))}, {}, "nothing stays free"),
        ({"u": ROWS}, {}, "RBM has no site 'u'; its sites are 'v', 'h'"),
        ({}, {}, "rows are empty"),
        ({"v": ROWS, "h": np.ones((3, 3))}, {}, "different numbers of rows: {'v': 2, 'h': 3}"),
        ({"h": [[0, NAN, 3]]}, {}, "takes 0 and 1, got 3.0 at row 0, column 2"),
        ([[0, NAN, 2, 1]], {}, "takes 0 and 1, got 2.0 at row 0, column 2"),
        (np.zeros((2, 3)), {}, r"must have shape \(rows, 4\), got \(2, 3\)"),
        (ROWS, {"num_samples": 0}, "num_samples must be an integer of at least 1, got 0"),
        (ROWS, {"num_chains": 0}, "num_chains must be an integer of at least 1, got 0"),
        (ROWS, {"num_warmup": -1}, "num_warmup must be an integer of at least 0, got -1"),
    ],
)
def test_sample_given_refuses(rows, more, message, rng_key):
    with pytest.raises(ValueError, match=message):
        pgm.sample_given(rng_key, RBM, rows, **{"num_samples": 2, **more})


# ---- all of them -----------------------------------------------------------------------------

GAP = np.array([[0, NAN, 1, 1]])
CALLS = {
    "reconstruct": lambda key, model: pgm.reconstruct(key, model, ROWS),
    "impute": lambda key, model: pgm.impute(key, model, GAP, 4),
    "impute-gibbs": lambda key, model: pgm.impute(key, model, GAP, 4, method="gibbs"),
    "denoise": lambda key, model: pgm.denoise(key, model, GAP, 0.1, 4),
    "sample_given": lambda key, model: pgm.sample_given(key, model, GAP, 4),
}


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_what_is_no_key_or_no_model(call, rng_key):
    with pytest.raises(TypeError, match=r"must be one JAX random key.* got int 0"):
        call(0, RBM)
    with pytest.raises(TypeError, match="takes an energy model, got ndarray"):
        call(rng_key, ROWS)
    with pytest.raises(TypeError, match="latent_mean takes an energy model, got ndarray"):
        pgm.latent_mean(ROWS, ROWS)


@pgm.struct
class Counted(pgm.EnergyModel):
    """An RBM that counts how often its energy is traced."""

    weights: jax.Array
    data_sites = ("v",)
    traces = [0]  # noqa: RUF012 (shared on purpose, and no field)

    @property
    def sites(self):
        d, h = self.weights.shape
        return {"v": pgm.Binary(d), "h": pgm.Binary(h)}

    def energy(self, v, h):
        self.traces[0] += 1
        return -v @ self.weights @ h


@pytest.mark.parametrize("name", [*CALLS, "latent_mean"])
def test_new_parameters_do_not_compile_again(name, rng_key):
    call = CALLS.get(name, lambda key, model: pgm.latent_mean(model, ROWS))
    for _ in range(2):
        call(rng_key, Counted(weights=normal(4, 3)))
    before = Counted.traces[0]
    call(rng_key, Counted(weights=normal(4, 3, scale=3.0)))
    assert Counted.traces[0] == before
