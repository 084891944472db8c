"""Chains as an ArviZ DataTree: named dimensions, energies, flip rates, frozen units."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import arviz as az
import jax
import numpy as np
import numpyro
import xarray as xr

from pgm_energy._checks import require_key
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.serialization import library_version
from pgm_energy.sites import Site

__all__ = ["build_datatree", "to_datatree"]

#: NumPyro's name of a statistic, and the name that ArviZ and its plots know it by. HMC's total
#: energy gives its name to the energy of the model, which every sampler has.
_RENAMED = {
    "num_steps": "n_steps",
    "accept_prob": "acceptance_rate",
    "adapt_state.step_size": "step_size",
    "energy": "hamiltonian",
}
#: Statistics with several numbers per draw, and the name of their dimension.
_VECTORS = {"betas": "replica", "swap_rate": "neighbours"}
#: Configurations evaluated at once when energies are asked for.
_ENERGY_CHUNK = 4096

Samples = dict[str, np.ndarray]


# ---- from a NumPyro run ------------------------------------------------------------------------


def to_datatree(
    mcmc: Any, model: EnergyModel | None = None, *, rng_key: Key | None = None
) -> xr.DataTree:
    """Return the draws of a NumPyro run as an ArviZ DataTree with named dimensions.

    Parameters
    ----------
    mcmc
        A ``numpyro.infer.MCMC`` that has run, with any kernel and any number of chains.
    model
        The energy model whose sites are wanted. Needed where the kernel samples a
        transformation of it (``to_datatree(mcmc, rbm, rng_key=key)`` after
        ``NUTS(relax(rbm))`` gives ``v`` and ``h`` instead of ``y``), or where the kernel's
        model is not an energy model itself.
    rng_key
        A JAX random key for ``decode``; needed where the sampled model is a transformation.

    Returns
    -------
    xarray.DataTree
        ``posterior`` with a variable per site, its dimensions named by the site;
        ``sample_stats`` with ``lp`` (log-density of what was sampled, nats, unnormalised),
        ``energy`` (E of the posterior's sites, nats), ``flip_rate_<site>`` (share of a discrete
        site's units that differ from the previous draw) and what the kernel collected
        (``diverging``, ``n_steps``, ``acceptance_rate``, ``round_trips``, ``swap_rate`` by pair of
        neighbours, ...); ``observed_data`` if sites were observed; ``frozen`` with a mask per site
        of units that never moved, by chain.

    Raises
    ------
    TypeError
        If the kernel's model is no energy model and none is given.
    ValueError
        If ``mcmc`` has not run, or its draws do not lead to the sites of ``model``.

    Notes
    -----
    Energies come from the run where it collected them (``extra_fields=("potential_energy",)``;
    ``BlockGibbs`` always does), else every draw is evaluated once. ESS and R-hat of a unit that
    never moved look perfect or are NaN, which is why such units have a group of their own; their
    number is also the attribute ``frozen_units`` of the variable. HMC's total energy, if
    collected, is called ``hamiltonian``.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, pgm_energy as pgm
    >>> from numpyro.infer import MCMC
    >>> rbm = pgm.RBM(weights=jnp.ones((3, 2)))
    >>> mcmc = MCMC(pgm.BlockGibbs(rbm), num_warmup=5, num_samples=10, num_chains=4,
    ...             chain_method="vectorized", progress_bar=False)
    >>> mcmc.run(jax.random.key(0))
    >>> tree = pgm.to_datatree(mcmc)
    >>> dict(tree.posterior.v.sizes)
    {'chain': 4, 'draw': 10, 'visible': 3}
    """
    if not all(hasattr(mcmc, name) for name in ("sampler", "last_state", "get_extra_fields")):
        raise TypeError(f"to_datatree takes a numpyro.infer.MCMC, got {type(mcmc).__name__}")
    if mcmc.last_state is None:
        raise ValueError("this MCMC has no draws yet: call mcmc.run(rng_key) first")
    sampled = mcmc.sampler.model
    if model is not None and not isinstance(model, EnergyModel):
        raise TypeError(f"model must be an energy model, got {type(model).__name__}")
    if not isinstance(sampled, EnergyModel):
        if model is None:
            raise TypeError(
                f"the kernel's model is {type(sampled).__name__}, not an energy model: give the "
                "energy model, to_datatree(mcmc, model), or use arviz.from_numpyro(mcmc)"
            )
        sampled = model
    samples = _to_numpy(mcmc.get_samples(group_by_chain=True))
    fields = mcmc.get_extra_fields(group_by_chain=True)
    observed: Samples = {}
    if any(name not in samples for name in sampled.sites):
        observed = _observed_values(mcmc, sampled)
    attrs = {"sampler": type(mcmc.sampler).__name__, "num_warmup": mcmc.num_warmup}
    return build_datatree(
        samples, fields, sampled, model, rng_key=rng_key, observed=observed, attrs=attrs
    )


def _to_numpy(samples: Mapping[str, Any]) -> Samples:
    return {name: np.asarray(value) for name, value in samples.items()}


def _observed_values(mcmc: Any, model: EnergyModel) -> Samples:
    """Values of the sites that the run observed; ArviZ knows where NumPyro keeps them."""
    tree = az.from_numpyro(mcmc)
    if "observed_data" not in tree.children:
        return {}
    data = tree["observed_data"].data_vars
    return {name: data[name].values for name in model.sites if name in data}


def build_datatree(
    samples: Samples,
    fields: Mapping[str, Any],
    sampled: EnergyModel,
    model: EnergyModel | None = None,
    *,
    rng_key: Key | None = None,
    observed: Mapping[str, np.ndarray] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> xr.DataTree:
    """Return a DataTree from draws ``(chain, draw, ...)`` of ``sampled``, at ``model``'s sites.

    ``fields`` are statistics of the kernel by NumPyro's names; see :func:`to_datatree`.
    """
    observed = dict(observed or {})
    samples = {name: _stored(value, sampled.sites.get(name)) for name, value in samples.items()}
    stats = _statistics(fields)
    energy = stats.pop("potential_energy", None)
    if energy is None:
        energy = _energies(sampled, {**samples, **observed})
    if energy is not None:
        stats.setdefault("lp", -energy)
    if model is not None and model is not sampled:
        samples = decode_to(model, sampled, {**samples, **observed}, rng_key)
        observed = {}
        energy = _energies(model, samples)
    if energy is not None:
        stats["energy"] = energy
    sites = (model or sampled).sites
    for name, site in sites.items():
        if site.is_discrete and name in samples:
            stats[f"flip_rate_{name}"] = _flip_rate(samples[name])
    return _assemble(samples, stats, observed, sites, model or sampled, attrs or {})


def _statistics(fields: Mapping[str, Any]) -> Samples:
    """Statistics with a known shape per draw, under the names that ArviZ knows."""
    stats = {}
    for name, value in fields.items():
        if hasattr(value, "shape") and len(value.shape) == 2 + (name in _VECTORS):
            new = _RENAMED.get(name, name.replace(".", "_"))
            stats[new] = np.asarray(value)
    return stats


def _stored(value: np.ndarray, site: Site | None) -> np.ndarray:
    """Draws in the storage type of their site: NumPyro's kernels keep bits in int32."""
    return value.astype(site.dtype) if site is not None and site.is_discrete else value


def _flip_rate(values: np.ndarray) -> np.ndarray:
    """Share of units that differ from the previous draw; NaN for the first one."""
    rate = np.full(values.shape[:2], np.nan, np.float32)
    moved = values[:, 1:] != values[:, :-1]
    rate[:, 1:] = moved.reshape(*moved.shape[:2], -1).mean(axis=-1)
    return rate


def energies(model: EnergyModel, samples: Mapping[str, Any]) -> np.ndarray:
    """Return E (nats) of raw samples with any common leading shape, some thousand at a time."""
    name, site = next(iter(model.sites.items()))
    lead = np.shape(samples[name])[: np.ndim(samples[name]) - len(site.shape)]
    count = math.prod(lead)
    flat = {k: np.reshape(samples[k], (count, *s.shape)) for k, s in model.sites.items()}
    return np.asarray(_mapped_energy(model, flat)).reshape(lead)


@jax.jit
def _mapped_energy(model: EnergyModel, flat: dict[str, jax.Array]) -> jax.Array:
    return jax.lax.map(
        lambda raw: model.energy(**model.encode(raw)), flat, batch_size=_ENERGY_CHUNK
    )


def _energies(model: EnergyModel, values: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Energy of every draw, rows of a plate added up; None where sites were not stored."""
    sites = model.sites
    if any(name not in values for name in sites):
        return None
    full: Samples = {}
    lead = max((_lead(values[name], site) for name, site in sites.items()), key=len)
    for name, site in sites.items():
        own = _lead(values[name], site)
        value = values[name]
        if own[:2] != lead[:2]:  # observed: one value for all draws
            value = value.reshape((1,) * (len(lead) - len(own)) + value.shape)
        full[name] = np.broadcast_to(value, lead + site.shape)
    energy = energies(model, full)
    return energy.reshape(*lead[:2], -1).sum(axis=-1)


def _lead(value: np.ndarray, site: Site) -> tuple[int, ...]:
    return value.shape[: value.ndim - len(site.shape)]


def decode_to(
    model: EnergyModel, sampled: EnergyModel, samples: Samples, rng_key: Key | None
) -> Samples:
    """Return draws of ``sampled``, a transformation, as draws of ``model``'s sites.

    Raises
    ------
    ValueError
        If there is no key, or decoding leads to other sites than the model's.
    """
    if rng_key is None:
        raise ValueError(
            f"draws of {type(sampled).__name__} are decoded to the sites of "
            f"{type(model).__name__} at random: give a key, to_datatree(mcmc, model, rng_key=key)"
        )
    decoded = jax.jit(lambda key, values, twin: twin.decode(key, values))(
        require_key(rng_key), {name: samples[name] for name in sampled.sites}, sampled
    )
    return at_sites(model, sampled, _to_numpy(decoded))


def at_sites(model: EnergyModel, sampled: EnergyModel, decoded: Samples) -> Samples:
    """Return the model's sites out of decoded draws ``(chain, draw, ...)``, checked.

    Raises
    ------
    ValueError
        If a site is not there, or has another shape or support.
    """
    require_sites_of(model, sampled, {name: value.shape[2:] for name, value in decoded.items()})
    for name, site in model.sites.items():
        site.check(name, decoded[name])
    return {name: decoded[name] for name in model.sites}


def require_sites_of(
    model: EnergyModel, sampled: EnergyModel, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse draws whose shapes, by site, do not hold the model's sites.

    Raises
    ------
    ValueError
        Naming the first site that is missing or of another shape.
    """
    for name, site in model.sites.items():
        if shapes.get(name) != site.shape:
            found = ", ".join(f"{other!r} of shape {shape}" for other, shape in shapes.items())
            raise ValueError(
                f"draws of {type(sampled).__name__} lead to {found}; {type(model).__name__} has "
                f"a site {name!r} of shape {site.shape}: sample the model itself or a "
                "transformation of it"
            )


# ---- assembling --------------------------------------------------------------------------------


def dimension_names(sites: Mapping[str, Site]) -> dict[str, tuple[str, ...]]:
    """Return names of the dimensions of every site, unique where lengths differ.

    A name that is missing, taken by a variable or by ``chain`` and ``draw``, repeated inside a
    site, or used with another length before, becomes ``<site>_dim_<i>``.
    """
    lengths: dict[str, int] = {}
    out = {}
    for name, site in sites.items():
        names: list[str] = []
        for i, length in enumerate(site.shape):
            dim = site.dims[i] if site.dims else ""
            taken = dim in ("", "chain", "draw", *sites, *names)
            if taken or lengths.get(dim, length) != length:
                dim = f"{name}_dim_{i}"
            lengths[dim] = length
            names.append(dim)
        out[name] = tuple(names)
    return out


def _assemble(
    samples: Samples,
    stats: Samples,
    observed: Samples,
    sites: Mapping[str, Site],
    model: EnergyModel,
    attrs: Mapping[str, Any],
) -> xr.DataTree:
    names = dimension_names(sites)
    posterior: dict[str, xr.Variable] = {}
    frozen: dict[str, xr.Variable] = {}
    for name in [*(k for k in sites if k in samples), *(k for k in samples if k not in sites)]:
        site, value = sites.get(name), samples[name]
        rank = 2 + (len(site.shape) if site is not None else value.ndim - 2)
        rows = tuple(f"{name}_row_{i}" for i in range(value.ndim - rank))
        own = (
            names[name]
            if site is not None
            else tuple(f"{name}_dim_{i}" for i in range(value.ndim - 2))
        )
        mask = (value == value[:, :1]).all(axis=1)
        count = int(mask.all(axis=0).sum())
        posterior[name] = xr.Variable(("chain", "draw", *rows, *own), value)
        posterior[name].attrs["frozen_units"] = count
        frozen[name] = xr.Variable(("chain", *rows, *own), mask)
    groups = {
        "posterior": _dataset(posterior),
        "sample_stats": _dataset(
            {
                name: xr.Variable(("chain", "draw", _VECTORS.get(name, ""))[: value.ndim], value)
                for name, value in stats.items()
            }
        ),
        "frozen": _dataset(frozen),
    }
    if observed:
        groups["observed_data"] = _dataset(
            {
                name: xr.Variable(
                    (
                        *(f"{name}_row_{i}" for i in range(value.ndim - len(sites[name].shape))),
                        *names[name],
                    ),
                    value,
                )
                for name, value in observed.items()
            }
        )
    for unit in ("lp", "energy"):
        if unit in groups["sample_stats"]:
            groups["sample_stats"][unit].attrs["units"] = "nats"
    tree = xr.DataTree.from_dict(groups)
    tree.attrs.update(
        model=repr(model),
        inference_library="numpyro",
        inference_library_version=numpyro.__version__,
        pgm_energy_version=library_version(),
        **attrs,
    )
    return tree


def _dataset(variables: Mapping[str, xr.Variable]) -> xr.Dataset:
    sizes: dict[Any, int] = {}
    for variable in variables.values():
        sizes.update(variable.sizes)
    return xr.Dataset(dict(variables), coords={dim: np.arange(n) for dim, n in sizes.items()})
