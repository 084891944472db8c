"""Energy models that are NumPyro models; samplers, learning and diagnosis from one energy."""

from pgm_energy import testing
from pgm_energy._struct import replace, static, struct
from pgm_energy.energy import EnergyModel
from pgm_energy.evaluation import Evaluation, evaluate, log_likelihood
from pgm_energy.exact_law import ExactResult, exact
from pgm_energy.infer import BlockGibbs
from pgm_energy.kernels.gibbs import GibbsInfo, gibbs_kernel
from pgm_energy.learning import CD, EM, PCD
from pgm_energy.models import (
    RBM,
    BernoulliMixture,
    BoltzmannMachine,
    CategoricalMixture,
    GaussianMixture,
    Independent,
    PottsMachine,
    SparseBoltzmannMachine,
    ising_lattice,
)
from pgm_energy.natural import Natural
from pgm_energy.partition import LogPartition, log_partition
from pgm_energy.predict import impute, latent_mean, reconstruct, sample
from pgm_energy.serialization import load, save
from pgm_energy.pseudo_likelihood import pseudo_log_likelihood
from pgm_energy.sites import Binary, Categorical, Real, Spin
from pgm_energy.structure import Block, Blocks, blocks
from pgm_energy.transforms import binarize, condition, marginalize, relax, temper
