"""What is drawn as a line, with its bands: sample efficiency on a task and over tasks, and performance profiles.

Figures and report draw the same numbers, which are computed here once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis import bootstrap
from analysis.bootstrap import CurveInterval
from analysis.scores import KINDS, Array, Scores, TaskScores

SHARES = np.linspace(0.0, 1.0, 21)
"""Where curves over tasks compare runs, as shares of each task's budget of steps."""
THRESHOLDS = 101
"""Points of a performance profile."""
OUTLIERS = 0.005
"""Share of all runs that may score beyond each end of a profile: one lost run would squeeze all others together."""


class Curve(NamedTuple):
    """The IQM over runs along a budget."""

    x: Array
    """`[points]`: steps, or shares of the budget"""
    band: CurveInterval
    """`[points]` each"""
    complete: NDArray[np.bool_]
    """`[points]`: over all runs that the label will have"""


class Curves(NamedTuple):
    """Every sample-efficiency curve of a report."""

    tasks: dict[tuple[str, str], Curve]
    """By (label, environment), in episode return."""
    aggregate: dict[str, Curve]
    """By label, normalised, over the tasks that can be compared: empty if these are less than two, since of a single
    task it would be that task's curve again. A label is left out if its runs share no part of the budget yet."""


class Profiles(NamedTuple):
    """Share of runs that score above each threshold."""

    thresholds: Array
    """`[THRESHOLDS]` normalised scores"""
    bands: dict[str, CurveInterval]
    """By label, `[THRESHOLDS]` each."""


def sample_efficiency_curves(scores: Scores, *, repetitions: int = 2000, seed: int = 0) -> Curves:
    """All curves of these scores.

    At each step a task's curve is over the runs that have been evaluated there; a simultaneous band holds for the
    points that have the same runs, which are all points once no shard is running. A curve over tasks is over the runs
    that count, see `TaskScores`, linear between their evaluations, and ends where the first of them does.

    Args:
        scores: from `analysis.score`.
        repetitions: resamples for each band.
        seed: of the bootstrap.
    """
    environments, _ = scores.comparable()
    tasks = {key: task_curve(task, repetitions, seed) for key, task in scores.tasks.items()}
    aggregate = {}
    if len(environments) > 1:
        for label in scores.labels:
            curve = _aggregate_curve(scores, label, environments, repetitions, seed)
            if curve is not None:
                aggregate[label] = curve
    return Curves(tasks, aggregate)


def performance_profiles(scores: Scores, *, repetitions: int = 2000, seed: int = 0) -> dict[str, Profiles]:
    """Profiles of the labels over the tasks that can be compared, by `KINDS`; none where there is no such task.

    Args:
        scores: from `analysis.score`.
        repetitions, seed: as for `sample_efficiency_curves`.
    """
    environments, _ = scores.comparable()
    profiles = {}
    for kind in KINDS if environments else ():
        normalised = scores.normalised(environments, kind)
        pooled = np.concatenate([task for tasks in normalised.values() for task in tasks])
        low, high = np.quantile(pooled, [OUTLIERS, 1 - OUTLIERS])
        # Outwards to a twentieth, and 0 and 1 are always in sight.
        low, high = np.floor(20 * min(0.0, low)) / 20, np.ceil(20 * max(1.0, high)) / 20
        thresholds = np.linspace(low, high, THRESHOLDS)
        bands = {
            label: bootstrap.profile(tasks, thresholds, repetitions=repetitions, seed=seed, name=label)
            for label, tasks in normalised.items()
        }
        profiles[kind] = Profiles(thresholds, bands)
    return profiles


def task_curve(task: TaskScores, repetitions: int, seed: int) -> Curve:
    """One of `Curves.tasks`; arguments as for `sample_efficiency_curves`."""
    shown = np.isfinite(np.where(task.evaluated, task.curves, 0.0)).all(axis=0)
    steps, evaluated = task.steps[shown], task.evaluated[:, shown]
    band = CurveInterval(*np.full((len(CurveInterval._fields), steps.size), np.nan))
    # Runs are resampled together at all points where the same ones were evaluated.
    present, group = np.unique(evaluated, axis=1, return_inverse=True)
    for index in range(present.shape[1]):
        points = np.ravel(group) == index
        curves = task.curves[:, shown][np.ix_(present[:, index], points)]
        found = _iqm([curves], f"{task.label} {task.environment}", repetitions, seed)
        for whole, part in zip(band, found, strict=True):
            whole[points] = part
    return Curve(steps.astype(np.float64), band, evaluated.sum(axis=0) == task.planned)


def _aggregate_curve(scores: Scores, label: str, environments: list[str], repetitions: int, seed: int) -> Curve | None:
    tasks = [scores.tasks[label, environment] for environment in environments]
    budgets = [scores.budgets[environment] for environment in environments]
    # Only as far as every run that counts has come on every task: beyond, the average would be over other tasks.
    first = max(
        t.steps[t.evaluated[t.counted].argmax(axis=1)].max() / budget for t, budget in zip(tasks, budgets, strict=True)
    )
    last = min(t.last_steps[t.counted].min() / budget for t, budget in zip(tasks, budgets, strict=True))
    shares = SHARES[(first - 1e-9 <= SHARES) & (last + 1e-9 >= SHARES)]
    if not shares.size:
        return None
    curves = [
        scores.references[task.environment].normalise(_interpolate(task, shares * budget))
        for task, budget in zip(tasks, budgets, strict=True)
    ]
    complete = all(task.counted.sum() == task.planned for task in tasks)
    return Curve(shares, _iqm(curves, label, repetitions, seed), np.full(shares.size, complete))


def _interpolate(task: TaskScores, steps: Array) -> Array:
    """`[runs that count, len(steps)]`: each run's curve, linear between its evaluations."""
    pairs = zip(task.curves[task.counted], task.evaluated[task.counted], strict=True)
    return np.stack([np.interp(steps, task.steps[evaluated], curve[evaluated]) for curve, evaluated in pairs])


def _iqm(curves: list[Array], name: str, repetitions: int, seed: int) -> CurveInterval:
    return bootstrap.curve(curves, bootstrap.iqm, repetitions=repetitions, seed=seed, name=name)
