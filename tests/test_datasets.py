"""The embedded digits, the readers of tables and what they say about bad files."""

import doctest
import gzip
import io
import re
import struct

import numpy as np
import pytest
from scipy.ndimage import convolve
from sklearn import datasets as sklearn_datasets

from pgm_energy import datasets
from pgm_energy.datasets import load_digits, load_table, train_validation_split

TABLE = np.array([[0.0, 1.0, 2.5], [1.0, 0.0, -3.0]])


def idx_bytes(array, kind=0x08):
    header = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write(folder, name, content):
    """Write text or bytes, gzipped if the name says so, and return the path."""
    content = content.encode() if isinstance(content, str) else content
    path = folder / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def array_bytes(save, *args, **arrays):
    stream = io.BytesIO()
    save(stream, *args, **arrays)
    return stream.getvalue()


def test_docstring_examples_run():
    result = doctest.testmod(datasets, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted >= 8
    assert result.failed == 0


def test_digits_are_bits_of_the_grey_levels():
    bits, grey = load_digits(), load_digits(binary=False)
    assert bits.images.shape == grey.images.shape == (1797, 64)
    assert (bits.images.dtype, grey.images.dtype) == (np.int8, np.float32)
    np.testing.assert_array_equal(grey.images, sklearn_datasets.load_digits().data / 16)
    np.testing.assert_array_equal(bits.images, grey.images >= 0.5)
    np.testing.assert_array_equal(bits.labels, sklearn_datasets.load_digits().target)
    assert grey.images.max() == 1.0
    assert bits.shape == (8, 8)


def test_nudged_digits_are_those_of_the_scikit_learn_example():
    images = sklearn_datasets.load_digits().images
    expected = [images]
    for row, column in [(0, 1), (1, 0), (1, 2), (2, 1)]:
        weights = np.zeros((3, 3))
        weights[row, column] = 1
        expected.append(np.stack([convolve(i, weights, mode="constant") for i in images]))
    nudged = load_digits(binary=False, nudged=True)
    np.testing.assert_array_equal(nudged.images, np.concatenate(expected).reshape(-1, 64) / 16)
    np.testing.assert_array_equal(nudged.labels, np.tile(load_digits().labels, 5))


def test_nudged_copies_move_up_left_right_down():
    original, up, left, right, down = (
        load_digits(nudged=True).images.reshape(5, 1797, 8, 8).astype(int)
    )
    np.testing.assert_array_equal(up[:, :-1], original[:, 1:])
    np.testing.assert_array_equal(left[:, :, :-1], original[:, :, 1:])
    np.testing.assert_array_equal(right[:, :, 1:], original[:, :, :-1])
    np.testing.assert_array_equal(down[:, 1:], original[:, :-1])
    for border in (up[:, -1], left[:, :, -1], right[:, :, 0], down[:, 0]):
        assert not border.any()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("a.npy", array_bytes(np.save, TABLE), id="npy"),
        pytest.param("a.npz", array_bytes(np.savez, only=TABLE), id="npz-single"),
        pytest.param("a.npz", array_bytes(np.savez_compressed, a=-TABLE, train=TABLE), id="train"),
        pytest.param("a.csv", "0,1,2.5\n1,0,-3\n", id="csv"),
        pytest.param("a.CSV", "0,1,2.5\n1,0,-3", id="upper-case-no-last-newline"),
        pytest.param("a.csv", "x,y,z\r\n0,1,2.5\r\n\r\n1,0,-3\r\n", id="header-crlf-blank-line"),
        pytest.param("a.csv", '\ufeff"x","y",\n"0",1,2.5\n 1 , 0 ,-3e0\n', id="bom-quotes-spaces"),
        pytest.param("a.csv.gz", "0,1,2.5\n1,0,-3\n", id="csv-gz"),
    ],
)
def test_every_format_gives_the_table(tmp_path, name, content):
    table = load_table(write(tmp_path, name, content))
    assert table.dtype == np.float64
    np.testing.assert_array_equal(table, TABLE)


