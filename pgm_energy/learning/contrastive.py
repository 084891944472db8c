"""Contrastive learning: the data pull the energy down, the chains push it up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pgm_energy._checks import require_count
from pgm_energy._data import encode_rows
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.kernels.gibbs import GibbsKernel, random_configuration
from pgm_energy.learning.latents import as_raw, draw_latents, quiet_schedule, sum_out, sums_out
from pgm_energy.learning.learner import GradientLearner
from pgm_energy.learning.loop import Rows
from pgm_energy.structure import Blocks

__all__ = ["CD", "PCD", "ContrastiveState", "contrast"]

Values = dict[str, jax.Array]


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
    latents
        Clamped latent values per data row, only where they cannot be summed out.
    """

    model: EnergyModel
    optimizer: Any
    chains: Values
    latents: Values


def contrast(
    model: EnergyModel,
    data: Mapping[str, Any],
    weights: jax.Array,
    chains: Mapping[str, Any],
    chain_weights: jax.Array | None = None,
) -> jax.Array:
    """Return mean_data F - mean_chains F, nats: its gradient is that of the mean -log p(data).

    Parameters
    ----------
    model
        The energy model whose sites are those of ``data``: a free energy, or a model with its
        latent sites drawn. Differentiate with respect to it.
    data, chains
        Encoded values by site, rows and chains first.
    weights
        Row weights.
    chain_weights
        Weights of the chains; all alike unless given.

    Notes
    -----
    The gradient is exact where the chains are at equilibrium; the value is no likelihood.

    References
    ----------
    L. Younes (1989), Parametric inference for imperfectly observed Gibbsian fields.
    T. Tieleman (2008), Training restricted Boltzmann machines using approximations to the
    likelihood gradient.
    """

    def energies(values: Mapping[str, Any]) -> jax.Array:
        return jax.vmap(lambda row: model.energy(**row))(dict(values))

    def mean(values: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.sum(weights / jnp.maximum(jnp.sum(weights), 1e-12) * values)

    negative = energies(chains)
    if chain_weights is None:
        return mean(energies(data), weights) - jnp.mean(negative)
    return mean(energies(data), weights) - mean(negative, chain_weights)


class _Contrastive(GradientLearner):
    """One contrast, one driver; where the negative phase starts is all that differs."""

    num_chains: int
    num_sweeps: int
    kernel: Callable[..., Any] | None

    persistent: ClassVar[bool]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.persistent:
            require_count("num_chains", self.num_chains)
        require_count("num_sweeps", self.num_sweeps)
        if self.kernel is not None and not callable(self.kernel):
            raise TypeError(f"kernel must be a function or None, got {self.kernel!r}")

    def init(self, rng_key: Key, model: EnergyModel, rows: Rows) -> ContrastiveState:
        """Return the first state: chains at random, the optimiser fresh."""
        chain_key, latent_key = jax.random.split(rng_key)
        chains: Values = {}
        if self.persistent:
            keys = jax.random.split(chain_key, self.num_chains)
            chains = jax.vmap(lambda key: random_configuration(key, model))(keys)
        latents: Values = {}
        if not sums_out(model) and model.latent_sites:
            keys = jax.random.split(latent_key, rows.weights.shape[0])
            start = jax.vmap(lambda key: random_configuration(key, model))(keys)
            latents = {name: start[name] for name in model.latent_sites}
        return ContrastiveState(model, self.optimizer.init(model), chains, latents)

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
            Which rows of the data they are (for latents that are kept per row).
        """
        model = state.model
        schedule = quiet_schedule(model)
        positive_key, negative_key = jax.random.split(rng_key)
        exact = sums_out(model)
        data = encode_rows(model, batch.values)
        latents = state.latents
        drawn: Values = {}
        if model.latent_sites and (not exact or not self.persistent):
            start = {name: values[index] for name, values in latents.items()}
            num = self.num_sweeps if latents else 1
            drawn = draw_latents(positive_key, model, schedule, batch.values, start, num)
        if not exact:
            data = {**data, **encode_rows(model, drawn)}
            latents = {k: v.at[index].set(drawn[k], mode="drop") for k, v in latents.items()}

        start = state.chains if self.persistent else {**as_raw(model, batch.values), **drawn}
        chains = self._negative(negative_key, start, model, schedule)
        seen = {k: v for k, v in chains.items() if not exact or k in model.data_sites}
        negative = encode_rows(model, seen)

        # a chain that started at a row counts as its row; a padded one not at all
        chain_weights = None if self.persistent else batch.weights
        # batches of unequal weight pull as much as they weigh (1 is a whole batch)
        size = jnp.mean(batch.weights)

        def loss(model: EnergyModel) -> jax.Array:
            target = sum_out(model) if exact else model
            return size * contrast(target, data, batch.weights, negative, chain_weights)

        gradient = jax.grad(loss)(model)
        updates, optimizer = self.optimizer.update(gradient, state.optimizer, model)
        new = optax.apply_updates(model, updates).project()
        info = {"gradient_norm": optax.tree.norm(gradient)}
        kept = chains if self.persistent else state.chains
        return ContrastiveState(new, optimizer, kept, latents), info

    def _negative(
        self, rng_key: Key, start: Values, model: EnergyModel, schedule: Blocks
    ) -> Values:
        kernel = self.kernel or GibbsKernel(schedule)
        count = len(next(iter(start.values())))

        def sweep(values: Values, key: jax.Array) -> tuple[Values, None]:
            keys = jax.random.split(key, count)
            return jax.vmap(lambda k, v: kernel(k, v, model)[0])(keys, values), None

        return jax.lax.scan(sweep, start, jax.random.split(rng_key, self.num_sweeps))[0]


@dataclasses.dataclass(frozen=True)
class PCD(_Contrastive):
    """Persistent contrastive divergence (stochastic maximum likelihood).

    The negative phase continues its own chains from step to step.

    Parameters
    ----------
    optimizer
        Any optax optimizer; its schedules count updates.
    num_chains
        Persistent chains.
    num_sweeps
        Sweeps of every chain per update.
    kernel
        A pure kernel ``(rng_key, values, model) -> (values, info)``; block Gibbs unless given.

    Notes
    -----
    The gradient is exact at equilibrium of the chains: use steps that fall to zero, or more
    sweeps. Latent sites whose units do not interact are summed out; others are drawn by
    clamped chains, one per data row.

    References
    ----------
    L. Younes (1989); T. Tieleman (2008), Training restricted Boltzmann machines using
    approximations to the likelihood gradient.

    Examples
    --------
    >>> import optax, pgm_energy as pgm
    >>> pgm.PCD(optax.sgd(0.1), num_chains=64, num_sweeps=5).num_sweeps
    5
    """

    optimizer: optax.GradientTransformation
    num_chains: int = 128
    num_sweeps: int = 1
    kernel: Callable[..., Any] | None = None

    persistent: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class CD(_Contrastive):
    """Contrastive divergence: the negative phase starts at the data of every batch.

    Parameters
    ----------
    optimizer
        Any optax optimizer.
    num_sweeps
        k, the sweeps away from the data.
    kernel
        A pure kernel; block Gibbs unless given.

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
    num_sweeps: int = 1
    kernel: Callable[..., Any] | None = None

    persistent: ClassVar[bool] = False
