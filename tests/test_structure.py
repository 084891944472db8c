"""Schedules: what is drawn together, how it is printed, and that it is right."""

import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax import Array

import pgm_energy as pgm
from pgm_energy.colouring import PANEL


@pgm.struct
class Layered(pgm.EnergyModel):
    """A deep Boltzmann machine v - h1 - h2 - h3."""

    first: Array
    second: Array
    third: Array
    bias: Array
    data_sites = ("v",)

    @property
    def sites(self):
        sizes = (*self.first.shape, self.second.shape[1], self.third.shape[1])
        return {name: pgm.Binary(n) for name, n in zip(("v", "h1", "h2", "h3"), sizes, strict=True)}

    def energy(self, v, h1, h2, h3):
        pairs = v @ self.first @ h1 + h1 @ self.second @ h2 + h2 @ self.third @ h3
        return -pairs - self.bias * (v.sum() + h1.sum() + h2.sum() + h3.sum())


@pgm.struct
class Lattice(pgm.EnergyModel):
    """Spins with neighbours right and below; ``told`` is what ``interactions`` returns."""

    coupling: Array
    field: Array
    shape: tuple = pgm.static()
    periodic: bool = pgm.static(default=True)
    told: object = pgm.static(default=None)

    @property
    def sites(self):
        return {"v": pgm.Spin(self.shape)}

    def energy(self, v):
        total = jnp.sum(self.field * v)
        for axis in range(len(self.shape)):
            moved = jnp.roll(v, -1, axis)
            pairs = v * moved
            if not self.periodic:
                pairs = jax.lax.slice_in_dim(pairs, 0, self.shape[axis] - 1, axis=axis)
            total = total + self.coupling * jnp.sum(pairs)
        return -total

    def interactions(self, site):
        return None if self.told is None else np.asarray(self.told)


def lattice(shape, **options):
    rng = np.random.default_rng(3)
    return Lattice(coupling=0.3, field=rng.normal(scale=0.2, size=shape), shape=shape, **options)


def layered(sizes=(2, 2, 2, 2), scale=0.8):
    rng = np.random.default_rng(4)
    weights = [scale * rng.normal(size=pair) for pair in itertools.pairwise(sizes)]
    return Layered(first=weights[0], second=weights[1], third=weights[2], bias=-0.2)


def dense(num, unit=pgm.Binary, num_hidden=0, scale=0.5):
    rng = np.random.default_rng(6)
    weights = rng.normal(scale=scale, size=(num, num)).astype(np.float32)
    weights = np.triu(weights, 1)
    bias = rng.normal(size=num)
    return pgm.BoltzmannMachine(
        weights=jnp.asarray(weights + weights.T),
        bias=jnp.asarray(bias),
        num_hidden=num_hidden,
        unit=unit,
    )


def test_bipartite_model_has_two_blocks():
    schedule = pgm.blocks(pgm.RBM(weights=jnp.ones((5, 3))))
    assert [[s.site for s in group] for group in schedule.groups] == [["v"], ["h"]]
    assert [step.kind for step in schedule.steps] == ["joint", "joint"]
    assert schedule.num_blocks == 2
    assert str(schedule) == (
        "RBM: one sweep is 2 blocks in turn\n"
        "  1  v  5 binary units  all units at once\n"
        "  2  h  3 binary units  all units at once"
    )
    assert repr(schedule) == str(schedule)
    assert hash(schedule) == hash(pgm.blocks(pgm.RBM(weights=jnp.zeros((5, 3)))))


@pytest.mark.x64
def test_layers_are_updated_odd_and_even():
    model = layered()
    schedule = pgm.blocks(model)
    assert [[s.site for s in group] for group in schedule.groups] == [["v", "h2"], ["h1", "h3"]]
    assert all(step.kind == "joint" for step in schedule.steps)
    assert schedule.num_blocks == 2
    oracles.assert_invariant(model, schedule, tolerance=1e-10)


def test_layers_by_hand_all_at_once_are_still_right():
    """A list of sites is a sequence of updates, not one update of all."""
    model = layered()
    oracles.assert_invariant(model, pgm.blocks(model, ["h1", "h2", "v", "h3"]))


