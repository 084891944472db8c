"""Bennett's acceptance ratio: the ratio of two partition functions from samples of both."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import logsumexp

__all__ = ["Bennett", "bennett_ratio"]


class Bennett(NamedTuple):
    """A log-ratio of partition functions.

    Attributes
    ----------
    log_ratio
        log Z_1 - log Z_0, nats.
    forward, reverse
        What every sample adds to the error of ``log_ratio``, nats, shaped like the samples: means
        are zero, and the error is the sum of both sums.
    overlap
        Effective number of samples that could have come from either law.
    """

    log_ratio: float
    forward: np.ndarray
    reverse: np.ndarray
    overlap: float


def bennett_ratio(forward: np.ndarray, reverse: np.ndarray) -> Bennett:
    """Return log Z_1 - log Z_0 by Bennett's acceptance ratio.

    Parameters
    ----------
    forward
        log f_1 - log f_0 at samples of law 0 (or log-weights of runs from 0 to 1), nats.
    reverse
        log f_0 - log f_1 at samples of law 1 (or log-weights of time-reversed runs), nats.

    Notes
    -----
    Consistent, and of least variance among all estimates from independent samples of both laws.
    The equation is monotone in the unknown, and solved to rounding. Errors are those of the
    linearised equation, so that samples of one chain can be added before they are squared.

    References
    ----------
    C. Bennett (1976), Efficient estimation of free energy differences from Monte Carlo data.
    G. Crooks (2000), Path-ensemble averages in systems driven far from equilibrium: for runs.
    M. Shirts, E. Bair, G. Hooker and V. Pande (2003), Equilibrium free energies from
    nonequilibrium measurements using maximum-likelihood methods.
    """
    forward, reverse = np.asarray(forward, np.float64), np.asarray(reverse, np.float64)
    shift = math.log(forward.size / reverse.size)

    def log_probs(log_ratio: float) -> tuple[np.ndarray, np.ndarray]:
        """Of coming from the other law: of the samples of law 0, and of those of law 1."""
        up = -np.logaddexp(0.0, log_ratio + shift - forward)
        return up, -np.logaddexp(0.0, -log_ratio - shift - reverse)

    def excess(log_ratio: float) -> float:
        up, down = log_probs(log_ratio)
        return float(logsumexp(up) - logsumexp(down))

    margin = 2.0 * abs(shift) + 1.0
    low = min(forward.min(), (-reverse).min()) - margin
    high = max(forward.max(), (-reverse).max()) + margin
    log_ratio = float(brentq(excess, low, high, xtol=1e-12, rtol=1e-14))
    log_up, log_down = log_probs(log_ratio)
    scale = logsumexp(log_up)  # both sums: without it they vanish where the laws hardly overlap
    up, down = np.exp(log_up - scale), np.exp(log_down - scale)
    slope = float((up * -np.expm1(log_up)).sum() + (down * -np.expm1(log_down)).sum())
    overlap = min(1.0 / float((up**2).sum()), 1.0 / float((down**2).sum()))
    return Bennett(log_ratio, (up - up.mean()) / slope, -(down - down.mean()) / slope, overlap)
