"""How often intervals hold the truth, and how long they take beside rliable's: prints the tables in docs/statistics.md.

    python benchmarks/intervals.py coverage
    python benchmarks/intervals.py improvement
    python benchmarks/intervals.py figure
    python benchmarks/intervals.py speed

`coverage` draws runs from distributions whose true figures are known and counts how often the 95 % interval holds them,
`improvement` does so for P(X > Y), and `figure` draws what these tables say.
`speed` makes the interval of the IQM of 15 tasks with 4096 runs each from 50,000 resamples, here and with rliable 1.2.0
on the same scores, each in a process of its own, and prints seconds, peak memory and both intervals.
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from analysis import bootstrap, win_rate

DOCS = Path(__file__).resolve().parent.parent / "docs"
DATASETS = 2000
RUNS = (3, 5, 6, 8, 10, 20, 30, 100)
REPETITIONS = 1000
TICKS = (3, 5, 10, 30, 100)


class Distribution(NamedTuple):
    """Where runs' scores come from."""

    sample: Callable[[np.random.Generator, int], np.ndarray]
    quantile: Callable[[np.ndarray], np.ndarray]


def bimodal(rng: np.random.Generator, runs: int) -> np.ndarray:
    """Three runs of ten fail and stay around 0, the others come to around 1."""
    return np.where(rng.random(runs) < 0.3, 0.0, 1.0) + 0.1 * rng.normal(size=runs)


def bimodal_quantile(shares: np.ndarray) -> np.ndarray:
    """By interpolation in the cumulative distribution."""
    grid = np.linspace(-1.0, 2.0, 200_001)
    cumulative = 0.3 * scipy.stats.norm.cdf(grid, 0.0, 0.1) + 0.7 * scipy.stats.norm.cdf(grid, 1.0, 0.1)
    return np.interp(shares, cumulative, grid)


def tied(rng: np.random.Generator, runs: int) -> np.ndarray:
    """Half of the runs reach the most that there is, the others anything below."""
    return np.where(rng.random(runs) < 0.5, 1.0, rng.random(runs))


def tied_quantile(shares: np.ndarray) -> np.ndarray:
    """Of the lower half, the uniform one."""
    return np.minimum(2 * shares, 1.0)


DISTRIBUTIONS = {
    "normal": Distribution(lambda rng, runs: rng.normal(size=runs), scipy.stats.norm.ppf),
    "heavy-tailed (t, 3 degrees)": Distribution(lambda rng, runs: rng.standard_t(3, runs), scipy.stats.t(3).ppf),
    "skewed (exponential)": Distribution(lambda rng, runs: rng.exponential(size=runs), scipy.stats.expon.ppf),
    "bimodal (30 % fail)": Distribution(bimodal, bimodal_quantile),
    "tied (50 % at the maximum)": Distribution(tied, tied_quantile),
}
PAIRS = {
    "the same": (lambda rng, runs: rng.normal(size=runs), lambda rng, runs: rng.normal(size=runs)),
    "X higher by a standard deviation": (
        lambda rng, runs: rng.normal(size=runs) + 1,
        lambda rng, runs: rng.normal(size=runs),
    ),
    "X higher by three": (lambda rng, runs: rng.normal(size=runs) + 3, lambda rng, runs: rng.normal(size=runs)),
    "X varies, Y hardly": (
        lambda rng, runs: rng.normal(size=runs) + 0.5,
        lambda rng, runs: 0.05 * rng.normal(size=runs),
    ),
    "3 runs of 10 of X fail, Y is in between": (bimodal, lambda rng, runs: 0.5 + 0.05 * rng.normal(size=runs)),
    "half of the runs of both tie": (tied, tied),
}


def coverage() -> None:
    """Print a row a distribution and number of runs: how often intervals hold the truth, and in brackets how wide they
    are, in widths of the normal interval that knows the estimate's standard error."""
    names = ("mean", "IQM", "difference of means", "difference of IQMs")
    head = " | ".join(f"{name}, percentile | {name}" if i < 3 else name for i, name in enumerate(names))
    print(f"| scores | runs | {head} |\n|{'---|' * 9}")
    shares = (np.arange(1_000_000) + 0.5) / 1_000_000
    for name, distribution in DISTRIBUTIONS.items():
        quantiles = distribution.quantile(shares)
        truths = np.repeat([quantiles.mean(), quantiles[250_000:750_000].mean(), 0.0, 0.0], [2, 2, 2, 1])
        for runs in RUNS:
            rng = np.random.default_rng(0)
            found = np.empty((DATASETS, 7, 3))
            for seed in range(DATASETS):
                x, y = ([distribution.sample(rng, runs)] for _ in range(2))
                settings: Any = {"repetitions": REPETITIONS, "seed": seed, "withhold": False}
                both = ({"method": "percentile"}, {"method": "expanded"})
                found[seed] = [
                    *(bootstrap.interval(x, bootstrap.mean, **settings, **each) for each in both),
                    *(bootstrap.interval(x, bootstrap.iqm, **settings, **each) for each in both),
                    *(bootstrap.difference(x, y, bootstrap.mean, **settings, **each) for each in both),
                    bootstrap.difference(x, y, bootstrap.iqm, **settings),
                ]
            print(f"| {name} | {runs} | {' | '.join(cells(found, truths))} |", flush=True)


