"""The E-step and the moments of Gaussian mixtures as two products per chunk of rows.

One product of the whiteners of all components with a chunk gives all deviations in units of their
laws, and one product of the shares with the squares (and products of pairs) of its columns gives
all moments. That is the fastest way for up to some sixty columns, and not the most accurate one:
deviations from the means come about as differences, and :func:`magnitude` tells how large what
cancels is. Scores as products with pairs of columns would lose 1e3 times more and save nothing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy.models.normal_moments import NormalMoments, Normals

__all__ = ["MAX_COLUMNS", "magnitude", "moments", "num_features", "scores"]

#: With more columns the D^2 / 2 features of a row outgrow the cache, and plain products are fast.
MAX_COLUMNS = 64


def num_features(matrices: bool, width: int) -> int:
    """Return the number of features of a row."""
    return width * (width // 2 + 2 if matrices else 2)


def scores(normals: Normals, rows: jax.Array) -> jax.Array:
    """Return log w_k + log p_k of rows ``(N, D)``: ``(K, N)``, nats."""
    kind, constants = rows.dtype, normals.constants()
    if normals.matrices and not normals.tied:
        # columns come first: a sum of squares over them is then one over whole planes
        whiteners = jnp.swapaxes(normals.whiteners, 0, 1).astype(kind)
        width, count, _ = whiteners.shape
        offsets = jnp.einsum("kij,kj->ik", normals.whiteners, normals.means).astype(kind)
        white = (whiteners.reshape(width * count, width) @ rows.T).reshape(width, count, -1)
        squares = jnp.sum((white - offsets[:, :, None]) ** 2, axis=0)
        return constants.astype(kind)[:, None] - 0.5 * squares
    precisions = _precisions(normals)
    linear = normals.means @ precisions[0] if normals.matrices else precisions * normals.means
    ends = (constants - 0.5 * jnp.sum(linear * normals.means, axis=1)).astype(kind)[:, None]
    if normals.matrices:
        white = normals.whiteners[0].astype(kind) @ rows.T
        return linear.astype(kind) @ rows.T + ends - 0.5 * jnp.sum(white**2, axis=0)
    table = jnp.concatenate([-0.5 * precisions, linear], axis=1)
    return table.astype(kind) @ _features(rows, False).T + ends


def moments(normals: Normals, rows: jax.Array, share: jax.Array) -> NormalMoments:
    """Return moments about the origin of rows ``(N, D)``, shares ``(K, N)``."""
    width, mass = rows.shape[1], jnp.sum(share, axis=1)
    if normals.tied:
        first = share @ rows
        second = ((jnp.sum(share, axis=0)[:, None] * rows).T @ rows)[None]
    else:
        sums = share @ _features(rows, normals.matrices)
        first, second = sums[:, -width:], sums[:, :-width]
        if normals.matrices:
            second = second[:, _places(width)]
    return NormalMoments(mass, jnp.broadcast_to(mass[:, None], first.shape), first, second)


def _features(rows: jax.Array, pairs: bool) -> jax.Array:
    """Products of columns, and columns: ``(N, F)``.

    Pairs are products of the columns with themselves, turned by 0, 1, ... D / 2 places: whole
    registers are multiplied, which rows of a triangle would not fill.
    """
    width = rows.shape[1]
    if not pairs:
        return jnp.concatenate([rows**2, rows], axis=1)
    twice = jnp.concatenate([rows, rows], axis=1)
    turned = [twice[:, turn : turn + width] * rows for turn in range(width // 2 + 1)]
    return jnp.concatenate([*turned, rows], axis=1)


def _places(width: int) -> np.ndarray:
    """Where each pair of columns is among the features: ``(D, D)``."""
    places = np.zeros((width, width), int)
    column = np.arange(width)
    for turn in range(width // 2 + 1):
        other = (column + turn) % width
        places[column, other] = places[other, column] = turn * width + column
    return places


def _precisions(normals: Normals) -> jax.Array:
    if not normals.matrices:
        return normals.whiteners**2
    return jnp.swapaxes(normals.whiteners, -1, -2) @ normals.whiteners


def magnitude(normals: Normals) -> jax.Array:
    """Return the size, nats, of terms whose difference a score is; times eps: its error.

    A hundredth of it for the squares that moments are made of: their error is one of parameters,
    which does less harm to a likelihood near its maximum.
    """
    variances = normals.covariances
    if normals.matrices:
        variances = jnp.diagonal(variances, axis1=-2, axis2=-1)
    size = jnp.sqrt(variances + normals.means**2)
    precisions = jnp.abs(_precisions(normals))
    if not normals.matrices:
        return jnp.max(jnp.sum(precisions * size**2, axis=1))
    squares = jnp.max(jnp.sum(size * (precisions @ size[..., None])[..., 0], axis=1))
    if normals.tied:
        return squares
    terms = jnp.abs(normals.whiteners) @ size[..., None]
    return jnp.maximum(jnp.max(jnp.sum(terms, axis=(1, 2))), 0.01 * squares)
