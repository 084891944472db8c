"""Readers of NumPy, csv and idx files: numbers only, every damage told in words."""

import csv
import gzip
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Real, Shaped

__all__ = ["read_array", "read_csv", "read_idx"]

_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none"})
_UNSIGNED_BYTE = 0x08

# What the readers of the standard library and of NumPy raise for a damaged file.
_DAMAGE = (
    *(EOFError, OSError, RuntimeError, ValueError),
    *(csv.Error, struct.error, zipfile.BadZipFile, zlib.error),
)


def _damaged(file: Path, kind: str, error: Exception) -> ValueError:
    detail = str(error) or type(error).__name__
    return ValueError(
        f"{file}: expected a readable {kind} file, got: {detail}; it may be truncated or of "
        "another kind than its name says: make or fetch it again"
    )


def read_array(file: Path, key: str | None) -> Shaped[np.ndarray, "..."]:
    """Return the array of an .npy file, or one array of an .npz file."""
    try:
        with file.open("rb") as stream:
            content = np.load(stream, allow_pickle=False)
            if isinstance(content, np.ndarray):
                arrays, names = {"": content}, [""]
            else:
                names = content.files
                key = key if key is not None or len(names) != 1 else names[0]
                chosen = "train" if key is None else key
                arrays = {chosen: content[chosen]} if chosen in names else {}
    except _DAMAGE as error:
        raise _damaged(file, "NumPy array", error) from error
    if not arrays:
        found = ", ".join(repr(name) for name in names) or "none"
        wanted = "one array or one called 'train'" if key is None else f"an array {key!r}"
        raise ValueError(
            f"{file}: expected {wanted}, got the arrays: {found}; choose one with {file.name}:KEY"
        )
    return next(iter(arrays.values()))


def read_csv(file: Path) -> Real[np.ndarray, "rows columns"]:
    """Return the rows of a csv file in double precision."""
    rows: list[np.ndarray] = []
    width = first_line = 0
    for line, cells in _csv_lines(file):
        if not width:
            width, first_line = len(cells), line
            if _is_header(cells):
                continue
        if len(cells) != width:
            raise ValueError(
                f"{file}, line {line}: expected {width} cells as in line {first_line}, got "
                f"{len(cells)}: complete the row (a missing value is an empty cell)"
            )
        try:
            rows.append(np.array([float(cell) for cell in cells]))
        except ValueError:
            rows.append(_parse_cells(cells, file, line))
    if not rows:
        raise ValueError(f"{file}: expected rows of numbers, got none: check how it was written")
    return np.stack(rows)


def _csv_lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number, from 1, and the cells of every line that is not blank."""
    try:
        with _open(file) as stream, io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True)
            for cells in reader:
                if len(cells) > 1 or (cells and cells[0].strip()):
                    yield reader.line_num, cells
    except _DAMAGE as error:
        raise _damaged(file, "csv", error) from error


def _open(file: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(file, "rb") if file.suffix.lower() == ".gz" else file.open("rb")


def _number(cell: str) -> float | None:
    """Return the value of a cell, NaN where it is missing, None where it is other text."""
    if cell.strip().lower() in _MISSING:
        return math.nan
    try:
        return float(cell)
    except ValueError:
        return None


def _is_header(cells: list[str]) -> bool:
    """Return whether a first line names columns: some text in it, and not one number."""
    values = [_number(cell) for cell in cells]
    return None in values and all(value is None or math.isnan(value) for value in values)


def _parse_cells(cells: list[str], file: Path, line: int) -> Real[np.ndarray, " columns"]:
    """Return the numbers of a row in which some cells are missing or wrong."""
    values = [_number(cell) for cell in cells]
    if None in values:
        column = values.index(None)
        raise ValueError(
            f"{file}, line {line}, column {column + 1}: expected a number, got {cells[column]!r}: "
            "correct it, or leave the cell empty if the value is missing (cells are separated by "
            "commas, and a header line holds no numbers)"
        )
    return np.array(values, dtype=np.float64)


def read_idx(file: Path) -> Shaped[np.ndarray, "..."]:
    """Return the array of an idx file of unsigned bytes."""
    try:
        with _open(file) as stream:
            content = stream.read()
    except _DAMAGE as error:
        raise _damaged(file, "idx", error) from error
    if len(content) < 4 or content[:2] != b"\0\0":
        raise ValueError(
            f"{file}: expected an idx file, which begins with two zero bytes, got "
            f"{content[:4]!r}: check that it is what its name says"
        )
    kind, num_dims = content[2], content[3]
    if kind != _UNSIGNED_BYTE:
        raise ValueError(
            f"{file}: expected idx values of type 0x08 (unsigned bytes), got 0x{kind:02x}: "
            "convert the file, for instance to .npy"
        )
    start = 4 + 4 * num_dims
    if len(content) < start:
        raise ValueError(
            f"{file}: expected {start} bytes of idx header, got {len(content)}: the file is "
            "truncated, fetch it again"
        )
    shape = struct.unpack(f">{num_dims}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"{file}: expected {math.prod(shape)} values for the shape {shape}, got "
            f"{len(content) - start}: the file is truncated or damaged, fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()
