"""Every example gives the answer that it promises, with small arguments."""

import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp
from threadpoolctl import threadpool_limits

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TESTED = {
    "boltzmann_exact_likelihood",
    "boltzmann_hidden",
    "gibbs_vs_hmc",
    "mixture_1d",
    "mixture_three_samplers",
    "own_energy",
    "rbm_features",
    "rbm_missing_pixels",
    "rbm_reconstructions",
}


def example(name: str) -> SimpleNamespace:
    """The names that an example defines."""
    return SimpleNamespace(**runpy.run_path(str(EXAMPLES / f"{name}.py")))


def test_every_example_is_tested():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == TESTED


def test_rbm_features_beat_raw_pixels():
    # small products: more threads than cores to spare would only wait for one another
    with threadpool_limits(1):
        figures = example("rbm_features").main(num_epochs=20, max_rows=3000)
    assert figures["features"] > 0.85
    assert figures["features"] > figures["pixels"] + 0.05


def test_copies_of_an_image_can_be_kept_together():
    train, test, labels, truth = example("rbm_features").split(keep_copies_together=True)
    assert len(train) + len(test) == 5 * 1797
    assert len(labels) == len(train)
    assert len(truth) == len(test)
    count = len(test) // 5  # the first fifth are originals, the second the same moved up
    pictures = test.reshape(5, count, 8, 8)
    moved = pictures[0][:, 1:, :] > 0
    # pixels are scaled by their own maximum, which does not change what is ink
    assert (moved == (pictures[1][:, :-1, :] > 0)).mean() > 0.999


