"""Block Gibbs: one sweep draws every block from its exact conditional, in turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.natural import Natural, Values, derive_natural_parameters, select
from pgm_energy.sites import Site
from pgm_energy.structure import Block, Blocks, Step, blocks, verify

__all__ = ["GibbsInfo", "GibbsKernel", "gibbs_kernel", "random_configuration"]


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


class _Draw:
    """How a block gets its new values: at random, or towards a target with its log-probability.

    The second way is the exam's: with every unit visited once per sweep, the log-probability of
    the path is the log of the transition matrix of the very code that samples.
    """

    def __init__(self, target: Values | None) -> None:
        self.target = target

    def units(
        self, step_site: str, site: Site, rng_key: Any, natural: Natural, position: Any
    ) -> jax.Array:
        """Return new raw values of a block; ``position`` selects it in the target."""
        if self.target is None:
            return site.sample(rng_key, natural.eta, natural.precision)
        return select(self.target[step_site], site, position)

    def log_prob(self, site: Site, block: Any, natural: Natural, mask: Any = None) -> jax.Array:
        """Return the log-probability (nats) of a prescribed block; 0 when sampling."""
        if self.target is None:
            return jnp.zeros(())
        if mask is None:
            return site.log_prob(block, natural.eta, natural.precision)
        encoded = site.encode(block)
        precision = natural.precision
        if precision is not None:
            inner = natural.eta * encoded - 0.5 * precision * encoded**2
        else:
            inner = natural.eta * encoded
        inner = inner.sum(axis=tuple(range(1, inner.ndim)))
        return jnp.sum(jnp.where(mask, inner - site.log_normalizer(natural.eta, precision), 0.0))


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
        new, natural, _ = self._sweep(rng_key, values, model, _Draw(None))
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
        _, _, log_prob = self._sweep(None, values, model, _Draw(new_values))
        same = [
            jnp.all(jnp.asarray(values[name]) == jnp.asarray(new_values[name]))
            for name in model.sites
            if name not in updated
        ]
        return jnp.where(jnp.all(jnp.asarray(same)), log_prob, -jnp.inf) if same else log_prob

    def _sweep(
        self, rng_key: Key | None, values: Values, model: EnergyModel, draw: _Draw
    ) -> tuple[dict[str, jax.Array], tuple[Step, Natural] | None, jax.Array]:
        steps = self.schedule(model).steps
        sites = model.sites
        values = {name: site.cast(values[name]) for name, site in sites.items()}
        keys: Any = [None] * len(steps)
        if rng_key is not None:
            keys = jax.random.split(rng_key, len(steps))
        log_prob = jnp.zeros(())
        last: tuple[Step, Natural] | None = None
        for step, key in zip(steps, keys, strict=True):
            last = None
            site = sites[step.site]
            if step.kind == "difference":
                new, more = _difference(step, site, key, values, model, draw)
            elif step.index is None:
                natural = _natural(step, values, model, None)
                new = draw.units(step.site, site, key, natural, None)
                more = draw.log_prob(site, new, natural)
                last = (step, natural)
            else:
                new, more = _rows(step, site, key, values, model, draw)
            values = {**values, step.site: site.cast(new)}
            log_prob = log_prob + more
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
            name: jnp.mean(new[name] != jnp.asarray(old[name]), dtype=jnp.result_type(float))
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


def _natural(step: Step, values: Values, model: EnergyModel, index: Any) -> Natural:
    if step.coupled:
        return derive_natural_parameters(model, step.site, values, index, coupled=True)
    return model.natural_parameters(step.site, values, index)


def _rows(
    step: Step, site: Site, rng_key: Any, values: dict[str, Any], model: EnergyModel, draw: _Draw
) -> tuple[jax.Array, jax.Array]:
    """Scan over rows of units: colours, or panels of coupled units."""
    assert step.index is not None
    assert step.mask is not None
    index, mask = jnp.asarray(step.index.array), jnp.asarray(step.mask.array)
    keys = None if rng_key is None else jax.random.split(rng_key, step.num_rows)

    def row(flat: jax.Array, xs: Any) -> tuple[jax.Array, jax.Array]:
        units, valid, key = xs
        current = {**values, step.site: flat.reshape(site.shape)}
        natural = _natural(step, current, model, units)
        if step.kind == "joint" or units.shape[0] == 1:
            new = draw.units(step.site, site, key, natural, units)
            log_prob = draw.log_prob(site, new, natural, None if step.coupled else valid)
        else:
            couplings = model.block_couplings(step.site, units)
            new, log_prob = _in_turn(
                step.site, site, key, flat[units], natural, couplings, units, valid, draw
            )
        # a padded place repeats a unit of its row: it is dropped, not written
        position = jnp.where(valid, units, site.size)
        return flat.at[position].set(new.astype(flat.dtype), mode="drop"), log_prob

    flat, log_probs = jax.lax.scan(row, values[step.site].reshape(-1), (index, mask, keys))
    return flat.reshape(site.shape), jnp.sum(log_probs)


def _in_turn(
    name: str,
    site: Site,
    rng_key: Any,
    block: jax.Array,
    natural: Natural,
    couplings: jax.Array,
    units: jax.Array,
    valid: jax.Array,
    draw: _Draw,
) -> tuple[jax.Array, jax.Array]:
    """Draw the coupled units of a panel one after another, keeping their fields up to date."""
    width = block.shape[0]
    noise = None if rng_key is None else site.noise(rng_key, natural.eta.shape)

    def unit(carry: Any, xs: Any) -> tuple[Any, jax.Array]:
        eta, block = carry
        i, own_noise = xs
        if draw.target is None:
            new, log_prob = site.decide(own_noise, eta[i]), jnp.zeros(())
        else:
            new = select(draw.target[name], site, units[i])
            log_prob = draw.log_prob(site, new[None], Natural(eta[i][None]), valid[i][None])
        new = jnp.where(valid[i], new.astype(block.dtype), block[i])
        moved = site.encode(new) - site.encode(block[i])
        shift = couplings[:, i] * moved if moved.ndim == 0 else couplings[:, :, i] @ moved
        return (eta + shift, block.at[i].set(new)), log_prob

    (_, block), log_probs = jax.lax.scan(unit, (natural.eta, block), (jnp.arange(width), noise))
    return block, jnp.sum(log_probs)


def _difference(
    step: Step, site: Site, rng_key: Any, values: dict[str, Any], model: EnergyModel, draw: _Draw
) -> tuple[jax.Array, jax.Array]:
    """Draw each unit from the energies of its states: exact for any discrete energy, slow."""
    states = jnp.asarray(site.states)
    keys = None if rng_key is None else jax.random.split(rng_key, site.size)
    target = None if draw.target is None else jnp.asarray(draw.target[step.site]).reshape(-1)

    def unit(flat: jax.Array, xs: Any) -> tuple[jax.Array, jax.Array]:
        i, key = xs

        def energy(state: jax.Array) -> jax.Array:
            trial = flat.at[i].set(state.astype(flat.dtype)).reshape(site.shape)
            return model.energy(**model.encode({**values, step.site: trial}))

        logits = -jax.vmap(energy)(states)
        if target is None:
            choice = jax.random.categorical(key, logits)
            log_prob = jnp.zeros(())
        else:
            choice = jnp.argmax(states == target[i])
            log_prob = jax.nn.log_softmax(logits)[choice]
        return flat.at[i].set(states[choice].astype(flat.dtype)), log_prob

    flat, log_probs = jax.lax.scan(
        unit, values[step.site].reshape(-1), (jnp.arange(site.size), keys)
    )
    return flat.reshape(site.shape), jnp.sum(log_probs)


def random_configuration(rng_key: Key, model: EnergyModel) -> dict[str, jax.Array]:
    """Return one configuration of independent units: uniform states, standard normals."""
    sites = model.sites
    keys = jax.random.split(rng_key, len(sites))
    values = {}
    for key, (name, site) in zip(keys, sites.items(), strict=True):
        values[name] = site.cast(site.sample(key, jnp.zeros(site.encoded_shape)))
    return values
