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
- `num_critics` is free. The actor climbs the first critic, whatever their number.
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
from rlsuite.core import Algorithm, Clock, Metrics, Task, Transition, Trial
from rlsuite.errors import check_positive
from rlsuite.pieces import distributions, replay, rollout
from rlsuite.pieces.networks import MLP
from rlsuite.pieces.value_bias import Critique, reporter

Array = jax.Array
Params = Any


@dataclasses.dataclass(frozen=True)
class Config:
    """What shapes the program."""

    num_envs: int = 1
    """environments stepped side by side in each run; one update steps each of them once"""
    gradient_steps: int = 1
    """gradient steps in one update"""
    batch_size: int = 256
    """transitions in one gradient step"""
    buffer_size: int = 1_000_000
    """transitions kept; a budget that is smaller takes less memory"""
    warmup_steps: int = 25_000
    """environment steps with uniform actions before learning starts"""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """hidden layers of the actor and of each critic"""
    num_critics: int = 2
    """critics, of which the smallest target value counts"""
    policy_delay: int = 2
    """actor and targets move at every so-many-th gradient step"""
    value_bias_episodes: int = 0
    """episodes after which each evaluation reports the critic's bias (`pieces/value_bias.py`); 0 for no such metric"""


class Hypers(NamedTuple):
    """What may differ between the runs of one program."""

    actor_learning_rate: float = 3e-4
    critic_learning_rate: float = 3e-4
    discount: float = 0.99
    tau: float = 0.005
    """share of the online networks that moves into their targets whenever those move"""
    exploration_noise: float = 0.1
    """standard deviation of what is added to the actions taken, in half widths of the action box"""
    target_noise: float = 0.2
    """standard deviation of what is added to the target actor's actions, in the same units"""
    target_noise_clip: float = 0.5
    """bound of that noise, in the same units"""


class Learner(NamedTuple):
    """What gradient steps change."""

    actor: Params
    critics: Params
    """all critics, stacked on a leading axis `[num_critics]`"""
    target_actor: Params
    target_critics: Params
    actor_opt: optax.OptState
    critic_opt: optax.OptState


class State(NamedTuple):
    """All that one run carries from update to update."""

    learner: Learner
    buffer: replay.Replay
    envs: rollout.EnvCarry


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


def q_values(networks: Networks, critics: Params, obs: Array, action: Array) -> Array:
    """All critics: `[num_critics, ...]`."""
    inputs = jnp.concatenate([obs, action], axis=-1)
    return jax.vmap(lambda params: networks.critic.apply(params, inputs)[..., 0])(critics)


def first_q(networks: Networks, critics: Params, obs: Array, action: Array) -> Array:
    """The first critic alone, for the actor, which needs no other: `[...]`."""
    first = jax.tree.map(lambda leaf: leaf[0], critics)
    values: Array = networks.critic.apply(first, jnp.concatenate([obs, action], axis=-1))
    return values[..., 0]


def critic_loss(
    critics: Params, networks: Networks, learner: Learner, batch: Transition, noise: Array, hypers: Hypers
) -> tuple[Array, Metrics]:
    """Sum over the critics of the mean squared error to r + discount min Q'(s', mu'(s') + noise): (loss `[]`, metrics).

    `noise` `[batch, action_dim]` is standard normal; its scale and bounds are those of `hypers`.
    """
    clipped = jnp.clip(hypers.target_noise * noise, -hypers.target_noise_clip, hypers.target_noise_clip)
    next_action = perturb(networks, choose(networks, learner.target_actor, batch.next_obs), clipped)
    next_value = jnp.min(q_values(networks, learner.target_critics, batch.next_obs, next_action), axis=0)
    target = jax.lax.stop_gradient(batch.reward + hypers.discount * jnp.where(batch.terminated, 0.0, next_value))
    q = q_values(networks, critics, batch.obs, batch.action)
    loss = jnp.sum(jnp.mean((q - target) ** 2, axis=1))
    return loss, {"critic_loss": loss, "q": jnp.mean(q)}


def actor_loss(actor: Params, networks: Networks, critics: Params, obs: Array) -> Array:
    """-mean Q_1 of the actor's actions, the deterministic policy gradient: `[batch, obs_dim]` -> `[]`."""
    return -jnp.mean(first_q(networks, critics, obs, choose(networks, actor, obs)))


