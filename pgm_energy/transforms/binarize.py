"""Spins written as 0 and 1, for kernels that know no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._struct import Key, struct
from pgm_energy.energy import EnergyModel
from pgm_energy.natural import Values
from pgm_energy.sites import Binary, Site, Spin
from pgm_energy.transforms._base import rebuild, require_model, wrapped

__all__ = ["Binarized", "binarize"]


@struct
class Binarized(EnergyModel):
    """An energy model whose spin sites are written as 0 and 1."""

    model: EnergyModel

    @property
    def title(self) -> str:
        return f"{self.model.title} in bits"

    @property
    def sites(self) -> dict[str, Site]:
        return {
            name: Binary(site.shape, site.dims) if isinstance(site, Spin) else site
            for name, site in self.model.sites.items()
        }

    @property
    def data_sites(self) -> tuple[str, ...]:
        return self.model.data_sites

    @property
    def known_log_partition(self) -> jax.Array | None:
        return self.model.known_log_partition  # this transformation keeps it

    def _spins(self, values: Values) -> dict[str, Any]:
        spin = {name for name, site in self.model.sites.items() if isinstance(site, Spin)}
        return {k: 2 * v - 1 if k in spin else v for k, v in values.items()}

    def energy(self, **values: jax.Array) -> jax.Array:
        return self.model.energy(**self._spins(values))

    def interactions(self, site: str) -> np.ndarray | None:
        return self.model.interactions(site)

    def project(self) -> Self:
        return rebuild(self, model=self.model.project())

    def _generic(self, rng_key: Key, fill: Callable[..., Any]) -> Self:
        return rebuild(self, model=wrapped(self.model, rng_key, fill))

    def _opened(self, rng_key: Key, fill: Callable[..., Any]) -> EnergyModel:
        return rebuild(self, model=self.model._opened(rng_key, fill))

    def clamp(self, values: Values) -> dict[str, Any]:
        clamped = self.model.clamp(self._spins(values))
        spin = {name for name, site in self.model.sites.items() if isinstance(site, Spin)}
        return {k: (v + 1) // 2 if k in spin else v for k, v in clamped.items()}

    def free_units(self, site: str) -> np.ndarray | None:
        return self.model.free_units(site)

    def decode(self, rng_key: Key, samples: Values) -> dict[str, jax.Array]:
        """Return samples of the original sites, spins as -1 and +1."""
        spins = self._spins({k: jnp.asarray(v) for k, v in samples.items()})
        spins = {name: self.model.sites[name].cast(value) for name, value in spins.items()}
        return self.model.decode(rng_key, spins)


def binarize(model: EnergyModel) -> EnergyModel:
    """Return the same law with spin sites as 0/1, for NumPyro's own discrete kernels.

    NumPyro's kernels take every support to be 0..K-1. ``decode`` gives the spins back.

    Notes
    -----
    Exact, log Z unchanged, no cost.

    Examples
    --------
    >>> import pgm_energy as pgm
    >>> lattice = pgm.ising_lattice((4, 4), coupling=0.3)
    >>> pgm.binarize(lattice).sites["v"].family
    'binary'
    """
    require_model(model, "binarize")
    return Binarized(model=model)
