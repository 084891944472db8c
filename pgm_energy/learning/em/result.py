"""What EM found, its information criteria, and how it went in words."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

__all__ = ["EMResult", "explain"]


class EMResult(NamedTuple):
    """What EM found.

    Attributes
    ----------
    model
        The mixture of the best start.
    log_likelihood
        Its total log-likelihood of the data (weights of rows included), nats.
    converged
        Whether the best start changed by less than ``tol`` per row at the end.
    message
        How it went, in words.
    history
        What is maximised, for the best start before the first step and after each, nats: the
        total log-likelihood, plus the log-density of the prior (up to a constant) where there is
        one.
    log_likelihoods
        Final total log-likelihood of every start, nats.
    entropy
        Sum over rows of the entropy of their responsibilities, nats: 0 where every row belongs
        to one component only.
    num_parameters
        Free parameters of the mixture.
    num_rows
        Rows, each counted with its weight.

    Notes
    -----
    Criteria are in the form in which lower is better, as in scikit-learn; half of one is in nats.
    """

    model: Any
    log_likelihood: float
    converged: bool
    message: str
    history: np.ndarray
    log_likelihoods: np.ndarray
    entropy: float
    num_parameters: int
    num_rows: float

    @property
    def aic(self) -> float:
        """Akaike's information criterion, ``2 p - 2 log L``; lower is better."""
        return 2.0 * self.num_parameters - 2.0 * self.log_likelihood

    @property
    def bic(self) -> float:
        """Schwarz's (Bayesian) information criterion, ``p log N - 2 log L``; lower is better."""
        return self.num_parameters * math.log(self.num_rows) - 2.0 * self.log_likelihood

    @property
    def icl(self) -> float:
        """Integrated completed likelihood, ``bic + 2 entropy``; lower is better.

        It asks for clusters that are told apart, where BIC asks for the density (Biernacki,
        Celeux and Govaert 2000; McLachlan and Peel 2000, section 6.11).
        """
        return self.bic + 2.0 * self.entropy


def explain(
    *,
    steps: int,
    converged: bool,
    interrupted: bool,
    max_steps: int,
    tol: float,
    same: int,
    num_starts: int,
    floored: np.ndarray,
    masses: np.ndarray,
) -> str:
    """Return how a run went, in sentences."""
    if converged:
        text = (
            f"Converged after {steps} step{'s' if steps != 1 else ''}: the last changed the "
            f"log-likelihood by less than {tol:g} nats per row."
        )
    elif interrupted:
        text = f"Interrupted after {steps} steps; the result is that of these."
    else:
        text = f"Not converged: stopped at max_steps={max_steps}; raise it, or tol={tol:g}."
    if num_starts > 1:
        text += f" Best of {num_starts} starts, {same} of which came within 0.001 nats per row."
    if floored.any():
        text += (
            f" The variance floor holds up component(s) {_listed(floored)}: a column is constant "
            "there, or the component collapsed on a few rows; a prior (MixturePrior("
            "covariance_rows=)) keeps it from that."
        )
    if (masses < 0.5).any():
        text += (
            f" Component(s) {_listed(masses < 0.5)} hold less than half a row: use fewer "
            "components."
        )
    return text


def _listed(which: np.ndarray) -> str:
    return ", ".join(str(int(k)) for k in np.flatnonzero(which))
