"""Parameters in general position: where the structure of a model is probed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._struct import Key

if TYPE_CHECKING:
    from pgm_energy.energy import EnergyModel

__all__ = ["Fill", "first_finite"]

#: One way to give a leaf random values: ``(rng_key, leaf) -> array`` of the leaf's shape.
Fill = Callable[[Any, Any], Any]


def first_finite[M: EnergyModel](title: str, make: Callable[[Fill], M]) -> M:
    """Return the first of the models made with one way to fill leaves whose energy is finite.

    Raises
    ------
    ValueError
        If none is, saying what to override.
    """
    for fill in (_normal, _uniform, _near):
        candidate = make(fill)
        if _is_finite_somewhere(candidate):
            return candidate
    raise ValueError(
        f"the energy of {title} is not finite at random parameters, where its "
        "structure is probed; override generic(rng_key) to return valid random parameters"
    )


def _is_finite_somewhere(model: EnergyModel) -> bool:
    """Whether the energy is never NaN, and finite at some of a few random configurations."""
    rng = np.random.default_rng(0)
    values = {}
    for name, site in model.sites.items():
        shape = (16, *site.shape)
        values[name] = (
            rng.choice(site.states, shape) if site.is_discrete else rng.normal(size=shape)
        )
    energies = np.asarray(_energies(model, values))
    return bool(np.isfinite(energies).any() and not np.isnan(energies).any())


@jax.jit
def _energies(model: EnergyModel, values: Any) -> jax.Array:
    return jax.vmap(lambda row: model.energy(**model.encode(row)))(values)


def _normal(rng_key: Key, leaf: Any) -> jax.Array:
    return _scaled_normal(rng_key, jnp.shape(leaf))


@functools.partial(jax.jit, static_argnames=("shape",))
def _scaled_normal(rng_key: Key, shape: tuple[int, ...]) -> jax.Array:
    scale = 1.0 / np.sqrt(max(shape)) if len(shape) > 1 else 1.0
    return scale * jax.random.normal(rng_key, shape, jnp.result_type(float))


def _uniform(rng_key: Key, leaf: Any) -> jax.Array:
    return jax.random.uniform(
        rng_key, jnp.shape(leaf), jnp.result_type(float), minval=0.1, maxval=0.9
    )


def _near(rng_key: Key, leaf: Any) -> jax.Array:
    """Values near the given ones: they stay valid where validity is an open condition."""
    if isinstance(leaf, jax.core.Tracer):
        return _normal(rng_key, leaf)
    return jnp.asarray(leaf, jnp.result_type(float)) + 0.1 * _normal(rng_key, leaf)
