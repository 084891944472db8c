"""What does an RBM know about pixels that were lost, or flipped?

An RBM learns scikit-learn's digits (8 x 8 bits). Then test images lose their lower half, and
``impute`` gives the probability of every lost pixel; or a tenth of all pixels is flipped, and
``denoise`` gives the probability of every original one. Both know how uncertain they are: the
share of wrong pixels that they expect is printed beside the true one. A predictor that always
says what the pixel was most often in training shows what is worth what.

    python examples/rbm_missing_pixels.py
"""

from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import typer

import pgm_energy as pgm
from pgm_energy import datasets

SIDE = 8


def learn(rng_key: jax.Array, train: np.ndarray, num_hidden: int, num_epochs: int) -> pgm.RBM:
    """An RBM of the rows, by persistent contrastive divergence."""
    first, second = jax.random.split(rng_key)
    start = pgm.RBM.init(first, num_visible=SIDE**2, num_hidden=num_hidden, data=train)
    num_steps = num_epochs * -(-len(train) // 50)
    rate = optax.linear_schedule(0.01, 0.0, num_steps)
    learner = pgm.PCD(optax.adam(rate), num_chains=100, num_sweeps=2)
    return learner.run(second, start, train, num_epochs=num_epochs, batch_size=50).model


def picture(path: Path, **rows: np.ndarray) -> None:
    """Write the rows of images, one labelled line each; NaN is drawn in red."""
    count = min(len(images) for images in rows.values())
    figure, axes = plt.subplots(
        len(rows), count, figsize=(1.3 + count * 0.75, len(rows) * 0.8), layout="constrained"
    )
    colours = plt.get_cmap("gray_r").with_extremes(bad="#e8b4a8")
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        words = label.replace("_", "\n")
        line[0].set_ylabel(words, fontsize=9, rotation=0, ha="right", va="center")
        for axis, image in zip(line, images, strict=False):
            axis.imshow(image.reshape(SIDE, SIDE), cmap=colours, vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=120)
    plt.close(figure)


def wrong(posterior: pgm.Posterior, truth: np.ndarray) -> tuple[float, float]:
    """Share of the inferred pixels that are wrong, and the share that the model expects."""
    share = (posterior.estimate != truth)[posterior.unknown].mean()
    expected = np.minimum(posterior.mean, 1 - posterior.mean)[posterior.unknown].mean()
    return float(share), float(expected)


def main(
    output: Path = Path("rbm_missing_pixels.png"),
    num_hidden: int = 100,
    num_epochs: int = 40,
    num_test: int = 100,
    flip_probability: float = 0.1,
    seed: int = 0,
) -> dict[str, float]:
    """Train, lose and flip pixels, infer them, and write the picture."""
    keys = jax.random.split(jax.random.key(seed), 4)
    train, test = datasets.train_validation_split(datasets.load_digits().images, fraction=0.1)
    test = test[:num_test]
    rbm = learn(keys[0], train, num_hidden, num_epochs)

    half = test.astype(float)
    half[:, SIDE**2 // 2 :] = np.nan
    completed = pgm.impute(keys[1], rbm, half)
    flips = np.asarray(jax.random.bernoulli(keys[2], flip_probability, test.shape))
    noisy = np.where(flips, 1 - test, test)
    cleaned = pgm.denoise(keys[3], rbm, noisy, flip_probability)

    usual = (train.mean(axis=0) > 0.5).astype(np.int8)
    lost = completed.unknown
    figures = {
        "lost_usual": float((usual != test)[lost].mean()),
        "flipped_before": float(flips.mean()),
        "flipped_usual": float((usual != test).mean()),
    }
    figures["lost"], figures["lost_expected"] = wrong(completed, test)
    figures["flipped"], figures["flipped_expected"] = wrong(cleaned, test)
    print(f"{completed}\n{cleaned}")
    lines = {
        "as given": (None, figures["flipped_before"]),
        "always the usual pixel": (figures["lost_usual"], figures["flipped_usual"]),
        "inferred by the RBM": (figures["lost"], figures["flipped"]),
        "  (as many as it expects)": (figures["lost_expected"], figures["flipped_expected"]),
    }
    print(f"{f'wrong pixels of {len(test)} images':28}  lower half lost  some flipped")
    for label, shares in lines.items():
        cells = ("-" if share is None else f"{share:.1%}" for share in shares)
        print(f"  {label:28}{next(cells):>13}{next(cells):>14}")
    picture(
        output,
        truth=test[:10],
        half_lost=half[:10],
        probability=completed.mean[:10],
        a_draw=completed.samples[0][:10],
        flipped=noisy[:10],
        denoised=cleaned.mean[:10],
    )
    print(f"wrote {output}")
    return figures


if __name__ == "__main__":
    typer.run(main)
