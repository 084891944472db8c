"""Expectation maximisation for mixtures: restarts, floors, a likelihood that never falls."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._checks import require_count, require_key
from pgm_energy._progress import progress
from pgm_energy._struct import Key
from pgm_energy.learning.loop import check_rows, in_words
from pgm_energy.models.mixture import Mixture

__all__ = ["EM", "EMResult"]

#: Steps between two looks at the keyboard and the progress bar; the loop itself is compiled.
_CHUNK = 20


class EMResult(NamedTuple):
    """What EM found.

    Attributes
    ----------
    model
        The mixture of the best start.
    log_likelihood
        Its total log-likelihood of the data (weights of rows included), nats.
    converged
        Whether the best start changed by less than ``tol`` per row at the end.
    message
        How it went, in words.
    history
        Total log-likelihood of the best start before the first step and after each, nats.
    log_likelihoods
        Final total log-likelihood of every start, nats.
    """

    model: Any
    log_likelihood: float
    converged: bool
    message: str
    history: np.ndarray
    log_likelihoods: np.ndarray


class _State(NamedTuple):
    """One start under way; ``responsibilities`` belong to ``model``."""

    model: Any
    responsibilities: jax.Array
    log_likelihood: jax.Array
    history: jax.Array
    #: largest fall, as a multiple of what rounding may do
    worst_fall: jax.Array
    step: jax.Array
    converged: jax.Array


class _Task(NamedTuple):
    """Checked data and the first start, in the units in which they are best handled."""

    rows: jax.Array
    row_weights: jax.Array
    start: Any
    #: shift and scale of the columns, or None
    frame: tuple[np.ndarray, np.ndarray] | None
    #: what the scale adds to the log-likelihood, nats
    offset: float

    def restore(self, model: Any) -> Any:
        """Return a mixture in the units of the data."""
        if self.frame is None:
            return model
        shift, scale = self.frame
        return model.affine(-shift / scale, 1.0 / scale)


def _prepare(model: Mixture, data: Any, row_weights: Any) -> _Task:
    """Check data and weights of rows; standardise real data, in float64."""
    checked = check_rows(model, data, row_weights, None)
    (name,) = model.data_sites
    table = np.asarray(data[name] if isinstance(data, Mapping) else data)
    weights = np.ones(len(table)) if row_weights is None else np.asarray(row_weights, float)
    used = int((weights > 0).sum())
    if used < model.num_components:
        raise ValueError(
            f"{model.num_components} components need at least as many rows of positive weight, "
            f"got {used}"
        )
    frame, offset = model.standardizer(table, weights), 0.0
    kind = jnp.result_type(float)
    if frame is None:
        rows = model.sites[name].encode(checked.values[name])
    else:
        shift, scale = frame
        rows = jnp.asarray((table - shift) / scale, dtype=kind)
        model = model.affine(shift, scale)
        offset = -float(weights.sum() * np.log(scale).sum())
    start = jax.tree.map(lambda leaf: jnp.asarray(leaf, kind), model)
    return _Task(rows, jnp.asarray(weights, kind), start, frame, offset)


class _Run(NamedTuple):
    """A finished start."""

    model: Any
    history: np.ndarray
    converged: bool
    worst_fall: float
    floored: np.ndarray

    @property
    def rank(self) -> tuple[bool, bool, float]:
        """Starts that no floor had to hold up come first, then the likelihood."""
        value = float(self.history[-1])
        return bool(np.isfinite(value)), not self.floored.any(), value


def _expect(
    model: Mixture, rows: jax.Array, row_weights: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The E-step: weighted responsibilities, log-likelihood, and the sum of |log p_i|."""
    joint = model.log_joint(rows)
    log_probs = jax.nn.logsumexp(joint, axis=1)
    share = row_weights[:, None] * jnp.exp(joint - log_probs[:, None])
    # a row of weight zero may be infinitely unlikely: it must not turn the sum into NaN
    counted = jnp.where(row_weights > 0, row_weights * log_probs, 0.0)
    return share, jnp.sum(counted), jnp.sum(jnp.abs(counted))


@jax.jit
def _restart(rng_key: Key, like: Mixture, rows: jax.Array, row_weights: jax.Array) -> Any:
    return like.restart(rng_key, rows, row_weights)


