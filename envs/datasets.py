"""A dataset for offline learning: one pytree of arrays, of which a whole batch of runs reads one copy on the device.

Learners see actions in units of the action box: -1 is its low and 1 its high end, dimension by dimension. Observations
and rewards are as they were recorded; the statistics for normalising them are kept next to them, since some methods
normalise and others do not.

`build` makes a dataset from arrays and checks them. Files are read by `envs/dataset_files.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from typing import Any, NamedTuple

import numpy as np
from flax import struct

from envs.core import Array, Box, Reference, Space

MAX_ROWS = 2**31 - 1
"""transitions of a dataset, which are numbered in int32"""
STD_FLOOR = 1e-3
"""added to the standard deviation by which observations are divided, as in D4RL's learners"""


class DatasetError(ValueError):
    """A dataset cannot be used. The message is one line: what it is, what is wrong with it, what to do."""


class Records(NamedTuple):
    """What a file holds: NumPy, one row a transition, in the order of time and episode after episode."""

    obs: np.ndarray
    """`[n, obs_dim]`"""
    action: np.ndarray
    """`[n, action_dim]` in the environment's own units"""
    reward: np.ndarray
    """`[n]`"""
    next_obs: np.ndarray
    """`[n, obs_dim]`: where the action led, never the observation after a reset"""
    next_action: np.ndarray
    """`[n, action_dim]`: what was done there; at the end of an episode, where nothing was done, the action repeated"""
    terminated: np.ndarray
    """`[n]` bool"""
    truncated: np.ndarray
    """`[n]` bool: the last transition of an episode that did not terminate, where the record has one"""
    episode: np.ndarray
    """`[n]` int: 0 for the rows of the first episode, 1 for those of the second, ..."""
    episode_return: np.ndarray
    """`[episodes]` undiscounted, of what was recorded"""
    complete: np.ndarray
    """`[episodes]` bool: the record goes on until the episode terminated or its time limit was reached; otherwise
    `episode_return` is that of a part"""


class Batch(NamedTuple):
    """Transitions drawn from a dataset; leading axes `[...]` as they were asked for."""

    obs: Array
    """`[..., obs_dim]`"""
    action: Array
    """`[..., action_dim]` in [-1, 1]"""
    reward: Array
    """`[...]`"""
    next_obs: Array
    """`[..., obs_dim]`"""
    next_action: Array
    """`[..., action_dim]` in [-1, 1]; no action of the record where `terminated` or `truncated`"""
    terminated: Array
    """`[...]` bool: bootstrap with 0"""
    truncated: Array
    """`[...]` bool: bootstrap with the value of next_obs; there is no next action"""


@struct.dataclass
class Blocks:
    """Observations and actions of a dataset in blocks of rows that lie close together, for `rlsuite/pieces/nearest.py`.

    A group has about as many blocks as there are groups. Axes are the other way round than in
    `Dataset.rows`, so that a processor works on many rows at once.
    """

    points: Array
    """`[groups * blocks of a group, obs_dim + action_dim, rows of a block]` float32: obs and action as in
    `Dataset.rows`; the last ones may be `PADDING`"""
    row: Array
    """`[groups * blocks of a group, rows of a block]` int32: which row of `Dataset.rows` it is; 0 in the padding"""
    low: Array
    """`[obs_dim + action_dim, groups, blocks of a group]`: the least that each block holds, without the padding"""
    high: Array
    """as `low`: the most"""
    group_low: Array
    """`[obs_dim + action_dim, groups]`: the least that each group holds"""
    group_high: Array
    """as `group_low`: the most"""


PADDING = 1e18
"""a coordinate that is far from any other and has a finite square"""


