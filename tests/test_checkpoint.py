"""Checkpoints: a run that was stopped, killed or run out of disk goes on bit for bit."""

import errno
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

import pgm_energy as pgm
from pgm_energy import serialization
from pgm_energy.learning.checkpoint import Snapshot, Store
from pgm_energy.learning.fingerprint import differences, fingerprint
from pgm_energy.learning.loop import check_rows

DATA = np.array([[0, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0], [1, 0, 1]])
START = pgm.RBM(weights=jnp.asarray([[0.1, -0.2], [0.3, 0.0], [-0.1, 0.2]]))
ADAM = optax.adam(optax.exponential_decay(0.1, 10, 0.9))
LEARNER = pgm.PCD(ADAM, num_chains=8)


def run(learner=LEARNER, model=START, data=DATA, **more):
    settings = {"num_epochs": 6, "batch_size": 3, "progress_bar": False, **more}
    return learner.run(jax.random.key(0), model, data, **settings)


def assert_same(first, second):
    """Equal to the last bit: everything the learner has, and every figure."""
    for a, b in zip(jax.tree.leaves(first[:3]), jax.tree.leaves(second[:3]), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert list(first.metrics) == list(second.metrics)
    for name, values in first.metrics.items():
        assert values.tobytes() == second.metrics[name].tobytes(), name


class Crashed(Exception):
    """What no run can catch."""


def crash_in(number):
    """A callback that ends the process's run before its checkpoint is written."""

    def callback(epoch, state, figures):
        if epoch + 1 == number:
            raise Crashed

    return callback


def interrupted(folder, epoch, **more):
    """A folder with the checkpoints of a run that crashed in an epoch."""
    with pytest.raises(Crashed):
        run(checkpoint=folder, callbacks=[crash_in(epoch)], **more)
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def file(epoch):
    return f"checkpoint-{epoch:06d}.safetensors"


# ---- bit for bit ---------------------------------------------------------------------------------

MACHINE = pgm.BoltzmannMachine(weights=jnp.zeros((5, 5)), num_hidden=2)


@pytest.mark.parametrize(
    "learner, model, more",
    [
        (LEARNER, START, {"validation": DATA[:3]}),
        (
            pgm.PCD(optax.sgd(0.1, momentum=0.9), num_chains=8),
            MACHINE,
            {"data": DATA * 0.9, "intensities": "sample"},
        ),
    ],
    ids=["PCD", "clamped latents of drawn bits"],
)
def test_a_resumed_run_is_the_undisturbed_one(learner, model, more, tmp_path):
    undisturbed = run(learner, model, **more)
    folder = interrupted(tmp_path, 4, learner=learner, model=model, **more)
    assert names(folder) == [file(1), file(2), file(3)]
    resumed = run(learner, model, checkpoint=folder, resume=True, **more)
    assert_same(resumed, undisturbed)
    assert "Resumed after epoch 3." in resumed.message
    assert names(folder) == [file(4), file(5), file(6)]
    if model is MACHINE:
        energies = -np.asarray(resumed.model.log_density(resumed.state.chains))
        assert resumed.metrics["chain_energy"][-1] == pytest.approx(energies.mean(), abs=1e-5)


def test_a_run_whose_chains_change_in_number_is_resumed(tmp_path):
    """The checkpoint has other shapes than the run that it is read into begins with."""
    learner = pgm.PCD(ADAM, num_chains=(2, 4), kernel=pgm.TemperedChains(num_replicas=2))
    undisturbed = run(learner, num_epochs=3)
    folder = interrupted(tmp_path, 3, learner=learner, num_epochs=3)
    resumed = run(learner, num_epochs=3, checkpoint=folder, resume=True)
    assert len(resumed.state.chains["v"]) == 4
    assert_same(resumed, undisturbed)


def train(folder):
    """A run slow enough to be killed."""
    pause = [lambda *_: time.sleep(0.02)]
    return run(num_epochs=40, callbacks=pause, checkpoint=folder, resume=True)


def newest(folder):
    numbers = [int(path.stem[-6:]) for path in folder.glob("checkpoint-*.safetensors")]
    return max(numbers, default=0)


#: Imports once, then starts a process that trains for every line it is given.
NURSERY = """
import os, sys
import pgm_energy
for line in sys.stdin:
    child = os.fork()
    if not child:
        import test_checkpoint
        test_checkpoint.train(sys.argv[1])
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_a_run_killed_three_times_ends_like_an_undisturbed_one(tmp_path):
    rng, here = np.random.default_rng(time.time_ns()), Path(__file__).parent
    with subprocess.Popen(
        [sys.executable, "-c", NURSERY, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as nursery:
        for _ in range(3):
            enough, deadline = newest(tmp_path) + rng.integers(1, 6), time.monotonic() + 240
            nursery.stdin.write("train\n")
            child = int(nursery.stdout.readline())
            while newest(tmp_path) < enough and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(rng.uniform(0.0, 0.03))
            os.kill(child, signal.SIGKILL)
            assert int(nursery.stdout.readline()) == -signal.SIGKILL, "it was still training"
            assert newest(tmp_path) >= enough
        nursery.stdin.close()
    assert newest(tmp_path) < 40
    last = train(tmp_path)
    assert "Resumed after epoch" in last.message
    assert_same(last, run(num_epochs=40))


def test_more_epochs_than_before(tmp_path):
    """Averaging begins at half of the new number, where that is yet to come."""
    run(num_epochs=3, checkpoint=tmp_path)
    longer = run(num_epochs=6, checkpoint=tmp_path, resume=True)
    assert_same(longer, run(num_epochs=6))
    assert longer.state.num_updates == 18
    again = run(num_epochs=5, checkpoint=tmp_path, resume=True)
    assert_same(again, longer)
    assert "Resumed after epoch 6" in again.message


def test_averaging_that_has_begun_goes_on(tmp_path):
    models = []
    run(num_epochs=4, checkpoint=tmp_path, batch_size=7)
    keep = [lambda epoch, state, figures: models.append(state.model)]
    run(num_epochs=6, batch_size=7, callbacks=keep)
    longer = run(num_epochs=6, checkpoint=tmp_path, resume=True, batch_size=7)
    # half of 6 is 3, before the checkpoint: the average is that from half of 4 on
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *models[2:])
    for a, b in zip(jax.tree.leaves(longer.averaged), jax.tree.leaves(mean), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_early_stopping_goes_on_where_it_was(tmp_path):
    def stopping():
        return pgm.EarlyStopping("gradient_norm", patience=3, min_delta=100.0)

    alone = stopping()
    undisturbed = run(num_epochs=9, callbacks=[alone])
    assert len(undisturbed.metrics["gradient_norm"]) == 4
    with pytest.raises(Crashed):
        run(num_epochs=9, callbacks=[crash_in(3), stopping()], checkpoint=tmp_path)
    again = stopping()
    resumed = run(num_epochs=9, callbacks=[again], checkpoint=tmp_path, resume=True)
    assert_same(resumed, undisturbed)
    assert (again.best_epoch, again.best_value) == (alone.best_epoch, alone.best_value)
    np.testing.assert_array_equal(again.best_model.weights, alone.best_model.weights)
    ended = run(num_epochs=9, callbacks=[stopping()], checkpoint=tmp_path, resume=True)
    assert_same(ended, undisturbed)
    assert "Stopped by a callback after epoch 4: gradient_norm has not improved" in ended.message


# ---- what is in the folder -----------------------------------------------------------------------


def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_used(tmp_path):
    undisturbed = run()
    whole = interrupted(tmp_path / "run", 4)
    content = (whole / file(3)).read_bytes()
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weights": np.ones((3, 2))}, foreign)
    pgm.save(START, tmp_path / "model.safetensors")
    flipped = bytearray(content)
    flipped[-3] ^= 1
    bad = {
        "or a truncated one": content[: len(content) // 2],
        "is no checkpoint": b"not a checkpoint",
        "but no checkpoint of pgm_energy": foreign.read_bytes(),
        "model.*but no checkpoint": (tmp_path / "model.safetensors").read_bytes(),
        "its numbers are not those": bytes(flipped),
    }
    for number, (message, text) in enumerate(bad.items()):
        folder = tmp_path / f"{'model' if 'model' in message else 'run'}{number}"
        folder.mkdir()
        (folder / file(2)).write_bytes((whole / file(2)).read_bytes())
        (folder / file(3)).write_bytes(text)
        with pytest.warns(UserWarning, match=f"{message}.*Going back to the one before"):
            resumed = run(checkpoint=folder, resume=True)
        assert "Resumed after epoch 2." in resumed.message
        assert_same(resumed, undisturbed)
    for path in whole.iterdir():
        path.write_bytes(b"not a checkpoint")
    with (
        pytest.warns(UserWarning, match="Going back"),
        pytest.raises(ValueError, match=r"none of the 3 checkpoints in .* can be read: delete"),
    ):
        run(checkpoint=whole, resume=True)


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    run(num_epochs=1, checkpoint=tmp_path)
    tensors = load_file(tmp_path / file(1))
    with serialization.safe_open(tmp_path / file(1), framework="numpy") as opened:
        metadata = opened.metadata()
    save_file(tensors, tmp_path / file(1), metadata={**metadata, "format_version": "2"})
    with pytest.warns(UserWarning, match="has format version 2, this pgm_energy reads version 1"):
        resumed = run(num_epochs=1, checkpoint=tmp_path, resume=True)
    assert "Resumed after epoch 0." in resumed.message
    versions = metadata["versions"].replace(jax.__version__, "0.1.0")
    save_file(tensors, tmp_path / file(1), metadata={**metadata, "versions": versions})
    with pytest.warns(UserWarning, match=r"jax was 0\.1\.0, is .* but not bit for bit"):
        run(num_epochs=1, checkpoint=tmp_path, resume=True)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"batch_size": 7}, r"batch_size was 3, is 7"),
        ({"data": 1 - DATA}, r"data\.values\['v'\] was int8 \(7, 3\) \w+, is int8 \(7, 3\) \w+"),
        ({"learner": pgm.PCD(optax.adam(0.1), num_chains=8)}, r"learner\.optimizer.*was"),
        ({"learner": pgm.CD(ADAM)}, r"learner was .*PCD, is .*CD"),
    ],
    ids=["batch size", "data", "schedule", "learner"],
)
def test_another_run_is_refused_with_what_differs(change, message, tmp_path, stored):
    with pytest.raises(ValueError, match=f"is a checkpoint of another run: .*{message}"):
        run(checkpoint=stored, resume=True, **change)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    run(num_epochs=1, checkpoint=folder)
    return folder


def test_a_folder_in_use_is_not_overwritten(stored, tmp_path):
    with pytest.raises(FileExistsError, match=r"up to epoch 1\): continue it with resume=True"):
        run(checkpoint=stored)
    (tmp_path / "taken").write_text("notes")
    with pytest.raises(FileExistsError, match=r"takes the path of a folder, .*taken is a file"):
        run(checkpoint=tmp_path / "taken")
    with pytest.raises(ValueError, match="resume=True needs to know from where"):
        run(resume=True)


def test_nothing_to_resume_starts_anew(tmp_path):
    (tmp_path / "notes.txt").write_text("keep")
    result = run(num_epochs=1, checkpoint=tmp_path, resume=True)
    assert f"There was no checkpoint in {tmp_path}: started anew." in result.message
    assert names(tmp_path) == [file(0), file(1), "notes.txt"]
    assert_same(result, run(num_epochs=1))


def test_old_ones_are_pruned_and_nothing_else(tmp_path):
    (tmp_path / ".checkpoint-000002.safetensors.abc").write_text("left by a run that was killed")
    plan = pgm.Checkpoint(tmp_path, every_epochs=2, keep=2)
    seen = []
    run(num_epochs=5, checkpoint=plan, callbacks=[lambda *_: seen.append(newest(tmp_path))])
    assert seen == [0, 0, 2, 2, 4]
    assert names(tmp_path) == [file(4), file(5)], "the last epoch is always kept"
    (tmp_path / file(99)).write_text("not ours")
    with pytest.warns(UserWarning, match="000099.safetensors is no checkpoint"):
        run(num_epochs=7, checkpoint=plan, resume=True)
    assert names(tmp_path) == [file(5), file(7), file(99)]


def test_by_the_clock(tmp_path, monkeypatch):
    plan = pgm.Checkpoint(tmp_path, every_epochs=None, every_minutes=10)
    store, empty = Store(plan, {}), Snapshot(0, jax.random.key(0), (), {}, {})
    now = time.monotonic()
    store.write(empty)
    assert not store.is_due(100)
    monkeypatch.setattr(time, "monotonic", lambda: now + 601)
    assert store.is_due(1)
    store.write(empty._replace(epoch=1))
    assert not store.is_due(2)


def test_a_full_disk_costs_no_epoch_and_no_older_checkpoint(tmp_path, monkeypatch):
    """The disk is full when the file is half written, and has room again after two epochs."""
    calls = []

    def full(handle, real=os.fsync):
        calls.append(handle)
        if 6 < len(calls) <= 8:  # two calls per checkpoint, one of them for the folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(serialization.os, "fsync", full)
    seen = []
    with pytest.warns(RuntimeWarning) as told:
        result = run(checkpoint=tmp_path, callbacks=[lambda *_: seen.append(names(tmp_path))])
    assert len(told) == 1
    assert (
        f"checkpoint of epoch 3 could not be written to {tmp_path} (No space left on device); "
        "that of epoch 2 stays"
    ) in str(told[0].message)
    assert seen[4] == [file(0), file(1), file(2)], "no half file"
    assert names(tmp_path) == [file(2), file(5), file(6)]
    assert_same(result, run())
    assert "not be written" not in result.message


def test_a_disk_that_stays_full_is_told_at_the_end(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pgm_energy.learning.checkpoint.write_tensors", full)
    with pytest.warns(RuntimeWarning, match="epoch 0 could not be written"):
        result = run(num_epochs=2, checkpoint=tmp_path)
    assert result.message.endswith(
        f"No checkpoint could be written to {tmp_path}: No space left on device."
    )
    assert len(result.metrics["gradient_norm"]) == 2


@pytest.mark.usefixtures("annotations_unchecked")
def test_what_a_checkpoint_refuses():
    with pytest.raises(TypeError, match="path must be the path of a folder, got int"):
        pgm.Checkpoint(3)
    with pytest.raises(ValueError, match="every_epochs must be an integer of at least 1, got 0"):
        pgm.Checkpoint("a", every_epochs=0)
    with pytest.raises(ValueError, match=r"every_minutes must be positive, got -1\.0"):
        pgm.Checkpoint("a", every_minutes=-1.0)
    with pytest.raises(ValueError, match="both are None"):
        pgm.Checkpoint("a", every_epochs=None)
    with pytest.raises(ValueError, match="keep must be an integer of at least 1, got 0"):
        pgm.Checkpoint("a", keep=0)
    with pytest.raises(TypeError, match="path must be the path of a folder, got float"):
        run(checkpoint=0.5)


def test_any_tree_is_kept(tmp_path):
    """Typed keys, small floats, numbers of Python and NumPy, scalars, empty arrays.

    Only shapes may be others than at the start: the number of chains may change between epochs.
    """
    tree = {
        "keys": jax.random.split(jax.random.key(3, impl="rbg"), 2),
        "half": jnp.asarray([1.5, -0.0, jnp.nan], jnp.bfloat16),
        "list": [jnp.int8(3), np.arange(4)[::2], jnp.zeros((0, 2))],
        "plain": (3, 0.1, True, np.float64(1e-300), None),
    }
    start = Snapshot(2, jax.random.key(5), tree, {}, {"a": np.array([0.5, np.nan])})
    store = Store(tmp_path, {"seed": "1"})
    store.write(start)
    zero = jax.tree.map(
        lambda x: type(x)(0) if isinstance(x, int | float) else x, {**tree, "other": ()}
    )
    zero["half"] = jnp.zeros(7, jnp.bfloat16)
    found = Store(tmp_path, {"seed": "1"}).open(start._replace(epoch=0, learned=zero), True)
    assert found.epoch == 2
    assert jax.tree.structure(found.learned) == jax.tree.structure({**tree, "other": ()})
    for a, b in zip(jax.tree.leaves(found.learned), jax.tree.leaves(tree), strict=True):
        assert type(a) is type(b)
        if isinstance(a, jax.Array) and jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            assert jax.random.key_impl(a) == jax.random.key_impl(b)
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).dtype == np.asarray(b).dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    np.testing.assert_array_equal(found.metrics["a"], [0.5, np.nan])
    with pytest.raises(ValueError, match=r"learned\['half'\] was uint16, is float32"):
        Store(tmp_path, {"seed": "1"}).open(
            start._replace(learned={**tree, "half": jnp.zeros(3)}), True
        )


# ---- fingerprints --------------------------------------------------------------------------------


def schedule(scale):
    return lambda step: scale / (1.0 + 0.01 * step)


def table(rates):
    return lambda step, rates=rates: rates[step]


def constant(step):
    return 0.1


MAKERS = {
    "rate": (lambda: optax.adam(0.1), lambda: optax.adam(0.2)),
    "other optimizer": (lambda: optax.adam(0.1), lambda: optax.sgd(0.1)),
    "schedule": (
        lambda: optax.sgd(optax.linear_schedule(0.1, 0.0, 100)),
        lambda: optax.sgd(optax.linear_schedule(0.1, 0.0, 200)),
    ),
    "own schedule": (lambda: optax.sgd(schedule(0.1)), lambda: optax.sgd(schedule(0.2))),
    "constants": (
        lambda: optax.sgd(lambda step: 0.1 * 0.99**step),
        lambda: optax.sgd(lambda step: 0.1 * 0.98**step),
    ),
    "jitted": (lambda: optax.sgd(jax.jit(constant)), lambda: optax.sgd(jax.jit(schedule(0.1)))),
    "partial": (
        lambda: optax.sgd(functools.partial(pow, 0.5)),
        lambda: optax.sgd(functools.partial(pow, 0.6)),
    ),
    "chain": (
        lambda: optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1)),
        lambda: optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.1)),
    ),
    "injected": (
        lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
        lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.2),
    ),
    "array": (
        lambda: optax.sgd(table(np.arange(20.0))),
        lambda: optax.sgd(table(np.arange(20.0) ** 2)),
    ),
}


@pytest.mark.parametrize("name", MAKERS)
def test_optimizers_are_told_apart(name):
    first, second = MAKERS[name]
    words, again, other = (fingerprint(learner=pgm.PCD(make())) for make in (first, first, second))
    assert differences(words, again) == []
    assert differences(words, other) != []
    assert not any(" at 0x" in word for word in words.values()), "no addresses"


def test_models_are_told_apart_by_structure():
    words = fingerprint(model=START)
    moved = jax.tree.map(lambda x: x + 1.0, START)
    assert differences(words, fingerprint(model=moved)) == [], "parameters are what is learned"
    wider = fingerprint(model=pgm.RBM(weights=jnp.zeros((3, 4))))
    assert "model.weights was float32 (3, 2), is float32 (3, 4)" in differences(words, wider)
    spins = fingerprint(model=pgm.RBM(weights=jnp.zeros((3, 2)), hidden=pgm.Spin))
    assert [text.partition(" was ")[0] for text in differences(words, spins)] == ["model.hidden"]
    nested = fingerprint(model=pgm.temper(START, moved, 0.5))
    assert any(name.startswith("model.base") and name.endswith("hidden") for name in nested)


def test_rows_are_told_apart():
    rows = check_rows(START, DATA, None, None)
    words = fingerprint(data=rows, validation=None)
    weighed = fingerprint(data=check_rows(START, DATA, np.arange(1, 8), None), validation=None)
    assert [text.partition(" was ")[0] for text in differences(words, weighed)] == ["data.weights"]
    held_out = differences(words, fingerprint(data=rows, validation=rows))
    assert held_out[0].startswith("validation was None, is pgm_energy.learning.loop.Rows")


def test_differences_are_few_words():
    then = {str(i): "a" for i in range(9)}
    assert differences(then, {**then, "0": "b"}) == ["0 was a, is b"]
    assert differences(then, {}) == [*(f"{i} was a, is absent" for i in range(4)), "and 5 more"]
