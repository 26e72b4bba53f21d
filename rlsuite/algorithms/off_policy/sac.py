"""SAC: soft actor-critic with twin critics and a learned temperature (Haarnoja et al. 2018, arXiv 1812.05905).

Networks and initialisation (PyTorch's default), the tanh-squashed Gaussian, the minimum of two target critics, the
target entropy -|A| and a temperature that starts at 1 are those of both CleanRL and Stable-Baselines3. Where these two
differ, the default is Stable-Baselines3's form, and `cleanrl` takes CleanRL's:

- The log standard deviation is clipped to [-20, 2]; CleanRL's is the tanh of the network's output, mapped to [-5, 2].
- The temperature learns from the actions that the actor has just learned from; CleanRL's draws others, from the actor
  after its step.
- The temperature's loss is linear in log alpha; CleanRL's is linear in alpha.
- CleanRL adds 1e-6 to the slope of the squashing. Stable-Baselines3 does so, too: see the deviations.

Deviations:
- Truncated transitions bootstrap with the value of the observation that they led to, as SB3 does with its time-limit
  handling; CleanRL's stores the same.
- The log-determinant of tanh is exact instead of log(1 - tanh^2 + 1e-6), except with `cleanrl`. The log-probability is
  computed from the noise: in float32 the usual form loses its digits where the policy is narrow.
- Every update takes one step of `num_envs` environments, then `gradient_steps` gradient steps. The ratio is free: 1 and
  1 are the published protocol.
- Warm-up: `warmup_steps` steps with uniform actions and no learning (CleanRL 5000, SB3 100, softlearning 10000).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from envs.core import Box, Env
from rlsuite.core import Algorithm, AlgorithmSpec, Metrics, Source, State, Task, Transition, Trial, added
from rlsuite.errors import check_positive
from rlsuite.pieces import off_policy, replay, squashed
from rlsuite.pieces.critics import bellman_target, init_critics, min_q, q_values, squared_error
from rlsuite.pieces.networks import MLP
from rlsuite.pieces.off_policy import Step
from rlsuite.pieces.trained import Trained
from rlsuite.pieces.value_bias import Critique

Array = jax.Array
Params = Any

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
CLEANRL_LOG_STD_MIN = -5.0
CLEANRL_EXTRA_SLOPE = 1e-6
"""added to the slope of the squashing"""


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings that shape the program."""

    num_envs: int = 1
    """environments stepped side by side in each run"""
    gradient_steps: int = 1
    """gradient steps in one update"""
    batch_size: int = 256
    """transitions in one gradient step"""
    buffer_size: int = 1_000_000
    """transitions kept; a smaller budget takes less memory"""
    warmup_steps: int = 5_000
    """environment steps with uniform actions before learning starts"""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """hidden layers of every network that has no option of its own"""
    policy_delay: int = 1
    """gradient steps of the critics until the actor and the temperature take as many at once (CleanRL: 2)"""
    learn_alpha: bool = True
    """learn the temperature; else it stays at initial_alpha"""
    cleanrl: bool = added(False)
    """take CleanRL's log standard deviation, its density and its temperature loss; else Stable-Baselines3's"""
    value_bias_episodes: int = 0
    """episodes after which each evaluation reports the critic's bias (`pieces/value_bias.py`); 0 turns this off"""


class Hypers(NamedTuple):
    """Settings that may differ between the runs of one program."""

    actor_learning_rate: float = 3e-4
    """learning rate of the actor"""
    critic_learning_rate: float = 3e-4
    """learning rate of the critics"""
    alpha_learning_rate: float = 3e-4
    """learning rate of the temperature, with learn_alpha"""
    discount: float = 0.99
    """discount factor of future rewards"""
    tau: float = 0.005
    """share of an online network that moves into its target whenever the target moves"""
    initial_alpha: float = 1.0
    """temperature at the start of training"""
    target_entropy_scale: float = 1.0
    """target entropy = -scale * action_dim, in nats"""


