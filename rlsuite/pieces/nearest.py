"""The exact nearest neighbour among all transitions of a dataset, on the device, with one dataset for all runs.

Distances are sqrt(sum_j (w_j (x_j - q_j))^2), with weights of the run: a run scales differences, never the dataset.
They are computed as they stand here, because |x|^2 - 2 x q + |q|^2 would lose digits for close neighbours.

`envs.datasets.with_blocks` has put rows that lie close together into blocks, and blocks into groups, each with a
bounding box, once on the host. A search bounds the distance to the box of every group from below and opens groups in
the order of their bounds; in an open group it does the same with the blocks. It ends when the next bound is at least
the distance that it has found. On smooth data it sees a few blocks of thousands.

The number of blocks that a search opens differs between queries. On a CPU queries are therefore searched one after
another, those of all runs of a batch in one loop (`custom_vmap`: a plain `vmap` would make the runs wait for each
other). An accelerator works on many queries in parallel, so it searches `WIDE` at once until the last of them is done.
Either way memory is bounded: that of one query, or of `WIDE`, whatever the number of runs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from envs.datasets import Blocks

Array = jax.Array

WIDE = 4096
"""queries at once on an accelerator"""
SLACK = 1e-5
"""relative margin for the rounding of a bound, which is about 1e-7 for each coordinate"""
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
        def one(query_and_weight: tuple[Array, Array]) -> Array:
            return _search(blocks, *query_and_weight, k)

        rows: Array = jax.lax.map(one, (query, weight), batch_size=None if width == 1 else width)
        return rows

    @search.def_vmap
    def search_all_runs(runs: int, batched: Any, blocks: Blocks, query: Array, weight: Array) -> tuple[Array, bool]:
        """All queries of all runs side by side."""
        if any(jax.tree.leaves(batched[0])):
            raise NotImplementedError("a batch of runs shares one dataset")
        query, weight = (
            x if is_batched else jnp.broadcast_to(x, (runs, *x.shape))
            for x, is_batched in zip((query, weight), batched[1:], strict=True)
        )
        found = search(blocks, *(x.reshape(-1, x.shape[-1]) for x in (query, weight)))
        return found.reshape(query.shape[:-1]), True

    query, weight = query.astype(jnp.float32), weight.astype(jnp.float32)
    rows: Array = search(blocks, query, jnp.broadcast_to(weight, query.shape))
    return rows


class _Search(NamedTuple):
    """The state of the search for one query. Keys are those of `_keys`, `NEVER` where none is left."""

    group: Array
    """`[]` key of the next group"""
    block: Array
    """`[]` key of the next block in the open group"""
    opened: Array
    """`[]` number of the open group"""
    blocks: Array
    """`[blocks of a group]` keys of its blocks"""
    distances: Array
    """`[k]` bits of the squared distances of the nearest rows so far, nearest first"""
    where: Array
    """`[k]` where they are"""


def _search(blocks: Blocks, query: Array, weight: Array, k: int) -> Array:
    """`nearest` for one query `[dim]`, with weights of its own: `[]`.

    Squared distances are compared by their bits, which have the order of the numbers, since none is negative: CPUs
    find the least of many integers at once, but not of many floats.
    """
    _, groups, members = blocks.low.shape
    size = blocks.row.shape[1]
    place = jnp.arange(k + size, dtype=jnp.int32)
    group_keys = _keys(query, weight, blocks.group_low, blocks.group_high)

    def may_hold(key: Array, count: int, distances: Array) -> Array:
        """Whether the box with this key, one of `count`, may hold a row that is nearer than the known ones."""
        return (key < NEVER) & ((key & ~_numbers(count)) < distances[-1])

    def block_next(search: _Search) -> Array:
        return may_hold(search.block, members, search.distances)

    def unfinished(search: _Search) -> Array:
        return block_next(search) | may_hold(search.group, groups, search.distances)

    def open_group(search: _Search) -> _Search:
        opened = search.group & _numbers(groups)
        low, high = (jax.lax.dynamic_index_in_dim(x, opened, 1, keepdims=False) for x in (blocks.low, blocks.high))
        keys = _keys(query, weight, low, high)
        return search._replace(group=_after(group_keys, search.group), block=jnp.min(keys), opened=opened, blocks=keys)

    def look(search: _Search) -> _Search:
        """Into the next block, and keep the k nearest of its rows and of those that were kept before."""
        block = search.opened * members + (search.block & _numbers(members))
        points = jax.lax.dynamic_index_in_dim(blocks.points, block, keepdims=False)
        differences = [row - x for x, row in zip(query, points, strict=True)]
        left = jnp.concatenate([search.distances, _bits(_sum_of_squares(differences, weight))])
        kept = []
        for _ in range(k):
            least = jnp.min(left)
            at = jnp.min(jnp.where(left == least, place, NEVER))
            kept.append((least, jnp.where(at < k, search.where[jnp.minimum(at, k - 1)], block * size + at - k)))
            left = jnp.where(place == at, NEVER, left)
        distances, where = (jnp.stack(column) for column in zip(*kept, strict=True))
        return search._replace(block=_after(search.blocks, search.block), distances=distances, where=where)

    start = _Search(
        group=jnp.min(group_keys),
        block=jnp.int32(NEVER),
        opened=jnp.int32(0),
        blocks=jnp.full(members, NEVER),
        distances=jnp.full(k, NEVER),
        where=jnp.zeros(k, jnp.int32),
    )
    found = jax.lax.while_loop(
        unfinished, lambda search: jax.lax.cond(block_next(search), look, open_group, search), start
    )
    return blocks.row.reshape(-1)[found.where[-1]]


def _keys(query: Array, weight: Array, low: Array, high: Array) -> Array:
    """Keys `[n]` int32 of boxes `[dim, n]`: the bits of a lower bound of their squared distance.

    The lowest bits are a box's number, so that the least key comes with its box, no two are equal, and the next one is
    the least that is larger.
    """
    gaps = [
        jnp.maximum(jnp.maximum(box_low - x, x - box_high), 0.0)
        for x, box_low, box_high in zip(query, low, high, strict=True)
    ]
    count = low.shape[1]
    bits = _bits((1.0 - SLACK) * _sum_of_squares(gaps, weight))
    return (bits & ~_numbers(count)) | jnp.arange(count, dtype=jnp.int32)


def _numbers(count: int) -> np.int32:
    """The bits that hold the number of one of `count` boxes."""
    return np.int32((1 << (count - 1).bit_length()) - 1)


def _after(keys: Array, key: Array) -> Array:
    """The next of the keys, `NEVER` after the last."""
    return jnp.min(jnp.where(keys > key, keys, NEVER))


def _sum_of_squares(differences: list[Array], weight: Array) -> Array:
    """Weighted sum of the squares of `dim` differences `[n]`, with weights `[dim]`: `[n]`.

    Coordinate by coordinate, of which XLA makes one loop over n on a CPU: twice as fast as a sum over an axis.
    """
    total = jnp.zeros_like(differences[0])
    for difference, factor in zip(differences, weight, strict=True):
        total = total + (factor * difference) ** 2
    return total


def _bits(x: Array) -> Array:
    """float32 as int32, in the same order where nothing is negative."""
    return jax.lax.bitcast_convert_type(x, jnp.int32)
