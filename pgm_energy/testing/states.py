"""The states of a small model listed, and the transition matrix of a kernel over them."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy.energy import EnergyModel
from pgm_energy.enumeration import StateSpace, double, require_concrete
from pgm_energy.testing.exam import precision

__all__ = ["MAX_MATRIX_STATES", "enumerate_states", "exact_transition_matrix", "log_prob_of"]

#: Most joint states of which the transition matrix is computed.
MAX_MATRIX_STATES = 512

Raw = dict[str, Any]


def enumerate_states(model: EnergyModel) -> dict[str, np.ndarray]:
    """Return every joint state of a discrete model, ``(num_states, *shape)`` by site.

    Raises
    ------
    ValueError
        If a site is real, or there are more than 2^20 states.

    Notes
    -----
    In the order of ``itertools.product``, as in :func:`pgm_energy.exact`; clamped units stay.

    Examples
    --------
    >>> import jax.numpy as jnp, pgm_energy as pgm
    >>> enumerate_states(pgm.BoltzmannMachine(weights=jnp.zeros((2, 2))))["v"].tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    require_concrete(model, "enumerate_states")
    for name, site in model.sites.items():
        if not site.is_discrete:
            raise ValueError(f"site {name!r} is real: it has no list of states")
    space = StateSpace.of(model, list(model.sites))
    if space.size > 2**20:
        raise ValueError(f"2^{math.log2(space.size):.1f} states are more than 2^20")
    values = jax.vmap(lambda n: model.clamp(space.values(n)))(jnp.arange(space.size))
    return {name: np.asarray(values[name]) for name in model.sites}


def exact_transition_matrix(kernel: Any, model: EnergyModel) -> np.ndarray:
    """Return the transition matrix of a kernel that knows its probabilities.

    Parameters
    ----------
    kernel
        With ``transition_log_prob(values, new_values, model)`` (nats), such as what
        ``gibbs_kernel`` returns, or with ``jump_log_prob`` of the same arguments, of two
        different configurations: what all jumps leave is the probability of staying.
    model
        A discrete model of at most 512 states.

    Returns
    -------
    numpy.ndarray
        ``(num_states, num_states)``, rows are the present state; in the order of
        :func:`enumerate_states`.

    Raises
    ------
    TypeError
        If the kernel has neither.
    ValueError
        If there are too many states.

    Notes
    -----
    Exact, in float64. Cost: one sweep per pair of states.

    Examples
    --------
    >>> import jax.numpy as jnp, pgm_energy as pgm
    >>> model = pgm.BoltzmannMachine(weights=jnp.zeros((2, 2)))
    >>> exact_transition_matrix(pgm.gibbs_kernel(pgm.blocks(model)), model).round(2)[0].tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    log_prob = log_prob_of(kernel)
    if log_prob is None:
        raise TypeError(
            f"{type(kernel).__name__} has no transition_log_prob(values, new_values, model) and no "
            "jump_log_prob: its transition matrix is not known; check_kernel tests it by its draws"
        )
    states = enumerate_states(model)
    count = len(next(iter(states.values())))
    if count > MAX_MATRIX_STATES:
        raise ValueError(
            f"the transition matrix is for at most {MAX_MATRIX_STATES} states, got {count}"
        )

    @jax.jit
    def matrix(model: EnergyModel, states: Raw) -> jax.Array:
        def row(values: Raw) -> jax.Array:
            return jax.vmap(lambda new: log_prob(values, new, model))(states)

        return jax.lax.map(row, states)

    with precision(True):
        found = np.exp(np.asarray(matrix(double(model), states)))
    if not hasattr(kernel, "transition_log_prob"):
        np.fill_diagonal(found, 0.0)
        np.fill_diagonal(found, 1.0 - found.sum(axis=1))
    return found


def log_prob_of(kernel: Any) -> Any:
    """Return the kernel's own law of a step, or None."""
    return getattr(kernel, "transition_log_prob", getattr(kernel, "jump_log_prob", None))
