"""The law of spins as a NumPyro distribution, which NumPyro itself does not have."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import constraints

__all__ = ["SpinDistribution"]


class SpinDistribution(dist.Distribution):
    """Law of spins -1 and +1 with natural parameter ``eta``: P(+1) = sigmoid(2 eta).

    It has no enumerate support on purpose: NumPyro's discrete kernels take every support to be
    0..K-1 and would sample spins wrongly; like this they refuse (see ``binarize``).
    """

    arg_constraints: ClassVar = {"eta": constraints.real}
    support = constraints.integer_interval(-1, 1)
    has_enumerate_support = False
    pytree_data_fields = ("eta",)

    def __init__(self, eta: Any, *, validate_args: bool | None = None) -> None:
        self.eta = jnp.asarray(eta)
        super().__init__(batch_shape=jnp.shape(eta), validate_args=validate_args)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draw spins (int8, -1 or +1)."""
        eta = jnp.broadcast_to(self.eta, sample_shape + self.batch_shape)
        uniform = jax.random.uniform(key, eta.shape, eta.dtype)
        return jnp.where(uniform < jax.nn.sigmoid(2.0 * eta), 1, -1).astype(jnp.int8)

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        """Log-probability of spins, nats."""
        return self.eta * value - jnp.logaddexp(self.eta, -self.eta)

    @property
    def mean(self) -> jax.Array:
        return jnp.tanh(self.eta)

    @property
    def variance(self) -> jax.Array:
        return 1.0 - jnp.tanh(self.eta) ** 2
