"""Mixtures of independent categorical units."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._struct import Key, Parameter, is_concrete, replace, struct
from pgm_energy.models.chunks import PartialRows
from pgm_energy.models.frequencies import (
    PROBABILITY_FLOOR,
    START_SPREAD,
    Frequencies,
    FrequencyPrior,
    log_density,
    most_likely,
    require_probs,
    resolve,
)
from pgm_energy.models.mixture import (
    SUM_TOLERANCE,
    WEIGHT_FLOOR,
    Frame,
    Mixture,
    component_site,
    first_start,
    floored_frequencies,
    project_simplex,
    random_weights,
    require_components,
    require_table,
    require_weights,
    start_rows,
)
from pgm_energy.models.prior import MixturePrior
from pgm_energy.sites import Categorical, Site

__all__ = ["CategoricalMixture"]


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
    start_spread: ClassVar[float] = START_SPREAD

    def validate(self) -> None:
        """Refuse weights and probabilities off the simplex."""
        require_weights(self.weights)
        require_probs(self.probs, (self.num_components, "D", "S"))
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

    @property
    def num_parameters(self) -> int:
        """K - 1 weights and K D (S - 1) probabilities."""
        count, units, states = self.probs.shape
        return count - 1 + count * units * (states - 1)

    @property
    def log_probs(self) -> jax.Array:
        """Logarithms of the probabilities, normalised to the last bit, nats."""
        return jnp.log(self.probs) - jnp.log(jnp.sum(self.probs, axis=-1, keepdims=True))

    def scores(self, rows: Any, fast: bool = False) -> jax.Array:
        """Return log w_k + log p_k(v), nats, ``(K, N)``: one product."""
        units = rows.values if isinstance(rows, PartialRows) else rows
        logs, weights = (x.astype(units.dtype) for x in (self.log_probs, self.log_weights))
        return weights[:, None] + _flat(logs) @ _flat(units).T

    def moments(self, rows: Any, share: jax.Array, fast: bool = False) -> Frequencies:
        """Return how often each unit was in each state."""
        units = rows.values if isinstance(rows, PartialRows) else rows
        counts = (share @ _flat(units)).reshape(share.shape[0], *units.shape[1:])
        return Frequencies(jnp.sum(share, axis=1), counts)

    def maximize(self, moments: Frequencies, floor: Any, prior: FrequencyPrior) -> Self:
        """Return weighted frequencies of the states, none below the floor."""
        weights, probs = most_likely(moments, floor, prior)
        return replace(self, weights=weights, probs=probs)

    def resolve_prior(self, prior: MixturePrior, frame: Frame | None) -> FrequencyPrior:
        """Return the pseudo-rows of each state."""
        shape = self.probs.shape[1:]
        probs = np.full(shape, 1.0 / shape[-1])
        if prior.probs is not None:
            probs = np.broadcast_to(prior.array("probs", shape[-1:], shape), shape)
        return resolve(type(self).__name__, prior, probs)

    def log_prior(self, prior: FrequencyPrior) -> jax.Array:
        """Return the log-density of the Dirichlet laws."""
        return log_density(self.log_weights, self.log_probs, prior)

    def with_floor(self, floor: Any) -> Self:
        """Return the mixture with no probability below the floor."""
        return replace(self, probs=floored_frequencies(self.probs, floor))

    def blank(self) -> Self:
        """Return a mixture of fair dice."""
        return jax.tree.map(lambda leaf: jnp.full_like(leaf, 1.0 / leaf.shape[-1]), self)

    def project(self) -> Self:
        """Return the nearest mixture with weights and probabilities on the simplex."""
        return replace(
            self,
            weights=project_simplex(self.weights, WEIGHT_FLOOR),
            probs=project_simplex(self.probs, PROBABILITY_FLOOR / self.probs.shape[-1]),
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
        cls,
        rng_key: Key,
        *,
        num_components: int,
        data: Any,
        num_states: int | None = None,
        missing: bool = False,
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
        missing
            Whether NaN may stand for values that are not known.

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
        rows = start_rows(site, "v", table, count, missing)
        even = jnp.full((count, table.shape[1], num_states), 1.0 / num_states)
        blank = cls(weights=jnp.full(count, 1.0 / count), probs=even)
        return first_start(rng_key, blank, rows, missing)


def _flat(values: jax.Array) -> jax.Array:
    return values.reshape(values.shape[0], -1)
