"""PCD and CD: the gradient against the exact likelihood's, and every promise of the loop."""

import gzip

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logsumexp

import pgm_energy as pgm
from pgm_energy.learning.contrast import contrast
from pgm_energy.learning.latents import sum_out, sums_out
from pgm_energy.learning.loop import Rows, draw_bits, take
from pgm_energy.learning.metrics import explain


def bits(size):
    """All configurations of so many bits, ``(2**size, size)``."""
    return (np.arange(2**size)[:, None] >> np.arange(size)) & 1


def normal(seed, *shape, scale=0.7):
    return jnp.asarray(np.random.default_rng(seed).normal(0, scale, shape), jnp.result_type(float))


def symmetric(seed, size, scale=0.7):
    upper = np.triu(np.random.default_rng(seed).normal(0, scale, (size, size)), 1)
    return jnp.asarray(upper + upper.T, jnp.result_type(float))


def stay(rng_key, values, model):
    """A kernel that stands still."""
    return values, None


def flip(rng_key, values, model):
    """A kernel that turns every visible bit over."""
    return {**values, "v": 1 - values["v"]}, None


def run(learner, model, data, seed=0, **more):
    more = {"num_epochs": 3, "progress_bar": False, **more}
    return learner.run(jax.random.key(seed), model, data, **more)


def assert_close(first, second, **tolerance):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


DATA = np.array([[0, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0], [1, 0, 1]])
RBM = pgm.RBM(weights=normal(0, 3, 2), visible_bias=normal(1, 3), hidden_bias=normal(2, 2))
# learners of many tests: what is shared is compiled once
LEARNER = pgm.PCD(optax.sgd(0.1), num_chains=8)
FROM_DATA = pgm.CD(optax.sgd(0.1))

# ---- the gradient --------------------------------------------------------------------------------


def rbm_of(visible, hidden):
    three, two = (3, 3) if visible is pgm.Categorical else (3,), (2,)
    return pgm.RBM(
        weights=normal(3, *three, *two),
        visible_bias=normal(4, *three),
        hidden_bias=normal(5, *two),
        visible=visible,
        hidden=hidden,
    )


MAKERS = {
    "binary": lambda: rbm_of(pgm.Binary, pgm.Binary),
    "spin": lambda: rbm_of(pgm.Spin, pgm.Spin),
    "spin and binary": lambda: rbm_of(pgm.Spin, pgm.Binary),
    "categorical": lambda: rbm_of(pgm.Categorical, pgm.Binary),
    "machine": lambda: pgm.BoltzmannMachine(weights=symmetric(6, 4), bias=normal(7, 4)),
}


def visible_states(site):
    count = len(site.states)
    grid = np.indices((count,) * site.size).reshape(site.size, -1).T
    return np.asarray(site.states)[grid]


def exact_loss(model, rows, states):
    """Mean -log p(row) from the joint energy of every state: no free energy, no contrast."""
    hidden = bits(model.sites["h"].size) if "h" in model.sites else np.zeros((1, 0), int)
    if "h" in model.sites and isinstance(model.sites["h"], pgm.Spin):
        hidden = 2 * hidden - 1

    def log_weight(v):
        def joint(h):
            values = {"v": v, "h": h} if "h" in model.sites else {"v": v}
            return -model.energy(**model.encode(values))

        return jax.nn.logsumexp(jax.vmap(joint)(jnp.asarray(hidden)))

    log_z = jax.nn.logsumexp(jax.vmap(log_weight)(jnp.asarray(states)))
    return log_z - jnp.mean(jax.vmap(log_weight)(jnp.asarray(rows)))


exact_gradient = jax.jit(jax.grad(exact_loss))


@pytest.mark.x64
@pytest.mark.parametrize("name", MAKERS)
def test_contrast_with_the_exact_law_is_the_likelihood_gradient(name):
    model = MAKERS[name]()
    site = model.sites["v"]
    states = visible_states(site)
    rows = states[np.random.default_rng(0).integers(len(states), size=6)]
    density = jax.vmap(lambda v: sum_out(model).log_density({"v": v}))(jnp.asarray(states))
    probabilities = jax.nn.softmax(density)

    def loss(model):
        encoded = {"v": site.encode(rows)}, {"v": site.encode(states)}
        return contrast(sum_out(model), encoded[0], jnp.ones(6), encoded[1], probabilities)

    expected = exact_gradient(model, rows, states)
    assert_close(jax.jit(jax.grad(loss))(model), expected, rtol=1e-9, atol=1e-11)

    def uniform(model):  # the test can tell: chains of another law give another gradient
        encoded = {"v": site.encode(rows)}, {"v": site.encode(states)}
        return contrast(sum_out(model), encoded[0], jnp.ones(6), encoded[1])

    error = jax.tree.map(
        lambda a, b: jnp.abs(a - b).max(), jax.jit(jax.grad(uniform))(model), expected
    )
    assert max(jax.tree.leaves(error)) > 1e-2


