"""An epoch of PCD against scikit-learn's ``BernoulliRBM`` and against its five matrix products."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import pgm_energy as pgm
from benchmarks.gate import WrongKernel
from benchmarks.peers import Missing, require
from benchmarks.results import Line, Target, judged
from benchmarks.timing import Settings, race
from pgm_energy.learning.epochs import Learned, run_batches
from pgm_energy.learning.loop import check_rows

RATE = 0.01


def data(seed: int, num_rows: int, num_visible: int) -> np.ndarray:
    """Random bits of one density: what is timed does not depend on what they say."""
    draw = np.random.default_rng(seed).random((num_rows, num_visible))
    return (draw < 0.2).astype(np.int8)


class Epochs:
    """Epochs of our own loop: fresh order, batches, averaging, and a check that all is finite."""

    def __init__(
        self, rows: np.ndarray, num_hidden: int, batch_size: int, seed: int, rate: float = RATE
    ) -> None:
        model = pgm.RBM.init(
            jax.random.key(seed), num_visible=rows.shape[1], num_hidden=num_hidden, data=rows
        )
        self._learner = pgm.PCD(optax.sgd(rate), num_chains=batch_size)
        self._rows = check_rows(model, rows, None, None)
        self._batch_size = batch_size
        state = self._learner.init(jax.random.key(seed + 1), model, self._rows)
        self._learned = Learned(state, model, jnp.zeros((), jnp.int32), jnp.ones((), jnp.float32))

    @property
    def model(self) -> pgm.RBM:
        """The machine as it was learned so far."""
        return self._learned.state.model

    def prepare(self, num_sweeps: int) -> Callable[[int], None]:
        """Return a call of so many epochs, compiled."""
        num_batches = -(-len(self._rows.weights) // self._batch_size)

        def call(seed: int) -> None:
            for number in range(num_sweeps):
                chunk = run_batches(
                    jax.random.fold_in(jax.random.key(seed), number),
                    self._learned,
                    self._rows,
                    0,
                    num_batches,
                    0,
                    learner=self._learner,
                    batch_size=self._batch_size,
                    resample=False,
                    has_shorter_steps=False,
                )
                self._learned = chunk.learned
            jax.block_until_ready(self._learned)

        call(0)
        return call


class Products:
    """The five products of an update alone: two of each side's, and the chains' way back."""

    def __init__(self, rows: np.ndarray, num_hidden: int, batch_size: int, seed: int) -> None:
        num_batches = len(rows) // batch_size
        full = rows[: num_batches * batch_size].astype(np.float32)
        self._batches = jnp.asarray(full.reshape(num_batches, batch_size, -1))
        weights = jax.random.normal(jax.random.key(seed), (rows.shape[1], num_hidden))
        self._state = 0.01 * weights, jnp.full((batch_size, num_hidden), 0.3)

    def prepare(self, num_sweeps: int) -> Callable[[int], None]:
        """Return a call of so many passes over the batches, compiled."""

        @jax.jit
        def epoch(state: Any, batches: jax.Array) -> Any:
            def step(state: Any, v: jax.Array) -> tuple[Any, None]:
                weights, h = state
                pull = v.T @ (v @ weights)
                chain = h @ weights.T
                new = chain @ weights
                # so little that nothing overflows, and nothing can be left out
                return (weights + 1e-9 * (pull - chain.T @ new), 1e-3 * new), None

            return jax.lax.scan(step, state, batches)[0]

        def call(seed: int) -> None:
            for _ in range(num_sweeps):
                self._state = epoch(self._state, self._batches)
            jax.block_until_ready(self._state)

        call(0)
        return call


class ScikitLearn:
    """``BernoulliRBM.fit`` in float32, the same batches, one iteration per epoch."""

    def __init__(self, rows: np.ndarray, num_hidden: int, batch_size: int, seed: int) -> None:
        self._class = require("sklearn.neural_network").BernoulliRBM
        self._rows = rows.astype(np.float32)
        self._settings = {
            "n_components": num_hidden,
            "learning_rate": RATE,
            "batch_size": batch_size,
        }

    def prepare(self, num_sweeps: int) -> Callable[[int], None]:
        """Return a call of so many epochs."""

        def call(seed: int) -> None:
            self._class(n_iter=num_sweeps, random_state=seed, **self._settings).fit(self._rows)

        return call


#: Two patterns, flips of a bit, and how far below their law a machine may end, nats per row.
PATTERNS = np.repeat(np.eye(2), 3, axis=1)
FLIPS = 0.1
SHORT_OF_TRUTH = 0.05


def check(settings: Settings, rate: float = 0.1) -> str:
    """Learn two noisy patterns by the code that is timed; hold the exact likelihood against theirs.

    Raises
    ------
    WrongKernel
        If the machine explains the rows worse than the law that drew them.
    """
    rng = np.random.default_rng(settings.seed)
    rows = PATTERNS[rng.integers(2, size=1600)] != (rng.random((1600, 6)) < FLIPS)
    differ = (rows[:, None] != PATTERNS).sum(axis=2)
    known = np.log((0.5 * FLIPS**differ * (1 - FLIPS) ** (6 - differ)).sum(axis=1)).mean()
    epochs = Epochs(rows.astype(np.int8), 2, 16, settings.seed, rate)
    epochs.prepare(40)
    found = float(pgm.log_likelihood(epochs.model, rows.astype(np.int8)).mean())
    text = f"exact log-likelihood {found:.3f} nats per row, {known:.3f} of the truth"
    if not found > known - SHORT_OF_TRUTH:
        raise WrongKernel(f"PCD does not learn: {text}")
    return text


@dataclasses.dataclass(frozen=True)
class EpochRace:
    """One row of the table: seconds per epoch."""

    num_rows: int = 12_800
    num_visible: int = 784
    num_hidden: int = 256
    batch_size: int = 128

    @property
    def name(self) -> str:
        """Name of the row."""
        return f"pcd-{self.num_visible}x{self.num_hidden}-{self.batch_size}"

    def __call__(self, settings: Settings) -> list[Line]:
        """Race the three in turn and judge both ratios."""
        target = Target(4, ">=")
        try:
            checked = check(settings)
        except WrongKernel as error:
            bare = Line(self.name, "PCD", "ms/epoch", None, "scikit-learn", target=target)
            return [dataclasses.replace(bare, verdict="wrong", problem=str(error))]
        rows = data(settings.seed, self.num_rows, self.num_visible)
        shape = (rows, self.num_hidden, self.batch_size, settings.seed)
        work = (
            f"PCD, {self.num_rows:,} x {self.num_visible}, {self.num_hidden} hidden, batches of "
            f"{self.batch_size}"
        )
        runners: dict[str, Any] = {"ours": Epochs(*shape), "its five products": Products(*shape)}
        problem = ""
        try:
            runners["scikit-learn"] = ScikitLearn(*shape)
        except Missing as error:
            problem = str(error)
        # an epoch is long enough
        rounds = min(settings.rounds, 5)
        times = race(runners, dataclasses.replace(settings, rounds=rounds, min_seconds=0.0))
        ours, floor = times["ours"], times["its five products"]

        def line(against: str, **fields: Any) -> Line:
            spread = ours.spread.scaled(1e3)
            return Line(self.name, work, "ms/epoch", spread, against, checked=checked, **fields)

        lines = [
            judged(
                line(
                    "its five products",
                    theirs=floor.spread.scaled(1e3),
                    ratio=ours.ratio(floor),
                    ratio_of="times as long as",
                    target=Target(1.5, "<="),
                )
            )
        ]
        if problem:
            return [*lines, line("scikit-learn", target=target, verdict="not installed")]
        peer = times["scikit-learn"]
        judgement = line(
            "scikit-learn",
            theirs=peer.spread.scaled(1e3),
            ratio=peer.ratio(ours),
            ratio_of="faster than",
            target=target,
        )
        return [*lines, judged(judgement)]
