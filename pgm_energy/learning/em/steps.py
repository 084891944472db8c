"""The compiled part of EM: E-steps in chunks, and loops of many starts at once."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._struct import Key
from pgm_energy.models.chunks import Chunks, encoded, sum_over
from pgm_energy.models.mixture import Mixture

__all__ = ["Expectation", "Start", "advance", "beginning", "expect", "fresh_starts", "raised"]


class Expectation(NamedTuple):
    """Sums over rows of an E-step.

    Attributes
    ----------
    moments
        What the M-step needs, about the means of the model.
    log_likelihood
        Nats.
    size
        Sum of ``|log p_i|``, nats: how much rounding may do.
    entropy
        Of the responsibilities, nats.
    """

    moments: Any
    log_likelihood: jax.Array
    size: jax.Array
    entropy: jax.Array


class Start(NamedTuple):
    """One start under way; under ``vmap`` all of them.

    Attributes
    ----------
    model
        The mixture that was looked at last.
    following
        What the M-step made of it; the same again where nothing follows.
    objective
        What is maximised, of ``model``: log-likelihood plus log-density of the prior, nats.
    log_likelihood, entropy
        Of ``model``, nats.
    history
        The objective of every mixture, ``(max_steps + 1,)``.
    worst_fall
        Largest fall, as a multiple of what rounding may do.
    magnitude
        Largest size of terms that cancelled in fast scores, nats.
    looked
        How many mixtures were looked at: one more than M-steps.
    converged
        Whether the last M-step changed next to nothing.
    """

    model: Any
    following: Any
    objective: Any
    log_likelihood: Any
    entropy: Any
    history: Any
    worst_fall: Any
    magnitude: Any
    looked: Any
    converged: Any


def expect(model: Mixture, chunks: Chunks, fast: bool = False) -> Expectation:
    """Return the sums of an E-step, one chunk of rows after another.

    Rows are handled in the floating type of their weights, sums in the widest that is on.
    """
    kind = chunks.weights.dtype
    site = model.sites[model.data_sites[0]]

    def one(chunk: Chunks) -> Expectation:
        rows, weights = encoded(site, chunk, kind), chunk.weights
        scores = model.scores(rows, fast)
        top = jnp.max(scores, axis=0)
        top = jnp.where(jnp.isfinite(top), top, 0.0)
        shifted = scores - top
        parts = jnp.exp(shifted)
        total = jnp.sum(parts, axis=0)
        log_probs = top + jnp.log(total)
        safe = jnp.where(total > 0, total, 1.0)
        # a row of weight zero may be infinitely unlikely: it must not turn the sum into NaN
        counted = jnp.where(weights > 0, weights * log_probs, 0.0)
        inner = jnp.sum(jnp.where(parts > 0, parts * shifted, 0.0), axis=0) / safe
        entropy = weights * (jnp.log(safe) - inner)
        moments = model.moments(rows, parts * (weights / safe), fast)
        sums = (jnp.sum(_wide(x)) for x in (counted, jnp.abs(counted), entropy))
        return Expectation(moments, *sums)

    found = sum_over(one, chunks)
    return found._replace(moments=model.rebased(found.moments, None)) if fast else found


def _wide(values: jax.Array) -> jax.Array:
    return values.astype(jnp.result_type(float))


@functools.partial(jax.jit, static_argnames=("careful",))
def fresh_starts(rng_keys: Key, like: Mixture, chunks: Chunks, *, careful: bool) -> Any:
    """Return one start per key, stacked."""
    return jax.lax.map(lambda key: like.restart(key, chunks, careful), rng_keys)


@jax.jit
def raised(models: Any, floor: Any) -> Any:
    """Return stacked mixtures that keep a floor."""
    return jax.vmap(lambda model: model.with_floor(floor))(models)


def beginning(models: Any, max_steps: int) -> Start:
    """Return starts at stacked mixtures, at which nobody has looked yet."""
    count = len(jax.tree.leaves(models)[0])
    nothing = np.zeros(count)
    return Start(
        model=models,
        following=models,
        objective=np.full(count, -np.inf),
        log_likelihood=nothing,
        entropy=nothing,
        history=np.full((count, max_steps + 1), np.nan),
        worst_fall=nothing,
        magnitude=nothing,
        looked=np.zeros(count, np.int32),
        converged=np.zeros(count, bool),
    )


@functools.partial(jax.jit, static_argnames=("fast",))
def advance(
    starts: Start,
    chunks: Chunks,
    prior: Any,
    tol: Any,
    floor: Any,
    until: Any,
    *,
    fast: bool,
) -> Start:
    """Return stacked starts after looking at mixtures up to number ``until``, or convergence."""
    eps = jnp.finfo(chunks.weights.dtype).eps
    least = tol * jnp.sum(_wide(chunks.weights))

    def going(start: Start) -> jax.Array:
        return (start.looked < until) & ~start.converged

    def look(start: Start) -> Start:
        model = start.following
        found = expect(model, chunks, fast)
        log_prior = model.log_prior(prior)
        objective = found.log_likelihood + log_prior
        change = objective - start.objective
        rounding = 4.0 * eps * (found.size + jnp.abs(log_prior))
        fall = -change / jnp.maximum(rounding, jnp.finfo(rounding.dtype).tiny)
        converged = jnp.abs(change) < least
        last = converged | (start.looked + 1 == start.history.shape[0])
        better = model.maximize(found.moments, floor, prior)
        return Start(
            model,
            jax.tree.map(lambda old, new: jnp.where(last, old, new), model, better),
            objective,
            found.log_likelihood,
            found.entropy,
            start.history.at[start.looked].set(objective),
            jnp.maximum(start.worst_fall, fall),
            jnp.maximum(start.magnitude, model.magnitude()) if fast else start.magnitude,
            start.looked + 1,
            converged,
        )

    return jax.vmap(lambda start: jax.lax.while_loop(going, look, start))(starts)
