"""Stochastic EM: its gradient against the exact one, its end against EM and maximum likelihood."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import all_states, energies

import pgm_energy as pgm
from pgm_energy.learning.stochastic_em import complete_loss


def rbm():
    rng = np.random.default_rng(0)
    return pgm.RBM(
        weights=rng.normal(size=(3, 2)), visible_bias=rng.normal(size=3), hidden_bias=[0.3, -0.2]
    )


def mixture():
    probs = [[0.8, 0.3, 0.6], [0.2, 0.7, 0.4]]
    return pgm.BernoulliMixture(weights=[0.4, 0.6], probs=probs)


def table(num=40, seed=1):
    rng = np.random.default_rng(seed)
    label = rng.integers(2, size=(num, 1))
    return (rng.random((num, 3)) < np.where(label, 0.85, 0.2)).astype(np.int8)


@pytest.mark.x64
@pytest.mark.parametrize("make", [rbm, mixture])
def test_with_exact_draws_the_gradient_is_that_of_the_likelihood(make):
    """Latent sites weighted by their law given the row, chains by the law of the model."""
    model, rows = jax.tree.map(lambda x: x.astype(float), make()), table()
    states = all_states(model)
    law = np.exp(-energies(model, states))
    law /= law.sum()
    # every row with every latent state of positive probability
    match = (states["v"][None] == rows[:, None]).all(axis=-1) * law
    match /= match.sum(axis=1, keepdims=True)
    row, state = np.nonzero(match)
    encoded = {k: jax.vmap(s.encode)(jnp.asarray(states[k])) for k, s in model.sites.items()}
    data = {k: v[state] for k, v in encoded.items()}
    weights = jnp.asarray(match[row, state])
    slope = jax.jit(jax.grad(complete_loss))
    found = slope(model, data, weights, encoded, jnp.asarray(law))

    @jax.jit
    @jax.grad
    def exact(model):
        energy = jax.vmap(lambda row: model.energy(**row))(encoded)
        joint = jnp.where((states["v"][None] == rows[:, None]).all(-1), -energy, -jnp.inf)
        log_probs = jax.nn.logsumexp(joint, axis=1) - jax.nn.logsumexp(-energy)
        return -jnp.mean(log_probs)

    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(exact(model)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
        assert np.abs(theirs).max() > 1e-3
    # without the samples of the model an RBM's gradient is another one
    if make is rbm:
        alone = slope(model, data, weights, data, weights)
        assert np.abs(np.asarray(alone.weights - found.weights)).max() > 1e-2


def run(learner, model, rows, **settings):
    key = jax.random.key(0)
    return learner.run(key, model, rows, progress_bar=False, **settings)


def test_a_mixture_ends_where_em_does():
    """The average over a run is EM's answer, within what drawing components leaves."""
    rows = np.random.default_rng(0).normal(size=(600, 1)) + [[-2.5], [2.5]] * 300
    start = pgm.GaussianMixture.init(jax.random.key(0), num_components=2, data=rows)
    best = pgm.EM(tol=1e-8).run(jax.random.key(0), start, rows, progress_bar=False)
    result = run(pgm.StochasticEM(), start, rows, num_epochs=120, batch_size=600)
    reached = float(pgm.log_likelihood(result.averaged, rows).sum())
    assert best.log_likelihood - 0.1 < reached <= best.log_likelihood + 1e-2
    np.testing.assert_allclose(result.averaged.means, best.model.means, atol=0.02)
    # the last parameters are one draw's, and fluctuate
    assert float(jnp.abs(result.model.means - best.model.means).max()) > 1e-5
    assert result.metrics["change"].shape == (120,)


def test_an_rbm_reaches_maximum_likelihood():
    rows = table(200)
    start = pgm.RBM.init(jax.random.key(2), num_visible=3, num_hidden=2, data=rows)
    exact = run(
        pgm.MaximumLikelihood(optax.adam(0.05)), start, rows, num_epochs=300, batch_size=200
    )
    best = float(pgm.log_likelihood(exact.model, rows).mean())
    before = float(pgm.log_likelihood(start, rows).mean())
    steps = optax.adam(optax.linear_schedule(0.05, 0.0, 500))
    learner = pgm.StochasticEM(steps, num_chains=512, num_sweeps=3)
    result = run(learner, start, rows, num_epochs=500, batch_size=200)
    reached = float(pgm.log_likelihood(result.model, rows).mean())
    assert best > before + 0.03
    assert best - 0.01 < reached <= best + 1e-4


def test_any_kernel_draws_the_latent_sites():
    """A kernel of one's own on the model conditioned on a row; and a closed M-step."""
    rows = table(60)
    start = mixture()

    def kernel(rng_key, latents, model):
        """An independent draw from the conditional law, by enumeration."""
        assert set(model.sites) == {"z"}
        logits = jax.vmap(lambda k: model.log_density({"z": k}))(jnp.arange(2))
        return {"z": jax.random.categorical(rng_key, logits)}, None

    def maximize(model, values, weights):
        share = jax.nn.one_hot(values["z"], 2) * weights[:, None]
        probs = (share.T @ values["v"] + 1.0) / (share.sum(axis=0)[:, None] + 2.0)
        return pgm.replace(model, weights=share.mean(axis=0) / weights.mean(), probs=probs)

    learner = pgm.StochasticEM(maximize=maximize, kernel=kernel)
    result = run(learner, start, rows, num_epochs=60, batch_size=60)
    prior = pgm.MixturePrior(prob_rows=2.0)
    em = pgm.EM(tol=1e-8, prior=prior)
    best = em.run(jax.random.key(0), start, rows, progress_bar=False)
    reached = float(pgm.log_likelihood(result.averaged, rows).sum())
    assert reached > best.log_likelihood - 2.0
    assert reached > float(pgm.log_likelihood(start, rows).sum())


@pytest.mark.usefixtures("annotations_unchecked")
def test_misuse_is_refused():
    rows = table()
    with pytest.raises(ValueError, match="RBM has no closed M-step that is known here"):
        run(pgm.StochasticEM(), rbm(), rows)
    with pytest.raises(ValueError, match="not both"):
        pgm.StochasticEM(optax.sgd(0.1), maximize=lambda m, v, w: m)
    with pytest.raises(TypeError, match="kernel must be a function or None, got 3"):
        pgm.StochasticEM(kernel=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="optimizer must be an optax optimizer"):
        pgm.StochasticEM(0.1)  # type: ignore[arg-type]
    machine = pgm.BoltzmannMachine(weights=np.zeros((3, 3)), bias=np.zeros(3))
    with pytest.raises(ValueError, match="no latent sites to draw"):
        run(pgm.StochasticEM(optax.sgd(0.1)), machine, rows)
