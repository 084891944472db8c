"""Models in files: safetensors with metadata, never pickle."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from pgm_energy._struct import StaticArray
from pgm_energy.energy import EnergyModel
from pgm_energy.sites import Binary, Categorical, Real, Site, Spin

__all__ = ["FORMAT_VERSION", "library_version", "load", "read_tensors", "save", "write_tensors"]

#: Raised when files are laid out in another way; files of a later version are refused.
FORMAT_VERSION = 1
_FORMAT = "pgm_energy.model"
_FAMILIES: dict[str, type[Site]] = {f.__name__: f for f in (Binary, Spin, Categorical, Real)}

Tensors = dict[str, np.ndarray]


def save(model: EnergyModel, path: str | os.PathLike[str]) -> None:
    """Write a model to a file: its class, static fields, parameters.

    Parameters
    ----------
    model
        An energy model made with :func:`pgm_energy.struct`; one of your own, and what
        transformations return, too.
    path
        The file; one that exists is replaced, in one piece or not at all.

    Raises
    ------
    TypeError
        If the object is no struct energy model, or a static field holds something other than
        numbers, text, site families, sites, integer arrays and tuples of them.
    OSError
        If the file cannot be written.

    Notes
    -----
    A safetensors file: raw numbers and a JSON header, which no reader executes. Parameters keep
    every bit.

    Examples
    --------
    >>> import tempfile, pathlib, jax.numpy as jnp, pgm_energy as pgm
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "rbm.safetensors"
    >>> pgm.save(pgm.RBM(weights=jnp.ones((3, 2))), path)
    >>> pgm.load(path).weights.shape
    (3, 2)
    """
    if not isinstance(model, EnergyModel):
        raise TypeError(f"save takes an energy model, got {type(model).__name__}")
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(model)):
        raise TypeError("save writes concrete parameters: call it outside of jit, vmap and grad")
    tensors: Tensors = {}
    description = _describe(model, "", tensors)
    metadata = {
        "format": _FORMAT,
        "format_version": str(FORMAT_VERSION),
        "class": _qualified_name(type(model)),
        "model": json.dumps(description, sort_keys=True, allow_nan=False),
    }
    write_tensors(Path(path), tensors, metadata)


def load(path: str | os.PathLike[str], cls: type[EnergyModel] | None = None) -> Any:
    """Return the model in a file that :func:`save` wrote.

    Parameters
    ----------
    path
        The file.
    cls
        The class that is expected. Needed for a model of your own only where its module has
        another name now; otherwise define or import the class before.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is truncated, of another program, of a later version, of another class than
        ``cls``, of a class that has not been defined, or its parameters do not fit the class.

    Notes
    -----
    Nothing is imported or executed on behalf of the file. In float32, parameters that were saved
    in float64 are rounded.

    Examples
    --------
    >>> import tempfile, pathlib, pgm_energy as pgm
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "ising.safetensors"
    >>> pgm.save(pgm.ising_lattice((4, 4), coupling=0.3), path)
    >>> pgm.load(path, cls=pgm.SparseBoltzmannMachine).sites["v"].shape
    (4, 4)
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a model file")
    if not path.is_file():
        raise FileNotFoundError(f"there is no model file {path}")
    metadata, tensors = read_tensors(path, "model file")
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{path} is a safetensors file of another program, not a model of pgm_energy"
        )
    version = metadata.get("format_version", "")
    if version != str(FORMAT_VERSION):
        raise ValueError(
            f"{path} has format version {version or 'none'}, this pgm_energy reads version "
            f"{FORMAT_VERSION}: install the version that wrote it, or save the model again"
        )
    with _explained(path):
        description = json.loads(metadata["model"])
        name = str(description["class"])
    if cls is not None:
        if not (isinstance(cls, type) and issubclass(cls, EnergyModel)):
            raise TypeError(f"cls must be a class of energy models, got {cls!r}")
        if name.partition(":")[2].rpartition(".")[2] != cls.__name__:
            raise ValueError(f"{path} holds a model of class {name}, not {cls.__name__}")
    return _rebuild(path, description, tensors, cls)


# ---- to a description ------------------------------------------------------------------------


def _qualified_name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _describe(model: EnergyModel, prefix: str, tensors: Tensors) -> dict[str, Any]:
    """The structure of a model as JSON; its arrays go into ``tensors``."""
    if not dataclasses.is_dataclass(model):
        raise TypeError(
            f"{type(model).__name__} cannot be saved: only classes made with @pgm_energy.struct "
            "say what their parameters are"
        )
    fields = {
        field.name: _encode(getattr(model, field.name), prefix + field.name, tensors)
        for field in dataclasses.fields(model)
    }
    return {"class": _qualified_name(type(model)), "fields": fields}


