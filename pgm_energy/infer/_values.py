"""What a run is given: values of observed sites, and values to start from, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from pgm_energy.energy import EnergyModel

__all__ = ["observed_values", "start_values"]


def observed_values(
    kernel: str, model: EnergyModel, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None
) -> dict[str, jax.Array]:
    """Return the values of observed sites (not None), one configuration, in storage types.

    Raises
    ------
    TypeError
        On a positional argument.
    ValueError
        On an unknown site, a wrong shape, or a value outside the support.
    """
    sites = model.sites
    if args:
        raise TypeError(
            f"{type(model).__name__} takes observed sites by name, got {len(args)} positional "
            f"argument(s); write for example mcmc.run(rng_key, {next(iter(sites))}=x)"
        )
    observed = model.check_observed(kwargs or {})
    for name, value in observed.items():
        if np.shape(value) != sites[name].shape:
            raise ValueError(
                f"site {name!r} has shape {sites[name].shape}, got observed values of shape "
                f"{np.shape(value)}; {kernel} samples one configuration: map over rows, or use "
                "impute"
            )
    if observed and len(observed) == len(sites):
        raise ValueError("nothing is left to sample: every site is observed")
    return {name: sites[name].cast(value) for name, value in observed.items()}


def start_values(
    model: EnergyModel, init_params: Any, fixed: Mapping[str, Any], lead: tuple[int, ...]
) -> dict[str, Any]:
    """Return the values to start from, ``lead`` (chains) first, in storage types.

    Raises
    ------
    TypeError
        If they are no dict.
    ValueError
        On a site that is unknown or observed, a wrong shape, or a value outside the support.
    """
    if init_params is None:
        return {}
    if not isinstance(init_params, Mapping):
        raise TypeError(
            f"init_params is a dict of values by site, got {type(init_params).__name__}"
        )
    model.check_observed(init_params)
    given = {}
    for name, value in init_params.items():
        if name in fixed:
            raise ValueError(f"init_params gives site {name!r}, which is observed")
        expected = lead + model.sites[name].shape
        if np.shape(value) != expected:
            raise ValueError(
                f"init_params[{name!r}] must have shape {expected}"
                f"{' (chains first)' if lead else ''}, got {np.shape(value)}"
            )
        given[name] = model.sites[name].cast(value)
    return given
