"""Concrete energy models."""

from pgm_energy.models.boltzmann import BoltzmannMachine
from pgm_energy.models.rbm import RBM

__all__ = ["RBM", "BoltzmannMachine"]
