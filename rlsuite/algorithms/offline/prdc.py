"""PRDC: TD3 whose actor is drawn to the dataset's action nearest to its own (Ran et al. 2023, arXiv 2306.06569).

TD3+BC pulls the actor to the action that was taken in the same transition, however good another one would be. Here the
anchor is looked for among all transitions: with D the dataset, it is the action of the one that minimises

    |beta (s - s_i)|^2 + |mu(s) - a_i|^2        over i in D, observations in standard deviations,

the k-th nearest if k > 1. The critics, the scale of the first one in the actor's loss and the delays are those of
`td3_bc.py`. The search is exact and on the device, see `nearest.py`. Sizes and rates are those of the authors' code.

Deviations from it:
- Actions, noise and distances are in units of the action box; on D4RL's tasks they are anyway.
- Distances in float32, where the code's are in float64: of two transitions at nearly the same distance, either may be
  the anchor.
- The actor and the targets move at the first and then at every second gradient step; the authors begin at the second.
- A transition that was truncated bootstraps with the value of the observation that it led to, where the dataset has
  kept it; the authors drop it.
Deviation of that code, and so of this file, from the paper: the actor's loss has the squared distance of the actions,
averaged over dimensions, in place of the norm of the whole difference.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from envs.core import Box
from envs.datasets import STD_FLOOR, Batch, Dataset
from rlsuite.algorithms.offline import td3_bc
from rlsuite.algorithms.offline.td3_bc import Networks, State, choose, first_q, q_values
from rlsuite.core import Algorithm, Clock, Metrics, Preset, Task, Trial
from rlsuite.errors import UserError, check_positive
from rlsuite.pieces import offline
from rlsuite.pieces.nearest import nearest
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
    """give the networks, and measure distances between, observations in standard deviations of the dataset"""
    k: int = 1
    """the actor is drawn to the action of the k-th nearest transition"""


class Hypers(NamedTuple):
    """What may differ between the runs of one program."""

    actor_learning_rate: float = 3e-4
    critic_learning_rate: float = 3e-4
    discount: float = 0.99
    tau: float = 0.005
    """share of the online networks that moves into their targets whenever those move"""
    alpha: float = 2.5
    """how hard the critic pulls, against the dataset's actions"""
    beta: float = 2.0
    """how much a distance between observations counts beside one between actions"""
    target_noise: float = 0.2
    """standard deviation of what is added to the target actor's actions, in half widths of the action box"""
    target_noise_clip: float = 0.5
    """bound of that noise, in the same units"""
    reward_scale: float = 1.0
    """what learns is reward_scale * reward + reward_shift"""
    reward_shift: float = 0.0


def of_td3_bc(hypers: Hypers) -> td3_bc.Hypers:
    """Those that the losses of TD3+BC read."""
    return td3_bc.Hypers(**{name: value for name, value in hypers._asdict().items() if name in td3_bc.Hypers._fields})


def anchors(dataset: Dataset, obs: Array, action: Array, hypers: Hypers, config: Config) -> Array:
    """The action of the k-th nearest transition of the dataset: `[batch, action_dim]`, held constant.

    `obs` `[batch, obs_dim]` is as recorded, not normalised; `action` `[batch, action_dim]` is in units of the box.
    """
    assert dataset.blocks is not None, "the dataset was not prepared: pass it through `AlgorithmSpec.prepare`"
    deviation = dataset.obs_std + STD_FLOOR if config.normalize_obs else jnp.ones(dataset.obs_dim)
    weight = jnp.concatenate([hypers.beta / deviation, jnp.ones(dataset.space.dim)])
    row = nearest(dataset.blocks, jax.lax.stop_gradient(jnp.concatenate([obs, action], axis=-1)), weight, config.k)
    return dataset.unpack(dataset.rows[row]).action


