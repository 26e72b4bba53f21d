"""TD3: twin delayed deep deterministic policy gradient (Fujimoto et al. 2018, arXiv 1802.09477).

A deterministic actor, the minimum of two target critics, a target actor whose actions are smoothed by clipped noise,
and an actor that moves, with all targets, at every second gradient step only. Details as in CleanRL's
`td3_continuous_action.py`.

Deviations from the paper:
- Sizes and rates are CleanRL's: two layers of 256, 3e-4, 256 transitions, where the authors' first code has layers of
  400 and 300, 1e-3 and 100 transitions.
- Both noises are in units of half the width of the action box, as in CleanRL; in the authors' first code they have the
  units of the action. On Humanoid, whose box is +-0.4, ours are 0.4 times as large.

Deviations from CleanRL:
- Smoothed target actions are clipped to the bounds of each dimension; CleanRL takes those of the first for all.
- Every update takes one step of `num_envs` environments, then `gradient_steps` gradient steps. The ratio is free: 1 and
  1 are the published protocol. The delay counts gradient steps.
- Learning starts with the first step that the actor takes, one later in CleanRL.
- `num_critics` is free. The actor maximises the first critic, whatever their number.
- Evaluation plays the actor's action; CleanRL's adds exploration noise there too.

As in CleanRL, a truncated transition bootstraps with the value of the observation that it led to.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from envs.core import Box, Env
from rlsuite.core import Algorithm, AlgorithmSpec, Metrics, Source, Transition, Trial
from rlsuite.errors import check_positive
from rlsuite.pieces import distributions, off_policy, replay
from rlsuite.pieces.critics import bellman_target, first_q, init_critics, min_q, q_values, squared_error
from rlsuite.pieces.networks import MLP
from rlsuite.pieces.off_policy import Step
from rlsuite.pieces.trained import Trained
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
    warmup_steps: int = 25_000
    """environment steps with uniform actions before learning starts"""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """hidden layers of every network that has no option of its own"""
    num_critics: int = 2
    """number of critics; targets take the smallest of their values"""
    policy_delay: int = 2
    """gradient steps of the critics for each step of the actor and of all targets"""
    value_bias_episodes: int = 0
    """episodes after which each evaluation reports the critic's bias (`pieces/value_bias.py`); 0 turns this off"""


class Hypers(NamedTuple):
    """Settings that may differ between the runs of one program."""

    actor_learning_rate: float = 3e-4
    """learning rate of the actor"""
    critic_learning_rate: float = 3e-4
    """learning rate of the critics"""
    discount: float = 0.99
    """discount factor of future rewards"""
    tau: float = 0.005
    """share of an online network that moves into its target whenever the target moves"""
    exploration_noise: float = 0.1
    """standard deviation of the noise on the actions taken, in half widths of the action box"""
    target_noise: float = 0.2
    """standard deviation of the noise on the target actor's actions, in half widths of the action box"""
    target_noise_clip: float = 0.5
    """bound of the noise on the target actor's actions, in half widths of the action box"""


class Learner(NamedTuple):
    """The part of the state that gradient steps change."""

    actor: Trained
    critics: Trained
    """all critics, stacked on a leading axis `[num_critics]`"""
    target_actor: Params
    target_critics: Params


class Networks(NamedTuple):
    """The two architectures, and the action box they serve."""

    actor: nn.Module
    critic: nn.Module
    low: Array
    """`[action_dim]`"""
    high: Array
    """`[action_dim]`"""


def networks_of(config: Config, env: Env) -> Networks:
    """The architectures for this environment. TD3 is for `Box` actions; the registry says so to the caller."""
    space = env.action_space
    assert isinstance(space, Box)
    actor = MLP((*config.hidden_sizes, space.dim))
    critic = MLP((*config.hidden_sizes, 1))
    return Networks(actor, critic, jnp.asarray(space.low), jnp.asarray(space.high))


def choose(networks: Networks, actor: Params, obs: Array) -> Array:
    """The actor's action in the box: `[..., obs_dim]` -> `[..., action_dim]`."""
    return distributions.tanh_squash(networks.actor.apply(actor, obs), networks.low, networks.high)[0]


def perturb(networks: Networks, action: Array, noise: Array) -> Array:
    """The action plus noise in units of half the box, clipped to the box: all `[..., action_dim]`."""
    half_width = 0.5 * (networks.high - networks.low)
    return jnp.clip(action + half_width * noise, networks.low, networks.high)


