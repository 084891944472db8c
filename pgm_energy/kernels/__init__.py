"""Pure transition kernels: ``(rng_key, values, model) -> (values, info)``."""

from pgm_energy.kernels.gibbs import GibbsInfo, GibbsKernel, gibbs_kernel

__all__ = ["GibbsInfo", "GibbsKernel", "gibbs_kernel"]
