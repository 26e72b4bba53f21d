"""Off-policy MDPO: mirror descent policy optimisation from a replay buffer (Tomar et al. 2020, arXiv 2005.09814).

Beside soft actor-critic the policy is also held near an old policy, a copy of itself that is renewed every `sgd_steps`
environment steps. It minimises, over reparameterised actions,
E[kappa log pi + q (lambda - kappa) log pi_old - Q1], where kappa = 1 / t_k weighs the KL divergence (`kl_coef`), lambda
the entropy (`entropy_coef`), and q is the order of a Tsallis divergence, where 1 is KL. The details are those of the
authors' code: ReLU networks, log standard deviation clipped to [-20, 2], tanh-squashed Gaussian, two Q functions, V and
a target of V only, a small penalty on the means and log standard deviations, and one gradient step of everything at
once from the parameters before it. Log-densities are those of the action scaled to [-1, 1], each component's density
bounded from below at 1e-6 and the squashing's slope kept 1e-6 from 0; log_q is summed over the components.
`rlsuite/algorithms/on_policy/mdpo.py` is the other half of the paper.

The code acts with the policy's mean after the warm-up, with no noise at all, where the paper samples. The code's is the
default here, since every other setting is the code's too; `sample_actions` gives the paper's.

Deviations from the code:
- V's target takes each sample's own log_q pi, as the paper does. The code subtracts their mean over the batch: its
  log_q pi is `[batch]` beside a `[batch, 1]` minimum of the Qs, so that the difference is a table of all pairs, of
  which the loss takes the mean. `mean_log_prob` does as the code does; the loss that it reports leaves out half the
  variance of lambda log_q pi, a constant of V that the table adds.
- Adam adds epsilon (1e-8) after the bias correction, as in its paper and in PyTorch. The code's, of TensorFlow 1, adds
  it before, which makes it 32 times as large in the first step.
- Added: `anneal_kl` lets kappa grow as kl_coef / t_k, where t_k is the share of the budget that is left and at least
  1e-4, as on-policy MDPO does; that the paper does so here too we have not verified. By default kappa is constant, as
  in the code.
- The noise itself stands for (u - mean) / (std + 1e-6) under the present policy, and no 1e-6 is added to the old
  policy's standard deviation. The squashing's slope is computed where 1 - tanh^2 rounds to 0, too.
- The Q functions see actions as the environment takes them, not scaled to [-1, 1], and boxes need not be symmetric.
- PyTorch's default initialisation instead of TensorFlow's.
- Truncated transitions bootstrap with the value of the observation that they led to.
- Every update takes one step of `num_envs` environments, then `gradient_steps` gradient steps. The ratio is free: 1 and
  1 are the published protocol.
- Left out: the loss without reparameterisation, which the code's scripts do not use.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from envs.core import Box, Env
from rlsuite.algorithms.on_policy.mdpo import MIN_LOG_DENSITY, annealed, log_q
from rlsuite.core import Algorithm, Clock, Metrics, Task, Transition, Trial, added
from rlsuite.errors import check_positive
from rlsuite.pieces import distributions, replay, rollout
from rlsuite.pieces.networks import MLP

Array = jax.Array
Params = Any

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
LOG_EXTRA_SLOPE = math.log(1e-6)
"""of what is added to the slope 1 - tanh(u)^2 of the squashing"""


@dataclasses.dataclass(frozen=True)
class Config:
    """What shapes the program."""

    num_envs: int = 1
    """environments stepped side by side in each run; one update steps each of them once"""
    gradient_steps: int = 1
    """gradient steps in one update"""
    batch_size: int = 256
    """transitions in one gradient step"""
    buffer_size: int = 1_000_000
    """transitions kept; a budget that is smaller takes less memory"""
    warmup_steps: int = 10_000
    """environment steps with uniform actions before learning starts"""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """hidden layers of the actor, of each Q function and of V"""
    sgd_steps: int = 1_000
    """environment steps from one renewal of the old policy to the next"""
    sample_actions: bool = False
    """collect with actions drawn from the policy, as the paper does; else with its mean, as the code does"""
    anneal_kl: bool = False
    """let the weight of the KL divergence grow as kl_coef / (1 - share of the budget)"""
    mean_log_prob: bool = added(False)
    """subtract the batch's mean log-probability from V's target, as the code does; else each sample's, as the paper"""


class Hypers(NamedTuple):
    """What may differ between the runs of one program."""

    actor_learning_rate: float = 3e-4
    critic_learning_rate: float = 3e-4
    """of both Q functions and of V"""
    discount: float = 0.99
    tau: float = 0.005
    """share of V that moves into its target at each gradient step"""
    kl_coef: float = 1.0
    """weight of the divergence from the old policy, 1 / t_k"""
    entropy_coef: float = 0.2
    tsallis_q: float = 1.0
    """order of the divergence and of the entropy, where 1 is KL and Shannon's"""
    regularization: float = 1e-3
    """weight of the mean square of the policy's means, and of its log standard deviations"""


