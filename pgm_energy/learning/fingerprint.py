"""What a run depends on, as words that can be compared and read: the settings of a checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._struct import StaticArray, is_static
from pgm_energy.energy import EnergyModel

__all__ = ["differences", "digest", "fingerprint"]

#: Arrays up to this size are written out, larger ones are told by their digest.
_SHORT_ARRAY = 8
#: Settings that a message names.
_NAMED = 4

Words = dict[str, str]


def fingerprint(**settings: Any) -> Words:
    """Return settings as flat words: plain values, functions with what they close over, arrays.

    Notes
    -----
    An optax optimiser is a pair of closures, so its rates and schedules are found in there. Of a
    model the structure counts, not the parameters. Two functions of one name that differ in
    other things than their floating constants and closures are not told apart.
    """
    words: Words = {}
    for name, value in settings.items():
        _describe(value, name, words, {})
    return words


def differences(then: Words, now: Words) -> list[str]:
    """Return what is not as it was, one sentence each."""
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    told = [
        f"{name} was {then.get(name, 'absent')}, is {now.get(name, 'absent')}"
        for name in names[:_NAMED]
    ]
    return told + ([f"and {len(names) - _NAMED} more"] if len(names) > _NAMED else [])


def digest(array: Any) -> str:
    """Return a short digest of an array's shape, type and bytes."""
    values = np.asarray(array)
    words = hashlib.sha256(f"{values.dtype}{values.shape}".encode())
    words.update(np.array(values, order="C").data.cast("B") if values.size else b"")
    return words.hexdigest()[:16]


def _describe(value: Any, name: str, words: Words, seen: dict[int, Any]) -> None:
    """Add the words of one value, and of what it holds, under its name."""
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    if value is None or isinstance(value, bool | int | float | str):
        words[name] = value if isinstance(value, str) else repr(value)
        return
    if isinstance(value, np.generic | np.ndarray | jax.Array | StaticArray):
        words[name] = _array(np.asarray(value))
        return
    if isinstance(value, ModuleType):
        words[name] = value.__name__
        return
    if callable(value) and not isinstance(value, type):
        value = inspect.unwrap(value)
    named = isinstance(value, type | FunctionType)
    words[name] = _qualified(value if named else type(value))
    if id(value) in seen or isinstance(value, type):
        return
    seen[id(value)] = value  # functions may close over themselves
    for suffix, part in _held(value).items():
        _describe(part, name + suffix, words, seen)


def _held(value: Any) -> dict[str, Any]:
    """What an object holds: items, fields, arguments, the closure of a function."""
    if isinstance(value, EnergyModel):
        return _structure(value)
    if isinstance(value, Mapping):
        return {f"[{key!r}]": part for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {f".{key}": getattr(value, key) for key in value._fields}
    if isinstance(value, tuple | list):
        return {f"[{i}]": part for i, part in enumerate(value)}
    if isinstance(value, functools.partial):
        return {".func": value.func, ".args": value.args, ".keywords": value.keywords}
    if isinstance(value, MethodType):
        return {".function": value.__func__, ".self": value.__self__}
    if dataclasses.is_dataclass(value):
        return {f".{f.name}": getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, FunctionType):
        return _closure(value)
    return {f".{key}": part for key, part in getattr(value, "__dict__", {}).items()}


def _structure(model: EnergyModel) -> dict[str, Any]:
    """Types and shapes of a model's parameters, and its static fields."""
    held: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        held[jax.tree_util.keystr(path)] = f"{jnp.result_type(leaf)} {jnp.shape(leaf)}"
    if dataclasses.is_dataclass(model):
        for field in dataclasses.fields(model):
            value = getattr(model, field.name)
            if is_static(field) or isinstance(value, EnergyModel):
                held[f".{field.name}"] = value
    return held


def _closure(function: FunctionType) -> dict[str, Any]:
    """What a function closes over, its defaults, and the floating numbers in its code."""
    held: dict[str, Any] = {}
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    for name, cell in cells:
        with contextlib.suppress(ValueError):  # a cell that is empty yet
            held[f".{name}"] = cell.cell_contents
    constants = [x for x in function.__code__.co_consts if isinstance(x, float)]
    if constants:
        held[" (constants)"] = constants
    if function.__defaults__:
        held[" (defaults)"] = function.__defaults__
    return held


def _array(array: np.ndarray) -> str:
    if array.size <= _SHORT_ARRAY:
        return f"{array.dtype} {array.tolist()}"
    return f"{array.dtype} {array.shape} {digest(array)}"


def _qualified(owner: Any) -> str:
    return f"{owner.__module__}.{owner.__qualname__}"
