"""Updates of one site within a sweep: at once, by colours, in panels, or by differences."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy import _random
from pgm_energy._batching import scan_units, with_chains_last
from pgm_energy.energy import EnergyModel
from pgm_energy.natural import Natural, Values, derive_natural_parameters, select
from pgm_energy.sites import Site
from pgm_energy.structure import Step

__all__ = ["share_moved", "update"]

#: Colours up to which a site whose natural parameters come all at once is drawn whole for each.
WHOLE_SITE_ROWS = 3


def share_moved(old: jax.Array, new: jax.Array) -> jax.Array:
    """Return the share of units whose value changed."""
    # counted in integers, in one pass: XLA sums floating-point numbers pairwise, in several
    return jnp.sum(new != old, dtype=jnp.int32) / jnp.asarray(new.size, jnp.result_type(float))


def update(
    step: Step, site: Site, rng_key: Any, values: Values, model: EnergyModel, aim: Any
) -> tuple[jax.Array, jax.Array, Natural | None]:
    """Return a site's new raw values, their log-probability, and its natural parameters.

    At random, or towards prescribed values ``aim``, whose log-probability (nats) is then told. The
    natural parameters are None unless the whole site was drawn at once.
    """
    if step.index is None and step.kind != "difference":
        natural = _natural(step, values, model, None)
        return *_draw(site, rng_key, natural, aim), natural
    if step.kind == "difference":
        way = _difference
    elif _evaluates_whole_site(step, model):
        way = _colours
    elif step.kind == "sequential" and step.index is not None and step.index.shape[1] > 1:
        way = _panels
    else:
        way = _rows
    return *way(step, site, rng_key, values, model, aim), None


def _natural(step: Step, values: Values, model: EnergyModel, index: Any) -> Natural:
    if step.coupled:
        return derive_natural_parameters(model, step.site, values, index, coupled=True)
    return model.natural_parameters(step.site, values, index)


def _draw(
    site: Site, rng_key: Any, natural: Natural, aim: Any, mask: Any = None
) -> tuple[jax.Array, jax.Array]:
    """New raw values of a block and their log-probability (nats; 0 where none was prescribed)."""
    noise = None if rng_key is None else site.noise(rng_key, natural.eta.shape)
    return _decided(site, noise, natural, aim, mask)


def _decided(
    site: Site, noise: Any, natural: Natural, aim: Any, mask: Any = None
) -> tuple[jax.Array, jax.Array]:
    if aim is None:
        new = site.cast(site.decide(noise, natural.eta, natural.precision))
        # drawn in one vectorised pass: XLA would draw again, number by number, for every use
        return jax.lax.optimization_barrier(new), jnp.zeros(())
    if mask is None:
        return aim, site.log_prob(aim, natural.eta, natural.precision)
    encoded = site.encode(aim)
    inner = natural.eta * encoded
    if natural.precision is not None:
        inner = inner - 0.5 * natural.precision * encoded**2
    inner = inner.sum(axis=tuple(range(mask.ndim, inner.ndim)))
    inner = inner - site.log_normalizer(natural.eta, natural.precision)
    return aim, jnp.sum(jnp.where(mask, inner, 0.0))


def _row_keys(rng_key: Any, step: Step) -> Any:
    return None if rng_key is None else _random.split(rng_key, step.num_rows)


def _evaluates_whole_site(step: Step, model: EnergyModel) -> bool:
    return (
        step.kind == "joint"
        and not step.coupled
        and step.num_rows <= WHOLE_SITE_ROWS
        and WHOLE_SITE_ROWS * len(step.units(model.sites[step.site])) >= model.sites[step.site].size
        and model.evaluates_whole_site(step.site)
    )


def _colours(
    step: Step, site: Site, rng_key: Any, values: Values, model: EnergyModel, aim: Any
) -> tuple[jax.Array, jax.Array]:
    """Draw the whole site for every colour and keep the colour: no gather and no scatter."""
    assert step.index is not None
    assert step.mask is not None
    member = np.zeros((step.num_rows, site.size), dtype=bool)
    for row, units, valid in zip(member, step.index.array, step.mask.array, strict=True):
        row[units[valid]] = True

    # once for all colours: a unit is decided in one of them
    noise = None if rng_key is None else site.noise(rng_key, site.encoded_shape)
    noise = jax.lax.optimization_barrier(noise)

    def colour(block: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        natural = _natural(step, {**values, step.site: block}, model, None)
        new, log_prob = _decided(site, noise, natural, aim, mask)
        return jnp.where(mask, new, block), log_prob

    member = member.reshape(-1, *site.shape)
    return jax.lax.scan(colour, values[step.site], jnp.asarray(member))


def _rows(
    step: Step, site: Site, rng_key: Any, values: Values, model: EnergyModel, aim: Any
) -> tuple[jax.Array, jax.Array]:
    """Scan over rows of units that are drawn at once: colours, blocks by hand, single units."""
    assert step.index is not None
    assert step.mask is not None
    width, padding = step.index.shape[1], _padding(step)

    def row(constants: Any, flat: jax.Array, x: Any) -> tuple[jax.Array, jax.Array]:
        values, model, aim = constants
        units, valid, key = x
        natural = _natural(step, {**values, step.site: flat.reshape(site.shape)}, model, units)
        own_aim = None if aim is None else select(aim, site, units)
        new, log_prob = _draw(site, key, natural, own_aim, None if step.coupled else valid)
        new = site.cast(new)
        if step.contiguous:
            new = (
                jnp.where(valid, new, _read(flat, units[0], width)) if padding is not None else new
            )
            return _write(flat, new, units[0]), log_prob
        # a padded place repeats a unit of its row: it is dropped, not written
        position = jnp.where(valid, units, site.size) if padding is not None else units
        return _scatter(flat, new, position), log_prob

    xs = (jnp.asarray(step.index.array), padding, _row_keys(rng_key, step))
    flat, log_probs = scan_units(row, (values, model, aim), values[step.site].reshape(-1), xs)
    return flat.reshape(site.shape), log_probs


def _panels(
    step: Step, site: Site, rng_key: Any, values: Values, model: EnergyModel, aim: Any
) -> tuple[jax.Array, jax.Array]:
    """Scan over panels of consecutive coupled units.

    The fields of a panel come by one product, then its units are drawn one after another.
    """
    assert step.index is not None
    width = step.index.shape[1]
    noise = None
    if rng_key is not None:  # for all panels in one vectorised pass
        noise = site.noise(rng_key, (*step.index.shape, *site.event))
        noise = jax.lax.optimization_barrier(noise)

    def panel(constants: Any, flat: jax.Array, x: Any) -> tuple[jax.Array, jax.Array]:
        values, model, aim = constants
        units, valid, noise = x
        current = site.from_encoded(flat.reshape(site.encoded_shape))
        natural = _natural(step, {**values, step.site: current}, model, units)
        couplings = model.block_couplings(step.site, units)
        own_aim = None if aim is None else select(aim, site, units)
        block = _read(flat, units[0], width)
        new, log_prob = _in_turn(site, noise, block, natural.eta, couplings, valid, own_aim)
        return _write(flat, new, units[0]), log_prob

    xs = (jnp.asarray(step.index.array), _padding(step), noise)
    # the encoding is carried: the product of every panel needs all of it
    start = site.encode(values[step.site]).reshape((site.size, *site.event))
    flat, log_probs = scan_units(panel, (values, model, aim), start, xs)
    raw = jnp.argmax(flat, axis=-1) if site.event else flat
    return raw.reshape(site.shape), log_probs


def _padding(step: Step) -> jax.Array | None:
    """False where a row is padded; None if no row is."""
    assert step.mask is not None
    return None if step.mask.array.all() else jnp.asarray(step.mask.array)


def _read(flat: jax.Array, start: jax.Array, width: int) -> jax.Array:
    """Return ``width`` consecutive units."""
    return with_chains_last(
        lambda flat, start: jax.lax.dynamic_slice_in_dim(flat, start, width), fixed=(1,)
    )(flat, start)


def _write(flat: jax.Array, block: jax.Array, start: jax.Array) -> jax.Array:
    """Return ``flat`` with consecutive units replaced."""

    def write(flat: jax.Array, block: jax.Array, start: jax.Array) -> jax.Array:
        flat, block = _in_all_chains(flat, block)
        return jax.lax.dynamic_update_slice_in_dim(flat, block, start, 0)

    return with_chains_last(write, fixed=(2,))(flat, block, start)


def _scatter(flat: jax.Array, block: jax.Array, position: jax.Array) -> jax.Array:
    """Return ``flat`` with some units replaced; positions outside are dropped."""

    def scatter(flat: jax.Array, block: jax.Array, position: jax.Array) -> jax.Array:
        flat, block = _in_all_chains(flat, block)
        return flat.at[position].set(block, mode="drop")

    return with_chains_last(scatter, fixed=(2,))(flat, block, position)


def _in_all_chains(flat: jax.Array, block: jax.Array) -> tuple[jax.Array, ...]:
    """Both with all trailing axes: what one of them has the same in all chains is repeated."""
    chains = jnp.broadcast_shapes(flat.shape[1:], block.shape[1:])
    return tuple(jnp.broadcast_to(x, (x.shape[0], *chains)) for x in (flat, block))


def _in_turn(
    site: Site,
    noise: Any,
    block: jax.Array,
    eta: jax.Array,
    couplings: jax.Array,
    valid: Any,
    aim: Any,
) -> tuple[jax.Array, jax.Array]:
    """Draw the coupled units of a panel one after another, keeping their fields up to date.

    ``block`` holds encoded values, and so does what is returned.
    """
    aim = None if aim is None else site.encode(aim)
    if aim is None and not site.event:
        turns = with_chains_last(functools.partial(_scalar_turns, site), fixed=(2, 4))
        return turns(block, eta, couplings, noise, valid), jnp.zeros(())

    def unit(_: Any, eta: jax.Array, x: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        i, old, couplings, own_noise, valid, aim = x
        if aim is None:
            new, log_prob = site.encode(site.decide(own_noise, eta[i])), jnp.zeros(())
        else:
            log_prob = jnp.sum(eta[i] * aim) - site.log_normalizer(eta[i])
            new = aim
        if valid is not None:
            new, log_prob = jnp.where(valid, new, old), jnp.where(valid, log_prob, 0.0)
        moved = new - old
        shift = jnp.tensordot(moved, couplings, axes=1) if site.event else moved * couplings
        return eta + shift, (new, log_prob)

    # the matrix is symmetric: its rows are the couplings of a unit with all of the panel
    xs = (jnp.arange(len(block)), block, couplings, noise, valid, aim)
    _, (block, log_probs) = scan_units(unit, None, eta, xs)
    return block, jnp.sum(log_probs)


def _scalar_turns(
    site: Site, block: jax.Array, eta: jax.Array, couplings: jax.Array, noise: Any, valid: Any
) -> jax.Array:
    """The same for units encoded as one number, chains on trailing axes."""
    chains = jnp.broadcast_shapes(block.shape[1:], eta.shape[1:], noise.shape[1:])
    ones = (1,) * len(chains)
    couplings = couplings.reshape(couplings.shape + ones)
    places = jnp.arange(len(block)).reshape(-1, *ones)

    def unit(i: jax.Array, panel: jax.Array) -> jax.Array:
        """Replace the field of unit i by its new value, and pass it on to those that follow."""
        new = site.encode(site.decide(noise[i], panel[i]))
        if valid is not None:
            new = jnp.where(valid[i], new, block[i])
        # by itself, so that the panel can be updated in place
        new = jax.lax.optimization_barrier(new)
        following = panel + couplings[i] * (new - block[i])
        return jnp.where(places > i, following, jnp.where(places == i, new, panel))

    panel = jnp.broadcast_to(eta, (len(block), *chains))
    return jax.lax.fori_loop(0, len(block), unit, panel)


def _difference(
    step: Step, site: Site, rng_key: Any, values: Values, model: EnergyModel, aim: Any
) -> tuple[jax.Array, jax.Array]:
    """Draw each unit from the energies of its states: exact for any discrete energy, slow."""
    states = site.states
    noise = None if rng_key is None else _random.gumbel(rng_key, (site.size, len(states)))

    def unit(constants: Any, flat: jax.Array, x: Any) -> tuple[jax.Array, jax.Array]:
        values, model = constants
        i, own_noise, aim = x

        def energy(state: jax.Array) -> jax.Array:
            trial = flat.at[i].set(site.cast(state)).reshape(site.shape)
            return model.energy(**model.encode({**values, step.site: trial}))

        logits = -jax.vmap(energy)(jnp.asarray(states))
        if aim is None:
            choice, log_prob = jnp.argmax(logits + own_noise), jnp.zeros(())
        else:
            choice = jnp.argmax(states == aim)
            log_prob = jax.nn.log_softmax(logits)[choice]
        return flat.at[i].set(site.cast(jnp.asarray(states)[choice])), log_prob

    xs = (jnp.arange(site.size), noise, None if aim is None else aim.reshape(-1))
    flat, log_probs = scan_units(unit, (values, model), values[step.site].reshape(-1), xs)
    return flat.reshape(site.shape), log_probs
