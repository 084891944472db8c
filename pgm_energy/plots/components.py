"""Pictures of mixtures: components, responsibilities, and how many components to take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator

from pgm_energy.conditional import latent_mean
from pgm_energy.models import BernoulliMixture, GaussianMixture
from pgm_energy.models.mixture import Mixture
from pgm_energy.plots.images import image_shape, show_grid

__all__ = ["plot_components", "plot_responsibilities", "plot_scan"]

#: Share of a component inside each ellipse.
_SHARES = (0.5, 0.95)
_MAX_ROWS = 2000


def plot_components(
    model: Any,
    data: Any = None,
    *,
    columns: Sequence[int | str] = (0, 1),
    names: Sequence[str] | None = None,
    shape: tuple[int, int] | None = None,
) -> Figure:
    """Return a picture of a mixture's components: ellipses, or means as images.

    Parameters
    ----------
    model
        A :class:`GaussianMixture`: ellipses that hold 50 % and 95 % of each component in two of
        its columns (densities if it has but one). A :class:`BernoulliMixture`: the probabilities
        of each component, as an image where the units form one.
    data
        Rows to draw behind the ellipses, coloured by their most probable component.
    columns
        Which two columns to show, by number or by name.
    names
        Names of all columns; those of ``data`` if it is a pandas table.
    shape
        Height and width of images; found where the number of units is a square.

    Raises
    ------
    TypeError
        If the model is no such mixture.
    ValueError
        On columns that the model does not have, or names of another number.

    Examples
    --------
    >>> import jax.numpy as jnp, pgm_energy as pgm
    >>> mixture = pgm.GaussianMixture(
    ...     weights=[0.4, 0.6], means=[[0.0, 0.0], [3.0, 1.0]], covariances=[1.0, 0.5],
    ...     covariance_type="spherical")
    >>> figure = plot_components(mixture, names=["length", "width"])
    >>> figure.axes[0].get_xlabel()
    'length'
    """
    if isinstance(model, BernoulliMixture):
        return _plot_means(model, shape)
    if not isinstance(model, GaussianMixture):
        raise TypeError(
            "plot_components shows a GaussianMixture or a BernoulliMixture, got "
            f"{type(model).__name__}"
        )
    names = _column_names(model.means.shape[1], names, data)
    if model.means.shape[1] == 1:
        return _plot_densities(model, data, names[0])
    chosen = _choose(columns, names)
    figure, axis = plt.subplots(figsize=(5.6, 4.8), layout="constrained")
    colors = _colors(model.num_components)
    if data is not None:
        _scatter(axis, model, data, chosen, colors)
    means = np.asarray(model.means, float)[:, chosen]
    for k, covariance in enumerate(_covariances(model)[:, chosen][:, :, chosen]):
        for share in _SHARES:
            axis.add_patch(_ellipse(means[k], covariance, share, colors[k]))
        axis.plot(*means[k], marker="+", color="black", markersize=8)
        weight = float(model.weights[k])
        axis.annotate(
            f"{k} ({weight:.2f})",
            means[k],
            textcoords="offset points",
            xytext=(6, 6),
            fontsize=9,
            bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1},
        )
    axis.autoscale_view()
    axis.set_xlabel(names[chosen[0]], fontsize=10)
    axis.set_ylabel(names[chosen[1]], fontsize=10)
    axis.set_title("components (weight); ellipses hold 50 % and 95 %", fontsize=11)
    return figure


def plot_responsibilities(model: Any, data: Any) -> Figure:
    """Return a heat map of the probability that each row belongs to each component.

    Parameters
    ----------
    model
        A mixture.
    data
        Rows ``(N, D)``; of more than 2,000, every so many are shown.

    Raises
    ------
    TypeError
        If the model is no mixture.
    ValueError
        On data that are not valid.

    Notes
    -----
    Rows are sorted by their most probable component, and within it by how sure that is.

    Examples
    --------
    >>> import numpy as np, pgm_energy as pgm
    >>> mixture = pgm.BernoulliMixture(weights=[0.5, 0.5], probs=[[0.9, 0.9], [0.1, 0.1]])
    >>> figure = plot_responsibilities(mixture, np.array([[0, 0], [1, 1], [0, 1]]))
    >>> figure.axes[0].get_xlabel()
    'component'
    """
    if not isinstance(model, Mixture):
        raise TypeError(f"plot_responsibilities shows a mixture, got {type(model).__name__}")
    shares = np.asarray(latent_mean(model, data))
    likely = shares.argmax(axis=1)
    order = np.lexsort((-shares.max(axis=1), likely))
    shares = shares[order]
    count = len(shares)
    if count > _MAX_ROWS:
        shares = shares[np.linspace(0, count - 1, _MAX_ROWS).astype(int)]
    size = (2.4 + 0.45 * min(model.num_components, 20), 4.8)
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    picture = axis.imshow(
        shares,
        aspect="auto",
        interpolation="nearest",
        vmin=0.0,
        vmax=1.0,
        cmap="viridis",
        extent=(-0.5, model.num_components - 0.5, count, 0),
    )
    for edge in np.cumsum(np.bincount(likely, minlength=model.num_components))[:-1]:
        axis.axhline(edge, color="white", linewidth=0.6)
    axis.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    axis.set_xlabel("component", fontsize=10)
    axis.set_ylabel("rows, sorted by component", fontsize=10)
    axis.set_title("responsibilities", fontsize=11)
    figure.colorbar(picture, ax=axis).set_label("P(component | row)")
    return figure


def plot_scan(scan: Any, criteria: Sequence[str] = ("aic", "bic", "icl")) -> Figure:
    """Return a picture of information criteria against the number of components.

    Parameters
    ----------
    scan
        What :func:`pgm_energy.scan_components` returned, or several of them by name (kinds of
        covariances, say).
    criteria
        Which of ``"aic"``, ``"bic"`` and ``"icl"`` to show; lower is better.

    Raises
    ------
    ValueError
        If there is nothing to show, or on another criterion.

    Examples
    --------
    >>> import jax, numpy as np, pgm_energy as pgm
    >>> rows = np.random.default_rng(0).normal(size=(50, 1))
    >>> scan = pgm.scan_components(
    ...     jax.random.key(0), pgm.GaussianMixture, rows, [1, 2], progress_bar=False)
    >>> figure = plot_scan(scan)
    >>> figure.axes[0].get_xlabel()
    'number of components'
    """
    scans = dict(scan) if isinstance(scan, Mapping) else {"": scan}
    if not scans or not criteria:
        raise ValueError("there is nothing to show: give at least one scan and one criterion")
    count = len(criteria)
    figure, axes = plt.subplots(
        1, count, figsize=(0.8 + 3.2 * count, 3.2), squeeze=False, layout="constrained"
    )
    for axis, criterion in zip(axes[0], criteria, strict=True):
        for (name, one), color in zip(scans.items(), _colors(len(scans)), strict=True):
            best = one.best(criterion)
            values = [getattr(result, criterion) for result in one.results]
            axis.plot(one.num_components, values, marker="o", color=color, label=name or None)
            where = next(i for i, result in enumerate(one.results) if result is best)
            axis.plot(
                one.num_components[where], values[where], "o", markersize=12, mfc="none", mec=color
            )
        axis.set_title(f"{criterion.upper()} (ring: lowest)", fontsize=11)
        axis.set_xlabel("number of components", fontsize=10)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("criterion (2 nats); lower is better", fontsize=10)
    if any(scans):
        axes[0, 0].legend(fontsize=9)
    return figure


def _column_names(width: int, names: Sequence[str] | None, data: Any) -> list[str]:
    if names is None:
        names = getattr(data, "columns", None)
    if names is None:
        return [f"column {i}" for i in range(width)]
    found = [str(name) for name in names]
    if len(found) != width:
        raise ValueError(f"names must name {width} columns, got {len(found)}")
    return found


def _choose(columns: Sequence[int | str], names: list[str]) -> list[int]:
    if isinstance(columns, str) or len(columns) != 2:
        raise ValueError(f"columns must be two numbers or names, got {columns!r}")
    chosen = []
    for column in columns:
        if isinstance(column, str):
            if column not in names:
                raise ValueError(f"no column {column!r}; the columns are {', '.join(names)}")
            chosen.append(names.index(column))
        elif 0 <= column < len(names):
            chosen.append(int(column))
        else:
            raise ValueError(f"columns are numbered 0 to {len(names) - 1}, got {column}")
    return chosen


def _colors(count: int) -> list[Any]:
    if count <= 10:
        return [f"C{k}" for k in range(count)]
    return list(plt.get_cmap("turbo")(np.linspace(0.05, 0.95, count)))


def _covariances(model: GaussianMixture) -> np.ndarray:
    """Covariance matrices ``(K, D, D)``, whatever their kind."""
    values = np.asarray(model.covariances, float)
    count, width = model.means.shape
    if model.covariance_type in ("full", "tied"):
        return np.broadcast_to(values, (count, width, width))
    variances = values if values.ndim == 2 else values[:, None]
    return np.broadcast_to(variances, (count, width))[:, :, None] * np.eye(width)


def _ellipse(mean: np.ndarray, covariance: np.ndarray, share: float, color: Any) -> Ellipse:
    """The ellipse that holds a share of a normal law in the plane."""
    values, vectors = np.linalg.eigh(covariance)
    radius = math.sqrt(-2.0 * math.log1p(-share))
    width, height = 2.0 * radius * np.sqrt(np.maximum(values, 0.0))
    angle = math.degrees(math.atan2(vectors[1, 0], vectors[0, 0]))
    return Ellipse(
        (float(mean[0]), float(mean[1])),
        width,
        height,
        angle=angle,
        fill=False,
        edgecolor=color,
        linewidth=1.6 if share == _SHARES[0] else 1.0,
    )


def _rows(model: GaussianMixture, data: Any) -> np.ndarray:
    table = np.asarray(data["x"] if isinstance(data, Mapping) else data, float)
    if table.ndim != 2 or table.shape[1] != model.means.shape[1]:
        raise ValueError(f"data must have shape (rows, {model.means.shape[1]}), got {table.shape}")
    return table


def _scatter(
    axis: Any, model: GaussianMixture, data: Any, chosen: list[int], colors: list[Any]
) -> None:
    table = _rows(model, data)
    if len(table) > _MAX_ROWS:
        table = table[np.linspace(0, len(table) - 1, _MAX_ROWS).astype(int)]
    likely = np.asarray(latent_mean(model, table)).argmax(axis=1)
    points = table[:, chosen]
    axis.scatter(*points.T, c=[colors[k] for k in likely], s=9, alpha=0.5, linewidths=0)


def _plot_densities(model: GaussianMixture, data: Any, name: str) -> Figure:
    """Densities of a mixture in one dimension, over a histogram of the data."""
    means, deviations = np.asarray(model.means)[:, 0], np.sqrt(_covariances(model)[:, 0, 0])
    low, high = (means - 4.0 * deviations).min(), (means + 4.0 * deviations).max()
    figure, axis = plt.subplots(figsize=(5.6, 3.6), layout="constrained")
    if data is not None:
        table = _rows(model, data)[:, 0]
        axis.hist(table, bins="auto", density=True, color="0.85", label="data")
    grid = np.linspace(low, high, 500)
    white = (grid[:, None] - means) / deviations
    parts = np.exp(-0.5 * white**2) / (deviations * math.sqrt(2.0 * math.pi))
    parts = parts * np.asarray(model.weights)
    for k, color in enumerate(_colors(model.num_components)):
        axis.plot(grid, parts[:, k], color=color, label=f"{k} ({float(model.weights[k]):.2f})")
    axis.plot(grid, parts.sum(axis=1), color="black", linewidth=1.0, label="mixture")
    axis.set_xlabel(name, fontsize=10)
    axis.set_ylabel("density (1 per unit)", fontsize=10)
    axis.set_title("components (weight)", fontsize=11)
    axis.legend(fontsize=9)
    return figure


def _plot_means(model: BernoulliMixture, shape: tuple[int, int] | None) -> Figure:
    """Probabilities of each component: images in a grid, or rows of a table."""
    probs, weights = np.asarray(model.probs), np.asarray(model.weights)
    order = np.argsort(-weights)
    found = shape or image_shape(model.sites["v"])
    if shape is not None and math.prod(shape) != probs.shape[1]:
        raise ValueError(f"{probs.shape[1]} units do not fill the shape {shape}")
    count = len(probs)
    title = f"P(unit = 1) of {count} components, largest weight first"
    if found is None:
        size = (2.6 + 0.12 * min(probs.shape[1], 80), 1.4 + 0.22 * min(count, 40))
        figure, axis = plt.subplots(figsize=size, layout="constrained")
        picture = axis.imshow(
            probs[order], aspect="auto", interpolation="nearest", vmin=0.0, vmax=1.0, cmap="gray_r"
        )
        labels = [f"{k} ({weights[k]:.2f})" for k in order]
        axis.set_yticks(range(count), labels, fontsize=8 if count < 30 else 5)
        axis.set_ylabel("component (weight)", fontsize=10)
        axis.set_xlabel("unit", fontsize=10)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        columns = min(10, count)
        size = (0.75 * columns + 1.9, 0.75 * -(-count // columns) + 0.7)
        figure, axis = plt.subplots(figsize=size, layout="constrained")
        images = probs[order].reshape(count, *found)
        picture = show_grid(axis, images, columns, vmin=0.0, vmax=1.0)
    axis.set_title(title, fontsize=11)
    figure.colorbar(picture, ax=axis, shrink=0.8).set_label("probability")
    return figure