@struct.dataclass
class Dataset:
    """Transitions, and what learners and reports need to know of them.

    The arrays are NumPy's until a batch of runs places them on its devices, one copy on each.
    """

    rows: Array
    """`[n, 2 obs_dim + 2 action_dim + 3]` float32: obs, action, reward, next_obs, next_action, terminated, truncated
    side by side, so that a batch is one gather"""
    episode: Array
    """`[n]` int32: which episode a row belongs to"""
    episode_return: Array
    """`[episodes]` float32, undiscounted, of what was recorded"""
    complete: Array
    """`[episodes]` bool: whether `episode_return` is the return of a whole episode, as in `Records`"""
    start_obs: Array
    """`[episodes, obs_dim]`: the first observation of each episode"""
    obs_mean: Array
    """`[obs_dim]`"""
    obs_std: Array
    """`[obs_dim]`, over the whole dataset, without `STD_FLOOR`"""
    threshold: Array
    """`[n]` float32 of the alias method, see `weigh`; `[0]` where every transition is as likely"""
    alias: Array
    """`[n]` int32, or `[0]`"""
    id: str = struct.field(pytree_node=False)
    obs_dim: int = struct.field(pytree_node=False)
    space: Box = struct.field(pytree_node=False)
    """the action box of the environment"""
    checksum: str = struct.field(pytree_node=False)
    """SHA-256 of the transitions, the first 16 hex digits"""
    source: str = struct.field(pytree_node=False)
    """where it comes from, in words"""
    reference: Reference | None = struct.field(pytree_node=False, default=None)
    """for normalised scores, if the dataset brings returns of its own"""
    blocks: Blocks | None = None
    """for learners that look for near transitions, see `with_blocks`; None for all others"""

    @property
    def size(self) -> int:
        """Number of transitions."""
        return self.rows.shape[0]

    @property
    def transitions(self) -> Batch:
        """All of them, `[n, ...]`."""
        return self.unpack(self.rows)

    def unpack(self, rows: Array) -> Batch:
        """Rows `[..., width]` as a batch."""
        o, a = self.obs_dim, self.space.dim
        return Batch(
            obs=rows[..., :o],
            action=rows[..., o : o + a],
            reward=rows[..., o + a],
            next_obs=rows[..., o + a + 1 : 2 * o + a + 1],
            next_action=rows[..., 2 * o + a + 1 : -2],
            terminated=rows[..., -2] > 0.5,
            truncated=rows[..., -1] > 0.5,
        )

    def normalize(self, obs: Array) -> Array:
        """(obs - mean) / (std + 1e-3), with the statistics of the whole dataset: `[..., obs_dim]`."""
        return (obs - self.obs_mean) / (self.obs_std + STD_FLOOR)


def to_unit(action: np.ndarray, space: Box) -> np.ndarray:
    """Actions in the environment's units `[..., action_dim]` in units of its box, [-1, 1]."""
    low, high = np.asarray(space.low), np.asarray(space.high)
    unit: np.ndarray = 2.0 * (action.astype(np.float64) - low) / (high - low) - 1.0
    return unit


def first_fault(numbers: np.ndarray) -> tuple[int, str] | None:
    """The first row of `[n, ...]` that float32 does not hold as finite numbers, and what is wrong; None if all are."""
    if numbers.dtype.kind not in "biuf":
        return 0, f"of type {numbers.dtype}, no number"
    by_row = numbers.reshape(len(numbers), -1)
    with np.errstate(over="ignore"):
        # As they are kept: what is finite in float64 may not be so in float32.
        good = np.isfinite(by_row.astype(np.float32, copy=False))
    if good.all():
        return None
    row = int(np.argmin(good.all(axis=1)))
    worst = by_row[row][int(np.argmin(good[row]))]
    return row, f"not finite in float32 ({worst})" if np.isfinite(worst) else "not finite"


