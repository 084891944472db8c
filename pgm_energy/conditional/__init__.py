"""What a model says about rows that are seen in part, through noise, or through its latents."""

from pgm_energy.conditional.means import latent_mean, reconstruct
from pgm_energy.conditional.posterior import Posterior, denoise, impute
from pgm_energy.conditional.sampling import sample_given

__all__ = ["Posterior", "denoise", "impute", "latent_mean", "reconstruct", "sample_given"]