@pytest.mark.x64
def test_contrast_of_real_visible_units():
    """Gauss-Hermite nodes of every component stand for the chains; log Z is known by hand."""
    model = pgm.RBM(
        weights=normal(8, 2, 2),
        visible_bias=normal(9, 2),
        hidden_bias=normal(10, 2),
        visible_precision=jnp.asarray([0.7, 1.8]),
        visible=pgm.Real,
    )
    rows = np.random.default_rng(1).normal(0, 1.5, (5, 2))
    hidden = jnp.asarray(bits(2), float)

    def exact(model):
        field = model.visible_bias + hidden @ model.weights.T
        normalizer = 0.5 * (field**2 / model.visible_precision - jnp.log(model.visible_precision))
        log_z = jax.nn.logsumexp(hidden @ model.hidden_bias + normalizer.sum(axis=1))

        def joint(v, h):
            quadratic = 0.5 * jnp.sum(model.visible_precision * v**2)
            return (
                v @ model.weights @ h + model.visible_bias @ v + model.hidden_bias @ h - quadratic
            )

        over_h = jax.vmap(lambda v: jax.nn.logsumexp(jax.vmap(lambda h: joint(v, h))(hidden)))
        return log_z - jnp.mean(over_h(jnp.asarray(rows)))

    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    field = np.asarray(model.visible_bias) + np.asarray(hidden) @ np.asarray(model.weights).T
    precision = np.asarray(model.visible_precision)
    score = np.asarray(hidden @ model.hidden_bias) + 0.5 * (field**2 / precision).sum(axis=1)
    component = np.exp(score - logsumexp(score))
    grid = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), axis=-1).reshape(-1, 2)
    mass = np.outer(weights, weights).ravel() / weights.sum() ** 2
    chains = (field / precision)[:, None] + grid / np.sqrt(precision)
    chain_weights = (component[:, None] * mass).ravel()

    def loss(model):
        free = sum_out(model)
        data, negative = {"v": jnp.asarray(rows)}, {"v": jnp.asarray(chains.reshape(-1, 2))}
        return contrast(free, data, jnp.ones(5), negative, jnp.asarray(chain_weights))

    assert_close(
        jax.jit(jax.grad(loss))(model), jax.jit(jax.grad(exact))(model), rtol=1e-7, atol=1e-9
    )


@pytest.mark.x64
def test_contrast_with_clamped_latents_in_expectation():
    """Hidden units that interact: rows come with every h, weighted by p(h given row)."""
    model = pgm.BoltzmannMachine(weights=symmetric(11, 5), bias=normal(12, 5), num_hidden=2)
    assert not sums_out(model)
    visible, hidden = bits(3), bits(2)
    v, h = np.repeat(visible, 4, axis=0), np.tile(hidden, (8, 1))
    density = np.asarray(model.log_density({"v": v, "h": h}))
    joint = np.exp(density - logsumexp(density))
    given = joint.reshape(8, 4) / joint.reshape(8, 4).sum(axis=1, keepdims=True)
    chosen = np.array([0, 3, 3, 6])
    data = {"v": np.repeat(visible[chosen], 4, axis=0), "h": np.tile(hidden, (4, 1))}

    def loss(model):
        encoded = (
            {k: jnp.asarray(x, float) for k, x in d.items()} for d in (data, {"v": v, "h": h})
        )
        rows, chains = encoded
        return contrast(model, rows, jnp.asarray(given[chosen].ravel()), chains, jnp.asarray(joint))

    expected = exact_gradient(model, visible[chosen], visible)
    assert_close(jax.jit(jax.grad(loss))(model), expected, rtol=1e-9, atol=1e-11)


