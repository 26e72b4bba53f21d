"""The on-policy loop: collect a rollout, normalise, estimate advantages, hand all of it to the method's `learn`.

A method fills three slots. Observations are standardised and rewards divided by the spread of the discounted return,
by running statistics, where the config says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from rlsuite.core import Algorithm, Clock, Metrics, Task
from rlsuite.errors import UserError, check_positive
from rlsuite.pieces import actor_critic, normalize, rollout
from rlsuite.pieces.actor_critic import Networks
from rlsuite.pieces.advantages import Batch, estimate, seen, value_of
from rlsuite.pieces.settings import OnPolicy

Array = jax.Array
Params = Any
Learner: TypeAlias = Any
"""a method's own: networks and optimisers"""


class State(NamedTuple):
    """All that one run carries from update to update."""

    learner: Learner
    obs_stats: normalize.RunningStats
    return_stats: normalize.RunningStats
    discounted_return: Array
    """`[num_envs]`: the running sum whose variance `return_stats` holds"""
    envs: rollout.EnvCarry


class Method(NamedTuple):
    """The slots of an on-policy method."""

    start: Callable[[Params, Any], Learner]
    """(parameters of `Networks`, hypers) -> learner"""
    params: Callable[[Learner], Params]
    """learner -> parameters of `Networks`"""
    learn: Callable[[Any, Array, Networks, Learner, Batch, Clock, Any], tuple[Learner, Metrics]]
    """(config, key, networks, learner, rollout, clock, hypers) -> (learner, metrics of any shape)"""


def check(config: OnPolicy) -> None:
    """Raise UserError if a size is not positive, or the rollout cannot be cut into the minibatches."""
    check_positive(
        num_envs=config.num_envs,
        num_steps=config.num_steps,
        num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches,
    )
    rows = config.num_envs * config.num_steps
    if rows % config.num_minibatches:
        raise UserError(
            f"num_minibatches={config.num_minibatches} does not divide num_envs * num_steps = {rows}; "
            "choose a divisor of it"
        )


def make(config: OnPolicy, method: Method) -> Algorithm:
    """The algorithm of a method. Raises UserError as `check`."""
    check(config)
    rows = config.num_envs * config.num_steps

    def networks_of(task: Task) -> Networks:
        return Networks(config.hidden_sizes, task.env.action_space)

    def init(key: Array, task: Task, hypers: Any) -> State:
        params_key, envs_key = jax.random.split(key)
        params = networks_of(task).init(params_key, jnp.zeros(task.env.obs_dim))
        return State(
            learner=method.start(params, hypers),
            obs_stats=normalize.init((task.env.obs_dim,)),
            return_stats=normalize.init(),
            discounted_return=jnp.zeros(config.num_envs),
            envs=rollout.start(envs_key, task.env, config.num_envs),
        )

    def update(key: Array, task: Task, state: State, hypers: Any, clock: Clock) -> tuple[State, Metrics]:
        networks, params = networks_of(task), method.params(state.learner)
        collect_key, learn_key = jax.random.split(key)

        # Collect. The unclipped action, the distribution it came from and the value come along as extras.
        def policy(key: Array, obs: Array) -> tuple[Array, Any]:
            dist, value = networks.apply(params, seen(config, state.obs_stats, obs))
            action = actor_critic.draw(key, dist)
            extras = (action, dist, actor_critic.log_prob(dist, action), value)
            return actor_critic.into_box(task.env, action), extras

        envs, transitions, (action, dist, log_prob, value) = rollout.collect(
            collect_key, task.env, state.envs, policy, config.num_steps
        )

        # Advantages, by statistics of the return that include this rollout.
        done = transitions.terminated | transitions.truncated
        discounted_return, sums = normalize.discounted_returns(
            state.discounted_return, transitions.reward, done, hypers.discount
        )
        return_stats = normalize.update(state.return_stats, sums.reshape(-1))
        advantage = estimate(config, networks, params, transitions, value, state.obs_stats, return_stats, hypers)
        obs = seen(config, state.obs_stats, transitions.obs)
        batch = Batch(obs, action, dist, log_prob, value, advantage, advantage + value)
        batch = jax.tree.map(lambda x: x.reshape(rows, *x.shape[2:]), batch)

        learner, metrics = method.learn(config, learn_key, networks, state.learner, batch, clock, hypers)
        obs_stats = normalize.update(state.obs_stats, transitions.obs.reshape(rows, -1))
        new_state = State(learner, obs_stats, return_stats, discounted_return, envs)
        return new_state, jax.tree.map(jnp.mean, metrics)

    def distribution(task: Task, state: State, obs: Array) -> tuple[Array, ...]:
        dist: tuple[Array, ...]
        dist, _ = networks_of(task).apply(method.params(state.learner), seen(config, state.obs_stats, obs))
        return dist

    def act(key: Array, task: Task, state: State, obs: Array) -> Array:
        return actor_critic.into_box(task.env, actor_critic.mode(distribution(task, state, obs)))

    def explore(key: Array, task: Task, state: State, obs: Array) -> Array:
        return actor_critic.into_box(task.env, actor_critic.draw(key, distribution(task, state, obs)))

    def value(key: Array, task: Task, state: State, obs: Array) -> Array:
        networks, params = networks_of(task), method.params(state.learner)
        return value_of(config, networks, params, state.obs_stats, state.return_stats, obs)

    return Algorithm(init, update, act, rows, value, explore=explore)
