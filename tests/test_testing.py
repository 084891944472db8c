"""The exams themselves: right models and kernels pass, each kind of wrong one is caught."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer import HMC, DiscreteGibbs

import pgm_energy as pgm
from pgm_energy import testing
from pgm_energy.kernels.gibbs import GibbsInfo
from pgm_energy.testing import (
    ConformanceError,
    check_energy_model,
    check_kernel,
    enumerate_states,
    exact_transition_matrix,
)


def _random(seed, *shape, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _couplings(seed, count):
    upper = jnp.triu(_random(seed, count, count), 1)
    return upper + upper.T


def _rbm(seed=0, num_visible=3, num_hidden=3, **kwargs):
    return pgm.RBM(
        weights=_random(seed, num_visible, num_hidden),
        visible_bias=_random(seed + 1, num_visible),
        hidden_bias=_random(seed + 2, num_hidden),
        **kwargs,
    )


def _machine(count=6, **kwargs):
    return pgm.BoltzmannMachine(weights=_couplings(1, count), bias=_random(2, count), **kwargs)


def _gaussian_rbm():
    return pgm.RBM(
        weights=_random(5, 2, 2),
        visible_bias=_random(6, 2),
        visible_precision=jnp.array([0.7, 2.0]),
        visible=pgm.Real,
    )


# ---- models that conform ----------------------------------------------------------------------


_MODELS = {
    "rbm": lambda: _rbm(),
    "categorical": lambda: pgm.RBM(
        weights=_random(1, 2, 3, 3), visible=pgm.Categorical, hidden=pgm.Spin
    ),
    "gaussian": _gaussian_rbm,
    "machine": lambda: _machine(num_hidden=2),
    "lattice": lambda: pgm.ising_lattice((3, 4), 0.3, 0.1),
    "conditioned": lambda: pgm.condition(_rbm(), v=np.array([1.0, np.nan, 0.0])),
    "marginal": lambda: pgm.marginalize(_rbm(), "h"),
    "twin": lambda: pgm.relax(_rbm()),
}


@pytest.mark.parametrize("name", _MODELS)
def test_right_models_pass(name, rng_key):
    report = check_energy_model(_MODELS[name](), rng_key)
    assert str(report).startswith(report.owner + " conforms\n  sites")
    assert "gradient" in dict(report.checks)


def test_the_report_says_what_was_found():
    found = dict(check_energy_model(_rbm()).checks)
    for name in ("v", "h"):
        assert found[f"natural_parameters of {name!r}"].startswith("worst relative error")
        assert found[f"free energy over {name!r}"].startswith("worst relative error")
        assert float(found[f"conditional of {name!r}, double"].split()[-1]) < 1e-9
    assert found["block_couplings"] == "derived"
    assert found["schedule"].startswith("v 3 binary units all units at once")
    twin = dict(check_energy_model(pgm.relax(_rbm())).checks)
    assert twin["conditional of 'y'"] == "no family: sampled by NUTS"
    assert "no block Gibbs" in twin["schedule"]


# ---- models that do not -----------------------------------------------------------------------


class _Pairwise(pgm.EnergyModel):
    """A dense machine whose subclasses each get one thing wrong."""

    @property
    def sites(self):
        return {"v": pgm.Binary(self.weights.shape[0])}

    def energy(self, v):
        return -0.5 * v @ self.weights @ v - self.bias @ v

    def project(self):
        even = 0.5 * (self.weights + self.weights.T)
        return pgm.replace(self, weights=even - jnp.diag(jnp.diagonal(even)))


def _pairwise(cls):
    return cls(weights=_couplings(3, 5), bias=_random(4, 5))


@pgm.struct
class Right(_Pairwise):
    weights: jax.Array
    bias: jax.Array

    def natural_parameters(self, site, values, index=None):
        eta = self.weights @ self.sites["v"].encode(values["v"]) + self.bias
        return pgm.Natural(eta if index is None else eta[index])

    def block_couplings(self, site, index):
        return self.weights[index[:, None], index]


@pgm.struct
class WrongNatural(_Pairwise):
    weights: jax.Array
    bias: jax.Array

    def natural_parameters(self, site, values, index=None):
        eta = self.weights @ self.sites["v"].encode(values["v"]) + self.bias + 0.001
        return pgm.Natural(eta if index is None else eta[index])


@pgm.struct
class WrongIndex(_Pairwise):
    weights: jax.Array
    bias: jax.Array

    def natural_parameters(self, site, values, index=None):
        eta = self.weights @ self.sites["v"].encode(values["v"]) + self.bias
        return pgm.Natural(eta if index is None else eta[: index.shape[0]])


@pgm.struct
class WrongWhole(_Pairwise):
    weights: jax.Array
    bias: jax.Array

    def natural_parameters(self, site, values, index=None):
        eta = self.weights @ self.sites["v"].encode(values["v"]) + self.bias
        return pgm.Natural(1.001 * eta if index is None else eta[index])


@pgm.struct
class WrongCouplings(_Pairwise):
    weights: jax.Array
    bias: jax.Array

    def block_couplings(self, site, index):
        return 1.01 * self.weights[index[:, None], index]


@pgm.struct
class WrongInteractions(_Pairwise):
    weights: jax.Array
    bias: jax.Array

    def interactions(self, site):
        pairs = list(itertools.combinations(range(self.weights.shape[0]), 2))
        return np.array(pairs[1:])  # (0, 1) is missing


@pgm.struct
class WrongColours(_Pairwise):
    weights: jax.Array
    bias: jax.Array

    def interactions(self, site):
        return np.array([0, 1, 2, 3, 3])


@pgm.struct
class WrongProject(_Pairwise):
    weights: jax.Array
    bias: jax.Array

    def project(self):
        return pgm.replace(_Pairwise.project(self), bias=self.bias + 1.0)


@pgm.struct
class WrongGeneric(_Pairwise):
    weights: jax.Array
    bias: jax.Array

    def generic(self, rng_key):
        return type(self)(weights=_couplings(0, 4), bias=_random(0, 4))


@pgm.struct
class WrongDensity(_Pairwise):
    weights: jax.Array
    bias: jax.Array

    def log_density(self, values):
        return -super().log_density(values)


@pgm.struct
class WrongNumPyro(_Pairwise):
    weights: jax.Array
    bias: jax.Array

    def __call__(self, *args, **observed):
        return Right(weights=self.weights, bias=self.bias + 0.01)(*args, **observed)


@pgm.struct
class WrongKnown(_Pairwise):
    weights: jax.Array
    bias: jax.Array

    @property
    def known_log_partition(self):
        return jnp.asarray(pgm.exact(_pairwise(Right)).log_partition + 0.001)


@pgm.struct
class WrongDataSites(_Pairwise):
    weights: jax.Array
    bias: jax.Array
    data_sites = ("x",)


@pgm.struct
class WrongGradient(_Pairwise):
    weights: jax.Array
    bias: jax.Array

    def energy(self, v):
        return _Pairwise.energy(self, v) + 0.0 * jnp.sqrt(jnp.sum(0.0 * self.bias))


@pgm.struct
class WrongBatch(_Pairwise):
    weights: jax.Array
    bias: jax.Array

    def energy(self, v):
        # something that mapping changes: a Python branch on the rank of the tracer
        return _Pairwise.energy(self, v) + (1.0 if isinstance(v, jax.core.Tracer) else 0.0)


def test_the_right_overrides_pass():
    found = dict(check_energy_model(_pairwise(Right)).checks)
    assert found["block_couplings of 'v'"].startswith("worst relative error")


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (WrongNatural, r"natural_parameters of 'v'.*expected"),
        (WrongIndex, r"natural_parameters of 'v'.*\(with an index\)"),
        (WrongWhole, r"natural_parameters of 'v'.*\(whole site\)"),
        (WrongCouplings, r"block_couplings of 'v'.*the coupling of units \d and \d"),
        (WrongInteractions, r"interactions of 'v'.*\[0, 1\] interact but are not listed"),
        (WrongColours, r"interactions of 'v'.*\[3, 4\] have the same colour"),
        (WrongProject, "'project'"),
        (WrongGeneric, "'generic'.*leaves of shapes"),
        (WrongDensity, "'log_density'"),
        (WrongNumPyro, "'NumPyro model'"),
        (WrongKnown, "'known log Z'.*relative error"),
        (WrongDataSites, r"'sites'.*data_sites must be a tuple of names among \('v',\)"),
        (WrongGradient, r"'gradient'.*respect to .bias is not finite"),
        (WrongBatch, "'energy under jit'"),
    ],
    ids=lambda x: x.__name__ if isinstance(x, type) else "",
)
def test_each_wrong_model_is_caught(cls, message):
    with pytest.raises(ConformanceError, match=message):
        check_energy_model(_pairwise(cls))


@pgm.struct
class WrongLayer(pgm.EnergyModel):
    """A Gaussian machine with closed forms that may be a little wrong."""

    weights: jax.Array
    precision: jax.Array
    wrong: str = pgm.static(default="")

    @property
    def sites(self):
        d, h = self.weights.shape
        return {"v": pgm.Real(d), "h": pgm.Binary(h)}

    def project(self):
        return pgm.replace(self, precision=jnp.maximum(jnp.abs(self.precision), 0.1))

    def energy(self, v, h):
        return 0.5 * jnp.sum(self.precision * v**2) - v @ self.weights @ h

    def natural_parameters(self, site, values, index=None):
        x = self.encode(values)
        if site == "h":
            eta, precision = x["v"] @ self.weights, None
            rest = 0.5 * jnp.sum(self.precision * x["v"] ** 2)
        else:
            eta, precision, rest = self.weights @ x["h"], self.precision, jnp.zeros(())
        if self.wrong == "precision" and site == "v":
            precision = precision * 1.001
        if self.wrong == "rest":
            rest = rest + 0.001
        if index is None:
            return pgm.Natural(eta, precision, rest)
        return pgm.Natural(eta[index], None if precision is None else precision[index])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [("precision", r"'v'.*precision \(whole site\)"), ("rest", "rest - <eta, T>"), ("", "")],
    ids=["precision", "rest", "right"],
)
def test_a_wrong_real_layer_is_caught(wrong, message):
    model = WrongLayer(weights=_random(0, 2, 3), precision=jnp.array([1.0, 2.0]), wrong=wrong)
    if not wrong:
        check_energy_model(model)
        return
    with pytest.raises(ConformanceError, match=message):
        check_energy_model(model)


@pgm.struct
class Equal(pgm.EnergyModel):
    """An energy whose derivatives are all zero: its units look independent."""

    strength: jax.Array

    @property
    def sites(self):
        return {"v": pgm.Spin(4)}

    def energy(self, v):
        return -self.strength * jnp.sum(v[1:] == v[:-1])


def test_an_energy_that_is_not_affine_is_right_but_has_no_block():
    found = dict(check_energy_model(Equal(strength=jnp.asarray(0.8))).checks)
    assert found["conditional of 'v'"] == "no family: sampled by energy differences"
    assert "energy differences" in found["schedule"]


# ---- kernels that conform ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rbm", "machine", "conditioned"])
def test_block_gibbs_passes_exactly_and_by_its_draws(name, rng_key):
    model = _MODELS[name]()
    report = check_kernel(pgm.gibbs_kernel(pgm.blocks(model)), model, rng_key)
    found = dict(report.checks)
    assert float(found["pi T = pi"].split()[-1]) < 1e-12
    assert found["chi-square"].startswith("p = ")
    assert str(report).startswith(f"GibbsKernel on {type(model).__name__} conforms")


def test_block_gibbs_passes_with_real_units(rng_key):
    model = _gaussian_rbm()
    report = check_kernel(pgm.gibbs_kernel(pgm.blocks(model)), model, rng_key)
    assert "chi-square" in dict(report.checks)


def test_energy_difference_steps_pass(rng_key):
    model = Equal(strength=jnp.asarray(0.8))
    with pytest.warns(UserWarning, match="energy differences"):
        kernel = pgm.gibbs_kernel(pgm.blocks(model))
    assert float(dict(check_kernel(kernel, model, rng_key).checks)["pi T = pi"].split()[-1]) < 1e-12


@pytest.mark.parametrize("make", [pgm.BlockGibbs, DiscreteGibbs], ids=["ours", "numpyro"])
def test_numpyro_kernels_pass(make, rng_key):
    model = _rbm(num_visible=2, num_hidden=2)
    found = dict(check_kernel(make(model), model, rng_key).checks)
    assert "transition matrix" not in found
    assert "chi-square" in found


# ---- kernels that do not ----------------------------------------------------------------------


def _draw(model, name, key, values):
    site = model.sites[name]
    return site.cast(site.sample(key, *model.natural_parameters(name, values)[:2]))


def _info(model, values):
    return GibbsInfo(model.energy(**model.encode(values)), {})


def right_layers(key, values, model):
    first, second = jax.random.split(key)
    v = _draw(model, "v", first, values)
    values = {"v": v, "h": _draw(model, "h", second, {**values, "v": v})}
    return values, _info(model, values)


def synchronous_layers(key, values, model):
    first, second = jax.random.split(key)
    values = {"v": _draw(model, "v", first, values), "h": _draw(model, "h", second, values)}
    return values, _info(model, values)


def reused_key(key, values, model):
    v = _draw(model, "v", key, values)
    values = {"v": v, "h": _draw(model, "h", key, {**values, "v": v})}
    return values, _info(model, values)


def _on_another(change):
    """Block Gibbs of a slightly different model, run on the right one."""

    def kernel(key, values, model):
        return right_layers(key, values, change(model))

    return kernel


sign_error = _on_another(lambda m: pgm.replace(m, weights=-m.weights))
ignored_coupling = _on_another(lambda m: pgm.replace(m, weights=m.weights.at[2, 0].set(0.0)))


def leaves_support(key, values, model):
    return {**values, "v": values["v"] * 0 + 2}, None


@pytest.mark.parametrize(
    "kernel",
    [synchronous_layers, reused_key, sign_error, ignored_coupling],
    ids=["synchronous", "reused key", "sign", "ignored coupling"],
)
def test_each_wrong_kernel_is_caught_by_its_draws(kernel, rng_key):
    model = _rbm()
    with pytest.raises(ConformanceError, match=r"'chi-square': p = .* below alpha = 1e-06"):
        check_kernel(kernel, model, rng_key)
    check_kernel(right_layers, model, rng_key)


def test_units_of_a_machine_drawn_at_once_are_caught(rng_key):
    def all_at_once(key, values, model):
        return {"v": _draw(model, "v", key, values)}, None

    with pytest.raises(ConformanceError, match="chi-square"):
        check_kernel(all_at_once, _machine(), rng_key)
    with pytest.raises(ConformanceError, match="chi-square"):
        check_kernel(all_at_once, Equal(strength=jnp.asarray(0.8)), rng_key)


@pytest.mark.parametrize("wrong", ["variance", "mean"])
def test_a_wrong_real_layer_is_caught_by_its_draws(wrong, rng_key):
    def change(model):
        if wrong == "variance":
            return pgm.replace(model, visible_precision=1.5 * model.visible_precision)
        return pgm.replace(model, visible_bias=model.visible_bias + 0.3)

    def kernel(key, values, model):
        first, second = jax.random.split(key)
        h = _draw(model, "h", first, values)
        values = {"v": _draw(change(model), "v", second, {**values, "h": h}), "h": h}
        return values, None

    with pytest.raises(ConformanceError, match="chi-square"):
        check_kernel(kernel, _gaussian_rbm(), rng_key)


def test_a_kernel_that_leaves_the_support_is_caught(rng_key):
    with pytest.raises(ConformanceError, match=r"moved unit 0 of site 'v' to 2, outside"):
        check_kernel(leaves_support, _rbm(), rng_key, num_draws=100)


@dataclasses.dataclass(frozen=True)
class _Perturbed:
    """A Gibbs kernel of a model whose first bias is off by 0.01; knows its transition matrix."""

    inner: pgm.kernels.gibbs.GibbsKernel
    shift: float = 0.01

    def _model(self, model):
        return pgm.replace(model, visible_bias=model.visible_bias.at[0].add(self.shift))

    def __call__(self, key, values, model):
        return self.inner(key, values, self._model(model))

    def transition_log_prob(self, values, new_values, model):
        return self.inner.transition_log_prob(values, new_values, self._model(model))


def test_a_bias_of_one_hundredth_is_seen_by_the_transition_matrix(rng_key):
    model = _rbm()
    inner = pgm.gibbs_kernel(pgm.blocks(model))
    with pytest.raises(ConformanceError, match=r"'pi T = pi': state .* \(total variation"):
        check_kernel(_Perturbed(inner), model, rng_key)
    check_kernel(_Perturbed(inner, shift=0.0), model, rng_key)


def test_a_transition_law_that_does_not_sum_to_one_is_caught(rng_key):
    @dataclasses.dataclass(frozen=True)
    class Leaky(_Perturbed):
        def transition_log_prob(self, values, new_values, model):
            return self.inner.transition_log_prob(values, new_values, model) - 0.001

    model = _rbm()
    with pytest.raises(ConformanceError, match="rows of T sum to 1"):
        check_kernel(Leaky(pgm.gibbs_kernel(pgm.blocks(model))), model, rng_key)


def test_more_steps_and_the_report_a_person_reads(rng_key):
    model = _rbm(num_visible=2, num_hidden=2)
    report = check_kernel(pgm.BlockGibbs(model), model, rng_key, num_draws=5000, num_steps=3)
    found = dict(report.checks)
    assert "of 5000 draws changed in 3 steps" in found["moved"]
    assert found["pairs"].startswith("smallest p = ")
    assert "of neighbours" in found["chains"]


def test_a_kernel_that_never_moves_is_caught(rng_key):
    def stands_still(key, values, model):
        return values, None

    model = _rbm(num_visible=2, num_hidden=2)
    with pytest.raises(ConformanceError, match="'moved': none of 1000 draws changed in one step"):
        check_kernel(stands_still, model, rng_key, num_draws=1000)
    report = check_kernel(stands_still, model, rng_key, num_draws=1000, must_move=False)
    assert dict(report.checks)["moved"].startswith("0.0%")
    # where there is nowhere to go, standing still is no fault: that law is too narrow to test
    frozen = pgm.RBM(
        weights=jnp.zeros((2, 2)), visible_bias=jnp.full(2, 60.0), hidden_bias=jnp.full(2, -60.0)
    )
    with pytest.raises(ValueError, match="draws are too few for a test over 16 states"):
        check_kernel(stands_still, frozen, rng_key, num_draws=1000)


@pytest.mark.usefixtures("annotations_unchecked")
def test_a_class_is_no_kernel(rng_key):
    with pytest.raises(TypeError, match="kernel is the class BlockGibbs: pass an instance"):
        check_kernel(pgm.BlockGibbs, _rbm(), rng_key)


def test_a_failure_names_the_state_and_says_where_to_look(rng_key):
    with pytest.raises(
        ConformanceError, match=r"state {'v': .* came \d+ times, .* expected"
    ) as told:
        check_kernel(synchronous_layers, _rbm(), rng_key)
    assert "a key used twice" in str(told.value)


def test_kernels_whose_exact_start_is_unknown_are_refused(rng_key):
    model = _rbm(num_visible=2, num_hidden=2)
    other = _rbm(num_visible=2, num_hidden=3)
    for wrong in (pgm.BlockGibbs(other), HMC(pgm.relax(other))):
        with pytest.raises(ValueError, match="samples another model than the one given"):
            check_kernel(wrong, model, rng_key, num_draws=100)
    real = _gaussian_rbm()
    with pytest.raises(ValueError, match="exact replicas are known for one base only"):
        check_kernel(pgm.ParallelTempering(real), real, rng_key, num_draws=100)


# ---- oracles ----------------------------------------------------------------------------------


def test_states_come_in_the_order_of_product():
    model = pgm.RBM(weights=jnp.zeros((1, 3, 2)), visible=pgm.Categorical, hidden=pgm.Spin)
    states = enumerate_states(model)
    got = np.concatenate([states["v"], states["h"]], axis=1).tolist()
    assert got == [list(s) for s in itertools.product([0, 1, 2], [-1, 1], [-1, 1])]


def test_transition_matrix_of_two_layers_written_out():
    model = _rbm(num_visible=1, num_hidden=1)
    w, b, c = (float(x) for x in (model.weights[0, 0], model.visible_bias[0], model.hidden_bias[0]))

    def bernoulli(x, logit):
        return 1.0 / (1.0 + np.exp(-logit if x else logit))

    states = list(itertools.product([0, 1], [0, 1]))
    expected = [
        [bernoulli(v2, b + w * h) * bernoulli(h2, c + w * v2) for v2, h2 in states]
        for v, h in states
    ]
    matrix = exact_transition_matrix(pgm.gibbs_kernel(pgm.blocks(model)), model)
    np.testing.assert_allclose(matrix, expected, atol=1e-12)


def test_the_oracles_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match="'v' is real"):
        enumerate_states(_gaussian_rbm())
    model = _machine(10)
    kernel = pgm.gibbs_kernel(pgm.blocks(model))
    with pytest.raises(ValueError, match="at most 512 states, got 1024"):
        exact_transition_matrix(kernel, model)
    with pytest.raises(TypeError, match="has no transition_log_prob"):
        exact_transition_matrix(right_layers, _rbm())


@pytest.mark.usefixtures("annotations_unchecked")
def test_bad_arguments_are_refused():
    model = _rbm()
    with pytest.raises(TypeError, match="takes an energy model, got str"):
        testing.check_energy_model("rbm")
    with pytest.raises(TypeError, match="one JAX random key"):
        testing.check_energy_model(model, 3)
    with pytest.raises(ValueError, match="num_probes must be an integer of at least 1"):
        testing.check_energy_model(model, num_probes=0)
    with pytest.raises(ValueError, match="num_draws"):
        testing.check_kernel(right_layers, model, num_draws=0)
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1"):
        testing.check_kernel(right_layers, model, alpha=0.0)
    with pytest.raises(ValueError, match="num_steps must be"):
        testing.check_kernel(right_layers, model, num_steps=0)
    with pytest.raises(ValueError, match="too few for a test"):
        testing.check_kernel(right_layers, model, num_draws=5)
