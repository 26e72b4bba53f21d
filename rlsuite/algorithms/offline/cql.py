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
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from envs.core import Box
from envs.datasets import Batch
from rlsuite.core import Algorithm, AlgorithmSpec, Clock, Metrics, Preset, Source, Task, Trial
from rlsuite.errors import check_positive
from rlsuite.pieces import offline, squashed
from rlsuite.pieces.critics import bellman_target, min_q, q_values
from rlsuite.pieces.networks import MLP
from rlsuite.pieces.offline_td3 import Networks
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


class State(NamedTuple):
    """All that one run carries from update to update."""

    actor: Trained
    critics: Trained
    """both critics, stacked on a leading axis `[2]`"""
    target_critics: Params
    log_alpha: Trained
    log_multiplier: Trained


class Random(NamedTuple):
    """The random numbers of one critics' loss."""

    uniform: Array
    """`[num_actions, batch, action_dim]` in [-1, 1]: actions"""
    current: Array
    """the same shape, standard normal: for actions of the policy at s"""
    following: Array
    """the same, for actions of the policy at s'"""
    target: Array
    """`[1, batch, action_dim]` standard normal, or `[num_actions, ...]` with `max_target_backup`: for the target"""


class Policy(nn.Module):
    """`[..., obs_dim]` -> mean and log standard deviation before squashing, two `[..., action_dim]`."""

    hidden_sizes: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs: Array) -> tuple[Array, Array]:
        hidden = nn.relu(MLP(self.hidden_sizes)(obs))
        # Xavier's uniform initialisation with gain 0.01: the variance scales by its square.
        small = nn.initializers.variance_scaling(1e-4, "fan_avg", "uniform")
        mean, log_std = jnp.split(nn.Dense(2 * self.action_dim, kernel_init=small)(hidden), 2, axis=-1)
        scale = self.param("log_std_scale", nn.initializers.ones, ())
        offset = self.param("log_std_offset", nn.initializers.constant(-1.0), ())
        return mean, jnp.clip(scale * log_std + offset, LOG_STD_MIN, LOG_STD_MAX)


def draw(networks: Networks, actor: Params, obs: Array, noise: Array) -> tuple[Array, Array]:
    """Reparameterised actions in units of the box from standard normal noise, and their log-probabilities.

    `[batch, obs_dim]`, `[..., batch, action_dim]` -> `[..., batch, action_dim]`, `[..., batch]`: several of each
    observation, if the noise has more axes.
    """
    mean, log_std = networks.actor.apply(actor, obs)
    return squashed.in_units(mean, log_std, noise)


def differences(
    critics: Params, networks: Networks, actor: Params, batch: Batch, random: Random, q: Array, hypers: Hypers
) -> Array:
    """T log sum exp((Q(s, a) - log density(a)) / T) over the drawn actions, less `q`, all `[2, batch]`."""
    current, current_log_prob = draw(networks, actor, batch.obs, random.current)
    following, following_log_prob = draw(networks, actor, batch.next_obs, random.following)
    uniform_log_prob = jnp.full_like(current_log_prob, -math.log(2.0) * current.shape[-1])
    actions = jnp.concatenate([random.uniform, current, following])
    log_density = jnp.concatenate([uniform_log_prob, current_log_prob, following_log_prob])
    obs = jnp.broadcast_to(batch.obs, (len(actions), *batch.obs.shape))
    drawn_q = q_values(networks.critic, critics, obs, actions) - log_density  # [2, 3 num_actions, batch]
    soft_max = hypers.temperature * jax.nn.logsumexp(drawn_q / hypers.temperature, axis=1)
    return soft_max - q


