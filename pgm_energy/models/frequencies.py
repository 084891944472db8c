"""What EM needs to know of discrete rows: how often each unit was in each state."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._struct import is_concrete
from pgm_energy.models.mixture import SUM_TOLERANCE, WEIGHT_FLOOR, floored_frequencies
from pgm_energy.models.prior import MixturePrior

__all__ = [
    "Frequencies",
    "FrequencyPrior",
    "log_density",
    "most_likely",
    "require_probs",
    "resolve",
]


#: Probabilities of a projected mixture keep this distance from 0 and 1.
PROBABILITY_FLOOR = 1e-6
#: Share of a hard start that is spread over all components, so that no probability starts at 0.
START_SPREAD = 0.1


class Frequencies(NamedTuple):
    """Moments of a discrete mixture: ``mass`` (K,), and ``counts`` of states (K, D, S)."""

    mass: jax.Array
    counts: jax.Array


class FrequencyPrior(NamedTuple):
    """Pseudo-rows of the weights, and of the states ``(D, S)``."""

    weight_rows: Any
    counts: Any


def most_likely(
    moments: Frequencies, floor: Any, prior: FrequencyPrior
) -> tuple[jax.Array, jax.Array]:
    """Return weights and probabilities of states that fit counts and pseudo-counts best."""
    weights = floored_frequencies(moments.mass + prior.weight_rows, WEIGHT_FLOOR)
    return weights, floored_frequencies(moments.counts + prior.counts, floor)


def resolve(owner: str, prior: MixturePrior, probs: np.ndarray) -> FrequencyPrior:
    """Return a prior as pseudo-rows, around probabilities ``(D, S)``.

    Raises
    ------
    ValueError
        If they are no probabilities, or the prior is one of means and covariances.
    """
    prior.refuse(owner, "mean_rows", "mean", "covariance_rows", "covariance")
    off = np.abs(probs.sum(axis=-1) - 1.0).max()
    if (probs < 0).any() or off > SUM_TOLERANCE:
        raise ValueError("the prior's probs must be probabilities: at least 0, and summing to 1")
    return FrequencyPrior(np.asarray(float(prior.weight_rows)), prior.prob_rows * probs)


def log_density(log_weights: jax.Array, log_probs: jax.Array, prior: FrequencyPrior) -> jax.Array:
    """Return the log-density of Dirichlet laws, nats, up to their constants."""
    return prior.weight_rows * jnp.sum(log_weights) + jnp.sum(prior.counts * log_probs)


def require_probs(probs: jax.Array, layout: tuple[Any, ...]) -> None:
    """Refuse probabilities of a wrong shape, or that are 0 or 1.

    Raises
    ------
    ValueError
        With the first one that is wrong.
    """
    if probs.ndim != len(layout) or probs.shape[0] != layout[0] or 0 in probs.shape:
        raise ValueError(
            f"probs must have shape ({', '.join(map(str, layout))}), one row per weight, "
            f"got {probs.shape}"
        )
    if not is_concrete(probs):
        return
    values = np.asarray(probs)
    bad = np.argwhere((values <= 0) | (values >= 1) & (len(layout) == 2))
    if len(bad):
        place = tuple(int(i) for i in bad[0])
        raise ValueError(
            f"probs must lie strictly between 0 and 1, because an energy is finite, got "
            f"{values[place]:g} at index {place}; use np.clip(probs, 1e-6, 1 - 1e-6)"
            f"{' and normalise again' if len(layout) == 3 else ''}"
        )
