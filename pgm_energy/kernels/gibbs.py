"""Block Gibbs: one sweep draws every block from its exact conditional, in turn."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pgm_energy import _random
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.kernels.updates import share_moved, update
from pgm_energy.natural import Natural, Values
from pgm_energy.structure import Block, Blocks, Step, blocks, verify

__all__ = [
    "GibbsInfo",
    "GibbsKernel",
    "gibbs_kernel",
    "random_configuration",
    "random_configurations",
]


class GibbsInfo(NamedTuple):
    """What one sweep leaves behind for somebody to look at.

    Attributes
    ----------
    energy
        E of the new configuration, nats.
    flip_rate
        Share of units that changed, by updated discrete site.
    """

    energy: jax.Array
    flip_rate: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class GibbsKernel:
    """The pure block-Gibbs transition of a schedule. Make one with :func:`gibbs_kernel`.

    Attributes
    ----------
    blocks
        A verified schedule, or blocks by hand that are verified at the first call.
    """

    blocks: Blocks | tuple[str | Block, ...]

    def schedule(self, model: EnergyModel) -> Blocks:
        """Return the verified schedule for a model."""
        if isinstance(self.blocks, Blocks):
            if tuple(model.sites.items()) != self.blocks.sites:
                raise ValueError(
                    f"these blocks were made for {self.blocks.owner} with sites "
                    f"{_site_list(self.blocks.sites)}; {model.title} has "
                    f"{_site_list(model.sites.items())}: make new ones with blocks(model)"
                )
            verify(self.blocks, model)
            return self.blocks
        return blocks(model, self.blocks)

    def __call__(
        self, rng_key: Key, values: Values, model: EnergyModel
    ) -> tuple[dict[str, jax.Array], GibbsInfo]:
        """Return the configuration after one sweep, and what happened.

        Parameters
        ----------
        rng_key
            A JAX random key.
        values
            Raw values of every site, one configuration; sites without a block stay as they are.
        model
            The energy model; new parameters of the same shapes do not recompile.
        """
        new, natural, _ = self._sweep(rng_key, values, model, None)
        return new, self._info(values, new, model, natural)

    def transition_log_prob(
        self, values: Values, new_values: Values, model: EnergyModel
    ) -> jax.Array:
        """Return log p(new_values given values) of one sweep, nats.

        Notes
        -----
        Exact for schedules that visit every unit once. Cost: one sweep.
        """
        steps = self.schedule(model)
        updated = {step.site for step in steps.steps}
        _, _, log_prob = self._sweep(None, values, model, new_values)
        same = [
            jnp.all(jnp.asarray(values[name]) == jnp.asarray(new_values[name]))
            for name in model.sites
            if name not in updated
        ]
        return jnp.where(jnp.all(jnp.asarray(same)), log_prob, -jnp.inf) if same else log_prob

    def _sweep(
        self, rng_key: Key | None, values: Values, model: EnergyModel, target: Values | None
    ) -> tuple[dict[str, jax.Array], tuple[Step, Natural] | None, jax.Array]:
        """One sweep at random, or (the exam's) towards a target with its log-probability.

        With every unit visited once, the log-probability of the path is the log of the transition
        matrix of the very code that samples.
        """
        steps = self.schedule(model).steps
        sites = model.sites
        values = {name: site.cast(values[name]) for name, site in sites.items()}
        keys: Any = [None] * len(steps)
        if rng_key is not None:
            keys = _random.split(rng_key, len(steps))
        log_prob = jnp.zeros(())
        last: tuple[Step, Natural] | None = None
        for step, key in zip(steps, keys, strict=True):
            site = sites[step.site]
            aim = None if target is None else site.cast(target[step.site])
            new, more, natural = update(step, site, key, values, model, aim)
            last = None if natural is None else (step, natural)
            values = {**values, step.site: site.cast(new)}
            log_prob = log_prob + jnp.sum(more)
        return model.clamp(values), last, log_prob

    def _info(
        self,
        old: Values,
        new: dict[str, jax.Array],
        model: EnergyModel,
        last: tuple[Step, Natural] | None,
    ) -> GibbsInfo:
        energy = None
        if last is not None:  # the last block's natural parameters know the energy
            step, natural = last
            energy = natural.energy(model.sites[step.site], new[step.site])
        if energy is None:
            energy = model.energy(**model.encode(new))
        updated = {step.site for step in self.schedule(model).steps}
        flips = {
            name: share_moved(jnp.asarray(old[name]), new[name])
            for name, site in model.sites.items()
            if site.is_discrete and name in updated
        }
        return GibbsInfo(energy, flips)


def gibbs_kernel(blocks: Blocks | Sequence[str | Block]) -> GibbsKernel:
    """Return the pure block-Gibbs kernel ``(rng_key, values, model) -> (values, info)``.

    Parameters
    ----------
    blocks
        What :func:`pgm_energy.blocks` returns, or a list of site names and ``Block``, verified
        at the first call.

    Notes
    -----
    Exact: every block is drawn from its conditional. To be jitted, mapped over chains with
    ``jax.vmap`` and scanned over sweeps by the caller.

    References
    ----------
    S. Geman and D. Geman (1984), Stochastic relaxation, Gibbs distributions, and the Bayesian
    restoration of images.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, pgm_energy as pgm
    >>> rbm = pgm.RBM(weights=jnp.ones((3, 2)))
    >>> kernel = pgm.gibbs_kernel(pgm.blocks(rbm))
    >>> start = {"v": jnp.zeros(3, jnp.int8), "h": jnp.zeros(2, jnp.int8)}
    >>> values, info = jax.jit(kernel)(jax.random.key(0), start, rbm)
    >>> values["v"].shape
    (3,)
    """
    if isinstance(blocks, Blocks):
        return GibbsKernel(blocks)
    if isinstance(blocks, EnergyModel):
        raise TypeError("gibbs_kernel takes blocks: gibbs_kernel(pgm_energy.blocks(model))")
    if isinstance(blocks, str):
        raise TypeError(f"gibbs_kernel takes a list of blocks, got the string {blocks!r}")
    return GibbsKernel(tuple(blocks))


def _site_list(items: Any) -> str:
    return ", ".join(f"{name!r} ({site.size} {site.family})" for name, site in items)


def random_configuration(rng_key: Key, model: EnergyModel) -> dict[str, jax.Array]:
    """Return one configuration of independent units: uniform states, standard normals."""
    sites = model.sites
    keys = _random.split(rng_key, len(sites))
    values = {}
    for key, (name, site) in zip(keys, sites.items(), strict=True):
        values[name] = site.cast(site.sample(key, jnp.zeros(site.encoded_shape)))
    return values


@functools.partial(jax.jit, static_argnames=("count",))
def random_configurations(rng_key: Key, model: EnergyModel, count: int) -> dict[str, jax.Array]:
    """Return so many of them, ``(count, ...)`` by site."""
    keys = jax.random.split(rng_key, count)
    return jax.vmap(lambda key: random_configuration(key, model))(keys)
