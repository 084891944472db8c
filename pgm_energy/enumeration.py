"""Exact sums over the states of discrete sites, in chunks and in float64."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from pgm_energy._struct import StaticArray, is_concrete
from pgm_energy.energy import EnergyModel
from pgm_energy.natural import Values
from pgm_energy.probe import probe, require_block
from pgm_energy.sites import Site
from pgm_energy.transforms import Marginal

__all__ = [
    "StateSpace",
    "double",
    "energy_of",
    "log_sum",
    "map_chunks",
    "require_concrete",
    "sum_out",
    "summable",
]

#: Numbers (floating) that a chunk of states may fill: about the second-level cache.
_CHUNK_ELEMENTS = 2**20


@dataclasses.dataclass(frozen=True)
class StateSpace:
    """The joint states of discrete sites, numbered like ``itertools.product``; hashable.

    Attributes
    ----------
    sites
        ``(name, site)`` in order.
    free
        Flat indices of the units that are not clamped, by site; None where all are free.
    """

    sites: tuple[tuple[str, Site], ...]
    free: tuple[StaticArray | None, ...]

    @classmethod
    def of(cls, model: EnergyModel, names: Sequence[str]) -> StateSpace:
        """Return the space of some discrete sites of a model."""
        free = []
        for name in names:
            mask = model.free_units(name)
            free.append(
                None if mask is None else StaticArray(np.flatnonzero(mask).astype(np.int32))
            )
        return cls(tuple((name, model.sites[name]) for name in names), tuple(free))

    def counts(self) -> list[int]:
        """Numbers of free units, by site."""
        return [
            site.size if free is None else len(free)
            for (_, site), free in zip(self.sites, self.free, strict=True)
        ]

    @property
    def size(self) -> int:
        """Number of joint states."""
        return math.prod(
            len(site.states) ** count
            for (_, site), count in zip(self.sites, self.counts(), strict=True)
        )

    def describe(self) -> str:
        """Say what is enumerated, in words."""
        parts = [
            f"{count} {site.family} unit{'s' if count != 1 else ''} of {name!r}"
            for (name, site), count in zip(self.sites, self.counts(), strict=True)
        ]
        return " and ".join(parts) if parts else "nothing"

    def cards(self) -> list[int]:
        """Numbers of states of the free units, all sites in a row."""
        return [
            len(site.states)
            for (_, site), count in zip(self.sites, self.counts(), strict=True)
            for _ in range(count)
        ]

    def values(self, number: jax.Array) -> dict[str, jax.Array]:
        """Return the raw values of one state; clamped units hold the first state, as a filler."""
        cards = self.cards()
        strides = [1]
        for card in reversed(cards[1:]):
            strides.append(strides[-1] * card)
        values, start = {}, 0
        all_strides = np.array(strides[::-1], dtype=np.int32)
        for (name, site), free, count in zip(self.sites, self.free, self.counts(), strict=True):
            stride = all_strides[start : start + count]
            raw = jnp.asarray(site.states)[(number // stride) % len(site.states)]
            if free is not None:
                filler = jnp.full(site.size, site.states[0], site.states.dtype)
                raw = filler.at[free.array].set(raw)
            values[name] = raw.reshape(site.shape)
            start += count
        return values


def require_concrete(model: Any, what: str) -> None:
    """Refuse a model whose parameters are being traced.

    Raises
    ------
    TypeError
        If it is no energy model.
    ValueError
        If a parameter is a tracer.
    """
    if not isinstance(model, EnergyModel):
        raise TypeError(f"{what} takes an energy model, got {type(model).__name__}")
    if not is_concrete(model):
        raise ValueError(
            f"{what} needs concrete parameters: call it outside of jit, vmap and grad "
            "(pgm_energy.enumeration.log_sum is the differentiable sum)"
        )


def double(model: Any) -> Any:
    """Return a copy with float64 leaves; to be called under ``jax.enable_x64(True)``."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), model)


