"""Transformations of energy models; each returns an energy model with a ``decode``."""

from pgm_energy.transforms.binarize import Binarized, binarize
from pgm_energy.transforms.condition import Conditioned, condition
from pgm_energy.transforms.marginalize import Marginal, marginalize
from pgm_energy.transforms.relax import Relaxed, relax
from pgm_energy.transforms.temper import Tempered, temper
from pgm_energy.transforms.tilt import Tilted, tilt

__all__ = [
    "Binarized",
    "Conditioned",
    "Marginal",
    "Relaxed",
    "Tempered",
    "Tilted",
    "binarize",
    "condition",
    "marginalize",
    "relax",
    "temper",
    "tilt",
]
