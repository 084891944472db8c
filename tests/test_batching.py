"""Chains on the last axis: the results of an ordinary vmap, in the layout that was asked for."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pgm_energy as pgm
from pgm_energy import _random
from pgm_energy._batching import scan_units, with_chains_last

RNG = np.random.default_rng(2)
CHAINS, OTHERS = 3, 2


def subsets(names):
    """Every choice of mapped arguments but none, with an id."""
    flags = [f for f in itertools.product([False, True], repeat=len(names)) if any(f)]
    ids = ["+".join(n for n, flag in zip(names, f, strict=True) if flag) for f in flags]
    return [pytest.param(f, id=name) for f, name in zip(flags, ids, strict=True)]


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def assert_trees_close(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for mine, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert mine.shape == other.shape
        assert mine.dtype == other.dtype
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


# ---- with_chains_last ----------------------------------------------------------------------------


def window(tree, scale, matrix, start):
    """A product and a slice, element by element in the trailing axes."""
    moved = jnp.tensordot(matrix, tree["x"], axes=1) * scale
    part = jax.lax.dynamic_slice_in_dim(moved, start, 2) + tree["more"][0][:2]
    return {"all": moved - scale, "part": (part,)}


FIXED = (2, 3)


def window_arguments(flags, *sizes):
    """Arguments of ``window``; ``flags`` has a row per size, outermost first."""

    def lead(i):
        return tuple(size for row, size in zip(flags, sizes, strict=True) if row[i])

    starts = jnp.asarray(RNG.integers(0, 3, lead(3)), jnp.int32)
    tree = {"x": normal(*lead(0), 4), "more": [normal(*lead(0), 4)]}
    return tree, normal(*lead(1), 4), normal(*lead(2), 4, 4), starts


def axes(flags):
    return tuple(0 if flag else None for flag in flags)


@pytest.mark.parametrize("flags", subsets(["tree", "scale", "matrix", "start"]))
def test_mapped_function_equals_vmap(flags):
    arguments = window_arguments([flags], CHAINS)
    expected = jax.jit(jax.vmap(window, in_axes=axes(flags)))(*arguments)
    mine = jax.vmap(with_chains_last(window, FIXED), in_axes=axes(flags))
    assert_trees_close(jax.jit(mine)(*arguments), expected)


@pytest.mark.parametrize(
    "outer",
    [(True, True, False, False), (False, True, False, False), (True, False, False, True)],
    ids=["tree+scale", "scale", "tree+start"],
)
@pytest.mark.parametrize(
    "inner",
    [(True, False, False, False), (True, True, False, False), (True, False, True, False)],
    ids=["tree", "tree+scale", "tree+matrix"],
)
def test_mapped_twice_equals_vmap_twice(outer, inner):
    arguments = window_arguments([outer, inner], OTHERS, CHAINS)

    def twice(function):
        return jax.vmap(jax.vmap(function, in_axes=axes(inner)), in_axes=axes(outer))

    assert_trees_close(
        jax.jit(twice(with_chains_last(window, FIXED)))(*arguments),
        jax.jit(twice(window))(*arguments),
    )


def test_unmapped_function_is_the_function_itself():
    arguments = window_arguments([])
    assert_trees_close(with_chains_last(window, FIXED)(*arguments), window(*arguments))


def test_comparison_sees_a_function_that_mixes_chains():
    """Positive control: one that is not element by element in the trailing axes."""
    x = normal(CHAINS, 4)

    def centre(x):
        return x - jnp.mean(x)

    found, expected = jax.vmap(with_chains_last(centre))(x), jax.vmap(centre)(x)
    with pytest.raises(AssertionError):
        assert_trees_close(found, expected)


def test_chains_come_last_unless_a_fixed_argument_is_mapped():
    shapes = []

    def noted(x, start):
        shapes.append(x.shape)
        return x[:2] + start

    mine = with_chains_last(noted, fixed=(1,))
    jax.vmap(mine, in_axes=(0, None))(normal(CHAINS, 4), jnp.int32(1))
    assert shapes[-1] == (4, CHAINS)
    jax.vmap(jax.vmap(mine, in_axes=(0, None)), in_axes=(0, None))(
        normal(OTHERS, CHAINS, 4), jnp.int32(1)
    )
    assert shapes[-1] == (4, CHAINS, OTHERS)
    jax.vmap(mine)(normal(CHAINS, 4), jnp.arange(CHAINS))
    assert shapes[-1] == (4,)  # an ordinary vmap, whose body sees one chain


def test_derivatives_equal_those_of_the_function():
    tree, scale, matrix, start = window_arguments([(True, False, False, False)], CHAINS)

    def losses(function):
        def loss(tree, scale, matrix):
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(function(tree, scale, matrix)))

        def total(tree, scale, matrix):
            return jax.vmap(loss, in_axes=(0, None, None))(tree, scale, matrix).sum()

        each = jax.vmap(jax.grad(loss, argnums=(0, 1, 2)), in_axes=(0, None, None))
        tangents = jax.tree.map(jnp.ones_like, (tree, scale, matrix))
        return [
            each(tree, scale, matrix),
            jax.grad(total, argnums=(0, 1, 2))(tree, scale, matrix),
            jax.jvp(total, (tree, scale, matrix), tangents),
        ]

    mine = with_chains_last(window, FIXED)
    assert_trees_close(
        losses(lambda *args: mine(*args, start)), losses(lambda *args: window(*args, start))
    )


def test_a_marginal_energy_has_a_gradient():
    """The hidden unit's natural parameters are such a function."""
    weights = jnp.asarray([[0.0, 1.0, 0.5], [1.0, 0.0, 0.25], [0.5, 0.25, 0.0]])
    model = pgm.BoltzmannMachine(weights=weights, num_hidden=1)

    def closed_form(v):
        return -weights[0, 1] * v[0] * v[1] - jnp.logaddexp(0.0, weights[2, :2] @ v)

    v = jnp.asarray([1.0, 0.0])
    found = jax.grad(lambda v: pgm.marginalize(model, "h").energy(v=v))(v)
    np.testing.assert_allclose(found, jax.grad(closed_form)(v), rtol=1e-5)


