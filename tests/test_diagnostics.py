"""Chains as a DataTree, and diagnostics of sequences whose answers are known."""

import subprocess
import sys

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, DiscreteGibbs, Gibbs

import pgm_energy as pgm
from pgm_energy.convergence import diagnose_array, encoded_draws
from pgm_energy.diagnostics import dimension_names


def run(kernel, *, num_chains=3, num_samples=20, chain_method="vectorized", fields=(), **observed):
    mcmc = MCMC(
        kernel,
        num_warmup=10,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method=chain_method,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(3), extra_fields=fields, **observed)
    return mcmc


@pytest.fixture(scope="module")
def rbm():
    first, second = jax.random.split(jax.random.key(1))
    return pgm.RBM(
        weights=jax.random.normal(first, (4, 3)), visible_bias=jax.random.normal(second, (4,))
    )


def flip_rates(draws):
    return (draws[:, 1:] != draws[:, :-1]).mean(axis=-1)


# ---- to_datatree -------------------------------------------------------------------------------


def test_block_gibbs_has_named_dims_energies_and_flip_rates(rbm):
    tree = pgm.to_datatree(run(pgm.BlockGibbs(rbm)))
    assert dict(tree.posterior.v.sizes) == {"chain": 3, "draw": 20, "visible": 4}
    assert dict(tree.posterior.h.sizes) == {"chain": 3, "draw": 20, "hidden": 3}
    assert tree.posterior.visible.values.tolist() == [0, 1, 2, 3]
    assert tree.posterior.v.dtype == np.int8
    values = {name: tree.posterior[name].values for name in ("v", "h")}
    expected = np.asarray(rbm.log_density(values))
    np.testing.assert_allclose(tree.sample_stats.lp, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(tree.sample_stats.energy, -expected, rtol=1e-5, atol=1e-5)
    for name in ("v", "h"):
        rate = tree.sample_stats[f"flip_rate_{name}"].values
        assert np.isnan(rate[:, 0]).all()
        np.testing.assert_allclose(rate[:, 1:], flip_rates(values[name]), rtol=1e-6)
    assert tree.attrs["sampler"] == "BlockGibbs"
    assert "observed_data" not in tree.children


@pytest.mark.parametrize(
    "num_chains, chain_method", [(1, "vectorized"), (2, "sequential")], ids=["single", "sequential"]
)
def test_other_chain_methods(rbm, num_chains, chain_method):
    mcmc = run(pgm.BlockGibbs(rbm), num_chains=num_chains, chain_method=chain_method)
    tree = pgm.to_datatree(mcmc)
    assert dict(tree.posterior.v.sizes) == {"chain": num_chains, "draw": 20, "visible": 4}
    np.testing.assert_array_equal(tree.posterior.v, mcmc.get_samples(group_by_chain=True)["v"])


def test_numpyros_kernel_stores_bits_and_its_energies_are_evaluated(rbm):
    tree = pgm.to_datatree(run(DiscreteGibbs(rbm), chain_method=jax.vmap))
    assert tree.posterior.v.dtype == np.int8
    values = {name: tree.posterior[name].values for name in ("v", "h")}
    np.testing.assert_allclose(
        tree.sample_stats.energy, -np.asarray(rbm.log_density(values)), rtol=1e-5, atol=1e-5
    )


def test_the_twin_as_it_is_and_decoded(rbm, rng_key):
    twin = pgm.relax(rbm)
    mcmc = run(NUTS(twin), fields=("num_steps", "energy", "accept_prob", "adapt_state.step_size"))
    raw = pgm.to_datatree(mcmc)
    y = raw.posterior.y.values
    lp = np.asarray(twin.log_density({"y": y}))
    np.testing.assert_allclose(raw.sample_stats.lp, lp, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(raw.sample_stats.energy, -lp, rtol=1e-4, atol=1e-4)
    assert "flip_rate_y" not in raw.sample_stats

    tree = pgm.to_datatree(mcmc, rbm, rng_key=rng_key)
    assert list(tree.posterior.data_vars) == ["v", "h"]
    values = {name: tree.posterior[name].values for name in ("v", "h")}
    np.testing.assert_allclose(tree.sample_stats.lp, lp, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        tree.sample_stats.energy, -np.asarray(rbm.log_density(values)), rtol=1e-5, atol=1e-5
    )
    stats = {"diverging", "n_steps", "acceptance_rate", "step_size", "hamiltonian"}
    assert stats <= set(tree.sample_stats.data_vars)
    np.testing.assert_array_equal(
        tree.sample_stats.n_steps, mcmc.get_extra_fields(group_by_chain=True)["num_steps"]
    )


def test_composite_gibbs_of_two_kernels():
    model = pgm.RBM(weights=jnp.ones((3, 2)), visible=pgm.Real)
    kernel = Gibbs([(pgm.BlockGibbs(model), ["h"]), (NUTS(model), ["v"])])
    mcmc = run(kernel, num_chains=2, chain_method=jax.vmap)
    tree = pgm.to_datatree(mcmc, model)
    assert tree.posterior.v.dtype == np.float32
    values = {name: tree.posterior[name].values for name in ("v", "h")}
    np.testing.assert_allclose(
        tree.sample_stats.energy, -np.asarray(model.log_density(values)), rtol=1e-4, atol=1e-4
    )


def test_observed_sites_are_observed_data_and_the_factor_is_not(rbm):
    v = jnp.array([1, 0, 1, 1])
    tree = pgm.to_datatree(run(pgm.BlockGibbs(rbm), v=v))
    assert list(tree.observed_data.data_vars) == ["v"]
    assert tree.observed_data.v.dims == ("visible",)
    assert list(tree.posterior.data_vars) == ["h"]
    h = tree.posterior.h.values
    energy = -np.asarray(rbm.log_density({"v": np.broadcast_to(v, (*h.shape[:2], 4)), "h": h}))
    np.testing.assert_allclose(tree.sample_stats.energy, energy, rtol=1e-5, atol=1e-5)


def test_frozen_units_are_reported(rbm):
    clamped = pgm.condition(rbm, v=np.array([1.0, np.nan, 0.0, np.nan]))
    tree = pgm.to_datatree(run(pgm.BlockGibbs(clamped), num_samples=60))
    frozen = tree["frozen"].to_dataset()
    assert frozen.v.dims == ("chain", "visible")
    np.testing.assert_array_equal(frozen.v.values, [[True, False, True, False]] * 3)
    assert tree.posterior.v.attrs["frozen_units"] == 2
    assert tree.posterior.h.attrs["frozen_units"] == 0
    # the reason why: ArviZ calls a constant chain perfect
    assert float(az.ess(tree.posterior.v.values)[0]) == 180
    diagnosis = pgm.diagnose(tree, clamped)["v"]
    np.testing.assert_array_equal(np.isnan(diagnosis.ess_bulk), [True, False, True, False])
    np.testing.assert_array_equal(diagnosis.frozen, [True, False, True, False])


def test_it_survives_a_file(rbm, tmp_path):
    tree = pgm.to_datatree(run(pgm.BlockGibbs(rbm)))
    tree.to_netcdf(tmp_path / "draws.nc", engine="h5netcdf")
    back = az.from_netcdf(tmp_path / "draws.nc", engine="h5netcdf")
    np.testing.assert_array_equal(back.posterior.v, tree.posterior.v)
    np.testing.assert_array_equal(back["frozen"].ds["h"], tree["frozen"].ds["h"])
    assert back.attrs["pgm_energy_version"] == tree.attrs["pgm_energy_version"]
    back.close()


def test_dimension_names_are_unique_where_lengths_differ():
    names = dimension_names(
        {
            "a": pgm.Binary(3, dims=("unit",)),
            "b": pgm.Binary(3, dims=("unit",)),
            "c": pgm.Binary(4, dims=("unit",)),
            "d": pgm.Spin((2, 2), dims=("row", "row")),
            "e": pgm.Binary(5, dims=("chain",)),
            "f": pgm.Real(2),
            "g": pgm.Real(2, dims=("a",)),
        }
    )
    assert names == {
        "a": ("unit",),
        "b": ("unit",),
        "c": ("c_dim_0",),
        "d": ("row", "d_dim_1"),
        "e": ("e_dim_0",),
        "f": ("f_dim_0",),
        "g": ("g_dim_0",),
    }


class TestRefusals:
    def test_no_mcmc(self, rbm):
        with pytest.raises(TypeError, match=r"takes a numpyro\.infer\.MCMC, got RBM"):
            pgm.to_datatree(rbm)

    def test_not_run(self, rbm):
        mcmc = MCMC(pgm.BlockGibbs(rbm), num_warmup=1, num_samples=2, progress_bar=False)
        with pytest.raises(ValueError, match=r"no draws yet: call mcmc\.run"):
            pgm.to_datatree(mcmc)

    def test_no_energy_model(self):
        mcmc = run(NUTS(lambda: numpyro.sample("x", dist.Normal())), num_chains=1)
        with pytest.raises(TypeError, match="give the energy model"):
            pgm.to_datatree(mcmc)

    def test_no_key_to_decode_with(self, rbm):
        mcmc = run(pgm.BlockGibbs(pgm.binarize(rbm)), num_chains=1)
        with pytest.raises(ValueError, match="give a key"):
            pgm.to_datatree(mcmc, rbm)

    def test_another_model(self, rbm, rng_key):
        mcmc = run(pgm.BlockGibbs(rbm), num_chains=1)
        other = pgm.RBM(weights=jnp.ones((5, 3)))
        with pytest.raises(ValueError, match=r"site 'v' of shape \(5,\)"):
            pgm.to_datatree(mcmc, other, rng_key=rng_key)


# ---- diagnose ----------------------------------------------------------------------------------


def test_ess_of_sequences_that_are_known():
    rng = np.random.default_rng(0)
    chains, draws, rho = 4, 4000, 0.8
    noise = rng.normal(size=(chains, draws, 2))
    series = noise.copy()
    for t in range(1, draws):
        series[:, t, 1] = rho * series[:, t - 1, 1] + np.sqrt(1 - rho**2) * noise[:, t, 1]
    result = diagnose_array(series)
    total = chains * draws
    assert abs(result.ess_bulk[0] / total - 1.0) < 0.15
    exact = (1 - rho) / (1 + rho)
    assert abs(result.ess_bulk[1] / total / exact - 1.0) < 0.2
    np.testing.assert_allclose(result.mcse[0], 1 / np.sqrt(total), rtol=0.1)
    assert (result.rhat < 1.01).all()


def test_constant_and_stuck_statistics():
    rng = np.random.default_rng(1)
    draws = (rng.random((4, 200, 4)) < 0.5).astype(np.int8)
    draws[..., 0] = 1
    draws[:2, :, 1], draws[2:, :, 1] = 0, 1
    draws[0, :, 2] = 0  # one chain only
    result = diagnose_array(draws)
    np.testing.assert_array_equal(result.frozen, [True, True, False, False])
    np.testing.assert_array_equal(result.stuck, [False, True, False, False])
    assert np.isnan(result.ess_bulk[0])
    assert np.isnan(result.rhat[0])
    assert np.isinf(result.rhat[1])
    assert result.ess_bulk[1] < 10
    assert result.rhat[2] > 1.1
    assert result.rhat[3] < 1.05
    np.testing.assert_array_equal(result.ess_tail[1:], result.ess_bulk[1:])


def test_categorical_draws_become_indicators():
    draws = np.array([[[0, 2], [1, 2]]], np.int32)
    encoded = encoded_draws(draws, pgm.Categorical(3, 2))
    expected = [[[1, 0, 0, 0, 0, 1], [0, 1, 0, 0, 0, 1]]]
    np.testing.assert_array_equal(encoded, expected)


def test_import_leaves_arviz_and_matplotlib_alone():
    code = (
        "import sys, pgm_energy as pgm\n"
        "assert not {'arviz', 'matplotlib', 'pandas'} & set(sys.modules)\n"
        "assert callable(pgm.to_datatree) and 'arviz' in sys.modules\n"
        "assert 'compare' in dir(pgm)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
