"""Contestants of this package: pure kernels and NumPyro kernels, scanned."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

import pgm_energy as pgm
from benchmarks.timing import Scan
from pgm_energy.kernels.gibbs import random_configuration


def starts(model: pgm.EnergyModel, num_chains: int, seed: int) -> dict[str, jax.Array]:
    """Random configurations, ``(num_chains, ...)`` by site."""
    keys = jax.random.split(jax.random.key(seed), num_chains)
    return jax.jit(jax.vmap(lambda key: random_configuration(key, model)))(keys)


def row_units(step: Any, size: int) -> list[np.ndarray]:
    """Flat units of each row of a step of a schedule, without what pads a row."""
    if step.index is None:
        return [np.arange(size)]
    if step.mask is None:
        return list(step.index.array)
    return [row[valid] for row, valid in zip(step.index.array, step.mask.array, strict=True)]


class PureSweep(Scan):
    """Scan of the pure block-Gibbs kernel over chains; info that nobody reads costs nothing."""

    def __init__(self, model: pgm.EnergyModel, num_chains: int, seed: int) -> None:
        self.blocks = pgm.blocks(model)
        self.kernel = pgm.gibbs_kernel(self.blocks)
        self.scan_kernel(self.kernel, model, num_chains, seed)

    def scan_kernel(self, kernel: Any, model: Any, num_chains: int, seed: int) -> None:
        def step(key: jax.Array, state: Any, model: Any) -> Any:
            keys = jax.random.split(key, num_chains)
            return jax.vmap(lambda key, x: kernel(key, x, model)[0])(keys, state)

        super().__init__(step, starts(model, num_chains, seed), model, lambda state: state)


class NumPyroSweep(Scan):
    """Scan of the ``sample`` method of any NumPyro kernel with a discrete ``z``.

    The kernel's energy is part of its state and is paid for.
    """

    def __init__(self, kernel: Any, model: pgm.EnergyModel, num_chains: int, seed: int) -> None:
        def first(key: jax.Array, start: Any) -> Any:
            return kernel.init(key, num_warmup=0, init_params=start, model_args=(), model_kwargs={})

        start = starts(model, num_chains, seed)
        start = {name: model.sites[name].cast(value) for name, value in start.items()}
        keys = jax.random.split(jax.random.key(seed + 1_000_003), num_chains)
        # the first chain alone: some kernels look at their model here, outside of any trace
        one = first(keys[0], jax.tree.map(lambda x: x[0], start))
        many = jax.vmap(lambda key, z: _with_start(kernel, one, key, z))(keys, start)

        def step(key: jax.Array, state: Any, arguments: Any) -> Any:
            del key, arguments  # the kernel's state has its own
            return jax.vmap(lambda state: kernel.sample(state, (), {}))(state)

        super().__init__(step, many, (), lambda state: state.z)


def _with_start(kernel: Any, one: Any, key: jax.Array, z: Any) -> Any:
    z = jax.tree.map(lambda new, old: new.astype(old.dtype), z, one.z)
    return kernel.refresh(one._replace(z=z, rng_key=key), (), {})


class BlockGibbsSweep(NumPyroSweep):
    """``pgm.BlockGibbs`` through its NumPyro interface."""

    def __init__(self, model: pgm.EnergyModel, num_chains: int, seed: int) -> None:
        adapter = pgm.BlockGibbs(model)
        self.blocks = adapter.blocks
        self.kernel = pgm.gibbs_kernel(self.blocks)
        super().__init__(adapter, model, num_chains, seed)


class SwendsenWangSweep(PureSweep):
    """Scan of the pure Swendsen-Wang kernel."""

    def __init__(self, model: pgm.EnergyModel, num_chains: int, seed: int) -> None:
        from pgm_energy.kernels import swendsen_wang_kernel

        self.kernel = swendsen_wang_kernel(model)
        self.blocks = None
        self.scan_kernel(self.kernel, model, num_chains, seed)
