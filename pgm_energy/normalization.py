"""Normalisation: an energy with its log Z added, so that its parameters may be random."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._struct import Key, static, struct
from pgm_energy.energy import EnergyModel
from pgm_energy.enumeration import StateSpace, chunk_size, log_sum, sum_out, summable
from pgm_energy.general_position import Fill
from pgm_energy.natural import Natural, Values
from pgm_energy.sites import Site
from pgm_energy.transforms import Marginal
from pgm_energy.transforms._base import rebuild, require_model, wrapped

__all__ = ["Normalized", "exact_sum", "normalize"]

#: Most states that are summed at every evaluation unless the user supplies log Z.
MAX_STATES = 2**16


@struct
class Normalized(EnergyModel):
    """An energy model with log Z added to its energy: ``E + log Z(parameters)``."""

    model: EnergyModel
    log_partition: Callable[[Any], Any] = static()

    @property
    def title(self) -> str:
        return f"{self.model.title}, normalised"

    @property
    def sites(self) -> dict[str, Site]:
        return self.model.sites

    @property
    def data_sites(self) -> tuple[str, ...]:
        return self.model.data_sites

    @property
    def known_log_partition(self) -> jax.Array:
        return jnp.zeros(())

    def _log_partition(self) -> jax.Array:
        return jnp.asarray(self.log_partition(self.model))

    def energy(self, **values: jax.Array) -> jax.Array:
        return self.model.energy(**values) + self._log_partition()

    def natural_parameters(
        self, site: str, values: Values, index: jax.Array | None = None
    ) -> Natural:
        natural = self.model.natural_parameters(site, values, index)
        if natural.rest is None:
            return natural
        return natural._replace(rest=natural.rest + self._log_partition())

    def block_couplings(self, site: str, index: jax.Array) -> jax.Array:
        return self.model.block_couplings(site, index)

    def interactions(self, site: str) -> np.ndarray | None:
        return self.model.interactions(site)

    def pair_couplings(self) -> tuple[np.ndarray, jax.Array] | None:
        return self.model.pair_couplings()

    def project(self) -> Self:
        return rebuild(self, model=self.model.project())

    def _generic(self, rng_key: Key, fill: Fill) -> Self:
        return rebuild(self, model=wrapped(self.model, rng_key, fill))

    def _opened(self, rng_key: Key, fill: Fill) -> EnergyModel:
        return self.model._opened(rng_key, fill)  # a constant is no structure

    def clamp(self, values: Values) -> dict[str, Any]:
        return self.model.clamp(values)

    def free_units(self, site: str) -> np.ndarray | None:
        return self.model.free_units(site)

    def decode(self, rng_key: Key, samples: Values) -> dict[str, jax.Array]:
        return self.model.decode(rng_key, samples)


@dataclasses.dataclass(frozen=True)
class _ExactSum:
    """log Z of the models of one structure, as a differentiable function; hashable."""

    summed: tuple[str, ...]
    space: StateSpace
    chunk: int

    def __call__(self, model: EnergyModel) -> jax.Array:
        reduced = sum_out(_whole(model), self.summed)
        return log_sum(reduced, space=self.space, chunk=self.chunk)

    def __repr__(self) -> str:
        return "exact sum"


def normalize(model: EnergyModel, log_partition: Callable[[Any], Any] | None = None) -> EnergyModel:
    """Return the model with log Z added to its energy, so that its parameters may be random.

    An unnormalised energy whose parameters have priors in a NumPyro model is refused: log Z
    changes with them. With it in the energy the posterior is right, for every sampler.

    Parameters
    ----------
    model
        The energy model.
    log_partition
        A function of the model (of this class, whatever its parameters) that returns its log Z,
        nats, a scalar that JAX can differentiate. None: the exact sum over all states.

    Returns
    -------
    EnergyModel
        The same law, with a ``known_log_partition`` of 0; a model that knows it comes back as it
        is.

    Raises
    ------
    TypeError
        If ``log_partition`` is a number: it would not follow the parameters.
    ValueError
        If it does not return a scalar; without one, if more than 2^16 states were to be summed, or
        a real site cannot be integrated in closed form.

    Notes
    -----
    As exact as the function, which is trusted; ``testing.check_energy_model`` holds it against
    enumeration on a small model. It is evaluated once for all rows of a plate, and with its
    gradient at every step of NUTS. The exact sum costs one energy per state that is left when
    sites of independent units are summed out in closed form, ``2^min(visible, hidden)`` for a
    restricted Boltzmann machine. Write the function at the top of a module: a new ``lambda`` in
    every call is a new structure each time.

    References
    ----------
    I. Murray and Z. Ghahramani (2004), Bayesian learning in undirected graphical models:
    approximate MCMC algorithms.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, pgm_energy as pgm
    >>> rows = jnp.array([[1, 1, 1], [-1, -1, -1], [1, 1, -1]])
    >>> def posterior():
    ...     coupling = numpyro.sample("coupling", dist.Normal(0.0, 1.0))
    ...     machine = pgm.BoltzmannMachine(
    ...         weights=coupling * (jnp.ones((3, 3)) - jnp.eye(3)), unit=pgm.Spin)
    ...     with numpyro.plate("rows", 3, dim=-2):
    ...         pgm.normalize(machine)(v=rows)
    >>> density, _ = numpyro.infer.util.log_density(posterior, (), {}, {"coupling": 0.0})
    >>> round(float(density - dist.Normal(0, 1).log_prob(0.0)), 4)  # 9 fair coins
    -6.2383
    """
    require_model(model, "normalize")
    if log_partition is not None and not callable(log_partition):
        raise TypeError(
            "log_partition must be a function of the model, so that log Z follows its parameters, "
            f"got {type(log_partition).__name__}; write normalize(model, lambda m: ...)"
        )
    if model.known_log_partition is not None:
        return model
    if log_partition is None:
        advice = "supply log Z, normalize(model, log_partition) with a function of the model"
        log_partition = exact_sum(model, MAX_STATES, advice)
    shape = jax.eval_shape(lambda m: jnp.asarray(log_partition(m)), model).shape
    if shape != ():
        raise ValueError(f"log_partition must return a scalar, got shape {shape}")
    return Normalized(model=model, log_partition=log_partition)


def _whole(model: EnergyModel) -> EnergyModel:
    """The model before sites were summed out: the same log Z, and a choice of what to sum."""
    while isinstance(model, Marginal):
        model = model.model
    return model


def exact_sum(model: EnergyModel, most: int, advice: str) -> Callable[[Any], jax.Array]:
    """Return log Z, nats, as a differentiable function of models of this structure; hashable.

    Parameters
    ----------
    model
        Any model of the structure; its parameters may be traced.
    most
        States, after sites are summed out in closed form, above which it is refused.
    advice
        What to do then, for the message.

    Raises
    ------
    ValueError
        On too many states, or a real site that cannot be integrated in closed form.
    """
    model = _whole(model)
    summed = summable(model, list(model.sites))
    space = StateSpace.of(model, [name for name in model.sites if name not in summed])
    if space.size > most:
        raise ValueError(
            f"{model.title} has 2^{math.log2(space.size):.1f} states ({space.describe()}), more "
            f"than the 2^{math.log2(most):.0f} that are summed at every evaluation: {advice}"
        )
    return _ExactSum(summed, space, chunk_size(sum_out(model, summed)))
