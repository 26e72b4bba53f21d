"""Stratified bootstrap intervals, seeded and vectorised.

The estimators follow Agarwal et al. (2021), "Deep Reinforcement Learning at the Edge of the Statistical Precipice", and
their point values equal those of `rliable.metrics`. The bootstrap is our own: rliable 1.2.0 ignores the random state
that it is given, and takes minutes at thousands of runs.

What makes it fast: a resample is described by how often each run was drawn, its *counts*. Scores are sorted once, not
once a resample, and every statistic is a function of the scores that gives one of the counts. Where a task has many
runs, counts are drawn as such, a 16-bit number each, instead of being counted from draws; blocks of resamples are drawn
and evaluated in threads. One stratum is one task: runs are drawn with replacement within each task, never across tasks.

Tasks may have different numbers of runs. Every task then weighs the same; with equal numbers this is rliable's value.
"""

from __future__ import annotations

import functools
import math
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeAlias, overload

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from analysis import win_rate

Array: TypeAlias = NDArray[np.float64]
Tasks: TypeAlias = Sequence[Array]
"""One array `[runs_of_that_task]` of scores for each task."""
Counts: TypeAlias = Sequence[NDArray[np.uint8] | NDArray[np.int32]]
"""One array `[block, runs_of_that_task]` for each task: how often each run occurs in each resample of a block."""
Statistic: TypeAlias = Callable[[Tasks], Callable[[Counts], Array]]
"""tasks -> counts -> `[block]`: the statistic of every resample in the block. What depends on the scores alone is done
once."""

BLOCK_ELEMENTS = 1 << 21
"""A block of resamples holds at most this many counts (one resample, if that is more), of up to 8 bytes with a few
copies in each thread: it bounds the memory. Smaller blocks cost more calls; another number gives other resamples."""
SLICE_ELEMENTS = 1 << 17
"""The IQM, which puts all tasks side by side, looks at so many counts of a block at a time: arrays as large as a block,
the system takes back and gives anew each time. Statistics that go task by task would only be slowed down. The number
changes no result."""
MANY_RUNS = 256
"""From here on counts are drawn as such."""
FEWEST_RUNS = 5
"""Runs on every task that an interval needs. From five on, 95 % intervals of an IQM and of the difference of two hold
the truth in 93 % or more on the distributions of docs/statistics.md, but for an IQM where three runs of ten fail: there
five or six runs are too often all of one kind."""
FEWEST_TO_COMPARE = 3
"""Runs of each label on every task that a score interval of P(X > Y) needs. From three on it holds the truth in 91 % or
more there; with two it holds nearly every value."""
FEWEST_FOR_A_MEAN = 20
"""Runs on all tasks together that a statistic needs which is made of means, and lets the tails in: there, the interval
of a mean holds the truth in 92 % or more. Tails cancel in a difference, which needs no more than that of IQMs."""
FEWEST_FOR_PERCENTILES = 8
"""Runs of each label on every task that percentiles of P(X > Y) need."""
METHODS = ("expanded", "percentile")
"""Of intervals from resamples, see `interval`."""
FEW_RUNS, NO_SPREAD = "few runs", "no spread"
"""Why there is no interval, see `why_no_interval`."""
NO_WIDTH = 1e-12
"""What rounding may make of an interval without width, as a share of the largest score."""


class Interval(NamedTuple):
    """A point estimate and its interval.

    The bounds are NaN where they would be no interval: a task has fewer than `FEWEST_RUNS` runs (of P(X > Y) a label
    fewer than `FEWEST_TO_COMPARE`), all tasks together fewer than `FEWEST_FOR_A_MEAN` where the statistic is no IQM and
    no P(X > Y), or all resamples give the same, as those of runs that all score alike do, which is not certainty.
    `why_no_interval` says which.
    """

    estimate: float
    low: float
    high: float


class CurveInterval(NamedTuple):
    """`Interval` at every point of a curve: arrays `[points]`, with NaN where there is no interval.

    Each pointwise interval holds its own point of the true curve with the stated confidence; at some point or other the
    true curve will often lie outside. The simultaneous band holds the whole curve with that confidence. Read
    a single point off the first, and the shape of the curve off the second.
    """

    estimate: Array
    low: Array
    """pointwise"""
    high: Array
    simultaneous_low: Array
    """of the band, nowhere inside the pointwise interval"""
    simultaneous_high: Array


