"""Curves that other programs have written, as a shard of a results folder: `rlsuite import`.

Each run is put on steps that all runs of the label have in common. The label ends in `(imported)`, so that everything
that shows a label shows this. The manifest names the files and what was done to their numbers, under `foreign`.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from analysis.scores import FORMAT, Manifest, ResultsError, _listed, _one_line, load, manifests

MARK = "(imported)"
"""What the label of imported curves ends with."""
POINTS = 20
"""Steps of a curve, where the results folder has none to take."""
MOST_STEPS = 1e15
"""Any more are a slip, and not every whole number beyond is one in 64 bits."""
COLUMNS = {
    "step": ("step", "global_step", "_step", "Step", "timesteps", "num_timesteps", "total_timesteps"),
    "return": (
        *("return", "episodic_return", "charts/episodic_return", "episode_return", "return_mean", "mean_return"),
        *("rollout/ep_rew_mean", "eval/mean_reward", "mean_reward"),
    ),
    "run": ("run", "run_id", "seed", "run_name", "name", "Name"),
}
"""What is needed -> names of columns that are taken for it, the first one that is there. `run` may be missing."""
KINDS = {
    "training": "mean of the training returns since the step before, or the last one where there is none",
    "evaluation": "last evaluation so far",
}
"""What returns may be -> what a curve has at each step."""
WANDB = " - "
"""Between a run and a metric in the columns of a table of the W&B site."""
WANDB_BANDS = ("__MIN", "__MAX")
"""What such a table has for each column a second and a third time."""


class Curve(NamedTuple):
    """The returns of one run as they were recorded."""

    name: str
    steps: NDArray[np.int64]
    """`[records]` environment steps, never decreasing"""
    returns: NDArray[np.float64]
    """`[records]`"""


class Imported(NamedTuple):
    """A shard of imported curves."""

    path: Path
    label: str
    curves: list[Curve]
    steps: NDArray[np.int64]
    """`[points]` at which each run has a value"""
    table: str
    """what the files were taken for"""
    environments: list[str]
    """of the folder's other results"""
    kept: bool
    """the same files lie there already"""


def import_curves(
    files: Sequence[str | Path],
    results: str | Path,
    *,
    label: str,
    environment: str,
    dataset: str | None = None,
    columns: Mapping[str, str] | None = None,
    kind: str = "training",
    points: int | None = None,
    source: str | None = None,
    replace: bool = False,
) -> Imported:
    """Write curves of other programs into a results folder, as a label of their own.

    Args:
        files: CSV or Parquet; see docs/import.md for the tables that are understood.
        results: an experiment's folder, which is made if it is not there.
        label: without the mark.
        environment: the id that our results of this task have.
        dataset: its id, of methods that learn offline.
        columns: `step`, `return` and `run` -> the column, where it has another name than those of `COLUMNS`.
        kind: of the returns, one of `KINDS`.
        points: how many steps a curve has, evenly spaced; by default the steps of the folder's other results on this
            task, or 20 where there are none.
        source: where the curves are from, in words.
        replace: put them in the place of others of this label.

    Raises:
        ResultsError: a file cannot be read, a number is none, or other curves have this label.
        OSError: the folder cannot be written.
    """
    folder, shown = Path(results), f"{label} {MARK}"
    experiment, environments, ours = _there(folder, environment)
    shard = f"{_slug(label)}__{_slug(environment)}__{_digest(f'{label}|{environment}|{dataset}')}"
    path, manifest_path = folder / f"{shard}.parquet", folder / f"{shard}.json"
    curves, table = read(files, columns or {})
    lows, steps = grid(curves, ours, points)
    digests = {str(file): hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files}
    what = {
        "digests": sorted(digests.values()),
        "table": table,
        "returns": kind,
        "resampling": f"at {len(steps)} steps: {KINDS[kind]}",
        "source": source,
    }
    if path.exists() and not replace:
        before = json.loads(manifest_path.read_text())["foreign"]
        if all(before[name] == value for name, value in what.items()):
            return Imported(path, shown, curves, steps, table, environments, kept=True)
        raise ResultsError(
            f"'{folder}' has other curves of '{shown}' on {environment} ({before['resampling']}; of "
            f"{_listed(before['files'])}); give all files at once with --replace, or another --label"
        )
    foreign = {**what, "files": digests, "runs": [curve.name for curve in curves]}
    manifest: Manifest = {
        "format": FORMAT,
        "shard": shard,
        "experiment": experiment,
        "algorithm": shown,
        "environment": environment,
        "label": shown,
        "steps": int(steps[-1]),
        "seeds": list(range(len(curves))),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "foreign": foreign,
        **({} if dataset is None else {"dataset": dataset}),
    }
    returns = np.stack([resampled(curve, lows, steps, kind) for curve in curves], axis=1)
    _write(path, manifest_path, manifest, _rows(manifest, steps, returns))
    return Imported(path, shown, curves, steps, table, environments, kept=False)


