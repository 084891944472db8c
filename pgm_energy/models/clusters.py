"""k-means++ and random centres for the starts of mixtures."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from pgm_energy._struct import Key

__all__ = ["cluster"]

_LLOYD_STEPS = 10


@functools.partial(jax.jit, static_argnames=("num_clusters", "careful"))
def cluster(
    rng_key: Key, rows: jax.Array, row_weights: jax.Array, num_clusters: int, careful: bool = True
) -> jax.Array:
    """Return one-hot memberships ``(N, K)`` of rows ``(N, D)`` from k-means++ and a few rounds.

    Parameters
    ----------
    rng_key
        A JAX random key.
    rows
        Real rows.
    row_weights
        Weights of the rows, not negative.
    num_clusters
        Number of clusters.
    careful
        If False, the centres are different rows drawn at random, and stay.

    Notes
    -----
    A centre that loses all its rows stays where it was. Cost: ``N K D`` per round.

    References
    ----------
    D. Arthur and S. Vassilvitskii (2007), k-means++: the advantages of careful seeding.
    """
    if not careful:
        noise = jax.random.gumbel(rng_key, row_weights.shape, rows.dtype)
        chosen = jax.lax.top_k(jnp.log(row_weights) + noise, num_clusters)[1]
        return _nearest(rows, rows[chosen])
    centres = _seeds(rng_key, rows, row_weights, num_clusters)

    def lloyd(_: jax.Array, centres: jax.Array) -> jax.Array:
        member = row_weights[:, None] * _nearest(rows, centres)
        mass = jnp.sum(member, axis=0)[:, None]
        return jnp.where(mass > 0, member.T @ rows / jnp.where(mass > 0, mass, 1.0), centres)

    return _nearest(rows, jax.lax.fori_loop(0, _LLOYD_STEPS, lloyd, centres))


def _seeds(rng_key: Key, rows: jax.Array, row_weights: jax.Array, num_clusters: int) -> jax.Array:
    """Centres drawn one by one, each with probability proportional to its squared distance."""
    keys = jax.random.split(rng_key, num_clusters)
    first = jax.random.categorical(keys[0], jnp.log(row_weights))
    centres = jnp.broadcast_to(rows[first], (num_clusters, rows.shape[1]))
    distance = jnp.sum((rows - rows[first]) ** 2, axis=1)

    def draw(k: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        centres, distance = carry
        mass = row_weights * distance
        # all rows lie on centres already: any row will do
        mass = jnp.where(jnp.sum(mass) > 0, mass, row_weights)
        row = rows[jax.random.categorical(keys[k], jnp.log(mass))]
        nearer = jnp.minimum(distance, jnp.sum((rows - row) ** 2, axis=1))
        return centres.at[k].set(row), nearer

    return jax.lax.fori_loop(1, num_clusters, draw, (centres, distance))[0]


def _nearest(rows: jax.Array, centres: jax.Array) -> jax.Array:
    score = rows @ centres.T - 0.5 * jnp.sum(centres**2, axis=1)
    return jax.nn.one_hot(jnp.argmax(score, axis=1), centres.shape[0], dtype=rows.dtype)
