"""A sweep of ours against peers and floors: every contestant is checked, then they take turns."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

import pgm_energy as pgm
from benchmarks import gate
from benchmarks.floors import Cost
from benchmarks.peers import Missing
from benchmarks.results import Line, Target, Verdict, judged
from benchmarks.timing import Runner, Settings, Spread, Timed, race

Make = Callable[[Any, int, int], Any]  # (model, num_chains, seed) -> runner


@dataclasses.dataclass(frozen=True)
class Other:
    """A peer (faster than it by ...) or a floor (times as long as ...) with its target."""

    name: str
    make: Make
    role: Literal["peer", "floor"] = "peer"
    target: Target | None = None


@functools.cache
def examine(
    make: Make,
    small: Callable[[int], pgm.EnergyModel],
    num_chains: int,
    num_sweeps: int,
    seed: int,
) -> str:
    """Hold a contestant against the exact law of a small model; once per kind of both.

    Raises
    ------
    WrongKernel
        With the numbers.
    """
    model = small(seed)
    runner = make(model, num_chains, seed)
    texts = [gate.check_runner(runner, model, seed + 1, num_sweeps)]
    kernel = getattr(runner, "kernel", None)
    if hasattr(kernel, "transition_log_prob"):
        texts.append(gate.check_exactly(kernel, model, jax.random.key(seed)))
    return "; ".join(texts)


@dataclasses.dataclass(frozen=True)
class SweepRace:
    """One row of the benchmark: a model, our kernel, and what it is held against.

    ``small`` makes models of the same family with a known law. ``rate``: also print updates per
    nanosecond against this target. Floors are alternatives: the fastest of them counts.
    """

    name: str
    work: str
    model: Callable[[int], pgm.EnergyModel]
    small: Callable[[int], pgm.EnergyModel]
    num_chains: int
    ours: Make
    others: tuple[Other, ...] = ()
    rate: Target | None = None
    unit: Literal["ns/update", "us/sweep"] = "ns/update"
    gate_chains: int = 20_000
    gate_sweeps: int = 48

    def __call__(self, settings: Settings) -> list[Line]:
        """Check, race and tabulate."""
        chains = self.gate_chains // (4 if settings.quick else 1)
        try:
            checked = examine(self.ours, self.small, chains, self.gate_sweeps, settings.seed)
        except gate.WrongKernel as error:
            return [self._line(None, verdict="wrong", problem=str(error))]
        model = self.model(settings.seed)
        runners: dict[str, Runner] = {"ours": self.ours(model, self.num_chains, settings.seed)}
        trouble: dict[str, Line] = {}
        for other in self.others:
            try:
                if other.role == "peer":
                    examine(other.make, self.small, chains // 2, self.gate_sweeps, settings.seed)
                runners[other.name] = other.make(model, self.num_chains, settings.seed)
            except Missing as error:
                gone = str(error) == "not installed"
                trouble[other.name] = self._absent(
                    other, "not installed" if gone else "failed", str(error)
                )
            except gate.WrongKernel as error:
                trouble[other.name] = self._absent(other, "wrong", str(error))
            except Exception as error:  # a peer that breaks must not end the run
                trouble[other.name] = self._absent(
                    other, "failed", f"{type(error).__name__}: {error}"
                )
        times = race(runners, settings)
        try:
            blocks = getattr(runners["ours"], "blocks", None)
            if blocks is not None:
                values = runners["ours"].values()
                checked += "; " + gate.check_last_block(model, values, blocks)
        except gate.WrongKernel as error:
            return [self._line(None, verdict="wrong", problem=str(error))]
        return self._lines(model, times, trouble, checked)

    def _lines(
        self,
        model: pgm.EnergyModel,
        times: Mapping[str, Timed],
        trouble: Mapping[str, Line],
        checked: str,
    ) -> list[Line]:
        ours, units = times["ours"], self._units(model)
        cost = Cost.of(model, self.num_chains)
        costs = {**dataclasses.asdict(cost), "seconds": ours.spread.median}
        lines = []
        floors = [o for o in self.others if o.role == "floor" and o.name in times]
        fastest = min(floors, key=lambda o: times[o.name].spread.median, default=None)
        for other in self.others:
            if other.name in trouble:
                bare = trouble[other.name]
                lines.append(dataclasses.replace(bare, ours=self._figure(ours, units)))
                continue
            if other.role == "floor" and other is not fastest:
                continue
            theirs = times[other.name]
            ratio = ours.ratio(theirs) if other.role == "floor" else theirs.ratio(ours)
            lines.append(
                judged(
                    self._line(
                        self._figure(ours, units),
                        other.name,
                        theirs=self._figure(theirs, units),
                        ratio=ratio,
                        ratio_of="times as long as" if other.role == "floor" else "faster than",
                        target=other.target,
                        checked=checked,
                        costs=costs,
                    )
                )
            )
        if self.rate is not None or not self.others:
            rate = Spread.of(units / ours.seconds * 1e-9)
            lines.append(
                judged(
                    dataclasses.replace(
                        self._line(rate, checked=checked, target=self.rate, costs=costs),
                        unit="updates/ns",
                    )
                )
            )
        return lines

    def _units(self, model: pgm.EnergyModel) -> int:
        return self.num_chains * sum(site.size for site in model.sites.values())

    def _figure(self, timed: Timed, units: int) -> Spread:
        scale = 1e9 / units if self.unit == "ns/update" else 1e6
        return timed.spread.scaled(scale)

    def _absent(self, other: Other, verdict: Verdict, problem: str) -> Line:
        target = other.target
        return self._line(None, other.name, target=target, verdict=verdict, problem=problem)

    def _line(self, ours: Spread | None, against: str = "", **fields: Any) -> Line:
        return Line(self.name, self.work, self.unit, ours, against, **fields)
