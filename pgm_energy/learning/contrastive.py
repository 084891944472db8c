"""Contrastive learning: the data pull the energy down, the chains push it up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pgm_energy._checks import require_count
from pgm_energy._data import encode_rows
from pgm_energy.energy import EnergyModel
from pgm_energy.kernels.gibbs import GibbsKernel, random_configuration
from pgm_energy.learning.loop import (
    LearningResult,
    Metrics,
    Rows,
    check_rows,
    run_epochs,
)
from pgm_energy.structure import Blocks, blocks
from pgm_energy.transforms import marginalize

__all__ = ["CD", "PCD", "ContrastiveState", "contrast"]

Values = dict[str, jax.Array]
#: rows that the metrics of an epoch look at
_NUM_MEASURED = 500


class ContrastiveState(NamedTuple):
    """State of contrastive learning.

    Attributes
    ----------
    model
        The model with its present parameters.
    optimizer
        State of the optax optimiser.
    chains
        Raw values of the persistent chains by site, ``(num_chains, ...)``.
    latents
        Clamped latent values per data row, only where they cannot be summed out.
    """

    model: EnergyModel
    optimizer: Any
    chains: Values
    latents: Values


def sum_out(model: EnergyModel) -> EnergyModel:
    """Return the free energy: the model with all latent sites summed out, one after another.

    Raises
    ------
    ValueError
        If latent units interact.
    """
    for name in model.latent_sites:
        model = marginalize(model, name)
    return model


def contrast(
    model: EnergyModel, data: Mapping[str, Any], weights: jax.Array, chains: Mapping[str, Any]
) -> jax.Array:
    """Return mean_data F - mean_chains F, nats: its gradient is that of the mean -log p(data).

    Parameters
    ----------
    model
        The energy model whose sites are those of ``data``: a free energy, or a model with its
        latent sites drawn. Differentiate with respect to it.
    data, chains
        Encoded values by site, rows and chains first.
    weights
        Row weights.

    Notes
    -----
    The gradient is exact where the chains are at equilibrium; the value is no likelihood.

    References
    ----------
    L. Younes (1989), Parametric inference for imperfectly observed Gibbsian fields.
    T. Tieleman (2008), Training restricted Boltzmann machines using approximations to the
    likelihood gradient.
    """

    def energies(values: Mapping[str, Any]) -> jax.Array:
        return jax.vmap(lambda row: model.energy(**row))(dict(values))

    share = weights / jnp.maximum(jnp.sum(weights), 1e-12)
    return jnp.sum(share * energies(data)) - jnp.mean(energies(chains))


@dataclasses.dataclass(frozen=True)
class _Contrastive:
    """One contrast, one driver; where the negative phase starts is all that differs."""

    optimizer: optax.GradientTransformation
    num_chains: int = 128
    num_sweeps: int = 1
    kernel: Callable[..., Any] | None = None

    persistent = True

    def __post_init__(self) -> None:
        if not hasattr(self.optimizer, "update"):
            raise TypeError(
                "optimizer must be an optax optimizer, for example optax.adam(1e-3), got "
                f"{self.optimizer!r}"
            )
        require_count("num_chains", self.num_chains)
        require_count("num_sweeps", self.num_sweeps)

    # ---- the pair of pure functions --------------------------------------------------------

    def init(self, rng_key: jax.Array, model: EnergyModel, rows: Rows) -> ContrastiveState:
        """Return the first state: chains at random, the optimiser fresh."""
        chain_key, latent_key = jax.random.split(rng_key)
        chains: Values = {}
        if self.persistent:
            keys = jax.random.split(chain_key, self.num_chains)
            chains = jax.vmap(lambda key: random_configuration(key, model))(keys)
        latents: Values = {}
        if not _sums_out(model) and model.latent_sites:
            keys = jax.random.split(latent_key, rows.weights.shape[0])
            start = jax.vmap(lambda key: random_configuration(key, model))(keys)
            latents = {name: start[name] for name in model.latent_sites}
        return ContrastiveState(model, self.optimizer.init(model), chains, latents)

    def update(
        self, rng_key: jax.Array, state: ContrastiveState, batch: Rows, index: jax.Array
    ) -> tuple[ContrastiveState, dict[str, jax.Array]]:
        """Return the state after one step on a batch of rows.

        Parameters
        ----------
        rng_key
            A JAX random key.
        state
            The state before.
        batch
            Rows and weights.
        index
            Which rows of the data they are (for latents that are kept per row).
        """
        model = state.model
        schedule = _schedule(model)
        positive_key, negative_key = jax.random.split(rng_key)
        exact = _sums_out(model)
        data = encode_rows(model, batch.values)
        latents = state.latents
        drawn: Values = {}
        if model.latent_sites and (not exact or not self.persistent):
            start = {name: values[index] for name, values in latents.items()}
            num = self.num_sweeps if latents else 1
            drawn = _draw_latents(positive_key, model, schedule, batch.values, start, num)
        if not exact:
            data = {**data, **encode_rows(model, drawn)}
            latents = {k: v.at[index].set(drawn[k], mode="drop") for k, v in latents.items()}

        start = state.chains if self.persistent else {**_as_raw(model, batch.values), **drawn}
        chains = self._negative(negative_key, start, model, schedule)
        seen = {k: v for k, v in chains.items() if not exact or k in model.data_sites}
        negative = encode_rows(model, seen)

        def loss(model: EnergyModel) -> jax.Array:
            target = sum_out(model) if exact else model
            return contrast(target, data, batch.weights, negative)

        gradient = jax.grad(loss)(model)
        updates, optimizer = self.optimizer.update(gradient, state.optimizer, model)
        new = optax.apply_updates(model, updates).project()
        info = {"gradient_norm": optax.global_norm(gradient)}
        kept = chains if self.persistent else state.chains
        return ContrastiveState(new, optimizer, kept, latents), info

    def _negative(
        self, rng_key: jax.Array, start: Values, model: EnergyModel, schedule: Blocks
    ) -> Values:
        kernel = self.kernel or GibbsKernel(schedule)
        count = len(next(iter(start.values())))

        def sweep(values: Values, key: jax.Array) -> tuple[Values, None]:
            keys = jax.random.split(key, count)
            return jax.vmap(lambda k, v: kernel(k, v, model)[0])(keys, values), None

        return jax.lax.scan(sweep, start, jax.random.split(rng_key, self.num_sweeps))[0]

    # ---- the host loop ---------------------------------------------------------------------

    def run(
        self,
        rng_key: jax.Array,
        model: EnergyModel,
        data: Any,
        num_epochs: int = 20,
        batch_size: int = 128,
        validation: Any = None,
        row_weights: Any = None,
        intensities: Literal["mean", "sample"] | None = None,
        callbacks: Sequence[Callable[[int, Any, Mapping[str, float]], Any]] = (),
        progress_bar: bool = True,
    ) -> LearningResult:
        """Return the model learned from data.

        Parameters
        ----------
        rng_key
            A JAX random key.
        model
            Where to start, for example ``RBM.init(...)``.
        data
            Rows of the data site, or a dict by site.
        num_epochs
            Passes over the data.
        batch_size
            Rows per step; at most all of them.
        validation
            Rows that are only looked at.
        row_weights
            ``(rows,)``, not negative: how often each row counts.
        intensities
            For binary data between 0 and 1: ``"mean"`` uses them as probabilities, ``"sample"``
            draws bits every epoch.
        callbacks
            Called with ``(epoch, state, figures)`` after every epoch; one that returns True
            ends the run.
        progress_bar
            Show one.

        Returns
        -------
        LearningResult
            ``model``, ``averaged``, ``state``, ``metrics`` and ``message``.

        Raises
        ------
        ValueError
            On data, weights or counts that are not valid, or a model that block Gibbs cannot
            sample.

        Notes
        -----
        Metrics per epoch: ``pseudo_log_likelihood`` (nats per row), ``free_energy_gap``
        (validation minus training, nats), ``reconstruction_error`` (mean square per unit),
        ``gradient_norm``, ``chain_free_energy`` (nats). They look at up to 500 rows.

        Examples
        --------
        >>> import jax, numpy as np, optax, pgm_energy as pgm
        >>> data = np.array([[0, 1, 1], [1, 0, 0]] * 8)
        >>> start = pgm.RBM.init(jax.random.key(0), num_visible=3, num_hidden=2, data=data)
        >>> learner = pgm.PCD(optax.adam(0.01), num_chains=8)
        >>> result = learner.run(jax.random.key(1), start, data, num_epochs=2, progress_bar=False)
        >>> len(result.metrics["gradient_norm"])
        2
        """
        if not isinstance(model, EnergyModel):
            raise TypeError(f"run takes an energy model to start from, got {type(model).__name__}")
        rows = check_rows(model, data, row_weights, intensities)
        held_out = None
        if validation is not None:
            held_out = check_rows(model, validation, None, intensities, name="validation")
        model = jax.tree.map(jnp.asarray, model.project())
        blocks(model)  # verify eagerly, and say at once if it is slow
        return run_epochs(
            self,
            rng_key,
            model,
            rows,
            num_epochs=num_epochs,
            batch_size=batch_size,
            resample=intensities == "sample",
            measure=_measurements(model, rows, held_out),
            callbacks=callbacks,
            progress_bar=progress_bar,
            explain=_explain,
        )


@dataclasses.dataclass(frozen=True)
class PCD(_Contrastive):
    """Persistent contrastive divergence (stochastic maximum likelihood).

    The negative phase continues its own chains from step to step.

    Parameters
    ----------
    optimizer
        Any optax optimizer; its schedules count updates.
    num_chains
        Persistent chains.
    num_sweeps
        Sweeps of every chain per update.
    kernel
        A pure kernel ``(rng_key, values, model) -> (values, info)``; block Gibbs unless given.

    Notes
    -----
    The gradient is exact at equilibrium of the chains: use steps that fall to zero, or more
    sweeps. Latent sites whose units do not interact are summed out; others are drawn by
    clamped chains, one per data row.

    References
    ----------
    L. Younes (1989); T. Tieleman (2008), Training restricted Boltzmann machines using
    approximations to the likelihood gradient.

    Examples
    --------
    >>> import optax, pgm_energy as pgm
    >>> pgm.PCD(optax.sgd(0.1), num_chains=64, num_sweeps=5).num_sweeps
    5
    """

    persistent = True


@dataclasses.dataclass(frozen=True)
class CD(_Contrastive):
    """Contrastive divergence: the negative phase starts at the data of every batch.

    Parameters
    ----------
    optimizer
        Any optax optimizer.
    num_sweeps
        k, the sweeps away from the data.
    kernel
        A pure kernel; block Gibbs unless given.

    Notes
    -----
    Biased towards the data, cheap and steady: good features, poor densities. ``num_chains`` has
    no meaning here; there is one chain per row of the batch.

    References
    ----------
    G. Hinton (2002), Training products of experts by minimizing contrastive divergence.

    Examples
    --------
    >>> import optax, pgm_energy as pgm
    >>> pgm.CD(optax.sgd(0.1), num_sweeps=25).num_sweeps
    25
    """

    persistent = False


# ---- pieces ------------------------------------------------------------------------------------


def _schedule(model: EnergyModel) -> Blocks:
    import warnings

    with warnings.catch_warnings():  # said once, by run
        warnings.simplefilter("ignore", UserWarning)
        return blocks(model)


def _sums_out(model: EnergyModel) -> bool:
    """Whether all latent sites can be summed out exactly."""
    try:
        sum_out(model)
    except ValueError:
        return False
    return True


def _as_raw(model: EnergyModel, values: Mapping[str, Any]) -> Values:
    """Raw values of rows; grey levels are thresholded where a chain must start at bits."""
    raw = {}
    for name, value in values.items():
        site = model.sites[name]
        grey = site.is_discrete and jnp.issubdtype(value.dtype, jnp.floating)
        raw[name] = site.cast(value >= 0.5) if grey else site.cast(value)
    return raw


def _draw_latents(
    rng_key: jax.Array,
    model: EnergyModel,
    schedule: Blocks,
    rows: Mapping[str, Any],
    start: Values,
    num: int,
) -> Values:
    """Latent values given rows: clamped chains of ``num`` sweeps."""
    kernel = GibbsKernel(schedule.restrict(model.latent_sites))
    raw = _as_raw(model, rows)
    count = len(next(iter(raw.values())))

    def one(key: jax.Array, row: Values, latents: Values) -> Values:
        first, key = jax.random.split(key)
        values = {**random_configuration(first, model), **row, **latents}

        def sweep(values: Values, k: jax.Array) -> tuple[Values, None]:
            return kernel(k, values, model)[0], None

        values = jax.lax.scan(sweep, values, jax.random.split(key, num))[0]
        return {name: values[name] for name in model.latent_sites}

    return jax.vmap(one)(jax.random.split(rng_key, count), raw, start)


def _measurements(
    model: EnergyModel, rows: Rows, held_out: Rows | None
) -> Callable[[jax.Array, ContrastiveState], dict[str, float]]:
    """Return the function that measures an epoch, compiled once."""
    rng = np.random.default_rng(0)
    count = rows.weights.shape[0]
    chosen = np.sort(rng.permutation(count)[:_NUM_MEASURED])
    train = {k: v[chosen] for k, v in rows.values.items()}
    other = None
    if held_out is not None:
        other = {k: v[:_NUM_MEASURED] for k, v in held_out.values.items()}
    exact = _sums_out(model)
    schedule = _schedule(model)

    @jax.jit
    def figures(
        rng_key: jax.Array, model: EnergyModel, chains: Values, train: Values, other: Any
    ) -> dict[str, jax.Array]:
        out = {}
        if exact:
            free = sum_out(model)

            def mean_free_energy(values: Mapping[str, Any]) -> jax.Array:
                encoded = encode_rows(model, {k: values[k] for k in model.data_sites})
                return jnp.mean(jax.vmap(lambda row: free.energy(**row))(encoded))

            if other is not None:
                out["free_energy_gap"] = mean_free_energy(other) - mean_free_energy(train)
            if chains:
                out["chain_free_energy"] = mean_free_energy(chains)
        looked = _as_raw(model, train if other is None else other)
        if exact:
            out["pseudo_log_likelihood"] = jnp.mean(
                _pseudo_log_likelihood(sum_out(model), looked)
            )
        out["reconstruction_error"] = _reconstruction_error(rng_key, model, schedule, looked)
        return out

    def measure(rng_key: jax.Array, state: ContrastiveState) -> dict[str, float]:
        out = figures(rng_key, state.model, state.chains, train, other)
        return {name: float(value) for name, value in out.items()}

    return measure


def _pseudo_log_likelihood(free: EnergyModel, rows: Values) -> jax.Array:
    """sum_i log p(x_i given the rest) of discrete sites per row, by free-energy differences."""
    total: Any = 0.0
    for name, site in free.sites.items():
        if not site.is_discrete:
            continue
        states = jnp.asarray(site.states)

        def one(row: Values, name: str = name, site: Any = site, states: Any = states) -> Any:
            flat = row[name].reshape(-1)

            def unit(i: jax.Array) -> jax.Array:
                def density(state: jax.Array) -> jax.Array:
                    trial = flat.at[i].set(state.astype(flat.dtype)).reshape(site.shape)
                    return -free.energy(**free.encode({**row, name: trial}))

                logits = jax.vmap(density)(states)
                own = jnp.argmax(states == flat[i])
                return jax.nn.log_softmax(logits)[own]

            return jnp.sum(jax.lax.map(unit, jnp.arange(site.size), batch_size=16))

        total = total + jax.vmap(one)(rows)
    return total


def _reconstruction_error(
    rng_key: jax.Array, model: EnergyModel, schedule: Blocks, rows: Values
) -> jax.Array:
    """Mean square difference of rows and their one-sweep reconstruction, per encoded unit."""
    latents = rows
    if model.latent_sites:
        latents = {**rows, **_draw_latents(rng_key, model, schedule, rows, {}, 1)}
    errors = []
    for name in model.data_sites:
        site = model.sites[name]
        coupled = any(step.coupled for step in schedule.steps if step.site == name)
        if coupled:
            continue

        def one(values: Values, name: str = name, site: Any = site) -> jax.Array:
            natural = model.natural_parameters(name, values)
            mean = site.mean(natural.eta, natural.precision)
            return jnp.mean((mean - site.encode(values[name])) ** 2)

        errors.append(jnp.mean(jax.vmap(one)(latents)))
    return jnp.mean(jnp.stack(errors)) if errors else jnp.asarray(jnp.nan)


def _explain(metrics: Metrics) -> str:
    """Say in words how the run went."""
    epochs = len(next(iter(metrics.values()), []))
    if not epochs:
        return "No epoch was completed."
    parts = [f"{epochs} epoch{'s' if epochs > 1 else ''}."]
    likelihood = metrics.get("pseudo_log_likelihood")
    if likelihood is not None and epochs >= 4:
        quarter = max(epochs // 4, 1)
        late, before = likelihood[-quarter:], likelihood[-2 * quarter : -quarter]
        gain, noise = late.mean() - before.mean(), max(late.std(), before.std(), 1e-9)
        verdict = (
            "still rising: more epochs will help"
            if gain > noise
            else "falling: lower the learning rate or use more sweeps"
            if gain < -noise
            else "no longer changing: converged as far as this step size allows"
        )
        parts.append(
            f"Pseudo-log-likelihood {likelihood[0]:.3f} to {likelihood[-1]:.3f} nats per row, "
            f"{verdict}."
        )
    gap = metrics.get("free_energy_gap")
    if gap is not None and epochs >= 4:
        grown = gap[-1] - gap[: max(epochs // 4, 1)].mean()
        if grown > 1.0:
            parts.append(
                f"The free-energy gap grew by {grown:.2f} nats: the model begins to overfit."
            )
    return " ".join(parts)
