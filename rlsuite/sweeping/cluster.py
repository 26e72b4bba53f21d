"""The driver of a cluster: jobs are cut into chunks of runs, which the workers of a pool train.

One process, the driver, claims shards and writes their manifests. A chunk is the unit that is planned, resumed and
retried: where a worker is lost, another one goes on from the chunk's newest snapshot. What pools there are: `ray_pool`
and `slurm_pool`.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from rlsuite.errors import Stopped, UserError
from rlsuite.sweeping import kept, manifest, provenance, worker
from rlsuite.sweeping.chunk import Given
from rlsuite.sweeping.entry import Entry
from rlsuite.sweeping.job import Job
from rlsuite.sweeping.rows import Part
from rlsuite.sweeping.settings import Settings, Signals
from rlsuite.sweeping.shard import (
    Layout,
    diverged_in,
    finished_parts,
    first_gap,
    layout_of,
    opened,
    runs_in,
    seconds_of,
    updates_of,
)
from rlsuite.sweeping.store import Store
from rlsuite.sweeping.turns import Turns
from rlsuite.sweeping.worker import Message, Order
from rlsuite.training import plan as planning
from rlsuite.training.progress import CLEAR, QUIET_SECONDS, duration, quantity, say

POLL_SECONDS = 0.5
"""How long the driver waits for messages before it looks at everything else."""
HELD_SECONDS = 5.0
"""After which runs that an earlier driver's worker trains are asked for again."""
MOST_FAILURES = 5
"""In a row, without an evaluation or a snapshot in between, after which a chunk is given up."""


class Lost(NamedTuple):
    """A message that a pool makes itself: the worker of an order is gone."""

    text: str


class Pool(Protocol):
    """Workers, and what they are told. Tickets are numbers of orders."""

    devices: int
    """of each worker, that a shard may use"""

    def workers(self) -> int:
        """How many orders are worked on at once, at least 1."""

    def room(self) -> bool:
        """Whether the pool takes another order now."""

    def share(self, given: Given | None) -> Any:
        """A dataset as what workers find it by."""

    def submit(self, ticket: int, order: Order, entry: Entry, shared: Any) -> None:
        """Have a worker do an order of a shard, whose dataset is `shared`."""

    def messages(self, seconds: float) -> Iterator[tuple[int, Message | Lost]]:
        """What has happened, in the order of each worker; nothing comes for at most so many seconds. The last message
        of an order is one that ends it."""

    def leave(self) -> None:
        """Ask all workers to save and leave."""

    def close(self) -> None:
        """Let go of the workers. None is left that would write."""


ENDS = (worker.Measured, worker.Done, worker.Left, worker.Refused, worker.Failed, Lost)


def run(jobs: Sequence[Job], store: Store, settings: Settings, pool: Pool) -> None:
    """Train the jobs whose shards the store does not hold yet, on the workers of a pool.

    Rows are those that `local.run` gives on the same kind of device at the same width.

    Raises:
        UserError: as `local.run`; a worker cannot do its work, or has been lost too often.
        Stopped: by SIGINT or SIGTERM, after all workers have saved.
    """
    Driver(jobs, store, settings, pool).run()


