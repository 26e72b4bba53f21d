"""Checks of what a cell holds: each raises UserError with the value, what it must be, and an example."""

from __future__ import annotations

import fnmatch
import math
import re
import sys
from typing import Any

from envs import Reference
from rlsuite.errors import MOST_FLOAT32, MOST_INT32, UserError, is_float32

EXAMPLE_REFERENCE = Reference(0.0, 100.0, "random actions", "somebody's paper")

RANGES = {"*learning_rate": (0.0, math.inf), "discount": (0.0, 1.0), "gae_lambda": (0.0, 1.0), "tau": (0.0, 1.0)}
"""Name of a hyperparameter, of any algorithm -> the least and the most that it may be; others may be any number."""


def check_file_name(what: str, name: str) -> None:
    """Raise UserError unless this can be the name of a file or folder, or a part of one, on any system."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 .,+=()_-]{0,79}", name):
        raise UserError(
            f"{what} {name!r} becomes a file name: at most 80 letters, digits and any of ' .,+=()_-', beginning with "
            "a letter or digit; choose another"
        )


def check_reference(reference: Any) -> None:
    """Raise UserError unless normalised scores can be measured with it, or it is None."""
    if reference is None:
        return
    if not isinstance(reference, Reference):
        raise UserError(f"reference={reference!r} must be a Reference, such as {EXAMPLE_REFERENCE}")
    low, high, *sources = reference
    most = sys.float_info.max
    if not all(isinstance(value, int | float) and -most <= value <= most for value in (low, high)) or low >= high:
        raise UserError(f"reference={reference} must have finite numbers, low below high, such as {EXAMPLE_REFERENCE}")
    if not all(isinstance(source, str) for source in sources):
        raise UserError(f"reference={reference} must say in words where it is from, such as {EXAMPLE_REFERENCE}")


def check_type(name: str, value: Any, example: Any) -> None:
    """Raise UserError unless the value is of the example's type; None is an example of anything.

    Type checkers read the code that makes a cell, but nobody else does, and `steps=1e6` is easily typed.
    """
    if example is not None and type(value) is not type(example):
        raise UserError(f"{name}={value!r} must be of type {type(example).__name__}, such as {example!r}")


def check_hyper(name: str, value: Any, example: float) -> None:
    """Raise UserError unless this is a finite number in float32 too, within RANGES where they have the name."""
    if not isinstance(value, int | float) or not is_float32(value):
        raise UserError(f"{name}={value!r} must be a finite number up to {MOST_FLOAT32:.6g}, such as {example}")
    for pattern, (low, high) in RANGES.items():
        if fnmatch.fnmatchcase(name, pattern) and not low <= value <= high:
            allowed = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise UserError(f"{name}={value!r} must be {allowed}, such as {example}")


def check_range(name: str, value: Any) -> None:
    """Raise UserError for a number of a Config that int32 or float32 cannot hold, alone or in a tuple."""
    for number in value if isinstance(value, tuple) else (value,):
        if type(number) is int and abs(number) > MOST_INT32:
            raise UserError(f"{name}={value!r} must be at most {MOST_INT32}")
        if type(number) is float and not is_float32(number):
            raise UserError(f"{name}={value!r} must be finite, and at most {MOST_FLOAT32:.6g}")


def check_sizes(name: str, value: Any, example: Any) -> None:
    """Raise UserError unless the value is a tuple of sizes, if the example is one. No sizes at all are such a tuple."""
    if not isinstance(example, tuple) or not all(type(size) is int for size in example):
        return
    if not all(type(size) is int and size >= 1 for size in value):
        raise UserError(f"{name}={value!r} must be whole numbers of at least 1, such as {example!r}")
