"""Parallel tempering: the joint law of all replicas, exactly; the ladder, walkers, NumPyro."""

import dataclasses

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer import MCMC, Gibbs
from oracles import (
    ALPHA,
    energies,
    exact_draws,
    frequencies_p_value,
    invariance_error,
    law,
    rows,
    transition_matrix,
)

import pgm_energy as pgm
from pgm_energy.fitted_base import fitted_base
from pgm_energy.kernels import TemperingKernel
from pgm_energy.kernels.tempering import check_betas, exchange, random_start, retuned, start, travel

RNG = np.random.default_rng(7)
BETAS = jnp.asarray([0.0, 0.4, 1.0])
#: 2 x 2 units, 16 states, couplings that make the free energy differ from the energy
SMALL = pgm.RBM(
    weights=jnp.asarray([[2.5, -1.5], [-2.0, 2.0]]),
    visible_bias=jnp.asarray([-0.5, 0.3]),
    hidden_bias=jnp.asarray([0.4, -0.8]),
)
SMALL_BASE = pgm.Independent.like(SMALL, {"v": np.array([[0, 1], [1, 1]]), "h": np.array([[0, 0]])})
#: ten spins that all agree, all up 3.3 times as often as all down; 14 nats of barrier between
MAGNET = pgm.BoltzmannMachine(
    weights=0.4 * (jnp.ones((10, 10)) - jnp.eye(10)), bias=jnp.full(10, 0.06), unit=pgm.Spin
)


def path(beta):
    return pgm.temper(SMALL_BASE, SMALL, beta)


def small_kernel(cls=TemperingKernel, **options):
    return cls(pgm.blocks(path(0.5)), **options)


@dataclasses.dataclass(frozen=True)
class SwapsOnFreeEnergies(TemperingKernel):
    """The mistake: all sites are swept and swapped, but accepted by the energy of some."""

    def energies(self, values, base, target):
        free = [pgm.marginalize(model, "h") for model in (base, target)]
        return tuple(jax.vmap(lambda v, m=m: m.energy(v=1.0 * v))(values["v"]) for m in free)


KERNELS = [(TemperingKernel, True), (SwapsOnFreeEnergies, False)]


def run(kernel, rng_key, *, num_chains=1, num_warmup=0, num_samples=1, method="vectorized", **kw):
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method=method,
        progress_bar=False,
    )
    mcmc.run(rng_key, **kw)
    return mcmc


# ---- the joint law of all replicas, exactly ------------------------------------------------------


@pytest.fixture(scope="module")
def joint():
    """States of one replica, the law at each beta, and all triples of states with their law."""
    states, _, _ = law(SMALL)
    laws = [law(path(float(beta)), states)[1] for beta in BETAS]
    triples = np.array(np.meshgrid(*[np.arange(16)] * 3, indexing="ij")).reshape(3, -1).T
    product = np.prod([laws[r][triples[:, r]] for r in range(3)], axis=0)
    return states, laws, triples, product


def test_every_replica_is_swept_by_an_exact_sweep_of_its_own_model(joint):
    states, laws, _, _ = joint
    kernel = pgm.gibbs_kernel(pgm.blocks(path(0.5)))
    matrices = [transition_matrix(kernel, path(float(beta)), states) for beta in BETAS]
    for r in range(3):
        assert max(invariance_error(matrices[r], laws[r])) < 1e-6
        assert invariance_error(matrices[r], laws[r - 1])[1] > 0.01  # and of no other


