"""What a worker of a cluster does: it measures how a shard should be cut, or trains one chunk of its runs.

A worker gets an order, which is plain values, and tells what happens by messages. It sees the results folder or it does
not: `Folder` and `Parcel` are the two places where a chunk's results go.
"""

from __future__ import annotations

import contextlib
import io
import platform
import shutil
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

import jax
import numpy as np

from rlsuite.errors import Stopped, UserError
from rlsuite.sweeping import chunk, provenance
from rlsuite.sweeping.chunk import Given
from rlsuite.sweeping.entry import Entry
from rlsuite.sweeping.job import Job
from rlsuite.sweeping.shard import Layout, finished_parts, resumed, resumed_here
from rlsuite.training import memory
from rlsuite.training import plan as planning
from rlsuite.training.batch import Compiled
from rlsuite.training.checkpoint import CannotSave, Snapshot, Snapshots
from rlsuite.training.device import describe_device
from rlsuite.training.plan import Limits, Work
from rlsuite.training.train import Evaluation, Learning, Pause, Training

PIECE_BYTES = 4 * 1024**2
"""Bytes of a snapshot that one message carries."""
KEPT_PROGRAMS = 2
"""Compiled programs that a worker keeps: of the shard that it works on, and of the one before."""


# --- Orders -----------------------------------------------------------------------------------------------------------


class Measure(NamedTuple):
    """Find how many runs of a job should train at once."""

    job: Job
    limits: Limits
    """`devices` of each worker"""
    share: int
    """runs of the job, at most, that one worker should train"""
    session: dict[str, str]
    """rlsuite and JAX of the driver, which the worker's must be"""


class Train(NamedTuple):
    """Train the runs first, ..., stop - 1 of a job."""

    job: Job
    first: int
    stop: int
    layout: Layout
    save_every: float
    """seconds between two snapshots"""
    save_policies: bool
    session: dict[str, str]
    """rlsuite and JAX of the driver, which the worker's must be"""
    written: frozenset[int]
    """update counts at which the driver has rows of these runs"""


Order: TypeAlias = Measure | Train


# --- Messages ---------------------------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """The answer to `Measure`."""

    layout: Layout
    text: str


class Began(NamedTuple):
    """A worker has its program, and begins a chunk or goes on with it."""

    node: str
    device: str
    compile_seconds: float
    peak_memory: int
    """bytes planned on each device"""
    update: int


class Paused(NamedTuple):
    """How far a chunk is."""

    update: int
    step: int
    evaluated: bool
    diverged: int
    """runs that have, of the chunk's"""
    peak_memory: int
    """bytes in use at the most so far"""


class Rows(NamedTuple):
    """One evaluation to write, of the runs from `first`."""

    first: int
    evaluation: Evaluation


class Policies(NamedTuple):
    """What the runs from `first` have learned, to write; see `Entry.write_policies`."""

    first: int
    update: int
    diverged: np.ndarray
    leaves: dict[str, np.ndarray]


class Forgotten(NamedTuple):
    """A chunk starts over: what the driver has of its rows goes."""


class Piece(NamedTuple):
    """The next bytes of a packed snapshot of this number."""

    number: int
    data: bytes
    last: bool


class Done(NamedTuple):
    """A chunk is trained to the end."""


class Left(NamedTuple):
    """A chunk is saved and left, as the worker was asked, or before it began since another worker trains its runs."""

    held: bool


class Refused(NamedTuple):
    """The device has refused the memory for that many runs at once."""

    text: str


class Failed(NamedTuple):
    """What an order has come to nothing by."""

    text: str
    elsewhere: bool
    """whether another worker may succeed"""
    fault: str | None = None
    """the traceback, where it is nothing that a user can fix"""


Message: TypeAlias = Measured | Began | Paused | Rows | Policies | Forgotten | Piece | Done | Left | Refused | Failed
Tell: TypeAlias = Callable[[Message], None]


# --- Where results go -------------------------------------------------------------------------------------------------


class Place(Protocol):
    """Where the results of one chunk go, and what is there of it."""

    snapshots: Path
    """the folder of its snapshots"""

    def resume(self, snapshots: Snapshots, learning: Learning) -> Training | None:
        """Where the chunk goes on; without, rows that are left of it are removed."""

    def write_rows(self, first: int, evaluation: Evaluation) -> None: ...

    def write_policies(self, first: int, update: int, diverged: np.ndarray, leaves: dict[str, np.ndarray]) -> None: ...

    def saved(self, snapshots: Snapshots) -> None:
        """A snapshot is on its way into the folder."""


