"""How the time of a sweep grows with units and chains: a picture with the fitted exponents."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import pgm_energy as pgm
from benchmarks import models
from benchmarks.ours import PureSweep
from benchmarks.timing import Settings, race

UNITS = (64, 128, 256, 512, 1024, 2048, 4096)
CHAINS = (1, 4, 16, 64, 256, 1024, 4096)

#: What is held fixed while the other grows.
FIXED_CHAINS, FIXED_UNITS = 64, 256


def _torus(units: int) -> pgm.EnergyModel:
    rows = 2 ** (int(np.log2(units)) // 2)
    return pgm.ising_lattice((rows, units // rows), coupling=0.4)


FAMILIES: dict[str, Callable[[int], pgm.EnergyModel]] = {
    "RBM, half the units hidden": lambda units: models.rbm(0, units // 2, units // 2),
    "dense Boltzmann machine": lambda units: models.dense(0, units),
    "Ising torus": _torus,
}


@dataclasses.dataclass(frozen=True)
class Curve:
    """Median seconds per sweep of all chains, and the exponent over the upper half of the sizes.

    Small sizes are bound by the fixed cost of a step, which would flatter the exponent.
    """

    family: str
    axis: str
    fixed: str
    sizes: list[int]
    seconds: list[float]

    @property
    def exponent(self) -> float:
        upper = slice(len(self.sizes) // 2, None)
        x, y = np.log(self.sizes)[upper], np.log(self.seconds)[upper]
        if len(x) < 2:
            return float("nan")
        return float(np.polyfit(x, y, 1)[0])

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "exponent": self.exponent}


def measure(
    settings: Settings,
    report: Callable[[str], None],
    units: tuple[int, ...] = UNITS,
    chains: tuple[int, ...] = CHAINS,
    families: dict[str, Callable[[int], pgm.EnergyModel]] | None = None,
) -> list[Curve]:
    """Time every family against both axes; few short rounds each, since a slope is wanted."""
    settings = dataclasses.replace(settings, rounds=3, min_seconds=0.02)
    curves = []
    for family, make in (FAMILIES if families is None else families).items():
        for axis, sizes in (("units", units), ("chains", chains)):
            seconds = []
            for size in sizes:
                model = make(size if axis == "units" else FIXED_UNITS)
                runner = PureSweep(model, FIXED_CHAINS if axis == "units" else size, settings.seed)
                seconds.append(race({"ours": runner}, settings)["ours"].spread.median)
            fixed = f"{FIXED_CHAINS} chains" if axis == "units" else f"{FIXED_UNITS} units"
            curves.append(Curve(family, axis, fixed, list(sizes), seconds))
            report(f"{family} against {axis}: exponent {curves[-1].exponent:.2f}")
    return curves


def draw(curves: list[Curve], path: Path, title: str) -> None:
    """Write the picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, axis in zip(panels, ("units", "chains"), strict=True):
        some = [curve for curve in curves if curve.axis == axis]
        for curve, marker in zip(some, itertools.cycle("osD^v"), strict=False):
            panel.loglog(
                curve.sizes,
                np.array(curve.seconds) * 1e6,
                marker=marker,
                label=f"{curve.family}: exponent {curve.exponent:.2f}",
            )
        panel.set_xlabel(f"{axis} ({some[0].fixed})" if some else axis)
        panel.set_xscale("log", base=2)
        panel.grid(visible=True, alpha=0.3)
        if some:
            panel.legend(
                fontsize="small", title="fitted to the larger half", title_fontsize="small"
            )
    panels[0].set_ylabel("time of one sweep of all chains (µs)")
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=110)
