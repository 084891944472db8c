"""The command line: compare, train, sample, evaluate."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from pgm_energy._options import (
    BatchSize,
    Chains,
    CheckpointEpochs,
    Components,
    DataFile,
    Epochs,
    ExpectedKind,
    Force,
    Hidden,
    Kind,
    Learner,
    LearnerName,
    LearningRate,
    Method,
    Model,
    ModelFile,
    Output,
    Patience,
    Resume,
    Samples,
    Seed,
    Sweeps,
    TrainingChains,
    Validation,
    Warmup,
)

__all__ = ["app"]

app = typer.Typer(
    name="pgm-energy",
    help="Energy-based models for NumPyro: train, sample, diagnose, compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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


def _train(console: Console, kind: Any, data: Any, plan: Any, seed: int, **more: Any) -> Any:
    """Train, and say how it went; the bar is the learner's own."""
    from pgm_energy._training import learn

    _say(console, f"training on {len(data.train)} rows")
    model, result = learn(kind, data, plan, seed, **more)
    _say(console, f"{model!r}\n{result.message}")
    return model, result


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

    from pgm_energy import _jobs, _training
    from pgm_energy.comparison import compare as run
    from pgm_energy.report import verdict_lines

    settings: dict[str, Any] = {"seed": seed}
    training: dict[str, Any] = {}
    if model_file is None:
        plan = _training.Plan(*sizes)
        plan.check(kind.value, False)
        rows = _jobs.read_data(data_file, kind.value, seed)
        settings |= {"data": rows.description, **plan._asdict()}
        folder = _jobs.make_folder(output, "compare", force)
        _say(console, f"data: {rows.description}")
        model, result = _train(console, kind.value, rows, plan, seed)
        training = _training.write_training(folder, model, result, rows)
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
    learner: LearnerName = Learner.pcd,
    seed: Seed = 0,
    output: Output = None,
    force: Force = False,
    hidden: Hidden = 32,
    components: Components = 3,
    epochs: Epochs = 100,
    batch_size: BatchSize = 64,
    learning_rate: LearningRate = 0.01,
    sweeps: Sweeps = 2,
    chains: TrainingChains = 128,
    validation: Validation = 0.1,
    early_stopping: Patience = 0,
    checkpoint: CheckpointEpochs = 10,
    resume: Resume = False,
) -> None:
    """Train a model on rows of data and write it with its metrics, pictures and a summary."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    with _one_line_errors():
        from pgm_energy import _jobs
        from pgm_energy._training import Plan

        console = _console()
        plan = Plan(
            *(hidden, components, epochs, batch_size, learning_rate),
            *(learner.value, sweeps, chains, early_stopping),
        )
        plan.check(model.value, resume)
        if resume and output is None:
            raise ValueError("--resume goes on with the run in --output: name its folder")
        rows = _jobs.read_data(data, model.value, seed, validation)
        folder = _jobs.make_folder(output, "train", force or resume)
        _say(console, f"data: {rows.description}")
        _train_into(console, folder, model.value, rows, plan, seed, checkpoint, resume)


def _train_into(
    console: Console,
    folder: Path,
    kind: Any,
    rows: Any,
    plan: Any,
    seed: int,
    every_epochs: int,
    resume: bool,
) -> None:
    """Train with checkpoints, and write all there is to see."""
    from pgm_energy._training import write_samples, write_training
    from pgm_energy.learning import Checkpoint

    place = None
    if kind != "gmm" and (every_epochs or resume):
        place = Checkpoint(folder / "checkpoints", every_epochs=every_epochs or plan.epochs)
    model, result = _train(console, kind, rows, plan, seed, checkpoint=place, resume=resume)
    write_training(folder, model, result, rows)
    write_samples(folder, model, rows, seed)
    held_out = len(rows.validation) > 0
    shown, what = (rows.validation, "validation") if held_out else (rows.train, "training")
    columns = _print_evaluation(console, model, shown, f"{what} rows")
    lines = [f"data: {rows.description}", f"seed: {seed}"]
    lines += [f"{name.replace('_', ' ')}: {value}" for name, value in plan.told(kind).items()]
    lines += [repr(model), result.message]
    lines += [
        f"{name.replace('_', ' ')} of {len(shown)} {what} rows: {values.mean():.4f} nats per row"
        for name, values in columns.items()
    ]
    (folder / "summary.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
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
    method: Annotated[
        Method,
        typer.Option("--method", help="How log Z is found; auto: exact where seconds, else ais."),
    ] = Method.auto,
    chains: Annotated[
        int | None,
        typer.Option("--chains", min=2, help="Chains (pt: ladders) that estimate log Z."),
    ] = None,
    betas: Annotated[
        int | None, typer.Option("--betas", min=2, help="Inverse temperatures (pt: replicas).")
    ] = None,
) -> None:
    """Hold a trained model against rows: likelihood between its brackets, pseudo-likelihood."""
    with _one_line_errors():
        from pgm_energy import _jobs
        from pgm_energy._tables import write_columns

        console = _console()
        loaded = _jobs.read_model(model_file, model.value if model else None)
        kind = _jobs.kind_of(loaded, model_file)
        if data is None:  # the rows that training with this seed did not see
            rows = _jobs.read_data(None, kind, seed)
            values, words = rows.validation, f"validation rows of {rows.description}"
        else:
            values, _, words = _jobs.read_rows(data, kind)
            words = f"rows of {words}"
        settings = {"num_chains": chains, "num_betas": betas}
        log_z = _jobs.find_log_partition(
            loaded, values, seed, method.value, settings, console.is_terminal
        )
        folder = _jobs.make_folder(output, "evaluate", force)
        columns = _print_evaluation(console, loaded, values, words, log_z)
        write_columns(folder / "evaluation.csv", columns, "row")
        _say(console, f"per row: {folder / 'evaluation.csv'}")


def _print_evaluation(
    console: Console, model: Any, rows: Any, what: str, log_z: Any = None
) -> dict[str, Any]:
    """Print mean figures of rows with standard errors; return the figures per row.

    Without ``log_z`` the likelihood is told where it is exact.
    """
    import numpy as np

    from pgm_energy.evaluation import log_likelihood
    from pgm_energy.pseudo_likelihood import pseudo_log_likelihood

    table = Table(title=f"{type(model).__name__} on {len(rows)} {what}")
    for heading in ("figure", "mean per row (nats)", "standard error (nats)"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    columns, notes = {}, []
    for name, function in (
        ("log_likelihood", lambda: log_likelihood(model, rows, log_z)),
        ("pseudo_log_likelihood", lambda: pseudo_log_likelihood(model, rows)),
    ):
        try:
            values = np.asarray(function(), np.float64)
        except ValueError as error:
            if re.search(r"at row \d|must have shape", str(error)):
                raise
            why = f"not available, {error}"
            if name == "log_likelihood" and log_z is None:
                why = "needs log Z, which is out of exact reach; evaluate brackets it"
            notes.append(f"{name.replace('_', ' ')}: {why}")
            continue
        columns[name] = values
        error_of_mean = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
        label = name.replace("_", " ")
        if name == "log_likelihood":
            label += f" ({'exact' if log_z is None else log_z.method})"
        table.add_row(label, f"{values.mean():.4f}", f"{error_of_mean:.4f}")
        if name == "log_likelihood" and log_z is not None and log_z.method != "exact":
            for bound, words in (("upper", "counts"), ("lower", "at best")):
                shift = log_z.estimate - getattr(log_z, bound)
                table.add_row(
                    f"  at the {bound} bracket of log Z ({words})",
                    f"{values.mean() + shift:.4f}",
                    "",
                )
    if columns:
        console.print(table)
    if log_z is not None:
        notes.append(str(log_z))
    for note in notes:
        _say(console, note)
    return columns