def build(
    dataset_id: str,
    records: Records,
    space: Space,
    *,
    source: str,
    reference: Reference | None = None,
    clip_actions: bool = False,
) -> Dataset:
    """A dataset from what a file holds, drawn uniformly.

    Actions that rounding has put outside of the box are clipped to it; with `clip_actions`, all others as well.

    Raises:
        DatasetError: discrete actions, no transition, arrays whose shapes do not belong together, a number that is not
            finite in float32, or an action that lies outside of the box by more than rounding.
    """
    if not isinstance(space, Box):
        raise DatasetError(f"dataset '{dataset_id}' has discrete actions; offline learners here need continuous ones")
    check_transitions(dataset_id, records, space)
    first = check_episodes(dataset_id, records)
    unit, next_unit = to_unit(records.action, space), to_unit(records.next_action, space)
    for name, actions, units in (("action", records.action, unit), ("next_action", records.next_action, next_unit)):
        outside = np.abs(units).max(axis=1) > 1.0 + 1e-4
        if outside.any() and not clip_actions:
            bad = int(np.argmax(outside))
            raise DatasetError(
                f"dataset '{dataset_id}': {name} {actions[bad].tolist()} of transition {bad} lies outside of the "
                f"action box {list(space.low)} .. {list(space.high)}; take --clip-actions, or its own environment"
            )
    columns = [
        records.obs,
        np.clip(unit, -1.0, 1.0),
        records.reward[:, None],
        records.next_obs,
        np.clip(next_unit, -1.0, 1.0),
        records.terminated[:, None],
        records.truncated[:, None],
    ]
    rows = np.concatenate([np.asarray(column, np.float32) for column in columns], axis=1)
    obs = records.obs.astype(np.float64)
    leaves: dict[str, Any] = {
        "rows": rows,
        "episode": records.episode.astype(np.int32),
        "episode_return": records.episode_return.astype(np.float32),
        "complete": records.complete.astype(bool),
        "start_obs": records.obs[first].astype(np.float32),
        "obs_mean": obs.mean(axis=0).astype(np.float32),
        "obs_std": obs.std(axis=0).astype(np.float32),
        "threshold": np.zeros(0, np.float32),
        "alias": np.zeros(0, np.int32),
    }
    return Dataset(
        **leaves,
        id=dataset_id,
        obs_dim=records.obs.shape[1],
        space=space,
        checksum=hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()[:16],
        source=source,
        reference=reference,
    )


def check_transitions(dataset_id: str, records: Records, space: Box) -> None:
    """Raise DatasetError unless there are transitions whose arrays belong together and are finite in float32."""
    n = len(records.obs)
    if n == 0:
        raise DatasetError(f"dataset '{dataset_id}' holds no transition; record some, or name another")
    if n > MAX_ROWS:
        raise DatasetError(f"dataset '{dataset_id}' holds {n} transitions, more than {MAX_ROWS}; use a part of it")
    if records.obs.ndim != 2:
        raise DatasetError(f"dataset '{dataset_id}': observations are {records.obs.shape}, expected [n, obs_dim]")
    shapes = {
        "obs": (n, records.obs.shape[1]),
        "action": (n, space.dim),
        "reward": (n,),
        "next_obs": (n, records.obs.shape[1]),
        "next_action": (n, space.dim),
        "terminated": (n,),
        "truncated": (n,),
        "episode": (n,),
    }
    for name, shape in shapes.items():
        there = getattr(records, name)
        if there.shape != shape:
            raise DatasetError(
                f"dataset '{dataset_id}': {name} is {list(there.shape)}, expected {list(shape)}; "
                "it is damaged, or of another environment"
            )
        if (fault := first_fault(there)) is not None:
            row, what = fault
            raise DatasetError(
                f"dataset '{dataset_id}': {name} of transition {row} is {what}; remove that episode or record again"
            )
    for name in ("terminated", "truncated"):
        flags = getattr(records, name)
        if not np.isin(flags, (0, 1)).all():
            bad = int(np.argmin(np.isin(flags, (0, 1))))
            raise DatasetError(f"dataset '{dataset_id}': {name} of transition {bad} is {flags[bad]}; expected 0 or 1")


def check_episodes(dataset_id: str, records: Records) -> np.ndarray:
    """The first row of each episode: `[episodes]`.

    Raises:
        DatasetError: episodes are not numbered in the order of their rows, or what is known of them is not of each one.
    """
    episodes = records.episode.astype(np.int64)
    first = np.flatnonzero(np.diff(episodes, prepend=-1))
    if (episodes != records.episode).any() or episodes[0] != 0 or not np.isin(np.diff(episodes), (0, 1)).all():
        raise DatasetError(f"dataset '{dataset_id}': episodes are not numbered 0, 1, 2, ... in the order of their rows")
    for what, per_episode in (("returns of episodes", records.episode_return), ("marks of complete", records.complete)):
        if per_episode.shape != (len(first),):
            raise DatasetError(f"dataset '{dataset_id}': {len(first)} episodes, but {len(per_episode)} {what}")
    if (fault := first_fault(records.episode_return)) is not None:
        bad, what = fault
        raise DatasetError(
            f"dataset '{dataset_id}': the return of episode {bad} is {what}; remove that episode or record again"
        )
    return first


