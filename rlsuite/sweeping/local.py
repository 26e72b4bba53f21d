"""The executor that trains jobs one after another in this process: open, run, finish."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax

from rlsuite.errors import Stopped, UserError
from rlsuite.sweeping import chunk, kept, manifest
from rlsuite.sweeping.entry import Entry
from rlsuite.sweeping.job import Job
from rlsuite.sweeping.rows import Part
from rlsuite.sweeping.store import Store
from rlsuite.training import memory
from rlsuite.training import plan as planning
from rlsuite.training.checkpoint import Snapshot, Snapshots
from rlsuite.training.plan import Limits, Plan, Work
from rlsuite.training.progress import Progress, duration, live, quantity, say
from rlsuite.training.train import Pause, Training

WAITING_SECONDS = 1.0
"""How often a shard that another process runs is looked at."""


class Settings(NamedTuple):
    """How shards run; none of it changes what a run computes, but for the order of floating-point sums."""

    limits: Limits = Limits()
    save_every: float = 300.0
    """seconds between two snapshots of a running chunk; 0 saves at every pause"""
    save_policies: bool = False
    """keep what every run has learned, next to its results, see `rlsuite/sweeping/policies.py`"""
    retrain: bool = False
    """train finished shards again, and restart an unfinished one if other code has begun it"""


def check_settings(settings: Settings, shown: Callable[[str], str] = str) -> None:
    """Raise UserError for a value that is out of range; `shown` turns its field's name into what the user typed."""
    limits = settings.limits
    for name, value in (("width", limits.width), ("devices", limits.devices)):
        if value is not None and value < 1:
            raise UserError(f"{shown(name)} {value} must be at least 1; leave it out to have it chosen")
    if not 0 < limits.memory_share <= 1:
        raise UserError(f"{shown('memory_share')} {limits.memory_share} must be above 0 and at most 1, such as 0.75")
    if not settings.save_every >= 0:
        raise UserError(f"{shown('save_every')} {settings.save_every} must be 0 (at every pause) or more seconds")


class Signals:
    """SIGINT and SIGTERM, noted while the context lasts. A second one acts as it always does."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()
        with contextlib.suppress(RuntimeError):  # it came while this very process was printing
            say(f"\n{signal.Signals(number).name}: finishing the segment and saving; once more to leave at once")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def check(self) -> None:
        """Raise Stopped if one has come."""
        if self.number is not None:
            raise Stopped(self.number)


def run(jobs: Sequence[Job], store: Store, settings: Settings | None = None) -> None:
    """Train the jobs whose shards the store does not hold yet, writing every evaluation as it comes.

    Shards that another process runs are left to it; when nothing else is left, this waits for them. With
    `Settings.retrain`, those that are finished now are set aside, each once it is this process' turn to run it, and run
    again; one that another process has finished meanwhile is kept.

    Raises:
        UserError: the store cannot be written any more, a run does not fit, or the package that brings the algorithm or
            the environment of a shard has changed since; evaluations written before stay.
        Stopped: by SIGINT or SIGTERM, after saving.
    """
    settings = settings or Settings()
    began = time.perf_counter()
    entries = [store.open(job) for job in jobs]
    titles = {
        entry: f"[{i}/{len(jobs)}] {entry.job.label} on {entry.job.environment}, {len(entry.job.runs)} runs"
        for i, entry in enumerate(entries, start=1)
    }
    waiting = list(entries)
    stale = {entry: stamp(entry.path) for entry in entries} if settings.retrain else {}
    with Signals() as signals:
        told: set[Entry] = set()
        while waiting:
            before = len(waiting)
            for entry in list(waiting):
                signals.check()
                again = stale.get(entry) is not None and stamp(entry.path) == stale[entry]
                done = not again and entry.finished()
                news = kept.news_of(entry) if done else {}
                if done and not news and not entry.partial.exists():
                    say_kept(titles[entry], entry)
                    waiting.remove(entry)
                    continue
                with entry.claim() as ours:
                    if ours:
                        take(entry, titles[entry], again, news, settings, signals)
                        waiting.remove(entry)
                    elif entry not in told:
                        say(f"{titles[entry]}: {entry.holder()} runs it; left to it")
                        told.add(entry)
            if len(waiting) == before:
                time.sleep(WAITING_SECONDS)
    say(f"{len(jobs)} of {len(jobs)} shards in {store.folder} after {duration(time.perf_counter() - began)}")


def take(entry: Entry, title: str, again: bool, news: dict[str, Any], settings: Settings, signals: Signals) -> None:
    """Finish a shard that this process has claimed, or keep it if it is finished meanwhile, with its `news`.

    `again` sets aside what is finished.
    """
    if again or (settings.retrain and kept.begun_with_other_code(entry)):
        entry.set_aside()
    if entry.finished():
        say_kept(title, entry)
        if news:
            before = entry.manifest()
            kept.tell_reference(before, news)
            entry.write_manifest({**before, **news})
    else:
        say(f"{title} x {quantity(entry.job.cell.steps)} steps")
        run_shard(entry, settings, signals)
        memory.release()


def stamp(path: Path) -> tuple[int, int] | None:
    """What tells a file from another one that has taken its place; None without one."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def say_kept(title: str, entry: Entry) -> None:
    """Say that a shard is finished. Raises UserError if it is of other code of the package that brings its parts."""
    line = kept.check_kept(entry)
    say(f"{title}: done before, kept")
    if line:
        say(line)


