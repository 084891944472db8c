"""Learning loops: contrastive learning with any optax optimiser, and EM."""

from pgm_energy.learning.contrastive import CD, PCD
from pgm_energy.learning.em import EM, EMResult
from pgm_energy.learning.loop import LearningResult

__all__ = ["CD", "EM", "PCD", "EMResult", "LearningResult"]
