"""condition, marginalize, temper, relax, binarize: each against sums written out."""

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import zoo
from jax import Array
from scipy import integrate
from scipy.special import logsumexp

import pgm_energy as pgm

DISCRETE = ["binary", "spin", "categorical"]
DISCRETE_PAIRS = [(v, h) for v, h in zoo.PAIRS if "real" not in (v, h)]


def quiet(function, *args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return function(*args)


# ---- condition -------------------------------------------------------------------------------


@pytest.mark.parametrize(("visible", "hidden"), DISCRETE_PAIRS)
def test_condition_on_a_whole_site_is_the_slice_of_the_law(visible, hidden):
    model = zoo.rbm(visible, hidden)
    values, probabilities, _ = oracles.law(model)
    given = np.asarray(values["v"][len(probabilities) // 3])
    conditioned = pgm.condition(model, v=given)
    assert list(conditioned.sites) == ["h"]
    assert conditioned.data_sites == ()
    match = (values["v"] == given).all(axis=1)
    states, found, log_z = oracles.law(conditioned)
    np.testing.assert_array_equal(states["h"], values["h"][match])
    np.testing.assert_allclose(found, probabilities[match] / probabilities[match].sum(), rtol=1e-4)
    energies = oracles.energies(model, oracles.rows(values, match))
    assert log_z == pytest.approx(logsumexp(-energies), abs=1e-4)


def masked_states(model, name, given):
    """States that agree with the given entries, NaN meaning free."""
    values = oracles.all_states(model)
    given = np.asarray(given, float)
    agree = np.isnan(given) | (values[name] == np.nan_to_num(given))
    return oracles.rows(values, agree.reshape(len(agree), -1).all(axis=1))


@pytest.mark.x64
@pytest.mark.parametrize("family", DISCRETE)
@pytest.mark.parametrize("pattern", [[0], [1, 2], [0, 1, 2], [2]], ids=str)
def test_nan_entries_stay_free(family, pattern):
    model = zoo.rbm(family, "binary")
    given = np.array(
        {"binary": [1, 0, 1], "spin": [1, -1, 1], "categorical": [2, 0, 1]}[family], float
    )
    given[pattern] = np.nan
    conditioned = pgm.condition(model, v=given)
    assert list(conditioned.sites) == ["v", "h"]
    mask = np.isnan(given)
    free = conditioned.free_units("v")
    np.testing.assert_array_equal(np.ones(3, bool) if free is None else free, mask)
    states = masked_states(model, "v", given)
    energies = oracles.energies(model, states)
    log_z = logsumexp(-energies)
    # over all states of the masked site, clamped units pinned: the same log Z, the same law
    total = oracles.law(conditioned)[2]
    assert total == pytest.approx(log_z, abs=1e-9)
    _, same, _ = oracles.law(conditioned, states)
    np.testing.assert_allclose(same, np.exp(-energies - log_z), atol=1e-12)
    np.testing.assert_allclose(
        conditioned.log_density({k: jnp.asarray(v) for k, v in states.items()}),
        -energies,
        atol=1e-9,
    )
    kernel = pgm.gibbs_kernel(pgm.blocks(conditioned))
    matrix = oracles.transition_matrix(kernel, conditioned, states)
    assert max(oracles.invariance_error(matrix, same)) < 1e-10


@pytest.mark.x64
@pytest.mark.parametrize("unit", [pgm.Binary, pgm.Spin])
def test_every_pattern_of_a_coupled_site_is_sampled_exactly(unit):
    """What is found out for one pattern must not be used for another where it is wrong."""
    model = zoo.machine(4, unit)
    for free in ([0], [0, 1], [1, 2, 3], [0, 3]):
        given = np.array([1.0, 1.0, -1.0 if unit is pgm.Spin else 0.0, 1.0])
        given[free] = np.nan
        conditioned = pgm.condition(model, v=given)
        states = masked_states(model, "v", given)
        _, probabilities, _ = oracles.law(model, states)
        kernel = pgm.gibbs_kernel(pgm.blocks(conditioned))
        matrix = oracles.transition_matrix(kernel, conditioned, states)
        assert max(oracles.invariance_error(matrix, probabilities)) < 1e-10


@pgm.struct
class Switched(pgm.EnergyModel):
    """Units of ``x`` interact only where ``h`` is on, multiplied or compared."""

    coupling: Array
    compared: bool = pgm.static()

    @property
    def sites(self):
        return {"x": pgm.Binary(3), "h": pgm.Binary(1)}

    def energy(self, x, h):
        pairs = -self.coupling * (x[0] * x[1] + x[1] * x[2])
        return jnp.where(h[0] == 1, pairs, 0.0) if self.compared else h[0] * pairs


@pytest.mark.x64
@pytest.mark.parametrize("compared", [False, True])
@pytest.mark.parametrize("traced", [False, True])
def test_every_given_value_is_sampled_exactly(compared, traced):
    """The structure given one value of a site is not that given another."""
    model = Switched(coupling=2.0, compared=compared)
    for value in (0, 1, 0):
        states, probabilities, _ = oracles.law(pgm.condition(model, h=np.array([value])))

        def matrix(h, states=states):
            conditioned = pgm.condition(model, h=h)
            kernel = pgm.gibbs_kernel(quiet(pgm.blocks, conditioned))
            x = jnp.asarray(states["x"])

            def row(old):
                return jax.vmap(
                    lambda new: kernel.transition_log_prob({"x": old}, {"x": new}, conditioned)
                )(x)

            return jnp.exp(jax.vmap(row)(x))

        found = (jax.jit(matrix) if traced else matrix)(jnp.array([value]))
        assert max(oracles.invariance_error(np.asarray(found), probabilities)) < 1e-10


@pytest.mark.x64
def test_rows_with_different_patterns_are_mapped():
    model = zoo.machine(4, pgm.Spin)
    rows = np.array([[1, np.nan, -1, np.nan], [np.nan, np.nan, np.nan, 1], [1, 1, 1, -1.0]])
    masks = np.isnan(rows)
    schedule = pgm.blocks(
        pgm.condition(model, free={"v": masks[0]}, v=np.nan_to_num(rows[0], nan=1))
    )
    kernel = pgm.gibbs_kernel(schedule)

    def clamped(row, mask):
        return pgm.condition(model, free={"v": mask}, v=row)

    @jax.jit
    @jax.vmap
    def log_density(row, mask, values):
        return clamped(row, mask).log_density({"v": values})

    @jax.jit
    @jax.vmap
    def sweep(key, row, mask, values):
        new, info = kernel(key, {"v": values}, clamped(row, mask))
        return new["v"], info.energy

    filled = jnp.asarray(np.nan_to_num(rows, nan=1.0))
    found = log_density(filled, jnp.asarray(masks), filled.astype(jnp.int8))
    expected = -oracles.energies(model, {"v": np.nan_to_num(rows, nan=1.0)})
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    num = 4000
    keys = jax.random.split(jax.random.key(1), (num, 3))
    start = jnp.broadcast_to(filled.astype(jnp.int8), (num, 3, 4))
    new = start
    run = jax.jit(jax.vmap(sweep, in_axes=(0, None, None, 0)))
    for step in range(12):
        keys = jax.vmap(jax.vmap(lambda k, s=step: jax.random.fold_in(k, s)))(keys)
        new, energy = run(keys, filled, jnp.asarray(masks), new)
    new = np.asarray(new)
    np.testing.assert_allclose(
        energy[0], oracles.energies(model, {"v": new[0]}), rtol=1e-9, atol=1e-9
    )
    for i, row in enumerate(rows):
        kept = ~masks[i]
        np.testing.assert_array_equal(new[:, i][:, kept], np.tile(row[kept], (num, 1)))
        states = masked_states(model, "v", row)
        _, probabilities, _ = oracles.law(model, states)
        if masks[i].any():
            p_value = oracles.frequencies_p_value({"v": new[:, i]}, states, probabilities)
            assert p_value > oracles.ALPHA
            flat = np.full(len(probabilities), 1 / len(probabilities))
            assert oracles.frequencies_p_value({"v": new[:, i]}, states, flat) < oracles.ALPHA


@pytest.mark.x64
@pytest.mark.parametrize("visible", [*DISCRETE, "real"])
def test_marginal_of_a_condition_in_part_is_the_explicit_sum(visible):
    """Free energies of rows with holes, at raw and at inner points, with their gradients."""
    model = zoo.rbm(visible, "spin")
    fill = {"binary": [1, 0, 1], "spin": [1, -1, 1], "categorical": [2, 0, 1], "real": [0.5, -1, 2]}
    given = np.array(fill[visible], float)
    given[1] = np.nan
    conditioned = pgm.condition(model, v=given)
    marginal = pgm.marginalize(conditioned, "h")
    hidden = [[-1, -1], [-1, 1], [1, -1], [1, 1]]

    def explicit(v):
        return -jax.nn.logsumexp(
            jnp.stack([-conditioned.energy(v=v, h=jnp.asarray(h, float)) for h in hidden])
        )

    rng = np.random.default_rng(0)
    for _ in range(3):
        v = jnp.asarray(rng.uniform(0.1, 0.9, model.sites["v"].encoded_shape))
        if visible == "real":
            np.testing.assert_allclose(marginal.energy(v=v), explicit(v), rtol=1e-10)
            ours, exact = jax.grad(lambda x: marginal.energy(v=x))(v), jax.grad(explicit)(v)
            np.testing.assert_allclose(ours, exact, rtol=1e-9, atol=1e-10)
        else:  # inside the hull the sum over h is the same; clamped units are held
            np.testing.assert_allclose(marginal.energy(v=v), explicit(v), rtol=1e-10)
    for state in zoo.random_values(model, num=4)["v"]:
        v = jnp.asarray(oracles.encode(model.sites["v"], state))
        np.testing.assert_allclose(marginal.energy(v=v), explicit(v), rtol=1e-10)


def test_free_energy_of_many_clamped_units_keeps_its_digits():
    """The pins of clamped units are large and cancel: not at the cost of the energy's digits."""
    rng = np.random.default_rng(0)
    model = pgm.RBM(weights=jnp.asarray(rng.normal(scale=0.05, size=(400, 8)), jnp.float32))
    row = rng.integers(0, 2, 400).astype(float)
    row[:3] = np.nan
    conditioned = pgm.condition(model, v=row)
    fields = np.nan_to_num(row) @ np.asarray(model.weights, float)
    total = []
    for bits in np.ndindex(2, 2, 2):
        field = fields + np.array(bits) @ np.asarray(model.weights, float)[:3]
        total.append(np.logaddexp(0, field).sum())
    exact = logsumexp(total)
    over_hidden = pgm.marginalize(conditioned, "h")
    raw = np.nan_to_num(row).astype(np.int8)
    assert float(over_hidden.log_density({"v": raw})) == pytest.approx(total[0], abs=1e-4)
    # sum the visible units out: what is left is summed over the hidden ones here
    over_visible = pgm.marginalize(conditioned, "v")
    hidden = np.array(list(np.ndindex(*(2,) * 8)), np.int8)
    log_z = logsumexp(np.asarray(over_visible.log_density({"h": hidden}), float))
    assert log_z == pytest.approx(exact, abs=1e-4)
    values = {"v": jnp.asarray(raw), "h": jnp.zeros(8, jnp.int8)}
    for order in (["v", "h"], ["h", "v"]):
        kernel = pgm.gibbs_kernel(pgm.blocks(conditioned, order))
        new, info = jax.jit(kernel)(jax.random.key(0), values, conditioned)
        assert float(info.energy) == pytest.approx(-float(model.log_density(new)), abs=1e-4)


def test_gaps_of_a_real_site_under_the_kernel_and_decode(rng_key):
    model = zoo.rbm("real", "binary")
    conditioned = pgm.condition(model, v=np.array([0.5, np.nan, -2.0]))
    kernel = pgm.gibbs_kernel(pgm.blocks(conditioned))
    start = {"v": jnp.zeros(3), "h": jnp.zeros(2, jnp.int8)}
    new, _ = jax.jit(kernel)(rng_key, start, conditioned)
    np.testing.assert_allclose(np.asarray(new["v"])[[0, 2]], [0.5, -2.0])
    moved = {"v": jnp.full((4, 3), 9.0), "h": jnp.zeros((4, 2), jnp.int8)}
    decoded = conditioned.decode(rng_key, moved)
    np.testing.assert_allclose(decoded["v"], np.tile([0.5, 9.0, -2.0], (4, 1)))


@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
def test_decode_puts_given_values_back_with_any_leading_shape(lead, rng_key):
    model = zoo.mixed()
    conditioned = pgm.condition(model, z=np.array(2), b=np.array([1.0, np.nan]))
    assert list(conditioned.sites) == ["b", "x"]
    samples = zoo.random_values(conditioned, num=lead)
    decoded = conditioned.decode(rng_key, samples)
    assert list(decoded) == ["b", "z", "x"]
    assert decoded["z"].shape == lead
    assert decoded["b"].shape == (*lead, 2)
    assert (np.asarray(decoded["z"]) == 2).all()
    assert (np.asarray(decoded["b"])[..., 0] == 1).all()
    np.testing.assert_array_equal(
        np.asarray(decoded["b"])[..., 1], np.asarray(samples["b"])[..., 1]
    )
    assert [decoded[k].dtype for k in ("b", "z", "x")] == [jnp.int8, jnp.int32, jnp.float32]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"w": 1}, "RBM has no site 'w'; its sites are 'v', 'h'"),
        ({"v": np.zeros(4)}, r"site 'v' has shape \(3,\), got values of shape \(4,\)"),
        ({"v": np.zeros((5, 3))}, r"got values of shape \(5, 3\); map over rows with jax.vmap"),
        ({"v": np.array([0, 0.5, 1])}, r"takes 0 and 1, got 0\.5"),
        ({"v": np.array([0, 3, np.nan])}, r"takes 0 and 1, got 3\.0"),
        ({"free": {"v": np.ones(3, bool)}}, "says which units stay free; give v=values"),
        ({"free": {"w": np.ones(3, bool)}, "v": np.zeros(3)}, "no site 'w'"),
        (
            {"free": {"v": np.ones(2, bool)}, "v": np.zeros(3)},
            r"free\['v'\] must have shape \(3,\)",
        ),
        ({"v": np.zeros(3), "h": np.zeros(2)}, "nothing stays free"),
    ],
)
def test_wrong_conditions_are_told(arguments, message):
    with pytest.raises(ValueError, match=message):
        pgm.condition(zoo.rbm(), **arguments)


