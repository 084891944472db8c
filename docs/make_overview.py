"""Draw docs/_static/overview.png, the picture of the README.

python docs/make_overview.py
"""

from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from numpyro.infer import NUTS

import pgm_energy as pgm
from pgm_energy import datasets

OUTPUT = Path(__file__).parent / "_static" / "overview.png"
NUM_EPOCHS, NUM_HIDDEN, SHOWN = 200, 32, 24


def show(figure, title: str, images: np.ndarray, **limits) -> None:
    """Small images, eight in a row."""
    figure.suptitle(title, fontsize=10)
    for axis, image in zip(figure.subplots(3, 8).ravel(), images, strict=True):
        axis.imshow(image.reshape(8, 8), **limits)
        axis.set(xticks=[], yticks=[])


def main() -> None:
    digits = datasets.load_digits().images
    keys = jax.random.split(jax.random.key(0), 4)
    start = pgm.RBM.init(keys[0], num_visible=64, num_hidden=NUM_HIDDEN, data=digits)
    num_steps = NUM_EPOCHS * -(-len(digits) // 64)
    rate = optax.linear_schedule(0.05, 0.0, num_steps)
    learner = pgm.PCD(optax.sgd(rate), num_chains=128, num_sweeps=2)
    rbm = learner.run(keys[1], start, digits, num_epochs=NUM_EPOCHS, batch_size=64).model

    fantasies = pgm.sample(keys[2], rbm, SHOWN, num_chains=SHOWN, num_warmup=2000)["v"]
    table = pgm.compare(
        keys[3],
        rbm,
        {"block Gibbs": pgm.BlockGibbs(rbm), "NUTS on the Gaussian twin": NUTS(pgm.relax(rbm))},
        num_warmup=1000,
        num_samples=1000,
    )

    figure = plt.figure(figsize=(10, 5.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.25, 1])
    left, right = top.subfigures(1, 2)
    filters = np.asarray(rbm.weights).T[:SHOWN]
    bound = np.abs(filters).max()
    show(left, "what the hidden units look at", filters, cmap="RdBu", vmin=-bound, vmax=bound)
    show(right, "digits the model draws by itself", np.asarray(fantasies), cmap="gray_r")
    bottom.suptitle("energy of the first 300 draws of two chains each", fontsize=10)
    panels = bottom.subplots(1, 2, sharey=True)
    for axis, (name, tree) in zip(panels, table.datatrees.items(), strict=True):
        for chain in tree["sample_stats"]["energy"].values[:2, :300]:
            axis.plot(chain, linewidth=0.7)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("draw")
    panels[0].set_ylabel("energy (nats)")
    figure.savefig(OUTPUT, dpi=110)
    print(table)
    print(f"wrote {OUTPUT.name}, {OUTPUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
