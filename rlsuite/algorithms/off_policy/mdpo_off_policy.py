"""Off-policy MDPO: mirror descent policy optimisation from a replay buffer (Tomar et al. 2020, arXiv 2005.09814).

Unlike in soft actor-critic, the policy is also held near an old policy, a copy of itself that is renewed every
`sgd_steps` environment steps. It minimises, over reparameterised actions,
E[kappa log pi + q (lambda - kappa) log pi_old - Q1], where kappa = 1 / t_k weighs the KL divergence (`kl_coef`), lambda
the entropy (`entropy_coef`), and q is the order of a Tsallis divergence, where 1 is KL. The details are those of the
authors' code: ReLU networks, log standard deviation clipped to [-20, 2], tanh-squashed Gaussian, two Q functions, V and
a target of V only, a small penalty on the means and log standard deviations, and one gradient step of everything at
once from the parameters before it. Log-densities are those of the action scaled to [-1, 1], each component's density
bounded from below at 1e-6 and the squashing's slope kept 1e-6 from 0; log_q is summed over the components.
`mdpo.py` is the other half of the paper. No setting gives SAC's bits: Q's target is a copy of V here, of Q there.

The code acts with the policy's mean after the warm-up, with no noise at all, where the paper samples. The code's is the
default here, since every other setting is the code's too; `sample_actions` gives the paper's.

Deviations from the code:
- V's target takes each sample's own log_q pi, as the paper does. The code subtracts their mean over the batch: its
  log_q pi is `[batch]` and its minimum of the Qs `[batch, 1]`, so that the difference is a table of all pairs, of
  which the loss takes the mean. `mean_log_prob` does as the code does; the loss that it reports leaves out half the
  variance of lambda log_q pi, a constant of V that the table adds.
- Adam adds epsilon (1e-8) after the bias correction, as in its paper and in PyTorch. The code's, of TensorFlow 1, adds
  it before, which makes it 32 times as large in the first step.
- Added: `anneal_kl` lets kappa grow as kl_coef / t_k, where t_k is the share of the budget left, at least 1e-4, as in
  on-policy MDPO; whether the paper does so here is not verified. By default kappa is constant, as in the code.
- The noise itself stands for (u - mean) / (std + 1e-6) under the present policy, and no 1e-6 is added to the old
  policy's standard deviation. The squashing's slope is computed where 1 - tanh^2 rounds to 0, too.
- The Q functions see actions as the environment takes them, not scaled to [-1, 1], and boxes need not be symmetric.
- PyTorch's default initialisation instead of TensorFlow's (Glorot, zero biases).
- Truncated transitions bootstrap with the value of the observation that they led to.
- Every update takes one step of `num_envs` environments, then `gradient_steps` gradient steps; published: 1 and 1.
- With several environments the old policy is renewed by the update in which a multiple of `sgd_steps` falls.
- Earlier code has lambda - q kappa instead of q (lambda - kappa), and a halved log_q; this file follows the newest.
- Left out: the loss without reparameterisation, which the code's scripts do not use.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from envs.core import Box, Env
from rlsuite.core import Algorithm, AlgorithmSpec, Metrics, Source, Transition, Trial, added
from rlsuite.errors import check_positive
from rlsuite.pieces import off_policy, replay, squashed
from rlsuite.pieces.critics import bellman_target, first_q, init_critics, min_q, q_values
from rlsuite.pieces.networks import MLP
from rlsuite.pieces.off_policy import Step
from rlsuite.pieces.trained import Trained
from rlsuite.pieces.tsallis import divergence_weight
from rlsuite.pieces.tsallis_policy import draw, log_density_of, log_q_prob, policy_of
from rlsuite.pieces.value_bias import Critique

Array = jax.Array
Params = Any


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings that shape the program."""

    num_envs: int = 1
    """environments stepped side by side in each run"""
    gradient_steps: int = 1
    """gradient steps in one update"""
    batch_size: int = 256
    """transitions in one gradient step"""
    buffer_size: int = 1_000_000
    """transitions kept; a smaller budget takes less memory"""
    warmup_steps: int = 10_000
    """environment steps with uniform actions before learning starts"""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """hidden layers of every network that has no option of its own"""
    sgd_steps: int = 1_000
    """environment steps from one renewal of the old policy to the next"""
    sample_actions: bool = False
    """collect with actions drawn from the policy, as the paper does; else with its mean, as the code does"""
    anneal_kl: bool = False
    """let the weight of the divergence grow as kl_coef / (1 - share of the budget); else it stays at kl_coef"""
    mean_log_prob: bool = added(False)
    """subtract the batch's mean log-probability from V's target, as the code does; else each sample's, as the paper"""