def test_nothing_given_is_the_model_and_full_masks_are_whole_sites():
    model = zoo.rbm()
    assert pgm.condition(model) is model
    whole = pgm.condition(model, free={"v": np.zeros(3, bool)}, v=np.array([1, 0, 1]))
    assert list(whole.sites) == ["h"]


# ---- marginalize -----------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["v", "h"])
@pytest.mark.parametrize(("visible", "hidden"), DISCRETE_PAIRS)
def test_free_energy_is_the_explicit_sum(visible, hidden, site):
    model = zoo.rbm(visible, hidden)
    marginal = pgm.marginalize(model, site)
    kept = next(name for name in model.sites if name != site)
    assert list(marginal.sites) == [kept]
    states, probabilities, log_z = oracles.law(model)
    energies = oracles.energies(model, states)
    for value in np.unique(states[kept], axis=0):
        match = (states[kept] == value).all(axis=1)
        expected = logsumexp(-energies[match])
        scale = max(1.0, abs(expected))
        found = float(marginal.log_density({kept: value}))
        assert found / scale == pytest.approx(expected / scale, abs=1e-5)
    assert oracles.law(marginal)[2] == pytest.approx(log_z, abs=1e-4)
    some = {kept: states[kept][0]}
    match = (states[kept] == states[kept][0]).all(axis=1)
    weights = probabilities[match] / probabilities[match].sum()
    encoded = oracles.encode(model.sites[site], states[site][match])
    mean = np.tensordot(weights, encoded, axes=1)
    np.testing.assert_allclose(marginal.conditional_mean(some), mean, rtol=1e-4, atol=1e-5)


