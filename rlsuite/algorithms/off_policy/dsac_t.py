"""DSAC-T, also DSACv2: DSAC with three refinements (Duan et al. 2023, arXiv 2310.05858).

Everything of `dsac.py` that is not said here holds: networks, target policy, delays, and the order of a gradient step.
What differs is the critic's loss:

    y   = r + discount (1 - terminated) (min(Q1', Q2') - alpha log pi'(a'|s'))        expected value substitution
    y_z = the same with a sample of the distribution whose mean is that minimum       twin value distributions
    b_i <- (1 - tau_b) b_i + tau_b mean(sigma_i)                                      variance-based adjustment:
    C_i = Q_i + clip(y_z - Q_i, -3 b_i, 3 b_i)                                          of the bound
    dL/dQ_i     = -(b_i^2 + 0.1) (y - Q_i) / (sigma_i^2 + 0.1)                          and of the gradient's scale
    dL/dsigma_i = -(b_i^2 + 0.1) ((Q_i - C_i)^2 - sigma_i^2) / (sigma_i^3 + 0.1)

b moves with the minibatch before it is used, and the first minibatch sets it. The policy climbs min(Q1, Q2).

This is the loss of the authors' first public code and of their toolbox GOPS. Since July 2025 their repository DSAC-v2
has another one, which `huber=True` takes. With H the Huber loss of delta = 50, which is half the square near 0,

    dL/dQ_i     = -rho_i clip(y - Q_i, -50, 50),            rho_i = clip(b_i^2 / (sigma_i^2 + 0.1), 0.1, 10)
    dL/dsigma_i = -rho_i (H(Q_i - C_i) - sigma_i^2) / (sigma_i + 0.1)

so that sigma settles at 1 / sqrt(2) of where the published loss takes it.

Deviations from the paper:
- As in the code, b is one running mean of sigma: the bound is 3 b and the gradient's scale b^2 + 0.1. The paper keeps a
  running mean of sigma^2 for the latter (from memory of the paper, not checked).

Deviations from the code:
- One environment step for one gradient step, as in the usual comparisons at a million steps. The authors take 20, which
  is `num_steps=20`: their 1.5 million gradient steps are then 30 million environment steps, which no table at a million
  steps compares with. With `num_envs=20` instead the ratio is the same, but the 20 steps come from as many episodes.
- Those that `dsac.py` lists: an exact log-determinant, a free initial alpha, rewards scaled by the environment.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlsuite.algorithms.off_policy import dsac
from rlsuite.algorithms.off_policy.dsac import BIAS, Networks, networks_of
from rlsuite.core import Algorithm, Clock, Metrics, Task, Transition, Trial
from rlsuite.errors import check_positive
from rlsuite.pieces import distributions, replay, rollout
from rlsuite.pieces.value_bias import Critique, reporter

Array = jax.Array
Params = Any

HUBER_DELTA = 50.0
RATIO_MIN, RATIO_MAX = 0.1, 10.0
"""of the gradient's scale, with `huber`"""
UNSET = -1.0
"""what b is before the first minibatch; a mean of standard deviations is never negative"""


@dataclasses.dataclass(frozen=True)
class Config:
    """What shapes the program."""

    num_envs: int = 1
    """environments stepped side by side in each run"""
    num_steps: int = 1
    """steps of each environment in one update (the paper's protocol: 20)"""
    gradient_steps: int = 1
    """gradient steps in one update"""
    batch_size: int = 256
    """transitions in one gradient step"""
    buffer_size: int = 1_000_000
    """transitions kept; a budget that is smaller takes less memory"""
    warmup_steps: int = 10_000
    """environment steps with the initial policy before learning starts"""
    hidden_sizes: tuple[int, ...] = (256, 256, 256)
    """hidden layers of the actor and of each critic"""
    policy_delay: int = 2
    """actor, temperature and all targets move at every so-many-th gradient step"""
    learn_alpha: bool = True
    """learn the temperature; else it stays at its initial value"""
    huber: bool = False
    """the critics' loss of the authors' code since July 2025 instead of the published one"""
    value_bias_episodes: int = 0
    """episodes after which each evaluation reports the critic's bias (`pieces/value_bias.py`); 0 for no such metric"""

    @property
    def steps_per_update(self) -> int:
        """Environment steps in one update."""
        return self.num_envs * self.num_steps


