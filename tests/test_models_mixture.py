"""Mixtures against quadrature, enumeration and NumPyro's own mixture distribution."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import pgm_energy as pgm
from pgm_energy.models.mixture import floored_frequencies, project_simplex

WEIGHTS = np.array([0.3, 0.7])
MEANS = [[0.0, 1.0], [1.5, -0.5]]
COVARIANCES = {
    "full": [[[1.0, 0.4], [0.4, 0.8]], [[0.5, -0.2], [-0.2, 0.9]]],
    "tied": [[1.0, 0.4], [0.4, 0.8]],
    "diag": [[1.0, 0.5], [0.3, 0.9]],
    "spherical": [1.0, 0.4],
}
PROBS = [[0.9, 0.2, 0.6], [0.3, 0.7, 0.1]]
STATE_PROBS = [[[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]], [[0.1, 0.8, 0.1], [0.3, 0.3, 0.4]]]


def arrays(**fields):
    """Parameters as JAX arrays; text as it is."""
    return {k: v if isinstance(v, str) else jnp.asarray(v) for k, v in fields.items()}


def gaussian(kind: str) -> pgm.GaussianMixture:
    fields = arrays(weights=WEIGHTS, means=MEANS, covariances=COVARIANCES[kind])
    return pgm.GaussianMixture(**fields, covariance_type=kind)


def bernoulli() -> pgm.BernoulliMixture:
    return pgm.BernoulliMixture(**arrays(weights=WEIGHTS, probs=PROBS))


def categorical() -> pgm.CategoricalMixture:
    return pgm.CategoricalMixture(**arrays(weights=WEIGHTS, probs=STATE_PROBS))


def full_covariances(kind: str) -> np.ndarray:
    """The covariance matrix of each component, written out."""
    given = np.array(COVARIANCES[kind])
    return {
        "full": lambda: given,
        "tied": lambda: np.stack([given] * 2),
        "diag": lambda: np.stack([np.diag(row) for row in given]),
        "spherical": lambda: np.stack([v * np.eye(2) for v in given]),
    }[kind]()


class CategoricalReference:
    """NumPyro's mixture refuses categorical components: the sum over them, written out."""

    @staticmethod
    def log_prob(rows):
        parts = dist.Categorical(jnp.array(STATE_PROBS)).to_event(1).log_prob(rows[:, None])
        return jax.nn.logsumexp(parts + jnp.log(jnp.array(WEIGHTS)), axis=1)


def reference(model):
    """NumPyro's mixture of the same components."""
    mixing = dist.Categorical(jnp.array(WEIGHTS))
    if isinstance(model, pgm.GaussianMixture):
        parts = dist.MultivariateNormal(
            jnp.array(MEANS), jnp.array(full_covariances(model.covariance_type))
        )
    elif isinstance(model, pgm.BernoulliMixture):
        parts = dist.Bernoulli(jnp.array(PROBS)).to_event(1)
    else:
        return CategoricalReference()
    return dist.MixtureSameFamily(mixing, parts)


ALL = [pytest.param(lambda k=k: gaussian(k), id=k) for k in COVARIANCES]
DISCRETE = [pytest.param(bernoulli, id="bernoulli"), pytest.param(categorical, id="categorical")]
ALL += DISCRETE


def states(model) -> dict[str, np.ndarray]:
    """Every configuration of a discrete model."""
    cards = [(n, len(s.states), s.size) for n, s in model.sites.items()]
    table = np.array(list(itertools.product(*[range(k) for _, k, m in cards for _ in range(m)])))
    out, start = {}, 0
    for name, _, size in cards:
        shape = (len(table), *model.sites[name].shape)
        out[name] = table[:, start : start + size].reshape(shape)
        start += size
    return out


def points(model, count: int = 50) -> np.ndarray:
    """Raw values of the data site."""
    site = model.sites[model.data_sites[0]]
    rng = np.random.default_rng(0)
    if site.is_discrete:
        return rng.choice(site.states, (count, *site.shape))
    return 2.0 * rng.normal(size=(count, *site.shape))