def chunk_size(model: EnergyModel) -> int:
    """How many states are evaluated at once: their intermediate values should stay in cache."""
    largest = 1
    inner: Any = model
    while isinstance(inner, Marginal):
        inner = inner.model
    for site in inner.sites.values():
        largest += math.prod(site.encoded_shape)
    return int(np.clip(_CHUNK_ELEMENTS // largest, 16, 4096))


def map_chunks(fn: Callable[[Any], Any], rows: Any, chunk: int) -> Any:
    """Return ``fn`` of every row of a tree, ``chunk`` rows at once.

    The backward pass evaluates each chunk again instead of storing what led to it.
    """
    if len(jax.tree.leaves(rows)[0]) <= chunk:
        return jax.vmap(fn)(rows)
    return jax.lax.map(jax.checkpoint(fn), rows, batch_size=max(1, chunk))


def energy_of(model: EnergyModel, values: Values) -> jax.Array:
    """Return E of one raw configuration, clamped units at their values."""
    if not model.sites:
        return model.energy()
    return model.energy(**model.encode(model.clamp(values)))


def log_sum(
    model: EnergyModel, *, space: StateSpace, chunk: int, given: Values | None = None
) -> jax.Array:
    """Return the log of the sum of exp(-E) over a space of states, nats.

    Parameters
    ----------
    model
        The energy model.
    space
        The states of its sites that are summed over.
    chunk
        States evaluated at once.
    given
        Raw values of the sites that are not summed over.

    Notes
    -----
    A pure function of arrays: jit, vmap and grad work (the backward pass evaluates each chunk
    again instead of storing it). Cost: one energy per state.
    """
    size = space.size
    chunk = min(chunk, size)
    fixed = dict(given or {})

    def energy(number: jax.Array) -> jax.Array:
        clamped = model.clamp({**fixed, **space.values(number)}) if model.sites else {}
        # what is given is not rounded to the type of samples, as clamping does
        return model.energy(**model.encode({**clamped, **fixed}))

    def part(first: jax.Array) -> jax.Array:
        numbers = first + jnp.arange(chunk)
        energies = jax.vmap(energy)(jnp.minimum(numbers, size - 1))
        return logsumexp(jnp.where(numbers < size, -energies, -jnp.inf))

    if chunk == size:
        return part(jnp.zeros((), int))
    starts = jnp.arange(math.ceil(size / chunk)) * chunk
    return logsumexp(jax.lax.map(jax.checkpoint(part), starts))


compiled_log_sum = jax.jit(log_sum, static_argnames=("space", "chunk"))


@functools.partial(jax.jit, static_argnames=("space", "chunk"))
def state_energies(model: EnergyModel, *, space: StateSpace, chunk: int) -> jax.Array:
    """Return E of every state, in order."""
    return jax.lax.map(
        lambda n: energy_of(model, space.values(n)),
        jnp.arange(space.size),
        batch_size=min(chunk, space.size),
    )


# ---- summing sites out ------------------------------------------------------------------------


def summable(model: EnergyModel, candidates: Sequence[str]) -> tuple[str, ...]:
    """Return the sites that are best summed out in closed form, in order.

    All real candidates, and of the discrete ones that set of mutually independent sites, each
    of independent units, which removes most states.

    Notes
    -----
    Proposed from the structure at generic parameters; :func:`sum_out` verifies every one.
    """
    exam = probe(model)
    real = [name for name in candidates if not exam.sites[name].is_discrete]
    open_sites = [
        name
        for name in candidates
        if exam.sites[name].is_discrete
        and not any(exam.sites_interact(name, other) for other in real)
        and exam.independent(name)
        and exam.verdict(name).holds
    ]
    best: tuple[float, tuple[str, ...]] = (0.0, ())
    for count in range(1, len(open_sites) + 1):
        for chosen in itertools.combinations(open_sites, count):
            if any(exam.sites_interact(a, b) for a, b in itertools.combinations(chosen, 2)):
                continue
            weight = _log_states(model, chosen)
            if weight > best[0]:
                best = (weight, chosen)
    return (*real, *best[1])


def _log_states(model: EnergyModel, names: Sequence[str]) -> float:
    space = StateSpace.of(model, names)
    pairs = zip(space.sites, space.counts(), strict=True)
    return sum(count * math.log(len(site.states)) for (_, site), count in pairs)


def sum_out(model: EnergyModel, names: Sequence[str]) -> EnergyModel:
    """Return the model with these sites summed out in turn, possibly all of them.

    Raises
    ------
    ValueError
        If a site cannot be summed out in closed form, saying which units interact.
    """
    for name in names:
        try:
            coupled = require_block(model, name, None)
        except ValueError as error:
            site = model.sites[name]
            verb = "summed over" if site.is_discrete else "integrated over"
            raise ValueError(
                f"site {name!r} cannot be {verb} in closed form, so there is no exact answer: "
                f"{error}"
            ) from error
        model = Marginal(model=model, site=name, coupled=coupled)
    return model
