"""Batched stepping of one run's environments, and the only automatic reset in the suite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs.core import Box, Env, EnvState
from rlsuite.core import Transition

Array = jax.Array
Policy = Callable[[Array, Array], tuple[Array, Any]]
"""(key, obs `[num_envs, obs_dim]`) -> (action `[num_envs, ...]`, anything the learner wants to keep of this step)"""


class EnvCarry(NamedTuple):
    """The state of a run's environments between two calls."""

    state: EnvState
    """leading axis `[num_envs]`"""
    obs: Array
    """`[num_envs, obs_dim]`: the observation that the policy sees next, after any reset"""


def start(key: Array, env: Env, num_envs: int) -> EnvCarry:
    """Fresh episodes in `num_envs` environments."""
    state, obs = jax.vmap(env.reset)(jax.random.split(key, num_envs))
    return EnvCarry(state, obs)


def uniform_actions(key: Array, env: Env, num_envs: int) -> Array:
    """An action for each environment, uniform over the box: `[num_envs, action_dim]`."""
    assert isinstance(env.action_space, Box)
    low, high = jnp.asarray(env.action_space.low), jnp.asarray(env.action_space.high)
    return jax.random.uniform(key, (num_envs, len(low)), minval=low, maxval=high)


def step(keys: Array, env: Env, carry: EnvCarry, action: Array) -> tuple[EnvCarry, Transition]:
    """One step of every environment; those whose episode ended start a fresh one.

    `keys` are `[2, num_envs]`: for the steps, and for the resets. The transition `[num_envs, ...]` holds the
    observation that the step led to, never that of the reset. Every reset draws a new initial state; none is replayed
    from a cache.
    """
    step_keys, reset_keys = keys
    state, shown = jax.vmap(env.step)(step_keys, carry.state, action)
    fresh_state, fresh_obs = jax.vmap(env.reset)(reset_keys)
    done = shown.terminated | shown.truncated

    def where_done(fresh: Array, stepped: Array) -> Array:
        return jnp.where(done.reshape(done.shape + (1,) * (stepped.ndim - 1)), fresh, stepped)

    next_carry = EnvCarry(jax.tree.map(where_done, fresh_state, state), where_done(fresh_obs, shown.obs))
    return next_carry, Transition(carry.obs, action, shown.reward, shown.obs, shown.terminated, shown.truncated)


def collect(key: Array, env: Env, carry: EnvCarry, policy: Policy, num_steps: int) -> tuple[EnvCarry, Transition, Any]:
    """`num_steps` steps of every environment: new carry, transitions and extras, both `[time, num_envs, ...]`."""
    num_envs = carry.obs.shape[0]
    # All keys at once, instead of two splits in every step.
    pairs = jax.vmap(jax.random.split)(jax.random.split(key, num_steps))
    policy_keys, step_keys = pairs[:, 0], jax.vmap(lambda key: jax.random.split(key, (2, num_envs)))(pairs[:, 1])

    def body(carry: EnvCarry, keys: tuple[Array, Array]) -> tuple[EnvCarry, tuple[Transition, Any]]:
        policy_key, step_keys = keys
        action, extras = policy(policy_key, carry.obs)
        carry, transition = step(step_keys, env, carry, action)
        return carry, (transition, extras)

    carry, (transitions, extras) = jax.lax.scan(body, carry, (policy_keys, step_keys))
    return carry, transitions, extras
