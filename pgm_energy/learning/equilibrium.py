"""Have the chains left equilibrium? Figures that tell, and what to do, in words."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["correlation", "trouble"]

#: Autocorrelation of chain energies from update to update, standard deviations between the
#: energies of chains and data, the same that chains move when parameters are held, and swap
#: rate, beyond which chains are said to be left behind. (Measured on digits: drifts of 0.1 to 0.4
#: in runs that learn well, 1 to 3 in runs with steps that are far too large.)
STUCK, FAR, DRIFT, RARE = 0.995, 3.0, 1.0, 0.05


def correlation(first: jax.Array, second: jax.Array) -> jax.Array:
    """Return the correlation of two figures of the same chains; 0 where one does not vary."""
    first, second = first - jnp.mean(first), second - jnp.mean(second)
    scale = jnp.sqrt(jnp.mean(first**2) * jnp.mean(second**2))
    return jnp.mean(first * second) / jnp.where(scale > 0, scale, 1.0)


def trouble(metrics: Mapping[str, np.ndarray]) -> str:
    """Say in words that the chains have left equilibrium, how it shows and what to do.

    Parameters
    ----------
    metrics
        One value per epoch by name; the last quarter of the epochs counts.

    Notes
    -----
    A heuristic: chains that left equilibrium long ago and sit in a mode of their own energy may
    look well. ``log_partition`` with brackets tells what the model has become.
    """
    signs = []
    late = {
        name: float(np.mean(values[-max(len(values) // 4, 1) :]))
        for name, values in metrics.items()
        if len(values)
    }
    gap = late.get("chain_energy_gap", 0.0)
    if abs(gap) > FAR:
        side = "above" if gap > 0 else "below"
        signs.append(
            f"their mean energy lies {abs(gap):.1f} standard deviations {side} that of the data"
        )
    drift = late.get("chain_drift", 0.0)
    if abs(drift) > DRIFT:
        signs.append(
            f"their energy {'falls' if drift < 0 else 'rises'} by {abs(drift):.1f} standard "
            "deviations within 20 sweeps when the parameters are held"
        )
    stuck = late.get("chain_autocorrelation", 0.0)
    if stuck > STUCK:
        updates = (1.0 + stuck) / max(1.0 - stuck, 1e-6)
        signs.append(
            f"their energies are correlated over some {updates:,.0f} updates (autocorrelation "
            f"{stuck:.4f} from one to the next)"
        )
    swaps = late.get("swap_rate", 1.0)
    if swaps < RARE:
        signs.append(f"the worst pair of replicas swaps at a rate of {swaps:.3f}")
    if not signs:
        return ""
    advice = (
        "use more replicas, lower the learning rate, or let it fall"
        if swaps < RARE
        else "lower the learning rate or let it fall to zero, use more sweeps per update, or "
        "kernel=TemperedChains()"
    )
    return f"The chains have left equilibrium: {'; '.join(signs)}. Then {advice}."