@pytest.mark.parametrize("cell", ["", " ", "nan", "NaN", "NA", "n/a"])
def test_missing_cells_become_nan(tmp_path, cell):
    table = load_table(write(tmp_path, "a.csv", f"1,{cell},3\n{cell},5,6\n"))
    np.testing.assert_array_equal(table, [[1, np.nan, 3], [np.nan, 5, 6]])


def test_first_line_of_missing_cells_is_no_header(tmp_path):
    table = load_table(write(tmp_path, "a.csv", "NA,nan\n1,2\n"))
    np.testing.assert_array_equal(table, [[np.nan, np.nan], [1, 2]])


@pytest.mark.parametrize(
    "name",
    ["a-idx3-ubyte", "a-idx3-ubyte.gz", "a.idx3-ubyte", "a.idx", "a.idx.gz"],
)
def test_idx_images_become_rows(tmp_path, name):
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    table = load_table(write(tmp_path, name, idx_bytes(images)))
    assert table.dtype == np.uint8
    assert table.flags.writeable
    np.testing.assert_array_equal(table, images.reshape(2, 12))


def test_one_dimension_becomes_a_column_and_more_become_rows(tmp_path):
    assert load_table(write(tmp_path, "a.idx", idx_bytes(np.arange(5)))).shape == (5, 1)
    images = array_bytes(np.save, np.zeros((4, 3, 2), bool))
    assert load_table(write(tmp_path, "a.npy", images)).shape == (4, 6)


def test_key_in_the_path_or_as_argument(tmp_path):
    path = write(tmp_path, "a.npz", array_bytes(np.savez, first=TABLE, second=-TABLE))
    np.testing.assert_array_equal(load_table(f"{path}:second"), -TABLE)
    np.testing.assert_array_equal(load_table(path, key="second"), -TABLE)
    np.testing.assert_array_equal(load_table(f"{path}:first", key="first"), TABLE)


@pytest.mark.parametrize("num_columns", [1, 7, 8, 9, 16])
def test_packed_bits_come_back(tmp_path, num_columns):
    bits = np.random.default_rng(0).integers(0, 2, (5, num_columns)).astype(np.int8)
    packed = array_bytes(np.savez, train=np.packbits(bits, axis=1))
    table = load_table(write(tmp_path, "a.npz", packed), num_columns=num_columns)
    assert table.dtype == np.int8
    np.testing.assert_array_equal(table, bits)


