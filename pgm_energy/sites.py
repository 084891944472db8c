"""Sites: named groups of units, each group one exponential family.

A family knows how raw samples are encoded as sufficient statistics T(x), its log-normaliser
A(eta), and how to draw from p(x) proportional to exp(<eta, T(x)>). Everything acts on arrays of
natural parameters of any leading shape, so that a block of some units needs no code of its own.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.linalg import cho_solve, solve_triangular

from pgm_energy._spin_distribution import SpinDistribution
from pgm_energy._struct import Key

__all__ = ["Binary", "Categorical", "Real", "Site", "Spin"]

#: Natural parameter (nats) that pins a clamped discrete unit: exp(-PIN) is 0 in float64.
PIN = 1000.0


class OneHot(NamedTuple):
    """An encoded categorical site where raw values are expected.

    Free energies are differentiated with respect to encodings, inside the simplex, which raw
    integers cannot express. :meth:`Categorical.encode` unwraps it.
    """

    value: jax.Array


def _as_shape(shape: int | tuple[int, ...]) -> tuple[int, ...]:
    given = shape if isinstance(shape, tuple | list) else (shape,)
    if not all(isinstance(n, int | np.integer) and n > 0 for n in given):
        raise ValueError(f"a site's shape is a positive integer or a tuple of them, got {shape!r}")
    return tuple(int(n) for n in given)


@dataclasses.dataclass(frozen=True, init=False)
class Site(ABC):
    """A named group of units of one family.

    Use :class:`Binary`, :class:`Spin`, :class:`Categorical` or :class:`Real`.

    Parameters
    ----------
    shape
        Shape of the group: an integer, a tuple, or ``()`` for one unit.
    dims
        Names of the dimensions, for ArviZ. Empty means unnamed.
    """

    shape: tuple[int, ...]
    dims: tuple[str, ...]

    #: word used in tables and messages
    family: ClassVar[str]
    #: type in which samples are stored
    dtype: ClassVar[Any]
    is_discrete: ClassVar[bool] = True

    def __init__(
        self, shape: int | tuple[int, ...], dims: str | tuple[str, ...] | list[str] = ()
    ) -> None:
        object.__setattr__(self, "shape", _as_shape(shape))
        names = (dims,) if isinstance(dims, str) else tuple(dims)
        if names and len(names) != len(self.shape):
            raise ValueError(
                f"dims {names} name {len(names)} dimensions, the shape is {self.shape}"
            )
        object.__setattr__(self, "dims", names)

    @property
    def size(self) -> int:
        """Number of units."""
        return math.prod(self.shape)

    @property
    def event(self) -> tuple[int, ...]:
        """Shape of one unit's encoding: ``()``, or ``(K,)`` for a categorical unit."""
        return ()

    @property
    def encoded_shape(self) -> tuple[int, ...]:
        """Shape of the encoded site."""
        return self.shape + self.event

    @property
    def states(self) -> np.ndarray:
        """Raw values that one unit can take. A real site has none."""
        raise TypeError(f"a {self.family} site has no list of states")

    @property
    def filler(self) -> float:
        """A raw value inside the support, for places whose value does not matter."""
        return float(self.states[0]) if self.is_discrete else 0.0

    @abstractmethod
    def encode(self, values: Any) -> jax.Array:
        """Return T(x): floating point, with a last dimension ``K`` if categorical."""

    @abstractmethod
    def log_normalizer(self, eta: jax.Array, precision: jax.Array | None = None) -> jax.Array:
        """Return A(eta), nats, one value per unit (a single one where units are coupled)."""

    @abstractmethod
    def mean(self, eta: jax.Array, precision: jax.Array | None = None) -> jax.Array:
        """Return E[T(x)], shaped like ``eta``."""

    @abstractmethod
    def sample(self, rng_key: Key, eta: jax.Array, precision: jax.Array | None = None) -> jax.Array:
        """Draw raw values given natural parameters."""

    def noise(self, rng_key: Key, shape: tuple[int, ...]) -> jax.Array:
        """Return all the randomness that :meth:`decide` needs for units of encoded ``shape``.

        Units that wait for one another get theirs beforehand, in one call, and in logit space,
        so that a decision is one comparison. Discrete families only.
        """
        raise TypeError(f"a {self.family} site makes no decisions")

    def decide(self, noise: jax.Array, eta: jax.Array) -> jax.Array:
        """Return raw values as a function of natural parameters and :meth:`noise`."""
        raise TypeError(f"a {self.family} site makes no decisions")

    @abstractmethod
    def distribution(self, eta: jax.Array, precision: jax.Array | None = None) -> dist.Distribution:
        """Return the law as a NumPyro distribution over raw values, units in the batch."""

    @abstractmethod
    def invalid(self, values: np.ndarray) -> np.ndarray:
        """Return a mask of values outside the support (NaN is never inside)."""

    @property
    @abstractmethod
    def support_text(self) -> str:
        """The support in words, for messages."""

    def log_prob(
        self, values: Any, eta: jax.Array, precision: jax.Array | None = None
    ) -> jax.Array:
        """Return the total log-probability (nats) of raw ``values`` given ``eta``."""
        inner = eta * self.encode(values)
        inner = jnp.sum(inner, axis=-1) if self.event else inner
        # unit by unit: a clamped unit's two terms are large and cancel
        return jnp.sum(inner - self.log_normalizer(eta, precision))

    def from_encoded(self, encoded: jax.Array) -> Any:
        """Return an encoding in a form that stands for raw values (:meth:`encode` undoes it)."""
        return encoded

    def pinned_parameter(self, values: Any) -> jax.Array:
        """Natural parameters of a law that holds ``values`` fast (real: unit variance)."""
        return PIN * self.encode(values)

    def base_distribution(self) -> dist.Distribution:
        """Return the base measure of the site in a NumPyro model (to be masked)."""
        eta = jnp.zeros(self.encoded_shape)
        return self.distribution(eta)

    def check(
        self,
        name: str,
        values: Any,
        *,
        allow_nan: bool = False,
        nan_hint: str = "to leave units free, use condition",
    ) -> None:
        """Refuse raw values outside the support, with their place. Tracers pass.

        Raises
        ------
        TypeError
            If the values are no real numbers.
        ValueError
            If a value is NaN, infinite or outside the support.
        """
        if isinstance(values, jax.core.Tracer):
            return
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"site {name!r} takes numbers, got dtype {array.dtype}")
        bad = self.invalid(array)
        if allow_nan and array.dtype.kind == "f":
            bad &= ~np.isnan(array)
        if not bad.any():
            return
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        value = array[place]
        what = "NaN" if array.dtype.kind == "f" and np.isnan(value) else f"{value}"
        where = (
            f" at row {place[0]}, column {place[1]}" if len(place) == 2 else f" at index {place}"
        )
        where = where if place else ""
        hint = f"; {nan_hint}" if what == "NaN" else ""
        raise ValueError(
            f"site {name!r} is {self.family} and takes {self.support_text}, got {what}{where}"
            f"{f' (and {int(bad.sum()) - 1} more)' if bad.sum() > 1 else ''}{hint}"
        )

    def cast(self, values: Any) -> jax.Array:
        """Return raw values in the storage type of the site."""
        return jnp.asarray(values).astype(self.dtype)