class Learner(NamedTuple):
    """The part of the state that gradient steps change."""

    actor: Trained
    critics: Trained
    """both critics, stacked on a leading axis of 2"""
    target_critics: Params
    log_alpha: Trained


class Networks(NamedTuple):
    """The two architectures."""

    policy: squashed.Policy
    critic: nn.Module


def networks_of(config: Config, env: Env) -> Networks:
    """The architectures for this environment. SAC is for `Box` actions; the registry says so to the caller."""
    assert isinstance(env.action_space, Box)
    actor = MLP((*config.hidden_sizes, 2 * env.action_space.dim))
    if config.cleanrl:
        policy = squashed.Policy.of(actor, env, rescale, CLEANRL_EXTRA_SLOPE)
    else:
        policy = squashed.Policy.of(actor, env, squashed.clipped(LOG_STD_MIN, LOG_STD_MAX))
    return Networks(policy, MLP((*config.hidden_sizes, 1)))


def rescale(log_std: Array) -> Array:
    """CleanRL's bound of the log standard deviation: `[...]`."""
    return CLEANRL_LOG_STD_MIN + 0.5 * (LOG_STD_MAX - CLEANRL_LOG_STD_MIN) * (jnp.tanh(log_std) + 1.0)


def critic_loss(
    critics: Params, networks: Networks, learner: Learner, batch: Transition, noise: Array, discount: Array | float
) -> tuple[Array, Metrics]:
    """Sum over the two critics of the mean squared error to the soft Bellman target (eq. 5): (loss `[]`, metrics).

    `noise` `[batch, action_dim]` draws the next action from the online policy.
    """
    next_action, next_log_prob = networks.policy.draw(learner.actor.params, batch.next_obs, noise)
    next_q = min_q(networks.critic, learner.target_critics, batch.next_obs, next_action)
    next_value = next_q - jnp.exp(learner.log_alpha.params) * next_log_prob
    target = bellman_target(batch.reward, discount, batch.terminated, next_value)
    return squared_error(q_values(networks.critic, critics, batch.obs, batch.action), target)


def alpha_loss(log_alpha: Array, log_prob: Array, target_entropy: Array | float, cleanrl: bool = False) -> Array:
    """-mean(log alpha (log pi + target entropy)), with alpha itself in CleanRL's form: `[]`, `[batch]` -> `[]`."""
    if cleanrl:
        return -jnp.mean(jnp.exp(log_alpha) * jax.lax.stop_gradient(log_prob + target_entropy))
    return squashed.alpha_loss(log_alpha, log_prob, target_entropy)


def init(config: Config, keys: Array, env: Env, hypers: Hypers) -> Learner:
    """New networks and their optimisers, from keys `[2]`."""
    networks, obs = networks_of(config, env), jnp.zeros(env.obs_dim)
    actor = networks.policy.network.init(keys[0], obs)
    critics = init_critics(keys[1], networks.critic, obs, jnp.zeros_like(networks.policy.low))
    log_alpha = jnp.log(jnp.asarray(hypers.initial_alpha, jnp.float32))
    return Learner(
        actor=Trained.start(actor, optax.adam(hypers.actor_learning_rate)),
        critics=Trained.start(critics, optax.adam(hypers.critic_learning_rate)),
        target_critics=critics,
        log_alpha=Trained.start(log_alpha, optax.adam(hypers.alpha_learning_rate)),
    )


def behave(config: Config, key: Array, env: Env, learner: Learner, obs: Array, hypers: Hypers | None = None) -> Array:
    """Actions drawn from the policy: `[..., obs_dim]` -> `[..., action_dim]`."""
    return networks_of(config, env).policy.sample(key, learner.actor.params, obs)[0]


