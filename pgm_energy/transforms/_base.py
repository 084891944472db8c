"""What the transformations share: the model inside, and batches of samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.natural import Values
from pgm_energy.sites import Site

__all__ = ["held_values", "map_leading", "rebuild", "require_model", "wrapped"]


def wrapped(model: EnergyModel, rng_key: Key, fill: Callable[..., Any]) -> Any:
    """The inner model in general position."""
    return model._generic(rng_key, fill)


def map_leading(
    fn: Callable[..., Any], rng_key: Key, samples: Values, site: Site, name: str
) -> Any:
    """Apply ``fn(rng_key, values)`` to every configuration of batched samples."""
    lead = np.shape(samples[name])[: np.ndim(samples[name]) - len(site.shape)]
    if not lead:
        return fn(rng_key, dict(samples))
    count = math.prod(lead)
    flat = {k: jnp.reshape(v, (count, *np.shape(v)[len(lead) :])) for k, v in samples.items()}
    out = jax.vmap(fn)(jax.random.split(rng_key, count), flat)
    return {k: v.reshape(lead + v.shape[1:]) for k, v in out.items()}


def held_values(model: EnergyModel) -> dict[str, np.ndarray]:
    """Raw values by site of the units that the model holds, fillers where ``free_units``."""
    blank = {n: jnp.full(s.shape, s.filler, s.dtype) for n, s in model.sites.items()}
    return {name: np.asarray(value) for name, value in model.clamp(blank).items()}


def rebuild(model: Any, /, **changes: Any) -> Any:
    """A copy of a transformation with other leaves, not checked again (they may be traced)."""
    copy = object.__new__(type(model))
    for name in model.__dataclass_fields__:
        object.__setattr__(copy, name, changes.get(name, getattr(model, name)))
    return copy


def require_model(model: Any, function: str) -> EnergyModel:
    """Return ``model`` if it is an energy model.

    Raises
    ------
    TypeError
        Naming the function and what came.
    """
    if not isinstance(model, EnergyModel):
        raise TypeError(f"{function} takes an energy model, got {type(model).__name__}")
    return model
