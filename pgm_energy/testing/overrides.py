"""What a model may override for speed, held against its energy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy.energy import EnergyModel
from pgm_energy.natural import Natural, derive_natural_parameters, select
from pgm_energy.probe import probe
from pgm_energy.sites import Real, Site
from pgm_energy.testing.exam import DOUBLE, Exam

__all__ = ["check_couplings", "check_interactions", "check_natural", "free_indices", "redraw"]

Raw = dict[str, Any]


def free_indices(model: EnergyModel, name: str) -> np.ndarray:
    """Flat indices of a site's units that are not clamped."""
    mask = model.free_units(name)
    return np.arange(model.sites[name].size) if mask is None else np.flatnonzero(mask)


def redraw(
    site: Site, values: np.ndarray, units: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Copy of raw values with some units drawn again, discrete ones to another state."""
    flat = values.reshape(-1).copy()
    if site.is_discrete:
        states = site.states
        here = np.argmax(flat[units][:, None] == states, axis=1)
        shift = rng.integers(1, max(2, len(states)), size=len(units))
        flat[units] = states[(here + shift) % len(states)]
    else:
        flat[units] = flat[units] + rng.standard_normal(len(units)).astype(flat.dtype)
    return flat.reshape(values.shape)


def _overrides(model: EnergyModel, method: str) -> bool:
    return getattr(type(model), method) is not getattr(EnergyModel, method)


def check_natural(
    exam: Exam, model: EnergyModel, configurations: list[Raw], rng: np.random.Generator
) -> None:
    """An override against energy differences, unit by unit, whole site and with an index."""
    if not _overrides(model, "natural_parameters"):
        exam.note("natural_parameters", "derived")
        return
    for name, site in model.sites.items():
        label = f"natural_parameters of {name!r}"
        # never the first units in order: an index that is ignored must show
        units = np.append(rng.permutation(np.arange(1, site.size))[:7], 0)
        for values in configurations:
            whole = model.natural_parameters(name, values)
            part = model.natural_parameters(name, values, jnp.asarray(units))
            if not site.is_discrete:
                _check_real_natural(exam, label, model, name, values, whole, part, units)
                continue
            for row, unit in enumerate(units):
                new = {**values, name: redraw(site, values[name], np.asarray([unit]), rng)}
                start = float(model.energy(**model.encode(values)))
                end = float(model.energy(**model.encode(new)))
                moved = site.encode(new[name]) - site.encode(values[name])
                moved = select(moved, site, jnp.asarray([unit]))[0]
                for how, eta in (
                    ("whole site", select(whole.eta, site, jnp.asarray([unit]))[0]),
                    ("with an index", part.eta[row]),
                ):
                    inner = float(jnp.sum(eta * moved))
                    what = f"<eta, T(new) - T(old)> of unit {unit} ({how})"
                    scale = max(abs(start), abs(end), abs(inner))
                    exam.close(label, inner, start - end, scale, DOUBLE, what)
            _check_rest(exam, label, model, name, values, whole)


def _check_real_natural(
    exam: Exam,
    label: str,
    model: EnergyModel,
    name: str,
    values: Raw,
    whole: Natural,
    part: Natural,
    units: np.ndarray,
) -> None:
    for given, index in ((whole, None), (part, jnp.asarray(units))):
        how = "whole site" if index is None else "with an index"
        if given.precision is None:
            exam.fail(label, f"real units need a precision, got None ({how})")
            continue
        matrix = Real.is_matrix(given.eta, given.precision)
        derived = derive_natural_parameters(model, name, values, index, coupled=matrix)
        for what, ours, theirs in (
            ("eta", given.eta, derived.eta),
            ("precision", given.precision, derived.precision),
        ):
            scale = np.abs(np.asarray(theirs)).max()
            exam.close(label, ours, theirs, scale, DOUBLE, f"{what} ({how})")
        _check_rest(exam, label, model, name, values, given)


def _check_rest(
    exam: Exam, label: str, model: EnergyModel, name: str, values: Raw, natural: Natural
) -> None:
    """The part of the energy that is left, where it has a meaning: units that do not interact."""
    site = model.sites[name]
    whole = natural.eta.shape == site.encoded_shape
    if natural.rest is None or not whole or not probe(model).independent(name):
        return
    energy = float(model.energy(**model.encode(values)))
    known = natural.energy(site, jnp.asarray(values[name]))
    exam.close(label, known, energy, abs(energy), DOUBLE, "rest - <eta, T>, the energy,")


def check_couplings(
    exam: Exam, model: EnergyModel, configurations: list[Raw], rng: np.random.Generator
) -> None:
    """An override against mixed energy differences of pairs of units."""
    if not _overrides(model, "block_couplings"):
        exam.note("block_couplings", "derived")
        return
    for name, site in model.sites.items():
        free = free_indices(model, name)
        if not site.is_discrete or len(free) < 2:
            continue
        units = np.append(rng.permutation(free[1:])[:5], free[0])
        table = model.block_couplings(name, jnp.asarray(units))
        expected = (len(units), *site.event) * 2
        label = f"block_couplings of {name!r}"
        exam.require(label, table.shape == expected, f"shape {table.shape}, expected {expected}")
        for values in configurations:
            for i in range(len(units)):
                for j in range(i + 1, len(units)):
                    pair = (i, j)
                    got, want, scale = _mixed(model, name, values, units, pair, table, rng)
                    what = f"the coupling of units {units[i]} and {units[j]}"
                    exam.close(label, got, want, scale, DOUBLE, what)


def _mixed(
    model: EnergyModel,
    name: str,
    values: Raw,
    units: np.ndarray,
    pair: tuple[int, int],
    table: jax.Array,
    rng: np.random.Generator,
) -> tuple[float, float, float]:
    """Coupling of two units by an override and by four energies, and the size of the latter."""
    site = model.sites[name]
    first, second = (units[[k]] for k in pair)
    one = redraw(site, values[name], first, rng)
    two = redraw(site, values[name], second, rng)
    both = one.reshape(-1).copy()
    both[second] = two.reshape(-1)[second]
    corners = [values[name], one, two, both.reshape(site.shape)]
    e = [float(model.energy(**model.encode({**values, name: x}))) for x in corners]
    moved = [
        np.asarray(
            select(site.encode(x) - site.encode(values[name]), site, jnp.asarray(unit))[0]
        ).reshape(-1)
        for x, unit in ((one, first), (two, second))
    ]
    block = np.asarray(table[pair[0], ..., pair[1], :] if site.event else table[pair])
    width = len(moved[0])
    got = float(moved[0] @ block.reshape(width, width) @ moved[1])
    return got, -(e[3] - e[1] - e[2] + e[0]), float(np.max(np.abs(e)))


def check_interactions(exam: Exam, model: EnergyModel) -> None:
    """Edges or colours of an override against the second derivatives."""
    for name, site in model.sites.items():
        told = model.interactions(name)
        adjacency = None if told is None else probe(model).adjacency(name)
        if told is None or adjacency is None:
            continue
        label = f"interactions of {name!r}"
        told = np.asarray(told)
        pairs = np.argwhere(np.triu(adjacency, 1))
        if told.ndim == 1:
            bad = pairs[told[pairs[:, 0]] == told[pairs[:, 1]]]
            what = "have the same colour but interact"
        else:
            listed = np.zeros((site.size, site.size), dtype=bool)
            listed[told[:, 0], told[:, 1]] = listed[told[:, 1], told[:, 0]] = True
            bad = pairs[~listed[pairs[:, 0], pairs[:, 1]]]
            what = "interact but are not listed"
        text = f"units {bad[0].tolist()} {what}" if len(bad) else ""
        exam.require(label, not len(bad), text)
