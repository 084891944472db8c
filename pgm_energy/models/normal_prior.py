"""The M-step of Gaussian mixtures, with or without a conjugate prior."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy.models.normal_moments import NormalMoments, Normals, rebased
from pgm_energy.models.prior import MixturePrior

__all__ = ["NormalPrior", "log_density", "most_likely", "resolve"]


class NormalPrior(NamedTuple):
    """A prior in the units of a frame; numbers of pseudo-rows are 0 where there is none.

    ``covariance`` is ``(D, D)`` for matrices, else variances ``(D,)``.
    """

    weight_rows: Any
    mean_rows: Any
    mean: Any
    covariance_rows: Any
    covariance: Any


def resolve(
    prior: MixturePrior,
    owner: str,
    count: int,
    width: int,
    matrices: bool,
    frame: tuple[np.ndarray, np.ndarray] | None,
) -> NormalPrior:
    """Return a prior in a frame, in which the data have mean 0 and variances 1.

    Raises
    ------
    ValueError
        On a field for discrete units, a wrong shape, or a covariance that is not positive
        definite.
    """
    prior.refuse(owner, "prob_rows", "probs")
    shift, scale = (np.zeros(width), np.ones(width)) if frame is None else frame
    mean = np.zeros(width)
    if prior.mean is not None:
        mean = (prior.array("mean", (width,)) - shift) / scale
    covariance = np.full(width, count ** (-2.0 / width))
    if prior.covariance is not None:
        shapes = [(width,), (width, width)] if matrices else [(width,)]
        covariance = prior.array("covariance", *shapes)
        covariance = covariance / (scale**2 if covariance.ndim == 1 else np.outer(scale, scale))
    if matrices and covariance.ndim == 1:
        covariance = np.diag(covariance)
    _require_positive(covariance)
    rows = (np.asarray(float(x)) for x in (prior.weight_rows, prior.mean_rows))
    weight_rows, mean_rows = rows
    covariance_rows = np.asarray(float(prior.covariance_rows))
    return NormalPrior(weight_rows, mean_rows, mean, covariance_rows, covariance)


def _require_positive(covariance: np.ndarray) -> None:
    even = covariance.ndim == 1 or np.allclose(covariance, covariance.T)
    values = covariance if covariance.ndim == 1 else np.linalg.eigvalsh(covariance)
    if not even or (values <= 0).any():
        raise ValueError("the prior's covariance must be symmetric and positive definite")


def most_likely(
    means: jax.Array,
    covariances: jax.Array,
    kind: str,
    moments: NormalMoments,
    prior: NormalPrior,
) -> tuple[jax.Array, jax.Array]:
    """Return means and covariances that maximise likelihood times prior, before any floor.

    Parameters
    ----------
    means, covariances, kind
        Of the mixture before: the moments are about these means, and what nothing is known of
        stays as it was.
    """
    pull = prior.mean_rows
    seen = moments.seen + pull
    change = moments.first + pull * (prior.mean - means)
    change = jnp.where(seen > 0, change / jnp.where(seen > 0, seen, 1.0), 0.0)
    moments, means = rebased(moments, change), means + change
    # the normal law of a mean holds its covariance, as one more row would
    once = jnp.where(pull > 0, 1.0, 0.0)
    away = means - prior.mean
    if kind in ("full", "tied"):
        pulls = pull * away[:, :, None] * away[:, None, :]
        own = prior.covariance_rows * prior.covariance
        if kind == "tied":
            second = moments.second[0] + jnp.sum(pulls, axis=0) + own
            return means, second / (jnp.sum(moments.mass + once) + prior.covariance_rows)
        second, rows = moments.second + pulls + own, moments.mass + once + prior.covariance_rows
        rows = rows[:, None, None]
    else:
        second = moments.second + pull * away**2 + prior.covariance_rows * prior.covariance
        rows = moments.seen + once + prior.covariance_rows
        if kind == "spherical":
            second, rows = jnp.sum(second, axis=1), jnp.sum(rows, axis=1)
    return means, jnp.where(rows > 0, second / jnp.where(rows > 0, rows, 1.0), covariances)


def log_density(normals: Normals, kind: str, prior: NormalPrior) -> jax.Array:
    """Return the log-density of a prior, nats, up to its constants.

    Relative to its covariance, so that the units of the data do not matter.
    """
    away = normals.means - prior.mean
    if normals.matrices:
        factor = jnp.linalg.cholesky(prior.covariance)
        logs = 2.0 * jnp.sum(jnp.log(jnp.diagonal(factor)))
        traces = jnp.sum((normals.whiteners @ factor) ** 2, axis=(1, 2))
        white = jnp.einsum("...ij,...j->...i", normals.whiteners, away)
    else:
        logs = jnp.sum(jnp.log(prior.covariance))
        traces = jnp.sum(normals.whiteners**2 * prior.covariance, axis=1)
        white = normals.whiteners * away
    width = normals.means.shape[1]
    relative = -2.0 * normals.log_norm() - width * jnp.log(2.0 * jnp.pi) - logs
    total = -0.5 * prior.covariance_rows * jnp.sum(relative + traces)
    once = jnp.where(prior.mean_rows > 0, 1.0, 0.0)
    pulls = -0.5 * (once * relative + prior.mean_rows * jnp.sum(white**2, axis=1))
    return total + jnp.sum(pulls) + prior.weight_rows * jnp.sum(normals.log_weights)
