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

from pgm_energy._checks import require_count, require_key
from pgm_energy._struct import StaticArray, is_concrete
from pgm_energy.energy import EnergyModel
from pgm_energy.natural import Values
from pgm_energy.probe import probe, require_block
from pgm_energy.sites import Categorical, Site
from pgm_energy.transforms import Marginal

__all__ = ["ExactResult", "StateSpace", "exact", "log_sum", "sum_out", "summable"]

#: Most joint states that :func:`exact` lists.
MAX_STATES = 2**20
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

    def part(first: jax.Array) -> jax.Array:
        numbers = first + jnp.arange(chunk)
        energies = jax.vmap(lambda n: energy_of(model, {**fixed, **space.values(n)}))(
            jnp.minimum(numbers, size - 1)
        )
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


# ---- the exact law ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class ExactResult:
    """The exact law of a model, by enumeration. Made by :func:`exact`.

    Attributes
    ----------
    model
        The model.
    log_partition
        log Z, nats.
    probabilities
        ``(num_states,)``, in the order of ``states``; they sum to 1.
    marginals
        By discrete site, the probability of each state of each unit, shape of the site plus
        ``(K,)``.
    means
        By site, E[x]; for a categorical site E[one-hot], which is its marginals. Real sites,
        which are integrated in closed form, included.
    """

    model: EnergyModel
    log_partition: float
    probabilities: np.ndarray
    marginals: dict[str, np.ndarray]
    means: dict[str, np.ndarray]
    space: StateSpace
    #: the model with its real sites integrated out, in float64
    reduced: EnergyModel = dataclasses.field(repr=False)

    @property
    def num_states(self) -> int:
        """Number of joint states of the discrete sites."""
        return len(self.probabilities)

    @functools.cached_property
    def states(self) -> dict[str, np.ndarray]:
        """Raw values of every state, by discrete site, ``(num_states, *shape)``."""
        if not self.space.sites:
            return {}
        with jax.enable_x64(True):
            values = jax.jit(jax.vmap(self._state))(jnp.arange(self.num_states))
            return {name: np.asarray(value) for name, value in values.items()}

    def _state(self, number: jax.Array) -> dict[str, Any]:
        """Raw values of the discrete sites in one state, clamped units at theirs."""
        return self.reduced.clamp(self.space.values(number)) if self.space.sites else {}

    def expectation(self, fn: Callable[[dict[str, jax.Array]], Any]) -> Any:
        """Return E[fn(values)], ``fn`` of the raw values of the discrete sites, one state.

        Notes
        -----
        Exact, in float64. Cost: one call of ``fn`` per state, mapped in chunks.
        """
        chunk = min(1024, self.num_states)
        with jax.enable_x64(True):
            pad = -self.num_states % chunk
            weights = np.pad(self.probabilities, (0, pad)).reshape(-1, chunk)
            numbers = np.minimum(np.arange(weights.size), self.num_states - 1)

            def part(xs: Any) -> Any:
                some, weight = xs
                out = jax.vmap(lambda n: fn(self._state(n)))(some)
                return jax.tree.map(lambda x: jnp.tensordot(weight, x * 1.0, axes=1), out)

            parts = jax.jit(lambda xs: jax.lax.map(part, xs))(
                (numbers.reshape(weights.shape), weights)
            )
            return jax.tree.map(lambda x: np.asarray(x.sum(axis=0)), parts)

    def second_moments(self, first: str, second: str) -> np.ndarray:
        """Return E[T(x_i) T(x_j)] of the units of two discrete sites, flattened encodings."""
        for name in (first, second):
            if name not in dict(self.space.sites):
                raise ValueError(f"second moments are for discrete sites, got {name!r}")

        def product(values: dict[str, jax.Array]) -> jax.Array:
            a, b = (self.model.sites[n].encode(values[n]).reshape(-1) for n in (first, second))
            return jnp.outer(a, b)

        return np.asarray(self.expectation(product))

    def sample(self, rng_key: jax.Array, num_samples: int) -> dict[str, jax.Array]:
        """Return independent draws from the exact law, ``(num_samples, *shape)`` by site."""
        rng_key = require_key(rng_key)
        require_count("num_samples", num_samples)
        cumulative = np.cumsum(self.probabilities)
        chain = _chain(self.reduced)

        def draw(key: jax.Array, number: jax.Array) -> dict[str, jax.Array]:
            values = self._state(number)
            for marginal, own in zip(chain, jax.random.split(key, len(chain)), strict=True):
                inner, site = marginal.model, marginal.model.sites[marginal.site]
                law = inner.conditional(marginal.site, {**_references(inner), **values})
                values[marginal.site] = site.cast(law.sample(own))
            return self.model.clamp(values)

        with jax.enable_x64(True):
            first, second = jax.random.split(rng_key)
            uniform = np.asarray(jax.random.uniform(first, (num_samples,), jnp.float64))
            numbers = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
            values = jax.jit(jax.vmap(draw))(
                jax.random.split(second, num_samples), jnp.asarray(numbers)
            )
            return {name: site.cast(values[name]) for name, site in self.model.sites.items()}

    def __repr__(self) -> str:
        return (
            f"{type(self.model).__name__}: log Z = {self.log_partition:.6f} nats, "
            f"{self.num_states} states ({self.space.describe()})"
        )


