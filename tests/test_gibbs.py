"""The block-Gibbs kernel: exact transition matrices, exact laws, and what a sweep reports."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import zoo
from scipy import stats
from scipy.special import logsumexp

import pgm_energy as pgm

DISCRETE_PAIRS = [pair for pair in zoo.PAIRS if "real" not in pair]
REAL_PAIRS = [pair for pair in zoo.PAIRS if "real" in pair]


@pytest.mark.x64
@pytest.mark.parametrize(("visible", "hidden"), DISCRETE_PAIRS)
def test_sweep_of_an_rbm_leaves_the_exact_law_alone(visible, hidden):
    oracles.assert_invariant(zoo.rbm(visible, hidden), tolerance=1e-10)


def test_the_same_in_single_precision():
    oracles.assert_invariant(zoo.rbm("binary", "categorical"), tolerance=2e-6)
    oracles.assert_invariant(zoo.machine(6, pgm.Spin), tolerance=2e-6)


@pytest.mark.x64
@pytest.mark.parametrize("order", [["v", "h"], ["h", "v"]])
def test_both_orders_of_a_sweep_are_right_and_different(order):
    model = zoo.rbm()
    schedule = pgm.blocks(model, order)
    matrix = oracles.assert_invariant(model, schedule, tolerance=1e-10)
    other = oracles.assert_invariant(model, pgm.blocks(model, order[::-1]), tolerance=1e-10)
    assert np.abs(matrix - other).max() > 0.01


def layer_log_normalizer(model, name, values):
    """log of the sum or integral of exp(-E) over one layer, from energies alone."""
    site = model.sites[name]
    if not isinstance(site, pgm.Real):
        states = np.stack(np.meshgrid(*[oracles.unit_states(site)] * site.size), -1)
        states = states.reshape(-1, *site.shape)
        batch = {k: np.broadcast_to(v, (len(states), *np.shape(v))) for k, v in values.items()}
        return logsumexp(-oracles.energies(model, {**batch, name: states}))
    total = 0.0
    zero = np.zeros(site.shape)
    points = np.stack([zero, *np.eye(site.size), *(-np.eye(site.size))])
    batch = {k: np.broadcast_to(v, (len(points), *np.shape(v))) for k, v in values.items()}
    energy = oracles.energies(model, {**batch, name: points})
    plus, minus = energy[1 : site.size + 1], energy[site.size + 1 :]
    precision, eta = plus + minus - 2 * energy[0], (minus - plus) / 2
    total = -energy[0] + np.sum(0.5 * eta**2 / precision + 0.5 * np.log(2 * np.pi / precision))
    return float(total)


@pytest.mark.x64
@pytest.mark.parametrize(("visible", "hidden"), REAL_PAIRS)
def test_transition_density_of_a_layered_sweep_is_the_product_of_its_conditionals(visible, hidden):
    model = zoo.rbm(visible, hidden)
    schedule = pgm.blocks(model)
    assert [step.kind for step in schedule.steps] == ["joint", "joint"]
    found = jax.jit(pgm.gibbs_kernel(schedule).transition_log_prob)
    for seed in range(3):
        old, new = (
            {k: np.asarray(v) for k, v in zoo.random_values(model, seed=s).items()}
            for s in (seed, seed + 50)
        )
        between = {"v": new["v"], "h": old["h"]}
        expected = 0.0
        for values, drawn, rest in ((between, "v", old), (new, "h", new)):
            energy = oracles.energies(model, {k: v[None] for k, v in values.items()})[0]
            expected += -energy - layer_log_normalizer(model, drawn, rest)
        assert float(found(old, new, model)) == pytest.approx(expected, rel=1e-7, abs=1e-7)


def exact_mixed(model):
    """Joint law of (b, z) with x integrated out in closed form, and x's mean and precision."""
    b = np.array(list(np.ndindex(2, 2)))
    table = {"b": np.repeat(b, 3, axis=0), "z": np.tile(np.arange(3), 4)}
    precision = np.asarray(model.precisions, float)[table["z"]]
    means = np.asarray(model.means, float)[table["z"]]
    field = table["b"] @ np.asarray(model.field, float)
    mean = means + field / precision
    # 1/2 L (x - m)^2 - f x, at its minimum, and the width around it
    low = -field * means - 0.5 * field**2 / precision
    log_weights = -low.sum(axis=1) + 0.5 * np.log(2 * np.pi / precision).sum(axis=1)
    log_weights += np.asarray(model.logits, float)[table["z"]]
    log_weights += np.einsum(
        "nb,bn->n", table["b"], np.asarray(model.weights, float)[:, table["z"]]
    )
    return table, np.exp(log_weights - logsumexp(log_weights)), mean, precision


