"""The figures on real data: what counts is the pessimistic one, and absent data are said."""

import dataclasses
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks import learning, table
from benchmarks.densities import Density, ExactDensity
from benchmarks.figures import Context, Goal, Outcome

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def context(tmp_path) -> Context:
    """A folder with one small data set of twins: the second half of a row copies the first."""
    rows = np.random.default_rng(0).integers(0, 2, (120, 3))
    rows = np.concatenate([rows, rows], axis=1)
    (tmp_path / "twins").mkdir()
    for name, part in (("train", rows[:80]), ("valid", rows[80:100]), ("test", rows[100:])):
        text = "\n".join(",".join(map(str, row)) for row in part) + "\n"
        (tmp_path / "twins" / f"{name}.csv.gz").write_bytes(gzip.compress(text.encode()))
    return Context(tmp_path, seed=0, quick=False)


def twins(**changes) -> Density:
    settings = {"num_hidden": 4, "num_epochs": 60, "learning_rate": 0.05, "batch_size": 40}
    goals = (Goal.least("test", -3.5), Goal.least("test", 0.0, is_stretch=True))
    return Density("twins", "twins", goals=goals, num_chains=100, **{**settings, **changes})


def test_a_density_is_learned_and_judged_at_an_exact_log_z(context):
    outcome = twins()(context)
    assert outcome.log_z.method == "exact"
    # three fair bits cost 2.08 nats, six 4.16
    assert -3.5 < outcome.figures["test"] < -2.0
    assert outcome.figures["test"] == outcome.splits["test"].mean
    assert [goal.judge(outcome.figures) for goal in outcome.goals] == ["reached", "stretch missed"]
    assert outcome.verdict == "reached"
    assert json.dumps(outcome.to_json())


def test_what_counts_is_the_upper_bracket_of_log_z(context):
    exact = twins(num_epochs=2)(context)
    outcome = twins(num_epochs=2, num_betas=51, num_annealed=20)(context)
    z = outcome.log_z
    assert z.method == "ais"
    assert z.lower < exact.log_z.estimate < z.upper
    difference = outcome.figures["test by AIS"] - outcome.figures["test"]
    assert difference == pytest.approx(z.upper - z.estimate, abs=1e-9)
    assert outcome.figures["test"] < exact.figures["test"]
    assert re.search(r"\[-\d+\.\d+, -\d+\.\d+\]", outcome.cells()[4])


def test_exact_maximum_likelihood_is_at_least_as_good_on_its_rows(context):
    exact = ExactDensity("exact", "twins", 100, -2.0, (Goal.most("distance from -2", 10.0),))(
        context
    )
    sampled = twins(num_hidden=0)(context)
    assert exact.splits["train"].mean > sampled.splits["train"].mean - 1e-3
    assert exact.figures["distance from -2"] == pytest.approx(abs(exact.figures["test"] + 2.0))


def test_absent_data_are_said_and_the_rest_goes_on(context, tmp_path):
    gone = dataclasses.replace(twins(), name="gone", data="elsewhere")
    console = Console(record=True, width=200)
    outcomes = learning.run((gone, twins(num_epochs=2)), context, tmp_path, console)
    assert outcomes[0].verdict == "skipped"
    assert "test" in outcomes[1].figures
    written = json.loads((tmp_path / "gone.json").read_text())
    assert "no data: elsewhere/" in written["outcome"]["problem"]
    learning.show(console, outcomes)
    assert "no data: elsewhere/" in console.export_text()
    # what is done is kept, unless settings changed
    (again,) = learning.run((twins(num_epochs=2),), context, tmp_path, console)
    assert again.to_json() == outcomes[1].to_json()
    (other,) = learning.run((twins(num_epochs=3),), context, tmp_path, console)
    assert other.training != again.training


def test_a_missed_target_is_called_missed():
    goal = Goal.least("test", -1.0)
    assert Outcome("a", "a", figures={"test": -1.1}, goals=(goal,)).verdict == "missed"
    assert Outcome("a", "a", figures={"test": -0.9}, goals=(goal,)).verdict == "reached"
    assert Outcome("a", "a", problem="ValueError: no", goals=(goal,)).verdict == "failed"


def test_rows_have_names_of_their_own_and_the_page_its_markers(tmp_path):
    names = [row.name for row in learning.ROWS]
    assert len(set(names)) == len(names)
    page = tmp_path / "results.md"
    page.write_text((ROOT / "docs" / "results.md").read_text())
    machine = {"versions": {}, "load_before": None, "date": "", "processor": "", "cores": 2}
    machine |= {"system": "", "python": ""}
    outcome = Outcome("one", "one", remarks=("it went well",))
    table.write_section(page, "learning", learning.section([outcome], machine, 0))
    assert "- one: it went well" in page.read_text()
