"""log Z by annealing and tempering against known answers, its bounds, and what must be flagged."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import stats

import pgm_energy as pgm
from pgm_energy.partition.annealing import Weights, bracket, even_betas, resampled
from pgm_energy.partition.bases import find_base
from pgm_energy.partition.bennett import bennett_ratio
from pgm_energy.partition.path import Path, log_ratio

CHAINS, BETAS = 64, 201
SAMPLING = ["ais", "reverse_ais", "bennett", "pt"]


def _random(seed, *shape, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _rbm(seed=0, num_visible=12, num_hidden=8, scale=0.5, shift=0.0, **kwargs):
    return pgm.RBM(
        weights=_random(seed, num_visible, num_hidden, scale=scale),
        visible_bias=_random(seed + 1, num_visible) + shift,
        hidden_bias=_random(seed + 2, num_hidden),
        **kwargs,
    )


def _couplings(seed, count, scale):
    upper = jnp.triu(_random(seed, count, count, scale=scale), 1)
    return upper + upper.T


def _estimate(model, key=0, method="ais", **settings):
    settings = {"num_chains": CHAINS, "num_betas": BETAS, **settings}
    if method == "pt":
        settings |= {"num_chains": 8, "num_betas": 8}
    return pgm.log_partition(model, jax.random.key(key), method, **settings)


def _assert_agrees(z, truth):
    """The estimate within its own errors, and the truth inside the bracket; alpha = 1e-6 each."""
    samples = 8 if z.method == "pt" else CHAINS
    limit = stats.t.isf(oracles.ALPHA / 2, samples - 1)
    # rounding: a float32 energy of this size
    slack = 1e-6 * max(abs(truth), 1.0)
    assert abs(z.estimate - truth) <= limit * z.std_error + slack, (z, truth)
    # the bounds are three errors out already: three more leave two in 10^9
    room = 3.0 * z.std_error + slack
    assert z.lower - room <= truth <= z.upper + room, (z, truth)
    assert z.trusted, z
    assert z.upper - z.lower < 1.0


# ---- the parts, exactly -------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["binary", "spin", "categorical", "real"])
def test_increments_are_the_change_of_the_summed_energy(family):
    families = {"binary": pgm.Binary, "spin": pgm.Spin, "real": pgm.Real}
    if family == "categorical":
        model = pgm.RBM(weights=_random(0, 4, 3, 2), hidden=pgm.Binary, visible=pgm.Categorical)
    else:
        model = _rbm(num_visible=4, num_hidden=2, visible=families[family])
    data = np.array([[0, 1, 1, 0], [1, 0, 1, 0], [0, 1, 0, 1]])
    data = {"spin": 2 * data - 1, "real": data + 0.5}.get(family, data)
    base = pgm.Independent.like(model, data)
    path = Path.between(base, model)
    assert path.summed.site == "v", "the larger layer leaves fewer units in the weights"
    beta, new = jnp.asarray(0.3), jnp.asarray(0.7)
    for hidden in itertools.product([0, 1], repeat=2):
        values = {"v": jnp.zeros(4, model.sites["v"].dtype), "h": jnp.array(hidden, jnp.int8)}
        found = log_ratio(base, model, values, beta, new, path.summed)
        energies = [
            pgm.marginalize(pgm.temper(base, model, b), "v").energy(h=jnp.array(hidden, float))
            for b in (beta, new)
        ]
        assert float(found) == pytest.approx(float(energies[0] - energies[1]), abs=2e-5)


def test_a_base_alone_is_known_without_error():
    """One site of independent units is summed out whole: every weight is the answer."""
    model = pgm.Independent.like(_rbm(), np.array([[1] * 6 + [0] * 6]))
    z = _estimate(model, base=pgm.Independent.like(model))
    assert z.estimate == pytest.approx(float(model.known_log_partition), abs=1e-5)
    assert z.std_error < 1e-5
    assert z.trusted


def test_the_way_back_reverses_time():
    """p(x) T(x, y) = p(y) T*(y, x) for colours, panels and layers, to rounding."""
    models = {
        "colours": pgm.ising_lattice((3, 3), 0.4, 0.2),
        "panels": pgm.BoltzmannMachine(weights=_couplings(0, 5, 0.8), bias=_random(1, 5)),
    }
    for name, model in models.items():
        path = Path.between(pgm.Independent.like(model), model)
        there, back = path.blocks, path.backwards().blocks
        values, probabilities, _ = oracles.law(model)
        end = pgm.temper(path.base, model, 1.0)
        forward = oracles.transition_matrix(pgm.gibbs_kernel(there), end, values)
        reverse = oracles.transition_matrix(pgm.gibbs_kernel(back), end, values)
        flow = probabilities[:, None] * forward
        np.testing.assert_allclose(flow, (probabilities[:, None] * reverse).T, atol=1e-7)
        assert np.abs(flow - flow.T).max() > 1e-4, f"{name}: the sweep itself is not reversible"


def test_betas_have_equal_spread():
    betas = np.linspace(0.0, 1.0, 51)
    rate = 1.0 + 9.0 * (betas[:-1] > 0.5)  # ten times as fast in the second half
    even = even_betas(betas, rate * np.diff(betas), 56)
    assert (even[0], even[-1], len(even)) == (0.0, 1.0, 56)
    travelled = np.interp(even, betas, np.concatenate([[0.0], np.cumsum(rate * np.diff(betas))]))
    np.testing.assert_allclose(np.diff(travelled), (rate * np.diff(betas)).sum() / 55, rtol=1e-9)
    np.testing.assert_array_equal(even_betas(betas, np.zeros(50), 3), [0.0, 0.5, 1.0])


def test_weights_are_added_in_double_precision():
    """A mean of 1e4 increments near 1e5 nats keeps 1e-6: float32 sums would be 1e-2 off."""
    weights = Weights(np.array([1e5, 1e5 + 1e-6, 1e5 - 1e-6]))
    assert weights.log_mean == pytest.approx(1e5, abs=1e-9)
    assert weights.ess == pytest.approx(3.0)
    one = Weights(np.array([0.0, -800.0, -900.0]))
    assert one.ess == pytest.approx(1.0)
    assert one.log_mean == pytest.approx(-math.log(3.0))


def test_resampling_follows_the_weights():
    weights = Weights(np.log([0.5, 0.25, 0.25, 1e-300]))
    chosen = resampled(jax.random.key(0), {"v": jnp.arange(4)}, weights, 400)["v"]
    np.testing.assert_array_equal(np.bincount(chosen, minlength=4), [200, 100, 100, 0])


# ---- Bennett's ratio ----------------------------------------------------------------------------


@pytest.mark.parametrize(("num_forward", "num_reverse"), [(4000, 4000), (8000, 500)])
def test_bennett_on_normal_works(num_forward, num_reverse):
    """Works N(truth -+ s^2/2, s^2) obey Crooks' identity."""
    rng, truth, s = np.random.default_rng(3), 7.0, 1.5
    errors = []
    for _ in range(60):
        forward = rng.normal(truth - s**2 / 2, s, num_forward)
        reverse = rng.normal(-truth - s**2 / 2, s, num_reverse)
        found = bennett_ratio(forward, reverse)
        variance = (found.forward**2).sum() + (found.reverse**2).sum()
        errors.append((found.log_ratio - truth) / math.sqrt(variance))
    assert abs(np.mean(errors)) * math.sqrt(60) < 5.0
    square = float(np.sum(np.square(errors)))
    assert min(stats.chi2.cdf(square, 60), stats.chi2.sf(square, 60)) > oracles.ALPHA
    # positive control: works that break the identity are found out
    biased = bennett_ratio(forward + 0.5, reverse)
    assert abs(biased.log_ratio - truth) > 5.0 * math.sqrt(variance)


