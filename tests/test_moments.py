"""running_moments and sample: exact laws, any kernel, trouble in the middle of a run."""

import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer import NUTS
from oracles import ALPHA, law
from scipy import stats

import pgm_energy as pgm
from pgm_energy import _chain_run, kernels, moments, predict

ROOT = Path(__file__).resolve().parents[1]
RNG = np.random.default_rng(5)
RBM = pgm.RBM(
    weights=jnp.asarray(RNG.normal(0, 1.2, (4, 3)), jnp.float32),
    visible_bias=jnp.asarray(RNG.normal(0, 0.5, 4), jnp.float32),
    hidden_bias=jnp.asarray(RNG.normal(0, 0.5, 3), jnp.float32),
)
LEVELS = pgm.RBM(
    weights=jnp.asarray(RNG.normal(0, 1.0, (2, 3, 2)), jnp.float32),
    visible=pgm.Categorical,
    hidden=pgm.Spin,
)


def run(rng_key, model=RBM, num_sweeps=4096, **options):
    options = {"num_chains": 16, "num_warmup": 100, "progress_bar": False, **options}
    return pgm.running_moments(rng_key, model, num_sweeps, **options)


def encode(model, states):
    return {k: np.asarray(site.encode(states[k]), float) for k, site in model.sites.items()}


def agree(found, exact, slack=0.0):
    """Whether all means are within their errors, at a family-wise error rate of alpha."""
    free = ~np.isnan(found.mcse)
    limit = stats.t.ppf(1 - ALPHA / 2 / max(free.sum(), 1), found.num_batches - 1)
    return bool((np.abs(found.mean - exact - slack)[free] <= limit * found.mcse[free]).all())


# ---- the right answers ---------------------------------------------------------------------------


@pytest.mark.parametrize("model", [RBM, LEVELS], ids=["binary", "categorical and spin"])
def test_moments_are_those_of_the_exact_law(rng_key, model):
    states, probabilities, _ = law(model)
    encoded = encode(model, states)
    found = run(
        rng_key, model, pairs=[("v", "h"), ("h", "h")], observables={"sum": lambda x: x["h"].sum()}
    )
    exact = pgm.exact(model)
    for name, moment in found.sites.items():
        assert moment.mean.shape == model.sites[name].encoded_shape
        assert agree(moment, exact.means[name])
        assert not agree(moment, exact.means[name], 0.05)  # positive control
        second = np.tensordot(probabilities, encoded[name] ** 2, axes=1)
        sd = np.sqrt(second - exact.means[name] ** 2)
        np.testing.assert_allclose(moment.sd, sd, atol=0.02)
    for (first, second), moment in found.pairs.items():
        product = np.einsum(
            "n,na,nb->ab",
            probabilities,
            encoded[first].reshape(len(probabilities), -1),
            encoded[second].reshape(len(probabilities), -1),
        ).reshape(moment.mean.shape)
        assert agree(moment, product)
        assert not agree(moment, product, 0.05)
    independent = np.multiply.outer(exact.means["v"], exact.means["h"])
    assert not agree(found.pairs["v", "h"], independent)
    sums = probabilities @ states["h"].sum(axis=1)
    assert agree(found.observables["sum"], sums)
    energies = -np.asarray(model.log_density(states), float)
    assert agree(found.energy, probabilities @ energies)
    assert not agree(found.energy, probabilities @ energies, 0.1)
    assert (found.num_chains, found.num_draws) == (16, 4096)
    assert found.values["v"].shape == (16, *model.sites["v"].shape)


