"""Energies that are easy to sample wrongly: whatever schedule is proposed must be exact."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax import Array

import pgm_energy as pgm
from pgm_energy.probe import eager_float64


@pgm.struct
class Written(pgm.EnergyModel):
    """An energy given as a function: ``function(parameters, **sites)``."""

    parameters: Array
    function: object = pgm.static()
    units: object = pgm.static()

    @property
    def sites(self):
        return dict(self.units)

    def energy(self, **values):
        return self.function(self.parameters, **values)


def written(function, **sites):
    rng = np.random.default_rng(5)
    return Written(
        parameters=rng.normal(scale=0.8, size=(6, 6)), function=function, units=tuple(sites.items())
    )


def symmetric(w, n):
    w = 0.5 * (w + w.T)[:n, :n]
    return w - jnp.diag(jnp.diag(w))


@jax.custom_jvp
def quietly(x):
    return x


@quietly.defjvp
def _quietly_jvp(primals, tangents):  # a derivative that lies
    return primals[0], 0.5 * tangents[0]


BINARY, SPIN = pgm.Binary(4), pgm.Spin(4)
STATES = pgm.Categorical(3, 3)

#: name: (energy, sites, kind of the first site's step or None where any exact one will do)
ENERGIES = {
    "independent": (lambda w, x: -w[0, :4] @ x, {"x": BINARY}, "joint"),
    "pairs": (lambda w, x: -0.5 * x @ symmetric(w, 4) @ x, {"x": BINARY}, "sequential"),
    "pairs-spin": (lambda w, x: -0.5 * x @ symmetric(w, 4) @ x, {"x": SPIN}, "sequential"),
    # a matrix with a diagonal: a unit's field would depend on the unit itself
    "diagonal": (lambda w, x: -0.5 * x @ w[:4, :4] @ x, {"x": BINARY}, "difference"),
    "diagonal-spin": (lambda w, x: -0.5 * x @ w[:4, :4] @ x, {"x": SPIN}, "difference"),
    "square": (lambda w, x: -w[0, :4] @ x**2, {"x": BINARY}, "difference"),
    "square-spin": (lambda w, x: -w[0, :4] @ x - w[1, 0] * jnp.sum(x) ** 2, {"x": SPIN}, None),
    "cubic": (
        lambda w, x: -w[0, 0] * x[0] * x[1] * x[2] - w[0, 1] * x[1] * x[3] - w[2, :4] @ x,
        {"x": BINARY},
        "sequential",
    ),
    "equal": (
        lambda w, x: jnp.sum(jnp.where(x[:-1] == x[1:], w[0, :3], 0.0)) - w[1, :4] @ x,
        {"x": SPIN},
        "difference",
    ),
    "equal-only": (lambda w, x: -2.0 * (x[0] == x[3]).astype(x.dtype), {"x": BINARY}, "difference"),
    "where": (
        lambda w, x: jnp.where(x[0] > 0.5, -w[0, :4] @ x, w[1, :4] @ x),
        {"x": BINARY},
        "difference",
    ),
    "where-other-site": (
        lambda w, x, z: jnp.where(z[0] > 0.5, -w[0, 0] * x[0] * x[1], 0.0) - w[1, :4] @ x,
        {"x": BINARY, "z": pgm.Binary(1)},
        None,
    ),
    "abs": (lambda w, x: w[0, 0] * jnp.abs(jnp.sum(x) - 2.0), {"x": BINARY}, "difference"),
    "max": (lambda w, x: w[0, 0] * jnp.max(x * w[1, :4]), {"x": SPIN}, "difference"),
    "sort": (lambda w, x: jnp.sort(x) @ w[0, :4], {"x": BINARY}, "difference"),
    "round": (lambda w, x: jnp.round(w[0, :4] @ x) - w[1, :4] @ x, {"x": BINARY}, "difference"),
    "index": (lambda w, x: -w[0, jnp.sum(x).astype(int)], {"x": BINARY}, "difference"),
    "index-state": (
        lambda w, c: -w[jnp.argmax(c[0]), jnp.argmax(c[1])] - jnp.sum(w[:3, :3] * c),
        {"c": STATES},
        "difference",
    ),
    "stop-gradient": (
        lambda w, x: -w[0, 0] * x[0] * jax.lax.stop_gradient(x[1]) - w[1, :4] @ x,
        {"x": BINARY},
        "difference",
    ),
    "stop-gradient-all": (
        lambda w, x: jax.lax.stop_gradient(-0.5 * x @ symmetric(w, 4) @ x),
        {"x": SPIN},
        "difference",
    ),
    "false-derivative": (lambda w, x: quietly(-w[0, :4] @ x), {"x": BINARY}, "difference"),
    "parity": (lambda w, x: -w[0, 0] * jnp.prod(x) - w[1, :4] @ x, {"x": SPIN}, "sequential"),
    "cosine": (lambda w, x: jnp.cos(jnp.pi * jnp.sum(x)) - w[1, :4] @ x, {"x": BINARY}, None),
    "product-of-sites": (
        lambda w, x, h: -h[0] * w[0, 0] * x[0] * x[1] - h[1] * (w[0, :4] @ x),
        {"x": BINARY, "h": pgm.Spin(2)},
        None,
    ),
    "potts": (
        lambda w, c: -w[0, 0] * (c[0] @ c[1] + c[1] @ c[2]) - jnp.sum(c * w[:3, :3]),
        {"c": STATES},
        None,
    ),
    "quadratic-states": (
        lambda w, c: -jnp.einsum("ik,kl,jl->", c, w[:3, :3], c) - jnp.sum(c * w[3:, :3]),
        {"c": STATES},
        "difference",
    ),
    "states-squared": (lambda w, c: -jnp.sum(w[:3, :3] * c**2), {"c": STATES}, "difference"),
    "one-configuration": (
        lambda w, x: jnp.where(jnp.all(x == jnp.array([1.0, 0, 1, 0])), -2.0, 0.0),
        {"x": BINARY},
        "difference",
    ),
    "large-constant": (
        lambda w, x: 1e4 - 0.5 * x @ symmetric(w, 4) @ x - w[0, :4] @ x,
        {"x": SPIN},
        "sequential",
    ),
}


def quiet_blocks(model):
    """The schedule, and whether it came with the warning about energy differences."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        schedule = pgm.blocks(model)
    return schedule, [str(w.message) for w in caught]


