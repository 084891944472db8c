"""Callbacks of a learning run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pgm_energy._checks import require_count
from pgm_energy.energy import EnergyModel

__all__ = ["EarlyStopping"]

#: Words in the name of a figure that is better when it is smaller.
_SMALLER = ("error", "gap", "energy", "objective", "norm")


class EarlyStopping:
    """End a run when a figure stops improving, and keep the best model.

    Parameters
    ----------
    metric
        Name of a figure of the epochs. With ``run(..., validation=rows)`` the pseudo-likelihood
        and the reconstruction error are those of the validation rows.
    patience
        Epochs without improvement after which the run ends.
    min_delta
        What counts as an improvement must be larger than this.
    maximize
        Whether larger is better; None: unless the name speaks of an error, a gap, an energy, an
        objective or a norm.

    Attributes
    ----------
    best_model
        The model at the best epoch; None before the first one.
    best_value, best_epoch
        The best value of the figure, and its epoch, counted from 1.
    stopped
        Whether it has ended the run.

    Raises
    ------
    ValueError
        If a number is not valid; from ``run``, if the epochs have no such figure.

    Notes
    -----
    A value that is not finite is no improvement. A checkpoint keeps the best model and the
    patience that is left; after ``resume=True`` they go on from there.

    Examples
    --------
    >>> import jax, numpy as np, optax, pgm_energy as pgm
    >>> data = np.array([[0, 1, 1], [1, 0, 0]] * 8)
    >>> start = pgm.RBM.init(jax.random.key(0), num_visible=3, num_hidden=2, data=data)
    >>> stopping = pgm.EarlyStopping("pseudo_log_likelihood", patience=2, min_delta=10.0)
    >>> result = pgm.CD(optax.adam(0.01)).run(
    ...     jax.random.key(1), start, data, validation=data, callbacks=[stopping],
    ...     progress_bar=False)
    >>> stopping.best_epoch, len(result.metrics["pseudo_log_likelihood"])
    (1, 3)
    """

    best_model: EnergyModel | None
    best_value: float
    best_epoch: int

    def __init__(
        self,
        metric: str = "pseudo_log_likelihood",
        patience: int = 10,
        min_delta: float | int = 0.0,
        maximize: bool | None = None,
    ) -> None:
        if not min_delta >= 0:
            raise ValueError(f"min_delta must not be negative, got {min_delta!r}")
        if maximize is None:
            maximize = not any(word in metric for word in _SMALLER)
        self.metric = metric
        self.patience = require_count("patience", patience)
        self.min_delta = min_delta
        self.maximize = maximize
        self._forget()

    def _forget(self) -> None:
        self.best_model, self.best_epoch, self._epoch = None, 0, 0
        self.best_value = -math.inf if self.maximize else math.inf

    def begin(self, model: EnergyModel) -> None:
        """Forget earlier runs; a run calls this with its first model."""
        self._forget()
        self._start = model

    def __call__(self, epoch: int, state: Any, figures: Mapping[str, Any]) -> bool:
        """Look at the figures of an epoch, and say whether the run should end."""
        if self.metric not in figures:
            raise ValueError(
                f"EarlyStopping watches {self.metric!r}, the epochs of this run have "
                f"{', '.join(figures)}"
            )
        value, self._epoch = figures[self.metric], epoch + 1
        gain = value - self.best_value if self.maximize else self.best_value - value
        if math.isfinite(value) and gain > self.min_delta:
            self.best_value, self.best_epoch, self.best_model = value, epoch + 1, state.model
        return self.stopped

    @property
    def stopped(self) -> bool:
        """Whether the best epoch is so many epochs ago that the run ends."""
        return self._epoch - self.best_epoch >= self.patience

    @property
    def reason(self) -> str:
        """Why the run ended, in words."""
        return (
            f"{self.metric} has not improved for {self.patience} epochs; its best, "
            f"{self.best_value:.4f}, was that of epoch {self.best_epoch}, whose model is "
            "best_model of the EarlyStopping"
        )

    def save(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "metric": np.frombuffer(self.metric.encode(), np.uint8),
            "value": np.float64(self.best_value),
            "epochs": np.array([self.best_epoch, self._epoch]),
            "model": self._start if self.best_model is None else self.best_model,
        }

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint kept, unless it watched another figure."""
        if kept["metric"].tobytes().decode() != self.metric:
            return
        self.best_value = float(kept["value"])
        self.best_epoch, self._epoch = (int(epoch) for epoch in kept["epochs"])
        self.best_model = kept["model"] if self.best_epoch else None
