"""Scans over units that keep the chains on the last axis when they are mapped over chains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["scan_units", "with_chains_last"]

#: ``body(constants, carry, x) -> (carry, y)``
Body = Callable[[Any, Any, Any], tuple[Any, Any]]


def with_chains_last(
    function: Callable[..., Any], fixed: tuple[int, ...] = ()
) -> Callable[..., Any]:
    """Return a function that, when mapped, gives itself the mapped axis as the last one.

    Parameters
    ----------
    function
        Of arrays with any number of trailing axes over which it works element by element;
        arguments that are not mapped have length 1 there.
    fixed
        Positions of arguments that never get trailing axes (indices, matrices). Where one of
        them is mapped all the same, an ordinary ``vmap`` takes over.

    Notes
    -----
    ``vmap`` puts the mapped axis first, so that one unit of all chains lies scattered in memory,
    a cache line per chain. With the chains last a unit's update is one contiguous vector
    operation: five times faster for panels of 32 units and 64 chains. Derivatives are those of
    ``function`` in the ordinary orientation.
    """
    mapped = jax.custom_batching.custom_vmap(function)
    # custom_vmap alone has no reverse-mode derivative
    differentiable = jax.custom_jvp(lambda *args: mapped(*args))
    differentiable.defjvp(lambda args, tangents: jax.jvp(function, args, tangents))

    @mapped.def_vmap
    def _rule(size: int, is_mapped: Any, *args: Any) -> tuple[Any, Any]:
        if any(any(jax.tree.leaves(is_mapped[i])) for i in fixed):
            axes = jax.tree.map(lambda flag: 0 if flag else None, is_mapped)
            out = jax.vmap(function, in_axes=tuple(axes), axis_size=size)(*args)
            return out, jax.tree.map(lambda _: True, out)

        def trailing(x: jax.Array, flag: bool) -> jax.Array:
            return jnp.moveaxis(x, 0, -1) if flag else x[..., None]

        args = tuple(
            arg if i in fixed else jax.tree.map(trailing, arg, flags)
            for i, (arg, flags) in enumerate(zip(args, is_mapped, strict=True))
        )
        out = jax.tree.map(
            lambda x: jnp.moveaxis(jnp.broadcast_to(x, (*x.shape[:-1], size)), -1, 0),
            with_chains_last(function, fixed)(*args),
        )
        return out, jax.tree.map(lambda _: True, out)

    return differentiable


def scan_units(body: Body, constants: Any, carry: Any, xs: Any) -> tuple[Any, Any]:
    """Return ``lax.scan`` of ``body`` over rows of units, with the chains last under ``vmap``.

    Parameters
    ----------
    body
        ``(constants, carry, x) -> (carry, y)`` of one configuration. It must not close over
        traced values: they come in as ``constants``.
    constants, carry, xs
        Trees of arrays; ``xs`` with the scanned axis first.

    Raises
    ------
    ValueError
        If the body closes over an array that is mapped.

    Notes
    -----
    Like :func:`with_chains_last`, but the body stays one of a single configuration: it is mapped
    inside the scan. Nested maps work.
    """
    constant_leaves, constant_tree = jax.tree.flatten(constants)
    carry_leaves, carry_tree = jax.tree.flatten(carry)
    x_leaves, x_tree = jax.tree.flatten(xs)

    def flat_body(constants: list[Any], carry: list[Any], x: list[Any]) -> tuple[Any, Any]:
        new, y = body(
            jax.tree.unflatten(constant_tree, constants),
            jax.tree.unflatten(carry_tree, carry),
            jax.tree.unflatten(x_tree, x),
        )
        return jax.tree.leaves(new), y

    try:
        leaves, ys = _scan(flat_body, constant_leaves, carry_leaves, x_leaves)
    except AssertionError as error:  # all that custom_vmap says of a mapped array it was not given
        if not _closes_over_traced(flat_body, constant_leaves, carry_leaves, x_leaves):
            raise
        raise ValueError(
            "the energy of a model reads an array that jax.vmap maps, but that is no part of the "
            "model: make it a field of the model, and map over the model instead"
        ) from error
    return jax.tree.unflatten(carry_tree, leaves), ys


def _closes_over_traced(body: Body, constants: list[Any], carry: list[Any], xs: list[Any]) -> bool:
    rows = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in xs]
    consts = jax.make_jaxpr(body)(constants, carry, rows).consts
    return any(isinstance(const, jax.core.Tracer) for const in consts)


def _scan(
    body: Body, constants: list[Any], carry: list[Any], xs: list[Any]
) -> tuple[list[Any], Any]:
    @jax.custom_batching.custom_vmap
    def scanned(constants: list[Any], carry: list[Any], xs: list[Any]) -> tuple[list[Any], Any]:
        return jax.lax.scan(lambda state, x: body(constants, state, x), carry, xs)

    @scanned.def_vmap
    def _rule(
        size: int, is_mapped: Any, constants: list[Any], carry: list[Any], xs: list[Any]
    ) -> tuple[Any, Any]:
        of_constants, of_carry, of_xs = is_mapped
        carry = [
            jnp.moveaxis(x, 0, -1) if flag else jnp.broadcast_to(x[..., None], (*x.shape, size))
            for x, flag in zip(carry, of_carry, strict=True)
        ]
        xs = [jnp.moveaxis(x, 0, -1) if flag else x for x, flag in zip(xs, of_xs, strict=True)]
        axes = ([0 if f else None for f in of_constants], -1, [-1 if f else None for f in of_xs])
        inner = jax.vmap(body, in_axes=axes, out_axes=-1)
        out = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), _scan(inner, constants, carry, xs))
        return out, jax.tree.map(lambda _: True, out)

    return scanned(constants, carry, xs)
