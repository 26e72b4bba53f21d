"""PPO on brax' hopper with twice the steps of the quick sweep, 32 seeds: about five minutes on two cores."""

from rlsuite.algorithms import ppo
from rlsuite.sweep import Cell, Experiment, Reference

EXPERIMENT = Experiment(
    name="hopper",
    description="PPO on brax' hopper, 32 seeds",
    cells=(
        Cell(
            "ppo",
            "brax/hopper/spring",
            steps=240_000,
            seeds=32,
            config=ppo.Config(num_envs=8, num_steps=128, num_epochs=10, num_minibatches=8),
            hypers=ppo.Hypers(learning_rate=1e-3, discount=0.997, gae_lambda=0.97),
            evaluations=4,
            eval_episodes=8,
            reference=Reference(
                127.0,
                1000.0,
                "mean over 1024 episodes of uniformly random actions, measured here",
                "a point for each step upright",
            ),
        ),
    ),
)
