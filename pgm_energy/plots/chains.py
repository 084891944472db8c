"""Pictures of a comparison: one panel per sampler, on scales that can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pgm_energy.plots.images import image_shape, show_grid

__all__ = ["KINDS", "plot_comparison"]

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
        show_grid(axis, images, len(times), model.sites[site])
        axis.set_title(name, fontsize=11)
        axis.set_xlabel("draws, first to last", fontsize=10)
    axes[0, 0].set_ylabel("chains", fontsize=10)
    return figure
