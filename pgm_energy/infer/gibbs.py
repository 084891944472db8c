"""NumPyro adapters: the pure kernels as ``MCMCKernel``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pgm_energy._checks import require_count
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.infer._adapter import EnergyKernel, identity
from pgm_energy.kernels.gibbs import GibbsKernel
from pgm_energy.structure import Block, Blocks, blocks

__all__ = ["BlockGibbs", "BlockGibbsState"]


class BlockGibbsState(NamedTuple):
    """State of :class:`BlockGibbs`, with the fields that NumPyro's MCMC looks for.

    Attributes
    ----------
    z
        Raw values of the sites that are sampled.
    potential_energy
        E of the configuration, nats, observed sites included.
    flip_rate
        Share of units that changed in the last step, by discrete site.
    rng_key
        Key of the next step.
    """

    z: dict[str, jax.Array]
    potential_energy: jax.Array
    flip_rate: dict[str, jax.Array]
    rng_key: Key


class BlockGibbs(EnergyKernel):
    """Block Gibbs as a NumPyro kernel: every step is ``num_sweeps`` sweeps over all blocks.

    Parameters
    ----------
    model
        An energy model.
    blocks
        Blocks by hand (site names or :class:`pgm_energy.Block`), or what
        :func:`pgm_energy.blocks` returned. None: found from the energy and verified.
    num_sweeps
        Sweeps per step.
    observables
        Functions of a configuration (a dict of raw values), by name. Their values are stored
        instead of the configurations.

    Raises
    ------
    TypeError
        If ``model`` is no energy model.
    ValueError
        If a block is not valid (see :func:`pgm_energy.blocks`).

    Notes
    -----
    Exact. Works with every chain method of ``numpyro.infer.MCMC``; ``"vectorized"`` is the fast
    one. A keyword of ``mcmc.run`` observes that site. As a block of NumPyro's composite
    ``Gibbs`` it updates the sites it owns given the others. The object is immutable: the
    schedule is made once, here.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, pgm_energy as pgm
    >>> from numpyro.infer import MCMC
    >>> rbm = pgm.RBM(weights=jnp.ones((3, 2)))
    >>> mcmc = MCMC(pgm.BlockGibbs(rbm), num_warmup=5, num_samples=10, num_chains=4,
    ...             chain_method="vectorized", progress_bar=False)
    >>> mcmc.run(jax.random.key(0))
    >>> mcmc.get_samples()["v"].shape
    (40, 3)
    """

    def __init__(
        self,
        model: EnergyModel,
        blocks: Blocks | Sequence[str | Block] | None = None,
        num_sweeps: int = 1,
        observables: Mapping[str, Callable[[dict[str, jax.Array]], Any]] | None = None,
    ) -> None:
        super().__init__(model)
        self._blocks = _schedule(model, blocks)
        self._num_sweeps = require_count("num_sweeps", num_sweeps)
        self._observables = dict(observables or {})
        for name, function in self._observables.items():
            if not callable(function):
                raise TypeError(f"observable {name!r} must be a function, got {function!r}")

    @property
    def blocks(self) -> Blocks:
        """The verified schedule of one sweep."""
        return self._blocks

    @property
    def num_sweeps(self) -> int:
        """Sweeps per step."""
        return self._num_sweeps

    def _first(
        self,
        rng_key: Key,
        values: dict[str, jax.Array],
        fixed: Mapping[str, jax.Array],
        num_warmup: int,
    ) -> BlockGibbsState:
        del num_warmup  # nothing is adapted
        model = self._energy_model
        energy = model.energy(**model.encode(values))
        z = {name: values[name] for name in self._free(fixed)}
        updated = {step.site for step in self._kernel(fixed).schedule(model).steps}
        flips = {
            name: jnp.zeros((), jnp.result_type(float))
            for name, site in model.sites.items()
            if site.is_discrete and name in updated
        }
        return BlockGibbsState(z, energy, flips, rng_key)

    def _step(self, state: BlockGibbsState, fixed: Mapping[str, jax.Array]) -> BlockGibbsState:
        kernel = self._kernel(fixed)
        keys = jax.random.split(state.rng_key, self._num_sweeps + 1)
        values: dict[str, Any] = {**state.z, **fixed}
        if self._num_sweeps == 1:
            values, info = kernel(keys[1], values, self._energy_model)
        else:
            values, infos = jax.lax.scan(
                lambda x, k: kernel(k, x, self._energy_model), self._cast(values), keys[1:]
            )
            info = jax.tree.map(lambda x: x[-1], infos)
        moved = {
            name: jnp.mean(values[name] != state.z[name], dtype=jnp.result_type(float))
            for name in state.flip_rate
        }
        new = {name: values[name] for name in state.z}
        return BlockGibbsState(new, info.energy, moved, keys[0])

    def postprocess_fn(
        self, model_args: tuple[Any, ...], model_kwargs: dict[str, Any] | None
    ) -> Callable[..., Any]:
        """Return the map from a configuration to what is stored: itself, or the observables."""
        if not self._observables:
            return identity
        fixed = self._fixed(model_args, model_kwargs)
        return lambda z: {
            name: function({**z, **fixed}) for name, function in self._observables.items()
        }

    def __repr__(self) -> str:
        return f"BlockGibbs({self._energy_model!r}, num_sweeps={self._num_sweeps})"

    def _kernel(self, fixed: Mapping[str, Any]) -> GibbsKernel:
        free = self._free(fixed)
        for name, units in self._blocks.missing().items():
            if name in free:
                raise ValueError(
                    f"the blocks leave {len(units)} unit(s) of site {name!r} out, first unit "
                    f"{int(units[0])}: add a block for them, observe the site, or sample it with "
                    "another kernel in numpyro.infer.Gibbs"
                )
        return GibbsKernel(self._blocks.restrict(free))


def _schedule(model: EnergyModel, given: Blocks | Sequence[str | Block] | None) -> Blocks:
    if isinstance(given, Blocks):
        return GibbsKernel(given).schedule(model)
    return blocks(model, given)
