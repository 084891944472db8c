"""The command line: compare, train, sample, evaluate."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

__all__ = ["app"]

app = typer.Typer(
    name="pgm-energy",
    help="Energy-based models for NumPyro: train, sample, diagnose, compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Model(StrEnum):
    """Models that the command line trains."""

    rbm = "rbm"
    bm = "bm"
    gmm = "gmm"


_DATA_HELP = (
    "Rows to use: .npy, .npz, .csv, .csv.gz or idx.gz. Default: scikit-learn's digits (gmm: iris)."
)
DataFile = Annotated[Path | None, typer.Option("--data", help=_DATA_HELP)]
Kind = Annotated[
    Model,
    typer.Option(
        "--model",
        help="rbm: restricted Boltzmann machine, bm: fully visible "
        "Boltzmann machine, gmm: Gaussian mixture.",
    ),
]
ExpectedKind = Annotated[
    Model | None, typer.Option("--model", help="Refuse a file that holds another model.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Same seed, same machine: same numbers.")]
Output = Annotated[
    Path | None, typer.Option("--output", help="Folder to write. Default: runs/<command>-<number>.")
]
Force = Annotated[bool, typer.Option("--force", help="Write into --output even if it exists.")]
Hidden = Annotated[int, typer.Option("--hidden", min=1, help="Hidden units (rbm).")]
Components = Annotated[int, typer.Option("--components", min=1, help="Components (gmm).")]
Epochs = Annotated[int, typer.Option("--epochs", min=1, help="Passes over the data (rbm, bm).")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Rows per update (rbm, bm).")]
LearningRate = Annotated[
    float, typer.Option("--learning-rate", help="First step of Adam; falls to 0 (rbm, bm).")
]
Chains = Annotated[int, typer.Option("--chains", min=1, help="Chains of every sampler.")]
Warmup = Annotated[int, typer.Option("--warmup", min=0, help="Steps thrown away per chain.")]
Samples = Annotated[int, typer.Option("--samples", min=4, help="Draws kept per chain.")]
ModelFile = Annotated[Path, typer.Argument(help="A model file that train or compare wrote.")]


#: What compare tells about a sampler, in order.
_PHASES = ("compile", "warmup", "sample", "diagnose")


def _console() -> Console:
    """The screen as it is now; where there is none, wide enough for the table."""
    console = Console()
    return console if console.is_terminal else Console(width=100)


def _say(console: Console, text: str) -> None:
    """Print text as it is: names and paths are no markup."""
    console.print(text, markup=False, highlight=False)


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Tell what the user can act on in one line, and end with code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        text = " ".join(str(error).split())
        Console(stderr=True, soft_wrap=True).print(f"error: {text}", markup=False, highlight=False)
        raise typer.Exit(2) from error


@contextlib.contextmanager
def _bars(console: Console) -> Iterator[Callable[..., None]]:
    """Progress bars by name: call with a name, the share that is done, and a text meanwhile."""
    columns = (TextColumn("{task.description:<44}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, Any] = {}

        def tell(name: str, share: float, text: str | None = None) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=1.0)
            shown = name if share >= 1.0 else text or name
            progress.update(tasks[name], completed=share, description=shown)

        yield tell


def _train(console: Console, kind: Any, data: Any, sizes: Any, seed: int) -> tuple[Any, Any]:
    from pgm_energy._jobs import learn

    with _bars(console) as tell:
        name = f"training on {len(data.train)} rows"
        tell(name, 0.0)
        model, result = learn(kind, data, sizes, seed, lambda share: tell(name, share))
    _say(console, f"{model!r}\n{result.message}")
    return model, result


def _write_training(folder: Path, model: Any, result: Any, data: Any) -> dict[str, Any]:
    """Write the model, its metrics and pictures; return the figures with captions."""
    from pgm_energy._jobs import write_columns
    from pgm_energy.plots import image_shape, plot_filters, plot_training, training_curves
    from pgm_energy.report import png_bytes
    from pgm_energy.serialization import save

    save(model, folder / "model.safetensors")
    curves = training_curves(result)
    write_columns(folder / "metrics.csv", curves, "epoch" if hasattr(result, "metrics") else "step")
    figures = {"training": (plot_training(result), "How the model was learned.")}
    visible = model.sites.get("v")
    if "h" in model.sites and (data.shape or image_shape(visible)) is not None:
        caption = "Weights of each hidden unit, seen as an image of the visible ones."
        figures["filters"] = (plot_filters(model, data.shape), caption)
    for name, (figure, _) in figures.items():
        (folder / f"{name}.png").write_bytes(png_bytes(figure))
    return figures


@app.command()
def compare(
    data: DataFile = None,
    model: Kind = Model.rbm,
    load: Annotated[
        Path | None, typer.Option("--load", help="Compare on this model file; do not train.")
    ] = None,
    seed: Seed = 0,
    output: Output = None,
    force: Force = False,
    hidden: Hidden = 16,
    components: Components = 3,
    epochs: Epochs = 100,
    batch_size: BatchSize = 64,
    learning_rate: LearningRate = 0.01,
    chains: Chains = 16,
    warmup: Warmup = 1000,
    samples: Samples = 4000,
) -> None:
    """Train a model, sample it with Gibbs and HMC, diagnose every chain, write a report."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    with _one_line_errors():
        _compare(
            _console(),
            data,
            model,
            load,
            seed,
            output,
            force,
            (hidden, components, epochs, batch_size, learning_rate),
            {"num_chains": chains, "num_warmup": warmup, "num_samples": samples},
        )


