"""NumPyro adapters: the pure kernels as ``MCMCKernel``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.gibbs import GIBBS_SITES_KWARG
from numpyro.infer.mcmc import MCMCKernel

from pgm_energy._checks import is_key_batch, require_count
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.kernels.gibbs import GibbsKernel, random_configuration
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


class BlockGibbs(MCMCKernel):
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

    sample_field = "z"

    def __init__(
        self,
        model: EnergyModel,
        blocks: Blocks | Sequence[str | Block] | None = None,
        num_sweeps: int = 1,
        observables: Mapping[str, Callable[[dict[str, jax.Array]], Any]] | None = None,
    ) -> None:
        if not isinstance(model, EnergyModel):
            raise TypeError(f"BlockGibbs takes an energy model, got {type(model).__name__}")
        self._energy_model = model
        self._model: Callable[..., Any] = model
        self._blocks = _schedule(model, blocks)
        self._num_sweeps = require_count("num_sweeps", num_sweeps)
        self._observables = dict(observables or {})
        for name, function in self._observables.items():
            if not callable(function):
                raise TypeError(f"observable {name!r} must be a function, got {function!r}")

    @property
    def model(self) -> Callable[..., Any]:
        """The model, as NumPyro sees it."""
        return self._model

    @property
    def blocks(self) -> Blocks:
        """The verified schedule of one sweep."""
        return self._blocks

    @property
    def num_sweeps(self) -> int:
        """Sweeps per step."""
        return self._num_sweeps

    @property
    def default_fields(self) -> tuple[str, ...]:
        return (self.sample_field, "potential_energy")

    @property
    def _sample_fn(self) -> Callable[..., Any]:
        # NumPyro re-initialises kernels without it at a warm restart
        return self.sample

    def init(
        self,
        rng_key: Key,
        num_warmup: int,
        init_params: Any,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any] | None,
    ) -> BlockGibbsState:
        """Return the first state: given values where there are some, else random ones."""
        del num_warmup  # nothing is adapted
        fixed = self._fixed(model_args, model_kwargs)
        kernel = self._kernel(fixed)
        batch = is_key_batch(rng_key)
        given = self._check_init_params(init_params, fixed, rng_key.shape[:1] if batch else ())

        def first(key: jax.Array, given: dict[str, jax.Array]) -> BlockGibbsState:
            key, start = jax.random.split(key)
            values = random_configuration(start, self._energy_model)
            values.update(given)
            values = self._energy_model.clamp({**values, **fixed})
            energy = self._energy_model.energy(**self._energy_model.encode(values))
            z = {name: values[name] for name in self._energy_model.sites if name not in fixed}
            updated = {step.site for step in kernel.schedule(self._energy_model).steps}
            flips = {
                name: jnp.zeros((), jnp.result_type(float))
                for name, site in self._energy_model.sites.items()
                if site.is_discrete and name in updated
            }
            return BlockGibbsState(z, energy, flips, key)

        if not batch:
            return first(rng_key, given)
        return jax.vmap(first)(rng_key, given)

    def sample(
        self,
        state: BlockGibbsState,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any] | None,
    ) -> BlockGibbsState:
        """Return the state after ``num_sweeps`` sweeps."""
        fixed = self._fixed(model_args, model_kwargs)
        kernel = self._kernel(fixed)

        def step(key: jax.Array, z: dict[str, jax.Array]) -> BlockGibbsState:
            keys = jax.random.split(key, self._num_sweeps + 1)
            values: dict[str, Any] = {**z, **fixed}
            if self._num_sweeps == 1:
                values, info = kernel(keys[1], values, self._energy_model)
            else:
                values, infos = jax.lax.scan(
                    lambda x, k: kernel(k, x, self._energy_model), self._cast(values), keys[1:]
                )
                info = jax.tree.map(lambda x: x[-1], infos)
            moved = {
                name: jnp.mean(values[name] != z[name], dtype=jnp.result_type(float))
                for name in state.flip_rate
            }
            new = {name: values[name] for name in z}
            return BlockGibbsState(new, info.energy, moved, keys[0])

        if not is_key_batch(state.rng_key):
            return step(state.rng_key, state.z)
        return jax.vmap(step)(state.rng_key, state.z)

    def postprocess_fn(
        self, model_args: tuple[Any, ...], model_kwargs: dict[str, Any] | None
    ) -> Callable[..., Any]:
        """Return the map from a configuration to what is stored: itself, or the observables."""
        if not self._observables:
            return _identity
        fixed = self._fixed(model_args, model_kwargs)
        return lambda z: {
            name: function({**z, **fixed}) for name, function in self._observables.items()
        }

    def refresh(
        self,
        state: BlockGibbsState,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any] | None,
    ) -> BlockGibbsState:
        """Return the state with its energy under the current values of the other sites."""
        values = {**state.z, **self._fixed(model_args, model_kwargs)}
        energy = self._energy_model.energy(**self._energy_model.encode(values))
        return state._replace(potential_energy=energy.astype(state.potential_energy.dtype))

    def wrap_model(self, wrapper: Callable[..., Any]) -> BlockGibbs:
        """Return a kernel whose NumPyro model is wrapped; the energy stays the same."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy._model = wrapper(self._model)
        return copy

    def get_constrain_fn(
        self, model_args: tuple[Any, ...], model_kwargs: dict[str, Any] | None
    ) -> Callable[..., Any]:
        """Return the identity: values are not transformed."""
        return _identity

    def __repr__(self) -> str:
        return f"BlockGibbs({self._energy_model!r}, num_sweeps={self._num_sweeps})"

    def _cast(self, values: Mapping[str, Any]) -> dict[str, jax.Array]:
        return {name: site.cast(values[name]) for name, site in self._energy_model.sites.items()}

    def _fixed(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> dict[str, jax.Array]:
        """Values of the sites that are observed or owned by another block of a composite."""
        model = self._energy_model
        if args:
            raise TypeError(
                f"{type(model).__name__} takes observed sites by name, got {len(args)} positional "
                f"argument(s); write for example mcmc.run(rng_key, {next(iter(model.sites))}=x)"
            )
        observed = {k: v for k, v in (kwargs or {}).items() if k != GIBBS_SITES_KWARG}
        model.check_observed(observed)
        for name, value in observed.items():
            if np.shape(value) != model.sites[name].shape:
                raise ValueError(
                    f"site {name!r} has shape {model.sites[name].shape}, got observed values of "
                    f"shape {np.shape(value)}; BlockGibbs samples one configuration: map over "
                    "rows, or use impute"
                )
        siblings = (kwargs or {}).get(GIBBS_SITES_KWARG, {})
        fixed = {**observed, **{k: v for k, v in siblings.items() if k in model.sites}}
        return {name: model.sites[name].cast(value) for name, value in fixed.items()}

    def _kernel(self, fixed: Mapping[str, Any]) -> GibbsKernel:
        free = [name for name in self._energy_model.sites if name not in fixed]
        if not free:
            raise ValueError("nothing is left to sample: every site is observed")
        for name, units in self._blocks.missing().items():
            if name in free:
                raise ValueError(
                    f"the blocks leave {len(units)} unit(s) of site {name!r} out, first unit "
                    f"{int(units[0])}: add a block for them, observe the site, or sample it with "
                    "another kernel in numpyro.infer.Gibbs"
                )
        return GibbsKernel(self._blocks.restrict(free))

    def _check_init_params(
        self, init_params: Any, fixed: Mapping[str, Any], lead: tuple[int, ...]
    ) -> dict[str, Any]:
        if init_params is None:
            return {}
        model = self._energy_model
        if not isinstance(init_params, Mapping):
            raise TypeError(
                f"init_params is a dict of values by site, got {type(init_params).__name__}"
            )
        model.check_observed(init_params)
        given = {}
        for name, value in init_params.items():
            if name in fixed:
                raise ValueError(f"init_params gives site {name!r}, which is observed")
            expected = lead + model.sites[name].shape
            if np.shape(value) != expected:
                raise ValueError(
                    f"init_params[{name!r}] must have shape {expected}"
                    f"{' (chains first)' if lead else ''}, got {np.shape(value)}"
                )
            given[name] = model.sites[name].cast(value)
        return given


def _schedule(model: EnergyModel, given: Blocks | Sequence[str | Block] | None) -> Blocks:
    if isinstance(given, Blocks):
        return GibbsKernel(given).schedule(model)
    return blocks(model, given)


def _identity(values: Any) -> Any:
    return values
