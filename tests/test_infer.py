"""BlockGibbs inside NumPyro: every chain method, starts, restarts, composites; the exact law."""

import subprocess
import sys
import textwrap
from pathlib import Path

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro.infer import MCMC, NUTS, DiscreteGibbs, Gibbs
from oracles import ALPHA, frequencies_p_value, law, pooled_p_value
from scipy import stats
from scipy.special import expit, logsumexp

import pgm_energy as pgm

ROOT = Path(__file__).resolve().parents[1]
RNG = np.random.default_rng(42)
#: 4 x 3 units, 128 states: strong couplings, so that v and h depend on each other
SMALL = pgm.RBM(
    weights=jnp.asarray(RNG.normal(0, 1.5, (4, 3)), jnp.float32),
    visible_bias=jnp.asarray(RNG.normal(0, 0.5, 4), jnp.float32),
    hidden_bias=jnp.asarray(RNG.normal(0, 0.5, 3), jnp.float32),
)
SMALL_V = np.array([1, 0, 0, 1])
NUM_CHAINS = 4000


def run(kernel, rng_key, *, num_chains=1, num_warmup=0, num_samples=1, method="vectorized", **kw):
    options = {k: kw.pop(k) for k in ("thinning", "jit_model_args", "progress_bar") if k in kw}
    options.setdefault("progress_bar", False)
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method=method,
        **options,
    )
    mcmc.run(rng_key, **kw)
    return mcmc


def within_five_mcse(draws, exact):
    """Whether the means of ``(chains, draws, units)`` lie within 5 MCSE of the exact ones."""
    draws = np.asarray(draws, float)
    error = np.asarray(az.mcse({"x": draws}, method="mean")["x"])
    assert np.isfinite(error).all()
    assert (error < 0.1).all(), f"too few effective draws to say anything: MCSE {error.max()}"
    worst = np.abs(draws.mean(axis=(0, 1)) - exact) / np.maximum(error, 1e-12)
    return bool((worst <= 5.0).all())


# ---- the exact law, one draw per chain -----------------------------------------------------------


@pytest.mark.parametrize("num_sweeps, num_warmup", [(1, 80), (40, 1)], ids=["one", "forty"])
def test_block_gibbs_draws_from_the_exact_joint_law(rng_key, num_sweeps, num_warmup):
    states, probabilities, _ = law(SMALL)
    kernel = pgm.BlockGibbs(SMALL, num_sweeps=num_sweeps)
    mcmc = run(kernel, rng_key, num_chains=NUM_CHAINS, num_warmup=num_warmup)
    draws = {k: np.asarray(v) for k, v in mcmc.get_samples().items()}
    assert frequencies_p_value(draws, states, probabilities) > ALPHA
    # positive control: the marginals alone are right if h is shuffled among the chains
    shuffled = {**draws, "h": np.random.default_rng(0).permutation(draws["h"])}
    assert frequencies_p_value(shuffled, states, probabilities) < ALPHA


def test_too_few_sweeps_are_noticed(rng_key):
    """Another positive control: chains that just started are not at equilibrium."""
    states, probabilities, _ = law(SMALL)
    draws = run(pgm.BlockGibbs(SMALL), rng_key, num_chains=NUM_CHAINS).get_samples()
    assert frequencies_p_value(draws, states, probabilities) < ALPHA


@pgm.struct
class ThreeFamilies(pgm.EnergyModel):
    """Binary, categorical and real units that all interact; the library has never seen it."""

    switch: jax.Array
    pull: jax.Array
    push: jax.Array
    bias: jax.Array

    @property
    def sites(self):
        levels, reals = self.push.shape
        return {
            "a": pgm.Binary(self.switch.shape[0], dims=("switch",)),
            "level": pgm.Categorical(levels, ()),
            "x": pgm.Real(reals),
        }

    def energy(self, a, level, x):
        field = a @ self.pull + level @ self.push
        chain = jnp.sum(self.bias * a[1:] * a[:-1])
        return 2.0 * jnp.sum(x**2) - 4.0 * x @ field - a @ self.switch @ level - chain


