"""Parts of the distributional soft actor-critics: a critic that gives a Gaussian of the soft return, its targets and
the critic's loss by gradients (Duan et al. 2021, arXiv 2001.02811; form of the authors' repository DSAC-v2)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from envs.core import Box, Env
from rlsuite.core import Transition
from rlsuite.pieces import squashed
from rlsuite.pieces.networks import MLP

Array = jax.Array
Params = Any

LOG_STD_MIN, LOG_STD_MAX = -20.0, 0.5
"""bounds of the policy's log standard deviation"""
Z_MAX = 3.0
"""largest distance of a sampled return from its mean, in standard deviations"""
BIAS = 0.1
"""added to the denominators of the critic's gradient, which sigma would otherwise let explode"""


class Networks(NamedTuple):
    """The two architectures."""

    policy: squashed.Policy
    critic: nn.Module


def gelu(x: Array) -> Array:
    """x times the normal distribution function of x, exact: PyTorch's default, not JAX'."""
    return jax.nn.gelu(x, approximate=False)


def networks_of(hidden_sizes: tuple[int, ...], env: Env) -> Networks:
    """The architectures for this environment, which has `Box` actions; the registry keeps others away."""
    assert isinstance(env.action_space, Box)
    actor = MLP((*hidden_sizes, 2 * env.action_space.dim), gelu)
    policy = squashed.Policy.of(actor, env, squashed.clipped(LOG_STD_MIN, LOG_STD_MAX))
    return Networks(policy, MLP((*hidden_sizes, 2), gelu))


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
    """y: the soft return of `batch` if that of the next step is `next_return`; all `[batch]`, no gradient."""
    soft_return = next_return - alpha * next_log_prob
    return jax.lax.stop_gradient(batch.reward + discount * jnp.where(batch.terminated, 0.0, soft_return))


def clip_target(mean: Array, target: Array, bound: Array | float) -> Array:
    """C: the target, no further than `bound` from the mean; no gradient."""
    return jax.lax.stop_gradient(mean + jnp.clip(target - mean, -bound, bound))


def gaussian_loss(mean: Array, std: Array, target: Array, clipped_target: Array) -> Array:
    """A loss of each sample with the gradients that the module states, all `[...]`. Its value has no meaning."""
    frozen_mean, frozen_std = jax.lax.stop_gradient((mean, std))
    mean_slope = (target - frozen_mean) / (frozen_std**2 + BIAS)
    std_slope = ((frozen_mean - clipped_target) ** 2 - frozen_std**2) / (frozen_std**3 + BIAS)
    return -mean_slope * mean - std_slope * std
