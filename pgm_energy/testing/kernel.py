"""The exam of a kernel: it leaves the exact law of a small model invariant."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._checks import require_count, require_key
from pgm_energy.energy import EnergyModel
from pgm_energy.enumeration import StateSpace, double, require_concrete
from pgm_energy.exact_law import exact
from pgm_energy.testing.exam import SINGLE, ConformanceError, ConformanceReport, Exam, precision

__all__ = ["check_kernel", "enumerate_states", "exact_transition_matrix"]

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
    log_prob = _log_prob_of(kernel)
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


def _log_prob_of(kernel: Any) -> Any:
    return getattr(kernel, "transition_log_prob", getattr(kernel, "jump_log_prob", None))


# ---- kernels ------------------------------------------------------------------------------------


def check_kernel(
    kernel: Any,
    model: EnergyModel,
    rng_key: Any = None,
    *,
    num_draws: int = 20_000,
    alpha: float = 1e-6,
) -> ConformanceReport:
    """Return a report that a kernel leaves the exact law of a model invariant.

    Parameters
    ----------
    kernel
        A pure kernel ``(rng_key, values, model) -> (values, info)`` or a NumPyro ``MCMCKernel``.
    model
        A model small enough for :func:`pgm_energy.exact`; real sites must be normal given the
        discrete ones.
    rng_key
        A JAX random key; ``jax.random.key(0)`` if None.
    num_draws
        Number of chains, each started from the exact law and moved once.
    alpha
        Probability with which a right kernel is rejected.

    Returns
    -------
    ConformanceReport
        What was found, printing readably.

    Raises
    ------
    ConformanceError
        If the exact law is not invariant, with the numbers.
    ValueError
        If the model is too large, or the draws too few for a test.

    Notes
    -----
    A kernel with ``transition_log_prob`` or ``jump_log_prob`` (see
    :func:`exact_transition_matrix`) is examined exactly on models of at most 512 states: rows
    sum to 1 without negative entries and pi T = pi to 1e-5 (a bias that is wrong by 0.01 is seen).
    Every kernel also moves chains that start from the exact law, one step each, and Pearson's
    chi-square (SciPy) compares the joint states with the law, cells of less than 5 expected draws
    pooled. With real sites the moved draws are compared with fresh exact ones, real units cut at
    quantiles.
    Invariance only: a kernel that never moves passes, its share of moved draws is reported.

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
    require_count("num_draws", num_draws)
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha!r}")
    key = require_key(jax.random.key(0) if rng_key is None else rng_key)
    owner = getattr(kernel, "__name__", type(kernel).__name__)
    exam = Exam(f"{owner} on {type(model).__name__}")
    law = exact(model)
    discrete = all(site.is_discrete for site in model.sites.values())
    if _log_prob_of(kernel) is not None and discrete:
        if law.num_states <= MAX_MATRIX_STATES:
            _check_matrix(exam, kernel, model, law.probabilities)
        else:
            exam.note("transition matrix", f"not computed for {law.num_states} states")
    start_key, step_key, fresh_key = jax.random.split(key, 3)
    start = law.sample(start_key, num_draws)
    moved = _move(kernel, model, step_key, start, num_draws)
    changed = np.zeros(num_draws, dtype=bool)
    for name in model.sites:
        before, after = (np.asarray(v[name]).reshape(num_draws, -1) for v in (start, moved))
        changed |= (before != after).any(axis=1)
    exam.note("moved", f"{changed.mean():.1%} of {num_draws} draws changed")
    numbers = _state_numbers(law.space, moved)
    if discrete:
        counts = np.bincount(numbers, minlength=law.num_states)
        _pearson(exam, law.probabilities, counts, alpha)
    else:
        fresh = law.sample(fresh_key, num_draws)
        _two_samples(exam, model, law.space, moved, fresh, alpha)
    return exam.report()


def _check_matrix(exam: Exam, kernel: Any, model: EnergyModel, law: np.ndarray) -> None:
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


