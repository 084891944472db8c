"""Trajectory tempering: chains on a ladder of the model's own earlier parameters."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import sigmoid
from jax.scipy.special import logsumexp

from pgm_energy._checks import require_count, require_key
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.kernels.gibbs import GibbsKernel, random_configuration
from pgm_energy.kernels.tempering import swap_neighbours
from pgm_energy.learning.ladder import Trajectory, mean_term, rung_at, with_rung
from pgm_energy.learning.latents import as_raw, quiet_schedule
from pgm_energy.learning.loop import Rows
from pgm_energy.learning.negative import NegativePhase
from pgm_energy.models.independent import Independent

__all__ = ["Trajectory", "TrajectoryChains"]

Values = dict[str, jax.Array]
#: Most rows that the independent units at the foot are fitted to.
_MOST_ROWS = 10_000
#: Steps after which what was seen of two neighbours begins to be forgotten.
_WINDOW = 1000
#: Chains of which all pairs are looked at to judge a step.
_MOST_PAIRED = 512
#: Steps before learning, and the least swap rate then between independent units and the start.
_FIRST_STEPS, _LEAST_START = 20, 0.05


@dataclasses.dataclass(frozen=True)
class TrajectoryChains(NegativePhase):
    """Trajectory tempering as a negative phase: ``PCD(optimizer, kernel=TrajectoryChains())``.

    Every chain is a ladder from independent units with the data's marginals through earlier
    parameters of the model to the present ones; those at the top are the samples.

    Parameters
    ----------
    max_models
        Most models above the independent units, the present one included.
    swap_rate
        Between 0 and 1. When the present model would swap less often than this with the last one
        that was kept, its parameters are kept as a new rung. A step so large that the models
        before and after it would is not taken.
    kernel
        A pure kernel ``(rng_key, values, model) -> (values, info)`` for every rung; block Gibbs
        unless given.

    Raises
    ------
    ValueError
        On fewer than two models or a rate that does not lie between 0 and 1.

    Notes
    -----
    Leaves the law of every model on the ladder alone. What a model learns comes gradually, so the
    models that it was are a path without the jumps that tempering may meet. Start near
    independent units, as every ``init`` does: the first gap cannot be filled later (there is a
    warning). When ``max_models`` are in use the last gap grows, which the metric ``swap_rate``
    (that of the worst pair) shows; so does ``num_models``.

    log Z is known on line, as the sum of the log-ratios of neighbours by Bennett's acceptance
    ratio: ``result.state.walk.log_partition`` and ``.std_error``, nats. The error is that between
    chains; it does not see that all of them lag behind parameters that move fast. Let steps fall to
    zero, or go on with :meth:`sample` at fixed parameters.

    Cost: sweeps, and two energies for each, of all models in use.

    References
    ----------
    N. Bereux, A. Decelle, C. Furtlehner, L. Rosset and B. Seoane (2025), Fast training and
    sampling of restricted Boltzmann machines. C. Bennett (1976), Efficient estimation of free
    energy differences from Monte Carlo data.

    Examples
    --------
    >>> import optax, pgm_energy as pgm
    >>> chains = pgm.TrajectoryChains(max_models=16, swap_rate=0.5)
    >>> pgm.PCD(optax.adam(0.01), num_chains=100, kernel=chains).kernel.max_models
    16
    """

    max_models: int = 32
    swap_rate: float = 0.25
    kernel: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if require_count("max_models", self.max_models) < 2:
            raise ValueError(f"max_models must be at least 2, got {self.max_models}")
        if not 0.0 < self.swap_rate < 1.0:
            raise ValueError(f"swap_rate must lie between 0 and 1, got {self.swap_rate!r}")
        if self.kernel is not None and not callable(self.kernel):
            raise TypeError(f"kernel must be a function or None, got {self.kernel!r}")

    def init(
        self, rng_key: Key, model: EnergyModel, rows: Rows, num_chains: int
    ) -> tuple[Values, Trajectory]:
        """Return chains after a few steps from independent units with the data's marginals."""
        raw = as_raw(model, {name: value[:_MOST_ROWS] for name, value in rows.values.items()})
        base = Independent.like(model, {name: np.asarray(value) for name, value in raw.items()})
        state = _start(rng_key, base, model, num_chains=num_chains, size=self.max_models)
        _, state = self.sample(rng_key, state, _FIRST_STEPS)
        first = float(state.swap_prob[0])
        if first < _LEAST_START:
            warnings.warn(
                f"{model.title} starts far from independent units: {first:.1%} of the swaps with "
                f"them would be accepted, at least {_LEAST_START:.0%} are wanted, so the ladder "
                "has a gap at its foot and its log Z means little; start from init, whose "
                "couplings are small, or use TemperedChains",
                RuntimeWarning,
                stacklevel=2,
            )
        return rung_at(state.values, state.num_models), state

    def sweep(
        self, rng_key: Key, chains: Values, state: Trajectory, model: EnergyModel
    ) -> tuple[Values, Trajectory, dict[str, jax.Array]]:
        """Return the chains after a step of every rung, from the foot up, and a round of swaps."""
        top, size = state.num_models - 1, state.reference.shape[0]
        models, values = (
            with_rung(state.models, top, model),
            with_rung(state.values, top + 1, chains),
        )
        base_key, sweep_key, swap_key = jax.random.split(rng_key, 3)
        kernel = self.kernel or GibbsKernel(quiet_schedule(model))
        exact = GibbsKernel(quiet_schedule(state.base))  # independent units: one sweep forgets all
        foot, foot_energy = _step(exact, base_key, rung_at(values, 0), state.base)
        values = with_rung(values, 0, foot)
        keys = jax.random.split(sweep_key, size)
        shape = (size, foot_energy.shape[0])

        def rung(number: jax.Array, carry: Any) -> Any:
            values, lower, lower_energy, forward, reverse = carry
            own = rung_at(models, number)
            upper, energy = _step(kernel, keys[number], rung_at(values, number + 1), own)
            forward = forward.at[number].set(lower_energy - _energies(own, lower))
            below = _energies_below(state.base, models, number, upper)
            reverse = reverse.at[number].set(below - energy)
            return with_rung(values, number + 1, upper), upper, energy, forward, reverse

        carry = (values, foot, foot_energy, jnp.zeros(shape), jnp.zeros(shape))
        values, _, energy, forward, reverse = jax.lax.fori_loop(0, state.num_models, rung, carry)
        in_use = (jnp.arange(size) < state.num_models)[:, None]
        uniform = jax.random.uniform(swap_key, shape)
        values, swap_prob = _swap(values, uniform, forward, reverse, in_use, state.parity)
        # running means of Bennett's terms, of each chain on its own
        num_seen = state.num_seen + 1
        rate = jnp.maximum(1.0 / num_seen, 1.0 / _WINDOW)[:, None] * in_use
        guess = state.reference[:, None]
        state = state._replace(
            models=models,
            values=values,
            parity=1 - state.parity,
            swap_prob=swap_prob,
            forward=state.forward + rate * (sigmoid(forward - guess) - state.forward),
            reverse=state.reverse + rate * (sigmoid(guess - reverse) - state.reverse),
            num_seen=num_seen,
        )
        worst = jnp.min(jnp.where(in_use[:, 0], swap_prob, 1.0))
        return rung_at(values, top + 1), state, {"energy": energy, "swap_rate": worst}

    def moved(
        self, chains: Values, state: Trajectory, model: EnergyModel, proposed: EnergyModel
    ) -> tuple[EnergyModel, Trajectory, dict[str, jax.Array]]:
        """Return the model to go on with, the ladder under it, and figures.

        The step is not taken if the models before and after it would swap too seldom. If the model
        before it and the rung below do, it becomes a rung.
        """
        top, size = state.num_models - 1, state.reference.shape[0]
        climb = _energies(proposed, chains) - _energies(model, chains)
        accepted = ~(_swap_rate_of_step(climb) < self.swap_rate)  # NaN passes, for the loop to see
        proposed = jax.tree.map(lambda a, b: jnp.where(accepted, a, b), proposed, model)
        climb = jnp.where(accepted, climb, 0.0)
        keep = accepted & (state.swap_prob[top] < self.swap_rate) & (state.num_models < size)
        place = jnp.where(keep, top + 1, top)

        # log Z of the model after the step over that of the one before, from the chains of the
        # latter; unless that becomes a rung, over that of the rung below it
        ratio = logsumexp(-climb) - jnp.log(climb.shape[0])
        forward, reverse = jnp.exp(-climb - ratio), jnp.ones_like(climb)
        mean_forward, mean_reverse = mean_term(state.forward[top]), mean_term(state.reverse[top])
        below = state.reference[top] + jnp.log(mean_forward) - jnp.log(mean_reverse)
        # each term over its mean, so that what every chain adds to the error is added up too
        whole = state.forward[top] / mean_forward + forward - 1.0
        state = state._replace(
            models=with_rung(with_rung(state.models, top, model), place, proposed),
            values=with_rung(state.values, place + 1, chains),
            num_models=place + 1,
            reference=state.reference.at[place].set(jnp.where(keep, ratio, below + ratio)),
            forward=state.forward.at[place].set(jnp.where(keep, forward, whole)),
            reverse=state.reverse.at[place].set(
                jnp.where(keep, reverse, state.reverse[top] / mean_reverse)
            ),
            num_seen=state.num_seen.at[jnp.stack([top, place])].set(0.0),
        )
        figures = {
            "num_models": state.num_models * 1.0,
            "rejected": 1.0 - accepted,
            "log_partition": state.log_partition,
        }
        return proposed, state, figures

    def taken(self, state: Trajectory, index: jax.Array) -> Trajectory:
        """Return the ladders of these chains."""
        return state._replace(
            values={name: value[:, index] for name, value in state.values.items()},
            forward=state.forward[:, index],
            reverse=state.reverse[:, index],
        )

    def sample(
        self, rng_key: Key, trajectory: Trajectory, num_steps: int
    ) -> tuple[Values, Trajectory]:
        """Return samples of the present model, and the ladder, after steps at fixed parameters.

        Samples are raw values by site, ``(num_steps, num_chains, ...)``. The ladder's
        ``log_partition`` then comes from these steps alone: none of what the chains were while the
        parameters moved is in it.
        """
        require_count("num_steps", num_steps)
        return _sample(require_key(rng_key), trajectory, phase=self, num_steps=num_steps)


