"""How fast training is on this machine, against the number of runs.

Ratios between the rows of one table mean something; seconds from two machines, or from a busy one, do not.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

import envs
from rlsuite import algorithms, memory
from rlsuite import plan as planning
from rlsuite.algorithms import ppo, sac
from rlsuite.core import Task
from rlsuite.local import describe_device
from rlsuite.plan import Limits
from rlsuite.progress import quantity, say

SEGMENTS = 3
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
DEFAULT = ("ppo", "sac", "sac-small")


class Row(NamedTuple):
    """One line of the table."""

    runs: int
    at_once: int
    devices: int
    updates_per_second: float
    """run-updates of all runs together, each chunk in its turn"""
    steps_per_second: float
    ready_seconds: float
    """from the start of the process to the end of the first update, the choice of a width included"""
    planned_bytes: int
    peak_bytes: int


def measure(name: str, runs: int, limits: Limits, began: float) -> Row:
    """Plan for so many runs and time the middle of their training, in this process.

    `began` is the time of day at which the process was started.
    """
    work = work_of(name, runs)
    plan = planning.choose(work, limits)
    programs = plan.compiled.programs
    at_once = min(plan.lanes, runs)
    on_devices = programs.runs(range(at_once), [work.hypers] * at_once)
    learning = programs.init(on_devices)
    update = TOTAL_UPDATES // 2

    def segment(count: int) -> float:
        nonlocal learning, update
        began = time.perf_counter()
        learning = programs.segment(on_devices, learning, update, update + count, TOTAL_UPDATES, 0)
        jax.block_until_ready(learning)
        update += count
        return time.perf_counter() - began

    segment(1)
    ready = time.time() - began
    count = 1
    while (seconds := segment(count)) < SEGMENT_SECONDS / 4:
        count *= 4
    count = max(1, round(count * SEGMENT_SECONDS / seconds))
    seconds = min(segment(count) for _ in range(SEGMENTS))
    chunks = -(-runs // plan.lanes)
    rate = runs * count / (chunks * seconds)
    steps = rate * work.algorithm.steps_per_update
    return Row(runs, at_once, plan.devices, rate, steps, ready, plan.peak_memory, memory.peak_bytes())


def work_of(name: str, runs: int) -> planning.Work:
    """The benchmark of this name at so many runs."""
    benchmark = BENCHMARKS[name]
    spec = algorithms.get(benchmark.algorithm)
    algorithm = spec.make(benchmark.config)
    task = Task(envs.make(benchmark.environment))
    return planning.Work(
        benchmark.algorithm, benchmark.config, algorithm, task, spec.hypers(), runs, TOTAL_UPDATES, num_episodes=1
    )


def bench(names: Sequence[str], widths: Sequence[int], limits: Limits, output: Path | None = None) -> None:
    """Print a row for each (benchmark, number of runs), each measured in a process of its own; write all to `output`.

    The processes are started one after another, so that none disturbs another and each has its own peak memory.
    """
    say(f"{describe_device()}; jax {jax.__version__}; learning included; {memory.num_cores()} cores")
    say(
        f"{'':30} {'runs':>5} {'at once':>8} {'updates/s':>10} {'steps/s':>8} {'against 1 run':>14} {'ready':>7} "
        f"{'planned':>8} {'peak':>8}"
    )
    table = []
    for name in names:
        alone = None
        for runs in widths:
            row = in_new_process(name, runs, limits)
            table.append({"benchmark": name, **row._asdict()})
            alone = row.updates_per_second if runs == 1 else alone
            against = f"{row.updates_per_second / alone:.2f}x" if alone else ""
            at_once = f"{row.devices}x{-(-row.at_once // row.devices)}"
            title = f"{name} {BENCHMARKS[name].environment}"
            say(
                f"{title:30} {runs:5} {at_once:>8} {quantity(row.updates_per_second):>10} "
                f"{quantity(row.steps_per_second):>8} {against:>14} {row.ready_seconds:6.1f}s "
                f"{quantity(row.planned_bytes):>7}B {quantity(row.peak_bytes):>7}B"
            )
    if output is not None:
        output.write_text(json.dumps({"device": describe_device(), "jax": jax.__version__, "rows": table}, indent=1))


def in_new_process(name: str, runs: int, limits: Limits) -> Row:
    """`measure` in a process of its own."""
    job = json.dumps([name, runs, *limits])
    command = (sys.executable, "-m", "rlsuite.bench", job, repr(time.time()))
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Row(*json.loads(done.stdout.splitlines()[-1]))


def main(job: str, began: str) -> None:
    """One row, as JSON on the last line."""
    from rlsuite.cli import prepare_jax

    prepare_jax()
    name, runs, *limits = json.loads(job)
    print(json.dumps(measure(name, runs, Limits(*limits), float(began))))


if __name__ == "__main__":
    main(*sys.argv[1:])