class Hypers(NamedTuple):
    """Settings that may differ between the runs of one program."""

    actor_learning_rate: float = 3e-4
    """learning rate of the actor"""
    critic_learning_rate: float = 3e-4
    """learning rate of both Q functions and of V"""
    discount: float = 0.99
    """discount factor of future rewards"""
    tau: float = 0.005
    """share of an online network that moves into its target whenever the target moves"""
    kl_coef: float = 1.0
    """weight of the divergence from the old policy at the start of the budget, 1 / t_0"""
    entropy_coef: float = 0.2
    """weight of the policy's entropy in V's target and in the actor's loss"""
    tsallis_q: float = 1.0
    """order of the divergence and of the entropy, where 1 is KL and Shannon's"""
    regularization: float = 1e-3
    """weight of the mean square of the policy's means, and of its log standard deviations"""


class Learner(NamedTuple):
    """The part of the state that gradient steps change."""

    actor: Trained
    old_actor: Params
    critics: Trained
    """both Q functions, stacked on a leading axis of 2"""
    value: Trained
    target_value: Params


class Networks(NamedTuple):
    """The three architectures."""

    policy: squashed.Policy
    critic: nn.Module
    value: nn.Module


def networks_of(config: Config, env: Env) -> Networks:
    """The architectures for this environment. MDPO takes `Box` actions here; the registry says so to the caller."""
    critic = MLP((*config.hidden_sizes, 1))
    return Networks(policy_of(config.hidden_sizes, env), critic, critic)


def values(networks: Networks, value: Params, obs: Array) -> Array:
    """V: `[..., obs_dim]` -> `[...]`."""
    out: Array = networks.value.apply(value, obs)
    return out[..., 0]


def critic_loss(
    critics: Params, networks: Networks, target_value: Params, batch: Transition, discount: Array | float
) -> tuple[Array, Metrics]:
    """Sum over the two Q functions of half the mean squared error to reward + discount * V of the target: `[]`."""
    next_value = values(networks, target_value, batch.next_obs)
    target = bellman_target(batch.reward, discount, batch.terminated, next_value)
    q = q_values(networks.critic, critics, batch.obs, batch.action)
    loss = 0.5 * jnp.sum(jnp.mean((q - target) ** 2, axis=1))
    return loss, {"critic_loss": loss, "q": jnp.mean(q)}


def value_loss(
    value: Params,
    networks: Networks,
    learner: Learner,
    obs: Array,
    noise: Array,
    hypers: Hypers,
    mean_log_prob: bool = False,
) -> tuple[Array, Metrics]:
    """Half the mean squared error of V to min Q - lambda log_q pi at the policy's actions: (loss `[]`, metrics).

    With `mean_log_prob` the target of every sample has the batch's mean of log_q pi.
    """
    drawn = draw(networks.policy, learner.actor.params, obs, noise)
    q = min_q(networks.critic, learner.critics.params, obs, drawn.action)
    log_prob = log_q_prob(drawn.log_density, hypers.tsallis_q)
    target = q - hypers.entropy_coef * (jnp.mean(log_prob) if mean_log_prob else log_prob)
    loss = 0.5 * jnp.mean((values(networks, value, obs) - jax.lax.stop_gradient(target)) ** 2)
    return loss, {"value_loss": loss}


def actor_loss(
    actor: Params,
    networks: Networks,
    learner: Learner,
    obs: Array,
    noise: Array,
    kl_weight: Array | float,
    hypers: Hypers,
) -> tuple[Array, Metrics]:
    """mean(kappa log_q pi + q (lambda - kappa) log_q pi_old - Q1) and the penalties: (loss `[]`, metrics)."""
    drawn = draw(networks.policy, actor, obs, noise)
    log_prob = log_q_prob(drawn.log_density, hypers.tsallis_q)
    old_log_prob = log_q_prob(log_density_of(networks.policy, learner.old_actor, obs, drawn.u), hypers.tsallis_q)
    q = first_q(networks.critic, learner.critics.params, obs, drawn.action)
    old_policy_term = hypers.tsallis_q * (hypers.entropy_coef - kl_weight) * old_log_prob
    penalty = hypers.regularization * (jnp.mean(drawn.mean**2) + jnp.mean(drawn.log_std**2))
    loss = jnp.mean(kl_weight * log_prob + old_policy_term - q) + penalty
    return loss, {"policy_loss": loss, "log_ratio": jnp.mean(log_prob - old_log_prob)}


def is_due(update: Array, config: Config) -> Array:
    """Whether one of the environment steps of this update, counted from 0, is a multiple of `sgd_steps`: `[]` bool."""
    return -(update * config.num_envs) % config.sgd_steps < config.num_envs


