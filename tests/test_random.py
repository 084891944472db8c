"""The random numbers of the samplers: bits, their quality and independence, and rare events."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import ALPHA
from scipy import special, stats

from pgm_energy import _random

SHAPES = [(), (1,), (0,), (7,), (3, 4, 5)]


def assert_same(found, expected):
    assert found.dtype == expected.dtype
    if jnp.issubdtype(found.dtype, jax.dtypes.prng_key):
        assert jax.random.key_impl(found) == jax.random.key_impl(expected)
        found, expected = jax.random.key_data(found), jax.random.key_data(expected)
    np.testing.assert_array_equal(found, expected)


def make_key(kind, seed):
    return jax.random.PRNGKey(seed) if kind == "legacy" else jax.random.key(seed, impl=kind)


# ---- the same bits as jax.random -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["threefry2x32", "legacy", "rbg", "unsafe_rbg"])
def test_bits_and_keys_equal_those_of_jax(kind):
    for seed in (0, 2**31 - 1):
        key = make_key(kind, seed)
        for shape in SHAPES:
            assert_same(_random.bits(key, shape), jax.random.bits(key, shape, jnp.uint32))
        for num in (1, 2, 5):
            assert_same(_random.split(key, num), jax.random.split(key, num))
    assert_same(
        jax.jit(_random.bits, static_argnums=1)(key, (3, 5)),
        jax.random.bits(key, (3, 5), jnp.uint32),
    )
    assert _random.uniform(key, (3,)).shape == (3,)


@pytest.mark.x64
@pytest.mark.parametrize("kind", ["threefry2x32", "rbg"])
def test_bits_have_32_bits_in_double_precision(kind):
    key = make_key(kind, 1)
    assert_same(_random.bits(key, (4,)), jax.random.bits(key, (4,), jnp.uint32))
    assert_same(_random.split(key, 4), jax.random.split(key, 4))


@pytest.mark.parametrize("kind", ["threefry2x32", "legacy"])
def test_bits_equal_those_of_jax_under_transformations(kind):
    keys = jax.random.split(make_key(kind, 3), 6)
    mine = functools.partial(_random.bits, shape=(2, 3))
    library = functools.partial(jax.random.bits, shape=(2, 3), dtype=jnp.uint32)
    assert_same(jax.jit(jax.vmap(mine))(keys), jax.vmap(library)(keys))
    split = functools.partial(_random.split, num=3)
    assert_same(jax.jit(jax.vmap(split))(keys), jax.vmap(lambda k: jax.random.split(k, 3))(keys))
    nested = keys.reshape(2, 3, *keys.shape[1:])
    assert_same(jax.vmap(jax.vmap(mine))(nested), jax.vmap(jax.vmap(library))(nested))

    def scanned(split, bits):
        def step(key, _):
            new, use = split(key, 2)
            return new, bits(use)

        return jax.jit(lambda key: jax.lax.scan(step, key, length=4))(keys[0])

    for found, expected in zip(
        scanned(_random.split, mine), scanned(jax.random.split, library), strict=True
    ):
        assert_same(found, expected)


def test_neighbouring_words_differ(rng_key):  # what the equalities above would not see in both
    assert len(np.unique(_random.bits(rng_key, (16, 16)))) == 256
    assert len(np.unique(jax.random.key_data(_random.split(rng_key, 128)))) == 256


@pytest.mark.parametrize("function", ["bits", "split"])
def test_accelerators_take_the_generator_of_the_library(rng_key, function):
    def lowered(function, platform):
        traced = jax.jit(function).trace(rng_key)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    def mine(key):
        return (
            getattr(_random, function)(key, 5) if function == "split" else _random.bits(key, (5,))
        )

    def library(key):
        if function == "split":
            return jax.random.split(key, 5)
        return jax.random.bits(key, (5,), jnp.uint32)

    # the library's is a function of its own in the module, written out it is not
    call = "call @threefry2x32"
    for platform in ("cuda", "tpu"):
        text = lowered(mine, platform)
        assert text.count(call) == lowered(library, platform).count(call) == 1
        assert text.count("stablehlo.xor") == lowered(library, platform).count("stablehlo.xor")
    assert call not in lowered(mine, "cpu")
    assert lowered(mine, "cpu").count("stablehlo.xor") >= 20


def test_a_decision_compiles_without_a_loop(rng_key):
    logits = jnp.linspace(-2.0, 2.0, 1000)

    def compiled(uniform):
        decide = jax.jit(lambda key, logits: _random.decide(uniform(key, (1000,)), logits))
        return decide.lower(rng_key, logits).compile().as_text()

    assert "while" not in compiled(_random.uniform)
    assert "while" in compiled(jax.random.uniform)  # positive control: why it is written out


# ---- Threefry by its paper: the yardstick, and with fewer rounds a bad generator -----------------


def threefry(key, counter, rounds=20):
    """Threefry-2x32 in NumPy, as published; ``key`` and ``counter`` two words each, any shape."""
    first, second = (np.asarray(word, np.uint32) for word in key)
    schedule = (first, second, first ^ second ^ np.uint32(0x1BD11BDA))
    x, y = np.broadcast_arrays(*(np.asarray(word, np.uint32) for word in counter))
    x, y = x + schedule[0], y + schedule[1]
    for done in range(rounds):
        rotation = np.uint32((13, 15, 26, 6, 17, 29, 16, 24)[done % 8])
        x = x + y
        y = ((y << rotation) | (y >> (np.uint32(32) - rotation))) ^ x
        if done % 4 == 3:
            turn = done // 4 + 1
            x = x + schedule[turn % 3]
            y = y + schedule[(turn + 1) % 3] + np.uint32(turn)
    return x, y


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_blocks_are_threefry_as_published():
    top = 0xFFFFFFFF
    for key, counter, answer in [  # known answers of the Random123 library
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((top, top), (top, top), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ]:
        assert tuple(map(int, threefry(key, counter))) == answer
    numbers = np.array([0, 1, 2, 12345, top], np.uint32)
    for words in [(0, 0), (7, top), (0x13198A2E, 0x03707344)]:
        key = jax.random.wrap_key_data(jnp.asarray(words, jnp.uint32))
        found = _random._blocks(key, jnp.asarray(numbers))
        for mine, published in zip(found, threefry(words, (0, numbers)), strict=True):
            np.testing.assert_array_equal(mine, published)


# ---- tests of NIST SP 800-22 revision 1a, section 2: bits in, p-values out -----------------------


def monobit(bits):
    total = 2 * int(bits.sum()) - len(bits)
    return special.erfc(abs(total) / math.sqrt(2 * len(bits)))


def block_frequency(bits, size=128):
    blocks = bits[: len(bits) // size * size].reshape(-1, size)
    statistic = 4 * size * ((blocks.mean(1) - 0.5) ** 2).sum()
    return special.gammaincc(len(blocks) / 2, statistic / 2)


def runs(bits):
    n, share = len(bits), bits.mean()
    if share in (0, 1):
        return 0.0
    count = 1 + np.count_nonzero(bits[1:] != bits[:-1])
    expected = 2 * n * share * (1 - share)
    return special.erfc(abs(count - expected) / (2 * math.sqrt(2 * n) * share * (1 - share)))


def longest_run(bits, size=128, low=4, high=9):
    blocks = bits[: len(bits) // size * size].reshape(-1, size)
    longest, current = np.zeros(len(blocks), int), np.zeros(len(blocks), int)
    for column in blocks.T:
        current = (current + 1) * column
        longest = np.maximum(longest, current)
    # number of strings of n bits without a run longer than m, by the end of their first run
    below = []
    for m in range(low, high):
        strings = [2**n for n in range(m + 1)]
        for _ in range(size - m):
            strings.append(sum(strings[-m - 1 :]))
        below.append(strings[size] / 2**size)
    law = np.diff([0.0, *below, 1.0])
    found = np.bincount(np.clip(longest, low, high) - low, minlength=len(law))
    return stats.chisquare(found, law * len(blocks)).pvalue


def serial(bits, size=4):
    def psi(m):
        if m == 0:
            return 0.0
        cyclic = np.concatenate([bits, bits[: m - 1]]).astype(np.int64)
        words = sum(cyclic[i : i + len(bits)] << i for i in range(m))
        return 2**m / len(bits) * (np.bincount(words, minlength=2**m) ** 2.0).sum() - len(bits)

    first, second, third = psi(size), psi(size - 1), psi(size - 2)
    return np.array(
        [
            special.gammaincc(2 ** (size - 2), (first - second) / 2),
            special.gammaincc(2 ** (size - 3), (first - 2 * second + third) / 2),
        ]
    )


def cumulative_sums(bits):
    n, cdf = len(bits), stats.norm.cdf
    z = np.abs(np.cumsum(2 * bits.astype(np.int64) - 1)).max()
    inner = np.arange((-n // z + 1) // 4, (n // z - 1) // 4 + 1)
    outer = np.arange((-n // z - 3) // 4, (n // z - 1) // 4 + 1)
    scale = z / math.sqrt(n)
    p = 1 - (cdf((4 * inner + 1) * scale) - cdf((4 * inner - 1) * scale)).sum()
    return p + (cdf((4 * outer + 3) * scale) - cdf((4 * outer + 1) * scale)).sum()


BATTERY = [monobit, block_frequency, runs, longest_run, serial, cumulative_sums]


def test_battery_gives_the_p_values_of_the_standard():
    """Its worked examples: 100 binary digits of pi, and the strings of sections 2.4 and 2.11."""

    def digits(text):
        return np.array([int(c) for c in text], np.uint8)

    pi = digits(
        "11001001000011111101101010100010001000010110100011"
        "00001000110100110001001100011001100010100010111000"
    )
    ones = digits(
        "1100110000010101011011000100110011100000000000100100110101010001"
        "0001001111010110100000001101011111001100111001101101100010110010"
    )
    for found, published in [
        (monobit(pi), 0.109599),
        (block_frequency(pi, 10), 0.706438),
        (runs(pi), 0.500798),
        (cumulative_sums(pi), 0.219194),
        (cumulative_sums(pi[::-1]), 0.114866),
        (serial(digits("0011011101"), 3), (0.808792, 0.670320)),
    ]:
        np.testing.assert_allclose(found, published, atol=2e-6)
    # published with probabilities of four digits
    np.testing.assert_allclose(longest_run(ones, 8, 1, 4), 0.180609, atol=1e-4)


# ---- independence --------------------------------------------------------------------------------


def joint_symbols(first, second):
    """Chi-square of the top four bits of two words, as one symbol of 256."""
    symbols = (first >> np.uint32(28)) << np.uint32(4) | second >> np.uint32(28)
    return stats.chisquare(np.bincount(symbols.ravel(), minlength=256)).pvalue


def common_bits(first, second):
    """Chi-square of the number of bits in which two words differ."""
    counts = np.bincount(np.bitwise_count(first ^ second).ravel(), minlength=33)
    expected = stats.binom(32, 0.5).pmf(np.arange(33)) * counts.sum()
    inner = expected > 5
    pooled = [np.append(x[inner], x[~inner].sum()) for x in (counts, expected)]
    if pooled[1][-1] < 5:  # the poorest cells, all in one
        order = np.argsort(pooled[1])
        pooled = [np.append(x[order[4:]], x[order[:4]].sum()) for x in pooled]
    return stats.chisquare(*pooled).pvalue


def correlations(rows):
    """The largest correlation between any two rows, its p-value for all pairs at once."""
    r = np.corrcoef(rows.astype(float))[np.triu_indices(len(rows), 1)]
    z = np.abs(np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))).max() * math.sqrt(rows.shape[1] - 3)
    return min(1.0, 2 * stats.norm.sf(z) * len(r))


def collisions(words):
    """Whether words come twice more often than among independent ones (Knuth), at any distance."""
    repeated = words.size - len(np.unique(words))
    return stats.poisson.sf(repeated - 1, words.size**2 / 2**33)


def failures(words):
    """Names of the tests that ``words[sweep, chain, site]`` fail, with their axis."""
    failed = set() if collisions(words) > ALPHA else {"collisions"}
    for axis, name in enumerate(("sweeps", "chains", "sites")):
        if words.shape[axis] == 1:
            continue
        last = np.ascontiguousarray(np.moveaxis(words, axis, -1))
        stream = np.unpackbits(last.astype(">u4").view(np.uint8))
        decisions = (last >> np.uint32(31)).astype(np.uint8).ravel()  # at probability 1/2
        p_values = {}
        for test in BATTERY:
            p_values[test.__name__] = np.min([test(stream), test(decisions)])
        first, second = last[..., :-1], last[..., 1:]
        p_values["joint_symbols"] = joint_symbols(first, second)
        p_values["common_bits"] = common_bits(first, second)
        if words.shape[axis] <= 64:
            rows = np.moveaxis(words, axis, 0).reshape(words.shape[axis], -1)
            p_values["correlations"] = correlations(rows)
        failed |= {f"{test} of {name}" for test, p in p_values.items() if not p > ALPHA}
    return failed


def draw(rng_key, shape):
    """Words as the samplers take them: keys split by chain, then by sweep, sites in one call."""
    num_sweeps, num_chains, num_sites = shape

    def sweep(key, _):
        new, own = _random.split(key, 2)
        (block,) = _random.split(own, 1)
        return new, _random.bits(block, (num_sites,))

    def chain(key):
        return jax.lax.scan(sweep, key, length=num_sweeps)[1]

    return np.asarray(jax.jit(jax.vmap(chain, out_axes=1))(_random.split(rng_key, num_chains)))


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 2**16), (1, 2**16, 1), (2**15, 1, 1), (32, 32, 64)],
    ids=["along sites", "along chains", "along sweeps", "all three"],
)
def test_words_pass_the_battery(rng_key, shape):
    assert failures(draw(rng_key, shape)) == set()


CONTROL_SHAPE = (16, 32, 128)


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("rounds", [2, 20])
def test_battery_rejects_threefry_of_two_rounds(rounds):
    num_sweeps, num_chains, num_sites = CONTROL_SHAPE
    keys = threefry((1, 2), (0, np.arange(num_chains)), rounds)
    words = []
    for _ in range(num_sweeps):
        keys, own = (threefry(keys, (0, np.uint32(number)), rounds) for number in (0, 1))
        x, y = threefry([word[:, None] for word in own], (0, np.arange(num_sites)), rounds)
        words.append(x ^ y)
    failed = failures(np.stack(words))
    if rounds == 20:
        assert failed == set()
    else:
        assert {"serial of sites", "joint_symbols of sites", "common_bits of sites"} <= failed


def test_battery_rejects_a_key_used_for_all_chains(rng_key):
    words = draw(rng_key, CONTROL_SHAPE)
    failed = failures(np.broadcast_to(words[:, :1], words.shape))
    expected = {"joint_symbols of chains", "common_bits of chains", "correlations of chains"}
    assert {"collisions", "serial of chains", *expected} <= failed


def test_battery_rejects_a_key_used_in_two_sweeps(rng_key):
    words = draw(rng_key, CONTROL_SHAPE).copy()
    words[9] = words[3]
    assert {"collisions", "correlations of sweeps"} <= failures(words)


def test_battery_rejects_counters_that_overlap_between_sites(rng_key):
    """The number of the sweep added to that of the site, under one key."""
    num_sweeps, num_chains, num_sites = CONTROL_SHAPE
    stream = draw(rng_key, (1, num_chains, num_sweeps + num_sites))[0]
    words = np.stack([stream[:, sweep : sweep + num_sites] for sweep in range(num_sweeps)])
    assert "collisions" in failures(words)


def test_battery_rejects_the_low_bits_of_a_linear_congruential_generator():
    state, low = 1, np.empty(4 * math.prod(CONTROL_SHAPE), np.uint8)
    for i in range(len(low)):
        state = (1664525 * state + 1013904223) % 2**32
        low[i] = state & 255
    failed = failures(low.view(np.uint32).reshape(CONTROL_SHAPE))
    assert {"collisions", "runs of sites", "serial of sites", "joint_symbols of sites"} <= failed


# ---- laws ----------------------------------------------------------------------------------------

LAWS = {
    "uniform": (_random.uniform, stats.uniform),
    "gumbel": (_random.gumbel, stats.gumbel_r),
    "normal": (_random.normal, stats.norm),
}


def kolmogorov_smirnov(draws, law):
    return stats.kstest(np.asarray(draws, float), law.cdf, method="asymp").pvalue


def check_law(rng_key, name):
    function, law = LAWS[name]
    draws = np.asarray(function(rng_key, (1000, 1000))).ravel()
    assert np.isfinite(draws).all()
    assert kolmogorov_smirnov(draws, law()) > ALPHA
    assert kolmogorov_smirnov(1.02 * draws, law()) < ALPHA  # positive control
    return draws.dtype


@pytest.mark.parametrize("name", LAWS)
def test_law(rng_key, name):
    assert check_law(rng_key, name) == np.float32


@pytest.mark.x64
@pytest.mark.parametrize("name", LAWS)
def test_law_in_double_precision(rng_key, name):
    assert check_law(rng_key, name) == np.float64


def from_numbers(monkeypatch, function, numbers):
    """Evaluate a function of a key with chosen words: ``numbers`` of the 2^31 that it can tell."""
    with monkeypatch.context() as patch:
        words = jnp.asarray(np.asarray(numbers, np.int64) * 2, jnp.uint32)
        patch.setattr(_random, "bits", lambda key, shape: words)
        return np.asarray(function(jax.random.key(0), np.shape(numbers)))


def share(holds, count, size):
    """For ``size`` conditions that hold up to some number and not after: exact probability."""
    low, high = np.zeros(size, np.int64), np.full(size, count, np.int64)
    while (low < high).any():  # the first number at which it does not hold
        middle = np.minimum((low + high) // 2, count - 1)
        holding = holds(middle) & (low < high)
        low, high = np.where(holding, middle + 1, low), np.where(holding, high, middle)
        high = np.maximum(high, low)
    return low / count


GRID = 2**31


def test_all_numbers_lie_strictly_inside(monkeypatch):
    numbers = np.array([0, 1, 2, GRID // 2 - 1, GRID // 2, GRID - 65, GRID - 64, GRID - 1])
    uniform = from_numbers(monkeypatch, _random.uniform, numbers)
    assert uniform[0] == 2.0**-32
    assert uniform[-1] == np.float32(1 - 2.0**-24)
    assert (np.diff(uniform) >= 0).all()
    gumbel = from_numbers(monkeypatch, _random.gumbel, numbers)
    assert np.isfinite(gumbel).all()
    np.testing.assert_allclose(np.abs(gumbel).max(), 32 * math.log(2), rtol=1e-6)
    normal = from_numbers(monkeypatch, _random.normal, numbers)
    assert np.isfinite(normal).all()
    assert normal[0] < -5.25
    assert normal[-1] > 5.25


def test_tails_of_gumbel_noise_have_their_probability(monkeypatch):
    x = np.linspace(-2.5, 21.0, 200).astype(np.float32)
    found = share(lambda k: from_numbers(monkeypatch, _random.gumbel, k) > x, GRID, len(x))
    np.testing.assert_allclose(found, stats.gumbel_r.sf(x.astype(float)), rtol=4e-6, atol=2.0**-31)


def test_tails_of_normal_noise_have_their_probability(monkeypatch):
    x = np.linspace(-5.0, 5.0, 101).astype(np.float32)
    found = share(lambda k: from_numbers(monkeypatch, _random.normal, k) < x, GRID, len(x))
    np.testing.assert_allclose(found, stats.norm.cdf(x.astype(float)), rtol=4e-6, atol=2.0**-23)


def rate(monkeypatch, logits):
    """Probability of the smaller outcome, by counting all numbers that lead to it."""
    rare = -np.abs(logits)

    def happens(numbers):
        uniform = jnp.asarray(from_numbers(monkeypatch, _random.uniform, numbers))
        return np.asarray(_random.decide(uniform, jnp.asarray(rare)))

    return share(happens, GRID, len(logits))


def test_decisions_come_at_their_rate_down_to_one_number_of_two_to_31(monkeypatch):
    logits = np.linspace(-21.0, 0.0, 300).astype(np.float32)
    exact = special.expit(logits.astype(float))
    found = rate(monkeypatch, logits)
    np.testing.assert_allclose(found, exact, rtol=4e-7, atol=2.0**-31)
    at = np.argmin(np.abs(exact - 1e-7))
    assert abs(found[at] / exact[at] - 1) < 0.005

    def naive(numbers):  # positive control: the share of the common outcome, counted from above
        uniform = from_numbers(monkeypatch, _random.uniform, numbers)
        return uniform < np.asarray(jax.nn.sigmoid(-logits))

    assert abs((1 - share(naive, GRID, len(logits)))[at] / exact[at] - 1) > 0.05


def check_symmetry(dtype, uniform):
    logits = np.array([1e-30, 1e-3, 0.5, 1.0, 7.0, 16.0, 22.0, 100.0, 1000.0, np.inf], dtype)
    up = np.asarray(_random.decide(jnp.asarray(uniform)[:, None], jnp.asarray(logits)))
    down = np.asarray(_random.decide(jnp.asarray(uniform)[:, None], jnp.asarray(-logits)))
    assert (up != down).all()
    assert up[:, -3:].all()
    assert not down[:, -3:].any()
    assert not up[:, :-3].all()


def test_decisions_are_symmetric_and_certain_ones_never_flip(monkeypatch):
    numbers = np.concatenate(
        [np.arange(1000), GRID // 2 + np.arange(-500, 500), GRID - 1 - np.arange(1000)]
    )
    check_symmetry(np.float32, from_numbers(monkeypatch, _random.uniform, numbers))


def test_a_decision_at_zero_is_a_fair_coin(monkeypatch):
    np.testing.assert_allclose(rate(monkeypatch, np.zeros(1, np.float32)), 0.5, atol=2.0**-25)


def doubles(monkeypatch, numbers):
    """The same from multiples of 2^-52, which is what the library's uniform doubles are."""
    with monkeypatch.context() as patch:
        multiples = jnp.asarray(np.asarray(numbers, np.float64) * 2.0**-52)
        patch.setattr(jax.random, "uniform", lambda *args: multiples)
        return _random.uniform(jax.random.key(0), np.shape(numbers))


@pytest.mark.x64
def test_decisions_in_double_precision(rng_key, monkeypatch):
    multiples = np.asarray(jax.random.uniform(rng_key, (1000,), jnp.float64)) * 2.0**52
    assert (multiples == np.floor(multiples)).all()
    top = 2**52
    ends = np.asarray(doubles(monkeypatch, np.array([0, top - 1])))
    assert ends.dtype == np.float64
    assert 0 < ends[0] < ends[1] < 1
    check_symmetry(np.float64, doubles(monkeypatch, np.arange(1000)))
    logits = np.linspace(-35.0, 0.0, 100)

    def happens(numbers):
        return np.asarray(_random.decide(doubles(monkeypatch, numbers), jnp.asarray(logits)))

    found = share(happens, top, len(logits))
    np.testing.assert_allclose(found, special.expit(logits), rtol=1e-14, atol=2.0**-52)
