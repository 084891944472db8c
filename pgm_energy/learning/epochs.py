"""The host loop over epochs: compiled chunks, figures, checkpoints, Ctrl-C, steps gone wrong."""

from __future__ import annotations

import dataclasses
import functools
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pgm_energy._interrupts import interrupts_wait
from pgm_energy._progress import progress
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.learning.checkpoint import Snapshot, Store
from pgm_energy.learning.loop import Learner, LearningResult, Rows, draw_bits, take
from pgm_energy.learning.metrics import explain, in_words, learning_rate

__all__ = ["Learned", "Run", "run_batches", "run_epochs"]

#: Seconds that a chunk of batches should take: how long Ctrl-C waits, and the bar stands still.
_SHORT, _LONG = 0.2, 0.8
#: How often the learning rate is halved for one epoch before the run gives up.
_MOST_HALVINGS = 10

Callback = Callable[[int, Any, Mapping[str, float]], Any]


class Learned(NamedTuple):
    """What the next batch continues; a checkpoint keeps all of it.

    Attributes
    ----------
    state
        The learner's state.
    average
        The model with averaged parameters; before averaging begins, the last ones.
    num_averaged
        Updates in the average.
    rate_factor
        What the optimiser's steps are multiplied with: 1 until a bad step halves it.
    """

    state: Any
    average: EnergyModel
    num_averaged: jax.Array
    rate_factor: jax.Array


class Chunk(NamedTuple):
    """What some batches of an epoch came to.

    Attributes
    ----------
    learned
        After the last of them.
    reached
        The number of the batch that comes next.
    is_finite
        Whether all parameters are; the first batch after which they are not is the last.
    infos
        Figures of every batch of the epoch by name, ``(batches,)``; zero where it was not run.
    """

    learned: Learned
    reached: jax.Array
    is_finite: jax.Array
    infos: dict[str, jax.Array]


