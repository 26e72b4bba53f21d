"""A conditional variational autoencoder of actions: what actions a dataset takes at an observation.

Latents have twice as many dimensions as actions, as in BCQ (Fujimoto et al. 2019, arXiv 1812.02900).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from rlsuite.core import Metrics
from rlsuite.pieces.networks import MLP

Array = jax.Array
Params = Any

LOG_STD_MIN, LOG_STD_MAX = -4.0, 15.0
"""bounds of the encoder's log standard deviations"""
KL_WEIGHT = 0.5
"""weight of the divergence from the prior, relative to the reconstruction"""


class VAE(NamedTuple):
    """The two architectures; their parameters are a dictionary with `encoder` and `decoder`."""

    encoder: nn.Module
    """obs and action -> mean and log standard deviation of the latent, side by side"""
    decoder: nn.Module
    """obs and latent -> action before its tanh"""

    @classmethod
    def of(cls, hidden_sizes: tuple[int, ...], action_dim: int) -> VAE:
        """Both with these hidden layers."""
        return cls(MLP((*hidden_sizes, 2 * 2 * action_dim)), MLP((*hidden_sizes, action_dim)))

    def init(self, encoder_key: Array, decoder_key: Array, obs: Array, action: Array) -> dict[str, Params]:
        """New parameters, from an observation `[obs_dim]` and an action `[action_dim]`."""
        return {
            "encoder": self.encoder.init(encoder_key, jnp.concatenate([obs, action])),
            "decoder": self.decoder.init(decoder_key, jnp.concatenate([obs, action, action])),
        }

    def encode(self, params: dict[str, Params], obs: Array, action: Array) -> tuple[Array, Array]:
        """Mean and log standard deviation of the latent, both `[..., 2 action_dim]`."""
        out = self.encoder.apply(params["encoder"], jnp.concatenate([obs, action], axis=-1))
        mean, log_std = jnp.split(out, 2, axis=-1)
        return mean, jnp.clip(log_std, LOG_STD_MIN, LOG_STD_MAX)

    def decode(self, params: dict[str, Params], obs: Array, latent: Array) -> Array:
        """An action in units of the box: `[..., obs_dim]`, `[..., 2 action_dim]` -> `[..., action_dim]`."""
        return jnp.tanh(self.decoder.apply(params["decoder"], jnp.concatenate([obs, latent], axis=-1)))

    def reconstruct(self, params: dict[str, Params], obs: Array, action: Array, noise: Array) -> Array:
        """The decoded sample of an action's latent: `[..., action_dim]`; `noise` `[..., 2 action_dim]`."""
        mean, log_std = self.encode(params, obs, action)
        return self.decode(params, obs, mean + jnp.exp(log_std) * noise)


def loss(
    params: dict[str, Params], vae: VAE, obs: Array, action: Array, noise: Array, weight: Array
) -> tuple[Array, Metrics]:
    """Weighted mean squared error of the reconstruction plus the divergence from the prior: (loss `[]`, metrics).

    Both are means over batch and dimensions. `noise` `[batch, 2 action_dim]` is standard normal, `weight` is `[batch]`.
    """
    mean, log_std = vae.encode(params, obs, action)
    decoded = vae.decode(params, obs, mean + jnp.exp(log_std) * noise)
    reconstruction = jnp.mean(weight[:, None] * (decoded - action) ** 2)
    kl = -0.5 * jnp.mean(1.0 + 2.0 * log_std - mean**2 - jnp.exp(2.0 * log_std))
    return reconstruction + KL_WEIGHT * kl, {"reconstruction_loss": reconstruction, "kl": kl}
