"""Mixtures of Gaussians with full, tied, diagonal or spherical covariances."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from pgm_energy._struct import Key, Parameter, is_concrete, replace, static, struct
from pgm_energy.models import normal_moments, normal_prior, normal_products
from pgm_energy.models.covariances import (
    covariance_shape,
    inverse_factors,
    nearest_covariances,
    raise_floor,
    require_positive,
    singular,
    standardizer,
)
from pgm_energy.models.mixture import (
    WEIGHT_FLOOR,
    Frame,
    Mixture,
    component_site,
    first_start,
    floored_frequencies,
    project_simplex,
    random_weights,
    reframed,
    require_components,
    require_table,
    require_weights,
    start_rows,
)
from pgm_energy.models.normal_moments import NormalMoments, Normals
from pgm_energy.models.normal_prior import NormalPrior
from pgm_energy.models.prior import MixturePrior
from pgm_energy.sites import Real, Site

__all__ = ["GaussianMixture"]

_TYPES = ("full", "tied", "diag", "spherical")


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
            values = np.asarray(self.covariances)
            checked = require_positive(values, self._has_matrices, self.covariance_type == "full")
            if checked is not values:  # the last bits, as products leave them
                object.__setattr__(self, "covariances", jnp.asarray(checked))

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

    @property
    def num_parameters(self) -> int:
        """K - 1 weights, K D means, and the free entries of the covariances."""
        width = self.means.shape[1]
        free = self.covariances.size
        if self._has_matrices:
            free = free * (width + 1) // (2 * width)
        return self.num_components - 1 + self.means.size + free

    def _normals(self) -> Normals:
        """The components as an E-step needs them."""
        covariances, factors = self.covariances, self._factors()
        if self.covariance_type == "tied":
            covariances, factors = covariances[None], factors[None]
        elif self.covariance_type == "spherical":
            shape = self.means.shape
            covariances = jnp.broadcast_to(covariances[:, None], shape)
            factors = jnp.broadcast_to(factors, shape)
        whiteners = inverse_factors(factors) if self._has_matrices else 1.0 / factors
        return Normals(self.log_weights, self.means, covariances, whiteners)

    def scores(self, rows: Any, fast: bool = False) -> jax.Array:
        """Return log w_k + log p_k(x), nats, ``(K, N)``."""
        return (normal_products if fast else normal_moments).scores(self._normals(), rows)

    def moments(self, rows: Any, share: jax.Array, fast: bool = False) -> NormalMoments:
        """Return masses, sums and sums of squares, about the means (``fast``: the origin)."""
        return (normal_products if fast else normal_moments).moments(self._normals(), rows, share)

    def rebased(self, moments: NormalMoments, start: Any) -> NormalMoments:
        """Return moments about these means that were about those of ``start``, or the origin."""
        origin = jnp.zeros_like(self.means) if start is None else start.means
        return normal_moments.rebased(moments, self.means - origin)

    def maximize(self, moments: NormalMoments, floor: Any, prior: NormalPrior) -> Self:
        """Return weighted means and covariances, no variance in any direction below the floor.

        A component without rows, and without a prior, stays where it was.
        """
        means, second = normal_prior.most_likely(
            self.means, self.covariances, self.covariance_type, moments, prior
        )
        return replace(
            self,
            weights=floored_frequencies(moments.mass + prior.weight_rows, WEIGHT_FLOOR),
            means=means,
            covariances=raise_floor(second, floor, self._has_matrices),
        )

    def resolve_prior(self, prior: MixturePrior, frame: Frame | None) -> NormalPrior:
        """Return the prior in a frame, with what was left to the data filled in."""
        width = self.means.shape[1]
        return normal_prior.resolve(
            prior, type(self).__name__, self.num_components, width, self._has_matrices, frame
        )

    def log_prior(self, prior: NormalPrior) -> jax.Array:
        """Return the log-density of the Dirichlet, normal and inverse Wishart laws."""
        return normal_prior.log_density(self._normals(), self.covariance_type, prior)

    def can_be_fast(self) -> bool:
        """Whether there are few enough columns for products with their squares."""
        return self.means.shape[1] <= normal_products.MAX_COLUMNS

    def magnitude(self) -> jax.Array:
        """Return the size, nats, of terms that cancel in fast scores."""
        return normal_products.magnitude(self._normals())

    def floats_per_row(self, partial: bool = False, fast: bool = False) -> int:
        """Return how many numbers a row takes on its way through an E-step."""
        count, width = self.means.shape
        if fast:
            full = self.covariance_type == "full"
            features = normal_products.num_features(full, width)
            return 3 * count + features + width + (count * width if full else 0)
        if partial and self._has_matrices:
            return 3 * self.covariances.size + 4 * count * width
        return 3 * count * (width + 1)

    def least_floor(self, floor: float, kind: Any) -> float:
        """Return the floor, or what the floating type can factorise if that is more."""
        if not self._has_matrices:
            return floor
        return max(floor, 8.0 * singular(self.means.shape[1], kind))

    def with_floor(self, floor: Any) -> Self:
        """Return the mixture with no variance in any direction below the floor."""
        raised = raise_floor(self.covariances, floor, self._has_matrices)
        return replace(self, covariances=raised)

    def blank(self) -> Self:
        """Return a mixture of standard normal laws."""
        unit = jnp.ones_like(self.covariances)
        if self._has_matrices:
            unit = unit * jnp.eye(self.means.shape[1], dtype=unit.dtype)
        weights = jnp.full_like(self.weights, 1.0 / self.num_components)
        return replace(self, weights=weights, means=jnp.zeros_like(self.means), covariances=unit)

    def standardizer(self, rows: np.ndarray, row_weights: np.ndarray) -> Frame:
        """Return the mean and the scale of each column (one scale for all if spherical)."""
        return standardizer(rows, row_weights, self.covariance_type == "spherical")

    def own_frame(self) -> Frame:
        """Return the mean and the standard deviations of the mixture itself."""
        weights, means = (np.asarray(x, np.float64) for x in (self.weights, self.means))
        covariances = np.asarray(self.covariances, np.float64)
        if self._has_matrices:
            covariances = np.diagonal(covariances, axis1=-2, axis2=-1)
        elif self.covariance_type == "spherical":
            covariances = covariances[:, None]
        shift = weights @ means
        spread = np.broadcast_to(covariances, means.shape) + (means - shift) ** 2
        variances = weights @ spread
        if self.covariance_type == "spherical":
            variances = np.full(len(shift), variances.mean())
        return shift, np.sqrt(variances)

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

    def at_floor(self, floor: float, kind: Any) -> np.ndarray:
        """Return which components have a variance, in some direction, at the floor."""
        values = np.asarray(self.covariances, dtype=np.float64)
        if self._has_matrices:
            values = np.linalg.eigvalsh(values)
        if self.covariance_type == "spherical":
            values = values[:, None]
        noise = 2.0 * float(jnp.finfo(kind).eps) * values.max(axis=-1)
        low = values.min(axis=-1) <= 1.05 * floor + noise
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
        missing: bool = False,
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
        missing
            Whether NaN may stand for values that are not known.

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
        start_rows(Real(table.shape[1]), "x", table, count, missing)
        if covariance_type not in _TYPES:
            raise ValueError(
                f"covariance_type must be one of {', '.join(_TYPES)}, got {covariance_type!r}"
            )
        width = table.shape[1]
        shape = covariance_shape(covariance_type, count, width)
        matrices = covariance_type in ("full", "tied")
        kind = jnp.result_type(float)
        unit = np.eye(width, dtype=kind) if matrices else np.ones((), kind)
        blank = cls(
            weights=jnp.full(count, 1.0 / count, kind),
            means=jnp.zeros((count, width), kind),
            covariances=jnp.asarray(np.broadcast_to(unit, shape)),
            covariance_type=covariance_type,
        )
        shift, scale = blank.standardizer(table, np.ones(len(table)))
        rows = ((table - shift) / scale).astype(kind)
        start = first_start(rng_key, blank, rows, missing)
        return reframed(start, -shift / scale, 1.0 / scale)
