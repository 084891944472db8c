"""Sparse Boltzmann machines and Ising lattices: couplings on edges, never densified."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._batching import with_chains_last
from pgm_energy._struct import Key, Parameter, StaticArray, static, struct
from pgm_energy.energy import EnergyModel
from pgm_energy.models.grid import grid_edges, grid_fields, grid_products
from pgm_energy.natural import Natural, Values
from pgm_energy.sites import Binary, Site, Spin

__all__ = ["SparseBoltzmannMachine"]

#: A neighbour table may have this many places per end of an edge; hubs would waste the rest.
_TABLE_WASTE = 4


@struct
class SparseBoltzmannMachine(EnergyModel):
    """Boltzmann machine on a graph: ``E = -sum_e values[e] x_i x_j - sum_i bias_i x_i``.

    Make one with :meth:`from_edges` or :func:`ising_lattice`.

    Parameters
    ----------
    values
        ``(m,)``, one coupling per edge, nats.
    bias
        One bias per unit, shaped like the site; its shape is the shape of the site.
    edges
        ``(m, 2)``, the pairs of flat unit numbers that are coupled (structure: fixed).
    colours
        ``(n,)``, labels that differ along every edge, or None to have them found.
    periodic
        For a lattice, whose edges come axis by axis: whether opposite sides are joined, by axis.
        None for any other graph.
    dims
        Names of the dimensions of the site.
    unit
        ``Binary`` or ``Spin``.

    Raises
    ------
    ValueError
        On an edge from a unit to itself, an edge given twice (in either direction), a unit out
        of range, colours that do not differ along an edge, shapes that do not fit, NaN or
        infinite parameters.

    Notes
    -----
    Memory grows with the number of edges. The natural parameters of a block are read from a
    table of neighbours; where a few hubs would make the table wide, all edges are summed instead.

    Examples
    --------
    >>> import pgm_energy as pgm
    >>> chain = pgm.SparseBoltzmannMachine.from_edges([(0, 1), (1, 2)], [0.5, -0.5], [0, 0, 0])
    >>> float(chain.log_density({"v": [1, 1, 0]}))
    0.5
    """

    values: Parameter
    bias: Parameter
    edges: Any = static()
    colours: Any = static(default=None)
    periodic: tuple[bool, ...] | None = static(default=None)
    dims: tuple[str, ...] = static(default=())
    unit: Any = static(default=Binary)

    data_sites: ClassVar[tuple[str, ...]] = ("v",)

    def validate(self) -> None:
        """Refuse what is no simple graph with one coupling per edge."""
        if self.unit not in (Binary, Spin):
            raise TypeError(f"unit must be Binary or Spin, got {self.unit!r}")
        if self.bias.ndim == 0 or 0 in self.bias.shape:
            raise ValueError(f"bias must have one entry per unit, got shape {self.bias.shape}")
        if not isinstance(self.edges, StaticArray):
            pairs = StaticArray(_check_edges(self.edges, self.bias.size))
            object.__setattr__(self, "edges", pairs)
        _neighbour_table(self.edges, self.bias.size)  # checked once per graph
        if self.colours is not None:
            colours = self.colours
            if not isinstance(colours, StaticArray):
                colours = StaticArray(np.asarray(colours))
                object.__setattr__(self, "colours", colours)
            _check_colours(self.edges, colours, self.bias.size)
        if self.periodic is not None:
            object.__setattr__(self, "periodic", tuple(bool(p) for p in self.periodic))
            _check_grid(self.edges, self.bias.shape, self.periodic)
        if self.values.shape != (len(self.edges),):
            raise ValueError(
                f"values must have one coupling per edge, shape ({len(self.edges)},), "
                f"got {self.values.shape}"
            )

    @property
    def neighbours(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Neighbours of each unit and their edges, ``(n, degree)``, padded with edge m.

        None where a few hubs would make the table mostly padding.
        """
        return _neighbour_table(self.edges, self.bias.size)

    @classmethod
    def from_edges(
        cls, edges: Any, values: Any, bias: Any, unit: Any = Binary
    ) -> SparseBoltzmannMachine:
        """Return the machine with these couplings.

        Parameters
        ----------
        edges
            ``(m, 2)`` pairs of unit numbers from 0, each pair once.
        values
            Couplings, ``(m,)``, or one number for all.
        bias
            Biases, ``(n,)``; their number is the number of units.
        unit
            ``Binary`` or ``Spin``.

        Raises
        ------
        ValueError
            As the class.

        Examples
        --------
        >>> import pgm_energy as pgm
        >>> ring = pgm.SparseBoltzmannMachine.from_edges(
        ...     [(0, 1), (1, 2), (2, 3), (3, 0)], 0.4, [0.0] * 4, unit=pgm.Spin)
        >>> print(pgm.blocks(ring))
        SparseBoltzmannMachine: one sweep is 1 block in turn
          1  v  4 spin units  2 colours, each at once
        """
        bias = jnp.asarray(bias, dtype=jnp.result_type(float))
        if bias.ndim != 1:
            raise ValueError(f"bias must have shape (n,), got {bias.shape}")
        pairs = _check_edges(edges, bias.size)
        values = jnp.asarray(values, dtype=jnp.result_type(float))
        if values.ndim == 0:
            values = jnp.full(len(pairs), values)
        return cls(values=values, bias=bias, edges=pairs, dims=("visible",), unit=unit)

    @property
    def sites(self) -> dict[str, Site]:
        """One site ``v`` of the shape of the bias."""
        return {"v": self.unit(self.bias.shape, dims=self.dims)}

    def energy(self, v: jax.Array) -> jax.Array:
        """Return E(v), nats: a sum over edges."""
        if self.periodic is not None:
            return -grid_products(v, self.values, self.periodic) - jnp.sum(self.bias * v)
        flat = v.reshape(-1)
        first, second = self.edges.array.T
        return -jnp.sum(self.values * flat[first] * flat[second]) - jnp.sum(self.bias * v)

    def natural_parameters(
        self, site: str, values: Values, index: jax.Array | None = None
    ) -> Natural:
        """Return the natural parameters of some units: sums over their neighbours.

        Cost: the number of units times the largest degree, where the derivation pays for all
        edges.
        """
        family = self.sites[site]
        if index is None and self.periodic is not None:
            raw = jnp.asarray(values[site])
            return Natural(self.bias + grid_fields(family, raw, self.values, self.periodic))
        bias = self.bias.reshape(-1)
        flat = jnp.asarray(values[site]).reshape(-1)
        table = self.neighbours
        if table is None:
            flat = family.encode(flat)
            first, second = self.edges.array.T
            fields = bias.at[first].add(self.values * flat[second])
            fields = fields.at[second].add(self.values * flat[first])
            return Natural(fields.reshape(self.bias.shape) if index is None else fields[index])
        around, edges = (jnp.asarray(part) for part in table)
        if index is not None:
            around, edges, bias = around[index], edges[index], bias[index]
        weights = self.values.at[edges].get(mode="fill", fill_value=0.0)
        eta = _neighbour_fields(family, flat, bias, weights, around)
        return Natural(eta if index is not None else eta.reshape(self.bias.shape))

    def block_couplings(self, site: str, index: jax.Array) -> jax.Array:
        """Return the couplings inside a block, looked up among the units' neighbours."""
        table = self.neighbours
        if table is None:
            return EnergyModel.block_couplings(self, site, index)
        around, edges = (jnp.asarray(part)[index] for part in table)
        weights = self.values.at[edges].get(mode="fill", fill_value=0.0)
        same = around[:, :, None] == index
        return jnp.sum(jnp.where(same, weights[:, :, None], 0.0), axis=1)

    def evaluates_whole_site(self, site: str) -> bool:
        """Return True for a lattice."""
        return self.periodic is not None

    def interactions(self, site: str) -> np.ndarray:
        """Return the colours if they are known, else the edges."""
        return self.edges.array if self.colours is None else self.colours.array

    def pair_couplings(self) -> tuple[np.ndarray, jax.Array]:
        """Return the edges and their couplings."""
        return self.edges.array, self.values

    @classmethod
    def init(
        cls,
        rng_key: Key,
        *,
        edges: Any,
        num_visible: int,
        data: Any = None,
        unit: Any = Binary,
        scale: float = 0.01,
    ) -> SparseBoltzmannMachine:
        """Return a machine to start learning from: small couplings, biases from frequencies.

        Parameters
        ----------
        rng_key
            A JAX random key.
        edges
            ``(m, 2)`` pairs of unit numbers.
        num_visible
            Number of units.
        data
            Rows ``(N, num_visible)`` whose frequencies set the biases.
        unit
            ``Binary`` or ``Spin``.
        scale
            Standard deviation of the initial couplings.

        Examples
        --------
        >>> import jax, pgm_energy as pgm
        >>> pgm.SparseBoltzmannMachine.init(
        ...     jax.random.key(0), edges=[(0, 1)], num_visible=3).bias.shape
        (3,)
        """
        from pgm_energy.models.rbm import data_start

        pairs = _check_edges(edges, num_visible)
        bias, _ = data_start(unit(num_visible), data)
        return cls(
            values=scale * jax.random.normal(rng_key, (len(pairs),)),
            bias=jnp.zeros(num_visible) if bias is None else bias,
            edges=pairs,
            dims=("visible",),
            unit=unit,
        )