# --- How transitions are drawn ----------------------------------------------------------------------------------------

SAMPLINGS = {
    "uniform": "every transition is as likely",
    "advantage_weighted=T": "trajectories by return beyond what their first observation predicts; temperature T (0.1)",
    "return_weighted=T": "trajectories by return; temperature T (0.1)",
    "top=SHARE": "the trajectories of highest return only, such as 0.1; all statistics are theirs",
}
"""What `draw` takes, and one line on each. The return of a trajectory that was cut off is not known: it is never among
the top, and weighs as much as the worst of those that are complete."""


def check_sampling(sampling: str) -> tuple[str, float]:
    """The name and the value of a sampling; raise DatasetError unless `draw` takes it."""
    name, _, text = sampling.partition("=")
    if sampling == "uniform":
        return name, 0.0
    if name not in ("advantage_weighted", "return_weighted", "top"):
        raise DatasetError(f"unknown sampling '{sampling}'; there are: {', '.join(SAMPLINGS)}")
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < np.inf or (name == "top" and value > 1.0):
        expected = "a share above 0 and at most 1" if name == "top" else "a temperature above 0"
        raise DatasetError(f"sampling '{sampling}' needs {expected}, such as {name}=0.1")
    return name, value


def draw(dataset: Dataset, sampling: str) -> Dataset:
    """The same dataset, whose transitions are drawn in this way (Hong et al. 2023, arXiv 2306.13085, for the weights).

    Raises:
        DatasetError: as `check_sampling`; or it goes by return, and no trajectory is complete.
    """
    name, value = check_sampling(sampling)
    if name == "uniform":
        return dataset
    complete = np.asarray(dataset.complete)
    if not complete.any():
        raise DatasetError(
            f"dataset '{dataset.id}' has no complete episode, so that '{sampling}' has no return to go by: all "
            f"{len(complete)} end before they terminate or reach the time limit; sample uniformly, or give the limit "
            "that they were recorded with as --max-episode-steps"
        )
    if name == "top":
        return top(dataset, value)
    values = np.asarray(dataset.episode_return, np.float64)[complete]
    if name == "advantage_weighted":
        values = values - predicted_returns(np.asarray(dataset.start_obs, np.float64)[complete], values)
    every = np.full(len(complete), values.min())
    every[complete] = values
    return weigh(dataset, trajectory_weights(every, np.asarray(dataset.episode), value))


def top(dataset: Dataset, share: float) -> Dataset:
    """The trajectories of highest return alone: this share of the complete ones, at least one of one or more.

    Statistics are recomputed.
    """
    returns, episode = np.asarray(dataset.episode_return), np.asarray(dataset.episode)
    ranked = np.flatnonzero(np.asarray(dataset.complete))
    count = max(1, round(share * len(ranked)))
    kept = np.sort(ranked[np.argsort(-returns[ranked], kind="stable")[:count]])
    chosen = np.isin(episode, kept)
    rows = np.asarray(dataset.rows)[chosen]
    obs = rows[:, : dataset.obs_dim].astype(np.float64)
    leaves: dict[str, Any] = {
        "rows": rows,
        "episode": np.searchsorted(kept, episode[chosen]).astype(np.int32),
        "episode_return": returns[kept],
        "complete": np.ones(len(kept), bool),
        "start_obs": np.asarray(dataset.start_obs)[kept],
        "obs_mean": obs.mean(axis=0).astype(np.float32),
        "obs_std": obs.std(axis=0).astype(np.float32),
        "blocks": None,
    }
    return dataclasses.replace(dataset, **leaves)


def predicted_returns(start_obs: np.ndarray, returns: np.ndarray) -> np.ndarray:
    """What a least-squares linear function of the first observation says of the return: `[episodes]`."""
    inputs = np.concatenate([start_obs, np.ones((len(start_obs), 1))], axis=1)
    predicted: np.ndarray = inputs @ np.linalg.lstsq(inputs, returns, rcond=None)[0]
    return predicted


