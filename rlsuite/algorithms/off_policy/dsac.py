"""DSAC: distributional soft actor-critic with one Gaussian value distribution (Duan et al. 2021, arXiv 2001.02811).

The critic gives mean Q and standard deviation sigma of the soft return. A sample of the target's distribution is the
target of both; for sigma it is clipped to within `td_bound` of Q:

    y = r + discount (1 - terminated) (Q' + clip(z, -3, 3) sigma' - alpha log pi'(a'|s')),   z ~ N(0, 1)
    C = Q + clip(y - Q, -td_bound, td_bound)
    dL/dQ = -(y - Q) / (sigma^2 + 0.1),   dL/dsigma = -((Q - C)^2 - sigma^2) / (sigma^3 + 0.1)

a' is drawn from a target policy. The policy, the temperature and all targets move at every second gradient step. All
gradients of a gradient step are taken at the same parameters: that of the policy sees the critic before its own step.

This is the form that the authors keep next to its successor (`dsac_v1.py` of their repository DSAC-v2), with that
repository's networks (three layers of 256, exact GELU, PyTorch's initialisation) and settings.

Deviations from `dsac_v1.py`:
- One environment step for one gradient step, as in the usual comparisons at a million steps; the authors take 20.
  Theirs is `num_steps=20`, and their 1.5 million gradient steps are then 30 million environment steps. With
  `num_envs=20` instead the ratio is the same, but the 20 steps come from as many episodes.
- The log-determinant of tanh is exact instead of log(1 - tanh^2 + 1e-6).
- Only the clipped loss; the code's `bound=False`, a plain Gaussian likelihood, is left out.
- `initial_alpha` is a hyperparameter also where alpha is learned (the code starts at e then, and keeps 0.2 otherwise).
- Rewards are scaled by the environment (`+reward_scale=X` in its id), once; some versions of the code scale twice.

Deviations of `dsac_v1.py`, and so of this file, from the paper and its first code:
- That code has five layers, of which mean and sigma share three, and Xavier's initialisation.
- Its log standard deviation is squashed to [-0.1, 4] for the critic and to [-5, 1] for the policy; here sigma is a
  softplus.
- It takes the likelihood's own gradient, without 0.1 in the denominators, and clips z at 2 and 3.
- Its learning rates are annealed from 8e-5 and 5e-5; tau is 0.001, and rewards are scaled by 0.2.
- It has several asynchronous actors and learners over three buffers, where this is one learner with one buffer.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from envs.core import Box, Env
from rlsuite.core import Algorithm, AlgorithmSpec, Metrics, Source, Transition, Trial
from rlsuite.pieces import distributional_sac, off_policy, squashed
from rlsuite.pieces.distributional_sac import behave, fit, is_due, play, step_policy
from rlsuite.pieces.off_policy import Step
from rlsuite.pieces.return_distributions import (
    Networks,
    clip_target,
    gaussian_loss,
    networks_of,
    return_distribution,
    sample_return,
    soft_target,
)
from rlsuite.pieces.trained import Trained
from rlsuite.pieces.value_bias import Critique

Array = jax.Array
Params = Any


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings that shape the program."""

    num_envs: int = 1
    """environments stepped side by side in each run"""
    num_steps: int = 1
    """steps of each environment in one update"""
    gradient_steps: int = 1
    """gradient steps in one update"""
    batch_size: int = 256
    """transitions in one gradient step"""
    buffer_size: int = 1_000_000
    """transitions kept; a smaller budget takes less memory"""
    warmup_steps: int = 10_000
    """environment steps with the initial policy before learning starts"""
    hidden_sizes: tuple[int, ...] = (256, 256, 256)
    """hidden layers of every network that has no option of its own"""
    policy_delay: int = 2
    """gradient steps of the critics for each step of the actor, of the temperature and of all targets"""
    learn_alpha: bool = True
    """learn the temperature; else it stays at initial_alpha"""
    value_bias_episodes: int = 0
    """episodes after which each evaluation reports the critic's bias (`pieces/value_bias.py`); 0 turns this off"""

    @property
    def steps_per_update(self) -> int:
        """Environment steps in one update."""
        return self.num_envs * self.num_steps


class Hypers(NamedTuple):
    """Settings that may differ between the runs of one program."""

    actor_learning_rate: float = 1e-4
    """learning rate of the actor"""
    critic_learning_rate: float = 1e-4
    """learning rate of the critics"""
    alpha_learning_rate: float = 3e-4
    """learning rate of the temperature, with learn_alpha"""
    discount: float = 0.99
    """discount factor of future rewards"""
    tau: float = 0.005
    """share of an online network that moves into its target whenever the target moves"""
    td_bound: float = 20.0
    """largest distance from Q of the target of sigma, in units of reward"""
    initial_alpha: float = math.e
    """temperature at the start of training"""
    target_entropy_scale: float = 1.0
    """target entropy = -scale * action_dim, in nats"""


class Learner(NamedTuple):
    """The part of the state that gradient steps change."""

    actor: Trained
    target_actor: Params
    critic: Trained
    target_critic: Params
    log_alpha: Trained


