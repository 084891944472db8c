"""Tilting: soft evidence, a term linear in T(x) (real units: and quadratic) on top of an energy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._struct import Key, is_concrete, struct
from pgm_energy.energy import EnergyModel
from pgm_energy.natural import Natural, Values, select
from pgm_energy.sites import Real, Site
from pgm_energy.transforms._base import rebuild, require_model, wrapped
from pgm_energy.transforms.condition import Conditioned

__all__ = ["Tilted", "tilt"]


@struct
class Tilted(EnergyModel):
    """An energy model with ``- <field, T(x)> + precision x^2 / 2`` added to its energy."""

    model: EnergyModel
    fields: dict[str, jax.Array]
    precisions: dict[str, jax.Array]

    @property
    def title(self) -> str:
        return f"{self.model.title} tilted at {', '.join(self.fields | self.precisions)}"

    @property
    def sites(self) -> dict[str, Site]:
        return self.model.sites

    @property
    def data_sites(self) -> tuple[str, ...]:
        return self.model.data_sites

    def _added(self, name: str, encoded: jax.Array, index: jax.Array | None = None) -> jax.Array:
        """What the tilt of one site, or of some of its units, adds to the energy, nats."""
        site, added = self.sites[name], jnp.zeros(())
        if name in self.fields:
            added = added - jnp.sum(select(self.fields[name], site, index) * encoded)
        if name in self.precisions:
            added += 0.5 * jnp.sum(select(self.precisions[name], site, index) * encoded**2)
        return added

    def energy(self, **values: jax.Array) -> jax.Array:
        return self.model.energy(**values) + sum(self._added(k, x) for k, x in values.items())

    def evaluates_whole_site(self, site: str) -> bool:
        return self.model.evaluates_whole_site(site)

    def natural_parameters(
        self, site: str, values: Values, index: jax.Array | None = None
    ) -> Natural:
        """Return the model's own natural parameters, shifted: by its own fast way."""
        eta, precision, rest = self.model.natural_parameters(site, values, index)
        family = self.sites[site]
        if site in self.fields:
            eta = eta + select(self.fields[site], family, index)
        if site in self.precisions:
            more = select(self.precisions[site], family, index)
            assert precision is not None
            matrix = Real.is_matrix(eta, precision)
            precision = precision + (jnp.diag(more.reshape(-1)) if matrix else more)
        if rest is not None:
            encoded = self.encode(values)
            rest = rest + sum(self._added(name, x) for name, x in encoded.items() if name != site)
            if index is not None:  # the units of the site outside the block
                own = encoded[site]
                rest = rest + self._added(site, own)
                rest = rest - self._added(site, select(own, family, index), index)
        return Natural(eta, precision, rest)

    def block_couplings(self, site: str, index: jax.Array) -> jax.Array:
        couplings = self.model.block_couplings(site, index)
        if site not in self.precisions:
            return couplings
        return couplings - jnp.diag(select(self.precisions[site], self.sites[site], index))

    def interactions(self, site: str) -> np.ndarray | None:
        return self.model.interactions(site)

    def pair_couplings(self) -> tuple[np.ndarray, jax.Array] | None:
        return self.model.pair_couplings()

    def project(self) -> Self:
        return rebuild(self, model=self.model.project())

    def _with(self, model: EnergyModel, rng_key: Key, fill: Callable[..., Any]) -> Self:
        """Another model with fields in general position; precisions stay what they may be."""
        keys = jax.random.split(rng_key, len(self.fields) + 1)
        fields = {
            name: fill(key, field)
            for key, (name, field) in zip(keys, self.fields.items(), strict=False)
        }
        precisions = {
            name: jnp.asarray(x, jnp.result_type(float)) if is_concrete(x) else jnp.ones(x.shape)
            for name, x in self.precisions.items()
        }
        return rebuild(self, model=model, fields=fields, precisions=precisions)

    def _generic(self, rng_key: Key, fill: Callable[..., Any]) -> Self:
        first, second = jax.random.split(rng_key)
        return self._with(wrapped(self.model, first, fill), second, fill)

    def _opened(self, rng_key: Key, fill: Callable[..., Any]) -> EnergyModel:
        first, second = jax.random.split(rng_key)
        return self._with(self.model._opened(first, fill), second, fill)

    def clamp(self, values: Values) -> dict[str, Any]:
        return self.model.clamp(values)

    def free_units(self, site: str) -> np.ndarray | None:
        return self.model.free_units(site)

    def decode(self, rng_key: Key, samples: Values) -> dict[str, jax.Array]:
        return self.model.decode(rng_key, samples)


