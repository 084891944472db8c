"""Checkpoints of a learning run: in one piece or not at all, checked when read, pruned."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._checks import require_count
from pgm_energy.learning.fingerprint import differences, digest
from pgm_energy.serialization import library_version, read_tensors, write_tensors

__all__ = ["Checkpoint", "Snapshot", "Store"]

#: Raised when files are laid out in another way; files of another version are refused.
FORMAT_VERSION = 1
_FORMAT = "pgm_energy.checkpoint"
_NAME = re.compile(r"checkpoint-(\d+)\.safetensors")

Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Where a run writes checkpoints, how often, and how many stay.

    Parameters
    ----------
    path
        A folder of its own; made if it is not there.
    every_epochs
        Write after every so many epochs; None: by time alone.
    every_minutes
        Write after the first epoch that ends so many minutes after the last checkpoint.
    keep
        Newest checkpoints that stay; older ones are deleted when the next one is complete.

    Raises
    ------
    TypeError
        If the path is none.
    ValueError
        If a number is not positive, or both intervals are None.

    Notes
    -----
    A file ``checkpoint-000012.safetensors`` holds all that the epochs after the twelfth depend
    on: parameters, optimiser, chains, latents, averaged parameters, random key, the state of
    callbacks that have one, and the metrics so far. The order of the rows derives from the key
    and the number of the epoch. Nothing in it is ever executed. It takes the time to copy the
    state and to flush it to the disk: milliseconds for small models, so write every few seconds
    at most.

    Examples
    --------
    >>> import pgm_energy as pgm
    >>> pgm.Checkpoint("runs/rbm", every_epochs=None, every_minutes=10).keep
    3
    """

    path: str | os.PathLike[str]
    every_epochs: int | None = 1
    every_minutes: float | int | None = None
    keep: int = 3

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | os.PathLike):
            raise TypeError(f"path must be the path of a folder, got {type(self.path).__name__}")
        if self.every_epochs is not None:
            require_count("every_epochs", self.every_epochs)
        if self.every_minutes is not None and not self.every_minutes > 0:
            raise ValueError(f"every_minutes must be positive, got {self.every_minutes!r}")
        if self.every_epochs is None and self.every_minutes is None:
            raise ValueError("give every_epochs, every_minutes, or both: both are None")
        require_count("keep", self.keep)


class Snapshot(NamedTuple):
    """A run between two epochs.

    Attributes
    ----------
    epoch
        Epochs done.
    rng_key
        The key that all epochs derive from.
    learned
        Any pytree: what the next epoch continues.
    callbacks
        States of callbacks by name, any pytrees.
    metrics
        One value per epoch, by name.
    """

    epoch: int
    rng_key: Any
    learned: Any
    callbacks: dict[str, Any]
    metrics: dict[str, np.ndarray]


class Store:
    """The checkpoints of one run.

    Parameters
    ----------
    plan
        A :class:`Checkpoint`, or the path of a folder.
    settings
        What the run depends on, see ``fingerprint``.
    """

    def __init__(self, plan: Checkpoint | str | os.PathLike[str], settings: dict[str, str]) -> None:
        self.plan = plan if isinstance(plan, Checkpoint) else Checkpoint(plan)
        self.folder = Path(self.plan.path)
        self.settings = settings
        self._last, self._since = -1, time.monotonic()
        self._failure = ""

    def open(self, start: Snapshot, resume: bool) -> Snapshot | None:
        """Return the newest checkpoint that can be read, None if there is none.

        Parameters
        ----------
        start
            The run before its first epoch: what is read must have the same structure.
        resume
            Whether to look for checkpoints; otherwise the folder must hold none.

        Raises
        ------
        FileExistsError
            If the folder holds checkpoints and ``resume`` is False, or the path is a file.
        ValueError
            If the checkpoint is that of another run, or none of them can be read.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise FileExistsError(f"checkpoint takes the path of a folder, {self.folder} is a file")
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".checkpoint-*.safetensors.*"):  # by a run that was killed
            left.unlink(missing_ok=True)
        found = self._files()
        if not found:
            return None
        if not resume:
            raise FileExistsError(
                f"{self.folder} holds checkpoints of a run (up to epoch {found[0][0]}): continue "
                "it with resume=True, or give a folder of its own"
            )
        for _, path in found:
            try:
                metadata, tensors = _read(path)
            except (ValueError, OSError) as error:
                warnings.warn(f"{error}. Going back to the one before", UserWarning, stacklevel=5)
                continue
            snapshot = self._restore(path, metadata, tensors, start)
            self._last = snapshot.epoch
            return snapshot
        raise ValueError(
            f"none of the {len(found)} checkpoints in {self.folder} can be read: delete them, or "
            "give another folder, to start anew"
        )

    def is_due(self, epoch: int) -> bool:
        """Whether a checkpoint should be written after so many epochs."""
        plan = self.plan
        if plan.every_epochs is not None and epoch - max(self._last, 0) >= plan.every_epochs:
            return True
        minutes = (time.monotonic() - self._since) / 60
        return plan.every_minutes is not None and minutes >= plan.every_minutes

    def write(self, snapshot: Snapshot) -> None:
        """Write a checkpoint unless there is one of this epoch; then delete old ones.

        Notes
        -----
        A disk that is full, or gone, costs the checkpoint and not the run: the first failure
        warns, the ones before stay, and the next epoch tries again.
        """
        if snapshot.epoch == self._last:
            return
        path = self.folder / f"checkpoint-{snapshot.epoch:06d}.safetensors"
        try:
            write_tensors(path, *_pack(snapshot, self.settings))
        except OSError as error:
            if not self._failure:
                before = f"; that of epoch {self._last} stays" if self._last >= 0 else ""
                warnings.warn(
                    f"the checkpoint of epoch {snapshot.epoch} could not be written to "
                    f"{self.folder} ({error.strerror or error}){before}. The run goes on, every "
                    "epoch tries again: make room",
                    RuntimeWarning,
                    stacklevel=5,
                )
            self._failure = f"{error.strerror or error}"
            return
        self._last, self._since, self._failure = snapshot.epoch, time.monotonic(), ""
        ours = [path for epoch, path in self._files() if epoch <= snapshot.epoch]
        for old in ours[self.plan.keep :]:
            with contextlib.suppress(OSError):
                old.unlink()

    def trouble(self) -> str:
        """Say in words what could not be written; nothing if all is well."""
        if not self._failure:
            return ""
        if self._last < 0:
            return f"No checkpoint could be written to {self.folder}: {self._failure}."
        return (
            f"The last checkpoint in {self.folder} is that of epoch {self._last}; later ones could "
            f"not be written: {self._failure}."
        )

    def _files(self) -> list[tuple[int, Path]]:
        """Epoch and path of what is named as a checkpoint, newest first."""
        named = [(_NAME.fullmatch(path.name), path) for path in self.folder.iterdir()]
        return sorted(((int(name[1]), path) for name, path in named if name), reverse=True)

    def _restore(
        self, path: Path, metadata: dict[str, str], tensors: Tensors, start: Snapshot
    ) -> Snapshot:
        """Rebuild a run; refuse another one's."""
        changes = differences(json.loads(metadata["settings"]), self.settings)
        if not changes:  # shapes may differ: the number of chains may change between epochs
            stored = {name: v for name, v in tensors.items() if name.startswith("learned")}
            changes = differences(_types(stored), _types(_flatten("learned", start.learned)))
        if changes:
            raise ValueError(
                f"{path} is a checkpoint of another run: {'; '.join(changes)}. Resume with the "
                "same learner, batch size, data and model, or give another folder to start anew"
            )
        then, now = json.loads(metadata["versions"]), _versions()
        if then != now:
            warnings.warn(
                f"{path} was written under other versions ({'; '.join(differences(then, now))}): "
                "the run goes on, but not bit for bit as if it had never stopped",
                UserWarning,
                stacklevel=6,
            )
        callbacks = dict(start.callbacks)
        for name, state in callbacks.items():
            prefix = f"callbacks/{name}"
            if _types(_flatten(prefix, state)).items() <= _types(tensors).items():
                callbacks[name] = _unflatten(prefix, state, tensors)
        return Snapshot(
            int(metadata["epoch"]),
            _unflatten("rng_key", start.rng_key, tensors),
            _unflatten("learned", start.learned, tensors),
            callbacks,
            {name: tensors[f"metrics/{name}"] for name in json.loads(metadata["metrics"])},
        )


