"""On-policy MDPO: mirror descent policy optimisation (Tomar et al. 2020, arXiv 2005.09814).

PPO's rollouts with another policy loss: each update takes `sgd_steps` full-batch gradient steps towards the policy that
maximises E[ratio * advantage] - KL(policy || old policy) / t_k, where t_k = 1 - k / N falls over the N updates of the
budget. The details are those of the authors' code: separate tanh networks, orthogonal initialisation, a
state-independent log standard deviation, the KL divergence in closed form, advantages standardised over the whole
rollout by the population's standard deviation, Adam (eps 1e-5) after clipping the gradient's global norm for the
policy, plain Adam (eps 1e-8) for the value, whose clipped loss is learned in minibatches, and VecNormalize's running
normalisation of observations and rewards. `mdpo_off_policy.py` is the other half of the paper.

Deviations from the code:
- k counts from 0. The code's t_k is 1 - (k - 1) / N, which starts above 1 and ends at 2 / N. Ours ends at 1 / N and is
  kept from falling below `MIN_STEP_SIZE`, so that the weight stays finite whatever the budget.
- The learning rate is constant, as it is in the code, whose schedule makes a constant of a number; there is a flag
  `anneal_learning_rate`, which lets it fall to 0 over the budget.
- The Tsallis divergence is the Bregman divergence of the Tsallis entropy, estimated without bias from the actions of
  the rollout. The code takes the mean of log_q(policy) - log_q(old policy) there, without the ratio that would make it
  an expectation under the new policy: for q = 1 that is -KL(old policy || policy), a reward for moving away.
- The value's loss is half the code's, which Adam does not see but for its eps.
- Adam adds epsilon after the bias correction, as in its paper and in PyTorch. The code's, of TensorFlow 1, adds it
  before, which makes it 32 times as large in the first step.
- The old policy is the one that collected from the first update on. The code initialises the two apart.
- Truncation is not termination: the advantage at a time limit bootstraps with V of the observation it was reached with.
- The statistics of the normalisers are merged once per update instead of once per step, so that collecting and learning
  see the same inputs. Rewards are scaled by statistics that already include the rollout; observations are not.
- `num_envs` environments of `num_steps` steps each (8 x 256 by default) where the code takes 1 x 2048.
- 1e-8 is added to the standard deviation of the advantages.
- Left out: the code's other two losses (`closedreverse-KL`, `closed-KL`), which its scripts do not use.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlsuite.algorithms.on_policy import ppo
from rlsuite.algorithms.on_policy.ppo import Networks
from rlsuite.core import Algorithm, Clock, Metrics, Task, Trial
from rlsuite.errors import UserError, check_positive
from rlsuite.pieces import distributions, normalize, returns, rollout

Array = jax.Array
Params = Any

MIN_STEP_SIZE = 1e-4
"""the least t_k; only a budget of more than 10,000 updates comes to it"""
MIN_LOG_DENSITY = math.log(1e-6)
"""of a probability or density: a lower one counts as so much, as in the code's log_q"""


@dataclasses.dataclass(frozen=True)
class Config:
    """What shapes the program."""

    num_envs: int = 8
    """environments stepped side by side in each run"""
    num_steps: int = 256
    """steps of each environment between two updates"""
    sgd_steps: int = 10
    """full-batch gradient steps of the policy in one update"""
    num_epochs: int = 5
    """passes of the value network over the rollout in one update"""
    num_minibatches: int = 16
    """minibatches of the value network in one pass"""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """hidden layers of the policy and of the value network"""
    normalize_obs: bool = True
    """standardise observations by running statistics"""
    normalize_reward: bool = True
    """divide rewards by the running spread of the discounted return"""
    normalize_advantage: bool = True
    """standardise advantages over the rollout"""
    clip_value: bool = True
    """clip the value loss as PPO does"""
    anneal_kl: bool = True
    """let the weight of the KL divergence grow as kl_coef / (1 - share of the budget); else it is kl_coef"""
    anneal_learning_rate: bool = False
    """let the learning rate fall linearly to 0 over the budget"""
    tsallis: bool = False
    """penalise a sampled Tsallis divergence of order tsallis_q instead of the KL divergence"""

    @property
    def batch_size(self) -> int:
        """Environment steps in one update."""
        return self.num_envs * self.num_steps


