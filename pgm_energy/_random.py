"""Random numbers: the bits of ``jax.random``, written out where that lets XLA fuse them.

On a CPU ``jax.random`` runs its generator as a loop over whole arrays in memory, which costs more
than the decisions it feeds. The same generator as one expression of the element's number fuses
with what uses the bits. On an accelerator, and for keys of other generators, the library's own
is taken. Bits and split keys equal those of ``jax.random`` (with partitionable Threefry, JAX's
default), so its evidence of quality and of independence between keys carries over.

References
----------
J. Salmon, M. Moraes, R. Dror and D. Shaw (2011), Parallel random numbers: as easy as 1, 2, 3:
Threefry-2x32 with 20 rounds.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._struct import Key

__all__ = ["bits", "decide", "gumbel", "normal", "split", "uniform"]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)
#: The largest number below 1 in single precision.
_BELOW_ONE = np.float32(1.0 - 2.0**-24)


def bits(rng_key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Return uniform ``uint32`` words; equal to ``jax.random.bits``."""
    typed = _typed(rng_key)
    if not _is_threefry(typed) or math.prod(shape) >= 2**32:
        return jax.random.bits(typed, shape, jnp.uint32)

    def written_out(typed: jax.Array) -> jax.Array:
        first, second = _blocks(typed, _numbers(shape))
        return first ^ second

    return _by_platform(written_out, lambda typed: jax.random.bits(typed, shape, jnp.uint32), typed)


def split(rng_key: Key, num: int) -> jax.Array:
    """Return ``num`` new keys; equal to ``jax.random.split``."""
    if not _is_threefry(_typed(rng_key)):
        return jax.random.split(rng_key, num)
    is_typed = jnp.issubdtype(jnp.asarray(rng_key).dtype, jax.dtypes.prng_key)

    def written_out(typed: jax.Array) -> jax.Array:
        # written to memory: fused into what is drawn with them, keys of keys of keys would be
        # worked out again for every use, and XLA compile for ever
        return jax.lax.optimization_barrier(jnp.stack(_blocks(typed, _numbers((num,))), axis=-1))

    def library(typed: jax.Array) -> jax.Array:
        return jax.random.key_data(jax.random.split(typed, num))

    words = _by_platform(written_out, library, _typed(rng_key))
    return jax.random.wrap_key_data(words, impl="threefry2x32") if is_typed else words


def uniform(rng_key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Return uniform numbers strictly inside (0, 1), resolved to 2^-31 near 0."""
    if jax.config.jax_enable_x64:
        return jax.random.uniform(rng_key, shape, jnp.float64) + 2.0**-54
    # through a signed integer, which every CPU converts to floating point at once
    words = (bits(rng_key, shape) >> 1).astype(jnp.int32)
    uniform = (words.astype(jnp.float32) + 0.5) * np.float32(2.0**-31)
    return jnp.minimum(uniform, _BELOW_ONE)  # the top 64 words round to 1


def decide(uniform: jax.Array, logit: jax.Array) -> jax.Array:
    """Return True with probability ``sigmoid(logit)``, as a function of uniform numbers.

    Notes
    -----
    The number is held against the *smaller* of the two probabilities, ``a / (1 + a)`` with
    ``a = exp(-|logit|)``, so that rare events on either side come at their rate down to 2^-32,
    where comparing with ``sigmoid(logit)`` stops at 2^-24 above 1/2. A logit of +-1000 never
    goes the other way.
    """
    smaller = jnp.exp(-jnp.abs(logit))
    return (uniform + uniform * smaller < smaller) ^ (logit > 0)


def gumbel(rng_key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Return standard Gumbel noise, finite; its upper tail is resolved to 2^-31."""
    if jax.config.jax_enable_x64:
        return jax.random.gumbel(rng_key, shape, jnp.float64)
    return -jnp.log(-jnp.log1p(-uniform(rng_key, shape)))


def normal(rng_key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Return standard normal noise."""
    if jax.config.jax_enable_x64:
        return jax.random.normal(rng_key, shape, jnp.float64)
    centred = 2.0 * uniform(rng_key, shape) - 1.0
    inside = jnp.clip(centred, -_BELOW_ONE, _BELOW_ONE)
    return np.float32(math.sqrt(2.0)) * jax.lax.erf_inv(inside)


def _typed(rng_key: Any) -> jax.Array:
    key = jnp.asarray(rng_key)
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)


def _is_threefry(typed: jax.Array) -> bool:
    return str(jax.random.key_impl(typed)) == "threefry2x32"


def _by_platform(on_cpu: Any, elsewhere: Any, typed: jax.Array) -> jax.Array:
    return jax.lax.platform_dependent(typed, cpu=on_cpu, default=elsewhere)


def _numbers(shape: tuple[int, ...]) -> jax.Array:
    """Number of each element in row-major order, as a sum of iotas that fuses."""
    numbers = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = np.uint32(math.prod(shape[axis + 1 :]))
        numbers = numbers + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    return numbers


def _blocks(typed: jax.Array, numbers: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two words per number: Threefry-2x32 of the 64-bit counter, 20 rounds."""
    words = jax.random.key_data(typed)
    keys = (words[0], words[1], words[0] ^ words[1] ^ _PARITY)
    high, low = jnp.broadcast_to(keys[0], numbers.shape), numbers + keys[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            high = high + low
            low = (low << np.uint32(rotation)) | (low >> np.uint32(32 - rotation))
            low = low ^ high
        high = high + keys[(group + 1) % 3]
        low = low + keys[(group + 2) % 3] + np.uint32(group + 1)
    return high, low
