"""The table: on screen, in JSON and in the documentation. No figure is typed by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.results import Line
from benchmarks.timing import Spread

HEADINGS = ("work", "unit", "ours", "against", "theirs", "ratio", "target", "verdict")
COLOURS = {"reached": "green", "missed": "yellow", "wrong": "bold red", "failed": "red"}
EXPLANATION = (
    "Medians, quartiles in brackets. A ratio is taken round by round: how many times faster than a "
    "peer, or how many times as long as a floor."
)


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0.0:
        return "0"
    text = f"{value:.3g}"
    return f"{value:,.0f}" if "e" in text or abs(value) >= 1000 else text


def spread(found: Spread | None) -> str:
    if found is None:
        return ""
    return f"{number(found.median)} [{number(found.lower)}, {number(found.upper)}]"


def ratio(line: Line) -> str:
    if line.ratio is None:
        return ""
    word = "x faster" if line.ratio_of == "faster than" else "x as long"
    factor = line.ratio
    if line.ratio_of == "faster than" and factor.median < 1.0:
        word = "x slower"
        factor = Spread(1 / factor.median, 1 / factor.upper, 1 / factor.lower)
    return f"{number(factor.median)}{word} [{number(factor.lower)}, {number(factor.upper)}]"


def cells(line: Line) -> tuple[str, ...]:
    target = "" if line.target is None else str(line.target)
    verdict = line.verdict if line.target is not None or line.problem else ""
    return (
        line.work,
        line.unit,
        spread(line.ours),
        line.against,
        spread(line.theirs) or (line.verdict if line.problem and line.against else ""),
        ratio(line),
        target,
        verdict,
    )


def show(console: Console, lines: Sequence[Line], title: str) -> None:
    """Print the table, and below it what went wrong."""
    table = Table(title=title, caption=EXPLANATION, title_justify="left", caption_justify="left")
    for heading in HEADINGS:
        right = heading in {"ours", "theirs", "ratio", "target"}
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    previous = ""
    for line in lines:
        work, unit, *rest, verdict = cells(line)
        table.add_row(
            "" if work == previous else escape(work),
            escape(unit),
            *(escape(cell) for cell in rest),
            f"[{COLOURS[verdict]}]{verdict}[/]" if verdict in COLOURS else verdict,
            end_section=False,
        )
        previous = work
    console.print(table)
    for line in lines:
        if line.problem and line.verdict != "not installed":
            console.print(f"[red]{escape(line.case)}[/]: {escape(line.problem)}")


def markdown(lines: Sequence[Line]) -> str:
    rows = ["| " + " | ".join(HEADINGS) + " |", "|---|---|---|---|---|---|---|---|"]
    rows += ["| " + " | ".join(c.replace("|", "/") for c in cells(line)) + " |" for line in lines]
    return "\n".join(rows)


def floors_markdown(lines: Sequence[Line], limits: dict[str, float]) -> str:
    """What each sweep needs at least, and how near it comes to the limits of the machine."""
    rows = [
        "| work | operations | bytes | random decisions | least time, arithmetic / memory (µs) | "
        "ours (µs) | arithmetic / memory limit |",
        "|---|---|---|---|---|---|---|",
    ]
    seen = set()
    for line in lines:
        if not line.costs or line.case in seen:
            continue
        seen.add(line.case)
        cost = line.costs
        arithmetic = cost["flops"] / limits["flops"]
        memory = cost["bytes"] / limits["bandwidth"]
        seconds = cost["seconds"]
        rows.append(
            f"| {line.work} | {_si(cost['flops'])} | {_si(cost['bytes'])} | "
            f"{_si(cost['decisions'])} | {number(arithmetic * 1e6)} / {number(memory * 1e6)} | "
            f"{number(seconds * 1e6)} | {arithmetic / seconds:.1%} / {memory / seconds:.1%} |"
        )
    return "\n".join(rows)


def _si(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{number(value / size)} {letter}"
    return number(value)


# ---- documentation ------------------------------------------------------------------------------


def section(lines: Sequence[Line], report: dict[str, Any], pictures: Mapping[str, str]) -> str:
    """Return what a run writes into the documentation; pictures by address, with what they show."""
    machine, limits = report["machine"], report["limits"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    load = machine["load_before"]
    busy = "" if load is None else f", load {load:.1f} before the run"
    device = "" if machine["backend"] == "cpu" else f"{machine['device']}; "
    memory = "" if machine["memory_gib"] is None else f", {machine['memory_gib']:g} GiB"
    parts = [
        f"Measured {machine['date']} on {device}{machine['processor']}, {machine['cores']} cores"
        f"{memory}, {machine['system']}, Python {machine['python']}{busy}, "
        f"seed {report['settings']['seed']}, {report['settings']['rounds']} rounds.",
        f"Versions: {versions}.",
        markdown(lines),
        f"Limits of this machine, measured in the same run: "
        f"{limits['flops'] / 1e9:,.0f} GFLOP/s (float32 product), "
        f"{limits['bandwidth'] / 1e9:,.0f} GB/s (sum of two large arrays), "
        f"{limits['random_words'] / 1e9:.2g} random words of 32 bits per ns "
        "(`jax.random.bits`).",
        floors_markdown(lines, limits),
    ]
    parts += [f"```{{image}} {name}\n:alt: {what}\n```" for name, what in pictures.items()]
    return "\n\n".join(parts)


def write_section(page: Path, name: str, text: str) -> None:
    """Replace what lies between the two markers of a name.

    Raises
    ------
    ValueError
        If the page does not have exactly one pair of them.
    """
    begin, end = f"<!-- benchmark {name}: begin -->", f"<!-- benchmark {name}: end -->"
    found = page.read_text()
    if found.count(begin) != 1 or found.count(end) != 1:
        raise ValueError(f"{page} must have one line {begin!r} and one line {end!r}")
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), flags=re.DOTALL)
    page.write_text(pattern.sub(lambda _: f"{begin}\n\n{text}\n\n{end}", found))
