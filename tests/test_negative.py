"""Negative phases: gradients against the exact likelihood's by any kernel; counts; fast weights."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import ALPHA
from scipy import stats
from scipy.special import softmax

import pgm_energy as pgm
from pgm_energy.learning.counts import count_at
from pgm_energy.learning.latents import sum_out
from pgm_energy.learning.loop import Rows


def bits(size):
    return (np.arange(2**size)[:, None] >> np.arange(size)) & 1


def normal(seed, *shape, scale=0.7):
    return jnp.asarray(np.random.default_rng(seed).normal(0, scale, shape), jnp.float32)


def stay(rng_key, values, model):
    """A kernel that stands still."""
    return values, None


def flip(rng_key, values, model):
    """A kernel that turns every visible bit over."""
    return {**values, "v": 1 - values["v"]}, None


def run(learner, model, data, **more):
    more = {"num_epochs": 3, "progress_bar": False, **more}
    return learner.run(jax.random.key(0), model, data, **more)


def assert_close(first, second, **tolerance):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


DATA = np.array([[0, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0], [1, 0, 1]])
STATES = bits(3)
RBM = pgm.RBM(weights=normal(0, 3, 2, scale=1.5), visible_bias=normal(1, 3))
#: Two modes, all units off or all on, between which block Gibbs hardly ever crosses.
MODES = pgm.RBM(
    weights=jnp.full((3, 2), 8.0),
    visible_bias=jnp.array([-7.7, -8.0, -8.2]),
    hidden_bias=jnp.full(2, -12.0),
)

# ---- the gradient --------------------------------------------------------------------------------


def law(model):
    return softmax(np.asarray(sum_out(model).log_density({"v": STATES}), float))


def flat(tree, rows=1):
    leaves = [np.asarray(leaf, float).reshape(rows, -1) for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves, axis=1)


def slopes(model, rows):
    """dF/dtheta of every row, by listing the hidden states."""
    hidden = jnp.asarray(bits(2), float)

    def free_energy(model, v):
        return -jax.nn.logsumexp(jax.vmap(lambda h: -model.energy(v=v, h=h))(hidden))

    rows = jnp.asarray(rows, float)
    return flat(jax.vmap(jax.grad(free_energy), (None, 0))(model, rows), len(rows))


def p_value(gradient, model, rows, num_chains):
    """Of a gradient that should be exact but for its chains, independent draws of the law."""
    probabilities, of_states = law(model), slopes(model, STATES)
    mean = probabilities @ of_states
    error = np.sqrt(probabilities @ (of_states - mean) ** 2 / num_chains)
    z = np.abs(gradient - (slopes(model, rows).mean(axis=0) - mean)) / np.maximum(error, 1e-7)
    return min(1.0, z.size * 2 * stats.norm.sf(z.max()))


def gradient_of(learner, model, rows, change=lambda state: state, num_updates=1):
    """The gradient of the last of some updates, parameters put back after each; and the state."""
    rows = Rows({"v": jnp.asarray(rows, jnp.int8)}, jnp.ones(len(rows)))
    state = change(learner.init(jax.random.key(0), model, rows))
    update, index = jax.jit(learner.update), jnp.arange(len(rows.weights))
    for number in range(num_updates):
        new, info = update(jax.random.key(number + 1), state, rows, index)
        step = jax.tree.map(lambda before, after: before - after, state.model, new.model)
        state = new._replace(model=model)
    return flat(step)[0], state, info


PLAIN = {"optimizer": optax.sgd(1.0), "centered": False}


def test_pcd_at_equilibrium_has_the_likelihood_gradient():
    num = 20_000
    # h is drawn first, from v: chains at the law of v keep it
    learner = pgm.PCD(num_chains=num, kernel=pgm.gibbs_kernel(pgm.blocks(RBM, ["h", "v"])), **PLAIN)
    chosen = np.random.default_rng(0).choice(8, size=num, p=law(RBM))

    def at_law(state):
        return state._replace(chains={**state.chains, "v": jnp.asarray(STATES[chosen], jnp.int8)})

    gradient, _, _ = gradient_of(learner, RBM, DATA, at_law)
    assert p_value(gradient, RBM, DATA, num) > ALPHA

    def elsewhere(state):
        return state._replace(chains=jax.tree.map(jnp.zeros_like, state.chains))

    gradient, _, _ = gradient_of(learner, RBM, DATA, elsewhere)  # one sweep away from zeros
    assert p_value(gradient, RBM, DATA, num) < ALPHA


@pytest.mark.parametrize("num_sweeps, is_exact", [(60, True), (1, False)], ids=["60", "1"])
def test_cd_of_many_sweeps_has_the_likelihood_gradient(num_sweeps, is_exact):
    rows = np.tile(DATA, (3000, 1))
    learner = pgm.CD(num_sweeps=num_sweeps, **PLAIN)
    gradient, _, _ = gradient_of(learner, RBM, rows)
    assert (p_value(gradient, RBM, DATA, len(rows)) > ALPHA) == is_exact


def test_tempered_chains_cross_between_modes():
    """All chains start in one mode, which plain chains do not leave."""
    assert 0.2 < law(MODES)[0] < 0.8
    num = 1000
    cold = {"v": jnp.zeros((num, 3), jnp.int8), "h": jnp.zeros((num, 2), jnp.int8)}

    def plain(state):
        return state._replace(chains=cold)

    def ladders(state):
        replicas = state.walk.replicas
        values = jax.tree.map(jnp.zeros_like, replicas.values)
        walk = state.walk._replace(replicas=replicas._replace(values=values))
        return state._replace(chains=cold, walk=walk)

    learner = pgm.PCD(num_chains=num, **PLAIN)
    gradient, _, _ = gradient_of(learner, MODES, DATA, plain, num_updates=80)
    assert p_value(gradient, MODES, DATA, num) < ALPHA
    learner = pgm.PCD(num_chains=num, kernel=pgm.TemperedChains(num_replicas=6), **PLAIN)
    gradient, state, info = gradient_of(learner, MODES, DATA, ladders, num_updates=80)
    assert p_value(gradient, MODES, DATA, num) > ALPHA
    assert 0.05 < float(info["swap_rate"]) < 1.0
    # the samples are the replicas of the model itself, and the ladder was tuned
    tops = {name: value[:, -1] for name, value in state.walk.replicas.values.items()}
    assert_close(state.chains, tops, rtol=0)
    assert np.abs(np.diff(state.walk.betas) - 0.2).max() > 0.01
    np.testing.assert_array_equal(np.asarray(state.walk.betas)[[0, -1]], [0.0, 1.0])


def test_given_betas_stay():
    phase = pgm.TemperedChains(betas=(0.0, 0.3, 1.0))
    learner = pgm.PCD(num_chains=4, num_sweeps=2, kernel=phase, **PLAIN)
    _, state, info = gradient_of(learner, RBM, DATA)
    np.testing.assert_allclose(state.walk.betas, (0.0, 0.3, 1.0))
    assert state.walk.replicas.values["v"].shape == (4, 3, 3)
    assert {"swap_rate", "chain_autocorrelation", "gradient_norm"} == set(info)
    for wanted in (6, 3):  # ladders of chains that come and go
        more = dataclasses.replace(learner, num_chains=lambda epoch, wanted=wanted: wanted)
        _, other = more.at_epoch(5, state)
        index = np.arange(wanted) % 4
        assert_close(other.chains, {k: v[index] for k, v in state.chains.items()}, rtol=0)
        tops = {k: v[:, -1] for k, v in other.walk.replicas.values.items()}
        assert_close(other.chains, tops, rtol=0)
        assert len(other.energies) == len(other.walk.replicas.parity) == wanted


def test_another_kernel_as_negative_phase():
    """Proposals by gradients keep chains that are at the law there."""
    num = 20_000
    kernel = pgm.kernels.GibbsWithGradientsKernel()
    learner = pgm.PCD(num_chains=num, kernel=kernel, **PLAIN)
    exact = pgm.exact(RBM).sample(jax.random.key(5), num)
    gradient, state, _ = gradient_of(learner, RBM, DATA, lambda s: s._replace(chains=exact))
    assert p_value(gradient, RBM, DATA, num) > ALPHA
    moved = np.asarray(state.chains["v"]) != np.asarray(exact["v"])
    assert moved.any(axis=1).mean() > 0.1


# ---- counts that change --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "count, expected",
    [
        (3, [3, 3, 3, 3]),
        ([2, 1], [2, 1, 1, 1]),
        ((1, 5, 7), [1, 5, 7, 7]),
        (lambda epoch: 2**epoch, [1, 2, 4, 8]),
    ],
    ids=["number", "list", "tuple", "function"],
)
def test_counts_of_an_epoch(count, expected):
    assert [count_at("num_sweeps", count, epoch) for epoch in range(4)] == expected


def test_counts_may_change_in_a_run():
    """An even number of turns leaves chains as they are; new ones are copies of old ones."""
    seen = []
    learner = pgm.PCD(
        optax.sgd(0.0), num_chains=[2, 5, 3], num_sweeps=[2, 2, 1], kernel=flip, centered=False
    )
    run(learner, RBM, DATA, num_epochs=4, callbacks=[lambda e, state, f: seen.append(state.chains)])
    visible = [np.asarray(chains["v"]) for chains in seen]
    assert [len(v) for v in visible] == [2, 5, 3, 3]
    np.testing.assert_array_equal(visible[1], visible[0][[0, 1, 0, 1, 0]])
    np.testing.assert_array_equal(visible[2], 1 - visible[0][[0, 1, 0]])
    np.testing.assert_array_equal(visible[3], visible[0][[0, 1, 0]])


# ---- rates and fast weights ----------------------------------------------------------------------


def updates_of(learner, start, num):
    """Models after so many updates on all rows, and the last state."""
    rows = Rows({"v": jnp.asarray(DATA, jnp.int8)}, jnp.ones(7))
    state = learner.init(jax.random.key(0), start, rows)
    models, update = [start], jax.jit(learner.update)
    for number in range(num):
        state, _ = update(jax.random.key(number), state, rows, jnp.arange(7))
        models.append(state.model)
    return models, state


def test_a_schedule_counts_updates():
    start = pgm.BoltzmannMachine(weights=jnp.zeros((3, 3)))
    rate = optax.piecewise_constant_schedule(0.2, {2: 0.5, 4: 0.0})
    models, _ = updates_of(pgm.PCD(optax.sgd(rate), num_chains=4, kernel=stay), start, 6)
    # chains that stand still pull all the same way: steps differ by the rate alone
    moves = np.stack([b.bias - a.bias for a, b in itertools.pairwise(models)])
    factors = np.array([1.0, 1.0, 0.5, 0.5, 0.0, 0.0])
    np.testing.assert_allclose(moves, factors[:, None] * moves[0], rtol=1e-4, atol=1e-6)
    assert np.abs(moves[0]).max() > 0.01


def test_fast_weights_by_hand():
    """They add up gradients, decay by 1/20, and move the chains alone."""
    seen = []

    def look(rng_key, values, model):
        # a kernel that tells which parameters it was given, and stands still
        jax.debug.callback(lambda bias: seen.append(np.asarray(bias)), model.visible_bias)
        return values, None

    start = pgm.RBM(weights=jnp.zeros((3, 1)))
    learner = pgm.PCD(
        optax.sgd(0.1), num_chains=1, kernel=look, fast_learning_rate=0.5, centered=False
    )
    models, state = updates_of(learner, start, 3)
    jax.effects_barrier()
    gradient = np.asarray(state.chains["v"], float)[0] - DATA.mean(axis=0)
    np.testing.assert_allclose(models[-1].visible_bias, -0.3 * gradient, rtol=1e-4)
    fast = [0.0, -0.5, -0.5 * (1 + 0.95)]
    expected = [(-0.1 * number + fast[number]) * gradient for number in range(3)]
    np.testing.assert_allclose(np.stack(seen), np.stack(expected), rtol=1e-4, atol=1e-6)


def test_fast_weights_are_centred_as_the_others_are():
    """On inverted bits the chains are driven by the inverted machine."""
    model = pgm.RBM(weights=normal(4, 3, 2), visible_bias=normal(5, 3), hidden_bias=normal(6, 2))

    def flipped(model):
        return pgm.replace(
            model,
            visible_bias=-model.visible_bias - model.weights.sum(1),
            hidden_bias=-model.hidden_bias - model.weights.sum(0),
        )

    def reverse(rng_key, values, model):
        """Chains that take the side that the fields are on: whatever the names of the states."""
        field = model.visible_bias + 0.5 * model.weights.sum(1)
        side = (field > 0).astype(jnp.int8)
        return {"v": side, "h": 1 - values["h"]}, None

    learner = pgm.PCD(optax.sgd(0.2), num_chains=3, kernel=reverse, fast_learning_rate=0.3)

    def train(model, rows, turn):
        rows = Rows({"v": jnp.asarray(rows, jnp.int8)}, jnp.ones(7))
        state = learner.init(jax.random.key(0), model, rows)
        if turn:
            state = state._replace(chains={k: 1 - v for k, v in state.chains.items()})
        for number in range(8):
            state, _ = jax.jit(learner.update)(jax.random.key(number), state, rows, jnp.arange(7))
        return state

    first, second = train(model, DATA, False), train(flipped(model), 1 - DATA, True)
    assert_close(first.model, flipped(second.model), rtol=1e-3, atol=1e-4)
    assert np.abs(first.fast.weights).max() > 0.01


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.usefixtures("annotations_unchecked")
def test_arguments():
    with pytest.raises(ValueError, match="num_sweeps of epoch 0 must be an integer of at least 1"):
        pgm.PCD(optax.sgd(0.1), num_sweeps=lambda epoch: epoch)
    with pytest.raises(ValueError, match="num_chains is empty: give a number, or one per epoch"):
        pgm.PCD(optax.sgd(0.1), num_chains=[])
    with pytest.raises(ValueError, match=r"num_sweeps of epoch 1 must be .*, got 0"):
        run(pgm.PCD(optax.sgd(0.1), num_sweeps=[1, 0], num_chains=2), RBM, DATA)
    with pytest.raises(TypeError, match="CD starts at the data of every batch, which Tempered"):
        pgm.CD(optax.sgd(0.1), kernel=pgm.TemperedChains())
    with pytest.raises(ValueError, match="fast_learning_rate must be positive or None, got -1"):
        pgm.PCD(optax.sgd(0.1), fast_learning_rate=-1.0)
    with pytest.raises(ValueError, match="positive must be 'sampling' or 'mean_field', got 'mean'"):
        pgm.PCD(optax.sgd(0.1), positive="mean")
    with pytest.raises(ValueError, match="num_replicas must be at least 2, got 1"):
        pgm.TemperedChains(num_replicas=1)
    with pytest.raises(ValueError, match="betas must run from 0"):
        pgm.TemperedChains(betas=(0.1, 1.0))
