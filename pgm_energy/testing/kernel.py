"""The exam of a kernel: it leaves the exact law of a small model invariant."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from pgm_energy._checks import require_count, require_key
from pgm_energy.energy import EnergyModel
from pgm_energy.enumeration import StateSpace, require_concrete
from pgm_energy.exact_law import ExactResult, exact
from pgm_energy.testing.chains import Moved, move
from pgm_energy.testing.exam import SINGLE, ConformanceError, ConformanceReport, Exam
from pgm_energy.testing.states import (
    MAX_MATRIX_STATES,
    enumerate_states,
    exact_transition_matrix,
    log_prob_of,
)
from pgm_energy.testing.statistics import (
    check_against_law,
    check_chains,
    check_pairs,
    check_same,
    columns,
)

__all__ = ["check_kernel"]

Raw = dict[str, Any]


def check_kernel(
    kernel: Any,
    model: EnergyModel,
    rng_key: Any = None,
    *,
    num_draws: int = 20_000,
    num_steps: int = 1,
    alpha: float = 1e-6,
    must_move: bool = True,
) -> ConformanceReport:
    """Return a report that a kernel leaves the exact law of a model invariant.

    Parameters
    ----------
    kernel
        A pure kernel ``(rng_key, values, model) -> (values, info)`` or a NumPyro ``MCMCKernel``
        on the model or on its Gaussian twin.
    model
        A model small enough for :func:`pgm_energy.exact`; real sites must be normal given the
        discrete ones.
    rng_key
        A JAX random key; ``jax.random.key(0)`` if None.
    num_draws
        Number of chains, each started from the exact law and looked at once.
    num_steps
        Steps of every chain; parallel tempering takes at least two, one for each set of pairs.
    alpha
        Probability with which a right kernel fails, for each of the statistical checks.
    must_move
        Whether a kernel fails that changed no draw at all, where exact draws differ.

    Returns
    -------
    ConformanceReport
        What was found, printing readably.

    Raises
    ------
    ConformanceError
        If the exact law is not invariant, with the numbers, or if nothing ever moved.
    TypeError
        If the kernel is a class instead of an instance.
    ValueError
        If the model is too large, the draws too few for a test, or the kernel samples another
        model.

    Notes
    -----
    *Exactly*, where the kernel has ``transition_log_prob`` or ``jump_log_prob`` (see
    :func:`exact_transition_matrix`) and the model at most 512 states: rows of the transition
    matrix T sum to 1 without negative entries, and pi T = pi to 1e-5. A bias that is wrong by
    0.01 is seen. Which states reach each other is reported; a kernel of some of the sites cannot
    reach all.

    *By draws*, every kernel: chains start from the exact law, so the law after their steps is
    known without any burn-in. Pearson's chi-square (SciPy) compares the joint states with the
    law; with real sites, moved draws with fresh exact ones, real units cut at quantiles. Then the
    joint frequencies of every pair of variables are compared with those of fresh exact draws, and
    neighbouring chains are compared with each other: they must not share their noise.

    *Jointly with auxiliary variables*, in the manner of Geweke: a pure kernel that has
    ``augment(rng_key, values, model)``, which returns exact auxiliary variables by name, and
    ``move(rng_key, values, auxiliary, model)``, which returns new values given them (the bonds
    of Swendsen and Wang), the replicas of :class:`~pgm_energy.ParallelTempering`, and the real
    variables of the twin that ``relax`` makes. All of them start from their exact joint law.

    Invariance only: of how well a kernel moves, no more is asked than that it moves at all; the
    share of moved chains is reported.

    References
    ----------
    J. Geweke (2004), Getting it right: joint distribution tests of posterior simulators.

    Examples
    --------
    >>> import jax.numpy as jnp, pgm_energy as pgm
    >>> model = pgm.RBM(weights=jnp.ones((2, 2)))
    >>> kernel = pgm.gibbs_kernel(pgm.blocks(model))
    >>> print(check_kernel(kernel, model, num_draws=2000))  # doctest: +ELLIPSIS
    GibbsKernel on RBM conforms
    ...
    """
    require_concrete(model, "check_kernel")
    if isinstance(kernel, type):
        raise TypeError(f"kernel is the class {kernel.__name__}: pass an instance of it")
    require_count("num_draws", num_draws)
    require_count("num_steps", num_steps)
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha!r}")
    key = require_key(jax.random.key(0) if rng_key is None else rng_key)
    owner = getattr(kernel, "__name__", type(kernel).__name__)
    exam = Exam(f"{owner} on {type(model).__name__}")
    law = exact(model)
    discrete = all(site.is_discrete for site in model.sites.values())
    if log_prob_of(kernel) is not None and discrete:
        if law.num_states <= MAX_MATRIX_STATES:
            _check_matrix(exam, kernel, model, law.probabilities)
        else:
            exam.note("transition matrix", f"not computed for {law.num_states} states")
    draw_key, step_key = jax.random.split(key)
    draws = law.sample(draw_key, 2 * num_draws)
    start, fresh = ({k: x[i::2] for k, x in draws.items()} for i in (0, 1))
    moved = move(kernel, model, step_key, start, fresh, num_steps)
    _check_moves(exam, start, fresh, moved, must_move)
    _check_states(exam, law, moved.values, fresh, alpha)
    first, second = columns(moved.joint, moved.fresh)
    name = f"pairs, with {moved.auxiliary}" if moved.auxiliary else "pairs"
    check_pairs(exam, name, first, second, alpha)
    check_chains(exam, columns(moved.values)[0], alpha)
    return exam.report()


def _differ(first: Raw, second: Raw) -> np.ndarray:
    """Which draws differ in some unit."""
    count = len(next(iter(first.values())))
    parts = [np.asarray(first[k]) != np.asarray(x) for k, x in second.items()]
    return np.concatenate([part.reshape(count, -1) for part in parts], axis=1).any(axis=1)


def _check_moves(exam: Exam, start: Raw, fresh: Raw, moved: Moved, must_move: bool) -> None:
    changed = _differ(start, moved.values)
    count = len(changed)
    steps = "one step" if moved.num_steps == 1 else f"{moved.num_steps} steps"
    # of a law that is all but one state, a right kernel need not move
    if must_move and not changed.any() and _differ(start, fresh).any():
        exam.fail(
            "moved",
            f"none of {count} draws changed in {steps}: the kernel leaves every law invariant by "
            "standing still; where it moves rarely, give more num_steps or num_draws, and where "
            "it is to stand still, must_move=False",
        )
    exam.note("moved", f"{changed.mean():.1%} of {count} draws changed in {steps}")


def _check_matrix(exam: Exam, kernel: Any, model: EnergyModel, law: np.ndarray) -> None:
    from scipy.sparse import csgraph

    matrix = exact_transition_matrix(kernel, model)
    rows = matrix.sum(axis=1)
    exam.close("rows of T sum to 1", rows, np.ones(len(rows)), 1.0, SINGLE, "a sum")
    exam.require(
        "T is not negative",
        matrix.min() >= -SINGLE,
        f"jumps from a state have total probability {1.0 - matrix.min():.9g}",
    )
    after = law @ matrix
    worst = int(np.argmax(np.abs(after - law)))
    if np.abs(after - law).max() > SINGLE:
        states = {name: x[worst].tolist() for name, x in enumerate_states(model).items()}
        exam.fail(
            "pi T = pi",
            f"state {states} has probability {law[worst]:.9g} and {after[worst]:.9g} after one "
            f"step (total variation {0.5 * np.abs(after - law).sum():.3g}, allowed {SINGLE:.0e} "
            "per state)",
        )
    exam.note("pi T = pi", f"worst difference {np.abs(after - law).max():.1e}")
    possible = matrix[np.ix_(law > 0.0, law > 0.0)] > 0.0
    parts, _ = csgraph.connected_components(possible, directed=True, connection="strong")
    every = f"every one of {len(possible)} states reaches every other"
    exam.note("reach", every if parts == 1 else f"{len(possible)} states in {parts} closed parts")


def _check_states(exam: Exam, law: ExactResult, moved: Raw, fresh: Raw, alpha: float) -> None:
    """The joint states after the steps, against the law or against fresh draws."""
    numbers = _state_numbers(law.space, moved)
    sites = law.model.sites
    if all(site.is_discrete for site in sites.values()):
        counts = np.bincount(numbers, minlength=law.num_states)

        def describe(number: int) -> str:
            values = {name: law.states[name][number].tolist() for name in sites}
            return f"state {values}"

        check_against_law(exam, law.probabilities, counts, alpha, describe)
        return
    count = len(numbers)
    names = [name for name, site in sites.items() if not site.is_discrete]
    after, exact_draws = (
        np.concatenate([np.asarray(x[name]).reshape(count, -1) for name in names], axis=1)
        for x in (moved, fresh)
    )
    cells = np.concatenate([numbers, _state_numbers(law.space, fresh)])
    check_same(exam, cells, after, exact_draws, alpha)


def _state_numbers(space: StateSpace, values: Raw) -> np.ndarray:
    """Number of the joint state of every draw, in the order of the space."""
    count = len(next(iter(values.values())))
    numbers = np.zeros(count, dtype=np.int64)
    for (name, site), free in zip(space.sites, space.free, strict=True):
        flat = np.asarray(values[name]).reshape(count, -1)
        units = range(site.size) if free is None else free.array
        for unit in units:
            inside = flat[:, unit, None] == site.states
            if not inside.any(axis=1).all():
                bad = flat[~inside.any(axis=1), unit][0]
                raise ConformanceError(
                    f"the kernel moved unit {unit} of site {name!r} to {bad}, outside of the "
                    f"support ({site.support_text})"
                )
            numbers = numbers * len(site.states) + np.argmax(inside, axis=1)
    return numbers
