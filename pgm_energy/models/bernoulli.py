"""Mixtures of independent binary units."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._struct import Key, Parameter, replace, struct
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
    WEIGHT_FLOOR,
    Frame,
    Mixture,
    component_site,
    first_start,
    project_simplex,
    random_weights,
    require_components,
    require_table,
    require_weights,
    start_rows,
)
from pgm_energy.models.prior import MixturePrior
from pgm_energy.sites import Binary, Site

__all__ = ["BernoulliMixture"]


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
    start_spread: ClassVar[float] = START_SPREAD

    def validate(self) -> None:
        """Refuse weights off the simplex and probabilities that make energies infinite."""
        require_weights(self.weights)
        require_probs(self.probs, (self.num_components, "D"))

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

    @property
    def num_parameters(self) -> int:
        """K - 1 weights and K D probabilities."""
        return self.num_components - 1 + self.probs.size

    def scores(self, rows: Any, fast: bool = False) -> jax.Array:
        """Return log w_k + log p_k(v), nats, ``(K, N)``: two products."""
        on, off = jnp.log(self.probs), jnp.log1p(-self.probs)
        units: Any = rows
        seen: Any = 1.0
        if isinstance(rows, PartialRows):
            units, seen = rows.values, rows.seen
        kind = units.dtype
        on, off, weights = (x.astype(kind) for x in (on, off, self.log_weights))
        return weights[:, None] + on @ units.T + off @ (seen - units).T

    def moments(self, rows: Any, share: jax.Array, fast: bool = False) -> Frequencies:
        """Return how often each unit was 0 and 1."""
        if isinstance(rows, PartialRows):
            counts = jnp.stack([share @ (rows.seen - rows.values), share @ rows.values], axis=-1)
        else:
            counts = jnp.stack([share @ (1.0 - rows), share @ rows], axis=-1)
        return Frequencies(jnp.sum(share, axis=1), counts)

    def maximize(self, moments: Frequencies, floor: Any, prior: FrequencyPrior) -> Self:
        """Return weighted frequencies, kept within [floor, 1 - floor]."""
        weights, probs = most_likely(moments, floor, prior)
        return replace(self, weights=weights, probs=probs[..., 1])

    def resolve_prior(self, prior: MixturePrior, frame: Frame | None) -> FrequencyPrior:
        """Return the pseudo-rows of each state."""
        shape = self.probs.shape[1:]
        on = np.full(shape, 0.5)
        if prior.probs is not None:
            on = np.broadcast_to(prior.array("probs", (), shape), shape)
        return resolve(type(self).__name__, prior, np.stack([1.0 - on, on], axis=-1))

    def log_prior(self, prior: FrequencyPrior) -> jax.Array:
        """Return the log-density of the Dirichlet and Beta laws."""
        logs = jnp.stack([jnp.log1p(-self.probs), jnp.log(self.probs)], axis=-1)
        return log_density(self.log_weights, logs, prior)

    def with_floor(self, floor: Any) -> Self:
        """Return the mixture with probabilities within [floor, 1 - floor]."""
        return replace(self, probs=jnp.clip(self.probs, floor, 1.0 - floor))

    def blank(self) -> Self:
        """Return a mixture of fair coins."""
        even = jnp.full_like(self.weights, 1.0 / self.num_components)
        return replace(self, weights=even, probs=jnp.full_like(self.probs, 0.5))

    def project(self) -> Self:
        """Return the nearest mixture with weights on the simplex and probabilities in (0, 1)."""
        return replace(
            self,
            weights=project_simplex(self.weights, WEIGHT_FLOOR),
            probs=jnp.clip(self.probs, PROBABILITY_FLOOR, 1.0 - PROBABILITY_FLOOR),
        )

    def generic(self, rng_key: Key) -> Self:
        """Return random weights and probabilities."""
        first, second = jax.random.split(rng_key)
        probs = jax.random.uniform(
            second, self.probs.shape, jnp.result_type(float), minval=0.1, maxval=0.9
        )
        return replace(self, weights=random_weights(first, self.num_components), probs=probs)

    @classmethod
    def init(
        cls, rng_key: Key, *, num_components: int, data: Any, missing: bool = False
    ) -> BernoulliMixture:
        """Return a start from k-means++ of the data.

        Parameters
        ----------
        rng_key
            A JAX random key.
        num_components
            Number of components.
        data
            Rows ``(N, D)`` of 0 and 1.
        missing
            Whether NaN may stand for values that are not known.

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
        rows = start_rows(Binary(table.shape[1]), "v", table, count, missing)
        blank = cls(
            weights=jnp.full(count, 1.0 / count), probs=jnp.full((count, rows.shape[1]), 0.5)
        )
        return first_start(rng_key, blank, rows, missing)
