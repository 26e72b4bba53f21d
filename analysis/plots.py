"""The sample-efficiency figure: what each label reached, against what it cost in environment steps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, PercentFormatter
from numpy.typing import NDArray

from analysis import bootstrap
from analysis.scores import Array, Scores, TaskScores

# Okabe and Ito's colours, told apart with any colour vision; yellow is left out, which is lost on white paper. Markers
# tell the labels apart without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PANEL_INCHES = (3.1, 2.5)
MAX_COLUMNS = 3
DPI = 220
SHARES = np.linspace(0.0, 1.0, 21)
"""Where the aggregate panel compares runs, as shares of each task's budget of environment steps."""


class Look(NamedTuple):
    """How one label is drawn, in every panel."""

    colour: str
    marker: str


STYLE = {"axes": 9, "ticks": 8, "title": 9.5, "caption": 7.5}


def sample_efficiency(
    scores: Scores,
    file: str | Path,
    *,
    repetitions: int = 2000,
    seed: int = 0,
    quantity: str = "episode return",
) -> None:
    """Write the figure as PNG: a panel per task, and one of normalised scores over the tasks that can be compared,
    if there are at least two.

    Lines are the IQM over runs, bands its pointwise 95 % stratified-bootstrap interval. The untrained policy is the
    point at step 0. At each step it is over the runs that have been evaluated there, and the line is dashed where these
    are not all that the label will have. Normalised scores are over the runs that count, see `TaskScores`.

    Args:
        scores: from `analysis.score`.
        file: to write, replaced if it is there.
        repetitions: resamples for each band.
        seed: of the bootstrap.
        quantity: what the scores are, for the axes.

    Raises:
        OSError: the file cannot be written.
    """
    environments, _ = scores.comparable()
    aggregate = len(environments) > 1  # of a single task it would be that task's panel again
    panels = len(scores.environments) + aggregate
    columns = min(panels, MAX_COLUMNS) if panels != 4 else 2
    rows = math.ceil(panels / columns)
    # One line of legend and one of caption for each so many inches of width, so that a single panel is not overrun.
    width, height = max(columns * PANEL_INCHES[0], 4.6), rows * PANEL_INCHES[1]
    figure = Figure(figsize=(width, height + 0.85), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for spare in axes[panels:]:
        spare.remove()

    looks = {label: _look(index) for index, label in enumerate(scores.labels)}
    for axis, environment in zip(axes, scores.environments, strict=False):
        for label in scores.labels:
            if (label, environment) in scores.tasks:
                _task_curve(axis, scores.tasks[label, environment], looks[label], repetitions, seed)
        offline = any(task.offline for (_, name), task in scores.tasks.items() if name == environment)
        _dress(axis, environment, "gradient steps" if offline else "environment steps", f"{quantity} (IQM)")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    if aggregate:
        axis = axes[panels - 1]
        for label in scores.labels:
            _aggregate_curve(axis, scores, label, environments, looks[label], repetitions, seed)
        _dress(axis, f"all compared tasks ({len(environments)})", "share of the step budget", "normalised IQM")
        axis.xaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0))

    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, markersize=4.5, label=f"{label} ({_runs(scores, label)})")
        for label, look in looks.items()
    ]
    per_row = max(1, int(width / 2.3))
    figure.legend(handles=handles, loc="outside upper center", ncols=per_row, frameon=False, fontsize=STYLE["axes"])
    lines = ["Line: IQM over runs. Band: pointwise 95 % stratified-bootstrap interval."]
    if not all(task.evaluated.all() and task.runs == task.planned for task in scores.tasks.values()):
        lines.append("Dashed: not over all runs, some are not there yet.")
    if aggregate:
        lines.append("Normalised: linear between evaluations.")
    figure.supxlabel(("\n" if width < 7 else " ").join(lines), fontsize=STYLE["caption"], color="0.35")
    figure.savefig(file, format="png", dpi=DPI)


