"""What the NumPyro adapters of pure kernels share: starts, observed sites, chains, observables."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
from numpyro.infer.gibbs import GIBBS_SITES_KWARG
from numpyro.infer.mcmc import MCMCKernel

from pgm_energy._checks import is_key_batch
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.infer._values import observed_values, start_values
from pgm_energy.kernels.gibbs import random_configuration
from pgm_energy.observables import Observables, check_observables, observe

__all__ = ["DiscreteKernel", "EnergyKernel", "identity"]


class DiscreteKernel(MCMCKernel):
    """What NumPyro asks of a kernel beside its steps, for one that samples raw values as they are.

    A subclass sets ``_model``, a callable.
    """

    sample_field = "z"
    _model: Callable[..., Any]

    @property
    def model(self) -> Callable[..., Any]:
        """The model, as NumPyro sees it."""
        return self._model

    @property
    def default_fields(self) -> tuple[str, ...]:
        return (self.sample_field, "potential_energy")

    @property
    def _sample_fn(self) -> Callable[..., Any]:
        # NumPyro re-initialises kernels without it at a warm restart
        return self.sample

    def get_constrain_fn(
        self, model_args: tuple[Any, ...], model_kwargs: dict[str, Any] | None
    ) -> Callable[..., Any]:
        """Return the identity: values are not transformed."""
        return identity


class EnergyKernel(DiscreteKernel):
    """A kernel on an energy model: every chain method, observed sites, observables, composites.

    A subclass writes one unbatched chain: :meth:`_first` makes a state of a configuration and
    :meth:`_step` the next state. States are NamedTuples with ``z``, ``potential_energy`` and
    ``rng_key``. The object is immutable.
    """

    def __init__(self, model: EnergyModel, observables: Observables | None = None) -> None:
        if not isinstance(model, EnergyModel):
            raise TypeError(
                f"{type(self).__name__} takes an energy model, got {type(model).__name__}"
            )
        self._energy_model = model
        self._model = model
        self._observables = check_observables(model, observables)

    @abstractmethod
    def _first(
        self,
        rng_key: Key,
        values: dict[str, jax.Array],
        fixed: Mapping[str, jax.Array],
        num_warmup: int,
    ) -> Any:
        """Return the state at ``values``, from :meth:`_start`; ``fixed`` are not sampled."""

    @abstractmethod
    def _step(self, state: Any, fixed: Mapping[str, jax.Array]) -> Any:
        """Return the next state."""

    def init(
        self,
        rng_key: Key,
        num_warmup: int,
        init_params: Any,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any] | None,
    ) -> Any:
        """Return the first state: given values where there are some, else random ones."""
        fixed = self._fixed(model_args, model_kwargs)
        batch = is_key_batch(rng_key)
        lead = rng_key.shape[:1] if batch else ()
        given = start_values(self._energy_model, init_params, fixed, lead)

        def first(key: jax.Array, given: dict[str, jax.Array]) -> Any:
            key, start = jax.random.split(key)
            values = self._start(start, {**given, **fixed})
            return self._first(key, values, fixed, num_warmup)

        return jax.vmap(first)(rng_key, given) if batch else first(rng_key, given)

    def _start(self, rng_key: Key, given: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Return a configuration to start from, in storage types: random but for what is given."""
        values = random_configuration(rng_key, self._energy_model)
        return self._cast(self._energy_model.clamp({**values, **given}))

    def sample(
        self, state: Any, model_args: tuple[Any, ...], model_kwargs: dict[str, Any] | None
    ) -> Any:
        """Return the next state."""
        fixed = self._fixed(model_args, model_kwargs)
        if not is_key_batch(state.rng_key):
            return self._step(state, fixed)
        return jax.vmap(lambda one: self._step(one, fixed))(state)

    def postprocess_fn(
        self, model_args: tuple[Any, ...], model_kwargs: dict[str, Any] | None
    ) -> Callable[..., Any]:
        """Return the map from a configuration to what is stored: itself, or the observables."""
        if not self._observables:
            return identity
        fixed = self._fixed(model_args, model_kwargs)
        return lambda z: observe(self._observables, {**z, **fixed})

    def refresh(
        self, state: Any, model_args: tuple[Any, ...], model_kwargs: dict[str, Any] | None
    ) -> Any:
        """Return the state with its energy under the current values of the other sites."""
        energy = self._energy({**state.z, **self._fixed(model_args, model_kwargs)})
        return state._replace(potential_energy=energy.astype(state.potential_energy.dtype))

    def wrap_model(self, wrapper: Callable[..., Any]) -> Self:
        """Return a kernel whose NumPyro model is wrapped; the energy stays the same.

        Raises
        ------
        ValueError
            If there are observables: a composite, which asks for this, stores its own draws.
        """
        if self._observables:
            raise ValueError(
                f"{type(self).__name__} has observables, but a composite such as Gibbs stores the "
                "configurations themselves: leave observables out here, and compute them from "
                "the draws"
            )
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy._model = wrapper(self._model)
        return copy

    def _cast(self, values: Mapping[str, Any]) -> dict[str, jax.Array]:
        return {name: site.cast(values[name]) for name, site in self._energy_model.sites.items()}

    def _energy(self, values: Mapping[str, Any]) -> jax.Array:
        """E of one configuration of raw values, nats."""
        return self._energy_model.energy(**self._energy_model.encode(values))

    def _sampled(
        self, values: Mapping[str, jax.Array], fixed: Mapping[str, Any]
    ) -> dict[str, jax.Array]:
        """Return the values of the sites that are sampled: what ``z`` holds."""
        return {name: values[name] for name in self._free(fixed)}

    def _free(self, fixed: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the sites that are sampled."""
        return tuple(name for name in self._energy_model.sites if name not in fixed)

    def _fixed(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> dict[str, jax.Array]:
        """Values of the sites that are observed or owned by another block of a composite."""
        model = self._energy_model
        given = dict(kwargs or {})
        siblings = given.pop(GIBBS_SITES_KWARG, {})
        fixed = observed_values(type(self).__name__, model, args, given)
        for name, value in siblings.items():
            if name in model.sites:
                fixed[name] = model.sites[name].cast(value)
        if len(fixed) == len(model.sites):
            raise ValueError("nothing is left to sample: every site is observed")
        return fixed


def identity(values: Any) -> Any:
    """Return the values as they are."""
    return values
