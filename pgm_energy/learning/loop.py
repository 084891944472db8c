"""What goes into every learning loop and what comes out: rows, the learner, the result."""

from __future__ import annotations

import os
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._data import as_rows, check_weights
from pgm_energy._struct import Key
from pgm_energy._tables import write_columns
from pgm_energy.energy import EnergyModel

__all__ = ["Learner", "LearningResult", "Metrics", "Rows", "check_rows", "draw_bits", "take"]

Metrics = dict[str, np.ndarray]


class Rows(NamedTuple):
    """Checked data of one learning run.

    Attributes
    ----------
    values
        By data site, rows first; floating point where the data are grey.
    weights
        ``(rows,)``, not negative, the largest 1.
    known
        Of data sites with missing values, True where a unit is known (``values`` hold a state of
        the support elsewhere); None where nothing is missing.
    """

    values: dict[str, jax.Array]
    weights: jax.Array
    known: dict[str, jax.Array] | None = None


class LearningResult(NamedTuple):
    """What a learner found.

    Attributes
    ----------
    model
        The model with the last parameters.
    averaged
        The model with parameters averaged over the second half of the updates.
    state
        The learner's state: optimiser, chains.
    metrics
        One value per epoch, by name.
    message
        How it went, in words.
    """

    model: EnergyModel
    averaged: EnergyModel
    state: Any
    metrics: Metrics
    message: str

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the metrics as a table, one row per epoch, numbered from 1.

        Examples
        --------
        >>> import tempfile, pathlib, numpy as np
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "metrics.csv"
        >>> LearningResult(None, None, None, {"gradient_norm": np.array([0.5])}, "").to_csv(path)
        >>> path.read_text().split()
        ['epoch,gradient_norm', '1,0.5']
        """
        write_columns(path, self.metrics, "epoch")


@runtime_checkable
class Learner(Protocol):
    """A pair of pure functions; the loop does the rest."""

    def init(self, rng_key: Key, model: EnergyModel, rows: Rows) -> Any:
        """Return the first state (with a field ``model``)."""

    def update(
        self, rng_key: Key, state: Any, batch: Rows, index: jax.Array
    ) -> tuple[Any, dict[str, jax.Array]]:
        """Return the state after one step on a batch, and figures of the step."""

    def at_epoch(self, epoch: int, state: Any) -> tuple[Any, Any]:
        """Return the learner and the state that an epoch (from 0) begins with."""


def check_rows(
    model: EnergyModel,
    data: Any,
    row_weights: Any,
    intensities: str | None,
    name: str = "data",
    missing: bool = False,
) -> Rows:
    """Return checked rows and weights.

    Raises
    ------
    ValueError
        On data that are not valid, NaN unless ``missing``, grey data without ``intensities``, or
        weights that are negative, all zero or of another number than the rows.
    """
    if intensities not in (None, "mean", "sample"):
        raise ValueError(f"intensities must be None, 'mean' or 'sample', got {intensities!r}")
    values = as_rows(
        model,
        data,
        name=name,
        allow_missing=missing,
        allow_intensities=intensities is not None,
    )
    values, known = _without_gaps(model, values, intensities) if missing else (values, None)
    count = len(next(iter(values.values())))
    weights = check_weights(row_weights, count)
    weights = (weights / weights.max()).astype(np.float32)  # what counts is their ratio
    return Rows({k: jnp.asarray(v) for k, v in values.items()}, jnp.asarray(weights), known)


def _without_gaps(
    model: EnergyModel, values: dict[str, np.ndarray], intensities: str | None
) -> tuple[dict[str, np.ndarray], dict[str, jax.Array] | None]:
    """Rows with a state of the support in place of NaN, and where there was none."""
    filled, known = dict(values), {}
    for name, value in values.items():
        gaps = np.isnan(value) if value.dtype.kind == "f" else np.zeros(value.shape, bool)
        if not gaps.any():
            continue
        site = model.sites[name]
        whole = np.where(gaps, site.filler, value)
        is_grey = site.is_discrete and bool((whole != np.floor(whole)).any())
        if is_grey and intensities == "mean":
            raise ValueError(
                "missing values are drawn given bits, not given probabilities: learn with "
                "intensities='sample', or threshold the grey levels"
            )
        filled[name] = whole.astype(value.dtype if is_grey else np.dtype(site.dtype))
        known[name] = jnp.asarray(~gaps)
    return filled, known or None


def draw_bits(rng_key: Key, model: EnergyModel, rows: Rows) -> Rows:
    """Return rows with grey levels replaced by bits drawn with those probabilities."""
    values = {}
    for i, (name, value) in enumerate(rows.values.items()):
        if jnp.issubdtype(value.dtype, jnp.floating) and model.sites[name].is_discrete:
            uniform = jax.random.uniform(jax.random.fold_in(rng_key, i), value.shape)
            value = (uniform < value).astype(model.sites[name].dtype)
        values[name] = value
    return rows._replace(values=values)


def take(rows: Rows, index: jax.Array) -> Rows:
    """Return some rows; an index past the end gives a row of weight zero."""
    inside = index < rows.weights.shape[0]
    safe = jnp.where(inside, index, 0)
    values, known = jax.tree.map(lambda x: x[safe], (rows.values, rows.known))
    return Rows(values, jnp.where(inside, rows.weights[safe], 0.0), known)