@pytest.mark.parametrize(
    ("shape", "periodic", "colours"),
    [
        ((4, 4), True, 2),
        ((2, 6), True, 2),
        ((6, 6), True, 2),
        ((5, 5), True, 3),
        ((4, 5), True, 3),
        ((3, 3), True, 3),
        ((3, 4), True, 3),
        ((5, 5), False, 2),
        ((3, 3), False, 2),
        ((8,), True, 2),
        ((7,), True, 3),
    ],
)
def test_lattice_is_coloured(shape, periodic, colours):
    model = lattice(shape, periodic=periodic)
    (step,) = pgm.blocks(model).steps
    assert (step.kind, step.num_rows) == ("joint", colours)
    assert step.describe() == f"{colours} colours, each at once"
    units = step.index.array, step.mask.array
    position = np.array(list(np.ndindex(*shape)))
    for row, mask in zip(*units, strict=True):
        chosen = position[row[mask]]
        apart = np.abs(chosen[:, None] - chosen[None])
        if periodic:
            apart = np.minimum(apart, np.array(shape) - apart)
        assert not (apart.sum(axis=-1) == 1).any(), "neighbours share a colour"
    covered = np.sort(np.concatenate([r[m] for r, m in zip(*units, strict=True)]))
    np.testing.assert_array_equal(covered, np.arange(np.prod(shape)))


@pytest.mark.x64
@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (7,)])
def test_coloured_sweep_is_exact(shape):
    oracles.assert_invariant(lattice(shape), tolerance=1e-10)


def torus_edges(rows, columns):
    number = np.arange(rows * columns).reshape(rows, columns)
    right = np.stack([number, np.roll(number, -1, 1)], -1).reshape(-1, 2)
    below = np.stack([number, np.roll(number, -1, 0)], -1).reshape(-1, 2)
    return np.concatenate([right, below])


CHECKERBOARD = np.indices((4, 4)).sum(axis=0).ravel() % 2


@pytest.mark.parametrize(
    ("told", "rows"),
    [
        pytest.param(torus_edges(4, 4), 2, id="edges"),
        pytest.param(CHECKERBOARD, 2, id="colours"),
        pytest.param(np.indices((4, 4)).sum(axis=0).ravel() % 4, 4, id="more-colours"),
    ],
)
def test_interactions_that_are_told_are_used(told, rows):
    (step,) = pgm.blocks(lattice((4, 4), told=told)).steps
    assert (step.kind, step.num_rows) == ("joint", rows)


@pytest.mark.parametrize(
    "told",
    [
        pytest.param(torus_edges(4, 4)[:-1], id="one-edge-missing"),
        pytest.param(torus_edges(4, 4)[:16], id="rows-only"),
        pytest.param(np.indices((4, 4))[0].ravel() % 2, id="stripes"),
        pytest.param(np.where(np.arange(16) == 5, 1 - CHECKERBOARD, CHECKERBOARD), id="one-unit"),
        pytest.param(np.zeros(16, int), id="one-colour"),
    ],
)
def test_interactions_that_are_wrong_are_caught(told):
    """They are probed, never trusted: the sweep is then sequential, and still right."""
    (step,) = pgm.blocks(lattice((4, 4), told=told)).steps
    for row, mask in zip(step.index.array, step.mask.array, strict=True):
        if step.kind == "joint":
            place = np.stack(np.unravel_index(row[mask], (4, 4)), axis=-1)
            apart = np.abs(place[:, None] - place[None])
            assert not (np.minimum(apart, 4 - apart).sum(axis=-1) == 1).any()


@pytest.mark.parametrize("told", [np.zeros((3, 3), int), np.zeros(5, int)])
def test_interactions_of_a_wrong_shape_are_told(told):
    with pytest.raises(ValueError, match=r"edges \(m, 2\) or colours \(16,\), got int64"):
        pgm.blocks(lattice((4, 4), told=told))


@pytest.mark.x64
@pytest.mark.parametrize("unit", [pgm.Binary, pgm.Spin])
@pytest.mark.parametrize("num_hidden", [0, 3])
def test_dense_machine_is_swept_in_turn(unit, num_hidden):
    model = dense(7, unit, num_hidden)
    schedule = pgm.blocks(model)
    assert {step.kind for step in schedule.steps} == {"sequential"}
    oracles.assert_invariant(model, schedule, tolerance=1e-10)


