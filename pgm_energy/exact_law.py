"""The exact law of a small model: every state of its discrete sites, listed."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._checks import require_count, require_key
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.enumeration import (
    StateSpace,
    chunk_size,
    double,
    require_concrete,
    state_energies,
    sum_out,
)
from pgm_energy.sites import Categorical
from pgm_energy.transforms import Marginal

__all__ = ["ExactResult", "exact"]

#: Most joint states that :func:`exact` lists.
MAX_STATES = 2**20


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

    def sample(self, rng_key: Key, num_samples: int) -> dict[str, jax.Array]:
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
            f"exact lists at most 2^20 states, {model.title} has "
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
                f"the energy of {model.title} is NaN in state "
                f"{int(np.argmax(np.isnan(energies)))} of {space.size}"
            )
        low = energies.min()
        if not np.isfinite(low):
            raise ValueError(
                f"the energy of {model.title} is {low} at best: no state has a finite probability"
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
