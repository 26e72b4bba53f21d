"""Small datasets for the tests of offline learners, recorded from probe environments."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

import envs
from envs import datasets
from envs.core import Box
from envs.datasets import Dataset, Records
from rlsuite import algorithms
from rlsuite.core import Task, Transition
from rlsuite.pieces import rollout

Array = jax.Array

NUM_ENVS, STEPS = 64, 30
"""Episodes of 1, 2 and 5 steps fit, so that all datasets are of one size and a learner compiles once."""
OFFSET = 0.2
HALF_WIDTH = 1.0
"""of the action box"""


def imitates(name: str) -> bool:
    """Whether the learner does what its data show, good or bad: it estimates no value."""
    spec = algorithms.get(name)
    return spec.offline and spec.make(spec.trial.config).value is None


def records_of(steps: Transition) -> Records:
    """The episodes of `[STEPS, NUM_ENVS, ...]`, environment after environment; the last step of each ends one.

    Not that of `rlsuite.sweeping.collect`, which imports PPO and SAC: what every contract imports, every contract is
    asked again for (`slow_contracts.py`)."""
    rows = {name: np.concatenate(np.swapaxes(field, 0, 1)) for name, field in steps._asdict().items()}
    done = rows["terminated"] | rows["truncated"]
    assert done[STEPS - 1 :: STEPS].all()
    episode = np.cumsum(done) - done
    following = np.arange(len(done)) + ~done
    return Records(
        **rows,
        next_action=rows["action"][following],
        episode=episode,
        episode_return=np.bincount(episode, weights=rows["reward"]),
        complete=np.ones(done.sum(), bool),
    )


@functools.cache
def probe_dataset(env_id: str, good: bool = False) -> Dataset:
    """Complete episodes of a continuous probe, with actions spread over the box.

    In `probe/action/continuous` they are spread around the best action if they are to be `good`. Otherwise their mean
    is `OFFSET` from it, so that who only imitates does not find it, but it is among them.
    """
    env = envs.make(env_id)
    assert isinstance(env.action_space, Box)

    def behaviour(key: Array, obs: Array) -> tuple[Array, None]:
        noise = jax.random.uniform(key, (NUM_ENVS, 1), minval=-1.0, maxval=1.0)
        if env_id != "probe/action/continuous":
            return noise, None
        mean = 0.5 * obs if good else (0.5 - OFFSET) * obs
        return mean + (HALF_WIDTH - jnp.abs(mean)) * noise, None

    @jax.jit
    def record(key: Array) -> Transition:
        start_key, key = jax.random.split(key)
        return rollout.collect(key, env, rollout.start(start_key, env, NUM_ENVS), behaviour, STEPS)[1]

    records = records_of(record(jax.random.key(0)))
    return datasets.build(env_id, records, env.action_space, source="random actions in a probe environment")


def probe_task(name: str, env_id: str) -> Task:
    """The probe for this learner, with a dataset of it if the learner is an offline one."""
    if not algorithms.get(name).offline:
        return Task(envs.make(env_id))
    return Task(envs.make(env_id), algorithms.get(name).prepare(probe_dataset(env_id, imitates(name))))
