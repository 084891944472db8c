"""Pictures of units that form an image: samples, and the filters of hidden units."""

from __future__ import annotations

import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from pgm_energy.energy import EnergyModel
from pgm_energy.sites import Categorical, Site

__all__ = ["image_shape", "plot_filters", "plot_samples", "show_grid"]


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


def show_grid(
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


def as_images(values: Any, shape: tuple[int, int] | None, what: str) -> np.ndarray:
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


def _grey_range(images: np.ndarray) -> dict[str, Any]:
    """White and black: 0 and 1 (-1 and 1) for bits and probabilities, whatever is drawn."""
    low, high = float(np.nanmin(images)), float(np.nanmax(images))
    if not -1.0 <= low <= high <= 1.0:
        return {}
    return {"vmin": 0.0 if low >= 0.0 else -1.0, "vmax": 1.0}


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
    pictures = as_images(images, shape, "images")
    shown = pictures[:max_images]
    columns = min(num_columns, len(shown))
    size = (0.7 * columns + 0.3, 0.7 * -(-len(shown) // columns) + 0.6)
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    show_grid(axis, shown, columns, **_grey_range(shown))
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
    filters = as_images(weights.T[order], shape, "filters")
    limit = float(np.abs(filters).max()) or 1.0
    columns = min(10, len(filters))
    size = (0.75 * columns + 1.5, 0.75 * -(-len(filters) // columns) + 0.6)
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    picture = show_grid(axis, filters, columns, cmap="RdBu_r", vmin=-limit, vmax=limit)
    title = f"filters of {len(filters)} of {weights.shape[1]} hidden units, largest first"
    axis.set_title(title, fontsize=11)
    figure.colorbar(picture, ax=axis, shrink=0.8).set_label("weight (nats)")
    return figure
