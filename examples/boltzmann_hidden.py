"""What do hidden units buy a Boltzmann machine?

Three bits of even parity: 000, 011, 101, 110. Every pair of bits is independent, so pairwise
couplings between visible units say nothing about them, and a fully visible machine can do no
better than a fair coin for each bit: -3 log 2 nats per row. The law of the data has -2 log 2.
Hidden units make couplings of higher order, and close most of the gap.

    python examples/boltzmann_hidden.py
"""

import math

import jax
import numpy as np
import optax
import typer

import pgm_energy as pgm

EVEN = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]])


def learn(rng_key: jax.Array, num_hidden: int, num_epochs: int) -> tuple[float, float]:
    """Exact log-likelihood (nats per row) after learning, and P(even parity)."""
    init_key, learn_key, order_key = jax.random.split(rng_key, 3)
    rows = np.asarray(jax.random.permutation(order_key, np.tile(EVEN, (32, 1))))
    start = pgm.BoltzmannMachine.init(
        init_key, num_visible=3, num_hidden=num_hidden, data=rows, scale=0.5
    )
    learner = pgm.PCD(
        optax.adam(optax.linear_schedule(0.1, 0.0, num_epochs)), num_chains=512, num_sweeps=5
    )
    machine = learner.run(learn_key, start, rows, num_epochs=num_epochs).model
    law = pgm.exact(machine)
    even = law.states["v"].sum(axis=1) % 2 == 0
    log_likelihood = float(pgm.log_likelihood(machine, EVEN).mean())
    return log_likelihood, float(law.probabilities[even].sum())


def main(num_hidden: int = 4, num_epochs: int = 1000, seed: int = 0) -> dict[str, float]:
    """Print what machines without and with hidden units learn of three bits of even parity."""
    plain_key, hidden_key = jax.random.split(jax.random.key(seed))
    plain, plain_even = learn(plain_key, 0, num_epochs)
    hidden, hidden_even = learn(hidden_key, num_hidden, num_epochs)
    print("three bits of even parity     nats per row   P(even)")
    print(f"  fully visible                 {plain:8.4f}    {plain_even:6.3f}")
    print(f"  {num_hidden} hidden units                {hidden:8.4f}    {hidden_even:6.3f}")
    print(f"  the law of the data           {-2 * math.log(2):8.4f}     1.000")
    return {
        "visible": plain,
        "visible_even": plain_even,
        "hidden": hidden,
        "hidden_even": hidden_even,
    }


if __name__ == "__main__":
    typer.run(main)
