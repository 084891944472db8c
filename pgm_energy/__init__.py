"""Energy models that are NumPyro models; samplers, learning and diagnosis from one energy."""

from typing import TYPE_CHECKING

from pgm_energy import batch_means, testing
from pgm_energy._struct import replace, static, struct
from pgm_energy.conditional import (
    Posterior,
    denoise,
    impute,
    latent_mean,
    reconstruct,
    sample_given,
)
from pgm_energy.energy import EnergyModel
from pgm_energy.evaluation import Evaluation, evaluate, log_likelihood
from pgm_energy.exact_law import ExactResult, exact
from pgm_energy.infer import (
    BlockGibbs,
    DiscreteLangevin,
    GibbsWithGradients,
    ParallelTempering,
    SwendsenWang,
)
from pgm_energy.kernels.gibbs import GibbsInfo, gibbs_kernel
from pgm_energy.learning import (
    CD,
    EM,
    PCD,
    Checkpoint,
    ComponentScan,
    EarlyStopping,
    EMResult,
    LearningResult,
    MaximumLikelihood,
    NegativePhase,
    OnlineEM,
    OnlineResult,
    PseudoLikelihood,
    RatioMatching,
    ScoreMatching,
    StochasticEM,
    TemperedChains,
    TrajectoryChains,
    add_l1_penalty,
    add_sparsity_penalty,
    couplings_only,
    limit_norms,
    scan_components,
)
from pgm_energy.models import (
    RBM,
    BernoulliMixture,
    BoltzmannMachine,
    CategoricalMixture,
    GaussianMixture,
    Independent,
    MixturePrior,
    PottsMachine,
    SparseBoltzmannMachine,
    ising_lattice,
)
from pgm_energy.moments import PairMoments, RunningMoments, running_moments
from pgm_energy.natural import Natural
from pgm_energy.normalization import normalize
from pgm_energy.partition import LogPartition, log_partition
from pgm_energy.predict import sample
from pgm_energy.pseudo_likelihood import pseudo_log_likelihood
from pgm_energy.serialization import load, save
from pgm_energy.sites import Binary, Categorical, Real, Spin
from pgm_energy.structure import Block, Blocks, blocks
from pgm_energy.transforms import binarize, condition, marginalize, relax, temper, tilt

if TYPE_CHECKING:
    from pgm_energy.comparison import Comparison as Comparison
    from pgm_energy.comparison import compare as compare
    from pgm_energy.convergence import Diagnosis as Diagnosis
    from pgm_energy.convergence import diagnose as diagnose
    from pgm_energy.diagnostics import to_datatree as to_datatree
    from pgm_energy.plots import plot_components as plot_components
    from pgm_energy.plots import plot_filters as plot_filters
    from pgm_energy.plots import plot_responsibilities as plot_responsibilities
    from pgm_energy.plots import plot_samples as plot_samples
    from pgm_energy.plots import plot_scan as plot_scan
    from pgm_energy.plots import plot_training as plot_training

#: Names that need ArviZ or matplotlib, which are only imported when one of them is asked for.
_LAZY = {
    "Comparison": "comparison",
    "Diagnosis": "convergence",
    "compare": "comparison",
    "diagnose": "convergence",
    "plot_components": "plots",
    "plot_filters": "plots",
    "plot_responsibilities": "plots",
    "plot_samples": "plots",
    "plot_scan": "plots",
    "plot_training": "plots",
    "to_datatree": "diagnostics",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
