"""What Ray costs: one shard by the local executor and by Ray's workers, on the same cores, in turns.

    python benchmarks/cluster_overhead.py [--runs 64] [--width 4] [--repeats 3]

PPO on CartPole in chunks of `--width` runs a core. Each sweep is a process of its own, whose programs are in the
cache. Compared are the whole command, and its part between the ends of the first and of the last chunk. Ray's workers
run at a lower priority than other processes: the machine should do nothing else.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CORES = 2
EXECUTORS = {
    "local": ["--devices", str(CORES)],
    "ray": ["--executor", "ray", "--cpus", "1", "--workers", str(CORES)],
}


def experiment(folder: Path, runs: int, steps: int) -> Path:
    """The file of the sweep."""
    file = folder / "overhead.py"
    file.write_text(
        "from rlsuite import Cell, Experiment\n"
        "EXPERIMENT = Experiment('overhead', 'what an executor costs', "
        f"(Cell('ppo', 'gymnax/CartPole-v1', {steps}, seeds={runs}, evaluations=2, eval_episodes=2),))\n"
    )
    return file


def sweep(file: Path, results: Path, width: int, executor: str) -> tuple[float, float]:
    """(seconds of the whole command, seconds from the end of the first chunk on each core to that of the last)."""
    command = [sys.executable, "-m", "rlsuite.commands.cli", "sweep", str(file), "--results", str(results)]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    began = time.monotonic()
    ended: list[float] = []
    with subprocess.Popen(
        [*command, "--width", str(width), "--no-save-policies", *EXECUTORS[executor]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        printed = []
        for line in process.stdout:
            printed.append(line)
            if re.search(r"runs \d+-\d+ done|\d%  runs", line):
                ended.append(time.monotonic())
    if process.returncode:
        raise SystemExit("".join(printed))
    return time.monotonic() - began, ended[-1] - ended[0 if executor == "local" else CORES - 1]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=64, help="of the shard (%(default)s)")
    parser.add_argument("--steps", type=int, default=65_536, help="of each run (%(default)s)")
    parser.add_argument("--width", type=int, default=4, help="runs of a chunk on one core (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of each executor (%(default)s)")
    options = parser.parse_args()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in EXECUTORS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        file = experiment(folder, options.runs, options.steps)
        for turn in range(options.repeats + 1):
            for name in EXECUTORS:
                found = sweep(file, folder / f"{name}{turn}", options.width, name)
                if turn:  # the first one compiles
                    seconds[name].append(found)
    print("executor  chunks  command  training  chunks/s  run-steps/s")
    for name, found in seconds.items():
        whole, training = (statistics.median(each) for each in zip(*found, strict=True))
        # A chunk of the local executor is on all cores at once; of Ray's workers, each has one of its own.
        lanes = options.width * (CORES if name == "local" else 1)
        chunks, begun = -(-options.runs // lanes), 1 if name == "local" else CORES
        # The clock starts when the first chunk on each core has ended.
        rate = (chunks - begun) / training
        steps = rate * lanes * options.steps
        print(f"{name:<8}  {chunks:>6}  {whole:>6.1f}s  {training:>7.1f}s  {rate:>8.2f}  {steps:>11,.0f}")


if __name__ == "__main__":
    main()
