"""The only training loop: segments of updates between evaluations.

The first half is ONE run, as pure functions of a seed; `rlsuite/batch.py` compiles them for many runs. The second half
is the loop on the host, which sees the runs only between two segments.

Keys: everything random in a run comes from `fold_in(fold_in(key(seed), stream), index)`. The streams are separate and
the indices are the loop's own update counter, so evaluating more often, or beside other runs, changes no parameter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlsuite.core import Algorithm, Clock, Metrics, State, Task
from rlsuite.evaluate import Episodes, evaluate

Array = jax.Array

INIT_STREAM, UPDATE_STREAM, EVALUATION_STREAM = 0, 1, 2


def stream_key(seed: Array, stream: int, index: Array | int) -> Array:
    """The key of the `index`-th use of a stream of the run with this seed (`[]` uint32)."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), index)


def init(algorithm: Algorithm, task: Task, seed: Array, hypers: Any) -> State:
    """The state of one run before its first update."""
    return algorithm.init(stream_key(seed, INIT_STREAM, 0), task, hypers)


def segment(
    algorithm: Algorithm, task: Task, state: State, seed: Array, hypers: Any, start: Array, stop: Array, total: Array
) -> tuple[State, Metrics, Array]:
    """The updates start, ..., stop - 1 of one run, out of `total` in its budget (all `[]` int32, not batched).

    Returns the state, the mean of every metric over these updates, and whether the run is still finite `[]` bool: false
    once a metric of any update or a number in the state is NaN or infinite.
    """

    def body(index: Array, carry: tuple[State, Metrics]) -> tuple[State, Metrics]:
        state, sums = carry
        clock = Clock(index, index.astype(jnp.float32) / total.astype(jnp.float32))
        state, metrics = algorithm.update(stream_key(seed, UPDATE_STREAM, index), task, state, hypers, clock)
        return state, jax.tree.map(jnp.add, sums, metrics)

    shapes = jax.eval_shape(algorithm.update, jax.random.key(0), task, state, hypers, Clock(start, jnp.float32(0)))[1]
    zeros = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), shapes)
    state, sums = jax.lax.fori_loop(start, stop, body, (state, zeros))
    metrics = jax.tree.map(lambda s: s / (stop - start), sums)
    floats = [x for x in jax.tree.leaves((state, metrics)) if jnp.issubdtype(x.dtype, jnp.floating)]
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats]))
    return state, metrics, finite


def evaluation(
    algorithm: Algorithm, task: Task, state: State, seed: Array, index: Array, num_episodes: int
) -> Episodes:
    """Complete episodes of one run after `index` updates."""
    return evaluate(stream_key(seed, EVALUATION_STREAM, index), algorithm, task, state, num_episodes)


class Programs(NamedTuple):
    """The three functions above, compiled for all runs of a batch at once (leading axis `[runs]`)."""

    init: Callable[[], State]
    segment: Callable[[State, int, int, int], tuple[State, Metrics, Array]]
    """(state, start, stop, total) -> (state, metrics, finite); the state given is consumed"""
    evaluate: Callable[[State, int], Episodes]
    steps_per_update: int


class Evaluation(NamedTuple):
    """What the host learns at one evaluation; arrays are NumPy with leading axis `[runs]`."""

    update: int
    """updates done"""
    step: int
    """environment steps done in each run"""
    wall_seconds: float
    """training and evaluating since the first update began, without compiling"""
    returns: np.ndarray
    """`[runs, num_episodes]`"""
    lengths: np.ndarray
    """`[runs, num_episodes]`"""
    metrics: dict[str, np.ndarray]
    """name -> `[runs]`, mean over the updates since the last evaluation; NaN before the first update"""
    diverged: np.ndarray
    """`[runs]` bool: the run became non-finite now or earlier"""


def evaluation_points(total_updates: int, num_evaluations: int) -> list[int]:
    """Update counts at which to evaluate: 0, then `num_evaluations` as evenly as can be, the last at the end."""
    return sorted({round(i * total_updates / num_evaluations) for i in range(num_evaluations + 1)})


def train(programs: Programs, total_updates: int, num_evaluations: int) -> Iterator[Evaluation]:
    """Train all runs of the batch; yield the untrained policies' evaluation, then one after each segment."""
    state = programs.init()
    jax.block_until_ready(state)
    began = time.perf_counter()
    metrics: Metrics | None = None
    diverged: np.ndarray | None = None
    done = 0
    for point in evaluation_points(total_updates, num_evaluations):
        if point > done:
            state, metrics, finite = programs.segment(state, done, point, total_updates)
            diverged = ~np.asarray(finite) | (False if diverged is None else diverged)
            done = point
        episodes = programs.evaluate(state, done)
        returns = np.asarray(episodes.returns)
        yield Evaluation(
            update=done,
            step=done * programs.steps_per_update,
            wall_seconds=time.perf_counter() - began,
            returns=returns,
            lengths=np.asarray(episodes.lengths),
            metrics={} if metrics is None else {name: np.asarray(m) for name, m in metrics.items()},
            diverged=np.zeros(len(returns), bool) if diverged is None else diverged,
        )
