"""Centred parameters: the optimiser sees the fields at the mean configuration, not at zero."""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pgm_energy._data import encode_rows
from pgm_energy._struct import StaticArray
from pgm_energy.energy import EnergyModel
from pgm_energy.learning.loop import Rows
from pgm_energy.natural import Values
from pgm_energy.probe import eager_float64, structure_key

__all__ = [
    "Fields",
    "centered_gradient",
    "couplings_only",
    "fields_of",
    "first_offsets",
    "moved",
    "moved_offsets",
    "optimizer_step",
    "tangent",
    "uncentered",
]

#: Largest relative residual of a field, and of a quadratic energy, in float64.
TOLERANCE = 1e-9
_CACHE_SIZE = 128


@dataclasses.dataclass(frozen=True)
class Fields:
    """Which parameters are fields, ``-dE/db = T(x)``; hashable. Made by :func:`fields_of`.

    Attributes
    ----------
    sites
        ``(name, encoded shape)`` of every site; encoded entries are numbered through all of them.
    leaves
        Per leaf of the model: the numbers of the entries that it holds the fields of, or None.
    is_quadratic
        Whether the energy is a polynomial of second degree in the encoded sites.
    """

    sites: tuple[tuple[str, tuple[int, ...]], ...]
    leaves: tuple[StaticArray | None, ...]
    is_quadratic: bool

    @property
    def can_center(self) -> bool:
        """Whether every unit has exactly one field, and the energy is pairwise."""
        size = sum(math.prod(shape) for _, shape in self.sites)
        numbers = np.sort(self._numbers())
        return self.is_quadratic and bool(np.array_equal(numbers, np.arange(size)))

    def pull(self, model: EnergyModel, offsets: Values) -> jax.Array:
        """Return ``-dE/dT`` at the offsets with all fields at zero, flat over all entries."""
        leaves, treedef = jax.tree.flatten(model)
        without = [
            leaf if units is None else jnp.zeros_like(leaf)
            for leaf, units in zip(leaves, self.leaves, strict=True)
        ]
        bare: Any = jax.tree.unflatten(treedef, without)
        slope = jax.grad(lambda encoded: bare.energy(**encoded))(dict(offsets))
        return -_flat(slope, self.sites)

    def shifted[M: EnergyModel](self, model: M, pull: jax.Array) -> M:
        """Return the model with this added to its fields."""
        leaves, treedef = jax.tree.flatten(model)
        moved = [
            leaf if units is None else leaf + _entries(pull, units).reshape(leaf.shape)
            for leaf, units in zip(leaves, self.leaves, strict=True)
        ]
        return jax.tree.unflatten(treedef, moved)

    def added[M: EnergyModel](self, model: M, values: Values) -> M:
        """Return the model with encoded values of some sites added to the fields of their units."""
        parts = {name: values.get(name, jnp.zeros(shape)) for name, shape in self.sites}
        return self.shifted(model, _flat(parts, self.sites))

    def has_all_of(self, site: str) -> bool:
        """Whether every unit of a site has one field."""
        start = 0
        for name, shape in self.sites:
            if name == site:
                wanted = np.arange(start, start + math.prod(shape))
                return bool(np.isin(wanted, self._numbers()).all())
            start += math.prod(shape)
        return False

    def _numbers(self) -> np.ndarray:
        """Entries that have a field, in the order of the leaves."""
        return np.concatenate([np.zeros(0, int), *(x.array for x in self.leaves if x is not None)])

    def expectations(self, gradient: EnergyModel) -> dict[str, jax.Array]:
        """Return the mean of T(x) by site, from the gradient of a mean (free) energy.

        Notes
        -----
        Exact and free of cost: ``-dF/db`` is E[T(x)], latent sites given the row included.
        """
        size = sum(math.prod(shape) for _, shape in self.sites)
        leaves = jax.tree.leaves(gradient)
        flat = jnp.zeros(size, jnp.result_type(*leaves))
        for leaf, units in zip(leaves, self.leaves, strict=True):
            if units is not None:
                flat = flat.at[units.array].set(-leaf.reshape(-1))
        out, start = {}, 0
        for name, shape in self.sites:
            out[name] = flat[start : start + math.prod(shape)].reshape(shape)
            start += math.prod(shape)
        return out


def _flat(values: Values, sites: tuple[tuple[str, tuple[int, ...]], ...]) -> jax.Array:
    return jnp.concatenate([jnp.reshape(values[name], -1) for name, _ in sites])


def _entries(flat: jax.Array, units: StaticArray) -> jax.Array:
    """Entries of a vector, as a slice where they are consecutive."""
    first, count = int(units.array[0]), len(units)
    if np.array_equal(units.array, np.arange(first, first + count)):
        return flat[first : first + count]
    return flat[units.array]


