"""Frozen pytree dataclasses: what every model of this package is made of."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    #: A parameter as it is kept; constructors take whatever ``jnp.asarray`` takes.
    Parameter = jax.Array
    #: One JAX random key, typed or legacy. What is no key is refused by our own message.
    Key = jax.Array
else:
    Parameter = Key = Any

_STATIC = "pgm_energy.static"


class StaticArray:
    """An immutable, hashable integer or boolean array, for structure such as edges.

    Parameters
    ----------
    array
        Anything ``numpy.asarray`` takes, of integer or boolean kind.

    Raises
    ------
    TypeError
        If the array is of another kind: numbers that are learned belong in data fields.

    Examples
    --------
    >>> import numpy as np
    >>> StaticArray([[0, 1]]) == StaticArray(np.array([[0, 1]]))
    True
    """

    __slots__ = ("_hash", "array")

    array: np.ndarray
    _hash: int

    def __init__(self, array: Any) -> None:
        values = np.array(array, copy=True)
        if values.dtype.kind not in "biu":
            raise TypeError(
                f"a static array holds integers or booleans, got {values.dtype}; "
                "parameters belong in a field without static()"
            )
        values.setflags(write=False)
        object.__setattr__(self, "array", values)
        object.__setattr__(self, "_hash", hash((values.shape, values.dtype.str, values.tobytes())))

    def __reduce__(self) -> tuple[Any, ...]:
        return StaticArray, (self.array,)  # copies and pickles are made anew, and immutable

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("a StaticArray is immutable")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype=dtype, copy=copy)

    def __len__(self) -> int:
        return len(self.array)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.array.shape

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StaticArray) and bool(
            self.array.shape == other.array.shape
            and self.array.dtype == other.array.dtype
            and (self.array == other.array).all()
        )

    def __repr__(self) -> str:
        return f"StaticArray({self.array!r})"


def static(**kwargs: Any) -> Any:
    """Mark a field of a struct as structure: hashable, not differentiated, not mapped.

    Takes the keywords of ``dataclasses.field`` (``default=``, ...). Integer numpy arrays given
    for such a field are wrapped in :class:`StaticArray`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> @struct
    ... class Scaled:
    ...     scale: jax.Array
    ...     size: int = static(default=3)
    >>> jax.tree.leaves(Scaled(scale=jnp.ones(2)))[0].shape
    (2,)
    """
    metadata = {**kwargs.pop("metadata", {}), _STATIC: True}
    return dataclasses.field(metadata=metadata, **kwargs)


def is_static(field: dataclasses.Field[Any]) -> bool:
    """Whether a field of a struct is structure, see :func:`static`."""
    return bool(field.metadata.get(_STATIC))


def is_concrete(tree: Any) -> bool:
    """Whether no leaf of ``tree`` is a tracer, so that values may be looked at."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def _coerce(owner: str, name: str, value: Any) -> Any:
    """``value`` with array leaves in floating point; anything else is refused by name."""

    def leaf(x: Any) -> Any:
        if isinstance(x, jax.core.Tracer):
            return x
        if not isinstance(x, jax.Array | np.ndarray | np.generic | float | int):
            raise TypeError(
                f"{owner}.{name} must be an array (or a tree of arrays), got "
                f"{type(x).__name__}; use pgm_energy.static() for what is not a parameter"
            )
        if isinstance(x, np.ndarray | np.generic) and x.dtype.kind in "OSUMm":
            raise TypeError(f"{owner}.{name} must be real numbers, got dtype {x.dtype}")
        if jnp.issubdtype(jnp.result_type(x), jnp.floating):
            return jnp.asarray(x)
        if jnp.issubdtype(jnp.result_type(x), jnp.integer) or isinstance(x, bool | np.bool_):
            return jnp.asarray(x, dtype=jnp.result_type(float))
        if jnp.result_type(x) == np.bool_:
            return jnp.asarray(x, dtype=jnp.result_type(float))
        raise TypeError(f"{owner}.{name} must be real numbers, got dtype {jnp.result_type(x)}")

    if isinstance(value, list | tuple):  # a nested list of numbers is meant as one array
        with contextlib.suppress(TypeError, ValueError):
            value = np.asarray(value, dtype=np.result_type(float))
    return jax.tree.map(leaf, value)


