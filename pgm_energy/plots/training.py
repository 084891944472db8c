"""Training curves, one panel per metric."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

__all__ = ["plot_training", "training_curves"]

_METRIC_UNITS = {
    "pseudo_log_likelihood": "nats per row",
    "log_likelihood": "nats",
    "free_energy_gap": "nats",
    "chain_free_energy": "nats",
    "reconstruction_error": "mean square per unit",
    "gradient_norm": "nats per parameter unit",
}


def plot_training(result: Any) -> Figure:
    """Return the training curves: one panel per metric.

    Parameters
    ----------
    result
        What a learner's ``run`` returned (its ``metrics``, or the ``history`` of EM), or a dict of
        arrays by name.

    Raises
    ------
    ValueError
        If there is nothing to show.

    Examples
    --------
    >>> figure = plot_training({"gradient_norm": [2.0, 1.0]})
    >>> figure.axes[0].get_xlabel()
    'epoch'
    """
    curves = training_curves(result)
    step = "epoch" if hasattr(result, "metrics") or isinstance(result, Mapping) else "step"
    if not curves:
        raise ValueError("there are no metrics to show: no epoch was completed")
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.6 * columns, 2.6 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(curves) :]:
        axis.remove()
    for axis, (name, values) in zip(axes.flat, curves.items(), strict=False):
        axis.plot(np.arange(1, len(values) + 1), values, marker=".", linewidth=1.2)
        axis.set_title(name.replace("_", " "), fontsize=11)
        axis.set_xlabel(step, fontsize=10)
        axis.set_ylabel(_METRIC_UNITS.get(name, ""), fontsize=10)
        axis.grid(alpha=0.3)
    return figure


def training_curves(result: Any) -> dict[str, np.ndarray]:
    """Return the metrics of a learning result by name, one value per epoch or step."""
    if isinstance(result, Mapping):
        metrics: Any = result
    elif hasattr(result, "metrics"):
        metrics = result.metrics
    else:
        values = np.asarray(getattr(result, "history", ()))
        metrics = {"log_likelihood": values} if values.size else {}
    curves = {name: np.asarray(values, float) for name, values in metrics.items()}
    return {name: values for name, values in curves.items() if values.size}