def mixed_p_values(values, model):
    """Of the joint frequencies of (b, z), and of x standardised given them."""
    table, probabilities, mean, precision = exact_mixed(model)
    discrete = {k: np.asarray(values[k]) for k in ("b", "z")}
    cell = discrete["b"] @ np.array([6, 3]) + discrete["z"]
    white = (np.asarray(values["x"], float) - mean[cell]) * np.sqrt(precision[cell])
    return (
        oracles.frequencies_p_value(discrete, table, probabilities),
        min(stats.kstest(column, stats.norm.cdf).pvalue for column in white.T),
    )


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "products"])
def test_three_families_unknown_to_the_library_are_sampled_exactly(affine, rng_key):
    """Binary, categorical and real units, the precision of the real ones hanging on a state."""
    model = zoo.mixed(affine=affine)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        schedule = pgm.blocks(model)
    kinds = {step.site: step.kind for step in schedule.steps}
    assert kinds == {"b": "joint", "z": "joint" if affine else "difference", "x": "joint"}
    assert len(caught) == (not affine)
    num, sweeps = 12_000, 5
    kernel = pgm.gibbs_kernel(schedule)

    @jax.jit
    def chains(keys, values, model):
        def chain(key, values):
            def sweep(values, key):
                return kernel(key, values, model)[0], None

            return jax.lax.scan(sweep, values, jax.random.split(key, sweeps))[0]

        return jax.vmap(chain)(keys, values)

    # chains start from the exact law, which every right sweep leaves alone
    table, probabilities, mean, precision = exact_mixed(model)
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(probabilities), size=num, p=probabilities)
    x = mean[chosen] + rng.normal(size=(num, 2)) / np.sqrt(precision[chosen])
    start = {"b": table["b"][chosen], "z": table["z"][chosen], "x": x}
    start = {name: model.sites[name].cast(value) for name, value in start.items()}
    assert min(mixed_p_values(start, model)) > oracles.ALPHA
    keys = jax.random.split(rng_key, num)
    assert min(mixed_p_values(chains(keys, start, model), model)) > oracles.ALPHA
    # positive control: the same test sees one parameter that is off
    off = pgm.replace(model, precisions=model.precisions * 1.5)
    assert min(mixed_p_values(chains(keys, start, off), model)) < oracles.ALPHA
    off = pgm.replace(model, logits=model.logits + jnp.array([0.7, 0, 0]))
    assert min(mixed_p_values(chains(keys, start, off), model)) < oracles.ALPHA


