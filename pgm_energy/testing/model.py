"""The exam of an energy model: everything derived from the energy against the energy."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from numpyro import handlers

from pgm_energy._checks import require_count, require_key
from pgm_energy.configurations import random_values
from pgm_energy.energy import EnergyModel
from pgm_energy.enumeration import StateSpace, double, energy_of, require_concrete
from pgm_energy.exact_law import exact
from pgm_energy.partition import known_log_partition
from pgm_energy.probe import structure_key
from pgm_energy.sites import Site
from pgm_energy.structure import blocks
from pgm_energy.testing.exam import DOUBLE, SINGLE, ConformanceReport, Exam, precision
from pgm_energy.testing.overrides import (
    check_couplings,
    check_interactions,
    check_natural,
    free_indices,
    redraw,
)
from pgm_energy.transforms import marginalize

__all__ = ["check_energy_model"]

#: Most joint states whose sum is written out.
_MAX_SUM_STATES = 2**12

Raw = dict[str, Any]


def check_energy_model(
    model: EnergyModel, rng_key: Any = None, *, num_probes: int = 4
) -> ConformanceReport:
    """Return a report that everything derived from a model's energy agrees with the energy.

    Parameters
    ----------
    model
        The energy model, with concrete parameters; anyone's.
    rng_key
        A JAX random key for the configurations that are tried; ``jax.random.key(0)`` if None.
    num_probes
        How many configurations each check tries.

    Returns
    -------
    ConformanceReport
        What was checked, printing readably.

    Raises
    ------
    ConformanceError
        At the first check that fails, with the site, the unit and both numbers.

    Notes
    -----
    Checked: sites and data sites; energy finite, scalar, the same under jit and vmap;
    ``log_density`` and the NumPyro model equal -E; ``conditional`` against energy differences
    (1e-5 relative to max(1, abs(E)) in single, 1e-9 in double precision); overrides of
    ``natural_parameters``, ``block_couplings`` and ``interactions``; free energies, also against
    the explicit sum up to 4096 states; ``project`` idempotent; ``generic`` of the same
    structure; finite gradients; a known log Z against enumeration. Deterministic given the key.
    Takes some seconds for a new structure.

    Examples
    --------
    >>> import jax.numpy as jnp, pgm_energy as pgm
    >>> report = pgm.testing.check_energy_model(pgm.RBM(weights=jnp.ones((3, 2))))
    >>> print(report)  # doctest: +ELLIPSIS
    RBM conforms
    ...
    """
    require_concrete(model, "check_energy_model")
    require_count("num_probes", num_probes)
    key = require_key(jax.random.key(0) if rng_key is None else rng_key)
    rng = np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
    exam = Exam(type(model).__name__)
    _check_sites(exam, model)
    configurations = _configurations(model, num_probes, rng)
    _check_structure(exam, model, key)
    _check_energy(exam, model, configurations)
    _check_numpyro(exam, model, configurations)
    with precision(True):
        exact_model = double(model)
        check_natural(exam, exact_model, configurations, rng)
        check_couplings(exam, exact_model, configurations, rng)
        check_interactions(exam, model)
    for x64 in (False, True):
        with precision(x64):
            used = double(model) if x64 else model
            _check_conditionals(exam, used, configurations, rng, DOUBLE if x64 else SINGLE)
    with precision(True):
        _check_free_energies(exam, exact_model, configurations)
        _check_gradient(exam, exact_model, configurations)
    _note_schedule(exam, model)
    _check_log_partition(exam, model)
    return exam.report()


def _configurations(model: EnergyModel, count: int, rng: np.random.Generator) -> list[Raw]:
    """Random raw configurations, clamped units at their values."""
    table = random_values(model.sites, count, rng)
    out = []
    for i in range(count):
        values = {}
        for name, site in model.sites.items():
            raw = table[name][i] if site.is_discrete else 2.0 * rng.standard_normal(site.shape)
            values[name] = np.asarray(raw, dtype=np.dtype(site.dtype))
        clamped = {name: np.asarray(value) for name, value in model.clamp(values).items()}
        # real numbers of single precision, in double: the same configuration in both
        out.append(
            {k: v if model.sites[k].is_discrete else v.astype(float) for k, v in clamped.items()}
        )
    return out


def _check_sites(exam: Exam, model: EnergyModel) -> None:
    sites = model.sites
    kind = isinstance(sites, dict) and all(isinstance(s, Site) for s in sites.values())
    exam.require("sites", kind and sites, f"sites must be a dict of sites by name, got {sites!r}")
    data = model.data_sites
    exam.require(
        "sites",
        isinstance(data, tuple)
        and data
        and set(data) <= set(sites)
        and len(set(data)) == len(data),
        f"data_sites must be a tuple of names among {tuple(sites)}, got {data!r}",
    )
    both = sorted((*data, *model.latent_sites)) == sorted(sites)
    exam.require("sites", both, f"data and latent sites must make up {tuple(sites)}")
    exam.note("sites", ", ".join(f"{k!r} ({s.size} {s.family})" for k, s in sites.items()))


def _check_energy(exam: Exam, model: EnergyModel, configurations: list[Raw]) -> None:
    with precision(True):
        used = double(model)
        eager = []
        for values in configurations:
            energy = used.energy(**used.encode(values))
            exam.require("energy", jnp.shape(energy) == (), f"shape {jnp.shape(energy)}, not ()")
            exam.require("energy", np.isfinite(energy), f"energy {energy} at {values}")
            eager.append(float(energy))
        scale = np.abs(eager)
        jitted = jax.jit(lambda m, v: m.energy(**m.encode(v)))
        under_jit = [float(jitted(used, values)) for values in configurations]
        exam.close("energy under jit", under_jit, eager, scale, DOUBLE, "the energy")
        stacked = {k: np.stack([v[k] for v in configurations]) for k in model.sites}
        mapped = jax.vmap(lambda v: used.energy(**used.encode(v)))(stacked)
        exam.close("energy under vmap", mapped, eager, scale, DOUBLE, "the energy")
        density = used.log_density(stacked)
        exam.close("log_density", density, -np.asarray(eager), scale, DOUBLE, "log_density")
        clamped = [float(energy_of(used, values)) for values in configurations]
        exam.close("clamp", clamped, eager, scale, DOUBLE, "the energy of clamped values")


def _check_numpyro(exam: Exam, model: EnergyModel, configurations: list[Raw]) -> None:
    name = "NumPyro model"
    with precision(True):
        used = double(model)
        for values in configurations:
            data = {key: jnp.asarray(value) for key, value in values.items()}
            substituted = handlers.substitute(handlers.seed(used, jax.random.key(0)), data=data)
            trace = handlers.trace(substituted).get_trace()
            total = 0.0
            for site in trace.values():
                if site["type"] == "sample":
                    total = total + float(jnp.sum(site["fn"].log_prob(site["value"])))
            missing = [k for k in model.sites if k not in trace]
            exam.require(name, not missing, f"no sample site {missing}")
            expected = float(used.log_density(values))
            exam.close(name, total, expected, abs(expected), DOUBLE, "the log-density")


def _conditional(model: EnergyModel, name: str, values: Raw, units: Any) -> Any:
    """The conditional of a block, or None where it has none."""
    try:
        return model.conditional(name, values, units)
    except ValueError:
        return None


def _blocks_to_try(
    model: EnergyModel, name: str, values: Raw, rng: np.random.Generator
) -> list[np.ndarray | None]:
    """The whole site (None) if it can be drawn at once, and some units of it."""
    free = free_indices(model, name)
    units: list[np.ndarray | None] = []
    if len(free) == model.sites[name].size and _conditional(model, name, values, None) is not None:
        units.append(None)
    some = rng.choice(free, min(3, len(free)), replace=False)[:, None]
    units += [unit for unit in some if _conditional(model, name, values, unit) is not None]
    return units


def _check_conditionals(
    exam: Exam,
    model: EnergyModel,
    configurations: list[Raw],
    rng: np.random.Generator,
    tolerance: float,
) -> None:
    for name, site in model.sites.items():
        label = f"conditional of {name!r}" + (", double" if tolerance == DOUBLE else "")
        tried = _blocks_to_try(model, name, configurations[0], rng)
        if not tried:
            how = "energy differences" if site.is_discrete else "NUTS"
            exam.note(label, f"no family: sampled by {how}")
        for values in configurations:
            start = float(model.energy(**model.encode(values)))
            for units in tried:
                law = model.conditional(name, values, units)
                which = np.arange(site.size) if units is None else units
                new = {**values, name: redraw(site, values[name], which, rng)}
                end = float(model.energy(**model.encode(new)))
                ends = (values[name], new[name])
                if units is not None:
                    ends = tuple(x.reshape(-1)[units] for x in ends)
                here, there = (float(jnp.sum(law.log_prob(x))) for x in ends)
                exam.close(
                    label,
                    there - here,
                    start - end,
                    max(abs(start), abs(end), abs(here), abs(there)),
                    tolerance,
                    f"log p(new) - log p(old) of units {which[:5].tolist()}",
                )


def _check_free_energies(exam: Exam, model: EnergyModel, configurations: list[Raw]) -> None:
    """F(rest) = E + log p(x given rest), and the explicit sum where it is short."""
    for name, site in model.sites.items():
        label = f"free energy over {name!r}"
        if len(model.sites) == 1:
            continue
        try:
            reduced = marginalize(model, name)
        except ValueError:
            exam.note(label, "cannot be summed out in closed form")
            continue
        space = StateSpace.of(model, [name]) if site.is_discrete else None
        for values in configurations:
            rest = {k: v for k, v in values.items() if k != name}
            free = float(reduced.energy(**reduced.encode(rest)))
            energy = float(model.energy(**model.encode(values)))
            if space is not None and space.size <= _MAX_SUM_STATES:
                total = float(_explicit_sum(model, rest, space=space))
                exam.close(label, free, total, abs(total), DOUBLE, "the free energy")
            law = model.conditional(name, values)
            identity = energy + float(jnp.sum(law.log_prob(values[name])))
            scale = max(abs(energy), abs(free))
            exam.close(label, free, identity, scale, DOUBLE, "the free energy")


@functools.partial(jax.jit, static_argnames=("space",))
def _explicit_sum(model: EnergyModel, rest: Raw, space: StateSpace) -> jax.Array:
    """-log of the sum of exp(-E) over the states of a site, each written out."""

    def energy(number: jax.Array) -> jax.Array:
        return energy_of(model, {**rest, **space.values(number)})

    return -logsumexp(-jax.vmap(energy)(jnp.arange(space.size)))


def _check_gradient(exam: Exam, model: EnergyModel, configurations: list[Raw]) -> None:
    gradient = jax.grad(lambda m, v: m.energy(**m.encode(v)))
    for values in configurations:
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(model, values)):
            where = jax.tree_util.keystr(path)
            finite = np.isfinite(np.asarray(leaf)).all()
            exam.require("gradient", finite, f"the gradient with respect to {where} is not finite")


def _check_structure(exam: Exam, model: EnergyModel, key: jax.Array) -> None:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(model)]
    for label, other in (("project", model.project()), ("generic", model.generic(key))):
        same = bool(structure_key(other)[0] == structure_key(model)[0])
        exam.require(label, same, f"{other!r} has another structure than {model!r}")
        got = [jnp.shape(leaf) for leaf in jax.tree.leaves(other)]
        exam.require(label, got == shapes, f"leaves of shapes {got}, expected {shapes}")
    once = model.project()
    pairs = zip(jax.tree.leaves(once), jax.tree.leaves(once.project()), strict=True)
    for first, second in pairs:
        scale = np.abs(np.asarray(first)).max(initial=0.0)
        exam.close("project", second, first, scale, SINGLE, "a parameter projected twice")


def _note_schedule(exam: Exam, model: EnergyModel) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            schedule = str(blocks(model)).splitlines()
            exam.note("schedule", "; ".join(" ".join(row.split()[1:]) for row in schedule[1:]))
        except ValueError as error:
            exam.note("schedule", f"no block Gibbs: {error}")


def _check_log_partition(exam: Exam, model: EnergyModel) -> None:
    known = known_log_partition(model)
    if known is None:
        return
    discrete = [name for name, site in model.sites.items() if site.is_discrete]
    if StateSpace.of(model, discrete).size > 2**16:
        exam.note("known log Z", f"{known:.6g}, too many states to check")
        return
    summed = exact(model).log_partition
    exam.close("known log Z", known, summed, abs(summed), SINGLE, "the known log Z")
