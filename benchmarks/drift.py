"""How far one run's curve drifts with the number of runs beside it: prints the table in docs/scaling.md.

    JAX_NUM_CPU_DEVICES=4 python benchmarks/drift.py

Seeds 0 to 6 train PPO on CartPole and SAC on Pendulum (small networks) in programs of several widths, in one chunk or
in several, on one device and on four. Each is compared with the same seeds in the program of one run on one device.
"""

from __future__ import annotations

import jax
import numpy as np

import envs
from rlsuite import algorithms
from rlsuite.algorithms.off_policy import sac
from rlsuite.algorithms.on_policy import ppo
from rlsuite.core import Task
from rlsuite.training import batch, train

SEEDS = 7
LAYOUTS = ((1, 1), (7, 1), (64, 1), (512, 1), (4, 4), (28, 4), (64, 4), (512, 4))
"""(runs at once, on so many devices); fewer than SEEDS means chunks, more means padding"""
WORK = (
    ("ppo", "gymnax/CartPole-v1", ppo.Config(num_envs=4, num_steps=32, hidden_sizes=(32, 32)), 40),
    ("sac", "gymnax/Pendulum-v1", sac.Config(4, 1, 32, 2_000, 200, (32, 32)), 400),
)
CHECKS = 5


def curves(algorithm: str, environment: str, config: object, updates: int, width: int, devices: int) -> np.ndarray:
    """Mean return of each seed at each evaluation: `[evaluations, SEEDS]`."""
    spec = algorithms.get(algorithm)
    task = Task(envs.make(environment))
    compiled = batch.compile_programs(spec.make(config), task, spec.hypers(), width, 4, jax.local_devices()[:devices])
    points = train.evaluation_points(updates, CHECKS)
    chunks = []
    for first in range(0, SEEDS, width):
        seeds = range(first, min(first + width, SEEDS))
        pauses = train.train(compiled.programs, seeds, [spec.hypers()] * len(seeds), updates, points)
        chunks.append([p.training.evaluation.returns.mean(axis=1) for p in pauses if p.evaluated])
    return np.concatenate(chunks, axis=1)


def main() -> None:
    """Print a row for each algorithm and layout: the largest difference over the seeds at each evaluation."""
    print(f"jax {jax.__version__}, {jax.local_device_count()} devices of kind {jax.local_devices()[0].device_kind}")
    for algorithm, environment, config, updates in WORK:
        print(
            f"\n| {algorithm}, {environment} |"
            + "".join(f" update {p} |" for p in train.evaluation_points(updates, CHECKS))
        )
        print("|---|" + "---|" * (CHECKS + 1))
        reference = None
        for width, devices in LAYOUTS:
            found = curves(algorithm, environment, config, updates, width, devices)
            reference = found if reference is None else reference
            drift = np.abs(found - reference).max(axis=1)
            print(f"| {width} runs at once, {devices} device(s) |" + "".join(f" {d:.3g} |" for d in drift), flush=True)


if __name__ == "__main__":
    main()
