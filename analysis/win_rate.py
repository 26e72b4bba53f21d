"""Score intervals of P(X > Y), the probability that a run of X scores higher than a run of Y.

Of an interval are those values that a test would not reject: the estimate is fewer than so many standard errors away
from them, each with the standard error that it would have there itself (Wilson's idea). So an estimate of 1 has an
interval too, and three runs of each side are enough.

The variance at a value is the larger one of two: that of Hanley and McNeil (1982), which is right where X and Y have
distributions of the same form and is what Newcombe (2006, Statistics in Medicine 25, 559-573, his method 5) inverts;
and the same times how much more the runs themselves vary (the variance of Brunner and Munzel, 2000), up to the largest
that there is (Birnbaum and Klose, 1957). Standard errors are counted by Student's t, with as many degrees of freedom
as there are runs, less two a task.

Over several tasks the probability is the mean of theirs, and values of the mean stand for the tasks' probabilities
moved by one and the same number on the scale of their log odds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import scipy.special
import scipy.stats
from numpy.typing import NDArray

Values: TypeAlias = NDArray[np.float64]
Counts: TypeAlias = NDArray[np.int64]

FARTHEST = 40.0
"""Of log odds; beyond, a probability is 0 or 1."""
HALVINGS = 40
"""Of that range, until a bound is known to ten digits."""


class WinRate(NamedTuple):
    """What runs say about P(X > Y) on each task; leading axes are of comparisons that have nothing to do with each
    other."""

    estimates: Values
    """`[..., tasks]` the Mann-Whitney statistic: the share of pairs of runs that X wins, a tie as one half"""
    variances: Values
    """`[..., tasks]` of that estimate, as the runs have it"""
    x_runs: Counts
    """`[tasks]`"""
    y_runs: Counts
    """`[tasks]`"""


def from_counts(wins: Values, x_counts: Any, y_counts: Any) -> tuple[Values, Values]:
    """(estimate, variance) `[...]` on one task.

    Args:
        wins: `[x values, y values]` 1 where X wins, 1/2 for a tie.
        x_counts, y_counts: `[..., x values]` and `[..., y values]` how many runs have each value, at least two runs
            altogether.
    """
    x_runs, y_runs = x_counts.sum(axis=-1), y_counts.sum(axis=-1)
    x_places = (y_counts @ wins.T) / y_runs[..., None]  # the share of Y's runs that a run of X beats
    y_places = (x_counts @ wins) / x_runs[..., None]
    estimate = (x_counts * x_places).sum(axis=-1) / x_runs
    spread_x = (x_counts * (x_places - estimate[..., None]) ** 2).sum(axis=-1) / (x_runs - 1)
    spread_y = (y_counts * (y_places - estimate[..., None]) ** 2).sum(axis=-1) / (y_runs - 1)
    return estimate, spread_x / x_runs + spread_y / y_runs


def from_scores(x_tasks: Sequence[Values], y_tasks: Sequence[Values]) -> WinRate:
    """That of two labels: one array `[runs]` of scores a task for each, of at least two runs."""
    found = []
    for x, y in zip(x_tasks, y_tasks, strict=True):
        beaten_x, beaten_y = _places(x, y), _places(y, x)
        found.append((beaten_x.mean(), beaten_x.var(ddof=1) / x.size + beaten_y.var(ddof=1) / y.size))
    estimates, variances = np.array(found).T
    return WinRate(estimates, variances, *(np.array([task.size for task in tasks]) for tasks in (x_tasks, y_tasks)))


def _places(scores: Values, others: Values) -> Values:
    """`[runs]` the share of the others that each run beats, a tie as one half."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, scores, side="left") + np.searchsorted(ordered, scores, side="right")
    found: Values = below / (2 * others.size)
    return found


def interval(rate: WinRate, confidence: float = 0.95) -> tuple[Values, Values]:
    """(low, high) `[...]` of the mean over tasks."""
    mean, reach = rate.estimates.mean(axis=-1), _reach(rate, confidence)
    centre = _shift_to(rate, mean)
    low = _bisect(lambda shift: _excess(rate, shift, reach) < 0, np.full_like(mean, -FARTHEST), centre)
    high = _bisect(lambda shift: _excess(rate, shift, reach) > 0, centre, np.full_like(mean, FARTHEST))
    return np.where(mean > 0, _means(rate, low), 0.0), np.where(mean < 1, _means(rate, high), 1.0)


