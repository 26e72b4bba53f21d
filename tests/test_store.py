"""Results on disk: what a row holds, and that no failure leaves half a file or loses a whole one."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlsuite.algorithms import ppo
from rlsuite.core import UserError
from rlsuite.store import Store, rows
from rlsuite.sweep import Cell, Shard, shard
from rlsuite.train import Evaluation

SETTINGS = (ppo.Hypers(learning_rate=0.1), ppo.Hypers(learning_rate=0.2))


@pytest.fixture(scope="module")
def two_by_two() -> Shard:
    """Two seeds of each of two settings."""
    return shard("mine", Cell("ppo", "probe/action/discrete", 32, seeds=2, first_seed=3, hypers=SETTINGS, label="A b"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "mine")


def evaluation(update: int, **changes: Any) -> Evaluation:
    """What the host learns of four runs, with three episodes each."""
    returns = np.arange(12, dtype=np.float32).reshape(4, 3) + update
    given = Evaluation(
        update=update,
        step=update * 16,
        wall_seconds=0.5 * update,
        returns=returns,
        lengths=np.full((4, 3), 7, np.int64),
        metrics={"loss": np.arange(4.0)} if update else {},
        diverged=np.zeros(4, bool),
    )
    return given._replace(**changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- Rows -------------------------------------------------------------------------------------------------------------


def test_each_row_is_of_its_own_run(two_by_two: Shard) -> None:
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


def test_a_hyperparameter_is_kept_to_the_last_digit(two_by_two: Shard) -> None:
    """As it was given, not as the program's float32 holds it."""
    assert rows(two_by_two, evaluation(0))["hyper/gae_lambda"].to_pylist() == [0.95] * 4


def test_metrics_are_null_before_the_first_update(store: Store, two_by_two: Shard) -> None:
    store.write_partial(two_by_two, [rows(two_by_two, evaluation(update)) for update in (0, 1)])
    saved = pq.read_table(store.partial_path(two_by_two))
    assert saved["metric/loss"].to_pylist() == [None] * 4 + [0, 1, 2, 3]
    assert saved.schema.field("metric/loss").type == pa.float32()


def test_a_run_that_diverged_is_kept_with_its_nan(two_by_two: Shard) -> None:
    returns = np.full((4, 3), np.nan, np.float32)
    table = rows(two_by_two, evaluation(1, returns=returns, diverged=np.ones(4, bool)))
    assert np.isnan(table["return_mean"].to_numpy()).all()
    assert table["diverged"].to_pylist() == [True] * 4


# --- Whole or not at all ----------------------------------------------------------------------------------------------


@pytest.fixture
def running(store: Store, two_by_two: Shard) -> Store:
    """A store in which the shard has one evaluation."""
    store.write_manifest(two_by_two, {"run_seconds": 0.0})
    store.write_partial(two_by_two, [rows(two_by_two, evaluation(0))])
    return store


def write_evaluation(store: Store, one: Shard) -> None:
    store.write_partial(one, [rows(one, evaluation(update)) for update in (0, 1)])


def half_a_file(error: BaseException) -> Callable[..., NoReturn]:
    """A `pq.write_table` that fails in the middle."""
    write_table = pq.write_table

    def write(table: pa.Table, target: str, **options: Any) -> NoReturn:
        whole = io.BytesIO()
        write_table(table, whole, **options)
        Path(target).write_bytes(whole.getvalue()[: whole.tell() // 2])
        raise error

    return write


DISK_FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DISK_FULL, "No space left on device"),
        (OSError("Error writing bytes.\nDetail: full"), "Error writing bytes. Detail: full"),
    ],
    ids=["of the system", "of Arrow"],
)
def test_a_full_disk_leaves_the_former_rows(
    error: OSError, reason: str, running: Store, two_by_two: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(running.folder)
    monkeypatch.setattr(pq, "write_table", half_a_file(error))
    with pytest.raises(UserError) as raised:
        write_evaluation(running, two_by_two)
    message = str(raised.value)
    expected = [str(running.partial_path(two_by_two)), f"cannot be written ({reason})", "intact", "--results"]
    assert [part for part in expected if part not in message] == [], message
    assert "\n" not in message
    assert contents(running.folder) == before
    assert pq.read_table(running.partial_path(two_by_two)).num_rows == 4


def test_an_interruption_in_the_middle_leaves_the_former_rows(
    running: Store, two_by_two: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(running.folder)
    monkeypatch.setattr(pq, "write_table", half_a_file(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write_evaluation(running, two_by_two)
    assert contents(running.folder) == before


def test_a_full_disk_leaves_the_former_manifest(
    running: Store, two_by_two: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(running.folder)
    write_text = Path.write_text

    def half(path: Path, text: str) -> NoReturn:
        write_text(path, text[: len(text) // 2])
        raise DISK_FULL

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(UserError, match="No space left on device"):
        running.write_manifest(two_by_two, {"run_seconds": 1.0})
    assert contents(running.folder) == before


def test_rows_that_the_disk_did_not_take_are_not_renamed(
    running: Store, two_by_two: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write may succeed in memory and fail on its way to the disk."""
    before = contents(running.folder)

    def fsync(descriptor: int) -> NoReturn:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UserError, match="Input/output error"):
        write_evaluation(running, two_by_two)
    assert contents(running.folder) == before


def test_the_rows_grow_and_then_get_the_finished_name(running: Store, two_by_two: Shard) -> None:
    assert not running.has(two_by_two)
    write_evaluation(running, two_by_two)
    written = running.partial_path(two_by_two).read_bytes()
    assert pq.read_table(running.partial_path(two_by_two)).num_rows == 8
    running.finish(two_by_two)
    assert running.has(two_by_two)
    assert set(contents(running.folder)) == {f"{two_by_two.name}.parquet", f"{two_by_two.name}.json"}
    assert running.path(two_by_two).read_bytes() == written


@pytest.mark.parametrize(
    "replace",
    [write_evaluation, lambda store, one: store.write_manifest(one, {}), lambda store, one: store.finish(one)],
    ids=["rows", "manifest", "finish"],
)
def test_a_finished_shard_is_never_replaced(
    replace: Callable[[Store, Shard], None], running: Store, two_by_two: Shard
) -> None:
    """As when two processes run the same experiment, and the other one was faster."""
    running.finish(two_by_two)
    running.partial_path(two_by_two).write_bytes(b"what this process wrote before the other one finished")
    before = contents(running.folder)
    with pytest.raises(UserError, match=r"\.parquet' was finished meanwhile"):
        replace(running, two_by_two)
    assert contents(running.folder) == before


def test_a_shard_whose_rows_are_gone_cannot_be_finished(running: Store, two_by_two: Shard) -> None:
    running.partial_path(two_by_two).unlink()
    with pytest.raises(UserError, match="No such file or directory"):
        running.finish(two_by_two)
    assert not running.has(two_by_two)


def test_the_manifest_holds_the_facts_and_the_shard(running: Store, two_by_two: Shard) -> None:
    manifest = json.loads((running.folder / f"{two_by_two.name}.json").read_text())
    assert manifest == {
        "format": 1,
        "run_seconds": 0.0,
        # Through JSON, which makes lists of tuples.
        **json.loads(json.dumps(two_by_two.describe())),
    }
    assert manifest["seeds"] == [3, 4, 3, 4]
    assert [setting["learning_rate"] for setting in manifest["hypers"]] == [0.1, 0.2]


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
