"""Returns of complete episodes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.core import Env
from rlsuite.core import Algorithm, State, Task
from rlsuite.errors import UserError

Array = jax.Array


class Episodes(NamedTuple):
    """Every episode of one evaluation, none cut short and none counted twice, if all have `ended`."""

    returns: Array
    """`[num_episodes]` undiscounted sum of rewards"""
    lengths: Array
    """`[num_episodes]` int32 steps"""
    ended: Array
    """`[num_episodes]` bool: it terminated or was truncated, by the environment's own time limit at the latest; or it
    was skipped. See `check_ended`"""
    seen: Array
    """`[num_episodes]` bool: every observation of it was finite"""


def no_episodes(num_episodes: int, skip: Array | bool) -> Episodes:
    """Before the first step; all are over where `skip` `[]` bool is true."""
    lengths = jnp.zeros(num_episodes, jnp.int32)
    return Episodes(jnp.zeros(num_episodes), lengths, jnp.full(num_episodes, skip), jnp.ones(num_episodes, bool))


def check_ended(ended: Any, env: Env) -> None:
    """Raise UserError, naming the environment, unless all episodes (`[...]` bool) came to an end."""
    ended = np.asarray(ended)
    if not ended.all():
        raise UserError(
            f"'{env.id}' neither terminated nor truncated {np.sum(~ended)} of {ended.size} episodes within its time "
            f"limit of {env.max_episode_steps} steps; have its step set truncated at max_episode_steps"
        )


def seen_until(t: Array | int, episodes: Episodes, obs: Array) -> Array:
    """`[num_episodes]` bool, as `Episodes.seen`, with the observations `[num_episodes, obs_dim]` that step `t - 1` led
    to. What has been over before that step shows nothing that counts."""
    return episodes.seen & (jnp.all(jnp.isfinite(obs), axis=-1) | (episodes.lengths < t))


def over_finite(statistic: Any, returns: np.ndarray) -> np.ndarray:
    """One of NumPy's `nanmean`, `nanstd`, `nanmin`, `nanmax` of the returns `[runs, num_episodes]` that are finite:
    `[runs]`, NaN where none is.

    An environment may fail in one episode of many without any harm to the run, so that one is no reason to drop the
    others. It is counted instead, as `nonfinite_episodes`.
    """
    finite = np.isfinite(returns)
    some = finite.any(axis=1)
    values: np.ndarray = statistic(np.where(finite | ~some[:, None], np.where(finite, returns, 0.0), np.nan), axis=1)
    return np.where(some, values, np.nan).astype(returns.dtype)


def evaluate(
    key: Array, algorithm: Algorithm, task: Task, state: State, num_episodes: int, skip: Array | bool = False
) -> Episodes:
    """Play `num_episodes` episodes side by side with the evaluation policy, until the last of them has ended.

    None is longer than the environment's time limit, whatever it shows: who reads the result looks at `ended`. Where
    `skip` `[]` bool is true, none is played and all are of length 0: no other run of a batch waits for them.
    """
    env = task.env
    reset_key, loop_key = jax.random.split(key)
    env_state, obs = jax.vmap(env.reset)(jax.random.split(reset_key, num_episodes))
    episodes = no_episodes(num_episodes, skip)
    act = jax.vmap(algorithm.act, in_axes=(0, None, None, 0))

    def going_on(loop: tuple[Any, ...]) -> Array:
        return ~jnp.all(loop[-1].ended) & (loop[0] < env.max_episode_steps)

    def play(loop: tuple[Any, ...]) -> tuple[Any, ...]:
        t, env_state, obs, episodes = loop
        over = episodes.ended
        act_keys, step_keys = jax.random.split(jax.random.fold_in(loop_key, t), (2, num_episodes))
        action = act(act_keys, task, state, obs)
        env_state, shown = jax.vmap(env.step)(step_keys, env_state, action)
        # An episode that is over is stepped along with the others; nothing that it shows counts any more.
        returns = episodes.returns + jnp.where(over, 0.0, shown.reward)
        lengths = episodes.lengths + jnp.where(over, 0, 1)
        # Looked at a step late, before it is acted on: what computes it stays one program with or without this.
        played = Episodes(returns, lengths, over | shown.terminated | shown.truncated, seen_until(t, episodes, obs))
        return t + 1, env_state, shown.obs, played

    t, _, obs, episodes = jax.lax.while_loop(going_on, play, (jnp.int32(0), env_state, obs, episodes))
    return episodes._replace(seen=seen_until(t, episodes, obs))
