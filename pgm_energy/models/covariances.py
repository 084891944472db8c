"""Covariances of the components of a mixture: shapes, floors, the nearest valid ones."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "covariance_shape",
    "inverse_factors",
    "nearest_covariances",
    "raise_floor",
    "require_positive",
    "singular",
    "standardizer",
]


def covariance_shape(kind: str, count: int, width: int) -> tuple[int, ...]:
    """Return the shape of the covariances of ``count`` components over ``width`` columns."""
    return {
        "full": (count, width, width),
        "tied": (width, width),
        "diag": (count, width),
        "spherical": (count,),
    }[kind]


def require_positive(values: np.ndarray, matrices: bool, many: bool) -> np.ndarray:
    """Return covariances, symmetric to the last bit, or refuse them.

    Raises
    ------
    ValueError
        With the first variance that is not positive, or matrix (of ``many``) that is not
        symmetric and positive definite.
    """
    if not matrices:
        low = np.argwhere(values <= 0)
        if len(low):
            place = tuple(int(i) for i in low[0])
            raise ValueError(f"variances must be positive, got {values[place]:g} at index {place}")
        return values
    stack = values.reshape(-1, *values.shape[-2:])
    even = 0.5 * (stack + stack.transpose(0, 2, 1))
    size = np.sqrt(np.abs(np.diagonal(stack, axis1=1, axis2=2)))
    rounding = 32 * np.finfo(values.dtype).eps * size[:, :, None] * size[:, None, :]
    uneven = np.argwhere(np.abs(stack - even) > rounding)
    if len(uneven):
        k, i, j = (int(n) for n in uneven[0])
        raise ValueError(
            f"covariances must be symmetric, got {stack[k, i, j]:g} at ({i}, {j}) and "
            f"{stack[k, j, i]:g} at ({j}, {i}){_of(k, many)}; use 0.5 * (C + C.T)"
        )
    for k, matrix in enumerate(stack):
        try:
            np.linalg.cholesky(matrix)  # in their own precision, as the energy does
        except np.linalg.LinAlgError:
            smallest = np.linalg.eigvalsh(matrix.astype(np.float64))[0]
            raise ValueError(
                f"covariances must be positive definite, got a smallest eigenvalue of "
                f"{smallest:.3g}{_of(k, many)}; add a small multiple of the identity"
            ) from None
    return values if np.array_equal(stack, even) else even.reshape(values.shape)


def _of(component: int, many: bool) -> str:
    return f" of component {component}" if many else ""


def singular(width: int, kind: Any) -> float:
    """Eigenvalue of a correlation matrix that a floating type cannot tell from zero."""
    return float(width * jnp.finfo(kind).eps)


def standardizer(
    rows: np.ndarray, row_weights: np.ndarray, one_scale: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the standard deviation of each column, of what was seen in it.

    A constant column has no scale of its own and gets that of the others.

    Raises
    ------
    ValueError
        If nothing was seen in a column.
    """
    rows = np.asarray(rows, dtype=np.float64)
    gone = np.isnan(rows)
    if gone.any():
        seen = ~gone * row_weights[:, None]
        mass = seen.sum(axis=0)
        if not mass.all():
            raise ValueError(
                f"column {int(np.argmin(mass))} is missing in every row: leave that column out"
            )
        filled = np.where(gone, 0.0, rows)
        shift = (seen * filled).sum(axis=0) / mass
        variance = (seen * (filled - shift) ** 2).sum(axis=0) / mass
    else:  # the same by two products
        mass = row_weights.sum()
        shift = row_weights @ rows / mass
        variance = row_weights @ (rows - shift) ** 2 / mass
    # what rounding leaves of a constant column is no variance
    variance[variance <= (1e-12 * np.abs(shift)) ** 2] = 0.0
    moving = variance > 0
    common = variance[moving].mean() if moving.any() else 1.0
    if one_scale:
        return shift, np.full(len(shift), np.sqrt(common))
    return shift, np.sqrt(np.where(moving, variance, common))


def raise_floor(moments: jax.Array, floor: Any, matrices: bool) -> jax.Array:
    """Return the covariance of largest likelihood with no variance below the floor."""
    if not matrices:
        return jnp.maximum(moments, floor)
    floor = jnp.asarray(floor, moments.dtype)
    moments = 0.5 * (moments + jnp.swapaxes(moments, -1, -2))
    above = jnp.linalg.cholesky(moments - floor * jnp.eye(moments.shape[-1], dtype=moments.dtype))
    doubtful = ~jnp.all(jnp.isfinite(above))

    def decompose(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        # of the state: what does not depend on it is moved out of the loop, and always done
        doubtful, given = state
        values, vectors = jnp.linalg.eigh(given)
        high = jnp.maximum(values, floor)[..., None, :]
        raised = (vectors * high) @ jnp.swapaxes(vectors, -1, -2)
        raised = 0.5 * (raised + jnp.swapaxes(raised, -1, -2))
        # untouched where nothing is below the floor: not even the rounding of a decomposition
        good = (values[..., 0] >= floor)[..., None, None]
        return jnp.zeros_like(doubtful), jnp.where(good, given, raised)

    # at most once, and under vmap not at all unless one start needs it, as a cond would not do:
    # decompositions take many times as long as Cholesky factors
    return jax.lax.while_loop(lambda state: state[0], decompose, (doubtful, moments))[1]


def inverse_factors(factors: jax.Array) -> jax.Array:
    """Return the inverses of lower triangular matrices ``(K, D, D)``.

    By rows, for all of them at once. LAPACK's solver wakes threads for each matrix from 32 columns
    on, which takes longer than the work, on a busy machine a hundred times longer.
    """
    eye = jnp.eye(factors.shape[-1], dtype=factors.dtype)
    diagonal = jnp.diagonal(factors, axis1=1, axis2=2)

    def solve(row: jax.Array, inverses: jax.Array) -> jax.Array:
        known = jnp.einsum("kj,kji->ki", factors[:, row], inverses)
        return inverses.at[:, row].set((eye[row] - known) / diagonal[:, row, None])

    return jax.lax.fori_loop(0, len(eye), solve, jnp.zeros_like(factors))


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
    limit = singular(covariances.shape[-1], covariances.dtype)
    good = (jnp.linalg.eigvalsh(correlations)[..., 0] > limit) & jnp.all(variances > 0, axis=-1)
    values, vectors = jnp.linalg.eigh(even)
    largest = jnp.maximum(jnp.max(jnp.abs(values), axis=-1, keepdims=True), tiny)
    lifted = jnp.maximum(values, jnp.maximum(1e-6, 8.0 * limit) * largest)
    raised = (vectors * lifted[..., None, :]) @ jnp.swapaxes(vectors, -1, -2)
    raised = 0.5 * (raised + jnp.swapaxes(raised, -1, -2))
    return jnp.where(good[..., None, None], even, raised)
