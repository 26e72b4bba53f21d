"""`rlsuite export` to each of its targets: seconds, bytes and calls, and whether every number comes back.

    python benchmarks/export.py [--runs 1024] [--evaluations 20] [--metrics 10] [--targets tensorboard wandb mlflow]

The results are made up, of two labels on two tasks. What was exported is read back by the packages' own readers where
they have one: TensorBoard's event accumulator and MLflow's client. W&B has none in Python, so that its files are read
here: records of its Protocol Buffers in the format of LevelDB's log. It is compared with the Parquet files, point by
point. Numbers of TensorBoard are float32. "again" is the same export a second time, which sends nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from analysis import load, manifests, score
from analysis.curves import sample_efficiency_curves
from analysis.export import HIGH, IQM, LOW, RETURNS, Target, export, look

Points = dict[tuple[str, str, str], list[tuple[str, int, float]]]
"""(label, task, name) of a series -> (name, step, value) of all its points, sorted"""

BLOCK = 32768
"""bytes of a block of a W&B file"""
WANDB_BEGINNING = 7
"""bytes of it before the first record"""


def make_results(folder: Path, runs: int, evaluations: int, metrics: int) -> None:
    """Write finished shards of two labels on two tasks, with so many runs in all."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    shard_runs = runs // 4
    for label in ("ppo", "sac"):
        for task in ("gymnax/CartPole-v1", "gymnax/Pendulum-v1"):
            evaluation, run = (axis.ravel() for axis in np.mgrid[:evaluations, :shard_runs])
            returns = {name: rng.normal(size=run.size) for name in RETURNS}
            names = [f"metric/number_{index}" for index in range(metrics)]
            columns: dict[str, Any] = {
                **{name: [value] * run.size for name, value in (("experiment", folder.name), ("algorithm", label))},
                **{"environment": [task] * run.size, "config_hash": ["c0ffee"] * run.size},
                **{"run": pa.array(run, pa.int32()), "seed": pa.array(run, pa.int64())},
                "hyper/learning_rate": np.full(run.size, 3e-4),
                "hyper/discount": np.full(run.size, 0.99),
                **{"step": 1000 * evaluation, "update": evaluation, "wall_seconds": 2.0 * evaluation},
                **returns,
                "diverged": np.zeros(run.size, bool),
            }
            for name in names:
                values = rng.normal(size=run.size).astype(np.float32)
                columns[name] = pa.array(values, mask=evaluation == 0)
            shard = f"{label}__{task.replace('/', '-')}"
            pq.write_table(pa.table(columns), folder / f"{shard}.parquet")
            config = {"num_envs": 8, "hidden_sizes": [64, 64], "clip_value": False}
            manifest = {"format": 1, "shard": shard, "experiment": folder.name, "algorithm": label, "label": label}
            manifest |= {"environment": task, "config": config, "steps": 1000 * (evaluations - 1)}
            manifest |= {"seeds": list(range(shard_runs)), "reference": None, "created": "2026-01-01T00:00:00+00:00"}
            manifest |= {"versions": {"jax": "0.10.2"}, "device": "made up", "evidence": "A"}
            (folder / f"{shard}.json").write_text(json.dumps(manifest))


# --- What is there ----------------------------------------------------------------------------------------------------


def written_points(results: Path) -> Points:
    """All points of the Parquet files below one experiment's folder, and those of finished IQM curves."""
    points: Points = {}
    for manifest in manifests(results):
        name = manifest["shard"]
        finished = results / f"{name}.parquet"
        parts = sorted((results / f"{name}.partial").glob("runs*.parquet"))
        for file in [finished] if finished.exists() else parts:
            for row in pq.read_table(file).to_pylist():
                series = points.setdefault((manifest["label"], manifest["environment"], f"seed {row['seed']}"), [])
                values = {RETURNS.get(column, column): value for column, value in row.items()}
                sent = {name: value for name, value in values.items() if name.startswith(("return/", "metric/"))}
                series += [
                    (name, row["step"], value)
                    for name, value in sent.items()
                    if value is not None and np.isfinite(value)
                ]
    scores = score(load(results), manifests(results))
    for (label, task), curve in sample_efficiency_curves(scores).tasks.items():
        bounds = {IQM: curve.band.estimate, LOW: curve.band.low, HIGH: curve.band.high}
        found = [
            (name, int(step), float(value))
            for name, values in bounds.items()
            for step, value, complete in zip(curve.x, values, curve.complete, strict=True)
            if complete and np.isfinite(value)
        ]
        if found:
            points[label, task, f"IQM of {scores.tasks[label, task].planned} runs"] = found
    return {key: sorted(series) for key, series in points.items()}


def rounded(points: Points) -> Points:
    """In float32."""
    return {key: [(name, step, float(np.float32(v))) for name, step, v in found] for key, found in points.items()}