def test_one_step_of_pcd_is_one_step_of_the_exact_gradient():
    """Chains that hold every visible state of a uniform law, and a kernel that keeps them."""
    model = pgm.RBM(weights=jnp.zeros((3, 2)), hidden_bias=normal(13, 2))
    learner = pgm.PCD(optax.sgd(0.5), num_chains=8, kernel=stay, centered=False)
    rows = Rows({"v": jnp.asarray(DATA, jnp.int8)}, jnp.ones(7))
    state = learner.init(jax.random.key(0), model, rows)
    chains = {"v": jnp.asarray(bits(3), jnp.int8), "h": jnp.zeros((8, 2), jnp.int8)}
    state = state._replace(chains=chains)
    new, info = jax.jit(learner.update)(jax.random.key(1), state, rows, jnp.arange(7))
    gradient = exact_gradient(model, DATA, bits(3))
    expected = jax.tree.map(lambda x, g: x - 0.5 * g, model, gradient)
    assert_close(new.model, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(info["gradient_norm"], optax.tree.norm(gradient), rtol=1e-5)


def test_cd_starts_at_the_data_and_takes_k_sweeps():
    rows = {"v": jnp.asarray(DATA, float)}
    other = {"v": 1.0 - rows["v"]}

    def free(model, values):
        return jnp.mean(jax.vmap(lambda v: sum_out(model).energy(v=v))(values["v"]))

    gradient = jax.jit(jax.grad(lambda m: free(m, rows) - free(m, other)))(RBM)
    expected = jax.tree.map(lambda x, g: x - 0.1 * g, RBM, gradient)
    for num_sweeps in (1, 3):
        learner = pgm.CD(optax.sgd(0.1), num_sweeps=num_sweeps, kernel=flip, centered=False)
        result = run(learner, RBM, DATA, num_epochs=1)
        assert_close(result.model, expected, rtol=1e-5, atol=1e-6)
    # turned over twice, the chains are the data again: nothing is learned
    result = run(pgm.CD(optax.sgd(0.1), num_sweeps=2, kernel=flip), RBM, DATA, num_epochs=1)
    assert_close(result.model, RBM, rtol=0, atol=1e-7)
    assert result.state.chains == {}


# ---- rows, weights, batches ----------------------------------------------------------------------

INTEGER_WEIGHTS = np.array([2, 1, 2, 1, 0, 0, 1])  # as many repeated rows as rows: one program
WITH_LATENTS = pgm.PCD(optax.sgd(0.3), num_chains=16)


@pytest.mark.parametrize("num_hidden", [0, 2])
def test_integer_weights_are_repeated_rows(num_hidden):
    """The same chains, the same key, one batch: the same step (clamped latents: see below)."""
    model = pgm.BoltzmannMachine(
        weights=symmetric(14, 3 + num_hidden),
        bias=normal(15, 3 + num_hidden),
        num_hidden=num_hidden,
    )
    if num_hidden:  # latents are drawn per row: make them certain
        model = pgm.replace(model, bias=model.bias.at[3:].set(60.0))
    learner = WITH_LATENTS
    weighted = run(learner, model, DATA, num_epochs=1, row_weights=INTEGER_WEIGHTS)
    repeated = run(learner, model, np.repeat(DATA, INTEGER_WEIGHTS, axis=0), num_epochs=1)
    plain = run(learner, model, DATA, num_epochs=1)
    assert_close(weighted.model, repeated.model, rtol=1e-5, atol=1e-6)
    assert np.abs(weighted.model.bias - plain.model.bias).max() > 1e-3


@pytest.mark.parametrize("learner", [LEARNER, FROM_DATA], ids=["PCD", "CD"])
def test_weights_count_up_to_a_common_factor(learner):
    first = run(learner, RBM, DATA, batch_size=3, row_weights=INTEGER_WEIGHTS)
    second = run(learner, RBM, DATA, batch_size=3, row_weights=1e200 * INTEGER_WEIGHTS)
    assert_close(first.model, second.model, rtol=1e-4, atol=1e-5)
    none = run(learner, RBM, DATA, batch_size=3)
    ones = run(learner, RBM, DATA, batch_size=3, row_weights=np.ones(7))
    assert_close(none.model, ones.model, rtol=0, atol=0)


def test_chains_of_cd_count_as_their_rows():
    """Chains that stand still cancel the data whatever the weights, padded rows included."""
    learner = pgm.CD(optax.sgd(1.0), kernel=stay)
    for more in ({}, {"row_weights": INTEGER_WEIGHTS}, {"batch_size": 4}):
        result = run(learner, RBM, DATA, **more)
        assert_close(result.model, RBM, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "learner",
    [pgm.PCD(optax.sgd(0.5), num_chains=8, centered=False), pgm.CD(optax.sgd(0.5), centered=False)],
    ids=["PCD", "CD"],
)
@pytest.mark.parametrize("num_hidden", [0, 2])
def test_padded_rows_have_no_influence(learner, num_hidden):
    """A batch that is not full repeats row 0 with weight zero: poison row 0."""
    model = pgm.BoltzmannMachine(
        weights=symmetric(16, 3 + num_hidden),
        bias=normal(17, 3 + num_hidden),
        num_hidden=num_hidden,
    )
    index = jnp.asarray([3, 5, 7, 7])
    update, results = jax.jit(learner.update), []
    for first in (0, 1):
        values = DATA.copy()
        values[0] = first
        rows = Rows({"v": jnp.asarray(values, jnp.int8)}, jnp.ones(7))
        state = learner.init(jax.random.key(0), model, rows)
        batch = take(rows, index)
        np.testing.assert_array_equal(batch.weights, [1, 1, 0, 0])
        new, _ = update(jax.random.key(1), state, batch, index)
        if num_hidden:
            kept = np.array([0, 1, 2, 4, 6])
            np.testing.assert_array_equal(new.latents["h"][kept], state.latents["h"][kept])
        results.append(new)
    assert_close(results[0].model, results[1].model, rtol=0, atol=0)
    assert_close(results[0].latents, results[1].latents, rtol=0, atol=0)
    assert np.abs(results[0].model.bias - model.bias).max() > 1e-3


def test_a_batch_without_weight_teaches_nothing():
    """Else its chains alone would push the model away from everything."""
    rows = Rows({"v": jnp.asarray(DATA, jnp.int8)}, jnp.zeros(7))
    state = LEARNER.init(jax.random.key(0), RBM, rows)
    new, info = jax.jit(LEARNER.update)(jax.random.key(1), state, rows, jnp.arange(7))
    assert_close(new.model, RBM, rtol=0, atol=0)
    assert float(info["gradient_norm"]) == 0.0


def test_every_row_is_seen_once_per_epoch():
    """Steps on batches of any size add up to the mean over the rows (chains that stand still)."""
    zero = pgm.BoltzmannMachine(weights=jnp.zeros((3, 3)))
    learner = pgm.PCD(optax.sgd(1.0), num_chains=1, kernel=stay, centered=False)
    for batch_size in (7, 4, 1):  # whole, padded, rows one by one
        result = run(learner, zero, DATA, num_epochs=1, batch_size=batch_size)
        still = np.asarray(result.state.chains["v"], float)[0]
        expected = (DATA.mean(axis=0) - still) * 7 / batch_size
        np.testing.assert_allclose(result.model.bias, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("learner", [LEARNER, FROM_DATA], ids=["PCD", "CD"])
@pytest.mark.parametrize("constant", [[0], [0, 1, 2]], ids=["a column", "every row alike"])
def test_columns_that_never_vary_are_learned(learner, constant):
    data = DATA.copy()
    data[:, constant] = 1
    start = pgm.RBM.init(jax.random.key(0), num_visible=3, num_hidden=2, data=data)
    result = run(learner, start, data)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.model))
    assert all(np.isfinite(values).all() for values in result.metrics.values())
    assert (np.asarray(result.model.visible_bias)[constant] > 1.0).all()


