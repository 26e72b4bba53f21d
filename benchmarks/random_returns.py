"""Mean return of the uniform policy in Gymnasium's MuJoCo tasks: low ends of reference returns in envs/mujoco_tasks.py.

python benchmarks/random_returns.py [EPISODES]
"""

from __future__ import annotations

import sys

import gymnasium
import numpy as np

from envs import mujoco


def main(episodes: int) -> None:
    """Print mean and standard error for each task."""
    for task in mujoco.TASKS:
        env = gymnasium.make(task.removeprefix("mujoco/"))
        env.action_space.seed(0)
        returns = []
        for seed in range(episodes):
            env.reset(seed=seed)
            total, over = 0.0, False
            while not over:
                _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
                total, over = total + float(reward), terminated or truncated
            returns.append(total)
        print(f"{task}: {np.mean(returns):.1f} +- {np.std(returns) / np.sqrt(episodes):.1f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
