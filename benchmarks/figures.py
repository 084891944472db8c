"""What a row of ``benchmarks.learning`` leaves behind, and what all rows share."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import pgm_energy as pgm
from benchmarks.results import Target
from pgm_energy.datasets import load_table

#: Rows of binarized MNIST, the last of its training rows, that settings are chosen on.
HELD_OUT = 10_000


@dataclasses.dataclass(frozen=True)
class Goal:
    """What one figure of a row must reach; ``is_stretch``: would be nice."""

    figure: str
    target: Target
    is_stretch: bool = False

    @classmethod
    def least(cls, figure: str, bound: float, unit: str = "nats", is_stretch: bool = False) -> Goal:
        return cls(figure, Target(bound, ">=", unit), is_stretch)

    @classmethod
    def most(cls, figure: str, bound: float, unit: str = "nats") -> Goal:
        return cls(figure, Target(bound, "<=", unit))

    def judge(self, figures: Mapping[str, float]) -> str:
        """Say whether it is reached, in one word."""
        if self.target.reached(figures[self.figure]):
            return "reached"
        return "stretch missed" if self.is_stretch else "missed"


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Elapsed, and of all cores."""

    elapsed: float
    processor: float

    def __str__(self) -> str:
        return f"{self.elapsed:,.1f} ({self.processor:,.1f})"


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = self._now()

    def read(self) -> Seconds:
        elapsed, processor = (
            now - then for now, then in zip(self._now(), self._start, strict=True)
        )
        return Seconds(elapsed, processor)

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One line of the table.

    ``figures``: what goals are about, by name. ``splits``: mean log-likelihood of the splits.
    ``problem``: why there is no figure.
    """

    row: str
    work: str
    settings: str = ""
    splits: dict[str, pgm.Evaluation] = dataclasses.field(default_factory=dict)
    log_z: pgm.LogPartition | None = None
    figures: dict[str, float] = dataclasses.field(default_factory=dict)
    goals: tuple[Goal, ...] = ()
    training: Seconds | None = None
    evaluation: Seconds | None = None
    remarks: tuple[str, ...] = ()
    problem: str = ""

    @property
    def verdict(self) -> str:
        """``reached`` if all goals are that are no stretch, else ``missed``."""
        if self.problem:
            return "skipped" if self.problem.startswith("no data") else "failed"
        words = {goal.judge(self.figures) for goal in self.goals}
        return "missed" if "missed" in words else "reached"

    def to_json(self) -> dict[str, Any]:
        found = dataclasses.asdict(self)
        found["verdict"] = self.verdict
        found["goals"] = [
            {"figure": goal.figure, "target": str(goal.target), "verdict": goal.judge(self.figures)}
            for goal in self.goals
            if not self.problem
        ]
        return found

    @classmethod
    def from_json(cls, found: Mapping[str, Any], goals: tuple[Goal, ...]) -> Outcome:
        """Return what :meth:`to_json` wrote, of a row that had no problem."""
        return cls(
            row=found["row"],
            work=found["work"],
            settings=found["settings"],
            splits={name: pgm.Evaluation(**split) for name, split in found["splits"].items()},
            log_z=None if found["log_z"] is None else pgm.LogPartition(**found["log_z"]),
            figures=found["figures"],
            goals=goals,
            training=Seconds(**found["training"]),
            evaluation=Seconds(**found["evaluation"]),
            remarks=tuple(found["remarks"]),
        )

    def cells(self) -> tuple[str, ...]:
        splits = (likelihood(self.splits.get(name)) for name in ("train", "validation", "test"))
        goals = (
            f"{goal.figure} {str(goal.target).strip()}: {self.figures[goal.figure]:.6g}, "
            f"{goal.judge(self.figures)}"
            for goal in self.goals
            if not self.problem
        )
        return (
            self.work,
            self.settings,
            *splits,
            log_partition(self.log_z),
            "; ".join(goals) or self.problem,
            "" if self.training is None else str(self.training),
            "" if self.evaluation is None else str(self.evaluation),
        )


def likelihood(found: pgm.Evaluation | None) -> str:
    if found is None:
        return ""
    if found.lower == found.upper:
        return f"{found.mean:.4f}"
    return f"{found.mean:.3f} [{found.lower:.3f}, {found.upper:.3f}]"


def log_partition(found: pgm.LogPartition | None) -> str:
    if found is None:
        return ""
    if found.method == "exact":
        return f"{found.estimate:.4f} (exact)"
    return f"{found.estimate:.3f} [{found.lower:.3f}, {found.upper:.3f}] ({found.method})"


# ---- data ----------------------------------------------------------------------------------------


class MissingData(RuntimeError):
    """The files of a row are not there."""


@dataclasses.dataclass(frozen=True)
class Context:
    """What all rows share."""

    data: Path
    seed: int
    quick: bool
    #: where learned models are kept, if anywhere
    folder: Path | None = None

    def key(self, purpose: int) -> jax.Array:
        return jax.random.fold_in(jax.random.key(self.seed), purpose)

    def keep(self, name: str, model: pgm.EnergyModel) -> None:
        """Write a learned model into the folder of the run."""
        if self.folder is not None:
            pgm.save(model, self.folder / f"{name}.safetensors")

    def load(self, name: str) -> dict[str, np.ndarray]:
        """Return the splits of a data set: train, validation and test, 0 and 1."""
        folder = self.data / name
        if not folder.is_dir():
            raise MissingData(f"no data: {name}/ is not in {self.data}")
        if name == "binarized_mnist":
            file = folder / "binarized_mnist.npz"
            train, test = (load_table(file, key=key, num_columns=784) for key in ("train", "test"))
            splits = {
                "train": train[:-HELD_OUT],
                "validation": train[-HELD_OUT:],
                "test": test,
            }
        else:
            files = {"train": "train", "validation": "valid", "test": "test"}
            splits = {
                split: load_table(folder / f"{file}.csv.gz").astype(np.int8)
                for split, file in files.items()
            }
        if self.quick:
            splits = {split: rows[:500] for split, rows in splits.items()}
        return splits
