"""Several samplers on one target: the same chains, the same questions, one table."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr

from pgm_energy._checks import require_count, require_key
from pgm_energy.diagnostics import Diagnosis, at_sites, build_datatree, diagnose
from pgm_energy.energy import EnergyModel
from pgm_energy.enumeration import StateSpace
from pgm_energy.exact_law import MAX_STATES, exact
from pgm_energy.transforms import marginalize

__all__ = ["Comparison", "compare"]

#: Statistics that are collected where a kernel's state has them, by NumPyro's names.
_FIELDS = ("potential_energy", "energy", "num_steps", "accept_prob", "diverging")
#: Columns that depend on the machine and its load; all others repeat with the seed.
TIMING_COLUMNS = (
    "compile_seconds",
    "warmup_seconds",
    "sampling_seconds",
    "ess_per_second",
    "ess_energy_per_second",
)
#: States of the smaller side that are listed: a comparison should not wait for its oracle.
_MAX_SUMMED_STATES = 2**16
#: Calls of one compiled function per sampler: progress is told, and Ctrl-C heard, in between.
_NUM_CHUNKS = 20

Progress = Callable[[str, str, float], None]


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    """Samplers of one target, diagnosed alike. Made by :func:`compare`; prints as a table.

    Attributes
    ----------
    model
        The target.
    summary
        One row per sampler (``pandas.DataFrame``). ESS are counts, times seconds, energies
        nats; ``TIMING_COLUMNS`` depend on the machine, the others repeat with the seed.
    datatrees
        The draws, by sampler (ArviZ ``DataTree``).
    diagnoses
        A :class:`pgm_energy.diagnostics.Diagnosis` by sampler, then by site and ``"energy"``.
    exact_means
        Exact E[T(x)] by site, or None where enumeration is out of reach.
    settings
        Numbers of chains, warm-up steps and draws.
    """

    model: EnergyModel
    summary: pd.DataFrame
    datatrees: dict[str, xr.DataTree]
    diagnoses: dict[str, dict[str, Diagnosis]]
    exact_means: dict[str, np.ndarray] | None
    settings: dict[str, Any]

    @property
    def results(self) -> pd.DataFrame:
        """The columns of ``summary`` that repeat with the seed."""
        return self.summary.drop(columns=list(TIMING_COLUMNS))

    @property
    def timings(self) -> pd.DataFrame:
        """The columns of ``summary`` that depend on the machine and its load."""
        return self.summary[list(TIMING_COLUMNS)]

    def headline(self) -> str:
        """Return one sentence on who is fastest, among the samplers that can be trusted."""
        return _headline(self.summary)

    def plot(self, kind: str = "trace", **options: Any) -> Any:
        """Return a matplotlib figure with one panel per sampler.

        Parameters
        ----------
        kind
            ``trace``, ``rank``, ``ess`` (evolution), ``autocorrelation``, ``means`` or
            ``samples`` (pictures, for image-shaped sites).
        **options
            ``site`` and ``unit`` for the first four (default: the energy), ``site`` for the
            other two.

        Raises
        ------
        ValueError
            On an unknown kind, or ``samples`` of a site that is no image.
        """
        from pgm_energy.plots import plot_comparison

        return plot_comparison(self, kind, **options)

    def to_html(self, path: str | PathLike[str]) -> Path:
        """Write a self-contained page (pictures inside) and return its path."""
        from pgm_energy.report import write_report

        return write_report(self, Path(path))

    def __rich__(self) -> Any:
        from pgm_energy.report import rich_table

        return rich_table(self)

    def __repr__(self) -> str:
        from pgm_energy.report import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        from pgm_energy.report import html_table

        return html_table(self)


def compare(
    rng_key: jax.Array,
    model: EnergyModel,
    samplers: Mapping[str, Any],
    *,
    num_warmup: int = 500,
    num_samples: int = 1000,
    num_chains: int = 4,
    progress: Progress | None = None,
) -> Comparison:
    """Run several samplers on one target and return what their chains say about them.

    Parameters
    ----------
    rng_key
        A JAX random key.
    model
        The target. To observe sites, condition it.
    samplers
        NumPyro kernels by name: ``{"block Gibbs": BlockGibbs(model), "NUTS":
        NUTS(relax(model)), "reference": DiscreteGibbs(model)}``. A kernel may sample the target
        or any transformation whose ``decode`` leads back to the target's sites.
    num_warmup, num_samples
        Steps of each chain that are thrown away, and that are kept.
    num_chains
        Chains of every sampler, run side by side (``jax.vmap``).
    progress
        Called with ``(sampler, phase, share done)`` some times per sampler; phases are
        ``"compile"``, ``"warmup"``, ``"sample"`` and ``"diagnose"``.

    Returns
    -------
    Comparison
        With ``summary``, ``datatrees``, ``plot`` and ``to_html``.

    Raises
    ------
    TypeError
        If a sampler is no kernel, or its model no energy model.
    ValueError
        On a count below 1, no samplers, or draws that do not lead to the target's sites.

    Notes
    -----
    Initialisation and compilation, warm-up, and sampling are timed apart; decoding counts as
    sampling. The kernels that are passed stay unchanged. ``ess_min`` is the bulk ESS of the worst
    mixing of the energy and all units; rates are ``ess_min`` per second of sampling and per
    evaluation: gradients for HMC and NUTS (all leapfrog steps), sweeps for ``BlockGibbs``, energy
    evaluations for ``DiscreteGibbs``. Chains run in step, so with NUTS all wait for the longest
    trajectory. Means are held against the exact ones where enumeration is feasible, and against
    the sampler with the largest ``ess_min`` otherwise.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, pgm_energy as pgm
    >>> rbm = pgm.RBM(weights=jnp.ones((3, 2)))
    >>> table = pgm.compare(jax.random.key(0), rbm, {"block Gibbs": pgm.BlockGibbs(rbm)},
    ...                     num_warmup=10, num_samples=100)
    >>> float(table.summary.loc["block Gibbs", "frozen_units"])
    0.0
    """
    rng_key = require_key(rng_key)
    if not isinstance(model, EnergyModel):
        raise TypeError(f"compare takes an energy model, got {type(model).__name__}")
    num_warmup = require_count("num_warmup", num_warmup, minimum=0)
    num_samples = require_count("num_samples", num_samples, minimum=4)
    num_chains = require_count("num_chains", num_chains)
    _check_samplers(samplers)
    tell = progress or (lambda name, phase, share: None)
    rows, trees, diagnoses = {}, {}, {}
    for number, (name, kernel) in enumerate(samplers.items()):
        key = jax.random.fold_in(rng_key, number)
        run = _Run(
            kernel, model, num_warmup, num_samples, num_chains, functools.partial(tell, name)
        )
        trees[name], rows[name] = run(key)
        tell(name, "diagnose", 0.0)
        diagnoses[name] = diagnose(trees[name], model)
        rows[name].update(_figures(trees[name], diagnoses[name], model))
        tell(name, "diagnose", 1.0)
    means = exact_means(model)
    _compare_means(rows, diagnoses, means, model.sites, num_chains * num_samples)
    for row in rows.values():
        row["ess_per_evaluation"] = row["ess_min"] / row["evaluations"]
        row["ess_per_second"] = row["ess_min"] / row["sampling_seconds"]
        row["ess_energy_per_second"] = row["ess_bulk_energy"] / row["sampling_seconds"]
        row["verdict"] = _verdict(row, num_chains)
    summary = pd.DataFrame.from_dict(rows, orient="index")
    summary.index.name = "sampler"
    last = [*TIMING_COLUMNS, "verdict"]
    summary = summary[[c for c in summary.columns if c not in last] + last]
    settings = {"num_chains": num_chains, "num_warmup": num_warmup, "num_samples": num_samples}
    return Comparison(model, summary, trees, diagnoses, means, settings)


def _check_samplers(samplers: Any) -> None:
    if not isinstance(samplers, Mapping) or not samplers:
        raise ValueError(
            "samplers must be a dict of NumPyro kernels by name, such as "
            f"{{'block Gibbs': BlockGibbs(model)}}, got {samplers!r}"
        )
    for name, kernel in samplers.items():
        if not all(hasattr(kernel, part) for part in ("init", "sample", "sample_field")):
            raise TypeError(f"sampler {name!r} must be a NumPyro kernel, got {kernel!r}")
        if not isinstance(getattr(kernel, "model", None), EnergyModel):
            raise TypeError(
                f"sampler {name!r} must hold an energy model (the target or a transformation of "
                f"it), got {type(getattr(kernel, 'model', None)).__name__}"
            )


# ---- running one sampler -----------------------------------------------------------------------


@dataclasses.dataclass
class _Run:
    """One kernel, all chains side by side, every phase timed by itself."""

    kernel: Any
    model: EnergyModel
    num_warmup: int
    num_samples: int
    num_chains: int
    tell: Callable[[str, float], None]

    def __call__(self, rng_key: jax.Array) -> tuple[xr.DataTree, dict[str, Any]]:
        kernel = copy.copy(self.kernel)  # NumPyro's kernels remember what init saw
        init_key, decode_key = jax.random.split(rng_key)
        keys = jax.random.split(init_key, self.num_chains)
        self.tell("compile", 0.0)
        started = time.perf_counter()

        def init(key: jax.Array) -> Any:
            return kernel.init(key, self.num_warmup, None, model_args=(), model_kwargs={})

        state = jax.vmap(init)(keys)
        init(keys[0])  # what the kernel remembers must not stem from inside the vmap
        length = math.ceil(max(self.num_warmup, self.num_samples) / _NUM_CHUNKS)
        advance = jax.jit(functools.partial(_advance, kernel, length))
        advance = advance.lower(state, 0).compile()
        compile_seconds = time.perf_counter() - started
        self.tell("compile", 1.0)
        state, _, warmup_seconds = self._phase("warmup", advance, state, self.num_warmup, length)
        state, parts, seconds = self._phase("sample", advance, state, self.num_samples, length)
        samples, fields = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *parts)
        tree, decode_compile, decode_seconds = self._tree(decode_key, samples, fields)
        row = {
            "compile_seconds": compile_seconds + decode_compile,
            "warmup_seconds": warmup_seconds,
            "sampling_seconds": seconds + decode_seconds,
            **_evaluations(kernel, self.num_chains * self.num_samples, fields),
        }
        return tree, row

    def _phase(
        self, name: str, advance: Any, state: Any, steps: int, length: int
    ) -> tuple[Any, list[Any], float]:
        seconds, parts, done = 0.0, [], 0
        self.tell(name, 0.0)
        while done < steps:
            count = min(length, steps - done)
            started = time.perf_counter()
            state, buffers = jax.block_until_ready(advance(state, count))
            seconds += time.perf_counter() - started
            if name == "sample":
                parts.append(
                    jax.tree.map(lambda x: np.moveaxis(np.asarray(x[:count]), 0, 1), buffers)
                )
            done += count
            self.tell(name, done / steps)
        return state, parts, seconds

    def _tree(
        self, rng_key: jax.Array, samples: Any, fields: Any
    ) -> tuple[xr.DataTree, float, float]:
        """Draws at the target's sites, with seconds of compiling and of decoding."""
        sampled = self.kernel.model
        attrs = {
            "sampler": type(self.kernel).__name__,
            "num_warmup": self.num_warmup,
            "sampled_model": type(sampled).__name__,
        }
        if sampled is self.model:
            return build_datatree(samples, fields, sampled, attrs=attrs), 0.0, 0.0
        started = time.perf_counter()
        decode = jax.jit(lambda key, values, twin: twin.decode(key, values))
        decode = decode.lower(rng_key, samples, sampled).compile()
        compiled = time.perf_counter()
        decoded = jax.block_until_ready(decode(rng_key, samples, sampled))
        seconds = time.perf_counter() - compiled
        decoded = at_sites(self.model, sampled, {k: np.asarray(v) for k, v in decoded.items()})
        potential = fields.pop("potential_energy", None)
        if potential is not None:  # of what was sampled; the energy is the target's
            fields["lp"] = -potential
        tree = build_datatree(decoded, fields, self.model, attrs=attrs)
        return tree, compiled - started, seconds


