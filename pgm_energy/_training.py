"""The work behind the training commands: learners by name, checkpoints, files to look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from pgm_energy._jobs import Data, Kind
from pgm_energy._tables import write_columns
from pgm_energy.energy import EnergyModel
from pgm_energy.learning import (
    CD,
    EM,
    PCD,
    Checkpoint,
    EarlyStopping,
    MaximumLikelihood,
    PseudoLikelihood,
    RatioMatching,
)
from pgm_energy.learning.negative import TemperedChains
from pgm_energy.learning.trajectory import TrajectoryChains
from pgm_energy.models import RBM, BoltzmannMachine, GaussianMixture
from pgm_energy.predict import sample
from pgm_energy.serialization import save

__all__ = ["LEARNERS", "Plan", "learn", "write_samples", "write_training"]

#: Images in samples.png, each the end of a chain of so many sweeps.
_NUM_IMAGES, _NUM_SWEEPS = 100, 1000


class Plan(NamedTuple):
    """Numbers that training depends on; those of the report first.

    Attributes
    ----------
    hidden, components
        Size of an rbm, of a gmm.
    epochs, batch_size, learning_rate, learner, sweeps, chains
        How an rbm or a bm is learned.
    patience
        Epochs without improvement on the validation rows after which training ends; 0: none.
    """

    hidden: int
    components: int
    epochs: int
    batch_size: int
    learning_rate: float
    learner: str = "pcd"
    sweeps: int = 2
    chains: int = 128
    patience: int = 0

    def check(self, kind: Kind, resumes: bool) -> None:
        """Refuse what cannot be done, before a folder is made.

        Raises
        ------
        ValueError
            Naming the option.
        """
        if not (self.learning_rate > 0 and np.isfinite(self.learning_rate)):
            raise ValueError(f"--learning-rate must be positive, got {self.learning_rate:g}")
        if kind == "gmm" and (resumes or self.patience):
            raise ValueError("--resume and --early-stopping are for rbm and bm; EM takes seconds")

    def told(self, kind: Kind) -> dict[str, Any]:
        """Return the numbers that a model of this kind depends on, by name."""
        if kind == "gmm":
            return {"components": self.components}
        unused = {"components"} if kind == "rbm" else {"components", "hidden"}
        return {name: value for name, value in self._asdict().items() if name not in unused}


#: Learners by their name on the command line, made from an optimiser and a plan.
LEARNERS: dict[str, Callable[[Any, Plan], Any]] = {
    "pcd": lambda optimizer, plan: PCD(optimizer, plan.chains, plan.sweeps),
    "cd": lambda optimizer, plan: CD(optimizer, plan.sweeps),
    "tempered-pcd": lambda optimizer, plan: PCD(
        optimizer, plan.chains, plan.sweeps, kernel=TemperedChains()
    ),
    "trajectory-pcd": lambda optimizer, plan: PCD(
        optimizer, plan.chains, plan.sweeps, kernel=TrajectoryChains()
    ),
    "pseudo-likelihood": lambda optimizer, plan: PseudoLikelihood(optimizer),
    "ratio-matching": lambda optimizer, plan: RatioMatching(optimizer),
    "maximum-likelihood": lambda optimizer, plan: MaximumLikelihood(optimizer),
}


def learn(
    kind: Kind,
    data: Data,
    plan: Plan,
    seed: int,
    *,
    checkpoint: Checkpoint | None = None,
    resume: bool = False,
    progress_bar: bool = True,
) -> tuple[EnergyModel, Any]:
    """Return a model trained on the data, and what its learner returned.

    The model is the best one of early stopping, if that was asked for, else the last.
    """
    init_key, run_key = jax.random.split(jax.random.key(seed))
    width = data.train.shape[1]
    if kind == "gmm":
        start = GaussianMixture.init(init_key, num_components=plan.components, data=data.train)
        found = EM(num_restarts=10).run(run_key, start, data.train, progress_bar=progress_bar)
        return found.model, found
    model: EnergyModel
    if kind == "rbm":
        model = RBM.init(init_key, num_visible=width, num_hidden=plan.hidden, data=data.train)
    else:
        model = BoltzmannMachine.init(init_key, num_visible=width, data=data.train)
    updates = plan.epochs * -(-len(data.train) // plan.batch_size)
    # a step that falls to zero: what is left of the chains' noise is averaged away
    falling = optax.linear_schedule(plan.learning_rate, 0.0, updates)
    learner = LEARNERS[plan.learner](
        optax.inject_hyperparams(optax.adam)(learning_rate=falling), plan
    )
    stopping = EarlyStopping(patience=plan.patience) if plan.patience else None
    result = learner.run(
        run_key,
        model,
        data.train,
        num_epochs=plan.epochs,
        batch_size=plan.batch_size,
        validation=data.validation if len(data.validation) else None,
        callbacks=[stopping] if stopping else [],
        checkpoint=checkpoint,
        resume=resume,
        progress_bar=progress_bar,
    )
    if stopping is not None and stopping.best_model is not None:
        return stopping.best_model, result
    return result.model, result


def write_training(folder: Path, model: EnergyModel, result: Any, data: Data) -> dict[str, Any]:
    """Write the model, its metrics and pictures; return the figures with captions."""
    from pgm_energy.plots import image_shape, plot_filters, plot_training, training_curves
    from pgm_energy.report import png_bytes

    save(model, folder / "model.safetensors")
    curves = training_curves(result)
    write_columns(folder / "metrics.csv", curves, "epoch" if hasattr(result, "metrics") else "step")
    figures = {}
    if curves:
        figures["training"] = (plot_training(result), "How the model was learned.")
    if "h" in model.sites and (data.shape or image_shape(model.sites["v"])) is not None:
        caption = "Weights of each hidden unit, seen as an image of the visible ones."
        figures["filters"] = (plot_filters(model, data.shape), caption)
    for name, (figure, _) in figures.items():
        (folder / f"{name}.png").write_bytes(png_bytes(figure))
    return figures


def write_samples(folder: Path, model: EnergyModel, data: Data, seed: int) -> bool:
    """Write a picture of draws of the model, if its rows are images; say whether they are."""
    from pgm_energy.plots import image_shape, plot_samples
    from pgm_energy.report import png_bytes

    name = model.data_sites[0]
    shape = data.shape or image_shape(model.sites[name])
    if shape is None:
        return False
    draws = sample(
        jax.random.fold_in(jax.random.key(seed), 2),
        model,
        _NUM_IMAGES,
        num_chains=_NUM_IMAGES,
        num_warmup=_NUM_SWEEPS,
    )
    figure = plot_samples(draws[name], shape, title=f"draws of {name}")
    (folder / "samples.png").write_bytes(png_bytes(figure))
    return True
