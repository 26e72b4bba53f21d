"""The off-policy loop: step the environments, store, wait for the warm-up to end, draw batches, take gradient steps.

A method fills six slots and leaves the rest to this file. Its state is `State`: what its gradient steps change (the
learner, any pytree), the replay buffer, and the environments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from envs.core import Env
from rlsuite.core import Algorithm, Clock, Metrics, Task, Transition
from rlsuite.errors import check_positive
from rlsuite.pieces import minibatches, replay, rollout
from rlsuite.pieces.settings import OffPolicy
from rlsuite.pieces.value_bias import Critique, reporter

Array = jax.Array
Learner: TypeAlias = Any
"""the part of a method's state that gradient steps change"""


class State(NamedTuple):
    """All that one run carries from update to update."""

    learner: Learner
    buffer: replay.Replay
    envs: rollout.EnvCarry


class Step(NamedTuple):
    """The inputs of a gradient step other than the learner."""

    key: Array
    env: Env
    batch: Transition
    """leading axis `[batch_size]`"""
    hypers: Any
    clock: Clock
    number: Array
    """`[]` int32: gradient steps of this update before this one"""


class Method(NamedTuple):
    """The slots of an off-policy method: functions of its `Config` and of what is named here."""

    init: Callable[[Any, Array, Env, Any], Learner]
    """(config, keys `[num_networks]`, env, hypers) -> learner"""
    behave: Callable[[Any, Array, Env, Learner, Array, Any], Array]
    """(config, key, env, learner, obs `[num_envs, obs_dim]`, hypers) -> the actions to collect with"""
    gradient_step: Callable[[Any, Learner, Step], tuple[Learner, Metrics]]
    """(config, learner, step) -> (learner, metrics `[]`)"""
    metrics: Callable[[Learner], Metrics]
    """learner -> its metrics after every update, during the warm-up too"""
    play: Callable[[Any, Env, Learner, Array], Array]
    """(config, env, learner, obs `[obs_dim]`) -> the action that evaluations play"""
    critique: Callable[[Any, Array, Env, Learner, Array], Critique]
    """(config, key, env, learner, obs `[obs_dim]`) -> the critic's estimate for an action of the policy"""


def make(
    config: OffPolicy,
    method: Method,
    *,
    num_networks: int = 2,
    num_steps: int = 1,
    uniform_warmup: bool = True,
    value_bias_episodes: int = 0,
) -> Algorithm:
    """The algorithm of a method.

    Args:
        num_networks: keys that `method.init` takes.
        num_steps: steps of each environment in one update.
        uniform_warmup: collect with uniform actions until learning starts, else with the initial policy.
        value_bias_episodes: episodes after which each evaluation reports the critic's bias; 0 for no such metric.

    Raises:
        UserError: the buffer does not hold whole steps of all environments, or a size is not positive.
    """
    check_positive(
        num_envs=config.num_envs,
        num_steps=num_steps,
        gradient_steps=config.gradient_steps,
        batch_size=config.batch_size,
        buffer_size=config.buffer_size,
        warmup_steps=config.warmup_steps,
    )
    replay.check_capacity(config.buffer_size, config.num_envs)
    steps_per_update = config.num_envs * num_steps

    def init(key: Array, task: Task, hypers: Any) -> State:
        keys = jax.random.split(key, num_networks + 1)
        learner = method.init(config, keys[:-1], task.env, hypers)
        buffer = replay.init(replay.Layout.of(task.env), config.num_envs, config.buffer_size)
        return State(learner, buffer, rollout.start(keys[-1], task.env, config.num_envs))

    def update(key: Array, task: Task, state: State, hypers: Any, clock: Clock) -> tuple[State, Metrics]:
        env, layout = task.env, replay.Layout.of(task.env)
        collect_key, batch_key, learn_key = jax.random.split(key, 3)
        warming_up = clock.update < warmup_of(config, steps_per_update)

        def policy(key: Array, obs: Array) -> tuple[Array, None]:
            current = functools.partial(method.behave, config, key, env, state.learner, obs, hypers)
            uniform = functools.partial(rollout.uniform_actions, key, env, config.num_envs)
            return jax.lax.cond(warming_up, uniform, current) if uniform_warmup else current(), None

        envs, transitions, _ = rollout.collect(collect_key, env, state.envs, policy, num_steps)
        buffer = replay.add_rollout(state.buffer, layout, transitions, envs.obs, clock.update * num_steps)
        # One gather for all gradient steps, outside the conditional: a conditional copies what it carries.
        stored, shape = (clock.update + 1) * num_steps, (config.gradient_steps, config.batch_size)
        batches = replay.sample(batch_key, buffer, layout, stored, shape)

        def step(learner: Learner, number: Array, key: Array, batch: Transition) -> tuple[Learner, Metrics]:
            return method.gradient_step(config, learner, Step(key, env, batch, hypers, clock, number))

        def learn(learner: Learner) -> tuple[Learner, Metrics]:
            return minibatches.steps(learn_key, step, learner, batches)

        def wait(learner: Learner) -> tuple[Learner, Metrics]:
            return learner, jax.tree.map(jnp.zeros_like, jax.eval_shape(learn, learner)[1])

        learner, metrics = jax.lax.cond(warming_up, wait, learn, state.learner)
        return State(learner, buffer, envs), metrics | method.metrics(learner)

    def act(key: Array, task: Task, state: State, obs: Array) -> Array:
        return method.play(config, task.env, state.learner, obs)

    def critique(key: Array, task: Task, state: State, obs: Array) -> Critique:
        return method.critique(config, key, task.env, state.learner, obs)

    def value(key: Array, task: Task, state: State, obs: Array) -> Array:
        return critique(key, task, state, obs).value

    return Algorithm(init, update, act, steps_per_update, value, reporter(value_bias_episodes, critique))


def warmup_of(config: OffPolicy, steps_per_update: int) -> int:
    """Updates before the first gradient step: `warmup_steps` in whole updates, rounded up."""
    return -(-config.warmup_steps // steps_per_update)


def is_due(count: Array, policy_delay: int) -> Array:
    """`[]` bool: every `policy_delay` gradient steps, beginning with number 0; `count` `[]` int32."""
    return count % policy_delay == 0