# --- Reading ----------------------------------------------------------------------------------------------------------


def read(files: Sequence[str | Path], columns: Mapping[str, str]) -> tuple[list[Curve], str]:
    """The runs of all files, and what the files were taken for. Arguments and errors as `import_curves`."""
    if repeated := {str(file) for file in files if list(files).count(file) > 1}:
        raise ResultsError(f"file '{min(repeated)}' is named twice; name it once")
    curves: list[Curve] = []
    kinds: list[str] = []
    for file in files:
        frame = _frame(Path(file))
        found, kind = _curves(frame, str(file), columns)
        # Files number their runs from 0 each.
        several = len(files) > 1
        curves += [curve._replace(name=f"{file}: {curve.name}" if several else curve.name) for curve in found]
        kinds.append(kind)
    return curves, "; ".join(dict.fromkeys(kinds))


def _frame(file: Path) -> pd.DataFrame:
    reader = {".csv": pd.read_csv, ".parquet": pd.read_parquet}.get(file.suffix.lower())
    if reader is None:
        raise ResultsError(f"'{file}' ends in '{file.suffix}', expected .csv or .parquet; save it as one of them")
    try:
        frame: pd.DataFrame = reader(file)
    except FileNotFoundError:
        raise ResultsError(f"no such file '{file}'; name one that is there") from None
    except (OSError, ValueError, pa.ArrowException) as error:  # pandas' errors of parsing are ValueErrors
        raise ResultsError(f"cannot read '{file}' ({_one_line(error)}); save it again") from error
    if frame.empty:
        raise ResultsError(f"'{file}' has no rows; save it again")
    return frame


def _curves(frame: pd.DataFrame, file: str, columns: Mapping[str, str]) -> tuple[list[Curve], str]:
    """The runs of one table, long (a row a record) or wide (a column a run, as the W&B site saves it)."""
    wide = [name for name in frame.columns if WANDB in name and not name.endswith(WANDB_BANDS)]
    names = {what: _column(frame, what, file, columns) for what in COLUMNS}
    step = names["step"]
    if step is None:
        raise ResultsError(_missing(frame, "step", file))
    if names["return"] is not None:
        steps, returns = _numbers(frame, step, file), _numbers(frame, names["return"], file)
        run = names["run"]
        if run is not None and frame[run].isna().any():
            row = int(np.argmax(frame[run].isna())) + 1
            raise ResultsError(
                f"'{file}' has no run in column '{run}' of row {row}; name the run, or leave out the row"
            )
        labels = pd.Series("0", frame.index) if run is None else frame[run].astype(str)
        found = [
            _curve(str(name), steps[places], returns[places], file)
            for name, places in frame.groupby(labels, sort=False).indices.items()
        ]
        taken = ", ".join(f"{what}: '{name}'" for what, name in names.items() if name)
        return found, f"a row a record ({taken}{'' if run else '; a file is a run'})"
    if not wide:
        raise ResultsError(_missing(frame, "return", file))
    metrics = sorted({name.rsplit(WANDB, 1)[1] for name in wide})
    if len(metrics) > 1:
        raise ResultsError(f"'{file}' has several metrics ({', '.join(metrics)}); save the panel of the return alone")
    steps = _numbers(frame, step, file)
    found = [_curve(name.rsplit(WANDB, 1)[0], steps, _numbers(frame, name, file), file) for name in wide]
    return found, f"a column a run, of W&B (step: '{step}', return: '{metrics[0]}')"


def _column(frame: pd.DataFrame, what: str, file: str, columns: Mapping[str, str]) -> str | None:
    if what in columns:
        if columns[what] not in frame:
            raise ResultsError(f"'{file}' has no column '{columns[what]}'; it has {_listed(frame)}")
        return columns[what]
    return next((name for name in COLUMNS[what] if name in frame), None)


def _missing(frame: pd.DataFrame, what: str, file: str) -> str:
    return (
        f"'{file}' has no column that is known to be the {what}; it has {_listed(frame)}; name the right one with "
        f"--columns {what}=NAME"
    )


def _numbers(frame: pd.DataFrame, name: str, file: str) -> NDArray[np.float64]:
    """A column as numbers, NaN where it is empty."""
    numbers = pd.to_numeric(frame[name], errors="coerce").to_numpy(np.float64)
    wrong = (np.isnan(numbers) & frame[name].notna().to_numpy()) | np.isinf(numbers)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ResultsError(
            f"'{file}' has '{frame[name].iloc[row]}' in column '{name}' of row {row + 1}, expected a finite number; "
            "correct it, or leave the cell empty"
        )
    return numbers


