"""Off-policy MDPO with V's target as in the paper, and as in the authors' code, which subtracts a mean over the batch.

32 seeds on Pendulum, for a third of the steps that `actor_critic.py` takes; all else is as there.
"""

from experiments.actor_critic import RATES, SIZES
from rlsuite.algorithms.off_policy import mdpo_off_policy
from rlsuite.sweeping.sweep import Cell, Experiment

EXPERIMENT = Experiment(
    name="mdpo_forms",
    description="off-policy MDPO with each sample's own log-probability in V's target, and with the batch's mean",
    cells=tuple(
        Cell(
            "mdpo_off_policy",
            "gymnax/Pendulum-v1",
            label=label,
            steps=20_000,
            seeds=32,
            config=mdpo_off_policy.Config(**SIZES, mean_log_prob=mean_log_prob),
            hypers=mdpo_off_policy.Hypers(**RATES),
            evaluations=8,
            eval_episodes=8,
        )
        for label, mean_log_prob in (("own", False), ("batch mean", True))
    ),
)
