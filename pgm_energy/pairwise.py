"""Pairwise energies as strengths of agreement on edges, and fields: what clusters are made of."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._struct import StaticArray, is_concrete
from pgm_energy.configurations import random_values
from pgm_energy.energy import EnergyModel
from pgm_energy.natural import Values
from pgm_energy.probe import eager_float64
from pgm_energy.sites import Site

__all__ = ["Agreements", "Pairs", "pairs_of", "state_numbers"]

#: Encoded size up to which couplings are derived from a dense Hessian.
DENSE_LIMIT = 2048
#: Largest relative residual of a pairwise energy, in float64 and in the precision of a run.
TOLERANCE, ROUNDED = 1e-9, 1e-4


class Agreements(NamedTuple):
    """Numbers of ``E = const - sum_e strengths[e] [s_i == s_j] - sum_i fields[i, s_i]``.

    Attributes
    ----------
    strengths
        ``(m,)``, nats gained where the ends of an edge are in the same state.
    fields
        ``(n, K)``, nats, by unit and number of its state.
    misfit
        Largest part of the couplings that is not of this form, nats.
    """

    strengths: jax.Array
    fields: jax.Array
    misfit: jax.Array


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Who interacts with whom in a pairwise energy; hashable. Made by :func:`pairs_of`.

    Attributes
    ----------
    owner
        Name of the model's class.
    sites
        ``(name, site)`` in order; units are numbered through all of them.
    edges
        ``(m, 2)`` pairs of unit numbers.
    told
        Whether the model's ``pair_couplings`` gives the couplings; derived otherwise.
    """

    owner: str
    sites: tuple[tuple[str, Site], ...]
    edges: StaticArray
    told: bool

    @property
    def num_units(self) -> int:
        """Number of units of all sites."""
        return sum(site.size for _, site in self.sites)

    @property
    def num_states(self) -> int:
        """Number of states of every unit."""
        return len(self.sites[0][1].states)

    def agreements(self, model: EnergyModel) -> Agreements:
        """Return the numbers of a model with this structure (jit, vmap and grad work)."""
        couplings, fields, stray = _tables(self, model)
        return _decompose(self, couplings, fields, stray)

    def states(self, values: Values) -> jax.Array:
        """Return the number of each unit's state, ``(n,)``."""
        return jnp.concatenate([state_numbers(site, values[name]) for name, site in self.sites])

    def values(self, states: jax.Array) -> dict[str, jax.Array]:
        """Return raw values by site; undoes :meth:`states`."""
        values, start = {}, 0
        for name, site in self.sites:
            part = jnp.asarray(site.states)[states[start : start + site.size]]
            values[name] = site.cast(part).reshape(site.shape)
            start += site.size
        return values

    def unit_name(self, number: int) -> str:
        """Return a unit's name for messages, such as ``v[3]``."""
        for name, site in self.sites:
            if number < site.size:
                place = np.unravel_index(number, site.shape) if site.shape else ()
                return f"{name}[{', '.join(str(int(i)) for i in place)}]" if place else name
            number -= site.size
        raise IndexError(number)


def state_numbers(site: Site, values: Any) -> jax.Array:
    """Return the number of each unit's state, flat, from 0."""
    flat = jnp.asarray(values).reshape(-1).astype(jnp.int32)
    return flat if site.states[0] == 0 else (flat > 0).astype(jnp.int32)


def pairs_of(model: EnergyModel, what: str) -> Pairs:
    """Return the verified structure of a pairwise energy.

    Parameters
    ----------
    model
        A model of discrete sites with concrete parameters.
    what
        Who asks, for messages.

    Raises
    ------
    TypeError
        If ``model`` is no energy model.
    ValueError
        If its parameters are traced, a site is real, units have different numbers of states,
        the energy is not pairwise, or its couplings do not only tell agreement from
        disagreement.

    Notes
    -----
    Couplings come from the model's ``pair_couplings`` where it has them, else from a Hessian of
    the energy. Either way the sum over edges is held against the energy at random configurations
    in float64, at the model's parameters and at generic ones.
    """
    if not isinstance(model, EnergyModel):
        raise TypeError(f"{what} takes an energy model, got {type(model).__name__}")
    if not is_concrete(model):
        raise ValueError(
            f"{what} reads couplings off concrete parameters: make it outside of jit, vmap and grad"
        )
    _check_sites(model, what)
    with eager_float64():
        own = _double(model)
        generic = model.generic(jax.random.key(20))
        pairs = _structure(own, generic, what)
        for candidate in (own, generic):
            _verify(pairs, candidate, what)
        _check_form(pairs, _compiled_agreements(pairs, own), what)
    return pairs


