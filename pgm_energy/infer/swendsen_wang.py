"""Swendsen-Wang as a NumPyro kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy import _random
from pgm_energy._checks import require_count
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.infer._adapter import EnergyKernel
from pgm_energy.kernels.swendsen_wang import swendsen_wang_kernel
from pgm_energy.kernels.updates import share_moved
from pgm_energy.observables import Observables

__all__ = ["SwendsenWang", "SwendsenWangState"]


class SwendsenWangState(NamedTuple):
    """State of :class:`SwendsenWang`, with the fields that NumPyro's MCMC looks for.

    Attributes
    ----------
    z
        Raw values of the sites that are sampled.
    potential_energy
        E of the configuration, nats, observed sites included.
    flip_rate
        Share of units that changed in the last step, by site.
    num_clusters
        Number of clusters in the last sweep; the number of units before the first.
    rng_key
        Key of the next step.
    """

    z: dict[str, jax.Array]
    potential_energy: jax.Array
    flip_rate: dict[str, jax.Array]
    num_clusters: jax.Array
    rng_key: Key


class SwendsenWang(EnergyKernel):
    """Swendsen-Wang as a NumPyro kernel: clusters of units that agree move as one.

    Parameters
    ----------
    model
        A pairwise model of discrete sites: units of two states with couplings of either sign
        (``ising_lattice``, ``SparseBoltzmannMachine``, ``BoltzmannMachine``, ``RBM``), or of more
        states with couplings that reward agreement (``PottsMachine``).
    num_sweeps
        Sweeps per step; a sweep draws the bonds of all edges and a new state of all clusters.
    observables
        Functions of a configuration, whose values are stored instead: see :class:`BlockGibbs`.

    Raises
    ------
    TypeError
        If ``model`` is no energy model.
    ValueError
        If it is not pairwise, its units have different numbers of states, or its couplings are
        of another form (repelling units of more than two states, for example).

    Notes
    -----
    Exact, fields included: a cluster's state is drawn from the product of its units' fields.
    Nothing is rejected. Fast near the critical point of ferromagnets, where single units are
    slow; with strong fields or frustration clusters gain nothing. Cost: passes over the edges, a
    few per sweep. Works with every chain method and with observed sites by keyword (their
    clusters stay). The pure kernel comes from ``pgm_energy.kernels.swendsen_wang_kernel``.

    References
    ----------
    R. Swendsen and J.-S. Wang (1987), Nonuniversal critical dynamics in Monte Carlo simulations.

    Examples
    --------
    >>> import jax, pgm_energy as pgm
    >>> from numpyro.infer import MCMC
    >>> lattice = pgm.ising_lattice((4, 4), coupling=0.44)
    >>> mcmc = MCMC(pgm.SwendsenWang(lattice), num_warmup=5, num_samples=10,
    ...             progress_bar=False)
    >>> mcmc.run(jax.random.key(0), extra_fields=("num_clusters",))
    >>> mcmc.get_samples()["v"].shape
    (10, 4, 4)
    """

    def __init__(
        self, model: EnergyModel, num_sweeps: int = 1, observables: Observables | None = None
    ) -> None:
        super().__init__(model, observables)
        self._num_sweeps = require_count("num_sweeps", num_sweeps)
        self._kernel = swendsen_wang_kernel(model)
        self._numbers = jax.jit(self._kernel.numbers)(model)

    @property
    def num_sweeps(self) -> int:
        """Sweeps per step."""
        return self._num_sweeps

    def _first(
        self,
        rng_key: Key,
        values: dict[str, jax.Array],
        fixed: Mapping[str, jax.Array],
        num_warmup: int,
    ) -> SwendsenWangState:
        z = self._sampled(values, fixed)
        return SwendsenWangState(
            z=z,
            potential_energy=self._energy(values),
            flip_rate={name: jnp.zeros((), jnp.result_type(float)) for name in z},
            num_clusters=jnp.full((), self._kernel.pairs.num_units, jnp.int32),
            rng_key=rng_key,
        )

    def _step(self, state: SwendsenWangState, fixed: Mapping[str, jax.Array]) -> SwendsenWangState:
        rng_key, key = _random.split(state.rng_key, 2)
        held = None
        if fixed:
            held = jnp.asarray(
                np.concatenate(
                    [np.full(site.size, name in fixed) for name, site in self._kernel.pairs.sites]
                )
            )

        def sweep(values: Any, key: jax.Array) -> Any:
            return self._kernel.sweep(key, values, self._energy_model, self._numbers, held)

        start = self._cast({**state.z, **fixed})
        values, infos = jax.lax.scan(sweep, start, _random.split(key, self._num_sweeps))
        z = self._sampled(values, fixed)
        return SwendsenWangState(
            z=z,
            potential_energy=infos.energy[-1],
            flip_rate={name: share_moved(old, z[name]) for name, old in state.z.items()},
            num_clusters=infos.num_clusters[-1].astype(jnp.int32),
            rng_key=rng_key,
        )

    def __repr__(self) -> str:
        return f"SwendsenWang({self._energy_model!r}, num_sweeps={self._num_sweeps})"
