"""Workers of a Slurm cluster, by submitit: each order is a job, a chunk's one of an array.

Driver and jobs meet in the results folder, which all nodes see: `<folder>/.slurm/<driver>/` holds submitit's files and
logs, what each job has told last, and a file `leave` once the driver asks the jobs to. Where there is no Slurm,
submitit runs the jobs on this machine.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import submitit
from submitit.core.utils import DelayedSubmission, FailedJobError, UncompletedJobError

from envs.datasets import Dataset
from rlsuite.errors import UserError
from rlsuite.sweeping import catalogue, chunk, worker
from rlsuite.sweeping.chunk import Given
from rlsuite.sweeping.cluster import ENDS, Lost
from rlsuite.sweeping.entry import Entry
from rlsuite.sweeping.settings import Signals
from rlsuite.sweeping.worker import Message, Order
from rlsuite.training.device import prepare_jax
from rlsuite.training.progress import say

FOLDER = ".slurm"
WORKERS, WORKERS_HERE = 8, 1
"""Jobs at once where no number is given, with Slurm and without."""
QUEUED = 500
"""Jobs that wait for others to end; Slurm's arrays have at most a thousand by default."""
STREAMED = (worker.Began, worker.Paused)
"""Messages that come while a job runs, each in a file of its own, of which the driver sees the last."""


class Demand(NamedTuple):
    """What each job asks Slurm for."""

    cpus: int
    """cores, each a device where there is no GPU"""
    gpus: int
    partition: str | None
    minutes: int
    memory_gb: float | None
    more: list[str]
    """`name=value`, as options of `sbatch`"""


