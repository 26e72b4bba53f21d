"""SAC: soft actor-critic with twin critics and a learned temperature (Haarnoja et al. 2018, arXiv 1812.05905).

Networks and initialisation (PyTorch's default), the tanh-squashed Gaussian, the minimum of two target critics, the
target entropy -|A| and a temperature that starts at 1 are those of both CleanRL and Stable-Baselines3. Where these two
differ, the default is Stable-Baselines3's form, and `cleanrl` takes CleanRL's:

- The log standard deviation is clipped to [-20, 2]; CleanRL's is tanh of what the network says, mapped to [-5, 2].
- The temperature learns from the actions that the actor has just learned from; CleanRL's draws others, from the actor
  after its step.
- The temperature's loss is linear in log alpha; CleanRL's is linear in alpha.
- CleanRL adds 1e-6 to the slope of the squashing. Stable-Baselines3 does so, too: see the deviations.

Deviations:
- Truncated transitions bootstrap with the value of the observation that they led to, as SB3 does with its time-limit
  handling; CleanRL's stores the same.
- The log-determinant of tanh is exact instead of log(1 - tanh^2 + 1e-6), but with `cleanrl`.
- Every update takes one step of `num_envs` environments, then `gradient_steps` gradient steps. The ratio is free: 1 and
  1 are the published protocol.
- Warm-up: `warmup_steps` steps with uniform actions and no learning (CleanRL 5000, SB3 100, softlearning 10000).
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
from rlsuite.core import Algorithm, Clock, Metrics, Task, Transition, Trial, added
from rlsuite.errors import check_positive
from rlsuite.pieces import distributions, replay, rollout
from rlsuite.pieces.networks import MLP
from rlsuite.pieces.value_bias import Critique, reporter

Array = jax.Array
Params = Any

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
CLEANRL_LOG_STD_MIN = -5.0
LOG_EXTRA_SLOPE = math.log(1e-6)
"""of what CleanRL adds to the slope of the squashing"""


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
    warmup_steps: int = 5_000
    """environment steps with uniform actions before learning starts"""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """hidden layers of the actor and of each critic"""
    policy_delay: int = 1
    """actor and temperature learn at every so-many-th gradient step, then as often as they missed (CleanRL: 2)"""
    learn_alpha: bool = True
    """learn the temperature; else it stays at its initial value"""
    cleanrl: bool = added(False)
    """CleanRL's form of log standard deviation, its density and the temperature's step; else Stable-Baselines3's"""
    value_bias_episodes: int = 0
    """episodes after which each evaluation reports the critic's bias (`pieces/value_bias.py`); 0 for no such metric"""


class Hypers(NamedTuple):
    """What may differ between the runs of one program."""

    actor_learning_rate: float = 3e-4
    critic_learning_rate: float = 3e-4
    alpha_learning_rate: float = 3e-4
    discount: float = 0.99
    tau: float = 0.005
    """share of the online critic that moves into its target at each gradient step"""
    initial_alpha: float = 1.0
    target_entropy_scale: float = 1.0
    """target entropy = -scale * action_dim, in nats"""


class Learner(NamedTuple):
    """What gradient steps change."""

    actor: Params
    critics: Params
    """both critics, stacked on a leading axis of 2"""
    target_critics: Params
    log_alpha: Array
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    alpha_opt: optax.OptState


class State(NamedTuple):
    """All that one run carries from update to update."""

    learner: Learner
    buffer: replay.Replay
    envs: rollout.EnvCarry


class Networks(NamedTuple):
    """The two architectures, the action box they serve, and the form of the policy."""

    actor: nn.Module
    critic: nn.Module
    low: Array
    """`[action_dim]`"""
    high: Array
    """`[action_dim]`"""
    cleanrl: bool


def networks_of(config: Config, env: Env) -> Networks:
    """The architectures for this environment. SAC is for `Box` actions; the registry says so to the caller."""
    space = env.action_space
    assert isinstance(space, Box)
    actor = MLP((*config.hidden_sizes, 2 * space.dim))
    critic = MLP((*config.hidden_sizes, 1))
    return Networks(actor, critic, jnp.asarray(space.low), jnp.asarray(space.high), config.cleanrl)


