"""Errors that a user can fix. Imports nothing that takes time, so that the command line answers at once."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable

MOST_INT32 = 2**31 - 1
"""What programs count with."""
MOST_FLOAT32 = 3.4028234663852886e38
"""What programs compute with; beyond lies infinity."""
MOST_RUNS = 1_000_000
"""Runs of a cell, and evaluations of a run: numbers of runs in the names of files have six digits."""


class UserError(ValueError):
    """Something a user typed cannot work. The message is one line: the value, what was expected, what to do."""


class Stopped(Exception):
    """A signal has asked this process to leave, and everything is saved."""

    number: int
    """of the signal"""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return f"{self.signal_name}; all is saved, the same call goes on from here"

    @property
    def signal_name(self) -> str:
        """Such as `SIGINT`."""
        return signal.Signals(self.number).name


def hint(name: str, known: Iterable[str]) -> str:
    """The end of a message on an unknown name: the nearest of those that there are, else all of them."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(names)}"


def check_positive(**values: int) -> None:
    """Raise UserError naming the first of the keyword arguments that is below 1."""
    for name, value in values.items():
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1")


def check_at_most(most: int, **values: int) -> None:
    """Raise UserError naming the first of the keyword arguments that is above `most`."""
    for name, value in values.items():
        if value > most:
            raise UserError(f"{name}={value} must be at most {most}")


def check_updates(steps: int, steps_per_update: int) -> None:
    """Raise UserError unless an update's steps, and the updates of that many steps, can be counted."""
    if steps_per_update > MOST_INT32:
        raise UserError(f"an update takes {steps_per_update} steps and must take at most {MOST_INT32}; make it smaller")
    if -(-steps // steps_per_update) > MOST_INT32:
        raise UserError(f"steps={steps} are more than {MOST_INT32} updates; choose fewer")


def is_float32(value: float) -> bool:
    """Whether the number, a whole one of any size too, is finite in float32."""
    return -MOST_FLOAT32 <= value <= MOST_FLOAT32
