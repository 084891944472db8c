"""Checks at the door that every public function shares."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._struct import Key

__all__ = ["require_count", "require_key"]


def require_key(rng_key: Any) -> jax.Array:
    """Return ``rng_key`` if it is one JAX random key, typed or legacy.

    Raises
    ------
    TypeError
        Saying what came instead.
    """
    if isinstance(rng_key, jax.Array | np.ndarray):
        if jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key) and rng_key.shape == ():
            return jnp.asarray(rng_key)
        if rng_key.dtype == np.uint32 and rng_key.shape == (2,):
            return jnp.asarray(rng_key)
        came = f"an array of dtype {rng_key.dtype} and shape {rng_key.shape}"
    else:
        came = f"{type(rng_key).__name__} {rng_key!r}"
    raise TypeError(f"rng_key must be one JAX random key, such as jax.random.key(0), got {came}")


def is_key_batch(rng_key: Key) -> bool:
    """Whether ``rng_key`` holds several keys, as NumPyro passes them for vectorised chains.

    Raises
    ------
    TypeError
        If it is neither one key nor a row of keys.
    """
    rank = getattr(rng_key, "ndim", 0)
    typed = rank and jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key)
    if (typed and rank == 1) or (not typed and rank == 2):
        require_key(rng_key[0])
        return True
    require_key(rng_key)
    return False


def require_count(name: str, value: Any, minimum: int = 1) -> int:
    """Return ``value`` as an integer of at least ``minimum``.

    Raises
    ------
    ValueError
        Naming the argument and what came.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")
    return int(value)


__all__ += ["is_key_batch"]