def test_data_of_other_types_and_as_a_dict():
    expected = run(LEARNER, RBM, DATA).model
    for data in (DATA.astype(bool), DATA.astype(float), {"v": DATA}, jnp.asarray(DATA)):
        assert_close(run(LEARNER, RBM, data).model, expected, rtol=0, atol=0)


# ---- grey levels ---------------------------------------------------------------------------------

GREY = np.array([[0.3, 1.0, 0.0], [0.3, 0.5, 0.8]])


def test_intensities_as_means():
    zero = pgm.BoltzmannMachine(weights=jnp.zeros((3, 3)))
    learner = pgm.PCD(optax.sgd(1.0), num_chains=1, kernel=stay, centered=False)
    result = run(learner, zero, GREY, num_epochs=1, intensities="mean")
    still = np.asarray(result.state.chains["v"], float)[0]
    np.testing.assert_allclose(result.model.bias, GREY.mean(axis=0) - still, rtol=1e-5)
    second = (GREY.T @ GREY / 2 - np.outer(still, still)) / 2
    np.testing.assert_allclose(result.model.weights[0, 2], second[0, 2], rtol=1e-5)


def test_bits_are_drawn_with_the_intensities():
    rows = Rows({"v": jnp.asarray(np.tile(GREY, (3000, 1)), jnp.float32)}, jnp.ones(6000))
    drawn = draw_bits(jax.random.key(0), RBM, rows).values["v"]
    assert drawn.dtype == jnp.int8
    mean = np.asarray(drawn).reshape(3000, 2, 3).mean(axis=0)
    assert (np.abs(mean - GREY) <= 5 * np.sqrt(GREY * (1 - GREY) / 3000)).all()


@pytest.mark.parametrize("intensities", ["mean", "sample"])
def test_grey_levels_are_learned_as_probabilities(intensities):
    """Thresholded, 0.3 would be 0 and its bias would fall for ever."""
    model = pgm.BoltzmannMachine(weights=jnp.zeros((2, 2)))
    optimizer = optax.adam(optax.linear_schedule(0.1, 0.0, 150))
    learner = pgm.PCD(optimizer, num_chains=256, num_sweeps=2)
    data = np.tile([[0.3, 0.8]], (400, 1))
    result = run(learner, model, data, num_epochs=150, batch_size=400, intensities=intensities)
    probabilities = pgm.exact(result.averaged).means["v"]
    np.testing.assert_allclose(probabilities, [0.3, 0.8], atol=0.03)


def test_the_bits_of_every_epoch_are_fresh():
    seen = []
    model = pgm.BoltzmannMachine(weights=jnp.zeros((3, 3)))
    learner = pgm.PCD(optax.sgd(1.0), num_chains=1, kernel=stay, centered=False)
    run(
        learner,
        model,
        np.full((1, 3), 0.5),
        num_epochs=12,
        intensities="sample",
        callbacks=[lambda epoch, state, figures: seen.append(np.asarray(state.model.bias))],
    )
    steps = np.diff([np.zeros(3), *seen], axis=0).round(3)
    assert len(np.unique(steps, axis=0)) > 1


# ---- learning ------------------------------------------------------------------------------------


