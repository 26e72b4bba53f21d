"""DSAC: distributional soft actor-critic with one Gaussian value distribution (Duan et al. 2021, arXiv 2001.02811).

The critic gives mean Q and standard deviation sigma of the soft return. A sample of the target's distribution is the
target of both; for sigma it is clipped to within `td_bound` of Q:

    y = r + discount (1 - terminated) (Q' + clip(z, -3, 3) sigma' - alpha log pi'(a'|s')),   z ~ N(0, 1)
    C = Q + clip(y - Q, -td_bound, td_bound)
    dL/dQ = -(y - Q) / (sigma^2 + 0.1),   dL/dsigma = -((Q - C)^2 - sigma^2) / (sigma^3 + 0.1)

a' is drawn from a target policy. The policy, the temperature and all targets move at every second gradient step. All
gradients of a gradient step are taken at the same parameters: that of the policy sees the critic before its own step.

This is the form that the authors keep beside its successor (`dsac_v1.py` of their repository DSAC-v2), with that
repository's networks (three layers of 256, exact GELU, PyTorch's initialisation) and settings. It departs from the
paper and from its first code: no layers shared by mean and sigma, sigma by softplus instead of a bounded log sigma,
0.1 in the denominators, constant learning rates, one replay buffer and one learner instead of four asynchronous ones.

Deviations from `dsac_v1.py`:
- One environment step for one gradient step, as in the usual comparisons at a million steps; the authors take 20.
  Theirs is `num_steps=20`, and their 1.5 million gradient steps are then 30 million environment steps. With
  `num_envs=20` instead the ratio is the same, but the 20 steps come from as many episodes.
- The log-determinant of tanh is exact instead of log(1 - tanh^2 + 1e-6).
- Only the clipped loss; the code's `bound=False`, a plain Gaussian likelihood, is left out.
- `initial_alpha` is a hyperparameter also where alpha is learned (the code starts at e then, and keeps 0.2 otherwise).
- Rewards are scaled by the environment (`+reward_scale=X` in its id), once; some versions of the code scale twice.
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
from rlsuite.core import Algorithm, Clock, Metrics, Task, Transition, Trial
from rlsuite.errors import check_positive
from rlsuite.pieces import distributions, replay, rollout
from rlsuite.pieces.networks import MLP
from rlsuite.pieces.value_bias import Critique, reporter

Array = jax.Array
Params = Any

LOG_STD_MIN, LOG_STD_MAX = -20.0, 0.5
"""of the policy"""
Z_MAX = 3.0
"""how many standard deviations from its mean a sampled return may lie"""
BIAS = 0.1
"""added to the denominators of the critic's gradient, which sigma would otherwise let explode"""


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
    """hidden layers of the actor and of the critic"""
    policy_delay: int = 2
    """actor, temperature and all targets move at every so-many-th gradient step"""
    learn_alpha: bool = True
    """learn the temperature; else it stays at its initial value"""
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
    td_bound: float = 20.0
    """how far from Q the target of sigma may lie, in units of reward"""
    initial_alpha: float = math.e
    target_entropy_scale: float = 1.0
    """target entropy = -scale * action_dim, in nats"""


class Learner(NamedTuple):
    """What gradient steps change."""

    actor: Params
    target_actor: Params
    critic: Params
    target_critic: Params
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
    """The two architectures, and the action box they serve."""

    actor: nn.Module
    critic: nn.Module
    low: Array
    """`[action_dim]`"""
    high: Array
    """`[action_dim]`"""


def gelu(x: Array) -> Array:
    """x times the normal distribution function of x, exact: PyTorch's default, not JAX'."""
    return jax.nn.gelu(x, approximate=False)


def networks_of(hidden_sizes: tuple[int, ...], env: Env) -> Networks:
    """The architectures for this environment. DSAC is for `Box` actions; the registry says so to the caller."""
    space = env.action_space
    assert isinstance(space, Box)
    actor = MLP((*hidden_sizes, 2 * space.dim), gelu)
    critic = MLP((*hidden_sizes, 2), gelu)
    return Networks(actor, critic, jnp.asarray(space.low), jnp.asarray(space.high))


def distribution(networks: Networks, actor: Params, obs: Array) -> tuple[Array, Array]:
    """Mean and log standard deviation before squashing: `[..., obs_dim]` -> two `[..., action_dim]`."""
    mean, log_std = jnp.split(networks.actor.apply(actor, obs), 2, axis=-1)
    return mean, jnp.clip(log_std, LOG_STD_MIN, LOG_STD_MAX)


