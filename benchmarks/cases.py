"""The rows of the benchmark: what is run, against whom, and what it must reach."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pgm_energy as pgm
from benchmarks import floors, models, ours, peers, single
from benchmarks.annealing import AnnealingRace
from benchmarks.contrastive import EpochRace
from benchmarks.em import em_cases
from benchmarks.races import Other, SweepRace
from benchmarks.results import Line, Target
from benchmarks.timing import Settings

Case = Callable[[Settings], list[Line]]


def small_rbm(seed: int) -> pgm.EnergyModel:
    return models.rbm(seed, 4, 3)


def small_dense(seed: int) -> pgm.EnergyModel:
    return models.dense(seed, 7)


def small_graph(seed: int) -> pgm.EnergyModel:
    return models.irregular(seed, 9, (3, 5))


def rbm_products(num_visible: int, num_hidden: int, num_chains: int) -> SweepRace:
    """One sweep of an RBM against its two matrix products, and scikit-learn's sweep."""
    return SweepRace(
        f"rbm-{num_visible}x{num_hidden}-{num_chains}",
        f"RBM {num_visible} x {num_hidden}, {num_chains} chains",
        lambda seed: models.rbm(seed, num_visible, num_hidden),
        small_rbm,
        num_chains,
        ours.PureSweep,
        (
            Other("its two products", floors.RBMProducts, "floor", Target(1.5, "<=")),
            Other(
                "its two products, chains last",
                floors.RBMProductsChainsLast,
                "floor",
                Target(1.5, "<="),
            ),
            Other("scikit-learn", peers.BernoulliRBM),
        ),
        unit="us/sweep",
    )


def rbm_thrml(num_visible: int, num_hidden: int, num_chains: int) -> SweepRace:
    """Unit updates of an RBM against THRML's."""
    return SweepRace(
        f"rbm-{num_visible}x{num_hidden}-{num_chains}",
        f"RBM {num_visible} x {num_hidden}, {num_chains} chains",
        lambda seed: models.rbm(seed, num_visible, num_hidden),
        small_rbm,
        num_chains,
        ours.PureSweep,
        (Other("THRML", peers.Thrml, target=Target(15, ">=")),),
    )


def rbm_numpyro(num_visible: int, num_hidden: int, factor: float) -> SweepRace:
    """One chain through the NumPyro kernel against ``DiscreteGibbs``."""
    return SweepRace(
        f"rbm-{num_visible}x{num_hidden}-1",
        f"RBM {num_visible} x {num_hidden}, one chain, BlockGibbs",
        lambda seed: models.rbm(seed, num_visible, num_hidden),
        small_rbm,
        1,
        ours.BlockGibbsSweep,
        (
            Other("DiscreteGibbs", peers.DiscreteGibbs, target=Target(factor, ">=")),
            Other("its two products", floors.RBMProducts, "floor"),
        ),
        unit="us/sweep",
    )


def dense_numpyro(num_units: int, num_chains: int) -> SweepRace:
    """A dense Boltzmann machine through the NumPyro kernel against ``DiscreteGibbs``."""
    return SweepRace(
        f"dense-{num_units}-{num_chains}",
        f"dense Boltzmann machine, {num_units} units, {num_chains} chains, BlockGibbs",
        lambda seed: models.dense(seed, num_units),
        small_dense,
        num_chains,
        ours.BlockGibbsSweep,
        (
            Other("DiscreteGibbs", peers.DiscreteGibbs, target=Target(100, ">=")),
            Other("dwave-samplers", peers.DWave),
        ),
        unit="us/sweep",
    )


def dense_product(num_units: int, num_chains: int) -> SweepRace:
    """A dense Boltzmann machine against one product of its couplings with all chains."""
    return SweepRace(
        f"dense-{num_units}-{num_chains}",
        f"dense Boltzmann machine, {num_units:,} units, {num_chains} chains",
        lambda seed: models.dense(seed, num_units),
        small_dense,
        num_chains,
        ours.PureSweep,
        (
            Other(
                f"{num_units} x {num_units} by {num_units} x {num_chains}",
                floors.DenseProduct,
                "floor",
                Target(3, "<="),
            ),
            Other("dwave-samplers", peers.DWave),
        ),
        unit="us/sweep",
    )


def torus(side: int, num_chains: int) -> SweepRace:
    """An Ising torus against THRML and D-Wave's annealer held at one temperature."""
    chains = "one chain" if num_chains == 1 else f"{num_chains} chains"
    return SweepRace(
        f"ising-{side}-{num_chains}",
        f"Ising torus {side} x {side}, {chains}",
        lambda seed: models.torus(side),
        models.small_torus,
        num_chains,
        ours.PureSweep,
        (
            Other("THRML", peers.Thrml, target=Target(3, ">=")),
            Other("dwave-samplers", peers.DWave),
        ),
        rate=Target(0.2, ">=", "updates/ns"),
    )


def irregular(num_units: int, num_chains: int) -> SweepRace:
    """A sparse graph of uneven degrees against THRML and D-Wave."""
    return SweepRace(
        f"sparse-{num_units}-{num_chains}",
        f"sparse irregular graph, {num_units:,} units of degree 6 to 15, {num_chains} chains",
        lambda seed: models.irregular(seed, num_units),
        small_graph,
        num_chains,
        ours.PureSweep,
        (
            Other("THRML", peers.Thrml, target=Target(3, ">=")),
            Other("dwave-samplers", peers.DWave),
        ),
    )


def clusters(side: int, num_chains: int) -> SweepRace:
    """Swendsen-Wang at the critical point; no peer at hand has it."""
    return SweepRace(
        f"swendsen-wang-{side}-{num_chains}",
        f"Swendsen-Wang, critical Ising torus {side} x {side}, {num_chains} chains",
        functools.partial(_critical, side),
        models.small_torus,
        num_chains,
        ours.SwendsenWangSweep,
    )


def _critical(side: int, seed: int) -> pgm.EnergyModel:
    del seed
    return models.torus(side, models.CRITICAL)


def all_cases() -> dict[str, Case]:
    """Every row by name, in the order of the table."""
    cases: list[SweepRace | Case] = [
        rbm_products(784, 500, 64),
        rbm_products(784, 500, 512),
        rbm_thrml(784, 256, 64),
        rbm_numpyro(64, 32, 100),
        rbm_numpyro(256, 128, 250),
        dense_numpyro(256, 4),
        dense_product(1000, 64),
        torus(128, 8),
        torus(1024, 1),
        irregular(4264, 64),
        single.ScheduleTime(Target(5, "<=", "s")),
        single.FirstDraw(Target(3, "<=", "s")),
        single.LoopOverhead(Target(1.5, "<=")),
        single.Decisions(),
        clusters(128, 8),
        single.TwinNUTS(),
        EpochRace(),
        *em_cases(),
        AnnealingRace(),
    ]
    return {case.name: case for case in cases}  # type: ignore[union-attr]