@functools.partial(
    jax.jit, static_argnames=("learner", "batch_size", "resample", "has_shorter_steps")
)
def run_batches(
    rng_key: Key,
    learned: Learned,
    rows: Rows,
    first: Any,
    last: Any,
    first_averaged: Any,
    *,
    learner: Learner,
    batch_size: int,
    resample: bool,
    has_shorter_steps: bool,
) -> Chunk:
    """Run batches ``first`` to ``last`` (excluded) of an epoch, until one goes wrong.

    Parameters
    ----------
    rng_key
        The key of the epoch; the order of the rows derives from it.
    first_averaged
        The batch from which on parameters are averaged.
    has_shorter_steps
        Whether the optimiser's steps are multiplied with ``learned.rate_factor``.

    Notes
    -----
    However an epoch is cut into chunks, its numbers are the same to the last bit.
    """
    num_rows = rows.weights.shape[0]
    num_batches = -(-num_rows // batch_size)
    order_key, bits_key, step_key = jax.random.split(rng_key, 3)
    order = jax.random.permutation(order_key, num_rows)
    padding = jnp.full(num_batches * batch_size - num_rows, num_rows)
    batches = jnp.concatenate([order, padding]).reshape(num_batches, batch_size)
    keys = jax.random.split(step_key, num_batches)
    if has_shorter_steps:
        learner = with_shorter_steps(learner, learned.rate_factor)

    @jax.jit
    def update(state: Any, number: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        batch = take(rows, batches[number])
        if resample:
            batch = draw_bits(jax.random.fold_in(bits_key, number), state.model, batch)
        return learner.update(keys[number], state, batch, batches[number])

    def step(chunk: Chunk) -> Chunk:
        before, number = chunk.learned, chunk.reached
        state, info = update(before.state, number)
        # parameters are averaged from a given update on (Polyak and Juditsky 1992)
        begun = jnp.where(number == first_averaged, 1, before.num_averaged + 1)
        count = jnp.where(number >= first_averaged, begun, 0)
        rate = 1.0 / jnp.maximum(count, 1)  # before that, the average follows
        average = jax.tree.map(lambda a, b: a + rate * (b - a), before.average, state.model)
        # NaN and infinity come through a maximum, which costs a tenth of isfinite on every entry
        largest = [jnp.max(jnp.abs(x), initial=0.0) for x in jax.tree.leaves(state.model)]
        infos = jax.tree.map(lambda all, one: all.at[number].set(one), chunk.infos, info)
        return Chunk(
            before._replace(state=state, average=average, num_averaged=count),
            number + 1,
            jnp.all(jnp.isfinite(jnp.stack(largest))),
            infos,
        )

    first = jnp.asarray(first, jnp.int32)
    info = jax.eval_shape(update, learned.state, first)[1]
    infos = jax.tree.map(lambda x: jnp.zeros((num_batches, *x.shape), x.dtype), info)
    return jax.lax.while_loop(
        lambda chunk: chunk.is_finite & (chunk.reached < last),
        step,
        Chunk(learned, first, jnp.asarray(True), infos),
    )


def with_shorter_steps(learner: Learner, factor: jax.Array) -> Learner:
    """Return a learner whose optimiser's updates are multiplied with a factor."""
    optimizer: Any = optax.with_extra_args_support(learner.optimizer)  # type: ignore[attr-defined]

    def update(gradient: Any, state: Any, params: Any = None, **more: Any) -> Any:
        updates, state = optimizer.update(gradient, state, params, **more)
        return jax.tree.map(lambda step: factor * step, updates), state

    shorter = optax.GradientTransformationExtraArgs(optimizer.init, update)
    return dataclasses.replace(learner, optimizer=shorter)  # type: ignore[type-var]


class Run:
    """One run of a learner: what it has learned, and how it goes on.

    Parameters
    ----------
    learner
        The pair of pure functions.
    model
        Where to start.
    measure
        Figures of an epoch from a key and the state, nats where they are energies.
    callbacks
        Called with ``(epoch, state, figures)`` after every epoch; one that returns True ends it.
    on_invalid
        "stop" or "halve".
    """

    def __init__(
        self,
        learner: Learner,
        rng_key: jax.Array,
        model: EnergyModel,
        rows: Rows,
        *,
        num_epochs: int,
        batch_size: int,
        resample: bool,
        measure: Callable[[jax.Array, Any], dict[str, float]],
        callbacks: Sequence[Callback],
        on_invalid: str,
    ) -> None:
        init_key, self.rng_key = jax.random.split(rng_key)
        state = learner.init(init_key, model, rows)
        nothing, one = jnp.zeros((), jnp.int32), jnp.ones((), jnp.float32)
        self.learner, self.rows, self.resample = learner, rows, resample
        self._now = learner  # with the counts of the present epoch
        self.num_epochs, self.batch_size = num_epochs, batch_size
        self.measure, self.callbacks = measure, callbacks
        self.halves = on_invalid == "halve"
        self.learned = Learned(state, state.model, nothing, one)
        self.partial: Learned | None = None  # of an epoch that ended in the middle
        self.history: dict[str, list[float]] = {}
        self.epoch, self.ending, self.words = 0, "", "compiling"
        self.num_rows = int(rows.weights.shape[0])
        self.num_batches = -(-self.num_rows // batch_size)
        self._size, self._halvings = 1, 0
        for callback in callbacks:
            if hasattr(callback, "begin"):
                callback.begin(model)

    # ---- between epochs --------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Return all that the next epoch depends on."""
        states = {name: callback.save() for name, callback in self._stateful().items()}
        return Snapshot(self.epoch, self.rng_key, self.learned, states, self.metrics())

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot."""
        self.epoch, self.rng_key, self.learned = snapshot[:3]
        self.history = {name: values.tolist() for name, values in snapshot.metrics.items()}
        for name, callback in self._stateful().items():
            callback.restore(snapshot.callbacks[name])
            if getattr(callback, "stopped", False):
                self.ending = _stopped_by([callback], self.epoch)

    def metrics(self) -> dict[str, np.ndarray]:
        """Return one value per epoch, by name."""
        return {name: np.asarray(values) for name, values in self.history.items()}

    def _stateful(self) -> dict[str, Any]:
        """Callbacks that have a state to keep, by the name of their class and its place."""
        chosen = [c for c in self.callbacks if hasattr(c, "save") and hasattr(c, "restore")]
        return {f"{type(c).__name__}-{i}": c for i, c in enumerate(chosen)}

    # ---- one epoch -------------------------------------------------------------------------------

    def advance(self, show: Callable[..., None], interrupted: Callable[[], bool]) -> None:
        """Take one epoch: its batches, its figures, the callbacks."""
        started = time.perf_counter()
        key, measure_key = jax.random.split(jax.random.fold_in(self.rng_key, self.epoch))
        learned, infos = self._take_batches(key, show, interrupted)
        if self.ending:
            self.partial = learned
            return
        speed = self.num_rows / (time.perf_counter() - started)
        figures = {name: float(np.mean(values)) for name, values in infos.items()}
        figures |= self.measure(measure_key, learned.state)
        figures |= learning_rate(learned.state, float(learned.rate_factor))
        self.learned, self.epoch = learned, self.epoch + 1
        for name, value in figures.items():
            self.history.setdefault(name, []).append(value)
        self.words = f"{in_words(figures)}  {speed:,.0f} rows/s"
        show(self.epoch, self.words)
        answers = [callback(self.epoch - 1, learned.state, figures) for callback in self.callbacks]
        stopping = [
            callback
            for callback, answer in zip(self.callbacks, answers, strict=True)
            if isinstance(answer, bool | np.bool_) and answer
        ]
        if stopping:
            self.ending = _stopped_by(stopping, self.epoch)

    def _take_batches(
        self, key: jax.Array, show: Callable[..., None], interrupted: Callable[[], bool]
    ) -> tuple[Learned, dict[str, np.ndarray]]:
        """Run the batches of an epoch in chunks that are short enough to be interrupted."""
        self._now, state = self.learner.at_epoch(self.epoch, self.learned.state)
        self.learned = self.learned._replace(state=state)
        learned, first, self._halvings = self.learned, 0, 0
        parts: list[dict[str, np.ndarray]] = []
        while first < self.num_batches:
            last = min(first + self._size, self.num_batches)
            started = time.perf_counter()
            chunk = self._run(key, learned, first, last)
            is_finite = bool(chunk.is_finite)
            seconds = time.perf_counter() - started
            if not is_finite:
                bad = int(chunk.reached) - 1
                self._tell_invalid(bad, chunk)
                if self.ending:  # once more, without the step that went wrong
                    return self._run(key, learned, first, bad).learned, {}
                learned, first, parts = self.learned, 0, []
                continue
            parts.append({k: np.asarray(v)[first:last] for k, v in chunk.infos.items()})
            learned, first = chunk.learned, last
            if seconds < _SHORT:
                self._size *= 2
            elif seconds > _LONG:
                self._size = max(self._size // 2, 1)
            ends = "ends after this epoch; Ctrl-C again leaves it out"
            show(self.epoch + first / self.num_batches, ends if interrupted() else self.words)
        return learned, {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}

    def _run(self, key: jax.Array, learned: Learned, first: int, last: int) -> Chunk:
        total = self.num_epochs * self.num_batches
        return run_batches(
            key,
            learned,
            self.rows,
            first,
            last,
            total // 2 - self.epoch * self.num_batches,
            learner=self._now,
            batch_size=self.batch_size,
            resample=self.resample,
            has_shorter_steps=float(learned.rate_factor) != 1.0,
        )

    def _tell_invalid(self, batch: int, chunk: Chunk) -> None:
        """Halve the learning rate and begin the epoch anew, or end the run; say which and why."""
        place = (
            f"the parameters were no longer finite in epoch {self.epoch + 1}, batch {batch + 1} of "
            f"{self.num_batches}"
        )
        norms = chunk.infos.get("gradient_norm")
        is_sound = norms is not None and bool(np.isfinite(np.asarray(norms)[batch]))
        leaves = jax.tree.leaves(chunk.learned.state.model)
        if is_sound and any(np.isnan(leaf).any() for leaf in leaves):  # no factor helps there
            advice = (
                "the gradient was finite, the optimizer's step was not: look at its learning rate "
                "or schedule"
            )
        elif not self.halves:
            advice = "lower the learning rate, or pass on_invalid='halve'"
        elif self._halvings == _MOST_HALVINGS:
            advice = f"halving the learning rate {_MOST_HALVINGS} times did not help"
        else:
            factor = float(self.learned.rate_factor) / 2
            self._halvings += 1
            self.learned = self.learned._replace(rate_factor=jnp.float32(factor))
            warnings.warn(
                f"{place}; the epoch begins anew with {factor:g} of the learning rate",
                RuntimeWarning,
                stacklevel=6,
            )
            return
        self.ending = f"Stopped: {place}, a step that was undone; {advice}."
        warnings.warn(self.ending, RuntimeWarning, stacklevel=6)


def _stopped_by(callbacks: Sequence[Any], epoch: int) -> str:
    reasons = [callback.reason for callback in callbacks if hasattr(callback, "reason")]
    why = f": {'; '.join(reasons)}" if reasons else ""
    return f"Stopped by a callback after epoch {epoch}{why}."


def run_epochs(run: Run, store: Store | None, resume: bool, progress_bar: bool) -> LearningResult:
    """Take the epochs of a run and return what it found.

    Notes
    -----
    Ctrl-C ends the run after the present epoch, a second one at once, without it.
    """
    start = run.learned.state.model
    resumed = ""
    if store is not None:
        snapshot = store.open(run.snapshot(), resume)
        if snapshot is not None:
            run.restore(snapshot)
            resumed = f"Resumed after epoch {run.epoch}."
        elif resume:
            resumed = f"There was no checkpoint in {store.folder}: started anew."
    bar = progress(run.num_epochs, progress_bar, "epochs")
    with bar as show, interrupts_wait() as interrupted:
        show(run.epoch, resumed if run.epoch >= run.num_epochs else f"{resumed} compiling".strip())
        if store is not None and run.epoch == 0:
            store.write(run.snapshot())  # says at once whether that works
        try:
            while run.epoch < run.num_epochs and not run.ending:
                run.advance(show, interrupted)
                if store is not None and store.is_due(run.epoch):
                    store.write(run.snapshot())
                if interrupted() and run.epoch < run.num_epochs and not run.ending:
                    run.ending = f"Interrupted after epoch {run.epoch} of {run.num_epochs}."
        except KeyboardInterrupt:
            run.ending = f"Interrupted; the result is that of the {run.epoch} epochs before."
        if store is not None:
            store.write(run.snapshot())
    metrics = run.metrics()
    last = run.partial or run.learned
    parts = [explain(metrics), resumed, _unmoved(start, last.state.model, metrics), run.ending]
    parts.append("" if store is None else store.trouble())
    message = " ".join(part for part in parts if part)
    return LearningResult(last.state.model, last.average.project(), last.state, metrics, message)


def _unmoved(start: EnergyModel, end: EnergyModel, metrics: Mapping[str, np.ndarray]) -> str:
    """Say that nothing was learned, where there was something to learn."""
    norms = metrics.get("gradient_norm")
    if norms is None or not len(norms) or not norms[-1] > 0:
        return ""
    pairs = zip(jax.tree.leaves(start), jax.tree.leaves(end), strict=True)
    if any(not np.array_equal(a, b) for a, b in pairs):
        return ""
    return "The parameters did not move though the gradient is not zero: is the learning rate zero?"
