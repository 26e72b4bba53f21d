"""What the reference tests of on-policy methods share, in NumPy and float64: policies, value losses, a rollout.

As in `numpy_nets.py`, everything is written from the mathematics and shares no code with `rlsuite`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_nets import (
    HIGH,
    LOW,
    START,
    TIME_LIMIT,
    FloatArray,
    Toy,
    Tree,
    cast,
    exact,
    mlp,
    normal,
    perceptron,
    toy_transition,
)
from reference import absolute, log_sum_exp

from envs.core import Box, Discrete, EpisodeState
from rlsuite.pieces import on_policy
from rlsuite.pieces.normalize import RunningStats
from rlsuite.pieces.on_policy import Batch
from rlsuite.pieces.rollout import EnvCarry

HIDDEN = (8, 7)
OBS_DIM = 3
BATCH = 64
SEEDS = range(5)
SPACES: dict[str, Discrete | Box] = {"discrete": Discrete(4), "continuous": Toy().action_space}
every_space = pytest.mark.parametrize("space", SPACES)

# Networks: {"policy": ..., "critic": ...}, and "log_std" where actions are continuous.


class Policy(NamedTuple):
    """A policy at some observations."""

    dist: tuple[FloatArray, ...]
    """logits, or mean and log standard deviation, each `[batch, n]`"""
    log_prob: FloatArray
    """`[batch]` of the actions"""
    entropy: FloatArray
    """`[batch]`"""


def policy_at(net: Tree, obs: FloatArray, action: Any) -> Policy:
    out = perceptron(net["policy"], obs, "tanh")
    if "log_std" in net:
        log_std = np.tile(net["log_std"], (len(obs), 1))
        z = (action - out) / np.exp(log_std)
        return Policy(
            dist=(out, log_std),
            log_prob=np.sum(-0.5 * z**2 - log_std - 0.5 * np.log(2.0 * np.pi), axis=1),
            entropy=np.sum(log_std + 0.5 * np.log(2.0 * np.pi * np.e), axis=1),
        )
    log_p = out - log_sum_exp(out, axis=1)[:, None]
    chosen = np.eye(out.shape[1])[action]
    return Policy((out,), np.sum(chosen * log_p, axis=1), -np.sum(np.exp(log_p) * log_p, axis=1))


def state_value(net: Tree, obs: FloatArray) -> FloatArray:
    """`[batch]`"""
    return perceptron(net["critic"], obs, "tanh")[:, 0]


def value_loss(net: Tree, batch: Batch, epsilon: float, clip: bool) -> Any:
    """Half the mean squared error, or that of the value held within epsilon of its old one where it is worse."""
    value = state_value(net, batch.obs)
    square = (value - batch.target) ** 2
    if clip:
        bounded = batch.value + np.clip(value - batch.value, -epsilon, epsilon)
        square = np.maximum(square, (bounded - batch.target) ** 2)
    return np.mean(square) / 2.0


def random_net(rng: np.random.Generator, space: Discrete | Box) -> Tree:
    outputs = space.n if isinstance(space, Discrete) else space.dim
    net = {"policy": mlp(rng, OBS_DIM, *HIDDEN, outputs), "critic": mlp(rng, OBS_DIM, *HIDDEN, 1)}
    if isinstance(space, Box):
        net["log_std"] = 0.4 * normal(rng, outputs)
    return jax.tree.map(exact, net)


# Rollouts.

NUM_ENVS, NUM_STEPS = 4, 8
Moments = tuple[FloatArray, FloatArray, float]
"""mean, variance, weight"""


class Statistics(NamedTuple):
    """The numbers of a state that no gradient changes."""

    obs: Moments
    returns: Moments
    discounted_return: FloatArray


def random_statistics(rng: np.random.Generator) -> Statistics:
    """Far from the identity, and narrow enough that some observations are clipped."""
    return Statistics(
        obs=(np.array([0.2, -0.1, 0.4]), np.array([0.5, 2.0, 0.001]), 20.0),
        returns=(np.array(-0.3), np.array(0.8), 11.0),
        discounted_return=normal(rng, NUM_ENVS),
    )


def merged(stats: Moments, batch: FloatArray) -> Moments:
    """Mean, variance and weight with `batch` added, by way of the first two raw moments."""
    mean, var, weight = stats
    total = weight + len(batch)
    new_mean = (weight * mean + batch.sum(axis=0)) / total
    second = (weight * (var + mean**2) + (batch**2).sum(axis=0)) / total
    return new_mean, second - new_mean**2, total


def standardized(obs: FloatArray, stats: Moments) -> FloatArray:
    """Observations as the networks see them."""
    return np.clip((obs - stats[0]) / np.sqrt(stats[1] + 1e-8), -10.0, 10.0)


def scaled(reward: FloatArray, stats: Moments) -> FloatArray:
    """Rewards as they enter the advantages."""
    return np.clip(reward / np.sqrt(stats[1] + 1e-8), -10.0, 10.0)


def starting_state(learner: Any, statistics: Statistics) -> on_policy.State:
    """The learner's state with fresh episodes. Only inside `jax.enable_x64(True)`."""
    start, steps = cast((np.tile(START, (NUM_ENVS, 1)), np.zeros(NUM_ENVS, np.int32)), jnp.float64)
    obs, returns, discounted_return = cast(statistics, jnp.float64)
    envs = EnvCarry(EpisodeState(start, steps), start)
    return on_policy.State(learner, RunningStats(*obs), RunningStats(*returns), discounted_return, envs)


