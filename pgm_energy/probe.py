"""The exam of an energy: who interacts with whom, and whether a block may be drawn at once.

Everything is probed in float64 at parameters in general position (``model.generic``) and at
random *raw* configurations, once per structure. What licenses a step of the sampler is the
identity ``E(x') - E(x) = -<eta, T(x') - T(x)>`` with the whole block redrawn; second derivatives
only propose, because energies written with ``==``, ``where``, ``abs`` or indexing pass them.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._struct import StaticArray, is_concrete
from pgm_energy.configurations import interior_point, joint_bits, random_values, visit_all_states
from pgm_energy.identity import curvature_along, energies_of, joint_hessian, residuals_of
from pgm_energy.sites import Real, Site

if TYPE_CHECKING:
    from pgm_energy.energy import EnergyModel

__all__ = ["Probe", "as_index", "eager_float64", "probe", "require_block", "structure_key"]

#: Largest relative residual of a right step (measured: up to 2e-14) with a wide margin.
TOLERANCE = 1e-9
NUM_PROBES = 512
#: Up to so many bits of joint states, each of them is probed.
ALL_STATES_BITS = 12
#: Encoded size up to which a site's Hessian is computed densely.
DENSE_LIMIT = 4096
_CACHE_SIZE = 128

Raw = dict[str, Any]


@contextlib.contextmanager
def eager_float64() -> Iterator[None]:
    """Evaluate at once and in float64, also while a caller is being traced."""
    # only then: it also takes the constants of jitted functions out, each compiled on its own
    is_traced = isinstance(jnp.add(0, 0), jax.core.Tracer)
    eager = jax.ensure_compile_time_eval() if is_traced else contextlib.nullcontext()
    with eager, jax.enable_x64(True):
        yield


def structure_key(model: EnergyModel) -> Any:
    """Return a hashable description of a structure: class, static fields, leaf shapes."""
    leaves, treedef = jax.tree.flatten(model)
    return treedef, tuple((jnp.shape(leaf), str(jnp.result_type(leaf))) for leaf in leaves)


_CACHE: OrderedDict[Any, Probe] = OrderedDict()


def probe(model: EnergyModel) -> Probe:
    """Return the (cached) exam of this model's structure."""
    key = structure_key(model)
    if key not in _CACHE:
        _CACHE[key] = Probe(model)
        while len(_CACHE) > _CACHE_SIZE:
            _CACHE.popitem(last=False)
    _CACHE.move_to_end(key)
    return _CACHE[key]


class Verdict(NamedTuple):
    """Worst relative residual of the identity behind a step, and the row of blocks it is in."""

    residual: float
    row: int

    @property
    def holds(self) -> bool:
        """Whether the step may be sampled."""
        return self.residual <= TOLERANCE


