"""Running means and their errors in constant memory: batches whose size doubles.

Three pure functions, :func:`init`, :func:`update` and :func:`result`, for any scan over draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["BatchMeansState", "Moments", "init", "result", "update"]

#: Batches that errors are estimated from, at least, of all series together, if there are as many.
_NUM_BATCHES = 128


class BatchMeansState(NamedTuple):
    """What is kept of all draws so far; its size does not depend on their number.

    Attributes
    ----------
    updates
        Updates so far.
    waiting
        By statistic ``(levels, series, ...)``: at level l the mean of 2^l updates that wait for
        as many to follow; there is one where bit l of ``updates`` is set.
    spread
        By statistic ``(levels, 2, ...)``: the sum, over series and pairs of neighbouring batches
        of equal size, of the squared difference of their means; as a number and what rounding
        took from it. The levels inside an update come first.
    """

    updates: jax.Array
    waiting: dict[Any, jax.Array]
    spread: dict[Any, jax.Array]


class Moments(NamedTuple):
    """Moments of a statistic over all draws, and how well they are known. Shaped like it.

    Attributes
    ----------
    mean
        Mean over series and draws.
    sd
        Standard deviation of a draw.
    mcse
        Monte Carlo standard error of the mean; NaN where the statistic never moved.
    ess
        Effective sample size (count): independent draws with the same error.
    autocorrelation_time
        Draws of a series that are worth one independent draw:
        ``1 + 2 sum_k (autocorrelation at lag k)``.
    rhat
        R-hat of Gelman and Rubin, from the means of whole series: infinite where each stands
        still at a value of its own, NaN for one series.
    batch_size, num_batches
        Draws in a batch, and batches of all series, that the error is estimated from; the
        relative error of ``mcse`` is about ``(2 num_batches) ** -0.5``.
    """

    mean: np.ndarray
    sd: np.ndarray
    mcse: np.ndarray
    ess: np.ndarray
    autocorrelation_time: np.ndarray
    rhat: np.ndarray
    batch_size: int
    num_batches: int


def init(statistics: Mapping[Any, Any], num_levels: int = 30) -> BatchMeansState:
    """Return the state before the first update.

    Parameters
    ----------
    statistics
        Arrays like those that will come (or their ``jax.ShapeDtypeStruct``), by name:
        ``(draws, series, ...)``, where ``draws``, a power of two, come with every update, and
        series are independent chains. Their values do not matter.
    num_levels
        There may be ``2 ** num_levels - 1`` updates.

    Raises
    ------
    TypeError
        If the statistics are no dict.
    ValueError
        If a statistic has no axes for draws and series, or ``draws`` is no power of two.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> draws = jax.random.normal(jax.random.key(0), (1000, 8))  # of eight chains
    >>> state = init({"x": draws[:1]})
    >>> state, _ = jax.lax.scan(lambda s, x: (update(s, {"x": x[None]}), None), state, draws)
    >>> found = result(state)["x"]
    >>> bool(abs(found.mean) < 5 * found.mcse), found.num_batches
    (True, 248)
    """
    _require_dict(statistics)
    waiting, spread = {}, {}
    dtype = jnp.result_type(float)
    for name, array in statistics.items():
        shape = tuple(np.shape(array))
        if len(shape) < 2 or shape[0] < 1 or shape[0] & (shape[0] - 1):
            raise ValueError(
                f"statistic {name!r} must have shape (draws, series, ...) with draws a power of "
                f"two, got {shape}"
            )
        waiting[name] = jnp.zeros((num_levels, *shape[1:]), dtype)
        levels = shape[0].bit_length() - 1 + num_levels
        spread[name] = jnp.zeros((levels, 2, *shape[2:]), dtype)
    return BatchMeansState(jnp.zeros((), jnp.int32), waiting, spread)


def update(state: BatchMeansState, statistics: Mapping[Any, Any]) -> BatchMeansState:
    """Return the state after some more draws, in order of time.

    Parameters
    ----------
    state
        From :func:`init` or the update before.
    statistics
        By name ``(draws, series, ...)``, shaped as they were for :func:`init`.

    Raises
    ------
    TypeError
        If the statistics are no dict.
    ValueError
        If their names or shapes are others than those that :func:`init` was given.

    Notes
    -----
    Costs a few operations per number, however many draws there have been: level l is touched
    once in 2^l updates.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> two_chains = jnp.asarray([[0.0, 1.0]])
    >>> int(update(init({"x": two_chains}), {"x": two_chains}).updates)
    1
    """
    _require_dict(statistics)
    waiting, spread = dict(state.waiting), dict(state.spread)
    if set(statistics) != set(waiting):
        raise ValueError(
            f"update got the statistics {list(statistics)}, but init was given {list(waiting)}"
        )
    for name in waiting:
        draws = jnp.asarray(statistics[name]).astype(waiting[name].dtype)
        inner = spread[name].shape[0] - waiting[name].shape[0]
        if draws.shape != (2**inner, *waiting[name].shape[1:]):
            raise ValueError(
                f"statistic {name!r} has shape {draws.shape}, but init was given "
                f"{(2**inner, *waiting[name].shape[1:])}"
            )
        for level in range(inner):
            first, second = draws[0::2], draws[1::2]
            square = jnp.sum((first - second) ** 2, axis=(0, 1))
            spread[name] = _add(spread[name], level, square)
            draws = 0.5 * (first + second)
        waiting[name], spread[name] = _carry(
            draws[0], waiting[name], spread[name], state.updates, inner
        )
    return BatchMeansState(state.updates + 1, waiting, spread)


def _require_dict(statistics: Any) -> None:
    if not isinstance(statistics, Mapping):
        raise TypeError(
            "statistics is a dict of arrays (draws, series, ...) by name, got "
            f"{type(statistics).__name__}"
        )


def _carry(
    batch: jax.Array, waiting: jax.Array, spread: jax.Array, updates: jax.Array, inner: int
) -> tuple[jax.Array, jax.Array]:
    """Add a batch like a one to a binary number: equal sizes merge, and are carried over."""

    def full(carry: Any) -> jax.Array:
        return (updates >> carry[0]) & 1 == 1

    def merge(carry: Any) -> Any:
        level, batch, spread = carry
        before = waiting[level]
        square = jnp.sum((before - batch) ** 2, axis=0)
        return level + 1, 0.5 * (before + batch), _add(spread, level + inner, square)

    start = (jnp.zeros((), jnp.int32), batch, spread)
    level, batch, spread = jax.lax.while_loop(full, merge, start)
    return waiting.at[level].set(batch), spread


def _add(spread: jax.Array, level: Any, number: jax.Array) -> jax.Array:
    """Add to a sum of many small numbers, and keep what rounding takes away (Knuth's TwoSum)."""
    old, lost = spread[level]
    new = old + number
    part = new - old
    error = (old - (new - part)) + (number - part)
    return spread.at[level].set(jnp.stack([new, lost + error]))


def result(state: BatchMeansState) -> dict[Any, Moments]:
    """Return the moments of every statistic, in float64, by name.

    Raises
    ------
    ValueError
        If there was no update yet, or there were more than ``init`` made room for.

    Notes
    -----
    The mean is exact up to rounding: batches of equal size are averaged in pairs, so that errors
    grow with the logarithm of the number of draws. The error of the mean is that of
    non-overlapping batch means, centred at the mean of all series, at a batch size that is a
    power of two: the larger of the root of the number of draws and what leaves 128 batches. Sums
    of squares over batches of *every* such size follow from the differences of neighbours: no
    large numbers are subtracted. Whole batches only enter the error. An estimate is worth as
    much as its batches are long: it is too small where the autocorrelation time is not much
    shorter than ``batch_size``.

    References
    ----------
    H. Flyvbjerg and H. Petersen (1989), Error estimates on averages of correlated data: batches
    that double. N. Argon and S. Andradottir (2006), Replicated batch means for steady-state
    simulations: one centre for all series. B. Schmeiser (1982), Batch size effects in the
    analysis of simulation output: some dozens of batches are enough. J. Flegal and G. Jones
    (2010), Batch means and spectral variance estimators in Markov chain Monte Carlo: the root.
    D. Kent and R. Muller (2007), Efficient algorithm for on-the-fly error analysis of local or
    distributed serially correlated data: the binary counter.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> two_chains = jnp.asarray([[0.0, 1.0]])
    >>> float(result(update(init({"x": two_chains}), {"x": two_chains}))["x"].mean)
    0.5
    """
    updates = int(state.updates)
    if updates < 1:
        raise ValueError("there are no draws yet: call update first")
    return {
        name: _moments(updates, waiting, state.spread[name])
        for name, waiting in state.waiting.items()
    }


def _moments(updates: int, waiting: jax.Array, spread: jax.Array) -> Moments:
    if updates >> waiting.shape[0]:
        raise ValueError(
            f"{updates} updates are more than {waiting.shape[0]} levels hold: give init more"
        )
    inner = spread.shape[0] - waiting.shape[0]
    series, draws = waiting.shape[1], updates << inner
    trees = {
        inner + j: np.asarray(waiting[j], np.float64)
        for j in range(updates.bit_length())
        if updates >> j & 1
    }
    sums = [
        np.asarray(spread[i], np.float64).sum(axis=0) for i in range(inner + updates.bit_length())
    ]
    means = np.asarray(sum(2.0**top * tree for top, tree in trees.items()) / draws)
    mean = means.mean(axis=0)

    def variance(level: int) -> Any:
        """Of the means of batches of 2^level draws, about the mean of all that are whole."""
        count = draws >> level
        whole = {top - level: tree for top, tree in trees.items() if top >= level}
        centre = sum(2.0**n * tree.mean(axis=0) for n, tree in whole.items()) / count
        square = sum(2.0 ** (i - level - 1) * sums[i] for i in range(level, len(sums)))
        for n, tree in whole.items():
            square = square + 2.0**n * ((tree - centre) ** 2).sum(axis=0)
        return square / (series * count - 1) if series * count > 1 else np.full_like(mean, np.nan)

    level = _level(draws, series)
    size = 2**level
    of_draw, of_mean = variance(0), size * variance(level) / (draws * series)
    with np.errstate(invalid="ignore", divide="ignore"):
        ess = np.where(of_draw > 0, of_draw / of_mean, np.nan)
        between = ((means - mean) ** 2).sum(axis=0)
        within = of_draw * (series * draws - 1) - draws * between
        within = np.maximum(within, 0.0) / (series * (draws - 1.0))
        within = np.where(within > 1e-12 * of_draw, within, 0.0)  # what rounding leaves
        rhat = np.sqrt((draws - 1.0) / draws + between / (series - 1.0) / within)
    return Moments(
        mean=mean,
        sd=np.sqrt(of_draw),
        mcse=np.where(of_draw > 0, np.sqrt(of_mean), np.nan),
        ess=ess,
        autocorrelation_time=draws * series / ess,
        rhat=rhat if series > 1 and draws > 1 else np.full_like(mean, np.nan),
        batch_size=size,
        num_batches=series * (draws >> level),
    )


def _level(draws: int, series: int) -> int:
    """Binary logarithm of the batch size."""
    size = max(math.isqrt(draws), draws * series // _NUM_BATCHES, 1)
    return min(size, draws).bit_length() - 1