@pytest.mark.x64
@pytest.mark.parametrize("other", [*DISCRETE, "real"])
def test_a_real_site_is_integrated_out(other):
    model = zoo.rbm("real", other, sizes=(1, 2))
    marginal = pgm.marginalize(model, "v")
    for i in range(3):
        h = zoo.random_values(marginal, seed=i)["h"]
        encoded = jnp.asarray(oracles.encode(model.sites["h"], h))
        density = jax.jit(lambda x, e=encoded: jnp.exp(-model.energy(v=x[None], h=e)))
        total = integrate.quad(lambda x, density=density: float(density(x)), -30, 30, epsabs=1e-12)[
            0
        ]
        assert float(marginal.energy(h=encoded)) == pytest.approx(-math.log(total), abs=1e-7)


@pytest.mark.x64
def test_coupled_real_units_are_integrated_out_as_one_normal():
    @pgm.struct
    class Field(pgm.EnergyModel):
        precision: Array
        weights: Array

        @property
        def sites(self):
            return {"b": pgm.Binary(2), "x": pgm.Real(2)}

        def energy(self, b, x):
            return 0.5 * x @ self.precision @ x - b @ self.weights @ x

    model = Field(
        precision=np.array([[1.5, 0.4], [0.4, 0.8]]), weights=np.array([[1, -0.5], [0.3, 2]])
    )
    marginal = pgm.marginalize(model, "x")
    axis = np.linspace(-14, 20, 171)  # a sum over a grid: exact for a function this smooth
    points = jnp.asarray(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2))
    for b in ([0.0, 0.0], [1.0, 1.0]):
        b = jnp.asarray(b)
        energies = jax.vmap(lambda x, b=b: model.energy(b=b, x=x))(points)
        total = logsumexp(-np.asarray(energies)) + 2 * math.log(axis[1] - axis[0])
        assert float(marginal.energy(b=b)) == pytest.approx(-total, abs=1e-9)
    oracles.assert_invariant(marginal, quiet(pgm.blocks, marginal), tolerance=1e-9)


