"""Gradient-informed samplers of discrete sites as NumPyro kernels."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pgm_energy import _random
from pgm_energy._checks import require_count
from pgm_energy._struct import Key, is_concrete
from pgm_energy.energy import EnergyModel
from pgm_energy.infer._adapter import EnergyKernel
from pgm_energy.kernels.gradients import (
    DiscreteLangevinKernel,
    GibbsWithGradientsKernel,
    InformedKernel,
    Point,
)
from pgm_energy.observables import Observables

__all__ = [
    "DiscreteLangevin",
    "DiscreteLangevinState",
    "GibbsWithGradients",
    "GibbsWithGradientsState",
    "StepSizeState",
]

#: Step sizes that adaptation stays within: from no change to no cost of a change.
_SMALLEST, _LARGEST = 1e-2, 1e2


class GibbsWithGradientsState(NamedTuple):
    """State of :class:`GibbsWithGradients`, with the fields that NumPyro's MCMC looks for.

    Attributes
    ----------
    z
        Raw values of the sites that are sampled.
    potential_energy
        E of the configuration, nats, observed sites included.
    accept_prob
        Probability of accepting a proposal, averaged over the last step.
    num_steps
        Gradients in the last step.
    eta
        -dE/dT(x), nats, at the configuration: what the next proposal is made of.
    rng_key
        Key of the next step.
    """

    z: dict[str, jax.Array]
    potential_energy: jax.Array
    accept_prob: jax.Array
    num_steps: jax.Array
    eta: dict[str, jax.Array]
    rng_key: Key


class StepSizeState(NamedTuple):
    """A step size and how it is being adapted.

    Attributes
    ----------
    step_size
        The step size of the next step.
    log_average
        Running average of its logarithm, which it takes at the end of warm-up.
    done, remaining
        Steps of warm-up done and left.
    """

    step_size: jax.Array
    log_average: jax.Array
    done: jax.Array
    remaining: jax.Array


class DiscreteLangevinState(NamedTuple):
    """State of :class:`DiscreteLangevin`, with the fields that NumPyro's MCMC looks for.

    Attributes
    ----------
    z
        Raw values of the sites that are sampled.
    potential_energy
        E of the configuration, nats, observed sites included.
    accept_prob
        Probability of accepting a proposal, averaged over the last step.
    num_steps
        Gradients in the last step.
    adapt_state
        The step size.
    eta
        -dE/dT(x), nats, at the configuration: what the next proposal is made of.
    rng_key
        Key of the next step.
    """

    z: dict[str, jax.Array]
    potential_energy: jax.Array
    accept_prob: jax.Array
    num_steps: jax.Array
    adapt_state: StepSizeState
    eta: dict[str, jax.Array]
    rng_key: Key


class _Informed(EnergyKernel):
    """What both samplers share: the gradient at the configuration is kept between steps."""

    @abstractmethod
    def _kernel(self, names: tuple[str, ...], step_size: Any = None) -> InformedKernel:
        """Return the pure kernel over some sites."""

    def _begin(
        self, rng_key: Key, values: dict[str, jax.Array], fixed: Mapping[str, jax.Array]
    ) -> dict[str, Any]:
        """The fields that the first states of both share."""
        point = self._kernel(self._free(fixed)).look(values, self._energy_model)
        return {
            "z": self._sampled(point.values, fixed),
            "potential_energy": point.energy,
            "accept_prob": jnp.ones((), point.energy.dtype),
            "num_steps": jnp.zeros((), jnp.int32),
            "eta": point.eta,
            "rng_key": rng_key,
        }

    def _walk(
        self, state: Any, kernel: InformedKernel, fixed: Mapping[str, jax.Array], count: int
    ) -> Any:
        """Take some proposals in turn; the mean of their acceptance probabilities is kept."""
        rng_key, key = _random.split(state.rng_key, 2)
        point = Point(self._cast({**state.z, **fixed}), state.potential_energy, state.eta)

        def one(point: Point, key: jax.Array) -> tuple[Point, jax.Array]:
            return kernel.step(key, point, self._energy_model)

        point, accept_probs = jax.lax.scan(one, point, _random.split(key, count))
        return state._replace(
            z=self._sampled(point.values, fixed),
            potential_energy=point.energy,
            accept_prob=jnp.mean(accept_probs),
            num_steps=jnp.full((), count, jnp.int32),
            eta=point.eta,
            rng_key=rng_key,
        )

    def refresh(
        self, state: Any, model_args: tuple[Any, ...], model_kwargs: dict[str, Any] | None
    ) -> Any:
        """Return the state with energy and gradient under the values of the other sites."""
        fixed = self._fixed(model_args, model_kwargs)
        kernel = self._kernel(self._free(fixed))
        point = kernel.look({**state.z, **fixed}, self._energy_model)
        return state._replace(
            potential_energy=point.energy.astype(state.potential_energy.dtype),
            eta={name: x.astype(state.eta[name].dtype) for name, x in point.eta.items()},
        )


class GibbsWithGradients(_Informed):
    """Gibbs-with-gradients as a NumPyro kernel: single units, chosen by one gradient for all.

    Parameters
    ----------
    model
        An energy model. All sites that are sampled must be discrete.
    num_updates
        Proposals per step, each of one unit. None: as many as there are units to sample, so
        that a step is comparable with a sweep.
    observables
        Functions of a configuration, whose values are stored instead: see :class:`BlockGibbs`.

    Raises
    ------
    TypeError
        If ``model`` is no energy model.
    ValueError
        If ``num_updates`` is no positive integer; in ``init``, if a real site is left to sample.

    Notes
    -----
    Exact: proposals are corrected by Metropolis and Hastings. A proposal costs one gradient of the
    energy (the one at the present configuration is kept). Worth it where few units want to
    change and the energy has no blocks of independent units; elsewhere ``BlockGibbs`` changes
    many units for the same price. Works with every chain method, with observed sites by
    keyword, and as a block of NumPyro's composite ``Gibbs`` beside a kernel for real sites. The
    pure kernel is ``pgm_energy.kernels.GibbsWithGradientsKernel``.

    References
    ----------
    W. Grathwohl, K. Swersky, M. Hashemi, D. Duvenaud and C. Maddison (2021), Oops I took a
    gradient: scalable sampling for discrete distributions, algorithm 1.

    Examples
    --------
    >>> import jax, pgm_energy as pgm
    >>> from numpyro.infer import MCMC
    >>> lattice = pgm.ising_lattice((3, 3), coupling=0.2)
    >>> mcmc = MCMC(pgm.GibbsWithGradients(lattice), num_warmup=5, num_samples=10,
    ...             progress_bar=False)
    >>> mcmc.run(jax.random.key(0))
    >>> mcmc.get_samples()["v"].shape
    (10, 3, 3)
    """

    def __init__(
        self,
        model: EnergyModel,
        num_updates: int | None = None,
        observables: Observables | None = None,
    ) -> None:
        super().__init__(model, observables)
        self._num_updates = (
            None if num_updates is None else require_count("num_updates", num_updates)
        )

    @property
    def num_updates(self) -> int | None:
        """Proposals per step; None for as many as there are units to sample."""
        return self._num_updates

    def _kernel(self, names: tuple[str, ...], step_size: Any = None) -> InformedKernel:
        return GibbsWithGradientsKernel(names)

    def _first(
        self,
        rng_key: Key,
        values: dict[str, jax.Array],
        fixed: Mapping[str, jax.Array],
        num_warmup: int,
    ) -> GibbsWithGradientsState:
        return GibbsWithGradientsState(**self._begin(rng_key, values, fixed))

    def _step(
        self, state: GibbsWithGradientsState, fixed: Mapping[str, jax.Array]
    ) -> GibbsWithGradientsState:
        names = self._free(fixed)
        count = self._num_updates or _num_free(self._energy_model, names)
        return self._walk(state, self._kernel(names), fixed, count)

    def __repr__(self) -> str:
        return f"GibbsWithGradients({self._energy_model!r}, num_updates={self._num_updates})"


class DiscreteLangevin(_Informed):
    """The discrete Langevin proposal as a NumPyro kernel: all units at once, by one gradient.

    Parameters
    ----------
    model
        An energy model. All sites that are sampled must be discrete.
    step_size
        alpha, at the start of warm-up: a change of state costs 1 / (2 alpha) nats in the
        proposal. 0.2 changes a few percent of indifferent units.
    num_steps
        Proposals per step.
    adapt_step_size
        Whether warm-up adapts the step size, for each chain by itself.
    target_accept_prob
        Acceptance probability that adaptation aims at.
    observables
        Functions of a configuration, whose values are stored instead: see :class:`BlockGibbs`.

    Raises
    ------
    TypeError
        If ``model`` is no energy model.
    ValueError
        If an argument is out of range; in ``init``, if a real site is left to sample.

    Notes
    -----
    Exact after warm-up: proposals are corrected by Metropolis and Hastings. A proposal costs one
    gradient of the energy (the one at the present configuration is kept), whatever the number
    of units that change. Works with every chain method, with observed sites by keyword, and as a
    block of NumPyro's composite ``Gibbs`` beside a kernel for real sites. Adaptation is a
    stochastic approximation of log alpha, averaged; without warm-up there is none. The pure
    kernel is ``pgm_energy.kernels.DiscreteLangevinKernel``.

    References
    ----------
    R. Zhang, X. Liu and Q. Liu (2022), A Langevin-like sampler for discrete distributions,
    equation 4 (called DMALA there). G. Roberts and J. Rosenthal (1998), Optimal scaling of
    discrete approximations to Langevin diffusions, for the acceptance of 0.574.

    Examples
    --------
    >>> import jax, pgm_energy as pgm
    >>> from numpyro.infer import MCMC
    >>> lattice = pgm.ising_lattice((3, 3), coupling=0.2)
    >>> mcmc = MCMC(pgm.DiscreteLangevin(lattice), num_warmup=50, num_samples=10,
    ...             progress_bar=False)
    >>> mcmc.run(jax.random.key(0), extra_fields=("accept_prob", "adapt_state.step_size"))
    >>> mcmc.get_samples()["v"].shape
    (10, 3, 3)
    """

    def __init__(
        self,
        model: EnergyModel,
        step_size: Any = 0.2,
        num_steps: int = 1,
        *,
        adapt_step_size: bool = True,
        target_accept_prob: float = 0.574,
        observables: Observables | None = None,
    ) -> None:
        super().__init__(model, observables)
        self._step_size = _number("step_size", step_size, math.inf)
        self._num_steps = require_count("num_steps", num_steps)
        self._adapt_step_size = bool(adapt_step_size)
        self._target = _number("target_accept_prob", target_accept_prob, 1.0)

    @property
    def step_size(self) -> float:
        """The step size that warm-up starts from."""
        return self._step_size

    @property
    def num_steps(self) -> int:
        """Proposals per step."""
        return self._num_steps

    def _kernel(self, names: tuple[str, ...], step_size: Any = None) -> InformedKernel:
        return DiscreteLangevinKernel(self._step_size if step_size is None else step_size, names)

    def _first(
        self,
        rng_key: Key,
        values: dict[str, jax.Array],
        fixed: Mapping[str, jax.Array],
        num_warmup: int,
    ) -> DiscreteLangevinState:
        begun = self._begin(rng_key, values, fixed)
        one, none = begun["accept_prob"], begun["num_steps"]
        adapt = StepSizeState(
            step_size=self._step_size * one,
            log_average=math.log(self._step_size) * one,
            done=none,
            remaining=none + (num_warmup if self._adapt_step_size else 0),
        )
        return DiscreteLangevinState(**begun, adapt_state=adapt)

    def _step(
        self, state: DiscreteLangevinState, fixed: Mapping[str, jax.Array]
    ) -> DiscreteLangevinState:
        kernel = self._kernel(self._free(fixed), state.adapt_state.step_size)
        new = self._walk(state, kernel, fixed, self._num_steps)
        return new._replace(adapt_state=self._adapted(state.adapt_state, new.accept_prob))

    def _adapted(self, old: StepSizeState, accept_prob: jax.Array) -> StepSizeState:
        """A step of stochastic approximation; the average at the end of warm-up."""
        done = old.done + 1
        place = done.astype(accept_prob.dtype)
        log_step = jnp.log(old.step_size) + place**-0.6 * (accept_prob - self._target)
        log_step = jnp.clip(log_step, math.log(_SMALLEST), math.log(_LARGEST))
        average = old.log_average + place**-0.75 * (log_step - old.log_average)
        step_size = jnp.exp(jnp.where(old.remaining == 1, average, log_step))
        new = StepSizeState(step_size, average, done, old.remaining - 1)
        return jax.tree.map(lambda x, y: jnp.where(old.remaining > 0, y, x), old, new)

    def __repr__(self) -> str:
        return (
            f"DiscreteLangevin({self._energy_model!r}, step_size={self._step_size:g}, "
            f"num_steps={self._num_steps})"
        )


def _num_free(model: EnergyModel, names: tuple[str, ...]) -> int:
    """Number of units that can change."""
    count = 0
    for name in names:
        mask = model.free_units(name) if is_concrete(model) else None
        count += model.sites[name].size if mask is None else int(mask.sum())
    return count


def _number(name: str, value: Any, limit: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0.0 < number < limit:
        below = "" if math.isinf(limit) else f" below {limit:g}"
        raise ValueError(f"{name} must be a positive number{below}, got {value!r}")
    return number
