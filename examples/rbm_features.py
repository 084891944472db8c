"""Do the features of a Bernoulli RBM help a linear classifier on handwritten digits?

The protocol is that of scikit-learn's example "Restricted Boltzmann Machine features for digit
classification": 8 x 8 digits, each also moved by one pixel in four directions; a fifth of the
rows is for testing. Copies of one image may fall on both sides of that split. With
``--keep-copies-together`` they do not, and accuracies are lower.

    python examples/rbm_features.py
"""

import jax
import numpy as np
import optax
import typer
from sklearn.linear_model import LogisticRegression

import pgm_energy as pgm
from pgm_energy import datasets


def split(keep_copies_together: bool, fraction: float = 0.2) -> tuple[np.ndarray, ...]:
    """Training images, test images, training labels, test labels; every pixel in 0..1."""
    digits = datasets.load_digits(binary=False, nudged=True)
    rows = np.arange(len(digits.labels))
    if keep_copies_together:  # the five copies of image i are the rows i + k * count
        count = len(rows) // 5
        train, test = datasets.train_validation_split(np.arange(count), fraction)
        train, test = (
            np.concatenate([part + k * count for k in range(5)]) for part in (train, test)
        )
    else:
        train, test = datasets.train_validation_split(rows, fraction)
    images = digits.images / np.maximum(digits.images.max(axis=0), 1e-4)
    return images[train], images[test], digits.labels[train], digits.labels[test]


def accuracy(train: np.ndarray, test: np.ndarray, labels: np.ndarray, truth: np.ndarray) -> float:
    """Test accuracy of logistic regression."""
    classifier = LogisticRegression(C=100.0, max_iter=5000).fit(train, labels)
    return float(classifier.score(test, truth))


def main(
    num_hidden: int = 100,
    num_epochs: int = 40,
    max_rows: int | None = None,
    keep_copies_together: bool = False,
    seed: int = 0,
) -> dict[str, float]:
    """Print the test accuracy of logistic regression on pixels and on RBM features."""
    train, test, labels, truth = split(keep_copies_together)
    train, labels = train[:max_rows], labels[:max_rows]
    init_key, learn_key = jax.random.split(jax.random.key(seed))

    start = pgm.RBM.init(init_key, num_visible=64, num_hidden=num_hidden)
    num_steps = num_epochs * -(-len(train) // 20)
    # not centred: a better density (centred) makes poorer features here
    learner = pgm.PCD(
        optax.sgd(optax.linear_schedule(0.1, 0.0, num_steps)), num_chains=20, centered=False
    )
    result = learner.run(
        learn_key, start, train, num_epochs=num_epochs, batch_size=20, intensities="mean"
    )
    figures = {
        "pixels": accuracy(train, test, labels, truth),
        "features": accuracy(
            np.asarray(pgm.latent_mean(result.model, train)),
            np.asarray(pgm.latent_mean(result.model, test)),
            labels,
            truth,
        ),
    }
    print(f"logistic regression on {len(train)} digits, accuracy on {len(test)} others")
    print(f"  raw pixels                {figures['pixels']:.3f}")
    print(f"  {num_hidden} RBM features          {figures['features']:.3f}")
    return figures


if __name__ == "__main__":
    typer.run(main)