@pytest.mark.x64
def test_marginal_is_sampled_exactly_by_differences():
    marginal = pgm.marginalize(zoo.rbm("spin", "categorical"), "h")
    with pytest.warns(UserWarning, match="by energy differences"):
        schedule = pgm.blocks(marginal)
    oracles.assert_invariant(marginal, schedule, tolerance=1e-10)


@pgm.struct
class Chain(pgm.EnergyModel):
    weights: Array

    @property
    def sites(self):
        return {"a": pgm.Spin(2), "b": pgm.Categorical(2, 2), "c": pgm.Binary(2)}

    def energy(self, a, b, c):
        one = b[:, 1]
        return -a @ self.weights @ one - one @ self.weights @ c - self.weights[0] @ (a + c + one)


def test_marginals_of_marginals_are_sums_of_sums():
    model = Chain(weights=np.array([[1.0, -0.7], [0.4, 0.9]]))
    twice = pgm.marginalize(pgm.marginalize(model, "a"), "c")
    assert list(twice.sites) == ["b"]
    states, probabilities, log_z = oracles.law(model)
    left, found, total = oracles.law(twice)
    assert total == pytest.approx(log_z, abs=1e-5)
    expected = [probabilities[(states["b"] == b).all(axis=1)].sum() for b in left["b"]]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_condition_and_sum_commute():
    model = zoo.mixed()
    values = zoo.random_values(model)
    first = pgm.condition(pgm.marginalize(model, "z"), x=np.asarray(values["x"]))
    second = pgm.marginalize(pgm.condition(model, x=np.asarray(values["x"])), "z")
    b = {"b": values["b"]}
    assert float(first.log_density(b)) == pytest.approx(float(second.log_density(b)), abs=1e-4)


