"""PPO: proximal policy optimisation with a clipped objective (Schulman et al. 2017, arXiv 1707.06347).

The details are those of CleanRL's `ppo.py` and `ppo_continuous_action.py`: separate tanh networks, orthogonal
initialisation, a state-independent log standard deviation, generalised advantage estimation, advantages standardised
per minibatch, clipped value loss, global gradient clipping, a learning rate annealed to 0, running normalisation of
observations and of rewards by the spread of the discounted return, both clipped at 10.

Deviations from CleanRL:
- Truncation is not termination: the advantage at a time limit bootstraps with V of the observation it was reached with.
- The statistics of the normalisers are merged once per update instead of once per step, so that collecting and learning
  see the same inputs. Rewards are scaled by statistics that already include the rollout; observations are not.
- `num_envs` environments of `num_steps` steps each (8 x 256 by default) where CleanRL's MuJoCo script takes 1 x 2048.
- Actions outside the box are clipped for the environment only; the log-probability is that of the unclipped sample.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from envs.core import Box, Discrete, Env
from rlsuite.core import Algorithm, Clock, Metrics, Task, Trial
from rlsuite.errors import UserError, check_positive
from rlsuite.pieces import distributions, normalize, returns, rollout
from rlsuite.pieces.networks import MLP

Array = jax.Array
Params = Any


@dataclasses.dataclass(frozen=True)
class Config:
    """What shapes the program."""

    num_envs: int = 8
    """environments stepped side by side in each run"""
    num_steps: int = 256
    """steps of each environment between two updates"""
    num_epochs: int = 10
    """passes over the rollout in one update"""
    num_minibatches: int = 32
    """minibatches in one pass"""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """hidden layers of the policy and of the value network"""
    normalize_obs: bool = True
    """standardise observations by running statistics"""
    normalize_reward: bool = True
    """divide rewards by the running spread of the discounted return"""
    normalize_advantage: bool = True
    """standardise advantages per minibatch"""
    clip_value: bool = True
    """clip the value loss like the policy loss"""
    anneal_learning_rate: bool = True
    """let the learning rate fall linearly to 0 over the budget"""

    @property
    def batch_size(self) -> int:
        """Environment steps in one update."""
        return self.num_envs * self.num_steps


class Hypers(NamedTuple):
    """What may differ between the runs of one program."""

    learning_rate: float = 3e-4
    discount: float = 0.99
    gae_lambda: float = 0.95
    clip_epsilon: float = 0.2
    entropy_coef: float = 0.0
    value_coef: float = 0.5
    max_grad_norm: float = 0.5


class State(NamedTuple):
    """All that one run carries from update to update."""

    params: Params
    opt_state: optax.OptState
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
    log_prob: Array
    """`[batch]` under the policy that collected"""
    value: Array
    """`[batch]` before the update"""
    advantage: Array
    target: Array
    """`[batch]` advantage + value"""


class Networks(nn.Module):
    """The policy's output and the value, from two separate networks."""

    hidden_sizes: tuple[int, ...]
    space: Discrete | Box

    def setup(self) -> None:
        hidden_gains = (2.0**0.5,) * len(self.hidden_sizes)
        outputs = self.space.n if isinstance(self.space, Discrete) else self.space.dim
        self.policy = MLP((*self.hidden_sizes, outputs), nn.tanh, (*hidden_gains, 0.01))
        self.critic = MLP((*self.hidden_sizes, 1), nn.tanh, (*hidden_gains, 1.0))
        if isinstance(self.space, Box):
            self.log_std = self.param("log_std", nn.initializers.zeros, (outputs,))

    def __call__(self, obs: Array) -> tuple[tuple[Array, ...], Array]:
        """`[..., obs_dim]` -> (logits,) or (mean, log_std), each `[..., n]`; value `[...]`."""
        out = self.policy(obs)
        dist = (out,) if isinstance(self.space, Discrete) else (out, jnp.broadcast_to(self.log_std, out.shape))
        return dist, self.critic(obs)[..., 0]

    def value(self, obs: Array) -> Array:
        """`[..., obs_dim]` -> `[...]`"""
        return self.critic(obs)[..., 0]


# A policy's distribution is a tuple: (logits,) is categorical, (mean, log_std) is a diagonal Gaussian.


def log_prob(dist: tuple[Array, ...], action: Array) -> Array:
    """log pi(action) `[...]`."""
    if len(dist) == 1:
        return distributions.categorical_log_prob(dist[0], action)
    return distributions.gaussian_log_prob(action, *dist)


def entropy(dist: tuple[Array, ...]) -> Array:
    """Entropy in nats `[...]`."""
    return distributions.categorical_entropy(dist[0]) if len(dist) == 1 else distributions.gaussian_entropy(dist[1])