def _chain(model: EnergyModel) -> list[Marginal]:
    """The marginals around a model, outermost (summed out last) first."""
    chain = []
    while isinstance(model, Marginal):
        chain.append(model)
        model = model.model
    return chain


def _references(model: EnergyModel) -> dict[str, Any]:
    """Some raw value of every site."""
    return {
        name: jnp.full(site.shape, site.states[0] if site.is_discrete else 0, site.dtype)
        for name, site in model.sites.items()
    }


def exact(model: EnergyModel) -> ExactResult:
    """Return the exact law of a model by listing every state of its discrete sites.

    Parameters
    ----------
    model
        A model with at most 2^20 joint states of its discrete units that are not clamped. Real
        sites are integrated in closed form.

    Returns
    -------
    ExactResult
        ``log_partition``, ``means[site]``, ``marginals[site]``, ``states``, ``probabilities``,
        and the methods ``expectation(fn)``, ``second_moments(a, b)`` and
        ``sample(rng_key, num_samples)``.

    Raises
    ------
    ValueError
        If there are too many states, if a real site is not normal given the rest, or if the
        energy is NaN or nowhere finite.

    Notes
    -----
    Exact up to float64 rounding. Cost: one energy per state; 2^20 states of 20 units take about
    a second.

    Examples
    --------
    >>> import jax.numpy as jnp, pgm_energy as pgm
    >>> law = pgm.exact(pgm.RBM(weights=jnp.zeros((3, 2)), visible_bias=jnp.ones(3)))
    >>> law.num_states, law.means["v"].round(4).tolist()
    (32, [0.7311, 0.7311, 0.7311])
    """
    require_concrete(model, "exact")
    sites = model.sites
    real = [name for name, site in sites.items() if not site.is_discrete]
    discrete = [name for name in sites if name not in real]
    space = StateSpace.of(model, discrete)
    if space.size > MAX_STATES:
        raise ValueError(
            f"exact lists at most 2^20 states, {type(model).__name__} has "
            f"2^{math.log2(space.size):.1f} ({space.describe()}): sum a site out first with "
            "marginalize, fix some units with condition, or ask log_partition(model) for log Z"
        )
    reduced = sum_out(model, real)
    chunk = chunk_size(reduced)
    with jax.enable_x64(True):
        reduced = double(reduced)
        energies = np.asarray(state_energies(reduced, space=space, chunk=chunk))
        if np.isnan(energies).any():
            raise ValueError(
                f"the energy of {type(model).__name__} is NaN in state "
                f"{int(np.argmax(np.isnan(energies)))} of {space.size}"
            )
        low = energies.min()
        if not np.isfinite(low):
            raise ValueError(
                f"the energy of {type(model).__name__} is {low} at best: no state has a finite "
                "probability"
            )
        weights = np.exp(low - energies)
        total = float(weights.sum())
        probabilities = weights / total
        marginals = _marginals(model, space, probabilities)
        means = {
            name: marginals[name]
            if isinstance(sites[name], Categorical)
            else marginals[name] @ sites[name].states.astype(float)
            for name in discrete
        }
        means |= _summed_means(reduced, space, probabilities, chunk)
    return ExactResult(
        model=model,
        log_partition=float(np.log(total) - low),
        probabilities=probabilities,
        marginals=marginals,
        means={name: np.asarray(means[name]) for name in sites},
        space=space,
        reduced=reduced,
    )


def _marginals(
    model: EnergyModel, space: StateSpace, probabilities: np.ndarray
) -> dict[str, np.ndarray]:
    """Probabilities of the states of each unit; clamped units are certain."""
    filler = model.clamp(_references(model))
    marginals, before = {}, 1
    for (name, site), free, count in zip(space.sites, space.free, space.counts(), strict=True):
        num = len(site.states)
        value = np.asarray(filler[name]).reshape(-1)
        table = (value[:, None] == site.states).astype(float)
        units = np.arange(site.size) if free is None else free.array
        for unit in units[:count]:
            table[unit] = probabilities.reshape(before, num, -1).sum(axis=(0, 2))
            before *= num
        marginals[name] = table.reshape(*site.shape, num)
    return marginals


def _summed_means(
    reduced: EnergyModel, space: StateSpace, probabilities: np.ndarray, chunk: int
) -> dict[str, np.ndarray]:
    """E[x] of the sites that were integrated out: conditional means, averaged over states."""
    chain = _chain(reduced)
    if not chain:
        return {}

    def means(number: jax.Array) -> dict[str, jax.Array]:
        values: dict[str, Any] = reduced.clamp(space.values(number)) if space.sites else {}
        out = {}
        for marginal in chain:
            # an inner mean is affine in the other real sites, so their means stand for them
            out[marginal.site] = marginal.conditional_mean(values)
            values = {**values, marginal.site: out[marginal.site]}
        return out

    @jax.jit
    def average(weights: jax.Array) -> dict[str, jax.Array]:
        numbers = jnp.arange(space.size)
        table = jax.lax.map(means, numbers, batch_size=min(chunk, space.size))
        return {name: jnp.tensordot(weights, x, axes=1) for name, x in table.items()}

    return {name: np.asarray(x) for name, x in average(jnp.asarray(probabilities)).items()}
