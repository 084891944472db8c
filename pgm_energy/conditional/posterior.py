"""The posterior of rows with gaps or with noise: estimates, their uncertainty, and draws."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from pgm_energy._checks import require_key
from pgm_energy._data import as_rows
from pgm_energy._struct import Key, is_concrete
from pgm_energy.conditional.enumeration import FreeStates, enumerate_rows
from pgm_energy.conditional.evidence import Evidence, seen_through_noise, values_with_gaps
from pgm_energy.conditional.means import like_given
from pgm_energy.conditional.sampling import Moments, Run, run_chains, share_draws
from pgm_energy.energy import EnergyModel
from pgm_energy.sites import Categorical, Real, Site
from pgm_energy.transforms._base import held_values, require_model

__all__ = ["Posterior", "denoise", "impute"]

METHODS = ("auto", "exact", "gibbs")
#: Most states of a row that are listed when asked to, and unasked.
MOST_STATES, FEW_STATES = 2**20, 2**14


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Posterior:
    """What a model says about units that are missing or seen through noise.

    Made by :func:`impute` and :func:`denoise`. Every attribute is an array, rows first, or a dict
    by site if the rows were one.

    Attributes
    ----------
    estimate
        Completed rows, raw values: each unknown unit in its most probable state, which makes the
        expected number of wrong units least; real units at their mean.
    mean
        E[T(x)] of every unit given the evidence: the probability of 1 (binary), the mean (spin,
        real), ``(..., K)`` probabilities (categorical). Known units at their values.
    std
        Posterior standard deviation of the same, 0 for known units: how uncertain the unit is.
    std_error
        Monte Carlo standard error of ``mean``: how uncertain this computation is, from the
        spread of independent chains; 0 if exact, NaN with a single chain.
    samples
        Completed rows, ``(num_samples, rows, ...)``, raw values: joint draws, for whatever
        depends on several units.
    unknown
        Mask of the units that were inferred.
    method, message
        ``exact`` or ``gibbs``, and what was done in words.
    """

    estimate: Any
    mean: Any
    std: Any
    std_error: Any
    samples: Any
    unknown: Any
    method: str
    message: str

    def __repr__(self) -> str:
        masks = self.unknown if isinstance(self.unknown, dict) else {"": self.unknown}
        parts = [
            f"{mask.sum()} of {mask.size} units{f' of {name!r}' if name else ''}"
            for name, mask in masks.items()
        ]
        num_rows = len(next(iter(masks.values())))
        rows = f"{num_rows} row{'s' if num_rows > 1 else ''}"
        return f"Posterior of {' and '.join(parts)} in {rows}: {self.message}"


def impute(
    rng_key: Key,
    model: EnergyModel,
    rows_with_nan: Any,
    num_samples: int = 100,
    *,
    method: str = "auto",
    num_chains: int = 16,
    num_warmup: int = 200,
    num_sweeps: int = 10,
) -> Posterior:
    """Return the posterior of missing entries given the observed ones, row by row.

    Parameters
    ----------
    rng_key
        A JAX random key.
    model
        The energy model.
    rows_with_nan
        Rows of the data site (or a dict by site), NaN where missing; every row may have its own
        pattern. A row of NaN alone is completed from the model; rows without NaN come back.
    num_samples
        Completions of each row, in all.
    method
        ``exact``: the states of the missing units (or of the latents, if these are fewer) are
        listed, at most 2^20 a row. ``gibbs``: block Gibbs. ``auto``: ``exact`` where the row with
        most has at most 2^14 of them.
    num_chains
        Independent chains of each row, which share ``num_samples``; their spread is the standard
        error.
    num_warmup
        Sweeps of each chain that are thrown away.
    num_sweeps
        Sweeps between two completions of a chain.

    Returns
    -------
    Posterior
        ``estimate``, ``mean``, ``std``, ``std_error``, ``samples``, ``unknown``.

    Raises
    ------
    ValueError
        On invalid rows (with row and column), counts, an unknown method, or ``exact`` where there
        are too many states or a real site has no closed integral.

    Notes
    -----
    Exact up to float64 rounding, or in the limit of long chains. A unit that a conditioned model
    holds is known in every row. Chains run on
    ``condition(model, ...)``, all rows at once; ``mean`` averages the conditional means of the
    missing units over every sweep, which varies less than an average of draws. A standard error
    that is not small against ``std`` says that chains disagree: give them more warm-up. A state
    that no chain has visited does not show in it.

    References
    ----------
    D. B. Rubin (1987), Multiple imputation for nonresponse in surveys. A. E. Gelfand and
    A. F. M. Smith (1990), Sampling-based approaches to calculating marginal densities (averages
    of conditional means).

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpy as np, pgm_energy as pgm
    >>> rbm = pgm.RBM(weights=jnp.zeros((3, 2)), visible_bias=jnp.log(jnp.array([1.0, 4.0, 1.0])))
    >>> posterior = pgm.impute(jax.random.key(0), rbm, np.array([[0, np.nan, 1]]))
    >>> posterior
    Posterior of 1 of 3 units in 1 row: exact, 2 states of each row at most
    >>> posterior.estimate.tolist(), posterior.mean.round(4).tolist()
    ([[0, 1, 1]], [[0.0, 0.8, 1.0]])
    """
    rng_key = require_key(rng_key)
    _require_concrete(require_model(model, "impute"))
    run = Run.checked(num_samples, num_chains, num_warmup, num_sweeps)
    evidence = values_with_gaps(model, rows_with_nan)
    return _posterior(rng_key, model, evidence, evidence.free, run, method, rows_with_nan)


def denoise(
    rng_key: Key,
    model: EnergyModel,
    noisy_rows: Any,
    noise: Any,
    num_samples: int = 100,
    *,
    method: str = "auto",
    num_chains: int = 16,
    num_warmup: int = 200,
    num_sweeps: int = 10,
) -> Posterior:
    """Return the posterior of clean rows given rows that were seen through noise.

    Parameters
    ----------
    rng_key
        A JAX random key.
    model
        The energy model of clean rows.
    noisy_rows
        Rows of the data site, or a dict by site; NaN where a unit was not seen at all.
    noise
        The noise of each unit, independent of all others. Discrete units: the probability that a
        unit was replaced by another state, all others alike, at most chance (1/2 for binary and
        spin units, 1 - 1/K for categorical ones). Real units: the standard deviation of Gaussian
        noise. A number, an array of the site's shape, or a dict by site.
    num_samples, method, num_chains, num_warmup, num_sweeps
        As for :func:`impute`.

    Returns
    -------
    Posterior
        ``estimate`` has the fewest wrong units in expectation; ``mean`` are the probabilities.

    Raises
    ------
    ValueError
        On invalid rows (with row and column), noise out of range, counts, an unknown method, or
        ``exact`` where it is not possible.

    Notes
    -----
    ``p(clean given noisy) ~ p(noisy given clean) p(clean)``, and the first factor is linear in
    T(clean): the posterior is ``tilt(model, ...)``, again an energy model. A binary unit seen as
    1 with flip probability p gets ``log((1 - p) / p)`` more bias, a real unit seen as y with
    noise s gets field ``y / s^2`` and precision ``1 / s^2``. Exact or sampled as in
    :func:`impute`. What it is worth depends on the model: the noise must be what it is said to
    be, and clean rows what the model has learned.

    References
    ----------
    S. Geman and D. Geman (1984), Stochastic relaxation, Gibbs distributions, and the Bayesian
    restoration of images. J. Marroquin, S. Mitter and T. Poggio (1987), Probabilistic solution of
    ill-posed problems in computational vision (the estimate by marginals).

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpy as np, pgm_energy as pgm
    >>> rbm = pgm.RBM(weights=jnp.zeros((3, 2)), visible_bias=jnp.full(3, 3.0))
    >>> posterior = pgm.denoise(jax.random.key(0), rbm, np.array([[0, 1, 1]]), noise=0.1)
    >>> posterior.estimate.tolist(), posterior.mean.round(3).tolist()
    ([[1, 1, 1]], [[0.691, 0.994, 0.994]])
    """
    rng_key = require_key(rng_key)
    _require_concrete(require_model(model, "denoise"))
    run = Run.checked(num_samples, num_chains, num_warmup, num_sweeps)
    rows = as_rows(model, noisy_rows, name="noisy_rows", allow_missing=True)
    evidence = seen_through_noise(model, rows, noise)
    unknown = {}
    for name, seen in rows.items():
        mask = model.free_units(name)
        unknown[name] = np.ones(seen.shape, dtype=bool)
        if mask is not None:
            unknown[name] &= mask
    return _posterior(rng_key, model, evidence, unknown, run, method, noisy_rows)


def _require_concrete(model: EnergyModel) -> None:
    if not is_concrete(model):
        raise ValueError(
            "the posterior of rows needs concrete parameters: call it outside of jit, vmap and "
            "grad (inside, sample_given takes a traced model, with rows that are not traced)"
        )


def _posterior(
    rng_key: Key,
    model: EnergyModel,
    evidence: Evidence,
    unknown: dict[str, np.ndarray],
    run: Run,
    method: str,
    given: Any,
) -> Posterior:
    """Infer the units that some row does not know, and put the rows together."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    # rows that are known as a whole need no work
    open_rows = [mask.reshape(len(mask), -1).any(axis=1) for mask in unknown.values()]
    chosen = np.flatnonzero(np.any(open_rows, axis=0)) if open_rows else np.arange(0)
    used, message = "exact", "nothing is missing"
    samples: dict[str, np.ndarray] = {}
    moments = Moments({}, {}, {})
    if len(chosen):
        some = jax.tree.map(lambda leaf: leaf[chosen], evidence)
        used, message, samples, moments = _infer(rng_key, model, some, tuple(unknown), run, method)
    columns: dict[str, dict[str, Any]] = {}
    held = held_values(model)
    for name in model.data_sites:
        site = model.sites[name]
        rows = evidence.values.get(name)
        if rows is None:  # seen through noise only
            rows = np.broadcast_to(held[name], unknown[name].shape).copy()
        mask = unknown.get(name, np.zeros(rows.shape, bool))
        columns[name] = _completed(site, rows, mask, chosen, run.num_samples)
        if name in samples:
            _fill(columns[name], site, chosen, samples[name], _of(moments, name))
    by_attribute = {
        key: like_given({name: column[key] for name, column in columns.items()}, given)
        for key in next(iter(columns.values()))
    }
    return Posterior(**by_attribute, method=used, message=message)


