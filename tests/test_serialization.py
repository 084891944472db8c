"""Model files: everything comes back to the last bit, nothing else is accepted."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import pgm_energy as pgm


@pgm.struct
class Clamped(pgm.EnergyModel):
    """A model of a user's own, with every kind of static field."""

    weights: jax.Array
    extra: dict[str, jax.Array]
    family: pgm.Spin = pgm.static()
    size: int = pgm.static(default=3)
    scale: float = pgm.static(default=0.1)
    name: str = pgm.static(default="own")
    flag: bool = pgm.static(default=True)
    nothing: None = pgm.static(default=None)
    pairs: object = pgm.static(default=())

    @property
    def sites(self):
        return {"v": self.family}

    def energy(self, v):
        return -self.scale * jnp.sum(self.weights * v) - jnp.sum(self.extra["a"])


def own():
    return Clamped(
        weights=jnp.arange(3.0),
        extra={"a": jnp.ones((2, 2)), "b": jnp.zeros(())},
        family=pgm.Spin(3, dims=("place",)),
        pairs=(np.int64(4), ("x", 1.5), None),
    )


def models():
    key = jax.random.key(0)
    rows = np.random.default_rng(0).normal(size=(20, 2))
    rbm = pgm.RBM.init(key, num_visible=4, num_hidden=3, hidden=pgm.Spin)
    yield "rbm", rbm
    yield (
        "potts-rbm",
        pgm.RBM.init(
            key, num_visible=4, num_hidden=3, visible=pgm.Categorical(5, 4), hidden=pgm.Real
        ),
    )
    yield "bm", pgm.BoltzmannMachine.init(key, num_visible=4, num_hidden=2)
    yield "lattice", pgm.ising_lattice((3, 4), coupling=0.3, periodic=(True, False))
    yield "potts", pgm.PottsMachine.init(key, num_visible=3, num_states=4)
    for kind in ("full", "tied", "diag", "spherical"):
        yield (
            kind,
            pgm.GaussianMixture.init(key, num_components=2, data=rows, covariance_type=kind),
        )
    yield "bernoulli", pgm.BernoulliMixture.init(key, num_components=2, data=rows > 0)
    yield (
        "categorical",
        pgm.CategoricalMixture.init(key, num_components=2, data=(rows > 0).astype(int)),
    )
    yield "independent", pgm.Independent.like(rbm)
    yield "conditioned", pgm.condition(rbm, v=np.array([1.0, 0.0, np.nan, 1.0]))
    yield "tempered", pgm.temper(pgm.Independent.like(rbm), rbm, 0.25)
    yield "marginal", pgm.marginalize(rbm, "h")
    yield "own", own()


