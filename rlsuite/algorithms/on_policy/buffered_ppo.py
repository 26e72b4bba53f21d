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

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp

from envs.core import Box
from rlsuite.algorithms.on_policy import ppo
from rlsuite.core import Algorithm, Clock, Metrics, Task, Transition
from rlsuite.errors import UserError, check_positive
from rlsuite.pieces import actor_critic, normalize, returns, rollout
from rlsuite.pieces.actor_critic import Networks, actor_of, distribution
from rlsuite.pieces.minibatches import descend
from rlsuite.pieces.on_policy import Batch
from rlsuite.pieces.sampling_error import sampling_error
from rlsuite.pieces.trained import Trained

Array = jax.Array
Params = Any
Carry: TypeAlias = Any
"""state of a method's behaviour policy, passed from round to round"""

MLE_LOG_STD_MIN, MLE_LOG_STD_MAX = -3.0, 1.0
"""bounds of the log standard deviation in the fit of the sampling error"""


class Config(ppo.Losses, Protocol):
    """The fields of a method's `Config` that the loop reads; their texts are there."""

    @property
    def num_envs(self) -> int: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def buffer_batches(self) -> int: ...
    @property
    def num_epochs(self) -> int: ...
    @property
    def num_minibatches(self) -> int: ...
    @property
    def hidden_sizes(self) -> tuple[int, ...]: ...
    @property
    def normalize_obs(self) -> bool: ...
    @property
    def normalize_reward(self) -> bool: ...
    @property
    def anneal_learning_rate(self) -> bool: ...
    @property
    def sampling_error_epochs(self) -> int: ...
    @property
    def sampling_error_interval(self) -> int: ...


class Memory(NamedTuple):
    """The part of the state that collecting changes."""

    buffer: Transition
    """`[time, num_envs, ...]`, the newest step last; time = buffer_batches * num_steps. As it came, but for the action,
    which is the policy's, not yet clipped to the box. Zeros where nothing is stored yet."""
    obs_stats: normalize.RunningStats
    return_stats: normalize.RunningStats
    discounted_return: Array
    """`[num_envs]`: the running sum whose variance `return_stats` holds"""


class State(NamedTuple):
    """All that one run carries from update to update."""

    learner: Trained
    """the target policy, theta, and its value network"""
    carry: Carry
    memory: Memory
    envs: rollout.EnvCarry
    sampling_error: Array | None
    """`[]`: the last measurement"""


class Recall(NamedTuple):
    """The data of a behaviour update: those transitions that will still be in the buffer after the round."""

    rows: Batch
    """leading axis `[batch]`, as the reference policy and its value network see them"""
    valid: Array
    """`[batch]` bool: the row is stored"""
    num_valid: Array
    """`[]` int32: number of stored rows, which are the last ones"""


class Round(NamedTuple):
    """The progress of an update."""

    params: Params
    """theta and its value network"""
    number: Array
    """`[]` int32: rounds of this update before this one"""
    recall: Callable[[Params], Recall]
    """reference parameters -> the data of the behaviour update"""


class Method(NamedTuple):
    """The slots of a method with a buffer."""

    start: Callable[[Any, Params, Any], Carry]
    """(config, params, hypers) -> carry"""
    behave: Callable[[Any, Array, Networks, Round, Carry, Any], tuple[Params, Carry, Metrics]]
    """(config, key, networks, round, carry, hypers) -> (actor that collects, carry, metrics `[]`)"""


def carry_nothing(config: Any, params: Params, hypers: Any) -> None:
    """The `start` of a method that carries nothing from round to round."""


def learns_in_fit(actor: Params) -> Params:
    """Which leaves the fit of the sampling error moves: all but the hidden layers, or it would fit single samples."""
    hidden = [f"Dense_{i}" for i in range(len(actor["policy"]) - 1)]

    def learns(path: tuple[Any, ...], leaf: Array) -> bool:
        return all(entry.key not in hidden for entry in path)

    return jax.tree.map_with_path(learns, actor)


def within_bounds(actor: Params) -> Params:
    """The same actor with its log standard deviation, if it has one, where the fit of the sampling error keeps it."""
    if "log_std" not in actor:
        return actor
    return {**actor, "log_std": jnp.clip(actor["log_std"], MLE_LOG_STD_MIN, MLE_LOG_STD_MAX)}


def store(buffer: Transition, steps: Transition) -> Transition:
    """The buffer with these newest `steps` `[time, num_envs, ...]` at its end and as many of the oldest gone."""
    return jax.tree.map(lambda old, new: jnp.concatenate([old[len(new) :], new.astype(old.dtype)]), buffer, steps)


def flatten(tree: Any) -> Any:
    """`[time, num_envs, ...]` -> `[time * num_envs, ...]`"""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def check(config: Config) -> int:
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


def check_rounds(config: Config, behavior_steps: int) -> int:
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


def seen(config: Config, stats: normalize.RunningStats, obs: Array) -> Array:
    """Observations as the networks see them, standardised if the config says so: `[..., obs_dim]`."""
    return normalize.standardize(obs, stats) if config.normalize_obs else obs


def empty_buffer(config: Config, task: Task) -> Transition:
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