class Learner(NamedTuple):
    """What gradient steps change."""

    actor: Params
    old_actor: Params
    critics: Params
    """both Q functions, stacked on a leading axis of 2"""
    value: Params
    target_value: Params
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    value_opt: optax.OptState


class State(NamedTuple):
    """All that one run carries from update to update."""

    learner: Learner
    buffer: replay.Replay
    envs: rollout.EnvCarry


class Networks(NamedTuple):
    """The three architectures, and the action box they serve."""

    actor: nn.Module
    critic: nn.Module
    value: nn.Module
    low: Array
    """`[action_dim]`"""
    high: Array
    """`[action_dim]`"""


class Drawn(NamedTuple):
    """A reparameterised action and what it was made of, each `[..., action_dim]`."""

    mean: Array
    log_std: Array
    u: Array
    """before squashing"""
    action: Array
    log_density: Array
    """of each component of the action, scaled to [-1, 1]"""


def networks_of(config: Config, env: Env) -> Networks:
    """The architectures for this environment. MDPO takes `Box` actions here; the registry says so to the caller."""
    space = env.action_space
    assert isinstance(space, Box)
    actor = MLP((*config.hidden_sizes, 2 * space.dim))
    critic = MLP((*config.hidden_sizes, 1))
    return Networks(actor, critic, critic, jnp.asarray(space.low), jnp.asarray(space.high))


def distribution(networks: Networks, actor: Params, obs: Array) -> tuple[Array, Array]:
    """Mean and log standard deviation before squashing: `[..., obs_dim]` -> two `[..., action_dim]`."""
    mean, log_std = jnp.split(networks.actor.apply(actor, obs), 2, axis=-1)
    return mean, jnp.clip(log_std, LOG_STD_MIN, LOG_STD_MAX)


def log_density(z: Array, log_std: Array, u: Array) -> Array:
    """Log-density of each component of tanh(u), from u and z = (u - mean) / std: all `[..., action_dim]`."""
    log_slope = distributions.log_tanh_slope(u)
    return -0.5 * z**2 - log_std - 0.5 * math.log(2.0 * math.pi) - jnp.logaddexp(log_slope, LOG_EXTRA_SLOPE)


def draw(networks: Networks, actor: Params, obs: Array, noise: Array) -> Drawn:
    """An action of the policy for each obs `[..., obs_dim]` from standard normal noise `[..., action_dim]`."""
    mean, log_std = distribution(networks, actor, obs)
    u = mean + jnp.exp(log_std) * noise
    action, _ = distributions.tanh_squash(u, networks.low, networks.high)
    # From the noise itself: (u - mean) / std loses its digits in float32 once std is small beside the mean.
    return Drawn(mean, log_std, u, action, log_density(noise, log_std, u))


def log_q_prob(log_densities: Array, q: Array | float) -> Array:
    """The sum over components of log_q of their densities, none below 1e-6: `[..., action_dim]` -> `[...]`."""
    return jnp.sum(log_q(jnp.maximum(log_densities, MIN_LOG_DENSITY), q), axis=-1)


def q_values(networks: Networks, critics: Params, obs: Array, action: Array) -> Array:
    """Both Q functions: `[2, ...]`."""
    inputs = jnp.concatenate([obs, action], axis=-1)
    return jax.vmap(lambda params: networks.critic.apply(params, inputs)[..., 0])(critics)


def values(networks: Networks, value: Params, obs: Array) -> Array:
    """V: `[..., obs_dim]` -> `[...]`."""
    out: Array = networks.value.apply(value, obs)
    return out[..., 0]


def critic_loss(
    critics: Params, networks: Networks, target_value: Params, batch: Transition, discount: Array | float
) -> tuple[Array, Metrics]:
    """Sum over the two Q functions of half the mean squared error to reward + discount * V of the target: `[]`."""
    next_value = values(networks, target_value, batch.next_obs)
    target = jax.lax.stop_gradient(batch.reward + discount * jnp.where(batch.terminated, 0.0, next_value))
    q = q_values(networks, critics, batch.obs, batch.action)
    loss = 0.5 * jnp.sum(jnp.mean((q - target) ** 2, axis=1))
    return loss, {"critic_loss": loss, "q": jnp.mean(q)}


