"""Results on disk: what a row holds, and that no failure leaves half a file or loses a whole one."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from written import contents, cut

from rlsuite.algorithms.on_policy import ppo
from rlsuite.errors import UserError
from rlsuite.sweeping.entry import BEFORE, Entry, read_policies
from rlsuite.sweeping.job import Job, resolve
from rlsuite.sweeping.rows import Part, rows
from rlsuite.sweeping.store import Store
from rlsuite.sweeping.sweep import Cell
from rlsuite.training.train import Evaluation

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = (ppo.Hypers(learning_rate=0.1), ppo.Hypers(learning_rate=0.2))


@pytest.fixture(scope="module")
def two_by_two() -> Job:
    """Two seeds of each of two settings."""
    return resolve(
        "mine", Cell("ppo", "probe/action/discrete", 32, seeds=2, first_seed=3, hypers=SETTINGS, label="A b")
    )


@pytest.fixture
def entry(tmp_path: Path, two_by_two: Job) -> Entry:
    return Store(tmp_path / "mine").open(two_by_two)


def evaluation(update: int, first: int = 0, stop: int = 4, **changes: Any) -> Evaluation:
    """What the host learns of the four runs, or of some, with three episodes each."""
    returns = np.arange(12, dtype=np.float32).reshape(4, 3) + update
    given = Evaluation(
        update=update,
        step=update * 16,
        wall_seconds=0.5 * update,
        returns=returns[first:stop],
        lengths=np.full((stop - first, 3), 7, np.int64),
        metrics={"loss": np.arange(4.0)[first:stop]} if update else {},
        diverged=np.zeros(stop - first, bool),
        nonfinite=np.zeros(stop - first, np.uint8),
    )
    return given._replace(**changes)


# --- Rows -------------------------------------------------------------------------------------------------------------


def test_each_row_is_of_its_own_run(two_by_two: Job) -> None:
    diverged = np.array([False, True, False, False])
    table = rows(two_by_two, evaluation(2, diverged=diverged)).to_pylist()
    assert [(row["run"], row["seed"], row["hyper/learning_rate"]) for row in table] == [
        (0, 3, 0.1),
        (1, 4, 0.1),
        (2, 3, 0.2),
        (3, 4, 0.2),
    ]
    assert [row["episode_returns"] for row in table] == [[2, 3, 4], [5, 6, 7], [8, 9, 10], [11, 12, 13]]
    assert [(row["return_min"], row["return_mean"], row["return_max"]) for row in table] == [
        (2, 3, 4),
        (5, 6, 7),
        (8, 9, 10),
        (11, 12, 13),
    ]
    assert [row["return_std"] for row in table] == pytest.approx([(2 / 3) ** 0.5] * 4, rel=1e-12)
    assert [row["metric/loss"] for row in table] == [0, 1, 2, 3]
    assert [row["diverged"] for row in table] == [False, True, False, False]
    assert {(row["step"], row["update"], row["wall_seconds"]) for row in table} == {(32, 2, 1.0)}
    assert {(row["experiment"], row["label"], row["algorithm"]) for row in table} == {("mine", "A b", "ppo")}


def test_the_rows_of_some_runs_are_those_of_all(two_by_two: Job) -> None:
    everything = rows(two_by_two, evaluation(2))
    assert rows(two_by_two, evaluation(2, 1, 3), first=1).equals(everything.slice(1, 2))


def test_a_hyperparameter_is_kept_to_the_last_digit(two_by_two: Job) -> None:
    """As it was given, not as the program's float32 holds it."""
    assert rows(two_by_two, evaluation(0))["hyper/gae_lambda"].to_pylist() == [0.95] * 4


def test_a_run_that_diverged_is_kept_with_its_nan(two_by_two: Job) -> None:
    returns = np.full((4, 3), np.nan, np.float32)
    table = rows(two_by_two, evaluation(1, returns=returns, diverged=np.ones(4, bool)))
    assert np.isnan(table["return_mean"].to_numpy()).all()
    assert table["diverged"].to_pylist() == [True] * 4


