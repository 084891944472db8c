"""sample against exact enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import ALPHA, frequencies_p_value, law

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
LEVELS = pgm.RBM(weights=normal(3, 3, 2), visible_bias=normal(3, 3), visible=pgm.Categorical)


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
    with pytest.raises(TypeError, match=r"must be one JAX random key.* got int 0"):
        pgm.sample(0, RBM, 4)
    with pytest.raises(TypeError, match="takes an energy model, got ndarray"):
        pgm.sample(rng_key, np.ones(3), 4)


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


def test_new_parameters_do_not_compile_again(rng_key):
    for _ in range(2):
        pgm.sample(rng_key, Counted(weights=normal(4, 3)), 8, num_warmup=3)
    before = Counted.traces[0]
    pgm.sample(rng_key, Counted(weights=normal(4, 3, scale=3.0)), 8, num_warmup=3)
    assert Counted.traces[0] == before
