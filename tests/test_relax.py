"""The diagonal of the Gaussian twin: what each choice is, and that it stays exact."""

import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from numpyro.infer import NUTS

import pgm_energy as pgm

SHIFTS = ["uniform", "per_site", "per_unit"]


def star(num_leaves=4, coupling=1.0):
    """A hub that all leaves are coupled to, and nothing else."""
    weights = np.zeros((num_leaves + 1, num_leaves + 1), np.float32)
    weights[0, 1:] = weights[1:, 0] = coupling
    return pgm.BoltzmannMachine(weights=jnp.asarray(weights), unit=pgm.Spin)


def diagonal(model, shift, couplings):
    """D of a twin, after checking that LL' is the couplings everywhere else."""
    loadings = np.asarray(pgm.relax(model, shift=shift).loadings, float)
    square = loadings @ loadings.T
    own = np.diagonal(square)
    np.testing.assert_allclose(square - np.diag(own), couplings, atol=1e-5)
    return own


@pytest.mark.parametrize("unit", [pgm.Binary, pgm.Spin], ids=["binary", "spin"])
def test_each_shift_is_the_least_of_its_kind(unit):
    model = zoo.machine(7, unit)
    found = {shift: diagonal(model, shift, model.weights) for shift in SHIFTS}
    lowest = np.linalg.eigvalsh(np.asarray(model.weights, float))[0]
    np.testing.assert_allclose(found["uniform"], -lowest, rtol=1e-5)
    np.testing.assert_allclose(found["per_site"], found["uniform"], rtol=1e-5)  # one site
    assert found["per_unit"].sum() < 0.99 * found["uniform"].sum()
    assert found["per_unit"].max() > 1.01 * found["uniform"].max()
    # no diagonal of a smaller trace: every assignment of signs is a bound from below
    signs = np.array(np.meshgrid(*[[-1, 1]] * 7)).reshape(7, -1)
    cuts = -np.einsum("is,ij,js->s", signs, np.asarray(model.weights, float), signs)
    assert cuts.max() - 1e-4 <= found["per_unit"].sum() < 1.14 * cuts.max()


def test_the_least_trace_of_a_star_is_known():
    """Leaves at w and the hub at n w: n a + n w^2 / a is least at a = w."""
    model = star(num_leaves=4, coupling=0.5)
    own = diagonal(model, "per_unit", model.weights)
    np.testing.assert_allclose(own, [2.0, 0.5, 0.5, 0.5, 0.5], rtol=1e-4)
    uniform = diagonal(model, "uniform", model.weights)
    np.testing.assert_allclose(uniform, 1.0, rtol=1e-5)
    assert pgm.relax(model, shift="per_unit").sites["y"].size == 4


def test_the_twin_of_factorised_couplings_gives_each_layer_its_own_number():
    model = zoo.rbm(sizes=(6, 2))
    couplings = np.zeros((8, 8))
    couplings[:6, 6:] = model.weights
    own = diagonal(model, "per_site", couplings + couplings.T)
    assert np.ptp(own[:6]) < 1e-5
    assert np.ptp(own[6:]) < 1e-5
    largest = np.linalg.svd(np.asarray(model.weights, float), compute_uv=False)[0]
    assert own[0] * own[-1] == pytest.approx(largest**2, rel=1e-5)
    assert 6 * own[0] == pytest.approx(2 * own[-1], rel=1e-5)


@pytest.mark.parametrize("shift", SHIFTS)
def test_spins_and_their_binary_form_have_one_twin(shift):
    model = zoo.rbm("spin", "binary")
    twin, other = (pgm.relax(m, shift=shift) for m in (model, pgm.binarize(model)))
    size = np.repeat([2.0, 1.0], [3, 2])[:, None]  # a spin moves twice as far
    for product in (lambda a: a @ a.T, np.abs):
        left = product(np.asarray(twin.loadings) * size)
        np.testing.assert_allclose(left, product(np.asarray(other.loadings)), atol=1e-4)


def test_twins_join_compare(rng_key):
    model = zoo.rbm()
    samplers = {shift: NUTS(pgm.relax(model, shift=shift)) for shift in SHIFTS}
    table = pgm.compare(rng_key, model, samplers, num_warmup=100, num_samples=200, num_chains=4)
    assert list(table.summary.index) == SHIFTS
    assert (table.summary["exact_error_mcse"].astype(float) < 6.0).all()
    assert (table.summary["evaluation"] == "gradient").all()


def test_an_unknown_shift_is_told(annotations_unchecked):
    with pytest.raises(ValueError, match="one of uniform, per_site, per_unit, got 'largest'"):
        pgm.relax(zoo.rbm(), shift="largest")
