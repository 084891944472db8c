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
from benchmarks.timing import Runner, Settings, race

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
    """Time every family against both axes."""
    curves = []
    for family, make in (FAMILIES if families is None else families).items():

        def of_units(size: int, make: Any = make) -> Runner:
            return PureSweep(make(size), FIXED_CHAINS, settings.seed)

        def of_chains(size: int, make: Any = make) -> Runner:
            return PureSweep(make(FIXED_UNITS), size, settings.seed)

        for axis, sizes, fixed, runner in (
            ("units", units, f"{FIXED_CHAINS} chains", of_units),
            ("chains", chains, f"{FIXED_UNITS} units", of_chains),
        ):
            bare = Curve(family, axis, fixed, list(sizes), [])
            curves.append(time_curve(bare, runner, settings, report))
    return curves


def time_curve(
    bare: Curve,
    make: Callable[[int], Runner],
    settings: Settings,
    report: Callable[[str], None],
) -> Curve:
    """Return a curve with its times: few short rounds per size, since a slope is wanted."""
    settings = dataclasses.replace(settings, rounds=3, min_seconds=0.02)
    seconds = [race({"ours": make(size)}, settings)["ours"].spread.median for size in bare.sizes]
    curve = dataclasses.replace(bare, seconds=seconds)
    report(f"{curve.family} against {curve.axis}: exponent {curve.exponent:.2f}")
    return curve


def draw(curves: list[Curve], path: Path, title: str, of_what: str = "sweep of all chains") -> None:
    """Write the picture: a panel for each axis."""
    from matplotlib.figure import Figure

    axes = list(dict.fromkeys(curve.axis for curve in curves))
    figure = Figure(figsize=(5 * len(axes), 4.2), layout="constrained")
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        some = [curve for curve in curves if curve.axis == axis]
        for curve, marker in zip(some, itertools.cycle("osD^v"), strict=False):
            panel.loglog(
                curve.sizes,
                np.array(curve.seconds) * 1e6,
                marker=marker,
                label=f"{curve.family}: exponent {curve.exponent:.2f}",
            )
        panel.set_xlabel(f"{axis} ({some[0].fixed})")
        panel.set_xscale("log", base=2)
        panel.grid(visible=True, alpha=0.3)
        panel.legend(fontsize="small", title="fitted to the larger half", title_fontsize="small")
    panels[0].set_ylabel(f"time of one {of_what} (µs)")
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=110)
