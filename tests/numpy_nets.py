"""What the reference tests share: networks, Adam and a toy environment, in NumPy and float64.

Everything here is written from the mathematics and shares no code with `rlsuite`.
Only the names in the parameter trees are those of the learners, so that whole trees can be compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from scipy.special import ndtr

from envs.core import Box, EpisodeState, TimeStep

FloatArray = np.ndarray[Any, np.dtype[np.float64]]
Tree = Any
"""Nested dicts of float64 arrays."""


def normal(rng: np.random.Generator, *shape: int) -> FloatArray:
    """Standard normal numbers that float32 holds exactly, so that both precisions are given the same inputs."""
    return rng.normal(size=shape).astype(np.float32).astype(np.float64)


# Multilayer perceptrons: {"Dense_0": {"kernel": [in, out], "bias": [out]}, "Dense_1": ...}


def mlp(rng: np.random.Generator, *sizes: int) -> Tree:
    """Random weights for layers of these sizes, input first. No bias is zero: a forgotten bias must show."""
    layers = {}
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        kernel = rng.normal(size=(fan_in, fan_out)) / np.sqrt(fan_in)
        layers[f"Dense_{i}"] = {"kernel": exact(kernel), "bias": 0.3 * normal(rng, fan_out)}
    return jax.tree.map(exact, layers)


def exact(x: Any) -> FloatArray:
    """Rounded to the nearest number that float32 holds."""
    return np.asarray(x, np.float32).astype(np.float64)


ACTIVATIONS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0.0),
    "gelu": lambda x: x * ndtr(x),
    "silu": lambda x: x / (1.0 + np.exp(-x)),
}


def perceptron(net: Tree, x: FloatArray, activation: str) -> FloatArray:
    """`[batch, in]` -> `[batch, out]`; `[n, batch, out]` of n networks that are stacked on a leading axis."""
    for i in range(sum(name.startswith("Dense") for name in net)):
        if i > 0:
            x = ACTIVATIONS[activation](x)
        if f"LayerNorm_{i - 1}" in net:
            x = normalized(x, net[f"LayerNorm_{i - 1}"])
        x = x @ net[f"Dense_{i}"]["kernel"] + net[f"Dense_{i}"]["bias"][..., None, :]
    return x


def normalized(x: FloatArray, norm: Tree) -> FloatArray:
    """Layer norm over the last axis."""
    centered = x - np.mean(x, axis=-1, keepdims=True)
    deviation = np.sqrt(np.mean(centered**2, axis=-1, keepdims=True) + 1e-5)
    return centered / deviation * norm["scale"][..., None, :] + norm["bias"][..., None, :]


class Adam:
    """Kingma & Ba 2015, algorithm 1; `eps` is added outside the square root."""

    def __init__(self, params: Tree, eps: float = 1e-8) -> None:
        self.eps = eps
        self.count = 0
        self.mean = jax.tree.map(np.zeros_like, params)
        self.square = jax.tree.map(np.zeros_like, params)

    def step(self, params: Tree, grads: Tree, learning_rate: float) -> Tree:
        """The parameters after one step."""
        self.count += 1
        self.mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, self.mean, grads)
        self.square = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, self.square, grads)
        bias_1, bias_2 = 1.0 - 0.9**self.count, 1.0 - 0.999**self.count
        return jax.tree.map(
            lambda p, m, v: p - learning_rate * (m / bias_1) / (np.sqrt(v / bias_2) + self.eps),
            params,
            self.mean,
            self.square,
        )


def clipped(grads: Tree, max_norm: float) -> tuple[Tree, float]:
    """Gradients of this global norm at most, and their norm before."""
    norm = np.sqrt(dot(grads, grads))
    shrink = min(1.0, max_norm / norm)
    return jax.tree.map(lambda g: shrink * g, grads), norm


# Comparing.


def cast(tree: Tree, dtype: Any) -> Tree:
    """Every leaf as a JAX array, floating-point ones of this type; float64 only inside `jax.enable_x64(True)`."""

    def convert(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jnp.asarray(x.astype(dtype) if np.issubdtype(x.dtype, np.floating) else x)

    return jax.tree.map(convert, tree)


def assert_close(got: Tree, want: Tree, tolerance: float, dtype: Any = np.float64) -> None:
    """Two trees of one structure agree: no entry is off by more than `tolerance` of its leaf's largest.

    A bias counts as large as the kernel beside it, of which it is one more row: an output layer's may be one number
    that is near zero by chance, as a sum of numbers that are not. A leaf that should be all zero must be. `dtype` is
    asserted too: a float64 test that silently runs in float32 would prove less than it says.
    """
    chex.assert_trees_all_equal_structs(got, want)
    sizes = {jax.tree_util.keystr(path): np.max(np.abs(leaf)) for path, leaf in jax.tree.leaves_with_path(want)}
    for (path, g), w in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        where = jax.tree_util.keystr(path)
        assert g.dtype == dtype, f"{where} is {g.dtype}"
        g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
        assert g.shape == w.shape, f"{where} is {g.shape}, not {w.shape}"
        error = np.max(np.abs(g - w))
        size = max(sizes[where], sizes.get(where.replace("['bias']", "['kernel']"), 0.0))
        assert error <= tolerance * size, f"{where} is off by {error:.3g} at a size of {size:.3g}"


def assert_moved(got: Tree, want: Tree, before: Tree, tolerance: float) -> None:
    """`assert_close` of what changed since `before`: updates are small beside parameters, and would hide there."""
    got_change, want_change = (jax.tree.map(lambda x, y: np.asarray(x) - y, after, before) for after in (got, want))
    assert_close(got_change, want_change, tolerance)


def slope(function: Any, tree: Tree, direction: Tree, step: float = 1e-6) -> float:
    """The derivative of `function(tree)` along `direction`, by a central difference."""
    ahead = jax.tree.map(lambda x, d: x + step * d, tree, direction)
    behind = jax.tree.map(lambda x, d: x - step * d, tree, direction)
    return float((function(ahead) - function(behind)) / (2.0 * step))


def dot(a: Tree, b: Tree) -> float:
    """The inner product of two trees."""
    return float(sum(np.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)))


# A toy environment whose every step NumPy can repeat.

LOW, HIGH = np.array([-2.0, 0.5, -1.0]), np.array([1.0, 2.0, 3.0])
"""The action box: neither symmetric nor of width 2, so that squashing and clipping must use it."""
START = (0.1, -0.2, 0.3)
TIME_LIMIT = 3


def toy_transition(obs: Any, action: Any) -> tuple[Any, Any, Any]:
    """(next obs, reward, terminated) of `[..., 3]` NumPy or JAX arrays."""
    next_obs = 0.7 * obs + 0.5 * action - 0.3
    return next_obs, (next_obs * obs).sum(-1) - 0.2 * (action**2).sum(-1), next_obs[..., 0] > 0.3


@struct.dataclass
class Toy:
    """Linear dynamics in three dimensions; terminates on one side, truncates after `TIME_LIMIT` steps."""

    @property
    def id(self) -> str:
        return "toy"

    @property
    def obs_dim(self) -> int:
        return 3

    @property
    def action_space(self) -> Box:
        return Box(tuple(LOW.tolist()), tuple(HIGH.tolist()))

    @property
    def max_episode_steps(self) -> int:
        return TIME_LIMIT

    def reset(self, key: jax.Array) -> tuple[EpisodeState, jax.Array]:
        obs = jnp.asarray(START)
        return EpisodeState(obs, jnp.int32(0)), obs

    def step(self, key: jax.Array, state: EpisodeState, action: jax.Array) -> tuple[EpisodeState, TimeStep]:
        obs, reward, terminated = toy_transition(state.physics, action)
        steps = state.steps + 1
        return EpisodeState(obs, steps), TimeStep(obs, reward, terminated, steps >= TIME_LIMIT)
