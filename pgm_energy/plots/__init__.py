"""Pictures: chains by ArviZ, samples, filters and training curves by matplotlib."""

from pgm_energy.plots.chains import KINDS, plot_comparison
from pgm_energy.plots.components import plot_components, plot_responsibilities, plot_scan
from pgm_energy.plots.images import image_shape, plot_filters, plot_samples
from pgm_energy.plots.training import plot_training, training_curves

__all__ = [
    "KINDS",
    "image_shape",
    "plot_comparison",
    "plot_components",
    "plot_filters",
    "plot_responsibilities",
    "plot_samples",
    "plot_scan",
    "plot_training",
    "training_curves",
]
