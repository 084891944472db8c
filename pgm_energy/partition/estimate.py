"""The front door: log Z by the method that suits the model."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import jax
import numpy as np

from pgm_energy._checks import require_count, require_key
from pgm_energy._progress import progress
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.enumeration import require_concrete
from pgm_energy.partition.annealing import (
    SIGMAS,
    Bracket,
    bracket,
    respaced,
    settling_sweeps,
    tuned_betas,
)
from pgm_energy.partition.bases import Base, find_base
from pgm_energy.partition.bennett import bennett_ratio
from pgm_energy.partition.exact import (
    AUTO_STATES,
    EXACT_STATES,
    TooManyStates,
    exact_log_partition,
)
from pgm_energy.partition.path import Path
from pgm_energy.partition.result import LogPartition, doubts
from pgm_energy.partition.tempering import num_steps, temper_ladders

__all__ = ["log_partition"]

METHODS = ("auto", "exact", "ais", "reverse_ais", "bennett", "pt")
#: Chains and betas of annealing unless given.
NUM_CHAINS, NUM_BETAS = 100, 1000
#: Ladders of parallel tempering unless given, and fewest and most replicas of each.
NUM_LADDERS, REPLICAS = 16, (8, 64)


def log_partition(
    model: EnergyModel,
    rng_key: Any = None,
    method: str = "auto",
    *,
    base: EnergyModel | None = None,
    data: Any = None,
    num_chains: int | None = None,
    num_betas: int | None = None,
    progress_bar: bool = False,
) -> LogPartition:
    """Return log Z = log of the sum (or integral) of exp(-E) over all states.

    Parameters
    ----------
    model
        The energy model.
    rng_key
        A JAX random key, for methods that sample; ``exact`` needs none.
    method
        ``exact``: known in closed form, or summed over the states of the smaller side.
        ``ais``: annealed importance sampling from the base. ``reverse_ais``: the same from
        samples of the model back to the base. ``bennett``: both, joined by Bennett's acceptance
        ratio. ``pt``: parallel tempering, neighbours joined by Bennett's ratio. ``auto``:
        ``exact`` where that takes seconds, else ``ais``; ``.method`` says which.
    base
        Where the path begins: independent units, or any model over the same sites that can be
        enumerated. None: independent units with the marginals of the data, or without data those
        of the model in a short block-Gibbs run.
    data
        Raw rows of the data site, or a dict by site: for the base, and as starts of half of the
        runs back. Those that the model was trained on.
    num_chains
        Independent chains each way, at least 2 (100 unless given); ``pt``: ladders (16).
    num_betas
        Inverse temperatures from 0 to 1, at least 2 (1,000 unless given); ``pt``: replicas of a
        ladder (8 to 64 by the length of the path).
    progress_bar
        Whether to show one; Ctrl-C ends either way within a part of 50 betas.

    Returns
    -------
    LogPartition
        ``estimate``, ``std_error``, ``lower``, ``upper``, ``method``, ``message``, ``ess``,
        ``trusted``, ``warning``.

    Raises
    ------
    TypeError
        If the model or the base is no energy model, or the key no key.
    ValueError
        On an unknown method, settings that the method does not use, no key for a method that
        samples, too many states, a base over other sites, data outside the support, an energy
        that is NaN, or a model that cannot be summed or sampled.

    Warns
    -----
    UserWarning
        If the answer is not to be trusted (``.warning``): a bracket wider than 1 nat, bounds that
        contradict each other, fewer than 10 effective weights.

    Notes
    -----
    ``exact``: up to float64 rounding. Sites of independent units are summed out in closed form,
    those that remove most states; the states of the rest are enumerated. So a restricted
    Boltzmann machine costs 2^min(visible, hidden) free energies: 784 x 20 units about 7 s on two
    cores.

    All others walk the path ``(1 - beta) E_base + beta E`` by block Gibbs. One site that is drawn
    at once is summed out of the weights (of an RBM the larger layer), exactly and free of charge.
    Betas are spaced so that log-weights spread equally between neighbours, as two pilot runs of 51
    betas tell. Log-weights are added in float64. Cost: one sweep per chain and beta each way, and
    no memory that grows with the betas.

    Every answer carries a bracket. In expectation the mean log-weight of the runs from the base
    lies below log Z whatever the chains do, and minus that of runs back above it if they start
    from samples of the model. These are the ends of the runs forward, resampled by their weights,
    and with ``data`` half of them rows, all after ``max(100, num_betas / 10)`` sweeps; of the two
    groups the more pessimistic counts (``pt``: draws of its ladders). If sweeps cannot reach a
    mode and neither the base nor the data show it, no bound knows of it.

    ``bennett`` uses time-reversed sweeps on the way back, without which its identity would not
    hold. The error of ``pt`` is that between its independent ladders.

    References
    ----------
    R. Neal (2001), Annealed importance sampling. R. Salakhutdinov and I. Murray (2008), On the
    quantitative analysis of deep belief networks, section 4. Y. Burda, R. Grosse and
    R. Salakhutdinov (2015), Accurate and conservative estimates of MRF log-likelihood using
    reverse annealing. C. Bennett (1976), Efficient estimation of free energy differences from
    Monte Carlo data. G. Crooks (2000), Path-ensemble averages in systems driven far from
    equilibrium.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, pgm_energy as pgm
    >>> z = pgm.log_partition(pgm.RBM(weights=jnp.zeros((784, 3))))
    >>> round(z.estimate / 787, 6), z.method  # log 2 per unit
    (0.693147, 'exact')
    >>> rbm = pgm.RBM(weights=0.1 * jnp.ones((30, 40)))
    >>> z = pgm.log_partition(rbm, jax.random.key(0))  # 2^30 states on the smaller side
    >>> z.method, z.trusted, bool(z.lower < z.estimate < z.upper)
    ('ais', True, True)
    """
    require_concrete(model, "log_partition")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    settings = {"base": base, "data": data, "num_chains": num_chains, "num_betas": num_betas}
    if method == "exact":
        unused = [name for name, value in settings.items() if value is not None]
        if unused:
            raise ValueError(
                f"{', '.join(unused)} is for methods that sample "
                f"({', '.join(map(repr, METHODS[2:]))}); 'exact' takes no settings"
            )
        return exact_log_partition(model, EXACT_STATES)
    if method == "auto":
        try:
            return exact_log_partition(model, AUTO_STATES)
        except TooManyStates:
            if rng_key is None:
                raise
            method = "ais"
    if rng_key is None:
        raise ValueError(f"method {method!r} samples: give rng_key, such as jax.random.key(0)")
    chains = None if num_chains is None else require_count("num_chains", num_chains, 2)
    betas = None if num_betas is None else require_count("num_betas", num_betas, 2)
    base_key, run_key = jax.random.split(require_key(rng_key))
    found = find_base(base_key, model, base, data)
    run = _Run(Path.between(found.model, model), found, progress_bar)
    if method == "pt":
        result = run.tempering(run_key, chains or NUM_LADDERS, betas)
    else:
        result = run.annealing(run_key, method, chains or NUM_CHAINS, betas or NUM_BETAS)
    if result.warning:
        warnings.warn(
            f"log Z of {model.title} is not to be trusted: {result.warning}",
            UserWarning,
            stacklevel=2,
        )
    return result


@dataclasses.dataclass(frozen=True)
class _Run:
    """The methods that sample: a path, its base, and whether to show progress."""

    path: Path
    base: Base
    progress_bar: bool

    def annealing(self, rng_key: Key, method: str, num_chains: int, num_betas: int) -> LogPartition:
        pilot_key, key = jax.random.split(rng_key)
        exactly_back = method == "bennett"
        if exactly_back:
            self.path.backwards()  # refused before any work
        betas, _ = tuned_betas(pilot_key, self.path, self._start(num_chains), num_betas)
        total = 2 * (num_betas - 1) + settling_sweeps(num_betas)
        with progress(total, self.progress_bar, "annealing") as show:
            runs = bracket(
                key, self.path, self.base, betas, num_chains, exactly_back=exactly_back, show=show
            )
        estimate, error, ess = _estimate(runs, method)
        starts = "resampled ends"
        if len(runs.groups) > 1:
            starts = f"{runs.groups[0].stop} resampled ends and {num_chains - runs.groups[0].stop} "
            starts += "rows of data"
        name = {
            "ais": "annealed importance sampling",
            "reverse_ais": "reverse annealed importance sampling",
            "bennett": "Bennett's ratio of annealing both ways",
        }[method]
        message = (
            f"{name}, {num_betas} betas, {num_chains} chains, {ess:.1f} effective, from "
            f"{self.base.description}{self._summed()}; back from {starts} after "
            f"{settling_sweeps(num_betas)} sweeps"
        )
        return _judged(runs, estimate, error, ess, method, message, [])

    def tempering(self, rng_key: Key, num_ladders: int, num_betas: int | None) -> LogPartition:
        pilot_key, ladder_key, key = jax.random.split(rng_key, 3)
        steps = num_steps()
        start = self._start(NUM_CHAINS)
        betas, length = tuned_betas(pilot_key, self.path, start, NUM_BETAS)
        replicas = num_betas or int(np.clip(np.ceil(length) + 2, *REPLICAS))
        # the bracket may cost as many sweeps as the ladders
        walked = max(NUM_BETAS, num_ladders * replicas * steps // (2 * NUM_CHAINS))
        with progress(steps + 2 * walked, self.progress_bar, "tempering") as show:
            found = temper_ladders(
                ladder_key,
                self.path,
                self.base,
                respaced(betas, replicas),
                num_ladders,
                NUM_CHAINS,
                lambda number: show(number, "tempering"),
            )
            runs = bracket(
                key,
                self.path,
                self.base,
                respaced(betas, walked),
                NUM_CHAINS,
                samples=found.samples,
                show=lambda number, words: show(steps + number, words),
            )
        message = (
            f"parallel tempering, {num_ladders} ladders of {replicas} replicas, {steps} steps, "
            f"{found.round_trips} round trips, {found.ess:.1f} effective draws, from "
            f"{self.base.description}{self._summed()}; bracket by annealing, {walked} betas, "
            f"{NUM_CHAINS} chains, back from draws of the ladders"
        )
        trips = [] if found.round_trips else ["no replica went from the base to the model and back"]
        estimate = self.base.log_partition + found.log_ratio
        return _judged(runs, estimate, found.std_error, found.ess, "pt", message, trips)

    def _start(self, num_chains: int) -> Any:
        return lambda key: self.base.draw(key, num_chains)

    def _summed(self) -> str:
        step = self.path.summed
        return "" if step is None else f", {step.site!r} summed out of the weights"


def _estimate(runs: Bracket, method: str) -> tuple[float, float, float]:
    """Estimate, its standard error and its effective weights by one of the annealing methods."""
    if method == "ais":
        weights = runs.forward
        return runs.log_z_base + weights.log_mean, weights.log_mean_error, weights.ess
    if method == "reverse_ais":
        weights = runs.reverse
        return runs.log_z_base - weights.log_mean, weights.log_mean_error, weights.ess
    found = bennett_ratio(runs.forward.log_weights, runs.reverse.log_weights)
    parts = np.concatenate([found.forward, found.reverse])
    return runs.log_z_base + found.log_ratio, float(np.sqrt((parts**2).sum())), found.overlap


def _judged(
    runs: Bracket,
    estimate: float,
    error: float,
    ess: float,
    method: str,
    message: str,
    others: list[str],
) -> LogPartition:
    lower, upper = runs.lower, runs.upper
    warning = doubts(lower, upper, estimate, error * SIGMAS, ess, others)
    return LogPartition(estimate, error, lower, upper, method, message, ess, warning)