def one_draw_per_chain(model, sweeps, num, rng_key):
    kernel = pgm.gibbs_kernel(pgm.blocks(model))
    start = {k: jnp.full((num, *s.shape), s.states[0], s.dtype) for k, s in model.sites.items()}

    @jax.jit
    def run(key, values):
        def sweep(values, key):
            keys = jax.random.split(key, num)
            return jax.vmap(kernel, in_axes=(0, 0, None))(keys, values, model)[0], None

        return jax.lax.scan(sweep, values, jax.random.split(key, sweeps))[0]

    return run(rng_key, start)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(zoo.rbm("spin", "categorical", (2, 2)), id="rbm"),
        pytest.param(zoo.machine(5), id="machine-binary"),
        pytest.param(zoo.machine(5, pgm.Spin, num_hidden=2, scale=0.4), id="machine-spin"),
    ],
)
def test_random_sweeps_follow_the_law(model, rng_key):
    """The matrix tests see the probabilities; this sees that random numbers follow them."""
    states, probabilities, _ = oracles.law(model)
    samples = one_draw_per_chain(model, 60, 20_000, rng_key)
    assert oracles.frequencies_p_value(samples, states, probabilities) > oracles.ALPHA
    early = one_draw_per_chain(model, 1, 20_000, rng_key)
    assert oracles.frequencies_p_value(early, states, probabilities) < oracles.ALPHA


@pytest.mark.parametrize(
    "model",
    [
        *[pytest.param(zoo.rbm(v, h), id=f"{v}-{h}") for v, h in zoo.PAIRS[::3]],
        pytest.param(zoo.machine(), id="machine"),
        pytest.param(zoo.mixed(), id="mixed"),
    ],
)
def test_info_is_that_of_the_new_configuration(model, rng_key):
    kernel = jax.jit(pgm.gibbs_kernel(pgm.blocks(model)))
    old = zoo.random_values(model)
    new, info = kernel(rng_key, old, model)
    assert float(info.energy) == pytest.approx(-float(model.log_density(new)), rel=1e-5, abs=1e-5)
    discrete = [name for name, site in model.sites.items() if site.is_discrete]
    assert sorted(info.flip_rate) == sorted(discrete)
    for name in discrete:
        flips = np.mean(np.asarray(new[name]) != np.asarray(old[name]))
        assert float(info.flip_rate[name]) == pytest.approx(flips)
    for name, site in model.sites.items():
        assert new[name].dtype == site.dtype
        assert new[name].shape == site.shape
        site.check(name, new[name])


def test_jit_is_eager_vmap_is_a_loop_and_keys_of_both_kinds_work(rng_key):
    model = zoo.rbm("categorical", "spin")
    kernel = pgm.gibbs_kernel(pgm.blocks(model))
    values = zoo.random_values(model)
    eager, _ = kernel(rng_key, values, model)
    compiled, _ = jax.jit(kernel)(rng_key, values, model)
    legacy, _ = kernel(jax.random.PRNGKey(0), values, model)
    keys = jax.random.split(rng_key, 3)
    batch = {k: jnp.stack([v] * 3) for k, v in values.items()}
    mapped, _ = jax.vmap(kernel, in_axes=(0, 0, None))(keys, batch, model)
    for name in model.sites:
        np.testing.assert_array_equal(compiled[name], eager[name])
        np.testing.assert_array_equal(legacy[name], eager[name])  # the same bits either way
        for i in range(3):
            np.testing.assert_array_equal(mapped[name][i], kernel(keys[i], values, model)[0][name])


def test_new_parameters_do_not_recompile(rng_key):
    kernel = pgm.gibbs_kernel(pgm.blocks(zoo.rbm()))
    traces = []

    @jax.jit
    def sweep(key, values, model):
        traces.append(None)
        return kernel(key, values, model)

    for seed in range(3):
        model = zoo.rbm(seed=seed)
        sweep(rng_key, zoo.random_values(model), model)
    assert len(traces) == 1


def test_sites_without_a_block_stay_as_they_are(rng_key):
    model = zoo.rbm()
    kernel = pgm.gibbs_kernel(["h"])
    values = zoo.random_values(model)
    new, info = kernel(rng_key, values, model)
    np.testing.assert_array_equal(new["v"], values["v"])
    assert list(info.flip_rate) == ["h"]
    changed = {**new, "v": 1 - new["v"]}
    assert float(kernel.transition_log_prob(values, changed, model)) == -np.inf
    assert np.isfinite(float(kernel.transition_log_prob(values, new, model)))


