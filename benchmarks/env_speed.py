"""Steps per second of environments in batch, against C MuJoCo, as a table.

    python benchmarks/env_speed.py [--envs 1,64,1024] [--without-c] [ENVIRONMENT ...]

Actions are random and drawn beforehand; episodes are not reset, so that the numbers are those of the simulators. For a
MuJoCo task, C MuJoCo is timed beside it: in Gymnasium's vector environment, and in the threads that evaluations use.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import jax
import numpy as np

import envs
from envs.core import Box
from envs.mujoco import TASKS, Mujoco
from envs.mujoco_c import Simulator
from rlsuite.training import memory

SECONDS = 2.0
"""how long each number is measured, at least"""
DEFAULT = (
    *(name for name in sorted(TASKS) if name.endswith("v5")),
    *(f"brax/hopper/{backend}" for backend in ("spring", "positional", "generalized")),
    "playground/HopperHop",
    "gymnax/Pendulum-v1",
)


def rate(step: Callable[[int], Any], num_envs: int) -> float:
    """Steps per second of all environments together; `step` takes the number of the call."""
    step(0)
    step(1)
    calls, began = 0, time.perf_counter()
    while (seconds := time.perf_counter() - began) < SECONDS:
        step(calls)
        calls += 1
    return calls * num_envs / seconds


def some_actions(env: Any, num_envs: int) -> np.ndarray:
    """`[16, num_envs, ...]`, taken in turns."""
    rng = np.random.default_rng(0)
    if isinstance(env.action_space, Box):
        low, high = np.float32(env.action_space.low), np.float32(env.action_space.high)
        return rng.uniform(low, high, (16, num_envs, len(low))).astype(np.float32)
    return rng.integers(env.action_space.n, size=(16, num_envs)).astype(np.int32)


def compiled(env: Any, num_envs: int) -> float:
    """The environment in one compiled program, as training runs it."""
    keys = jax.random.split(jax.random.key(0), num_envs)
    actions = some_actions(env, num_envs)
    state, _ = jax.jit(jax.vmap(env.reset))(keys)
    step = jax.jit(jax.vmap(env.step), donate_argnums=1)

    def once(call: int) -> None:
        nonlocal state
        state, shown = step(keys, state, actions[call % 16])
        jax.block_until_ready(shown)

    return rate(once, num_envs)


def in_gymnasium(env: Mujoco, num_envs: int) -> float:
    """Gymnasium's vector environment, which steps one environment after another."""
    name = env.id.removeprefix("mujoco/")
    actions = some_actions(env, num_envs)
    vector = gymnasium.make_vec(name, num_envs=num_envs, vectorization_mode="sync")
    vector.reset(seed=0)
    found = rate(lambda call: vector.step(actions[call % 16]), num_envs)
    vector.close()
    return found


def in_threads(env: Mujoco, num_envs: int) -> float:
    """C MuJoCo as evaluations use it."""
    model, everyone = env.template.mj_model, np.ones(num_envs, bool)
    simulator = Simulator(env.template, num_envs, memory.num_cores())
    actions = some_actions(env, num_envs)
    simulator.reset(np.tile(model.qpos0, (num_envs, 1)), np.zeros((num_envs, model.nv)), everyone)
    return rate(lambda call: simulator.step(actions[call % 16], everyone), num_envs)


def main() -> None:
    """Print a row for each environment and way to run it."""
    parser = argparse.ArgumentParser(description="Steps per second of environments in batch.")
    parser.add_argument("environments", nargs="*", default=DEFAULT)
    parser.add_argument("--envs", default="1,64,1024")
    parser.add_argument("--without-c", action="store_true", help="leave out C MuJoCo, which takes long to make so many")
    options = parser.parse_args()
    numbers = [int(number) for number in options.envs.split(",")]
    warnings.simplefilter("ignore")
    print(f"jax {jax.__version__}, {len(jax.devices())} x {jax.devices()[0].device_kind}")
    print("| environment | run by |" + "".join(f" {number} |" for number in numbers))
    print("|---|---|" + "---|" * len(numbers))
    for env_id in options.environments:
        env = envs.make(env_id)
        ways: list[tuple[str, Callable[[Any, int], float]]] = [(envs.info(env_id).backend, compiled)]
        if isinstance(env, Mujoco) and not options.without_c:
            ways += [("Gymnasium", in_gymnasium), ("C MuJoCo in threads", in_threads)]
        for name, way in ways:
            print(f"| {env_id} | {name} |" + "".join(f" {way(env, number):.3g} |" for number in numbers), flush=True)


if __name__ == "__main__":
    main()