# ---- files -------------------------------------------------------------------------------------


def _pack(snapshot: Snapshot, settings: dict[str, str]) -> tuple[Tensors, dict[str, str]]:
    """Tensors by name, and the metadata that describe them."""
    tensors = _flatten("learned", snapshot.learned) | _flatten("rng_key", snapshot.rng_key)
    for name, state in snapshot.callbacks.items():
        tensors |= _flatten(f"callbacks/{name}", state)
    tensors |= {f"metrics/{name}": values for name, values in snapshot.metrics.items()}
    return tensors, {
        "format": _FORMAT,
        "format_version": str(FORMAT_VERSION),
        "epoch": str(snapshot.epoch),
        "metrics": json.dumps(list(snapshot.metrics)),
        "settings": json.dumps(settings),
        "versions": json.dumps(_versions()),
        "digest": _digest(tensors),
    }


def _read(path: Path) -> tuple[dict[str, str], Tensors]:
    """Metadata and tensors of a checkpoint that is whole.

    Raises
    ------
    ValueError
        If it is truncated, damaged, or none of this package and version.
    """
    metadata, tensors = read_tensors(path, "checkpoint")
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{path} is a safetensors file, but no checkpoint of pgm_energy")
    if metadata.get("format_version") != str(FORMAT_VERSION):
        raise ValueError(
            f"{path} has format version {metadata.get('format_version')}, this pgm_energy reads "
            f"version {FORMAT_VERSION}"
        )
    if metadata.get("digest") != _digest(tensors):
        raise ValueError(f"{path} is damaged: its numbers are not those that were written")
    return metadata, tensors


def _digest(tensors: Tensors) -> str:
    words = [f"{name} {digest(tensors[name])}" for name in sorted(tensors)]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def _versions() -> dict[str, str]:
    device = jax.default_backend()
    return {"pgm_energy": library_version(), "jax": jax.__version__, "device": device}


# ---- trees -------------------------------------------------------------------------------------


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _flatten(prefix: str, tree: Any) -> Tensors:
    """Leaves of any pytree by the path to them."""
    tensors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf, order="C")
        if array.dtype.kind == "V":  # bfloat16 and its like: the bits
            array = array.view(f"u{array.dtype.itemsize}")
        tensors[prefix + jax.tree_util.keystr(path)] = array
    return tensors


def _unflatten(prefix: str, like: Any, tensors: Mapping[str, np.ndarray]) -> Any:
    """The tree again, every leaf of the kind that ``like`` has in its place."""

    def restored(path: Any, leaf: Any) -> Any:
        array = tensors[prefix + jax.tree_util.keystr(path)]
        if _is_key(leaf):
            return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
        if isinstance(leaf, jax.Array):
            return jnp.asarray(array.view(leaf.dtype))
        return array if isinstance(leaf, np.ndarray) else type(leaf)(array.item())

    return jax.tree_util.tree_map_with_path(restored, like)


def _types(tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    return {name: str(array.dtype) for name, array in tensors.items()}
