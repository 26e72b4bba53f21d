"""PPO on brax' hopper with twice the steps of the quick sweep, 32 seeds: about five minutes on two cores."""

from experiments.quick import PPO_CONFIG, PPO_HYPERS, TASKS
from rlsuite.sweep import Cell, Experiment

ENVIRONMENT = "brax/hopper/spring"
QUICK_STEPS, REFERENCE = TASKS[ENVIRONMENT]

EXPERIMENT = Experiment(
    name="hopper",
    description="PPO on brax' hopper, 32 seeds",
    cells=(
        Cell(
            "ppo",
            ENVIRONMENT,
            steps=2 * QUICK_STEPS,
            seeds=32,
            config=PPO_CONFIG,
            hypers=PPO_HYPERS,
            evaluations=4,
            eval_episodes=8,
            reference=REFERENCE,
        ),
    ),
)
