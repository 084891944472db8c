"""Gibbs-with-gradients and the discrete Langevin proposal: exact matrices, draws, adapters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer import MCMC, NUTS, Gibbs
from oracles import ALPHA, frequencies_p_value, invariance_error, law, rows
from zoo import machine, mixed, rbm

import pgm_energy as pgm
from pgm_energy.kernels import DiscreteLangevinKernel, GibbsWithGradientsKernel
from pgm_energy.testing import ConformanceError, check_kernel, exact_transition_matrix


@pgm.struct
class Tangled(pgm.EnergyModel):
    """Three at once, squares and a sine: the gradient is only a hint, the correction must do it."""

    weights: jax.Array

    @property
    def sites(self):
        return {"b": pgm.Binary((2, 1)), "s": pgm.Spin(2), "z": pgm.Categorical(3, ())}

    def energy(self, b, s, z):
        w, flat = self.weights, b.reshape(-1)
        triple = w[0] * flat[0] * s[1] * z[2] + w[1] * flat[1] * s[0] * s[1]
        bend = w[2] * jnp.sin(3.0 * flat[0] + s[0]) + w[3] * jnp.sum(b**2)
        return triple + bend + w[4] * jnp.sum(z**3 * jnp.arange(3.0)) + w[5] * s[0] * z[1]


def tangled():
    return Tangled(weights=np.array([1.5, -0.8, 0.7, 0.4, 0.5, -1.2]))


MODELS = {
    "binary": machine(5, scale=0.9),
    "spin": machine(4, unit=pgm.Spin, num_hidden=1),
    "categorical": rbm("categorical", "categorical", sizes=(2, 1), scale=0.9),
    "mixed": rbm("categorical", "spin", sizes=(2, 2), scale=0.9),
    "marginal": pgm.marginalize(rbm("binary", "spin", sizes=(4, 2), scale=0.9), "h"),
    "tangled": tangled(),
}
KERNELS = {
    "gradients": GibbsWithGradientsKernel(),
    "langevin": DiscreteLangevinKernel(0.4),
    "long steps": DiscreteLangevinKernel(5.0),
}
SMALL = MODELS["mixed"]


@dataclasses.dataclass(frozen=True)
class Uncorrected(DiscreteLangevinKernel):
    """No Metropolis step."""

    def accept_log_prob(self, point, new, model):
        return jnp.zeros(())


@dataclasses.dataclass(frozen=True)
class UncorrectedGradients(GibbsWithGradientsKernel):
    def accept_log_prob(self, point, new, model):
        return jnp.zeros(())


def forward_only(kernel, point, new, model):
    """The way back is forgotten."""
    there = kernel.proposal_log_prob(point, new.values, model)
    return jnp.minimum(point.energy - new.energy - there, 0.0)


@dataclasses.dataclass(frozen=True)
class OneWay(DiscreteLangevinKernel):
    def accept_log_prob(self, point, new, model):
        return forward_only(self, point, new, model)


@dataclasses.dataclass(frozen=True)
class OneWayGradients(GibbsWithGradientsKernel):
    def accept_log_prob(self, point, new, model):
        return forward_only(self, point, new, model)


@dataclasses.dataclass(frozen=True)
class SymmetricByMistake(GibbsWithGradientsKernel):
    """Metropolis without Hastings: as if proposals were symmetric."""

    def accept_log_prob(self, point, new, model):
        return jnp.minimum(point.energy - new.energy, 0.0)


BROKEN = [Uncorrected(0.8), UncorrectedGradients(), OneWay(0.8), OneWayGradients()]
BROKEN += [SymmetricByMistake()]


# ---- the exact law -------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_the_exact_law_is_invariant_and_the_only_one(kernel, model):
    _, probabilities, _ = law(model)
    matrix = exact_transition_matrix(kernel, model)
    assert matrix.min() > -1e-12
    row_error, error = invariance_error(matrix, probabilities)
    assert row_error < 1e-9
    assert error < 1e-5
    flow = probabilities[:, None] * matrix
    np.testing.assert_allclose(flow, flow.T, atol=1e-6)  # detailed balance
    eigenvalues = np.sort(np.abs(np.linalg.eigvals(matrix)))
    assert eigenvalues[-2] < 1 - 1e-6


@pytest.mark.parametrize("model", [MODELS["mixed"], MODELS["tangled"]], ids=["mixed", "tangled"])
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_proposals_are_a_law(kernel, model):
    states, _, _ = law(model)
    states = {name: jnp.asarray(x) for name, x in states.items()}

    @jax.jit
    def table(model):
        def row(old):
            point = kernel.look(old, model)
            return jax.vmap(lambda new: kernel.proposal_log_prob(point, new, model))(states)

        return jax.vmap(row)(states)

    proposals = np.exp(np.asarray(table(model), float))
    np.testing.assert_allclose(proposals.sum(axis=1), 1.0, rtol=1e-5)
    stays = np.diagonal(proposals)
    assert (stays == 0).all() if kernel is KERNELS["gradients"] else (stays > 0).all()


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_draws_follow_the_matrix(kernel, rng_key):
    """One step from one state, many times: the code that samples is the one that was examined."""
    model = MODELS["tangled"]
    states, probabilities, _ = law(model)
    matrix = exact_transition_matrix(kernel, model)
    start = int(np.argmax(probabilities))
    old = {k: jnp.asarray(x[start]) for k, x in states.items()}
    step = jax.jit(jax.vmap(lambda key: kernel(key, old, model)[0]))
    draws = step(jax.random.split(rng_key, 20_000))
    reached = matrix[start] > 0
    row = matrix[start][reached]
    assert frequencies_p_value(draws, rows(states, reached), row) > ALPHA
    other = np.roll(row, 1)
    assert frequencies_p_value(draws, rows(states, reached), other) < ALPHA


@pytest.mark.parametrize("kernel", BROKEN, ids=lambda kernel: type(kernel).__name__)
def test_wrong_corrections_are_caught_by_the_matrix(kernel):
    with pytest.raises(ConformanceError, match="pi T = pi"):
        check_kernel(kernel, SMALL, num_draws=100)


@pytest.mark.parametrize("kernel", BROKEN, ids=lambda kernel: type(kernel).__name__)
def test_wrong_corrections_are_caught_by_draws(kernel):
    def hidden(rng_key, values, model):
        return kernel(rng_key, values, model)

    with pytest.raises(ConformanceError, match="chi-square"):
        check_kernel(hidden, SMALL)


def test_jumps_that_are_too_likely_are_caught():
    @dataclasses.dataclass(frozen=True)
    class Doubled(GibbsWithGradientsKernel):
        def jump_log_prob(self, values, new_values, model):
            return super().jump_log_prob(values, new_values, model) + jnp.log(2.0)

    with pytest.raises(ConformanceError, match="T is not negative"):
        check_kernel(Doubled(), machine(3, scale=0.1))


def test_a_spin_and_its_binary_twin_are_sampled_alike():
    """A change of state costs the same in every family, so the encoding does not matter."""
    model = MODELS["spin"]
    twin = pgm.binarize(model)
    for name in ("gradients", "langevin"):
        kernel = KERNELS[name]
        np.testing.assert_allclose(
            exact_transition_matrix(kernel, model),
            exact_transition_matrix(kernel, twin),
            atol=1e-6,
        )


def test_a_proposal_of_infinite_or_undefined_energy_is_rejected():
    @pgm.struct
    class Hole(pgm.EnergyModel):
        depth: jax.Array

        @property
        def sites(self):
            return {"b": pgm.Binary(2)}

        def energy(self, b):
            return jnp.where(jnp.sum(b) > 1.5, jnp.nan, self.depth * b[0])

    step = jax.jit(jax.vmap(GibbsWithGradientsKernel(), in_axes=(0, None, None)))
    values, info = step(
        jax.random.split(jax.random.key(0), 50), {"b": jnp.array([1, 0], jnp.int8)}, Hole(depth=0.1)
    )
    assert np.asarray(values["b"]).sum(axis=1).max() == 1
    assert np.isfinite(info.energy).all()


# ---- as NumPyro kernels --------------------------------------------------------------------------


def run(kernel, rng_key, *, num_chains=1, num_warmup=0, num_samples=1, **options):
    names = ("init_params", "extra_fields")
    given = {name: options.pop(name) for name in names if name in options}
    observed = options.pop("observed", {})
    options.setdefault("chain_method", "vectorized")
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        progress_bar=False,
        **options,
    )
    mcmc.run(rng_key, **given, **observed)
    return mcmc


ADAPTERS = {
    "gradients": lambda model: pgm.GibbsWithGradients(model),
    "langevin": lambda model: pgm.DiscreteLangevin(model, 0.8, num_steps=4),
}


@pytest.mark.parametrize("make", ADAPTERS.values(), ids=ADAPTERS)
def test_adapters_leave_the_law_invariant(make):
    check_kernel(make(SMALL), SMALL)


@pytest.mark.parametrize("make", ADAPTERS.values(), ids=ADAPTERS)
def test_chain_methods_give_the_same_chains(make, rng_key):
    options = {"num_chains": 2, "num_warmup": 6, "num_samples": 10}
    fields = ("accept_prob", "num_steps")
    runs = [
        run(make(SMALL), rng_key, chain_method=method, extra_fields=fields, **options)
        for method in ("vectorized", "sequential")
    ]
    samples = runs[0].get_samples(True)
    for other in runs[1:]:
        for name, value in other.get_samples(True).items():
            np.testing.assert_array_equal(value, samples[name])
    stats = runs[0].get_extra_fields(True)
    np.testing.assert_allclose(
        stats["potential_energy"], -SMALL.log_density(samples), rtol=1e-4, atol=1e-5
    )
    assert ((stats["accept_prob"] > 0) & (stats["accept_prob"] <= 1)).all()
    assert (stats["num_steps"] == 4).all()  # four units, or four proposals


@pytest.mark.parametrize("make", ADAPTERS.values(), ids=ADAPTERS)
def test_observed_sites_and_starts(make, rng_key):
    held = np.array([2, 0])
    start = {"h": np.tile([1, -1], (3000, 1))}
    mcmc = run(
        make(SMALL),
        rng_key,
        num_chains=3000,
        num_warmup=30,
        observed={"v": held},
        init_params=start,
    )
    draws = mcmc.get_samples()
    assert draws.keys() == {"h"}
    states, probabilities, _ = law(SMALL)
    keep = (states["v"] == held).all(axis=1)
    given = probabilities[keep] / probabilities[keep].sum()
    assert frequencies_p_value(draws, {"h": states["h"][keep]}, given) > ALPHA
    state = make(SMALL).init(
        jax.random.split(rng_key, 3000), 0, start, model_args=(), model_kwargs={"v": held}
    )
    np.testing.assert_array_equal(state.z["h"], start["h"])
    np.testing.assert_allclose(
        state.potential_energy,
        -SMALL.log_density({**state.z, "v": np.tile(held, (3000, 1))}),
        rtol=1e-5,
        atol=1e-5,
    )


def test_clamped_units_stay_and_are_not_proposed(rng_key):
    given = pgm.condition(SMALL, v=np.array([1.0, np.nan]))
    for name in ("gradients", "langevin"):
        check_kernel(KERNELS[name], given, num_draws=5000)
    state = pgm.GibbsWithGradients(given).init(rng_key, 0, None, model_args=(), model_kwargs={})
    after = pgm.GibbsWithGradients(given).sample(state, (), {})
    assert int(after.num_steps) == 3  # of four units one is clamped
    assert int(after.z["v"][0]) == 1


@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable:UserWarning")
@pytest.mark.parametrize("make", ADAPTERS.values(), ids=ADAPTERS)
def test_a_block_beside_nuts_in_numpyro_composite(make, rng_key):
    model = rbm("real", "spin", sizes=(2, 3), scale=1.2)
    kernel = Gibbs([(make(model), ["h"]), (NUTS(model), ["v"])])
    mcmc = run(kernel, rng_key, num_chains=600, num_warmup=60, num_samples=1, chain_method=jax.vmap)
    h = {"h": np.asarray(mcmc.get_samples()["h"])}
    states, probabilities, _ = law(pgm.marginalize(model, "v"))
    assert frequencies_p_value(h, states, probabilities) > ALPHA
    broken = {"h": h["h"] * np.array([1, 1, -1])}
    assert frequencies_p_value(broken, states, probabilities) < ALPHA


@pytest.mark.parametrize("make", ADAPTERS.values(), ids=ADAPTERS)
def test_energy_and_gradient_are_refreshed_when_another_block_moved(make, rng_key):
    model = rbm("real", "spin", sizes=(2, 3), scale=1.2)
    kernel = make(model)
    before, after = ({"_gibbs_sites": {"v": jnp.asarray(v)}} for v in ([0.5, -1.0], [2.0, 0.3]))
    state = kernel.init(rng_key, 0, None, model_args=(), model_kwargs=before)
    new = kernel.refresh(state, (), after)
    values = {**state.z, "v": after["_gibbs_sites"]["v"]}
    np.testing.assert_allclose(new.potential_energy, -model.log_density(values), rtol=1e-5)
    expected = values["v"] @ model.weights + model.hidden_bias
    np.testing.assert_allclose(new.eta["h"], expected, rtol=1e-5)
    assert np.abs(np.asarray(state.eta["h"] - expected)).max() > 0.1


def test_warm_up_finds_the_step_size(rng_key):
    rng = np.random.default_rng(3)
    edges = [(i, (i + 1) % 200) for i in range(200)]
    chain = pgm.SparseBoltzmannMachine.from_edges(
        edges, rng.normal(size=200), rng.normal(size=200), unit=pgm.Spin
    )
    options = {
        "num_chains": 4,
        "num_samples": 300,
        "extra_fields": ("accept_prob", "adapt_state.step_size"),
    }
    fields = run(
        pgm.DiscreteLangevin(chain, 5.0), rng_key, num_warmup=400, **options
    ).get_extra_fields(True)
    assert abs(float(fields["accept_prob"].mean()) - 0.574) < 0.06
    sizes = np.asarray(fields["adapt_state.step_size"])
    assert (sizes == sizes[:, :1]).all()  # nothing is adapted after warm-up
    assert (sizes < 1.0).all()
    for kernel, num_warmup in (
        (pgm.DiscreteLangevin(chain, 5.0), 0),
        (pgm.DiscreteLangevin(chain, 5.0, adapt_step_size=False), 20),
    ):
        fields = run(kernel, rng_key, num_warmup=num_warmup, **options).get_extra_fields(True)
        np.testing.assert_allclose(fields["adapt_state.step_size"], 5.0, rtol=1e-6)
        assert float(fields["accept_prob"].mean()) < 0.3


def test_they_join_compare(rng_key):
    model = MODELS["binary"]
    samplers = {name: make(model) for name, make in ADAPTERS.items()}
    table = pgm.compare(rng_key, model, samplers, num_warmup=200, num_samples=500, num_chains=4)
    assert (table.summary["evaluation"] == "gradient").all()
    assert table.summary.loc["gradients", "evaluations"] == 4 * 500 * 5
    assert table.summary.loc["langevin", "evaluations"] == 4 * 500 * 4
    for name, draws in table.datatrees.items():
        mean = draws["posterior"]["v"].values.mean(axis=(0, 1))
        np.testing.assert_allclose(mean, table.exact_means["v"], atol=0.1, err_msg=name)
    assert "step_size" in table.datatrees["langevin"]["sample_stats"]


# ---- messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", ADAPTERS.values(), ids=ADAPTERS)
def test_a_real_site_is_refused_unless_observed(make, rng_key):
    model = mixed()
    with pytest.raises(ValueError, match=r"updates discrete sites, site 'x' is real: observe it"):
        make(model).init(rng_key, 0, None, model_args=(), model_kwargs={})
    x = np.array([0.3, -0.2], np.float32)
    mcmc = run(make(model), rng_key, num_samples=3, observed={"x": x})
    assert mcmc.get_samples().keys() == {"b", "z"}


def test_a_site_without_choice_is_refused():
    alone = pgm.Independent.like(machine(2))

    @pgm.struct
    class Single(pgm.EnergyModel):
        weight: jax.Array

        @property
        def sites(self):
            return {"z": pgm.Categorical(1, 2)}

        def energy(self, z):
            return self.weight * z.sum()

    assert GibbsWithGradientsKernel().updated(alone) == ("v",)
    with pytest.raises(ValueError, match="nothing to update: no unit has two states"):
        GibbsWithGradientsKernel().updated(Single(weight=1.0))
    with pytest.raises(ValueError, match="has no site 'q'"):
        GibbsWithGradientsKernel(("q",)).updated(alone)


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: pgm.GibbsWithGradients("rbm"), TypeError, "takes an energy model, got str"),
        (lambda: pgm.GibbsWithGradients(SMALL, 0), ValueError, "num_updates must be an integer"),
        (lambda: pgm.DiscreteLangevin(SMALL, 0.0), ValueError, "step_size must be a positive"),
        (lambda: pgm.DiscreteLangevin(SMALL, "big"), ValueError, "step_size must .* got 'big'"),
        (lambda: pgm.DiscreteLangevin(SMALL, num_steps=1.5), ValueError, "num_steps must be an"),
        (
            lambda: pgm.DiscreteLangevin(SMALL, target_accept_prob=1.0),
            ValueError,
            "target_accept_prob must be a positive number below 1",
        ),
    ],
    ids=["model", "updates", "zero", "word", "steps", "target"],
)
def test_arguments_are_checked(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_observed_everything_is_refused(rng_key):
    observed = {"v": np.zeros(2, int), "h": np.ones(2, int)}
    with pytest.raises(ValueError, match="nothing is left to sample"):
        run(pgm.GibbsWithGradients(SMALL), rng_key, observed=observed)


def test_they_print():
    assert repr(pgm.GibbsWithGradients(SMALL, 3)).endswith("num_updates=3)")
    assert "step_size=0.2, num_steps=1" in repr(pgm.DiscreteLangevin(SMALL))
