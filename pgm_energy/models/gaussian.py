"""Mixtures of Gaussians with full, tied, diagonal or spherical covariances."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from pgm_energy._struct import Key, Parameter, is_concrete, replace, static, struct
from pgm_energy.models.covariances import (
    covariance_shape,
    nearest_covariances,
    raise_floor,
    singular,
)
from pgm_energy.models.mixture import (
    WEIGHT_FLOOR,
    Mixture,
    component_site,
    floored_frequencies,
    project_simplex,
    random_weights,
    require_components,
    require_table,
    require_weights,
    start_responsibilities,
    start_rows,
)
from pgm_energy.sites import Real, Site

__all__ = ["GaussianMixture"]

_TYPES = ("full", "tied", "diag", "spherical")
#: Variance floor of a start, as a share of the variance of the data.
_START_FLOOR = 1e-3


@struct
class GaussianMixture(Mixture):
    """Mixture of normal laws: sites ``z`` and ``x``, log Z = 0.

    ``E = -log w_z + (x - m_z)' C_z^-1 (x - m_z) / 2 + log det(2 pi C_z) / 2``.

    Parameters
    ----------
    weights
        ``(K,)``, positive, summing to 1.
    means
        ``(K, D)``.
    covariances
        ``full``: ``(K, D, D)``; ``tied``: ``(D, D)``; ``diag``: variances ``(K, D)``;
        ``spherical``: variances ``(K,)``.
    covariance_type
        One of these four.

    Raises
    ------
    ValueError
        On weights that are not positive or do not sum to 1, covariances that are not symmetric
        or not positive definite, shapes that do not fit, NaN.

    Notes
    -----
    All normalisers are in the energy, so log Z = 0 calibrates every estimator. With full or tied
    covariances ``x`` is one multivariate normal given ``z``, else its units are independent.
    ``marginalize(model, "z")`` is the mixture density, for NUTS. One energy costs ``K D^2``,
    plus ``K D^3`` for the factors, which are shared by all rows that are mapped.

    References
    ----------
    G. McLachlan and D. Peel (2000), Finite mixture models.

    Examples
    --------
    >>> import jax.numpy as jnp, pgm_energy as pgm
    >>> mixture = pgm.GaussianMixture(
    ...     weights=[0.4, 0.6], means=[[-1.0], [1.0]], covariances=[0.25, 0.64],
    ...     covariance_type="spherical")
    >>> float(mixture.known_log_partition)
    0.0
    """

    weights: Parameter
    means: Parameter
    covariances: Parameter
    covariance_type: str = static(default="full")

    data_sites: ClassVar[tuple[str, ...]] = ("x",)

    def validate(self) -> None:
        """Refuse weights off the simplex and covariances that are not positive definite."""
        if self.covariance_type not in _TYPES:
            raise ValueError(
                f"covariance_type must be one of {', '.join(_TYPES)}, got {self.covariance_type!r}"
            )
        require_weights(self.weights)
        count = self.num_components
        if self.means.ndim != 2 or self.means.shape[0] != count or self.means.shape[1] == 0:
            raise ValueError(
                f"means must have shape ({count}, D), one row per weight, got {self.means.shape}"
            )
        shape = covariance_shape(self.covariance_type, count, self.means.shape[1])
        if self.covariances.shape != shape:
            raise ValueError(
                f"{self.covariance_type} covariances must have shape {shape}, "
                f"got {self.covariances.shape}"
            )
        if is_concrete(self.covariances):
            self._check_covariances()

    def _check_covariances(self) -> None:
        values = np.asarray(self.covariances)
        if not self._has_matrices:
            low = np.argwhere(values <= 0)
            if len(low):
                place = tuple(int(i) for i in low[0])
                raise ValueError(
                    f"variances must be positive, got {values[place]:g} at index {place}"
                )
            return
        matrices = values.reshape(-1, *values.shape[-2:])
        even = 0.5 * (matrices + matrices.transpose(0, 2, 1))
        size = np.sqrt(np.abs(np.diagonal(matrices, axis1=1, axis2=2)))
        rounding = 32 * np.finfo(values.dtype).eps * size[:, :, None] * size[:, None, :]
        uneven = np.argwhere(np.abs(matrices - even) > rounding)
        if len(uneven):
            k, i, j = (int(n) for n in uneven[0])
            raise ValueError(
                f"covariances must be symmetric, got {matrices[k, i, j]:g} at ({i}, {j}) and "
                f"{matrices[k, j, i]:g} at ({j}, {i}){self._of(k)}; use 0.5 * (C + C.T)"
            )
        if not np.array_equal(matrices, even):  # the last bits, as products leave them
            object.__setattr__(self, "covariances", jnp.asarray(even.reshape(values.shape)))
        for k, matrix in enumerate(matrices):
            try:
                np.linalg.cholesky(matrix)  # in their own precision, as the energy does
            except np.linalg.LinAlgError:
                smallest = np.linalg.eigvalsh(matrix.astype(np.float64))[0]
                raise ValueError(
                    f"covariances must be positive definite, got a smallest eigenvalue of "
                    f"{smallest:.3g}{self._of(k)}; add a small multiple of the identity"
                ) from None

    def _of(self, component: int) -> str:
        return f" of component {component}" if self.covariance_type == "full" else ""

    @property
    def _has_matrices(self) -> bool:
        return self.covariance_type in ("full", "tied")

    @property
    def sites(self) -> dict[str, Site]:
        """The component ``z`` and the real units ``x``."""
        return {
            "z": component_site(self.weights),
            "x": Real(self.means.shape[1], dims=("feature",), coupled=self._has_matrices),
        }

    def energy(self, z: jax.Array, x: jax.Array) -> jax.Array:
        """Return E(z, x), nats, of a one-hot component and a point."""
        log_norm = self._log_norm()
        if self._has_matrices:
            white = jnp.einsum("...ij,...j->...i", self._whiteners(), x - self.means)
        else:
            white = (x - self.means) * self._whiteners()
        return -z @ (self.log_weights + log_norm - 0.5 * jnp.sum(white**2, axis=-1))

    def _factors(self) -> jax.Array:
        """Lower Cholesky factors, or standard deviations that broadcast against the means."""
        if self._has_matrices:
            return jnp.linalg.cholesky(self.covariances)
        sd = jnp.sqrt(self.covariances)
        return sd if self.covariance_type == "diag" else sd[:, None]

    def _whiteners(self) -> jax.Array:
        """Inverses of the factors: ``W C W' = I``."""
        factors = self._factors()
        if not self._has_matrices:
            return 1.0 / factors
        eye = jnp.broadcast_to(jnp.eye(factors.shape[-1], dtype=factors.dtype), factors.shape)
        return solve_triangular(factors, eye, lower=True)

    def _log_norm(self) -> jax.Array:
        """Minus log det(2 pi C) / 2 of each component, nats."""
        factors = self._factors()
        scales = jnp.diagonal(factors, axis1=-2, axis2=-1) if self._has_matrices else factors
        scales = jnp.broadcast_to(scales, self.means.shape)
        return -jnp.sum(jnp.log(scales), axis=-1) - 0.5 * scales.shape[-1] * math.log(2 * math.pi)

    def log_joint(self, rows: jax.Array) -> jax.Array:
        """Return log w_k + log p_k(x) of rows ``(N, D)``, one component after another."""
        whiteners = self._whiteners()
        if self.covariance_type == "tied":
            whiteners = jnp.broadcast_to(whiteners, (self.num_components, *whiteners.shape))

        def component(args: tuple[jax.Array, jax.Array]) -> jax.Array:
            mean, whitener = args
            delta = rows - mean
            white = delta @ whitener.T if self._has_matrices else delta * whitener
            return -0.5 * jnp.sum(white**2, axis=-1)

        powers = jax.lax.map(component, (self.means, whiteners))
        return self.log_weights + self._log_norm() + powers.T

    def maximize(self, rows: jax.Array, responsibilities: jax.Array, floor: Any) -> Self:
        """Return weighted means and covariances, no variance in any direction below the floor.

        Second moments are taken about the previous means: in float32 moments about the origin
        would lose a narrow component.
        """
        counts = jnp.sum(responsibilities, axis=0)
        safe = jnp.where(counts > 0, counts, 1.0)

        def component(args: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            mean, share, count = args
            delta = rows - mean
            shift = share @ delta / count
            if self._has_matrices:
                second = (delta * share[:, None]).T @ delta / count
                return mean + shift, second - jnp.outer(shift, shift)
            return mean + shift, share @ delta**2 / count - shift**2

        means, moments = jax.lax.map(component, (self.means, responsibilities.T, safe))
        if self.covariance_type == "tied":
            moments = jnp.tensordot(counts, moments, axes=1) / jnp.sum(counts)
        if self.covariance_type == "spherical":
            moments = jnp.mean(moments, axis=-1)
        return replace(
            self,
            weights=floored_frequencies(counts, WEIGHT_FLOOR),
            means=means,
            covariances=raise_floor(moments, self._least(floor), self._has_matrices),
        )

    def _least(self, floor: Any) -> Any:
        """The floor, or what the floating type can factorise if that is more."""
        if not self._has_matrices:
            return floor
        return jnp.maximum(floor, 8.0 * singular(self.covariances))

    def with_floor(self, floor: Any) -> Self:
        """Return the mixture with no variance in any direction below the floor."""
        raised = raise_floor(self.covariances, self._least(floor), self._has_matrices)
        return replace(self, covariances=raised)

    def restart(self, rng_key: Key, rows: jax.Array, row_weights: jax.Array) -> Self:
        """Return a fresh start from k-means++ of rows ``(N, D)``."""
        member = start_responsibilities(rng_key, rows, row_weights, self.num_components, 0.0)
        return self.maximize(rows, member, _START_FLOOR)

    def standardizer(
        self, rows: np.ndarray, row_weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean and the scale of each column (one scale for all if spherical).

        A constant column has no scale of its own and gets that of the others.
        """
        rows = np.asarray(rows, dtype=np.float64)
        shift = np.average(rows, axis=0, weights=row_weights)
        variance = np.average((rows - shift) ** 2, axis=0, weights=row_weights)
        # what rounding leaves of a constant column is no variance
        variance[variance <= (1e-12 * np.abs(shift)) ** 2] = 0.0
        moving = variance > 0
        common = variance[moving].mean() if moving.any() else 1.0
        if self.covariance_type == "spherical":
            return shift, np.full(len(shift), math.sqrt(common))
        return shift, np.sqrt(np.where(moving, variance, common))

    def affine(self, shift: Any, scale: Any) -> Self:
        """Return the law of ``(x - shift) / scale``, column by column."""
        shift, scale = jnp.asarray(shift), jnp.asarray(scale)
        match self.covariance_type:
            case "diag":
                square = scale**2
            case "spherical":
                square = scale[0] ** 2
            case _:
                square = jnp.outer(scale, scale)
        kind = self.means.dtype
        return replace(
            self,
            means=((self.means - shift) / scale).astype(kind),
            covariances=(self.covariances / square).astype(kind),
        )

    def at_floor(self, floor: float) -> np.ndarray:
        """Return which components have a variance, in some direction, at the floor."""
        values = np.asarray(self.covariances, dtype=np.float64)
        if self._has_matrices:
            values = np.linalg.eigvalsh(values)
        if self.covariance_type == "spherical":
            values = values[:, None]
        noise = 2.0 * float(jnp.finfo(self.covariances.dtype).eps) * values.max(axis=-1)
        low = values.min(axis=-1) <= 1.05 * float(self._least(floor)) + noise
        return np.broadcast_to(low, (self.num_components,))

    def project(self) -> Self:
        """Return a near mixture: weights on the simplex, covariances symmetric and positive."""
        return replace(
            self,
            weights=project_simplex(self.weights, WEIGHT_FLOOR),
            covariances=nearest_covariances(self.covariances, self._has_matrices),
        )

    def generic(self, rng_key: Key) -> Self:
        """Return random weights, means and well-conditioned covariances."""
        first, second, third = jax.random.split(rng_key, 3)
        kind = jnp.result_type(float)
        if self._has_matrices:
            root = jax.random.normal(third, self.covariances.shape, kind)
            size = root.shape[-1]
            covariances = root @ jnp.swapaxes(root, -1, -2) / size + jnp.eye(size)
            covariances = 0.5 * (covariances + jnp.swapaxes(covariances, -1, -2))
        else:
            covariances = jax.random.uniform(
                third, self.covariances.shape, kind, minval=0.5, maxval=2.0
            )
        return replace(
            self,
            weights=random_weights(first, self.num_components),
            means=jax.random.normal(second, self.means.shape, kind),
            covariances=covariances,
        )

    @classmethod
    def init(
        cls,
        rng_key: Key,
        *,
        num_components: int,
        data: Any,
        covariance_type: str = "full",
    ) -> GaussianMixture:
        """Return a start from k-means++ of the data.

        Parameters
        ----------
        rng_key
            A JAX random key.
        num_components
            Number of components.
        data
            Rows ``(N, D)``.
        covariance_type
            ``full``, ``tied``, ``diag`` or ``spherical``.

        Raises
        ------
        ValueError
            On NaN or infinite data, with their place; on fewer rows than components.

        Examples
        --------
        >>> import jax, numpy as np, pgm_energy as pgm
        >>> rows = np.random.default_rng(0).normal(size=(50, 2))
        >>> pgm.GaussianMixture.init(jax.random.key(0), num_components=3, data=rows).means.shape
        (3, 2)
        """
        count = require_components(num_components)
        table = require_table(data)
        start_rows(Real(table.shape[1]), "x", table, count)  # refuses what is no data
        if covariance_type not in _TYPES:
            raise ValueError(
                f"covariance_type must be one of {', '.join(_TYPES)}, got {covariance_type!r}"
            )
        width = table.shape[1]
        shape = covariance_shape(covariance_type, count, width)
        matrices = covariance_type in ("full", "tied")
        unit = jnp.broadcast_to(jnp.eye(width), shape) if matrices else jnp.ones(shape)
        blank = cls(
            weights=jnp.full(count, 1.0 / count),
            means=jnp.zeros((count, width)),
            covariances=unit,
            covariance_type=covariance_type,
        )
        even = np.ones(len(table))
        shift, scale = blank.standardizer(table, even)
        rows = jnp.asarray((table - shift) / scale, dtype=jnp.result_type(float))
        start = blank.restart(rng_key, rows, jnp.ones(len(rows), rows.dtype))
        return start.affine(-shift / scale, 1.0 / scale)
