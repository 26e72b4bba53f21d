"""TD3+BC: TD3 whose actor also imitates the dataset (Fujimoto & Gu 2021, arXiv 2106.06860).

The critics learn as in TD3. The actor climbs the first critic, scaled by alpha over its mean size so that its pull has
a known strength beside that of the dataset's actions. Sizes and rates are those of the authors and of CORL.

Deviations:
- Actions, noise and the squared distance are in units of the action box; on D4RL's tasks they are anyway.
- The actor and the targets move at the first and then at every second gradient step; the authors begin at the second.
- A transition that was truncated bootstraps with the value of the observation that it led to, where the dataset has
  kept it. D4RL's files have not, and those transitions are left out when such a file is read.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from envs.core import Box
from envs.datasets import Batch
from rlsuite.core import Algorithm, Clock, Metrics, Task, Trial
from rlsuite.errors import check_positive
from rlsuite.pieces import offline
from rlsuite.pieces.networks import MLP

Array = jax.Array
Params = Any


@dataclasses.dataclass(frozen=True)
class Config:
    """What shapes the program."""

    batch_size: int = 256
    """transitions in one gradient step"""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """hidden layers of the actor and of each critic"""
    policy_delay: int = 2
    """actor and targets move at every so-many-th gradient step"""
    normalize_obs: bool = True
    """give the networks observations in standard deviations of the dataset"""


class Hypers(NamedTuple):
    """What may differ between the runs of one program."""

    actor_learning_rate: float = 3e-4
    critic_learning_rate: float = 3e-4
    discount: float = 0.99
    tau: float = 0.005
    """share of the online networks that moves into their targets whenever those move"""
    alpha: float = 2.5
    """how hard the critic pulls, against the dataset's actions"""
    target_noise: float = 0.2
    """standard deviation of what is added to the target actor's actions, in half widths of the action box"""
    target_noise_clip: float = 0.5
    """bound of that noise, in the same units"""


class State(NamedTuple):
    """All that one run carries from update to update."""

    actor: Params
    critics: Params
    """both critics, stacked on a leading axis `[2]`"""
    target_actor: Params
    target_critics: Params
    actor_opt: optax.OptState
    critic_opt: optax.OptState


class Networks(NamedTuple):
    """The two architectures."""

    actor: nn.Module
    critic: nn.Module


def choose(networks: Networks, actor: Params, obs: Array) -> Array:
    """The actor's action in units of the box: `[..., obs_dim]` -> `[..., action_dim]`."""
    return jnp.tanh(networks.actor.apply(actor, obs))


def q_values(networks: Networks, critics: Params, obs: Array, action: Array) -> Array:
    """Both critics: `[2, ...]`."""
    inputs = jnp.concatenate([obs, action], axis=-1)
    return jax.vmap(lambda params: networks.critic.apply(params, inputs)[..., 0])(critics)


def first_q(networks: Networks, critics: Params, obs: Array, action: Array) -> Array:
    """The first critic alone, for the actor, which needs no other: `[...]`."""
    first = jax.tree.map(lambda leaf: leaf[0], critics)
    values: Array = networks.critic.apply(first, jnp.concatenate([obs, action], axis=-1))
    return values[..., 0]


def critic_loss(
    critics: Params, networks: Networks, state: State, batch: Batch, noise: Array, hypers: Hypers
) -> tuple[Array, Metrics]:
    """Sum over the critics of the mean squared error to r + discount min Q'(s', mu'(s') + noise): (loss `[]`, metrics).

    `noise` `[batch, action_dim]` is standard normal; its scale and bounds are those of `hypers`.
    """
    clipped = jnp.clip(hypers.target_noise * noise, -hypers.target_noise_clip, hypers.target_noise_clip)
    next_action = jnp.clip(choose(networks, state.target_actor, batch.next_obs) + clipped, -1.0, 1.0)
    next_value = jnp.min(q_values(networks, state.target_critics, batch.next_obs, next_action), axis=0)
    target = jax.lax.stop_gradient(batch.reward + hypers.discount * jnp.where(batch.terminated, 0.0, next_value))
    q = q_values(networks, critics, batch.obs, batch.action)
    loss = jnp.sum(jnp.mean((q - target) ** 2, axis=1))
    return loss, {"critic_loss": loss, "q": jnp.mean(q)}