def _move(kernel: Any, model: EnergyModel, key: jax.Array, start: Raw, count: int) -> Raw:
    """One step of a kernel for every draw."""
    if hasattr(kernel, "init") and hasattr(kernel, "sample"):

        def step(key: jax.Array, values: Raw) -> Raw:
            first, _ = jax.random.split(key)
            state = kernel.init(
                first, num_warmup=0, init_params=values, model_args=(), model_kwargs={}
            )
            state = kernel.sample(state, (), {})
            moved = getattr(state, kernel.sample_field)
            return {name: moved[name] for name in model.sites}

    else:

        def step(key: jax.Array, values: Raw) -> Raw:
            moved = kernel(key, values, model)[0]
            return {name: moved[name] for name in model.sites}

    moved = jax.jit(jax.vmap(step))(jax.random.split(key, count), start)
    return {name: np.asarray(value) for name, value in moved.items()}


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


def _pearson(exam: Exam, law: np.ndarray, counts: np.ndarray, alpha: float) -> None:
    from scipy import stats

    total = int(counts.sum())
    impossible = counts[law == 0.0].sum()
    if impossible:
        exam.fail("chi-square", f"{impossible} draws in states of probability zero")
    order = np.argsort(law)
    expected, observed = law[order] * total, counts[order]
    rare = int(np.searchsorted(expected, 5.0))
    while rare and expected[:rare].sum() < 5.0 and rare < len(expected):
        rare += 1
    if rare:
        expected = np.append(expected[rare:], expected[:rare].sum())
        observed = np.append(observed[rare:], observed[:rare].sum())
    if len(expected) < 2:
        raise ValueError(
            f"{total} draws are too few for a test over {len(law)} states: raise num_draws"
        )
    result = stats.chisquare(observed, expected * (total / expected.sum()))
    _judge(exam, float(result.statistic), float(result.pvalue), len(expected), alpha, total)


def _two_samples(
    exam: Exam, model: EnergyModel, space: StateSpace, moved: Raw, fresh: Raw, alpha: float
) -> None:
    """Chi-square of moved against fresh exact draws, over states and quantiles of real units."""
    from scipy import stats

    both = {k: np.concatenate([np.asarray(moved[k]), np.asarray(fresh[k])]) for k in model.sites}
    count = len(next(iter(both.values())))
    cells = _state_numbers(space, both)
    real = [both[k].reshape(count, -1) for k, s in model.sites.items() if not s.is_discrete]
    columns = np.concatenate(real, axis=1)
    if not np.isfinite(columns).all():
        exam.fail("chi-square", "the kernel moved a real unit to NaN or infinity")
    width = 4 if columns.shape[1] <= 4 else 2
    # each cut adds a factor to the number of cells: the first few units, and the total
    for column in (*columns.T[:5], columns.sum(axis=1)):
        edges = np.quantile(column, np.arange(1, width) / width)
        cells = cells * width + np.searchsorted(edges, column)
    _, cells = np.unique(cells, return_inverse=True)
    table = np.stack([np.bincount(part, minlength=cells.max() + 1) for part in np.split(cells, 2)])
    table = table[:, np.argsort(table.sum(axis=0))]
    rare = int(np.searchsorted(table.sum(axis=0), 10))
    if rare:
        table = np.concatenate(
            [table[:, :rare].sum(axis=1, keepdims=True), table[:, rare:]], axis=1
        )
    if table.shape[1] < 2:
        raise ValueError(f"{count // 2} draws are too few for a test: raise num_draws")
    result = stats.chi2_contingency(table, correction=False)
    _judge(exam, float(result.statistic), float(result.pvalue), table.shape[1], alpha, count // 2)


def _judge(
    exam: Exam, statistic: float, pvalue: float, cells: int, alpha: float, total: int
) -> None:
    text = f"p = {pvalue:.3g}, statistic {statistic:.1f}, {cells} cells, {total} draws"
    if pvalue < alpha:
        exam.fail("chi-square", f"{text}: below alpha = {alpha:.0e}")
    exam.note("chi-square", text)
