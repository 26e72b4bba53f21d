"""TD3's deterministic actor and twin critics on a dataset: actions, losses, and the step that moves the targets.

Actions are in units of the action box, that is in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from envs.datasets import Batch
from rlsuite.core import Metrics, Task
from rlsuite.pieces import offline
from rlsuite.pieces.critics import bellman_target, first_q, min_q, q_values, squared_error
from rlsuite.pieces.trained import Trained

Array = jax.Array
Params = Any
StateT = TypeVar("StateT", bound=Any)
"""`State`, or a record with these fields and more"""


class Networks(NamedTuple):
    """The two architectures."""

    actor: nn.Module
    critic: nn.Module


class State(NamedTuple):
    """All that one run carries from update to update."""

    actor: Trained
    critics: Trained
    """both critics, stacked on a leading axis `[2]`"""
    target_actor: Params
    target_critics: Params


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


def actor_loss(actor: Params, networks: Networks, critics: Params, obs: Array, anchor: Array, hypers: Any) -> Array:
    """-lambda mean Q_1(s, mu(s)) + mean (mu(s) - anchor)^2, with lambda = alpha / mean |Q_1| held constant: `[]`."""
    action = choose(networks, actor, obs)
    q = first_q(networks.critic, critics, obs, action)
    scale = hypers.alpha / jax.lax.stop_gradient(jnp.mean(jnp.abs(q)))
    return -scale * jnp.mean(q) + jnp.mean((action - anchor) ** 2)


def step_actor(state: StateT, grads: Params, hypers: Any) -> StateT:
    """One step of the actor, after which both targets move."""
    actor = state.actor.step(grads, optax.adam(hypers.actor_learning_rate))
    online, targets = (actor.params, state.critics.params), (state.target_actor, state.target_critics)
    target_actor, target_critics = optax.incremental_update(online, targets, hypers.tau)
    return state._replace(actor=actor, target_actor=target_actor, target_critics=target_critics)


def acting(normalize_obs: bool, networks_of: Callable[[Task], Networks]) -> tuple[Any, Any]:
    """`act` and `value` of an `Algorithm` whose state has `actor` and `critics`."""

    def act(key: Array, task: Task, state: Any, obs: Array) -> Array:
        obs = offline.observe(task, obs, normalize_obs)
        return offline.to_box(task, choose(networks_of(task), state.actor.params, obs))

    def value(key: Array, task: Task, state: Any, obs: Array) -> Array:
        networks, obs = networks_of(task), offline.observe(task, obs, normalize_obs)
        return min_q(networks.critic, state.critics.params, obs, choose(networks, state.actor.params, obs))

    return act, value
