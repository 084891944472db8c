"""Tempering: the geometric path between two energy models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._struct import Key, is_concrete, struct
from pgm_energy.energy import EnergyModel
from pgm_energy.natural import Natural, Values
from pgm_energy.sites import Site
from pgm_energy.transforms._base import rebuild, wrapped

__all__ = ["Tempered", "temper"]


@struct
class Tempered(EnergyModel):
    """The geometric path between two energy models: ``(1 - beta) E_base + beta E_target``."""

    base: EnergyModel
    target: EnergyModel
    beta: jax.Array

    @property
    def title(self) -> str:
        return f"the path from {self.base.title} to {self.target.title}"

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

    def evaluates_whole_site(self, site: str) -> bool:
        return self.base.evaluates_whole_site(site) and self.target.evaluates_whole_site(site)

    def interactions(self, site: str) -> np.ndarray | None:
        base, target = self.base.interactions(site), self.target.interactions(site)
        if base is None or target is None or base.shape[1:] != target.shape[1:]:
            return target
        if base.ndim == 2:
            return np.concatenate([base, target])
        # colours that are different in either model are different in the path
        return np.unique(np.stack([base, target], axis=1), axis=0, return_inverse=True)[1]

    def project(self) -> Self:
        return rebuild(self, base=self.base.project(), target=self.target.project())

    def _generic(self, rng_key: Key, fill: Callable[..., Any]) -> Self:
        first, second = jax.random.split(rng_key)
        return rebuild(
            self,
            base=wrapped(self.base, first, fill),
            target=wrapped(self.target, second, fill),
            beta=jnp.asarray(0.5),
        )

    def _opened(self, rng_key: Key, fill: Callable[..., Any]) -> EnergyModel:
        first, second = jax.random.split(rng_key)
        return rebuild(
            self,
            base=self.base._opened(first, fill),
            target=self.target._opened(second, fill),
            beta=jnp.asarray(0.5),
        )

    def clamp(self, values: Values) -> dict[str, Any]:
        return self.target.clamp(values)

    def free_units(self, site: str) -> np.ndarray | None:
        return self.target.free_units(site)

    def decode(self, rng_key: Key, samples: Values) -> dict[str, jax.Array]:
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