def actor_loss(actor: Params, networks: Networks, critics: Params, batch: Batch, hypers: Hypers) -> Array:
    """-lambda mean Q_1(s, mu(s)) + mean (mu(s) - a)^2, with lambda = alpha / mean |Q_1| held constant: `[]`."""
    action = choose(networks, actor, batch.obs)
    q = first_q(networks, critics, batch.obs, action)
    scale = hypers.alpha / jax.lax.stop_gradient(jnp.mean(jnp.abs(q)))
    return -scale * jnp.mean(q) + jnp.mean((action - batch.action) ** 2)


def begin(
    key: Array,
    networks: Networks,
    obs_dim: int,
    actor_learning_rate: Array | float,
    critic_learning_rate: Array | float,
) -> State:
    """New networks, each target like its own, and their optimisers."""
    actor_key, critic_key = jax.random.split(key)
    obs = jnp.zeros(obs_dim)
    actor = networks.actor.init(actor_key, obs)
    critic_inputs = jnp.concatenate([obs, choose(networks, actor, obs)])
    critics = jax.vmap(lambda key: networks.critic.init(key, critic_inputs))(jax.random.split(critic_key))
    return State(
        actor=actor,
        critics=critics,
        target_actor=actor,
        target_critics=critics,
        actor_opt=optax.adam(actor_learning_rate).init(actor),
        critic_opt=optax.adam(critic_learning_rate).init(critics),
    )


def make(config: Config) -> Algorithm:
    """TD3+BC with this config.

    Raises:
        UserError: a size is not positive.
    """
    check_positive(batch_size=config.batch_size, policy_delay=config.policy_delay)

    def networks_of(task: Task) -> Networks:
        assert isinstance(task.env.action_space, Box)
        return Networks(MLP((*config.hidden_sizes, task.env.action_space.dim)), MLP((*config.hidden_sizes, 1)))

    def init(key: Array, task: Task, hypers: Hypers) -> State:
        return begin(key, networks_of(task), task.env.obs_dim, hypers.actor_learning_rate, hypers.critic_learning_rate)

    def update(key: Array, task: Task, state: State, hypers: Hypers, clock: Clock) -> tuple[State, Metrics]:
        networks = networks_of(task)
        batch_key, noise_key = jax.random.split(key)
        batch = offline.sample(batch_key, task, (config.batch_size,), config.normalize_obs)
        noise = jax.random.normal(noise_key, batch.action.shape)
        grads, metrics = jax.grad(critic_loss, has_aux=True)(state.critics, networks, state, batch, noise, hypers)
        step, critic_opt = optax.adam(hypers.critic_learning_rate).update(grads, state.critic_opt)
        state = state._replace(critics=optax.apply_updates(state.critics, step), critic_opt=critic_opt)

        def follow(state: State) -> State:
            grads = jax.grad(actor_loss)(state.actor, networks, state.critics, batch, hypers)
            step, actor_opt = optax.adam(hypers.actor_learning_rate).update(grads, state.actor_opt)
            actor = optax.apply_updates(state.actor, step)
            online, targets = (actor, state.critics), (state.target_actor, state.target_critics)
            target_actor, target_critics = optax.incremental_update(online, targets, hypers.tau)
            return state._replace(
                actor=actor, actor_opt=actor_opt, target_actor=target_actor, target_critics=target_critics
            )

        due = clock.update % config.policy_delay == 0
        return jax.lax.cond(due, follow, lambda state: state, state), metrics

    def act(key: Array, task: Task, state: State, obs: Array) -> Array:
        obs = offline.observe(task, obs, config.normalize_obs)
        return offline.to_box(task, choose(networks_of(task), state.actor, obs))

    def value(key: Array, task: Task, state: State, obs: Array) -> Array:
        networks, obs = networks_of(task), offline.observe(task, obs, config.normalize_obs)
        return jnp.min(q_values(networks, state.critics, obs, choose(networks, state.actor, obs)), axis=0)

    return Algorithm(init, update, act, 1, value)


TRIAL = Trial(
    Config(batch_size=64, hidden_sizes=(32, 32)),
    Hypers(actor_learning_rate=1e-3, critic_learning_rate=3e-3, discount=0.5, tau=0.1, alpha=10.0),
    updates=2000,
)
