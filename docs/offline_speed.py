"""How fast offline learners train, against the number of runs, and what a run costs in memory: two tables.

    python docs/offline_speed.py [--torch-python PYTHON] [--hidden-sizes 256 256] [ALGORITHM ...]
    python docs/offline_speed.py --memory

The dataset is random numbers of Hopper's sizes. The first table has run-updates per second of many runs in one program
beside the gradient steps of one run in one PyTorch process (peers/torch_offline.py), all on this machine. PyTorch may
be installed in an environment of its own, whose interpreter `--torch-python` names. The second table has the memory of
TD3+BC by the compiler's account and by the process' peak, on a million transitions unless told otherwise. Each row is
measured in a process of its own, one after another. Compare the rows of one table; a busy machine spoils them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs import datasets
from envs.core import Box, EpisodeState, TimeStep
from envs.datasets import Dataset, Records
from rlsuite import algorithms, batch, memory
from rlsuite.bench import SEGMENT_SECONDS, SEGMENTS, TOTAL_UPDATES, fitting_count
from rlsuite.core import Task
from rlsuite.local import describe_device
from rlsuite.progress import quantity

OBS_DIM, ACTION_DIM = 11, 3
EPISODE = 1_000
ALGORITHMS = ("td3_bc", "iql", "prdc", "a2pr")
WIDTHS = (1, 16, 256)
MEMORY_WIDTHS = (1, 64, 256)
TORCH_TRIAL = 20
"""gradient steps that tell how fast PyTorch is"""


@struct.dataclass
class Still:
    """A task of Hopper's sizes in which nothing happens: only gradient steps are timed."""

    id: str = struct.field(pytree_node=False, default="still")
    max_episode_steps: int = struct.field(pytree_node=False, default=1)

    @property
    def obs_dim(self) -> int:
        return OBS_DIM

    @property
    def action_space(self) -> Box:
        return Box((-1.0,) * ACTION_DIM, (1.0,) * ACTION_DIM)

    def reset(self, key: jax.Array) -> tuple[EpisodeState, jax.Array]:
        obs = jnp.zeros(OBS_DIM)
        return EpisodeState(obs, jnp.int32(0)), obs

    def step(self, key: jax.Array, state: EpisodeState, action: jax.Array) -> tuple[EpisodeState, TimeStep]:
        shown = TimeStep(state.physics, jnp.float32(0.0), jnp.bool_(False), jnp.bool_(True))
        return EpisodeState(state.physics, state.steps + 1), shown


def random_dataset(rows: int) -> Dataset:
    """Episodes of `EPISODE` random transitions, truncated at their ends."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    def action() -> np.ndarray:
        return rng.uniform(-1.0, 1.0, (rows, ACTION_DIM)).astype(np.float32)

    episode = np.arange(rows) // EPISODE
    records = Records(
        obs=normal(rows, OBS_DIM),
        action=action(),
        reward=normal(rows),
        next_obs=normal(rows, OBS_DIM),
        next_action=action(),
        terminated=np.zeros(rows, bool),
        truncated=np.diff(episode, append=-1) != 0,
        episode=episode,
        episode_return=np.zeros(episode[-1] + 1),
    )
    return datasets.build("random", records, Still().action_space, source="random numbers")


class Job(NamedTuple):
    """One row, for a process of its own."""

    algorithm: str
    runs: int
    rows: int
    batch_size: int
    hidden_sizes: list[int]
    """of all networks; empty means those of the algorithm's own `Config`"""
    timed: bool
    """whether to time segments; one update is enough to see the memory"""


class Row(NamedTuple):
    """What a process found."""

    updates_per_second: float
    dataset_bytes: int
    learning_bytes: int
    peak_bytes: int
    """of the compiled programs, by the compiler's account"""
    resident_bytes: int
    """the process' own peak"""


def config_of(job: Job) -> Any:
    """The algorithm's `Config` with the sizes of the job."""
    spec = algorithms.get(job.algorithm)
    fields = [field.name for field in dataclasses.fields(spec.config)]
    sizes = {name: tuple(job.hidden_sizes) for name in fields if name.endswith("hidden_sizes") and job.hidden_sizes}
    return spec.config(batch_size=job.batch_size, **sizes)


