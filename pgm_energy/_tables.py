"""Columns of numbers as CSV."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["write_columns"]


def write_columns(path: str | os.PathLike[str], columns: Mapping[str, Any], index: str) -> None:
    """Write arrays of one length as CSV, every digit of them, rows numbered from 1."""
    with Path(path).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([index, *columns])
        for number, row in enumerate(zip(*columns.values(), strict=True), start=1):
            writer.writerow([number, *(repr(float(value)) for value in row)])
