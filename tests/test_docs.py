"""The documentation is complete, its code runs, and so do the examples of every docstring."""

import doctest
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import pgm_energy as pgm
from pgm_energy import batch_means, datasets, testing

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
MODULES = ["pgm_energy"]
MODULES += sorted(info.name for info in pkgutil.walk_packages(pgm.__path__, "pgm_energy."))
#: Results and records: something else makes them, and its example shows them.
MADE_BY = {
    "BatchMeansState": "init",
    "Blocks": "blocks",
    "Comparison": "compare",
    "ConformanceReport": "check_energy_model",
    "Diagnosis": "diagnose",
    "Evaluation": "evaluate",
    "ExactResult": "exact",
    "GibbsInfo": "gibbs_kernel",
    "LogPartition": "log_partition",
    "Moments": "result",
    "PairMoments": "running_moments",
    "Posterior": "impute",
    "RunningMoments": "running_moments",
}


def public(module: types.ModuleType) -> dict[str, object]:
    """What a module offers: no private names, no modules, not ``TYPE_CHECKING``."""
    named = getattr(module, "__all__", dir(module))
    found = {name: getattr(module, name) for name in named if not name.startswith("_")}
    return {
        name: value
        for name, value in found.items()
        if not isinstance(value, types.ModuleType | bool)
    }


PUBLIC = {
    **{name: ("pgm_energy", value) for name, value in public(pgm).items()},
    **{name: ("pgm_energy.batch_means", value) for name, value in public(batch_means).items()},
    **{name: ("pgm_energy.datasets", value) for name, value in public(datasets).items()},
    **{name: ("pgm_energy.testing", value) for name, value in public(testing).items()},
}


@pytest.fixture(scope="module")
def reference() -> dict[str, str]:
    """Module of every name that the API page documents."""
    found, module = {}, ""
    for line in (DOCS / "api.md").read_text().splitlines():
        if match := re.match(r"\.\. currentmodule:: (\S+)", line):
            module = match[1]
        elif match := re.match(r"\.\. auto(?:class|function):: (\S+)", line):
            found[match[1]] = module
    return found


def test_something_is_public():
    assert {"RBM", "EnergyModel", "BlockGibbs", "compare", "PCD", "log_partition"} <= set(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_names_are_in_the_reference(name, reference):
    assert reference.get(name) == PUBLIC[name][0], f"add {name} to docs/api.md"


def test_the_reference_names_only_what_is_public(reference):
    assert set(reference) == set(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_names_have_a_docstring_with_an_example(name):
    value = PUBLIC[name][1]
    doc = inspect.cleandoc(value.__doc__ or "")  # its own: not that of a base class
    first = doc.split("\n\n")[0]
    assert first, f"{name} has no docstring"
    assert first.endswith("."), f"the docstring of {name} does not start with a sentence"
    if name in MADE_BY:
        assert "Examples" in inspect.getdoc(PUBLIC[MADE_BY[name]][1])
        return
    if inspect.isclass(value) and issubclass(value, Exception | tuple):
        return  # records of fields, described by their attributes
    assert ">>> " in doc, f"the docstring of {name} has no example"
    assert re.search(r"^Examples\n-{8}$", doc, flags=re.MULTILINE), f"{name}: no Examples section"


def run_doctests(module: types.ModuleType) -> tuple[int, str]:
    """Number of examples in a module's docstrings, and a report of those that fail."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner = doctest.DocTestRunner(optionflags=flags, verbose=False)
    report: list[str] = []
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(test, out=report.append)
    return runner.tries, "".join(report)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.usefixtures("annotations_unchecked")  # as users run them
def test_docstring_examples_run(name):
    _, report = run_doctests(importlib.import_module(name))
    assert not report, report


def test_docstring_examples_are_found():
    """The finder sees functions, classes and methods, and notices a wrong answer."""
    count, report = run_doctests(importlib.import_module("pgm_energy.models.rbm"))
    assert count >= 2
    assert not report
    wrong = types.ModuleType("wrong")
    exec('def f():\n    """Return 2.\n\n    >>> 1 + 1\n    3\n    """\n', wrong.__dict__)
    wrong.f.__module__ = "wrong"
    assert "Expected:\n    3" in run_doctests(wrong)[1]


def blocks_of(page: str) -> list[str]:
    text = (DOCS / page).read_text()
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)])
@pytest.mark.usefixtures("annotations_unchecked")
def test_code_of_the_documentation_runs(page, tmp_path, monkeypatch):
    """Blocks of a page run one after another, as a reader would run them."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": page}
    for block in blocks_of(page):
        exec(compile(block, page, "exec"), names)
    assert len(names) > 1


def test_pages_with_code_are_found():
    assert {"index.md", "concepts.md", "choosing.md", "extending.md", "learning.md"} <= {
        page for page in PAGES if blocks_of(page)
    }


def test_every_page_is_in_the_contents():
    contents = (DOCS / "index.md").read_text().split(":hidden:")[1]
    assert {f"{name}.md" for name in re.findall(r"^\w+$", contents, flags=re.MULTILINE)} == {
        page for page in PAGES if page != "index.md"
    }


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("sphinx", "furo", "myst_parser")),
    reason="the documentation's extras are not installed",
)
def test_documentation_builds_without_warnings(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "trees"), str(DOCS), str(tmp_path / "html")],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "html" / "api.html").read_text()
    for name, (module, _) in PUBLIC.items():
        assert f'id="{module}.{name}"' in page, f"{name} is missing from the built reference"