def test_blocks_by_hand_are_verified_at_the_first_call_also_under_jit(rng_key):
    model = zoo.machine(4)
    values = zoo.random_values(model)
    with pytest.raises(ValueError, match=r"v\[0\] and v\[1\] interact"):
        jax.jit(pgm.gibbs_kernel(["v"]))(rng_key, values, model)


def test_schedule_is_found_under_jit_and_vmap(rng_key):
    """Verification is eager: parameters that are traced cannot stop or change it."""

    def sweep(key, weights, values):
        model = pgm.BoltzmannMachine(weights=weights)
        return pgm.gibbs_kernel(pgm.blocks(model))(key, values, model)[0]["v"]

    weights = jnp.stack([zoo.machine(4, seed=s).weights for s in range(2)])
    keys = jax.random.split(rng_key, 2)
    values = {"v": jnp.zeros((2, 4), jnp.int8)}
    found = jax.jit(jax.vmap(sweep))(keys, weights, values)
    for i in range(2):
        one = sweep(keys[i], weights[i], {"v": values["v"][i]})
        np.testing.assert_array_equal(found[i], one)


def test_clamped_chains_keep_their_values_and_sample_the_rest(rng_key):
    model = zoo.machine(5, pgm.Spin)
    row = np.array([1.0, np.nan, -1.0, np.nan, np.nan])
    conditioned = pgm.condition(model, v=row)
    samples = one_draw_per_chain(conditioned, 40, 20_000, rng_key)
    v = np.asarray(samples["v"])
    assert (v[:, [0, 2]] == [1, -1]).all()
    states = oracles.all_states(model)
    match = (states["v"][:, [0, 2]] == [1, -1]).all(axis=1)
    kept, probabilities, _ = oracles.law(model, oracles.rows(states, match))
    assert oracles.frequencies_p_value(samples, kept, probabilities) > oracles.ALPHA
    _, wrong, _ = oracles.law(zoo.machine(5, pgm.Spin, seed=3), kept)
    assert oracles.frequencies_p_value(samples, kept, wrong) < oracles.ALPHA


@pytest.mark.parametrize("coupled", [False, True], ids=["found", "declared"])
def test_coupled_real_units_are_drawn_as_one_normal(coupled, rng_key):
    @pgm.struct
    class Normal(pgm.EnergyModel):
        precision: jax.Array
        shift: jax.Array
        declared: bool = pgm.static()

        @property
        def sites(self):
            return {"x": pgm.Real(3, coupled=self.declared)}

        def energy(self, x):
            return 0.5 * (x - self.shift) @ self.precision @ (x - self.shift)

    rng = np.random.default_rng(0)
    factor = rng.normal(size=(3, 3))
    precision, shift = factor @ factor.T + 0.5 * np.eye(3), np.array([1.0, -2.0, 5.0])
    model = Normal(precision=precision, shift=shift, declared=coupled)
    schedule = pgm.blocks(model)
    assert [step.describe() for step in schedule.steps] == ["one multivariate normal"]
    kernel = pgm.gibbs_kernel(schedule)
    keys = jax.random.split(rng_key, 10_000)
    x = jax.jit(jax.vmap(lambda k: kernel(k, {"x": jnp.zeros(3)}, model)[0]["x"]))(keys)
    white = (np.asarray(x, float) - shift) @ np.linalg.cholesky(precision)
    assert stats.kstest((white**2).sum(axis=1), stats.chi2(3).cdf).pvalue > oracles.ALPHA
    assert stats.kstest(white.ravel(), stats.norm.cdf).pvalue > oracles.ALPHA
    assert np.abs(np.corrcoef(white.T) - np.eye(3)).max() < 5 / np.sqrt(len(keys))
    independent = (np.asarray(x, float) - shift) * np.sqrt(np.diag(precision))
    assert stats.kstest(independent.ravel(), stats.norm.cdf).pvalue < oracles.ALPHA
