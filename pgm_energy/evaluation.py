"""Likelihoods of data rows, exact given log Z."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._data import as_rows
from pgm_energy.energy import EnergyModel
from pgm_energy.enumeration import (
    StateSpace,
    chunk_size,
    double,
    log_sum,
    require_concrete,
    sum_out,
    summable,
)
from pgm_energy.partition import log_partition as compute_log_partition

__all__ = ["Evaluation", "evaluate", "log_likelihood"]

#: Most latent states that are summed for every row.
ROW_STATES = 2**16


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Mean log-likelihood of data rows. Made by :func:`evaluate`.

    Attributes
    ----------
    mean
        Mean over rows at the estimate of log Z, nats per row.
    std_error
        Standard error of that mean over rows (not of log Z), nats; NaN for one row.
    lower, upper
        The mean at the upper and at the lower bound of log Z, nats: a figure counts at
        ``lower``.
    num_rows
        Number of rows.
    message
        What log Z was used, in words.
    """

    mean: float
    std_error: float
    lower: float
    upper: float
    num_rows: int
    message: str

    def __str__(self) -> str:
        return (
            f"{self.mean:.4f} +- {self.std_error:.4f} nats per row over {self.num_rows} rows, "
            f"between {self.lower:.4f} and {self.upper:.4f} by log Z: {self.message}"
        )


# ---- likelihood --------------------------------------------------------------------------------


def log_likelihood(model: EnergyModel, data: Any, log_partition: Any = None) -> np.ndarray:
    """Return log p(row) of every data row, nats: -F(row) - log Z, latent sites summed out.

    Parameters
    ----------
    model
        The energy model.
    data
        Raw rows ``(N, *shape)`` of the data site, or a dict of them by site.
    log_partition
        log Z: what :func:`log_partition` returned, or a number. None: the exact value, known or
        summed if that takes seconds.

    Returns
    -------
    numpy.ndarray
        ``(N,)``, float64.

    Raises
    ------
    ValueError
        On data outside the support (with row and column), empty data, a wrong shape; if log Z
        is not given and not within reach; if latent units interact and have more than 2^16
        states.

    Notes
    -----
    Exact given log Z. Cost per row: one free energy; where latent units interact, one energy
    for each of their states. A conditioned model gives the likelihood of the free units.

    Examples
    --------
    >>> import jax.numpy as jnp, pgm_energy as pgm
    >>> rbm = pgm.RBM(weights=jnp.zeros((3, 2)))
    >>> pgm.log_likelihood(rbm, [[0, 1, 1]]).round(4).tolist()  # 3 log(1/2)
    [-2.0794]
    """
    require_concrete(model, "log_likelihood")
    rows = model_rows(model, data)
    value = _log_z(model, log_partition)[0]
    return -_free_energies(model, rows) - value


