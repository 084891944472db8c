"""Certification: a table of kernels and models, and kernels broken on purpose."""

import dataclasses

import certification
import jax
import jax.numpy as jnp
import pytest
import zoo
from certification import GRID, MODELS, REFUSALS
from jax import Array
from numpyro.infer import HMC

import pgm_energy as pgm
from pgm_energy.infer import tempering
from pgm_energy.kernels import (
    GibbsWithGradientsKernel,
    SwendsenWangKernel,
    TemperingKernel,
    swendsen_wang_kernel,
)
from pgm_energy.natural import Natural
from pgm_energy.testing import ConformanceError, check_kernel

CELLS = [(kernel, model, mark) for kernel, row in GRID.items() for model, mark in row.items()]


def cells(*marks):
    return [
        pytest.param(kernel, model, mark, id=f"{kernel}-on-{model}")
        for kernel, model, mark in CELLS
        if mark in marks
    ]


@pytest.mark.filterwarnings("ignore:.*energy differences")
@pytest.mark.parametrize("kernel, model, mark", cells("+"))
def test_kernel_leaves_the_exact_law_alone(kernel, model, mark):
    model = MODELS[model]()
    made = certification.make(kernel, model)
    found = dict(check_kernel(made, model, num_draws=10_000).checks)
    assert float(found["moved"].split("%")[0]) > 10.0
    discrete = all(site.is_discrete for site in model.sites.values())
    if kernel in ("gibbs", "gibbs-by-hand", "gradients", "langevin") and discrete:
        assert float(found["pi T = pi"].split()[-1]) < 1e-6
        assert found["reach"].startswith("every one of")
    if kernel in ("clusters", "ParallelTempering", "HMC-twin"):
        assert any(name.startswith("pairs, with ") for name in found)


@pytest.mark.parametrize("kernel, model, mark", cells(*REFUSALS))
def test_kernel_refuses_what_it_cannot_sample(kernel, model, mark):
    model = MODELS[model]()
    with pytest.raises(ValueError, match=REFUSALS[mark]):
        check_kernel(certification.make(kernel, model), model, num_draws=10_000)


# ---- broken on purpose ---------------------------------------------------------------------------


def _draw(model, name, key, values):
    site = model.sites[name]
    return site.cast(site.sample(key, *model.natural_parameters(name, values)[:2]))


def synchronous_layers(key, values, model):
    """All layers from the values before the sweep."""
    keys = jax.random.split(key, len(model.sites))
    new = {n: _draw(model, n, k, values) for n, k in zip(model.sites, keys, strict=True)}
    return model.clamp(new), None


def reused_key(key, values, model):
    """The same key for every block."""
    for name in model.sites:
        values = {**values, name: _draw(model, name, key, values)}
    return values, None


def layers(key, values, model):
    """Layer after layer, as the model's natural parameters say."""
    keys = jax.random.split(key, len(model.sites))
    for name, own in zip(model.sites, keys, strict=True):
        values = {**values, name: _draw(model, name, own, values)}
    return values, None


