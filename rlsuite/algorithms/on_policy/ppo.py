"""PPO: proximal policy optimisation with a clipped objective (Schulman et al. 2017, arXiv 1707.06347).

The details are those of CleanRL's `ppo.py` and `ppo_continuous_action.py`: separate tanh networks, orthogonal
initialisation, a state-independent log standard deviation, generalised advantage estimation, advantages standardised
per minibatch, clipped value loss, global gradient clipping, a learning rate annealed to 0, running normalisation of
observations and of rewards by the spread of the discounted return, both clipped at 10.

Deviations from CleanRL:
- Truncation is not termination: the advantage at a time limit bootstraps with V of the observation it was reached with.
- The statistics of the normalisers are merged once per update instead of once per step, so that collecting and learning
  see the same inputs. Rewards are scaled by statistics that already include the rollout; observations are not.
- `num_envs` environments of `num_steps` steps each (8 x 256 by default) where CleanRL's MuJoCo script takes 1 x 2048.
- Actions outside the box are clipped for the environment only; the log-probability is that of the unclipped sample.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlsuite.core import Algorithm, AlgorithmSpec, Clock, Metrics, Source, Trial
from rlsuite.errors import UserError
from rlsuite.pieces import minibatches, on_policy
from rlsuite.pieces.actor_critic import Networks, entropy, log_prob, optimizer, value_loss
from rlsuite.pieces.advantages import Batch
from rlsuite.pieces.settings import PPOLosses
from rlsuite.pieces.trained import Trained

Array = jax.Array
Params = Any


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings that shape the program."""

    num_envs: int = 8
    """environments stepped side by side in each run"""
    num_steps: int = 256
    """steps of each environment in one update"""
    num_epochs: int = 10
    """passes over the rollout or the buffer in one update"""
    num_minibatches: int = 32
    """minibatches in one pass"""
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

    @property
    def batch_size(self) -> int:
        """Environment steps in one update."""
        return self.num_envs * self.num_steps


class Hypers(NamedTuple):
    """Settings that may differ between the runs of one program."""

    learning_rate: float = 3e-4
    """learning rate of Adam"""
    discount: float = 0.99
    """discount factor of future rewards"""
    gae_lambda: float = 0.95
    """lambda of generalised advantage estimation: 0 is the one-step error, 1 the full return"""
    clip_epsilon: float = 0.2
    """clip range of the probability ratio around 1, and with clip_value of the value around its old one"""
    entropy_coef: float = 0.0
    """weight of the policy's entropy, which the loss rewards"""
    value_coef: float = 0.5
    """weight of the value loss in the whole loss"""
    max_grad_norm: float = 0.5
    """gradients are clipped to this global norm"""


def standardize_advantage(advantage: Array) -> Array:
    """(A - mean) / (std + 1e-8) with the unbiased standard deviation, as PyTorch computes it."""
    return (advantage - jnp.mean(advantage)) / (jnp.std(advantage, ddof=1) + 1e-8)


def policy_loss(log_prob: Array, old_log_prob: Array, advantage: Array, clip_epsilon: Array | float) -> Array:
    """The clipped surrogate, negated (eq. 7): all `[batch]` -> `[]`."""
    ratio = jnp.exp(log_prob - old_log_prob)
    clipped = jnp.clip(ratio, 1.0 - clip_epsilon, 1.0 + clip_epsilon)
    return -jnp.mean(jnp.minimum(ratio * advantage, clipped * advantage))


def loss(params: Params, networks: Networks, batch: Batch, config: PPOLosses, hypers: Any) -> tuple[Array, Metrics]:
    """The whole objective of one minibatch: (loss `[]`, metrics)."""
    dist, value = networks.apply(params, batch.obs)
    new_log_prob = log_prob(dist, batch.action)
    advantage = standardize_advantage(batch.advantage) if config.normalize_advantage else batch.advantage
    surrogate = policy_loss(new_log_prob, batch.log_prob, advantage, hypers.clip_epsilon)
    value_error = value_loss(value, batch.value, batch.target, hypers.clip_epsilon, config.clip_value)
    mean_entropy = jnp.mean(entropy(dist))
    total = surrogate + hypers.value_coef * value_error - hypers.entropy_coef * mean_entropy
    log_ratio = new_log_prob - batch.log_prob
    return total, {
        "policy_loss": surrogate,
        "value_loss": value_error,
        "entropy": mean_entropy,
        "approx_kl": jnp.mean(jnp.expm1(log_ratio) - log_ratio),
        "clip_fraction": jnp.mean(jnp.abs(jnp.expm1(log_ratio)) > hypers.clip_epsilon),
    }


def learn(
    config: Config, key: Array, networks: Networks, learner: Trained, batch: Batch, clock: Clock, hypers: Hypers
) -> tuple[Trained, Metrics]:
    """Epochs of shuffled minibatches."""
    learning_rate = hypers.learning_rate * ((1.0 - clock.progress) if config.anneal_learning_rate else 1.0)
    adam = optimizer(hypers, learning_rate)

    def step(learner: Trained, minibatch: Batch) -> tuple[Trained, Metrics]:
        return learner.descend(adam, loss, networks, minibatch, config, hypers)

    rows = batch._replace(dist=())  # no loss of PPO reads it
    return minibatches.epochs(key, step, learner, rows, config.num_epochs, config.num_minibatches)


def start(params: Params, hypers: Any) -> Trained:
    """The networks with their optimiser."""
    return Trained.start(params, optimizer(hypers, hypers.learning_rate))


def params(learner: Trained) -> Params:
    """The networks' parameters."""
    return learner.params


METHOD = on_policy.Method(start, params, learn)


def make(config: Config) -> Algorithm:
    """PPO with this config.

    Raises:
        UserError: the rollout cannot be cut into the minibatches, or a size is not positive.
    """
    on_policy.check(config)
    if config.normalize_advantage and config.batch_size // config.num_minibatches < 2:
        raise UserError(
            f"num_minibatches={config.num_minibatches} leaves minibatches of one sample, whose advantages have no "
            "standard deviation; choose fewer minibatches or normalize_advantage=False"
        )
    return on_policy.make(config, METHOD)


TRIAL = Trial(
    Config(num_envs=8, num_steps=16, num_epochs=4, num_minibatches=4, hidden_sizes=(16,), normalize_reward=False),
    Hypers(learning_rate=1e-2, discount=0.5, entropy_coef=0.0),
    updates=100,
)

SPEC = AlgorithmSpec(
    Config,
    Hypers,
    make,
    TRIAL,
    summary="proximal policy optimisation with a clipped objective",
    source=Source(
        paper="Schulman et al. 2017, arXiv 1707.06347",
        read="CleanRL, ppo.py and ppo_continuous_action.py",
        level="B",
    ),
)