def test_fields_of_a_sparse_machine_have_a_gradient():
    edges, slopes = np.array([[0, 1], [1, 2]]), jnp.asarray([1.0, 10.0, 100.0])
    values = {"v": jnp.ones(3, jnp.int8)}
    index = jnp.arange(3)

    def total(couplings):
        model = pgm.SparseBoltzmannMachine(edges=edges, values=couplings, bias=jnp.zeros(3))
        return model.natural_parameters("v", values, index).eta @ slopes

    found = jax.grad(total)(jnp.asarray([0.5, -1.0]))
    np.testing.assert_allclose(found, [11.0, 110.0], rtol=1e-5)


# ---- scan_units ----------------------------------------------------------------------------------


def body(constants, carry, x):
    total, seen = carry
    noise = _random.uniform(x["key"], (4,))
    total = 0.5 * total + constants["matrix"] @ (total * x["row"]) + noise
    return (total, seen + jnp.sum(total > constants["level"][0])), {
        "max": total.max(),
        "all": total,
    }


def scan_arguments(flags, *sizes):
    def lead(i):
        return tuple(size for row, size in zip(flags, sizes, strict=True) if row[i])

    constants = {"matrix": normal(*lead(0), 4, 4), "level": (normal(*lead(0)),)}
    carry = (normal(*lead(1), 4), jnp.zeros(lead(1), jnp.int32))
    keys = jax.random.split(jax.random.key(1), (*lead(2), 5))
    return constants, carry, {"row": normal(*lead(2), 5, 4), "key": keys}


def plain_scan(constants, carry, xs):
    return jax.lax.scan(lambda carry, x: body(constants, carry, x), carry, xs)


def units_scan(constants, carry, xs):
    return scan_units(body, constants, carry, xs)


@pytest.mark.parametrize("flags", subsets(["constants", "carry", "xs"]))
def test_mapped_scan_equals_vmap_of_scan(flags):
    arguments = scan_arguments([flags], CHAINS)
    mine, plain = (jax.jit(jax.vmap(f, in_axes=axes(flags))) for f in (units_scan, plain_scan))
    assert_trees_close(mine(*arguments), plain(*arguments))


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        ((True, False, False), (False, True, True)),
        ((False, True, True), (False, False, True)),
        ((True, True, True), (True, True, True)),
    ],
    ids=["models of chains", "carry, then keys", "all of all"],
)
def test_scan_mapped_twice_equals_vmap_twice(outer, inner):
    arguments = scan_arguments([outer, inner], OTHERS, CHAINS)
    mine, plain = (
        jax.jit(jax.vmap(jax.vmap(f, in_axes=axes(inner)), in_axes=axes(outer)))
        for f in (units_scan, plain_scan)
    )
    assert_trees_close(mine(*arguments), plain(*arguments))


def test_unmapped_scan_is_scan():
    arguments = scan_arguments([])
    assert_trees_close(jax.jit(units_scan)(*arguments), jax.jit(plain_scan)(*arguments))


