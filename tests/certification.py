"""The kernels and the models of the certification, and which can sample which.

``python tests/certification.py`` prints what the exam finds for every pair.
"""

import warnings

import jax.numpy as jnp
import numpy as np
import zoo
from jax import Array
from numpyro.infer import HMC

import pgm_energy as pgm
from pgm_energy.kernels import (
    DiscreteLangevinKernel,
    GibbsWithGradientsKernel,
    swendsen_wang_kernel,
)

NAN = np.nan


@pgm.struct
class Neighbours(pgm.EnergyModel):
    """A user's model: agreement by ``==``, which no block can use, and no gradient sees."""

    strength: Array

    @property
    def sites(self):
        return {"z": pgm.Categorical(3, ()), "s": pgm.Spin(3)}

    def energy(self, z, s):
        return -self.strength * (jnp.sum(s[1:] == s[:-1]) + z @ jnp.arange(3.0) * s[0])


@pgm.struct
class Deep(pgm.EnergyModel):
    """A user's model: two layers above the data, families mixed, written in one line."""

    first: Array
    second: Array

    @property
    def sites(self):
        return {"v": pgm.Spin(3), "h1": pgm.Binary(2), "h2": pgm.Spin(2)}

    def energy(self, v, h1, h2):
        return -(v @ self.first @ h1 + h1 @ self.second @ h2)


