"""AWAC: imitation of the dataset's actions, weighted by their advantage over the policy's (Nair et al. 2020, arXiv
2006.09359).

The critics learn the values of the policy. The policy maximises the log-probability of the dataset's actions, each
weighted by the exponential of its advantage over an action of the policy. Sizes, rates, the policy and the settings of
single datasets are those of CORL.

Deviations from CORL:
- Actions are in units of the action box, which they are on D4RL's tasks anyway.
- A transition that was truncated bootstraps with the value of the observation that it led to, where the dataset has
  kept it. D4RL's files have not, and those transitions are left out when such a file is read.

Deviations of CORL, and so of this file, from the paper:
- Offline only: the paper's online phase is left out.
- The weights are bounded by 100.
- Targets and advantages use the smaller of two critics, where the paper has one critic.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from envs.core import Box
from envs.datasets import Batch
from rlsuite.core import Algorithm, AlgorithmSpec, Clock, Metrics, Preset, Source, Task, Trial
from rlsuite.errors import check_positive
from rlsuite.pieces import distributions, offline
from rlsuite.pieces.critics import bellman_target, init_critics, min_q, q_values, squared_error
from rlsuite.pieces.deterministic import Networks
from rlsuite.pieces.networks import MLP
from rlsuite.pieces.trained import Trained

Array = jax.Array
Params = Any

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
"""bounds of the policy's log standard deviation, in units of the action box"""


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings that shape the program."""

    batch_size: int = 256
    """transitions in one gradient step"""
    hidden_sizes: tuple[int, ...] = (256, 256, 256)
    """hidden layers of every network that has no option of its own"""
    normalize_obs: bool = True
    """standardise observations by the mean and standard deviation of the dataset"""


class Hypers(NamedTuple):
    """Settings that may differ between the runs of one program."""

    actor_learning_rate: float = 3e-4
    """learning rate of the actor"""
    critic_learning_rate: float = 3e-4
    """learning rate of the critics"""
    discount: float = 0.99
    """discount factor of future rewards"""
    tau: float = 0.005
    """share of an online network that moves into its target whenever the target moves"""
    temperature: float = 0.3333
    """divisor of the advantages: near 0 only the best actions are imitated, at infinity all alike"""
    max_weight: float = 100.0
    """upper bound of the weight of one action in the actor's loss"""
    reward_shift: float = 0.0
    """constant added to every reward, after any scaling"""


class Actor(NamedTuple):
    """Parameters of the policy, a Gaussian whose draws are clipped to the box."""

    net: Params
    """observation -> mean, which may lie outside of the box"""
    log_std: Array
    """`[action_dim]`, the same at all observations"""


class State(NamedTuple):
    """All that one run carries from update to update."""

    actor: Trained
    """of an `Actor`"""
    critics: Trained
    """both critics, stacked on a leading axis `[2]`"""
    target_critics: Params


def distribution(networks: Networks, actor: Actor, obs: Array) -> tuple[Array, Array]:
    """Mean `[..., action_dim]` and log standard deviation `[action_dim]`, in units of the box."""
    return networks.actor.apply(actor.net, obs), jnp.clip(actor.log_std, LOG_STD_MIN, LOG_STD_MAX)


def draw(networks: Networks, actor: Actor, obs: Array, noise: Array) -> Array:
    """The policy's action clipped to the box, from standard normal noise `[..., action_dim]`."""
    mean, log_std = distribution(networks, actor, obs)
    return jnp.clip(mean + jnp.exp(log_std) * noise, -1.0, 1.0)


def critic_loss(
    critics: Params, networks: Networks, state: State, batch: Batch, noise: Array, hypers: Hypers
) -> tuple[Array, Metrics]:
    """Sum over the critics of the mean squared error to r + discount min Q'(s', a'): (loss `[]`, metrics).

    a' is an action of the policy, drawn from standard normal `noise` `[batch, action_dim]`.
    """
    next_action = draw(networks, state.actor.params, batch.next_obs, noise)
    next_value = min_q(networks.critic, state.target_critics, batch.next_obs, next_action)
    target = bellman_target(batch.reward, hypers.discount, batch.terminated, next_value)
    return squared_error(q_values(networks.critic, critics, batch.obs, batch.action), target)


