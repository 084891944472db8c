"""Labels by block Gibbs, or summed out, or every conditional by hand: what does a mixture cost?

The posterior of a Gaussian mixture (weights, means and variances, three components in the plane)
by three samplers of the same law:

- block Gibbs on the labels beside NUTS on the parameters, in NumPyro's composite ``Gibbs``;
- NUTS on the parameters, the labels summed out by ``marginalize``;
- a conjugate Gibbs sweep written by hand in JAX, which the priors allow and most do not.

Components may trade names, so they are compared in the order of their means' first coordinate.

    python examples/mixture_three_samplers.py
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import typer
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import NUTS, Gibbs, init_to_value
from numpyro.infer.mcmc import MCMCKernel

import pgm_energy as pgm

WEIGHTS = np.array([0.5, 0.3, 0.2])
MEANS = np.array([[-2.0, 0.0], [0.5, 1.5], [2.0, -1.0]])
DEVIATIONS = np.array([[1.0, 0.6], [0.8, 0.8], [0.7, 1.2]])
#: Priors: uniform weights, normal means, inverse-gamma variances.
SPREAD, SHAPE, RATE = 5.0, 2.0, 1.0
PARAMETERS = ("weights", "means", "variances")
#: Steps that are compiled together.
CHUNK = 50

Draws = dict[str, np.ndarray]


# ---- the model, once with its labels and once without ------------------------------------------


def components() -> pgm.GaussianMixture:
    """The mixture, at parameters with priors."""
    shape = MEANS.shape
    return pgm.GaussianMixture(
        weights=numpyro.sample("weights", dist.Dirichlet(jnp.ones(shape[0]))),
        means=numpyro.sample("means", dist.Normal(0.0, SPREAD).expand(shape).to_event(2)),
        covariances=numpyro.sample(
            "variances", dist.InverseGamma(SHAPE, RATE).expand(shape).to_event(2)
        ),
        covariance_type="diag",
    )


def labelled(data: jax.Array) -> None:
    """A label ``z`` for each row: an energy model in a plate is a line of a NumPyro model."""
    mixture = components()
    with numpyro.plate("rows", len(data), dim=-2):  # left of the units' own dimension
        mixture(x=data)


def marginalized(data: jax.Array) -> None:
    """The same posterior with the labels summed out."""
    density = pgm.marginalize(components(), "z")
    with numpyro.plate("rows", len(data), dim=-2):
        density(x=data)


# ---- the samplers, each as a first state and a step --------------------------------------------


class Sampler(NamedTuple):
    """A chain: ``init(rng_key)``, ``step(state)``, and the parameters of a state."""

    init: Callable[[Any], Any]
    step: Callable[[Any], Any]
    parameters: Callable[[Any], dict[str, jax.Array]]


def of_kernel(kernel: MCMCKernel, data: jax.Array, num_warmup: int) -> Sampler:
    """A NumPyro kernel as a chain."""

    def parameters(state: Any) -> dict[str, jax.Array]:
        values = kernel.postprocess_fn((data,), {})(state.z)
        return {name: values[name] for name in PARAMETERS}

    return Sampler(
        lambda key: kernel.init(key, num_warmup, None, (data,), {}),
        lambda state: kernel.sample(state, (data,), {}),
        parameters,
    )


def conjugate(data: jax.Array, start: dict[str, jax.Array]) -> Sampler:
    """Labels, weights, means and variances in turn, each from its conditional."""

    def step(state: tuple[jax.Array, dict[str, jax.Array]]) -> Any:
        key, theta = state
        keys = jax.random.split(key, 5)
        normal = dist.Normal(theta["means"], jnp.sqrt(theta["variances"])).to_event(1)
        logits = jnp.log(theta["weights"]) + normal.log_prob(data[:, None])
        labels = jax.nn.one_hot(jax.random.categorical(keys[0], logits), len(WEIGHTS))
        counts = labels.sum(axis=0)
        weights = jax.random.dirichlet(keys[1], 1.0 + counts)
        precision = counts[:, None] / theta["variances"] + 1.0 / SPREAD**2
        centre = labels.T @ data / theta["variances"] / precision
        means = centre + jax.random.normal(keys[2], centre.shape) / jnp.sqrt(precision)
        squares = jnp.einsum("nk,nkd->kd", labels, (data[:, None] - means) ** 2)
        gamma = jax.random.gamma(keys[3], SHAPE + 0.5 * counts[:, None] + jnp.zeros(means.shape))
        variances = (RATE + 0.5 * squares) / gamma
        return keys[4], {"weights": weights, "means": means, "variances": variances}

    return Sampler(lambda key: (key, start), step, lambda state: state[1])


def run(
    rng_key: jax.Array, sampler: Sampler, num_warmup: int, num_samples: int, num_chains: int
) -> tuple[Draws, dict[str, float]]:
    """Draws ``(chains, samples, ...)``, and seconds of compilation, warm-up and sampling."""

    @jax.jit
    def chunk(states: Any) -> Any:
        def step(states: Any, _: None) -> Any:
            states = jax.vmap(sampler.step)(states)
            return states, jax.vmap(sampler.parameters)(states)

        return jax.lax.scan(step, states, length=CHUNK)

    seconds, last = {}, time.perf_counter()

    def lap(name: str, result: Any) -> None:
        nonlocal last
        jax.block_until_ready(result)
        seconds[name], last = time.perf_counter() - last, time.perf_counter()

    states = jax.jit(jax.vmap(sampler.init))(jax.random.split(rng_key, num_chains))
    compiled = chunk.lower(states).compile()
    lap("compile", states)
    for _ in range(num_warmup // CHUNK):
        states, _ = compiled(states)
    lap("warm-up", states)
    parts = []
    for _ in range(num_samples // CHUNK):
        states, part = compiled(states)
        parts.append(part)
    lap("sampling", states)
    draws = jax.tree.map(lambda *x: np.swapaxes(np.concatenate(x), 0, 1), *parts)
    return draws, seconds


def ordered(draws: Draws) -> np.ndarray:
    """Parameters in the order of the components' first coordinates, ``(chains, samples, n)``."""
    order = np.argsort(draws["means"][..., 0], axis=-1)
    parts = []
    for name in PARAMETERS:
        value = draws[name]
        index = order.reshape(order.shape + (1,) * (value.ndim - order.ndim))
        parts.append(np.take_along_axis(value, index, axis=2).reshape(*order.shape[:2], -1))
    return np.concatenate(parts, axis=-1).astype(float)