def test_rbm_reconstructs_images_and_draws_a_picture(tmp_path):
    picture = tmp_path / "picture.png"
    figures = example("rbm_reconstructions").main(
        output=picture, num_hidden=32, num_epochs=30, max_rows=600
    )
    # bits that are right with certainty would give 0, the mean image its own variance
    assert 0.02 < figures["reconstruction_error"] < 0.8 * figures["mean_image_error"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_rbm_reconstructions_reads_packed_bits_and_grey_levels(tmp_path):
    load = example("rbm_reconstructions").load
    bits = (np.random.default_rng(0).random((3, 784)) < 0.3).astype(np.int8)
    np.savez(tmp_path / "packed.npz", train=np.packbits(bits, axis=1))
    np.save(tmp_path / "grey.npy", bits.astype(np.uint8) * 200 + 20)
    np.testing.assert_array_equal(load(tmp_path / "packed.npz"), bits)
    np.testing.assert_array_equal(load(tmp_path / "grey.npy"), bits)
    np.save(tmp_path / "small.npy", np.zeros((3, 64)))
    with pytest.raises(ValueError, match="expected rows of 784 pixels, got 64"):
        load(tmp_path / "small.npy")


def test_rbm_completes_and_cleans_images(tmp_path):
    picture = tmp_path / "picture.png"
    figures = example("rbm_missing_pixels").main(
        output=picture, num_hidden=48, num_epochs=15, num_test=40
    )
    assert figures["lost"] < 0.85 * figures["lost_usual"]
    assert figures["flipped"] < 0.8 * figures["flipped_before"] < figures["flipped_usual"]
    # it knows how often it is wrong
    assert abs(figures["lost_expected"] - figures["lost"]) < 0.06
    assert abs(figures["flipped_expected"] - figures["flipped"]) < 0.03
    assert picture.read_bytes().startswith(b"\x89PNG")


def best_likelihoods(train: np.ndarray, test: np.ndarray) -> tuple[float, float]:
    """Log-likelihoods (nats per row) of the most likely fully visible machine, by enumeration."""
    count = train.shape[1]
    pairs = np.triu_indices(count, 1)

    def statistics(rows: np.ndarray) -> np.ndarray:
        return np.hstack([rows, rows[:, pairs[0]] * rows[:, pairs[1]]]).astype(float)

    states = statistics((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
    moments = statistics(train).mean(axis=0)

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        energies = states @ theta
        log_z = logsumexp(energies)
        return log_z - moments @ theta, np.exp(energies - log_z) @ states - moments

    found = minimize(loss, np.zeros(len(moments)), jac=True, method="L-BFGS-B")
    return -found.fun, statistics(test).mean(axis=0) @ found.x - logsumexp(states @ found.x)


def test_exact_likelihood_of_a_visible_machine():
    module = example("boltzmann_exact_likelihood")
    figures = module.main(num_updates=2000)
    train, test = module.embedded()
    frequency = (train.sum(axis=0) + 0.5) / (len(train) + 1.0)
    independent = np.log(np.where(test == 1, frequency, 1 - frequency)).sum(axis=1).mean()
    assert figures["independent_test"] == pytest.approx(independent, abs=1e-2)
    best_train, best_test = best_likelihoods(train, test)
    # columns that nearly determine one another pull couplings to infinity: learning is on its way
    assert best_train - 0.3 < figures["train"] < best_train + 1e-3
    assert figures["test"] == pytest.approx(best_test, abs=0.3)


def test_exact_likelihood_reads_tables(tmp_path):
    rng = np.random.default_rng(1)
    rows = (rng.random((300, 3)) < 0.5).astype(int)
    copied = rng.random(300) < 0.8
    rows[copied, 2] = rows[copied, 0]
    for name, part in (("train.csv", rows[:200]), ("test.csv", rows[200:])):
        np.savetxt(tmp_path / name, part, fmt="%d", delimiter=",")
    module = example("boltzmann_exact_likelihood")
    figures = module.main(tmp_path / "train.csv", tmp_path / "test.csv", num_updates=2000)
    best_train, best_test = best_likelihoods(rows[:200], rows[200:])
    assert figures["train"] == pytest.approx(best_train, abs=0.005)
    assert figures["test"] == pytest.approx(best_test, abs=0.02)
    assert figures["test"] > figures["independent_test"] + 0.1
    with pytest.raises(ValueError, match="both --train and --test"):
        module.main(tmp_path / "train.csv")


def test_hidden_units_learn_parity():
    figures = example("boltzmann_hidden").main()
    # no visible machine can do better than fair coins, and a fitted one does not do worse
    assert figures["visible"] == pytest.approx(-3 * math.log(2), abs=0.01)
    assert figures["visible_even"] == pytest.approx(0.5, abs=0.02)
    # five seeds ended between -1.49 and -1.44
    assert figures["hidden"] > -1.65
    assert figures["hidden"] < -2 * math.log(2) + 1e-4
    assert figures["hidden_even"] > 0.75


def test_mixture_is_recovered():
    module = example("mixture_1d")
    figures = module.main(num_warmup=300, num_samples=300)
    assert figures["divergences"] == 0
    for name, truth in module.TRUTH.items():
        std = figures[f"std_{name}"]
        assert (std < 0.15).all()
        # 5 standard deviations: an error rate below 1e-6 for each parameter
        assert (np.abs(figures[f"em_{name}"] - truth) < 5 * std).all()
        assert (np.abs(figures[f"mean_{name}"] - figures[f"em_{name}"]) < std).all()


def test_three_samplers_of_a_mixture_have_one_posterior():
    module = example("mixture_three_samplers")
    results = module.main(num_rows=150, num_warmup=200, num_samples=500, num_chains=2)
    truth = np.concatenate([module.WEIGHTS, module.MEANS.ravel(), module.DEVIATIONS.ravel() ** 2])
    for row in results.values():
        assert row["min_ess"] > 50
        assert row["r_hat"] < 1.05
        assert row["ess_per_second"] == row["min_ess"] / row["sampling"]
        # 5 deviations of the posterior, and 5 standard errors between two samplers
        assert (np.abs(row["mean"] - truth) < 5 * row["deviation"]).all()
        assert row.get("apart", 0.0) < 5


def test_gibbs_and_hmc_agree_with_the_exact_answer():
    table = example("gibbs_vs_hmc").main(num_spins=6, num_warmup=200, num_samples=500)
    assert list(table.summary.index) == [
        "block Gibbs",
        "NUTS on the Gaussian twin",
        "NumPyro DiscreteGibbs",
    ]
    assert (table.summary["exact_error_mcse"].astype(float) < 5).all()
    assert (table.summary["ess_min"].astype(float) > 200).all()


def test_own_energy_is_sampled_correctly():
    figures = example("own_energy").main(num_samples=5000)
    for name in ("squared_magnetisation", "field_variance"):
        assert figures[name] == pytest.approx(figures[f"exact_{name}"], rel=0.05)
