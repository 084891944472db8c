"""The comparison on paper: a table for the screen, and a page that needs no other file."""

from __future__ import annotations

import base64
import html
import io
import math
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import arviz as az
import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from pgm_energy.plots import image_shape
from pgm_energy.serialization import library_version

__all__ = ["as_text", "figures", "html_table", "rich_table", "write_report"]

#: What a row of the table shows, and how a sampler's figures fill its cell.
_ROWS: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("energy, mean ± MCSE (nats)", lambda f: _with_error(f["energy_mean"], f["energy_mcse"])),
    ("ESS of the energy, bulk / tail", lambda f: _pair(f["ess_bulk_energy"], f["ess_tail_energy"])),
    ("ESS of the units, worst / median", lambda f: _pair(*_unit_ess(f))),
    ("R-hat, worst", lambda f: _number(f["rhat_max"], 3)),
    ("MCSE of a unit's mean, worst", lambda f: _number(f["mcse_max"], 4)),
    ("frozen units", lambda f: f"{f['frozen_units']} of {f['num_units']}"),
    ("divergences", lambda f: f"{f['divergences']}"),
    ("error of a mean, worst (MCSE)", lambda f: _error(f)),
    ("compilation (s)", lambda f: _seconds(f["compile_seconds"])),
    ("warm-up (s)", lambda f: _seconds(f["warmup_seconds"])),
    ("sampling (s)", lambda f: _seconds(f["sampling_seconds"])),
    ("worst ESS per second", lambda f: _short(f["ess_per_second"])),
    ("worst ESS per evaluation", lambda f: _rate(f)),
)

_NOTES = (
    "ESS is the effective sample size of all chains together; worst is the worst mixing unit. "
    "Frozen units never moved and are left out of the ESS, which would call them perfect. The "
    "error of a mean is held against the exact mean where enumeration is feasible (marked =), "
    "else against the sampler with the largest worst ESS (marked ~). "
    "Compilation is paid once, warm-up per run; an evaluation is a gradient, a sweep over all "
    "units, or an energy, whichever the sampler is made of."
)
_CAPTIONS = {
    "trace": "Energy along the chains (up to 16 of them). Chains that mix overlap.",
    "rank": (
        "Rank plot of the energy: each line is a chain, all should stay together around zero; "
        "black where one stands out."
    ),
    "ess": "Effective sample size of the energy as draws come in. It should grow like a line.",
    "autocorrelation": "Autocorrelation of the energy by lag: how soon a chain forgets.",
    "worst_unit": "Autocorrelation of the unit that mixes worst in any sampler.",
    "means": "Means of all units against the reference, with 2 standard errors.",
    "samples": "Draws of some chains (one per row), from the first to the last.",
}


