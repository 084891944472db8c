"""Gibbs or HMC: which mixes better on one and the same model?

The model is a spin glass: every pair of spins is coupled at random, twelve spins, so that the
exact answer is known. Block Gibbs samples the spins themselves. NUTS samples the Gaussian twin, a
continuous model with the same partition function, from whose draws the spins are decoded exactly.
NumPyro's own DiscreteGibbs is the reference. A larger ``--scale`` is a colder, harder glass.

    python examples/gibbs_vs_hmc.py
"""

from pathlib import Path

import jax
import typer
from numpyro.infer import NUTS, DiscreteGibbs

import pgm_energy as pgm


def spin_glass(rng_key: jax.Array, num_spins: int, scale: float) -> pgm.BoltzmannMachine:
    """Couplings of standard deviation ``scale / sqrt(num_spins)``."""
    return pgm.BoltzmannMachine.init(
        rng_key, num_visible=num_spins, unit=pgm.Spin, scale=scale / num_spins**0.5
    )


def main(
    num_spins: int = 12,
    scale: float = 1.0,
    num_warmup: int = 500,
    num_samples: int = 1000,
    report: Path | None = None,
    seed: int = 0,
) -> pgm.Comparison:
    """Print the table of the three samplers; ``--report page.html`` writes it with pictures."""
    model_key, run_key = jax.random.split(jax.random.key(seed))
    glass = spin_glass(model_key, num_spins, scale)
    print(pgm.blocks(glass))
    table = pgm.compare(
        run_key,
        glass,
        {
            "block Gibbs": pgm.BlockGibbs(glass),
            "NUTS on the Gaussian twin": NUTS(pgm.relax(glass)),
            # takes 0/1 only: the same law with its spins written as bits
            "NumPyro DiscreteGibbs": DiscreteGibbs(pgm.binarize(glass)),
        },
        num_warmup=num_warmup,
        num_samples=num_samples,
    )
    print(table)
    if report is not None:
        print(f"wrote {table.to_html(report)}")
    return table


if __name__ == "__main__":
    typer.run(main)
