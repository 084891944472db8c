"""sample, latent_mean, reconstruct and impute against exact enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import ALPHA, all_states, encode, energies, frequencies_p_value, law, pooled_p_value
from scipy import stats
from scipy.special import expit, logsumexp

import pgm_energy as pgm

RNG = np.random.default_rng(3)
NUM = 4000


def normal(*shape, scale=1.0):
    return jnp.asarray(RNG.normal(0, scale, shape), jnp.float32)


def symmetric(size, scale=1.0):
    upper = np.triu(RNG.normal(0, scale, (size, size)), 1).astype(np.float32)
    return jnp.asarray(upper + upper.T)


RBM = pgm.RBM(weights=normal(4, 3, scale=1.5), visible_bias=normal(4), hidden_bias=normal(3))
MACHINE = pgm.BoltzmannMachine(weights=symmetric(5, 0.8), bias=normal(5, scale=0.4), unit=pgm.Spin)
HIDDEN = pgm.BoltzmannMachine(weights=symmetric(6), bias=normal(6, scale=0.4), num_hidden=2)
LEVELS = pgm.RBM(weights=normal(3, 3, 2), visible_bias=normal(3, 3), visible=pgm.Categorical)
REALS = pgm.RBM(
    weights=normal(3, 2),
    visible_bias=normal(3),
    visible_precision=jnp.asarray([0.7, 1.0, 2.5]),
    visible=pgm.Real,
)
ROWS = np.array([[0, 1, 1, 0], [1, 1, 0, 1]])


@pgm.struct
class TwoLayers(pgm.EnergyModel):
    """Visible units, and two hidden sites that are coupled to them, or to one another."""

    first: jax.Array
    second: jax.Array
    deep: bool = pgm.static(default=False)
    data_sites = ("v",)

    @property
    def sites(self):
        d, h = self.first.shape
        return {"v": pgm.Binary(d), "a": pgm.Binary(h), "b": pgm.Spin(self.second.shape[1])}

    def energy(self, v, a, b):
        return -v @ self.first @ a - (a if self.deep else v) @ self.second @ b


# ---- sample --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [RBM, MACHINE, LEVELS], ids=["binary", "spin", "categorical"])
def test_sample_draws_from_the_exact_law(model, rng_key):
    states, probabilities, _ = law(model)
    draws = pgm.sample(rng_key, model, NUM, num_chains=NUM, num_warmup=80)
    assert {k: v.dtype for k, v in draws.items()} == {k: s.dtype for k, s in model.sites.items()}
    assert frequencies_p_value(draws, states, probabilities) > ALPHA
    wrong = {k: np.random.default_rng(0).permutation(np.asarray(v)) for k, v in draws.items()}
    wrong["v"] = np.stack([np.roll(v, i) for i, v in enumerate(np.asarray(draws["v"]).T)], axis=1)
    assert frequencies_p_value(wrong, states, probabilities) < ALPHA


def test_every_draw_of_a_chain_is_from_the_exact_law(rng_key):
    """All draws count, not the first of each chain only: few chains, sweeps between the draws."""
    states, probabilities, _ = law(RBM)
    draws = pgm.sample(rng_key, RBM, NUM, num_chains=400, num_warmup=80, num_sweeps=40)
    assert frequencies_p_value(draws, states, probabilities) > ALPHA


def test_chains_and_draws(rng_key):
    grouped = pgm.sample(rng_key, RBM, 10, num_chains=4, num_warmup=3, group_by_chain=True)
    assert {k: v.shape for k, v in grouped.items()} == {"v": (4, 3, 4), "h": (4, 3, 3)}
    flat = pgm.sample(rng_key, RBM, 10, num_chains=4, num_warmup=3)
    for name, value in grouped.items():
        # a cut leaves every chain its share: draw by draw, chains inside
        expected = np.swapaxes(value, 0, 1).reshape(12, -1)[:10]
        np.testing.assert_array_equal(flat[name], expected)
    assert pgm.sample(rng_key, RBM, 3, num_warmup=0)["v"].shape == (3, 4)
    assert pgm.sample(rng_key, RBM, 40, num_warmup=0, group_by_chain=True)["v"].shape == (16, 3, 4)


def test_the_same_key_gives_the_same_draws():
    for make in (jax.random.key, jax.random.PRNGKey):
        first, second, other = (pgm.sample(make(k), RBM, 20, num_warmup=2) for k in (1, 1, 2))
        np.testing.assert_array_equal(first["v"], second["v"])
        assert (np.asarray(first["v"]) != np.asarray(other["v"])).any()


def test_clamped_units_are_sampled_at_their_values(rng_key):
    model = pgm.condition(RBM, v=np.array([1.0, np.nan, 0.0, np.nan]))
    draws = pgm.sample(rng_key, model, 2000, num_chains=2000, num_warmup=40)
    assert (np.asarray(draws["v"])[:, [0, 2]] == [1, 0]).all()
    states, probabilities, _ = law(RBM)
    keep = (states["v"][:, 0] == 1) & (states["v"][:, 2] == 0)
    states = {k: v[keep] for k, v in states.items()}
    p_value = frequencies_p_value(draws, states, probabilities[keep] / probabilities[keep].sum())
    assert p_value > ALPHA


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_samples": 0}, "num_samples must be an integer of at least 1, got 0"),
        ({"num_chains": 0}, "num_chains must be an integer of at least 1, got 0"),
        ({"num_warmup": -1}, "num_warmup must be an integer of at least 0, got -1"),
        ({"num_sweeps": 0}, "num_sweeps must be an integer of at least 1, got 0"),
    ],
)
def test_counts_of_sample(rng_key, change, message):
    with pytest.raises(ValueError, match=message):
        pgm.sample(rng_key, RBM, **{"num_samples": 4, **change})


@pytest.mark.usefixtures("annotations_unchecked")
def test_what_is_no_key_or_no_model(rng_key):
    for call in (
        lambda key, model: pgm.sample(key, model, 4),
        lambda key, model: pgm.reconstruct(key, model, ROWS),
        lambda key, model: pgm.impute(key, model, ROWS),
    ):
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


@pytest.mark.parametrize(
    "call",
    [
        lambda key, model: pgm.sample(key, model, 8, num_warmup=3),
        lambda key, model: pgm.latent_mean(model, ROWS),
        lambda key, model: pgm.reconstruct(key, model, ROWS),
        lambda key, model: pgm.impute(key, model, np.array([[0, np.nan, 1, 1]])),
    ],
    ids=["sample", "latent_mean", "reconstruct", "impute"],
)
def test_new_parameters_do_not_compile_again(rng_key, call):
    first, second = (call(rng_key, Counted(weights=normal(4, 3))) for _ in range(2))
    before = Counted.traces[0]
    third = call(rng_key, Counted(weights=normal(4, 3, scale=3.0)))
    assert Counted.traces[0] == before
    del first, second, third


# ---- latent_mean ---------------------------------------------------------------------------------

FAMILIES = {"binary": pgm.Binary, "spin": pgm.Spin, "categorical": pgm.Categorical}


def data_rows(family, num, size):
    rng = np.random.default_rng(num)
    if family is pgm.Real:
        return rng.normal(0, 2, (num, size)).astype(np.float32)
    states = {pgm.Binary: [0, 1], pgm.Spin: [-1, 1], pgm.Categorical: [0, 1, 2]}[family]
    return rng.choice(states, (num, size))


@pytest.mark.parametrize("hidden", FAMILIES.values(), ids=FAMILIES.keys())
@pytest.mark.parametrize("visible", [*FAMILIES.values(), pgm.Real], ids=[*FAMILIES.keys(), "real"])
def test_latent_mean_of_every_rbm(visible, hidden):
    shape = (2, *([3] if visible is pgm.Categorical else []))
    shape += (2, *([3] if hidden is pgm.Categorical else []))
    model = pgm.RBM(weights=normal(*shape), visible=visible, hidden=hidden)
    rows = data_rows(visible, 4, 2)
    means = pgm.latent_mean(model, rows)
    site = model.sites["h"]
    states = all_states(pgm.RBM(weights=normal(*shape), hidden=hidden, visible=visible))
    options = np.unique(np.asarray(states["h"]), axis=0)
    assert means.shape == (4, *site.encoded_shape)
    for row, mean in zip(rows, means, strict=True):
        values = {"v": np.tile(row, (len(options), 1)), "h": options}
        score = -energies(model, values)
        weights = np.exp(score - logsumexp(score))
        exact = np.tensordot(weights, encode(site, options), axes=1)
        np.testing.assert_allclose(mean, exact, rtol=1e-5, atol=1e-6)


def test_latent_mean_of_real_hidden_units():
    precision = jnp.asarray([0.5, 2.0])
    model = pgm.RBM(
        weights=normal(3, 2), hidden_bias=normal(2), hidden=pgm.Real, hidden_precision=precision
    )
    rows = data_rows(pgm.Binary, 5, 3)
    exact = (rows @ np.asarray(model.weights) + np.asarray(model.hidden_bias)) / np.asarray(
        precision
    )
    np.testing.assert_allclose(pgm.latent_mean(model, rows), exact, rtol=1e-5)


def test_latent_mean_takes_intensities_as_probabilities():
    rows = np.array([[0.2, 1.0, 0.5, 0.0]])
    exact = expit(rows @ np.asarray(RBM.weights) + np.asarray(RBM.hidden_bias))
    np.testing.assert_allclose(pgm.latent_mean(RBM, rows), exact, rtol=1e-5)
    np.testing.assert_allclose(pgm.latent_mean(RBM, {"v": rows}), exact, rtol=1e-5)


def test_latent_mean_of_a_mixture_is_its_responsibilities():
    weights = np.array([0.2, 0.5, 0.3])
    means, covariances = RNG.normal(0, 2, (3, 2)), np.array([np.eye(2), 2 * np.eye(2), np.eye(2)])
    covariances[2, 0, 1] = covariances[2, 1, 0] = 0.6
    model = pgm.GaussianMixture(
        weights=jnp.asarray(weights), means=jnp.asarray(means), covariances=jnp.asarray(covariances)
    )
    rows = RNG.normal(0, 2, (6, 2)).astype(np.float32)
    joint = np.stack(
        [
            w * stats.multivariate_normal(m, c).pdf(rows)
            for w, m, c in zip(weights, means, covariances, strict=True)
        ],
        axis=1,
    )
    exact = joint / joint.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(pgm.latent_mean(model, rows), exact, atol=2e-5)


def test_latent_mean_of_two_sites():
    model = TwoLayers(first=normal(4, 2), second=normal(4, 3))
    means = pgm.latent_mean(model, ROWS)
    assert means.keys() == {"a", "b"}
    np.testing.assert_allclose(means["a"], expit(ROWS @ np.asarray(model.first)), rtol=1e-5)
    np.testing.assert_allclose(means["b"], np.tanh(ROWS @ np.asarray(model.second)), rtol=1e-5)


def test_latent_mean_is_refused_where_it_has_no_closed_form():
    with pytest.raises(ValueError, match=r"h\[0\] and h\[1\] interact"):
        pgm.latent_mean(HIDDEN, ROWS)
    deep = TwoLayers(first=normal(4, 2), second=normal(2, 3), deep=True)
    with pytest.raises(ValueError, match="latent sites 'a' and 'b' of TwoLayers interact"):
        pgm.latent_mean(deep, ROWS)
    with pytest.raises(ValueError, match="BoltzmannMachine has no latent sites"):
        pgm.latent_mean(MACHINE, np.ones((1, 5)))
    with pytest.raises(ValueError, match=r"must have shape \(rows, 4\), got \(1, 3\)"):
        pgm.latent_mean(RBM, np.ones((1, 3)))


# ---- reconstruct ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [RBM, LEVELS, REALS], ids=["binary", "categorical", "real"])
def test_reconstruct_is_the_mean_given_drawn_latents(model, rng_key):
    """Every row is E[v | h] of one h, and they come with the probabilities of h given the row."""
    site, hidden = model.sites["v"], model.sites["h"]
    row = data_rows(type(site), 3, site.size)[0]
    out = np.asarray(pgm.reconstruct(rng_key, model, np.tile(row, (NUM, 1))))
    assert out.shape == (NUM, *site.encoded_shape)
    options = (np.arange(2**hidden.size)[:, None] >> np.arange(hidden.size)) & 1
    field = np.asarray(model.visible_bias) + np.tensordot(
        options, np.asarray(model.weights), axes=(1, model.weights.ndim - 1)
    )
    if site.event:
        mean = np.exp(field - logsumexp(field, axis=-1, keepdims=True))
    elif model.visible_precision is not None:
        mean = field / np.asarray(model.visible_precision)
    else:
        mean = expit(field)
    values = {"v": np.tile(row, (len(options), 1)), "h": options}
    score = -energies(model, values)
    probabilities = np.exp(score - logsumexp(score))
    distance = np.abs(out[:, None] - mean[None]).reshape(NUM, len(options), -1).max(axis=-1)
    chosen = distance.argmin(axis=1)
    assert distance.min(axis=1).max() < 1e-4
    seen = np.bincount(chosen, minlength=len(options))
    assert pooled_p_value(seen, NUM * probabilities) > ALPHA
    assert pooled_p_value(seen, NUM * np.roll(probabilities, 1)) < ALPHA


def test_reconstruct_without_latents_predicts_each_unit_from_the_others(rng_key):
    rows = data_rows(pgm.Spin, 6, 5)
    exact = np.tanh(rows @ np.asarray(MACHINE.weights) + np.asarray(MACHINE.bias))
    np.testing.assert_allclose(pgm.reconstruct(rng_key, MACHINE, rows), exact, rtol=1e-5, atol=1e-6)


def test_reconstruct_with_latents_that_interact(rng_key):
    """One sweep from a random start moves towards p(h | v); here v hardly depends on h."""
    weights = np.zeros((6, 6), np.float32)
    weights[4, 5] = weights[5, 4] = 2.0
    model = pgm.BoltzmannMachine(weights=jnp.asarray(weights), bias=normal(6), num_hidden=2)
    out = pgm.reconstruct(rng_key, model, {"v": ROWS})
    assert out.keys() == {"v"}
    np.testing.assert_allclose(
        out["v"], np.tile(expit(np.asarray(model.bias)[:4]), (2, 1)), rtol=1e-5
    )


@pgm.struct
class Compared(pgm.EnergyModel):
    """Spins compared with ``==``: sampled by energy differences, no closed mean."""

    strength: jax.Array

    @property
    def sites(self):
        return {"s": pgm.Spin(3)}

    def energy(self, s):
        return -self.strength * jnp.sum(jnp.where(s[1:] == s[:-1], 1.0, 0.0))


@pytest.mark.filterwarnings("ignore:Compared is sampled at 's' by energy differences:UserWarning")
def test_reconstruct_is_refused(rng_key):
    with pytest.raises(ValueError, match="'s' of Compared has no closed conditional mean"):
        pgm.reconstruct(rng_key, Compared(strength=jnp.ones(())), np.ones((1, 3)))
    with pytest.raises(ValueError, match="got NaN at row 0, column 1"):
        pgm.reconstruct(rng_key, RBM, np.array([[0, np.nan, 1, 0]]))


# ---- impute --------------------------------------------------------------------------------------

NAN = np.nan


@pytest.mark.parametrize(
    "model, patterns",
    [
        (RBM, [[1, NAN, NAN, 0], [NAN, 0, 0, NAN]]),
        (MACHINE, [[NAN, 1, NAN, -1, NAN], [-1, -1, 1, NAN, NAN]]),
        (LEVELS, [[NAN, 2, 0], [1, NAN, NAN]]),
        (HIDDEN, [[NAN, NAN, 1, 1], [0, 1, NAN, NAN]]),
    ],
    ids=["binary", "spin", "categorical", "hidden units"],
)
def test_impute_draws_the_missing_units_given_the_others(model, patterns, rng_key):
    """Two rows with patterns of their own, each repeated: one independent draw per row."""
    patterns = np.array(patterns)
    rows = np.repeat(patterns, 2000, axis=0)
    out = np.asarray(pgm.impute(rng_key, model, rows, num_warmup=80))
    assert out.shape == (1, *rows.shape)
    assert out.dtype == np.dtype(model.sites["v"].dtype)
    known = ~np.isnan(rows)
    assert (out[0][known] == rows[known]).all()
    states, joint, _ = law(model)
    for row, draws in zip(patterns, out[0].reshape(2, 2000, -1), strict=True):
        free = np.isnan(row)
        fits = (states["v"][:, ~free] == row[~free]).all(axis=1)
        options, code = np.unique(states["v"][fits][:, free], axis=0, return_inverse=True)
        probabilities = np.bincount(code.ravel(), joint[fits])
        probabilities /= probabilities.sum()
        given = {"v": draws[:, free]}
        assert frequencies_p_value(given, {"v": options}, probabilities) > ALPHA
        assert frequencies_p_value(given, {"v": options}, np.roll(probabilities, 1)) < ALPHA


def test_several_completions_estimate_the_posterior_mean(rng_key):
    rows = np.array([[1, NAN, NAN, 0], [NAN, 0, 0, NAN], [0, 1, 1, 0]])
    out = np.asarray(pgm.impute(rng_key, RBM, rows, 3000, num_warmup=50, num_sweeps=20))
    assert out.shape == (3000, 3, 4)
    states, joint, _ = law(RBM)
    for i, row in enumerate(rows):
        free = np.isnan(row)
        fits = (states["v"][:, ~free] == row[~free]).all(axis=1)
        exact = joint[fits] @ states["v"][fits] / joint[fits].sum()
        error = np.sqrt(exact * (1 - exact) / 3000)
        assert (np.abs(out[:, i].mean(axis=0) - exact) <= 5 * error + 1e-7).all()


def test_impute_of_real_units(rng_key):
    """Given what is seen and h the rest is normal: the mean and the spread are a mixture's."""
    row = np.array([0.8, NAN, NAN])
    out = np.asarray(pgm.impute(rng_key, REALS, np.tile(row, (NUM, 1)), num_warmup=60))[0]
    assert (out[:, 0] == np.float32(0.8)).all()
    weights, b = np.asarray(REALS.weights, float), np.asarray(REALS.visible_bias, float)
    precision = np.asarray(REALS.visible_precision, float)
    h = (np.arange(4)[:, None] >> np.arange(2)) & 1
    field = b + h @ weights.T
    score = h @ np.asarray(REALS.hidden_bias) + field[:, 0] * 0.8
    score += 0.5 * (field[:, 1:] ** 2 / precision[1:]).sum(axis=1)
    p = np.exp(score - logsumexp(score))
    for i in (1, 2):

        def cdf(x, i=i):
            means, scale = field[:, i] / precision[i], precision[i] ** -0.5
            return stats.norm.cdf(np.asarray(x)[:, None], means, scale) @ p

        assert stats.kstest(out[:, i], cdf).pvalue > ALPHA
        assert stats.kstest(out[:, i] + 0.2, cdf).pvalue < ALPHA


