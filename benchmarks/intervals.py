"""How often intervals hold the truth, and how long they take beside rliable's: prints the tables in docs/statistics.md.

    python benchmarks/intervals.py coverage
    python benchmarks/intervals.py speed

`coverage` draws runs from distributions whose true figures are known and counts how often the 95 % interval holds them.
`speed` makes the interval of the IQM of 15 tasks with 4096 runs each from 50,000 resamples, here and with rliable 1.2.0
on the same scores, each in a process of its own, and prints seconds, peak memory and both intervals.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from analysis import bootstrap

DATASETS = 2000
RUNS = (2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 300)
REPETITIONS = 1000


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


DISTRIBUTIONS = {
    "normal": Distribution(lambda rng, runs: rng.normal(size=runs), scipy.stats.norm.ppf),
    "heavy-tailed (t, 3 degrees)": Distribution(lambda rng, runs: rng.standard_t(3, runs), scipy.stats.t(3).ppf),
    "skewed (exponential)": Distribution(lambda rng, runs: rng.exponential(size=runs), scipy.stats.expon.ppf),
    "bimodal (30 % fail)": Distribution(bimodal, bimodal_quantile),
}


def coverage() -> None:
    """Print a row a distribution and number of runs: how often the intervals of mean, IQM, the difference of two IQMs
    and the probability of improvement hold the truth."""
    print(f"| scores | runs | mean | IQM | difference of IQMs | P(X > Y) |\n|{'---|' * 6}")
    shares = (np.arange(1_000_000) + 0.5) / 1_000_000
    for name, distribution in DISTRIBUTIONS.items():
        quantiles = distribution.quantile(shares)
        truths = (quantiles.mean(), quantiles[250_000:750_000].mean(), 0.0, 0.5)
        for runs in RUNS:
            rng = np.random.default_rng(0)
            held = np.zeros(4)
            for seed in range(DATASETS):
                x, y = ([distribution.sample(rng, runs)] for _ in range(2))
                settings: Any = {"repetitions": REPETITIONS, "seed": seed, "withhold": False}
                found = (
                    bootstrap.interval(x, bootstrap.mean, **settings),
                    bootstrap.interval(x, bootstrap.iqm, **settings),
                    bootstrap.difference(x, y, bootstrap.iqm, **settings),
                    bootstrap.improvement(x, y, **settings),
                )
                held += [each.low <= truth <= each.high for each, truth in zip(found, truths, strict=True)]
            print(f"| {name} | {runs} | {' | '.join(f'{share:.1%}' for share in held / DATASETS)} |", flush=True)


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
    parser.add_argument("what", choices=("coverage", "speed", "measure"))
    parser.add_argument("way", nargs="?", choices=WAYS, help="of measure: one row of speed, in this process")
    arguments = parser.parse_args()
    if arguments.what == "measure":
        measure(arguments.way)
    else:
        {"coverage": coverage, "speed": speed}[arguments.what]()
