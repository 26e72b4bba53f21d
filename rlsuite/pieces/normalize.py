"""Running statistics, and the two normalisations of PPO that use them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class RunningStats(NamedTuple):
    """Mean and population variance of all samples so far, per feature."""

    mean: Array
    """`[...]`"""
    var: Array
    """`[...]`"""
    weight: Array
    """`[]` float32: the number of samples"""


def init(shape: tuple[int, ...] = ()) -> RunningStats:
    """Mean 0 and variance 1 with next to no weight, so that the first batch replaces them."""
    return RunningStats(jnp.zeros(shape), jnp.ones(shape), jnp.asarray(1e-4, jnp.float32))


def update(stats: RunningStats, batch: Array) -> RunningStats:
    """Merge `batch` `[n, ...]` into the statistics (Chan et al. 1979, the pairwise formula)."""
    n = batch.shape[0]
    weight = stats.weight + n
    delta = jnp.mean(batch, axis=0) - stats.mean
    m2 = stats.var * stats.weight + jnp.var(batch, axis=0) * n + delta**2 * (stats.weight * n / weight)
    return RunningStats(stats.mean + delta * (n / weight), m2 / weight, weight)


def standardize(x: Array, stats: RunningStats, clip: float = 10.0) -> Array:
    """(x - mean) / std, clipped to +-clip: the observation normalisation."""
    return jnp.clip((x - stats.mean) * jax.lax.rsqrt(stats.var + 1e-8), -clip, clip)


def rescale(x: Array, stats: RunningStats, clip: float = 10.0) -> Array:
    """x / std without centring, clipped to +-clip: the reward normalisation, with the statistics of the returns."""
    return jnp.clip(x * jax.lax.rsqrt(stats.var + 1e-8), -clip, clip)


def discounted_returns(running: Array, reward: Array, done: Array, discount: Array | float) -> tuple[Array, Array]:
    """The running discounted sum of rewards R <- discount R + r, whose variance scales rewards in PPO.

    `running` `[num_envs]` is carried between calls, `reward` and `done` are `[time, num_envs]`. Returns the new running
    sum and every sum on the way `[time, num_envs]`. The sum starts again from 0 after an episode's end.
    """

    def forward(total: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        reward_t, done_t = step
        total = discount * total + reward_t
        return jnp.where(done_t, 0.0, total), total

    return jax.lax.scan(forward, running, (reward, done))
