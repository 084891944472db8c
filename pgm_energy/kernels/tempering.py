"""Parallel tempering: replicas along a path of models, neighbours swapped."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy import _random
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.kernels.gibbs import GibbsKernel, random_configuration
from pgm_energy.natural import Values
from pgm_energy.structure import Blocks
from pgm_energy.transforms import Tempered

__all__ = [
    "Replicas",
    "TemperingInfo",
    "TemperingKernel",
    "check_betas",
    "exchange",
    "random_start",
    "retuned",
    "start",
    "swap_neighbours",
    "travel",
]

#: Least rejection rate that the ladder is tuned by: a gap that is never refused keeps a width.
_LEAST_REJECTION = 1e-3


class Replicas(NamedTuple):
    """State of parallel tempering.

    Attributes
    ----------
    values
        Raw values by site, one configuration per inverse temperature, ``(replicas, ...)``.
    walker
        Which walker stands at each inverse temperature, ``(replicas,)``.
    heading
        Per walker: 1 on its way from the base to the target, -1 on its way back, 0 if it has not
        been at the base yet.
    round_trips
        Per walker: journeys from the base to the target and back.
    parity
        Which neighbours are tried next: 0 for pairs (0, 1), (2, 3), ..., 1 for the others.
    """

    values: dict[str, jax.Array]
    walker: jax.Array
    heading: jax.Array
    round_trips: jax.Array
    parity: jax.Array


class TemperingInfo(NamedTuple):
    """What one step leaves behind for somebody to look at.

    Attributes
    ----------
    energy
        E of the target at the configuration of beta = 1, nats.
    swap_prob
        Probability of accepting a swap of each pair of neighbours, ``(replicas - 1,)``, whether
        it was its turn or not.
    swapped
        Which pairs were swapped, ``(replicas - 1,)``.
    round_trips
        Journeys from the base to the target and back so far, of all walkers.
    """

    energy: jax.Array
    swap_prob: jax.Array
    swapped: jax.Array
    round_trips: jax.Array


def check_betas(betas: Any) -> np.ndarray:
    """Return inverse temperatures that increase from 0 to 1.

    Raises
    ------
    TypeError
        If they are no numbers.
    ValueError
        If they do not increase strictly, or do not start at 0 and end at 1.
    """
    try:
        ladder = np.asarray(betas, dtype=float)
    except (TypeError, ValueError) as error:
        raise TypeError(f"betas must be a list of numbers, got {betas!r}") from error
    if ladder.ndim != 1 or len(ladder) < 2:
        raise ValueError(
            f"betas must be a list of at least two numbers, from 0 to 1, got {betas!r}"
        )
    rising = np.diff(ladder) > 0
    if not rising.all():
        i = int(np.argmin(rising))
        raise ValueError(
            f"betas must increase strictly, got {ladder[i]} before {ladder[i + 1]} at place {i}"
        )
    if ladder[0] != 0.0 or ladder[-1] != 1.0:
        raise ValueError(
            f"betas must run from 0 (the base) to 1 (the target), got {ladder[0]} to {ladder[-1]}"
        )
    return ladder


def start(values: Values) -> Replicas:
    """Return replicas at the given values, ``(replicas, ...)``, every walker at its own place."""
    count = np.shape(next(iter(values.values())))[0]
    zeros = jnp.zeros(count, jnp.int32)
    place = jnp.arange(count, dtype=jnp.int32)
    return Replicas(dict(values), place, zeros.at[0].set(1), zeros, jnp.zeros((), jnp.int32))


def random_start(rng_key: Key, model: EnergyModel, num_replicas: int) -> Replicas:
    """Return replicas at independent random configurations."""
    keys = _random.split(rng_key, num_replicas)
    return start(jax.vmap(lambda key: model.clamp(random_configuration(key, model)))(keys))


@dataclasses.dataclass(frozen=True)
class TemperingKernel:
    """The pure transition: sweeps of every replica at its own temperature, then swaps.

    Attributes
    ----------
    blocks
        Verified schedule of the path, ``blocks(temper(base, target, 0.5))``.
    num_sweeps
        Sweeps of each replica before neighbours are swapped.

    Notes
    -----
    Exact: leaves the product of the laws of ``temper(base, target, betas[r])`` alone. A swap is
    accepted with the energies that are tempered, those of all sites together: with free energies
    of some of them it would be wrong. Even and odd pairs take turns, which makes walkers travel.
    Cost: ``num_sweeps`` sweeps and one energy of base and target per replica.

    References
    ----------
    S. Syed, A. Bouchard-Cote, G. Deligiannidis and A. Doucet (2021), Non-reversible parallel
    tempering: a scalable highly parallel MCMC scheme.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, pgm_energy as pgm
    >>> rbm = pgm.RBM(weights=jnp.ones((3, 2)))
    >>> base, betas = pgm.Independent.like(rbm), jnp.linspace(0.0, 1.0, 4)
    >>> kernel = TemperingKernel(pgm.blocks(pgm.temper(base, rbm, 0.5)))
    >>> replicas = random_start(jax.random.key(0), rbm, num_replicas=4)
    >>> replicas, info = jax.jit(kernel)(jax.random.key(1), replicas, base, rbm, betas)
    >>> replicas.values["v"].shape, info.swap_prob.shape
    ((4, 3), (3,))
    """

    blocks: Blocks
    num_sweeps: int = 1

    def __call__(
        self,
        rng_key: Key,
        replicas: Replicas,
        base: EnergyModel,
        target: EnergyModel,
        betas: jax.Array,
    ) -> tuple[Replicas, TemperingInfo]:
        """Return the replicas after one step, and what happened.

        Parameters
        ----------
        rng_key
            A JAX random key.
        replicas
            From :func:`start` or the step before.
        base, target
            Models over the same sites.
        betas
            Inverse temperatures from 0 to 1, ``(replicas,)``.
        """
        sweep_key, swap_key = _random.split(rng_key, 2)
        values = self.sweep(sweep_key, replicas.values, base, target, betas)
        base_energy, target_energy = self.energies(values, base, target)
        uniform = _random.uniform(swap_key, (betas.shape[0] - 1,))
        order, swapped, swap_prob = exchange(
            uniform, target_energy - base_energy, betas, replicas.parity
        )
        values = {name: value[order] for name, value in values.items()}
        replicas = travel(replicas, replicas.walker[order])
        replicas = replicas._replace(values=values, parity=1 - replicas.parity)
        trips = jnp.sum(replicas.round_trips, dtype=jnp.int32)
        return replicas, TemperingInfo(target_energy[order[-1]], swap_prob, swapped, trips)

    def sweep(
        self,
        rng_key: Key,
        values: Values,
        base: EnergyModel,
        target: EnergyModel,
        betas: jax.Array,
    ) -> dict[str, jax.Array]:
        """Return the values of all replicas after ``num_sweeps`` block-Gibbs sweeps of each."""
        kernel = GibbsKernel(self.blocks)

        def sweeps(key: jax.Array, values: Values, beta: jax.Array) -> Any:
            path = Tempered(base=base, target=target, beta=beta)

            def sweep(values: Any, key: jax.Array) -> Any:
                return kernel(key, values, path)[0], None

            values = {name: site.cast(values[name]) for name, site in target.sites.items()}
            return jax.lax.scan(sweep, values, _random.split(key, self.num_sweeps))[0]

        return jax.vmap(sweeps)(_random.split(rng_key, betas.shape[0]), dict(values), betas)

    def energies(
        self, values: Values, base: EnergyModel, target: EnergyModel
    ) -> tuple[jax.Array, jax.Array]:
        """Return E of the base and of the target at every replica, ``(replicas,)`` each, nats."""

        def one(values: Values) -> tuple[jax.Array, jax.Array]:
            encoded = target.encode(values)
            return base.energy(**encoded), target.energy(**encoded)

        return jax.vmap(one)(dict(values))


def exchange(
    uniform: jax.Array, climb: jax.Array, betas: jax.Array, parity: jax.Array | int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return who goes where, which pairs are swapped, and how probable every swap was.

    Parameters
    ----------
    uniform
        Noise in [0, 1), one per pair of neighbours, ``(replicas - 1,)``.
    climb
        E_target - E_base of every replica, nats, ``(replicas,)``.
    betas
        Inverse temperatures, ``(replicas,)``.
    parity
        0 or 1: the first pair that is tried.

    Notes
    -----
    Exact: swapping r and r + 1 multiplies the joint density by
    ``exp((betas[r + 1] - betas[r]) * (climb[r + 1] - climb[r]))``, and pairs of one parity share
    no replica. Energies that are infinite on both sides are not swapped.
    """
    return swap_neighbours(uniform, jnp.diff(betas) * jnp.diff(climb), parity)


