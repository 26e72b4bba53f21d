"""What a sweep is, as data: an experiment is cells, a cell becomes a shard, a shard is one file of results."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import math
import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import envs
from envs import Env, Reference, datasets, mujoco_c
from rlsuite import algorithms
from rlsuite.core import AlgorithmSpec, Task, identity
from rlsuite.errors import (
    MOST_FLOAT32,
    MOST_INT32,
    MOST_RUNS,
    UserError,
    check_at_most,
    check_positive,
    check_updates,
    is_float32,
)
from rlsuite.sweeping import catalogue

EvaluationPhysics = Literal["own", "mujoco"]
EXAMPLE_REFERENCE = Reference(0.0, 100.0, "random actions", "somebody's paper")

MAX_NAME = 240
"""Characters of a shard's name, with which those of its files stay within the 255 that file systems allow."""

RANGES = {"*learning_rate": (0.0, math.inf), "discount": (0.0, 1.0), "gae_lambda": (0.0, 1.0), "tau": (0.0, 1.0)}
"""Name of a hyperparameter, of any algorithm -> the least and the most that it may be; others may be any number."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One algorithm on one environment, and offline on one dataset of it."""

    algorithm: str
    """a name from `rlsuite list`"""
    environment: str
    """an id from `rlsuite list`"""
    steps: int
    """environment steps of each run, gradient steps of an offline one; rounded up to whole updates"""
    seeds: int = 32
    """runs of each setting of the hyperparameters, with seeds first_seed, first_seed + 1, ..."""
    first_seed: int = 0
    config: Any = None
    """the algorithm's `Config`; None is the one it has for this environment, or its default"""
    hypers: Any = None
    """the algorithm's `Hypers`, or a tuple of them to compare; None as for `config`"""
    evaluations: int = 10
    """evaluations after the one of the untrained policy"""
    eval_episodes: int = 16
    """complete episodes of each run in each evaluation"""
    max_episode_steps: int | None = None
    """the time limit, if not the environment's own"""
    evaluation_physics: EvaluationPhysics = "own"
    """what evaluations are played on: the environment's own simulator, or C MuJoCo, which `mujoco/...` tasks have"""
    label: str | None = None
    """the name of the curve in a report, and the beginning of its file's name; None is the algorithm's"""
    dataset: str | None = None
    """what an offline algorithm learns from: see docs/datasets.md for the ids there are"""
    sampling: str = "uniform"
    """how its transitions are drawn, see `envs.datasets.SAMPLINGS`"""
    clip_actions: bool = False
    """clip the dataset's actions to the action box, instead of refusing those outside of it"""
    reference: Reference | None = None
    """for normalised scores, if not the dataset's or the environment's own; a task without stays out of aggregates"""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A named list of cells."""

    name: str
    """the folder under `results/`"""
    description: str
    cells: tuple[Cell, ...]


@dataclasses.dataclass(frozen=True)
class Shard:
    """A cell with everything spelled out and checked, ready to run."""

    experiment: str
    cell: Cell
    environment: str
    """canonical id"""
    config: Any
    runs: tuple[tuple[int, Any], ...]
    """(seed, Hypers) of each run"""
    place: int = 0
    """that of the cell in its experiment, which is the order of the labels in a report"""

    @property
    def label(self) -> str:
        """The curve's name in a report."""
        if self.cell.label is not None:
            return self.cell.label
        return algorithms.get(self.cell.algorithm).label or self.cell.algorithm

    @property
    def config_hash(self) -> str:
        """Eight hex digits of the algorithm and its Config."""
        former = algorithms.get(self.cell.algorithm).former
        return _digest([self.cell.algorithm, {**identity(self.config), **former}])

    @property
    def name(self) -> str:
        """The file name without extension. It holds a digest of all that the results depend on."""
        cell = self.cell
        former = algorithms.get(cell.algorithm).former_hypers
        identity = [
            self.config_hash,
            self.environment,
            cell.max_episode_steps,
            cell.steps,
            cell.evaluations,
            cell.eval_episodes,
            # As floats, which the program computes with: a discount of 1 is one of 1.0.
            [
                (seed, {name: float(value) for name, value in {**hypers._asdict(), **former}.items()})
                for seed, hypers in self.runs
            ],
        ]
        if cell.evaluation_physics != "own":
            identity.append(cell.evaluation_physics)
        where = self.environment
        if cell.dataset is not None:
            # True only, so that names from before there was a choice stay.
            identity += [cell.dataset, cell.sampling, *(["clip_actions"] if cell.clip_actions else [])]
            where = cell.dataset
        digest = _digest(identity)
        # Of a long path the end says most; the digest is of all of it.
        room = MAX_NAME - len(self.label) - len(digest) - 2 * len("__")
        readable = re.sub(r"[^A-Za-z0-9._+=-]+", "-", where).strip("-")[-room:].strip("-")
        return "__".join([self.label, readable, digest])

    def describe(self) -> dict[str, Any]:
        """All of it as plain JSON values, for the manifest."""
        cell = self.cell
        reference = cell.reference or envs.info(self.environment).reference
        preset = algorithms.get(cell.algorithm).preset(self.environment, cell.dataset)
        names = ("dataset", "sampling", "clip_actions")
        offline = {} if cell.dataset is None else {name: getattr(cell, name) for name in names}
        hypers = list(dict.fromkeys(hypers for _, hypers in self.runs))
        return {
            "shard": self.name,
            "experiment": self.experiment,
            "label": self.label,
            "evidence": source.level if (source := algorithms.get(cell.algorithm).source) else None,
            "cell": self.place,
            "algorithm": cell.algorithm,
            "environment": self.environment,
            **offline,
            "config": identity(self.config),
            "config_hash": self.config_hash,
            "hypers": [each._asdict() for each in hypers],
            "preset": preset.source if (self.config, hypers) == (preset.config, [preset.hypers]) else None,
            "seeds": [seed for seed, _ in self.runs],
            "steps": cell.steps,
            "evaluations": cell.evaluations,
            "eval_episodes": cell.eval_episodes,
            "max_episode_steps": cell.max_episode_steps,
            "reference": reference._asdict() if reference else None,
        }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def shard(experiment: str, cell: Cell) -> Shard:
    """Check a cell and spell it out. Nothing is compiled or written.

    Raises:
        UserError: an unknown name, a value out of range, an algorithm that cannot take the environment's actions.
    """
    check_file_name("experiment name", experiment)
    if cell.label is not None:
        check_file_name("label", cell.label)
    check_reference(cell.reference)
    check_type("algorithm", cell.algorithm, "ppo")
    check_type("environment", cell.environment, "gymnax/CartPole-v1")
    spec = algorithms.get(cell.algorithm)
    for name in ("steps", "seeds", "first_seed", "evaluations", "eval_episodes"):
        check_type(name, getattr(cell, name), 1)
    if cell.max_episode_steps is not None:
        check_type("max_episode_steps", cell.max_episode_steps, 1000)
    if cell.dataset is not None:
        check_type("dataset", cell.dataset, "gymnax/Pendulum-v1/medium")
    check_type("sampling", cell.sampling, "uniform")
    check_type("clip_actions", cell.clip_actions, False)
    check_positive(steps=cell.steps, seeds=cell.seeds, evaluations=cell.evaluations, eval_episodes=cell.eval_episodes)
    check_at_most(MOST_RUNS, seeds=cell.seeds, evaluations=cell.evaluations)
    check_at_most(MOST_INT32, eval_episodes=cell.eval_episodes)
    if cell.evaluation_physics not in get_args(EvaluationPhysics):
        there = ", ".join(get_args(EvaluationPhysics))
        raise UserError(f"unknown evaluation_physics={cell.evaluation_physics!r}; there are: {there}")
    if cell.first_seed < 0 or cell.first_seed + cell.seeds > 2**32:
        raise UserError(
            f"first_seed={cell.first_seed} with {cell.seeds} seeds leaves 0 .. 4294967295; choose a smaller one"
        )
    env = env_of(cell)
    algorithms.check_actions(cell.algorithm, env)
    check_dataset(cell, spec, env)
    preset = spec.preset(env.id, cell.dataset)
    config = preset.config if cell.config is None else cell.config
    if not isinstance(config, spec.config):
        raise UserError(f"config of '{cell.algorithm}' must be its Config, got {type(config).__qualname__}")
    for field in dataclasses.fields(spec.config):
        check_type(field.name, getattr(config, field.name), field.default)
        check_sizes(field.name, getattr(config, field.name), field.default)
        check_range(field.name, getattr(config, field.name))
    # A Hypers is a tuple too, a named one.
    given = cell.hypers if isinstance(cell.hypers, tuple) and not hasattr(cell.hypers, "_fields") else (cell.hypers,)
    settings: tuple[Any, ...] = tuple(preset.hypers if hypers is None else hypers for hypers in given)
    for hypers in settings:
        if not isinstance(hypers, spec.hypers):
            raise UserError(f"hypers of '{cell.algorithm}' must be its Hypers, got {type(hypers).__qualname__}")
    for name, value in [item for hypers in settings for item in hypers._asdict().items()]:
        check_hyper(name, value, getattr(spec.hypers(), name))
    if len(set(settings)) < max(len(settings), 1):
        raise UserError(f"hypers must be one or more different settings, got {settings}; remove what is there twice")
    if len(settings) * cell.seeds > MOST_RUNS:
        raise UserError(f"{len(settings)} settings of hypers with {cell.seeds} seeds are more than {MOST_RUNS} runs")
    algorithm = spec.make(spec.fit(config, cell.steps))  # raises UserError for a config that cannot work
    check_updates(cell.steps, algorithm.steps_per_update)
    seeds = range(cell.first_seed, cell.first_seed + cell.seeds)
    return Shard(experiment, cell, env.id, config, tuple((seed, hypers) for hypers in settings for seed in seeds))