def _check_finite(owner: str, name: str, value: Any) -> None:
    for leaf in jax.tree.leaves(value):
        if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, jax.Array):
            continue
        bad = np.argwhere(~np.isfinite(np.asarray(leaf)))
        if len(bad):
            place = tuple(int(i) for i in bad[0])
            where = f" at index {place}" if place else ""
            raise ValueError(
                f"{owner}.{name} must be finite, got {float(np.asarray(leaf)[place])}{where}"
                f"{f' (and {len(bad) - 1} more)' if len(bad) > 1 else ''}"
            )


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(static,))
def struct[T](cls: type[T]) -> type[T]:
    """Return the class as a frozen, keyword-only, final dataclass that is a JAX pytree.

    Fields hold floating arrays (or trees of them) and are leaves; fields declared with
    :func:`static` are structure. Integer and Python numbers become floating arrays. Values
    that are NaN or infinite are refused with their index. A method ``validate(self)``, if the
    class has one, runs last.

    Raises
    ------
    TypeError
        On a subclass of a struct (a class is abstract or final), an unhashable static field, or
        a data field that holds no numbers.
    ValueError
        On a parameter that is NaN or infinite.

    Notes
    -----
    Equality is identity: arrays have no truth value, and NumPyro compares models. Unflattening
    does not run the constructor, so JAX may put tracers and placeholders in the fields.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> @struct
    ... class Pair:
    ...     a: jax.Array
    ...     b: jax.Array
    >>> float(jax.tree.map(lambda x: 2 * x, Pair(a=jnp.ones(()), b=jnp.ones(()))).a)
    2.0
    """
    for base in cls.__mro__[1:]:
        if dataclasses.is_dataclass(base):
            raise TypeError(f"{base.__name__} is final: {cls.__name__} cannot extend it")

    def __post_init__(self: Any) -> None:
        owner = type(self).__name__
        for name in data_names:
            value = _coerce(owner, name, getattr(self, name))
            _check_finite(owner, name, value)
            object.__setattr__(self, name, value)
        for name in static_names:
            value = getattr(self, name)
            if isinstance(value, np.ndarray):
                object.__setattr__(self, name, StaticArray(value))
                continue
            try:
                hash(value)
            except TypeError as error:
                raise TypeError(
                    f"{owner}.{name} is static and must be hashable, got {type(value).__name__}"
                ) from error
        validate = getattr(self, "validate", None)
        if validate is not None:
            validate()

    def __init_subclass__(subclass: Any, /, **kwargs: Any) -> None:
        raise TypeError(
            f"{cls.__name__} is final: {subclass.__name__} cannot extend it; "
            "write a new energy model that holds one instead"
        )

    cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
    plain = cls.__repr__ is object.__repr__
    cls = dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=plain)(cls)
    cls.__init_subclass__ = classmethod(__init_subclass__)  # type: ignore[assignment]
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    static_names = tuple(f.name for f in fields if is_static(f))
    data_names = tuple(f.name for f in fields if not is_static(f))

    def flatten_with_keys(self: Any) -> tuple[Any, Any]:
        children = tuple(
            (jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in data_names
        )
        return children, tuple(getattr(self, name) for name in static_names)

    def flatten(self: Any) -> tuple[Any, Any]:
        return (
            tuple(getattr(self, name) for name in data_names),
            tuple(getattr(self, name) for name in static_names),
        )

    def unflatten(aux: Any, children: Any) -> T:
        self = object.__new__(cls)
        for name, value in zip(data_names, children, strict=True):
            object.__setattr__(self, name, value)
        for name, value in zip(static_names, aux, strict=True):
            object.__setattr__(self, name, value)
        return self

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def replace[T](instance: T, **changes: Any) -> T:
    """Return a copy of a struct with fields changed (checked like a new one).

    Examples
    --------
    >>> import jax.numpy as jnp, pgm_energy as pgm
    >>> rbm = pgm.RBM(weights=jnp.zeros((3, 2)))
    >>> pgm.replace(rbm, visible_bias=jnp.ones(3)).visible_bias.tolist()
    [1.0, 1.0, 1.0]
    """
    return dataclasses.replace(instance, **changes)  # type: ignore[type-var]