def main(
    num_rows: int = 300,
    num_warmup: int = 300,
    num_samples: int = 1000,
    num_chains: int = 4,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Print the table of the three samplers, and how far their posterior means are apart."""
    rng = np.random.default_rng(seed)
    component = rng.choice(len(WEIGHTS), num_rows, p=WEIGHTS)
    data = jnp.asarray(rng.normal(MEANS[component], DEVIATIONS[component]), jnp.float32)
    keys = jax.random.split(jax.random.key(seed), 3)

    # all start at the parameters of the data: what is compared is mixing, not search
    truth = {"weights": WEIGHTS, "means": MEANS, "variances": DEVIATIONS**2}
    start = {name: jnp.asarray(value, jnp.float32) for name, value in truth.items()}
    there = init_to_value(values=start)
    labels = (pgm.BlockGibbs(labelled), ["z"])
    parameters = (NUTS(labelled, init_strategy=there), list(start))
    samplers = {
        "block Gibbs + NUTS": of_kernel(Gibbs([labels, parameters]), data, num_warmup),
        "NUTS, labels summed out": of_kernel(
            NUTS(marginalized, init_strategy=there), data, num_warmup
        ),
        "conjugate Gibbs": conjugate(data, start),
    }
    results: dict[str, dict[str, Any]] = {}
    print(f"{num_rows} rows, {num_chains} chains of {num_warmup} + {num_samples} steps; seconds")
    print(
        f"{'':24}{'compile':>8}{'warm-up':>9}{'sampling':>10}{'min ESS':>9}{'ESS/s':>9}{'R-hat':>7}"
    )
    for key, (name, sampler) in zip(keys, samplers.items(), strict=True):
        draws, seconds = run(key, sampler, num_warmup, num_samples, num_chains)
        values = ordered(draws)
        ess = effective_sample_size(values)
        spread = values.std(axis=(0, 1))
        row = {
            **seconds,
            "mean": values.mean(axis=(0, 1)),
            "deviation": spread,
            "mcse": spread / np.sqrt(ess),
            "min_ess": ess.min(),
            "ess_per_second": ess.min() / seconds["sampling"],
            "r_hat": split_gelman_rubin(values).max(),
        }
        results[name] = row
        print(
            f"{name:24}{row['compile']:8.1f}{row['warm-up']:9.2f}{row['sampling']:10.2f}"
            f"{row['min_ess']:9.0f}{row['ess_per_second']:9.0f}{row['r_hat']:7.3f}"
        )
    reference = results["conjugate Gibbs"]
    for name in list(results)[:2]:
        error = np.hypot(results[name]["mcse"], reference["mcse"])
        apart = np.abs(results[name]["mean"] - reference["mean"]) / error
        results[name]["apart"] = apart.max()
        print(
            f"{name} against conjugate Gibbs: {len(apart)} posterior means at most "
            f"{apart.max():.1f} standard errors apart"
        )
    return results


if __name__ == "__main__":
    typer.run(main)