@pytest.mark.parametrize("parity", [0, 1])
@pytest.mark.parametrize("cls, exact", KERNELS, ids=["energy", "free energy"])
def test_swaps_leave_the_product_law_invariant(joint, cls, exact, parity):
    """Every accepted and every refused swap of all 4,096 joint states, weighted."""
    states, _, triples, product = joint
    kernel = small_kernel(cls)

    @jax.jit
    def outcomes(triples):
        def one(triple):
            values = {name: jnp.asarray(value)[triple] for name, value in states.items()}
            base, target = kernel.energies(values, SMALL_BASE, SMALL)
            probs = exchange(jnp.zeros(2), target - base, BETAS, parity)[2]
            # the code's own decision, with noise on both sides of that probability
            noise = (jnp.zeros(2), probs * (1 - 1e-6), jnp.minimum(probs * (1 + 1e-6), 1.0))
            orders = [exchange(u, target - base, BETAS, parity)[0] for u in noise]
            return probs, jnp.stack([triple[order] for order in orders])

        return jax.vmap(one)(triples)

    probs, after = (np.asarray(x) for x in outcomes(jnp.asarray(triples)))
    prob = probs[:, parity].astype(float)
    np.testing.assert_array_equal(after[:, 0], after[:, 1])  # accepted up to the probability
    np.testing.assert_array_equal(after[:, 2], triples)  # and refused above it
    swapped = triples.copy()
    swapped[:, [parity, parity + 1]] = triples[:, [parity + 1, parity]]
    np.testing.assert_array_equal(after[:, 0], swapped)

    codes = [256, 16, 1]
    new = np.bincount(triples @ codes, product * (1 - prob), minlength=4096)
    new += np.bincount(swapped @ codes, product * prob, minlength=4096)
    error = 0.5 * np.abs(new - product).sum()
    assert error < 1e-6 if exact else error > 0.01, error


def test_acceptance_is_the_ratio_of_joint_energies(joint):
    states, _, triples, _ = joint
    per_beta = np.stack([energies(path(float(beta)), states) for beta in BETAS])
    chosen = triples[RNG.choice(4096, size=200)]
    now = sum(per_beta[r][chosen[:, r]] for r in range(3))
    kernel = small_kernel()
    for pair in (0, 1):
        other = chosen.copy()
        other[:, [pair, pair + 1]] = chosen[:, [pair + 1, pair]]
        then = sum(per_beta[r][other[:, r]] for r in range(3))
        expected = np.minimum(1.0, np.exp(now - then))

        def prob(triple):
            values = {name: jnp.asarray(value)[triple] for name, value in states.items()}
            base, target = kernel.energies(values, SMALL_BASE, SMALL)
            return exchange(jnp.zeros(2), target - base, BETAS, 0)[2]

        found = jax.vmap(prob)(jnp.asarray(chosen))[:, pair]
        np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("cls, exact", KERNELS, ids=["energy", "free energy"])
def test_whole_steps_keep_the_product_law(joint, rng_key, cls, exact):
    """With its own keys: neighbours' joint frequencies after steps that start in the law."""
    states, laws, _, _ = joint
    num = 40_000
    values = [exact_draws(np.random.default_rng(r), states, laws[r], num) for r in range(3)]
    stacked = {name: np.stack([v[name] for v in values], axis=1) for name in states}
    kernel = small_kernel(cls)

    @jax.jit
    def steps(key, values):
        def step(replicas, key):
            return kernel(key, replicas, SMALL_BASE, SMALL, BETAS)[0], None

        return jax.lax.scan(step, start(values), jax.random.split(key, 4))[0].values

    after = jax.vmap(steps)(jax.random.split(rng_key, num), stacked)
    after = {name: np.asarray(value) for name, value in after.items()}
    p_values = []
    for r, s in ((0, 1), (1, 2)):
        pairs = np.array(np.meshgrid(np.arange(16), np.arange(16), indexing="ij")).reshape(2, -1)
        grid = {f"{n}{q}": rows(states, pairs[i])[n] for i, q in enumerate((r, s)) for n in states}
        seen = {f"{n}{q}": after[n][:, q] for q in (r, s) for n in states}
        p_values.append(frequencies_p_value(seen, grid, np.outer(laws[r], laws[s]).ravel()))
    assert min(p_values) > ALPHA if exact else min(p_values) < ALPHA, p_values


def test_constants_of_the_energies_change_nothing(rng_key):
    """Log Z of base and target cancels: only differences of differences count."""
    climb = jnp.asarray([0.3, -1.2, 2.0])
    for parity in (0, 1):
        plain = exchange(jnp.asarray([0.2, 0.9]), climb, BETAS, parity)
        shifted = exchange(jnp.asarray([0.2, 0.9]), climb + 8.0, BETAS, parity)
        for a, b in zip(plain, shifted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)


def test_infinite_energies_are_not_swapped_upwards():
    """What the target forbids stays where the base lets it; two such replicas do not swap."""
    climb = jnp.asarray([jnp.inf, 1.0, jnp.inf])
    _, _, prob = exchange(jnp.zeros(2), climb, BETAS, 0)
    assert prob.tolist() == [0.0, 1.0]
    assert exchange(jnp.zeros(2), jnp.full(3, jnp.inf), BETAS, 0)[2].tolist() == [0.0, 0.0]