@pytest.mark.x64
@pytest.mark.parametrize("kind", COVARIANCES)
def test_log_partition_of_a_gaussian_mixture_is_zero_by_quadrature(kind):
    model = gaussian(kind)
    axis = np.linspace(-12.0, 12.0, 401)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    total = 0.0
    for k in range(2):
        z = np.full(len(grid), k)
        total += float(jnp.exp(model.log_density({"z": z, "x": grid})).sum())
    # the trapezoidal rule is exact to rounding for a smooth function that vanishes at the ends
    assert total * (axis[1] - axis[0]) ** 2 == pytest.approx(1.0, abs=1e-12)
    assert float(model.known_log_partition) == 0.0


@pytest.mark.x64
@pytest.mark.parametrize("make", DISCRETE)
def test_log_partition_of_a_discrete_mixture_is_zero_by_enumeration(make):
    model = make()
    assert float(jnp.exp(model.log_density(states(model))).sum()) == pytest.approx(1.0, abs=1e-12)
    assert float(model.known_log_partition) == 0.0


@pytest.mark.parametrize("make", ALL)
def test_known_log_partition_reaches_the_evaluation(make):
    model = make()
    assert pgm.log_partition(model).estimate == 0.0
    rows = points(model)
    np.testing.assert_allclose(
        pgm.log_likelihood(model, rows), reference(model).log_prob(rows), rtol=2e-5, atol=2e-5
    )


@pytest.mark.x64
@pytest.mark.parametrize("make", ALL)
def test_marginal_over_the_component_is_the_mixture_density(make):
    model = make()
    (name,) = model.data_sites
    rows = points(model)
    density = pgm.marginalize(model, "z")
    assert float(density.known_log_partition) == 0.0
    found = density.log_density({name: rows})
    np.testing.assert_allclose(found, reference(model).log_prob(rows), rtol=1e-12)


@pytest.mark.x64
@pytest.mark.parametrize("make", ALL)
def test_marginal_over_the_data_is_the_weights(make):
    model = make()
    (name,) = model.data_sites
    weights = jnp.exp(pgm.marginalize(model, name).log_density({"z": np.arange(2)}))
    np.testing.assert_allclose(weights, WEIGHTS, rtol=1e-12)


@pytest.mark.x64
@pytest.mark.parametrize("make", ALL)
def test_conditionals_are_energy_differences(make):
    model = make()
    (name,) = model.data_sites
    for row, other in zip(points(model, 5), points(model, 10)[5:], strict=True):
        energies = [-float(model.log_density({"z": k, name: row})) for k in range(2)]
        law = model.conditional("z", {name: row})
        gap = law.log_prob(jnp.array(1)) - law.log_prob(jnp.array(0))
        assert float(gap) == pytest.approx(energies[0] - energies[1], abs=1e-10)
        for k in range(2):
            law = model.conditional(name, {"z": k, name: row})
            assert law.event_shape == row.shape
            gap = law.log_prob(jnp.asarray(other)) - law.log_prob(jnp.asarray(row))
            moved = -float(model.log_density({"z": k, name: other}))
            assert float(gap) == pytest.approx(energies[k] - moved, abs=1e-9)


@pytest.mark.x64
@pytest.mark.parametrize("make", ALL)
def test_log_joint_is_minus_the_energy(make):
    model = make()
    (name,) = model.data_sites
    rows = points(model)
    joint = model.log_joint(model.sites[name].encode(rows))
    for k in range(2):
        expected = model.log_density({"z": np.full(len(rows), k), name: rows})
        np.testing.assert_allclose(joint[:, k], expected, rtol=1e-12)


