"""ROS: robust on-policy sampling (Zhong et al. 2022, arXiv 2111.14552), on the loop of PROPS.

PPO on a buffer of its last few batches (`buffered_ppo.py`). The policy that collects is theta after one step
against the mean gradient of log pi over those transitions that will still be in the buffer after the round, which makes
their actions less likely.

Deviations from its paper:
- One behaviour policy for each round of `num_envs * behavior_steps` steps instead of for each step;
  `behavior_steps=1` with one environment is the paper's, at the cost of a gradient on the whole buffer at every step.
- The mean gradient is that of the data that will be in the buffer after the round, not of all data since the start,
  and it is computed again from all of them instead of as a running mean.
- The policy is a Gaussian with a log standard deviation that does not depend on the observation, where the authors'
  network gives a standard deviation by softplus, and there is no batch normalisation.
- Left out: steps on the last layer only, and ROA, which picks actions by comparing hypothetical gradients.
- The authors of PROPS compare with ROS by code in which the sign of its step is reversed; here it is that of ROS.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax

from rlsuite.algorithms.on_policy import buffered_ppo
from rlsuite.algorithms.on_policy.buffered_ppo import Round
from rlsuite.core import Algorithm, AlgorithmSpec, Metrics, Reduction, Source, Trial
from rlsuite.pieces import rollout_buffer
from rlsuite.pieces.actor_critic import Networks, actor_of, distribution, log_prob
from rlsuite.pieces.advantages import Batch
from rlsuite.pieces.minibatches import mean_of

Array = jax.Array
Params = Any


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings that shape the program."""

    num_envs: int = 8
    """environments stepped side by side in each run"""
    num_steps: int = 256
    """steps of each environment in one update"""
    behavior_steps: int = 32
    """steps of each environment between two updates of the behaviour policy; divides num_steps"""
    buffer_batches: int = 2
    """batches of num_envs * num_steps transitions that are kept and learned from"""
    num_epochs: int = 10
    """passes over the rollout or the buffer in one update"""
    num_minibatches: int = 32
    """minibatches in one pass over the full buffer; a multiple of buffer_batches"""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """hidden layers of every network that has no option of its own"""
    normalize_obs: bool = True
    """standardise observations by running statistics"""
    normalize_reward: bool = True
    """divide rewards by the running standard deviation of the discounted return"""
    normalize_advantage: bool = True
    """standardise advantages per minibatch"""
    clip_value: bool = True
    """clip the value loss as PPO does, with clip_epsilon"""
    anneal_learning_rate: bool = True
    """let the learning rate fall linearly to 0 over the budget"""
    sampling_error_epochs: int = 0
    """steps of the fit that measures the sampling error (the authors: 1000 or 2000); 0 turns this off"""
    sampling_error_interval: int = 1
    """updates between two measurements of the sampling error; the metric repeats the last one"""


class Hypers(NamedTuple):
    """Settings that may differ between the runs of one program."""

    learning_rate: float = 1e-3
    """learning rate of Adam"""
    discount: float = 0.99
    """discount factor of future rewards"""
    gae_lambda: float = 0.95
    """lambda of generalised advantage estimation: 0 is the one-step error, 1 the full return"""
    clip_epsilon: float = 0.2
    """clip range of the probability ratio around 1, and with clip_value of the value around its old one"""
    entropy_coef: float = 0.01
    """weight of the policy's entropy, which the loss rewards"""
    value_coef: float = 0.5
    """weight of the value loss in the whole loss"""
    max_grad_norm: float = 0.5
    """gradients are clipped to this global norm"""
    target_kl: float = 0.03
    """approximate KL divergence at which a PPO update ends"""
    ros_step_size: float = 0.1
    """length of the one step of the behaviour policy, in units of the mean gradient"""


def ros_actor(
    actor: Params, networks: Networks, rows: Batch, valid: Array, step_size: Array | float
) -> tuple[Params, Array]:
    """theta - alpha * the mean gradient of log pi over the valid rows, so that they become less likely.

    Returns these parameters and the mean log-probability `[]` before the step.
    """

    def likelihood(actor: Params) -> Array:
        return mean_of(log_prob(distribution(networks, actor, rows.obs), rows.action), valid)

    before, gradient = jax.value_and_grad(likelihood)(actor)
    return jax.tree.map(lambda theta, g: theta - step_size * g, actor, gradient), before


def behave(
    config: Config, key: Array, networks: Networks, current_round: Round, carry: None, hypers: Hypers
) -> tuple[Params, None, Metrics]:
    """theta after ROS' step."""
    rows, valid, _ = current_round.recall(current_round.params)
    actor, likelihood = ros_actor(actor_of(current_round.params), networks, rows, valid, hypers.ros_step_size)
    return actor, None, {"behavior_log_prob": likelihood}


METHOD = buffered_ppo.Method(buffered_ppo.carry_nothing, behave)


def make(config: Config) -> Algorithm:
    """ROS with this config.

    Raises:
        UserError: a size is not positive, or one does not divide what it has to.
    """
    rollout_buffer.check_rounds(config, config.behavior_steps)
    return buffered_ppo.make(config, METHOD, config.behavior_steps)


TRIAL = Trial(
    Config(
        num_envs=8,
        num_steps=16,
        behavior_steps=8,
        num_epochs=3,
        num_minibatches=4,
        hidden_sizes=(16,),
        normalize_reward=False,
    ),
    Hypers(learning_rate=1e-2, discount=0.5, entropy_coef=0.0, target_kl=0.1, ros_step_size=1e-4),
    updates=200,
)

SPEC = AlgorithmSpec(
    Config,
    Hypers,
    make,
    TRIAL,
    read_with={"sampling_error_interval": {"sampling_error_epochs": 1}},
    reduces_to=Reduction("ppo_buffer", {"behavior_steps": TRIAL.config.num_steps}, {"ros_step_size": 0.0}),
    summary="PPO on a buffer, collected by a step away from what the buffer holds",
    source=Source(
        paper="Zhong et al. 2022, arXiv 2111.14552",
        read="uoe-agents/robust_onpolicy_data_collection",
        level="A",
    ),
)
