"""Uses of an energy model in NumPyro that would be silently wrong, refused."""

from __future__ import annotations

import functools
from typing import Any

import jax

__all__ = ["NeedsDiscreteKernel", "not_random", "random_parameters"]


class NeedsDiscreteKernel(str):
    """Entry of ``infer={"enumerate": ...}`` that explains itself when NumPyro prints it.

    NUTS and HMC format the entry of a discrete latent site into their own message; all other
    kernels only compare it with "parallel".
    """

    __slots__ = ("owner", "site")

    owner: str
    site: str

    def __new__(cls, owner: str, site: str) -> NeedsDiscreteKernel:
        self = super().__new__(cls, "sequential")
        self.owner, self.site = owner, site
        return self

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        return self.owner, self.site

    def __format__(self, spec: str) -> str:
        raise ValueError(
            f"NUTS and HMC cannot sample the discrete site {self.site!r} of {self.owner}: use "
            f"BlockGibbs, sum the site out with marginalize(model, {self.site!r}), or sample "
            "the continuous twin relax(model)"
        )


def random_parameters(model: Any) -> str:
    """Return what is wrong with random parameters of an unnormalised energy, and the ways out."""
    inner = model
    while inner is not None and getattr(inner, "known_log_partition", None) is None:
        inner = getattr(inner, "model", None)
    if inner is not None:
        return (
            f"the parameters of {model.title} are random here, and its log Z, which changes with "
            f"them, is not that of {inner.title} any more: without it the posterior would be "
            "wrong. To observe data, call the normalised model with them, m(v=x), instead of "
            "condition(m, v=x). To have the law given data, or a tilted one, normalise last: "
            "pgm_energy.normalize(condition(...))"
        )
    return (
        f"the parameters of {model.title} are random here, but its energy is unnormalised: log Z "
        "changes with them, and without it the posterior would be wrong. Say what log Z is: "
        "pgm_energy.normalize(model) sums the states of a small model exactly, "
        "normalize(model, log_partition) takes a function of the model. Or keep the parameters "
        "fixed, or learn them with PCD"
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def not_random(message: str, leaf: jax.Array) -> jax.Array:
    """The identity on a parameter that nobody may differentiate with respect to."""
    return leaf


@functools.partial(not_random.defjvp, symbolic_zeros=True)
def _refuse_random(message: str, primals: Any, tangents: Any) -> Any:
    if not isinstance(tangents[0], jax.custom_derivatives.SymbolicZero):
        raise ValueError(message)
    return primals[0], tangents[0]
