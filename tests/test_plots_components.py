"""Pictures of mixtures show what they say."""

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Ellipse
from scipy import stats

import pgm_energy as pgm
from pgm_energy.learning.em.result import EMResult
from pgm_energy.learning.em.scan import ComponentScan

WEIGHTS = jnp.array([0.3, 0.7])


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def mixture(kind="full"):
    covariances = {
        "full": [[[1.0, 0.5, 0.0], [0.5, 2.0, 0.3], [0.0, 0.3, 0.5]], np.eye(3)],
        "tied": [[1.0, 0.5, 0.0], [0.5, 2.0, 0.3], [0.0, 0.3, 0.5]],
        "diag": [[1.0, 2.0, 0.5], [1.0, 1.0, 1.0]],
        "spherical": [1.0, 0.5],
    }[kind]
    means = jnp.array([[0.0, 0.0, 0.0], [4.0, 1.0, -2.0]])
    return pgm.GaussianMixture(
        weights=WEIGHTS, means=means, covariances=jnp.asarray(covariances), covariance_type=kind
    )


def ellipses(figure):
    return [patch for patch in figure.axes[0].patches if isinstance(patch, Ellipse)]


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_ellipses_hold_the_shares_that_the_title_tells(kind):
    """Points on an ellipse lie at one Mahalanobis distance, that of 50 % or 95 %."""
    model = mixture(kind)
    figure = pgm.plot_components(model, columns=(1, 2))
    found = ellipses(figure)
    assert len(found) == 4
    values = np.asarray(model.covariances, float)
    for number, patch in enumerate(found):
        k, share = number // 2, (0.5, 0.95)[number % 2]
        cov = {
            "full": lambda k=k: values[k],
            "tied": lambda: values,
            "diag": lambda k=k: np.diag(values[k]),
            "spherical": lambda k=k: values[k] * np.eye(3),
        }[kind]()[1:, 1:]
        # the corners of the unit circle, in the patch's own transformation
        angles = np.linspace(0.0, 2 * np.pi, 9)
        points = patch.get_patch_transform().transform(
            np.stack([np.cos(angles), np.sin(angles)], axis=1)
        )
        away = points - np.asarray(model.means)[k, 1:]
        distance = np.einsum("ni,ij,nj->n", away, np.linalg.inv(cov), away)
        np.testing.assert_allclose(stats.chi2(2).cdf(distance), share, atol=1e-4)
    assert "50 % and 95 %" in figure.axes[0].get_title()
    assert [text.get_text() for text in figure.axes[0].texts] == ["0 (0.30)", "1 (0.70)"]


def test_columns_go_by_name_and_rows_take_the_color_of_their_component():
    model = mixture()
    data = pd.DataFrame(
        [[0.1, 0.0, 0.2], [4.0, 1.0, -2.1], [3.9, 1.2, -1.8]], columns=["a", "b", "c"]
    )
    figure = pgm.plot_components(model, data, columns=("c", "a"))
    axis = figure.axes[0]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("c", "a")
    points = axis.collections[0]
    np.testing.assert_allclose(points.get_offsets(), data[["c", "a"]].to_numpy())
    colors = points.get_facecolors()
    assert (colors[1] == colors[2]).all()
    assert (colors[0] != colors[1]).any()


def test_one_column_is_shown_as_densities():
    model = pgm.GaussianMixture(
        weights=WEIGHTS, means=jnp.array([[0.0], [3.0]]), covariances=jnp.ones((2, 1, 1))
    )
    figure = pgm.plot_components(model, np.zeros((5, 1)), names=["size"])
    lines = {line.get_label(): line.get_xydata() for line in figure.axes[0].lines}
    assert list(lines) == ["0 (0.30)", "1 (0.70)", "mixture"]
    x, y = lines["mixture"].T
    expected = 0.3 * stats.norm.pdf(x) + 0.7 * stats.norm.pdf(x, 3.0)
    np.testing.assert_allclose(y, expected, rtol=1e-5)
    assert figure.axes[0].get_xlabel() == "size"
    assert "density" in figure.axes[0].get_ylabel()


