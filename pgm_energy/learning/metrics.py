"""Figures of a learning run, and what they say in words."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._data import encode_rows
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.learning.latents import as_raw, draw_latents, quiet_schedule, sum_out, sums_out
from pgm_energy.learning.loop import Metrics, Rows
from pgm_energy.natural import derive_natural_parameters
from pgm_energy.pseudo_likelihood import pseudo_log_likelihood
from pgm_energy.structure import Blocks

__all__ = ["explain", "measurements"]

Values = dict[str, jax.Array]
#: Rows that the metrics of an epoch look at.
_NUM_MEASURED = 500
#: Units (rows times their width) for the pseudo-likelihood, which asks about each of them.
_NUM_UNITS = 40_000


@functools.partial(jax.jit, static_argnames=("schedule", "exact"))
def _figures(
    rng_key: Key,
    model: EnergyModel,
    chains: Values,
    train: Values,
    other: Any,
    *,
    schedule: Blocks,
    exact: bool,
) -> dict[str, jax.Array]:
    out = {}
    if exact:
        free = sum_out(model)

        def mean_free_energy(values: Mapping[str, Any]) -> jax.Array:
            encoded = encode_rows(model, {k: values[k] for k in model.data_sites})
            return jnp.mean(jax.vmap(lambda row: free.energy(**row))(encoded))

        if other is not None:
            out["free_energy_gap"] = mean_free_energy(other) - mean_free_energy(train)
        if chains:
            out["chain_free_energy"] = mean_free_energy(chains)
    looked = as_raw(model, train if other is None else other)
    out["reconstruction_error"] = _reconstruction_error(rng_key, model, schedule, looked)
    return out


def measurements(
    model: EnergyModel, rows: Rows, held_out: Rows | None
) -> Callable[[jax.Array, Any], dict[str, float]]:
    """Return the function that measures an epoch, compiled once."""
    rng = np.random.default_rng(0)
    count = rows.weights.shape[0]
    chosen = np.sort(rng.permutation(count)[:_NUM_MEASURED])
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
        scored = {name: np.asarray(value[:num]) for name, value in looked.items()}

    def measure(rng_key: Key, state: Any) -> dict[str, float]:
        out = _figures(
            rng_key, state.model, state.chains, train, other, schedule=schedule, exact=exact
        )
        figures = {name: float(value) for name, value in out.items()}
        if scored is not None:
            scores = pseudo_log_likelihood(state.model, scored)
            figures["pseudo_log_likelihood"] = float(scores.mean())
        return figures

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
    likelihood = metrics.get("pseudo_log_likelihood")
    if likelihood is not None and epochs >= 8:  # fewer say nothing about their own noise
        quarter = epochs // 4
        late, before = likelihood[-quarter:], likelihood[-2 * quarter : -quarter]
        gain, noise = late.mean() - before.mean(), max(late.std(), before.std(), 1e-9)
        verdict = (
            "still rising: more epochs will help"
            if gain > noise
            else "falling: lower the learning rate or use more sweeps"
            if gain < -noise
            else "no longer changing: converged as far as this step size allows"
        )
        parts.append(
            f"Pseudo-log-likelihood {likelihood[0]:.3f} to {likelihood[-1]:.3f} nats per row, "
            f"{verdict}."
        )
    gap = metrics.get("free_energy_gap")
    if gap is not None and epochs >= 4:
        grown = gap[-1] - gap[: max(epochs // 4, 1)].mean()
        if grown > 1.0:
            parts.append(
                f"The free-energy gap grew by {grown:.2f} nats: the model begins to overfit."
            )
    return " ".join(parts)