def _infer(
    rng_key: Key,
    model: EnergyModel,
    evidence: Evidence,
    names: tuple[str, ...],
    run: Run,
    method: str,
) -> tuple[str, str, dict[str, np.ndarray], Moments]:
    """Method, message, draws ``(num_samples, rows, ...)`` and moments of the unknown sites."""
    states = _listable(model, evidence, method)
    if states is not None:
        drawn, moments = enumerate_rows(rng_key, model, evidence, states, names, run.num_samples)
        plural = "s" if states.size > 1 else ""
        message = f"exact, {states.size} state{plural} of each row at most"
        return "exact", message, {k: np.moveaxis(x, 0, 1) for k, x in drawn.items()}, moments
    drawn, moments = run_chains(rng_key, model, evidence, run, keep=names, moments_of=names)
    samples = {
        name: share_draws(np.moveaxis(np.asarray(x), 0, 2), run.num_samples)
        for name, x in drawn.items()
    }
    moments = jax.tree.map(np.asarray, moments)
    worst = max(float(error.max()) for error in moments.std_error.values())
    chains = f"{run.num_chains} chain{'s' if run.num_chains > 1 else ''}"
    message = (
        f"block Gibbs, {chains} of {run.num_warmup} + {run.draws * run.num_sweeps} sweeps for each "
        f"row, standard error of a mean {f'at most {worst:.2g}' if worst == worst else 'unknown'}"
    )
    return "gibbs", message, samples, moments


