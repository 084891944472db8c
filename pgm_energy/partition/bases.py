"""Where a path begins: a model with known log Z that is near, and can be drawn from."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from pgm_energy import _random
from pgm_energy._data import as_rows
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.exact_law import exact
from pgm_energy.fitted_base import fitted_base
from pgm_energy.kernels.gibbs import GibbsKernel, random_configuration
from pgm_energy.models.independent import Independent
from pgm_energy.partition.path import draw_independent
from pgm_energy.structure import Blocks, blocks
from pgm_energy.transforms import temper

__all__ = ["Base", "find_base"]

#: Rows of data that latent sites are drawn for, and sweeps where latent units interact.
NUM_ROWS, LATENT_SWEEPS = 512, 20


@dataclasses.dataclass(frozen=True)
class Base:
    """The model at beta = 0.

    Attributes
    ----------
    model
        Independent units, or any model small enough to be enumerated.
    log_partition
        Its log Z, nats.
    description
        What it is, in words.
    rows
        Complete configurations made of data rows, raw values by site; None without data.
    """

    model: EnergyModel
    log_partition: float
    description: str
    rows: dict[str, jax.Array] | None

    def draw(self, rng_key: Key, num: int) -> dict[str, jax.Array]:
        """Return ``num`` independent configurations, raw values by site."""
        if isinstance(self.model, Independent):
            return draw_independent(rng_key, self.model, num)
        return exact(self.model).sample(rng_key, num)


def find_base(rng_key: Key, model: EnergyModel, base: EnergyModel | None, data: Any) -> Base:
    """Return the base that was given, one fitted to data, or one fitted to the model itself.

    Raises
    ------
    TypeError
        If the base is no energy model.
    ValueError
        If the base has other sites or is too large to be enumerated, or on data outside the
        support.
    """
    rows = None if data is None else as_rows(model, data)
    row_key, fit_key = jax.random.split(rng_key)
    complete = None if rows is None else _complete(row_key, model, rows)
    if base is not None:
        return _given(base, model, complete)
    if rows is None:
        template = Independent.like(model)
        fitted = fitted_base(fit_key, model, template, {}, blocks=blocks(model))
        words = "fitted to a short block-Gibbs run"
    else:
        assert complete is not None
        fitted = Independent.like(model, {**complete, **rows})
        count = len(next(iter(rows.values())))
        words = f"fitted to {count} row{'s' if count != 1 else ''} of data"
    log_z = float(fitted.known_log_partition)
    return Base(fitted, log_z, f"independent units {words}", complete)


def _given(base: EnergyModel, model: EnergyModel, complete: Any) -> Base:
    if not isinstance(base, EnergyModel):
        raise TypeError(f"base must be an energy model, got {type(base).__name__}")
    temper(base, model, 0.5)  # refuses other sites
    if isinstance(base, Independent):
        log_z = float(base.known_log_partition)
        return Base(base, log_z, "the given independent units", complete)
    try:
        log_z = exact(base).log_partition
    except ValueError as error:
        raise ValueError(
            "the base must be independent units (Independent.like) or small enough to be "
            f"enumerated and drawn from: {error}"
        ) from error
    return Base(base, log_z, f"the given {base.title}", complete)


def _complete(rng_key: Key, model: EnergyModel, rows: dict[str, np.ndarray]) -> Any:
    """Rows of data with latent sites drawn given them, raw values by site."""
    count = len(next(iter(rows.values())))
    pick_key, draw_key = jax.random.split(rng_key)
    chosen = np.asarray(jax.random.choice(pick_key, count, (NUM_ROWS,)))
    picked = {name: value[chosen] for name, value in rows.items()}
    latent = model.latent_sites
    if not latent:
        clamped = model.clamp(picked)
        return {name: site.cast(clamped[name]) for name, site in model.sites.items()}
    schedule = blocks(model).restrict(latent)
    alone = len(schedule.groups) == 1 and all(step.index is None for step in schedule.steps)
    num = 1 if alone else LATENT_SWEEPS
    return _draw_latents(draw_key, model, picked, blocks=schedule, num_sweeps=num)


@functools.partial(jax.jit, static_argnames=("blocks", "num_sweeps"))
def _draw_latents(
    rng_key: Key, model: EnergyModel, rows: Any, *, blocks: Blocks, num_sweeps: int
) -> dict[str, jax.Array]:
    kernel = GibbsKernel(blocks)

    def one(key: jax.Array, row: Any) -> Any:
        first, second = _random.split(key, 2)
        values = model.clamp({**random_configuration(first, model), **row})
        values = {name: site.cast(values[name]) for name, site in model.sites.items()}

        def sweep(values: Any, key: jax.Array) -> Any:
            return kernel(key, values, model)[0], None

        return jax.lax.scan(sweep, values, _random.split(second, num_sweeps))[0]

    count = len(next(iter(rows.values())))
    return jax.vmap(one)(_random.split(rng_key, count), rows)