class Hypers(NamedTuple):
    """What may differ between the runs of one program."""

    learning_rate: float = 3e-4
    """of the policy and of the value network"""
    discount: float = 0.99
    gae_lambda: float = 0.95
    kl_coef: float = 1.0
    """weight of the divergence in the first update, 1 / t_0"""
    tsallis_q: float = 1.0
    """order of the Tsallis divergence, where 1 is KL; read only with tsallis"""
    clip_epsilon: float = 0.2
    """how far the value may move before its loss is clipped"""
    max_grad_norm: float = 0.5
    """of the policy"""


class State(NamedTuple):
    """All that one run carries from update to update."""

    actor: Params
    """what `Networks` calls policy, and log_std where there is one"""
    critic: Params
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    obs_stats: normalize.RunningStats
    return_stats: normalize.RunningStats
    discounted_return: Array
    """`[num_envs]`: the running sum behind `return_stats`"""
    envs: rollout.EnvCarry


class Batch(NamedTuple):
    """What the losses need of each sample, leading axis `[batch]`."""

    obs: Array
    """`[batch, obs_dim]`, normalised"""
    action: Array
    """`[batch, action_dim]` unclipped, or `[batch]` int32"""
    dist: tuple[Array, ...]
    """the old policy's distribution, each `[batch, n]`"""
    log_prob: Array
    """`[batch]` under the old policy"""
    value: Array
    """`[batch]` before the update"""
    advantage: Array
    """`[batch]`, standardised"""
    target: Array
    """`[batch]` advantage, not standardised, + value"""


def joined(actor: Params, critic: Params) -> Params:
    """The parameters as `Networks` takes them."""
    return {"params": {**actor, **critic}}


def standardize_advantage(advantage: Array) -> Array:
    """(A - mean) / (std + 1e-8) with the population's standard deviation, as NumPy computes it."""
    return (advantage - jnp.mean(advantage)) / (jnp.std(advantage) + 1e-8)


def gaussian_kl(mean: Array, log_std: Array, old_mean: Array, old_log_std: Array) -> Array:
    """KL(new || old) of two diagonal Gaussians: all `[..., dim]` -> `[...]`."""
    return jnp.sum(distributions.gaussian_kl(mean, log_std, old_mean, old_log_std), axis=-1)


def categorical_kl(logits: Array, old_logits: Array) -> Array:
    """KL(new || old) of two categorical distributions: both `[..., n]` -> `[...]`."""
    log_probs, old_log_probs = jax.nn.log_softmax(logits), jax.nn.log_softmax(old_logits)
    return jnp.sum(jnp.exp(log_probs) * (log_probs - old_log_probs), axis=-1)


def kl(dist: tuple[Array, ...], old_dist: tuple[Array, ...]) -> Array:
    """KL(new || old) of two distributions of one kind `[...]`."""
    return categorical_kl(dist[0], old_dist[0]) if len(dist) == 1 else gaussian_kl(*dist, *old_dist)


def log_q(log_x: Array, q: Array | float) -> Array:
    """(x^(q - 1) - 1) / (q - 1), the logarithm to which q = 1 gives log x, from log x: `[...]` -> `[...]`.

    In Tsallis' own counting this is the logarithm of order 2 - q; q is the order of the divergence made of it.
    """
    order = jnp.where(q == 1.0, 1.0, q - 1.0)  # never 0: a derivative of the branch not taken may not be NaN either
    return jnp.where(q == 1.0, log_x, jnp.expm1(order * log_x) / order)


def tsallis_divergence(log_prob: Array, old_log_prob: Array, q: Array | float) -> Array:
    """An unbiased estimate of the Bregman divergence of sum_a pi(a) log_q pi(a), never negative: all `[...]`.

    That is sum_a (pi^q - old^q - q old^(q - 1) (pi - old)) / (q - 1), which for q = 1 is KL(new || old). Its terms over
    old(a), for the old policy's actions, are old^(q - 1) (ratio log_q(ratio) - (ratio - 1)).
    """
    log_ratio = log_prob - old_log_prob
    scale = jnp.exp((q - 1.0) * jnp.maximum(old_log_prob, MIN_LOG_DENSITY))
    return scale * (jnp.exp(log_ratio) * log_q(log_ratio, q) - jnp.expm1(log_ratio))


def policy_loss(
    log_prob: Array, old_log_prob: Array, advantage: Array, divergence: Array, kl_weight: Array | float
) -> Array:
    """mean(divergence / t_k - ratio * advantage): all `[batch]`, the weight 1 / t_k `[]` -> `[]`."""
    return jnp.mean(kl_weight * divergence - jnp.exp(log_prob - old_log_prob) * advantage)


