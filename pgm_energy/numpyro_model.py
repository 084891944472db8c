"""An energy model as a NumPyro model: a masked base measure per site, then one factor."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, override

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.primitives import CondIndepStackFrame, Messenger

from pgm_energy._guards import NeedsDiscreteKernel, not_random, random_parameters

if TYPE_CHECKING:
    from pgm_energy.energy import EnergyModel

__all__ = ["CALLED_BY", "EnergyCall", "Origin", "call", "plates"]

#: Entry of a site's ``infer`` that says which call of which energy model it belongs to.
CALLED_BY = "energy_model"


@dataclasses.dataclass(frozen=True, eq=False)
class EnergyCall:
    """One call of an energy model inside a NumPyro model; compared by identity."""

    model: EnergyModel


class Origin(NamedTuple):
    """Where a site of a NumPyro trace comes from.

    Attributes
    ----------
    call
        The call that made it.
    site
        Its name in the energy model, which ``handlers.scope`` does not change; None for the factor.
    """

    call: EnergyCall
    site: str | None


class _Units(Messenger):
    """Tells NumPyro that the unit dimensions of a base measure are independent.

    Else it misses a plate for them as soon as the model stands in a plate of rows. Automatic
    guides look plates of real latent sites up in the trace, so those are left alone. On the way
    out it refuses plates of the user's that stand on the units: a base measure that they expand
    would count every row as often as there are units.
    """

    def __init__(self, model: EnergyModel, name: str, observed: bool) -> None:
        super().__init__()
        site = model.sites[name]
        self._model = model
        self._message: Any = None
        self._frames: list[CondIndepStackFrame] = []
        if site.is_discrete or observed:
            # ArviZ names dimensions after plates, and unnamed ones like this itself
            names = site.dims or tuple(f"{name}_dim_{i}" for i in range(len(site.shape)))
            self._frames = [
                CondIndepStackFrame(dim, i - len(site.shape), size)
                for i, (dim, size) in enumerate(zip(names, site.shape, strict=True))
            ]

    @property
    def drawn(self) -> bool:
        """Whether a value was asked of the base measure: ``seed`` gives a key for that only."""
        return not self._message["is_observed"] and self._message["kwargs"]["rng_key"] is not None

    @override
    def process_message(self, msg: Any) -> None:
        if msg["type"] == "sample":
            self._message = msg
            msg["cond_indep_stack"].extend(self._frames)

    @override
    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        if self._message is None:
            return
        # all plates have seen the message by now, also where the shapes did not fit
        plates = self._message["cond_indep_stack"][len(self._frames) :]
        taken = {plate.dim for plate in plates}
        for plate in plates:
            if plate.dim >= -rank(self._model):
                dim = next(d for d in itertools.count(-1 - rank(self._model), -1) if d not in taken)
                raise ValueError(
                    f"plate {plate.name!r} of size {plate.size} stands at dim={plate.dim}, where "
                    f"the units of {self._model.title} are: each row would count {plate.size} "
                    f"times, or not fit. Write numpyro.plate({plate.name!r}, ..., dim={dim})"
                ) from None


def call(model: EnergyModel, observed: Mapping[str, Any]) -> dict[str, Any]:
    """Run an energy model as a NumPyro model and return the value of each site."""
    here = EnergyCall(model)
    values, drawn = {}, []
    for name, site in model.sites.items():
        infer: dict[str, Any] = {CALLED_BY: Origin(here, name)}
        if site.dims and not site.is_discrete and name not in observed:
            infer["event_dims"] = list(site.dims)
        if site.is_discrete and name not in observed:
            infer["enumerate"] = NeedsDiscreteKernel(model.title, name)
        units = _Units(model, name, name in observed)
        with units:
            values[name] = numpyro.sample(
                name, site.base_distribution().mask(False), obs=observed.get(name), infer=infer
            )
        drawn += [name] if units.drawn else []
    if drawn and numpyro.get_mask() is False:  # so Predictive runs a model, and no kernel does
        _warn_of_noise(model, drawn)
    lead = plates(model, values)
    density = model
    if model.known_log_partition is None:
        density = jax.tree.map(functools.partial(not_random, random_parameters(model)), model)
    log_factor = -density._batched_energy(values, lead)
    if lead:  # the unit dimensions of the plates' frame come back as ones, so that plates align
        log_factor = log_factor.reshape(lead + (1,) * rank(model))
    factor = dist.Unit(log_factor)  # numpyro.factor, with a word about where it comes from
    about = {"is_auxiliary": True, CALLED_BY: Origin(here, None)}
    numpyro.sample("log_density", factor, obs=factor.sample(None), infer=about)
    return values


def _warn_of_noise(model: EnergyModel, drawn: list[str]) -> None:
    warnings.warn(
        f"site {', '.join(map(repr, drawn))} of {model.title} is neither observed nor among the "
        "posterior samples: Predictive fills it with noise from the base measure, not with draws "
        "of the model. Draw with pgm_energy.sample or an MCMC run, or decode sites summed out",
        UserWarning,
        stacklevel=4,
    )


def rank(model: EnergyModel) -> int:
    """Return the number of unit dimensions of the widest site; plates stand left of them."""
    return max(len(site.shape) for site in model.sites.values())


def plates(model: EnergyModel, values: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the sizes of the plates around a call, from the leading dimensions of the values.

    Raises
    ------
    ValueError
        If they differ between sites, or a plate stands where the units are.
    """
    leads = {}
    for name, site in model.sites.items():
        lead = np.shape(values[name])[: np.ndim(values[name]) - len(site.shape)]
        gap = rank(model) - len(site.shape)
        if lead and gap and lead[-gap:] == (1,) * gap:
            lead = lead[:-gap]
        leads[name] = lead
    lead = max(leads.values(), key=len, default=())
    for name, other in leads.items():
        if other != lead:
            raise ValueError(
                f"site {name!r} has values of shape {np.shape(values[name])}, which does not fit "
                f"the leading dimensions {lead} of the other sites: put the model into "
                f"numpyro.plate(name, size, dim={-1 - rank(model)}) to have one configuration per "
                "row"
            )
    return lead
