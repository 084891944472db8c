"""Contrastive learning: the data pull the energy down, the chains push it up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pgm_energy._data import encode_rows
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.kernels.gibbs import random_configurations
from pgm_energy.learning.centering import (
    centered_gradient,
    fields_of,
    first_offsets,
    moved,
    moved_offsets,
    optimizer_step,
)
from pgm_energy.learning.contrast import mean_energy
from pgm_energy.learning.counts import Count, count_at
from pgm_energy.learning.equilibrium import correlation
from pgm_energy.learning.latents import sum_out, sums_out
from pgm_energy.learning.learner import GradientLearner
from pgm_energy.learning.loop import Rows
from pgm_energy.learning.negative import NegativePhase, chains_of, swept
from pgm_energy.learning.positive import drawn_sites, positive_phase

__all__ = ["CD", "PCD", "ContrastiveState"]

Values = dict[str, jax.Array]
#: Share of the newest batch in the running means of latent sites (Melchior et al. 2016).
_OFFSET_RATE = 0.01
#: What is left of fast weights after each update (Tieleman and Hinton 2009, section 3).
_FAST_DECAY = 19 / 20


class ContrastiveState(NamedTuple):
    """State of contrastive learning.

    Attributes
    ----------
    model
        The model with its present parameters.
    optimizer
        State of the optax optimiser.
    chains
        Raw values of the persistent chains by site, ``(num_chains, ...)``.
    walk
        What a negative phase carries beside them, such as the ladders of tempered chains.
    energies
        Energies of the persistent chains after the last update, nats, if their kernel tells.
    latents
        Per data row, raw values of what clamped chains draw: latent sites that cannot be summed
        out, and data sites with missing values.
    offsets
        Encoded values by site at which the parameters are centred; empty where they are not.
    fast
        Fast weights, in centred parameters; empty without them.
    num_updates
        Steps made.
    """

    model: EnergyModel
    optimizer: Any
    chains: Values
    walk: Any
    energies: Any
    latents: Values
    offsets: Values
    fast: Any
    num_updates: jax.Array


class _Contrastive(GradientLearner):
    """One contrast, one driver; where the negative phase starts is all that differs."""

    num_chains: Count
    num_sweeps: Count
    kernel: Callable[..., Any] | NegativePhase | None
    centered: bool | None
    positive: str
    fast_learning_rate: float | None

    persistent: ClassVar[bool]
    takes_missing: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_chains", "num_sweeps") if self.persistent else ("num_sweeps",):
            value = getattr(self, name)
            if isinstance(value, list):  # a learner is hashed: it is part of what is compiled
                object.__setattr__(self, name, tuple(value))
            count_at(name, getattr(self, name), 0)
        is_phase = isinstance(self.kernel, NegativePhase)
        if self.kernel is not None and not is_phase and not callable(self.kernel):
            raise TypeError(f"kernel must be a function or None, got {self.kernel!r}")
        if is_phase and not self.persistent:
            raise TypeError(
                f"CD starts at the data of every batch, which {type(self.kernel).__name__} cannot: "
                "use PCD"
            )
        if self.centered not in (None, True, False):
            raise TypeError(f"centered must be True, False or None, got {self.centered!r}")
        if self.positive not in ("sampling", "mean_field"):
            raise ValueError(f"positive must be 'sampling' or 'mean_field', got {self.positive!r}")
        if self.fast_learning_rate is not None and not self.fast_learning_rate > 0:
            raise ValueError(
                f"fast_learning_rate must be positive or None, got {self.fast_learning_rate!r}"
            )

    def init(self, rng_key: Key, model: EnergyModel, rows: Rows) -> ContrastiveState:
        """Return the first state: chains at random, the optimiser fresh."""
        chain_key, latent_key = jax.random.split(rng_key)
        chains: Values = {}
        walk: Any = ()
        energies: Any = ()
        if self.persistent:
            count = count_at("num_chains", self.num_chains, 0)
            phase = chains_of(self.kernel)
            chains, walk = phase.init(chain_key, model, rows, count)
            told = swept.eval_shape(phase, chain_key, chains, walk, model)[2]
            if "energy" in told:
                energies = jnp.zeros(count, told["energy"].dtype)
        latents: Values = {}
        drawn = drawn_sites(model, rows, self.positive)
        if drawn:
            start = random_configurations(latent_key, model, rows.weights.shape[0])
            latents = {name: start[name] for name in drawn}
        fast: Any = ()
        if self.fast_learning_rate is not None:
            fast = jax.tree.map(jnp.zeros_like, model)
        return ContrastiveState(
            model=model,
            optimizer=self.optimizer.init(model),
            chains=chains,
            walk=walk,
            energies=energies,
            latents=latents,
            offsets=first_offsets(model, rows, self.centered),
            fast=fast,
            num_updates=jnp.zeros((), jnp.int32),
        )

    def at_epoch(
        self, epoch: int, state: ContrastiveState
    ) -> tuple[_Contrastive, ContrastiveState]:
        """Return the learner with the counts of an epoch, and the state with that many chains.

        New chains are copies of old ones, which part by themselves.
        """
        counts = {"num_sweeps": count_at("num_sweeps", self.num_sweeps, epoch)}
        if self.persistent:
            counts["num_chains"] = wanted = count_at("num_chains", self.num_chains, epoch)
            present = len(next(iter(state.chains.values())))
            if wanted != present:
                index = jnp.arange(wanted) % present
                state = state._replace(
                    chains={name: value[index] for name, value in state.chains.items()},
                    walk=chains_of(self.kernel).taken(state.walk, index),
                    energies=jax.tree.map(lambda x: x[index], state.energies),
                )
        return dataclasses.replace(self, **counts), state  # type: ignore[type-var]

    def update(
        self, rng_key: Key, state: ContrastiveState, batch: Rows, index: jax.Array
    ) -> tuple[ContrastiveState, dict[str, jax.Array]]:
        """Return the state after one step on a batch of rows.

        Parameters
        ----------
        rng_key
            A JAX random key.
        state
            The state before.
        batch
            Rows and weights.
        index
            Which rows of the data they are (for what is kept per row).
        """
        model = state.model
        positive_key, negative_key = jax.random.split(rng_key)
        target = sum_out if sums_out(model) else _itself
        seen = model.data_sites if sums_out(model) else tuple(model.sites)

        kept = {name: value[index] for name, value in state.latents.items()}
        whole, data, info = positive_phase(
            positive_key,
            model,
            batch,
            kept,
            num_sweeps=count_at("num_sweeps", self.num_sweeps, 0),
            by_means=self.positive == "mean_field",
            draws_all=not self.persistent,
        )
        latents = {
            name: value.at[index].set(whole[name], mode="drop")
            for name, value in state.latents.items()
        }
        start = state.chains if self.persistent else whole
        sampler = moved(model, state.fast, state.offsets) if self.fast_learning_rate else model
        chains, walk, figures = self._negative(negative_key, start, state.walk, sampler)
        negative = encode_rows(model, {name: chains[name] for name in seen})
        # a chain that started at a row counts as its row; a padded one not at all
        chain_weights = None if self.persistent else batch.weights

        pulls = jax.grad(lambda m: mean_energy(target(m), data, batch.weights))(model)
        pushes = jax.grad(lambda m: mean_energy(target(m), negative, chain_weights))(model)
        # batches of unequal weight pull as much as they weigh (1 is a whole batch)
        size = jnp.mean(batch.weights)
        # offsets: the mean of the first batches, then a moving average
        rate = jnp.maximum(_OFFSET_RATE, 1.0 / (state.num_updates + 1.0)) * (size > 0)
        gradient = jax.tree.map(lambda down, up: size * (down - up), pulls, pushes)
        gradient = centered_gradient(gradient, model, state.offsets)
        info["gradient_norm"] = optax.tree.norm(gradient)
        expectations = fields_of(model).expectations(pulls)
        new, optimizer = optimizer_step(
            self.optimizer,
            gradient,
            state.optimizer,
            model,
            state.offsets,
            expectations=expectations,
        )
        new, walk, told = chains_of(self.kernel).moved(chains, walk, model, new)
        energies: Any = figures.pop("energy", ())
        if isinstance(state.energies, jax.Array):
            info["chain_autocorrelation"] = correlation(state.energies, energies)
        return ContrastiveState(
            model=new,
            optimizer=optimizer,
            chains=chains if self.persistent else state.chains,
            walk=walk,
            energies=energies if self.persistent else (),
            latents=latents,
            offsets=moved_offsets(state.offsets, model, expectations, rate),
            fast=self._faster(state.fast, gradient),
            num_updates=state.num_updates + 1,
        ), {**info, **figures, **told}

    def _negative(
        self, rng_key: Key, chains: Values, walk: Any, model: EnergyModel
    ) -> tuple[Values, Any, dict[str, jax.Array]]:
        """Chains after all sweeps of an update, and the figures of the last one."""
        phase, num_sweeps = chains_of(self.kernel), count_at("num_sweeps", self.num_sweeps, 0)
        if num_sweeps == 1:  # outside of any loop, XLA shares products with the gradient
            return swept(phase, rng_key, chains, walk, model)

        def sweep(carry: Any, key: jax.Array) -> Any:
            chains, walk, figures = swept(phase, key, carry[0], carry[1], model)
            return (chains, walk), figures

        keys = jax.random.split(rng_key, num_sweeps)
        (chains, walk), figures = jax.lax.scan(sweep, (chains, walk), keys)
        return chains, walk, jax.tree.map(lambda x: x[-1], figures)

    def _faster(self, fast: Any, gradient: EnergyModel) -> Any:
        if self.fast_learning_rate is None:
            return fast
        return jax.tree.map(
            lambda old, step: _FAST_DECAY * old - self.fast_learning_rate * step, fast, gradient
        )


def _itself[M: EnergyModel](model: M) -> M:
    return model


@dataclasses.dataclass(frozen=True)
class PCD(_Contrastive):
    """Persistent contrastive divergence (stochastic maximum likelihood).

    The negative phase continues its own chains from step to step.

    Parameters
    ----------
    optimizer
        Any optax optimizer; its schedules count updates.
    num_chains, num_sweeps
        Persistent chains, and sweeps of each per update: numbers, one number per epoch (the last
        one stays), or functions of the epoch from 0.
    kernel
        What moves the chains: a pure kernel ``(rng_key, values, model) -> (values, info)``, or a
        :class:`NegativePhase` such as :class:`TemperedChains`; block Gibbs unless given.
    centered
        Whether the optimiser sees centred parameters, which makes learning independent of how
        the data are encoded; None: wherever the energy is pairwise with one field per unit.
    positive
        For latent units that interact: ``"sampling"`` draws them by clamped chains, one per data
        row; ``"mean_field"`` takes their means under the nearest independent units.
    fast_learning_rate
        Learning rate of fast weights, which drive the chains alone and decay by 1/20 per update;
        None: without. As large as that of ``optax.sgd``, or larger.

    Notes
    -----
    The gradient is exact at equilibrium of the chains: use steps that fall to zero, or more
    sweeps; ``result.message`` says when the chains have left it. Latent sites whose units do not
    interact are summed out. With ``positive="mean_field"`` a lower bound of the likelihood is
    raised, as far as the chains are at equilibrium.

    References
    ----------
    L. Younes (1989), Parametric inference for imperfectly observed Gibbsian fields. T. Tieleman
    (2008), Training restricted Boltzmann machines using approximations to the likelihood
    gradient. T. Tieleman and G. Hinton (2009), Using fast weights to improve persistent
    contrastive divergence. J. Melchior, A. Fischer and L. Wiskott (2016), How to center deep
    Boltzmann machines.

    Examples
    --------
    >>> import optax, pgm_energy as pgm
    >>> pgm.PCD(optax.sgd(0.1), num_chains=64, num_sweeps=5).num_sweeps
    5
    """

    optimizer: optax.GradientTransformation
    num_chains: Count = 128
    num_sweeps: Count = 1
    kernel: Callable[..., Any] | NegativePhase | None = None
    centered: bool | None = None
    positive: Literal["sampling", "mean_field"] = "sampling"
    fast_learning_rate: float | None = None

    persistent: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class CD(_Contrastive):
    """Contrastive divergence: the negative phase starts at the data of every batch.

    Parameters
    ----------
    optimizer
        Any optax optimizer.
    num_sweeps
        k, the sweeps away from the data: a number, one per epoch, or a function of the epoch.
    kernel
        A pure kernel; block Gibbs unless given.
    centered, positive
        As in :class:`PCD`.

    Notes
    -----
    Biased towards the data, cheap and steady: good features, poor densities. There is one chain
    per row of the batch.

    References
    ----------
    G. Hinton (2002), Training products of experts by minimizing contrastive divergence.

    Examples
    --------
    >>> import optax, pgm_energy as pgm
    >>> pgm.CD(optax.sgd(0.1), num_sweeps=25).num_sweeps
    25
    """

    optimizer: optax.GradientTransformation
    num_sweeps: Count = 1
    kernel: Callable[..., Any] | None = None
    centered: bool | None = None
    positive: Literal["sampling", "mean_field"] = "sampling"

    persistent: ClassVar[bool] = False
    fast_learning_rate: ClassVar[None] = None  # type: ignore[misc]
