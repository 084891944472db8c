"""Block Gibbs on the sites of energy models that a user's own NumPyro model calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer.gibbs import GIBBS_SITES_KWARG
from numpyro.ops.provenance import eval_provenance

from pgm_energy._checks import is_key_batch, require_count
from pgm_energy._guards import random_parameters
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.infer._adapter import DiscreteKernel, identity
from pgm_energy.kernels.gibbs import GibbsKernel
from pgm_energy.kernels.updates import share_moved
from pgm_energy.numpyro_model import CALLED_BY, EnergyCall, plates
from pgm_energy.structure import blocks
from pgm_energy.transforms.condition import condition

__all__ = ["EmbeddedBlockGibbs", "EmbeddedBlockGibbsState"]


class EmbeddedBlockGibbsState(NamedTuple):
    """State of :class:`EmbeddedBlockGibbs`, with the fields that NumPyro's MCMC looks for.

    Attributes
    ----------
    z
        Raw values of the sampled sites, with their names and shapes in the user's model.
    potential_energy
        E of the energy models that are sampled, nats, rows of plates added up.
    flip_rate
        Share of units that changed in the last step, by discrete site.
    rng_key
        Key of the next step.
    """

    z: dict[str, jax.Array]
    potential_energy: jax.Array
    flip_rate: dict[str, jax.Array]
    rng_key: Key


class _Call(NamedTuple):
    """One call of an energy model, as a trace of the user's model shows it."""

    model: EnergyModel
    #: Names in the user's model, by site, of the sites that are sampled.
    free: dict[str, str]
    #: Raw values by site, one row per element of the plates.
    rows: dict[str, jax.Array]
    #: The factor's site in the trace.
    factor: Mapping[str, Any]

    @property
    def energy(self) -> jax.Array:
        """E of all rows together, nats."""
        return jnp.sum(jax.vmap(lambda row: self.model.energy(**self.model.encode(row)))(self.rows))

    def clamped(self) -> _Call:
        """The same call with clamped units of the model at their values."""
        return self._replace(rows=jax.vmap(self.model.clamp)(self.rows))

    def swept(self, rng_key: Key, num_sweeps: int) -> tuple[_Call, jax.Array]:
        """The call after sweeps of every row given its observed sites, and E of all rows."""

        def row(key: Key, row: dict[str, jax.Array]) -> tuple[dict[str, Any], jax.Array]:
            given: dict[str, Any] = {k: v for k, v in row.items() if k not in self.free}
            model = condition(self.model, **given)
            kernel = GibbsKernel(blocks(model))
            start = {name: site.cast(row[name]) for name, site in model.sites.items()}
            new, infos = jax.lax.scan(
                lambda values, key: kernel(key, values, model),
                start,
                jax.random.split(key, num_sweeps),
            )
            return {**row, **new}, infos.energy[-1]

        num_rows = len(next(iter(self.rows.values())))
        rows, energies = jax.vmap(row)(jax.random.split(rng_key, num_rows), self.rows)
        return self._replace(rows=rows), jnp.sum(energies)


def _calls(trace: Mapping[str, Any]) -> list[_Call]:
    """The calls of energy models in a trace, in order."""
    members: dict[EnergyCall, dict[str | None, str]] = {}
    for name, node in trace.items():
        if node["type"] == "sample" and CALLED_BY in node["infer"]:
            origin = node["infer"][CALLED_BY]
            members.setdefault(origin.call, {})[origin.site] = name
    calls = []
    for call, names in members.items():
        sites = call.model.sites
        values = {site: trace[names[site]]["value"] for site in sites}
        num_rows = math.prod(plates(call.model, values))
        rows = {
            site: family.cast(values[site]).reshape(num_rows, *family.shape)
            for site, family in sites.items()
        }
        free = {site: names[site] for site in sites if not trace[names[site]]["is_observed"]}
        calls.append(_Call(call.model, free, rows, trace[names[None]]))
    return calls


