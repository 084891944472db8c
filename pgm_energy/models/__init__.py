"""Concrete energy models."""

from pgm_energy.models.boltzmann import BoltzmannMachine
from pgm_energy.models.gaussian import GaussianMixture
from pgm_energy.models.independent import Independent
from pgm_energy.models.mixture import BernoulliMixture, CategoricalMixture, Mixture
from pgm_energy.models.potts import PottsMachine
from pgm_energy.models.rbm import RBM
from pgm_energy.models.sparse import SparseBoltzmannMachine, ising_lattice

__all__ = [
    "RBM",
    "BernoulliMixture",
    "BoltzmannMachine",
    "CategoricalMixture",
    "GaussianMixture",
    "Independent",
    "Mixture",
    "PottsMachine",
    "SparseBoltzmannMachine",
    "ising_lattice",
]
