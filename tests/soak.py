"""Kill a real sweep with SIGKILL at random moments, start it again, and compare its rows with an undisturbed sweep's.

    make soak KILLS=200 SEED=1        (python tests/soak.py --kills 200 --seed 1)

`tests/test_faults.py` does the same with fewer kills and one algorithm.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

EXPERIMENT = """
from rlsuite.algorithms.off_policy import sac
from rlsuite.algorithms.on_policy import ppo
from rlsuite.sweeping.sweep import Cell, Experiment

PPO = ppo.Config(num_envs=2, num_steps=8, num_epochs=1, num_minibatches=2, hidden_sizes=(4,))
SAC = sac.Config(num_envs=2, batch_size=8, buffer_size=64, warmup_steps=8, hidden_sizes=(4,))
CELLS = {
    "ppo": Cell("ppo", "probe/action/continuous", 16 * 600, seeds=5, config=PPO, evaluations=4, eval_episodes=2),
    "sac": Cell("sac", "probe/action/continuous", 2 * 2500, seeds=5, config=SAC, evaluations=3, eval_episodes=2),
}
EXPERIMENT = Experiment("faults", "killed at random", tuple(CELLS[name] for name in ALGORITHMS))
"""
OPTIONS = ("--width", "2", "--devices", "1", "--save-every", "0")
"""Three chunks a shard, and a snapshot at every pause."""


class Outcome(NamedTuple):
    """What a soak has done."""

    kills: int
    sweeps: int
    """that were brought to an end and compared"""
    resumed: int
    """starts that went on from a snapshot"""


PROCESSES = multiprocessing.get_context("forkserver")
# Every sweep is a process of its own, forked from one that has imported all and computed nothing.
PROCESSES.set_forkserver_preload(["rlsuite.commands.cli", "rlsuite.commands.sweep", "analysis.__main__"])


def sweep(arguments: list[str], output: Path) -> None:
    """In a new process: what `rlsuite sweep` does."""
    with open(output, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from rlsuite.commands.cli import main

    sys.exit(main(["sweep", *arguments]))


class Sweep:
    """A sweep that is running."""

    def __init__(self, experiment: Path, results: Path) -> None:
        self.output = results.with_suffix(".log")
        arguments = [str(experiment), "--results", str(results), *OPTIONS]
        self._process = PROCESSES.Process(target=sweep, args=(arguments, self.output))
        self._process.start()

    def ends_within(self, seconds: float | None) -> bool:
        """Wait for its end, which must be a good one, at most so long; kill it if it goes on."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            os.kill(self._process.pid or 0, signal.SIGKILL)
            self._process.join()
            if self._process.exitcode == -signal.SIGKILL:
                return False
        if self._process.exitcode:
            raise AssertionError(f"a sweep ended with {self._process.exitcode}:\n{self.output.read_text()}")
        return True


def rows(results: Path) -> dict[str, pa.Table]:
    """Shard -> all columns but the clock's. Asserts that nothing but finished shards is left."""
    folder = results / "faults"
    results_and_report = (".parquet", ".arrow", ".json", ".html", ".csv", ".tex", ".png", ".pdf")
    left = sorted(path.name for path in folder.iterdir() if path.suffix not in results_and_report)
    assert not left, left
    tables = {path.stem: pq.read_table(path).drop_columns(["wall_seconds"]) for path in folder.glob("*.parquet")}
    for name, table in tables.items():
        pairs = pc.count_distinct(pc.add(pc.multiply(table["update"], 1000), table["run"])).as_py()
        assert pairs == table.num_rows, f"{name} has rows twice"
    return tables


def soak(kills: int, seed: int, folder: Path, algorithms: Sequence[str] = ("ppo", "sac")) -> Outcome:
    """Kill `kills` times, in as many sweeps as that takes. Raises AssertionError where a row differs."""
    experiment = folder / "faults.py"
    experiment.write_text(f"ALGORITHMS = {tuple(algorithms)}\n{EXPERIMENT}")
    Sweep(experiment, folder / "warm").ends_within(None)  # compiles
    began = time.perf_counter()
    Sweep(experiment, folder / "undisturbed").ends_within(None)
    whole = time.perf_counter() - began
    expected = rows(folder / "undisturbed")

    chance = random.Random(seed)
    done = sweeps = resumed = 0
    while done < kills:
        results = folder / f"killed{sweeps}"
        # Anywhere in the life of a sweep: in an import, in a compile, in a segment, while it saves, while it merges.
        while not Sweep(experiment, results).ends_within(chance.uniform(0.0, whole) if done < kills else None):
            done += 1
            whole *= 1.05
        whole *= 0.7  # it came to its end before its moment: the machine may have become faster, or it had little left
        found = rows(results)
        assert found.keys() == expected.keys()
        for name, table in found.items():
            assert table.equals(expected[name]), f"{results}: {name} differs from the undisturbed sweep"
        resumed += results.with_suffix(".log").read_text().count("go on from update")
        sweeps += 1
    return Outcome(done, sweeps, resumed)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="how many times to kill (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = soak(options.kills, options.seed, Path(folder))
    print(
        f"{outcome.kills} kills in {outcome.sweeps} sweeps, {outcome.resumed} resumed from a snapshot: "
        "every row is that of the undisturbed sweep"
    )


if __name__ == "__main__":
    main()
