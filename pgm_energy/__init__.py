"""Energy models that are NumPyro models: samplers, learning loops and diagnostics from one energy."""

from pgm_energy._struct import replace, static, struct
from pgm_energy.energy import EnergyModel
from pgm_energy.infer import BlockGibbs
from pgm_energy.kernels.gibbs import GibbsInfo, gibbs_kernel
from pgm_energy.learning import CD, PCD
from pgm_energy.models import RBM, BoltzmannMachine
from pgm_energy.natural import Natural
from pgm_energy.predict import impute, latent_mean, reconstruct, sample
from pgm_energy.sites import Binary, Categorical, Real, Spin
from pgm_energy.structure import Block, Blocks, blocks
from pgm_energy.transforms import binarize, condition, marginalize, relax, temper
