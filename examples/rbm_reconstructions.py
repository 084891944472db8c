"""What has an RBM with 784 visible and 128 hidden units learned of binarized images?

A picture answers: test images, their reconstructions through the hidden units, and fantasies,
which the model draws by itself. Without a file the images are scikit-learn's digits, made 28 x 28.

    python examples/rbm_reconstructions.py
    python examples/rbm_reconstructions.py --images binarized_mnist.npz   # bits packed in bytes
    python examples/rbm_reconstructions.py --images t10k-images-idx3-ubyte.gz
"""

from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import typer

import pgm_energy as pgm
from pgm_energy import datasets

SIDE = 28


def load(path: Path | None) -> np.ndarray:
    """Rows of 784 bits, from packed bits, from grey levels, or the embedded digits enlarged."""
    if path is None:
        digits = datasets.load_digits().images.reshape(-1, 8, 8)
        large = np.repeat(np.repeat(digits, 3, axis=1), 3, axis=2)
        return np.pad(large, ((0, 0), (2, 2), (2, 2))).reshape(-1, SIDE * SIDE)
    table = datasets.load_table(path)
    if table.shape[1] == SIDE * SIDE // 8:
        table = datasets.load_table(path, num_columns=SIDE * SIDE)
    if table.shape[1] != SIDE * SIDE:
        raise ValueError(f"{path}: expected rows of {SIDE * SIDE} pixels, got {table.shape[1]}")
    return (table >= 0.5 * table.max()).astype(np.int8)


def picture(path: Path, **rows: np.ndarray) -> None:
    """Write the rows of images, one labelled line each."""
    columns = min(len(images) for images in rows.values())
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(columns * 0.8, len(rows) * 0.95), layout="constrained"
    )
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(label, fontsize=9)
        for axis, image in zip(line, images, strict=False):
            axis.imshow(image.reshape(SIDE, SIDE), cmap="gray_r", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(
    images: Path | None = None,
    output: Path = Path("rbm_reconstructions.png"),
    num_hidden: int = 128,
    num_epochs: int = 40,
    max_rows: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Train, print the reconstruction error on test images, and write the picture."""
    keys = jax.random.split(jax.random.key(seed), 4)
    train, test = datasets.train_validation_split(load(images)[:max_rows], fraction=0.1)

    start = pgm.RBM.init(keys[0], num_visible=SIDE * SIDE, num_hidden=num_hidden, data=train)
    batch = min(100, len(train))
    num_steps = num_epochs * -(-len(train) // batch)
    rate = optax.linear_schedule(0.05, 0.0, num_steps)
    learner = pgm.PCD(optax.sgd(rate), num_chains=100, num_sweeps=5)
    rbm = learner.run(
        keys[1], start, train, num_epochs=num_epochs, batch_size=batch, validation=test[:100]
    ).model

    reconstructed = np.asarray(pgm.reconstruct(keys[2], rbm, test))
    fantasies = pgm.sample(keys[3], rbm, 12, num_chains=12, num_warmup=2000)
    # probabilities of the pixels given the fantasies' hidden units, which look less grainy
    drawn = jax.vmap(lambda h: jax.nn.sigmoid(rbm.visible_bias + rbm.weights @ h))
    picture(
        output,
        data=test[:12],
        reconstruction=reconstructed[:12],
        fantasy=np.asarray(drawn(fantasies["h"].astype(np.float32))),
    )
    mean = train.mean(axis=0)
    figures = {
        "reconstruction_error": float(np.mean((test - reconstructed) ** 2)),
        "mean_image_error": float(np.mean((test - mean) ** 2)),
    }
    print(f"mean squared error per pixel on {len(test)} test images")
    print(f"  the mean training image   {figures['mean_image_error']:.4f}")
    print(f"  reconstructions           {figures['reconstruction_error']:.4f}")
    print(f"wrote {output}")
    return figures


if __name__ == "__main__":
    typer.run(main)
