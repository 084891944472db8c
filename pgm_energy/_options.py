"""Options that the commands share: what they are called, and what their help says."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "BatchSize",
    "Chains",
    "CheckpointEpochs",
    "Components",
    "DataFile",
    "Epochs",
    "ExpectedKind",
    "Force",
    "Hidden",
    "Kind",
    "Learner",
    "LearnerName",
    "LearningRate",
    "Method",
    "Model",
    "ModelFile",
    "Output",
    "Patience",
    "Resume",
    "Samples",
    "Seed",
    "Sweeps",
    "TrainingChains",
    "Validation",
    "Warmup",
]


class Model(StrEnum):
    """Models that the command line trains."""

    rbm = "rbm"
    bm = "bm"
    gmm = "gmm"


class Learner(StrEnum):
    """Ways to learn that the command line knows."""

    pcd = "pcd"
    cd = "cd"
    tempered_pcd = "tempered-pcd"
    trajectory_pcd = "trajectory-pcd"
    pseudo_likelihood = "pseudo-likelihood"
    ratio_matching = "ratio-matching"
    maximum_likelihood = "maximum-likelihood"


class Method(StrEnum):
    """Ways to log Z that the command line knows."""

    auto = "auto"
    exact = "exact"
    ais = "ais"
    reverse_ais = "reverse_ais"
    bennett = "bennett"
    pt = "pt"


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
    Path | None,
    typer.Option("--output", "--out", help="Folder to write. Default: runs/<command>-<number>."),
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

# ---- of train alone ----------------------------------------------------------------------------

LearnerName = Annotated[Learner, typer.Option("--learner", help="How an rbm or a bm is learned.")]
Sweeps = Annotated[int, typer.Option("--sweeps", min=1, help="Sweeps per update (pcd), k (cd).")]
TrainingChains = Annotated[int, typer.Option("--chains", min=1, help="Persistent chains (pcd).")]
Validation = Annotated[
    float,
    typer.Option("--validation", min=0.0, max=0.9, help="Share of the rows held out; 0: none."),
]
Patience = Annotated[
    int,
    typer.Option(
        "--early-stopping",
        min=0,
        help="Stop after so many epochs without a better pseudo-likelihood of the rows held out, "
        "and keep the best model; 0: never.",
    ),
]
CheckpointEpochs = Annotated[
    int,
    typer.Option(
        "--checkpoint",
        min=0,
        help="Epochs between checkpoints, in checkpoints/ of the folder; 0: none (rbm, bm).",
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on with the run in --output: the same command once more, and --resume."
    ),
]
