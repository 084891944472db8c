"""Objectives that need no sampling: each against its definition, and at the truth at rest."""

import gzip
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import zoo

import pgm_energy as pgm
from pgm_energy.learning.centering import tangent
from pgm_energy.learning.loop import Rows


def machine(num, **settings):
    return jax.tree.map(lambda x: jnp.asarray(x, float), zoo.machine(num, **settings))


def mixture(seed=3):
    rng = np.random.default_rng(seed)
    return pgm.BernoulliMixture(weights=[0.3, 0.7], probs=rng.uniform(0.2, 0.8, (2, 3)))


def potts(seed=4):
    rng = np.random.default_rng(seed)
    table = rng.normal(scale=0.4, size=(3, 3, 3, 3))
    table = 0.5 * (table + table.transpose(1, 0, 3, 2))
    table[np.arange(3), np.arange(3)] = 0.0
    return pgm.PottsMachine(couplings=table, fields=rng.normal(scale=0.4, size=(3, 3)))


#: Every way to the unit logits: one product, shifted natural parameters, free energies, states.
MODELS = {
    "machine": lambda: machine(4),
    "potts": potts,
    "spin rbm": lambda: zoo.rbm("spin", "spin"),
    "categorical rbm": lambda: zoo.rbm("categorical", "binary", sizes=(2, 2)),
    "mixture": mixture,
    "hidden units that interact": lambda: machine(5, num_hidden=2),
}
TWO_STATES = [name for name in MODELS if name not in ("potts", "categorical rbm")]


def data_law(model):
    """Every state of the data site and its exact probability, in NumPy."""
    values, probabilities, _ = oracles.law(model)
    flat = values["v"].reshape(len(probabilities), -1)
    states, number = np.unique(flat, axis=0, return_inverse=True)
    site = model.sites["v"]
    rows = states.reshape(-1, *site.shape)
    return {"v": rows}, np.bincount(number.reshape(-1), probabilities)


def unit_laws(model):
    """Of every state and unit: p(v_i = k given the rest), by looking up the neighbours' p."""
    rows, probabilities = data_law(model)
    flat = rows["v"].reshape(len(probabilities), -1)
    table = {tuple(row): p for row, p in zip(flat.tolist(), probabilities, strict=True)}
    states = oracles.unit_states(model.sites["v"]).tolist()
    found = np.zeros((len(flat), flat.shape[1], len(states)))
    for row, i in itertools.product(range(len(flat)), range(flat.shape[1])):
        near = [table[(*flat[row, :i].tolist(), k, *flat[row, i + 1 :].tolist())] for k in states]
        found[row, i] = np.array(near) / np.sum(near)
    here = (flat[:, :, None] == np.array(states)) @ np.arange(len(states))
    own = np.take_along_axis(found, here[:, :, None], axis=2)[:, :, 0]
    return rows, probabilities, own


def as_jax(rows):
    return {name: jnp.asarray(value) for name, value in rows.items()}


# ---- definitions -----------------------------------------------------------------------------


@pytest.mark.x64
@pytest.mark.parametrize("name", MODELS)
def test_objectives_equal_their_definitions_and_rest_at_the_truth(name):
    model = MODELS[name]()
    rows, probabilities, own = unit_laws(model)
    values = as_jax(rows)
    expected = {
        pgm.PseudoLikelihood: -np.log(own).sum(axis=1),
        pgm.MaximumLikelihood: -np.log(probabilities),
    }
    if name in TWO_STATES:  # g(p(v) / p(v with unit i flipped))^2, g(u) = 1 / (1 + u)
        ratio = own / (1.0 - own)
        expected[pgm.RatioMatching] = ((1.0 / (1.0 + ratio)) ** 2).sum(axis=1)
    uneven = np.roll(probabilities, 1)

    @jax.jit
    def all_of(model, weights):
        losses = [kind(optax.sgd(0.1)).losses(model, values) for kind in expected]
        return jnp.stack([weights @ loss for loss in losses]), losses

    losses = all_of(model, probabilities)[1]
    for loss, right in zip(losses, expected.values(), strict=True):
        np.testing.assert_allclose(loss, right, rtol=1e-9, atol=1e-10)
    slopes = jax.jit(jax.jacrev(lambda m, w: all_of(m, w)[0]))

    # all states weighted by their probabilities: the true parameters are a stationary point
    def norms(weights):
        tables = slopes(model, weights)
        parts = [jax.tree.map(lambda x, n=n: x[n], tables) for n in range(len(expected))]
        return np.array([optax.tree.norm(tangent(model, part)) for part in parts])

    assert norms(probabilities).max() < 1e-10
    assert norms(uneven).min() > 1e-3  # and the test can tell


