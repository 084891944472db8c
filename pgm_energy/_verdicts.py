"""Are the draws right, and can they be used? Numbers first, then a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from pgm_energy.convergence import Diagnosis
from pgm_energy.energy import EnergyModel
from pgm_energy.enumeration import StateSpace
from pgm_energy.exact_law import MAX_STATES, exact
from pgm_energy.transforms import marginalize

__all__ = ["compare_means", "exact_means", "headline", "verdict"]

#: States of the smaller side that are listed: a comparison should not wait for its oracle.
_MAX_SUMMED_STATES = 2**16


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


def compare_means(
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


def verdict(row: Mapping[str, Any], num_chains: int) -> str:
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
    off = row["exact_error_mcse"] > _MCSE
    error = (
        f"a mean is off by {row['exact_error']:.2g} ({row['exact_error_mcse']:.0f} MCSE) from the "
        "exact one"
    )
    unsettled = not math.isnan(row["ess_min"]) and row["rhat_max"] > _RHAT
    if off and not unsettled:
        out.append(f"wrong: {error}, so a mode is missed or the sampler is at fault")
    if row["stuck_units"]:
        out.append(
            f"not mixing: {row['stuck_units']} unit(s) kept to values that differ between chains"
        )
    if math.isnan(row["ess_min"]):
        out.append("nothing moved: no statistic changed in any chain")
    elif unsettled and not row["stuck_units"]:
        out.append(f"not converged: R-hat reaches {row['rhat_max']:.2f}, run it longer")
    elif row["ess_min"] < max(100, _ESS_PER_CHAIN * num_chains):
        out.append(f"too short: only {row['ess_min']:,.0f} effective draws of the worst unit")
    if math.isnan(row["exact_error_mcse"]) and row["difference_mcse"] > _MCSE + 1:
        out.append(
            f"a mean differs by {row['difference']:.2g} ({row['difference_mcse']:.0f} standard "
            f"errors) from {row['reference']}"
        )
    if off and unsettled:  # chains that disagree underestimate their own error
        out.append(error)
    if row["divergences"]:
        out.append(f"{row['divergences']} divergent transitions")
    return out


def headline(summary: pd.DataFrame) -> str:
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
