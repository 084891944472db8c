"""Conditions on conditions: what each level holds stays held, and contradictions are refused."""

import itertools

import jax
import numpy as np
import pytest

import pgm_energy as pgm


def machine():
    rng = np.random.default_rng(0)
    return pgm.RBM(
        weights=rng.normal(size=(3, 2)),
        visible_bias=rng.normal(size=3),
        hidden_bias=rng.normal(size=2),
    )


def brute_force(rbm, held):
    """Log Z and E[v], E[h] by a sum over all states that agree with ``held`` (flat [v, h])."""
    states = np.array(list(itertools.product([0, 1], repeat=5)))
    states = states[[all(s[i] == x for i, x in held.items()) for s in states]]
    v, h = states[:, :3], states[:, 3:]
    weights = np.asarray(rbm.weights, float)
    scores = np.einsum("sd,dh,sh->s", v, weights, h)
    scores += v @ np.asarray(rbm.visible_bias, float) + h @ np.asarray(rbm.hidden_bias, float)
    log_z = np.logaddexp.reduce(scores)
    return log_z, np.exp(scores - log_z) @ states


NAN = np.nan
CASES = {
    "partial in partial": ([{"v": [1, 0, NAN]}, {"h": [1, NAN]}], {0: 1, 1: 0, 3: 1}),
    "whole in partial": ([{"v": [1, 0, NAN]}, {"h": [1, 0]}], {0: 1, 1: 0, 3: 1, 4: 0}),
    "the same site twice": ([{"v": [1, NAN, NAN]}, {"v": [NAN, 0, NAN]}], {0: 1, 1: 0}),
    "said again": ([{"v": [1, NAN, NAN]}, {"v": [1, 0, NAN]}], {0: 1, 1: 0}),
}


@pytest.mark.parametrize("case", CASES, ids=lambda name: name.replace(" ", "-"))
@pytest.mark.parametrize("between", [lambda model: model, pgm.binarize], ids=["plain", "binarize"])
def test_every_level_holds(case, between):
    levels, held = CASES[case]
    rbm = machine()
    model = rbm
    for level in levels:
        values = {name: np.array(value, float) for name, value in level.items()}
        model = between(pgm.condition(model, **values))
    log_z, means = brute_force(rbm, held)
    law = pgm.exact(model)
    assert law.log_partition == pytest.approx(log_z, abs=1e-6)
    assert pgm.log_partition(model).estimate == pytest.approx(log_z, abs=1e-6)
    expected = {"v": means[:3], "h": means[3:]}
    for name in model.sites:
        np.testing.assert_allclose(law.means[name], expected[name], atol=1e-6)
    samples = model.decode(jax.random.key(0), pgm.sample(jax.random.key(1), model, 5))
    flat = np.concatenate([np.asarray(samples["v"]), np.asarray(samples["h"])], axis=1)
    for unit, value in held.items():
        assert (flat[:, unit] == value).all()


def test_a_contradiction_is_refused():
    inner = pgm.condition(machine(), v=np.array([1, 0, NAN]))
    with pytest.raises(ValueError, match=r"holds unit \(0,\) of site 'v' at 1, got 0"):
        pgm.condition(inner, v=np.array([0, 0, 1]))
    with pytest.raises(ValueError, match=r"holds unit \(1,\) of site 'v' at 0, got 1"):
        pgm.condition(inner, v=np.array([NAN, 1, NAN]))