@pytest.mark.parametrize("units", [9, 5], ids=["images", "rows"])
def test_bernoulli_components_are_sorted_by_weight(units):
    probs = np.linspace(0.1, 0.9, 2 * units).reshape(2, units)
    model = pgm.BernoulliMixture(weights=WEIGHTS, probs=jnp.asarray(probs))
    figure = pgm.plot_components(model)
    shown = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    np.testing.assert_allclose(shown[np.isfinite(shown)].max(), 0.9, rtol=1e-6)
    first = shown[1:4, 1:4].ravel() if units == 9 else shown[0]
    np.testing.assert_allclose(first, probs[1], rtol=1e-6)  # the heavier one
    assert figure.axes[1].get_ylabel() == "probability"
    assert figure.axes[0].get_title() == "P(unit = 1) of 2 components, largest weight first"


def test_responsibilities_are_sorted():
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(size=(30, 3)), rng.normal([3.0, 1.0, -2.0], size=(20, 3))])
    model = mixture()
    figure = pgm.plot_responsibilities(model, rng.permutation(rows))
    shown = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_allclose(shown.sum(axis=1), 1.0, rtol=1e-5)
    likely = shown.argmax(axis=1)
    assert (np.diff(likely) >= 0).all()
    for k in range(2):
        assert (np.diff(shown[likely == k, k]) <= 1e-6).all()
    assert figure.axes[0].get_ylabel() == "rows, sorted by component"
    assert figure.axes[1].get_ylabel() == "P(component | row)"


def test_scan_rings_the_lowest_value():
    def result(bic):
        """A result with one parameter and one row, so that BIC is minus twice the likelihood."""
        empty = np.zeros(1)
        return EMResult(None, -bic / 2, True, "", empty, empty, 0.0, 1, 1.0)

    scan = ComponentScan((1, 2, 3), tuple(result(bic) for bic in (30.0, 10.0, 20.0)))
    figure = pgm.plot_scan({"full": scan, "diag": scan}, criteria=["bic", "aic"])
    line, ring = figure.axes[0].lines[:2]
    np.testing.assert_allclose(line.get_xydata(), [[1, 30], [2, 10], [3, 20]])
    np.testing.assert_allclose(ring.get_xydata(), [[2, 10]])
    assert figure.axes[0].get_xlabel() == "number of components"
    assert "lower is better" in figure.axes[0].get_ylabel()
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), [32.0, 12.0, 22.0])
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["full", "diag"]


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"columns": (0, 3)}, ValueError, "columns are numbered 0 to 2, got 3"),
        ({"columns": ("a", "q"), "names": "abc"}, ValueError, "no column 'q'"),
        ({"columns": (0, 1, 2)}, ValueError, "columns must be two"),
        ({"names": "ab"}, ValueError, "names must name 3 columns, got 2"),
        ({"data": np.zeros((4, 2))}, ValueError, r"data must have shape \(rows, 3\)"),
    ],
)
def test_bad_requests_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        pgm.plot_components(mixture(), **arguments)


def test_models_that_are_no_mixtures_are_refused():
    rbm = pgm.RBM(weights=jnp.ones((2, 2)))
    with pytest.raises(TypeError, match="a GaussianMixture or a BernoulliMixture, got RBM"):
        pgm.plot_components(rbm)
    with pytest.raises(TypeError, match="shows a mixture, got RBM"):
        pgm.plot_responsibilities(rbm, np.zeros((1, 2)))
    bernoulli = pgm.BernoulliMixture(weights=WEIGHTS, probs=jnp.full((2, 4), 0.5))
    with pytest.raises(ValueError, match=r"4 units do not fill the shape \(3, 2\)"):
        pgm.plot_components(bernoulli, shape=(3, 2))
    with pytest.raises(ValueError, match="there is nothing to show"):
        pgm.plot_scan({})