def measure(job: Job) -> Row:
    """Compile, learn, and time the middle of a long training, in this process."""
    spec = algorithms.get(job.algorithm)
    task = Task(Still(), spec.prepare(random_dataset(job.rows)))
    one_device = jax.local_devices()[:1]
    compiled = batch.compile_programs(spec.make(config_of(job)), task, spec.hypers(), job.runs, 1, one_device)
    programs = compiled.programs
    runs = programs.runs(range(job.runs), [spec.hypers()] * job.runs)
    learning, update = programs.init(runs), TOTAL_UPDATES // 2

    def segment(count: int) -> float:
        nonlocal learning, update
        began = time.perf_counter()
        learning = programs.segment(runs, learning, update, update + count, TOTAL_UPDATES, 0)
        jax.block_until_ready(learning)
        update += count
        return time.perf_counter() - began

    rate = 0.0
    if job.timed:
        count = 2 * max(1, round(fitting_count(segment) / 2))  # as many with a delayed actor step as without
        rate = job.runs * count / min(segment(count) for _ in range(SEGMENTS))
    else:
        segment(1)
    return Row(rate, batch.total_bytes(task.dataset), *compiled.memory, memory.peak_bytes())


def in_new_process(job: Job) -> Row:
    """`measure` in a process of its own."""
    command = (sys.executable, __file__, "--job", json.dumps(job))
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Row(*json.loads(done.stdout.splitlines()[-1]))


def with_torch(python: str, job: Job, threads: int) -> str:
    """The PyTorch side of a job: its updates per second, or what is missing."""
    sizes, hypers = dataclasses.asdict(config_of(job)), algorithms.get(job.algorithm).hypers()._asdict()
    asked = {"algorithm": job.algorithm, "config": sizes, "hypers": hypers, "rows": job.rows, "threads": threads}
    updates, seconds = TORCH_TRIAL, SEGMENT_SECONDS
    # First a few steps, to see how many fill a segment.
    for repeats in (1, SEGMENTS):
        updates = max(2, round(updates * SEGMENT_SECONDS / seconds))
        asked |= {"runs": 1, "updates": updates, "repeats": repeats, "eval_episodes": 0}
        command = (python, str(Path(__file__).parent / "peers" / "torch_offline.py"), json.dumps(asked))
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            return (done.stderr.strip().splitlines() or ["it failed"])[-1]
        seconds = json.loads(done.stdout.splitlines()[-1])["seconds"]
    return quantity(updates / seconds)


def print_speed(names: list[str], widths: list[int], torch_python: str, job: Job) -> None:
    """A row for each algorithm: run-updates per second at each width, and PyTorch's with one thread and with all."""
    cores = memory.num_cores()
    titles = [f"{width} run{'s' * (width > 1)}" for width in widths]
    print(
        f"{describe_device()}, {cores} cores; jax {jax.__version__}; {job.rows:,} transitions, run-updates per second"
    )
    print("\n| | " + " | ".join([*titles, "PyTorch, 1 thread", f"PyTorch, {cores} threads"]) + " |")
    print("|---" * (len(widths) + 3) + "|")
    for name in names:
        rows = [quantity(in_new_process(job._replace(algorithm=name, runs=n)).updates_per_second) for n in widths]
        beside = [with_torch(torch_python, job._replace(algorithm=name), threads) for threads in (1, cores)]
        print(f"| {name} | " + " | ".join([*rows, *beside]) + " |", flush=True)


def print_memory(widths: list[int], job: Job) -> None:
    """A row for each number of runs of TD3+BC, in bytes."""
    print(f"{describe_device()}; jax {jax.__version__}; td3_bc, {job.rows:,} transitions")
    print("\n| runs | dataset | state of all runs | of one | programs' peak | process' peak |")
    print("|---|---|---|---|---|---|")
    for width in widths:
        row = in_new_process(job._replace(algorithm="td3_bc", runs=width, timed=False))
        sizes = (row.dataset_bytes, row.learning_bytes, row.learning_bytes / width, row.peak_bytes, row.resident_bytes)
        print(f"| {width} | " + " | ".join(f"{size / 1e6:,.1f} MB" for size in sizes) + " |", flush=True)


def main() -> None:
    """Print the table that was asked for."""
    parser = argparse.ArgumentParser(description="Speed and memory of offline learners.")
    parser.add_argument("algorithms", nargs="*", default=[name for name in ALGORITHMS if name in algorithms.REGISTRY])
    parser.add_argument("--memory", action="store_true", help="the table of memory instead of that of speed")
    parser.add_argument("--rows", type=int, help="transitions in the dataset (100,000; for memory 1,000,000)")
    parser.add_argument("--widths", type=int, nargs="+", help=f"numbers of runs ({WIDTHS}; for memory {MEMORY_WIDTHS})")
    parser.add_argument("--hidden-sizes", type=int, nargs="+", default=[], help="of all networks; else each one's own")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter that has torch and scipy")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        print(json.dumps(measure(Job(*json.loads(given.job)))))
        return
    rows = given.rows or (1_000_000 if given.memory else 100_000)
    job = Job("td3_bc", 1, rows, given.batch_size, given.hidden_sizes, True)
    if given.memory:
        print_memory(given.widths or list(MEMORY_WIDTHS), job)
    else:
        print_speed(given.algorithms, given.widths or list(WIDTHS), given.torch_python, job)


if __name__ == "__main__":
    main()