@pytest.mark.x64
@pytest.mark.parametrize("unit", [pgm.Binary, pgm.Spin])
@pytest.mark.parametrize("num", [PANEL, PANEL + 5, 2 * PANEL + 3])
def test_panels_equal_single_unit_updates(num, unit):
    """The probability of a whole sweep is the product of those of its single updates."""
    model = dense(num, unit, scale=0.3)
    schedule = pgm.blocks(model)
    (step,) = schedule.steps
    assert step.kind == "sequential"
    order = step.index.array[step.mask.array]
    np.testing.assert_array_equal(np.sort(order), np.arange(num))
    assert step.num_rows == -(-num // PANEL)
    kernel = pgm.gibbs_kernel(schedule)
    found = jax.jit(kernel.transition_log_prob)
    rng = np.random.default_rng(8)
    states = oracles.unit_states(unit(1))
    weights, bias = np.asarray(model.weights, float), np.asarray(model.bias, float)
    for _ in range(4):
        old, new = rng.choice(states, (2, num))
        x, expected = old.astype(float), 0.0
        for unit_index in order:
            trial = np.tile(x, (2, 1))
            trial[:, unit_index] = states
            energy = -0.5 * np.einsum("si,ij,sj->s", trial, weights, trial) - trial @ bias
            log_prob = -energy - np.logaddexp(*(-energy))
            expected += log_prob[int(np.flatnonzero(states == new[unit_index])[0])]
            x[unit_index] = new[unit_index]
        got = float(found({"v": jnp.asarray(old)}, {"v": jnp.asarray(new)}, model))
        np.testing.assert_allclose(got, expected, rtol=1e-9)


@pytest.mark.parametrize(
    "pair",
    [
        pytest.param((dense(6), pgm.BoltzmannMachine(weights=jnp.zeros((6, 6)))), id="machine"),
        pytest.param(
            (pgm.RBM(weights=jnp.ones((4, 3))), pgm.RBM(weights=jnp.zeros((4, 3)))), id="rbm"
        ),
        pytest.param(
            (lattice((4, 4)), Lattice(coupling=0.0, field=jnp.zeros((4, 4)), shape=(4, 4))),
            id="lattice",
        ),
        pytest.param((layered(), layered(scale=0.0)), id="layers"),
    ],
)
def test_zero_couplings_get_the_schedule_of_the_trained_self(pair):
    from pgm_energy import probe

    trained, zero = pair
    probe._CACHE.clear()
    from_zero = pgm.blocks(zero)
    probe._CACHE.clear()
    assert from_zero == pgm.blocks(trained)


def test_independent_sites_share_a_block():
    @pgm.struct
    class Apart(pgm.EnergyModel):
        bias: Array

        @property
        def sites(self):
            return {"a": pgm.Binary(2), "b": pgm.Spin(2), "c": pgm.Categorical(3, 1)}

        def energy(self, a, b, c):
            return -self.bias * (a.sum() + b.sum() + c[0, 1])

    schedule = pgm.blocks(Apart(bias=1.0))
    assert len(schedule.groups) == 1
    assert schedule.num_blocks == 1


def test_blocks_by_hand_keep_their_order_and_units():
    model = lattice((4, 4))
    even, odd = np.flatnonzero(CHECKERBOARD == 0), np.flatnonzero(CHECKERBOARD == 1)
    schedule = pgm.blocks(model, [pgm.Block("v", odd), pgm.Block("v", even)])
    assert [step.index.array[0].tolist() for step in schedule.steps] == [
        odd.tolist(),
        even.tolist(),
    ]
    mask = (CHECKERBOARD == 1).reshape(4, 4)
    by_mask = pgm.blocks(model, [pgm.Block("v", mask), pgm.Block("v", ~mask)])
    assert by_mask.groups == schedule.groups
    partial = pgm.blocks(model, [pgm.Block("v", odd[:3])])
    np.testing.assert_array_equal(partial.missing()["v"], np.setdiff1d(np.arange(16), odd[:3]))
    assert "3 of 16 spin units" in str(partial)


@pytest.mark.x64
def test_blocks_by_hand_are_exact():
    model = lattice((2, 4))
    colour = np.indices((2, 4)).sum(axis=0).ravel() % 2
    schedule = pgm.blocks(model, [pgm.Block("v", np.flatnonzero(colour == c)) for c in (1, 0)])
    oracles.assert_invariant(model, schedule, tolerance=1e-10)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["v"], r"site 'v' of Lattice cannot be drawn at once: v\[0, 0\] and v\[0, 1\] interact"),
        ([pgm.Block("v", [0, 5, 6])], r"a block of 3 units of 'v' .* v\[1, 1\] and v\[1, 2\]"),
        ([pgm.Block("v", [0, 2]), pgm.Block("v", [5, 2])], r"overlap: v\[0, 2\] is in two"),
        (["w"], "Lattice has no site 'w'; its sites are 'v'"),
        ([pgm.Block("v", [99])], "site 'v' has units 0 to 15, got 99"),
        ([], "non-empty list"),
        ("v", "non-empty list of site names"),
    ],
)
def test_wrong_blocks_by_hand_are_told(given, message):
    with pytest.raises(ValueError, match=message):
        pgm.blocks(lattice((4, 4)), given)


