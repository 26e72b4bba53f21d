"""Inverse and forward dynamics of a dataset: which action makes a change of the observation, which change it makes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from envs.datasets import Batch
from rlsuite.core import Metrics
from rlsuite.pieces.networks import MLP

Array = jax.Array
Params = Any


class Dynamics(NamedTuple):
    """The two architectures. Observations are normalised, actions in units of the box.

    Their parameters are a dictionary with `inverse`, and with `forward` where it is wanted.
    """

    inverse: nn.Module
    forward: nn.Module

    @classmethod
    def of(cls, hidden_sizes: tuple[int, ...], obs_dim: int, action_dim: int) -> Dynamics:
        """Both with these hidden layers."""
        return cls(MLP((*hidden_sizes, action_dim)), MLP((*hidden_sizes, obs_dim)))

    def init(
        self, inverse_key: Array, forward_key: Array, obs: Array, action: Array, with_forward: bool
    ) -> dict[str, Params]:
        """New parameters, from an observation `[obs_dim]` and an action `[action_dim]`."""
        params = {"inverse": self.inverse.init(inverse_key, jnp.concatenate([obs, obs]))}
        if with_forward:
            params["forward"] = self.forward.init(forward_key, jnp.concatenate([obs, action]))
        return params

    def invert(self, params: dict[str, Params], obs: Array, change: Array) -> Array:
        """The action that makes this change of the observation: `[..., obs_dim]` twice -> `[..., action_dim]`."""
        return jnp.tanh(self.inverse.apply(params["inverse"], jnp.concatenate([obs, change], axis=-1)))

    def predict(self, params: dict[str, Params], obs: Array, action: Array) -> Array:
        """The change of the observation that the action makes: `[..., obs_dim]`."""
        change: Array = self.forward.apply(params["forward"], jnp.concatenate([obs, action], axis=-1))
        return change


def loss(params: dict[str, Params], dynamics: Dynamics, batch: Batch) -> tuple[Array, Metrics]:
    """Mean squared error of the action that led to a change, plus that of the change: (loss `[]`, metrics)."""
    change = batch.next_obs - batch.obs
    total = jnp.mean((dynamics.invert(params, batch.obs, change) - batch.action) ** 2)
    metrics = {"inverse_loss": total}
    if "forward" in params:
        error = jnp.mean((dynamics.predict(params, batch.obs, batch.action) - change) ** 2)
        total, metrics = total + error, metrics | {"forward_loss": error}
    return total, metrics
