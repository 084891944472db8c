"""Features and mixtures held against scikit-learn's, in the same run."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import numpy as np
import optax

import pgm_energy as pgm
from benchmarks.figures import Context, Goal, Outcome, Stopwatch
from pgm_energy.datasets import load_digits


@dataclasses.dataclass(frozen=True)
class Features:
    """Digits told apart by the hidden units of an RBM, learned on grey levels without labels."""

    name: str
    num_hidden: int
    num_epochs: int
    learning_rate: float
    batch_size: int
    num_chains: int
    goals: tuple[Goal, ...]
    #: scikit-learn's example: its RBM, and the strength of both logistic regressions
    peer: tuple[tuple[str, Any], ...] = (("learning_rate", 0.06), ("n_iter", 10))
    strengths: tuple[float, float] = (6000.0, 100.0)

    work = "digits nudged five ways, RBM features + logistic regression"

    @property
    def settings(self) -> str:
        return (
            f"{self.num_hidden} hidden, PCD-1 not centred, {self.num_chains} chains, "
            f"{self.num_epochs} epochs of batches of {self.batch_size}, sgd "
            f"{self.learning_rate:g}; C = {self.strengths[0]:g}"
        )

    def __call__(self, context: Context) -> Outcome:
        """Fit both RBMs and three logistic regressions on four fifths of the rows."""
        from sklearn.model_selection import train_test_split
        from sklearn.neural_network import BernoulliRBM

        digits = load_digits(binary=False, nudged=True)
        count = 400 if context.quick else len(digits.images)
        train, test, labels, answers = train_test_split(
            digits.images[:count], digits.labels[:count], test_size=0.2, random_state=0
        )
        steps = optax.sgd(self.learning_rate)
        watch = Stopwatch()
        model = self.fit(context, train, steps)
        training = watch.read()
        watch = Stopwatch()
        self.fit(context, train, steps)
        again = watch.read()
        watch = Stopwatch()
        peer = BernoulliRBM(self.num_hidden, random_state=context.seed, **dict(self.peer))
        peer.fit(train)
        theirs = watch.read()
        watch = Stopwatch()
        tables = {
            "accuracy": tuple(np.asarray(pgm.latent_mean(model, rows)) for rows in (train, test)),
            "accuracy of scikit-learn": (peer.transform(train), peer.transform(test)),
            "accuracy of raw pixels": (train, test),
        }
        figures = {
            name: _accuracy(*pair, labels, answers, self.strengths[name.endswith("pixels")])
            for name, pair in tables.items()
        }
        figures["share of scikit-learn's seconds"] = again.elapsed / theirs.elapsed
        remarks = tuple(f"{name} {figures[name]:.4f}" for name in list(tables)[1:])
        remarks += (f"fitted in {again} s once compiled, scikit-learn's RBM in {theirs} s",)
        return Outcome(
            self.name,
            self.work,
            self.settings,
            figures=figures,
            goals=self.goals,
            training=training,
            evaluation=watch.read(),
            remarks=remarks,
        )

    def fit(self, context: Context, rows: np.ndarray, steps: Any) -> pgm.EnergyModel:
        """Return the RBM; rows are the probabilities of bits."""
        start = pgm.RBM.init(
            context.key(0), num_visible=rows.shape[1], num_hidden=self.num_hidden, data=rows
        )
        # features are better where steps stay large and parameters are not centred
        learner = pgm.PCD(steps, num_chains=self.num_chains, centered=False)
        result = learner.run(
            context.key(1),
            start,
            rows,
            num_epochs=1 if context.quick else self.num_epochs,
            batch_size=self.batch_size,
            intensities="mean",
            progress_bar=False,
        )
        return result.model


def _accuracy(
    features: np.ndarray,
    others: np.ndarray,
    labels: np.ndarray,
    answers: np.ndarray,
    strength: float,
) -> float:
    """Share of the other rows that a converged logistic regression gets right."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    regression = LogisticRegression(C=strength, max_iter=5000, tol=1e-6)
    with threadpool_limits(1):  # the tables are small: threads would wait for each other
        regression.fit(features.astype(np.float64), labels)
    return float(regression.score(others, answers))


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Gaussian components found by EM, against scikit-learn's; total log-likelihood."""

    name: str
    data: Literal["iris", "wine"]
    num_components: int
    covariance_type: str
    goals: tuple[Goal, ...]
    published: float | None = None
    num_restarts: int = 10
    tolerance: float = 1e-9

    @property
    def work(self) -> str:
        return f"{self.data}, {self.num_components} components, {self.covariance_type}"

    @property
    def settings(self) -> str:
        return f"EM in float64, {self.num_restarts} starts, tol {self.tolerance:g}"

    def __call__(self, context: Context) -> Outcome:
        """Fit both; scikit-learn with as many starts, the same tolerance, nothing added."""
        from sklearn import datasets
        from sklearn.mixture import GaussianMixture

        rows = getattr(datasets, f"load_{self.data}")().data
        restarts = 2 if context.quick else self.num_restarts
        watch = Stopwatch()
        with jax.enable_x64(True):
            start = pgm.GaussianMixture.init(
                context.key(0),
                num_components=self.num_components,
                data=rows,
                covariance_type=self.covariance_type,
            )
            learner = pgm.EM(max_steps=1000, tol=self.tolerance, num_restarts=restarts)
            result = learner.run(context.key(1), start, rows, progress_bar=False)
            training = watch.read()
            watch = Stopwatch()
            total = float(pgm.log_likelihood(result.model, rows).sum())
        evaluation = watch.read()
        watch = Stopwatch()
        peer = GaussianMixture(
            self.num_components,
            covariance_type=self.covariance_type,
            tol=self.tolerance,
            max_iter=1000,
            n_init=restarts,
            reg_covar=0.0,
            random_state=context.seed,
        ).fit(rows)
        theirs = float(peer.score(rows)) * len(rows)
        figures = {"total": total, "total less scikit-learn's": total - theirs}
        if self.published is not None:
            figures[f"distance from {self.published:.10g}"] = abs(total - self.published)
        remarks = (result.message, f"scikit-learn: {theirs:.4f} in {watch.read()} s")
        return Outcome(
            self.name,
            self.work,
            self.settings,
            figures=figures,
            goals=self.goals,
            training=training,
            evaluation=evaluation,
            remarks=remarks,
        )