@pytest.mark.parametrize(
    ("model", "site", "message"),
    [
        (
            zoo.machine(num_hidden=2),
            "v",
            r"site 'v' of BoltzmannMachine .*: v\[0\] and v\[1\] interact",
        ),
        (zoo.rbm(), "w", "RBM has no site 'w'"),
        (zoo.machine(), "v", r"the only site: its sum is log_partition\(model\)"),
        (zoo.mixed(affine=False), "z", r"site 'z' of Mixed .*not affine in z"),
    ],
)
def test_wrong_sums_are_told(model, site, message):
    with pytest.raises(ValueError, match=message):
        pgm.marginalize(model, site)


@pytest.mark.parametrize("lead", [(), (2, 3)])
def test_decode_draws_the_summed_site(lead, rng_key):
    model = zoo.rbm("categorical", "spin")
    marginal = pgm.marginalize(model, "h")
    samples = zoo.random_values(marginal, num=lead)
    decoded = marginal.decode(rng_key, samples)
    assert decoded["h"].shape == (*lead, 2)
    assert decoded["h"].dtype == jnp.int8
    np.testing.assert_array_equal(decoded["v"], samples["v"])


def test_decode_follows_the_joint_law(rng_key):
    model = zoo.rbm("categorical", "spin", sizes=(2, 2))
    marginal = pgm.marginalize(model, "h")
    states, probabilities, _ = oracles.law(marginal)
    rng = np.random.default_rng(0)
    draws = oracles.exact_draws(rng, states, probabilities, 20_000)
    decoded = marginal.decode(rng_key, {k: jnp.asarray(v) for k, v in draws.items()})
    joint, exact, _ = oracles.law(model)
    assert oracles.frequencies_p_value(decoded, joint, exact) > oracles.ALPHA
    shuffled = {**decoded, "h": np.asarray(decoded["h"])[rng.permutation(20_000)]}
    assert oracles.frequencies_p_value(shuffled, joint, exact) < oracles.ALPHA


# ---- temper ----------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("family", [*DISCRETE, "real"])
def test_path_is_the_mixture_of_energies(family, beta):
    base, target = zoo.rbm(family, "spin", seed=1), zoo.rbm(family, "spin", seed=2)
    path = pgm.temper(base, target, beta)
    values = zoo.random_values(target, num=5)
    expected = (1 - beta) * base.log_density(values) + beta * target.log_density(values)
    np.testing.assert_allclose(path.log_density(values), expected, rtol=1e-5)
    one = {k: v[0] for k, v in values.items()}
    for name in path.sites:
        law = path.conditional(name, one)
        ends = [m.natural_parameters(name, one) for m in (base, target)]
        eta = (1 - beta) * ends[0].eta + beta * ends[1].eta
        precision = None
        if ends[0].precision is not None:
            precision = (1 - beta) * ends[0].precision + beta * ends[1].precision
        exact = path.sites[name].log_prob(one[name], eta, precision)
        np.testing.assert_allclose(law.log_prob(one[name]), exact, rtol=1e-4)


