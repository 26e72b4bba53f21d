"""CQL(H): SAC from a dataset whose critics are pressed down wherever they rise above the data (Kumar et al. 2020,
arXiv 2006.04779).

Each critic's loss adds to the Bellman error the soft maximum of its values over all actions, minus its value of the
dataset's action (eq. 4). The soft maximum is estimated from actions drawn uniformly, from the policy at s and from the
policy at s', each divided by its density. The target holds no entropy. The Lagrange form learns the weight of
that term, so that the difference settles at a given gap. Sizes, rates, initialisation and order follow CORL: gradients
of temperature, actor, critics and multiplier are all taken where the last update left off, then all are applied.

Deviations of CORL, and so of this file, from the paper:
- A Gaussian whose log standard deviation is scaled and shifted by two learned numbers, which start at 1 and -1.
- The last layer of the policy starts small (Xavier, gain 0.01). Critics start orthogonal, with gain sqrt(2) and in the
  last layer 0.01.
- The multiplier starts at e and is at most 1e6; `cql_alpha` still multiplies it.
- The temperature learns as fast as the policy.

Deviations from CORL:
- The log-determinant of tanh is exact, and log-probabilities are computed from the noise.
- Actions and log-probabilities are in units of the action box, whose volume is 2^|A|; on D4RL's tasks they are anyway.
- Steps of behaviour cloning before the training, a soft maximum without densities, an upper bound on the difference,
  entropy in the target and targets that move less often are options there, off by default, and left out.
- A transition that was truncated bootstraps with the value of the observation that it led to, where the dataset has
  kept it. D4RL's files have not, and those transitions are left out when such a file is read.
- Normalised rewards use the returns of all episodes, as the dataset states them; CORL adds up the rewards between
  terminations, or over 1000 steps.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from envs.core import Box
from envs.datasets import Batch
from rlsuite.core import Algorithm, AlgorithmSpec, Metrics, Preset, Source, Task, Trial
from rlsuite.errors import check_positive
from rlsuite.pieces import offline, offline_sac, soft_maximum, squashed
from rlsuite.pieces.critics import bellman_target, min_q, q_values
from rlsuite.pieces.networks import MLP, ScaledGaussian
from rlsuite.pieces.offline_sac import Draws, Networks, State
from rlsuite.pieces.trained import Trained

Array = jax.Array
Params = Any

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
MULTIPLIER_MAX = 1e6


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings that shape the program."""

    batch_size: int = 256
    """transitions in one gradient step"""
    num_actions: int = 10
    """actions drawn per transition from each of three: uniform, policy at s, policy at s'; for the soft maximum"""
    actor_hidden_sizes: tuple[int, ...] = (256, 256, 256)
    """hidden layers of the actor"""
    critic_hidden_sizes: tuple[int, ...] = (256, 256, 256)
    """hidden layers of each critic"""
    learn_alpha: bool = True
    """learn the temperature; else it stays at initial_alpha"""
    lagrange: bool = False
    """learn the weight of the conservative term, so that the difference settles at target_gap"""
    clip_difference: bool = False
    """let the difference of soft maximum and dataset's action be at least min_difference"""
    max_target_backup: bool = False
    """take the best of num_actions next actions for the target instead of one"""
    normalize_obs: bool = True
    """standardise observations by the mean and standard deviation of the dataset"""
    normalize_reward: bool = False
    """multiply rewards by 1000 / (range of the dataset's episode returns), before any other scale or shift"""


class Hypers(NamedTuple):
    """Settings that may differ between the runs of one program."""

    actor_learning_rate: float = 3e-5
    """learning rate of the actor"""
    critic_learning_rate: float = 3e-4
    """learning rate of the critics"""
    alpha_learning_rate: float = 3e-5
    """learning rate of the temperature, with learn_alpha"""
    discount: float = 0.99
    """discount factor of future rewards"""
    tau: float = 0.005
    """share of an online network that moves into its target whenever the target moves"""
    cql_alpha: float = 10.0
    """weight of the conservative term relative to the mean squared Bellman error"""
    temperature: float = 1.0
    """temperature of the soft maximum; towards 0 it becomes the maximum"""
    initial_alpha: float = 1.0
    """temperature at the start of training"""
    target_entropy_scale: float = 1.0
    """target entropy = -scale * action_dim, in nats, of actions in units of the box"""
    target_gap: float = 0.8
    """difference at which the learned weight settles, with lagrange"""
    multiplier_learning_rate: float = 3e-4
    """learning rate of the conservative term's weight, with lagrange"""
    min_difference: float = -200.0
    """lower bound of the difference, with clip_difference"""
    reward_scale: float = 1.0
    """factor of every reward, before any shift"""
    reward_bias: float = 0.0
    """constant added to every reward, after any scaling; elsewhere called reward_shift"""