def test_bennett_without_overlap_stays_finite_and_says_so():
    found = bennett_ratio(np.array([-1000.0, -1001.0]), np.array([-900.0, -905.0]))
    assert np.isfinite(found.log_ratio)
    assert np.isfinite(found.forward).all()
    assert found.overlap < 2.0


# ---- known answers ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", SAMPLING)
def test_every_method_on_an_enumerable_rbm(method):
    model = _rbm()
    z = _estimate(model, method=method)
    assert z.method == method
    _assert_agrees(z, pgm.log_partition(model, method="exact").estimate)


def _curie_weiss(count, coupling, field):
    weights = np.full((count, count), coupling, np.float32)
    np.fill_diagonal(weights, 0.0)
    model = pgm.BoltzmannMachine(
        weights=jnp.asarray(weights), bias=jnp.full(count, field), unit=pgm.Spin
    )
    m = 2.0 * np.arange(count + 1) - count
    log_weights = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        for k in range(count + 1)
    ]
    j, f = float(np.float32(coupling)), float(np.float32(field))
    log_weights += 0.5 * j * (m**2 - count) + f * m
    return model, float(np.logaddexp.reduce(log_weights))


def _ring(count, coupling, field):
    edges = np.array([[i, (i + 1) % count] for i in range(count)])
    model = pgm.SparseBoltzmannMachine.from_edges(
        edges, jnp.full(count, coupling), jnp.full(count, field), unit=pgm.Spin
    )
    s = np.array([-1.0, 1.0])
    j, f = float(np.float32(coupling)), float(np.float32(field))
    transfer = np.exp(j * np.outer(s, s) + 0.5 * f * (s[:, None] + s))
    values = np.linalg.eigvalsh(transfer)
    top = count * math.log(values[1])
    return model, top + math.log1p((values[0] / values[1]) ** count)


