"""On-policy MDPO: mirror descent policy optimisation (Tomar et al. 2020, arXiv 2005.09814).

PPO's rollouts with another policy loss: each update takes `sgd_steps` full-batch gradient steps towards the policy that
maximises E[ratio * advantage] - KL(policy || old policy) / t_k, where t_k = 1 - k / N falls over the N updates of the
budget. The details are those of the authors' code: separate tanh networks, orthogonal initialisation, a
state-independent log standard deviation, the KL divergence in closed form, advantages standardised over the whole
rollout by the population's standard deviation, Adam (eps 1e-5) after clipping the gradient's global norm for the
policy, plain Adam (eps 1e-8) for the value, whose clipped loss is learned in minibatches, and VecNormalize's running
normalisation of observations and rewards. `mdpo_off_policy.py` is the other half of the paper. No setting gives PPO's
bits: policy and value network have an optimiser each.

Deviations from the code:
- k counts from 0. The code's t_k is 1 - (k - 1) / N, which starts above 1 and ends at 2 / N. Ours ends at 1 / N and is
  kept from falling below `MIN_STEP_SIZE`, so that the weight stays finite whatever the budget.
- The learning rate is constant, as it is in the code, whose schedule makes a constant of a number; there is a flag
  `anneal_learning_rate`, which lets it fall to 0 over the budget.
- The Tsallis divergence is the Bregman divergence of the Tsallis entropy, estimated without bias from the actions of
  the rollout. The code takes the mean of log_q(policy) - log_q(old policy) there, without the ratio that would make it
  an expectation under the new policy: for q = 1 that is -KL(old policy || policy), a reward for moving away.
- The value's loss is half the code's, which matters to Adam only through its eps.
- Adam adds epsilon after the bias correction, as in its paper and in PyTorch. The code's, of TensorFlow 1, adds it
  before, which makes it 32 times as large in the first step.
- The old policy is the one that collected from the first update on. The code initialises the two separately.
- Truncation is not termination: the advantage at a time limit bootstraps with V of the observation it was reached with.
- The statistics of the normalisers are merged once per update instead of once per step, so that collecting and learning
  see the same inputs. Rewards are scaled by statistics that already include the rollout; observations are not.
- `num_envs` environments of `num_steps` steps each (8 x 256 by default) where the code takes 1 x 2048.
- 1e-8 is added to the standard deviation of the advantages.
- Left out: the code's other two losses (`closedreverse-KL`, `closed-KL`), which its scripts do not use.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlsuite.core import Algorithm, AlgorithmSpec, Clock, Metrics, Source, Trial
from rlsuite.errors import check_positive
from rlsuite.pieces import actor_critic, distributions, minibatches, on_policy
from rlsuite.pieces.actor_critic import Networks, value_loss
from rlsuite.pieces.actor_critic import optimizer as actor_optimizer
from rlsuite.pieces.advantages import Batch
from rlsuite.pieces.trained import Trained
from rlsuite.pieces.tsallis import divergence_weight, tsallis_divergence

Array = jax.Array
Params = Any


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings that shape the program."""

    num_envs: int = 8
    """environments stepped side by side in each run"""
    num_steps: int = 256
    """steps of each environment in one update"""
    sgd_steps: int = 10
    """full-batch gradient steps of the policy in one update"""
    num_epochs: int = 5
    """passes of the value network over the rollout in one update"""
    num_minibatches: int = 16
    """minibatches of the value network in one pass"""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """hidden layers of every network that has no option of its own"""
    normalize_obs: bool = True
    """standardise observations by running statistics"""
    normalize_reward: bool = True
    """divide rewards by the running standard deviation of the discounted return"""
    normalize_advantage: bool = True
    """standardise advantages over the whole rollout"""
    clip_value: bool = True
    """clip the value loss as PPO does, with clip_epsilon"""
    anneal_kl: bool = True
    """let the weight of the divergence grow as kl_coef / (1 - share of the budget); else it stays at kl_coef"""
    anneal_learning_rate: bool = False
    """let the learning rate fall linearly to 0 over the budget"""
    tsallis: bool = False
    """penalise a sampled Tsallis divergence of order tsallis_q instead of the KL divergence"""

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
    kl_coef: float = 1.0
    """weight of the divergence from the old policy at the start of the budget, 1 / t_0"""
    tsallis_q: float = 1.0
    """order of the Tsallis divergence, where 1 is KL; read only with tsallis"""
    clip_epsilon: float = 0.2
    """clip range of the value around its old one, with clip_value; the policy's loss has no clip"""
    max_grad_norm: float = 0.5
    """the policy's gradients are clipped to this global norm, the value network's are not"""


class Learner(NamedTuple):
    """The part of the state that gradient steps change."""

    actor: Trained
    """the parameters that `Networks` calls policy, and log_std where there is one"""
    critic: Trained


def joined(actor: Params, critic: Params) -> Params:
    """The parameters as `Networks` takes them."""
    return {"params": {**actor, **critic}}


def standardize_advantage(advantage: Array) -> Array:
    """(A - mean) / (std + 1e-8) with the population's standard deviation, as NumPy computes it."""
    return (advantage - jnp.mean(advantage)) / (jnp.std(advantage) + 1e-8)


def gaussian_kl(mean: Array, log_std: Array, old_mean: Array, old_log_std: Array) -> Array:
    """KL(new || old) of two diagonal Gaussians: all `[..., dim]` -> `[...]`."""
    return jnp.sum(distributions.gaussian_kl(mean, log_std, old_mean, old_log_std), axis=-1)