@pytest.mark.x64
@pytest.mark.parametrize("name", ENERGIES)
def test_every_energy_is_sampled_exactly(name):
    function, sites, kind = ENERGIES[name]
    model = written(function, **sites)
    schedule, messages = quiet_blocks(model)
    steps = {step.site: step for step in schedule.steps}
    assert schedule.missing() == {}
    if kind is not None:
        assert steps[next(iter(sites))].kind == kind
    slow = [step.site for step in schedule.steps if step.kind == "difference"]
    assert len(messages) == bool(slow)
    if slow:
        assert f"at {slow[0]!r} by energy differences" in messages[0]
        assert "(1 + s_i * s_j) / 2" in messages[0]
    oracles.assert_invariant(model, schedule, tolerance=1e-9)


@pytest.mark.x64
@pytest.mark.parametrize("name", ["pairs", "potts", "stop-gradient"])
def test_the_exam_of_invariance_rejects_wrong_blocks(name):
    """Positive control: the same energies with all units at once are seen to be wrong."""
    from pgm_energy.structure import Blocks, Step

    function, sites, _ = ENERGIES[name]
    model = written(function, **sites)
    wrong = Blocks(
        ((Step(next(iter(sites)), "joint"),),),
        tuple(model.sites.items()),
        structure=pgm.blocks(model).structure if name != "stop-gradient" else None,
    )
    values, probabilities, _ = oracles.law(model)
    if name == "stop-gradient":  # a schedule of unknown origin is examined, and refused
        with pytest.raises(ValueError, match="make new ones with blocks"):
            oracles.transition_matrix(pgm.gibbs_kernel(wrong), model, values)
        return
    matrix = oracles.transition_matrix(pgm.gibbs_kernel(wrong), model, values)
    assert oracles.invariance_error(matrix, probabilities)[1] > 0.01


@pytest.mark.parametrize("name", ["pairs", "stop-gradient", "equal", "abs", "index"])
def test_a_block_by_hand_is_refused_where_it_would_be_wrong(name):
    function, sites, _ = ENERGIES[name]
    model = written(function, **sites)
    with pytest.raises(ValueError, match=r"site 'x' of Written cannot be drawn at once: .*x\[\d\]"):
        pgm.blocks(model, ["x"])
    with pytest.raises(ValueError, match="cannot be drawn at once"):
        model.conditional("x", {"x": jnp.zeros(4) + 1.0})


def test_conditional_of_one_unit_of_a_coupled_site_is_exact():
    model = written(*ENERGIES["pairs-spin"][:1], **ENERGIES["pairs-spin"][1])
    values, probabilities, _ = oracles.law(model)
    given = {"x": jnp.array([1, -1, 1, 1])}
    match = (values["x"][:, [0, 1, 3]] == np.array([1, -1, 1])).all(axis=1)
    expected = probabilities[match] / probabilities[match].sum()
    found = [
        np.exp(model.conditional("x", given, index=[2]).log_prob(jnp.array([state])))
        for state in values["x"][match][:, 2]
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([4], "site 'x' has units 0 to 3, got 4"),
        ([-1], "site 'x' has units 0 to 3, got -1"),
        ([1, 1], "lists unit 1 more than once"),
        ([[0, 1]], "non-empty list of integers"),
        (np.array([True, False]), r"must have its shape \(4,\), got \(2,\)"),
    ],
)
def test_bad_units_are_told(index, message):
    model = written(ENERGIES["pairs"][0], x=BINARY)
    with pytest.raises(ValueError, match=message):
        pgm.blocks(model, [pgm.Block("x", index)])
    with pytest.raises(ValueError, match=message):
        model.conditional("x", {"x": jnp.zeros(4)}, index=index)