def make(config: Config) -> Algorithm:
    """TD3 with this config.

    Raises:
        UserError: the buffer does not hold whole steps of all environments, or a size is not positive.
    """
    check_positive(
        num_envs=config.num_envs,
        gradient_steps=config.gradient_steps,
        batch_size=config.batch_size,
        buffer_size=config.buffer_size,
        warmup_steps=config.warmup_steps,
        num_critics=config.num_critics,
        policy_delay=config.policy_delay,
    )
    replay.check_capacity(config.buffer_size, config.num_envs)
    warmup_updates = -(-config.warmup_steps // config.num_envs)

    def init(key: Array, task: Task, hypers: Hypers) -> State:
        actor_key, critic_key, envs_key = jax.random.split(key, 3)
        networks = networks_of(config, task.env)
        obs, action = jnp.zeros(task.env.obs_dim), jnp.zeros_like(networks.low)
        actor = networks.actor.init(actor_key, obs)
        critic_inputs = jnp.concatenate([obs, action])
        critic_keys = jax.random.split(critic_key, config.num_critics)
        critics = jax.vmap(lambda key: networks.critic.init(key, critic_inputs))(critic_keys)
        learner = Learner(
            actor=actor,
            critics=critics,
            target_actor=actor,
            target_critics=critics,
            actor_opt=optax.adam(hypers.actor_learning_rate).init(actor),
            critic_opt=optax.adam(hypers.critic_learning_rate).init(critics),
        )
        buffer = replay.init(replay.Layout.of(task.env), config.num_envs, config.buffer_size)
        return State(learner, buffer, rollout.start(envs_key, task.env, config.num_envs))

    def learn_critics(
        networks: Networks, learner: Learner, batch: Transition, noise: Array, hypers: Hypers
    ) -> tuple[Learner, Metrics]:
        grads, metrics = jax.grad(critic_loss, has_aux=True)(learner.critics, networks, learner, batch, noise, hypers)
        step, critic_opt = optax.adam(hypers.critic_learning_rate).update(grads, learner.critic_opt)
        return learner._replace(critics=optax.apply_updates(learner.critics, step), critic_opt=critic_opt), metrics

    def learn_actor(networks: Networks, learner: Learner, obs: Array, hypers: Hypers) -> Learner:
        grads = jax.grad(actor_loss)(learner.actor, networks, learner.critics, obs)
        step, actor_opt = optax.adam(hypers.actor_learning_rate).update(grads, learner.actor_opt)
        return learner._replace(actor=optax.apply_updates(learner.actor, step), actor_opt=actor_opt)

    def move_targets(learner: Learner, hypers: Hypers) -> Learner:
        online, targets = (learner.actor, learner.critics), (learner.target_actor, learner.target_critics)
        target_actor, target_critics = optax.incremental_update(online, targets, hypers.tau)
        return learner._replace(target_actor=target_actor, target_critics=target_critics)

    def update(key: Array, task: Task, state: State, hypers: Hypers, clock: Clock) -> tuple[State, Metrics]:
        env = task.env
        layout = replay.Layout.of(env)
        networks = networks_of(config, env)
        action_dim = networks.low.shape[0]
        collect_key, batch_key, noise_key = jax.random.split(key, 3)
        warming_up = clock.update < warmup_updates

        # Collect one step of every environment.
        def policy(key: Array, obs: Array) -> tuple[Array, None]:
            shape = (config.num_envs, action_dim)

            def uniform() -> Array:
                return jax.random.uniform(key, shape, minval=networks.low, maxval=networks.high)

            def exploring() -> Array:
                noise = hypers.exploration_noise * jax.random.normal(key, shape)
                return perturb(networks, choose(networks, state.learner.actor, obs), noise)

            return jax.lax.cond(warming_up, uniform, exploring), None

        envs, transitions, _ = rollout.collect(collect_key, env, state.envs, policy, 1)
        transitions = jax.tree.map(lambda x: x[0], transitions)
        buffer = replay.add(state.buffer, layout, transitions, envs.obs, clock.update)

        # Draw the batches of all gradient steps in one gather, outside the conditional: it never carries the buffer.
        batches = replay.sample(batch_key, buffer, layout, clock.update + 1, (config.gradient_steps, config.batch_size))

        def learn(learner: Learner) -> tuple[Learner, Metrics]:
            def gradient_step(learner: Learner, inputs: tuple[Array, Array, Transition]) -> tuple[Learner, Metrics]:
                i, key, batch = inputs
                noise = jax.random.normal(key, (config.batch_size, action_dim))
                learner, metrics = learn_critics(networks, learner, batch, noise, hypers)

                def follow(learner: Learner) -> Learner:
                    return move_targets(learn_actor(networks, learner, batch.obs, hypers), hypers)

                due = (clock.update * config.gradient_steps + i) % config.policy_delay == 0
                return jax.lax.cond(due, follow, lambda learner: learner, learner), metrics

            keys = jax.random.split(noise_key, config.gradient_steps)
            learner, metrics = jax.lax.scan(gradient_step, learner, (jnp.arange(config.gradient_steps), keys, batches))
            return learner, jax.tree.map(jnp.mean, metrics)

        def wait(learner: Learner) -> tuple[Learner, Metrics]:
            return learner, {"critic_loss": jnp.zeros(()), "q": jnp.zeros(())}

        learner, metrics = jax.lax.cond(warming_up, wait, learn, state.learner)
        return State(learner, buffer, envs), metrics

    def act(key: Array, task: Task, state: State, obs: Array) -> Array:
        return choose(networks_of(config, task.env), state.learner.actor, obs)

    def critique(key: Array, task: Task, state: State, obs: Array) -> Critique:
        networks = networks_of(config, task.env)
        action = choose(networks, state.learner.actor, obs)
        q = jnp.min(q_values(networks, state.learner.critics, obs, action), axis=0)
        return Critique(action, jnp.zeros(()), q)

    def value(key: Array, task: Task, state: State, obs: Array) -> Array:
        return critique(key, task, state, obs).value

    return Algorithm(init, update, act, config.num_envs, value, reporter(config.value_bias_episodes, critique))


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
