"""Natural parameters of a block of units: the one quantity that every derivation uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from pgm_energy.sites import Real, Site

if TYPE_CHECKING:
    from pgm_energy.energy import EnergyModel

__all__ = ["Natural", "derive_natural_parameters", "select", "select_rows", "select_square"]

Values = Mapping[str, Any]


class Natural(NamedTuple):
    """Natural parameters of a block of units given everything else.

    The energy is ``rest - <eta, T(x_block)>`` (real units: ``+ x'Lx/2``), with ``T`` the
    encoding of the site.

    Attributes
    ----------
    eta
        Shape of the encoded block, nats.
    precision
        L for real units, one value per unit or a matrix over the flattened block; else None.
    rest
        The part of the energy that does not depend on the block, nats, or None if not known.
    """

    eta: jax.Array
    precision: jax.Array | None = None
    rest: jax.Array | None = None

    def energy(self, site: Site, block: jax.Array) -> jax.Array | None:
        """Energy (nats) with the raw values ``block`` in place; None if ``rest`` is not known."""
        if self.rest is None:
            return None
        encoded = site.encode(block)
        if isinstance(site, Real):
            precision = jnp.ones_like(self.eta) if self.precision is None else self.precision
            return self.rest - site.quadratic(encoded, self.eta, precision)
        return self.rest - jnp.sum(self.eta * encoded)


def select(array: jax.Array, site: Site, index: jax.Array | None) -> jax.Array:
    """Return the rows of an encoded or raw site-shaped array that belong to flat units."""
    if index is None:
        return array
    return array.reshape((site.size, *array.shape[len(site.shape) :]))[index]


def select_rows(matrix: jax.Array, index: jax.Array) -> jax.Array:
    """Return ``matrix[index]``, as a slice where the units are consecutive.

    Notes
    -----
    A panel of a sequential sweep is consecutive. On a CPU gathering its rows costs as much as the
    product they are for; a slice costs a quarter of it.
    """
    first, width = index[0], index.shape[0]
    return jax.lax.cond(
        _are_consecutive(index),
        lambda: jax.lax.dynamic_slice_in_dim(matrix, first, width),
        lambda: matrix[index],
    )


def select_square(matrix: jax.Array, index: jax.Array) -> jax.Array:
    """Return ``matrix[index][:, index]``, as a slice where the units are consecutive."""
    first, width = index[0], index.shape[0]
    return jax.lax.cond(
        _are_consecutive(index),
        lambda: jax.lax.dynamic_slice(matrix, (first, first), (width, width)),
        lambda: matrix[index[:, None], index],
    )


def _are_consecutive(index: jax.Array) -> jax.Array:
    return jnp.all(index == index[0] + jnp.arange(len(index), dtype=index.dtype))


def derive_natural_parameters(
    model: EnergyModel,
    name: str,
    values: Values,
    index: jax.Array | None = None,
    *,
    coupled: bool | None = None,
) -> Natural:
    """Return the natural parameters of a block by differentiating the energy.

    Notes
    -----
    One gradient of the energy; real units cost one Hessian-vector product more, and where they
    are coupled one per unit.
    """
    model.require_sites([name])
    site = model.sites[name]
    encoded = model.encode(values)
    current = encoded[name]

    def energy(x: jax.Array) -> jax.Array:
        return model.energy(**{**encoded, name: x})

    if site.is_discrete:
        value, gradient = jax.value_and_grad(energy)(current)
        eta = select(-gradient, site, index)
        rest = value + jnp.sum(eta * select(current, site, index))
        return Natural(eta, None, rest)

    if coupled is None:
        coupled = isinstance(site, Real) and site.coupled
    block = select(current, site, index)
    value = energy(current)
    if coupled:

        def embed(x: jax.Array) -> jax.Array:
            if index is None:
                return x.reshape(current.shape)
            return current.reshape(-1).at[index].set(x).reshape(current.shape)

        flat = block.reshape(-1)
        gradient = jax.grad(lambda x: energy(embed(x)))(flat)
        precision = jax.hessian(lambda x: energy(embed(x)))(flat)
        eta = (precision @ flat - gradient).reshape(block.shape)
    else:
        ones = jnp.ones_like(current)
        if index is not None:
            ones = jnp.zeros(site.size, current.dtype).at[index].set(1.0).reshape(current.shape)
        gradient, curvature = jax.jvp(jax.grad(energy), (current,), (ones,))
        precision = select(curvature, site, index)
        eta = precision * block - select(gradient, site, index)
    assert isinstance(site, Real)
    rest = value + site.quadratic(block, eta, precision)
    return Natural(eta, precision, rest)
