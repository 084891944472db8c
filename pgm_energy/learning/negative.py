"""Where the samples of the model come from: chains of any kernel, also ones with a state."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._checks import require_count
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.kernels.gibbs import GibbsKernel, random_configurations
from pgm_energy.kernels.tempering import (
    Replicas,
    TemperingKernel,
    check_betas,
    random_start,
    retuned,
)
from pgm_energy.learning.latents import as_raw, quiet_schedule
from pgm_energy.learning.loop import Rows
from pgm_energy.models.independent import Independent
from pgm_energy.structure import blocks
from pgm_energy.transforms import temper

__all__ = ["KernelChains", "NegativePhase", "TemperedChains", "chains_of", "swept"]

Values = dict[str, jax.Array]
#: Share of the newest step in the running swap rates that the ladder is tuned by.
_TUNING_RATE = 0.01
#: Most rows that the base of a ladder is fitted to.
_MOST_ROWS = 10_000


class NegativePhase(abc.ABC):
    """Chains that follow the model while it learns: pure functions over all of them at once.

    Write a subclass for a sampler that carries more than the values of its chains; a pure kernel
    ``(rng_key, values, model) -> (values, info)`` needs none.

    Notes
    -----
    Must hash and compare by what it is (a frozen dataclass does): it is part of the learner.

    Examples
    --------
    >>> import jax, optax, pgm_energy as pgm
    >>> class Shuffled(pgm.NegativePhase):
    ...     def init(self, rng_key, model, rows, num_chains):
    ...         keys = jax.random.split(rng_key, num_chains)
    ...         return {"v": jax.vmap(lambda k: jax.random.bernoulli(k, 0.5, (2,)))(keys)}, ()
    ...     def sweep(self, rng_key, chains, state, model):
    ...         order = jax.random.permutation(rng_key, len(chains["v"]))
    ...         kernel = pgm.gibbs_kernel(pgm.blocks(model))
    ...         keys = jax.random.split(rng_key, len(order))
    ...         chains, info = jax.vmap(lambda k, x: kernel(k, x, model))(keys, chains)
    ...         return {"v": chains["v"][order]}, state, {"energy": info.energy[order]}
    ...     def taken(self, state, index):
    ...         return state
    >>> pgm.PCD(optax.sgd(0.1), kernel=Shuffled()).num_chains
    128
    """

    @abc.abstractmethod
    def init(
        self, rng_key: Key, model: EnergyModel, rows: Rows, num_chains: int
    ) -> tuple[Values, Any]:
        """Return raw values of all chains, ``(num_chains, ...)`` by site, and a state beside."""

    @abc.abstractmethod
    def sweep(
        self, rng_key: Key, chains: Values, state: Any, model: EnergyModel
    ) -> tuple[Values, Any, dict[str, jax.Array]]:
        """Return values and state after one step of every chain, and figures.

        The figure ``energy`` (nats, ``(num_chains,)``) is used for warnings, if there is one.
        Others are scalars and become metrics.
        """

    def moved(
        self, chains: Values, state: Any, model: EnergyModel, proposed: EnergyModel
    ) -> tuple[EnergyModel, Any, dict[str, jax.Array]]:
        """Return the model to go on with after a step to ``proposed``, the state, and figures."""
        return proposed, state, {}

    @abc.abstractmethod
    def taken(self, state: Any, index: jax.Array) -> Any:
        """Return the state of the chains with these numbers, some of them perhaps twice."""


@dataclasses.dataclass(frozen=True)
class KernelChains(NegativePhase):
    """Chains of a pure kernel, mapped; block Gibbs unless one is given."""

    kernel: Callable[..., Any] | None = None

    def init(
        self, rng_key: Key, model: EnergyModel, rows: Rows, num_chains: int
    ) -> tuple[Values, Any]:
        """Return chains at independent random configurations."""
        return random_configurations(rng_key, model, num_chains), ()

    def sweep(
        self, rng_key: Key, chains: Values, state: Any, model: EnergyModel
    ) -> tuple[Values, Any, dict[str, jax.Array]]:
        """Return the chains after one step of the kernel, and their energies if it tells them."""
        kernel = self.kernel or GibbsKernel(quiet_schedule(model))
        keys = jax.random.split(rng_key, len(next(iter(chains.values()))))
        chains, info = jax.vmap(lambda key, values: kernel(key, values, model))(keys, chains)
        energy = getattr(info, "energy", None)
        return chains, state, {} if energy is None else {"energy": energy}

    def taken(self, state: Any, index: jax.Array) -> Any:
        """Return the state: there is none."""
        return state


class Ladders(NamedTuple):
    """State of :class:`TemperedChains`.

    Attributes
    ----------
    replicas
        Of every chain, ``(num_chains, num_replicas, ...)``.
    base
        The model at beta = 0, that of all ladders.
    betas
        Inverse temperatures, ``(num_replicas,)``, shared.
    swap_prob
        Running mean of the probability of a swap, ``(num_replicas - 1,)``.
    """

    replicas: Replicas
    base: EnergyModel
    betas: jax.Array
    swap_prob: jax.Array


@dataclasses.dataclass(frozen=True)
class TemperedChains(NegativePhase):
    """Parallel tempering as a negative phase: ``PCD(optimizer, kernel=TemperedChains())``.

    Every chain is a ladder of replicas between independent units with the data's marginals
    (beta = 0) and the model (beta = 1); those at beta = 1 are the samples.

    Parameters
    ----------
    num_replicas
        Replicas of each chain, at least 2.
    betas
        Inverse temperatures from 0 to 1, kept as they are; by default as many as there are
        replicas, tuned while the model learns so that all neighbours swap equally often.

    Raises
    ------
    ValueError
        On fewer than two replicas, or betas that do not rise from 0 to 1.

    Notes
    -----
    Leaves the model's law alone whatever the ladder. Chains go to and fro between modes that
    block Gibbs never leaves, and steps may be larger. Cost: ``num_replicas`` times that of plain
    chains, so use fewer of them. The metric ``swap_rate`` is that of the worst pair.

    References
    ----------
    G. Desjardins, A. Courville, Y. Bengio, P. Vincent and O. Delalleau (2010), Tempered Markov
    chain Monte Carlo for training of restricted Boltzmann machines. S. Syed, A. Bouchard-Cote,
    G. Deligiannidis and A. Doucet (2021), Non-reversible parallel tempering.

    Examples
    --------
    >>> import optax, pgm_energy as pgm
    >>> chains = pgm.TemperedChains(num_replicas=8)
    >>> pgm.PCD(optax.adam(0.01), num_chains=16, kernel=chains).kernel.num_replicas
    8
    """

    num_replicas: int = 10
    betas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.betas is not None:
            ladder = tuple(float(beta) for beta in check_betas(self.betas))
            object.__setattr__(self, "betas", ladder)
            object.__setattr__(self, "num_replicas", len(ladder))
        if require_count("num_replicas", self.num_replicas) < 2:
            raise ValueError(f"num_replicas must be at least 2, got {self.num_replicas}")

    def init(
        self, rng_key: Key, model: EnergyModel, rows: Rows, num_chains: int
    ) -> tuple[Values, Ladders]:
        """Return ladders of random configurations over a base with the data's marginals."""
        raw = {
            name: np.asarray(value[:_MOST_ROWS])
            for name, value in as_raw(model, rows.values).items()
        }
        base = Independent.like(model, raw)
        blocks(temper(base, model, 0.5))  # verified eagerly
        keys = jax.random.split(rng_key, num_chains)
        replicas = jax.vmap(lambda key: random_start(key, model, self.num_replicas))(keys)
        betas = np.linspace(0.0, 1.0, self.num_replicas) if self.betas is None else self.betas
        ladders = Ladders(
            replicas,
            base,
            jnp.asarray(betas, jnp.result_type(float)),
            jnp.full(self.num_replicas - 1, 0.5, jnp.result_type(float)),
        )
        return _tops(replicas), ladders

    def sweep(
        self, rng_key: Key, chains: Values, state: Ladders, model: EnergyModel
    ) -> tuple[Values, Ladders, dict[str, jax.Array]]:
        """Return the chains after a sweep of every replica and one round of swaps."""
        kernel = TemperingKernel(quiet_schedule(temper(state.base, model, 0.5)))
        keys = jax.random.split(rng_key, len(next(iter(chains.values()))))

        def step(key: jax.Array, replicas: Replicas) -> Any:
            return kernel(key, replicas, state.base, model, state.betas)

        replicas, info = jax.vmap(step)(keys, state.replicas)
        newest = jnp.mean(info.swap_prob, axis=0)
        swap_prob = state.swap_prob + _TUNING_RATE * (newest - state.swap_prob)
        betas = state.betas
        if self.betas is None:
            betas = betas + _TUNING_RATE * (retuned(betas, swap_prob) - betas)
        figures = {"energy": info.energy, "swap_rate": jnp.min(swap_prob)}
        return _tops(replicas), Ladders(replicas, state.base, betas, swap_prob), figures

    def taken(self, state: Ladders, index: jax.Array) -> Ladders:
        """Return the ladders of these chains."""
        return state._replace(replicas=jax.tree.map(lambda x: x[index], state.replicas))


def _tops(replicas: Replicas) -> Values:
    """Values at beta = 1, ``(num_chains, ...)``."""
    return {name: value[:, -1] for name, value in replicas.values.items()}


def chains_of(kernel: Any) -> NegativePhase:
    """Return the negative phase of what a learner was given as kernel."""
    return kernel if isinstance(kernel, NegativePhase) else KernelChains(kernel)


@functools.partial(jax.jit, static_argnums=0)
def swept(
    phase: NegativePhase, rng_key: Key, chains: Values, walk: Any, model: EnergyModel
) -> tuple[Values, Any, dict[str, jax.Array]]:
    """Return what ``phase.sweep`` does; traced once, however often it is asked about."""
    return phase.sweep(rng_key, chains, walk, model)
