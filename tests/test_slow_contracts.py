"""A slow test is asked again when something that it depends on has changed, and no other one is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import contributing
import pytest
import slow_contracts
from slow_contracts import ROOT, Sources, facts, identity, read, updated, write

METHODS = ("ppo", "ros", "iql")
FACTS = {"jax": "1.0", "numpy": "2.0"}
TEST = "tests/test_all.py"
FILES = {
    "pyproject.toml": """\
[project]
dependencies = ["jax>=0.1", "no-such-package"]
optional-dependencies = { analysis = [], datasets = [], playground = [] }
[tool.pytest.ini_options]
markers = ["slow"]
""",
    "rlsuite/__init__.py": """\
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlsuite.commands.api import run
""",
    "rlsuite/algorithms/__init__.py": """\
METHODS = (
    "on_policy.ppo",
    "on_policy.ros",
    "offline.iql",
)


def corrected():
    from rlsuite.algorithms.offline import cdsa
""",
    "rlsuite/algorithms/on_policy/__init__.py": "",
    "rlsuite/algorithms/on_policy/ppo.py": "from rlsuite.pieces.returns import gae\nimport numpy\n",
    "rlsuite/algorithms/on_policy/ros.py": "from rlsuite.algorithms.on_policy import ppo\n",
    "rlsuite/algorithms/offline/__init__.py": "",
    "rlsuite/algorithms/offline/iql.py": "def make():\n    from rlsuite.pieces import critics\n",
    "rlsuite/algorithms/offline/cdsa.py": "",
    "rlsuite/pieces/__init__.py": "",
    "rlsuite/pieces/returns.py": "def gae(): return 1\n",
    "rlsuite/pieces/critics.py": "if TYPE_CHECKING:\n    from rlsuite.pieces import returns\n",
    "rlsuite/commands/__init__.py": "",
    "rlsuite/commands/api.py": "",
    "envs/__init__.py": "",
    "envs/probes.py": "import envs\n",
    "experiments/quick.py": "",
    "analysis/notebooks/introduction.ipynb": "{}",
    "tests/helper.py": "from envs import probes\n",
    "tests/test_other.py": "",
    TEST: "from helper import probe\nfrom rlsuite import algorithms\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path, text in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    for name in ("conftest.py", "slow_contracts.py", "import_graph.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests")
    return tmp_path


def digests(root: Path) -> dict[str, str]:
    """Of the contracts of each method, of those of iql+cdsa, and of a test of no method."""
    sources = Sources(root)
    asked = {name: {name} for name in METHODS} | {"iql+cdsa": {"iql", "cdsa"}, "none": set()}
    return {name: sources.digest(TEST, methods, FACTS) for name, methods in asked.items()}


def append(root: Path, path: str, text: str = "#") -> None:
    with open(root / path, "a") as file:
        file.write(text)


@pytest.mark.parametrize(
    ("path", "asked"),
    {
        "rlsuite/algorithms/on_policy/ros.py": "ros",
        "rlsuite/algorithms/on_policy/ppo.py": "ppo ros",  # the base of ros
        "rlsuite/algorithms/offline/iql.py": "iql iql+cdsa",
        "rlsuite/algorithms/offline/cdsa.py": "iql+cdsa",
        "rlsuite/algorithms/offline/__init__.py": "iql iql+cdsa",
        "rlsuite/pieces/returns.py": "ppo ros",
        "rlsuite/pieces/critics.py": "iql iql+cdsa",
        "rlsuite/algorithms/__init__.py": "ppo ros iql iql+cdsa",
        "envs/probes.py": "ppo ros iql iql+cdsa",
        "tests/helper.py": "ppo ros iql iql+cdsa",
        "tests/conftest.py": "ppo ros iql iql+cdsa",
        TEST: "ppo ros iql iql+cdsa",
        "tests/test_other.py": "",
        "rlsuite/commands/api.py": "",
        "experiments/quick.py": "",
        "analysis/notebooks/introduction.ipynb": "",
    }.items(),
)
def test_a_changed_byte_asks_what_imports_it_and_no_other(root: Path, path: str, asked: str) -> None:
    """One of no method reaches the registry, so that it depends on everything but the other tests."""
    before = digests(root)
    append(root, path)
    after = digests(root)
    no_method = [] if path == "tests/test_other.py" else ["none"]
    assert [name for name in before if after[name] != before[name]] == [*asked.split(), *no_method]


def test_a_new_method_asks_no_other_one(root: Path) -> None:
    before = digests(root)
    registry = root / "rlsuite/algorithms/__init__.py"
    registry.write_text(registry.read_text().replace("METHODS = (\n", 'METHODS = (\n    "offline.bc",\n'))
    (root / "rlsuite/algorithms/offline/bc.py").write_text("")
    after = digests(root)
    assert [name for name in before if after[name] != before[name]] == ["none"]


def test_a_changed_fact_asks_all(root: Path) -> None:
    sources = Sources(root)
    for changed in ({"jax": "1.1"}, {"python": "3.12"}):
        for methods in ({"ppo"}, {"iql"}, set()):
            assert sources.digest(TEST, methods, FACTS) != sources.digest(TEST, methods, FACTS | changed)


def test_the_facts_are_versions_platform_and_flags(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--quick")
    found = facts(root, "cpu")
    assert set(found) == {"python", "platform", *slow_contracts.FLAGS, "jax", "jaxlib", "no-such-package"}
    assert (found["platform"], found["XLA_FLAGS"], found["no-such-package"]) == ("cpu", "--quick", "none")
    assert found["jax"] == __import__("jax").__version__
    ours = facts(ROOT, "cpu")
    assert {"jaxlib", "numpy", "flax", "optax", "brax", "gymnax", "mujoco", "playground", "minari"} <= set(ours)
    assert "none" not in ours.values()


def test_a_digest_does_not_depend_on_where_the_repository_lies(root: Path) -> None:
    copy = root.with_name("elsewhere")
    shutil.copytree(root, copy)
    assert digests(copy) == digests(root)


@pytest.mark.parametrize(
    ("source", "reached"),
    [
        ("from rlsuite.algorithms import iql", "rlsuite/algorithms/offline/iql.py"),
        ("from rlsuite import algorithms\nconfig = algorithms.iql.Config()", "rlsuite/algorithms/offline/iql.py"),
        (
            "import rlsuite.algorithms\nrlsuite.algorithms.iql.Config()",
            "rlsuite/algorithms/offline/iql.py",
        ),
        ("import importlib\nimportlib.import_module('rlsuite.algorithms.offline.iql')", "rlsuite/pieces/critics.py"),
        ("import rlsuite\nrlsuite.run('ppo')", "experiments/quick.py"),
        ("from rlsuite import run", "experiments/quick.py"),
        ("def late():\n    from rlsuite.commands import api", "experiments/quick.py"),
    ],
)
def test_what_is_reached_by_name_counts(root: Path, source: str, reached: str) -> None:
    assert reached not in Sources(root).dependencies(TEST, {"ppo"})
    (root / TEST).write_text(source)
    assert reached in Sources(root).dependencies(TEST, {"ppo"})


def test_the_version_of_rlsuite_is_no_name_that_stands_for_another_module(root: Path) -> None:
    append(root, TEST, "import rlsuite\nprint(rlsuite.__version__)")
    assert "experiments/quick.py" not in Sources(root).dependencies(TEST, {"ppo"})


def test_no_contract_depends_on_a_method_that_its_own_does_not_import() -> None:
    """In this repository: a test helper that imports a method would make each change of it ask all."""
    sources = Sources(ROOT)
    of = {name: sources.modules[module] for name, module in sources.methods.items()}
    own = {name: sources.dependencies(of[name], {name}) & set(of.values()) for name in of}
    assert own["ros"] == {of[name] for name in ("ros", "buffered_ppo", "ppo") if name in of}
    for test in ("tests/test_algorithms.py", "tests/test_truncation_pairs.py"):
        for name in of:
            assert sources.dependencies(test, {name}) & set(of.values()) == own[name]


def test_records_come_back_and_a_merge_of_two_keeps_both(tmp_path: Path) -> None:
    file = tmp_path / "passed" / "3.11.txt"
    assert read(file) == {}
    write(file, {"tests/b.py::test[x y]": {"2"}, "tests/a.py::test": {"1"}})
    assert file.read_text() == "1 tests/a.py::test\n2 tests/b.py::test[x y]\n"
    append(tmp_path, "passed/3.11.txt", "3 tests/a.py::test\n")
    assert read(file) == {"tests/a.py::test": {"1", "3"}, "tests/b.py::test[x y]": {"2"}}


def test_a_failed_test_loses_its_record() -> None:
    records = {"a.py::passed": {"1"}, "a.py::failed": {"2"}, "a.py::left": {"3"}, "a.py::gone": {"4"}, "b.py::x": {"5"}}
    known = ["a.py::passed", "a.py::failed", "a.py::left", "a.py::new"]
    after = updated(records, known, {"a.py::passed": "6", "a.py::new": "7"}, {"a.py::failed"})
    assert after == {"a.py::passed": {"6"}, "a.py::left": {"3"}, "b.py::x": {"5"}, "a.py::new": {"7"}}


def test_xdist_groups_are_no_part_of_an_identity() -> None:
    assert identity("tests/a.py::test[ros probe/x]@ros probe") == "tests/a.py::test[ros probe/x]"
    assert identity("tests/a.py::test@group") == "tests/a.py::test"
    assert identity("tests/a.py::test[a@b]") == "tests/a.py::test[a@b]"


TINY = """\
import pytest
from pathlib import Path
from rlsuite import algorithms