def _listable(model: EnergyModel, evidence: Evidence, method: str) -> FreeStates | None:
    """The states to list, or None where rows are to be sampled."""
    if method == "gibbs":
        return None
    try:
        states = FreeStates.of(evidence.example(model))
    except ValueError:
        if method == "exact":
            raise
        return None
    if states.size <= (MOST_STATES if method == "exact" else FEW_STATES):
        return states
    if method == "exact":
        raise ValueError(
            f"a row has 2^{math.log2(states.size):.1f} states to list, more than the "
            f"2^{math.log2(MOST_STATES):.0f} that method='exact' lists: use method='gibbs'"
        )
    return None


def _of(moments: Moments, name: str) -> tuple[Any, Any, Any]:
    return moments.mean[name], moments.second.get(name), moments.std_error[name]


def _completed(
    site: Site, rows: np.ndarray, unknown: np.ndarray, chosen: np.ndarray, num_samples: int
) -> dict[str, np.ndarray]:
    """The summary of rows at their values: right where a unit is known."""
    encoded = np.array(site.encode(rows), float)
    samples = np.broadcast_to(rows, (num_samples, *rows.shape))
    return {
        "estimate": rows.copy(),
        "mean": encoded,
        "std": np.zeros_like(encoded),
        "std_error": np.zeros_like(encoded),
        "samples": samples.copy() if len(chosen) else samples,
        "unknown": unknown,
    }


def _fill(
    summary: dict[str, np.ndarray],
    site: Site,
    chosen: np.ndarray,
    samples: np.ndarray,
    moments: tuple[Any, Any, Any],
) -> None:
    """Write what was inferred into the unknown units of the chosen rows."""
    mean, second, std_error = moments
    if isinstance(site, Real):
        variance, best = second - mean**2, mean
    elif isinstance(site, Categorical):
        variance, best = mean * (1.0 - mean), mean.argmax(axis=-1)
    else:
        low, high = site.states
        variance = (mean - low) * (high - mean)
        best = np.where(2.0 * mean > low + high, high, low)
    summary["samples"][:, chosen] = samples
    unknown = summary["unknown"][chosen]
    for name, value in {
        "estimate": best,
        "mean": mean,
        "std": np.sqrt(np.maximum(variance, 0.0)),
        "std_error": std_error,
    }.items():
        mask = unknown[..., None] if value.ndim > unknown.ndim else unknown
        summary[name][chosen] = np.where(mask, value, summary[name][chosen])
