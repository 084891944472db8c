"""What the README shows runs, and what it points to exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def python_blocks(text: str) -> list[str]:
    """The python blocks of a Markdown text, in order."""
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def names():
    """What the README's blocks define when they are run one after another, as a reader would."""
    blocks = python_blocks(README)
    assert len(blocks) >= 2
    names: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    return names


def test_the_first_example_is_short():
    assert len(python_blocks(README)[0].splitlines()) <= 25


def test_the_samplers_of_the_first_example_agree(names):
    summary = names["table"].summary
    assert list(summary.index) == ["block Gibbs", "NUTS on the Gaussian twin"]
    assert (summary["rhat_max"].astype(float) < 1.2).all()
    other = (
        summary.loc["block Gibbs", "energy_mean"]
        - summary.loc["NUTS on the Gaussian twin", "energy_mean"]
    )
    error = (summary["energy_mcse"].astype(float) ** 2).sum() ** 0.5
    assert abs(other) < 5 * error


def test_the_model_of_the_first_example_has_learned(names):
    metrics = names["result"].metrics["pseudo_log_likelihood"]
    assert metrics[-1] > metrics[0] + 1.0


def test_the_datatree_has_named_dimensions(names):
    assert dict(names["tree"]["posterior"]["v"].sizes) == {"chain": 16, "draw": 500, "visible": 64}


def test_the_own_model_is_exact(names):
    draws, law = names["draws"], names["law"]
    sampled = draws["v"].mean(axis=0, dtype=float)
    # 4,000 draws of 100 chains: a standard error of about 0.01 for a probability
    assert abs(sampled - law.means["v"]).max() < 0.06


@pytest.mark.parametrize(
    "target", sorted(set(re.findall(r"\]\((?!https?:|#)([^)#]+)", README))), ids=str
)
def test_links_point_to_files(target):
    assert (ROOT / target).exists()


def test_the_picture_is_small():
    assert (ROOT / "docs" / "_static" / "overview.png").stat().st_size < 200_000


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_two_commands_are_there(target):
    assert f"make {target}" in README
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
