"""Mixtures: one categorical site ``z`` that chooses a component; log Z is known to be 0."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._struct import Key, Parameter, is_concrete
from pgm_energy.energy import EnergyModel
from pgm_energy.models.clusters import cluster
from pgm_energy.sites import Categorical, Site

__all__ = ["Mixture"]

#: How far weights and probabilities may be from summing to 1 (float32 sums of thousands).
SUM_TOLERANCE = 1e-4
#: A component never loses its weight entirely: its logarithm must stay finite.
WEIGHT_FLOOR = 1e-12


class Mixture(EnergyModel):
    """A mixture: ``E = -sum_k z_k (log w_k + log p_k(x))``, every normaliser included.

    Concrete mixtures say what their components are; :class:`pgm_energy.EM` fits them through
    :meth:`log_joint` and :meth:`maximize`.
    """

    weights: Parameter

    @property
    def num_components(self) -> int:
        """Number of components."""
        return self.weights.shape[0]

    @property
    def known_log_partition(self) -> jax.Array:
        """Log Z, nats: 0, since every component is normalised."""
        return jnp.zeros((), self.weights.dtype)

    @property
    def log_weights(self) -> jax.Array:
        """Logarithms of the weights, normalised to the last bit, nats."""
        return jnp.log(self.weights) - jnp.log(jnp.sum(self.weights))

    @abstractmethod
    def log_joint(self, rows: jax.Array) -> jax.Array:
        """Return log w_k + log p_k(x), nats, of encoded rows ``(N, ...)``: shape ``(N, K)``."""

    @abstractmethod
    def maximize(self, rows: jax.Array, responsibilities: jax.Array, floor: Any) -> Self:
        """Return the mixture that fits weighted rows best: the M-step.

        Parameters
        ----------
        rows
            Encoded rows ``(N, ...)``.
        responsibilities
            ``(N, K)``, not negative; the weight of a row is part of them.
        floor
            Smallest probability, or variance. The result is the exact maximum under this
            constraint, so that the likelihood cannot fall.
        """

    @abstractmethod
    def with_floor(self, floor: Any) -> Self:
        """Return the nearest mixture that keeps the floor; the identity on one that does."""

    @abstractmethod
    def restart(self, rng_key: Key, rows: jax.Array, row_weights: jax.Array) -> Self:
        """Return a fresh start from k-means++ of encoded rows."""

    def standardizer(
        self, rows: np.ndarray, row_weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the shift and scale in which rows are best handled, or None for as they are."""
        return None

    def affine(self, shift: Any, scale: Any) -> Self:
        """Return the law of ``(x - shift) / scale``; only for real data."""
        raise TypeError(f"the data of {type(self).__name__} have no scale")

    def at_floor(self, floor: float) -> np.ndarray:
        """Return which components, ``(K,)``, are held up by the variance floor."""
        return np.zeros(self.num_components, dtype=bool)


def component_site(weights: jax.Array) -> Site:
    """Return the site ``z`` of a mixture."""
    return Categorical(weights.shape[0], ())


def require_weights(weights: jax.Array) -> None:
    """Refuse mixture weights that are not positive or do not sum to 1.

    Raises
    ------
    ValueError
        With the first weight that is wrong, or the sum.
    """
    if weights.ndim != 1 or weights.size == 0:
        raise ValueError(f"weights must have shape (K,), one per component, got {weights.shape}")
    if not is_concrete(weights):
        return
    values = np.asarray(weights, dtype=float)
    low = np.flatnonzero(values <= 0)
    if len(low):
        k = int(low[0])
        raise ValueError(
            f"mixture weights must be positive, got {values[k]:g} at component {k}"
            f"{'; leave that component out' if values[k] == 0 else ''}"
        )
    total = float(values.sum())
    if abs(total - 1.0) > SUM_TOLERANCE:
        raise ValueError(
            f"mixture weights must sum to 1, got {total:.6g}; use weights / weights.sum()"
        )


