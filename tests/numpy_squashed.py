"""What the reference tests of methods with a squashed Gaussian share, in NumPy and float64: policy and SAC losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy_critics import ACTION_DIM, OBS_DIM, bellman, smallest
from numpy_nets import FloatArray, Tree, exact, mlp, perceptron
from reference import log_cosh, value_and_grad


def outputs(actor: Tree, obs: FloatArray, activation: str = "relu") -> tuple[FloatArray, FloatArray]:
    """Mean, and log standard deviation before its bounds, `[batch, action_dim]` each."""
    out = perceptron(actor["params"], obs, activation)
    return out[:, :ACTION_DIM], out[:, ACTION_DIM:]


class SquashedGaussian(NamedTuple):
    """Actions center + half width tanh(u), u = mean + std noise, and their log-probabilities."""

    low: float
    """bounds of the log standard deviation"""
    high: float
    center: Any = 0.0
    half_width: Any = 1.0
    outputs: Callable[[Tree, FloatArray], tuple[FloatArray, FloatArray]] = outputs

    def distribution(self, actor: Tree, obs: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and log standard deviation before squashing, `[batch, action_dim]` each."""
        mean, log_std = self.outputs(actor, obs)
        return mean, np.minimum(np.maximum(log_std, self.low), self.high)

    def squashed(self, u: FloatArray) -> FloatArray:
        return self.center + self.half_width * np.tanh(u)

    def sample(self, actor: Tree, obs: FloatArray, noise: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Actions `[batch, action_dim]`, and log-probabilities by the change of variables `[batch]`."""
        mean, log_std = self.distribution(actor, obs)
        u = mean + np.exp(log_std) * noise
        # d action / d u = half width / cosh(u)^2
        log_slope = np.log(self.half_width) - 2.0 * log_cosh(u)
        log_density = -0.5 * noise**2 - log_std - 0.5 * np.log(2.0 * np.pi)
        return self.squashed(u), np.sum(log_density - log_slope, axis=-1)

    def cases(self, actor: Tree, obs: FloatArray) -> dict[str, Any]:
        """Where the log standard deviation lies."""
        log_std = self.outputs(actor, obs)[1]
        return {
            "log std below its bound": log_std < self.low,
            "log std inside its bounds": (log_std > self.low) & (log_std < self.high),
            "log std above its bound": log_std > self.high,
        }


def random_actor(
    rng: np.random.Generator, hidden: tuple[int, ...], log_stds: tuple[float, ...], spread: float = 4.0
) -> Tree:
    """Log standard deviations spread around these."""
    net, last = mlp(rng, OBS_DIM, *hidden, 2 * ACTION_DIM), f"Dense_{len(hidden)}"
    net[last]["kernel"][:, ACTION_DIM:] *= spread
    net[last]["bias"][ACTION_DIM:] = log_stds
    return {"params": jax.tree.map(exact, net)}


# SAC's losses, of records of networks with `actor`, `critics`, `target_critics` and `log_alpha`.


def soft_target(policy: SquashedGaussian, nets: Any, batch: Any, noise: FloatArray, discount: float) -> FloatArray:
    """What the critics learn, `[batch]`."""
    action, log_prob = policy.sample(nets.actor, batch.next_obs, noise)
    value = smallest(nets.target_critics, batch.next_obs, action) - np.exp(nets.log_alpha) * log_prob
    return bellman(batch, discount, value)


def actor_reference(
    policy: SquashedGaussian, nets: Any, obs: FloatArray, noise: FloatArray, value: Any = smallest
) -> tuple[float, Tree]:
    """The actor's loss with this value of (critics, obs, action), and its gradient."""

    def loss(actor: Tree) -> Any:
        action, log_prob = policy.sample(actor, obs, noise)
        return np.mean(np.exp(nets.log_alpha) * log_prob - value(nets.critics, obs, action))

    return value_and_grad(loss, nets.actor)


def alpha_reference(
    policy: SquashedGaussian, nets: Any, obs: FloatArray, noise: FloatArray, target_entropy: float
) -> tuple[float, FloatArray]:
    """The temperature's loss and its derivative: too little entropy must raise alpha."""
    excess = -np.mean(policy.sample(nets.actor, obs, noise)[1]) - target_entropy
    return value_and_grad(lambda log_alpha: log_alpha * excess, nets.log_alpha)
