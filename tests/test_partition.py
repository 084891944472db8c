"""Exact enumeration, log Z and likelihoods, against sums written out in NumPy."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pgm_energy as pgm
from pgm_energy.enumeration import StateSpace, log_sum, summable
from pgm_energy.evaluation import without_latents
from pgm_energy.pseudo_likelihood import _route


def _random(seed, *shape, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _couplings(seed, count):
    upper = jnp.triu(_random(seed, count, count), 1)
    return upper + upper.T


def _rbm(seed=0, num_visible=5, num_hidden=4, **kwargs):
    return pgm.RBM(
        weights=_random(seed, num_visible, num_hidden),
        visible_bias=_random(seed + 1, num_visible),
        hidden_bias=_random(seed + 2, num_hidden),
        **kwargs,
    )


def _brute(energy, states):
    """log Z and probabilities of a list of states, in NumPy."""
    energies = np.array([energy(np.array(state, dtype=float)) for state in states])
    low = energies.min()
    weights = np.exp(low - energies)
    return np.log(weights.sum()) - low, weights / weights.sum()


# ---- exact ------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [pgm.Binary, pgm.Spin], ids=["binary", "spin"])
def test_exact_law_of_an_rbm_equals_the_sum_written_out(hidden):
    model = _rbm(hidden=hidden)
    weights, b, c = (
        np.asarray(x, float) for x in (model.weights, model.visible_bias, model.hidden_bias)
    )
    low = [0, 1] if hidden is pgm.Binary else [-1, 1]
    states = np.array(list(itertools.product(*[[0, 1]] * 5, *[low] * 4)))
    log_z, p = _brute(lambda x: -(x[:5] @ weights @ x[5:] + b @ x[:5] + c @ x[5:]), states)

    law = pgm.exact(model)

    assert law.log_partition == pytest.approx(log_z, abs=1e-12)
    np.testing.assert_allclose(law.probabilities, p, atol=1e-14)
    assert law.probabilities.sum() == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_array_equal(law.states["v"], states[:, :5])
    np.testing.assert_array_equal(law.states["h"], states[:, 5:])
    np.testing.assert_allclose(law.means["v"], p @ states[:, :5], atol=1e-13)
    np.testing.assert_allclose(law.means["h"], p @ states[:, 5:], atol=1e-13)
    np.testing.assert_allclose(law.marginals["h"][:, 1], p @ (states[:, 5:] == 1), atol=1e-13)
    products = np.einsum("s,si,sj->ij", p, states[:, :5], states[:, 5:])
    np.testing.assert_allclose(law.second_moments("v", "h"), products, atol=1e-13)
    agreement = law.expectation(lambda x: (x["v"][0] == 1) & (x["h"][1] == 1))
    assert agreement == pytest.approx(p @ ((states[:, 0] == 1) & (states[:, 6] == 1)), abs=1e-13)


def test_categorical_means_are_marginals_in_the_encoding():
    model = pgm.RBM(
        weights=_random(3, 2, 3, 2), visible_bias=_random(4, 2, 3), visible=pgm.Categorical
    )
    states = np.array(list(itertools.product([0, 1, 2], [0, 1, 2], [0, 1], [0, 1])))
    w, b = np.asarray(model.weights, float), np.asarray(model.visible_bias, float)

    def energy(x):
        i, j = int(x[0]), int(x[1])
        return -((w[0, i] + w[1, j]) @ x[2:] + b[0, i] + b[1, j])

    log_z, p = _brute(energy, states)
    law = pgm.exact(model)
    assert law.log_partition == pytest.approx(log_z, abs=1e-12)
    expected = np.stack([[p @ (states[:, i] == k) for k in range(3)] for i in range(2)])
    np.testing.assert_allclose(law.marginals["v"], expected, atol=1e-13)
    np.testing.assert_allclose(law.means["v"], expected, atol=1e-13)
    assert law.means["h"].shape == (2,)


@pytest.mark.parametrize("periodic", [True, False], ids=["torus", "open"])
@pytest.mark.parametrize("shape", [(3, 3), (4, 4)], ids=["3x3", "4x4"])
def test_ising_lattice_equals_loops_over_neighbours(shape, periodic):
    coupling, field = 0.3, 0.1
    model = pgm.ising_lattice(shape, coupling, field, periodic=periodic)
    rows, columns = shape

    def energy(x):
        x, total = x.reshape(shape), 0.0
        for i in range(rows):
            for j in range(columns):
                total -= field * x[i, j]
                for k, m in ((i + 1, j), (i, j + 1)):
                    if periodic or (k < rows and m < columns):
                        total -= coupling * x[i, j] * x[k % rows, m % columns]
        return total

    if rows * columns > 9:  # 2^16 states in NumPy: the same sum, all states at once
        bits = (np.arange(2**16)[:, None] >> np.arange(16)) & 1
        x = (2.0 * bits - 1.0).reshape(-1, *shape)
        right = x[:, :, 1:] * x[:, :, :-1]
        down = x[:, 1:] * x[:, :-1]
        bonds = right.sum((1, 2)) + down.sum((1, 2))
        if periodic:
            bonds += (x[:, :, 0] * x[:, :, -1]).sum(1) + (x[:, 0] * x[:, -1]).sum(1)
        log_z = np.log(np.exp(coupling * bonds + field * x.sum((1, 2))).sum())
    else:
        log_z, _ = _brute(energy, list(itertools.product([-1, 1], repeat=rows * columns)))
    assert pgm.exact(model).log_partition == pytest.approx(log_z, rel=1e-7)
    assert pgm.log_partition(model).estimate == pytest.approx(log_z, rel=1e-7)


def test_curie_weiss_equals_the_sum_over_the_magnetisation():
    count, coupling, field = 14, 0.09, 0.05
    weights = np.full((count, count), coupling, np.float32)
    np.fill_diagonal(weights, 0.0)
    model = pgm.BoltzmannMachine(
        weights=jnp.asarray(weights), bias=jnp.full(count, field), unit=pgm.Spin
    )
    j, f = float(np.float32(coupling)), float(np.float32(field))
    up = np.arange(count + 1)
    m = 2.0 * up - count
    weight = np.array([math.comb(count, int(k)) for k in up]) * np.exp(
        0.5 * j * (m**2 - count) + f * m
    )
    law = pgm.exact(model)
    assert law.log_partition == pytest.approx(np.log(weight.sum()), abs=1e-12)
    mean = (weight @ m) / weight.sum() / count
    np.testing.assert_allclose(law.means["v"], mean, atol=1e-12)
    square = (weight @ m**2) / weight.sum()
    assert law.second_moments("v", "v").sum() == pytest.approx(square, rel=1e-12)


def test_ring_equals_the_transfer_matrix():
    count, coupling, field = 11, 0.7, 0.2
    weights = np.zeros((count, count), np.float32)
    for i in range(count):
        weights[i, (i + 1) % count] = weights[(i + 1) % count, i] = coupling
    model = pgm.BoltzmannMachine(
        weights=jnp.asarray(weights), bias=jnp.full(count, field), unit=pgm.Spin
    )
    j, f = float(np.float32(coupling)), float(np.float32(field))
    s = np.array([-1.0, 1.0])
    transfer = np.exp(j * np.outer(s, s) + 0.5 * f * (s[:, None] + s))
    log_z = np.log(np.trace(np.linalg.matrix_power(transfer, count)))
    assert pgm.log_partition(model).estimate == pytest.approx(log_z, abs=1e-12)


def test_zero_couplings_know_log_two_per_unit():
    assert pgm.exact(_rbm()).num_states == 512
    flat = pgm.RBM(weights=jnp.zeros((7, 6)))
    assert pgm.exact(flat).log_partition == pytest.approx(13 * math.log(2.0), abs=1e-12)


def test_clamped_units_are_not_enumerated_and_stay_where_they_are():
    model = _rbm()
    given = np.array([1.0, 0.0, np.nan, np.nan, 1.0])
    conditioned = pgm.condition(model, v=given)
    law, whole = pgm.exact(conditioned), pgm.exact(model)
    match = (whole.states["v"][:, [0, 1, 4]] == [1, 0, 1]).all(axis=1)
    part = whole.probabilities[match]
    assert law.num_states == match.sum() == 64
    assert law.log_partition == pytest.approx(whole.log_partition + np.log(part.sum()), abs=1e-12)
    np.testing.assert_array_equal(law.states["v"], whole.states["v"][match])
    expected = part @ whole.states["v"][match] / part.sum()
    np.testing.assert_allclose(law.means["v"], expected, atol=1e-12)
    assert law.means["v"][[0, 1, 4]].tolist() == [1.0, 0.0, 1.0]
    assert pgm.log_partition(conditioned).estimate == pytest.approx(law.log_partition, abs=1e-12)


def test_draws_follow_the_law():
    law = pgm.exact(_rbm(num_visible=2, num_hidden=2))
    draws = law.sample(jax.random.key(1), 20_000)
    assert draws["v"].dtype == jnp.int8
    bits = np.concatenate([draws["v"], draws["h"]], axis=1)
    counts = np.bincount(bits @ [8, 4, 2, 1], minlength=16)
    from scipy import stats

    assert stats.chisquare(counts, 20_000 * law.probabilities).pvalue > 1e-6
    # positive control: the law of another model
    other = pgm.exact(_rbm(seed=9, num_visible=2, num_hidden=2)).probabilities
    assert stats.chisquare(counts, 20_000 * other).pvalue < 1e-6


# ---- real sites -------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_gaussian_bernoulli_rbm_equals_quadrature(count):
    precision = np.array([0.7, 2.0], np.float32)[:count]
    model = pgm.RBM(
        weights=_random(5, count, 3),
        visible_bias=_random(6, count),
        hidden_bias=_random(7, 3),
        visible_precision=jnp.asarray(precision),
        visible=pgm.Real,
    )
    w, b, c = (np.asarray(x, float) for x in (model.weights, model.visible_bias, model.hidden_bias))
    axis, step = np.linspace(-15.0, 15.0, 1501, retstep=True)
    grid = np.stack(np.meshgrid(*[axis] * count, indexing="ij"), axis=-1).reshape(-1, count)
    density = np.exp(-0.5 * (precision.astype(float) * grid**2).sum(1) + grid @ b)
    density *= (1.0 + np.exp(grid @ w + c)).prod(axis=1)
    log_z = np.log(density.sum() * step**count)

    law = pgm.exact(model)

    assert law.num_states == 8
    assert law.log_partition == pytest.approx(log_z, abs=1e-9)
    assert pgm.log_partition(model).estimate == pytest.approx(log_z, abs=1e-9)
    np.testing.assert_allclose(law.means["v"], density @ grid / density.sum(), atol=1e-9)
    sigmoid = 1.0 / (1.0 + np.exp(-(grid @ w + c)))
    np.testing.assert_allclose(law.means["h"], density @ sigmoid / density.sum(), atol=1e-9)
    row = grid[700:702]
    expected = np.log(density[700:702]) - log_z
    np.testing.assert_allclose(pgm.log_likelihood(model, row), expected, atol=1e-9)


def test_real_real_rbm_equals_the_joint_normal():
    model = pgm.RBM(
        weights=_random(8, 3, 2, scale=0.3),
        visible_bias=_random(9, 3),
        hidden_bias=_random(10, 2),
        visible_precision=jnp.array([1.0, 2.0, 3.0]),
        visible=pgm.Real,
        hidden=pgm.Real,
    )
    w = np.asarray(model.weights, float)
    joint = np.block([[np.diag([1.0, 2.0, 3.0]), -w], [-w.T, np.eye(2)]])
    b = np.concatenate([model.visible_bias, model.hidden_bias]).astype(float)
    mean = np.linalg.solve(joint, b)
    log_det = np.linalg.slogdet(joint)[1]
    log_z = 0.5 * b @ mean + 2.5 * np.log(2.0 * np.pi) - 0.5 * log_det
    law = pgm.exact(model)
    assert law.log_partition == pytest.approx(log_z, abs=1e-12)
    np.testing.assert_allclose(law.means["v"], mean[:3], atol=1e-12)
    np.testing.assert_allclose(law.means["h"], mean[3:], atol=1e-12)
    draws = law.sample(jax.random.key(0), 20_000)
    x = np.concatenate([draws["v"], draws["h"]], axis=1)
    error = 6.0 * np.sqrt(np.diag(np.linalg.inv(joint)) / 20_000)
    np.testing.assert_array_less(np.abs(x.mean(axis=0) - mean), error)
    np.testing.assert_allclose(np.cov(x.T), np.linalg.inv(joint), atol=0.08)


def test_mixture_has_log_z_zero_known_and_summed():
    model = pgm.GaussianMixture(
        weights=jnp.array([0.4, 0.6]),
        means=jnp.array([[-1.0, 0.0], [1.0, 0.5]]),
        covariances=jnp.array([[[0.5, 0.1], [0.1, 0.3]], [[0.8, 0.0], [0.0, 0.6]]]),
    )
    assert pgm.exact(model).log_partition == pytest.approx(0.0, abs=1e-6)
    z = pgm.log_partition(model)
    assert z.estimate == 0.0
    assert "knows" in z.message
    np.testing.assert_allclose(pgm.exact(model).means["x"], [0.2, 0.3], atol=1e-6)


def test_a_real_site_without_a_normal_law_is_refused():
    with pytest.raises(ValueError, match=r"'y' cannot be integrated over in closed form"):
        pgm.exact(pgm.relax(_rbm()))


# ---- log Z ------------------------------------------------------------------------------------


def test_log_z_through_v_through_h_and_through_both_agree():
    model = _rbm(num_visible=6, num_hidden=3)
    both = pgm.exact(model).log_partition
    through_v = pgm.exact(pgm.marginalize(model, "h")).log_partition
    through_h = pgm.exact(pgm.marginalize(model, "v")).log_partition
    z = pgm.log_partition(model)
    assert through_v == pytest.approx(both, abs=1e-12)
    assert through_h == pytest.approx(both, abs=1e-12)
    assert z.estimate == pytest.approx(both, abs=1e-12)
    assert (z.lower, z.upper, z.std_error) == (z.estimate, z.estimate, 0.0)
    assert z.method == "exact"
    assert float(z) == z.estimate
    assert "'v' summed out in closed form; 8 states enumerated (3 binary units of 'h')" in str(z)
    assert str(z).startswith("log Z = ")


def test_the_larger_side_is_summed_out():
    assert summable(_rbm(num_visible=6, num_hidden=3), ["v", "h"]) == ("v",)
    assert summable(_rbm(num_visible=3, num_hidden=6), ["v", "h"]) == ("h",)


def test_two_outer_layers_are_summed_out_given_the_middle():
    @pgm.struct
    class Deep(pgm.EnergyModel):
        first: jax.Array
        second: jax.Array
        data_sites = ("v",)

        @property
        def sites(self):
            return {"v": pgm.Binary(5), "a": pgm.Binary(4), "b": pgm.Spin(3)}

        def energy(self, v, a, b):
            return -(v @ self.first @ a) - a @ self.second @ b

    model = Deep(first=_random(1, 5, 4), second=_random(2, 4, 3))
    assert set(summable(model, ["v", "a", "b"])) == {"v", "b"}
    z = pgm.log_partition(model)
    assert "16 states" in z.message
    assert z.estimate == pytest.approx(pgm.exact(model).log_partition, abs=1e-12)
    # data rows: both latent layers are left, the larger set of independent units is summed
    rows = np.array(list(itertools.product([0, 1], repeat=5)))
    total = np.exp(pgm.log_likelihood(model, rows)).sum()
    assert total == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("shape", [(784, 12), (12, 784)], ids=["784x12", "12x784"])
def test_a_wide_rbm_is_summed_through_its_smaller_side(shape):
    model = pgm.RBM(
        weights=_random(0, *shape, scale=0.1),
        visible_bias=_random(1, shape[0]),
        hidden_bias=_random(2, shape[1]),
    )
    w, b, c = (np.asarray(x, float) for x in (model.weights, model.visible_bias, model.hidden_bias))
    if shape[0] == 12:
        w, b, c = w.T, c, b
    small = ((np.arange(4096)[:, None] >> np.arange(12)) & 1).astype(float)
    terms = small @ c + np.logaddexp(0.0, small @ w.T + b).sum(axis=1)
    expected = terms.max() + np.log(np.exp(terms - terms.max()).sum())
    assert pgm.log_partition(model).estimate == pytest.approx(expected, abs=1e-9)


def test_independent_units_need_no_states():
    model = pgm.RBM(weights=jnp.zeros((3000, 1)), visible_bias=_random(3, 3000))
    expected = np.logaddexp(0.0, np.asarray(model.visible_bias, float)).sum() + math.log(2.0)
    assert pgm.log_partition(model).estimate == pytest.approx(expected, abs=1e-8)


def test_a_constant_moves_only_log_z():
    @pgm.struct
    class Shifted(pgm.EnergyModel):
        inner: pgm.EnergyModel
        offset: jax.Array

        @property
        def sites(self):
            return self.inner.sites

        def energy(self, **values):
            return self.inner.energy(**values) + self.offset

    model = _rbm(num_visible=3, num_hidden=3)
    moved = Shifted(inner=model, offset=jnp.asarray(2000.0))
    before, after = pgm.exact(model), pgm.exact(moved)
    assert after.log_partition == pytest.approx(before.log_partition - 2000.0, abs=1e-9)
    np.testing.assert_allclose(after.probabilities, before.probabilities, atol=1e-12)
    z = pgm.log_partition(moved)
    assert z.estimate == pytest.approx(before.log_partition - 2000.0, abs=1e-9)


def test_log_sum_is_differentiable_and_its_gradient_is_the_mean():
    model = pgm.BoltzmannMachine(weights=_couplings(0, 11), bias=_random(1, 11))
    space = StateSpace.of(model, ["v"])
    gradient = jax.jit(jax.grad(lambda m: log_sum(m, space=space, chunk=300)))(model)
    law = pgm.exact(model)
    np.testing.assert_allclose(gradient.bias, law.means["v"], atol=1e-5)


# ---- likelihoods ------------------------------------------------------------------------------


def _all_rows(model):
    site = model.sites["v"]
    states = itertools.product(site.states.tolist(), repeat=site.size)
    return np.array(list(states)).reshape(-1, *site.shape)


_MODELS = {
    "rbm": lambda: _rbm(),
    "rbm-spin-hidden": lambda: _rbm(hidden=pgm.Spin),
    "rbm-categorical": lambda: pgm.RBM(
        weights=_random(1, 3, 3, 4), visible_bias=_random(2, 3, 3), visible=pgm.Categorical
    ),
    "rbm-categorical-hidden": lambda: pgm.RBM(weights=_random(1, 4, 2, 3), hidden=pgm.Categorical),
    "rbm-real-hidden": lambda: pgm.RBM(
        weights=_random(1, 4, 3, scale=0.5),
        hidden_precision=jnp.array([1.0, 2.0, 0.5]),
        hidden=pgm.Real,
    ),
    "bm": lambda: pgm.BoltzmannMachine(weights=_couplings(1, 6), bias=_random(2, 6)),
    "bm-spin": lambda: pgm.BoltzmannMachine(
        weights=_couplings(1, 6), bias=_random(2, 6), unit=pgm.Spin
    ),
    "bm-hidden": lambda: pgm.BoltzmannMachine(
        weights=_couplings(1, 7), bias=_random(2, 7), num_hidden=3
    ),
    "potts": lambda: pgm.PottsMachine(couplings=_potts_couplings(1, 3, 3), fields=_random(3, 3, 3)),
    "lattice": lambda: pgm.ising_lattice((2, 3), 0.4, 0.1, periodic=False),
    "marginal": lambda: pgm.marginalize(_rbm(), "h"),
}
_ROUTES = {
    "rbm": "shifted",
    "rbm-spin-hidden": "shifted",
    "rbm-categorical": "shifted",
    "rbm-categorical-hidden": "shifted",
    "rbm-real-hidden": "shifted",
    "bm": "natural",
    "bm-spin": "natural",
    "bm-hidden": "energies",
    "potts": "natural",
    "lattice": "natural",
    "marginal": "shifted",
}


def _potts_couplings(seed, count, states):
    table = _random(seed, count, count, states, states)
    table = table + table.transpose(1, 0, 3, 2)
    return table.at[jnp.arange(count), jnp.arange(count)].set(0.0)


@pytest.mark.parametrize("name", _MODELS)
def test_likelihood_sums_to_one_and_pseudo_likelihood_equals_its_definition(name):
    model = _MODELS[name]()
    rows = _all_rows(model)
    log_p = pgm.log_likelihood(model, rows)
    assert log_p.dtype == np.float64
    assert np.exp(log_p).sum() == pytest.approx(1.0, abs=1e-10)

    site = model.sites["v"]
    flat = rows.reshape(len(rows), -1)
    table = {tuple(row): value for row, value in zip(flat, log_p, strict=True)}
    expected = np.zeros(len(rows))
    for number, row in enumerate(flat):
        for i in range(site.size):
            others = [table[(*row[:i], k, *row[i + 1 :])] for k in site.states.tolist()]
            expected[number] += log_p[number] - np.log(np.exp(others).sum())
    np.testing.assert_allclose(pgm.pseudo_log_likelihood(model, rows), expected, atol=1e-10)
    reduced, space = without_latents(model)
    assert _route(reduced, "v", space) == _ROUTES[name]  # the fast way is the one that is tested


def test_pseudo_likelihood_of_an_energy_that_derivatives_do_not_know():
    @pgm.struct
    class Equal(pgm.EnergyModel):
        strength: jax.Array

        @property
        def sites(self):
            return {"v": pgm.Spin(4)}

        def energy(self, v):
            return -self.strength * jnp.sum(v[1:] == v[:-1])

    model = Equal(strength=jnp.asarray(0.8))
    rows = _all_rows(model)
    table = dict(zip(map(tuple, rows), pgm.log_likelihood(model, rows), strict=True))
    row = (1, -1, -1, 1)
    expected = 0.0
    for i in range(4):
        flipped = (*row[:i], -row[i], *row[i + 1 :])
        expected += table[row] - np.logaddexp(table[row], table[flipped])
    assert pgm.pseudo_log_likelihood(model, [row])[0] == pytest.approx(expected, abs=1e-12)


def test_pseudo_likelihood_does_not_trust_an_override_for_the_whole_site():
    @pgm.struct
    class Wrong(pgm.EnergyModel):
        weights: jax.Array

        @property
        def sites(self):
            return {"v": pgm.Spin(self.weights.shape[0])}

        def energy(self, v):
            return -0.5 * v @ self.weights @ v

        def natural_parameters(self, site, values, index=None):
            eta = self.weights @ self.sites["v"].encode(values["v"])
            # right with an index, wrong without
            return pgm.Natural(2.0 * eta if index is None else eta[index])

        def project(self):
            even = 0.5 * (self.weights + self.weights.T)
            return pgm.replace(self, weights=even - jnp.diag(jnp.diagonal(even)))

    weights = _couplings(4, 4)
    right = pgm.BoltzmannMachine(weights=weights, unit=pgm.Spin)
    rows = _all_rows(right)
    np.testing.assert_allclose(
        pgm.pseudo_log_likelihood(Wrong(weights=weights), rows),
        pgm.pseudo_log_likelihood(right, rows),
        atol=1e-10,
    )


def test_likelihood_of_free_units_given_clamped_ones():
    model = _rbm()
    conditioned = pgm.condition(model, v=np.array([1.0, 0.0, np.nan, np.nan, 1.0]))
    rows = np.array([[1, 0, i, j, 1] for i in (0, 1) for j in (0, 1)])
    log_p = pgm.log_likelihood(conditioned, rows)
    assert np.exp(log_p).sum() == pytest.approx(1.0, abs=1e-12)
    joint = pgm.log_likelihood(model, rows)
    np.testing.assert_allclose(np.diff(log_p), np.diff(joint), atol=1e-12)
    with pytest.raises(ValueError, match=r"0 at row 1, column 4, fixed at 1"):
        pgm.log_likelihood(conditioned, [[1, 0, 0, 0, 1], [1, 0, 0, 0, 0]])


def test_likelihood_given_clamped_real_units_is_a_density():
    model = pgm.RBM(weights=_random(5, 2, 3), visible=pgm.Real)
    conditioned = pgm.condition(model, v=np.array([0.5, np.nan]))
    axis, step = np.linspace(-12.0, 12.0, 2401, retstep=True)
    rows = np.stack([np.full_like(axis, 0.5), axis], axis=1)
    total = np.exp(pgm.log_likelihood(conditioned, rows)).sum() * step
    assert total == pytest.approx(1.0, abs=1e-9)


def test_evaluate_bounds_come_from_log_z_and_the_error_from_rows():
    model = _rbm()
    rows = _all_rows(model)[:10]
    exact = pgm.evaluate(model, rows)
    values = pgm.log_likelihood(model, rows)
    assert exact.mean == pytest.approx(values.mean(), abs=1e-12)
    assert exact.lower == exact.mean == exact.upper
    assert exact.std_error == pytest.approx(values.std(ddof=1) / np.sqrt(10), abs=1e-12)
    z = pgm.log_partition(model).estimate
    wide = pgm.LogPartition(z, 0.1, z - 0.5, z + 2.0, "ais", "a guess")
    result = pgm.evaluate(model, rows, wide)
    assert result.mean == pytest.approx(exact.mean, abs=1e-12)
    assert result.lower == pytest.approx(exact.mean - 2.0, abs=1e-12)
    assert result.upper == pytest.approx(exact.mean + 0.5, abs=1e-12)
    assert result.num_rows == 10
    assert "a guess" in str(result)
    assert math.isnan(pgm.evaluate(model, rows[:1]).std_error)


def test_log_partition_may_be_a_number_or_an_exact_law():
    model = _rbm()
    rows = _all_rows(model)
    law = pgm.exact(model)
    expected = pgm.log_likelihood(model, rows)
    for given in (law.log_partition, np.float32(law.log_partition), law, pgm.log_partition(model)):
        np.testing.assert_allclose(pgm.log_likelihood(model, rows, given), expected, atol=1e-5)


@pytest.mark.parametrize(
    "convert", [np.bool_, np.int64, np.uint8, np.float64], ids=["bool", "int64", "uint8", "float"]
)
def test_data_of_any_numeric_kind_give_the_same(convert):
    model, rows = _rbm(), [[0, 1, 1, 0, 1]]
    expected = pgm.log_likelihood(model, np.array(rows, np.int8))
    assert pgm.log_likelihood(model, np.array(rows, convert)) == expected
    assert pgm.log_likelihood(model, {"v": np.array(rows, convert)}) == expected


def test_sixteen_binary_units_fit_the_published_data_size():
    model = pgm.BoltzmannMachine(weights=0.3 * _couplings(0, 16), bias=_random(1, 16))
    w, b = np.asarray(model.weights, float), np.asarray(model.bias, float)
    x = ((np.arange(2**16)[:, None] >> np.arange(16)) & 1).astype(float)
    energies = -0.5 * np.einsum("si,si->s", x @ w, x) - x @ b
    law = pgm.exact(model)
    assert law.num_states == 2**16
    assert law.log_partition == pytest.approx(np.log(np.exp(-energies).sum()), abs=1e-11)
    p = np.exp(-energies)
    np.testing.assert_allclose(law.means["v"], p @ x / p.sum(), atol=1e-12)


# ---- bad input --------------------------------------------------------------------------------


def test_too_many_states_are_counted_in_the_message():
    wide = pgm.RBM(weights=jnp.zeros((30, 30)))
    with pytest.raises(ValueError, match=r"at most 2\^20 states, RBM has 2\^60.0 .*marginalize"):
        pgm.exact(wide)
    with pytest.raises(ValueError, match=r"2\^30.0 states left after summing out 'v'.*annealing"):
        pgm.log_partition(wide)
    with pytest.raises(ValueError, match=r"more than the 2\^24 that are summed exactly"):
        pgm.log_partition(wide, method="exact")
    with pytest.raises(ValueError, match="a likelihood needs log Z: give log_partition="):
        pgm.log_likelihood(wide, np.zeros((1, 30)))
    assert np.isfinite(pgm.log_likelihood(wide, np.zeros((1, 30)), 40.0)).all()


def test_latent_units_that_interact_and_are_many_are_refused():
    model = pgm.BoltzmannMachine(weights=_couplings(0, 22), num_hidden=20)
    with pytest.raises(ValueError, match=r"the latent units .* interact and have 2\^20.0 states"):
        pgm.log_likelihood(model, [[0, 1]], 0.0)


def test_unknown_methods_and_unused_settings_are_refused():
    with pytest.raises(ValueError, match=r"method must be one of 'auto', 'exact', .*, got 'magic'"):
        pgm.log_partition(_rbm(), method="magic")
    with pytest.raises(ValueError, match="num_chains is for methods that sample"):
        pgm.log_partition(_rbm(), method="exact", num_chains=10)


def test_nan_energies_are_refused():
    @pgm.struct
    class Broken(pgm.EnergyModel):
        scale: jax.Array

        @property
        def sites(self):
            return {"v": pgm.Binary(2)}

        def energy(self, v):
            return jnp.where(self.scale == 7.0, jnp.nan, 1.0) * v[0] * v[1]

    model = Broken(scale=jnp.asarray(7.0))
    with pytest.raises(ValueError, match="energy of Broken is NaN in state 0 of 4"):
        pgm.exact(model)
    with pytest.raises(ValueError, match="log Z of Broken is nan"):
        pgm.log_partition(model)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.full((2, 5), 0.5), r"must be 0 or 1, got 0.5 at row 0, column 0; .*intensities="),
        (np.zeros((0, 5)), "empty"),
        (np.zeros((2, 4)), r"shape \(rows, 5\), got \(2, 4\)"),
        (np.array([[0, 1, 0, 2, 1]]), "got 2 at row 0, column 3"),
        (np.array([[0.0, 1, 0, np.nan, 1]]), "NaN at row 0, column 3"),
        ({"h": np.zeros((1, 4))}, "site 'h', which is latent"),
    ],
    ids=["grey", "empty", "width", "support", "nan", "site"],
)
@pytest.mark.parametrize("function", [pgm.log_likelihood, pgm.evaluate, pgm.pseudo_log_likelihood])
def test_bad_data_are_refused_with_their_place(function, data, message):
    with pytest.raises(ValueError, match=message):
        function(_rbm(), data)


def test_pseudo_likelihood_of_real_data_is_refused():
    model = pgm.RBM(weights=jnp.ones((2, 2)), visible=pgm.Real)
    with pytest.raises(ValueError, match="'v' is real: use log_likelihood"):
        pgm.pseudo_log_likelihood(model, np.zeros((1, 2)))


@pytest.mark.parametrize("value", ["three", np.nan], ids=["text", "nan"])
def test_a_log_partition_that_is_no_number_is_refused(value):
    with pytest.raises((TypeError, ValueError), match="log_partition must be"):
        pgm.log_likelihood(_rbm(), np.zeros((1, 5)), value)


def test_traced_parameters_are_refused():
    with pytest.raises(ValueError, match="concrete parameters: call it outside of jit"):
        jax.jit(lambda m: pgm.log_partition(m).estimate)(_rbm())


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize("function", [pgm.exact, pgm.log_partition])
def test_what_is_no_model_is_refused(function):
    with pytest.raises(TypeError, match="takes an energy model, got int"):
        function(3)