@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan, 3e38])
def test_odd_numbers_are_kept_without_a_warning(odd: float, two_by_two: Job) -> None:
    returns = np.full((4, 3), odd, np.float32)
    returns[0] = np.inf, -np.inf, np.nan
    with warnings.catch_warnings(action="error"):
        table = rows(two_by_two, evaluation(1, returns=returns, metrics={"loss": np.full(4, 1e39)}))
    np.testing.assert_array_equal(table["episode_returns"].to_pylist(), returns)
    np.testing.assert_array_equal(table["metric/loss"].to_numpy(), np.full(4, np.inf))


# --- Parts ------------------------------------------------------------------------------------------------------------


def test_the_name_of_a_part_tells_the_part() -> None:
    assert Part(0, 64, 1000).file_name == "runs000000-000063.update000000001000.parquet"
    parts = [
        Part(0, 1, 0),
        Part(0, 1, 9),
        Part(0, 1, 10),
        Part(0, 64, 0),
        Part(9, 10, 5),
        Part(10, 11, 2),
        Part(10, 99, 1),
    ]
    parts += [Part(0, 1, 2**31 - 1), Part(99_999, 100_000, 0)]
    assert [Part.of(Path("anywhere") / part.file_name) for part in parts] == parts
    assert sorted(part.file_name for part in parts) == [part.file_name for part in sorted(parts)]


@pytest.mark.parametrize(
    "name",
    [
        "layout.json",
        "lock",
        ".runs000000-000001.update000000000000.parquet.tmp",
        "runs000000-000001.update000000000000.parquet.old",
        "runs000000.update000000000000.parquet",
        "runs000000-000001.parquet",
    ],
)
def test_other_files_are_no_parts(name: str) -> None:
    assert Part.of(Path(name)) is None


@pytest.fixture
def running(entry: Entry) -> Iterator[Entry]:
    """A shard that this process runs, with one evaluation of its first two runs."""
    with entry.claim() as ours:
        assert ours
        entry.write_manifest({"run_seconds": 0.0})
        entry.write_rows(0, evaluation(0, 0, 2))
        yield entry


def test_parts_hold_what_was_written(running: Entry) -> None:
    running.write_rows(2, evaluation(1, 2, 4))
    running.write_rows(2, evaluation(0, 2, 4))
    assert running.parts() == [Part(0, 2, 0), Part(2, 4, 0), Part(2, 4, 1)]
    assert running.read(Part(2, 4, 1)).equals(rows(running.job, evaluation(1)).slice(2, 2))