def make_env(env_id: str, max_episode_steps: int | None = None, physics: EvaluationPhysics = "own") -> Env:
    """The environment of this id, with these physics for evaluations.

    Raises:
        UserError: there is none, it cannot be built, or it has no such physics.
    """
    try:
        env = envs.make(env_id, max_episode_steps=max_episode_steps)
        return mujoco_c.with_c(env) if physics == "mujoco" else env
    except (ValueError, ImportError) as error:
        raise UserError(str(error)) from error


def task_of(cell: Cell) -> Task:
    """What a cell is trained and evaluated on. Its dataset is read; `collect.ensure` makes one that is missing.

    Raises:
        UserError: as `make_env`; or the dataset is not there, cannot be read, or is of another environment.
    """
    env = env_of(cell)
    if cell.dataset is None:
        return Task(env)
    dataset = catalogue.read(cell.dataset, env, cell.sampling, cell.clip_actions)
    return Task(env, algorithms.get(cell.algorithm).prepare(dataset))


def env_of(cell: Cell) -> Env:
    """The environment that a cell is trained and evaluated on. Raises UserError, as `make_env`."""
    return make_env(cell.environment, cell.max_episode_steps, cell.evaluation_physics)


def check_dataset(cell: Cell, spec: AlgorithmSpec, env: Env) -> None:
    """Raise UserError unless the cell has a dataset if and only if its algorithm learns from one."""
    if not spec.offline:
        if cell.dataset is not None or cell.sampling != "uniform" or cell.clip_actions:
            offline = ", ".join(name for name, other in algorithms.registered().items() if other.offline)
            raise UserError(
                f"'{cell.algorithm}' learns from its environment and takes no dataset; those that do: {offline}"
            )
        return
    if cell.dataset is None:
        raise UserError(
            f"'{cell.algorithm}' learns from a dataset and was given none; name one, such as '{env.id}/medium'"
        )
    try:
        datasets.check_sampling(cell.sampling)
    except datasets.DatasetError as error:
        raise UserError(str(error)) from error
    catalogue.check(cell.dataset, env)