class Random(NamedTuple):
    """The random numbers of one critics' loss."""

    drawn: soft_maximum.Random
    target: Array
    """`[1, batch, action_dim]` standard normal, or `[num_actions, ...]` with `max_target_backup`: for the target"""


def critic_loss(
    critics: Params, networks: Networks, state: State, batch: Batch, random: Random, config: Config, hypers: Hypers
) -> tuple[Array, tuple[Array, Metrics]]:
    """Sum over the critics of the mean squared error to r + discount min Q'(s', a'), a' the best of those drawn, and of
    cql_alpha times the mean difference: (loss `[]`, (mean difference of each critic `[2]`, metrics))."""
    next_action, _ = networks.policy.draw(state.actor.params, batch.next_obs, random.target)
    next_obs = jnp.broadcast_to(batch.next_obs, (len(next_action), *batch.next_obs.shape))
    next_q = min_q(networks.critic, state.target_critics, next_obs, next_action)
    next_value = jnp.max(next_q, axis=0)
    target = bellman_target(batch.reward, hypers.discount, batch.terminated, next_value)
    q = q_values(networks.critic, critics, batch.obs, batch.action)
    bellman = jnp.sum(jnp.mean((q - target) ** 2, axis=1))

    actor, temperature = state.actor.params, hypers.temperature
    difference = soft_maximum.soft_maximum(critics, networks, actor, batch, random.drawn, temperature) - q
    if config.clip_difference:
        difference = jnp.maximum(difference, hypers.min_difference)
    mean_difference = jnp.mean(difference, axis=1)
    conservative = hypers.cql_alpha * jnp.sum(mean_difference)
    if config.lagrange:
        weight = multiplier(state.own.params) * hypers.cql_alpha
        conservative = weight * jnp.sum(mean_difference - hypers.target_gap)
    metrics = {"critic_loss": bellman, "cql_difference": jnp.mean(mean_difference), "q": jnp.mean(q)}
    return bellman + conservative, (mean_difference, metrics)


def multiplier(log_multiplier: Array) -> Array:
    """The learned weight of the conservative term: `[]`."""
    return jnp.minimum(jnp.exp(log_multiplier), MULTIPLIER_MAX)


def multiplier_loss(log_multiplier: Array, difference: Array, hypers: Hypers) -> Array:
    """-1/2 multiplier cql_alpha sum(difference - gap): it grows while the differences `[2]` are above the gap."""
    excess = jax.lax.stop_gradient(jnp.sum(difference - hypers.target_gap))
    return -0.5 * multiplier(log_multiplier) * hypers.cql_alpha * excess


def networks_of(config: Config, action_dim: int) -> Networks:
    """The architectures, the critics with orthogonal initialisation."""
    gains = (*(2.0**0.5 for _ in config.critic_hidden_sizes), 0.01)
    critic = MLP((*config.critic_hidden_sizes, 1), gains=gains)
    actor = ScaledGaussian(config.actor_hidden_sizes, action_dim)
    return Networks(squashed.Policy.in_units(actor, action_dim, squashed.clipped(LOG_STD_MIN, LOG_STD_MAX)), critic)


def start(
    config: Config, networks: Networks, keys: Array, obs: Array, action: Array, hypers: Hypers
) -> tuple[Params, Params, Trained]:
    """New parameters of the actor and of both critics, and the logarithm of the conservative term's weight."""
    inputs = jnp.concatenate([obs, action])
    # Stacked, not mapped: in a map within the batch of runs, rounding of the orthogonal initialisation would differ
    # with the number of runs.
    each = [networks.critic.init(key, inputs) for key in jax.random.split(keys[1])]
    critics = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    log_multiplier = Trained.start(jnp.ones((), jnp.float32), optax.adam(hypers.multiplier_learning_rate))
    return networks.policy.network.init(keys[0], obs), critics, log_multiplier


def random_of(config: Config, key: Array, shape: tuple[int, ...]) -> Random:
    """New random numbers for actions of this shape, `[batch, action_dim]`."""
    keys, num_targets = jax.random.split(key, 4), config.num_actions if config.max_target_backup else 1
    drawn = soft_maximum.random_of(keys[:3], config.num_actions, shape)
    return Random(drawn, target=jax.random.normal(keys[3], (num_targets, *shape)))


