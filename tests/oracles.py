"""Brute force in NumPy, independent of the library: what every derivation is held against.

Only ``model.sites`` (shapes and families) and ``model.energy`` are taken from the library: the
energy is the definition of a model, everything else here is written out again.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats
from scipy.special import logsumexp

import pgm_energy as pgm

#: Error rate of every statistical assertion.
ALPHA = 1e-6


def unit_states(site):
    """Raw values of one unit."""
    if isinstance(site, pgm.Binary):
        return np.array([0, 1])
    if isinstance(site, pgm.Spin):
        return np.array([-1, 1])
    if isinstance(site, pgm.Categorical):
        return np.arange(site.num_states)
    raise AssertionError(f"{site} has no states")


def count(site):
    return int(np.prod(site.shape))


def encode(site, values):
    """T(x) of raw values, in float64."""
    values = np.asarray(values)
    if isinstance(site, pgm.Categorical):
        return (values[..., None] == np.arange(site.num_states)).astype(float)
    return values.astype(float)


def all_states(model):
    """Every joint state of the discrete sites: raw values by site, one row per state."""
    sites = {k: s for k, s in model.sites.items() if not isinstance(s, pgm.Real)}
    columns = [unit_states(site) for site in sites.values() for _ in range(count(site))]
    table = np.array(list(itertools.product(*columns))).reshape(-1, len(columns))
    values, start = {}, 0
    for name, site in sites.items():
        part = table[:, start : start + count(site)]
        values[name] = part.reshape(len(table), *site.shape).astype(np.asarray(site.dtype(0)).dtype)
        start += count(site)
    return values


def energies(model, values):
    """E of rows of raw values, by ``model.energy`` alone."""
    encoded = {k: jnp.asarray(encode(s, values[k])) for k, s in model.sites.items()}
    return np.asarray(jax.jit(jax.vmap(lambda e: model.energy(**e)))(encoded), float)


def law(model, values=None):
    """States, their probabilities and log Z of a model without real sites."""
    values = all_states(model) if values is None else values
    energy = energies(model, values)
    log_z = logsumexp(-energy)
    return values, np.exp(-energy - log_z), float(log_z)


def rows(values, chosen):
    return {name: np.asarray(value)[chosen] for name, value in values.items()}


def transition_matrix(kernel, model, values):
    """P[i, j] of one sweep, by the sampling code's own log-probabilities."""
    values = {k: jnp.asarray(v) for k, v in values.items()}

    @jax.jit
    def matrix(model):
        def row(old):
            return jax.vmap(lambda new: kernel.transition_log_prob(old, new, model))(values)

        return jax.vmap(row)(values)

    return np.exp(np.asarray(matrix(model), float))


def invariance_error(matrix, probabilities):
    """Largest error of the rows' sums, and total variation between pi P and pi."""
    rows_error = np.abs(matrix.sum(axis=1) - 1).max()
    return rows_error, 0.5 * np.abs(probabilities @ matrix - probabilities).sum()


def assert_invariant(model, schedule=None, tolerance=1e-6):
    """The sweep leaves the exact law alone, and is a sampler at all (rows add up, it moves)."""
    schedule = pgm.blocks(model) if schedule is None else schedule
    values, probabilities, _ = law(model)
    matrix = transition_matrix(pgm.gibbs_kernel(schedule), model, values)
    row_error, error = invariance_error(matrix, probabilities)
    assert row_error < tolerance, (
        f"rows of the transition matrix are off by {row_error}\n{schedule}"
    )
    assert error < tolerance, f"total variation after one sweep {error}\n{schedule}"
    # the law is the only one left invariant: a kernel that stands still would pass otherwise
    eigenvalues = np.sort(np.abs(np.linalg.eigvals(matrix)))
    assert len(matrix) == 1 or eigenvalues[-2] < 1 - 1e-6, f"the sweep is reducible\n{schedule}"
    return matrix


def frequencies_p_value(samples, states, probabilities):
    """Pearson chi-square of joint samples against an exact law, small cells pooled.

    ``samples`` and ``states`` are dicts of raw values by site, one row each.
    """
    names = list(states)
    table = {
        tuple(np.concatenate([np.ravel(states[n][i]) for n in names]).tolist()): i
        for i in range(len(probabilities))
    }
    num = len(samples[names[0]])
    flat = np.concatenate([np.asarray(samples[n]).reshape(num, -1) for n in names], axis=1)
    observed = np.zeros(len(probabilities))
    for row in flat.tolist():
        observed[table[tuple(row)]] += 1
    return pooled_p_value(observed, num * probabilities)


def pooled_p_value(observed, expected, least=10.0):
    """Chi-square p-value with the smallest cells pooled until each expects ``least``."""
    order = np.argsort(expected)[::-1]
    observed, expected = np.asarray(observed)[order], np.asarray(expected)[order]
    groups = np.zeros(len(expected), int)
    group, filled = 0, 0.0
    for i, value in enumerate(expected):
        groups[i] = group
        filled += value
        if filled >= least:
            group, filled = group + 1, 0.0
    if filled and group:  # what is left over joins the last full cell
        groups[groups == group] = group - 1
    seen = np.bincount(groups, observed)
    want = np.bincount(groups, expected)
    assert len(want) > 1, "everything was pooled into one cell: draw more samples"
    return stats.chisquare(seen, want * seen.sum() / want.sum()).pvalue


def exact_draws(rng, values, probabilities, num):
    """Independent draws from an enumerated law."""
    return rows(values, rng.choice(len(probabilities), size=num, p=probabilities))


def kaufman(rows, columns, coupling):
    """log Z of the Ising torus without field: B. Kaufman (1949), Crystal statistics II."""
    k2 = 2.0 * coupling
    odd, even = (np.pi * np.arange(start, 2 * columns, 2) / columns for start in (1, 0))

    def gamma(angle):
        # at the critical point the first argument is 1 up to rounding
        return np.arccosh(np.maximum(np.cosh(k2) ** 2 / np.sinh(k2) - np.cos(angle), 1.0))

    of_odd, of_even = gamma(odd), gamma(even)
    of_even[0] = k2 + np.log(np.tanh(coupling))  # signed: it changes sign at the critical point
    logs, signs = [], []
    for values in (of_odd, of_even):
        half = 0.5 * rows * values
        logs += [np.logaddexp(half, -half).sum(), np.log(np.abs(2.0 * np.sinh(half))).sum()]
        signs += [1.0, np.prod(np.sign(half))]
    total, sign = logsumexp(logs, b=signs, return_sign=True)
    assert sign > 0
    return float(total - np.log(2.0) + 0.5 * rows * columns * np.log(2.0 * np.sinh(k2)))
