"""A new algorithm is one file and one line in the registry: the template of CONTRIBUTING.md, put to the test.

Both are taken from the page as they stand there. Pytest runs in a process of its own, with a plugin that does what the
page tells the contributor to do, so that the registry of these tests stays as it is.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import contributing
import pytest
from contributing import PAGE, ROOT, blocks, process

CONTRACT_TESTS = ("tests/test_algorithms.py", "tests/test_truncation_pairs.py")


def template() -> str:
    """The page's algorithm."""
    (found,) = (block for block in blocks("python") if block.startswith('"""A2C'))
    return found


@pytest.fixture
def contributed(tmp_path: Path) -> dict[str, str]:
    """The variables of a process in which the `toy_plugin` registers `a2c`."""
    assert any('"on_policy.a2c",' in block and "METHODS" in block for block in blocks("python"))
    path = tmp_path / "a2c.py"
    path.write_text(template())
    return registering(path)


def registering(module: Path) -> dict[str, str]:
    """The variables of a process in which the module's method is registered, as by its line in METHODS."""
    name = module.stem
    (module.parent / "toy_plugin.py").write_text(
        f"from rlsuite import algorithms\nalgorithms.MODULES['{name}'] = '{name}'\n"
    )
    paths = [str(module.parent), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTEST_ADDOPTS": "-p toy_plugin -p no:cacheprovider"}


def run_pytest(variables: dict[str, str], *arguments: str) -> str:
    """What pytest prints; it must succeed."""
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.xdist_group("a2c")
def test_contract_tests_cover_a_new_algorithm(contributed: dict[str, str]) -> None:
    listed = re.findall(r"^\S+::(\w+)\[(\S+)\]$", run_pytest(contributed, "--collect-only", *CONTRACT_TESTS), re.M)
    a2c_tests = {(test, case) for test, case in listed if "a2c" in case.split("-")}
    ppo_tests = {(test, case.replace("ppo", "a2c")) for test, case in listed if "ppo" in case.split("-")}
    assert {test for test, _ in a2c_tests} == {test for test, _ in listed}
    # PPO takes every kind of action, A2C discrete ones.
    assert a2c_tests <= ppo_tests
    assert all(case.endswith("/continuous") for _, case in ppo_tests - a2c_tests)


@pytest.mark.xdist_group("a2c")
def test_the_command_on_the_page_leaves_out_no_contract_test(contributed: dict[str, str]) -> None:
    (options,) = re.findall(r"`\.venv-[\d.]+/bin/python -m pytest (.* a2c)`", PAGE)
    chosen = run_pytest(contributed, "--collect-only", *CONTRACT_TESTS, *options.split()).splitlines()
    everything = run_pytest(contributed, "--collect-only", *CONTRACT_TESTS).splitlines()
    a2c_lines = [line for line in everything if re.search(r"[\[-]a2c[\]-]", line)]
    assert len(a2c_lines) > 90 and set(a2c_lines) <= set(chosen)


@pytest.mark.xdist_group("a2c")
def test_contract_tests_run_on_a_new_algorithm(contributed: dict[str, str]) -> None:
    assert "2 passed" in run_pytest(contributed, "tests/test_algorithms.py", "-k", "a2c and (constant or truncation)")
    assert "3 passed" in run_pytest(contributed, "tests/test_contracts.py", "-k", "a2c")


def a2c_lines(listed: str) -> set[str]:
    """The tests that are about it, of those that pytest has listed."""
    return set(re.findall(r"^\S+::\w+\[(?:\S+-)?a2c(?:-\S+)?\]$", listed, re.M))


# --- A variant --------------------------------------------------------------------------------------------------------

VARIANT = "td3_bc_filter"


@pytest.fixture
def variant(tmp_path: Path) -> Path:
    """The page's variant of a method, as a file."""
    (found,) = (block for block in blocks("python") if block.startswith('"""TD3+BC with a Q-filter'))
    assert f'`"offline.{VARIANT}",` is its line in `METHODS`' in PAGE
    path = tmp_path / f"{VARIANT}.py"
    path.write_text(found)
    return path


def test_a_variant_is_one_file_that_the_contracts_cover(variant: Path) -> None:
    """No dead field, and its base to the bit; those that plain `pytest` leaves out are listed for it too."""
    variables = registering(variant)
    assert "4 passed" in run_pytest(variables, "tests/test_contracts.py", "-k", VARIANT)
    listed = run_pytest(variables, "--collect-only", *CONTRACT_TESTS, "-k", VARIANT)
    assert len(re.findall(rf"\b{VARIANT}\b", listed)) > 40


@pytest.mark.parametrize(
    ("right", "wrong", "test"),
    [
        # A setting that nothing reads; then one that leaves something of the variant in its base.
        ("jax.lax.stop_gradient(q) - hypers.filter_margin", "jax.lax.stop_gradient(q)", "every_hyperparameter"),
        ('hypers={"filter_margin": 1e9}', 'hypers={"filter_margin": -1e9}', "reduces"),
    ],
)
def test_the_contracts_turn_red_on_a_variant(variant: Path, right: str, wrong: str, test: str) -> None:
    source = variant.read_text()
    assert right in source
    variant.write_text(source.replace(right, wrong))
    command = [sys.executable, "-m", "pytest", "-q", "tests/test_contracts.py", "-k", f"{VARIANT} and {test}"]
    done = subprocess.run(command, cwd=ROOT, env=registering(variant), capture_output=True, text=True)
    assert done.returncode == 1 and "1 failed" in done.stdout, done.stdout


# --- From a package of one's own --------------------------------------------------------------------------------------


install = functools.partial(contributing.install, group="rlsuite.algorithms")


@pytest.fixture
def packaged(tmp_path: Path) -> Path:
    """A folder with the package that the page describes."""
    assert '[project.entry-points."rlsuite.algorithms"]\na2c = "my_algorithms.a2c:SPEC"' in PAGE
    folder = tmp_path / "installed"
    folder.mkdir()
    install(folder, "my_algorithms", entry_points={"a2c": "my_algorithms.a2c:SPEC"}, a2c=template())
    return folder


@pytest.mark.xdist_group("a2c")
def test_contract_tests_cover_an_algorithm_of_another_package(contributed: dict[str, str], packaged: Path) -> None:
    """As many as cover one of our own, in every file that asks which algorithms there are."""
    asks = re.compile(r"algorithms\.registered\(\)")
    files = [str(file) for file in (ROOT / "tests").glob("test_*.py") if asks.search(file.read_text("utf-8"))]
    own_lines = a2c_lines(run_pytest(contributed, "--collect-only", *files, "-k", "a2c"))
    collected = process(packaged, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--collect-only", *files, "-k", "a2c")
    assert collected.returncode == 0, collected.stdout + collected.stderr
    assert a2c_lines(collected.stdout) == own_lines
    assert {name.split("::")[0] for name in own_lines} >= {*CONTRACT_TESTS, "tests/test_conditionals.py"}


def rlsuite(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`rlsuite ARGUMENTS` where the distributions in a folder are installed."""
    return process(folder, "-m", "rlsuite.commands.cli", *arguments)


def test_an_algorithm_of_another_package_is_listed_and_trained(packaged: Path) -> None:
    listed = rlsuite(packaged, "list", "algorithms")
    assert re.search(r"^  a2c +other +B +Discrete ", listed.stdout, re.M)
    assert not listed.stderr
    misspelt = rlsuite(packaged, "run", "a2d", "--env", "probe/constant/discrete")
    assert misspelt.stderr == "rlsuite: unknown algorithm 'a2d'; did you mean 'a2c'?\n"
    options = "--num-envs 2 --num-steps 4 --hidden-sizes 4 --steps 16 --seeds 2 --evaluations 1 --eval-episodes 1"
    trained = rlsuite(
        packaged, "run", "a2c", "--env", "probe/constant/discrete", *options.split(), "--width", "2", "--devices", "1"
    )
    assert trained.returncode == 0, trained.stderr
    assert list((packaged / "results" / "run").glob("a2c__probe-constant-discrete__*.parquet"))


@pytest.mark.parametrize(
    ("source", "name", "reason"),
    [
        ("raise RuntimeError('first\\nsecond')", "mine", "RuntimeError: first second"),
        ("SPEC = 3", "mine", "TypeError: expected an AlgorithmSpec, got int"),
        (
            "from my_algorithms.a2c import SPEC",
            "ppo",
            "ValueError: there is an algorithm of this name",
        ),
        ("from my_algorithms.a2c import SPEC", "a+c", "ValueError: its name must consist of letters"),
    ],
)
def test_a_package_that_cannot_be_used_is_named(packaged: Path, source: str, name: str, reason: str) -> None:
    install(packaged, "broken", entry_points={name: "broken.a2c:SPEC"}, a2c=source)
    listed = rlsuite(packaged, "list", "algorithms")
    assert f"left out: algorithm '{name}' of the package 'broken' ({reason}" in listed.stderr
    assert re.search(r"^  a2c  ", listed.stdout, re.M)
    assert re.search(r"^  ppo  ", listed.stdout, re.M)
    assert not re.search(r"^  (mine|a\+c)  ", listed.stdout, re.M)
