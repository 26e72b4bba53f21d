"""How fast training is on this machine, against the number of runs in the program.

Ratios between the rows of one table mean something; seconds from two machines, or from a busy one, do not.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

import envs
from rlsuite import algorithms, batch
from rlsuite.algorithms import ppo, sac
from rlsuite.core import Task
from rlsuite.local import describe_device
from rlsuite.progress import quantity, say

SEGMENTS = 3
"""timed segments for each row; the fastest counts, which other work on the machine disturbs least"""


class Work(NamedTuple):
    """What is timed."""

    algorithm: str
    environment: str
    config: Any
    first: int
    """update at which timing starts: past the warm-up, where every update learns"""
    updates: int
    """updates in one timed segment"""


WORK = (
    Work("ppo", "gymnax/CartPole-v1", ppo.Config(), first=0, updates=2),
    Work("sac", "gymnax/Pendulum-v1", sac.Config(buffer_size=10_000), first=5_000, updates=50),
)


def seconds_per_segment(work: Work, runs: int) -> tuple[float, float, int]:
    """Seconds of the fastest segment, seconds of compiling, and environment steps of all runs in one segment."""
    spec = algorithms.get(work.algorithm)
    algorithm = spec.make(work.config)
    programs, compile_seconds = batch.compile_programs(
        algorithm, Task(envs.make(work.environment)), range(runs), [spec.hypers()] * runs, 1
    )
    state = programs.init()
    times = []
    for i in range(SEGMENTS + 1):  # the first one warms up
        first = work.first + i * work.updates
        began = time.perf_counter()
        state = jax.block_until_ready(programs.segment(state, first, first + work.updates, 1_000_000))[0]
        times.append(time.perf_counter() - began)
    return min(times[1:]), compile_seconds, runs * work.updates * algorithm.steps_per_update


def bench(widths: Sequence[int]) -> None:
    """Print a row for each (work, number of runs): steps/s of all runs together, and how many times one run's."""
    say(f"{describe_device()}; jax {jax.__version__}; default networks and batches; learning included, compiling apart")
    say(f"{'':28} {'runs':>5} {'steps/s':>9} {'against 1 run':>14} {'compile':>8}")
    for work in WORK:
        alone = None
        for runs in widths:
            seconds, compile_seconds, steps = seconds_per_segment(work, runs)
            rate = steps / seconds
            alone = alone or rate / runs
            title = f"{work.algorithm} {work.environment}"
            say(f"{title:28} {runs:5} {quantity(rate):>9} {rate / alone:13.2f}x {compile_seconds:7.1f}s")