def critic_loss(
    critics: Params, networks: Networks, state: State, batch: Batch, random: Random, config: Config, hypers: Hypers
) -> tuple[Array, tuple[Array, Metrics]]:
    """Sum over the critics of the mean squared error to r + discount min Q'(s', a'), a' the best of those drawn, and of
    cql_alpha times the mean difference: (loss `[]`, (mean difference of each critic `[2]`, metrics))."""
    next_action, _ = draw(networks, state.actor.params, batch.next_obs, random.target)
    next_obs = jnp.broadcast_to(batch.next_obs, (len(next_action), *batch.next_obs.shape))
    next_q = min_q(networks.critic, state.target_critics, next_obs, next_action)
    next_value = jnp.max(next_q, axis=0)
    target = bellman_target(batch.reward, hypers.discount, batch.terminated, next_value)
    q = q_values(networks.critic, critics, batch.obs, batch.action)
    bellman = jnp.sum(jnp.mean((q - target) ** 2, axis=1))

    difference = differences(critics, networks, state.actor.params, batch, random, q, hypers)
    if config.clip_difference:
        difference = jnp.maximum(difference, hypers.min_difference)
    mean_difference = jnp.mean(difference, axis=1)
    conservative = hypers.cql_alpha * jnp.sum(mean_difference)
    if config.lagrange:
        weight = multiplier(state.log_multiplier.params) * hypers.cql_alpha
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


def actor_loss(
    actor: Params, networks: Networks, critics: Params, log_alpha: Array, obs: Array, noise: Array
) -> tuple[Array, Array]:
    """mean(alpha log pi - min Q): (loss `[]`, log-probabilities `[batch]`)."""
    action, log_prob = draw(networks, actor, obs, noise)
    q = min_q(networks.critic, critics, obs, action)
    return jnp.mean(jnp.exp(log_alpha) * log_prob - q), log_prob