class EmbeddedBlockGibbs(DiscreteKernel):
    """What :class:`BlockGibbs` is for a NumPyro model that calls energy models.

    Every step runs the user's model with the values of all other sites in place, finds the
    energy models in it, with the parameters that they have now, and sweeps those of their sites
    that are neither observed nor owned by another kernel, every row of a plate by itself.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        blocks: None = None,
        num_sweeps: int = 1,
        observables: None = None,
    ) -> None:
        self._model = model
        self._title = getattr(model, "__name__", type(model).__name__)
        for option, value in (("blocks", blocks), ("observables", observables)):
            if value is not None:
                raise ValueError(
                    f"{option}= is for an energy model; those that {self._title} calls are only "
                    "known when it runs: leave it out"
                )
        self._num_sweeps = require_count("num_sweeps", num_sweeps)

    @property
    def num_sweeps(self) -> int:
        """Sweeps per step."""
        return self._num_sweeps

    def init(
        self,
        rng_key: Key,
        num_warmup: int,
        init_params: Any,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any] | None,
    ) -> EmbeddedBlockGibbsState:
        """Return the first state: given values where there are some, else random ones.

        Raises
        ------
        ValueError
            If the model calls no energy model, has latent sites that nobody samples, or if what
            is sampled enters its density anywhere but in its own energy.
        """
        del num_warmup  # nothing is adapted
        given = dict(init_params or {})

        def first(key: Key, given: dict[str, Any]) -> EmbeddedBlockGibbsState:
            key, start = jax.random.split(key)
            trace = self._trace(start, given, model_args, model_kwargs)
            self._check(trace, model_args, model_kwargs)
            calls = [call.clamped() for call in _calls(trace) if call.free]
            shapes = {name: jnp.shape(node["value"]) for name, node in trace.items()}
            flips = {
                name: jnp.zeros((), jnp.result_type(float))
                for call in calls
                for site, name in call.free.items()
                if call.model.sites[site].is_discrete
            }
            return EmbeddedBlockGibbsState(
                _values(calls, shapes), _total(call.energy for call in calls), flips, key
            )

        return jax.vmap(first)(rng_key, given) if is_key_batch(rng_key) else first(rng_key, given)

    def sample(
        self,
        state: EmbeddedBlockGibbsState,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any] | None,
    ) -> EmbeddedBlockGibbsState:
        """Return the next state."""

        def step(state: EmbeddedBlockGibbsState) -> EmbeddedBlockGibbsState:
            calls = self._sampled(state.z, model_args, model_kwargs)
            keys = jax.random.split(state.rng_key, len(calls) + 1)
            swept = [
                call.swept(key, self._num_sweeps) for call, key in zip(calls, keys[1:], strict=True)
            ]
            shapes = {name: jnp.shape(value) for name, value in state.z.items()}
            z = _values([call for call, _ in swept], shapes)
            moved = {name: share_moved(state.z[name], z[name]) for name in state.flip_rate}
            return EmbeddedBlockGibbsState(z, _total(e for _, e in swept), moved, keys[0])

        return jax.vmap(step)(state) if is_key_batch(state.rng_key) else step(state)

    def refresh(
        self,
        state: EmbeddedBlockGibbsState,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any] | None,
    ) -> EmbeddedBlockGibbsState:
        """Return the state with its energy under the current values of the other sites."""
        calls = self._sampled(state.z, model_args, model_kwargs)
        return state._replace(potential_energy=_total(call.energy for call in calls))

    def postprocess_fn(
        self, model_args: tuple[Any, ...], model_kwargs: dict[str, Any] | None
    ) -> Callable[..., Any]:
        """Return the identity: values are not transformed."""
        return identity

    def wrap_model(self, wrapper: Callable[..., Any]) -> Self:
        """Return a kernel on the wrapped model."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__, _model=wrapper(self._model))
        return copy

    def __repr__(self) -> str:
        return f"BlockGibbs({self._title}, num_sweeps={self._num_sweeps})"

    def _trace(
        self, rng_key: Key, z: Mapping[str, Any], args: tuple[Any, ...], kwargs: Any
    ) -> Mapping[str, Any]:
        program = handlers.substitute(handlers.seed(self._model, rng_key), data=dict(z))
        return handlers.trace(program).get_trace(*args, **(kwargs or {}))

    def _sampled(self, z: Mapping[str, Any], args: tuple[Any, ...], kwargs: Any) -> list[_Call]:
        """The calls of which sites are sampled, at given values. Nothing is drawn any more."""
        trace = self._trace(jax.random.key(0), z, args, kwargs)
        return [call for call in _calls(trace) if call.free]

    # ---- what would be sampled wrongly -------------------------------------------------------

    def _check(self, trace: Mapping[str, Any], args: tuple[Any, ...], kwargs: Any) -> None:
        calls = _calls(trace)
        own = [name for call in calls for name in call.free.values()]
        if not calls:
            raise ValueError(
                f"BlockGibbs found no energy model in {self._title}: call one inside it, for "
                "example pgm_energy.GaussianMixture(...)(x=data)"
            )
        if not own:
            raise ValueError(
                f"nothing is left to sample: every site of the energy models in {self._title} is "
                "observed"
            )
        others = [
            name
            for name, node in trace.items()
            if node["type"] == "sample" and not node["is_observed"] and name not in own
        ]
        if others:
            raise ValueError(
                f"BlockGibbs samples the sites of energy models, {own}; {others} of {self._title} "
                f"are no such sites. Sample them beside it: numpyro.infer.Gibbs([(BlockGibbs(model)"
                f", {own}), (NUTS(model), {others})])"
            )
        for call in calls:
            if call.free and (
                call.factor["scale"] is not None or not isinstance(call.factor["fn"], dist.Unit)
            ):
                raise ValueError(
                    f"the energy of {call.model.title} is scaled or masked in {self._title} (a "
                    "subsampling plate, handlers.scale or handlers.mask), and BlockGibbs samples "
                    "it as it is: pass only the rows that count, or sample without subsampling"
                )
        self._check_dependence(trace, own, args, kwargs)

    def _check_dependence(
        self, trace: Mapping[str, Any], own: list[str], args: tuple[Any, ...], kwargs: Any
    ) -> None:
        """Refuse densities that depend on sampled sites, and parameters that should not vary."""
        kwargs = dict(kwargs or {})

        def look(own: dict[str, Any], others: dict[str, Any]) -> tuple[Any, Any]:
            given = {**kwargs, GIBBS_SITES_KWARG: others} if others else kwargs
            trace = self._trace(jax.random.key(0), own, args, given)
            calls = _calls(trace)
            energies = [id(call.factor) for call in calls if call.free]
            elsewhere = {
                f"site {name!r}": (node["fn"].log_prob(node["value"]), node["scale"])
                for name, node in trace.items()
                if node["type"] == "sample" and id(node) not in energies
            }
            for call in calls:
                held = {k: v for k, v in call.rows.items() if k not in call.free}
                elsewhere[f"what is given to {call.model.title}"] = (call.model, held)
            return elsewhere, [call.model for call in calls]

        elsewhere, parameters = eval_provenance(
            look,
            own={name: jnp.asarray(trace[name]["value"]) for name in own},
            others={k: jnp.asarray(v) for k, v in kwargs.get(GIBBS_SITES_KWARG, {}).items()},
        )
        for what, origins in elsewhere.items():
            if any("own" in origin for origin in jax.tree.leaves(origins)):
                raise ValueError(
                    f"{what} in {self._title} depends on {own}, which BlockGibbs samples from "
                    "their energy alone: make it a term of the energy, or sample these sites with "
                    "numpyro.infer.DiscreteGibbs"
                )
        for call, origins in zip(_calls(trace), parameters, strict=True):
            random = any("others" in origin for origin in jax.tree.leaves(origins))
            if random and call.model.known_log_partition is None:
                raise ValueError(random_parameters(call.model))


def _values(calls: Sequence[_Call], shapes: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Values of the sampled sites, with their names and shapes in the user's model."""
    return {
        name: call.rows[site].reshape(shapes[name])
        for call in calls
        for site, name in call.free.items()
    }


def _total(energies: Iterable[jax.Array]) -> jax.Array:
    return jnp.asarray(sum(energies), jnp.result_type(float))
