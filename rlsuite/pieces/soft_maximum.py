"""The soft maximum of critics over all actions, T log integral exp(Q(s, a) / T) da, estimated from actions that are
drawn uniformly, from the policy at s and from the policy at s' (Kumar et al. 2020, arXiv 2006.04779, appendix F)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs.datasets import Batch
from rlsuite.pieces.critics import q_values
from rlsuite.pieces.offline_sac import Networks

Array = jax.Array
Params = Any


class Random(NamedTuple):
    """The random numbers that actions are drawn from."""

    uniform: Array
    """`[num_actions, batch, action_dim]` in [-1, 1]: actions"""
    current: Array
    """the same shape, standard normal: for actions of the policy at s"""
    following: Array
    """the same, for actions of the policy at s'"""


def random_of(keys: Array, num_actions: int, shape: tuple[int, ...]) -> Random:
    """New ones from keys `[3]`, for actions of this shape, `[batch, action_dim]`."""
    many = (num_actions, *shape)
    return Random(
        uniform=jax.random.uniform(keys[0], many, minval=-1.0, maxval=1.0),
        current=jax.random.normal(keys[1], many),
        following=jax.random.normal(keys[2], many),
    )


def soft_maximum(
    critics: Params, networks: Networks, actor: Params, batch: Batch, random: Random, temperature: Array | float
) -> Array:
    """T log sum exp((Q(s, a) - log density(a)) / T) over the drawn actions: `[num_critics, batch]`."""
    current, current_log_prob = networks.policy.draw(actor, batch.obs, random.current)
    following, following_log_prob = networks.policy.draw(actor, batch.next_obs, random.following)
    uniform_log_prob = jnp.full_like(current_log_prob, -math.log(2.0) * current.shape[-1])
    actions = jnp.concatenate([random.uniform, current, following])
    log_density = jnp.concatenate([uniform_log_prob, current_log_prob, following_log_prob])
    obs = jnp.broadcast_to(batch.obs, (len(actions), *batch.obs.shape))
    drawn_q = q_values(networks.critic, critics, obs, actions) - log_density  # [num_critics, 3 num_actions, batch]
    soft_max: Array = temperature * jax.nn.logsumexp(drawn_q / temperature, axis=1)
    return soft_max
