"""How good a dataset is and how much it covers: TQ and SACo (Schweighofer et al. 2022, arXiv 2111.04714).

- TQ, the quality of trajectories: (mean return - low) / (high - low), with low the return of random actions and high
  that of the best policy; 0 is random, 1 as good as the best. Trajectories that were cut off have no known return.
- SACo, the coverage of states and actions: u(dataset) / u(reference dataset), where u counts the different pairs of
  state and action and the reference is the replay dataset of the same environment, best of the same run.

Continuous numbers are put into `BINS` equal bins between the smallest and the largest of the reference dataset, axis
by axis. What lies outside of that range is counted with the bin at the end.

Deviations from the authors' code (ml-jku/OfflineRL): pairs are counted exactly, theirs are estimated (HyperLogLog with
a relative error of 0.01). Actions are in units of the action box, which moves no edge of a bin.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from envs.core import Reference
from envs.datasets import Dataset, DatasetError

BINS = 100
"""along each axis of observation and action"""
CHUNK = 65_536
"""transitions that are put into bins at once, to bound memory"""


class Spread(NamedTuple):
    """Of one number per episode."""

    mean: float
    std: float
    """with ddof=0, as NumPy's"""
    low: float
    median: float
    high: float


class Measures(NamedTuple):
    """What is to be known of a dataset."""

    transitions: int
    episodes: int
    terminated: int
    """episodes that ended by themselves"""
    incomplete: int
    """episodes whose record ends before they do; the others ended by themselves or by their time limit"""
    returns: Spread | None
    """of the complete episodes; None without any"""
    lengths: Spread
    """of all episodes, in recorded transitions"""
    pairs: int
    """different pairs of state and action, in bins between the extremes of the reference dataset, or of the dataset
    itself where there is none"""
    tq: float | None
    """of the complete episodes; None without any, or without reference returns"""
    saco: float | None
    """None without a reference dataset"""


def measure(dataset: Dataset, reference: Reference | None, against: Dataset | None = None) -> Measures:
    """Measure a dataset.

    Args:
        dataset: as it was recorded.
        reference: the returns that TQ lies between.
        against: the dataset whose coverage counts as 1, for SACo.

    Raises:
        DatasetError: the reference dataset is of another environment.
    """
    if against is not None and pairs_of(against, 0, 0).shape[1] != pairs_of(dataset, 0, 0).shape[1]:
        raise DatasetError(
            f"reference dataset '{against.id}' has observations of {against.obs_dim} numbers and {against.space.dim} "
            f"actions, but '{dataset.id}' has {dataset.obs_dim} and {dataset.space.dim}; name one of its environment"
        )
    low, high = extremes(dataset if against is None else against)
    pairs = unique_pairs(dataset, low, high)
    complete = np.asarray(dataset.complete)
    returns = known_returns(dataset)
    return Measures(
        transitions=dataset.size,
        episodes=len(complete),
        terminated=int(np.sum(np.asarray(dataset.transitions.terminated))),
        incomplete=int(np.sum(~complete)),
        returns=spread(returns) if returns.size else None,
        lengths=spread(np.bincount(np.asarray(dataset.episode))),
        pairs=pairs,
        tq=None if reference is None or not returns.size else trajectory_quality(returns, reference),
        saco=None if against is None else pairs / unique_pairs(against, low, high),
    )


def known_returns(dataset: Dataset) -> np.ndarray:
    """The returns of the complete episodes, `[complete episodes]` float64."""
    return np.asarray(dataset.episode_return, np.float64)[np.asarray(dataset.complete)]


def trajectory_quality(returns: np.ndarray, reference: Reference) -> float | None:
    """TQ of episode returns `[n]`, n >= 1; None where both reference returns are the same."""
    width = reference.high - reference.low
    return float((returns.mean() - reference.low) / width) if width else None


def spread(values: np.ndarray) -> Spread:
    """Of `[n]`, n >= 1."""
    return Spread(*(float(of(values)) for of in (np.mean, np.std, np.min, np.median, np.max)))


def pairs_of(dataset: Dataset, start: int, stop: int) -> np.ndarray:
    """Observations and actions side by side, `[stop - start, obs_dim + action_dim]`."""
    rows: np.ndarray = np.asarray(dataset.rows[start:stop])[:, : dataset.obs_dim + dataset.space.dim]
    return rows


def extremes(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest number along each axis: two of `[obs_dim + action_dim]`, float64."""
    pairs = pairs_of(dataset, 0, dataset.size)
    return pairs.min(axis=0).astype(np.float64), pairs.max(axis=0).astype(np.float64)


def unique_pairs(dataset: Dataset, low: np.ndarray, high: np.ndarray) -> int:
    """How many different pairs of state and action there are, in bins between `low` and `high`.

    An axis along which these are the same has one bin.
    """
    width = np.where(high > low, high - low, 1.0)
    bins = np.empty((dataset.size, len(low)), np.uint8)
    for start in range(0, dataset.size, CHUNK):
        share = (pairs_of(dataset, start, start + CHUNK).astype(np.float64) - low) / width
        numbers = np.clip(np.floor(share * BINS), 0, BINS - 1)
        bins[start : start + CHUNK] = np.where(high > low, numbers, 0)
    # Rows as single values: one sort, and no more memory than the bins.
    rows = np.ascontiguousarray(bins).view(np.dtype((np.void, bins.shape[1])))
    return len(np.unique(rows))


def histogram(values: np.ndarray, most: int = 10) -> list[tuple[float, float, int]]:
    """(from, to, how many) of equal intervals that cover the values `[n]`; one interval if all are the same."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return [(low, high, len(values))]
    counts, edges = np.histogram(values.astype(np.float64), bins=most)
    return [(float(a), float(b), int(n)) for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)]
