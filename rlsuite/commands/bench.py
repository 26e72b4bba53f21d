"""`rlsuite bench`: how fast training is on this machine and what memory it takes, against the number of runs.

Ratios between the rows of one table mean something; seconds from two machines, or from a busy one, do not.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from rlsuite.commands.bench_row import BENCHMARKS, Row
from rlsuite.commands.execution import add_execution_options, execution_settings
from rlsuite.commands.options import Parser, path, sizes
from rlsuite.errors import MOST_RUNS, UserError
from rlsuite.training import memory
from rlsuite.training.device import prepare_jax
from rlsuite.training.plan import Limits
from rlsuite.training.progress import quantity, say

DEFAULT = ("ppo", "sac", "sac-small")


def main(arguments: list[str]) -> int:
    """Measure some benchmarks at several numbers of runs."""
    parser = Parser(prog="rlsuite bench", description="Speed and memory against the number of runs, on this machine.")
    parser.add_argument(
        "benchmarks",
        nargs="*",
        metavar="BENCHMARK",
        default=DEFAULT,
        help=f"of {', '.join(BENCHMARKS)} ({', '.join(DEFAULT)})",
    )
    parser.add_argument(
        "--runs",
        metavar="LIST",
        type=sizes,
        default=(1, 4, 16, 64, 256, 1024),
        help="numbers of runs (1,4,16,64,256,1024)",
    )
    parser.add_argument("--output", metavar="FILE", type=path, help="write the table there too, as JSON")
    add_execution_options(parser)
    options = parser.parse_args(arguments)
    for name in options.benchmarks:
        if name not in BENCHMARKS:
            raise UserError(f"unknown benchmark '{name}'; there are: {', '.join(BENCHMARKS)}")
    if max(options.runs) > MOST_RUNS:
        raise UserError(f"--runs {max(options.runs)} must be at most {MOST_RUNS}")
    limits = execution_settings(vars(options)).limits
    prepare_jax()
    bench(options.benchmarks, options.runs, limits, Path(options.output) if options.output else None)
    return 0


def bench(names: Sequence[str], widths: Sequence[int], limits: Limits, output: Path | None = None) -> None:
    """Print a row for each (benchmark, number of runs), each measured in a process of its own; write all to `output`.

    The processes are started one after another, so that none disturbs another and each has its own peak memory. This
    one leaves the device alone: JAX would take most of an accelerator's memory for it.
    """
    table: list[dict[str, Any]] = []
    device = ""
    for name in names:
        for runs in widths:
            row, device = in_new_process(name, runs, limits)
            if not table:
                say(f"{device}; jax {jax.__version__}; learning included; {memory.num_cores()} cores")
                say(
                    f"{'':30} {'runs':>5} {'at once':>8} {'updates/s':>10} {'steps/s':>8} {'against 1 run':>14} "
                    f"{'ready':>7} {'planned':>8} {'peak':>8}"
                )
            table.append({"benchmark": name, **row._asdict()})
            at_once = f"{row.devices}x{-(-row.at_once // row.devices)}"
            title = f"{name} {BENCHMARKS[name].environment}"
            say(
                f"{title:30} {runs:5} {at_once:>8} {quantity(row.updates_per_second):>10} "
                f"{quantity(row.steps_per_second):>8} {row.against_one_run:13.2f}x {row.ready_seconds:6.1f}s "
                f"{quantity(row.planned_bytes):>7}B {quantity(row.peak_bytes):>7}B"
            )
    if output is not None:
        output.write_text(json.dumps({"device": device, "jax": jax.__version__, "rows": table}, indent=1))


def in_new_process(name: str, runs: int, limits: Limits) -> tuple[Row, str]:
    """`measure` in a process of its own, and the device in words."""
    job = json.dumps([name, runs, *limits])
    command = (sys.executable, "-m", "rlsuite.commands.bench_row", job, repr(time.time()))
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row, device = json.loads(done.stdout.splitlines()[-1])
    return Row(*row), device
