"""Advantage estimates that tell termination from truncation."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def gae(
    reward: Array,
    value: Array,
    next_value: Array,
    terminated: Array,
    truncated: Array,
    discount: Array | float,
    gae_lambda: Array | float,
) -> Array:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16), all arguments and the result `[time, ...]`.

    `next_value[t]` is V of the observation that step t led to, never of the one after a reset. Termination bootstraps
    with 0; truncation bootstraps with `next_value` and only ends the sum over later steps.
    """
    delta = reward + discount * jnp.where(terminated, 0.0, next_value) - value
    carry_on = discount * gae_lambda * jnp.where(terminated | truncated, 0.0, 1.0)

    def backward(advantage: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        delta_t, carry_on_t = step
        advantage = delta_t + carry_on_t * advantage
        return advantage, advantage

    _, advantages = jax.lax.scan(backward, jnp.zeros_like(delta[0]), (delta, carry_on), reverse=True)
    return advantages
