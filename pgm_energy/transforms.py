"""Transformations of energy models; each returns an energy model with a ``decode``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._struct import is_concrete, replace, static, struct
from pgm_energy.energy import EnergyModel
from pgm_energy.natural import Natural, Values, derive_natural_parameters
from pgm_energy.probe import Probe, eager_float64, interior_point, probe, require_block
from pgm_energy.sites import Binary, OneHot, Real, Site, Spin

__all__ = ["binarize", "condition", "marginalize", "relax", "temper"]


def _wrapped(model: EnergyModel, rng_key: jax.Array, fill: Callable[..., Any]) -> Any:
    """The inner model in general position."""
    return model._generic(rng_key, fill)


def map_leading(
    fn: Callable[..., Any], rng_key: jax.Array, samples: Values, site: Site, name: str
) -> Any:
    """Apply ``fn(rng_key, values)`` to every configuration of batched samples."""
    lead = np.shape(samples[name])[: np.ndim(samples[name]) - len(site.shape)]
    if not lead:
        return fn(rng_key, dict(samples))
    count = math.prod(lead)
    flat = {k: jnp.reshape(v, (count, *np.shape(v)[len(lead) :])) for k, v in samples.items()}
    out = jax.vmap(fn)(jax.random.split(rng_key, count), flat)
    return {k: v.reshape(lead + v.shape[1:]) for k, v in out.items()}


# ---- condition -------------------------------------------------------------------------------


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
        if self.partial and (site in self.partial or not self.sites[site].is_discrete):
            natural = derive_natural_parameters(self, site, values, index)
            # large terms of clamped units cancel in the energy, but not in this part of it
            return natural._replace(rest=None) if site in self.partial else natural
        inner_values = dict(values)
        for name, free in self.free.items():
            if isinstance(values[name], OneHot):
                merged = jnp.where(free[..., None] > 0.5, values[name].value, self.partial[name])
                inner_values[name] = OneHot(merged)
            else:  # not cast: a free energy is differentiated through this
                inner_values[name] = jnp.where(free > 0.5, values[name], self._raw(name))
        for name, given in self.given.items():
            inner_values[name] = self.model.sites[name].from_encoded(given)
        natural = self.model.natural_parameters(site, inner_values, index)
        return natural._replace(rest=None) if self.partial else natural

    def _raw_of(self, name: str, encoded: jax.Array) -> jax.Array:
        site = self.model.sites[name]
        return site.cast(jnp.argmax(encoded, axis=-1) if site.event else encoded)

    def clamp(self, values: Values) -> dict[str, Any]:
        values = dict(values)
        for name, free in self.free.items():
            site = self.model.sites[name]
            values[name] = site.cast(jnp.where(free > 0.5, values[name], self._raw(name)))
        return values

    def free_units(self, site: str) -> np.ndarray | None:
        if site not in self.free:
            return self.model.free_units(site)
        return np.asarray(self.free[site]) > 0.5

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
        return _rebuild(self, model=self.model.project())

    def _opened(self, rng_key: jax.Array, fill: Callable[..., Any]) -> EnergyModel:
        return self.model._opened(rng_key, fill)

    def _generic(self, rng_key: jax.Array, fill: Callable[..., Any]) -> Self:
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
        return _rebuild(
            self,
            model=_wrapped(self.model, rng_key, fill),
            given=double[0],
            partial=double[1],
            free=double[2],
        )

    def decode(self, rng_key: jax.Array, samples: Values) -> dict[str, jax.Array]:
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


def _rebuild(model: Any, /, **changes: Any) -> Any:
    """A copy of a transformation with other leaves, not checked again (they may be traced)."""
    copy = object.__new__(type(model))
    for name in model.__dataclass_fields__:
        object.__setattr__(copy, name, changes.get(name, getattr(model, name)))
    return copy


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
    if not isinstance(model, EnergyModel):
        raise TypeError(f"condition takes an energy model, got {type(model).__name__}")
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
    return Conditioned(model=model, given=given, partial=partial, free=masks)


# ---- marginalize -----------------------------------------------------------------------------


@struct
class Marginal(EnergyModel):
    """An energy model with one site summed out: its energy is the free energy."""

    model: EnergyModel
    site: str = static()
    coupled: bool = static(default=False)

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
        return _rebuild(self, model=self.model.project())

    def _opened(self, rng_key: jax.Array, fill: Callable[..., Any]) -> EnergyModel:
        return _rebuild(self, model=self.model._opened(rng_key, fill))

    def _generic(self, rng_key: jax.Array, fill: Callable[..., Any]) -> Self:
        return _rebuild(self, model=_wrapped(self.model, rng_key, fill))

    def clamp(self, values: Values) -> dict[str, Any]:
        return _inner_clamp(self.model, self.site, values)

    def free_units(self, site: str) -> np.ndarray | None:
        return self.model.free_units(site)

    def conditional_mean(self, values: Values) -> jax.Array:
        """Return E[T(x_site) given the rest] of the site that was summed out, encoded shape."""
        natural = self._natural(self._inner_values(self.encode(values)))
        return self.model.sites[self.site].mean(natural.eta, natural.precision)

    def decode(self, rng_key: jax.Array, samples: Values) -> dict[str, jax.Array]:
        """Return samples of the original sites: the site is drawn from its conditional."""
        site = self.model.sites[self.site]

        def draw(key: jax.Array, values: Any) -> Any:
            natural = self._natural(self._inner_values(self.encode(values)))
            new = site.sample(key, natural.eta, natural.precision)
            return {**values, self.site: site.cast(new)}

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
    if not isinstance(model, EnergyModel):
        raise TypeError(f"marginalize takes an energy model, got {type(model).__name__}")
    model.require_sites([site])
    if len(model.sites) == 1:
        raise ValueError(f"{site!r} is the only site: its sum is log_partition(model)")
    return Marginal(model=model, site=site, coupled=require_block(model, site, None))


# ---- temper ----------------------------------------------------------------------------------


@struct
class Tempered(EnergyModel):
    """The geometric path between two energy models: ``(1 - beta) E_base + beta E_target``."""

    base: EnergyModel
    target: EnergyModel
    beta: jax.Array

    @property
    def sites(self) -> dict[str, Site]:
        # the same in both, unless probed with the data of a condition open
        return {**self.target.sites, **(self.base.sites if self._differ() else {})}

    def _differ(self) -> bool:
        return self.base.sites.keys() != self.target.sites.keys()

    @property
    def data_sites(self) -> tuple[str, ...]:
        return self.target.data_sites

    def energy(self, **values: jax.Array) -> jax.Array:
        base, target = (
            model.energy(**{name: values[name] for name in model.sites})
            for model in (self.base, self.target)
        )
        return (1.0 - self.beta) * base + self.beta * target

    def natural_parameters(
        self, site: str, values: Values, index: jax.Array | None = None
    ) -> Natural:
        """Return the mixture of both models' natural parameters: each by its own fast way."""
        base = self.base.natural_parameters(site, values, index)
        target = self.target.natural_parameters(site, values, index)

        def mix(a: Any, b: Any) -> Any:
            return None if a is None or b is None else (1.0 - self.beta) * a + self.beta * b

        return Natural(*(mix(a, b) for a, b in zip(base, target, strict=True)))

    def block_couplings(self, site: str, index: jax.Array) -> jax.Array:
        base = self.base.block_couplings(site, index)
        return (1.0 - self.beta) * base + self.beta * self.target.block_couplings(site, index)

    def interactions(self, site: str) -> np.ndarray | None:
        base, target = self.base.interactions(site), self.target.interactions(site)
        if base is None or target is None or base.shape[1:] != target.shape[1:]:
            return target
        if base.ndim == 2:
            return np.concatenate([base, target])
        # colours that are different in either model are different in the path
        return np.unique(np.stack([base, target], axis=1), axis=0, return_inverse=True)[1]

    def project(self) -> Self:
        return _rebuild(self, base=self.base.project(), target=self.target.project())

    def _generic(self, rng_key: jax.Array, fill: Callable[..., Any]) -> Self:
        first, second = jax.random.split(rng_key)
        return _rebuild(
            self,
            base=_wrapped(self.base, first, fill),
            target=_wrapped(self.target, second, fill),
            beta=jnp.asarray(0.5),
        )

    def _opened(self, rng_key: jax.Array, fill: Callable[..., Any]) -> EnergyModel:
        first, second = jax.random.split(rng_key)
        return _rebuild(
            self,
            base=self.base._opened(first, fill),
            target=self.target._opened(second, fill),
            beta=jnp.asarray(0.5),
        )

    def clamp(self, values: Values) -> dict[str, Any]:
        return self.target.clamp(values)

    def free_units(self, site: str) -> np.ndarray | None:
        return self.target.free_units(site)

    def decode(self, rng_key: jax.Array, samples: Values) -> dict[str, jax.Array]:
        return self.target.decode(rng_key, samples)


