"""Functions of a configuration that are looked at instead of the configuration, checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy.energy import EnergyModel

__all__ = ["Observables", "check_observables", "observe"]

#: A function of one configuration (raw values of every site, integers as int32) by name.
Observables = Mapping[str, Callable[[dict[str, jax.Array]], Any]]
#: What JAX raises where a shape or a branch depends on values.
_VALUES_NEEDED = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def check_observables(model: EnergyModel, observables: Observables | None) -> dict[str, Any]:
    """Return observables that give one array of a fixed shape each; None means none.

    Raises
    ------
    TypeError
        If they are no dict of functions of one argument, or one gives no array of numbers.
    ValueError
        If one has the name of a site, or a shape that depends on the values.

    Notes
    -----
    Each is traced once, on shapes; nothing is computed.
    """
    if observables is None:
        return {}
    if not isinstance(observables, Mapping):
        raise TypeError(
            f"observables is a dict of functions by name, got {type(observables).__name__}"
        )
    shapes = {k: jax.ShapeDtypeStruct(s.shape, s.dtype) for k, s in model.sites.items()}
    for name, function in observables.items():
        if not callable(function):
            raise TypeError(f"observable {name!r} must be a function, got {function!r}")
        if name in model.sites:
            raise ValueError(
                f"observable {name!r} has the name of a site of {model.title}: choose another "
                "name, so that nobody takes its values for draws of the site"
            )
        _check_signature(name, function)
        _check_one(name, function, shapes)
    return dict(observables)


def _check_signature(name: str, function: Any) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of some compiled functions
        return
    try:
        signature.bind({})
    except TypeError:
        raise TypeError(
            f"observable {name!r} must take one argument, a dict of values by site, such as "
            f"lambda x: x['v'].sum(); it takes {signature}"
        ) from None


def _check_one(name: str, function: Any, shapes: dict[str, jax.ShapeDtypeStruct]) -> None:
    def look(values: dict[str, jax.Array]) -> jax.Array:
        out = function(_wide(values))
        if not isinstance(out, jax.Array | np.ndarray | np.generic | float | int):
            raise TypeError(
                f"observable {name!r} must return one array of numbers, got "
                f"{type(out).__name__}: give every array a name of its own, or stack them"
            )
        return jnp.asarray(out)

    try:
        jax.eval_shape(look, shapes)
    except _VALUES_NEEDED as error:
        raise ValueError(
            f"observable {name!r} must return an array whose shape does not depend on the "
            "values, by jax.numpy operations on them: write a mask or jnp.where instead of "
            "selecting by a condition, and jnp instead of np"
        ) from error
    except KeyError as error:
        raise ValueError(
            f"observable {name!r} asks for {error}; a configuration has "
            + ", ".join(repr(site) for site in shapes)
        ) from error


def observe(observables: Observables, values: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Return the observables of one configuration of raw values, integers as int32."""
    return {name: jnp.asarray(function(_wide(values))) for name, function in observables.items()}


def _wide(values: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Values that can be added and multiplied: a product of stored int8 vectors would overflow."""
    wide = {name: jnp.asarray(value) for name, value in values.items()}
    return {
        name: value.astype(jnp.int32) if jnp.issubdtype(value.dtype, jnp.integer) else value
        for name, value in wide.items()
    }
