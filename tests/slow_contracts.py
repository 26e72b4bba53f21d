"""Slow tests are asked again when something that they depend on has changed: `make learning`, or all with `ALL=1`.

A test depends on its own file and on all of ours that this imports; on the module of a method, and all that this
imports, if the test is parametrised by the method's name; and on `facts`: versions, platform and flags. The digest of
all that is recorded when the test passes, in `tests/passed/`, a line a test.

Imports are read from the syntax trees. Two ways lead on by name, where they cannot follow: a test that reaches the
registry without a method of its own, or reaches the commands, depends on everything.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from import_graph import imported_names, is_for_types, module_name

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("analysis", "envs", "experiments", "rlsuite", "tests")
RECORDS = "tests/passed"
REGISTRY, REGISTRY_FILE = "rlsuite.algorithms", "rlsuite/algorithms/__init__.py"
METHODS = re.compile(r"^METHODS = (\(\n.*?^\))\n", re.M | re.S)
CORRECTION = "offline.cdsa"
"""The module of what follows the plus sign of `td3_bc+cdsa`."""
COMMANDS = "rlsuite/commands/"
EXTRAS = ("analysis", "datasets", "playground")
"""Optional dependencies that a test may compute with."""
FLAGS = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "JAX_ENABLE_X64")
PLUGINS = ("rlsuite.algorithms", "rlsuite.environments")
"""Groups of entry points: what other packages bring is tested too, and lies where no digest looks."""


class Sources:
    """The files of a repository as they are when this is made."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.contents: dict[str, bytes] = {}
        self.changed: dict[str, int] = {}
        for path in self._paths():
            self.changed[path] = (root / path).stat().st_ctime_ns
            self.contents[path] = (root / path).read_bytes()
        self.modules = {module_name(path).removeprefix("tests."): path for path in self.contents if path[-3:] == ".py"}
        declared = METHODS.search(self.contents[REGISTRY_FILE].decode())
        assert declared, f"{REGISTRY_FILE} has no METHODS"
        names = (*ast.literal_eval(declared[1]), CORRECTION)
        self.methods = {name.split(".")[1]: f"{REGISTRY}.{name}" for name in names}
        self._imports: dict[str, set[str]] = {}

    def _paths(self) -> Iterator[str]:
        for folder in FOLDERS:
            for file in sorted((self.root / folder).rglob("*")):
                path = file.relative_to(self.root)
                hidden = any(part.startswith((".", "__pycache__")) for part in path.parts)
                if file.is_file() and not hidden and path.parent.as_posix() != RECORDS:
                    yield path.as_posix()

    def dependencies(self, test: str, methods: Collection[str]) -> set[str]:
        """The files that a test module depends on, with these methods (names of ours) as its parameters."""
        found: set[str] = set()
        everything = False
        waiting = [test, "tests/conftest.py", *(self.modules[self.methods[name]] for name in methods)]
        while waiting:
            path = waiting.pop()
            if path in found:
                continue
            found.add(path)
            imported = self.imports(path)
            if path == REGISTRY_FILE:  # which imports methods when asked for them
                imported = {name for name in imported if not name.startswith(f"{REGISTRY}.")}
                everything |= not methods
            everything |= path.startswith(COMMANDS) or "*" in imported
            packages = (f"{folder}/__init__.py" for folder in PurePosixPath(path).parents)
            waiting += [self.modules[name] for name in imported - {"*"}]
            waiting += [package for package in packages if package in self.contents]
        others = {path for path in self.contents if not path.startswith("tests/test_")}
        return found | others if everything else found

    def imports(self, path: str) -> set[str]:
        """The modules of ours that a file imports when it runs; `*` if it takes a name of `rlsuite` itself, each of
        which stands for another module."""
        if path not in self._imports:
            tree = ast.parse(self.contents[path], path)
            for_types = {id(node) for block in ast.walk(tree) if is_for_types(block) for node in ast.walk(block)}
            nodes = [node for node in ast.walk(tree) if id(node) not in for_types]
            names = imported_names(path, nodes) | {dotted(node) for node in nodes if isinstance(node, ast.Attribute)}
            found = names & set(self.modules)
            # `algorithms.ppo`, whatever its room.
            ours = {f"{REGISTRY}.{name}": module for name, module in self.methods.items()}
            found |= {ours[name] for name in (*names, *(f"rlsuite.{name}" for name in names)) if name in ours}
            if any(re.fullmatch(r"rlsuite\.(?!__)\w+", name) and name not in self.modules for name in names):
                found.add("*")
            self._imports[path] = found
        return self._imports[path]

    def digest(self, test: str, methods: Collection[str], facts: Mapping[str, str]) -> str:
        """Of all that a test module depends on, whose `facts` are those that are no sources of ours."""
        whole = hashlib.sha256()
        for path in sorted(self.dependencies(test, methods)):
            content = self.contents[path]
            if path == REGISTRY_FILE and methods:  # a new method changes no other one
                content = METHODS.sub("", content.decode()).encode()
            whole.update(f"{path} {hashlib.sha256(content).hexdigest()}\n".encode())
        for name, value in sorted(facts.items()):
            whole.update(f"{name} = {value}\n".encode())
        return whole.hexdigest()[:20]

    def still_there(self, paths: Collection[str]) -> bool:
        """Whether nobody has written to these files since."""
        try:
            return all((self.root / path).stat().st_ctime_ns == self.changed[path] for path in paths)
        except FileNotFoundError:
            return False


