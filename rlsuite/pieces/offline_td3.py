"""The loop of TD3 on a dataset: twin critics at every step, a deterministic actor and all targets at every second one.

A method fills four slots. Networks see actions in units of the action box, that is in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from envs.core import Box
from envs.datasets import Batch
from rlsuite.core import Algorithm, Clock, Metrics, Task
from rlsuite.errors import check_positive
from rlsuite.pieces import offline
from rlsuite.pieces.critics import bellman_target, first_q, init_critics, min_q, q_values, squared_error
from rlsuite.pieces.networks import MLP
from rlsuite.pieces.trained import Trained

Array = jax.Array
Params = Any


class Config(Protocol):
    """The fields of a method's `Config` that the loop reads; their texts are there."""

    @property
    def batch_size(self) -> int: ...
    @property
    def hidden_sizes(self) -> tuple[int, ...]: ...
    @property
    def policy_delay(self) -> int: ...
    @property
    def normalize_obs(self) -> bool: ...


class State(NamedTuple):
    """All that one run carries from update to update."""

    actor: Trained
    critics: Trained
    """both critics, stacked on a leading axis `[2]`"""
    target_actor: Params
    target_critics: Params


class Networks(NamedTuple):
    """The two architectures."""

    actor: nn.Module
    critic: nn.Module


class Method(NamedTuple):
    """The slots of an offline method after TD3."""

    networks: Callable[[Any, int], Networks]
    """(config, action_dim) -> architectures"""
    critic_loss: Callable[[Params, Networks, State, Batch, Array, Any], tuple[Array, Metrics]]
    """(critics, networks, state, batch, noise `[batch, action_dim]`, hypers) -> (loss `[]`, metrics)"""
    anchor: Callable[[Any, Task, Batch, Array, Any], Array]
    """(config, task, batch as recorded, the actor's actions `[batch, action_dim]`, hypers) -> actions to imitate, which
    are held constant"""
    actor_loss: Callable[[Params, Networks, Params, Array, Array, Any], Array]
    """(actor, networks, critics, obs `[batch, obs_dim]`, anchor `[batch, action_dim]`, hypers) -> loss `[]`"""


def networks(config: Config, action_dim: int) -> Networks:
    """Plain networks with the config's hidden layers."""
    return Networks(MLP((*config.hidden_sizes, action_dim)), MLP((*config.hidden_sizes, 1)))


def choose(networks: Networks, actor: Params, obs: Array) -> Array:
    """The actor's action in units of the box: `[..., obs_dim]` -> `[..., action_dim]`."""
    return jnp.tanh(networks.actor.apply(actor, obs))


def smoothed_action(networks: Networks, target_actor: Params, next_obs: Array, noise: Array, hypers: Any) -> Array:
    """mu'(s') + noise, clipped to the box. `noise` `[batch, action_dim]` is standard normal; `hypers` scales it."""
    clipped = jnp.clip(hypers.target_noise * noise, -hypers.target_noise_clip, hypers.target_noise_clip)
    return jnp.clip(choose(networks, target_actor, next_obs) + clipped, -1.0, 1.0)


def critic_loss(
    critics: Params, networks: Networks, state: State, batch: Batch, noise: Array, hypers: Any
) -> tuple[Array, Metrics]:
    """Sum over the critics of the mean squared error to r + discount min Q'(s', mu'(s') + noise): (loss `[]`, metrics).

    `noise` `[batch, action_dim]` is standard normal; its scale and bounds are those of `hypers`.
    """
    next_action = smoothed_action(networks, state.target_actor, batch.next_obs, noise, hypers)
    next_value = min_q(networks.critic, state.target_critics, batch.next_obs, next_action)
    target = bellman_target(batch.reward, hypers.discount, batch.terminated, next_value)
    return squared_error(q_values(networks.critic, critics, batch.obs, batch.action), target)


def recorded_action(config: Config, task: Task, recorded: Batch, action: Array, hypers: Any) -> Array:
    """The dataset's own action: `[batch, action_dim]`."""
    return recorded.action


def actor_loss(actor: Params, networks: Networks, critics: Params, obs: Array, anchor: Array, hypers: Any) -> Array:
    """-lambda mean Q_1(s, mu(s)) + mean (mu(s) - anchor)^2, with lambda = alpha / mean |Q_1| held constant: `[]`."""
    action = choose(networks, actor, obs)
    q = first_q(networks.critic, critics, obs, action)
    scale = hypers.alpha / jax.lax.stop_gradient(jnp.mean(jnp.abs(q)))
    return -scale * jnp.mean(q) + jnp.mean((action - anchor) ** 2)


def make(config: Config, method: Method) -> Algorithm:
    """The algorithm of a method. Raises UserError if a size is not positive."""
    check_positive(batch_size=config.batch_size, policy_delay=config.policy_delay)

    def networks_of(task: Task) -> Networks:
        assert isinstance(task.env.action_space, Box)
        return method.networks(config, task.env.action_space.dim)

    def init(key: Array, task: Task, hypers: Any) -> State:
        actor_key, critic_key = jax.random.split(key)
        networks, obs = networks_of(task), jnp.zeros(task.env.obs_dim)
        actor = networks.actor.init(actor_key, obs)
        critics = init_critics(critic_key, networks.critic, obs, choose(networks, actor, obs))
        return State(
            actor=Trained.start(actor, optax.adam(hypers.actor_learning_rate)),
            critics=Trained.start(critics, optax.adam(hypers.critic_learning_rate)),
            target_actor=actor,
            target_critics=critics,
        )

    def update(key: Array, task: Task, state: State, hypers: Any, clock: Clock) -> tuple[State, Metrics]:
        networks = networks_of(task)
        batch_key, noise_key = jax.random.split(key)
        recorded = offline.sample(batch_key, task, (config.batch_size,), normalize_obs=False)
        batch = offline.observed(task, recorded, config.normalize_obs)
        noise = jax.random.normal(noise_key, batch.action.shape)
        grads, metrics = jax.grad(method.critic_loss, has_aux=True)(
            state.critics.params, networks, state, batch, noise, hypers
        )
        state = state._replace(critics=state.critics.step(grads, optax.adam(hypers.critic_learning_rate)))

        def learn_actor(state: State) -> State:
            action = choose(networks, state.actor.params, batch.obs)
            anchor = method.anchor(config, task, recorded, action, hypers)
            grads = jax.grad(method.actor_loss)(
                state.actor.params, networks, state.critics.params, batch.obs, anchor, hypers
            )
            actor = state.actor.step(grads, optax.adam(hypers.actor_learning_rate))
            online, targets = (actor.params, state.critics.params), (state.target_actor, state.target_critics)
            return State(actor, state.critics, *optax.incremental_update(online, targets, hypers.tau))

        due = clock.update % config.policy_delay == 0
        return jax.lax.cond(due, learn_actor, lambda state: state, state), metrics

    def act(key: Array, task: Task, state: State, obs: Array) -> Array:
        obs = offline.observe(task, obs, config.normalize_obs)
        return offline.to_box(task, choose(networks_of(task), state.actor.params, obs))

    def value(key: Array, task: Task, state: State, obs: Array) -> Array:
        networks, obs = networks_of(task), offline.observe(task, obs, config.normalize_obs)
        return min_q(networks.critic, state.critics.params, obs, choose(networks, state.actor.params, obs))

    return Algorithm(init, update, act, 1, value)


METHOD = Method(networks, critic_loss, recorded_action, actor_loss)
"""TD3+BC."""
