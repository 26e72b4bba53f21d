"""From an id to an environment, and the list of ids.

An id is a task's, or a task's with wrappers after it: `gymnax/Pendulum-v1+observation_noise=0.1+clip_actions`, see
`envs/wrappers.py`. A family of tasks is one module, so that a new one needs a module and a line in `_FAMILIES`. It has

- `TASKS`: canonical id -> `TaskInfo`; importing the module must not import the simulator (listing is instant);
- `PACKAGE`, `INSTALL`: the package it needs (None for none) and the command that brings it;
- `build(env_id, max_episode_steps) -> Env`, whose leaves are concrete even if it is called inside a traced function,
  because `make` keeps what it returns;
- `WRAPPERS`, if it likes: name -> `Wrapper`, such as settings of its simulator, for its own tasks only.

A family may also come with another package, by an entry point of the group `rlsuite.environments` that names the
module. Such packages are looked for when an id is not one of ours, or when all are listed.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import re
import sys
from collections.abc import Mapping
from types import ModuleType

from envs import brax, gymnax, lapack, mujoco, playground, plugins, probes, wrappers
from envs.core import Env, TaskInfo
from envs.plugins import Package
from envs.wrappers import Chosen, Wrapper

ENTRY_POINTS = "rlsuite.environments"
"""the group of entry points in which other packages name their families"""

_FAMILIES: tuple[ModuleType, ...] = (probes, gymnax, brax, mujoco, playground)
_FAMILY_OF: dict[str, ModuleType] = {env_id: family for family in _FAMILIES for env_id in family.TASKS}
_ALIASES: dict[str, str] = brax.ALIASES


class UnknownEnvironmentError(ValueError):
    """No environment has this name."""


class MissingPackageError(ImportError):
    """The environment exists, but the package that simulates it cannot be imported."""


def registered() -> tuple[str, ...]:
    """Every canonical id without wrappers, sorted. Imports no simulator.

    A package whose environments cannot be used is left out, with a warning that names it.
    """
    return tuple(sorted({**_FAMILY_OF, **_from_other_packages()}))


def describe_wrappers() -> dict[str, str]:
    """What may follow an id, such as `+reward_scale=FACTOR`, and one line on each, for people."""
    families = dict.fromkeys([*_FAMILIES, *(family for family, _ in _from_other_packages().values())])
    found = [(name, wrapper, "") for name, wrapper in wrappers.WRAPPERS.items()]
    for family in families:
        prefix = next(iter(family.TASKS)).split("/")[0]
        found += [(name, wrapper, f" (only {prefix}/...)") for name, wrapper in _own_wrappers(family).items()]
    return {
        f"+{name}" + (f"={wrapper.argument.name}" if wrapper.argument else ""): wrapper.summary + where
        for name, wrapper, where in found
    }


def info(env_id: str) -> TaskInfo:
    """What is known of `env_id` without building it.

    Reference returns are those of the plain task: with a wrapper that makes returns incomparable there are none.
    Raises UnknownEnvironmentError, and WrapperError for what is asked for after the task's own id.
    """
    task_id, chosen = _read(env_id)
    task: TaskInfo = _family(task_id).TASKS[task_id]
    return task if all(c.wrapper.keeps_reference for c in chosen) else task._replace(reference=None)


def comparable(env_id: str) -> str:
    """The id without wrappers that leave returns comparable with the task's. Errors as `info`."""
    name, chosen = _read(env_id)
    for each in chosen:
        if not each.wrapper.keeps_reference:
            name = wrappers.wrapped_id(name, each.name, each.value)
    return name


def make(env_id: str, *, max_episode_steps: int | None = None) -> Env:
    """The environment `env_id`; the same arguments give the same object, so that no program compiles twice.

    `max_episode_steps` replaces the task's own time limit; no wrapper does. Raises UnknownEnvironmentError for an
    unknown id, WrapperError for wrappers that do not exist or do not fit, MissingPackageError where the simulator is
    not installed, ValueError for a limit below 1 or above what int32 holds.
    """
    task_id, chosen = _read(env_id)
    limit = _family(task_id).TASKS[task_id].max_episode_steps if max_episode_steps is None else max_episode_steps
    if limit < 1:
        raise ValueError(f"max_episode_steps must be at least 1, got {limit}; leave it out for the task's own limit")
    if limit >= 2**31:
        raise ValueError(f"max_episode_steps must be at most {2**31 - 1}, which int32 holds, got {limit}")
    return _make(task_id, chosen, limit)


