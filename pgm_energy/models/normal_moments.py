"""E-steps and moments of Gaussian mixtures: by products, with care, and with missing values.

Components come first and rows last, ``(K, N)`` and ``(K, D, N)``: what is done along a row is then
done to many rows at once.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from pgm_energy.models.chunks import PartialRows

__all__ = ["NormalMoments", "Normals", "moments", "rebased", "scores"]

_LOG_2_PI = math.log(2.0 * math.pi)


class NormalMoments(NamedTuple):
    """Sums over rows about one point per component.

    Attributes
    ----------
    mass
        ``(K,)``, sum of the shares.
    seen
        ``(K, D)``, the same of rows in which a column was seen or could be filled in.
    first
        ``(K, D)``, sum of share times deviation.
    second
        Sum of share times square: ``(K, D, D)`` for full covariances, ``(1, D, D)`` for a tied
        one, ``(K, D)`` for variances.
    """

    mass: jax.Array
    seen: jax.Array
    first: jax.Array
    second: jax.Array


class Normals(NamedTuple):
    """Components of a mixture as an E-step needs them.

    Attributes
    ----------
    log_weights
        ``(K,)``, nats.
    means
        ``(K, D)``.
    covariances
        ``(K, D, D)``, or ``(1, D, D)`` if tied, or variances ``(K, D)``.
    whiteners
        Their inverse Cholesky factors, or inverse deviations.
    """

    log_weights: jax.Array
    means: jax.Array
    covariances: jax.Array
    whiteners: jax.Array

    @property
    def matrices(self) -> bool:
        """Whether the covariances are matrices."""
        return self.covariances.ndim == 3

    @property
    def tied(self) -> bool:
        """Whether all components share one matrix (or there is but one)."""
        return self.matrices and self.covariances.shape[0] == 1

    def log_norm(self) -> jax.Array:
        """Return minus log det(2 pi C) / 2, nats: ``(K,)``, or ``(1,)`` if tied."""
        scales = self.whiteners
        if self.matrices:
            scales = jnp.diagonal(scales, axis1=-2, axis2=-1)
        return jnp.sum(jnp.log(scales), axis=-1) - 0.5 * scales.shape[-1] * _LOG_2_PI

    def constants(self) -> jax.Array:
        """Return log w - log det(2 pi C) / 2, nats, ``(K,)``."""
        return self.log_weights + self.log_norm()


# ---- with care: about the means -----------------------------------------------------------------


def scores(normals: Normals, rows: Any) -> jax.Array:
    """Return log w_k + log p_k of rows ``(N, D)`` or partial rows: ``(K, N)``, nats."""
    if isinstance(rows, PartialRows):
        return _partial_scores(normals, rows)
    kind = rows.dtype
    constants, whiteners = normals.constants().astype(kind), normals.whiteners.astype(kind)
    delta = _deviations(normals, rows)
    if normals.tied:
        white = jnp.einsum("ij,kjn->kin", whiteners[0], delta)
    elif normals.matrices:
        white = jnp.einsum("kij,kjn->kin", whiteners, delta)
    else:
        white = whiteners[:, :, None] * delta
    return constants[:, None] - 0.5 * jnp.sum(white**2, axis=1)


def moments(normals: Normals, rows: Any, share: jax.Array) -> NormalMoments:
    """Return moments about the means of rows ``(N, D)`` or partial rows, shares ``(K, N)``."""
    if isinstance(rows, PartialRows):
        return _partial_moments(normals, rows, share)
    delta = _deviations(normals, rows)
    mass = jnp.sum(share, axis=1)
    weighted = share[:, None] * delta
    if normals.tied:
        second = jnp.einsum("kin,kjn->ij", weighted, delta)[None]
    elif normals.matrices:
        second = jnp.einsum("kin,kjn->kij", weighted, delta)
    else:
        second = jnp.sum(weighted * delta, axis=2)
    seen = jnp.broadcast_to(mass[:, None], delta.shape[:2])
    return NormalMoments(mass, seen, jnp.sum(weighted, axis=2), second)


def _deviations(normals: Normals, rows: jax.Array) -> jax.Array:
    return rows.T - normals.means.astype(rows.dtype)[:, :, None]


def rebased(moments: NormalMoments, by: jax.Array) -> NormalMoments:
    """Return moments about points that lie ``by`` (K, D) further."""
    mass, seen, first, second = moments
    if second.ndim == 2:
        second = second - 2.0 * by * first + seen * by**2
    else:
        cross = by[:, :, None] * first[:, None, :]
        change = mass[:, None, None] * by[:, :, None] * by[:, None, :]
        change = change - cross - jnp.swapaxes(cross, 1, 2)
        tied = second.shape[0] == 1
        second = second + (jnp.sum(change, axis=0, keepdims=True) if tied else change)
    return NormalMoments(mass, seen, first - seen * by, second)


# ---- rows with missing values -------------------------------------------------------------------


class _Conditionals(NamedTuple):
    """Laws of what is missing given what was seen, for each pattern and component."""

    whiteners: jax.Array  # (P, k, D, D), of the seen columns
    log_norm: jax.Array  # (P, k)
    gains: jax.Array  # (P, k, D, D): from deviations of seen columns to means of missing ones
    covariances: jax.Array  # (P, k, D, D), of the missing columns


def _conditionals(normals: Normals, patterns: jax.Array) -> _Conditionals:
    cov = normals.covariances
    seen = patterns.astype(cov.dtype)[:, None, :]
    both, gone = seen[..., :, None] * seen[..., None, :], 1.0 - seen
    eye = jnp.eye(cov.shape[-1], dtype=cov.dtype)
    factors = jnp.linalg.cholesky(cov * both + eye * gone[..., None])
    inverse = solve_triangular(factors, jnp.broadcast_to(eye, factors.shape), lower=True)
    whiteners = inverse * both
    logs = jnp.log(jnp.diagonal(factors, axis1=-2, axis2=-1))
    log_norm = -jnp.sum(seen * (logs + 0.5 * _LOG_2_PI), axis=-1)
    across = gone[..., None] * cov * seen[..., None, :]
    gains = across @ jnp.swapaxes(whiteners, -1, -2) @ whiteners
    rest = gone[..., None] * cov * gone[..., None, :] - gains @ jnp.swapaxes(across, -1, -2)
    return _Conditionals(whiteners, log_norm, gains, rest)


def _partial_deviations(normals: Normals, rows: PartialRows) -> jax.Array:
    """Deviations ``(n, K, D)`` of what was seen; 0 elsewhere."""
    means = normals.means.astype(rows.values.dtype)
    return rows.seen[:, None] * (rows.values[:, None] - means)


def _partial_scores(normals: Normals, rows: PartialRows) -> jax.Array:
    kind = rows.values.dtype
    delta = _partial_deviations(normals, rows)
    weights = normals.log_weights.astype(kind)[:, None]
    if not normals.matrices:
        white = delta * normals.whiteners.astype(kind)
        logs = (jnp.log(normals.whiteners) - 0.5 * _LOG_2_PI).astype(kind)
        return weights + logs @ rows.seen.T - 0.5 * jnp.sum(white**2, axis=2).T
    laws = _conditionals(normals, rows.patterns)
    white = (laws.whiteners.astype(kind)[rows.pattern] @ delta[..., None])[..., 0]
    log_norm = laws.log_norm.astype(kind)[rows.pattern]
    return weights + (log_norm - 0.5 * jnp.sum(white**2, axis=2)).T


def _partial_moments(normals: Normals, rows: PartialRows, share: jax.Array) -> NormalMoments:
    kind = rows.values.dtype
    delta = _partial_deviations(normals, rows)
    mass = jnp.sum(share, axis=1)
    if not normals.matrices:
        # columns are independent: what is missing says nothing, and is left out
        weighted = share.T[..., None] * delta
        second = jnp.sum(weighted * delta, axis=0)
        return NormalMoments(mass, share @ rows.seen, jnp.sum(weighted, axis=0), second)
    laws = _conditionals(normals, rows.patterns)
    delta = delta + (laws.gains.astype(kind)[rows.pattern] @ delta[..., None])[..., 0]
    weighted = share.T[..., None] * delta
    where = jax.nn.one_hot(rows.pattern, rows.patterns.shape[0], dtype=kind)
    of_pattern, rest = share @ where, laws.covariances.astype(kind)
    if normals.tied:
        second = jnp.einsum("nki,nkj->ij", weighted, delta)
        second = (second + jnp.einsum("p,pij->ij", jnp.sum(of_pattern, axis=0), rest[:, 0]))[None]
    else:
        second = jnp.einsum("nki,nkj->kij", weighted, delta)
        second = second + jnp.einsum("kp,pkij->kij", of_pattern, rest)
    seen = jnp.broadcast_to(mass[:, None], normals.means.shape).astype(kind)
    return NormalMoments(mass, seen, jnp.sum(weighted, axis=0), second)
