"""The reference curves of `rlsuite check`, which are kept in git.

A reference is a finished shard without what a comparison does not need, so that `analysis.load` reads it:
`<name>.parquet` with one row per (run, evaluation), and `<name>.json` with its manifest, the reason for which it was
made and those of its predecessors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlsuite.commands.check_speed import Speed
from rlsuite.errors import UserError
from rlsuite.sweeping.job import Job
from rlsuite.sweeping.store import Store

COLUMNS = (
    *("experiment", "label", "algorithm", "environment", "config_hash", "dataset", "sampling", "run", "seed"),
    *("step", "wall_seconds", "return_mean", "diverged"),
)
"""What is kept of a shard, where it has them."""
FACTS = (
    *("total_updates", "steps_per_update", "dataset_checksum", "dataset_size", "dataset_source", "evaluation_physics"),
    *("matmul_precision", "versions", "device", "git_revision", "created", "plan", "diverged"),
)
"""Facts kept of a manifest, in addition to those that describe the cell."""


def read_manifest(folder: Path, name: str, remedy: str) -> dict[str, Any]:
    """The manifest of a reference. Raises UserError, naming the remedy, where there is none."""
    try:
        found = json.loads((folder / f"{name}.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"no reference of {name} in '{folder}' ({type(error).__name__}); {remedy}") from error
    if not isinstance(found, dict):
        raise UserError(f"'{folder / f'{name}.json'}' is no manifest; {remedy}")
    return found


def write(store: Store, name: str, shard: Job, speed: Speed, folder: Path, reason: str) -> None:
    """Replace the reference of this name by a finished shard."""
    table = pq.read_table(store.open(shard).path)
    table = table.select([column for column in COLUMNS if column in table.column_names])
    facts = store.open(shard).manifest()
    kept = {key: facts[key] for key in ("format", *shard.describe(), *FACTS) if key in facts}
    kept |= {"shard": name, "speed": speed._asdict()}
    try:
        before = json.loads((folder / f"{name}.json").read_text())["refreshed"]
    except (OSError, ValueError, KeyError, TypeError):
        before = []
    this = {"reason": reason, **{key: facts.get(key) for key in ("created", "git_revision", "config_hash")}}
    kept["refreshed"] = [*before, this]
    _replace(folder / f"{name}.parquet", lambda path: pq.write_table(table, path, compression="zstd"))
    _replace(folder / f"{name}.json", lambda path: path.write_text(json.dumps(kept, indent=1) + "\n"))


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    except pa.ArrowException as error:
        raise OSError(str(error)) from error
    finally:
        temporary.unlink(missing_ok=True)
