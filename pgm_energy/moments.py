"""Moments of runs of any length in constant memory."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy import batch_means
from pgm_energy._chain_run import (
    Chains,
    Chunk,
    Watch,
    advance_chains,
    begin,
    checked_kernel,
)
from pgm_energy._checks import require_count, require_key
from pgm_energy._struct import Key
from pgm_energy.batch_means import BatchMeansState, Moments
from pgm_energy.energy import EnergyModel
from pgm_energy.observables import Observables, check_observables, observe
from pgm_energy.transforms._base import require_model

__all__ = ["PairMoments", "RunningMoments", "running_moments"]

#: Sweeps that are taken in at once, at most: their products of sites are one matrix product.
_BLOCK = 32
#: Levels of batches: 2^20 blocks are 33 million sweeps.
_LEVELS = 20
#: Batches must be this many autocorrelation times long for errors to be believed.
_LONG_ENOUGH = 10.0


class PairMoments(NamedTuple):
    """Moments of the products of all units of two sites.

    Attributes
    ----------
    mean
        E[T(x_i) T(y_j)], shape of the first site's encoding, then of the second's.
    mcse
        Monte Carlo standard error of the mean, from the means over all chains; NaN where the
        product never moved.
    batch_size, num_batches
        Sweeps in a batch, and batches, that the error is estimated from.
    """

    mean: np.ndarray
    mcse: np.ndarray
    batch_size: int
    num_batches: int


class RunningMoments(NamedTuple):
    """What :func:`running_moments` returns.

    Attributes
    ----------
    sites
        Moments of T(x) by site, shaped like its encoding: probabilities of binary units and of
        the states of categorical ones, means of spin and real ones. Times count sweeps.
    pairs
        Moments of products by pair of sites.
    observables
        Moments of observables by name.
    energy
        Moments of E, nats.
    num_draws, num_chains
        Draws of each chain that count, one per sweep, and chains.
    values
        The last configuration of every chain, raw values ``(chains, ...)``.
    message
        How it went, in words.
    """

    sites: dict[str, Moments]
    pairs: dict[tuple[str, str], PairMoments]
    observables: dict[str, Moments]
    energy: Moments
    num_draws: int
    num_chains: int
    values: dict[str, jax.Array]
    message: str

    def __repr__(self) -> str:
        return f"RunningMoments({self.message})"


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is looked at in every block of sweeps."""

    sites: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    observables: tuple[tuple[str, Any], ...]
    block: int

    def statistics(self, model: EnergyModel, draws: Any, energies: Any) -> dict[Any, jax.Array]:
        """Return ``(draws, series, ...)`` by kind and name, of draws ``(sweeps, chains, ...)``."""
        out: dict[Any, jax.Array] = {("energy", ""): energies}
        encoded = {name: site.encode(draws[name]) for name, site in model.sites.items()}
        for name in self.sites:
            out["site", name] = encoded[name]
        for first, second in self.pairs:
            a, b = (encoded[k].reshape(energies.size, -1) for k in (first, second))
            product = jnp.matmul(a.T, b, precision=jax.lax.Precision.HIGHEST) / energies.size
            shape = (*encoded[first].shape[2:], *encoded[second].shape[2:])
            out[f"pair {first}", second] = product.reshape(1, 1, *shape)
        if self.observables:
            seen = jax.vmap(jax.vmap(functools.partial(observe, dict(self.observables))))(draws)
            out |= {("observable", name): value for name, value in seen.items()}
        return out

    def first(self, model: EnergyModel, chains: Chains) -> BatchMeansState:
        """Return the state before the first block: of fixed size, whatever follows."""
        lead = (self.block, chains.keys.shape[0])
        draws = {
            name: jax.ShapeDtypeStruct((*lead, *site.shape), site.dtype)
            for name, site in model.sites.items()
        }
        energies = jax.ShapeDtypeStruct(lead, jnp.result_type(float))
        shapes = jax.eval_shape(lambda x, e: self.statistics(model, x, e), draws, energies)
        return batch_means.init(shapes, _LEVELS)


class _Progress(NamedTuple):
    """Carried from block to block."""

    chains: Chains
    state: BatchMeansState
    invalid: jax.Array
    energy: jax.Array
    stopped: jax.Array