def evaluate(model: EnergyModel, data: Any, log_partition: Any = None) -> Evaluation:
    """Return the mean log-likelihood of data rows with its bounds.

    Parameters
    ----------
    model, data, log_partition
        As for :func:`log_likelihood`.

    Raises
    ------
    ValueError
        As :func:`log_likelihood`.

    Notes
    -----
    ``lower`` uses the upper bound of log Z: an estimate of log Z that is too small flatters.

    Examples
    --------
    >>> import jax.numpy as jnp, pgm_energy as pgm
    >>> result = pgm.evaluate(pgm.RBM(weights=jnp.zeros((3, 2))), [[0, 1, 1], [0, 0, 0]])
    >>> round(result.mean, 4), result.num_rows
    (-2.0794, 2)
    """
    require_concrete(model, "evaluate")
    rows = model_rows(model, data)
    estimate, lower, upper, message = _log_z(model, log_partition)
    inner = -_free_energies(model, rows)
    count, mean = len(inner), float(inner.mean())
    spread = float(inner.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan
    return Evaluation(mean - estimate, spread, mean - upper, mean - lower, count, message)


def model_rows(model: EnergyModel, data: Any) -> dict[str, np.ndarray]:
    """Checked rows by data site; real ones keep their precision; clamped units must agree."""
    rows = as_rows(model, data)
    given = data if isinstance(data, Mapping) else {next(iter(rows)): data}
    for name in rows:
        site = model.sites[name]
        if not site.is_discrete:
            rows[name] = np.asarray(given[name], dtype=np.float64)
        free = model.free_units(name)
        if free is None:
            continue
        fillers = {k: jnp.full(s.shape, s.filler, s.dtype) for k, s in model.sites.items()}
        clamped = np.asarray(model.clamp(fillers)[name])
        differs = ~free & (rows[name].astype(clamped.dtype) != clamped)
        if differs.any():
            row, *place = (int(i) for i in np.argwhere(differs)[0])
            raise ValueError(
                f"data for site {name!r} differ from the value that {model.title} holds "
                f"fixed: {rows[name][(row, *place)]} at row {row}, column "
                f"{', '.join(map(str, place))}, fixed at {clamped[tuple(place)]}"
            )
    return rows


def _log_z(model: EnergyModel, given: Any) -> tuple[float, float, float, str]:
    """Estimate, lower, upper, message of what was given for log Z."""
    if given is None:
        try:
            given = compute_log_partition(model)
        except ValueError as error:
            raise ValueError(
                f"a likelihood needs log Z: give log_partition= (a number or what log_partition "
                f"returns); here it is not within reach: {error}"
            ) from error
    if hasattr(given, "estimate"):
        values = (float(given.estimate), float(given.lower), float(given.upper))
        message = str(given)
    else:
        inner = getattr(given, "log_partition", given)  # what exact() returns has it too
        try:
            values = (float(inner),) * 3
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"log_partition must be a number or what log_partition returns, got {given!r}"
            ) from error
        message = f"log Z = {values[0]:.6f} nats as given"
    if not math.isfinite(values[0]):
        raise ValueError(f"log_partition must be finite, got {values[0]}")
    return (*values, message)


def without_latents(model: EnergyModel) -> tuple[EnergyModel, StateSpace]:
    """The model with latent sites summed out, and the states of those that have to be listed."""
    latent = model.latent_sites
    if not latent:
        return model, StateSpace.of(model, [])
    summed = summable(model, latent)
    space = StateSpace.of(model, [name for name in latent if name not in summed])
    if space.size > ROW_STATES:
        raise ValueError(
            f"the latent units of {model.title} interact and have "
            f"2^{math.log2(space.size):.1f} states ({space.describe()}), more than the 2^16 that "
            "are summed for every row: estimate log_partition(condition(model, data site=row)) "
            "for single rows, or use fewer latent units"
        )
    return sum_out(model, summed), space


def _free_energies(model: EnergyModel, rows: dict[str, np.ndarray]) -> np.ndarray:
    """F(row) in float64; the pinned law of clamped real units taken out again."""
    reduced, space = without_latents(model)
    pinned = sum(
        int((~free).sum())
        for name in rows
        if not model.sites[name].is_discrete and (free := model.free_units(name)) is not None
    )
    with jax.enable_x64(True):
        values = _map_free_energies(double(reduced), rows, space=space, chunk=chunk_size(reduced))
        return np.asarray(values) - 0.5 * pinned * math.log(2.0 * math.pi)


def free_energy(model: EnergyModel, values: Any, space: StateSpace, chunk: int) -> jax.Array:
    if not space.sites:
        return model.energy(**model.encode(values))
    return -log_sum(model, space=space, chunk=chunk, given=values)


@functools.partial(jax.jit, static_argnames=("space", "chunk"))
def _map_free_energies(model: EnergyModel, rows: Any, *, space: StateSpace, chunk: int) -> Any:
    batch = max(1, chunk // space.size)
    return jax.lax.map(lambda row: free_energy(model, row, space, chunk), rows, batch_size=batch)