def _advance(kernel: Any, length: int, state: Any, count: Any) -> tuple[Any, Any]:
    """Take ``count <= length`` steps of all chains; draws and statistics lie ``(step, chain)``."""
    step = jax.vmap(lambda one: kernel.sample(one, (), {}))

    def look(one: Any) -> Any:
        values = kernel.postprocess_fn((), {})(getattr(one, kernel.sample_field))
        fields = {name: getattr(one, name) for name in _FIELDS if hasattr(one, name)}
        if hasattr(one, "adapt_state"):
            fields["adapt_state.step_size"] = one.adapt_state.step_size
        return values, fields

    shapes = jax.eval_shape(jax.vmap(look), state)
    buffers = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), shapes)

    def body(i: jax.Array, carry: Any) -> Any:
        state, buffers = carry
        state = step(state)
        new = jax.vmap(look)(state)
        return state, jax.tree.map(lambda b, x: b.at[i].set(x), buffers, new)

    return jax.lax.fori_loop(0, count, body, (state, buffers))


def _evaluations(kernel: Any, draws: int, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What the draws cost, in the unit that the kernel works in."""
    if "num_steps" in fields:
        return {"evaluations": int(fields["num_steps"].sum()), "evaluation": "gradient"}
    sites = kernel.model.sites.values()
    if hasattr(kernel, "num_sweeps"):
        return {"evaluations": draws * int(kernel.num_sweeps), "evaluation": "sweep"}
    if type(kernel).__name__ == "DiscreteGibbs":  # every state of a unit but the present one
        each = sum(site.size * (len(site.states) - 1) for site in sites if site.is_discrete)
        return {"evaluations": draws * each, "evaluation": "energy"}
    return {"evaluations": draws, "evaluation": "step"}


# ---- figures -----------------------------------------------------------------------------------


def _figures(
    tree: xr.DataTree, diagnosis: Mapping[str, Diagnosis], model: EnergyModel
) -> dict[str, Any]:
    """The columns of one sampler that its own chains give."""
    energy = diagnosis["energy"]
    row: dict[str, Any] = {
        "energy_mean": float(energy.mean[0]),
        "energy_sd": float(energy.sd[0]),
        "energy_mcse": float(energy.mcse[0]),
        "ess_bulk_energy": float(energy.ess_bulk[0]),
        "ess_tail_energy": float(energy.ess_tail[0]),
    }
    for name in model.sites:
        for kind in ("ess_bulk", "ess_tail"):
            values = getattr(diagnosis[name], kind)
            row[f"{kind}_min_{name}"] = _nan_or(np.nanmin, values)
            row[f"{kind}_median_{name}"] = _nan_or(np.nanmedian, values)
    parts = [diagnosis["energy"], *(diagnosis[name] for name in model.sites)]
    row["ess_min"] = _nan_or(np.nanmin, np.concatenate([d.ess_bulk for d in parts]))
    row["rhat_max"] = _nan_or(np.nanmax, np.concatenate([d.rhat for d in parts]))
    row["mcse_max"] = _nan_or(np.nanmax, np.concatenate([d.mcse for d in parts[1:]]))
    stats = tree["sample_stats"]
    row["divergences"] = int(stats["diverging"].sum()) if "diverging" in stats else 0
    units = [_by_unit(diagnosis[name], site) for name, site in model.sites.items()]
    row["num_units"] = sum(site.size for site in model.sites.values())
    row["frozen_units"] = sum(int(frozen.sum()) for frozen, _ in units)
    row["stuck_units"] = sum(int(stuck.sum()) for _, stuck in units)
    row["finite"] = bool(np.isfinite(stats["energy"].values).all())
    return row


def _by_unit(diagnosis: Diagnosis, site: Any) -> tuple[np.ndarray, np.ndarray]:
    """Masks of frozen and of stuck units, state indicators of a unit taken together."""
    shape = (site.size, -1)
    frozen = diagnosis.frozen.reshape(shape).all(axis=1)
    return frozen, frozen & diagnosis.stuck.reshape(shape).any(axis=1)


def _nan_or(function: Callable[[np.ndarray], Any], values: np.ndarray) -> float:
    return float(function(values)) if not np.isnan(values).all() else math.nan


def exact_means(model: EnergyModel) -> dict[str, np.ndarray] | None:
    """Return exact E[T(x)] by site, or None where enumeration is out of reach.

    Notes
    -----
    By listing all states of the discrete sites, or those that are left when one site of
    independent units is summed out in closed form, up to 2^16.
    """
    discrete = [name for name, site in model.sites.items() if site.is_discrete]
    try:
        if StateSpace.of(model, discrete).size <= MAX_STATES:
            return exact(model).means
    except ValueError:
        return None
    for name in sorted(discrete, key=lambda name: -model.sites[name].size):
        rest = [other for other in discrete if other != name]
        if not rest or StateSpace.of(model, rest).size > _MAX_SUMMED_STATES:
            continue
        try:
            reduced: Any = marginalize(model, name)
            result = exact(reduced)
        except ValueError:
            continue
        return {**result.means, name: result.expectation(reduced.conditional_mean)}
    return None


def _errors(diagnosis: Diagnosis, means: np.ndarray, site: Any, draws: int) -> Any:
    """Differences from given means, and the standard errors of ours.

    A discrete statistic has two values, so the given mean knows its variance: a unit that
    never moved where it should is then seen as the error that it is.
    """
    means = np.asarray(means, np.float64).reshape(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        effective = np.where(np.isnan(diagnosis.mcse), draws, (diagnosis.sd / diagnosis.mcse) ** 2)
    if site.is_discrete:
        low, high = (0.0, 1.0) if site.event else (site.states.min(), site.states.max())
        variance = np.maximum((high - means) * (means - low), 0.0)
        std_error = np.sqrt(variance / np.maximum(effective, 1.0))
    else:
        std_error = diagnosis.mcse
    return diagnosis.mean - means, std_error


def _worst(difference: np.ndarray, std_error: np.ndarray) -> tuple[float, float]:
    """Largest absolute difference, and largest in standard errors."""
    size = np.abs(difference)
    # float32 energies know a probability to about 1e-6, however many draws there are
    scaled = np.where(size <= 1e-6, 0.0, size / np.maximum(std_error, 1e-12))
    return float(size.max()), float(scaled.max())


def _compare_means(
    rows: dict[str, dict[str, Any]],
    diagnoses: Mapping[str, Mapping[str, Diagnosis]],
    exact: Mapping[str, np.ndarray] | None,
    sites: Mapping[str, Any],
    draws: int,
) -> None:
    """Add the errors against the exact means, and the differences from the best sampler."""
    best = max(rows, key=lambda name: np.nan_to_num(rows[name]["ess_min"], nan=-1.0))
    for name, row in rows.items():
        row["exact_error"], row["exact_error_mcse"] = math.nan, math.nan
        if exact is not None:
            pairs = [
                _worst(*_errors(diagnoses[name][k], exact[k], s, draws)) for k, s in sites.items()
            ]
            row["exact_error"] = max(p[0] for p in pairs)
            row["exact_error_mcse"] = max(p[1] for p in pairs)
        row["reference"] = best if name != best else ""
        row["difference"], row["difference_mcse"] = math.nan, math.nan
        if name != best:
            pairs = [
                _worst(*_difference(diagnoses[name][k], diagnoses[best][k], s, draws))
                for k, s in sites.items()
            ]
            row["difference"] = max(p[0] for p in pairs)
            row["difference_mcse"] = max(p[1] for p in pairs)


def _difference(a: Diagnosis, b: Diagnosis, site: Any, draws: int) -> Any:
    middle = 0.5 * (a.mean + b.mean)
    _, first = _errors(a, middle, site, draws)
    _, second = _errors(b, middle, site, draws)
    return a.mean - b.mean, np.hypot(first, second)


# ---- words -------------------------------------------------------------------------------------

#: Where a figure becomes a reason to distrust: all known from Vehtari et al. (2021), but R-hat
#: here is the worst of many units, each with its own noise.
_RHAT, _ESS_PER_CHAIN, _MCSE = 1.05, 25, 5.0


def _verdict(row: Mapping[str, Any], num_chains: int) -> str:
    """Say in one or two sentences whether the draws can be used."""
    problems = _problems(row, num_chains)
    if problems:
        return f"{problems[0][0].upper()}{problems[0][1:]}" + (
            f"; also {', '.join(problems[1:])}." if len(problems) > 1 else "."
        )
    agreement = ""
    if not math.isnan(row["exact_error_mcse"]):
        agreement = (
            f", means within {row['exact_error']:.2g} ({row['exact_error_mcse']:.1f} MCSE) of "
            "the exact ones"
        )
    elif row["reference"]:
        agreement = f", means agree with {row['reference']}"
    frozen = ""
    if row["frozen_units"]:
        frozen = (
            f" {row['frozen_units']} of {row['num_units']} units never moved and are left out of "
            "the ESS."
        )
    return (
        f"Can be trusted: R-hat at most {row['rhat_max']:.3f}, at least {row['ess_min']:,.0f} "
        f"effective draws{agreement}.{frozen}"
    )


def _problems(row: Mapping[str, Any], num_chains: int) -> list[str]:
    """Reasons not to trust the draws, the gravest first, each a clause."""
    out = []
    if not row["finite"]:
        out.append("broken: the energy is not finite at some draws")
    if row["exact_error_mcse"] > _MCSE:
        out.append(
            f"wrong: a mean is off by {row['exact_error']:.2g} "
            f"({row['exact_error_mcse']:.0f} MCSE) from the exact one"
        )
    if row["stuck_units"]:
        out.append(
            f"not mixing: {row['stuck_units']} units never moved and differ between chains"
        )
    if math.isnan(row["ess_min"]):
        out.append("nothing moved: no statistic changed in any chain")
    elif row["rhat_max"] > _RHAT and not row["stuck_units"]:
        out.append(f"not converged: R-hat reaches {row['rhat_max']:.2f}, run it longer")
    elif row["ess_min"] < max(100, _ESS_PER_CHAIN * num_chains):
        out.append(f"too short: only {row['ess_min']:,.0f} effective draws of the worst unit")
    if math.isnan(row["exact_error_mcse"]) and row["difference_mcse"] > _MCSE + 1:
        out.append(
            f"a mean differs by {row['difference']:.2g} ({row['difference_mcse']:.0f} standard "
            f"errors) from {row['reference']}"
        )
    if row["divergences"]:
        out.append(f"{row['divergences']} divergent transitions")
    return out


def _headline(summary: pd.DataFrame) -> str:
    usable = summary[summary["verdict"].str.startswith("Can be trusted")]
    if usable.empty:
        return "No sampler can be trusted here yet: see the verdicts."
    order = usable.sort_values("ess_per_second", ascending=False)
    best = order.index[0]
    rate = order["ess_per_second"].iloc[0]
    text = f"Fastest: {best}, {rate:,.0f} effective draws per second of its worst unit"
    if len(order) > 1:
        times = [
            f"{rate / other:,.{0 if rate / other >= 10 else 1}f} times {name}"
            for name, other in order["ess_per_second"].iloc[1:].items()
        ]
        text += f", {' and '.join(times)}"
    return text + "."
