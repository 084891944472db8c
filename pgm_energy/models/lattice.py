"""Ising models on rectangular lattices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from pgm_energy.models.grid import grid_axes, grid_colours, grid_edges
from pgm_energy.models.sparse import SparseBoltzmannMachine
from pgm_energy.sites import Spin

__all__ = ["ising_lattice"]

_LATTICE_DIMS = {1: ("position",), 2: ("row", "column"), 3: ("plane", "row", "column")}


def ising_lattice(
    shape: int | Sequence[int],
    coupling: Any,
    field: Any = 0.0,
    periodic: bool | Sequence[bool] = True,
) -> SparseBoltzmannMachine:
    """Return an Ising model on a rectangular lattice of any dimension, with spins -1 and +1.

    ``E = -sum_<ij> K x_i x_j - sum_i H_i x_i``; each pair of nearest neighbours once.

    Parameters
    ----------
    shape
        Sides of the lattice.
    coupling
        K, already multiplied by the inverse temperature: one number, or one per axis.
    field
        H, already multiplied by the inverse temperature: one number or an array of the
        lattice's shape.
    periodic
        Whether opposite sides are joined; one value, or one per axis.

    Returns
    -------
    SparseBoltzmannMachine
        With one spin site ``v`` of the lattice's shape.

    Raises
    ------
    ValueError
        On a periodic side shorter than 3, which would couple a unit to itself or a pair twice;
        on parameters of other shapes, NaN or infinite.

    Notes
    -----
    A checkerboard of two colours, or three where a periodic side is odd; the colours come from
    the coordinates, so a million units are no trouble.

    References
    ----------
    E. Ising (1925), Beitrag zur Theorie des Ferromagnetismus. B. Kaufman (1949), Crystal
    statistics II, for the exact log Z of the two-dimensional torus.

    Examples
    --------
    >>> import pgm_energy as pgm
    >>> lattice = pgm.ising_lattice((4, 4), coupling=0.3)
    >>> lattice.values.shape, lattice.sites["v"].shape
    ((32,), (4, 4))
    """
    sides = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    if not sides or not all(isinstance(n, int | np.integer) and n > 0 for n in sides):
        raise ValueError(f"shape must be one or more positive integers, got {shape!r}")
    joined = (periodic,) * len(sides) if isinstance(periodic, bool) else tuple(periodic)
    if len(joined) != len(sides) or not all(isinstance(p, bool | np.bool_) for p in joined):
        raise ValueError(
            f"periodic must be True, False, or one of them per axis of {sides}, got {periodic!r}"
        )
    for axis, (side, loop) in enumerate(zip(sides, joined, strict=True)):
        if loop and side < 3:
            raise ValueError(
                f"axis {axis} of length {side} cannot be periodic: it would couple "
                f"{'a unit to itself' if side == 1 else 'each pair twice'}; use sides of 3 or "
                "more, or periodic=False (one value per axis is possible)"
            )
    sides = tuple(int(n) for n in sides)
    periods = tuple(bool(p) for p in joined)
    kind = jnp.result_type(float)
    strength = jnp.asarray(coupling, dtype=kind)
    if strength.shape not in {(), (len(sides),)}:
        raise ValueError(
            f"coupling must be one number or one per axis ({len(sides)}), got shape "
            f"{strength.shape}"
        )
    bias = jnp.asarray(field, dtype=kind)
    if bias.shape not in {(), sides}:
        raise ValueError(
            f"field must be one number or have the lattice's shape {sides}, got {bias.shape}"
        )
    return SparseBoltzmannMachine(
        values=jnp.broadcast_to(strength, (len(sides),))[grid_axes(sides, periods)],
        bias=jnp.broadcast_to(bias, sides),
        edges=grid_edges(sides, periods),
        colours=grid_colours(sides, periods),
        periodic=periods,
        dims=_LATTICE_DIMS.get(len(sides), ()),
        unit=Spin,
    )
