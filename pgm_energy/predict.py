"""Draws of a model in one line."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._chain_run import (
    Chains,
    Chunk,
    Watch,
    advance_chains,
    begin,
    checked_kernel,
    first_invalid,
)
from pgm_energy._checks import require_count, require_key
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.transforms._base import require_model

__all__ = ["sample"]

Samples = dict[str, jax.Array]

#: Most draws of a chain in one compiled chunk.
_LONGEST = 256


def sample(
    rng_key: Key,
    model: EnergyModel,
    num_samples: int,
    *,
    num_chains: int | None = None,
    num_warmup: int = 500,
    num_sweeps: int = 1,
    group_by_chain: bool = False,
    kernel: Any = None,
    on_invalid: str = "warn",
    progress_bar: bool = False,
) -> Samples:
    """Return draws of every site, raw values in storage types, by block Gibbs unless told.

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
    kernel
        A pure kernel ``(rng_key, values, model) -> (values, info)``, such as
        ``kernels.GibbsWithGradientsKernel()``; one call of it is a sweep.
    on_invalid
        What to do when the energy of a chain is no finite number: "warn" says which chain and
        draw, and goes on; "stop" returns the draws before.
    progress_bar
        Whether to show progress.

    Returns
    -------
    dict
        By site, shape ``(num_samples, ...)``, or ``(num_chains, draws, ...)`` by chain, with
        ``draws = ceil(num_samples / num_chains)``.

    Raises
    ------
    ValueError
        On a count below 1, a model that block Gibbs cannot sample, or an energy that is no finite
        number at the first draw where that stops the run.
    TypeError
        If ``kernel`` is no pure kernel of this model, or inside ``jax.jit``.

    Warns
    -----
    RuntimeWarning
        On an energy that is no finite number, and on an interrupt (Ctrl-C), after which all draws
        so far are returned: fewer than ``num_samples``.

    Notes
    -----
    Exact in the limit of long chains; draws of one chain are correlated. To diagnose them use
    ``MCMC(BlockGibbs(model))`` and ``to_datatree``; for more draws than fit into memory
    :func:`running_moments`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, pgm_energy as pgm
    >>> rbm = pgm.RBM(weights=jnp.ones((3, 2)))
    >>> pgm.sample(jax.random.key(0), rbm, 10, num_warmup=5)["v"].shape
    (10, 3)
    """
    rng_key = require_key(rng_key)
    require_model(model, "sample")
    num_samples = require_count("num_samples", num_samples)
    num_chains = require_count(
        "num_chains", min(16, num_samples) if num_chains is None else num_chains
    )
    num_warmup = require_count("num_warmup", num_warmup, 0)
    num_sweeps = require_count("num_sweeps", num_sweeps)
    kernel = checked_kernel(kernel, model)
    watch = Watch("draw", on_invalid, progress_bar)
    chains = begin(rng_key, model, num_chains)
    draws = math.ceil(num_samples / num_chains)
    length = min(draws, _LONGEST)
    parts: list[dict[str, np.ndarray]] = []

    def advance(start: int, count: int) -> Chunk:
        nonlocal chains
        warm = start < num_warmup
        sweep = start if warm else num_warmup + (start - num_warmup) * num_sweeps
        between = 1 if warm else num_sweeps
        moved, buffers, energies = _advance(
            model, chains, sweep, count, between, kernel=kernel, length=length
        )
        if not warm:
            parts.append({name: np.asarray(value)[:count] for name, value in buffers.items()})
        chains = moved
        return first_invalid(np.asarray(energies)[:count], start - num_warmup)

    watch.run(advance, num_warmup, draws, length)
    out = {name: np.concatenate([part[name] for part in parts]) for name in model.sites}
    if watch.ending and watch.invalid:
        out = {name: value[: min(watch.invalid.values())] for name, value in out.items()}
    done = len(next(iter(out.values())))
    if not done:
        raise ValueError(f"there is nothing to return: {watch.ending}")
    if group_by_chain:
        return {name: jnp.asarray(np.swapaxes(value, 0, 1)) for name, value in out.items()}
    # draw by draw across chains, so that a cut leaves every chain its share
    flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in out.items()}
    return {name: jnp.asarray(value[:num_samples]) for name, value in flat.items()}


@functools.partial(jax.jit, static_argnames=("kernel", "length"))
def _advance(
    model: EnergyModel,
    chains: Chains,
    sweep: Any,
    count: Any,
    between: Any,
    *,
    kernel: Any,
    length: int,
) -> tuple[Chains, Samples, jax.Array]:
    """Take ``count <= length`` draws, ``between`` sweeps apart; they lie ``(draw, chain, ...)``."""
    lead = (length, chains.keys.shape[0])
    buffers = {k: jnp.zeros((*lead, *s.shape), s.dtype) for k, s in model.sites.items()}
    energies = jnp.zeros(lead, jnp.result_type(float))

    def draw(i: jax.Array, carry: Any) -> Any:
        chains, buffers, energies = carry

        def one(j: jax.Array, moved: Any) -> Any:
            return advance_chains(kernel, model, moved[0], sweep + i * between + j)

        none = jnp.zeros(lead[1], energies.dtype)
        chains, energy = jax.lax.fori_loop(0, between, one, (chains, none))
        buffers = {name: buffers[name].at[i].set(chains.values[name]) for name in buffers}
        return chains, buffers, energies.at[i].set(energy)

    return jax.lax.fori_loop(0, count, draw, (chains, buffers, energies))
