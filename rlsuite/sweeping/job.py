"""A cell resolved into a job: checked, with everything spelled out that identity, reference and manifest need.

A job is resolved once and pickles as plain values, so that an executor may train any range of its runs anywhere, see
`chunk.py`. Its results are one shard: a file of rows under the job's name, see `store.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, get_args

import envs
from envs import Env, Reference, datasets
from envs.mujoco_c import WithC
from rlsuite import algorithms
from rlsuite.core import AlgorithmSpec, identity
from rlsuite.errors import MOST_INT32, MOST_RUNS, UserError, check_at_most, check_positive, check_updates
from rlsuite.sweeping import catalogue, provenance
from rlsuite.sweeping.checks import (
    check_file_name,
    check_hyper,
    check_range,
    check_reference,
    check_sizes,
    check_type,
)
from rlsuite.sweeping.sweep import Cell, EvaluationPhysics, Experiment, env_of
from rlsuite.training.train import evaluation_points

MAX_NAME = 240
"""Characters of a shard's name, with which those of its files stay within the 255 that file systems allow."""


@dataclasses.dataclass(frozen=True)
class Job:
    """All runs of a cell."""

    experiment: str
    cell: Cell
    """with the config and a tuple of hypers"""
    name: str
    """of its shard: the file name without extension, with a digest of all that the results depend on"""
    label: str
    """the curve's name in a report"""
    environment: str
    """canonical id"""
    config_hash: str
    """eight hex digits of the algorithm and its Config"""
    steps_per_update: int
    physics: str
    """the simulator that gives the scores"""
    environment_reference: Reference | None
    """returns that normalised scores are measured between, if neither the cell nor its dataset has others"""
    preset: str | None
    """where the settings are from, if they are those that the method has for this task"""
    evidence: str | None
    """level of the method's source, see `rlsuite/evidence.py`"""
    packages: dict[str, dict[str, str]]
    """code of others that brings the algorithm or the environment, see `provenance.packages`"""
    place: int = 0
    """of the cell in its experiment, which is the order of the labels in a report"""

    @property
    def config(self) -> Any:
        """The algorithm's `Config`."""
        return self.cell.config

    @functools.cached_property
    def runs(self) -> tuple[tuple[int, Any], ...]:
        """(seed, Hypers) of each run."""
        return runs_of(self.cell)

    @property
    def total_updates(self) -> int:
        """Updates of each run."""
        return -(-self.cell.steps // self.steps_per_update)

    @property
    def points(self) -> list[int]:
        """Update counts at which every run is evaluated."""
        return evaluation_points(self.total_updates, self.cell.evaluations)

    def reference(self, dataset_reference: Reference | None = None) -> dict[str, Any] | None:
        """The returns that scores are measured between: the cell's own, else the dataset's or the environment's."""
        reference = self.cell.reference or dataset_reference or self.environment_reference
        return reference._asdict() if reference else None

    def describe(self) -> dict[str, Any]:
        """The job as plain JSON values, for the manifest."""
        cell = self.cell
        names = ("dataset", "sampling", "clip_actions")
        return {
            "shard": self.name,
            "experiment": self.experiment,
            "label": self.label,
            "evidence": self.evidence,
            "cell": self.place,
            "algorithm": cell.algorithm,
            "environment": self.environment,
            **({} if cell.dataset is None else {name: getattr(cell, name) for name in names}),
            "config": identity(self.config),
            "config_hash": self.config_hash,
            "hypers": [each._asdict() for each in cell.hypers],
            "preset": self.preset,
            "seeds": [seed for seed, _ in self.runs],
            "steps": cell.steps,
            "evaluations": cell.evaluations,
            "eval_episodes": cell.eval_episodes,
            "max_episode_steps": cell.max_episode_steps,
            "reference": self.reference(),
        }

    def at_seeds(self, first_seed: int, seeds: int) -> Job:
        """The same at other seeds."""
        return resolve(self.experiment, dataclasses.replace(self.cell, first_seed=first_seed, seeds=seeds))

    def __reduce__(self) -> Any:
        """Plain values alone: the classes of some settings are made when a method is asked for, as by `+cdsa`."""
        cell = {**_shallow(self.cell), "config": _shallow(self.config), "hypers": [tuple(h) for h in self.cell.hypers]}
        return _from_plain, ({**_shallow(self), "cell": cell},)


def _shallow(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def _from_plain(values: dict[str, Any]) -> Job:
    cell = values["cell"]
    spec = algorithms.get(cell["algorithm"])
    hypers = tuple(spec.hypers(*each) for each in cell["hypers"])
    return Job(**{**values, "cell": Cell(**{**cell, "config": spec.config(**cell["config"]), "hypers": hypers})})


def runs_of(cell: Cell) -> tuple[tuple[int, Any], ...]:
    """(seed, Hypers) of each run of a cell whose hypers are spelled out: all seeds of the first setting come first."""
    seeds = range(cell.first_seed, cell.first_seed + cell.seeds)
    return tuple((seed, hypers) for hypers in cell.hypers for seed in seeds)


def resolve_all(experiment: Experiment) -> list[Job]:
    """Resolve every cell of an experiment before any of them runs.

    Raises:
        UserError: as `resolve`, with the cell's place; or two cells that would write the same file.
    """
    check_file_name("experiment name", experiment.name)
    if not isinstance(experiment.cells, tuple) or not experiment.cells:
        raise UserError(f"experiment '{experiment.name}' must have a tuple of cells, such as (Cell(...),)")
    jobs: list[Job] = []
    for i, cell in enumerate(experiment.cells):
        try:
            if not isinstance(cell, Cell):
                raise UserError(f"expected a Cell(...), got {cell!r}")
            jobs.append(dataclasses.replace(resolve(experiment.name, cell), place=i))
        except UserError as error:
            raise UserError(f"cell {i} of experiment '{experiment.name}': {error}") from error
    names = [job.name for job in jobs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"experiment '{experiment.name}' has two identical cells ({name}); remove one or label it")
    return jobs


def resolve(experiment: str, cell: Cell) -> Job:
    """Check a cell and spell it out. Nothing is compiled, written, or read of its dataset.

    Raises:
        UserError: an unknown name, a value out of range, an algorithm that cannot take the environment's actions.
    """
    check_file_name("experiment name", experiment)
    check_values(cell)
    spec = algorithms.get(cell.algorithm)
    env = env_of(cell)
    algorithms.check_actions(cell.algorithm, env)
    check_dataset(cell, spec, env)
    preset = spec.preset(env.id, cell.dataset)
    config = preset.config if cell.config is None else cell.config
    # A Hypers is a tuple too, a named one.
    given = cell.hypers if isinstance(cell.hypers, tuple) and not hasattr(cell.hypers, "_fields") else (cell.hypers,)
    hypers: tuple[Any, ...] = tuple(preset.hypers if each is None else each for each in given)
    check_settings(cell, spec, config, hypers)
    algorithm = spec.make(spec.fit(config, cell.steps))  # raises UserError for a config that cannot work
    check_updates(cell.steps, algorithm.steps_per_update)
    cell = dataclasses.replace(cell, config=config, hypers=hypers)
    label = cell.label if cell.label is not None else spec.label or cell.algorithm
    config_hash = _digest([cell.algorithm, {**identity(config), **spec.former}])
    info = envs.info(env.id)
    return Job(
        experiment,
        cell,
        name=name_of(label, cell.dataset or env.id, identity_of(cell, env.id, config_hash, spec.former_hypers)),
        label=label,
        environment=env.id,
        config_hash=config_hash,
        steps_per_update=algorithm.steps_per_update,
        physics=env.backend if isinstance(env, WithC) else info.backend,
        environment_reference=info.reference,
        preset=preset.source if (config, hypers) == (preset.config, (preset.hypers,)) else None,
        evidence=spec.source.level if spec.source else None,
        packages=provenance.packages(cell.algorithm, env.id),
    )


def identity_of(cell: Cell, environment: str, config_hash: str, former_hypers: Mapping[str, Any]) -> list[Any]:
    """All that the results of a cell depend on, as plain JSON values.

    Settings that were added later, or are gone, count as if they were there with the value that they had.
    """
    values: list[Any] = [
        config_hash,
        environment,
        cell.max_episode_steps,
        cell.steps,
        cell.evaluations,
        cell.eval_episodes,
        # As floats, which the program computes with: a discount of 1 is one of 1.0.
        [
            (seed, {name: float(value) for name, value in {**hypers._asdict(), **former_hypers}.items()})
            for seed, hypers in runs_of(cell)
        ],
    ]
    if cell.evaluation_physics != "own":
        values.append(cell.evaluation_physics)
    if cell.dataset is not None:
        # True only, so that names from before there was a choice stay.
        values += [cell.dataset, cell.sampling, *(["clip_actions"] if cell.clip_actions else [])]
    return values


def name_of(label: str, where: str, identity: list[Any]) -> str:
    """The name of a shard; `where` is its dataset, or its environment."""
    digest = _digest(identity)
    # Of a long path the end says most; the digest is of all of it.
    room = MAX_NAME - len(label) - len(digest) - 2 * len("__")
    readable = re.sub(r"[^A-Za-z0-9._+=-]+", "-", where).strip("-")[-room:].strip("-")
    return "__".join([label, readable, digest])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def check_values(cell: Cell) -> None:
    """Raise UserError for a value of a cell that is wrong whatever the algorithm and the environment are."""
    if cell.label is not None:
        check_file_name("label", cell.label)
    check_reference(cell.reference)
    check_type("algorithm", cell.algorithm, "ppo")
    check_type("environment", cell.environment, "gymnax/CartPole-v1")
    algorithms.get(cell.algorithm)
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


def check_settings(cell: Cell, spec: AlgorithmSpec, config: Any, hypers: tuple[Any, ...]) -> None:
    """Raise UserError unless config and hypers are of this method and hold values that it can have."""
    if not isinstance(config, spec.config):
        raise UserError(f"config of '{cell.algorithm}' must be its Config, got {type(config).__qualname__}")
    for field in dataclasses.fields(spec.config):
        check_type(field.name, getattr(config, field.name), field.default)
        check_sizes(field.name, getattr(config, field.name), field.default)
        check_range(field.name, getattr(config, field.name))
    for each in hypers:
        if not isinstance(each, spec.hypers):
            raise UserError(f"hypers of '{cell.algorithm}' must be its Hypers, got {type(each).__qualname__}")
    for name, value in [item for each in hypers for item in each._asdict().items()]:
        check_hyper(name, value, getattr(spec.hypers(), name))
    if len(set(hypers)) < max(len(hypers), 1):
        raise UserError(f"hypers must be one or more different settings, got {hypers}; remove what is there twice")
    if len(hypers) * cell.seeds > MOST_RUNS:
        raise UserError(f"{len(hypers)} settings of hypers with {cell.seeds} seeds are more than {MOST_RUNS} runs")


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