@pytest.mark.parametrize("make", DISCRETE)
def test_sweep_leaves_the_exact_law_invariant(make):
    model = make()
    kernel = pgm.gibbs_kernel(pgm.blocks(model))
    table = states(model)
    law = np.exp(np.asarray(model.log_density(table), dtype=float))

    def row(old):
        return jax.vmap(lambda new: kernel.transition_log_prob(old, new, model))(table)

    transition = np.exp(np.asarray(jax.jit(jax.vmap(row))(table), dtype=float))
    np.testing.assert_allclose(transition.sum(axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(law @ transition, law, atol=1e-6)
    uniform = np.full(len(law), 1.0 / len(law))  # the check can tell: another law moves
    assert np.abs(uniform @ transition - uniform).max() > 1e-3


@pytest.mark.parametrize("make", ALL)
def test_schedule_is_the_component_then_the_data(make):
    model = make()
    assert [step.kind for step in pgm.blocks(model).steps] == ["joint", "joint"]
    coupled = getattr(model, "covariance_type", "") in ("full", "tied")
    assert pgm.blocks(model).steps[1].coupled is coupled


@pytest.mark.parametrize("make", ALL)
def test_generic_is_valid_and_projection_leaves_valid_models_alone(make, rng_key):
    for model in (make(), make().generic(rng_key)):
        jax.tree.map(
            lambda a, b: np.testing.assert_array_equal(a, b), model.project(), pgm.replace(model)
        )


@pytest.mark.parametrize("make", ALL)
def test_projection_repairs_what_a_gradient_step_may_do(make):
    model = make()
    shifted = jax.tree.map(lambda leaf: leaf - 0.8, model)  # bypasses the constructor
    fixed = shifted.project()  # the constructor checks it
    assert float(fixed.weights.sum()) == pytest.approx(1.0, abs=1e-6)
    (name,) = model.data_sites
    assert np.isfinite(model.log_density({"z": 0, name: points(model, 1)[0]}))


@pytest.mark.x64
def test_gradient_through_the_weights_keeps_the_density_normalised():
    """The energy normalises the weights, so a step off the simplex has no effect on log Z."""
    model = bernoulli()
    table = states(model)

    def log_partition(scale):
        moved = jax.tree.map(lambda leaf: leaf, model)
        object.__setattr__(moved, "weights", model.weights * scale)
        energy = jax.vmap(lambda v: moved.energy(**moved.encode(v)))(table)
        return jax.nn.logsumexp(-energy)

    assert float(jax.grad(log_partition)(1.0)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.x64
@pytest.mark.parametrize("floor", [1e-12, 0.05])
def test_simplex_projection_is_the_nearest_point(floor):
    rng = np.random.default_rng(2)
    for values in rng.normal(size=(20, 5)):
        low, high = values.min() - 1.0, values.max()
        for _ in range(200):  # max(v - t, floor) sums to 1 at the right threshold t
            middle = 0.5 * (low + high)
            too_much = np.maximum(values - middle, floor).sum() > 1.0
            low, high = (middle, high) if too_much else (low, middle)
        expected = np.maximum(values - low, floor)
        np.testing.assert_allclose(
            project_simplex(jnp.asarray(values), floor), expected, atol=1e-10
        )


@pytest.mark.x64
def test_floored_frequencies_maximise_the_likelihood():
    rng = np.random.default_rng(3)
    for counts in rng.gamma(0.2, size=(20, 6)):
        counts[0] = 0.0
        low, high = 1e-9, counts.sum() / 1e-3
        for _ in range(300):  # the stationary point: p = max(c / lambda, floor)
            middle = np.sqrt(low * high)
            too_much = np.maximum(counts / middle, 0.02).sum() > 1.0
            low, high = (middle, high) if too_much else (low, middle)
        expected = np.maximum(counts / low, 0.02)
        np.testing.assert_allclose(
            floored_frequencies(jnp.asarray(counts), 0.02), expected, atol=1e-10
        )


def test_start_from_data_finds_separated_clusters(rng_key):
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [100.0, 0.0], [0.0, 1.0]])  # columns of unlike scale
    label = rng.integers(3, size=300)
    rows = centres[label] + rng.normal(size=(300, 2)) * [2.0, 0.02]
    for kind in COVARIANCES:
        start = pgm.GaussianMixture.init(rng_key, num_components=3, data=rows, covariance_type=kind)
        if kind == "spherical":  # one scale for all columns: the second one is lost
            continue
        order = np.argsort(np.asarray(start.means) @ [1.0, 10.0])
        np.testing.assert_allclose(
            np.asarray(start.means)[order], centres[[0, 2, 1]], atol=1.0, rtol=0.02
        )


def test_start_of_discrete_mixtures(rng_key):
    rng = np.random.default_rng(0)
    truth = np.array([[0.95] * 6 + [0.05] * 6, [0.05] * 6 + [0.95] * 6])
    rows = (rng.random((400, 12)) < truth[rng.integers(2, size=400)]).astype(np.int8)
    start = pgm.BernoulliMixture.init(rng_key, num_components=2, data=rows)
    order = np.argsort(-np.asarray(start.probs)[:, 0])
    np.testing.assert_allclose(np.asarray(start.probs)[order], truth, atol=0.12)
    same = pgm.CategoricalMixture.init(rng_key, num_components=2, data=rows)
    order = np.argsort(-np.asarray(same.probs)[:, 0, 1])
    np.testing.assert_allclose(np.asarray(same.probs)[order][..., 1], truth, atol=0.12)


def test_the_last_bits_of_a_covariance_may_differ():
    eps = np.finfo(np.float32).eps
    tied = np.array([[1.0, 0.5], [0.5 * (1 + eps), 1.0]], np.float32)
    model = pgm.GaussianMixture(
        **arrays(weights=WEIGHTS, means=MEANS, covariances=tied), covariance_type="tied"
    )
    np.testing.assert_array_equal(model.covariances, model.covariances.T)


GAUSS = {"weights": WEIGHTS, "means": MEANS, "covariances": COVARIANCES["full"]}


@pytest.mark.parametrize(
    "cls, change, message",
    [
        (
            pgm.GaussianMixture,
            {"weights": [1.2, -0.2]},
            "positive, got -0.2 at component 1",
        ),
        (pgm.GaussianMixture, {"weights": [1.0, 0.0]}, "leave that component out"),
        (pgm.GaussianMixture, {"weights": [0.5, 0.6]}, r"must sum to 1, got 1.1; use weights / "),
        (pgm.GaussianMixture, {"weights": [[0.5, 0.5]]}, r"weights must have shape \(K,\)"),
        (pgm.GaussianMixture, {"weights": [0.5, np.nan]}, "weights must be finite, got nan"),
        (pgm.GaussianMixture, {"means": [[0.0, 1.0]]}, r"means must have shape \(2, D\)"),
        (pgm.GaussianMixture, {"covariance_type": "ful"}, "one of full, tied, diag, spherical"),
        (pgm.GaussianMixture, {"covariance_type": "diag"}, r"diag covariances must have shape"),
        (
            pgm.GaussianMixture,
            {"covariances": [np.eye(2), [[1.0, 0.5], [0.4, 1.0]]]},
            r"must be symmetric, got 0.5 at \(0, 1\) and 0.4 at \(1, 0\) of component 1",
        ),
        (
            pgm.GaussianMixture,
            {"covariances": [[[1.0, 2.0], [2.0, 1.0]], np.eye(2)]},
            r"must be positive definite, got a smallest eigenvalue of -1 of component 0",
        ),
        (
            pgm.GaussianMixture,
            {"covariances": [[1.0, 0.0], [1.0, 1.0]], "covariance_type": "diag"},
            r"variances must be positive, got 0 at index \(0, 1\)",
        ),
        (pgm.BernoulliMixture, {"probs": [[0.5], [1.0]]}, "strictly between 0 and 1.*got 1 at"),
        (pgm.BernoulliMixture, {"probs": [[0.5], [-0.1]]}, "strictly between 0 and 1.*got -0.1"),
        (pgm.BernoulliMixture, {"probs": [[0.5]]}, r"probs must have shape \(2, D\)"),
        (
            pgm.CategoricalMixture,
            {"probs": [[[0.5, 0.5]], [[0.5, 0.6]]]},
            "sum to 1 over the states, got 1.1 for component 1, unit 0",
        ),
        (
            pgm.CategoricalMixture,
            {"probs": [[[0.0, 1.0]]] * 2},
            "between.*normalise again",
        ),
    ],
)
def test_bad_parameters_are_refused(cls, change, message):
    base = dict(GAUSS) if cls is pgm.GaussianMixture else {"weights": WEIGHTS}
    with pytest.raises(ValueError, match=message):
        cls(**arrays(**{**base, **change}))


@pytest.mark.parametrize(
    "cls, data, message",
    [
        (pgm.GaussianMixture, np.zeros((0, 2)), "at least one of each"),
        (pgm.GaussianMixture, np.zeros(5), r"must have shape \(rows, columns\)"),
        (pgm.GaussianMixture, np.array([[0.0, 1.0], [np.nan, 0.0]]), "NaN at row 1, column 0"),
        (pgm.GaussianMixture, np.zeros((1, 2)), "2 components need at least as many rows, got 1"),
        (pgm.BernoulliMixture, np.array([[0, 1], [2, 1]]), "0 and 1, got 2 at row 1, column 0"),
        (pgm.CategoricalMixture, np.array([[0, 1], [-1, 1]]), "got -1 at row 1, column 0"),
    ],
)
def test_bad_data_of_a_start_are_refused(cls, data, message, rng_key):
    with pytest.raises(ValueError, match=message):
        cls.init(rng_key, num_components=2, data=data)


def test_independent_units_know_their_log_partition(rng_key):
    rbm = pgm.RBM(weights=jnp.ones((3, 2)), hidden=pgm.Spin)
    rows = np.array([[0, 1, 1], [0, 0, 1], [1, 0, 1]])
    base = pgm.Independent.like(rbm, rows)
    table = np.array(list(itertools.product([0, 1], repeat=5)))
    values = {"v": table[:, :3], "h": 2 * table[:, 3:] - 1}
    total = jax.nn.logsumexp(base.log_density(values))
    assert float(base.known_log_partition) == pytest.approx(float(total), abs=1e-5)
    means = np.exp(np.asarray(base.log_density(values) - total)) @ table[:, :3]
    np.testing.assert_allclose(means, (rows.sum(axis=0) + 0.5) / 4.0, atol=1e-5)


def test_independent_units_follow_the_families(rng_key):
    for kind in COVARIANCES:
        model = gaussian(kind)
        rows = points(model, 200)
        base = pgm.Independent.like(model, rows)
        assert base.sites == model.sites
        assert base.data_sites == ("x",)
        expected = dist.Normal(rows.mean(axis=0), rows.std(axis=0)).log_prob(rows).sum(-1)
        free = base.log_density({"z": np.zeros(200, int), "x": rows}) - base.known_log_partition
        np.testing.assert_allclose(free + np.log(2.0), expected, rtol=1e-4, atol=1e-4)
        law = pgm.temper(base, model, 0.5).conditional("x", {"z": 0})
        assert np.isfinite(law.log_prob(jnp.zeros(2)))


def test_independent_units_leave_clamped_units_out_of_log_partition():
    rbm = pgm.RBM(weights=jnp.ones((3, 2)))
    held = pgm.condition(rbm, v=np.array([1.0, np.nan, 0.0]))
    base = pgm.Independent.like(held)
    assert float(base.known_log_partition) == pytest.approx(3 * np.log(2.0), abs=1e-5)
    inside = {"v": np.array([1, 1, 0]), "h": np.array([0, 1])}
    assert float(base.log_density(inside)) == pytest.approx(0.0, abs=1e-5)
    clamped = base.clamp({"v": jnp.array([0, 1, 1]), "h": jnp.array([0, 1])})
    np.testing.assert_array_equal(clamped["v"], [1, 1, 0])
    np.testing.assert_array_equal(base.free_units("v"), [False, True, False])


@pytest.mark.parametrize(
    "data, message",
    [
        (np.array([[0, 2, 1]]), "got 2 at row 0, column 1"),
        (np.zeros((2, 4)), "at least one row of shape"),
        ({"w": np.zeros((2, 3))}, "no site 'w'"),
    ],
)
def test_independent_refuses_bad_data(data, message):
    with pytest.raises(ValueError, match=message):
        pgm.Independent.like(pgm.RBM(weights=jnp.ones((3, 2))), data)
