"""Mixtures: one categorical site ``z`` that chooses a component; log Z is known to be 0."""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._struct import Key, Parameter, is_concrete
from pgm_energy.energy import EnergyModel
from pgm_energy.models.chunks import Chunks, PartialRows, arrange, encoded, sum_over
from pgm_energy.models.clusters import cluster
from pgm_energy.models.prior import MixturePrior
from pgm_energy.sites import Categorical, Site

__all__ = ["Mixture"]

#: How far weights and probabilities may be from summing to 1 (float32 sums of thousands).
SUM_TOLERANCE = 1e-4
#: A component never loses its weight entirely: its logarithm must stay finite.
WEIGHT_FLOOR = 1e-12
#: A start looks at so many rows; more do not make better clusters.
START_ROWS = 10_000

#: Shift and scale of the columns.
Frame = tuple[np.ndarray, np.ndarray]


class Mixture(EnergyModel):
    """A mixture: ``E = -sum_k z_k (log w_k + log p_k(x))``, every normaliser included.

    Concrete mixtures say what their components are; :class:`pgm_energy.EM` fits them through
    :meth:`scores` (the E-step), :meth:`moments` (what the M-step needs to know of the rows) and
    :meth:`maximize` (the M-step).
    """

    weights: Parameter

    #: Share of a hard start that is spread over all components, and the floor of a start.
    start_spread: ClassVar[float] = 0.0
    start_floor: ClassVar[float] = 1e-3

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

    @property
    @abstractmethod
    def num_parameters(self) -> int:
        """Number of free parameters, for information criteria."""

    def log_joint(self, rows: jax.Array) -> jax.Array:
        """Return log w_k + log p_k(x), nats, of encoded rows ``(N, ...)``: shape ``(N, K)``."""
        return self.scores(rows).T

    @abstractmethod
    def scores(self, rows: Any, fast: bool = False) -> jax.Array:
        """Return log w_k + log p_k(x), nats, of encoded rows: shape ``(K, N)``.

        Parameters
        ----------
        rows
            Encoded rows ``(N, ...)``, or :class:`pgm_energy.models.chunks.PartialRows`, whose
            missing units are summed out.
        fast
            Use products that may lose digits: see :meth:`magnitude`.
        """

    @abstractmethod
    def moments(self, rows: Any, share: jax.Array, fast: bool = False) -> Any:
        """Return sums over rows that the M-step needs: a tree, linear in ``share``.

        Parameters
        ----------
        rows
            As for :meth:`scores`; missing units count with their law given the rest of the row.
        share
            ``(K, N)``, not negative: responsibilities times the weight of the row.
        fast
            Use products that may lose digits. The moments are then about the origin.
        """

    def rebased(self, moments: Any, start: Any) -> Any:
        """Return moments about this mixture's means that were about those of ``start``.

        None: about the origin. Where moments have no reference they stay as they are.
        """
        return moments

    @abstractmethod
    def maximize(self, moments: Any, floor: Any, prior: Any) -> Self:
        """Return the mixture that fits rows best, given their moments under this one: the M-step.

        Parameters
        ----------
        moments
            Sums over all rows.
        floor
            Smallest probability, or variance. The result is the exact maximum under this
            constraint, so that the objective cannot fall.
        prior
            What :meth:`resolve_prior` returned.
        """

    @abstractmethod
    def resolve_prior(self, prior: MixturePrior, frame: Frame | None) -> Any:
        """Return the prior as a tree of arrays, in the units of a frame.

        Raises
        ------
        ValueError
            On fields that this kind of mixture has no use for, or of a wrong shape.
        """

    @abstractmethod
    def log_prior(self, prior: Any) -> jax.Array:
        """Return the log-density of a resolved prior, nats, up to a constant of the frame's."""

    @abstractmethod
    def with_floor(self, floor: Any) -> Self:
        """Return the nearest mixture that keeps the floor; the identity on one that does."""

    @abstractmethod
    def blank(self) -> Self:
        """Return a mixture of the same shapes whose components are all alike."""

    def restart(self, rng_key: Key, chunks: Chunks, careful: bool = True) -> Self:
        """Return a fresh start: the mixture that fits the clusters of rows best.

        Parameters
        ----------
        rng_key
            A JAX random key.
        chunks
            Rows, in the frame of the model.
        careful
            Centres from k-means++; else rows drawn at random.
        """
        blank = self.blank()
        site, kind = self.sites[self.data_sites[0]], self.weights.dtype
        weights = chunks.weights.astype(kind)
        whole = jax.vmap(lambda chunk: complete(encoded(site, chunk, kind), chunk.weights))(chunks)
        flat = whole.reshape(weights.size, -1)
        member = cluster(rng_key, flat, weights.reshape(-1), self.num_components, careful)
        spread = self.start_spread
        member = (1.0 - spread) * member + spread / self.num_components
        shares = jnp.swapaxes(member.reshape(*weights.shape, -1), 1, 2) * weights[:, None]

        def collect(part: tuple[Chunks, jax.Array]) -> Any:
            chunk, share = part
            return blank.moments(encoded(site, chunk, kind), share)

        moments = sum_over(collect, (chunks, shares))
        moments = jax.tree.map(lambda leaf: leaf.astype(kind), moments)
        none = blank.resolve_prior(MixturePrior(), None)
        none = jax.tree.map(lambda leaf: jnp.asarray(leaf, kind), none)
        return blank.maximize(moments, self.start_floor, none)

    def standardizer(self, rows: np.ndarray, row_weights: np.ndarray) -> Frame | None:
        """Return the shift and scale in which rows are best handled, or None for as they are."""
        return None

    def own_frame(self) -> Frame | None:
        """Return the frame of data that follow this mixture, or None."""
        return None

    def affine(self, shift: Any, scale: Any) -> Self:
        """Return the law of ``(x - shift) / scale``; only for real data."""
        raise TypeError(f"the data of {type(self).__name__} have no scale")

    def least_floor(self, floor: float, kind: Any) -> float:
        """Return the floor, or more where a floating type cannot hold it."""
        return floor

    def at_floor(self, floor: float, kind: Any) -> np.ndarray:
        """Return which components, ``(K,)``, are held up by the variance floor."""
        return np.zeros(self.num_components, dtype=bool)

    def floats_per_row(self, partial: bool = False, fast: bool = False) -> int:
        """Return how many numbers a row takes on its way through an E-step."""
        site = self.sites[self.data_sites[0]]
        return 3 * self.num_components + 2 * math.prod(site.encoded_shape)

    def can_be_fast(self) -> bool:
        """Whether ``fast`` makes a difference."""
        return False

    def magnitude(self) -> jax.Array:
        """Return the size, nats, of terms that cancel in fast scores; times eps: their error."""
        return jnp.zeros((), self.weights.dtype)


