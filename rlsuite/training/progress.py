"""What a person sees while a sweep runs: a line that lives in a terminal, and lines that stay, there and in a log. In
a notebook a bar lives in the cell instead."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

import numpy as np

from rlsuite.training import memory, notebook
from rlsuite.training.train import Evaluation, Pause

QUIET_SECONDS = 60.0
CLEAR = "\x1b[K"
"""Clears the rest of a terminal's line."""


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    print(line, flush=True, file=sys.stdout)


@contextlib.contextmanager
def live(line: str) -> Iterator[None]:
    """Show a line in a terminal or a notebook for as long as the context lasts; in a log there is none."""
    if notebook.running():
        in_cell = notebook.Line(line.strip())
        try:
            yield
        finally:
            in_cell.clear()
        return
    shown = sys.stdout.isatty()
    if shown:
        print(line, end="", flush=True)
    try:
        yield
    finally:
        if shown:
            print(f"\r{CLEAR}", end="", flush=True)


def duration(seconds: float) -> str:
    """`4.2s`, `3m05s`, `2h07m`."""
    if seconds < 59.95:  # what rounds to 60.0s is 1m00s
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def quantity(value: float) -> str:
    """`950`, `12.3k`, `4.56M`."""
    for unit in ("", "k", "M", "G"):
        text = f"{value:.3g}"
        if abs(float(text)) < 1000:  # asked of the rounded number: 999.9 is 1k
            return text + unit
        value /= 1000
    return f"{value:.3g}T"


def interquartile_mean(values: np.ndarray) -> float:
    """Mean of the middle half, NaN without a finite value. For the progress line; `analysis` has the statistics."""
    values = np.sort(values[np.isfinite(values)])
    cut = len(values) // 4
    return float(values[cut : len(values) - cut].mean()) if len(values) else float("nan")


class Progress:
    """How far a shard is. In a terminal a live line follows every pause, in a notebook a bar with the same line.

    Lines that stay, in a terminal and in a log: one for each evaluation; where chunks are many, one for each chunk; and
    one after a minute of silence.
    """

    def __init__(self, runs: int, total_steps: int, done: int, diverged: int) -> None:
        """`done` runs were finished before, `diverged` of them."""
        self.runs, self.total_steps = runs, total_steps
        self.done, self.diverged = done, diverged
        self._live = sys.stdout.isatty()
        self._cell = notebook.Line("") if notebook.running() else None
        self._began = time.perf_counter()
        self._said = self._began
        self._run_steps = 0
        """environment steps of all runs together, in this process"""
        self._last: tuple[int, int] | None = None
        """(position of the chunk's first run, its last step)"""

    def pause(self, first: int, count: int, pause: Pause) -> None:
        """The chunk of `count` runs from the `first` has paused."""
        training = pause.training
        evaluation = training.evaluation
        step = training.step
        if self._last is not None and self._last[0] == first:
            self._run_steps += count * (step - self._last[1])
        self._last = first, step
        finished = pause.evaluated and step >= self.total_steps
        diverged = self.diverged + int(evaluation.diverged.sum())
        if finished:
            self.done, self.diverged, step = self.done + count, diverged, 0
        share = (self.done + count * step / self.total_steps) / self.runs
        line = self._line(share, count, evaluation, diverged)
        if self._cell is not None:
            self._cell.show(line.strip(), share)
            return
        now = time.perf_counter()
        if finished or (pause.evaluated and count == self.runs) or now - self._said > QUIET_SECONDS:
            self._said = now
            say(f"\r{CLEAR}{line}" if self._live else line)
        elif self._live:
            print(f"\r{CLEAR}{line}", end="", flush=True)

    @np.errstate(over="ignore", invalid="ignore")  # of runs that diverge
    def _line(self, share: float, count: int, evaluation: Evaluation, diverged: int) -> str:
        line = f"  {share:4.0%}"
        if count < self.runs:
            line += f"  runs {self.done}/{self.runs} done"
        line += f"  step {quantity(evaluation.step):>5}  return IQM {interquartile_mean(evaluation.mean_returns):9.2f}"
        seconds = time.perf_counter() - self._began
        if self._run_steps:
            rate = self._run_steps / seconds
            line += f"  {quantity(rate):>5} steps/s"
            if share < 1:
                line += f"  ETA {duration((1 - share) * self.runs * self.total_steps / rate)}"
        line += f"  peak {quantity(memory.peak_bytes())}B"
        if diverged:
            line += f"  DIVERGED {diverged}/{self.runs}"
        return line
