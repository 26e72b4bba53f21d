"""Log-densities and entropies of the few policies we need. All but `gaussian_kl` sum over the last (action) axis."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

Array = jax.Array
_LOG_2PI = math.log(2.0 * math.pi)


def gaussian_log_prob(x: Array, mean: Array, log_std: Array) -> Array:
    """log N(x; mean, exp(log_std)^2), diagonal: `[..., dim]` -> `[...]`."""
    z = (x - mean) * jnp.exp(-log_std)
    return jnp.sum(-0.5 * z**2 - log_std - 0.5 * _LOG_2PI, axis=-1)


def gaussian_entropy(log_std: Array) -> Array:
    """Entropy in nats of a diagonal Gaussian: `[..., dim]` -> `[...]`."""
    return jnp.sum(log_std + 0.5 * (1.0 + _LOG_2PI), axis=-1)


def gaussian_kl(mean: Array, log_std: Array, other_mean: Array, other_log_std: Array) -> Array:
    """KL(N || other N) in nats of diagonal Gaussians, per dimension: all `[..., dim]` -> `[..., dim]`."""
    wider = log_std - other_log_std
    moved = (mean - other_mean) * jnp.exp(-other_log_std)
    # By expm1: for nearly equal Gaussians the plain difference would lose digits.
    return 0.5 * (jnp.expm1(2.0 * wider) - 2.0 * wider + moved**2)


def categorical_log_prob(logits: Array, action: Array) -> Array:
    """log softmax(logits)[action]: `[..., n]`, `[...]` int -> `[...]`."""
    # A one-hot sum instead of a gather, whose gradient would be a scatter, which is slow on every device.
    chosen = action[..., None] == jnp.arange(logits.shape[-1])
    return jnp.sum(jnp.where(chosen, jax.nn.log_softmax(logits), 0.0), axis=-1)


def categorical_entropy(logits: Array) -> Array:
    """Entropy in nats: `[..., n]` -> `[...]`."""
    log_probs = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def log_tanh_slope(u: Array) -> Array:
    """log(1 - tanh(u)^2) as 2 (log 2 - u - softplus(-2u)), which is exact where 1 - tanh^2 rounds to 0: `[...]`."""
    return 2.0 * (math.log(2.0) - u - jax.nn.softplus(-2.0 * u))


def tanh_squash(u: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """Squash `u` `[..., dim]` into the box (low, high): the action `[..., dim]` and log|det d action / d u| `[...]`."""
    half_width = 0.5 * (high - low)
    action = low + half_width * (jnp.tanh(u) + 1.0)
    log_det = jnp.sum(log_tanh_slope(u) + jnp.log(half_width), axis=-1)
    return action, log_det
