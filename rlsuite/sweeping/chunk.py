"""Train a range of a job's runs. It needs the job, its dataset and compiled programs, and hands all results to a sink.

So an executor decides where chunks run and where their results go, and knows neither training nor the files of a store.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from envs.datasets import Dataset
from rlsuite import algorithms
from rlsuite.core import Task
from rlsuite.sweeping import collect, policies
from rlsuite.sweeping.catalogue import Found
from rlsuite.sweeping.job import Job
from rlsuite.sweeping.sweep import env_of
from rlsuite.training.checkpoint import Snapshot
from rlsuite.training.plan import Work
from rlsuite.training.train import Evaluation, Pause, Programs, Training, train


class Sink(Protocol):
    """Where the results of a chunk of runs go. Each of its methods may raise, which ends the chunk."""

    save_policies: bool
    """keep what every run has learned"""

    def write_rows(self, first: int, evaluation: Evaluation) -> None:
        """Keep one evaluation of the runs from `first`. Once the last one is kept, the chunk is done."""

    def write_policies(self, first: int, update: int, diverged: np.ndarray, leaves: dict[str, np.ndarray]) -> None:
        """Keep what the runs from `first` have learned after `update` updates: `[runs]` bool and `[runs, ...]` each."""

    def paused(self, pause: Pause) -> bool:
        """Take note of how far the chunk is. Whether to give a snapshot now."""

    def save(self, snapshot: Snapshot) -> None:
        """Keep a snapshot to go on from. Its arrays are valid until this returns."""


class Given(NamedTuple):
    """The dataset that an offline job learns from."""

    found: Found
    dataset: Dataset


def given_to(job: Job) -> Given | None:
    """The dataset of a job, read; it is made if it is missing and can be made here. None for a job that needs none.

    Raises:
        UserError: as `collect.ensure` and `Found.read`.
    """
    cell = job.cell
    if cell.dataset is None:
        return None
    env = env_of(cell)
    found = collect.ensure(cell.dataset, env)
    return Given(found, found.read(env, cell.sampling, cell.clip_actions))


def work_of(job: Job, given: Given | None) -> Work:
    """What a job trains on which task, with the dataset that `given_to` gives.

    Raises:
        UserError: as `sweep.make_env`.
    """
    cell = job.cell
    spec = algorithms.get(cell.algorithm)
    config = spec.fit(job.config, cell.steps)
    task = Task(env_of(cell), None if given is None else spec.prepare(given.dataset))
    return Work(
        cell.algorithm,
        config,
        spec.make(config),
        task,
        job.runs[0][1],
        len(job.runs),
        job.total_updates,
        cell.eval_episodes,
    )


def run(
    job: Job, work: Work, programs: Programs, first: int, stop: int, sink: Sink, resumed: Training | None = None
) -> None:
    """Train the runs first, ..., stop - 1 of a job to the end, from `resumed` if it is given.

    `programs` are compiled for `work`, the job's, and are wide enough for these runs.
    """
    seeds, hypers = zip(*job.runs[first:stop], strict=True)
    pauses = train(programs, seeds, hypers, job.total_updates, job.points, resumed)
    del resumed  # a copy of the state, which `train` has now
    for pause in pauses:
        training = pause.training
        finished = training.update == job.total_updates
        if pause.evaluated:
            # A chunk is done once its last rows are there, so they come last.
            if finished and sink.save_policies:
                diverged = training.evaluation.diverged
                learned = policies.leaves(work.algorithm, work.task, work.hypers, training.learning.state)
                arrays = {name: np.asarray(leaf)[: len(diverged)] for name, leaf in learned.items()}
                sink.write_policies(first, training.update, diverged, arrays)
            sink.write_rows(first, training.evaluation)
        if sink.paused(pause) and not finished:
            sink.save(Snapshot(first, stop, training))