def learn(
    config: Config, task: Task, networks: Networks, state: State, draws: Draws, hypers: Hypers
) -> tuple[State, Metrics]:
    """One step of everything, with all gradients at what `state` holds."""
    batch, (actor_key, critic_key) = draws.batch, draws.keys
    scale, shape = offline.reward_scale(task, config.normalize_reward), batch.action.shape
    batch = batch._replace(reward=hypers.reward_scale * (batch.reward * scale) + hypers.reward_bias)
    noise, random = jax.random.normal(actor_key, shape), random_of(config, critic_key, shape)
    actor_grads, log_prob = jax.grad(squashed.actor_loss, has_aux=True)(
        state.actor.params, *networks, state.critics.params, state.log_alpha.params, batch.obs, noise
    )
    critic_grads, (difference, metrics) = jax.grad(critic_loss, has_aux=True)(
        state.critics.params, networks, state, batch, random, config, hypers
    )
    critics = state.critics.step(critic_grads, optax.adam(hypers.critic_learning_rate))
    new = state._replace(
        actor=state.actor.step(actor_grads, optax.adam(hypers.actor_learning_rate)),
        critics=critics,
        target_critics=optax.incremental_update(critics.params, state.target_critics, hypers.tau),
    )
    if config.learn_alpha:
        new = new._replace(log_alpha=squashed.learn_alpha(state.log_alpha, log_prob, shape[-1], hypers))
    if config.lagrange:
        grad = jax.grad(multiplier_loss)(state.own.params, difference, hypers)
        new = new._replace(own=state.own.step(grad, optax.adam(hypers.multiplier_learning_rate)))
        metrics["multiplier"] = multiplier(new.own.params)
    return new, metrics


def value(config: Config, key: Array, task: Task, networks: Networks, state: State, obs: Array) -> Array:
    """The smaller critic at the policy's mean, in units of the task's reward: `[]`."""
    mean, _ = networks.policy.distribution(state.actor.params, obs)
    q = min_q(networks.critic, state.critics.params, obs, jnp.tanh(mean))
    return q / offline.reward_scale(task, config.normalize_reward)


METHOD = offline_sac.Method(networks_of, start, learn, value)


def make(config: Config) -> Algorithm:
    """CQL with this config.

    Raises:
        UserError: a size is not positive.
    """
    check_positive(num_actions=config.num_actions)
    return offline_sac.make(config, METHOD, num_keys=2)


_TIERS = ("medium", "medium-replay", "medium-expert")
_MAZES = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
_MUJOCO = Preset(Config(), Hypers(), "CORL, configs/offline/cql")
_ANTMAZE = Preset(
    Config(
        critic_hidden_sizes=(256,) * 5, lagrange=True, clip_difference=True, max_target_backup=True, normalize_obs=False
    ),
    Hypers(actor_learning_rate=1e-4, alpha_learning_rate=1e-4, cql_alpha=5.0, reward_scale=10.0, reward_bias=-5.0),
    "CORL, configs/offline/cql",
)

PRESETS = {
    **{f"{env}-{tier}": _MUJOCO for env in ("halfcheetah", "hopper", "walker2d") for tier in _TIERS},
    "hopper-medium": _MUJOCO._replace(config=Config(normalize_reward=True)),
    **dict.fromkeys((f"antmaze-{maze}" for maze in _MAZES), _ANTMAZE),
}

TRIAL = Trial(
    Config(batch_size=32, num_actions=2, actor_hidden_sizes=(32, 32), critic_hidden_sizes=(32, 32), learn_alpha=False),
    Hypers(
        actor_learning_rate=1e-3, critic_learning_rate=3e-3, discount=0.5, tau=0.1, cql_alpha=0.003, initial_alpha=1e-3
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
    read_with={
        "alpha_learning_rate": {"learn_alpha": True},
        "target_entropy_scale": {"learn_alpha": True},
        "target_gap": {"lagrange": True},
        "multiplier_learning_rate": {"lagrange": True},
        "min_difference": {"clip_difference": True},
    },
    summary="SAC whose critics are pressed down outside the dataset",
    source=Source(paper="Kumar et al. 2020, arXiv 2006.04779", read="CORL, algorithms/offline/cql.py", level="B"),
)
