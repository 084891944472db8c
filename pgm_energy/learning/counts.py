"""Counts that may change between epochs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pgm_energy._checks import require_count

__all__ = ["Count", "count_at"]

#: A number for all epochs, one per epoch (the last one stays), or a function of the epoch from 0.
Count = int | Sequence[int] | Callable[[int], int]


def count_at(name: str, count: Any, epoch: int) -> int:
    """Return the number of an epoch, counted from 0.

    Raises
    ------
    ValueError
        If it is no integer of at least 1, or a sequence is empty.
    """
    if callable(count):
        return require_count(f"{name} of epoch {epoch}", count(epoch))
    if isinstance(count, tuple | list):
        if not count:
            raise ValueError(f"{name} is empty: give a number, or one per epoch")
        return require_count(f"{name} of epoch {epoch}", count[min(epoch, len(count) - 1)])
    return require_count(name, count)
