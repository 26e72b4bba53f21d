"""Ensembles of critics Q(s, a): parameters stacked on a leading axis, Bellman targets and their squared error."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rlsuite.core import Metrics

Array = jax.Array
Params = Any


def init_critics(key: Array, critic: nn.Module, obs: Array, action: Array, num_critics: int = 2) -> Params:
    """Independent parameters of `num_critics` critics, stacked on a leading axis."""
    inputs = jnp.concatenate([obs, action])
    return jax.vmap(lambda key: critic.init(key, inputs))(jax.random.split(key, num_critics))


def q_values(critic: nn.Module, critics: Params, obs: Array, action: Array) -> Array:
    """All critics: `[..., obs_dim]`, `[..., action_dim]` -> `[num_critics, ...]`."""
    inputs = jnp.concatenate([obs, action], axis=-1)
    return jax.vmap(lambda params: critic.apply(params, inputs)[..., 0])(critics)


def min_q(critic: nn.Module, critics: Params, obs: Array, action: Array) -> Array:
    """The smallest value of all critics: `[...]`."""
    return jnp.min(q_values(critic, critics, obs, action), axis=0)


def first_q(critic: nn.Module, critics: Params, obs: Array, action: Array) -> Array:
    """The first critic alone, for an actor that needs no other: `[...]`."""
    first = jax.tree.map(lambda leaf: leaf[0], critics)
    values: Array = critic.apply(first, jnp.concatenate([obs, action], axis=-1))
    return values[..., 0]


def bellman_target(reward: Array, discount: Array | float, terminated: Array, next_value: Array) -> Array:
    """reward + discount * next_value, without the value after a termination, without gradient: all `[batch]`."""
    return jax.lax.stop_gradient(reward + discount * jnp.where(terminated, 0.0, next_value))


def squared_error(q: Array, target: Array) -> tuple[Array, Metrics]:
    """Sum over the critics of the mean squared error: `[num_critics, batch]`, `[batch]` -> (loss `[]`, metrics)."""
    loss = jnp.sum(jnp.mean((q - target) ** 2, axis=1))
    return loss, {"critic_loss": loss, "q": jnp.mean(q)}
