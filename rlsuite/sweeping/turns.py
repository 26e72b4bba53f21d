"""Which shards of a sweep are finished and kept, which another process runs, and which it is this process' turn to run.

The same for every executor: it asks `Turns` for a shard that it has claimed, and runs it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlsuite.sweeping import kept
from rlsuite.sweeping.entry import Entry
from rlsuite.sweeping.job import Job
from rlsuite.sweeping.settings import Settings
from rlsuite.sweeping.store import Store
from rlsuite.training.progress import duration, quantity, say


class Turns:
    """The shards of a sweep that are neither kept nor run yet.

    With `Settings.retrain`, those that are finished now are set aside, each once it is this process' turn to run it,
    and run again; one that another process has finished meanwhile is kept.

    Raises:
        UserError: the store cannot be written any more, or the package that brings the algorithm or the environment of
            a shard has changed since.
    """

    def __init__(self, jobs: Sequence[Job], store: Store, settings: Settings) -> None:
        entries = [store.open(job) for job in jobs]
        self.waiting = list(entries)
        self.titles = {
            entry: f"[{i}/{len(jobs)}] {entry.job.label} on {entry.job.environment}, {len(entry.job.runs)} runs"
            for i, entry in enumerate(entries, start=1)
        }
        self._store, self._settings = store, settings
        self._stale = {entry: stamp(entry.path) for entry in entries} if settings.retrain else {}
        self._told: set[Entry] = set()
        self._began = time.perf_counter()

    def take(self, entry: Entry, claims: contextlib.ExitStack) -> bool:
        """Whether this process is to run a shard that waits, which it then has claimed for as long as `claims` last.

        Else the shard is kept, or stays waiting where another process runs it.
        """
        again = self._stale.get(entry) is not None and stamp(entry.path) == self._stale[entry]
        done = not again and entry.finished()
        news = kept.news_of(entry) if done else {}
        if done and not news and not entry.partial.exists():
            self._keep(entry)
            self.waiting.remove(entry)
            return False
        if not claims.enter_context(entry.claim()):
            if entry not in self._told:
                say(f"{self.titles[entry]}: {entry.holder()} runs it; left to it")
                self._told.add(entry)
            return False
        self.waiting.remove(entry)
        if again or (self._settings.retrain and kept.begun_with_other_code(entry)):
            entry.set_aside()
        if entry.finished():
            self._keep(entry)
            self._renew(entry, news)
            return False
        say(f"{self.titles[entry]} x {quantity(entry.job.cell.steps)} steps")
        return True

    def end(self) -> None:
        """Say that all shards are there."""
        count = len(self.titles)
        say(f"{count} of {count} shards in {self._store.folder} after {duration(time.perf_counter() - self._began)}")

    def _keep(self, entry: Entry) -> None:
        """Say that a shard is finished."""
        line = kept.check_kept(entry)
        say(f"{self.titles[entry]}: done before, kept")
        if line:
            say(line)

    def _renew(self, entry: Entry, news: dict[str, Any]) -> None:
        """Have the manifest of a finished shard say what is new."""
        if news:
            before = entry.manifest()
            kept.tell_reference(before, news)
            entry.write_manifest({**before, **news})


def stamp(path: Path) -> tuple[int, int] | None:
    """What tells a file from another one that has taken its place; None without one."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns
