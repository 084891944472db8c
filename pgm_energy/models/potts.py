"""Potts machines: pairwise couplings between categorical units."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._struct import Key, Parameter, is_concrete, replace, struct
from pgm_energy.energy import EnergyModel
from pgm_energy.models.rbm import data_start
from pgm_energy.natural import Natural, Values
from pgm_energy.sites import Categorical, Site

__all__ = ["PottsMachine"]


@struct
class PottsMachine(EnergyModel):
    """Potts machine: ``E = -1/2 sum_ij J[i, j, x_i, x_j] - sum_i f[i, x_i]``.

    Parameters
    ----------
    couplings
        J, ``(n, n, K, K)``, nats, with ``J[i, j, a, b] == J[j, i, b, a]`` and zero for i == j.
    fields
        f, ``(n, K)``, nats; zero unless given.

    Raises
    ------
    ValueError
        On couplings that are not symmetric or couple a unit to itself, on shapes that do not
        fit, NaN or infinite parameters.

    Notes
    -----
    Sampled by a sequential sweep in panels. The natural parameters of m units cost m n K^2. The
    gauge is free: adding a function of x_i alone to J and subtracting it from f changes nothing.

    References
    ----------
    R. Potts (1952), Some generalized order-disorder transformations. M. Ekeberg et al. (2013),
    Improved contact prediction in proteins: using pseudolikelihoods to infer Potts models.

    Examples
    --------
    >>> import jax.numpy as jnp, pgm_energy as pgm
    >>> pgm.PottsMachine(couplings=jnp.zeros((4, 4, 3, 3))).sites["v"].num_states
    3
    """

    couplings: Parameter
    fields: Parameter | None = None

    data_sites: ClassVar[tuple[str, ...]] = ("v",)

    def validate(self) -> None:
        """Refuse couplings that are not symmetric or couple a unit to itself."""
        shape = self.couplings.shape
        if len(shape) != 4 or shape[0] != shape[1] or shape[2] != shape[3] or 0 in shape:
            raise ValueError(f"couplings must have shape (n, n, K, K), got {shape}")
        if shape[2] < 2:
            raise ValueError(f"a unit needs at least 2 states, got couplings of shape {shape}")
        if self.fields is None:
            object.__setattr__(self, "fields", jnp.zeros((shape[0], shape[2]), self.dtype))
        elif self.fields.shape != (shape[0], shape[2]):
            raise ValueError(
                f"fields must have shape {(shape[0], shape[2])}, got {self.fields.shape}"
            )
        if is_concrete(self.couplings):
            _require_symmetric_tensor(np.asarray(self.couplings))

    @property
    def dtype(self) -> Any:
        """Floating type of the parameters."""
        return self.couplings.dtype

    @property
    def sites(self) -> dict[str, Site]:
        """One categorical site ``v``."""
        return {"v": Categorical(self.couplings.shape[2], self.couplings.shape[0], ("visible",))}

    def _pull(self, v: jax.Array) -> jax.Array:
        """Natural parameters of all units: fields plus what the one-hot ``v`` adds."""
        assert self.fields is not None
        return self.fields + jnp.einsum("ijab,jb->ia", self.couplings, v)

    def energy(self, v: jax.Array) -> jax.Array:
        """Return E(v), nats, of a one-hot configuration."""
        assert self.fields is not None
        return -0.5 * jnp.sum((self._pull(v) + self.fields) * v)

    def natural_parameters(
        self, site: str, values: Values, index: jax.Array | None = None
    ) -> Natural:
        """Return the natural parameters of some units: their rows of the couplings.

        The derivation costs two products with all couplings, this one with the rows asked for.
        """
        assert self.fields is not None
        x = self.sites[site].encode(values[site])
        if index is None:
            return Natural(self._pull(x))
        rows = self.couplings[index]
        return Natural(self.fields[index] + jnp.einsum("mjab,jb->ma", rows, x))

    def block_couplings(self, site: str, index: jax.Array) -> jax.Array:
        """Return the couplings inside a block, ``(m, K, m, K)``: a slice."""
        return self.couplings[index[:, None], index].transpose(0, 2, 1, 3)

    def pair_couplings(self) -> tuple[np.ndarray, jax.Array]:
        """Return all pairs of units and their couplings by the states of the two."""
        first, second = np.triu_indices(self.couplings.shape[0], 1)
        return np.stack([first, second], axis=1), self.couplings[first, second]

    def project(self) -> Self:
        """Return the machine with symmetric couplings and none from a unit to itself."""
        even = 0.5 * (self.couplings + self.couplings.transpose(1, 0, 3, 2))
        own = jnp.eye(even.shape[0], dtype=bool)[:, :, None, None]
        return replace(self, couplings=jnp.where(own, 0.0, even))

    @classmethod
    def init(
        cls,
        rng_key: Key,
        *,
        num_visible: int,
        num_states: int,
        data: Any = None,
        scale: float = 0.01,
    ) -> PottsMachine:
        """Return a machine to start learning from: small couplings, fields from frequencies.

        Parameters
        ----------
        rng_key
            A JAX random key.
        num_visible, num_states
            Numbers of units and of states per unit.
        data
            Rows ``(N, num_visible)`` of states whose frequencies set the fields.
        scale
            Standard deviation of the initial couplings.

        Examples
        --------
        >>> import jax, pgm_energy as pgm
        >>> pgm.PottsMachine.init(jax.random.key(0), num_visible=3, num_states=4).fields.shape
        (3, 4)
        """
        shape = (num_visible, num_visible, num_states, num_states)
        fields, _ = data_start(Categorical(num_states, num_visible), data)
        random = scale * jax.random.normal(rng_key, shape)
        even = (random + random.transpose(1, 0, 3, 2)) / np.sqrt(2.0)
        own = jnp.eye(num_visible, dtype=bool)[:, :, None, None]
        return cls(couplings=jnp.where(own, 0.0, even), fields=fields)


def _require_symmetric_tensor(couplings: np.ndarray) -> None:
    uneven = np.argwhere(couplings != couplings.transpose(1, 0, 3, 2))
    if len(uneven):
        i, j, a, b = (int(k) for k in uneven[0])
        raise ValueError(
            f"couplings must be symmetric, J[i, j, a, b] == J[j, i, b, a]: got "
            f"{couplings[i, j, a, b]} at ({i}, {j}, {a}, {b}) and {couplings[j, i, b, a]} at "
            f"({j}, {i}, {b}, {a}); use 0.5 * (J + J.transpose(1, 0, 3, 2))"
        )
    units = np.arange(len(couplings))
    own = np.argwhere(couplings[units, units])
    if len(own):
        i, a, b = (int(k) for k in own[0])
        raise ValueError(
            f"couplings must be zero for i == j, got {couplings[i, i, a, b]} at "
            f"({i}, {i}, {a}, {b}): a unit's own term belongs in fields"
        )
