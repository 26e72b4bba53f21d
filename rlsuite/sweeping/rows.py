"""Rows of results as a table: one row per (evaluation, run), in that order, with the columns

experiment, label, algorithm, environment, config_hash   str
run int32, seed int64, hyper/<name> float64              which run of the shard
dataset, sampling str                                    of offline learners only
step, update int64; wall_seconds float64                 how far: environment steps and updates of that run, and the
                                                         seconds its chunk has trained and evaluated, without compiling
return_mean, return_std, return_min, return_max float64  over the complete episodes of this evaluation, those left out
                                                         whose return is not finite; NaN if there is no other
nonfinite_episodes int32                                 how many are left out, each counted once: 0 once diverged
episode_returns list<float32>, episode_lengths list<int32>
diverged bool                                            the run became non-finite now or earlier, and is frozen; a
                                                         non-finite episode alone does not make it so
nonfinite str                                            what is non-finite: of the run, of `train.PARTS`,
                                                         as it was when it diverged; else of this evaluation's
                                                         episodes, of `OF_EPISODES`; else null
metric/<name> float32                                    mean over the updates since the last evaluation; null before
                                                         the first one. An off-policy learner's losses and values are
                                                         0 in the updates of its warm-up, which count in that mean
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlsuite.sweeping.job import Job
from rlsuite.training.evaluate import over_finite
from rlsuite.training.train import Evaluation, nonfinite_names


@np.errstate(over="ignore", invalid="ignore")  # what is not finite stays so, and is marked
def rows(job: Job, evaluation: Evaluation, first: int = 0) -> pa.Table:
    """One evaluation as a table: of all runs of a job, or of as many as were evaluated, from the `first`."""
    count = len(evaluation.diverged)
    runs = job.runs[first : first + count]
    returns = evaluation.returns.astype(np.float64)
    cell = job.cell

    def same(value: str) -> pa.Array:
        return pa.array([value] * count, pa.string())

    columns: dict[str, Any] = {
        "experiment": same(job.experiment),
        "label": same(job.label),
        "algorithm": same(cell.algorithm),
        "environment": same(job.environment),
        "config_hash": same(job.config_hash),
        "run": pa.array(range(first, first + count), pa.int32()),
        "seed": pa.array([seed for seed, _ in runs], pa.int64()),
    }
    for name in runs[0][1]._fields:
        columns[f"hyper/{name}"] = pa.array([float(getattr(hypers, name)) for _, hypers in runs], pa.float64())
    if cell.dataset is not None:
        columns |= {"dataset": same(cell.dataset), "sampling": same(cell.sampling)}
    columns |= {
        "step": pa.array([evaluation.step] * count, pa.int64()),
        "update": pa.array([evaluation.update] * count, pa.int64()),
        "wall_seconds": pa.array([evaluation.wall_seconds] * count, pa.float64()),
        "return_mean": pa.array(over_finite(np.nanmean, returns)),
        "return_std": pa.array(over_finite(np.nanstd, returns)),
        "return_min": pa.array(over_finite(np.nanmin, returns)),
        "return_max": pa.array(over_finite(np.nanmax, returns)),
        "nonfinite_episodes": pa.array(evaluation.nonfinite_episodes, pa.int32()),
        "episode_returns": pa.array(list(evaluation.returns.astype(np.float32)), pa.list_(pa.float32())),
        "episode_lengths": pa.array(list(evaluation.lengths.astype(np.int32)), pa.list_(pa.int32())),
        "diverged": pa.array(evaluation.diverged),
        "nonfinite": pa.array([nonfinite_names(bits) for bits in evaluation.nonfinite.tolist()], pa.string()),
    }
    for name, values in evaluation.metrics.items():
        columns[f"metric/{name}"] = pa.array(values.astype(np.float32))
    return pa.table(columns)


class Part(NamedTuple):
    """The rows of one evaluation of the runs first, ..., stop - 1."""

    first: int
    stop: int
    update: int

    @property
    def file_name(self) -> str:
        """Names sort as parts do."""
        return f"runs{self.first:06}-{self.stop - 1:06}.update{self.update:012}.parquet"

    @classmethod
    def of(cls, path: Path) -> Part | None:
        """The part that a file of this name holds; None for any other file."""
        match = re.fullmatch(r"runs(\d+)-(\d+)\.update(\d+)\.parquet", path.name)
        return cls(int(match[1]), int(match[2]) + 1, int(match[3])) if match else None


def damaged(path: Path, rows: int | None = None) -> str | None:
    """What is wrong with a Parquet file, judged by its end, which is written last; None if nothing is.

    It has `rows` rows, or at least one.
    """
    try:
        with pq.ParquetFile(path) as file:
            there = file.metadata.num_rows
            wrong = there == 0 if rows is None else there != rows
            return f"it has {there or 'no'} rows" if wrong else None
    except (pa.ArrowException, OSError, ValueError) as error:
        return " ".join(str(error).split())
