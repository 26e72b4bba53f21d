"""`rlsuite check`: train a small set of cells and compare their curves with reference curves that are kept in git.

The comparison itself is `analysis/regression.py`; here is what it takes: the cells, their rounds of seeds, the folder
of results, and the reference curves. A reference is a finished shard without what a comparison does not need, so that
`analysis.load` reads it: `<name>.parquet` with one row per (run, evaluation), and `<name>.json` with its manifest, the
reason for which it was made and those of its predecessors.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

import envs
import rlsuite
from rlsuite.commands import check_speed
from rlsuite.commands.check_speed import Speed
from rlsuite.errors import MOST_RUNS, UserError, check_at_most, check_positive
from rlsuite.sweeping import catalogue, local, manifest, sweep
from rlsuite.sweeping.job import Job, resolve, resolve_all
from rlsuite.sweeping.store import Store
from rlsuite.sweeping.sweep import Experiment
from rlsuite.training.plan import Limits
from rlsuite.training.progress import say

FILE = "experiments/check.py"
SETTINGS = local.Settings(Limits(width=8))
"""The width is fixed: what was measured fastest may differ from day to day, and with it the order of sums."""
COLUMNS = (
    *("experiment", "label", "algorithm", "environment", "config_hash", "dataset", "sampling", "run", "seed"),
    *("step", "wall_seconds", "return_mean", "diverged"),
)
"""What is kept of a shard, where it has them."""
FACTS = (
    *("total_updates", "steps_per_update", "dataset_checksum", "dataset_size", "dataset_source", "evaluation_physics"),
    *("matmul_precision", "versions", "device", "git_revision", "created", "plan", "diverged"),
)
"""What is kept of a manifest, beside what describes the cell."""


@dataclasses.dataclass(frozen=True)
class Check:
    """Cells that are compared with references."""

    experiment: Experiment
    """each cell with the `seeds` of one round, and one setting of its hyperparameters"""
    reference_seeds: int
    """runs of each reference, which are made when it is refreshed; their seeds begin where the cell's do"""
    rounds: int = 3
    """how often a cell that is inconclusive gets as many seeds again, the first round included"""
    margins: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """name of a reference -> share of what it has learned that may be lost, if not `analysis.regression.MARGIN`"""


def load(path: str | Path) -> Check:
    """The `CHECK` that a Python file defines, or with `file.py:LARGE` the one it calls `LARGE`.

    Raises:
        UserError: no such file, it does not run, or what it defines is no check that can be run.
    """
    check = sweep.load_as(Check, path, "CHECK")
    check_positive(reference_seeds=check.reference_seeds, rounds=check.rounds)
    check_at_most(MOST_RUNS, reference_seeds=check.reference_seeds, rounds=check.rounds)
    shards = resolve_all(check.experiment)
    names = [reference_name(shard) for shard in shards]
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"check '{check.experiment.name}' has {count} cells called {name}; label them")
    for shard in shards:
        if len(shard.runs) != shard.cell.seeds:
            raise UserError(f"{reference_name(shard)}: a cell of a check has one setting of hypers; make others cells")
    if unknown := set(check.margins) - set(names):
        raise UserError(f"margins of {', '.join(sorted(unknown))}, but the cells are {', '.join(names)}")
    return check


def reference_name(shard: Job) -> str:
    """The shard's name without the digest, so that a cell that has changed still finds its reference."""
    return shard.name.rpartition("__")[0]


def of_round(check: Check, number: int) -> dict[str, Job]:
    """The shards that the round of this number trains, the first being 0, by the names of their references."""
    cells = [
        dataclasses.replace(cell, first_seed=cell.first_seed + number * cell.seeds) for cell in check.experiment.cells
    ]
    return {reference_name(shard): shard for shard in (resolve(check.experiment.name, cell) for cell in cells)}