def check_file_name(what: str, name: str) -> None:
    """Raise UserError unless this can be the name of a file or folder, or a part of one, on any system."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 .,+=()_-]{0,79}", name):
        raise UserError(
            f"{what} {name!r} becomes a file name: at most 80 letters, digits and any of ' .,+=()_-', beginning with "
            "a letter or digit; choose another"
        )


def check_reference(reference: Any) -> None:
    """Raise UserError unless normalised scores can be measured with it, or it is None."""
    if reference is None:
        return
    if not isinstance(reference, Reference):
        raise UserError(f"reference={reference!r} must be a Reference, such as {EXAMPLE_REFERENCE}")
    low, high, *sources = reference
    most = sys.float_info.max
    if not all(isinstance(value, int | float) and -most <= value <= most for value in (low, high)) or low >= high:
        raise UserError(f"reference={reference} must have finite numbers, low below high, such as {EXAMPLE_REFERENCE}")
    if not all(isinstance(source, str) for source in sources):
        raise UserError(f"reference={reference} must say in words where it is from, such as {EXAMPLE_REFERENCE}")


def check_type(name: str, value: Any, example: Any) -> None:
    """Raise UserError unless the value is of the example's type; None is an example of anything.

    Type checkers read the code that makes a cell, but nobody else does, and `steps=1e6` is easily typed.
    """
    if example is not None and type(value) is not type(example):
        raise UserError(f"{name}={value!r} must be of type {type(example).__name__}, such as {example!r}")


def check_hyper(name: str, value: Any, example: float) -> None:
    """Raise UserError unless this is a finite number in float32 too, within RANGES where they have the name."""
    if not isinstance(value, int | float) or not is_float32(value):
        raise UserError(f"{name}={value!r} must be a finite number up to {MOST_FLOAT32:.6g}, such as {example}")
    for pattern, (low, high) in RANGES.items():
        if fnmatch.fnmatchcase(name, pattern) and not low <= value <= high:
            allowed = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise UserError(f"{name}={value!r} must be {allowed}, such as {example}")


def check_range(name: str, value: Any) -> None:
    """Raise UserError for a number of a Config that int32 or float32 cannot hold, alone or in a tuple."""
    for number in value if isinstance(value, tuple) else (value,):
        if type(number) is int and abs(number) > MOST_INT32:
            raise UserError(f"{name}={value!r} must be at most {MOST_INT32}")
        if type(number) is float and not is_float32(number):
            raise UserError(f"{name}={value!r} must be finite, and at most {MOST_FLOAT32:.6g}")


def check_sizes(name: str, value: Any, example: Any) -> None:
    """Raise UserError unless the value is a tuple of sizes, if the example is one. No sizes at all are such a tuple."""
    if not isinstance(example, tuple) or not all(type(size) is int for size in example):
        return
    if not all(type(size) is int and size >= 1 for size in value):
        raise UserError(f"{name}={value!r} must be whole numbers of at least 1, such as {example!r}")


def shards(experiment: Experiment) -> list[Shard]:
    """Check every cell before any of them runs.

    Raises:
        UserError: as `shard`, with the cell's place; or two cells that would write the same file.
    """
    check_file_name("experiment name", experiment.name)
    if not isinstance(experiment.cells, tuple) or not experiment.cells:
        raise UserError(f"experiment '{experiment.name}' must have a tuple of cells, such as (Cell(...),)")
    result: list[Shard] = []
    for i, cell in enumerate(experiment.cells):
        try:
            if not isinstance(cell, Cell):
                raise UserError(f"expected a Cell(...), got {cell!r}")
            result.append(dataclasses.replace(shard(experiment.name, cell), place=i))
        except UserError as error:
            raise UserError(f"cell {i} of experiment '{experiment.name}': {error}") from error
    names = [s.name for s in result]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"experiment '{experiment.name}' has two identical cells ({name}); remove one or label it")
    return result


def load(path: str | Path) -> Experiment:
    """The `EXPERIMENT` that a Python file defines, or with `file.py:FULL` the one it calls `FULL`.

    Raises:
        UserError: no such file, it does not run, or it defines no such experiment.
    """
    return load_as(Experiment, path, "EXPERIMENT")


Defined = TypeVar("Defined")


def load_as(kind: type[Defined], path: str | Path, default_name: str) -> Defined:
    """What a Python file defines under a name, which is of this kind. Errors as `load`."""
    file, _, name = str(path).partition(":")
    path, name = Path(file), name or default_name
    if not path.is_file():
        found: Sequence[str] = sorted(str(p) for p in Path("experiments").glob("[a-z]*.py"))
        raise UserError(
            f"no experiment file '{path}'; " + (f"there are: {', '.join(found)}" if found else "give its path")
        )
    try:
        namespace = runpy.run_path(str(path))
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"experiment file '{path}' does not run: {type(error).__name__}: {reason}") from error
    defined = namespace.get(name)
    if not isinstance(defined, kind):
        there = [f"{path}:{other}" for other, value in namespace.items() if isinstance(value, kind)]
        hint = f"; there are: {', '.join(there)}" if there else ""
        where = f"{kind.__module__}.{kind.__qualname__}"
        raise UserError(f"experiment file '{path}' must define {name} = {where}(...){hint}")
    return defined
