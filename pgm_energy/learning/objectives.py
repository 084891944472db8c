"""Objectives that need no sampling: pseudo-likelihood, ratio and score matching, likelihood."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.enumeration import StateSpace, chunk_size, map_chunks
from pgm_energy.evaluation import free_energy, without_latents
from pgm_energy.learning.centering import (
    centered_gradient,
    first_offsets,
    optimizer_step,
    uncentered,
)
from pgm_energy.learning.latents import as_raw
from pgm_energy.learning.learner import GradientLearner
from pgm_energy.learning.loop import Rows
from pgm_energy.learning.metrics import measurements
from pgm_energy.normalization import exact_sum
from pgm_energy.pseudo_likelihood import map_unit_logits, pseudo_losses, unit_plans

__all__ = [
    "MaximumLikelihood",
    "ObjectiveState",
    "PseudoLikelihood",
    "RatioMatching",
    "ScoreMatching",
]

Values = dict[str, jax.Array]
#: Most states that exact maximum likelihood sums over at every step.
MAX_STATES = 2**20


class ObjectiveState(NamedTuple):
    """State of a learner that samples nothing.

    Attributes
    ----------
    model
        The model with its present parameters.
    optimizer
        State of the optax optimiser.
    chains
        Empty: there are none.
    offsets
        Encoded values by site at which the parameters are centred; empty where they are not.
    """

    model: EnergyModel
    optimizer: Any
    chains: Values
    offsets: Values


class _Objective(GradientLearner):
    """One scalar objective, the weighted mean of :meth:`losses`, minimised by its gradient."""

    centered: bool | None

    @abc.abstractmethod
    def losses(self, model: EnergyModel, values: Values) -> jax.Array:
        """Return the objective of each row, ``(rows,)``; the parameters may be traced.

        Parameters
        ----------
        model
            The energy model.
        values
            Raw rows by data site.
        """

    def init(self, rng_key: Key, model: EnergyModel, rows: Rows) -> ObjectiveState:
        """Return the first state: the optimiser fresh."""
        offsets = first_offsets(model, rows, self.centered)
        return ObjectiveState(model, self.optimizer.init(model), {}, offsets)

    def update(
        self, rng_key: Key, state: ObjectiveState, batch: Rows, index: jax.Array
    ) -> tuple[ObjectiveState, dict[str, jax.Array]]:
        """Return the state after one step on a batch of rows.

        Notes
        -----
        Optimisers that search along a line (``optax.lbfgs``) are given what they ask for: the
        value, the gradient and the objective of this batch.
        """
        model, offsets = state.model, state.offsets

        def loss(model: EnergyModel) -> jax.Array:
            # batches of unequal weight pull as much as they weigh (1 is a whole batch)
            return jnp.mean(batch.weights * self.losses(model, batch.values))

        value, gradient = jax.value_and_grad(loss)(model)
        gradient = centered_gradient(gradient, model, offsets)
        new, optimizer = optimizer_step(
            self.optimizer,
            gradient,
            state.optimizer,
            model,
            offsets,
            value=value,
            grad=gradient,
            value_fn=lambda centered: loss(uncentered(centered, offsets)),
        )
        info = {
            "objective": value / jnp.maximum(jnp.mean(batch.weights), 1e-12),
            "gradient_norm": optax.tree.norm(gradient),
        }
        return ObjectiveState(new, optimizer, {}, offsets), info

    def _measurements(
        self, model: EnergyModel, rows: Rows, held_out: Rows | None
    ) -> Callable[[jax.Array, Any], dict[str, float]]:
        _require_open(model, type(self).__name__)
        jax.eval_shape(self.losses, model, as_raw(model, rows.values))  # refuses what it cannot do
        try:
            sampled = measurements(model, rows, held_out)
        except ValueError:  # no block Gibbs for this energy: the objective tells alone

            def sampled(rng_key: jax.Array, state: Any) -> dict[str, float]:
                return {}

        other = None if held_out is None else as_raw(model, held_out.values)

        def measure(rng_key: jax.Array, state: Any) -> dict[str, float]:
            figures = sampled(rng_key, state)
            if other is not None:
                value = _mean_loss(state.model, other, learner=self)
                figures["validation_objective"] = float(value)
            return figures

        return measure


@functools.partial(jax.jit, static_argnames=("learner",))
def _mean_loss(model: EnergyModel, values: Values, *, learner: _Objective) -> jax.Array:
    return jnp.mean(learner.losses(model, values))


def _require_open(model: EnergyModel, owner: str) -> None:
    """Refuse a model whose units are held fixed: its data would be parameters."""
    for name in model.sites:
        if model.free_units(name) is not None:
            raise ValueError(
                f"{owner} learns a model with all units free, {model.title} holds units of site "
                f"{name!r}: learn the model that it conditions"
            )


def _require_bits(values: Values, model: EnergyModel, owner: str) -> None:
    for name, value in values.items():
        if model.sites[name].is_discrete and jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(
                f"{owner} asks for states of the units of site {name!r}, got numbers in between: "
                "draw bits with intensities='sample', threshold grey levels, or learn with PCD"
            )


@dataclasses.dataclass(frozen=True)
class PseudoLikelihood(_Objective):
    """Maximum pseudo-likelihood: every unit is to be told from all others of its row.

    Minimises the mean of ``-sum_i log p(v_i given the other data units)``, nats per row.

    Parameters
    ----------
    optimizer
        Any optax optimizer; its schedules count updates. ``optax.lbfgs()`` with
        ``batch_size=len(data)`` converges in tens of epochs.
    centered
        As in :class:`PCD`.

    Notes
    -----
    No sampling and no log Z: consistent for models that hold the truth, and for fully visible
    machines convex. Latent sites are summed out. Cost per row as in
    :func:`pseudo_log_likelihood`: one product for all units of a pairwise machine; D x H
    log-normalisers for D data units and H latent units that do not interact.

    Metrics per epoch: ``objective`` (mean over rows, while the parameters moved),
    ``validation_objective``, and those of :class:`PCD`.

    References
    ----------
    J. Besag (1975), Statistical analysis of non-lattice data. A. Hyvarinen (2006), Consistency
    of pseudolikelihood estimation of fully visible Boltzmann machines.

    Examples
    --------
    >>> import jax, numpy as np, optax, pgm_energy as pgm
    >>> rows = np.array([[0, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 0]] * 8)
    >>> start = pgm.BoltzmannMachine.init(jax.random.key(0), num_visible=3, data=rows)
    >>> learner = pgm.PseudoLikelihood(optax.adam(0.1))
    >>> result = learner.run(jax.random.key(1), start, rows, num_epochs=5, progress_bar=False)
    >>> bool(result.metrics["objective"][-1] < result.metrics["objective"][0])
    True
    """

    optimizer: optax.GradientTransformation
    centered: bool | None = None

    def losses(self, model: EnergyModel, values: Values) -> jax.Array:
        """Return -log pseudo-likelihood of each row, nats."""
        _require_bits(values, model, type(self).__name__)
        return pseudo_losses(model, values)


@dataclasses.dataclass(frozen=True)
class RatioMatching(_Objective):
    """Ratio matching, for binary and spin data: ratios p(v) / p(v with unit i flipped) fitted.

    Minimises the mean of ``sum_i g(p(v) / p(v_i flipped))^2`` with ``g(u) = 1 / (1 + u)``, which
    is the Brier score of every unit given the others.

    Parameters
    ----------
    optimizer
        Any optax optimizer.
    centered
        As in :class:`PCD`.

    Notes
    -----
    No sampling and no log Z; consistent. A unit that is badly wrong pulls less than under the
    pseudo-likelihood. Latent sites are summed out; cost as :class:`PseudoLikelihood`.

    References
    ----------
    A. Hyvarinen (2007), Some extensions of score matching, section 4.

    Examples
    --------
    >>> import jax.numpy as jnp, optax, pgm_energy as pgm
    >>> machine = pgm.BoltzmannMachine(weights=jnp.zeros((3, 3)))
    >>> loss = pgm.RatioMatching(optax.adam(0.01)).losses(machine, {"v": jnp.array([[0, 1, 1]])})
    >>> loss.tolist()  # three fair coins, 1/4 each
    [0.75]
    """

    optimizer: optax.GradientTransformation
    centered: bool | None = None

    def losses(self, model: EnergyModel, values: Values) -> jax.Array:
        """Return the sum over units of squared ratios, of each row; no unit."""
        for name in model.data_sites:
            site = model.sites[name]
            if site.is_discrete and len(site.states) == 2 and not site.event:
                continue
            better = "PseudoLikelihood" if site.is_discrete else "ScoreMatching"
            raise ValueError(
                f"ratio matching is for binary and spin data, site {name!r} is {site.family}: "
                f"use {better}"
            )
        _require_bits(values, model, type(self).__name__)
        reduced, plans = unit_plans(model)
        parts = (
            map_unit_logits(reduced, values, plan, lambda x: jnp.sum(jax.nn.sigmoid(x) ** 2))
            for plan in plans
        )
        return sum(parts, start=jnp.zeros(()))


@dataclasses.dataclass(frozen=True)
class ScoreMatching(_Objective):
    """Score matching, for real data: the gradient of log p fitted, which log Z does not enter.

    Minimises the mean of ``|grad F|^2 / 2 - laplacian F`` over rows, F the (free) energy as a
    function of the data.

    Parameters
    ----------
    optimizer
        Any optax optimizer.
    centered
        As in :class:`PCD`.

    Notes
    -----
    No sampling and no log Z; consistent. Any smooth energy will do, block Gibbs need not apply.
    Latent sites are summed out. Cost per row: one Hessian-vector product per data unit. The
    objective is in units of 1 / data^2: standardise columns of unlike scale.

    References
    ----------
    A. Hyvarinen (2005), Estimation of non-normalized statistical models by score matching.

    Examples
    --------
    >>> import jax.numpy as jnp, optax, pgm_energy as pgm
    >>> normal = pgm.GaussianMixture(
    ...     weights=[1.0], means=[[0.0, 0.0]], covariances=[1.0], covariance_type="spherical")
    >>> rows = {"x": jnp.array([[0.0, 0.0], [3.0, 1.0]])}
    >>> pgm.ScoreMatching(optax.adam(0.01)).losses(normal, rows).tolist()  # |x|^2 / 2 - 2
    [-2.0, 3.0]
    """

    optimizer: optax.GradientTransformation
    centered: bool | None = None

    def losses(self, model: EnergyModel, values: Values) -> jax.Array:
        """Return the objective of each row, in units of 1 / data^2."""
        for name in model.data_sites:
            site = model.sites[name]
            if site.is_discrete:
                better = "PseudoLikelihood" if site.event else "PseudoLikelihood or RatioMatching"
                raise ValueError(
                    f"score matching is for real data, site {name!r} is {site.family}: use {better}"
                )
        reduced, space = without_latents(model)
        chunk = chunk_size(reduced)

        def one(row: Values) -> jax.Array:
            point, unravel = ravel_pytree(row)

            def energy(x: jax.Array) -> jax.Array:
                return free_energy(reduced, unravel(x), space, chunk)

            gradient, bend = jax.linearize(jax.grad(energy), point)
            curvature = jax.vmap(lambda unit: unit @ bend(unit))(
                jnp.eye(point.size, dtype=point.dtype)
            )
            return 0.5 * gradient @ gradient - jnp.sum(curvature)

        width = sum(model.sites[name].size for name in model.data_sites)
        return map_chunks(one, values, chunk // (width * space.size))


@dataclasses.dataclass(frozen=True)
class MaximumLikelihood(_Objective):
    """Exact maximum likelihood, for models small enough that log Z is summed at every step.

    Minimises the mean of ``-log p(row) = F(row) + log Z``, nats per row.

    Parameters
    ----------
    optimizer
        Any optax optimizer. ``optax.lbfgs()`` with ``batch_size=len(data)`` takes one step of a
        line search per epoch and converges in tens to hundreds of them.
    centered
        As in :class:`PCD`.

    Notes
    -----
    Exact to float32 rounding. Latent sites are summed out. log Z costs one energy per state that
    is left when sites of independent units are summed out in closed form, 2^min(visible, hidden)
    for a restricted Boltzmann machine, at every step whatever the batch: use large batches. At
    most 2^20 states; a model that knows its log Z (a mixture) has none to sum.

    Examples
    --------
    >>> import jax.numpy as jnp, optax, pgm_energy as pgm
    >>> machine = pgm.BoltzmannMachine(weights=jnp.zeros((2, 2)))
    >>> learner = pgm.MaximumLikelihood(optax.lbfgs())
    >>> [round(float(x), 4) for x in learner.losses(machine, {"v": jnp.array([[0, 1]])})]  # 2 log 2
    [1.3863]
    """

    optimizer: optax.GradientTransformation
    centered: bool | None = None

    def losses(self, model: EnergyModel, values: Values) -> jax.Array:
        """Return -log p of each row, nats."""
        log_z = model.known_log_partition
        if log_z is None:
            advice = (
                "learn with PCD, PseudoLikelihood or RatioMatching, which need no log Z, or with "
                "fewer units"
            )
            log_z = exact_sum(model, MAX_STATES, advice)(model)
        reduced, space = without_latents(model)
        return log_z + _free_energies(reduced, values, space)


def _free_energies(model: EnergyModel, values: Values, space: StateSpace) -> jax.Array:
    chunk = chunk_size(model)

    def one(row: Values) -> jax.Array:
        return free_energy(model, row, space, chunk)

    return map_chunks(one, values, chunk // space.size)
