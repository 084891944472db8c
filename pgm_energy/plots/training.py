"""Training curves, one panel per metric."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

__all__ = ["plot_training", "training_curves"]

#: Units of metrics, in the order of their panels; what is not here has none and comes last.
_UNITS = {
    "objective": "objective per row",
    "log_likelihood": "nats",
    "pseudo_log_likelihood": "nats per row",
    "reconstruction_error": "mean square per unit",
    "free_energy_gap": "nats",
    "chain_free_energy": "nats",
    "chain_energy": "nats",
    "chain_energy_gap": "standard deviations",
    "chain_autocorrelation": "correlation between updates",
    "swap_rate": "probability",
    "gradient_norm": "nats per parameter unit",
    "learning_rate": "step size",
}
#: Most points of a curve that are marked one by one.
_MOST_MARKED = 40
#: Metrics of held-out rows are drawn over those of the training rows.
_HELD_OUT = "validation_"


def plot_training(result: Any) -> Figure:
    """Return the training curves: one panel per metric.

    Parameters
    ----------
    result
        What a learner's ``run`` returned (its ``metrics``, or the ``history`` of EM), or a dict of
        arrays by name. ``validation_<name>`` is drawn into the panel of ``<name>``.

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
    panels = [name for name in curves if name.removeprefix(_HELD_OUT) not in curves.keys() - {name}]
    order = list(_UNITS)
    panels.sort(key=lambda name: order.index(name) if name in _UNITS else len(order))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.6 * columns, 2.6 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, name in zip(axes.flat, panels, strict=False):
        _draw_curve(axis, curves[name], "training")
        held_out = curves.get(_HELD_OUT + name)
        if held_out is not None:
            _draw_curve(axis, held_out, "validation")
            axis.legend(fontsize=9)
        axis.set_title(name.replace("_", " "), fontsize=11)
        axis.set_xlabel(step, fontsize=10)
        axis.set_ylabel(_UNITS.get(name.removeprefix(_HELD_OUT), "value"), fontsize=10)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.grid(alpha=0.3)
    return figure


def _draw_curve(axis: Any, values: np.ndarray, label: str) -> None:
    marker = "." if len(values) <= _MOST_MARKED else ""
    axis.plot(np.arange(1, len(values) + 1), values, marker=marker, linewidth=1.2, label=label)


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
