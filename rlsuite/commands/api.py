"""What commands do, as functions of Python: `rlsuite.run`, `rlsuite.sweep`, `rlsuite.report`, `rlsuite.load_policy`.

Each raises `UserError` with one line for what a user can fix. Training shows its progress and may run in any thread:
signals are noted in the main one alone. See docs/python.md.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from envs.core import Env, Reference
from rlsuite import algorithms
from rlsuite.commands.report import missing_extra
from rlsuite.core import State
from rlsuite.errors import UserError, check_positive, hint
from rlsuite.sweeping import extend, job, local, policies, search
from rlsuite.sweeping import sweep as sweeps
from rlsuite.sweeping.callback import OnEvaluation
from rlsuite.sweeping.job import Job
from rlsuite.sweeping.settings import Settings, check_settings
from rlsuite.sweeping.store import Store
from rlsuite.sweeping.sweep import Cell, EvaluationPhysics, Experiment
from rlsuite.training.device import prepare_jax
from rlsuite.training.evaluate import Episodes, check_ended, evaluate

if TYPE_CHECKING:
    import pandas as pd

    from analysis import Scores

PathLike: TypeAlias = str | os.PathLike[str]
Changes: TypeAlias = Mapping[str, Any]
"""Name of a setting -> its value."""


@dataclasses.dataclass(frozen=True)
class Run:
    """The results of a call: some shards in a folder."""

    folder: Path
    """of the experiment"""
    shards: tuple[str, ...]
    """names of files in it, without their endings"""

    def table(self) -> pd.DataFrame:
        """A row for each run and evaluation, with the columns of docs/results.md.

        Raises:
            UserError: the results cannot be read, or the analysis extra is missing.
        """
        with _reading():
            from analysis import load, manifests, select

            return select(load(self.folder), manifests(self.folder), shards=self.shards)[0]

    def scores(self) -> Scores:
        """Curves and scores of the runs, by label and task: what `analysis` computes statistics of.

        Raises:
            UserError: as `table`.
        """
        with _reading():
            from analysis import load, manifests, score, select

            return score(*select(load(self.folder), manifests(self.folder), shards=self.shards))

    def report(self) -> Path:
        """Print the tables, write page and figures into the folder, and return the path of the page.

        Raises:
            UserError: as `table`, or the folder cannot be written.
        """
        return report(self.folder, shards=self.shards)


@dataclasses.dataclass(frozen=True)
class Policy:
    """What one run has learned, on the environment that it has learned it on."""

    env: Env
    """with the time limit of the run"""
    seed: int
    """of the run"""
    update: int
    """updates that it has learned for"""
    trained: policies.Trained = dataclasses.field(repr=False)
    """what all runs of the shard have learned"""
    state: State = dataclasses.field(repr=False)
    """a state that acts as the run did; see `policies.Trained.state`"""

    def act(self, obs: Any, seed: int = 0) -> np.ndarray:
        """The action of the evaluation policy.

        Args:
            obs: `[obs_dim]`
            seed: of the policy's own randomness, if it has any.

        Returns:
            `[action_dim]` float32 inside the action box, or `[]` int32 for discrete actions.

        Raises:
            UserError: an observation of another shape.
        """
        obs = np.asarray(obs, np.float32)
        if obs.shape != (self.env.obs_dim,):
            raise UserError(f"obs has the shape {obs.shape}, but '{self.env.id}' shows ({self.env.obs_dim},)")
        return np.asarray(self._act(self.state, jax.random.key(seed), obs))

    def play(self, episodes: int = 16, seed: int = 0) -> Episodes:
        """Complete episodes on `env`.

        Args:
            episodes: how many, side by side.
            seed: of the starts, the environment's randomness and the policy's own.

        Returns:
            Returns (sums of rewards) and lengths (steps), with whether each has ended: all `[episodes]`.

        Raises:
            UserError: fewer than one episode, or one that does not end.
        """
        check_positive(episodes=episodes)
        play = jax.jit(lambda state, key: evaluate(key, self.trained.algorithm, self.trained.task, state, episodes))
        played: Episodes = play(self.state, jax.random.key(seed))
        check_ended(played.ended, self.env)
        return played

    @cached_property
    def _act(self) -> Any:
        algorithm, task = self.trained.algorithm, self.trained.task
        return jax.jit(lambda state, key, obs: algorithm.act(key, task, state, jnp.asarray(obs)))


def run(
    algorithm: str,
    environment: str,
    *,
    steps: int = 100_000,
    seeds: int = Cell.seeds,
    first_seed: int = Cell.first_seed,
    config: Any = None,
    hypers: Any = None,
    evaluations: int = Cell.evaluations,
    eval_episodes: int = Cell.eval_episodes,
    max_episode_steps: int | None = None,
    evaluation_physics: EvaluationPhysics = "own",
    label: str | None = None,
    dataset: str | None = None,
    sampling: str = Cell.sampling,
    clip_actions: bool = False,
    reference: Reference | None = None,
    name: str = "run",
    results: PathLike = "results",
    settings: Settings | None = None,
    on_evaluation: OnEvaluation | None = None,
) -> Run:
    """Train one algorithm on one environment at many seeds, as `rlsuite run`: `run("ppo", "gymnax/CartPole-v1")`.

    Runs that the folder `results`/`name` holds are kept, and an interrupted call goes on. See `Cell` for the arguments
    that are not here.

    Args:
        config: the algorithm's `Config`, or a mapping of what differs from the one for this environment.
        hypers: the algorithm's `Hypers`, a tuple of them, or a mapping of what differs from those for this environment;
            a tuple of values in the mapping is tried in every combination with the others.
        name: the experiment, a folder below `results`.
        results: the folder of all results.
        settings: how the runs are executed; None is as the command does it, and keeps what each run has learned.
        on_evaluation: called with a `ChunkEvaluation` whenever runs have been evaluated and their rows are written, the
            first time before they learn; in the thread of this call, which waits for it. It is told of what this call
            computes and of nothing that was there before. What it raises ends the call, after saving.

    Raises:
        UserError: an unknown name, or a value that cannot work.
        Stopped: by SIGINT or SIGTERM, after saving; the same call goes on.
        Exception: what `on_evaluation` raises, after saving; the same call goes on after that evaluation.
    """
    prepare_jax()  # before an environment is made, which computes
    preset = algorithms.get(algorithm).preset(environment, dataset)
    cell = Cell(
        algorithm,
        environment,
        steps,
        seeds=seeds,
        first_seed=first_seed,
        config=_changed_config(preset.config, config) if isinstance(config, Mapping) else config,
        hypers=_combinations(preset.hypers, hypers) if isinstance(hypers, Mapping) else hypers,
        evaluations=evaluations,
        eval_episodes=eval_episodes,
        max_episode_steps=max_episode_steps,
        evaluation_physics=evaluation_physics,
        label=label,
        dataset=dataset,
        sampling=sampling,
        clip_actions=clip_actions,
        reference=reference,
    )
    return _train([job.resolve(name, cell)], _path(results) / name, settings, on_evaluation)


def sweep(
    experiment: Experiment | PathLike,
    *,
    results: PathLike = "results",
    settings: Settings | None = None,
    on_evaluation: OnEvaluation | None = None,
) -> Run:
    """Train every cell of an experiment that has no results yet, as `rlsuite sweep`.

    Args:
        experiment: an `Experiment`, or the path of a file that defines `EXPERIMENT`, or `file.py:NAME`.
        results: the folder of all results; those of this experiment are in one of its name below.
        settings: as for `run`.
        on_evaluation: as for `run`.

    Raises:
        UserError, Stopped, Exception: as `run`.
    """
    prepare_jax()
    if not isinstance(experiment, Experiment):
        experiment = sweeps.load(_path(experiment))
    return _train(job.resolve_all(experiment), _path(results) / experiment.name, settings, on_evaluation)


def report(
    folder: PathLike,
    *,
    labels: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    shards: Sequence[str] | None = None,
    metrics: Sequence[str] = (),
    out: PathLike | None = None,
    repetitions: int = 2000,
    seed: int = 0,
) -> Path:
    """Print the tables of a folder of results, write page and figures, and return the path of the page.

    Args:
        labels: those that the report is of; all that are there without them.
        tasks: as `labels`.
        shards: as `labels`.
        metrics: training metrics to report too, such as `value_bias`.
        out: the folder to write into; the results' without it.
        repetitions: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        UserError: the results cannot be read, `out` cannot be written, or the analysis extra is missing.
    """
    check_positive(repetitions=repetitions)
    into = _path(folder if out is None else out)
    with _reading():
        from analysis.__main__ import report as write_report

        chosen = {"labels": labels, "tasks": tasks, "shards": shards}
        write_report(_path(folder), into, repetitions, seed, metrics, **chosen)
    return into / "report.html"


def load_policy(run: Run | PathLike, *, seed: int | None = None) -> Policy:
    """What a finished run has learned.

    Args:
        run: what `run` or `sweep` gave, or the path of a shard; it must be one shard.
        seed: of the run; the first of the shard without it.

    Raises:
        UserError: no such shard, more than one, one that is not finished or was trained without saving policies, no run
            of this seed, or one that has diverged.
    """
    if isinstance(run, Run):
        if len(run.shards) != 1:
            names = ", ".join(str(run.folder / name) for name in run.shards[:4])
            raise UserError(f"there are {len(run.shards)} shards; load the policy of one, such as {names}")
        run = run.folder / run.shards[0]
    prepare_jax()
    trained = policies.load(_path(run))
    seeds = trained.table["seed"].to_pylist()
    if seed is not None and seed not in seeds:
        raise UserError(f"no run has the seed {seed}; there are {min(seeds)} to {max(seeds)}")
    policy = trained.policy(0 if seed is None else seeds.index(seed))
    if policy.diverged:
        raise UserError(f"the run of seed {policy.seed} has diverged, so there is no policy; choose another seed")
    return Policy(trained.task.env, policy.seed, policy.update, trained, trained.state(policy.leaves))


def _train(jobs: Sequence[Job], folder: Path, settings: Settings | None, on_evaluation: OnEvaluation | None) -> Run:
    """Train what the folder lacks of these jobs. The shards of the result hold the same runs, some under other names
    where a call with fewer seeds has trained them."""
    settings = settings or Settings(save_policies=True)
    check_settings(settings)
    store = Store(folder)
    wanted = extend.extending(jobs, store)
    local.run(wanted, store, settings, on_evaluation)
    return Run(folder, tuple(one.name for one in wanted))


def _changed_config(config: Any, changes: Changes) -> Any:
    """The config with some fields changed. Raises UserError for one that it does not have."""
    fields = [field.name for field in dataclasses.fields(config)]
    for name in changes:
        if name not in fields:
            raise UserError(f"unknown setting '{name}' of the config; {hint(name, fields)}")
    return dataclasses.replace(config, **changes)


def _combinations(hypers: Any, changes: Changes) -> tuple[Any, ...]:
    """Every combination of the values, which are numbers or several numbers. Errors as `search.grid`."""
    axes = {name: (value,) if isinstance(value, int | float) else value for name, value in changes.items()}
    return search.grid(hypers, **axes)


def _path(given: PathLike) -> Path:
    return Path(os.path.expanduser(given))


@contextmanager
def _reading() -> Iterator[None]:
    """Errors of the analysis package as UserError, and one for the package that it lacks."""
    try:
        yield
    except ImportError as error:
        raise missing_extra(error) from error
    except UserError:
        raise
    except (ValueError, OSError) as error:  # ResultsError is a ValueError
        raise UserError(" ".join(str(error).split())) from error
