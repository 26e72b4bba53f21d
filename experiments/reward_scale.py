"""Does a learner still learn where rewards are a hundred times smaller or larger? SAC and DSAC-T, 32 seeds.

DSAC-T scales its clipping bounds and gradients by the spread of the returns, and claims to need no other settings for
other rewards; SAC has nothing of the kind. Both have the settings of `actor_critic.py` here, which were chosen for SAC
at scale 1.
"""

from experiments.actor_critic import LEARNERS
from experiments.quick import SPRING_TASKS
from rlsuite.sweeping.sweep import Cell, Experiment, Reference


def scaled(reference: Reference, scale: float) -> Reference:
    """The returns of the same policies where each reward is multiplied by this factor."""
    return reference._replace(low=scale * reference.low, high=scale * reference.high)


EXPERIMENT = Experiment(
    name="reward_scale",
    description="SAC and DSAC-T at rewards a hundred times smaller and larger, 32 seeds each",
    cells=tuple(
        Cell(
            name,
            f"{environment}+reward_scale={scale}",
            steps=SPRING_TASKS[environment][0],
            seeds=32,
            config=LEARNERS[name][0],
            hypers=LEARNERS[name][1],
            evaluations=8,
            eval_episodes=8,
            reference=scaled(SPRING_TASKS[environment][1], scale),
        )
        for environment in ("gymnax/Pendulum-v1", "brax/inverted_pendulum/spring")
        for scale in (0.01, 1.0, 100.0)
        for name in ("sac", "dsac_t")
    ),
)