# ---- walkers and the ladder ----------------------------------------------------------------------


def test_round_trips_are_counted_on_a_history_made_by_hand():
    replicas = start({"v": jnp.zeros((3, 1), jnp.int8)})
    assert replicas.heading.tolist() == [1, 0, 0]
    history = [
        # walkers at (base, middle, target), headings, round trips
        ([1, 0, 2], [1, 1, 0], [0, 0, 0]),
        ([1, 2, 0], [-1, 1, 0], [0, 0, 0]),  # 0 has arrived; 2 was there but never at the base
        ([2, 1, 0], [-1, 1, 1], [0, 0, 0]),
        ([2, 0, 1], [-1, -1, 1], [0, 0, 0]),
        ([0, 2, 1], [1, -1, 1], [1, 0, 0]),  # 0 is back
        ([0, 2, 1], [1, -1, 1], [1, 0, 0]),  # staying there is no second trip
        ([0, 1, 2], [1, -1, -1], [1, 0, 0]),
        ([1, 0, 2], [1, 1, -1], [1, 1, 0]),
    ]
    for walkers, headings, trips in history:
        replicas = travel(replicas, jnp.asarray(walkers, jnp.int32))
        assert replicas.walker.tolist() == walkers
        assert replicas.heading.tolist() == headings
        assert replicas.round_trips.tolist() == trips


def test_pairs_take_turns_and_walkers_carry_their_configurations(rng_key):
    """With equal energies every swap is accepted: walkers move like a conveyor belt."""
    flat = pgm.Independent.like(SMALL)
    kernel = TemperingKernel(pgm.blocks(pgm.temper(flat, flat, 0.5)))
    replicas = random_start(rng_key, flat, 4)
    betas, step = jnp.linspace(0.0, 1.0, 4), jax.jit(kernel)
    seen, swapped = [], []
    for key in jax.random.split(rng_key, 8):
        replicas, info = step(key, replicas, flat, flat, betas)
        seen.append(replicas.walker.tolist())
        swapped.append(info.swapped.tolist())
    assert seen[:4] == [[1, 0, 3, 2], [1, 3, 0, 2], [3, 1, 2, 0], [3, 2, 1, 0]]
    assert swapped[:2] == [[True, False, True], [False, True, False]]
    assert seen[7] == [0, 1, 2, 3]  # after 2 * 4 steps all are back
    assert replicas.round_trips.tolist() == [1, 0, 0, 0]
    assert int(info.round_trips) == 1


def test_ladders_of_equal_rejection_stay_and_others_are_evened():
    betas = jnp.asarray([0.0, 0.2, 0.7, 1.0])
    np.testing.assert_allclose(retuned(betas, jnp.full(3, 0.6)), betas, atol=1e-6)
    # two thirds of the barrier lie in the first gap: two thirds of the steps go there
    found = retuned(betas, jnp.asarray([0.6, 0.9, 0.9]))
    np.testing.assert_allclose(found, [0.0, 0.1, 0.2, 1.0], atol=1e-6)
    never_refused = retuned(betas, jnp.ones(3))
    np.testing.assert_allclose(never_refused, betas, atol=1e-6)


FIELDS = ("betas", "swap_rate", "round_trips", "round_trip_time")


@pytest.fixture(scope="module")
def magnet_run():
    kernel = pgm.ParallelTempering(MAGNET, betas=np.linspace(0, 1, 8))
    return run(
        kernel,
        jax.random.key(1),
        num_chains=4,
        num_warmup=1000,
        num_samples=4000,
        extra_fields=FIELDS,
    )


def within_five_mcse(draws, exact):
    draws = np.asarray(draws, float)
    error = np.asarray(az.mcse({"x": draws}, method="mean")["x"])
    assert (error < 0.1).all(), f"too few effective draws to say anything: MCSE {error.max()}"
    return bool((np.abs(draws.mean(axis=(0, 1)) - exact) <= 5.0 * error).all())


