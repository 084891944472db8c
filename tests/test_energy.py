"""EnergyModel: log densities and conditionals against the energy, and every refusal."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array
from scipy import integrate
from scipy.special import logsumexp

import pgm_energy as pgm

MODELS = {
    **{f"rbm-{v}-{h}": lambda v=v, h=h: zoo.rbm(v, h) for v, h in zoo.PAIRS},
    "machine-binary": zoo.machine,
    "machine-spin": lambda: zoo.machine(unit=pgm.Spin),
    "machine-hidden": lambda: zoo.machine(num_hidden=2),
    "machine-hidden-spin": lambda: zoo.machine(num_hidden=2, unit=pgm.Spin),
    "mixed": zoo.mixed,
}


def energy_of(model, values):
    encoded = {k: oracles.encode(s, values[k]) for k, s in model.sites.items()}
    return float(model.energy(**{k: jnp.asarray(v) for k, v in encoded.items()}))


@pytest.mark.parametrize("name", MODELS)
def test_log_density_is_minus_the_energy_of_the_encoded_values(name):
    model = MODELS[name]()
    values = zoo.random_values(model)
    np.testing.assert_allclose(model.log_density(values), -energy_of(model, values), rtol=1e-6)
    for lead in ((4,), (2, 3)):
        batch = zoo.random_values(model, num=lead)
        found = np.asarray(model.log_density(batch))
        assert found.shape == lead
        for place in np.ndindex(*lead):
            one = {k: v[place] for k, v in batch.items()}
            np.testing.assert_allclose(found[place], -energy_of(model, one), rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_conditionals_of_single_units_equal_energy_differences(name):
    """Float32, relative to max(1, |E|); every unit of every site, every pair of its states."""
    model = MODELS[name]()
    values = zoo.random_values(model, seed=3)
    for site_name, site in model.sites.items():
        for unit in range(site.size):
            law = model.conditional(site_name, values, index=[unit])
            assert law.event_shape == (1,)
            states = [-1.3, 0.4, 2.1] if isinstance(site, pgm.Real) else oracles.unit_states(site)
            energies, log_probs = [], []
            for state in states:
                changed = np.asarray(values[site_name]).copy().reshape(-1)
                changed[unit] = state
                energies.append(
                    energy_of(model, {**values, site_name: changed.reshape(site.shape)})
                )
                log_probs.append(float(law.log_prob(jnp.asarray([state]))))
            scale = max(1.0, np.abs(energies).max())
            difference = np.subtract.outer(log_probs, log_probs)
            expected = -np.subtract.outer(energies, energies)
            np.testing.assert_allclose(difference / scale, expected / scale, atol=1e-5)
            if not isinstance(site, pgm.Real):
                np.testing.assert_allclose(np.exp(log_probs).sum(), 1, atol=1e-5)


@pytest.mark.parametrize(("visible", "hidden"), zoo.PAIRS)
def test_joint_conditional_of_a_layer_is_normalised_and_equals_energy_differences(visible, hidden):
    model = zoo.rbm(visible, hidden)
    values = zoo.random_values(model, seed=5)
    for name, site in model.sites.items():
        law = model.conditional(name, values)
        assert law.event_shape == site.shape
        assert law.batch_shape == ()
        draws = zoo.random_values(model, seed=6, num=5)[name]
        log_probs = np.asarray(law.log_prob(draws))
        energies = np.array([energy_of(model, {**values, name: draw}) for draw in draws])
        scale = max(1.0, np.abs(energies).max())
        np.testing.assert_allclose(
            (log_probs - log_probs[0]) / scale, -(energies - energies[0]) / scale, atol=1e-5
        )
        if not isinstance(site, pgm.Real):
            only = {name: oracles.all_states(model)[name]}
            states = np.unique(only[name].reshape(-1, site.size), axis=0).reshape(-1, *site.shape)
            total = logsumexp(np.asarray(law.log_prob(jnp.asarray(states))))
            np.testing.assert_allclose(total, 0, atol=1e-5)


def test_units_in_any_order_and_masks_select_a_block():
    model = zoo.rbm("categorical", "spin")
    values = zoo.random_values(model)
    whole = model.conditional("v", values)
    part = model.conditional("v", values, index=[2, 0])
    by_mask = model.conditional("v", values, index=np.array([True, False, True]))
    state = jnp.array([1, 2, 0])
    units = whole.base_dist.log_prob(state)
    np.testing.assert_allclose(part.log_prob(state[jnp.array([2, 0])]), units[0] + units[2], 1e-5)
    np.testing.assert_allclose(
        by_mask.log_prob(state[jnp.array([0, 2])]), units[0] + units[2], 1e-5
    )


def test_own_values_of_the_site_do_not_matter_and_may_be_left_out():
    model = zoo.rbm("spin", "categorical")
    values = zoo.random_values(model)
    first = model.conditional("v", values)
    flipped = model.conditional("v", {**values, "v": -values["v"]})
    without = model.conditional("v", {"h": values["h"]})
    state = jnp.array([1, -1, 1])
    np.testing.assert_allclose(flipped.log_prob(state), first.log_prob(state), rtol=1e-5)
    np.testing.assert_allclose(without.log_prob(state), first.log_prob(state), rtol=1e-5)


@pgm.struct
class Gaussian(pgm.EnergyModel):
    """Coupled real units beside a binary one: ``declared`` says so or leaves it to be found."""

    precision: Array
    field: Array
    shape: tuple = pgm.static(default=(3,))
    declared: bool = pgm.static(default=False)

    @property
    def sites(self):
        return {"b": pgm.Binary(1), "x": pgm.Real(self.shape, coupled=self.declared)}

    def energy(self, b, x):
        flat = x.reshape(-1)
        return 0.5 * flat @ self.precision @ flat - (1.0 + b[0]) * (self.field @ flat)


def gaussian(shape=(3,), declared=False):
    rng = np.random.default_rng(7)
    n = int(np.prod(shape))
    factor = rng.normal(size=(n, n))
    return Gaussian(
        precision=factor @ factor.T + np.eye(n),
        field=rng.normal(size=n),
        shape=shape,
        declared=declared,
    )


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("shape", [(3,), (2, 2)])
def test_coupled_real_units_have_a_joint_normal_conditional(declared, shape):
    model = gaussian(shape, declared)
    law = model.conditional("x", {"b": jnp.array([1])})
    assert law.event_shape == shape
    precision, field = np.asarray(model.precision, float), np.asarray(model.field, float)
    mean = np.linalg.solve(precision, 2 * field)
    x = np.random.default_rng(0).normal(size=(6, *shape))
    away = x.reshape(6, -1) - mean
    log_det = np.linalg.slogdet(precision / (2 * np.pi))[1]
    expected = 0.5 * log_det - 0.5 * np.einsum("ni,ij,nj->n", away, precision, away)
    np.testing.assert_allclose(law.log_prob(jnp.asarray(x)), expected, rtol=1e-4)
    block = model.conditional("x", {"b": jnp.array([1]), "x": jnp.asarray(x[0])}, index=[0, 2])
    inner = precision[np.ix_([0, 2], [0, 2])]
    assert block.event_shape == (2,)
    rest = np.delete(np.arange(away.shape[1]), [0, 2])
    shift = precision[np.ix_([0, 2], rest)] @ away[0, rest]
    part = x.reshape(6, -1)[:, [0, 2]]
    off = part - (mean[[0, 2]] - np.linalg.solve(inner, shift))
    expected = 0.5 * np.linalg.slogdet(inner / (2 * np.pi))[1] - 0.5 * np.einsum(
        "ni,ij,nj->n", off, inner, off
    )
    np.testing.assert_allclose(block.log_prob(jnp.asarray(part)), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.x64
def test_conditional_density_integrates_to_one():
    model = zoo.mixed()
    values = zoo.random_values(model)
    law = model.conditional("x", values, index=[1])
    density = jax.jit(lambda x: jnp.exp(law.log_prob(x[None])))
    assert integrate.quad(lambda x: float(density(x)), -20, 20)[0] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.diag([1.0, -0.5, 2.0]), r"\('x',\) of Gaussian is not positive definite.*x\[1\]"),
        (np.ones((3, 3)), "not positive definite"),
        (np.zeros((3, 3)), "not positive definite"),
    ],
)
def test_precision_that_is_not_positive_definite_is_refused(matrix, message):
    model = Gaussian(precision=matrix, field=np.zeros(3))
    with pytest.raises(ValueError, match=message):
        model.conditional("x", {"b": jnp.array([0])})
    with pytest.raises(ValueError, match=message):
        pgm.blocks(model)
    with pytest.raises(ValueError, match=message):
        pgm.marginalize(model, "x")


@pgm.struct
class TwoReal(pgm.EnergyModel):
    coupling: Array
    product: Array

    @property
    def sites(self):
        return {"x": pgm.Real(1), "y": pgm.Real(1)}

    def energy(self, x, y):
        squares = x[0] ** 2 * y[0] ** 2
        return 0.5 * (x @ x + y @ y) - self.coupling * (x @ y) + self.product * squares


def test_precision_over_several_real_sites_is_judged_together():
    pgm.blocks(TwoReal(coupling=0.9, product=0.0))
    with pytest.raises(ValueError, match=r"\('x', 'y'\) of TwoReal is not positive definite"):
        pgm.blocks(TwoReal(coupling=1.1, product=0.0))


def test_precision_that_turns_negative_far_out_is_refused():
    """Each site is quadratic given the other, with a negative square where the other is large."""
    pgm.blocks(TwoReal(coupling=0.1, product=0.5))
    with pytest.raises(ValueError, match="not positive definite"):
        pgm.blocks(TwoReal(coupling=0.1, product=-0.5))


def test_no_state_of_a_mixture_is_left_to_chance():
    @pgm.struct
    class Mixture(pgm.EnergyModel):
        precision: Array

        @property
        def sites(self):
            return {"z": pgm.Categorical(len(self.precision), ()), "x": pgm.Real(1)}

        def energy(self, z, x):
            return 0.5 * (z @ self.precision) * (x @ x)

    for bad in range(20):
        precision = np.where(np.arange(20) == bad, -1.0, 1.0)
        with pytest.raises(ValueError, match="not positive definite"):
            pgm.blocks(Mixture(precision=precision))


@pytest.mark.parametrize(
    "energy",
    [
        pytest.param(lambda w, x: w[0] * jnp.sum(x**4) + jnp.sum(x**2), id="quartic"),
        pytest.param(lambda w, x: jnp.sum(jnp.abs(x)) + w[0], id="laplace"),
        pytest.param(lambda w, x: 0.5 * x @ x + w[0] * jnp.cos(x[0]), id="cosine"),
        pytest.param(lambda w, x: jnp.where(x[0] > 0, x @ x, 2 * x @ x) + w[0], id="where"),
        pytest.param(
            lambda w, x: 0.5 * x @ x + w[0] * x[0] * jax.lax.stop_gradient(x[1]), id="stop"
        ),
    ],
)
def test_real_energy_that_is_not_quadratic_is_refused(energy):
    @pgm.struct
    class Wild(pgm.EnergyModel):
        w: Array

        @property
        def sites(self):
            return {"x": pgm.Real(2)}

        def energy(self, x):
            return energy(self.w, x)

    model = Wild(w=jnp.ones(1))
    for ask in (pgm.blocks, lambda m: m.conditional("x", {})):
        with pytest.raises(ValueError, match=r"site 'x' of Wild cannot be drawn at once: .*NUTS"):
            ask(model)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"v": np.zeros(3)}, "RBM needs values of site 'h' too"),
        (
            {"v": np.zeros(3), "h": np.zeros(2), "w": 1},
            "RBM has no site 'w'; its sites are 'v', 'h'",
        ),
        ({"v": np.zeros(4), "h": np.zeros(2)}, r"site 'v' has shape \(3,\), got .* \(4,\)"),
        ({"v": np.zeros((5, 3)), "h": np.zeros((4, 2))}, "leading dimensions differ"),
        ({"v": np.array([0, 2, 0]), "h": np.zeros(2)}, "takes 0 and 1, got 2"),
        ({"v": np.array([0, np.nan, 0]), "h": np.zeros(2)}, "got NaN .*condition"),
    ],
)
def test_wrong_values_are_told(values, message):
    with pytest.raises(ValueError, match=message):
        zoo.rbm().log_density(values)


def test_unknown_site_in_conditional_is_told():
    with pytest.raises(ValueError, match="RBM has no site 'x'"):
        zoo.rbm().conditional("x", {})


def test_an_abstract_model_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        pgm.EnergyModel()


def test_latent_sites_are_those_without_data():
    assert zoo.rbm().latent_sites == ("h",)
    assert zoo.mixed().data_sites == ("b", "z", "x")
    assert zoo.mixed().latent_sites == ()


def test_generic_has_the_same_structure_and_other_numbers():
    model = pgm.RBM(weights=jnp.zeros((3, 2)))
    generic = model.generic(jax.random.key(1))
    assert jax.tree.structure(generic) == jax.tree.structure(model)
    assert (np.asarray(generic.weights) != 0).all()
    spins = zoo.machine(unit=pgm.Spin).generic(jax.random.key(1))
    np.testing.assert_array_equal(spins.weights, spins.weights.T)
    assert not np.diagonal(spins.weights).any()


def test_generic_of_an_energy_that_wants_positive_parameters():
    @pgm.struct
    class Logarithmic(pgm.EnergyModel):
        scale: Array

        @property
        def sites(self):
            return {"x": pgm.Binary(2)}

        def energy(self, x):
            return jnp.log(self.scale) @ x

    generic = Logarithmic(scale=jnp.array([3.0, 4.0])).generic(jax.random.key(0))
    assert (np.asarray(generic.scale) > 0).all()
    assert pgm.blocks(Logarithmic(scale=jnp.array([3.0, 4.0]))).num_blocks == 1


def test_gradient_with_respect_to_parameters_is_that_of_the_energy():
    model = zoo.rbm()
    values = zoo.random_values(model)
    gradient = jax.grad(lambda m: m.log_density(values))(model)
    np.testing.assert_allclose(gradient.weights, np.outer(values["v"], values["h"]), atol=1e-6)
    np.testing.assert_allclose(gradient.visible_bias, values["v"], atol=1e-6)


SHAPES = st.sampled_from([(3, 2), (2, 4)])
FAMILY = st.sampled_from(["binary", "spin", "categorical"])


@settings(max_examples=12, deadline=None)
@given(sizes=SHAPES, visible=FAMILY, seed=st.integers(0, 2**16))
def test_permuting_units_permutes_everything(sizes, visible, seed):
    model = zoo.rbm(visible, "binary", sizes, seed=seed)
    values = zoo.random_values(model, seed=seed)
    order = np.random.default_rng(seed).permutation(sizes[0])
    moved = pgm.replace(model, weights=model.weights[order], visible_bias=model.visible_bias[order])
    there = {**values, "v": values["v"][order]}
    np.testing.assert_allclose(moved.log_density(there), model.log_density(values), rtol=1e-5)
    ours, theirs = model.natural_parameters("v", values), moved.natural_parameters("v", there)
    np.testing.assert_allclose(theirs.eta, ours.eta[order], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        moved.natural_parameters("h", there).eta,
        model.natural_parameters("h", values).eta,
        rtol=1e-4,
        atol=1e-5,
    )


@pgm.struct
class Shifted(pgm.EnergyModel):
    model: pgm.EnergyModel
    constant: Array

    @property
    def sites(self):
        return self.model.sites

    def energy(self, **values):
        return self.model.energy(**values) + self.constant


@settings(max_examples=8, deadline=None)
@given(visible=FAMILY, constant=st.floats(-20, 20), seed=st.integers(0, 2**16))
def test_a_constant_moves_log_z_only(visible, constant, seed):
    model = zoo.rbm(visible, "spin", seed=seed)
    shifted = Shifted(model=model, constant=constant)
    _, ours, log_z = oracles.law(model)
    _, theirs, moved = oracles.law(shifted)
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-7)
    assert moved == pytest.approx(log_z - constant, abs=1e-4)
    values = zoo.random_values(model, seed=seed)
    for name in model.sites:
        mine, other = (m.natural_parameters(name, values).eta for m in (model, shifted))
        np.testing.assert_allclose(other, mine, rtol=1e-4, atol=1e-5)


@settings(max_examples=8, deadline=None)
@given(sizes=SHAPES, visible=FAMILY, seed=st.integers(0, 2**16))
def test_jit_is_eager_and_vmap_is_a_loop(sizes, visible, seed):
    model = zoo.rbm(visible, "binary", sizes, seed=seed)
    batch = zoo.random_values(model, seed=seed, num=3)
    loop = [float(model.log_density({k: v[i] for k, v in batch.items()})) for i in range(3)]
    np.testing.assert_allclose(jax.jit(type(model).log_density)(model, batch), loop, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(model.log_density)(batch), loop, rtol=1e-5)
    one = {k: v[0] for k, v in batch.items()}
    eager = model.natural_parameters("h", one).eta
    compiled = jax.jit(lambda m, v: m.natural_parameters("h", v).eta)(model, one)
    np.testing.assert_allclose(compiled, eager, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        pgm.RBM(weights=jnp.ones((2, 2))),
        pgm.BoltzmannMachine(weights=jnp.zeros((3, 3)), num_hidden=1),
        pgm.marginalize(pgm.RBM(weights=jnp.ones((2, 2))), "h"),
    ],
    ids=["rbm", "machine", "derived"],
)
def test_natural_parameters_of_an_unknown_site(model):
    with pytest.raises(ValueError, match="has no site 'zz'"):
        model.natural_parameters("zz", {})
