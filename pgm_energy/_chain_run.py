"""Chains of a pure kernel, run in compiled chunks: progress, Ctrl-C and bad energies in between."""

from __future__ import annotations

import functools
import inspect
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.mcmc import MCMCKernel

from pgm_energy._interrupts import interrupts_wait
from pgm_energy._progress import progress
from pgm_energy._struct import Key, is_concrete
from pgm_energy.energy import EnergyModel
from pgm_energy.kernels.gibbs import gibbs_kernel, random_configuration
from pgm_energy.structure import blocks

__all__ = [
    "Chains",
    "Chunk",
    "Watch",
    "advance_chains",
    "begin",
    "checked_kernel",
    "first_invalid",
]

#: Seconds that a chunk should take: how long Ctrl-C waits.
_SHORT, _LONG = 0.2, 0.8
#: Chains that a message names.
_NAMED = 3


class Chains(NamedTuple):
    """Chains side by side.

    Attributes
    ----------
    keys
        A key of each chain; step n uses its n-th descendant.
    values
        Raw values by site in storage types, ``(chains, ...)``.
    """

    keys: Key
    values: dict[str, jax.Array]


class Chunk(NamedTuple):
    """What a chunk says about the energies of its chains, ``(chains,)`` each.

    Attributes
    ----------
    invalid
        First step with an energy that is no finite number, counted from the first after
        warm-up; -1 if there is none.
    energy
        That energy.
    """

    invalid: np.ndarray
    energy: np.ndarray


def checked_kernel(kernel: Any, model: EnergyModel) -> Any:
    """Return a pure kernel that fits the model; None means block Gibbs.

    Raises
    ------
    TypeError
        If it is a kernel of NumPyro or a class, no function of a key, values and a model, cannot
        be hashed, or does not return values of every site and an info.
    """
    if kernel is None:
        return gibbs_kernel(blocks(model))
    form = "(rng_key, values, model) -> (values, info), such as gibbs_kernel(blocks(model))"
    cls = kernel if isinstance(kernel, type) else type(kernel)
    if issubclass(cls, MCMCKernel):
        raise TypeError(
            f"{cls.__name__} is a NumPyro kernel, which runs in MCMC(...); here pass the pure "
            "kernel, for example kernels.swendsen_wang_kernel(model)"
        )
    if isinstance(kernel, type):
        raise TypeError(
            f"kernel is the class {cls.__name__}: pass an instance, {cls.__name__}(...)"
        )
    try:
        inspect.signature(kernel).bind(None, None, None)
        hash(kernel)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"kernel must be a hashable function {form}; got {type(kernel).__name__}: {error}"
        ) from error
    shapes = {k: jax.ShapeDtypeStruct(s.shape, s.dtype) for k, s in model.sites.items()}
    out = jax.eval_shape(lambda values: kernel(jax.random.key(0), values, model), shapes)
    found = out[0] if isinstance(out, tuple) and len(out) == 2 else None
    right = isinstance(found, dict) and all(
        getattr(found.get(name), "shape", None) == site.shape for name, site in model.sites.items()
    )
    if not right:
        raise TypeError(
            f"kernel must be a function {form}; {type(kernel).__name__} does not return a pair of "
            f"the values of {model.title}'s sites and an info"
        )
    return kernel


def begin(rng_key: Key, model: EnergyModel, num_chains: int) -> Chains:
    """Return chains at independent random configurations.

    Raises
    ------
    TypeError
        Inside ``jax.jit`` or ``jax.vmap``, where nothing can be looked at between chunks.
    """
    if not is_concrete((rng_key, model)):
        raise TypeError(
            "this run looks at its chains between compiled chunks and cannot itself be inside "
            "jax.jit or jax.vmap: there, scan gibbs_kernel(blocks(model))"
        )
    return _begin(rng_key, model, num_chains=num_chains)