def test_modes_are_exchanged_where_block_gibbs_stays_in_one(magnet_run):
    states, probabilities, _ = law(MAGNET)
    exact = probabilities @ states["v"].astype(float)
    assert 0.3 < exact[0] < 0.7
    draws = np.asarray(magnet_run.get_samples(True)["v"])
    assert draws.dtype == np.int8
    assert within_five_mcse(draws, exact)
    pairs = draws[..., :-1] * draws[..., 1:]
    products = probabilities @ (states["v"][:, :-1] * states["v"][:, 1:]).astype(float)
    assert within_five_mcse(pairs, products)
    # positive control: block Gibbs keeps the sign that it starts with
    given = {"v": np.where(np.arange(4)[:, None] < 2, 1, -1) * np.ones((1, 10), int)}
    stuck = run(
        pgm.BlockGibbs(MAGNET),
        jax.random.key(1),
        num_chains=4,
        num_samples=4000,
        init_params=given,
    ).get_samples(True)["v"]
    up = np.asarray(stuck).mean(axis=-1) > 0
    assert (up.mean(axis=1) < 0.1).sum() == 2
    assert (up.mean(axis=1) > 0.9).sum() == 2


def test_warm_up_evens_out_the_swap_rates(magnet_run):
    fields = magnet_run.get_extra_fields(True)
    rates, betas = np.asarray(fields["swap_rate"])[:, -1], np.asarray(fields["betas"])
    assert rates.shape == (4, 7)
    # all chains together; those of one chain come from a few hundred round trips
    assert np.ptp(rates.mean(axis=0)) < 0.06, rates
    assert np.ptp(rates, axis=1).max() < 0.2, rates
    assert (betas == betas[:, :1]).all()  # frozen after warm-up
    assert (np.diff(betas[:, 0]) > 0).all()
    assert (betas[:, 0, [0, -1]] == [0.0, 1.0]).all()
    kept = run(
        pgm.ParallelTempering(MAGNET, betas=np.linspace(0, 1, 8), adapt=False),
        jax.random.key(1),
        num_chains=4,
        num_warmup=1000,
        num_samples=1000,
        extra_fields=FIELDS,
    ).get_extra_fields(True)
    np.testing.assert_allclose(kept["betas"][:, -1], np.broadcast_to(np.linspace(0, 1, 8), (4, 8)))
    assert np.ptp(np.asarray(kept["swap_rate"])[:, -1], axis=1).min() > 0.25


def test_round_trips_and_their_time_fit_together(magnet_run):
    fields = {k: np.asarray(v) for k, v in magnet_run.get_extra_fields(True).items()}
    trips, time = fields["round_trips"], fields["round_trip_time"]
    assert (np.diff(trips, axis=1) >= 0).all()
    assert (trips[:, 0] <= 1).all()  # counted from the end of warm-up
    assert (trips[:, -1] > 20).all()
    steps = np.arange(1, trips.shape[1] + 1)
    seen = trips > 0
    assert np.isinf(time[~seen]).all()
    expected = (8 * steps / np.maximum(trips, 1))[seen]
    np.testing.assert_allclose(time[seen], expected, rtol=1e-5)
    np.testing.assert_array_equal(
        magnet_run.last_state.replicas.round_trips.sum(axis=1), trips[:, -1]
    )


def test_statistics_are_in_the_datatree(magnet_run):
    stats = pgm.to_datatree(magnet_run).sample_stats
    fields = magnet_run.get_extra_fields(True)
    assert stats["betas"].dims == ("chain", "draw", "replica")
    assert stats["swap_rate"].dims == ("chain", "draw", "neighbours")
    assert stats["round_trips"].dims == stats["round_trip_time"].dims == ("chain", "draw")
    for name in FIELDS:
        np.testing.assert_array_equal(stats[name], fields[name])
    energy = -MAGNET.log_density(magnet_run.get_samples(True))
    np.testing.assert_allclose(stats["energy"], energy, rtol=1e-5, atol=1e-5)


# ---- the fitted base -----------------------------------------------------------------------------


