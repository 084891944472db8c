"""Tests of draws against a law, and of draws against draws: Pearson's chi-square (SciPy)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pgm_energy.testing.exam import Exam

__all__ = ["Columns", "check_against_law", "check_chains", "check_pairs", "check_same", "columns"]

#: Fewest draws expected in a cell, of one sample against a law and of two samples together.
_FEWEST, _FEWEST_OF_TWO = 5.0, 20
#: Cells that a real variable is cut into for pairs.
_CUTS = 4
#: Most variables whose pairs are compared: evenly spread where there are more.
_MOST_VARIABLES = 32
#: What has been behind a failure, for its message.
_CAUSES = (
    ". Look for units drawn at once that interact, a key used twice, natural parameters of an "
    "earlier configuration or of another sign, a swap or an acceptance by another energy"
)

#: Integer codes of every variable, ``(num_draws,)`` by its name.
Columns = dict[str, np.ndarray]


def columns(*samples: Mapping[str, Any]) -> list[Columns]:
    """Return the units of several samples as integer codes by name, coded alike.

    Discrete units keep their states; real ones are cut at the quantiles of all samples together.
    """
    counts = [len(next(iter(sample.values()))) for sample in samples]
    coded: Columns = {}
    for name in samples[0]:
        both = np.concatenate([np.asarray(sample[name]) for sample in samples])
        flat = both.reshape(len(both), -1)
        for unit, column in enumerate(flat.T):
            place = np.unravel_index(unit, both.shape[1:]) if both.ndim > 1 else ()
            label = f"{name}[{', '.join(str(int(i)) for i in place)}]" if place else name
            if np.issubdtype(column.dtype, np.floating):
                edges = np.quantile(column, np.arange(1, _CUTS) / _CUTS)
                coded[label] = np.searchsorted(edges, column)
            else:
                coded[label] = np.unique(column, return_inverse=True)[1]
    parts = np.cumsum(counts)[:-1]
    split = {label: np.split(column, parts) for label, column in coded.items()}
    return [{label: part[i] for label, part in split.items()} for i in range(len(samples))]


def check_against_law(
    exam: Exam, law: np.ndarray, counts: np.ndarray, alpha: float, describe: Callable[[int], str]
) -> None:
    """Counts of joint states against their probabilities; rare states are pooled."""
    from scipy import stats

    total = int(counts.sum())
    impossible = counts[law == 0.0].sum()
    if impossible:
        exam.fail("chi-square", f"{impossible} draws in states of probability zero")
    order = np.argsort(law)
    expected, observed = law[order] * total, counts[order]
    rare = int(np.searchsorted(expected, _FEWEST))
    while rare and expected[:rare].sum() < _FEWEST and rare < len(expected):
        rare += 1
    if rare:
        expected = np.append(expected[rare:], expected[:rare].sum())
        observed = np.append(observed[rare:], observed[:rare].sum())
    if len(expected) < 2:
        raise ValueError(
            f"{total} draws are too few for a test over {len(law)} states: raise num_draws"
        )
    result = stats.chisquare(observed, expected * (total / expected.sum()))
    worst = int(np.argmax(np.abs(counts - total * law) / np.sqrt(np.maximum(total * law, 1.0))))
    where = f"; {describe(worst)} came {counts[worst]} times, {total * law[worst]:.1f} expected"
    statistic, pvalue = float(result.statistic), float(result.pvalue)
    _judge(exam, statistic, pvalue, len(expected), alpha, total, where)


def check_same(
    exam: Exam, cells: np.ndarray, moved: np.ndarray, fresh: np.ndarray, alpha: float
) -> None:
    """Moved against fresh draws over joint states and quantiles of the real units.

    ``cells`` are the states' numbers, moved first; ``moved`` and ``fresh`` the real units.
    """
    from scipy import stats

    reals = np.concatenate([moved, fresh])
    if not np.isfinite(reals).all():
        exam.fail("chi-square", "the kernel moved a real unit to NaN or infinity")
    width = 4 if reals.shape[1] <= 4 else 2
    # each cut adds a factor to the number of cells: the first few units, and the total
    for column in (*reals.T[:5], reals.sum(axis=1)):
        edges = np.quantile(column, np.arange(1, width) / width)
        cells = cells * width + np.searchsorted(edges, column)
    table = _table(*np.split(np.unique(cells, return_inverse=True)[1], 2))
    if table.shape[1] < 2:
        raise ValueError(f"{len(moved)} draws are too few for a test: raise num_draws")
    result = stats.chi2_contingency(table, correction=False)
    statistic, pvalue = float(result.statistic), float(result.pvalue)
    _judge(exam, statistic, pvalue, table.shape[1], alpha, len(moved))


def _judge(
    exam: Exam,
    statistic: float,
    pvalue: float,
    cells: int,
    alpha: float,
    total: int,
    where: str = "",
) -> None:
    text = f"p = {pvalue:.3g}, statistic {statistic:.1f}, {cells} cells, {total} draws"
    if pvalue < alpha:
        exam.fail("chi-square", f"{text}: below alpha = {alpha:.0e}{where}{_CAUSES}")
    exam.note("chi-square", text)


def check_pairs(exam: Exam, name: str, moved: Columns, fresh: Columns, alpha: float) -> None:
    """Moved against fresh draws, the joint frequencies of every pair of variables.

    The joint-distribution test of J. Geweke (2004): what a kernel makes of exact draws of all
    variables, auxiliary ones included, against exact draws.
    """
    labels = list(moved)
    if len(labels) > _MOST_VARIABLES:
        labels = [labels[i] for i in np.linspace(0, len(labels) - 1, _MOST_VARIABLES).astype(int)]
    pairs = list(itertools.combinations(labels, 2)) or [(labels[0], labels[0])]
    found = []
    for first, second in pairs:
        width = 1 + max(moved[second].max(), fresh[second].max())
        table = _table(*(x[first] * width + x[second] for x in (moved, fresh)))
        found.append(_p_value(table))
    _judge_all(exam, name, found, [f"{a} and {b}" for a, b in pairs], alpha, _CAUSES)


def check_chains(exam: Exam, moved: Columns, alpha: float) -> None:
    """Every second chain against its neighbour, unit by unit: the same noise would show."""
    found = []
    for column in moved.values():
        pairs = column[: len(column) // 2 * 2].reshape(-1, 2)
        width = 1 + int(column.max())
        counts = np.bincount(pairs[:, 0] * width + pairs[:, 1], minlength=width**2)
        table = counts.reshape(width, width)
        # rows and columns of few draws say nothing, and the approximation needs many
        table = table[table.sum(axis=1) >= 100][:, table.sum(axis=0) >= 100]
        found.append(_p_value(table))
    labels = [f"{label} of neighbours" for label in moved]
    hint = ". Chains share their noise: split the key once more, by chain"
    _judge_all(exam, "chains", found, labels, alpha, hint)


def _judge_all(
    exam: Exam, name: str, found: list[float], labels: list[str], alpha: float, hint: str
) -> None:
    worst = int(np.argmin(found))
    level = alpha / len(found)
    text = f"smallest p = {found[worst]:.3g} of {len(found)} ({labels[worst]})"
    if found[worst] < level:
        exam.fail(name, f"{text}: below alpha / {len(found)} = {level:.0e}{hint}")
    exam.note(name, text)


def _table(moved: np.ndarray, fresh: np.ndarray) -> np.ndarray:
    """Counts of both samples by cell, ``(2, cells)``, rare cells pooled."""
    num = 1 + int(max(moved.max(), fresh.max()))
    table = np.stack([np.bincount(part, minlength=num) for part in (moved, fresh)])
    table = table[:, table.sum(axis=0) > 0]
    table = table[:, np.argsort(table.sum(axis=0))]
    rare = int(np.searchsorted(table.sum(axis=0), _FEWEST_OF_TWO))
    while rare and table[:, :rare].sum() < _FEWEST_OF_TWO and rare < table.shape[1]:
        rare += 1
    if rare:
        pooled = table[:, :rare].sum(axis=1, keepdims=True)
        table = np.concatenate([table[:, rare:], pooled], axis=1)
    return table


def _p_value(table: np.ndarray) -> float:
    """Of equal rows; 1 where there is nothing to compare."""
    from scipy import stats

    if min(table.shape) < 2:
        return 1.0
    return float(stats.chi2_contingency(table, correction=False).pvalue)
