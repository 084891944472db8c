"""Concrete energy models."""

from pgm_energy.models.bernoulli import BernoulliMixture
from pgm_energy.models.boltzmann import BoltzmannMachine
from pgm_energy.models.categorical import CategoricalMixture
from pgm_energy.models.gaussian import GaussianMixture
from pgm_energy.models.independent import Independent
from pgm_energy.models.lattice import ising_lattice
from pgm_energy.models.mixture import Mixture
from pgm_energy.models.potts import PottsMachine
from pgm_energy.models.prior import MixturePrior
from pgm_energy.models.rbm import RBM
from pgm_energy.models.sparse import SparseBoltzmannMachine

__all__ = [
    "RBM",
    "BernoulliMixture",
    "BoltzmannMachine",
    "CategoricalMixture",
    "GaussianMixture",
    "Independent",
    "Mixture",
    "MixturePrior",
    "PottsMachine",
    "SparseBoltzmannMachine",
    "ising_lattice",
]
