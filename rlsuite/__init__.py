"""rlsuite: reinforcement learning in JAX, thousands of runs in one compiled program. See README.md and docs/python.md.

The names below are imported when they are first used, so that `import rlsuite` and `rlsuite --help` take no JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envs.core import Reference
    from rlsuite.commands.api import Policy, Run, load_policy, report, run, sweep
    from rlsuite.errors import Stopped, UserError
    from rlsuite.sweeping.callback import ChunkEvaluation
    from rlsuite.sweeping.settings import Settings
    from rlsuite.sweeping.sweep import Cell, Experiment
    from rlsuite.training.plan import Limits

__version__ = "0.1.0"

__all__ = [
    "Cell",
    "ChunkEvaluation",
    "Experiment",
    "Limits",
    "Policy",
    "Reference",
    "Run",
    "Settings",
    "Stopped",
    "UserError",
    "load_policy",
    "report",
    "run",
    "sweep",
]

_MODULES = {
    "Cell": "rlsuite.sweeping.sweep",
    "ChunkEvaluation": "rlsuite.sweeping.callback",
    "Experiment": "rlsuite.sweeping.sweep",
    "Limits": "rlsuite.training.plan",
    "Policy": "rlsuite.commands.api",
    "Reference": "envs.core",
    "Run": "rlsuite.commands.api",
    "Settings": "rlsuite.sweeping.settings",
    "Stopped": "rlsuite.errors",
    "UserError": "rlsuite.errors",
    "load_policy": "rlsuite.commands.api",
    "report": "rlsuite.commands.api",
    "run": "rlsuite.commands.api",
    "sweep": "rlsuite.commands.api",
}
"""Name -> the module that it is imported from."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value  # asked for once
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
