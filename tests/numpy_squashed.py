"""What the reference tests of offline learners with a squashed Gaussian share, in NumPy and float64.

As in `numpy_nets.py`, everything is written from the mathematics. Actions are in units of the box, [-1, 1].
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from numpy_nets import HIGH, LOW, FloatArray, Toy, Tree, backward, cast, exact, forward, mlp, normal

from envs import datasets
from envs.datasets import Dataset, Records

OBS_DIM = ACTION_DIM = 3


class Batch(NamedTuple):
    """A minibatch `[batch, ...]`, with the fields of the learners' own."""

    obs: FloatArray
    action: FloatArray
    reward: FloatArray
    next_obs: FloatArray
    next_action: FloatArray
    terminated: Any
    truncated: Any


class Squashed(NamedTuple):
    """Actions tanh(u), u = mean + std noise, and all that their derivative needs: `[..., batch, action_dim]`."""

    action: FloatArray
    log_prob: FloatArray
    """`[..., batch]`"""
    u: FloatArray
    noise_part: FloatArray
    """std * noise"""


def squashed(mean: FloatArray, log_std: FloatArray, noise: FloatArray) -> Squashed:
    """The action, and its log-probability by the change of variables."""
    noise_part = np.exp(log_std) * noise
    u = mean + noise_part
    # d action / d u = 1 / cosh(u)^2, with the logarithm of cosh written so that it cannot overflow.
    log_slope = -2.0 * (np.logaddexp(u, -u) - np.log(2.0))
    log_density = -0.5 * noise**2 - log_std - 0.5 * np.log(2.0 * np.pi)
    return Squashed(np.tanh(u), np.sum(log_density - log_slope, axis=-1), u, noise_part)


def squashed_backward(s: Squashed, d_action: FloatArray, d_log_prob: float) -> tuple[FloatArray, FloatArray]:
    """d loss / d action and d loss / d log pi -> d loss / d mean and d loss / d log std, both `[batch, action_dim]`."""
    # log pi falls by the log slope, whose derivative is -2 tanh(u).
    d_u = d_action / np.cosh(s.u) ** 2 + d_log_prob * 2.0 * np.tanh(s.u)
    # u moves with the mean by 1 and with log std by std * noise; log pi also holds -log std.
    return d_u, d_u * s.noise_part - d_log_prob


def critic(critics: Tree, i: int) -> Tree:
    """One of them."""
    return jax.tree.map(lambda x: x[i], critics["params"])


def count(critics: Tree) -> int:
    """How many there are."""
    return len(critics["params"]["Dense_0"]["bias"])


def stacked(nets: list[Tree]) -> Tree:
    """All of them, on a leading axis."""
    return {"params": jax.tree.map(lambda *of_each: np.stack(of_each), *nets)}


def q_values(critics: Tree, obs: FloatArray, action: FloatArray) -> FloatArray:
    """`[num_critics, batch]`"""
    inputs = np.concatenate([obs, action], axis=1)
    return np.stack([forward(critic(critics, i), inputs, "relu")[0][:, 0] for i in range(count(critics))])


def through_the_smallest(critics: Tree, obs: FloatArray, action: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The smallest critic's value `[batch]`, and its derivative by the action `[batch, action_dim]`."""
    q = q_values(critics, obs, action)
    smallest = np.argmin(q, axis=0)
    d_action = np.zeros_like(action)
    for i in range(len(q)):
        net = critic(critics, i)
        inputs = forward(net, np.concatenate([obs, action], axis=1), "relu")[1]
        d_action += backward(net, inputs, (smallest == i)[:, None].astype(np.float64), "relu")[1][:, OBS_DIM:]
    return q.min(axis=0), d_action


def alpha_reference(log_alpha: FloatArray, log_prob: FloatArray, target_entropy: float) -> tuple[float, FloatArray]:
    """The temperature's loss and its derivative by log alpha: too little entropy must raise alpha."""
    slack = np.mean(-log_prob) - target_entropy
    return float(log_alpha * slack), np.asarray(slack)


def random_critics(rng: np.random.Generator, num_critics: int, hidden: tuple[int, ...]) -> Tree:
    """Around 0 on average, so that each of them is the smallest one somewhere."""
    nets = [mlp(rng, OBS_DIM + ACTION_DIM, *hidden, 1) for _ in range(num_critics)]
    somewhere = np.concatenate([rng.normal(size=(99, OBS_DIM)), rng.uniform(-1.0, 1.0, (99, ACTION_DIM))], axis=1)
    for net in nets:
        net[f"Dense_{len(hidden)}"]["bias"] -= exact(np.mean(forward(net, somewhere, "relu")[0]))
    return jax.tree.map(exact, stacked(nets))


def random_batch(rng: np.random.Generator, size: int) -> Batch:
    """Some transitions terminated, some truncated, some both, some neither."""
    return Batch(
        obs=normal(rng, size, OBS_DIM),
        action=exact(rng.uniform(-1.0, 1.0, size=(size, ACTION_DIM))),
        reward=normal(rng, size),
        next_obs=normal(rng, size, OBS_DIM),
        next_action=exact(rng.uniform(-1.0, 1.0, size=(size, ACTION_DIM))),
        terminated=rng.random(size) < 0.4,
        truncated=rng.random(size) < 0.4,
    )


def toy_dataset(rng: np.random.Generator, size: int) -> tuple[Dataset, Batch]:
    """A dataset of four episodes for `Toy`, in float64 inside `jax.enable_x64(True)`, and what is in it."""
    rows = random_batch(rng, size)
    # Neither centred nor of unit scale, so that it shows who normalises.
    obs, next_obs = (exact(2.0 * x + [1.0, -0.5, 0.3]) for x in (rows.obs, rows.next_obs))
    episode = np.arange(size) * 4 // size
    records = Records(
        obs=obs,
        action=(LOW + HIGH) / 2.0 + (HIGH - LOW) / 2.0 * rows.action,
        reward=rows.reward,
        next_obs=next_obs,
        next_action=(LOW + HIGH) / 2.0 + (HIGH - LOW) / 2.0 * rows.next_action,
        terminated=rows.terminated,
        truncated=rows.truncated,
        episode=episode,
        episode_return=np.bincount(episode, weights=rows.reward),
        complete=np.ones(episode[-1] + 1, bool),
    )
    dataset = datasets.build("toy", records, Toy().action_space, source="random numbers")
    dataset = cast(dataset, np.float64)
    return dataset, Batch(*(np.asarray(column) for column in dataset.transitions))


def normalized(dataset: Dataset, obs: FloatArray) -> FloatArray:
    """In standard deviations of the dataset."""
    result: FloatArray = (obs - np.asarray(dataset.obs_mean)) / (np.asarray(dataset.obs_std) + 1e-3)
    return result
