"""Potts machines against explicit loops and enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import assert_invariant, energies

import pgm_energy as pgm
from pgm_energy.energy import EnergyModel
from pgm_energy.natural import derive_natural_parameters


def machine(num_units=4, num_states=3, seed=0):
    rng = np.random.default_rng(seed)
    shape = (num_units, num_units, num_states, num_states)
    couplings = rng.normal(size=shape)
    couplings = 0.5 * (couplings + couplings.transpose(1, 0, 3, 2))
    couplings[range(num_units), range(num_units)] = 0.0
    fields = rng.normal(size=(num_units, num_states))
    return pgm.PottsMachine(couplings=jnp.asarray(couplings), fields=jnp.asarray(fields))


@pytest.mark.x64
def test_energy_is_the_sum_over_pairs():
    model = machine()
    couplings, fields = np.asarray(model.couplings), np.asarray(model.fields)
    rows = np.random.default_rng(1).integers(3, size=(30, 4))
    for row, found in zip(rows, model.log_density({"v": rows}), strict=True):
        expected = sum(fields[i, row[i]] for i in range(4))
        for i in range(4):
            for j in range(i):
                expected += couplings[i, j, row[i], row[j]]
        assert float(found) == pytest.approx(expected, abs=1e-12)


@pytest.mark.x64
def test_overrides_agree_with_the_derivations():
    model = machine()
    values = {"v": np.array([0, 2, 1, 2])}
    for index in (None, jnp.array([3, 1])):
        found = model.natural_parameters("v", values, index).eta
        derived = derive_natural_parameters(model, "v", values, index).eta
        np.testing.assert_allclose(found, derived, atol=1e-12)
    index = jnp.array([3, 0, 1])
    np.testing.assert_allclose(
        model.block_couplings("v", index),
        EnergyModel.block_couplings(model, "v", index),
        atol=1e-12,
    )


@pytest.mark.x64
def test_sweep_leaves_the_exact_law_invariant():
    assert_invariant(machine())


@pytest.mark.x64
def test_two_states_are_a_boltzmann_machine():
    """J[i, j, a, b] = W a b and f[i, a] = b_i a: the same energies."""
    rng = np.random.default_rng(2)
    weights = np.triu(rng.normal(size=(4, 4)), 1)
    weights, bias = weights + weights.T, rng.normal(size=4)
    both = np.outer([0, 1], [0, 1])
    potts = pgm.PottsMachine(
        couplings=jnp.asarray(weights[:, :, None, None] * both),
        fields=jnp.asarray(bias[:, None] * [0, 1]),
    )
    binary = pgm.BoltzmannMachine(weights=jnp.asarray(weights), bias=jnp.asarray(bias))
    rows = {"v": rng.integers(2, size=(16, 4))}
    np.testing.assert_allclose(energies(potts, rows), energies(binary, rows), atol=1e-12)


def test_schedule_of_a_machine_at_zero_couplings_is_sequential():
    (step,) = pgm.blocks(pgm.PottsMachine(couplings=jnp.zeros((5, 5, 3, 3)))).steps
    assert step.kind == "sequential"


def test_projection_is_symmetric_to_the_last_bit(rng_key):
    noise = jax.random.normal(rng_key, (4, 4, 3, 3))
    model = machine()
    moved = jax.tree.unflatten(
        jax.tree.structure(model), [noise, jnp.zeros((4, 3))]
    )  # bypasses the constructor
    fixed = moved.project()  # the constructor checks it
    np.testing.assert_allclose(
        fixed.couplings[0, 1], 0.5 * (noise[0, 1] + noise[1, 0].T), rtol=1e-6
    )
    again = fixed.project()
    np.testing.assert_array_equal(again.couplings, fixed.couplings)


def test_init_sets_fields_from_frequencies(rng_key):
    rows = np.array([[0, 2], [0, 1], [1, 1], [0, 0]])
    model = pgm.PottsMachine.init(rng_key, num_visible=2, num_states=3, data=rows)
    expected = (np.array([[3, 1, 0], [1, 2, 1]]) + 1 / 3) / 5
    np.testing.assert_allclose(jax.nn.softmax(model.fields), expected, rtol=1e-5)


def changed(place, value):
    couplings = np.zeros((3, 3, 2, 2))
    couplings[place] = value
    return {"couplings": jnp.asarray(couplings)}


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            changed((0, 1, 0, 1), 2.0),
            r"symmetric.*got 2.0 at \(0, 1, 0, 1\) and 0.0 at \(1, 0",
        ),
        (changed((2, 2, 1, 1), 1.5), r"zero for i == j, got 1.5 at \(2, 2, 1, 1\)"),
        (changed((0, 1, 0, 0), np.nan), r"couplings must be finite, got nan at index \(0, 1"),
        ({"couplings": jnp.zeros((3, 3))}, r"shape \(n, n, K, K\), got \(3, 3\)"),
        ({"couplings": jnp.zeros((3, 2, 2, 2))}, r"shape \(n, n, K, K\)"),
        ({"couplings": jnp.zeros((3, 3, 1, 1))}, "at least 2 states"),
        (
            {"couplings": jnp.zeros((3, 3, 2, 2)), "fields": jnp.zeros(3)},
            r"fields must have shape \(3, 2\), got \(3,\)",
        ),
    ],
)
def test_bad_parameters_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        pgm.PottsMachine(**fields)
