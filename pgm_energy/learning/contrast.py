"""The contrast that learning by samples goes down: data against chains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pgm_energy.energy import EnergyModel

__all__ = ["contrast", "mean_energy"]


def contrast(
    model: EnergyModel,
    data: Mapping[str, Any],
    weights: jax.Array,
    chains: Mapping[str, Any],
    chain_weights: jax.Array | None = None,
) -> jax.Array:
    """Return mean_data F - mean_chains F, nats: its gradient is that of the mean -log p(data).

    Parameters
    ----------
    model
        The energy model whose sites are those of ``data``: a free energy, or a model with its
        latent sites drawn. Differentiate with respect to it.
    data, chains
        Encoded values by site, rows and chains first.
    weights
        Row weights.
    chain_weights
        Weights of the chains; all alike unless given.

    Notes
    -----
    The gradient is exact where the chains are at equilibrium; the value is no likelihood.

    References
    ----------
    L. Younes (1989), Parametric inference for imperfectly observed Gibbsian fields.
    T. Tieleman (2008), Training restricted Boltzmann machines using approximations to the
    likelihood gradient.
    """
    return mean_energy(model, data, weights) - mean_energy(model, chains, chain_weights)


def mean_energy(
    model: EnergyModel, values: Mapping[str, Any], weights: jax.Array | None = None
) -> jax.Array:
    """Return the weighted mean energy of encoded rows, nats; all count alike unless given."""
    energies = jax.vmap(lambda row: model.energy(**row))(dict(values))
    if weights is None:
        return jnp.mean(energies)
    return jnp.sum(weights / jnp.maximum(jnp.sum(weights), 1e-12) * energies)
