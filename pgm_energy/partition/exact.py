"""log Z known in closed form, or summed over the states of the smaller side."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from pgm_energy.energy import EnergyModel
from pgm_energy.enumeration import (
    StateSpace,
    chunk_size,
    compiled_log_sum,
    double,
    sum_out,
    summable,
)
from pgm_energy.partition.result import LogPartition, exact_result

__all__ = ["AUTO_STATES", "EXACT_STATES", "exact_log_partition", "known_log_partition"]

#: Most states that ``method="exact"`` sums over, and that "auto" does without being asked.
EXACT_STATES = 2**24
AUTO_STATES = 2**21


def known_log_partition(model: EnergyModel) -> float | None:
    """Return log Z (nats) if the model knows it in closed form, else None."""
    known: Any = getattr(model, "known_log_partition", None)
    if callable(known):
        known = known()
    return None if known is None else float(known)


class TooManyStates(ValueError):
    """There are more states than are summed."""


def exact_log_partition(model: EnergyModel, limit: int) -> LogPartition:
    """Return log Z, known or summed over at most ``limit`` states.

    Raises
    ------
    TooManyStates
        If there are more.
    ValueError
        If a real site has no closed integral, or the energy is NaN.
    """
    known = known_log_partition(model)
    if known is not None:
        return exact_result(known, f"{model.title} knows its log Z in closed form")
    names = list(model.sites)
    summed = summable(model, names)
    space = StateSpace.of(model, [name for name in names if name not in summed])
    if space.size > limit:
        raise TooManyStates(_too_many(model, space, summed, limit))
    reduced = sum_out(model, summed)
    with jax.enable_x64(True):
        total = compiled_log_sum(double(reduced), space=space, chunk=chunk_size(reduced))
        value = float(np.asarray(total))
    if not math.isfinite(value):
        raise ValueError(f"log Z of {model.title} is {value}: its energy is NaN or nowhere finite")
    closed = ", ".join(map(repr, summed))
    parts = [f"{closed} summed out in closed form"] if summed else []
    if space.sites:
        parts.append(f"{space.size} states enumerated ({space.describe()})")
    return exact_result(value, "; ".join(parts))


def _too_many(model: EnergyModel, space: StateSpace, summed: tuple[str, ...], limit: int) -> str:
    rest = f" left after summing out {', '.join(map(repr, summed))}" if summed else ""
    slow = "; method='exact' would still do it, in minutes" if space.size <= EXACT_STATES else ""
    return (
        f"{model.title} has 2^{math.log2(space.size):.1f} states{rest} "
        f"({space.describe()}), more than the 2^{math.log2(limit):.0f} that are summed exactly: "
        "estimate it by annealing, log_partition(model, jax.random.key(0), 'ais', data=rows)"
        f"{slow}"
    )
