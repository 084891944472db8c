"""Relaxation: the Gaussian twin of a pairwise model, for NUTS and HMC."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._struct import Key, is_concrete, replace, struct
from pgm_energy.energy import EnergyModel
from pgm_energy.natural import Values
from pgm_energy.probe import Probe, eager_float64, probe
from pgm_energy.sites import Binary, Real, Site, Spin
from pgm_energy.transforms._base import map_leading, require_model

__all__ = ["Relaxed", "Shift", "relax"]

#: How the diagonal of a twin is chosen.
Shift = Literal["uniform", "per_site", "per_unit"]
#: Relative change of the trace at which the search of :func:`_least_trace` ends, and its rounds.
_STILL, _MOST_ROUNDS = 1e-12, 500


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

    def decode(self, rng_key: Key, samples: Values) -> dict[str, jax.Array]:
        """Return samples of the original sites: given y they are independent."""
        first, second = jax.random.split(rng_key)
        out = map_leading(self.units, first, {"y": samples["y"]}, self.sites["y"], "y")
        return self.model.decode(second, out)

    def units(self, rng_key: Key, values: Values) -> dict[str, jax.Array]:
        """Return a configuration of the model's units given one of the twin."""
        parts = self._split(self.loadings @ values["y"] + self.bias)
        keys = jax.random.split(rng_key, len(parts))
        drawn = {
            name: site.cast(site.sample(key, eta))
            for (name, site, eta), key in zip(parts, keys, strict=True)
        }
        return self.model.clamp(drawn)

    def augment(self, rng_key: Key, values: Values) -> dict[str, jax.Array]:
        """Return one configuration of the twin given one of the model's units.

        Notes
        -----
        Exact, ``y ~ N(L'x, I)``: exact draws of the units become exact draws of the twin, and the
        way back is :meth:`units`.
        """
        encoded = self.model.encode(values)
        flat = jnp.concatenate([jnp.reshape(encoded[name], -1) for name in self.model.sites])
        mean = flat @ self.loadings
        return {"y": mean + jax.random.normal(rng_key, mean.shape, mean.dtype)}

    def _split(self, flat: jax.Array) -> list[tuple[str, Site, jax.Array]]:
        parts, start = [], 0
        for name, site in self.model.sites.items():
            parts.append((name, site, flat[start : start + site.size].reshape(site.shape)))
            start += site.size
        return parts


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


def _diagonal(couplings: np.ndarray, shift: Shift, sizes: list[int]) -> np.ndarray:
    """D of a kind with J + D semidefinite, as small as it can be."""
    shape = np.ones(len(couplings))
    if shift == "per_unit":
        shape = _least_trace(couplings)
    elif shift == "per_site":  # equal sums: the smallest trace of two layers
        shape = np.repeat(1.0 / np.asarray(sizes), sizes)
    shape = np.maximum(shape, 1e-9 * max(float(shape.max()), 1e-300))
    root = np.sqrt(shape)
    lowest = float(np.linalg.eigvalsh(couplings / np.outer(root, root))[0])
    return max(0.0, -lowest) * shape


def _least_trace(couplings: np.ndarray) -> np.ndarray:
    """D of least trace with J + D semidefinite, nearly: from the dual, by coordinates.

    The dual is ``max -<J, X>`` over correlation matrices. With ``X = VV'``, rows of unit length
    and more than sqrt(2n) columns, setting each row to minus the direction of ``J_i V`` in turn
    converges to its maximum, and the lengths of ``J_i V`` are D.
    """
    count = len(couplings)
    rows = np.random.default_rng(0).normal(size=(count, math.ceil(math.sqrt(2 * count)) + 1))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    lengths = np.zeros(count)
    for _ in range(_MOST_ROUNDS):
        before = lengths.sum()
        for i in range(count):
            pull = couplings[i] @ rows
            lengths[i] = np.linalg.norm(pull)
            if lengths[i] > 0.0:
                rows[i] = -pull / lengths[i]
        if abs(lengths.sum() - before) <= _STILL * lengths.sum():
            break
    return lengths


