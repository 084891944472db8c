"""The work behind the command line: data, training, samplers, folders. No screen in here."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from numpyro.infer import NUTS, DiscreteGibbs

from pgm_energy.datasets import load_digits, load_images, train_validation_split
from pgm_energy.energy import EnergyModel
from pgm_energy.infer import BlockGibbs
from pgm_energy.models import RBM, BoltzmannMachine, GaussianMixture
from pgm_energy.partition import LogPartition, log_partition
from pgm_energy.serialization import load
from pgm_energy.sites import Real
from pgm_energy.transforms import marginalize, relax

__all__ = ["Data", "Kind", "make_folder", "read_data", "standard_samplers"]

Kind = Literal["rbm", "bm", "gmm"]
CLASSES: dict[str, type[Any]] = {"rbm": RBM, "bm": BoltzmannMachine, "gmm": GaussianMixture}


class Data(NamedTuple):
    """Rows to learn from.

    Attributes
    ----------
    train, validation
        Rows first.
    shape
        Height and width if rows are images that are not square, else None.
    description
        Where they come from and what was done to them, in words.
    """

    train: np.ndarray
    validation: np.ndarray
    shape: tuple[int, int] | None
    description: str


# ---- data --------------------------------------------------------------------------------------


def read_rows(path: Path | None, kind: Kind) -> tuple[np.ndarray, tuple[int, int] | None, str]:
    """Return rows for a model of this kind, their image shape if any, and words about them.

    Raises
    ------
    ValueError
        On a file that cannot be read, or rows that the model cannot learn from.
    """
    if path is None:
        if kind == "gmm":
            from sklearn.datasets import load_iris

            rows = np.asarray(load_iris(return_X_y=True)[0], np.float32)
            return rows, None, "iris, 150 flowers, 4 measurements (cm)"
        digits = load_digits()
        return digits.images, digits.shape, "scikit-learn's digits, 8 x 8 pixels, binarized"
    rows, shape = load_images(path)
    if kind == "gmm":  # before a folder is made for the results
        hint = "drop those rows, or fill them in"
        Real(rows.shape[1]).check("x", rows, nan_hint=hint)
    if len(rows) < 2:
        raise ValueError(f"{path}: expected at least two rows of numbers, got shape {rows.shape}")
    if kind == "gmm":
        return rows.astype(np.float32), shape, path.name
    rows, words = _as_bits(rows, path)
    return rows, shape, f"{path.name}{words}"


def _as_bits(rows: np.ndarray, path: Path) -> tuple[np.ndarray, str]:
    """0/1 rows, grey levels cut at half of their range."""
    finite = np.isfinite(rows)
    if not finite.all():
        row, column = (int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(
            f"{path}: {rows[row, column]} at row {row}, column {column}: rbm and bm need complete "
            "rows, remove it or fill it in"
        )
    if ((rows == 0) | (rows == 1)).all():
        return rows.astype(np.int8), ""
    for top in (1.0, 255.0):
        if rows.min() >= 0 and rows.max() <= top:
            half = top / 2.0
            return (rows >= half).astype(np.int8), f", grey levels cut at {half:g}"
    raise ValueError(
        f"{path}: rbm and bm take 0 and 1, or grey levels from 0 to 1 or 0 to 255, got values from "
        f"{rows.min():g} to {rows.max():g}: use --model gmm for measurements"
    )


def read_data(path: Path | None, kind: Kind, seed: int, fraction: float = 0.1) -> Data:
    """Return training rows, and a fraction of all as validation rows; see :func:`read_rows`."""
    rows, shape, description = read_rows(path, kind)
    if kind == "gmm":  # the classical figures of merit are those of all rows
        return Data(rows, rows, shape, description)
    if fraction == 0.0:
        return Data(rows, rows[:0], shape, description)
    train, validation = train_validation_split(rows, fraction=fraction, seed=seed)
    return Data(train, validation, shape, description)


# ---- models ------------------------------------------------------------------------------------


def read_model(path: Path, kind: Kind | None) -> EnergyModel:
    """Return the model in a file, of the expected kind if one is given.

    Raises
    ------
    FileNotFoundError, ValueError
        Saying what is wrong with the file.
    """
    model: EnergyModel = load(path)
    if kind is not None and not isinstance(model, CLASSES[kind]):
        raise ValueError(
            f"{path} holds a {type(model).__name__}, --model {kind} asks for a "
            f"{CLASSES[kind].__name__}"
        )
    return model


def kind_of(model: EnergyModel, path: Path) -> Kind:
    """Return which kind of data a model takes.

    Raises
    ------
    ValueError
        If it is none of those that the command line knows.
    """
    for kind, cls in CLASSES.items():
        if isinstance(model, cls):
            return kind  # type: ignore[return-value]
    raise ValueError(
        f"{path} holds a {type(model).__name__}; the command line knows "
        f"{', '.join(c.__name__ for c in CLASSES.values())}: use pgm_energy.load in Python"
    )


def find_log_partition(
    model: EnergyModel,
    rows: np.ndarray,
    seed: int,
    method: str,
    settings: Mapping[str, int | None],
    progress_bar: bool,
) -> LogPartition:
    """Return log Z with its bracket; the path begins at units fitted to the rows.

    A warning that it is not to be trusted is left to whoever prints the result, which holds it.
    """
    chosen: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    if method != "exact":
        chosen |= {"data": rows, "progress_bar": progress_bar}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="log Z of .* is not to be trusted")
        return log_partition(model, jax.random.key(seed), method, **chosen)


def standard_samplers(model: EnergyModel) -> dict[str, Any]:
    """Return the samplers to compare: block Gibbs, HMC where there is a twin, NumPyro's own."""
    samplers: dict[str, Any] = {"block Gibbs": BlockGibbs(model)}
    if isinstance(model, GaussianMixture):
        samplers["NUTS on the mixture density"] = NUTS(marginalize(model, "z"))
        return samplers
    samplers["NUTS on the Gaussian twin"] = NUTS(relax(model))
    samplers["NumPyro DiscreteGibbs"] = DiscreteGibbs(model)
    return samplers


# ---- files -------------------------------------------------------------------------------------


def make_folder(output: Path | None, command: str, force: bool) -> Path:
    """Return a folder to write into: the one that was asked for, or the next numbered one.

    Raises
    ------
    FileExistsError
        If the folder exists and ``force`` is not set.
    """
    if output is not None:
        if output.exists() and not force:
            raise FileExistsError(
                f"{output} exists already: give another --output, or --force to write into it"
            )
        output.mkdir(parents=True, exist_ok=True)
        return output
    runs = Path("runs")
    runs.mkdir(exist_ok=True)
    taken = [re.fullmatch(rf"{command}-(\d+)", path.name) for path in runs.iterdir()]
    number = max((int(match[1]) for match in taken if match), default=0)
    while True:
        number += 1
        folder = runs / f"{command}-{number:03d}"
        try:
            folder.mkdir()
        except FileExistsError:  # another run was faster
            continue
        return folder


def file_name(text: str) -> str:
    """Return a file name made of a sampler's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
