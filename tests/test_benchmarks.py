"""The benchmark on tiny shapes: a wrong kernel is never timed, a missing peer is reported."""

import ast
import dataclasses
import json
import re
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import pgm_energy as pgm
from benchmarks import (
    annealing,
    cases,
    contrastive,
    em,
    gate,
    growth,
    growth_learning,
    models,
    ours,
    peers,
    races,
    results,
    single,
    table,
)
from benchmarks.__main__ import run
from benchmarks.timing import Scan, Settings, Spread, race, seconds_without_compiling

ROOT = Path(__file__).resolve().parents[1]
TINY = Settings(rounds=3, min_seconds=0.0, quick=True)


def tiny(case: races.SweepRace, **changes) -> races.SweepRace:
    """The case at the size of its small model, held against floors only."""
    floors = tuple(other for other in case.others if other.role == "floor")
    return dataclasses.replace(
        case, model=case.small, num_chains=3, others=floors, gate_chains=8000, **changes
    )


def wrong_sign(model, num_chains, seed):
    """A kernel that samples at minus the energy."""
    return ours.PureSweep(jax.tree.map(lambda leaf: -leaf, model), num_chains, seed)


@pytest.fixture(autouse=True)
def _unchecked(annotations_unchecked):
    """What is timed is what users run."""


@pytest.mark.parametrize(
    "case",
    [
        cases.rbm_products(4, 3, 3),
        cases.rbm_numpyro(4, 3, 1.0),
        cases.dense_product(7, 3),
        cases.torus(4, 3),
        cases.irregular(9, 3),
    ],
    ids=["rbm", "rbm-numpyro", "dense", "torus", "graph"],
)
def test_our_kernels_pass_the_gate_and_are_timed(case):
    lines = tiny(case)(TINY)
    assert lines
    for line in lines:
        assert line.verdict in {"reached", "missed", "no target"}, line.problem
        assert line.ours is not None
        assert 0 < line.ours.lower <= line.ours.median <= line.ours.upper
        assert "exact law" in line.checked
        assert line.costs["decisions"] > 0


@pytest.mark.parametrize("small", [cases.small_rbm, models.small_torus], ids=["rbm", "torus"])
def test_a_wrong_kernel_is_not_timed_and_fails_the_run(small):
    case = tiny(cases.torus(4, 3), small=small, ours=wrong_sign)
    console = Console(record=True, width=150)
    lines, right = run({"broken": case}, TINY, console)
    assert not right
    (line,) = lines
    assert line.verdict == "wrong"
    assert line.ours is None
    assert "p = " in line.problem
    table.show(console, lines, "broken")
    assert "wrong" in console.export_text()


def test_a_small_bias_is_seen():
    """A kernel whose bias is off by 0.15 nats is rejected at the size of the check."""
    model = models.rbm(0, 4, 3)
    shifted = dataclasses.replace(model, hidden_bias=model.hidden_bias + 0.15)
    runner = ours.PureSweep(shifted, 20_000, 1)
    with pytest.raises(gate.WrongKernel):
        gate.check_runner(runner, model, 2, 32)


def test_the_last_block_shows_repeated_random_numbers():
    model = models.rbm(0, 48, 32)
    schedule = pgm.blocks(model)
    runner = ours.PureSweep(model, 64, 1)
    runner.prepare(4)(2)
    values = runner.values()
    assert "full size" in gate.check_last_block(model, values, schedule)
    # every chain draws with the same numbers
    eta = values["v"] @ np.asarray(model.weights) + np.asarray(model.hidden_bias)
    same = np.random.default_rng(0).random(32)
    values["h"] = (same < 1 / (1 + np.exp(-eta))).astype(np.int8)
    with pytest.raises(gate.WrongKernel, match="a unit"):
        gate.check_last_block(model, values, schedule)


def test_decisions_that_lean_are_rejected():
    def lean(key, eta):
        return jax.random.uniform(key, eta.shape) < jax.nn.sigmoid(eta) + 0.01

    assert "sigmoid" in gate.check_decisions(
        lambda key, eta: jax.random.bernoulli(key, jax.nn.sigmoid(eta)), jax.random.key(0)
    )
    with pytest.raises(gate.WrongKernel):
        gate.check_decisions(lean, jax.random.key(0))


def test_a_missing_peer_is_reported_and_the_rest_goes_on():
    def gone(model, num_chains, seed):
        raise peers.Missing("not installed")

    def breaks(model, num_chains, seed):
        raise RuntimeError("other versions")

    case = dataclasses.replace(
        tiny(cases.torus(4, 3)), others=(races.Other("A", gone), races.Other("B", breaks))
    )
    lines, right = run({"case": case}, TINY, Console(quiet=True))
    assert right
    assert [line.verdict for line in lines[:2]] == ["not installed", "failed"]
    assert lines[2].unit == "updates/ns"
    assert "not installed" in table.markdown(lines)


def test_a_row_that_breaks_fails_the_run():
    def breaks(settings):
        raise RuntimeError("oh")

    lines, right = run({"row": breaks}, TINY, Console(quiet=True))
    assert not right
    assert lines[0].problem == "RuntimeError: oh"


def test_a_race_knows_who_is_slower():
    def work(repeats):
        def step(key, x, a):
            del key
            return jax.lax.fori_loop(0, repeats, lambda _, x: a @ x, x)

        return Scan(step, jnp.ones((64, 64)), jnp.eye(64))

    settings = Settings(rounds=5, min_seconds=0.01)
    times = race({"one": work(10), "other": work(200)}, settings)
    assert 4 < times["other"].ratio(times["one"]).median < 100
    assert times["one"].num_sweeps > times["other"].num_sweeps