_CACHE: OrderedDict[Any, Fields] = OrderedDict()


def fields_of(model: EnergyModel) -> Fields:
    """Return which parameters of a model are fields; works while the model is traced.

    Notes
    -----
    Derived, and cached by structure: a leaf is a field where the gradient of the energy with
    respect to it equals entries of the encoded sites at random real configurations and generic
    parameters, in float64. That the energy is quadratic is told by its third differences.
    """
    key = structure_key(model)
    if key not in _CACHE:
        with eager_float64():
            _CACHE[key] = _derive(model.generic(jax.random.key(31)))
        while len(_CACHE) > _CACHE_SIZE:
            _CACHE.popitem(last=False)
    _CACHE.move_to_end(key)
    return _CACHE[key]


def _derive(model: EnergyModel) -> Fields:
    rng = np.random.default_rng(17)
    shapes = {name: site.encoded_shape for name, site in model.sites.items()}
    first, second = (
        {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
        for _ in range(2)
    )
    sites = tuple(shapes.items())

    @jax.jit
    def slopes(model: EnergyModel, values: Values) -> Any:
        return jax.grad(lambda model: model.energy(**values))(model)

    found: list[StaticArray | None] = []
    numbers = [np.asarray(_flat(values, sites)) for values in (first, second)]
    for one, other in zip(
        *(jax.tree.leaves(slopes(model, values)) for values in (first, second)), strict=True
    ):
        units = _matches(-np.asarray(one).reshape(-1), numbers[0])
        if units is not None and not _close(-np.asarray(other).reshape(-1), numbers[1][units]):
            units = None
        found.append(None if units is None else StaticArray(units))
    return Fields(sites, tuple(found), _is_quadratic(model, first, second))


def _matches(values: np.ndarray, numbers: np.ndarray) -> np.ndarray | None:
    """Which of the numbers the values are, or None if some is none of them."""
    if values.size == 0 or values.size > numbers.size:
        return None
    order = np.argsort(numbers)
    right = np.clip(np.searchsorted(numbers[order], values), 1, max(len(numbers) - 1, 1))
    near = order[np.stack([right - 1, np.minimum(right, len(numbers) - 1)])]
    best = np.where(
        np.abs(numbers[near[0]] - values) <= np.abs(numbers[near[1]] - values), near[0], near[1]
    )
    distinct = len(np.unique(best)) == len(best)
    return best if distinct and _close(values, numbers[best]) else None


def _close(first: np.ndarray, second: np.ndarray) -> bool:
    return bool(np.isfinite(first).all() and np.abs(first - second).max() <= TOLERANCE)


def _is_quadratic(model: EnergyModel, first: Values, second: Values) -> bool:
    """Third differences along a line of real configurations vanish."""

    @jax.jit
    def along(model: EnergyModel, steps: jax.Array) -> jax.Array:
        def energy(t: jax.Array) -> jax.Array:
            return model.energy(**{name: x + t * (second[name] - x) for name, x in first.items()})

        return jax.vmap(energy)(steps)

    energies = np.asarray(along(model, jnp.asarray([-1.0, 0.0, 1.0, 2.0])))
    third = energies @ np.array([-1.0, 3.0, -3.0, 1.0])
    return bool(
        np.isfinite(third) and abs(third) <= TOLERANCE * max(1.0, float(np.abs(energies).max()))
    )


def centered_gradient[M: EnergyModel](gradient: M, model: M, offsets: Values) -> M:
    """Return the gradient with respect to the centred parameters (without offsets: the own)."""
    if not offsets:
        return tangent(model, gradient)
    fields = fields_of(model)
    centered = fields.shifted(model, fields.pull(model, offsets))
    _, transposed = jax.vjp(lambda x: uncentered(x, offsets), centered)
    return tangent(model, transposed(gradient)[0])


def uncentered[M: EnergyModel](centered: M, offsets: Values) -> M:
    """Return the model with these centred parameters (without offsets: the same)."""
    if not offsets:
        return centered
    fields = fields_of(centered)
    return fields.shifted(centered, -fields.pull(centered, offsets))


def tangent[M: EnergyModel](model: M, gradient: M) -> M:
    """Return the part of a gradient along which parameters may move.

    A symmetric matrix has a symmetric gradient whatever form of the energy was differentiated;
    an optimiser with a step size per entry would otherwise come to rest elsewhere.
    """
    return jax.jvp(lambda model: model.project(), (model,), (gradient,))[1]


def moved[M: EnergyModel](model: M, updates: M, offsets: Values) -> M:
    """Return the model with updates added to its centred parameters, the nearest valid one."""
    # projected first: what is cut off the couplings must not leave its share in the fields
    new = optax.apply_updates(model, updates).project()
    if not offsets:
        return new
    fields = fields_of(model)
    return fields.shifted(new, fields.pull(model, offsets) - fields.pull(new, offsets))


def optimizer_step[M: EnergyModel](
    optimizer: optax.GradientTransformation,
    gradient: M,
    optimizer_state: Any,
    model: M,
    offsets: Values,
    **more: Any,
) -> tuple[M, Any]:
    """Return the model after one step of an optimiser that sees the centred parameters.

    Parameters
    ----------
    optimizer
        Any optax optimizer.
    gradient
        With respect to the centred parameters, see :func:`centered_gradient`.
    optimizer_state
        Of the step before.
    model
        The model before, in its own parameters.
    offsets
        Encoded values by site; without any the optimiser sees the model's own parameters.
    **more
        What else optimisers of this library look at.

    Notes
    -----
    Offsets may move between steps: the model is kept in its own parameters, which do not depend
    on them. With offsets that are means the steps do not depend on how the data are encoded:
    inverted bits give the inverted model. Cost: products of the couplings with one
    configuration, and the outer products of their gradient.

    References
    ----------
    G. Montavon and K.-R. Mueller (2012), Deep Boltzmann machines and the centering trick.
    J. Melchior, A. Fischer and L. Wiskott (2016), How to center deep Boltzmann machines.
    """
    centered = model
    if offsets:
        fields = fields_of(model)
        centered = fields.shifted(model, fields.pull(model, offsets))
    update = optax.with_extra_args_support(optimizer).update
    updates, optimizer_state = update(gradient, optimizer_state, centered, **more)
    return moved(model, updates, offsets), optimizer_state


def first_offsets(model: EnergyModel, rows: Rows, centered: bool | None) -> dict[str, jax.Array]:
    """Return means of the data, and of latent units without a field; nothing without centring.

    Parameters
    ----------
    model
        The model before learning.
    rows
        All data.
    centered
        True, False, or None: wherever it can be.

    Raises
    ------
    ValueError
        If ``centered`` is True and the model cannot be centred.
    """
    can_center = fields_of(model).can_center
    if centered and not can_center:
        raise ValueError(
            "centered=True needs a pairwise energy with one field (bias) per unit, that of "
            f"{model.title} is none: leave centered at None"
        )
    if not can_center or centered is False:
        return {}
    neutral = {name: site.mean(jnp.zeros(site.encoded_shape)) for name, site in model.sites.items()}
    return {**neutral, **_data_means(model, rows)}


@jax.jit
def _data_means(model: EnergyModel, rows: Rows) -> dict[str, jax.Array]:
    """Weighted means of the encoded data, by site; of those that are known."""
    encoded = encode_rows(model, rows.values)
    means = {}
    for name, value in encoded.items():
        site = model.sites[name]
        known = (rows.known or {}).get(name, jnp.ones(value.shape[: 1 + len(site.shape)], bool))
        weight = jnp.expand_dims(rows.weights, tuple(range(1, known.ndim))) * known
        weight = weight.reshape(weight.shape + (1,) * len(site.event))
        # a unit that is never known keeps the mean of a unit without a field
        neutral = site.mean(jnp.zeros(site.encoded_shape))
        total = jnp.sum(weight, axis=0)
        mean = jnp.sum(weight * value, axis=0) / jnp.where(total > 0, total, 1.0)
        means[name] = jnp.where(total > 0, mean, neutral)
    return means


def moved_offsets(
    offsets: Values, model: EnergyModel, expectations: Values, rate: jax.Array
) -> dict[str, jax.Array]:
    """Return offsets with those of latent sites moved towards their means; data keep theirs."""
    return {
        name: old + rate * (expectations[name] - old) if name in model.latent_sites else old
        for name, old in offsets.items()
    }


def couplings_only(model: Any) -> Any:
    """Return a mask over the parameters of a model: False for fields (biases), True for others.

    Parameters
    ----------
    model
        An energy model, or what has its structure: a gradient, optimiser updates.

    Notes
    -----
    What optax calls ``mask``, to decay couplings alone. Derived: a field is a parameter whose
    derivative of -E is T(x) of one unit.

    Examples
    --------
    >>> import jax.numpy as jnp, optax, pgm_energy as pgm
    >>> mask = pgm.couplings_only(pgm.RBM(weights=jnp.zeros((3, 2))))
    >>> mask.weights, mask.visible_bias, mask.hidden_bias
    (True, False, False)
    >>> decay = optax.add_decayed_weights(1e-4, mask=pgm.couplings_only)  # L2
    """
    treedef = jax.tree.structure(model)
    return jax.tree.unflatten(treedef, [units is None for units in fields_of(model).leaves])
