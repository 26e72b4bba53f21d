"""Actor-critics with a replay buffer: SAC, TD3, DDPG, DSAC, DSAC-T and off-policy MDPO.

`EXPERIMENT` is for two cores: three cheap tasks, 32 seeds, small networks and one gradient step every four environment
steps. All learners share sizes, rates and the discount, which were chosen for SAC (see `quick.py`); nobody else was
tuned, so this compares the methods at SAC's settings, not each at its best. Every evaluation also reports the bias of
the critic, but MDPO's: `rlsuite report results/actor_critic --metric value_bias`.

`FULL` is for a GPU: `rlsuite sweep experiments/actor_critic.py:FULL` takes a million steps of three of Gymnasium's
tasks at 64 seeds, everyone with the settings of its own paper or code but one: one environment step for each gradient
step, where the authors of DSAC and DSAC-T take 20.
"""

import dataclasses
from typing import Any

from experiments.quick import SAC_CONFIG, SAC_HYPERS, SPRING_TASKS
from rlsuite.algorithms.off_policy import ddpg, dsac, dsac_t, mdpo_off_policy, td3
from rlsuite.sweeping.sweep import Cell, Experiment

SIZES: dict[str, Any] = {
    "num_envs": SAC_CONFIG.num_envs,
    "gradient_steps": SAC_CONFIG.gradient_steps,
    "batch_size": SAC_CONFIG.batch_size,
    "warmup_steps": SAC_CONFIG.warmup_steps,
    "hidden_sizes": SAC_CONFIG.hidden_sizes,
}
BIAS: dict[str, Any] = {"value_bias_episodes": 4}
RATES: dict[str, Any] = {
    "actor_learning_rate": SAC_HYPERS.actor_learning_rate,
    "critic_learning_rate": SAC_HYPERS.critic_learning_rate,
    "discount": SAC_HYPERS.discount,
    "tau": SAC_HYPERS.tau,
}
ALPHA: dict[str, Any] = {
    "alpha_learning_rate": SAC_HYPERS.alpha_learning_rate,
    "initial_alpha": SAC_HYPERS.initial_alpha,
}

LEARNERS = {
    "sac": (dataclasses.replace(SAC_CONFIG, **BIAS), SAC_HYPERS),
    "td3": (td3.Config(**SIZES, **BIAS), td3.Hypers(**RATES)),
    "ddpg": (ddpg.Config(**SIZES, **BIAS), ddpg.Hypers(**RATES)),
    "dsac": (dsac.Config(**SIZES, **BIAS), dsac.Hypers(**RATES, **ALPHA)),
    "dsac_t": (dsac_t.Config(**SIZES, **BIAS), dsac_t.Hypers(**RATES, **ALPHA)),
    "mdpo_off_policy": (mdpo_off_policy.Config(**SIZES), mdpo_off_policy.Hypers(**RATES)),
}

EXPERIMENT = Experiment(
    name="actor_critic",
    description="SAC, TD3, DDPG, DSAC, DSAC-T and off-policy MDPO on three cheap tasks, 32 seeds each",
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
    name="actor_critic_full",
    description="actor-critics on three of Gymnasium's tasks, a million steps, 64 seeds each",
    cells=tuple(
        Cell(algorithm, f"mujoco/{task}-v5", steps=1_000_000, seeds=64, evaluations=20, eval_episodes=10)
        for task in ("Hopper", "HalfCheetah", "Walker2d")
        for algorithm in LEARNERS
    ),
)
