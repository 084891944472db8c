"""What does it take to sample an energy of one's own?

Ten lines: the sites and the energy. Here 4 x 4 spins on a grid share one real-valued field, which
is itself pulled towards zero: two families of units that no ready-made model combines. The
schedule, the exact conditionals and the NumPyro model follow from the energy; the check holds
them against brute force.

    python examples/own_energy.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import typer

import pgm_energy as pgm


@pgm.struct
class SpinsInAField(pgm.EnergyModel):
    coupling: jax.Array
    pull: jax.Array

    @property
    def sites(self):
        return {"s": pgm.Spin((4, 4), dims=("row", "column")), "field": pgm.Real(())}

    def energy(self, s, field):
        bonds = jnp.sum(s[1:] * s[:-1]) + jnp.sum(s[:, 1:] * s[:, :-1])
        return -self.coupling * bonds - field * jnp.sum(s) + 0.5 * self.pull * field**2


def main(num_samples: int = 20_000, num_chains: int = 100, seed: int = 0) -> dict[str, float]:
    """Print the schedule, and means by block Gibbs beside the exact ones."""
    model = SpinsInAField(coupling=jnp.asarray(0.2), pull=jnp.asarray(20.0))
    print(pgm.blocks(model))
    print(pgm.testing.check_energy_model(model))

    draws = pgm.sample(
        jax.random.key(seed), model, num_samples, num_chains=num_chains, num_sweeps=5
    )
    law = pgm.exact(model)  # the real field integrated in closed form
    spins = law.states["s"].reshape(len(law.probabilities), -1).sum(axis=1)
    figures = {
        "squared_magnetisation": float(np.mean(draws["s"].sum(axis=(1, 2), dtype=float) ** 2)),
        "exact_squared_magnetisation": float(law.probabilities @ spins.astype(float) ** 2),
        "field_variance": float(np.var(draws["field"])),
        # given the spins the field is normal, of mean M / pull and variance 1 / pull
        "exact_field_variance": float(
            1 / 20.0 + law.probabilities @ (spins / 20.0).astype(float) ** 2
        ),
    }
    for name in ("squared_magnetisation", "field_variance"):
        print(f"{name:24} sampled {figures[name]:8.4f}   exact {figures['exact_' + name]:8.4f}")
    return figures


if __name__ == "__main__":
    typer.run(main)
