"""The base of every family: shapes, support, and what a family must say."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from pgm_energy._struct import Key

__all__ = ["PIN", "Site", "as_float"]

#: Natural parameter (nats) that pins a clamped discrete unit: exp(-PIN) is 0 in float64.
PIN = 1000.0


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

    def log_normalizer_change(
        self,
        eta: jax.Array,
        new_eta: jax.Array,
        precision: jax.Array | None = None,
        new_precision: jax.Array | None = None,
    ) -> jax.Array:
        """Return A(new_eta) - A(eta), nats, shaped like :meth:`log_normalizer`."""
        return self.log_normalizer(new_eta, new_precision) - self.log_normalizer(eta, precision)

    @abstractmethod
    def mean(self, eta: jax.Array, precision: jax.Array | None = None) -> jax.Array:
        """Return E[T(x)], shaped like ``eta``."""

    @abstractmethod
    def noise(self, rng_key: Key, shape: tuple[int, ...]) -> jax.Array:
        """Return all the randomness that :meth:`decide` needs for units of encoded ``shape``.

        Units that wait for one another get theirs beforehand, in one call.
        """

    @abstractmethod
    def decide(
        self, noise: jax.Array, eta: jax.Array, precision: jax.Array | None = None
    ) -> jax.Array:
        """Return raw values as a function of :meth:`noise` and natural parameters."""

    def sample(self, rng_key: Key, eta: jax.Array, precision: jax.Array | None = None) -> jax.Array:
        """Draw raw values given natural parameters."""
        return self.decide(self.noise(rng_key, eta.shape), eta, precision)

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


def as_float(values: Any) -> jax.Array:
    """Values in the default floating type (float64 under ``jax.enable_x64``)."""
    values = jnp.asarray(values)
    if jnp.issubdtype(values.dtype, jnp.floating):
        return values
    return values.astype(jnp.result_type(float))
