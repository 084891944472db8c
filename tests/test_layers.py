"""The floors of the package: imports go down only, and importing it touches nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import networkx as nx
import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "pgm_energy"

#: Floors from the ground up. A module imports what lies on lower floors, and on its own as long
#: as nothing goes round in circles; ``models`` and ``kernels`` do not know each other.
FLOORS = [
    {"_struct", "_guards", "_spin_distribution", "_readers", "datasets"},
    {"_random", "_batching", "_interrupts", "_progress", "_tables"},
    {"sites"},
    {"natural", "configurations", "general_position", "numpyro_model"},
    {"identity"},
    {"probe"},
    {"energy"},
    {
        "_checks",
        "_data",
        "batch_means",
        "observables",
        "colouring",
        "structure",
        "transforms",
        "pairwise",
    },
    {"models", "kernels", "exact_law", "enumeration", "serialization"},
    {"normalization", "partition", "evaluation", "pseudo_likelihood", "learning", "fitted_base"},
    {"infer"},
    {
        "predict",
        "_chain_run",
        "moments",
        "conditional",
        "convergence",
        "diagnostics",
        "comparison",
        "plots",
        "report",
        "testing",
    }
    | {"_timed_run", "_verdicts"},
    {"_jobs", "_options", "_training", "cli"},
]
FLOOR = {name: number for number, floor in enumerate(FLOORS) for name in floor}
#: Neighbour library: modules that may import it (the command's jobs hold everything together).
GATES = {
    "arviz": {"convergence", "diagnostics", "comparison", "report", "plots"},
    "matplotlib": {"diagnostics", "comparison", "report", "plots"},
    "optax": {"learning", "_training"},
    "numpyro.infer": {"infer", *FLOORS[-2], *FLOORS[-1]},
    "networkx": {"colouring", "structure"},
    "safetensors": {"serialization"},
}

FILES = sorted(PACKAGE.rglob("*.py"))


def part(path):
    """First-level name of a module: ``kernels`` for kernels/gibbs.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """(module, whether only for type checkers) of every import, also inside functions."""
    tree = ast.parse(path.read_text())
    hints = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            hints |= set(ast.walk(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node in hints
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import of {node.module}"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node in hints


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    own = part(path)
    if path == PACKAGE / "__init__.py":
        return
    assert own in FLOOR, f"give {own} a floor in this test and in DESIGN"
    for module, only_hints in imports(path):
        names = module.split(".")
        if names[0] != "pgm_energy" or only_hints:
            continue
        if names[1] not in FLOOR:  # the package's own top
            assert FLOOR[own] >= FLOOR["report"], f"{own} imports {module}"
        else:
            assert FLOOR[names[1]] <= FLOOR[own], f"{own} imports {module} from a floor above"


def test_nothing_goes_round_in_circles():
    names = {path: ".".join(["pgm_energy", *path.relative_to(PACKAGE).parts]) for path in FILES}
    names = {n.removesuffix(".py").removesuffix(".__init__"): p for p, n in names.items()}
    graph = nx.DiGraph()
    for name, path in names.items():
        for module, only_hints in imports(path):
            # ``from a.b import c`` may mean the module a.b.c or a name in a.b
            target = next((m for m in (module, module.rpartition(".")[0]) if m in names), None)
            if target and target != name and not only_hints and target != "pgm_energy":
                graph.add_edge(name, target)
    graph.remove_nodes_from([n for n in graph if n == "pgm_energy"])
    assert nx.is_directed_acyclic_graph(graph), nx.find_cycle(graph)


def test_models_and_kernels_do_not_know_each_other():
    for path in FILES:
        if part(path) in {"models", "kernels"}:
            other = {"models": "kernels", "kernels": "models"}[part(path)]
            found = [m for m, _ in imports(path) if m.startswith(f"pgm_energy.{other}")]
            assert not found, f"{path.name} imports {found}"


@pytest.mark.parametrize("library", GATES)
def test_one_gate_per_neighbour(library):
    for path in FILES:
        if part(path) in GATES[library]:
            continue
        found = [m for m, _ in imports(path) if (m + ".").startswith(library + ".")]
        assert not found, f"{path.relative_to(PACKAGE)} imports {found}"


def test_no_private_names_of_a_neighbour_library_and_no_pickle():
    for path in FILES:
        for module, _ in imports(path):
            names = module.split(".")
            if names[0] == "pgm_energy":
                continue
            assert not any(name.startswith("_") for name in names if name != "__future__"), module
            assert names[0] not in {"pickle", "dill", "cloudpickle", "shelve", "marshal"}, module


def test_import_touches_nothing():
    code = """
import sys, logging, warnings
import jax, numpyro, optax
filters = list(warnings.filters)
before = dict(jax.config.values)
handlers = list(logging.getLogger().handlers)
import pgm_energy
assert dict(jax.config.values) == before, "jax config"
assert list(warnings.filters) == filters, "warning filters"
assert list(logging.getLogger().handlers) == handlers, "root logger"
loaded = {"arviz", "matplotlib", "sklearn", "typer"} & set(sys.modules)
assert not loaded, f"imported {loaded}"
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized(), "a backend was initialised"
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert done.returncode == 0, done.stderr


def test_public_names_are_importable_and_documented():
    import inspect

    import pgm_energy as pgm

    names = [name for name in getattr(pgm, "__all__", dir(pgm)) if not name.startswith("_")]
    assert len(names) > 15
    for name in names:
        value = getattr(pgm, name)
        if inspect.ismodule(value):
            continue
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"{name} has no docstring"
