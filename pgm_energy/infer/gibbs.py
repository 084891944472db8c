"""NumPyro adapters: the pure kernels as ``MCMCKernel``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pgm_energy import _random
from pgm_energy._checks import require_count
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.infer._adapter import EnergyKernel
from pgm_energy.infer.embedded import EmbeddedBlockGibbs
from pgm_energy.kernels.gibbs import GibbsKernel
from pgm_energy.kernels.updates import share_moved
from pgm_energy.observables import Observables
from pgm_energy.structure import Block, Blocks, blocks
from pgm_energy.transforms._base import require_model

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
        An energy model; or a NumPyro model that calls energy models, whose ``blocks`` and
        ``observables`` stay None.
    blocks
        Blocks by hand (site names or :class:`pgm_energy.Block`), or what
        :func:`pgm_energy.blocks` returned. None: found from the energy and verified.
    num_sweeps
        Sweeps per step.
    observables
        Functions of a configuration (a dict of raw values, those of discrete sites as int32), by
        name. Their values, arrays of a fixed shape, are stored instead of the configurations.

    Raises
    ------
    TypeError
        If ``model`` is no energy model, or an observable gives no array.
    ValueError
        If a block is not valid (see :func:`pgm_energy.blocks`), or an observable has the name of
        a site or a shape that depends on the values.

    Notes
    -----
    Exact. Works with every chain method of ``numpyro.infer.MCMC``; ``"vectorized"`` is the fast
    one. A keyword of ``mcmc.run`` observes that site, unless it is None. As a block of NumPyro's
    composite ``Gibbs`` it updates the sites it owns given the others. The object is immutable: the
    schedule is made once, here.

    Of a user's NumPyro model it samples those sites of the energy models in it that are neither
    observed nor owned by another block, rows of plates side by side, at the parameters of the
    moment. Beside it ``NUTS`` on the same function samples the rest. What would be sampled wrongly
    is a ``ValueError`` when the run starts: a site that the density depends on outside of its
    energy, an energy that is masked, scaled or subsampled, random parameters without their log Z.

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

    def __new__(cls, model: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Return the kernel that looks inside, of a NumPyro model around energy models."""
        if callable(model) and not isinstance(model, EnergyModel | type):
            return EmbeddedBlockGibbs(model, *args, **kwargs)
        return super().__new__(cls)

    def __init__(
        self,
        model: EnergyModel | Callable[..., Any],
        blocks: Blocks | Sequence[str | Block] | None = None,
        num_sweeps: int = 1,
        observables: Observables | None = None,
    ) -> None:
        super().__init__(require_model(model, "BlockGibbs"), observables)
        self._blocks = _schedule(self._energy_model, blocks)
        self._num_sweeps = require_count("num_sweeps", num_sweeps)

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
        updated = {step.site for step in self._kernel(fixed).schedule(model).steps}
        flips = {
            name: jnp.zeros((), jnp.result_type(float))
            for name, site in model.sites.items()
            if site.is_discrete and name in updated
        }
        return BlockGibbsState(self._sampled(values, fixed), self._energy(values), flips, rng_key)

    def _step(self, state: BlockGibbsState, fixed: Mapping[str, jax.Array]) -> BlockGibbsState:
        kernel = self._kernel(fixed)
        keys = _random.split(state.rng_key, self._num_sweeps + 1)
        values: dict[str, Any] = {**state.z, **fixed}
        if self._num_sweeps > 1:  # nobody asks for the energy in between
            values, _ = jax.lax.scan(
                lambda x, k: (kernel(k, x, self._energy_model)[0], None),
                self._cast(values),
                keys[1:-1],
            )
        values, info = kernel(keys[-1], values, self._energy_model)
        moved = {name: share_moved(state.z[name], values[name]) for name in state.flip_rate}
        return BlockGibbsState(self._sampled(values, fixed), info.energy, moved, keys[0])

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