def test_impute_of_a_correlated_normal(rng_key):
    """A single full covariance: the missing coordinate has the textbook conditional law."""
    covariance = np.array([[1.0, 0.8, 0.0], [0.8, 1.0, 0.3], [0.0, 0.3, 2.0]])
    model = pgm.GaussianMixture(
        weights=jnp.ones(1),
        means=jnp.asarray([[1.0, -1.0, 0.0]]),
        covariances=jnp.asarray(covariance[None]),
    )
    row = np.array([2.0, NAN, 1.0])
    out = np.asarray(pgm.impute(rng_key, model, np.tile(row, (NUM, 1)), num_warmup=30))[0]
    seen = [0, 2]
    gain = np.linalg.solve(covariance[np.ix_(seen, seen)], covariance[seen, 1])
    mean = -1.0 + gain @ (row[seen] - np.array([1.0, 0.0]))
    variance = 1.0 - gain @ covariance[seen, 1]
    standard = (out[:, 1] - mean) / np.sqrt(variance)
    assert stats.kstest(standard, "norm").pvalue > ALPHA
    assert stats.kstest(standard + 0.2, "norm").pvalue < ALPHA
    np.testing.assert_array_equal(out[:, seen], np.tile(row[seen], (NUM, 1)).astype(np.float32))


