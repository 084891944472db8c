"""Evidence about rows: what is known of each, and the model given it, one per row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from pgm_energy._data import as_rows, site_rows
from pgm_energy._struct import is_concrete
from pgm_energy.energy import EnergyModel
from pgm_energy.sites import Real, Site, Spin
from pgm_energy.transforms import condition, tilt
from pgm_energy.transforms._base import held_values

__all__ = ["Evidence", "seen_through_noise", "values_with_gaps"]


class Evidence(NamedTuple):
    """What is known about rows; every leaf has the rows first, so that they can be mapped.

    Attributes
    ----------
    values
        Raw values by site, fillers where a unit is free.
    free
        Masks, True where a unit is free, of those sites that have a free unit in some row.
    fields, precisions
        What uncertain evidence adds: see :func:`pgm_energy.tilt`.
    """

    values: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    free: dict[str, Any] = {}  # noqa: RUF012
    fields: dict[str, Any] = {}  # noqa: RUF012
    precisions: dict[str, Any] = {}  # noqa: RUF012

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(jax.tree.leaves(self)[0])

    def given(self, model: EnergyModel) -> EnergyModel:
        """Return the model given one row of evidence (a row of each leaf)."""
        if self.values:
            model = condition(model, free=self.free, **self.values)
        return tilt(model, precision=self.precisions, **self.fields)

    def example(self, model: EnergyModel) -> EnergyModel:
        """Return the model given evidence that leaves the most units of each site free.

        Structure does not depend on the numbers, so what is verified here holds for every row.
        """
        row = jax.tree.map(lambda leaf: leaf[0], self)
        free = {name: _widest(mask) for name, mask in self.free.items()}
        return row._replace(free=free).given(model)


def _widest(mask: np.ndarray) -> np.ndarray:
    """The row of a mask with the most free units."""
    row: np.ndarray = mask[np.argmax(mask.reshape(len(mask), -1).sum(axis=1))]
    return row


def values_with_gaps(model: EnergyModel, rows: Any, *, any_site: bool = False) -> Evidence:
    """Return the evidence in rows with NaN where a unit is not known.

    Parameters
    ----------
    model
        The energy model.
    rows
        Raw values of the data site, or a dict by site, rows first.
    any_site
        Whether a dict may give any choice of sites, instead of all data sites.

    Raises
    ------
    TypeError, ValueError
        As rows of data are refused everywhere, with row and column; also where a row contradicts
        a unit that the model itself holds.

    Notes
    -----
    A unit that a conditioned model holds is known in every row, whether the row says so or not.
    """
    if any_site and isinstance(rows, Mapping):
        model.require_sites(rows)
        if not rows:
            raise ValueError("rows are empty: give values of at least one site")
        checked = {
            key: site_rows(model.sites[key], key, value, "rows", allow_missing=True)
            for key, value in rows.items()
        }
        counts = {key: len(value) for key, value in checked.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"the sites of rows have different numbers of rows: {counts}")
    else:
        checked = as_rows(model, rows, name="rows", allow_missing=True)
    # a traced model is sampled, and its sampler keeps to what it holds
    held = held_values(model) if is_concrete(model) else {}
    values, free = {}, {}
    for name, row in checked.items():
        site, gap = model.sites[name], gaps(row)
        values[name] = np.where(gap, held.get(name, site.filler), row).astype(site.dtype)
        if name in held and (own := model.free_units(name)) is not None:
            _refuse_contradictions(model, name, values[name], held[name], own)
            gap = gap & own
        if gap.any():
            free[name] = gap
    return Evidence(values, free)


def _refuse_contradictions(
    model: EnergyModel, name: str, rows: np.ndarray, held: np.ndarray, free: np.ndarray
) -> None:
    """Refuse rows that give a unit another value than the one the model holds it at."""
    wrong = np.argwhere(~free & (rows != held))
    if len(wrong):
        row, *unit = (int(i) for i in wrong[0])
        raise ValueError(
            f"{model.title} holds unit {tuple(unit)} of site {name!r} at {held[tuple(unit)]}, but "
            f"row {row} says {rows[(row, *unit)]}: leave NaN there, or use the original model"
        )


def gaps(values: np.ndarray) -> np.ndarray:
    """Mask of the NaN in checked rows."""
    return np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)


def seen_through_noise(model: EnergyModel, rows: Mapping[str, np.ndarray], noise: Any) -> Evidence:
    """Return the evidence in checked rows whose units were seen through noise, NaN where not.

    Notes
    -----
    ``log p(seen given x)`` up to a constant, as coefficients of T(x), and of x^2 for real units.

    Raises
    ------
    ValueError
        On noise that is out of range or does not fit a site.
    """
    if not isinstance(noise, Mapping):
        if len(rows) > 1:
            raise ValueError(
                f"{model.title} has data sites {', '.join(map(repr, rows))}: give noise as a dict "
                "by site"
            )
        noise = dict.fromkeys(rows, noise)
    if set(noise) != set(rows):
        raise ValueError(f"noise is for the data sites {list(rows)}, got {list(noise)}")
    fields, precisions = {}, {}
    for name, seen in rows.items():
        site = model.sites[name]
        level = _noise_level(site, name, noise[name])
        known = ~gaps(seen)
        raw = np.where(known, seen, site.filler)
        if isinstance(site, Real):
            precisions[name] = np.asarray(known / level**2, np.float32)
            fields[name] = precisions[name] * raw.astype(np.float32)
            continue
        # nats by which the state that was seen is more probable than each other one
        odds = np.where(known, np.log1p(-level) - np.log(level / (len(site.states) - 1)), 0.0)
        if site.event:
            encoded = np.asarray(site.encode(raw)) * odds[..., None]
        else:
            spin = raw if isinstance(site, Spin) else 2.0 * raw - 1.0
            encoded = spin * odds * (0.5 if isinstance(site, Spin) else 1.0)
        fields[name] = np.asarray(encoded, np.float32)
    return Evidence(fields=fields, precisions=precisions)


def _noise_level(site: Site, name: str, noise: Any) -> np.ndarray:
    level = np.asarray(noise)
    if level.dtype.kind not in "biuf":
        raise TypeError(f"noise of site {name!r} must be numbers, got dtype {level.dtype}")
    level = level.astype(float)
    try:
        level = np.broadcast_to(level, site.shape)
    except ValueError:
        raise ValueError(
            f"noise of site {name!r} must be a number or have shape {site.shape}, got {level.shape}"
        ) from None
    if isinstance(site, Real):
        what, most = "standard deviation of its noise, positive and finite", np.inf
        bad = ~((level > 0) & np.isfinite(level))
    else:
        most = 1.0 - 1.0 / len(site.states)
        what = f"probability that a unit is seen wrongly, above 0 and at most {most:g}"
        bad = ~((level > 0) & (level <= most + 1e-12))
    if not bad.any():
        return level
    place = tuple(int(i) for i in np.argwhere(bad)[0])
    value = float(level[place])
    hint = ""
    if value == 0:
        hint = ": units that are known for certain are for condition and impute"
    elif value > most:
        hint = ": noise that is wrong more often than chance says which states it is not"
    where = f" at index {place}" if np.ndim(noise) else ""
    raise ValueError(
        f"noise of the {site.family} site {name!r} is the {what}; got {value:g}{where}{hint}"
    )
