"""Small models with fixed parameters that several test files share."""

import itertools

import jax.numpy as jnp
import numpy as np
from jax import Array

import pgm_energy as pgm

FAMILIES = {
    "binary": pgm.Binary,
    "spin": pgm.Spin,
    "categorical": pgm.Categorical,
    "real": pgm.Real,
}
PAIRS = list(itertools.product(FAMILIES, repeat=2))
NUM_STATES = 3


def rbm(visible="binary", hidden="binary", sizes=(3, 2), scale=0.7, seed=0):
    """An RBM of two families; real-real couplings are weak enough to be normalised."""
    rng = np.random.default_rng(seed)
    left, right = (
        (n, NUM_STATES) if family == "categorical" else (n,)
        for n, family in zip(sizes, (visible, hidden), strict=True)
    )
    precision = {
        f"{role}_precision": jnp.asarray(rng.uniform(1.5, 3.0, n))
        for role, family, n in zip(("visible", "hidden"), (visible, hidden), sizes, strict=True)
        if family == "real"
    }
    if visible == hidden == "real":
        scale = 0.3
    return pgm.RBM(
        weights=jnp.asarray(rng.normal(scale=scale, size=left + right)),
        visible_bias=jnp.asarray(rng.normal(scale=0.5, size=left)),
        hidden_bias=jnp.asarray(rng.normal(scale=0.5, size=right)),
        visible=FAMILIES[visible],
        hidden=FAMILIES[hidden],
        **precision,
    )


def machine(num=5, unit=pgm.Binary, num_hidden=0, scale=0.6, seed=1):
    """A dense Boltzmann machine."""
    rng = np.random.default_rng(seed)
    weights = np.triu(rng.normal(scale=scale, size=(num, num)), 1).astype(np.float32)
    return pgm.BoltzmannMachine(
        weights=jnp.asarray(weights + weights.T),
        bias=jnp.asarray(rng.normal(scale=0.5, size=num)),
        num_hidden=num_hidden,
        unit=unit,
    )


@pgm.struct
class Mixed(pgm.EnergyModel):
    """Three families that no class of the library combines; the precision depends on ``z``.

    Written ``affine`` in the one-hot ``z``, or with products of it that are the same at its states.
    """

    logits: Array
    means: Array
    precisions: Array
    weights: Array
    field: Array
    affine: bool = pgm.static(default=True)

    @property
    def sites(self):
        num_states, num_real = self.means.shape
        return {
            "b": pgm.Binary(self.weights.shape[0]),
            "z": pgm.Categorical(num_states, ()),
            "x": pgm.Real(num_real),
        }

    def energy(self, b, z, x):
        if self.affine:
            quadratic = z @ jnp.sum(0.5 * self.precisions * (x - self.means) ** 2, axis=-1)
        else:
            quadratic = 0.5 * jnp.sum((z @ self.precisions) * (x - z @ self.means) ** 2)
        return quadratic - z @ self.logits - b @ self.weights @ z - b @ self.field @ x


def mixed(seed=2, affine=True):
    rng = np.random.default_rng(seed)
    return Mixed(
        logits=rng.normal(size=3),
        means=0.7 * rng.normal(size=(3, 2)),
        precisions=rng.uniform(0.5, 2.0, size=(3, 2)),
        weights=rng.normal(size=(2, 3)),
        field=0.5 * rng.normal(size=(2, 2)),
        affine=affine,
    )


def random_values(model, seed=0, num=()):
    """Raw values of every site, with leading dimensions ``num``."""
    rng = np.random.default_rng(seed)
    num = (num,) if isinstance(num, int) else num
    values = {}
    for name, site in model.sites.items():
        shape = num + site.shape
        if isinstance(site, pgm.Real):
            values[name] = jnp.asarray(rng.normal(size=shape), jnp.float32)
        else:
            values[name] = jnp.asarray(rng.choice(site.states, shape))
    return values
