"""Machines learned by PCD or by exact maximum likelihood, and what their likelihoods reach."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, Literal

import numpy as np
import optax

import pgm_energy as pgm
from benchmarks.figures import Context, Goal, Outcome, Seconds, Stopwatch


@dataclasses.dataclass(frozen=True)
class Density:
    """A machine learned by PCD, its steps falling linearly to 0, and its exact or bracketed log Z.

    ``num_hidden=0`` is a fully visible Boltzmann machine. ``num_replicas``: of each chain, for
    parallel tempering. ``takes_validation``: learn on validation rows too, once settings have been
    chosen. ``num_betas=0``: log Z is exact.
    """

    name: str
    data: str
    num_hidden: int
    num_epochs: int
    learning_rate: float
    goals: tuple[Goal, ...]
    optimizer: Literal["adam", "sgd"] = "adam"
    weight_decay: float = 0.0
    batch_size: int = 128
    num_chains: int = 500
    num_sweeps: int = 1
    num_replicas: int = 0
    takes: Literal["model", "averaged"] = "model"
    takes_validation: bool = False
    num_betas: int = 0
    num_annealed: int = 100

    @property
    def work(self) -> str:
        if not self.num_hidden:
            return f"{self.data}, fully visible BM"
        return f"{self.data}, RBM, {self.num_hidden} hidden"

    @property
    def settings(self) -> str:
        replicas = f" of {self.num_replicas} replicas" if self.num_replicas else ""
        parts = [
            f"PCD-{self.num_sweeps} centred",
            f"{self.num_chains} chains{replicas}",
            f"{self.num_epochs} epochs of batches of {self.batch_size}",
            f"{self.optimizer} {self.learning_rate:g} falling to 0",
        ]
        if self.weight_decay:
            parts.append(f"L2 {self.weight_decay:g}")
        if self.takes == "averaged":
            parts.append("averaged weights")
        if self.takes_validation:
            parts.append("on training and validation rows")
        return ", ".join(parts)

    def __call__(self, context: Context) -> Outcome:
        """Learn on the training rows, look at all three splits."""
        splits = context.load(self.data)
        if self.takes_validation:
            held_out = splits.pop("validation")
            splits["train"] = np.concatenate([splits["train"], held_out])
        watch = Stopwatch()
        result = self.fit(context, splits["train"])
        training = watch.read()
        model = getattr(result, self.takes)
        context.keep(self.name, model)
        return evaluated(self, context, model, splits, training, self._log_z, (result.message,))

    def fit(self, context: Context, rows: np.ndarray) -> pgm.LearningResult:
        """Return what PCD learned."""
        epochs = 1 if context.quick else self.num_epochs
        updates = epochs * -(-len(rows) // self.batch_size)
        rate = optax.linear_schedule(self.learning_rate, 0.0, updates)
        steps = {"adam": optax.adam, "sgd": optax.sgd}[self.optimizer](rate)
        if self.weight_decay:
            decay = optax.add_decayed_weights(self.weight_decay, mask=pgm.couplings_only)
            steps = optax.chain(decay, steps)
        learner = pgm.PCD(
            steps,
            num_chains=self.num_chains,
            num_sweeps=self.num_sweeps,
            kernel=pgm.TemperedChains(self.num_replicas) if self.num_replicas else None,
        )
        return learner.run(
            context.key(1),
            self.start(context, rows),
            rows,
            num_epochs=epochs,
            batch_size=self.batch_size,
            progress_bar=False,
        )

    def start(self, context: Context, rows: np.ndarray) -> pgm.EnergyModel:
        """Return small random couplings and the biases of independent units."""
        width = rows.shape[1]
        if not self.num_hidden:
            return pgm.BoltzmannMachine.init(context.key(0), num_visible=width, data=rows)
        return pgm.RBM.init(
            context.key(0), num_visible=width, num_hidden=self.num_hidden, data=rows
        )

    def _log_z(self, context: Context, model: Any, rows: np.ndarray) -> pgm.LogPartition:
        if not self.num_betas:
            return pgm.log_partition(model, method="exact")
        with warnings.catch_warnings():  # it stands in the remarks
            warnings.simplefilter("ignore", UserWarning)
            return pgm.log_partition(
                model,
                context.key(2),
                "ais",
                data=rows,
                num_chains=10 if context.quick else self.num_annealed,
                num_betas=200 if context.quick else self.num_betas,
            )


@dataclasses.dataclass(frozen=True)
class ExactDensity:
    """The fully visible Boltzmann machine of maximum likelihood, by enumeration."""

    name: str
    data: str
    num_epochs: int
    published: float
    goals: tuple[Goal, ...]

    @property
    def work(self) -> str:
        return f"{self.data}, fully visible BM"

    @property
    def settings(self) -> str:
        return f"MaximumLikelihood, L-BFGS, {self.num_epochs} steps on all rows"

    def __call__(self, context: Context) -> Outcome:
        """Learn on the training rows, look at all three splits."""
        splits = context.load(self.data)
        rows = splits["train"]
        watch = Stopwatch()
        start = pgm.BoltzmannMachine.init(context.key(0), num_visible=rows.shape[1], data=rows)
        result = pgm.MaximumLikelihood(optax.lbfgs()).run(
            context.key(1),
            start,
            rows,
            num_epochs=2 if context.quick else self.num_epochs,
            batch_size=len(rows),
            progress_bar=False,
        )
        training = watch.read()
        outcome = evaluated(
            self, context, result.model, splits, training, _exactly, (result.message,)
        )
        outcome.figures[f"distance from {self.published:.10g}"] = abs(
            outcome.figures["test"] - self.published
        )
        return outcome


def _exactly(context: Context, model: Any, rows: np.ndarray) -> pgm.LogPartition:
    return pgm.log_partition(model, method="exact")


def evaluated(
    row: Any,
    context: Context,
    model: Any,
    splits: dict[str, np.ndarray],
    training: Seconds,
    find_log_z: Any,
    remarks: tuple[str, ...],
) -> Outcome:
    """Return the line of a learned density: log Z and the likelihood of every split."""
    watch = Stopwatch()
    z = find_log_z(context, model, splits["train"])
    found = {name: pgm.evaluate(model, rows, z) for name, rows in splits.items()}
    evaluation = watch.read()
    test = found["test"]
    figures = {
        "test": test.lower,  # a figure counts at the upper bracket of log Z
        "test by AIS": test.mean,
        "training seconds": training.elapsed,
        "minutes in all": (training.elapsed + evaluation.elapsed) / 60,
    }
    words = [*remarks, z.message]
    if z.warning:
        words.append(f"log Z is not to be trusted: {z.warning}")
    return Outcome(
        row.name,
        row.work,
        row.settings,
        found,
        z,
        figures,
        row.goals,
        training,
        evaluation,
        tuple(words),
    )
