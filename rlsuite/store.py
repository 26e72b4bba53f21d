"""Results on disk: one Parquet file and one manifest a shard, each written whole or not at all.

`<folder>/<shard>.partial.parquet` grows while a shard runs (it is replaced at every evaluation) and becomes
`<folder>/<shard>.parquet` when it is done. The columns are one row per (run, evaluation):

experiment, label, algorithm, environment, config_hash   str
run int32, seed int64, hyper/<name> float64              which run of the shard
step, update int64; wall_seconds float64                 how far: environment steps and updates of that run,
                                                         seconds of the whole shard without compiling
return_mean, return_std, return_min, return_max float64  over the complete episodes of this evaluation
episode_returns list<float32>, episode_lengths list<int32>
metric/<name> float32                                    mean since the last evaluation; null before the first update
diverged bool                                            the run became non-finite now or earlier
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlsuite.core import UserError
from rlsuite.sweep import Shard
from rlsuite.train import Evaluation

FORMAT = 1


def rows(shard: Shard, evaluation: Evaluation) -> pa.Table:
    """One evaluation of all runs of a shard as a table."""
    count = len(shard.runs)
    returns = evaluation.returns.astype(np.float64)
    cell = shard.cell

    def same(value: str) -> pa.Array:
        return pa.array([value] * count, pa.string())

    columns: dict[str, Any] = {
        "experiment": same(shard.experiment),
        "label": same(shard.label),
        "algorithm": same(cell.algorithm),
        "environment": same(shard.environment),
        "config_hash": same(shard.config_hash),
        "run": pa.array(range(count), pa.int32()),
        "seed": pa.array([seed for seed, _ in shard.runs], pa.int64()),
    }
    for name in shard.runs[0][1]._fields:
        columns[f"hyper/{name}"] = pa.array([float(getattr(hypers, name)) for _, hypers in shard.runs], pa.float64())
    columns |= {
        "step": pa.array([evaluation.step] * count, pa.int64()),
        "update": pa.array([evaluation.update] * count, pa.int64()),
        "wall_seconds": pa.array([evaluation.wall_seconds] * count, pa.float64()),
        "return_mean": pa.array(returns.mean(axis=1)),
        "return_std": pa.array(returns.std(axis=1)),
        "return_min": pa.array(returns.min(axis=1)),
        "return_max": pa.array(returns.max(axis=1)),
        "episode_returns": pa.array(list(evaluation.returns.astype(np.float32)), pa.list_(pa.float32())),
        "episode_lengths": pa.array(list(evaluation.lengths.astype(np.int32)), pa.list_(pa.int32())),
    }
    for name, values in evaluation.metrics.items():
        columns[f"metric/{name}"] = pa.array(values.astype(np.float32))
    columns["diverged"] = pa.array(evaluation.diverged)
    return pa.table(columns)


class Store:
    """One experiment's folder.

    Raises:
        UserError: the folder cannot be made or written. Its methods: the disk is full or gone, or the shard that they
            should write is finished, for a finished shard is never replaced.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise UserError(
                f"results folder '{self.folder}' cannot be written ({error.strerror}); choose another with --results"
            ) from error

    def path(self, shard: Shard) -> Path:
        """Where the finished shard lies."""
        return self.folder / f"{shard.name}.parquet"

    def partial_path(self, shard: Shard) -> Path:
        """Where it lies while it runs."""
        return self.folder / f"{shard.name}.partial.parquet"

    def has(self, shard: Shard) -> bool:
        """Whether the shard is finished."""
        return self.path(shard).exists()

    def write_partial(self, shard: Shard, tables: list[pa.Table]) -> None:
        """Replace the running shard's file by these evaluations."""
        self._check_unfinished(shard)
        table = pa.concat_tables(tables, promote_options="default")
        self._replace(self.partial_path(shard), lambda target: pq.write_table(table, target, compression="zstd"))

    def write_manifest(self, shard: Shard, facts: dict[str, Any]) -> None:
        """Replace the shard's manifest."""
        self._check_unfinished(shard)
        text = json.dumps({"format": FORMAT, **shard.describe(), **facts}, indent=1) + "\n"
        self._replace(self.folder / f"{shard.name}.json", lambda target: Path(target).write_text(text))

    def finish(self, shard: Shard) -> None:
        """The running shard is done: give its file the finished name."""
        self._check_unfinished(shard)
        try:
            os.replace(self.partial_path(shard), self.path(shard))
        except OSError as error:
            raise _cannot_write(self.path(shard), error) from error

    def _check_unfinished(self, shard: Shard) -> None:
        """Another process may have run the same shard at the same time, and have been faster."""
        if self.has(shard):
            raise UserError(
                f"'{self.path(shard)}' was finished meanwhile, by another process? It is kept as it is; "
                "run the same command again to go on with the rest"
            )

    def _replace(self, path: Path, write: Any) -> None:
        """Write beside, then rename, so that a reader sees the old file or the new one and never a half."""
        beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            write(str(beside))
            with open(beside, "rb") as written:
                os.fsync(written.fileno())
            os.replace(beside, path)
        except OSError as error:
            raise _cannot_write(path, error) from error
        finally:
            beside.unlink(missing_ok=True)


def _cannot_write(path: Path, error: OSError) -> UserError:
    # Arrow's errors have no strerror, and may have several lines.
    reason = error.strerror or " ".join(str(error).split())
    return UserError(
        f"'{path}' cannot be written ({reason}); what was saved before is intact. "
        "Free some space or choose another folder with --results, then run the same command again"
    )
