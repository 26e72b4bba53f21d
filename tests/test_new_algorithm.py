"""A new algorithm is one file and one line in the registry: the template of CONTRIBUTING.md, put to the test.

Both are taken from the page as they stand there. Pytest runs in a process of its own, with a plugin that does what the
page tells the contributor to do, so that the registry of these tests stays as it is.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONTRACT_TESTS = ("tests/test_algorithms.py", "tests/test_truncation_pairs.py")


@pytest.fixture
def contributed(tmp_path: Path) -> dict[str, str]:
    """The variables of a process in which the `toy_plugin` registers `a2c`."""
    blocks: list[str] = re.findall(r"^```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S)
    (template,) = (block for block in blocks if block.startswith('"""A2C'))
    (line,) = (block for block in blocks if block.startswith('    "a2c": '))
    (tmp_path / "a2c.py").write_text(template)
    (tmp_path / "toy_plugin.py").write_text(
        "import a2c\n"
        "from envs.core import Discrete\n"
        "from rlsuite import algorithms\n"
        "from rlsuite.core import AlgorithmSpec\n"
        f"algorithms.REGISTRY.update({{\n{line}}})\n"
    )
    paths = [str(tmp_path), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
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
    of_a2c = {(test, case) for test, case in listed if "a2c" in case.split("-")}
    of_ppo = {(test, case.replace("ppo", "a2c")) for test, case in listed if "ppo" in case.split("-")}
    assert {test for test, _ in of_a2c} == {test for test, _ in listed}
    # PPO takes every kind of action, A2C discrete ones.
    assert of_a2c <= of_ppo
    assert all(case.endswith("/continuous") for _, case in of_ppo - of_a2c)


@pytest.mark.xdist_group("a2c")
def test_the_command_on_the_page_leaves_out_no_contract_test(contributed: dict[str, str]) -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    (options,) = re.findall(r"`\.venv-[\d.]+/bin/python -m pytest (.* a2c)`", page)
    chosen = run_pytest(contributed, "--collect-only", *CONTRACT_TESTS, *options.split()).splitlines()
    everything = run_pytest(contributed, "--collect-only", *CONTRACT_TESTS).splitlines()
    of_a2c = [line for line in everything if re.search(r"[\[-]a2c[\]-]", line)]
    assert len(of_a2c) > 90 and set(of_a2c) <= set(chosen)


@pytest.mark.xdist_group("a2c")
def test_contract_tests_run_on_a_new_algorithm(contributed: dict[str, str]) -> None:
    assert "2 passed" in run_pytest(contributed, "tests/test_algorithms.py", "-k", "a2c and (constant or truncation)")