@pytest.mark.x64
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_path_is_sampled_exactly_where_only_one_end_couples(beta):
    target = zoo.machine(5, pgm.Spin)
    base = pgm.BoltzmannMachine(weights=jnp.zeros((5, 5)), bias=jnp.ones(5), unit=pgm.Spin)
    oracles.assert_invariant(pgm.temper(base, target, beta), tolerance=1e-10)


def test_a_ladder_is_mapped():
    base, target = zoo.rbm(seed=1), zoo.rbm(seed=2)
    values = zoo.random_values(target)
    betas = jnp.array([0.0, 0.5, 1.0])
    found = jax.vmap(lambda b: pgm.temper(base, target, b).log_density(values))(betas)
    ends = float(base.log_density(values)), float(target.log_density(values))
    np.testing.assert_allclose(found, [ends[0], sum(ends) / 2, ends[1]], rtol=1e-5)


@pytest.mark.x64
def test_path_between_conditions_is_sampled_exactly():
    """Data that both ends hold are probed as open, with more sites than the path has."""
    base, target = Switched(coupling=0.5, compared=False), Switched(coupling=2.0, compared=True)
    for value in (0, 1):
        path = pgm.temper(
            pgm.condition(base, h=np.array([1])), pgm.condition(target, h=np.array([value])), 0.7
        )
        assert list(path.sites) == ["x"]
        oracles.assert_invariant(path, quiet(pgm.blocks, path), tolerance=1e-10)


@pytest.mark.parametrize(
    ("base", "beta", "message"),
    [
        (zoo.rbm(sizes=(2, 2)), 0.5, "must have the same sites, got RBM with 'v'"),
        (zoo.rbm("spin"), 0.5, "must have the same sites"),
        (zoo.rbm(), 1.5, r"beta must lie in \[0, 1\], got 1.5"),
        (zoo.rbm(), -0.1, r"beta must lie in \[0, 1\], got -0.1"),
        (zoo.rbm(), np.nan, r"beta must lie in \[0, 1\], got nan"),
    ],
)
def test_wrong_paths_are_told(base, beta, message):
    with pytest.raises(ValueError, match=message):
        pgm.temper(base, zoo.rbm(), beta)


# ---- relax -----------------------------------------------------------------------------------


@pgm.struct
class TwoKinds(pgm.EnergyModel):
    weights: Array
    field: Array
    constant: Array

    @property
    def sites(self):
        return {"b": pgm.Binary(2), "s": pgm.Spin(1)}

    def energy(self, b, s):
        x = jnp.concatenate([b, s])
        squares = 0.3 * jnp.sum(x**2)  # linear for binary units, a constant for spins
        return self.constant + squares - 0.5 * x @ self.weights @ x - self.field @ x


def two_kinds(scale=1.0):
    rng = np.random.default_rng(2)
    weights = scale * rng.normal(size=(3, 3))
    return TwoKinds(weights=weights + weights.T, field=rng.normal(size=3), constant=1.7)


TWINS = {
    "machine-binary": lambda: zoo.machine(3),
    "machine-spin": lambda: zoo.machine(3, pgm.Spin),
    "two-kinds": two_kinds,
    "rbm-binary-spin": lambda: zoo.rbm("binary", "spin", (2, 1)),
    "uncoupled": lambda: two_kinds(0.0),
    "lattice-of-one-coupling": lambda: pgm.BoltzmannMachine(
        weights=2.0 * (jnp.ones((3, 3)) - jnp.eye(3)), unit=pgm.Spin
    ),
}


def grid(twin, num=81, half_width=9.0):
    """Points and log-densities of a twin on a lattice around the origin; exact to 1e-12 for
    densities this smooth."""
    m = twin.sites["y"].size
    # centred where the mass is: the mean of y lies in the hull of the loadings' images
    loadings = np.abs(np.asarray(twin.loadings, float)).sum(axis=0)
    axes = [np.linspace(-half_width - a, half_width + a, num) for a in loadings]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, m)
    log_density = np.asarray(jax.jit(jax.vmap(lambda y: -twin.energy(y=y)))(jnp.asarray(points)))
    volume = math.prod(axis[1] - axis[0] for axis in axes)
    return points, log_density + math.log(volume)


SHIFTED = [(name, "uniform") for name in TWINS]
SHIFTED += [("two-kinds", "per_unit"), ("two-kinds", "per_site"), ("machine-spin", "per_unit")]
SHIFTED += [("rbm-binary-spin", "per_site"), ("uncoupled", "per_unit")]


