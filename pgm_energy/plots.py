"""Pictures: chains by ArviZ, samples, filters and training curves by matplotlib."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pgm_energy.energy import EnergyModel
from pgm_energy.sites import Categorical, Site

__all__ = [
    "image_shape",
    "plot_comparison",
    "plot_filters",
    "plot_samples",
    "plot_training",
]

_ARVIZ = {
    "trace": az.plot_trace,
    "rank": az.plot_rank,
    "ess": az.plot_ess_evolution,
    "autocorrelation": az.plot_autocorr,
}
#: ArviZ labels what it can; units and the quantity are ours to say. (x, y) axes.
_LABELS = {
    "trace": ("draw", "{quantity}"),
    "rank": ("fractional rank of the {quantity}", "ECDF difference"),
    "ess": ("draws, all chains", "effective sample size (count)"),
    "autocorrelation": ("lag (draws)", "autocorrelation"),
}
KINDS = (*_ARVIZ, "means", "samples")
_METRIC_UNITS = {
    "pseudo_log_likelihood": "nats per row",
    "log_likelihood": "nats",
    "free_energy_gap": "nats",
    "chain_free_energy": "nats",
    "reconstruction_error": "mean square per unit",
    "gradient_norm": "nats per parameter unit",
}


def image_shape(site: Site) -> tuple[int, int] | None:
    """Return height and width if a site's units form an image, else None.

    A site of two dimensions is one, and so is a vector whose length is a square of at least 9.

    Examples
    --------
    >>> from pgm_energy import Binary
    >>> image_shape(Binary(64)), image_shape(Binary(10))
    ((8, 8), None)
    """
    if len(site.shape) == 2:
        return site.shape[0], site.shape[1]
    side = math.isqrt(site.size)
    if len(site.shape) == 1 and side >= 3 and side * side == site.size:
        return side, side
    return None


# ---- comparisons -------------------------------------------------------------------------------


def plot_comparison(
    comparison: Any, kind: str = "trace", *, site: str | None = None, unit: int | None = None
) -> Figure:
    """Return a figure with one panel per sampler of a comparison.

    Parameters
    ----------
    comparison
        What :func:`pgm_energy.compare` returned.
    kind
        ``trace``, ``rank``, ``ess``, ``autocorrelation``, ``means`` or ``samples``.
    site
        For ``samples`` the site to show (default: the first image-shaped data site). For ArviZ's
        kinds a site instead of the energy.
    unit
        Flat index of the unit of that site (default: the worst mixing one of all samplers).

    Raises
    ------
    ValueError
        On an unknown kind, site or unit, or samples of a site that is no image.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")
    if site is not None:
        comparison.model.require_sites([site])
    if kind == "samples":
        return _plot_comparison_samples(comparison, site)
    if kind == "means":
        return _plot_means(comparison, site)
    draws, quantity = _draws(comparison, site, unit)
    return _plot_chains(draws, kind, quantity)


def _draws(
    comparison: Any, site: str | None, unit: int | None
) -> tuple[dict[str, np.ndarray], str]:
    """One quantity's draws ``(chain, draw)`` by sampler, and its name."""
    trees = comparison.datatrees
    if site is None:
        values = {name: tree["sample_stats"]["energy"].values for name, tree in trees.items()}
        return values, "energy (nats)"
    size = comparison.model.sites[site].size
    if unit is None:
        unit = _worst_unit(comparison, site)
    if not 0 <= unit < size:
        raise ValueError(f"site {site!r} has units 0 to {size - 1}, got unit {unit}")
    values = {}
    for name, tree in trees.items():
        draws = tree["posterior"][site].values
        values[name] = draws.reshape(*draws.shape[:2], -1)[..., unit]
    return values, f"{site}[{unit}]"


def _worst_unit(comparison: Any, site: str) -> int:
    """The unit with the smallest bulk ESS of any sampler, among those that move."""
    size = comparison.model.sites[site].size
    tables = [d[site].ess_bulk.reshape(size, -1) for d in comparison.diagnoses.values()]
    ess = np.concatenate(tables, axis=1)
    return int(np.argmin(np.where(np.isnan(ess), np.inf, ess).min(axis=1)))