def _neighbour_fields(
    family: Site, flat: jax.Array, bias: jax.Array, weights: jax.Array, around: jax.Array
) -> jax.Array:
    """Bias plus the weighted sum over neighbours ``(units, degree)``, chains on trailing axes."""

    def fields(
        flat: jax.Array, bias: jax.Array, weights: jax.Array, around: jax.Array
    ) -> jax.Array:
        # the block's rows of the tables are made once, not looked up again for every chain
        # (a barrier each: JAX cannot transpose one over constants and differentiated numbers)
        bias, weights, around = map(jax.lax.optimization_barrier, (bias, weights, around))
        eta = bias
        for slot in range(around.shape[1]):  # one gather after another: XLA fuses them all
            eta = eta + weights[:, slot] * family.encode(
                flat.at[around[:, slot]].get(mode="promise_in_bounds")
            )
        # nor fused with the drawing of random numbers, which is vectorised and this is not
        return jax.lax.optimization_barrier(eta)

    return with_chains_last(fields, fixed=(3,))(flat, bias, weights, around)


def _check_edges(edges: Any, num_units: int) -> np.ndarray:
    """Return edges as a checked integer array ``(m, 2)``."""
    pairs = np.asarray(edges.array if isinstance(edges, StaticArray) else edges)
    if pairs.size == 0:
        return np.zeros((0, 2), dtype=np.int32)
    if pairs.dtype.kind not in "iu" or pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(
            f"edges must be integers of shape (m, 2), got {pairs.dtype} of shape {pairs.shape}"
        )
    pairs = pairs.astype(np.int64)
    outside = np.argwhere((pairs < 0) | (pairs >= num_units))
    if len(outside):
        row = int(outside[0, 0])
        raise ValueError(
            f"edge {row} is {tuple(pairs[row].tolist())}, but there are {num_units} units, "
            f"0 to {num_units - 1} (one per bias)"
        )
    loops = np.flatnonzero(pairs[:, 0] == pairs[:, 1])
    if len(loops):
        row = int(loops[0])
        raise ValueError(
            f"edge {row} couples unit {int(pairs[row, 0])} to itself: a unit's own term belongs "
            "in bias"
        )
    key = pairs.min(axis=1) * num_units + pairs.max(axis=1)
    order = np.argsort(key, kind="stable")
    again = np.flatnonzero(key[order[1:]] == key[order[:-1]])
    if len(again):
        first, second = (int(order[again[0] + k]) for k in (0, 1))
        raise ValueError(
            f"edges {first} and {second} join the same units {tuple(pairs[first].tolist())}: give "
            "each pair once, with the sum of its couplings"
        )
    return pairs.astype(np.int32)


