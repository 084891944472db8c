"""The data side of a contrastive step: what rows do not tell is drawn, or its means are taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pgm_energy._data import encode_rows
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.kernels.gibbs import GibbsKernel, random_configuration
from pgm_energy.learning.latents import as_raw, draw_latents, quiet_schedule, sums_out
from pgm_energy.learning.loop import Rows
from pgm_energy.structure import Blocks, blocks
from pgm_energy.transforms import condition

__all__ = ["complete_rows", "drawn_sites", "mean_field", "positive_phase"]

Values = dict[str, jax.Array]
#: Steps of the fixed point of a mean field, and the share of the new value in each.
MEAN_FIELD_STEPS, DAMPING = 30, 0.5


def drawn_sites(model: EnergyModel, rows: Rows, positive: str) -> tuple[str, ...]:
    """Return the sites that clamped chains draw for every row, and that they go on from.

    Raises
    ------
    ValueError
        If the model cannot be learned from these rows in this way.
    """
    if rows.known is not None:
        if positive == "mean_field":
            raise ValueError("missing=True draws what is missing: it needs positive='sampling'")
        example = {name: value[0] for name, value in rows.values.items()}
        free = {name: jnp.ones(known.shape[1:], bool) for name, known in rows.known.items()}
        blocks(condition(model, free=free, **example))  # verified eagerly
        return (*rows.known, *model.latent_sites)
    if sums_out(model):
        return ()
    if positive == "mean_field":
        _require_mean_field(model, quiet_schedule(model))
        return ()
    return model.latent_sites


def positive_phase(
    rng_key: Key,
    model: EnergyModel,
    batch: Rows,
    start: Values,
    *,
    num_sweeps: int,
    by_means: bool,
    draws_all: bool,
) -> tuple[Values, dict[str, Any], dict[str, jax.Array]]:
    """Return whole configurations of rows, what their energy is evaluated at, and figures.

    Parameters
    ----------
    rng_key
        A JAX random key.
    model
        The energy model.
    batch
        Rows, with or without gaps.
    start
        Raw values of the sites that clamped chains draw, by row.
    num_sweeps
        Of the clamped chains.
    by_means
        Take means under a mean field for latent sites that cannot be summed out.
    draws_all
        Whether the configurations must have values of all sites (chains start at them).

    Returns
    -------
    whole
        Raw values by site, of the data and of all that was drawn.
    encoded
        Encoded values of the data sites, and of latent ones where they cannot be summed out.
    figures
        For the metrics.
    """
    exact = sums_out(model)
    raw = as_raw(model, batch.values)
    if batch.known is not None:
        whole = complete_rows(rng_key, model, raw, batch.known, start, num_sweeps)
        seen = model.data_sites if exact else tuple(model.sites)
        return whole, encode_rows(model, {name: whole[name] for name in seen}), {}
    encoded = encode_rows(model, batch.values)
    drawn: Values = {}
    figures: dict[str, jax.Array] = {}
    if model.latent_sites and (start or draws_all):
        num = num_sweeps if start else 1
        drawn = draw_latents(rng_key, model, quiet_schedule(model), raw, start, num)
    if by_means and not exact:
        means, figures["mean_field_residual"] = mean_field(model, encoded)
        encoded = {**encoded, **means}
    elif not exact:
        encoded = {**encoded, **encode_rows(model, drawn)}
    return {**raw, **drawn}, encoded, figures


def complete_rows(
    rng_key: Key, model: EnergyModel, rows: Values, known: Values, start: Values, num: int
) -> Values:
    """Return whole configurations given what is known of each row: by clamped chains.

    Parameters
    ----------
    rng_key
        A JAX random key.
    model
        The energy model.
    rows
        Raw values by data site, ``(rows, ...)``; what is not known may be anything in the support.
    known
        By data site, True where a unit is known; sites that are not in it are known.
    start
        Raw values where chains go on from, for some or all sites.
    num
        Sweeps.
    """
    count = len(next(iter(rows.values())))

    def one(key: jax.Array, row: Values, mask: Values, start: Values) -> Values:
        first, key = jax.random.split(key)
        given = condition(model, free={name: ~part for name, part in mask.items()}, **row)
        kernel = GibbsKernel(quiet_schedule(given))
        values = given.clamp({**random_configuration(first, given), **_of(given, start)})

        def sweep(values: Values, k: jax.Array) -> tuple[Values, None]:
            return kernel(k, values, given)[0], None

        values = {name: site.cast(values[name]) for name, site in given.sites.items()}
        values = jax.lax.scan(sweep, values, jax.random.split(key, num))[0]
        return {**row, **values}

    return jax.vmap(one)(jax.random.split(rng_key, count), rows, known, start)


def _of(model: EnergyModel, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in model.sites}


def _require_mean_field(model: EnergyModel, schedule: Blocks) -> None:
    """Refuse a model whose latent units have no mean field that is told by their means.

    Raises
    ------
    ValueError
        Naming the site and why.
    """
    for step in schedule.restrict(model.latent_sites).steps:
        if not model.sites[step.site].is_discrete or step.kind == "difference":
            why = (
                "is real"
                if not model.sites[step.site].is_discrete
                else "has an energy that is not affine in each of its units"
            )
            raise ValueError(
                f"positive='mean_field' needs latent units whose means tell the mean energy, site "
                f"{step.site!r} {why}: use positive='sampling'"
            )


def mean_field(model: EnergyModel, data: Mapping[str, Any]) -> tuple[Values, jax.Array]:
    """Return means of the latent sites given encoded rows, and how far they still moved.

    Parameters
    ----------
    model
        A model whose energy is affine in each latent unit.
    data
        Encoded values by data site, ``(rows, ...)``.

    Returns
    -------
    means
        E[T(x)] of latent sites under independent units, ``(rows, ...)``.
    residual
        Largest change that one more step without damping would make.

    Notes
    -----
    The damped fixed point ``m = mean(eta(m))``. At it ``E(data, m) - sum H(m)`` is least, which is
    never below the free energy of the row: learning with it raises a lower bound of the
    likelihood (as far as the negative phase is exact).

    References
    ----------
    R. Salakhutdinov and G. Hinton (2009), Deep Boltzmann machines, equations 6 to 8.
    """
    sites = model.sites

    def pulled(values: Values) -> Values:
        """Means of every latent site given all others, one site after another."""
        for name in model.latent_sites:
            raw = {key: sites[key].from_encoded(value) for key, value in values.items()}
            natural = model.natural_parameters(name, raw)
            values = {**values, name: sites[name].mean(natural.eta, natural.precision)}
        return {name: values[name] for name in model.latent_sites}

    def one(row: Values) -> tuple[Values, jax.Array]:
        means = {k: sites[k].mean(jnp.zeros(sites[k].encoded_shape)) for k in model.latent_sites}

        def step(means: Values, _: None) -> tuple[Values, None]:
            new = pulled({**row, **means})
            return {k: means[k] + DAMPING * (new[k] - means[k]) for k in means}, None

        means = jax.lax.scan(step, means, None, length=MEAN_FIELD_STEPS)[0]
        new = pulled({**row, **means})
        change = [jnp.max(jnp.abs(new[name] - means[name])) for name in means]
        return means, jnp.max(jnp.stack(change))

    means, residual = jax.vmap(one)(dict(data))
    return means, jnp.max(residual)