def critic_loss(
    critics: Params, networks: Networks, learner: Learner, batch: Transition, noise: Array, hypers: Hypers
) -> tuple[Array, Metrics]:
    """Sum over the critics of the mean squared error to r + discount min Q'(s', mu'(s') + noise): (loss `[]`, metrics).

    `noise` `[batch, action_dim]` is standard normal; its scale and bounds are those of `hypers`.
    """
    clipped = jnp.clip(hypers.target_noise * noise, -hypers.target_noise_clip, hypers.target_noise_clip)
    next_action = perturb(networks, choose(networks, learner.target_actor, batch.next_obs), clipped)
    next_value = min_q(networks.critic, learner.target_critics, batch.next_obs, next_action)
    target = bellman_target(batch.reward, hypers.discount, batch.terminated, next_value)
    return squared_error(q_values(networks.critic, critics, batch.obs, batch.action), target)


def actor_loss(actor: Params, networks: Networks, critics: Params, obs: Array) -> Array:
    """-mean Q_1 of the actor's actions, the deterministic policy gradient: `[batch, obs_dim]` -> `[]`."""
    return -jnp.mean(first_q(networks.critic, critics, obs, choose(networks, actor, obs)))


def init(config: Config, keys: Array, env: Env, hypers: Hypers) -> Learner:
    """New networks, each with a target of equal parameters, and their optimisers, from keys `[2]`."""
    networks, obs = networks_of(config, env), jnp.zeros(env.obs_dim)
    actor = networks.actor.init(keys[0], obs)
    critics = init_critics(keys[1], networks.critic, obs, jnp.zeros_like(networks.low), config.num_critics)
    return Learner(
        actor=Trained.start(actor, optax.adam(hypers.actor_learning_rate)),
        critics=Trained.start(critics, optax.adam(hypers.critic_learning_rate)),
        target_actor=actor,
        target_critics=critics,
    )


def behave(config: Config, key: Array, env: Env, learner: Learner, obs: Array, hypers: Hypers) -> Array:
    """The actor's actions with exploration noise: `[..., obs_dim]` -> `[..., action_dim]`."""
    networks = networks_of(config, env)
    action = choose(networks, learner.actor.params, obs)
    return perturb(networks, action, hypers.exploration_noise * jax.random.normal(key, action.shape))


def gradient_step(config: Config, learner: Learner, step: Step) -> tuple[Learner, Metrics]:
    """One step of the critics, and every `policy_delay` steps one of the actor and of all targets."""
    networks, batch, hypers = networks_of(config, step.env), step.batch, step.hypers
    noise = jax.random.normal(step.key, batch.action.shape)
    grads, metrics = jax.grad(critic_loss, has_aux=True)(
        learner.critics.params, networks, learner, batch, noise, hypers
    )
    learner = learner._replace(critics=learner.critics.step(grads, optax.adam(hypers.critic_learning_rate)))

    def learn_actor(learner: Learner) -> Learner:
        grads = jax.grad(actor_loss)(learner.actor.params, networks, learner.critics.params, batch.obs)
        actor = learner.actor.step(grads, optax.adam(hypers.actor_learning_rate))
        targets = learner.target_actor, learner.target_critics
        target_actor, target_critics = optax.incremental_update(
            (actor.params, learner.critics.params), targets, hypers.tau
        )
        return learner._replace(actor=actor, target_actor=target_actor, target_critics=target_critics)

    due = off_policy.is_due(step.clock.update * config.gradient_steps + step.number, config.policy_delay)
    return jax.lax.cond(due, learn_actor, lambda learner: learner, learner), metrics


def report(learner: Learner) -> Metrics:
    """Nothing more than the gradient steps report."""
    return {}


def play(config: Config, env: Env, learner: Learner, obs: Array) -> Array:
    """The actor's action: `[obs_dim]` -> `[action_dim]`."""
    return choose(networks_of(config, env), learner.actor.params, obs)


def critique(config: Config, key: Array, env: Env, learner: Learner, obs: Array) -> Critique:
    """The value of the actor's action."""
    networks, action = networks_of(config, env), play(config, env, learner, obs)
    return Critique(action, jnp.zeros(()), min_q(networks.critic, learner.critics.params, obs, action))


METHOD = off_policy.Method(init, behave, gradient_step, report, play, critique)


def make(config: Config) -> Algorithm:
    """TD3 with this config.

    Raises:
        UserError: the buffer does not hold whole steps of all environments, or a size is not positive.
    """
    check_positive(num_critics=config.num_critics, policy_delay=config.policy_delay)
    return off_policy.make(config, METHOD, value_bias_episodes=config.value_bias_episodes)


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
    ),
    Hypers(actor_learning_rate=3e-3, critic_learning_rate=3e-3, discount=0.5, tau=0.1, exploration_noise=0.3),
    updates=400,
)

SPEC = AlgorithmSpec(
    Config,
    Hypers,
    make,
    TRIAL,
    action_spaces=(Box,),
    fit=fit,
    summary="deterministic actor, twin critics, smoothed targets, delayed updates",
    source=Source(paper="Fujimoto et al. 2018, arXiv 1802.09477", read="CleanRL, td3_continuous_action.py", level="B"),
)