def relax(model: EnergyModel, *, shift: Shift = "uniform") -> EnergyModel:
    """Return the Gaussian twin: the same log Z over one real site ``y``, for NUTS and HMC.

    Parameters
    ----------
    model
        A model of binary and spin sites with pairwise energy and concrete parameters.
    shift
        The diagonal D that makes the couplings J semidefinite: ``"uniform"``, the smallest
        multiple of the identity; ``"per_site"``, one number per site, the larger the fewer its
        units; ``"per_unit"``, the D of least trace.

    Raises
    ------
    ValueError
        If a site is of another family, the energy is not pairwise, the parameters are traced, or
        ``shift`` is none of these.

    Notes
    -----
    Exact with every shift: x_i^2 is x_i for binary units and 1 for spins, so D moves between
    couplings, biases and constant. It decides how closely ``y ~ N(L'x, I)`` with ``LL' = J + D``
    follows each unit, and with it how fast unit i changes: slower the larger D_i. The uniform
    shift has the smallest possible largest D_i, which serves the unit that mixes worst; the least
    trace serves the average unit and lets hubs pay for it. Binary units are measured as spins, so
    a model and its ``binarize`` have the same twin. Measured, the uniform one is at least as good
    for the worst unit nearly everywhere (the table is in the guide, "How to choose a sampler").

    For two layers with couplings W = U S V', the per-site shift is the twin of the factorised
    couplings: L has the rows ``sqrt(a) U`` and ``sqrt(b) V`` in front of its eigenvectors, ab the
    largest squared singular value. There is no exact twin of only rank(W) entries: it would leave
    the couplings UU' and VV' within the layers, which the model does not have.

    Directions in which J + D is zero are dropped, so ``y`` has fewer entries than the model has
    units. One gradient costs two products with a (units x entries) matrix; ``"per_unit"`` costs
    some hundred passes over J once. ``decode`` draws the units, which given y are independent.

    References
    ----------
    J. Hubbard (1959), Calculation of partition functions. J. Martens and I. Sutskever (2010),
    Parallelizable sampling of Markov random fields. Y. Zhang, C. Sutton, A. Storkey and
    Z. Ghahramani (2012), Continuous relaxations for discrete Hamiltonian Monte Carlo, for the
    choice of D. P.-W. Wang, W.-C. Chang and J. Z. Kolter (2017), The mixing method: coordinate
    descent for low-rank semidefinite programming, for the least trace.

    Examples
    --------
    >>> import jax.numpy as jnp, pgm_energy as pgm
    >>> twin = pgm.relax(pgm.RBM(weights=jnp.ones((3, 2))))
    >>> list(twin.sites)
    ['y']
    >>> pgm.relax(pgm.RBM(weights=jnp.ones((3, 2))), shift="per_unit").sites["y"].size
    4
    """
    require_model(model, "relax")
    if shift not in get_args(Shift):
        raise ValueError(f"shift must be one of {', '.join(get_args(Shift))}, got {shift!r}")
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
    binary = np.concatenate([np.full(s.size, isinstance(s, Binary)) for s in model.sites.values()])
    # 0/1 is half of 1 + spin: measured in spins, so that the twin of `binarize` is the same
    scale = np.where(binary, 0.5, 1.0)
    spins = 0.5 * (couplings + couplings.T) * np.outer(scale, scale)
    diagonal = _diagonal(spins, shift, [site.size for site in model.sites.values()])
    eigenvalues, vectors = np.linalg.eigh(spins + np.diag(diagonal))
    keep = eigenvalues > 1e-9 * max(float(eigenvalues[-1]), 1e-300)
    if not keep.any():  # no couplings at all: one entry that says nothing
        keep[-1] = True
    loadings = vectors[:, keep] * np.sqrt(np.maximum(eigenvalues[keep], 0.0)) / scale[:, None]
    diagonal = diagonal / scale**2
    bias = linear - np.where(binary, 0.5 * diagonal, 0.0)
    offset = constant + 0.5 * float(diagonal[~binary].sum())
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
