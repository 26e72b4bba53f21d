"""The loop of PPO on a buffer of its last few batches (Corrado & Hanna, arXiv 2311.08290).

    for every round of m environment steps:
        phi <- the method's behaviour policy, made from the buffer
        collect m steps with phi;  merge the normalisers' statistics
    PPO update of theta, on the whole buffer, without any correction for phi

Log-probabilities, values and advantages are computed again with the current theta and the current statistics each time,
from observations and rewards that are stored as they came. Networks, losses and normalisation are PPO's. Either update
stops before the first minibatch whose approximate KL divergence exceeds a bound, by masks: the steps that remain are
computed and not taken.

A method fills two slots: the start of its carry, which passes from round to round, and the policy that collects.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from rlsuite.algorithms.on_policy import ppo
from rlsuite.core import Algorithm, Clock, Metrics, Task
from rlsuite.pieces import actor_critic, rollout, rollout_buffer
from rlsuite.pieces.actor_critic import Networks, actor_of, distribution
from rlsuite.pieces.advantages import seen, value_of
from rlsuite.pieces.minibatches import descend
from rlsuite.pieces.rollout_buffer import Memory, Recall
from rlsuite.pieces.sampling_error import measure
from rlsuite.pieces.settings import RolloutBuffer
from rlsuite.pieces.trained import Trained

Array = jax.Array
Params = Any
Carry: TypeAlias = Any
"""state of a method's behaviour policy, passed from round to round"""


class State(NamedTuple):
    """All that one run carries from update to update."""

    learner: Trained
    """the target policy, theta, and its value network"""
    carry: Carry
    memory: Memory
    envs: rollout.EnvCarry
    sampling_error: Array | None
    """`[]`: the last measurement"""


class Round(NamedTuple):
    """The progress of an update."""

    params: Params
    """theta and its value network"""
    number: Array
    """`[]` int32: rounds of this update before this one"""
    recall: Callable[[Params], Recall]
    """reference parameters -> the data of the behaviour update: the transitions that outlast the round"""


class Method(NamedTuple):
    """The slots of a method with a buffer."""

    start: Callable[[Any, Params, Any], Carry]
    """(config, params, hypers) -> carry"""
    behave: Callable[[Any, Array, Networks, Round, Carry, Any], tuple[Params, Carry, Metrics]]
    """(config, key, networks, round, carry, hypers) -> (actor that collects, carry, metrics `[]`)"""


def carry_nothing(config: Any, params: Params, hypers: Any) -> None:
    """The `start` of a method that carries nothing from round to round."""


def learn(
    config: RolloutBuffer, key: Array, networks: Networks, learner: Trained, data: Recall, clock: Clock, hypers: Any
) -> tuple[Trained, Metrics]:
    """PPO on the whole buffer. Its minibatches are valid as a whole or not at all: the check of sizes sees to that."""
    learning_rate = hypers.learning_rate * ((1.0 - clock.progress) if config.anneal_learning_rate else 1.0)
    return descend(
        key,
        lambda params, batch, valid: ppo.loss(params, networks, batch, config, hypers),
        ppo.optimizer(hypers, learning_rate),
        learner,
        data.rows._replace(dist=()),
        data.num_valid,
        hypers.target_kl,
        config.num_epochs,
        config.num_minibatches,
    )


def make(config: RolloutBuffer, method: Method, behavior_steps: int) -> Algorithm:
    """The algorithm of a method, in rounds of `behavior_steps` steps. Raises UserError as `rollout_buffer.check`."""
    rollout_buffer.check(config)
    rounds = config.num_steps // behavior_steps

    def networks_of(task: Task) -> Networks:
        return Networks(config.hidden_sizes, task.env.action_space)

    def init(key: Array, task: Task, hypers: Any) -> State:
        params_key, envs_key = jax.random.split(key)
        params = networks_of(task).init(params_key, jnp.zeros(task.env.obs_dim))
        return State(
            learner=ppo.start(params, hypers),
            carry=method.start(config, params, hypers),
            memory=rollout_buffer.init(config, task),
            envs=rollout.start(envs_key, task.env, config.num_envs),
            sampling_error=jnp.zeros(()) if config.sampling_error_epochs else None,
        )

    def update(key: Array, task: Task, state: State, hypers: Any, clock: Clock) -> tuple[State, Metrics]:
        networks, params = networks_of(task), state.learner.params
        rounds_key, learn_key = jax.random.split(key)

        def play(carries: tuple[Carry, Memory, rollout.EnvCarry], inputs: tuple[Array, Array]) -> tuple[Any, Metrics]:
            (carry, memory, envs), (number, key) = carries, inputs
            behavior_key, collect_key = jax.random.split(key)
            steps = (clock.update * rounds + number) * behavior_steps
            recall = functools.partial(rollout_buffer.recall, config, networks, memory, hypers, steps, behavior_steps)
            current_round = Round(params, number, recall)
            actor, carry, metrics = method.behave(config, behavior_key, networks, current_round, carry, hypers)
            memory, envs = rollout_buffer.collect(
                config, collect_key, task, networks, actor, memory, envs, behavior_steps, hypers.discount
            )
            return (carry, memory, envs), metrics

        inputs = (jnp.arange(rounds), jax.random.split(rounds_key, rounds))
        (carry, memory, envs), round_metrics = jax.lax.scan(play, (state.carry, state.memory, state.envs), inputs)
        steps = (clock.update + 1) * config.num_steps
        data = rollout_buffer.recall(config, networks, memory, hypers, steps, 0, params)
        learner, learning_metrics = learn(config, learn_key, networks, state.learner, data, clock, hypers)
        metrics = jax.tree.map(jnp.mean, round_metrics) | learning_metrics

        # How on-policy the data was for the policy that has learned from it, which is the one before its update.
        error = state.sampling_error
        if error is not None:
            error = measure(config, networks, params, data.rows, data.valid, clock.update, error)
            metrics["sampling_error"] = error
        return State(learner, carry, memory, envs, error), metrics

    def act(key: Array, task: Task, state: State, obs: Array) -> Array:
        inputs = seen(config, state.memory.obs_stats, obs)
        dist = distribution(networks_of(task), actor_of(state.learner.params), inputs)
        return actor_critic.into_box(task.env, actor_critic.mode(dist))

    def value(key: Array, task: Task, state: State, obs: Array) -> Array:
        networks, memory = networks_of(task), state.memory
        return value_of(config, networks, state.learner.params, memory.obs_stats, memory.return_stats, obs)

    return Algorithm(init, update, act, config.num_envs * config.num_steps, value)
