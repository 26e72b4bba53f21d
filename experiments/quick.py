"""The default sweep: PPO and SAC at 32 seeds, small enough for two cores and a quarter of an hour.

Networks and batches are smaller than the published ones and SAC takes one gradient step every four environment steps,
so that the sweep is short; nothing here is a reproduction of a published table. Both learners take the same number of
environment steps on a task, and one setting of each serves all tasks. The settings were chosen on seeds 1000 and up;
the sweep reports seeds 0 to 31.
"""

from rlsuite.algorithms.off_policy import sac
from rlsuite.algorithms.on_policy import ppo
from rlsuite.sweeping.sweep import Cell, Experiment, Reference

UNIFORM = "mean over 1024 episodes of uniformly random actions, measured here"

SWING_UP = {"gymnax/Pendulum-v1": (60_000, Reference(-1215.0, 0.0, UNIFORM, "the highest reward is 0"))}
HOPPER = {"brax/hopper/spring": (120_000, Reference(127.0, 1000.0, UNIFORM, "a point for each step upright"))}
# On brax' spring physics SAC ends near 100 of 1000, Rejax' SAC too, so that the task says nothing about the method.
TASKS = {
    **SWING_UP,
    "brax/inverted_pendulum/generalized": (60_000, Reference(5.9, 1000.0, UNIFORM, "the maximum")),
    **HOPPER,
}
SPRING_TASKS = {
    **SWING_UP,
    "brax/inverted_pendulum/spring": (60_000, Reference(22.4, 1000.0, UNIFORM, "the maximum")),
    **HOPPER,
}
"""Of the comparisons `on_policy.py`, `actor_critic.py` and `reward_scale.py`."""

PPO_CONFIG = ppo.Config(num_envs=8, num_steps=128, num_epochs=10, num_minibatches=8)
PPO_HYPERS = ppo.Hypers(learning_rate=1e-3, discount=0.997, gae_lambda=0.97)
SAC_CONFIG = sac.Config(num_envs=4, gradient_steps=1, batch_size=64, warmup_steps=2_000, hidden_sizes=(64, 64))
SAC_HYPERS = sac.Hypers(
    actor_learning_rate=1e-3, critic_learning_rate=1e-3, alpha_learning_rate=1e-3, discount=0.997, tau=0.01
)

EXPERIMENT = Experiment(
    name="quick",
    description="PPO and SAC on a swing-up and two brax tasks, 32 seeds each",
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
        for environment, (steps, reference) in TASKS.items()
        for algorithm, config, hypers in (("ppo", PPO_CONFIG, PPO_HYPERS), ("sac", SAC_CONFIG, SAC_HYPERS))
    ),
)
