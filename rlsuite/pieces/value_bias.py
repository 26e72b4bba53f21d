"""The bias of a critic: its estimate minus the discounted return that its policy then gets.

The policy is the one whose value the critic learns, which need not be the one that evaluations play: SAC-like
methods sample their actions and count entropy as reward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs.core import Env
from rlsuite.core import Metrics, Report, State, Task
from rlsuite.errors import UserError

Array = jax.Array


class Critique(NamedTuple):
    """An action of the policy at one observation, and the critic's estimate for it."""

    action: Array
    """one of the policy's, inside the environment's action space"""
    bonus: Array
    """`[]`: the critic's addition to the reward of this step, such as alpha times -log pi(action)"""
    value: Array
    """`[]`: the estimate of what is still to come, the bonus of this step included"""


class _Sums(NamedTuple):
    """Sums over the steps t of one episode so far."""

    value: Array
    """of the estimates"""
    returns: Array
    """of the discounted returns from t, as far as they are known"""
    weight: Array
    """sum over t of discount^(now - t), now not included: how much of a reward of now these returns count"""
    seen: Array
    """of the share of each estimate that the return stands for"""
    steps: Array


def value_bias(
    key: Array, env: Env, critique: Callable[[Array, Array], Critique], discount: Array | float, num_episodes: int
) -> Metrics:
    """The mean estimate over all steps of `num_episodes` complete episodes, and its mean bias.

    `critique` takes (key, obs `[obs_dim]`). A return that a time limit cuts is continued by the critic's estimate of
    the last observation, discounted by d, and covers only 1 - d of the estimate. So the differences are summed and
    divided by the sum of the covered shares: where the critic is as wrong at the limit as elsewhere, that is its
    bias.

    Returns:
        `value_estimate` and `value_bias`, `[]` each, in units of reward; NaN if the environment lets an episode run
        beyond its own time limit, where the measurement stops.
    """
    reset_key, loop_key = jax.random.split(key)
    env_state, obs = jax.vmap(env.reset)(jax.random.split(reset_key, num_episodes))

    def criticise(t: Array, obs: Array) -> Critique:
        return jax.vmap(critique)(jax.random.split(jax.random.fold_in(loop_key, 2 * t), num_episodes), obs)

    def unfinished(loop: tuple[Any, ...]) -> Array:
        return ~jnp.all(loop[-1]) & (loop[0] < env.max_episode_steps)

    def play(loop: tuple[Any, ...]) -> tuple[Any, ...]:
        t, env_state, now, sums, over = loop
        step_keys = jax.random.split(jax.random.fold_in(loop_key, 2 * t + 1), num_episodes)
        env_state, shown = jax.vmap(env.step)(step_keys, env_state, now.action)
        later = criticise(t + 1, shown.obs)
        weight = 1.0 + sums.weight  # the return from this step includes this reward in full
        cut = shown.truncated & ~shown.terminated
        rest = jnp.where(cut, discount * weight, 0.0)
        new = _Sums(
            value=sums.value + now.value,
            returns=sums.returns + weight * (shown.reward + now.bonus) + rest * jnp.where(cut, later.value, 0.0),
            weight=discount * weight,
            seen=sums.seen + 1.0 - rest,
            steps=sums.steps + 1.0,
        )
        # An episode that is over is stepped along with the others; its sums no longer change.
        sums = jax.tree.map(lambda old, new: jnp.where(over, old, new), sums, new)
        return t + 1, env_state, later, sums, over | shown.terminated | shown.truncated

    zeros = _Sums(*[jnp.zeros(num_episodes) for _ in _Sums._fields])
    loop = (jnp.int32(0), env_state, criticise(jnp.int32(0), obs), zeros, jnp.zeros(num_episodes, bool))
    _, _, _, sums, over = jax.lax.while_loop(unfinished, play, loop)
    value, returns, _, seen, steps = (jnp.sum(each) for each in sums)
    known = {"value_estimate": value / steps, "value_bias": (value - returns) / seen}
    return {name: jnp.where(jnp.all(over), metric, jnp.nan) for name, metric in known.items()}


def reporter(num_episodes: int, critique: Callable[[Array, Task, State, Array], Critique]) -> Report | None:
    """The `report` of an algorithm whose `Hypers` have a `discount`; None for no episodes.

    Raises:
        UserError: a negative number of episodes.
    """
    if num_episodes < 0:
        raise UserError(f"value_bias_episodes={num_episodes} must be at least 0, which turns the metric off")

    def report(key: Array, task: Task, state: State, hypers: Any) -> Metrics:
        def critique_of_run(key: Array, obs: Array) -> Critique:
            return critique(key, task, state, obs)

        return value_bias(key, task.env, critique_of_run, hypers.discount, num_episodes)

    return report if num_episodes else None
