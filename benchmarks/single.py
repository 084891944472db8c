"""Figures that are no race of sweeps: set-up times, overhead of NumPyro's loop, decisions, NUTS."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pgm_energy as pgm
from benchmarks import gate, models
from benchmarks.ours import starts
from benchmarks.peers import Missing, require
from benchmarks.results import Line, Target, judged
from benchmarks.timing import Scan, Settings, Spread, race, seconds_without_compiling

# ---- set-up times -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ScheduleTime:
    """Seconds of ``pgm.blocks`` on a graph that was never seen, its compilation included."""

    target: Target
    name: str = "schedule"
    num_units: int = 4264

    def __call__(self, settings: Settings) -> list[Line]:
        seconds = []
        for number in range(2 if settings.quick else 3):
            model = models.irregular(settings.seed + 100 + number, self.num_units)
            start = time.perf_counter()
            schedule = pgm.blocks(model)
            seconds.append(time.perf_counter() - start)
        checked = f"verified by blocks(): {schedule.num_blocks} colours"
        work = f"schedule of a sparse irregular graph, {self.num_units:,} units of degree 6 to 15"
        spread = Spread.of(seconds)
        return [judged(Line(self.name, work, "s", spread, target=self.target, checked=checked))]


FIRST_DRAW = """
import json, sys, time
import jax, jax.numpy as jnp, numpy as np
import pgm_energy as pgm
num_visible, num_hidden, num_chains, seed = map(int, sys.argv[1:])
jax.block_until_ready(jnp.zeros(1) + 1)  # the backend starts
weights = 0.05 * np.random.default_rng(seed).standard_normal((num_visible, num_hidden))
start = time.perf_counter()
rbm = pgm.RBM(weights=weights)
draws = pgm.sample(jax.random.key(seed), rbm, num_chains, num_chains=num_chains, num_warmup=1)
jax.block_until_ready(draws)
seconds = time.perf_counter() - start
means = [float(np.mean(np.asarray(draws[name]))) for name in ("v", "h")]
print(json.dumps({"seconds": seconds, "means": means}))
"""


@dataclasses.dataclass(frozen=True)
class FirstDraw:
    """Seconds from parameters to the first draw, in a fresh process without any cache.

    Importing the package and starting the backend are not counted; probing the structure,
    verifying the schedule and compiling are.
    """

    target: Target
    name: str = "first-draw"
    shape: tuple[int, int] = (784, 500)
    num_chains: int = 64

    def __call__(self, settings: Settings) -> list[Line]:
        hidden = {"JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"}
        environment = {k: v for k, v in os.environ.items() if k not in hidden}
        root = str(Path(__file__).resolve().parents[1])
        path = [root, *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(path)
        seconds = []
        for number in range(1 if settings.quick else 5):
            arguments = [*self.shape, self.num_chains, settings.seed + number]
            done = subprocess.run(
                [sys.executable, "-c", FIRST_DRAW, *map(str, arguments)],
                capture_output=True,
                text=True,
                env=environment,
                check=False,
            )
            if done.returncode:
                raise RuntimeError(f"the first draw failed:\n{done.stderr}")
            seconds.append(json.loads(done.stdout.splitlines()[-1])["seconds"])
        work = f"first draw of an RBM {self.shape[0]} x {self.shape[1]}, compilation included"
        return [judged(Line(self.name, work, "s", Spread.of(seconds), target=self.target))]


# ---- NumPyro's loop -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class LoopOverhead:
    """``MCMC(BlockGibbs)`` against a bare scan of the same kernel that stores the same draws.

    ``MCMC.run`` compiles anew on every call. JAX reports the seconds of tracing, lowering and
    compiling of that very call, and these are taken off; what Python does around it stays.
    """

    target: Target
    name: str = "mcmc-loop"
    shape: tuple[int, int] = (784, 256)
    num_chains: int = 64
    num_draws: int = 1000

    def __call__(self, settings: Settings) -> list[Line]:
        model = models.rbm(settings.seed, *self.shape)
        small = models.rbm(settings.seed, 4, 3)
        try:
            checked = self._check(small, settings)
        except gate.WrongKernel as error:
            return [
                Line(self.name, self.work, "us/draw", None, verdict="wrong", problem=str(error))
            ]
        kernel, loops, scans, ratios = pgm.BlockGibbs(model), [], [], []
        scan = self._scan(kernel, model, settings)
        for number in range(settings.rounds):
            key = jax.random.key(settings.seed + number)
            loop = seconds_without_compiling(functools.partial(self._run, kernel, key))
            raw = seconds_without_compiling(functools.partial(scan, key))
            loops.append(loop / self.num_draws)
            scans.append(raw / self.num_draws)
            ratios.append(loop / raw)
        return [
            judged(
                Line(
                    self.name,
                    self.work,
                    "us/draw",
                    Spread.of(loops).scaled(1e6),
                    "scan of the same kernel",
                    Spread.of(scans).scaled(1e6),
                    Spread.of(ratios),
                    "times as long as",
                    self.target,
                    checked=checked,
                )
            )
        ]

    @property
    def work(self) -> str:
        return (
            f"MCMC(BlockGibbs), {self.num_draws:,} draws, {self.num_chains} chains, RBM "
            f"{self.shape[0]} x {self.shape[1]}"
        )

    def _check(self, small: pgm.EnergyModel, settings: Settings) -> str:
        """Hold the last of 48 draws of many chains against the exact law."""
        mcmc = self._mcmc(pgm.BlockGibbs(small), 48, 20_000 // (4 if settings.quick else 1))
        mcmc.run(settings.key(1))
        samples = mcmc.get_samples(group_by_chain=True)
        last = {name: np.asarray(value)[:, -1] for name, value in samples.items()}
        p_value, draws = gate.check_joint(small, last)
        return f"exact law: p = {p_value:.2g}, {draws:,} draws"

    def _mcmc(self, kernel: Any, num_draws: int, num_chains: int) -> Any:
        from numpyro.infer import MCMC

        return MCMC(
            kernel,
            num_warmup=0,
            num_samples=num_draws,
            num_chains=num_chains,
            chain_method="vectorized",
            progress_bar=False,
        )

    def _run(self, kernel: Any, key: jax.Array) -> Any:
        mcmc = self._mcmc(kernel, self.num_draws, self.num_chains)
        mcmc.run(key)
        return mcmc.get_samples(group_by_chain=True)

    def _scan(self, kernel: Any, model: pgm.EnergyModel, settings: Settings) -> Any:
        start = starts(model, self.num_chains, settings.seed)

        @jax.jit
        def run(key: jax.Array) -> Any:
            keys = jax.random.split(key, self.num_chains)
            state = kernel.init(
                keys, num_warmup=0, init_params=start, model_args=(), model_kwargs={}
            )

            def draw(state: Any, _: None) -> Any:
                state = kernel.sample(state, (), {})
                return state, state.z

            return jax.lax.scan(draw, state, length=self.num_draws)[1]

        jax.block_until_ready(run(jax.random.key(0)))
        return run


# ---- decisions ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Decisions:
    """Binary decisions given logits: ours against ``jax.random.bernoulli`` of the sigmoid."""

    name: str = "decisions"
    shape: tuple[int, int] = (512, 784)

    def __call__(self, settings: Settings) -> list[Line]:
        site = pgm.Binary(())

        def ours(key: jax.Array, eta: jax.Array) -> jax.Array:
            return site.sample(key, eta)

        def theirs(key: jax.Array, eta: jax.Array) -> jax.Array:
            return jax.random.bernoulli(key, jax.nn.sigmoid(eta))

        work = f"{self.shape[0] * self.shape[1]:,} binary decisions given their logits"
        try:
            checked = gate.check_decisions(jax.jit(ours), settings.key(2))
            gate.check_decisions(jax.jit(theirs), settings.key(3))
        except gate.WrongKernel as error:
            return [Line(self.name, work, "ns", None, verdict="wrong", problem=str(error))]
        eta = jax.random.normal(settings.key(4), self.shape)
        times = race({"ours": self._scan(ours, eta), "theirs": self._scan(theirs, eta)}, settings)
        scale = 1e9 / eta.size
        return [
            Line(
                self.name,
                work,
                "ns/decision",
                times["ours"].spread.scaled(scale),
                "jax.random.bernoulli",
                times["theirs"].spread.scaled(scale),
                times["theirs"].ratio(times["ours"]),
                "faster than",
                checked=checked,
            )
        ]

    def _scan(self, draw: Any, eta: jax.Array) -> Scan:
        def step(key: jax.Array, state: jax.Array, eta: jax.Array) -> jax.Array:
            # every decision depends on the last ones, so that none can be left out
            return draw(key, eta + 0.01 * state.astype(eta.dtype)).astype(jnp.int8)

        return Scan(step, jnp.zeros(self.shape, jnp.int8), eta)


# ---- NUTS on the twin ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TwinNUTS:
    """NUTS on the Gaussian twin of an RBM: NumPyro's against BlackJAX's, per gradient step.

    The same density, step size and unit mass matrix. Neither is ours: this row tells which loop to
    take for the twin, not which sampler is better.
    """

    name: str = "twin-nuts"
    shape: tuple[int, int] = (256, 128)
    step_size: float = 0.2

    def __call__(self, settings: Settings) -> list[Line]:
        work = f"NUTS on the Gaussian twin of an RBM {self.shape[0]} x {self.shape[1]}, one chain"
        line = Line(self.name, work, "us/gradient", None, "BlackJAX", ratio_of="faster than")
        model = models.rbm(settings.seed, *self.shape)
        try:
            checked = self._check(self._numpyro, settings)
        except gate.WrongKernel as error:
            return [dataclasses.replace(line, verdict="wrong", problem=str(error))]
        runners: dict[str, Scan] = {"ours": self._numpyro(pgm.relax(model), 1, settings)}
        try:
            self._check(self._blackjax, settings)
            runners["theirs"] = self._blackjax(pgm.relax(model), 1, settings)
        except Missing as error:
            gone = str(error) == "not installed"
            line = dataclasses.replace(
                line, verdict="not installed" if gone else "failed", problem=str(error)
            )
        except gate.WrongKernel as error:
            line = dataclasses.replace(line, verdict="wrong", problem=str(error))
        times = race(runners, settings)
        steps = {name: self._steps_per_draw(runner, settings) for name, runner in runners.items()}
        figures = {name: times[name].spread.scaled(1e6 / steps[name]) for name in runners}
        line = dataclasses.replace(line, ours=figures["ours"], checked=checked)
        if "theirs" not in runners:
            return [line]
        ratio = times["theirs"].ratio(times["ours"]).scaled(steps["ours"] / steps["theirs"])
        return [dataclasses.replace(line, theirs=figures["theirs"], ratio=ratio)]

    def _check(self, make: Any, settings: Settings) -> str:
        """Hold decoded draws of many chains on a small twin against the exact law."""
        small = models.rbm(settings.seed, 4, 3)
        twin = pgm.relax(small)
        runner = make(twin, 10_000 // (4 if settings.quick else 1), settings)
        runner.prepare(16)(settings.seed + 1)
        p_value, draws = gate.check_joint(small, twin.decode(settings.key(7), runner.values()))
        return f"exact law after decode: p = {p_value:.2g}, {draws:,} draws"

    @staticmethod
    def _steps_per_draw(runner: Scan, settings: Settings) -> float:
        """Mean gradient steps over 256 draws, from where the race ended."""
        runner.state = (runner.state[0], jnp.zeros_like(runner.state[1]))
        run = runner.prepare(64)  # which runs once
        for seed in range(3):
            run(settings.seed + seed)
        return float(runner.state[1].mean()) / 256.0

    @staticmethod
    def _start(twin: Any, num_chains: int, settings: Settings) -> dict[str, jax.Array]:
        return {"y": jax.random.normal(settings.key(5), (num_chains, *twin.sites["y"].shape))}

    def _numpyro(self, twin: Any, num_chains: int, settings: Settings) -> Scan:
        from numpyro.infer import NUTS

        kernel = NUTS(
            twin, step_size=self.step_size, adapt_step_size=False, adapt_mass_matrix=False
        )
        state = kernel.init(
            jax.random.split(settings.key(6), num_chains),
            num_warmup=0,
            init_params=self._start(twin, num_chains, settings),
            model_args=(),
            model_kwargs={},
        )

        def step(key: jax.Array, carry: Any, arguments: Any) -> Any:
            del key, arguments  # the kernel's state has its own
            state, total = carry
            state = kernel.sample(state, (), {})
            return state, total + state.num_steps

        total = jnp.zeros(num_chains, jnp.int32)
        return Scan(step, (state, total), values=lambda carry: carry[0].z)

    def _blackjax(self, twin: Any, num_chains: int, settings: Settings) -> Scan:
        blackjax = require("blackjax")
        start = self._start(twin, num_chains, settings)
        size = int(np.prod(twin.sites["y"].shape))
        kernel = blackjax.nuts(
            twin.log_density, step_size=self.step_size, inverse_mass_matrix=jnp.ones(size)
        )

        def step(key: jax.Array, carry: Any, arguments: Any) -> Any:
            del arguments
            state, total = carry
            state, info = jax.vmap(kernel.step)(jax.random.split(key, num_chains), state)
            return state, total + info.num_integration_steps

        total = jnp.zeros(num_chains, jnp.int32)
        state = jax.vmap(kernel.init)(start)
        return Scan(step, (state, total), values=lambda carry: carry[0].position)