def tensorboard_points(folder: Path) -> Points:
    """All scalars below a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points: Points = {}
    for file in folder.rglob("events.out.tfevents*"):
        label, *task, name = file.parent.relative_to(folder).parts
        events = EventAccumulator(str(file.parent), size_guidance={"scalars": 0}).Reload()
        # The end of a folder's name is the key of the series.
        series = points.setdefault((label, "/".join(task), name.rpartition("-")[0]), [])
        for tag in events.Tags()["scalars"]:
            series += [(tag, event.step, event.value) for event in events.Scalars(tag)]
    return {key: sorted(series) for key, series in points.items()}


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of a W&B file."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = file.read_bytes()
    assert data[:4] == b":W&B"
    place, record = WANDB_BEGINNING, b""
    while place + 7 <= len(data):
        if (left := BLOCK - place % BLOCK) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            yield Record.FromString(record)
            record = b""


def wandb_points(folder: Path) -> Points:
    """All points of the offline runs in a folder; those of several with one id together."""
    points: Points = {}
    for file in sorted(folder.glob("offline-run-*/*.wandb")):
        series: list[tuple[str, int, float]] = []
        for record in wandb_records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
                label, task = config["label"], config["task"]
                name = record.run.display_name.removeprefix(f"{label} {task} ")
                series = points.setdefault((label, task, name), [])
            elif kind == "history":
                values = {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                names = [name for name in values if not name.startswith("_")]
                series += [(name, record.history.step.num, values[name]) for name in names]
    return {key: sorted(series) for key, series in points.items()}


def mlflow_points(folder: Path) -> Points:
    """All metrics of all runs of the experiments in a folder."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=str(folder))
    points: Points = {}
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id], max_results=50000):
            tags = run.data.tags
            name = run.info.run_name.removeprefix(f"{tags['label']} {tags['task']} ")
            series = points.setdefault((tags["label"], tags["task"], name), [])
            for metric in run.data.metrics:
                history = client.get_metric_history(run.info.run_id, metric)
                series += [(metric, point.step, point.value) for point in history]
    return {key: sorted(series) for key, series in points.items()}


# --- Measuring --------------------------------------------------------------------------------------------------------


def counted(owner: Any, names: tuple[str, ...], calls: dict[str, int]) -> None:
    """Count the calls of an object's methods from now on."""
    for name in names:
        real = getattr(owner, name)

        def count(*arguments: Any, _real: Any = real, _name: str = name, **named: Any) -> Any:
            calls[_name] = calls.get(_name, 0) + 1
            return _real(*arguments, **named)

        setattr(owner, name, count)


def tensorboard(folder: Path, results: Path, calls: dict[str, int]) -> Target:
    from analysis.to_tensorboard import TensorBoard

    target = TensorBoard(folder)
    counted(target, ("send",), calls)
    return target


def wandb(folder: Path, results: Path, calls: dict[str, int]) -> Target:
    os.environ |= {"WANDB_MODE": "offline", "WANDB_DIR": str(folder)}
    import wandb as package

    from analysis.to_wandb import Wandb

    counted(package, ("init",), calls)
    counted(package.Run, ("log",), calls)
    return Wandb("benchmark")


def mlflow(folder: Path, results: Path, calls: dict[str, int]) -> Target:
    from analysis.to_mlflow import Mlflow

    target = Mlflow(str(folder), results)
    counted(target.client, ("create_run", "log_batch", "set_terminated"), calls)
    return target


TARGETS: dict[str, tuple[Callable[..., Target], Callable[[Path], Points]]] = {
    "tensorboard": (tensorboard, tensorboard_points),
    "wandb": (wandb, lambda folder: wandb_points(folder / "wandb")),
    "mlflow": (mlflow, mlflow_points),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("runs", 1024), ("evaluations", 20), ("metrics", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    options = parser.parse_args()
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as place:
        results = Path(place) / "made_up"
        make_results(results, options.runs, options.evaluations, options.metrics)
        bytes_there = sum(file.stat().st_size for file in results.iterdir())
        began = time.perf_counter()
        series = look(results)
        console.print(
            f"{options.runs} runs x {options.evaluations} evaluations x {options.metrics} metrics and 4 returns: "
            f"{sum(each.points for each in series):,} points, {bytes_there:,} bytes of results, "
            f"read, with IQM curves, in {time.perf_counter() - began:.1f} s"
        )
        wanted = written_points(results)
        columns = ("target", "seconds", "again", "bytes", "files", "calls", "read back", "points", "differing")
        table = Table(*columns)
        for name in options.targets:
            folder = Path(place) / name
            table.add_row(name, *measured(name, folder, results, wanted))
        console.print(table)


def measured(name: str, folder: Path, results: Path, wanted: Points) -> list[str]:
    """A row of the table."""
    make, read = TARGETS[name]
    calls: dict[str, int] = {}
    folder.mkdir()
    target = make(folder, results, calls)
    seconds = []
    for _ in range(2):
        series = look(results)
        began = time.perf_counter()
        export(series, target)
        seconds.append(time.perf_counter() - began)
    target.close()
    # Each folder of W&B's has a link to one log of all.
    files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    began = time.perf_counter()
    found = read(folder)
    reading = time.perf_counter() - began
    expected = rounded(wanted) if name == "tensorboard" else wanted
    differing = sum(
        len(set(expected.get(key, [])) ^ set(found.get(key, [])))
        + abs(len(expected.get(key, [])) - len(found.get(key, [])))
        for key in expected.keys() | found.keys()
    )
    return [
        *(f"{value:.1f} s" for value in seconds),
        f"{sum(file.stat().st_size for file in files):,}",
        f"{len(files):,}",
        "\n".join(f"{count:,} {call}" for call, count in calls.items()),
        f"{reading:.1f} s",
        f"{sum(map(len, found.values())):,}",
        str(differing),
    ]


if __name__ == "__main__":
    main()
