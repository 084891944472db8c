"""NumPyro adapters: the pure kernels as ``MCMCKernel``."""

from pgm_energy.infer.gibbs import BlockGibbs, BlockGibbsState
from pgm_energy.infer.informed import (
    DiscreteLangevin,
    DiscreteLangevinState,
    GibbsWithGradients,
    GibbsWithGradientsState,
)
from pgm_energy.infer.swendsen_wang import SwendsenWang, SwendsenWangState
from pgm_energy.infer.tempering import ParallelTempering, ParallelTemperingState

__all__ = [
    "BlockGibbs",
    "BlockGibbsState",
    "DiscreteLangevin",
    "DiscreteLangevinState",
    "GibbsWithGradients",
    "GibbsWithGradientsState",
    "ParallelTempering",
    "ParallelTemperingState",
    "SwendsenWang",
    "SwendsenWangState",
]