def _float(values: Any) -> jax.Array:
    """Values in the default floating type (float64 under ``jax.enable_x64``)."""
    values = jnp.asarray(values)
    if jnp.issubdtype(values.dtype, jnp.floating):
        return values
    return values.astype(jnp.result_type(float))


def _logistic(rng_key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Logistic noise from uniforms inside (0, 1): finite, so that a pinned unit never moves."""
    uniform = jax.random.uniform(rng_key, shape)
    half = 0.5 * float(jnp.finfo(uniform.dtype).eps)  # uniforms are multiples of eps
    uniform = uniform + half
    return jnp.log(uniform) - jnp.log1p(-uniform)


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
        return _float(values)

    def log_normalizer(self, eta: jax.Array, precision: jax.Array | None = None) -> jax.Array:
        return jax.nn.softplus(eta)

    def mean(self, eta: jax.Array, precision: jax.Array | None = None) -> jax.Array:
        return jax.nn.sigmoid(eta)

    def sample(self, rng_key: Key, eta: jax.Array, precision: jax.Array | None = None) -> jax.Array:
        uniform = jax.random.uniform(rng_key, eta.shape, eta.dtype)
        return (uniform < jax.nn.sigmoid(eta)).astype(jnp.int8)

    def noise(self, rng_key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return _logistic(rng_key, shape)

    def decide(self, noise: jax.Array, eta: jax.Array) -> jax.Array:
        return (noise < eta).astype(jnp.int8)

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
        return _float(values)

    def log_normalizer(self, eta: jax.Array, precision: jax.Array | None = None) -> jax.Array:
        return jnp.logaddexp(eta, -eta)

    def mean(self, eta: jax.Array, precision: jax.Array | None = None) -> jax.Array:
        return jnp.tanh(eta)

    def sample(self, rng_key: Key, eta: jax.Array, precision: jax.Array | None = None) -> jax.Array:
        uniform = jax.random.uniform(rng_key, eta.shape, eta.dtype)
        return jnp.where(uniform < jax.nn.sigmoid(2.0 * eta), 1, -1).astype(jnp.int8)

    def noise(self, rng_key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return 0.5 * _logistic(rng_key, shape)

    def decide(self, noise: jax.Array, eta: jax.Array) -> jax.Array:
        return jnp.where(noise < eta, 1, -1).astype(jnp.int8)

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

    def sample(self, rng_key: Key, eta: jax.Array, precision: jax.Array | None = None) -> jax.Array:
        return jax.random.categorical(rng_key, eta, axis=-1).astype(jnp.int32)

    def noise(self, rng_key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return jax.random.gumbel(rng_key, shape)

    def decide(self, noise: jax.Array, eta: jax.Array) -> jax.Array:
        return jnp.argmax(eta + noise, axis=-1).astype(jnp.int32)

    def distribution(self, eta: jax.Array, precision: jax.Array | None = None) -> dist.Distribution:
        return dist.Categorical(logits=eta)

    def invalid(self, values: np.ndarray) -> np.ndarray:
        inside = (values >= 0) & (values < self.num_states)
        return np.asarray(~(inside & (values == np.floor(values))))


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
        return _float(values)

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

    def sample(self, rng_key: Key, eta: jax.Array, precision: jax.Array | None = None) -> jax.Array:
        precision = self._precision(eta, precision)
        noise = jax.random.normal(rng_key, eta.shape, eta.dtype)
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
