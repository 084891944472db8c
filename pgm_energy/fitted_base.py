"""Independent units with the marginals of a model: where a tempered path begins."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.kernels.gibbs import GibbsKernel, random_configuration
from pgm_energy.models.independent import Independent
from pgm_energy.sites import Real, Site, Spin
from pgm_energy.structure import Blocks
from pgm_energy.transforms._base import rebuild

__all__ = ["fitted_base"]

#: Chains and sweeps of the run that the base is fitted to; the second half counts.
NUM_CHAINS, NUM_SWEEPS = 64, 50


@functools.partial(jax.jit, static_argnames="blocks")
def fitted_base(
    rng_key: Key,
    model: EnergyModel,
    template: Independent,
    fixed: dict[str, Any],
    *,
    blocks: Blocks,
) -> Independent:
    """Return independent units with the marginals of short block-Gibbs chains.

    Parameters
    ----------
    rng_key
        A JAX random key.
    model
        The model whose marginals are wanted.
    template
        ``Independent.like(model)``: its clamped units stay pinned, and sites that ``blocks`` do
        not update keep their parameters.
    fixed
        Raw values of sites that are observed.
    blocks
        Verified schedule of the model, of the sites that are not fixed.

    Notes
    -----
    A heuristic: any base is a valid one. May be traced and mapped. Cost: 64 chains of 50 sweeps
    from random configurations, the last 25 of which count; moments only are kept.
    """
    kernel = GibbsKernel(blocks)
    free = [name for name in model.sites if name not in fixed]
    start_key, sweep_key = jax.random.split(rng_key)

    def begin(key: jax.Array) -> dict[str, jax.Array]:
        values = model.clamp({**random_configuration(key, model), **fixed})
        return {name: site.cast(values[name]) for name, site in model.sites.items()}

    def sweep(values: Any, key: jax.Array) -> Any:
        keys = jax.random.split(key, NUM_CHAINS)
        values = jax.vmap(lambda k, x: kernel(k, x, model)[0])(keys, values)
        encoded = jax.vmap(model.encode)(values)
        return values, {name: (encoded[name].mean(0), encoded[name].var(0)) for name in free}

    values = jax.vmap(begin)(jax.random.split(start_key, NUM_CHAINS))
    _, moments = jax.lax.scan(sweep, values, jax.random.split(sweep_key, NUM_SWEEPS))
    return _with_moments(template, jax.tree.map(lambda x: x[NUM_SWEEPS // 2 :], moments))


def _with_moments(template: Independent, moments: Mapping[str, Any]) -> Independent:
    """Independent units with moments of T(x) over ``(sweeps,)``; clamped units stay pinned."""
    parameters, precisions = dict(template.parameters), dict(template.precisions)
    for name, (means, variances) in moments.items():
        site = template.sites[name]
        mean = means.mean(0)
        if isinstance(site, Real):
            # within the chains of a sweep, and between sweeps
            precision = 1.0 / (variances.mean(0) + means.var(0) + 1e-6)
            eta = precision * mean
        else:
            precision, eta = None, _eta_of_mean(site, mean)
        if name in template.free:
            loose = template.free[name] > 0.5
            wide = loose.reshape(loose.shape + (1,) * len(site.event))
            eta = jnp.where(wide, eta, template.parameters[name])
            if precision is not None:
                precision = jnp.where(loose, precision, 1.0)
        parameters[name] = eta
        if precision is not None:
            precisions[name] = precision
    return rebuild(template, parameters=parameters, precisions=precisions)


def _eta_of_mean(site: Site, mean: jax.Array) -> jax.Array:
    """Natural parameters of discrete units with this E[T], smoothed.

    By one pseudo-chain beside the chains, however long they are: sweeps of a chain that keeps to
    one mode are no independent witnesses.
    """
    if site.event:
        share = 1.0 / site.event[0]
        return jnp.log((NUM_CHAINS * mean + share) / (NUM_CHAINS + 1.0))
    spin = isinstance(site, Spin)
    prob = 0.5 * (1.0 + mean) if spin else mean
    smooth = (NUM_CHAINS * prob + 0.5) / (NUM_CHAINS + 1.0)
    logit = jnp.log(smooth) - jnp.log1p(-smooth)
    return 0.5 * logit if spin else logit
