"""What the reference tests of actor-critics share, in NumPy and float64: minibatches, critics, the temperature.

As in `numpy_nets.py`, everything is written from the mathematics and shares no code with `rlsuite`.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from numpy_nets import HIGH, LOW, FloatArray, Tree, exact, mlp, normal, perceptron

from envs.datasets import Batch
from rlsuite.core import Transition

OBS_DIM = ACTION_DIM = 3
BATCH = 64
HALF_WIDTH = (HIGH - LOW) / 2.0
CENTER = (HIGH + LOW) / 2.0

# Minibatches, `[batch, ...]`: some samples terminated, some were truncated, some both, some neither.


def random_batch(rng: np.random.Generator, size: int = BATCH) -> Batch:
    """Transitions of a dataset, with actions in units of the box, [-1, 1]."""
    return Batch(
        obs=normal(rng, size, OBS_DIM),
        action=exact(rng.uniform(-1.0, 1.0, size=(size, ACTION_DIM))),
        reward=normal(rng, size),
        next_obs=normal(rng, size, OBS_DIM),
        next_action=exact(rng.uniform(-1.0, 1.0, size=(size, ACTION_DIM))),
        terminated=rng.random(size) < 0.4,
        truncated=rng.random(size) < 0.4,
    )


def random_transitions(rng: np.random.Generator, size: int = BATCH) -> Transition:
    """Transitions of a replay buffer, with actions in the box."""
    return Transition(
        obs=normal(rng, size, OBS_DIM),
        action=exact(rng.uniform(LOW, HIGH, size=(size, ACTION_DIM))),
        reward=normal(rng, size),
        next_obs=normal(rng, size, OBS_DIM),
        terminated=rng.random(size) < 0.4,
        truncated=rng.random(size) < 0.4,
    )


def endings(batch: Any) -> dict[str, Any]:
    """Which of the samples end how."""
    return {
        "terminated only": batch.terminated & ~batch.truncated,
        "truncated only": batch.truncated & ~batch.terminated,
        "terminated and truncated": batch.terminated & batch.truncated,
        "neither": ~batch.terminated & ~batch.truncated,
    }


# Critics, stacked on a leading axis.


def random_critics(
    rng: np.random.Generator, num_critics: int, hidden: tuple[int, ...], mean: float, low: Any = -1.0, high: Any = 1.0
) -> Tree:
    """Around `mean` on average over actions from `low` to `high`, so that each is the smallest one somewhere."""
    nets = [mlp(rng, OBS_DIM + ACTION_DIM, *hidden, 1) for _ in range(num_critics)]
    somewhere = np.concatenate([rng.normal(size=(99, OBS_DIM)), rng.uniform(low, high, (99, ACTION_DIM))], axis=1)
    for net in nets:
        net[f"Dense_{len(hidden)}"]["bias"] += exact(mean - np.mean(perceptron(net, somewhere, "relu")))
    return stacked(jax.tree.map(exact, nets))


def stacked(nets: list[Tree]) -> Tree:
    """All of them, on a leading axis."""
    return {"params": jax.tree.map(lambda *leaves: np.stack(leaves), *nets)}


def critic(critics: Tree, i: int) -> Tree:
    """One of them."""
    return jax.tree.map(lambda x: x[i], critics["params"])


def q_values(critics: Tree, obs: FloatArray, action: FloatArray) -> FloatArray:
    """`[num_critics, batch]`"""
    return perceptron(critics["params"], np.concatenate([obs, action], axis=1), "relu")[..., 0]


def smallest(critics: Tree, obs: FloatArray, action: FloatArray) -> FloatArray:
    """Value by the smallest critic at each sample, `[batch]`."""
    return np.min(q_values(critics, obs, action), axis=0)


def bellman(batch: Any, discount: float, next_value: FloatArray) -> FloatArray:
    """What critics learn, `[batch]`. Running out of time ends nothing: only `terminated` cuts the bootstrap."""
    return batch.reward + discount * (1.0 - batch.terminated) * next_value


def squared_errors(critics: Tree, batch: Any, target: FloatArray) -> Any:
    """Sum over the critics of the mean squared error to a target `[batch]`."""
    errors = q_values(critics, batch.obs, batch.action) - target
    return np.sum(np.mean(errors**2, axis=1))


def assert_different(critics: Tree, count: int = 2) -> None:
    """Fresh critics have nothing in common but layer norms, which all start alike."""
    for path, leaf in jax.tree.leaves_with_path(critics):
        assert leaf.shape[0] == count
        for other in leaf[1:]:
            same = np.asarray(leaf[0] == other)
            assert same.all() if "LayerNorm" in jax.tree_util.keystr(path) else not same.any()


def state_value(value: Tree, obs: FloatArray) -> FloatArray:
    """V of a network of observations alone, `[batch]`."""
    return perceptron(value["params"], obs, "relu")[:, 0]


def polyak(target: Tree, online: Tree, tau: float) -> Tree:
    """The target network after it has moved."""
    return jax.tree.map(lambda old, new: (1.0 - tau) * old + tau * new, target, online)
