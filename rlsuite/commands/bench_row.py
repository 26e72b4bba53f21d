"""One row of `rlsuite bench`, in a process of its own, which imports no more than training takes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import jax

import envs
from rlsuite import algorithms
from rlsuite.algorithms.off_policy import sac
from rlsuite.algorithms.on_policy import ppo
from rlsuite.core import Task
from rlsuite.training import memory
from rlsuite.training import plan as planning
from rlsuite.training.device import describe_device, prepare_jax
from rlsuite.training.plan import Limits
from rlsuite.training.train import Programs

SEGMENTS = 5
"""timed segments for each row; the fastest counts, which other work on the machine disturbs least"""
SEGMENT_SECONDS = 2.0
"""about how long each of them takes"""
TOTAL_UPDATES = 1_000_000
"""the budget of which a middle part is timed: long enough that measuring widths is worth it"""


class Benchmark(NamedTuple):
    """What is timed."""

    algorithm: str
    environment: str
    config: Any


BENCHMARKS = {
    "ppo": Benchmark("ppo", "gymnax/CartPole-v1", ppo.Config()),
    "sac": Benchmark("sac", "gymnax/Pendulum-v1", sac.Config(buffer_size=10_000)),
    "sac-small": Benchmark(
        "sac", "gymnax/Pendulum-v1", sac.Config(buffer_size=10_000, batch_size=64, hidden_sizes=(64, 64))
    ),
    "ppo-hopper": Benchmark("ppo", "brax/hopper/spring", ppo.Config()),
    "sac-hopper": Benchmark("sac", "brax/hopper/spring", sac.Config(buffer_size=100_000)),
}


class Row(NamedTuple):
    """One line of the table."""

    runs: int
    at_once: int
    devices: int
    updates_per_second: float
    """run-updates of all runs together, each chunk in its turn"""
    steps_per_second: float
    against_one_run: float
    """run-updates per second, divided by those of one run alone timed in turns with it; 1 for one run"""
    ready_seconds: float
    """from the start of the process to the end of the first update, the choice of a width included"""
    planned_bytes: int
    peak_bytes: int


def measure(name: str, runs: int, limits: Limits, began: float) -> Row:
    """Plan for `runs` runs and time the middle of their training, in this process.

    The program of one run alone is timed in turns with it, because a machine's speed changes from minute to minute.
    `began` is the time of day at which the process was started.
    """
    work = work_of(name, runs)
    plan = planning.choose(work, limits)
    segment = segments_of(plan.compiled.programs, work.hypers, min(plan.lanes, runs))
    segment(1)
    ready = time.time() - began
    count = fitting_count(segment)
    many, against = [segment(count)], [1.0]
    peak = memory.peak_bytes()
    at_once = min(plan.lanes, runs)
    share = runs / (at_once * -(-runs // plan.lanes))  # of the lanes, over all chunks: the last one may not be full
    if runs > 1:
        one = work_of(name, 1)
        alone = segments_of(planning.choose(one, limits._replace(width=None)).compiled.programs, one.hypers, 1)
        alone_count = fitting_count(alone)
        against = []
        for _ in range(SEGMENTS):
            rate_alone = alone_count / alone(alone_count)
            many.append(segment(count))
            against.append(share * at_once * count / many[-1] / rate_alone)
    else:
        many += [segment(count) for _ in range(SEGMENTS - 1)]
    rate = share * at_once * count / min(many)
    steps = rate * work.algorithm.steps_per_update
    return Row(runs, at_once, plan.devices, rate, steps, median(against), ready, plan.peak_memory, peak)


def segments_of(programs: Programs, hypers: Any, at_once: int) -> Callable[[int], float]:
    """A function that trains a number of updates from the middle of the budget on, and returns the seconds taken."""
    on_devices = programs.runs(range(at_once), [hypers] * at_once)
    learning = programs.init(on_devices)
    update = TOTAL_UPDATES // 2

    def segment(count: int) -> float:
        nonlocal learning, update
        began = time.perf_counter()
        learning = programs.segment(on_devices, learning, update, update + count, TOTAL_UPDATES, 0)
        jax.block_until_ready(learning)
        update += count
        return time.perf_counter() - began

    return segment


def fitting_count(segment: Callable[[int], float]) -> int:
    """How many updates take about SEGMENT_SECONDS."""
    count = 1
    segment(count)  # the first touches memory that was never used
    while (seconds := segment(count)) < SEGMENT_SECONDS / 4:
        count *= 4
    return max(1, round(count * SEGMENT_SECONDS / seconds))


def work_of(name: str, runs: int) -> planning.Work:
    """The benchmark of this name at `runs` runs."""
    benchmark = BENCHMARKS[name]
    spec = algorithms.get(benchmark.algorithm)
    algorithm = spec.make(benchmark.config)
    task = Task(envs.make(benchmark.environment))
    return planning.Work(
        benchmark.algorithm, benchmark.config, algorithm, task, spec.hypers(), runs, TOTAL_UPDATES, num_episodes=1
    )


def main(job: str, began: str) -> None:
    """One row and the device, as JSON on the last line."""
    prepare_jax()
    name, runs, *limits = json.loads(job)
    print(json.dumps([measure(name, runs, Limits(*limits), float(began)), describe_device()]))


if __name__ == "__main__":
    main(*sys.argv[1:])
