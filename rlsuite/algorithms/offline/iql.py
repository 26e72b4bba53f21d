"""IQL: implicit Q-learning, values of the dataset's own actions only (Kostrikov et al. 2021, arXiv 2110.06169).

V is fitted to an upper expectile of the target critics at the dataset's actions, the critics to r + discount V(s'), and
the policy to the dataset's actions, each weighted by the exponential of its advantage. No action is ever valued that
the dataset does not hold. Sizes, rates, the order of the steps and the settings of single datasets are those of CORL.

Deviations from CORL:
- Actions are in units of the action box, which they are on D4RL's tasks anyway.
- A transition that was truncated bootstraps with V of the observation that it led to, where the dataset has kept it.
  D4RL's files have not, and those transitions are left out when such a file is read.
- Normalised rewards use the returns of all episodes, as the dataset states them; CORL adds up the rewards between
  terminations, or over 1000 steps.
- There is no dropout, which CORL offers for Adroit.

Deviations of CORL, and so of this file, from the authors' code:
- V(s') in the target and the advantage in the policy's weight are those before V's step; the authors' are after it.
- The critics' losses are averaged over the two; the authors add them up.
- The Gaussian's log standard deviation lies in [-20, 2]; the authors' in [-5, 2].
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
from rlsuite.pieces.critics import bellman_target, init_critics, min_q, q_values
from rlsuite.pieces.deterministic import Networks, choose
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
    hidden_sizes: tuple[int, ...] = (256, 256)
    """hidden layers of every network that has no option of its own"""
    deterministic: bool = False
    """fit a deterministic policy by squared distances instead of a Gaussian by its log-probability"""
    normalize_obs: bool = True
    """standardise observations by the mean and standard deviation of the dataset"""
    normalize_reward: bool = False
    """multiply rewards by 1000 / (range of the dataset's episode returns), before any other scale or shift"""


class Hypers(NamedTuple):
    """Settings that may differ between the runs of one program."""

    actor_learning_rate: float = 3e-4
    """learning rate of the actor at the start; it falls along half a cosine to 0 at the end of the budget"""
    critic_learning_rate: float = 3e-4
    """learning rate of the critics"""
    value_learning_rate: float = 3e-4
    """learning rate of V, the value of a state"""
    discount: float = 0.99
    """discount factor of future rewards"""
    tau: float = 0.005
    """share of an online network that moves into its target whenever the target moves"""
    expectile: float = 0.7
    """expectile of the target critics that V is fitted to: 0.5 is the mean over actions, near 1 the best of them"""
    beta: float = 3.0
    """factor of the advantages in the exponent of the actor's weights; 0 is behaviour cloning"""
    max_weight: float = 100.0
    """upper bound of the weight of one action in the actor's loss"""
    reward_shift: float = 0.0
    """constant added to every reward, after any scaling"""


class Actor(NamedTuple):
    """Parameters of the policy."""

    net: Params
    """observation -> mean, before its tanh"""
    log_std: Array
    """`[action_dim]`, the same at all observations; unused by a deterministic policy"""


class State(NamedTuple):
    """All that one run carries from update to update."""

    actor: Trained
    """of an `Actor`"""
    critics: Trained
    """both critics, stacked on a leading axis `[2]`"""
    target_critics: Params
    value: Trained
    """of V, whose network is a critic's without the action"""


def state_value(networks: Networks, value: Params, obs: Array) -> Array:
    """V: `[..., obs_dim]` -> `[...]`."""
    values: Array = networks.critic.apply(value, obs)[..., 0]
    return values


def value_loss(value: Params, networks: Networks, q: Array, batch: Batch, hypers: Hypers) -> tuple[Array, Array]:
    """mean |expectile - [u < 0]| u^2 with the advantage u = q - V(s), for constant q `[batch]`: (loss `[]`, u)."""
    advantage = jax.lax.stop_gradient(q) - state_value(networks, value, batch.obs)
    weight = jnp.abs(hypers.expectile - (advantage < 0.0))
    return jnp.mean(weight * advantage**2), advantage


def critic_loss(
    critics: Params, networks: Networks, next_value: Array, batch: Batch, hypers: Hypers
) -> tuple[Array, Metrics]:
    """Mean over both critics and the batch of the squared error to r + discount V(s'): (loss `[]`, metrics).

    `next_value` `[batch]` is V(s') and constant.
    """
    target = bellman_target(batch.reward, hypers.discount, batch.terminated, next_value)
    q = q_values(networks.critic, critics, batch.obs, batch.action)
    loss = jnp.mean((q - target) ** 2)
    return loss, {"critic_loss": loss, "q": jnp.mean(q)}


def actor_loss(
    actor: Actor, networks: Networks, advantage: Array, batch: Batch, hypers: Hypers, deterministic: bool
) -> Array:
    """mean min(exp(beta u), max_weight) d(s, a) for constant advantages u `[batch]`: `[]`.

    d is -log pi(a | s), or for a deterministic policy the squared distance, summed over dimensions.
    """
    weight = jnp.minimum(jnp.exp(hypers.beta * jax.lax.stop_gradient(advantage)), hypers.max_weight)
    mean = choose(networks, actor.net, batch.obs)
    if deterministic:
        distance = jnp.sum((mean - batch.action) ** 2, axis=-1)
    else:
        log_std = jnp.clip(actor.log_std, LOG_STD_MIN, LOG_STD_MAX)
        distance = -distributions.gaussian_log_prob(batch.action, mean, log_std)
    return jnp.mean(weight * distance)


def make(config: Config) -> Algorithm:
    """IQL with this config.

    Raises:
        UserError: a size is not positive.
    """
    check_positive(batch_size=config.batch_size)

    def networks_of(task: Task) -> Networks:
        assert isinstance(task.env.action_space, Box)
        return Networks(MLP((*config.hidden_sizes, task.env.action_space.dim)), MLP((*config.hidden_sizes, 1)))

    def init(key: Array, task: Task, hypers: Hypers) -> State:
        actor_key, critic_key, value_key = jax.random.split(key, 3)
        networks = networks_of(task)
        obs = jnp.zeros(task.env.obs_dim)
        net = networks.actor.init(actor_key, obs)
        mean = choose(networks, net, obs)
        actor = Actor(net, jnp.zeros_like(mean))
        critics = init_critics(critic_key, networks.critic, obs, mean)
        value = networks.critic.init(value_key, obs)
        return State(
            actor=Trained.start(actor, optax.adam(hypers.actor_learning_rate)),
            critics=Trained.start(critics, optax.adam(hypers.critic_learning_rate)),
            target_critics=critics,
            value=Trained.start(value, optax.adam(hypers.value_learning_rate)),
        )

    def update(key: Array, task: Task, state: State, hypers: Hypers, clock: Clock) -> tuple[State, Metrics]:
        networks = networks_of(task)
        batch = offline.sample(key, task, (config.batch_size,), config.normalize_obs)
        batch = batch._replace(
            reward=offline.reward_scale(task, config.normalize_reward) * batch.reward + hypers.reward_shift
        )
        # All three losses use the networks from before this step.
        q = min_q(networks.critic, state.target_critics, batch.obs, batch.action)
        next_value = state_value(networks, state.value.params, batch.next_obs)
        (value_error, advantage), value_grads = jax.value_and_grad(value_loss, has_aux=True)(
            state.value.params, networks, q, batch, hypers
        )
        critic_grads, metrics = jax.grad(critic_loss, has_aux=True)(
            state.critics.params, networks, next_value, batch, hypers
        )
        actor_error, actor_grads = jax.value_and_grad(actor_loss)(
            state.actor.params, networks, advantage, batch, hypers, config.deterministic
        )

        critics = state.critics.step(critic_grads, optax.adam(hypers.critic_learning_rate))
        actor_learning_rate = hypers.actor_learning_rate * 0.5 * (1.0 + jnp.cos(jnp.pi * clock.progress))
        new = State(
            actor=state.actor.step(actor_grads, optax.adam(actor_learning_rate)),
            critics=critics,
            target_critics=optax.incremental_update(critics.params, state.target_critics, hypers.tau),
            value=state.value.step(value_grads, optax.adam(hypers.value_learning_rate)),
        )
        return new, {**metrics, "value_loss": value_error, "actor_loss": actor_error, "advantage": jnp.mean(advantage)}

    def act(key: Array, task: Task, state: State, obs: Array) -> Array:
        obs = offline.observe(task, obs, config.normalize_obs)
        return offline.to_box(task, choose(networks_of(task), state.actor.params.net, obs))

    def value(key: Array, task: Task, state: State, obs: Array) -> Array:
        networks, obs = networks_of(task), offline.observe(task, obs, config.normalize_obs)
        action = choose(networks, state.actor.params.net, obs)
        return min_q(networks.critic, state.critics.params, obs, action) / offline.reward_scale(
            task, config.normalize_reward
        )

    return Algorithm(init, update, act, 1, value)


def _published(config: Config, **hypers: float) -> Preset:
    """Settings of one dataset in CORL's `configs/offline/iql`."""
    return Preset(config, Hypers(**hypers), "CORL, configs/offline/iql")


_ANTMAZE = _published(Config(), expectile=0.9, beta=10.0, reward_shift=-1.0)
_HOPPER = _published(Config(deterministic=True, normalize_reward=True), tau=0.001)

PRESETS = {
    "hopper-medium": _HOPPER,
    "hopper-medium-replay": _HOPPER,
    "hopper-medium-expert": _published(Config(), expectile=0.5, beta=6.0),
    "antmaze-umaze": _ANTMAZE,
    "antmaze-umaze-diverse": _ANTMAZE,
    "antmaze-medium-play": _ANTMAZE,
    "antmaze-medium-diverse": _ANTMAZE,
    "antmaze-large-play": _ANTMAZE,
    "antmaze-large-diverse": _ANTMAZE,
}

TRIAL = Trial(
    Config(batch_size=64, hidden_sizes=(32, 32)),
    Hypers(
        actor_learning_rate=3e-3,
        critic_learning_rate=3e-3,
        value_learning_rate=3e-3,
        discount=0.5,
        tau=0.1,
        beta=30.0,
    ),
    updates=1500,
)

SPEC = AlgorithmSpec(
    Config,
    Hypers,
    make,
    TRIAL,
    action_spaces=(Box,),
    presets=PRESETS,
    offline=True,
    summary="values of the dataset's own actions only, by an expectile",
    source=Source(paper="Kostrikov et al. 2021, arXiv 2110.06169", read="CORL, algorithms/offline/iql.py", level="B"),
)
