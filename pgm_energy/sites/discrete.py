"""Discrete families: binary, spin and categorical units."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from pgm_energy import _random
from pgm_energy._spin_distribution import SpinDistribution
from pgm_energy._struct import Key
from pgm_energy.sites._base import PIN, Site, as_float

__all__ = ["Binary", "Categorical", "OneHot", "Spin"]


class OneHot(NamedTuple):
    """An encoded categorical site where raw values are expected.

    Free energies are differentiated with respect to encodings, inside the simplex, which raw
    integers cannot express. :meth:`Categorical.encode` unwraps it.
    """

    value: jax.Array


def _tail_change(eta: jax.Array, new_eta: jax.Array) -> jax.Array:
    """What softplus changes by beyond its corner; one logarithm, and no large numbers."""
    return jnp.log((1.0 + jnp.exp(-jnp.abs(new_eta))) / (1.0 + jnp.exp(-jnp.abs(eta))))


@dataclasses.dataclass(frozen=True, init=False)
class Binary(Site):
    """Units with values 0 and 1; T(x) = x, A(eta) = softplus(eta), P(1) = sigmoid(eta).

    Examples
    --------
    >>> Binary(3, dims=("visible",)).encoded_shape
    (3,)
    """

    family: ClassVar[str] = "binary"
    dtype: ClassVar[Any] = jnp.int8

    @property
    def states(self) -> np.ndarray:
        return np.array([0, 1], dtype=np.int8)

    @property
    def support_text(self) -> str:
        return "0 and 1"

    def encode(self, values: Any) -> jax.Array:
        return as_float(values)

    def log_normalizer(self, eta: jax.Array, precision: jax.Array | None = None) -> jax.Array:
        return jax.nn.softplus(eta)

    def log_normalizer_change(
        self,
        eta: jax.Array,
        new_eta: jax.Array,
        precision: jax.Array | None = None,
        new_precision: jax.Array | None = None,
    ) -> jax.Array:
        return jnp.maximum(new_eta, 0.0) - jnp.maximum(eta, 0.0) + _tail_change(eta, new_eta)

    def mean(self, eta: jax.Array, precision: jax.Array | None = None) -> jax.Array:
        return jax.nn.sigmoid(eta)

    def noise(self, rng_key: Key, shape: tuple[int, ...]) -> jax.Array:
        return _random.uniform(rng_key, shape)

    def decide(
        self, noise: jax.Array, eta: jax.Array, precision: jax.Array | None = None
    ) -> jax.Array:
        return _random.decide(noise, eta).astype(jnp.int8)

    def distribution(self, eta: jax.Array, precision: jax.Array | None = None) -> dist.Distribution:
        return dist.Bernoulli(logits=eta)

    def invalid(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(~((values == 0) | (values == 1)))

    def pinned_parameter(self, values: Any) -> jax.Array:
        return PIN * (2.0 * self.encode(values) - 1.0)


@dataclasses.dataclass(frozen=True, init=False)
class Spin(Site):
    """Units with values -1 and +1; T(x) = x, A(eta) = log 2cosh(eta), P(+1) = sigmoid(2 eta).

    Examples
    --------
    >>> Spin((4, 4), dims=("row", "column")).size
    16
    """

    family: ClassVar[str] = "spin"
    dtype: ClassVar[Any] = jnp.int8

    @property
    def states(self) -> np.ndarray:
        return np.array([-1, 1], dtype=np.int8)

    @property
    def support_text(self) -> str:
        return "-1 and +1"

    def encode(self, values: Any) -> jax.Array:
        return as_float(values)

    def log_normalizer(self, eta: jax.Array, precision: jax.Array | None = None) -> jax.Array:
        return jnp.logaddexp(eta, -eta)

    def log_normalizer_change(
        self,
        eta: jax.Array,
        new_eta: jax.Array,
        precision: jax.Array | None = None,
        new_precision: jax.Array | None = None,
    ) -> jax.Array:
        return jnp.abs(new_eta) - jnp.abs(eta) + _tail_change(2.0 * eta, 2.0 * new_eta)

    def mean(self, eta: jax.Array, precision: jax.Array | None = None) -> jax.Array:
        return jnp.tanh(eta)

    def noise(self, rng_key: Key, shape: tuple[int, ...]) -> jax.Array:
        return _random.uniform(rng_key, shape)

    def decide(
        self, noise: jax.Array, eta: jax.Array, precision: jax.Array | None = None
    ) -> jax.Array:
        return jnp.where(_random.decide(noise, 2.0 * eta), 1, -1).astype(jnp.int8)

    def distribution(self, eta: jax.Array, precision: jax.Array | None = None) -> dist.Distribution:
        return SpinDistribution(eta)

    def invalid(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(~((values == -1) | (values == 1)))


@dataclasses.dataclass(frozen=True, init=False)
class Categorical(Site):
    """Units with values 0..K-1; T(x) is one-hot, A(eta) = logsumexp(eta).

    Parameters
    ----------
    num_states
        K, at least 2.
    shape, dims
        As for every site; the one-hot dimension comes last in the encoding.

    Examples
    --------
    >>> Categorical(5, 3).encoded_shape
    (3, 5)
    """

    num_states: int

    family: ClassVar[str] = "categorical"
    dtype: ClassVar[Any] = jnp.int32

    def __init__(
        self,
        num_states: int,
        shape: int | tuple[int, ...],
        dims: str | tuple[str, ...] | list[str] = (),
    ) -> None:
        if not isinstance(num_states, int | np.integer) or num_states < 1:
            raise ValueError(f"num_states must be a positive integer, got {num_states!r}")
        object.__setattr__(self, "num_states", int(num_states))
        super().__init__(shape, dims)

    @property
    def event(self) -> tuple[int, ...]:
        return (self.num_states,)

    @property
    def states(self) -> np.ndarray:
        return np.arange(self.num_states, dtype=np.int32)

    @property
    def support_text(self) -> str:
        return f"integers from 0 to {self.num_states - 1}"

    def encode(self, values: Any) -> jax.Array:
        if isinstance(values, OneHot):
            return values.value
        values = jnp.asarray(values)
        one_hot = values[..., None].astype(jnp.int32) == jnp.arange(self.num_states)
        return one_hot.astype(jnp.result_type(float))

    def from_encoded(self, encoded: jax.Array) -> Any:
        return OneHot(encoded)

    def log_normalizer(self, eta: jax.Array, precision: jax.Array | None = None) -> jax.Array:
        return jax.nn.logsumexp(eta, axis=-1)

    def mean(self, eta: jax.Array, precision: jax.Array | None = None) -> jax.Array:
        return jax.nn.softmax(eta, axis=-1)

    def noise(self, rng_key: Key, shape: tuple[int, ...]) -> jax.Array:
        return _random.gumbel(rng_key, shape)

    def decide(
        self, noise: jax.Array, eta: jax.Array, precision: jax.Array | None = None
    ) -> jax.Array:
        return jnp.argmax(eta + noise, axis=-1).astype(jnp.int32)

    def distribution(self, eta: jax.Array, precision: jax.Array | None = None) -> dist.Distribution:
        return dist.Categorical(logits=eta)

    def invalid(self, values: np.ndarray) -> np.ndarray:
        inside = (values >= 0) & (values < self.num_states)
        return np.asarray(~(inside & (values == np.floor(values))))