class Folder:
    """The results folder itself, which this worker sees."""

    def __init__(self, entry: Entry, order: Train) -> None:
        self.snapshots = entry.snapshots(order.first, order.stop)
        self.write_rows, self.write_policies = entry.write_rows, entry.write_policies
        self._entry, self._order = entry, order

    def resume(self, snapshots: Snapshots, learning: Learning) -> Training | None:
        return resumed_here(self._entry, snapshots, learning, self._order.first, self._order.stop)

    def saved(self, snapshots: Snapshots) -> None:
        """Nothing is left to do."""


class Parcel:
    """Messages to the driver, which has the results folder; snapshots pass through a temporary one here."""

    def __init__(self, folder: Path, order: Train, packed: bytes | None, tell: Tell) -> None:
        """`packed` is the newest snapshot that the driver has."""
        self.snapshots = folder
        self._order, self._tell = order, tell
        if packed is not None:
            unpack(packed, folder)

    def resume(self, snapshots: Snapshots, learning: Learning) -> Training | None:
        order = self._order
        runs, points = (order.first, order.stop), order.job.points
        training = resumed(snapshots, learning, runs, points, set(order.written))
        if training is None:
            self._tell(Forgotten())
        return training

    def write_rows(self, first: int, evaluation: Evaluation) -> None:
        self._tell(Rows(first, evaluation))

    def write_policies(self, first: int, update: int, diverged: np.ndarray, leaves: dict[str, np.ndarray]) -> None:
        self._tell(Policies(first, update, diverged, leaves))

    def saved(self, snapshots: Snapshots) -> None:
        snapshots.wait()
        newest = newest_number(self.snapshots)
        assert newest is not None, "it has just been written"
        packed = pack(self.snapshots / str(newest))
        for begin in range(0, len(packed), PIECE_BYTES):
            data = packed[begin : begin + PIECE_BYTES]
            self._tell(Piece(newest, data, begin + len(data) == len(packed)))


def newest_number(folder: Path) -> int | None:
    """The number of the newest snapshot in a folder; None without one."""
    numbers = [int(path.name) for path in folder.glob("*") if path.name.isdigit()] if folder.exists() else []
    return max(numbers, default=None)


def pack(snapshot: Path) -> bytes:
    """A folder, named by its number, as bytes."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(snapshot, snapshot.name)
    return packed.getvalue()


def unpack(packed: bytes, folder: Path) -> None:
    """Put what `pack` gave into a folder, under its number at last."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(temporary, filter="data")
        [found] = Path(temporary).iterdir()
        if not (folder / found.name).exists():
            found.rename(folder / found.name)


# --- Work -------------------------------------------------------------------------------------------------------------


class Recorder:
    """The sink of a chunk on a worker."""

    def __init__(self, order: Train, place: Place, snapshots: Snapshots, tell: Tell, asked: Callable[[], int]) -> None:
        self.save_policies = order.save_policies
        self.write_rows, self.write_policies = place.write_rows, place.write_policies
        self._order, self._place, self._snapshots, self._tell, self._asked = order, place, snapshots, tell, asked
        self._saved = time.perf_counter()

    def paused(self, pause: Pause) -> bool:
        """Tell the driver. A snapshot is due after a while, and when the worker is asked to leave."""
        training = pause.training
        diverged = int(training.evaluation.diverged.sum())
        self._tell(Paused(training.update, training.step, pause.evaluated, diverged, memory.peak_bytes()))
        return bool(self._asked()) or time.perf_counter() - self._saved >= self._order.save_every

    def save(self, snapshot: Snapshot) -> None:
        """Write a snapshot. Raises Stopped if the worker is asked to leave."""
        self._snapshots.save(snapshot)
        self._place.saved(self._snapshots)
        self._saved = time.perf_counter()
        if number := self._asked():
            self._snapshots.wait()
            raise Stopped(number)


Programs: TypeAlias = dict[tuple[str, Layout], tuple[Work, Compiled]]
_programs: Programs = {}
"""(shard, layout) -> what this process has compiled, in the order of last use."""


def programs(job: Job, given: Given | None, layout: Layout) -> tuple[Work, Compiled, float]:
    """The work of a job, its programs for this layout and the seconds that compiling has taken now."""
    began = time.perf_counter()
    key = (job.name, layout)
    found = _programs.pop(key, None)
    if found is None:
        while len(_programs) >= KEPT_PROGRAMS:
            del _programs[next(iter(_programs))]
            memory.release()
        there = jax.local_device_count()
        if layout.devices > there:
            raise UserError(f"the worker shows {there} devices and the shard needs {layout.devices}; give it more")
        work = chunk.work_of(job, given)
        found = work, planning.compile_for(work, *layout)
    _programs[key] = found
    return *found, time.perf_counter() - began


