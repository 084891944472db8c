"""Contestants of other libraries, each used the way its own documentation does.

A library that is not installed raises ``Missing`` when its contestant is made: the table says so.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pgm_energy as pgm
from benchmarks.ours import NumPyroSweep, row_units, starts
from benchmarks.timing import Scan


class Missing(RuntimeError):
    """A peer that is not installed or does not work with the versions at hand."""


#: What a record of versions names.
DISTRIBUTIONS = (
    "pgm-energy",
    "jax",
    "jaxlib",
    "numpyro",
    "scikit-learn",
    "thrml",
    "blackjax",
    "dwave-samplers",
)


def require(module: str) -> Any:
    """Import a peer."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.split(".")[0]
        if importlib.util.find_spec(name) is None:
            raise Missing("not installed") from error
        raise Missing(f"does not import here: {error}") from error


def versions() -> dict[str, str]:
    """Return the versions of this package and of every peer, or that one is not installed."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


# ---- NumPyro ------------------------------------------------------------------------------------


class DiscreteGibbs(NumPyroSweep):
    """NumPyro's own single-site Gibbs sampler on the same model."""

    def __init__(self, model: pgm.EnergyModel, num_chains: int, seed: int) -> None:
        from numpyro.infer.gibbs import DiscreteGibbs as Kernel

        super().__init__(Kernel(model), model, num_chains, seed)


# ---- what a graph of pairs needs ----------------------------------------------------------------


