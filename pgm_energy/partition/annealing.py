"""Annealed importance sampling from the base to the model, and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from pgm_energy._struct import Key
from pgm_energy.partition.bases import Base
from pgm_energy.partition.path import CHUNK, Path

__all__ = [
    "Bracket",
    "Weights",
    "bracket",
    "even_betas",
    "respaced",
    "settling_sweeps",
    "tuned_betas",
]

#: Betas of a pilot run that tells how fast weights spread along the path, and its rounds.
PILOT_BETAS, PILOT_ROUNDS = CHUNK + 1, 2
#: Least spread of a step, as a share of the mean: what a pilot did not see keeps some betas.
LEAST_SPREAD = 0.1
#: A bound is this many standard errors beyond the mean log-weight.
SIGMAS = 3.0


@dataclasses.dataclass(frozen=True)
class Weights:
    """Log-weights of independent chains, float64, nats.

    Attributes
    ----------
    log_weights
        ``(chains,)``; the mean of their exponentials estimates a ratio of partition functions.
    """

    log_weights: np.ndarray

    @property
    def mean(self) -> float:
        """Mean log-weight: below the log of the ratio, in expectation."""
        return float(self.log_weights.mean())

    @property
    def mean_error(self) -> float:
        """Standard error of the mean log-weight."""
        return float(self.log_weights.std(ddof=1) / math.sqrt(len(self.log_weights)))

    @property
    def log_mean(self) -> float:
        """Log of the mean weight: the estimate of the log of the ratio."""
        return float(logsumexp(self.log_weights) - math.log(len(self.log_weights)))

    @property
    def log_mean_error(self) -> float:
        """Standard error of the log of the mean weight, by the delta method."""
        ratios = np.exp(self.log_weights - self.log_mean)
        return float(ratios.std(ddof=1) / math.sqrt(len(ratios)))

    @property
    def ess(self) -> float:
        """Effective number of weights, (sum w)^2 / sum w^2."""
        return float(np.exp(2.0 * logsumexp(self.log_weights) - logsumexp(2.0 * self.log_weights)))


@dataclasses.dataclass(frozen=True)
class Bracket:
    """Weights of runs from the base, and of runs back from the model.

    Attributes
    ----------
    log_z_base
        log Z of the base, nats.
    forward, reverse
        Their weights.
    groups
        Reverse chains by where they started, as slices.
    """

    log_z_base: float
    forward: Weights
    reverse: Weights
    groups: tuple[slice, ...]

    @property
    def lower(self) -> float:
        """Lower bound of log Z, nats."""
        return self.log_z_base + self.forward.mean - SIGMAS * self.forward.mean_error

    @property
    def upper(self) -> float:
        """Upper bound of log Z, nats: the most pessimistic of the groups of starts."""
        parts = [Weights(self.reverse.log_weights[group]) for group in self.groups]
        return max(self.log_z_base - part.mean + SIGMAS * part.mean_error for part in parts)


def even_betas(betas: np.ndarray, spread: np.ndarray, num: int) -> np.ndarray:
    """Return ``num`` inverse temperatures between which log-weights spread equally.

    Parameters
    ----------
    betas
        Increasing, from 0 to 1.
    spread
        Standard deviation of the log-weight increment of every step, ``(len(betas) - 1,)``.
    num
        How many.

    Notes
    -----
    To first order the effective size of a step is ``1 / (1 + variance)``, and its deviation is
    proportional to its length: equal steps of the sum of deviations give equal effective sizes.
    """
    rate = spread / np.diff(betas)
    width = np.diff(betas)
    mean = float((rate * width).sum())
    if not mean > 0.0:  # nothing spreads: the model is its base
        return np.linspace(0.0, 1.0, num)
    travelled = np.concatenate([[0.0], np.cumsum(np.maximum(rate, LEAST_SPREAD * mean) * width)])
    even = np.interp(np.linspace(0.0, travelled[-1], num), travelled, betas)
    even[0], even[-1] = 0.0, 1.0
    return even


def respaced(betas: np.ndarray, num: int) -> np.ndarray:
    """Return ``num`` inverse temperatures that are spread as ``betas`` are."""
    return np.interp(np.linspace(0, 1, num), np.linspace(0, 1, len(betas)), betas)


def tuned_betas(
    rng_key: Key, path: Path, start: Callable[[Key], Any], num: int
) -> tuple[np.ndarray, float]:
    """Return betas from short pilot runs, and the length of the path.

    The length is the sum of the log-weights' standard deviations over the path: about how many
    replicas parallel tempering needs.
    """
    betas, length = np.linspace(0.0, 1.0, PILOT_BETAS), 0.0
    for number in range(PILOT_ROUNDS):
        first, second = jax.random.split(jax.random.fold_in(rng_key, number))
        parts: list[np.ndarray] = []
        path.walk(second, start(first), betas, parts.append)
        spread = np.concatenate(parts).std(axis=1)
        length = float(spread.sum())
        last = number == PILOT_ROUNDS - 1
        betas = even_betas(betas, spread, num if last else PILOT_BETAS)
    return betas, length


def resampled(rng_key: Key, values: Any, weights: Weights, num: int) -> dict[str, jax.Array]:
    """Return ``num`` of the chains, drawn by their weights (systematic resampling)."""
    share = np.exp(weights.log_weights - weights.log_mean) / len(weights.log_weights)
    places = (np.arange(num) + float(jax.random.uniform(rng_key))) / num
    chosen = np.searchsorted(np.cumsum(share), places).clip(max=len(share) - 1)
    return {name: jnp.asarray(value)[chosen] for name, value in values.items()}


def settled(rng_key: Key, path: Path, values: Any, num_sweeps: int, show: Any = None) -> Any:
    """Return chains after sweeps at the model itself."""
    return path.walk(rng_key, values, np.ones(num_sweeps + 1), show=show)[0]


def settling_sweeps(num_betas: int) -> int:
    """How many sweeps at the model come before the way back."""
    return max(2 * CHUNK, num_betas // 10)


def bracket(
    rng_key: Key,
    path: Path,
    base: Base,
    betas: np.ndarray,
    num_chains: int,
    *,
    samples: Any = None,
    exactly_back: bool = False,
    show: Callable[[int, str], None] | None = None,
) -> Bracket:
    """Return weights of annealing runs from the base to the model, and back from the model.

    Parameters
    ----------
    rng_key
        A JAX random key.
    path, base
        The path, and how to draw where it begins.
    betas
        Rising from 0 to 1.
    num_chains
        Chains each way.
    samples
        Model samples to go back from, ``(num_chains, ...)`` by site. None: the ends of the way
        forward, resampled by their weights, and where there are data half of the chains from
        rows; both after sweeps at the model.
    exactly_back
        Whether sweeps on the way back are the time-reversed ones.
    show
        Called with the number of sweeps done and words.
    """
    keys = jax.random.split(rng_key, 6)
    done = 0

    def tell(words: str) -> Callable[[int], None]:
        return lambda number: None if show is None else show(done + number, words)

    start = base.draw(keys[0], num_chains)
    ends, log_weights = path.walk(keys[1], start, betas, show=tell("annealing"))
    forward, done = Weights(log_weights), len(betas) - 1
    groups: tuple[slice, ...] = (slice(0, num_chains),)
    if samples is None:
        samples = resampled(keys[2], ends, forward, num_chains)
        if base.rows is not None and num_chains >= 4:
            half = num_chains // 2
            groups = (slice(0, half), slice(half, num_chains))
            samples = _second_half(keys[3], samples, base.rows, half)
        samples = settled(keys[4], path, samples, settling_sweeps(len(betas)), tell("sampling"))
        done += settling_sweeps(len(betas))
    back = path.backwards() if exactly_back else path
    _, log_weights = back.walk(keys[5], samples, betas[::-1], show=tell("annealing back"))
    return Bracket(base.log_partition, forward, Weights(log_weights), groups)


def _second_half(rng_key: Key, samples: Any, rows: Any, half: int) -> dict[str, jax.Array]:
    """Samples, those from ``half`` on replaced by rows."""
    num = len(next(iter(samples.values()))) - half
    available = len(next(iter(rows.values())))
    chosen = jax.random.choice(rng_key, available, (num,))
    return {
        name: jnp.concatenate([value[:half], rows[name][chosen].astype(value.dtype)])
        for name, value in samples.items()
    }