class Hypers(NamedTuple):
    """What may differ between the runs of one program."""

    actor_learning_rate: float = 1e-4
    critic_learning_rate: float = 1e-4
    alpha_learning_rate: float = 3e-4
    discount: float = 0.99
    tau: float = 0.005
    """share of the online networks that moves into their targets, whenever these move"""
    tau_b: float = 0.005
    """share of the minibatch's mean sigma that moves into b at each gradient step"""
    bound_scale: float = 3.0
    """how far from Q the target of sigma may lie, in units of b"""
    initial_alpha: float = math.e
    target_entropy_scale: float = 1.0
    """target entropy = -scale * action_dim, in nats"""


class Learner(NamedTuple):
    """What gradient steps change."""

    actor: Params
    target_actor: Params
    critics: Params
    """both critics, stacked on a leading axis of 2"""
    target_critics: Params
    b: Array
    """`[2]`: the running mean of each critic's standard deviation"""
    log_alpha: Array
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    alpha_opt: optax.OptState


class State(NamedTuple):
    """All that one run carries from update to update."""

    learner: Learner
    buffer: replay.Replay
    envs: rollout.EnvCarry


def return_distributions(networks: Networks, critics: Params, obs: Array, action: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of the soft return by both critics: two `[2, ...]`."""
    return jax.vmap(lambda critic: dsac.return_distribution(networks, critic, obs, action))(critics)


def running_std(b: Array, std: Array, tau_b: Array | float) -> Array:
    """b after a minibatch with standard deviations `std`: `[2]`, `[2, batch]` -> `[2]`, no gradient."""
    now = jax.lax.stop_gradient(jnp.mean(std, axis=1))
    return jnp.where(b < 0.0, now, (1.0 - tau_b) * b + tau_b * now)


def published_loss(mean: Array, std: Array, target: Array, clipped_target: Array, b: Array) -> Array:
    """A loss of each sample with the gradients that the module states: `b` `[2]`, the others and result `[2, batch]`.

    `target` may be `[batch]`. The loss' value has no meaning.
    """
    return (b[:, None] ** 2 + BIAS) * dsac.gaussian_loss(mean, std, target, clipped_target)


def huber_loss(mean: Array, std: Array, target: Array, clipped_target: Array, b: Array) -> Array:
    """The loss of 2025, shapes as in `published_loss`."""
    frozen_mean, frozen_std = jax.lax.stop_gradient((mean, std))
    ratio = jnp.clip(b[:, None] ** 2 / (frozen_std**2 + BIAS), RATIO_MIN, RATIO_MAX)
    spread = optax.huber_loss(frozen_mean, clipped_target, delta=HUBER_DELTA)
    of_std = (frozen_std**2 - spread) / (frozen_std + BIAS)
    return ratio * (optax.huber_loss(mean, target, delta=HUBER_DELTA) + std * of_std)


def critic_loss(
    critics: Params,
    networks: Networks,
    learner: Learner,
    batch: Transition,
    noise: Array,
    z: Array,
    hypers: Hypers,
    huber: bool,
) -> tuple[Array, tuple[Array, Metrics]]:
    """Sum over the critics of their mean loss: (loss `[]`, (new b `[2]`, metrics)).

    `noise` `[batch, action_dim]` draws the next action from the target policy, `z` `[2, batch]` its return from both
    target distributions.
    """
    next_action, next_log_prob = dsac.draw(networks, learner.target_actor, batch.next_obs, noise)
    next_mean, next_std = return_distributions(networks, learner.target_critics, batch.next_obs, next_action)
    next_return = dsac.sample_return(next_mean, next_std, z)
    of_smaller = jnp.where(next_mean[0] < next_mean[1], next_return[0], next_return[1])
    alpha = jnp.exp(learner.log_alpha)
    target = dsac.soft_target(batch, jnp.min(next_mean, axis=0), next_log_prob, alpha, hypers.discount)
    target_sample = dsac.soft_target(batch, of_smaller, next_log_prob, alpha, hypers.discount)

    mean, std = return_distributions(networks, critics, batch.obs, batch.action)
    b = running_std(learner.b, std, hypers.tau_b)
    clipped_target = dsac.clip_target(mean, target_sample, hypers.bound_scale * b[:, None])
    losses = (huber_loss if huber else published_loss)(mean, std, target, clipped_target, b)
    loss = jnp.sum(jnp.mean(losses, axis=1))
    return loss, (b, {"critic_loss": loss, "q": jnp.mean(mean), "q_std": jnp.mean(std), "b": jnp.mean(b)})


def actor_loss(
    actor: Params, networks: Networks, critics: Params, log_alpha: Array, obs: Array, noise: Array
) -> tuple[Array, Array]:
    """mean(alpha log pi - min Q): (loss `[]`, log-probabilities `[batch]`)."""
    action, log_prob = dsac.draw(networks, actor, obs, noise)
    mean, _ = return_distributions(networks, critics, obs, action)
    return jnp.mean(jnp.exp(log_alpha) * log_prob - jnp.min(mean, axis=0)), log_prob


def make(config: Config) -> Algorithm:
    """DSAC-T with this config.

    Raises:
        UserError: the buffer does not hold whole steps of all environments, or a size is not positive.
    """
    check_positive(
        num_envs=config.num_envs,
        num_steps=config.num_steps,
        gradient_steps=config.gradient_steps,
        batch_size=config.batch_size,
        buffer_size=config.buffer_size,
        warmup_steps=config.warmup_steps,
        policy_delay=config.policy_delay,
    )
    replay.check_capacity(config.buffer_size, config.num_envs)
    warmup_updates = -(-config.warmup_steps // config.steps_per_update)

    def init(key: Array, task: Task, hypers: Hypers) -> State:
        actor_key, critic_key, envs_key = jax.random.split(key, 3)
        networks = networks_of(config.hidden_sizes, task.env)
        obs, action = jnp.zeros(task.env.obs_dim), jnp.zeros_like(networks.low)
        actor = networks.actor.init(actor_key, obs)
        critic_inputs = jnp.concatenate([obs, action])
        critics = jax.vmap(lambda key: networks.critic.init(key, critic_inputs))(jax.random.split(critic_key))
        log_alpha = jnp.log(jnp.asarray(hypers.initial_alpha, jnp.float32))
        learner = Learner(
            actor=actor,
            target_actor=actor,
            critics=critics,
            target_critics=critics,
            b=jnp.full(2, UNSET, jnp.float32),
            log_alpha=log_alpha,
            actor_opt=optax.adam(hypers.actor_learning_rate).init(actor),
            critic_opt=optax.adam(hypers.critic_learning_rate).init(critics),
            alpha_opt=optax.adam(hypers.alpha_learning_rate).init(log_alpha),
        )
        buffer = replay.init(replay.Layout.of(task.env), config.num_envs, config.buffer_size)
        return State(learner, buffer, rollout.start(envs_key, task.env, config.num_envs))

    def learn_critics(
        networks: Networks, learner: Learner, batch: Transition, noise: Array, z: Array, hypers: Hypers
    ) -> tuple[Learner, Metrics]:
        grads, (b, metrics) = jax.grad(critic_loss, has_aux=True)(
            learner.critics, networks, learner, batch, noise, z, hypers, config.huber
        )
        step, critic_opt = optax.adam(hypers.critic_learning_rate).update(grads, learner.critic_opt)
        critics = optax.apply_updates(learner.critics, step)
        return learner._replace(critics=critics, critic_opt=critic_opt, b=b), metrics

    def learn_rest(
        networks: Networks, before: Learner, learner: Learner, obs: Array, noise: Array, hypers: Hypers
    ) -> Learner:
        """The delayed half of a gradient step on `learner`, with gradients at the parameters `before` that step."""
        grads, log_prob = jax.grad(actor_loss, has_aux=True)(
            before.actor, networks, before.critics, before.log_alpha, obs, noise
        )
        step, actor_opt = optax.adam(hypers.actor_learning_rate).update(grads, before.actor_opt)
        learner = learner._replace(actor=optax.apply_updates(before.actor, step), actor_opt=actor_opt)
        if config.learn_alpha:
            target_entropy = -hypers.target_entropy_scale * noise.shape[-1]
            grad = jax.grad(dsac.alpha_loss)(before.log_alpha, log_prob, target_entropy)
            step, alpha_opt = optax.adam(hypers.alpha_learning_rate).update(grad, before.alpha_opt)
            learner = learner._replace(log_alpha=optax.apply_updates(before.log_alpha, step), alpha_opt=alpha_opt)
        return learner._replace(
            target_critics=optax.incremental_update(learner.critics, learner.target_critics, hypers.tau),
            target_actor=optax.incremental_update(learner.actor, learner.target_actor, hypers.tau),
        )

    def update(key: Array, task: Task, state: State, hypers: Hypers, clock: Clock) -> tuple[State, Metrics]:
        env = task.env
        layout = replay.Layout.of(env)
        networks = networks_of(config.hidden_sizes, env)
        action_dim = networks.low.shape[0]
        collect_key, batch_key, learn_key = jax.random.split(key, 3)

        # Collect. The warm-up needs no policy of its own: the current one is still the initial one.
        def policy(key: Array, obs: Array) -> tuple[Array, None]:
            noise = jax.random.normal(key, (config.num_envs, action_dim))
            return dsac.draw(networks, state.learner.actor, obs, noise)[0], None

        envs, transitions, _ = rollout.collect(collect_key, env, state.envs, policy, config.num_steps)
        buffer = dsac.store(state.buffer, layout, transitions, envs.obs, clock.update * config.num_steps)

        # Draw the batches of all gradient steps in one gather, outside the conditional: it never carries the buffer.
        steps = (clock.update + 1) * config.num_steps
        batches = replay.sample(batch_key, buffer, layout, steps, (config.gradient_steps, config.batch_size))

        def learn(learner: Learner) -> tuple[Learner, Metrics]:
            def gradient_step(before: Learner, inputs: tuple[Array, Array, Transition]) -> tuple[Learner, Metrics]:
                i, key, batch = inputs
                noise_key, z_key, actor_key = jax.random.split(key, 3)
                noise = jax.random.normal(noise_key, (config.batch_size, action_dim))
                z = jax.random.normal(z_key, (2, config.batch_size))
                learner, metrics = learn_critics(networks, before, batch, noise, z, hypers)

                def move(learner: Learner) -> Learner:
                    noise = jax.random.normal(actor_key, (config.batch_size, action_dim))
                    return learn_rest(networks, before, learner, batch.obs, noise, hypers)

                due = ((clock.update - warmup_updates) * config.gradient_steps + i) % config.policy_delay == 0
                return jax.lax.cond(due, move, lambda learner: learner, learner), metrics

            keys = jax.random.split(learn_key, config.gradient_steps)
            order = jnp.arange(config.gradient_steps, dtype=jnp.int32)
            learner, metrics = jax.lax.scan(gradient_step, learner, (order, keys, batches))
            return learner, jax.tree.map(jnp.mean, metrics)

        def wait(learner: Learner) -> tuple[Learner, Metrics]:
            return learner, {name: jnp.zeros(()) for name in ("critic_loss", "q", "q_std", "b")}

        learner, metrics = jax.lax.cond(clock.update < warmup_updates, wait, learn, state.learner)
        metrics["alpha"] = jnp.exp(learner.log_alpha)
        return State(learner, buffer, envs), metrics

    def act(key: Array, task: Task, state: State, obs: Array) -> Array:
        networks = networks_of(config.hidden_sizes, task.env)
        mean, _ = dsac.distribution(networks, state.learner.actor, obs)
        return distributions.tanh_squash(mean, networks.low, networks.high)[0]

    def critique(key: Array, task: Task, state: State, obs: Array) -> Critique:
        networks = networks_of(config.hidden_sizes, task.env)
        action, log_prob = dsac.draw(networks, state.learner.actor, obs, jax.random.normal(key, networks.low.shape))
        bonus = -jnp.exp(state.learner.log_alpha) * log_prob
        mean, _ = return_distributions(networks, state.learner.critics, obs, action)
        return Critique(action, bonus, jnp.min(mean, axis=0) + bonus)

    def value(key: Array, task: Task, state: State, obs: Array) -> Array:
        return critique(key, task, state, obs).value

    return Algorithm(init, update, act, config.steps_per_update, value, reporter(config.value_bias_episodes, critique))


def fit(config: Config, total_steps: int) -> Config:
    """The same training with no more buffer than the budget fills: results are identical, memory is not."""
    return replay.fitted(config, total_steps, config.steps_per_update)


TRIAL = Trial(
    Config(
        num_envs=4,
        num_steps=2,
        gradient_steps=8,
        batch_size=32,
        buffer_size=2048,
        warmup_steps=64,
        hidden_sizes=(32, 32),
        learn_alpha=False,
    ),
    Hypers(
        actor_learning_rate=3e-3,
        critic_learning_rate=3e-3,
        discount=0.5,
        tau=0.05,
        tau_b=0.05,
        initial_alpha=1e-3,
    ),
    updates=200,
)
