"""Covariances of the components of a mixture: shapes, floors, the nearest valid ones."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["covariance_shape", "nearest_covariances", "raise_floor", "singular"]


def covariance_shape(kind: str, count: int, width: int) -> tuple[int, ...]:
    """Return the shape of the covariances of ``count`` components over ``width`` columns."""
    return {
        "full": (count, width, width),
        "tied": (width, width),
        "diag": (count, width),
        "spherical": (count,),
    }[kind]


def singular(matrix: Any) -> float:
    """Eigenvalue of a correlation matrix that its floating type cannot tell from zero."""
    return float(matrix.shape[-1] * jnp.finfo(matrix.dtype).eps)


def raise_floor(moments: jax.Array, floor: Any, matrices: bool) -> jax.Array:
    """Return the covariance of largest likelihood with no variance below the floor."""
    if not matrices:
        return jnp.maximum(moments, floor)
    moments = 0.5 * (moments + jnp.swapaxes(moments, -1, -2))
    values, vectors = jnp.linalg.eigh(moments)
    raised = (vectors * jnp.maximum(values, floor)[..., None, :]) @ jnp.swapaxes(vectors, -1, -2)
    raised = 0.5 * (raised + jnp.swapaxes(raised, -1, -2))
    # untouched where nothing is below the floor: not even the rounding of a decomposition
    return jnp.where((values[..., 0] >= floor)[..., None, None], moments, raised)


def nearest_covariances(covariances: jax.Array, matrices: bool) -> jax.Array:
    """Symmetric with positive eigenvalues, the identity on what is valid."""
    tiny = jnp.finfo(covariances.dtype).tiny
    if not matrices:
        least = jnp.maximum(1e-6 * jnp.max(covariances), tiny)
        return jnp.where(covariances > 0, covariances, least)
    even = 0.5 * (covariances + jnp.swapaxes(covariances, -1, -2))
    variances = jnp.diagonal(even, axis1=-2, axis2=-1)
    scale = jnp.sqrt(jnp.where(variances > 0, variances, 1.0))
    correlations = even / (scale[..., :, None] * scale[..., None, :])
    limit = singular(covariances)
    good = (jnp.linalg.eigvalsh(correlations)[..., 0] > limit) & jnp.all(variances > 0, axis=-1)
    values, vectors = jnp.linalg.eigh(even)
    largest = jnp.maximum(jnp.max(jnp.abs(values), axis=-1, keepdims=True), tiny)
    lifted = jnp.maximum(values, jnp.maximum(1e-6, 8.0 * limit) * largest)
    raised = (vectors * lifted[..., None, :]) @ jnp.swapaxes(vectors, -1, -2)
    raised = 0.5 * (raised + jnp.swapaxes(raised, -1, -2))
    return jnp.where(good[..., None, None], even, raised)
