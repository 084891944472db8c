"""Block Gibbs given evidence that differs from row to row: all rows and chains in one call."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._checks import require_count, require_key
from pgm_energy._struct import Key
from pgm_energy.conditional.evidence import Evidence, values_with_gaps
from pgm_energy.conditional.means import unit_moments
from pgm_energy.energy import EnergyModel
from pgm_energy.kernels.gibbs import GibbsKernel, random_configuration
from pgm_energy.natural import Values
from pgm_energy.structure import Blocks, blocks
from pgm_energy.transforms._base import require_model

__all__ = ["Moments", "Run", "run_chains", "sample_given"]

#: Encoded numbers of all rows and chains that are held at once (64 MiB in single precision).
_ELEMENTS = 2**24


class Moments(NamedTuple):
    """Estimates by row; leaves by site, rows first.

    Attributes
    ----------
    mean, second
        E[T(x)], and E[x^2] of real sites.
    std_error
        Standard error of ``mean``, from the spread of independent chains.
    """

    mean: dict[str, Any]
    second: dict[str, Any]
    std_error: dict[str, Any]


class Run(NamedTuple):
    """How long chains run: as the arguments of :func:`sample_given`."""

    num_samples: int
    num_chains: int
    num_warmup: int
    num_sweeps: int

    @classmethod
    def checked(cls, num_samples: int, num_chains: int, num_warmup: int, num_sweeps: int) -> Run:
        """Return the settings, or refuse a count.

        Raises
        ------
        ValueError
            Naming the count.
        """
        return cls(
            require_count("num_samples", num_samples),
            require_count("num_chains", num_chains),
            require_count("num_warmup", num_warmup, 0),
            require_count("num_sweeps", num_sweeps),
        )

    @property
    def draws(self) -> int:
        """Draws of each chain."""
        return math.ceil(self.num_samples / self.num_chains)


def run_chains(
    rng_key: Key,
    model: EnergyModel,
    evidence: Evidence,
    run: Run,
    *,
    keep: tuple[str, ...] | None = None,
    moments_of: tuple[str, ...] = (),
) -> tuple[dict[str, jax.Array], Moments]:
    """Return draws ``(rows, chains, draws, ...)`` of free sites, and moments of some of them.

    Parameters
    ----------
    keep
        Sites whose draws are wanted; None means all that are free.
    moments_of
        Sites whose moments are wanted. Every sweep after the warm-up counts for them, by the
        conditional means of its units.
    """
    example = evidence.example(model)
    size = sum(math.prod(site.encoded_shape) for site in example.sites.values())
    return _run_chains(
        rng_key,
        model,
        evidence,
        kernel=GibbsKernel(blocks(example)),
        run=run,
        keep=tuple(example.sites) if keep is None else keep,
        moments_of=moments_of,
        batch=int(np.clip(_ELEMENTS // (size * run.num_chains), 1, evidence.num_rows)),
    )


@functools.partial(jax.jit, static_argnames=("kernel", "run", "keep", "moments_of", "batch"))
def _run_chains(
    rng_key: Key,
    model: EnergyModel,
    evidence: Evidence,
    *,
    kernel: GibbsKernel,
    run: Run,
    keep: tuple[str, ...],
    moments_of: tuple[str, ...],
    batch: int,
) -> tuple[dict[str, jax.Array], Moments]:
    schedule = kernel.blocks
    assert isinstance(schedule, Blocks)
    steps = schedule.restrict(moments_of).steps

    def row(args: tuple[jax.Array, Evidence]) -> tuple[dict[str, jax.Array], Moments]:
        keys, known = args
        given = known.given(model)

        def moments(values: Values) -> dict[str, Any]:
            return {step.site: unit_moments(step, given, values) for step in steps}

        def chain(key: jax.Array) -> tuple[dict[str, jax.Array], dict[str, Any]]:
            start, warm, go = jax.random.split(key, 3)
            values = given.clamp(random_configuration(start, given))

            def sweep(i: jax.Array, values: Any) -> Any:
                return kernel(jax.random.fold_in(warm, i), values, given)[0]

            values = jax.lax.fori_loop(0, run.num_warmup, sweep, values)

            def counted(carry: Any, key: jax.Array) -> tuple[Any, None]:
                values, total = carry
                values = kernel(key, values, given)[0]
                return (values, jax.tree.map(jnp.add, total, moments(values))), None

            def draw(carry: Any, keys: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
                carry, _ = jax.lax.scan(counted, carry, keys)
                return carry, {name: carry[0][name] for name in keep}

            zero = jax.tree.map(jnp.zeros_like, moments(values))
            keys = jax.random.split(go, (run.draws, run.num_sweeps))
            (_, total), samples = jax.lax.scan(draw, (values, zero), keys)
            count = run.draws * run.num_sweeps
            return samples, jax.tree.map(lambda x: x / count, total)

        samples, means = jax.vmap(chain)(keys)
        first = {name: value[0] for name, value in means.items()}
        second = {k: value[1].mean(axis=0) for k, value in means.items() if value[1] is not None}
        scale = math.sqrt(run.num_chains)
        spread = {
            name: jnp.std(value, axis=0, ddof=1) / scale
            if run.num_chains > 1
            else jnp.full_like(value[0], jnp.nan)
            for name, value in first.items()
        }
        return samples, Moments({k: x.mean(axis=0) for k, x in first.items()}, second, spread)

    keys = jax.random.split(rng_key, (evidence.num_rows, run.num_chains))
    return jax.lax.map(row, (keys, evidence), batch_size=batch)


def sample_given(
    rng_key: Key,
    model: EnergyModel,
    rows: Any,
    num_samples: int,
    *,
    num_chains: int | None = None,
    num_warmup: int = 200,
    num_sweeps: int = 1,
    group_by_chain: bool = False,
) -> dict[str, jax.Array]:
    """Return draws of every site given rows that are known in part, each with its own pattern.

    Parameters
    ----------
    rng_key
        A JAX random key.
    model
        The energy model.
    rows
        Raw values of the data site, or a dict of any choice of sites, latent ones included; NaN
        where a unit is not known. Sites that are not given are free.
    num_samples
        Draws of each row.
    num_chains
        Independent chains of each row that share them; by default 4, or ``num_samples`` if that
        is less.
    num_warmup
        Sweeps of each chain that are thrown away.
    num_sweeps
        Sweeps between two draws of a chain.
    group_by_chain
        Keep the chains apart.

    Returns
    -------
    dict
        By site, raw values, known units at theirs: ``(num_samples, rows, ...)``, or by chain
        ``(num_chains, draws, rows, ...)`` with ``draws = ceil(num_samples / num_chains)``.

    Raises
    ------
    ValueError
        On invalid rows (with row and column) or counts, where all sites are known, or a model
        that block Gibbs cannot sample.
    TypeError
        If the rows are no numbers, or are traced by ``jax.jit``: only the model may be.

    Notes
    -----
    Block Gibbs on ``condition(model, ...)``, all rows and chains in one compiled call. Exact in
    the limit of long chains. A row of NaN is sampled from the model itself. To summarise missing
    data with uncertainty use :func:`impute`; for one pattern and diagnostics
    ``MCMC(BlockGibbs(condition(model, ...)))``.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpy as np, pgm_energy as pgm
    >>> rbm = pgm.RBM(weights=jnp.ones((3, 2)))
    >>> rows = np.array([[0, np.nan, 1], [np.nan, np.nan, 0]])
    >>> draws = pgm.sample_given(jax.random.key(0), rbm, rows, 10)
    >>> draws["v"].shape, draws["h"].shape
    ((10, 2, 3), (10, 2, 2))
    """
    rng_key = require_key(rng_key)
    require_model(model, "sample_given")
    num_samples = require_count("num_samples", num_samples)
    chains = min(4, num_samples) if num_chains is None else num_chains
    run = Run.checked(num_samples, chains, num_warmup, num_sweeps)
    evidence = values_with_gaps(model, rows, any_site=True)
    samples, _ = run_chains(rng_key, model, evidence, run)
    out = {}
    for name in model.sites:
        if name in samples:
            value = jnp.moveaxis(samples[name], 0, 2)
        else:
            known = jnp.asarray(evidence.values[name])
            value = jnp.broadcast_to(known, (run.num_chains, run.draws, *known.shape))
        out[name] = value if group_by_chain else share_draws(value, num_samples)
    return out


def share_draws(by_chain: Any, num_samples: int) -> Any:
    """Draws ``(chains, draws, ...)`` in a row: draw by draw, so that all chains share a cut."""
    flat = by_chain.swapaxes(0, 1)
    return flat.reshape((-1, *flat.shape[2:]))[:num_samples]
