"""Mixtures: one categorical site ``z`` that chooses a component; log Z is known to be 0."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._struct import is_concrete, replace, struct
from pgm_energy.energy import EnergyModel
from pgm_energy.models.clusters import cluster
from pgm_energy.sites import Binary, Categorical, Site

__all__ = ["BernoulliMixture", "CategoricalMixture", "Mixture"]

#: How far weights and probabilities may be from summing to 1 (float32 sums of thousands).
_SUM_TOLERANCE = 1e-4
#: Probabilities of a projected mixture keep this distance from 0 and 1.
PROBABILITY_FLOOR = 1e-6
#: A component never loses its weight entirely: its logarithm must stay finite.
WEIGHT_FLOOR = 1e-12
#: Share of a hard start that is spread over all components, so that no probability starts at 0.
_START_SPREAD = 0.1


class Mixture(EnergyModel):
    """A mixture: ``E = -sum_k z_k (log w_k + log p_k(x))``, every normaliser included.

    Concrete mixtures say what their components are; :class:`pgm_energy.EM` fits them through
    :meth:`log_joint` and :meth:`maximize`.
    """

    weights: jax.Array

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
    def restart(self, rng_key: jax.Array, rows: jax.Array, row_weights: jax.Array) -> Self:
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
    if abs(total - 1.0) > _SUM_TOLERANCE:
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


def random_weights(rng_key: jax.Array, num_components: int) -> jax.Array:
    """Return weights in general position."""
    logits = 0.5 * jax.random.normal(rng_key, (num_components,), jnp.result_type(float))
    return jax.nn.softmax(logits)


def _start_responsibilities(
    rng_key: jax.Array, rows: jax.Array, row_weights: jax.Array, num_components: int, spread: float
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


# ---- discrete components ---------------------------------------------------------------------


@struct
class BernoulliMixture(Mixture):
    """Mixture of independent Bernoulli units: sites ``z`` and ``v``, log Z = 0.

    ``E = -log w_z - sum_i (v_i log p_zi + (1 - v_i) log(1 - p_zi))``.

    Parameters
    ----------
    weights
        ``(K,)``, positive, summing to 1.
    probs
        ``(K, D)``, P(v_i = 1) in component k, strictly between 0 and 1.

    Raises
    ------
    ValueError
        On weights that are not positive or do not sum to 1, probabilities outside (0, 1) (an
        energy must be finite), shapes that do not fit, NaN.

    Notes
    -----
    Given ``z`` the units are independent, so a sweep is two blocks. ``marginalize(model, "z")``
    is the mixture density itself.

    References
    ----------
    C. Bishop (2006), Pattern recognition and machine learning, section 9.3.3.

    Examples
    --------
    >>> import jax.numpy as jnp, pgm_energy as pgm
    >>> mixture = pgm.BernoulliMixture(weights=[0.5, 0.5], probs=[[0.9, 0.9], [0.1, 0.1]])
    >>> density = pgm.marginalize(mixture, "z")
    >>> round(float(jnp.exp(density.log_density({"v": jnp.array([1, 1])}))), 3)
    0.41
    """

    weights: jax.Array
    probs: jax.Array

    data_sites: ClassVar[tuple[str, ...]] = ("v",)

    def validate(self) -> None:
        """Refuse weights off the simplex and probabilities that make energies infinite."""
        require_weights(self.weights)
        _require_probs(self.probs, (self.num_components, "D"))

    @property
    def sites(self) -> dict[str, Site]:
        """The component ``z`` and the binary units ``v``."""
        return {
            "z": component_site(self.weights),
            "v": Binary(self.probs.shape[1], dims=("visible",)),
        }

    def energy(self, z: jax.Array, v: jax.Array) -> jax.Array:
        """Return E(z, v), nats, of a one-hot component and units."""
        return -z @ self.log_joint(v[None])[0]

    def log_joint(self, rows: jax.Array) -> jax.Array:
        """Return log w_k + log p_k(v) of rows ``(N, D)``: two products."""
        on, off = jnp.log(self.probs), jnp.log1p(-self.probs)
        return self.log_weights + rows @ on.T + (1.0 - rows) @ off.T

    def maximize(self, rows: jax.Array, responsibilities: jax.Array, floor: Any) -> Self:
        """Return weighted frequencies, kept within [floor, 1 - floor]."""
        counts = jnp.sum(responsibilities, axis=0)
        safe = jnp.where(counts > 0, counts, 1.0)[:, None]
        means = jnp.where(counts[:, None] > 0, responsibilities.T @ rows / safe, 0.5)
        return replace(
            self,
            weights=floored_frequencies(counts, WEIGHT_FLOOR),
            probs=jnp.clip(means, floor, 1.0 - floor),
        )

    def with_floor(self, floor: Any) -> Self:
        """Return the mixture with probabilities within [floor, 1 - floor]."""
        return replace(self, probs=jnp.clip(self.probs, floor, 1.0 - floor))

    def restart(self, rng_key: jax.Array, rows: jax.Array, row_weights: jax.Array) -> Self:
        """Return a fresh start from k-means++ of rows ``(N, D)``."""
        member = _start_responsibilities(
            rng_key, rows, row_weights, self.num_components, _START_SPREAD
        )
        return self.maximize(rows, member, 1e-3)

    def project(self) -> Self:
        """Return the nearest mixture with weights on the simplex and probabilities in (0, 1)."""
        return replace(
            self,
            weights=project_simplex(self.weights, WEIGHT_FLOOR),
            probs=jnp.clip(self.probs, PROBABILITY_FLOOR, 1.0 - PROBABILITY_FLOOR),
        )

    def generic(self, rng_key: jax.Array) -> Self:
        """Return random weights and probabilities."""
        first, second = jax.random.split(rng_key)
        probs = jax.random.uniform(
            second, self.probs.shape, jnp.result_type(float), minval=0.1, maxval=0.9
        )
        return replace(self, weights=random_weights(first, self.num_components), probs=probs)

    @classmethod
    def init(cls, rng_key: jax.Array, *, num_components: int, data: Any) -> BernoulliMixture:
        """Return a start from k-means++ of the data.

        Parameters
        ----------
        rng_key
            A JAX random key.
        num_components
            Number of components.
        data
            Rows ``(N, D)`` of 0 and 1.

        Raises
        ------
        ValueError
            On values outside {0, 1}, with their place; on fewer rows than components.

        Examples
        --------
        >>> import jax, numpy as np, pgm_energy as pgm
        >>> rows = np.array([[0, 0], [0, 1], [1, 1], [1, 1]])
        >>> pgm.BernoulliMixture.init(jax.random.key(0), num_components=2, data=rows).probs.shape
        (2, 2)
        """
        count = require_components(num_components)
        table = require_table(data)
        rows = start_rows(Binary(table.shape[1]), "v", table, count)
        blank = cls(
            weights=jnp.full(count, 1.0 / count), probs=jnp.full((count, rows.shape[1]), 0.5)
        )
        return blank.restart(rng_key, rows, jnp.ones(len(rows), rows.dtype))


@struct
class CategoricalMixture(Mixture):
    """Mixture of independent categorical units: sites ``z`` and ``v``, log Z = 0.

    ``E = -log w_z - sum_i log p[z, i, v_i]``.

    Parameters
    ----------
    weights
        ``(K,)``, positive, summing to 1.
    probs
        ``(K, D, S)``, the probabilities of the S states of unit i in component k, positive,
        summing to 1 over the last axis.

    Raises
    ------
    ValueError
        On weights or probabilities that are not positive or do not sum to 1, shapes that do not
        fit, NaN.

    References
    ----------
    L. Goodman (1974), Exploratory latent structure analysis using both identifiable and
    unidentifiable models.

    Examples
    --------
    >>> import jax.numpy as jnp, pgm_energy as pgm
    >>> mixture = pgm.CategoricalMixture(weights=[1.0], probs=[[[0.2, 0.3, 0.5]]])
    >>> round(float(jnp.exp(mixture.log_density({"z": 0, "v": jnp.array([2])}))), 6)
    0.5
    """

    weights: jax.Array
    probs: jax.Array

    data_sites: ClassVar[tuple[str, ...]] = ("v",)

    def validate(self) -> None:
        """Refuse weights and probabilities off the simplex."""
        require_weights(self.weights)
        _require_probs(self.probs, (self.num_components, "D", "S"))
        if is_concrete(self.probs):
            off = np.asarray(self.probs, dtype=float).sum(axis=-1) - 1.0
            bad = np.argwhere(np.abs(off) > _SUM_TOLERANCE)
            if len(bad):
                k, i = (int(j) for j in bad[0])
                raise ValueError(
                    f"probs must sum to 1 over the states, got {1.0 + off[k, i]:.6g} for "
                    f"component {k}, unit {i}; use probs / probs.sum(-1, keepdims=True)"
                )

    @property
    def sites(self) -> dict[str, Site]:
        """The component ``z`` and the categorical units ``v``."""
        _, units, states = self.probs.shape
        return {
            "z": component_site(self.weights),
            "v": Categorical(states, units, dims=("visible",)),
        }

    def energy(self, z: jax.Array, v: jax.Array) -> jax.Array:
        """Return E(z, v), nats, of a one-hot component and one-hot units."""
        return -z @ self.log_joint(v[None])[0]

    def log_joint(self, rows: jax.Array) -> jax.Array:
        """Return log w_k + log p_k(v) of one-hot rows ``(N, D, S)``: one product."""
        log_probs = jnp.log(self.probs)
        log_probs = log_probs - jnp.log(jnp.sum(self.probs, axis=-1, keepdims=True))
        return self.log_weights + jnp.einsum("nds,kds->nk", rows, log_probs)

    def maximize(self, rows: jax.Array, responsibilities: jax.Array, floor: Any) -> Self:
        """Return weighted frequencies of the states, none below the floor."""
        counts = jnp.einsum("nk,nds->kds", responsibilities, rows)
        return replace(
            self,
            weights=floored_frequencies(jnp.sum(responsibilities, axis=0), WEIGHT_FLOOR),
            probs=floored_frequencies(counts, floor),
        )

    def with_floor(self, floor: Any) -> Self:
        """Return the mixture with no probability below the floor."""
        return replace(self, probs=floored_frequencies(self.probs, floor))

    def restart(self, rng_key: jax.Array, rows: jax.Array, row_weights: jax.Array) -> Self:
        """Return a fresh start from k-means++ of one-hot rows ``(N, D, S)``."""
        member = _start_responsibilities(
            rng_key, rows, row_weights, self.num_components, _START_SPREAD
        )
        return self.maximize(rows, member, 1e-3 / self.probs.shape[-1])

    def project(self) -> Self:
        """Return the nearest mixture with weights and probabilities on the simplex."""
        return replace(
            self,
            weights=project_simplex(self.weights, WEIGHT_FLOOR),
            probs=project_simplex(self.probs, PROBABILITY_FLOOR / self.probs.shape[-1]),
        )

    def generic(self, rng_key: jax.Array) -> Self:
        """Return random weights and probabilities."""
        first, second = jax.random.split(rng_key)
        logits = 0.5 * jax.random.normal(second, self.probs.shape, jnp.result_type(float))
        return replace(
            self,
            weights=random_weights(first, self.num_components),
            probs=jax.nn.softmax(logits, axis=-1),
        )

    @classmethod
    def init(
        cls, rng_key: jax.Array, *, num_components: int, data: Any, num_states: int | None = None
    ) -> CategoricalMixture:
        """Return a start from k-means++ of the data.

        Parameters
        ----------
        rng_key
            A JAX random key.
        num_components
            Number of components.
        data
            Rows ``(N, D)`` of states from 0.
        num_states
            Number of states; one more than the largest value in the data unless given.

        Raises
        ------
        ValueError
            On values that are no states, with their place; on fewer rows than components.

        Examples
        --------
        >>> import jax, numpy as np, pgm_energy as pgm
        >>> rows = np.array([[0, 2], [0, 1], [1, 1], [2, 0]])
        >>> pgm.CategoricalMixture.init(jax.random.key(0), num_components=2, data=rows).probs.shape
        (2, 2, 3)
        """
        count = require_components(num_components)
        table = require_table(data)
        if num_states is None:
            finite = table[np.isfinite(table)] if table.dtype.kind == "f" else table
            num_states = max(int(finite.max(initial=0)) + 1, 2)
        site = Categorical(num_states, table.shape[1])
        rows = start_rows(site, "v", table, count)
        even = jnp.full((count, table.shape[1], num_states), 1.0 / num_states)
        blank = cls(weights=jnp.full(count, 1.0 / count), probs=even)
        return blank.restart(rng_key, rows, jnp.ones(len(rows), rows.dtype))


def _require_probs(probs: jax.Array, layout: tuple[Any, ...]) -> None:
    if probs.ndim != len(layout) or probs.shape[0] != layout[0] or 0 in probs.shape:
        raise ValueError(
            f"probs must have shape ({', '.join(map(str, layout))}), one row per weight, "
            f"got {probs.shape}"
        )
    if not is_concrete(probs):
        return
    values = np.asarray(probs)
    bad = np.argwhere((values <= 0) | (values >= 1) & (len(layout) == 2))
    if len(bad):
        place = tuple(int(i) for i in bad[0])
        raise ValueError(
            f"probs must lie strictly between 0 and 1, because an energy is finite, got "
            f"{values[place]:g} at index {place}; use np.clip(probs, 1e-6, 1 - 1e-6)"
            f"{' and normalise again' if len(layout) == 3 else ''}"
        )
