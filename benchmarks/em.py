"""EM for Gaussian mixtures against scikit-learn: the same start, the same number of steps."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import pgm_energy as pgm
from benchmarks.peers import Missing, require
from benchmarks.results import Line, Target, judged
from benchmarks.timing import Runner, Settings, race

#: Steps of a call; both libraries then make one more E-step.
STEPS = 20
#: How far apart the log-likelihoods may be, nats per row, after as many steps in float32.
TOLERANCE = 1e-4


@functools.cache
def rows(seed: int, num_rows: int, num_columns: int, num_components: int) -> np.ndarray:
    """Draws from correlated normal laws that overlap, in float32."""
    rng = np.random.default_rng(seed)
    means = 2.0 * rng.normal(size=(num_components, num_columns))
    # singular values of about 0.5 to 1.5: no variance near the floor that float32 needs
    tilt = 0.5 / np.sqrt(num_columns)
    mixing = rng.normal(size=(num_components, num_columns, num_columns))
    mixing = np.eye(num_columns) + tilt * mixing
    label = rng.integers(num_components, size=num_rows)
    noise = rng.normal(size=(num_rows, num_columns))
    found = means[label]
    for k in range(num_components):
        found[label == k] += noise[label == k] @ mixing[k].T
    return found.astype(np.float32)


class Ours:
    """``pgm_energy.EM`` as its users call it."""

    def __init__(self, data: np.ndarray, start: pgm.GaussianMixture) -> None:
        self._data, self._start = data, start
        self.log_likelihood = np.nan

    def prepare(self, num_sweeps: int) -> Callable[[int], None]:
        em = pgm.EM(max_steps=num_sweeps, tol=0.0)

        def call(seed: int) -> None:
            key = jax.random.key(seed)
            found = em.run(key, self._start, self._data, progress_bar=False)
            jax.block_until_ready(found.model)
            # what the peer tells is that of the parameters before its last step
            self.log_likelihood = found.history[-2] / len(self._data)

        call(0)
        return call


class Peer:
    """scikit-learn's ``GaussianMixture`` from the same start."""

    def __init__(self, data: np.ndarray, start: pgm.GaussianMixture) -> None:
        self._data, self._start = data, start
        self._class = require("sklearn.mixture").GaussianMixture
        self.log_likelihood = np.nan

    def prepare(self, num_sweeps: int) -> Callable[[int], None]:
        kind = self._start.covariance_type
        covariances = np.asarray(self._start.covariances, np.float64)
        if kind in ("full", "tied"):
            precisions = np.linalg.inv(covariances)
            precisions = 0.5 * (precisions + np.swapaxes(precisions, -1, -2))
        else:
            precisions = 1.0 / covariances
        weights = np.asarray(self._start.weights, np.float64)
        settings: dict[str, Any] = {
            "n_components": self._start.num_components,
            "covariance_type": kind,
            "tol": 0.0,
            "reg_covar": 0.0,
            "max_iter": num_sweeps,
            "weights_init": weights / weights.sum(),
            "means_init": np.asarray(self._start.means),
            "precisions_init": precisions,
        }

        def call(seed: int) -> None:
            peer = self._class(random_state=seed, **settings)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it was told not to converge
                peer.fit(self._data)
            self.log_likelihood = float(peer.lower_bound_)

        return call  # nothing is compiled, and a call takes seconds


class _Fixed:
    """A runner whose calls make a fixed number of steps: they are long enough."""

    def __init__(self, runner: Ours | Peer) -> None:
        self.runner = runner

    def prepare(self, num_sweeps: int) -> Callable[[int], None]:
        del num_sweeps
        return self.runner.prepare(STEPS)


@dataclasses.dataclass(frozen=True)
class EMRace:
    """One row of the table: steps of EM per second, ours against scikit-learn's, float32."""

    num_rows: int
    num_columns: int
    num_components: int
    covariance_type: str
    target: Target

    @property
    def name(self) -> str:
        return f"em-{self.covariance_type}-{self.num_columns}"

    def __call__(self, settings: Settings) -> list[Line]:
        """Check that both arrive at the same likelihood, then race."""
        count = self.num_rows // (10 if settings.quick else 1)
        data = rows(settings.seed, count, self.num_columns, self.num_components)
        start = pgm.GaussianMixture.init(
            settings.key(1),
            num_components=self.num_components,
            data=data,
            covariance_type=self.covariance_type,
        )
        work = (
            f"EM, {count:,} x {self.num_columns}, {self.num_components} "
            f"{self.covariance_type} covariances, {STEPS} steps, float32"
        )
        line = Line(
            self.name,
            work,
            "ms/step",
            None,
            "scikit-learn",
            ratio_of="faster than",
            target=self.target,
        )
        try:
            ours, theirs = Ours(data, start), Peer(data, start)
        except Missing as error:
            return [dataclasses.replace(line, verdict="not installed", problem=str(error))]
        runners: dict[str, Runner] = {"ours": _Fixed(ours), "scikit-learn": _Fixed(theirs)}
        # calls of a fixed length, which is long enough: seconds, so that few must do
        settings = dataclasses.replace(settings, rounds=min(settings.rounds, 3), min_seconds=0.0)
        times = race(runners, settings)
        gap = abs(ours.log_likelihood - theirs.log_likelihood)
        checked = f"log-likelihoods {gap:.1e} nats per row apart after {STEPS} steps"
        if not gap <= TOLERANCE:
            return [dataclasses.replace(line, verdict="wrong", problem=checked)]
        scale = 1e3 / STEPS  # the race counts a call as one
        return [
            judged(
                dataclasses.replace(
                    line,
                    ours=times["ours"].spread.scaled(scale),
                    theirs=times["scikit-learn"].spread.scaled(scale),
                    ratio=times["scikit-learn"].ratio(times["ours"]),
                    checked=checked,
                )
            )
        ]


def em_cases() -> list[EMRace]:
    """The rows of the table that are about EM."""
    return [
        EMRace(100_000, 16, 16, "full", Target(8, ">=")),
        EMRace(100_000, 32, 16, "full", Target(8, ">=")),
        EMRace(100_000, 16, 16, "diag", Target(4, ">=")),
        EMRace(100_000, 32, 16, "diag", Target(4, ">=")),
    ]
