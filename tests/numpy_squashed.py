"""What the reference tests of CQL and EDAC share: a dataset for the toy environment, in NumPy and float64."""

from __future__ import annotations

import numpy as np
from numpy_critics import CENTER, HALF_WIDTH, random_batch
from numpy_nets import FloatArray, Toy, cast, exact

from envs import datasets
from envs.datasets import Batch, Dataset, Records


def toy_dataset(rng: np.random.Generator, size: int) -> tuple[Dataset, Batch]:
    """A dataset of four episodes for `Toy`, in float64 inside `jax.enable_x64(True)`, and what is in it."""
    rows = random_batch(rng, size)
    # Neither centred nor of unit scale, so that it shows who normalises.
    obs, next_obs = (exact(2.0 * x + [1.0, -0.5, 0.3]) for x in (rows.obs, rows.next_obs))
    episode = np.arange(size) * 4 // size
    records = Records(
        obs=obs,
        action=CENTER + HALF_WIDTH * rows.action,
        reward=rows.reward,
        next_obs=next_obs,
        next_action=CENTER + HALF_WIDTH * rows.next_action,
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
