"""``python -m benchmarks``: the table on screen, ``benchmarks.json`` and pictures of growth."""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import jax
import typer
from rich.console import Console

from benchmarks import cases, growth, growth_learning, results, table
from benchmarks.floors import measure_limits
from benchmarks.results import Line
from benchmarks.timing import Settings
from pgm_energy._jobs import make_folder

ROOT = Path(__file__).resolve().parents[1]
GROWTH, GROWTH_LEARNING = "growth", "growth-learning"
PICTURES = {
    GROWTH: "Time of a sweep against units and against chains, log-log, with fitted exponents",
    GROWTH_LEARNING: "Time of an EM step against rows and components, of an update of PCD against "
    "hidden units and of annealing against chains, log-log, with fitted exponents",
}


def run(
    chosen: dict[str, cases.Case], settings: Settings, console: Console
) -> tuple[list[Line], bool]:
    """Run cases one after another; return their lines, and whether everything was right.

    A case that breaks is reported and the others go on.
    """
    lines: list[Line] = []
    for name, case in chosen.items():
        start = time.perf_counter()
        try:
            found = case(settings)
        except Exception as error:  # its traceback is for the person, the others go on
            console.print_exception()
            problem = f"{type(error).__name__}: {error}"
            found = [Line(name, name, "", None, verdict="failed", problem=problem)]
        lines += found
        worst = next((one.verdict for one in found if one.verdict in {"wrong", "failed"}), "done")
        console.print(f"{name}: {worst} in {time.perf_counter() - start:.0f} s", highlight=False)
        jax.clear_caches()
        gc.collect()
    broken = any(line.verdict in {"wrong", "failed"} for line in lines if not is_peer(line))
    return lines, not broken


def is_peer(line: Line) -> bool:
    """Whether the trouble of a line is that a peer broke here: reported, but not our failure."""
    return line.verdict == "failed" and bool(line.against)


def main(
    only: Annotated[
        list[str] | None, typer.Option(help="Run these rows only (repeat it); --list shows them.")
    ] = None,
    quick: Annotated[
        bool, typer.Option(help="Few rounds, small checks: a look, no figure.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the results; by default runs/bench-001, ...")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of models, draws and checks.")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="How often each contestant is timed.")] = 9,
    write_docs: Annotated[
        bool, typer.Option(help="Write table and picture into docs/performance.md.")
    ] = False,
    show_list: Annotated[bool, typer.Option("--list", help="List the rows and stop.")] = False,
) -> None:
    """Measure pgm_energy against its peers and against what this machine can do at most.

    Every kernel is held against an exact law before it is timed. Fails (status 1) when a kernel is
    wrong or a row breaks, never because something is slow.
    """
    every = cases.all_cases()
    names = [*every, GROWTH, GROWTH_LEARNING]
    console = Console(width=None if sys.stdout.isatty() else 160)
    if show_list:
        console.print("\n".join(names))
        return
    unknown = sorted(set(only or ()) - set(names))
    if unknown:
        raise typer.BadParameter(f"no row {', '.join(unknown)}; there are: {', '.join(names)}")
    if write_docs and (only or quick):
        raise typer.BadParameter("--write-docs is for the whole run, without --only and --quick")
    settings = Settings(seed=seed, rounds=3 if quick else rounds, quick=quick)
    folder = make_folder(output, "bench", force=True)

    machine = results.machine()
    chosen = {name: case for name, case in every.items() if not only or name in only}
    lines, right = run(chosen, settings, console)
    limits = measure_limits(jax.default_backend() != "cpu")
    report: dict[str, Any] = {
        "machine": machine,
        "settings": dataclasses.asdict(settings),
        "limits": dataclasses.asdict(limits),
        "lines": [line.to_json() for line in lines],
    }
    wanted = [name for name in (GROWTH, GROWTH_LEARNING) if not only or name in only]
    where = f"{machine['processor']}, {machine['device']}"
    report["growth"] = [
        curve.to_json() for name in wanted for curve in grow(name, settings, console, folder, where)
    ]
    (folder / "benchmarks.json").write_text(json.dumps(report, indent=1) + "\n")
    if lines:
        where = f"{machine['processor']}, {machine['cores']} cores, {machine['device']}"
        table.show(console, lines, f"pgm_energy on {where}")
    if write_docs:
        to_docs(lines, report, folder)
    console.print(f"wrote {folder}", highlight=False)
    if not right:
        console.print("[bold red]something is wrong: see above[/]")
        sys.exit(1)


def grow(
    name: str, settings: Settings, console: Console, folder: Path, where: str
) -> list[growth.Curve]:
    """Measure the curves of a name, and draw them."""
    start = time.perf_counter()

    def tell(text: str) -> None:
        console.print(text, highlight=False)

    every = 2 if settings.quick else 1
    if name == GROWTH:
        curves = growth.measure(settings, tell, growth.UNITS[::every], growth.CHAINS[::every])
        growth.draw(curves, folder / f"{name}.png", where)
    else:
        curves = growth_learning.measure(settings, tell, every=every)
        growth.draw(curves, folder / f"{name}.png", where, "step, update or beta")
    tell(f"{name}: done in {time.perf_counter() - start:.0f} s")
    return curves


def to_docs(lines: list[Line], report: dict[str, Any], folder: Path) -> None:
    """Write a run into the documentation: CPU and accelerator each have a section."""
    name = "cpu" if report["machine"]["backend"] == "cpu" else "accelerator"
    pictures = {}
    for kind, what in PICTURES.items():
        picture = ROOT / "docs" / "_static" / f"{kind}-{name}.png"
        picture.write_bytes((folder / f"{kind}.png").read_bytes())
        pictures[f"_static/{picture.name}"] = what
    text = table.section(lines, report, pictures)
    table.write_section(ROOT / "docs" / "performance.md", name, text)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app(prog_name="python -m benchmarks")
