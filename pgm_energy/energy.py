"""EnergyModel: sites and one line of mathematics, and what follows from them."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from pgm_energy import numpyro_model
from pgm_energy._struct import Key, StaticArray
from pgm_energy.general_position import Fill, first_finite
from pgm_energy.natural import Natural, Values, derive_natural_parameters
from pgm_energy.probe import as_index, require_block
from pgm_energy.sites import Site

__all__ = ["EnergyModel", "Natural"]


class EnergyModel(ABC):
    """An unnormalised log-density over named sites; everything else is derived from it.

    Write a subclass with :func:`pgm_energy.struct`, give it ``sites`` and ``energy``, and it can
    be sampled by block Gibbs, is a NumPyro model, and can be conditioned, marginalised, tempered
    and relaxed. What is derived is exact where the energy allows it, and refused where not.

    Notes
    -----
    ``energy`` sees one configuration: no batch dimensions, encoded floating values (one-hot for
    categorical sites). Chains, data rows and replicas come from ``jax.vmap``.

    Examples
    --------
    >>> import jax.numpy as jnp, pgm_energy as pgm
    >>> @pgm.struct
    ... class Coupled(pgm.EnergyModel):
    ...     weights: jax.Array
    ...     @property
    ...     def sites(self):
    ...         d, h = self.weights.shape
    ...         return {"v": pgm.Binary(d), "h": pgm.Spin(h)}
    ...     def energy(self, v, h):
    ...         return -(v @ self.weights @ h)
    >>> model = Coupled(weights=jnp.ones((2, 1)))
    >>> float(model.log_density({"v": jnp.array([1, 1]), "h": jnp.array([-1])}))
    -2.0
    """

    # ---- what an author writes -------------------------------------------------------------

    @property
    @abstractmethod
    def sites(self) -> dict[str, Site]:
        """The named sites, in order."""

    @abstractmethod
    def energy(self, *args: Any, **values: Any) -> jax.Array:
        """Return E(x), a scalar in nats, of one encoded configuration."""

    # ---- what an author may override -------------------------------------------------------

    @property
    def data_sites(self) -> tuple[str, ...]:
        """Names of the sites that data supply."""
        return tuple(self.sites)

    def natural_parameters(
        self, site: str, values: Values, index: jax.Array | None = None
    ) -> Natural:
        """Return the natural parameters of a site's units given everything else.

        Parameters
        ----------
        site
            Name of the site.
        values
            Raw values of every site, one configuration, or encodings that stand for them (free
            energies are differentiated through these, sequential sweeps carry them): use
            ``self.encode(values)``.
        index
            Flat indices of the units of a block; None for the whole site.

        Notes
        -----
        Derived by one gradient of the energy. The one override point for speed: kernels,
        conditionals and marginals use what this returns, and verification holds it against
        the energy.
        """
        return derive_natural_parameters(self, site, values, index)

    def block_couplings(self, site: str, index: jax.Array) -> jax.Array:
        """Return -d2E/dT_i dT_j inside a block, shape ``(m, m)`` (categorical ``(m, K, m, K)``).

        Notes
        -----
        Taken where the energy is quadratic in the block, so at any configuration. Derived by
        ``m`` Hessian-vector products; dense machines override it with a slice.
        """
        family = self.sites[site]
        encoded = {k: jnp.zeros(s.encoded_shape) for k, s in self.sites.items()}
        start = jnp.zeros((index.shape[0], *family.event))

        def energy(block: jax.Array) -> jax.Array:
            flat = encoded[site].reshape((family.size, *family.event))
            x = flat.at[index].set(block).reshape(family.encoded_shape)
            return self.energy(**{**encoded, site: x})

        return -jax.hessian(energy)(start)

    def interactions(self, site: str) -> np.ndarray | None:
        """Return edges ``(m, 2)`` or colours ``(n,)`` of a large site's units, or None.

        Only asked for; what it says is verified by probing, never trusted.
        """
        return None

    def evaluates_whole_site(self, site: str) -> bool:
        """Whether natural parameters of all units cost hardly more than those of some.

        A sweep of few colours then evaluates the site whole for each and keeps the colour, which
        avoids gathering and scattering. True of lattices.
        """
        return False

    def pair_couplings(self) -> tuple[np.ndarray, jax.Array] | None:
        """Return the edges of a pairwise energy and their couplings, or None to have them derived.

        Edges are an integer array ``(m, 2)`` of unit numbers, counted through all sites in
        order. Couplings are the coefficients of -E: ``(m,)`` of products of two encoded units, or
        ``(m, K, K)`` by the states of the two.

        Notes
        -----
        Only asked for by what works on pairs (``SwendsenWang``); what it says is verified.
        Needed of large models only: otherwise a Hessian of the energy tells.
        """
        return None

    def project(self) -> Self:
        """Return the nearest valid model. The identity unless a model has constraints."""
        return self

    def generic(self, rng_key: Key) -> Self:
        """Return the same structure with parameters in general position.

        Structure (who interacts with whom) is probed here, so that a parameter that happens to
        be zero is never read as a missing edge. Override it where random parameters are not
        valid ones.
        """
        return first_finite(self.title, lambda fill: self._generic(rng_key, fill))

    def _probed(self, rng_key: Key) -> EnergyModel:
        """The model whose structure licenses steps of this one: ``generic``, any data open.

        What is probed is cached by shapes, so it must hold for every value of the data that a
        transformation keeps: ``condition`` is probed as the model that it conditions, which may
        have more sites.
        """
        return first_finite(self.title, lambda fill: self._opened(rng_key, fill))

    def _opened(self, rng_key: Key, fill: Fill) -> EnergyModel:
        """``_generic`` with the data that transformations keep open; they pass it inwards."""
        return self._generic(rng_key, fill)

    def _generic(self, rng_key: Key, fill: Fill) -> Self:
        """``generic`` with one way to fill the leaves; transformations pass it inwards."""
        if type(self).generic is not EnergyModel.generic:
            return self.generic(rng_key)
        leaves, treedef = jax.tree.flatten(self)
        keys = jax.random.split(rng_key, max(len(leaves), 1))
        filled = [fill(key, leaf) for key, leaf in zip(keys, leaves, strict=False)]
        return jax.tree.unflatten(treedef, filled).project()

    @property
    def known_log_partition(self) -> jax.Array | None:
        """Log Z, nats, of a model that knows it (a mixture: 0); None of all others.

        Asked of a model whose parameters may be traced: with it they may be random in NumPyro.
        """
        return None

    # ---- derived ---------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """What the model is called in tables and messages."""
        return type(self).__name__

    @property
    def latent_sites(self) -> tuple[str, ...]:
        """Names of the sites that data do not supply."""
        return tuple(name for name in self.sites if name not in self.data_sites)

    def encode(self, values: Values) -> dict[str, jax.Array]:
        """Return the encoded values T(x) of every site."""
        return {name: site.encode(values[name]) for name, site in self.sites.items()}

    def clamp(self, values: Values) -> dict[str, Any]:
        """Return ``values`` with clamped units at their values (see ``condition``)."""
        return dict(values)

    def free_units(self, site: str) -> np.ndarray | None:
        """Mask of a site's units that are not clamped; None where all are free."""
        return None

    def decode(self, rng_key: Key, samples: Values) -> dict[str, jax.Array]:
        """Return samples of the original model's sites; here the samples themselves."""
        return dict(samples)

    def log_density(self, values: Values) -> jax.Array:
        """Return -E(values), nats, unnormalised, of raw sample values.

        Parameters
        ----------
        values
            Raw values by site, all with the same leading dimensions (chains, draws), which the
            result keeps.

        Raises
        ------
        ValueError
            On a missing or unknown site, a wrong shape, or a value outside the support.

        Notes
        -----
        Exact. Never called ``log_prob``: the log-normaliser is not in it.
        """
        values, lead = self.check_values(values)
        return -self._batched_energy(values, lead)

    def _batched_energy(self, values: Values, lead: tuple[int, ...]) -> jax.Array:
        def energy(raw: Values) -> jax.Array:
            return self.energy(**self.encode(raw))

        if not lead:
            return energy(values)
        flat = {k: jnp.reshape(v, (-1, *self.sites[k].shape)) for k, v in values.items()}
        return jax.vmap(energy)(flat).reshape(lead)

    def check_values(self, values: Values) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Return checked raw values and their common leading shape.

        Raises
        ------
        ValueError
            On a missing or unknown site, a wrong shape, or a value outside the support.
        """
        sites = self.sites
        self.require_sites(values)
        missing = [name for name in sites if name not in values]
        if missing:
            raise ValueError(f"{self.title} needs values of site {missing[0]!r} too")
        leads = {name: self._lead(name, values[name]) for name in sites}
        lead = next(iter(leads.values()), ())
        for name, other in leads.items():
            if other != lead:
                raise ValueError(
                    f"leading dimensions differ: site {next(iter(leads))!r} has {lead}, "
                    f"site {name!r} has {other}"
                )
            sites[name].check(name, values[name])
        return {name: values[name] for name in sites}, lead

    def _lead(self, name: str, value: Any) -> tuple[int, ...]:
        shape, unit = np.shape(value), self.sites[name].shape
        cut = len(shape) - len(unit)
        if cut < 0 or shape[cut:] != unit:
            raise ValueError(f"site {name!r} has shape {unit}, got values of shape {shape}")
        return shape[:cut]

    def require_sites(self, names: Any) -> None:
        """Refuse names that are no sites of this model.

        Raises
        ------
        ValueError
            Naming the unknown site and those that exist.
        """
        for name in names:
            if name not in self.sites:
                raise ValueError(
                    f"{self.title} has no site {name!r}; its sites are "
                    f"{', '.join(map(repr, self.sites))}"
                )

    def conditional(self, site: str, values: Values, index: Any | None = None) -> dist.Distribution:
        """Return p(x_site[index] given the rest) as a NumPyro distribution over raw values.

        Parameters
        ----------
        site
            Name of the site.
        values
            Raw values of every site, one configuration (the block's own do not matter).
        index
            Flat indices of a block of units; None for the whole site.

        Raises
        ------
        ValueError
            If units of the block interact and the family has no joint form, naming them; if a
            real block is not quadratic or its precision not positive definite.

        Notes
        -----
        Exact; one gradient of the energy. ``event_shape`` is the shape of the block. The
        identity behind it is verified once per structure.
        """
        self.require_sites([site])
        family = self.sites[site]
        units = None if index is None else as_index(family, site, index)
        coupled = require_block(self, site, units)
        if site not in values:
            values = {**values, site: jnp.full(family.shape, family.filler, family.dtype)}
        values, _ = self.check_values(values)
        position = None if units is None else jnp.asarray(units)
        natural = (
            derive_natural_parameters(self, site, values, position, coupled=True)
            if coupled
            else self.natural_parameters(site, values, position)
        )
        law = family.distribution(natural.eta, natural.precision)
        return law.to_event(len(law.batch_shape)) if law.batch_shape else law

    # ---- the NumPyro model -----------------------------------------------------------------

    def __call__(self, *args: Any, **observed: Any) -> dict[str, Any]:
        """Run as a NumPyro model: a masked base measure per site, then one factor.

        Parameters
        ----------
        **observed
            Values of observed sites, by name; None: not observed.

        Returns
        -------
        dict
            The value of each site.

        Raises
        ------
        TypeError
            On a positional argument.
        ValueError
            On an unknown site, a wrong shape or value, or NaN; a plate where the units are;
            random parameters where log Z changes with them, not known (see ``normalize``).

        Notes
        -----
        Inside a model of one's own: plates stand left of the unit dimensions,
        ``numpyro.plate(name, size, dim=-1-len(shape))`` with the shape of the widest site. The
        energy is then mapped over their rows.
        """
        if args:
            raise TypeError(
                f"{self.title} takes observed sites by name, got {len(args)} positional "
                f"argument(s); write for example mcmc.run(rng_key, {next(iter(self.sites))}=x)"
            )
        return numpyro_model.call(self, self.check_observed(observed))

    def check_observed(self, observed: Values) -> dict[str, Any]:
        """Return checked values of what is observed: all that is not None.

        Raises
        ------
        ValueError
            On an unknown site, a wrong shape, a value outside the support, or NaN.
        """
        self.require_sites(observed)
        values = {name: value for name, value in observed.items() if value is not None}
        for name, value in values.items():
            self._lead(name, value)
            self.sites[name].check(name, value)
        return values

    # ---- how it looks ----------------------------------------------------------------------

    def __repr__(self) -> str:
        name = type(self).__name__
        if not dataclasses.is_dataclass(self):
            return f"{name}()"
        parts = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            leaves = jax.tree.leaves(value)
            if hasattr(value, "shape") and not isinstance(value, Site | StaticArray):
                parts.append(f"{field.name}={tuple(value.shape)}")
            elif callable(value) and not isinstance(value, EnergyModel):
                parts.append(f"{field.name}={getattr(value, '__name__', value)}")
            elif isinstance(value, EnergyModel) or not any(hasattr(x, "shape") for x in leaves):
                parts.append(f"{field.name}={value!r}")
            else:
                shapes = jax.tree.map(lambda x: tuple(jnp.shape(x)), value)
                parts.append(f"{field.name}={shapes}")
        return f"{name}({', '.join(parts)})"