def test_the_base_has_the_marginals_of_the_model(rng_key):
    """Of units of every family, far from uniform and independent: 400 draws of each."""
    sites = (
        ("b", pgm.Binary(2)),
        ("s", pgm.Spin(2)),
        ("c", pgm.Categorical(3, ())),
        ("x", pgm.Real(2)),
    )
    model = pgm.Independent(
        parameters={
            "b": jnp.asarray([2.0, -1.0]),
            "s": jnp.asarray([1.0, -0.5]),
            "c": jnp.asarray([1.0, 0.0, -1.0]),
            "x": jnp.asarray([30.0, -0.2]),
        },
        precisions={"x": jnp.asarray([3.0, 0.2])},
        free={},
        families=sites,
        supplied=("b",),
    )
    fitted = fitted_base(rng_key, model, pgm.Independent.like(model), {}, blocks=pgm.blocks(model))
    for name, site in sites[:3]:
        exact = site.mean(model.parameters[name])
        uniform = site.mean(jnp.zeros(site.encoded_shape))
        pulled = (16 * exact + uniform) / 17  # by one pseudo-chain
        found = site.mean(fitted.parameters[name])
        np.testing.assert_allclose(found, pulled, atol=5 * 1.0 / 20)
        assert np.abs(found - uniform).max() > 0.25
    mean = fitted.parameters["x"] / fitted.precisions["x"]
    deviation = model.precisions["x"] ** -0.5
    assert (np.abs(mean - jnp.asarray([10.0, -1.0])) < 5 * deviation / 20).all()
    np.testing.assert_allclose(
        fitted.precisions["x"] / model.precisions["x"], 1.0, atol=5 * np.sqrt(2) / 20
    )


def test_every_chain_fits_a_base_unless_one_is_given(small_run, rng_key):
    kernel, _, mcmc = small_run
    assert kernel.base is None
    assert not np.array_equal(*mcmc.last_state.base.parameters["v"])
    given = pgm.ParallelTempering(SMALL, BETAS, SMALL_BASE)
    assert given.base is SMALL_BASE
    assert given.init(rng_key, 0, None, (), {}).base is None


@pgm.struct
class ThreeFamilies(pgm.EnergyModel):
    """Spins, categorical and real units that interact."""

    pull: jax.Array
    push: jax.Array

    @property
    def sites(self):
        levels, reals = self.push.shape
        return {
            "a": pgm.Spin(self.pull.shape[0]),
            "level": pgm.Categorical(levels, 2),
            "x": pgm.Real(reals),
        }

    def energy(self, a, level, x):
        return 2.0 * jnp.sum(x**2) - 4.0 * x @ (a @ self.pull + level.sum(0) @ self.push)


def test_every_family_is_tempered(rng_key):
    """The law of the discrete sites, x integrated by hand; and x given them."""
    model = ThreeFamilies(
        pull=jnp.asarray([[0.4, -0.3], [0.2, 0.5]]),
        push=jnp.asarray([[0.3, 0.0], [-0.2, 0.4], [0.0, -0.5]]),
    )
    base = pgm.Independent.like(model)
    kernel = pgm.ParallelTempering(model, [0.0, 0.4, 1.0], base, num_sweeps=3)
    mcmc = run(kernel, rng_key, num_chains=4000, num_warmup=15)
    draws = {k: np.asarray(v) for k, v in mcmc.get_samples().items()}
    assert draws["x"].dtype == np.float32
    grid = np.array(np.meshgrid([-1, 1], [-1, 1], [0, 1, 2], [0, 1, 2], indexing="ij"))
    grid = grid.reshape(4, -1).T
    a, level = grid[:, :2], grid[:, 2:]

    def field(a, level):
        return a @ np.asarray(model.pull) + np.asarray(model.push)[level].sum(1)

    score = np.exp(2.0 * (field(a, level) ** 2).sum(1))
    states, probabilities = {"a": a, "level": level}, score / score.sum()
    discrete = {k: draws[k] for k in states}
    assert frequencies_p_value(discrete, states, probabilities) > ALPHA
    assert frequencies_p_value(discrete, states, np.full(36, 1 / 36)) < ALPHA
    residual = 2.0 * (draws["x"] - field(draws["a"], draws["level"]))
    assert abs(residual.mean()) < 5 / np.sqrt(residual.size)
    assert abs(residual.var() - 1) < 5 * np.sqrt(2 / residual.size)


# ---- inside NumPyro ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_run():
    kernel = pgm.ParallelTempering(SMALL, betas=BETAS)
    options = {"num_chains": 2, "num_warmup": 20, "num_samples": 10, "extra_fields": FIELDS}
    return kernel, options, run(kernel, jax.random.key(5), **options)


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5)


def results(mcmc):
    return mcmc.get_samples(True), mcmc.get_extra_fields(True)


@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable:UserWarning")
@pytest.mark.parametrize("method", ["sequential", jax.vmap], ids=["sequential", "callable"])
def test_chain_methods_give_the_same_chains(small_run, method):
    kernel, options, vectorized = small_run
    mapped = run(kernel, jax.random.key(5), method=method, **options)
    assert_same(results(mapped), results(vectorized))