def test_an_empty_block_is_told():
    model = written(ENERGIES["pairs"][0], x=BINARY)
    with pytest.raises((ValueError, TypeError), match="needs at least one unit"):
        pgm.blocks(model, [pgm.Block("x", [])])


def test_nan_energy_is_refused():
    model = written(lambda w, x: jnp.log(x[0] - 0.5) + w[0, :4] @ x, x=BINARY)
    with pytest.raises(ValueError, match=r"energy of Written is (NaN|not finite)"):
        pgm.blocks(model)


def test_vector_energy_is_refused():
    model = written(lambda w, x: w[0, :4] * x, x=BINARY)
    with pytest.raises(ValueError, match=r"must be a scalar per configuration, got shape \(4,\)"):
        pgm.blocks(model)


def test_hard_constraint_is_sampled_by_differences():
    """An infinite energy forbids a state: differences obey it, nothing else may be used."""
    model = written(lambda w, x: jnp.where(x[0] + x[1] > 1.5, jnp.inf, -w[0, :4] @ x), x=BINARY)
    schedule, messages = quiet_blocks(model)
    assert [step.kind for step in schedule.steps] == ["difference"]
    assert len(messages) == 1
    states = oracles.all_states(model)
    allowed = oracles.rows(states, states["x"][:, :2].sum(axis=1) < 2)
    values, probabilities, _ = oracles.law(model, allowed)
    matrix = oracles.transition_matrix(pgm.gibbs_kernel(schedule), model, values)
    row_error, error = oracles.invariance_error(matrix, probabilities)
    assert max(row_error, error) < 1e-6


def test_a_wrong_override_of_natural_parameters_is_never_used_for_a_block():
    @pgm.struct
    class Lying(pgm.EnergyModel):
        bias: Array

        @property
        def sites(self):
            return {"x": pgm.Binary(3)}

        def energy(self, x):
            return -self.bias @ x

        def natural_parameters(self, site, values, index=None):
            eta = 0.9 * self.bias
            return pgm.Natural(eta if index is None else eta[index])

    model = Lying(bias=jnp.array([0.5, -1.0, 2.0]))
    schedule, _ = quiet_blocks(model)
    assert [step.kind for step in schedule.steps] == ["difference"]
    with pytest.raises(ValueError, match="cannot be drawn at once"):
        pgm.blocks(model, ["x"])


def test_wrong_rest_of_an_override_is_found():
    """``rest`` becomes the free energy of a marginal: it is examined like the parameters."""

    @pgm.struct
    class Forgetful(pgm.EnergyModel):
        weights: Array

        @property
        def sites(self):
            return {"v": pgm.Binary(2), "h": pgm.Binary(2)}

        def energy(self, v, h):
            return -v @ self.weights @ h - jnp.sum(v)

        def natural_parameters(self, site, values, index=None):
            encoded = self.encode(values)
            if site == "h":  # without the visible units' own term
                return pgm.Natural(encoded["v"] @ self.weights, None, jnp.zeros(()))
            return pgm.Natural(self.weights @ encoded["h"] + 1.0, None, jnp.zeros(()))

    with pytest.raises(ValueError, match="cannot be drawn at once"):
        pgm.marginalize(Forgetful(weights=jnp.ones((2, 2))), "h")


def test_exam_is_kept_for_new_parameters_of_the_same_structure():
    calls = []

    def energy(w, x):
        calls.append(None)
        return -0.5 * x @ symmetric(w, 4) @ x

    model = written(energy, x=BINARY)
    first = pgm.blocks(model)
    traced = len(calls)
    assert pgm.blocks(pgm.replace(model, parameters=jnp.zeros((6, 6)))) is first
    assert len(calls) == traced


# ---- at once, and in float64 ---------------------------------------------------------------------


def test_values_are_told_at_once_also_while_a_caller_is_traced():
    seen = []

    def caller(x):
        with eager_float64():
            seen.append(jnp.sin(jnp.ones(())))
        return x

    caller(1.0)
    jax.jit(caller)(1.0)
    assert [float(value) for value in seen] == [np.sin(1.0)] * 2
    assert [value.dtype for value in seen] == [np.float64] * 2


def test_constants_of_a_compiled_function_stay_in_it():
    """Taken out, each would be compiled on its own: half of the time that a schedule takes."""

    def scaled(x):
        return x * jnp.sum(jnp.arange(3.0))

    with eager_float64():
        assert "iota" in str(jax.make_jaxpr(scaled)(1.0))
    with jax.ensure_compile_time_eval():  # the test can tell
        assert "iota" not in str(jax.make_jaxpr(scaled)(1.0))
