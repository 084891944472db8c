"""Several samplers on one target: the same chains, the same questions, one table."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import xarray as xr

from pgm_energy._checks import require_count, require_key
from pgm_energy._struct import Key
from pgm_energy._timed_run import TimedRun
from pgm_energy._verdicts import compare_means, exact_means, headline, verdict
from pgm_energy.convergence import Diagnosis, diagnose
from pgm_energy.diagnostics import require_sites_of
from pgm_energy.energy import EnergyModel

__all__ = ["Comparison", "compare"]

#: Columns that depend on the machine and its load; all others repeat with the seed.
TIMING_COLUMNS = (
    "compile_seconds",
    "warmup_seconds",
    "sampling_seconds",
    "ess_per_second",
    "ess_energy_per_second",
)

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
        A :class:`pgm_energy.convergence.Diagnosis` by sampler, then by site and ``"energy"``.
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
        return headline(self.summary)

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
    rng_key: Key,
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
    _check_samplers(rng_key, model, samplers)
    tell = progress or (lambda name, phase, share: None)
    rows, trees, diagnoses = {}, {}, {}
    for number, (name, kernel) in enumerate(samplers.items()):
        key = jax.random.fold_in(rng_key, number)
        run = TimedRun(
            kernel, model, num_warmup, num_samples, num_chains, functools.partial(tell, name)
        )
        trees[name], rows[name] = run(key)
        tell(name, "diagnose", 0.0)
        diagnoses[name] = diagnose(trees[name], model)
        rows[name].update(_figures(trees[name], diagnoses[name], model))
        tell(name, "diagnose", 1.0)
    means = exact_means(model)
    compare_means(rows, diagnoses, means, model.sites, num_chains * num_samples)
    for row in rows.values():
        row["ess_per_evaluation"] = row["ess_min"] / row["evaluations"]
        row["ess_per_second"] = row["ess_min"] / row["sampling_seconds"]
        row["ess_energy_per_second"] = row["ess_bulk_energy"] / row["sampling_seconds"]
        row["verdict"] = verdict(row, num_chains)
    summary = pd.DataFrame.from_dict(rows, orient="index")
    summary.index.name = "sampler"
    last = [*TIMING_COLUMNS, "verdict"]
    summary = summary[[c for c in summary.columns if c not in last] + last]
    settings = {"num_chains": num_chains, "num_warmup": num_warmup, "num_samples": num_samples}
    return Comparison(model, summary, trees, diagnoses, means, settings)


def _check_samplers(rng_key: Key, model: EnergyModel, samplers: Any) -> None:
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
        if kernel.model is not model:
            _check_target(rng_key, model, kernel.model)


def _check_target(rng_key: Key, model: EnergyModel, sampled: EnergyModel) -> None:
    """Refuse, before anything runs, a kernel whose draws do not lead to the target's sites."""
    draw = {k: jax.ShapeDtypeStruct(s.shape, s.dtype) for k, s in sampled.sites.items()}
    decoded = jax.eval_shape(
        lambda key, values, twin: twin.decode(key, values), rng_key, draw, sampled
    )
    require_sites_of(model, sampled, {name: value.shape for name, value in decoded.items()})


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
    stats = tree["sample_stats"].to_dataset()
    row["divergences"] = int(stats["diverging"].sum()) if "diverging" in stats else 0
    units = [_by_unit(diagnosis[name], site) for name, site in model.sites.items()]
    row["num_units"] = sum(site.size for site in model.sites.values())
    row["frozen_units"] = sum(int(frozen.sum()) for frozen, _ in units)
    row["stuck_units"] = sum(int(stuck.sum()) for _, stuck in units)
    row["finite"] = bool(np.isfinite(stats["energy"].values).all())
    return row


def _by_unit(diagnosis: Diagnosis, site: Any) -> tuple[np.ndarray, np.ndarray]:
    """Masks of units that never moved, and of units with a value that some chains keep to."""
    shape = (site.size, -1)
    frozen = diagnosis.frozen.reshape(shape).all(axis=1)
    return frozen, diagnosis.stuck.reshape(shape).any(axis=1)


def _nan_or(function: Callable[[np.ndarray], Any], values: np.ndarray) -> float:
    return float(function(values)) if not np.isnan(values).all() else math.nan