ARRAY_FILE = array_bytes(np.save, np.arange(100.0))
ARCHIVE = array_bytes(np.savez_compressed, a=np.arange(100.0))
IDX = idx_bytes(np.zeros((3, 2, 2)))
OBJECTS = np.array([{"a": 1}], dtype=object)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("a.txt", "1,2\n", "known kind .*csv", id="unknown-suffix"),
        pytest.param("a.gz", "1,2\n", "known kind", id="bare-gz"),
        pytest.param("a.npy", b"", "readable NumPy", id="empty-npy"),
        pytest.param("a.npy", ARRAY_FILE[:-9], "readable NumPy.*truncated", id="truncated-npy"),
        pytest.param("a.npy", b"1,2,3\n4,5,6\n", "readable NumPy", id="csv-called-npy"),
        pytest.param("a.npy", array_bytes(np.save, OBJECTS), "allow_pickle", id="pickle"),
        pytest.param("a.npz", array_bytes(np.savez, a=OBJECTS), "allow_pickle", id="npz-pickle"),
        pytest.param("a.npz", ARCHIVE[:-30], "readable NumPy", id="truncated-npz"),
        pytest.param(
            "a.npz",
            ARCHIVE[:60] + bytes([ARCHIVE[60] ^ 255]) + ARCHIVE[61:],
            "readable NumPy",
            id="damaged-npz",
        ),
        pytest.param(
            "a.npz",
            array_bytes(np.savez, x=TABLE, y=TABLE),
            "'train', got the arrays: 'x', 'y'; choose one with a.npz:KEY",
            id="which-array",
        ),
        pytest.param("a.npz", array_bytes(np.savez), "arrays: none", id="npz-without-arrays"),
        pytest.param("a.npy", array_bytes(np.save, np.array(["a"])), "expected numbers", id="text"),
        pytest.param("a.npy", array_bytes(np.save, np.array([1j])), "complex128", id="complex"),
        pytest.param("a.npy", array_bytes(np.save, np.float64(1)), r"shape \(\)", id="scalar"),
        pytest.param("a.npy", array_bytes(np.save, TABLE[:0]), r"shape \(0, 3\)", id="no-rows"),
        pytest.param("a.csv", "", "rows of numbers, got none", id="empty-csv"),
        pytest.param("a.csv", "x,y\n\n", "rows of numbers, got none", id="header-only"),
        pytest.param("a.csv", "1,2\n\n3,4,5\n", "line 3: expected 2 cells.*got 3", id="long-row"),
        pytest.param("a.csv", "x,y\n1,2\n3\n", "line 3: expected 2 .* line 1, got 1", id="short"),
        pytest.param("a.csv", "1,2\n3,four\n", "line 2, column 2: .*'four'", id="word"),
        pytest.param("a.csv", "1,2,x3\n4,5,6\n", "line 1, column 3: .*'x3'", id="mixed-first-line"),
        pytest.param("a.csv", "a;b\n1;2\n", "line 2, column 1: .*'1;2'.*commas", id="semicolons"),
        pytest.param("a.csv", '1,"2\n', "readable csv", id="open-quote"),
        pytest.param("a.csv", b"1,\xff\xfe\n", "readable csv.*decode", id="not-utf8"),
        pytest.param("a.idx", b"\0\0", "begins with two zero bytes", id="short-idx"),
        pytest.param("a.idx", b"PK\3\4....", "begins with two zero bytes", id="zip-called-idx"),
        pytest.param("a.idx", IDX[:10], "16 bytes of idx header, got 10", id="idx-header"),
        pytest.param("a.idx.gz", IDX[:-5], "expected 12 values.*got 7", id="truncated-idx"),
        pytest.param("a.idx", IDX + b"1", "expected 12 values.*got 13", id="long-idx"),
        pytest.param("a.idx", idx_bytes(TABLE, kind=0x0D), "got 0x0d: convert", id="idx-floats"),
        pytest.param("a.idx", idx_bytes(TABLE[:0]), "at least one row", id="idx-no-rows"),
    ],
)
def test_bad_files_are_told(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    with pytest.raises(ValueError, match=f"(?s){message}") as error:
        load_table(path)
    assert name in str(error.value)


@pytest.mark.parametrize("name", ["a.csv.gz", "a-idx3-ubyte.gz"])
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda packed: packed[: len(packed) // 2], id="truncated"),
        pytest.param(lambda packed: b"1,2\n3,4\n", id="not-gzip"),
        pytest.param(lambda packed: packed[:-6] + b"\0\0" + packed[-4:], id="wrong-checksum"),
    ],
)
def test_damaged_gzip_is_told(tmp_path, name, damage):
    text = "".join(f"{i},{i * i}\n" for i in range(500))
    path = write(tmp_path, name, text)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"expected a readable (csv|idx) file"):
        load_table(path)


def test_missing_file_and_folder_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere\.csv .*check its name"):
        load_table(tmp_path / "nowhere.csv")
    for name in ("folder.csv", "folder.npy", "folder.idx"):
        (tmp_path / name).mkdir()
        with pytest.raises(ValueError, match="readable"):
            load_table(tmp_path / name)


