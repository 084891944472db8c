"""Real units: independent normals, or one multivariate normal."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.linalg import cho_solve, solve_triangular

from pgm_energy import _random
from pgm_energy._struct import Key
from pgm_energy.sites._base import Site, as_float

__all__ = ["Real"]


@dataclasses.dataclass(frozen=True, init=False)
class Real(Site):
    """Real units; given the rest, normal with precision L and mean L^-1 eta.

    Parameters
    ----------
    shape, dims
        As for every site.
    coupled
        True if the units interact: the site is then one multivariate normal, and its precision
        is a matrix over the flattened units instead of one value per unit.

    Examples
    --------
    >>> Real(2, coupled=True).coupled
    True
    """

    coupled: bool

    family: ClassVar[str] = "real"
    dtype: ClassVar[Any] = jnp.float32
    is_discrete: ClassVar[bool] = False

    def __init__(
        self,
        shape: int | tuple[int, ...],
        dims: str | tuple[str, ...] | list[str] = (),
        coupled: bool = False,
    ) -> None:
        object.__setattr__(self, "coupled", bool(coupled))
        super().__init__(shape, dims)

    @property
    def support_text(self) -> str:
        return "finite numbers"

    def encode(self, values: Any) -> jax.Array:
        return as_float(values)

    @staticmethod
    def is_matrix(eta: jax.Array, precision: jax.Array) -> bool:
        """Whether ``precision`` is a matrix over the flattened units of ``eta``."""
        return jnp.shape(precision) != jnp.shape(eta)

    def log_normalizer(self, eta: jax.Array, precision: jax.Array | None = None) -> jax.Array:
        precision = self._precision(eta, precision)
        if self.is_matrix(eta, precision):
            factor = jnp.linalg.cholesky(precision)
            white = solve_triangular(factor, eta.reshape(-1), lower=True)
            log_det = 2.0 * jnp.sum(jnp.log(jnp.diagonal(factor)))
            return 0.5 * (white @ white + eta.size * math.log(2 * math.pi) - log_det)
        return 0.5 * (eta**2 / precision + math.log(2 * math.pi) - jnp.log(precision))

    def mean(self, eta: jax.Array, precision: jax.Array | None = None) -> jax.Array:
        precision = self._precision(eta, precision)
        if self.is_matrix(eta, precision):
            factor = jnp.linalg.cholesky(precision)
            return cho_solve((factor, True), eta.reshape(-1)).reshape(eta.shape)
        return eta / precision

    def noise(self, rng_key: Key, shape: tuple[int, ...]) -> jax.Array:
        return _random.normal(rng_key, shape)

    def decide(
        self, noise: jax.Array, eta: jax.Array, precision: jax.Array | None = None
    ) -> jax.Array:
        precision = self._precision(eta, precision)
        if self.is_matrix(eta, precision):
            factor = jnp.linalg.cholesky(precision)
            white = solve_triangular(factor, eta.reshape(-1), lower=True) + noise.reshape(-1)
            return solve_triangular(factor.T, white, lower=False).reshape(eta.shape)
        return eta / precision + noise / jnp.sqrt(precision)

    def distribution(self, eta: jax.Array, precision: jax.Array | None = None) -> dist.Distribution:
        precision = self._precision(eta, precision)
        if self.is_matrix(eta, precision):
            mean = self.mean(eta, precision).reshape(-1)
            normal = dist.MultivariateNormal(mean, precision_matrix=precision)
            if eta.ndim == 1:
                return normal
            reshape = dist.transforms.ReshapeTransform(eta.shape, (eta.size,))
            return dist.TransformedDistribution(normal, reshape)
        return dist.Normal(eta / precision, 1.0 / jnp.sqrt(precision))

    def log_prob(
        self, values: Any, eta: jax.Array, precision: jax.Array | None = None
    ) -> jax.Array:
        precision = self._precision(eta, precision)
        inner = self.quadratic(values, eta, precision)
        return inner - jnp.sum(self.log_normalizer(eta, precision))

    def quadratic(self, values: jax.Array, eta: jax.Array, precision: jax.Array) -> jax.Array:
        """Return <eta, x> - x'Lx/2, nats."""
        flat = values.reshape(-1)
        if self.is_matrix(eta, precision):
            return eta.reshape(-1) @ flat - 0.5 * flat @ precision @ flat
        return jnp.sum(eta * values - 0.5 * precision * values**2)

    def pinned_parameter(self, values: Any) -> jax.Array:
        return self.encode(values)

    def base_distribution(self) -> dist.Distribution:
        return dist.Normal(jnp.zeros(self.shape), 1.0)

    def invalid(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(~np.isfinite(values))

    @staticmethod
    def _precision(eta: jax.Array, precision: jax.Array | None) -> jax.Array:
        return jnp.ones_like(eta) if precision is None else precision
