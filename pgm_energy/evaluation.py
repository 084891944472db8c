"""Likelihoods of data rows: exact given log Z, and the pseudo-likelihood, which needs none."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from pgm_energy._data import as_rows
from pgm_energy.energy import EnergyModel
from pgm_energy.enumeration import (
    StateSpace,
    chunk_size,
    double,
    energy_of,
    log_sum,
    require_concrete,
    sum_out,
    summable,
)
from pgm_energy.partition import log_partition as compute_log_partition
from pgm_energy.probe import TOLERANCE, probe, structure_key
from pgm_energy.natural import Natural
from pgm_energy.transforms import Marginal

__all__ = ["Evaluation", "evaluate", "log_likelihood", "pseudo_log_likelihood"]

#: Most latent states that are summed for every row.
ROW_STATES = 2**16

Route = Literal["natural", "shifted", "energies"]


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
    rows = _rows(model, data)
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
    rows = _rows(model, data)
    estimate, lower, upper, message = _log_z(model, log_partition)
    inner = -_free_energies(model, rows)
    count, mean = len(inner), float(inner.mean())
    spread = float(inner.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan
    return Evaluation(mean - estimate, spread, mean - upper, mean - lower, count, message)


def _rows(model: EnergyModel, data: Any) -> dict[str, np.ndarray]:
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
                f"data for site {name!r} differ from the value that {type(model).__name__} holds "
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


def _without_latents(model: EnergyModel) -> tuple[EnergyModel, StateSpace]:
    """The model with latent sites summed out, and the states of those that have to be listed."""
    latent = model.latent_sites
    if not latent:
        return model, StateSpace.of(model, [])
    summed = summable(model, latent)
    space = StateSpace.of(model, [name for name in latent if name not in summed])
    if space.size > ROW_STATES:
        raise ValueError(
            f"the latent units of {type(model).__name__} interact and have "
            f"2^{math.log2(space.size):.1f} states ({space.describe()}), more than the 2^16 that "
            "are summed for every row: estimate log_partition(condition(model, data site=row)) "
            "for single rows, or use fewer latent units"
        )
    return sum_out(model, summed), space


def _free_energies(model: EnergyModel, rows: dict[str, np.ndarray]) -> np.ndarray:
    """F(row) in float64; the pinned law of clamped real units taken out again."""
    reduced, space = _without_latents(model)
    pinned = sum(
        int((~free).sum())
        for name in rows
        if not model.sites[name].is_discrete and (free := model.free_units(name)) is not None
    )
    with jax.enable_x64(True):
        values = _map_free_energies(
            double(reduced), rows, space=space, chunk=chunk_size(reduced)
        )
        return np.asarray(values) - 0.5 * pinned * math.log(2.0 * math.pi)


def _free_energy(model: EnergyModel, values: Any, space: StateSpace, chunk: int) -> jax.Array:
    if not space.sites:
        return energy_of(model, values)
    return -log_sum(model, space=space, chunk=chunk, given=values)


@functools.partial(jax.jit, static_argnames=("space", "chunk"))
def _map_free_energies(model: EnergyModel, rows: Any, *, space: StateSpace, chunk: int) -> Any:
    batch = max(1, chunk // space.size)
    return jax.lax.map(
        lambda row: _free_energy(model, row, space, chunk), rows, batch_size=batch
    )


# ---- pseudo-likelihood -------------------------------------------------------------------------


def pseudo_log_likelihood(model: EnergyModel, data: Any) -> np.ndarray:
    """Return sum_i log p(v_i given the other data units) of every row, nats; no log Z needed.

    Parameters
    ----------
    model
        The energy model; its data sites are discrete.
    data
        Raw rows ``(N, *shape)`` of the data site, or a dict of them by site.

    Returns
    -------
    numpy.ndarray
        ``(N,)``, float64.

    Raises
    ------
    ValueError
        On a real data site; on bad data and on latent units that cannot be summed out, as
        :func:`log_likelihood`.

    Notes
    -----
    Exact: every unit, latent sites summed out. Cost per row: where the energy is affine in each
    unit one product for all units; with D data units and H latent units that do not interact
    D x H log-normalisers (the natural parameters are shifted, not computed again); else D
    free energies for each further state of a unit. Which of these holds is verified, not
    assumed.

    References
    ----------
    J. Besag (1975), Statistical analysis of non-lattice data.

    Examples
    --------
    >>> import jax.numpy as jnp, pgm_energy as pgm
    >>> rbm = pgm.RBM(weights=jnp.zeros((3, 2)))
    >>> pgm.pseudo_log_likelihood(rbm, [[0, 1, 1]]).round(4).tolist()  # 3 log(1/2)
    [-2.0794]
    """
    require_concrete(model, "pseudo_log_likelihood")
    for name in model.data_sites:
        if not model.sites[name].is_discrete:
            raise ValueError(
                f"the pseudo-likelihood is for discrete data sites, {name!r} is real: use "
                "log_likelihood, or condition on it"
            )
    rows = _rows(model, data)
    reduced, space = _without_latents(model)
    total = np.zeros(len(next(iter(rows.values()))))
    for name in rows:
        route = _route(reduced, name, space)
        free = model.free_units(name)
        weight = np.ones(model.sites[name].size) if free is None else free.reshape(-1) * 1.0
        chunk = chunk_size(reduced)
        with jax.enable_x64(True):
            scores = _map_unit_scores(
                double(reduced), rows, weight, name=name, route=route, space=space, chunk=chunk
            )
            total += np.asarray(scores)
    return total


def _unit_logits(
    model: EnergyModel, values: Any, name: str, route: Route, space: StateSpace, chunk: int
) -> jax.Array:
    """Log p(unit in another state) - log p(unit as it is), given the rest, ``(n, K - 1)``."""
    site = model.sites[name]
    states = jnp.asarray(site.states)
    num = len(site.states)
    raw = jnp.asarray(values[name]).reshape(-1)
    here = jnp.argmax(raw[:, None] == states, axis=1)
    others = states[(here[:, None] + jnp.arange(1, num)) % num].astype(raw.dtype)
    width = max(1, math.prod(site.event))
    moved = site.encode(others).reshape(site.size, num - 1, width)
    moved = moved - site.encode(raw).reshape(site.size, 1, width)

    if route == "natural":
        eta = model.natural_parameters(name, values).eta.reshape(site.size, 1, width)
        return jnp.sum(eta * moved, axis=-1)
    if route == "shifted":
        return _shifted_logits(model, values, name, moved)

    now = _free_energy(model, values, space, chunk)

    def unit(args: Any) -> jax.Array:
        i, candidates = args

        def logit(state: jax.Array) -> jax.Array:
            trial = {**values, name: raw.at[i].set(state).reshape(site.shape)}
            return now - _free_energy(model, trial, space, chunk)

        return jax.vmap(logit)(candidates)

    batch = max(1, chunk // (space.size * (num - 1)))
    return jax.lax.map(unit, (jnp.arange(site.size), others), batch_size=batch)


def _shifted_logits(model: Any, values: Any, name: str, moved: jax.Array) -> jax.Array:
    """Free-energy differences by shifting the natural parameters of the summed site.

    They are affine in each unit, so changing unit i adds column i of one Jacobian; for a
    restricted Boltzmann machine that is the weight matrix, the same for all rows.
    """
    encoded = model.encode(values)
    summed = model.model.sites[model.site]

    def natural(x: jax.Array) -> Natural:
        values = {**encoded, name: x}
        found = model._natural(model._inner_values(values))
        if found.rest is not None:
            return found
        normalizer = jnp.sum(summed.log_normalizer(found.eta, found.precision))
        return found._replace(rest=model.energy(**values) + normalizer)

    x = encoded[name]
    eta, precision, rest = natural(x)
    slope_eta, _, slope_rest = jax.jacrev(natural)(x)
    size, _, width = moved.shape
    slope_eta = slope_eta.reshape(*eta.shape, size, width)
    slope_rest = slope_rest.reshape(size, width)
    now = rest - jnp.sum(summed.log_normalizer(eta, precision))

    def logit(slope: jax.Array, own: jax.Array, step: jax.Array) -> jax.Array:
        there = summed.log_normalizer(eta + slope @ step, precision)
        return now - (rest + own @ step - jnp.sum(there))

    per_state = jax.vmap(logit, in_axes=(None, None, 0))
    return jax.vmap(per_state, in_axes=(-2, 0, 0))(slope_eta, slope_rest, moved)


def _row_score(
    model: EnergyModel, row: Any, weight: Any, name: str, route: Route, space: Any, chunk: int
) -> jax.Array:
    logits = _unit_logits(model, row, name, route, space, chunk)
    padded = jnp.concatenate([jnp.zeros((logits.shape[0], 1)), logits], axis=1)
    return -jnp.sum(weight * logsumexp(padded, axis=1))


@functools.partial(jax.jit, static_argnames=("name", "route", "space", "chunk"))
def _map_unit_scores(
    model: EnergyModel,
    rows: Any,
    weight: Any,
    *,
    name: str,
    route: Route,
    space: StateSpace,
    chunk: int,
) -> jax.Array:
    site = model.sites[name]
    batch = {"natural": chunk, "shifted": max(1, 4 * chunk // site.size), "energies": 1}[route]
    return jax.lax.map(
        lambda row: _row_score(model, row, weight, name, route, space, chunk),
        rows,
        batch_size=batch,
    )


# ---- which short cut holds ---------------------------------------------------------------------


def _route(model: EnergyModel, name: str, space: StateSpace) -> Route:
    """The fastest way to all unit logits that agrees with energy differences on probes."""
    if space.sites or model.sites[name].size > 2**14:
        return "energies" if space.sites else _cheap_route(model, name)
    exam = probe(model)
    key = ("unit logits", name, structure_key(model))
    if key not in exam._cache:
        found: Route = "energies"
        candidates: list[Route] = [_cheap_route(model, name)]
        if candidates == ["energies"] and isinstance(model, Marginal):
            candidates = ["shifted"]
        for route in candidates:
            if route == "energies" or _agrees(model, name, route):
                found = route
                break
        exam._cache[key] = found
    return exam._cache[key]  # type: ignore[no-any-return]


def _cheap_route(model: EnergyModel, name: str) -> Route:
    units = np.arange(model.sites[name].size, dtype=np.int32)[:, None]
    return "natural" if probe(model).verdict(name, units).holds else "energies"


def _agrees(model: EnergyModel, name: str, route: Route) -> bool:
    """Whether a route gives energy differences at random configurations, in float64."""
    exam = probe(model)
    count = int(np.clip(2**13 // model.sites[name].size, 4, 32))
    values = {key: value[:count] for key, value in exam.values.items()}
    space, chunk = StateSpace.of(model, []), chunk_size(model)

    @jax.jit
    def residual(model: EnergyModel, values: Any) -> jax.Array:
        def one(row: Any) -> jax.Array:
            quick = _unit_logits(model, row, name, route, space, chunk)
            slow = _unit_logits(model, row, name, "energies", space, chunk)
            scale = jnp.maximum(1.0, jnp.abs(energy_of(model, row)))
            return jnp.max(jnp.abs(quick - slow) / jnp.maximum(scale, jnp.abs(slow)))

        return jnp.max(jax.lax.map(one, values))

    with jax.enable_x64(True):
        worst = float(np.asarray(residual(exam.model, values)))
    return worst <= TOLERANCE
