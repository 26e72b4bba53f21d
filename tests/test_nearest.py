"""The search for the nearest transition against SciPy's k-d tree, which is another program on another machine."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import KDTree

from envs import datasets
from envs.core import Box
from envs.datasets import Dataset, Records
from rlsuite.pieces.nearest import nearest

OBS_DIM, ACTION_DIM = 5, 2
BETA = 2.0


def dataset_of(obs: Any, action: Any) -> Dataset:
    n = len(obs)
    records = Records(
        obs=obs,
        action=action,
        reward=np.zeros(n),
        next_obs=obs,
        next_action=action,
        terminated=np.zeros(n, bool),
        truncated=np.zeros(n, bool),
        episode=np.zeros(n, int),
        episode_return=np.zeros(1),
        complete=np.ones(1, bool),
    )
    box = Box((-1.0,) * ACTION_DIM, (1.0,) * ACTION_DIM)
    return datasets.with_blocks(datasets.build("random", records, box, source="a generator"))


def weights(dataset: Dataset, beta: float) -> np.ndarray:
    """Of (beta * normalised observation, action)."""
    return np.r_[beta / (np.asarray(dataset.obs_std) + datasets.STD_FLOOR), np.ones(ACTION_DIM)].astype(np.float32)


def points(dataset: Dataset) -> np.ndarray:
    return np.asarray(dataset.rows[:, : OBS_DIM + ACTION_DIM])


@functools.cache
def random_dataset(n: int) -> Dataset:
    """Observations far from 0 and of unequal scales: what |x|^2 - 2 x q + |q|^2 cannot do in float32."""
    rng = np.random.default_rng(n)
    centre, scale = np.array([0.0, 300.0, -50.0, 0.0, 1.0]), np.array([1.0, 0.3, 20.0, 1e-2, 0.0])
    return dataset_of(centre + scale * rng.normal(size=(n, OBS_DIM)), rng.uniform(-1.0, 1.0, (n, ACTION_DIM)))


@functools.cache
def tied_dataset() -> Dataset:
    """Whole numbers, so that distances tie exactly in any precision, and every row a few times."""
    rng = np.random.default_rng(0)
    return dataset_of(
        rng.integers(-2, 3, (3000, OBS_DIM)).astype(np.float64), rng.integers(-1, 2, (3000, ACTION_DIM)).astype(float)
    )


search = jax.jit(nearest, static_argnames=("k", "width"))


def assert_as_near(dataset: Dataset, query: np.ndarray, weight: np.ndarray, k: int, row: Any, tolerance: float) -> None:
    """`row` is the k-th nearest or one at the same distance; `tolerance` is relative, for the rounding of float32."""
    scaled = points(dataset).astype(np.float64) * weight.astype(np.float64)
    distance, known = KDTree(scaled).query(query * weight.astype(np.float64), k=[k])
    found = np.linalg.norm(scaled[np.asarray(row)] - query * weight.astype(np.float64), axis=1)
    assert np.all(np.abs(found - distance[:, 0]) <= tolerance * distance[:, 0])
    if tolerance:
        assert np.mean(np.asarray(row) == known[:, 0]) > 0.999


def queries(dataset: Dataset, count: int, seed: int) -> np.ndarray:
    """Half near a row, as a learner's are: its observation exactly; half anywhere."""
    rng = np.random.default_rng(seed)
    all_points = points(dataset)
    query = all_points[rng.integers(len(all_points), size=count)].copy()
    query[:, OBS_DIM:] += 0.3 * rng.normal(size=(count, ACTION_DIM))
    half = count // 2
    query[:half] = all_points[rng.integers(len(all_points), size=half)]
    for j in range(OBS_DIM + ACTION_DIM):
        query[:half, j] += all_points[:, j].std() * rng.normal(size=half)
    query[:, OBS_DIM:] = np.clip(query[:, OBS_DIM:], -1.0, 1.0)
    return query


@pytest.mark.parametrize("beta", [BETA, 0.0])
@pytest.mark.parametrize("width", [1, 64])
def test_ten_thousand_random_queries_as_scipy(width: int, beta: float) -> None:
    """With a beta of 0 in two dimensions, where the nearest row often lies just across the side of a box."""
    dataset = random_dataset(20_000)
    weight, query = weights(dataset, beta), queries(dataset, 10_000, 1)
    row = search(dataset.blocks, query, weight, width=width)
    assert_as_near(dataset, query, weight, 1, row, 1e-6)


@pytest.mark.parametrize("k", [2, 5])
def test_the_kth_nearest_alone(k: int) -> None:
    dataset = random_dataset(20_000)
    weight, query = weights(dataset, BETA), queries(dataset, 1000, 2)
    assert_as_near(dataset, query, weight, k, search(dataset.blocks, query, weight, k=k), 1e-6)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_ties_and_duplicates(k: int) -> None:
    """Any row at the same distance is right, but one that is there twice counts twice."""
    dataset = tied_dataset()
    rng = np.random.default_rng(3)
    all_points = points(dataset)
    assert len(np.unique(all_points, axis=0)) < len(all_points)
    query = np.concatenate([all_points[:200], rng.integers(-2, 3, (200, OBS_DIM + ACTION_DIM)) + 0.5]).astype(
        np.float32
    )
    weight = np.r_[np.full(OBS_DIM, 2.0), np.ones(ACTION_DIM)].astype(np.float32)
    assert_as_near(dataset, query, weight, k, search(dataset.blocks, query, weight, k=k), 0.0)