def test_zero_couplings_learn_their_maximum_likelihood():
    """Rule 5: the schedule of a machine at zero is that of its trained self."""
    truth = pgm.BoltzmannMachine(weights=symmetric(18, 5, 0.9), bias=normal(19, 5, scale=0.3))
    data = np.asarray(pgm.exact(truth).sample(jax.random.key(0), 2000)["v"])
    states, pairs = bits(5), np.triu_indices(5, 1)
    moments = np.concatenate([data.mean(0), (data[:, pairs[0]] * data[:, pairs[1]]).mean(0)])
    features = np.concatenate([states, states[:, pairs[0]] * states[:, pairs[1]]], axis=1)

    def loss(theta):
        score = features @ theta
        probabilities = np.exp(score - logsumexp(score))
        return logsumexp(score) - moments @ theta, probabilities @ features - moments

    best = minimize(loss, np.zeros(15), jac=True, method="BFGS", options={"gtol": 1e-7})
    assert np.abs(best.jac).max() < 1e-6

    def negative_log_likelihood(model):
        weights = np.asarray(model.weights, float)
        return loss(np.concatenate([np.asarray(model.bias, float), weights[pairs]]))[0]

    start = pgm.BoltzmannMachine(weights=jnp.zeros((5, 5)))
    step = pgm.blocks(start).steps[0]
    assert step.kind == "sequential"
    optimizer = optax.adam(optax.linear_schedule(0.05, 0.0, 1200))
    learner = pgm.PCD(optimizer, num_chains=512, num_sweeps=5)
    result = run(learner, start, data, num_epochs=300, batch_size=500)
    assert negative_log_likelihood(result.model) - best.fun < 0.005
    assert negative_log_likelihood(result.averaged) - best.fun < 0.005
    # independent units are far worse: what was learned are the couplings
    frequencies = np.clip(data.mean(0), 1e-6, 1 - 1e-6)
    alone = loss(np.concatenate([np.log(frequencies / (1 - frequencies)), np.zeros(10)]))[0]
    assert alone - best.fun > 0.05


def log_likelihood(model, rows):
    """Exact mean log p(row) of a binary machine, by listing every state."""
    size, visible = model.weights.shape[0], model.num_visible
    x = bits(size)
    weights, bias = np.asarray(model.weights, float), np.asarray(model.bias, float)
    score = 0.5 * np.einsum("ni,ij,nj->n", x, weights, x) + x @ bias
    place = 2 ** np.arange(visible)
    codes = x[:, :visible] @ place
    log_p = np.array([logsumexp(score[codes == c]) for c in range(2**visible)]) - logsumexp(score)
    return log_p[rows @ place].mean()


def test_clamped_latents_learn_what_no_visible_machine_can():
    """Parity of three bits: all pairs are independent, so hidden units must do the work."""
    data = bits(3)[bits(3).sum(axis=1) % 2 == 0]
    data = np.tile(data, (32, 1))
    start = pgm.BoltzmannMachine(weights=symmetric(20, 6, 0.8), bias=normal(21, 6), num_hidden=3)
    assert not sums_out(start)
    optimizer = optax.adam(optax.linear_schedule(0.1, 0.0, 2400))
    learner = pgm.PCD(optimizer, num_chains=256, num_sweeps=5)
    result = run(learner, start, data, num_epochs=200, batch_size=11)
    assert log_likelihood(start, data) < -3 * np.log(2)
    # without hidden units the best there is are three fair coins: -2.079; the truth is -1.386
    assert log_likelihood(result.model, data) > -1.7
    assert result.state.latents["h"].shape == (128, 3)
    assert "pseudo_log_likelihood" not in result.metrics


def test_cd_improves_the_exact_likelihood_of_a_machine_with_hidden_units():
    data = np.tile([[1, 1, 0], [0, 0, 1]], (20, 1))
    start = pgm.RBM.init(jax.random.key(0), num_visible=3, num_hidden=2, data=data)
    result = run(pgm.CD(optax.adam(0.05)), start, data, num_epochs=200, batch_size=40)

    def exact(model):
        law = pgm.exact(pgm.marginalize(model, "h"))
        chosen = [int(np.flatnonzero((law.states["v"] == row).all(1))[0]) for row in data]
        return np.log(law.probabilities[chosen]).mean()

    assert exact(start) == pytest.approx(-3 * np.log(2), abs=0.05)
    assert exact(result.model) > -1.0  # the best is -0.693


@pytest.mark.filterwarnings("ignore:.* without h is sampled at 'v':UserWarning")
def test_real_data_give_a_positive_precision_and_no_pseudo_likelihood():
    rng = np.random.default_rng(0)
    data = rng.normal([2.0, -1.0], [0.5, 1.5], (400, 2)).astype(np.float32)
    start = pgm.RBM.init(
        jax.random.key(0), num_visible=2, num_hidden=1, data=data, visible=pgm.Real
    )
    result = run(
        pgm.PCD(optax.adam(0.01), num_chains=64), start, data, num_epochs=5, validation=data[:50]
    )
    assert (np.asarray(result.model.visible_precision) > 0).all()
    assert {"free_energy_gap", "reconstruction_error", "gradient_norm"} < result.metrics.keys()
    assert "pseudo_log_likelihood" not in result.metrics
    assert "likelihood" not in result.message


