"""What a run costs in memory beside one copy of its dataset, against the number of runs: a table.

    python benchmarks/offline_memory.py [--algorithm td3_bc] [--rows 1000000] [--widths 1 64 256]

The dataset has Hopper's sizes. Given are the memory by the compiler's account and the process' peak,
each row in a process of its own. Speed is in the tables of `make bench`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import NamedTuple

import jax
from peers.suite import still_task

from rlsuite import algorithms
from rlsuite.training import batch, memory
from rlsuite.training.device import describe_device

WIDTHS = (1, 64, 256)


class Row(NamedTuple):
    """What a process found, in bytes."""

    dataset: int
    learning: int
    """of all runs"""
    peak: int
    """of the compiled programs, by the compiler's account"""
    resident: int
    """the process' own peak"""


def measure(algorithm: str, runs: int, rows: int) -> Row:
    """Compile and take one update, in this process."""
    spec = algorithms.get(algorithm)
    task = still_task(spec, rows)
    one_device = jax.local_devices()[:1]
    compiled = batch.compile_programs(spec.make(spec.config()), task, spec.hypers(), runs, 1, one_device)
    programs = compiled.programs
    run_inputs = programs.runs(range(runs), [spec.hypers()] * runs)
    jax.block_until_ready(programs.segment(run_inputs, programs.init(run_inputs), 0, 1, 1, 0))
    return Row(batch.total_bytes(task.dataset), *compiled.memory, memory.peak_bytes())


def main() -> None:
    """Print a row for each number of runs."""
    parser = argparse.ArgumentParser(description="Memory of offline learners.")
    parser.add_argument("--algorithm", default="td3_bc")
    parser.add_argument("--rows", type=int, default=1_000_000, help="transitions in the dataset")
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS), help="numbers of runs")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        print(json.dumps(measure(*json.loads(given.job))))
        print(describe_device())
        return
    print(f"jax {jax.__version__}; {given.algorithm}, {given.rows:,} transitions")
    print("\n| runs | dataset | state of all runs | of one | programs' peak | process' peak |")
    print("|---|---|---|---|---|---|")
    for width in given.widths:
        command = (sys.executable, __file__, "--job", json.dumps([given.algorithm, width, given.rows]))
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        *_, found, device = done.stdout.splitlines()
        row = Row(*json.loads(found))
        cells = (row.dataset, row.learning, row.learning / width, row.peak, row.resident)
        print(f"| {width} | " + " | ".join(f"{size / 1e6:,.1f} MB" for size in cells) + " |", flush=True)
    print(f"\n{device}")


if __name__ == "__main__":
    main()