def rollout(key: jax.Array, net: Tree, statistics: Statistics, hypers: Any) -> tuple[Batch, Statistics]:
    """The rows of one rollout from fresh episodes, and the statistics with it.

    Random numbers come from JAX by the learner's own key schedule: they are the only thing that the two share.
    """

    def seen(obs: FloatArray) -> FloatArray:
        return standardized(obs, statistics.obs)

    obs, steps, running = np.tile(START, (NUM_ENVS, 1)), np.zeros(NUM_ENVS), statistics.discounted_return
    columns: dict[str, list[Any]] = {}
    for step_key in jax.random.split(key, NUM_STEPS):
        policy_key, _ = jax.random.split(step_key)
        noise = np.asarray(jax.random.normal(policy_key, (NUM_ENVS, 3)))
        action = perceptron(net["policy"], seen(obs), "tanh") + np.exp(net["log_std"]) * noise
        next_obs, reward, terminated = toy_transition(obs, np.clip(action, LOW, HIGH))
        steps = steps + 1
        done = terminated | (steps >= TIME_LIMIT)
        running = hypers.discount * running + reward
        policy = policy_at(net, seen(obs), action)
        row = {
            "raw": obs,
            "obs": seen(obs),
            "action": action,
            "dist": policy.dist,
            "log_prob": policy.log_prob,
            "value": state_value(net, seen(obs)),
            "future": np.where(terminated, 0.0, state_value(net, seen(next_obs))),
            "reward": reward,
            "terminated": terminated,
            "done": done,
            "sum": running,
        }
        for name, column in row.items():
            columns.setdefault(name, []).append(column)
        running = np.where(done, 0.0, running)
        obs, steps = np.where(done[:, None], START, next_obs), np.where(done, 0, steps)
    t = {name: np.array(column) for name, column in columns.items() if name != "dist"}
    assert np.any(t["terminated"]) and np.any(t["done"] & ~t["terminated"])
    assert np.any(t["action"] < LOW) and np.any(t["action"] > HIGH)

    # Rewards are scaled by statistics that include this rollout.
    returns = merged(statistics.returns, t["sum"].reshape(-1))
    # A_t is the sum over k of (discount lambda)^k delta_{t+k}, as far as the end of the episode.
    delta = scaled(t["reward"], returns) + hypers.discount * t["future"] - t["value"]
    advantage = np.zeros((NUM_STEPS, NUM_ENVS))
    for first in range(NUM_STEPS):
        for env in range(NUM_ENVS):
            for k in range(first, NUM_STEPS):
                advantage[first, env] += (hypers.discount * hypers.gae_lambda) ** (k - first) * delta[k, env]
                if t["done"][k, env]:
                    break
    rows = Batch(
        obs=np.concatenate(t["obs"]),
        action=np.concatenate(t["action"]),
        dist=tuple(np.concatenate(part) for part in zip(*columns["dist"], strict=True)),
        log_prob=np.concatenate(t["log_prob"]),
        value=np.concatenate(t["value"]),
        advantage=np.concatenate(advantage),
        target=np.concatenate(advantage + t["value"]),
    )
    return rows, Statistics(merged(statistics.obs, np.concatenate(t["raw"])), returns, running)


def assert_value_reaches_every_branch(net: Tree, batch: Batch, epsilon: float) -> None:
    """The value moves far towards its target, far away from it, and not far."""
    move = state_value(net, batch.obs) - batch.value
    away, far = np.sign(move) == np.sign(batch.value + move - batch.target), absolute(move) > epsilon
    for case in (far & away, far & ~away, ~far):
        assert np.sum(case) >= 2