def test_a_projection_follows_every_step():
    models = []
    start = pgm.BoltzmannMachine.init(jax.random.key(1), num_visible=3, num_hidden=2)
    result = run(
        WITH_LATENTS,
        start,
        DATA,
        num_epochs=6,
        callbacks=[lambda epoch, state, figures: models.append(state.model)],
    )
    for model in (*models, result.model, result.averaged):
        weights = np.asarray(model.weights)
        np.testing.assert_array_equal(weights, weights.T)
        assert (np.diagonal(weights) == 0).all()
    assert np.abs(models[-1].weights - models[0].weights).max() > 0.05


# ---- metrics and words ---------------------------------------------------------------------------


def free_energy(model, rows):
    w, b, c = (np.asarray(x, float) for x in (model.weights, model.visible_bias, model.hidden_bias))
    return -rows @ b - np.logaddexp(0, rows @ w + c).sum(axis=1)


def test_metrics_of_an_rbm_against_numpy():
    held_out, seen = DATA[:3], []
    learner = pgm.PCD(optax.sgd(0.25), num_chains=16, centered=False)
    result = run(
        learner,
        RBM,
        DATA,
        num_epochs=4,
        validation=held_out,
        callbacks=[lambda epoch, state, figures: seen.append((epoch, state, dict(figures)))],
    )
    before = RBM
    for epoch, state, figures in seen:
        model = state.model
        for name, value in figures.items():
            assert result.metrics[name][epoch] == value
        gap = free_energy(model, held_out).mean() - free_energy(model, DATA).mean()
        assert figures["free_energy_gap"] == pytest.approx(gap, abs=1e-5)
        chains = free_energy(model, np.asarray(state.chains["v"], float)).mean()
        assert figures["chain_free_energy"] == pytest.approx(chains, abs=1e-5)
        pseudo = 0.0
        for i in range(3):
            other = held_out.copy()
            other[:, i] = 1 - other[:, i]
            difference = free_energy(model, other) - free_energy(model, held_out)
            pseudo -= np.logaddexp(0, -difference).mean()
        assert figures["pseudo_log_likelihood"] == pytest.approx(pseudo, abs=1e-5)
        moved = jax.tree.map(lambda a, b: (a - b) / 0.25, model, before)
        assert figures["gradient_norm"] == pytest.approx(float(optax.tree.norm(moved)), rel=1e-4)
        assert 0 < figures["reconstruction_error"] < 1
        before = model
    assert [epoch for epoch, _, _ in seen] == [0, 1, 2, 3]


def test_reconstruction_error_against_numpy():
    """Without hidden units nothing is random: every unit is predicted from the others."""
    model = pgm.BoltzmannMachine(weights=symmetric(22, 3), bias=normal(23, 3))
    result = run(pgm.PCD(optax.sgd(0.1), num_chains=8), model, DATA, num_epochs=1)
    weights, bias = np.asarray(result.model.weights), np.asarray(result.model.bias)
    error = ((expit(DATA @ weights + bias) - DATA) ** 2).mean()
    assert result.metrics["reconstruction_error"][0] == pytest.approx(error, abs=1e-6)
    pseudo = np.log(expit((2 * DATA - 1) * (DATA @ weights + bias))).sum(axis=1).mean()
    assert result.metrics["pseudo_log_likelihood"][0] == pytest.approx(pseudo, abs=1e-5)


def test_words():
    rising = np.linspace(-5.0, -3.0, 16)
    flat = -3.0 + 0.01 * (-1.0) ** np.arange(16)
    assert explain({}) == "No epoch was completed."
    assert explain({"gradient_norm": np.ones(1)}) == "1 epoch."
    assert "-5.000 to -3.000 nats per row, still rising" in explain(
        {"pseudo_log_likelihood": rising}
    )
    assert "falling: lower the learning rate" in explain({"pseudo_log_likelihood": rising[::-1]})
    assert "no longer changing: converged" in explain({"pseudo_log_likelihood": flat})
    gap = {"pseudo_log_likelihood": flat, "free_energy_gap": np.linspace(0, 4, 16)}
    assert "begins to overfit" in explain(gap)
    assert "overfit" not in explain({**gap, "free_energy_gap": np.zeros(16)})


# ---- the loop ------------------------------------------------------------------------------------


def test_the_average_is_over_the_second_half():
    models = []
    result = run(
        LEARNER,
        RBM,
        DATA,
        num_epochs=6,
        callbacks=[lambda epoch, state, figures: models.append(state.model)],
    )
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *models[3:])
    assert_close(result.averaged, mean, rtol=1e-5, atol=1e-6)
    assert_close(result.model, models[-1], rtol=0, atol=0)