def temper(base: EnergyModel, target: EnergyModel, beta: Any) -> EnergyModel:
    """Return the model with energy ``(1 - beta) E_base + beta E_target``.

    Parameters
    ----------
    base, target
        Models over the same sites.
    beta
        Inverse temperature in [0, 1]; an array leaf, so a ladder is a ``jax.vmap``.

    Raises
    ------
    ValueError
        If the sites differ or beta lies outside [0, 1].

    Examples
    --------
    >>> import jax.numpy as jnp, pgm_energy as pgm
    >>> rbm = pgm.RBM(weights=jnp.ones((2, 2)))
    >>> flat = pgm.RBM(weights=jnp.zeros((2, 2)))
    >>> ones = {"v": jnp.ones(2), "h": jnp.ones(2)}
    >>> float(pgm.temper(flat, rbm, 0.25).log_density(ones))
    1.0
    """
    for model in (base, target):
        if not isinstance(model, EnergyModel):
            raise TypeError(f"temper takes two energy models, got {type(model).__name__}")
    ours = {k: (type(s), s.encoded_shape) for k, s in base.sites.items()}
    theirs = {k: (type(s), s.encoded_shape) for k, s in target.sites.items()}
    if ours != theirs:
        raise ValueError(
            f"base and target must have the same sites, got {_describe(base)} and "
            f"{_describe(target)}"
        )
    if is_concrete(beta):
        outside = np.asarray(beta)
        if not ((outside >= 0) & (outside <= 1)).all():
            raise ValueError(f"beta must lie in [0, 1], got {beta}")
    return Tempered(base=base, target=target, beta=jnp.asarray(beta, jnp.result_type(float)))


