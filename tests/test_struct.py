"""Frozen pytree structs: what they hold, what they refuse."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

import pgm_energy as pgm
from pgm_energy._struct import StaticArray, is_concrete


@pgm.struct
class Pair:
    first: Array
    second: Array
    size: int = pgm.static(default=2)


@pgm.struct
class Holder:
    tree: dict
    optional: Array | None = None
    edges: object = pgm.static(default=None)


def test_leaves_are_the_data_fields_in_order():
    pair = Pair(first=jnp.ones(2), second=jnp.zeros(3), size=5)
    leaves, treedef = jax.tree.flatten(pair)
    assert [leaf.shape for leaf in leaves] == [(2,), (3,)]
    again = jax.tree.unflatten(treedef, leaves)
    assert type(again) is Pair
    assert again.size == 5
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(pair)]
    assert paths == [".first", ".second"]


def test_static_fields_are_structure():
    one, two = (Pair(first=1.0, second=2.0, size=n) for n in (1, 2))
    assert jax.tree.structure(one) != jax.tree.structure(two)
    traces = []

    @jax.jit
    def total(pair):
        traces.append(pair.size)
        return pair.size * (pair.first + pair.second)

    assert float(total(one)) == 3.0
    assert float(total(two)) == 6.0
    assert float(total(Pair(first=2.0, second=2.0, size=2))) == 8.0
    assert traces == [1, 2]


def test_grad_and_vmap_go_through():
    pair = Pair(first=jnp.arange(3.0), second=jnp.ones(3))
    grad = jax.grad(lambda p: jnp.sum(p.first**2 * p.second))(pair)
    np.testing.assert_allclose(grad.first, [0, 2, 4])
    np.testing.assert_allclose(grad.second, [0, 1, 4])
    assert jax.vmap(lambda p: p.first + p.second)(pair).shape == (3,)


@pytest.mark.parametrize(
    ("given", "value"),
    [
        pytest.param(3, 3.0, id="int"),
        pytest.param(2.5, 2.5, id="float"),
        pytest.param(True, 1.0, id="bool"),
        pytest.param(np.int16(4), 4.0, id="numpy-integer"),
        pytest.param(np.arange(3), [0, 1, 2], id="integer-array"),
        pytest.param(np.array([True, False]), [1, 0], id="bool-array"),
        pytest.param(jnp.arange(2), [0, 1], id="jax-integers"),
        pytest.param([[1, 2], [3, 4]], [[1, 2], [3, 4]], id="nested-list"),
        pytest.param((1.0, 2.0), [1, 2], id="tuple"),
        pytest.param(np.ones(2, np.float64), [1, 1], id="double"),
    ],
)
def test_numbers_become_floating_arrays(annotations_unchecked, given, value):
    pair = Pair(first=given, second=0.0)
    assert isinstance(pair.first, jax.Array)
    assert pair.first.dtype == jnp.float32
    np.testing.assert_array_equal(pair.first, value)


def test_trees_of_arrays_and_none_are_data():
    holder = Holder(tree={"a": np.arange(2), "b": {"c": 1}})
    assert holder.optional is None
    assert len(jax.tree.leaves(holder)) == 2
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(holder))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_parameters_that_are_not_finite_are_refused_with_their_place(bad):
    array = np.zeros((2, 3))
    array[1, 2] = bad
    with pytest.raises(ValueError, match=rf"Pair\.first must be finite, got {bad} at index \(1, 2"):
        Pair(first=array, second=0.0)
    with pytest.raises(ValueError, match=r"Holder\.tree must be finite"):
        Holder(tree={"a": array})
    array[0, 0] = bad
    with pytest.raises(ValueError, match=r"\(0, 0\).* \(and 1 more\)"):
        Pair(first=array, second=0.0)
    with pytest.raises(ValueError, match="must be finite"):
        Pair(first=bad, second=0.0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        pytest.param("text", "must be an array .* got str", id="text"),
        pytest.param(object(), "use pgm_energy.static", id="object"),
        pytest.param(np.array([1j]), "real numbers, got dtype complex", id="complex"),
        pytest.param(np.array(["a"]), "not a valid JAX array|real numbers", id="array-of-text"),
    ],
)
def test_what_is_no_parameter_is_refused(annotations_unchecked, bad, message):
    with pytest.raises(TypeError, match=message):
        Pair(first=bad, second=0.0)


def test_unhashable_static_field_is_refused():
    with pytest.raises(TypeError, match=r"Holder\.edges is static and must be hashable, got list"):
        Holder(tree={}, edges=[1, 2])


def test_integer_arrays_as_static_fields_compare_by_content():
    one, same, other = (Holder(tree={}, edges=np.array([[0, k]])) for k in (1, 1, 2))
    assert isinstance(one.edges, StaticArray)
    assert jax.tree.structure(one) == jax.tree.structure(same)
    assert jax.tree.structure(one) != jax.tree.structure(other)
    np.testing.assert_array_equal(np.asarray(one.edges), [[0, 1]])


def test_static_array_is_immutable_and_detached():
    source = np.array([1, 2, 3])
    array = StaticArray(source)
    source[0] = 9
    assert array.array[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        array.array[0] = 5
    with pytest.raises(AttributeError, match="immutable"):
        array.array = source
    assert array == StaticArray([1, 2, 3])
    assert hash(array) == hash(StaticArray([1, 2, 3]))
    assert array != StaticArray([1, 2])
    assert array != StaticArray(np.array([1, 2, 3], np.int8))
    assert array != [1, 2, 3]
    assert (len(array), array.shape) == (3, (3,))
    with pytest.raises(TypeError, match="integers or booleans, got float64"):
        StaticArray([0.5])


def test_subclassing_a_struct_is_refused():
    with pytest.raises(TypeError, match="Pair is final: Triple cannot extend it"):

        class Triple(Pair):
            third: Array

    with pytest.raises(TypeError, match="RBM is final: Mine cannot extend it"):

        @pgm.struct
        class Mine(pgm.RBM):
            extra: Array


def test_frozen_and_keyword_only():
    pair = Pair(first=1.0, second=2.0)
    with pytest.raises(AttributeError):
        pair.first = jnp.ones(())
    with pytest.raises(TypeError, match="positional"):
        Pair(1.0, 2.0)
    with pytest.raises(TypeError, match="third"):
        Pair(first=1.0, second=2.0, third=3.0)


def test_equality_is_identity_so_that_models_can_be_compared_and_hashed():
    one, two = (Pair(first=jnp.ones(2), second=1.0) for _ in range(2))
    assert one == one
    assert one != two
    assert len({one, two}) == 2


def test_replace_checks_again():
    pair = Pair(first=jnp.ones(2), second=1.0)
    changed = pgm.replace(pair, second=3)
    assert (float(changed.second), changed.first is pair.first) == (3.0, True)
    assert float(pair.second) == 1.0
    with pytest.raises(ValueError, match="finite"):
        pgm.replace(pair, second=np.nan)


def test_validate_runs_last_and_not_on_unflatten():
    seen = []

    @pgm.struct
    class Checked:
        value: Array

        def validate(self):
            seen.append(self.value.dtype)

    checked = Checked(value=1)
    assert seen == [jnp.float32]
    jax.tree.map(lambda x: x, checked)
    jax.jit(lambda c: c.value)(checked)
    assert len(seen) == 1


def test_unflatten_takes_placeholders():
    pair = Pair(first=1.0, second=2.0)
    nothing = jax.tree.map(lambda _: None, pair)
    assert nothing.first is None
    shapes = jax.eval_shape(lambda p: p, pair)
    assert shapes.first.shape == ()


def test_is_concrete_tells_tracers():
    pair = Pair(first=1.0, second=2.0)
    assert is_concrete(pair)
    seen = []
    jax.jit(lambda p: seen.append(is_concrete(p)))(pair)
    assert seen == [False]


def test_constructing_inside_jit_passes_tracers_through():
    made = jax.jit(lambda x: Pair(first=x, second=2 * x))(jnp.ones(2))
    np.testing.assert_array_equal(made.second, [2, 2])


def test_pickle_round_trip_keeps_a_model_usable():
    # not a file format of ours, but multiprocessing and copy use it
    rbm = pgm.RBM(weights=jnp.ones((2, 1)))
    again = pickle.loads(pickle.dumps(rbm))
    np.testing.assert_array_equal(again.weights, rbm.weights)
    assert jax.tree.structure(again) == jax.tree.structure(rbm)


@pytest.mark.usefixtures("annotations_unchecked")
def test_text_is_no_parameter():
    with pytest.raises(TypeError, match=r"RBM.weights must be real numbers, got dtype <U1"):
        pgm.RBM(weights=np.array([["a"]]))
