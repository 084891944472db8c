"""Tables to learn from: the embedded digits, readers for common files, a validation split."""

import csv
import gzip
import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from os import PathLike, fspath
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer, Real, Shaped

__all__ = ["Digits", "load_digits", "load_table", "train_validation_split"]

_KNOWN_FILES = ".npy, .npz, .csv, .csv.gz, or idx with names such as images-idx3-ubyte.gz"
_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none"})
_NUMBER_KINDS = "biuf"
_UNSIGNED_BYTE = 0x08

# What the readers of the standard library and of NumPy raise for a damaged file.
_DAMAGE = (
    *(EOFError, OSError, RuntimeError, ValueError),
    *(csv.Error, struct.error, zipfile.BadZipFile, zlib.error),
)


class Digits(NamedTuple):
    """Handwritten digits, one image a row.

    Attributes
    ----------
    images
        Pixels row by row, in 0..1: float32 grey levels, or int8 bits.
    labels
        The digit, 0 to 9, that each row shows.
    shape
        Height and width of one image, for pictures.
    """

    images: Real[np.ndarray, "rows pixels"]
    labels: Integer[np.ndarray, " rows"]
    shape: tuple[int, int]


def load_digits(binary: bool = True, nudged: bool = False) -> Digits:
    """Return the 1,797 handwritten digits of 8 x 8 pixels that scikit-learn carries.

    Parameters
    ----------
    binary
        Whether a pixel is 1 where its grey level is at least one half, and 0 elsewhere (int8).
        Otherwise grey levels, multiples of 1/16 from 0 to 1 (float32).
    nudged
        Whether to add four copies of every image, moved by one pixel up, left, right and down:
        five times as many rows, all originals first. Pixels that come in are 0.

    Returns
    -------
    Digits
        Images, labels and the shape of an image.

    Notes
    -----
    Needs no network. The nudged rows are those of scikit-learn's example "Restricted Boltzmann
    Machine features for digit classification"; there every pixel is then scaled to its own
    range, here all are divided by 16.

    Split before nudging where copies of one image must not fall on both sides:
    the copies of row ``i`` are the rows ``i + k * 1797``.

    Examples
    --------
    >>> digits = load_digits()
    >>> digits.images.shape, digits.images.dtype, digits.shape
    ((1797, 64), dtype('int8'), (8, 8))
    >>> load_digits(binary=False, nudged=True).images.shape
    (8985, 64)
    """
    from sklearn import datasets

    bunch = datasets.load_digits()
    pictures = (bunch.images / 16.0).astype(np.float32)
    labels = bunch.target.astype(np.int32)
    if nudged:
        pictures = _nudge(pictures)
        labels = np.tile(labels, 5)
    if binary:
        pictures = (pictures >= 0.5).astype(np.int8)
    height, width = pictures.shape[1:]
    return Digits(pictures.reshape(len(pictures), -1), labels, (height, width))


def _nudge(
    pictures: Real[np.ndarray, "rows height width"],
) -> Real[np.ndarray, "nudged height width"]:
    """Return the pictures followed by themselves moved up, left, right and down."""
    up, left, right, down = (np.zeros_like(pictures) for _ in range(4))
    up[:, :-1] = pictures[:, 1:]
    left[:, :, :-1] = pictures[:, :, 1:]
    right[:, :, 1:] = pictures[:, :, :-1]
    down[:, 1:] = pictures[:, :-1]
    return np.concatenate([pictures, up, left, right, down])


def load_table(
    path: str | PathLike[str], *, key: str | None = None, num_columns: int | None = None
) -> Shaped[np.ndarray, "rows columns"]:
    r"""Return the numbers in a file as a table, rows first.

    Parameters
    ----------
    path
        The file; its name tells the format:

        - ``.npy``: one array;
        - ``.npz``: the array called `key`, which may also be written into the path as
          ``"file.npz:key"``; without a key the only array there is, or the one called ``train``;
        - ``.csv``, ``.csv.gz``: commas between cells, with or without a header line. Cells that
          are empty, ``nan`` or ``NA`` are missing and become NaN;
        - idx (unsigned bytes), plain or gzipped: ``images-idx3-ubyte.gz``, ``images.idx`` and
          the like.
    key
        Name of the array in an ``.npz`` file.
    num_columns
        For an ``.npy`` or ``.npz`` array of uint8 that holds eight bits a byte along its last
        axis, as ``numpy.packbits`` writes them: the number of bits in a row. They are unpacked
        to 0 and 1 (int8).

    Returns
    -------
    numpy.ndarray
        Two dimensions: an array of one dimension becomes a single column, images are flattened
        to rows. A csv file gives float64, other files their own type.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is of an unknown kind, cannot be read, is damaged, holds no rows or no
        numbers, or if a csv row has another length than those above it.

    Notes
    -----
    Nothing in a file is ever executed: pickled arrays are refused.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> path = folder / "answers.csv"
    >>> _ = path.write_text("first,second\n0,1\n1,NA\n")
    >>> load_table(path)
    array([[ 0.,  1.],
           [ 1., nan]])
    >>> rows = np.array([[1, 0, 0, 0, 0, 0, 0, 0, 1]])
    >>> np.savez(folder / "bits.npz", train=np.packbits(rows, axis=1))
    >>> load_table(folder / "bits.npz:train", num_columns=9)
    array([[1, 0, 0, 0, 0, 0, 0, 0, 1]], dtype=int8)
    """
    return load_images(path, key=key, num_columns=num_columns)[0]


