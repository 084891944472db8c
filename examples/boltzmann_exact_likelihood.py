"""How likely is a real table under a fully visible Boltzmann machine, exactly?

With few enough columns (up to 20 or so) the partition function is a sum that can be taken, so the
likelihood of held-out rows is exact. The embedded table is scikit-learn's breast cancer data: ten
measurements of 569 cell nuclei, 1 where above the training median. Other tables of 0 and 1:

    python examples/boltzmann_exact_likelihood.py
    python examples/boltzmann_exact_likelihood.py --train train.csv.gz --test test.csv.gz
"""

from pathlib import Path

import jax
import numpy as np
import optax
import typer
from sklearn.datasets import load_breast_cancer

import pgm_energy as pgm
from pgm_energy import datasets


def embedded() -> tuple[np.ndarray, np.ndarray]:
    """Training and test rows of ten bits."""
    measured = load_breast_cancer().data[:, :10]
    train, test = datasets.train_validation_split(measured, fraction=0.3)
    median = np.median(train, axis=0)
    return (train > median).astype(np.int8), (test > median).astype(np.int8)


def main(
    train: Path | None = None, test: Path | None = None, num_updates: int = 4000, seed: int = 0
) -> dict[str, float]:
    """Print exact log-likelihoods, nats per row, of independent columns and of the machine."""
    if (train is None) != (test is None):
        raise ValueError("give both --train and --test, or neither")
    if train is None or test is None:
        rows, held_out = embedded()
    else:
        rows, held_out = datasets.load_table(train), datasets.load_table(test)
    init_key, learn_key = jax.random.split(jax.random.key(seed))

    start = pgm.BoltzmannMachine.init(init_key, num_visible=rows.shape[1], data=rows)
    batch = min(128, len(rows))
    num_epochs = -(-num_updates // -(-len(rows) // batch))
    # steps that fall to zero: the chains are then at equilibrium when learning ends
    learner = pgm.PCD(
        optax.adam(optax.linear_schedule(0.01, 0.0, num_updates)), num_chains=1024, num_sweeps=5
    )
    machine = learner.run(learn_key, start, rows, num_epochs=num_epochs, batch_size=batch).model

    log_z = pgm.log_partition(machine)
    independent = pgm.Independent.like(machine, rows)
    figures = {
        "independent_test": float(pgm.log_likelihood(independent, held_out).mean()),
        "train": float(pgm.log_likelihood(machine, rows, log_z).mean()),
        "test": float(pgm.log_likelihood(machine, held_out, log_z).mean()),
        "log_partition": log_z.estimate,
    }
    print(f"{rows.shape[1]} columns, {len(rows)} training rows; exact, nats per row")
    print(f"  independent columns, test       {figures['independent_test']:.4f}")
    print(f"  Boltzmann machine, training     {figures['train']:.4f}")
    print(f"  Boltzmann machine, test         {figures['test']:.4f}")
    print(f"  log Z                           {figures['log_partition']:.4f}")
    return figures


if __name__ == "__main__":
    typer.run(main)