def critic_loss(
    critic: Params,
    networks: Networks,
    learner: Learner,
    batch: Transition,
    noise: Array,
    z: Array,
    hypers: Hypers,
) -> tuple[Array, Metrics]:
    """Mean of `gaussian_loss`: (loss `[]`, metrics).

    `noise` `[batch, action_dim]` draws the next action from the target policy, `z` `[batch]` its return.
    """
    next_action, next_log_prob = networks.policy.draw(learner.target_actor, batch.next_obs, noise)
    next_mean, next_std = return_distribution(networks, learner.target_critic, batch.next_obs, next_action)
    next_return = sample_return(next_mean, next_std, z)
    target = soft_target(batch, next_return, next_log_prob, jnp.exp(learner.log_alpha.params), hypers.discount)
    mean, std = return_distribution(networks, critic, batch.obs, batch.action)
    clipped_target = clip_target(mean, target, hypers.td_bound)
    loss = jnp.mean(gaussian_loss(mean, std, target, clipped_target))
    return loss, {"critic_loss": loss, "q": jnp.mean(mean), "q_std": jnp.mean(std)}


def actor_loss(
    actor: Params, networks: Networks, critic: Params, log_alpha: Array, obs: Array, noise: Array
) -> tuple[Array, Array]:
    """mean(alpha log pi - Q): (loss `[]`, log-probabilities `[batch]`)."""
    action, log_prob = networks.policy.draw(actor, obs, noise)
    mean, _ = return_distribution(networks, critic, obs, action)
    return jnp.mean(jnp.exp(log_alpha) * log_prob - mean), log_prob


def init(config: Config, keys: Array, env: Env, hypers: Hypers) -> Learner:
    """New networks, each with a target of equal parameters, and their optimisers, from keys `[2]`."""
    networks, obs = networks_of(config.hidden_sizes, env), jnp.zeros(env.obs_dim)
    actor = networks.policy.network.init(keys[0], obs)
    critic = networks.critic.init(keys[1], jnp.concatenate([obs, jnp.zeros_like(networks.policy.low)]))
    log_alpha = jnp.log(jnp.asarray(hypers.initial_alpha, jnp.float32))
    return Learner(
        actor=Trained.start(actor, optax.adam(hypers.actor_learning_rate)),
        target_actor=actor,
        critic=Trained.start(critic, optax.adam(hypers.critic_learning_rate)),
        target_critic=critic,
        log_alpha=Trained.start(log_alpha, optax.adam(hypers.alpha_learning_rate)),
    )


def gradient_step(config: Config, before: Learner, step: Step) -> tuple[Learner, Metrics]:
    """One step of the critic, and every `policy_delay` steps one of the actor, the temperature and all targets."""
    networks, batch, hypers = networks_of(config.hidden_sizes, step.env), step.batch, step.hypers
    noise_key, z_key, actor_key = jax.random.split(step.key, 3)
    noise = jax.random.normal(noise_key, batch.action.shape)
    z = jax.random.normal(z_key, batch.reward.shape)
    adam = optax.adam(hypers.critic_learning_rate)
    critic, metrics = before.critic.descend(adam, critic_loss, networks, before, batch, noise, z, hypers)
    learner = before._replace(critic=critic)

    def move(learner: Learner) -> Learner:
        learner = step_policy(config, step, actor_key, before, learner, before.critic.params, actor_loss)
        targets = optax.incremental_update(learner.critic.params, learner.target_critic, hypers.tau)
        return learner._replace(target_critic=targets)

    return jax.lax.cond(is_due(config, step), move, lambda learner: learner, learner), metrics


def critique(config: Config, key: Array, env: Env, learner: Learner, obs: Array) -> Critique:
    """The soft value of an action drawn from the policy."""
    networks = networks_of(config.hidden_sizes, env)
    action, log_prob = networks.policy.sample(key, learner.actor.params, obs)
    bonus = -jnp.exp(learner.log_alpha.params) * log_prob
    mean, _ = return_distribution(networks, learner.critic.params, obs, action)
    return Critique(action, bonus, mean + bonus)


METHOD = off_policy.Method(init, behave, gradient_step, squashed.temperature, play, critique)


def make(config: Config) -> Algorithm:
    """DSAC with this config.

    Raises:
        UserError: the buffer does not hold whole steps of all environments, or a size is not positive.
    """
    return distributional_sac.make(config, METHOD)


TRIAL = Trial(
    Config(
        num_envs=4,
        num_steps=2,
        gradient_steps=8,
        batch_size=32,
        buffer_size=2048,
        warmup_steps=128,
        hidden_sizes=(32, 32),
        learn_alpha=False,
    ),
    Hypers(actor_learning_rate=1e-3, critic_learning_rate=3e-3, discount=0.5, tau=0.05, initial_alpha=1e-2),
    updates=250,
)

SPEC = AlgorithmSpec(
    Config,
    Hypers,
    make,
    TRIAL,
    action_spaces=(Box,),
    fit=fit,
    read_with={"alpha_learning_rate": {"learn_alpha": True}, "target_entropy_scale": {"learn_alpha": True}},
    summary="SAC whose critic gives a Gaussian of the return",
    source=Source(
        paper="Duan et al. 2021, arXiv 2001.02811",
        read="Jingliang-Duan/DSAC-v2 53447f4, dsac_v1.py",
        level="A",
    ),
)
