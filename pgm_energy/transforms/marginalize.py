"""Marginalisation: one site summed or integrated out exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._struct import Key, static, struct
from pgm_energy.energy import EnergyModel
from pgm_energy.natural import Natural, Values, derive_natural_parameters
from pgm_energy.probe import require_block
from pgm_energy.sites import Site
from pgm_energy.transforms._base import map_leading, rebuild, require_model, wrapped

__all__ = ["Marginal", "marginalize"]


@struct
class Marginal(EnergyModel):
    """An energy model with one site summed out: its energy is the free energy."""

    model: EnergyModel
    site: str = static()
    coupled: bool = static(default=False)

    @property
    def title(self) -> str:
        return f"{self.model.title} without {self.site}"

    @property
    def sites(self) -> dict[str, Site]:
        return {name: site for name, site in self.model.sites.items() if name != self.site}

    @property
    def data_sites(self) -> tuple[str, ...]:
        return tuple(name for name in self.model.data_sites if name != self.site) or tuple(
            self.sites
        )

    @property
    def known_log_partition(self) -> jax.Array | None:
        return self.model.known_log_partition  # this transformation keeps it

    def energy(self, **values: jax.Array) -> jax.Array:
        site = self.model.sites[self.site]
        inner = self._inner_values(values)
        natural = self._natural(inner)
        if natural.rest is not None:
            return natural.rest - jnp.sum(site.log_normalizer(natural.eta, natural.precision))
        # F(rest) = E(x, rest) + log p(x given rest) at any x
        log_prob = site.log_prob(inner[self.site], natural.eta, natural.precision)
        return self.model.energy(**self.model.encode(inner)) + log_prob

    def _inner_values(self, encoded: Values) -> dict[str, Any]:
        """Raw values of the model's sites, the summed one at a reference.

        Its own value does not enter (that is what was verified), so any will do.
        """
        sites = self.model.sites
        fill = {name: jnp.full(site.shape, site.filler) for name, site in sites.items()}
        values = {name: sites[name].from_encoded(encoded[name]) for name in self.sites}
        reference = self.model.clamp(fill)[self.site]
        if not sites[self.site].is_discrete:  # stored in single precision, used in this one
            reference = jnp.asarray(reference, jnp.result_type(float))
        values[self.site] = reference
        return {name: values[name] for name in sites}

    def _natural(self, inner: Values) -> Natural:
        if self.coupled:
            return derive_natural_parameters(self.model, self.site, inner, coupled=True)
        return self.model.natural_parameters(self.site, inner)

    def project(self) -> Self:
        return rebuild(self, model=self.model.project())

    def _opened(self, rng_key: Key, fill: Callable[..., Any]) -> EnergyModel:
        return rebuild(self, model=self.model._opened(rng_key, fill))

    def _generic(self, rng_key: Key, fill: Callable[..., Any]) -> Self:
        return rebuild(self, model=wrapped(self.model, rng_key, fill))

    def clamp(self, values: Values) -> dict[str, Any]:
        return _inner_clamp(self.model, self.site, values)

    def free_units(self, site: str) -> np.ndarray | None:
        return self.model.free_units(site)

    def conditional_mean(self, values: Values) -> jax.Array:
        """Return E[T(x_site) given the rest] of the site that was summed out, encoded shape."""
        natural = self._natural(self._inner_values(self.encode(values)))
        return self.model.sites[self.site].mean(natural.eta, natural.precision)

    def draw(self, rng_key: Key, values: Values) -> jax.Array:
        """Return raw values of the site that was summed out, drawn given the rest."""
        site = self.model.sites[self.site]
        natural = self._natural(self._inner_values(self.encode(values)))
        return site.cast(site.sample(rng_key, natural.eta, natural.precision))

    def decode(self, rng_key: Key, samples: Values) -> dict[str, jax.Array]:
        """Return samples of the original sites: the site is drawn from its conditional."""

        def draw(key: jax.Array, values: Any) -> Any:
            kept = {name: self.sites[name].cast(value) for name, value in values.items()}
            return {**kept, self.site: self.draw(key, values)}

        first, second = jax.random.split(rng_key)
        name = next(iter(self.sites))
        out = map_leading(draw, first, samples, self.sites[name], name)
        return self.model.decode(second, {name: out[name] for name in self.model.sites})


def _inner_clamp(model: EnergyModel, missing: str, values: Values) -> dict[str, Any]:
    site = model.sites[missing]
    clamped = model.clamp({**values, missing: jnp.zeros(site.shape, site.dtype)})
    return {name: clamped[name] for name in values}


def marginalize(model: EnergyModel, site: str) -> EnergyModel:
    """Return the model with one site summed (or integrated) out; its energy is the free energy.

    Parameters
    ----------
    model
        The energy model.
    site
        Name of the site to sum out; its units must not interact (real units may: they are
        integrated as one normal).

    Raises
    ------
    ValueError
        On an unknown or the only site, on units that interact (naming them), and on a real site
        that is not normal given the rest.

    Notes
    -----
    Exact: ``F = E_0 - sum A(eta)``; log Z is unchanged. One evaluation costs one gradient of the
    energy. What is left is in general not affine: NUTS for real sites, energy differences for
    discrete ones. ``decode`` draws the site back from its conditional.

    Examples
    --------
    >>> import jax.numpy as jnp, pgm_energy as pgm
    >>> rbm = pgm.RBM(weights=jnp.zeros((2, 3)))
    >>> free = pgm.marginalize(rbm, "h")
    >>> round(float(free.log_density({"v": jnp.array([0, 1])})), 4)  # 3 log 2
    2.0794
    """
    require_model(model, "marginalize")
    model.require_sites([site])
    if len(model.sites) == 1:
        raise ValueError(f"{site!r} is the only site: its sum is log_partition(model)")
    return Marginal(model=model, site=site, coupled=require_block(model, site, None))
