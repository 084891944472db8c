"""tilt: evidence that is linear in T(x), against the law written out, and with other transforms."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import zoo

import pgm_energy as pgm
from pgm_energy.natural import derive_natural_parameters
from pgm_energy.testing import check_energy_model


def field(site, seed=0):
    return np.random.default_rng(seed).normal(size=site.encoded_shape).astype(np.float32)


MODELS = {
    "binary": zoo.rbm("binary", "spin"),
    "spin": zoo.machine(4, pgm.Spin),
    "categorical": zoo.rbm("categorical", "binary"),
    "lattice": pgm.ising_lattice((3, 2), coupling=0.4, periodic=False),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_law_is_multiplied(name):
    model = MODELS[name]
    fields = {k: field(site, i) for i, (k, site) in enumerate(model.sites.items())}
    tilted = pgm.tilt(model, **fields)
    states, joint, log_z = oracles.law(model)
    factor = sum(
        np.sum(x * oracles.encode(model.sites[k], states[k]), axis=tuple(range(1, x.ndim + 1)))
        for k, x in fields.items()
    )
    weights = joint * np.exp(factor)
    law = pgm.exact(tilted)
    np.testing.assert_allclose(law.probabilities, weights / weights.sum(), atol=1e-7)
    assert law.log_partition == pytest.approx(log_z + np.log(weights.sum()), abs=1e-5)
    assert str(pgm.blocks(tilted)).split("\n")[1:] == str(pgm.blocks(model)).split("\n")[1:]
    oracles.assert_invariant(tilted)


@pytest.mark.parametrize("visible", ["binary", "categorical", "real"])
def test_tilted_models_sit_the_exam(visible):
    model = zoo.rbm(visible, "binary")
    precision = {"v": 0.7} if visible == "real" else None
    check_energy_model(pgm.tilt(model, precision=precision, v=field(model.sites["v"])))


def test_a_precision_alone_and_a_coupled_site():
    """A normal times a normal: precisions and fields add up."""
    covariance = np.array([[1.0, 0.6], [0.6, 2.0]])
    model = pgm.GaussianMixture(
        weights=jnp.ones(1), means=np.ones((1, 2)), covariances=covariance[None]
    )
    precision = np.array([0.0, 3.0])
    prior = np.linalg.inv(covariance)
    posterior = prior + np.diag(precision)
    mean = np.linalg.solve(posterior, prior @ np.ones(2))
    tilted = pgm.tilt(model, precision={"x": precision})
    np.testing.assert_allclose(pgm.exact(tilted).means["x"], mean, rtol=1e-5)
    values = {"z": np.zeros((), np.int32), "x": np.zeros(2, np.float32)}
    law = tilted.conditional("x", values)
    np.testing.assert_allclose(law.covariance_matrix, np.linalg.inv(posterior), rtol=1e-5)
    # E[exp(-x'Px/2)] under the prior
    log_z = 0.5 * (np.linalg.slogdet(prior)[1] - np.linalg.slogdet(posterior)[1])
    log_z += 0.5 * (mean @ posterior @ mean - np.ones(2) @ prior @ np.ones(2))
    assert pgm.log_partition(tilted).estimate == pytest.approx(log_z, abs=1e-5)


@pytest.mark.parametrize("visible", ["binary", "categorical", "real"])
def test_tilt_and_condition_commute(visible):
    """Also in log Z: a clamped unit's evidence counts at its value."""
    model = zoo.rbm(visible, "binary")
    given = {"binary": [1, np.nan, 0], "categorical": [2, np.nan, 0], "real": [0.5, np.nan, -2.0]}
    given = np.array(given[visible])
    precision = {"v": np.array([0.5, 1.0, 2.0])} if visible == "real" else None
    evidence = field(model.sites["v"])
    first = pgm.condition(pgm.tilt(model, precision=precision, v=evidence), v=given)
    second = pgm.tilt(pgm.condition(model, v=given), precision=precision, v=evidence)
    one, two = pgm.exact(first), pgm.exact(second)
    assert one.log_partition == pytest.approx(two.log_partition, abs=1e-9)
    for name in model.sites:
        np.testing.assert_allclose(one.means[name], two.means[name], atol=1e-9)
    untilted = pgm.exact(pgm.condition(model, v=given))
    assert np.abs(one.means["v"] - untilted.means["v"]).max() > 0.01