def test_pairs_are_the_moments_of_the_draws_that_sample_gives(rng_key):
    """The same key, the same chains: every number is that of the stored draws."""
    draws = pgm.sample(rng_key, RBM, 4 * 128, num_chains=4, num_warmup=8, group_by_chain=True)
    found = run(rng_key, num_sweeps=128, num_chains=4, num_warmup=8, pairs=[("v", "h")])
    v, h = (np.asarray(draws[name], float) for name in ("v", "h"))
    np.testing.assert_allclose(found.sites["v"].mean, v.mean(axis=(0, 1)), atol=1e-6)
    np.testing.assert_allclose(found.sites["h"].sd, h.reshape(-1, 3).std(axis=0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(
        found.pairs["v", "h"].mean, np.einsum("cta,ctb->ab", v, h) / v[..., 0].size, atol=1e-6
    )
    np.testing.assert_array_equal(found.values["v"], draws["v"][:, -1])
    energy = -RBM.log_density(draws)
    np.testing.assert_allclose(found.energy.mean, energy.mean(), rtol=1e-5)


@pytest.mark.parametrize(
    "kernel",
    [
        pgm.gibbs_kernel(pgm.blocks(RBM)),
        kernels.GibbsWithGradientsKernel(),
        kernels.DiscreteLangevinKernel(0.3),
        kernels.swendsen_wang_kernel(RBM),
    ],
    ids=["gibbs", "gradients", "langevin", "clusters"],
)
def test_every_pure_kernel_runs(rng_key, kernel):
    exact = pgm.exact(RBM)
    found = run(rng_key, num_sweeps=8192, kernel=kernel, num_warmup=200)
    for name in ("v", "h"):
        assert agree(found.sites[name], exact.means[name])
        assert not agree(found.sites[name], exact.means[name], 0.1)
    draws = pgm.sample(rng_key, RBM, 8, num_chains=2, num_warmup=2, kernel=kernel)
    assert {k: v.dtype for k, v in draws.items()} == {k: s.dtype for k, s in RBM.sites.items()}


def test_chosen_sites_and_short_runs(rng_key):
    found = run(rng_key, num_sweeps=3, sites=["h"], num_warmup=0)
    assert found.sites.keys() == {"h"}
    assert found.pairs == found.observables == {}
    assert found.num_draws == 3
    assert "The run is short" in found.message
    assert "3 sweeps" in repr(found)
    assert [moments._block_size(n) for n in (1, 127, 128, 2047, 2048, 10**6)] == [
        1,
        1,
        2,
        16,
        32,
        32,
    ]


def test_the_carried_state_does_not_grow_with_the_run(rng_key):
    """Sizes alone: 1,000,000 sweeps of 784 x 500 units in 64 chains carry what 2,048 do."""
    model = pgm.RBM(weights=jnp.zeros((784, 500)))
    sizes = []
    for num_sweeps in (2048, 1_000_000):
        plan = moments._plan(model, None, [("v", "h")], {}, moments._block_size(num_sweeps))
        state = jax.eval_shape(
            lambda key, plan=plan: plan.first(model, _chain_run._begin(key, model, num_chains=64)),
            rng_key,
        )
        sizes.append(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)))
    assert sizes[0] == sizes[1] < 110 * 2**20
    num_numbers = 784 * 500 * 60 + 1285 * 64 * 20 + 1285 * 25 * 2 + 1
    assert sizes[0] == 4 * num_numbers


# ---- trouble -------------------------------------------------------------------------------------


@pgm.struct
class Breaking(pgm.EnergyModel):
    """Real units that a kernel counts its sweeps with, until an energy is infinite."""

    after: jax.Array
    above: jax.Array

    @property
    def sites(self):
        return {"x": pgm.Real(2)}

    def energy(self, x):
        return 0.5 * jnp.sum(x**2)


def counting(rng_key, values, model):
    """x[0] is 100 after the first sweep, then one more after each; x[1] tells chains apart."""
    del rng_key
    x = values["x"]
    x = x.at[0].set(jnp.where(x[0] < 100, 100, x[0] + 1))
    broken = (x[0] == 100 + model.after) & (x[1] > model.above)
    return {"x": x}, kernels.GibbsInfo(jnp.where(broken, jnp.inf, x[0]), {})


def breaking(rng_key, after, num_chains=4):
    """A model of which one chain breaks in one sweep, and the number of the chain."""
    model = Breaking(after=after, above=jnp.zeros(()))
    mark = np.asarray(_chain_run.begin(rng_key, model, num_chains).values["x"])[:, 1]
    return Breaking(after=after, above=np.sort(mark)[-2:].mean()), int(mark.argmax())


OPTIONS = {"num_chains": 4, "num_warmup": 10, "kernel": counting}


