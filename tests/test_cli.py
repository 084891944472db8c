"""The command line, on tables of a few columns."""

import csv
import gzip

import arviz as az
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

import pgm_energy as pgm
from pgm_energy import _jobs, _training
from pgm_energy._options import Learner
from pgm_energy.cli import app

SMALL = ["--hidden", "2", "--epochs", "3", "--batch-size", "16"]
SHORT = ["--chains", "2", "--warmup", "20", "--samples", "60"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, with a table of bits."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    rows = rng.random((40, 4)) < [0.2, 0.5, 0.5, 0.8]
    rows[:, 2] = rows[:, 1]
    np.savetxt(tmp_path / "bits.csv", rows.astype(int), fmt="%d", delimiter=",")
    return tmp_path


def run(*args, code=0):
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, (result.output, result.exception)
    if code:
        assert "Traceback" not in result.output
    return result.output


def error(*args):
    """Run what must fail and return its one line."""
    output = run(*args, code=2)
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, output
    return lines[0]


@pytest.mark.parametrize("command", ["compare", "train", "sample", "evaluate"])
def test_help(command):
    text = run(command, "--help")
    assert "--seed" in text
    assert "--output" in text


def test_compare_writes_a_folder_and_repeats_with_the_seed(here):
    args = ("compare", "--data", "bits.csv", *SMALL, *SHORT, "--seed", "3")
    output = run(*args)
    folder = here / "runs" / "compare-001"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("report.html", "summary.csv", "timings.csv", "model.safetensors", "metrics.csv"),
        *("block-gibbs.nc", "nuts-on-the-gaussian-twin.nc", "numpyro-discretegibbs.nc"),
        *("trace.png", "rank.png", "ess.png", "autocorrelation.png", "worst_unit.png"),
        *("means.png", "training.png"),
    }
    samplers = ["block Gibbs", "NUTS on the Gaussian twin", "NumPyro DiscreteGibbs"]
    for name in samplers:
        assert f"\n{name}: " in output, "a verdict per sampler"
    assert "Traceback" not in output

    summary = pd.read_csv(folder / "summary.csv", index_col="sampler")
    assert list(summary.index) == samplers
    tree = az.from_netcdf(folder / "block-gibbs.nc", engine="h5netcdf")
    assert dict(tree.posterior.v.sizes) == {"chain": 2, "draw": 60, "visible": 4}
    energy = tree.sample_stats.energy.values
    np.testing.assert_allclose(summary.loc["block Gibbs", "energy_mean"], energy.mean(), rtol=1e-5)
    model = pgm.load(folder / "model.safetensors", cls=pgm.RBM)
    values = {name: tree.posterior[name].values for name in ("v", "h")}
    np.testing.assert_allclose(energy, -np.asarray(model.log_density(values)), rtol=1e-4, atol=1e-5)
    tree.close()

    run(*args)
    again = here / "runs" / "compare-002"
    for name in ("summary.csv", "metrics.csv"):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name
    same = pgm.load(again / "model.safetensors")
    for name in ("weights", "visible_bias", "hidden_bias"):
        np.testing.assert_array_equal(getattr(same, name), getattr(model, name))


def test_compare_on_a_model_file_with_images(here, monkeypatch):
    # one sampler is enough here, and NUTS is slow to compile
    monkeypatch.setattr(_jobs, "standard_samplers", lambda m: {"Gibbs": pgm.BlockGibbs(m)})
    rng = np.random.default_rng(0)
    np.save("images.npy", (rng.random((30, 3, 3)) < 0.5).astype(np.uint8))
    run("train", "--data", "images.npy", *SMALL, "--output", "out")
    assert (here / "out" / "filters.png").exists()
    run("compare", "--load", "out/model.safetensors", *SHORT, "--output", "compared")
    assert (here / "compared" / "samples.png").exists()
    assert (here / "compared" / "report.html").exists()


def test_compare_a_mixture_on_iris(here):
    output = run("compare", "--model", "gmm", *SHORT, "--seed", "1")
    assert "data: iris" in output
    folder = here / "runs" / "compare-001"
    summary = pd.read_csv(folder / "summary.csv", index_col="sampler")
    assert list(summary.index) == ["block Gibbs", "NUTS on the mixture density"]
    with (folder / "metrics.csv").open() as stream:
        history = [float(row["log_likelihood"]) for row in csv.DictReader(stream)]
    assert history[-1] == pytest.approx(-180.1855, abs=0.01), "three full components"