def excludes(rate: WinRate, value: float, confidence: float = 0.95) -> Values:
    """`[...]` -1 where the interval lies below the value, 1 where it lies above, 0 where it holds it."""
    mean = rate.estimates.mean(axis=-1)
    outside = _excess(rate, _shift_to(rate, np.full_like(mean, value)), _reach(rate, confidence)) > 0
    found: Values = np.sign(mean - value) * outside
    return found


def p_value(rate: WinRate, value: float = 0.5) -> Values:
    """`[...]` two-sided, of the test whose intervals these are: how surprising the runs are if this is the mean."""
    mean = rate.estimates.mean(axis=-1)
    errors = np.abs(mean - value) / _standard_error(rate, _shift_to(rate, np.full_like(mean, value)))
    found: Values = 2 * scipy.stats.t.sf(errors, _freedom(rate))
    return found


def _freedom(rate: WinRate) -> int:
    return int(np.sum(rate.x_runs + rate.y_runs - 2))


def _reach(rate: WinRate, confidence: float) -> float:
    """How many standard errors an interval goes to each side."""
    return float(scipy.stats.t.ppf((1 + confidence) / 2, _freedom(rate)))


def _excess(rate: WinRate, shift: Values, reach: float) -> Values:
    """`[...]` how far the estimate lies from the probability at a shift, less what an interval holds of it."""
    distance: Values = np.abs(rate.estimates.mean(axis=-1) - _means(rate, shift))
    return distance - reach * _standard_error(rate, shift)


def _standard_error(rate: WinRate, shift: Values) -> Values:
    """`[...]` that the estimate would have if the tasks' probabilities were those at a shift."""
    estimates, x, y = rate.estimates, rate.x_runs, rate.y_runs
    probabilities = _probabilities(rate, shift)
    same_form, at_estimate = (_same_form_variance(each, x, y) for each in (probabilities, estimates))
    # Where all pairs are won the runs show no spread, and none of another form.
    wider = np.maximum(rate.variances / np.where(at_estimate > 0, at_estimate, np.inf), 1.0)
    largest = probabilities * (1 - probabilities) / np.minimum(x, y)
    variance = np.minimum(same_form * wider, np.maximum(largest, same_form)).mean(axis=-1) / estimates.shape[-1]
    return np.sqrt(variance)


def _same_form_variance(probability: Values, x_runs: Counts, y_runs: Counts) -> Values:
    """Of the estimate where X and Y have exponential distributions; a good approximation for others of equal form."""
    pairs = (x_runs + y_runs) / 2 - 1
    shared = (1 - probability) / (2 - probability) + probability / (1 + probability)
    found: Values = probability * (1 - probability) * (1 + pairs * shared) / (x_runs * y_runs)
    return found


def _probabilities(rate: WinRate, shift: Values) -> Values:
    """`[..., tasks]` those of the tasks at a shift of their log odds; half a pair keeps them from 0 and 1."""
    pairs = rate.x_runs * rate.y_runs
    from_ends = (pairs * rate.estimates + 0.5) / (pairs + 1)
    found: Values = scipy.special.expit(scipy.special.logit(from_ends) + shift[..., None])
    return found


def _means(rate: WinRate, shift: Values) -> Values:
    found: Values = _probabilities(rate, shift).mean(axis=-1)
    return found


def _shift_to(rate: WinRate, mean: Values) -> Values:
    """`[...]` at which the tasks' probabilities have this mean."""
    ends = np.full_like(mean, FARTHEST)
    return _bisect(lambda shift: _means(rate, shift) > mean, -ends, ends)


def _bisect(beyond: Callable[[Values], NDArray[np.bool_]], low: Values, high: Values) -> Values:
    """`[...]` where a condition begins to hold between `low`, where it does not, and `high`, where it does."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = beyond(middle)
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return (low + high) / 2