@pytest.mark.slow
@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("name", ["ppo", "iql"])
def test_contract(name):
    text = (Path(algorithms.__file__).parent / f"{'offline' if name == 'iql' else 'on_policy'}/{name}.py").read_text()
    assert "bug" not in text
    if "write" in text:
        with open(algorithms.__file__, "a") as file:
            file.write("#")

def test_quick():
    pass
"""


def ask(root: Path, *options: str, python: tuple[str, ...] = ()) -> str:
    """The exit status of pytest and all that it prints."""
    command = [sys.executable, *python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "slow", *options, TEST]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return f"{done.returncode} {done.stdout}{done.stderr}"


def test_pytest_asks_what_has_changed_and_records_what_passes(root: Path) -> None:
    (root / TEST).write_text(TINY)
    file = root / slow_contracts.RECORDS / f"{slow_contracts.python_version()}.txt"
    in_workers = ("-n", "2", "--dist", "loadgroup", "--slow-contracts", "changed")

    first = ask(root, *in_workers)
    assert first.startswith("0 ") and "2 passed" in first
    recorded = read(file)
    assert set(recorded) == {f"{TEST}::test_contract[{name}]" for name in ("ppo", "iql")}

    # All are unchanged: nothing is collected, and this is no failure.
    again = ask(root, *in_workers)
    assert again.startswith("0 ") and "no tests ran" in again
    assert "2 slow tests unchanged since last passed, not asked again; make learning ALL=1 asks all" in again
    assert "2 passed" in ask(root, "--slow-contracts", "all")
    assert "2 passed" in ask(root), "without the option nothing is left out"
    assert read(file) == recorded

    append(root, "rlsuite/algorithms/offline/iql.py", "# bug")
    failed = ask(root, "--slow-contracts", "changed")
    assert failed.startswith("1 ") and "1 failed, 2 deselected" in failed and "1 slow test unchanged" in failed
    assert set(read(file)) == {f"{TEST}::test_contract[ppo]"}

    # Sources that change while a test runs: it passed with one or the other, which nobody knows.
    (root / "rlsuite/algorithms/offline/iql.py").write_text("# write")
    written = ask(root, "--slow-contracts", "changed")
    assert written.startswith("0 ") and "1 passed" in written
    assert set(read(file)) == {f"{TEST}::test_contract[ppo]"}


def test_sources_of_another_repository_are_not_taken_for_these(root: Path) -> None:
    """Without the folder on the path `rlsuite` is that which is installed: the digests would not be of what runs."""
    (root / TEST).write_text(TINY)
    found = ask(root, "--slow-contracts", "changed", python=("-P",))
    assert found.startswith("4 ") and f"expected rlsuite below {root}, got " in found


def test_with_a_package_that_brings_methods_nothing_is_recorded(root: Path) -> None:
    (root / TEST).write_text(TINY)
    contributing.install(root, "my_algorithms", "rlsuite.algorithms", {"a2c": "my_algorithms.a2c:SPEC"})
    assert "2 passed" in ask(root, "--slow-contracts", "changed")
    assert not (root / slow_contracts.RECORDS).exists()
