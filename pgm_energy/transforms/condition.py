"""Conditioning: some sites, or some units of a site, held at given values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._struct import Key, is_concrete, struct
from pgm_energy.configurations import interior_point
from pgm_energy.energy import EnergyModel
from pgm_energy.natural import Natural, Values, derive_natural_parameters, select
from pgm_energy.sites import OneHot, Real, Site
from pgm_energy.transforms._base import held_values, rebuild, require_model, wrapped

__all__ = ["Conditioned", "condition"]


@struct
class Conditioned(EnergyModel):
    """An energy model with some sites, or some units of a site, held at given values.

    Clamped units of a masked site stay in it, independent of everything else and pinned to their
    values with a law of known normaliser, so that log Z is that of the free units and rows with
    different patterns share one shape.
    """

    model: EnergyModel
    #: encoded values of sites that are given as a whole
    given: dict[str, jax.Array]
    #: encoded values, and 1 where free, of sites that are given in part
    partial: dict[str, jax.Array]
    free: dict[str, jax.Array]

    @property
    def title(self) -> str:
        given = [*self.given, *(f"part of {name}" for name in self.free)]
        return f"{self.model.title} given {', '.join(given)}"

    @property
    def sites(self) -> dict[str, Site]:
        return {k: s for k, s in self.model.sites.items() if k not in self.given}

    @property
    def data_sites(self) -> tuple[str, ...]:
        return tuple(name for name in self.model.data_sites if name not in self.given)

    def _merge(self, values: dict[str, jax.Array]) -> dict[str, jax.Array]:
        merged = {**values, **self.given}
        for name, value in self.partial.items():
            free = self._free_like(name)
            merged[name] = jnp.where(free > 0.5, values[name], value)
        return {name: merged[name] for name in self.model.sites}

    def _free_like(self, name: str) -> jax.Array:
        free = self.free[name]
        return free[..., None] if self.model.sites[name].event else free

    def _pin(self, name: str) -> tuple[Site, jax.Array, jax.Array]:
        """Site, natural parameters and normaliser (per unit) of the clamped units' own law."""
        site = self.model.sites[name]
        eta = site.pinned_parameter(self._raw(name))
        return site, eta, site.log_normalizer(eta)

    def _raw(self, name: str) -> jax.Array:
        site, value = self.model.sites[name], self.partial[name]
        return jnp.argmax(value, axis=-1) if site.event else value

    def energy(self, **values: jax.Array) -> jax.Array:
        energy = self.model.energy(**self._merge(values))
        for name, free in self.free.items():
            site, eta, normalizer = self._pin(name)
            inner = eta * values[name]
            if isinstance(site, Real):
                inner = inner - 0.5 * values[name] ** 2
            inner = inner.sum(axis=-1) if site.event else inner
            energy = energy + jnp.sum((1.0 - free) * (normalizer - inner))
        return energy

    def natural_parameters(
        self, site: str, values: Values, index: jax.Array | None = None
    ) -> Natural:
        if self.partial and not self.sites[site].is_discrete:
            natural = derive_natural_parameters(self, site, values, index)
            # large terms of clamped units cancel in the energy, but not in this part of it
            return natural._replace(rest=None) if site in self.partial else natural
        inner_values = self._inner_values(values)
        natural = self.model.natural_parameters(site, inner_values, index)
        if site in self.partial:
            family, pinned, _ = self._pin(site)
            free = select(self._free_like(site), family, index)
            eta = jnp.where(free > 0.5, natural.eta, select(pinned, family, index))
            natural = natural._replace(eta=eta)
        return natural._replace(rest=None) if self.partial else natural

    def evaluates_whole_site(self, site: str) -> bool:
        return self.model.evaluates_whole_site(site)

    def _inner_values(self, values: Values) -> dict[str, Any]:
        """Values of the model's own sites: what is given, and elsewhere what came."""
        inner_values = dict(values)
        for name, free in self.free.items():
            if isinstance(values[name], OneHot):
                merged = jnp.where(free[..., None] > 0.5, values[name].value, self.partial[name])
                inner_values[name] = OneHot(merged)
            else:  # not cast: a free energy is differentiated through this
                inner_values[name] = jnp.where(free > 0.5, values[name], self._raw(name))
        for name, given in self.given.items():
            inner_values[name] = self.model.sites[name].from_encoded(given)
        return inner_values

    def _raw_of(self, name: str, encoded: jax.Array) -> jax.Array:
        site = self.model.sites[name]
        return site.cast(jnp.argmax(encoded, axis=-1) if site.event else encoded)

    def clamp(self, values: Values) -> dict[str, Any]:
        full = {**values, **{name: self._raw_of(name, x) for name, x in self.given.items()}}
        for name, free in self.free.items():
            site = self.model.sites[name]
            full[name] = site.cast(jnp.where(free > 0.5, values[name], self._raw(name)))
        # the model inside may hold units of its own
        full = self.model.clamp(full)
        return {name: full[name] for name in values}

    def free_units(self, site: str) -> np.ndarray | None:
        inner = self.model.free_units(site)
        if site not in self.free:
            return inner
        own = np.asarray(self.free[site]) > 0.5
        return own if inner is None else own & inner

    def interactions(self, site: str) -> np.ndarray | None:
        return self.model.interactions(site)

    def block_couplings(self, site: str, index: jax.Array) -> jax.Array:
        couplings = self.model.block_couplings(site, index)
        if site not in self.free:
            return couplings
        free = self.free[site].reshape(-1)[index]
        if self.model.sites[site].event:
            return couplings * free[:, None, None, None] * free[None, None, :, None]
        return couplings * free[:, None] * free

    def project(self) -> Self:
        return rebuild(self, model=self.model.project())

    def _opened(self, rng_key: Key, fill: Callable[..., Any]) -> EnergyModel:
        return self.model._opened(rng_key, fill)

    def _generic(self, rng_key: Key, fill: Callable[..., Any]) -> Self:
        given, partial, free = self.given, self.partial, self.free
        rng = np.random.default_rng(5)
        if not is_concrete(given):  # values that are being traced: others will do
            point = interior_point(self.model.sites, rng)
            given = {name: jnp.asarray(point[name]) for name in given}
        if not is_concrete((partial, free)):  # then any pattern must be allowed for
            free = {name: jnp.ones(self.model.sites[name].shape) for name in free}
            partial = {name: jnp.zeros(self.model.sites[name].encoded_shape) for name in free}
        double = jax.tree.map(
            lambda x: jnp.asarray(x, jnp.result_type(float)), (given, partial, free)
        )
        return rebuild(
            self,
            model=wrapped(self.model, rng_key, fill),
            given=double[0],
            partial=double[1],
            free=double[2],
        )

    def decode(self, rng_key: Key, samples: Values) -> dict[str, jax.Array]:
        """Return samples of the original model's sites, the given values put back in."""
        values = self.clamp(samples)
        sites = self.model.sites
        lead = np.shape(next(iter(values.values()), ()))
        for name in self.sites:
            lead = np.shape(values[name])[: np.ndim(values[name]) - len(sites[name].shape)]
        for name, given in self.given.items():
            raw = self._raw_of(name, given)
            values[name] = jnp.broadcast_to(raw, lead + sites[name].shape)
        return self.model.decode(rng_key, {name: values[name] for name in sites})