@functools.lru_cache(maxsize=32)
def _check_colours(edges: StaticArray, colours: StaticArray, num_units: int) -> None:
    labels = colours.array
    if labels.shape != (num_units,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"colours must be integers of shape ({num_units},), got {labels.dtype} of "
            f"shape {labels.shape}"
        )
    same = np.flatnonzero(labels[edges.array[:, 0]] == labels[edges.array[:, 1]])
    if len(same):
        i, j = (int(k) for k in edges.array[same[0]])
        raise ValueError(f"units {i} and {j} are coupled and have the same colour")


@functools.lru_cache(maxsize=32)
def _check_grid(edges: StaticArray, sides: tuple[int, ...], periodic: tuple[bool, ...]) -> None:
    if len(periodic) != len(sides) or not np.array_equal(edges.array, grid_edges(sides, periodic)):
        raise ValueError(
            f"periodic={periodic} tells that the edges are those of a lattice of shape {sides}, "
            "axis by axis, and they are not: make lattices with ising_lattice, or leave it out"
        )


@functools.lru_cache(maxsize=32)
def _neighbour_table(edges: StaticArray, num_units: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Neighbours and edge numbers of each unit, padded; None where the padding would dominate."""
    pairs = _check_edges(edges, num_units)
    count = len(pairs)
    ends = np.concatenate([pairs[:, 0], pairs[:, 1]])
    degree = np.bincount(ends, minlength=num_units)
    width = int(degree.max(initial=0))
    if width == 0 or num_units * width > _TABLE_WASTE * (2 * count + num_units):
        return None
    order = np.argsort(ends, kind="stable")
    rows = ends[order]
    places = np.arange(2 * count) - (np.cumsum(degree) - degree)[rows]
    neighbours = np.zeros((num_units, width), dtype=np.int32)
    numbers = np.full((num_units, width), count, dtype=np.int32)
    neighbours[rows, places] = np.concatenate([pairs[:, 1], pairs[:, 0]])[order]
    numbers[rows, places] = order % count
    return neighbours, numbers
