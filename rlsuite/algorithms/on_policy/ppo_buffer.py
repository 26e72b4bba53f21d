"""PPO-Buffer: PPO that learns from its last few batches, the baseline of PROPS (Corrado & Hanna, arXiv 2311.08290).

PPO-Buffer collects with the policy that learns. Every update passes over the last `buffer_batches` batches as if that
policy had collected all of them: log-probabilities, values and advantages are recomputed with the current networks,
and nothing corrects for the policies that did collect. The loop is `buffered_ppo.py`; with one batch it is
PPO with a stop at a KL divergence.

Deviations from the authors' code, as in `props.py` for the target policy:
- Truncation is not termination: the advantage at a time limit bootstraps with V of the observation it was reached with.
- The mean of the policy has no tanh, as in the newer of the two repositories.
- `num_envs` environments (8 by default) where the code steps one.
- `num_minibatches` must be a multiple of `buffer_batches`, so that minibatches are whole while the buffer fills.
- The statistics of the normalisers are merged once an update, instead of at every step.

No setting gives PPO's bits: keys, the order of minibatches, and the statistics by which advantages are computed differ.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax

from rlsuite.algorithms.on_policy import buffered_ppo
from rlsuite.algorithms.on_policy.buffered_ppo import Round
from rlsuite.core import Algorithm, AlgorithmSpec, Metrics, Preset, Source, Trial
from rlsuite.pieces.actor_critic import Networks, actor_of

Array = jax.Array
Params = Any


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings that shape the program."""

    num_envs: int = 8
    """environments stepped side by side in each run"""
    num_steps: int = 256
    """steps of each environment in one update"""
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


def behave(
    config: Config, key: Array, networks: Networks, current_round: Round, carry: None, hypers: Hypers
) -> tuple[Params, None, Metrics]:
    """The policy that learns collects."""
    return actor_of(current_round.params), None, {}


METHOD = buffered_ppo.Method(buffered_ppo.carry_nothing, behave)


def make(config: Config) -> Algorithm:
    """PPO-Buffer with this config.

    Raises:
        UserError: a size is not positive, or `num_minibatches` does not fit the buffer.
    """
    return buffered_ppo.make(config, METHOD, config.num_steps)


def _tuned(num_steps: int, learning_rate: float) -> Preset:
    source = "NicholasCorrado/PPOROS, hyperparams/ppo_buffer.py"
    return Preset(Config(num_envs=1, num_steps=num_steps), Hypers(learning_rate=learning_rate), source)


PRESETS = {
    "mujoco/Swimmer": _tuned(2048, 1e-3),
    "mujoco/Hopper": _tuned(1024, 1e-4),
    "mujoco/HalfCheetah": _tuned(4096, 1e-3),
    "mujoco/Walker2d": _tuned(4096, 1e-3),
    "mujoco/Ant": _tuned(1024, 1e-4),
    "mujoco/Humanoid": _tuned(8192, 1e-4),
}

TRIAL = Trial(
    Config(num_envs=8, num_steps=16, num_epochs=4, num_minibatches=8, hidden_sizes=(16,), normalize_reward=False),
    Hypers(learning_rate=1e-2, discount=0.5, entropy_coef=0.0, target_kl=0.1),
    updates=150,
)

SPEC = AlgorithmSpec(
    Config,
    Hypers,
    make,
    TRIAL,
    presets=PRESETS,
    read_with={"sampling_error_interval": {"sampling_error_epochs": 1}},
    summary="PPO that learns from its last few batches",
    source=Source(paper="Corrado and Hanna 2023, arXiv 2311.08290", read="NicholasCorrado/PPOROS", level="A"),
)
