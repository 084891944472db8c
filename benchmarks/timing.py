"""The timing core: what is compared runs in turn, in one process, compilation left out."""

from __future__ import annotations

import dataclasses
import functools
import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long and how often to measure.

    ``min_seconds``: a timed call takes at least this long, so that dispatch does not count.
    ``rounds``: how often each contestant is timed, all of them once per round.
    """

    seed: int = 0
    rounds: int = 9
    min_seconds: float = 0.05
    quick: bool = False

    def key(self, purpose: int = 0) -> jax.Array:
        return jax.random.fold_in(jax.random.key(self.seed), purpose)


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Spread:
        lower, median, upper = np.percentile(np.asarray(values, dtype=float), [25, 50, 75])
        return cls(float(median), float(lower), float(upper))

    def scaled(self, factor: float) -> Spread:
        return Spread(self.median * factor, self.lower * factor, self.upper * factor)


class Runner(Protocol):
    """Something that can be timed: so many sweeps, with a fresh seed for every call."""

    def prepare(self, num_sweeps: int) -> Callable[[int], float | None]:
        """Return a call that is compiled and has run once.

        It blocks until its result is there, continues from where the last call ended, and may
        return its own seconds where its library reports them without the setting up.
        """
        ...


class Scan:
    """A pure step under ``lax.scan`` in one jitted call.

    Parameters
    ----------
    step
        ``step(key, state, arguments) -> state``, of all chains.
    state
        The first state; each call goes on from the last.
    arguments
        Arrays that do not change (parameters): passed, so that they are no constants.
    values
        From a state to raw values by site, ``(num_chains, ...)``.
    """

    def __init__(
        self,
        step: Callable[[jax.Array, Any, Any], Any],
        state: Any,
        arguments: Any = (),
        values: Callable[[Any], Mapping[str, Any]] | None = None,
    ) -> None:
        self._step, self._arguments, self._values = step, arguments, values
        self.state = jax.tree.map(jax.numpy.asarray, state)

    def prepare(self, num_sweeps: int) -> Callable[[int], None]:
        @jax.jit
        def run(key: jax.Array, state: Any, arguments: Any) -> Any:
            keys = jax.random.split(key, num_sweeps)
            return jax.lax.scan(
                lambda state, key: (self._step(key, state, arguments), None), state, keys
            )[0]

        def call(seed: int) -> None:
            key = jax.random.key(seed)
            self.state = jax.block_until_ready(run(key, self.state, self._arguments))

        call(0)
        return call

    def values(self) -> dict[str, np.ndarray]:
        """Raw values of every chain after the last call."""
        assert self._values is not None
        return {name: np.asarray(value) for name, value in self._values(self.state).items()}


@dataclasses.dataclass(frozen=True)
class Timed:
    """Seconds per sweep of one contestant, one entry per round."""

    seconds: np.ndarray
    num_sweeps: int

    @property
    def spread(self) -> Spread:
        return Spread.of(self.seconds)

    def ratio(self, other: Timed) -> Spread:
        """How many times longer this takes than the other, compared round by round."""
        return Spread.of(self.seconds / other.seconds)


def _seconds(call: Callable[[int], float | None], seed: int) -> float:
    start = time.perf_counter()
    own = call(seed)
    elapsed = time.perf_counter() - start
    return elapsed if own is None else own


def calibrate(
    runner: Runner, settings: Settings, start: int = 4
) -> tuple[Callable[[int], float | None], int]:
    """Return a prepared call that takes at least ``min_seconds``, and its number of sweeps.

    One sweep, untried, if no time is asked for: for what is long enough by itself.
    """
    if settings.min_seconds == 0.0:
        return runner.prepare(1), 1
    num = start
    while True:
        call = runner.prepare(num)
        seconds = min(_seconds(call, seed) for seed in (1, 2))
        if seconds >= settings.min_seconds:
            return call, num
        grown = 1.3 * settings.min_seconds * num / max(seconds, 1e-9)
        num = int(min(max(math.ceil(grown), num + 1), 256 * num))


#: Seconds of rest before a contestant: threads of some libraries spin for a while after their work.
REST = 0.1


def race(runners: Mapping[str, Runner], settings: Settings) -> dict[str, Timed]:
    """Return the times of contestants that take turns: A B C, B C A, C A B, ...

    A busy machine is then busy for all of them, and ratios are taken within a round.
    """
    calls = {name: calibrate(runner, settings) for name, runner in runners.items()}
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in range(settings.rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                call, num = calls[name]
                time.sleep(REST)
                seconds[name].append(_seconds(call, settings.seed + 1000 + number) / num)
    finally:
        if collecting:
            gc.enable()
    return {name: Timed(np.array(seconds[name]), calls[name][1]) for name in names}


#: What JAX reports of the way from a function to a program.
_COMPILING = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


class _CompileClock:
    """Seconds that this process has spent compiling, as JAX reports them."""

    def __init__(self) -> None:
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event: str, duration: float, **_: Any) -> None:
        if event in _COMPILING:
            self.seconds += duration


@functools.cache
def compile_clock() -> _CompileClock:
    """Return the one clock: JAX has no public way to take a listener back."""
    return _CompileClock()


def seconds_without_compiling(function: Callable[[], Any]) -> float:
    """Return how long a call takes that compiles, its compilation left out."""
    clock = compile_clock()
    compiled, start = clock.seconds, time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start - (clock.seconds - compiled)