@functools.partial(jax.jit, static_argnames=("max_steps",))
def _begin(model: Mixture, rows: jax.Array, row_weights: jax.Array, *, max_steps: int) -> _State:
    share, log_likelihood, _ = _expect(model, rows, row_weights)
    history = jnp.full(max_steps + 1, jnp.nan, log_likelihood.dtype).at[0].set(log_likelihood)
    zero = jnp.zeros((), log_likelihood.dtype)
    nothing = jnp.zeros((), jnp.int32)
    return _State(model, share, log_likelihood, history, zero, nothing, jnp.zeros((), bool))


@jax.jit
def _advance(
    state: _State,
    rows: jax.Array,
    row_weights: jax.Array,
    tol: jax.Array,
    floor: jax.Array,
    until: jax.Array,
) -> _State:
    """Steps until convergence or step ``until``."""
    eps = jnp.finfo(rows.dtype).eps

    def going(state: _State) -> jax.Array:
        return (state.step < until) & ~state.converged

    def step(state: _State) -> _State:
        model = state.model.maximize(rows, state.responsibilities, floor)
        share, log_likelihood, magnitude = _expect(model, rows, row_weights)
        change = log_likelihood - state.log_likelihood
        fall = -change / jnp.maximum(4.0 * eps * magnitude, jnp.finfo(rows.dtype).tiny)
        number = state.step + 1
        return _State(
            model,
            share,
            log_likelihood,
            state.history.at[number].set(log_likelihood),
            jnp.maximum(state.worst_fall, fall),
            number,
            jnp.abs(change) < tol * jnp.sum(row_weights),
        )

    return jax.lax.while_loop(going, step, state)


