"""What a benchmark leaves behind: lines of the table, and what each was measured on."""

from __future__ import annotations

import dataclasses
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import jax

from benchmarks.peers import versions
from benchmarks.timing import Spread

Verdict = Literal["reached", "missed", "wrong", "failed", "not installed", "no target", ""]


@dataclasses.dataclass(frozen=True)
class Target:
    """What a figure must reach: a ratio or a value, from below or above."""

    bound: float
    sense: Literal["<=", ">="]
    unit: str = "x"

    def __str__(self) -> str:
        return f"{self.sense} {self.bound:g} {self.unit}".replace(" x", "x")

    def reached(self, value: float) -> bool:
        return value <= self.bound if self.sense == "<=" else value >= self.bound


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the table: a figure of ours against another or against a target.

    ``ratio``: how many times faster than a peer, or how many times longer than a floor takes
    (``ratio_of`` says which), taken round by round. ``problem`` says why a figure is missing.
    """

    case: str
    work: str
    unit: str
    ours: Spread | None
    against: str = ""
    theirs: Spread | None = None
    ratio: Spread | None = None
    ratio_of: Literal["faster than", "times as long as", ""] = ""
    target: Target | None = None
    verdict: Verdict = "no target"
    checked: str = ""
    problem: str = ""
    costs: dict[str, float] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        found = dataclasses.asdict(self)
        found["target"] = None if self.target is None else str(self.target)
        return found


def judged(line: Line) -> Line:
    """Return the line with its verdict: of the ratio if there is one, else of the value."""
    if line.target is None or line.ours is None or line.problem:
        return line
    figure = line.ratio if line.target.unit == "x" else line.ours
    assert figure is not None
    reached = line.target.reached(figure.median)
    return dataclasses.replace(line, verdict="reached" if reached else "missed")


def machine() -> dict[str, Any]:
    """Say what the figures were measured on; no names of hosts or users."""
    device = jax.devices()[0]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "backend": jax.default_backend(),
        "device": device.device_kind,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_before": load,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": versions(),
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
