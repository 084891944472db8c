"""Penalties that optax lacks, as its transformations: L1, a limit on norms, sparse activity.

L2 is ``optax.add_decayed_weights(strength, mask=couplings_only)``.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pgm_energy.learning.centering import couplings_only, fields_of

__all__ = ["add_l1_penalty", "add_sparsity_penalty", "limit_norms"]


def add_l1_penalty(strength: float, mask: Any = couplings_only) -> optax.GradientTransformation:
    """Return the transformation that adds the gradient of ``strength * sum |w|``.

    Parameters
    ----------
    strength
        Nats per unit of ``|w|``, not negative.
    mask
        As in ``optax.masked``: a tree of booleans or a function of the parameters; by default
        couplings alone, so that biases stay free.

    Raises
    ------
    ValueError
        If the strength is negative or not finite.

    Notes
    -----
    Put it before the optimiser: ``optax.chain(add_l1_penalty(1e-4), optax.sgd(0.01))``. The
    subgradient at 0 is 0, so weights come to lie near 0, not on it.

    References
    ----------
    R. Tibshirani (1996), Regression shrinkage and selection via the lasso.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax, pgm_energy as pgm
    >>> machine = pgm.BoltzmannMachine(weights=jnp.array([[0.0, -2.0], [-2.0, 0.0]]))
    >>> penalty = pgm.add_l1_penalty(0.1)
    >>> zero = jax.tree.map(jnp.zeros_like, machine)
    >>> updates, _ = penalty.update(zero, penalty.init(machine), machine)
    >>> round(float(updates.weights[0, 1]), 3)
    -0.1
    """
    _require("strength", strength)

    def update(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda g, w: g + strength * jnp.sign(w), updates, params)

    return optax.masked(optax.stateless(update), mask)


def limit_norms(limit: float, axis: int | tuple[int, ...] = 0) -> optax.GradientTransformation:
    """Return the transformation that keeps norms of the couplings of a unit below a limit.

    Parameters
    ----------
    limit
        Largest Euclidean norm after the step, positive.
    axis
        The axes of the couplings that a norm runs over: 0 is that of each hidden unit of an RBM.

    Raises
    ------
    ValueError
        If the limit is not positive.

    Notes
    -----
    Put it last: ``optax.chain(optax.sgd(0.01), limit_norms(3.0))``. Vectors that would be longer
    are shortened to the limit. Leaves without these axes, and biases, are left alone. For a
    symmetric matrix rows are limited and the matrix is symmetric again afterwards, which may
    leave norms a little over the limit.

    References
    ----------
    N. Srivastava, G. Hinton, A. Krizhevsky, I. Sutskever and R. Salakhutdinov (2014), Dropout,
    section 5.1.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax, pgm_energy as pgm
    >>> rbm = pgm.RBM(weights=jnp.array([[3.0, 0.3], [4.0, 0.4]]))
    >>> limiter = pgm.limit_norms(1.0)
    >>> zero = jax.tree.map(jnp.zeros_like, rbm)
    >>> updates, _ = limiter.update(zero, limiter.init(rbm), rbm)
    >>> norms = jnp.linalg.norm(rbm.weights + updates.weights, axis=0)
    >>> [round(float(norm), 2) for norm in norms]
    [1.0, 0.5]
    """
    if not (limit > 0 and math.isfinite(limit)):
        raise ValueError(f"limit must be positive, got {limit!r}")
    axes = axis if isinstance(axis, tuple) else (axis,)

    def shortened(step: jax.Array, old: jax.Array) -> jax.Array:
        if step.ndim <= max(axes):
            return step
        new = old + step
        norm = jnp.sqrt(jnp.sum(new**2, axis=axes, keepdims=True))
        return new * jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-30)) - old

    def update(updates: Any, params: Any) -> Any:
        return jax.tree.map(shortened, updates, params)

    return optax.masked(optax.stateless(update), couplings_only)


class SparsityState(NamedTuple):
    """Running mean activity of the units of a site, encoded, and the number of updates."""

    activity: jax.Array
    num_updates: jax.Array


def add_sparsity_penalty(
    target: float, strength: float, site: str = "h", decay: float = 0.95
) -> optax.GradientTransformationExtraArgs:
    """Return the transformation that draws the mean activity of hidden units to a target.

    Parameters
    ----------
    target
        Wanted mean of each unit under the data, inside the range of its mean.
    strength
        Nats per unit of activity, not negative.
    site
        Name of a latent site whose units have biases.
    decay
        Of the running mean of the activity, per update.

    Raises
    ------
    ValueError
        If a number is out of range; at the first step, if the site has no biases.

    Notes
    -----
    Adds ``strength * (activity - target)`` to the gradient of the biases, which is the gradient of
    the cross entropy between target and activity with respect to a unit's input. Needs CD or PCD,
    which tell the activity at every step; put it before the optimiser. Constant over rows: it
    asks for units that are rarely on, not for units that differ.

    References
    ----------
    H. Lee, C. Ekanadham and A. Ng (2008), Sparse deep belief net model for visual area V2.
    G. Hinton (2012), A practical guide to training restricted Boltzmann machines, section 11.

    Examples
    --------
    >>> import optax, pgm_energy as pgm
    >>> optimizer = optax.chain(pgm.add_sparsity_penalty(0.1, 1.0), optax.sgd(0.05))
    >>> pgm.PCD(optimizer).num_chains
    128
    """
    _require("strength", strength)
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"decay must be from 0 to below 1, got {decay!r}")
    if not math.isfinite(target):
        raise ValueError(f"target must be a number, got {target!r}")

    def init(params: Any) -> SparsityState:
        if site not in params.latent_sites:
            raise ValueError(
                f"{params.title} has no latent site {site!r}; its latent sites are "
                f"{', '.join(map(repr, params.latent_sites)) or 'none'}"
            )
        if not fields_of(params).has_all_of(site):
            raise ValueError(f"the units of site {site!r} of {params.title} have no biases to push")
        shape = params.sites[site].encoded_shape
        return SparsityState(jnp.zeros(shape), jnp.zeros((), jnp.int32))

    def update(
        updates: Any,
        state: SparsityState,
        params: Any = None,
        *,
        expectations: Any = None,
        **_: Any,
    ) -> tuple[Any, SparsityState]:
        if expectations is None or params is None:
            raise ValueError(
                "add_sparsity_penalty needs a learner that tells the activity: CD or PCD"
            )
        # the mean of the first updates, then a moving average
        rate = jnp.maximum(1.0 - decay, 1.0 / (state.num_updates + 1.0))
        activity = state.activity + rate * (expectations[site] - state.activity)
        push = strength * (activity - target)
        return fields_of(params).added(updates, {site: push}), SparsityState(
            activity, state.num_updates + 1
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _require(name: str, value: float) -> None:
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be a number that is not negative, got {value!r}")
