"""log Z by parallel tempering: Bennett's ratio between neighbours of a ladder."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy import _random
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.kernels.tempering import Replicas, TemperingKernel, retuned, start
from pgm_energy.partition.bases import Base
from pgm_energy.partition.bennett import bennett_ratio
from pgm_energy.partition.path import CHUNK, Path, log_ratio
from pgm_energy.structure import Step

__all__ = ["LadderResult", "num_steps", "temper_ladders"]

#: Parts (of CHUNK steps) of the rounds after which the ladder is moved, then of settling.
TUNING, SETTLING = (1, 2, 4), 2
#: Parts whose draws count.
DRAWS = 20


@dataclasses.dataclass(frozen=True)
class LadderResult:
    """What parallel tempering found.

    Attributes
    ----------
    log_ratio, std_error
        log Z of the model minus that of the base, nats, and its error across ladders.
    ess
        Effective number of draws behind it.
    round_trips
        Journeys between base and model and back, of all walkers of all ladders.
    samples
        Draws of the model, raw values by site, ``(num_samples, ...)``.
    """

    log_ratio: float
    std_error: float
    ess: float
    round_trips: int
    samples: dict[str, jax.Array]


def num_steps() -> int:
    """Steps of every ladder."""
    return CHUNK * (sum(TUNING) + SETTLING + DRAWS)


def temper_ladders(
    rng_key: Key,
    path: Path,
    base: Base,
    betas: np.ndarray,
    num_ladders: int,
    num_samples: int,
    show: Callable[[int], None],
) -> LadderResult:
    """Return log Z of the model relative to the base, from independent ladders of replicas.

    Parameters
    ----------
    rng_key
        A JAX random key.
    path, base
        The path, and how to draw where all replicas start.
    betas
        The ladder to begin with, from 0 to 1; warm-up moves it until neighbours swap equally.
    num_ladders
        Independent ladders: the standard error is that between them.
    num_samples
        How many draws of the model to return.
    show
        Called with the number of steps done.
    """
    first, second = jax.random.split(rng_key)
    drawn = base.draw(first, num_ladders * len(betas))
    shape = (num_ladders, len(betas))
    ladders = jax.vmap(start)({k: x.reshape(*shape, *x.shape[1:]) for k, x in drawn.items()})
    run = _Run(path, second, show, jnp.asarray(betas, jnp.float32))
    for parts in TUNING:
        rates = []
        for _ in range(parts):
            ladders, (swap_prob, _, _) = run.advance(ladders)
            rates.append(np.asarray(swap_prob))
        run.betas = retuned(run.betas, jnp.asarray(np.mean(rates, axis=0)))
    for _ in range(SETTLING):
        ladders, _ = run.advance(ladders)
    before = int(jnp.sum(ladders.round_trips))
    ups, downs, kept = [], [], []
    for _ in range(DRAWS):
        ladders, (_, up, down) = run.advance(ladders)
        ups.append(np.asarray(up, np.float64))
        downs.append(np.asarray(down, np.float64))
        kept.append({name: value[:, -1] for name, value in ladders.values.items()})
    up, down = np.concatenate(ups), np.concatenate(downs)
    path.require_finite(up.min(axis=(0, 1)) + down.min(axis=(0, 1)), np.asarray(run.betas))
    trips = int(jnp.sum(ladders.round_trips)) - before
    pool = {name: jnp.concatenate([x[name] for x in kept]) for name in kept[0]}
    chosen = np.linspace(0, DRAWS * num_ladders - 1, num_samples).round().astype(int)
    samples = {name: value[chosen] for name, value in pool.items()}
    return LadderResult(*_chained(up, down), trips, samples)


@dataclasses.dataclass
class _Run:
    """One compiled part after another, each with its own key."""

    path: Path
    rng_key: Key
    show: Callable[[int], None]
    betas: jax.Array
    parts: int = 0

    def advance(self, ladders: Replicas) -> Any:
        found = _temper(
            jax.random.fold_in(self.rng_key, self.parts),
            ladders,
            self.path.base,
            self.path.target,
            self.betas,
            kernel=TemperingKernel(self.path.blocks),
            summed=self.path.summed,
        )
        self.parts += 1
        self.show(self.parts * CHUNK)
        return found


def _chained(ups: np.ndarray, downs: np.ndarray) -> tuple[float, float, float]:
    """Sum of Bennett's ratios over neighbours, its error across ladders, and effective draws.

    Increments are ``(steps, ladders, replicas - 1)``: of a replica towards its upper neighbour, and
    of that neighbour towards it.
    """
    total, parts = 0.0, np.zeros(ups.shape[:2])
    for gap in range(ups.shape[2]):
        found = bennett_ratio(ups[:, :, gap], downs[:, :, gap])
        total += found.log_ratio
        parts += found.forward + found.reverse
    count = ups.shape[1]
    variance = count / (count - 1) * float((parts.sum(axis=0) ** 2).sum())
    independent = float((parts**2).sum())
    draws = ups.shape[0] * count
    ess = draws * min(1.0, independent / variance) if variance > 0 else float(draws)
    return total, math.sqrt(variance), ess


@functools.partial(jax.jit, static_argnames=("kernel", "summed"))
def _temper(
    rng_key: Key,
    ladders: Replicas,
    base: EnergyModel,
    target: EnergyModel,
    betas: jax.Array,
    *,
    kernel: TemperingKernel,
    summed: Step | None,
) -> Any:
    """Ladders after CHUNK steps; mean swap probabilities; increments up and down."""
    count = ladders.parity.shape[0]

    def change(values: Any, beta: jax.Array, new_beta: jax.Array) -> jax.Array:
        return log_ratio(base, target, values, beta, new_beta, summed)

    along = jax.vmap(change)

    def ladder_step(key: jax.Array, replicas: Replicas) -> Any:
        replicas, info = kernel(key, replicas, base, target, betas)
        lower = {name: value[:-1] for name, value in replicas.values.items()}
        upper = {name: value[1:] for name, value in replicas.values.items()}
        up, down = along(lower, betas[:-1], betas[1:]), along(upper, betas[1:], betas[:-1])
        return replicas, (info.swap_prob, up, down)

    def step(ladders: Replicas, key: jax.Array) -> Any:
        return jax.vmap(ladder_step)(_random.split(key, count), ladders)

    ladders, (swap_prob, up, down) = jax.lax.scan(step, ladders, _random.split(rng_key, CHUNK))
    return ladders, (swap_prob.mean(axis=(0, 1)), up, down)