def categorical_kl(logits: Array, old_logits: Array) -> Array:
    """KL(new || old) of two categorical distributions: both `[..., n]` -> `[...]`."""
    log_probs, old_log_probs = jax.nn.log_softmax(logits), jax.nn.log_softmax(old_logits)
    return jnp.sum(jnp.exp(log_probs) * (log_probs - old_log_probs), axis=-1)


def kl(dist: tuple[Array, ...], old_dist: tuple[Array, ...]) -> Array:
    """KL(new || old) of two distributions of one kind `[...]`."""
    return categorical_kl(dist[0], old_dist[0]) if len(dist) == 1 else gaussian_kl(*dist, *old_dist)


def policy_loss(
    log_prob: Array, old_log_prob: Array, advantage: Array, divergence: Array, kl_weight: Array | float
) -> Array:
    """mean(divergence / t_k - ratio * advantage): all `[batch]`, the weight 1 / t_k `[]` -> `[]`."""
    return jnp.mean(kl_weight * divergence - jnp.exp(log_prob - old_log_prob) * advantage)


def actor_loss(
    actor: Params,
    networks: Networks,
    critic: Params,
    batch: Batch,
    kl_weight: Array | float,
    config: Config,
    hypers: Hypers,
) -> tuple[Array, Metrics]:
    """The whole objective of the policy on one rollout: (loss `[]`, metrics)."""
    dist, _ = networks.apply(joined(actor, critic), batch.obs)
    log_prob = actor_critic.log_prob(dist, batch.action)
    if config.tsallis:
        divergence = tsallis_divergence(log_prob, batch.log_prob, hypers.tsallis_q)
    else:
        divergence = kl(dist, batch.dist)
    loss = policy_loss(log_prob, batch.log_prob, batch.advantage, divergence, kl_weight)
    metrics = {
        "policy_loss": loss,
        "divergence": jnp.mean(divergence),
        "entropy": jnp.mean(actor_critic.entropy(dist)),
    }
    return loss, metrics


def critic_loss(
    critic: Params, networks: Networks, actor: Params, batch: Batch, config: Config, hypers: Hypers
) -> tuple[Array, Metrics]:
    """PPO's clipped value loss on one minibatch: (loss `[]`, metrics)."""
    value = networks.apply(joined(actor, critic), batch.obs, method=Networks.value)
    loss = value_loss(value, batch.value, batch.target, hypers.clip_epsilon, config.clip_value)
    return loss, {"value_loss": loss}


def start(params: Params, hypers: Hypers) -> Learner:
    """Policy and value network, each with its optimiser."""
    actor = dict(params["params"])
    critic = {"critic": actor.pop("critic")}
    return Learner(
        actor=Trained.start(actor, actor_optimizer(hypers, hypers.learning_rate)),
        critic=Trained.start(critic, optax.adam(hypers.learning_rate)),
    )


def params(learner: Learner) -> Params:
    """The networks' parameters."""
    return joined(learner.actor.params, learner.critic.params)


def learn(
    config: Config, key: Array, networks: Networks, learner: Learner, batch: Batch, clock: Clock, hypers: Hypers
) -> tuple[Learner, Metrics]:
    """Full-batch steps of the policy, then epochs of shuffled minibatches of the value network."""
    if config.normalize_advantage:
        # Summed in the order of the rollout, `[time, num_envs]`, which stored results rest on.
        in_time = batch.advantage.reshape(config.num_steps, config.num_envs)
        batch = batch._replace(advantage=standardize_advantage(in_time).reshape(-1))
    learning_rate = hypers.learning_rate * ((1.0 - clock.progress) if config.anneal_learning_rate else 1.0)
    weight = divergence_weight(config.anneal_kl, hypers.kl_coef, clock)

    def policy_step(actor: Trained, _: None) -> tuple[Trained, Metrics]:
        adam = actor_optimizer(hypers, learning_rate)
        return actor.descend(adam, actor_loss, networks, learner.critic.params, batch, weight, config, hypers)

    def value_step(critic: Trained, minibatch: Batch) -> tuple[Trained, Metrics]:
        adam = optax.adam(learning_rate)
        return critic.descend(adam, critic_loss, networks, learner.actor.params, minibatch, config, hypers)

    actor, actor_metrics = jax.lax.scan(policy_step, learner.actor, length=config.sgd_steps)
    critic, critic_metrics = minibatches.epochs(
        key, value_step, learner.critic, batch, config.num_epochs, config.num_minibatches
    )
    return Learner(actor, critic), {**actor_metrics, **critic_metrics}


METHOD = on_policy.Method(start, params, learn)


def make(config: Config) -> Algorithm:
    """On-policy MDPO with this config.

    Raises:
        UserError: the rollout cannot be cut into the minibatches, or a size is not positive.
    """
    check_positive(sgd_steps=config.sgd_steps)
    return on_policy.make(config, METHOD)._replace(explore=None)


TRIAL = Trial(
    Config(
        num_envs=8,
        num_steps=16,
        num_minibatches=4,
        hidden_sizes=(16,),
        normalize_reward=False,
        anneal_learning_rate=True,
    ),
    Hypers(learning_rate=1e-2, discount=0.5),
    updates=120,
)

SPEC = AlgorithmSpec(
    Config,
    Hypers,
    make,
    TRIAL,
    read_with={"tsallis_q": {"tsallis": True}, "clip_epsilon": {"clip_value": True}},
    summary="PPO's rollouts, with a KL penalty from mirror descent",
    source=Source(
        paper="Tomar et al. 2020, arXiv 2005.09814",
        read="manantomar/Mirror-Descent-Policy-Optimization",
        level="A",
    ),
)
