"""Real Gymnasium environments, to find out what a policy trained here is worth there. Not a family of our own: they
are not part of any compiled program, and nothing is trained on them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np

from envs.core import Discrete, Env
from envs.mujoco import without_advice

Act = Callable[[np.ndarray, int], np.ndarray]
"""(observations `[n, obs_dim]` float32, step of the episodes) -> actions `[n, ...]`"""

SIDE_BY_SIDE = 100
"""Environments that exist at once."""


class OutsideError(ValueError):
    """Gymnasium has no such environment, it is not what the policy was trained for, its episodes do not end, or it
    cannot be drawn."""


class Played(NamedTuple):
    """Complete episodes."""

    returns: np.ndarray
    """`[num_episodes]` undiscounted"""
    lengths: np.ndarray
    """`[num_episodes]` steps"""


def backend() -> str:
    """The simulator, for people."""
    return f"Gymnasium {metadata.version('gymnasium')}"


def make(env_id: str, like: Env, **options: Any) -> Any:
    """Gymnasium's `env_id` with the time limit of `like`, our environment that a policy was trained for.

    Raises:
        OutsideError: there is no such environment, it has other observations or actions, or there is no Gymnasium.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise OutsideError(
            f"'{env_id}' needs the package 'gymnasium' ({error}); install it with: pip install 'gymnasium[mujoco]'"
        ) from error
    try:
        with without_advice() if "mujoco" in sys.modules else contextlib.nullcontext():
            outside: Any = gymnasium.make(env_id, max_episode_steps=like.max_episode_steps, **options)
    except Exception as error:  # whatever the environment's own constructor makes of its lack of a library
        reason = " ".join(str(error).split()).rstrip(".")
        raise OutsideError(
            f"Gymnasium cannot make '{env_id}' ({reason}); give an id of its own, such as Hopper-v5"
        ) from error
    seen = outside.observation_space
    if not isinstance(seen, gymnasium.spaces.Box) or np.prod(seen.shape) != like.obs_dim:
        raise OutsideError(
            f"'{env_id}' shows a {type(seen).__name__} of shape {seen.shape}, but the policy was trained on the "
            f"{like.obs_dim} numbers that '{like.id}' shows; choose the same task"
        )
    space = like.action_space
    if isinstance(space, Discrete):
        same = isinstance(outside.action_space, gymnasium.spaces.Discrete) and outside.action_space.n == space.n
    else:
        same = isinstance(outside.action_space, gymnasium.spaces.Box) and all(
            ours.shape == theirs.shape and np.allclose(ours, theirs)
            for ours, theirs in (
                (np.asarray(space.low), outside.action_space.low),
                (np.asarray(space.high), outside.action_space.high),
            )
        )
    if not same:
        raise OutsideError(
            f"'{env_id}' takes {outside.action_space}, but the policy was trained on '{like.id}' with {space}; "
            "choose the same task"
        )
    return outside


def time_limit(outside: Any) -> int | None:
    """Gymnasium's own time limit of what `make` made with another one; None if it has none."""
    import gymnasium

    limit: int | None = gymnasium.spec(outside.spec.id).max_episode_steps
    return limit


def play(env_id: str, like: Env, act: Act, num_episodes: int) -> Played:
    """Play complete episodes. The i-th begins with Gymnasium's seed i.

    Raises:
        OutsideError: as `make`; or an episode does not end within the time limit of `like`.
    """
    returns, lengths = np.zeros(num_episodes), np.zeros(num_episodes, np.int32)
    outside = [make(env_id, like) for _ in range(min(num_episodes, SIDE_BY_SIDE))]
    for first in range(0, num_episodes, len(outside)):
        going_on = list(range(min(len(outside), num_episodes - first)))
        obs = np.zeros((len(outside), like.obs_dim), np.float32)
        for i in going_on:
            obs[i] = np.ravel(outside[i].reset(seed=first + i)[0])
        t = 0
        while going_on:
            check_time(env_id, like, t)
            # Of all of them, so that the policy's program is compiled for one number of observations.
            actions = act(obs, t)
            still = []
            for i in going_on:
                shown, reward, terminated, truncated, _ = outside[i].step(plain(actions[i]))
                obs[i] = np.ravel(shown)
                returns[first + i] += reward
                lengths[first + i] += 1
                if not (terminated or truncated):
                    still.append(i)
            going_on, t = still, t + 1
    for one in outside:
        one.close()
    return Played(returns, lengths)


def check_time(env_id: str, like: Env, t: int) -> None:
    """Raise OutsideError if an episode is still going on after as many steps as `make` gave it."""
    if t >= like.max_episode_steps:
        raise OutsideError(
            f"Gymnasium's '{env_id}' neither terminated nor truncated an episode within the time limit of "
            f"{like.max_episode_steps} steps that it was made with; play another"
        )


def plain(action: np.ndarray) -> Any:
    """An action as Gymnasium's checks want it: Python's int for a choice, an array for all else."""
    return int(action) if action.ndim == 0 else action


def expect_no_screen() -> None:
    """Have MuJoCo draw without one where there is none. It chooses when it is imported, so this comes first.

    The same for pygame, which draws classic control and would look for a loudspeaker too.
    """
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


class Film(NamedTuple):
    """One episode in pictures."""

    frames: Iterator[np.ndarray]
    """`[height, width, 3]` uint8, drawn as they are taken"""
    fps: float
    """frames a second of simulated time"""


def film(env_id: str, like: Env, act: Act, seed: int, max_fps: float) -> Film:
    """Draw one episode off-screen, at most `max_fps` frames a second: an even share of the steps.

    Raises:
        OutsideError: as `make`; or nothing can be drawn here. The frames raise it too, and as `play` does.
    """
    outside = make(env_id, like, render_mode="rgb_array")
    steps_per_second = float(outside.metadata.get("render_fps", 30))
    every = int(np.ceil(steps_per_second / max_fps))

    def draw() -> np.ndarray:
        try:
            picture = np.asarray(outside.render())
        except Exception as error:  # each of Gymnasium's renderers fails in its own way where its library is missing
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise OutsideError(
                f"nothing can be drawn off-screen here ({reason[:200]}); MuJoCo needs EGL or OSMesa (MUJOCO_GL=egl, or "
                "MUJOCO_GL=osmesa with libosmesa6), classic control needs: pip install 'rlsuite[video]'"
            ) from error
        if picture.ndim != 3 or not picture.any():
            raise OutsideError("nothing can be drawn off-screen here (the pictures are empty); set MUJOCO_GL=egl")
        return picture

    def frames() -> Iterator[np.ndarray]:
        obs, over, t = np.ravel(outside.reset(seed=seed)[0]), False, 0
        yield draw()
        while not over:
            check_time(env_id, like, t)
            action = act(np.asarray(obs, np.float32)[None], t)[0]
            shown, _, terminated, truncated, _ = outside.step(plain(action))
            obs, over, t = np.ravel(shown), terminated or truncated, t + 1
            if t % every == 0:
                yield draw()
        outside.close()

    return Film(frames(), steps_per_second / every)