def _compare(
    console: Console,
    data_file: Path | None,
    kind: Model,
    model_file: Path | None,
    seed: int,
    output: Path | None,
    force: bool,
    sizes: tuple[Any, ...],
    counts: dict[str, int],
) -> None:
    import jax

    from pgm_energy import _jobs
    from pgm_energy.comparison import compare as run
    from pgm_energy.report import verdict_lines

    settings: dict[str, Any] = {"seed": seed}
    training: dict[str, Any] = {}
    if model_file is None:
        rows = _jobs.read_data(data_file, kind.value, seed)
        settings |= {"data": rows.description, **_jobs.Sizes(*sizes)._asdict()}
        folder = _jobs.make_folder(output, "compare", force)
        _say(console, f"data: {rows.description}")
        model, result = _train(console, kind.value, rows, _jobs.Sizes(*sizes), seed)
        training = _write_training(folder, model, result, rows)
    else:
        from pgm_energy.serialization import save

        model = _jobs.read_model(model_file, None)
        settings["model file"] = model_file.name
        _jobs.kind_of(model, model_file)
        folder = _jobs.make_folder(output, "compare", force)
        save(model, folder / "model.safetensors")
    key = jax.random.fold_in(jax.random.key(seed), 1)
    with _bars(console) as tell:
        comparison = run(
            key,
            model,
            _jobs.standard_samplers(model),
            progress=lambda name, phase, share: tell(
                name, (_PHASES.index(phase) + share) / len(_PHASES), f"{name}: {phase}"
            ),
            **counts,
        )
    with console.status("writing the report"):
        _write_comparison(folder, comparison, settings, training)
    console.print(comparison.__rich__())
    for line in verdict_lines(comparison):
        _say(console, line)
    _say(console, f"\nreport: {folder / 'report.html'}")


def _write_comparison(
    folder: Path, comparison: Any, settings: dict[str, Any], training: dict[str, Any]
) -> None:
    from pgm_energy._jobs import file_name
    from pgm_energy.report import write_report

    comparison.results.to_csv(folder / "summary.csv")
    comparison.timings.to_csv(folder / "timings.csv")
    for name, tree in comparison.datatrees.items():
        tree.to_netcdf(folder / f"{file_name(name)}.nc", engine="h5netcdf")
    write_report(
        comparison,
        folder / "report.html",
        title=f"Samplers compared on {type(comparison.model).__name__}",
        settings=settings,
        more_figures=training,
        picture_folder=folder,
    )