def swap_neighbours(
    uniform: jax.Array, log_ratio: jax.Array, parity: jax.Array | int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return who goes where, which pairs are swapped, and how probable every swap was.

    Parameters
    ----------
    uniform
        Noise in [0, 1), one per pair of neighbours, ``(replicas - 1,)``.
    log_ratio
        Logarithm of what swapping a pair multiplies the joint density by, ``(replicas - 1,)``.
    parity
        0 or 1: the first pair that is tried.
    """
    count = log_ratio.shape[0] + 1
    log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
    swap_prob = jnp.exp(jnp.minimum(log_ratio, 0.0))
    turn = jnp.arange(count - 1) % 2 == parity
    swapped = turn & (uniform < swap_prob)
    none = jnp.zeros(1, bool)
    up, down = jnp.concatenate([swapped, none]), jnp.concatenate([none, swapped])
    return jnp.arange(count) + up.astype(int) - down.astype(int), swapped, swap_prob


def travel(replicas: Replicas, walker: jax.Array) -> Replicas:
    """Return replicas with walkers at new places: who is at an end turns, journeys are counted."""
    bottom, top = walker[0], walker[-1]
    back = replicas.heading[bottom] == -1
    round_trips = replicas.round_trips.at[bottom].add(back.astype(jnp.int32))
    heading = replicas.heading.at[bottom].set(1)
    heading = heading.at[top].set(jnp.where(heading[top] == 1, -1, heading[top]))
    return replicas._replace(walker=walker, heading=heading, round_trips=round_trips)


def retuned(betas: jax.Array, swap_prob: jax.Array) -> jax.Array:
    """Return inverse temperatures at which all neighbours would swap equally often.

    Parameters
    ----------
    betas
        The present ladder, ``(replicas,)``.
    swap_prob
        Mean probability of accepting a swap of each pair, ``(replicas - 1,)``.

    Notes
    -----
    The sum of mean rejections up to beta is a barrier that hardly depends on the ladder; equal
    steps of it give equal rejections. Between the present betas it is taken to be linear, so
    that a few rounds are needed.

    References
    ----------
    S. Syed, A. Bouchard-Cote, G. Deligiannidis and A. Doucet (2021), Non-reversible parallel
    tempering: a scalable highly parallel MCMC scheme.
    """
    rejection = jnp.maximum(1.0 - swap_prob, _LEAST_REJECTION)
    barrier = jnp.concatenate([jnp.zeros(1), jnp.cumsum(rejection)])
    even = jnp.linspace(0.0, barrier[-1], betas.shape[0])
    inside = jnp.interp(even[1:-1], barrier, betas)
    return jnp.concatenate([betas[:1], inside.astype(betas.dtype), betas[-1:]])
