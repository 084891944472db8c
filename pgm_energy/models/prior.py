"""Conjugate priors of mixtures, counted in rows that were never seen."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

__all__ = ["MixturePrior"]


@dataclasses.dataclass(frozen=True, eq=False)
class MixturePrior:
    """Conjugate prior of a mixture's parameters, as pseudo-rows that every component has seen.

    Parameters
    ----------
    weight_rows
        ``a``: the weights are Dirichlet(1 + a) over the components.
    prob_rows
        ``b``: of discrete units, the probabilities of a unit's states are Dirichlet(1 + b p)
        around ``probs`` p (binary units: Beta).
    probs
        Where ``prob_rows`` pull to: P(1) of binary units, ``(D,)`` or one number; ``(D, S)`` or
        ``(S,)`` for categorical ones. Uniform unless given.
    mean_rows
        ``c``: a mean is normal about ``mean`` with the component's covariance over c.
    mean
        ``(D,)``; the mean of the data unless given.
    covariance_rows
        ``n``: a covariance is inverse Wishart (inverse gamma where it is diagonal or spherical)
        with mode ``covariance``, as if n rows of that covariance had been seen.
    covariance
        ``(D, D)``, or variances ``(D,)``. Unless given: the variances of the data columns, over
        K^(2/D), which K components that share the space would have.

    Raises
    ------
    ValueError
        On a number of rows that is negative or not finite.

    Notes
    -----
    EM then maximises the log-likelihood plus the log-density of the prior. In the usual symbols
    the inverse Wishart law has ``n - D - 1`` degrees of freedom and scale matrix n times
    ``covariance``; it is a proper law for n above 2 D, and a penalty that makes the likelihood
    bounded for every n above 0.

    References
    ----------
    C. Fraley and A. Raftery (2007), Bayesian regularization for normal mixture estimation and
    model-based clustering, section 3.

    Examples
    --------
    >>> import jax, numpy as np, pgm_energy as pgm
    >>> rows = np.array([[0.0], [0.1], [0.2], [5.0]])  # one row far from the others
    >>> start = pgm.GaussianMixture.init(jax.random.key(0), num_components=2, data=rows)
    >>> em = pgm.EM(prior=pgm.MixturePrior(covariance_rows=3))
    >>> found = em.run(jax.random.key(0), start, rows, progress_bar=False)
    >>> bool(found.model.covariances.min() > 0.1)
    True
    """

    weight_rows: float = 0.0
    prob_rows: float = 0.0
    probs: Any = None
    mean_rows: float = 0.0
    mean: Any = None
    covariance_rows: float = 0.0
    covariance: Any = None

    def __post_init__(self) -> None:
        for name in ("weight_rows", "prob_rows", "mean_rows", "covariance_rows"):
            value = getattr(self, name)
            number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
            if not number or not 0 <= value < math.inf:
                raise ValueError(
                    f"{name} counts rows and must be a number of at least 0, got {value!r}"
                )

    def refuse(self, owner: str, *names: str) -> None:
        """Refuse what a kind of mixture has no parameters for.

        Raises
        ------
        ValueError
            Naming it.
        """
        for name in names:
            value = getattr(self, name)
            if value is not None and (name in ("probs", "mean", "covariance") or value != 0):
                raise ValueError(f"a {owner} has no use for the prior's {name}; leave it out")

    def array(self, name: str, *shapes: tuple[int, ...]) -> np.ndarray:
        """Return a field as a finite array of one of these shapes.

        Raises
        ------
        ValueError
            Naming the field and what came.
        """
        value = np.asarray(getattr(self, name), dtype=np.float64)
        if value.shape not in shapes:
            wanted = " or ".join(str(shape) for shape in shapes)
            raise ValueError(f"the prior's {name} must have shape {wanted}, got {value.shape}")
        if not np.isfinite(value).all():
            raise ValueError(f"the prior's {name} must be finite")
        return value
