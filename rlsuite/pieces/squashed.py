"""The squashed Gaussian policy of SAC and its relatives, and the loss of its temperature."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from envs.core import Box, Env
from rlsuite.pieces import distributions
from rlsuite.pieces.critics import min_q
from rlsuite.pieces.trained import Trained

Array = jax.Array
Params = Any


class Policy(NamedTuple):
    """A network whose output is mean and log standard deviation, and the action box that tanh squashes into."""

    network: nn.Module
    """`[..., obs_dim]` -> `[..., 2 * action_dim]`"""
    low: Array
    """`[action_dim]`"""
    high: Array
    """`[action_dim]`"""
    bound: Callable[[Array], Array]
    """elementwise bound of the network's log standard deviation, such as `clip`"""
    extra_slope: float = 0.0
    """added to the slope of the squashing where log-probabilities are computed; 0 is exact"""

    @classmethod
    def of(cls, network: nn.Module, env: Env, bound: Callable[[Array], Array], extra_slope: float = 0.0) -> Policy:
        """The policy for an environment with `Box` actions; the registry keeps others away."""
        space = env.action_space
        assert isinstance(space, Box)
        return cls(network, jnp.asarray(space.low), jnp.asarray(space.high), bound, extra_slope)

    @classmethod
    def in_units(cls, network: nn.Module, action_dim: int, bound: Callable[[Array], Array]) -> Policy:
        """The policy whose actions are in units of the action box, [-1, 1]."""
        return cls(network, -jnp.ones(action_dim), jnp.ones(action_dim), bound)

    @property
    def action_dim(self) -> int:
        """Dimensions of an action."""
        return self.low.shape[0]

    def distribution(self, actor: Params, obs: Array) -> tuple[Array, Array]:
        """Mean and bounded log standard deviation before squashing: `[..., obs_dim]` -> two `[..., action_dim]`."""
        mean, log_std = jnp.split(self.network.apply(actor, obs), 2, axis=-1)
        return mean, self.bound(log_std)

    def draw(self, actor: Params, obs: Array, noise: Array) -> tuple[Array, Array]:
        """A reparameterised action `[..., action_dim]` from standard normal noise, and its log-probability `[...]`."""
        return squash_noise(*self.distribution(actor, obs), noise, self.low, self.high, self.extra_slope)

    def sample(self, key: Array, actor: Params, obs: Array) -> tuple[Array, Array]:
        """`draw` with noise from a key."""
        return self.draw(actor, obs, jax.random.normal(key, (*obs.shape[:-1], self.action_dim)))

    def mean_action(self, actor: Params, obs: Array) -> Array:
        """The squashed mean: `[..., obs_dim]` -> `[..., action_dim]`."""
        mean, _ = self.distribution(actor, obs)
        return distributions.tanh_squash(mean, self.low, self.high)[0]


def squash_noise(
    mean: Array, log_std: Array, noise: Array, low: Array, high: Array, extra_slope: float = 0.0
) -> tuple[Array, Array]:
    """The action `[..., action_dim]` that standard normal `noise` gives, and its log-probability `[...]`."""
    u = mean + jnp.exp(log_std) * noise
    action, log_det = distributions.tanh_squash(u, low, high)
    if extra_slope:
        log_slope = distributions.log_tanh_slope(u) + jnp.log(0.5 * (high - low))
        log_det = jnp.sum(jnp.logaddexp(log_slope, math.log(extra_slope)), axis=-1)
    # From the noise itself: (u - mean) / std loses its digits in float32 once std is small compared with the mean.
    log_prob = distributions.gaussian_log_prob(noise, jnp.zeros_like(noise), jnp.zeros_like(noise))
    return action, log_prob - jnp.sum(log_std, axis=-1) - log_det


def in_units(mean: Array, log_std: Array, noise: Array) -> tuple[Array, Array]:
    """`squash_noise` in units of the action box, that is into [-1, 1]."""
    return squash_noise(mean, log_std, noise, -jnp.ones(()), jnp.ones(()))


def alpha_loss(log_alpha: Array, log_prob: Array, target_entropy: Array | float) -> Array:
    """-mean(log alpha (log pi + target entropy)), Stable-Baselines3's form: `[]`, `[batch]` -> `[]`."""
    return -jnp.mean(log_alpha * jax.lax.stop_gradient(log_prob + target_entropy))


def clipped(low: float, high: float) -> Callable[[Array], Array]:
    """The bound that clips the log standard deviation to these values: `[...]` -> `[...]`."""
    return lambda log_std: jnp.clip(log_std, low, high)


def actor_loss(
    actor: Params, policy: Policy, critic: nn.Module, critics: Params, log_alpha: Array, obs: Array, noise: Array
) -> tuple[Array, Array]:
    """SAC's mean(alpha log pi - min Q), its eq. 7: (loss `[]`, log-probabilities `[batch]`)."""
    action, log_prob = policy.draw(actor, obs, noise)
    return jnp.mean(jnp.exp(log_alpha) * log_prob - min_q(critic, critics, obs, action)), log_prob


def learn_alpha(log_alpha: Trained, log_prob: Array, action_dim: int, hypers: Any) -> Trained:
    """The temperature after a step towards the target entropy; `log_prob` is `[batch]`."""
    target_entropy = -hypers.target_entropy_scale * action_dim
    grad = jax.grad(alpha_loss)(log_alpha.params, log_prob, target_entropy)
    return log_alpha.step(grad, optax.adam(hypers.alpha_learning_rate))


def temperature(learner: Any) -> dict[str, Array]:
    """The metric `alpha` of a learner with `log_alpha`."""
    return {"alpha": jnp.exp(learner.log_alpha.params)}