def make(config: Config) -> Algorithm:
    """CQL with this config.

    Raises:
        UserError: a size is not positive.
    """
    check_positive(batch_size=config.batch_size, num_actions=config.num_actions)
    gains = (*(2.0**0.5 for _ in config.critic_hidden_sizes), 0.01)

    def networks_of(task: Task) -> Networks:
        assert isinstance(task.env.action_space, Box)
        actor = Policy(config.actor_hidden_sizes, task.env.action_space.dim)
        return Networks(actor, MLP((*config.critic_hidden_sizes, 1), gains=gains))

    def scale_of(task: Task) -> Array:
        return offline.reward_scale(task) if config.normalize_reward else jnp.ones(())

    def init(key: Array, task: Task, hypers: Hypers) -> State:
        assert isinstance(task.env.action_space, Box)
        actor_key, critic_key = jax.random.split(key)
        networks = networks_of(task)
        obs, action = jnp.zeros(task.env.obs_dim), jnp.zeros(task.env.action_space.dim)
        actor = networks.actor.init(actor_key, obs)
        critic_inputs = jnp.concatenate([obs, action])
        # Stacked, not mapped: in a map within the batch of runs, rounding of the orthogonal initialisation would differ
        # with the number of runs.
        each = [networks.critic.init(key, critic_inputs) for key in jax.random.split(critic_key)]
        critics = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        log_alpha = jnp.log(jnp.asarray(hypers.initial_alpha, jnp.float32))
        log_multiplier = jnp.ones((), jnp.float32)
        return State(
            actor=Trained.start(actor, optax.adam(hypers.actor_learning_rate)),
            critics=Trained.start(critics, optax.adam(hypers.critic_learning_rate)),
            target_critics=critics,
            log_alpha=Trained.start(log_alpha, optax.adam(hypers.alpha_learning_rate)),
            log_multiplier=Trained.start(log_multiplier, optax.adam(hypers.multiplier_learning_rate)),
        )

    def random_of(key: Array, shape: tuple[int, ...]) -> Random:
        uniform_key, current_key, following_key, target_key = jax.random.split(key, 4)
        many = (config.num_actions, *shape)
        return Random(
            uniform=jax.random.uniform(uniform_key, many, minval=-1.0, maxval=1.0),
            current=jax.random.normal(current_key, many),
            following=jax.random.normal(following_key, many),
            target=jax.random.normal(target_key, many if config.max_target_backup else (1, *shape)),
        )

    def update(key: Array, task: Task, state: State, hypers: Hypers, clock: Clock) -> tuple[State, Metrics]:
        networks = networks_of(task)
        batch_key, actor_key, critic_key = jax.random.split(key, 3)
        batch = offline.sample(batch_key, task, (config.batch_size,), config.normalize_obs)
        reward = hypers.reward_scale * (batch.reward * scale_of(task)) + hypers.reward_bias
        batch = batch._replace(reward=reward)
        noise, random = jax.random.normal(actor_key, batch.action.shape), random_of(critic_key, batch.action.shape)

        # All gradients at what `state` holds, before any step is taken.
        actor_grads, log_prob = jax.grad(actor_loss, has_aux=True)(
            state.actor.params, networks, state.critics.params, state.log_alpha.params, batch.obs, noise
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
            target_entropy = -hypers.target_entropy_scale * noise.shape[-1]
            grad = jax.grad(squashed.alpha_loss)(state.log_alpha.params, log_prob, target_entropy)
            new = new._replace(log_alpha=state.log_alpha.step(grad, optax.adam(hypers.alpha_learning_rate)))
        if config.lagrange:
            grad = jax.grad(multiplier_loss)(state.log_multiplier.params, difference, hypers)
            adam = optax.adam(hypers.multiplier_learning_rate)
            new = new._replace(log_multiplier=state.log_multiplier.step(grad, adam))
            metrics["multiplier"] = multiplier(new.log_multiplier.params)
        metrics["alpha"] = jnp.exp(new.log_alpha.params)
        return new, metrics

    def act(key: Array, task: Task, state: State, obs: Array) -> Array:
        obs = offline.observe(task, obs, config.normalize_obs)
        mean, _ = networks_of(task).actor.apply(state.actor.params, obs)
        return offline.to_box(task, jnp.tanh(mean))

    def value(key: Array, task: Task, state: State, obs: Array) -> Array:
        networks, obs = networks_of(task), offline.observe(task, obs, config.normalize_obs)
        mean, _ = networks.actor.apply(state.actor.params, obs)
        return min_q(networks.critic, state.critics.params, obs, jnp.tanh(mean)) / scale_of(task)

    return Algorithm(init, update, act, 1, value)


_MUJOCO = Preset(Config(), Hypers(), "CORL, configs/offline/cql")
_ANTMAZE = Preset(
    Config(
        critic_hidden_sizes=(256,) * 5,
        lagrange=True,
        clip_difference=True,
        max_target_backup=True,
        normalize_obs=False,
    ),
    Hypers(
        actor_learning_rate=1e-4,
        alpha_learning_rate=1e-4,
        cql_alpha=5.0,
        target_gap=0.8,
        min_difference=-200.0,
        reward_scale=10.0,
        reward_bias=-5.0,
    ),
    "CORL, configs/offline/cql",
)

PRESETS = {
    "halfcheetah-medium": _MUJOCO,
    "halfcheetah-medium-replay": _MUJOCO,
    "halfcheetah-medium-expert": _MUJOCO,
    "hopper-medium": _MUJOCO._replace(config=Config(normalize_reward=True)),
    "hopper-medium-replay": _MUJOCO,
    "hopper-medium-expert": _MUJOCO,
    "walker2d-medium": _MUJOCO,
    "walker2d-medium-replay": _MUJOCO,
    "walker2d-medium-expert": _MUJOCO,
    "antmaze-umaze": _ANTMAZE,
    "antmaze-umaze-diverse": _ANTMAZE,
    "antmaze-medium-play": _ANTMAZE,
    "antmaze-medium-diverse": _ANTMAZE,
    "antmaze-large-play": _ANTMAZE,
    "antmaze-large-diverse": _ANTMAZE,
}

TRIAL = Trial(
    Config(
        batch_size=32,
        num_actions=2,
        actor_hidden_sizes=(32, 32),
        critic_hidden_sizes=(32, 32),
        learn_alpha=False,
    ),
    Hypers(
        actor_learning_rate=1e-3,
        critic_learning_rate=3e-3,
        discount=0.5,
        tau=0.1,
        cql_alpha=0.003,
        initial_alpha=1e-3,
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
    source=Source(
        paper="Kumar et al. 2020, arXiv 2006.04779",
        read="CORL, algorithms/offline/cql.py",
        level="B",
    ),
)
