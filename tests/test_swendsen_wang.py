"""Swendsen-Wang: clusters, the exact transition matrix over all bonds, draws, refusals."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer import MCMC
from oracles import ALPHA, frequencies_p_value, invariance_error, law
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components as scipy_components
from zoo import machine, mixed, rbm

import pgm_energy as pgm
from pgm_energy.kernels import SwendsenWangKernel, swendsen_wang_kernel
from pgm_energy.kernels.swendsen_wang import connected_components
from pgm_energy.pairwise import pairs_of
from pgm_energy.testing import ConformanceError, check_kernel

RING = [(i, (i + 1) % 5) for i in range(5)]


def lattice(shape, coupling, field=0.0):
    return pgm.ising_lattice(shape, coupling, field, periodic=False)


def potts(num_units, num_states, strength, seed=0, gauge=0.3):
    """Agreement rewarded on all pairs, plus terms of one unit in the couplings, plus fields."""
    rng = np.random.default_rng(seed)
    couplings = np.zeros((num_units, num_units, num_states, num_states))
    for i, j in itertools.combinations(range(num_units), 2):
        own = gauge * rng.normal(size=(2, num_states))
        couplings[i, j] = strength * np.eye(num_states) + own[0][:, None] + own[1]
        couplings[j, i] = couplings[i, j].T
    return pgm.PottsMachine(
        couplings=np.asarray(couplings, np.float32),
        fields=0.5 * rng.normal(size=(num_units, num_states)),
    )


FIELD = 0.7 * np.random.default_rng(6).normal(size=(2, 3))
MODELS = {
    "no field": lattice((2, 3), 0.6),
    "field": lattice((2, 3), 0.6, FIELD),
    "antiferro ring": pgm.SparseBoltzmannMachine.from_edges(
        RING, [-0.8, -0.5, -0.9, -0.7, -0.6], [0.3, -0.2, 0.0, 0.5, 0.1], unit=pgm.Spin
    ),
    "binary graph": pgm.SparseBoltzmannMachine.from_edges(
        [*RING, (0, 2)], [1.5, -2.0, 0.7, 2.0, -1.0, 0.4], [-0.5, 0.2, 0.3, 0.0, -1.0]
    ),
    "glass": machine(4, unit=pgm.Spin),
    "binary machine": machine(4, num_hidden=2, scale=1.2),
    "potts 2": potts(3, 2, -0.9),
    "potts 3": potts(3, 3, 0.9),
    "mixed families": rbm("binary", "spin", sizes=(3, 2), scale=0.9),
    "conditioned": pgm.condition(machine(4, unit=pgm.Spin), v=np.array([1.0, *[np.nan] * 3])),
}


# ---- components ----------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.55, 1.0])
def test_components_are_those_of_scipy(share):
    rng = np.random.default_rng(int(100 * share))
    grid = pgm.ising_lattice((40, 40), 0.0).edges.array
    path = rng.permutation(1600)
    edges = {"torus": grid, "path": np.stack([path[:-1], path[1:]], axis=1)}
    edges["any"] = rng.integers(0, 1600, size=(1500, 2))
    for name, pairs in edges.items():
        bonds = rng.random(len(pairs)) < share
        labels = np.asarray(connected_components(pairs, jnp.asarray(bonds), 1600))
        kept = pairs[bonds]
        graph = coo_array((np.ones(len(kept)), (kept[:, 0], kept[:, 1])), shape=(1600, 1600))
        count, expected = scipy_components(graph, directed=False)
        first = np.full(count, 1600)
        np.minimum.at(first, expected, np.arange(1600))
        np.testing.assert_array_equal(labels, first[expected], err_msg=name)


def test_components_side_by_side_and_of_nothing():
    pairs = np.array([[0, 1], [1, 2], [3, 2]])
    bonds = jnp.array([[True, False, True], [True, True, True], [False, False, False]])
    labels = jax.vmap(lambda b: connected_components(pairs, b, 4))(bonds)
    assert labels.tolist() == [[0, 0, 2, 2], [0, 0, 0, 0], [0, 1, 2, 3]]
    nothing = connected_components(np.zeros((0, 2), int), jnp.zeros(0, bool), 3)
    assert nothing.tolist() == [0, 1, 2]


# ---- the exact transition matrix, summed over all bonds ------------------------------------------


def transition_matrix(kernel, model, states):
    """Sum over bonds of P(bonds | x) P(y | x, bonds), from the parts that the kernel samples by."""
    num_edges = len(kernel.pairs.edges)
    assert num_edges <= 10
    all_bonds = jnp.asarray(list(itertools.product([False, True], repeat=num_edges)), bool)
    count = kernel.pairs.num_states
    numbers = kernel.numbers(model)
    values = {name: jnp.asarray(x) for name, x in states.items()}

    def jump(old, new, bonds):
        prob = kernel.bond_prob(old, numbers)
        chance = jnp.prod(jnp.where(bonds, prob, 1.0 - prob))
        labels = kernel.labels(bonds)
        logits = jax.nn.log_softmax(kernel.shift_logits(old, labels, numbers), axis=-1)
        shift = (new - old) % count
        units = jnp.arange(len(labels))
        whole = jnp.all(shift == shift[labels])
        own = jnp.where(labels == units, logits[units, shift], 0.0)
        return jnp.where(whole, chance * jnp.exp(jnp.sum(own)), 0.0)

    @jax.jit
    def matrix(values):
        numbers_of = jax.vmap(kernel.pairs.states)(values)

        def row(old):
            inner = jax.vmap(lambda new: jax.vmap(lambda b: jump(old, new, b))(all_bonds).sum())
            return inner(numbers_of)

        return jax.lax.map(row, numbers_of)

    return np.asarray(matrix(values), float)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_exact_law_is_invariant_and_the_only_one(model):
    states, probabilities, _ = law(model)
    matrix = transition_matrix(swendsen_wang_kernel(model), model, states)
    row_error, error = invariance_error(matrix, probabilities)
    assert row_error < 1e-5
    assert error < 1e-5
    eigenvalues = np.sort(np.abs(np.linalg.eigvals(matrix)))
    assert eigenvalues[-2] < 1 - 1e-6


@pytest.mark.parametrize("name", ["field", "antiferro ring", "potts 3"])
def test_draws_follow_the_matrix(name, rng_key):
    """One sweep from one state, many times: bonds and shifts are drawn as the parts say."""
    model = MODELS[name]
    states, probabilities, _ = law(model)
    kernel = swendsen_wang_kernel(model)
    matrix = transition_matrix(kernel, model, states)
    start = int(np.argmax(probabilities))
    old = {k: jnp.asarray(x[start]) for k, x in states.items()}
    step = jax.jit(jax.vmap(lambda key: kernel(key, old, model)[0]))
    draws = step(jax.random.split(rng_key, 20_000))
    assert frequencies_p_value(draws, states, matrix[start]) > ALPHA
    assert frequencies_p_value(draws, states, np.roll(matrix[start], 1)) < ALPHA


@pytest.mark.parametrize("field", [0.0, 0.3], ids=["zero field", "field"])
def test_three_by_three_against_enumeration(field):
    model = pgm.ising_lattice((3, 3), 0.35, field)
    report = str(check_kernel(swendsen_wang_kernel(model), model, num_draws=40_000))
    assert "chi-square" in report


# ---- positive controls ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class NoField(SwendsenWangKernel):
    """Clusters flip by a fair coin, whatever their fields."""

    def shift_logits(self, states, labels, numbers, held=None):
        return jnp.zeros_like(numbers.fields)


@dataclasses.dataclass(frozen=True)
class HalfBonds(SwendsenWangKernel):
    """1 - exp(-J) where the strength of agreement is 2J."""

    def bond_prob(self, states, numbers):
        return super().bond_prob(states, numbers._replace(strengths=0.5 * numbers.strengths))


@dataclasses.dataclass(frozen=True)
class BondsEverywhere(SwendsenWangKernel):
    """Bonds on edges that are not satisfied, too."""

    def bond_prob(self, states, numbers):
        return -jnp.expm1(-jnp.abs(numbers.strengths))


@dataclasses.dataclass(frozen=True)
class Ferromagnet(SwendsenWangKernel):
    """The sign of the couplings is forgotten."""

    def bond_prob(self, states, numbers):
        return super().bond_prob(states, numbers._replace(strengths=jnp.abs(numbers.strengths)))


BROKEN = [
    (NoField, "field"),
    (HalfBonds, "no field"),
    (BondsEverywhere, "no field"),
    (Ferromagnet, "antiferro ring"),
]


@pytest.mark.parametrize("broken, name", BROKEN, ids=[b.__name__ for b, _ in BROKEN])
def test_wrong_clusters_are_caught(broken, name):
    model = MODELS[name]
    kernel = broken(pairs_of(model, "test"))
    states, probabilities, _ = law(model)
    matrix = transition_matrix(kernel, model, states)
    assert invariance_error(matrix, probabilities)[1] > 1e-3
    with pytest.raises(ConformanceError, match="chi-square"):
        check_kernel(kernel, model)


# ---- couplings and fields ------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_agreements_give_the_energy(model):
    pairs = pairs_of(model, "test")
    numbers = pairs.agreements(model)
    states, probabilities, _ = law(model)
    flat = np.asarray(jax.vmap(pairs.states)({k: jnp.asarray(x) for k, x in states.items()}))
    first, second = pairs.edges.array.T
    score = (flat[:, first] == flat[:, second]) @ np.asarray(numbers.strengths, float)
    score += np.take_along_axis(np.asarray(numbers.fields, float)[None], flat[..., None], 2).sum(
        axis=(1, 2)
    )
    keep = probabilities > 1e-30  # clamped units elsewhere have no probability
    offset = score[keep] - np.log(probabilities[keep])
    np.testing.assert_allclose(offset, offset[0], atol=2e-4)


def test_strengths_are_those_of_the_textbook():
    ising = MODELS["no field"]
    numbers = pairs_of(ising, "test").agreements(ising)
    np.testing.assert_allclose(numbers.strengths, 1.2, rtol=1e-6)  # 2 J
    three = MODELS["potts 3"]
    numbers = pairs_of(three, "test").agreements(three)
    np.testing.assert_allclose(numbers.strengths, 0.9, rtol=1e-5)


def test_a_derived_graph_is_the_one_that_is_told(monkeypatch):
    """Without ``pair_couplings`` edges and numbers come from a Hessian, and are the same."""
    model = MODELS["field"]
    told = pairs_of(model, "test")
    expected = told.agreements(model).fields
    monkeypatch.setattr(type(model), "pair_couplings", lambda self: None)
    derived = pairs_of(model, "test")
    assert told.told
    assert not derived.told
    assert {*map(tuple, told.edges.array.tolist())} == {*map(tuple, derived.edges.array.tolist())}
    np.testing.assert_allclose(derived.agreements(model).fields, expected, atol=1e-5)


def test_new_parameters_are_followed_and_bad_ones_reported(rng_key):
    """The structure is fixed at construction, the numbers come from the model of the call."""
    kernel = swendsen_wang_kernel(potts(3, 3, 0.2))
    check_kernel(kernel, MODELS["potts 3"])
    start = {"v": jnp.zeros(3, jnp.int32)}
    _, info = kernel(rng_key, start, potts(3, 3, 0.5))
    assert np.isfinite(info.energy)
    _, info = kernel(rng_key, start, potts(3, 3, -0.5))
    assert np.isnan(info.energy)
    with pytest.raises(ValueError, match="this kernel was made for PottsMachine"):
        kernel(rng_key, start, MODELS["glass"])


def test_a_large_lattice_is_never_made_dense():
    model = pgm.ising_lattice((100, 100), 0.44)
    values, info = jax.jit(swendsen_wang_kernel(model))(
        jax.random.key(0), {"v": jnp.ones((100, 100), jnp.int8)}, model
    )
    # from all up, bonds are independent with p = 1 - exp(-2K): above the threshold of 1/2
    assert 0.0 < float(info.num_clusters) < 2_500
    assert 0.0 <= float(info.flip_rate["v"]) <= 1.0
    np.testing.assert_allclose(info.energy, -model.log_density(values), rtol=1e-4)


# ---- as a NumPyro kernel -------------------------------------------------------------------------


def run(kernel, rng_key, *, num_chains=1, num_warmup=0, num_samples=1, **options):
    method = options.pop("chain_method", "vectorized")
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method=method,
        progress_bar=False,
    )
    mcmc.run(rng_key, **options)
    return mcmc


def test_the_adapter_leaves_the_law_invariant():
    check_kernel(pgm.SwendsenWang(MODELS["potts 3"], num_sweeps=2), MODELS["potts 3"])


def test_chain_methods_give_the_same_chains(rng_key):
    model = MODELS["binary machine"]
    options = {"num_chains": 2, "num_warmup": 2, "num_samples": 10}
    fields = ("num_clusters", "flip_rate")
    first, second = (
        run(pgm.SwendsenWang(model), rng_key, chain_method=m, extra_fields=fields, **options)
        for m in ("vectorized", "sequential")
    )
    samples = first.get_samples(True)
    for name, value in second.get_samples(True).items():
        np.testing.assert_array_equal(value, samples[name])
    stats = first.get_extra_fields(True)
    np.testing.assert_allclose(stats["potential_energy"], -model.log_density(samples), atol=1e-5)
    for name, units in samples.items():
        moved = (np.asarray(units)[:, 1:] != np.asarray(units)[:, :-1]).mean(axis=-1)
        np.testing.assert_allclose(stats["flip_rate"][name][:, 1:], moved, rtol=1e-6)
    assert ((stats["num_clusters"] >= 1) & (stats["num_clusters"] <= 4)).all()


def test_observed_sites_hold_their_clusters(rng_key):
    model = MODELS["binary machine"]
    held = np.array([1, 0])
    start = {"h": np.tile([0, 1], (3000, 1))}
    draws = run(
        pgm.SwendsenWang(model), rng_key, num_chains=3000, num_warmup=40, init_params=start, v=held
    ).get_samples()
    assert draws.keys() == {"h"}
    states, probabilities, _ = law(model)
    keep = (states["v"] == held).all(axis=1)
    given = probabilities[keep] / probabilities[keep].sum()
    assert frequencies_p_value(draws, {"h": states["h"][keep]}, given) > ALPHA
    wrong = given[::-1]
    assert frequencies_p_value(draws, {"h": states["h"][keep]}, wrong) < ALPHA


def test_it_joins_compare_and_beats_single_units_on_a_magnet(rng_key):
    model = pgm.ising_lattice((4, 4), 0.6)
    samplers = {"clusters": pgm.SwendsenWang(model), "block Gibbs": pgm.BlockGibbs(model)}
    # so many chains that block Gibbs, which stays in a mode, cannot have all of them in one
    table = pgm.compare(rng_key, model, samplers, num_warmup=50, num_samples=500, num_chains=20)
    assert (table.summary["evaluation"] == "sweep").all()
    ess = table.summary["ess_min"]
    assert ess["clusters"] > 5 * ess["block Gibbs"]
    mean = table.datatrees["clusters"]["posterior"]["v"].values.mean(axis=(0, 1))
    assert np.abs(mean).max() < 0.2


# ---- messages ------------------------------------------------------------------------------------


@pgm.struct
class Triple(pgm.EnergyModel):
    weight: jax.Array

    @property
    def sites(self):
        return {"s": pgm.Spin(3)}

    def energy(self, s):
        return -self.weight * s[0] * s[1] * s[2]


@pgm.struct
class Liar(pgm.EnergyModel):
    weights: jax.Array

    @property
    def sites(self):
        return {"s": pgm.Spin(3)}

    def pair_couplings(self):
        return np.array([[0, 1]]), self.weights[:1]

    def energy(self, s):
        return -self.weights[0] * s[0] * s[1] - self.weights[1] * s[1] * s[2]


def crossed():
    """Three states that like to differ by one: no agreement."""
    couplings = np.zeros((2, 2, 3, 3), np.float32)
    couplings[0, 1] = np.roll(np.eye(3), 1, axis=0)
    couplings[1, 0] = couplings[0, 1].T
    return pgm.PottsMachine(couplings=couplings)


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(
    "model, error, message",
    [
        ("ising", TypeError, "SwendsenWang takes an energy model, got str"),
        (mixed(), ValueError, "needs discrete sites, site 'x' is real: condition on it"),
        (
            rbm("categorical", "spin"),
            ValueError,
            "same number of states, at least 2, got 3 at 'v', 2 at 'h'",
        ),
        (Triple(weight=0.5), ValueError, "energy of Triple is not pairwise.* more than two units"),
        (Liar(weights=np.ones(2)), ValueError, "its pair_couplings do not give its energy"),
        (
            potts(3, 3, -0.4),
            ValueError,
            r"attract each other, the coupling of v\[0\] and v\[1\] is -0.4 \(and 2 more",
        ),
        (crossed(), ValueError, r"only tell whether two units agree.* of\s+PottsMachine differ"),
        (
            pgm.temper(*[pgm.ising_lattice((50, 50), k) for k in (0.1, 0.4)], 0.5),
            ValueError,
            "2500 encoded entries.*give the model a method pair_couplings",
        ),
    ],
    ids=["word", "real", "states", "triple", "liar", "repelling", "crossed", "large"],
)
def test_models_without_clusters_are_refused(model, error, message):
    with pytest.raises(error, match=message):
        pgm.SwendsenWang(model)


def test_traced_parameters_are_refused():
    with pytest.raises(ValueError, match="concrete parameters: make it outside of jit"):
        jax.jit(lambda model: pgm.SwendsenWang(model).num_sweeps)(MODELS["glass"])


def test_other_arguments():
    with pytest.raises(ValueError, match="num_sweeps must be an integer of at least 1"):
        pgm.SwendsenWang(MODELS["glass"], num_sweeps=0)
    assert repr(pgm.SwendsenWang(MODELS["glass"])).endswith("num_sweeps=1)")