def test_wrong_types_are_told(annotations_unchecked):
    model = lattice((4, 4))
    with pytest.raises(TypeError, match="site name or a Block"):
        pgm.blocks(model, [3])
    with pytest.raises(TypeError, match="blocks takes an energy model, got str"):
        pgm.blocks("model")
    with pytest.raises(TypeError, match="name of a site, got 3"):
        pgm.Block(3)
    with pytest.raises(TypeError, match=r"gibbs_kernel\(pgm_energy\.blocks\(model\)\)"):
        pgm.gibbs_kernel(model)
    with pytest.raises(TypeError, match="list of blocks, got the string 'v'"):
        pgm.gibbs_kernel("v")


def test_a_schedule_of_another_model_is_told():
    schedule = pgm.blocks(pgm.RBM(weights=jnp.ones((4, 3))))
    other = pgm.RBM(weights=jnp.ones((4, 2)))
    start = {"v": jnp.zeros(4, jnp.int8), "h": jnp.zeros(2, jnp.int8)}
    with pytest.raises(ValueError, match=r"made for RBM with sites .*make new ones with blocks"):
        pgm.gibbs_kernel(schedule)(jax.random.key(0), start, other)


def test_a_schedule_of_another_class_with_the_same_sites_is_examined():
    flat = pgm.RBM(weights=jnp.ones((4, 1)))

    @pgm.struct
    class Ring(pgm.EnergyModel):
        coupling: Array

        @property
        def sites(self):
            return flat.sites

        def energy(self, v, h):
            return -self.coupling * jnp.sum(v * jnp.roll(v, 1)) * h[0]

    start = {"v": jnp.zeros(4, jnp.int8), "h": jnp.zeros(1, jnp.int8)}
    with pytest.raises(ValueError, match="made for RBM and are wrong for Ring"):
        pgm.gibbs_kernel(pgm.blocks(flat))(jax.random.key(0), start, Ring(coupling=1.0))


def test_restrict_leaves_the_other_sites_out():
    schedule = pgm.blocks(layered()).restrict(["h1", "h2"])
    assert [step.site for step in schedule.steps] == ["h2", "h1"]
    assert sorted(schedule.missing()) == ["h3", "v"]


def test_too_large_to_find_out_warns_once_and_is_swept():
    @pgm.struct
    class Long(pgm.EnergyModel):
        coupling: Array

        @property
        def sites(self):
            return {"v": pgm.Spin(4100)}

        def energy(self, v):
            return -self.coupling * jnp.sum(v[1:] * v[:-1])

    with pytest.warns(UserWarning, match=r"4100 units .* Implement interactions\(site\)"):
        schedule = pgm.blocks(Long(coupling=1.0))
    assert schedule.steps[0].kind == "sequential"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pgm.blocks(Long(coupling=2.0))


def test_an_empty_block_and_a_unit_twice():
    with pytest.raises(ValueError, match="'v' needs at least one unit"):
        pgm.Block("v", [])
    rbm = pgm.RBM(weights=jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="'v' lists unit 2 more than once"):
        pgm.blocks(rbm, [pgm.Block("v", [0, 2, 2])])
