"""On-policy learners: PPO, PPO with a buffer of its last batches, PROPS and MDPO.

`EXPERIMENT` is for two cores: three cheap tasks and 32 seeds. All learners share what they have in common with PPO as
`quick.py` sets it; nobody but PPO was tuned, so this compares the methods at PPO's settings, not each at its best.

`FULL` is for a GPU: `rlsuite sweep experiments/on_policy.py:FULL` takes a million steps of three of Gymnasium's tasks
at 64 seeds, everyone with the settings that its authors published for the task, or its defaults where there are none.
"""

from typing import Any

from experiments.quick import PPO_CONFIG, PPO_HYPERS, SPRING_TASKS
from rlsuite.algorithms.on_policy import mdpo, ppo_buffer, props
from rlsuite.sweeping.sweep import Cell, Experiment

ROLLOUT: dict[str, Any] = {"num_envs": PPO_CONFIG.num_envs, "num_steps": PPO_CONFIG.num_steps}
RATES: dict[str, Any] = {
    "learning_rate": PPO_HYPERS.learning_rate,
    "discount": PPO_HYPERS.discount,
    "gae_lambda": PPO_HYPERS.gae_lambda,
}
# A buffer of two batches in twice as many minibatches, so that one of these is as large as PPO's.
BUFFER: dict[str, Any] = {
    "buffer_batches": 2,
    "num_epochs": PPO_CONFIG.num_epochs,
    "num_minibatches": 2 * PPO_CONFIG.num_minibatches,
}
ENTROPY: dict[str, Any] = {"entropy_coef": PPO_HYPERS.entropy_coef}

LEARNERS = {
    "ppo": (PPO_CONFIG, PPO_HYPERS),
    "ppo_buffer": (ppo_buffer.Config(**ROLLOUT, **BUFFER), ppo_buffer.Hypers(**RATES, **ENTROPY)),
    "props": (props.Config(**ROLLOUT, **BUFFER, behavior_steps=32), props.Hypers(**RATES, **ENTROPY)),
    "mdpo": (mdpo.Config(**ROLLOUT, num_minibatches=PPO_CONFIG.num_minibatches), mdpo.Hypers(**RATES)),
}

EXPERIMENT = Experiment(
    name="on_policy",
    description="PPO, PPO with a buffer, PROPS and MDPO on three cheap tasks, 32 seeds each",
    cells=tuple(
        Cell(
            algorithm,
            environment,
            steps=steps,
            seeds=32,
            config=config,
            hypers=hypers,
            evaluations=8,
            eval_episodes=8,
            reference=reference,
        )
        for environment, (steps, reference) in SPRING_TASKS.items()
        for algorithm, (config, hypers) in LEARNERS.items()
    ),
)

FULL = Experiment(
    name="on_policy_full",
    description="PPO, PPO with a buffer, PROPS and MDPO on three of Gymnasium's tasks, a million steps, 64 seeds each",
    cells=tuple(
        Cell(algorithm, f"mujoco/{task}-v5", steps=1_000_000, seeds=64, evaluations=20, eval_episodes=10)
        for task in ("Hopper", "HalfCheetah", "Walker2d")
        for algorithm in LEARNERS
    ),
)
