"""The exact law given evidence that differs from row to row: states of its free units, listed."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._struct import Key
from pgm_energy.conditional.evidence import Evidence
from pgm_energy.conditional.sampling import Moments
from pgm_energy.energy import EnergyModel
from pgm_energy.enumeration import StateSpace, double, energy_of, summable
from pgm_energy.probe import require_block
from pgm_energy.sites import Real, Site
from pgm_energy.transforms import Marginal, tilt

__all__ = ["FreeStates", "enumerate_rows"]

#: States and rows that are evaluated at once.
_TOGETHER = 4096


@dataclasses.dataclass(frozen=True)
class FreeStates:
    """The states that are listed for each row: those of the free units of some sites.

    Attributes
    ----------
    summed
        ``(name, coupled)`` of the sites that are summed out in closed form, in order.
    listed
        ``(name, site, width)`` of the others, with the most free units of a row.
    """

    summed: tuple[tuple[str, bool], ...]
    listed: tuple[tuple[str, Site, int], ...]

    @classmethod
    def of(cls, example: EnergyModel) -> Self:
        """Return the cheapest way to list the states of ``Evidence.example``.

        Raises
        ------
        ValueError
            If a real site has no closed integral.
        """
        names = summable(example, list(example.sites))
        summed, model = [], example
        for name in names:
            summed.append((name, require_block(model, name, None)))
            model = Marginal(model=model, site=name, coupled=summed[-1][1])
        space = StateSpace.of(example, [name for name in example.sites if name not in names])
        widths = zip(space.sites, space.counts(), strict=True)
        return cls(tuple(summed), tuple((*pair, count) for pair, count in widths))

    @property
    def size(self) -> int:
        """Number of states of the row with the most."""
        return math.prod(len(site.states) ** width for _, site, width in self.listed)

    def positions(self, model: EnergyModel, evidence: Evidence) -> dict[str, np.ndarray]:
        """Flat indices of the free units, ``(rows, width)`` by site, padded with its size.

        Raises
        ------
        ValueError
            If a row has more free units than states are listed of.
        """
        places = {}
        for name, site, width in self.listed:
            mask = np.ones((evidence.num_rows, site.size), bool)
            if name in evidence.free:
                mask = evidence.free[name].reshape(mask.shape)
            own = model.free_units(name)
            if own is not None:
                mask = mask & own.reshape(-1)
            most = int(mask.sum(axis=1).max())
            if most > width:
                raise ValueError(
                    f"a row has {most} free units of site {name!r}, but states of {width} are "
                    "listed: free_units of the model must be the same whatever is given"
                )
            first = np.argsort(~mask, axis=1, kind="stable")[:, :width].astype(np.int32)
            places[name] = np.where(np.take_along_axis(mask, first, axis=1), first, site.size)
        return places

    def state(
        self, number: jax.Array, positions: dict[str, jax.Array]
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """Return the raw values of one state, and whether the row has it (no padded unit set)."""
        values, valid, stride = {}, jnp.asarray(True), 1
        for name, site, width in self.listed:
            card = len(site.states)
            digits = (number // (stride * card ** np.arange(width))) % card
            stride *= card**width
            where = positions[name]
            valid &= jnp.all((digits == 0) | (where < site.size))
            states = jnp.asarray(site.states)
            flat = jnp.full(site.size, states[0]).at[where].set(states[digits], mode="drop")
            values[name] = flat.reshape(site.shape)
        return values, valid

    def reduce(self, model: EnergyModel) -> EnergyModel:
        """Return a model with the sites summed out that are."""
        for name, coupled in self.summed:
            model = Marginal(model=model, site=name, coupled=coupled)
        return model


def enumerate_rows(
    rng_key: Key,
    model: EnergyModel,
    evidence: Evidence,
    states: FreeStates,
    names: tuple[str, ...],
    num_samples: int,
) -> tuple[dict[str, Any], Moments]:
    """Return independent draws ``(rows, num_samples, ...)`` and exact moments of some sites.

    Notes
    -----
    Moments are derivatives of log Z with respect to a tilt, whatever is summed out: E[T(x)] by
    the field, -E[x^2]/2 by the precision. In float64; one energy and its gradient per state.
    """
    with jax.enable_x64(True):
        to_double = functools.partial(jax.tree.map, lambda x: jnp.asarray(x, jnp.float64))
        exact = evidence._replace(
            fields=to_double(evidence.fields), precisions=to_double(evidence.precisions)
        )
        samples, mean, second = _enumerate_rows(
            rng_key,
            double(model),
            exact,
            states.positions(model, evidence),
            states=states,
            names=names,
            num_samples=num_samples,
            chunk=min(states.size, _TOGETHER),
            batch=max(1, min(evidence.num_rows, _TOGETHER // states.size)),
        )
        samples, mean, second = jax.tree.map(np.asarray, (samples, mean, second))
    return samples, Moments(mean, second, {k: np.zeros_like(x) for k, x in mean.items()})


@functools.partial(jax.jit, static_argnames=("states", "names", "num_samples", "chunk", "batch"))
def _enumerate_rows(
    rng_key: Key,
    model: EnergyModel,
    evidence: Evidence,
    positions: dict[str, jax.Array],
    *,
    states: FreeStates,
    names: tuple[str, ...],
    num_samples: int,
    chunk: int,
    batch: int,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    sites = model.sites
    fields = {name: jnp.zeros(sites[name].encoded_shape) for name in names}
    precisions = {k: x for k, x in fields.items() if isinstance(sites[k], Real)}
    numbers = jnp.arange(-(-states.size // chunk) * chunk).reshape(-1, chunk)

    def row(args: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        key, known, places = args
        given = known.given(model)

        def log_z(tilted: Any) -> tuple[jax.Array, jax.Array]:
            reduced = states.reduce(tilt(given, precision=tilted[1], **tilted[0]))

            @jax.checkpoint
            def weights(some: jax.Array) -> jax.Array:
                def weight(number: jax.Array) -> jax.Array:
                    values, valid = states.state(number, places)
                    return jnp.where(valid, -energy_of(reduced, values), -jnp.inf)

                return jnp.where(some < states.size, jax.vmap(weight)(some), -jnp.inf)

            log_weights = jax.lax.map(weights, numbers).reshape(-1)
            return jax.nn.logsumexp(log_weights), log_weights

        (mean, half), log_weights = jax.grad(log_z, has_aux=True)((fields, precisions))
        second = {name: -2.0 * value for name, value in half.items()}
        cumulative = jnp.cumsum(jax.nn.softmax(log_weights))
        reduced = states.reduce(given)

        def draw(key: jax.Array) -> dict[str, jax.Array]:
            first, *own = jax.random.split(key, 1 + len(states.summed))
            uniform = cumulative[-1] * jax.random.uniform(first, dtype=cumulative.dtype)
            number = jnp.searchsorted(cumulative, uniform, side="right")
            values, inner = states.state(number, places)[0], reduced
            values = reduced.clamp(values) if reduced.sites else values
            for each in own:
                assert isinstance(inner, Marginal)
                values[inner.site] = inner.draw(each, values)
                inner = inner.model
            values = inner.clamp(values)
            return {name: sites[name].cast(values[name]) for name in names}

        return jax.vmap(draw)(jax.random.split(key, num_samples)), mean, second

    count = evidence.num_rows
    keys = jax.random.split(rng_key, count)
    return jax.lax.map(row, (keys, evidence, positions), batch_size=batch)