def _array(seed, *shape, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _potts():
    agree = 0.8 * np.eye(3) * (1.0 - np.eye(3))[:, :, None, None]
    return pgm.PottsMachine(couplings=jnp.asarray(agree, jnp.float32), fields=_array(0, 3, 3))


def _graph():
    ring = [(i, (i + 1) % 5) for i in range(5)]
    return pgm.SparseBoltzmannMachine.from_edges(
        [*ring, (0, 2)], [1.5, -2.0, 0.7, 2.0, -1.0, 0.4], [-0.5, 0.2, 0.3, 0.0, -1.0]
    )


def _mixture():
    return pgm.BernoulliMixture(
        weights=jnp.array([0.5, 0.3, 0.2]),
        probs=jnp.asarray(np.random.default_rng(3).uniform(0.1, 0.9, (3, 3)), jnp.float32),
    )


def _gaussian_mixture():
    return pgm.GaussianMixture(
        weights=jnp.array([0.6, 0.4]),
        means=_array(4, 2, 2),
        covariances=jnp.ones((2, 2)),
        covariance_type="diag",
    )


#: Models of at most 512 states, by name.
MODELS = {
    "rbm": zoo.rbm,
    "rbm-spin-binary": lambda: zoo.rbm("spin", "binary"),
    "rbm-categorical": lambda: zoo.rbm("categorical", "binary", (2, 2)),
    "rbm-real": lambda: zoo.rbm("real", "spin", (2, 3)),
    "machine": lambda: zoo.machine(5, scale=0.9),
    "machine-spin-hidden": lambda: zoo.machine(5, pgm.Spin, num_hidden=2),
    "lattice": lambda: pgm.ising_lattice((3, 3), 0.35),
    "lattice-field": lambda: pgm.ising_lattice((2, 3), 0.6, _array(6, 2, 3), periodic=False),
    "graph": _graph,
    "potts": _potts,
    "mixture": _mixture,
    "mixture-real": _gaussian_mixture,
    "user-deep": lambda: Deep(first=_array(7, 3, 2), second=_array(8, 2, 2)),
    "user-equal": lambda: Neighbours(strength=jnp.asarray(0.7)),
    "user-mixed": zoo.mixed,
    "conditioned": lambda: pgm.condition(zoo.machine(5), v=np.array([1.0, NAN, NAN, 0.0, NAN])),
    "marginal": lambda: pgm.marginalize(zoo.rbm("binary", "spin", (4, 2), scale=0.9), "h"),
    "tempered": lambda: pgm.temper(pgm.Independent.like(zoo.rbm()), zoo.rbm(), 0.6),
    "binarized": lambda: pgm.binarize(zoo.machine(5, pgm.Spin)),
}


def _by_hand(model):
    """One unit after another, last first: every order of a sweep is exact."""
    units = []
    for name, site in reversed(model.sites.items()):
        free = model.free_units(name)
        numbers = np.arange(site.size) if free is None else np.flatnonzero(free)
        units += [pgm.Block(name, np.array([i])) for i in numbers[::-1]]
    return pgm.gibbs_kernel(pgm.blocks(model, units))


def _tempering(model):
    return pgm.ParallelTempering(model, betas=[0.0, 0.4, 1.0], base=pgm.Independent.like(model))


def _twin(shift):
    def make(model):
        twin = pgm.relax(model, shift=shift)
        return HMC(twin, step_size=0.4, num_steps=3, adapt_step_size=False, adapt_mass_matrix=False)

    return make


#: Kernels by name, each made for a model; pure ones in small letters, NumPyro's with capitals.
KERNELS = {
    "gibbs": lambda model: pgm.gibbs_kernel(pgm.blocks(model)),
    "gibbs-by-hand": _by_hand,
    "gradients": lambda model: GibbsWithGradientsKernel(),
    "langevin": lambda model: DiscreteLangevinKernel(0.8),
    "clusters": swendsen_wang_kernel,
    "BlockGibbs": lambda model: pgm.BlockGibbs(model, num_sweeps=2),
    "ParallelTempering": _tempering,
    "GibbsWithGradients": lambda model: pgm.GibbsWithGradients(model, num_updates=2),
    "DiscreteLangevin": lambda model: pgm.DiscreteLangevin(model, step_size=0.8),
    "SwendsenWang": pgm.SwendsenWang,
    "HMC-twin": _twin("uniform"),
    "HMC-twin-per-unit": _twin("per_unit"),
}


def make(kernel, model):
    """A kernel on a model; the warning that energy differences are slow is not the point here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*energy differences.*")
        return KERNELS[kernel](model)


def grid(text):
    """``{kernel: {model: mark}}`` of a table with one row per kernel, models in order."""
    rows = {}
    for line in text.strip().splitlines():
        name, *marks = line.split()
        rows[name] = dict(zip(MODELS, marks, strict=True))
    assert list(rows) == list(KERNELS)
    return rows


#: ``+``: examined by the tests. ``.``: examined, with the rest, by running this file; a row like it
#: or a model like it is in the tests. Letters: refused, see :data:`REFUSALS`.
GRID = grid("""
    gibbs               + + + + + + + + + + + + + + + + + + +
    gibbs-by-hand       . + + + + . . . . + . . . a + + a . .
    gradients           + + + r + . + . + + . r . + r + + . +
    langevin            . + + r . + . + . + + r + . r + . + .
    clusters            + . n r . + + + + + n r + n r + e . .
    BlockGibbs          + . . + . . . . . + . . + . . + . . .
    ParallelTempering   + . . + . + . . . . . . . . . + . . .
    GibbsWithGradients  + . . r . . . . . + . r . . r + . . .
    DiscreteLangevin    . . . r . + . . . + . r . . r + . . .
    SwendsenWang        + . n r . . . . . + n r . n r + e . .
    HMC-twin            + . f f . . . . . f f f + f f . e . .
    HMC-twin-per-unit   . + f f . . + . . f f f . f f + e . +
""")
#: Why a kernel cannot sample a model, as it says itself.
REFUSALS = {
    "a": "cannot be drawn at once: the energy is not affine",
    "e": "is not pairwise",
    "f": "relax needs binary or spin sites",
    "n": "units that all have the same number of states",
    "r": "site '.' is real",
}


def main():
    """Print what the exam finds, the least sure number of every pair, and the refusals."""
    from pgm_energy.testing import check_kernel

    for kernel, row in GRID.items():
        for name, mark in row.items():
            if mark in REFUSALS:
                print(f"{kernel:20}{name:22}refused: {REFUSALS[mark]}")
                continue
            model = MODELS[name]()
            found = dict(check_kernel(make(kernel, model), model, num_draws=10_000).checks)
            law = found.get("pi T = pi", "by draws").removeprefix("worst difference ")
            draws = "  ".join(
                text.split(" (")[0].split(", statistic")[0]
                for check, text in found.items()
                if text.startswith(("p = ", "smallest p"))
            )
            print(f"{kernel:20}{name:22}{law:10}{draws}", flush=True)


if __name__ == "__main__":
    main()