def draw(networks: Networks, actor: Params, obs: Array, noise: Array) -> tuple[Array, Array]:
    """A reparameterised action `[..., action_dim]` from standard normal noise, and its log-probability `[...]`."""
    mean, log_std = distribution(networks, actor, obs)
    u = mean + jnp.exp(log_std) * noise
    action, log_det = distributions.tanh_squash(u, networks.low, networks.high)
    # From the noise itself: (u - mean) / std loses its digits in float32 once std is small beside the mean.
    of_noise = distributions.gaussian_log_prob(noise, jnp.zeros_like(mean), jnp.zeros_like(mean))
    return action, of_noise - jnp.sum(log_std, axis=-1) - log_det


def return_distribution(networks: Networks, critic: Params, obs: Array, action: Array) -> tuple[Array, Array]:
    """Mean Q and standard deviation of the soft return: both `[...]`."""
    out: Array = networks.critic.apply(critic, jnp.concatenate([obs, action], axis=-1))
    return out[..., 0], jax.nn.softplus(out[..., 1])


def sample_return(mean: Array, std: Array, z: Array) -> Array:
    """A sample of the return from standard normal `z`, cut off at `Z_MAX`: all `[...]`."""
    return mean + jnp.clip(z, -Z_MAX, Z_MAX) * std


def soft_target(
    batch: Transition, next_return: Array, next_log_prob: Array, alpha: Array, discount: Array | float
) -> Array:
    """y: what the return of `batch` is worth if that of the next step is `next_return`; all `[batch]`, no gradient."""
    soft_return = next_return - alpha * next_log_prob
    return jax.lax.stop_gradient(batch.reward + discount * jnp.where(batch.terminated, 0.0, soft_return))


def clip_target(mean: Array, target: Array, bound: Array | float) -> Array:
    """C: the target, no further than `bound` from the mean; no gradient."""
    return jax.lax.stop_gradient(mean + jnp.clip(target - mean, -bound, bound))


def gaussian_loss(mean: Array, std: Array, target: Array, clipped_target: Array) -> Array:
    """A loss of each sample with the gradients that the module states, all `[...]`. Its value has no meaning."""
    frozen_mean, frozen_std = jax.lax.stop_gradient((mean, std))
    of_mean = (target - frozen_mean) / (frozen_std**2 + BIAS)
    of_std = ((frozen_mean - clipped_target) ** 2 - frozen_std**2) / (frozen_std**3 + BIAS)
    return -of_mean * mean - of_std * std


def critic_loss(
    critic: Params,
    networks: Networks,
    learner: Learner,
    batch: Transition,
    noise: Array,
    z: Array,
    hypers: Hypers,
) -> tuple[Array, Metrics]:
    """Mean of `gaussian_loss`: (loss `[]`, metrics).

    `noise` `[batch, action_dim]` draws the next action from the target policy, `z` `[batch]` its return.
    """
    next_action, next_log_prob = draw(networks, learner.target_actor, batch.next_obs, noise)
    next_mean, next_std = return_distribution(networks, learner.target_critic, batch.next_obs, next_action)
    next_return = sample_return(next_mean, next_std, z)
    target = soft_target(batch, next_return, next_log_prob, jnp.exp(learner.log_alpha), hypers.discount)
    mean, std = return_distribution(networks, critic, batch.obs, batch.action)
    clipped_target = clip_target(mean, target, hypers.td_bound)
    loss = jnp.mean(gaussian_loss(mean, std, target, clipped_target))
    return loss, {"critic_loss": loss, "q": jnp.mean(mean), "q_std": jnp.mean(std)}


def actor_loss(
    actor: Params, networks: Networks, critic: Params, log_alpha: Array, obs: Array, noise: Array
) -> tuple[Array, Array]:
    """mean(alpha log pi - Q): (loss `[]`, log-probabilities `[batch]`)."""
    action, log_prob = draw(networks, actor, obs, noise)
    mean, _ = return_distribution(networks, critic, obs, action)
    return jnp.mean(jnp.exp(log_alpha) * log_prob - mean), log_prob


def alpha_loss(log_alpha: Array, log_prob: Array, target_entropy: Array | float) -> Array:
    """-mean(log alpha (log pi + target entropy)): `[]`, `[batch]` -> `[]`."""
    return -jnp.mean(log_alpha * jax.lax.stop_gradient(log_prob + target_entropy))


def store(
    buffer: replay.Replay, layout: replay.Layout, transitions: Transition, obs: Array, step: Array
) -> replay.Replay:
    """Add a rollout `[time, num_envs, ...]` to the buffer, one step after the other.

    `obs` `[num_envs, obs_dim]` is what the policy sees after the last one; `step` `[]` int32 counts the steps of each
    environment before the first one.
    """
    following = jnp.concatenate([transitions.obs[1:], obs[None]])

    def add(buffer: replay.Replay, inputs: tuple[Transition, Array, Array]) -> tuple[replay.Replay, None]:
        return replay.add(buffer, layout, *inputs), None

    steps = step + jnp.arange(len(following), dtype=jnp.int32)
    return jax.lax.scan(add, buffer, (transitions, following, steps))[0]


