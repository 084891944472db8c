"""One-liners on the pure kernels: draw, summarise latent sites, reconstruct, impute."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._checks import require_count, require_key
from pgm_energy._data import as_rows
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.kernels.gibbs import GibbsKernel, random_configuration
from pgm_energy.natural import derive_natural_parameters
from pgm_energy.probe import probe, require_block
from pgm_energy.structure import Blocks, blocks
from pgm_energy.transforms import condition

__all__ = ["impute", "latent_mean", "reconstruct", "sample"]

Samples = dict[str, jax.Array]


def _require_model(model: Any, function: str) -> EnergyModel:
    if not isinstance(model, EnergyModel):
        raise TypeError(f"{function} takes an energy model, got {type(model).__name__}")
    return model


def _rows_like(value: dict[str, Any], data: Any) -> Any:
    """A bare array where a bare array was given."""
    return value if isinstance(data, dict) or len(value) > 1 else next(iter(value.values()))


def sample(
    rng_key: Key,
    model: EnergyModel,
    num_samples: int,
    *,
    num_chains: int | None = None,
    num_warmup: int = 500,
    num_sweeps: int = 1,
    group_by_chain: bool = False,
) -> Samples:
    """Return draws of every site by block Gibbs, raw values.

    Parameters
    ----------
    rng_key
        A JAX random key.
    model
        The energy model.
    num_samples
        Number of draws in all.
    num_chains
        Independent chains that share them; by default 16, or ``num_samples`` if that is less.
    num_warmup
        Sweeps of each chain that are thrown away.
    num_sweeps
        Sweeps between two draws of a chain.
    group_by_chain
        Keep the chains apart.

    Returns
    -------
    dict
        By site, shape ``(num_samples, ...)``, or ``(num_chains, draws, ...)`` by chain, with
        ``draws = ceil(num_samples / num_chains)``.

    Raises
    ------
    ValueError
        On a count below 1, or a model that block Gibbs cannot sample.

    Notes
    -----
    Exact in the limit of long chains; draws of one chain are correlated. To diagnose them use
    ``MCMC(BlockGibbs(model))`` and ``to_datatree``.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, pgm_energy as pgm
    >>> rbm = pgm.RBM(weights=jnp.ones((3, 2)))
    >>> pgm.sample(jax.random.key(0), rbm, 10, num_warmup=5)["v"].shape
    (10, 3)
    """
    rng_key = require_key(rng_key)
    _require_model(model, "sample")
    num_samples = require_count("num_samples", num_samples)
    num_chains = require_count(
        "num_chains", min(16, num_samples) if num_chains is None else num_chains
    )
    num_warmup = require_count("num_warmup", num_warmup, 0)
    num_sweeps = require_count("num_sweeps", num_sweeps)
    draws = math.ceil(num_samples / num_chains)
    kernel = GibbsKernel(blocks(model))
    out = _draw_chains(rng_key, model, kernel, num_chains, num_warmup, draws, num_sweeps)
    if group_by_chain:
        return out
    # draw by draw across chains, so that a cut leaves every chain its share
    flat = {k: jnp.swapaxes(v, 0, 1).reshape((-1, *v.shape[2:])) for k, v in out.items()}
    return {k: v[:num_samples] for k, v in flat.items()}


@functools.partial(
    jax.jit, static_argnames=("kernel", "num_chains", "num_warmup", "draws", "num_sweeps")
)
def _draw_chains(
    rng_key: Key,
    model: EnergyModel,
    kernel: GibbsKernel,
    num_chains: int,
    num_warmup: int,
    draws: int,
    num_sweeps: int,
) -> Samples:
    def chain(key: jax.Array) -> Samples:
        start, warm, go = jax.random.split(key, 3)
        values = model.clamp(random_configuration(start, model))
        values = run_sweeps(kernel, warm, values, model, num_warmup)
        return collect(kernel, go, values, model, draws, num_sweeps)

    return jax.vmap(chain)(jax.random.split(rng_key, num_chains))


def run_sweeps(
    kernel: GibbsKernel, rng_key: Key, values: Samples, model: EnergyModel, num: int
) -> Samples:
    """Return the configuration after ``num`` sweeps."""

    def sweep(i: jax.Array, values: Samples) -> Samples:
        return kernel(jax.random.fold_in(rng_key, i), values, model)[0]

    return jax.lax.fori_loop(0, num, sweep, values)


def collect(
    kernel: GibbsKernel,
    rng_key: Key,
    values: Samples,
    model: EnergyModel,
    draws: int,
    num_sweeps: int,
) -> Samples:
    """Return ``draws`` configurations, ``num_sweeps`` sweeps apart, draws first."""

    def draw(values: Samples, key: jax.Array) -> tuple[Samples, Samples]:
        values = run_sweeps(kernel, key, values, model, num_sweeps)
        return values, values

    return jax.lax.scan(draw, values, jax.random.split(rng_key, draws))[1]


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
    _require_model(model, "latent_mean")
    names = model.latent_sites
    if not names:
        raise ValueError(f"{model.title} has no latent sites")
    rows = as_rows(model, data, allow_intensities=True)
    coupled = {name: require_block(model, name, None) for name in names}
    exam = probe(model)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            if exam.sites_interact(first, second):
                raise ValueError(
                    f"latent sites {first!r} and {second!r} of {model.title} interact: "
                    "their mean given a row has no closed form; sample condition(model, ...)"
                )

    out = _latent_means(model, rows, coupled=tuple(coupled.items()))
    return out if len(names) > 1 else out[names[0]]


@functools.partial(jax.jit, static_argnames=("coupled",))
def _latent_means(
    model: EnergyModel, rows: Any, *, coupled: tuple[tuple[str, bool], ...]
) -> dict[str, jax.Array]:
    sites = model.sites

    def one(row: Any) -> dict[str, jax.Array]:
        values = dict(row)
        for name, _ in coupled:  # their values do not matter to one another
            values[name] = jnp.full(sites[name].shape, sites[name].filler, sites[name].dtype)
        out = {}
        for name, together in coupled:
            natural = natural_parameters_of(model, name, values, together)
            out[name] = sites[name].mean(natural.eta, natural.precision)
        return out

    return jax.vmap(one)(rows)


def natural_parameters_of(model: EnergyModel, name: str, values: Any, coupled: bool) -> Any:
    """Natural parameters of a whole site, as one multivariate normal where coupled."""
    if coupled:
        return derive_natural_parameters(model, name, values, coupled=True)
    return model.natural_parameters(name, values)


def reconstruct(rng_key: Key, model: EnergyModel, data: Any) -> Any:
    """Return E[data site given latents], the latents drawn given each row.

    Parameters
    ----------
    rng_key
        A JAX random key.
    model
        The energy model. Without latent sites every unit is predicted from all the others.
    data
        Rows of the data site, or a dict by site.

    Returns
    -------
    array or dict
        Shaped like the encoded data: probabilities of binary units, means of spin and real
        units, probabilities ``(..., K)`` of categorical units.

    Raises
    ------
    ValueError
        If the data are not valid or a data site has no closed conditional.

    Notes
    -----
    One Gibbs sweep over the latent sites, then an exact conditional mean.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpy as np, pgm_energy as pgm
    >>> rbm = pgm.RBM(weights=jnp.zeros((3, 2)))
    >>> pgm.reconstruct(jax.random.key(0), rbm, np.array([[0, 1, 1]])).tolist()
    [[0.5, 0.5, 0.5]]
    """
    rng_key = require_key(rng_key)
    _require_model(model, "reconstruct")
    rows = as_rows(model, data)
    schedule = blocks(model)
    names = model.data_sites
    for step in schedule.steps:
        if step.site in names and step.kind == "difference":
            raise ValueError(
                f"site {step.site!r} of {model.title} has no closed conditional mean: "
                "its energy is not affine in each unit"
            )
    return _rows_like(_reconstruct(rng_key, model, rows, schedule=schedule), data)


@functools.partial(jax.jit, static_argnames=("schedule",))
def _reconstruct(
    rng_key: Key, model: EnergyModel, rows: Any, *, schedule: Blocks
) -> dict[str, jax.Array]:
    coupled = {step.site: step.coupled for step in schedule.steps}
    latents = schedule.restrict(model.latent_sites)

    def one(key: jax.Array, row: Any) -> dict[str, jax.Array]:
        start, sweep = jax.random.split(key)
        values = {**random_configuration(start, model), **row}
        if latents.steps:
            values, _ = GibbsKernel(latents)(sweep, values, model)
        out = {}
        for name in model.data_sites:
            natural = natural_parameters_of(model, name, values, coupled[name])
            out[name] = model.sites[name].mean(natural.eta, natural.precision)
        return out

    count = len(next(iter(rows.values())))
    return jax.vmap(one)(jax.random.split(rng_key, count), rows)


def impute(
    rng_key: Key,
    model: EnergyModel,
    rows_with_nan: Any,
    num_samples: int = 1,
    *,
    num_warmup: int = 200,
    num_sweeps: int = 10,
) -> Any:
    """Return completed rows: draws of the missing entries given the observed ones.

    Parameters
    ----------
    rng_key
        A JAX random key.
    model
        The energy model.
    rows_with_nan
        Rows of the data site (or a dict by site), NaN where missing; every row may have its own
        pattern.
    num_samples
        Completions per row.
    num_warmup
        Sweeps before the first completion.
    num_sweeps
        Sweeps between two completions.

    Returns
    -------
    array or dict
        Raw values, ``(num_samples, rows, ...)``; their mean over the first axis estimates the
        conditional expectation, their spread its uncertainty.

    Raises
    ------
    ValueError
        On invalid data or counts.

    Notes
    -----
    One chain per row on ``condition(model, free=..., ...)``, all rows mapped at once. Exact in
    the limit of long chains.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpy as np, pgm_energy as pgm
    >>> rbm = pgm.RBM(weights=jnp.ones((3, 2)))
    >>> pgm.impute(jax.random.key(0), rbm, np.array([[0, np.nan, 1]]), 4).shape
    (4, 1, 3)
    """
    rng_key = require_key(rng_key)
    _require_model(model, "impute")
    num_samples = require_count("num_samples", num_samples)
    num_warmup = require_count("num_warmup", num_warmup, 0)
    num_sweeps = require_count("num_sweeps", num_sweeps)
    rows = as_rows(model, rows_with_nan, allow_missing=True)
    free = {
        name: np.isnan(value) if value.dtype.kind == "f" else np.zeros(value.shape, bool)
        for name, value in rows.items()
    }
    filled = {name: np.where(free[name], model.sites[name].filler, v) for name, v in rows.items()}
    # the structure of a masked site does not depend on the mask: any with a free unit will do
    example = condition(
        model,
        free={name: np.ones(mask.shape[1:], bool) for name, mask in free.items()},
        **{name: value[0] for name, value in filled.items()},
    )
    kernel = GibbsKernel(blocks(example))

    out = _complete(rng_key, model, filled, free, kernel, num_warmup, num_samples, num_sweeps)
    return _rows_like(out, rows_with_nan)


@functools.partial(jax.jit, static_argnames=("kernel", "num_warmup", "num_samples", "num_sweeps"))
def _complete(
    rng_key: Key,
    model: EnergyModel,
    filled: Any,
    free: Any,
    kernel: GibbsKernel,
    num_warmup: int,
    num_samples: int,
    num_sweeps: int,
) -> Samples:
    def one(key: jax.Array, row: Any, mask: Any) -> Samples:
        given = condition(model, free=mask, **row)
        start, warm, go = jax.random.split(key, 3)
        values = given.clamp(random_configuration(start, given))
        values = run_sweeps(kernel, warm, values, given, num_warmup)
        out = collect(kernel, go, values, given, num_samples, num_sweeps)
        return {name: out[name] for name in row}

    count = len(next(iter(filled.values())))
    keys = jax.random.split(rng_key, count)
    return jax.vmap(one, out_axes=1)(keys, filled, free)
