"""Mixtures of independent discrete units."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._struct import Key, Parameter, is_concrete, replace, struct
from pgm_energy.models.mixture import (
    SUM_TOLERANCE,
    WEIGHT_FLOOR,
    Mixture,
    component_site,
    floored_frequencies,
    project_simplex,
    random_weights,
    require_components,
    require_table,
    require_weights,
    start_responsibilities,
    start_rows,
)
from pgm_energy.sites import Binary, Categorical, Site

__all__ = ["BernoulliMixture", "CategoricalMixture"]

#: Probabilities of a projected mixture keep this distance from 0 and 1.
_PROBABILITY_FLOOR = 1e-6
#: Share of a hard start that is spread over all components, so that no probability starts at 0.
_START_SPREAD = 0.1


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

    weights: Parameter
    probs: Parameter

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

    def restart(self, rng_key: Key, rows: jax.Array, row_weights: jax.Array) -> Self:
        """Return a fresh start from k-means++ of rows ``(N, D)``."""
        member = start_responsibilities(
            rng_key, rows, row_weights, self.num_components, _START_SPREAD
        )
        return self.maximize(rows, member, 1e-3)

    def project(self) -> Self:
        """Return the nearest mixture with weights on the simplex and probabilities in (0, 1)."""
        return replace(
            self,
            weights=project_simplex(self.weights, WEIGHT_FLOOR),
            probs=jnp.clip(self.probs, _PROBABILITY_FLOOR, 1.0 - _PROBABILITY_FLOOR),
        )

    def generic(self, rng_key: Key) -> Self:
        """Return random weights and probabilities."""
        first, second = jax.random.split(rng_key)
        probs = jax.random.uniform(
            second, self.probs.shape, jnp.result_type(float), minval=0.1, maxval=0.9
        )
        return replace(self, weights=random_weights(first, self.num_components), probs=probs)

    @classmethod
    def init(cls, rng_key: Key, *, num_components: int, data: Any) -> BernoulliMixture:
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

    weights: Parameter
    probs: Parameter

    data_sites: ClassVar[tuple[str, ...]] = ("v",)

    def validate(self) -> None:
        """Refuse weights and probabilities off the simplex."""
        require_weights(self.weights)
        _require_probs(self.probs, (self.num_components, "D", "S"))
        if is_concrete(self.probs):
            off = np.asarray(self.probs, dtype=float).sum(axis=-1) - 1.0
            bad = np.argwhere(np.abs(off) > SUM_TOLERANCE)
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

    def restart(self, rng_key: Key, rows: jax.Array, row_weights: jax.Array) -> Self:
        """Return a fresh start from k-means++ of one-hot rows ``(N, D, S)``."""
        member = start_responsibilities(
            rng_key, rows, row_weights, self.num_components, _START_SPREAD
        )
        return self.maximize(rows, member, 1e-3 / self.probs.shape[-1])

    def project(self) -> Self:
        """Return the nearest mixture with weights and probabilities on the simplex."""
        return replace(
            self,
            weights=project_simplex(self.weights, WEIGHT_FLOOR),
            probs=project_simplex(self.probs, _PROBABILITY_FLOOR / self.probs.shape[-1]),
        )

    def generic(self, rng_key: Key) -> Self:
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
        cls, rng_key: Key, *, num_components: int, data: Any, num_states: int | None = None
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
