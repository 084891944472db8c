"""The host loop: interrupts, steps that go wrong, early stopping, figures, chunks of batches."""

import csv
import dataclasses
import signal
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pgm_energy as pgm
from pgm_energy.learning import epochs
from pgm_energy.learning.learner import GradientLearner
from pgm_energy.learning.metrics import in_words
from pgm_energy.learning.stochastic_em import StochasticEM

DATA = np.array([[0, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0], [1, 0, 1]])
START = pgm.RBM(weights=jnp.asarray([[0.1, -0.2], [0.3, 0.0], [-0.1, 0.2]]))
LEARNER = pgm.PCD(optax.adam(0.1), num_chains=8)


def run(learner=LEARNER, model=START, data=DATA, **more):
    settings = {"num_epochs": 4, "batch_size": 3, "progress_bar": False, **more}
    return learner.run(jax.random.key(0), model, data, **settings)


def assert_same(first, second):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


# ---- chunks --------------------------------------------------------------------------------------


def test_however_an_epoch_is_cut_the_numbers_are_the_same(monkeypatch):
    """One batch at a time, or all at once: to the last bit, figures included."""
    cuts = []

    def recorded(*args, _real=epochs.run_batches, **options):
        cuts.append(args[3:5])
        return _real(*args, **options)

    monkeypatch.setattr(epochs, "run_batches", recorded)
    results = []
    for short, long in ((-1.0, 1e9), (1e9, 1e9)):
        monkeypatch.setattr(epochs, "_SHORT", short)
        monkeypatch.setattr(epochs, "_LONG", long)
        cuts.clear()
        results.append(run())
        assert (0, 1) in cuts
        assert ((0, 3) in cuts) == (short > 0)
    one, all_at_once = results
    assert_same(one[:3], all_at_once[:3])
    for name, values in one.metrics.items():
        np.testing.assert_array_equal(values, all_at_once.metrics[name])


def test_a_batch_larger_than_the_data_is_all_of_them():
    assert_same(run(batch_size=1000)[:3], run(batch_size=7)[:3])


# ---- interrupts ----------------------------------------------------------------------------------


def interrupting(monkeypatch, calls, times):
    """Press Ctrl-C so many times in the middle of an epoch."""
    count = []

    def pressed(*args, _real=epochs.run_batches, **options):
        count.append(1)
        if len(count) == calls:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return _real(*args, **options)

    monkeypatch.setattr(epochs, "run_batches", pressed)
    monkeypatch.setattr(epochs, "_SHORT", -1.0)  # one batch per call
    monkeypatch.setattr(epochs, "_LONG", 1e9)


def test_an_interrupt_ends_with_the_epoch(monkeypatch, tmp_path, capsys):
    expected = run(num_epochs=2)
    whole = run(num_epochs=9)
    interrupting(monkeypatch, calls=5, times=1)
    plan = pgm.Checkpoint(tmp_path, every_epochs=100)
    result = run(num_epochs=9, checkpoint=plan, progress_bar=True)
    assert result.message.endswith("Interrupted after epoch 2 of 9.")
    assert len(result.metrics["gradient_norm"]) == 2
    assert_same(result.model, expected.model)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = run(num_epochs=9, checkpoint=plan, resume=True)
    assert "Resumed after epoch 2." in again.message
    assert_same(again[:3], whole[:3])


def test_a_second_interrupt_leaves_the_epoch_out(monkeypatch, tmp_path):
    expected = run(num_epochs=1)
    interrupting(monkeypatch, calls=5, times=2)
    result = run(num_epochs=9, checkpoint=pgm.Checkpoint(tmp_path, every_epochs=100))
    assert result.message.endswith("Interrupted; the result is that of the 1 epochs before.")
    assert_same(result.model, expected.model)
    assert (tmp_path / "checkpoint-000001.safetensors").exists()


# ---- steps that go wrong -------------------------------------------------------------------------


def test_a_schedule_that_jumps_to_nan_stops_before_the_step():
    """Seven rows in batches of three: update 8 is the second batch of epoch 3."""
    optimizer = optax.sgd(lambda step: jnp.where(step < 7, 0.1, jnp.nan))
    ends = []
    for how in ("stop", "halve"):
        with pytest.warns(RuntimeWarning) as told:
            result = run(
                pgm.PCD(optimizer, num_chains=8),
                num_epochs=5,
                on_invalid=how,
                callbacks=[lambda epoch, state, figures: ends.append(state.model)],
            )
        assert len(told) == 1
        assert result.message.endswith(
            "Stopped: the parameters were no longer finite in epoch 3, batch 2 of 3, a step that "
            "was undone; the gradient was finite, the optimizer's step was not: look at its "
            "learning rate or schedule."
        )
        assert str(told[0].message) in result.message
        assert result.state.num_updates == 7
        assert len(result.metrics["gradient_norm"]) == 2
        assert np.abs(np.asarray(result.model.weights - ends[-1].weights)).max() > 1e-4
    assert len(ends) == 4
    assert np.isfinite(result.averaged.weights).all()


