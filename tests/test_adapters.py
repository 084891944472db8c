"""What all NumPyro adapters share: storage types and observables."""

import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer import MCMC, Gibbs

import pgm_energy as pgm

#: one edge between two sites of two states, which every adapter can sample
MIXED = pgm.RBM(weights=jnp.full((3, 2), 0.4), visible=pgm.Binary, hidden=pgm.Spin)
LEVELS = pgm.RBM(weights=jnp.full((2, 3, 2), 0.3), visible=pgm.Categorical, hidden=pgm.Binary)
ADAPTERS = [
    pgm.BlockGibbs,
    pgm.ParallelTempering,
    pgm.GibbsWithGradients,
    pgm.DiscreteLangevin,
    pgm.SwendsenWang,
]


def run(kernel, rng_key):
    mcmc = MCMC(
        kernel,
        num_warmup=2,
        num_samples=3,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(rng_key)
    return mcmc


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda a: a.__name__)
def test_draws_are_kept_in_their_storage_type(adapter, rng_key):
    model = MIXED if adapter is pgm.SwendsenWang else LEVELS  # clusters: equally many states
    expected = {name: np.dtype(site.dtype) for name, site in model.sites.items()}
    mcmc = run(adapter(model), rng_key)
    assert {k: v.dtype for k, v in mcmc.get_samples().items()} == expected
    assert {k: v.dtype for k, v in mcmc.last_state.z.items()} == expected
    posterior = pgm.to_datatree(mcmc).posterior
    assert {k: posterior[k].dtype for k in expected} == expected


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda a: a.__name__)
def test_observables_are_stored_instead_of_draws(adapter, rng_key):
    draws = run(adapter(MIXED), rng_key).get_samples(True)
    observables = {
        "agree": lambda values: jnp.sum(values["v"][:2] * values["h"]),
        "v_again": lambda values: values["v"].astype(jnp.int8),
    }
    seen = run(adapter(MIXED, observables=observables), rng_key).get_samples(True)
    assert seen.keys() == {"agree", "v_again"}
    np.testing.assert_array_equal(seen["agree"], (draws["v"][..., :2] * draws["h"]).sum(-1))
    np.testing.assert_array_equal(seen["v_again"], draws["v"])
    assert seen["v_again"].dtype == jnp.int8


def test_observables_do_not_overflow_the_storage_type(rng_key):
    model = pgm.ising_lattice((12, 12), 0.3)
    square = {"square": lambda x: x["v"].reshape(-1) @ x["v"].reshape(-1)}  # 144 > 127
    seen = run(pgm.BlockGibbs(model, observables=square), rng_key).get_samples()
    assert (np.asarray(seen["square"]) == 144).all()


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda a: a.__name__)
@pytest.mark.parametrize(
    "observable, error, message",
    [
        ({"v": lambda x: x["v"]}, ValueError, "'v' has the name of a site of RBM"),
        ({"m": lambda x: x["v"][x["v"] == 1]}, ValueError, "shape does not depend on the values"),
        ({"m": lambda x: np.sum(np.asarray(x["v"]))}, ValueError, "and jnp instead of np"),
        ({"m": lambda x: 1.0 if x["v"][0] else 0.0}, ValueError, "'m' must return an array whose"),
        ({"m": lambda x: "up"}, TypeError, "'m' must return one array of numbers, got str"),
        ({"m": lambda x: None}, TypeError, "one array of numbers, got NoneType"),
        ({"m": lambda x: [x["v"]]}, TypeError, "one array of numbers, got list: give every array"),
        ({"m": lambda x: x["w"]}, ValueError, "asks for 'w'; a configuration has 'v', 'h'"),
        ({"m": 3}, TypeError, "observable 'm' must be a function, got 3"),
        ([len], TypeError, "observables is a dict of functions by name, got list"),
        ({"m": lambda v, h: v}, TypeError, r"observable 'm' must take one argument.*\(v, h\)"),
        ({"m": lambda: 1}, TypeError, "observable 'm' must take one argument"),
    ],
    ids=[
        *("site", "mask", "numpy", "branch", "text", "none", "list", "unknown", "number"),
        *("no dict", "two arguments", "no argument"),
    ],
)
def test_wrong_observables_are_refused(adapter, observable, error, message):
    with pytest.raises(error, match=message):
        adapter(MIXED, observables=observable)


def test_a_composite_stores_configurations_itself():
    kernel = pgm.BlockGibbs(MIXED, observables={"m": lambda x: jnp.sum(x["v"])})
    with pytest.raises(ValueError, match="a composite such as Gibbs stores the configurations"):
        Gibbs([(kernel, ["v"]), (pgm.BlockGibbs(MIXED), ["h"])])
