"""The buffer of a run's last few rollouts, stored as they came and judged anew by whichever policy learns from it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs.core import Box
from rlsuite.core import Task, Transition
from rlsuite.errors import UserError, check_positive
from rlsuite.pieces import actor_critic, normalize, rollout
from rlsuite.pieces.actor_critic import Networks, distribution
from rlsuite.pieces.advantages import Batch, estimate, seen
from rlsuite.pieces.settings import RolloutBuffer

Array = jax.Array
Params = Any


class Memory(NamedTuple):
    """The part of the state that collecting changes."""

    buffer: Transition
    """`[time, num_envs, ...]`, the newest step last; time = buffer_batches * num_steps. As it came, but for the action,
    which is the policy's, not yet clipped to the box. Zeros where nothing is stored yet."""
    obs_stats: normalize.RunningStats
    return_stats: normalize.RunningStats
    discounted_return: Array
    """`[num_envs]`: the running sum whose variance `return_stats` holds"""


class Recall(NamedTuple):
    """Transitions of the buffer, oldest first, as a policy and its value network see them now."""

    rows: Batch
    """leading axis `[batch]`"""
    valid: Array
    """`[batch]` bool: the row is stored"""
    num_valid: Array
    """`[]` int32: number of stored rows, which are the last ones"""


def check(config: RolloutBuffer) -> int:
    """The transitions that the buffer holds. Raises UserError, naming value and remedy, for sizes that cannot work."""
    check_positive(
        num_envs=config.num_envs,
        num_steps=config.num_steps,
        buffer_batches=config.buffer_batches,
        num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches,
        sampling_error_interval=config.sampling_error_interval,
    )
    if config.sampling_error_epochs < 0:
        raise UserError(
            f"sampling_error_epochs={config.sampling_error_epochs} must be at least 0, which turns the measurement off"
        )
    rows = config.buffer_batches * config.num_envs * config.num_steps
    if config.num_minibatches % config.buffer_batches or rows % config.num_minibatches:
        raise UserError(
            f"num_minibatches={config.num_minibatches} must be a multiple of buffer_batches={config.buffer_batches} "
            f"and divide the whole buffer, num_envs * num_steps * buffer_batches = {rows}; choose such a number"
        )
    if config.normalize_advantage and rows == config.num_minibatches:
        raise UserError(
            f"num_minibatches={config.num_minibatches} leaves minibatches of one sample, whose advantages have no "
            "standard deviation; choose fewer minibatches or normalize_advantage=False"
        )
    return rows


def check_rounds(config: RolloutBuffer, behavior_steps: int) -> int:
    """The transitions that a round leaves in the buffer, for methods that make a behaviour policy of them.

    Raises:
        UserError: a size does not divide what it has to, or nothing is left.
    """
    check_positive(behavior_steps=behavior_steps)
    if config.num_steps % behavior_steps:
        raise UserError(
            f"behavior_steps={behavior_steps} does not divide num_steps={config.num_steps}; choose a divisor"
        )
    kept = check(config) - config.num_envs * behavior_steps
    if not kept:
        raise UserError(
            f"behavior_steps={behavior_steps} replaces the whole buffer, so that there is nothing to correct; "
            "choose fewer, or more buffer_batches"
        )
    return kept


def store(buffer: Transition, steps: Transition) -> Transition:
    """The buffer with these newest `steps` `[time, num_envs, ...]` at its end and as many of the oldest gone."""
    return jax.tree.map(lambda old, new: jnp.concatenate([old[len(new) :], new.astype(old.dtype)]), buffer, steps)


def flatten(tree: Any) -> Any:
    """`[time, num_envs, ...]` -> `[time * num_envs, ...]`"""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def empty_buffer(config: RolloutBuffer, task: Task) -> Transition:
    """Zeros, `[buffer_batches * num_steps, num_envs, ...]`."""
    space = task.env.action_space

    def zeros(*shape: int, dtype: Any = jnp.float32) -> Array:
        return jnp.zeros((config.buffer_batches * config.num_steps, config.num_envs, *shape), dtype)

    return Transition(
        obs=zeros(task.env.obs_dim),
        action=zeros(space.dim) if isinstance(space, Box) else zeros(dtype=jnp.int32),
        reward=zeros(),
        next_obs=zeros(task.env.obs_dim),
        terminated=zeros(dtype=bool),
        truncated=zeros(dtype=bool),
    )


def init(config: RolloutBuffer, task: Task) -> Memory:
    """A memory of nothing."""
    obs_stats, return_stats = normalize.init((task.env.obs_dim,)), normalize.init()
    return Memory(empty_buffer(config, task), obs_stats, return_stats, jnp.zeros(config.num_envs))


def judge(config: RolloutBuffer, networks: Networks, params: Params, memory: Memory, hypers: Any) -> Batch:
    """The whole buffer as this policy and this value network see it now, `[time, num_envs, ...]`."""
    buffer, stats = memory.buffer, (memory.obs_stats, memory.return_stats)
    obs = seen(config, memory.obs_stats, buffer.obs)
    dist, value = networks.apply(params, obs)
    advantage = estimate(config, networks, params, buffer, value, *stats, hypers)
    log_prob = actor_critic.log_prob(dist, buffer.action)
    return Batch(obs, buffer.action, dist, log_prob, value, advantage, advantage + value)


def recall(
    config: RolloutBuffer,
    networks: Networks,
    memory: Memory,
    hypers: Any,
    steps: Array,
    dropped: int,
    params: Params,
) -> Recall:
    """The buffer without its `dropped` oldest steps, judged by `params`.

    `steps` `[]` int32 are all that each environment has taken.
    """
    judged = judge(config, networks, params, memory, hypers)
    rows: Batch = flatten(jax.tree.map(lambda x: x[dropped:], judged))
    size = len(rows.log_prob)
    count = jnp.minimum(steps * config.num_envs, size)
    return Recall(rows, jnp.arange(size) >= size - count, count)


def collect(
    config: RolloutBuffer,
    key: Array,
    task: Task,
    networks: Networks,
    actor: Params,
    memory: Memory,
    envs: Any,
    steps: int,
    discount: Array,
) -> tuple[Memory, rollout.EnvCarry]:
    """`steps` steps of every environment with this actor, stored over the oldest."""

    # The unclipped action comes along.
    def policy(key: Array, obs: Array) -> tuple[Array, Array]:
        action = actor_critic.draw(key, distribution(networks, actor, seen(config, memory.obs_stats, obs)))
        return actor_critic.into_box(task.env, action), action

    envs, transitions, action = rollout.collect(key, task.env, envs, policy, steps)
    done = transitions.terminated | transitions.truncated
    discounted_return, sums = normalize.discounted_returns(memory.discounted_return, transitions.reward, done, discount)
    memory = Memory(
        buffer=store(memory.buffer, transitions._replace(action=action)),
        obs_stats=normalize.update(memory.obs_stats, flatten(transitions.obs)),
        return_stats=normalize.update(memory.return_stats, flatten(sums)),
        discounted_return=discounted_return,
    )
    return memory, envs
