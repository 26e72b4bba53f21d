"""The loop of TD3 on a dataset: twin critics at every step, a deterministic actor and all targets at every second one.

A method fills four slots. Networks see actions in units of the action box, that is in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from envs.core import Box
from envs.datasets import Batch
from rlsuite.core import Algorithm, Clock, Metrics, Task
from rlsuite.errors import check_positive
from rlsuite.pieces import offline
from rlsuite.pieces.critics import init_critics
from rlsuite.pieces.deterministic import Networks, State, acting, actor_loss, choose, critic_loss, step_actor
from rlsuite.pieces.networks import MLP
from rlsuite.pieces.settings import OfflineTD3
from rlsuite.pieces.trained import Trained

Array = jax.Array
Params = Any


class Method(NamedTuple):
    """The slots of an offline method after TD3."""

    networks: Callable[[Any, int], Networks]
    """(config, action_dim) -> architectures"""
    critic_loss: Callable[[Params, Networks, State, Batch, Array, Any], tuple[Array, Metrics]]
    """(critics, networks, state, batch, noise `[batch, action_dim]`, hypers) -> (loss `[]`, metrics)"""
    anchor: Callable[[Any, Task, Batch, Array, Any], Array]
    """(config, task, batch as recorded, the actor's actions `[batch, action_dim]`, hypers) -> actions to imitate, which
    are held constant"""
    actor_loss: Callable[[Params, Networks, Params, Array, Array, Any], Array]
    """(actor, networks, critics, obs `[batch, obs_dim]`, anchor `[batch, action_dim]`, hypers) -> loss `[]`"""


def networks(config: OfflineTD3, action_dim: int) -> Networks:
    """Plain networks with the config's hidden layers."""
    return Networks(MLP((*config.hidden_sizes, action_dim)), MLP((*config.hidden_sizes, 1)))


def recorded_action(config: OfflineTD3, task: Task, recorded: Batch, action: Array, hypers: Any) -> Array:
    """The dataset's own action: `[batch, action_dim]`."""
    return recorded.action


def make(config: OfflineTD3, method: Method) -> Algorithm:
    """The algorithm of a method. Raises UserError if a size is not positive."""
    check_positive(batch_size=config.batch_size, policy_delay=config.policy_delay)

    def networks_of(task: Task) -> Networks:
        assert isinstance(task.env.action_space, Box)
        return method.networks(config, task.env.action_space.dim)

    def init(key: Array, task: Task, hypers: Any) -> State:
        actor_key, critic_key = jax.random.split(key)
        networks, obs = networks_of(task), jnp.zeros(task.env.obs_dim)
        actor = networks.actor.init(actor_key, obs)
        critics = init_critics(critic_key, networks.critic, obs, choose(networks, actor, obs))
        return State(
            actor=Trained.start(actor, optax.adam(hypers.actor_learning_rate)),
            critics=Trained.start(critics, optax.adam(hypers.critic_learning_rate)),
            target_actor=actor,
            target_critics=critics,
        )

    def update(key: Array, task: Task, state: State, hypers: Any, clock: Clock) -> tuple[State, Metrics]:
        networks = networks_of(task)
        batch_key, noise_key = jax.random.split(key)
        recorded = offline.sample(batch_key, task, (config.batch_size,), normalize_obs=False)
        batch = offline.observed(task, recorded, config.normalize_obs)
        noise = jax.random.normal(noise_key, batch.action.shape)
        grads, metrics = jax.grad(method.critic_loss, has_aux=True)(
            state.critics.params, networks, state, batch, noise, hypers
        )
        state = state._replace(critics=state.critics.step(grads, optax.adam(hypers.critic_learning_rate)))

        def learn_actor(state: State) -> State:
            action = choose(networks, state.actor.params, batch.obs)
            anchor = method.anchor(config, task, recorded, action, hypers)
            grads = jax.grad(method.actor_loss)(
                state.actor.params, networks, state.critics.params, batch.obs, anchor, hypers
            )
            return step_actor(state, grads, hypers)

        due = clock.update % config.policy_delay == 0
        return jax.lax.cond(due, learn_actor, lambda state: state, state), metrics

    act, value = acting(config.normalize_obs, networks_of)
    return Algorithm(init, update, act, 1, value)


METHOD = Method(networks, critic_loss, recorded_action, actor_loss)
"""TD3+BC."""