def _number(value: float, digits: int) -> str:
    if math.isinf(value):
        return "inf"
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _short(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _pair(first: float, second: float) -> str:
    return f"{_short(first)} / {_short(second)}"


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _with_error(value: float, error: float) -> str:
    if math.isnan(error):
        return f"{value:.3f}"
    digits = max(0, min(6, 1 - math.floor(math.log10(error)))) if error > 0 else 3
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _unit_ess(row: Any) -> tuple[float, float]:
    worst = [v for k, v in row.items() if k.startswith("ess_bulk_min_")]
    median = [v for k, v in row.items() if k.startswith("ess_bulk_median_")]
    return float(np.min(worst)), float(np.min(median))


def _error(row: Any) -> str:
    if not math.isnan(row["exact_error"]):
        return f"= {row['exact_error']:.2g} ({row['exact_error_mcse']:.1f})"
    if not math.isnan(row["difference"]):
        return f"~ {row['difference']:.2g} ({row['difference_mcse']:.1f})"
    return "-"


def _rate(row: Any) -> str:
    value = row["ess_per_evaluation"]
    return "-" if math.isnan(value) else f"{value:.2g} per {row['evaluation']}"


# ---- on screen ---------------------------------------------------------------------------------


def rich_table(comparison: Any, *, verdicts: bool = True) -> Table:
    """Return the table of a comparison for a rich console, verdicts below it."""
    settings = comparison.settings
    table = Table(
        title=(
            f"{type(comparison.model).__name__}: {settings['num_chains']} chains, "
            f"{settings['num_warmup']} + {settings['num_samples']} steps each"
        ),
        caption=comparison.headline() if verdicts else None,
        caption_justify="left",
    )
    table.add_column("", overflow="fold")
    for name in comparison.summary.index:
        table.add_column(str(name), justify="right", overflow="fold")
    figures = [row for _, row in comparison.summary.iterrows()]
    for label, cell in _ROWS:
        table.add_row(label, *(cell(row) for row in figures))
    return table


def verdict_lines(comparison: Any) -> list[str]:
    """Return one line per sampler: its name and its verdict."""
    return [f"{name}: {text}" for name, text in comparison.summary["verdict"].items()]


def as_text(comparison: Any) -> str:
    """Return table, verdicts and headline as plain text."""
    buffer = io.StringIO()
    console = Console(file=buffer, width=100, color_system=None)
    console.print(rich_table(comparison, verdicts=False))
    lines = [*verdict_lines(comparison), comparison.headline()]
    return buffer.getvalue() + "\n".join(lines)


def html_table(comparison: Any) -> str:
    """Return the table and the verdicts as HTML."""
    figures = [row for _, row in comparison.summary.iterrows()]
    heads = "".join(f"<th>{html.escape(str(name))}</th>" for name in comparison.summary.index)
    rows = "".join(
        f"<tr><td>{html.escape(label)}</td>"
        + "".join(f"<td>{html.escape(cell(row))}</td>" for row in figures)
        + "</tr>"
        for label, cell in _ROWS
    )
    verdicts = "".join(
        f"<li><b>{html.escape(str(name))}</b>: {html.escape(text)}</li>"
        for name, text in comparison.summary["verdict"].items()
    )
    return (
        f"<table><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table>"
        f"<ul>{verdicts}</ul><p><b>{html.escape(comparison.headline())}</b></p>"
    )


# ---- on paper ----------------------------------------------------------------------------------


def figures(comparison: Any) -> dict[str, Figure]:
    """Return the figures of a comparison by name; close them when done."""
    out = {kind: comparison.plot(kind) for kind in ("trace", "rank", "ess", "autocorrelation")}
    site = _worst_site(comparison)
    if site is not None:
        out["worst_unit"] = comparison.plot("autocorrelation", site=site)
    out["means"] = comparison.plot("means")
    if any(image_shape(site) is not None for site in comparison.model.sites.values()):
        out["samples"] = comparison.plot("samples")
    return out


def _worst_site(comparison: Any) -> str | None:
    """The site with the smallest bulk ESS of any unit in any sampler."""
    columns = {f"ess_bulk_min_{name}": name for name in comparison.model.sites}
    worst = comparison.summary[list(columns)].min().dropna()
    return columns[worst.idxmin()] if len(worst) else None


def png_bytes(figure: Figure) -> bytes:
    """Return a figure as PNG, without the date, so that the same picture is the same file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def versions() -> dict[str, str]:
    """Return the versions that the numbers depend on."""
    return {
        "pgm-energy": library_version(),
        "jax": jax.__version__,
        "numpyro": numpyro.__version__,
        "arviz": az.__version__,
        "python": platform.python_version(),
        "device": f"{jax.devices()[0].platform} ({platform.machine()})",
    }


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto; padding: 0 1rem;
  color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid #ddd; text-align: right; }
th { background: #f4f4f4; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
figcaption, .notes { color: #555; font-size: 13px; }
"""


def write_report(
    comparison: Any,
    path: Path,
    *,
    title: str = "Samplers compared",
    settings: Mapping[str, Any] | None = None,
    more_figures: Mapping[str, tuple[Figure, str]] | None = None,
    picture_folder: Path | None = None,
) -> Path:
    """Write the page of a comparison, everything inside one file, and return its path.

    Parameters
    ----------
    comparison
        What :func:`pgm_energy.compare` returned.
    path
        The file to write.
    title
        Heading of the page.
    settings
        Further settings to list, such as the data and the seed.
    more_figures
        By name, a figure and its caption, shown after the comparison's own.
    picture_folder
        Where the pictures are also written as PNG; None: nowhere.
    """
    own = {name: (figure, _CAPTIONS[name]) for name, figure in figures(comparison).items()}
    pictures = []
    for name, (figure, caption) in {**own, **(more_figures or {})}.items():
        data = png_bytes(figure)
        if picture_folder is not None:
            (picture_folder / f"{name}.png").write_bytes(data)
        if name in own:
            plt.close(figure)
        encoded = base64.b64encode(data).decode("ascii")
        heading = name.replace("_", " ").capitalize().replace("Ess", "Effective sample size")
        pictures.append(
            f"<h2>{html.escape(heading)}</h2><figure>"
            f'<img alt="{html.escape(caption)}" src="data:image/png;base64,{encoded}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    listed = {
        "model": repr(comparison.model),
        **comparison.settings,
        **(settings or {}),
        **versions(),
    }
    rows = "".join(
        f"<tr><td>{html.escape(str(k).replace('_', ' '))}</td>"
        f'<td style="text-align:left">{html.escape(str(v))}</td></tr>'
        for k, v in listed.items()
    )
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{html.escape(title)}</h1>{html_table(comparison)}"
        f'<p class="notes">{html.escape(_NOTES)}</p>{"".join(pictures)}'
        f"<h2>Settings and versions</h2><table>{rows}</table></body></html>\n"
    )
    path.write_text(page, encoding="utf-8")
    return path