class Claimed(NamedTuple):
    """A shard that this process has claimed, and all it takes to run it."""

    entry: Entry
    work: Work
    settings: Settings
    signals: Signals


def run_shard(entry: Entry, settings: Settings, signals: Signals) -> None:
    """Train all runs of one shard that this process has claimed, chunk after chunk, and merge their rows."""
    job = entry.job
    num_runs = len(job.runs)
    begun = entry.begun()
    if begun:
        kept.check_resumed(entry)
    given = chunk.given_to(job)
    if given and begun:
        kept.check_checksum(entry, given.dataset, finished=False)
    claimed = Claimed(entry, chunk.work_of(job, given), settings, signals)
    dataset_facts = manifest.facts_of_dataset(job, given.found, given.dataset) if given else {}
    del given  # the work has the dataset, prepared
    began = time.perf_counter()
    plan = begin(claimed)
    compile_seconds = time.perf_counter() - began
    say(f"  compiled in {duration(compile_seconds)}; {plan.describe(num_runs)}")
    before = entry.manifest()
    kept.tell_devices(before, plan.devices)
    facts = {**manifest.facts_of(entry, plan.devices), **dataset_facts, "compile_seconds": compile_seconds}
    kept.tell_reference(before, facts)

    finished = finished_parts(claimed)
    if finished:
        say(f"  {runs_in(finished)} of {num_runs} runs were done before, kept")
    plan = train_gaps(claimed, plan, facts, finished)
    # As they are on the disk now: who else may write there may have removed some.
    finished = finished_parts(claimed)
    if first_gap(finished, num_runs):
        say(
            f"  rows or policies of {num_runs - runs_in(finished)} runs were lost while the shard was running; "
            "they are trained again"
        )
        train_gaps(claimed, plan, facts, finished)
    entry.finish(job.points, settings.save_policies)


