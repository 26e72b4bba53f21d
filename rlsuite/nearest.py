"""The exact nearest neighbour among all transitions of a dataset, on the device, with one dataset for all runs.

Distances are sqrt(sum_j (w_j (x_j - q_j))^2), with weights of the run: a run scales differences, never the dataset.
They are computed as they stand here, because |x|^2 - 2 x q + |q|^2 would lose their digits for what lies close.

`envs.datasets.with_blocks` has put rows that lie close together into blocks with bounding boxes, once on the host. A
search bounds the distance to every box from below, then looks into the boxes in the order of their bounds, and ends
when the next bound is no less than the distance that it has found. On smooth data it sees a few blocks of thousands.

How many blocks it must see differs between queries. So that none waits for another one, queries are searched one after
another on a CPU, those of all runs of a batch in one loop (`custom_vmap`: a plain `vmap` would make the runs wait).
Accelerators need width, and search `WIDE` at once until the last of them is done. Either way memory is bounded: that
of one query, or of `WIDE`, whatever the number of runs.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from envs.datasets import Blocks

Array = jax.Array

WIDE = 4096
"""queries at once on an accelerator: 64 MB of bounds for a million transitions"""
SLACK = 1e-5
"""what rounding may add to a bound, relative; it has about 1e-7 for each coordinate"""
NEVER = np.int32(np.iinfo(np.int32).max)


def nearest(blocks: Blocks, query: Array, weight: Array, k: int = 1, width: int | None = None) -> Array:
    """The row of the dataset that is the k-th nearest to each query, and of those at the same distance any.

    Args:
        blocks: of the dataset; shared by all runs, so never batched.
        query: `[n, dim]`, taken as float32: an observation and an action side by side, in the units of `Dataset.rows`.
        weight: `[dim]`, for each coordinate.
        k: which of the neighbours: 1 is the nearest one.
        width: queries that are searched side by side; None for what suits the device.

    Returns:
        `[n]` int32. Without meaning where a query is not finite.

    Raises:
        ValueError: k is below 1.
    """
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    if width is None:
        width = 1 if jax.default_backend() == "cpu" else WIDE

    @custom_vmap
    def search(blocks: Blocks, query: Array, weight: Array) -> Array:
        def one(of_query: tuple[Array, Array]) -> Array:
            return _search(blocks, *of_query, k)

        rows: Array = jax.lax.map(one, (query, weight), batch_size=None if width == 1 else width)
        return rows

    @search.def_vmap
    def of_runs(runs: int, batched: Any, blocks: Blocks, query: Array, weight: Array) -> tuple[Array, bool]:
        """All queries of all runs side by side."""
        if any(jax.tree.leaves(batched[0])):
            raise NotImplementedError("a batch of runs shares one dataset")
        query, weight = (
            x if of_run else jnp.broadcast_to(x, (runs, *x.shape))
            for x, of_run in zip((query, weight), batched[1:], strict=True)
        )
        found = search(blocks, *(x.reshape(-1, x.shape[-1]) for x in (query, weight)))
        return found.reshape(query.shape[:-1]), True

    query, weight = query.astype(jnp.float32), weight.astype(jnp.float32)
    rows: Array = search(blocks, query, jnp.broadcast_to(weight, query.shape))
    return rows


def _search(blocks: Blocks, query: Array, weight: Array, k: int) -> Array:
    """`nearest` for one query `[dim]`, with weights of its own: `[]`.

    Squared distances are compared by their bits, which have the order of the numbers, since none is negative: CPUs
    find the least of many integers at once, but not of many floats. The lowest bits of a block's bound are its number,
    so that the least bound comes with its block, no two are equal, and the next one is the least that is larger.
    """
    count, size = blocks.row.shape
    number = np.int32((1 << (count - 1).bit_length()) - 1)
    gaps = [
        jnp.maximum(jnp.maximum(low - x, x - high), 0.0)
        for x, low, high in zip(query, blocks.low, blocks.high, strict=True)
    ]
    bounds = (_bits((1.0 - SLACK) * _sum_of_squares(gaps, weight)) & ~number) | jnp.arange(count, dtype=jnp.int32)
    place = jnp.arange(k + size, dtype=jnp.int32)

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        bound, distances, _ = carry
        return (bound < NEVER) & ((bound & ~number) < distances[-1])

    def look(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        """Into the block of this bound. Kept are the k nearest so far, nearest first: distances, and where they are."""
        bound, distances, where = carry
        block = bound & number
        points = jax.lax.dynamic_index_in_dim(blocks.points, block, keepdims=False)
        differences = [row - x for x, row in zip(query, points, strict=True)]
        left = jnp.concatenate([distances, _bits(_sum_of_squares(differences, weight))])
        kept = []
        for _ in range(k):
            least = jnp.min(left)
            at = jnp.min(jnp.where(left == least, place, NEVER))
            kept.append((least, jnp.where(at < k, where[jnp.minimum(at, k - 1)], block * size + at - k)))
            left = jnp.where(place == at, NEVER, left)
        distances, where = (jnp.stack(column) for column in zip(*kept, strict=True))
        return jnp.min(jnp.where(bounds > bound, bounds, NEVER)), distances, where

    nothing = jnp.full(k, NEVER), jnp.zeros(k, jnp.int32)
    _, _, where = jax.lax.while_loop(unfinished, look, (jnp.min(bounds), *nothing))
    return blocks.row.reshape(-1)[where[-1]]


def _sum_of_squares(differences: list[Array], weight: Array) -> Array:
    """Of `dim` differences `[n]`, with weights `[dim]`: `[n]`.

    Coordinate by coordinate, of which XLA makes one loop over n on a CPU: twice as fast as a sum over an axis.
    """
    total = jnp.zeros_like(differences[0])
    for difference, factor in zip(differences, weight, strict=True):
        total = total + (factor * difference) ** 2
    return total


def _bits(x: Array) -> Array:
    """float32 as int32, in the same order where nothing is negative."""
    return jax.lax.bitcast_convert_type(x, jnp.int32)
