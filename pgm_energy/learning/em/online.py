"""EM on batches that come one after another: data larger than memory, or without end."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._checks import require_key
from pgm_energy._interrupts import interrupts_wait
from pgm_energy._progress import progress
from pgm_energy._struct import Key
from pgm_energy.learning.em.steps import expect
from pgm_energy.learning.em.task import check_mixture, check_table, rows_per_chunk
from pgm_energy.models.chunks import Chunks, arrange
from pgm_energy.models.mixture import reframed
from pgm_energy.models.prior import MixturePrior

__all__ = ["OnlineEM", "OnlineResult"]


class OnlineResult(NamedTuple):
    """What on-line EM found.

    Attributes
    ----------
    model
        The mixture after the last batch.
    log_likelihoods
        Mean log-likelihood of each batch, nats per row, under the mixture *before* it had learned
        from that batch: an honest figure as long as no row comes twice.
    num_rows
        Rows seen in all.
    message
        How it went, in words.
    """

    model: Any
    log_likelihoods: np.ndarray
    num_rows: int
    message: str


@jax.jit
def _step(
    model: Any, moments: Any, rate: jax.Array, chunks: Chunks, floor: jax.Array, prior: Any
) -> tuple[Any, Any, jax.Array]:
    """The mixture and its moments per row after a batch, and the batch's log-likelihood before."""
    found = expect(model, chunks)
    count = jnp.sum(chunks.weights.astype(jnp.result_type(float)))
    moments = jax.tree.map(
        lambda old, new: old + rate * (new / count - old), moments, found.moments
    )
    new = model.maximize(moments, floor, prior)
    return new, new.rebased(moments, model), found.log_likelihood / count


