"""The host loop of every gradient learner: epochs, batches, metrics, progress, words."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._checks import require_count, require_key
from pgm_energy._data import as_rows
from pgm_energy._progress import progress
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel

__all__ = ["LearningResult", "Rows", "run_epochs"]

Metrics = dict[str, np.ndarray]


class Rows(NamedTuple):
    """Checked data of one learning run.

    Attributes
    ----------
    values
        By data site, rows first; floating point where the data are grey.
    weights
        ``(rows,)``, not negative.
    """

    values: dict[str, jax.Array]
    weights: jax.Array


class LearningResult(NamedTuple):
    """What a learner found.

    Attributes
    ----------
    model
        The model with the last parameters.
    averaged
        The model with parameters averaged over the second half of the updates.
    state
        The learner's state: optimiser, chains.
    metrics
        One value per epoch, by name.
    message
        How it went, in words.
    """

    model: EnergyModel
    averaged: EnergyModel
    state: Any
    metrics: Metrics
    message: str


@runtime_checkable
class Learner(Protocol):
    """A pair of pure functions; the loop does the rest."""

    def init(self, rng_key: Key, model: EnergyModel, rows: Rows) -> Any:
        """Return the first state (with a field ``model``)."""

    def update(
        self, rng_key: Key, state: Any, batch: Rows, index: jax.Array
    ) -> tuple[Any, dict[str, jax.Array]]:
        """Return the state after one step on a batch, and figures of the step."""


def check_rows(
    model: EnergyModel, data: Any, row_weights: Any, intensities: str | None, name: str = "data"
) -> Rows:
    """Return checked rows and weights.

    Raises
    ------
    ValueError
        On data that are not valid, grey data without ``intensities``, or weights that are
        negative, all zero or of another number than the rows.
    """
    if intensities not in (None, "mean", "sample"):
        raise ValueError(f"intensities must be None, 'mean' or 'sample', got {intensities!r}")
    values = as_rows(model, data, name=name, allow_intensities=intensities is not None)
    count = len(next(iter(values.values())))
    if row_weights is None:
        weights = np.ones(count, dtype=np.float32)
    else:
        weights = np.asarray(row_weights, dtype=np.float32)
        if weights.shape != (count,):
            raise ValueError(f"row_weights must have shape ({count},), got {weights.shape}")
        if not np.isfinite(weights).all() or (weights < 0).any():
            bad = int(np.argmax(~np.isfinite(weights) | (weights < 0)))
            raise ValueError(
                f"row_weights must be finite and not negative, got {weights[bad]} at row {bad}"
            )
        if not weights.any():
            raise ValueError("row_weights are all zero: no row is left to learn from")
    return Rows({k: jnp.asarray(v) for k, v in values.items()}, jnp.asarray(weights))


def draw_bits(rng_key: Key, model: EnergyModel, rows: Rows) -> Rows:
    """Return rows with grey levels replaced by bits drawn with those probabilities."""
    values = {}
    for i, (name, value) in enumerate(rows.values.items()):
        if jnp.issubdtype(value.dtype, jnp.floating) and model.sites[name].is_discrete:
            uniform = jax.random.uniform(jax.random.fold_in(rng_key, i), value.shape)
            value = (uniform < value).astype(model.sites[name].dtype)
        values[name] = value
    return Rows(values, rows.weights)


def take(rows: Rows, index: jax.Array) -> Rows:
    """Return some rows; an index past the end gives a row of weight zero."""
    inside = index < rows.weights.shape[0]
    safe = jnp.where(inside, index, 0)
    values = {name: value[safe] for name, value in rows.values.items()}
    return Rows(values, jnp.where(inside, rows.weights[safe], 0.0))


@functools.partial(jax.jit, static_argnames=("learner", "batch_size", "resample"))
def run_epoch(
    rng_key: Key,
    state: Any,
    total: Any,
    rows: Rows,
    first_averaged: jax.Array,
    *,
    learner: Learner,
    batch_size: int,
    resample: bool,
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """Return the state after all batches of a fresh order, in one scan, and mean figures."""
    num_rows = rows.weights.shape[0]
    num_batches = -(-num_rows // batch_size)
    order_key, bits_key, step_key = jax.random.split(rng_key, 3)
    if resample:
        rows = draw_bits(bits_key, state.model, rows)
    order = jax.random.permutation(order_key, num_rows)
    padding = jnp.full(num_batches * batch_size - num_rows, num_rows)
    batches = jnp.concatenate([order, padding]).reshape(num_batches, batch_size)

    def step(carry: Any, xs: Any) -> Any:
        state, (average, count) = carry
        index, key, number = xs
        state, info = learner.update(key, state, take(rows, index), index)
        # parameters are averaged from a given update on (Polyak and Juditsky 1992)
        use = number >= first_averaged
        count = count + use
        rate = jnp.where(use, 1.0 / jnp.maximum(count, 1), 0.0)
        rate = jnp.where(count == 0, 1.0, rate)  # before that, the average follows
        average = jax.tree.map(lambda a, b: a + rate * (b - a), average, state.model)
        return (state, (average, count)), info

    keys = jax.random.split(step_key, num_batches)
    numbers = jnp.arange(num_batches)
    (state, total), infos = jax.lax.scan(step, (state, total), (batches, keys, numbers))
    return state, total, jax.tree.map(jnp.mean, infos)


def run_epochs(
    learner: Learner,
    rng_key: Key,
    model: EnergyModel,
    rows: Rows,
    *,
    num_epochs: int,
    batch_size: int,
    resample: bool,
    measure: Callable[[jax.Array, Any], dict[str, float]],
    callbacks: Sequence[Callable[[int, Any, Mapping[str, float]], Any]],
    progress_bar: bool,
    explain: Callable[[Metrics], str],
) -> LearningResult:
    """Run a learner over the data and return what it found.

    Parameters
    ----------
    learner
        The pair of pure functions.
    measure
        Figures of an epoch from a key and the state, nats where they are energies.
    callbacks
        Called with ``(epoch, state, figures)`` after every epoch; one that returns True stops
        the run.
    explain
        Makes the message from the metrics.

    Notes
    -----
    An epoch whose parameters are no longer finite is undone and ends the run with a warning;
    an interrupt ends it with the result so far.
    """
    rng_key = require_key(rng_key)
    num_epochs = require_count("num_epochs", num_epochs)
    count = int(rows.weights.shape[0])
    batch_size = min(require_count("batch_size", batch_size), count)
    init_key, rng_key = jax.random.split(rng_key)
    state = learner.init(init_key, model, rows)
    epoch = functools.partial(run_epoch, learner=learner, batch_size=batch_size, resample=resample)
    steps = -(-count // batch_size)
    total = (state.model, jnp.zeros((), jnp.int32))
    history: dict[str, list[float]] = {}
    ending = ""
    with progress(num_epochs, progress_bar, "epochs") as show:
        try:
            for number in range(num_epochs):
                key, measure_key = jax.random.split(jax.random.fold_in(rng_key, number))
                first = jnp.asarray(max(num_epochs * steps // 2 - number * steps, 0))
                new_state, new_total, infos = epoch(key, state, total, rows, first)
                figures = {name: float(value) for name, value in infos.items()}
                if not _is_finite(new_state.model):
                    ending = (
                        f" Stopped: the parameters were no longer finite in epoch {number + 1}, "
                        "which was undone; lower the learning rate."
                    )
                    warnings.warn(ending.strip(), RuntimeWarning, stacklevel=3)
                    break
                figures.update(measure(measure_key, new_state))
                state, total = new_state, new_total
                for name, value in figures.items():
                    history.setdefault(name, []).append(value)
                show(number + 1, in_words(figures))
                answers = [callback(number, state, figures) for callback in callbacks]
                if any(isinstance(answer, bool | np.bool_) and answer for answer in answers):
                    ending = f" Stopped by a callback after epoch {number + 1}."
                    break
        except KeyboardInterrupt:
            done = len(next(iter(history.values()), []))
            ending = f" Interrupted; the result is that of the {done} epochs before."
    metrics = {name: np.asarray(values) for name, values in history.items()}
    averaged = total[0].project()
    return LearningResult(state.model, averaged, state, metrics, explain(metrics) + ending)


def _is_finite(model: EnergyModel) -> bool:
    return all(bool(np.isfinite(np.asarray(leaf)).all()) for leaf in jax.tree.leaves(model))


def in_words(figures: Mapping[str, float]) -> str:
    """Return the figures of an epoch that are worth a place beside a progress bar."""
    names = {
        "pseudo_log_likelihood": "log PL",
        "free_energy_gap": "gap",
        "reconstruction_error": "error",
        "log_likelihood": "log-likelihood",
    }
    return "  ".join(f"{s} {figures[n]:.3f}" for n, s in names.items() if n in figures)
