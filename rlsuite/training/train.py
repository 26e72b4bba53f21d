"""The only training loop: segments of updates between evaluations.

The first half is ONE run, as pure functions of a seed; `batch.py` compiles them for many runs. The second half
is the loop on the host, which sees the runs only between two segments.

Keys: everything random in a run comes from `fold_in(fold_in(key(seed), stream), index)`. The streams are separate and
the indices are the loop's own update counter, so evaluating more often, or next to other runs, changes no parameter.
Metrics are summed in the carry, so that where the host cuts a segment into pieces changes no digit of them either.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlsuite.core import Algorithm, Clock, Metrics, State, Task
from rlsuite.pieces.replay import Replay
from rlsuite.pieces.rollout import EnvCarry
from rlsuite.training.evaluate import Episodes, evaluate, over_finite

Array = jax.Array

INIT_STREAM, UPDATE_STREAM, EVALUATION_STREAM, REPORT_STREAM = 0, 1, 2, 3

PIECE_SECONDS = 2.0
"""How long a call of the compiled segment should take: how soon a signal is heard and progress is seen."""


def stream_key(seed: Array, stream: int, index: Array | int) -> Array:
    """The key of the `index`-th use of a stream of the run with this seed (`[]` uint32)."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), index)


class Learning(NamedTuple):
    """What one run carries through its segments."""

    state: State
    """the algorithm's own"""
    sums: Metrics
    """every metric, summed over the updates since the last evaluation"""


def init(algorithm: Algorithm, task: Task, seed: Array, hypers: Any) -> Learning:
    """One run before its first update."""
    state = algorithm.init(stream_key(seed, INIT_STREAM, 0), task, hypers)
    clock = Clock(jnp.int32(0), jnp.float32(0))
    metrics = jax.eval_shape(algorithm.update, stream_key(seed, UPDATE_STREAM, 0), task, state, hypers, clock)[1]
    return Learning(state, jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), metrics))


def segment(
    algorithm: Algorithm,
    task: Task,
    learning: Learning,
    seed: Array,
    hypers: Any,
    start: Array,
    stop: Array,
    total: Array,
    evaluated: Array,
) -> Learning:
    """The updates start, ..., stop - 1 of one run, out of `total` in its budget; the last evaluation was after
    `evaluated` updates (all `[]` int32, not batched)."""

    def body(index: Array, learning: Learning) -> Learning:
        clock = Clock(index, index.astype(jnp.float32) / total.astype(jnp.float32))
        state, metrics = algorithm.update(stream_key(seed, UPDATE_STREAM, index), task, learning.state, hypers, clock)
        return Learning(state, jax.tree.map(jnp.add, learning.sums, metrics))

    sums = jax.tree.map(lambda s: jnp.where(start == evaluated, jnp.zeros_like(s), s), learning.sums)
    return jax.lax.fori_loop(start, stop, body, Learning(learning.state, sums))


PARTS = ("parameters", "buffer", "environments", "metrics")
"""What `nonfinite` tells apart: the learner's own state, its replay buffer, the environments that it trains on (their
states and observations), and its metrics since the last evaluation."""
OF_EPISODES = ("observations", "rewards")
"""What may be non-finite in the episodes of an evaluation alone, which harms no run."""
DIVERGED = 2 ** len(PARTS) - 1
"""The bits of `PARTS` in `Evaluation.nonfinite`; those of `OF_EPISODES` come after them."""


def nonfinite(learning: Learning) -> Array:
    """`[]` uint8: bit i is set if a number in `PARTS[i]` of a run is NaN or infinite.

    THE definition of divergence: a run has diverged once a bit is set. All that says so reads it from here, by way of
    `Evaluation.diverged` and the store's column.
    """
    found: dict[str, list[Array]] = {part: [jnp.asarray(True)] for part in PARTS}
    found["metrics"] += finite_leaves(learning.sums)
    for part in jax.tree.leaves(learning.state, is_leaf=lambda node: isinstance(node, Replay | EnvCarry)):
        of = "buffer" if isinstance(part, Replay) else "environments" if isinstance(part, EnvCarry) else "parameters"
        found[of] += finite_leaves(part)
    bits = [~jnp.all(jnp.stack(finite)) * jnp.uint8(1 << i) for i, finite in enumerate(found.values())]
    return jnp.sum(jnp.stack(bits), dtype=jnp.uint8)


