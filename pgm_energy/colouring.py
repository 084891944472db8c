"""Colouring: which units of a site may share a row of a schedule."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Sequence
from typing import Any

import networkx as nx
import numpy as np

from pgm_energy.energy import EnergyModel
from pgm_energy.probe import Probe
from pgm_energy.sites import Site

__all__ = ["PANEL", "colour", "coloured_rows", "panels", "user_level"]

#: Above this share of interacting pairs a colouring gains nothing over a sequential sweep.
DENSE_SHARE = 0.3
#: Units up to which a colouring is improved by interchanges (measured: 33 ms for a 31 x 31 torus).
INTERCHANGE_LIMIT = 10_000
#: Units of a sequential panel: one product for all, then each in turn (measured: 16 to 64 alike).
PANEL = 32


def panels(size: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of consecutive units; the last row is padded in front, with units already drawn."""
    num_rows = math.ceil(size / width)
    width = math.ceil(size / num_rows)
    starts = np.minimum(np.arange(num_rows) * width, size - width)
    index = starts[:, None] + np.arange(width)
    return index.astype(np.int32), index >= np.arange(num_rows)[:, None] * width


def _padded(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    width = max(len(row) for row in rows)
    index = np.stack([np.pad(row, (0, width - len(row)), constant_values=row[0]) for row in rows])
    mask = np.stack([np.arange(width) < len(row) for row in rows])
    return index.astype(np.int32), mask


def coloured_rows(
    model: EnergyModel, exam: Probe, name: str, site: Site
) -> tuple[np.ndarray, np.ndarray] | None:
    """Colour classes of a site's units, or None where it is too dense to gain from colours."""
    told = model.interactions(name)
    if told is None:
        adjacency = exam.adjacency(name)
        if adjacency is None:
            warnings.warn(
                f"site {name!r} of {exam.owner} has {site.size} units that interact, too many to "
                "find out which: it is swept sequentially. Implement interactions(site) to return "
                "its edges (m, 2) or colours (n,)",
                UserWarning,
                stacklevel=user_level(),
            )
            return None
        edges = np.argwhere(np.triu(adjacency, 1))
    else:
        told = np.asarray(told)
        if told.dtype.kind not in "iu" or told.shape not in {(site.size,), (len(told), 2)}:
            raise ValueError(
                f"interactions({name!r}) of {exam.owner} must be integer edges (m, 2) or colours "
                f"({site.size},), got {told.dtype} of shape {told.shape}"
            )
        if told.shape == (site.size,):
            return _padded([np.flatnonzero(told == c) for c in np.unique(told)])
        edges = told
    dense = len(edges) > DENSE_SHARE * site.size * (site.size - 1) / 2
    if dense and site.size > 2 * PANEL:  # colouring it would cost more than it gains
        return None
    graph = nx.Graph()
    graph.add_nodes_from(range(site.size))
    graph.add_edges_from(edges.tolist())
    colours = colour(graph)
    if dense and 2 * (max(colours.values()) + 1) > site.size:
        return None
    labels = np.array([colours[unit] for unit in range(site.size)])
    return _padded([np.flatnonzero(labels == c) for c in np.unique(labels)])


def colour(graph: nx.Graph) -> dict[Any, int]:
    """Two colours where they suffice (first node first), else greedy, largest degree first.

    Interchanging colours costs a little and finds the three of an odd torus.
    """
    try:
        return nx.bipartite.color(graph) if graph.number_of_edges() else dict.fromkeys(graph, 0)
    except nx.NetworkXError:
        interchange = len(graph) <= INTERCHANGE_LIMIT
        return nx.greedy_color(graph, strategy="largest_first", interchange=interchange)


def user_level() -> int:
    """Depth of the first caller outside this package, for warnings."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").startswith("pgm_energy"):
        frame, level = frame.f_back, level + 1
    return max(level, 1)