class SlurmPool:
    """A pool of jobs; see `cluster.Pool`.

    Raises:
        UserError: an option that submitit or Slurm does not take.
    """

    def __init__(self, folder: Path, demand: Demand, workers: int | None = None) -> None:
        """`workers` is the most to use at once."""
        self.devices = demand.gpus or demand.cpus
        self._results, self._demand = folder.absolute(), demand
        self._folder = self._results / FOLDER / uuid.uuid4().hex[:8]
        self._folder.mkdir(parents=True)
        self._here = shutil.which("srun") is None
        self._workers = workers or (WORKERS_HERE if self._here else WORKERS)
        self._most = self._workers + (0 if self._here else QUEUED)
        self._tasks: dict[int, Task] = {}
        """not submitted yet: what comes at once becomes an array"""
        self._jobs: dict[int, Any] = {}
        self._heard: dict[tuple[int, str], int] = {}
        if self._here:
            say("no Slurm on this machine (srun is missing): jobs run here")
        self._executor = self._make_executor()

    def workers(self) -> int:
        return self._workers

    def room(self) -> bool:
        return len(self._tasks) + len(self._jobs) < self._most

    def share(self, given: Given | None) -> str | None:
        """Jobs read the dataset themselves, and look whether it is this one."""
        return None if given is None else given.dataset.checksum

    def submit(self, ticket: int, order: Order, entry: Entry, shared: Any) -> None:
        self._tasks[ticket] = Task(order, ticket, self._results, self._folder, shared, self._demand.cpus)

    def messages(self, seconds: float) -> Iterator[tuple[int, Message | Lost]]:
        self._submit()
        time.sleep(seconds)
        for ticket, job in list(self._jobs.items()):
            ended = job.done()  # before the files are looked at: none comes after it
            for message in self._streamed(ticket):
                yield ticket, message
            if ended:
                del self._jobs[ticket]
                yield ticket, self._end(job)

    def leave(self) -> None:
        self._submit()
        (self._folder / "leave").touch()
        for ticket, job in self._jobs.items():
            if not (self._folder / f"{ticket}.begun").exists():
                with contextlib.suppress(subprocess.SubprocessError):
                    job.cancel()

    def close(self) -> None:
        for job in self._jobs.values():
            with contextlib.suppress(subprocess.SubprocessError):
                job.cancel()
        if not self._jobs:
            shutil.rmtree(self._folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # another driver uses it
                self._folder.parent.rmdir()

    def _submit(self) -> None:
        if not self._tasks:
            return
        try:
            with self._executor.batch():
                jobs = {ticket: self._executor.submit(task) for ticket, task in self._tasks.items()}
        except (FailedJobError, subprocess.SubprocessError, OSError) as error:
            raise UserError(f"Slurm has not taken a job ({' '.join(str(error).split())[:200]})") from error
        self._jobs |= jobs
        self._tasks.clear()

    def _make_executor(self) -> Any:
        demand, more = self._demand, {}
        for option in demand.more:
            name, equals, value = option.partition("=")
            if not equals or not name:
                raise UserError(f"--slurm {option} must be NAME=VALUE, such as account=mine")
            more[name.replace("-", "_")] = value
        executor = submitit.AutoExecutor(self._folder, cluster="local" if self._here else "slurm")
        executor.update_parameters(
            name="rlsuite",
            timeout_min=demand.minutes,
            cpus_per_task=demand.cpus,
            gpus_per_node=demand.gpus,
            slurm_array_parallelism=self._workers,
            **({} if demand.memory_gb is None else {"mem_gb": demand.memory_gb}),
            **({} if demand.partition is None else {"slurm_partition": demand.partition}),
            **({"slurm_additional_parameters": more} if more else {}),
        )
        return executor

    def _streamed(self, ticket: int) -> Iterator[Message]:
        """What a job has told since it was looked at."""
        for kind in STREAMED:
            path = told(self._folder, ticket, kind)
            try:
                number = path.stat().st_mtime_ns
                if self._heard.get((ticket, kind.__name__)) != number:
                    self._heard[ticket, kind.__name__] = number
                    yield pickle.loads(path.read_bytes())
            except FileNotFoundError:
                continue

    def _end(self, job: Any) -> Message | Lost:
        try:
            message: Message = job.result()
            return message
        except UncompletedJobError as error:
            return Lost(f"job {job.job_id} ended without a result, as {job.state} ({last_line(str(error))})")
        except FailedJobError as error:
            return worker.Failed(f"job {job.job_id}: {last_line(str(error))}", False, str(error))


def last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no reason given"


def told(folder: Path, ticket: int, kind: type) -> Path:
    """The file of the last message of this kind that a job has told."""
    return folder / f"{ticket}.{kind.__name__.lower()}"


# --- On a worker ------------------------------------------------------------------------------------------------------


class Task:
    """What submitit runs as a job."""

    def __init__(
        self, order: Order, ticket: int, results: Path, folder: Path, checksum: str | None, cores: int
    ) -> None:
        self._order, self._ticket, self._checksum, self._cores = order, ticket, checksum, cores
        self._results, self._folder = results, folder

    def __call__(self) -> Message:
        """Do the order; gives the message that ends it. A job that is preempted, or out of time, is queued again."""
        begun = self._folder / f"{self._ticket}.begun"
        begun.touch()
        prepare_jax(self._cores)
        ends: list[Message] = []

        def tell(message: Message) -> None:
            if isinstance(message, STREAMED):
                path = told(self._folder, self._ticket, type(message))
                temporary = path.with_suffix(".tmp")
                temporary.write_bytes(pickle.dumps(message))
                os.replace(temporary, path)
            elif isinstance(message, ENDS):
                ends.append(message)

        preempted = signal.SIGUSR2  # submitit's, before Slurm ends the job
        with Signals((signal.SIGINT, signal.SIGTERM, preempted)) as signals:

            def asked() -> int:
                return signals.number or (signal.SIGINT if (self._folder / "leave").exists() else 0)

            def train(order: worker.Train) -> None:
                given = self._given(order)
                worker.in_folder(order, self._results, given, tell, asked)

            given = self._given(self._order) if isinstance(self._order, worker.Measure) else None
            worker.answer(self._order, given, tell, train)
        if signals.number == preempted and isinstance(ends[-1], worker.Left):
            signal.raise_signal(preempted)  # submitit's own handler, which queues the job again and ends this process
        return ends[-1]

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues again."""
        return DelayedSubmission(self)

    def _given(self, order: Order) -> Given | None:
        """The dataset. Raises UserError where it is not there, or not the driver's."""
        cell = order.job.cell
        if self._checksum is None or cell.dataset is None:
            return None
        remedy = f"let {catalogue.FOLDER_VARIABLE} name a folder that all nodes see"
        if catalogue.find(cell.dataset) is None:
            raise UserError(f"dataset '{cell.dataset}' is not there; {remedy}")
        given = chunk.given_to(order.job)
        assert given is not None, "the job has a dataset"
        check(given.dataset, self._checksum, remedy)
        return given


def check(dataset: Dataset, checksum: str, remedy: str) -> None:
    """Raise UserError unless the dataset is the driver's."""
    if dataset.checksum != checksum:
        raise UserError(f"dataset '{dataset.id}' has checksum {dataset.checksum}, the driver's {checksum}; {remedy}")