@pytest.mark.parametrize("n", [1, 5, 128, 129, 300, 600])
def test_any_number_of_rows(n: int) -> None:
    """Fewer than a block, whole blocks, a last one that is padded, and more blocks in a group than groups."""
    dataset = random_dataset(n)
    weight, query = weights(dataset, BETA), queries(dataset, 64, 4)
    assert_as_near(dataset, query, weight, 1, search(dataset.blocks, query, weight), 1e-6)
    k = min(n, 5)
    assert_as_near(dataset, query, weight, k, search(dataset.blocks, query, weight, k=k), 1e-6)


def test_each_run_of_a_batch_has_its_weights_and_all_share_the_dataset() -> None:
    dataset = random_dataset(20_000)
    betas = np.array([0.0, 0.5, 8.0], np.float32)
    weight = np.stack([weights(dataset, float(beta)) for beta in betas])
    query = np.stack([queries(dataset, 100, seed) for seed in range(3)])
    batched = jax.jit(jax.vmap(nearest, in_axes=(None, 0, 0)))
    for q, w, row in zip(query, weight, batched(dataset.blocks, query, weight), strict=True):
        assert_as_near(dataset, q, w, 1, row, 1e-6)
    with pytest.raises(NotImplementedError, match="shares one dataset"):
        jax.vmap(nearest)(jax.tree.map(lambda x: x[None], dataset.blocks), query[:1], weight[:1])


def test_memory_does_not_grow_with_the_runs() -> None:
    dataset = random_dataset(20_000)

    def temporary(runs: int) -> int:
        query = jax.ShapeDtypeStruct((runs, 256, OBS_DIM + ACTION_DIM), jnp.float32)
        weight = jax.ShapeDtypeStruct((runs, OBS_DIM + ACTION_DIM), jnp.float32)
        batched = jax.jit(jax.vmap(functools.partial(nearest, width=32), in_axes=(None, 0, 0)))
        analysis = batched.lower(dataset.blocks, query, weight).compile().memory_analysis()
        return int(analysis.temp_size_in_bytes)

    # What a run adds is its queries and weights, not the bounds of the blocks, let alone distances to the dataset.
    assert (temporary(64) - temporary(1)) / 63 < 8 * 256 * (OBS_DIM + ACTION_DIM) * 4


def test_a_query_that_is_not_a_number_ends_and_does_not_disturb_the_others() -> None:
    dataset = random_dataset(300)
    weight, query = weights(dataset, BETA), queries(dataset, 64, 5)
    bad = query.copy()
    bad[3], bad[7], bad[9, 0] = np.nan, np.inf, -1e30
    row, kept = np.asarray(search(dataset.blocks, bad, weight)), np.delete(np.arange(64), [3, 7, 9])
    assert np.all((row >= 0) & (row < 300))
    np.testing.assert_array_equal(row[kept], np.asarray(search(dataset.blocks, query, weight))[kept])


def test_blocks_hold_every_row_once_inside_their_boxes() -> None:
    dataset = random_dataset(300)
    blocks = dataset.blocks
    assert blocks is not None
    real = np.asarray(blocks.points)[:, 0, :] < datasets.PADDING
    np.testing.assert_array_equal(np.sort(np.asarray(blocks.row)[real]), np.arange(300))
    held = np.asarray(blocks.points).swapaxes(1, 2)
    np.testing.assert_array_equal(held[real], points(dataset)[np.asarray(blocks.row)[real]])
    _, groups, members = blocks.low.shape
    assert groups * members == len(held) and 1 < groups <= members
    low, high = (np.asarray(x).reshape(len(held[0, 0]), -1) for x in (blocks.low, blocks.high))
    for i, block in enumerate(held):
        inside = block[real[i]] if real[i].any() else block  # a block of padding alone
        np.testing.assert_array_equal(inside.min(axis=0), low[:, i])
        np.testing.assert_array_equal(inside.max(axis=0), high[:, i])
    group_parts = held.reshape(groups, -1, held.shape[-1]), real.reshape(groups, -1)
    for i, (group, is_row) in enumerate(zip(*group_parts, strict=True)):
        np.testing.assert_array_equal(group[is_row].min(axis=0), np.asarray(blocks.group_low)[:, i])
        np.testing.assert_array_equal(group[is_row].max(axis=0), np.asarray(blocks.group_high)[:, i])


def test_the_best_episodes_alone_have_no_blocks_of_the_others() -> None:
    assert datasets.draw(random_dataset(300), "top=1.0").blocks is None


def test_a_neighbour_that_cannot_be_is_refused() -> None:
    dataset = random_dataset(300)
    with pytest.raises(ValueError, match="k=0 must be at least 1"):
        nearest(dataset.blocks, points(dataset)[:1], weights(dataset, BETA), k=0)
