"""The driver of a cluster, with workers in this process: whatever happens to them, rows are those of one process."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_sweep import MadeUp, at_once, long_shard, made_up, refusal, rows_of, undisturbed

from rlsuite.errors import Stopped, UserError
from rlsuite.sweeping import cluster, local, worker
from rlsuite.sweeping.chunk import Given
from rlsuite.sweeping.cluster import ENDS, Lost
from rlsuite.sweeping.entry import Entry
from rlsuite.sweeping.job import Job
from rlsuite.sweeping.settings import Settings
from rlsuite.sweeping.store import Store
from rlsuite.sweeping.worker import Message, Order

__all__ = ["made_up", "undisturbed"]  # fixtures

Rows = list[dict[str, Any]]
Fault = Callable[[int, Order, list[Message]], list[Any]]
"""(how many orders came before, order, its messages) -> the messages that reach the driver"""


def no_fault(number: int, order: Order, messages: list[Message]) -> list[Any]:
    return messages


class Here:
    """A pool that does an order when it is asked for messages. What it is told travels as bytes."""

    devices = 1

    def __init__(self, folder: Path | None, fault: Fault = no_fault, num_workers: int = 2) -> None:
        """Workers see the results folder if it is given."""
        self.folder, self.fault, self.num_workers = folder, fault, num_workers
        self.orders: list[Order] = []
        self.asked_to_leave = False
        self._waiting: list[tuple[int, bytes, Entry]] = []

    def workers(self) -> int:
        return self.num_workers

    def room(self) -> bool:
        return len(self._waiting) < self.num_workers

    def share(self, given: Given | None) -> Given | None:
        return given

    def submit(self, ticket: int, order: Order, entry: Entry, shared: Any) -> None:
        self._waiting.append((ticket, pickle.dumps((order, shared)), entry))

    def messages(self, seconds: float) -> Iterator[tuple[int, Message | Lost]]:
        if not self._waiting:
            time.sleep(0.01)
            return
        ticket, packed, entry = self._waiting.pop(0)
        worker._programs.clear()  # as another process
        for message in self.fault(len(self.orders), *self._answer(packed, entry)):
            yield ticket, message

    def _answer(self, packed: bytes, entry: Entry) -> tuple[Order, list[Message]]:
        order, given = pickle.loads(packed)
        self.orders.append(order)
        told: list[Message] = []

        def tell(message: Message) -> None:
            told.append(pickle.loads(pickle.dumps(message)))

        def train(order: worker.Train) -> None:
            if self.folder is not None:
                worker.in_folder(order, self.folder, given, tell, self._asked)
                return
            snapshots = entry.snapshots(order.first, order.stop)
            newest = worker.newest_number(snapshots)
            snapshot = None if newest is None else worker.pack(snapshots / str(newest))
            worker.by_parcel(order, snapshot, given, tell, self._asked)

        worker.answer(order, given, tell, train)
        return order, told

    def _asked(self) -> int:
        return signal.SIGINT if self.asked_to_leave else 0

    def leave(self) -> None:
        self.asked_to_leave = True

    def close(self) -> None:
        self._waiting.clear()


@pytest.fixture(autouse=True)
def a_new_process() -> None:
    """No program of another test is kept."""
    worker._programs.clear()


@pytest.fixture(params=["folder", "parcel"])
def seen(request: pytest.FixtureRequest, tmp_path: Path, made_up: MadeUp) -> Path | None:
    """The results folder, if workers see it."""
    return tmp_path / "results" if request.param == "folder" else None


def sweep(tmp_path: Path, pool: Here, settings: Settings | None = None, jobs: tuple[Job, ...] | None = None) -> Store:
    store = Store(tmp_path / "results")
    cluster.run(jobs or (long_shard(),), store, settings or at_once(2), pool)
    return store


def without_clock(rows: Rows) -> Rows:
    return [{name: value for name, value in row.items() if name != "wall_seconds"} for row in rows]


def chunks(pool: Here) -> list[tuple[int, int]]:
    return [(order.first, order.stop) for order in pool.orders if isinstance(order, worker.Train)]


def lost_after(lost: int, count: int) -> Fault:
    """The worker of that order is gone after so many messages."""

    def fault(number: int, order: Order, messages: list[Message]) -> list[Any]:
        # Not after the message that ends the order.
        return [*messages[: min(count, len(messages) - 1)], Lost("the node has died")] if number == lost else messages

    return fault


def test_rows_are_those_of_the_local_executor(tmp_path: Path, seen: Path | None, undisturbed: Rows) -> None:
    pool = Here(seen)
    store = sweep(tmp_path, pool)
    assert rows_of(store, long_shard()) == without_clock(undisturbed)
    assert chunks(pool) == [(0, 2), (2, 4), (4, 5)]
    entry = store.open(long_shard())
    assert set(entry.folder.iterdir()) == {entry.path, entry.manifest_path}
    facts = entry.manifest()
    assert facts["plan"]["width"] == 2 and facts["diverged"] == 0 and facts["compile_seconds"] > 0
    assert len(facts["sessions"]) == 1 and len(facts["sessions"][0]["nodes"]) == 1


@pytest.mark.parametrize("count", [0, 1, 3, 8, 14])
def test_a_lost_worker_costs_no_row(tmp_path: Path, seen: Path | None, undisturbed: Rows, count: int) -> None:
    """After any number of its messages, with a snapshot at every pause."""
    pool = Here(seen, lost_after(1, count))
    store = sweep(tmp_path, pool, at_once(2, save_every=0.0))
    assert rows_of(store, long_shard()) == without_clock(undisturbed)
    assert sorted(chunks(pool)) == [(0, 2), (2, 4), (2, 4), (4, 5)]


def test_a_chunk_goes_on_from_the_snapshot_of_the_lost_worker(
    tmp_path: Path, made_up: MadeUp, undisturbed: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost_in_the_middle(number: int, order: Order, messages: list[Message]) -> list[Any]:
        if number != 0:
            return messages
        pieces = [place for place, message in enumerate(messages) if isinstance(message, worker.Piece)]
        return [*messages[: pieces[len(pieces) // 2] + 1], Lost("the node has died")]

    store = sweep(tmp_path, Here(None, lost_in_the_middle), at_once(2, save_every=0.0))
    assert rows_of(store, long_shard()) == without_clock(undisturbed)
    printed = capsys.readouterr().out
    assert "runs 0-1 of ppo on probe/action/discrete: the node has died; another worker goes on" in printed
    assert "runs 0-1 go on from update" in printed
    first = [index for seed, index in made_up.updates if seed == 0]
    assert first.count(0) == 1 and first.count(11) == 2, "the part before the snapshot is not trained again"


def test_what_is_measured_is_the_share_of_a_worker(tmp_path: Path, seen: Path | None, undisturbed: Rows) -> None:
    pool = Here(seen, num_workers=3)
    store = sweep(tmp_path, pool, Settings())
    measured = pool.orders[0]
    assert isinstance(measured, worker.Measure) and measured.share == 2
    assert chunks(pool) == [(0, 2), (2, 4), (4, 5)]
    assert rows_of(store, long_shard()) == without_clock(undisturbed)


def test_the_device_refuses_and_chunks_become_narrower(
    tmp_path: Path, seen: Path | None, undisturbed: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(number: int, order: Order, messages: list[Message]) -> list[Any]:
        wide = isinstance(order, worker.Train) and order.stop - order.first > 2
        return [worker.Refused("RESOURCE_EXHAUSTED")] if wide else messages

    pool = Here(seen, refused)
    store = sweep(tmp_path, pool, at_once(4))
    assert rows_of(store, long_shard()) == without_clock(undisturbed)
    assert "the device refused 3 runs at once; going on with 2" in capsys.readouterr().out


def test_one_run_that_does_not_fit_is_one_line(tmp_path: Path, seen: Path | None) -> None:
    pool = Here(seen, lambda number, order, messages: [worker.Refused("RESOURCE_EXHAUSTED")])
    assert "no memory for even one run" in refusal(lambda: sweep(tmp_path, pool))


def test_a_chunk_that_loses_every_worker_is_given_up(tmp_path: Path, seen: Path | None, undisturbed: Rows) -> None:
    def always(number: int, order: Order, messages: list[Message]) -> list[Any]:
        doomed = isinstance(order, worker.Train) and order.first == 2
        return [Lost("the node has died")] if doomed else messages

    pool = Here(seen, always)
    message = refusal(lambda: sweep(tmp_path, pool))
    assert message.startswith("runs 2-3 of ppo on") and "5 workers in a row were lost; the last: the node" in message
    assert chunks(pool).count((2, 4)) == cluster.MOST_FAILURES
    # What was computed is kept, and the same command goes on.
    pool = Here(seen)
    store = sweep(tmp_path, pool)
    assert (0, 2) not in chunks(pool)
    assert rows_of(store, long_shard()) == without_clock(undisturbed)


def test_workers_that_are_lost_at_the_same_place_again_and_again_are_given_up(tmp_path: Path, made_up: MadeUp) -> None:
    """An evaluation that an earlier worker had too is no progress."""

    def always(number: int, order: Order, messages: list[Message]) -> list[Any]:
        first = next(
            place
            for place, one in enumerate(messages)
            if isinstance(one, worker.Paused) and one.evaluated and one.update
        )
        return [*messages[: first + 1], Lost("the node has died")]

    pool = Here(None, always)
    message = refusal(lambda: sweep(tmp_path, pool, at_once(5)))
    assert "5 workers in a row were lost" in message and len(pool.orders) == cluster.MOST_FAILURES


def test_an_error_that_no_worker_can_help_ends_the_sweep_and_others_save(
    tmp_path: Path, seen: Path | None, undisturbed: Rows
) -> None:
    def wrong(number: int, order: Order, messages: list[Message]) -> list[Any]:
        return [worker.Failed("node7: the disk is full", elsewhere=False)] if number == 0 else messages

    pool = Here(seen, wrong)
    message = refusal(lambda: sweep(tmp_path, pool, at_once(2, save_every=300.0)))
    assert message == "runs 0-1 of ppo on probe/action/discrete: node7: the disk is full"
    assert pool.asked_to_leave and chunks(pool) == [(0, 2), (2, 4)]
    pool = Here(seen)
    store = sweep(tmp_path, pool)
    assert rows_of(store, long_shard()) == without_clock(undisturbed)


def test_what_fails_on_one_node_is_done_elsewhere(
    tmp_path: Path, made_up: MadeUp, undisturbed: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk of a worker, by the real error of a snapshot that cannot be written."""
    full = [True]
    save = worker.Snapshots.save

    def saving(self: Any, snapshot: Any) -> None:
        if full.pop() if full else False:
            with self._writing():
                raise ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device")
        save(self, snapshot)

    monkeypatch.setattr(worker.Snapshots, "save", saving)
    pool = Here(None)
    store = sweep(tmp_path, pool, at_once(2, save_every=0.0))
    assert rows_of(store, long_shard()) == without_clock(undisturbed)
    assert sorted(chunks(pool)) == [(0, 2), (0, 2), (2, 4), (4, 5)]


