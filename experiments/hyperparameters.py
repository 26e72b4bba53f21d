"""How much do PPO's hyperparameters matter on CartPole? 128 random settings at 16 seeds, 2048 runs in one program.

`analysis/notebooks/hyperparameters.ipynb` is about its results. It took 390 CPU seconds here, so some four minutes of
two idle cores, compiling included.
"""

from rlsuite.algorithms.on_policy import ppo
from rlsuite.sweeping import search
from rlsuite.sweeping.sweep import Cell, Experiment, Reference

EXPERIMENT = Experiment(
    name="hyperparameters",
    description="PPO on CartPole: 128 random settings of five hyperparameters, 16 seeds each",
    cells=(
        Cell(
            "ppo",
            "gymnax/CartPole-v1",
            steps=20_480,
            seeds=16,
            config=ppo.Config(num_envs=4, num_steps=64, num_epochs=4, num_minibatches=4, hidden_sizes=(32, 32)),
            hypers=search.sample(
                ppo.Hypers(),
                count=128,
                learning_rate=search.LogUniform(1e-4, 3e-2),
                discount=search.Choice((0.9, 0.95, 0.98, 0.99, 0.995)),
                gae_lambda=search.Uniform(0.8, 1.0),
                clip_epsilon=search.LogUniform(0.05, 0.5),
                entropy_coef=search.LogUniform(1e-4, 1e-1),
            ),
            evaluations=5,
            eval_episodes=4,
            reference=Reference(
                22.0, 500.0, "mean over 1024 episodes of uniformly random actions, measured here", "the maximum"
            ),
        ),
    ),
)