def distribution(networks: Networks, actor: Params, obs: Array) -> tuple[Array, Array]:
    """Mean and log standard deviation before squashing: `[..., obs_dim]` -> two `[..., action_dim]`."""
    mean, log_std = jnp.split(networks.actor.apply(actor, obs), 2, axis=-1)
    if networks.cleanrl:
        return mean, CLEANRL_LOG_STD_MIN + 0.5 * (LOG_STD_MAX - CLEANRL_LOG_STD_MIN) * (jnp.tanh(log_std) + 1.0)
    return mean, jnp.clip(log_std, LOG_STD_MIN, LOG_STD_MAX)


def draw(networks: Networks, actor: Params, obs: Array, noise: Array) -> tuple[Array, Array]:
    """A reparameterised action `[..., action_dim]` from standard normal noise, and its log-probability `[...]`."""
    mean, log_std = distribution(networks, actor, obs)
    u = mean + jnp.exp(log_std) * noise
    action, log_det = distributions.tanh_squash(u, networks.low, networks.high)
    if networks.cleanrl:
        log_slope = distributions.log_tanh_slope(u) + jnp.log(0.5 * (networks.high - networks.low))
        log_det = jnp.sum(jnp.logaddexp(log_slope, LOG_EXTRA_SLOPE), axis=-1)
    # From the noise itself: (u - mean) / std loses its digits in float32 once std is small beside the mean.
    of_noise = distributions.gaussian_log_prob(noise, jnp.zeros_like(mean), jnp.zeros_like(mean))
    return action, of_noise - jnp.sum(log_std, axis=-1) - log_det


def q_values(networks: Networks, critics: Params, obs: Array, action: Array) -> Array:
    """Both critics: `[2, ...]`."""
    inputs = jnp.concatenate([obs, action], axis=-1)
    return jax.vmap(lambda params: networks.critic.apply(params, inputs)[..., 0])(critics)


def critic_loss(
    critics: Params,
    networks: Networks,
    learner: Learner,
    batch: Transition,
    noise: Array,
    discount: Array | float,
) -> tuple[Array, Metrics]:
    """Sum over the two critics of the mean squared error to the soft Bellman target (eq. 5): (loss `[]`, metrics).

    `noise` `[batch, action_dim]` draws the next action from the online policy.
    """
    next_action, next_log_prob = draw(networks, learner.actor, batch.next_obs, noise)
    next_q = jnp.min(q_values(networks, learner.target_critics, batch.next_obs, next_action), axis=0)
    next_value = next_q - jnp.exp(learner.log_alpha) * next_log_prob
    target = jax.lax.stop_gradient(batch.reward + discount * jnp.where(batch.terminated, 0.0, next_value))
    q = q_values(networks, critics, batch.obs, batch.action)
    loss = jnp.sum(jnp.mean((q - target) ** 2, axis=1))
    return loss, {"critic_loss": loss, "q": jnp.mean(q)}


def actor_loss(
    actor: Params, networks: Networks, critics: Params, log_alpha: Array, obs: Array, noise: Array
) -> tuple[Array, Array]:
    """mean(alpha log pi - min Q) (eq. 7): (loss `[]`, log-probabilities `[batch]`)."""
    action, log_prob = draw(networks, actor, obs, noise)
    q = jnp.min(q_values(networks, critics, obs, action), axis=0)
    return jnp.mean(jnp.exp(log_alpha) * log_prob - q), log_prob


def alpha_loss(log_alpha: Array, log_prob: Array, target_entropy: Array | float, cleanrl: bool = False) -> Array:
    """-mean(log alpha (log pi + target entropy)), with alpha itself in CleanRL's form: `[]`, `[batch]` -> `[]`."""
    weight = jnp.exp(log_alpha) if cleanrl else log_alpha
    return -jnp.mean(weight * jax.lax.stop_gradient(log_prob + target_entropy))


