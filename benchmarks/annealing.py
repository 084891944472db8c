"""Annealed importance sampling against the matrix products that it cannot do without."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from scipy import stats

import pgm_energy as pgm
from benchmarks import floors, models
from benchmarks.floors import Cost
from benchmarks.gate import ALPHA, WrongKernel
from benchmarks.results import Line, Target, judged
from benchmarks.timing import Settings, race
from pgm_energy.partition.path import CHUNK, Path, draw_independent


class Annealing:
    """The walk of ``log_partition`` along betas, weights included, as its users run it."""

    def __init__(self, model: pgm.RBM, num_chains: int, seed: int) -> None:
        rows = np.random.default_rng(seed).integers(0, 2, (50, model.sites["v"].size))
        base = pgm.Independent.like(model, rows)
        self.path = Path.between(base, model)
        self.state = draw_independent(jax.random.key(seed), base, num_chains)

    def prepare(self, num_sweeps: int) -> Callable[[int], float]:
        """Return a call that walks whole parts and tells the seconds of ``num_sweeps``."""
        steps = -(-num_sweeps // CHUNK) * CHUNK
        betas = np.linspace(0.0, 1.0, steps + 1)

        def call(seed: int) -> float:
            start = time.perf_counter()
            self.state, _ = self.path.walk(jax.random.key(seed), self.state, betas)
            jax.block_until_ready(self.state)
            return (time.perf_counter() - start) * num_sweeps / steps

        call(0)
        return call


def check(settings: Settings) -> str:
    """Hold estimates of small machines against their exact log Z.

    Raises
    ------
    WrongKernel
        If the mean of several is further from the truth than their errors allow, or a bracket
        misses it.
    """
    scores = []
    for number in range(2 if settings.quick else 5):
        model = models.rbm(settings.seed + number, 12, 8)
        truth = pgm.log_partition(model, method="exact").estimate
        z = pgm.log_partition(model, settings.key(number), "ais", num_chains=200, num_betas=201)
        scores.append((z.estimate - truth) / z.std_error)
        if not z.lower - z.std_error < truth < z.upper + z.std_error:
            raise WrongKernel(f"log Z = {truth:.4f} lies outside of its bracket: {z}")
    score = float(np.sum(scores) / np.sqrt(len(scores)))
    if abs(score) > stats.t.isf(ALPHA / 2, 199):
        raise WrongKernel(f"log Z is {score:.1f} standard errors off over {len(scores)} machines")
    return f"exact log Z: {score:+.1f} standard errors, {len(scores)} machines"


@dataclasses.dataclass(frozen=True)
class AnnealingRace:
    """One beta of all chains, weighed and swept, against its two matrix products."""

    num_visible: int = 784
    num_hidden: int = 500
    num_chains: int = 100
    target: Target = dataclasses.field(default_factory=lambda: Target(1.7, "<="))

    @property
    def name(self) -> str:
        return f"ais-{self.num_visible}x{self.num_hidden}-{self.num_chains}"

    @property
    def work(self) -> str:
        return (
            f"annealed importance sampling, RBM {self.num_visible} x {self.num_hidden}, "
            f"{self.num_chains} chains, one beta"
        )

    def __call__(self, settings: Settings) -> list[Line]:
        """Check, race and tabulate."""
        bare = Line(self.name, self.work, "us/beta", None, "its two products", target=self.target)
        try:
            checked = check(settings)
        except WrongKernel as error:
            return [dataclasses.replace(bare, verdict="wrong", problem=str(error))]
        model = models.rbm(settings.seed, self.num_visible, self.num_hidden)
        products: dict[str, Any] = {
            "its two products": floors.RBMProducts,
            "its two products, chains last": floors.RBMProductsChainsLast,
        }
        runners: dict[str, Any] = {"ours": Annealing(model, self.num_chains, settings.seed)}
        for name, make in products.items():
            runners[name] = make(model, self.num_chains, settings.seed)
        times = race(runners, settings)
        fastest = min(products, key=lambda name: times[name].spread.median)
        cost = dataclasses.asdict(Cost.of(model, self.num_chains))
        return [
            judged(
                dataclasses.replace(
                    bare,
                    ours=times["ours"].spread.scaled(1e6),
                    against=fastest,
                    theirs=times[fastest].spread.scaled(1e6),
                    ratio=times["ours"].ratio(times[fastest]),
                    ratio_of="times as long as",
                    checked=checked,
                    costs={**cost, "seconds": times["ours"].spread.median},
                )
            )
        ]
