"""Schedules: what may be updated together, found from the energy, coloured and verified."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import networkx as nx
import numpy as np

from pgm_energy._struct import StaticArray
from pgm_energy.colouring import PANEL, colour, coloured_rows, panels, user_level
from pgm_energy.energy import EnergyModel
from pgm_energy.probe import (
    Probe,
    as_index,
    probe,
    require_block,
    require_positive_definite,
    structure_key,
)
from pgm_energy.sites import Real, Site

__all__ = ["Block", "Blocks", "Step", "blocks", "verify"]


@dataclasses.dataclass(frozen=True)
class Block:
    """A block by hand: units of one site that are drawn at once.

    Parameters
    ----------
    site
        Name of the site.
    index
        Flat indices of its units (or a mask of the site's shape); None for the whole site.

    Examples
    --------
    >>> Block("v", [0, 2]).site
    'v'
    """

    site: str
    index: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.site, str):
            raise TypeError(f"a block starts with the name of a site, got {self.site!r}")
        if self.index is not None and np.size(self.index) == 0:
            raise ValueError(f"a block of site {self.site!r} needs at least one unit")
        if self.index is not None and not isinstance(self.index, StaticArray):
            object.__setattr__(self, "index", StaticArray(self.index))


@dataclasses.dataclass(frozen=True)
class Step:
    """One kind of update of one site, scanned over rows of units.

    Attributes
    ----------
    site
        Name of the site.
    kind
        ``joint`` (a row of independent units, or one coupled normal, at once), ``sequential`` (a
        row of coupled units, one after another) or ``difference`` (every unit by energies).
    index, mask
        Flat units of each row ``(num_rows, width)`` and False where a row is padded; None for
        the whole site as one row.
    coupled
        Whether real units are drawn from one multivariate normal.
    """

    site: str
    kind: Literal["joint", "sequential", "difference"]
    index: StaticArray | None = None
    mask: StaticArray | None = None
    coupled: bool = False

    @property
    def num_rows(self) -> int:
        """How many rows are updated one after another."""
        return 1 if self.index is None else len(self.index)

    @functools.cached_property
    def contiguous(self) -> bool:
        """Whether every row is a range of units, written as a slice."""
        return self.index is not None and bool((np.diff(self.index.array, axis=1) == 1).all())

    def units(self, site: Site) -> np.ndarray:
        """Return the flat units that the step updates."""
        if self.index is None:
            return np.arange(site.size)
        assert self.mask is not None
        return self.index.array[self.mask.array]

    def describe(self) -> str:
        """Say in words what is drawn together."""
        if self.kind == "difference":
            return "one unit at a time by energy differences"
        if self.kind == "sequential":
            assert self.index is not None
            width = self.index.shape[1]
            if width == 1:
                return "one unit at a time"
            return f"sequential sweep in {self.num_rows} panel(s) of {width} units"
        if self.coupled:
            return "one multivariate normal"
        if self.index is None:
            return "all units at once"
        colours = self.num_rows
        return f"{colours} colours, each at once" if colours > 1 else "one block of units at once"


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A verified schedule of one sweep; hashable, prints readably.

    Attributes
    ----------
    groups
        Tuples of steps; the sites of one group do not interact and are drawn together.
    sites
        ``(name, site)`` of the model that it was made for.
    owner
        Name of the model's class.
    structure
        Of the model that it was verified for (class, static fields and leaf shapes).
    """

    groups: tuple[tuple[Step, ...], ...]
    sites: tuple[tuple[str, Site], ...]
    owner: str = "EnergyModel"
    structure: Any = None

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps, in the order of a sweep."""
        return tuple(step for group in self.groups for step in group)

    @property
    def num_blocks(self) -> int:
        """Updates of a sweep that wait for one another."""
        return sum(max(step.num_rows for step in group) for group in self.groups)

    def restrict(self, names: Iterable[str]) -> Blocks:
        """Return the part of the schedule that updates these sites, the others being fixed."""
        keep = set(names)
        groups = (tuple(s for s in group if s.site in keep) for group in self.groups)
        return dataclasses.replace(self, groups=tuple(group for group in groups if group))

    def missing(self) -> dict[str, np.ndarray]:
        """Return the units that no step updates, by site."""
        left = {}
        for name, site in self.sites:
            seen = np.zeros(site.size, dtype=bool)
            for step in self.steps:
                if step.site == name:
                    seen[step.units(site)] = True
            if not seen.all():
                left[name] = np.flatnonzero(~seen)
        return left

    def __str__(self) -> str:
        sites = dict(self.sites)
        noun = "block" if len(self.groups) == 1 else "blocks"
        lines = [f"{self.owner}: one sweep is {len(self.groups)} {noun} in turn"]
        rows = []
        for number, group in enumerate(self.groups, start=1):
            for step in group:
                site = sites[step.site]
                count = len(step.units(site))
                of = f" of {site.size}" if count != site.size else ""
                units = f"{count}{of} {site.family} unit{'s' if count != 1 else ''}"
                rows.append((str(number), step.site, units, step.describe()))
        widths = [max(len(row[i]) for row in rows) for i in range(3)] if rows else []
        lines += [
            "  "
            + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
            + "  "
            + row[3]
            for row in rows
        ]
        return "\n".join(lines)

    __repr__ = __str__


def blocks(model: EnergyModel, given: Sequence[str | Block] | None = None) -> Blocks:
    """Return the coloured, verified schedule of one Gibbs sweep over a model.

    Parameters
    ----------
    model
        The energy model.
    given
        Blocks by hand, in order: names of whole sites, or :class:`Block`. They are verified
        like derived ones. None: found from the energy.

    Raises
    ------
    ValueError
        If a given block's units interact or blocks overlap; if a real site is not normal given
        the rest or its precision is not positive definite; if the energy is NaN.

    Warns
    -----
    UserWarning
        If a discrete site has to be sampled by energy differences, with how to write it faster.

    Notes
    -----
    Structure is probed at random parameters (``model.generic``), so a model at zero couplings
    gets the schedule of its trained self. Every step satisfies, at random raw configurations in
    float64, the identity that the sampler relies on. Cost: about a second per new structure,
    nothing after that.

    Examples
    --------
    >>> import pgm_energy as pgm, jax.numpy as jnp
    >>> rbm = pgm.RBM(weights=jnp.zeros((4, 3)))
    >>> print(pgm.blocks(rbm))
    RBM: one sweep is 2 blocks in turn
      1  v  4 binary units  all units at once
      2  h  3 binary units  all units at once
    """
    if not isinstance(model, EnergyModel):
        raise TypeError(f"blocks takes an energy model, got {type(model).__name__}")
    exam = probe(model)
    if given is not None:
        return _by_hand(model, exam, given)
    key = ("schedule", structure_key(model))
    if key not in exam._cache:
        exam._cache[key] = _schedule(model, exam)
    schedule: Blocks = exam._cache[key]
    if any(not site.is_discrete for site in exam.sites.values()):
        require_positive_definite(model)
    slow = [step.site for step in schedule.steps if step.kind == "difference"]
    if slow:
        names = ", ".join(map(repr, slow))
        warnings.warn(
            f"{exam.owner} is sampled at {names} by energy differences, one unit at a time: exact "
            "but slow, because its energy is not affine in each unit there. If it can be written "
            "affinely, do: for spins s_i == s_j is (1 + s_i * s_j) / 2, for one-hot states "
            "c_i == c_j is c_i @ c_j, and x**2 of a binary unit is x",
            UserWarning,
            stacklevel=user_level(),
        )
    return schedule


def verify(schedule: Blocks, model: EnergyModel) -> None:
    """Refuse a schedule that does not hold for this model (made, say, for another class).

    Raises
    ------
    ValueError
        Naming the site whose step does not satisfy the energy identity.

    Notes
    -----
    Free for the structure that the schedule was made for; otherwise probed once.
    """
    if schedule.structure == _structure(model):
        return
    exam = probe(model)
    for step in schedule.steps:
        if step.kind == "difference":
            continue
        rows: tuple[Any, Any] = (None, None)
        if step.index is not None and step.mask is not None:
            rows = (step.index.array, step.mask.array)
        kind = "joint" if rows[0] is None or rows[0].shape[1] == 1 else step.kind
        found = exam.verdict(step.site, *rows, kind=kind, coupled=step.coupled)
        if not found.holds:
            raise ValueError(
                f"these blocks were made for {schedule.owner} and are wrong for {exam.owner}: "
                f"{step.describe()} at site {step.site!r} does not hold (worst relative residual "
                f"{found.residual:.2g}); make new ones with blocks(model)"
            )


def _structure(model: EnergyModel) -> Any:
    treedef, leaves = structure_key(model)
    return treedef, tuple(shape for shape, _ in leaves)


def _by_hand(model: EnergyModel, exam: Probe, given: Sequence[str | Block]) -> Blocks:
    if isinstance(given, str | Block) or not len(given):
        raise ValueError(
            f"blocks are a non-empty list of site names or Block(site, index), got {given!r}"
        )
    seen: dict[str, np.ndarray] = {}
    groups = []
    for block in given:
        if isinstance(block, str):
            block = Block(block)
        if not isinstance(block, Block):
            raise TypeError(f"a block is a site name or a Block(site, index), got {block!r}")
        model.require_sites([block.site])
        site = exam.sites[block.site]
        units = None if block.index is None else as_index(site, block.site, block.index)
        taken = seen.setdefault(block.site, np.zeros(site.size, dtype=bool))
        here = np.arange(site.size) if units is None else units
        if taken[here].any():
            unit = exam.unit_name(block.site, int(here[taken[here]][0]))
            raise ValueError(f"blocks overlap: {unit} is in two of them")
        taken[here] = True
        coupled = require_block(model, block.site, units)
        index = mask = None
        if units is not None:
            index = StaticArray(units[None, :])
            mask = StaticArray(np.ones((1, len(units)), dtype=bool))
        groups.append((Step(block.site, "joint", index, mask, coupled),))
    return Blocks(tuple(groups), tuple(exam.sites.items()), exam.owner, _structure(model))


def _schedule(model: EnergyModel, exam: Probe) -> Blocks:
    steps = {name: _site_step(model, exam, name) for name in exam.sites}
    names = list(exam.sites)
    graph = nx.Graph()
    graph.add_nodes_from(names)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            if exam.sites_interact(first, second):
                graph.add_edge(first, second)
    colours = colour(graph)
    groups: dict[int, list[Step]] = {}
    for name in names:
        groups.setdefault(colours[name], []).append(steps[name])
    return Blocks(
        tuple(tuple(group) for group in groups.values()),
        tuple(exam.sites.items()),
        exam.owner,
        _structure(model),
    )


def _site_step(model: EnergyModel, exam: Probe, name: str) -> Step:
    site = exam.sites[name]
    if isinstance(site, Real):
        return _real_step(model, exam, name, site)
    if exam.independent(name) and exam.verdict(name).holds:
        return Step(name, "joint")
    if not exam.independent(name):
        rows = coloured_rows(model, exam, name, site)
        if rows is not None and exam.verdict(name, *rows).holds:
            return Step(name, "joint", StaticArray(rows[0]), StaticArray(rows[1]))
        rows = panels(site.size, PANEL)
        if exam.verdict(name, *rows, kind="sequential").holds:
            return Step(name, "sequential", StaticArray(rows[0]), StaticArray(rows[1]))
    rows = panels(site.size, 1)
    if exam.verdict(name, *rows).holds:
        return Step(name, "sequential", StaticArray(rows[0]), StaticArray(rows[1]))
    return Step(name, "difference")


def _real_step(model: EnergyModel, exam: Probe, name: str, site: Real) -> Step:
    if not site.coupled and exam.verdict(name).holds:
        return Step(name, "joint")
    if not site.coupled and site.size > 16 * PANEL:  # a large sparse precision: colours
        rows = coloured_rows(model, exam, name, site)
        if rows is not None and exam.verdict(name, *rows).holds:
            return Step(name, "joint", StaticArray(rows[0]), StaticArray(rows[1]))
    return Step(name, "joint", coupled=require_block(model, name, None))
