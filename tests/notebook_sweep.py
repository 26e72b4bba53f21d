"""Small real sweeps for the notebooks: PPO on CartPole at two learning rates, and at twelve random settings."""

from rlsuite.algorithms.on_policy import ppo
from rlsuite.sweeping import search
from rlsuite.sweeping.sweep import Cell, Experiment, Reference


def cell(label: str, *hypers: ppo.Hypers) -> Cell:
    """All cells share one program."""
    return Cell(
        "ppo",
        "gymnax/CartPole-v1",
        label=label,
        steps=4096,
        seeds=8,
        config=ppo.Config(num_envs=4, num_steps=64, num_epochs=4, num_minibatches=4, hidden_sizes=(16,)),
        hypers=hypers,
        evaluations=4,
        eval_episodes=4,
        reference=Reference(22.0, 500.0, "random actions", "the maximum"),
    )


TWO = Experiment("two", "two learning rates", (cell("slow", ppo.Hypers(1e-3)), cell("fast", ppo.Hypers(1e-2))))
MANY = Experiment(
    "many",
    "twelve settings",
    (
        cell(
            "ppo",
            *search.sample(
                ppo.Hypers(),
                count=12,
                learning_rate=search.LogUniform(1e-4, 3e-2),
                gae_lambda=search.Uniform(0.8, 1.0),
                discount=search.Choice((0.95, 0.99)),
            ),
        ),
    ),
)