@pytest.mark.x64
@pytest.mark.parametrize(
    ("name", "shift"), SHIFTED, ids=[f"{name}-{shift}" for name, shift in SHIFTED]
)
def test_twin_has_the_same_log_z_and_the_same_law(name, shift):
    model = TWINS[name]()
    twin = pgm.relax(model, shift=shift)
    states, probabilities, log_z = oracles.law(model)
    points, log_weights = grid(twin)
    assert logsumexp(log_weights) == pytest.approx(log_z, abs=1e-6)
    # x given y factorises: averaged over y it is the law of x
    weights = np.exp(log_weights - logsumexp(log_weights))
    eta = points @ np.asarray(twin.loadings, float).T + np.asarray(twin.bias, float)
    log_given = np.zeros((len(points), len(probabilities)))
    start = 0
    for site_name, site in model.sites.items():
        x = np.asarray(states[site_name], float).reshape(len(probabilities), -1)
        part = eta[:, start : start + site.size]
        normalizer = (
            np.logaddexp(part, -part) if isinstance(site, pgm.Spin) else np.logaddexp(0, part)
        )
        log_given += part @ x.T - normalizer.sum(axis=1, keepdims=True)
        start += site.size
    np.testing.assert_allclose(weights @ np.exp(log_given), probabilities, atol=1e-6)


def test_decode_of_exact_draws_of_the_twin_follows_the_law(rng_key):
    model = zoo.machine(3, pgm.Spin)
    twin = pgm.relax(model)
    states, probabilities, _ = oracles.law(model)
    rng = np.random.default_rng(1)
    num = 20_000
    x = oracles.exact_draws(rng, states, probabilities, num)["v"]
    # y given x ~ N(L'x, I)
    y = x @ np.asarray(twin.loadings) + rng.normal(size=(num, twin.sites["y"].size))
    decoded = twin.decode(rng_key, {"y": jnp.asarray(y, jnp.float32)})
    assert decoded["v"].dtype == jnp.int8
    assert oracles.frequencies_p_value(decoded, states, probabilities) > oracles.ALPHA
    noise = twin.decode(rng_key, {"y": jnp.asarray(rng.normal(size=y.shape), jnp.float32)})
    assert oracles.frequencies_p_value(noise, states, probabilities) < oracles.ALPHA
    lead = twin.decode(rng_key, {"y": jnp.asarray(y[:6].reshape(2, 3, -1), jnp.float32)})
    assert lead["v"].shape == (2, 3, 3)


@pytest.mark.x64
def test_twin_of_a_condition_in_part_puts_the_given_values_back(rng_key):
    model = zoo.machine(3)
    conditioned = pgm.condition(model, v=np.array([1.0, np.nan, np.nan]))
    twin = pgm.relax(conditioned)
    states = masked_states(model, "v", [1.0, np.nan, np.nan])
    log_z = logsumexp(-oracles.energies(model, states))
    assert logsumexp(grid(twin)[1]) == pytest.approx(log_z, abs=1e-6)
    decoded = twin.decode(rng_key, {"y": jnp.zeros((50, twin.sites["y"].size))})
    assert (np.asarray(decoded["v"])[:, 0] == 1).all()
    assert len(np.unique(np.asarray(decoded["v"])[:, 1:], axis=0)) > 1


def test_energy_of_a_twin_with_many_clamped_units_keeps_its_digits():
    rng = np.random.default_rng(0)
    model = pgm.RBM(weights=jnp.asarray(rng.normal(scale=0.05, size=(300, 4)), jnp.float32))
    row = rng.integers(0, 2, 300).astype(float)
    row[:2] = np.nan
    twin = pgm.relax(pgm.condition(model, v=row))
    y = jnp.asarray(rng.normal(size=(8, twin.sites["y"].size)), jnp.float32)
    single = np.asarray(twin.log_density({"y": y}), float)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), twin)
        exact = np.array(
            [-float(wide.energy(y=jnp.asarray(np.asarray(p), jnp.float64))) for p in y]
        )
    np.testing.assert_allclose(single - single[0], exact - exact[0], atol=5e-3)


@pytest.mark.parametrize("family", ["categorical", "real"])
def test_other_families_have_no_twin(family):
    message = rf"relax needs binary or spin sites, site 'v' is {family}: sum it out first"
    with pytest.raises(ValueError, match=message):
        pgm.relax(zoo.rbm(family, "binary"))


