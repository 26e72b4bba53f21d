"""What a person sees while a sweep runs: one line an evaluation, the same in a terminal and in a log file."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

from rlsuite.sweep import Shard
from rlsuite.train import Evaluation

Log = Callable[[str], None]


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    print(line, flush=True, file=sys.stdout)


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


def evaluation_line(shard: Shard, evaluation: Evaluation, total_steps: int) -> str:
    """How far the shard is, what its runs score, how fast it goes and how long it will take."""
    runs, seconds = len(shard.runs), evaluation.wall_seconds
    line = (
        f"  {evaluation.step / total_steps:4.0%}  step {quantity(evaluation.step):>5}"
        f"  return IQM {interquartile_mean(evaluation.returns.mean(axis=1)):9.2f}"
    )
    if evaluation.step:
        line += f"  {quantity(evaluation.step * runs / seconds):>5} steps/s"
        if evaluation.step < total_steps:
            line += f"  ETA {duration(seconds * (total_steps / evaluation.step - 1))}"
    if evaluation.diverged.any():
        line += f"  DIVERGED {int(evaluation.diverged.sum())}/{runs}"
    return line