def cells(found: np.ndarray, truths: Any) -> list[str]:
    """Of `[sets, intervals, (estimate, low, high)]`: the share that holds the truth, and the width."""
    estimates, low, high = np.moveaxis(found, -1, 0)
    held = ((low <= truths) & (truths <= high)).mean(axis=0)
    widths = (high - low).mean(axis=0) / (2 * scipy.stats.norm.ppf(0.975) * estimates.std(axis=0))
    return [f"{share:.1%} ({width:.2f})" for share, width in zip(held, widths, strict=True)]


def improvement() -> None:
    """Print a row a pair of distributions and number of runs: as `coverage`, for P(X > Y)."""
    print(f"| scores | runs of each | P(X > Y) | percentile | score |\n|{'---|' * 5}")
    for name, (x_sample, y_sample) in PAIRS.items():
        rng = np.random.default_rng(1)
        many = x_sample(rng, 1_000_000), y_sample(rng, 1_000_000)
        [truth] = win_rate.from_scores(many[:1], many[1:]).estimates
        for runs in RUNS:
            rng = np.random.default_rng(0)
            found, rates = np.empty((DATASETS, 2, 3)), []
            for seed in range(DATASETS):
                x, y = [x_sample(rng, runs)], [y_sample(rng, runs)]
                settings: Any = {"repetitions": REPETITIONS, "seed": seed, "withhold": False}
                found[seed, 0] = bootstrap.improvement(x, y, method="percentile", **settings)
                rates.append(win_rate.from_scores(x, y))
            estimates, variances = (np.stack(each) for each in list(zip(*rates, strict=True))[:2])
            all_sets = rates[0]._replace(estimates=estimates, variances=variances)
            found[:, 1] = np.stack([estimates[:, 0], *win_rate.interval(all_sets)], axis=1)
            print(f"| {name} | {runs} | {truth:.2f} | {' | '.join(cells(found, truth))} |", flush=True)


def figure() -> None:
    """Draw docs/coverage.png: what the tables of docs/statistics.md say, against the number of runs."""
    from matplotlib.figure import Figure

    rows = re.findall(r"^\| (.+?) \| (\d+) \| (.+) \|$", (DOCS / "statistics.md").read_text("utf-8"), re.M)
    # Places of (rliable's, ours) among the shares of a row.
    panels = {
        "IQM, normal scores": ("normal", 2, 3),
        "IQM, skewed scores": ("skewed (exponential)", 2, 3),
        "P(X > Y) = 0.98": ("X higher by three", 0, 1),
    }
    drawing = Figure(figsize=(9, 3), layout="constrained")
    for axes, (title, (name, *places)) in zip(drawing.subplots(1, 3, sharey=True), panels.items(), strict=True):
        found = [(int(runs), re.findall(r"([\d.]+)%", shares)) for row, runs, shares in rows if row == name]
        for place, label, style in zip(places, ("rliable", "rlsuite"), ("o--", "s-"), strict=True):
            withheld = bootstrap.FEWEST_RUNS if label == "rlsuite" and "IQM" in title else 0
            shown = [(runs, float(shares[place])) for runs, shares in found if runs >= withheld]
            axes.plot(*zip(*shown, strict=True), style, label=label)
        axes.axhline(95, color="0.6", linewidth=1, zorder=0)
        axes.set(title=title, xscale="log", xlabel="runs (of each label)", xticks=TICKS)
        axes.minorticks_off()
        axes.set_xticklabels(list(map(str, TICKS)))
    drawing.axes[0].set_ylabel("sets whose 95 % interval\nholds the truth (%)")
    drawing.axes[0].legend(loc="lower right")
    drawing.savefig(DOCS / "coverage.png", dpi=110)


def scores() -> dict[str, np.ndarray]:
    """`[4096 runs, 15 tasks]`"""
    return {"made up": np.random.default_rng(0).normal(0.5, 0.3, (4096, 15))}


def suite_interval() -> np.ndarray:
    """`[low, high]` of the IQM, by this suite."""
    return np.array(bootstrap.interval(scores(), bootstrap.iqm, repetitions=50_000)["made up"][1:])


def rliable_interval() -> np.ndarray:
    """`[low, high]` of the IQM, by rliable."""
    from rliable import library, metrics

    def iqm(of: np.ndarray) -> np.ndarray:
        return np.array([metrics.aggregate_iqm(of)])

    _, intervals = library.get_interval_estimates(scores(), iqm, reps=50_000)
    return np.asarray(intervals["made up"])[:, 0]


WAYS = {"rlsuite": suite_interval, "rliable": rliable_interval}


def measure(way: str) -> None:
    """Print the row of one of `WAYS`: its interval, seconds, and the memory that it adds to that of the scores."""
    scores()
    if way == "rliable":
        import rliable.library  # noqa: F401, so that its seconds and memory are not counted
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    low, high = WAYS[way]()
    seconds = time.perf_counter() - start
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"| {way} | {seconds:.1f} s | {megabytes:.0f} MB | [{low:.6f}, {high:.6f}] |", flush=True)


def speed() -> None:
    """Print a row a way, each from a process of its own."""
    print(f"| by | time | memory on top | interval |\n|{'---|' * 4}", flush=True)
    for way in WAYS:
        subprocess.run([sys.executable, __file__, "measure", way], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("coverage", "improvement", "figure", "speed", "measure"))
    parser.add_argument("way", nargs="?", choices=WAYS, help="of measure: one row of speed, in this process")
    arguments = parser.parse_args()
    if arguments.what == "measure":
        measure(arguments.way)
    else:
        {"coverage": coverage, "improvement": improvement, "figure": figure, "speed": speed}[arguments.what]()
