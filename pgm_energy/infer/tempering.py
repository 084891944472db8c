"""Parallel tempering as a NumPyro kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.mcmc import MCMCKernel

from pgm_energy import _random
from pgm_energy._checks import require_count
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.fitted_base import fitted_base
from pgm_energy.infer._adapter import EnergyKernel
from pgm_energy.kernels.tempering import (
    Replicas,
    TemperingKernel,
    check_betas,
    retuned,
    start,
)
from pgm_energy.models.independent import Independent
from pgm_energy.observables import Observables
from pgm_energy.structure import Blocks, blocks
from pgm_energy.transforms import temper

__all__ = ["ParallelTempering", "ParallelTemperingState"]

#: Inverse temperatures unless given.
_NUM_REPLICAS = 10
#: Fewest steps whose swaps say something about the ladder.
_FIRST_ROUND = 8


class ParallelTemperingState(NamedTuple):
    """State of :class:`ParallelTempering`, with the fields that NumPyro's MCMC looks for.

    Attributes
    ----------
    z
        Raw values of the sampled sites at beta = 1.
    potential_energy
        E of the target there, nats, observed sites included.
    betas
        Inverse temperatures, ``(replicas,)``; they change in warm-up only.
    swap_rate
        Mean probability of accepting a swap of each pair of neighbours, ``(replicas - 1,)``,
        since ``betas`` last changed (after warm-up: since its end).
    round_trips
        Journeys of all walkers from the base to the target and back, since the end of warm-up.
    round_trip_time
        Mean number of steps of a walker's round trip so far; infinite before the first.
    replicas
        All configurations and who is where.
    base
        The fitted base; None where it was given.
    step, num_warmup, num_averaged
        Steps done; how many of them are warm-up; how many ``swap_rate`` is the mean of.
    rng_key
        Key of the next step.
    """

    z: dict[str, jax.Array]
    potential_energy: jax.Array
    betas: jax.Array
    swap_rate: jax.Array
    round_trips: jax.Array
    round_trip_time: jax.Array
    replicas: Replicas
    base: Any
    step: jax.Array
    num_warmup: jax.Array
    num_averaged: jax.Array
    rng_key: Key


class ParallelTempering(EnergyKernel):
    """Parallel tempering as a NumPyro kernel: chains that walk between the modes of a model.

    Replicas of a configuration are swept by block Gibbs along the path
    ``(1 - beta) E_base + beta E_model`` and neighbours are swapped. What is drawn is the replica
    at beta = 1.

    Parameters
    ----------
    model
        An energy model that block Gibbs can sample.
    betas
        Inverse temperatures that increase from 0 to 1. None: 10 of them, evenly spaced.
        Warm-up moves them until all neighbours swap equally often.
    base
        A model over the same sites that mixes at once. None: independent units with the
        marginals of a short block-Gibbs run that every chain makes for itself, given what is
        observed.
    num_sweeps
        Sweeps of each replica before neighbours are swapped.
    adapt
        False keeps ``betas`` as they are in warm-up too.
    observables
        Functions of a configuration, whose values are stored instead: see :class:`BlockGibbs`.

    Raises
    ------
    TypeError
        If ``model`` or ``base`` is no energy model, or ``betas`` are no numbers.
    ValueError
        If ``betas`` do not increase strictly from 0 to 1, if the base has other sites, or if
        block Gibbs cannot sample the model.

    Notes
    -----
    Exact after warm-up, at any base and betas: the product of the laws of all replicas is left
    alone; a swap of r and r + 1 is accepted with probability
    ``min(1, exp((beta[r + 1] - beta[r]) * (D[r + 1] - D[r])))`` where D is the energy of the
    model minus that of the base, of all sites together. Even and odd pairs take turns. In
    warm-up the betas are moved after 8 or more steps and then at doubling intervals, the last
    time at its end. A step costs ``num_sweeps`` sweeps and one energy per replica; fitting the
    base 64 chains of 50 sweeps. The pure kernel is ``pgm_energy.kernels.TemperingKernel``.

    Works with every chain method of ``numpyro.infer.MCMC``; ``"vectorized"`` is the fast one. A
    keyword of ``mcmc.run`` that is not None observes that site, ``init_params`` is where all
    replicas start.
    ``extra_fields=("betas", "swap_rate", "round_trips", "round_trip_time")`` collects what says
    whether it works, and ``to_datatree`` keeps them: no round trips, no evidence that modes were
    exchanged. It cannot be a block of NumPyro's composite ``Gibbs``: the replicas at beta < 1
    follow laws given the other sites, which those sites' update does not know of.

    References
    ----------
    R. Swendsen and J.-S. Wang (1986), Replica Monte Carlo simulation of spin glasses.

    C. Geyer (1991), Markov chain Monte Carlo maximum likelihood.

    S. Syed, A. Bouchard-Cote, G. Deligiannidis and A. Doucet (2021), Non-reversible parallel
    tempering: a scalable highly parallel MCMC scheme.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, pgm_energy as pgm
    >>> from numpyro.infer import MCMC
    >>> magnet = pgm.ising_lattice((4, 4), coupling=1.0)  # all up or all down
    >>> mcmc = MCMC(pgm.ParallelTempering(magnet), num_warmup=100, num_samples=300,
    ...             progress_bar=False)
    >>> mcmc.run(jax.random.key(0), extra_fields=("round_trips",))
    >>> sorted({int(s) for s in jnp.sign(mcmc.get_samples()["v"].sum((1, 2)))} & {-1, 1})
    [-1, 1]
    """

    #: the default refuses to be a block of NumPyro's composite, see the notes
    refresh = MCMCKernel.refresh

    def __init__(
        self,
        model: EnergyModel,
        betas: Any = None,
        base: EnergyModel | None = None,
        num_sweeps: int = 1,
        *,
        adapt: bool = True,
        observables: Observables | None = None,
    ) -> None:
        super().__init__(model, observables)
        if base is not None and not isinstance(base, EnergyModel):
            raise TypeError(
                f"ParallelTempering takes an energy model as base, got {type(base).__name__}"
            )
        if betas is None:
            betas = np.linspace(0.0, 1.0, _NUM_REPLICAS)
        self._betas = check_betas(betas)
        self._num_sweeps = require_count("num_sweeps", num_sweeps)
        self._adapt = bool(adapt)
        self._model_blocks = blocks(model)
        self._given_base = base
        #: sites, families and clamped units; what was not given is fitted to each run
        self._base = Independent.like(model) if base is None else base
        self._blocks = blocks(temper(self._base, model, 0.5))

    @property
    def base(self) -> EnergyModel | None:
        """The base that was given; None where every chain fits one."""
        return self._given_base

    @property
    def betas(self) -> np.ndarray:
        """The inverse temperatures that warm-up starts from."""
        return self._betas.copy()

    @property
    def blocks(self) -> Blocks:
        """The verified schedule of one sweep, of any replica."""
        return self._blocks

    @property
    def num_sweeps(self) -> int:
        """Sweeps of each replica before neighbours are swapped."""
        return self._num_sweeps

    @property
    def num_replicas(self) -> int:
        """How many inverse temperatures there are."""
        return len(self._betas)

    def _start(self, rng_key: Key, given: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Return configurations to start from, of all replicas, what is given in each of them."""
        begin = super()._start
        keys = _random.split(rng_key, self.num_replicas)
        return jax.vmap(lambda key: begin(key, given))(keys)

    def _first(
        self,
        rng_key: Key,
        values: dict[str, jax.Array],
        fixed: Mapping[str, jax.Array],
        num_warmup: int,
    ) -> ParallelTemperingState:
        rng_key, base_key = _random.split(rng_key, 2)
        model, base = self._energy_model, None
        if self._given_base is None:
            schedule = self._model_blocks.restrict(self._free(fixed))
            base = fitted_base(base_key, model, self._base, dict(fixed), blocks=schedule)
        target = {name: value[-1] for name, value in values.items()}
        betas = jnp.asarray(self._betas, jnp.result_type(float))
        zero = jnp.zeros((), jnp.int32)
        return ParallelTemperingState(
            z=self._sampled(target, fixed),
            potential_energy=self._energy(target),
            betas=betas,
            swap_rate=jnp.zeros(self.num_replicas - 1, betas.dtype),
            round_trips=zero,
            round_trip_time=jnp.full((), jnp.inf, betas.dtype),
            replicas=start(self._sampled(values, fixed)),
            base=base,
            step=zero,
            num_warmup=jnp.asarray(num_warmup, jnp.int32),
            num_averaged=zero,
            rng_key=rng_key,
        )

    def _step(
        self, state: ParallelTemperingState, fixed: Mapping[str, jax.Array]
    ) -> ParallelTemperingState:
        kernel = TemperingKernel(self._blocks.restrict(self._free(fixed)), self._num_sweeps)
        rng_key, key = _random.split(state.rng_key, 2)
        base = self._base if state.base is None else state.base
        held = {
            name: jnp.broadcast_to(value, (self.num_replicas, *value.shape))
            for name, value in fixed.items()
        }
        replicas = state.replicas._replace(values={**state.replicas.values, **held})
        replicas, info = kernel(key, replicas, base, self._energy_model, state.betas)
        values = self._sampled(replicas.values, fixed)
        state = state._replace(
            z={name: value[-1] for name, value in values.items()},
            potential_energy=info.energy.astype(state.potential_energy.dtype),
            replicas=replicas._replace(values=values),
            rng_key=rng_key,
        )
        return self._tuned(state, info.swap_prob)

    def _tuned(self, state: ParallelTemperingState, swap_prob: jax.Array) -> ParallelTemperingState:
        """Count the step; move the betas where warm-up has a round of swaps behind it."""
        step, count, total = state.step + 1, state.num_averaged + 1, state.num_warmup
        rate = state.swap_rate + (swap_prob - state.swap_rate) / count
        # rounds double, and the last one ends with warm-up
        due = (step >= _FIRST_ROUND) & jnp.any(step == total >> jnp.arange(31))
        ended = step == total
        betas = jnp.where(due, retuned(state.betas, rate), state.betas)
        trips = jnp.where(ended, 0, state.replicas.round_trips)
        all_trips = jnp.sum(trips, dtype=jnp.int32)
        elapsed = jnp.where(step > total, step - total, step).astype(betas.dtype)
        time = jnp.where(all_trips > 0, self.num_replicas * elapsed / all_trips, jnp.inf)
        return state._replace(
            betas=betas if self._adapt else state.betas,
            swap_rate=rate.astype(state.swap_rate.dtype),
            round_trips=all_trips,
            round_trip_time=time.astype(betas.dtype),
            replicas=state.replicas._replace(round_trips=trips),
            step=step,
            num_averaged=jnp.where(due | ended, 0, count),
        )

    def __repr__(self) -> str:
        return (
            f"ParallelTempering({self._energy_model!r}, {self.num_replicas} replicas, "
            f"num_sweeps={self._num_sweeps})"
        )