def make(config: Config) -> Algorithm:
    """DSAC with this config.

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
        critic = networks.critic.init(critic_key, jnp.concatenate([obs, action]))
        log_alpha = jnp.log(jnp.asarray(hypers.initial_alpha, jnp.float32))
        learner = Learner(
            actor=actor,
            target_actor=actor,
            critic=critic,
            target_critic=critic,
            log_alpha=log_alpha,
            actor_opt=optax.adam(hypers.actor_learning_rate).init(actor),
            critic_opt=optax.adam(hypers.critic_learning_rate).init(critic),
            alpha_opt=optax.adam(hypers.alpha_learning_rate).init(log_alpha),
        )
        buffer = replay.init(replay.Layout.of(task.env), config.num_envs, config.buffer_size)
        return State(learner, buffer, rollout.start(envs_key, task.env, config.num_envs))

    def learn_critic(
        networks: Networks, learner: Learner, batch: Transition, noise: Array, z: Array, hypers: Hypers
    ) -> tuple[Learner, Metrics]:
        grads, metrics = jax.grad(critic_loss, has_aux=True)(learner.critic, networks, learner, batch, noise, z, hypers)
        step, critic_opt = optax.adam(hypers.critic_learning_rate).update(grads, learner.critic_opt)
        return learner._replace(critic=optax.apply_updates(learner.critic, step), critic_opt=critic_opt), metrics

    def learn_rest(
        networks: Networks, before: Learner, learner: Learner, obs: Array, noise: Array, hypers: Hypers
    ) -> Learner:
        """The delayed half of a gradient step on `learner`, with gradients at the parameters `before` that step."""
        grads, log_prob = jax.grad(actor_loss, has_aux=True)(
            before.actor, networks, before.critic, before.log_alpha, obs, noise
        )
        step, actor_opt = optax.adam(hypers.actor_learning_rate).update(grads, before.actor_opt)
        learner = learner._replace(actor=optax.apply_updates(before.actor, step), actor_opt=actor_opt)
        if config.learn_alpha:
            target_entropy = -hypers.target_entropy_scale * noise.shape[-1]
            grad = jax.grad(alpha_loss)(before.log_alpha, log_prob, target_entropy)
            step, alpha_opt = optax.adam(hypers.alpha_learning_rate).update(grad, before.alpha_opt)
            learner = learner._replace(log_alpha=optax.apply_updates(before.log_alpha, step), alpha_opt=alpha_opt)
        return learner._replace(
            target_critic=optax.incremental_update(learner.critic, learner.target_critic, hypers.tau),
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
            return draw(networks, state.learner.actor, obs, noise)[0], None

        envs, transitions, _ = rollout.collect(collect_key, env, state.envs, policy, config.num_steps)
        buffer = store(state.buffer, layout, transitions, envs.obs, clock.update * config.num_steps)

        # Draw the batches of all gradient steps in one gather, outside the conditional: it never carries the buffer.
        steps = (clock.update + 1) * config.num_steps
        batches = replay.sample(batch_key, buffer, layout, steps, (config.gradient_steps, config.batch_size))

        def learn(learner: Learner) -> tuple[Learner, Metrics]:
            def gradient_step(before: Learner, inputs: tuple[Array, Array, Transition]) -> tuple[Learner, Metrics]:
                i, key, batch = inputs
                noise_key, z_key, actor_key = jax.random.split(key, 3)
                noise = jax.random.normal(noise_key, (config.batch_size, action_dim))
                z = jax.random.normal(z_key, (config.batch_size,))
                learner, metrics = learn_critic(networks, before, batch, noise, z, hypers)

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
            return learner, {name: jnp.zeros(()) for name in ("critic_loss", "q", "q_std")}

        learner, metrics = jax.lax.cond(clock.update < warmup_updates, wait, learn, state.learner)
        metrics["alpha"] = jnp.exp(learner.log_alpha)
        return State(learner, buffer, envs), metrics

    def act(key: Array, task: Task, state: State, obs: Array) -> Array:
        networks = networks_of(config.hidden_sizes, task.env)
        mean, _ = distribution(networks, state.learner.actor, obs)
        return distributions.tanh_squash(mean, networks.low, networks.high)[0]

    def critique(key: Array, task: Task, state: State, obs: Array) -> Critique:
        networks = networks_of(config.hidden_sizes, task.env)
        action, log_prob = draw(networks, state.learner.actor, obs, jax.random.normal(key, networks.low.shape))
        bonus = -jnp.exp(state.learner.log_alpha) * log_prob
        mean, _ = return_distribution(networks, state.learner.critic, obs, action)
        return Critique(action, bonus, mean + bonus)

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
        warmup_steps=128,
        hidden_sizes=(32, 32),
        learn_alpha=False,
    ),
    Hypers(actor_learning_rate=1e-3, critic_learning_rate=3e-3, discount=0.5, tau=0.05, initial_alpha=1e-2),
    updates=250,
)
