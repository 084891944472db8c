"""What learners do with latent sites: sum them out, or draw them by clamped chains."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.kernels.gibbs import GibbsKernel, random_configuration
from pgm_energy.structure import Blocks, blocks
from pgm_energy.transforms.marginalize import marginalize

__all__ = ["as_raw", "draw_latents", "quiet_schedule", "sum_out", "sums_out"]

Values = dict[str, jax.Array]


def sum_out(model: EnergyModel) -> EnergyModel:
    """Return the free energy: the model with all latent sites summed out, one after another.

    Raises
    ------
    ValueError
        If latent units interact.
    """
    for name in model.latent_sites:
        model = marginalize(model, name)
    return model


def quiet_schedule(model: EnergyModel) -> Blocks:
    """Return the schedule without its warning, which ``run`` has given once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return blocks(model)


def sums_out(model: EnergyModel) -> bool:
    """Whether all latent sites can be summed out exactly."""
    try:
        sum_out(model)
    except ValueError:
        return False
    return True


def as_raw(model: EnergyModel, values: Mapping[str, Any]) -> Values:
    """Raw values of rows; grey levels are thresholded where a chain must start at bits."""
    raw = {}
    for name, value in values.items():
        site = model.sites[name]
        grey = site.is_discrete and jnp.issubdtype(value.dtype, jnp.floating)
        raw[name] = site.cast(value >= 0.5) if grey else site.cast(value)
    return raw


def draw_latents(
    rng_key: Key,
    model: EnergyModel,
    schedule: Blocks,
    rows: Mapping[str, Any],
    start: Values,
    num: int,
) -> Values:
    """Latent values given rows: clamped chains of ``num`` sweeps."""
    kernel = GibbsKernel(schedule.restrict(model.latent_sites))
    raw = as_raw(model, rows)
    count = len(next(iter(raw.values())))

    def one(key: jax.Array, row: Values, latents: Values) -> Values:
        first, key = jax.random.split(key)
        values = {**random_configuration(first, model), **row, **latents}

        def sweep(values: Values, k: jax.Array) -> tuple[Values, None]:
            return kernel(k, values, model)[0], None

        values = jax.lax.scan(sweep, values, jax.random.split(key, num))[0]
        return {name: values[name] for name in model.latent_sites}

    return jax.vmap(one)(jax.random.split(rng_key, count), raw, start)
