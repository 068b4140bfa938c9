"""How the package is built: who imports whom, where libraries are used, what every system has."""

import ast
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "rag_jax"
# From the top. A module imports from its own package and from lower floors.
FLOORS = (
    ("commands",),
    ("comparison", "serving"),
    ("systems",),
    ("pipeline", "planning"),
    ("retrieval", "evaluation"),
    ("training", "decoding"),
    ("lora", "data"),
    ("models",),
    ("config", "search_config", "losses"),
    ("runtime",),
)
SYSTEMS = ("dpr", "prag", "rag", "self_retrieval", "srrag")
ROOMS = (
    "ask",
    "batches",
    "config",
    "data",
    "evaluate",
    "infer",
    "loss",
    "pipeline",
    "plan",
    "serve",
    "session",
    "steps",
    "train",
)


def name_module(path):
    parts = ("rag_jax", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_module(path): path for path in sorted(ROOT.rglob("*.py"))}
SOURCES = {name: path.read_text("utf-8") for name, path in MODULES.items()}


def list_imports(source):
    """The modules that a source text imports, inside functions and conditions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                yield below if below in MODULES else node.module


IMPORTS = {name: set(list_imports(source)) for name, source in SOURCES.items()}
OWN = {name: {i for i in found if i.split(".")[0] == "rag_jax"} for name, found in IMPORTS.items()}


def list_edges():
    return [(name, other) for name, found in OWN.items() for other in sorted(found)]


def test_imports_are_found_everywhere():
    source = """
        import os, rag_jax.losses
        from rag_jax import lora
        from rag_jax.lora import core
        if TYPE_CHECKING:
            from rag_jax.config import MeshConfig
        def late():
            from rag_jax.data.passages import Passage
    """
    assert set(list_imports(textwrap.dedent(source))) == {
        "os",
        "rag_jax.losses",
        "rag_jax.lora",
        "rag_jax.lora.core",
        "rag_jax.config",
        "rag_jax.data.passages",
    }
    assert len(MODULES) > 100 and len(list_edges()) > 400
    assert [edge for edge in list_edges() if edge[1] not in MODULES] == []


def test_a_module_imports_from_lower_floors_or_its_own_package():
    heights = {package: -i for i, floor in enumerate(FLOORS) for package in floor}
    upwards = []
    for name, other in list_edges():
        if "." in name and "." in other:  # the package's own file is on no floor
            package, imported = name.split(".")[1], other.split(".")[1]
            if package != imported and heights[imported] >= heights[package]:
                upwards.append(f"{name} imports {other}")
    assert upwards == []


def test_no_import_circles():
    """As many strongly connected components as modules."""
    reached = {name: find_reachable(name) for name in MODULES}
    components = {
        frozenset({name, *(other for other in reached[name] if name in reached.get(other, ()))})
        for name in MODULES
    }
    assert [sorted(component) for component in components if len(component) > 1] == []
    assert len(components) == len(MODULES)
    assert [name for name in MODULES if name in OWN[name]] == []


def find_reachable(name):
    """The modules that importing a module imports, through others too."""
    reachable, pending = set(), [name]
    while pending:
        found = OWN.get(pending.pop(), set()) - reachable
        reachable |= found
        pending += found
    return reachable


def test_a_system_imports_no_other_system():
    systems = {path.name for path in (ROOT / "systems").iterdir() if path.is_dir()}

    def find_system(name):
        parts = name.split(".")
        return parts[2] if parts[1:2] == ["systems"] and {*parts[2:3]} & systems else None

    pairs = [(find_system(name), find_system(other), name, other) for name, other in list_edges()]
    assert [pair for pair in pairs if pair[0] and pair[1] and pair[0] != pair[1]] == []


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("flax", ("rag_jax.models.nn.", "rag_jax.lora.flax_layers")),
        ("orbax", ("rag_jax.runtime.checkpoint",)),
    ],
)
def test_a_library_is_imported_in_its_place(library, homes):
    users = [name for name, found in IMPORTS.items() if library in {i.split(".")[0] for i in found}]
    assert users and [name for name in users if not name.startswith(homes)] == []


def test_the_top_folder_has_the_floors_alone():
    entries = {path.stem for path in ROOT.iterdir() if path.name != "py.typed"}
    entries -= {"__pycache__", "__init__"}
    assert entries == {package for floor in FLOORS for package in floor}


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_has_its_rooms(system):
    missing = [room for room in ROOMS if f"rag_jax.systems.{system}.{room}" not in MODULES]
    assert missing == []
    assert len(SOURCES[f"rag_jax.systems.{system}.pipeline"].splitlines()) <= 90


def test_no_file_is_long():
    lengths = {name: len(source.splitlines()) for name, source in SOURCES.items()}
    assert {name: length for name, length in lengths.items() if length > 350} == {}


def test_no_import_is_for_type_checkers_alone():
    assert [name for name, source in SOURCES.items() if "TYPE_CHECKING" in source] == []
