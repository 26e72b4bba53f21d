"""A user's function at evaluations: what it is told and when, and what its errors do. Programs are made up."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from test_sweep import MadeUp, at_once, crashed, long_shard, made_up, rows_of, three_shards, undisturbed

import rlsuite
from rlsuite import ChunkEvaluation
from rlsuite.algorithms.on_policy import ppo
from rlsuite.sweeping import job, local
from rlsuite.sweeping.rows import Part
from rlsuite.sweeping.store import Store

__all__ = ["made_up", "undisturbed"]  # fixtures

EVALUATIONS = [(first, update) for first in (0, 2, 4) for update in (0, 4, 8, 12)]
"""(first run, updates) of `long_shard`, two runs at once."""


def places(told: list[ChunkEvaluation]) -> list[tuple[int, int]]:
    return [(int(one.runs[0]), one.update) for one in told]


def rows_told(told: list[ChunkEvaluation]) -> list[dict[str, Any]]:
    """All that was told, as rows of results."""
    rows = []
    for one in told:
        for i in range(len(one.runs)):
            row = {"experiment": one.experiment, "label": one.label, "algorithm": one.algorithm}
            row |= {"environment": one.environment, "run": one.runs[i], "seed": one.seeds[i]}
            row |= {"step": one.step, "update": one.update, "wall_seconds": one.wall_seconds}
            row |= {"return_mean": one.mean_returns[i], "episode_returns": one.returns[i].tolist()}
            row |= {"episode_lengths": one.lengths[i].tolist(), "diverged": one.diverged[i]}
            row |= {f"hyper/{name}": values[i] for name, values in one.hypers.items()}
            metrics = one.metrics or {"loss": [None] * len(one.runs)}
            rows.append(row | {f"metric/{name}": values[i] for name, values in metrics.items()})
    return rows


def comparable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With NaN as a text, which is equal to itself."""
    return [{name: "NaN" if value != value else value for name, value in row.items()} for row in rows]


def test_it_is_told_every_evaluation_of_every_chunk_in_order(tmp_path: Path, made_up: MadeUp) -> None:
    """What it was told stays as it was, and is what the results hold, bit for bit."""
    made_up.diverging = 1
    rates = tuple(ppo.Hypers(learning_rate=rate) for rate in (1e-3, 1e-2))
    one = job.resolve("mine", dataclasses.replace(long_shard().cell, hypers=rates, label="mine too"))
    store = Store(tmp_path)
    told: list[ChunkEvaluation] = []
    local.run([one], store, at_once(4), told.append)
    assert places(told) == [(first, update) for first in (0, 4, 8) for update in (0, 4, 8, 12)]
    assert {each.shard for each in told} == {one.name}
    ours = sorted(rows_told(told), key=lambda row: (row["update"], row["run"]))
    rows = [{name: row[name] for name in ours[0]} for row in rows_of(store, one, clock=True)]
    assert comparable(ours) == comparable(rows)
    assert {bool(row["diverged"]) for row in rows} == {False, True}


def test_what_it_is_told_is_its_own(tmp_path: Path, made_up: MadeUp) -> None:
    """Runs that diverge show again what they showed before, which is where a change would be seen."""
    made_up.diverging = 1

    def change(told: ChunkEvaluation) -> None:
        for array in (told.runs, told.seeds, told.returns, told.lengths, told.mean_returns, told.diverged):
            array[...] = 1
        for array in (*told.metrics.values(), *told.hypers.values()):
            array[...] = 7

    stores = Store(tmp_path / "alone"), Store(tmp_path / "changed")
    local.run([long_shard()], stores[0], at_once(2))
    local.run([long_shard()], stores[1], at_once(2), change)
    alone, changed = (comparable(rows_of(store, long_shard(), clock=True)) for store in stores)
    assert alone == changed


def test_rows_are_written_before(tmp_path: Path, made_up: MadeUp) -> None:
    store, one = Store(tmp_path), long_shard()
    written = []

    def look(told: ChunkEvaluation) -> None:
        part = Part(int(told.runs[0]), int(told.runs[-1]) + 1, told.update)
        written.append(part in store.open(one).parts())

    local.run([one], store, at_once(2), look)
    assert written == [True] * len(EVALUATIONS)


def test_it_goes_through_all_shards_and_is_told_nothing_of_finished_ones(tmp_path: Path, made_up: MadeUp) -> None:
    shards, told = three_shards(), list[ChunkEvaluation]()
    local.run(shards[:1], Store(tmp_path), at_once(4))
    local.run(shards, Store(tmp_path), at_once(4), told.append)
    assert [(one.shard, one.update) for one in told] == [(one.name, at) for one in shards[1:] for at in (0, 1, 2)]


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ((0, 0), RuntimeError("enough")),
        ((2, 4), StopIteration()),
        ((2, 4), rlsuite.UserError("the disk of a logger")),
        ((2, 4), MemoryError("which is not the device's")),
        ((2, 12), RuntimeError("enough")),
        ((4, 12), RuntimeError("enough")),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else type(value).__name__,
)
def test_its_error_ends_the_call_after_saving_and_the_same_call_goes_on(
    place: tuple[int, int],
    error: Exception,
    tmp_path: Path,
    made_up: MadeUp,
    undisturbed: list[dict[str, Any]],
) -> None:
    told: list[ChunkEvaluation] = []

    def fail(evaluation: ChunkEvaluation) -> None:
        told.append(evaluation)
        if places(told)[-1] == place:
            raise error

    store, one = Store(tmp_path), long_shard()
    with pytest.raises(type(error)) as raised:
        local.run([one], store, at_once(2), fail)
    assert raised.value is error
    assert raised.traceback[-1].name == "fail"
    assert places(told)[-1] == place
    assert store.open(one).finished() == (place == (4, 12))
    local.run([one], store, at_once(2), told.append)
    # Nothing is told twice, and every update is done once.
    assert places(told) == EVALUATIONS
    assert made_up.updates == [(first, index) for first in (0, 2, 4) for index in range(12)]
    assert rows_of(store, one, clock=True) == undisturbed


def test_an_error_in_the_last_evaluation_of_a_shard_leaves_the_next_shard(tmp_path: Path, made_up: MadeUp) -> None:
    store, shards = Store(tmp_path), three_shards()

    def fail(told: ChunkEvaluation) -> None:
        if told.update == 2:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        local.run(shards, store, at_once(4), fail)
    assert [store.open(one).finished() for one in shards] == [True, False, False]
    assert made_up.started == [(0, 1, 2, 3)]


@pytest.mark.parametrize("leave", [KeyboardInterrupt, SystemExit])
def test_it_may_leave_at_once(leave: type[BaseException], tmp_path: Path, made_up: MadeUp) -> None:
    def fail(told: ChunkEvaluation) -> None:
        raise leave

    with pytest.raises(leave):
        local.run([long_shard()], Store(tmp_path), at_once(2), fail)
    left = Store(tmp_path).open(long_shard())
    assert left.parts() == [Part(0, 2, 0)] and not any(left.snapshots(0, 2).iterdir())


def test_a_signal_while_it_is_called_stops_after_it(tmp_path: Path, made_up: MadeUp) -> None:
    done = []

    def interrupt(told: ChunkEvaluation) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        done.append(told.update)

    with pytest.raises(rlsuite.Stopped, match=r"^SIGINT; all is saved, the same call goes on from here$"):
        local.run([long_shard()], Store(tmp_path), at_once(2), interrupt)
    assert done == [0] and made_up.updates == []


def test_what_is_computed_again_is_told_again(tmp_path: Path, made_up: MadeUp) -> None:
    """A process that dies may take with it what the callback has kept."""
    told: list[ChunkEvaluation] = []
    store = Store(tmp_path)
    crashed(store, made_up)  # after the evaluations at 0, 4 and 8, with a snapshot of 2 updates
    local.run([long_shard()], store, at_once(2), told.append)
    assert places(told) == [place for place in EVALUATIONS if place != (0, 0)]
