"""What the reference tests of offline learners share: a dataset, and what a learner sees of it, in NumPy and float64.

Networks and Adam are those of `numpy_nets`. A learner sees actions in units of the action box, and observations in
standard deviations of the dataset if it normalises them; both are computed here from the records once more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_critics import ACTION_DIM, HALF_WIDTH, random_critics, smallest
from numpy_nets import HIGH, LOW, FloatArray, Toy, Tree, cast, exact, normal

from envs import datasets
from envs.core import Box
from envs.datasets import Batch, Dataset, Records
from rlsuite.core import Algorithm, Task

HIDDEN = (6, 5)


# The dataset of the whole updates.

LENGTHS = (7, 1, 12, 5, 9)
"""steps of each episode"""
ENDS = ("terminated", "terminated", "truncated", "truncated", "terminated")


@functools.cache
def records() -> Records:
    """Episodes in the box of `numpy_nets.Toy`, whose observations have neither mean 0 nor standard deviation 1."""
    rng = np.random.default_rng(3)
    n, episode = sum(LENGTHS), np.arange(len(LENGTHS)).repeat(LENGTHS)
    last = np.append(np.diff(episode) > 0, True)
    action = exact(rng.uniform(LOW, HIGH, size=(n, ACTION_DIM)))
    reward = normal(rng, n)
    obs, next_obs = (exact([1.0, -2.0, 0.5] + np.array([0.5, 3.0, 1.5]) * rng.normal(size=(n, 3))) for _ in range(2))
    follows = np.append(np.arange(1, n), 0)
    return Records(
        obs=obs,
        action=action,
        reward=reward,
        next_obs=np.where(last[:, None], next_obs, obs[follows]),
        next_action=np.where(last[:, None], action, action[follows]),
        terminated=last & (np.array(ENDS)[episode] == "terminated"),
        truncated=last & (np.array(ENDS)[episode] == "truncated"),
        episode=episode,
        episode_return=np.bincount(episode, weights=reward),
        complete=np.ones(len(LENGTHS), bool),
    )


def dataset() -> Dataset:
    """The records as learners are given them."""
    return datasets.build("toy", records(), Box(tuple(LOW.tolist()), tuple(HIGH.tolist())), source="a test")


def task() -> Task:
    """With the numbers of the dataset in float64, only inside `jax.enable_x64(True)`; while tracing, too."""
    with jax.ensure_compile_time_eval():
        return Task(Toy(), cast(dataset(), jnp.float64))


def unit(action: FloatArray) -> FloatArray:
    """In half widths from the centre of the box, which a dataset holds in float32."""
    return exact((action - (LOW + HIGH) / 2.0) / HALF_WIDTH)


def shown(obs: FloatArray, normalize: bool) -> FloatArray:
    """An observation as the networks are given it."""
    if not normalize:
        return obs
    mean = np.mean(records().obs, axis=0)
    deviation = np.sqrt(np.mean((records().obs - mean) ** 2, axis=0))
    return (obs - exact(mean)) / (exact(deviation) + 1e-3)


def drawn(index: Any, normalize: bool) -> Batch:
    """The rows of this index, as a learner sees them."""
    r = records()
    return Batch(
        obs=shown(r.obs[index], normalize),
        action=unit(r.action[index]),
        reward=r.reward[index],
        next_obs=shown(r.next_obs[index], normalize),
        next_action=unit(r.next_action[index]),
        terminated=r.terminated[index],
        truncated=r.truncated[index],
    )


def reward_scale(normalize: bool) -> float:
    """What rewards are multiplied by."""
    returns = exact(records().episode_return)
    return 1000.0 / float(np.max(returns) - np.min(returns)) if normalize else 1.0


def rows_of(batch_key: jax.Array, size: int) -> Any:
    """Which rows a learner draws with this key: random numbers are the only thing that it shares with a reference."""
    return np.asarray(jax.random.randint(batch_key, (size,), 0, sum(LENGTHS)))


def in_box(action: FloatArray) -> FloatArray:
    """An action in units, clipped, in those of the environment."""
    return (LOW + HIGH) / 2.0 + HALF_WIDTH * np.minimum(np.maximum(action, -1.0), 1.0)


# Networks and programs.


def twins(rng: np.random.Generator, hidden: tuple[int, ...] = HIDDEN) -> Tree:
    """Two critics around 1, so that no mean of them is near 0."""
    return random_critics(rng, 2, hidden, mean=1.0)


SOMEWHERE = np.array([1.5, -4.0, 2.0])
"""an observation of the environment"""


def compiled(algorithm: Algorithm, hypers: Any, given: Callable[[], Task] = task) -> tuple[Any, Any]:
    """jit of the update and of (act, value); value is 0 where there is none. Only inside `jax.enable_x64(True)`."""

    def evaluate(state: Any, obs: Any) -> Any:
        value = algorithm.value or (lambda *_: jnp.zeros(()))
        return tuple(f(jax.random.key(0), given(), state, obs) for f in (algorithm.act, value))

    numbers = cast(hypers, jnp.float64)
    update = jax.jit(lambda key, state, clock: algorithm.update(key, given(), state, numbers, clock))
    return update, jax.jit(evaluate)


def assert_evaluates(
    evaluated: tuple[Any, Any],
    policy: Callable[[FloatArray], FloatArray],
    critics: Tree,
    normalize: bool,
    somewhere: FloatArray = SOMEWHERE,
    value_scale: float = 1.0,
) -> None:
    """(action, value) are those of this policy, valued by the smallest critic."""
    obs = shown(somewhere[None], normalize)
    best = policy(obs)
    np.testing.assert_allclose(evaluated[0], in_box(best)[0], rtol=1e-8)
    assert float(evaluated[1]) == pytest.approx(value_scale * float(smallest(critics, obs, best)[0]), rel=1e-8)