def _plot_chains(draws: Mapping[str, np.ndarray], kind: str, quantity: str) -> Figure:
    names = {f"s{i}": name for i, name in enumerate(draws)}  # ArviZ's own titles are replaced
    posterior = {key: np.asarray(draws[name], float) for key, name in names.items()}
    if kind == "trace":
        posterior = {key: value[:16] for key, value in posterior.items()}
    tree = az.from_dict({"posterior": posterior})
    collection = _ARVIZ[kind](tree, backend="matplotlib", col_wrap=len(names))
    figure = collection.viz["figure"].item()
    figure.set_size_inches(1.0 + 3.4 * len(names), 3.2)
    axes = [collection.viz["plot"][key].item() for key in names]
    x_label, y_label = _LABELS[kind]
    x_label = x_label.format(quantity=quantity.removesuffix(" (nats)"))
    y_label = y_label.format(quantity=quantity)
    for axis, name in zip(axes, names.values(), strict=True):
        axis.set_title(name, fontsize=11)
        axis.set_xlabel(x_label, fontsize=10)
    axes[0].set_ylabel(y_label, fontsize=10)
    for axis in axes[1:]:
        axis.set_ylabel("")
    if kind in ("trace", "ess"):  # one scale, or the panels cannot be compared
        low = min(axis.get_ylim()[0] for axis in axes)
        high = max(axis.get_ylim()[1] for axis in axes)
        for axis in axes:
            axis.set_ylim(low, high)
    for axis in axes:
        # the test of uniformity assumes independent draws, which these are not
        for text in list(axis.texts):
            text.remove()
        axis.xaxis.set_major_locator(MaxNLocator(4))
    if kind == "ess":
        first = next(iter(names))
        for part in ("ess_bulk", "ess_tail"):
            collection.viz[part][first].item().set_label(part.removeprefix("ess_"))
        axes[0].legend(fontsize=9, loc="upper left")
    figure.set_layout_engine("constrained")
    return figure


def _plot_means(comparison: Any, only: str | None) -> Figure:
    """Means of every unit against the exact ones, or against the best sampler's."""
    summary = comparison.summary
    exact = comparison.exact_means
    best = summary["ess_min"].idxmax()
    against = "exact mean" if exact is not None else f"mean by {best}"
    figure, axes = plt.subplots(
        1,
        len(summary),
        figsize=(1.0 + 3.4 * len(summary), 3.4),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for axis, name in zip(axes[0], summary.index, strict=True):
        for site in [only] if only is not None else comparison.model.sites:
            mine = comparison.diagnoses[name][site]
            reference = (
                np.asarray(exact[site]).reshape(-1)
                if exact is not None
                else comparison.diagnoses[best][site].mean
            )
            axis.errorbar(
                reference,
                mine.mean - reference,
                yerr=2.0 * np.nan_to_num(mine.mcse),
                fmt="o",
                markersize=3,
                linewidth=0.8,
                label=f"site {site}",
            )
        axis.axhline(0.0, color="0.4", linewidth=0.8)
        axis.set_title(name, fontsize=11)
        axis.set_xlabel(against, fontsize=10)
    axes[0, 0].set_ylabel(f"mean - {against}\n(bars: 2 MCSE)", fontsize=10)
    axes[0, 0].legend(fontsize=9)
    return figure


def _plot_comparison_samples(comparison: Any, site: str | None) -> Figure:
    model = comparison.model
    if site is None:
        candidates = [*model.data_sites, *model.latent_sites]
        images = [name for name in candidates if image_shape(model.sites[name]) is not None]
        if not images:
            raise ValueError(
                f"{type(model).__name__} has no image-shaped site (two dimensions, or a square "
                "number of units)"
            )
        site = images[0]
    shape = image_shape(model.sites[site])
    if shape is None:
        raise ValueError(f"site {site!r} of shape {model.sites[site].shape} is no image")
    trees = comparison.datatrees
    figure, axes = plt.subplots(
        1, len(trees), figsize=(1.0 + 3.4 * len(trees), 4.5), squeeze=False, layout="constrained"
    )
    for axis, (name, tree) in zip(axes[0], trees.items(), strict=True):
        draws = tree["posterior"][site].values
        chains = np.linspace(0, len(draws) - 1, min(len(draws), 6)).astype(int)
        times = np.linspace(0, draws.shape[1] - 1, min(draws.shape[1], 6)).astype(int)
        images = draws[chains][:, times].reshape(-1, *shape)
        _show_grid(axis, images, len(times), model.sites[site])
        axis.set_title(name, fontsize=11)
        axis.set_xlabel("draws, first to last", fontsize=10)
    axes[0, 0].set_ylabel("chains", fontsize=10)
    return figure


# ---- images ------------------------------------------------------------------------------------


def _show_grid(
    axis: Any, images: np.ndarray, columns: int, site: Site | None = None, **options: Any
) -> Any:
    """Draw images in a grid, a thin frame between them."""
    count, height, width = images.shape
    rows = -(-count // columns)
    canvas = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1), np.nan)
    for number, image in enumerate(images):
        top, left = divmod(number, columns)
        top, left = top * (height + 1) + 1, left * (width + 1) + 1
        canvas[top : top + height, left : left + width] = image
    if site is not None and site.is_discrete:
        options.setdefault("vmin", float(site.states.min()))
        options.setdefault("vmax", float(site.states.max()))
    options.setdefault("cmap", "viridis" if isinstance(site, Categorical) else "gray_r")
    axis.set_facecolor("0.75")
    picture = axis.imshow(canvas, interpolation="nearest", **options)
    axis.set_xticks([])
    axis.set_yticks([])
    return picture


