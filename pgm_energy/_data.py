"""Data rows at the door: one array or a dict by site, checked with row and column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from pgm_energy.energy import EnergyModel
from pgm_energy.sites import Binary, Site

__all__ = ["as_rows", "check_weights", "encode_rows", "site_rows"]


def as_rows(
    model: EnergyModel,
    data: Any,
    *,
    name: str = "data",
    allow_missing: bool = False,
    allow_intensities: bool = False,
) -> dict[str, np.ndarray]:
    """Return data by site, rows first, in the storage type of each site.

    Parameters
    ----------
    model
        The energy model; its ``data_sites`` say what is needed.
    data
        An array for the only data site, or a dict by site. Booleans, integers of any width and
        floats with integer values are accepted for discrete sites.
    name
        What to call the data in messages.
    allow_missing
        Accept NaN; discrete sites are then returned in floating point.
    allow_intensities
        Accept numbers between 0 and 1 for binary sites, returned in floating point.

    Raises
    ------
    TypeError
        If the data are no numbers, or are traced by ``jax.jit``, ``jax.vmap`` or ``jax.grad``.
    ValueError
        If data are empty, a site is missing or unknown, a shape is wrong, rows differ in
        number, or a value is not in the support, with its row and column.
    """
    names = model.data_sites
    if not isinstance(data, Mapping):
        if len(names) != 1:
            raise ValueError(
                f"{model.title} has data sites {', '.join(map(repr, names))}: give "
                f"{name} as a dict by site"
            )
        data = {names[0]: data}
    model.require_sites(data)
    extra = [site for site in data if site not in names]
    if extra:
        raise ValueError(
            f"{name} gives site {extra[0]!r}, which is latent; the data sites of "
            f"{model.title} are {', '.join(map(repr, names))}"
        )
    missing = [site for site in names if site not in data]
    if missing:
        raise ValueError(f"{name} lacks site {missing[0]!r}")
    rows: dict[str, np.ndarray] = {}
    for key in names:
        rows[key] = site_rows(
            model.sites[key], key, data[key], name, allow_missing, allow_intensities
        )
    counts = {key: len(value) for key, value in rows.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"the sites of {name} have different numbers of rows: {counts}")
    return rows


def site_rows(
    site: Site,
    key: str,
    value: Any,
    name: str,
    allow_missing: bool = False,
    allow_intensities: bool = False,
) -> np.ndarray:
    """Return the rows of one site, checked: see :func:`as_rows`."""
    if isinstance(value, jax.core.Tracer):
        elsewhere = f"; inside, jax.vmap over condition(model, free={{{key!r}: mask}}, {key}=row)"
        raise TypeError(
            f"{name} for site {key!r} are traced, but their values are looked at: call this "
            f"outside of jit, vmap and grad{elsewhere if allow_missing else ''}"
        )
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        _refuse_none(array, key, name, allow_missing)
        raise TypeError(f"{name} for site {key!r} must be numbers, got dtype {array.dtype}")
    if array.ndim != len(site.shape) + 1 or array.shape[1:] != site.shape:
        raise ValueError(
            f"{name} for site {key!r} must have shape (rows, {', '.join(map(str, site.shape))}), "
            f"got {array.shape}"
        )
    if len(array) == 0:
        raise ValueError(f"{name} is empty: at least one row is needed")
    grey = False
    if isinstance(site, Binary) and array.dtype.kind == "f":
        between = (array > 0) & (array < 1)
        if between.any():
            grey = True
            if not allow_intensities:
                row, *column = (int(i) for i in np.argwhere(between)[0])
                advice = (
                    "threshold grey levels, and put NaN where a unit is not known"
                    if allow_missing
                    else "for grey levels learn with intensities='mean' or 'sample', or threshold "
                    "them"
                )
                raise ValueError(
                    f"{name} for the binary site {key!r} must be 0 or 1, got "
                    f"{array[(row, *column)]} at row {row}, column {_place(column)}; {advice}"
                )
    hint = "drop those rows, or complete them first with impute"
    if not grey:
        site.check(key, array, allow_nan=allow_missing, nan_hint=hint)
    elif ((array < 0) | (array > 1)).any() or not (allow_missing or np.isfinite(array).all()):
        inside = np.where((array >= 0) & (array <= 1), 0.0, array)
        site.check(key, inside, allow_nan=allow_missing, nan_hint=hint)
    keep_float = grey or (array.dtype.kind == "f" and np.isnan(array).any())
    return array.astype(np.float32) if keep_float else array.astype(np.dtype(site.dtype))


def _refuse_none(array: np.ndarray, key: str, name: str, allow_missing: bool) -> None:
    """Say where a None is, which some libraries write for a missing number."""
    if array.dtype != object:
        return
    places: list[Any] = [place for place in np.ndindex(array.shape) if array[place] is None]
    if places and array.ndim > 1:
        row, *column = places[0]
        advice = "use NaN for a unit that is not known" if allow_missing else "drop those rows"
        raise TypeError(
            f"{name} for site {key!r} must be numbers, got None at row {row}, column "
            f"{_place(column)}; {advice}"
        )


def _place(column: list[int]) -> str:
    return str(column[0]) if len(column) == 1 else str(tuple(column))


def encode_rows(model: EnergyModel, rows: Mapping[str, Any]) -> dict[str, Any]:
    """Return T(x) of checked rows, by data site."""
    return {key: model.sites[key].encode(value) for key, value in rows.items()}


def check_weights(row_weights: Any, count: int) -> np.ndarray:
    """Return weights of rows in float64, ``(count,)``; ones unless given.

    Raises
    ------
    ValueError
        On weights that are negative, not finite, all zero, or of another number than the rows.
    """
    if row_weights is None:
        return np.ones(count)
    weights = np.asarray(row_weights, dtype=np.float64)
    if weights.shape != (count,):
        raise ValueError(f"row_weights must have shape ({count},), got {weights.shape}")
    bad = ~np.isfinite(weights) | (weights < 0)
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(
            f"row_weights must be finite and not negative, got {weights[row]} at row {row}"
        )
    if not weights.any():
        raise ValueError("row_weights are all zero: no row is left to learn from")
    return weights