class Driver:
    """What `run` does, step by step."""

    def __init__(self, jobs: Sequence[Job], store: Store, settings: Settings, pool: Pool) -> None:
        self.turns, self.settings, self.pool = Turns(jobs, store, settings), settings, pool
        self.shards: list[Shard] = []
        self.tickets: dict[int, Shard] = {}
        self._numbers = itertools.count()
        self._view = View(self.turns)

    def run(self) -> None:
        """Until all shards are there."""
        try:
            with contextlib.closing(self.pool), Signals() as signals:
                try:
                    while self.turns.waiting or self.shards:
                        signals.check()
                        self._claim()
                        self._order()
                        self._listen()
                        self._finish()
                except (UserError, Stopped):
                    self._leave()
                    raise
        finally:
            for shard in self.shards:
                shard.claims.close()
        self.turns.end()

    def _claim(self) -> None:
        """Begin the shards whose turn it is, as long as there is room for their chunks."""
        for entry in list(self.turns.waiting):
            if not self.pool.room():
                return
            with contextlib.ExitStack() as claims:
                if self.turns.take(entry, claims):
                    shard = Shard(entry, self.settings, self.pool, claims.pop_all())
                    self.shards.append(shard)
                    shard.open()
                    self._order()

    def _order(self) -> None:
        """Have chunks trained as long as there is room."""
        for shard in self.shards:
            # Each gets its share: without it, a shard that is alone first would be cut for all workers.
            share = -(-len(shard.entry.job.runs) * len(self.shards) // self.pool.workers())
            while self.pool.room() and (order := shard.next_order(share)):
                ticket = next(self._numbers)
                self.tickets[ticket] = shard
                shard.running[ticket] = order
                self.pool.submit(ticket, order, shard.entry, shard.shared)

    def _listen(self) -> None:
        for ticket, message in self.pool.messages(POLL_SECONDS):
            shard = self.tickets[ticket]
            if isinstance(message, ENDS):
                del self.tickets[ticket]
            shard.hear(ticket, message)
        self._view.show(self.shards)

    def _finish(self) -> None:
        for shard in list(self.shards):
            if shard.finished():
                shard.claims.close()
                self.shards.remove(shard)
                self._view.end(shard)

    def _leave(self) -> None:
        """All that is computed is saved before the driver leaves. A second signal leaves at once."""
        self.pool.leave()
        while self.tickets:
            for ticket, message in self.pool.messages(POLL_SECONDS):
                shard = self.tickets[ticket]
                if isinstance(message, ENDS):
                    del self.tickets[ticket]
                # What is wrong has been said, or is less than what is being said.
                with contextlib.suppress(UserError):
                    shard.hear(ticket, message)


class Shard:
    """A shard that this process has claimed, and its chunks."""

    def __init__(self, entry: Entry, settings: Settings, pool: Pool, claims: contextlib.ExitStack) -> None:
        self.entry, self.settings, self.pool, self.claims = entry, settings, pool, claims
        self.running: dict[int, Order] = {}
        self.done: list[Part] = []
        self.shared: Any = None
        self.steps: dict[int, int] = {}
        """ticket -> environment steps of each run of a chunk that trains"""
        self.nodes: dict[int, str] = {}
        """ticket -> where a chunk trains"""
        self.moved = 0
        """environment steps of all runs together, in this process"""
        self.diverged = 0
        self.layout: Layout | None = None
        self._facts: dict[str, Any] = {}
        self._dataset_facts: dict[str, Any] = {}
        self._seconds = self._compile_seconds = 0.0
        self._peak = self._planned = 0
        self._nodes: set[str] = set()
        """all that have worked on it"""
        self._failures: dict[tuple[int, int], int] = {}
        """runs -> workers lost in a row, none of which has got further than those before"""
        self._furthest: dict[tuple[int, int], int] = {}
        self._held: dict[tuple[int, int], float] = {}
        self._pieces: dict[int, list[bytes]] = {}

    @property
    def title(self) -> str:
        """As lines on it begin."""
        return f"{self.entry.job.label} on {self.entry.job.environment}"

    def open(self) -> None:
        """Look at what is there. Errors as `shard.opened`."""
        entry, limits = self.entry, self.settings.limits
        given = opened(entry)
        if given:
            self._dataset_facts = manifest.facts_of_dataset(entry.job, given.found, given.dataset)
        self.shared = self.pool.share(given)
        devices = min(self.pool.devices, len(entry.job.runs))
        self.layout = layout_of(entry, limits.width)
        if self.layout is not None:
            self.layout = self.layout.on(devices)
        elif limits.width is not None:
            width = planning.balanced(limits.width, len(entry.job.runs), devices)
            self._begin(Layout(width, devices))
        self.done = finished_parts(entry, self.settings.save_policies)
        self.diverged = diverged_in(entry, self.done)
        self._seconds = sum(seconds_of(entry, part) for part in self.done)
        if self.done:
            say(f"  {runs_in(self.done)} of {len(entry.job.runs)} runs were done before, kept")

    def _begin(self, layout: Layout) -> None:
        self.layout = layout
        self.entry.write_layout(layout._asdict())

    def next_order(self, share: int) -> Order | None:
        """What is to be done next, where a worker should train at most `share` runs of the shard; None for now."""
        job, session = self.entry.job, provenance.session()
        if self.layout is None:
            if self.running:
                return None
            limits = self.settings.limits._replace(devices=min(self.pool.devices, share))
            return worker.Measure(job, limits, min(share, len(job.runs)), session)
        now = time.monotonic()
        waits = [runs for runs, until in self._held.items() if until > now]
        trains = [(order.first, order.stop) for order in self.running.values() if isinstance(order, worker.Train)]
        gap = first_gap(sorted([*(part[:2] for part in self.done), *trains, *waits]), len(job.runs))
        if gap is None:
            return None
        first, stop = gap[0], min(gap[1], gap[0] + self.layout.lanes)
        settings, written = self.settings, frozenset(updates_of(self.entry, first, stop))
        return worker.Train(
            job, first, stop, self.layout, settings.save_every, settings.save_policies, session, written
        )

    def hear(self, ticket: int, message: Message | Lost) -> None:
        """Take note of what a worker tells.

        Raises:
            UserError: the order cannot be done by any worker.
        """
        order = self.running.pop(ticket) if isinstance(message, ENDS) else self.running[ticket]
        if isinstance(message, worker.Failed) and message.fault:
            print(message.fault, file=sys.stderr, flush=True)
        if isinstance(order, worker.Measure):
            self._hear_measured(message)
            return
        if isinstance(message, ENDS):
            self.steps.pop(ticket, None)
            self._pieces.pop(ticket, None)
            self.nodes.pop(ticket, None)
        runs = order.first, order.stop
        match message:
            case worker.Began():
                self.steps[ticket] = message.update * order.job.steps_per_update
                self.nodes[ticket] = message.node
                self._hear_began(message)
            case worker.Paused():
                self.moved += (message.step - self.steps.get(ticket, message.step)) * (order.stop - order.first)
                self.steps[ticket] = message.step
                self._peak = max(self._peak, message.peak_memory)
                if message.evaluated and message.update > self._furthest.get(runs, 0):
                    self._furthest[runs] = message.update
                    self._failures.pop(runs, None)
            case worker.Rows(first, evaluation):
                self.entry.write_rows(first, evaluation)
            case worker.Policies():
                self.entry.write_policies(*message)
            case worker.Forgotten():
                self.entry.forget(*runs)
            case worker.Piece():
                self._hear_piece(ticket, runs, message)
            case worker.Done():
                self._hear_done(order)
            case worker.Left(held):
                if held:
                    self._held[runs] = time.monotonic() + HELD_SECONDS
            case worker.Refused(text):
                self._narrow(order, text)
            case worker.Failed(text, elsewhere):
                if not elsewhere:
                    raise UserError(f"runs {runs[0]}-{runs[1] - 1} of {self.title}: {text}")
                self._fail(runs, text)
            case Lost(text):
                self._fail(runs, text)

    def _hear_measured(self, message: Message | Lost) -> None:
        match message:
            case worker.Measured(layout, text):
                self._begin(layout)
                say(f"  {self.title}: {text}")
            case worker.Refused(text) | worker.Failed(text, False):
                raise UserError(f"{self.title}: {text}")
            case worker.Failed(text) | Lost(text):
                self._fail((0, 0), text)

    def _hear_began(self, message: worker.Began) -> None:
        entry, layout = self.entry, self.layout
        assert layout is not None, "a chunk was cut by it"
        self._compile_seconds += message.compile_seconds
        self._planned = max(self._planned, message.peak_memory)
        self._nodes.add(message.node)
        if not self._facts:
            before = entry.manifest()
            kept.tell_devices(before, layout.devices)
            self._facts = {**manifest.facts_of(entry, layout.devices, message.device), **self._dataset_facts}
            kept.tell_reference(before, self._facts)
        self._write_manifest()

    def _hear_piece(self, ticket: int, runs: tuple[int, int], piece: worker.Piece) -> None:
        pieces = self._pieces.setdefault(ticket, [])
        pieces.append(piece.data)
        if piece.last:
            folder = self.entry.snapshots(*runs)
            folder.mkdir(parents=True, exist_ok=True)
            worker.unpack(b"".join(pieces), folder)
            for path in folder.iterdir():
                if path.name.isdigit() and int(path.name) < piece.number - 1:
                    shutil.rmtree(path)
            pieces.clear()
            self._failures.pop(runs, None)

    def _hear_done(self, order: worker.Train) -> None:
        job, runs = self.entry.job, (order.first, order.stop)
        if not updates_of(self.entry, *runs).issuperset(job.points):
            self._fail(runs, "its rows have not come to the results folder")
            return
        part = Part(*runs, job.total_updates)
        self.done = sorted([*self.done, part])
        self.diverged += diverged_in(self.entry, [part])
        self._seconds += seconds_of(self.entry, part)
        shutil.rmtree(self.entry.snapshots(*runs), ignore_errors=True)
        self._write_manifest()
        say(f"  {self.title}: runs {order.first}-{order.stop - 1} done, {runs_in(self.done)} of {len(job.runs)}")

    def _narrow(self, order: worker.Train, text: str) -> None:
        """Go on with half as many runs at once, where nobody has halved them already."""
        if order.layout.width == 1:
            raise UserError(
                f"{self.title}: the device has no memory for even one run ({text}); make its buffer or networks smaller"
            )
        if self.layout == order.layout:
            width = -(-order.layout.width // 2)
            say(f"  {self.title}: the device refused {order.layout.width} runs at once; going on with {width}")
            self._begin(order.layout._replace(width=width))

    def _fail(self, runs: tuple[int, int], text: str) -> None:
        """The order is done once more, unless it has come to nothing too often."""
        self._failures[runs] = self._failures.get(runs, 0) + 1
        what = f"runs {runs[0]}-{runs[1] - 1}" if runs[1] else "measuring"
        if self._failures[runs] >= MOST_FAILURES:
            raise UserError(f"{what} of {self.title}: {MOST_FAILURES} workers in a row were lost; the last: {text}")
        say(f"  {what} of {self.title}: {text}; another worker goes on")

    def _write_manifest(self) -> None:
        if not self._facts or self.layout is None:  # all chunks were trained by workers of an earlier driver
            return
        nodes = {"nodes": sorted(self._nodes)}
        sessions = self._facts["sessions"]
        known = {
            "sessions": [*sessions[:-1], {**sessions[-1], **nodes}],
            "compile_seconds": self._compile_seconds,
            "run_seconds": self._seconds,
            "peak_memory_bytes": self._peak,
            "plan": {**self.layout._asdict(), "peak_memory": self._planned},
            "diverged": self.diverged,
        }
        self.entry.write_manifest({**self._facts, **known})

    def left(self) -> int:
        """Environment steps of all runs together that are still to be done."""
        trains = {ticket: order for ticket, order in self.running.items() if isinstance(order, worker.Train)}
        now = sum(self.steps.get(ticket, 0) * (order.stop - order.first) for ticket, order in trains.items())
        job = self.entry.job
        return run_steps(job) - runs_in(self.done) * job.total_updates * job.steps_per_update - now

    def finished(self) -> bool:
        """Whether all is done, in which case the rows are merged."""
        entry = self.entry
        if self.running or first_gap(self.done, len(entry.job.runs)):
            return False
        # As they are on the disk now: who else may write there may have removed some.
        there = finished_parts(entry, self.settings.save_policies)
        if there != self.done:
            say(f"  rows or policies of {self.title} were lost while it was running; they are trained again")
            self.done = there
            return False
        entry.finish(entry.job.points, self.settings.save_policies)
        return True


class View:
    """How far all shards are, on one line: it lives in a terminal, and stays once a minute."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._live = sys.stdout.isatty()
        self._began = self._said = time.perf_counter()
        self._ended = 0
        """run-steps of shards that were finished by this process"""

    def show(self, shards: Sequence[Shard]) -> None:
        """Show the line where it is due."""
        now = time.perf_counter()
        if not shards or not (self._live or now - self._said > QUIET_SECONDS):
            return
        line = self._line(shards, now - self._began)
        if now - self._said > QUIET_SECONDS:
            self._said = now
            say(f"\r{CLEAR}{line}" if self._live else line)
        else:
            print(f"\r{CLEAR}{line}", end="", flush=True)

    def _line(self, shards: Sequence[Shard], seconds: float) -> str:
        """Of shards that train now, and of those that wait."""
        left = sum(shard.left() for shard in shards) + sum(run_steps(entry.job) for entry in self._turns.waiting)
        moved = self._ended + sum(shard.moved for shard in shards)
        chunks = sum(len(shard.running) for shard in shards)
        nodes = len({node for shard in shards for node in shard.nodes.values()})
        done, runs = sum(runs_in(shard.done) for shard in shards), sum(len(shard.entry.job.runs) for shard in shards)
        line = f"  {len(shards)} shards: runs {done}/{runs} done, {chunks} chunks on {nodes} nodes"
        if moved:
            line += f"  {quantity(moved / seconds)} steps/s  ETA {duration(left * seconds / moved)}"
        if diverged := sum(shard.diverged for shard in shards):
            line += f"  DIVERGED {diverged}"
        return line

    def end(self, shard: Shard) -> None:
        """A shard is finished."""
        self._ended += shard.moved


def run_steps(job: Job) -> int:
    """Environment steps of all runs of a job together."""
    return len(job.runs) * job.total_updates * job.steps_per_update
