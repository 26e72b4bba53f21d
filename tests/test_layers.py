"""Imports go one way: `experiments -> rlsuite -> envs`, with `analysis` apart, and inside rlsuite from room to room.

Read from the syntax trees, so that an import inside a function counts and nothing has to be importable."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import pytest
from import_graph import imported_modules, is_for_types, module_name

ROOT = Path(__file__).resolve().parent.parent

# Package -> the other packages of this repository that it may import.
MAY_IMPORT: dict[str, frozenset[str]] = {
    "analysis": frozenset(),
    "envs": frozenset(),
    "experiments": frozenset({"rlsuite", "envs"}),
    "rlsuite": frozenset({"envs"}),
}

# The exceptions: commands and functions that judge results ask analysis, which is an extra that may be missing.
JUDGES = ("api", "check", "export", "import_curves", "power", "report", "tune")
LAZY_EXCEPTIONS = {(f"rlsuite/commands/{name}.py", "analysis") for name in JUDGES}

# Only the adapters know which library simulates a task.
ENVIRONMENT_LIBRARIES = frozenset({"brax", "gymnasium", "gymnax", "minari", "mujoco", "mujoco_playground"})


def imports(path: str, node: ast.AST, lazy: bool = False) -> Iterator[tuple[int, str, bool]]:
    """(line, absolute module name, whether it is inside a function, or for type checkers only) of every import below
    `node`."""
    for child in ast.iter_child_nodes(node):
        for module in imported_modules(path, child):
            yield getattr(child, "lineno", 0), module, lazy
        inside_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports(path, child, lazy or inside_function or is_for_types(child))


def offences(path: str, source: str) -> list[str]:
    """What one file imports and may not. `path` is relative to the repository, with forward slashes."""
    package = PurePosixPath(path).parts[0]
    found = []
    for line, module, lazy in imports(path, ast.parse(source, path)):
        top = module.split(".")[0]
        if top in ENVIRONMENT_LIBRARIES and package != "envs":
            found.append(f"{path}:{line} imports {module}; only envs/ may")
        if top in MAY_IMPORT and top != package and top not in MAY_IMPORT[package]:
            if lazy and (path, top) in LAZY_EXCEPTIONS:
                continue
            found.append(f"{path}:{line} imports {module}; {package}/ may not")
    return found


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_imports_go_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"{package}/ holds no Python file, so this test would check nothing"
    found = [line for file in files for line in offences(file.relative_to(ROOT).as_posix(), file.read_text("utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("envs/a.py", "import rlsuite"),
        ("envs/a.py", "import numpy, rlsuite.core"),
        ("envs/a.py", "from analysis import scores"),
        ("envs/a.py", "from ..rlsuite import core"),
        ("envs/a.py", "from .. import experiments"),
        ("rlsuite/a.py", "def f():\n    import experiments.quick"),
        ("rlsuite/a.py", "import importlib\nanalysis = importlib.import_module('analysis.scores')"),
        ("rlsuite/a.py", "__import__('experiments')"),
        ("rlsuite/a.py", "def f():\n    from analysis import __main__"),
        ("rlsuite/commands/report.py", "from analysis import __main__"),
        ("rlsuite/commands/report.py", "class C:\n    import analysis"),
        ("rlsuite/commands/report.py", "def f():\n    import experiments"),
        ("rlsuite/commands/run.py", "def f():\n    from analysis import __main__"),
        ("rlsuite/a.py", "if TYPE_CHECKING:\n    from brax.envs import Env"),
        ("rlsuite/a.py", "if TYPE_CHECKING:\n    from analysis import Scores"),
        ("rlsuite/commands/api.py", "if not TYPE_CHECKING:\n    from analysis import Scores"),
        ("rlsuite/commands/api.py", "if TYPE_CHECKING:\n    pass\nelse:\n    from analysis import Scores"),
        ("rlsuite/algorithms/a.py", "from mujoco import mjx"),
        ("rlsuite/algorithms/a.py", "from ...analysis import scores"),
        ("experiments/a.py", "import analysis"),
        ("experiments/a.py", "import gymnax"),
        ("analysis/a.py", "import rlsuite.sweeping.store"),
        ("analysis/a.py", "async def f():\n    from envs import make"),
        ("analysis/a.py", "import experiments.quick as quick"),
    ],
)
def test_checker_finds(path: str, source: str) -> None:
    assert len(offences(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("envs/a.py", "from .core import Env\nimport envs.core\nfrom brax import envs as brax_envs"),
        ("rlsuite/commands/report.py", "def main():\n    from analysis.__main__ import main"),
        ("rlsuite/commands/api.py", "if TYPE_CHECKING:\n    from analysis import Scores"),
        (
            "rlsuite/commands/report.py",
            "import importlib\ndef main():\n    importlib.import_module('analysis.__main__')",
        ),
        ("rlsuite/algorithms/a.py", "from ..core import Task\nfrom .. import returns\nfrom envs.core import Box"),
        ("experiments/a.py", "import envs\nfrom rlsuite.algorithms import ppo"),
        ("analysis/a.py", "import pandas\nfrom . import scores\nfrom .scores import final"),
        ("analysis/a.py", "text = 'import rlsuite'  # import envs"),
    ],
)
def test_checker_accepts(path: str, source: str) -> None:
    assert offences(path, source) == []


# --- Inside rlsuite ---------------------------------------------------------------------------------------------------

ROOMS = ("commands", "sweeping", "training", "algorithms", "pieces")
"""From the top: a room imports itself and the rooms below it; `core.py`, `errors.py` and `evidence.py` lie lowest."""
BASES = frozenset({"on_policy.ppo", "on_policy.buffered_ppo", "off_policy.td3"})
"""Methods that others of their room are variants of. No method imports any other: what two share is a piece."""


def room_of(name: str) -> str | None:
    """The room of a module, given with dots; None for what lies below all rooms, and for other packages."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "rlsuite" and parts[1] in ROOMS else None