@pytest.mark.x64
@pytest.mark.parametrize("name", ["machine", "spin rbm"])
def test_likelihood_gradient_is_that_of_the_listed_states(name):
    model = MODELS[name]()
    values, _, _ = oracles.law(model)
    encoded = {k: jnp.asarray(oracles.encode(s, values[k])) for k, s in model.sites.items()}
    rows, _ = data_law(model)
    some = {"v": rows["v"][[0, 2, 3, 3]]}
    flat = values["v"].reshape(len(values["v"]), -1)
    belongs = jnp.asarray([(flat == row.reshape(-1)).all(axis=1) for row in some["v"]])

    def direct(model):
        energies = jax.vmap(lambda e: model.energy(**e))(encoded)
        kept = jnp.where(belongs, -energies, -jnp.inf)
        return jax.nn.logsumexp(-energies) - jnp.mean(jax.nn.logsumexp(kept, axis=1))

    learner = pgm.MaximumLikelihood(optax.sgd(1.0))
    found = jax.jit(jax.grad(lambda m: jnp.mean(learner.losses(m, as_jax(some)))))(model)
    for a, b in zip(
        jax.tree.leaves(tangent(model, found)),
        jax.tree.leaves(tangent(model, jax.jit(jax.grad(direct))(model))),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def test_gradients_of_a_symmetric_matrix_are_symmetric():
    """Else an optimiser with a step size per entry comes to rest where both halves cancel."""
    model = zoo.machine(4)
    rows = {"v": jnp.asarray([[0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 1]])}
    learner = pgm.PseudoLikelihood(optax.sgd(1.0))
    plain = jax.grad(lambda m: jnp.mean(learner.losses(m, rows)))(model)
    assert np.abs(plain.weights - plain.weights.T).max() > 1e-3  # what is differentiated is not

    def keep(gradient, state, params=None):
        return jax.tree.map(jnp.zeros_like, gradient), gradient

    spy = optax.GradientTransformation(lambda params: params, keep)
    learner = pgm.PseudoLikelihood(spy)
    batch = Rows(rows, jnp.ones(4))
    state = learner.init(jax.random.key(0), model, batch)
    seen = learner.update(jax.random.key(0), state, batch, jnp.arange(4))[0].optimizer.weights
    assert np.abs(seen).max() > 1e-3
    np.testing.assert_array_equal(seen, seen.T)
    np.testing.assert_array_equal(jnp.diagonal(seen), 0.0)


# ---- score matching --------------------------------------------------------------------------


def gaussian_rbm():
    return zoo.rbm("real", "binary", sizes=(2, 2))


def log_marginal(model, x):
    """Log of the unnormalised density of the real units, hidden units listed."""
    total = []
    for h in itertools.product((0.0, 1.0), repeat=2):
        field = model.visible_bias + model.weights @ jnp.array(h)
        quadratic = -0.5 * jnp.sum(model.visible_precision * x**2)
        total.append(quadratic + field @ x + model.hidden_bias @ jnp.array(h))
    return jax.nn.logsumexp(jnp.stack(total))


@pytest.mark.x64
def test_score_matching_equals_its_definition():
    model = gaussian_rbm()
    rows = np.random.default_rng(1).normal(size=(5, 2))
    losses = pgm.ScoreMatching(optax.sgd(0.1)).losses(model, {"v": jnp.asarray(rows)})

    def score(x):
        return jax.grad(lambda x: log_marginal(model, x))(x)

    expected = [
        0.5 * jnp.sum(score(x) ** 2) + jnp.trace(jax.jacfwd(score)(x)) for x in jnp.asarray(rows)
    ]
    np.testing.assert_allclose(losses, expected, rtol=1e-10)


@pytest.mark.x64
def test_score_matching_rests_at_the_truth():
    """Gauss-Hermite nodes of every component stand for the law, which is a mixture of normals."""
    model = gaussian_rbm()
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(40)
    grid = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), axis=-1).reshape(-1, 2)
    grid_weights = np.outer(node_weights, node_weights).reshape(-1)
    grid_weights = grid_weights / grid_weights.sum()
    rows, weights = [], []
    precision = np.asarray(model.visible_precision)
    for h in itertools.product((0.0, 1.0), repeat=2):
        field = np.asarray(model.visible_bias + model.weights @ jnp.array(h))
        score = float(model.hidden_bias @ jnp.array(h)) + 0.5 * np.sum(field**2 / precision)
        rows.append(field / precision + grid / np.sqrt(precision))
        weights.append(np.exp(score) * grid_weights)
    rows, weights = np.concatenate(rows), np.concatenate(weights)
    weights /= weights.sum()
    learner = pgm.ScoreMatching(optax.sgd(0.1))

    @jax.jit
    @jax.grad
    def slope(model, weights):
        return weights @ learner.losses(model, {"v": jnp.asarray(rows)})

    assert float(optax.tree.norm(slope(model, weights))) < 1e-9
    assert float(optax.tree.norm(slope(model, np.roll(weights, 800)))) > 1e-3