def load_images(
    path: str | PathLike[str], *, key: str | None = None, num_columns: int | None = None
) -> tuple[Shaped[np.ndarray, "rows columns"], tuple[int, int] | None]:
    """Return what :func:`load_table` does, and the height and width of a row that is an image."""
    file, key = _split_key(fspath(path), key)
    name = file.name.lower()
    is_array = name.endswith((".npy", ".npz"))
    if num_columns is not None and not is_array:
        raise ValueError(
            f"num_columns is for packed bits in .npy and .npz files, got {file}: leave it out"
        )
    if key is not None and not name.endswith(".npz"):
        raise ValueError(f"a key names an array in an .npz file, got {key!r} for {file}: remove it")
    if not file.exists():
        raise FileNotFoundError(f"no file {file} (from the folder {Path.cwd()}): check its name")
    if is_array:
        array = _read_array(file, key)
    elif name.endswith((".csv", ".csv.gz")):
        array = _read_csv(file)
    elif re.search(r"(\.idx|[-.]idx\d-ubyte)(\.gz)?$", name):
        array = _read_idx(file)
    else:
        raise ValueError(f"expected a file of a known kind ({_KNOWN_FILES}), got {file}")
    shape = (array.shape[1], array.shape[2]) if array.ndim == 3 else None
    return _as_table(array, file, num_columns), shape


def _split_key(path: str, key: str | None) -> tuple[Path, str | None]:
    """Return the file and the key that stands behind ``.npz:`` or was given."""
    match = re.fullmatch(r"(.*\.npz):(.*)", path, flags=re.IGNORECASE | re.DOTALL)
    if match is None:
        return Path(path), key
    if key not in (None, match[2]):
        raise ValueError(f"expected one key, got {match[2]!r} in the path and {key!r}: remove one")
    return Path(match[1]), match[2]


def _as_table(
    array: Shaped[np.ndarray, "..."], file: Path, num_columns: int | None
) -> Shaped[np.ndarray, "rows columns"]:
    """Return the array with two dimensions, bits unpacked; refuse what is no table of numbers."""
    if array.dtype.kind not in _NUMBER_KINDS:
        raise ValueError(
            f"{file}: expected numbers, got an array of {array.dtype}: save integers or floats"
        )
    if array.ndim == 0 or array.size == 0:
        raise ValueError(
            f"{file}: expected at least one row and one column, got an array of shape "
            f"{array.shape}: check how the file was written"
        )
    table = array.reshape(len(array), -1)
    if num_columns is None:
        return table
    if num_columns < 1 or table.dtype != np.uint8 or table.shape[1] != math.ceil(num_columns / 8):
        raise ValueError(
            f"{file}: {num_columns} packed columns take {math.ceil(num_columns / 8)} uint8 values "
            f"a row, got {table.shape[1]} of {table.dtype}: give the number of bits that a row "
            "had before packing, or leave num_columns out"
        )
    return np.unpackbits(table, axis=1, count=num_columns).view(np.int8)


def _damaged(file: Path, kind: str, error: Exception) -> ValueError:
    detail = str(error) or type(error).__name__
    return ValueError(
        f"{file}: expected a readable {kind} file, got: {detail}; it may be truncated or of "
        "another kind than its name says: make or fetch it again"
    )


def _read_array(file: Path, key: str | None) -> Shaped[np.ndarray, "..."]:
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


def _read_csv(file: Path) -> Real[np.ndarray, "rows columns"]:
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


def _read_idx(file: Path) -> Shaped[np.ndarray, "..."]:
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


def train_validation_split(
    data: Shaped[np.ndarray, "rows *dims"], fraction: float = 0.1, seed: int = 0
) -> tuple[Shaped[np.ndarray, "train *dims"], Shaped[np.ndarray, "validation *dims"]]:
    """Return the rows in random order, cut into a training and a validation part.

    Parameters
    ----------
    data
        Rows first.
    fraction
        Share of the rows that go to validation, between 0 and 1 (both excluded); rounded to
        whole rows, at least one on either side.
    seed
        A non-negative integer. The same seed and number of rows give the same split, so labels
        are split alongside by a second call.

    Returns
    -------
    tuple of numpy.ndarray
        The training rows and the validation rows, as copies.

    Raises
    ------
    ValueError
        If there are fewer than two rows, or the fraction or the seed is out of range.

    Examples
    --------
    >>> train, validation = train_validation_split(np.arange(20).reshape(10, 2), fraction=0.2)
    >>> train.shape, validation.shape
    ((8, 2), (2, 2))
    """
    data = np.asarray(data)
    if data.ndim == 0 or len(data) < 2:
        raise ValueError(
            f"expected at least two rows to split, got the shape {data.shape}: give more rows"
        )
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"expected a fraction between 0 and 1, got {fraction}: 0.1 is usual")
    if seed < 0:
        raise ValueError(f"expected a non-negative seed, got {seed}: use for instance 0")
    num_validation = min(max(round(fraction * len(data)), 1), len(data) - 1)
    order = np.random.default_rng(seed).permutation(len(data))
    return data[order[num_validation:]], data[order[:num_validation]]