def actor_loss(
    actor: Params,
    networks: Networks,
    critic: Params,
    batch: Batch,
    kl_weight: Array | float,
    config: Config,
    hypers: Hypers,
) -> tuple[Array, Metrics]:
    """The whole objective of the policy on one rollout: (loss `[]`, metrics)."""
    dist, _ = networks.apply(joined(actor, critic), batch.obs)
    log_prob = ppo.log_prob(dist, batch.action)
    if config.tsallis:
        divergence = tsallis_divergence(log_prob, batch.log_prob, hypers.tsallis_q)
    else:
        divergence = kl(dist, batch.dist)
    loss = policy_loss(log_prob, batch.log_prob, batch.advantage, divergence, kl_weight)
    metrics = {
        "policy_loss": loss,
        "divergence": jnp.mean(divergence),
        "entropy": jnp.mean(ppo.entropy(dist)),
    }
    return loss, metrics


def critic_loss(
    critic: Params, networks: Networks, actor: Params, batch: Batch, config: Config, hypers: Hypers
) -> tuple[Array, Metrics]:
    """PPO's clipped value loss on one minibatch: (loss `[]`, metrics)."""
    value = networks.apply(joined(actor, critic), batch.obs, method=Networks.value)
    loss = ppo.value_loss(value, batch.value, batch.target, hypers.clip_epsilon, config.clip_value)
    return loss, {"value_loss": loss}


def annealed(kl_coef: Array | float, progress: Array) -> Array:
    """The weight 1 / t_k after a share `progress` `[]` of the budget, no more than kl_coef / MIN_STEP_SIZE: `[]`."""
    return kl_coef / jnp.maximum(1.0 - progress, MIN_STEP_SIZE)


def actor_optimizer(hypers: Hypers, learning_rate: Array | float) -> optax.GradientTransformation:
    """Adam (eps 1e-5) after clipping the global norm of the gradient."""
    return optax.chain(optax.clip_by_global_norm(hypers.max_grad_norm), optax.adam(learning_rate, eps=1e-5))