@pgm.struct
class Normal(pgm.EnergyModel):
    """A multivariate normal law by its precision and its field."""

    precision: jax.Array
    field: jax.Array

    @property
    def sites(self):
        return {"x": pgm.Real(self.field.shape[0], coupled=True)}

    def energy(self, x):
        return 0.5 * x @ self.precision @ x - self.field @ x

    def project(self):
        return pgm.replace(self, precision=0.5 * (self.precision + self.precision.T))

    def generic(self, rng_key):
        root = jax.random.normal(rng_key, self.precision.shape)
        return Normal(precision=root @ root.T + jnp.eye(len(root)), field=root[0])


def test_score_matching_finds_the_exact_mean_and_precision_of_a_normal():
    rng = np.random.default_rng(2)
    data = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 3)) + np.array([1.0, -2.0, 0.5])
    result = pgm.ScoreMatching(optax.lbfgs()).run(
        jax.random.key(0),
        Normal(precision=jnp.eye(3), field=jnp.zeros(3)),
        data,
        num_epochs=60,
        batch_size=50,
        progress_bar=False,
    )
    precision = np.linalg.inv(np.cov(data.T, bias=True))
    np.testing.assert_allclose(result.model.precision, precision, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        np.linalg.solve(result.model.precision, result.model.field), data.mean(axis=0), rtol=1e-3
    )


