"""What no sampler can undercut: its matrix products, its random words, its bytes."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pgm_energy as pgm
from benchmarks.timing import Scan


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one sweep of all chains needs, whatever the code.

    ``flops``: floating-point operations. ``bytes``: parameters read once and states read and
    written once, as stored. ``decisions``: random choices, one per unit.
    """

    flops: float
    bytes: float
    decisions: float

    @classmethod
    def of(cls, model: pgm.EnergyModel, num_chains: int) -> Cost:
        """Count for a pairwise model: two operations per coupling of a unit, and per chain."""
        units = sum(site.size for site in model.sites.values())
        if isinstance(model, pgm.RBM):
            per_chain = 2 * 2 * model.weights.size
        elif isinstance(model, pgm.BoltzmannMachine):
            per_chain = 2 * model.weights.size
        else:
            per_chain = 2 * 2 * len(model.pair_couplings()[0])
        parameters = 4 * sum(leaf.size for leaf in jax.tree.leaves(model))
        return cls(
            float(per_chain * num_chains),
            float(parameters + 2 * units * num_chains),
            float(units * num_chains),
        )


class RBMProducts(Scan):
    """The two matrix products of an RBM sweep and nothing else."""

    chains_last = False

    def __init__(self, model: pgm.RBM, num_chains: int, seed: int) -> None:
        weights = _unit_norm(model.weights)
        start = jax.random.normal(jax.random.key(seed), (num_chains, weights.shape[0]))
        chains_last = self.chains_last

        def step(key: jax.Array, v: jax.Array, weights: jax.Array) -> jax.Array:
            del key
            return weights @ (weights.T @ v) if chains_last else (v @ weights) @ weights.T

        super().__init__(step, start.T if chains_last else start, weights)


class RBMProductsChainsLast(RBMProducts):
    """The same with one column per chain: on some machines the faster way round."""

    chains_last = True


class DenseProduct(Scan):
    """One product of the couplings with all chains, a column each."""

    def __init__(self, model: pgm.BoltzmannMachine, num_chains: int, seed: int) -> None:
        start = jax.random.normal(jax.random.key(seed), (model.weights.shape[0], num_chains))
        super().__init__(lambda key, x, weights: weights @ x, start, _unit_norm(model.weights))


def _unit_norm(weights: Any) -> jax.Array:
    """Scale to spectral norm 1: repeated products then neither overflow nor vanish."""
    return jnp.asarray(np.asarray(weights) / np.linalg.norm(np.asarray(weights), 2), jnp.float32)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What this machine reaches on the plainest work, float32, all cores or the accelerator."""

    flops: float  # operations per second, a large matrix product
    bandwidth: float  # bytes per second, a sum of two large arrays
    random_words: float  # 32-bit words per second, ``jax.random.bits``

    def seconds(self, cost: Cost) -> tuple[float, float]:
        """Return the least time of a sweep by arithmetic and by memory."""
        return cost.flops / self.flops, cost.bytes / self.bandwidth


def measure_limits(on_accelerator: bool) -> Limits:
    """Measure the limits: the best of several runs each."""
    side = 8192 if on_accelerator else 2048
    length = 2**28 if on_accelerator else 2**25
    words = 2**26 if on_accelerator else 2**22
    key = jax.random.key(0)
    matrix = jax.random.normal(key, (side, side))
    product = _best(jax.jit(lambda a, b: a @ b), matrix, matrix)
    a, b = jnp.ones(length), jnp.ones(length)
    triad = _best(jax.jit(lambda a, b: a + 0.5 * b), a, b)
    bits = _best(jax.jit(lambda key: jax.random.bits(key, (words,))), key)
    return Limits(2.0 * side**3 / product, 12.0 * length / triad, words / bits)


def _best(function: Any, *arguments: Any, repeats: int = 7) -> float:
    jax.block_until_ready(function(*arguments))
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        best = min(best, time.perf_counter() - start)
    return best
