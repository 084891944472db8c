"""A kernel is timed only after its draws agree with the exact law of a small model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

import pgm_energy as pgm
from benchmarks.ours import row_units

#: Probability with which a right kernel is called wrong, per check.
ALPHA = 1e-6

#: Chains and sweeps of a check. Couplings of the small models are weak: what is left of the start
#: after so many sweeps is far below what so many chains can see.
NUM_CHAINS, NUM_SWEEPS = 40_000, 64


class WrongKernel(AssertionError):
    """A kernel does not draw from the law that it should; the message gives the numbers."""


def check_joint(
    model: pgm.EnergyModel, values: Mapping[str, Any], max_states: int = 2**16
) -> tuple[float, int]:
    """Hold independent draws against the exact law of a small discrete model.

    Returns
    -------
    tuple
        The p-value of Pearson's chi-square over joint states and over the marginal of each unit
        (the least of them), and how many draws it rests on.

    Raises
    ------
    WrongKernel
        If a draw has a value outside of its site's support, or a p-value is below ``ALPHA``.
    """
    law = pgm.exact(model)
    if law.num_states > max_states:
        raise ValueError(f"{law.num_states} states are too many for this test")
    columns, states = [], []
    for name, site in model.sites.items():
        draws = np.asarray(values[name]).reshape(-1, site.size)
        if not np.isin(draws, site.states).all():
            raise WrongKernel(f"site {name!r} has values outside of its support")
        columns.append(draws)
        states.append(law.states[name].reshape(law.num_states, -1))
    draws, table = np.concatenate(columns, axis=1), np.concatenate(states, axis=1)
    # binary and spin units only: each state is a number in base two
    base = 2 ** np.arange(draws.shape[1])
    order = np.argsort((table > 0) @ base)
    numbers = np.searchsorted(((table > 0) @ base)[order], (draws > 0) @ base)
    counts = np.bincount(order[numbers], minlength=law.num_states)
    tests = [("joint states", *_pool(law.probabilities, counts))]
    for unit in range(draws.shape[1]):
        up = float(law.probabilities @ (table[:, unit] > 0))
        seen = int((draws[:, unit] > 0).sum())
        observed = np.array([seen, len(draws) - seen], dtype=float)
        tests.append((f"unit {unit}", observed, np.array([up, 1.0 - up]) * len(draws)))
    worst = 1.0
    for name, observed, expected in tests:
        found = stats.chisquare(observed, expected * (observed.sum() / expected.sum()))
        worst = min(worst, float(found.pvalue))
        if not found.pvalue >= ALPHA:
            raise WrongKernel(
                f"{name}: chi-square {found.statistic:.1f} with {len(observed)} cells over "
                f"{len(draws)} draws, p = {found.pvalue:.2g} < {ALPHA:.0e}"
            )
    return worst, len(draws)


def _pool(law: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Observed and expected counts; states of like probability share a cell of five draws or more.

    Like probability is like energy, so that what is pooled still tells a wrong temperature.
    """
    order = np.argsort(law)
    expected, observed = law[order] * counts.sum(), counts[order].astype(float)
    cells, total = np.empty(len(law), dtype=int), np.inf
    cell = -1
    for place, one in enumerate(expected):
        if total >= 5.0:
            cell, total = cell + 1, 0.0
        cells[place] = cell
        total += one
    if total < 5.0 and cell > 0:
        cells[cells == cell] = cell - 1
    return np.bincount(cells, weights=observed), np.bincount(cells, weights=expected)


def check_runner(runner: Any, model: pgm.EnergyModel, seed: int, num_sweeps: int) -> str:
    """Run a contestant on a small model, one draw per chain, and hold it against the exact law."""
    runner.prepare(num_sweeps)(seed)
    p_value, draws = check_joint(model, runner.values())
    return f"exact law: p = {p_value:.2g}, {draws:,} draws"


