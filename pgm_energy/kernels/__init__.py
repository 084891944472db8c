"""Pure transition kernels: ``(rng_key, values, model) -> (values, info)``."""

from pgm_energy.kernels.gibbs import GibbsInfo, GibbsKernel, gibbs_kernel
from pgm_energy.kernels.gradients import (
    DiscreteLangevinKernel,
    GibbsWithGradientsKernel,
    InformedInfo,
)
from pgm_energy.kernels.swendsen_wang import (
    SwendsenWangInfo,
    SwendsenWangKernel,
    swendsen_wang_kernel,
)
from pgm_energy.kernels.tempering import Replicas, TemperingInfo, TemperingKernel

__all__ = [
    "DiscreteLangevinKernel",
    "GibbsInfo",
    "GibbsKernel",
    "GibbsWithGradientsKernel",
    "InformedInfo",
    "Replicas",
    "SwendsenWangInfo",
    "SwendsenWangKernel",
    "TemperingInfo",
    "TemperingKernel",
    "gibbs_kernel",
    "swendsen_wang_kernel",
]
