"""The pseudo-likelihood of data rows, which needs no log Z."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from pgm_energy.energy import EnergyModel
from pgm_energy.enumeration import (
    StateSpace,
    chunk_size,
    double,
    energy_of,
    map_chunks,
    require_concrete,
)
from pgm_energy.evaluation import free_energy, model_rows, without_latents
from pgm_energy.natural import Natural
from pgm_energy.probe import TOLERANCE, eager_float64, probe, structure_key
from pgm_energy.transforms import Marginal

__all__ = [
    "UnitPlan",
    "map_unit_logits",
    "minus_log_prob",
    "pseudo_log_likelihood",
    "pseudo_losses",
    "unit_plans",
]

Route = Literal["natural", "shifted", "energies"]


class UnitPlan(NamedTuple):
    """How the units of a data site are asked about, each given all others; hashable.

    Attributes
    ----------
    name
        The data site.
    route
        The verified short cut.
    space
        States of latent sites that have to be listed.
    chunk
        States or rows evaluated at once.
    """

    name: str
    route: Route
    space: StateSpace
    chunk: int

    def batch(self, site: Any) -> int:
        """Rows evaluated at once."""
        shifted = max(1, 4 * self.chunk // site.size)
        return {"natural": self.chunk, "shifted": shifted, "energies": 1}[self.route]


def unit_plans(model: EnergyModel) -> tuple[EnergyModel, tuple[UnitPlan, ...]]:
    """Return the model with latent sites summed out, and a plan for each data site.

    Raises
    ------
    ValueError
        On a real data site, and on latent units that interact and are too many to be listed.

    Notes
    -----
    Of the structure only, verified once: the parameters may be traced.
    """
    for name in model.data_sites:
        if not model.sites[name].is_discrete:
            raise ValueError(
                f"the pseudo-likelihood is for discrete data sites, {name!r} is real: use "
                "log_likelihood, or condition on it; to learn, use ScoreMatching"
            )
    reduced, space = without_latents(model)
    chunk = chunk_size(reduced)
    routes = {name: _route(reduced, name, space) for name in model.data_sites}
    return reduced, tuple(UnitPlan(name, route, space, chunk) for name, route in routes.items())


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
    unit_plans(model)  # refuses eagerly
    rows = model_rows(model, data)
    with jax.enable_x64(True):
        return -np.asarray(_compiled_losses(double(model), rows))


def pseudo_losses(model: EnergyModel, rows: Any) -> jax.Array:
    """Return minus the pseudo-log-likelihood of every row, nats, ``(N,)``.

    Parameters
    ----------
    model
        The energy model; may be traced, and differentiated with respect to.
    rows
        Checked raw values by data site, rows first.

    Notes
    -----
    In the floating type of the model's parameters; cost as :func:`pseudo_log_likelihood`.
    """
    reduced, plans = unit_plans(model)
    total = jnp.zeros(())
    for plan in plans:
        free = model.free_units(plan.name)
        weight = 1.0 if free is None else free.reshape(-1)

        def loss(logits: jax.Array, weight: Any = weight) -> jax.Array:
            return jnp.sum(weight * minus_log_prob(logits))

        total = total + map_unit_logits(reduced, rows, plan, loss)
    return total


_compiled_losses = jax.jit(pseudo_losses)


def map_unit_logits(
    model: EnergyModel, rows: Any, plan: UnitPlan, fn: Callable[[jax.Array], Any]
) -> Any:
    """Return a function of the unit logits of every row, rows first.

    Parameters
    ----------
    model
        From :func:`unit_plans`.
    rows
        Raw values by data site, rows first.
    plan
        Of the site whose units are meant.
    fn
        Of log p(unit in another state) - log p(unit as it is), nats, given the rest: an array
        ``(n, K - 1)``.

    Notes
    -----
    Can be differentiated with respect to the model; the backward pass evaluates each chunk of
    rows again instead of storing it.
    """

    def one(row: Any) -> Any:
        return fn(_unit_logits(model, row, plan))

    return map_chunks(one, rows, plan.batch(model.sites[plan.name]))


def minus_log_prob(logits: jax.Array) -> jax.Array:
    """Return -log p(unit as it is given the rest), nats, ``(n,)``, from its logits."""
    padded = jnp.concatenate([jnp.zeros((logits.shape[0], 1), logits.dtype), logits], axis=1)
    return logsumexp(padded, axis=1)


def _unit_logits(model: EnergyModel, values: Any, plan: UnitPlan) -> jax.Array:
    """Log p(unit in another state) - log p(unit as it is), given the rest, ``(n, K - 1)``."""
    name, route, space, chunk = plan
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

    now = free_energy(model, values, space, chunk)

    def unit(args: Any) -> jax.Array:
        i, candidates = args

        def logit(state: jax.Array) -> jax.Array:
            trial = {**values, name: raw.at[i].set(state).reshape(site.shape)}
            return now - free_energy(model, trial, space, chunk)

        return jax.vmap(logit)(candidates)

    batch = max(1, chunk // (space.size * max(1, num - 1)))
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
    assert rest is not None
    assert slope_rest is not None
    size, _, width = moved.shape
    slope_eta = slope_eta.reshape(*eta.shape, size, width)
    slope_rest = slope_rest.reshape(size, width)
    now = rest - jnp.sum(summed.log_normalizer(eta, precision))

    def logit(slope: jax.Array, own: jax.Array, step: jax.Array) -> jax.Array:
        there = summed.log_normalizer(eta + slope @ step, precision)
        return now - (rest + own @ step - jnp.sum(there))

    per_state = jax.vmap(logit, in_axes=(None, None, 0))
    return jax.vmap(per_state, in_axes=(-2, 0, 0))(slope_eta, slope_rest, moved)


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
    route_found: Route = exam._cache[key]
    return route_found


def _cheap_route(model: EnergyModel, name: str) -> Route:
    units = np.arange(model.sites[name].size, dtype=np.int32)[:, None]
    return "natural" if probe(model).verdict(name, units).holds else "energies"


def _agrees(model: EnergyModel, name: str, route: Route) -> bool:
    """Whether a route gives energy differences at random configurations, in float64."""
    exam = probe(model)
    count = int(np.clip(2**13 // model.sites[name].size, 4, 32))
    values = {key: value[:count] for key, value in exam.values.items()}
    plan = UnitPlan(name, route, StateSpace.of(model, []), chunk_size(model))

    @jax.jit
    def residual(model: EnergyModel, values: Any) -> jax.Array:
        def one(row: Any) -> jax.Array:
            quick = _unit_logits(model, row, plan)
            slow = _unit_logits(model, row, plan._replace(route="energies"))
            scale = jnp.maximum(1.0, jnp.abs(energy_of(model, row)))
            return jnp.max(jnp.abs(quick - slow) / jnp.maximum(scale, jnp.abs(slow)))

        return jnp.max(jax.lax.map(one, values))

    with eager_float64():
        worst = float(np.asarray(residual(exam.model, values)))
    return worst <= TOLERANCE