def test_a_broken_chain_is_named_and_the_run_goes_on(rng_key):
    model, chain = breaking(rng_key, 100)
    message = rf"energy became inf in chain {chain} at sweep 90 .*the run goes on"
    with pytest.warns(RuntimeWarning, match=message):
        found = run(rng_key, model, 127, **OPTIONS)
    assert found.num_draws == 126
    assert "1 sweeps were left out" in found.message
    np.testing.assert_allclose(found.energy.mean, (sum(range(110, 237)) - 200) / 126, rtol=1e-6)
    message = rf"energy became inf in chain {chain} at draw 90 .*the run goes on"
    with pytest.warns(RuntimeWarning, match=message):
        draws = pgm.sample(rng_key, model, 4 * 127, **OPTIONS)
    assert draws["x"].shape == (4 * 127, 2)


def test_a_broken_chain_ends_the_run_where_asked(rng_key):
    model, chain = breaking(rng_key, 100)
    message = rf"inf in chain {chain} at sweep 90 .*holds what was drawn before"
    with pytest.warns(RuntimeWarning, match=message):
        found = run(rng_key, model, 127, on_invalid="stop", **OPTIONS)
    assert found.num_draws == 90
    assert "Ended early: the energy became inf" in found.message
    np.testing.assert_allclose(found.energy.mean, np.mean(range(110, 200)), rtol=1e-6)
    with pytest.warns(RuntimeWarning, match=rf"inf in chain {chain} at draw 90 "):
        draws = pgm.sample(
            rng_key, model, 4 * 127, on_invalid="stop", group_by_chain=True, **OPTIONS
        )
    np.testing.assert_array_equal(draws["x"][..., 0], np.tile(np.arange(110.0, 200.0), (4, 1)))


def test_warm_up_may_pass_through_what_is_impossible(rng_key):
    model, _ = breaking(rng_key, 5)
    assert run(rng_key, model, 64, **OPTIONS).num_draws == 64


@pytest.mark.filterwarnings("ignore:the energy became inf in chain:RuntimeWarning")
def test_a_run_without_a_valid_draw_says_so(rng_key):
    model, chain = breaking(rng_key, 10)
    with pytest.raises(ValueError, match="there is nothing to return: the energy became inf"):
        pgm.sample(rng_key, model, 40, on_invalid="stop", **OPTIONS)
    with pytest.raises(ValueError, match=rf"chain {chain} was at inf from sweep 0 on"):
        run(rng_key, model, 40, on_invalid="stop", **OPTIONS)


def test_an_interrupt_returns_what_was_drawn(rng_key, monkeypatch):
    """Ctrl-C in the middle of a chunk: a signal, which waits for its end."""
    whole = pgm.sample(rng_key, RBM, 400, num_chains=4, num_warmup=3)
    look = _chain_run.Watch._look

    def interrupt(watch, chunk):
        look(watch, chunk)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(_chain_run.Watch, "_look", interrupt)
    with pytest.warns(RuntimeWarning, match=r"interrupted with \d+ of 100 draws to go; the result"):
        some = pgm.sample(rng_key, RBM, 400, num_chains=4, num_warmup=3)
    assert 4 <= len(some["v"]) < 400
    np.testing.assert_array_equal(some["v"], whole["v"][: len(some["v"])])
    with pytest.warns(RuntimeWarning, match="interrupted with .* of 1000 sweeps to go"):
        found = run(rng_key, num_sweeps=1000)
    assert 8 <= found.num_draws < 1000
    assert "Ended early: interrupted" in found.message
    done = pgm.sample(rng_key, RBM, 16 * found.num_draws, num_chains=16, num_warmup=104)
    np.testing.assert_allclose(found.sites["v"].mean, np.mean(done["v"], axis=0), atol=1e-6)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_before_the_first_draw_is_one(rng_key, monkeypatch):
    def warming_up(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "_advance", warming_up)
    with pytest.raises(KeyboardInterrupt):
        pgm.sample(rng_key, RBM, 5, num_warmup=5)


