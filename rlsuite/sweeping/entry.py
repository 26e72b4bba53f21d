"""The results of one job on disk, its shard: one Parquet file and one manifest, each written whole or not at all.

While a shard runs, `<folder>/<shard>.partial/` holds

runs000000-000063.update000000001000.parquet   the rows of one evaluation of one chunk of runs, written as it comes
layout.json                                    how many runs train at once, so that a resumed shard does the same
snapshot000000-000063/                         of these runs, see rlsuite/training/checkpoint.py
policies000000-000063.arrow                    what these runs have learned, if policies are saved
lock                                           held by the process that runs the shard; no process, no lock
lock000000-000063                              held by the process that trains these runs, maybe another one

When the last chunk is done, and every run has its row at every evaluation, the policies are merged into
`<folder>/<shard>.policies.arrow`, the rows into `<folder>/<shard>.parquet`, and the partial folder is removed. What was
there of a shard that is trained again lies in `<folder>/.before/`.

The policies are a table with one row per run:

run int32, seed int64; update int64; diverged bool       which run, after how many updates
<leaf> fixed_size_list                                   see rlsuite/sweeping/policies.py
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlsuite.errors import UserError
from rlsuite.sweeping.job import Job
from rlsuite.sweeping.rows import Part, damaged, rows
from rlsuite.training.train import Evaluation, evaluation_points

FORMAT = 1

POLICIES = ".policies.arrow"
"""What the name of a shard's policies ends with."""
BEFORE = ".before"
"""The folder of what was there of shards that are trained again. A report does not look into it."""