@pytest.mark.parametrize("name", [name for name, _ in models()])
def test_round_trip_keeps_every_bit(name, tmp_path, rng_key):
    model = dict(models())[name]
    path = tmp_path / "model.safetensors"
    pgm.save(model, path)
    again = pgm.load(path)
    assert type(again) is type(model)
    assert jax.tree.structure(again) == jax.tree.structure(model)
    for ours, theirs in zip(jax.tree.leaves(model), jax.tree.leaves(again), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    sites = model.sites
    values = {
        k: jnp.full(s.shape, s.states[0] if s.is_discrete else 0.5, s.dtype)
        for k, s in sites.items()
    }
    assert again.sites == sites
    assert float(again.log_density(values)) == float(model.log_density(values))
    assert os.listdir(tmp_path) == ["model.safetensors"]  # no temporary file is left


@pytest.mark.x64
def test_double_precision_is_kept(tmp_path):
    model = pgm.RBM(weights=jnp.full((2, 2), 1.0 / 3.0))
    pgm.save(model, tmp_path / "m")
    assert pgm.load(tmp_path / "m").weights.dtype == jnp.float64
    with jax.enable_x64(False):
        assert pgm.load(tmp_path / "m").weights.dtype == jnp.float32


def test_file_says_what_it_holds(tmp_path):
    path = tmp_path / "m.safetensors"
    pgm.save(pgm.RBM(weights=jnp.ones((3, 2))), path)
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["__metadata__"]["class"] == "pgm_energy.models.rbm:RBM"
    assert header["__metadata__"]["format_version"] == "1"
    assert header["weights"]["shape"] == [3, 2]


def test_an_existing_file_is_replaced_or_left_whole(tmp_path, monkeypatch):
    path = tmp_path / "m"
    pgm.save(pgm.RBM(weights=jnp.ones((3, 2))), path)
    before = path.read_bytes()

    def fail(*args):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk is full"):
        pgm.save(pgm.RBM(weights=jnp.zeros((3, 2))), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m"]
    monkeypatch.undo()
    pgm.save(pgm.RBM(weights=jnp.zeros((3, 2))), path)
    assert float(pgm.load(path).weights.sum()) == 0.0


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "m"
    pgm.save(pgm.RBM(weights=jnp.ones((3, 2))), path)
    content = path.read_bytes()
    for length in (0, 4, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"no model file, or a truncated one"):
            pgm.load(path)


def edited(path, **metadata):
    """A file with some metadata changed."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        old = file.metadata()
    save_file(tensors, path, metadata={**old, **metadata})


RBM = "pgm_energy.models.rbm:RBM"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": "somebody"}, "safetensors file of another program"),
        ({"format_version": "2"}, "format version 2, this pgm_energy reads version 1"),
        ({"model": "{"}, "damaged: its description cannot be read"),
        ({"model": "[]"}, "damaged: its description cannot be read"),
        ({"model": '{"class": "a:B", "fields": {}}'}, "class B from module a, which has not been"),
        ({"model": f'{{"class": "{RBM}", "fields": {{}}}}'}, r"holds fields \[\] of RBM"),
    ],
)
def test_other_files_are_refused(change, message, tmp_path):
    path = tmp_path / "m"
    pgm.save(pgm.RBM(weights=jnp.ones((3, 2))), path)
    edited(path, **change)
    with pytest.raises(ValueError, match=message):
        pgm.load(path)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    save_file({"weights": np.ones((3, 2))}, tmp_path / "m")
    with pytest.raises(ValueError, match="of another program"):
        pgm.load(tmp_path / "m")


def test_exchanged_tensors_are_refused(tmp_path):
    from safetensors import safe_open

    path = tmp_path / "m"
    pgm.save(pgm.RBM(weights=jnp.ones((3, 2))), path)
    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    save_file({**tensors, "weights": np.ones((2, 2), np.float32)}, path, metadata=metadata)
    with pytest.raises(ValueError, match=r"'weights' should be float32 of shape \(3, 2\)"):
        pgm.load(path)


def test_parameters_that_are_not_valid_are_refused(tmp_path):
    from safetensors import safe_open

    path = tmp_path / "m"
    pgm.save(pgm.RBM(weights=jnp.ones((3, 2))), path)
    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    tensors["weights"] = np.full((3, 2), np.nan, np.float32)
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(ValueError, match=r"no valid RBM: .* must be finite, got nan"):
        pgm.load(path)


def test_an_expected_class_is_checked(tmp_path, annotations_unchecked):
    path = tmp_path / "m"
    pgm.save(pgm.RBM(weights=jnp.ones((3, 2))), path)
    assert isinstance(pgm.load(path, cls=pgm.RBM), pgm.RBM)
    with pytest.raises(ValueError, match=r"class .*:RBM, not BoltzmannMachine"):
        pgm.load(path, cls=pgm.BoltzmannMachine)
    with pytest.raises(TypeError, match="cls must be a class of energy models"):
        pgm.load(path, cls=dict)


def test_a_class_of_ones_own_that_moved_is_passed(tmp_path):
    path = tmp_path / "m"
    pgm.save(own(), path)
    model = json.loads(_metadata(path)["model"])
    model["class"] = "somewhere.before:Clamped"
    edited(path, model=json.dumps(model))
    with pytest.raises(ValueError, match=r"import it first, or pass load\(path, cls=Clamped\)"):
        pgm.load(path)
    assert isinstance(pgm.load(path, cls=Clamped), Clamped)


def _metadata(path):
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return file.metadata()


def test_the_last_definition_of_a_class_is_used(tmp_path):
    def define():
        @pgm.struct
        class Again(pgm.EnergyModel):
            weights: jax.Array

            @property
            def sites(self):
                return {"v": pgm.Binary(2)}

            def energy(self, v):
                return -self.weights @ v

        return Again

    first, second = define(), define()
    pgm.save(first(weights=jnp.ones(2)), tmp_path / "m")
    assert type(pgm.load(tmp_path / "m")) is second


def test_what_cannot_be_saved_is_refused(tmp_path, annotations_unchecked):
    class Plain(pgm.EnergyModel):
        sites = {"v": pgm.Binary(2)}  # noqa: RUF012

        def energy(self, v):
            return -v.sum()

    with pytest.raises(TypeError, match="takes an energy model, got dict"):
        pgm.save({}, tmp_path / "m")
    with pytest.raises(TypeError, match="Plain cannot be saved"):
        pgm.save(Plain(), tmp_path / "m")
    with pytest.raises(TypeError, match="field 'pairs' holds function, which a model file"):
        pgm.save(pgm.replace(own(), pairs=edited), tmp_path / "m")
    with pytest.raises(TypeError, match="outside of jit"):
        jax.jit(lambda m: pgm.save(m, tmp_path / "m"))(pgm.RBM(weights=jnp.ones((3, 2))))
    assert os.listdir(tmp_path) == []


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no model file"):
        pgm.load(tmp_path / "m")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        pgm.save(pgm.RBM(weights=jnp.ones((3, 2))), tmp_path / "a" / "m")
