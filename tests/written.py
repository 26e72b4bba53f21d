"""Results as rlsuite writes them, made up, and files as a test finds or damages them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analysis import Scores, load, manifests, score

REFERENCE = {"low": 0.0, "high": 100.0, "low_source": "random policy", "high_source": "made up"}
STEPS = (0, 500, 1000)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder and its bytes, hidden ones included, and every folder."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def cut(path: Path) -> None:
    """A file whose last byte was never written."""
    path.write_bytes(path.read_bytes()[:-1])


def write_shard(
    folder: Path,
    label: str,
    environment: str,
    returns: Any,
    *,
    steps: tuple[int, ...] = STEPS,
    budget: int = 1000,
    diverged: Any = None,
    running: Sequence[int] | None = None,
    reference: dict[str, Any] | None = REFERENCE,
    seeds: range | None = None,
    extra: dict[str, float] | None = None,
    **manifest: Any,
) -> str:
    """Write one shard as rlsuite does; `returns` and `diverged` are `[runs, evaluations]`. Gives the shard's name.

    `running` is the number of evaluations that each run has so far; then it is a folder of parts, of two runs each.
    """
    returns = np.asarray(returns, dtype=np.float64)
    runs, evaluations = returns.shape
    steps = steps[:evaluations]
    diverged = np.zeros_like(returns, dtype=bool) if diverged is None else np.asarray(diverged)
    shard = manifest.pop("shard", f"{label}-{environment.replace('/', '-')}")
    experiment = folder.name
    evaluation, run = (axis.ravel() for axis in np.mgrid[:evaluations, :runs])
    values = returns[run, evaluation]
    columns: dict[str, Any] = {
        "experiment": [experiment] * run.size,
        "label": [label] * run.size,  # the store writes it too; the manifest's is what counts
        "algorithm": [label] * run.size,
        "environment": [environment] * run.size,
        "config_hash": [manifest.pop("config_hash", "c0ffee")] * run.size,
        "run": pa.array(run, pa.int32()),
        "seed": pa.array(np.asarray(seeds or range(runs))[run], pa.int64()),
        "step": pa.array(np.asarray(steps)[evaluation], pa.int64()),
        "update": pa.array(evaluation, pa.int64()),
        "wall_seconds": 2.0 * evaluation,
        "return_mean": values,
        "return_std": np.zeros_like(values),
        "return_min": values,
        "return_max": values,
        "episode_returns": pa.array([[v, v] for v in values], pa.list_(pa.float32())),
        "episode_lengths": pa.array([[10, 10] for _ in values], pa.list_(pa.int32())),
        "diverged": diverged[run, evaluation],
    }
    columns |= {name: np.full(run.size, value) for name, value in (extra or {}).items()}
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if running is None:
        pq.write_table(table, folder / f"{shard}.parquet")
    else:
        parts = folder / f"{shard}.partial"
        parts.mkdir(exist_ok=True)
        there = evaluation < np.asarray(running)[run]
        for update, first in sorted(set(zip(evaluation[there], run[there] // 2 * 2, strict=True))):
            part = table.filter(there & (evaluation == update) & (run // 2 * 2 == first))
            if update == 0:
                part = part.drop_columns([name for name in columns if name.startswith("metric/")])
            pq.write_table(part, parts / f"runs{first:06d}-{first + 1:06d}.update{update:012d}.parquet")
    facts = {"format": 1, "shard": shard, "experiment": experiment, "algorithm": label, "environment": environment}
    facts |= {"label": label, "steps": budget, "reference": reference, "created": "2025-01-01T00:00:00", **manifest}
    facts |= {"seeds": list(seeds or range(runs))}
    # Of one version of everything, if nothing else is asked for.
    facts = {"packages": {}, "sessions": [{"rlsuite": "1.0", "rlsuite_sources": "5eed", "jax": "2.0"}], **facts}
    (folder / f"{shard}.json").write_text(json.dumps(facts))
    return shard


def read(folder: Path) -> Scores:
    return score(load(folder), manifests(folder))


def ramp(runs: int, top: float = 80.0, seed: int = 0) -> np.ndarray:
    """`[runs, 3]`: learning from about 10 to about `top`."""
    noise = np.random.default_rng(seed).normal(size=(runs, 3))
    return np.array([10.0, (10 + top) / 2, top]) + noise
