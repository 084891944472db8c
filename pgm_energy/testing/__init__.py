"""Public exams: any energy model against its own energy, any kernel against the exact law.

They are what this package's own tests use. The statistical test needs SciPy, which JAX brings.
"""

from pgm_energy.testing.exam import ConformanceError, ConformanceReport
from pgm_energy.testing.kernel import check_kernel
from pgm_energy.testing.model import check_energy_model
from pgm_energy.testing.states import enumerate_states, exact_transition_matrix

__all__ = [
    "ConformanceError",
    "ConformanceReport",
    "check_energy_model",
    "check_kernel",
    "enumerate_states",
    "exact_transition_matrix",
]