def dotted(node: ast.expr) -> str:
    """`a.b.c` of nested attributes of a name; of another expression what cannot be one."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr):
            return f"{dotted(value)}.{attr}"
    return "?"


def facts(root: Path, platform: str) -> dict[str, str]:
    """What may change an answer and is no source: versions of Python and packages, JAX's platform, flags."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    stated = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    names = {"jaxlib", *(name for line in stated for name in re.findall(r"^[\w.-]+", line))}
    flags = {name: os.environ.get(name, "") for name in FLAGS}
    return {"python": python_version(), "platform": platform, **flags, **{name: version(name) for name in names}}


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def python_version() -> str:
    return "{}.{}".format(*sys.version_info)


# --- Records ----------------------------------------------------------------------------------------------------------


def read(file: Path) -> dict[str, set[str]]:
    """Test -> digests that it passed with. Two lines of one test come from a merge, and both are true."""
    found: dict[str, set[str]] = {}
    for line in file.read_text("utf-8").splitlines() if file.exists() else []:
        digest, test = line.split(" ", 1)
        found.setdefault(test, set()).add(digest)
    return found


def write(file: Path, records: Mapping[str, Collection[str]]) -> None:
    lines = [f"{digest} {test}\n" for test in sorted(records) for digest in sorted(records[test])]
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(lines), "utf-8")


def updated(
    records: Mapping[str, Collection[str]], known: Collection[str], passed: Mapping[str, str], failed: Collection[str]
) -> dict[str, Collection[str]]:
    """The records after a run: test -> digest of those that `passed`, none of those that `failed`, the others as they
    were. Of the files of the tests that are `known` to exist, tests that are not are gone."""
    files = {test.split("::")[0] for test in known}
    kept = {test: digests for test, digests in records.items() if test in known or test.split("::")[0] not in files}
    new = {**kept, **{test: {digest} for test, digest in passed.items()}}
    return {test: digests for test, digests in new.items() if test not in failed}


# --- pytest -----------------------------------------------------------------------------------------------------------

HELP = "ask the slow tests that have changed since they last passed, or all of them, and record what passes"


def identity(nodeid: str) -> str:
    """The id of a test without the group that xdist adds."""
    return re.sub(r"@[^\]]*$", "", nodeid)


def check_path() -> None:
    """Refuse to record digests of these sources where `rlsuite` is another copy, such as an installed one."""
    found = importlib.util.find_spec("rlsuite")
    if found is None or ROOT not in Path(str(found.origin)).parents:
        raise pytest.UsageError(
            f"expected rlsuite below {ROOT}, got {found and found.origin}; start `python -m pytest` in that folder"
        )


class SlowContracts:
    """The plugin. Workers choose the tests and compute the digests; the records are written where reports arrive."""

    def __init__(self, config: pytest.Config) -> None:
        check_path()
        self.config = config
        self.ask_all = config.getoption("slow_contracts") == "all"
        self.file = ROOT / RECORDS / f"{python_version()}.txt"
        self.sources = Sources(ROOT)  # before anything of ours is imported
        self.dependencies: dict[str, set[str]] = {}
        self.digests: dict[str, str] = {}
        self.known: list[str] = []
        self.unchanged = 0
        self.called: set[str] = set()
        self.passed: dict[str, str] = {}
        self.failed: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Iterator[None]:
        self.known = [identity(item.nodeid) for item in items if item.get_closest_marker("slow")]
        yield  # to `-k` and `-m`
        if any(importlib.metadata.entry_points(group=group) for group in PLUGINS):
            return
        import jax

        now, records = facts(ROOT, jax.default_backend()), read(self.file)
        unchanged = []
        for item in items:
            if item.get_closest_marker("slow"):
                test, methods = item.path.relative_to(ROOT).as_posix(), self.methods_of(item)
                name = identity(item.nodeid)
                self.dependencies[name] = self.sources.dependencies(test, methods)
                self.digests[name] = self.sources.digest(test, methods, now)
                if self.digests[name] in records.get(name, ()) and not self.ask_all:
                    unchanged.append(item)
        self.unchanged = len(unchanged)
        items[:] = [item for item in items if item not in unchanged]
        self.config.hook.pytest_deselected(items=unchanged)

    def methods_of(self, item: pytest.Item) -> set[str]:
        """The methods of ours that a test is parametrised by; `td3_bc+cdsa` is of two."""
        callspec: Any = vars(item).get("callspec")
        values = callspec.params.values() if callspec else ()
        parts = {part for value in values if isinstance(value, str) for part in value.split("+")}
        return parts & set(self.sources.methods)

    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        name = identity(item.nodeid)
        if name in self.digests and self.sources.still_there(self.dependencies[name]):
            item.user_properties.append(("digest", self.digests[name]))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = identity(report.nodeid)
        digest = dict(report.user_properties).get("digest")
        if report.failed:
            self.failed.add(name)
        elif report.when == "call" and report.passed:
            self.called.add(name)
        elif report.when == "teardown" and name in self.called and digest:
            self.passed[name] = str(digest)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        output = vars(node).get("workeroutput", {})  # which one that crashed has not
        self.known, self.unchanged = output.get("slow_contracts", (self.known, self.unchanged))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        worker: Any = vars(self.config).get("workeroutput")
        if worker is not None:
            worker["slow_contracts"] = self.known, self.unchanged
            return
        before = read(self.file)
        after = updated(before, self.known, self.passed, self.failed)
        if after != before:
            write(self.file, after)
        if self.unchanged and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
            session.exitstatus = pytest.ExitCode.OK

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.unchanged:
            tests = "slow test" if self.unchanged == 1 else "slow tests"
            terminalreporter.write_line(
                f"{self.unchanged} {tests} unchanged since last passed, not asked again; make learning ALL=1 asks all"
            )