def test_score_matching_learns_an_energy_that_block_gibbs_cannot_sample():
    """Logistic laws of unknown scale: 1/2 is found, where nothing but the gradient is known."""

    @pgm.struct
    class Logistic(pgm.EnergyModel):
        slope: jax.Array

        @property
        def sites(self):
            return {"x": pgm.Real(2)}

        def energy(self, x):
            return jnp.sum(2.0 * jax.nn.softplus(self.slope * x) - self.slope * x)

    data = np.random.default_rng(3).logistic(scale=2.0, size=(4000, 2))
    learner = pgm.ScoreMatching(optax.adam(optax.cosine_decay_schedule(0.1, 60)))
    settings = {"num_epochs": 60, "batch_size": 4000, "validation": data[:100]}
    start = Logistic(slope=jnp.ones(2))
    with pytest.raises(ValueError, match="normal"):
        pgm.PCD(optax.sgd(0.1)).run(jax.random.key(0), start, data, **settings)
    result = learner.run(jax.random.key(0), start, data, progress_bar=False, **settings)
    np.testing.assert_allclose(result.model.slope, 0.5, atol=0.03)
    own = {"objective", "gradient_norm", "validation_objective"}
    assert set(result.metrics) - {"learning_rate"} == own


# ---- the driver ------------------------------------------------------------------------------

BITS = np.random.default_rng(4).integers(0, 2, (40, 3))
BITS[:, 2] = BITS[:, 0]


SHARED = {"pseudo_log_likelihood", "free_energy_gap", "reconstruction_error", "gradient_norm"}


@pytest.mark.parametrize("kind", ["PseudoLikelihood", "RatioMatching", "MaximumLikelihood"])
def test_one_switch_and_the_same_result(kind):
    start = pgm.RBM.init(jax.random.key(0), num_visible=3, num_hidden=2, data=BITS)
    learner = getattr(pgm, kind)(optax.adam(0.05))
    result = learner.run(
        jax.random.key(1),
        start,
        BITS,
        num_epochs=30,
        batch_size=16,
        validation=BITS[:7],
        progress_bar=False,
    )
    metrics = result.metrics
    assert isinstance(result, pgm.LearningResult)
    assert set(metrics) >= SHARED | {"objective", "validation_objective"}
    assert metrics["objective"][-1] < metrics["objective"][0] - 0.05
    assert metrics["pseudo_log_likelihood"][-1] > metrics["pseudo_log_likelihood"][0]
    assert f"Objective {metrics['objective'][0]:.5g} to" in result.message
    expected = learner.losses(result.model, {"v": jnp.asarray(BITS[:7])}).mean()
    assert metrics["validation_objective"][-1] == pytest.approx(float(expected), abs=1e-5)


def test_flipped_data_give_the_flipped_model():
    """Centred parameters: learning does not depend on what is called 1."""
    start = zoo.machine(3)
    flip = pgm.replace(start, weights=start.weights, bias=-start.bias - start.weights.sum(axis=1))
    learner = pgm.PseudoLikelihood(optax.adam(0.05))
    settings = {"num_epochs": 5, "batch_size": 16, "progress_bar": False}
    one = learner.run(jax.random.key(1), start, BITS, **settings).model
    other = learner.run(jax.random.key(1), flip, 1 - BITS, **settings).model
    np.testing.assert_allclose(one.weights, other.weights, atol=1e-4)
    np.testing.assert_allclose(-one.bias - one.weights.sum(axis=1), other.bias, atol=1e-4)


def test_rows_count_by_their_weights_and_padding_not_at_all():
    model = zoo.machine(3)
    learner = pgm.PseudoLikelihood(optax.sgd(0.5))
    rows = jnp.asarray([[0, 1, 1], [1, 1, 0], [0, 0, 0], [1, 0, 1]], jnp.int8)
    weights = jnp.array([1.0, 2.0, 1.0, 0.0])
    index = jnp.arange(4)
    state = learner.init(jax.random.key(0), model, Rows({"v": rows}, weights))
    padded, info = learner.update(jax.random.key(0), state, Rows({"v": rows}, weights), index)
    repeated = Rows({"v": rows[jnp.array([0, 1, 1, 2])]}, jnp.ones(4))
    again, other = learner.update(jax.random.key(0), state, repeated, index)
    np.testing.assert_allclose(padded.model.weights, again.model.weights, atol=1e-6)
    np.testing.assert_allclose(info["objective"], other["objective"], rtol=1e-6)