def running_moments(
    rng_key: Key,
    model: EnergyModel,
    num_sweeps: int,
    *,
    num_chains: int = 64,
    num_warmup: int = 500,
    sites: Iterable[str] | None = None,
    pairs: Iterable[Sequence[str]] = (),
    observables: Observables | None = None,
    kernel: Any = None,
    on_invalid: str = "warn",
    progress_bar: bool = True,
) -> RunningMoments:
    """Return means, their errors and autocorrelation times over a run of any length.

    Parameters
    ----------
    rng_key
        A JAX random key.
    model
        The energy model.
    num_sweeps
        Sweeps of each chain after warm-up, all of which count. Rounded up, by less than 2 %, to
        whole blocks of up to 32.
    num_chains
        Independent chains.
    num_warmup
        Sweeps of each chain that do not count; rounded up to whole blocks.
    sites
        Names of sites whose units are looked at; by default all.
    pairs
        Pairs of sites whose units' products are looked at, such as ``[("v", "h")]``.
    observables
        Functions of a configuration (a dict of raw values, those of discrete sites as int32), by
        name.
    kernel
        A pure kernel ``(rng_key, values, model) -> (values, info)``, such as
        ``kernels.GibbsWithGradientsKernel()``; one call of it is a sweep. None: block Gibbs.
    on_invalid
        What to do when the energy of a chain is no finite number: "warn" says which chain and
        sweep, leaves that block of sweeps out, and goes on; "stop" returns the moments of the
        sweeps before.
    progress_bar
        Whether to show progress.

    Raises
    ------
    ValueError
        On a count below 1, a run of more than 33 million sweeps, a site that the model has not, a
        wrong observable, a model that block Gibbs cannot sample, or if no block was valid.
    TypeError
        If ``kernel`` is no pure kernel of this model, or inside ``jax.jit``.

    Warns
    -----
    RuntimeWarning
        On an energy that is no finite number, and on an interrupt (Ctrl-C), after which the
        moments so far are returned.

    Notes
    -----
    Memory does not depend on ``num_sweeps``: 20 numbers per chain and unit, 60 per pair of units
    (all chains share these). A function of its own, not an argument of :func:`sample`, because it
    returns no draws. Means are exact to float32 rounding at any length: batches of equal size are
    averaged in pairs, as in pairwise summation. Errors are those of batch means, with batches
    that double (method and sources: :func:`pgm_energy.batch_means.result`). The errors of units
    see chains that disagree, those of pairs do not. Inside a scan of your own, or with parallel
    tempering, use ``pgm_energy.batch_means`` itself.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, pgm_energy as pgm
    >>> rbm = pgm.RBM(weights=jnp.ones((3, 2)))
    >>> found = pgm.running_moments(jax.random.key(0), rbm, 2000, pairs=[("v", "h")],
    ...                             progress_bar=False)
    >>> found.sites["v"].mean.shape, found.pairs["v", "h"].mean.shape
    ((3,), (3, 2))
    >>> bool((found.sites["v"].mcse < 0.01).all())
    True
    """
    rng_key = require_key(rng_key)
    require_model(model, "running_moments")
    num_sweeps = require_count("num_sweeps", num_sweeps)
    num_chains = require_count("num_chains", num_chains)
    num_warmup = require_count("num_warmup", num_warmup, 0)
    block = _block_size(num_sweeps)
    steps, warm = -(-num_sweeps // block), -(-num_warmup // block)
    if steps >= 2**_LEVELS:
        raise ValueError(
            f"num_sweeps must be less than {block * 2**_LEVELS}, got {num_sweeps}: make several "
            "runs, with keys of their own"
        )
    plan = _plan(model, sites, pairs, check_observables(model, observables), block)
    kernel = checked_kernel(kernel, model)
    watch = Watch("sweep", on_invalid, progress_bar, block)
    chains = begin(rng_key, model, num_chains)
    none = jnp.zeros(num_chains, jnp.result_type(float))
    run: _Progress | None = _Progress(
        chains, plan.first(model, chains), jnp.full(num_chains, -1), none, jnp.asarray(False)
    )
    started = time.perf_counter()

    def advance(start: int, count: int) -> Chunk:
        nonlocal run
        before, run = run, None  # its memory is given to what follows
        run = jax.block_until_ready(
            _advance(before, model, start, count, warm, watch.stops, kernel=kernel, plan=plan)
        )
        return Chunk(np.asarray(run.invalid), np.asarray(run.energy))

    watch.run(advance, warm, steps, 2**30)
    if run is None:  # two interrupts: one in the middle of a chunk
        raise KeyboardInterrupt
    return _result(model, run, plan, watch, num_sweeps, time.perf_counter() - started)


def _block_size(num_sweeps: int) -> int:
    """Sweeps in a block: a power of two, of which there are at least 64 in a run, or one."""
    return min(_BLOCK, 2 ** max((num_sweeps // 64).bit_length() - 1, 0))


def _plan(
    model: EnergyModel,
    sites: Iterable[str] | None,
    pairs: Iterable[Sequence[str]],
    observables: Mapping[str, Any],
    block: int,
) -> _Plan:
    if isinstance(sites, str):
        raise TypeError(f"sites is a list of names, write [{sites!r}]")
    names = tuple(model.sites) if sites is None else tuple(dict.fromkeys(sites))
    chosen = []
    for pair in pairs:
        if isinstance(pair, str) or len(pair) != 2:
            raise ValueError(
                f"pairs is a list of pairs of site names, such as [('v', 'h')], got {pair!r} in it"
            )
        chosen.append((pair[0], pair[1]))
    model.require_sites((*names, *(name for pair in chosen for name in pair)))
    return _Plan(names, tuple(dict.fromkeys(chosen)), tuple(observables.items()), block)


@functools.partial(jax.jit, static_argnames=("kernel", "plan"), donate_argnames="run")
def _advance(
    run: _Progress,
    model: EnergyModel,
    start: Any,
    count: Any,
    warm: Any,
    stops: Any,
    *,
    kernel: Any,
    plan: _Plan,
) -> _Progress:
    """Take ``count`` blocks of sweeps; those from ``warm`` on with valid energies count."""

    def sweep(chains: Chains, number: jax.Array) -> Any:
        chains, energies = advance_chains(kernel, model, chains, number)
        return chains, (chains.values, energies)

    def take(carry: tuple[jax.Array, _Progress]) -> tuple[jax.Array, _Progress]:
        done, run = carry
        first = (start + done) * plan.block
        chains, (draws, energies) = jax.lax.scan(sweep, run.chains, first + jnp.arange(plan.block))
        counts = start + done >= warm
        wrong = ~jnp.isfinite(energies) & counts
        state = jax.lax.cond(
            counts & ~wrong.any(),
            lambda state: batch_means.update(state, plan.statistics(model, draws, energies)),
            lambda state: state,
            run.state,
        )
        place = jnp.argmax(wrong, axis=0)
        energy = jnp.take_along_axis(energies, place[None], axis=0)[0]
        new = wrong.any(axis=0) & (run.invalid < 0)
        return done + 1, _Progress(
            chains,
            state,
            jnp.where(new, first - warm * plan.block + place, run.invalid),
            jnp.where(new, energy, run.energy),
            run.stopped | (stops & wrong.any()),
        )

    def more(carry: tuple[jax.Array, _Progress]) -> jax.Array:
        return (carry[0] < count) & ~carry[1].stopped

    return jax.lax.while_loop(more, take, (jnp.zeros((), jnp.int32), run))[1]


def _result(
    model: EnergyModel, run: _Progress, plan: _Plan, watch: Watch, wanted: int, seconds: float
) -> RunningMoments:
    if int(run.state.updates) == 0:
        worst = min(watch.invalid.items(), key=lambda item: item[1])
        raise ValueError(
            f"no block of {plan.block} sweeps had finite energies throughout: chain {worst[0]} was "
            f"at {run.energy[worst[0]]} from sweep {worst[1]} on; check the parameters, or warm up "
            "longer if random starts are impossible configurations"
        )
    found = batch_means.result(run.state)
    sites = {name: found["site", name] for name in plan.sites}
    pairs = {}
    for first, second in plan.pairs:
        pair = found[f"pair {first}", second]
        size = pair.batch_size * plan.block
        pairs[first, second] = PairMoments(pair.mean, pair.mcse, size, pair.num_batches)
    observables = {name: found["observable", name] for name, _ in plan.observables}
    energy = found["energy", ""]
    done = int(run.state.updates) * plan.block
    num_chains = run.chains.keys.shape[0]
    message = (
        f"{num_chains} chain{'s' if num_chains > 1 else ''} of {done} "
        f"sweep{'s' if done > 1 else ''} in {seconds:.1f} seconds"
    )
    message += _verdict({**sites, **observables, "the energy": energy})
    if watch.ending:
        message += f". Ended early: {watch.ending}"
    elif done < wanted:
        message += (
            f". {wanted - done} sweeps were left out, in whose blocks an energy was not finite"
        )
    return RunningMoments(
        sites, pairs, observables, energy, done, num_chains, run.chains.values, message + "."
    )


def _verdict(found: Mapping[str, Moments]) -> str:
    """The worst of all statistics that moved, in words."""
    moved = {name: m for name, m in found.items() if np.isfinite(m.ess).any()}
    if not moved:
        return "; nothing ever moved"
    least = min(moved, key=lambda name: np.nanmin(moved[name].ess))
    words = f"; smallest effective sample size {np.nanmin(moved[least].ess):.0f} ({least})"
    rhat = np.concatenate([np.ravel(m.rhat) for m in moved.values()])
    if np.isfinite(rhat).any():
        words += f", largest R-hat {np.nanmax(rhat):.3f}"
    slow = max(np.nanmax(m.autocorrelation_time) for m in moved.values())
    size = next(iter(moved.values())).batch_size
    if slow * _LONG_ENOUGH > size:
        words += (
            f". The run is short: errors come from batches of {size} sweeps, at an autocorrelation "
            f"time of {slow:.0f}, and may be too small; run longer"
        )
    return words
