"""Figures of many settings: what each hyperparameter does to the score, alone and in pairs, and what tuning buys.

Each draws into axes that are given, as in `figure, axis = plt.subplots()`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from analysis import bootstrap
from analysis.plots import COLOURS
from analysis.scores import Array
from analysis.tuning import Settings

MOST_VALUES = 8
"""Up to so many different values of a hyperparameter are drawn one by one, more in bins."""
SETTINGS_PER_BIN = 8
MOST_BINS = 10


def sensitivity(axis: Axes, settings: Settings, name: str) -> None:
    """The IQM of every setting against one hyperparameter, and that of the runs of similar values with its 95 %
    interval. The others vary as they were drawn, so that this is what the hyperparameter does on average over them.
    """
    values, scores = settings.hypers[name].to_numpy(), settings.iqm
    axis.plot(values, scores, "o", color="0.6", markersize=3, alpha=0.7, label="one setting")
    bins = _bins(values)
    # Settings are resampled, not runs: another sweep would draw other settings.
    found = [bootstrap.interval([scores[each]], bootstrap.iqm, name=f"{name} {i}") for i, each in enumerate(bins)]
    estimate, low, high = np.array(found).T
    middle = np.array([np.median(values[each]) for each in bins])
    axis.errorbar(
        *(middle, estimate, [estimate - low, high - estimate]),
        color=COLOURS[0],
        marker="o",
        markersize=4,
        linewidth=1.4,
        capsize=2,
        label="IQM over settings, 95 % interval",
    )
    _dress(axis, values, name)
    axis.set_ylabel("score (IQM over seeds)")


def robustness(axis: Axes, settings: Settings, name: str) -> None:
    """How many of the settings do well, at each value of one hyperparameter: the median over settings with similar
    values of the IQM over seeds, the range of the middle half, and the worst and the best."""
    values, scores = settings.hypers[name].to_numpy(), settings.iqm
    bins = _bins(values)
    middle = np.array([np.median(values[each]) for each in bins])
    lowest, lower, median, upper, highest = np.array(
        [np.quantile(scores[each], [0.0, 0.25, 0.5, 0.75, 1.0]) for each in bins]
    ).T
    axis.fill_between(middle, lowest, highest, color=COLOURS[0], alpha=0.12, linewidth=0, label="worst to best setting")
    axis.fill_between(middle, lower, upper, color=COLOURS[0], alpha=0.3, linewidth=0, label="middle half of them")
    axis.plot(middle, median, "o-", color=COLOURS[0], markersize=4, linewidth=1.4, label="median setting")
    _dress(axis, values, name)
    axis.set_ylabel("score (IQM over seeds)")


def interaction(axis: Axes, settings: Settings, x: str, y: str) -> None:
    """A heat map of two hyperparameters: the mean over the settings in each cell of their IQM over seeds. The number of
    settings is written into the cell; a cell without any stays white."""
    x_values, y_values, scores = settings.hypers[x].to_numpy(), settings.hypers[y].to_numpy(), settings.iqm
    bins = [_bins(values, most=max(2, int((scores.size / 4) ** 0.5))) for values in (x_values, y_values)]
    cells = np.full((len(bins[1]), len(bins[0])), np.nan)
    for column, in_x in enumerate(bins[0]):
        for row, in_y in enumerate(bins[1]):
            both = np.intersect1d(in_x, in_y)
            if both.size:
                cells[row, column] = scores[both].mean()
                # Dark ink on light cells: viridis is light in its upper half.
                share = (cells[row, column] - scores.min()) / max(np.ptp(scores), 1e-12)
                ink = "black" if share > 0.6 else "white"
                axis.text(column, row, str(both.size), ha="center", va="center", color=ink, fontsize=8)
    image = axis.imshow(cells, origin="lower", aspect="auto", vmin=scores.min(), vmax=scores.max(), cmap="viridis")
    for ticks, values, axis_bins in ((axis.set_xticks, x_values, bins[0]), (axis.set_yticks, y_values, bins[1])):
        ticks(range(len(axis_bins)), [_range(values[each]) for each in axis_bins], fontsize=7)
    axis.tick_params(axis="x", labelrotation=35)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    assert axis.figure is not None
    axis.figure.colorbar(image, ax=axis, label="score (mean over settings)")


def tuning_curve(axis: Axes, curves: Mapping[str, Array]) -> None:
    """`tuning.expected_best` against the number of settings tried: legend -> `[settings]`."""
    for index, (legend, curve) in enumerate(curves.items()):
        tried = np.arange(1, len(curve) + 1)
        axis.plot(tried, curve, color=COLOURS[index % len(COLOURS)], linewidth=1.6, label=legend)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlabel("settings tried")
    axis.set_ylabel("expected score of the best one")
    axis.grid(color="0.9", linewidth=0.6)
    axis.legend(frameon=False, fontsize=8)


def _bins(values: Array, most: int = MOST_BINS) -> list[NDArray[np.intp]]:
    """Places of the settings, by value: each value by itself where there are few, else as many settings in each bin."""
    different = np.unique(values)
    if different.size <= min(MOST_VALUES, max(most, 2)):
        return [np.flatnonzero(values == value) for value in different]
    count = int(np.clip(values.size // SETTINGS_PER_BIN, 2, most))
    return list(np.array_split(np.argsort(values, kind="stable"), count))


def _range(values: Array) -> str:
    low, high = f"{values.min():.3g}", f"{values.max():.3g}"
    return low if low == high else f"{low} to {high}"


def _dress(axis: Axes, values: Array, name: str) -> None:
    # Drawn on a logarithmic scale where values differ by more than a factor of five: such are drawn log-uniformly.
    if values.min() > 0 and values.max() / values.min() > 5:
        axis.set_xscale("log")
    axis.set_xlabel(name)
    axis.grid(color="0.9", linewidth=0.6)
    axis.set_axisbelow(True)
