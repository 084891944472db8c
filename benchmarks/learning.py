"""``python -m benchmarks.learning``: figures on real data, held against published ones.

One row per figure. Settings stand in :data:`ROWS`; they were chosen on the validation rows alone.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import jax
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks import results
from benchmarks.against_sklearn import Features, Mixture
from benchmarks.densities import Density, ExactDensity
from benchmarks.figures import Context, Goal, MissingData, Outcome
from benchmarks.table import COLOURS, write_section
from pgm_energy._jobs import make_folder

ROOT = Path(__file__).resolve().parents[1]
HEADINGS = (
    "data, model",
    "learned by",
    "train",
    "validation",
    "test",
    "log Z",
    "target",
    "training",
    "evaluation",
)
EXPLANATION = (
    "Nats per row; in square brackets the likelihood at the upper and at the lower bracket of log "
    "Z. Seconds: elapsed (of all cores)."
)

Row = Density | ExactDensity | Features | Mixture

#: Log-likelihood per row on the test rows of NLTCS at the maximum on the training rows.
NLTCS = -6.02841

ROWS: tuple[Row, ...] = (
    ExactDensity(
        "nltcs-exact",
        "nltcs",
        num_epochs=300,
        published=NLTCS,
        goals=(Goal.most(f"distance from {NLTCS}", 1e-4),),
    ),
    Density(
        "nltcs-bm",
        "nltcs",
        num_hidden=0,
        num_epochs=40,
        learning_rate=0.01,
        num_chains=1024,
        num_sweeps=5,
        goals=(Goal.least("test", -6.0284 - 0.005),),
    ),
    Density(
        "nltcs-rbm",
        "nltcs",
        num_hidden=24,
        num_epochs=120,
        learning_rate=0.01,
        num_chains=1000,
        num_sweeps=2,
        goals=(Goal.least("test", NLTCS),),
    ),
    Density(
        "mnist-20",
        "binarized_mnist",
        num_hidden=20,
        num_epochs=20,
        learning_rate=0.01,
        num_chains=128,
        takes="averaged",
        goals=(Goal.least("test", -137.8), Goal.most("training seconds", 60, "s")),
    ),
    Density(
        "mushrooms-rbm",
        "mushrooms",
        num_hidden=100,
        num_epochs=400,
        learning_rate=0.01,
        weight_decay=5e-4,
        num_chains=200,
        num_sweeps=5,
        takes="averaged",
        num_betas=30_000,
        goals=(Goal.least("test", -15.15), Goal.least("test", -10.5, is_stretch=True)),
    ),
    Density(
        "dna-rbm",
        "dna",
        num_hidden=50,
        num_epochs=60,
        learning_rate=0.005,
        weight_decay=4e-3,
        num_betas=2000,
        goals=(Goal.least("test", -96.9),),
    ),
    Features(
        "digits-features",
        num_hidden=100,
        num_epochs=5,
        learning_rate=0.3,
        batch_size=50,
        num_chains=50,
        goals=(
            Goal.least("accuracy", 0.942, ""),
            Goal.most("share of scikit-learn's seconds", 1 / 3, ""),
        ),
    ),
    Mixture(
        "iris-2",
        "iris",
        2,
        "full",
        published=-214.3547,
        goals=(
            Goal.most("distance from -214.3547", 1e-3),
            Goal.least("total less scikit-learn's", -1e-3),
        ),
    ),
    Mixture(
        "iris-3",
        "iris",
        3,
        "full",
        published=-180.1855,
        goals=(
            Goal.most("distance from -180.1855", 1e-3),
            Goal.least("total less scikit-learn's", -1e-3),
        ),
    ),
    Mixture(
        "wine-3",
        "wine",
        3,
        "diag",
        goals=(Goal.least("total less scikit-learn's", -1e-3),),
    ),
    Density(
        "mnist-500",
        "binarized_mnist",
        num_hidden=500,
        num_epochs=100,
        learning_rate=0.15,
        optimizer="sgd",
        weight_decay=1e-4,
        num_chains=256,
        takes="averaged",
        takes_validation=True,
        num_betas=120_000,
        goals=(
            Goal.least("test by AIS", -86.34),
            Goal.least("test", -88.0),
            Goal.least("test", -84.8, is_stretch=True),
            Goal.most("minutes in all", 30, "min"),
        ),
    ),
)


# ---- the command ---------------------------------------------------------------------------------


def run(rows: tuple[Row, ...], context: Context, folder: Path, console: Console) -> list[Outcome]:
    """Run rows one after another; each is written down when it is done.

    A row that breaks is reported and the others go on. One that was done before with the same
    settings, into the same folder, is taken from there.
    """
    outcomes: list[Outcome] = []
    for row in rows:
        settings = {
            "seed": context.seed,
            "quick": context.quick,
            "settings": {k: v for k, v in dataclasses.asdict(row).items() if k != "goals"},
        }
        file = folder / f"{row.name}.json"
        found = kept(file, row, settings)
        if found is None:
            machine = results.machine()
            found = attempt(row, context, console)
            report = {**settings, "machine": machine, "outcome": found.to_json()}
            file.write_text(json.dumps(report, indent=1) + "\n")
            jax.clear_caches()
            gc.collect()
        outcomes.append(found)
        console.print(f"{row.name}: {found.verdict}", *found.remarks, sep="\n  ", highlight=False)
    return outcomes


def attempt(row: Row, context: Context, console: Console) -> Outcome:
    """Run a row; say why if there is no figure."""
    try:
        return row(context)
    except MissingData as error:
        return Outcome(row.name, row.work, row.settings, problem=str(error))
    except Exception as error:  # its traceback is for the person, the others go on
        console.print_exception()
        problem = f"{type(error).__name__}: {error}"
        return Outcome(row.name, row.work, row.settings, problem=problem)


def kept(file: Path, row: Row, settings: dict[str, Any]) -> Outcome | None:
    """Return what an earlier run with the same settings left, if it left a figure."""
    if not file.exists():
        return None
    found = json.loads(file.read_text())
    same = all(found.get(key) == json.loads(json.dumps(value)) for key, value in settings.items())
    if not same or found["outcome"]["problem"]:
        return None
    return Outcome.from_json(found["outcome"], row.goals)


def show(console: Console, outcomes: list[Outcome]) -> None:
    """Print the table."""
    table = Table(title="Learned from data", caption=EXPLANATION, title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold")
    for outcome in outcomes:
        colour = COLOURS.get(outcome.verdict)
        cells = [escape(cell) for cell in outcome.cells()]
        place = HEADINGS.index("target")
        cells[place] = f"[{colour}]{cells[place]}[/]" if colour else cells[place]
        table.add_row(*cells)
    console.print(table)


def section(outcomes: list[Outcome], machine: dict[str, Any], seed: int) -> str:
    """Return what a run writes into the documentation."""
    versions = ", ".join(
        f"{name} {machine['versions'][name]}"
        for name in ("jax", "numpyro", "scikit-learn")
        if name in machine["versions"]
    )
    load = machine["load_before"]
    busy = "" if load is None else f", load up to {load:.1f}"
    rows = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    rows += [
        "| " + " | ".join(cell.replace("|", "/") for cell in outcome.cells()) + " |"
        for outcome in outcomes
    ]
    remarks = [
        f"- {outcome.row}: {' '.join(outcome.remarks)}" for outcome in outcomes if outcome.remarks
    ]
    return "\n\n".join(
        [
            f"Measured {machine['date']} on {machine['processor']}, {machine['cores']} cores, "
            f"{machine['system']}, Python {machine['python']}{busy}, seed {seed}. {versions}.",
            "\n".join(rows),
            "\n".join(remarks),
        ]
    )


def main(
    only: Annotated[
        list[str] | None, typer.Option(help="Run these rows only (repeat it); --list shows them.")
    ] = None,
    quick: Annotated[
        bool, typer.Option(help="One epoch, few rows and betas: a look, no figure.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the results, by default runs/learning-001, ...; rows that are there "
            "already, with the same settings, are kept."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the data sets; by default PGM_ENERGY_DATA or ../shared/data."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of starts, chains and estimates.")] = 0,
    write_docs: Annotated[bool, typer.Option(help="Write the table into docs/results.md.")] = False,
    show_list: Annotated[bool, typer.Option("--list", help="List the rows and stop.")] = False,
) -> None:
    """Learn models from real data and hold their likelihoods against published ones.

    A figure counts with an exact log Z, or at its upper bracket. Rows whose data are absent are
    skipped. Fails (status 1) when a row breaks, never because a figure is missed.
    """
    console = Console(width=None if sys.stdout.isatty() else 200)
    names = [row.name for row in ROWS]
    if show_list:
        console.print("\n".join(names))
        return
    unknown = sorted(set(only or ()) - set(names))
    if unknown:
        raise typer.BadParameter(f"no row {', '.join(unknown)}; there are: {', '.join(names)}")
    if write_docs and (only or quick):
        raise typer.BadParameter("--write-docs is for the whole run, without --only and --quick")
    default = os.environ.get("PGM_ENERGY_DATA", ROOT.parent / "shared" / "data")
    folder = make_folder(output, "learning", force=True)
    context = Context(Path(data or default), seed, quick, folder)
    machine = results.machine()
    chosen = tuple(row for row in ROWS if not only or row.name in only)
    outcomes = run(chosen, context, folder, console)
    show(console, outcomes)
    written = [json.loads((folder / f"{row.name}.json").read_text()) for row in chosen]
    loads = [one["machine"]["load_before"] for one in written]
    machine["load_before"] = max((load for load in loads if load is not None), default=None)
    report = {
        "machine": machine,
        "seed": seed,
        "quick": quick,
        "outcomes": [outcome.to_json() for outcome in outcomes],
    }
    (folder / "results.json").write_text(json.dumps(report, indent=1) + "\n")
    if write_docs:
        write_section(ROOT / "docs" / "results.md", "learning", section(outcomes, machine, seed))
    console.print(f"wrote {folder}", highlight=False)
    if any(outcome.verdict == "failed" for outcome in outcomes):
        console.print("[bold red]something broke: see above[/]")
        sys.exit(1)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app(prog_name="python -m benchmarks.learning")