@app.command()
def train(
    data: DataFile = None,
    model: Kind = Model.rbm,
    seed: Seed = 0,
    output: Output = None,
    force: Force = False,
    hidden: Hidden = 32,
    components: Components = 3,
    epochs: Epochs = 100,
    batch_size: BatchSize = 64,
    learning_rate: LearningRate = 0.01,
) -> None:
    """Train a model on rows of data and write it with its metrics and pictures."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    with _one_line_errors():
        from pgm_energy import _jobs

        console = _console()
        rows = _jobs.read_data(data, model.value, seed)
        folder = _jobs.make_folder(output, "train", force)
        _say(console, f"data: {rows.description}")
        sizes = _jobs.Sizes(hidden, components, epochs, batch_size, learning_rate)
        trained, result = _train(console, model.value, rows, sizes, seed)
        _write_training(folder, trained, result, rows)
        _print_evaluation(console, trained, rows.validation, "validation rows")
        _say(console, f"model: {folder / 'model.safetensors'}")


@app.command()
def sample(
    model_file: ModelFile,
    model: ExpectedKind = None,
    seed: Seed = 0,
    output: Output = None,
    force: Force = False,
    chains: Chains = 16,
    warmup: Warmup = 500,
    samples: Samples = 100,
) -> None:
    """Draw from a trained model by block Gibbs and write the draws and a picture."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    with _one_line_errors():
        import jax
        import numpy as np

        from pgm_energy import _jobs
        from pgm_energy.predict import sample as draw

        console = _console()
        loaded = _jobs.read_model(model_file, model.value if model else None)
        folder = _jobs.make_folder(output, "sample", force)
        with console.status("sampling"):
            values = draw(
                jax.random.key(seed),
                loaded,
                chains * samples,
                num_chains=chains,
                num_warmup=warmup,
                group_by_chain=True,
            )
            arrays = {name: np.asarray(value) for name, value in values.items()}
            np.savez_compressed(folder / "samples.npz", allow_pickle=False, **arrays)
        for name, value in arrays.items():
            console.print(f"{name}: {value.shape} (chains, draws, units)", highlight=False)
        _picture(folder, loaded, arrays)
        _say(console, f"samples: {folder / 'samples.npz'}")


def _picture(folder: Path, model: Any, arrays: dict[str, Any]) -> None:
    """Write the last draws of the chains as images, if a data site is one."""
    from pgm_energy.plots import image_shape, plot_samples
    from pgm_energy.report import png_bytes

    for name in model.data_sites:
        shape = image_shape(model.sites[name])
        if shape is not None:
            draws = arrays[name][:, -1 :: -max(1, arrays[name].shape[1] // 5)][:, :5]
            figure = plot_samples(draws.reshape(-1, *shape), title=f"draws of {name}")
            (folder / "samples.png").write_bytes(png_bytes(figure))
            return


@app.command()
def evaluate(
    model_file: ModelFile,
    data: DataFile = None,
    model: ExpectedKind = None,
    seed: Seed = 0,
    output: Output = None,
    force: Force = False,
) -> None:
    """Hold a trained model against rows: likelihood where it is exact, pseudo-likelihood."""
    with _one_line_errors():
        from pgm_energy import _jobs

        console = _console()
        loaded = _jobs.read_model(model_file, model.value if model else None)
        kind = _jobs.kind_of(loaded, model_file)
        if data is None:  # the rows that training with this seed did not see
            rows = _jobs.read_data(None, kind, seed)
            values, words = rows.validation, f"validation rows of {rows.description}"
        else:
            values, _, words = _jobs.read_rows(data, kind)
        folder = _jobs.make_folder(output, "evaluate", force)
        columns = _print_evaluation(console, loaded, values, f"rows of {words}")
        _jobs.write_columns(folder / "evaluation.csv", columns, "row")
        _say(console, f"per row: {folder / 'evaluation.csv'}")


def _print_evaluation(console: Console, model: Any, rows: Any, what: str) -> dict[str, Any]:
    """Print mean figures of rows with standard errors; return the figures per row."""
    import numpy as np

    from pgm_energy.evaluation import log_likelihood
    from pgm_energy.pseudo_likelihood import pseudo_log_likelihood

    table = Table(title=f"{type(model).__name__} on {len(rows)} {what}")
    for heading in ("figure", "mean per row (nats)", "standard error (nats)"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    columns, notes = {}, []
    for name, function in (
        ("log_likelihood", log_likelihood),
        ("pseudo_log_likelihood", pseudo_log_likelihood),
    ):
        try:
            values = np.asarray(function(model, rows), np.float64)
        except ValueError as error:
            if "row" in str(error) or "shape" in str(error):
                raise
            notes.append(f"{name.replace('_', ' ')}: not available, {error}")
            continue
        columns[name] = values
        error_of_mean = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
        label = name.replace("_", " ") + (" (exact)" if name == "log_likelihood" else "")
        table.add_row(label, f"{values.mean():.4f}", f"{error_of_mean:.4f}")
    if columns:
        console.print(table)
    for note in notes:
        _say(console, note)
    return columns
