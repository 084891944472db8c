"""EM on data that fit into memory: all starts at once, rows in chunks."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._checks import require_count, require_key
from pgm_energy._interrupts import interrupts_wait
from pgm_energy._progress import progress
from pgm_energy._struct import Key
from pgm_energy.learning.em.result import EMResult, explain
from pgm_energy.learning.em.steps import Start, advance, beginning, fresh_starts, raised
from pgm_energy.learning.em.task import Task, check_mixture, prepare, rows_per_chunk
from pgm_energy.models.mixture import start_chunks
from pgm_energy.models.prior import MixturePrior

__all__ = ["EM"]

#: Steps between two looks at the keyboard and the progress bar; the loop itself is compiled.
_BLOCK = 20
#: Multiplications of an E-step from which it is worth losing digits for speed.
_FAST_WORK = 2**23
#: Error of a fast score, nats, from which the careful one takes over.
_FAST_ERROR = 1e-3


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
        Number of starts: the first is the given model, the others are fresh. All of them run at
        once; the best result is returned.
    floor
        Smallest probability, and smallest variance in any direction relative to that of the
        data columns; a start below it is raised to it. Each step is the exact maximum under this
        constraint. Float32 needs at least ``8 D eps`` for matrices, which then stands in.
    prior
        A :class:`MixturePrior`: the most probable parameters instead of the most likely ones.
    start
        How fresh starts are made: from clusters around centres of ``"k-means++"``, or around
        ``"random"`` rows.
    chunk_size
        Rows that are handled at once; chosen so that memory stays bounded unless given. Results
        do not depend on it, but for rounding.

    Raises
    ------
    ValueError
        On a count below 1, a negative tolerance, a floor outside (0, 0.1), or an unknown start.

    Notes
    -----
    What is maximised never falls, within ``4 eps sum |log p_i|`` of rounding; a fall beyond
    that is warned about. Rows are handled in float32 (float64 under ``jax.enable_x64``), sums
    and parameters always in float64. Starts that the variance floor holds up (a component that
    collapsed on a few rows, whose likelihood has no bound) come after all others, whatever their
    likelihood; a component that lost all its rows stays where it was, and the message names it.
    Fresh starts look at up to 10,000 rows.

    One step costs ``N K D^2`` with full covariances, ``N K D`` else. Large complete Gaussian data
    of up to 64 columns go through two products per chunk; if that loses digits that matter, the
    steps are redone a slower way. Missing values (``run(..., missing=True)``)
    are summed out exactly, at ``D^3`` per component and pattern of missing columns.

    References
    ----------
    A. Dempster, N. Laird and D. Rubin (1977), Maximum likelihood from incomplete data via the
    EM algorithm. D. Arthur and S. Vassilvitskii (2007), k-means++. Z. Ghahramani and M. Jordan
    (1994), Supervised learning from incomplete data via an EM approach (missing values).

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
    prior: MixturePrior | None = None
    start: Literal["k-means++", "random"] = "k-means++"
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        require_count("max_steps", self.max_steps)
        require_count("num_restarts", self.num_restarts)
        if self.chunk_size is not None:
            require_count("chunk_size", self.chunk_size)
        for name, low, high in (("tol", 0.0, np.inf), ("floor", 1e-30, 0.1)):
            value = getattr(self, name)
            number = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
            if not number or not low <= value < high:
                raise ValueError(f"{name} must be a number in [{low:g}, {high:g}), got {value!r}")
        if self.start not in ("k-means++", "random"):
            raise ValueError(f"start must be 'k-means++' or 'random', got {self.start!r}")
        if self.prior is not None and not isinstance(self.prior, MixturePrior):
            raise TypeError(f"prior must be a MixturePrior, got {type(self.prior).__name__}")

    def run(
        self,
        rng_key: Key,
        model: Any,
        data: Any,
        *,
        row_weights: Any = None,
        missing: bool = False,
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
        missing
            Whether NaN stands for a value that is not known (missing at random); the likelihood
            is then that of what was seen.
        progress_bar
            Whether to show progress.

        Raises
        ------
        TypeError
            If the model is no mixture or the key no key.
        ValueError
            On empty data, NaN (unless ``missing``), infinite or impossible values (with row and
            column), a wrong width, a column without any value, fewer rows than components, or row
            weights that are negative or all zero.

        Warns
        -----
        RuntimeWarning
            If the log-likelihood fell by more than rounding explains.
        """
        rng_key = require_key(rng_key)
        check_mixture(model)
        task = prepare(model, data, row_weights, missing)
        prior = model.resolve_prior(self.prior or MixturePrior(), task.frame)
        with jax.enable_x64(True):
            starts, interrupted = self._go(rng_key, task, prior, progress_bar)
            return self._result(task, starts, interrupted)

    def _models(self, rng_key: Key, task: Task) -> Any:
        """The given start and the fresh ones, stacked."""
        first = jax.tree.map(lambda leaf: np.asarray(leaf)[None], task.start)
        if self.num_restarts == 1:
            return first
        keys = jax.random.split(rng_key, self.num_restarts)
        chunks = start_chunks(keys[0], task.rows, task.weights, task.start, task.missing)
        fresh = fresh_starts(keys[1:], task.start, chunks, careful=self.start == "k-means++")
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), first, fresh)

    def _go(self, rng_key: Key, task: Task, prior: Any, progress_bar: bool) -> tuple[Start, bool]:
        """Run all starts, a compiled block of steps at a time; whether somebody interrupted."""
        model, number = task.start, self.num_restarts
        work = number * model.num_components * task.rows.size
        fast = not task.missing and model.can_be_fast() and work >= _FAST_WORK
        size = self.chunk_size or rows_per_chunk(model, number, task.kind, task.missing, fast)
        chunks = task.chunks(min(size, len(task.rows)))
        floor = np.asarray(model.least_floor(self.floor, task.kind))
        tol = np.asarray(float(self.tol))
        starts = beginning(raised(self._models(rng_key, task), floor), self.max_steps)
        looked, interrupted = 0, False
        with progress(self.max_steps, progress_bar, "steps") as show, interrupts_wait() as asked:
            while looked <= self.max_steps and not interrupted and not _all(starts.converged):
                # the first look tells whether products are good enough: lose no block by it
                ahead = _BLOCK if looked else 1
                until = np.asarray(min(looked + ahead, self.max_steps + 1), np.int32)
                new = advance(starts, chunks, prior, tol, floor, until, fast=fast)
                if fast and _lost_digits(new, task.kind):
                    fast = False
                    # what comes next is not to be compared with what had another rounding
                    starts = starts._replace(objective=np.full(number, -np.inf))
                    continue
                starts, looked = new, int(until)
                if not np.isfinite(starts.history[0, 0]):
                    raise ValueError(
                        "the log-likelihood of the start is not finite: every component is "
                        "infinitely far from some row; start from init(rng_key, num_components=, "
                        "data=)"
                    )
                best = float(np.nanmax(np.asarray(starts.objective))) + task.offset
                show(looked - 1, f"log-likelihood {best:.3f}")
                interrupted = asked()
        return starts, interrupted

    def _result(self, task: Task, starts: Start, interrupted: bool) -> EMResult:
        """The best start: finite ones first, then those that no floor had to hold up."""
        number, floor = self.num_restarts, task.start.least_floor(self.floor, task.kind)
        starts = jax.device_get(starts)
        models = [jax.tree.map(lambda leaf, i=i: leaf[i], starts.model) for i in range(number)]
        floored = [model.at_floor(floor, task.kind) for model in models]
        objective = starts.objective
        ranks = [
            (bool(np.isfinite(objective[i])), not floored[i].any(), float(objective[i]))
            for i in range(number)
        ]
        best = max(range(number), key=lambda i: ranks[i])
        if not ranks[best][0]:
            raise ValueError(
                "the log-likelihood is no longer finite, from every start: raise floor="
                f"{self.floor:g}, or work in float64 (jax.enable_x64)"
            )
        steps, total = int(starts.looked[best]) - 1, float(task.weights.sum(dtype=np.float64))
        near = objective[best] - 1e-3 * total
        message = explain(
            steps=steps,
            converged=bool(starts.converged[best]),
            interrupted=interrupted,
            max_steps=self.max_steps,
            tol=self.tol,
            same=sum(1 for rank in ranks if rank[:2] == ranks[best][:2] and rank[2] >= near),
            num_starts=number,
            floored=floored[best],
            masses=models[best].weights * total,
        )
        worst = float(np.nanmax(starts.worst_fall))
        if worst > 1.0:
            warning = (
                f"The log-likelihood fell by {worst:.3g} times what rounding explains; work in "
                "float64 (jax.enable_x64)."
            )
            warnings.warn(warning, RuntimeWarning, stacklevel=3)
            message += " " + warning
        return EMResult(
            model=task.restore(models[best]),
            log_likelihood=float(starts.log_likelihood[best]) + task.offset,
            converged=bool(starts.converged[best]),
            message=message,
            history=starts.history[best, : steps + 1] + task.offset,
            log_likelihoods=starts.log_likelihood + task.offset,
            entropy=float(starts.entropy[best]),
            num_parameters=models[best].num_parameters,
            num_rows=total,
        )


def _all(flags: Any) -> bool:
    return bool(np.asarray(flags).all())


def _lost_digits(starts: Start, kind: Any) -> bool:
    """Whether fast scores are too far off, or what is maximised fell."""
    error = float(jnp.finfo(kind).eps) * np.asarray(starts.magnitude)
    return not bool((error <= _FAST_ERROR).all() and (np.asarray(starts.worst_fall) <= 1.0).all())
