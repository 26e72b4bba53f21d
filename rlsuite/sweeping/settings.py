"""What the user says about how shards run, and signals that end a run: the same for every executor."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

from rlsuite.errors import Stopped, UserError
from rlsuite.training.plan import Limits
from rlsuite.training.progress import say


class Settings(NamedTuple):
    """How shards run; none of it changes what a run computes, but for the order of floating-point sums."""

    limits: Limits = Limits()
    """how many runs train at once, on how many devices, in how much memory"""
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
    """Signals that ask this process to leave, noted while the context lasts. A second one acts as it always does."""

    def __init__(self, numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)) -> None:
        self.number: int | None = None
        self._numbers = numbers
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in self._numbers:
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