def judge(config: Config, networks: Networks, params: Params, memory: Memory, hypers: Any) -> Batch:
    """The whole buffer as this policy and this value network see it now, `[time, num_envs, ...]`."""
    buffer = memory.buffer
    obs = seen(config, memory.obs_stats, buffer.obs)
    dist, value = networks.apply(params, obs)
    next_value = networks.apply(params, seen(config, memory.obs_stats, buffer.next_obs), method=Networks.value)
    reward = buffer.reward
    if config.normalize_reward:
        reward = normalize.rescale(reward, memory.return_stats)
    advantage = returns.gae(
        reward, value, next_value, buffer.terminated, buffer.truncated, hypers.discount, hypers.gae_lambda
    )
    log_prob = actor_critic.log_prob(dist, buffer.action)
    return Batch(obs, buffer.action, dist, log_prob, value, advantage, advantage + value)


def collect(
    config: Config,
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


def measure(config: Config, networks: Networks, params: Params, rows: Batch, valid: Array) -> Array:
    """The sampling error of the valid rows: `[]`."""
    actor = actor_of(params)
    return sampling_error(
        lambda actor: actor_critic.log_prob(distribution(networks, actor, rows.obs), rows.action),
        actor,
        learns_in_fit(actor),
        valid,
        config.sampling_error_epochs,
        within_bounds,
    )


def make(config: Config, method: Method, behavior_steps: int) -> Algorithm:
    """The algorithm of a method, whose rounds are of `behavior_steps` steps. Raises UserError as `check`."""
    check(config)
    rounds = config.num_steps // behavior_steps
    buffer_steps = config.buffer_batches * config.num_steps

    def networks_of(task: Task) -> Networks:
        return Networks(config.hidden_sizes, task.env.action_space)

    def init(key: Array, task: Task, hypers: Any) -> State:
        params_key, envs_key = jax.random.split(key)
        params = networks_of(task).init(params_key, jnp.zeros(task.env.obs_dim))
        obs_stats, return_stats = normalize.init((task.env.obs_dim,)), normalize.init()
        return State(
            learner=ppo.start(params, hypers),
            carry=method.start(config, params, hypers),
            memory=Memory(empty_buffer(config, task), obs_stats, return_stats, jnp.zeros(config.num_envs)),
            envs=rollout.start(envs_key, task.env, config.num_envs),
            sampling_error=jnp.zeros(()) if config.sampling_error_epochs else None,
        )

    def update(key: Array, task: Task, state: State, hypers: Any, clock: Clock) -> tuple[State, Metrics]:
        networks, params = networks_of(task), state.learner.params
        rounds_key, learn_key = jax.random.split(key)

        def play(carries: tuple[Carry, Memory, rollout.EnvCarry], inputs: tuple[Array, Array]) -> tuple[Any, Metrics]:
            carry, memory, envs = carries
            number, key = inputs
            behavior_key, collect_key = jax.random.split(key)

            def recall(reference: Params) -> Recall:
                judged = judge(config, networks, reference, memory, hypers)
                rows: Batch = flatten(jax.tree.map(lambda x: x[behavior_steps:], judged))
                size, stored = len(rows.log_prob), (clock.update * rounds + number) * behavior_steps
                count = jnp.minimum(stored * config.num_envs, size)
                return Recall(rows, jnp.arange(size) >= size - count, count)

            current_round = Round(params, number, recall)
            actor, carry, metrics = method.behave(config, behavior_key, networks, current_round, carry, hypers)
            memory, envs = collect(
                config, collect_key, task, networks, actor, memory, envs, behavior_steps, hypers.discount
            )
            return (carry, memory, envs), metrics

        inputs = (jnp.arange(rounds), jax.random.split(rounds_key, rounds))
        (carry, memory, envs), round_metrics = jax.lax.scan(play, (state.carry, state.memory, state.envs), inputs)
        metrics = jax.tree.map(jnp.mean, round_metrics)

        # PPO on the whole buffer. Its minibatches are valid as a whole or not at all: `check` sees to that.
        rows: Batch = flatten(judge(config, networks, params, memory, hypers))._replace(dist=())
        count = jnp.minimum((clock.update + 1) * config.num_steps, buffer_steps) * config.num_envs
        learning_rate = hypers.learning_rate * ((1.0 - clock.progress) if config.anneal_learning_rate else 1.0)
        learner, learning_metrics = descend(
            learn_key,
            lambda params, batch, valid: ppo.loss(params, networks, batch, config, hypers),
            ppo.optimizer(hypers, learning_rate),
            state.learner,
            rows,
            count,
            hypers.target_kl,
            config.num_epochs,
            config.num_minibatches,
        )
        metrics |= learning_metrics

        # How on-policy the data was for the policy that has learned from it, which is the one before its update.
        error = state.sampling_error
        if config.sampling_error_epochs:
            size = len(rows.log_prob)
            error = jax.lax.cond(
                clock.update % config.sampling_error_interval == 0,
                lambda: measure(config, networks, params, rows, jnp.arange(size) >= size - count),
                lambda: state.sampling_error,
            )
            metrics["sampling_error"] = error
        return State(learner, carry, memory, envs, error), metrics

    def act(key: Array, task: Task, state: State, obs: Array) -> Array:
        inputs = seen(config, state.memory.obs_stats, obs)
        dist = distribution(networks_of(task), actor_of(state.learner.params), inputs)
        return actor_critic.into_box(task.env, actor_critic.mode(dist))

    def value(key: Array, task: Task, state: State, obs: Array) -> Array:
        inputs = seen(config, state.memory.obs_stats, obs)
        scaled: Array = networks_of(task).apply(state.learner.params, inputs, method=Networks.value)
        return scaled * jnp.sqrt(state.memory.return_stats.var + 1e-8) if config.normalize_reward else scaled

    return Algorithm(init, update, act, config.num_envs * config.num_steps, value)
