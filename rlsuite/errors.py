"""Errors that a user can mend. Imports nothing that takes time, so that the command line answers at once."""

from __future__ import annotations

import signal


class UserError(ValueError):
    """Something a user typed cannot work. The message is one line: the value, what was expected, what to do."""


class Stopped(Exception):
    """A signal has asked this process to leave, and everything is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def check_positive(**values: int) -> None:
    """Raise UserError naming the first of the keyword arguments that is below 1."""
    for name, value in values.items():
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1")
