"""How the time of learning and of annealing grows: with rows, components, units and chains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import pgm_energy as pgm
from benchmarks import contrastive, em, models
from benchmarks.annealing import Annealing
from benchmarks.growth import Curve, time_curve
from benchmarks.timing import Runner, Settings
from pgm_energy.learning.em.steps import expect
from pgm_energy.learning.em.task import prepare, rows_per_chunk

COLUMNS, VISIBLE = 16, 784
#: What is held fixed while the other grows.
FIXED_ROWS, FIXED_COMPONENTS, BATCH = 16_384, 16, 128


class EMStep:
    """One E-step and M-step of all rows, as :class:`pgm_energy.EM` compiles them."""

    def __init__(self, num_rows: int, num_components: int, kind: str, seed: int) -> None:
        data = em.rows(seed, num_rows, COLUMNS, num_components)
        rng = np.random.default_rng(seed)
        means = data[rng.choice(num_rows, num_components, replace=False)]
        unit = np.ones((num_components, COLUMNS), np.float32)
        start = pgm.GaussianMixture(
            weights=np.full(num_components, 1 / num_components, np.float32),
            means=means,
            covariances=unit[:, :, None] * np.eye(COLUMNS) if kind == "full" else unit,
            covariance_type=kind,
        )
        task = prepare(start, data, None, False)
        size = rows_per_chunk(start, 1, task.kind, False, True)
        with jax.enable_x64(True):
            self._chunks = task.chunks(min(size, num_rows))
            self._floor = np.asarray(start.least_floor(1e-6, task.kind))
            self._prior = start.resolve_prior(pgm.MixturePrior(), task.frame)
        self._model = task.start

    def prepare(self, num_sweeps: int) -> Callable[[int], None]:
        """Return a call of so many steps, compiled."""

        @jax.jit
        def step(model: Any, chunks: Any, prior: Any, floor: Any) -> Any:
            return model.maximize(expect(model, chunks, True).moments, floor, prior)

        def call(seed: int) -> None:
            with jax.enable_x64(True):
                for _ in range(num_sweeps):
                    self._model = step(self._model, self._chunks, self._prior, self._floor)
                jax.block_until_ready(self._model)

        call(0)
        return call


def pcd_update(num_hidden: int, seed: int) -> Runner:
    """One update of a batch, with as many chains as rows: an epoch of one batch."""
    return contrastive.Epochs(contrastive.data(seed, BATCH, VISIBLE), num_hidden, BATCH, seed)


@dataclasses.dataclass(frozen=True)
class Growth:
    """One curve: what grows, and how to make what is timed."""

    family: str
    axis: str
    fixed: str
    sizes: tuple[int, ...]
    make: Callable[[int, int], Runner]


def _em(kind: str) -> list[Growth]:
    rows = tuple(2**power for power in (11, 13, 15, 16, 17))
    fixed = f"{FIXED_COMPONENTS} components, {COLUMNS} columns"
    by_rows = Growth(
        f"EM step, {kind}",
        "rows",
        fixed,
        rows,
        lambda size, seed: EMStep(size, FIXED_COMPONENTS, kind, seed),
    )
    by_components = Growth(
        f"EM step, {kind}",
        "components",
        f"{FIXED_ROWS:,} rows, {COLUMNS} columns",
        (4, 8, 16, 32, 64),
        lambda size, seed: EMStep(FIXED_ROWS, size, kind, seed),
    )
    return [by_rows, by_components]


GROWTHS: tuple[Growth, ...] = (
    *_em("full"),
    *_em("diag"),
    Growth(
        f"PCD update, {VISIBLE} visible units",
        "hidden units",
        f"batch and chains {BATCH}",
        (64, 128, 256, 512, 1024),
        pcd_update,
    ),
    Growth(
        "beta of annealing, RBM 256 x 128",
        "chains",
        "the same walk",
        (1, 4, 16, 64, 256, 1024),
        lambda size, seed: Annealing(models.rbm(seed, 256, 128), size, seed),
    ),
)


def measure(
    settings: Settings,
    report: Callable[[str], None],
    growths: tuple[Growth, ...] = GROWTHS,
    every: int = 1,
) -> list[Curve]:
    """Time all curves, at every size or every second one."""
    return [
        time_curve(
            Curve(one.family, one.axis, one.fixed, list(one.sizes[::every]), []),
            lambda size, one=one: one.make(size, settings.seed),  # type: ignore[misc]
            settings,
            report,
        )
        for one in growths
    ]
