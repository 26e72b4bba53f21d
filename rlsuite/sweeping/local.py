"""The executor that trains jobs one after another in this process: open, run, finish."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax

from rlsuite.errors import UserError
from rlsuite.sweeping import chunk, kept, manifest
from rlsuite.sweeping.callback import Callback, OnEvaluation
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
    resumed_here,
    runs_in,
    seconds_of,
)
from rlsuite.sweeping.store import Store
from rlsuite.sweeping.turns import Turns
from rlsuite.training import memory
from rlsuite.training import plan as planning
from rlsuite.training.checkpoint import Snapshot, Snapshots
from rlsuite.training.plan import Plan, Work
from rlsuite.training.progress import Progress, duration, live, say
from rlsuite.training.train import Pause

WAITING_SECONDS = 1.0
"""How often a shard that another process runs is looked at."""


def run(
    jobs: Sequence[Job], store: Store, settings: Settings | None = None, on_evaluation: OnEvaluation | None = None
) -> None:
    """Train the jobs whose shards the store does not hold yet, writing every evaluation as it comes.

    `on_evaluation` is called with every evaluation of every chunk, in their order, once its rows are written. It is an
    argument and no setting, since settings go to other machines.

    Shards that another process runs are left to it; when nothing else is left, this waits for them. With
    `Settings.retrain`, those that are finished now are set aside, each once it is this process' turn to run it, and run
    again; one that another process has finished meanwhile is kept.

    Raises:
        UserError: the store cannot be written any more, a run does not fit, or the package that brings the algorithm or
            the environment of a shard has changed since; evaluations written before stay.
        Stopped: by SIGINT or SIGTERM, after saving.
        Exception: what `on_evaluation` raises, after saving.
    """
    settings = settings or Settings()
    turns, callback = Turns(jobs, store, settings), Callback(on_evaluation)
    with Signals() as signals:
        while turns.waiting:
            before = len(turns.waiting)
            for entry in list(turns.waiting):
                signals.check()
                with contextlib.ExitStack() as claims:
                    if turns.take(entry, claims):
                        run_shard(entry, settings, signals, callback)
                        memory.release()
                callback.check()
            if len(turns.waiting) == before:
                time.sleep(WAITING_SECONDS)
    turns.end()


class Claimed(NamedTuple):
    """A shard that this process has claimed, and all it takes to run it."""

    entry: Entry
    work: Work
    settings: Settings
    signals: Signals
    callback: Callback


def run_shard(entry: Entry, settings: Settings, signals: Signals, callback: Callback) -> None:
    """Train all runs of one shard that this process has claimed, chunk after chunk, and merge their rows."""
    job = entry.job
    num_runs = len(job.runs)
    given = opened(entry)
    claimed = Claimed(entry, chunk.work_of(job, given), settings, signals, callback)
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

    finished = finished_parts(entry, settings.save_policies)
    if finished:
        say(f"  {runs_in(finished)} of {num_runs} runs were done before, kept")
    plan = train_gaps(claimed, plan, facts, finished)
    # As they are on the disk now: who else may write there may have removed some.
    finished = finished_parts(entry, settings.save_policies)
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
    entry, work, _, signals, callback = claimed
    job, num_runs = entry.job, len(entry.job.runs)
    diverged = diverged_in(entry, finished)
    seconds = sum(seconds_of(entry, part) for part in finished)
    write_manifest(entry, plan, facts, seconds, diverged)
    progress = Progress(num_runs, job.total_updates * job.steps_per_update, runs_in(finished), diverged)
    while gap := first_gap(finished, num_runs):
        first, stop = gap[0], min(gap[1], gap[0] + plan.lanes)
        signals.check()
        callback.check()
        try:
            train_chunk(claimed, plan, first, stop, progress)
            part = Part(first, stop, job.total_updates)
            finished = sorted([*finished, part])
            seconds += seconds_of(entry, part)
            write_manifest(entry, plan, facts, seconds, progress.diverged)
            continue
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if error is callback.error or not memory.is_out_of_memory(error):
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
    entry, work, settings = claimed[:3]
    limits = settings.limits
    layout = layout_of(entry, limits.width)
    if layout is None:
        with live("  compiling, and measuring how many runs at once are fastest ..."):
            plan = planning.choose(work, limits)
        write_layout(entry, plan)
        return plan
    layout = layout.on(planning.num_devices(layout.devices, limits.devices))
    with live("  compiling ..."):
        return planning.plan_of(work, *layout, planning.compile_for(work, *layout), {})


def write_layout(entry: Entry, plan: Plan) -> None:
    """Have the shard go on with this plan, if it is interrupted."""
    entry.write_layout(Layout(plan.width, plan.devices)._asdict())


class Recorder:
    """The sink of a chunk that is trained in this process: its files, its snapshots and the progress on the screen."""

    def __init__(self, claimed: Claimed, first: int, stop: int, snapshots: Snapshots, progress: Progress) -> None:
        self.save_policies = claimed.settings.save_policies
        self.write_rows = claimed.entry.write_rows
        self.write_policies = claimed.entry.write_policies
        self._save_every, self._signals = claimed.settings.save_every, claimed.signals
        self._job, self._callback = claimed.entry.job, claimed.callback
        self._first, self._count = first, stop - first
        self._snapshots, self._progress = snapshots, progress
        self._saved = time.perf_counter()

    def paused(self, pause: Pause) -> bool:
        """Show it, and tell the user's callback. A snapshot is due after a while, and where the chunk ends early."""
        self._progress.pause(self._first, self._count, pause)
        if pause.evaluated:
            self._callback.tell(self._job, self._first, pause.training.evaluation)
        return self._ends_early() or time.perf_counter() - self._saved >= self._save_every

    def save(self, snapshot: Snapshot) -> None:
        """Write a snapshot, in the background unless the chunk ends here.

        Raises:
            Stopped: a signal has come.
            Exception: what the callback has raised.
        """
        self._snapshots.save(snapshot)
        self._saved = time.perf_counter()
        if self._ends_early():
            self._snapshots.wait()
            self._callback.check()
            self._signals.check()

    def _ends_early(self) -> bool:
        """Whether a signal has come or the callback has raised."""
        return self._signals.number is not None or self._callback.error is not None


