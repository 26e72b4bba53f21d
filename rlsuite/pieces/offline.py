"""Parts of offline learners: drawing a batch, and acting with a policy whose actions are in units of the box."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from envs.core import Box
from envs.datasets import Batch, Dataset
from rlsuite.core import Task

Array = jax.Array


def dataset_of(task: Task) -> Dataset:
    """The task's dataset; `job.resolve` makes sure that an offline learner is given one."""
    assert isinstance(task.dataset, Dataset)
    return task.dataset


def sample(key: Array, task: Task, shape: tuple[int, ...], normalize_obs: bool) -> Batch:
    """Transitions drawn with replacement, as `envs.datasets.draw` has it, leading axes `shape`.

    With `normalize_obs`, obs and next_obs are in standard deviations of the dataset.
    """
    dataset = dataset_of(task)
    index = indices(key, dataset, shape)
    return observed(task, dataset.unpack(jnp.asarray(dataset.rows)[index]), normalize_obs)


def observed(task: Task, batch: Batch, normalize_obs: bool) -> Batch:
    """The batch as networks see it: with `normalize_obs`, obs and next_obs in standard deviations of the dataset."""
    if not normalize_obs:
        return batch
    dataset = dataset_of(task)
    return batch._replace(obs=dataset.normalize(batch.obs), next_obs=dataset.normalize(batch.next_obs))


def indices(key: Array, dataset: Dataset, shape: tuple[int, ...]) -> Array:
    """The rows that `sample` draws: `shape` int32."""
    if not dataset.alias.size:
        return jax.random.randint(key, shape, 0, dataset.size)
    row_key, keep_key = jax.random.split(key)
    row = jax.random.randint(row_key, shape, 0, dataset.size)
    kept = jax.random.uniform(keep_key, shape) < jnp.asarray(dataset.threshold)[row]
    return jnp.where(kept, row, jnp.asarray(dataset.alias)[row])


def reward_scale(task: Task, normalize_reward: bool = True) -> Array:
    """1000 over the range of the dataset's episode returns: `[]`. CORL multiplies rewards by it to normalise them.

    Only complete episodes count, as in CORL. 1000 is the time limit of the tasks that CORL normalises, and stays 1000
    elsewhere. 1 where all returns are equal, or no episode is complete, and without `normalize_reward`.
    """
    if not normalize_reward:
        return jnp.ones(())
    dataset = dataset_of(task)
    returns, complete = jnp.asarray(dataset.episode_return), jnp.asarray(dataset.complete)
    highest = jnp.max(returns, where=complete, initial=-jnp.inf)
    spread = highest - jnp.min(returns, where=complete, initial=jnp.inf)
    return jnp.where(spread > 0.0, 1000.0 / jnp.where(spread > 0.0, spread, 1.0), 1.0)


def observe(task: Task, obs: Array, normalize_obs: bool) -> Array:
    """The environment's observation as the policy sees it: `[..., obs_dim]`."""
    return dataset_of(task).normalize(obs) if normalize_obs else obs


def to_box(task: Task, action: Array) -> Array:
    """An action in units of the box `[..., action_dim]`, clipped to [-1, 1], in the environment's own units."""
    space = task.env.action_space
    assert isinstance(space, Box)
    low, high = jnp.asarray(space.low), jnp.asarray(space.high)
    return jnp.clip(low + 0.5 * (high - low) * (jnp.clip(action, -1.0, 1.0) + 1.0), low, high)
