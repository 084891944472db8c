"""Swendsen-Wang: clusters of units that agree move as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pgm_energy import _random
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.kernels.updates import share_moved
from pgm_energy.natural import Values
from pgm_energy.pairwise import ROUNDED, Agreements, Pairs, pairs_of

__all__ = [
    "SwendsenWangInfo",
    "SwendsenWangKernel",
    "connected_components",
    "swendsen_wang_kernel",
]


class SwendsenWangInfo(NamedTuple):
    """What one sweep leaves behind for somebody to look at.

    Attributes
    ----------
    energy
        E of the new configuration, nats; NaN where the couplings are not of the form that
        clusters need (only possible for parameters that were not there at construction).
    flip_rate
        Share of units that changed, by site.
    num_clusters
        Number of clusters.
    """

    energy: jax.Array
    flip_rate: dict[str, jax.Array]
    num_clusters: jax.Array


@dataclasses.dataclass(frozen=True)
class SwendsenWangKernel:
    """The pure Swendsen-Wang transition. Make one with :func:`swendsen_wang_kernel`.

    Attributes
    ----------
    pairs
        Verified structure: the units and the edges between them.
    """

    pairs: Pairs

    def __call__(
        self, rng_key: Key, values: Values, model: EnergyModel
    ) -> tuple[dict[str, jax.Array], SwendsenWangInfo]:
        """Return the configuration after one sweep over all clusters, and what happened.

        Parameters
        ----------
        rng_key
            A JAX random key.
        values
            Raw values of every site, one configuration.
        model
            The energy model; new parameters of the same structure do not recompile.
        """
        return self.sweep(rng_key, values, model, self.numbers(model))

    def numbers(self, model: EnergyModel) -> Agreements:
        """Return the strengths and fields that :meth:`sweep` needs.

        Raises
        ------
        ValueError
            If the model has other sites than the one this kernel was made for.
        """
        if tuple(model.sites.items()) != self.pairs.sites:
            raise ValueError(
                f"this kernel was made for {self.pairs.owner} with sites "
                f"{dict(self.pairs.sites)}; {type(model).__name__} has {model.sites}: make a new "
                "one with swendsen_wang_kernel(model)"
            )
        return self.pairs.agreements(model)

    def sweep(
        self,
        rng_key: Key,
        values: Values,
        model: EnergyModel,
        numbers: Agreements,
        held: jax.Array | None = None,
    ) -> tuple[dict[str, jax.Array], SwendsenWangInfo]:
        """Return the configuration after one sweep, with the numbers of the model at hand.

        Parameters
        ----------
        rng_key, values, model
            As for a call.
        numbers
            What :meth:`numbers` returns.
        held
            ``(n,)``, True for units that keep their values (observed ones): clusters with such a
            unit stay.
        """
        bond_key, shift_key = _random.split(rng_key, 2)
        old = model.clamp(values)
        bonds = self._bonds(bond_key, self.pairs.states(old), numbers)
        new, labels = self._shifted(shift_key, old, bonds, model, numbers, held)
        energy = model.energy(**model.encode(new))
        flips = {
            name: share_moved(jnp.asarray(old[name]), new[name]) for name, _ in self.pairs.sites
        }
        count = jnp.sum(labels == jnp.arange(labels.shape[0]))
        return new, SwendsenWangInfo(jnp.where(self._valid(numbers), energy, jnp.nan), flips, count)

    def augment(self, rng_key: Key, values: Values, model: EnergyModel) -> dict[str, jax.Array]:
        """Return ``{"bonds": ...}``, ``(m,)`` True where an edge has one, given the values.

        Notes
        -----
        Exact values and these bonds have the joint law of Edwards and Sokal; :meth:`move` leaves
        it alone. A call is the one after the other.
        """
        states = self.pairs.states(model.clamp(values))
        return {"bonds": self._bonds(rng_key, states, self.numbers(model))}

    def move(
        self, rng_key: Key, values: Values, auxiliary: Mapping[str, jax.Array], model: EnergyModel
    ) -> dict[str, jax.Array]:
        """Return new values given the bonds: each cluster in a state of its own law."""
        bonds, numbers = auxiliary["bonds"], self.numbers(model)
        return self._shifted(rng_key, model.clamp(values), bonds, model, numbers)[0]

    def _bonds(self, rng_key: Key, states: jax.Array, numbers: Agreements) -> jax.Array:
        prob = self.bond_prob(states, numbers)
        return _random.uniform(rng_key, prob.shape) < prob

    def _shifted(
        self,
        rng_key: Key,
        values: Values,
        bonds: jax.Array,
        model: EnergyModel,
        numbers: Agreements,
        held: jax.Array | None = None,
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """New values given bonds, and the cluster of every unit."""
        states, labels = self.pairs.states(values), self.labels(bonds)
        logits = self.shift_logits(states, labels, numbers, held)
        shift = _draw(rng_key, logits)[labels]
        return model.clamp(self.pairs.values((states + shift) % self.pairs.num_states)), labels

    def bond_prob(self, states: jax.Array, numbers: Agreements) -> jax.Array:
        """Return the probability of a bond on every edge, ``(m,)``: 0 where it is not satisfied.

        Notes
        -----
        A negative strength, possible with two states, is satisfied by disagreement.
        """
        first, second = self.pairs.edges.array.T
        agree = states[first] == states[second]
        satisfied = agree == (numbers.strengths > 0.0)
        return jnp.where(satisfied, -jnp.expm1(-jnp.abs(numbers.strengths)), 0.0)

    def labels(self, bonds: jax.Array) -> jax.Array:
        """Return the cluster of every unit, ``(n,)``: the number of its first unit."""
        return connected_components(self.pairs.edges.array, bonds, self.pairs.num_units)

    def shift_logits(
        self,
        states: jax.Array,
        labels: jax.Array,
        numbers: Agreements,
        held: jax.Array | None = None,
    ) -> jax.Array:
        """Return the log-probabilities, up to a constant, of every shift of a cluster, ``(n, K)``.

        Notes
        -----
        A shift by k takes each unit of a cluster from state s to s + k modulo K, which keeps
        agreements (and with two states disagreements); its weight is the product of the units'
        fields there. Rows that are no cluster's first unit are not used.
        """
        count = self.pairs.num_states
        places = (states[:, None] + jnp.arange(count)) % count
        fields = jnp.take_along_axis(numbers.fields, places, axis=1)
        gain = fields - fields[:, :1]
        logits = jnp.zeros_like(gain).at[labels].add(gain)
        if held is not None:
            stays = jnp.zeros(held.shape, bool).at[labels].max(held)
            logits = jnp.where(stays[:, None] & (jnp.arange(count) > 0), -jnp.inf, logits)
        return logits

    def _valid(self, numbers: Agreements) -> jax.Array:
        scale = jnp.maximum(1.0, jnp.max(jnp.abs(numbers.strengths), initial=0.0))
        valid = numbers.misfit <= ROUNDED * scale
        if self.pairs.num_states > 2:
            valid &= jnp.min(numbers.strengths, initial=0.0) >= -ROUNDED * scale
        return valid


def swendsen_wang_kernel(model: EnergyModel) -> SwendsenWangKernel:
    """Return the pure Swendsen-Wang kernel ``(rng_key, values, model) -> (values, info)``.

    Parameters
    ----------
    model
        A pairwise model: units of two states with couplings of either sign (Ising, Boltzmann
        machines, RBMs without real units), or of more states with couplings that reward
        agreement (Potts).

    Raises
    ------
    TypeError
        If ``model`` is no energy model.
    ValueError
        If it is not pairwise, its units have different numbers of states, or its couplings are
        of another form.

    Notes
    -----
    Exact, fields included: bonds fall on satisfied edges with probability 1 - exp(-strength), and
    each cluster gets a new state from the product of its units' fields. Fast where couplings are
    strong and not frustrated and fields are weak; with frustration or strong fields it is right
    but not faster than single units. Cost: some passes over the edges, about as many as the
    logarithm of the largest cluster's diameter.

    References
    ----------
    R. Swendsen and J.-S. Wang (1987), Nonuniversal critical dynamics in Monte Carlo simulations.
    R. Edwards and A. Sokal (1988), Generalization of the Fortuin-Kasteleyn-Swendsen-Wang
    representation and Monte Carlo algorithm, for the joint law of states and bonds.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, pgm_energy as pgm
    >>> lattice = pgm.ising_lattice((4, 4), coupling=0.4)
    >>> kernel = swendsen_wang_kernel(lattice)
    >>> start = {"v": jnp.ones((4, 4), jnp.int8)}
    >>> values, info = jax.jit(kernel)(jax.random.key(0), start, lattice)
    >>> values["v"].shape
    (4, 4)
    """
    return SwendsenWangKernel(pairs_of(model, "SwendsenWang"))


def connected_components(edges: Any, bonds: jax.Array, num_units: int) -> jax.Array:
    """Return the smallest unit number in each unit's component, ``(num_units,)``.

    Parameters
    ----------
    edges
        ``(m, 2)`` pairs of unit numbers.
    bonds
        ``(m,)``, True for the edges that connect.
    num_units
        Number of units.

    Notes
    -----
    Every round hooks the root of one end of a bond to the smaller root of the other and halves
    the paths to the roots (pointer jumping), so rounds grow with the logarithm of the longest
    path. Labels only fall, and never leave the component; where no round changes them, bonds
    have equal labels at both ends.

    References
    ----------
    Y. Shiloach and U. Vishkin (1982), An O(log n) parallel connectivity algorithm.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> bonds = jnp.array([True, False, True])
    >>> connected_components(jnp.array([[0, 1], [1, 2], [2, 3]]), bonds, 4).tolist()
    [0, 0, 2, 2]
    """
    first, second = jnp.asarray(edges, jnp.int32).reshape(-1, 2).T

    def more(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        return carry[1]

    def hook(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        labels, _ = carry
        one, other = labels[first], labels[second]
        low = jnp.where(bonds, jnp.minimum(one, other), num_units)
        new = labels.at[one].min(low).at[other].min(low)
        new = new[new]
        new = new[new]
        return new, jnp.any(new != labels)

    start = jnp.arange(num_units, dtype=jnp.int32)
    return jax.lax.while_loop(more, hook, (start, jnp.asarray(True)))[0]


def _draw(rng_key: jax.Array, logits: jax.Array) -> jax.Array:
    """One shift per row; of two shifts the second by one comparison."""
    if logits.shape[1] > 2:
        noise = _random.gumbel(rng_key, logits.shape)
        return jnp.argmax(logits + noise, axis=1).astype(jnp.int32)
    uniform = _random.uniform(rng_key, logits.shape[:1])
    return _random.decide(uniform, logits[:, 1] - logits[:, 0]).astype(jnp.int32)