def value_loss(
    value: Params,
    networks: Networks,
    learner: Learner,
    obs: Array,
    noise: Array,
    hypers: Hypers,
    mean_log_prob: bool = False,
) -> tuple[Array, Metrics]:
    """Half the mean squared error of V to min Q - lambda log_q pi at the policy's actions: (loss `[]`, metrics).

    With `mean_log_prob` the target of every sample has the batch's mean of log_q pi.
    """
    drawn = draw(networks, learner.actor, obs, noise)
    q = jnp.min(q_values(networks, learner.critics, obs, drawn.action), axis=0)
    log_prob = log_q_prob(drawn.log_density, hypers.tsallis_q)
    target = q - hypers.entropy_coef * (jnp.mean(log_prob) if mean_log_prob else log_prob)
    loss = 0.5 * jnp.mean((values(networks, value, obs) - jax.lax.stop_gradient(target)) ** 2)
    return loss, {"value_loss": loss}


def actor_loss(
    actor: Params,
    networks: Networks,
    learner: Learner,
    obs: Array,
    noise: Array,
    kl_weight: Array | float,
    hypers: Hypers,
) -> tuple[Array, Metrics]:
    """mean(kappa log_q pi + q (lambda - kappa) log_q pi_old - Q1) and the penalties: (loss `[]`, metrics)."""
    drawn = draw(networks, actor, obs, noise)
    old_mean, old_log_std = distribution(networks, learner.old_actor, obs)
    old_log_density = log_density((drawn.u - old_mean) * jnp.exp(-old_log_std), old_log_std, drawn.u)
    log_prob = log_q_prob(drawn.log_density, hypers.tsallis_q)
    old_log_prob = log_q_prob(old_log_density, hypers.tsallis_q)
    first_critic = jax.tree.map(lambda leaf: leaf[:1], learner.critics)
    (first_q,) = q_values(networks, first_critic, obs, drawn.action)
    of_old = hypers.tsallis_q * (hypers.entropy_coef - kl_weight) * old_log_prob
    penalty = hypers.regularization * (jnp.mean(drawn.mean**2) + jnp.mean(drawn.log_std**2))
    loss = jnp.mean(kl_weight * log_prob + of_old - first_q) + penalty
    return loss, {"policy_loss": loss, "log_ratio": jnp.mean(log_prob - old_log_prob)}


def is_due(update: Array, config: Config) -> Array:
    """Whether one of the environment steps of this update, counted from 0, is a multiple of `sgd_steps`: `[]` bool."""
    return -(update * config.num_envs) % config.sgd_steps < config.num_envs


