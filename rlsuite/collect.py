"""Datasets made here: records of policies acting in an environment, collected inside a compiled program."""

from __future__ import annotations

import numpy as np

from envs.datasets import Records
from rlsuite.core import Transition


def records_of(transitions: Transition) -> Records:
    """Complete episodes of `[time, num_envs, ...]` steps that `rollout.collect` took, environment after environment.

    What comes after the last end of an environment is left out: its episode was not played to the end.
    """
    steps = {name: np.asarray(field) for name, field in transitions._asdict().items()}
    done = steps["terminated"] | steps["truncated"]
    time, num_envs = done.shape
    kept: list[dict[str, np.ndarray]] = []
    returns: list[np.ndarray] = []
    for env in range(num_envs):
        ends = np.flatnonzero(done[:, env])
        if not ends.size:
            continue
        length = ends[-1] + 1
        rows = {name: field[:length, env] for name, field in steps.items()}
        following = np.minimum(np.arange(length) + 1, length - 1)
        following[ends] = ends
        number = np.searchsorted(ends, np.arange(length))
        kept.append(rows | {"next_action": rows["action"][following], "episode": number + sum(map(len, returns))})
        returns.append(np.bincount(number, weights=rows["reward"]))
    if not kept:
        raise ValueError(f"no episode ended within {time} steps of {num_envs} environments; take more steps")
    together = {name: np.concatenate([rows[name] for rows in kept]) for name in kept[0]}
    # Both flags are set where an episode terminates on its last step; then it terminated.
    together["truncated"] = together["truncated"] & ~together["terminated"]
    return Records(**together, episode_return=np.concatenate(returns))