def train_chunk(claimed: Claimed, plan: Plan, first: int, stop: int, progress: Progress) -> None:
    """Train the runs first, ..., stop - 1 to the end, from their newest snapshot if there is one."""
    entry, work, compiled = claimed.entry, claimed.work, plan.compiled
    with claim_runs(claimed, first, stop), contextlib.closing(Snapshots(entry.snapshots(first, stop))) as snapshots:
        recorder = Recorder(claimed, first, stop, snapshots, progress)
        # Not kept in a variable, which would hold a copy of the state for as long as the chunk trains.
        chunk.run(
            entry.job,
            work,
            compiled.programs,
            first,
            stop,
            recorder,
            resumed_here(entry, snapshots, compiled.learning, first, stop),
        )
    shutil.rmtree(entry.snapshots(first, stop), ignore_errors=True)


@contextlib.contextmanager
def claim_runs(claimed: Claimed, first: int, stop: int) -> Iterator[None]:
    """Hold the lock of these runs. A worker of a cluster whose driver has died may have it for a while."""
    told = False
    while True:
        claimed.signals.check()
        with claimed.entry.claim_runs(first, stop) as ours:
            if ours:
                yield
                return
        if not told:
            say(f"  a worker of a cluster still trains runs {first}-{stop - 1}; waiting for it")
            told = True
        time.sleep(WAITING_SECONDS)


def write_manifest(entry: Entry, plan: Plan, facts: dict[str, Any], run_seconds: float, diverged: int) -> None:
    """Replace the shard's manifest by what is known now."""
    known = {
        "run_seconds": run_seconds,
        "peak_memory_bytes": memory.peak_bytes(),
        "plan": {"width": plan.width, "devices": plan.devices, "peak_memory_bytes": plan.peak_memory},
        "diverged": diverged,
    }
    entry.write_manifest({**facts, **known})
