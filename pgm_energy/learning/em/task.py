"""Data at the door of EM: checked, in the frame in which they are best handled, in chunks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._data import as_rows, check_weights
from pgm_energy.models.chunks import Chunks, arrange
from pgm_energy.models.mixture import Frame, Mixture, reframed

__all__ = ["Task", "check_mixture", "prepare", "rows_per_chunk"]

#: What a chunk of rows may take on its way through an E-step: on a CPU, what its cache holds.
_BYTES = {"cpu": 2**22}
_BYTES_ELSEWHERE = 2**28


class Task(NamedTuple):
    """Checked rows and the first start, in one frame.

    Attributes
    ----------
    rows
        Raw rows, real ones standardised; NaN where missing.
    weights
        Of the rows.
    start
        The first start, in float64.
    frame
        Shift and scale of the columns, or None.
    offset
        What the scale adds to the log-likelihood, nats.
    missing
        Whether something is missing.
    kind
        The floating type of the rows, and of the result.
    """

    rows: np.ndarray
    weights: np.ndarray
    start: Any
    frame: Frame | None
    offset: float
    missing: bool
    kind: Any

    def restore(self, model: Any) -> Any:
        """Return a mixture in the units of the data."""
        if self.frame is not None:
            shift, scale = self.frame
            model = reframed(model, -shift / scale, 1.0 / scale)
        return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), self.kind), model)

    def chunks(self, size: int) -> Chunks:
        """Return the rows in chunks of at most so many."""
        return arrange(self.rows, self.weights, size, self.missing)


def check_mixture(model: Any) -> None:
    """Refuse what is no mixture.

    Raises
    ------
    TypeError
        Saying what to do instead.
    """
    if not isinstance(model, Mixture):
        raise TypeError(
            f"EM fits mixtures, got {type(model).__name__}; learn other models with PCD"
        )


def check_table(model: Mixture, data: Any, missing: bool, name: str = "data") -> np.ndarray:
    """Return raw rows ``(N, D)`` of a mixture's data site, real ones as they came."""
    checked = as_rows(model, data, name=name, allow_missing=missing)
    (site,) = model.data_sites
    if model.sites[site].is_discrete:
        return checked[site]
    return np.asarray(data[site] if isinstance(data, Mapping) else data, dtype=np.float64)


def prepare(model: Mixture, data: Any, row_weights: Any, missing: bool) -> Task:
    """Check data and weights of rows; standardise real data, in float64.

    Raises
    ------
    ValueError
        On data or weights that are not valid, or fewer rows of positive weight than components.
    """
    kind = jnp.result_type(float)
    table = check_table(model, data, missing)
    weights = check_weights(row_weights, len(table))
    used = int((weights > 0).sum())
    if used < model.num_components:
        raise ValueError(
            f"{model.num_components} components need at least as many rows of positive weight, "
            f"got {used}"
        )
    gone = table.dtype.kind == "f" and bool(np.isnan(table).any())
    frame, offset = model.standardizer(table, weights), 0.0
    rows = table
    with jax.enable_x64(True):
        start = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), model)
        if frame is not None:
            shift, scale = frame
            rows = ((table - shift) / scale).astype(kind)
            start = reframed(start, shift, scale)
            seen = weights @ ~np.isnan(table) if gone else weights.sum()
            offset = -float((seen * np.log(scale)).sum())
    return Task(rows, weights.astype(kind), start, frame, offset, gone, kind)


def rows_per_chunk(model: Mixture, starts: int, kind: Any, missing: bool, fast: bool) -> int:
    """Return how many rows to handle at once, so that memory stays bounded (and in the cache)."""
    limit = _BYTES.get(jax.default_backend(), _BYTES_ELSEWHERE)
    floats = starts * model.floats_per_row(missing, fast)
    return max(limit // (floats * jnp.dtype(kind).itemsize), 64)