def test_scan_without_constants_or_outputs():
    def step(_, carry, x):
        return carry + x, None

    xs = normal(CHAINS, 5, 4)
    found, nothing = jax.vmap(lambda xs: scan_units(step, None, jnp.zeros(4), xs))(xs)
    assert nothing is None
    np.testing.assert_allclose(found, xs.sum(1), rtol=1e-5)


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)  # closed or open
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def test_scan_keeps_its_chains_last():
    def shape(function):
        flags = (False, True, True)
        mapped = jax.vmap(function, in_axes=axes(flags))
        jaxpr = jax.make_jaxpr(mapped)(*scan_arguments([flags], CHAINS))
        (scan,) = (e for e in equations(jaxpr.jaxpr) if e.primitive.name == "scan")
        return scan.outvars[0].aval.shape  # of the first leaf of the carry

    assert shape(units_scan) == (4, CHAINS)
    assert shape(plain_scan) == (CHAINS, 4)  # positive control


# ---- a kernel over chains is the kernel of each chain --------------------------------------------


def machine(seed, unit, size=40, num_hidden=0):
    """Couplings in eighths: the fields are exact sums, the same in any order of summation."""
    upper = np.triu(np.random.default_rng(seed).integers(-6, 7, (size, size)) / 8, 1)
    bias = np.random.default_rng(seed + 1).integers(-4, 5, size) / 8
    return pgm.BoltzmannMachine(
        weights=jnp.asarray(upper + upper.T, jnp.float32),
        bias=jnp.asarray(bias, jnp.float32),
        num_hidden=num_hidden,
        unit=unit,
    )


def start(model, num_chains):
    rng = np.random.default_rng(9)
    states = {"Binary": [0, 1], "Spin": [-1, 1]}[model.unit.__name__]
    return {
        name: jnp.asarray(rng.choice(states, (num_chains, site.size)), jnp.int8)
        for name, site in model.sites.items()
    }


def sweeps(model, num_sweeps=6):
    kernel = pgm.gibbs_kernel(pgm.blocks(model))

    def run(rng_key, values, model):
        def sweep(values, key):
            return kernel(key, values, model)

        return jax.lax.scan(sweep, values, _random.split(rng_key, num_sweeps))[0]

    return run


@pytest.mark.parametrize(("unit", "num_hidden"), [(pgm.Binary, 7), (pgm.Spin, 0)])
def test_chains_of_a_dense_machine_equal_a_loop_draw_for_draw(rng_key, unit, num_hidden):
    model = machine(0, unit, num_hidden=num_hidden)
    run, values = sweeps(model), start(model, CHAINS)
    keys = _random.split(rng_key, CHAINS)
    found = jax.jit(jax.vmap(run, in_axes=(0, 0, None)))(keys, values, model)
    alone = jax.jit(run)

    def loop(keys):
        chains = [
            alone(keys[c], {name: x[c] for name, x in values.items()}, model) for c in range(CHAINS)
        ]
        return {name: np.stack([chain[name] for chain in chains]) for name in values}

    expected, control = loop(keys), loop(keys[jnp.asarray([0, 2, 1])])
    for name, x in found.items():
        assert (x != values[name]).any()
        np.testing.assert_array_equal(x, expected[name])
        # positive control: chains 1 and 2 with each other's keys
        np.testing.assert_array_equal(x[0], control[name][0])
        assert (np.asarray(x[1:]) != control[name][1:]).any(axis=1).all()


def test_chains_and_models_mapped_together_equal_a_loop_draw_for_draw(rng_key):
    models = [machine(seed, pgm.Spin) for seed in (0, 5)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    run, values = sweeps(models[0]), start(models[0], CHAINS)
    keys = _random.split(rng_key, CHAINS)
    over_chains = jax.vmap(run, in_axes=(0, 0, None))
    found = jax.jit(jax.vmap(over_chains, in_axes=(None, None, 0)))(keys, values, stacked)
    alone = jax.jit(run)
    for m, model in enumerate(models):
        for c in range(CHAINS):
            expected = alone(keys[c], {"v": values["v"][c]}, model)
            np.testing.assert_array_equal(found["v"][m, c], expected["v"])
    assert (np.asarray(found["v"][0]) != found["v"][1]).any()  # positive control


def test_a_body_that_reads_a_mapped_array_is_refused():
    """It would have to be a constant: custom_vmap itself only asserts."""

    def one(level, xs):
        return scan_units(lambda _, total, x: (total + level * x, x), None, jnp.zeros(()), xs)

    assert one(jnp.float32(2.0), jnp.ones(3))[0] == 6.0
    with pytest.raises(ValueError, match="make it a field of the model, and map over the model"):
        jax.vmap(one, in_axes=(0, None))(jnp.arange(3.0), jnp.ones(3))


def test_an_assertion_of_the_energy_itself_is_passed_on():
    def checked(_, total, x):
        raise AssertionError("mine")

    with pytest.raises(AssertionError, match="mine"):
        scan_units(checked, None, jnp.zeros(()), jnp.ones(3))