def draw(key: Array, dist: tuple[Array, ...]) -> Array:
    """A sample of the policy, not yet clipped to the action box."""
    if len(dist) == 1:
        return jax.random.categorical(key, dist[0])
    mean, log_std = dist
    return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)


def mode(dist: tuple[Array, ...]) -> Array:
    """The most likely action, not yet clipped to the action box."""
    return jnp.argmax(dist[0], axis=-1) if len(dist) == 1 else dist[0]


def into_box(env: Env, action: Array) -> Array:
    """Clip a continuous action to what the environment takes."""
    space = env.action_space
    if isinstance(space, Discrete):
        return action
    return jnp.clip(action, jnp.asarray(space.low), jnp.asarray(space.high))


def standardize_advantage(advantage: Array) -> Array:
    """(A - mean) / (std + 1e-8) with the unbiased standard deviation, as PyTorch computes it."""
    return (advantage - jnp.mean(advantage)) / (jnp.std(advantage, ddof=1) + 1e-8)


def policy_loss(log_prob: Array, old_log_prob: Array, advantage: Array, clip_epsilon: Array | float) -> Array:
    """The clipped surrogate, negated (eq. 7): all `[batch]` -> `[]`."""
    ratio = jnp.exp(log_prob - old_log_prob)
    clipped = jnp.clip(ratio, 1.0 - clip_epsilon, 1.0 + clip_epsilon)
    return -jnp.mean(jnp.minimum(ratio * advantage, clipped * advantage))


def value_loss(value: Array, old_value: Array, target: Array, clip_epsilon: Array | float, clip: bool) -> Array:
    """Half the squared error, the larger of clipped and unclipped if `clip`: all `[batch]` -> `[]`."""
    error = (value - target) ** 2
    if clip:
        near = old_value + jnp.clip(value - old_value, -clip_epsilon, clip_epsilon)
        error = jnp.maximum(error, (near - target) ** 2)
    return 0.5 * jnp.mean(error)


def loss(params: Params, networks: Networks, batch: Batch, config: Config, hypers: Hypers) -> tuple[Array, Metrics]:
    """The whole objective of one minibatch: (loss `[]`, metrics)."""
    dist, value = networks.apply(params, batch.obs)
    new_log_prob = log_prob(dist, batch.action)
    advantage = standardize_advantage(batch.advantage) if config.normalize_advantage else batch.advantage
    of_policy = policy_loss(new_log_prob, batch.log_prob, advantage, hypers.clip_epsilon)
    of_value = value_loss(value, batch.value, batch.target, hypers.clip_epsilon, config.clip_value)
    mean_entropy = jnp.mean(entropy(dist))
    total = of_policy + hypers.value_coef * of_value - hypers.entropy_coef * mean_entropy
    log_ratio = new_log_prob - batch.log_prob
    return total, {
        "policy_loss": of_policy,
        "value_loss": of_value,
        "entropy": mean_entropy,
        "approx_kl": jnp.mean(jnp.expm1(log_ratio) - log_ratio),
        "clip_fraction": jnp.mean(jnp.abs(jnp.expm1(log_ratio)) > hypers.clip_epsilon),
    }


def optimizer(hypers: Hypers, learning_rate: Array | float) -> optax.GradientTransformation:
    """Adam (eps 1e-5) after clipping the global norm of the gradient."""
    return optax.chain(optax.clip_by_global_norm(hypers.max_grad_norm), optax.adam(learning_rate, eps=1e-5))


