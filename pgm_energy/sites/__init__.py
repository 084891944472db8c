"""Sites: named groups of units, each group one exponential family.

A family knows how raw samples are encoded as sufficient statistics T(x), its log-normaliser
A(eta), and how to draw from p(x) proportional to exp(<eta, T(x)>). Everything acts on arrays of
natural parameters of any leading shape, so that a block of some units needs no code of its own.
"""

from pgm_energy.sites._base import Site
from pgm_energy.sites.discrete import Binary, Categorical, OneHot, Spin
from pgm_energy.sites.real import Real

__all__ = ["Binary", "Categorical", "OneHot", "Real", "Site", "Spin"]