@pytest.mark.parametrize(
    "energy",
    [
        pytest.param(lambda w, x: -w * x[0] * x[1] * x[2], id="cubic"),
        pytest.param(lambda w, x: -w * (x[0] == x[1]).astype(x.dtype), id="equal"),
        pytest.param(lambda w, x: -w * jnp.abs(x[0] + x[1] - x[2]), id="abs"),
        pytest.param(lambda w, x: -w * jax.lax.stop_gradient(x[0]) * x[1], id="stop-gradient"),
        pytest.param(lambda w, x: -w * jnp.where(x[0] > 0, x[1], x[2]), id="where"),
    ],
)
def test_energies_that_are_not_pairwise_have_no_twin(energy):
    @pgm.struct
    class Other(pgm.EnergyModel):
        w: Array

        @property
        def sites(self):
            return {"x": pgm.Spin(3)}

        def energy(self, x):
            return energy(self.w, x)

    for value in (0.7, 0.0):  # also where the parameter happens to be zero
        with pytest.raises(ValueError, match=r"energy of Other is not pairwise.*relative residual"):
            pgm.relax(Other(w=value))


def test_relax_of_traced_parameters_is_told():
    with pytest.raises(ValueError, match=r"concrete parameters: call it outside of jit"):
        jax.jit(lambda m: pgm.relax(m).bias)(zoo.rbm())


# ---- binarize --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["machine-spin", "two-kinds", "rbm-spin-categorical"])
def test_binarize_is_the_same_law(name, rng_key):
    model = {
        "machine-spin": lambda: zoo.machine(4, pgm.Spin),
        "two-kinds": two_kinds,
        "rbm-spin-categorical": lambda: zoo.rbm("spin", "categorical"),
    }[name]()
    binary = pgm.binarize(model)
    assert not any(isinstance(site, pgm.Spin) for site in binary.sites.values())
    states, probabilities, log_z = oracles.law(binary)
    spins, exact, expected = oracles.law(model)
    assert log_z == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(probabilities, exact, rtol=1e-4)  # in the same order
    decoded = binary.decode(rng_key, states)
    for site in model.sites:
        np.testing.assert_array_equal(decoded[site], spins[site])
        assert decoded[site].dtype == model.sites[site].dtype


@pytest.mark.x64
@pytest.mark.parametrize("lead", [(), (2, 3)])
def test_transformations_compose(lead, rng_key):
    model = zoo.rbm("spin", "spin", sizes=(3, 2))
    given = np.array([1.0, np.nan, np.nan])
    composed = pgm.binarize(
        pgm.temper(
            pgm.condition(zoo.rbm("spin", "spin", seed=9), v=given),
            pgm.condition(model, v=given),
            0.6,
        )
    )
    samples = zoo.random_values(composed, num=lead)
    decoded = composed.decode(rng_key, samples)
    assert decoded["v"].shape == (*lead, 3)
    assert (np.asarray(decoded["v"])[..., 0] == 1).all()
    assert np.isin(np.asarray(decoded["v"]), [-1, 1]).all()
    states = masked_states(model, "v", given)
    free = {k: (np.asarray(v) + 1) // 2 for k, v in states.items()}
    mixture = 0.4 * oracles.energies(zoo.rbm("spin", "spin", seed=9), states)
    mixture = mixture + 0.6 * oracles.energies(model, states)
    np.testing.assert_allclose(oracles.energies(composed, free), mixture, atol=1e-9)
    kernel = pgm.gibbs_kernel(pgm.blocks(composed))
    matrix = oracles.transition_matrix(kernel, composed, free)
    exact = np.exp(-mixture - logsumexp(-mixture))
    assert max(oracles.invariance_error(matrix, exact)) < 1e-9
    new, _ = kernel(rng_key, zoo.random_values(composed, seed=4), composed)
    assert int(new["v"][0]) == 1


def test_transformations_of_something_else_are_told(annotations_unchecked):
    for transform in (pgm.condition, pgm.relax, pgm.binarize):
        with pytest.raises(TypeError, match="takes an energy model, got str"):
            transform("model")
    with pytest.raises(TypeError, match="takes an energy model, got dict"):
        pgm.marginalize({}, "h")
    with pytest.raises(TypeError, match="takes two energy models, got NoneType"):
        pgm.temper(None, zoo.rbm(), 0.5)


def test_project_reaches_the_inner_model():
    rbm = zoo.rbm("real", "binary")
    bad = jax.tree.map(lambda x: x, rbm)
    object.__setattr__(bad, "visible_precision", -jnp.ones(3))
    for outer in (pgm.condition(bad, h=np.zeros(2)), pgm.binarize(bad)):
        assert (np.asarray(outer.project().model.visible_precision) > 0).all()