class DescentState(NamedTuple):
    model: pgm.EnergyModel
    optimizer: Any
    chains: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Descent(GradientLearner):
    """Descent of half the square of all parameters: steps longer than 2 diverge."""

    optimizer: optax.GradientTransformation

    def init(self, rng_key, model, rows):
        return DescentState(model, self.optimizer.init(model), {})

    def update(self, rng_key, state, batch, index):
        updates, optimizer = self.optimizer.update(state.model, state.optimizer, state.model)
        new = optax.apply_updates(state.model, updates)
        return DescentState(new, optimizer, {}), {"gradient_norm": optax.tree.norm(state.model)}


def descend(rate=30.0, num_epochs=30, **more):
    """Thirty batches an epoch, the parameters grow 29 times in each."""
    data = np.resize(DATA, (30, 3))
    return run(Descent(optax.sgd(rate)), data=data, num_epochs=num_epochs, batch_size=1, **more)


def test_steps_that_are_too_long_are_halved_until_they_are_not(tmp_path):
    with pytest.warns(RuntimeWarning) as told:
        undisturbed = descend(on_invalid="halve")
    words = [str(warning.message) for warning in told]
    assert 3 <= len(words) <= 6, "15 and 7.5 diverge in one epoch, 3.75 in some, 1.875 never"
    for number, text in enumerate(words, start=1):
        assert "the parameters were no longer finite in epoch" in text
        assert f"the epoch begins anew with {0.5**number:g} of the learning rate" in text
    assert "in epoch 1, batch 2" in words[0]
    assert len(undisturbed.metrics["gradient_norm"]) == 30
    assert undisturbed.metrics["gradient_norm"][-1] < 1e-3

    def crash(epoch, state, figures):
        if epoch == 1:
            raise ZeroDivisionError

    with pytest.warns(RuntimeWarning), pytest.raises(ZeroDivisionError):
        descend(on_invalid="halve", checkpoint=tmp_path, callbacks=[crash])
    with pytest.warns(RuntimeWarning):
        resumed = descend(on_invalid="halve", checkpoint=tmp_path, resume=True)
    assert_same(resumed[:3], undisturbed[:3])


def test_a_run_that_stopped_goes_on_with_shorter_steps(tmp_path):
    with pytest.warns(RuntimeWarning, match="in epoch 1, batch 2.*undone; lower the learning rate"):
        stopped = descend(checkpoint=tmp_path)
    assert stopped.metrics == {}
    assert np.isfinite(stopped.model.weights).all()
    assert np.abs(stopped.model.weights).max() > 1e30, "only the last step was undone"
    with pytest.warns(RuntimeWarning):
        resumed = descend(checkpoint=tmp_path, resume=True, on_invalid="halve")
    assert resumed.metrics["gradient_norm"][-1] < 1e-3


def test_halving_ends(monkeypatch):
    monkeypatch.setattr(epochs, "_MOST_HALVINGS", 2)
    with pytest.warns(RuntimeWarning) as told:
        result = descend(rate=1e4, on_invalid="halve")
    assert len(told) == 3
    assert result.message.endswith("undone; halving the learning rate 2 times did not help.")


@pytest.mark.usefixtures("annotations_unchecked")
def test_arguments_of_the_loop():
    with pytest.raises(ValueError, match="on_invalid must be 'stop' or 'halve', got 'warn'"):
        run(on_invalid="warn")
    with pytest.raises(ValueError, match="halves the steps of an optimizer, this StochasticEM has"):
        run(StochasticEM(), on_invalid="halve")
    for number in (0, -3, 2.0):
        with pytest.raises(ValueError, match="num_epochs must be an integer of at least 1, got"):
            run(num_epochs=number)


# ---- figures -------------------------------------------------------------------------------------