def _curve(name: str, steps: NDArray[np.float64], returns: NDArray[np.float64], file: str) -> Curve:
    """A run of a table, in the order of its steps, without the empty cells that other metrics leave."""
    there = ~np.isnan(returns)
    steps, returns = steps[there], returns[there]
    wrong = ~((steps >= 0) & (steps <= MOST_STEPS)) | (steps != np.rint(steps))
    if wrong.any():
        raise ResultsError(
            f"run '{name}' of '{file}' has a return at step {steps[wrong][0]:g}, expected a whole number from 0 to "
            f"{MOST_STEPS:.0e}; correct it"
        )
    order = np.argsort(steps, kind="stable")
    if len(np.unique(steps)) < 2:
        raise ResultsError(f"run '{name}' of '{file}' has returns at {len(np.unique(steps))} steps, a curve needs two")
    return Curve(name, steps[order].astype(np.int64), returns[order])


# --- Common steps -----------------------------------------------------------------------------------------------------


def grid(
    curves: Sequence[Curve], ours: NDArray[np.int64], points: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(the step before, the step) of each point, `[points]` each.

    No step lies before any run's first record or after any run's last.

    Args:
        curves: the runs.
        ours: `[steps]` of other results on the task, increasing, maybe none.
        points: how many evenly spaced ones to take in their place.
    """
    first, last = max(curve.steps[0] for curve in curves), min(curve.steps[-1] for curve in curves)
    steps = ours[(ours >= first) & (ours <= last)] if points is None else ours[:0]
    every = ours
    if len(steps) < 2:
        every = np.unique(np.linspace(0, last, (points or POINTS) + 1).round().astype(np.int64))
    lows = np.concatenate([[-1], every[:-1]])
    within = (every >= first) & (every <= last) & ((every > 0) | (len(steps) >= 2))
    if within.sum() < 2:
        raise ResultsError(
            f"the runs have no two steps in common: the latest begins at {first:,}, and the first one ends at "
            f"{last:,}; leave out the run that has ended early"
        )
    return lows[within], every[within]


def resampled(curve: Curve, lows: NDArray[np.int64], steps: NDArray[np.int64], kind: str) -> NDArray[np.float64]:
    """`[points]` values of a run at these steps, see `KINDS` and `grid`."""
    ends = np.searchsorted(curve.steps, steps, side="right")
    if kind == "training":
        begins = np.searchsorted(curve.steps, lows, side="right")
        begins = np.where(begins < ends, begins, ends - 1)
    else:
        begins = np.searchsorted(curve.steps, curve.steps[ends - 1], side="left")
    return np.array([curve.returns[begin:end].mean() for begin, end in zip(begins, ends, strict=True)])


# --- Writing ----------------------------------------------------------------------------------------------------------


def _there(folder: Path, environment: str) -> tuple[str, list[str], NDArray[np.int64]]:
    """The experiment's name, the environments of its own results, and the steps at which those on this one were
    evaluated."""
    nothing = np.zeros(0, np.int64)
    if not any(folder.glob("[!.]*.parquet")):
        return folder.absolute().name, [], nothing
    found = manifests(folder)
    experiments = sorted({manifest["experiment"] for manifest in found})
    if len(experiments) > 1:
        raise ResultsError(f"'{folder}' has results of several experiments; give the folder of one of them")
    own = [manifest for manifest in found if "foreign" not in manifest]
    environments = sorted({manifest["environment"] for manifest in own})
    if environment not in environments:
        return experiments[0], environments, nothing
    shards = [manifest["shard"] for manifest in own if manifest["environment"] == environment]
    frame = load(folder)
    steps = np.unique(frame.loc[frame["shard"].isin(shards), "step"].to_numpy(np.int64))
    return experiments[0], environments, steps


def _rows(manifest: Manifest, steps: NDArray[np.int64], returns: NDArray[np.float64]) -> pa.Table:
    """As `rlsuite/sweeping/rows.py` has them; `returns` is `[points, runs]`."""
    points, runs = returns.shape
    count = points * runs

    def same(value: str) -> pa.Array:
        return pa.array([value] * count, pa.string())

    names = ("experiment", "label", "algorithm", "environment", "dataset")
    return pa.table(
        {
            **{name: same(manifest[name]) for name in names if name in manifest},
            "config_hash": same(_digest(json.dumps(manifest["foreign"], sort_keys=True))),
            "run": pa.array(np.tile(np.arange(runs), points), pa.int32()),
            "seed": pa.array(np.tile(manifest["seeds"], points), pa.int64()),
            "step": pa.array(np.repeat(steps, runs), pa.int64()),
            "wall_seconds": pa.array([math.nan] * count, pa.float64()),
            "return_mean": pa.array(returns.ravel()),
            "diverged": pa.array([False] * count),
        }
    )


def _write(path: Path, manifest_path: Path, manifest: Manifest, rows: pa.Table) -> None:
    """The manifest first: a table without one cannot be read, a manifest without a table is nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(rows, temporary)
        path.unlink(missing_ok=True)
        manifest_path.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:60] or "curves"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
