"""Samplers whose right or wrong answers are known."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro.infer.mcmc import MCMCKernel


class CoinState(NamedTuple):
    z: dict[str, jax.Array]
    rng_key: jax.Array


class Coins(MCMCKernel):
    """Independent draws of binary sites with given probabilities; frozen units keep their start."""

    sample_field = "z"

    def __init__(self, model: Any, probs: Any, frozen: Any = None, stay: float = 0.0) -> None:
        self.model = model
        self.probs = {name: jnp.asarray(p) for name, p in probs.items()}
        self.frozen = {name: jnp.asarray(mask) for name, mask in (frozen or {}).items()}
        self.stay = stay

    def _draw(self, key: jax.Array) -> dict[str, jax.Array]:
        keys = jax.random.split(key, len(self.probs))
        return {
            name: (jax.random.uniform(k, p.shape) < p).astype(jnp.int8)
            for (name, p), k in zip(self.probs.items(), keys, strict=True)
        }

    def init(self, rng_key, num_warmup, init_params, model_args, model_kwargs):
        rng_key, key = jax.random.split(rng_key)
        return CoinState(self._draw(key), rng_key)

    def sample(self, state, model_args, model_kwargs):
        rng_key, key, stay_key = jax.random.split(state.rng_key, 3)
        new = self._draw(key)
        stay = jax.random.uniform(stay_key) < self.stay
        for name, value in new.items():
            still = stay | self.frozen.get(name, jnp.zeros(value.shape, bool))
            new[name] = jnp.where(still, state.z[name], value)
        return CoinState(new, rng_key)