def make(config: Config) -> Algorithm:
    """SAC with this config.

    Raises:
        UserError: the buffer does not hold whole steps of all environments, or a size is not positive.
    """
    check_positive(
        num_envs=config.num_envs,
        gradient_steps=config.gradient_steps,
        batch_size=config.batch_size,
        buffer_size=config.buffer_size,
        warmup_steps=config.warmup_steps,
        policy_delay=config.policy_delay,
    )
    replay.check_capacity(config.buffer_size, config.num_envs)
    warmup_updates = -(-config.warmup_steps // config.num_envs)

    def init(key: Array, task: Task, hypers: Hypers) -> State:
        actor_key, critic_key, envs_key = jax.random.split(key, 3)
        networks = networks_of(config, task.env)
        obs, action = jnp.zeros(task.env.obs_dim), jnp.zeros_like(networks.low)
        actor = networks.actor.init(actor_key, obs)
        critic_inputs = jnp.concatenate([obs, action])
        critics = jax.vmap(lambda key: networks.critic.init(key, critic_inputs))(jax.random.split(critic_key))
        log_alpha = jnp.log(jnp.asarray(hypers.initial_alpha, jnp.float32))
        learner = Learner(
            actor=actor,
            critics=critics,
            target_critics=critics,
            log_alpha=log_alpha,
            actor_opt=optax.adam(hypers.actor_learning_rate).init(actor),
            critic_opt=optax.adam(hypers.critic_learning_rate).init(critics),
            alpha_opt=optax.adam(hypers.alpha_learning_rate).init(log_alpha),
        )
        buffer = replay.init(replay.Layout.of(task.env), config.num_envs, config.buffer_size)
        return State(learner, buffer, rollout.start(envs_key, task.env, config.num_envs))

    def learn_critics(
        networks: Networks, learner: Learner, batch: Transition, noise: Array, hypers: Hypers
    ) -> tuple[Learner, Metrics]:
        grads, metrics = jax.grad(critic_loss, has_aux=True)(
            learner.critics, networks, learner, batch, noise, hypers.discount
        )
        step, critic_opt = optax.adam(hypers.critic_learning_rate).update(grads, learner.critic_opt)
        return learner._replace(critics=optax.apply_updates(learner.critics, step), critic_opt=critic_opt), metrics

    def learn_actor(
        networks: Networks, learner: Learner, obs: Array, noise: Array, alpha_noise: Array, hypers: Hypers
    ) -> Learner:
        grads, log_prob = jax.grad(actor_loss, has_aux=True)(
            learner.actor, networks, learner.critics, learner.log_alpha, obs, noise
        )
        step, actor_opt = optax.adam(hypers.actor_learning_rate).update(grads, learner.actor_opt)
        learner = learner._replace(actor=optax.apply_updates(learner.actor, step), actor_opt=actor_opt)
        if not config.learn_alpha:
            return learner
        if config.cleanrl:
            log_prob = draw(networks, learner.actor, obs, alpha_noise)[1]
        target_entropy = -hypers.target_entropy_scale * noise.shape[-1]
        grad = jax.grad(alpha_loss)(learner.log_alpha, log_prob, target_entropy, config.cleanrl)
        step, alpha_opt = optax.adam(hypers.alpha_learning_rate).update(grad, learner.alpha_opt)
        return learner._replace(log_alpha=optax.apply_updates(learner.log_alpha, step), alpha_opt=alpha_opt)

    def update(key: Array, task: Task, state: State, hypers: Hypers, clock: Clock) -> tuple[State, Metrics]:
        env = task.env
        layout = replay.Layout.of(env)
        networks = networks_of(config, env)
        action_dim = networks.low.shape[0]
        collect_key, batch_key, noise_key = jax.random.split(key, 3)
        warming_up = clock.update < warmup_updates

        # Collect one step of every environment.
        def policy(key: Array, obs: Array) -> tuple[Array, None]:
            def uniform() -> Array:
                return jax.random.uniform(key, (config.num_envs, action_dim), minval=networks.low, maxval=networks.high)

            def current() -> Array:
                return draw(networks, state.learner.actor, obs, jax.random.normal(key, (config.num_envs, action_dim)))[
                    0
                ]

            return jax.lax.cond(warming_up, uniform, current), None

        envs, transitions, _ = rollout.collect(collect_key, env, state.envs, policy, 1)
        transitions = jax.tree.map(lambda x: x[0], transitions)
        buffer = replay.add(state.buffer, layout, transitions, envs.obs, clock.update)

        # Draw the batches of all gradient steps in one gather, outside the conditional: it never carries the buffer.
        batches = replay.sample(batch_key, buffer, layout, clock.update + 1, (config.gradient_steps, config.batch_size))

        def learn(learner: Learner) -> tuple[Learner, Metrics]:
            def gradient_step(learner: Learner, inputs: tuple[Array, Array, Transition]) -> tuple[Learner, Metrics]:
                i, key, batch = inputs
                critic_key, actor_key = jax.random.split(key)
                noise = jax.random.normal(critic_key, (config.batch_size, action_dim))
                learner, metrics = learn_critics(networks, learner, batch, noise, hypers)

                def catch_up(learner: Learner) -> Learner:
                    # One draw for each step of the actor, and in CleanRL's form one more for the temperature's.
                    draws = 2 * config.policy_delay if config.cleanrl else config.policy_delay
                    noises = jax.random.normal(actor_key, (draws, config.batch_size, action_dim))
                    of_alpha = noises[-config.policy_delay :]
                    for noise, alpha_noise in zip(noises[: config.policy_delay], of_alpha, strict=True):
                        learner = learn_actor(networks, learner, batch.obs, noise, alpha_noise, hypers)
                    return learner

                due = (clock.update * config.gradient_steps + i) % config.policy_delay == 0
                learner = jax.lax.cond(due, catch_up, lambda learner: learner, learner)
                targets = optax.incremental_update(learner.critics, learner.target_critics, hypers.tau)
                return learner._replace(target_critics=targets), metrics

            keys = jax.random.split(noise_key, config.gradient_steps)
            learner, metrics = jax.lax.scan(gradient_step, learner, (jnp.arange(config.gradient_steps), keys, batches))
            return learner, jax.tree.map(jnp.mean, metrics)

        def wait(learner: Learner) -> tuple[Learner, Metrics]:
            return learner, {"critic_loss": jnp.zeros(()), "q": jnp.zeros(())}

        learner, metrics = jax.lax.cond(warming_up, wait, learn, state.learner)
        metrics["alpha"] = jnp.exp(learner.log_alpha)
        return State(learner, buffer, envs), metrics

    def act(key: Array, task: Task, state: State, obs: Array) -> Array:
        networks = networks_of(config, task.env)
        mean, _ = distribution(networks, state.learner.actor, obs)
        return distributions.tanh_squash(mean, networks.low, networks.high)[0]

    def explore(key: Array, task: Task, state: State, obs: Array) -> Array:
        networks = networks_of(config, task.env)
        return draw(networks, state.learner.actor, obs, jax.random.normal(key, networks.low.shape))[0]

    def critique(key: Array, task: Task, state: State, obs: Array) -> Critique:
        networks = networks_of(config, task.env)
        action, log_prob = draw(networks, state.learner.actor, obs, jax.random.normal(key, networks.low.shape))
        bonus = -jnp.exp(state.learner.log_alpha) * log_prob
        q = jnp.min(q_values(networks, state.learner.critics, obs, action), axis=0)
        return Critique(action, bonus, q + bonus)

    def value(key: Array, task: Task, state: State, obs: Array) -> Array:
        return critique(key, task, state, obs).value

    report = reporter(config.value_bias_episodes, critique)
    return Algorithm(init, update, act, config.num_envs, value, report, explore)


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
        learn_alpha=False,
    ),
    Hypers(actor_learning_rate=3e-3, critic_learning_rate=3e-3, discount=0.5, tau=0.05, initial_alpha=1e-3),
    updates=400,
)
