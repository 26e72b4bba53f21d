"""Test settings. They are environment variables, set before the first `import jax` and inherited by subprocesses.

The platform is left to JAX, so that the same tests run on an accelerator where its plugin is installed; JAX_PLATFORMS
chooses another.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import slow_contracts

# Compiling is most of the time that these tests take. The zero and the minus one keep even the smallest programs.
CACHE_HOME = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE_HOME / "rlsuite" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Devices that stand for several accelerators. What is compiled for one of them only is no slower for it.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")

MAPS = Path("/proc/self/maps")
MOST_MAPS = 30_000
"""Linux allows a process 65,530."""
COUNT = itertools.count()


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Let go of compiled programs before they are too many: each takes up memory maps, and LLVM crashes without any."""
    if next(COUNT) % 16 == 0 and MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        import jax  # Late, for the variables above.

        jax.clear_caches()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow-contracts", choices=("changed", "all"), help=slow_contracts.HELP)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("slow_contracts"):
        config.pluginmanager.register(slow_contracts.SlowContracts(config))