def test_train_sample_evaluate(here):
    output = run("train", "--data", "bits.csv", *SMALL)
    model_file = here / "runs" / "train-001" / "model.safetensors"
    assert "log likelihood (exact)" in output
    model = pgm.load(model_file)

    run("sample", model_file, *SHORT)
    with np.load(here / "runs" / "sample-001" / "samples.npz") as samples:
        assert samples["v"].shape == (2, 60, 4)
        assert set(np.unique(samples["v"])) == {0, 1}

    output = run("evaluate", model_file, "--data", "bits.csv", "--model", "rbm")
    rows = np.loadtxt("bits.csv", delimiter=",")
    expected = pgm.log_likelihood(model, rows)
    assert f"{expected.mean():.4f}" in output
    table = pd.read_csv(here / "runs" / "evaluate-001" / "evaluation.csv", index_col="row")
    np.testing.assert_allclose(table["log_likelihood"], expected, rtol=1e-6)
    np.testing.assert_allclose(
        table["pseudo_log_likelihood"], pgm.pseudo_log_likelihood(model, rows), rtol=1e-5
    )


def test_train_a_boltzmann_machine_on_compressed_grey_levels(here):
    grey = np.random.default_rng(0).integers(0, 256, (30, 5))
    with gzip.open("grey.csv.gz", "wt") as stream:
        np.savetxt(stream, grey, fmt="%d", delimiter=",")
    output = run("train", "--data", "grey.csv.gz", "--model", "bm", *SMALL, "--output", "bm")
    assert "grey levels cut at 127.5" in output
    model = pgm.load(here / "bm" / "model.safetensors", cls=pgm.BoltzmannMachine)
    assert model.weights.shape == (5, 5)
    np.testing.assert_array_equal(model.weights, model.weights.T)


