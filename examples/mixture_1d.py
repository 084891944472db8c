"""Does EM recover a one-dimensional mixture, and how sure may one be of it?

1,000 draws from two normals: means -1 and 1, deviations 0.5 and 0.8, weights 0.4 and 0.6. EM gives
the most likely parameters. NUTS gives their posterior: the same energy with the components summed
out, inside an ordinary NumPyro model with priors. That is allowed because a mixture's energy holds
all its normalisers, so that log Z = 0 whatever the parameters. A Boltzmann machine's log Z depends
on its parameters: in the same place it would be refused.

    python examples/mixture_1d.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import typer
from numpyro.infer import MCMC, NUTS

import pgm_energy as pgm

TRUTH = {"weights": [0.4, 0.6], "means": [-1.0, 1.0], "deviations": [0.5, 0.8]}


def mixture(weights: jax.Array, means: jax.Array, deviations: jax.Array) -> pgm.GaussianMixture:
    """Components in one dimension."""
    return pgm.GaussianMixture(
        weights=weights,
        means=means[:, None],
        covariances=deviations**2,
        covariance_type="spherical",
    )


def posterior(data: np.ndarray) -> None:
    """Priors over the parameters, and the rows: a plain NumPyro model."""
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(2)))
    # ordered, so that the components cannot trade places
    means = numpyro.sample(
        "means",
        dist.TransformedDistribution(
            dist.Normal(0.0, 3.0).expand([2]).to_event(1), dist.transforms.OrderedTransform()
        ),
    )
    deviations = numpyro.sample("deviations", dist.LogNormal(0.0, 1.0).expand([2]).to_event(1))
    density = pgm.marginalize(mixture(weights, means, deviations), "z")
    with numpyro.plate("rows", len(data), dim=-2):  # left of the units' own dimension
        density(x=data)  # an energy model is a NumPyro model


def main(
    num_rows: int = 1000, num_warmup: int = 500, num_samples: int = 500, seed: int = 0
) -> dict[str, np.ndarray]:
    """Print the true parameters beside those of EM and the posterior's mean and deviation."""
    keys = jax.random.split(jax.random.key(seed), 4)
    true = mixture(*(jnp.asarray(TRUTH[name]) for name in ("weights", "means", "deviations")))
    components = jax.random.choice(keys[0], 2, (num_rows,), p=true.weights)
    noise = jax.random.normal(keys[1], (num_rows,))
    data = np.asarray(true.means[components, 0] + jnp.sqrt(true.covariances)[components] * noise)[
        :, None
    ]

    start = pgm.GaussianMixture.init(
        keys[2], num_components=2, data=data, covariance_type="spherical"
    )
    # the likelihood is flat where components overlap: steps go on until it hardly moves
    found = pgm.EM(max_steps=2000, tol=1e-7, num_restarts=3).run(keys[2], start, data)
    order = np.argsort(found.model.means[:, 0])
    em = {
        "weights": np.asarray(found.model.weights)[order],
        "means": np.asarray(found.model.means)[order, 0],
        "deviations": np.sqrt(np.asarray(found.model.covariances))[order],
    }

    mcmc = MCMC(
        NUTS(posterior),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(keys[3], data)
    draws = {name: np.asarray(value) for name, value in mcmc.get_samples().items()}

    print(f"{num_rows} draws; {found.message}")
    print("parameter       truth      EM    posterior mean +- deviation")
    for name, values in TRUTH.items():
        for k in range(2):
            mean, deviation = draws[name][:, k].mean(), draws[name][:, k].std()
            print(f"{name:12}{k}{values[k]:8.2f}{em[name][k]:8.3f}{mean:13.3f} +- {deviation:.3f}")
    return {
        **{f"em_{name}": value for name, value in em.items()},
        **{f"mean_{name}": value.mean(axis=0) for name, value in draws.items()},
        **{f"std_{name}": value.std(axis=0) for name, value in draws.items()},
        "divergences": mcmc.get_extra_fields()["diverging"].sum(),
    }


if __name__ == "__main__":
    typer.run(main)