def ising_form(model: pgm.EnergyModel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return edges, couplings and fields of a model's law written with spins -1 and +1.

    Units are numbered through all sites, in order; a binary unit is (1 + s) / 2.
    """
    if isinstance(model, pgm.RBM):
        weights = np.asarray(model.weights, np.float64)
        v, h = weights.shape
        edges = np.stack(np.meshgrid(np.arange(v), v + np.arange(h), indexing="ij"), -1)
        edges, couplings = edges.reshape(-1, 2), weights.reshape(-1)
        bias = np.concatenate([model.visible_bias, model.hidden_bias])
    elif isinstance(model, pgm.BoltzmannMachine):
        weights = np.asarray(model.weights, np.float64)
        edges = np.argwhere(np.triu(np.ones_like(weights), 1) > 0)
        couplings, bias = weights[edges[:, 0], edges[:, 1]], np.asarray(model.bias)
    else:
        edges, couplings = (np.asarray(part) for part in model.pair_couplings())
        bias = np.asarray(model.bias).reshape(-1)
    bias = bias.astype(np.float64)
    if all(isinstance(site, pgm.Spin) for site in model.sites.values()):
        return edges, couplings, bias
    if not all(isinstance(site, pgm.Binary) for site in model.sites.values()):
        raise ValueError("sites must be all spin or all binary")
    fields = bias / 2
    np.add.at(fields, edges[:, 0], couplings / 4)
    np.add.at(fields, edges[:, 1], couplings / 4)
    return edges, couplings / 4, fields


def split_sites(model: pgm.EnergyModel, up: Any) -> dict[str, Any]:
    """Return raw values by site of ``(num_chains, num_units)`` truths (the upper state)."""
    values, start = {}, 0
    for name, site in model.sites.items():
        part = up[:, start : start + site.size].astype(np.int8)
        if isinstance(site, pgm.Spin):
            part = 2 * part - 1
        values[name] = part.reshape(-1, *site.shape)
        start += site.size
    return values


def colour_rows(model: pgm.EnergyModel) -> list[np.ndarray]:
    """Return the units of each block of our own schedule, so that peers have the same one."""
    offsets, start = {}, 0
    for name, site in model.sites.items():
        offsets[name], start = start, start + site.size
    rows = []
    for step in pgm.blocks(model).steps:
        rows += [offsets[step.site] + row for row in row_units(step, model.sites[step.site].size)]
    return rows


# ---- THRML --------------------------------------------------------------------------------------


class Thrml(Scan):
    """THRML's block Gibbs on the Ising form, its ``sample_blocks`` mapped over chains."""

    def __init__(self, model: pgm.EnergyModel, num_chains: int, seed: int) -> None:
        thrml, eqx = require("thrml"), require("equinox")
        ising = require("thrml.models.ising")
        edges, couplings, fields = ising_form(model)
        nodes = [thrml.SpinNode() for _ in range(len(fields))]
        ebm = ising.IsingEBM(
            nodes,
            [(nodes[i], nodes[j]) for i, j in edges.tolist()],
            jnp.asarray(fields, jnp.float32),
            jnp.asarray(couplings, jnp.float32),
            jnp.asarray(1.0),
        )
        rows = colour_rows(model)
        blocks = [thrml.Block([nodes[i] for i in row]) for row in rows]
        program = ising.IsingSamplingProgram(ebm, blocks, clamped_blocks=[])
        arrays, rest = eqx.partition(program, eqx.is_array)
        memory = [sampler.init() for sampler in program.samplers]

        def step(key: jax.Array, state: Any, arrays: Any) -> Any:
            program = eqx.combine(arrays, rest)

            def chain(key: jax.Array, own: Any) -> Any:
                return thrml.sample_blocks(key, list(own), [], program, list(memory))[0]

            return jax.vmap(chain)(jax.random.split(key, num_chains), state)

        first = starts(model, num_chains, seed)
        up = np.concatenate(
            [np.asarray(first[name]).reshape(num_chains, -1) > 0 for name in model.sites], axis=1
        )

        def values(state: Any) -> dict[str, Any]:
            found = np.empty(up.shape, dtype=bool)
            for row, part in zip(rows, state, strict=True):
                found[:, row] = np.asarray(part)
            return split_sites(model, found)

        super().__init__(step, [jnp.asarray(up[:, row]) for row in rows], arrays, values)


# ---- D-Wave -------------------------------------------------------------------------------------


class DWave:
    """``SimulatedAnnealingSampler`` at one temperature with Gibbs acceptance: C++, one thread.

    Its own clock is read: the Python lists that it is set up from are not counted.
    """

    def __init__(self, model: pgm.EnergyModel, num_chains: int, seed: int) -> None:
        dimod, dwave = require("dimod"), require("dwave.samplers")
        edges, couplings, fields = ising_form(model)
        linear = dict(enumerate((-fields).tolist()))
        quadratic = {(i, j): -k for (i, j), k in zip(edges.tolist(), couplings, strict=True)}
        self._quadratic_model = dimod.BinaryQuadraticModel.from_ising(linear, quadratic)
        self._sampler = dwave.SimulatedAnnealingSampler()
        self._model, self._num_chains = model, num_chains
        rng = np.random.default_rng(seed)
        self._state = rng.integers(0, 2, (num_chains, len(fields)), dtype=np.int8) * 2 - 1

    def prepare(self, num_sweeps: int) -> Callable[[int], float]:
        def call(seed: int) -> float:
            found = self._sampler.sample(
                self._quadratic_model,
                num_reads=self._num_chains,
                beta_schedule_type="custom",
                beta_schedule=[1.0],
                num_sweeps_per_beta=num_sweeps,
                initial_states=(self._state, list(range(self._state.shape[1]))),
                proposal_acceptance_criteria="Gibbs",
                seed=seed,
            )
            order = np.argsort(np.asarray(found.variables))
            self._state = found.record.sample[:, order]
            return found.info["timing"]["sampling_ns"] * 1e-9

        return call

    def values(self) -> dict[str, np.ndarray]:
        return split_sites(self._model, self._state > 0)


# ---- scikit-learn -------------------------------------------------------------------------------


class BernoulliRBM:
    """scikit-learn's ``BernoulliRBM.gibbs``: hidden given visible, then visible given hidden."""

    def __init__(self, model: pgm.RBM, num_chains: int, seed: int) -> None:
        learned = require("sklearn.neural_network").BernoulliRBM(
            n_components=model.weights.shape[1], random_state=np.random.RandomState(seed)
        )
        learned.components_ = np.asarray(model.weights).T.copy()
        learned.intercept_visible_ = np.asarray(model.visible_bias)
        learned.intercept_hidden_ = np.asarray(model.hidden_bias)
        learned.random_state_ = np.random.RandomState(seed)
        self._rbm, self._model = learned, model
        self._state = np.asarray(starts(model, num_chains, seed)["v"], np.float32)

    def prepare(self, num_sweeps: int) -> Callable[[int], None]:
        def call(seed: int) -> None:
            self._rbm.random_state_ = np.random.RandomState(seed)
            for _ in range(num_sweeps):
                self._state = self._rbm.gibbs(self._state)

        return call

    def values(self) -> dict[str, np.ndarray]:
        """Hidden units are not given back: they are drawn here, from the exact conditional."""
        visible = np.asarray(self._state, np.float64)
        eta = visible @ np.asarray(self._model.weights) + np.asarray(self._model.hidden_bias)
        uniform = np.random.default_rng(0).random(eta.shape)
        return {
            "v": visible.astype(np.int8),
            "h": (uniform < 1.0 / (1.0 + np.exp(-eta))).astype(np.int8),
        }