def why_no_interval(found: Interval, sizes: Sequence[int], statistic: Statistic | None = None) -> str:
    """`FEW_RUNS` or `NO_SPREAD` where an estimate has no interval, else an empty text.

    Args:
        found: from `interval`, `curve` at a point, or `improvement`.
        sizes: runs of each task, of both labels where two are compared.
        statistic: whose estimate it is; None for `improvement`.
    """
    if math.isfinite(found.low) or not math.isfinite(found.estimate):
        return ""
    return NO_SPREAD if _enough(sizes, statistic) else FEW_RUNS


def _enough(sizes: Sequence[int], statistic: Statistic | None) -> bool:
    """Whether an interval of so many runs on each task holds about as often as it says."""
    if statistic is None:
        return min(sizes) >= FEWEST_TO_COMPARE
    return min(sizes) >= FEWEST_RUNS and (statistic is iqm or sum(sizes) >= FEWEST_FOR_A_MEAN)


def from_function(function: Callable[[Array], float]) -> Statistic:
    """A statistic from a plain function of the scores of a task's runs: `[runs]` -> number, averaged over tasks.

    `interval(scores, from_function(np.max))` is the mean over tasks of the best run. The function is called once a task
    and resample.
    """

    def statistic(tasks: Tasks) -> Callable[[Counts], Array]:
        def from_counts(counts: Counts) -> Array:
            pairs = zip(tasks, counts, strict=True)
            return np.mean([[float(function(np.repeat(task, row))) for row in c] for task, c in pairs], axis=0)

        return from_counts

    return statistic


def mean(tasks: Tasks) -> Callable[[Counts], Array]:
    """The mean over tasks of the mean over runs."""
    return lambda counts: _task_means(tasks, counts).mean(axis=1)


def median(tasks: Tasks) -> Callable[[Counts], Array]:
    """The median over tasks of the mean over runs."""

    def from_counts(counts: Counts) -> Array:
        median_over_tasks: Array = np.median(_task_means(tasks, counts), axis=1)
        return median_over_tasks

    return from_counts


