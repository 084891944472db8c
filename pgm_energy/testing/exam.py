"""What an exam collects: the checks that passed, and the first failure as an error."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

__all__ = ["ConformanceError", "ConformanceReport", "Exam"]

#: Largest relative error, by precision.
SINGLE, DOUBLE = 1e-5, 1e-9


class ConformanceError(AssertionError):
    """A model or a kernel does not do what it says; the message gives the numbers."""


@dataclasses.dataclass(frozen=True)
class ConformanceReport:
    """What was checked. Made by :func:`check_energy_model` and :func:`check_kernel`.

    Attributes
    ----------
    owner
        What was examined.
    checks
        ``(name, what was found)`` of every check that passed or did not apply.
    """

    owner: str
    checks: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        width = max((len(name) for name, _ in self.checks), default=0)
        lines = [f"{self.owner} conforms"]
        lines += [f"  {name.ljust(width)}  {text}" for name, text in self.checks]
        return "\n".join(lines)

    __repr__ = __str__


class Exam:
    """Collects what passed; the first failure is raised."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.checks: dict[str, str] = {}

    def note(self, name: str, text: str) -> None:
        self.checks[name] = text

    def fail(self, name: str, text: str) -> None:
        raise ConformanceError(f"{self.owner} fails {name!r}: {text}")

    def require(self, name: str, holds: Any, text: str) -> None:
        if not bool(holds):
            self.fail(name, text)
        self.checks.setdefault(name, "holds")

    def close(
        self, name: str, got: Any, expected: Any, scale: Any, tolerance: float, what: str
    ) -> None:
        """Require ``|got - expected| <= tolerance * max(1, scale)`` everywhere."""
        got, expected = np.asarray(got, float), np.asarray(expected, float)
        if got.shape != expected.shape:
            self.fail(name, f"{what} has shape {got.shape}, expected {expected.shape}")
        error = np.abs(got - expected) / np.maximum(1.0, np.asarray(scale, float))
        error = np.nan_to_num(error, nan=np.inf)
        worst = float(error.max(initial=0.0))
        if worst > tolerance:
            place = np.unravel_index(int(np.argmax(error)), error.shape)
            self.fail(
                name,
                f"{what} is {got[place]:.9g}, expected {expected[place]:.9g} (relative error "
                f"{worst:.2g}, allowed {tolerance:.0e})",
            )
        text = self.checks.get(name, "")
        before = float(text.split()[-1]) if text.startswith("worst relative error") else 0.0
        self.checks[name] = f"worst relative error {max(before, worst):.1e}"

    def report(self) -> ConformanceReport:
        return ConformanceReport(self.owner, tuple(self.checks.items()))


@contextlib.contextmanager
def precision(x64: bool) -> Iterator[None]:
    """Double or single precision inside."""
    with jax.enable_x64(x64):
        yield