def test_wrong_keys_are_told(tmp_path):
    path = write(tmp_path, "a.npz", array_bytes(np.savez, train=TABLE, test=TABLE))
    with pytest.raises(ValueError, match="an array 'valid', got the arrays: 'train', 'test'"):
        load_table(path, key="valid")
    with pytest.raises(ValueError, match="expected one key, got 'train' in the path and 'test'"):
        load_table(f"{path}:train", key="test")
    with pytest.raises(ValueError, match=re.escape("names an array in an .npz file, got 'train'")):
        load_table(write(tmp_path, "a.csv", "1,2\n"), key="train")


@pytest.mark.parametrize(
    ("table", "num_columns", "message"),
    [
        pytest.param(np.zeros((2, 3), np.uint8), 25, "take 4 uint8 values a row, got 3", id="few"),
        pytest.param(np.zeros((2, 3), np.uint8), 16, "take 2 uint8 values a row, got 3", id="many"),
        pytest.param(np.zeros((2, 3), np.int8), 24, "got 3 of int8", id="signed"),
        pytest.param(np.zeros((2, 3), np.uint8), 0, "0 packed columns", id="zero"),
    ],
)
def test_wrong_num_columns_is_told(tmp_path, table, num_columns, message):
    path = write(tmp_path, "a.npy", array_bytes(np.save, table))
    with pytest.raises(ValueError, match=message):
        load_table(path, num_columns=num_columns)


def test_num_columns_is_for_arrays_only(tmp_path):
    with pytest.raises(ValueError, match="num_columns is for packed bits"):
        load_table(write(tmp_path, "a.csv", "1,2\n"), num_columns=8)


@pytest.mark.parametrize(
    ("num_rows", "fraction", "num_validation"),
    [(10, 0.1, 1), (10, 0.25, 2), (2, 0.01, 1), (2, 0.99, 1), (101, 0.5, 50)],
)
def test_split_keeps_every_row_once(num_rows, fraction, num_validation):
    data = np.arange(2 * num_rows).reshape(num_rows, 2)
    train, validation = train_validation_split(data, fraction=fraction, seed=3)
    assert len(validation) == num_validation
    rows = np.concatenate([train, validation])
    assert not np.array_equal(rows, data) or num_rows == 2
    np.testing.assert_array_equal(rows[np.argsort(rows[:, 0])], data)
    train[:] = -1
    assert data.min() == 0


def test_split_depends_on_the_seed_only():
    data = np.arange(50)
    first, again, other = (train_validation_split(data, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(again))
    assert not np.array_equal(np.concatenate(first), np.concatenate(other))
    squares, _ = train_validation_split(data**2, seed=1)
    np.testing.assert_array_equal(squares, first[0] ** 2)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        pytest.param(np.zeros((1, 4)), {}, r"at least two rows .* shape \(1, 4\)", id="one-row"),
        pytest.param(np.zeros((0, 4)), {}, "at least two rows", id="no-rows"),
        pytest.param(np.zeros(9), {"fraction": 0.0}, "fraction .* got 0.0", id="nothing"),
        pytest.param(np.zeros(9), {"fraction": 1.0}, "fraction .* got 1.0", id="everything"),
        pytest.param(np.zeros(9), {"fraction": np.nan}, "fraction .* got nan", id="nan"),
        pytest.param(np.zeros(9), {"seed": -1}, "non-negative seed, got -1", id="seed"),
    ],
)
def test_impossible_splits_are_told(data, options, message):
    with pytest.raises(ValueError, match=message):
        train_validation_split(data, **options)


@pytest.mark.parametrize(
    ("name", "num_columns", "shape"),
    [
        ("nltcs/test.csv.gz", None, (3236, 16)),
        ("binarized_mnist/binarized_mnist.npz:test", 784, (10000, 784)),
        ("mnist/t10k-images-idx3-ubyte.gz", None, (10000, 784)),
        ("mnist/t10k-labels-idx1-ubyte.gz", None, (10000, 1)),
    ],
)
def test_larger_data_sets_are_read(shared_data, name, num_columns, shape):
    table = load_table(shared_data / name, num_columns=num_columns)
    assert table.shape == shape
    assert table.min() == 0
    assert table.max() in (1, 9, 255)
