"""Chains that have left equilibrium: what is measured, what is said, and when nothing is said."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pgm_energy as pgm
from pgm_energy.datasets import load_digits
from pgm_energy.learning.equilibrium import correlation, trouble
from pgm_energy.learning.metrics import explain


def test_correlation_against_numpy():
    first, second = np.random.default_rng(0).normal(size=(2, 40))
    second += first
    own = float(correlation(jnp.asarray(first), jnp.asarray(second)))
    assert own == pytest.approx(np.corrcoef(first, second)[0, 1], abs=1e-6)
    assert float(correlation(jnp.ones(3), jnp.asarray([1.0, 2.0, 3.0]))) == 0.0


WELL = {
    "chain_energy_gap": np.full(8, 0.5),
    "chain_drift": np.full(8, -0.3),
    "chain_autocorrelation": np.full(8, 0.9),
    "swap_rate": np.full(8, 0.4),
}


@pytest.mark.parametrize(
    "metric, value, words",
    [
        ("chain_energy_gap", 4.0, "energy lies 4.0 standard deviations above that of the data"),
        ("chain_energy_gap", -5.0, "5.0 standard deviations below that of the data"),
        ("chain_drift", -2.0, "energy falls by 2.0 standard deviations within 20 sweeps when"),
        ("chain_autocorrelation", 0.999, r"over some 1,999 updates \(autocorrelation 0.9990"),
        ("swap_rate", 0.01, "swaps at a rate of 0.010. Then use more replicas"),
    ],
)
def test_words(metric, value, words):
    assert trouble(WELL) == ""
    assert trouble({}) == ""
    late = np.where(np.arange(8) < 6, WELL[metric], value)
    message = explain({**WELL, metric: late})
    assert message.startswith("8 epochs. The chains have left equilibrium: ")
    assert re.search(words, message), message
    early = np.where(np.arange(8) < 6, value, WELL[metric])  # what is over is not told
    assert trouble({**WELL, metric: early}) == ""


@pytest.mark.parametrize("rate, has_left", [(0.05, False), (5.0, True)], ids=["well", "huge step"])
def test_a_run_tells(rate, has_left):
    """The likeness of the energies of data and chains hides it: only held parameters tell."""
    digits = load_digits().images[:400]
    start = pgm.RBM.init(jax.random.key(0), num_visible=64, num_hidden=16, data=digits)
    learner = pgm.PCD(optax.sgd(rate), num_chains=64)
    result = learner.run(
        jax.random.key(1), start, digits, num_epochs=8, batch_size=40, progress_bar=False
    )
    assert ("The chains have left equilibrium" in result.message) == has_left
    if has_left:
        assert "lower the learning rate or let it fall to zero" in result.message
    drift = result.metrics["chain_drift"][-2:].mean()
    assert (drift < -1.0) if has_left else (abs(drift) < 0.7)
