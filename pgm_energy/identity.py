"""The identity behind every step of a sampler, and the derivatives that propose steps."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy.natural import derive_natural_parameters, select
from pgm_energy.sites import Real

if TYPE_CHECKING:
    from pgm_energy.energy import EnergyModel

__all__ = ["curvature_along", "energies_of", "joint_hessian", "residuals_of"]

Raw = dict[str, Any]


@functools.partial(jax.jit, static_argnames=("name", "kind", "coupled", "chunk"))
def residuals_of(
    model: EnergyModel,
    old: Raw,
    new: Any,
    index: Any,
    mask: Any,
    *,
    name: str,
    kind: str,
    coupled: bool,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """Relative residual of the identity per probe, and the energies."""
    site = model.sites[name]

    def energy(values: Any) -> jax.Array:
        return model.energy(**model.encode(values))

    def one(args: Any) -> tuple[jax.Array, jax.Array]:
        old, redraw, index, mask = args
        if coupled:
            natural = derive_natural_parameters(model, name, old, index, coupled=True)
        elif kind == "sequential":  # such a sweep carries the encoding, see the kernel
            carried = {**old, name: site.from_encoded(site.encode(old[name]))}
            natural = model.natural_parameters(name, carried, index)
        else:
            natural = model.natural_parameters(name, old, index)
        present = select(old[name], site, index)
        if index is None:
            block, after = redraw, redraw
        else:
            block = jnp.where(mask, redraw[index], present)
            position = jnp.where(mask, index, site.size)
            after = old[name].reshape(-1).at[position].set(block, mode="drop")
        start, end = energy(old), energy({**old, name: after.reshape(site.shape)})
        t_start, t_end = site.encode(present), site.encode(block)
        delta = t_end - t_start
        if isinstance(site, Real):
            precision: Any = natural.precision
            if coupled or site.is_matrix(natural.eta, precision):
                linear = site.quadratic(t_end, natural.eta, precision) - site.quadratic(
                    t_start, natural.eta, precision
                )
            else:
                linear = jnp.sum(natural.eta * delta - 0.5 * precision * (t_end**2 - t_start**2))
        else:
            linear = jnp.sum(natural.eta * delta)
            if kind == "sequential":
                couplings = _between_units(model.block_couplings(name, index))
                inside = jnp.tensordot(couplings, delta, axes=delta.ndim)
                linear += 0.5 * jnp.sum(inside * delta)
        scale = jnp.maximum(1.0, jnp.maximum(jnp.abs(start), jnp.abs(end)))
        scale = jnp.maximum(scale, jnp.sum(jnp.abs(natural.eta * delta)))
        residual = jnp.abs(end - start + linear) / scale
        if natural.rest is not None and (index is None or kind == "joint"):
            known = natural.rest - jnp.sum(natural.eta * t_start)
            if isinstance(site, Real):
                known = natural.rest - site.quadratic(t_start, natural.eta, precision)
            known_residual = jnp.abs(known - start) / scale
            residual = jnp.maximum(residual, jnp.where(jnp.all(mask), known_residual, 0.0))
        if index is not None and kind == "joint" and model.evaluates_whole_site(name):
            whole = select(model.natural_parameters(name, old).eta, site, index)
            residual = jnp.maximum(residual, jnp.max(jnp.abs(whole - natural.eta)) / scale)
        return residual, start

    return jax.lax.map(one, (old, new, index, mask), batch_size=chunk)


def _between_units(couplings: jax.Array) -> jax.Array:
    """Couplings of a panel without each unit's own: a unit's field must not depend on itself."""
    eye = jnp.eye(couplings.shape[0])
    if couplings.ndim == 4:
        eye = eye[:, None, :, None]
    return couplings * (1.0 - eye)


@functools.partial(jax.jit, static_argnames=("chunk",))
def energies_of(model: EnergyModel, values: Raw, *, chunk: int) -> jax.Array:
    """Return the energy of each configuration, nats."""
    return jax.lax.map(lambda v: model.energy(**model.encode(v)), values, batch_size=chunk)


@functools.partial(jax.jit, static_argnames=("name",))
def curvature_along(model: EnergyModel, point: Raw, direction: Any, *, name: str) -> jax.Array:
    """Hessian of a site's own units times a direction, at an encoded point."""

    def energy(x: jax.Array) -> jax.Array:
        return model.energy(**{**point, name: x})

    return jax.jvp(jax.grad(energy), (point[name],), (direction,))[1]


@functools.partial(jax.jit, static_argnames=("names",))
def joint_hessian(model: EnergyModel, point: Raw, *, names: tuple[str, ...]) -> jax.Array:
    """Dense Hessian over the encoded units of some sites."""
    shapes = [model.sites[name].encoded_shape for name in names]
    sizes = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]

    def energy(flat: jax.Array) -> jax.Array:
        parts = jnp.split(flat, sizes)
        own = {n: p.reshape(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return model.energy(**{**point, **own})

    flat = jnp.concatenate([jnp.ravel(point[name]) for name in names])

    def column(direction: jax.Array) -> jax.Array:
        return jax.jvp(jax.grad(energy), (flat,), (direction,))[1]

    return jax.lax.map(column, jnp.eye(flat.size, dtype=flat.dtype), batch_size=32)
