"""Relaxation: the Gaussian twin of a pairwise model, for NUTS and HMC."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._struct import Key, is_concrete, replace, struct
from pgm_energy.energy import EnergyModel
from pgm_energy.natural import Values
from pgm_energy.probe import Probe, eager_float64, probe
from pgm_energy.sites import Binary, Real, Site, Spin
from pgm_energy.transforms._base import map_leading, require_model

__all__ = ["Relaxed", "relax"]


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
    def title(self) -> str:
        return f"the Gaussian twin of {self.model.title}"

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

    def decode(self, rng_key: Key, samples: Values) -> dict[str, jax.Array]:
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
    require_model(model, "relax")
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
