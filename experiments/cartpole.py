"""The smallest sweep: PPO on CartPole at 64 seeds, about a minute on two cores. A return of 475 of 500 solves it."""

from rlsuite.algorithms.on_policy import ppo
from rlsuite.sweeping.sweep import Cell, Experiment, Reference

EXPERIMENT = Experiment(
    name="cartpole",
    description="PPO on CartPole, 64 seeds",
    cells=(
        Cell(
            "ppo",
            "gymnax/CartPole-v1",
            steps=80_000,
            seeds=64,
            config=ppo.Config(num_envs=8, num_steps=64, num_epochs=4, num_minibatches=4),
            hypers=ppo.Hypers(learning_rate=1e-3, entropy_coef=0.01),
            evaluations=8,
            reference=Reference(
                22.0, 500.0, "mean over 1024 episodes of uniformly random actions, measured here", "the maximum"
            ),
        ),
    ),
)
