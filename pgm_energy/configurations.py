"""Random raw configurations that reach the corners, where wrong energies show."""

from __future__ import annotations

from typing import Any

import numpy as np

from pgm_energy.sites import Site

__all__ = ["interior_point", "joint_bits", "random_values", "visit_all_states"]

Raw = dict[str, Any]


def random_values(sites: dict[str, Site], num: int, rng: np.random.Generator) -> Raw:
    """Return ``num`` random raw configurations that reach the corners.

    The frequencies of a site's states are drawn per probe from a Dirichlet(1/2), so that nearly
    constant configurations occur; the scale of real sites is log-uniform from 0.1 to 1000.
    """
    values = {}
    for name, site in sites.items():
        if site.is_discrete:
            weights = rng.dirichlet(np.full(len(site.states), 0.5), size=num)
            edges = np.cumsum(weights, axis=-1)[:, :-1].astype(np.float32)
            uniform = rng.random((num, site.size), dtype=np.float32)
            state = np.zeros((num, site.size), dtype=np.int32)
            for k in range(edges.shape[1]):
                state += uniform > edges[:, k, None]
            values[name] = site.states[state].reshape(num, *site.shape)
        else:
            scale = 10.0 ** rng.uniform(-1.0, 3.0, size=(num,) + (1,) * len(site.shape))
            values[name] = scale * rng.standard_normal((num, *site.shape))
    return values


def joint_bits(sites: dict[str, Site]) -> float:
    """Binary logarithm of the number of joint states of the discrete sites."""
    return float(sum(s.size * np.log2(len(s.states)) for s in sites.values() if s.is_discrete))


def visit_all_states(sites: dict[str, Site], values: Raw) -> None:
    """Overwrite with every joint state, in turn, where there are not more states than probes."""
    num = len(next(iter(values.values())))
    cards = [len(s.states) for s in sites.values() if s.is_discrete for _ in range(s.size)]
    if not cards or joint_bits(sites) > np.log2(num) + 1e-9:
        return
    digits = np.stack(np.unravel_index(np.arange(num) % int(np.prod(cards)), cards), axis=-1)
    start = 0
    for name, site in sites.items():
        if site.is_discrete:
            chosen = digits[:, start : start + site.size]
            values[name] = site.states[chosen].reshape(num, *site.shape)
            start += site.size


def interior_point(sites: dict[str, Site], rng: np.random.Generator) -> Raw:
    """Return encoded values inside the hull of the support, where no product vanishes."""
    point = {}
    for name, site in sites.items():
        if not site.is_discrete:
            point[name] = rng.standard_normal(site.shape)
        elif site.event:
            point[name] = rng.dirichlet(np.ones(site.event[0]), size=site.shape)
        else:
            low = float(site.states[0])
            point[name] = rng.uniform(low, 1.0, site.shape)
    return point
