"""Tables to learn from: the embedded digits, readers for common files, a validation split."""

import math
import re
from os import PathLike, fspath
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer, Real, Shaped

from pgm_energy._readers import read_array, read_csv, read_idx

__all__ = ["Digits", "load_digits", "load_table", "train_validation_split"]

_KNOWN_FILES = ".npy, .npz, .csv, .csv.gz, or idx with names such as images-idx3-ubyte.gz"
_NUMBER_KINDS = "biuf"


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
        array = read_array(file, key)
    elif name.endswith((".csv", ".csv.gz")):
        array = read_csv(file)
    elif re.search(r"(\.idx|[-.]idx\d-ubyte)(\.gz)?$", name):
        array = read_idx(file)
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
