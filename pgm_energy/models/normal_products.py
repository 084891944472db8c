"""The E-step and the moments of Gaussian mixtures as two products per chunk of rows.

One product of the coefficients of all components with a chunk gives all scores, and one product of
the shares with the squares (and products of pairs) of its columns gives all moments. That is the
fastest way for up to some sixty columns, and not the most accurate one: deviations from the means
come about as differences, and :func:`magnitude` tells how large what cancels is.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy.models.normal_moments import NormalMoments, Normals

__all__ = ["MAX_COLUMNS", "magnitude", "moments", "num_features", "scores"]

#: With more columns the D^2 / 2 features of a row outgrow the cache, and plain products are fast.
MAX_COLUMNS = 64


def num_features(normals_are_matrices: bool, width: int) -> int:
    """Return the number of features of a row."""
    return (width * (width + 1) // 2 if normals_are_matrices else width) + width + 1


def scores(normals: Normals, rows: jax.Array, fastest: bool) -> jax.Array:
    """Return log w_k + log p_k of rows ``(N, D)``: ``(K, N)``, nats.

    ``fastest``: full covariances also by products of pairs of columns, half the work.
    """
    kind, constants, columns = rows.dtype, normals.constants(), rows.T
    if normals.matrices and not normals.tied and fastest:
        precisions = _precisions(normals)
        linear = jnp.einsum("kij,kj->ki", precisions, normals.means)
        left, right = np.triu_indices(len(columns))
        quadratic = precisions[:, left, right] * -np.where(left == right, 0.5, 1.0)
        ends = constants - 0.5 * jnp.sum(linear * normals.means, axis=1)
        table = jnp.concatenate([quadratic, linear, ends[:, None]], axis=1)
        return table.astype(kind) @ _features(rows, True)
    if normals.matrices and not normals.tied:
        offsets = jnp.einsum("kij,kj->ki", normals.whiteners, normals.means).astype(kind)
        count, width = offsets.shape
        white = normals.whiteners.astype(kind).reshape(count * width, width) @ columns
        white = white.reshape(count, width, -1) - offsets[:, :, None]
        return constants.astype(kind)[:, None] - 0.5 * jnp.sum(white**2, axis=1)
    precisions = _precisions(normals)
    linear = normals.means @ precisions[0] if normals.matrices else precisions * normals.means
    ends = constants - 0.5 * jnp.sum(linear * normals.means, axis=1)
    table = jnp.concatenate([linear, ends[:, None]], axis=1)
    if normals.matrices:
        white = normals.whiteners[0].astype(kind) @ columns
        return table.astype(kind) @ _with_ones(columns) - 0.5 * jnp.sum(white**2, axis=0)
    table = jnp.concatenate([-0.5 * precisions, table], axis=1)
    return table.astype(kind) @ _features(rows, False)


def moments(normals: Normals, rows: jax.Array, share: jax.Array) -> NormalMoments:
    """Return moments about the origin of rows ``(N, D)``, shares ``(K, N)``."""
    width = rows.shape[1]
    if normals.tied:
        sums = share @ _with_ones(rows.T).T
        weighted = jnp.sum(share, axis=0)[:, None] * rows
        second = (weighted.T @ rows)[None]
        first, mass = sums[:, :width], sums[:, -1]
    else:
        sums = share @ _features(rows, normals.matrices).T
        first, mass = sums[:, -width - 1 : -1], sums[:, -1]
        second = sums[:, :width]
        if normals.matrices:
            left, right = np.triu_indices(width)
            place = np.zeros((width, width), int)
            place[left, right] = place[right, left] = np.arange(len(left))
            second = sums[:, place]
    return NormalMoments(mass, jnp.broadcast_to(mass[:, None], first.shape), first, second)


def _features(rows: jax.Array, pairs: bool) -> jax.Array:
    """Products of columns, columns, and 1: ``(F, N)``."""
    columns = rows.T
    squares = [columns**2]
    if pairs:
        squares = [columns[i:] * columns[i] for i in range(columns.shape[0])]
    return jnp.concatenate([*squares, _with_ones(columns)])


def _with_ones(columns: jax.Array) -> jax.Array:
    return jnp.concatenate([columns, jnp.ones((1, columns.shape[1]), columns.dtype)])


def _precisions(normals: Normals) -> jax.Array:
    if not normals.matrices:
        return normals.whiteners**2
    return jnp.swapaxes(normals.whiteners, -1, -2) @ normals.whiteners


def magnitude(normals: Normals, fastest: bool) -> jax.Array:
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
    if normals.tied or fastest:
        return squares
    terms = jnp.abs(normals.whiteners) @ size[..., None]
    return jnp.maximum(jnp.max(jnp.sum(terms, axis=(1, 2))), 0.01 * squares)