def stale_fields(key, values, model):
    """The second half of the units from natural parameters cached before the sweep."""
    site = model.sites["v"]
    cached, new = model.natural_parameters("v", values).eta, values["v"]
    for unit, own in enumerate(jax.random.split(key, site.size)):
        fresh = model.natural_parameters("v", {"v": new}).eta
        eta = (fresh if unit < site.size // 2 else cached)[unit]
        new = new.at[unit].set(site.cast(site.sample(own, eta)))
    return {"v": new}, None


class SharedNoise(pgm.BlockGibbs):
    """Every second chain gets the key of its neighbour."""

    def sample(self, state, model_args, model_kwargs):
        keys = jnp.repeat(state.rng_key[::2], 2)
        return super().sample(state._replace(rng_key=keys), model_args, model_kwargs)


@pgm.struct
class SignError(pgm.EnergyModel):
    """The closed form has the field's sign wrong."""

    weights: Array
    field: Array

    @property
    def sites(self):
        return {"v": pgm.Spin(3), "h": pgm.Spin(2)}

    def energy(self, v, h):
        return -(v @ self.weights @ h + self.field @ v)

    def natural_parameters(self, site, values, index=None):
        if site == "v":
            eta = self.weights @ (1.0 * values["h"]) - self.field
        else:
            eta = (1.0 * values["v"]) @ self.weights
        return Natural(eta if index is None else eta[index])


@dataclasses.dataclass(frozen=True)
class StaleGradient(GibbsWithGradientsKernel):
    """Some proposals in a row, all made of the gradient before the first."""

    def __call__(self, rng_key, values, model):
        old = point = self.look(values, model)
        for key in jax.random.split(rng_key, 4):
            point, accept_prob = self.step(key, point._replace(eta=old.eta), model)
        return point.values, accept_prob

    jump_log_prob = None


@dataclasses.dataclass(frozen=True)
class OtherBonds(SwendsenWangKernel):
    """A sweep is right, its bonds seen by themselves are not: the joint law alone tells."""

    def augment(self, rng_key, values, model):
        first, second = jax.random.split(rng_key)
        bonds = super().augment(first, values, model)["bonds"]
        return {"bonds": bonds & jax.random.bernoulli(second, 0.3, bonds.shape)}


@dataclasses.dataclass(frozen=True)
class SwapsOnMarginals(TemperingKernel):
    """The joint law is tempered, the free energies of the visible units decide on swaps."""

    def energies(self, values, base, target):
        free = [pgm.marginalize(model, "h") for model in (base, target)]
        return tuple(jax.vmap(lambda v, m=m: m.energy(v=1.0 * v))(values["v"]) for m in free)


@dataclasses.dataclass(frozen=True)
class SwapsOnTarget(TemperingKernel):
    """The target's energy decides on swaps, as if the base were uniform."""

    def energies(self, values, base, target):
        base_energy, target_energy = super().energies(values, base, target)
        return jnp.zeros_like(base_energy), target_energy


def _tempering(broken):
    def make(model, monkeypatch):
        monkeypatch.setattr(tempering, "TemperingKernel", broken)
        return pgm.ParallelTempering(model, betas=[0.0, 0.4, 1.0])  # every chain fits its base

    return make


def _forgotten_shift(model, monkeypatch):
    """x_i^2 = x_i is not taken back from the biases of the twin."""
    twin = pgm.relax(model)
    own = 0.5 * jnp.sum(twin.loadings**2, axis=1)
    twin = pgm.replace(twin, bias=twin.bias + own)
    return HMC(twin, step_size=0.4, num_steps=3, adapt_step_size=False, adapt_mass_matrix=False)


def _of(kernel):
    return lambda model, monkeypatch: kernel


STRONG = zoo.rbm(sizes=(3, 3), scale=1.5)
MACHINE = zoo.machine(5, scale=0.9)
WRONG_SIGN = SignError(weights=jnp.ones((3, 2)), field=jnp.asarray([0.3, 0.1, 0.0]))
CONTROLS = {
    "synchronous layers": (_of(synchronous_layers), STRONG, "chi-square"),
    "synchronous units": (_of(synchronous_layers), MACHINE, "chi-square"),
    "reused key, blocks": (_of(reused_key), STRONG, "chi-square"),
    "reused key, chains": (lambda m, _: SharedNoise(m), STRONG, "chains"),
    "sign error": (_of(layers), WRONG_SIGN, "chi-square"),
    "stale fields": (_of(stale_fields), MACHINE, "chi-square"),
    "stale gradient": (_of(StaleGradient()), STRONG, "chi-square"),
    "swap on marginal energies": (_tempering(SwapsOnMarginals), STRONG, "chi-square|pairs, with"),
    "swap on the target's energy": (_tempering(SwapsOnTarget), STRONG, "chi-square|pairs, with"),
    "bonds of another law": (
        lambda m, _: OtherBonds(swendsen_wang_kernel(m).pairs),
        MODELS["lattice-field"](),
        "pairs, with bonds",
    ),
    "twin with a forgotten shift": (_forgotten_shift, MACHINE, "chi-square"),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_what_is_broken_is_caught(name, monkeypatch):
    make, model, check = CONTROLS[name]
    with pytest.raises(ConformanceError, match=f"fails '({check})"):
        check_kernel(make(model, monkeypatch), model)


def test_the_same_without_the_mistakes_passes(monkeypatch):
    check_kernel(layers, STRONG)
    fitted = _tempering(TemperingKernel)(STRONG, monkeypatch)
    assert "pairs, with 3 replicas" in dict(check_kernel(fitted, STRONG).checks)


def test_a_sign_error_does_not_even_get_a_schedule():
    with pytest.raises(ValueError, match="cannot be drawn at once"):
        pgm.blocks(WRONG_SIGN, ["v", "h"])