class Entry:
    """What a folder of results holds of a job: finished or begun, and by whom. `Store.open` gives it.

    Raises:
        UserError: the disk is full or gone, or a file that should be there is damaged. A finished shard is never
            replaced.
    """

    def __init__(self, folder: Path, job: Job) -> None:
        self.folder = folder
        self.job = job

    @property
    def path(self) -> Path:
        """Where the finished shard lies."""
        return self.folder / f"{self.job.name}.parquet"

    @property
    def partial(self) -> Path:
        """The folder in which it lies while it runs."""
        return self.folder / f"{self.job.name}.partial"

    @property
    def manifest_path(self) -> Path:
        """Where the facts about the shard lie, running or finished."""
        return self.folder / f"{self.job.name}.json"

    @property
    def policies_path(self) -> Path:
        """Where the policies of the finished shard lie, if they were saved."""
        return self.folder / f"{self.job.name}{POLICIES}"

    def finished(self) -> bool:
        """Whether the shard is finished. Raises UserError if its file is there but damaged or lacks evaluations."""
        path = self.path
        if not path.exists():
            return False
        if damage := damaged(path):
            raise UserError(
                f"finished results '{path}' cannot be read ({damage}); "
                "restore the file, or delete it to train its runs again"
            )
        if hole := self._hole():
            raise UserError(
                f"finished results '{path}' lack evaluations ({hole}); restore the file, or delete it to train its "
                "runs again"
            )
        return True

    def _hole(self) -> str | None:
        """What a finished file that can be read lacks, judged by its end; None if every evaluation has every run."""
        runs = len(self.job.runs)
        with pq.ParquetFile(self.path) as file:
            there = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        if short := [rows for rows in there if rows != runs]:
            return f"one has {short[0]} of {runs} runs"
        total = self.manifest().get("total_updates")
        expected = len(evaluation_points(total, self.job.cell.evaluations)) if isinstance(total, int) else len(there)
        return None if len(there) == expected else f"{len(there)} of {expected} are there"

    def begun(self) -> bool:
        """Whether something is there of the shard which training would go on with."""
        return self.layout() is not None or bool(self.parts())

    # --- One process a shard ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def claim(self) -> Iterator[bool]:
        """Whether this process may run the shard. If so, no other one may, until this one leaves or dies.

        The lock goes away with the folder of a shard that is finished, so look whether it is `finished` afterwards.
        """
        folder = self.partial
        path = folder / "lock"
        with self._locked(path) as ours:
            try:
                yield ours
            finally:
                if ours and self.path.exists():
                    shutil.rmtree(folder, ignore_errors=True)
                elif ours and [path.name for path in folder.glob("*")] == ["lock"]:  # nothing has been begun
                    with contextlib.suppress(OSError):
                        path.unlink()
                        folder.rmdir()

    @contextlib.contextmanager
    def claim_runs(self, first: int, stop: int) -> Iterator[bool]:
        """Whether this process may train the runs first, ..., stop - 1 of a shard that it, or the process that gives it
        work, has claimed. A worker may outlive that process, and then meets the worker of the next one here."""
        path = self.partial / f"lock{_named(first, stop)}"
        with self._locked(path) as ours:
            try:
                yield ours
            finally:
                if ours:
                    path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self, path: Path) -> Iterator[bool]:
        """Whether this process holds the lock for as long as the context lasts."""
        try:
            lock = self._lock(path)
        except OSError as error:
            raise _cannot_write(path.parent, error) from error
        try:
            yield lock is not None
        finally:
            if lock is not None:
                os.close(lock)

    def _lock(self, path: Path) -> int | None:
        """A file descriptor that holds the lock; None if another process holds it."""
        while True:
            path.parent.mkdir(exist_ok=True)
            try:
                lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:  # another process has finished the shard and removed its folder just now
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.exists(path) and os.path.samestat(os.fstat(lock), os.stat(path)):
                    os.ftruncate(lock, 0)
                    os.write(lock, f"process {os.getpid()} on {platform.node()}".encode())
                    return lock
            except BlockingIOError:
                os.close(lock)
                return None
            except FileNotFoundError:
                pass
            except OSError:
                os.close(lock)
                raise
            os.close(lock)  # of a file that was removed before it was locked

    def holder(self) -> str:
        """Which process runs the shard, in words."""
        try:
            return (self.partial / "lock").read_text() or "another process"
        except OSError:
            return "another process"

    # --- While a shard runs -------------------------------------------------------------------------------------------

    def layout(self) -> dict[str, int] | None:
        """What `write_layout` wrote when the shard was begun, if it was. Damaged, it is as if there were none."""
        try:
            layout = json.loads((self.partial / "layout.json").read_text())
            return {name: max(1, int(layout[name])) for name in ("width", "devices")}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write_layout(self, layout: dict[str, int]) -> None:
        """Remember how many runs train at once on how many devices."""
        text = json.dumps(layout) + "\n"
        self._replace(self.partial / "layout.json", lambda target: Path(target).write_text(text))

    def write_rows(self, first: int, evaluation: Evaluation) -> None:
        """Write one evaluation of the runs from `first`, or write it once more."""
        part = Part(first, first + len(evaluation.diverged), evaluation.update)
        table = rows(self.job, evaluation, first)
        path = self.partial / part.file_name
        self._replace(path, lambda target: pq.write_table(table, target, compression="zstd"))

    def write_policies(self, first: int, update: int, diverged: np.ndarray, leaves: dict[str, np.ndarray]) -> None:
        """Write what the runs from `first` have learned after `update` updates: `[runs]` bool and `[runs, ...]`."""
        stop = first + len(diverged)
        columns: dict[str, Any] = {
            "run": pa.array(range(first, stop), pa.int32()),
            "seed": pa.array([seed for seed, _ in self.job.runs[first:stop]], pa.int64()),
            "update": pa.array([update] * len(diverged), pa.int64()),
            "diverged": pa.array(diverged),
        }
        for name, leaf in leaves.items():
            flat = leaf.reshape(len(diverged), -1)
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
        path = self._policies_part(first, stop)
        self._replace(path, lambda target: _write_arrow(target, [pa.table(columns)]))

    def parts(self) -> list[Part]:
        """The parts that are there and whole, in order."""
        found = []
        for path in sorted(self.partial.glob("runs*.parquet")):
            part = Part.of(path)
            if part and not damaged(path, part.stop - part.first):
                found.append(part)
        return found

    def snapshots(self, first: int, stop: int) -> Path:
        """The folder of snapshots of the runs first, ..., stop - 1 while they train."""
        return self.partial / f"snapshot{_named(first, stop)}"

    def old_snapshots(self) -> Path:
        """Where versions before there was a folder for each chunk have put the snapshots of all."""
        return self.partial / "snapshot"

    def learned(self) -> list[tuple[int, int]]:
        """(first, stop) of the runs whose policies are there and whole, in order."""
        found = []
        for path in sorted(self.partial.glob("policies*.arrow")):
            first, last = map(int, path.stem.removeprefix("policies").split("-"))
            with contextlib.suppress(UserError):
                if read_policies(path).num_rows == last + 1 - first:
                    found.append((first, last + 1))
        return found

    def read(self, part: Part) -> pa.Table:
        """The rows of a part. Raises UserError where it is gone or damaged."""
        path = self.partial / part.file_name
        try:
            return pq.read_table(path)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(
                f"'{path}' is gone or cannot be read ({' '.join(str(error).split())}); delete it if it is there, then "
                "run the same command again to train its runs again"
            ) from error

    def forget(self, first: int, stop: int) -> None:
        """Remove all parts with a run among first, ..., stop - 1, whole or damaged: these runs start over."""
        for path in sorted(self.partial.glob("*")):
            match = re.fullmatch(r"(?:runs|policies)(\d+)-(\d+)\..+", path.name)
            if match and int(match[1]) < stop and first <= int(match[2]):
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise _cannot_write(path, error) from error

    def write_manifest(self, facts: dict[str, Any]) -> None:
        """Replace the shard's manifest."""
        text = json.dumps({"format": FORMAT, **self.job.describe(), **facts}, indent=1) + "\n"
        self._replace(self.manifest_path, lambda target: Path(target).write_text(text))

    def manifest(self) -> dict[str, Any]:
        """The shard's manifest; empty if there is none that can be read."""
        try:
            found = json.loads(self.manifest_path.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def set_aside(self) -> None:
        """Move all that is there of the shard into the folder `BEFORE`, in place of what is there of an earlier time.

        The process that does so has claimed the shard, which starts over. The manifest is copied first and removed
        last: rows have it in both places. Of a finished shard the rows go last, of another one the layout: as long as
        these are there, a process that was killed does all of this again. Snapshots are not kept.
        """
        before, partial = self.folder / BEFORE, self.partial
        parts = before / partial.name
        try:
            for snapshots in partial.glob("snapshot*"):
                shutil.rmtree(snapshots, ignore_errors=True)
            if (parts / "layout.json").exists():  # the last to come: it is not what a killed process has begun to move
                shutil.rmtree(parts)
            parts.mkdir(parents=True, exist_ok=True)
            stays = re.compile(r"lock[-\d]*|layout\.json")
            part_files = [path for path in sorted(partial.iterdir()) if not stays.fullmatch(path.name)]
            manifest = self.manifest_path
            if manifest.exists():
                shutil.copyfile(manifest, before / manifest.name)
            for path in (self.policies_path, *part_files, partial / "layout.json", self.path):
                if path.exists():
                    os.replace(path, (parts if path.parent == partial else before) / path.name)
            manifest.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it is not empty
                parts.rmdir()
        except OSError as error:
            raise _cannot_write(before, error) from error

    def finish(self, points: Sequence[int], policies: bool = False) -> None:
        """All runs are done: merge the parts into the finished file, one row group an evaluation.

        Args:
            points: update counts at which every run was evaluated.
            policies: whether they were saved; where they were not of all runs, none are kept.

        Raises:
            UserError: a run has no row, or more than one, at one of these points, or no policy. Nothing is finished.
        """
        if self.path.exists():
            raise UserError(
                f"'{self.path}' was finished meanwhile, by another process? It is kept as it is; "
                "run the same command again to go on with the rest"
            )
        parts = self.parts()
        for update in points:
            self._check_all(f"rows of update {update}", [part[:2] for part in parts if part.update == update])
        learned = self.learned()
        if policies:
            self._check_all("policies", learned)

        def tables() -> Iterator[pa.Table]:
            for update in points:
                update_parts = sorted(part for part in parts if part.update == update)
                every = [columns.empty_table(), *(self.read(part) for part in update_parts)]
                yield pa.concat_tables(every, promote_options="default")

        # The first evaluation has no metrics yet, and parts of an earlier version lack columns that came later.
        schemas = [self.read(part).schema for part in parts if part.update == points[-1]]
        columns = pa.unify_schemas(sorted(schemas, key=len, reverse=True))

        def merge(target: str) -> None:
            with pq.ParquetWriter(target, columns, compression="zstd") as writer:
                for table in tables():
                    writer.write_table(table)

        # First, so that a finished shard has them.
        if runs_of(learned) == list(range(len(self.job.runs))):
            # One after another, since together they may be large.
            policy_tables = (read_policies(self._policies_part(*runs)) for runs in learned)
            self._replace(self.policies_path, lambda target: _write_arrow(target, policy_tables))
        else:
            self.policies_path.unlink(missing_ok=True)  # of a file that was deleted to train again
        self._replace(self.path, merge)

    def _policies_part(self, first: int, stop: int) -> Path:
        return self.partial / f"policies{_named(first, stop)}.arrow"

    def _check_all(self, what: str, there: Sequence[tuple[int, int]]) -> None:
        """Raise UserError unless every run is in just one of these ranges."""
        counts = np.bincount(np.asarray(runs_of(there), np.int64), minlength=len(self.job.runs))
        if wrong := np.flatnonzero(counts != 1).tolist():
            raise UserError(
                f"'{self.partial}' has not just one of the {what} for {len(wrong)} of its runs (run {wrong[0]} "
                f"has {counts[wrong[0]]}); run the same command again to train them again"
            )

    def _replace(self, path: Path, write: Callable[[str], Any]) -> None:
        """Write elsewhere, then rename, so that a reader sees the old file or the new one and never a half.

        Elsewhere is the partial folder, so that nothing stays of what a killed process was writing.
        """
        # Of this process and thread alone, since several may write; short, since names of shards may be long.
        temporary = self.partial / f".tmp-{platform.node()[:64]}-{os.getpid()}-{threading.get_ident()}"
        try:
            write(str(temporary))
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
            os.replace(temporary, path)
        except OSError as error:
            raise _cannot_write(path, error) from error
        finally:
            with contextlib.suppress(OSError):  # it would hide the error above
                temporary.unlink(missing_ok=True)


def _named(first: int, stop: int) -> str:
    """The runs first, ..., stop - 1 in the name of a file."""
    return f"{first:06}-{stop - 1:06}"


def runs_of(ranges: Iterable[tuple[int, int]]) -> list[int]:
    """All runs first, ..., stop - 1 of each range, sorted; one that is in several as often."""
    return sorted(run for first, stop in ranges for run in range(first, stop))


def read_policies(path: Path) -> pa.Table:
    """The table that `Entry.write_policies` or `finish` wrote; the arrays stay on the disk until they are looked at.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with pa.memory_map(str(path)) as file:
            return pa.ipc.open_file(file).read_all()
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"policies '{path}' cannot be read ({' '.join(str(error).split())}); restore the file, or delete it to do "
            "without them"
        ) from error


def _write_arrow(target: str, tables: Iterable[pa.Table]) -> None:
    """Tables of one schema, at least one, as one file."""
    remaining = iter(tables)
    table = next(remaining)
    with pa.OSFile(target, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
        for table in remaining:
            writer.write_table(table)


def _cannot_write(path: Path, error: OSError) -> UserError:
    # Arrow's errors have no strerror, and may have several lines.
    reason = error.strerror or " ".join(str(error).split())
    return UserError(
        f"'{path}' cannot be written ({reason}); what was saved before is intact. "
        "Free some space or choose another folder with --results, then run the same command again"
    )