def test_train_writes_all_there_is_to_see_and_goes_on(here):
    """A run of three epochs, then the same command to the end of what a checkpoint began."""
    np.save("images.npy", (np.random.default_rng(0).random((30, 3, 4)) < 0.5).astype(np.uint8))
    args = ("train", "--data", "images.npy", *SMALL, "--out", "run", "--checkpoint", "2")
    output = run(*args, "--learner", "cd", "--sweeps", "1")
    folder = here / "run"
    names = {"model.safetensors", "metrics.csv", "summary.txt", "checkpoints"}
    pictures = {"training.png", "filters.png", "samples.png"}
    assert {path.name for path in folder.iterdir()} == names | pictures
    assert [path.name[-14:] for path in sorted((folder / "checkpoints").iterdir())] == [
        f"0{epoch}.safetensors" for epoch in (0, 2, 3)
    ]
    summary = (folder / "summary.txt").read_text()
    assert "learner: cd" in summary
    assert "3 epochs." in summary
    assert "pseudo log likelihood of 3 validation rows: -" in summary
    table = pd.read_csv(folder / "metrics.csv", index_col="epoch")
    rates = 0.01 * (1 - np.array([1, 3, 5]) / 6)
    np.testing.assert_allclose(table["learning_rate"], rates, rtol=1e-5)
    before = pgm.load(folder / "model.safetensors")
    (folder / "checkpoints" / "checkpoint-000003.safetensors").unlink()  # as if it was killed
    output = run(*args, "--learner", "cd", "--sweeps", "1", "--resume")
    assert "Resumed after epoch 2." in output
    after = pgm.load(folder / "model.safetensors")
    for name in ("weights", "visible_bias", "hidden_bias"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    again = error(*args, "--learner", "cd", "--sweeps", "2", "--resume")
    assert "another run: learner.num_sweeps was 1, is 2" in again
    assert "holds checkpoints of a run (up to epoch 3)" in error(*args, "--force")


def test_early_stopping_keeps_the_best_model(here):
    """Forty rows of noise: the first epochs are the best on rows held out."""
    args = ("--hidden", "2", "--epochs", "60", "--batch-size", "16", "--learning-rate", "0.5")
    output = run("train", "--data", "bits.csv", *args, "--early-stopping", "2", "--out", "run")
    assert "Stopped by a callback after epoch" in output
    table = pd.read_csv(here / "run" / "metrics.csv", index_col="epoch")
    assert len(table) < 60
    rows = _jobs.read_data(here / "bits.csv", "rbm", 0).validation
    model = pgm.load(here / "run" / "model.safetensors")
    scores = pgm.pseudo_log_likelihood(model, rows)
    assert scores.mean() == pytest.approx(table["pseudo_log_likelihood"].max(), abs=1e-5)


def test_learners_of_the_command_line():
    assert list(_training.LEARNERS) == [learner.value for learner in Learner]
    plan = _training.Plan(2, 3, 1, 8, 0.1, chains=4, sweeps=5)
    for make in _training.LEARNERS.values():
        learner = make(optax.sgd(0.1), plan)
        assert getattr(learner, "num_sweeps", 5) == 5
        assert getattr(learner, "num_chains", 4) == 4


def test_folders_are_never_overwritten_without_force(here):
    (here / "mine").mkdir()
    (here / "mine" / "notes.txt").write_text("keep")
    args = ("train", "--data", "bits.csv", *SMALL, "--output", "mine")
    assert "mine exists already: give another --output, or --force" in error(*args)
    assert [path.name for path in (here / "mine").iterdir()] == ["notes.txt"]
    run(*args, "--force")
    assert (here / "mine" / "notes.txt").read_text() == "keep"
    assert (here / "mine" / "model.safetensors").exists()


def test_numbered_folders_follow_the_largest(here):
    (here / "runs" / "train-007").mkdir(parents=True)
    (here / "runs" / "train-x").mkdir()
    assert _jobs.make_folder(None, "train", False).name == "train-008"
    assert _jobs.make_folder(None, "sample", False).name == "sample-001"


class TestErrorsAreOneLine:
    def test_no_such_file(self, here):
        assert "nowhere.csv" in error("train", "--data", "nowhere.csv")
        assert not (here / "runs").exists(), "nothing is left behind"

    def test_truncated_file(self, here):
        np.save("whole.npy", np.zeros((50, 4)))
        content = (here / "whole.npy").read_bytes()
        (here / "half.npy").write_bytes(content[: len(content) // 2])
        assert "half.npy" in error("train", "--data", "half.npy")

    def test_unknown_kind_of_file(self, here):
        (here / "data.xyz").write_text("1,2")
        assert "data.xyz" in error("train", "--data", "data.xyz")

    def test_measurements_for_a_binary_model(self, here):
        np.save("real.npy", np.linspace(-1, 1, 40).reshape(10, 4))
        assert "use --model gmm for measurements" in error("train", "--data", "real.npy")

    def test_missing_values(self, here):
        np.save("gaps.npy", np.array([[0.0, 1.0], [1.0, np.nan]]))
        assert "nan at row 1, column 1" in error("train", "--data", "gaps.npy")

    def test_model_file_of_another_class(self, here):
        pgm.save(pgm.RBM(weights=jnp.zeros((4, 2))), "rbm.safetensors")
        line = error("evaluate", "rbm.safetensors", "--model", "bm")
        assert "holds a RBM, --model bm asks for a BoltzmannMachine" in line

    def test_model_file_of_another_program(self, here):
        save_file({"a": np.zeros(2)}, "other.safetensors")
        assert "other.safetensors" in error("sample", "other.safetensors")

    def test_no_model_file(self, here):
        assert "there is no model file gone.safetensors" in error("sample", "gone.safetensors")

    def test_damaged_model_file(self, here):
        (here / "bad.safetensors").write_bytes(b"not a model")
        assert "bad.safetensors" in error("evaluate", "bad.safetensors")

    def test_rows_that_do_not_fit_the_model(self, here):
        pgm.save(pgm.RBM(weights=jnp.zeros((7, 2))), "rbm.safetensors")
        line = error("evaluate", "rbm.safetensors", "--data", "bits.csv")
        assert "7" in line

    @pytest.mark.parametrize("rate", ["0", "-0.1", "nan"])
    def test_learning_rates_that_are_not_positive(self, here, rate):
        line = error("train", "--data", "bits.csv", "--learning-rate", rate)
        assert "--learning-rate must be positive, got" in line
        assert not (here / "runs").exists()

    def test_what_a_mixture_cannot(self, here):
        line = error("train", "--model", "gmm", "--early-stopping", "3")
        assert "--resume and --early-stopping are for rbm and bm" in line

    def test_resuming_needs_a_folder(self, here):
        assert "--resume goes on with the run in --output" in error("train", "--resume")

    def test_unknown_model(self, here):
        output = run("train", "--model", "dbn", code=2)
        assert "'dbn' is not one of" in output


def test_evaluate_prints_the_brackets_of_log_z(here):
    rng = np.random.default_rng(0)
    model = pgm.RBM(weights=jnp.asarray(0.3 * rng.normal(size=(6, 4)), jnp.float32))
    pgm.save(model, "rbm.safetensors")
    np.savetxt("rows.csv", rng.integers(0, 2, (20, 6)), fmt="%d", delimiter=",")
    args = ("evaluate", "rbm.safetensors", "--data", "rows.csv")
    sampled = run(*args, "--method", "ais", "--chains", "64", "--betas", "101")
    exact = pgm.log_likelihood(model, np.loadtxt("rows.csv", delimiter=",")).mean()
    figures = {
        name: float(line.split("│")[2])
        for line in sampled.splitlines()
        for name in ("(ais)", "upper bracket", "lower bracket")
        if name in line and "│" in line
    }
    assert figures["upper bracket"] <= exact <= figures["lower bracket"]
    assert figures["(ais)"] == pytest.approx(exact, abs=0.05)
    assert "annealed importance sampling, 101 betas, 64 chains" in " ".join(sampled.split())
    assert "Not to be trusted" not in sampled
    # two chains are never enough, and the screen says so
    poor = run(*args, "--method", "ais", "--chains", "2", "--betas", "2")
    assert "Not to be trusted" in poor
    assert "(exact)" in run(*args)
    line = error(*args, "--method", "exact", "--betas", "10")
    assert "num_betas is for methods that sample" in line
