"""Returns of complete episodes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlsuite.core import Algorithm, State, Task

Array = jax.Array


class Episodes(NamedTuple):
    """Every episode of one evaluation, none cut short and none counted twice."""

    returns: Array
    """`[num_episodes]` undiscounted sum of rewards"""
    lengths: Array
    """`[num_episodes]` int32 steps"""


def evaluate(
    key: Array, algorithm: Algorithm, task: Task, state: State, num_episodes: int, skip: Array | bool = False
) -> Episodes:
    """Play `num_episodes` episodes side by side with the evaluation policy, until the last of them has ended.

    Where `skip` `[]` bool is true, none is played and all are of length 0: no other run of a batch waits for them.
    """
    env = task.env
    reset_key, loop_key = jax.random.split(key)
    env_state, obs = jax.vmap(env.reset)(jax.random.split(reset_key, num_episodes))
    episodes = Episodes(jnp.zeros(num_episodes), jnp.zeros(num_episodes, jnp.int32))
    act = jax.vmap(algorithm.act, in_axes=(0, None, None, 0))

    def going_on(loop: tuple[Any, ...]) -> Array:
        return ~jnp.all(loop[-1])

    def play(loop: tuple[Any, ...]) -> tuple[Any, ...]:
        t, env_state, obs, episodes, over = loop
        act_keys, step_keys = jax.random.split(jax.random.fold_in(loop_key, t), (2, num_episodes))
        action = act(act_keys, task, state, obs)
        env_state, shown = jax.vmap(env.step)(step_keys, env_state, action)
        # An episode that is over is stepped along with the others; nothing that it shows counts any more.
        returns = episodes.returns + jnp.where(over, 0.0, shown.reward)
        lengths = episodes.lengths + jnp.where(over, 0, 1)
        return t + 1, env_state, shown.obs, Episodes(returns, lengths), over | shown.terminated | shown.truncated

    loop = (jnp.int32(0), env_state, obs, episodes, jnp.full(num_episodes, skip))
    return jax.lax.while_loop(going_on, play, loop)[3]