def modules() -> dict[str, Path]:
    """Dotted name -> file, of every module of the repository's packages."""
    found = {}
    for package in MAY_IMPORT:
        for file in sorted((ROOT / package).rglob("*.py")):
            found[module_name(file.relative_to(ROOT).as_posix())] = file
    return found


def imported_by(path: str, source: str, known: Iterable[str]) -> set[str]:
    """The modules, of those known, that a file imports, late ones too: `from a import b` is of `a.b` where that is a
    module, and of `a` where `b` is a name in it."""
    known, names = set(known), set()
    for node in ast.walk(ast.parse(source, path)):
        for base in imported_modules(path, node):
            below = [f"{base}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else [base]
            names.update(name if name in known else base for name in below)
    return names & known


def room_offences(name: str, imported: Iterable[str]) -> list[str]:
    """What a module of rlsuite imports from a room above its own, or from a method that is no base of its own room."""
    found = []
    room = room_of(name)
    for other in sorted(imported):
        above = room_of(other)
        if above and (room is None or ROOMS.index(above) < ROOMS.index(room)):
            found.append(f"{name} imports {other}, which lies above it")
        method = other.removeprefix("rlsuite.algorithms.")
        base = method in BASES and other.rpartition(".")[0] == name.rpartition(".")[0]
        if room == "algorithms" and above == "algorithms" and "." in method and not base:
            found.append(f"{name} imports the method {other}; what two methods share is a piece")
    return found


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """The modules that reach themselves by imports, sorted."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(graph[start])
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += graph[name]
        return seen

    return sorted(name for name in graph if name in reached(name))


@functools.cache
def graph() -> dict[str, set[str]]:
    """Module -> the others that it imports. `rlsuite` itself imports the names that it offers when they are first used;
    of it, only what is imported at once counts."""
    known = modules()
    found = {
        name: imported_by(file.relative_to(ROOT).as_posix(), file.read_text("utf-8"), known) - {name}
        for name, file in known.items()
    }
    tree = ast.parse(known["rlsuite"].read_text("utf-8"))
    found["rlsuite"] = {module for _, module, late in imports("rlsuite/__init__.py", tree) if not late} & set(known)
    return found


def test_rooms_import_only_what_lies_below() -> None:
    registry = "rlsuite.algorithms"  # which names every method
    modules = [name for name in graph() if name.startswith("rlsuite.") and name != registry]
    assert {room for name in modules if (room := room_of(name))} == set(ROOMS)
    assert not [line for name in modules for line in room_offences(name, graph()[name])]


def test_no_circle_of_imports() -> None:
    assert circle(graph()) == []


def test_contributing_names_the_folders_there_are() -> None:
    shown = set(re.findall(r"^\| `([a-z_/]+)/` \|", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.M))
    packages = {file.parent.relative_to(ROOT).as_posix() for file in ROOT.glob("rlsuite/*/*.py")}
    others = {name for name in ("benchmarks", "docs", "tests") if (ROOT / name).is_dir()}
    assert shown == set(MAY_IMPORT) | packages | others


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("rlsuite.pieces.replay", "from rlsuite.algorithms import get"),
        ("rlsuite.training.train", "def late():\n    from rlsuite.sweeping import store"),
        ("rlsuite.core", "import rlsuite.pieces.networks"),
        ("rlsuite.sweeping.store", "from rlsuite.commands.cli import main"),
        ("rlsuite.algorithms.offline.prdc", "from rlsuite.algorithms.offline.td3_bc import Config"),
        ("rlsuite.algorithms.offline.prdc", "from rlsuite.algorithms.offline import td3_bc"),
        ("rlsuite.algorithms.offline.prdc", "from rlsuite.algorithms.off_policy import td3"),
        ("rlsuite.algorithms.offline.prdc", "def late():\n    from rlsuite.algorithms import get"),
    ],
)
def test_a_planted_import_upwards_is_found(name: str, source: str) -> None:
    imported = imported_by(name.replace(".", "/") + ".py", source, modules())
    assert room_offences(name, imported)


def test_a_planted_circle_is_found() -> None:
    planted = {**graph(), "rlsuite.sweeping.catalogue": {"rlsuite.sweeping.collect"}}
    assert {"rlsuite.sweeping.catalogue", "rlsuite.sweeping.collect"} <= set(circle(planted))


def test_a_planted_circle_of_a_package_and_a_module_in_it_is_found() -> None:
    planted = {**graph(), "rlsuite": {"rlsuite.sweeping.local"}}
    assert {"rlsuite", "rlsuite.sweeping.local"} <= set(circle(planted))
