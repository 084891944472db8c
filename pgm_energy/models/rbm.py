"""Restricted Boltzmann machines, with any combination of unit families."""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from pgm_energy._struct import Key, Parameter, is_concrete, replace, static, struct
from pgm_energy.energy import EnergyModel
from pgm_energy.natural import Natural, Values, select
from pgm_energy.sites import Binary, Categorical, Real, Site, Spin

__all__ = ["RBM"]

_FAMILIES = (Binary, Spin, Categorical, Real)


def _family(value: Any, role: str) -> Any:
    """Family of a layer: a class, or an instance whose shape does not matter."""
    family = value if isinstance(value, type) else type(value)
    if family not in _FAMILIES:
        names = ", ".join(f.__name__ for f in _FAMILIES)
        raise TypeError(f"{role} must be one of {names}, got {value!r}")
    return family


@struct
class RBM(EnergyModel):
    """Restricted Boltzmann machine: ``E = -v'Wh - b'v - c'h``, no couplings inside a layer.

    Real units carry their own quadratic term ``1/2 sum_i L_i v_i^2``.

    Parameters
    ----------
    weights
        ``(D, H)``; categorical units add their states: ``(D, K, H)``, ``(D, H, K)`` or
        ``(D, K, H, K)``.
    visible_bias, hidden_bias
        ``(D,)`` or ``(D, K)``, and ``(H,)`` or ``(H, K)``; zero unless given.
    visible_precision, hidden_precision
        L of real units, ``(D,)`` and ``(H,)``; 1 unless given.
    visible, hidden
        Unit families: ``Binary``, ``Spin``, ``Categorical`` or ``Real``.

    Raises
    ------
    ValueError
        On shapes that do not fit, NaN or infinite parameters, a precision that is not positive,
        or real-real couplings whose joint density cannot be normalised.

    Notes
    -----
    Both conditionals factorise; a sweep is two matrix products. Shapes are those of one
    configuration.

    References
    ----------
    P. Smolensky (1986), Information processing in dynamical systems: foundations of harmony
    theory. M. Welling, M. Rosen-Zvi and G. Hinton (2004), Exponential family harmoniums.

    Examples
    --------
    >>> import jax.numpy as jnp, pgm_energy as pgm
    >>> rbm = pgm.RBM(weights=jnp.zeros((6, 4)), hidden=pgm.Spin)
    >>> {name: site.family for name, site in rbm.sites.items()}
    {'v': 'binary', 'h': 'spin'}
    """

    weights: Parameter
    visible_bias: Parameter = None  # type: ignore[assignment]  # zeros unless given
    hidden_bias: Parameter = None  # type: ignore[assignment]  # zeros unless given
    visible_precision: Parameter | None = None
    hidden_precision: Parameter | None = None
    visible: Any = static(default=Binary)
    hidden: Any = static(default=Binary)

    data_sites = ("v",)

    def validate(self) -> None:
        visible, hidden = _family(self.visible, "visible"), _family(self.hidden, "hidden")
        object.__setattr__(self, "visible", visible)
        object.__setattr__(self, "hidden", hidden)
        weights = self.weights
        wide = 2 + (visible is Categorical) + (hidden is Categorical)
        if weights.ndim != wide or 0 in weights.shape:
            layout = (
                ["D"] + ["K"] * (visible is Categorical) + ["H"] + ["K"] * (hidden is Categorical)
            )
            raise ValueError(
                f"weights of {visible.family} visible and {hidden.family} hidden units have shape "
                f"({', '.join(layout)}), got {weights.shape}"
            )
        left, right = self._layer_shapes()
        for name, shape in (
            ("visible_bias", left),
            ("hidden_bias", right),
            ("visible_precision", left if visible is Real else None),
            ("hidden_precision", right if hidden is Real else None),
        ):
            value = getattr(self, name)
            if shape is None:
                if value is not None:
                    raise ValueError(f"{name} is for real units, the layer has none")
                continue
            if value is None:
                fill = jnp.ones if name.endswith("precision") else jnp.zeros
                object.__setattr__(self, name, fill(shape, weights.dtype))
            elif value.shape != shape:
                raise ValueError(f"{name} has shape {shape}, got {value.shape}")
        self._check_precision()

    def _layer_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        cut = 2 if self.visible is Categorical else 1
        return self.weights.shape[:cut], self.weights.shape[cut:]

    def _check_precision(self) -> None:
        for name in ("visible_precision", "hidden_precision"):
            value = getattr(self, name)
            if value is None or not is_concrete(value):
                continue
            bad = np.flatnonzero(np.asarray(value) <= 0)
            if len(bad):
                raise ValueError(
                    f"{name} must be positive, got {float(value[int(bad[0])])} at index "
                    f"{int(bad[0])}"
                )
        if self.visible is Real and self.hidden is Real and is_concrete(self):
            norm = self._coupling_norm()
            if norm >= 1.0:
                raise ValueError(
                    "the joint density of real visible and real hidden units cannot be "
                    f"normalised: the largest singular value of L_v^-1/2 W L_h^-1/2 is {norm:.4g} "
                    "and must be below 1; weaken the weights or raise the precisions"
                )

    def _coupling_norm(self) -> float:
        """Largest singular value of the whitened couplings of real layers."""
        left = np.sqrt(np.asarray(self.visible_precision, dtype=float))
        right = np.sqrt(np.asarray(self.hidden_precision, dtype=float))
        return float(np.linalg.norm(np.asarray(self.weights, float) / left[:, None] / right, 2))

    @property
    def sites(self) -> dict[str, Site]:
        left, right = self._layer_shapes()
        return {
            "v": _layer_site(self.visible, left, "visible"),
            "h": _layer_site(self.hidden, right, "hidden"),
        }

    def energy(self, v: jax.Array, h: jax.Array) -> jax.Array:
        field = jnp.tensordot(v, self.weights, axes=v.ndim)
        energy = -jnp.sum(field * h) - jnp.sum(self.visible_bias * v)
        energy = energy - jnp.sum(self.hidden_bias * h)
        if self.visible_precision is not None:
            energy = energy + 0.5 * jnp.sum(self.visible_precision * v**2)
        if self.hidden_precision is not None:
            energy = energy + 0.5 * jnp.sum(self.hidden_precision * h**2)
        return energy

    def natural_parameters(
        self, site: str, values: Values, index: jax.Array | None = None
    ) -> Natural:
        """Return the natural parameters of a layer: one matrix product.

        The derivation needs the product too, but also the energy's own; see
        :meth:`EnergyModel.natural_parameters`.
        """
        self.require_sites([site])
        sites = self.sites
        if site == "v":
            bias, precision = self.visible_bias, self.visible_precision
            x = sites["h"].encode(values["h"])
            eta = bias + jnp.tensordot(self.weights, x, axes=x.ndim)
            other_bias, other_precision = self.hidden_bias, self.hidden_precision
        else:
            bias, precision = self.hidden_bias, self.hidden_precision
            x = sites["v"].encode(values["v"])
            eta = bias + jnp.tensordot(x, self.weights, axes=x.ndim)
            other_bias, other_precision = self.visible_bias, self.visible_precision
        if index is not None:
            eta = select(eta, sites[site], index)
            return Natural(eta, None if precision is None else precision[index])
        rest = -jnp.sum(other_bias * x)
        if other_precision is not None:
            rest = rest + 0.5 * jnp.sum(other_precision * x**2)
        return Natural(eta, precision, rest)

    def project(self) -> Self:
        """Return the nearest valid machine: positive precisions, normalisable couplings."""
        changes: dict[str, jax.Array] = {}
        for name in ("visible_precision", "hidden_precision"):
            value = getattr(self, name)
            if value is not None:
                changes[name] = jnp.maximum(jnp.abs(value), 1e-3)
        if self.visible is Real and self.hidden is Real:
            left = jnp.sqrt(changes["visible_precision"])[:, None]
            right = jnp.sqrt(changes["hidden_precision"])
            norm = jnp.linalg.norm(self.weights / left / right, 2)
            changes["weights"] = self.weights * (0.95 / jnp.maximum(norm, 0.95))
        return replace(self, **changes) if changes else self

    @classmethod
    def init(
        cls,
        rng_key: Key,
        *,
        num_visible: int,
        num_hidden: int,
        data: Any = None,
        visible: Any = Binary,
        hidden: Any = Binary,
        scale: float = 0.01,
    ) -> RBM:
        """Return a machine to start learning from.

        Parameters
        ----------
        rng_key
            A JAX random key.
        num_visible, num_hidden
            Numbers of units.
        data
            Rows ``(N, D)``; visible biases are then set so that the machine without couplings
            has the frequencies (real units: mean and variance) of the data.
        visible, hidden
            Unit families; for categorical units an instance, ``Categorical(K, D)``.
        scale
            Standard deviation of the initial weights.

        References
        ----------
        G. Hinton (2012), A practical guide to training restricted Boltzmann machines, section 8.

        Examples
        --------
        >>> import jax, pgm_energy as pgm
        >>> pgm.RBM.init(jax.random.key(0), num_visible=5, num_hidden=3).weights.shape
        (5, 3)
        """
        layers: list[tuple[Any, tuple[int, ...]]] = []
        for family, count in ((visible, num_visible), (hidden, num_hidden)):
            kind = _family(family, "visible" if not layers else "hidden")
            states: tuple[int, ...] = ()
            if kind is Categorical:
                if isinstance(family, type):
                    raise ValueError(
                        "categorical units need their number of states: give an instance, for "
                        f"example visible=Categorical(3, {count})"
                    )
                states = (family.num_states,)
            layers.append((kind, (count, *states)))
        (visible_kind, left), (hidden_kind, right) = layers
        site = _layer_site(visible_kind, left, "visible")
        bias, precision = data_start(site, data)
        return cls(
            weights=scale * jax.random.normal(rng_key, left + right),
            visible_bias=jnp.zeros(left) if bias is None else bias,
            visible_precision=precision,
            visible=visible_kind,
            hidden=hidden_kind,
        )


