"""The data side: clamped chains, mean field and missing values against exact conditionals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import ALPHA
from scipy import stats
from scipy.optimize import minimize
from scipy.special import entr, logsumexp, softmax

import pgm_energy as pgm
from pgm_energy.learning.contrast import mean_energy
from pgm_energy.learning.loop import check_rows
from pgm_energy.learning.positive import mean_field, positive_phase


def bits(size):
    return (np.arange(2**size)[:, None] >> np.arange(size)) & 1


def symmetric(seed, size, scale=1.0):
    upper = np.triu(np.random.default_rng(seed).normal(0, scale, (size, size)), 1)
    return jnp.asarray(upper + upper.T, jnp.result_type(float))


def machine(seed=0, num_hidden=2):
    size = 3 + num_hidden
    bias = np.random.default_rng(seed + 1).normal(0, 0.7, size)
    return pgm.BoltzmannMachine(
        weights=symmetric(seed, size), bias=jnp.asarray(bias), num_hidden=num_hidden
    )


def rbm():
    rng = np.random.default_rng(5)
    return pgm.RBM(weights=rng.normal(0, 1.5, (3, 2)), visible_bias=rng.normal(0, 0.7, 3))


def flat(tree, rows=1):
    leaves = [np.asarray(leaf, float).reshape(rows, -1) for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves, axis=1)


def exact_slope(model, row):
    """Mean and variance of dE/dtheta given what is known of a row, and -log of its weight."""
    sizes = [site.size for site in model.sites.values()]
    states = bits(sum(sizes))
    known = ~np.isnan(row)
    states = states[(states[:, : len(row)][:, known] == row[known]).all(axis=1)]
    names = list(model.sites)
    parts = dict(zip(names, np.split(states.astype(float), np.cumsum(sizes)[:-1], 1), strict=True))
    each = jax.jit(jax.vmap(jax.value_and_grad(lambda m, x: m.energy(**x)), (None, 0)))
    energy, slope = each(model, {name: jnp.asarray(x) for name, x in parts.items()})
    weight, slope = softmax(-np.asarray(energy, float)), flat(slope, len(states))
    mean = weight @ slope
    return mean, weight @ (slope - mean) ** 2, -logsumexp(-np.asarray(energy, float))


CASES = {
    "latents": (machine, np.array([1.0, 0.0, 1.0])),
    "gaps and latents": (machine, np.array([1.0, np.nan, np.nan])),
    "gaps of an rbm": (rbm, np.array([np.nan, 0.0, np.nan])),
    "gaps without latents": (lambda: machine(3, 0), np.array([np.nan, np.nan, 0.0])),
    "nothing known": (rbm, np.full(3, np.nan)),
}


@pytest.mark.parametrize("name", CASES)
def test_clamped_chains_give_the_gradient_of_what_is_known(name):
    """The exact d(-log sum over what is not known)/dtheta, by many rows that are alike."""
    make, row = CASES[name]
    model, num = make(), 4000
    rows = check_rows(model, np.tile(row, (num, 1)), None, None, missing=True)
    drawn = (*(rows.known or ()), *model.latent_sites)
    zeros = {site: jnp.zeros((num, model.sites[site].size), jnp.int8) for site in drawn}

    @functools.partial(jax.jit, static_argnums=0)
    def slope(num_sweeps, model, rows, start):
        _, encoded, _ = positive_phase(
            jax.random.key(1),
            model,
            rows,
            start,
            num_sweeps=num_sweeps,
            by_means=False,
            draws_all=False,
        )
        is_summed = "h" in model.sites and "h" not in encoded
        free = functools.partial(pgm.marginalize, site="h") if is_summed else lambda m: m
        return jax.grad(lambda m: mean_energy(free(m), encoded))(model)

    def gradient(num_sweeps):
        return flat(slope(num_sweeps, model, rows, zeros))[0]

    mean, variance, _ = exact_slope(model, row)

    def p_value(gradient):
        z = np.abs(gradient - mean) / np.maximum(np.sqrt(variance / num), 1e-4)
        return min(1.0, z.size * 2 * stats.norm.sf(z.max()))

    assert p_value(gradient(30)) > ALPHA
    if name == "gaps and latents":  # one sweep from zeros is not enough: the test can tell
        assert p_value(gradient(1)) < ALPHA


@pytest.mark.x64
def test_mean_field_is_the_gradient_of_its_bound():
    """min over m of E(v, m) - H(m), by another minimiser; never below the free energy."""
    model, row = machine(), np.array([1.0, 0.0, 1.0])

    def bound(model, row):
        def at(m):
            energy = float(model.energy(v=jnp.asarray(row), h=jnp.asarray(m)))
            return energy - (entr(m) + entr(1 - m)).sum()

        found = minimize(at, np.full(2, 0.5), bounds=[(1e-9, 1 - 1e-9)] * 2, tol=1e-14)
        return found.fun, found.x

    data = {"v": jnp.asarray(row)[None]}
    means, residual = jax.jit(mean_field)(model, data)
    value, best = bound(model, row)
    np.testing.assert_allclose(means["h"][0], best, atol=1e-5)
    assert float(residual) < 1e-6
    free = exact_slope(model, row)[2]
    assert value > free
    gradient = jax.jit(jax.grad(lambda m: mean_energy(m, {**data, **means})))(model)
    step = 1e-4
    for i, j in ((0, 3), (3, 4), (1, 2)):
        values = []
        for sign in (1.0, -1.0):
            weights = model.weights.at[i, j].add(sign * step).at[j, i].add(sign * step)
            values.append(bound(pgm.replace(model, weights=weights), row)[0])
        slope = (values[0] - values[1]) / (2 * step)
        own = gradient.weights[i, j] + gradient.weights[j, i]
        np.testing.assert_allclose(own, slope, atol=1e-5)


def exact_log_likelihood(model, rows):
    """Mean log p of what is known of each row of a binary machine, by listing every state."""
    states = bits(model.weights.shape[0]).astype(float)
    weights, bias = np.asarray(model.weights, float), np.asarray(model.bias, float)
    score = 0.5 * np.einsum("ni,ij,nj->n", states, weights, states) + states @ bias
    visible = states[:, : rows.shape[1]]
    fits = (np.isnan(rows)[:, None] | (rows[:, None] == visible)).all(axis=2)
    return logsumexp(np.where(fits, score, -np.inf), axis=1).mean() - logsumexp(score)


def test_missing_values_are_learned_around():
    """Half of the bits are gone at random; filled with zeros they would teach another law."""
    truth = machine(7, 0)
    rng = np.random.default_rng(0)
    whole = np.asarray(pgm.exact(truth).sample(jax.random.key(0), 1500)["v"], float)
    rows = np.where(rng.random(whole.shape) < 0.5, np.nan, whole)
    start = pgm.BoltzmannMachine(weights=jnp.zeros((3, 3)))
    optimizer = optax.adam(optax.linear_schedule(0.1, 0.0, 150))
    learner = pgm.PCD(optimizer, num_chains=512, num_sweeps=3)
    more = {"num_epochs": 150, "batch_size": 1500, "progress_bar": False}
    result = learner.run(jax.random.key(1), start, rows, missing=True, **more)
    reached = exact_log_likelihood(result.averaged, rows)
    assert reached > exact_log_likelihood(truth, rows) - 0.003  # the maximum lies above the truth
    frequencies = np.nan_to_num(rows).mean(axis=0)  # of zeros in the gaps: another law altogether
    alone = pgm.BoltzmannMachine(
        weights=jnp.zeros((3, 3)), bias=jnp.asarray(np.log(frequencies / (1 - frequencies)))
    )
    assert exact_log_likelihood(alone, rows) < reached - 0.05
    assert result.state.latents["v"].shape == rows.shape
    kept = ~np.isnan(rows)
    np.testing.assert_array_equal(np.asarray(result.state.latents["v"])[kept], whole[kept])
    np.testing.assert_allclose(result.state.offsets["v"], np.nanmean(rows, axis=0), rtol=1e-5)


def test_mean_field_learns_hidden_units_that_interact():
    """Parity has no pairwise trace: what is learned is learned through the hidden units."""
    data = np.tile(bits(3)[bits(3).sum(axis=1) % 2 == 0], (16, 1))
    start = pgm.BoltzmannMachine(weights=symmetric(20, 6, 1.5), num_hidden=3)
    optimizer = optax.adam(optax.linear_schedule(0.05, 0.0, 600))
    learner = pgm.PCD(optimizer, num_chains=256, num_sweeps=3, positive="mean_field")
    result = learner.run(
        jax.random.key(0), start, data, num_epochs=600, batch_size=64, progress_bar=False
    )
    assert exact_log_likelihood(result.averaged, data.astype(float)) > -1.9  # three coins: -2.079
    assert result.state.latents == {}
    assert (result.metrics["mean_field_residual"] < 0.2).all()


@pytest.mark.usefixtures("annotations_unchecked")
def test_what_is_refused():
    rows = np.array([[0, 1, np.nan], [1, 0, 1]])
    learner = pgm.PCD(optax.sgd(0.1), num_chains=4)
    more = {"num_epochs": 1, "progress_bar": False}

    def run(learner, model, rows, **also):
        return learner.run(jax.random.key(0), model, rows, **more, **also)

    with pytest.raises(ValueError, match="got NaN at row 0, column 2"):
        run(learner, rbm(), rows)
    with pytest.raises(ValueError, match=r"takes 0 and 1, got 2\.0 at row 1, column 0"):
        run(learner, rbm(), np.array([[0, 1, np.nan], [2, 0, 1]]), missing=True)
    field = pgm.PCD(optax.sgd(0.1), num_chains=4, positive="mean_field")
    with pytest.raises(ValueError, match="missing=True draws what is missing: it needs positive="):
        run(field, machine(), rows, missing=True)
    with pytest.raises(ValueError, match="PseudoLikelihood needs whole rows: learn with PCD or CD"):
        run(pgm.PseudoLikelihood(optax.sgd(0.1)), rbm(), rows, missing=True)
    grey = np.array([[0.5, np.nan, 1.0]])
    with pytest.raises(ValueError, match="missing values are drawn given bits"):
        run(learner, rbm(), grey, missing=True, intensities="mean")
    # nothing is missing: as without
    assert check_rows(rbm(), rows[1:], None, None, missing=True).known is None