def complete(rows: Any, row_weights: jax.Array) -> jax.Array:
    """Return encoded rows with missing units at the mean of what was seen in their column."""
    if not isinstance(rows, PartialRows):
        return rows
    extra = rows.values.ndim - rows.seen.ndim
    seen = rows.seen.reshape(*rows.seen.shape, *(1 for _ in range(extra)))
    weights = row_weights.astype(seen.dtype).reshape(-1, *(1 for _ in range(seen.ndim - 1)))
    mass = jnp.sum(weights * seen, axis=0)
    mean = jnp.sum(weights * rows.values, axis=0) / jnp.where(mass > 0, mass, 1.0)
    return rows.values + (1.0 - seen) * mean


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


def start_chunks(
    rng_key: Key, rows: np.ndarray, row_weights: np.ndarray, model: Mixture, missing: bool = False
) -> Chunks:
    """Return rows for :meth:`Mixture.restart`: all of them, or as many as a start looks at."""
    most = max(START_ROWS, 50 * model.num_components)
    if len(rows) > most:
        seed = int(jax.random.randint(rng_key, (), 0, np.iinfo(np.int32).max))
        order = np.random.default_rng(seed).permutation(np.flatnonzero(row_weights > 0))
        rows, row_weights = rows[order[:most]], row_weights[order[:most]]
    return arrange(rows, row_weights, 2048, missing)


def start_rows(
    site: Site, name: str, data: Any, num_components: int, missing: bool = False
) -> np.ndarray:
    """Return checked raw rows for a data-driven start.

    Raises
    ------
    ValueError
        On a wrong shape, a value outside the support, or fewer rows than components.
    """
    rows = np.asarray(data)
    site.check(name, rows, allow_nan=missing, nan_hint="to allow missing values, missing=True")
    if len(rows) < num_components:
        raise ValueError(f"{num_components} components need at least as many rows, got {len(rows)}")
    return rows


def first_start(
    rng_key: Key, blank: Any, rows: np.ndarray, missing: bool, careful: bool = True
) -> Any:
    """Return a start from the clusters of rows that all count alike."""
    missing = missing and bool(np.isnan(rows).any())
    chunks = start_chunks(rng_key, rows, np.ones(len(rows)), blank, missing)
    return restarted(rng_key, blank, chunks, careful=careful)


@functools.partial(jax.jit, static_argnames=("careful",))
def restarted(rng_key: Key, like: Any, chunks: Chunks, *, careful: bool) -> Any:
    """Return :meth:`Mixture.restart`, compiled."""
    return like.restart(rng_key, chunks, careful)


@jax.jit
def reframed(model: Any, shift: Any, scale: Any) -> Any:
    """Return :meth:`Mixture.affine`, compiled."""
    return model.affine(shift, scale)


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