def _look(index: int) -> Look:
    # The markers turn over one later each time round, so that many labels still look different.
    return Look(COLOURS[index % len(COLOURS)], MARKERS[(index + index // len(COLOURS)) % len(MARKERS)])


def _task_curve(axis: Axes, task: TaskScores, look: Look, repetitions: int, seed: int) -> None:
    shown = np.isfinite(np.where(task.evaluated, task.curves, 0.0)).all(axis=0)
    steps, evaluated = task.steps[shown], task.evaluated[:, shown]
    values = np.full((3, steps.size), np.nan)
    # Runs are resampled together at all points where the same ones were evaluated.
    present, group = np.unique(evaluated, axis=1, return_inverse=True)
    for index in range(present.shape[1]):
        points = np.ravel(group) == index
        curves = task.curves[:, shown][np.ix_(present[:, index], points)]
        values[:, points] = _band([curves], f"{task.label} {task.environment}", repetitions, seed)
    _line(axis, steps.astype(np.float64), values, evaluated.sum(axis=0) == task.planned, look)


def _aggregate_curve(
    axis: Axes,
    scores: Scores,
    label: str,
    environments: list[str],
    look: Look,
    repetitions: int,
    seed: int,
) -> None:
    tasks = [scores.tasks[label, environment] for environment in environments]
    budgets = [scores.budgets[environment] for environment in environments]
    # Only as far as every run that counts has come on every task: beyond, the average would be over other tasks.
    first = max(
        t.steps[t.evaluated[t.counted].argmax(axis=1)].max() / budget for t, budget in zip(tasks, budgets, strict=True)
    )
    last = min(t.last_steps[t.counted].min() / budget for t, budget in zip(tasks, budgets, strict=True))
    shares = SHARES[(first - 1e-9 <= SHARES) & (last + 1e-9 >= SHARES)]
    if not shares.size:
        return
    curves = [
        scores.references[task.environment].normalise(_interpolate(task, shares * budget))
        for task, budget in zip(tasks, budgets, strict=True)
    ]
    complete = all(task.counted.sum() == task.planned for task in tasks)
    _line(axis, shares, _band(curves, label, repetitions, seed), np.full(shares.size, complete), look)


def _interpolate(task: TaskScores, steps: Array) -> Array:
    """`[runs that count, len(steps)]`: each run's curve, linear between its evaluations."""
    pairs = zip(task.curves[task.counted], task.evaluated[task.counted], strict=True)
    return np.stack([np.interp(steps, task.steps[there], curve[there]) for curve, there in pairs])


def _band(curves: list[Array], name: str, repetitions: int, seed: int) -> Array:
    """`[3, points]`: estimate, low, high."""
    band = bootstrap.curve(curves, bootstrap.iqm, repetitions=repetitions, seed=seed, name=name)
    return np.stack([band.estimate, band.low, band.high])


def _line(axis: Axes, x: Array, values: Array, complete: NDArray[np.bool_], look: Look) -> None:
    estimate, low, high = values
    axis.fill_between(x, low, high, color=look.colour, alpha=0.2, linewidth=0)
    # The dashed line lies under the solid one and shows where that one has gaps.
    if not complete.all():
        axis.plot(x, estimate, color=look.colour, linewidth=1.2, linestyle=(0, (3, 2)))
    axis.plot(x, np.where(complete, estimate, np.nan), color=look.colour, linewidth=1.4)
    every = max(1, math.ceil(x.size / 11))
    axis.plot(x, estimate, look.marker, color=look.colour, markersize=3.2, markevery=every, clip_on=False)


def _dress(axis: Axes, title: str, x_label: str, y_label: str) -> None:
    axis.set_title(title, fontsize=STYLE["title"])
    axis.set_xlabel(x_label, fontsize=STYLE["axes"])
    axis.set_ylabel(y_label, fontsize=STYLE["axes"])
    axis.tick_params(labelsize=STYLE["ticks"])
    axis.grid(color="0.9", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlim(left=0)


def _runs(scores: Scores, label: str) -> str:
    """`32 runs`, or `16-32 runs a task, 2 of 48 diverged` where tasks differ and some diverged. While shards are
    running, `64 of 1024 runs`: on all tasks together, how many count and how many there will be."""
    tasks = [task for (name, _), task in scores.tasks.items() if name == label]
    low, high = min(task.runs for task in tasks), max(task.runs for task in tasks)
    diverged, total = sum(int(task.diverged.sum()) for task in tasks), sum(task.runs for task in tasks)
    counted, planned = sum(int(task.counted.sum()) for task in tasks), sum(task.planned for task in tasks)
    if counted < planned:
        count = f"{counted} of {planned} runs"
    else:
        unit = "run" if high == 1 else "runs"
        count = (f"{low}" if low == high else f"{low}-{high}") + f" {unit}" + (" a task" if len(tasks) > 1 else "")
    return count + (f", {diverged} of {total} diverged" if diverged else "")