def make(config: Config) -> Algorithm:
    """Off-policy MDPO with this config.

    Raises:
        UserError: the buffer does not hold whole steps of all environments, or a size is not positive.
    """
    check_positive(
        num_envs=config.num_envs,
        gradient_steps=config.gradient_steps,
        batch_size=config.batch_size,
        buffer_size=config.buffer_size,
        warmup_steps=config.warmup_steps,
        sgd_steps=config.sgd_steps,
    )
    replay.check_capacity(config.buffer_size, config.num_envs)
    warmup_updates = -(-config.warmup_steps // config.num_envs)

    def init(key: Array, task: Task, hypers: Hypers) -> State:
        actor_key, critic_key, value_key, envs_key = jax.random.split(key, 4)
        networks = networks_of(config, task.env)
        obs, action = jnp.zeros(task.env.obs_dim), jnp.zeros_like(networks.low)
        actor = networks.actor.init(actor_key, obs)
        critic_inputs = jnp.concatenate([obs, action])
        critics = jax.vmap(lambda key: networks.critic.init(key, critic_inputs))(jax.random.split(critic_key))
        value = networks.value.init(value_key, obs)
        learner = Learner(
            actor=actor,
            old_actor=actor,
            critics=critics,
            value=value,
            target_value=value,
            actor_opt=optax.adam(hypers.actor_learning_rate).init(actor),
            critic_opt=optax.adam(hypers.critic_learning_rate).init(critics),
            value_opt=optax.adam(hypers.critic_learning_rate).init(value),
        )
        buffer = replay.init(replay.Layout.of(task.env), config.num_envs, config.buffer_size)
        return State(learner, buffer, rollout.start(envs_key, task.env, config.num_envs))

    def gradient_step(
        networks: Networks,
        learner: Learner,
        batch: Transition,
        noise: Array,
        kl_weight: Array | float,
        hypers: Hypers,
    ) -> tuple[Learner, Metrics]:
        # All three gradients are taken before any of the networks moves, and with one sample of the actions.
        of_actor, actor_metrics = jax.grad(actor_loss, has_aux=True)(
            learner.actor, networks, learner, batch.obs, noise, kl_weight, hypers
        )
        of_critics, critic_metrics = jax.grad(critic_loss, has_aux=True)(
            learner.critics, networks, learner.target_value, batch, hypers.discount
        )
        of_value, value_metrics = jax.grad(value_loss, has_aux=True)(
            learner.value, networks, learner, batch.obs, noise, hypers, config.mean_log_prob
        )
        actor_step, actor_opt = optax.adam(hypers.actor_learning_rate).update(of_actor, learner.actor_opt)
        critic_step, critic_opt = optax.adam(hypers.critic_learning_rate).update(of_critics, learner.critic_opt)
        value_step, value_opt = optax.adam(hypers.critic_learning_rate).update(of_value, learner.value_opt)
        value = optax.apply_updates(learner.value, value_step)
        learner = Learner(
            actor=optax.apply_updates(learner.actor, actor_step),
            old_actor=learner.old_actor,
            critics=optax.apply_updates(learner.critics, critic_step),
            value=value,
            target_value=optax.incremental_update(value, learner.target_value, hypers.tau),
            actor_opt=actor_opt,
            critic_opt=critic_opt,
            value_opt=value_opt,
        )
        return learner, {**actor_metrics, **critic_metrics, **value_metrics}

    def update(key: Array, task: Task, state: State, hypers: Hypers, clock: Clock) -> tuple[State, Metrics]:
        env = task.env
        layout = replay.Layout.of(env)
        networks = networks_of(config, env)
        action_dim = networks.low.shape[0]
        collect_key, batch_key, noise_key = jax.random.split(key, 3)
        warming_up = clock.update < warmup_updates
        kl_weight: Array | float = annealed(hypers.kl_coef, clock.progress) if config.anneal_kl else hypers.kl_coef

        # Collect one step of every environment.
        def policy(key: Array, obs: Array) -> tuple[Array, None]:
            def uniform() -> Array:
                return jax.random.uniform(key, (config.num_envs, action_dim), minval=networks.low, maxval=networks.high)

            def current() -> Array:
                noise: Array | float = 0.0
                if config.sample_actions:
                    noise = jax.random.normal(key, (config.num_envs, action_dim))
                mean, log_std = distribution(networks, state.learner.actor, obs)
                return distributions.tanh_squash(mean + jnp.exp(log_std) * noise, networks.low, networks.high)[0]

            return jax.lax.cond(warming_up, uniform, current), None

        envs, transitions, _ = rollout.collect(collect_key, env, state.envs, policy, 1)
        transitions = jax.tree.map(lambda x: x[0], transitions)
        buffer = replay.add(state.buffer, layout, transitions, envs.obs, clock.update)

        # Draw the batches of all gradient steps in one gather, outside the conditional: it never carries the buffer.
        batches = replay.sample(batch_key, buffer, layout, clock.update + 1, (config.gradient_steps, config.batch_size))

        def learn(learner: Learner) -> tuple[Learner, Metrics]:
            def body(learner: Learner, inputs: tuple[Array, Transition]) -> tuple[Learner, Metrics]:
                key, batch = inputs
                noise = jax.random.normal(key, (config.batch_size, action_dim))
                return gradient_step(networks, learner, batch, noise, kl_weight, hypers)

            keys = jax.random.split(noise_key, config.gradient_steps)
            learner, metrics = jax.lax.scan(body, learner, (keys, batches))
            # After learning, so that this update still learned beside the policy of the steps before it.
            old_actor = jax.lax.cond(is_due(clock.update, config), lambda: learner.actor, lambda: learner.old_actor)
            return learner._replace(old_actor=old_actor), jax.tree.map(jnp.mean, metrics)

        def wait(learner: Learner) -> tuple[Learner, Metrics]:
            names = ("policy_loss", "log_ratio", "critic_loss", "q", "value_loss")
            return learner, {name: jnp.zeros(()) for name in names}

        learner, metrics = jax.lax.cond(warming_up, wait, learn, state.learner)
        return State(learner, buffer, envs), metrics

    def act(key: Array, task: Task, state: State, obs: Array) -> Array:
        networks = networks_of(config, task.env)
        mean, _ = distribution(networks, state.learner.actor, obs)
        return distributions.tanh_squash(mean, networks.low, networks.high)[0]

    def value(key: Array, task: Task, state: State, obs: Array) -> Array:
        return values(networks_of(config, task.env), state.learner.value, obs)

    return Algorithm(init, update, act, config.num_envs, value)


def fit(config: Config, total_steps: int) -> Config:
    """The same training with no more buffer than the budget fills: results are identical, memory is not."""
    return replay.fitted(config, total_steps, config.num_envs)


TRIAL = Trial(
    Config(
        num_envs=4,
        gradient_steps=4,
        batch_size=32,
        buffer_size=2048,
        warmup_steps=64,
        hidden_sizes=(32, 32),
        sgd_steps=16,
    ),
    Hypers(
        actor_learning_rate=3e-3,
        critic_learning_rate=3e-3,
        discount=0.5,
        tau=0.05,
        kl_coef=0.1,
        entropy_coef=1e-3,
    ),
    updates=400,
)
