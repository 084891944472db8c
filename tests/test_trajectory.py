"""Trajectory tempering: exact at fixed parameters, log Z within its error, steps and rungs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import zoo

import pgm_energy as pgm
from pgm_energy.learning.loop import Rows
from pgm_energy.learning.trajectory import Trajectory, _start, _swap, _swap_rate_of_step

NUM_CHAINS = 4000


def stacked(models):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)


def ladder(models, num_chains=NUM_CHAINS, spare=1, seed=0):
    """A trajectory whose chains are exact draws of the base and of each model, and the laws."""
    base = pgm.Independent.like(models[0])
    size = len(models) + spare
    state = _start(jax.random.key(seed), base, models[0], num_chains=num_chains, size=size)
    laws = [oracles.law(model) for model in (base, *models)]
    rng = np.random.default_rng(seed)
    draws = [oracles.exact_draws(rng, values, p, num_chains) for values, p, _ in laws]
    draws += [draws[-1]] * spare
    values = {name: jnp.asarray(np.stack([x[name] for x in draws])) for name in models[0].sites}
    state = state._replace(
        models=stacked([*models, *[models[-1]] * spare]),
        num_models=jnp.asarray(len(models), jnp.int32),
        values=values,
    )
    return state, laws


def trained(scale, seed=0):
    """A machine of three visible and two hidden units whose couplings have grown."""
    model = zoo.rbm(seed=seed)
    return pgm.replace(model, weights=scale * model.weights)


def p_values(state, laws):
    found = []
    for level, (values, probabilities, _) in enumerate(laws):
        own = {name: np.asarray(x[level]) for name, x in state.values.items()}
        found.append(oracles.frequencies_p_value(own, values, probabilities))
    return np.array(found)


# ---- exactness -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frozen():
    return ladder([trained(0.5), trained(2.0), trained(4.0)])


def test_every_rung_keeps_its_exact_law(frozen):
    state, laws = frozen
    phase = pgm.TrajectoryChains()
    samples, after = phase.sample(jax.random.key(1), state, 3)
    assert samples["v"].shape == (3, NUM_CHAINS, 3)
    assert p_values(after, laws).min() > oracles.ALPHA
    moved = np.asarray(samples["v"][-1] != state.values["v"][3]).any(axis=1).mean()
    assert moved > 0.5


def test_swaps_keep_the_product_of_the_laws_and_need_the_joint_energy(frozen):
    """Swaps alone, both sets of pairs, from exact draws: and with free energies they are wrong."""
    state, laws = frozen
    models = [state.base, *(jax.tree.map(lambda x, i=i: x[i], state.models) for i in range(3))]

    def run(energy):
        count = len(state.reference)
        forward, reverse = np.zeros((2, count, NUM_CHAINS), np.float32)

        def of(model, level):
            return energy(model, {name: x[level] for name, x in values.items()})

        values = state.values
        for parity in (0, 1):
            for pair in range(3):
                low, high = models[pair], models[pair + 1]
                forward[pair] = of(low, pair) - of(high, pair)
                reverse[pair] = of(low, pair + 1) - of(high, pair + 1)
            uniform = jax.random.uniform(jax.random.key(parity), forward.shape)
            in_use = jnp.asarray(np.arange(count) < 3)[:, None]
            values, _ = _swap(
                values, uniform, jnp.asarray(forward), jnp.asarray(reverse), in_use, parity
            )
        return state._replace(values=values)

    def joint(model, values):
        return jax.vmap(lambda x: model.energy(**model.encode(x)))(values)

    def free(model, values):
        model = pgm.marginalize(model, "h")
        return jax.vmap(lambda x: model.energy(v=model.sites["v"].encode(x["v"])))(values)

    right = run(joint)
    assert p_values(right, laws).min() > oracles.ALPHA
    changed = np.asarray(right.values["v"] != state.values["v"]).any(axis=(1, 2))
    assert changed[:4].all()
    assert not changed[4]  # a rung that is not in use stays out of it
    assert p_values(run(free), laws).min() < oracles.ALPHA  # positive control


def test_detailed_balance_of_a_swap_over_all_pairs_of_states():
    low, high = trained(0.5), trained(3.0)
    states, p_low, _ = oracles.law(low)
    _, p_high, _ = oracles.law(high)
    e_low, e_high = oracles.energies(low, states), oracles.energies(high, states)
    n = len(p_low)
    first, second = (x.reshape(-1) for x in np.meshgrid(np.arange(n), np.arange(n), indexing="ij"))
    forward, reverse = (e_low - e_high)[first], (e_low - e_high)[second]
    values = {"x": jnp.stack([first, second])}
    ones = jnp.ones((1, 1), bool)
    forward, reverse = jnp.asarray(forward), jnp.asarray(reverse)

    def accepts(uniform):
        swapped, prob = _swap(
            values, jnp.full((1, n * n), uniform), forward[None], reverse[None], ones, 0
        )
        return np.asarray(swapped["x"][0]) == second, float(prob[0])

    right = np.minimum(1.0, np.exp(forward - reverse))
    for uniform in (0.1, 0.5, 0.9):
        took, prob = accepts(uniform)
        assert (took == ((uniform < right) | (first == second))).all()
    assert prob == pytest.approx(right.mean(), rel=1e-5)
    flow = (p_low[first] * p_high[second] * right).reshape(n, n)
    np.testing.assert_allclose(flow, flow.T, atol=1e-8)


# ---- log Z -----------------------------------------------------------------------------------


def test_log_partition_at_fixed_parameters_is_exact_within_its_error(frozen):
    state, laws = frozen
    _, after = pgm.TrajectoryChains().sample(jax.random.key(2), state, 3)
    error = float(after.log_partition) - laws[-1][2]
    assert 0 < float(after.std_error) < 0.1
    assert abs(error) < 5 * float(after.std_error)

    # the error is that of the estimate, over many ladders of few chains
    small = ladder([trained(0.5), trained(2.0), trained(4.0)], num_chains=4000, seed=5)[0]
    groups = jnp.arange(4000).reshape(100, 40)
    phase = pgm.TrajectoryChains()
    after = phase.sample(jax.random.key(3), small, 3)[1]
    parts = [phase.taken(after, index) for index in groups]
    estimates = np.array([float(part.log_partition) for part in parts])
    errors = np.array([float(part.std_error) for part in parts])
    scores = (estimates - laws[-1][2]) / errors
    assert abs(scores.mean()) < 0.5
    assert 0.7 < scores.std() < 1.4


@pytest.fixture(scope="module")
def learned():
    """Two modes far apart, learned to the end: the couplings become strong."""
    rng = np.random.default_rng(0)
    rows = np.where(rng.random((256, 1)) < 0.5, 1, 0) ^ (rng.random((256, 8)) < 0.03)
    start = pgm.RBM.init(jax.random.key(0), num_visible=8, num_hidden=4, data=rows)
    learner = pgm.PCD(
        optax.adam(optax.linear_schedule(0.05, 0.0, 400)),
        num_chains=200,
        kernel=pgm.TrajectoryChains(max_models=12),
    )
    result = learner.run(
        jax.random.key(1), start, rows, num_epochs=100, batch_size=64, progress_bar=False
    )
    return rows, result


def test_learning_tracks_log_partition_and_keeps_both_modes(learned):
    rows, result = learned
    walk = result.state.walk
    assert isinstance(walk, Trajectory)
    assert int(walk.num_models) > 1
    exact = pgm.log_partition(result.model).estimate
    error = abs(float(walk.log_partition) - exact)
    assert float(walk.std_error) < 0.3
    assert error < 5 * float(walk.std_error)
    np.testing.assert_array_equal(walk.model.weights, result.model.weights)
    # what was learned is a likelihood near that of the data's own law
    assert pgm.log_likelihood(result.model, rows).mean() > -3.2
    on = np.asarray(result.state.chains["v"]).mean(axis=1)
    assert 0.3 < (on > 0.5).mean() < 0.7
    metrics = result.metrics
    assert {"swap_rate", "num_models", "rejected", "log_partition"} <= set(metrics)
    assert (np.diff(metrics["num_models"]) >= 0).all()
    assert metrics["log_partition"][-1] == pytest.approx(exact, abs=1.0)

    # steps at fixed parameters alone
    _, more = pgm.TrajectoryChains(max_models=12).sample(jax.random.key(2), walk, 200)
    assert float(more.std_error) < 0.03
    assert abs(float(more.log_partition) - exact) < 5 * float(more.std_error)


def test_chains_move_between_modes_that_block_gibbs_keeps_apart(learned):
    _, result = learned
    samples, _ = pgm.TrajectoryChains(max_models=12).sample(
        jax.random.key(3), result.state.walk, 200
    )
    kernel = pgm.gibbs_kernel(pgm.blocks(result.model))

    @jax.jit
    def plain(key, chains):
        def sweep(chains, key):
            keys = jax.random.split(key, 200)
            chains = jax.vmap(lambda k, x: kernel(k, x, result.model)[0])(keys, chains)
            return chains, chains["v"]

        return jax.lax.scan(sweep, chains, jax.random.split(key, 200))[1]

    def changes(v):
        side = np.asarray(v).mean(axis=-1) > 0.5
        return (side[1:] != side[:-1]).sum()

    alone = plain(jax.random.key(4), result.state.chains)
    assert changes(samples["v"]) > 5 * changes(alone) + 100


# ---- rungs and steps -------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="swap_rate")
def moved(state, proposed, swap_rate):
    chains = {name: x[state.num_models] for name, x in state.values.items()}
    phase = pgm.TrajectoryChains(swap_rate=swap_rate)
    return phase.moved(chains, state, state.model, proposed)


def test_steps_are_taken_or_not_and_rungs_are_added():
    state = ladder([trained(2.5)], num_chains=500, spare=2)[0]
    state = state._replace(swap_prob=jnp.array([0.5, 1.0, 1.0]))
    near, far = trained(2.6), trained(60.0)
    # it swaps with the last rung, which are independent units, often enough: no new one
    model, after, figures = moved(state, near, 0.2)
    assert (int(after.num_models), figures["rejected"]) == (1, 0)
    np.testing.assert_array_equal(model.weights, near.weights)
    np.testing.assert_array_equal(after.model.weights, near.weights)
    # too seldom: the model before the step becomes a rung
    model, grown, figures = moved(state, near, 0.9)
    assert (int(grown.num_models), figures["rejected"]) == (2, 0)
    np.testing.assert_array_equal(model.weights, near.weights)
    np.testing.assert_array_equal(grown.models.weights[0], state.model.weights)
    np.testing.assert_array_equal(grown.model.weights, near.weights)
    np.testing.assert_array_equal(grown.values["v"][1], grown.values["v"][2])
    # too large a step: nothing changes
    model, after, figures = moved(state, far, 0.9)
    assert (int(after.num_models), figures["rejected"]) == (1, 1)
    np.testing.assert_array_equal(model.weights, state.model.weights)
    # no room left: the last gap grows
    full = grown._replace(num_models=jnp.asarray(3, jnp.int32))
    model, after, figures = moved(full, trained(2.7), 0.9)
    assert (int(after.num_models), figures["rejected"]) == (3, 0)
    np.testing.assert_array_equal(model.weights, trained(2.7).weights)


@pytest.mark.parametrize("scale", [4.3, 9.0])
def test_the_swap_rate_of_a_step_is_known_before_it_is_taken(frozen, scale):
    state, _ = frozen
    old, new = trained(4.0), trained(scale)
    states, p_new, _ = oracles.law(new)
    p_old = oracles.law(old)[1]
    climb = oracles.energies(new, states) - oracles.energies(old, states)
    right = p_old @ np.exp(np.minimum(climb[None, :] - climb[:, None], 0.0)) @ p_new
    values = {name: x[3] for name, x in state.values.items()}
    drawn = oracles.energies(new, values) - oracles.energies(old, values)
    assert float(_swap_rate_of_step(jnp.asarray(drawn))) == pytest.approx(right, abs=0.05)
    assert (right > 0.9) == (scale < 5)  # one small step and one large one


def test_log_partition_follows_a_step(frozen):
    state, _ = frozen
    new = trained(4.3)
    log_z = oracles.law(new)[2]
    _, state = pgm.TrajectoryChains().sample(jax.random.key(4), state, 3)
    state = state._replace(swap_prob=jnp.full(4, 0.5))
    for swap_rate, num_models in ((0.2, 3), (0.9, 4)):
        _, after, _ = moved(state, new, swap_rate)
        assert int(after.num_models) == num_models
        error = float(after.log_partition) - log_z
        assert abs(error) < 5 * float(after.std_error) < 0.5


def test_the_learner_takes_no_step_that_the_phase_refuses():
    """A learning rate beyond reason: every step is refused and the model stays as it was."""
    rows = Rows({"v": jnp.asarray(np.eye(3, dtype=np.int8))}, jnp.ones(3))
    learner = pgm.PCD(
        optax.sgd(1e4),
        num_chains=100,
        kernel=pgm.TrajectoryChains(max_models=4, swap_rate=0.9),
        centered=False,
    )
    start = trained(0.1)
    state = learner.init(jax.random.key(0), start, rows)
    after, info = jax.jit(learner.update)(jax.random.key(1), state, rows, jnp.arange(3))
    assert info["rejected"] == 1
    np.testing.assert_array_equal(after.model.weights, start.weights)


def test_a_start_far_from_independent_units_is_told():
    start = trained(40.0)
    learner = pgm.PCD(optax.sgd(0.0), num_chains=50, kernel=pgm.TrajectoryChains(max_models=4))
    rows = Rows({"v": jnp.asarray(np.eye(3, dtype=np.int8))}, jnp.ones(3))
    with pytest.warns(RuntimeWarning, match="gap at its foot"):
        learner.init(jax.random.key(0), start, rows)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"max_models": 1}, ValueError, "at least 2"),
        ({"max_models": 2.5}, (ValueError, TypeError), "max_models"),
        ({"swap_rate": 0.0}, ValueError, "between 0 and 1"),
        ({"swap_rate": 1.0}, ValueError, "between 0 and 1"),
        ({"kernel": 3}, TypeError, "function"),
    ],
    ids=["one model", "half a model", "never", "always", "no kernel"],
)
def test_settings_that_cannot_be_right_are_refused(annotations_unchecked, settings, error, message):
    with pytest.raises(error, match=message):
        pgm.TrajectoryChains(**settings)