def test_three_families_of_an_unknown_model(rng_key):
    rng = np.random.default_rng(1)
    model = ThreeFamilies(
        switch=jnp.asarray(rng.normal(size=(3, 3)), jnp.float32),
        pull=jnp.asarray(0.5 * rng.normal(size=(3, 2)), jnp.float32),
        push=jnp.asarray(0.5 * rng.normal(size=(3, 2)), jnp.float32),
        bias=jnp.asarray([1.0, -1.5], jnp.float32),
    )
    mcmc = run(pgm.BlockGibbs(model), rng_key, num_chains=NUM_CHAINS, num_warmup=150)
    draws = {k: np.asarray(v) for k, v in mcmc.get_samples().items()}
    assert draws["a"].dtype == np.int8
    assert draws["level"].dtype == np.int32
    assert draws["x"].dtype == np.float32

    # x integrated by hand: given a and level it is normal around the field, with variance 1/4
    switch, bias, pull, push = (
        np.asarray(leaf, float) for leaf in (model.switch, model.bias, model.pull, model.push)
    )
    grid = np.array(np.meshgrid([0, 1], [0, 1], [0, 1], [0, 1, 2], indexing="ij")).reshape(4, -1).T
    a, level = grid[:, :3], grid[:, 3]
    score = np.einsum("nd,dn->n", a, switch[:, level]) + (bias * a[:, 1:] * a[:, :-1]).sum(1)
    score += 2.0 * ((a @ pull + push[level]) ** 2).sum(1)
    probabilities = np.exp(score - logsumexp(score))
    states = {"a": a, "level": level}
    discrete = {k: draws[k] for k in states}
    assert frequencies_p_value(discrete, states, probabilities) > ALPHA
    shuffled = {**discrete, "level": rng.permutation(draws["level"])}
    assert frequencies_p_value(shuffled, states, probabilities) < ALPHA

    def p_value(pull, push):
        """Of the residuals of x given the rest, which are standard normal and independent."""
        field = draws["a"] @ pull + push[draws["level"]]
        return stats.kstest((2.0 * (draws["x"] - field)).ravel(), "norm").pvalue

    assert p_value(pull, push) > ALPHA
    assert p_value(0.5 * pull, push) < ALPHA
    assert p_value(pull, 0.5 * push) < ALPHA


@pytest.mark.filterwarnings("ignore:.* without h is sampled at:UserWarning")
def test_a_marginal_is_sampled_by_energy_differences(rng_key):
    states, joint, _ = law(SMALL)
    free = pgm.marginalize(SMALL, "h")
    draws = run(pgm.BlockGibbs(free), rng_key, num_chains=NUM_CHAINS, num_warmup=40).get_samples()
    codes = np.asarray(states["v"]) @ [8, 4, 2, 1]
    probabilities = np.bincount(codes, joint)
    seen = np.bincount(np.asarray(draws["v"]) @ [8, 4, 2, 1], minlength=16)
    assert pooled_p_value(seen, NUM_CHAINS * probabilities) > ALPHA
    assert pooled_p_value(seen, NUM_CHAINS * np.roll(probabilities, 1)) < ALPHA


def test_clamped_units_stay_where_they_are(rng_key):
    given = pgm.condition(SMALL, v=np.array([1.0, np.nan, 0.0, np.nan]))
    mcmc = run(pgm.BlockGibbs(given), rng_key, num_chains=2000, num_warmup=40)
    draws = {k: np.asarray(v) for k, v in mcmc.get_samples().items()}
    assert (draws["v"][:, [0, 2]] == [1, 0]).all()
    states, probabilities, _ = law(SMALL)
    keep = (states["v"][:, 0] == 1) & (states["v"][:, 2] == 0)
    states = {k: v[keep] for k, v in states.items()}
    assert (
        frequencies_p_value(draws, states, probabilities[keep] / probabilities[keep].sum()) > ALPHA
    )


# ---- chain methods -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vectorized():
    mcmc = run(
        pgm.BlockGibbs(SMALL),
        jax.random.key(5),
        num_chains=2,
        num_warmup=3,
        num_samples=20,
        extra_fields=("flip_rate",),
    )
    return mcmc.get_samples(True), mcmc.get_extra_fields(True)


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable:UserWarning")
@pytest.mark.parametrize("method", ["sequential", jax.vmap], ids=["sequential", "callable"])
def test_chain_methods_give_the_same_chains(vectorized, method):
    """(The warning is NumPyro's own: its NUTS gives it too when mapped by ``jax.vmap``.)"""
    mcmc = run(
        pgm.BlockGibbs(SMALL),
        jax.random.key(5),
        num_chains=2,
        num_warmup=3,
        num_samples=20,
        method=method,
        extra_fields=("flip_rate",),
    )
    assert_same(mcmc.get_samples(True), vectorized[0])
    fields = mcmc.get_extra_fields(True)
    np.testing.assert_allclose(
        fields["potential_energy"], vectorized[1]["potential_energy"], rtol=1e-5
    )
    assert_same(fields["flip_rate"], vectorized[1]["flip_rate"])