def _describe(model: EnergyModel) -> str:
    parts = (f"{k!r} ({s.family} {s.shape})" for k, s in model.sites.items())
    return f"{type(model).__name__} with {', '.join(parts)}"


# ---- relax -----------------------------------------------------------------------------------


@struct
class Relaxed(EnergyModel):
    """The Gaussian twin of a pairwise model: one real site ``y``, the same log Z.

    ``y given x ~ N(L'x, I)`` with ``LL' = J + D``; given y the units of x are independent.
    """

    model: EnergyModel
    loadings: jax.Array
    bias: jax.Array
    offset: jax.Array

    @property
    def sites(self) -> dict[str, Site]:
        return {"y": Real(self.loadings.shape[1], dims=("twin",))}

    def energy(self, y: jax.Array) -> jax.Array:
        total: Any = 0.0
        parts = zip(self._split(self.loadings @ y + self.bias), self._split(self.bias), strict=True)
        for (_, site, eta), (_, _, origin) in parts:
            # unit by unit against y = 0: the terms of clamped units are large and cancel
            total = total + jnp.sum(site.log_normalizer(eta) - site.log_normalizer(origin))
        norm = 0.5 * y.shape[0] * math.log(2.0 * math.pi)
        return 0.5 * y @ y + norm + self.offset - total

    def _split(self, flat: jax.Array) -> list[tuple[str, Site, jax.Array]]:
        parts, start = [], 0
        for name, site in self.model.sites.items():
            parts.append((name, site, flat[start : start + site.size].reshape(site.shape)))
            start += site.size
        return parts

    def decode(self, rng_key: jax.Array, samples: Values) -> dict[str, jax.Array]:
        """Return samples of the original sites: given y they are independent."""
        first, second = jax.random.split(rng_key)

        def draw(key: jax.Array, values: Any) -> Any:
            parts = self._split(self.loadings @ values["y"] + self.bias)
            keys = jax.random.split(key, len(parts))
            return {
                name: site.cast(site.sample(k, eta))
                for (name, site, eta), k in zip(parts, keys, strict=True)
            }

        out = map_leading(draw, first, {"y": samples["y"]}, self.sites["y"], "y")
        return self.model.decode(second, self.model.clamp(out))


