"""Pictures have labelled axes; the page stands alone and tells what the table tells."""

import base64
import re

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from kernels_for_tests import Coins

import pgm_energy as pgm
from pgm_energy import plots, report


@pytest.fixture(scope="module")
def table():
    model = pgm.RBM(weights=jnp.zeros((9, 2)))
    probs = {"v": np.full(9, 0.5), "h": np.full(2, 0.5)}
    samplers = {"iid": Coins(model, probs), "<lazy>": Coins(model, probs, stay=0.5)}
    return pgm.compare(
        jax.random.key(0), model, samplers, num_warmup=0, num_samples=200, num_chains=4
    )


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("kind", plots.KINDS)
def test_one_labelled_panel_per_sampler(table, kind):
    figure = table.plot(kind)
    panels = [axis for axis in figure.axes if axis.get_title()]
    assert [axis.get_title() for axis in panels] == ["iid", "<lazy>"]
    assert all(axis.get_xlabel() for axis in panels)
    assert panels[0].get_ylabel()
    assert ("nats" in panels[0].get_ylabel()) == (kind == "trace")


def test_trace_shows_the_draws(table):
    lines = table.plot("trace", site="v", unit=3).axes[0].get_lines()
    draws = table.datatrees["iid"].posterior.v.values[..., 3]
    np.testing.assert_array_equal([line.get_ydata() for line in lines], draws)


def test_the_worst_unit_is_the_default(table):
    ess = np.stack([d["v"].ess_bulk for d in table.diagnoses.values()]).min(axis=0)
    label = table.plot("trace", site="v").axes[0].get_ylabel()
    assert label == f"v[{int(ess.argmin())}]"


def test_samples_are_the_draws(table):
    picture = table.plot("samples").axes[0].images[0].get_array()
    first = table.datatrees["iid"].posterior.v.values[0, 0].reshape(3, 3)
    np.testing.assert_array_equal(picture[1:4, 1:4], first)


@pytest.mark.parametrize(
    "kind, options, message",
    [
        ("pie", {}, "kind must be one of 'trace'"),
        ("trace", {"site": "w"}, "no site 'w'"),
        ("trace", {"site": "v", "unit": 9}, "units 0 to 8, got unit 9"),
        ("samples", {"site": "h"}, "is no image"),
    ],
    ids=["kind", "site", "unit", "image"],
)
def test_refusals(table, kind, options, message):
    with pytest.raises(ValueError, match=message):
        table.plot(kind, **options)


def test_filters_are_the_weights_largest_first():
    weights = np.zeros((9, 2), np.float32)
    weights[4, 0], weights[0, 1] = 1.0, -2.0
    picture = pgm.plot_filters(pgm.RBM(weights=jnp.asarray(weights))).axes[0].images[0]
    pixels = picture.get_array()
    np.testing.assert_array_equal(pixels[1:4, 1:4], weights[:, 1].reshape(3, 3))
    np.testing.assert_array_equal(pixels[1:4, 5:8], weights[:, 0].reshape(3, 3))
    assert picture.get_clim() == (-2.0, 2.0)


def test_filters_need_two_layers():
    with pytest.raises(ValueError, match=r"shows weights\[visible, hidden\]"):
        pgm.plot_filters(pgm.BoltzmannMachine(weights=jnp.zeros((4, 4))))


def test_samples_need_a_shape():
    with pytest.raises(ValueError, match="10 pixels, which is no square: give shape"):
        pgm.plot_samples(np.zeros((3, 10)))
    with pytest.raises(ValueError, match=r"do not fill the shape \(3, 3\)"):
        pgm.plot_samples(np.zeros((3, 10)), (3, 3))
    figure = pgm.plot_samples(np.ones((3, 10)), (2, 5))
    assert figure.axes[0].images[0].get_array().shape == (4, 19)


def test_training_curves_have_units():
    figure = pgm.plot_training({"pseudo_log_likelihood": [-3.0, -2.0], "gradient_norm": [1, 2]})
    assert figure.axes[0].get_ylabel() == "nats per row"
    np.testing.assert_array_equal(figure.axes[0].get_lines()[0].get_ydata(), [-3.0, -2.0])
    with pytest.raises(ValueError, match="no epoch was completed"):
        pgm.plot_training({})


def test_held_out_metrics_lie_over_those_of_training():
    curves = {"speed": [1.0], "objective": [3.0, 2.0], "validation_objective": [3.5, 3.0]}
    figure = pgm.plot_training(curves)
    assert [axis.get_title() for axis in figure.axes] == ["objective", "speed"]
    train, held_out = figure.axes[0].get_lines()
    np.testing.assert_array_equal(held_out.get_ydata(), [3.5, 3.0])
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == [train.get_label(), held_out.get_label()] == ["training", "validation"]
    assert figure.axes[1].get_ylabel() == "value"


@pytest.mark.parametrize(
    "images, limits",
    [
        (np.ones((2, 9)), (0.0, 1.0)),
        (-np.ones((2, 9)), (-1.0, 1.0)),
        (np.full((2, 9), 0.25), (0.0, 1.0)),
        (np.linspace(-3, 5, 18).reshape(2, 9), (-3.0, 5.0)),
    ],
    ids=["bits", "spins", "probabilities", "real"],
)
def test_all_ones_are_black(images, limits):
    assert pgm.plot_samples(images).axes[0].images[0].get_clim() == limits


def test_filters_that_are_no_squares():
    weights = np.arange(12.0).reshape(6, 2)
    picture = pgm.plot_filters(pgm.RBM(weights=jnp.asarray(weights)), (2, 3)).axes[0].images[0]
    np.testing.assert_array_equal(picture.get_array()[1:3, 1:4], weights[:, 1].reshape(2, 3))
    with pytest.raises(ValueError, match="filters have 6 pixels, which is no square: give shape"):
        pgm.plot_filters(pgm.RBM(weights=jnp.asarray(weights)))


def test_the_page_stands_alone(table, tmp_path):
    path = table.to_html(tmp_path / "report.html")
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    pictures = re.findall(r'src="([^"]{22})', page)
    assert len(pictures) == 7
    assert all(source.startswith("data:image/png;base64") for source in pictures)
    data = re.search(r"data:image/png;base64,([^\"]+)", page)
    assert base64.b64decode(data[1]).startswith(b"\x89PNG")
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "&lt;lazy&gt;" in page
    assert "<lazy>" not in page
    assert page.index("<table>") < page.index("<img")
    for text in (*table.summary["verdict"], "num samples", "numpyro", "pgm-energy"):
        assert report.html.escape(text) in page
    assert not plt.get_fignums(), "figures are closed"


def test_the_table_says_the_same_everywhere(table):
    row = table.summary.loc["iid"]
    expected = f"{row['rhat_max']:.3f}"
    for text in (repr(table), table._repr_html_()):
        assert expected in text
        assert f"{row['frozen_units']} of 11" in text


def test_pictures_are_also_written_as_files(table, tmp_path):
    report.write_report(table, tmp_path / "r.html", picture_folder=tmp_path)
    names = {path.name for path in tmp_path.glob("*.png")}
    assert names == {
        *("trace.png", "rank.png", "ess.png", "autocorrelation.png"),
        *("worst_unit.png", "means.png", "samples.png"),
    }
