"""Learning loops: gradient learners with any optax optimiser, and EM."""

from pgm_energy.learning.callbacks import EarlyStopping
from pgm_energy.learning.centering import couplings_only
from pgm_energy.learning.checkpoint import Checkpoint
from pgm_energy.learning.contrastive import CD, PCD
from pgm_energy.learning.em import (
    EM,
    ComponentScan,
    EMResult,
    OnlineEM,
    OnlineResult,
    scan_components,
)
from pgm_energy.learning.loop import LearningResult
from pgm_energy.learning.negative import NegativePhase, TemperedChains
from pgm_energy.learning.objectives import (
    MaximumLikelihood,
    PseudoLikelihood,
    RatioMatching,
    ScoreMatching,
)
from pgm_energy.learning.penalties import add_l1_penalty, add_sparsity_penalty, limit_norms
from pgm_energy.learning.stochastic_em import StochasticEM
from pgm_energy.learning.trajectory import TrajectoryChains

__all__ = [
    "CD",
    "EM",
    "PCD",
    "Checkpoint",
    "ComponentScan",
    "EMResult",
    "EarlyStopping",
    "LearningResult",
    "MaximumLikelihood",
    "NegativePhase",
    "OnlineEM",
    "OnlineResult",
    "PseudoLikelihood",
    "RatioMatching",
    "ScoreMatching",
    "StochasticEM",
    "TemperedChains",
    "TrajectoryChains",
    "add_l1_penalty",
    "add_sparsity_penalty",
    "couplings_only",
    "limit_norms",
    "scan_components",
]
