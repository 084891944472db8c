"""What an estimate of log Z comes with: bounds, an effective sample size, and doubts in words."""

from __future__ import annotations

import dataclasses
import math

__all__ = ["MIN_ESS", "WIDEST", "LogPartition", "doubts", "exact_result"]

#: A bracket wider than this (nats) does not count as an answer.
WIDEST = 1.0
#: Fewer effective weights than this carry no estimate, and no standard error either.
MIN_ESS = 10.0
#: Bounds may cross by this (nats): rounding where nothing fluctuates.
CROSSING = 1e-3


@dataclasses.dataclass(frozen=True)
class LogPartition:
    """log Z of a model, with its uncertainty. Made by :func:`log_partition`.

    Attributes
    ----------
    estimate
        log Z, nats.
    std_error
        Its standard error, nats; 0 where it is exact. It sees only what the chains have seen.
    lower, upper
        Bracket, nats: mean log-weight of annealing runs from the base minus three of its standard
        errors, and minus the mean log-weight of runs back from the model plus three. A likelihood
        counts at ``upper``.
    method
        What was done: ``exact``, ``ais``, ``reverse_ais``, ``bennett`` or ``pt``.
    message
        What was done, in words.
    ess
        Effective number of independent weights behind the estimate (count); infinite where it is
        exact.
    warning
        Why not to trust it and what to do, in words; empty where nothing speaks against it.
    trusted
        Whether ``warning`` is empty.
    """

    estimate: float
    std_error: float
    lower: float
    upper: float
    method: str
    message: str
    ess: float = math.inf
    warning: str = ""

    @property
    def trusted(self) -> bool:
        """Whether nothing speaks against the answer."""
        return not self.warning

    def __float__(self) -> float:
        return self.estimate

    def __str__(self) -> str:
        if self.method == "exact":
            return f"log Z = {self.estimate:.6f} nats (exact): {self.message}"
        doubt = f"\nNot to be trusted: {self.warning}" if self.warning else ""
        return (
            f"log Z = {self.estimate:.4f} +- {self.std_error:.4f} nats, between {self.lower:.4f} "
            f"and {self.upper:.4f} ({self.method}): {self.message}{doubt}"
        )


def exact_result(value: float, message: str) -> LogPartition:
    """Return a log Z without uncertainty."""
    return LogPartition(value, 0.0, value, value, "exact", message)


def doubts(
    lower: float, upper: float, estimate: float, slack: float, ess: float, others: list[str]
) -> str:
    """Return what speaks against an estimate, and what to do; empty if nothing.

    The estimate may lie outside of its bracket by ``slack``, its own uncertainty (nats).
    """
    found = list(others)
    width = upper - lower
    if width > WIDEST:
        found.append(
            f"the bracket is {width:.2f} nats wide, from {lower:.2f} to {upper:.2f} (trusted up to "
            f"{WIDEST:g})"
        )
    elif width < -CROSSING:
        found.append(
            f"the runs contradict each other: the lower bound {lower:.2f} lies above the upper "
            f"bound {upper:.2f}"
        )
    elif not lower - slack - CROSSING <= estimate <= upper + slack + CROSSING:
        found.append(
            f"the estimate {estimate:.2f} lies outside of its bracket {lower:.2f} to {upper:.2f}"
        )
    if ess < MIN_ESS:
        found.append(f"only {ess:.1f} effective weights carry the estimate")
    if not found:
        return ""
    return (
        f"{'; '.join(found)}. Give more betas (num_betas=), more chains (num_chains=), data= for a "
        "base fitted to them, or method='pt' where modes are far apart; count likelihoods at upper"
    )