def test_compilation_is_left_out():
    def fresh():
        return jax.jit(lambda x: jnp.linalg.eigvalsh(x @ x.T))(jnp.ones((3, 3)))

    start = time.perf_counter()
    inside = seconds_without_compiling(fresh)
    assert 0 < inside < 0.5 * (time.perf_counter() - start)


def test_ising_form_is_the_same_law():
    for model in (models.rbm(1, 3, 2), models.dense(1, 5), models.irregular(1, 8, (3, 5))):
        edges, couplings, fields = peers.ising_form(model)
        law = pgm.exact(model)
        x = np.concatenate([law.states[n].reshape(law.num_states, -1) for n in model.sites], axis=1)
        spins = np.where(x > 0, 1.0, -1.0)
        log = (spins[:, edges[:, 0]] * spins[:, edges[:, 1]]) @ couplings + spins @ fields
        found = np.exp(log - log.max())
        np.testing.assert_allclose(found / found.sum(), law.probabilities, atol=1e-6)


def test_irregular_graphs_are_simple_and_have_the_degrees():
    edges = models.irregular_edges(np.random.default_rng(0), 300, (6, 15))
    degrees = np.bincount(edges.ravel(), minlength=300)
    assert degrees.min() >= 6
    assert degrees.max() <= 16  # one unit makes the sum even
    assert len(np.unique(edges, axis=0)) == len(edges)
    assert (edges[:, 0] < edges[:, 1]).all()


def test_growth_fits_the_exponent_of_the_larger_sizes(tmp_path):
    curve = growth.Curve("a", "units", "64 chains", [1, 2, 4, 8, 16], [5, 5, 4, 16, 64])
    assert curve.exponent == pytest.approx(2.0)
    growth.draw([curve], tmp_path / "growth.png", "test")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    found = growth.measure(TINY, print, (8,), (1, 2), {"torus": lambda units: models.torus(4)})
    assert [len(one.seconds) for one in found] == [1, 2]


def test_growth_of_learning_is_measured():
    tiny = tuple(
        dataclasses.replace(one, sizes=sizes)
        for one, sizes in zip(
            (growth_learning.GROWTHS[0], growth_learning.GROWTHS[-2]),
            ((64, 128), (2,)),
            strict=True,
        )
    )
    found = growth_learning.measure(TINY, print, tiny)
    assert [(one.axis, len(one.seconds)) for one in found] == [("rows", 2), ("hidden units", 1)]
    assert min(second for one in found for second in one.seconds) > 0
    names = {one.axis for one in growth_learning.GROWTHS}
    assert names == {"rows", "components", "hidden units", "chains"}


def test_em_is_held_against_the_likelihood_of_scikit_learn(monkeypatch):
    case = em.EMRace(400, 2, 2, "full", results.Target(1e-9, ">="))
    (line,) = case(dataclasses.replace(TINY, quick=False))
    assert line.verdict == "reached", line.problem
    assert line.ours is not None

    class Ends(em.Ours):
        """One that stops before it is done."""

        def prepare(self, num_sweeps):
            return super().prepare(1)

    monkeypatch.setattr(em, "Ours", Ends)
    (line,) = case(dataclasses.replace(TINY, quick=False))
    assert line.verdict == "wrong"
    assert line.ours is None


def test_pcd_that_does_not_learn_is_not_timed(monkeypatch):
    assert "of the truth" in contrastive.check(TINY)
    monkeypatch.setattr(
        contrastive, "check", lambda settings, whole=contrastive.check: whole(settings, -0.1)
    )
    lines, right = run({"epoch": contrastive.EpochRace()}, TINY, Console(quiet=True))
    assert not right
    assert [line.verdict for line in lines] == ["wrong"]


def test_targets_are_judged_from_the_right_side():
    line = results.Line(
        "a",
        "a",
        "us",
        Spread(2, 1, 3),
        ratio=Spread(1.4, 1.3, 1.6),
        target=results.Target(1.5, "<="),
    )
    assert results.judged(line).verdict == "reached"
    slow = dataclasses.replace(line, target=results.Target(0.2, "<=", "s"))
    assert results.judged(slow).verdict == "missed"  # of the value, not of the ratio
    assert json.dumps(line.to_json())


def test_the_documentation_has_its_markers(tmp_path):
    page = tmp_path / "performance.md"
    page.write_text((ROOT / "docs" / "performance.md").read_text())
    for name in ("cpu", "accelerator"):
        table.write_section(page, name, f"table of {name}")
        table.write_section(page, name, f"newer table of {name}")
        assert len(re.findall(f"table of {name}", page.read_text())) == 1
    with pytest.raises(ValueError, match="begin"):
        table.write_section(page, "other", "")


def test_rows_have_the_names_that_the_command_takes():
    every = cases.all_cases()
    assert {"rbm-784x500-64", "ising-1024-1", "first-draw", "mcmc-loop"} <= set(every)
    assert {"em-full-16", "em-full-32", "em-diag-16", "pcd-784x256-128"} <= set(every)
    assert isinstance(every["ais-784x500-100"], annealing.AnnealingRace)
    assert isinstance(every["schedule"], single.ScheduleTime)
    assert all(name == case.name for name, case in every.items())


def test_the_package_does_not_import_peers():
    found = set()
    for path in (ROOT / "pgm_energy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    assert not found & {"thrml", "blackjax", "dwave", "dimod", "equinox", "benchmarks"}