@functools.partial(jax.jit, static_argnames="num_chains")
def _begin(rng_key: Key, model: EnergyModel, *, num_chains: int) -> Chains:
    def one(key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        start, go = jax.random.split(key)
        return go, cast(model, model.clamp(random_configuration(start, model)))

    return Chains(*jax.vmap(one)(jax.random.split(rng_key, num_chains)))


def cast(model: EnergyModel, values: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Return values of every site in storage types."""
    return {name: site.cast(values[name]) for name, site in model.sites.items()}


def advance_chains(
    kernel: Any, model: EnergyModel, chains: Chains, number: Any
) -> tuple[Chains, jax.Array]:
    """Return the chains after sweep ``number`` of a pure kernel, and their energies, nats."""

    def one(key: jax.Array, values: dict[str, jax.Array]) -> Any:
        new, info = kernel(jax.random.fold_in(key, number), values, model)
        new = cast(model, new)
        energy = getattr(info, "energy", None)
        if energy is None:
            energy = model.energy(**model.encode(new))
        return new, energy.astype(jnp.result_type(float))

    values, energy = jax.vmap(one)(chains.keys, chains.values)
    return Chains(chains.keys, values), energy


class Watch:
    """The host's side of a run: chunks of the right length, and what is said about them.

    Parameters
    ----------
    unit
        What is counted, "draw" or "sweep", after warm-up.
    on_invalid
        "warn" goes on after an energy that is no finite number, "stop" ends the run.
    progress_bar
        Whether to show progress.
    size
        Counted units in a step.

    Raises
    ------
    ValueError
        On another ``on_invalid``.
    """

    def __init__(self, unit: str, on_invalid: str, progress_bar: bool, size: int = 1) -> None:
        if on_invalid not in ("warn", "stop"):
            raise ValueError(f"on_invalid must be 'warn' or 'stop', got {on_invalid!r}")
        self.unit = unit
        self.stops = on_invalid == "stop"
        self.visible = progress_bar
        self.size = size
        self.invalid: dict[int, int] = {}
        self.ending = ""

    def run(
        self,
        advance: Callable[[int, int], Chunk | None],
        num_warmup: int,
        num_steps: int,
        longest: int,
    ) -> int:
        """Take steps and return how many of them were taken after warm-up.

        Parameters
        ----------
        advance
            Takes steps, given the number of steps before (of warm-up too) and how many to take.
        num_warmup, num_steps
            Steps of warm-up, where energies are not looked at, and after it.
        longest
            Most steps in a chunk.

        Notes
        -----
        An interrupt, or an energy that stops the run, ends it with a warning: what was done
        before remains. An interrupt before the first chunk after warm-up is raised.
        """
        done, total, count = 0, num_warmup + num_steps, 1
        bar = progress(total * self.size, self.visible, self.unit + "s")
        with bar as show, interrupts_wait() as interrupted:
            try:
                while done < total and not self.ending:
                    warm = done < num_warmup
                    count = min(count, longest, (num_warmup if warm else total) - done)
                    started = time.perf_counter()
                    found = advance(done, count)
                    seconds = time.perf_counter() - started
                    if not warm and found is not None:
                        self._look(found)
                    done += count
                    show(done * self.size)
                    if interrupted() and done < total:
                        raise KeyboardInterrupt
                    if seconds < _SHORT:
                        count *= 2
                    elif seconds > _LONG:
                        count = max(count // 2, 1)
            except KeyboardInterrupt:
                if done <= num_warmup:
                    raise
                left = (total - done) * self.size
                self._end(f"interrupted with {left} of {num_steps * self.size} {self.unit}s to go")
        return max(done - num_warmup, 0)

    def _look(self, chunk: Chunk) -> None:
        """Report chains whose energy is no finite number for the first time."""
        new = [i for i in np.flatnonzero(chunk.invalid >= 0) if int(i) not in self.invalid]
        if not new:
            return
        places = [
            f"{chunk.energy[i]} in chain {i} at {self.unit} {chunk.invalid[i]}"
            for i in new[:_NAMED]
        ]
        more = f" and {len(new) - _NAMED} more chains" if len(new) > _NAMED else ""
        self.invalid |= {int(i): int(chunk.invalid[i]) for i in new}
        message = f"the energy became {', '.join(places)}{more} (counted from 0 after warm-up)"
        if self.stops:
            self._end(message)
        else:
            warnings.warn(
                f"{message}; the run goes on, on_invalid='stop' would end it here. Parameters too "
                "large for the precision, or an energy that is not normalisable, do this",
                RuntimeWarning,
                stacklevel=4,
            )

    def _end(self, reason: str) -> None:
        self.ending = reason
        warnings.warn(
            f"{reason}; the result holds what was drawn before", RuntimeWarning, stacklevel=4
        )


def first_invalid(energies: np.ndarray, start: int) -> Chunk:
    """Look at the energies of a chunk, ``(steps, chains)``, whose first step is ``start``."""
    wrong = ~np.isfinite(energies)
    place = wrong.argmax(axis=0)
    energy = np.take_along_axis(energies, place[None], axis=0)[0]
    return Chunk(np.where(wrong.any(axis=0), place + start, -1), energy)
