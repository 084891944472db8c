"""What comes in at the door: keys, counts, rows. Every refusal says where and what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pgm_energy as pgm
from pgm_energy._checks import is_key_batch, require_count, require_key
from pgm_energy._data import as_rows

RBM = pgm.RBM(weights=jnp.zeros((3, 2)))
SPINS = pgm.RBM(weights=jnp.zeros((3, 2)), visible=pgm.Spin)
LEVELS = pgm.RBM(weights=jnp.zeros((3, 4, 2)), visible=pgm.Categorical)
REALS = pgm.RBM(weights=jnp.zeros((3, 2)), visible=pgm.Real)


@pgm.struct
class TwoTables(pgm.EnergyModel):
    """Two data sites, one of them an image, and one latent site."""

    weights: jax.Array
    data_sites = ("a", "b")

    @property
    def sites(self):
        return {"a": pgm.Binary((2, 2)), "b": pgm.Categorical(3, 2), "h": pgm.Binary(1)}

    def energy(self, a, b, h):
        return -jnp.sum(a) * jnp.sum(self.weights * b) - jnp.sum(h)


# ---- keys and counts -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        jax.random.key,
        jax.random.PRNGKey,
        lambda seed: np.asarray(jax.random.PRNGKey(seed)),
        lambda seed: jax.random.key(seed, impl="rbg"),
    ],
    ids=["typed", "legacy", "legacy numpy", "other generator"],
)
def test_keys_of_both_kinds_are_accepted(make):
    draws = jax.random.uniform(require_key(make(3)), (4,))
    np.testing.assert_array_equal(draws, jax.random.uniform(jnp.asarray(make(3)), (4,)))


@pytest.mark.parametrize(
    "bad, came",
    [
        (0, "int 0"),
        (None, "NoneType None"),
        (np.zeros(2), "dtype float64 and shape \\(2,\\)"),
        (jnp.zeros(3, jnp.uint32), "dtype uint32 and shape \\(3,\\)"),
        (jax.random.split(jax.random.key(0), 2), "shape \\(2,\\)"),
    ],
    ids=["seed", "none", "floats", "too long", "two keys"],
)
def test_what_is_no_key_is_refused(bad, came):
    with pytest.raises(TypeError, match=f"must be one JAX random key, such as .*got .*{came}"):
        require_key(bad)


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize("bad", [0, np.zeros(3), jnp.zeros((2, 2, 2), jnp.uint32)])
def test_no_key_and_no_batch_of_keys(bad):
    with pytest.raises(TypeError, match="must be one JAX random key"):
        is_key_batch(bad)


def test_batches_of_keys_are_told_from_single_ones():
    for make in (jax.random.key, jax.random.PRNGKey):
        assert not is_key_batch(make(0))
        assert is_key_batch(jax.random.split(make(0), 2))
        assert is_key_batch(jax.random.split(make(0), 1))


@pytest.mark.parametrize("bad", [0, -1, 1.0, "3", None, True])
def test_counts_are_positive_integers(bad):
    with pytest.raises(
        ValueError, match=f"num_chains must be an integer of at least 1, got {bad!r}"
    ):
        require_count("num_chains", bad)


def test_counts_of_numpy_are_integers():
    assert require_count("num_sweeps", np.int64(3)) == 3
    assert require_count("num_warmup", 0, 0) == 0


# ---- rows that are accepted ----------------------------------------------------------------------

BITS = np.array([[0, 1, 1], [1, 0, 0]])


@pytest.mark.parametrize(
    "dtype", [bool, np.int8, np.int64, np.uint8, np.uint64, np.float16, np.float32, np.float64]
)
def test_bits_of_any_type(dtype):
    for data in (BITS.astype(dtype), {"v": BITS.astype(dtype)}, BITS.astype(dtype).tolist()):
        rows = as_rows(RBM, data)
        assert rows["v"].dtype == np.int8
        np.testing.assert_array_equal(rows["v"], BITS)
    np.testing.assert_array_equal(as_rows(RBM, jnp.asarray(BITS))["v"], BITS)


def test_storage_type_of_each_family():
    np.testing.assert_array_equal(as_rows(SPINS, 2.0 * BITS - 1)["v"], 2 * BITS - 1)
    assert as_rows(SPINS, 2 * BITS - 1)["v"].dtype == np.int8
    levels = np.array([[0, 3, 2.0]])
    assert as_rows(LEVELS, levels)["v"].dtype == np.int32
    assert as_rows(REALS, BITS)["v"].dtype == np.float32
    # a value that is no bit stays what it is in a real site
    np.testing.assert_array_equal(as_rows(REALS, [[0.25, -7.5, 2.0]])["v"], [[0.25, -7.5, 2.0]])


def test_missing_entries_stay_nan_where_allowed():
    data = np.array([[0, np.nan, 1], [1, 1, np.nan]])
    rows = as_rows(RBM, data, allow_missing=True)
    np.testing.assert_array_equal(rows["v"], data)
    assert rows["v"].dtype == np.float32
    spins = np.array([[-1, np.nan, 1]])
    np.testing.assert_array_equal(as_rows(SPINS, spins, allow_missing=True)["v"], spins)


def test_grey_levels_stay_where_allowed():
    data = np.array([[0, 0.25, 1], [1, 1, 0.5]])
    rows = as_rows(RBM, data, allow_intensities=True)
    np.testing.assert_array_equal(rows["v"], data)
    assert as_rows(RBM, BITS.astype(float), allow_intensities=True)["v"].dtype == np.int8


def test_two_data_sites():
    model = TwoTables(weights=jnp.ones((2, 3)))
    a, b = np.zeros((4, 2, 2), bool), np.full((4, 2), 2)
    rows = as_rows(model, {"b": b, "a": a})
    assert list(rows) == ["a", "b"]
    assert rows["a"].shape == (4, 2, 2)


# ---- rows that are refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, data, message",
    [
        (RBM, [[0, 1, 1], [1, np.nan, 0]], "binary and takes 0 and 1, got NaN at row 1, column 1"),
        (RBM, [[0, 1, np.inf]], "got inf at row 0, column 2"),
        (RBM, [[0, 1, 1], [2, 0, 0]], "got 2 at row 1, column 0"),
        (RBM, [[0, 1, 1], [0, -1, 0]], "got -1 at row 1, column 1"),
        (RBM, [[0, 1, 1], [0, 0, 0.5]], r"got 0\.5 at row 1, column 2; for grey levels"),
        (SPINS, [[-1, 0, 1]], r"spin and takes -1 and \+1, got 0 at row 0, column 1"),
        (LEVELS, [[0, 1, 4]], "integers from 0 to 3, got 4 at row 0, column 2"),
        (LEVELS, [[0, 1.5, 1]], "got 1.5 at row 0, column 1"),
        (REALS, [[0.0, np.nan, 1.0]], "real and takes finite numbers, got NaN at row 0, column 1"),
        (REALS, [[0.0, 1.0, -np.inf]], "got -inf at row 0, column 2"),
    ],
)
def test_values_outside_the_support(model, data, message):
    with pytest.raises(ValueError, match=message):
        as_rows(model, data)


def test_the_first_of_several_wrong_values_is_named_and_the_rest_counted():
    data = np.zeros((5, 3))
    data[2, 1] = data[3, 0] = data[4, 2] = 7
    with pytest.raises(ValueError, match=r"got 7.0 at row 2, column 1 \(and 2 more\)"):
        as_rows(RBM, data)


def test_allowances_do_not_hide_wrong_values():
    """Grey or missing data may still hold a value that is neither."""
    for data, message in [
        ([[0.5, np.nan, 2.0]], "got 2.0 at row 0, column 2"),
        ([[0.5, np.nan, -0.1]], "got -0.1"),
        ([[0.5, 0.5, np.inf]], "got inf"),
    ]:
        with pytest.raises(ValueError, match=message):
            as_rows(RBM, data, allow_missing=True, allow_intensities=True)
    with pytest.raises(ValueError, match="got NaN at row 0, column 1"):
        as_rows(RBM, [[0.5, np.nan, 1.0]], allow_intensities=True)
    with pytest.raises(ValueError, match=r"got 0\.5 at row 0, column 0"):
        as_rows(RBM, [[0.5, np.nan, 1.0]], allow_missing=True)
    with pytest.raises(ValueError, match=r"spin .* got 0\.5"):
        as_rows(SPINS, [[0.5, 1, -1]], allow_intensities=True)
    with pytest.raises(ValueError, match="got inf"):
        as_rows(REALS, [[np.nan, np.inf, 0]], allow_missing=True)


@pytest.mark.parametrize(
    "data, error, message",
    [
        (np.zeros((4, 2)), ValueError, r"must have shape \(rows, 3\), got \(4, 2\)"),
        (np.zeros(3), ValueError, r"must have shape \(rows, 3\), got \(3,\)"),
        (np.zeros((2, 2, 3)), ValueError, r"must have shape \(rows, 3\), got \(2, 2, 3\)"),
        (np.zeros((0, 3)), ValueError, "is empty: at least one row is needed"),
        (np.array([["a", "b", "c"]]), TypeError, "must be numbers, got dtype <U1"),
        (np.zeros((2, 3), complex), TypeError, "must be numbers, got dtype complex128"),
        (np.array([[None, 1, 0]]), TypeError, "must be numbers, got None at row 0, column 0"),
        ({"x": np.zeros((2, 3))}, ValueError, "RBM has no site 'x'; its sites are 'v', 'h'"),
        ({}, ValueError, "lacks site 'v'"),
        (
            {"v": np.zeros((2, 3)), "h": np.zeros((2, 2))},
            ValueError,
            "site 'h', which is latent; the data sites of RBM are 'v'",
        ),
    ],
    ids=[
        "width",
        "one row",
        "rank",
        "empty",
        "text",
        "complex",
        "object",
        "unknown",
        "none",
        "latent",
    ],
)
def test_data_of_a_wrong_form(data, error, message):
    with pytest.raises(error, match=message):
        as_rows(RBM, data)


def test_the_message_names_what_was_given():
    with pytest.raises(ValueError, match=r"validation for site 'v' must have shape \(rows, 3\)"):
        as_rows(RBM, np.zeros((2, 4)), name="validation")


def test_two_data_sites_need_a_dict_of_equal_length():
    model = TwoTables(weights=jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="data sites 'a', 'b': give data as a dict by site"):
        as_rows(model, np.zeros((4, 2, 2)))
    with pytest.raises(ValueError, match="data lacks site 'b'"):
        as_rows(model, {"a": np.zeros((4, 2, 2))})
    with pytest.raises(ValueError, match=r"different numbers of rows: \{'a': 4, 'b': 3\}"):
        as_rows(model, {"a": np.zeros((4, 2, 2)), "b": np.zeros((3, 2))})
    grey = np.zeros((4, 2, 2))
    grey[3, 1, 0] = 0.5
    with pytest.raises(ValueError, match=r"row 3, column \(1, 0\)"):
        as_rows(model, {"a": grey, "b": np.zeros((4, 2))})