def critic_loss(
    critics: Params, networks: Networks, state: State, batch: Batch, noise: Array, hypers: Hypers
) -> tuple[Array, Metrics]:
    """That of TD3+BC, on the scaled and shifted reward: (loss `[]`, metrics)."""
    batch = batch._replace(reward=hypers.reward_scale * batch.reward + hypers.reward_shift)
    return td3_bc.critic_loss(critics, networks, state, batch, noise, of_td3_bc(hypers))


def actor_loss(actor: Params, networks: Networks, critics: Params, obs: Array, anchor: Array, hypers: Hypers) -> Array:
    """-lambda mean Q_1(s, mu(s)) + mean (mu(s) - anchor)^2, with lambda = alpha / mean |Q_1| held constant: `[]`."""
    action = choose(networks, actor, obs)
    q = first_q(networks, critics, obs, action)
    scale = hypers.alpha / jax.lax.stop_gradient(jnp.mean(jnp.abs(q)))
    return -scale * jnp.mean(q) + jnp.mean((action - anchor) ** 2)


def make(config: Config) -> Algorithm:
    """PRDC with this config.

    Raises:
        UserError: a size is not positive; or, once there is a dataset, it has fewer than k transitions.
    """
    check_positive(batch_size=config.batch_size, policy_delay=config.policy_delay, k=config.k)

    def networks_of(task: Task) -> Networks:
        assert isinstance(task.env.action_space, Box)
        return Networks(MLP((*config.hidden_sizes, task.env.action_space.dim)), MLP((*config.hidden_sizes, 1)))

    def init(key: Array, task: Task, hypers: Hypers) -> State:
        size = offline.dataset_of(task).size
        if size < config.k:
            raise UserError(f"k={config.k} is more than the {size} transitions of the dataset; choose a smaller one")
        return td3_bc.begin(
            key, networks_of(task), task.env.obs_dim, hypers.actor_learning_rate, hypers.critic_learning_rate
        )

    def update(key: Array, task: Task, state: State, hypers: Hypers, clock: Clock) -> tuple[State, Metrics]:
        networks = networks_of(task)
        batch_key, noise_key = jax.random.split(key)
        recorded = offline.sample(batch_key, task, (config.batch_size,), normalize_obs=False)
        batch = recorded._replace(
            obs=offline.observe(task, recorded.obs, config.normalize_obs),
            next_obs=offline.observe(task, recorded.next_obs, config.normalize_obs),
        )
        noise = jax.random.normal(noise_key, batch.action.shape)
        grads, metrics = jax.grad(critic_loss, has_aux=True)(state.critics, networks, state, batch, noise, hypers)
        step, critic_opt = optax.adam(hypers.critic_learning_rate).update(grads, state.critic_opt)
        state = state._replace(critics=optax.apply_updates(state.critics, step), critic_opt=critic_opt)

        def follow(state: State) -> State:
            action = choose(networks, state.actor, batch.obs)
            anchor = anchors(offline.dataset_of(task), recorded.obs, action, hypers, config)
            grads = jax.grad(actor_loss)(state.actor, networks, state.critics, batch.obs, anchor, hypers)
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


def _published(**hypers: float) -> Preset:
    return Preset(Config(), Hypers(**hypers), "the authors' code")


_TIERS = ("random", "medium", "medium-replay", "medium-expert")
_MAZES = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")

PRESETS = {
    **{f"halfcheetah-{tier}": _published(alpha=40.0) for tier in _TIERS},
    **{f"{robot}-{tier}": _published() for robot in ("hopper", "walker2d") for tier in _TIERS},
    **{f"antmaze-{maze}": _published(alpha=7.5, beta=7.5, reward_scale=1e4, reward_shift=-1.0) for maze in _MAZES},
}

TRIAL = Trial(
    Config(batch_size=64, hidden_sizes=(64, 64)),
    Hypers(actor_learning_rate=1e-3, critic_learning_rate=5e-3, discount=0.5, tau=0.1, alpha=5.0),
    updates=2000,
)
