"""The path from a base to a model, walked by chains: weights and sweeps, compiled once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy import _random
from pgm_energy._struct import Key, StaticArray
from pgm_energy.energy import EnergyModel
from pgm_energy.kernels.gibbs import GibbsKernel
from pgm_energy.models.independent import Independent
from pgm_energy.natural import Natural, Values, derive_natural_parameters
from pgm_energy.structure import Blocks, Step, blocks
from pgm_energy.transforms import Tempered, temper

__all__ = ["CHUNK", "Path", "draw_independent", "log_ratio"]

#: Inverse temperatures that one compiled call walks: long enough not to notice the call, short
#: enough for Ctrl-C; the same for pilot, forward and reverse runs, so that one is compiled.
CHUNK = 50


@dataclasses.dataclass(frozen=True)
class Path:
    """``(1 - beta) E_base + beta E_target`` with the sweep that leaves it invariant.

    Attributes
    ----------
    base, target
        Energy models over the same sites.
    blocks
        Verified schedule; the summed site comes first.
    summed
        Site that weights are summed over in closed form; None: the weights are joint ones.
    """

    base: EnergyModel
    target: EnergyModel
    blocks: Blocks
    summed: Step | None

    @classmethod
    def between(cls, base: EnergyModel, target: EnergyModel) -> Path:
        """Return the path with its schedule.

        Raises
        ------
        ValueError
            If the sites differ, or block Gibbs cannot sample the path.
        """
        schedule = blocks(temper(base, target, 0.5))
        summed = _summed_step(base, target, schedule)
        if summed is None:
            return cls(base, target, schedule, None)
        others = (tuple(s for s in group if s != summed) for group in schedule.groups)
        groups = ((summed,), *(group for group in others if group))
        return cls(base, target, dataclasses.replace(schedule, groups=groups), summed)

    def backwards(self) -> Path:
        """Return the path with the time-reversed sweep: what Bennett's identity asks of a way back.

        Raises
        ------
        ValueError
            If a site is drawn by energy differences, whose order is fixed.
        """
        # the summed site is drawn anew first, whichever way time runs
        kept = 0 if self.summed is None else 1
        groups = self.blocks.groups
        turned = tuple(tuple(map(_turned, group)) for group in reversed(groups[kept:]))
        schedule = dataclasses.replace(self.blocks, groups=groups[:kept] + turned)
        return dataclasses.replace(self, blocks=schedule)

    def walk(
        self,
        rng_key: Key,
        values: Values,
        betas: np.ndarray,
        visit: Callable[[np.ndarray], None] | None = None,
        show: Callable[[int], None] | None = None,
    ) -> tuple[dict[str, jax.Array], np.ndarray]:
        """Return chains after a walk along ``betas``, and their log-weights in float64.

        Parameters
        ----------
        rng_key
            A JAX random key.
        values
            Raw values by site at ``betas[0]``, ``(chains, ...)``.
        betas
            Inverse temperatures in order, rising or falling.
        visit
            Called with the increments of each part of the walk, ``(steps, chains)``.
        show
            Called with the number of betas walked.

        Notes
        -----
        Each chain is weighed between two neighbours, then swept at the second. Increments are
        float32 differences unit by unit; they are added in float64. Memory does not grow with the
        number of betas.
        """
        steps = len(betas) - 1
        total: Any = 0.0
        betas = np.asarray(betas, np.float32)
        for number, first in enumerate(range(0, steps, CHUNK)):
            part = betas[first : first + CHUNK + 1]
            part = np.pad(part, (0, CHUNK + 1 - len(part)), mode="edge")  # more sweeps, no weight
            key = jax.random.fold_in(rng_key, number)
            values, increments = _anneal(
                key,
                values,
                self.base,
                self.target,
                jnp.asarray(part),
                blocks=self.blocks,
                summed=self.summed,
            )
            found = np.asarray(increments, np.float64)[: steps - first]
            self.require_finite(found.min(axis=1), part)
            total = total + found.sum(axis=0)
            if visit is not None:
                visit(found)
            if show is not None:
                show(min(first + CHUNK, steps))
        return dict(values), total

    def require_finite(self, increments: np.ndarray, betas: np.ndarray) -> None:
        """Refuse increments (the least of all chains, by step) that are no numbers.

        Raises
        ------
        ValueError
            With the inverse temperature.
        """
        bad = ~np.isfinite(increments)
        if bad.any():
            place = int(np.argmax(bad))
            raise ValueError(
                f"the energy of {self.target.title} (or of its base) is NaN or infinite at a "
                f"configuration that the chains reached at beta = {betas[place]:.4g}: an energy is "
                "a finite number everywhere"
            )


def _summed_step(base: EnergyModel, target: EnergyModel, schedule: Blocks) -> Step | None:
    """The step that draws a whole site at once and leaves the fewest units in the weights."""
    whole = [s for s in schedule.steps if s.index is None and s.kind == "joint"]
    sites = target.sites
    for step in sorted(whole, key=lambda s: -sites[s.site].size):
        shapes = {
            name: jax.ShapeDtypeStruct(site.shape, site.dtype) for name, site in sites.items()
        }
        rests = [
            jax.eval_shape(functools.partial(_natural, model, step), shapes).rest
            for model in (base, target)
        ]
        if all(rest is not None for rest in rests):
            return step
    return None


def _turned(step: Step) -> Step:
    """The step with its rows of units in the opposite order."""
    if step.kind == "difference":
        raise ValueError(
            f"site {step.site!r} is drawn by energy differences, one unit at a time in a fixed "
            "order that cannot be reversed as 'bennett' needs it: use method='ais' or 'pt'"
        )
    if step.index is None or step.mask is None:
        return step
    rows, mask = step.index.array[::-1], step.mask.array[::-1]
    if step.kind == "sequential" and rows.shape[1] > 1:  # a panel has an order inside
        rows = step.index.array[step.mask.array][::-1, None]
        mask = np.ones(rows.shape, bool)
    return dataclasses.replace(step, index=StaticArray(rows), mask=StaticArray(mask))


def _natural(model: EnergyModel, step: Step, values: Values) -> Natural:
    if step.coupled:
        return derive_natural_parameters(model, step.site, values, coupled=True)
    return model.natural_parameters(step.site, values)


def log_ratio(
    base: EnergyModel,
    target: EnergyModel,
    values: Values,
    beta: jax.Array,
    new_beta: jax.Array,
    summed: Step | None,
) -> jax.Array:
    """Return log f_new_beta - log f_beta of one configuration, nats, one site summed out.

    Notes
    -----
    Exact: ``(beta - new_beta) * (R_target - R_base) + sum_i (A(eta_i(new_beta)) - A(eta_i(beta)))``
    with R the energy of the other sites, ``eta`` and the precision linear in beta. Differences are
    taken unit by unit: two free energies would cancel to their rounding.
    """
    if summed is None:
        encoded = target.encode(values)
        return (new_beta - beta) * (base.energy(**encoded) - target.energy(**encoded))
    site = target.sites[summed.site]
    first, last = _natural(base, summed, values), _natural(target, summed, values)

    def mixed(beta: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        eta = (1.0 - beta) * first.eta + beta * last.eta
        if first.precision is None or last.precision is None:
            return eta, None
        return eta, (1.0 - beta) * first.precision + beta * last.precision

    assert first.rest is not None
    assert last.rest is not None
    (eta, precision), (new_eta, new_precision) = mixed(beta), mixed(new_beta)
    change = site.log_normalizer_change(eta, new_eta, precision, new_precision)
    return jnp.sum(change) + (new_beta - beta) * (first.rest - last.rest)


@functools.partial(jax.jit, static_argnames=("blocks", "summed"))
def _anneal(
    rng_key: Key,
    values: Any,
    base: EnergyModel,
    target: EnergyModel,
    betas: jax.Array,
    *,
    blocks: Blocks,
    summed: Step | None,
) -> tuple[Any, jax.Array]:
    """Chains after one chunk, and their increments ``(steps, chains)``."""
    kernel = GibbsKernel(blocks)
    count = jnp.shape(next(iter(values.values())))[0]

    def step(values: Any, x: Any) -> tuple[Any, jax.Array]:
        key, beta, new_beta = x
        path = Tempered(base=base, target=target, beta=new_beta)

        def chain(key: jax.Array, values: Any) -> tuple[Any, jax.Array]:
            weight = log_ratio(base, target, values, beta, new_beta, summed)
            return kernel(key, values, path)[0], weight

        return jax.vmap(chain)(_random.split(key, count), values)

    keys = _random.split(rng_key, betas.shape[0] - 1)
    return jax.lax.scan(step, values, (keys, betas[:-1], betas[1:]))


@functools.partial(jax.jit, static_argnames="num")
def draw_independent(rng_key: Key, base: Independent, num: int) -> dict[str, jax.Array]:
    """Return ``num`` independent configurations of independent units, raw values by site."""

    def one(key: jax.Array) -> dict[str, jax.Array]:
        keys = _random.split(key, len(base.sites))
        drawn = {
            name: site.cast(site.sample(k, base.parameters[name], base.precisions.get(name)))
            for k, (name, site) in zip(keys, base.sites.items(), strict=True)
        }
        clamped = base.clamp(drawn)
        return {name: site.cast(clamped[name]) for name, site in base.sites.items()}

    return jax.vmap(one)(_random.split(rng_key, num))
