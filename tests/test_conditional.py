"""latent_mean and reconstruct against exact enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import ALPHA, all_states, encode, energies, pooled_p_value
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
NAN = np.nan


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
        pgm.reconstruct(rng_key, RBM, np.array([[0, NAN, 1, 0]]))
    with pytest.raises(TypeError, match=r"must be one JAX random key.* got NoneType None"):
        pgm.reconstruct(None, RBM, ROWS)
    with pytest.raises(ValueError, match=r"h\[0\] and h\[1\] interact"):
        pgm.reconstruct(None, HIDDEN, ROWS, mean_field=True)


@pytest.mark.parametrize("model", [RBM, LEVELS, REALS], ids=["binary", "categorical", "real"])
def test_mean_field_reconstruction_is_two_products(model):
    site = model.sites["v"]
    rows = data_rows(type(site), 5, site.size)
    weights = np.asarray(model.weights, float).reshape(-1, model.sites["h"].size)
    latent = expit(
        encode(site, rows).reshape(5, -1) @ weights + np.asarray(model.hidden_bias, float)
    )
    field = (latent @ weights.T).reshape(5, *site.encoded_shape)
    field = field + np.asarray(model.visible_bias, float)
    if site.event:
        exact = np.exp(field - logsumexp(field, axis=-1, keepdims=True))
    elif model.visible_precision is not None:
        exact = field / np.asarray(model.visible_precision)
    else:
        exact = expit(field)
    out = pgm.reconstruct(None, model, rows, mean_field=True)
    np.testing.assert_allclose(out, exact, rtol=2e-5, atol=1e-6)


def test_mean_field_through_categorical_latents():
    model = pgm.RBM(weights=normal(3, 2, 4), hidden=pgm.Categorical)
    rows = data_rows(pgm.Binary, 4, 3)
    weights = np.asarray(model.weights, float)
    field = np.einsum("nd,dhk->nhk", rows, weights)
    latent = np.exp(field - logsumexp(field, axis=-1, keepdims=True))
    exact = expit(np.einsum("nhk,dhk->nd", latent, weights))
    out = pgm.reconstruct(None, model, rows, mean_field=True)
    np.testing.assert_allclose(out, exact, rtol=2e-5)


@pgm.struct
class Ring(pgm.EnergyModel):
    """Real units on a ring, so many that they are drawn by colours."""

    pull: jax.Array
    field: jax.Array

    @property
    def sites(self):
        return {"x": pgm.Real(self.field.shape[0])}

    def energy(self, x):
        return 0.5 * x @ x + self.pull * x @ jnp.roll(x, 1) - self.field @ x

    def project(self):
        return pgm.replace(self, pull=jnp.clip(self.pull, -0.4, 0.4))


def test_real_units_in_colours_are_predicted_from_their_neighbours(rng_key):
    model = Ring(pull=jnp.asarray(0.3), field=normal(520))
    assert pgm.blocks(model).steps[0].index is not None  # otherwise this shows nothing
    rows = np.random.default_rng(0).normal(size=(2, 520)).astype(np.float32)
    exact = np.asarray(model.field) - 0.3 * (np.roll(rows, 1, 1) + np.roll(rows, -1, 1))
    np.testing.assert_allclose(pgm.reconstruct(rng_key, model, rows), exact, rtol=1e-4, atol=1e-5)