def _as_images(values: Any, shape: tuple[int, int] | None, what: str) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim == 3 and shape is None:
        return values
    if values.ndim < 2 or values.size == 0:
        raise ValueError(f"{what} must be rows of pixels, got shape {values.shape}")
    pixels = math.prod(values.shape[1:])
    if shape is None:
        side = math.isqrt(pixels)
        if side * side != pixels:
            raise ValueError(
                f"{what} have {pixels} pixels, which is no square: give shape=(height, width)"
            )
        shape = (side, side)
    if math.prod(shape) != pixels:
        raise ValueError(f"{what} have {pixels} pixels, which do not fill the shape {shape}")
    return values.reshape(len(values), *shape)


def plot_samples(
    images: Any,
    shape: tuple[int, int] | None = None,
    *,
    num_columns: int = 10,
    max_images: int = 100,
    title: str = "samples",
) -> Figure:
    """Return a picture of samples (or data) as images in a grid.

    Parameters
    ----------
    images
        Rows of pixels ``(N, pixels)`` or images ``(N, height, width)``.
    shape
        Height and width; found where the number of pixels is a square.
    num_columns, max_images
        Images in a row, and in all.
    title
        Title of the figure.

    Raises
    ------
    ValueError
        If the pixels do not fill the shape.

    Examples
    --------
    >>> import numpy as np
    >>> figure = plot_samples(np.eye(9))
    >>> figure.axes[0].get_title()
    'samples (9 of 9)'
    """
    pictures = _as_images(images, shape, "images")
    shown = pictures[:max_images]
    columns = min(num_columns, len(shown))
    size = (0.7 * columns + 0.3, 0.7 * -(-len(shown) // columns) + 0.6)
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    _show_grid(axis, shown, columns)
    axis.set_title(f"{title} ({len(shown)} of {len(pictures)})", fontsize=11)
    return figure


def plot_filters(
    model: EnergyModel, shape: tuple[int, int] | None = None, *, max_filters: int = 100
) -> Figure:
    """Return a picture of the weights of each hidden unit, seen as an image of the visible ones.

    Parameters
    ----------
    model
        A model with ``weights[visible, hidden]``, such as an RBM.
    shape
        Height and width of the visible units; found where their number is a square.
    max_filters
        Hidden units shown, those with the largest weights first.

    Raises
    ------
    ValueError
        If the model has no such weights, or the visible units do not fill the shape.

    Examples
    --------
    >>> import jax.numpy as jnp, pgm_energy as pgm
    >>> figure = plot_filters(pgm.RBM(weights=jnp.ones((9, 2))))
    >>> figure.axes[1].get_ylabel()
    'weight (nats)'
    """
    weights = np.asarray(getattr(model, "weights", np.zeros(0)))
    visible = model.sites.get("v")
    hidden = model.sites.get("h")
    layers = None if visible is None or hidden is None else (*visible.shape, *hidden.shape)
    if weights.ndim != 2 or weights.shape != layers:
        raise ValueError(
            f"plot_filters shows weights[visible, hidden], {type(model).__name__} has none of "
            "two dimensions"
        )
    order = np.argsort(-np.linalg.norm(weights, axis=0))[:max_filters]
    filters = _as_images(weights.T[order], shape, "filters")
    limit = float(np.abs(filters).max()) or 1.0
    columns = min(10, len(filters))
    size = (0.75 * columns + 1.5, 0.75 * -(-len(filters) // columns) + 0.6)
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    picture = _show_grid(axis, filters, columns, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axis.set_title(f"filters of {len(filters)} of {weights.shape[1]} hidden units", fontsize=11)
    figure.colorbar(picture, ax=axis, shrink=0.8).set_label("weight (nats)")
    return figure


# ---- training ----------------------------------------------------------------------------------


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