@dataclasses.dataclass(frozen=True)
class EM:
    """Expectation maximisation for :class:`GaussianMixture` and the discrete mixtures.

    Parameters
    ----------
    max_steps
        Largest number of steps per start.
    tol
        A start has converged when a step changes the log-likelihood per row by less than this
        (nats, strictly: ``tol=0.`` runs all steps).
    num_restarts
        Number of starts: the first is the given model, the others are fresh (k-means++). The
        best result is returned.
    floor
        Smallest probability, and smallest variance in any direction relative to that of the
        data columns; a start below it is raised to it. Each step is the exact maximum under this
        constraint. Float32 needs at least ``8 D eps`` for matrices, which then stands in.

    Raises
    ------
    ValueError
        On a count below 1, a negative tolerance, or a floor outside (0, 0.1).

    Notes
    -----
    The log-likelihood never falls, within ``4 eps sum |log p_i|`` of rounding; a fall beyond
    that is warned about. Starts that the variance floor holds up (a component that collapsed on
    a few rows, whose likelihood has no bound) come after all others, whatever their likelihood.
    Real data are standardised inside, so that float32 is enough. One step costs ``N K D^2`` with
    full covariances, ``N K D`` else; memory is ``N K``.

    References
    ----------
    A. Dempster, N. Laird and D. Rubin (1977), Maximum likelihood from incomplete data via the
    EM algorithm. D. Arthur and S. Vassilvitskii (2007), k-means++.

    Examples
    --------
    >>> import jax, numpy as np, pgm_energy as pgm
    >>> rows = np.random.default_rng(0).normal(size=(100, 1)) + [[-3.0], [3.0]] * 50
    >>> key = jax.random.key(0)
    >>> start = pgm.GaussianMixture.init(key, num_components=2, data=rows)
    >>> result = pgm.EM().run(key, start, rows, progress_bar=False)
    >>> result.converged
    True
    """

    max_steps: int = 200
    tol: float = 1e-6
    num_restarts: int = 1
    floor: float = 1e-6

    def __post_init__(self) -> None:
        require_count("max_steps", self.max_steps)
        require_count("num_restarts", self.num_restarts)
        for name, low, high in (("tol", 0.0, np.inf), ("floor", 1e-30, 0.1)):
            value = getattr(self, name)
            number = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
            if not number or not low <= value < high:
                raise ValueError(f"{name} must be a number in [{low:g}, {high:g}), got {value!r}")

    def run(
        self,
        rng_key: Key,
        model: Any,
        data: Any,
        *,
        row_weights: Any = None,
        progress_bar: bool = True,
    ) -> EMResult:
        """Return the mixture of largest likelihood that was found.

        Parameters
        ----------
        rng_key
            A JAX random key; used by restarts only.
        model
            A mixture: the first start, and the kind of all others.
        data
            Rows ``(N, D)``, or a dict with the data site.
        row_weights
            ``(N,)``, not negative; integer weights are the same as repeated rows.
        progress_bar
            Whether to show progress.

        Raises
        ------
        TypeError
            If the model is no mixture or the key no key.
        ValueError
            On empty data, NaN, infinite or impossible values (with row and column), a wrong
            width, fewer rows than components, or row weights that are negative or all zero.

        Warns
        -----
        RuntimeWarning
            If the log-likelihood fell by more than rounding explains.
        """
        rng_key = require_key(rng_key)
        if not isinstance(model, Mixture):
            raise TypeError(
                f"EM fits mixtures, got {type(model).__name__}; learn other models with PCD"
            )
        task = _prepare(model, data, row_weights)
        runs = self._starts(rng_key, task, progress_bar)
        best = max(runs, key=lambda run: run.rank)
        if not best.rank[0]:
            raise ValueError(
                "the log-likelihood is no longer finite, from every start: raise floor="
                f"{self.floor:g}, or work in float64 (jax.enable_x64)"
            )
        return EMResult(
            model=task.restore(best.model),
            log_likelihood=float(best.history[-1]),
            converged=best.converged,
            message=self._explain(runs, best, float(jnp.sum(task.row_weights))),
            history=best.history,
            log_likelihoods=np.array([run.history[-1] for run in runs]),
        )

    def _starts(self, rng_key: Key, task: _Task, progress_bar: bool) -> list[_Run]:
        runs = []
        with progress(self.num_restarts * self.max_steps, progress_bar, "steps") as show:
            for number in range(self.num_restarts):
                start = task.start
                if number:
                    key = jax.random.fold_in(rng_key, number)
                    start = _restart(key, start, task.rows, task.row_weights)
                done = number * self.max_steps

                def report(step: int, value: float, done: int = done) -> None:
                    show(done + step, in_words({"log_likelihood": value + task.offset}))

                runs.append(self._one(start, task, report))
        return runs

    def _one(self, start: Mixture, task: _Task, report: Callable[[int, float], None]) -> _Run:
        """Run one start, a compiled chunk of steps at a time."""
        rows, row_weights = task.rows, task.row_weights
        start = start.with_floor(self.floor)
        state = _begin(start, rows, row_weights, max_steps=self.max_steps)
        if not np.isfinite(float(state.log_likelihood)):
            raise ValueError(
                "the log-likelihood of the start is not finite: every component is infinitely far "
                "from some row; start from init(rng_key, num_components=, data=)"
            )
        tol, floor = (jnp.asarray(x, rows.dtype) for x in (self.tol, self.floor))
        for until in range(_CHUNK, self.max_steps + _CHUNK, _CHUNK):
            last = jnp.asarray(min(until, self.max_steps), jnp.int32)
            state = _advance(state, rows, row_weights, tol, floor, last)
            report(int(last), float(state.log_likelihood))
            if bool(state.converged):
                break
        steps = int(state.step)
        return _Run(
            state.model,
            np.asarray(state.history[: steps + 1], dtype=np.float64) + task.offset,
            bool(state.converged),
            float(state.worst_fall),
            state.model.at_floor(self.floor),
        )

    def _explain(self, runs: list[_Run], best: _Run, total: float) -> str:
        steps = len(best.history) - 1
        if best.converged:
            text = (
                f"Converged after {steps} step{'s' if steps != 1 else ''}: the last changed the "
                f"log-likelihood by less than {self.tol:g} nats per row."
            )
        else:
            text = (
                f"Not converged: stopped at max_steps={self.max_steps}; raise it, or tol="
                f"{self.tol:g}."
            )
        if len(runs) > 1:
            near = best.history[-1] - 1e-3 * total
            same = sum(run.rank[:2] == best.rank[:2] and run.history[-1] >= near for run in runs)
            text += f" Best of {len(runs)} starts, {same} of which came within 0.001 nats per row."
        if best.floored.any():
            which = ", ".join(str(int(k)) for k in np.flatnonzero(best.floored))
            text += (
                f" The variance floor holds up component(s) {which}: a column is constant there, "
                "or the component collapsed on a few rows."
            )
        rows = np.asarray(best.model.weights, dtype=float) * total
        empty = np.flatnonzero(rows < 0.5)
        if len(empty):
            which = ", ".join(str(int(k)) for k in empty)
            text += f" Component(s) {which} hold less than half a row: use fewer components."
        worst = max(run.worst_fall for run in runs)
        if worst > 1.0:
            warning = (
                f"The log-likelihood fell by {worst:.3g} times what rounding explains; work in "
                "float64 (jax.enable_x64)."
            )
            warnings.warn(warning, RuntimeWarning, stacklevel=3)
            text += " " + warning
        return text