def code_state(check: Check) -> str:
    """Twelve hex digits of all source files, the versions of all packages, the check itself and its datasets' files.

    Results of another state are never taken for those of this one.
    """
    digest = hashlib.sha256(repr([sorted(manifest.versions().items()), check]).encode())
    for package in (envs, rlsuite):
        folder = Path(str(package.__file__)).parent
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{file.relative_to(folder.parent)}\n".encode() + file.read_bytes())
    for dataset_id in sorted({cell.dataset for cell in check.experiment.cells if cell.dataset is not None}):
        for file in found.files if (found := catalogue.find(dataset_id)) else ():
            with file.open("rb") as opened:
                digest.update(f"{file.name}\n".encode() + hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:12]


def choose(check: Check, listed: str | None) -> list[str]:
    """The names in a list with commas, all if there is none. Raises UserError for one that is no cell's."""
    there = list(of_round(check, 0))
    if listed is None:
        return there
    names = listed.split(",")
    if unknown := [name for name in names if name not in there]:
        raise UserError(f"no cell '{unknown[0]}' in check '{check.experiment.name}'; there are: {', '.join(there)}")
    return names


Judged = TypeVar("Judged")


def run(
    check: Check,
    names: Sequence[str],
    store: Store,
    judge: Callable[[dict[str, list[Job]]], Sequence[Judged]],
    is_inconclusive: Callable[[Judged], bool],
) -> Sequence[Judged]:
    """Train the cells of these names, and those that are inconclusive again at other seeds, up to the last round.

    Args:
        check: what is compared.
        names: of the cells to train.
        store: where results lie; what it holds already is not trained again.
        judge: is told after each round which shards of each cell are there, and gives one judgement a cell, in order.
        is_inconclusive: whether a judgement asks for more runs.

    Returns:
        What `judge` gave after the last round.

    Raises:
        UserError, Stopped: as `local.run`.
    """
    there: dict[str, list[Job]] = {name: [] for name in names}
    waiting = list(names)
    judged: Sequence[Judged] = ()
    for number in range(check.rounds):
        if not waiting:
            break
        if number:
            say(f"inconclusive so far: {', '.join(waiting)}; more seeds, round {number + 1} of {check.rounds}")
        shards = of_round(check, number)
        local.run([shards[name] for name in waiting], store, SETTINGS)
        for name in waiting:
            there[name].append(shards[name])
        judged = judge(there)
        waiting = [name for name, one in zip(there, judged, strict=True) if is_inconclusive(one)]
    return judged


# --- References -------------------------------------------------------------------------------------------------------


def read_manifest(folder: Path, name: str, remedy: str) -> dict[str, Any]:
    """The manifest of a reference. Raises UserError, naming the remedy, where there is none."""
    try:
        found = json.loads((folder / f"{name}.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"no reference of {name} in '{folder}' ({type(error).__name__}); {remedy}") from error
    if not isinstance(found, dict):
        raise UserError(f"'{folder / f'{name}.json'}' is no manifest; {remedy}")
    return found


def reference_shards(check: Check) -> dict[str, Job]:
    """What the references are made from, by their names."""
    cells = [dataclasses.replace(cell, seeds=check.reference_seeds) for cell in check.experiment.cells]
    return {reference_name(shard): shard for shard in (resolve(check.experiment.name, cell) for cell in cells)}


def refresh(check: Check, names: Sequence[str], store: Store, folder: Path, reason: str) -> None:
    """Train the cells of these names at `reference_seeds`, measure their speed, and replace their references.

    Raises:
        UserError: as `local.run` and `check_speed.measure`; the folder cannot be written.
    """
    shards = reference_shards(check)
    local.run([shards[name] for name in names], store, SETTINGS)
    speeds = {name: check_speed.measure(shards[name]) for name in names}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            write(store, shards[name], speeds[name], folder, reason)
    except OSError as error:
        raise UserError(
            f"references '{folder}' cannot be written ({error}); choose another with --references"
        ) from error


def write(store: Store, shard: Job, speed: Speed, folder: Path, reason: str) -> None:
    """Replace the reference of a finished shard."""
    name = reference_name(shard)
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
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(beside)
        beside.replace(path)
    except pa.ArrowException as error:
        raise OSError(str(error)) from error
    finally:
        beside.unlink(missing_ok=True)
