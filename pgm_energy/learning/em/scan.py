"""How many components? EM for each number, and the criteria side by side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from pgm_energy._checks import require_count, require_key
from pgm_energy._progress import progress
from pgm_energy._struct import Key
from pgm_energy.learning.em.batch import EM
from pgm_energy.learning.em.result import EMResult
from pgm_energy.models.mixture import Mixture

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CRITERIA", "ComponentScan", "scan_components"]

CRITERIA = ("aic", "bic", "icl")


class ComponentScan(NamedTuple):
    """EM's results for several numbers of components.

    Attributes
    ----------
    num_components
        The numbers, as they were asked for.
    results
        An :class:`EMResult` for each.
    """

    num_components: tuple[int, ...]
    results: tuple[EMResult, ...]

    def best(self, criterion: str = "bic") -> EMResult:
        """Return the result with the lowest ``"aic"``, ``"bic"`` or ``"icl"``.

        Raises
        ------
        ValueError
            On another name.
        """
        if criterion not in CRITERIA:
            raise ValueError(
                f"criterion must be one of {', '.join(map(repr, CRITERIA))}, got {criterion!r}"
            )
        return min(self.results, key=lambda result: getattr(result, criterion))

    @property
    def table(self) -> pd.DataFrame:
        """One row per number of components: likelihood (nats), parameters and criteria."""
        import pandas as pd

        names = ("log_likelihood", "num_parameters", *CRITERIA, "converged")
        rows = [{name: getattr(result, name) for name in names} for result in self.results]
        return pd.DataFrame(rows, index=pd.Index(self.num_components, name="num_components"))


def scan_components(
    rng_key: Key,
    mixture: type[Mixture],
    data: Any,
    num_components: Iterable[int] = range(1, 9),
    *,
    em: EM | None = None,
    row_weights: Any = None,
    missing: bool = False,
    progress_bar: bool = True,
    **options: Any,
) -> ComponentScan:
    """Return EM's results for several numbers of components, with their criteria.

    Parameters
    ----------
    rng_key
        A JAX random key.
    mixture
        The class: ``GaussianMixture``, ``BernoulliMixture`` or ``CategoricalMixture``.
    data
        Rows ``(N, D)``.
    num_components
        The numbers to try.
    em
        Settings of EM; five starts for each number unless given.
    row_weights, missing
        As for :meth:`EM.run`.
    progress_bar
        Whether to show progress.
    options
        Further arguments of ``mixture.init``, such as ``covariance_type="diag"``.

    Raises
    ------
    TypeError
        If ``mixture`` is no class of mixtures.
    ValueError
        If there is nothing to try, or data or a number are not valid.

    Notes
    -----
    BIC finds the number of components that describes the density best, ICL that of clusters
    that are told apart, AIC more of them. Every number compiles anew (seconds), then costs what
    EM does. :func:`plot_scan` shows the result.

    References
    ----------
    G. McLachlan and D. Peel (2000), Finite mixture models, chapter 6.

    Examples
    --------
    >>> import jax, numpy as np, pgm_energy as pgm
    >>> rng = np.random.default_rng(0)
    >>> rows = rng.normal(rng.choice([-4.0, 4.0], (300, 1)))
    >>> scan = pgm.scan_components(
    ...     jax.random.key(0), pgm.GaussianMixture, rows, range(1, 4), progress_bar=False)
    >>> scan.best("bic").model.num_components
    2
    >>> list(scan.table.columns)
    ['log_likelihood', 'num_parameters', 'aic', 'bic', 'icl', 'converged']
    """
    rng_key = require_key(rng_key)
    if not (isinstance(mixture, type) and issubclass(mixture, Mixture)):
        raise TypeError(
            f"mixture must be a class, such as pgm_energy.GaussianMixture, got {mixture!r}"
        )
    numbers = tuple(require_count("num_components", number) for number in num_components)
    if not numbers:
        raise ValueError("num_components is empty: give the numbers to try, such as range(1, 9)")
    em = em or EM(num_restarts=5)
    results = []
    with progress(len(numbers), progress_bar, "numbers of components") as show:
        for done, number in enumerate(numbers):
            init_key, run_key = jax.random.split(jax.random.fold_in(rng_key, number))
            start: Any = mixture.init(  # type: ignore[attr-defined]
                init_key, num_components=number, data=data, missing=missing, **options
            )
            results.append(
                em.run(
                    run_key,
                    start,
                    data,
                    row_weights=row_weights,
                    missing=missing,
                    progress_bar=False,
                )
            )
            show(done + 1, f"{number} components: BIC {results[-1].bic:.1f}")
    return ComponentScan(numbers, tuple(results))
