"""Independent units: the product of a model's families, with known log Z."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._struct import Key, is_concrete, static, struct
from pgm_energy.energy import EnergyModel
from pgm_energy.models.rbm import data_start
from pgm_energy.natural import Natural, Values, select
from pgm_energy.sites import Real, Site

__all__ = ["Independent"]


@struct
class Independent(EnergyModel):
    """Independent units: ``E = -sum <eta, T(x)>`` (real units: ``+ sum L x^2 / 2``).

    Log Z is known, the sum of the log-normalisers A(eta): the base of annealing paths. Make one
    with :meth:`like`.

    Parameters
    ----------
    parameters
        Natural parameters eta by site, shaped like the encoded site, nats.
    precisions
        L by real site, positive, shaped like the site.
    free
        By site with clamped units, 1 where a unit is free and 0 where it is clamped: a clamped
        unit is normalised, so it does not enter log Z.
    families
        ``(name, site)`` pairs.
    supplied
        Names of the sites that data supply.

    Raises
    ------
    ValueError
        On shapes that do not fit the sites, or precisions that are not positive.

    Examples
    --------
    >>> import jax.numpy as jnp, pgm_energy as pgm
    >>> base = pgm.Independent.like(pgm.RBM(weights=jnp.ones((3, 2))))
    >>> round(float(base.known_log_partition), 4)  # 5 log 2
    3.4657
    """

    parameters: dict[str, jax.Array]
    precisions: dict[str, jax.Array]
    free: dict[str, jax.Array]
    families: tuple[tuple[str, Site], ...] = static()
    supplied: tuple[str, ...] = static()

    def validate(self) -> None:
        """Refuse parameters that do not fit their sites."""
        for name, site in self.families:
            if name not in self.parameters:
                raise ValueError(f"parameters of site {name!r} are missing")
            shape = self.parameters[name].shape
            if shape != site.encoded_shape:
                raise ValueError(
                    f"parameters of site {name!r} must have shape {site.encoded_shape}, got {shape}"
                )
            if site.is_discrete:
                continue
            precision = self.precisions.get(name)
            if precision is None or precision.shape != site.shape:
                raise ValueError(f"site {name!r} needs precisions of shape {site.shape}")
            if is_concrete(precision) and bool((precision <= 0).any()):
                raise ValueError(f"precisions of site {name!r} must be positive")

    @property
    def sites(self) -> dict[str, Site]:
        """The sites of the model that it is like."""
        return dict(self.families)

    @property
    def data_sites(self) -> tuple[str, ...]:
        """The data sites of the model that it is like."""
        return self.supplied

    @property
    def known_log_partition(self) -> jax.Array:
        """Log Z, nats: the log-normalisers of all free units."""
        return sum(
            (jnp.sum(self._normalizers(name) * self._free(name)) for name in self.sites),
            start=jnp.zeros(()),
        )

    def _normalizers(self, name: str) -> jax.Array:
        return self.sites[name].log_normalizer(self.parameters[name], self.precisions.get(name))

    def _free(self, name: str) -> jax.Array | float:
        return self.free.get(name, 1.0)

    def _pinned(self, name: str) -> jax.Array | float:
        """What the clamped units of a site add to E so that they are normalised, per unit."""
        if name not in self.free:
            return 0.0
        return (1.0 - self.free[name]) * self._normalizers(name)

    def _site_energy(self, name: str, encoded: jax.Array) -> jax.Array:
        inner = self.parameters[name] * encoded
        inner = inner.sum(axis=-1) if self.sites[name].event else inner
        if name in self.precisions:
            inner = inner - 0.5 * self.precisions[name] * encoded**2
        # unit by unit: a clamped unit's two terms are large and cancel
        return jnp.sum(self._pinned(name) - inner)

    def energy(self, **values: jax.Array) -> jax.Array:
        """Return E, nats: a sum over units."""
        return sum(
            (self._site_energy(name, values[name]) for name in self.sites), start=jnp.zeros(())
        )

    def evaluates_whole_site(self, site: str) -> bool:
        """Return True: there is nothing to evaluate."""
        return True

    def natural_parameters(
        self, site: str, values: Values, index: jax.Array | None = None
    ) -> Natural:
        """Return the parameters of the units: they do not depend on anything."""
        family = self.sites[site]
        eta = select(self.parameters[site], family, index)
        precision = self.precisions.get(site)
        if precision is not None:
            precision = select(precision, family, index)
            if isinstance(family, Real) and family.coupled:
                precision = jnp.diag(precision.reshape(-1))
        rest = None
        if index is None:  # the energy of all other sites, and what pins units of this one
            rest = jnp.sum(jnp.asarray(self._pinned(site)))
            for name, other in self.sites.items():
                if name != site:
                    rest = rest + self._site_energy(name, other.encode(values[name]))
        return Natural(eta, precision, rest)

    def block_couplings(self, site: str, index: jax.Array) -> jax.Array:
        """Return zeros: no units interact."""
        event = self.sites[site].event
        return jnp.zeros((index.shape[0], *event) * 2)

    def clamp(self, values: Values) -> dict[str, Any]:
        """Return ``values`` with clamped units at the values that they are pinned to."""
        values = dict(values)
        for name, free in self.free.items():
            site = self.sites[name]
            eta = self.parameters[name]
            states = jnp.asarray(site.states) if site.is_discrete else None
            if site.event:
                pinned = jnp.argmax(eta, axis=-1)
            elif states is None:
                pinned = eta
            else:
                pinned = jnp.where(eta > 0, states[1], states[0])
            values[name] = site.cast(jnp.where(free > 0.5, values[name], pinned))
        return values

    def free_units(self, site: str) -> np.ndarray | None:
        """Mask of a site's units that are not clamped; None where all are free."""
        return np.asarray(self.free[site]) > 0.5 if site in self.free else None

    def generic(self, rng_key: Key) -> Independent:
        """Return random parameters and precisions; clamped units stay as they are."""
        kind = jnp.result_type(float)
        parameters, precisions = {}, {}
        for key, (name, site) in zip(
            jax.random.split(rng_key, len(self.families)), self.families, strict=True
        ):
            first, second = jax.random.split(key)
            random = jax.random.normal(first, site.encoded_shape, kind)
            if name in self.free:
                loose = self.free[name].reshape(site.shape + (1,) * len(site.event)) > 0.5
                random = jnp.where(loose, random, jnp.asarray(self.parameters[name], kind))
            parameters[name] = random
            if name in self.precisions:
                precisions[name] = jax.random.uniform(
                    second, site.shape, kind, minval=0.5, maxval=2.0
                )
        free = {name: jnp.asarray(value, kind) for name, value in self.free.items()}
        return Independent(
            parameters=parameters,
            precisions=precisions,
            free=free,
            families=self.families,
            supplied=self.supplied,
        )

    @classmethod
    def like(cls, model: EnergyModel, data: Any = None) -> Independent:
        """Return independent units with the sites of a model.

        Parameters
        ----------
        model
            The energy model whose sites, families and clamped units are taken over.
        data
            Raw rows whose moments the units get: an array for the only data site, or a dict by
            site (samples of latent sites too). Units of sites without data are uniform, or
            standard normal.

        Raises
        ------
        TypeError
            If ``model`` is no energy model.
        ValueError
            On an unknown site, a wrong shape, or values outside the support.

        Notes
        -----
        Frequencies are smoothed by one row, so constant columns stay finite.

        Examples
        --------
        >>> import jax.numpy as jnp, numpy as np, pgm_energy as pgm
        >>> rbm = pgm.RBM(weights=jnp.ones((2, 2)))
        >>> rows = np.array([[0, 1], [0, 1], [1, 1]])
        >>> pgm.Independent.like(rbm, rows).parameters["v"].shape
        (2,)
        """
        if not isinstance(model, EnergyModel):
            raise TypeError(f"Independent.like takes an energy model, got {type(model).__name__}")
        rows = _rows_by_site(model, data)
        parameters, precisions, free = {}, {}, {}
        for name, site in model.sites.items():
            bias, precision = data_start(site, rows.get(name))
            eta = jnp.zeros(site.encoded_shape) if bias is None else bias
            if isinstance(site, Real):
                precision = jnp.ones(site.shape) if precision is None else precision
            mask = model.free_units(name)
            if mask is not None:
                held = model.clamp(_filled(model))[name]
                loose = mask.reshape(site.shape + (1,) * len(site.event))
                eta = jnp.where(loose, eta, site.pinned_parameter(held))
                if precision is not None:
                    precision = jnp.where(mask, precision, 1.0)
                free[name] = jnp.asarray(mask, dtype=jnp.result_type(float))
            parameters[name] = eta.astype(jnp.result_type(float))
            if precision is not None:
                precisions[name] = precision.astype(jnp.result_type(float))
        return cls(
            parameters=parameters,
            precisions=precisions,
            free=free,
            families=tuple(model.sites.items()),
            supplied=tuple(model.data_sites),
        )


def _filled(model: EnergyModel) -> dict[str, jax.Array]:
    """Some configuration inside the support."""
    return {
        name: jnp.full(site.shape, site.states[0] if site.is_discrete else 0, site.dtype)
        for name, site in model.sites.items()
    }


def _rows_by_site(model: EnergyModel, data: Any) -> dict[str, np.ndarray]:
    """Data as checked rows by site."""
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        if len(model.data_sites) != 1:
            names = ", ".join(map(repr, model.data_sites))
            raise ValueError(f"the model has data sites {names}: give data as a dict by site")
        data = {model.data_sites[0]: data}
    model.require_sites(data)
    rows = {}
    for name, value in data.items():
        rows[name] = np.asarray(value)
        model.sites[name].check(name, rows[name], allow_nan=True)
    return rows