def test_rows_that_do_not_arrive_are_computed_again(tmp_path: Path, made_up: MadeUp, undisturbed: Rows) -> None:
    def dropped(number: int, order: Order, messages: list[Message]) -> list[Any]:
        last = max((i for i, message in enumerate(messages) if isinstance(message, worker.Rows)), default=-1)
        return [*messages[:last], *messages[last + 1 :]] if number == 0 else messages

    store = sweep(tmp_path, Here(None, dropped))
    assert rows_of(store, long_shard()) == without_clock(undisturbed)


def test_a_signal_lets_workers_save_and_the_same_command_goes_on(
    tmp_path: Path, seen: Path | None, undisturbed: Rows, made_up: MadeUp
) -> None:
    def stop_the_second_chunk(first_seed: int, index: int) -> None:
        if (first_seed, index) == (2, 5):
            os.kill(os.getpid(), signal.SIGTERM)
            pool.leave()  # at once, as a worker that asks while it trains

    pool = Here(seen)
    made_up.before_update = stop_the_second_chunk
    with pytest.raises(Stopped, match="SIGTERM"):
        sweep(tmp_path, pool)
    made_up.before_update = lambda first_seed, index: None
    made_up.updates.clear()
    store = sweep(tmp_path, Here(seen))
    assert rows_of(store, long_shard()) == without_clock(undisturbed)
    again = [index for seed, index in made_up.updates if seed == 2]
    assert again and again[0] > 5, "it goes on from what was saved"


