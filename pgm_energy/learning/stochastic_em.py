"""EM whose E-step is a draw: latent sites by any kernel, the M-step closed or by any optimiser."""

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
from pgm_energy.kernels.gibbs import random_configuration
from pgm_energy.learning.contrast import contrast, mean_energy
from pgm_energy.learning.latents import as_raw, draw_latents, quiet_schedule
from pgm_energy.learning.learner import GradientLearner
from pgm_energy.learning.loop import Rows
from pgm_energy.learning.negative import KernelChains
from pgm_energy.models.mixture import Mixture
from pgm_energy.models.prior import MixturePrior
from pgm_energy.transforms import condition

__all__ = ["StochasticEM", "StochasticEMState", "complete_loss"]

Values = dict[str, jax.Array]


class StochasticEMState(NamedTuple):
    """State of stochastic EM.

    Attributes
    ----------
    model
        The model with its present parameters.
    optimizer
        State of the optax optimiser; empty with a closed M-step.
    chains
        Raw values of persistent chains of the model by site; empty where log Z is known.
    latents
        Raw values of the latent sites of every row, from which the next draw goes on.
    """

    model: EnergyModel
    optimizer: Any
    chains: Values
    latents: Values


def complete_loss(
    model: EnergyModel,
    data: Mapping[str, Any],
    weights: jax.Array,
    chains: Mapping[str, Any],
    chain_weights: jax.Array | None = None,
) -> jax.Array:
    """Return the mean of -log p(data, latents), nats, up to what no parameter changes.

    Parameters
    ----------
    model
        Differentiate with respect to it.
    data
        Encoded values of all sites, latent ones too, rows first.
    weights
        Row weights.
    chains
        Encoded samples of the model, for models whose log Z is not known; else not looked at.
    chain_weights
        Weights of the chains.

    Notes
    -----
    ``-log p = E + log Z``. Where the model knows its log Z this is exact. Elsewhere the
    parameters change log Z too, and the mean energy alone would have no minimum: the gradient of
    log Z is minus the mean gradient of E over samples of the model, as in contrastive learning.
    """
    log_partition = model.known_log_partition
    if log_partition is not None:
        return mean_energy(model, data, weights) + log_partition
    return contrast(model, data, weights, chains, chain_weights)


