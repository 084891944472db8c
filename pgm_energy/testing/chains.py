"""Exact draws moved by a kernel of any kind, with the auxiliary variables it has."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy.energy import EnergyModel
from pgm_energy.exact_law import exact
from pgm_energy.infer._adapter import EnergyKernel
from pgm_energy.infer.tempering import ParallelTempering
from pgm_energy.testing.states import MAX_MATRIX_STATES, enumerate_states
from pgm_energy.transforms import Relaxed, temper

__all__ = ["Moved", "move"]

Raw = dict[str, Any]


class Moved(NamedTuple):
    """Chains after their steps.

    Attributes
    ----------
    values
        Raw values of the model's sites, chains first.
    joint, fresh
        Variables by name after the steps, and exact draws of the same: the sites and, where the
        kernel has some, its auxiliary variables.
    auxiliary
        What the auxiliary variables are, in words; empty if there are none.
    num_steps
        Steps of every chain.
    """

    values: Raw
    joint: Raw
    fresh: Raw
    auxiliary: str
    num_steps: int


def move(
    kernel: Any, model: EnergyModel, rng_key: jax.Array, start: Raw, fresh: Raw, num_steps: int
) -> Moved:
    """Return chains from exact draws ``start`` after some steps; ``fresh`` are other exact draws.

    Raises
    ------
    ValueError
        If the kernel samples another model, whose exact draws are not known.
    """
    count = len(next(iter(start.values())))
    move_key, fresh_key, joint_key = jax.random.split(rng_key, 3)
    keys, fresh_keys, joint_keys = (
        jax.random.split(key, count) for key in (move_key, fresh_key, joint_key)
    )
    if isinstance(kernel, ParallelTempering):
        return _ladder(kernel, model, keys, fresh_keys, start, max(2, num_steps))
    if hasattr(kernel, "init") and hasattr(kernel, "sample"):
        sampled = kernel.model
        if isinstance(sampled, Relaxed) and sampled is not model:
            _require_sites(kernel, sampled.model, model)
            return _twin(kernel, sampled, keys, fresh_keys, start, fresh, num_steps)
        if sampled is not model:
            _require_sites(kernel, sampled, model)
        values = _run(lambda k, x: _numpyro(kernel, k, x, num_steps), kernel, keys, start)
        return Moved(values, values, fresh, "", num_steps)

    def steps(key: jax.Array, values: Raw, step: Any) -> Any:
        keys = jax.random.split(key, num_steps)
        cast = {name: site.cast(values[name]) for name, site in model.sites.items()}
        return jax.lax.scan(lambda x, k: (step(k, x), None), cast, keys)[0]

    def call(key: jax.Array, values: Raw) -> Raw:
        moved = kernel(key, values, model)[0]
        return {name: site.cast(moved[name]) for name, site in model.sites.items()}

    values = _mapped(lambda k, x: steps(k, x, call), keys, start)
    if not (hasattr(kernel, "augment") and hasattr(kernel, "move")):
        return Moved(values, values, fresh, "", num_steps)

    def augmented(key: jax.Array, values: Raw) -> Raw:
        first, second = jax.random.split(key)
        auxiliary = kernel.augment(first, values, model)
        return {**kernel.move(second, values, auxiliary, model), **auxiliary}

    def drawn(key: jax.Array, values: Raw) -> Raw:
        return {**values, **kernel.augment(key, values, model)}

    joint, exact = _mapped(augmented, joint_keys, start), _mapped(drawn, fresh_keys, fresh)
    names = ", ".join(name for name in exact if name not in model.sites)
    return Moved(values, joint, exact, names, num_steps)


def _mapped(fn: Any, keys: jax.Array, values: Raw) -> Raw:
    found = jax.jit(jax.vmap(fn))(keys, values)
    return {name: np.asarray(value) for name, value in found.items()}


def _run(fn: Any, kernel: Any, keys: jax.Array, values: Raw) -> Raw:
    """Chains of a NumPyro kernel: side by side as one batch where it is known to take batches."""
    if not isinstance(kernel, EnergyKernel):
        return _mapped(fn, keys, values)
    return {name: np.asarray(value) for name, value in jax.jit(fn)(keys, values).items()}


def _numpyro(kernel: Any, key: jax.Array, values: Raw, num_steps: int) -> Raw:
    """Raw values after steps of a NumPyro kernel, started at the sites it samples."""
    start = {name: values[name] for name in kernel.model.sites}
    state = kernel.init(key, num_warmup=0, init_params=start, model_args=(), model_kwargs={})
    state = _stepped(kernel, state, num_steps)
    return {**values, **getattr(state, kernel.sample_field)}


def _stepped(kernel: Any, state: Any, num_steps: int) -> Any:
    if num_steps == 1:
        return kernel.sample(state, (), {})
    return jax.lax.fori_loop(0, num_steps, lambda i, x: kernel.sample(x, (), {}), state)


def _require_sites(kernel: Any, sampled: Any, model: EnergyModel) -> None:
    """Exact draws of the model are only of use where the kernel samples that model."""
    if not isinstance(sampled, EnergyModel) or sampled.sites != model.sites:
        raise ValueError(
            f"{type(kernel).__name__} samples another model than the one given, and exact draws of "
            "the one are not known from the other: pass the kernel's own model, "
            "check_kernel(kernel, kernel.model), or for a twin relax(model) the model itself"
        )


def _twin(
    kernel: Any,
    twin: Relaxed,
    keys: jax.Array,
    fresh_keys: jax.Array,
    start: Raw,
    fresh: Raw,
    num_steps: int,
) -> Moved:
    """Chains over the real variables of a twin: exact ones given exact units, and back."""

    def augmented(key: jax.Array, values: Raw) -> Raw:
        first, second, third = jax.random.split(key, 3)
        moved = _numpyro(kernel, second, twin.augment(first, values), num_steps)
        moved = {name: moved[name] for name in twin.sites}
        return {**twin.units(third, moved), **moved}

    def drawn(key: jax.Array, values: Raw) -> Raw:
        return {**values, **twin.augment(key, values)}

    joint, exact = _mapped(augmented, keys, start), _mapped(drawn, fresh_keys, fresh)
    values = {name: joint[name] for name in start}
    return Moved(values, joint, exact, ", ".join(twin.sites), num_steps)


def _ladder(
    kernel: ParallelTempering,
    model: EnergyModel,
    keys: jax.Array,
    fresh_keys: jax.Array,
    start: Raw,
    num_steps: int,
) -> Moved:
    """Chains of all replicas, each drawn from its own tempered law; at least both parities."""
    discrete = all(site.is_discrete for site in model.sites.values())
    draw = _replicas_listed if discrete else _replicas_summed
    replicas = draw(kernel, model, fresh_keys)

    def run(keys: jax.Array, values: Raw) -> tuple[Raw, Raw]:
        state = kernel.init(keys, num_warmup=0, init_params=values, model_args=(), model_kwargs={})
        fresh, drawn = replicas(state)
        drawn = {name: x.at[:, -1].set(values[name]) for name, x in drawn.items()}
        z = {name: x[:, -1] for name, x in drawn.items()}
        state = state._replace(z=z, replicas=state.replicas._replace(values=drawn))
        state = _stepped(kernel, state, num_steps)
        return state.replicas.values, fresh

    joint, fresh = jax.tree.map(np.asarray, jax.jit(run)(keys, start))
    values = {name: joint[name][:, -1] for name in start}
    return Moved(values, joint, fresh, f"{kernel.num_replicas} replicas", num_steps)


def _replicas_listed(kernel: ParallelTempering, model: EnergyModel, keys: jax.Array) -> Any:
    """Two exact draws of the replicas of every chain, each chain with the base that it fitted."""
    states = enumerate_states(model)
    count = len(next(iter(states.values())))
    if count > MAX_MATRIX_STATES:
        raise ValueError(
            f"the replicas are drawn exactly from at most {MAX_MATRIX_STATES} states, got {count}"
        )

    def energies(of: EnergyModel) -> jax.Array:
        return jax.vmap(lambda x: of.energy(**of.encode(x)))(states)

    def draws(key: jax.Array, state: Any) -> Raw:
        base = state.base if kernel.base is None else kernel.base
        betas = state.betas[:, None]
        logits = -((1.0 - betas) * energies(base) + betas * energies(model))
        chosen = jax.random.categorical(key, logits, axis=-1, shape=(2, len(logits)))
        return {name: jnp.asarray(value)[chosen] for name, value in states.items()}

    def replicas(state: Any) -> list[Raw]:
        both = jax.vmap(draws)(keys, state)
        return [{name: x[:, i] for name, x in both.items()} for i in (0, 1)]

    return replicas


def _replicas_summed(kernel: ParallelTempering, model: EnergyModel, keys: jax.Array) -> Any:
    """The same with real units: the laws are those of one base."""
    if kernel.base is None:
        raise ValueError(
            "with real sites, exact replicas are known for one base only: "
            "ParallelTempering(model, base=Independent.like(model))"
        )
    count = len(keys)
    draws = [
        exact(temper(kernel.base, model, beta)).sample(key, 2 * count)
        for key, beta in zip(keys, kernel.betas.tolist(), strict=False)
    ]
    both = {name: jnp.stack([x[name] for x in draws], axis=1) for name in model.sites}
    return lambda state: [
        {name: x[i * count :][:count] for name, x in both.items()} for i in (0, 1)
    ]