def make(config: Config) -> Algorithm:
    """On-policy MDPO with this config.

    Raises:
        UserError: the rollout cannot be cut into the minibatches, or a size is not positive.
    """
    check_positive(
        num_envs=config.num_envs,
        num_steps=config.num_steps,
        sgd_steps=config.sgd_steps,
        num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches,
    )
    if config.batch_size % config.num_minibatches:
        raise UserError(
            f"num_minibatches={config.num_minibatches} does not divide num_envs * num_steps = {config.batch_size}; "
            "choose a divisor of it"
        )

    def networks_of(task: Task) -> Networks:
        return Networks(config.hidden_sizes, task.env.action_space)

    def seen(stats: normalize.RunningStats, obs: Array) -> Array:
        return normalize.standardize(obs, stats) if config.normalize_obs else obs

    def init(key: Array, task: Task, hypers: Hypers) -> State:
        params_key, envs_key = jax.random.split(key)
        actor = dict(networks_of(task).init(params_key, jnp.zeros(task.env.obs_dim))["params"])
        critic = {"critic": actor.pop("critic")}
        return State(
            actor=actor,
            critic=critic,
            actor_opt=actor_optimizer(hypers, hypers.learning_rate).init(actor),
            critic_opt=optax.adam(hypers.learning_rate).init(critic),
            obs_stats=normalize.init((task.env.obs_dim,)),
            return_stats=normalize.init(),
            discounted_return=jnp.zeros(config.num_envs),
            envs=rollout.start(envs_key, task.env, config.num_envs),
        )

    def update(key: Array, task: Task, state: State, hypers: Hypers, clock: Clock) -> tuple[State, Metrics]:
        networks = networks_of(task)
        params = joined(state.actor, state.critic)
        collect_key, learn_key = jax.random.split(key)

        # Collect. The unclipped action, the distribution it came from and the value come along as extras.
        def policy(key: Array, obs: Array) -> tuple[Array, Any]:
            dist, value = networks.apply(params, seen(state.obs_stats, obs))
            action = ppo.draw(key, dist)
            return ppo.into_box(task.env, action), (action, dist, ppo.log_prob(dist, action), value)

        envs, transitions, (action, old_dist, old_log_prob, value) = rollout.collect(
            collect_key, task.env, state.envs, policy, config.num_steps
        )

        # Advantages, on rewards scaled by the spread of the discounted return.
        done = transitions.terminated | transitions.truncated
        discounted_return, sums = normalize.discounted_returns(
            state.discounted_return, transitions.reward, done, hypers.discount
        )
        return_stats = normalize.update(state.return_stats, sums.reshape(-1))
        reward = normalize.rescale(transitions.reward, return_stats) if config.normalize_reward else transitions.reward
        next_value = networks.apply(params, seen(state.obs_stats, transitions.next_obs), method=Networks.value)
        advantage = returns.gae(
            reward,
            value,
            next_value,
            transitions.terminated,
            transitions.truncated,
            hypers.discount,
            hypers.gae_lambda,
        )
        rows = Batch(
            obs=seen(state.obs_stats, transitions.obs),
            action=action,
            dist=old_dist,
            log_prob=old_log_prob,
            value=value,
            advantage=standardize_advantage(advantage) if config.normalize_advantage else advantage,
            target=advantage + value,
        )
        rows = jax.tree.map(lambda x: x.reshape(config.batch_size, *x.shape[2:]), rows)

        learning_rate = hypers.learning_rate * ((1.0 - clock.progress) if config.anneal_learning_rate else 1.0)
        kl_weight: Array | float = annealed(hypers.kl_coef, clock.progress) if config.anneal_kl else hypers.kl_coef

        # The policy: full-batch steps.
        actor_adam = actor_optimizer(hypers, learning_rate)

        def policy_step(carry: tuple[Params, Any], _: None) -> tuple[tuple[Params, Any], Metrics]:
            actor, opt_state = carry
            grads, metrics = jax.grad(actor_loss, has_aux=True)(
                actor, networks, state.critic, rows, kl_weight, config, hypers
            )
            step, opt_state = actor_adam.update(grads, opt_state)
            return (optax.apply_updates(actor, step), opt_state), metrics

        (actor, actor_opt), of_policy = jax.lax.scan(
            policy_step, (state.actor, state.actor_opt), length=config.sgd_steps
        )

        # The value: epochs of shuffled minibatches.
        critic_adam = optax.adam(learning_rate)

        def value_step(carry: tuple[Params, Any], minibatch: Batch) -> tuple[tuple[Params, Any], Metrics]:
            critic, opt_state = carry
            grads, metrics = jax.grad(critic_loss, has_aux=True)(
                critic, networks, state.actor, minibatch, config, hypers
            )
            step, opt_state = critic_adam.update(grads, opt_state)
            return (optax.apply_updates(critic, step), opt_state), metrics

        def epoch(carry: tuple[Params, Any], key: Array) -> tuple[tuple[Params, Any], Metrics]:
            order = jax.random.permutation(key, config.batch_size)
            minibatches = jax.tree.map(lambda x: x[order].reshape(config.num_minibatches, -1, *x.shape[1:]), rows)
            return jax.lax.scan(value_step, carry, minibatches)

        (critic, critic_opt), of_value = jax.lax.scan(
            epoch, (state.critic, state.critic_opt), jax.random.split(learn_key, config.num_epochs)
        )
        obs_stats = normalize.update(state.obs_stats, transitions.obs.reshape(config.batch_size, -1))
        new_state = State(actor, critic, actor_opt, critic_opt, obs_stats, return_stats, discounted_return, envs)
        return new_state, jax.tree.map(jnp.mean, {**of_policy, **of_value})

    def act(key: Array, task: Task, state: State, obs: Array) -> Array:
        params = joined(state.actor, state.critic)
        dist, _ = networks_of(task).apply(params, seen(state.obs_stats, obs))
        return ppo.into_box(task.env, ppo.mode(dist))

    def value(key: Array, task: Task, state: State, obs: Array) -> Array:
        params = joined(state.actor, state.critic)
        scaled = networks_of(task).apply(params, seen(state.obs_stats, obs), method=Networks.value)
        return scaled * jnp.sqrt(state.return_stats.var + 1e-8) if config.normalize_reward else scaled

    return Algorithm(init, update, act, config.batch_size, value)


TRIAL = Trial(
    Config(
        num_envs=8,
        num_steps=16,
        num_minibatches=4,
        hidden_sizes=(16,),
        normalize_reward=False,
        anneal_learning_rate=True,
    ),
    Hypers(learning_rate=1e-2, discount=0.5),
    updates=120,
)