@dataclasses.dataclass(frozen=True)
class OnlineEM:
    """EM that sees its data in batches: memory for one batch, one pass if need be.

    Parameters
    ----------
    decay
        The t-th batch replaces a share ``t ** -decay`` of what is known of the data; in (0.5, 1].
        With 1 all batches count alike, with less the early ones (made under poor parameters) are
        forgotten.
    floor
        Smallest probability, and smallest variance relative to that of the start.

    Raises
    ------
    ValueError
        On a decay outside (0.5, 1], or a floor outside (0, 0.1).

    Notes
    -----
    The sums that the M-step needs are averaged over batches with falling weights, and every batch
    is followed by an M-step. What it converges to are the stationary points of the expected
    log-likelihood; with one batch, repeated, those of :class:`EM`. Batches should be drawn at
    random: sorted data are forgotten in order. Nothing is compared with what a step did, so the
    likelihood may fall. Cost per batch: that of one step of :class:`EM` on it.

    References
    ----------
    O. Cappe and E. Moulines (2009), On-line expectation-maximization algorithm for latent data
    models, equations 14 and 15.

    Examples
    --------
    >>> import jax, numpy as np, pgm_energy as pgm
    >>> rng = np.random.default_rng(0)
    >>> batches = (rng.normal(rng.choice([-3.0, 3.0], (200, 1))) for _ in range(50))
    >>> start = pgm.GaussianMixture.init(jax.random.key(0), num_components=2, data=next(batches))
    >>> result = pgm.OnlineEM().run(jax.random.key(0), start, batches, progress_bar=False)
    >>> np.sort(np.asarray(result.model.means)[:, 0]).round().tolist()
    [-3.0, 3.0]
    """

    decay: float = 0.6
    floor: float = 1e-6

    def __post_init__(self) -> None:
        for name, low, high in (("decay", 0.5, 1.0), ("floor", 0.0, 0.1)):
            value = getattr(self, name)
            number = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
            if not number or not low < value <= high:
                raise ValueError(f"{name} must be a number in ({low:g}, {high:g}], got {value!r}")

    def run(
        self,
        rng_key: Key,
        model: Any,
        batches: Iterable[Any],
        *,
        missing: bool = False,
        progress_bar: bool = True,
    ) -> OnlineResult:
        """Return the mixture after all batches.

        Parameters
        ----------
        rng_key
            A JAX random key, as for every learner; nothing here is random.
        model
            Where to start, for example ``GaussianMixture.init`` on the first batch.
        batches
            An iterable of tables ``(n, D)`` (or dicts with the data site), such as a generator
            that reads files. Batches of one size compile once.
        missing
            Whether NaN stands for a value that is not known.
        progress_bar
            Whether to show progress.

        Raises
        ------
        TypeError
            If the model is no mixture, or ``batches`` is one table.
        ValueError
            On a batch that is not valid (with its number, row and column), no batch at all, or
            fewer rows in the first one than components.

        Notes
        -----
        Ctrl-C ends it after the batch at hand and returns the result so far.
        """
        require_key(rng_key)
        check_mixture(model)
        if isinstance(batches, np.ndarray | jax.Array | Mapping) or not isinstance(
            batches, Iterable
        ):
            raise TypeError(
                "batches must be an iterable of tables, such as a generator or a list; for one "
                "table use EM"
            )
        kind = jnp.result_type(float)
        frame = model.own_frame()
        with jax.enable_x64(True):
            start = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), model)
            if frame is not None:
                start = reframed(start, *frame)
            size = rows_per_chunk(start, 1, kind, missing, False)
            tables = _Tables(model, frame, missing, size, kind)
            now, scores = self._learn(start, tables, batches, progress_bar, kind)
            if frame is not None:
                now = reframed(now, -frame[0] / frame[1], 1.0 / frame[1])
            now = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), kind), now)
        message = f"{len(scores)} batches, {tables.num_rows} rows."
        if tables.interrupted:
            message += " Interrupted; the result is that of these."
        return OnlineResult(now, np.array(scores), tables.num_rows, message)

    def _learn(
        self, model: Any, tables: _Tables, batches: Iterable[Any], progress_bar: bool, kind: Any
    ) -> tuple[Any, list[float]]:
        floor = jnp.asarray(model.least_floor(self.floor, kind))
        prior = model.resolve_prior(MixturePrior(), None)
        model = model.with_floor(floor)
        scores: list[float] = []
        moments: Any = None
        with progress(None, progress_bar, "batches") as show, interrupts_wait() as asked:
            for number, batch in enumerate(batches, start=1):
                chunks, share = tables.read(number, batch)
                if moments is None:
                    shapes = jax.eval_shape(lambda m, c: expect(m, c).moments, model, chunks)
                    moments = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
                rate = jnp.asarray(share * number**-self.decay)
                model, moments, score = _step(model, moments, rate, chunks, floor, prior)
                scores.append(float(score) + tables.offset)
                show(number, f"log-likelihood per row {scores[-1]:.3f}")
                if asked():
                    tables.interrupted = True
                    break
        if not scores:
            raise ValueError("batches gave no table at all")
        return model, scores


class _Tables:
    """Reads batches: checked, standardised, filled up to the largest one so far."""

    def __init__(self, model: Any, frame: Any, missing: bool, size: int, kind: Any) -> None:
        self.model, self.frame, self.missing = model, frame, missing
        self.size, self.kind = size, kind
        self.capacity = self.num_rows = 0
        self.offset = 0.0
        self.interrupted = False

    def read(self, number: int, batch: Any) -> tuple[Chunks, float]:
        """Return a batch in chunks, and its size relative to the largest one so far."""
        table = check_table(self.model, batch, self.missing, name=f"batch {number}")
        count = len(table)
        if number == 1 and count < self.model.num_components:
            raise ValueError(
                f"{self.model.num_components} components need at least as many rows in the first "
                f"batch, got {count}"
            )
        self.num_rows += count
        self.capacity = max(self.capacity, count)
        gone = np.isnan(table) if self.missing and table.dtype.kind == "f" else None
        if self.frame is not None:
            shift, scale = self.frame
            logs = np.log(scale)
            self.offset = -float(logs.sum())
            if gone is not None:
                self.offset = -float((~gone * logs).sum()) / count
            table = ((table - shift) / scale).astype(self.kind)
        if self.missing and table.dtype.kind != "f":
            table = table.astype(self.kind)  # one compiled step, whether or not something is gone
        rows = np.zeros((self.capacity, table.shape[1]), table.dtype)
        rows[:count] = table
        weights = np.zeros(self.capacity, self.kind)
        weights[:count] = 1.0
        chunks = arrange(rows, weights, self.size, self.missing)
        return chunks, count / self.capacity