def test_a_part_that_is_written_again_is_there_once(running: Entry) -> None:
    """As after resuming from a snapshot that is older than the last evaluation."""
    running.write_rows(0, evaluation(0, 0, 2, wall_seconds=9.0))
    assert running.parts() == [Part(0, 2, 0)]
    assert running.read(Part(0, 2, 0))["wall_seconds"].to_pylist() == [9.0, 9.0]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "one byte": lambda whole: whole[:1],
    "only the beginning": lambda whole: whole[:4],
    "half": lambda whole: whole[: len(whole) // 2],
    "without its end": lambda whole: whole[:-8],
    "without the last byte": lambda whole: whole[:-1],
    "zeros, as after a power failure": lambda whole: bytes(len(whole)),
    "the last half zeros": lambda whole: whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_does_not_count_and_may_be_written_again(damage: str, running: Entry) -> None:
    running.write_rows(2, evaluation(0, 2, 4))
    path = running.partial / Part(0, 2, 0).file_name
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert running.parts() == [Part(2, 4, 0)]
    running.write_rows(0, evaluation(0, 0, 2))
    assert running.parts() == [Part(0, 2, 0), Part(2, 4, 0)]


def test_runs_that_begin_anew_leave_nothing_of_themselves(running: Entry) -> None:
    """As when the shard goes on with chunks of another width: parts that only overlap are gone as well."""
    for update in (0, 1):
        for first, stop in ((0, 1), (0, 2), (1, 3), (2, 3), (3, 4)):
            running.write_rows(first, evaluation(update, first, stop))
    for part in (Part(1, 3, 0), Part(3, 4, 0)):
        path = running.partial / part.file_name
        path.write_bytes(path.read_bytes()[:100])
    others = {name: data for name, data in contents(running.folder).items() if "runs" not in name}
    running.forget(1, 3)
    left = {running.partial / part.file_name for part in (Part(0, 1, 0), Part(0, 1, 1))}
    left |= {running.partial / part.file_name for part in (Part(3, 4, 0), Part(3, 4, 1))}
    assert set(running.partial.glob("*runs*")) == left
    assert {name: data for name, data in contents(running.folder).items() if "runs" not in name} == others


def write_rest(running: Entry) -> None:
    """What `running` lacks of two evaluations."""
    running.write_rows(2, evaluation(0, 2, 4))
    for first in (0, 2):
        running.write_rows(first, evaluation(2, first, first + 2))


# --- Whole or not at all ----------------------------------------------------------------------------------------------

DISK_FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
REASONS = {
    "full disk": (DISK_FULL, "No space left on device"),
    "Arrow's full disk": (OSError("Error writing bytes.\nDetail: full"), "Error writing bytes. Detail: full"),
    "read-only file system": (OSError(errno.EROFS, os.strerror(errno.EROFS)), "Read-only file system"),
    "no permission": (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "Permission denied"),
}


def half_a_table(error: BaseException) -> Callable[..., NoReturn]:
    """A `pq.write_table` that fails in the middle."""
    write_table = pq.write_table

    def write(table: pa.Table, target: str, **options: Any) -> NoReturn:
        whole = io.BytesIO()
        write_table(table, whole, **options)
        Path(target).write_bytes(whole.getvalue()[: whole.tell() // 2])
        raise error

    return write


def half_a_merge(error: BaseException) -> type[pq.ParquetWriter]:
    """A `pq.ParquetWriter` that takes one evaluation and then fails."""

    class Failing(pq.ParquetWriter):
        taken = 0

        def write_table(self, *arguments: Any, **options: Any) -> None:
            if self.taken:
                raise error
            self.taken += 1
            super().write_table(*arguments, **options)

    return Failing


def half_a_text(error: BaseException) -> Callable[[Path, str], NoReturn]:
    """A `Path.write_text` that fails in the middle."""
    write_text = Path.write_text

    def write(path: Path, text: str) -> NoReturn:
        write_text(path, text[: len(text) // 2])
        raise error

    return write


def failing(error: BaseException) -> Callable[..., NoReturn]:
    """An `os.replace`, `os.fsync` or `Path.mkdir` that fails."""

    def fail(*arguments: Any, **options: Any) -> NoReturn:
        raise error

    return fail


# What is written, and every step in which that may fail.
ROWS = (lambda entry: entry.write_rows(0, evaluation(1, 0, 2)), "update000000000001.parquet")
AGAIN = (lambda entry: entry.write_rows(0, evaluation(0, 0, 2)), "update000000000000.parquet")
MANIFEST = (lambda entry: entry.write_manifest({"run_seconds": 1.0}), ".json")
LAYOUT = (lambda entry: entry.write_layout({"width": 2, "devices": 1}), "layout.json")
FINISH = (lambda entry: entry.finish((0, 2)), ".parquet")
STEPS: dict[str, tuple[tuple[Callable[[Entry], None], str], Any, str, Callable[[BaseException], Any]]] = {
    "rows, while writing": (ROWS, pq, "write_table", half_a_table),
    "rows, on their way to the disk": (ROWS, os, "fsync", failing),
    "rows, while renaming": (ROWS, os, "replace", failing),
    "rows once more, while writing": (AGAIN, pq, "write_table", half_a_table),
    "manifest, while writing": (MANIFEST, Path, "write_text", half_a_text),
    "manifest, while renaming": (MANIFEST, os, "replace", failing),
    "layout, while writing": (LAYOUT, Path, "write_text", half_a_text),
    "layout, while renaming": (LAYOUT, os, "replace", failing),
    "finish, while writing": (FINISH, pq, "ParquetWriter", half_a_merge),
    "finish, on its way to the disk": (FINISH, os, "fsync", failing),
    "finish, while renaming": (FINISH, os, "replace", failing),
}


@contextmanager
def broken(step: str, error: BaseException) -> Iterator[Callable[[Entry], None]]:
    """The write that fails at this step, while it does."""
    (write, _), owner, name, half = STEPS[step]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, half(error))
        yield write


@pytest.mark.parametrize(
    ("step", "reason"),
    [*((step, "full disk") for step in STEPS), *(("rows, while writing", reason) for reason in [*REASONS][1:])],
)
def test_what_cannot_be_written_leaves_what_was_there(step: str, reason: str, running: Entry) -> None:
    write_rest(running)
    before, parts = contents(running.folder), running.parts()
    error, text = REASONS[reason]
    with broken(step, error) as write, pytest.raises(UserError) as raised:
        write(running)
    message = str(raised.value)
    (_, end), *_ = STEPS[step]
    expected = [f"{end}' cannot be written ({text})", str(running.folder), "intact", "--results", "same command"]
    assert [part for part in expected if part not in message] == [], message
    assert "\n" not in message
    assert contents(running.folder) == before
    assert running.parts() == parts
    assert not running.finished()
    # The disk has space again.
    write(running)
    assert contents(running.folder) != before or step.startswith("rows once more")


@pytest.mark.parametrize("step", STEPS)
def test_an_interruption_leaves_what_was_there(step: str, running: Entry) -> None:
    write_rest(running)
    before = contents(running.folder)
    with broken(step, KeyboardInterrupt()) as write, pytest.raises(KeyboardInterrupt):
        write(running)
    assert contents(running.folder) == before


def test_the_manifest_holds_the_facts_and_the_shard(running: Entry) -> None:
    manifest = running.manifest()
    assert manifest == json.loads((running.folder / f"{running.job.name}.json").read_text())
    assert manifest == {
        "format": 1,
        "run_seconds": 0.0,
        # Through JSON, which makes lists of tuples.
        **json.loads(json.dumps(running.job.describe())),
    }
    assert manifest["seeds"] == [3, 4, 3, 4]
    assert [setting["learning_rate"] for setting in manifest["hypers"]] == [0.1, 0.2]


def test_the_layout_is_remembered_while_the_shard_runs(running: Entry) -> None:
    assert running.layout() is None
    running.write_layout({"width": 2, "devices": 1})
    assert running.layout() == {"width": 2, "devices": 1}


@pytest.mark.parametrize("text", ["", "{", "[2, 1]", "2", '{"width": "many"}'])
def test_a_damaged_layout_or_manifest_is_as_none(text: str, running: Entry) -> None:
    (running.partial / "layout.json").write_text(text)
    running.manifest_path.write_text(text)
    assert running.layout() is None
    assert running.manifest() == (json.loads(text) if text.startswith('{"') else {})


# --- Finishing --------------------------------------------------------------------------------------------------------


def write_all(entry: Entry) -> None:
    """Three evaluations of three chunks of different sizes, the last chunk first."""
    for first, stop in ((3, 4), (1, 3), (0, 1)):
        for update in (2, 1, 0):
            entry.write_rows(first, evaluation(update, first, stop))


def test_finishing_merges_all_rows_in_order_of_evaluation_and_run(entry: Entry) -> None:
    with entry.claim():
        write_all(entry)
        entry.finish((0, 1, 2))
    assert entry.finished()
    merged = pq.read_table(entry.path)
    assert [(row["update"], row["run"]) for row in merged.to_pylist()] == [
        (update, run) for update in (0, 1, 2) for run in (0, 1, 2, 3)
    ]
    # As if there had been no chunks.
    whole = [rows(entry.job, evaluation(update)) for update in (0, 1, 2)]
    assert merged.equals(pa.concat_tables([whole[1].schema.empty_table(), *whole], promote_options="default"))
    assert merged["metric/loss"].to_pylist() == [None] * 4 + [0, 1, 2, 3] * 2
    assert merged.schema.field("metric/loss").type == pa.float32()
    assert pq.ParquetFile(entry.path).num_row_groups == 3


@pytest.mark.parametrize("old", [(0, 1), (1, 3), (3, 4)])
def test_rows_of_an_earlier_version_are_finished_with_those_of_this_one(old: tuple[int, int], entry: Entry) -> None:
    """Columns that came later are null in the rows from before, whichever chunk these are of."""
    later = ["nonfinite_episodes", "nonfinite"]
    with entry.claim():
        write_all(entry)
        for part in entry.parts():
            if (part.first, part.stop) == old:
                before = entry.read(part).drop_columns(later)
                pq.write_table(before, entry.partial / part.file_name)
        entry.finish((0, 1, 2))
    merged = pq.read_table(entry.path).to_pandas()
    from_before = merged["run"].between(old[0], old[1] - 1)
    assert merged["nonfinite_episodes"].isna().tolist() == from_before.tolist()
    assert merged["return_mean"].notna().all() and len(merged) == 3 * 4


def test_a_finished_shard_is_all_that_is_left(entry: Entry) -> None:
    """Also of what a killed process left in the middle of a write."""
    with entry.claim():
        entry.write_manifest({})
        write_all(entry)
        (entry.partial / f".{Part(0, 1, 1).file_name}.tmp").write_bytes(b"half")
        (entry.snapshots(0, 2) / "7").mkdir(parents=True)
        (entry.snapshots(0, 2) / "7" / "array").write_bytes(b"state")
        entry.finish((0, 1, 2))
    assert set(entry.folder.rglob("*")) == {entry.path, entry.manifest_path}


def test_a_shard_that_is_left_unfinished_is_kept(entry: Entry) -> None:
    with entry.claim():
        write_all(entry)
        before = contents(entry.folder)
    assert contents(entry.folder) == before
    assert len(entry.parts()) == 9
    assert not entry.finished()


@pytest.mark.parametrize(
    "write", [ROWS[0], MANIFEST[0], LAYOUT[0], FINISH[0]], ids=["rows", "manifest", "layout", "finish"]
)
def test_finished_rows_are_never_replaced(write: Callable[[Entry], None], running: Entry) -> None:
    """As if two processes had run the shard in spite of the lock, and the other one was faster."""
    write_rest(running)
    running.finish((0, 2))
    rows_before = running.path.read_bytes()
    if write is FINISH[0]:
        before = contents(running.folder)
        with pytest.raises(UserError, match=r"\.parquet' was finished meanwhile"):
            write(running)
        assert contents(running.folder) == before
    else:
        write(running)
    assert running.path.read_bytes() == rows_before


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_finished_file_is_named_and_kept(damage: str, running: Entry) -> None:
    write_rest(running)
    running.finish((0, 2))
    path = running.path
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    before = contents(running.folder)
    with pytest.raises(UserError) as raised:
        running.finished()
    message = str(raised.value)
    assert message.startswith(f"finished results '{path}' cannot be read (")
    assert message.endswith("); restore the file, or delete it to train its runs again")
    assert "\n" not in message
    assert contents(running.folder) == before


def shorten(path: Path) -> None:
    """A whole file of fewer rows than its name says."""
    pq.write_table(pq.read_table(path).slice(1), path)


@pytest.mark.parametrize("part", [Part(0, 1, 0), Part(1, 3, 1), Part(3, 4, 2), Part(0, 1, 2)], ids=str)
@pytest.mark.parametrize("lose", [Path.unlink, cut, shorten])
def test_a_shard_that_lacks_rows_is_not_finished(part: Part, lose: Callable[[Path], None], entry: Entry) -> None:
    with entry.claim():
        write_all(entry)
        lose(entry.partial / part.file_name)
        before = contents(entry.folder)
        with pytest.raises(
            UserError, match=rf"rows of update {part.update} for .* run the same command again"
        ) as raised:
            entry.finish((0, 1, 2))
        assert "\n" not in str(raised.value)
        assert contents(entry.folder) == before
    assert not entry.finished()


def test_a_shard_with_rows_twice_is_not_finished(entry: Entry) -> None:
    with entry.claim():
        write_all(entry)
        entry.write_rows(0, evaluation(1, 0, 2))
        with pytest.raises(UserError, match=r"rows of update 1 for 2 of its runs \(run 0 has 2\)"):
            entry.finish((0, 1, 2))


def test_an_evaluation_that_no_run_has_is_missed(entry: Entry) -> None:
    with entry.claim():
        write_all(entry)
        with pytest.raises(UserError, match=r"rows of update 3 for 4 of its runs"):
            entry.finish((0, 1, 2, 3))


def write_learned(entry: Entry, first: int, stop: int) -> None:
    leaves = {"leaf0000": np.arange(2.0 * (stop - first)).reshape(-1, 2)}
    entry.write_policies(first, 2, np.zeros(stop - first, bool), leaves)


def test_policies_are_kept_of_all_runs_or_of_none(entry: Entry) -> None:
    with entry.claim():
        write_all(entry)
        write_learned(entry, 0, 1)
        write_learned(entry, 3, 4)
        assert entry.learned() == [(0, 1), (3, 4)]
        with pytest.raises(UserError, match=r"policies for 2 of its runs \(run 1 has 0\)"):
            entry.finish((0, 1, 2), policies=True)
        # Of an earlier time, whose rows have been deleted.
        entry.policies_path.write_bytes(b"of other rows")
        entry.finish((0, 1, 2))
    assert entry.finished()
    assert not entry.policies_path.exists()


def test_policies_of_all_runs_are_merged(entry: Entry) -> None:
    with entry.claim():
        write_all(entry)
        for first, stop in ((3, 4), (0, 3)):
            write_learned(entry, first, stop)
        cut(entry.partial / "policies000000-000002.arrow")
        assert entry.learned() == [(3, 4)]
        write_learned(entry, 0, 3)
        entry.finish((0, 1, 2), policies=True)
    assert read_policies(entry.policies_path)["run"].to_pylist() == [0, 1, 2, 3]


def finish_with_a_hole(entry: Entry, lost: Callable[[pa.Table, int], pa.Table]) -> None:
    """As a version did that did not look: three evaluations, of which some rows are lost."""
    entry.write_manifest({"total_updates": 2})
    last = rows(entry.job, evaluation(2))
    with pq.ParquetWriter(entry.path, last.schema) as writer:
        for update in (0, 1, 2):
            table = lost(rows(entry.job, evaluation(update)), update)
            if table.num_rows:
                writer.write_table(pa.concat_tables([last.schema.empty_table(), table], promote_options="default"))


HOLES: dict[str, tuple[Callable[[pa.Table, int], pa.Table], str]] = {
    "a chunk": (lambda table, update: table.slice(0, 2) if update == 1 else table, "one has 2 of 4 runs"),
    "an evaluation": (lambda table, update: table.slice(0, 0 if update == 1 else 4), "2 of 3 are there"),
    "the last evaluation": (lambda table, update: table.slice(0, 0 if update == 2 else 4), "2 of 3 are there"),
}


@pytest.mark.parametrize("hole", HOLES)
def test_a_finished_shard_with_a_hole_is_named_and_kept(hole: str, entry: Entry) -> None:
    job = resolve("mine", Cell("ppo", "probe/action/discrete", 32, seeds=4, evaluations=2))
    running = Entry(entry.folder, job)
    lost, words = HOLES[hole]
    with running.claim():
        finish_with_a_hole(running, lambda table, update: table)
        assert running.finished()
        finish_with_a_hole(running, lost)
    before = running.path.read_bytes()
    expected = f"finished results '{running.path}' lack evaluations ({words}); restore the file, or delete it to"
    with pytest.raises(UserError) as raised:
        running.finished()
    assert str(raised.value).startswith(expected)
    assert running.path.read_bytes() == before


# --- Set aside --------------------------------------------------------------------------------------------------------


def wherever(folder: Path) -> dict[str, bytes | None]:
    """The files below a folder by their names alone, without those of locks."""
    files = {Path(name).name: data for name, data in contents(folder).items() if data is not None}
    return {name: data for name, data in files.items() if name != "lock"}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("after", [0, 1, 2, 3, 9, 10, 11, 12, 13])
def test_what_is_trained_again_is_nowhere_lost(
    after: int, finished: bool, entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the process is killed after any number of steps: no rows are there without the manifest of theirs."""
    with entry.claim():
        entry.write_manifest({"packages": {}})
        write_all(entry)
        write_learned(entry, 0, 4)
        entry.write_layout({"width": 2, "devices": 1})
        if finished:
            entry.finish((0, 1, 2), policies=True)
    kept = wherever(entry.folder)
    replace, steps = os.replace, iter(range(after))

    def killed(*paths: Any) -> None:
        next(steps)
        replace(*paths)

    with entry.claim(), monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with contextlib.suppress(StopIteration):
            entry.set_aside()
        assert wherever(entry.folder) == kept
        rows_left = entry.path.exists() or entry.begun()
        assert entry.manifest_path.exists() or not rows_left
    with entry.claim():
        if rows_left:
            entry.set_aside()
        assert not entry.path.exists() and not entry.begun()
    assert {path.name for path in entry.folder.iterdir()} == {BEFORE}
    assert wherever(entry.folder) == kept and not list(entry.folder.rglob("lock"))


# --- One process a shard ----------------------------------------------------------------------------------------------

# All that a claim needs to know of a shard is its name.
HOLD = """
import sys, time, types
from rlsuite.sweeping.store import Store

with Store(sys.argv[1]).open(types.SimpleNamespace(name=sys.argv[2])).claim() as ours:
    print(ours, flush=True)
    time.sleep(600)
"""


@contextmanager
def another_process(entry: Entry) -> Iterator[subprocess.Popen[str]]:
    """One that has claimed the shard, and is killed afterwards if it has not been before."""
    command = [sys.executable, "-c", HOLD, str(entry.folder), entry.job.name]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "True\n"
            yield process
        finally:
            process.kill()


def test_a_shard_belongs_to_one_process_until_that_is_killed(entry: Entry) -> None:
    with another_process(entry) as other:
        before = contents(entry.folder)
        with entry.claim() as ours:
            assert not ours
            assert entry.holder() == f"process {other.pid} on {platform.node()}"
        assert contents(entry.folder) == before
        other.kill()  # SIGKILL, which nobody can handle
        other.wait()
        with entry.claim() as ours:
            assert ours
            assert entry.holder() == f"process {os.getpid()} on {platform.node()}"


def test_a_shard_is_claimed_once_and_again_after_leaving(entry: Entry) -> None:
    other = resolve("mine", Cell("ppo", "probe/action/discrete", 32, seeds=1))
    for _ in range(2):
        with (
            entry.claim() as first,
            entry.claim() as second,
            Entry(entry.folder, other).claim() as third,
        ):
            assert (first, second, third) == (True, False, True)


def test_a_claim_ends_with_an_error_too(entry: Entry) -> None:
    with pytest.raises(RuntimeError, match="fell over"), entry.claim():
        raise RuntimeError("the device fell over")
    with entry.claim() as ours:
        assert ours


def test_a_claim_outlives_another_process_that_finishes_the_shard(
    entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It removes the folder between the moment this one has made sure of it and the moment it opens the lock."""
    opened: list[str] = []
    really_open = os.open

    def after_the_other_one(path: Path, *arguments: int) -> int:
        if not opened:
            entry.partial.rmdir()
        opened.append(path.name)
        return really_open(path, *arguments)

    with monkeypatch.context() as late:
        late.setattr(os, "open", after_the_other_one)
        with entry.claim() as ours:
            assert ours
    assert opened == ["lock", "lock"]


@pytest.mark.parametrize("reason", ["full disk", "read-only file system", "no permission"])
def test_a_folder_that_cannot_be_claimed_is_named(reason: str, entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    error, text = REASONS[reason]
    monkeypatch.setattr(Path, "mkdir", failing(error))
    with pytest.raises(UserError) as raised, entry.claim():
        pass
    assert str(raised.value).startswith(f"'{entry.partial}' cannot be written ({text}); ")


# --- The folder -------------------------------------------------------------------------------------------------------


def test_a_folder_is_made_with_those_above_it_and_left_empty(tmp_path: Path) -> None:
    assert list(Store(tmp_path / "a" / "b").folder.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/below", "file/far/below", "/proc/rlsuite"])
def test_a_folder_that_cannot_be_is_refused(place: str, tmp_path: Path) -> None:
    """Ways that fail for root too, whom no permission stops."""
    (tmp_path / "file").write_text("kept")
    folder = tmp_path / place
    with pytest.raises(UserError) as raised:
        Store(folder)
    assert str(raised.value).startswith(f"results folder '{folder}' cannot be written (")
    assert str(raised.value).endswith("; choose another with --results")
    assert contents(tmp_path) == {"file": b"kept"}


# --- A disk that fails, a folder that goes --------------------------------------------------------------------------


def test_a_full_disk_is_named_when_the_lock_cannot_be_written(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as full:
        full.setattr(os, "write", failing(DISK_FULL))
        with pytest.raises(UserError, match="No space left on device"), entry.claim():
            pass
    with entry.claim() as ours:
        assert ours


def test_a_file_system_that_becomes_read_only_is_named(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux refuses to remove even what is not there; that must not hide the error."""
    read_only = OSError(errno.EROFS, os.strerror(errno.EROFS))
    with entry.claim():
        entry.write_rows(0, evaluation(0))
        monkeypatch.setattr(os, "replace", failing(read_only))
        monkeypatch.setattr(Path, "unlink", failing(read_only))
        with pytest.raises(UserError, match="Read-only file system"):
            entry.write_rows(0, evaluation(1))
        with pytest.raises(UserError, match="Read-only file system"):
            entry.forget(0, 4)


def test_a_results_folder_that_is_gone_is_named(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    """It must not be taken for a shard that another process has finished, and be tried for ever."""
    entry.folder.rmdir()
    mkdir, tried = Path.mkdir, []

    def counted(path: Path, **options: Any) -> None:
        tried.append(path)
        assert len(tried) < 100, "tries for ever"
        mkdir(path, **options)

    monkeypatch.setattr(Path, "mkdir", counted)
    with pytest.raises(UserError, match="No such file or directory"), entry.claim():
        pass


def test_a_shard_whose_rows_are_gone_cannot_be_finished(entry: Entry) -> None:
    with entry.claim(), pytest.raises(UserError):
        entry.finish((0,))
    assert not entry.finished()
