"""Samplers of known quality: what the comparison says about them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernels_for_tests import Coins
from numpyro.infer import NUTS, DiscreteGibbs

import pgm_energy as pgm
from pgm_energy._verdicts import exact_means
from pgm_energy.comparison import TIMING_COLUMNS

NUM_CHAINS, NUM_SAMPLES = 4, 500


@pytest.fixture(scope="module")
def rbm():
    first, second = jax.random.split(jax.random.key(1))
    return pgm.RBM(
        weights=jax.random.normal(first, (4, 3)), visible_bias=jax.random.normal(second, (4,))
    )


def compare(model, samplers, **counts):
    counts = {"num_warmup": 50, "num_samples": NUM_SAMPLES, "num_chains": NUM_CHAINS, **counts}
    return pgm.compare(jax.random.key(5), model, samplers, **counts)


@pytest.fixture(scope="module")
def table(rbm):
    told = []
    samplers = {
        "block Gibbs": pgm.BlockGibbs(rbm, num_sweeps=2),
        "NUTS": NUTS(pgm.relax(rbm)),
        "DiscreteGibbs": DiscreteGibbs(rbm),
    }
    before = [dict(vars(kernel)) for kernel in samplers.values()]
    out = compare(rbm, samplers, progress=lambda *args: told.append(args))
    after = [dict(vars(kernel)) for kernel in samplers.values()]
    assert before == after, "kernels must stay as they were"
    return out, told


def test_right_samplers_agree_with_the_exact_marginals(table):
    summary = table[0].summary
    assert list(summary.index) == ["block Gibbs", "NUTS", "DiscreteGibbs"]
    assert (summary["exact_error_mcse"] < 5).all()
    assert (summary["exact_error"] < 0.1).all()
    assert summary["verdict"].str.startswith("Can be trusted").all(), summary["verdict"].tolist()
    assert (summary["rhat_max"] < 1.05).all()
    assert (summary["frozen_units"] == 0).all()
    exact = pgm.exact(table[0].model).means
    for name, tree in table[0].datatrees.items():
        np.testing.assert_allclose(
            tree.posterior.v.mean(("chain", "draw")), exact["v"], atol=0.1, err_msg=name
        )


def test_every_sampler_of_the_package_joins_the_comparison():
    couplings = 0.4 * jax.random.normal(jax.random.key(2), (8,))
    edges = [(i, (i + 1) % 8) for i in range(8)]
    model = pgm.SparseBoltzmannMachine.from_edges(edges, couplings, [0.2] * 8, unit=pgm.Spin)
    samplers = {
        "block Gibbs": pgm.BlockGibbs(model),
        "tempering": pgm.ParallelTempering(model),
        "informed": pgm.GibbsWithGradients(model),
        "Langevin": pgm.DiscreteLangevin(model),
        "clusters": pgm.SwendsenWang(model),
        "twin": NUTS(pgm.relax(model)),
        "twin, per unit": NUTS(pgm.relax(model, shift="per_unit")),
    }
    summary = compare(model, samplers, num_samples=2000).summary
    assert list(summary.index) == list(samplers)
    assert (summary["exact_error_mcse"] < 6).all(), summary["exact_error_mcse"]
    assert (summary["ess_min"] > 100).all(), summary["ess_min"]
    assert (summary["ess_per_second"] > 0).all()


def test_every_sampler_has_its_own_unit_of_work(table):
    comparison, _ = table
    summary = comparison.summary
    draws = NUM_CHAINS * NUM_SAMPLES
    steps = int(comparison.datatrees["NUTS"].sample_stats.n_steps.sum())
    assert summary["evaluations"].tolist() == [2 * draws, steps, 7 * draws]
    assert summary["evaluation"].tolist() == ["sweep", "gradient", "energy"]
    np.testing.assert_allclose(
        summary["ess_per_evaluation"], summary["ess_min"] / summary["evaluations"]
    )
    np.testing.assert_allclose(
        summary["ess_per_second"], summary["ess_min"] / summary["sampling_seconds"]
    )


def test_figures_are_those_of_the_draws(table):
    comparison, _ = table
    row = comparison.summary.loc["NUTS"]
    energy = comparison.datatrees["NUTS"].sample_stats.energy.values
    np.testing.assert_allclose(row["energy_mean"], energy.mean(), rtol=1e-5)
    diagnosis = pgm.diagnose(comparison.datatrees["NUTS"], comparison.model)
    worst = min(float(np.min(d.ess_bulk)) for d in diagnosis.values())
    assert row["ess_min"] == pytest.approx(worst)
    assert row["ess_bulk_median_v"] == pytest.approx(np.median(diagnosis["v"].ess_bulk))


def test_times_are_kept_apart_from_what_repeats(rbm, table):
    comparison, _ = table
    assert (comparison.timings > 0).all().all()
    # compiling takes seconds, the draws of a machine of seven units do not
    timings = comparison.timings
    assert (timings["compile_seconds"] > timings["sampling_seconds"]).all()
    assert not set(TIMING_COLUMNS) & set(comparison.results)
    again = compare(rbm, {"block Gibbs": pgm.BlockGibbs(rbm, num_sweeps=2)})
    columns = [c for c in again.results if not c.startswith(("difference", "reference"))]
    pair = (c.results.loc["block Gibbs", columns] for c in (comparison, again))
    first, second = (row.to_dict() for row in pair)
    assert first == second


def test_progress_is_told(table):
    _, told = table
    assert {(name, phase) for name, phase, _ in told} == {
        (name, phase)
        for name in ("block Gibbs", "NUTS", "DiscreteGibbs")
        for phase in ("compile", "warmup", "sample", "diagnose")
    }
    assert all(0 <= share <= 1 for *_, share in told)
    assert [share for name, phase, share in told if (name, phase) == ("NUTS", "sample")][-1] == 1


def test_it_prints_readably(table):
    text = repr(table[0])
    assert "R-hat, worst" in text
    assert "NUTS: Can be trusted" in text
    assert text.endswith(table[0].headline())
    assert "Fastest: " in table[0].headline()


# ---- samplers whose faults are known -----------------------------------------------------------


@pytest.fixture(scope="module")
def coins():
    """Independent units: 0.5, 0.2 and 0.8 visible, 0.5 hidden."""
    probs = np.array([0.5, 0.2, 0.8])
    logits = np.log(probs / (1 - probs))
    model = pgm.RBM(weights=jnp.zeros((3, 1)), visible_bias=jnp.asarray(logits, jnp.float32))
    return model, {"v": probs, "h": np.array([0.5])}


def test_independent_draws_have_the_full_sample_size(coins):
    model, probs = coins
    lazy = Coins(model, probs, stay=0.9)
    summary = compare(model, {"iid": Coins(model, probs), "lazy": lazy}).summary
    draws = NUM_CHAINS * NUM_SAMPLES
    assert abs(summary.loc["iid", "ess_bulk_median_v"] / draws - 1) < 0.2
    # staying with probability 0.9 has autocorrelation 0.9^lag: (1 - 0.9) / (1 + 0.9) of the draws
    assert abs(summary.loc["lazy", "ess_bulk_median_v"] / draws * 19 - 1) < 0.5
    assert summary.loc["iid", "exact_error_mcse"] < 5
    assert summary.loc["iid", "evaluation"] == "step"


def test_a_wrong_sampler_is_found_out(coins):
    model, probs = coins
    wrong = {"v": np.array([0.5, 0.3, 0.8]), "h": probs["h"]}
    row = compare(model, {"wrong": Coins(model, wrong)}).summary.loc["wrong"]
    assert row["rhat_max"] < 1.05, "nothing is wrong with the mixing"
    assert row["exact_error"] == pytest.approx(0.1, abs=0.03)
    assert row["exact_error_mcse"] > 5
    assert row["verdict"].startswith("Wrong: a mean is off by")


def test_a_missed_mode_is_found_out_where_r_hat_is_blind():
    """All chains start, and stay, in the wide component; only the exact means know the other."""
    model = pgm.GaussianMixture(
        weights=jnp.array([0.5, 0.5]),
        means=jnp.array([[0.0], [100.0]]),
        covariances=jnp.array([1.0, 0.01]),
        covariance_type="spherical",
    )
    row = compare(model, {"Gibbs": pgm.BlockGibbs(model)}).summary.loc["Gibbs"]
    assert row["rhat_max"] < 1.05
    assert row["exact_error"] == pytest.approx(50.0, abs=1.0)
    assert row["verdict"].startswith("Wrong: a mean is off by 50")
    assert "a mode is missed" in row["verdict"]


def test_stuck_and_frozen_units_are_found_out(coins):
    model, probs = coins
    frozen = {"v": np.array([True, False, False])}
    row = compare(model, {"stuck": Coins(model, probs, frozen)}, num_chains=8).summary.loc["stuck"]
    assert row["frozen_units"] == 1
    assert row["stuck_units"] == 1
    assert np.isinf(row["rhat_max"])
    assert row["ess_min"] < 20
    assert "1 unit(s) kept to values that differ between chains" in row["verdict"]
    assert "trusted" not in row["verdict"]

    at_one = {"v": np.array([1.0, 0.2, 0.8]), "h": probs["h"]}
    row = compare(model, {"frozen": Coins(model, at_one)}).summary.loc["frozen"]
    assert (row["frozen_units"], row["stuck_units"]) == (1, 0)
    assert row["verdict"].startswith("Wrong"), "frozen where the exact mean is one half"


def test_without_an_oracle_samplers_are_held_against_each_other():
    size = 24
    model = pgm.BoltzmannMachine(weights=jnp.zeros((size, size)))  # 2^24 states, one site
    half = np.full(size, 0.5)
    wrong = np.where(np.arange(size) == 7, 0.6, 0.5)
    samplers = {"right": Coins(model, {"v": half}), "wrong": Coins(model, {"v": wrong}, stay=0.2)}
    table = compare(model, samplers)
    assert table.exact_means is None
    row = table.summary.loc["wrong"]
    assert row["reference"] == "right"
    assert row["difference_mcse"] > 6
    assert "a mean differs by" in row["verdict"].lower()
    assert np.isnan(row["exact_error"])
    right = table.summary.loc["right"]
    assert right["reference"] == ""
    assert right["verdict"].startswith("Can be trusted")


def test_too_short_a_run_says_so(coins):
    model, probs = coins
    row = compare(model, {"few": Coins(model, probs)}, num_samples=10).summary.loc["few"]
    assert not row["verdict"].startswith("Can be trusted")


def test_exact_means_by_the_smaller_side():
    """23 + 2 units are too many to list, 2^2 hidden states are not."""
    rng = np.random.default_rng(0)
    weights, bias = rng.normal(size=(23, 2)), rng.normal(size=23)
    model = pgm.RBM(
        weights=jnp.asarray(weights, jnp.float32), visible_bias=jnp.asarray(bias, jnp.float32)
    )
    means = exact_means(model)
    states = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    fields = states @ weights.T + bias
    log_weight = np.logaddexp(0, fields).sum(axis=1)
    probs = np.exp(log_weight - np.logaddexp.reduce(log_weight))
    np.testing.assert_allclose(means["h"], probs @ states, rtol=1e-5)
    np.testing.assert_allclose(means["v"], probs @ (1 / (1 + np.exp(-fields))), rtol=1e-5)


class TestRefusals:
    @pytest.mark.parametrize("samplers", [{}, [1], None], ids=["empty", "list", "none"])
    def test_no_samplers(self, rbm, samplers, annotations_unchecked):
        with pytest.raises(ValueError, match="must be a dict of NumPyro kernels by name"):
            compare(rbm, samplers)

    def test_no_kernel(self, rbm):
        with pytest.raises(TypeError, match="sampler 'a' must be a NumPyro kernel"):
            compare(rbm, {"a": rbm})

    def test_kernel_without_an_energy_model(self, rbm):
        with pytest.raises(TypeError, match="sampler 'a' must hold an energy model"):
            compare(rbm, {"a": NUTS(lambda: None)})

    def test_kernel_of_another_model(self, rbm):
        other = pgm.RBM(weights=jnp.zeros((5, 3)))
        with pytest.raises(ValueError, match=r"has a site 'v' of shape \(4,\)"):
            compare(rbm, {"a": pgm.BlockGibbs(other)})

    def test_no_model(self, annotations_unchecked):
        with pytest.raises(TypeError, match="compare takes an energy model, got int"):
            compare(3, {})

    def test_no_chains(self, rbm):
        with pytest.raises(ValueError, match="num_chains must be an integer of at least 1, got 0"):
            compare(rbm, {"a": pgm.BlockGibbs(rbm)}, num_chains=0)

    def test_no_key(self, rbm, annotations_unchecked):
        with pytest.raises(TypeError, match="rng_key must be one JAX random key"):
            pgm.compare(0, rbm, {"a": pgm.BlockGibbs(rbm)})
