"""How far a claimed shard is, chunk by chunk, and where one goes on: the same for every executor."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rlsuite.sweeping import chunk, kept
from rlsuite.sweeping.chunk import Given
from rlsuite.sweeping.entry import Entry
from rlsuite.sweeping.rows import Part
from rlsuite.training.checkpoint import Snapshots
from rlsuite.training.progress import say
from rlsuite.training.train import Learning, Training


class Layout(NamedTuple):
    """How many runs train at once, which a shard that goes on keeps."""

    width: int
    """on each device"""
    devices: int

    @property
    def lanes(self) -> int:
        """Runs of a chunk."""
        return self.width * self.devices

    def on(self, devices: int) -> Layout:
        """The same runs at once, on as many of the devices that there are as divide them evenly."""
        used = max(n for n in range(1, devices + 1) if self.lanes % n == 0)
        return Layout(self.lanes // used, used)


def layout_of(entry: Entry, width: int | None) -> Layout | None:
    """The one that a shard was begun with; None if it was not. `width` is what the user wants, who is told."""
    layout = entry.layout()
    if layout is None:
        return None
    if width not in (None, layout["width"]):
        begun = layout["width"]
        say(f"  goes on with {begun} runs a device, as it was begun; --width {width} is for shards begun later")
    return Layout(**layout)


def opened(entry: Entry) -> Given | None:
    """The dataset of a shard that this process has claimed, once it is clear that the shard may go on if it was begun.

    Raises:
        UserError: as `chunk.given_to`, `kept.check_resumed` and `kept.check_checksum`.
    """
    begun = entry.begun()
    if begun:
        kept.check_resumed(entry)
    given = chunk.given_to(entry.job)
    if given and begun:
        kept.check_checksum(entry, given.dataset, finished=False)
    return given


def finished_parts(entry: Entry, policies: bool) -> list[Part]:
    """The last part of each chunk all of whose evaluations are there, and `policies` if they are saved, in the order of
    their runs."""
    found: dict[tuple[int, int], set[int]] = {}
    for part in entry.parts():
        found.setdefault((part.first, part.stop), set()).add(part.update)
    points = entry.job.points
    whole = sorted(Part(*runs, points[-1]) for runs, updates in found.items() if updates.issuperset(points))
    if not policies:
        return whole
    learned = entry.learned()
    return [part for part in whole if (part.first, part.stop) in learned]


def runs_in(parts: Sequence[Part]) -> int:
    """How many runs these parts of different runs have."""
    return sum(part.stop - part.first for part in parts)


def diverged_in(entry: Entry, parts: Iterable[Part]) -> int:
    """How many runs of these parts have diverged."""
    return sum(int(entry.read(part)["diverged"].to_numpy().sum()) for part in parts)


def seconds_of(entry: Entry, part: Part) -> float:
    """How long the chunk of this part had trained when it was evaluated."""
    return float(entry.read(part)["wall_seconds"][0].as_py())


def first_gap(taken: Iterable[tuple[int, ...]], num_runs: int) -> tuple[int, int] | None:
    """The first range of runs that are in none of those `taken`, each (first, stop, ...) and in order; None if there is
    none."""
    first = 0
    for begin, stop, *_ in taken:
        if begin > first:
            return first, begin
        first = stop
    return (first, num_runs) if first < num_runs else None


def updates_of(entry: Entry, first: int, stop: int) -> set[int]:
    """Update counts at which there are rows of the runs first, ..., stop - 1 as one chunk."""
    return {part.update for part in entry.parts() if (part.first, part.stop) == (first, stop)}


def resumed(
    snapshots: Snapshots, learning: Learning, runs: tuple[int, int], points: Sequence[int], written: set[int]
) -> Training | None:
    """Where the `runs` (first, stop) go on: at their newest snapshot, if all evaluations up to it are `written`.

    `points` are the update counts at which they are evaluated, `learning` the shapes of their state.
    """
    snapshot, damaged = snapshots.newest(learning)
    for line in damaged:
        say(f"  {line}; taking the one before")
    if snapshot is None or (snapshot.first, snapshot.stop) != runs:
        return None
    training = snapshot.training
    if not written.issuperset(point for point in points if point <= training.update):
        return None
    say(f"  runs {runs[0]}-{runs[1] - 1} go on from update {training.update} of {points[-1]}")
    return training


def resumed_here(entry: Entry, snapshots: Snapshots, learning: Learning, first: int, stop: int) -> Training | None:
    """Where the runs first, ..., stop - 1 of a shard in a folder that this process sees go on. Where they start over,
    what is left of their rows is removed."""
    arguments = (learning, (first, stop), entry.job.points, updates_of(entry, first, stop))
    training = resumed(snapshots, *arguments)
    if training is None and entry.old_snapshots().exists():
        with contextlib.closing(Snapshots(entry.old_snapshots())) as old:
            training = resumed(old, *arguments)
    if training is None:
        entry.forget(first, stop)
    return training