@functools.partial(jax.jit, static_argnames=("phase", "num_steps"))
def _sample(
    rng_key: Key, state: Trajectory, *, phase: TrajectoryChains, num_steps: int
) -> tuple[Values, Trajectory]:
    model = state.model
    state = state._replace(num_seen=jnp.zeros_like(state.num_seen))

    def step(state: Trajectory, key: jax.Array) -> tuple[Trajectory, Values]:
        chains = rung_at(state.values, state.num_models)
        chains, state, _ = phase.sweep(key, chains, state, model)
        return state, chains

    state, values = jax.lax.scan(step, state, jax.random.split(rng_key, num_steps))
    return values, state


@functools.partial(jax.jit, static_argnames=("num_chains", "size"))
def _start(
    rng_key: Key, base: EnergyModel, model: EnergyModel, *, num_chains: int, size: int
) -> Trajectory:
    """A ladder of the base and one model, all chains at random."""
    keys = jax.random.split(rng_key, (size + 1) * num_chains).reshape(size + 1, num_chains)
    values = jax.vmap(jax.vmap(lambda key: random_configuration(key, model)))(keys)
    kind = jnp.result_type(float)
    ones = jnp.ones((size, num_chains), kind)
    return Trajectory(
        base=base,
        models=jax.tree.map(lambda x: jnp.broadcast_to(x, (size, *x.shape)), model),
        num_models=jnp.ones((), jnp.int32),
        values=values,
        parity=jnp.zeros((), jnp.int32),
        swap_prob=jnp.ones(size, kind),
        reference=jnp.zeros(size, kind),
        forward=ones,
        reverse=ones,
        num_seen=jnp.zeros(size, kind),
    )


