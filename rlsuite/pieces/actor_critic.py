"""The networks of on-policy methods, their policies' distributions, the value's loss and the optimiser.

A distribution is a tuple: (logits,) is categorical, (mean, log_std) is a diagonal Gaussian.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from envs.core import Box, Discrete, Env
from rlsuite.pieces import distributions
from rlsuite.pieces.networks import MLP

Array = jax.Array
Params = Any


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
        return self.distribution(obs), self.value(obs)

    def distribution(self, obs: Array) -> tuple[Array, ...]:
        """`[..., obs_dim]` -> (logits,) or (mean, log_std), each `[..., n]`"""
        out = self.policy(obs)
        return (out,) if isinstance(self.space, Discrete) else (out, jnp.broadcast_to(self.log_std, out.shape))

    def value(self, obs: Array) -> Array:
        """`[..., obs_dim]` -> `[...]`"""
        return self.critic(obs)[..., 0]


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


def actor_of(params: Params) -> Params:
    """The policy's part of the parameters of `Networks`."""
    return {name: part for name, part in params["params"].items() if name != "critic"}


def distribution(networks: Networks, actor: Params, obs: Array) -> tuple[Array, ...]:
    """`[..., obs_dim]` -> (logits,) or (mean, log_std), each `[..., n]`, by a policy without its critic."""
    dist: tuple[Array, ...] = networks.apply({"params": actor}, obs, method=Networks.distribution)
    return dist


def value_loss(value: Array, old_value: Array, target: Array, clip_epsilon: Array | float, clip: bool) -> Array:
    """Half the squared error, the larger of clipped and unclipped if `clip`: all `[batch]` -> `[]`."""
    error = (value - target) ** 2
    if clip:
        near = old_value + jnp.clip(value - old_value, -clip_epsilon, clip_epsilon)
        error = jnp.maximum(error, (near - target) ** 2)
    return 0.5 * jnp.mean(error)


def optimizer(hypers: Any, learning_rate: Array | float) -> optax.GradientTransformation:
    """Adam (eps 1e-5) after clipping the global norm of the gradient."""
    return optax.chain(optax.clip_by_global_norm(hypers.max_grad_norm), optax.adam(learning_rate, eps=1e-5))
