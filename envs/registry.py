"""From a name to an environment, and the list of names.

A family is one module with four names, so that a new one needs a module and one line in `_FAMILIES`:

- `TASKS`: canonical id -> `TaskInfo`; importing the module must not import the simulator (listing is instant);
- `PACKAGE`, `INSTALL`: the package it needs (None for none) and the command that brings it;
- `build(env_id, max_episode_steps) -> Env`, whose leaves are concrete even if it is called inside a traced function,
  because `make` keeps what it returns.
"""

from __future__ import annotations

import difflib
import functools
import importlib
from types import ModuleType

from envs import brax, gymnax, playground, probes
from envs.core import Env, TaskInfo

_FAMILIES: tuple[ModuleType, ...] = (probes, gymnax, brax, playground)
_FAMILY_OF: dict[str, ModuleType] = {env_id: family for family in _FAMILIES for env_id in family.TASKS}
_ALIASES: dict[str, str] = brax.ALIASES


class UnknownEnvironmentError(ValueError):
    """No environment has this name."""


class MissingPackageError(ImportError):
    """The environment exists, but the package that simulates it cannot be imported."""


def registered() -> tuple[str, ...]:
    """Every canonical id, sorted. Imports no simulator."""
    return tuple(sorted(_FAMILY_OF))


def info(env_id: str) -> TaskInfo:
    """What is known of `env_id` without building it. Raises UnknownEnvironmentError."""
    canonical = _canonical(env_id)
    task: TaskInfo = _FAMILY_OF[canonical].TASKS[canonical]
    return task


def describe(env_id: str) -> str:
    """One line for `rlsuite list`. Raises UnknownEnvironmentError."""
    task = info(env_id)
    return f"{task.summary}; at most {task.max_episode_steps} steps"


def make(env_id: str, *, max_episode_steps: int | None = None) -> Env:
    """The environment `env_id`; the same arguments give the same object, so that no program compiles twice.

    `max_episode_steps` replaces the task's own time limit. Raises UnknownEnvironmentError for an unknown id,
    MissingPackageError where the simulator is not installed, ValueError for a limit below 1.
    """
    canonical = _canonical(env_id)
    limit = info(canonical).max_episode_steps if max_episode_steps is None else max_episode_steps
    if limit < 1:
        raise ValueError(f"max_episode_steps must be at least 1, got {limit}; leave it out for the task's own limit")
    return _make(canonical, limit)


@functools.cache
def _make(env_id: str, max_episode_steps: int) -> Env:
    family = _FAMILY_OF[env_id]
    if family.PACKAGE is not None:
        try:
            importlib.import_module(family.PACKAGE)
        except ImportError as error:
            raise MissingPackageError(
                f"environment {env_id!r} needs the package {family.PACKAGE!r} ({error}); "
                f"install it with: {family.INSTALL}"
            ) from error
    env: Env = family.build(env_id, max_episode_steps)
    return env


def _canonical(env_id: str) -> str:
    canonical = _ALIASES.get(env_id, env_id)
    if canonical in _FAMILY_OF:
        return canonical
    close = difflib.get_close_matches(env_id, [*_FAMILY_OF, *_ALIASES], n=1)
    hint = f"did you mean {close[0]!r}?" if close else "`rlsuite list` shows all environments"
    raise UnknownEnvironmentError(f"unknown environment {env_id!r}; {hint}")
