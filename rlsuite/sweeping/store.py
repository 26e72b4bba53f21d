"""A folder of results: one shard for each job, see `entry.py`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlsuite.sweeping.entry import Entry
from rlsuite.sweeping.job import Job
from rlsuite.training.device import check_writable


class Store:
    """One experiment's folder.

    Raises:
        UserError: the folder cannot be made or written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        check_writable(self.folder, "results", "--results")

    def open(self, job: Job) -> Entry:
        """What the folder holds of a job, now and whenever it is asked."""
        return Entry(self.folder, job)

    def manifests(self) -> dict[str, dict[str, Any]]:
        """All manifests that can be read, by the name of the shard."""
        found = {}
        for path in sorted(self.folder.glob("[!.]*.json")):
            with contextlib.suppress(OSError, ValueError):
                found[path.stem] = json.loads(path.read_text())
        return found

    def others(self, jobs: Iterable[Job]) -> list[str]:
        """Names of all other shards that the folder holds, running or finished."""
        there = {path.stem for pattern in ("[!.]*.parquet", "[!.]*.partial") for path in self.folder.glob(pattern)}
        return sorted(there - {job.name for job in jobs})