def test_what_a_cluster_has_begun_goes_on_here_and_the_other_way_round(
    tmp_path: Path, seen: Path | None, undisturbed: Rows, made_up: MadeUp
) -> None:
    with pytest.raises(UserError):
        sweep(tmp_path, Here(seen, lambda number, order, messages: messages if number < 1 else [Lost("gone")]))
    store = Store(tmp_path / "results")
    made_up.started.clear()
    local.run([long_shard()], store, at_once(2))
    assert (0, 1) not in made_up.started
    assert rows_of(store, long_shard()) == without_clock(undisturbed)


def test_runs_that_the_worker_of_a_dead_driver_trains_are_left_to_it(
    tmp_path: Path, made_up: MadeUp, undisturbed: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are asked for again later, and what that worker has finished is not trained again."""
    monkeypatch.setattr(cluster, "HELD_SECONDS", 0.02)
    folder = tmp_path / "results"
    entry = Store(folder).open(long_shard())
    entry.partial.mkdir(parents=True)
    orphan = contextlib.ExitStack()
    assert orphan.enter_context(entry.claim_runs(2, 4))
    pool = Here(folder)

    def ends(number: int, order: Order, messages: list[Message]) -> list[Any]:
        if messages == [worker.Left(held=True)] and len(chunks(pool)) > 4:
            orphan.close()
        return messages

    pool.fault = ends
    store = sweep(tmp_path, pool)
    assert chunks(pool).count((2, 4)) > 2
    assert made_up.started.count((2, 3)) == 1
    assert rows_of(store, long_shard()) == without_clock(undisturbed)


def test_chunks_that_the_worker_of_a_dead_driver_has_finished_are_kept(
    tmp_path: Path, made_up: MadeUp, undisturbed: Rows
) -> None:
    folder = tmp_path / "results"
    pool = Here(folder)
    store = Store(folder)
    driver = cluster.Driver([long_shard()], store, at_once(2), pool)
    driver._claim()
    [order] = [order for order in driver.shards[0].running.values() if order.first == 2]  # type: ignore[union-attr]
    worker.in_folder(order, folder, None, lambda message: None, lambda: 0)  # type: ignore[arg-type]
    made_up.started.clear()
    driver.run()
    assert (2, 3) not in made_up.started
    assert rows_of(store, long_shard()) == without_clock(undisturbed)


def test_workers_of_other_code_are_refused(tmp_path: Path, seen: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def session() -> dict[str, str]:
        return {"rlsuite": "0.0", "rlsuite_sources": "abc", "jax": "0.1"}

    with monkeypatch.context() as patch:
        patch.setattr(cluster.provenance, "session", session)
        pool = Here(seen)
        check = worker.check_session
        patch.setattr(worker, "check_session", lambda given: check_with_own(patch, check, given))
        message = refusal(lambda: sweep(tmp_path, pool))
    assert "the driver rlsuite 0.0 (sources abc) and JAX 0.1; install the same on all nodes" in message


def check_with_own(patch: pytest.MonkeyPatch, check: Callable[[Any], None], given: dict[str, str]) -> None:
    """On a worker the session is another one."""
    with patch.context() as inner:
        inner.setattr(worker.provenance, "session", lambda: {"rlsuite": "0.1", "rlsuite_sources": "d", "jax": "0.2"})
        check(given)


def test_finished_shards_are_kept_and_those_of_another_driver_left_to_it(
    tmp_path: Path, made_up: MadeUp, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results"
    sweep(tmp_path, Here(folder))
    pool = Here(folder)
    sweep(tmp_path, pool)
    assert pool.orders == []
    assert "done before, kept" in capsys.readouterr().out


def test_every_message_that_ends_an_order_is_known() -> None:
    """A pool forgets an order by it."""
    begun = {worker.Began, worker.Paused, worker.Rows, worker.Policies, worker.Forgotten, worker.Piece}
    assert set(Message.__args__) - begun == set(ENDS) - {Lost}
