"""PRDC's search beside SciPy's k-d tree: time of one batch of queries, and whether both find the same neighbour.

    python benchmarks/search_speed.py [--rows 1000000] [--runs 1 16 256] [--queries 256]

The transitions are of Hopper's sizes. Those of "smooth" lie along trajectories, as a simulator's do: sums of a few slow
waves in each coordinate, with other phases in every episode. "random" is the worst case for every tree: independent
numbers in 14 dimensions. Queries are transitions with some noise in the action, which is what an actor asks for. Here
the queries of all runs are one call, split over the devices; SciPy answers the same ones in a call for each run, with
all cores. Both have built their tree before. Distances are compared in float64, of neighbours that were found in
float32.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import scipy
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from peers.suite import dataset_of
from peers.transitions import ACTION_DIM, OBS_DIM, independent, smooth
from scipy.spatial import KDTree

from envs.datasets import Blocks, with_blocks
from rlsuite.pieces.nearest import nearest
from rlsuite.training import memory
from rlsuite.training.device import describe_device, prepare_jax

BETA = 2.0
"""PRDC's weight of the observation"""
NOISE = 0.1
REPEATS = 3


def best(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the fastest of several calls, and what the last one gave."""
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        answer = function()
        seconds.append(time.perf_counter() - began)
    return min(seconds), answer


def measure(points: np.ndarray, tree: KDTree, blocks: Blocks, runs: int, queries: int) -> tuple[float, float, float]:
    """Seconds here and in SciPy, and how much farther our neighbours are than SciPy's, relative, at the most."""
    rng = np.random.default_rng(1)
    weight = weights()
    asked = points[rng.integers(len(points), size=(runs, queries))].copy()
    asked[..., OBS_DIM:] += NOISE * rng.normal(size=(runs, queries, ACTION_DIM)).astype(np.float32)
    # As in training: split over the devices, each of which has the dataset.
    mesh = Mesh(np.asarray(jax.local_devices()[:runs]), ("runs",))
    split, whole = PartitionSpec("runs"), PartitionSpec()
    on_devices = jax.device_put(asked, NamedSharding(mesh, split))
    placed = jax.device_put(blocks, NamedSharding(mesh, whole))

    def search_device(blocks: Blocks, asked: jax.Array) -> jax.Array:
        found: jax.Array = jax.vmap(lambda query: nearest(blocks, query, weight))(asked)
        return found

    search = jax.jit(jax.shard_map(search_device, mesh=mesh, in_specs=(whole, split), out_specs=split, check_vma=False))
    jax.block_until_ready(search(placed, on_devices))
    our_seconds, found = best(lambda: np.asarray(search(placed, on_devices)))
    scipy_seconds, distances = best(lambda: [tree.query(weight * each, workers=-1)[0] for each in asked])
    ours = np.linalg.norm((weight * (points[found] - asked)).astype(np.float64), axis=-1)
    return our_seconds, scipy_seconds, float(np.max((ours - np.stack(distances)) / ours))


def weights() -> np.ndarray:
    """`[dim]`: PRDC's of the observation, and 1."""
    return np.concatenate([np.full(OBS_DIM, BETA), np.ones(ACTION_DIM)]).astype(np.float32)


def main() -> None:
    """Print a row for each dataset and number of runs."""
    parser = argparse.ArgumentParser(description="PRDC's search beside SciPy's k-d tree.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--queries", type=int, default=256, help="of each run")
    given = parser.parse_args()
    prepare_jax()
    print(
        f"{describe_device()}, {memory.num_cores()} cores; jax {jax.__version__}, scipy {scipy.__version__}; "
        f"{given.rows:,} transitions, {given.queries} queries of each run; times are for those of one run"
    )
    print("\n| transitions | runs | here | SciPy | SciPy's over ours | neighbours farther than SciPy's by |")
    print("|---|---|---|---|---|---|")
    for name, draw in (("smooth", smooth), ("random", independent)):
        obs, action = draw(given.rows)
        points = np.concatenate([obs, action], axis=1)
        blocks = with_blocks(dataset_of(obs, action)).blocks
        assert blocks is not None
        tree = KDTree(weights() * points)
        for runs in given.runs:
            here, there, excess = measure(points, tree, blocks, runs, given.queries)
            print(
                f"| {name} | {runs} | {1e3 * here / runs:.3g} ms | {1e3 * there / runs:.3g} ms | {there / here:.2g} | "
                f"{excess:.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
