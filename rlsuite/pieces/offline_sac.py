"""The offline loop after SAC: draw a batch, learn a squashed Gaussian, critics and a temperature, act with the mean.

A method fills four slots; its actions are in units of the action box.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from envs.core import Box
from envs.datasets import Batch
from rlsuite.core import Algorithm, Clock, Metrics, Task
from rlsuite.errors import check_positive
from rlsuite.pieces import offline, squashed
from rlsuite.pieces.settings import Offline
from rlsuite.pieces.trained import Trained

Array = jax.Array
Params = Any


class Networks(NamedTuple):
    """The two architectures."""

    policy: squashed.Policy
    """in units of the box"""
    critic: nn.Module


class State(NamedTuple):
    """All that one run carries from update to update."""

    actor: Trained
    critics: Trained
    """all critics, stacked on a leading axis"""
    target_critics: Params
    log_alpha: Trained
    own: Any = ()
    """of the method alone"""


class Draws(NamedTuple):
    """The inputs of an update that come from the dataset and from keys."""

    batch: Batch
    """leading axis `[batch_size]`, as the networks see it"""
    keys: Array
    """`[num_keys]`"""


class Method(NamedTuple):
    """The slots of an offline method after SAC; each is given its `Config`."""

    networks: Callable[[Any, int], Networks]
    """(config, action_dim) -> architectures"""
    start: Callable[[Any, Networks, Array, Array, Array, Any], tuple[Params, Params, Any]]
    """(config, networks, keys `[2]`, obs `[obs_dim]`, action `[action_dim]`, hypers) -> (actor, critics, own)"""
    learn: Callable[[Any, Task, Networks, State, Draws, Any], tuple[State, Metrics]]
    """(config, task, networks, state, draws, hypers) -> (state, metrics)"""
    value: Callable[[Any, Array, Task, Networks, State, Array], Array]
    """(config, key, task, networks, state, obs `[obs_dim]` as the networks see it) -> `Algorithm.value`"""


def make(config: Offline, method: Method, num_keys: int) -> Algorithm:
    """The algorithm of a method whose update takes `num_keys` keys. Raises UserError if a size is not positive."""
    check_positive(batch_size=config.batch_size)

    def networks_of(task: Task) -> Networks:
        assert isinstance(task.env.action_space, Box)
        return method.networks(config, task.env.action_space.dim)

    def init(key: Array, task: Task, hypers: Any) -> State:
        assert isinstance(task.env.action_space, Box)
        obs, action = jnp.zeros(task.env.obs_dim), jnp.zeros(task.env.action_space.dim)
        actor, critics, own = method.start(config, networks_of(task), jax.random.split(key), obs, action, hypers)
        log_alpha = jnp.log(jnp.asarray(hypers.initial_alpha, jnp.float32))
        return State(
            actor=Trained.start(actor, optax.adam(hypers.actor_learning_rate)),
            critics=Trained.start(critics, optax.adam(hypers.critic_learning_rate)),
            target_critics=critics,
            log_alpha=Trained.start(log_alpha, optax.adam(hypers.alpha_learning_rate)),
            own=own,
        )

    def update(key: Array, task: Task, state: State, hypers: Any, clock: Clock) -> tuple[State, Metrics]:
        keys = jax.random.split(key, 1 + num_keys)
        batch = offline.sample(keys[0], task, (config.batch_size,), config.normalize_obs)
        state, metrics = method.learn(config, task, networks_of(task), state, Draws(batch, keys[1:]), hypers)
        return state, metrics | {"alpha": jnp.exp(state.log_alpha.params)}

    def act(key: Array, task: Task, state: State, obs: Array) -> Array:
        obs = offline.observe(task, obs, config.normalize_obs)
        mean, _ = networks_of(task).policy.distribution(state.actor.params, obs)
        return offline.to_box(task, jnp.tanh(mean))

    def value(key: Array, task: Task, state: State, obs: Array) -> Array:
        obs = offline.observe(task, obs, config.normalize_obs)
        return method.value(config, key, task, networks_of(task), state, obs)

    return Algorithm(init, update, act, 1, value)
