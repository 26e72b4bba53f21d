"""What a sweep is, as data: an experiment is a list of cells. `job.py` resolves a cell into a job, whose results are
one shard."""

from __future__ import annotations

import dataclasses
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import envs
from envs import Env, Reference, mujoco_c
from rlsuite.errors import UserError

EvaluationPhysics = Literal["own", "mujoco"]


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
    """the first seed of each setting"""
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
    """one line, which is printed before it is run"""
    cells: tuple[Cell, ...]
    """at least one, in the order in which they are trained and reported"""


def env_of(cell: Cell) -> Env:
    """The environment that a cell is trained and evaluated on. Raises UserError, as `make_env`."""
    return make_env(cell.environment, cell.max_episode_steps, cell.evaluation_physics)


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
