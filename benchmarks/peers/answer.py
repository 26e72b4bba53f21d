"""What a peer's program does with a job, whatever it trains with: repeat, keep the fastest, say the answer.

The job and the answer are described in compare.py.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Any, NamedTuple

Job = dict[str, Any]


class Training(NamedTuple):
    """One training of all runs of a job."""

    seconds: float
    """of all updates, and of the evaluation"""
    warmup_seconds: float = 0.0
    """before the first update"""
    score: float | None = None
    """mean return of the evaluation"""


def answer_of(
    job: Job,
    train: Callable[[int], Training],
    versions: dict[str, str],
    compile_seconds: float = 0.0,
    arrangement: str = "one",
    peak_of_device: Callable[[], int] | None = None,
) -> dict[str, Any]:
    """The answer after `train(seed)` for the seeds 0, ..., repeats - 1; the score is that of the first.

    The peak is that of the accelerator where there is one, which `peak_of_device` tells afterwards; else the process'.
    """
    trainings = [train(seed) for seed in range(job["repeats"])]
    fastest = min(trainings, key=lambda training: training.seconds)
    process_peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": fastest.seconds,
        "warmup_seconds": fastest.warmup_seconds,
        "compile_seconds": compile_seconds,
        "run_updates": job["runs"] * job["updates"],
        "peak_bytes": peak_of_device() if peak_of_device else process_peak,
        "score": trainings[0].score,
        "arrangement": arrangement,
        "versions": versions,
    }