def finite_leaves(tree: Any) -> list[Array]:
    """`[]` bool for each leaf of floats: whether all of them are finite."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return [jnp.all(jnp.isfinite(x)) for x in floats]


def is_finite(learning: Learning) -> Array:
    """`[]` bool: the run has not diverged, see `nonfinite`."""
    return nonfinite(learning) == 0


def nonfinite_names(bits: int) -> str | None:
    """Those of `PARTS` and `OF_EPISODES` whose bit is set, such as `parameters, metrics`; None if none is."""
    return ", ".join(name for i, name in enumerate((*PARTS, *OF_EPISODES)) if bits >> i & 1) or None


def health(
    algorithm: Algorithm, task: Task, learning: Learning, seed: Array, hypers: Any, index: Array, updates: Array
) -> tuple[Metrics, Array]:
    """Of one run: the mean of its metrics over the `updates` `[]` since the last evaluation with what the algorithm
    reports after `index` updates, and `nonfinite`."""
    metrics = jax.tree.map(lambda total: total / jnp.maximum(updates, 1), learning.sums)
    if algorithm.report:
        metrics |= algorithm.report(stream_key(seed, REPORT_STREAM, index), task, learning.state, hypers)
    return metrics, nonfinite(learning)


class Checkup(NamedTuple):
    """What an evaluation learns of one run."""

    episodes: Episodes
    metrics: Metrics
    """mean over the updates since the last evaluation, and what the algorithm reports"""
    nonfinite: Array
    """`[]` uint8, see the function of this name"""


def checkup(
    algorithm: Algorithm,
    task: Task,
    learning: Learning,
    seed: Array,
    hypers: Any,
    index: Array,
    updates: Array,
    frozen: Array,
    num_episodes: int,
) -> Checkup:
    """Complete episodes and health of one run after `index` updates, `updates` of them since the last evaluation.

    A run that is `frozen` `[]` bool plays no episodes.
    """
    key = stream_key(seed, EVALUATION_STREAM, index)
    episodes = evaluate(key, algorithm, task, learning.state, num_episodes, frozen)
    return Checkup(episodes, *health(algorithm, task, learning, seed, hypers, index, updates))


class Programs(NamedTuple):
    """The three functions above, compiled for `width` runs at once (leading axis `[width]`)."""

    width: int
    runs: Callable[[Any, Any], Any]
    """(seeds, hypers), one of each per run, at most `width` -> the runs on their devices, padded to `width`"""
    init: Callable[[Any], Learning]
    """runs -> learning"""
    segment: Callable[[Any, Learning, int, int, int, int], Learning]
    """(runs, learning, start, stop, total, evaluated) -> learning; the learning given is consumed"""
    checkup: Callable[[Any, Learning, int, int, np.ndarray], Checkup]
    """(runs, learning, index, updates, frozen `[width]`) -> checkup"""
    place: Callable[[Any], Learning]
    """learning in host memory -> the same on the devices"""
    steps_per_update: int


class Evaluation(NamedTuple):
    """What the host learns at one evaluation; arrays are NumPy with leading axis `[runs]`."""

    update: int
    """updates done"""
    step: int
    """environment steps done in each run"""
    wall_seconds: float
    """training and evaluating these runs since their first update began, without compiling"""
    returns: np.ndarray
    """`[runs, num_episodes]`"""
    lengths: np.ndarray
    """`[runs, num_episodes]`"""
    metrics: dict[str, np.ndarray]
    """name -> `[runs]`: mean over the updates since the last evaluation, or reported now. Empty before any update"""
    diverged: np.ndarray
    """`[runs]` bool: something in `PARTS` of the run is non-finite now or was earlier. From then on it is frozen: its
    returns, lengths and metrics repeat those of its last evaluation before"""
    nonfinite: np.ndarray
    """`[runs]` uint8: bits of `PARTS` and `OF_EPISODES` that are non-finite now; once the run has diverged, those of
    `PARTS` that were when that was first seen, since all that follows is their doing"""

    @property
    def mean_returns(self) -> np.ndarray:
        """`[runs]` mean return of the episodes that are finite; NaN where none is."""
        return over_finite(np.nanmean, self.returns)

    @property
    def nonfinite_episodes(self) -> np.ndarray:
        """`[runs]` episodes whose return is not finite, which `mean_returns` leaves out. None of a run that has
        diverged: what it shows has been counted."""
        return np.where(self.diverged, 0, np.sum(~np.isfinite(self.returns), axis=1))


class Training(NamedTuple):
    """All that some runs need to go on, in this process or in another one."""

    learning: Learning
    """`[width]`, on the devices; consumed when training goes on"""
    update: int
    """updates done"""
    evaluation: Evaluation
    """the last one; whatever lies at or before `update` has been evaluated"""
    step: int
    """environment steps done in each run"""
    seconds: float
    """training and evaluating so far"""


class Pause(NamedTuple):
    """What the host sees between two calls of compiled programs."""

    training: Training
    evaluated: bool
    """whether `training.evaluation` is new"""


def evaluation_points(total_updates: int, num_evaluations: int) -> list[int]:
    """Update counts at which to evaluate: 0, then `num_evaluations` as evenly as can be, the last at the end."""
    num_evaluations = min(num_evaluations, total_updates)  # more than one at each update there are not
    return sorted({round(i * total_updates / num_evaluations) for i in range(num_evaluations + 1)})


def train(
    programs: Programs,
    seeds: Any,
    hypers: Any,
    total_updates: int,
    points: Sequence[int],
    resumed: Training | None = None,
) -> Iterator[Pause]:
    """Train these runs (one of `seeds` and `hypers` for each, at most `programs.width`), from `resumed` if given.

    `points` are the update counts at which to evaluate, see `evaluation_points`. Pauses after every evaluation and
    every few seconds in between.
    """
    runs = programs.runs(seeds, hypers)
    began = time.perf_counter() - (resumed.seconds if resumed else 0.0)

    def evaluate_all(learning: Learning, update: int, last: Evaluation | None) -> Evaluation:
        frozen = np.ones(programs.width, bool)  # the padding stays so and plays nothing
        frozen[: len(seeds)] = False if last is None else last.diverged
        checked = programs.checkup(runs, learning, update, update - last.update if last else 0, frozen)
        episodes, metrics, bits = jax.tree.map(lambda x: np.asarray(x)[: len(seeds)], checked)
        found = bits != 0
        evaluation = Evaluation(
            update=update,
            step=update * programs.steps_per_update,
            wall_seconds=time.perf_counter() - began,
            returns=episodes.returns,
            lengths=episodes.lengths,
            metrics=metrics if update else {},
            diverged=found if last is None else found | last.diverged,
            nonfinite=np.where(found, bits, bits_of_episodes(episodes)),
        )
        return evaluation if last is None else freeze(evaluation, last)

    if resumed is None:
        learning = jax.block_until_ready(programs.init(runs))
        began = time.perf_counter()
        update, evaluation = 0, evaluate_all(learning, 0, None)
        yield Pause(Training(learning, 0, evaluation, 0, time.perf_counter() - began), True)
    else:
        learning, update, evaluation = programs.place(resumed.learning), resumed.update, resumed.evaluation
        resumed = None  # a replay buffer need not stay in host memory

    count = 1
    for point in points:
        while update < point:
            stop = min(update + count, point)
            piece_began = time.perf_counter()
            learning = programs.segment(runs, learning, update, stop, total_updates, evaluation.update)
            jax.block_until_ready(learning)
            seconds = time.perf_counter() - piece_began
            count = max(1, min(4 * count, int((stop - update) * PIECE_SECONDS / seconds)))
            update = stop
            evaluated = update == point
            if evaluated:
                evaluation = evaluate_all(learning, update, evaluation)
            step = update * programs.steps_per_update
            yield Pause(Training(learning, update, evaluation, step, time.perf_counter() - began), evaluated)


def bits_of_episodes(episodes: Episodes) -> np.ndarray:
    """`[runs]` uint8: the bits of `OF_EPISODES`, of `[runs, num_episodes]`.

    A return that is not finite although all observations were is due to a reward. Where an observation was not, what
    the policy did then, and what it got for it, is no reward's fault.
    """
    lost = ~np.isfinite(episodes.returns)
    unseen, unpaid = (~episodes.seen).any(axis=1), (lost & episodes.seen).any(axis=1)
    return ((unseen + 2 * unpaid) * (DIVERGED + 1)).astype(np.uint8)


def freeze(evaluation: Evaluation, last: Evaluation) -> Evaluation:
    """The evaluation, with what diverged runs show replaced by what they showed last."""

    def keep(new: np.ndarray, old: np.ndarray) -> np.ndarray:
        return np.where(evaluation.diverged.reshape(-1, *[1] * (new.ndim - 1)), old, new)

    no_metric = np.full(len(evaluation.diverged), np.nan, np.float32)
    return evaluation._replace(
        returns=keep(evaluation.returns, last.returns),
        lengths=keep(evaluation.lengths, last.lengths),
        metrics={name: keep(new, last.metrics.get(name, no_metric)) for name, new in evaluation.metrics.items()},
        nonfinite=np.where(last.diverged, last.nonfinite, evaluation.nonfinite),
    )