def actor_loss(
    actor: Actor, networks: Networks, critics: Params, batch: Batch, noise: Array, hypers: Hypers
) -> tuple[Array, Metrics]:
    """-mean min(exp(u / temperature), max_weight) log pi(a | s), with the weights held constant: (loss `[]`, metrics).

    u is the advantage min Q(s, a) - min Q(s, a~) over an action of the policy, drawn from standard normal `noise`
    `[batch, action_dim]`.
    """
    own = min_q(networks.critic, critics, batch.obs, draw(networks, actor, batch.obs, noise))
    advantage = min_q(networks.critic, critics, batch.obs, batch.action) - own
    weight = jax.lax.stop_gradient(jnp.minimum(jnp.exp(advantage / hypers.temperature), hypers.max_weight))
    log_prob = distributions.gaussian_log_prob(batch.action, *distribution(networks, actor, batch.obs))
    loss = -jnp.mean(weight * log_prob)
    return loss, {"actor_loss": loss, "advantage": jnp.mean(advantage)}


def make(config: Config) -> Algorithm:
    """AWAC with this config.

    Raises:
        UserError: a size is not positive.
    """
    check_positive(batch_size=config.batch_size)

    def networks_of(task: Task) -> Networks:
        assert isinstance(task.env.action_space, Box)
        return Networks(MLP((*config.hidden_sizes, task.env.action_space.dim)), MLP((*config.hidden_sizes, 1)))

    def init(key: Array, task: Task, hypers: Hypers) -> State:
        actor_key, critic_key = jax.random.split(key)
        networks = networks_of(task)
        obs = jnp.zeros(task.env.obs_dim)
        net = networks.actor.init(actor_key, obs)
        mean = networks.actor.apply(net, obs)
        actor = Actor(net, jnp.zeros_like(mean))
        critics = init_critics(critic_key, networks.critic, obs, mean)
        return State(
            actor=Trained.start(actor, optax.adam(hypers.actor_learning_rate)),
            critics=Trained.start(critics, optax.adam(hypers.critic_learning_rate)),
            target_critics=critics,
        )

    def update(key: Array, task: Task, state: State, hypers: Hypers, clock: Clock) -> tuple[State, Metrics]:
        networks = networks_of(task)
        batch_key, next_key, own_key = jax.random.split(key, 3)
        batch = offline.sample(batch_key, task, (config.batch_size,), config.normalize_obs)
        batch = batch._replace(reward=batch.reward + hypers.reward_shift)
        noise = jax.random.normal(next_key, batch.action.shape)
        grads, critic_metrics = jax.grad(critic_loss, has_aux=True)(
            state.critics.params, networks, state, batch, noise, hypers
        )
        critics = state.critics.step(grads, optax.adam(hypers.critic_learning_rate))

        noise = jax.random.normal(own_key, batch.action.shape)
        grads, actor_metrics = jax.grad(actor_loss, has_aux=True)(
            state.actor.params, networks, critics.params, batch, noise, hypers
        )
        actor = state.actor.step(grads, optax.adam(hypers.actor_learning_rate))
        target_critics = optax.incremental_update(critics.params, state.target_critics, hypers.tau)
        return State(actor, critics, target_critics), {**critic_metrics, **actor_metrics}

    def mean_action(task: Task, state: State, obs: Array) -> Array:
        return jnp.clip(distribution(networks_of(task), state.actor.params, obs)[0], -1.0, 1.0)

    def act(key: Array, task: Task, state: State, obs: Array) -> Array:
        return offline.to_box(task, mean_action(task, state, offline.observe(task, obs, config.normalize_obs)))

    def value(key: Array, task: Task, state: State, obs: Array) -> Array:
        obs = offline.observe(task, obs, config.normalize_obs)
        return min_q(networks_of(task).critic, state.critics.params, obs, mean_action(task, state, obs))

    return Algorithm(init, update, act, 1, value)


_ANTMAZE = Preset(Config(), Hypers(temperature=0.1, reward_shift=-1.0), "CORL, configs/offline/awac")

PRESETS = {
    "antmaze-umaze": _ANTMAZE,
    "antmaze-umaze-diverse": _ANTMAZE,
    "antmaze-medium-play": _ANTMAZE,
    "antmaze-medium-diverse": _ANTMAZE,
    "antmaze-large-play": _ANTMAZE,
    "antmaze-large-diverse": _ANTMAZE,
}

TRIAL = Trial(
    Config(batch_size=64, hidden_sizes=(32, 32)),
    Hypers(actor_learning_rate=3e-3, critic_learning_rate=3e-3, discount=0.5, tau=0.1, temperature=0.03),
    updates=1000,
)

SPEC = AlgorithmSpec(
    Config,
    Hypers,
    make,
    TRIAL,
    action_spaces=(Box,),
    presets=PRESETS,
    offline=True,
    summary="imitation weighted by the exponential of the advantage",
    source=Source(paper="Nair et al. 2020, arXiv 2006.09359", read="CORL, algorithms/offline/awac.py", level="B"),
)
