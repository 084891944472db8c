"""Centred gradients: what a field is, and that training does not know how data are encoded."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pgm_energy as pgm
from pgm_energy.learning.centering import (
    centered_gradient,
    couplings_only,
    fields_of,
    optimizer_step,
)
from pgm_energy.learning.contrast import contrast
from pgm_energy.learning.latents import sum_out
from pgm_energy.learning.loop import check_rows, take


def bits(size):
    return (np.arange(2**size)[:, None] >> np.arange(size)) & 1


def normal(seed, *shape, scale=0.7):
    return jnp.asarray(np.random.default_rng(seed).normal(0, scale, shape), jnp.result_type(float))


def symmetric(seed, size):
    upper = np.triu(np.random.default_rng(seed).normal(0, 0.7, (size, size)), 1)
    return jnp.asarray(upper + upper.T, jnp.result_type(float))


def rbm():
    return pgm.RBM(weights=normal(0, 3, 2), visible_bias=normal(1, 3), hidden_bias=normal(2, 2))


def machine(num_hidden=0):
    size = 3 + num_hidden
    return pgm.BoltzmannMachine(
        weights=symmetric(3, size), bias=normal(4, size), num_hidden=num_hidden
    )


def flipped(model):
    """The machine of the inverted bits, hidden ones included: same probabilities, other names."""
    if isinstance(model, pgm.RBM):
        return pgm.replace(
            model,
            visible_bias=-model.visible_bias - model.weights.sum(1),
            hidden_bias=-model.hidden_bias - model.weights.sum(0),
        )
    return pgm.replace(model, bias=-model.bias - model.weights.sum(1))


def assert_close(first, second, **tolerance):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


DATA = np.array([[0, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 1, 1]])

MODELS = {
    "rbm": rbm,
    "machine": machine,
    "hidden that interact": lambda: machine(2),
}


@pytest.mark.x64
@pytest.mark.parametrize("name", MODELS)
def test_a_flipped_machine_is_the_same_law(name):
    model = MODELS[name]()
    law, other = pgm.exact(model), pgm.exact(flipped(model))
    for site, mean in law.means.items():
        np.testing.assert_allclose(mean, 1.0 - other.means[site], atol=1e-12)


def exact_gradient(model, rows):
    """Of the mean -log p(row), by enumeration; and E[T] given the data, by site."""
    states = bits(model.sites["v"].size)
    free = sum_out(model)
    density = free.log_density({"v": states})
    data, chains = {"v": jnp.asarray(rows, float)}, {"v": jnp.asarray(states, float)}

    def loss(model):
        weights = jnp.ones(len(rows))
        return contrast(sum_out(model), data, weights, chains, jax.nn.softmax(density))

    def pull(model):
        return jnp.mean(jax.vmap(lambda v: sum_out(model).energy(v=v))(data["v"]))

    return jax.grad(loss)(model), fields_of(model).expectations(jax.grad(pull)(model))


OPTIMIZERS = {
    "momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(0.05),
}


@pytest.mark.x64
@pytest.mark.parametrize(
    "name, optimizer", [("rbm", "momentum"), ("rbm", "adam"), ("machine", "adam")]
)
def test_flipped_data_give_the_flipped_model(name, optimizer):
    """By exact gradients, to rounding, with hidden offsets that move with the hidden means."""
    optimizer = OPTIMIZERS[optimizer]()

    def train(model, rows, is_centered, num_steps=60):
        state = optimizer.init(model)
        offsets = {k: jnp.full(site.shape, 0.5) for k, site in model.sites.items()}
        offsets["v"] = jnp.asarray(rows.mean(axis=0))

        @jax.jit
        def step(model, state, offsets):
            gradient, means = exact_gradient(model, rows)
            used = offsets if is_centered else {}
            gradient = centered_gradient(gradient, model, used)
            model, state = optimizer_step(optimizer, gradient, state, model, used)
            moved = {k: x + 0.2 * (means[k] - x) for k, x in offsets.items() if k != "v"}
            return model, state, {**offsets, **moved}

        for _ in range(num_steps):
            model, state, offsets = step(model, state, offsets)
        return model

    start = MODELS[name]()
    learned = train(start, DATA, True)
    other = flipped(train(flipped(start), 1 - DATA, True))
    assert np.abs(learned.weights - start.weights).max() > 0.2
    # Adam divides by the size of gradients that may be small: its rounding is larger
    assert_close(learned, other, rtol=1e-8, atol=1e-9)
    plain, plain_other = train(start, DATA, False), flipped(train(flipped(start), 1 - DATA, False))
    difference = np.abs(plain.weights - plain_other.weights).max()
    assert difference > 1e-3, "the test would not notice that parameters are not centred"


@pytest.mark.x64
@pytest.mark.parametrize(
    "learner, name",
    [
        (pgm.PCD, "rbm"),
        (pgm.CD, "rbm"),
        (pgm.PCD, "machine"),
        (pgm.PCD, "hidden that interact"),
    ],
    ids=["PCD-rbm", "CD-rbm", "PCD-machine", "PCD-mean field"],
)
def test_a_learner_does_not_know_how_data_are_encoded(learner, name):
    """The whole loop on inverted bits, with a kernel that treats both encodings alike."""

    def reverse(rng_key, values, model):
        return {name: value[::-1] for name, value in values.items()}, None

    model = MODELS[name]()
    more = {"num_chains": 16} if learner is pgm.PCD else {}
    learner = learner(optax.adam(0.03), kernel=reverse, positive="mean_field", **more)

    def train(model, rows, turn):
        rows = check_rows(model, rows, None, None)
        state = learner.init(jax.random.key(0), model, rows)
        if turn:
            state = state._replace(chains={k: 1 - v for k, v in state.chains.items()})
        step = jax.jit(learner.update)
        for number in range(20):
            index = jnp.arange(4) + number % 3  # weights of 1/4 are exact in single precision
            state, _ = step(jax.random.key(number), state, take(rows, index), index)
        return state

    first, second = train(model, DATA, False), train(flipped(model), 1 - DATA, True)
    assert_close(first.model, flipped(second.model), rtol=1e-7, atol=1e-8)
    assert_close(first.offsets, {k: 1 - v for k, v in second.offsets.items()}, atol=1e-8)
    assert np.abs(first.model.weights - model.weights).max() > 0.1


@pytest.mark.x64
def test_shifted_real_data_give_the_shifted_model():
    """E(v - mu): the same couplings and precisions wherever the origin of the data is."""
    shift = jnp.asarray([3.0, -2.0])
    start = pgm.RBM(
        weights=normal(6, 2, 2),
        visible_bias=normal(7, 2),
        hidden_bias=normal(8, 2),
        visible_precision=jnp.asarray([0.7, 1.6]),
        visible=pgm.Real,
    )

    def moved(model, shift):
        return pgm.replace(
            model,
            visible_bias=model.visible_bias + model.visible_precision * shift,
            hidden_bias=model.hidden_bias - shift @ model.weights,
        )

    rows = np.random.default_rng(2).normal(0, 1, (6, 2))
    chains = np.random.default_rng(3).normal(0, 1, (6, 2))
    optimizer = optax.adam(0.02)

    def train(model, rows, chains):
        state, offsets = optimizer.init(model), {"v": rows.mean(0), "h": jnp.full(2, 0.4)}

        @jax.jit
        def step(model, state):
            def loss(model):
                return contrast(sum_out(model), {"v": rows}, jnp.ones(6), {"v": chains})

            gradient = centered_gradient(jax.grad(loss)(model), model, offsets)
            return optimizer_step(optimizer, gradient, state, model, offsets)

        for _ in range(20):
            model, state = step(model, state)
        return model

    first = train(start, jnp.asarray(rows), jnp.asarray(chains))
    second = train(moved(start, shift), rows + shift, chains + shift)
    assert_close(moved(first, shift), second, rtol=1e-8, atol=1e-9)
    assert np.abs(first.visible_precision - start.visible_precision).max() > 0.1


@pytest.mark.x64
@pytest.mark.parametrize("name", MODELS)
def test_centred_parameters_by_hand(name):
    """E in them is E0 - 1/2 (x - mu)'W(x - mu) - c'(x - mu); moving offsets keeps the law."""
    model = MODELS[name]()
    fields = fields_of(model)
    assert fields.can_center
    rng = np.random.default_rng(0)
    offsets = {k: jnp.asarray(rng.uniform(size=s.shape)) for k, s in model.sites.items()}
    pull = fields.pull(model, offsets)
    centered = fields.shifted(model, pull)
    assert_close(fields.shifted(centered, -fields.pull(centered, offsets)), model, atol=1e-14)
    law = pgm.exact(model)
    values = model.encode({k: jnp.asarray(v) for k, v in law.states.items()})
    away = {k: v - offsets[k] for k, v in values.items()}
    shifted = -jax.vmap(lambda x: centered.energy(**x))(away)
    np.testing.assert_allclose(jax.nn.softmax(shifted), law.probabilities, atol=1e-13)


def test_steps_without_a_gradient_move_nothing():
    model = rbm()
    offsets = {"v": jnp.full(3, 0.3), "h": jnp.full(2, 0.7)}
    zero = jax.tree.map(jnp.zeros_like, model)
    new, _ = optimizer_step(optax.sgd(1.0), zero, optax.sgd(1.0).init(model), model, offsets)
    assert_close(new, model, rtol=0, atol=0)


CENTERED = {
    "binary rbm": (lambda: pgm.RBM(weights=jnp.zeros((3, 2))), True),
    "spin and real": (
        lambda: pgm.RBM(weights=jnp.zeros((3, 2)), visible=pgm.Real, hidden=pgm.Spin),
        True,
    ),
    "categorical": (
        lambda: pgm.RBM(weights=jnp.zeros((3, 4, 2)), visible=pgm.Categorical),
        True,
    ),
    "machine": (lambda: pgm.BoltzmannMachine(weights=jnp.zeros((4, 4)), num_hidden=1), True),
    "lattice": (lambda: pgm.ising_lattice((3, 3), coupling=0.2, field=0.0), True),
    "potts": (lambda: pgm.PottsMachine(couplings=jnp.zeros((3, 3, 2, 2))), True),
    "part of a machine is given": (
        lambda: pgm.condition(pgm.RBM(weights=jnp.zeros((3, 2))), v=np.array([1, np.nan, 0])),
        False,
    ),
    "free energy": (lambda: pgm.marginalize(pgm.RBM(weights=jnp.zeros((3, 2))), "h"), False),
    "mixture": (
        lambda: pgm.BernoulliMixture(weights=jnp.full(2, 0.5), probs=jnp.full((2, 3), 0.5)),
        False,
    ),
}


@pytest.mark.parametrize("name", CENTERED)
def test_which_models_are_centred(name):
    make, expected = CENTERED[name]
    assert fields_of(make()).can_center == expected


@pgm.struct
class Triples(pgm.EnergyModel):
    """Fields, but three units that interact at once."""

    bias: jax.Array
    strength: jax.Array

    @property
    def sites(self):
        return {"v": pgm.Binary(3)}

    def energy(self, v):
        return -self.bias @ v - self.strength * v[0] * v[1] * v[2]


@pgm.struct
class OneField(pgm.EnergyModel):
    """Pairwise, but all units share one field."""

    field: jax.Array

    @property
    def sites(self):
        return {"v": pgm.Binary(3)}

    def energy(self, v):
        return -self.field * v.sum() - v[0] * v[1]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Triples(bias=jnp.zeros(3), strength=jnp.zeros(())),
        lambda: OneField(field=jnp.zeros(())),
    ],
    ids=["triples", "one field"],
)
def test_models_without_centring(make):
    """Left out by default, and refused where it is asked for."""
    rows = check_rows(make(), DATA, None, None)
    learner = pgm.PCD(optax.sgd(0.1), num_chains=4)
    assert learner.init(jax.random.key(0), make(), rows).offsets == {}
    learner = pgm.PCD(optax.sgd(0.1), num_chains=4, centered=True)
    with pytest.raises(ValueError, match="centered=True needs a pairwise energy with one field"):
        learner.init(jax.random.key(0), make(), rows)


def test_the_mask_of_couplings():
    mask = couplings_only(pgm.RBM(weights=jnp.zeros((3, 2)), visible=pgm.Real))
    assert (mask.weights, mask.visible_bias, mask.hidden_bias) == (True, False, False)
    assert mask.visible_precision is True
    decay = optax.add_decayed_weights(0.1, mask=couplings_only)
    model = rbm()
    updates, _ = decay.update(jax.tree.map(jnp.zeros_like, model), decay.init(model), model)
    np.testing.assert_allclose(updates.weights, 0.1 * model.weights, rtol=1e-6)
    assert not updates.visible_bias.any()


def test_offsets_follow_their_means():
    """Those of the data are their weighted means; those of hidden units move to theirs."""
    weights, model = np.array([2, 1, 3, 1, 0, 1, 2]), rbm()
    rows = check_rows(model, DATA, weights, None)
    learner = pgm.PCD(optax.sgd(0.0), num_chains=4)
    state = learner.init(jax.random.key(0), model, rows)
    mean = weights @ DATA / weights.sum()
    np.testing.assert_allclose(state.offsets["v"], mean, rtol=1e-6)
    np.testing.assert_array_equal(state.offsets["h"], [0.5, 0.5])
    state, _ = jax.jit(learner.update)(jax.random.key(1), state, rows, jnp.arange(7))
    hidden = jax.nn.sigmoid(DATA @ np.asarray(model.weights) + np.asarray(model.hidden_bias))
    expected = weights @ np.asarray(hidden) / weights.sum()
    np.testing.assert_allclose(state.offsets["h"], expected, rtol=1e-5)
    np.testing.assert_allclose(state.offsets["v"], mean, rtol=1e-6)
