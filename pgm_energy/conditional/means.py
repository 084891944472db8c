"""Conditional means in closed form: of latent sites given rows, and of rows given latents."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pgm_energy._checks import require_key
from pgm_energy._data import as_rows
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.kernels.gibbs import GibbsKernel, random_configuration
from pgm_energy.natural import Natural, Values, derive_natural_parameters
from pgm_energy.probe import probe, require_block
from pgm_energy.sites import Real
from pgm_energy.structure import Blocks, Step, blocks
from pgm_energy.transforms._base import require_model

__all__ = ["latent_mean", "like_given", "reconstruct", "unit_moments"]


def like_given(by_site: dict[str, Any], data: Any) -> Any:
    """A bare array where a bare array was given."""
    return by_site if isinstance(data, Mapping) else next(iter(by_site.values()))


def latent_mean(model: EnergyModel, data: Any) -> Any:
    """Return E[T(latent) given row]: RBM features, responsibilities of a mixture.

    Parameters
    ----------
    model
        An energy model with latent sites whose units do not interact given the data.
    data
        Rows of the data site, or a dict by site. Binary data between 0 and 1 are taken as
        probabilities.

    Returns
    -------
    array or dict
        Shape ``(rows, ...)``: probabilities of binary units, mean of spin and real units,
        ``(rows, ..., K)`` probabilities of categorical units. A dict by site if there are
        several latent sites.

    Raises
    ------
    ValueError
        If there are no latent sites, latent units interact, or the data are not valid.

    Notes
    -----
    Exact; one gradient of the energy (RBM: one matrix product) per row.

    Examples
    --------
    >>> import jax.numpy as jnp, numpy as np, pgm_energy as pgm
    >>> rbm = pgm.RBM(weights=jnp.zeros((3, 2)))
    >>> pgm.latent_mean(rbm, np.array([[0, 1, 1]])).tolist()
    [[0.5, 0.5]]
    """
    require_model(model, "latent_mean")
    names = model.latent_sites
    if not names:
        raise ValueError(f"{model.title} has no latent sites")
    rows = as_rows(model, data, allow_intensities=True)
    coupled = _independent_latents(model)
    out = _latent_means(model, rows, coupled=coupled)
    return out if len(names) > 1 else out[names[0]]


def _independent_latents(model: EnergyModel) -> tuple[tuple[str, bool], ...]:
    """Latent sites, and whether each is one coupled normal; refused where two interact."""
    names = model.latent_sites
    coupled = {name: require_block(model, name, None) for name in names}
    exam = probe(model)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            if exam.sites_interact(first, second):
                raise ValueError(
                    f"latent sites {first!r} and {second!r} of {model.title} interact: "
                    "their mean given a row has no closed form; draw them with sample_given"
                )
    return tuple(coupled.items())


@functools.partial(jax.jit, static_argnames=("coupled",))
def _latent_means(
    model: EnergyModel, rows: Any, *, coupled: tuple[tuple[str, bool], ...]
) -> dict[str, jax.Array]:
    return jax.vmap(lambda row: _means_given(model, row, coupled))(rows)


def _means_given(
    model: EnergyModel, row: Any, coupled: tuple[tuple[str, bool], ...]
) -> dict[str, jax.Array]:
    """E[T(latent)] of latent sites that do not interact, given one row."""
    sites = model.sites
    values = dict(row)
    for name, _ in coupled:  # their values do not matter to one another
        values[name] = jnp.full(sites[name].shape, sites[name].filler, sites[name].dtype)
    out = {}
    for name, together in coupled:
        natural = _natural_parameters(model, name, values, together)
        out[name] = sites[name].mean(natural.eta, natural.precision)
    return out


def _natural_parameters(model: EnergyModel, name: str, values: Values, coupled: bool) -> Natural:
    """Natural parameters of a whole site, as one multivariate normal where coupled."""
    if coupled:
        return derive_natural_parameters(model, name, values, coupled=True)
    return model.natural_parameters(name, values)


def unit_moments(
    step: Step, model: EnergyModel, values: Values
) -> tuple[jax.Array, jax.Array | None]:
    """Return E[T(x_i)] of a site's units, and E[x_i^2] of real ones, each given all the others.

    Notes
    -----
    Averaged over draws of the rest they estimate the moments with less variance than the draws
    themselves (Rao and Blackwell). A unit that is updated by energy differences has no closed
    conditional: its present value stands for it.
    """
    site = model.sites[step.site]
    if step.kind == "difference":
        return site.encode(values[step.site]), None
    if not isinstance(site, Real):
        return site.mean(_natural_parameters(model, step.site, values, False).eta), None
    if step.index is None:
        natural = _natural_parameters(model, step.site, values, step.coupled)
        return _normal_moments(site, natural)
    assert step.mask is not None
    units = jnp.asarray(step.index.array)
    parts = jax.lax.map(
        lambda row: _normal_moments(site, model.natural_parameters(step.site, values, row)), units
    )
    position = jnp.where(jnp.asarray(step.mask.array), units, site.size).reshape(-1)
    zeros = jnp.zeros(site.size)
    first, second = (
        zeros.at[position].set(part.reshape(-1), mode="drop").reshape(site.shape) for part in parts
    )
    return first, second


def _normal_moments(site: Real, natural: Natural) -> tuple[jax.Array, jax.Array]:
    eta, precision = natural.eta, natural.precision
    assert precision is not None
    mean = site.mean(eta, precision)
    if site.is_matrix(eta, precision):
        variance = jnp.diag(jnp.linalg.inv(precision)).reshape(eta.shape)
    else:
        variance = 1.0 / precision
    return mean, mean**2 + variance


def reconstruct(
    rng_key: Key | None, model: EnergyModel, data: Any, *, mean_field: bool = False
) -> Any:
    """Return E[data site given latents], the latents drawn given each row: half a Gibbs sweep.

    Parameters
    ----------
    rng_key
        A JAX random key; may be None with ``mean_field``.
    model
        The energy model. Without latent sites every unit is predicted from all the others.
    data
        Rows of the data site, or a dict by site.
    mean_field
        Put the latents at their means given the row, ``E[v given h = E[h given v]]``, instead of
        drawing them: nothing is random, and the answer is no expectation under the model.

    Returns
    -------
    array or dict
        Shaped like the encoded data: probabilities of binary units, means of spin and real
        units, probabilities ``(..., K)`` of categorical units.

    Raises
    ------
    ValueError
        If the data are not valid, a data site has no closed conditional, or the means of latents
        that interact are asked for.

    Notes
    -----
    One Gibbs sweep over the latent sites (exact where they do not interact), then an exact
    conditional mean: two matrix products for an RBM. It measures what the latents keep of a row.
    A row with errors is not corrected by it but by :func:`denoise`, which knows how errors arise.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpy as np, pgm_energy as pgm
    >>> rbm = pgm.RBM(weights=jnp.zeros((3, 2)))
    >>> pgm.reconstruct(jax.random.key(0), rbm, np.array([[0, 1, 1]])).tolist()
    [[0.5, 0.5, 0.5]]
    """
    if rng_key is not None or not mean_field:
        rng_key = require_key(rng_key)
    require_model(model, "reconstruct")
    rows = as_rows(model, data)
    schedule = blocks(model)
    for step in schedule.steps:
        if step.site in model.data_sites and step.kind == "difference":
            raise ValueError(
                f"site {step.site!r} of {model.title} has no closed conditional mean: "
                "its energy is not affine in each unit"
            )
    means = _independent_latents(model) if mean_field else None
    out = _reconstruct(rng_key, model, rows, schedule=schedule, means=means)
    return like_given(out, data)


@functools.partial(jax.jit, static_argnames=("schedule", "means"))
def _reconstruct(
    rng_key: Key | None, model: EnergyModel, rows: Any, *, schedule: Blocks, means: Any
) -> dict[str, jax.Array]:
    data_steps = schedule.restrict(model.data_sites).steps
    latents = schedule.restrict(model.latent_sites)

    def predict(values: Values) -> dict[str, jax.Array]:
        out = {step.site: unit_moments(step, model, values)[0] for step in data_steps}
        return {name: out[name] for name in model.data_sites}

    def from_draws(key: jax.Array, row: Any) -> dict[str, jax.Array]:
        start, sweep = jax.random.split(key)
        values = {**random_configuration(start, model), **row}
        if latents.steps:
            values, _ = GibbsKernel(latents)(sweep, values, model)
        return predict(values)

    def from_means(row: Any) -> dict[str, jax.Array]:
        found = _means_given(model, row, means)
        return predict({**row, **{k: model.sites[k].from_encoded(x) for k, x in found.items()}})

    if means is not None:
        return jax.vmap(from_means)(rows)
    assert rng_key is not None
    count = len(next(iter(rows.values())))
    return jax.vmap(from_draws)(jax.random.split(rng_key, count), rows)