def test_one_chain_under_every_kind_of_key(small_run):
    kernel = small_run[0]
    typed = run(kernel, jax.random.key(3), num_warmup=5, num_samples=5)
    legacy = run(kernel, jax.random.PRNGKey(3), num_warmup=5, num_samples=5)
    assert_same(results(typed), results(legacy))
    assert typed.get_samples()["v"].shape == (5, 2)


def test_a_warm_restart_goes_on_where_the_run_stopped(small_run):
    kernel, _, _ = small_run
    whole = run(kernel, jax.random.key(2), num_chains=2, num_warmup=20, num_samples=8)
    mcmc = run(kernel, jax.random.key(2), num_chains=2, num_warmup=20, num_samples=4)
    first = mcmc.get_samples(True)
    betas = mcmc.last_state.betas
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(mcmc.post_warmup_state.rng_key)
    second = mcmc.get_samples(True)
    for name, draws in whole.get_samples(True).items():
        np.testing.assert_array_equal(draws, np.concatenate([first[name], second[name]], axis=1))
    np.testing.assert_array_equal(mcmc.last_state.betas, betas)
    assert mcmc.last_state.step.tolist() == [28, 28]


@pytest.mark.parametrize("num_chains", [1, 2])
def test_all_replicas_start_at_given_values(small_run, num_chains):
    lead = () if num_chains == 1 else (2,)
    given = {"v": np.broadcast_to([1, 0], (*lead, 2)), "h": np.broadcast_to([0, 1], (*lead, 2))}
    key = jax.random.split(jax.random.key(0)) if lead else jax.random.key(0)
    state = small_run[0].init(key, 0, given, (), {})
    for name, value in given.items():
        assert (state.replicas.values[name] == value[..., None, :]).all()
        assert (state.z[name] == value).all()
    energy = -SMALL.log_density({"v": [1, 0], "h": [0, 1]})
    np.testing.assert_allclose(state.potential_energy, np.broadcast_to(energy, lead))


def test_observed_sites_are_held_in_every_replica(small_run, rng_key):
    v = np.array([1, 1])
    fitted = small_run[0].init(rng_key, 0, None, (), {"v": v}).base
    given = pgm.condition(SMALL, v=v)
    states, probabilities, _ = law(given)
    mean = probabilities @ states["h"]
    np.testing.assert_allclose(
        jax.nn.sigmoid(fitted.parameters["h"]), (16 * mean + 0.5) / 17, atol=0.125
    )
    kernel = pgm.ParallelTempering(SMALL, BETAS, SMALL_BASE)
    mcmc = run(kernel, rng_key, num_chains=4000, num_warmup=10, v=v)
    draws = mcmc.get_samples()
    assert draws.keys() == {"h"}
    assert mcmc.last_state.replicas.values.keys() == {"h"}
    assert frequencies_p_value(draws, states, probabilities) > ALPHA
    flipped = {"h": 1 - np.asarray(draws["h"])}
    assert frequencies_p_value(flipped, states, probabilities) < ALPHA
    full = {"v": np.broadcast_to(v, (4000, 2)), "h": draws["h"]}
    np.testing.assert_allclose(
        mcmc.last_state.potential_energy, -SMALL.log_density(full), rtol=1e-5, atol=1e-5
    )


def test_clamped_units_stay_where_they_are(rng_key):
    clamped = pgm.condition(SMALL, v=np.array([1.0, np.nan]))
    state = pgm.ParallelTempering(clamped, BETAS).init(rng_key, 0, None, (), {})
    assert (state.replicas.values["v"][:, 0] == 1).all()
    assert state.base.parameters["v"][0] > 100  # pinned, not fitted
    assert abs(state.base.parameters["v"][1]) < 5
    kernel = pgm.ParallelTempering(clamped, BETAS, state.base)
    draws = run(kernel, rng_key, num_chains=4000, num_warmup=10).get_samples()
    draws = {k: np.asarray(v) for k, v in draws.items()}
    assert (draws["v"][:, 0] == 1).all()
    states, probabilities, _ = law(SMALL)
    keep = states["v"][:, 0] == 1
    probabilities = probabilities[keep] / probabilities[keep].sum()
    assert frequencies_p_value(draws, rows(states, keep), probabilities) > ALPHA