def test_exact_maximum_likelihood_reaches_the_figure_of_the_survey(shared_data):
    """Fully visible machine on nltcs: figures of double precision, within seconds."""
    parts = {}
    for name in ("train", "valid", "test"):
        with gzip.open(shared_data / "nltcs" / f"{name}.csv.gz", "rt") as file:
            parts[name] = np.loadtxt(file, delimiter=",", dtype=np.int8)
    start = pgm.BoltzmannMachine.init(jax.random.key(0), num_visible=16, data=parts["train"])
    result = pgm.MaximumLikelihood(optax.lbfgs(memory_size=40)).run(
        jax.random.key(1), start, parts["train"], 80, len(parts["train"]), progress_bar=False
    )
    found = {name: pgm.log_likelihood(result.model, rows).mean() for name, rows in parts.items()}
    expected = {"train": -6.02547, "valid": -5.97502, "test": -6.02841}
    assert found == pytest.approx(expected, abs=1e-4)
    assert pgm.log_partition(result.model).estimate == pytest.approx(1.940137, abs=2e-3)
    assert result.metrics["objective"][-1] == pytest.approx(6.02547, abs=1e-4)


# ---- what is refused -------------------------------------------------------------------------

REFUSED = {
    "score matching on bits": (
        pgm.ScoreMatching,
        zoo.machine(3),
        BITS,
        "'v' is binary: use PseudoLikelihood or RatioMatching",
    ),
    "score matching on states": (
        pgm.ScoreMatching,
        potts(),
        BITS,
        "'v' is categorical: use PseudoLikelihood",
    ),
    "ratio matching on reals": (
        pgm.RatioMatching,
        gaussian_rbm(),
        np.zeros((4, 2)),
        "'v' is real: use ScoreMatching",
    ),
    "ratio matching on states": (
        pgm.RatioMatching,
        potts(),
        BITS,
        "'v' is categorical: use PseudoLikelihood",
    ),
    "pseudo-likelihood on reals": (
        pgm.PseudoLikelihood,
        gaussian_rbm(),
        np.zeros((4, 2)),
        "use ScoreMatching",
    ),
    "too many states": (
        pgm.MaximumLikelihood,
        pgm.BoltzmannMachine(weights=jnp.zeros((30, 30))),
        np.zeros((4, 30)),
        r"2\^30.0 states .* learn with PCD, PseudoLikelihood or RatioMatching",
    ),
    "too many hidden states": (
        pgm.PseudoLikelihood,
        pgm.BoltzmannMachine(weights=jnp.zeros((20, 20)), num_hidden=18),
        np.zeros((4, 2)),
        "latent units .* interact",
    ),
    "units held fixed": (
        pgm.PseudoLikelihood,
        pgm.condition(zoo.machine(3), v=np.array([np.nan, 1.0, np.nan])),
        BITS | np.array([0, 1, 0]),
        "learn the model that it conditions",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_an_objective_cannot_do_is_refused_in_words(name):
    kind, model, data, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        kind(optax.sgd(0.1)).run(jax.random.key(0), model, data, num_epochs=1, progress_bar=False)


@pytest.mark.parametrize("kind", [pgm.PseudoLikelihood, pgm.RatioMatching])
def test_grey_levels_are_no_states(kind):
    start, grey = zoo.machine(3), np.full((8, 3), 0.3)
    settings = {"num_epochs": 1, "progress_bar": False}
    with pytest.raises(ValueError, match="intensities='sample'"):
        kind(optax.sgd(0.1)).run(jax.random.key(0), start, grey, intensities="mean", **settings)
    result = kind(optax.sgd(0.1)).run(
        jax.random.key(0), start, grey, intensities="sample", **settings
    )
    assert np.isfinite(result.metrics["objective"]).all()


def test_an_optimizer_is_wanted():
    with pytest.raises(TypeError, match="optax"):
        pgm.MaximumLikelihood("adam")