def _step(
    kernel: Any, rng_key: Key, values: Values, model: EnergyModel
) -> tuple[Values, jax.Array]:
    """One step of all chains of a rung, and their energies."""
    keys = jax.random.split(rng_key, len(next(iter(values.values()))))
    values, info = jax.vmap(lambda key, x: kernel(key, x, model))(keys, values)
    energy = getattr(info, "energy", None)
    return values, _energies(model, values) if energy is None else energy


def _energies(model: EnergyModel, values: Values) -> jax.Array:
    """E of every chain, nats, all sites together: the energy that the rungs are sampled by."""
    return jax.vmap(lambda x: model.energy(**model.encode(x)))(values)


def _energies_below(
    base: EnergyModel, models: EnergyModel, number: jax.Array, values: Values
) -> jax.Array:
    """E of every chain under the model below a number; below the first there is the base."""
    return jax.lax.cond(
        number == 0,
        lambda: _energies(base, values),
        lambda: _energies(rung_at(models, number - 1), values),
    )


def _swap_rate_of_step(climb: jax.Array) -> jax.Array:
    """Mean probability of a swap between the models before and after a step.

    From the energies that the step adds to chains of the model before it; weighted, the same
    chains stand for the model after it.
    """
    climb = climb[:_MOST_PAIRED]
    after = jax.nn.softmax(-climb)
    swap_prob = jnp.exp(jnp.minimum(climb[None, :] - climb[:, None], 0.0))
    return jnp.mean(swap_prob @ after)


def _swap(
    values: Values,
    uniform: jax.Array,
    forward: jax.Array,
    reverse: jax.Array,
    in_use: jax.Array,
    parity: jax.Array | int,
) -> tuple[Values, jax.Array]:
    """Values after swaps of neighbours, chain by chain, and the mean probability of each.

    Swapping x of a model and y of the one above multiplies the joint density by the ratio of the
    upper to the lower density at x (``forward``) over that at y (``reverse``).
    """
    log_ratio = jnp.where(in_use, forward - reverse, -jnp.inf)
    order, _, swap_prob = jax.vmap(swap_neighbours, in_axes=(1, 1, None), out_axes=1)(
        uniform, log_ratio, parity
    )
    taken = jax.vmap(lambda x, own: x[own], in_axes=1, out_axes=1)
    return {name: taken(value, order) for name, value in values.items()}, jnp.mean(swap_prob, 1)