def test_compare_counts_the_sweeps_of_all_replicas(rng_key):
    kernel = pgm.ParallelTempering(SMALL, BETAS, num_sweeps=2)
    table = pgm.compare(rng_key, SMALL, {"tempering": kernel}, num_warmup=10, num_samples=40)
    row = table.summary.loc["tempering"]
    assert (row["evaluations"], row["evaluation"]) == (4 * 40 * 2 * 3, "sweep")
    assert "round_trips" in table.datatrees["tempering"].sample_stats


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "betas, message",
    [
        ([0.0, 0.5, 0.5, 1.0], r"increase strictly, got 0\.5 before 0\.5 at place 1"),
        ([1.0, 0.5, 0.0], r"increase strictly, got 1\.0 before 0\.5 at place 0"),
        ([0.0, np.nan, 1.0], "increase strictly, got 0.0 before nan"),
        ([0.0, 0.5, 0.9], r"from 0 \(the base\) to 1 \(the target\), got 0\.0 to 0\.9"),
        ([0.1, 1.0], r"from 0 \(the base\) to 1 \(the target\), got 0\.1 to 1\.0"),
        ([1.0], "at least two numbers"),
        (0.5, "at least two numbers"),
        ([[0.0, 1.0]], "at least two numbers"),
    ],
)
def test_ladders_that_are_none_are_refused(betas, message):
    with pytest.raises(ValueError, match=message):
        pgm.ParallelTempering(SMALL, betas)
    with pytest.raises(TypeError, match="betas must be a list of numbers"):
        check_betas("ladder")


@pgm.struct
class Quartic(pgm.EnergyModel):
    scale: jax.Array

    @property
    def sites(self):
        return {"x": pgm.Real(2)}

    def energy(self, x):
        return self.scale * jnp.sum(x**4)


def test_a_base_on_other_sites_and_models_without_a_gibbs_sweep_are_refused():
    other = pgm.Independent.like(pgm.RBM(weights=jnp.zeros((3, 2))))
    with pytest.raises(ValueError, match="base and target must have the same sites"):
        pgm.ParallelTempering(SMALL, base=other)
    with pytest.raises(ValueError, match="Quartic"):
        pgm.ParallelTempering(Quartic(scale=jnp.ones(())))
    with pytest.raises(ValueError, match="num_sweeps must be an integer of at least 1"):
        pgm.ParallelTempering(SMALL, num_sweeps=0)


@pytest.mark.usefixtures("annotations_unchecked")
def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="takes an energy model, got int"):
        pgm.ParallelTempering(3)
    with pytest.raises(TypeError, match="takes an energy model, got NoneType"):
        pgm.ParallelTempering(None)
    with pytest.raises(TypeError, match="takes an energy model as base, got list"):
        pgm.ParallelTempering(SMALL, base=[0.0])


@pytest.mark.parametrize(
    "given, message",
    [
        ({"v": np.zeros((3, 2), int)}, "ParallelTempering samples one configuration"),
        ({"v": np.array([0, 2])}, "'v'"),
        ({"y": np.zeros(2)}, "has no site 'y'"),
        ({"v": np.zeros(2, int), "h": np.zeros(2, int)}, "nothing is left to sample"),
    ],
    ids=["rows", "support", "unknown", "all"],
)
def test_wrong_observations_are_refused(small_run, rng_key, given, message):
    with pytest.raises(ValueError, match=message):
        run(small_run[0], rng_key, **given)


@pytest.mark.parametrize(
    "given, observed, message",
    [
        ({"v": np.zeros((2, 2), int)}, {}, "must have shape"),
        ({"y": np.zeros(2, int)}, {}, "has no site 'y'"),
        ({"v": np.zeros(2, int)}, {"v": np.zeros(2, int)}, "which is observed"),
    ],
    ids=["shape", "unknown", "observed"],
)
def test_wrong_starts_are_refused(small_run, rng_key, given, observed, message):
    with pytest.raises(ValueError, match=message):
        small_run[0].init(rng_key, 0, given, (), observed)
    with pytest.raises(TypeError, match="init_params is a dict"):
        small_run[0].init(rng_key, 0, [1, 0], (), {})
    with pytest.raises(TypeError, match="takes observed sites by name"):
        small_run[0].init(rng_key, 0, None, (np.zeros(2),), {})


def test_composites_are_refused(small_run):
    with pytest.raises(ValueError, match="cannot be used as a block of Gibbs"):
        Gibbs([(small_run[0], ["h"]), (pgm.BlockGibbs(SMALL), ["v"])])
