"""Small multilayer perceptrons and the two initialisations that published results use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

Array = jax.Array
Activation = Callable[[Array], Array]

LAYER_NORM_EPS = 1e-5
"""added to the variance by layer norms, as in PyTorch"""


def _torch_linear(features: int, fan_in: int) -> nn.Dense:
    """PyTorch's default `Linear`: weights and biases from U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = fan_in**-0.5

    def uniform(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(features, kernel_init=uniform, bias_init=uniform)


def orthogonal(gain: float) -> Callable[..., Array]:
    """Initialiser `(key, shape, dtype)`: a uniformly random matrix with orthogonal rows or columns, times `gain`.

    By Gram-Schmidt, applied twice to each column so that float32 is orthogonal to rounding. Flax' and JAX' own
    initialisers call LAPACK's QR, which in a batch deadlocks on CPUs with few cores: jaxlib 0.10.2 waits for a thread
    pool from inside that pool (seen on two cores, two QRs of 32 runs at once).
    """

    def init(key: Array, shape: tuple[int, int], dtype: jnp.dtype = jnp.float32) -> Array:
        return gain * _orthogonal(key, shape, dtype)

    return init


# Jitted, because Flax asks for the shape whenever a network is applied, and JAX keeps what it has traced.
@partial(jax.jit, static_argnames=("shape", "dtype"))
def _orthogonal(key: Array, shape: tuple[int, int], dtype: jnp.dtype) -> Array:
    normal = jax.random.normal(key, (max(shape), min(shape)), dtype)

    def next_column(j: Array, q: Array) -> Array:
        column = normal[:, j]
        for _ in range(2):
            column = column - q @ (q.T @ column)  # columns that are still to come are 0
        return q.at[:, j].set(column / jnp.linalg.norm(column))

    q = jax.lax.fori_loop(0, min(shape), next_column, jnp.zeros_like(normal))
    return q if shape[0] >= shape[1] else q.T


class MLP(nn.Module):
    """`[..., in]` -> `[..., sizes[-1]]`; the activation follows every layer but the last."""

    sizes: tuple[int, ...]
    """Hidden sizes, then the output size."""
    activation: Activation = nn.relu
    gains: tuple[float, ...] | None = None
    """Orthogonal weights with one gain a layer and zero biases; None means PyTorch's default initialisation."""
    layer_norm: bool = False
    """Normalise the output of each activation over its features, with learned scale and shift (`LAYER_NORM_EPS`)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i, size in enumerate(self.sizes):
            if self.gains is None:
                layer = _torch_linear(size, x.shape[-1])
            else:
                layer = nn.Dense(size, kernel_init=orthogonal(self.gains[i]))
            x = layer(x)
            if i < len(self.sizes) - 1:
                x = self.activation(x)
                if self.layer_norm:
                    # The variance as it is defined: E[x^2] - E[x]^2, Flax' default, loses digits.
                    x = nn.LayerNorm(epsilon=LAYER_NORM_EPS, use_fast_variance=False)(x)
        return x


class ScaledGaussian(nn.Module):
    """`[..., obs_dim]` -> mean and log standard deviation, side by side `[..., 2 * action_dim]`, as in CORL's CQL.

    Two learned numbers scale and shift the latter; they start at 1 and -1.
    """

    hidden_sizes: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs: Array) -> Array:
        hidden = nn.relu(MLP(self.hidden_sizes)(obs))
        # Xavier's uniform initialisation with gain 0.01: the variance scales by its square.
        small = nn.initializers.variance_scaling(1e-4, "fan_avg", "uniform")
        mean, log_std = jnp.split(nn.Dense(2 * self.action_dim, kernel_init=small)(hidden), 2, axis=-1)
        scale = self.param("log_std_scale", nn.initializers.ones, ())
        offset = self.param("log_std_offset", nn.initializers.constant(-1.0), ())
        return jnp.concatenate([mean, scale * log_std + offset], axis=-1)