def trajectory_weights(values: np.ndarray, episode: np.ndarray, temperature: float) -> np.ndarray:
    """Probability of every transition `[n]` when those of a trajectory weigh exp(its value / temperature), with values
    `[episodes]` first mapped onto [0, 1]."""
    spread = values.max() - values.min()
    scaled = (values - values.min()) / spread if spread > 0 else np.zeros_like(values)
    weights = np.exp((scaled - scaled.max()) / temperature)[episode]
    probabilities: np.ndarray = weights / weights.sum()
    return probabilities


def weigh(dataset: Dataset, probability: np.ndarray) -> Dataset:
    """The dataset with transitions drawn by these probabilities `[n]`, by the alias method (Walker 1977, Vose 1991).

    Row i keeps itself with probability `threshold[i]`, else it stands for row `alias[i]`: two uniform numbers and two
    gathers a draw, exact for any number of transitions.
    """
    n = dataset.size
    scaled = np.asarray(probability, np.float64) * n
    threshold, alias = np.ones(n), np.arange(n)
    small, large = list(np.flatnonzero(scaled < 1.0)), list(np.flatnonzero(scaled >= 1.0))
    while small and large:
        i, j = small.pop(), large[-1]
        threshold[i], alias[i] = scaled[i], j
        scaled[j] -= 1.0 - scaled[i]
        if scaled[j] < 1.0:
            small.append(large.pop())
    # What rounding has left over is within rounding of 1.
    leaves: dict[str, Any] = {"threshold": threshold.astype(np.float32), "alias": alias.astype(np.int32)}
    return dataclasses.replace(dataset, **leaves)


# --- Which transitions lie close together -----------------------------------------------------------------------------

BLOCK_ROWS = 128
"""rows of a block: 64 and 256 were slower at a million transitions"""
SPREAD_FROM = 1024
"""rows of which the spread of a block is measured"""


def with_blocks(dataset: Dataset) -> Dataset:
    """The dataset with `blocks`: cut in halves across the widest direction again and again, as a k-d tree is built.

    Which direction is the widest is judged with observations in standard deviations; that only matters for the speed of
    a search.
    """
    points = np.asarray(dataset.rows)[:, : dataset.obs_dim + dataset.space.dim]
    n, dim = points.shape
    size = BLOCK_ROWS
    members = math.isqrt(-(-n // size) - 1) + 1  # blocks of a group
    groups = -(-n // (size * members))
    scale = np.concatenate([np.asarray(dataset.obs_std) + STD_FLOOR, np.ones(dataset.space.dim, np.float32)])
    order = np.arange(n)
    pending = [(0, n)]
    while pending:
        first, stop = pending.pop()
        if stop - first <= size:
            continue
        part = order[first:stop]
        some = points[part[:: -(-len(part) // SPREAD_FROM)]]
        widest = np.argmax(np.ptp(some, axis=0) / scale)
        # A whole number of groups or blocks on the left, so that only the last ones of all are not full.
        unit = size * members if len(part) > size * members else size
        left = unit * ((-(-len(part) // unit) + 1) // 2)
        order[first:stop] = part[np.argpartition(points[part, widest], left - 1)]
        pending += [(first, first + left), (first + left, stop)]
    count = groups * members
    row = np.zeros(count * size, np.int32)
    row[:n] = order
    there = (np.arange(count * size) < n).reshape(count, 1, size)
    block_points = np.where(there, points[row].reshape(count, size, dim).swapaxes(1, 2), np.float32(PADDING))
    low = block_points.min(axis=2)
    high = np.where(there, block_points, np.float32(-np.inf)).max(axis=2)

    def by_group(values: np.ndarray) -> np.ndarray:
        return values.T.reshape(dim, groups, members)

    leaves: dict[str, Any] = {
        "points": block_points,
        "row": row.reshape(count, size),
        "low": by_group(low).copy(),
        "high": by_group(np.maximum(low, high)).copy(),  # a block of padding alone is as far away as that
        "group_low": by_group(low).min(axis=2),
        "group_high": by_group(high).max(axis=2),
    }
    return dataclasses.replace(dataset, blocks=Blocks(**leaves))