def test_chains_in_parallel_on_two_devices(vectorized, tmp_path):
    """Two CPU devices must be asked for before JAX starts: a process of its own."""
    script = textwrap.dedent(
        """
        import sys, warnings
        import numpyro
        numpyro.set_host_device_count(2)
        import jax, numpy as np
        from numpyro.infer import MCMC
        import pgm_energy as pgm

        weights, visible, hidden = (np.load(sys.argv[1])[k] for k in ("w", "b", "c"))
        rbm = pgm.RBM(weights=weights, visible_bias=visible, hidden_bias=hidden)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # "not enough devices" among them
            warnings.filterwarnings("ignore", "Some donated buffers")
            mcmc = MCMC(pgm.BlockGibbs(rbm), num_warmup=3, num_samples=20, num_chains=2,
                        chain_method="parallel", progress_bar=False)
            mcmc.run(jax.random.key(5))
            frozen = pgm.RBM(weights=np.full((2, 1), 60.0), visible=pgm.Spin, hidden=pgm.Spin)
            again = MCMC(pgm.BlockGibbs(frozen), num_warmup=0, num_samples=4, num_chains=2,
                         chain_method="parallel", progress_bar=False)
            start = {"v": np.array([[1, 1], [-1, -1]]), "h": np.array([[1], [-1]])}
            again.run(jax.random.key(5), init_params=start)
            kept = again.get_samples(True)
            assert (kept["v"] == start["v"][:, None]).all()
            assert (kept["h"] == start["h"][:, None]).all()
            again.run(jax.random.key(5), v=np.array([1, 1]))
            assert (again.get_samples(True)["h"] == 1).all()
        assert jax.local_device_count() == 2
        np.savez(sys.argv[2], **mcmc.get_samples(True))
        """
    )
    given, out = tmp_path / "in.npz", tmp_path / "out.npz"
    np.savez(given, w=SMALL.weights, b=SMALL.visible_bias, c=SMALL.hidden_bias)
    done = subprocess.run(
        [sys.executable, "-c", script, str(given), str(out)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    with np.load(out) as samples:
        assert_same(dict(samples), vectorized[0])


def test_a_single_chain_is_the_same_under_both_kinds_of_keys():
    kernel = pgm.BlockGibbs(SMALL)
    typed = run(kernel, jax.random.key(3), num_samples=25).get_samples()
    legacy = run(kernel, jax.random.PRNGKey(3), num_samples=25).get_samples()
    assert_same(typed, legacy)
    assert typed["v"].shape == (25, 4)
    typed = run(kernel, jax.random.key(3), num_samples=5, num_chains=2).get_samples()
    legacy = run(kernel, jax.random.PRNGKey(3), num_samples=5, num_chains=2).get_samples()
    assert_same(typed, legacy)


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize("bad", [0, np.zeros(3)], ids=["seed", "floats"])
def test_what_is_no_key_is_refused(bad):
    with pytest.raises(TypeError, match="rng_key must be one JAX random key"):
        run(pgm.BlockGibbs(SMALL), bad)


def test_progress_bar_changes_nothing(monkeypatch, capfd, vectorized):
    for name in ("CI", "PYTEST_XDIST_WORKER"):  # NumPyro switches it off there
        monkeypatch.delenv(name, raising=False)
    mcmc = run(
        pgm.BlockGibbs(SMALL),
        jax.random.key(5),
        num_chains=2,
        num_warmup=3,
        num_samples=20,
        progress_bar=True,
    )
    assert_same(mcmc.get_samples(True), vectorized[0])
    assert "sample: 100%" in capfd.readouterr().err


def test_thinning_keeps_every_other_draw(vectorized):
    mcmc = run(
        pgm.BlockGibbs(SMALL),
        jax.random.key(5),
        num_chains=2,
        num_warmup=3,
        num_samples=20,
        thinning=2,
    )
    assert_same(mcmc.get_samples(True), {k: v[:, 1::2] for k, v in vectorized[0].items()})


# ---- fields, observables, export -----------------------------------------------------------------


def test_extra_fields_describe_the_draws(vectorized):
    samples, fields = vectorized
    density = SMALL.log_density(samples)
    np.testing.assert_allclose(fields["potential_energy"], -density, rtol=1e-5, atol=1e-5)
    last = {name: units[0, -1] for name, units in samples.items()}
    theirs, _ = numpyro.infer.util.log_density(SMALL, (), {}, last)  # NumPyro's own evaluation
    np.testing.assert_allclose(fields["potential_energy"][0, -1], -theirs, rtol=1e-5)
    for name, units in samples.items():
        moved = (np.asarray(units)[:, 1:] != np.asarray(units)[:, :-1]).mean(axis=-1)
        np.testing.assert_allclose(fields["flip_rate"][name][:, 1:], moved, rtol=1e-6)


def test_observables_are_stored_instead(vectorized):
    kernel = pgm.BlockGibbs(
        SMALL,
        observables={
            "energy": lambda values: -SMALL.log_density(values),
            "agree": lambda values: jnp.sum(values["v"][:3] == values["h"]),
        },
    )
    mcmc = run(kernel, jax.random.key(5), num_chains=2, num_warmup=3, num_samples=20)
    stored = mcmc.get_samples(True)
    assert stored.keys() == {"energy", "agree"}
    np.testing.assert_allclose(stored["energy"], -SMALL.log_density(vectorized[0]), rtol=1e-5)
    agree = (vectorized[0]["v"][..., :3] == vectorized[0]["h"]).sum(-1)
    np.testing.assert_array_equal(stored["agree"], agree)
    # an observed site can be looked at too
    seen = run(kernel, jax.random.key(5), num_samples=5, v=SMALL_V).get_samples()
    assert seen["agree"].shape == (5,)


def test_arviz_reads_it_with_named_dimensions(vectorized):
    mcmc = run(pgm.BlockGibbs(SMALL), jax.random.key(5), num_chains=2, num_warmup=3, num_samples=20)
    tree = az.from_numpyro(mcmc)
    assert tree["posterior"]["v"].dims == ("chain", "draw", "visible")
    assert tree["posterior"]["h"].dims == ("chain", "draw", "hidden")
    np.testing.assert_array_equal(tree["posterior"]["v"], vectorized[0]["v"])
    density = SMALL.log_density(vectorized[0])
    np.testing.assert_allclose(tree["sample_stats"]["lp"], density, rtol=1e-5, atol=1e-5)


# ---- starts and restarts -------------------------------------------------------------------------

#: two spins that never change their mind
FROZEN = pgm.RBM(weights=jnp.full((2, 1), 60.0), visible=pgm.Spin, hidden=pgm.Spin)


@pytest.mark.parametrize("start", [1, -1])
def test_init_params_are_honoured(rng_key, start):
    given = {"v": np.full(2, start), "h": np.full(1, start)}
    mcmc = run(pgm.BlockGibbs(FROZEN), rng_key, num_samples=5, init_params=given)
    for name, value in mcmc.get_samples().items():
        assert value.dtype == np.int8
        assert (value == start).all(), name


@pytest.mark.parametrize(
    "method", ["vectorized", "sequential", jax.vmap], ids=["vectorized", "sequential", "callable"]
)
def test_every_chain_has_its_own_start(rng_key, method):
    given = {"v": np.array([[1, 1], [-1, -1]]), "h": np.array([[1], [-1]])}
    mcmc = run(
        pgm.BlockGibbs(FROZEN),
        rng_key,
        num_chains=2,
        num_samples=3,
        method=method,
        init_params=given,
    )
    samples = mcmc.get_samples(group_by_chain=True)
    assert (samples["v"] == given["v"][:, None]).all()
    assert (samples["h"] == given["h"][:, None]).all()


def test_a_start_of_some_sites_leaves_the_others_random():
    kernel = pgm.BlockGibbs(SMALL)
    keys = jax.random.split(jax.random.key(0), 64)
    start = np.tile(SMALL_V, (64, 1))
    state = kernel.init(keys, 0, {"v": start}, model_args=(), model_kwargs={})
    np.testing.assert_array_equal(state.z["v"], start)
    assert 0.3 < float(state.z["h"].mean()) < 0.7
    np.testing.assert_allclose(state.potential_energy, -SMALL.log_density(state.z), rtol=1e-5)
    assert state.flip_rate.keys() == {"v", "h"}


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(
    "given, observed, error, message",
    [
        ({"x": np.zeros(4)}, {}, ValueError, "RBM has no site 'x'; its sites are 'v', 'h'"),
        ({"v": np.zeros(3)}, {}, ValueError, r"'v' has shape \(4,\), got values of shape \(3,\)"),
        ({"v": np.zeros((2, 4))}, {}, ValueError, r"\['v'\] must have shape \(4,\), got \(2, 4\)"),
        ({"v": np.full(4, 2)}, {}, ValueError, "takes 0 and 1, got 2 at index"),
        ({"v": [0, 0, np.nan, 0]}, {}, ValueError, "takes 0 and 1, got NaN at index"),
        ({"v": np.zeros(4)}, {"v": SMALL_V}, ValueError, "gives site 'v', which is observed"),
        (np.zeros(4), {}, TypeError, "a dict of values by site, got"),
    ],
    ids=["unknown", "short", "batched", "support", "nan", "observed", "array"],
)
def test_bad_starts_are_refused(rng_key, given, observed, error, message):
    given = {k: np.asarray(v) for k, v in given.items()} if isinstance(given, dict) else given
    with pytest.raises(error, match=message):
        run(pgm.BlockGibbs(SMALL), rng_key, init_params=given, **observed)


def test_a_batched_start_must_fit_every_site(rng_key):
    given = {"h": np.zeros((2, 3)), "v": np.zeros((3, 4))}
    with pytest.raises(
        ValueError, match=r"init_params\['v'\] must have shape \(2, 4\) \(chains first"
    ):
        run(pgm.BlockGibbs(SMALL), rng_key, num_chains=2, init_params=given)


@pytest.mark.parametrize("num_chains", [1, 2])
def test_a_warm_restart_continues_exactly(monkeypatch, num_chains):
    kernel = pgm.BlockGibbs(SMALL)
    options = {"num_chains": num_chains, "num_warmup": 4}
    whole = run(kernel, jax.random.key(7), num_samples=20, **options).get_samples(True)
    mcmc = run(kernel, jax.random.key(7), num_samples=10, **options)
    first = mcmc.get_samples(True)

    def refuse(*args, **kwargs):
        raise AssertionError("a warm restart must not initialise")

    monkeypatch.setattr(pgm.BlockGibbs, "init", refuse)
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(mcmc.post_warmup_state.rng_key)
    second = mcmc.get_samples(True)
    for name in whole:
        joined = np.concatenate([first[name], second[name]], axis=1)
        np.testing.assert_array_equal(joined, whole[name])


def test_warmup_then_run(rng_key):
    mcmc = MCMC(pgm.BlockGibbs(SMALL), num_warmup=5, num_samples=10, progress_bar=False)
    mcmc.warmup(rng_key, collect_warmup=True)
    assert mcmc.get_samples()["v"].shape == (5, 4)
    mcmc.run(mcmc.post_warmup_state.rng_key)
    assert mcmc.get_samples()["v"].shape == (10, 4)


# ---- observed sites ------------------------------------------------------------------------------


@pytest.mark.parametrize("jit_model_args", [False, True])
def test_observed_sites(rng_key, jit_model_args):
    """h given v is independent from draw to draw, so its means have known standard errors."""
    mcmc = MCMC(
        pgm.BlockGibbs(SMALL),
        num_warmup=0,
        num_samples=4000,
        progress_bar=False,
        jit_model_args=jit_model_args,
    )
    weights, bias = np.asarray(SMALL.weights, float), np.asarray(SMALL.hidden_bias, float)
    for key, v in zip(jax.random.split(rng_key), (SMALL_V, 1 - SMALL_V), strict=True):
        mcmc.run(key, v=jnp.asarray(v))
        samples = mcmc.get_samples()
        assert samples.keys() == {"h"}
        exact = expit(v @ weights + bias)
        error = np.sqrt(exact * (1 - exact) / 4000)
        assert (np.abs(samples["h"].mean(0) - exact) < 5 * error).all()
        wrong = expit((1 - v) @ weights + bias)
        assert (np.abs(samples["h"].mean(0) - wrong) > 5 * error).any()


def test_a_kernel_is_not_changed_by_what_it_ran_on(rng_key):
    kernel = pgm.BlockGibbs(SMALL)
    first = run(kernel, rng_key, num_samples=5).get_samples()
    run(kernel, rng_key, num_samples=5, v=SMALL_V)
    run(kernel, rng_key, num_samples=5, h=np.ones(3))
    assert_same(run(kernel, rng_key, num_samples=5).get_samples(), first)


@pytest.mark.parametrize(
    "observed, message",
    [
        ({"x": SMALL_V}, "RBM has no site 'x'; its sites are 'v', 'h'"),
        ({"v": np.zeros(3)}, r"site 'v' has shape \(4,\), got values of shape \(3,\)"),
        ({"v": np.zeros((5, 4))}, r"one configuration: map over\s+rows, or use impute"),
        ({"v": np.array([0, np.nan, 1, 0])}, "got NaN .* use condition"),
        ({"v": np.array([0, 3, 1, 0])}, "takes 0 and 1, got 3"),
        ({"v": np.array([0, 0.5, 1, 0])}, r"takes 0 and 1, got 0\.5"),
        ({"v": SMALL_V, "h": np.ones(3)}, "nothing is left to sample: every site is observed"),
    ],
    ids=["unknown", "width", "rows", "nan", "support", "grey", "all"],
)
def test_wrong_observations_are_refused(rng_key, observed, message):
    with pytest.raises(ValueError, match=message):
        run(pgm.BlockGibbs(SMALL), rng_key, **observed)


def test_observations_of_a_wrong_type_are_refused(rng_key):
    with pytest.raises(TypeError, match="takes numbers, got dtype complex"):
        run(pgm.BlockGibbs(SMALL), rng_key, v=np.zeros(4, complex))


def test_positional_arguments_are_refused(rng_key):
    mcmc = MCMC(pgm.BlockGibbs(SMALL), num_warmup=0, num_samples=1, progress_bar=False)
    with pytest.raises(TypeError, match=r"by name, got 1 positional .*mcmc.run\(rng_key, v=x\)"):
        mcmc.run(rng_key, SMALL_V)


# ---- blocks by hand and other arguments ----------------------------------------------------------


def test_blocks_by_hand_sample_the_same_law(rng_key):
    states, probabilities, _ = law(SMALL)
    given = [pgm.Block("v", [0, 2]), "h", pgm.Block("v", [1, 3])]
    kernel = pgm.BlockGibbs(SMALL, blocks=given)
    assert kernel.blocks.num_blocks == 3
    draws = run(kernel, rng_key, num_chains=NUM_CHAINS, num_warmup=80).get_samples()
    assert frequencies_p_value(draws, states, probabilities) > ALPHA


def test_blocks_that_leave_units_out(rng_key):
    with pytest.raises(ValueError, match=r"leave 4 unit\(s\) of site 'v' out, first unit 0"):
        run(pgm.BlockGibbs(SMALL, blocks=["h"]), rng_key)
    assert run(pgm.BlockGibbs(SMALL, blocks=["h"]), rng_key, v=SMALL_V).get_samples().keys() == {
        "h"
    }
    partial = pgm.BlockGibbs(SMALL, blocks=[pgm.Block("v", [0, 1]), "h"])
    with pytest.raises(ValueError, match=r"leave 2 unit\(s\) of site 'v' out, first unit 2"):
        run(partial, rng_key)


def test_blocks_that_are_wrong_for_the_model():
    weights = jnp.asarray([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    machine = pgm.BoltzmannMachine(weights=weights)
    with pytest.raises(
        ValueError, match=r"'v' .*cannot be drawn at once: v\[0\] and v\[1\] interact"
    ):
        pgm.BlockGibbs(machine, blocks=["v"])
    with pytest.raises(ValueError, match="these blocks were made for RBM"):
        pgm.BlockGibbs(machine, blocks=pgm.blocks(SMALL))
    other = pgm.RBM(weights=jnp.zeros((4, 3)))
    assert pgm.BlockGibbs(other, blocks=pgm.blocks(SMALL)).blocks == pgm.blocks(SMALL)


@pytest.mark.usefixtures("annotations_unchecked")
def test_arguments_are_checked():
    with pytest.raises(TypeError, match="takes an energy model, got str"):
        pgm.BlockGibbs("rbm")
    with pytest.raises(ValueError, match="num_sweeps must be an integer of at least 1, got 0"):
        pgm.BlockGibbs(SMALL, num_sweeps=0)
    with pytest.raises(TypeError, match="observable 'm' must be a function, got 3"):
        pgm.BlockGibbs(SMALL, observables={"m": 3})
    assert repr(pgm.BlockGibbs(SMALL, num_sweeps=4)).startswith("BlockGibbs(RBM(")


# ---- agreement with exact marginals and with NumPyro's own kernels -------------------------------


@pytest.fixture(scope="session")
def rbm_12_8():
    """An RBM and its exact means, by hand: 4,096 visible states, hidden units summed out."""
    rng = np.random.default_rng(8)
    weights, b, c = rng.normal(0, 0.8, (12, 8)), rng.normal(0, 0.5, 12), rng.normal(0, 0.5, 8)
    weights, b, c = (np.asarray(x, np.float32).astype(float) for x in (weights, b, c))
    model = pgm.RBM(
        weights=jnp.asarray(weights, jnp.float32),
        visible_bias=jnp.asarray(b, jnp.float32),
        hidden_bias=jnp.asarray(c, jnp.float32),
    )
    v = (np.arange(4096)[:, None] >> np.arange(12)) & 1
    field = v @ weights + c
    score = v @ b + np.logaddexp(0, field).sum(axis=1)
    p = np.exp(score - logsumexp(score))
    return model, {"v": p @ v, "h": p @ expit(field)}


@pytest.fixture(scope="session")
def glass_10():
    """Ten spins, all coupled at random, in a field, and their exact means (1,024 states)."""
    rng = np.random.default_rng(10)
    couplings = np.triu(rng.normal(0, 1 / np.sqrt(10), (10, 10)), 1).astype(np.float32)
    couplings, field = couplings + couplings.T, rng.normal(0, 0.3, 10).astype(np.float32)
    model = pgm.BoltzmannMachine(
        weights=jnp.asarray(couplings), bias=jnp.asarray(field), unit=pgm.Spin
    )
    s = 2.0 * ((np.arange(1024)[:, None] >> np.arange(10)) & 1) - 1
    score = 0.5 * np.einsum("ni,ij,nj->n", s, couplings, s) + s @ field
    p = np.exp(score - logsumexp(score))
    return model, {"v": p @ s}


@pytest.mark.parametrize("name", ["rbm_12_8", "glass_10"])
def test_exact_means_agree_with_the_library(name, request):
    model, means = request.getfixturevalue(name)
    law = pgm.exact(model)
    for site, mean in means.items():
        np.testing.assert_allclose(law.means[site], mean, atol=1e-6)


@pytest.mark.parametrize("name", ["rbm_12_8", "glass_10"])
def test_block_gibbs_agrees_with_exact_marginals(name, request, rng_key):
    model, means = request.getfixturevalue(name)
    mcmc = run(pgm.BlockGibbs(model), rng_key, num_chains=16, num_warmup=300, num_samples=1500)
    for site, mean in means.items():
        draws = mcmc.get_samples(True)[site]
        assert within_five_mcse(draws, mean)
        assert not within_five_mcse(draws, mean + 0.05)  # the test can tell


@pytest.mark.parametrize("name", ["rbm_12_8", "glass_10"])
def test_nuts_on_the_twin_agrees_with_exact_marginals(name, request, rng_key):
    model, means = request.getfixturevalue(name)
    twin = pgm.relax(model)
    mcmc = run(NUTS(twin), rng_key, num_chains=4, num_warmup=300, num_samples=1000)
    decoded = twin.decode(jax.random.key(1), mcmc.get_samples(True))
    for site, mean in means.items():
        assert decoded[site].shape == (4, 1000, *mean.shape)
        assert within_five_mcse(decoded[site], mean)
        assert not within_five_mcse(decoded[site], mean + 0.15)


@pytest.mark.parametrize("name", ["rbm_12_8", "glass_10"])
def test_numpyro_discrete_gibbs_is_a_second_implementation(name, request, rng_key):
    model, means = request.getfixturevalue(name)
    bits = pgm.binarize(model)
    mcmc = run(
        DiscreteGibbs(bits),
        rng_key,
        num_chains=4,
        num_warmup=200,
        num_samples=1500,
        method=jax.vmap,
    )
    decoded = bits.decode(jax.random.key(1), mcmc.get_samples(True))
    for site, mean in means.items():
        assert within_five_mcse(decoded[site], mean)
        assert not within_five_mcse(decoded[site], mean + 0.15)


@pytest.fixture(scope="session")
def gaussian_rbm():
    """Real visible units, and their exact means: the visible layer is a mixture of 8 normals."""
    rng = np.random.default_rng(4)
    weights = rng.normal(0, 0.8, (3, 3)).astype(np.float32)
    b, c = rng.normal(0, 0.5, 3).astype(np.float32), rng.normal(0, 0.5, 3).astype(np.float32)
    precision = np.array([0.8, 1.5, 2.0], np.float32)
    model = pgm.RBM(
        weights=jnp.asarray(weights),
        visible_bias=jnp.asarray(b),
        hidden_bias=jnp.asarray(c),
        visible_precision=jnp.asarray(precision),
        visible=pgm.Real,
    )
    h = (np.arange(8)[:, None] >> np.arange(3)) & 1
    field = b + h @ weights.T
    score = h @ c + 0.5 * (field**2 / precision).sum(1)
    p = np.exp(score - logsumexp(score))
    mean = field / precision
    return model, {"v": p @ mean, "h": p @ h, "square": p @ (mean**2 + 1 / precision)}


def check_gaussian(samples, means):
    v, h = np.asarray(samples["v"], float), np.asarray(samples["h"], float)
    assert within_five_mcse(v, means["v"])
    assert within_five_mcse(h, means["h"])
    assert within_five_mcse(v**2, means["square"])
    assert not within_five_mcse(v, means["v"] + 0.2)


def test_block_gibbs_on_the_gaussian_machine(gaussian_rbm, rng_key):
    model, means = gaussian_rbm
    mcmc = run(pgm.BlockGibbs(model), rng_key, num_chains=16, num_warmup=200, num_samples=1500)
    check_gaussian(mcmc.get_samples(True), means)


def test_nuts_on_the_marginal_of_the_gaussian_machine(gaussian_rbm, rng_key):
    model, means = gaussian_rbm
    free = pgm.marginalize(model, "h")
    mcmc = run(NUTS(free), rng_key, num_chains=4, num_warmup=300, num_samples=1000)
    check_gaussian(free.decode(jax.random.key(1), mcmc.get_samples(True)), means)


@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable:UserWarning")
def test_a_block_of_numpyro_composite_gibbs_beside_nuts(gaussian_rbm, rng_key):
    model, means = gaussian_rbm
    kernel = Gibbs([(pgm.BlockGibbs(model), ["h"]), (NUTS(model), ["v"])])
    mcmc = run(
        kernel,
        rng_key,
        num_chains=4,
        num_warmup=300,
        num_samples=1000,
        method=jax.vmap,
        extra_fields=("block_states.0.potential_energy", "block_states.0.flip_rate"),
    )
    samples = mcmc.get_samples(True)
    check_gaussian(samples, means)
    # the block was refreshed with what NUTS did after it
    energy = mcmc.get_extra_fields(True)["block_states.0.potential_energy"]
    np.testing.assert_allclose(energy, -model.log_density(samples), rtol=1e-4, atol=1e-4)


def test_a_composite_with_an_observed_site_and_a_start(rng_key):
    """The composite conditions on what is observed and hands every block its start."""
    kernel = Gibbs([(pgm.BlockGibbs(FROZEN), ["h"]), (pgm.BlockGibbs(FROZEN), ["v"])])
    start = {"v": np.full(2, -1, np.int8), "h": np.full(1, -1, np.int8)}
    samples = run(kernel, rng_key, num_samples=4, init_params=start).get_samples()
    assert (samples["v"] == -1).all()
    assert (samples["h"] == -1).all()
    alone = Gibbs([(pgm.BlockGibbs(FROZEN), ["h"])])
    samples = run(alone, rng_key, num_samples=4, v=jnp.full(2, -1, jnp.int8)).get_samples()
    assert samples.keys() == {"h"}
    assert (samples["h"] == -1).all()
