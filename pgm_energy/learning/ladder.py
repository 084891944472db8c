"""A ladder of models with chains on every rung, and log Z from one rung to the next."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pgm_energy.energy import EnergyModel

__all__ = ["Trajectory", "mean_term", "rung_at", "with_rung"]

Values = dict[str, jax.Array]


class Trajectory(NamedTuple):
    """State of :class:`TrajectoryChains`: the ladder, its chains, and what is known of log Z.

    Attributes
    ----------
    base
        Independent units with known log Z, the foot of the ladder.
    models
        The models above it, oldest first, leaves stacked ``(max_models, ...)``; the present one is
        the last in use.
    num_models
        How many are in use.
    values
        Raw values by site, ``(max_models + 1, num_chains, ...)``, those of the base first.
    parity
        Which neighbours are swapped next.
    swap_prob
        Mean probability of a swap of each model with the one below it, ``(max_models,)``.
    reference, forward, reverse, num_seen
        Of each model and the one below it: a guess of the log-ratio of their partition functions
        (nats), the mean of Bennett's two terms of every chain, ``(max_models, num_chains)``, and
        from how many steps it comes.
    """

    base: EnergyModel
    models: EnergyModel
    num_models: jax.Array
    values: Values
    parity: jax.Array
    swap_prob: jax.Array
    reference: jax.Array
    forward: jax.Array
    reverse: jax.Array
    num_seen: jax.Array

    @property
    def model(self) -> EnergyModel:
        """The present model."""
        return rung_at(self.models, self.num_models - 1)

    @property
    def log_partition(self) -> jax.Array:
        """Log Z of the present model, nats: that of the base and the log-ratios of neighbours."""
        ratios = (
            self.reference + jnp.log(mean_term(self.forward)) - jnp.log(mean_term(self.reverse))
        )
        known: Any = self.base.known_log_partition
        return known + jnp.sum(jnp.where(self._in_use, ratios, 0.0))

    @property
    def std_error(self) -> jax.Array:
        """Standard error of ``log_partition``, nats, from the differences between chains.

        Chains are independent of each other, however slow each of them is.
        """
        own = self.forward / mean_term(self.forward)[:, None]
        own = own - self.reverse / mean_term(self.reverse)[:, None]
        errors = jnp.sum(jnp.where(self._in_use[:, None], own, 0.0), axis=0)
        return jnp.std(errors) / jnp.sqrt(jnp.maximum(errors.shape[0] - 1, 1))

    @property
    def _in_use(self) -> jax.Array:
        return jnp.arange(self.reference.shape[0]) < self.num_models


def rung_at(tree: Any, number: jax.Array | int) -> Any:
    """Return one rung of a tree of stacked rungs."""
    return jax.tree.map(lambda x: x[number], tree)


def with_rung(tree: Any, number: jax.Array | int, part: Any) -> Any:
    """Return the tree with another rung in a place."""
    return jax.tree.map(lambda x, y: x.at[number].set(y), tree, part)


def mean_term(terms: jax.Array) -> jax.Array:
    """Return the mean over chains of terms of Bennett's ratio, never zero."""
    return jnp.maximum(jnp.mean(terms, axis=-1), jnp.finfo(terms.dtype).tiny)