def _check_form(pairs: Pairs, numbers: Agreements, what: str) -> None:
    """Refuse concrete couplings that do not tell agreement, or that repel more than two states.

    Raises
    ------
    ValueError
        Naming the units.
    """
    strengths = np.asarray(numbers.strengths)
    if pairs.num_states == 2:
        return
    scale = max(1.0, float(np.abs(strengths).max(initial=0.0)))
    if float(numbers.misfit) > ROUNDED * scale:
        raise ValueError(
            f"{what} needs couplings that only tell whether two units agree, "
            f"J[i, j, a, b] = w[i, j] (a == b) plus terms of a alone and of b alone; those of "
            f"{pairs.owner} differ by {float(numbers.misfit):.2g} nats: use BlockGibbs"
        )
    negative = np.flatnonzero(strengths < -ROUNDED * scale)
    if len(negative):
        first, second = (pairs.unit_name(int(i)) for i in pairs.edges.array[negative[0]])
        raise ValueError(
            f"{what} needs units of more than two states to attract each other, the coupling of "
            f"{first} and {second} is {strengths[negative[0]]:.3g}"
            f"{f' (and {len(negative) - 1} more are negative)' if len(negative) > 1 else ''}: "
            "use BlockGibbs"
        )


def _check_sites(model: EnergyModel, what: str) -> None:
    counts = {}
    for name, site in model.sites.items():
        if not site.is_discrete:
            raise ValueError(
                f"{what} needs discrete sites, site {name!r} is real: condition on it or sum it "
                "out with marginalize"
            )
        counts[name] = len(site.states)
    if len(set(counts.values())) > 1 or min(counts.values(), default=0) < 2:
        raise ValueError(
            f"{what} needs units that all have the same number of states, at least 2, got "
            f"{', '.join(f'{count} at {name!r}' for name, count in counts.items())}"
        )


def _structure(own: EnergyModel, generic: EnergyModel, what: str) -> Pairs:
    sites = tuple(own.sites.items())
    told = own.pair_couplings()
    owner = type(own).__name__
    if told is not None:
        return Pairs(owner, sites, StaticArray(np.asarray(told[0], np.int32).reshape(-1, 2)), True)
    size = sum(int(np.prod(site.encoded_shape)) for _, site in sites)
    if size > DENSE_LIMIT:
        raise ValueError(
            f"{owner} has {size} encoded entries, more than the {DENSE_LIMIT} up to which {what} "
            "derives couplings from a Hessian: give the model a method pair_couplings()"
        )
    count = sum(site.size for _, site in sites)
    everyone = np.stack(np.triu_indices(count, 1), axis=1).astype(np.int32)
    pairs = Pairs(owner, sites, StaticArray(everyone), False)
    active = np.zeros(len(everyone), dtype=bool)
    for candidate in (own, generic):  # a coupling that happens to be zero is still an edge
        couplings, _, _ = _compiled_tables(pairs, candidate)
        active |= np.asarray(jnp.abs(couplings).max(axis=(1, 2), initial=0.0)) > 0.0
    return dataclasses.replace(pairs, edges=StaticArray(everyone[active]))


