"""Transformations of energy models; each returns an energy model with a ``decode``."""

from pgm_energy.transforms.binarize import Binarized, binarize
from pgm_energy.transforms.condition import Conditioned, condition
from pgm_energy.transforms.marginalize import Marginal, marginalize
from pgm_energy.transforms.relax import Relaxed, relax
from pgm_energy.transforms.temper import Tempered, temper

__all__ = [
    "Binarized",
    "Conditioned",
    "Marginal",
    "Relaxed",
    "Tempered",
    "binarize",
    "condition",
    "marginalize",
    "relax",
    "temper",
]
