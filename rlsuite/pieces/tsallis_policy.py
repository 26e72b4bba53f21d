"""The squashed Gaussian policy of off-policy MDPO, whose log_q is the sum over the components of their own densities
(Tomar et al. 2020, arXiv 2005.09814). Densities are those of actions scaled to [-1, 1]."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs.core import Box, Env
from rlsuite.pieces import distributions, squashed
from rlsuite.pieces.networks import MLP
from rlsuite.pieces.tsallis import MIN_LOG_DENSITY, log_q

Array = jax.Array
Params = Any

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
LOG_EXTRA_SLOPE = math.log(1e-6)
"""of what is added to the slope 1 - tanh(u)^2 of the squashing"""


class Drawn(NamedTuple):
    """A reparameterised action and the quantities it was made of, each `[..., action_dim]`."""

    mean: Array
    log_std: Array
    u: Array
    """before squashing"""
    action: Array
    log_density: Array
    """of each component of the action, scaled to [-1, 1]"""


def policy_of(hidden_sizes: tuple[int, ...], env: Env) -> squashed.Policy:
    """The policy for an environment with `Box` actions; the registry keeps others away."""
    assert isinstance(env.action_space, Box)
    actor = MLP((*hidden_sizes, 2 * env.action_space.dim))
    return squashed.Policy.of(actor, env, squashed.clipped(LOG_STD_MIN, LOG_STD_MAX))


def log_density(z: Array, log_std: Array, u: Array) -> Array:
    """Log-density of each component of tanh(u), from u and z = (u - mean) / std: all `[..., action_dim]`."""
    log_slope = distributions.log_tanh_slope(u)
    return -0.5 * z**2 - log_std - 0.5 * math.log(2.0 * math.pi) - jnp.logaddexp(log_slope, LOG_EXTRA_SLOPE)


def draw(policy: squashed.Policy, actor: Params, obs: Array, noise: Array) -> Drawn:
    """An action of the policy for each obs `[..., obs_dim]` from standard normal noise `[..., action_dim]`."""
    mean, log_std = policy.distribution(actor, obs)
    u = mean + jnp.exp(log_std) * noise
    action, _ = distributions.tanh_squash(u, policy.low, policy.high)
    # From the noise itself: (u - mean) / std loses its digits in float32 once std is small compared with the mean.
    return Drawn(mean, log_std, u, action, log_density(noise, log_std, u))


def log_density_of(policy: squashed.Policy, actor: Params, obs: Array, u: Array) -> Array:
    """Log-density of each component of tanh(u) under the policy with these parameters: `[..., action_dim]`."""
    mean, log_std = policy.distribution(actor, obs)
    return log_density((u - mean) * jnp.exp(-log_std), log_std, u)


def log_q_prob(log_densities: Array, q: Array | float) -> Array:
    """The sum over components of log_q of their densities, none below 1e-6: `[..., action_dim]` -> `[...]`."""
    return jnp.sum(log_q(jnp.maximum(log_densities, MIN_LOG_DENSITY), q), axis=-1)