def _tables(pairs: Pairs, model: EnergyModel) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Couplings ``(m, K, K)`` and fields ``(n, K)`` by numbers of states, and the largest other."""
    first, second = pairs.edges.array.T
    origin = {name: jnp.zeros(site.encoded_shape) for name, site in pairs.sites}
    gradient = jax.grad(lambda encoded: model.energy(**encoded))(origin)
    codes = [_codes(site) for _, site in pairs.sites]
    fields = jnp.concatenate(
        [
            -gradient[name].reshape(site.size, -1) @ code.T
            for (name, site), code in zip(pairs.sites, codes, strict=True)
        ]
    )
    if pairs.told:
        told = model.pair_couplings()
        assert told is not None
        values = jnp.asarray(told[1])
        if values.ndim == 1:  # the coefficient of a product of two encoded numbers
            numbers = np.concatenate(
                [
                    np.broadcast_to(code[:, 0], (site.size, len(code)))
                    for (_, site), code in zip(pairs.sites, codes, strict=True)
                ]
            )
            values = values[:, None, None] * numbers[first][:, :, None] * numbers[second][:, None]
        return values, fields, jnp.zeros((), fields.dtype)
    blocks = _dense(pairs, model, codes)
    units = np.arange(pairs.num_units)
    own = jnp.diagonal(blocks[units, :, units, :], axis1=1, axis2=2)
    other = np.ones((pairs.num_units,) * 2, dtype=bool)
    other[first, second] = other[second, first] = False
    np.fill_diagonal(other, val=False)
    stray = jnp.max(jnp.abs(blocks) * other[:, None, :, None], initial=0.0)
    return blocks[first, :, second, :], fields + 0.5 * own, stray


_compiled_tables = jax.jit(_tables, static_argnums=0)
_compiled_agreements = jax.jit(Pairs.agreements, static_argnums=0)


def _dense(pairs: Pairs, model: EnergyModel, codes: list[np.ndarray]) -> jax.Array:
    """-d2E for every pair of units and of their states, ``(n, K, n, K)``."""
    shapes = [site.encoded_shape for _, site in pairs.sites]
    cuts = np.cumsum([int(np.prod(shape)) for shape in shapes])

    def energy(flat: jax.Array) -> jax.Array:
        parts = jnp.split(flat, cuts[:-1])
        names = [name for name, _ in pairs.sites]
        return model.energy(
            **{n: p.reshape(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        )

    hessian = -jax.hessian(energy)(jnp.zeros(int(cuts[-1])))
    count, states = pairs.num_units, pairs.num_states
    # rows: unit and number of its state; columns: entries of the encoding
    expand = np.zeros((count * states, int(cuts[-1])))
    row = column = 0
    for (_, site), code in zip(pairs.sites, codes, strict=True):
        for _ in range(site.size):
            expand[row : row + states, column : column + code.shape[1]] = code
            row, column = row + states, column + code.shape[1]
    blocks = jnp.asarray(expand, hessian.dtype) @ hessian @ jnp.asarray(expand.T, hessian.dtype)
    return blocks.reshape(count, states, count, states)


def _codes(site: Site) -> np.ndarray:
    """T of every state of a unit, ``(K, entries)``."""
    count = len(site.states)
    return np.eye(count) if site.event else np.asarray(site.states, float).reshape(count, 1)


def _decompose(
    pairs: Pairs, couplings: jax.Array, fields: jax.Array, stray: jax.Array
) -> Agreements:
    """Couplings as strength of agreement plus terms of one unit alone, which join the fields."""
    first, second = pairs.edges.array.T
    count = pairs.num_states
    rows, columns = couplings.mean(axis=2), couplings.mean(axis=1)
    total = couplings.mean(axis=(1, 2))
    centred = couplings - rows[:, :, None] - columns[:, None, :] + total[:, None, None]
    strengths = jnp.trace(centred, axis1=1, axis2=2) / (count - 1)
    agree = jnp.eye(count, dtype=couplings.dtype)
    misfit = jnp.max(jnp.abs(centred - strengths[:, None, None] * (agree - 1.0 / count)), initial=0)
    # agreement has the same mean in every row: what is left of a row is the unit's own
    fields = fields.at[first].add(rows - total[:, None])
    fields = fields.at[second].add(columns - total[:, None])
    return Agreements(strengths, fields, jnp.maximum(misfit, stray))


def _double(model: EnergyModel) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(float)), model)


def _verify(pairs: Pairs, model: EnergyModel, what: str) -> None:
    """Hold the sum over edges against the energy at random configurations."""
    num = int(np.clip(2**22 // max(pairs.num_units, 1), 4, 64))
    values = random_values(dict(pairs.sites), num, np.random.default_rng(11))
    offsets, sizes = (np.asarray(x) for x in _offsets(pairs, model, values))
    error = np.abs(offsets - offsets[0]) / np.maximum(1.0, sizes.max())
    residual = float(np.nan_to_num(error, nan=np.inf).max())
    if residual > TOLERANCE:
        reason = (
            "its pair_couplings do not give its energy"
            if pairs.told
            else "more than two units interact at once, or a unit's term is no polynomial"
        )
        raise ValueError(
            f"the energy of {pairs.owner} is not pairwise, as {what} needs it: {reason} (worst "
            f"relative residual {residual:.2g}); use BlockGibbs"
        )


@functools.partial(jax.jit, static_argnums=0)
def _offsets(pairs: Pairs, model: EnergyModel, values: Values) -> tuple[jax.Array, jax.Array]:
    """Energy minus the sum over edges and units, and the size of the latter, by configuration."""
    couplings, fields, _ = _tables(pairs, model)
    first, second = pairs.edges.array.T

    def both(raw: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
        states = pairs.states(raw)
        inside = couplings[jnp.arange(len(first)), states[first], states[second]]
        own = jnp.take_along_axis(fields, states[:, None], axis=1)
        guess = -jnp.sum(inside) - jnp.sum(own)
        size = jnp.sum(jnp.abs(inside)) + jnp.sum(jnp.abs(own))
        return model.energy(**model.encode(raw)) - guess, size

    return jax.lax.map(both, values)
