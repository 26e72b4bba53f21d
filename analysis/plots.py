"""Figures for papers: sample efficiency, aggregate intervals and performance profiles.

A figure is written in the format that the file's name ends with. PDFs are vector graphics with embedded fonts. Names of
labels and tasks are drawn as they are; a dollar sign in them begins no formula.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, PercentFormatter
from numpy.typing import NDArray

from analysis.bootstrap import CurveInterval
from analysis.curves import Curve, Curves, Profiles, sample_efficiency_curves
from analysis.scores import Array, Scores
from analysis.tables import AGGREGATES, TITLES

# Okabe and Ito's colours, told apart with any colour vision; yellow is left out, which is lost on white paper. From the
# eighth label on they come back darker. Markers tell the labels apart without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#5A5A5A")
DARKER = 0.55
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PANEL_INCHES = (3.1, 2.5)
MAX_COLUMNS = 3
DPI = 220
# Type 42 is TrueType: publishers refuse matplotlib's default, Type 3.
_for_papers = mpl.rc_context({"text.parse_math": False, "pdf.fonttype": 42})


class Look(NamedTuple):
    """How one label is drawn, in every figure and in the report."""

    colour: str
    marker: str


WITHOUT = "Without a bar or band: too few runs for an interval that holds, or all equal."
"""Caption where intervals are missing."""
TITLE_LETTERS = 32
"""that fit above a panel"""
STYLE = {"axes": 9, "ticks": 8, "title": 9.5, "caption": 7.5}


def look_of(index: int) -> Look:
    """That of the label at this place of `Scores.labels`."""
    turn, colour = divmod(index, len(COLOURS))
    red, green, blue = (round(int(COLOURS[colour][at : at + 2], 16) * DARKER ** (turn % 2)) for at in (1, 3, 5))
    # The markers turn over one later each time round, so that many labels still look different.
    return Look(f"#{red:02X}{green:02X}{blue:02X}", MARKERS[(index + turn) % len(MARKERS)])


@_for_papers
def sample_efficiency(
    scores: Scores,
    *files: str | Path,
    curves: Curves | None = None,
    repetitions: int = 2000,
    seed: int = 0,
    quantity: str = "episode return",
) -> None:
    """Write the figure: a panel per task, and one of normalised scores over the tasks that can be compared, if there
    are at least two.

    Lines are the IQM over runs, bands its pointwise 95 % stratified-bootstrap interval. The untrained policy is the
    point at step 0. At each step it is over the runs that have been evaluated there, and the line is dashed where these
    are not all that the label will have. Normalised scores are over the runs that count, see `TaskScores`.

    Args:
        scores: from `analysis.score`.
        files: to write, each replaced if it is there.
        curves: from `sample_efficiency_curves`, where they have been computed before.
        repetitions: resamples for each band, where they have not.
        seed: of the bootstrap.
        quantity: what the scores are, for the axes.

    Raises:
        OSError: a file cannot be written.
    """
    curves = curves or sample_efficiency_curves(scores, repetitions=repetitions, seed=seed)
    panels = len(scores.environments) + bool(curves.aggregate)
    columns = min(panels, MAX_COLUMNS) if panels != 4 else 2
    rows = math.ceil(panels / columns)
    looks = {label: look_of(index) for index, label in enumerate(scores.labels)}
    # Wide enough for the caption.
    width, height = max(columns * PANEL_INCHES[0], 4.6), rows * PANEL_INCHES[1]
    figure = _figure_with_legend(width, height, scores, looks)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for spare in axes[panels:]:
        spare.remove()

    for axis, environment in zip(axes, scores.environments, strict=False):
        for label in scores.labels:
            if (label, environment) in curves.tasks:
                _curve(axis, curves.tasks[label, environment], looks[label])
        offline = any(task.offline for (_, name), task in scores.tasks.items() if name == environment)
        _dress(axis, environment, "gradient steps" if offline else "environment steps", f"{quantity} (IQM)")
        axis.set_xlim(left=0)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    if curves.aggregate:
        axis = axes[panels - 1]
        for label, curve in curves.aggregate.items():
            _curve(axis, curve, looks[label])
        compared = len(scores.comparable()[0])
        _dress(axis, f"all compared tasks ({compared})", "share of the step budget", "normalised IQM")
        axis.set_xlim(left=0)
        axis.xaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0))

    lines = ["Line: IQM over runs. Band: pointwise 95 % stratified-bootstrap interval."]
    bands = [curve.band for curve in (*curves.tasks.values(), *curves.aggregate.values())]
    if any(np.isnan(band.low).any() for band in bands):
        lines.append(WITHOUT)
    if not all(task.evaluated.all() and task.runs == task.planned for task in scores.tasks.values()):
        lines.append("Dashed: not over all runs, some are not there yet.")
    if curves.aggregate:
        lines.append("Normalised: linear between evaluations.")
    _save(figure, ("\n" if width < 7 else " ").join(lines), files)


@_for_papers
def aggregate_intervals(scores: Scores, summary: pd.DataFrame, *files: str | Path) -> None:
    """Write the figure: a panel for each aggregate of normalised final scores, with an interval for each label.

    Args:
        scores, summary: from `analysis.score` and `tables.summarise`, with at least one task that can be compared.
        files: to write, each replaced if it is there.

    Raises:
        OSError: a file cannot be written.
    """
    found = summary[(summary["section"] == "aggregate") & (summary["score"] == "final")]
    rows = found.set_index(["statistic", "label"])
    labels = scores.labels
    figure = _figure(8.6, 1.25 + 0.26 * len(labels))
    axes = figure.subplots(1, len(AGGREGATES), sharey=True)
    for axis, statistic in zip(axes, AGGREGATES, strict=True):
        for index, label in enumerate(labels):
            row, (colour, marker) = rows.loc[(statistic, label)], look_of(index)
            if math.isfinite(row["low"]):
                axis.plot(
                    [row["low"], row["high"]],
                    [index, index],
                    color=colour,
                    linewidth=5,
                    alpha=0.35,
                    solid_capstyle="butt",
                )
            axis.plot(row["estimate"], index, marker, color=colour, markersize=4.5)
        _dress(axis, TITLES[statistic], "", "")
        axis.set_yticks(range(len(labels)), labels)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.grid(axis="y", visible=False)
    axes[0].set_ylim(len(labels) - 0.5, -0.5)
    tasks = len(scores.comparable()[0])
    caption = (
        f"Normalised final scores over {tasks} task{'s' * (tasks > 1)}, 95 % stratified-bootstrap intervals. "
        "Optimality gap: lower is better."
    )
    if found["low"].isna().any():
        caption += "\n" + WITHOUT
    _save(figure, caption, files)


@_for_papers
def performance_profile(scores: Scores, profiles: Profiles, *files: str | Path) -> None:
    """Write the figure: the share of runs that score above each threshold, with its pointwise band.

    Args:
        scores, profiles: from `analysis.score` and `curves.performance_profiles`.
        files: to write, each replaced if it is there.

    Raises:
        OSError: a file cannot be written.
    """
    looks = {label: look_of(index) for index, label in enumerate(scores.labels)}
    figure = _figure_with_legend(6.2, 3.2, scores, looks)
    axis = figure.subplots()
    always = np.ones(profiles.thresholds.size, dtype=bool)
    for label, band in profiles.bands.items():
        _line(axis, profiles.thresholds, _pointwise(band), always, looks[label])
    _dress(axis, "", "normalised final score", "share of runs above it")
    axis.set_xlim(profiles.thresholds[0], profiles.thresholds[-1])
    axis.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0))
    # At either end, where all runs are on one side, no line has a band.
    without = any(np.isnan(band.low).all() for band in profiles.bands.values())
    caption = "Band: pointwise 95 % stratified-bootstrap interval."
    _save(figure, f"{caption}\n{WITHOUT}" if without else caption, files)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _figure_with_legend(width: float, height: float, scores: Scores, looks: dict[str, Look]) -> Figure:
    """One of this size without legend and caption, in inches."""
    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, markersize=4.5, label=f"{label} ({_runs(scores, label)})")
        for label, look in looks.items()
    ]
    longest = max(len(str(handle.get_label())) for handle in handles)
    per_row = max(1, int(width / (0.55 + 0.068 * longest)))  # inches of a line with its gaps, and of a letter
    figure = _figure(width, height + 0.67 + 0.18 * math.ceil(len(handles) / per_row))
    figure.legend(handles=handles, loc="outside upper center", ncols=per_row, frameon=False, fontsize=STYLE["axes"])
    return figure


def _save(figure: Figure, caption: str, files: tuple[str | Path, ...]) -> None:
    figure.supxlabel(caption, fontsize=STYLE["caption"], color="0.35")
    for file in files:
        # Without the date, the same results give the same file.
        metadata: dict[str, Any] = {"CreationDate": None} if Path(file).suffix == ".pdf" else {}
        figure.savefig(file, dpi=DPI, metadata=metadata)
        figure.set_layout_engine("none")  # it has been laid out, and costs as much as drawing


def _pointwise(band: CurveInterval) -> Array:
    """`[3, points]`: estimate, low, high."""
    return np.stack([band.estimate, band.low, band.high])


def _curve(axis: Axes, curve: Curve, look: Look) -> None:
    _line(axis, curve.x, _pointwise(curve.band), curve.complete, look)


def _line(axis: Axes, x: Array, values: Array, complete: NDArray[np.bool_], look: Look) -> None:
    estimate, low, high = values
    axis.fill_between(x, low, high, color=look.colour, alpha=0.2, linewidth=0)
    # The dashed line lies under the solid one and shows where that one has gaps.
    if not complete.all():
        axis.plot(x, estimate, color=look.colour, linewidth=1.2, linestyle=(0, (3, 2)))
    axis.plot(x, np.where(complete, estimate, np.nan), color=look.colour, linewidth=1.4)
    every = max(1, math.ceil(x.size / 11))
    axis.plot(x, estimate, look.marker, color=look.colour, markersize=3.2, markevery=every, clip_on=False)


def _folded(title: str) -> str:
    """A title in lines that a panel has room for; an environment's id breaks before a wrapper or a part of its path."""
    lines = [""]
    for part in re.findall(rf"[+/ ]?[^+/ ]{{1,{TITLE_LETTERS - 1}}}|.", title):
        if len(lines[-1] + part) > TITLE_LETTERS:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _dress(axis: Axes, title: str, x_label: str, y_label: str) -> None:
    axis.set_title(_folded(title), fontsize=STYLE["title"])
    axis.set_xlabel(x_label, fontsize=STYLE["axes"])
    axis.set_ylabel(y_label, fontsize=STYLE["axes"])
    axis.tick_params(labelsize=STYLE["ticks"])
    axis.grid(color="0.9", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


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
