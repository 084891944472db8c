"""The models that are timed, and small ones of the same families with a known exact law."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import pgm_energy as pgm

#: Critical coupling of the square lattice: log(1 + sqrt 2) / 2.
CRITICAL = 0.5 * float(np.log1p(np.sqrt(2.0)))


def rbm(seed: int, num_visible: int, num_hidden: int) -> pgm.RBM:
    """Binary RBM with couplings of a size at which chains move."""
    keys = jax.random.split(jax.random.key(seed), 3)
    scale = 2.0 / np.sqrt(num_visible + num_hidden)
    return pgm.RBM(
        weights=scale * jax.random.normal(keys[0], (num_visible, num_hidden)),
        visible_bias=0.2 * jax.random.normal(keys[1], (num_visible,)),
        hidden_bias=0.2 * jax.random.normal(keys[2], (num_hidden,)),
    )


def dense(seed: int, num_units: int) -> pgm.BoltzmannMachine:
    """Fully connected binary Boltzmann machine."""
    weight_key, bias_key = jax.random.split(jax.random.key(seed))
    draw = jax.random.normal(weight_key, (num_units, num_units)) / np.sqrt(num_units)
    upper = jnp.triu(draw, 1)
    bias = 0.2 * jax.random.normal(bias_key, (num_units,))
    return pgm.BoltzmannMachine(weights=upper + upper.T, bias=bias)


def torus(side: int, coupling: float = 0.9 * CRITICAL) -> pgm.SparseBoltzmannMachine:
    """Ising spins on a square torus."""
    return pgm.ising_lattice((side, side), coupling=coupling)


def small_torus(seed: int) -> pgm.SparseBoltzmannMachine:
    """Return a torus of 16 spins, with a field that tells the two signs apart."""
    return pgm.ising_lattice((4, 4), 0.2, 0.3 * jax.random.normal(jax.random.key(seed), (4, 4)))


def irregular(
    seed: int, num_units: int = 4264, degrees: tuple[int, int] = (6, 15)
) -> pgm.SparseBoltzmannMachine:
    """Spins on a random simple graph, degrees drawn evenly from the range."""
    rng = np.random.default_rng(seed)
    edges = irregular_edges(rng, num_units, degrees)
    return pgm.SparseBoltzmannMachine.from_edges(
        edges,
        rng.normal(scale=0.2, size=len(edges)).astype(np.float32),
        rng.normal(scale=0.2, size=num_units).astype(np.float32),
        unit=pgm.Spin,
    )


def irregular_edges(
    rng: np.random.Generator, num_units: int, degrees: tuple[int, int]
) -> np.ndarray:
    """Return edges of a random simple graph: ends paired at random, bad pairs drawn again."""
    wanted = rng.integers(degrees[0], degrees[1] + 1, size=num_units)
    if wanted.sum() % 2:
        wanted[np.argmin(wanted)] += 1
    ends = np.repeat(np.arange(num_units), wanted)
    rng.shuffle(ends)
    pairs = ends.reshape(-1, 2)
    for _ in range(10_000):
        low, high = np.sort(pairs, axis=1).T
        _, first = np.unique(low * num_units + high, return_index=True)
        bad = np.ones(len(pairs), dtype=bool)
        bad[first] = False
        bad |= low == high
        if not bad.any():
            return np.stack([low, high], axis=1).astype(np.int32)
        # swap one end of every bad pair with one of a random pair: degrees stay
        for pair in np.flatnonzero(bad):
            other = rng.integers(len(pairs))
            pairs[pair, 1], pairs[other, 1] = pairs[other, 1], pairs[pair, 1]
    raise ValueError(f"no simple graph of {num_units} units with degrees {degrees} was found")