def init(config: Config, keys: Array, env: Env, hypers: Hypers) -> Learner:
    """New networks, equal copies as old policy and as target of V, and their optimisers, from keys `[3]`."""
    networks, obs = networks_of(config, env), jnp.zeros(env.obs_dim)
    actor = networks.policy.network.init(keys[0], obs)
    critics = init_critics(keys[1], networks.critic, obs, jnp.zeros_like(networks.policy.low))
    value = networks.value.init(keys[2], obs)
    return Learner(
        actor=Trained.start(actor, optax.adam(hypers.actor_learning_rate)),
        old_actor=actor,
        critics=Trained.start(critics, optax.adam(hypers.critic_learning_rate)),
        value=Trained.start(value, optax.adam(hypers.critic_learning_rate)),
        target_value=value,
    )


def behave(config: Config, key: Array, env: Env, learner: Learner, obs: Array, hypers: Hypers) -> Array:
    """The policy's squashed mean, or with `sample_actions` draws from it: `[..., obs_dim]` -> `[..., action_dim]`."""
    policy = networks_of(config, env).policy
    if not config.sample_actions:
        return policy.mean_action(learner.actor.params, obs)
    return policy.sample(key, learner.actor.params, obs)[0]


def gradient_step(config: Config, learner: Learner, step: Step) -> tuple[Learner, Metrics]:
    """One step of all networks. All gradients are taken before any of them moves, at one sample of the actions."""
    networks, batch, hypers = networks_of(config, step.env), step.batch, step.hypers
    noise = jax.random.normal(step.key, batch.action.shape)
    kl_weight = divergence_weight(config.anneal_kl, hypers.kl_coef, step.clock)
    actor_adam, critic_adam = optax.adam(hypers.actor_learning_rate), optax.adam(hypers.critic_learning_rate)
    actor, actor_metrics = learner.actor.descend(
        actor_adam, actor_loss, networks, learner, batch.obs, noise, kl_weight, hypers
    )
    critics, critic_metrics = learner.critics.descend(
        critic_adam, critic_loss, networks, learner.target_value, batch, hypers.discount
    )
    value, value_metrics = learner.value.descend(
        critic_adam, value_loss, networks, learner, batch.obs, noise, hypers, config.mean_log_prob
    )
    # After the last step of an update, so that this update still learns near the policy of the steps before it.
    renew = is_due(step.clock.update, config) & (step.number == config.gradient_steps - 1)
    old_actor = jax.lax.cond(renew, lambda: actor.params, lambda: learner.old_actor)
    target_value = optax.incremental_update(value.params, learner.target_value, hypers.tau)
    return Learner(actor, old_actor, critics, value, target_value), {**actor_metrics, **critic_metrics, **value_metrics}


def play(config: Config, env: Env, learner: Learner, obs: Array) -> Array:
    """The policy's squashed mean: `[obs_dim]` -> `[action_dim]`."""
    return networks_of(config, env).policy.mean_action(learner.actor.params, obs)


def critique(config: Config, key: Array, env: Env, learner: Learner, obs: Array) -> Critique:
    """V, of which the policy's log_q-probability is a part; the action is the one that evaluations play."""
    return Critique(
        play(config, env, learner, obs), jnp.zeros(()), values(networks_of(config, env), learner.value.params, obs)
    )


# No metrics but those of the gradient steps.
METHOD = off_policy.Method(init, behave, gradient_step, lambda learner: {}, play, critique)


def make(config: Config) -> Algorithm:
    """Off-policy MDPO with this config.

    Raises:
        UserError: the buffer does not hold whole steps of all environments, or a size is not positive.
    """
    check_positive(sgd_steps=config.sgd_steps)
    return off_policy.make(config, METHOD, num_networks=3)


def fit(config: Config, total_steps: int) -> Config:
    """The same training with no more buffer than the budget fills: results are identical, memory is not."""
    return replay.fitted(config, total_steps, config.num_envs)


TRIAL = Trial(
    Config(
        num_envs=4,
        gradient_steps=4,
        batch_size=32,
        buffer_size=2048,
        warmup_steps=64,
        hidden_sizes=(32, 32),
        sgd_steps=16,
    ),
    Hypers(actor_learning_rate=3e-3, critic_learning_rate=3e-3, discount=0.5, tau=0.05, kl_coef=0.1, entropy_coef=1e-3),
    updates=400,
)

SPEC = AlgorithmSpec(
    Config,
    Hypers,
    make,
    TRIAL,
    action_spaces=(Box,),
    fit=fit,
    summary="soft actor-critic held near an old policy",
    source=Source(
        paper="Tomar et al. 2020, arXiv 2005.09814",
        read="manantomar/Mirror-Descent-Policy-Optimization",
        level="A",
    ),
)