def test_rows_without_gaps_come_back(rng_key):
    for rows in (ROWS, ROWS.astype(float), ROWS.astype(bool)):
        out = pgm.impute(rng_key, RBM, rows, 2, num_warmup=0, num_sweeps=1)
        np.testing.assert_array_equal(out, np.broadcast_to(ROWS, (2, 2, 4)))
    assert pgm.impute(rng_key, RBM, {"v": ROWS}).keys() == {"v"}


@pytest.mark.parametrize(
    "rows, more, error, message",
    [
        ([[0, NAN, 2, 1]], {}, ValueError, "takes 0 and 1, got 2.0 at row 0, column 2"),
        ([[0, NAN, np.inf, 1]], {}, ValueError, "got inf at row 0, column 2"),
        ([[0, NAN, 0.5, 1]], {}, ValueError, r"got 0\.5 at row 0, column 2"),
        ([[0, NAN, 1]], {}, ValueError, r"must have shape \(rows, 4\), got \(1, 3\)"),
        (np.zeros((0, 4)), {}, ValueError, "is empty"),
        ([[0, NAN, 1, 1]], {"num_samples": 0}, ValueError, "num_samples must be an integer"),
        ([[0, NAN, 1, 1]], {"num_sweeps": 0}, ValueError, "num_sweeps must be an integer"),
        ([[0, NAN, 1, 1]], {"num_warmup": -1}, ValueError, "num_warmup must be an integer"),
    ],
)
def test_impute_refuses(rng_key, rows, more, error, message):
    with pytest.raises(error, match=message):
        pgm.impute(rng_key, RBM, np.asarray(rows), **more)
