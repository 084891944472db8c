"""Sparse machines against dense ones, and lattices against enumeration and transfer matrices."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import all_states, assert_invariant, law

import pgm_energy as pgm
from pgm_energy.energy import EnergyModel
from pgm_energy.natural import derive_natural_parameters

RANDOM = [(0, 3), (4, 1), (2, 3), (0, 5), (5, 4), (1, 2)]
STAR = [(0, i) for i in range(1, 30)]


def random_machine(edges, num_units, unit, seed=0):
    rng = np.random.default_rng(seed)
    values, bias = rng.normal(size=len(edges)), rng.normal(size=num_units)
    return pgm.SparseBoltzmannMachine.from_edges(edges, values, bias, unit=unit)


def dense(machine):
    weights = np.zeros((machine.bias.size,) * 2)
    for (i, j), value in zip(np.asarray(machine.edges), np.asarray(machine.values), strict=True):
        weights[i, j] = weights[j, i] = value
    bias = jnp.asarray(machine.bias.reshape(-1))
    return pgm.BoltzmannMachine(weights=jnp.asarray(weights), bias=bias, unit=machine.unit)


GRAPHS = [pytest.param(RANDOM, 7, id="table"), pytest.param(STAR, 30, id="hub")]


@pytest.mark.x64
@pytest.mark.parametrize("unit", [pgm.Binary, pgm.Spin])
@pytest.mark.parametrize("edges, num_units", GRAPHS)
def test_energy_and_natural_parameters_are_those_of_the_dense_machine(edges, num_units, unit):
    machine = random_machine(edges, num_units, unit)
    assert (machine.neighbours is None) == (num_units == 30)
    full = dense(machine)
    rng = np.random.default_rng(1)
    rows = rng.choice(machine.sites["v"].states, (20, num_units))
    np.testing.assert_allclose(
        machine.log_density({"v": rows}), full.log_density({"v": rows}), atol=1e-12
    )
    index = jnp.array([4, 0, 2])
    for model in (machine, full):
        for where in (None, index):
            found = model.natural_parameters("v", {"v": rows[0]}, where).eta
            derived = derive_natural_parameters(machine, "v", {"v": rows[0]}, where).eta
            np.testing.assert_allclose(found, derived, atol=1e-12)
    np.testing.assert_allclose(
        machine.block_couplings("v", index), full.block_couplings("v", index), atol=1e-12
    )
    np.testing.assert_allclose(
        machine.block_couplings("v", index),
        EnergyModel.block_couplings(machine, "v", index),
        atol=1e-12,
    )


@pytest.mark.x64
@pytest.mark.parametrize("unit", [pgm.Binary, pgm.Spin])
@pytest.mark.parametrize(
    "edges", [RANDOM, list(itertools.combinations(range(6), 2))], ids=["colours", "panels"]
)
def test_sweep_leaves_the_exact_law_invariant(edges, unit):
    assert_invariant(random_machine(edges, 6, unit))


@pytest.mark.x64
@pytest.mark.parametrize(
    "shape, periodic", [((3, 3), True), ((2, 3), False), ((2, 4), (False, True)), (5, True)]
)
def test_lattice_sweep_leaves_the_exact_law_invariant(shape, periodic):
    field = 0.1 * jnp.arange(np.prod(shape), dtype=float).reshape(shape)
    assert_invariant(pgm.ising_lattice(shape, coupling=0.4, field=field, periodic=periodic))


@pytest.mark.x64
def test_a_wrong_checkerboard_is_seen_by_the_same_check():
    """Positive control: two colours on an odd torus update neighbours at once."""
    lattice = pgm.ising_lattice((3, 3), coupling=0.4)
    with pytest.raises(ValueError, match="interact"):
        pgm.blocks(lattice, [pgm.Block("v", [0, 2, 4, 6, 8]), pgm.Block("v", [1, 3, 5, 7])])


def pairs(shape, periodic):
    """Nearest neighbours by walking over the lattice."""
    found = set()
    for place in itertools.product(*map(range, shape)):
        for axis, side in enumerate(shape):
            other = list(place)
            other[axis] += 1
            if other[axis] == side:
                if not periodic[axis]:
                    continue
                other[axis] = 0
            found.add(frozenset(np.ravel_multi_index(p, shape) for p in (place, tuple(other))))
    return found


@pytest.mark.parametrize(
    "shape, periodic, colours",
    [
        ((4, 6), (True, True), 2),
        ((3, 4), (True, True), 3),
        ((5, 3), (True, True), 3),
        ((5, 3), (False, False), 2),
        ((1, 5), (False, False), 2),
        ((2, 4), (False, True), 2),
        ((3, 4, 5), (True, False, True), 3),
        ((7,), (True,), 3),
    ],
)
def test_lattice_couples_nearest_neighbours_and_colours_them(shape, periodic, colours):
    lattice = pgm.ising_lattice(shape, coupling=1.0, periodic=periodic)
    edges = np.asarray(lattice.edges)
    assert {frozenset(edge) for edge in edges.tolist()} == pairs(shape, periodic)
    assert len(edges) == len(pairs(shape, periodic))
    labels = np.asarray(lattice.colours)
    assert (labels[edges[:, 0]] != labels[edges[:, 1]]).all()
    assert len(np.unique(labels)) == colours
    assert lattice.sites["v"].shape == shape


def test_lattice_schedule_has_one_row_per_colour():
    (step,) = pgm.blocks(pgm.ising_lattice((64, 64), coupling=0.3)).steps
    assert (step.kind, step.num_rows, step.index.shape) == ("joint", 2, (2, 2048))
    (step,) = pgm.blocks(pgm.ising_lattice((9, 8), coupling=0.3)).steps
    assert (step.kind, step.num_rows) == ("joint", 3)


def test_coupling_per_axis_and_fields():
    lattice = pgm.ising_lattice((2, 2), coupling=(0.5, 0.25), field=0.1, periodic=False)
    spins = jnp.array([[1, -1], [1, -1]])
    # two vertical bonds agree, two horizontal ones do not, no magnetisation
    assert float(lattice.log_density({"v": spins})) == pytest.approx(2 * 0.5 - 2 * 0.25)
    assert float(lattice.log_density({"v": jnp.ones((2, 2))})) == pytest.approx(1.5 + 0.4)


@pytest.mark.x64
def test_log_partition_of_a_torus_is_that_of_the_transfer_matrix():
    coupling, side = 0.35, 4
    rows = np.array(list(itertools.product([-1, 1], repeat=side)))
    inside = coupling * (rows * np.roll(rows, 1, axis=1)).sum(axis=1)
    transfer = np.exp(coupling * rows @ rows.T + 0.5 * (inside[:, None] + inside))
    expected = np.log(np.trace(np.linalg.matrix_power(transfer, side)))
    _, _, log_z = law(pgm.ising_lattice((side, side), coupling=coupling))
    assert log_z == pytest.approx(expected, abs=1e-10)


def test_learning_one_coupling_per_edge_has_a_sparse_gradient():
    machine = random_machine(RANDOM, 7, pgm.Spin)
    states = all_states(machine)["v"][:5].astype(float)
    gradient = jax.grad(lambda m: m.energy(v=jnp.asarray(states[3])))(machine)
    expected = [-states[3][i] * states[3][j] for i, j in RANDOM]
    np.testing.assert_allclose(gradient.values, expected)
    moved = pgm.replace(machine, values=machine.values + 1.0)
    assert moved.neighbours is machine.neighbours  # the tables are not made again
    other = pgm.replace(machine, edges=np.array(RANDOM)[::-1])
    assert other.neighbours is not machine.neighbours


def test_init_sets_biases_from_frequencies(rng_key):
    rows = np.array([[0, 1, 1]] * 60 + [[1, 1, 1]] * 20)
    machine = pgm.SparseBoltzmannMachine.init(rng_key, edges=[(0, 1)], num_visible=3, data=rows)
    np.testing.assert_allclose(jax.nn.sigmoid(machine.bias), (rows.sum(0) + 0.5) / 81, rtol=1e-5)
    assert machine.values.shape == (1,)


def test_without_edges_units_are_independent():
    machine = pgm.SparseBoltzmannMachine.from_edges([], [], [0.5, -0.5])
    (step,) = pgm.blocks(machine).steps
    assert step.index is None
    np.testing.assert_allclose(
        machine.natural_parameters("v", {"v": jnp.array([1, 1])}).eta, [0.5, -0.5]
    )


MAKE = functools.partial(pgm.SparseBoltzmannMachine.from_edges, bias=np.zeros(3))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: MAKE([(0, 1), (2, 2)], 1.0), "edge 1 couples unit 2 to itself"),
        (
            lambda: MAKE([(0, 1), (1, 2), (1, 0)], 1.0),
            r"edges 0 and 2 join .* \(0, 1\)",
        ),
        (lambda: MAKE([(0, 3)], 1.0), r"edge 0 is \(0, 3\), but there are 3 units, 0 to 2"),
        (lambda: MAKE([(0, -1)], 1.0), r"edge 0 is \(0, -1\)"),
        (lambda: MAKE([(0.0, 1.0)], 1.0), r"integers of shape \(m, 2\), got float64"),
        (lambda: MAKE([0, 1], 1.0), r"integers of shape \(m, 2\), got int64 of shape \(2,\)"),
        (lambda: MAKE([(0, 1)], [1.0, 2.0]), r"one coupling per edge, shape \(1,\), got \(2,\)"),
        (lambda: MAKE([(0, 1)], [np.inf]), "values must be finite, got inf"),
        (
            lambda: pgm.SparseBoltzmannMachine.from_edges([(0, 1)], 1.0, np.zeros((2, 2))),
            r"bias must have shape \(n,\), got \(2, 2\)",
        ),
        (
            lambda: pgm.SparseBoltzmannMachine(
                values=jnp.ones(1),
                bias=jnp.zeros(2),
                edges=np.array([[0, 1]]),
                colours=np.array([1, 1]),
            ),
            "units 0 and 1 are coupled and have the same colour",
        ),
        (lambda: pgm.ising_lattice((2, 4), 0.3), "axis 0 of length 2 .* couple each pair twice"),
        (lambda: pgm.ising_lattice((4, 1), 0.3), "axis 1 of length 1 .* couple a unit to itself"),
        (lambda: pgm.ising_lattice((4, 0), 0.3), "positive integers"),
        (lambda: pgm.ising_lattice((4, 4), [0.3] * 3), r"one per axis \(2\), got shape \(3,\)"),
        (lambda: pgm.ising_lattice((4, 4), 0.3, np.zeros(4)), "field must be one number or have"),
        (lambda: pgm.ising_lattice((4, 4), 0.3, periodic=(True,)), "one of them per axis"),
    ],
)
def test_bad_graphs_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_other_families_are_refused():
    with pytest.raises(TypeError, match="unit must be Binary or Spin"):
        MAKE([(0, 1)], 1.0, unit=pgm.Real)