@pytest.mark.parametrize("block", [None, np.array([2, 0])], ids=["site", "block"])
@pytest.mark.parametrize("visible", ["binary", "spin", "categorical", "real"])
def test_fast_natural_parameters_of_tilted_and_conditioned_models(visible, block):
    """The shortcuts through the inner model give what the energy's derivatives do."""
    model = zoo.rbm(visible, "binary")
    precision = {"v": np.array([0.5, 1.0, 2.0])} if visible == "real" else None
    tilted = pgm.tilt(model, precision=precision, v=field(model.sites["v"]), h=np.ones(2))
    mask = np.array([True, False, True])
    given = {"free": {"v": mask}, "v": zoo.random_values(model)["v"]}
    for outer in (tilted, pgm.condition(model, **given), pgm.condition(tilted, **given)):
        values = zoo.random_values(outer, seed=3)
        index = None if block is None else jnp.asarray(block)
        own = outer.natural_parameters("v", values, index)
        derived = derive_natural_parameters(outer, "v", values, index)
        for quick, slow in zip(own, derived, strict=True):
            if quick is not None:
                np.testing.assert_allclose(quick, slow, rtol=1e-5, atol=1e-5)


def test_rows_of_evidence_are_mapped():
    model = zoo.rbm()
    rows = np.stack([field(model.sites["v"], seed) for seed in range(3)])
    values = zoo.random_values(model)
    mapped = jax.vmap(lambda row: pgm.tilt(model, v=row).log_density(values))(rows)
    alone = [float(pgm.tilt(model, v=row).log_density(values)) for row in rows]
    np.testing.assert_allclose(mapped, alone, rtol=1e-5)


def test_gradient_of_log_z_is_the_mean():
    model = zoo.rbm("spin", "binary")
    step = 1e-3
    tilted = [
        pgm.log_partition(pgm.tilt(model, v=np.array([0.0, d, 0.0]))).estimate
        for d in (step, -step)
    ]
    mean = pgm.exact(model).means["v"][1]
    assert (tilted[0] - tilted[1]) / (2 * step) == pytest.approx(mean, abs=1e-5)


def test_decode_and_nothing_to_do(rng_key):
    model = zoo.rbm("spin", "spin")
    tilted = pgm.tilt(pgm.binarize(model), v=np.ones(3))
    draws = tilted.decode(rng_key, pgm.sample(rng_key, tilted, 8, num_warmup=2))
    assert set(np.unique(draws["v"])) <= {-1, 1}
    assert pgm.tilt(model) is model
    assert tilted.title == "RBM in bits tilted at v"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"u": 1.0}, "RBM has no site 'u'"),
        ({"v": np.ones(2)}, r"field v must have shape \(3,\), got \(2,\)"),
        ({"v": np.ones((5, 3))}, r"got \(5, 3\); map over rows with jax.vmap"),
        ({"v": np.array([0.0, np.nan, 0.0])}, "must be finite, got nan"),
        ({"precision": {"v": 1.0}}, "a precision is for real sites, 'v' is binary"),
        ({"precision": {"x": 1.0}}, "RBM has no site 'x'"),
    ],
)
def test_wrong_evidence_is_told(arguments, message):
    with pytest.raises(ValueError, match=message):
        pgm.tilt(zoo.rbm(), **arguments)


def test_a_negative_precision_is_told():
    with pytest.raises(ValueError, match=r"precision\['v'\] must not be negative, got -1"):
        pgm.tilt(zoo.rbm("real", "binary"), precision={"v": np.array([1.0, -1.0, 0.0])})


@pytest.mark.usefixtures("annotations_unchecked")
def test_precision_is_a_dict_by_name():
    model = zoo.rbm("real", "binary")
    with pytest.raises(TypeError, match=r"precision is a dict by real site.*got float"):
        pgm.tilt(model, precision=1.0)
    with pytest.raises(TypeError, match="positional argument"):
        pgm.tilt(model, {"v": 1.0})


@pytest.mark.usefixtures("annotations_unchecked")
def test_what_is_no_model():
    with pytest.raises(TypeError, match="tilt takes an energy model, got float"):
        pgm.tilt(1.0)