def project_simplex(values: jax.Array, floor: float) -> jax.Array:
    """Return the nearest points of the simplex, last axis, with entries of at least ``floor``.

    Notes
    -----
    Exact (Euclidean) by sorting, and the identity on points that are there already.

    References
    ----------
    J. Duchi et al. (2008), Efficient projections onto the l1-ball for learning in high
    dimensions, figure 1.
    """
    size = values.shape[-1]
    mass = 1.0 - size * floor
    shifted = values - floor
    descending = -jnp.sort(-shifted, axis=-1)
    excess = (jnp.cumsum(descending, axis=-1) - mass) / jnp.arange(1, size + 1)
    support = jnp.sum(descending > excess, axis=-1, keepdims=True)
    threshold = jnp.take_along_axis(excess, support - 1, axis=-1)
    inside = (jnp.min(shifted, axis=-1, keepdims=True) >= 0) & (
        jnp.abs(jnp.sum(values, axis=-1, keepdims=True) - 1.0) <= size * jnp.finfo(values.dtype).eps
    )
    return jnp.where(inside, values, jnp.maximum(shifted - threshold, 0.0) + floor)


def floored_frequencies(counts: jax.Array, floor: Any) -> jax.Array:
    """Return p that maximises ``sum counts log p`` on the simplex with ``p >= floor``, last axis.

    Notes
    -----
    States that the floor holds up take their mass; the others stay in proportion. At most one
    round per state is needed.
    """
    size = counts.shape[-1]
    total = jnp.sum(counts, axis=-1, keepdims=True)
    safe = jnp.where(total > 0, counts / jnp.where(total > 0, total, 1.0), 1.0 / size)

    def shares(held: jax.Array) -> jax.Array:
        mass = 1.0 - floor * jnp.sum(held, axis=-1, keepdims=True)
        rest = jnp.sum(jnp.where(held, 0.0, safe), axis=-1, keepdims=True)
        return jnp.where(held, floor, safe * mass / jnp.where(rest > 0, rest, 1.0))

    def grow(_: Any, held: jax.Array) -> jax.Array:
        return held | (shares(held) < floor)

    held = jax.lax.fori_loop(0, size, grow, jnp.zeros(counts.shape, dtype=bool))
    return shares(held)


def random_weights(rng_key: Key, num_components: int) -> jax.Array:
    """Return weights in general position."""
    logits = 0.5 * jax.random.normal(rng_key, (num_components,), jnp.result_type(float))
    return jax.nn.softmax(logits)


def start_responsibilities(
    rng_key: Key, rows: jax.Array, row_weights: jax.Array, num_components: int, spread: float
) -> jax.Array:
    """Weighted one-hot memberships of k-means clusters, a share of them spread evenly."""
    flat = rows.reshape(rows.shape[0], -1)
    member = cluster(rng_key, flat, row_weights, num_components)
    return row_weights[:, None] * ((1.0 - spread) * member + spread / num_components)


def start_rows(site: Site, name: str, data: Any, num_components: int) -> jax.Array:
    """Return checked, encoded rows for a data-driven start.

    Raises
    ------
    ValueError
        On a wrong shape, a value outside the support, or fewer rows than components.
    """
    rows = np.asarray(data)
    site.check(name, rows)
    if len(rows) < num_components:
        raise ValueError(f"{num_components} components need at least as many rows, got {len(rows)}")
    return site.encode(rows)


def require_components(num_components: Any) -> int:
    """Return a checked number of components."""
    if (
        isinstance(num_components, bool)
        or not isinstance(num_components, int | np.integer)
        or num_components < 1
    ):
        raise ValueError(f"num_components must be a positive integer, got {num_components!r}")
    return int(num_components)


def require_table(data: Any) -> np.ndarray:
    """Return data as a table with at least one row and column."""
    rows = np.asarray(data)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(
            f"data must have shape (rows, columns), at least one of each, got {rows.shape}"
        )
    return rows