@pytest.mark.parametrize("stop", [True, np.True_], ids=["bool", "numpy"])
def test_a_callback_stops_the_run(stop):
    result = run(
        LEARNER,
        RBM,
        DATA,
        num_epochs=9,
        callbacks=[lambda epoch, state, figures: epoch == 1 and stop],
    )
    assert len(result.metrics["gradient_norm"]) == 2
    assert result.message.endswith("Stopped by a callback after epoch 2.")
    assert_close(result.model, run(LEARNER, RBM, DATA, num_epochs=2).model, rtol=0, atol=0)


def test_callbacks_all_run_and_only_true_stops():
    called = []
    answers = iter([None, False, "yes"])
    result = run(
        LEARNER,
        RBM,
        DATA,
        num_epochs=3,
        callbacks=[lambda *_: next(answers), lambda *_: called.append(1)],
    )
    assert len(result.metrics["gradient_norm"]) == 3
    assert len(called) == 3


def test_an_interrupt_keeps_what_was_learned():
    def interrupt(epoch, state, figures):
        if epoch == 2:
            raise KeyboardInterrupt

    result = run(LEARNER, RBM, DATA, num_epochs=9, callbacks=[interrupt])
    assert "Interrupted; the result is that of the 3 epochs before" in result.message
    assert len(result.metrics["gradient_norm"]) == 3
    assert_close(result.model, run(LEARNER, RBM, DATA, num_epochs=3).model, rtol=0, atol=0)


def test_an_epoch_that_goes_wrong_is_undone():
    optimizer = optax.sgd(lambda step: jnp.where(step < 2, 0.1, jnp.nan))
    with pytest.warns(RuntimeWarning, match="in epoch 3, batch 1 of 1, a step that was undone"):
        result = run(pgm.PCD(optimizer, num_chains=8), RBM, DATA, num_epochs=5)
    assert "look at its learning rate or schedule" in result.message
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.model))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.averaged))
    assert_close(result.model, run(LEARNER, RBM, DATA, num_epochs=2).model, rtol=1e-6)
    assert len(result.metrics["gradient_norm"]) == 2


def test_no_epoch_at_all():
    with pytest.warns(RuntimeWarning, match="no longer finite in epoch 1"):
        result = run(pgm.PCD(optax.sgd(jnp.nan), num_chains=8), RBM, DATA)
    assert result.message.startswith("No epoch was completed. Stopped")
    assert_close(result.model, RBM, rtol=0, atol=0)
    assert_close(result.averaged, RBM, rtol=0, atol=0)
    assert result.metrics == {}


@pytest.mark.parametrize("learner", [LEARNER, FROM_DATA], ids=["PCD", "CD"])
def test_the_same_key_gives_the_same_model(learner):
    first, second, other = (run(learner, RBM, DATA, seed, batch_size=3) for seed in (1, 1, 2))
    assert_close(first.model, second.model, rtol=0, atol=0)
    assert first.metrics.keys() == second.metrics.keys()
    assert_close(first.metrics, second.metrics, rtol=0, atol=0)
    assert np.abs(first.model.weights - other.model.weights).max() > 1e-4
    legacy = learner.run(
        jax.random.PRNGKey(1), RBM, DATA, num_epochs=3, batch_size=3, progress_bar=False
    )
    assert_close(first.model, legacy.model, rtol=0, atol=0)


@pgm.struct
class Counted(pgm.EnergyModel):
    """An RBM that counts how often its energy is traced."""

    weights: jax.Array
    data_sites = ("v",)
    traces = [0]  # noqa: RUF012 (shared on purpose, and no field)

    @property
    def sites(self):
        d, h = self.weights.shape
        return {"v": pgm.Binary(d), "h": pgm.Binary(h)}

    def energy(self, v, h):
        self.traces[0] += 1
        return -v @ self.weights @ h


def test_new_parameters_do_not_compile_again():
    counts = []
    callback = [lambda *_: counts.append(Counted.traces[0])]
    run(LEARNER, Counted(weights=normal(24, 3, 2)), DATA, num_epochs=4, callbacks=callback)
    assert len(set(counts)) == 1, "an epoch was compiled twice"
    before = Counted.traces[0]
    run(LEARNER, Counted(weights=normal(25, 3, 2)), 1 - DATA, num_epochs=2, seed=1)
    # the start is looked at eagerly (is there a warning to give?), nothing is compiled
    assert Counted.traces[0] - before <= 2


def test_progress_is_shown(capsys):
    run(LEARNER, RBM, DATA, progress_bar=True)
    out = capsys.readouterr().out
    assert "3/3" in out
    assert "log PL" in out
    run(LEARNER, RBM, DATA)
    assert capsys.readouterr().out == ""


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(
    "bad",
    [0.01, "adam", {}, None, optax.adam],
    ids=["number", "name", "dict", "none", "factory"],
)
@pytest.mark.parametrize("learner", [pgm.PCD, pgm.CD])
def test_an_optimizer_is_needed(learner, bad):
    with pytest.raises(
        TypeError, match=r"must be an optax optimizer, for example optax.adam\(1e-3\)"
    ):
        learner(bad)


