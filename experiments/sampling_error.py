"""Do PROPS and ROS fill a buffer that looks more on-policy than on-policy sampling does? 64 seeds.

The target policy is a random one that never learns, and differs between seeds: its learning rate is 0, and nothing
that it sees is normalised. The three ways to collect differ in nothing else. What counts is the metric:
`rlsuite report results/sampling_error --metric sampling_error`.
"""

from typing import Any

from rlsuite.algorithms.on_policy import ppo_buffer, props, ros
from rlsuite.sweeping.sweep import Cell, Experiment

UPDATES = 40
NUM_ENVS, NUM_STEPS, INTERVAL = 4, 32, 8
# A buffer of 1024 transitions, of which each round of collecting replaces 32.
SHARED: dict[str, Any] = {
    "num_envs": NUM_ENVS,
    "num_steps": NUM_STEPS,
    "buffer_batches": 8,
    "num_epochs": 1,
    "num_minibatches": 8,
    "hidden_sizes": (32, 32),
    "normalize_obs": False,
    "normalize_reward": False,
    "sampling_error_epochs": 1000,
    "sampling_error_interval": INTERVAL,
}
ROS_STEP_SIZES = {"gymnax/Pendulum-v1": 0.5, "gymnax/CartPole-v1": 5.0}
"""The best of those tried on seeds 1000 to 1015: 0.1, 0.2, 0.3, 0.5, 1, 10 on Pendulum and 1, 5, 20 on CartPole."""

EXPERIMENT = Experiment(
    name="sampling_error",
    description="how on-policy the data of PROPS, ROS and on-policy sampling is, for a policy that stays as it is",
    cells=tuple(
        Cell(
            algorithm,
            environment,
            label=label,
            steps=UPDATES * NUM_ENVS * NUM_STEPS,
            seeds=64,
            config=config,
            hypers=hypers,
            evaluations=UPDATES // INTERVAL,
            eval_episodes=1,
        )
        for environment, step_size in ROS_STEP_SIZES.items()
        for algorithm, label, config, hypers in (
            ("ppo_buffer", "on-policy", ppo_buffer.Config(**SHARED), ppo_buffer.Hypers(learning_rate=0.0)),
            (
                "props",
                "props",
                props.Config(**SHARED, behavior_steps=8),
                props.Hypers(learning_rate=0.0, behavior_learning_rate=1e-2),
            ),
            (
                "ros",
                "ros",
                ros.Config(**SHARED, behavior_steps=8),
                ros.Hypers(learning_rate=0.0, ros_step_size=step_size),
            ),
        )
    ),
)
