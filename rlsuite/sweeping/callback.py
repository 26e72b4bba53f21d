"""A user's function that is called at evaluations: what it is told, and what becomes of the error that it raises."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from rlsuite.sweeping.job import Job
from rlsuite.training.evaluate import over_finite
from rlsuite.training.train import Evaluation


@dataclasses.dataclass(frozen=True, eq=False)
class ChunkEvaluation:
    """One evaluation of one chunk: of the runs of a shard that train at once.

    The arrays are NumPy copies, which stay valid and may be changed. Their first axis is the runs of the chunk.
    """

    experiment: str
    """its name, which is that of its folder"""
    shard: str
    """the name of the shard's file without its ending"""
    label: str
    """the name of its curve in reports"""
    algorithm: str
    """its name in the registry"""
    environment: str
    """its id"""
    runs: np.ndarray
    """`[runs]` int32 positions in the shard, which is the column `run` of the results"""
    seeds: np.ndarray
    """`[runs]` int64"""
    hypers: dict[str, np.ndarray]
    """name -> `[runs]` float64"""
    update: int
    """updates done; 0 before the first"""
    step: int
    """environment steps done in each run; gradient steps of an offline learner"""
    wall_seconds: float
    """training and evaluating these runs since their first update began, without compiling; callbacks count"""
    returns: np.ndarray
    """`[runs, episodes]` float32 sums of rewards of complete episodes"""
    lengths: np.ndarray
    """`[runs, episodes]` int32 steps of the same episodes"""
    mean_returns: np.ndarray
    """`[runs]` float64 means over the episodes whose return is finite; NaN where none is"""
    diverged: np.ndarray
    """`[runs]` bool: the run is non-finite now or was earlier; its returns and metrics repeat those from before"""
    metrics: dict[str, np.ndarray]
    """name -> `[runs]` float32 mean over the updates since the last evaluation; empty before the first update"""


OnEvaluation: TypeAlias = Callable[[ChunkEvaluation], object]
"""What it returns is not looked at."""


@np.errstate(over="ignore", invalid="ignore")  # of runs that diverge
def chunk_evaluation(job: Job, first: int, evaluation: Evaluation) -> ChunkEvaluation:
    """What is told of an evaluation of a job's runs from the `first`."""
    stop = first + len(evaluation.diverged)
    seeds, hypers = zip(*job.runs[first:stop], strict=True)
    return ChunkEvaluation(
        experiment=job.experiment,
        shard=job.name,
        label=job.label,
        algorithm=job.cell.algorithm,
        environment=job.environment,
        runs=np.arange(first, stop, dtype=np.int32),
        seeds=np.array(seeds, np.int64),
        hypers={name: np.array([getattr(one, name) for one in hypers], np.float64) for name in hypers[0]._fields},
        update=evaluation.update,
        step=evaluation.step,
        wall_seconds=evaluation.wall_seconds,
        returns=np.array(evaluation.returns, np.float32),
        lengths=np.array(evaluation.lengths, np.int32),
        mean_returns=over_finite(np.nanmean, evaluation.returns.astype(np.float64)),
        diverged=np.array(evaluation.diverged),
        metrics={name: np.array(values, np.float32) for name, values in evaluation.metrics.items()},
    )


class Callback:
    """A user's function. An error that it raises is noted, as signals are, so that the runs are saved before it ends
    them."""

    def __init__(self, function: OnEvaluation | None) -> None:
        self.error: Exception | None = None
        self._function = function

    def tell(self, job: Job, first: int, evaluation: Evaluation) -> None:
        """Call it, if there is one, with an evaluation of a job's runs from the `first`."""
        if self._function is None:
            return
        try:
            self._function(chunk_evaluation(job, first, evaluation))
        except Exception as error:
            self.error = error

    def check(self) -> None:
        """Raise the error, if there is one."""
        if self.error is not None:
            raise self.error