def _pairwise(model: EnergyModel, exam: Probe) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Couplings J, linear terms b, constant c of ``E = c - b'x - x'Jx/2``, and the residual.

    The residual is the worst relative error of that formula at random raw configurations.
    """
    names = list(exam.sites)
    with eager_float64():
        double = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(float)), model)
        flat_sites = [exam.sites[name] for name in names]
        cuts = np.cumsum([site.size for site in flat_sites])[:-1]

        def energy(flat: jax.Array) -> jax.Array:
            parts = jnp.split(flat, cuts)
            values = {
                n: p.reshape(s.shape) for n, p, s in zip(names, parts, flat_sites, strict=True)
            }
            return double.energy(**values)

        origin = jnp.zeros(sum(site.size for site in flat_sites))
        constant, gradient = jax.jit(jax.value_and_grad(energy))(origin)
        hessian = jax.jit(jax.hessian(energy))(origin)
        flat = jnp.concatenate(
            [jnp.reshape(exam.values[n], (exam.num_probes, -1)) for n in names], axis=1
        ).astype(origin.dtype)
        energies = jax.jit(lambda x: jax.lax.map(energy, x, batch_size=exam.chunk))(flat)
        couplings = -np.asarray(hessian)
        linear, x = -np.asarray(gradient), np.asarray(flat)
        pairs = 0.5 * np.einsum("pi,pi->p", x @ couplings, x)
        guess = float(constant) - x @ linear - pairs
        error = np.abs(np.asarray(energies) - guess)
        size = np.maximum(1.0, np.maximum(np.abs(x) @ np.abs(linear), np.abs(pairs)))
        residual = float(np.nan_to_num(error / size, nan=np.inf).max())
    # a square is a constant for spins and linear for binary units: no coupling
    own = 0.5 * np.diagonal(couplings)
    binary = np.concatenate([np.full(s.size, isinstance(s, Binary)) for s in flat_sites])
    linear = linear + np.where(binary, own, 0.0)
    constant = float(constant) - float(np.where(binary, 0.0, own).sum())
    return couplings - np.diag(np.diagonal(couplings)), linear, constant, residual


def relax(model: EnergyModel) -> EnergyModel:
    """Return the Gaussian twin: the same log Z over one real site ``y``, for NUTS and HMC.

    Parameters
    ----------
    model
        A model of binary and spin sites with pairwise energy and concrete parameters.

    Raises
    ------
    ValueError
        If a site is of another family, the energy is not pairwise, or the parameters are traced.

    Notes
    -----
    Exact. J is shifted by the smallest multiple of the identity that makes it semidefinite and
    null directions are dropped, so ``y`` has fewer entries than the model has units. One
    gradient costs two products with an (units x entries) matrix. ``decode`` draws the units,
    which given y are independent.

    References
    ----------
    J. Hubbard (1959), Calculation of partition functions. Y. Zhang, C. Sutton, A. Storkey and
    Z. Ghahramani (2012), Continuous relaxations for discrete Hamiltonian Monte Carlo.

    Examples
    --------
    >>> import jax.numpy as jnp, pgm_energy as pgm
    >>> twin = pgm.relax(pgm.RBM(weights=jnp.ones((3, 2))))
    >>> list(twin.sites)
    ['y']
    """
    if not isinstance(model, EnergyModel):
        raise TypeError(f"relax takes an energy model, got {type(model).__name__}")
    for name, site in model.sites.items():
        if not isinstance(site, Binary | Spin):
            what = (
                "sum it out first with marginalize"
                if len(model.sites) > 1
                else (
                    "sample it directly with NUTS" if isinstance(site, Real) else "use BlockGibbs"
                )
            )
            raise ValueError(
                f"relax needs binary or spin sites, site {name!r} is {site.family}: {what}"
            )
    if not is_concrete(model):
        raise ValueError(
            "relax factorises the coupling matrix and needs concrete parameters: call it outside "
            "of jit, vmap and grad"
        )
    exam = probe(model)
    couplings, linear, constant, residual = _pairwise(model, exam)
    with eager_float64():
        generic = model.generic(jax.random.key(20))
    residual = max(residual, _pairwise(generic, exam)[3])
    if residual > 1e-9:
        reasons = [
            exam.explain(name, np.arange(site.size))
            for name, site in exam.sites.items()
            if not exam.verdict(name, np.arange(site.size, dtype=np.int32)[:, None]).holds
        ]
        reason = reasons[0] if reasons else "more than two units interact at once"
        raise ValueError(
            f"the energy of {exam.owner} is not pairwise, so it has no Gaussian twin: {reason} "
            f"(worst relative residual {residual:.2g}); use BlockGibbs, or NUTS on marginalize "
            "where a real site is left"
        )
    eigenvalues, vectors = np.linalg.eigh(0.5 * (couplings + couplings.T))
    shift = max(0.0, -float(eigenvalues[0]))
    lifted = eigenvalues + shift
    keep = lifted > 1e-9 * max(float(lifted[-1]), 1e-300)
    if not keep.any():  # no couplings at all: one entry that says nothing
        keep[-1] = True
    loadings = vectors[:, keep] * np.sqrt(lifted[keep])
    binary = np.concatenate([np.full(s.size, isinstance(s, Binary)) for s in model.sites.values()])
    bias = linear - np.where(binary, 0.5 * shift, 0.0)
    offset = constant + 0.5 * shift * float((~binary).sum())
    twin = Relaxed(
        model=model,
        loadings=jnp.asarray(loadings),
        bias=jnp.asarray(bias),
        offset=jnp.zeros(()),
    )
    with eager_float64():
        parts = twin._split(jnp.asarray(twin.bias, jnp.result_type(float)))
        offset -= sum(float(jnp.sum(site.log_normalizer(eta))) for _, site, eta in parts)
    return replace(twin, offset=jnp.asarray(offset))


# ---- binarize --------------------------------------------------------------------------------


@struct
class Binarized(EnergyModel):
    """An energy model whose spin sites are written as 0 and 1."""

    model: EnergyModel

    @property
    def sites(self) -> dict[str, Site]:
        return {
            name: Binary(site.shape, site.dims) if isinstance(site, Spin) else site
            for name, site in self.model.sites.items()
        }

    @property
    def data_sites(self) -> tuple[str, ...]:
        return self.model.data_sites

    @property
    def known_log_partition(self) -> jax.Array | None:
        return self.model.known_log_partition  # this transformation keeps it

    def _spins(self, values: Values) -> dict[str, Any]:
        spin = {name for name, site in self.model.sites.items() if isinstance(site, Spin)}
        return {k: 2 * v - 1 if k in spin else v for k, v in values.items()}

    def energy(self, **values: jax.Array) -> jax.Array:
        return self.model.energy(**self._spins(values))

    def interactions(self, site: str) -> np.ndarray | None:
        return self.model.interactions(site)

    def project(self) -> Self:
        return _rebuild(self, model=self.model.project())

    def _generic(self, rng_key: jax.Array, fill: Callable[..., Any]) -> Self:
        return _rebuild(self, model=_wrapped(self.model, rng_key, fill))

    def _opened(self, rng_key: jax.Array, fill: Callable[..., Any]) -> EnergyModel:
        return _rebuild(self, model=self.model._opened(rng_key, fill))

    def clamp(self, values: Values) -> dict[str, Any]:
        clamped = self.model.clamp(self._spins(values))
        spin = {name for name, site in self.model.sites.items() if isinstance(site, Spin)}
        return {k: (v + 1) // 2 if k in spin else v for k, v in clamped.items()}

    def free_units(self, site: str) -> np.ndarray | None:
        return self.model.free_units(site)

    def decode(self, rng_key: jax.Array, samples: Values) -> dict[str, jax.Array]:
        """Return samples of the original sites, spins as -1 and +1."""
        spins = self._spins({k: jnp.asarray(v) for k, v in samples.items()})
        spins = {name: self.model.sites[name].cast(value) for name, value in spins.items()}
        return self.model.decode(rng_key, spins)


def binarize(model: EnergyModel) -> EnergyModel:
    """Return the same law with spin sites as 0/1, for NumPyro's own discrete kernels.

    NumPyro's kernels take every support to be 0..K-1. ``decode`` gives the spins back.

    Notes
    -----
    Exact, log Z unchanged, no cost.

    Examples
    --------
    >>> import pgm_energy as pgm
    >>> lattice = pgm.ising_lattice((4, 4), coupling=0.3)
    >>> pgm.binarize(lattice).sites["v"].family
    'binary'
    """
    if not isinstance(model, EnergyModel):
        raise TypeError(f"binarize takes an energy model, got {type(model).__name__}")
    return Binarized(model=model)