def test_control_c_from_a_terminal():
    """A process of its own, a real signal, a run that would take days."""
    script = textwrap.dedent(
        """
        import jax, jax.numpy as jnp, warnings
        import pgm_energy as pgm
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            print("going", flush=True)
            found = pgm.running_moments(jax.random.key(0), pgm.RBM(weights=jnp.ones((3, 2))),
                                        30_000_000, num_warmup=0, progress_bar=False)
        print(found.num_draws, [str(w.message) for w in caught])
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    with process:
        assert process.stdout.readline() == "going\n"
        try:
            process.wait(12)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        out = process.stdout.read()
    assert process.returncode == 0, out
    assert re.match(r"\d+ \['interrupted with \d+ of 30000000 sweeps to go", out), out


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"num_sweeps": 0}, ValueError, "num_sweeps must be an integer of at least 1, got 0"),
        ({"num_sweeps": 2**26}, ValueError, "num_sweeps must be less than 33554432"),
        ({"num_chains": 0}, ValueError, "num_chains must be an integer of at least 1, got 0"),
        ({"num_warmup": -1}, ValueError, "num_warmup must be an integer of at least 0"),
        ({"sites": ["w"]}, ValueError, "has no site 'w'"),
        ({"sites": "v"}, TypeError, r"sites is a list of names, write \['v'\]"),
        ({"pairs": [("v", "w")]}, ValueError, "has no site 'w'"),
        ({"pairs": ("v", "h")}, ValueError, r"a list of pairs .*got 'v' in it"),
        ({"on_invalid": "raise"}, ValueError, "on_invalid must be 'warn' or 'stop', got 'raise'"),
        ({"kernel": 3}, TypeError, "kernel must be a hashable function .*got int"),
        ({"kernel": pgm.SwendsenWang}, TypeError, r"SwendsenWang is a NumPyro kernel.*MCMC\("),
        ({"kernel": pgm.BlockGibbs(RBM)}, TypeError, r"BlockGibbs is a NumPyro .*pass the pure"),
        (
            {"kernel": NUTS(RBM)},
            TypeError,
            r"NUTS is a NumPyro kernel.*swendsen_wang_kernel\(model",
        ),
        ({"kernel": kernels.GibbsWithGradientsKernel}, TypeError, "kernel is the class Gibbs"),
        ({"kernel": lambda key, values: values}, TypeError, "too many positional arguments"),
        ({"kernel": lambda key, values, model: values}, TypeError, "does not return a pair"),
        (
            {"kernel": kernels.TemperingKernel(pgm.blocks(RBM))},
            TypeError,
            r"\(rng_key, values, model\) -> .*TemperingKernel: missing a required argument",
        ),
        ({"observables": {"v": lambda x: x["v"]}}, ValueError, "has the name of a site of RBM"),
    ],
)
def test_wrong_arguments_are_refused(rng_key, options, error, message):
    with pytest.raises(error, match=message):
        run(rng_key, **options)


def test_runs_inside_jit_are_refused(rng_key):
    with pytest.raises(TypeError, match=r"cannot itself be inside jax\.jit or jax\.vmap"):
        jax.jit(lambda key: pgm.sample(key, RBM, 3))(rng_key)


def test_progress_changes_nothing(rng_key, capsys):
    quiet, loud = (run(rng_key, num_sweeps=64, progress_bar=bar) for bar in (False, True))
    np.testing.assert_array_equal(quiet.sites["v"].mean, loud.sites["v"].mean)
    assert "sweeps" in capsys.readouterr().out


def test_observables_see_integers_that_do_not_overflow(rng_key):
    """The squared norm of 144 spins, stored as int8, is 144."""
    model = pgm.ising_lattice((12, 12), 0.2, 0.0)
    square = {"n": lambda x: x["v"].reshape(-1) @ x["v"].reshape(-1)}
    found = run(rng_key, model, 2, num_warmup=0, observables=square)
    assert found.observables["n"].mean == 144
    assert found.values["v"].dtype == np.int8


def test_one_chain_of_one_sweep_in_words(rng_key):
    found = run(rng_key, num_sweeps=1, num_chains=1, num_warmup=0)
    assert repr(found).startswith("RunningMoments(1 chain of 1 sweep in ")
