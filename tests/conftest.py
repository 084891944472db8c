"""Fixtures of every test, and run-time checks of the package's shape annotations."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest

ROOT = Path(__file__).resolve().parents[1]

# Before the package is imported, by any test or worker: calls are then checked against their
# annotations, shapes included. Users of the package do not pay for this.
jaxtyping.install_import_hook("pgm_energy", "type_checking.check")

# Before JAX and matplotlib are: the suite's tolerances are for the CPU, and no window may open.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

# Most of the suite's time is compilation: a second run, and a command in a subprocess, reuse it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


# A shell that starts the suite in the background has it ignore Ctrl-C, which some tests press.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _precision(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test with the marker ``x64`` in double precision."""
    if request.node.get_closest_marker("x64") is None:
        yield
        return
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    """Close what a test drew: matplotlib keeps figures, and warns when there are more than 20."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(autouse=True, scope="module")
def _release_executables() -> Iterator[None]:
    """Forget a module's compiled functions, which later modules do not call.

    Each keeps memory mapped, and a process may have 65,530 mappings on Linux: a worker that
    keeps them all crashes towards the end of the suite.
    """
    yield
    import jax

    jax.clear_caches()


@pytest.fixture
def rng_key():
    """Return a typed key, the same for every test."""
    import jax

    return jax.random.key(0)


@pytest.fixture
def annotations_unchecked() -> Iterator[None]:
    """Call the package as its users do, to see its own message for an argument of a wrong type."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of larger data sets, which lies beside the repository; skip without it."""
    folder = Path(os.environ.get("PGM_ENERGY_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data folder {folder} (PGM_ENERGY_DATA names another)")
    return folder