def check_last_block(model: pgm.EnergyModel, values: Mapping[str, Any], blocks: Any) -> str:
    """Hold the last block of a full-size sweep against its conditional given the rest.

    Large shapes have faults that small ones cannot show (random numbers that repeat, padding).
    Given the rest, the units of the last block are independent with the mean that the energy's own
    gradient gives: their sum over units, the sum over chains of each unit, and the sum over units
    of each chain are normal.

    Raises
    ------
    WrongKernel
        If one of these is too far from its mean, at ``ALPHA`` in all.
    """
    step = blocks.steps[-1]
    site = model.sites[step.site]
    units = row_units(step, site.size)[-1]
    if step.kind != "joint":
        units = units[-1:]

    def residual(one: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        encoded = model.encode(one)

        def energy(x: jax.Array) -> jax.Array:
            return model.energy(**{**encoded, step.site: x})

        eta = -jax.grad(energy)(encoded[step.site]).reshape(-1)[units]
        if isinstance(site, pgm.Spin):
            mean = jnp.tanh(eta)
            variance = 1.0 - mean**2
        else:
            mean = jax.nn.sigmoid(eta)
            variance = mean * (1.0 - mean)
        return encoded[step.site].reshape(-1)[units] - mean, variance

    some = {name: jnp.asarray(value)[:512] for name, value in values.items()}
    difference, variance = (
        np.asarray(x, np.float64)
        for x in jax.jit(lambda v: jax.lax.map(residual, v, batch_size=16))(some)
    )
    sums = {
        "the sum": (difference.sum(keepdims=True), variance.sum(keepdims=True)),
        "a unit": (difference.sum(axis=0), variance.sum(axis=0)),
        "a chain": (difference.sum(axis=1), variance.sum(axis=1)),
    }
    worst = 0.0
    for name, (total, spread) in sums.items():
        clear = spread > 9.0  # enough independent terms for a normal tail
        if not clear.any():
            continue
        z = np.abs(total[clear]) / np.sqrt(spread[clear])
        limit = stats.norm.isf(ALPHA / 6 / clear.sum()) * 1.05
        worst = max(worst, float(z.max()))
        if z.max() > limit:
            raise WrongKernel(
                f"last block at full size: {name} is {z.max():.1f} standard deviations from its "
                f"conditional mean, allowed {limit:.1f}"
            )
        # the sums vary as independent draws do: repeated random numbers would show here
        if name != "the sum" and clear.sum() > 8:
            square, count = float((z**2).sum()), int(clear.sum())
            tail = 2 * min(stats.chi2.sf(square, count), stats.chi2.cdf(square, count))
            if tail < ALPHA / 100:  # sums are only nearly normal
                raise WrongKernel(
                    f"last block at full size: mean square over {count} sums of {name} is "
                    f"{square / count:.3f}, expected 1"
                )
    return f"full size: last block within {worst:.1f} sd"


def check_exactly(kernel: Any, model: pgm.EnergyModel, key: jax.Array) -> str:
    """Hold a kernel of ours to its exact transition matrix."""
    try:
        report = pgm.testing.check_kernel(kernel, model, key)
    except pgm.testing.ConformanceError as error:
        raise WrongKernel(str(error)) from error
    found = dict(report.checks)
    return f"pi T = pi: {found['pi T = pi']}" if "pi T = pi" in found else found["chi-square"]


def check_decisions(
    draw: Callable[[jax.Array, jax.Array], jax.Array], key: jax.Array, num: int = 400_000
) -> str:
    """Hold single binary decisions against sigmoid(eta), logit by logit and for neighbours."""
    logits = np.linspace(-6.0, 6.0, 25).astype(np.float32)
    eta = jnp.tile(logits, num // len(logits))
    out = np.asarray(draw(key, eta)).reshape(-1, len(logits)).astype(float)
    prob = 1.0 / (1.0 + np.exp(-logits.astype(float)))
    sd = np.sqrt(prob * (1.0 - prob))
    scores = np.abs(out.mean(axis=0) - prob) / sd * np.sqrt(len(out))
    unit = (out - prob) / sd
    middle = np.abs(logits) <= 3.0
    pairs = (unit[:, :-1] * unit[:, 1:])[:, middle[:-1] & middle[1:]]
    lag = abs(pairs.sum()) / np.sqrt(pairs.size)
    limit = stats.norm.isf(ALPHA / 2 / (len(logits) + 1)) * 1.05
    if max(*scores, lag) > limit:
        raise WrongKernel(
            f"decisions are {max(*scores, lag):.1f} standard deviations off, allowed {limit:.1f}"
        )
    return f"sigmoid: within {max(*scores, lag):.1f} sd, {out.size:,} draws"