def iqm(tasks: Tasks) -> Callable[[Counts], Array]:
    """The interquartile mean: the mean of the middle half of all runs of all tasks.

    Like `rliable.metrics.aggregate_iqm` it cuts whole runs, a quarter of their number rounded down, from each end.
    """
    pooled = np.concatenate(tasks)
    order = np.argsort(pooled, kind="stable")
    ascending = pooled[order]
    gaps = np.diff(ascending, append=ascending[-1])
    total = pooled.size
    cut = total // 4
    # A run's weight makes its task weigh total/len(tasks) altogether.
    weights = np.concatenate([np.full(scores.size, total / (len(tasks) * scores.size)) for scores in tasks])[order]
    equal = len({scores.size for scores in tasks}) == 1

    def slice_iqm(counts: Counts) -> Array:
        drawn = np.concatenate(counts, axis=1).take(order, axis=1)
        edges = np.cumsum(drawn, axis=1, dtype=np.int32) if equal else np.cumsum(drawn * weights, axis=1)
        np.clip(edges, cut, total - cut, out=edges)
        # The sum of the kept weights times the scores, summed by parts.
        kept = ascending[-1] * (total - cut) - ascending[0] * cut - _weighted_sum(edges, gaps)
        return kept / (total - 2 * cut)

    def from_counts(counts: Counts) -> Array:
        few = max(1, SLICE_ELEMENTS // total)
        firsts = range(0, len(counts[0]), few)
        return np.concatenate([slice_iqm([task_counts[i : i + few] for task_counts in counts]) for i in firsts])

    return from_counts


def optimality_gap(tasks: Tasks) -> Callable[[Counts], Array]:
    """How far normalised scores fall short of 1 on average; what lies above 1 does not make up for it."""
    capped_mean = mean([np.minimum(scores, 1.0) for scores in tasks])
    return lambda counts: 1.0 - capped_mean(counts)


def estimate(scores: Array | Tasks, statistic: Statistic) -> float:
    """The point estimate: the statistic of the scores themselves.

    Args:
        scores: `[runs, tasks]`, or one array `[runs]` a task.
        statistic: one of the functions above.

    Raises:
        ValueError: no task, a task without runs, or a score that is not finite.
    """
    tasks = _as_tasks(scores)
    return float(_counts_function(statistic, tasks)(_once(tasks))[0])


@overload
def interval(
    scores: Mapping[str, Array] | Mapping[str, Tasks],
    statistic: Statistic,
    *,
    repetitions: int = ...,
    seed: int = ...,
    confidence: float = ...,
    method: str = ...,
    withhold: bool = ...,
) -> dict[str, Interval]: ...
@overload
def interval(
    scores: Array | Tasks,
    statistic: Statistic,
    *,
    repetitions: int = ...,
    seed: int = ...,
    confidence: float = ...,
    name: str = ...,
    method: str = ...,
    withhold: bool = ...,
) -> Interval: ...
def interval(
    scores: Mapping[str, Array] | Mapping[str, Tasks] | Array | Tasks,
    statistic: Statistic,
    *,
    repetitions: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
    name: str = "",
    method: str = "expanded",
    withhold: bool = True,
) -> Interval | dict[str, Interval]:
    """Interval of a statistic by the stratified bootstrap over runs.

    Args:
        scores: `[runs, tasks]`, or one array `[runs]` a task where tasks have different numbers of runs; or a dict of
            either by label (rliable's convention), which gives a dict of intervals.
        statistic: `mean`, `median`, `iqm`, `optimality_gap`, `from_function` of a plain function, or any other
            `Statistic`.
        repetitions: number of resamples.
        seed: of the resampling; the result depends on it, on `name` and on the scores, and on nothing else.
        confidence: share of the resamples inside the interval.
        name: sets of scores with different names are resampled independently. In a dict the labels are the names, so
            a label's interval does not depend on which others are there.
        method: `percentile` takes the percentiles of the resamples, as rliable does. They lie too close together where
            runs are few: a resample of n runs varies as if its variance were divided by n and not by n - 1, and
            percentiles know no Student's t. `expanded` goes as far out as makes up for both (Hesterberg 2015, The
            American Statistician 69, 371-386).
        withhold: no bounds where they would be no interval, see `Interval`. False gives the percentiles all the same,
            for their spread, or to ask how often they hold the truth.

    Raises:
        ValueError: no task, a task without runs, a score that is not finite, `repetitions` < 1, `seed` < 0,
            `confidence` not in (0, 1), another method, or a statistic that is no `Statistic`.
    """
    if isinstance(scores, Mapping):
        settings: dict[str, Any] = {"repetitions": repetitions, "seed": seed, "confidence": confidence}
        settings |= {"method": method, "withhold": withhold}
        return {k: interval(v, statistic, **settings, name=k) for k, v in scores.items()}
    tasks = _as_tasks(scores)
    sizes = [task.size for task in tasks]
    resampled = _resample(_counts_function(statistic, tasks), sizes, repetitions, seed, name)
    tail = _tail(confidence, sizes, method)
    low, high = _bounds(resampled, tasks, tail, withhold, _enough(sizes, statistic))
    return Interval(estimate(tasks, statistic), float(low), float(high))


def curve(
    tasks: Sequence[Array],
    statistic: Statistic,
    *,
    repetitions: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
    name: str = "",
    method: str = "expanded",
) -> CurveInterval:
    """`interval` at every point of a curve; whole runs are resampled, so neighbouring points share their resamples.

    Args:
        tasks: one array `[runs, points]` a task, all with the same number of points.
        statistic, repetitions, seed, confidence, name, method: as in `interval`.

    Returns:
        Pointwise intervals, and a simultaneous band of constant width in bootstrap standard errors: as many of them as
        the farthest point of a resampled curve stays within in `confidence` of the resamples (the sup-t band of Montiel
        Olea and Plagborg-Møller, 2019), expanded as the pointwise ones are.

    Raises:
        ValueError: as `interval`, or tasks with different numbers of points.
    """
    if len({task.shape[1] for task in tasks}) > 1:
        raise ValueError(f"the tasks have {[t.shape[1] for t in tasks]} points, expected equal numbers; interpolate")
    points = [_as_tasks([task[:, point] for task in tasks]) for point in range(tasks[0].shape[1])]
    sizes = [task.shape[0] for task in tasks]
    at_points = [_counts_function(statistic, point) for point in points]
    resampled = _resample(
        lambda counts: np.stack([at_point(counts) for at_point in at_points], axis=1), sizes, repetitions, seed, name
    )
    tail = _tail(confidence, sizes, method)
    low, high = _bounds(resampled, tasks, tail, True, _enough(sizes, statistic))
    estimates = np.array([estimate(point, statistic) for point in points])
    # Where all runs score the same there is no interval; nothing strays there, and rounding is no spread.
    spread = np.where(np.isfinite(low), resampled.std(axis=0), 0.0)
    strayed = np.where(spread > 0, np.abs(resampled - estimates) / np.where(spread > 0, spread, 1.0), 0.0)
    expansion = scipy.stats.norm.ppf(tail) / scipy.stats.norm.ppf((1 - confidence) / 2)
    reach = np.quantile(strayed.max(axis=1), confidence) * expansion * spread
    return CurveInterval(estimates, low, high, np.minimum(low, estimates - reach), np.maximum(high, estimates + reach))


def profile(
    tasks: Tasks,
    thresholds: Array,
    *,
    repetitions: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
    name: str = "",
    method: str = "expanded",
) -> CurveInterval:
    """Performance profile: the share of runs that score above each threshold, averaged over tasks.

    The estimate equals that of `rliable.library.create_performance_profile` where tasks have equal numbers of runs.

    Args:
        tasks: one array `[runs]` a task.
        thresholds: `[points]`, scores on the scale of the tasks.
        repetitions, seed, confidence, name, method: as in `interval`.

    Raises:
        ValueError: as `interval`.
    """
    above = [(task[:, None] > np.asarray(thresholds)).astype(np.float64) for task in _as_tasks(tasks)]
    return curve(above, mean, repetitions=repetitions, seed=seed, confidence=confidence, name=name, method=method)


def difference(
    x: Array | Tasks,
    y: Array | Tasks,
    statistic: Statistic,
    *,
    paired: bool = False,
    method: str | None = None,
    repetitions: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
    withhold: bool = True,
) -> Interval:
    """The statistic of X less that of Y.

    Args:
        x, y: `[runs, tasks]`, or one array `[runs]` a task; the same tasks in the same order.
        statistic: as in `interval`.
        paired: run i of X and run i of Y share what is random about them (`Scores.paired` finds such runs), and are
            resampled together: the interval is narrower where they do well together, and no wider where they do not
            have anything to do with each other. Else they are resampled independently.
        method: as in `interval`. By default percentiles of the difference of two IQMs of independent runs, which vary
            enough as they are, and expanded ones of all else.
        repetitions, seed, confidence, withhold: as in `interval`.

    Raises:
        ValueError: as `interval`; different numbers of tasks; `paired`, and different numbers of runs.
    """
    x_tasks, y_tasks = _same_tasks(x, y, paired)
    x_sizes, y_sizes = [task.size for task in x_tasks], [task.size for task in y_tasks]
    sizes = x_sizes if paired else x_sizes + y_sizes
    x_values, y_values = _counts_function(statistic, x_tasks), _counts_function(statistic, y_tasks)
    tasks = len(x_tasks)
    resampled = _resample(
        lambda counts: x_values(counts[:tasks]) - y_values(counts[-tasks:]), sizes, repetitions, seed, "difference"
    )
    if method is None:
        method = "percentile" if statistic is iqm and not paired else "expanded"
    tail = _tail(confidence, sizes, method)
    low, high = _bounds(resampled, [*x_tasks, *y_tasks], tail, withhold, min(sizes) >= FEWEST_RUNS)
    return Interval(estimate(x_tasks, statistic) - estimate(y_tasks, statistic), float(low), float(high))


def improvement(
    x: Array | Tasks,
    y: Array | Tasks,
    *,
    paired: bool = False,
    method: str = "score",
    repetitions: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
    withhold: bool = True,
) -> Interval:
    """Probability that a run of X beats a run of Y on a task, averaged over tasks; a tie counts one half.

    The point estimate equals `rliable.metrics.probability_of_improvement` (the Mann-Whitney statistic).

    Args:
        x, y: `[runs, tasks]`, or one array `[runs]` a task; the same tasks in the same order.
        paired: instead, the probability that a run of X beats the run of Y that it is paired with, as in `difference`:
            a percentile interval of the mean of wins.
        method: `score` for the interval of `analysis.win_rate`, `percentile` for that of the bootstrap, as rliable has
            it: runs of X and Y are resampled independently. It leaves the truth out far too often with few runs, and
            where one label nearly always wins.
        repetitions, seed: of the bootstrap.
        confidence, withhold: as in `interval`.

    Raises:
        ValueError: as `difference`, or another method.
    """
    if method not in ("score", "percentile"):
        raise ValueError(f"unknown method '{method}', expected 'score' or 'percentile'")
    x_tasks, y_tasks = _same_tasks(x, y, paired)
    if paired:
        wins = [(a > b) + (a == b) / 2 for a, b in zip(x_tasks, y_tasks, strict=True)]
        settings: dict[str, Any] = {"repetitions": repetitions, "seed": seed, "confidence": confidence}
        return interval(wins, mean, **settings, withhold=withhold, name="improvement")
    from_counts = _win_rate(x_tasks, y_tasks)
    point = float(from_counts(_once([*x_tasks, *y_tasks]))[0])
    sizes = [task.size for task in (*x_tasks, *y_tasks)]
    if method == "percentile":
        resampled = _resample(from_counts, sizes, repetitions, seed, "improvement")
        held = min(sizes) >= FEWEST_FOR_PERCENTILES
        low, high = _bounds(resampled, [*x_tasks, *y_tasks], _tail(confidence, sizes, method), withhold, held)
        return Interval(point, float(low), float(high))
    _check_confidence(confidence)
    if min(sizes) < (FEWEST_TO_COMPARE if withhold else 2):
        return Interval(point, math.nan, math.nan)
    low, high = win_rate.interval(win_rate.from_scores(x_tasks, y_tasks), confidence)
    return Interval(point, float(low), float(high))


def improvement_p_value(x: Array | Tasks, y: Array | Tasks) -> float:
    """Two-sided p-value of P(X > Y) = 1/2: below 0.05 where the 95 % score interval of `improvement` leaves out 1/2.

    NaN where a label has fewer than `FEWEST_TO_COMPARE` runs on a task. Arguments and errors as `improvement`.
    """
    x_tasks, y_tasks = _same_tasks(x, y, paired=False)
    if min(task.size for task in (*x_tasks, *y_tasks)) < FEWEST_TO_COMPARE:
        return math.nan
    return float(win_rate.p_value(win_rate.from_scores(x_tasks, y_tasks)))


def holm(p_values: Sequence[float]) -> Array:
    """p-values of several tests, corrected for their number (Holm 1979, Scandinavian Journal of Statistics 6, 65-70).

    If all below a level are believed, a true hypothesis is among them no more often than the level says, however the
    tests depend on each other. NaN stays, and counts as no test.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")[: int(np.isfinite(values).sum())]
    corrected = np.full(values.shape, np.nan)
    left = np.arange(order.size, 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * left), 1.0)
    return corrected


def _win_rate(x_tasks: Tasks, y_tasks: Tasks) -> Callable[[Counts], Array]:
    """Of the counts of all tasks of X, then of Y."""
    orders = [np.argsort(y, kind="stable") for y in y_tasks]
    # For each run of X, how many of Y's runs are below it, with and without those that tie.
    less = [np.searchsorted(y[order], x, side="left") for x, y, order in zip(x_tasks, y_tasks, orders, strict=True)]
    less_or_equal = [
        np.searchsorted(y[order], x, side="right") for x, y, order in zip(x_tasks, y_tasks, orders, strict=True)
    ]

    def from_counts(counts: Counts) -> Array:
        rates = []
        for task, order in enumerate(orders):
            in_x, in_y = counts[task], counts[len(orders) + task]
            # below[:, i] is how many runs of Y a resample drew from the i lowest ones.
            below = np.cumsum(np.pad(in_y.take(order, axis=1), ((0, 0), (1, 0))), axis=1, dtype=np.int32)
            beaten = (below.take(less[task], axis=1) + below.take(less_or_equal[task], axis=1)) / 2
            rates.append((in_x * beaten).sum(axis=1) / (in_x.shape[1] * in_y.shape[1]))
        return np.stack(rates, axis=1).mean(axis=1)

    return from_counts


def _task_means(tasks: Tasks, counts: Counts) -> Array:
    """`[block, tasks]`"""
    return np.stack([_weighted_sum(c, scores) / scores.size for scores, c in zip(tasks, counts, strict=True)], axis=1)


def _weighted_sum(weights: NDArray[Any], scores: Array) -> Array:
    # Not `weights @ scores`: how BLAS rounds a row depends on the number of rows, and of threads.
    total: Array = np.einsum("ij,j->i", weights, scores)
    return total


def _counts_function(statistic: Statistic, tasks: Tasks) -> Callable[[Counts], Array]:
    """What the statistic makes of counts. A plain function of scores is easily taken for one."""
    expected = (
        "expected mean, median, iqm or optimality_gap of analysis.bootstrap, from_function(f) of a plain function f of "
        "the scores of a task's runs, or a function tasks -> counts -> values"
    )
    try:
        from_counts = statistic(tasks)
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"cannot take a list of {len(tasks)} arrays, one a task ({' '.join(str(error).split())})"
        raise ValueError(f"the statistic {statistic!r} {reason}; {expected}") from error
    if not callable(from_counts):
        raise ValueError(f"the statistic {statistic!r} gave {from_counts!r} for the scores; {expected}")
    return from_counts


def _once(tasks: Tasks) -> list[NDArray[np.int32]]:
    """The counts of the scores themselves: every run once."""
    return [np.ones((1, task.size), np.int32) for task in tasks]


def _as_tasks(scores: Array | Tasks) -> list[Array]:
    if isinstance(scores, np.ndarray) and scores.ndim != 2:
        raise ValueError(f"scores has shape {scores.shape}, expected [runs, tasks]; for one task use scores[:, None]")
    columns = scores.T if isinstance(scores, np.ndarray) else scores
    tasks = [np.asarray(column, dtype=np.float64) for column in columns]
    if not tasks:
        raise ValueError("no task in the scores; give at least one")
    for index, task in enumerate(tasks):
        if task.ndim != 1 or task.size == 0:
            raise ValueError(f"the scores of task {index} have shape {task.shape}, expected [runs] with runs >= 1")
        if not np.isfinite(task).all():
            raise ValueError(
                f"task {index} has {np.sum(~np.isfinite(task))} scores that are not finite; replace them first, as "
                "analysis.scores does for runs that diverged"
            )
    return tasks


def _same_tasks(x: Array | Tasks, y: Array | Tasks, paired: bool) -> tuple[list[Array], list[Array]]:
    x_tasks, y_tasks = _as_tasks(x), _as_tasks(y)
    if len(x_tasks) != len(y_tasks):
        raise ValueError(f"X has {len(x_tasks)} tasks and Y has {len(y_tasks)}; give both the same tasks")
    x_sizes, y_sizes = [task.size for task in x_tasks], [task.size for task in y_tasks]
    if paired and x_sizes != y_sizes:
        raise ValueError(f"X has {x_sizes} runs and Y has {y_sizes}; pairs need equal numbers, see `Scores.paired`")
    return x_tasks, y_tasks


def _resample(
    from_counts: Callable[[Counts], Array], sizes: Sequence[int], repetitions: int, seed: int, name: str
) -> Array:
    """`[repetitions, ...]`: a statistic of that many resamples of strata of these sizes.

    Each block has a generator of its own, so that the number of threads changes nothing.
    """
    if repetitions < 1:
        raise ValueError(f"repetitions is {repetitions}, expected at least 1")
    if seed < 0:
        raise ValueError(f"seed is {seed}, expected 0 or more")
    stream = zlib.crc32(name.encode())
    rows = max(1, BLOCK_ELEMENTS // sum(sizes))

    def block_values(block: int) -> Array:
        generator = np.random.default_rng([seed, stream, block])
        resamples = min(rows, repetitions - block * rows)
        return from_counts([_draw(generator, resamples, size) for size in sizes])

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return np.concatenate(list(threads.map(block_values, range(math.ceil(repetitions / rows)))))


def _draw(generator: np.random.Generator, rows: int, runs: int) -> NDArray[np.uint8] | NDArray[np.int32]:
    """Counts `[rows, runs]` of `runs` draws with replacement out of `runs`, in each row."""
    if runs >= MANY_RUNS:
        return _draw_counts(generator, rows, runs)
    drawn = generator.integers(runs, size=(rows, runs))
    cells = drawn + runs * np.arange(rows)[:, None]
    return np.bincount(cells.ravel(), minlength=rows * runs).reshape(rows, runs).astype(np.int32)


def _draw_counts(generator: np.random.Generator, rows: int, runs: int) -> NDArray[np.uint8]:
    """`_draw` by way of independent Poisson counts. Given their sum, these are the counts of that many draws; their
    rate is low enough for the sum to stay below `runs`, and what lacks is drawn one by one."""
    rate = 1.0 - 4.0 / math.sqrt(runs)
    table, rest = _poisson_table(rate)
    words = generator.integers(2**64, size=(rows, math.ceil(runs / 4)), dtype=np.uint64)
    counts = table.take(words.view(np.uint16)[:, :runs], mode="clip")  # no number is too high; this mode is fastest
    undecided = np.flatnonzero(counts == UNDECIDED)
    counts.ravel()[undecided] = np.searchsorted(rest, generator.random(undecided.size), side="right")
    lacking = runs - counts.sum(axis=1, dtype=np.int64)
    while (lacking < 0).any():  # once in 30,000 rows; which rows are kept depends on their sum alone
        again = lacking < 0
        counts[again] = generator.poisson(rate, size=(int(again.sum()), runs))
        lacking = runs - counts.sum(axis=1, dtype=np.int64)
    cells = np.repeat(np.arange(rows) * runs, lacking) + generator.integers(runs, size=int(lacking.sum()))
    np.add.at(counts.reshape(-1), cells, np.uint8(1))
    return counts


UNDECIDED = 255
"""Stands in a table of counts for the few 16-bit numbers that decide nothing yet."""


@functools.cache
def _poisson_table(rate: float) -> tuple[NDArray[np.uint8], Array]:
    """Counts by 16-bit number, each as often as its probability times 65,536 has whole parts; and the cumulative
    probabilities of the counts for the numbers that are left, so that together the distribution is exact."""
    most = 40  # beyond, the probability is less than 1e-45
    counts = np.arange(most)
    log_factorial = np.cumsum(np.log(np.maximum(counts, 1)))
    shares = np.exp(counts * math.log(rate) - rate - log_factorial) * 2**16
    table = np.full(2**16, UNDECIDED, np.uint8)
    whole = np.floor(shares).astype(np.int64)
    table[: whole.sum()] = np.repeat(counts, whole)
    rest = np.cumsum(shares - whole)
    return table, rest / rest[-1]


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected a share between 0 and 1, such as 0.95")


def _tail(confidence: float, sizes: Sequence[int], method: str) -> float:
    """The share of resamples below an interval, and above it, for so many runs on each task."""
    _check_confidence(confidence)
    if method not in METHODS:
        raise ValueError(f"unknown method '{method}', expected 'expanded' or 'percentile'")
    tail, runs = (1 - confidence) / 2, np.array(sizes)
    freedom = int(np.sum(runs - 1))
    if method == "percentile" or not freedom:
        return tail
    # By which factor resamples vary too little, where runs of all tasks vary alike.
    lacking = np.sum(1 / runs) / np.sum((runs - 1) / runs**2)
    return float(scipy.stats.norm.cdf(scipy.stats.t.ppf(tail, freedom) * np.sqrt(lacking)))


def _bounds(resampled: Array, tasks: Sequence[Array], tail: float, withhold: bool, enough: bool) -> tuple[Array, Array]:
    """Of resamples `[repetitions, ...]` of runs `[runs, ...]` of each task; NaN where withheld, as all are without
    `enough` runs."""
    low, high = np.quantile(resampled, [tail, 1 - tail], axis=0)
    if not withhold:
        return low, high
    largest = max(float(np.abs(task).max()) for task in tasks)
    held = (high - low > NO_WIDTH * largest) & enough
    return np.where(held, low, np.nan), np.where(held, high, np.nan)
