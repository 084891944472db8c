"""One kernel, its chains side by side, with every phase timed by itself."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from pgm_energy._struct import Key
from pgm_energy.diagnostics import at_sites, build_datatree
from pgm_energy.energy import EnergyModel

__all__ = ["TimedRun"]

#: Statistics that are collected where a kernel's state has them, by NumPyro's names.
_FIELDS = (
    *("potential_energy", "energy", "num_steps", "accept_prob", "diverging"),
    *("betas", "swap_rate", "round_trips", "round_trip_time"),
)
#: Calls of one compiled function per sampler: progress is told, and Ctrl-C heard, in between.
_NUM_CHUNKS = 20


@dataclasses.dataclass
class TimedRun:
    """One kernel, all chains side by side, every phase timed by itself."""

    kernel: Any
    model: EnergyModel
    num_warmup: int
    num_samples: int
    num_chains: int
    tell: Callable[[str, float], None]

    def __call__(self, rng_key: Key) -> tuple[xr.DataTree, dict[str, Any]]:
        kernel = copy.copy(self.kernel)  # NumPyro's kernels remember what init saw
        init_key, decode_key = jax.random.split(rng_key)
        keys = jax.random.split(init_key, self.num_chains)
        self.tell("compile", 0.0)
        started = time.perf_counter()

        def init(key: jax.Array) -> Any:
            return kernel.init(key, self.num_warmup, None, model_args=(), model_kwargs={})

        state = jax.vmap(init)(keys)
        init(keys[0])  # what the kernel remembers must not stem from inside the vmap
        length = math.ceil(max(self.num_warmup, self.num_samples) / _NUM_CHUNKS)
        jitted = jax.jit(functools.partial(_advance, kernel, length))
        advance = jitted.lower(state, 0).compile()
        compile_seconds = time.perf_counter() - started
        self.tell("compile", 1.0)
        state, _, warmup_seconds = self._phase("warmup", advance, state, self.num_warmup, length)
        state, parts, seconds = self._phase("sample", advance, state, self.num_samples, length)
        samples, fields = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *parts)
        tree, decode_compile, decode_seconds = self._tree(decode_key, samples, fields)
        row = {
            "compile_seconds": compile_seconds + decode_compile,
            "warmup_seconds": warmup_seconds,
            "sampling_seconds": seconds + decode_seconds,
            **evaluations(kernel, self.num_chains * self.num_samples, fields),
        }
        return tree, row

    def _phase(
        self, name: str, advance: Any, state: Any, steps: int, length: int
    ) -> tuple[Any, list[Any], float]:
        seconds, parts, done = 0.0, [], 0
        self.tell(name, 0.0)
        while done < steps:
            count = min(length, steps - done)
            started = time.perf_counter()
            state, buffers = jax.block_until_ready(advance(state, count))
            seconds += time.perf_counter() - started
            if name == "sample":
                parts.append(jax.tree.map(functools.partial(_by_chain, count), buffers))
            done += count
            self.tell(name, done / steps)
        return state, parts, seconds

    def _tree(self, rng_key: Key, samples: Any, fields: Any) -> tuple[xr.DataTree, float, float]:
        """Draws at the target's sites, with seconds of compiling and of decoding."""
        sampled = self.kernel.model
        attrs = {
            "sampler": type(self.kernel).__name__,
            "num_warmup": self.num_warmup,
            "sampled_model": type(sampled).__name__,
        }
        if sampled is self.model:
            return build_datatree(samples, fields, sampled, attrs=attrs), 0.0, 0.0
        started = time.perf_counter()
        jitted = jax.jit(lambda key, values, twin: twin.decode(key, values))
        decode = jitted.lower(rng_key, samples, sampled).compile()
        compiled = time.perf_counter()
        decoded = jax.block_until_ready(decode(rng_key, samples, sampled))
        seconds = time.perf_counter() - compiled
        decoded = at_sites(self.model, sampled, {k: np.asarray(v) for k, v in decoded.items()})
        potential = fields.pop("potential_energy", None)
        if potential is not None:  # of what was sampled; the energy is the target's
            fields["lp"] = -potential
        tree = build_datatree(decoded, fields, self.model, attrs=attrs)
        return tree, compiled - started, seconds


def _by_chain(count: int, steps: Any) -> np.ndarray:
    """The first ``count`` steps of a buffer, chains first."""
    return np.moveaxis(np.asarray(steps[:count]), 0, 1)


def _advance(kernel: Any, length: int, state: Any, count: Any) -> tuple[Any, Any]:
    """Take ``count <= length`` steps of all chains; draws and statistics lie ``(step, chain)``."""
    step = jax.vmap(lambda one: kernel.sample(one, (), {}))

    def look(one: Any) -> Any:
        values = kernel.postprocess_fn((), {})(getattr(one, kernel.sample_field))
        fields = {name: getattr(one, name) for name in _FIELDS if hasattr(one, name)}
        if hasattr(one, "adapt_state"):
            fields["adapt_state.step_size"] = one.adapt_state.step_size
        return values, fields

    shapes = jax.eval_shape(jax.vmap(look), state)
    buffers = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), shapes)

    def body(i: jax.Array, carry: Any) -> Any:
        state, buffers = carry
        state = step(state)
        new = jax.vmap(look)(state)
        return state, jax.tree.map(lambda b, x: b.at[i].set(x), buffers, new)

    return jax.lax.fori_loop(0, count, body, (state, buffers))


def evaluations(kernel: Any, draws: int, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What the draws cost, in the unit that the kernel works in."""
    if "num_steps" in fields:
        return {"evaluations": int(fields["num_steps"].sum()), "evaluation": "gradient"}
    sites = kernel.model.sites.values()
    if hasattr(kernel, "num_sweeps"):
        each = int(kernel.num_sweeps) * int(getattr(kernel, "num_replicas", 1))
        return {"evaluations": draws * each, "evaluation": "sweep"}
    if type(kernel).__name__ == "DiscreteGibbs":  # every state of a unit but the present one
        each = sum(site.size * (len(site.states) - 1) for site in sites if site.is_discrete)
        return {"evaluations": draws * each, "evaluation": "energy"}
    return {"evaluations": draws, "evaluation": "step"}