def _mixture(cls):
    rng = np.random.default_rng(0)
    if cls == "gaussian":
        covariances = np.stack([np.diag(d) for d in rng.uniform(0.3, 1.0, (3, 2))])
        model = pgm.GaussianMixture(
            weights=jnp.array([0.2, 0.3, 0.5]),
            means=jnp.asarray(rng.normal(size=(3, 2))),
            covariances=jnp.asarray(covariances),
        )
    else:
        model = pgm.BernoulliMixture(
            weights=jnp.array([0.2, 0.3, 0.5]), probs=jnp.asarray(rng.uniform(0.2, 0.8, (3, 6)))
        )
    return model, 0.0


def _summed(model):
    return model, pgm.log_partition(model, method="exact").estimate


def _gaussian_bernoulli():
    return _summed(_rbm(num_visible=6, num_hidden=10, scale=0.4, visible=pgm.Real))


KNOWN = {
    "rbm-784x16": lambda: _summed(_rbm(num_visible=784, num_hidden=16, scale=0.05, shift=-1.0)),
    "gaussian-bernoulli": _gaussian_bernoulli,
    "curie-weiss": lambda: _curie_weiss(40, 0.02, 0.05),
    "ring": lambda: _ring(50, 0.6, 0.1),
    "gaussian-mixture": lambda: _mixture("gaussian"),
    "bernoulli-mixture": lambda: _mixture("bernoulli"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_answers(name):
    model, truth = KNOWN[name]()
    # no run for the base: these are near enough to one without marginals
    base = None if name == "rbm-784x16" else pgm.Independent.like(model)
    _assert_agrees(_estimate(model, base=base), truth)


@pytest.mark.parametrize("side", [4, 6, 8])
def test_ising_torus_equals_kaufman(side):
    """Four couplings, below, at and above the critical one; one compilation for each size."""
    critical = math.log(1.0 + math.sqrt(2.0)) / 2.0
    for number, coupling in enumerate((0.2, 0.3, critical, 0.5)):
        model = pgm.ising_lattice((side, side), coupling)
        truth = oracles.kaufman(side, side, float(np.float32(coupling)))
        settings = {"base": pgm.Independent.like(model), "num_betas": 2 * BETAS}
        if coupling > 0.4:  # magnetised: slowly
            settings["num_betas"] = 16 * side**2
        _assert_agrees(_estimate(model, number, **settings), truth)


def test_a_critical_torus_that_is_walked_too_fast_is_flagged():
    """Its sweeps decorrelate slowly: the bracket widens, and holds what Kaufman computed."""
    critical = math.log(1.0 + math.sqrt(2.0)) / 2.0
    model = pgm.ising_lattice((8, 8), critical)
    with pytest.warns(UserWarning, match="nats wide"):
        z = _estimate(model, num_betas=51, base=pgm.Independent.like(model))
    assert z.lower < oracles.kaufman(8, 8, float(np.float32(critical))) < z.upper


def test_kaufman_itself():
    model = pgm.ising_lattice((3, 4), 0.7)
    exact = pgm.log_partition(model, method="exact").estimate
    assert oracles.kaufman(3, 4, float(np.float32(0.7))) == pytest.approx(exact, abs=1e-10)
    assert oracles.kaufman(8, 8, 0.3) == pytest.approx(50.60933050, abs=5e-9)
    critical = math.log(1.0 + math.sqrt(2.0)) / 2.0
    assert oracles.kaufman(32, 32, critical) == pytest.approx(952.64807955, abs=5e-9)


def test_three_layers_are_walked_and_reversed():
    """Two sites beside the summed one: their order turns round on the way back."""

    @pgm.struct
    class Deep(pgm.EnergyModel):
        first: jax.Array
        second: jax.Array
        data_sites = ("v",)

        @property
        def sites(self):
            return {"v": pgm.Binary(6), "a": pgm.Binary(5), "b": pgm.Spin(4)}

        def energy(self, v, a, b):
            return -(v @ self.first @ a) - a @ self.second @ b - 0.3 * v[0] * b[0]

    model = Deep(first=_random(1, 6, 5), second=_random(2, 5, 4, scale=0.7))
    base = pgm.Independent.like(model)
    truth = pgm.log_partition(model).estimate
    _assert_agrees(_estimate(model, method="bennett", base=base), truth)


@pytest.mark.filterwarnings("ignore:Equal is sampled:UserWarning")
@pytest.mark.filterwarnings("ignore:the path from:UserWarning")
def test_energies_drawn_by_differences():
    @pgm.struct
    class Equal(pgm.EnergyModel):
        strength: jax.Array

        @property
        def sites(self):
            return {"v": pgm.Spin(8)}

        def energy(self, v):
            return -self.strength * jnp.sum(v[1:] == v[:-1])

    model = Equal(strength=jnp.asarray(0.8))
    base = pgm.Independent.like(model)
    truth = 8 * math.log(2.0) + 7 * math.log((1.0 + math.exp(0.8)) / 2.0)
    _assert_agrees(_estimate(model, base=base), truth)
    with pytest.raises(ValueError, match=r"'v' is drawn by energy differences.*'ais' or 'pt'"):
        _estimate(model, method="bennett", base=base)


def test_clamped_units_have_no_part_in_log_z():
    given = np.r_[np.ones(4), np.full(8, np.nan)]
    model = pgm.condition(_rbm(), v=given)
    base = pgm.Independent.like(model)
    _assert_agrees(_estimate(model, base=base), pgm.log_partition(model, method="exact").estimate)


# ---- what the answer is worth -------------------------------------------------------------------


def _published(num_visible=60, num_hidden=40):
    """A trained-like machine: most units rarely on, as the pixels of digits, some always off."""
    rng = np.random.default_rng(5)
    model = _rbm(7, num_visible, num_hidden, scale=0.7)
    bias = np.where(rng.random(num_visible) < 0.7, -5.0, 0.5)
    return pgm.replace(model, visible_bias=jnp.asarray(bias, jnp.float32))


def test_a_uniform_base_is_flagged_and_one_fitted_to_data_is_not():
    """The published fault in small: too low an answer with a small standard error of its own."""
    model = _published()
    rows = pgm.sample(jax.random.key(1), model, 500, num_chains=100, num_warmup=200)["v"]
    settings = {"num_betas": 21}
    with pytest.warns(UserWarning, match="not to be trusted: .*num_betas"):
        uniform = _estimate(model, base=pgm.Independent.like(model), **settings)
    fitted = _estimate(model, data=np.asarray(rows), **settings)
    assert not uniform.trusted
    assert fitted.trusted, fitted
    assert "500 rows of data" in fitted.message
    assert uniform.lower < fitted.lower
    assert "Not to be trusted" in str(uniform)
    # the bracket is right all the same, and the estimate says nothing of how wrong it is
    assert uniform.lower < fitted.estimate < uniform.upper


def test_a_way_back_from_anywhere_is_no_upper_bound():
    """Positive control: the bound needs samples of the model, and the test sees other ones."""
    model = _rbm(scale=1.5)
    base = find_base(jax.random.key(0), model, pgm.Independent.like(model), None)
    path = Path.between(base.model, model)
    truth = pgm.log_partition(model).estimate
    betas = np.linspace(0.0, 1.0, 11)
    wrong = base.draw(jax.random.key(1), CHAINS)
    runs = bracket(jax.random.key(2), path, base, betas, CHAINS, samples=wrong)
    assert runs.upper < truth
    right = bracket(jax.random.key(2), path, base, betas, CHAINS)
    assert right.lower < truth < right.upper


def test_data_find_a_mode_that_annealing_misses():
    """Two separated modes, one of them unseen from the base: only data rows know of it."""
    model = pgm.RBM(
        weights=_random(0, 12, 8, scale=0.01).at[:, 0].set(12.0),
        visible_bias=jnp.full(12, -4.0),
        hidden_bias=jnp.zeros(8).at[0].set(-85.0),
    )
    truth = pgm.log_partition(model, method="exact").estimate
    lost = pgm.Independent.like(model, {"v": np.zeros((50, 12), int), "h": np.zeros((50, 8), int)})
    blind = _estimate(model, base=lost)
    assert blind.trusted, "nothing that the chains saw speaks against it"
    assert blind.upper < truth - 5.0, "and it is wrong: the positive control"
    with pytest.warns(UserWarning, match="nats wide"):
        seen = _estimate(model, base=lost, data=np.ones((50, 12), int))
    assert seen.upper > truth - 0.1


def test_few_chains_are_flagged():
    with pytest.warns(UserWarning, match=r"only [0-9.]+ effective weights carry the estimate"):
        _estimate(_rbm(), num_chains=5)


def test_a_constant_moves_only_log_z():
    @pgm.struct
    class Shifted(pgm.EnergyModel):
        inner: pgm.EnergyModel
        offset: jax.Array
        data_sites = ("v",)

        @property
        def sites(self):
            return self.inner.sites

        def energy(self, **values):
            return self.inner.energy(**values) + self.offset

    base = pgm.Independent.like(_rbm(), np.array([[0, 1] * 6]))
    low, high = (
        _estimate(Shifted(inner=_rbm(), offset=jnp.asarray(c)), base=base) for c in (0.0, 2000.0)
    )
    for name in ("estimate", "lower", "upper"):
        assert getattr(high, name) == pytest.approx(getattr(low, name) - 2000.0, abs=2e-3), name
    assert high.std_error == pytest.approx(low.std_error, rel=0.01)


def test_auto_says_which_and_keys_repeat():
    small, large = _rbm(), pgm.RBM(weights=_random(0, 30, 30, scale=0.1))
    assert pgm.log_partition(small, jax.random.key(0), data=[[0, 1] * 6]).method == "exact"
    base = pgm.Independent.like(large)
    settings = {"num_chains": CHAINS, "num_betas": BETAS, "base": base}
    first, again = (pgm.log_partition(large, jax.random.key(1), **settings) for _ in range(2))
    assert first == again
    assert first.method == "ais"
    assert "annealed importance sampling, 201 betas, 64 chains" in first.message
    assert "'v' summed out of the weights" in first.message
    other = pgm.log_partition(large, jax.random.key(2), **settings)
    assert other.estimate != first.estimate
    legacy = pgm.log_partition(large, jax.random.PRNGKey(1), **settings)
    assert legacy.estimate == pytest.approx(first.estimate, abs=1e-9)


def test_likelihoods_carry_the_bracket_on():
    model = _rbm()
    rows = np.array([[0, 1] * 6, [1, 1] * 6])
    z = _estimate(model)
    result = pgm.evaluate(model, rows, z)
    exact = pgm.evaluate(model, rows)
    assert result.lower < exact.mean < result.upper
    assert result.mean - result.lower == pytest.approx(z.upper - z.estimate, abs=1e-9)
    assert result.upper - result.mean == pytest.approx(z.estimate - z.lower, abs=1e-9)
    assert z.message in result.message


def test_progress_is_shown_when_asked(capsys):
    z = _estimate(_rbm(), progress_bar=True)
    assert z.estimate == _estimate(_rbm()).estimate
    assert "annealing" in capsys.readouterr().out


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", SAMPLING)
def test_methods_that_sample_need_a_key(method):
    with pytest.raises(ValueError, match=f"method '{method}' samples: give rng_key"):
        pgm.log_partition(_rbm(), method=method)


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"rng_key": 3}, TypeError, "rng_key must be one JAX random key"),
        ({"num_betas": 1}, ValueError, "num_betas must be an integer of at least 2, got 1"),
        ({"num_betas": 10.5}, ValueError, "num_betas must be an integer of at least 2, got 10.5"),
        ({"num_chains": 1}, ValueError, "num_chains must be an integer of at least 2, got 1"),
        ({"base": 3}, TypeError, "base must be an energy model, got int"),
        ({"method": "magic"}, ValueError, "method must be one of 'auto', 'exact', 'ais'"),
        ({"method": "exact", "data": [[0]]}, ValueError, "data is for methods that sample"),
        ({"data": [[0, 1, 2]]}, ValueError, r"shape \(rows, 12\), got \(1, 3\)"),
        ({"data": [[0] * 11 + [2]]}, ValueError, "got 2 at row 0, column 11"),
        ({"data": np.full((1, 12), np.nan)}, ValueError, "NaN at row 0, column 0"),
    ],
    ids=["key", "betas", "half", "chains", "base", "method", "exact", "shape", "support", "nan"],
)
def test_bad_settings_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        pgm.log_partition(_rbm(), **{"rng_key": jax.random.key(0), "method": "ais", **settings})


def test_bases_that_cannot_be_used_are_refused():
    with pytest.raises(ValueError, match="base and target must have the same sites"):
        _estimate(_rbm(), base=pgm.Independent.like(_rbm(num_visible=11)))
    large = pgm.RBM(weights=_random(0, 30, 30))
    with pytest.raises(ValueError, match=r"the base must be independent units .* 2\^60"):
        _estimate(large, base=large)


def test_any_base_that_can_be_enumerated_will_do():
    model, near = _rbm(), _rbm(scale=0.4)
    z = _estimate(model, base=near)
    _assert_agrees(z, pgm.log_partition(model).estimate)
    assert "the given RBM" in z.message


def test_nan_energies_are_refused():
    @pgm.struct
    class Broken(pgm.EnergyModel):
        scale: jax.Array

        @property
        def sites(self):
            return {"v": pgm.Binary(3)}

        def energy(self, v):
            return jnp.where(self.scale == 7.0, jnp.nan, 1.0) * v[0] * v[1] + v[2]

    model = Broken(scale=jnp.asarray(7.0))
    with pytest.raises(ValueError, match=r"the energy of Broken .* is NaN or infinite"):
        _estimate(model, base=pgm.Independent.like(model))