def test_metrics_go_to_csv(tmp_path):
    result = run(validation=DATA[:3])
    result.to_csv(tmp_path / "metrics.csv")
    with (tmp_path / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    for name, values in result.metrics.items():
        np.testing.assert_array_equal([float(row[name]) for row in rows], values)


def test_a_learning_rate_that_the_optimizer_tells_is_a_metric():
    falling = optax.linear_schedule(0.1, 0.0, 12)
    learner = pgm.PCD(optax.inject_hyperparams(optax.adam)(learning_rate=falling), num_chains=8)
    result = run(learner)
    rates = 0.1 * (1 - np.array([2, 5, 8, 11]) / 12)  # of the last update of each epoch
    np.testing.assert_allclose(result.metrics["learning_rate"], rates, rtol=1e-5)
    assert "learning_rate" not in run().metrics


@pytest.mark.parametrize("rate", [-0.1, 0.0])
def test_a_learning_rate_that_teaches_nothing_is_refused(rate):
    learner = pgm.PCD(optax.inject_hyperparams(optax.sgd)(learning_rate=rate), num_chains=8)
    with pytest.raises(ValueError, match=f"optimizer must be positive, got {rate:g}"):
        run(learner)


def test_a_schedule_may_begin_at_zero():
    rising = optax.inject_hyperparams(optax.sgd)(optax.linear_schedule(0.0, 0.1, 12))
    metrics = run(pgm.PCD(rising, num_chains=8)).metrics
    assert (np.diff(metrics["learning_rate"]) > 0).all()


def test_what_stands_beside_the_bar(capsys):
    figures = {
        "gradient_norm": 1.0,
        "pseudo_log_likelihood": -1.23456,
        "free_energy_gap": 0.5,
        "chain_free_energy": -3.0,
        "learning_rate": 0.001,
    }
    assert in_words(figures) == "log PL -1.235  gap 0.5  chains -3  rate 0.001"
    run(progress_bar=True)
    out = capsys.readouterr().out
    assert "4/4" in out
    assert "rows/s" in out


def test_a_learning_rate_of_zero_is_told():
    moved = jax.tree.map(lambda x: x + 1e-6, START)
    words = "did not move though the gradient is not zero: is the learning rate zero?"
    assert words in epochs._unmoved(START, START, {"gradient_norm": np.array([0.0, 0.5])})
    assert epochs._unmoved(START, moved, {"gradient_norm": np.array([0.5])}) == ""
    assert epochs._unmoved(START, START, {"gradient_norm": np.array([0.5, 0.0])}) == ""
    assert epochs._unmoved(START, START, {}) == ""


# ---- early stopping ------------------------------------------------------------------------------


def watch(values, **more):
    """Show an EarlyStopping a figure of so many epochs; return it and where it said stop."""
    stopping = pgm.EarlyStopping("score", **more)
    stopping.begin(START)
    for epoch, value in enumerate(values):
        model = pgm.RBM(weights=jnp.full((3, 2), float(epoch)))
        if stopping(epoch, DescentState(model, None, {}), {"score": value}):
            return stopping, epoch + 1
    return stopping, None


@pytest.mark.parametrize(
    "values, more, best, end",
    [
        ([1, 2, 3, 2, 2, 2], {"patience": 3}, 3, 6),
        ([1, 2, 3, 2, 2], {"patience": 3}, 3, None),
        ([3, 2, 1, 2, 2], {"patience": 2, "maximize": False}, 3, 5),
        ([1, 1.1, 1.2, 1.3], {"patience": 2, "min_delta": 0.15}, 3, None),
        ([1, 1.1, 1.1, 1.3], {"patience": 2, "min_delta": 0.15}, 1, 3),
        ([1, np.nan, np.nan, 5], {"patience": 2}, 1, 3),
        ([np.nan, np.inf, 5, 4], {"patience": 3}, 3, None),
        ([np.nan, np.nan], {"patience": 2}, 0, 2),
    ],
)
def test_early_stopping(values, more, best, end):
    stopping, found = watch(values, **more)
    assert (stopping.best_epoch, found) == (best, end)
    if best:
        assert stopping.best_value == values[best - 1]
        assert float(stopping.best_model.weights[0, 0]) == best - 1
    else:
        assert stopping.best_model is None


@pytest.mark.parametrize(
    "metric, larger",
    [
        ("pseudo_log_likelihood", True),
        ("reconstruction_error", False),
        ("free_energy_gap", False),
        ("validation_objective", False),
    ],
)
def test_which_way_is_better(metric, larger):
    assert pgm.EarlyStopping(metric).maximize == larger


def test_early_stopping_on_validation_rows():
    """Training rows that mislead: the model of the first epochs is the best on the others."""
    train, validation = np.ones((7, 3), int), np.array([[0, 0, 0], [1, 1, 1], [0, 0, 1]])
    stopping = pgm.EarlyStopping(patience=2)
    result = run(data=train, num_epochs=50, validation=validation, callbacks=[stopping])
    scores = result.metrics["pseudo_log_likelihood"]
    assert stopping.best_epoch == 1 + np.argmax(scores) == len(scores) - 2
    assert stopping.best_value == scores.max()
    score = pgm.pseudo_log_likelihood(stopping.best_model, validation).mean()
    assert score == pytest.approx(scores.max(), abs=1e-5)
    assert result.message.endswith("whose model is best_model of the EarlyStopping.")
    second = run(data=train, num_epochs=50, validation=validation, callbacks=[stopping])
    np.testing.assert_array_equal(second.metrics["pseudo_log_likelihood"], scores)


@pytest.mark.usefixtures("annotations_unchecked")
def test_what_early_stopping_refuses():
    with pytest.raises(ValueError, match="patience must be an integer of at least 1, got 0"):
        pgm.EarlyStopping(patience=0)
    with pytest.raises(ValueError, match="min_delta must not be negative, got -1"):
        pgm.EarlyStopping(min_delta=-1)
    with pytest.raises(ValueError, match=r"watches 'loss', the epochs of this run have .*norm"):
        run(callbacks=[pgm.EarlyStopping("loss")])
