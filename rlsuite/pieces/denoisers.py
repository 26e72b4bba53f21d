"""Denoising score matching: the score of a density at several levels of noise, learned from the noise that was added
(Vincent 2011; Song & Ermon 2019, arXiv 1907.05600)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Array = jax.Array
Params = Any


def score(network: nn.Module, params: Params, x: Array, sigma: Array) -> Array:
    """The gradient of the log-density of x + sigma noise, by the noise that the network sees in x:
    `[..., dim]`, `[...]` -> `[..., dim]`. The network reads x and log sigma."""
    noise = network.apply(params, jnp.concatenate([x, jnp.log(sigma)[..., None]], axis=-1))
    return -noise / sigma[..., None]


def noise_levels(uniform: Array, sigma_min: Array | float, sigma_max: Array | float) -> Array:
    """Log-uniform between sigma_min and sigma_max, from numbers in [0, 1): `[...]` -> `[...]`."""
    low, high = jnp.log(sigma_min), jnp.log(sigma_max)
    return jnp.exp(low + uniform * (high - low))


def score_loss(params: Params, network: nn.Module, x: Array, sigma: Array, noise: Array) -> Array:
    """Mean over the batch of |sigma S(x + sigma noise, sigma) + noise|^2: `[]`.

    `x` is `[batch, dim]`, `sigma` `[batch]`, `noise` `[batch, dim]` standard normal.
    """
    scaled = sigma[..., None] * score(network, params, x + sigma[..., None] * noise, sigma)
    return jnp.mean(jnp.sum((scaled + noise) ** 2, axis=-1))
