"""Penalties as optax transformations: what they do to a step, by hand and in a run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pgm_energy as pgm
from pgm_energy.learning.loop import Rows

DATA = np.array([[0, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0], [1, 0, 1]])


def rbm():
    rng = np.random.default_rng(0)
    return pgm.RBM(
        weights=rng.normal(0, 1, (3, 2)),
        visible_bias=rng.normal(0, 1, 3),
        hidden_bias=rng.normal(0, 1, 2),
    )


def stay(rng_key, values, model):
    return values, None


def step_of(transformation, model):
    """What a transformation makes of no gradient at all."""
    zero = jax.tree.map(jnp.zeros_like, model)
    return transformation.update(zero, transformation.init(model), model)[0]


def test_l1_and_l2_spare_biases():
    model = rbm()
    l1 = step_of(pgm.add_l1_penalty(0.1), model)
    np.testing.assert_allclose(l1.weights, 0.1 * np.sign(model.weights), rtol=1e-6)
    l2 = step_of(optax.add_decayed_weights(0.1, mask=pgm.couplings_only), model)
    np.testing.assert_allclose(l2.weights, 0.1 * model.weights, rtol=1e-6)
    for updates in (l1, l2):
        assert not updates.visible_bias.any()
        assert not updates.hidden_bias.any()
    everything = step_of(
        pgm.add_l1_penalty(0.1, mask=lambda p: jax.tree.map(lambda _: True, p)), model
    )
    assert everything.hidden_bias.any()


@pytest.mark.parametrize("axis, axes", [(0, (0,)), (1, (1,)), ((0, 1), (0, 1))])
def test_norms_are_limited(axis, axes):
    model = rbm()
    updates = step_of(pgm.limit_norms(0.8, axis=axis), model)
    new = np.asarray(model.weights + updates.weights)
    norms = np.sqrt((np.asarray(model.weights) ** 2).sum(axis=axes, keepdims=True))
    np.testing.assert_allclose(new, model.weights * np.minimum(1.0, 0.8 / norms), rtol=1e-5)
    assert not updates.visible_bias.any()
    small = pgm.replace(model, weights=0.01 * model.weights)
    np.testing.assert_allclose(
        step_of(pgm.limit_norms(0.8, axis=axis), small).weights, 0, atol=1e-8
    )


def learned(learner, num):
    """The model after so many updates on all rows."""
    rows = Rows({"v": jnp.asarray(DATA, jnp.int8)}, jnp.ones(7))
    state, update = learner.init(jax.random.key(0), rbm(), rows), jax.jit(learner.update)
    for number in range(num):
        state, _ = update(jax.random.key(number), state, rows, jnp.arange(7))
    return state.model


def test_penalties_in_a_chain():
    """All of them on at once: the couplings shrink and stay short."""
    optimizer = optax.chain(
        pgm.add_l1_penalty(0.5),
        pgm.add_sparsity_penalty(0.1, 0.1),
        optax.sgd(0.1),
        pgm.limit_norms(0.5),
    )
    model = learned(pgm.PCD(optimizer, num_chains=16), 3)
    norms = np.linalg.norm(model.weights, axis=0)
    assert (norms < 0.5 + 1e-5).all()
    assert (np.linalg.norm(rbm().weights, axis=0) > 0.6).any()


def test_hidden_units_come_to_their_target():
    """Chains that start at the data and stay leave the penalty as the only force."""
    optimizer = optax.chain(pgm.add_sparsity_penalty(0.2, 1.0, decay=0.0), optax.sgd(1.0))
    model = learned(pgm.CD(optimizer, kernel=stay, centered=False), 150)
    fields = DATA @ np.asarray(model.weights) + np.asarray(model.hidden_bias)
    means = np.asarray(jax.nn.sigmoid(fields)).mean(axis=0)
    np.testing.assert_allclose(means, 0.2, atol=1e-3)
    np.testing.assert_allclose(model.weights, rbm().weights, atol=1e-4)


def test_what_is_refused():
    with pytest.raises(ValueError, match="strength must be a number that is not negative, got -1"):
        pgm.add_l1_penalty(-1.0)
    with pytest.raises(ValueError, match=r"limit must be positive, got 0\.0"):
        pgm.limit_norms(0.0)
    with pytest.raises(ValueError, match=r"decay must be from 0 to below 1, got 1\.0"):
        pgm.add_sparsity_penalty(0.1, 1.0, decay=1.0)
    with pytest.raises(ValueError, match="RBM has no latent site 'v'; its latent sites are 'h'"):
        pgm.add_sparsity_penalty(0.1, 1.0, site="v").init(rbm())
    penalty = pgm.add_sparsity_penalty(0.1, 1.0)
    with pytest.raises(ValueError, match="needs a learner that tells the activity: CD or PCD"):
        penalty.update(rbm(), penalty.init(rbm()), rbm())
