"""What chains say about themselves: ESS, R-hat, MCSE, and units that never moved."""

from __future__ import annotations

from typing import NamedTuple

import arviz as az
import numpy as np
import xarray as xr

from pgm_energy.energy import EnergyModel
from pgm_energy.sites import Site

__all__ = ["Diagnosis", "diagnose"]


class Diagnosis(NamedTuple):
    """Diagnostics of the expected statistics E[T(x)] of one site, flattened.

    One entry per unit; categorical units have one per state, that of its indicator.

    Attributes
    ----------
    mean, sd
        Moments over all chains and draws.
    mcse
        Monte Carlo standard error of the mean; NaN where the statistic never moved.
    ess_bulk, ess_tail
        Effective sample sizes (counts); NaN where the statistic never moved. A statistic with
        two values has no tail of its own: both are the same.
    rhat
        Rank-normalised split R-hat; NaN where the statistic never moved, infinite where stuck.
    frozen
        Whether the statistic keeps one value in all draws of each chain.
    stuck
        Whether it is frozen at values that differ between chains: proof that nothing mixes.
    """

    mean: np.ndarray
    sd: np.ndarray
    mcse: np.ndarray
    ess_bulk: np.ndarray
    ess_tail: np.ndarray
    rhat: np.ndarray
    frozen: np.ndarray
    stuck: np.ndarray


def diagnose(tree: xr.DataTree, model: EnergyModel) -> dict[str, Diagnosis]:
    """Return diagnostics of the energy and of every site of a DataTree.

    Parameters
    ----------
    tree
        What :func:`to_datatree` returned.
    model
        The energy model whose sites are in it.

    Returns
    -------
    dict
        A :class:`Diagnosis` by site name, and one of the energy under ``"energy"``.

    Notes
    -----
    ESS, R-hat and MCSE are ArviZ's, of E[T(x)]: state indicators for categorical units. Units
    that never moved have NaN instead of the full sample size that ESS gives a constant.

    References
    ----------
    A. Vehtari, A. Gelman, D. Simpson, B. Carpenter and P.-C. Burkner (2021), Rank-normalization,
    folding, and localization: an improved R-hat for assessing convergence of MCMC.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, pgm_energy as pgm
    >>> from numpyro.infer import MCMC
    >>> rbm = pgm.RBM(weights=jnp.ones((3, 2)))
    >>> mcmc = MCMC(pgm.BlockGibbs(rbm), num_warmup=5, num_samples=50, num_chains=4,
    ...             chain_method="vectorized", progress_bar=False)
    >>> mcmc.run(jax.random.key(0))
    >>> pgm.diagnose(pgm.to_datatree(mcmc), rbm)["v"].mean.shape
    (3,)
    """
    out: dict[str, Diagnosis] = {}
    posterior, stats = (tree[group].to_dataset() for group in ("posterior", "sample_stats"))
    if "energy" in stats:
        out["energy"] = diagnose_array(stats["energy"].values[..., None])
    for name, site in model.sites.items():
        if name in posterior:
            out[name] = diagnose_array(encoded_draws(posterior[name].values, site))
    return out


def encoded_draws(values: np.ndarray, site: Site) -> np.ndarray:
    """Return T(x) of draws, shape ``(chain, draw, statistics)``."""
    flat = values.reshape(*values.shape[:2], -1)
    if not site.event:
        return flat
    one_hot = flat[..., None] == site.states
    return one_hot.reshape(*flat.shape[:2], -1).astype(np.int8)


def diagnose_array(draws: np.ndarray) -> Diagnosis:
    """Return the diagnosis of statistics, shape ``(chain, draw, statistics)``."""
    draws = np.asarray(draws, np.float64)
    still = (draws == draws[:, :1]).all(axis=1)
    frozen = still.all(axis=0)
    stuck = frozen & (draws[:, 0] != draws[:1, 0]).any(axis=0)
    size = draws.shape[-1]
    nan = np.full(size, np.nan)
    bulk, tail, rhat, mcse = (nan.copy() for _ in range(4))
    moving = np.flatnonzero((~frozen | stuck) & np.isfinite(draws).all(axis=(0, 1)))
    if len(moving) and draws.shape[1] >= 4:
        part = draws[..., moving]
        # a folded or an indicator statistic of a two-valued unit may be constant
        with np.errstate(invalid="ignore", divide="ignore"):
            bulk[moving] = az.ess(part, method="bulk")
            tail[moving] = az.ess(part, method="tail", prob=(0.05, 0.95))
            rhat[moving] = az.rhat(part)
            mcse[moving] = az.mcse(part)
        low, high = part.min(axis=(0, 1)), part.max(axis=(0, 1))
        two_valued = ((part == low) | (part == high)).all(axis=(0, 1))
        tail[moving] = np.where(two_valued, bulk[moving], tail[moving])
    rhat[stuck] = np.inf
    return Diagnosis(
        mean=draws.mean(axis=(0, 1)),
        sd=draws.std(axis=(0, 1)),
        mcse=mcse,
        ess_bulk=bulk,
        ess_tail=tail,
        rhat=rhat,
        frozen=frozen,
        stuck=stuck,
    )
