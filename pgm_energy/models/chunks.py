"""Rows in chunks: sums over them in bounded memory, and patterns of what is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy.sites import Site

__all__ = ["Chunks", "PartialRows", "arrange", "encoded", "sum_over"]


class Chunks(NamedTuple):
    """Rows in equal chunks; the last one is filled up with rows of weight zero.

    Attributes
    ----------
    rows
        Raw values ``(chunks, n, D)``; NaN where missing.
    weights
        ``(chunks, n)``, not negative.
    patterns
        The different masks of seen units in each chunk, ``(chunks, P, D)``, or None where nothing
        is missing.
    pattern
        Which of them each row has, ``(chunks, n)``, or None.
    """

    rows: jax.Array
    weights: jax.Array
    patterns: jax.Array | None
    pattern: jax.Array | None


class PartialRows(NamedTuple):
    """Encoded rows of which some units were not seen.

    Attributes
    ----------
    values
        ``(n, D, ...)``, zero where not seen.
    seen
        ``(n, D)``, 1 or 0.
    patterns
        The different rows of ``seen``, ``(P, D)``.
    pattern
        Which of them each row has, ``(n,)``.
    """

    values: jax.Array
    seen: jax.Array
    patterns: jax.Array
    pattern: jax.Array


def arrange(rows: np.ndarray, weights: np.ndarray, size: int, missing: bool = False) -> Chunks:
    """Return rows ``(N, D)`` in chunks of at most ``size``, all of them equally long.

    Rows with the same units missing come one after another, so that a chunk has few patterns.
    """
    count = -(-len(rows) // size)
    size = -(-len(rows) // count)
    if not missing:
        folded = [jnp.asarray(_fold(x, count, size)) for x in (rows, weights)]
        return Chunks(folded[0], folded[1], None, None)
    masks, which, often = np.unique(
        ~np.isnan(rows), axis=0, return_inverse=True, return_counts=True
    )
    common = np.argsort(-often, kind="stable")
    rank = np.argsort(common)[which.reshape(-1)]
    order = np.argsort(rank, kind="stable")
    rank = _fold(rank[order], count, size)
    first = rank[:, :1]
    pattern = np.maximum(rank - first, 0)  # the rows of weight zero at the end have any
    most = 1 << int(pattern.max()).bit_length()  # few different numbers, so few compilations
    held = np.minimum(first + np.arange(min(most, size)), len(masks) - 1)
    return Chunks(
        jnp.asarray(_fold(rows[order], count, size)),
        jnp.asarray(_fold(weights[order], count, size)),
        jnp.asarray(masks[common][held]),
        jnp.asarray(pattern, jnp.int32),
    )


def _fold(values: np.ndarray, count: int, size: int) -> np.ndarray:
    """Values ``(N, ...)`` as ``(count, size, ...)``, zeros at the end."""
    padded = np.zeros((count * size, *values.shape[1:]), values.dtype)
    padded[: len(values)] = values
    return padded.reshape(count, size, *values.shape[1:])


def encoded(site: Site, chunk: Chunks, kind: Any) -> Any:
    """Return T(x) of one chunk in a floating type: an array, or :class:`PartialRows`."""
    if chunk.patterns is None or chunk.pattern is None:
        return site.encode(chunk.rows).astype(kind)
    seen = ~jnp.isnan(chunk.rows)
    values = jnp.where(seen, chunk.rows, site.filler)
    if site.is_discrete:
        values = site.encode(site.cast(values))
    mask = seen.reshape(*seen.shape, *(1 for _ in site.event))
    values = jnp.where(mask, values, 0.0).astype(kind)
    return PartialRows(values, seen.astype(kind), chunk.patterns, chunk.pattern)


def sum_over(function: Callable[..., Any], chunks: Any) -> Any:
    """Return the sum of a function's trees over chunks, one after another.

    Sums are kept in the widest floating type that is on: float64 inside ``jax.enable_x64``.
    """
    wide = jnp.result_type(float)

    def widen(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(wide), tree)

    first = jax.tree.map(lambda leaf: leaf[0], chunks)
    shapes = jax.eval_shape(function, first)
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, wide), shapes)

    def add(total: Any, chunk: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, widen(function(chunk))), None

    return jax.lax.scan(add, zero, chunks)[0]