@pytest.mark.usefixtures("annotations_unchecked")
def test_arguments_of_the_learners():
    with pytest.raises(ValueError, match="num_chains must be an integer of at least 1, got 0"):
        pgm.PCD(optax.sgd(0.1), num_chains=0)
    with pytest.raises(ValueError, match="num_sweeps must be an integer of at least 1, got 0"):
        pgm.PCD(optax.sgd(0.1), num_sweeps=0)
    with pytest.raises(ValueError, match="num_sweeps must be an integer of at least 1, got -1"):
        pgm.CD(optax.sgd(0.1), num_sweeps=-1)
    with pytest.raises(TypeError, match="kernel must be a function or None, got 'gibbs'"):
        pgm.PCD(optax.sgd(0.1), kernel="gibbs")
    with pytest.raises(TypeError, match="num_chains"):  # one chain per row: there is no such choice
        pgm.CD(optax.sgd(0.1), num_chains=4)
    assert pgm.CD(optax.sgd(0.1), 25).num_sweeps == 25


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(
    "data, more, message",
    [
        ([[0, 1, np.nan]], {}, "got NaN at row 0, column 2"),
        ([[0, 1, 2]], {}, "takes 0 and 1, got 2 at row 0, column 2"),
        ([[0, 1, 1], [0.2, 0, 1]], {}, r"got 0\.2 at row 1, column 0; for grey levels learn with"),
        ([[0, 1.2, 1]], {"intensities": "mean"}, r"got 1\.2 at row 0, column 1"),
        ([[0, 1, 1]], {"intensities": "bits"}, "must be None, 'mean' or 'sample', got 'bits'"),
        (np.zeros((0, 3)), {}, "data is empty: at least one row is needed"),
        (np.zeros((2, 4)), {}, r"data for site 'v' must have shape \(rows, 3\), got \(2, 4\)"),
        (DATA, {"row_weights": np.ones(6)}, r"row_weights must have shape \(7,\), got \(6,\)"),
        (DATA, {"row_weights": np.arange(7) - 2.0}, r"not negative, got -2\.0 at row 0"),
        (DATA, {"row_weights": [1, 1, np.nan, 1, 1, 1, 1]}, "finite .* got nan at row 2"),
        (DATA, {"row_weights": np.zeros(7)}, "all zero: no row is left to learn from"),
        (DATA, {"num_epochs": 0}, "num_epochs must be an integer of at least 1, got 0"),
        (DATA, {"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        (
            DATA,
            {"validation": np.zeros((2, 4))},
            r"validation for site 'v' must have shape \(rows, 3\), got \(2, 4\)",
        ),
        (DATA, {"validation": [[0, np.nan, 1]]}, "got NaN at row 0, column 1"),
    ],
)
def test_what_a_run_refuses(data, more, message):
    with pytest.raises(ValueError, match=message):
        run(LEARNER, RBM, np.asarray(data), **more)


@pytest.mark.usefixtures("annotations_unchecked")
def test_what_is_no_key_or_no_model():
    with pytest.raises(TypeError, match="rng_key must be one JAX random key"):
        LEARNER.run(0, RBM, DATA, progress_bar=False)
    with pytest.raises(TypeError, match="takes an energy model to start from, got ndarray"):
        LEARNER.run(jax.random.key(0), DATA, DATA)


# ---- real data -----------------------------------------------------------------------------------


def test_nltcs_reaches_its_maximum_likelihood(shared_data):
    """A fully visible machine of 16 units; -6.02841 is its exact maximum likelihood on test."""

    def read(name):
        with gzip.open(shared_data / "nltcs" / f"{name}.csv.gz", "rt") as file:
            return np.loadtxt(file, delimiter=",", dtype=np.int8)

    train, test = read("train"), read("test")
    epochs, batch = 50, 256
    steps = epochs * -(-len(train) // batch)
    learner = pgm.PCD(
        optax.adam(optax.linear_schedule(0.01, 0.0, steps)), num_chains=1024, num_sweeps=5
    )
    start = pgm.BoltzmannMachine.init(jax.random.key(0), num_visible=16, data=train)
    result = run(learner, start, train, seed=1, num_epochs=epochs, batch_size=batch)
    weights, bias = (np.asarray(x, float) for x in (result.model.weights, result.model.bias))
    np.testing.assert_array_equal(weights, weights.T)
    assert (np.diagonal(weights) == 0).all()

    def score(x):
        return 0.5 * np.einsum("ni,ij,nj->n", x, weights, x, optimize=True) + x @ bias

    log_z = logsumexp(score(bits(16)))
    assert (score(test) - log_z).mean() == pytest.approx(-6.0284, abs=0.01)
    assert log_z == pytest.approx(1.940137, abs=0.05)
