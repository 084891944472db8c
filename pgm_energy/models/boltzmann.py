"""Boltzmann machines: dense, with or without hidden units."""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._batching import with_chains_last
from pgm_energy._struct import Key, Parameter, is_concrete, replace, static, struct
from pgm_energy.energy import EnergyModel
from pgm_energy.models.rbm import data_start
from pgm_energy.natural import Natural, Values, select_rows, select_square
from pgm_energy.sites import Binary, Site, Spin

__all__ = ["BoltzmannMachine"]


def require_symmetric(weights: jax.Array, name: str = "weights") -> None:
    """Refuse a coupling matrix that is not square and symmetric with a zero diagonal.

    Raises
    ------
    ValueError
        Naming the first entry that is wrong.
    """
    if weights.ndim != 2 or weights.shape[0] != weights.shape[1] or 0 in weights.shape:
        raise ValueError(f"{name} must be a square matrix, got shape {weights.shape}")
    if not is_concrete(weights):
        return
    matrix = np.asarray(weights)
    uneven = np.argwhere(matrix != matrix.T)
    if len(uneven):
        i, j = (int(k) for k in uneven[0])
        raise ValueError(
            f"{name} must be symmetric, got {matrix[i, j]} at ({i}, {j}) and {matrix[j, i]} at "
            f"({j}, {i}); use 0.5 * (weights + weights.T)"
        )
    loops = np.flatnonzero(np.diagonal(matrix))
    if len(loops):
        i = int(loops[0])
        raise ValueError(
            f"{name} must have a zero diagonal, got {matrix[i, i]} at ({i}, {i}): a unit's own "
            "term belongs in bias"
        )


@jax.jit
def symmetrize(weights: jax.Array) -> jax.Array:
    """Return the nearest symmetric matrix with a zero diagonal, exactly so to the last bit."""
    even = 0.5 * (weights + weights.T)
    return jnp.where(jnp.eye(weights.shape[0], dtype=bool), 0.0, even)


def _fields(rows: jax.Array, bias: jax.Array, x: jax.Array) -> jax.Array:
    """Return ``rows @ x + bias``, over chains one product in its fast orientation."""
    return with_chains_last(
        lambda rows, bias, x: jnp.tensordot(rows, x, axes=1) + bias, fixed=(0,)
    )(rows, bias, x)


@struct
class BoltzmannMachine(EnergyModel):
    """Boltzmann machine: ``E = -1/2 x'Wx - b'x`` over all units ``x = [v, h]``.

    Parameters
    ----------
    weights
        ``(n, n)``, symmetric with a zero diagonal.
    bias
        ``(n,)``; zero unless given.
    num_hidden
        How many of the units, the last ones, are hidden; 0 for a fully visible machine.
    unit
        ``Binary`` or ``Spin``.

    Raises
    ------
    ValueError
        On a matrix that is not symmetric or has a diagonal, on shapes that do not fit, NaN or
        infinite parameters.

    Notes
    -----
    Sampled by a sequential sweep in panels: the natural parameters of a panel by one product,
    then its units in turn.

    References
    ----------
    D. Ackley, G. Hinton and T. Sejnowski (1985), A learning algorithm for Boltzmann machines.

    Examples
    --------
    >>> import jax.numpy as jnp, pgm_energy as pgm
    >>> pgm.BoltzmannMachine(weights=jnp.zeros((5, 5)), num_hidden=2).sites["h"].size
    2
    """

    weights: Parameter
    bias: Parameter = None  # type: ignore[assignment]  # zeros unless given
    num_hidden: int = static(default=0)
    unit: Any = static(default=Binary)

    def validate(self) -> None:
        if self.unit not in (Binary, Spin):
            raise TypeError(f"unit must be Binary or Spin, got {self.unit!r}")
        require_symmetric(self.weights)
        count = self.weights.shape[0]
        if not isinstance(self.num_hidden, int) or not 0 <= self.num_hidden < count:
            raise ValueError(
                f"num_hidden must be an integer from 0 to {count - 1}, got {self.num_hidden!r}"
            )
        if self.bias is None:
            object.__setattr__(self, "bias", jnp.zeros(count, self.weights.dtype))
        elif self.bias.shape != (count,):
            raise ValueError(f"bias must have shape ({count},), got {self.bias.shape}")

    @property
    def data_sites(self) -> tuple[str, ...]:
        return ("v",)

    @property
    def num_visible(self) -> int:
        """Number of visible units."""
        return self.weights.shape[0] - self.num_hidden

    @property
    def sites(self) -> dict[str, Site]:
        sites: dict[str, Site] = {"v": self.unit(self.num_visible, dims=("visible",))}
        if self.num_hidden:
            sites["h"] = self.unit(self.num_hidden, dims=("hidden",))
        return sites

    def _split(self, site: str) -> slice:
        return slice(0, self.num_visible) if site == "v" else slice(self.num_visible, None)

    def _units(self, site: str, index: jax.Array) -> jax.Array:
        """Rows of the whole matrix: slicing a layer first would copy it for every panel."""
        return index if site == "v" else index + self.num_visible

    def energy(self, **values: jax.Array) -> jax.Array:
        x = jnp.concatenate([values[name] for name in self.sites])
        return -0.5 * x @ self.weights @ x - self.bias @ x

    def natural_parameters(
        self, site: str, values: Values, index: jax.Array | None = None
    ) -> Natural:
        """Return the natural parameters of some units: their rows times the configuration."""
        self.require_sites([site])
        x = jnp.concatenate(list(self.encode(values).values()))
        if index is None:
            part = self._split(site)
            return Natural(_fields(self.weights[part], self.bias[part], x))
        units = self._units(site, index)
        return Natural(_fields(select_rows(self.weights, units), self.bias[units], x))

    def block_couplings(self, site: str, index: jax.Array) -> jax.Array:
        """Return the couplings inside a block: a slice of the matrix."""
        return select_square(self.weights, self._units(site, index))

    def pair_couplings(self) -> tuple[np.ndarray, jax.Array]:
        """Return all pairs of units, visible ones first, and their couplings."""
        first, second = np.triu_indices(self.weights.shape[0], 1)
        return np.stack([first, second], axis=1), self.weights[first, second]

    def project(self) -> Self:
        """Return the machine with a symmetric matrix and a zero diagonal."""
        return replace(self, weights=symmetrize(self.weights))

    @classmethod
    def init(
        cls,
        rng_key: Key,
        *,
        num_visible: int,
        num_hidden: int = 0,
        data: Any = None,
        unit: Any = Binary,
        scale: float = 0.01,
    ) -> BoltzmannMachine:
        """Return a machine to start learning from.

        Parameters
        ----------
        rng_key
            A JAX random key.
        num_visible, num_hidden
            Numbers of units.
        data
            Rows ``(N, num_visible)`` whose frequencies set the visible biases.
        unit
            ``Binary`` or ``Spin``.
        scale
            Standard deviation of the initial couplings.
        """
        count = num_visible + num_hidden
        weights = symmetrize(scale * jax.random.normal(rng_key, (count, count)))
        bias = jnp.zeros(count)
        start, _ = data_start(unit(num_visible), data)
        if start is not None:
            bias = bias.at[:num_visible].set(start)
        return cls(weights=weights, bias=bias, num_hidden=num_hidden, unit=unit)


__all__ += ["require_symmetric", "symmetrize"]
