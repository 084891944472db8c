"""Expectation maximisation for mixtures: in batch, on line, over numbers of components."""

from pgm_energy.learning.em.batch import EM
from pgm_energy.learning.em.online import OnlineEM, OnlineResult
from pgm_energy.learning.em.result import EMResult
from pgm_energy.learning.em.scan import ComponentScan, scan_components

__all__ = [
    "EM",
    "ComponentScan",
    "EMResult",
    "OnlineEM",
    "OnlineResult",
    "scan_components",
]