def _layer_site(family: Any, shape: tuple[int, ...], dim: str) -> Site:
    if family is Categorical:
        return Categorical(shape[-1], shape[:-1], dims=(dim,))
    return family(shape, dims=(dim,))


def data_start(site: Site, data: Any) -> tuple[jax.Array | None, jax.Array | None]:
    """Return the bias and the precision that give independent units the moments of the data.

    Frequencies are smoothed by one pseudo-row, so constant columns stay finite.
    """
    if data is None:
        return None, None
    rows = np.asarray(data)
    if rows.size == 0 or rows.shape[1:] != site.shape:
        raise ValueError(
            f"data must have at least one row of shape {site.shape}, got shape {rows.shape}"
        )
    finite = (
        rows[~np.isnan(rows).any(axis=tuple(range(1, rows.ndim)))]
        if rows.dtype.kind == "f"
        else rows
    )
    if isinstance(site, Real):
        variance = finite.var(axis=0) + 1e-6
        return jnp.asarray(finite.mean(axis=0) / variance), jnp.asarray(1.0 / variance)
    counts = np.stack([(finite == state).sum(axis=0) for state in site.states], axis=-1)
    smoothed = np.log((counts + 1.0 / len(site.states)) / (len(finite) + 1.0))
    if isinstance(site, Categorical):
        return jnp.asarray(smoothed), None
    logits = smoothed[..., 1] - smoothed[..., 0]
    return jnp.asarray(0.5 * logits if isinstance(site, Spin) else logits), None
