"""Transitions of Hopper's sizes that no simulator has made: what offline learners are timed on. NumPy alone."""

from __future__ import annotations

import numpy as np

OBS_DIM, ACTION_DIM = 11, 3
EPISODE = 1_000
"""steps; the last episode may be shorter"""
WAVES = 4


def followers(rows: int) -> np.ndarray:
    """`[rows]`: which row follows each one in its episode; the last of an episode is its own follower."""
    row = np.arange(rows)
    return np.where(row % EPISODE == EPISODE - 1, row, np.minimum(row + 1, rows - 1))


def smooth(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Observations `[rows, OBS_DIM]` and actions `[rows, ACTION_DIM]` along trajectories, as a simulator's lie.

    Sums of a few slow waves in each coordinate, with other phases in every episode of `EPISODE` steps; actions lie
    within (-1, 1).
    """
    rng = np.random.default_rng(seed)
    step, episode = np.arange(rows) % EPISODE, np.arange(rows) // EPISODE
    periods = rng.uniform(20.0, 200.0, WAVES)
    mixing = rng.normal(size=(WAVES, OBS_DIM + ACTION_DIM)) / np.sqrt(WAVES)
    phases = rng.uniform(0.0, 2.0 * np.pi, (episode[-1] + 1, WAVES))
    points = (np.sin(2.0 * np.pi * step[:, None] / periods + phases[episode]) @ mixing).astype(np.float32)
    return points[:, :OBS_DIM], np.tanh(points[:, OBS_DIM:])


def independent(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The same shapes in independent numbers: observations normal, actions uniform. The worst case for every tree."""
    rng = np.random.default_rng(seed)
    obs = rng.normal(size=(rows, OBS_DIM)).astype(np.float32)
    return obs, rng.uniform(-1.0, 1.0, (rows, ACTION_DIM)).astype(np.float32)
