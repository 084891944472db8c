"""The run-time type checker of the suite: beartype, where ``Self`` is anything.

Beartype resolves ``Self`` in classes that it decorates as a whole only; the import hook decorates
their functions one by one.
"""

import typing
from collections.abc import Callable
from typing import Any

import beartype


def check[F: Callable[..., Any]](function: F) -> F:
    """Return the function checked against its annotations."""
    annotations = getattr(function, "__annotations__", {})
    for name, hint in annotations.items():
        if hint in ("Self", typing.Self):
            annotations[name] = Any
    return beartype.beartype(function)