def condition(
    model: EnergyModel, /, free: Mapping[str, Any] | None = None, **values: Any
) -> EnergyModel:
    """Return the model given values of some sites, or of some units.

    Parameters
    ----------
    model
        The energy model.
    free
        By site, a mask of the site's shape that is True where units stay free. Such a site keeps
        its shape, and rows with different masks can be mapped with ``jax.vmap``.
    **values
        Raw values by site. A site given as a whole disappears. A concrete floating array with
        NaN entries means ``free={site: isnan(values)}``.

    Returns
    -------
    EnergyModel
        With ``decode`` putting the given values back into samples.

    Raises
    ------
    ValueError
        On an unknown site, a wrong shape, a value outside the support, a mask without values,
        or when nothing stays free.

    Notes
    -----
    Exact: same energies, so log Z is the log of the sum over free units. Clamped units of a
    masked site are pinned to their values; in a real site under NUTS they move by themselves as
    standard normals, and ``decode`` puts their values back.

    Examples
    --------
    >>> import jax.numpy as jnp, numpy as np, pgm_energy as pgm
    >>> rbm = pgm.RBM(weights=jnp.ones((3, 2)))
    >>> list(pgm.condition(rbm, v=np.array([1, 0, 1])).sites)
    ['h']
    >>> list(pgm.condition(rbm, v=np.array([1, 0, np.nan])).sites)
    ['v', 'h']
    """
    require_model(model, "condition")
    sites = model.sites
    masks = dict(free or {})
    model.require_sites(values)
    model.require_sites(masks)
    given: dict[str, Any] = {}
    partial: dict[str, Any] = {}
    for name in masks:
        if name not in values:
            raise ValueError(
                f"free={{{name!r}: ...}} says which units stay free; give {name}=values for the "
                "rest"
            )
    for name, value in values.items():
        site = sites[name]
        if np.shape(value) != site.shape:
            hint = "; map over rows with jax.vmap" if np.ndim(value) > len(site.shape) else ""
            raise ValueError(
                f"site {name!r} has shape {site.shape}, got values of shape {np.shape(value)}{hint}"
            )
        concrete = not isinstance(value, jax.core.Tracer)
        if name not in masks and concrete:
            array = np.asarray(value)
            if array.dtype.kind == "f" and np.isnan(array).any():
                masks[name] = np.isnan(array)
        if name not in masks:
            site.check(name, value)
            given[name] = site.encode(value)
            continue
        mask = masks[name]
        if np.shape(mask) != site.shape:
            raise ValueError(f"free[{name!r}] must have shape {site.shape}, got {np.shape(mask)}")
        if concrete and not isinstance(mask, jax.core.Tracer):
            mask, array = np.asarray(mask, dtype=bool), np.asarray(value)
            array = np.where(mask, site.filler, array)
            site.check(name, array)
            if not mask.any():
                given[name] = site.encode(array)
                del masks[name]
                continue
            value = array
        else:
            value = jnp.where(jnp.asarray(mask) > 0.5, site.filler, value)
        masks[name] = jnp.asarray(mask, dtype=jnp.result_type(float))
        partial[name] = site.encode(value)
    if len(given) == len(sites):
        raise ValueError("nothing stays free: all sites are given; ask log_density for the value")
    if not values:
        return model
    out = Conditioned(model=model, given=given, partial=partial, free=masks)
    if is_concrete(out):
        _refuse_contradictions(out)
    return out


def _refuse_contradictions(conditioned: Conditioned) -> None:
    """Refuse values for units that the model inside holds at other values."""
    model = conditioned.model
    held = held_values(model)
    for name in (*conditioned.given, *conditioned.partial):
        inner = model.free_units(name)
        if inner is None:
            continue
        encoded = conditioned.given.get(name, conditioned.partial.get(name))
        assert encoded is not None
        asked = np.asarray(conditioned._raw_of(name, encoded))
        clamped = np.ones(inner.shape, bool)
        if name in conditioned.free:
            clamped = np.asarray(conditioned.free[name]) < 0.5
        wrong = np.argwhere(clamped & ~inner & (asked != held[name]))
        if len(wrong):
            place = tuple(int(i) for i in wrong[0])
            raise ValueError(
                f"{model.title} holds unit {place} of site {name!r} at "
                f"{held[name][place]}, got {asked[place]}: condition the original "
                "model to change it"
            )