@dataclasses.dataclass(frozen=True)
class StochasticEM(GradientLearner):
    """EM for models without a closed E-step: draw the latent sites, then fit the whole rows.

    Parameters
    ----------
    optimizer
        Any optax optimizer: the M-step is one of its steps. None: a closed M-step.
    maximize
        A closed M-step ``(model, values, weights) -> model``: ``values`` are the raw values of
        all sites, rows first, latent ones as drawn. Mixtures have their own.
    num_sweeps
        Steps of the kernel per update: of the latent sites of each row, from where the last draw
        of that row ended, and of the model's own chains.
    num_chains
        Chains of the model, where its log Z is not known.
    kernel
        Any pure kernel ``(rng_key, latents, model) -> (latents, info)`` that draws the latent
        sites; the model that it is given is the one conditioned on a row. Block Gibbs unless
        given.

    Raises
    ------
    TypeError
        On something that is no optimizer or no function.
    ValueError
        On a count below 1, or both an optimizer and a closed M-step.

    Notes
    -----
    A draw of the latent sites stands for their law, so parameters do not converge but come to
    fluctuate around a stationary point: take ``result.averaged``, or let the optimizer's steps
    fall. With a closed M-step use whole batches (``batch_size=len(data)``), since each update
    sees its own batch only; the deviation of the average then falls with the number of rows.

    An unnormalised model (an RBM) has a second expectation in its M-step, that of the model
    itself, because its parameters change log Z: persistent chains stand for it, and a closed
    M-step is the caller's to justify. Where latent sites can be summed out :class:`PCD` does the
    same with less noise.

    References
    ----------
    G. Celeux and J. Diebolt (1985), The SEM algorithm. B. Delyon, M. Lavielle and E. Moulines
    (1999), Convergence of a stochastic approximation version of the EM algorithm.

    Examples
    --------
    >>> import jax, numpy as np, pgm_energy as pgm
    >>> rows = np.random.default_rng(0).normal(size=(100, 1)) + [[-3.0], [3.0]] * 50
    >>> start = pgm.GaussianMixture.init(jax.random.key(0), num_components=2, data=rows)
    >>> result = pgm.StochasticEM().run(
    ...     jax.random.key(1), start, rows, num_epochs=20, batch_size=100, progress_bar=False)
    >>> np.sort(np.asarray(result.averaged.means)[:, 0]).round().tolist()
    [-3.0, 3.0]
    """

    optimizer: optax.GradientTransformation | None = None
    maximize: Callable[[Any, Values, jax.Array], Any] | None = None
    num_sweeps: int = 1
    num_chains: int = 128
    kernel: Callable[..., Any] | None = None

    takes_missing: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.optimizer is not None:
            super().__post_init__()
            if self.maximize is not None:
                raise ValueError("give an optimizer or a closed M-step (maximize), not both")
        for name in ("maximize", "kernel"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(f"{name} must be a function or None, got {value!r}")
        require_count("num_sweeps", self.num_sweeps)
        require_count("num_chains", self.num_chains)

    def init(self, rng_key: Key, model: EnergyModel, rows: Rows) -> StochasticEMState:
        """Return the first state: latent sites and chains at random, the optimizer fresh."""
        if not model.latent_sites:
            raise ValueError(
                f"{model.title} has no latent sites to draw; learn it with PCD, MaximumLikelihood "
                "or PseudoLikelihood"
            )
        if self.optimizer is None and self.maximize is None and not isinstance(model, Mixture):
            raise ValueError(
                f"a {model.title} has no closed M-step that is known here: give an optimizer, such "
                "as optax.adam(1e-3), or maximize"
            )
        latent_key, chain_key = jax.random.split(rng_key)
        keys = jax.random.split(latent_key, rows.weights.shape[0])
        start = jax.vmap(lambda key: random_configuration(key, model))(keys)
        latents = {name: start[name] for name in model.latent_sites}
        chains: Values = {}
        if self.optimizer is not None and model.known_log_partition is None:
            chains, _ = KernelChains().init(chain_key, model, rows, self.num_chains)
        optimizer = () if self.optimizer is None else self.optimizer.init(model)
        return StochasticEMState(model, optimizer, chains, latents)

    def update(
        self, rng_key: Key, state: StochasticEMState, batch: Rows, index: jax.Array
    ) -> tuple[StochasticEMState, dict[str, jax.Array]]:
        """Return the state after drawing the latent sites of a batch and one M-step."""
        latent_key, chain_key = jax.random.split(rng_key)
        model = state.model
        seen = as_raw(model, batch.values)
        start = {name: values[index] for name, values in state.latents.items()}
        drawn = self._draw(latent_key, model, seen, start)
        latents = {k: v.at[index].set(drawn[k], mode="drop") for k, v in state.latents.items()}
        whole = {**seen, **drawn}
        if self.optimizer is None:
            new = (self.maximize or _maximize_mixture)(model, whole, batch.weights)
            info = {"change": optax.tree.norm(jax.tree.map(jnp.subtract, new, model))}
            return StochasticEMState(new.project(), (), {}, latents), info
        chains = state.chains
        if chains:
            chains = self._sweep(chain_key, chains, model)
        data, negative = encode_rows(model, whole), encode_rows(model, chains)

        # batches of unequal weight pull as much as they weigh (1 is a whole batch)
        def loss(model: EnergyModel) -> jax.Array:
            size = jnp.mean(batch.weights)
            return size * complete_loss(model, data, batch.weights, negative)

        gradient = jax.grad(loss)(model)
        updates, optimizer = self.optimizer.update(gradient, state.optimizer, model)
        new = optax.apply_updates(model, updates).project()
        info = {"gradient_norm": optax.tree.norm(gradient)}
        return StochasticEMState(new, optimizer, chains, latents), info

    def _draw(self, rng_key: Key, model: EnergyModel, seen: Values, start: Values) -> Values:
        kernel = self.kernel
        if kernel is None:
            return draw_latents(rng_key, model, quiet_schedule(model), seen, start, self.num_sweeps)

        def one(key: jax.Array, row: Values, latents: Values) -> Values:
            given = condition(model, None, **row)

            def step(latents: Values, key: jax.Array) -> tuple[Values, None]:
                return kernel(key, latents, given)[0], None

            return jax.lax.scan(step, latents, jax.random.split(key, self.num_sweeps))[0]

        count = len(next(iter(seen.values())))
        return jax.vmap(one)(jax.random.split(rng_key, count), seen, start)

    def _sweep(self, rng_key: Key, chains: Values, model: EnergyModel) -> Values:
        def step(chains: Values, key: jax.Array) -> tuple[Values, None]:
            return KernelChains().sweep(key, chains, (), model)[0], None

        return jax.lax.scan(step, chains, jax.random.split(rng_key, self.num_sweeps))[0]


def _maximize_mixture(model: Any, values: Values, weights: jax.Array) -> Any:
    """The M-step of a mixture whose components were drawn."""
    (name,) = model.data_sites
    rows = model.sites[name].encode(values[name])
    share = jax.nn.one_hot(values["z"], model.num_components, dtype=rows.dtype, axis=0) * weights
    prior = jax.tree.map(jnp.asarray, model.resolve_prior(MixturePrior(), None))
    floor = model.least_floor(1e-6, rows.dtype)
    if not model.sites[name].is_discrete:  # relative to the variance of the data
        floor = floor * jnp.maximum(jnp.mean(jnp.var(rows, axis=0)), jnp.finfo(rows.dtype).tiny)
    return model.maximize(model.moments(rows, share), floor, prior)