def train_gaps(claimed: Claimed, plan: Plan, facts: dict[str, Any], finished: list[Part]) -> Plan:
    """Train all runs that are not `finished`, the last part of each chunk that is; gives the plan at the end, which is
    narrower where the device refused the one given. The manifest is kept up to date, with these `facts`."""
    entry, work, _, signals = claimed
    job, num_runs = entry.job, len(entry.job.runs)
    diverged = sum(int(entry.read(part)["diverged"].to_numpy().sum()) for part in finished)
    seconds = sum(seconds_of(entry, part) for part in finished)
    write_manifest(entry, plan, facts, seconds, diverged)
    progress = Progress(num_runs, job.total_updates * job.steps_per_update, runs_in(finished), diverged)
    with contextlib.closing(Snapshots(entry.partial / "snapshot")) as snapshots:
        while gap := first_gap(finished, num_runs):
            first, stop = gap[0], min(gap[1], gap[0] + plan.lanes)
            signals.check()
            try:
                train_chunk(claimed, plan, first, stop, snapshots, progress)
                part = Part(first, stop, job.total_updates)
                finished = sorted([*finished, part])
                seconds += seconds_of(entry, part)
                write_manifest(entry, plan, facts, seconds, progress.diverged)
                continue
            except (jax.errors.JaxRuntimeError, MemoryError) as error:
                if not memory.is_out_of_memory(error):
                    raise
                if plan.width == 1:
                    raise UserError(
                        f"{job.label} on {job.environment}: the device has no memory for even one run "
                        f"({' '.join(str(error).split())[:120]}); make its buffer or networks smaller"
                    ) from error
            # Outside of the handler, which would keep the chunk's arrays alive.
            width = -(-plan.width // 2)
            say(f"  the device refused {plan.width} runs at once; going on with {width}")
            began = time.perf_counter()
            with live("  compiling ..."):
                compiled = planning.compile_for(work, width, plan.devices)
            facts["compile_seconds"] += time.perf_counter() - began
            plan = planning.plan_of(work, width, plan.devices, compiled, plan.rates)
            write_layout(entry, plan)
    return plan


def begin(claimed: Claimed) -> Plan:
    """The plan that the shard was begun with, else a new one, which it is begun with."""
    entry, work, settings, _ = claimed
    limits = settings.limits
    layout = entry.layout()
    if layout is None:
        with live("  compiling, and measuring how many runs at once are fastest ..."):
            plan = planning.choose(work, limits)
        write_layout(entry, plan)
        return plan
    width, devices = layout["width"], layout["devices"]
    if limits.width not in (None, width):
        say(f"  goes on with {width} runs a device, as it was begun; --width {limits.width} is for shards begun later")
    there = planning.num_devices(devices, limits.devices)
    # Fewer devices than before: the same runs at once, on as many as divide them evenly.
    used = max(n for n in range(1, there + 1) if width * devices % n == 0)
    width = width * devices // used
    with live("  compiling ..."):
        return planning.plan_of(work, width, used, planning.compile_for(work, width, used), {})


def write_layout(entry: Entry, plan: Plan) -> None:
    """Have the shard go on with this plan, if it is interrupted."""
    entry.write_layout({"width": plan.width, "devices": plan.devices})


class Recorder:
    """The sink of a chunk that is trained in this process: its files, its snapshots and the progress on the screen."""

    def __init__(self, claimed: Claimed, first: int, stop: int, snapshots: Snapshots, progress: Progress) -> None:
        self.save_policies = claimed.settings.save_policies
        self.write_rows = claimed.entry.write_rows
        self.write_policies = claimed.entry.write_policies
        self._save_every, self._signals = claimed.settings.save_every, claimed.signals
        self._first, self._count = first, stop - first
        self._snapshots, self._progress = snapshots, progress
        self._saved = time.perf_counter()

    def paused(self, pause: Pause) -> bool:
        """Show it. A snapshot is due after a while, and at a signal."""
        self._progress.pause(self._first, self._count, pause)
        return self._signals.number is not None or time.perf_counter() - self._saved >= self._save_every

    def save(self, snapshot: Snapshot) -> None:
        """Write a snapshot, in the background unless a signal has come. Raises Stopped if one has."""
        self._snapshots.save(snapshot)
        self._saved = time.perf_counter()
        if self._signals.number is not None:
            self._snapshots.wait()
            self._signals.check()


def train_chunk(claimed: Claimed, plan: Plan, first: int, stop: int, snapshots: Snapshots, progress: Progress) -> None:
    """Train the runs first, ..., stop - 1 to the end, from their newest snapshot if there is one."""
    recorder = Recorder(claimed, first, stop, snapshots, progress)
    entry, work, programs = claimed.entry, claimed.work, plan.compiled.programs
    # Not kept in a variable, which would hold a copy of the state for as long as the chunk trains.
    chunk.run(entry.job, work, programs, first, stop, recorder, resumed(entry, plan, first, stop, snapshots))


def resumed(entry: Entry, plan: Plan, first: int, stop: int, snapshots: Snapshots) -> Training | None:
    """Where the runs first, ..., stop - 1 go on: at their newest snapshot if all rows before it are there. Else they
    start over, without what is left of them."""
    snapshot, damaged = snapshots.newest(plan.compiled.learning)
    for line in damaged:
        say(f"  {line}; taking the one before")
    if snapshot and (snapshot.first, snapshot.stop) == (first, stop):
        written = {part.update for part in entry.parts() if (part.first, part.stop) == (first, stop)}
        training = snapshot.training
        if written.issuperset(point for point in entry.job.points if point <= training.update):
            say(f"  runs {first}-{stop - 1} go on from update {training.update} of {entry.job.total_updates}")
            return training
    entry.forget(first, stop)
    return None


def write_manifest(entry: Entry, plan: Plan, facts: dict[str, Any], run_seconds: float, diverged: int) -> None:
    """Replace the shard's manifest by what is known now."""
    known = {
        "run_seconds": run_seconds,
        "peak_memory_bytes": memory.peak_bytes(),
        "plan": {"width": plan.width, "devices": plan.devices, "peak_memory_bytes": plan.peak_memory},
        "diverged": diverged,
    }
    entry.write_manifest({**facts, **known})


def finished_parts(claimed: Claimed) -> list[Part]:
    """The last part of each chunk all of whose evaluations are there, and policies if they are saved, in the order of
    their runs."""
    entry = claimed.entry
    found: dict[tuple[int, int], set[int]] = {}
    for part in entry.parts():
        found.setdefault((part.first, part.stop), set()).add(part.update)
    points = entry.job.points
    whole = sorted(Part(*runs, points[-1]) for runs, updates in found.items() if updates.issuperset(points))
    if not claimed.settings.save_policies:
        return whole
    learned = entry.learned()
    return [part for part in whole if (part.first, part.stop) in learned]


def runs_in(parts: Sequence[Part]) -> int:
    """How many runs these parts of different runs have."""
    return sum(part.stop - part.first for part in parts)


def seconds_of(entry: Entry, part: Part) -> float:
    """How long the chunk of this part had trained when it was evaluated."""
    return float(entry.read(part)["wall_seconds"][0].as_py())


def first_gap(finished: Sequence[Part], num_runs: int) -> tuple[int, int] | None:
    """The first range of runs that are not finished; None if all are. `finished` is in the order of the runs."""
    first = 0
    for part in finished:
        if part.first > first:
            return first, part.first
        first = part.stop
    return (first, num_runs) if first < num_runs else None
