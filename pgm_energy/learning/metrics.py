"""Figures of a learning run, and what they say in words."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pgm_energy._data import encode_rows
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.kernels.gibbs import GibbsKernel
from pgm_energy.learning.equilibrium import trouble
from pgm_energy.learning.latents import as_raw, draw_latents, quiet_schedule, sum_out, sums_out
from pgm_energy.learning.loop import Metrics, Rows
from pgm_energy.natural import derive_natural_parameters
from pgm_energy.pseudo_likelihood import pseudo_losses, unit_plans
from pgm_energy.structure import Blocks

__all__ = ["explain", "in_words", "learning_rate", "measurements"]

Values = dict[str, jax.Array]
#: Rows that the metrics of an epoch look at.
_NUM_MEASURED = 500
#: Chains and sweeps at which it is asked whether chains are at equilibrium.
_LEAST_CHAINS, _HELD_SWEEPS = 32, 20
#: Sweeps of clamped chains where the energy of data needs their latent units.
_CLAMPED_SWEEPS = 10
#: Units (rows times their width) for the pseudo-likelihood, which asks about each of them.
_NUM_UNITS = 40_000


@functools.partial(jax.jit, static_argnames=("schedule", "exact"))
def _figures(
    rng_key: Key,
    model: EnergyModel,
    chains: Values,
    train: Values,
    other: Any,
    scored: Any,
    *,
    schedule: Blocks,
    exact: bool,
) -> dict[str, jax.Array]:
    out: dict[str, jax.Array] = {}
    gap_key, drift_key, error_key = jax.random.split(rng_key, 3)
    energies = functools.partial(_energies, gap_key, model, schedule, exact)
    if other is not None and exact:
        out["free_energy_gap"] = jnp.mean(energies(other)) - jnp.mean(energies(train))
    if chains:
        present, seen = energies(chains), energies(as_raw(model, train))
        out["chain_free_energy" if exact else "chain_energy"] = jnp.mean(present)
        # in standard deviations: about 0 when chains follow a model that fits
        spread = jnp.sqrt(jnp.maximum(0.5 * (jnp.var(seen) + jnp.var(present)), 0.01))
        out["chain_energy_gap"] = (jnp.mean(present) - jnp.mean(seen)) / spread
        if len(present) >= _LEAST_CHAINS:
            held = energies(_held_sweeps(drift_key, model, schedule, chains))
            out["chain_drift"] = (jnp.mean(held) - jnp.mean(present)) / spread
    looked = as_raw(model, train if other is None else other)
    out["reconstruction_error"] = _reconstruction_error(error_key, model, schedule, looked)
    if scored is not None:
        out["pseudo_log_likelihood"] = -jnp.mean(pseudo_losses(model, scored))
    return out


def _held_sweeps(rng_key: Key, model: EnergyModel, schedule: Blocks, chains: Values) -> Values:
    """Chains after some sweeps at parameters that stay as they are: at equilibrium, as before."""
    kernel = GibbsKernel(schedule)
    count = len(next(iter(chains.values())))

    def sweep(values: Values, key: jax.Array) -> tuple[Values, None]:
        keys = jax.random.split(key, count)
        return jax.vmap(lambda k, x: kernel(k, x, model)[0])(keys, values), None

    return jax.lax.scan(sweep, chains, jax.random.split(rng_key, _HELD_SWEEPS))[0]


def _energies(
    rng_key: Key, model: EnergyModel, schedule: Blocks, exact: bool, values: Mapping[str, Any]
) -> jax.Array:
    """Free energy of every row, nats; where latent units interact, energy with these drawn."""
    if exact:
        free = sum_out(model)
        encoded = encode_rows(model, {name: values[name] for name in model.data_sites})
        return jax.vmap(lambda row: free.energy(**row))(encoded)
    if not set(model.latent_sites) <= set(values):
        values = {**values, **draw_latents(rng_key, model, schedule, values, {}, _CLAMPED_SWEEPS)}
    return jax.vmap(lambda row: model.energy(**model.encode(row)))(dict(values))


def measurements(
    model: EnergyModel, rows: Rows, held_out: Rows | None
) -> Callable[[jax.Array, Any], dict[str, float]]:
    """Return the function that measures an epoch, compiled once."""
    rng = np.random.default_rng(0)
    count = rows.weights.shape[0]
    order = rng.permutation(count)
    for known in (rows.known or {}).values():  # rows with gaps tell nothing without their model
        whole = np.asarray(known).reshape(count, -1).all(axis=1)
        order = order[whole[order]]
    chosen = np.sort(order[:_NUM_MEASURED])
    if not len(chosen):
        return lambda rng_key, state: {}
    train = {k: v[chosen] for k, v in rows.values.items()}
    other = None
    if held_out is not None:
        other = {k: v[:_NUM_MEASURED] for k, v in held_out.values.items()}
    exact = sums_out(model)
    schedule = quiet_schedule(model)
    scored = None
    if exact and all(model.sites[name].is_discrete for name in model.data_sites):
        width = sum(model.sites[name].size for name in model.data_sites)
        num = int(np.clip(_NUM_UNITS // width, 50, _NUM_MEASURED))
        looked = as_raw(model, train if other is None else other)
        scored = {name: value[:num] for name, value in looked.items()}
        unit_plans(model)  # verified eagerly

    def measure(rng_key: Key, state: Any) -> dict[str, float]:
        out = _figures(
            rng_key, state.model, state.chains, train, other, scored, schedule=schedule, exact=exact
        )
        return {name: float(value) for name, value in jax.device_get(out).items()}

    return measure


def _reconstruction_error(
    rng_key: Key, model: EnergyModel, schedule: Blocks, rows: Values
) -> jax.Array:
    """Mean square difference of rows and their one-sweep reconstruction, per encoded unit."""
    latents = rows
    if model.latent_sites:
        latents = {**rows, **draw_latents(rng_key, model, schedule, rows, {}, 1)}
    errors = []
    for name in model.data_sites:
        site = model.sites[name]
        coupled = any(step.coupled for step in schedule.steps if step.site == name)

        def one(
            values: Values, name: str = name, site: Any = site, coupled: bool = coupled
        ) -> jax.Array:
            natural = (
                derive_natural_parameters(model, name, values, coupled=True)
                if coupled
                else model.natural_parameters(name, values)
            )
            mean = site.mean(natural.eta, natural.precision)
            return jnp.mean((mean - site.encode(values[name])) ** 2)

        errors.append(jnp.mean(jax.vmap(one)(latents)))
    return jnp.mean(jnp.stack(errors))


def explain(metrics: Metrics) -> str:
    """Say in words how the run went."""
    epochs = len(next(iter(metrics.values()), []))
    if not epochs:
        return "No epoch was completed."
    parts = [f"{epochs} epoch{'s' if epochs > 1 else ''}."]
    objective, likelihood = metrics.get("objective"), metrics.get("pseudo_log_likelihood")
    if objective is not None:
        span = f"Objective {objective[0]:.5g} to {objective[-1]:.5g}"
        parts.append(f"{span}{_trend(-objective, ('falling', 'rising'), '')}.")
    elif likelihood is not None and epochs >= 8:
        span = f"Pseudo-log-likelihood {likelihood[0]:.3f} to {likelihood[-1]:.3f} nats per row"
        parts.append(f"{span}{_trend(likelihood, ('rising', 'falling'), ' or use more sweeps')}.")
    gap = metrics.get("free_energy_gap")
    if gap is not None and epochs >= 4:
        grown = gap[-1] - gap[: max(epochs // 4, 1)].mean()
        if grown > 1.0:
            parts.append(
                f"The free-energy gap grew by {grown:.2f} nats: the model begins to overfit."
            )
    refused = float(np.mean(metrics.get("rejected", 0.0)))
    if refused > 0.01:
        parts.append(
            f"{refused:.0%} of the steps were so large that the models before and after them "
            "hardly swap, and were not taken: lower the learning rate."
        )
    left = trouble(metrics)
    return " ".join([*parts, left] if left else parts)


def _trend(values: np.ndarray, words: tuple[str, str], also: str) -> str:
    """Say where values go that ought to rise; ``words`` for rising and falling ones."""
    if len(values) < 8:  # fewer say nothing about their own noise
        return ""
    quarter = len(values) // 4
    late, before = values[-quarter:], values[-2 * quarter : -quarter]
    gain, noise = late.mean() - before.mean(), max(late.std(), before.std(), 1e-9)
    if gain > noise:
        return f", still {words[0]}: more epochs may help (a schedule must be as long)"
    if gain < -noise:
        return f", {words[1]}: lower the learning rate{also}"
    return ", no longer changing: converged as far as this step size allows"


def learning_rate(state: Any, factor: float) -> dict[str, float]:
    """Return the learning rate, where the optimiser's state tells it; ``factor`` scales it."""
    found = optax.tree.get_all_with_path(state, "learning_rate")
    rates = [value for _, value in found if isinstance(value, jax.Array) and value.ndim == 0]
    return {"learning_rate": factor * float(rates[0])} if rates else {}


def in_words(figures: Mapping[str, float]) -> str:
    """Return the figures of an epoch that are worth a place beside a progress bar."""
    names = {
        "objective": "objective",
        "log_likelihood": "log-likelihood",
        "pseudo_log_likelihood": "log PL",
        "free_energy_gap": "gap",
        "chain_free_energy": "chains",
        "chain_energy": "chains",
        "learning_rate": "rate",
    }
    return "  ".join(f"{s} {figures[n]:.4g}" for n, s in names.items() if n in figures)
