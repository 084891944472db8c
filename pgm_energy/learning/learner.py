"""What every gradient learner shares: an optimiser, and the host loop over epochs."""

from __future__ import annotations

import abc
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from pgm_energy._checks import require_count, require_key
from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.learning.checkpoint import Checkpoint, Store
from pgm_energy.learning.epochs import Run, run_epochs
from pgm_energy.learning.fingerprint import fingerprint
from pgm_energy.learning.loop import LearningResult, Rows, check_rows
from pgm_energy.learning.metrics import measurements
from pgm_energy.structure import blocks

__all__ = ["GradientLearner"]


class GradientLearner(abc.ABC):
    """A pair of pure functions, ``init`` and ``update``, and ``run``, the host loop.

    An objective is a subclass: a frozen dataclass whose ``update`` makes one optimiser step.
    """

    optimizer: optax.GradientTransformation

    #: Whether rows may have gaps (``Rows.known``).
    takes_missing: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not all(callable(getattr(self.optimizer, name, None)) for name in ("init", "update")):
            raise TypeError(
                "optimizer must be an optax optimizer, for example optax.adam(1e-3), got "
                f"{self.optimizer!r}"
            )

    @abc.abstractmethod
    def init(self, rng_key: Key, model: EnergyModel, rows: Rows) -> Any:
        """Return the first state (a NamedTuple with fields ``model`` and ``chains``)."""

    @abc.abstractmethod
    def update(
        self, rng_key: Key, state: Any, batch: Rows, index: jax.Array
    ) -> tuple[Any, dict[str, jax.Array]]:
        """Return the state after one step on a batch, and figures of the step."""

    def at_epoch(self, epoch: int, state: Any) -> tuple[GradientLearner, Any]:
        """Return the learner and the state that an epoch (from 0) begins with."""
        return self, state

    def run(
        self,
        rng_key: Key,
        model: EnergyModel,
        data: Any,
        num_epochs: int = 20,
        batch_size: int = 128,
        validation: Any = None,
        row_weights: Any = None,
        intensities: Literal["mean", "sample"] | None = None,
        missing: bool = False,
        callbacks: Sequence[Callable[[int, Any, Mapping[str, float]], Any]] = (),
        checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
        resume: bool = False,
        on_invalid: Literal["stop", "halve"] = "stop",
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
            ``(rows,)``, not negative: how often each row counts, up to a common factor.
        intensities
            For binary data between 0 and 1: ``"mean"`` uses them as probabilities, ``"sample"``
            draws bits every epoch.
        missing
            Let NaN mark values that are not known: clamped chains draw them, one per row.
        callbacks
            Called with ``(epoch, state, figures)`` after every epoch; one that returns True
            ends the run, such as :class:`EarlyStopping`.
        checkpoint
            A folder to write a checkpoint into after every epoch, or a :class:`Checkpoint`.
        resume
            Go on from the newest checkpoint in that folder; where there is none, start anew.
        on_invalid
            When a step makes a parameter NaN or infinite: ``"stop"`` undoes the step and ends the
            run; ``"halve"`` begins the epoch anew with half the learning rate (the updates of the
            optimizer are halved), up to ten times.
        progress_bar
            Show one.

        Returns
        -------
        LearningResult
            ``model``, ``averaged``, ``state``, ``metrics`` and ``message``.

        Raises
        ------
        ValueError
            On data, weights or counts that are not valid, a learning rate that is not positive
            (where ``optax.inject_hyperparams`` shows it), a model that block Gibbs cannot sample,
            or a checkpoint of a run with other data, batch size, learner or model.
        FileExistsError
            If ``checkpoint`` holds a run already and ``resume`` is False.

        Notes
        -----
        A resumed run has the same result as one that was never stopped, to the last bit, on the
        same machine and versions; the key is that of the checkpoint. With more epochs than
        before it goes on: parameters are averaged from half of ``num_epochs`` on, so where that
        is later than the checkpoint averaging begins anew, and otherwise goes on from where it
        began. Ctrl-C ends the run after the present epoch, a second one at once.

        Metrics per epoch, those that apply to the learner, the model and the data:

        - of up to 500 rows, those of ``validation`` if given: ``pseudo_log_likelihood`` (nats per
          row; fewer rows where they are wide, 40,000 units in all) and ``reconstruction_error``
          (mean square per unit); of both, ``free_energy_gap`` (validation minus training, nats);
        - of the steps, their means: ``gradient_norm``; ``objective`` (of learners without
          chains, in the objective's own unit), ``change`` (of a closed M-step),
          ``mean_field_residual``; ``learning_rate``, where ``optax.inject_hyperparams`` shows it;
        - of the chains after the epoch: ``chain_free_energy``, or ``chain_energy`` where hidden
          units are drawn (nats); in standard deviations of it, ``chain_energy_gap`` (chains minus
          data) and ``chain_drift`` (after 20 sweeps more at fixed parameters, from 32 chains on);
          ``chain_autocorrelation`` (of their energies, from one update to the next);
        - of replicas: ``swap_rate`` (of the worst pair); of :class:`TrajectoryChains` also
          ``num_models``, ``rejected`` (share of the steps that were not taken) and
          ``log_partition`` (nats).

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
        if on_invalid not in ("stop", "halve"):
            raise ValueError(f"on_invalid must be 'stop' or 'halve', got {on_invalid!r}")
        if on_invalid == "halve" and self.optimizer is None:
            raise ValueError(
                "on_invalid='halve' halves the steps of an optimizer, this "
                f"{type(self).__name__} has none"
            )
        if resume and checkpoint is None:
            raise ValueError("resume=True needs to know from where: give checkpoint, a folder")
        if not isinstance(model, EnergyModel):
            raise TypeError(f"run takes an energy model to start from, got {type(model).__name__}")
        if missing and not self.takes_missing:
            raise ValueError(
                f"{type(self).__name__} needs whole rows: learn with PCD or CD, or complete them "
                "first with impute"
            )
        rows = check_rows(model, data, row_weights, intensities, missing=missing)
        rows = rows._replace(weights=rows.weights / jnp.mean(rows.weights))
        held_out = None
        if validation is not None:
            held_out = check_rows(model, validation, None, intensities, name="validation")
        model = jax.tree.map(jnp.asarray, model.project())
        batch_size = min(require_count("batch_size", batch_size), len(rows.weights))
        store = None
        if checkpoint is not None:
            settings = fingerprint(
                learner=self,
                model=model,
                batch_size=batch_size,
                intensities=intensities,
                data=rows,
                validation=held_out,
            )
            store = Store(checkpoint, settings)
        run = Run(
            self,
            require_key(rng_key),
            model,
            rows,
            num_epochs=require_count("num_epochs", num_epochs),
            batch_size=batch_size,
            resample=intensities == "sample",
            measure=self._measurements(model, rows, held_out),
            callbacks=callbacks,
            on_invalid=on_invalid,
        )
        _require_rate(run.learned.state)
        return run_epochs(run, store, resume, progress_bar)

    def _measurements(
        self, model: EnergyModel, rows: Rows, held_out: Rows | None
    ) -> Callable[[jax.Array, Any], dict[str, float]]:
        """Return the function that measures an epoch; refuse a model that cannot be learned."""
        blocks(model)  # verify eagerly, and say at once if it is slow
        return measurements(model, rows, held_out)


def _require_rate(state: Any) -> None:
    """Refuse a learning rate that is not positive, where the optimiser's state shows it."""
    found = [value for _, value in optax.tree.get_all_with_path(state, "learning_rate")]
    rates = [float(value) for value in found if isinstance(value, jax.Array) and value.ndim == 0]
    is_scheduled = len(rates) < len(found)  # a schedule, which has a state, may begin at zero
    for rate in rates:
        if rate < 0 or (rate == 0 and not is_scheduled):
            raise ValueError(f"the learning rate of the optimizer must be positive, got {rate:g}")
