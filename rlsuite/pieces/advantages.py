"""Rollouts as the losses of on-policy methods read them: normalised, with values and generalised advantages."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlsuite.core import Transition
from rlsuite.pieces import normalize, returns
from rlsuite.pieces.actor_critic import Networks
from rlsuite.pieces.settings import Normalization

Array = jax.Array
Params = Any


class Batch(NamedTuple):
    """The samples that the losses read, leading axis `[batch]`."""

    obs: Array
    """`[batch, obs_dim]`, normalised"""
    action: Array
    """`[batch, action_dim]` unclipped, or `[batch]` int32"""
    dist: tuple[Array, ...]
    """the distribution of the policy that collected, each `[batch, n]`"""
    log_prob: Array
    """`[batch]` under the policy that collected"""
    value: Array
    """`[batch]` before the update"""
    advantage: Array
    target: Array
    """`[batch]` advantage + value"""


def seen(config: Normalization, stats: normalize.RunningStats, obs: Array) -> Array:
    """Observations as the networks see them, standardised if the config says so: `[..., obs_dim]`."""
    return normalize.standardize(obs, stats) if config.normalize_obs else obs


def estimate(
    config: Normalization,
    networks: Networks,
    params: Params,
    rollout: Transition,
    value: Array,
    obs_stats: normalize.RunningStats,
    return_stats: normalize.RunningStats,
    hypers: Any,
) -> Array:
    """Advantages, on rewards divided by the spread of the return if the config says so: `[time, num_envs]`.

    `value` `[time, num_envs]` is that of `rollout.obs`; the value network gives that of `rollout.next_obs`.
    """
    reward = normalize.rescale(rollout.reward, return_stats) if config.normalize_reward else rollout.reward
    next_value = networks.apply(params, seen(config, obs_stats, rollout.next_obs), method=Networks.value)
    return returns.gae(
        reward, value, next_value, rollout.terminated, rollout.truncated, hypers.discount, hypers.gae_lambda
    )


def value_of(
    config: Normalization,
    networks: Networks,
    params: Params,
    obs_stats: normalize.RunningStats,
    return_stats: normalize.RunningStats,
    obs: Array,
) -> Array:
    """The value of `obs` in units of reward: the value network learns rewards divided by the spread of the return."""
    scaled: Array = networks.apply(params, seen(config, obs_stats, obs), method=Networks.value)
    return scaled * jnp.sqrt(return_stats.var + 1e-8) if config.normalize_reward else scaled