class Probe:
    """One structure under examination. Use :func:`probe`, which caches it."""

    def __init__(self, model: EnergyModel) -> None:
        self.owner = model.title
        self.sites = model.sites
        if not self.sites:
            raise ValueError(f"{self.owner} has no sites")
        with eager_float64():
            self.model = model._probed(jax.random.key(20))
        #: the sites of this model, and those that ``condition`` took away
        everything = self.model.sites
        encoded = sum(int(np.prod(site.encoded_shape)) for site in everything.values())
        self.chunk = int(np.clip(2**21 // encoded, 1, 128))
        # a large site has many units per probe, and a gigabyte of probes helps nobody
        self.num_probes = int(np.clip(2**26 // encoded, 32, NUM_PROBES))
        bits = joint_bits(everything)
        if 0 < bits <= ALL_STATES_BITS:  # few enough to leave none to chance
            self.num_probes = max(self.num_probes, round(2**bits))
        rng = np.random.default_rng(7)
        self.values = random_values(everything, self.num_probes, rng)
        visit_all_states(everything, self.values)
        self.redraws = random_values(everything, self.num_probes, rng)
        self.points = [interior_point(everything, rng) for _ in range(4)]
        self._rng = rng
        self._cache: dict[Any, Any] = {}
        self._check_energies()

    def _check_energies(self) -> None:
        with eager_float64():
            shape = jax.eval_shape(lambda m, v: m.energy(**m.encode(v)), self.model, self._first())
            if shape.shape != ():
                raise ValueError(
                    f"the energy of {self.owner} must be a scalar per configuration, "
                    f"got shape {shape.shape}"
                )
            energies = np.asarray(energies_of(self.model, self.values, chunk=self.chunk))
        if np.isnan(energies).any():
            worst = int(np.argmax(np.isnan(energies)))
            raise ValueError(
                f"the energy of {self.owner} is NaN at a configuration inside the support of its "
                f"sites (probe {worst} of {len(energies)}); an energy is a finite number everywhere"
            )

    def _first(self) -> Raw:
        return {name: value[0] for name, value in self.values.items()}

    # ---- verification: what licenses a step -------------------------------------------------

    def verdict(
        self,
        name: str,
        index: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        *,
        kind: str = "joint",
        coupled: bool = False,
    ) -> Verdict:
        """Return how well the identity behind a step holds.

        Parameters
        ----------
        name
            The site.
        index, mask
            Flat units of each block, ``(num_blocks, width)``, and False where a row is padded;
            None for the whole site as one block.
        kind
            ``joint`` or ``sequential``.
        coupled
            Whether real units of the block are drawn from one multivariate normal.
        """
        key = (
            name,
            None if index is None else StaticArray(index),
            None if mask is None else StaticArray(mask),
            kind,
            coupled,
        )
        if key not in self._cache:
            self._cache[key] = self._examine(name, index, mask, kind, coupled)
        return self._cache[key]

    def _examine(
        self,
        name: str,
        index: np.ndarray | None,
        mask: np.ndarray | None,
        kind: str,
        coupled: bool,
    ) -> Verdict:
        num = self.num_probes
        rows = np.zeros(num, dtype=int)
        take = np.arange(num)
        index_rows: Any = None
        mask_rows: Any = np.ones(num, dtype=bool)
        if index is not None:
            num = max(num, len(index))
            rows = np.arange(num) % len(index)
            # every block meets different configurations
            take = (np.arange(num) + np.arange(num) // self.num_probes) % self.num_probes
            index_rows = index[rows]
            mask_rows = np.ones(index_rows.shape, bool) if mask is None else mask[rows]
        old = {site: value[take] for site, value in self.values.items()}
        new = self.redraws[name][take]
        if index is not None:
            new = new.reshape(num, -1)
        with eager_float64():
            residuals, energies = residuals_of(
                self.model,
                old,
                new,
                index_rows,
                mask_rows,
                name=name,
                kind=kind,
                coupled=coupled,
                chunk=self.chunk,
            )
        residuals = np.nan_to_num(np.asarray(residuals), nan=np.inf)
        # an infinite energy (a hard constraint) has no differences: judged by the rest
        residuals = np.where(np.isfinite(np.asarray(energies)), residuals, np.inf)
        worst = int(np.argmax(residuals))
        return Verdict(float(residuals[worst]), int(rows[worst]))

    # ---- structure: what is proposed --------------------------------------------------------

    def independent(self, name: str) -> bool:
        """Whether second derivatives propose that no two units of the site interact."""
        key = ("independent", name)
        if key not in self._cache:
            site, rng = self.sites[name], np.random.default_rng(11)
            answer = True
            for point in self.points:
                first, second = (rng.uniform(0.5, 1.5, site.encoded_shape) for _ in range(2))
                with eager_float64():
                    one = np.asarray(curvature_along(self.model, point, first, name=name))
                    two = np.asarray(curvature_along(self.model, point, second, name=name))
                if not site.is_discrete:  # a diagonal Hessian gives the same ratio twice
                    one, two = one / first - two / second, np.zeros(())
                if not (np.abs(one).max() < TOLERANCE and np.abs(two).max() < TOLERANCE):
                    answer = False
                    break
            self._cache[key] = answer
        return self._cache[key]

    def adjacency(self, name: str) -> np.ndarray | None:
        """Return which units interact, from dense Hessians; None if the site is too large."""
        site = self.sites[name]
        if int(np.prod(site.encoded_shape)) > DENSE_LIMIT:
            return None
        key = ("adjacency", name)
        if key not in self._cache:
            width = int(np.prod(site.event)) if site.event else 1
            found = np.zeros((site.size, site.size), dtype=bool)
            points = self.points if site.size * width <= 512 else self.points[:2]
            for point in points:
                with eager_float64():
                    hessian = np.asarray(joint_hessian(self.model, point, names=(name,)))
                size = np.abs(np.nan_to_num(hessian, nan=np.inf))
                blocks = size.reshape(site.size, width, site.size, width).max(axis=(1, 3))
                found |= blocks > TOLERANCE
            self._cache[key] = found | found.T
        return self._cache[key]

    def sites_interact(self, first: str, second: str) -> bool:
        """Whether redrawing one site changes what redrawing the other costs (no derivatives)."""
        key = ("sites", first, second)
        if key not in self._cache:
            num = min(64, self.num_probes)
            base = {name: value[:num] for name, value in self.values.items()}
            new = {name: value[:num] for name, value in self.redraws.items()}
            corners = [
                base,
                {**base, first: new[first]},
                {**base, second: new[second]},
                {**base, first: new[first], second: new[second]},
            ]
            with eager_float64():
                e = [
                    np.asarray(energies_of(self.model, corner, chunk=self.chunk))
                    for corner in corners
                ]
            scale = np.maximum(1.0, np.max(np.abs(e), axis=0))
            mixed = np.abs(e[3] - e[1] - e[2] + e[0]) / scale
            self._cache[key] = not bool((mixed <= TOLERANCE).all())
        return self._cache[key]

    # ---- explanations -----------------------------------------------------------------------

    def explain(self, name: str, units: np.ndarray | None) -> str:
        """Say which units of a failing block interact, or which unit is not affine."""
        site = self.sites[name]
        chosen = np.arange(site.size) if units is None else np.asarray(units)
        adjacency = self.adjacency(name)
        if adjacency is not None:
            pairs = np.argwhere(np.triu(adjacency[np.ix_(chosen, chosen)], 1))
            if len(pairs):
                i, j = (self.unit_name(name, int(chosen[k])) for k in pairs[0])
                more = f" (one of {len(pairs)} such pairs)" if len(pairs) > 1 else ""
                return f"{i} and {j} interact{more}"
        rows = chosen[:, None]
        alone = self.verdict(name, rows.astype(np.int32))
        if not alone.holds:
            unit = self.unit_name(name, int(chosen[alone.row]))
            what = "affine" if site.is_discrete else "quadratic"
            return f"the energy is not {what} in {unit} (relative residual {alone.residual:.2g})"
        return f"its units interact, {self.unit_name(name, int(chosen[0]))} among them"

    def unit_name(self, name: str, unit: int) -> str:
        """Return a readable name of a unit."""
        shape = self.sites[name].shape
        place = np.unravel_index(unit, shape) if shape else ()
        text = ", ".join(str(int(i)) for i in place)
        return f"{name}[{text}]" if shape else name


def require_block(model: EnergyModel, name: str, units: np.ndarray | None) -> bool:
    """Refuse a block that cannot be drawn at once; return whether it is one coupled normal.

    Raises
    ------
    ValueError
        Naming site, units and the worst residual.
    """
    exam = probe(model)
    site = exam.sites[name]
    index = None if units is None else units[None, :].astype(np.int32)
    whole = f"site {name!r}" if units is None else f"a block of {len(units)} units of {name!r}"
    declared = isinstance(site, Real) and site.coupled
    verdict = exam.verdict(name, index, coupled=declared)
    coupled = declared
    if not verdict.holds and isinstance(site, Real) and not declared:
        coupled, verdict = True, exam.verdict(name, index, coupled=True)
    if not verdict.holds:
        reason = exam.explain(name, units)
        advice = (
            "give them different blocks, or leave the blocks to pgm_energy.blocks(model)"
            if site.is_discrete
            else "block Gibbs draws real units from a normal law; sample this site with NUTS"
        )
        raise ValueError(
            f"{whole} of {exam.owner} cannot be drawn at once: {reason} "
            f"(worst relative residual of the energy identity {verdict.residual:.2g}); {advice}"
        )
    if not site.is_discrete:
        require_positive_definite(model)
    return coupled


def require_positive_definite(model: EnergyModel) -> None:
    """Refuse a model whose energy is not convex over all its real units together.

    Checked at the model's own parameters, at random values of the other sites and wherever all
    discrete units are in the same state; parameters that are being traced cannot be looked at
    and pass. Of several real sites each must also be convex by itself wherever the others are.

    Raises
    ------
    ValueError
        Naming the site, the unit and the smallest eigenvalue.
    """
    exam = probe(model)
    names = tuple(name for name, site in exam.sites.items() if not site.is_discrete)
    total = sum(exam.sites[name].size for name in names)
    if not names or total > DENSE_LIMIT or not is_concrete(model):
        return
    random = random_values(exam.sites, 16 if total <= 64 else 2, np.random.default_rng(3))
    discrete = {name: site for name, site in exam.sites.items() if site.is_discrete}
    most = max((len(site.states) for site in discrete.values()), default=0)
    for name, site in exam.sites.items():  # no state of a mixture is left to chance
        if site.is_discrete:
            same = site.states[np.arange(most) % len(site.states)]
            same = same.reshape((most,) + (1,) * len(site.shape))
            same = np.broadcast_to(same, (most, *site.shape))
        else:
            same = np.zeros((most, *site.shape))
        random[name] = np.concatenate([random[name], same])
    for i in range(len(random[names[0]])):
        raw = {name: value[i] for name, value in random.items()}
        _check_convex(model, exam, {**raw, **{name: raw[name] * 0.0 for name in names}}, names)
        if len(names) > 1:
            for name in names:
                _check_convex(model, exam, raw, (name,))


def _check_convex(model: EnergyModel, exam: Probe, raw: Raw, names: tuple[str, ...]) -> None:
    """Refuse a Hessian over some real sites, at raw values, that is not positive definite."""
    with eager_float64():
        point = {name: np.asarray(value) for name, value in model.encode(raw).items()}
        double = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(float)), model)
        hessian = np.asarray(joint_hessian(double, point, names=names))
    if not np.isfinite(hessian).all():
        smallest, unit = np.nan, 0
    else:
        eigenvalues, vectors = np.linalg.eigh(0.5 * (hessian + hessian.T))
        smallest, unit = float(eigenvalues[0]), int(np.argmax(np.abs(vectors[:, 0])))
        # rounding of float32 parameters cannot make a valid precision singular
        if smallest > 1e-12 * max(1.0, float(eigenvalues[-1])):
            return
    for name in names:
        if unit < exam.sites[name].size:
            break
        unit -= exam.sites[name].size
    raise ValueError(
        f"the precision of the real sites {names} of {exam.owner} is not positive definite: "
        f"smallest eigenvalue {smallest:.3g}, mostly in {exam.unit_name(name, unit)}; such a "
        "density cannot be normalised: increase the precision or weaken the couplings"
    )


def as_index(site: Site, name: str, index: Any) -> np.ndarray:
    """Return flat unit indices as a checked integer array (a mask of the site's shape works too).

    Raises
    ------
    ValueError
        If an index is out of range, repeated, or not an integer.
    """
    units = np.asarray(index.array if isinstance(index, StaticArray) else index)
    if units.dtype == bool:
        if units.shape != site.shape:
            raise ValueError(
                f"a mask for site {name!r} must have its shape {site.shape}, got {units.shape}"
            )
        units = np.flatnonzero(units)
    if units.dtype.kind not in "iu" or units.ndim != 1 or units.size == 0:
        raise ValueError(
            f"the units of a block are a non-empty list of integers, got {units!r} for {name!r}"
        )
    outside = units[(units < 0) | (units >= site.size)]
    if outside.size:
        raise ValueError(f"site {name!r} has units 0 to {site.size - 1}, got {int(outside[0])}")
    unique, counts = np.unique(units, return_counts=True)
    if unique.size != units.size:
        twice = int(unique[np.argmax(counts > 1)])
        raise ValueError(f"a block of site {name!r} lists unit {twice} more than once")
    return units.astype(np.int32)