def _encode(value: Any, place: str, tensors: Tensors) -> Any:
    """JSON of one field: plain values as they are, everything else as an object with one key."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):  # a NumPy number among static fields
        return value.item()
    if isinstance(value, jax.Array | np.ndarray | StaticArray):
        array = np.array(value.array if isinstance(value, StaticArray) else value, order="C")
        tensors[place] = array
        kind = "static" if isinstance(value, StaticArray) else "array"
        return {kind: place, "shape": list(array.shape), "dtype": str(array.dtype)}
    if isinstance(value, EnergyModel):
        return {"model": _describe(value, f"{place}/", tensors)}
    if isinstance(value, Site):
        parts = {f.name: _encode(getattr(value, f.name), "", {}) for f in dataclasses.fields(value)}
        return {"site": type(value).__name__, "fields": parts}
    if isinstance(value, type) and value in _FAMILIES.values():
        return {"family": value.__name__}
    if isinstance(value, tuple | list):
        items = [_encode(item, f"{place}/{i}", tensors) for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {k: _encode(v, f"{place}/{k}", tensors) for k, v in value.items()}}
    raise TypeError(
        f"field {place!r} holds {type(value).__name__}, which a model file cannot hold: numbers, "
        "text, site families, sites, arrays, models and tuples or dicts of them can be saved"
    )


# ---- from a description ----------------------------------------------------------------------


def _rebuild(
    path: Path, description: dict[str, Any], tensors: Tensors, cls: type[EnergyModel] | None
) -> EnergyModel:
    with _explained(path):
        name, encoded = str(description["class"]), dict(description["fields"])
    known = cls or _find_class(name)
    if known is None:
        module, _, short = name.partition(":")
        raise ValueError(
            f"{path} holds a model of class {short} from module {module}, which has not been "
            f"defined here: import it first, or pass load(path, cls={short.rpartition('.')[2]})"
        )
    expected = {field.name for field in dataclasses.fields(known)}  # type: ignore[arg-type]
    if expected != set(encoded):
        raise ValueError(
            f"{path} holds fields {sorted(encoded)} of {known.__name__}, this version of the class "
            f"has {sorted(expected)}"
        )
    fields = {key: _decode(path, value, tensors) for key, value in encoded.items()}
    try:
        return known(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no valid {known.__name__}: {error}") from error


def _find_class(name: str) -> type[EnergyModel] | None:
    """The struct class of this name, the last one defined; nothing is imported."""
    found, waiting = None, [EnergyModel]
    while waiting:
        cls = waiting.pop()
        subclasses = cls.__subclasses__()
        waiting.extend(reversed(subclasses))
        if _qualified_name(cls) == name and dataclasses.is_dataclass(cls):
            found = cls
    return found


def _decode(path: Path, value: Any, tensors: Tensors) -> Any:
    if not isinstance(value, dict):
        return value
    match next(iter(key for key in value if key not in ("shape", "dtype", "fields")), None):
        case "array" | "static" as kind:
            array = tensors.get(value[kind])
            shape, dtype = tuple(value["shape"]), value["dtype"]
            if array is None or array.shape != shape or str(array.dtype) != dtype:
                came = "nothing" if array is None else f"{array.dtype} of shape {array.shape}"
                raise ValueError(
                    f"{path} is damaged: {value[kind]!r} should be {dtype} of shape {shape}, got "
                    f"{came}"
                )
            return StaticArray(array) if kind == "static" else jnp.asarray(array)
        case "model":
            return _rebuild(path, value["model"], tensors, None)
        case "site":
            parts = {k: _decode(path, v, tensors) for k, v in value["fields"].items()}
            return _family(path, value["site"])(**parts)
        case "family":
            return _family(path, value["family"])
        case "tuple":
            return tuple(_decode(path, item, tensors) for item in value["tuple"])
        case "list":
            return [_decode(path, item, tensors) for item in value["list"]]
        case "dict":
            return {k: _decode(path, item, tensors) for k, item in value["dict"].items()}
    raise ValueError(f"{path} is damaged: its description has an entry {value!r}")


def _family(path: Path, name: str) -> type[Site]:
    if name not in _FAMILIES:
        raise ValueError(f"{path} names a family {name!r}; known are {', '.join(_FAMILIES)}")
    return _FAMILIES[name]


# ---- files -----------------------------------------------------------------------------------


def library_version() -> str:
    """Return the version of this package, or "unknown" where it is not installed."""
    try:
        return version("pgm-energy")
    except PackageNotFoundError:
        return "unknown"


def read_tensors(path: Path, what: str) -> tuple[dict[str, str], Tensors]:
    """Return metadata and tensors of a safetensors file.

    Raises
    ------
    ValueError
        If it is none, or a truncated one; ``what`` says what was expected.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {}), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no {what}, or a truncated one ({error}); pgm_energy reads what it wrote"
        ) from error


def write_tensors(path: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    """Write a safetensors file, in one piece or not at all."""
    _write_atomically(path, to_bytes(tensors, metadata=metadata))


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what a damaged header raises into a sentence."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged: its description cannot be read") from error


def _write_atomically(path: Path, content: bytes) -> None:
    """Write beside the target, then rename: a reader never sees half a file."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into")
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp makes files that nobody else can read
        os.replace(name, path)
        _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _sync_folder(folder: Path) -> None:
    """Let the new name outlast a loss of power, where folders can be opened (not on Windows)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