def learn_actor(
    config: Config,
    networks: Networks,
    learner: Learner,
    obs: Array,
    noise: Array,
    alpha_noise: Array,
    hypers: Hypers,
) -> Learner:
    """One step of the actor, then of the temperature; `alpha_noise` is CleanRL's draw for the latter."""
    grads, log_prob = jax.grad(squashed.actor_loss, has_aux=True)(
        learner.actor.params, *networks, learner.critics.params, learner.log_alpha.params, obs, noise
    )
    learner = learner._replace(actor=learner.actor.step(grads, optax.adam(hypers.actor_learning_rate)))
    if not config.learn_alpha:
        return learner
    if config.cleanrl:
        log_prob = networks.policy.draw(learner.actor.params, obs, alpha_noise)[1]
    target_entropy = -hypers.target_entropy_scale * noise.shape[-1]
    grad = jax.grad(alpha_loss)(learner.log_alpha.params, log_prob, target_entropy, config.cleanrl)
    return learner._replace(log_alpha=learner.log_alpha.step(grad, optax.adam(hypers.alpha_learning_rate)))


def gradient_step(config: Config, learner: Learner, step: Step) -> tuple[Learner, Metrics]:
    """One step of the critics, every `policy_delay` steps as many of the actor, then of the targets."""
    networks, batch, hypers = networks_of(config, step.env), step.batch, step.hypers
    critic_key, actor_key = jax.random.split(step.key)
    noise = jax.random.normal(critic_key, batch.action.shape)
    grads, metrics = jax.grad(critic_loss, has_aux=True)(
        learner.critics.params, networks, learner, batch, noise, hypers.discount
    )
    learner = learner._replace(critics=learner.critics.step(grads, optax.adam(hypers.critic_learning_rate)))

    def catch_up(learner: Learner) -> Learner:
        # One draw for each step of the actor, and in CleanRL's form one more for the temperature's.
        draws = 2 * config.policy_delay if config.cleanrl else config.policy_delay
        noises = jax.random.normal(actor_key, (draws, *batch.action.shape))
        for noise, alpha_noise in zip(noises[: config.policy_delay], noises[-config.policy_delay :], strict=True):
            learner = learn_actor(config, networks, learner, batch.obs, noise, alpha_noise, hypers)
        return learner

    due = off_policy.is_due(step.clock.update * config.gradient_steps + step.number, config.policy_delay)
    learner = jax.lax.cond(due, catch_up, lambda learner: learner, learner)
    targets = optax.incremental_update(learner.critics.params, learner.target_critics, hypers.tau)
    return learner._replace(target_critics=targets), metrics


def play(config: Config, env: Env, learner: Learner, obs: Array) -> Array:
    """The policy's squashed mean: `[obs_dim]` -> `[action_dim]`."""
    return networks_of(config, env).policy.mean_action(learner.actor.params, obs)


def critique(config: Config, key: Array, env: Env, learner: Learner, obs: Array) -> Critique:
    """The soft value of an action drawn from the policy."""
    networks = networks_of(config, env)
    action, log_prob = networks.policy.sample(key, learner.actor.params, obs)
    bonus = -jnp.exp(learner.log_alpha.params) * log_prob
    return Critique(action, bonus, min_q(networks.critic, learner.critics.params, obs, action) + bonus)


METHOD = off_policy.Method(init, behave, gradient_step, squashed.temperature, play, critique)


def make(config: Config) -> Algorithm:
    """SAC with this config.

    Raises:
        UserError: the buffer does not hold whole steps of all environments, or a size is not positive.
    """
    check_positive(policy_delay=config.policy_delay)

    def explore(key: Array, task: Task, state: State, obs: Array) -> Array:
        return behave(config, key, task.env, state.learner, obs)

    algorithm = off_policy.make(config, METHOD, value_bias_episodes=config.value_bias_episodes)
    return algorithm._replace(explore=explore)


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

SPEC = AlgorithmSpec(
    Config,
    Hypers,
    make,
    TRIAL,
    action_spaces=(Box,),
    fit=fit,
    read_with={"alpha_learning_rate": {"learn_alpha": True}, "target_entropy_scale": {"learn_alpha": True}},
    summary="soft actor-critic with twin critics and a learned temperature",
    source=Source(
        paper="Haarnoja et al. 2018, arXiv 1812.05905",
        read="CleanRL, sac_continuous_action.py; Stable-Baselines3",
        level="B",
    ),
)
