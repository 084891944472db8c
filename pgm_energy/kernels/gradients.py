"""Gradient-informed proposals for discrete units, corrected by Metropolis and Hastings."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy import _random
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.natural import Values
from pgm_energy.pairwise import state_numbers
from pgm_energy.sites import Site

__all__ = ["DiscreteLangevinKernel", "GibbsWithGradientsKernel", "InformedInfo", "Point"]


class Point(NamedTuple):
    """A configuration and what one gradient of the energy says about it.

    Attributes
    ----------
    values
        Raw values of every site.
    energy
        E, nats.
    eta
        -dE/dT(x), nats, shaped like the encoding, of the sites that are updated.
    """

    values: dict[str, jax.Array]
    energy: jax.Array
    eta: dict[str, jax.Array]


class InformedInfo(NamedTuple):
    """What one step leaves behind for somebody to look at.

    Attributes
    ----------
    energy
        E of the new configuration, nats.
    accept_prob
        Probability with which the proposals were accepted, averaged over the step.
    """

    energy: jax.Array
    accept_prob: jax.Array


class InformedKernel(ABC):
    """A proposal made from one gradient, and the correction that makes it exact.

    A subclass says how new values are drawn (:meth:`draw`) and with what probability
    (:meth:`proposal_log_prob`); the correction, which needs the gradient at the new configuration
    for the way back, is the same for all.
    """

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...] | None:
        """Sites that are updated; None for all, which must then be discrete."""

    @abstractmethod
    def draw(self, rng_key: Key, point: Point, model: EnergyModel) -> dict[str, jax.Array]:
        """Return proposed raw values of the updated sites."""

    @abstractmethod
    def proposal_log_prob(self, point: Point, new_values: Values, model: EnergyModel) -> jax.Array:
        """Return the log-probability, nats, of proposing ``new_values`` (which may be the same)."""

    def __call__(
        self, rng_key: Key, values: Values, model: EnergyModel
    ) -> tuple[dict[str, jax.Array], InformedInfo]:
        """Return the configuration after one proposal, and what happened.

        Parameters
        ----------
        rng_key
            A JAX random key.
        values
            Raw values of every site, one configuration.
        model
            The energy model; new parameters of the same shapes do not recompile.
        """
        point, accept_prob = self.step(rng_key, self.look(values, model), model)
        return point.values, InformedInfo(point.energy, accept_prob)

    def look(self, values: Values, model: EnergyModel) -> Point:
        """Return a configuration with its energy and gradient: one evaluation of both."""
        names = self.updated(model)
        raw = model.clamp({name: site.cast(values[name]) for name, site in model.sites.items()})
        encoded = model.encode(raw)

        def energy(updated: dict[str, jax.Array]) -> jax.Array:
            return model.energy(**{**encoded, **updated})

        value, gradient = jax.value_and_grad(energy)({name: encoded[name] for name in names})
        return Point(raw, value, {name: -gradient[name] for name in names})

    def step(self, rng_key: Key, point: Point, model: EnergyModel) -> tuple[Point, jax.Array]:
        """Return the next point and the acceptance probability; costs one gradient."""
        draw_key, accept_key = _random.split(rng_key, 2)
        new = self.look({**point.values, **self.draw(draw_key, point, model)}, model)
        accept_prob = jnp.exp(self.accept_log_prob(point, new, model))
        accepted = _random.uniform(accept_key, ()) < accept_prob
        kept = jax.tree.map(lambda x, y: jnp.where(accepted, y, x), point, new)
        return kept, accept_prob

    def accept_log_prob(self, point: Point, new: Point, model: EnergyModel) -> jax.Array:
        """Return the log-probability of accepting ``new``, nats; -inf where E is not a number."""
        there = self.proposal_log_prob(point, new.values, model)
        back = self.proposal_log_prob(new, point.values, model)
        ratio = point.energy - new.energy + back - there
        return jnp.where(jnp.isnan(ratio), -jnp.inf, jnp.minimum(ratio, 0.0))

    def jump_log_prob(self, values: Values, new_values: Values, model: EnergyModel) -> jax.Array:
        """Return log p(new_values given values) of one step, nats, of two different ones.

        Notes
        -----
        Exact. The probability of staying is what all jumps leave: rejections are in it. Cost:
        two gradients.
        """
        point, new = self.look(values, model), self.look(new_values, model)
        fixed = [name for name in model.sites if name not in point.eta]
        same = [jnp.all(point.values[name] == new.values[name]) for name in fixed]
        reachable = jnp.all(jnp.asarray(same)) if same else jnp.asarray(True)
        log_prob = self.proposal_log_prob(point, new.values, model)
        log_prob = log_prob + self.accept_log_prob(point, new, model)
        return jnp.where(reachable & ~jnp.isnan(log_prob), log_prob, -jnp.inf)

    def updated(self, model: EnergyModel) -> tuple[str, ...]:
        """Return the sites that are updated.

        Raises
        ------
        ValueError
            If one of them is real, or none has a unit with two states.
        """
        names = tuple(model.sites) if self.names is None else self.names
        model.require_sites(names)
        for name in names:
            if not model.sites[name].is_discrete:
                raise ValueError(
                    f"{_title(self)} updates discrete sites, site {name!r} is real: observe it, "
                    "sum it out with marginalize, or sample it beside this kernel with NUTS in "
                    "numpyro.infer.Gibbs"
                )
        if not any(len(model.sites[name].states) > 1 for name in names):
            raise ValueError(f"{_title(self)} has nothing to update: no unit has two states")
        return names


@dataclasses.dataclass(frozen=True)
class GibbsWithGradientsKernel(InformedKernel):
    """One unit at a time, chosen with its new state from one gradient.

    Attributes
    ----------
    names
        Sites that are updated; None for all, which must then be discrete.

    Notes
    -----
    Exact for every energy that can be differentiated at encoded configurations. The gradient
    estimates the fall of the energy for each state of each unit (exactly, where the energy is
    affine in each unit); state k of unit i is proposed with probability proportional to
    exp(fall / 2) and accepted with the probability of the way back. Two gradients per call, one
    where points are carried on (:meth:`step`).

    References
    ----------
    W. Grathwohl, K. Swersky, M. Hashemi, D. Duvenaud and C. Maddison (2021), Oops I took a
    gradient: scalable sampling for discrete distributions, algorithm 1. G. Zanella (2020),
    Informed proposals for local MCMC in discrete spaces.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, pgm_energy as pgm
    >>> model = pgm.BoltzmannMachine(weights=jnp.ones((3, 3)) - jnp.eye(3))
    >>> values, info = GibbsWithGradientsKernel()(
    ...     jax.random.key(0), {"v": jnp.zeros(3, jnp.int8)}, model)
    >>> int(values["v"].sum())
    1
    """

    names: tuple[str, ...] | None = None

    def draw(self, rng_key: Key, point: Point, model: EnergyModel) -> dict[str, jax.Array]:
        """Return the updated sites with one unit in another state."""
        scores = _all_scores(point, model)
        flat = jnp.concatenate([score.reshape(-1) for score in scores.values()])
        choice = jnp.argmax(flat + _random.gumbel(rng_key, flat.shape))
        new, start = {}, 0
        for name, score in scores.items():
            site = model.sites[name]
            inside = (choice >= start) & (choice < start + score.size)
            width = max(score.shape[1], 1)
            unit = jnp.where(inside, (choice - start) // width, site.size)
            states = state_numbers(site, point.values[name])
            moved = (states[unit] + 1 + (choice - start) % width) % len(site.states)
            states = states.at[unit].set(moved, mode="drop")
            new[name] = _raw(site, states)
            start += score.size
        return new

    def proposal_log_prob(self, point: Point, new_values: Values, model: EnergyModel) -> jax.Array:
        """Return the log-probability of the proposal; -inf unless exactly one unit differs."""
        scores = _all_scores(point, model)
        total = jax.nn.logsumexp(jnp.concatenate([s.reshape(-1) for s in scores.values()]))
        count, chosen = jnp.zeros((), jnp.int32), jnp.zeros((), total.dtype)
        for name, score in scores.items():
            changed, own = _chosen(model.sites[name], score, point.values[name], new_values[name])
            count = count + jnp.sum(changed)
            chosen = chosen + jnp.sum(own)
        return jnp.where(count == 1, chosen - total, -jnp.inf)


@dataclasses.dataclass(frozen=True)
class DiscreteLangevinKernel(InformedKernel):
    """All units at once, each from its own law made of one gradient and a step size.

    Attributes
    ----------
    step_size
        alpha: a change of state costs 1 / (2 alpha) nats, so large steps change many units.
    names
        Sites that are updated; None for all, which must then be discrete.

    Notes
    -----
    Exact for every energy that can be differentiated at encoded configurations. Unit i moves to
    state k with probability proportional to exp(fall / 2 - 1 / (2 alpha)), against 1 for staying,
    with the fall of the energy as the gradient at the present configuration estimates it; the
    proposal of all units is accepted or rejected as one. A change counts the same in every
    family: for binary units alpha is that of the paper, for spins a quarter of it. Two gradients
    per call, one where points are carried on (:meth:`step`).

    References
    ----------
    R. Zhang, X. Liu and Q. Liu (2022), A Langevin-like sampler for discrete distributions,
    equations 3 and 4 and algorithm 1 (with the Metropolis-Hastings step).

    Examples
    --------
    >>> import jax, jax.numpy as jnp, pgm_energy as pgm
    >>> model = pgm.BoltzmannMachine(weights=jnp.ones((3, 3)) - jnp.eye(3))
    >>> kernel = DiscreteLangevinKernel(step_size=0.5)
    >>> values, info = kernel(jax.random.key(0), {"v": jnp.zeros(3, jnp.int8)}, model)
    >>> 0.0 < float(info.accept_prob) <= 1.0
    True
    """

    step_size: Any = 0.2
    names: tuple[str, ...] | None = None

    def draw(self, rng_key: Key, point: Point, model: EnergyModel) -> dict[str, jax.Array]:
        """Return the updated sites, each unit drawn for itself."""
        scores = self._logits(point, model)
        keys = _random.split(rng_key, len(scores))
        new = {}
        for key, (name, logits) in zip(keys, scores.items(), strict=True):
            site = model.sites[name]
            if logits.shape[1] == 1:  # one comparison per unit instead of one draw per state
                uniform = _random.uniform(key, logits.shape[:1])
                moves = _random.decide(uniform, logits[:, 0]).astype(jnp.int32)
            else:
                stay = jnp.zeros((logits.shape[0], 1), logits.dtype)
                logits = jnp.concatenate([stay, logits], axis=1)
                moves = jnp.argmax(logits + _random.gumbel(key, logits.shape), axis=1)
            states = state_numbers(site, point.values[name])
            new[name] = _raw(site, (states + moves) % len(site.states))
        return new

    def proposal_log_prob(self, point: Point, new_values: Values, model: EnergyModel) -> jax.Array:
        """Return the log-probability of the proposal: a sum over units."""
        total = jnp.zeros((), point.energy.dtype)
        for name, logits in self._logits(point, model).items():
            stay = jnp.zeros((logits.shape[0], 1), logits.dtype)
            normalizer = jax.nn.logsumexp(jnp.concatenate([stay, logits], axis=1), axis=1)
            _, own = _chosen(model.sites[name], logits, point.values[name], new_values[name])
            total = total + jnp.sum(own - normalizer)
        return total

    def _logits(self, point: Point, model: EnergyModel) -> dict[str, jax.Array]:
        scores = _all_scores(point, model)
        return {name: score - 0.5 / self.step_size for name, score in scores.items()}


def _title(kernel: InformedKernel) -> str:
    return type(kernel).__name__.removesuffix("Kernel")


def _raw(site: Site, states: jax.Array) -> jax.Array:
    return site.cast(jnp.asarray(site.states)[states]).reshape(site.shape)


def _all_scores(point: Point, model: EnergyModel) -> dict[str, jax.Array]:
    """Half the estimated fall of the energy for every move, ``(units, states - 1)`` by site.

    Move m of a unit leads from state s to state (s + 1 + m) modulo the number of states.
    """
    return {
        name: 0.5 * _falls(model.sites[name], point.values[name], eta)
        for name, eta in point.eta.items()
    }


def _falls(site: Site, values: jax.Array, eta: jax.Array) -> jax.Array:
    if not site.event:  # two states: the other one is what is missing to their sum
        now = site.encode(values)
        other = float(np.sum(site.states)) - now
        return (eta * (other - now)).reshape(-1, 1)
    count = len(site.states)
    states = state_numbers(site, values)[:, None]
    table = eta.reshape(site.size, count)
    others = (states + 1 + jnp.arange(count - 1)) % count
    now = jnp.take_along_axis(table, states, axis=1)
    return jnp.take_along_axis(table, others, axis=1) - now


def _chosen(
    site: Site, scores: jax.Array, values: Any, new_values: Any
) -> tuple[jax.Array, jax.Array]:
    """Which units differ, and the score of each unit's move (0 where it stays)."""
    count = len(site.states)
    shift = (state_numbers(site, new_values) - state_numbers(site, values)) % count
    changed = shift > 0
    if count == 1:
        return changed, jnp.zeros(site.size, scores.dtype)
    place = jnp.maximum(shift - 1, 0)[:, None]
    own = jnp.take_along_axis(scores, place, axis=1)[:, 0]
    return changed, jnp.where(changed, own, 0.0)
