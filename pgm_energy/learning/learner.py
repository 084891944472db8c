"""What every gradient learner shares: an optimiser, and the host loop over epochs."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from pgm_energy._struct import Key
from pgm_energy.energy import EnergyModel
from pgm_energy.learning.loop import LearningResult, Rows, check_rows, run_epochs
from pgm_energy.learning.metrics import explain, measurements
from pgm_energy.structure import blocks

__all__ = ["GradientLearner"]


class GradientLearner(abc.ABC):
    """A pair of pure functions, ``init`` and ``update``, and ``run``, the host loop.

    An objective is a subclass: a frozen dataclass whose ``update`` makes one optimiser step.
    """

    optimizer: optax.GradientTransformation

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
            ``(rows,)``, not negative: how often each row counts, up to a common factor.
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
        ``gradient_norm``, ``chain_free_energy`` (nats). They look at up to 500 rows, the
        pseudo-likelihood at fewer where rows are wide (40,000 units).

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
        rows = rows._replace(weights=rows.weights / jnp.mean(rows.weights))
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
            measure=measurements(model, rows, held_out),
            callbacks=callbacks,
            progress_bar=progress_bar,
            explain=explain,
        )