def tilt(
    model: EnergyModel, /, *, precision: Mapping[str, Any] | None = None, **fields: Any
) -> EnergyModel:
    """Return the model with energy ``E(x) - <field, T(x)>``: the law times ``exp <field, T(x)>``.

    This is what uncertain evidence does. Where ``log p(seen given x)`` is linear in ``T(x)``, as
    it is for every discrete unit seen through noise, ``p(x given seen)`` is the model tilted by
    its coefficients. (``condition`` is for units that are known.)

    Parameters
    ----------
    model
        The energy model.
    precision
        By real site, a precision L >= 0 to add: ``+ L x^2 / 2`` in the energy. A number, or an
        array of the site's shape.
    **fields
        By site, nats: arrays that broadcast to the shape of the encoded site.

    Returns
    -------
    EnergyModel
        Over the same sites. Arrays are leaves, so rows with different evidence can be mapped
        with ``jax.vmap``.

    Raises
    ------
    ValueError
        On an unknown site, a wrong shape, a value that is not finite, or a precision that is
        negative or not of a real site.
    TypeError
        If ``precision`` is no dict by site.

    Notes
    -----
    Exact; costs an addition per unit. Log Z changes by the log of the expected evidence:
    ``log_partition(tilt(model, v=f)) - log_partition(model) = log E[exp <f, T(v)>]``, and its
    gradient with respect to the field is E[T(v)].

    References
    ----------
    J. Pearl (1988), Probabilistic reasoning in intelligent systems, section 2.2.2 (virtual
    evidence). O. Barndorff-Nielsen (1978), Information and exponential families (tilting).

    Examples
    --------
    >>> import jax.numpy as jnp, pgm_energy as pgm
    >>> rbm = pgm.RBM(weights=jnp.zeros((2, 3)))
    >>> pgm.exact(pgm.tilt(rbm, v=jnp.log(3.0))).means["v"].round(4).tolist()
    [0.75, 0.75]
    """
    require_model(model, "tilt")
    if not isinstance(precision, Mapping | None):
        raise TypeError(
            "precision is a dict by real site, such as precision={'x': 1.0}, got "
            f"{type(precision).__name__}"
        )
    precisions = dict(precision or {})
    model.require_sites(fields)
    model.require_sites(precisions)
    if not fields and not precisions:
        return model
    for name, value in precisions.items():
        if model.sites[name].is_discrete:
            raise ValueError(
                f"a precision is for real sites, {name!r} is {model.sites[name].family}: its "
                "evidence is a field alone"
            )
        if is_concrete(value) and (np.asarray(value) < 0).any():
            raise ValueError(f"precision[{name!r}] must not be negative, got {np.min(value)}")
    fields = {k: _site_shaped(f"field {k}", model.sites[k], v) for k, v in fields.items()}
    precisions = {
        k: _site_shaped(f"precision[{k!r}]", model.sites[k], v) for k, v in precisions.items()
    }
    if isinstance(model, Conditioned):  # so that a clamped unit counts at its value
        inner = Tilted(model=model.model, fields=fields, precisions=precisions)
        return rebuild(model, model=inner)
    return Tilted(model=model, fields=fields, precisions=precisions)


def _site_shaped(what: str, site: Site, value: Any) -> jax.Array:
    try:
        return jnp.broadcast_to(jnp.asarray(value, jnp.result_type(float)), site.encoded_shape)
    except ValueError:
        hint = "; map over rows with jax.vmap" if np.ndim(value) > len(site.encoded_shape) else ""
        raise ValueError(
            f"{what} must have shape {site.encoded_shape}, got {np.shape(value)}{hint}"
        ) from None