def check_session(session: dict[str, str]) -> None:
    """Raise UserError unless this worker computes with the driver's code."""
    if (here := provenance.session()) != session:
        text = "rlsuite {rlsuite} (sources {rlsuite_sources}) and JAX {jax}"
        raise UserError(
            f"it runs {text.format(**here)}, the driver {text.format(**session)}; install the same on all nodes"
        )


def check_packages(job: Job) -> None:
    """Raise UserError unless the packages of others that a job needs are those of the driver, which the manifest
    names."""
    driver = {"algorithm": job.cell.algorithm, "environment": job.environment, "packages": job.packages}
    if changed := provenance.changed_since(driver):
        raise UserError(f"it runs other code than the driver: here {changed} there; install the same on all nodes")


def measure(order: Measure, given: Given | None) -> Measured:
    """Choose how many runs train at once, for as many as a worker should train.

    Raises:
        UserError: as `plan.choose`, `check_session` and `check_packages`.
    """
    check_session(order.session)
    check_packages(order.job)
    work = chunk.work_of(order.job, given)._replace(num_runs=order.share)
    plan = planning.choose(work, order.limits)
    layout = Layout(plan.width, plan.devices)
    _programs[order.job.name, layout] = (work._replace(num_runs=len(order.job.runs)), plan.compiled)
    return Measured(layout, plan.describe(len(order.job.runs)))


def train(order: Train, given: Given | None, place: Place, tell: Tell, asked: Callable[[], int]) -> None:
    """Train a chunk to the end, or until the worker is `asked` to leave, by the number of a signal.

    Raises:
        UserError: as `check_session`, `check_packages` and `Snapshots`.
        Stopped: asked to leave, after saving.
    """
    check_session(order.session)
    check_packages(order.job)
    job, first, stop = order.job, order.first, order.stop
    work, compiled, seconds = programs(job, given, order.layout)
    peak = memory.peak_with(planning.bytes_of(compiled), order.layout.devices)
    with contextlib.closing(Snapshots(place.snapshots)) as snapshots:
        recorder = Recorder(order, place, snapshots, tell, asked)
        go_on = [place.resume(snapshots, compiled.learning)]
        tell(Began(platform.node(), describe_device(), seconds, peak, go_on[0].update if go_on[0] else 0))
        # Popped, since a variable would hold a copy of the state for as long as the chunk trains.
        chunk.run(job, work, compiled.programs, first, stop, recorder, go_on.pop())
    shutil.rmtree(place.snapshots, ignore_errors=True)


def answer(order: Order, given: Given | None, tell: Tell, work: Callable[[Train], None]) -> None:
    """Do what an order says, a chunk by `work`, and tell how it ended whatever happens."""
    try:
        if isinstance(order, Measure):
            tell(measure(order, given))
        else:
            work(order)
            tell(Done())
    except Held:
        tell(Left(held=True))
    except Stopped:
        tell(Left(held=False))
    except Exception as error:
        tell(ending(error))


def ending(error: Exception) -> Message:
    """The message of an error that has ended an order."""
    text = " ".join(str(error).split())
    if memory.is_out_of_memory(error):
        return Refused(text[:120])
    if isinstance(error, NodeError):
        return Failed(f"{platform.node()}: {text}", elsewhere=True)
    if isinstance(error, UserError):
        return Failed(f"{platform.node()}: {text}", elsewhere=False)
    return Failed(f"{platform.node()}: {type(error).__name__}: {text}", False, traceback.format_exc())


class NodeError(UserError):
    """Something is wrong with this node, and another one may do."""


def in_folder(order: Train, folder: Path, given: Given | None, tell: Tell, asked: Callable[[], int]) -> None:
    """Train a chunk of a shard in a results folder that this worker sees. Errors as `train`."""
    entry = Entry(folder, order.job)
    with entry.claim_runs(order.first, order.stop) as ours:
        if not ours:
            raise Held
        finished = finished_parts(entry, order.save_policies)
        if any((part.first, part.stop) == (order.first, order.stop) for part in finished):
            return  # by the worker of a driver that has died
        train(order, given, Folder(entry, order), tell, asked)


class Held(Exception):
    """Another worker trains these runs."""


def by_parcel(order: Train, packed: bytes | None, given: Given | None, tell: Tell, asked: Callable[[], int]) -> None:
    """Train a chunk whose results go to the driver. Errors as `train`; NodeError if the disk here is full."""
    try:
        with tempfile.TemporaryDirectory(prefix="rlsuite-") as temporary:
            train(order, given, Parcel(Path(temporary), order, packed, tell), tell, asked)
    except (OSError, CannotSave) as error:
        raise NodeError(f"{error}; on a worker, TMPDIR chooses the folder") from error