def make(config: Config) -> Algorithm:
    """PPO with this config.

    Raises:
        UserError: the rollout cannot be cut into the minibatches, or a size is not positive.
    """
    check_positive(
        num_envs=config.num_envs,
        num_steps=config.num_steps,
        num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches,
    )
    if config.batch_size % config.num_minibatches:
        raise UserError(
            f"num_minibatches={config.num_minibatches} does not divide num_envs * num_steps = {config.batch_size}; "
            "choose a divisor of it"
        )
    if config.normalize_advantage and config.batch_size // config.num_minibatches < 2:
        raise UserError(
            f"num_minibatches={config.num_minibatches} leaves minibatches of one sample, whose advantages have no "
            "standard deviation; choose fewer minibatches or normalize_advantage=False"
        )

    def networks_of(task: Task) -> Networks:
        return Networks(config.hidden_sizes, task.env.action_space)

    def seen(stats: normalize.RunningStats, obs: Array) -> Array:
        return normalize.standardize(obs, stats) if config.normalize_obs else obs

    def init(key: Array, task: Task, hypers: Hypers) -> State:
        params_key, envs_key = jax.random.split(key)
        params = networks_of(task).init(params_key, jnp.zeros(task.env.obs_dim))
        return State(
            params=params,
            opt_state=optimizer(hypers, hypers.learning_rate).init(params),
            obs_stats=normalize.init((task.env.obs_dim,)),
            return_stats=normalize.init(),
            discounted_return=jnp.zeros(config.num_envs),
            envs=rollout.start(envs_key, task.env, config.num_envs),
        )

    def update(key: Array, task: Task, state: State, hypers: Hypers, clock: Clock) -> tuple[State, Metrics]:
        networks = networks_of(task)
        collect_key, learn_key = jax.random.split(key)

        # Collect. The unclipped action, its log-probability and the value come along as extras.
        def policy(key: Array, obs: Array) -> tuple[Array, tuple[Array, Array, Array]]:
            dist, value = networks.apply(state.params, seen(state.obs_stats, obs))
            action = draw(key, dist)
            return into_box(task.env, action), (action, log_prob(dist, action), value)

        envs, transitions, (action, old_log_prob, value) = rollout.collect(
            collect_key, task.env, state.envs, policy, config.num_steps
        )

        # Advantages, on rewards scaled by the spread of the discounted return.
        done = transitions.terminated | transitions.truncated
        discounted_return, sums = normalize.discounted_returns(
            state.discounted_return, transitions.reward, done, hypers.discount
        )
        return_stats = normalize.update(state.return_stats, sums.reshape(-1))
        reward = normalize.rescale(transitions.reward, return_stats) if config.normalize_reward else transitions.reward
        next_obs = seen(state.obs_stats, transitions.next_obs)
        next_value = networks.apply(state.params, next_obs, method=Networks.value)
        advantage = returns.gae(
            reward,
            value,
            next_value,
            transitions.terminated,
            transitions.truncated,
            hypers.discount,
            hypers.gae_lambda,
        )
        rows = Batch(seen(state.obs_stats, transitions.obs), action, old_log_prob, value, advantage, advantage + value)
        rows = jax.tree.map(lambda x: x.reshape(config.batch_size, *x.shape[2:]), rows)

        # Learn: epochs of shuffled minibatches.
        learning_rate = hypers.learning_rate * ((1.0 - clock.progress) if config.anneal_learning_rate else 1.0)
        adam = optimizer(hypers, learning_rate)

        def minibatch_step(carry: tuple[Params, Any], minibatch: Batch) -> tuple[tuple[Params, Any], Metrics]:
            params, opt_state = carry
            grads, metrics = jax.grad(loss, has_aux=True)(params, networks, minibatch, config, hypers)
            step, opt_state = adam.update(grads, opt_state, params)
            return (optax.apply_updates(params, step), opt_state), metrics

        def epoch(carry: tuple[Params, Any], key: Array) -> tuple[tuple[Params, Any], Metrics]:
            order = jax.random.permutation(key, config.batch_size)
            minibatches = jax.tree.map(lambda x: x[order].reshape(config.num_minibatches, -1, *x.shape[1:]), rows)
            return jax.lax.scan(minibatch_step, carry, minibatches)

        (params, opt_state), metrics = jax.lax.scan(
            epoch, (state.params, state.opt_state), jax.random.split(learn_key, config.num_epochs)
        )
        obs_stats = normalize.update(state.obs_stats, transitions.obs.reshape(config.batch_size, -1))
        new_state = State(params, opt_state, obs_stats, return_stats, discounted_return, envs)
        return new_state, jax.tree.map(jnp.mean, metrics)

    def act(key: Array, task: Task, state: State, obs: Array) -> Array:
        dist, _ = networks_of(task).apply(state.params, seen(state.obs_stats, obs))
        return into_box(task.env, mode(dist))

    def explore(key: Array, task: Task, state: State, obs: Array) -> Array:
        dist, _ = networks_of(task).apply(state.params, seen(state.obs_stats, obs))
        return into_box(task.env, draw(key, dist))

    def value(key: Array, task: Task, state: State, obs: Array) -> Array:
        scaled = networks_of(task).apply(state.params, seen(state.obs_stats, obs), method=Networks.value)
        return scaled * jnp.sqrt(state.return_stats.var + 1e-8) if config.normalize_reward else scaled

    return Algorithm(init, update, act, config.batch_size, value, explore=explore)


TRIAL = Trial(
    Config(num_envs=8, num_steps=16, num_epochs=4, num_minibatches=4, hidden_sizes=(16,), normalize_reward=False),
    Hypers(learning_rate=1e-2, discount=0.5, entropy_coef=0.0),
    updates=100,
)
