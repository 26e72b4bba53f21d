"""This suite's side of the table that compare.py makes: trains what a JSON job says and prints how long it took.

    cd docs; python -m peers.suite '{"algorithm": "ppo", "environment": "CartPole-v1", "runs": 16, ...}'

Planned, compiled and cut into chunks as `rlsuite run` does it. The job and the answer are described in compare.py.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from peers.transitions import ACTION_DIM, EPISODE, OBS_DIM, followers, smooth

import envs
from envs import datasets
from envs.core import Box, EpisodeState, TimeStep
from envs.datasets import Dataset, Records
from rlsuite import algorithms
from rlsuite.commands.bench_row import TOTAL_UPDATES
from rlsuite.core import AlgorithmSpec, Task
from rlsuite.training import memory
from rlsuite.training import plan as planning
from rlsuite.training.device import describe_device, prepare_jax
from rlsuite.training.plan import Limits


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


def dataset_of(obs: np.ndarray, action: np.ndarray) -> Dataset:
    """Episodes of `EPISODE` transitions `[rows, ...]`, truncated at their ends; rewards are random numbers."""
    rows = len(obs)
    episode, after = np.arange(rows) // EPISODE, followers(rows)
    records = Records(
        obs=obs,
        action=action,
        reward=np.random.default_rng(1).normal(size=rows).astype(np.float32),
        next_obs=obs[after],
        next_action=action[after],
        terminated=np.zeros(rows, bool),
        truncated=after == np.arange(rows),
        episode=episode,
        episode_return=np.zeros(episode[-1] + 1),
        complete=np.ones(episode[-1] + 1, bool),
    )
    return datasets.build("still", records, Still().action_space, source="benchmarks/peers/transitions.py")


def still_task(spec: AlgorithmSpec, rows: int) -> Task:
    """`Still`, with so many transitions along smooth trajectories, as this algorithm wants them."""
    return Task(Still(), spec.prepare(dataset_of(*smooth(rows))))


def work_of(job: dict[str, Any]) -> planning.Work:
    """What the job trains: on a task of gymnax, or offline on `still_task`."""
    spec = algorithms.get(job["algorithm"])
    sizes = {name: tuple(value) if isinstance(value, list) else value for name, value in job["config"].items()}
    config, hypers = spec.config(**sizes), spec.hypers(**job["hypers"])
    task = Task(envs.make(f"gymnax/{job['environment']}")) if job["environment"] else still_task(spec, job["rows"])
    algorithm = spec.make(config)
    episodes = max(job["eval_episodes"], 1)
    return planning.Work(job["algorithm"], config, algorithm, task, hypers, job["runs"], TOTAL_UPDATES, episodes)


def fitting(train_all: Callable[[int], tuple[float, Any]], wanted: float) -> int:
    """How many updates take about so many seconds; even, so that there are as many with a delayed step as without."""
    train_all(2)  # the first touches memory that was never used
    least, _ = train_all(2)  # nearly all of it in the evaluation, which does not grow
    count = 4
    while (seconds := train_all(count)[0]) < wanted / 4:
        count *= 2
    each = max(seconds - least, 0.01 * seconds) / (count - 2)
    return max(2, 2 * round((wanted - least) / each / 2))


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Train all runs of the job, `repeats` times."""
    began = time.perf_counter()
    work = work_of(job)
    # What was measured before is used and kept, as in every other command.
    plan = planning.choose(work, Limits(width=job["width"]))
    programs = plan.compiled.programs
    ready = time.perf_counter() - began
    warmup = -(-job["config"].get("warmup_steps", 0) // work.algorithm.steps_per_update)

    def train_all(count: int) -> tuple[float, list[float]]:
        """Seconds and scores. Online with initialisation, which Rejax does not show apart; offline without, as there
        PyTorch's networks are made before its clock starts."""
        updates = warmup + count
        seconds, scores = 0.0, []
        for first in range(0, job["runs"], plan.lanes):
            seeds = range(first, min(first + plan.lanes, job["runs"]))
            runs = programs.runs(seeds, [work.hypers] * len(seeds))
            began = time.perf_counter()
            learning = programs.init(runs)
            if not job["environment"]:
                jax.block_until_ready(learning)
                began = time.perf_counter()
            learning = programs.segment(runs, learning, 0, updates, updates, 0)
            if job["eval_episodes"]:
                checked = programs.checkup(runs, learning, updates, updates, np.zeros(programs.width, bool))
                scores += np.mean(checked.episodes.returns[: len(seeds)], axis=1).tolist()
            jax.block_until_ready(learning)
            seconds += time.perf_counter() - began
        return seconds, scores

    count = job.get("updates") or fitting(train_all, job["seconds"])
    timed = [train_all(count) for _ in range(job["repeats"])]
    scores = timed[0][1]
    return {
        "seconds": min(seconds for seconds, _ in timed),
        "compile_seconds": ready,
        "updates": count,
        "run_updates": job["runs"] * count,
        "peak_bytes": memory.peak_bytes(),
        "score": float(np.mean(scores)) if scores else None,
        "arrangement": f"{plan.devices} x {plan.width}",
        "versions": {"jax": jax.__version__, "device": describe_device()},
    }


if __name__ == "__main__":
    prepare_jax()
    print(json.dumps(measure(json.loads(sys.argv[1]))))