@functools.cache
def _make(task_id: str, chosen: tuple[Chosen, ...], max_episode_steps: int) -> Env:
    if chosen:
        return chosen[-1].apply(_make(task_id, chosen[:-1], max_episode_steps))
    family = _family(task_id)
    lapack.one_matrix_at_a_time()
    try:
        # What simulators print while they are imported must not get into tables and JSON of who asked for one.
        with contextlib.redirect_stdout(sys.stderr):
            env: Env = family.build(task_id, max_episode_steps)
    except ImportError as error:
        if family.PACKAGE is None:
            raise
        raise MissingPackageError(
            f"environment {task_id!r} needs the package {family.PACKAGE!r} ({error}); install it with: {family.INSTALL}"
        ) from error
    return env


def _read(env_id: str) -> tuple[str, tuple[Chosen, ...]]:
    """The canonical id of the task and the wrappers that an id asks for."""
    name, *asked = env_id.split("+")
    task_id = _ALIASES.get(name, name)
    return task_id, wrappers.read(task_id, asked, _own_wrappers(_family(task_id)))


def _family(task_id: str) -> ModuleType:
    """The module that offers a task. Raises UnknownEnvironmentError."""
    if task_id in _FAMILY_OF:
        return _FAMILY_OF[task_id]
    others = _from_other_packages()
    if task_id in others:
        return others[task_id][0]
    close = difflib.get_close_matches(task_id, [*_FAMILY_OF, *others, *_ALIASES], n=1)
    hint = f"did you mean {close[0]!r}?" if close else "`rlsuite list` shows all environments"
    raise UnknownEnvironmentError(f"unknown environment {task_id!r}; {hint}")


def package(env_id: str) -> Package | None:
    """The other package that brings `env_id`; None for ours. Errors as `info`."""
    task_id, _ = _read(env_id)
    return None if task_id in _FAMILY_OF else _from_other_packages()[task_id][1]


def _own_wrappers(family: ModuleType) -> Mapping[str, Wrapper]:
    """The family's `WRAPPERS`: the one name that a module may do without."""
    own: Mapping[str, Wrapper] = vars(family).get("WRAPPERS", {})
    return own


@functools.cache
def _from_other_packages() -> dict[str, tuple[ModuleType, Package]]:
    """Canonical id -> family and who brings it, of all that other installed packages bring and that can be used."""
    found: dict[str, tuple[ModuleType, Package]] = {}

    def add(_: str, family: object, package: Package) -> None:
        checked = _check_family(family)
        tasks = checked.TASKS
        if taken := [env_id for env_id in tasks if env_id in {**_FAMILY_OF, **_ALIASES, **found}]:
            raise ValueError(f"the ids {', '.join(map(repr, taken))} are taken")
        found.update(dict.fromkeys(tasks, (checked, package)))

    plugins.load(ENTRY_POINTS, "environments", add)
    return found


def _check_family(family: object) -> ModuleType:
    """The family, if it is a module as the docstring above has it; else raise TypeError or ValueError."""
    if not isinstance(family, ModuleType):
        raise TypeError(f"expected a module, got {type(family).__name__}")
    missing = [name for name in ("TASKS", "PACKAGE", "INSTALL", "build") if name not in vars(family)]
    if missing:
        raise TypeError(f"module {family.__name__!r} has no {' and no '.join(missing)}")
    if not family.TASKS:
        raise ValueError(f"module {family.__name__!r} has no environment in TASKS")
    for env_id, task in family.TASKS.items():
        # It becomes a part of file names, with a dash for each slash, and a plus sign would begin a wrapper.
        if not re.fullmatch(r"\w+(/[\w.-]+)+", env_id, re.ASCII) or len(env_id) > wrappers.MAX_ID_LENGTH:
            raise ValueError(f"the id {env_id!r} must be like 'family/Task-v1'")
        if not isinstance(task, TaskInfo):
            raise TypeError(f"TASKS[{env_id!r}] must be a TaskInfo, got {type(task).__name__}")
    shadowed = [name for name in _own_wrappers(family) if name in wrappers.WRAPPERS]
    if shadowed:
        raise ValueError(f"there is a wrapper {shadowed[0]!r} already")
    return family
