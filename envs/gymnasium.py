"""Real Gymnasium environments, to find out what a policy trained here is worth there. Not a family of our own: they
are not part of any compiled program, and nothing is trained on them.

Wrappers of the task that the policy was trained on are around Gymnasium's episodes too, by their own code: what reaches
the simulator passes through them, and what it shows. Settings of a simulator of ours are left out (`left_out`), since
Gymnasium has its own.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs.core import Array, Discrete, Env, EnvState, TimeStep
from envs.mujoco import without_advice
from envs.wrappers import Wrapped, innermost, with_innermost

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

    It is to be the task that the wrappers of `like` are around, and comes without them.

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
    task = innermost(like)
    seen = outside.observation_space
    if not isinstance(seen, gymnasium.spaces.Box) or np.prod(seen.shape) != task.obs_dim:
        raise OutsideError(
            f"'{env_id}' shows a {type(seen).__name__} of shape {seen.shape}, but the policy was trained on the "
            f"{task.obs_dim} numbers that '{task.id}' shows; choose the same task"
        )
    space = task.action_space
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
            f"'{env_id}' takes {outside.action_space}, but the policy was trained on '{task.id}' with {space}; "
            "choose the same task"
        )
    return outside


def time_limit(outside: Any) -> int | None:
    """Gymnasium's own time limit of what `make` made with another one; None if it has none."""
    import gymnasium

    limit: int | None = gymnasium.spec(outside.spec.id).max_episode_steps
    return limit


# --- Wrappers around it -----------------------------------------------------------------------------------------------


def applied(env: Env) -> str:
    """The wrappers that are around Gymnasium's episodes, as in an id: `+reward_scale=0.1`; empty without any."""
    return env.id.removeprefix(innermost(env).id)


def left_out(env: Env) -> tuple[str, ...]:
    """The settings of our simulator that Gymnasium's episodes do without, such as `solver_iterations=4`."""
    return tuple(innermost(env).id.split("+")[1:])


class Shown(NamedTuple):
    """A `TimeStep` of `[n]` episodes on the host."""

    obs: np.ndarray
    """`[n, obs_dim]` float32"""
    reward: np.ndarray
    """`[n]`"""
    terminated: np.ndarray
    """`[n]` bool"""
    truncated: np.ndarray
    """`[n]` bool"""


class Reached(NamedTuple):
    """The innermost part of an environment's state, whatever wraps it."""

    action: Array
    """what reached the simulator last"""


@struct.dataclass
class Given(Wrapped):
    """A task that is played elsewhere: whatever is done shows what is `given`."""

    given: TimeStep

    def reset(self, key: Array) -> tuple[Reached, Array]:
        space = self.action_space
        blank = jnp.int32(0) if isinstance(space, Discrete) else jnp.zeros(space.dim)
        return Reached(blank), self.given.obs

    def step(self, key: Array, state: Reached, action: Array) -> tuple[Reached, TimeStep]:
        return Reached(action), self.given


def _around(env: Env, given: Shown) -> Env:
    """The wrappers of `env`, around what is given of one episode, traced."""
    task = innermost(env)
    return with_innermost(env, Given(task, task.id, TimeStep(*map(jnp.asarray, given))))


@jax.jit
def _begin(env: Env, keys: Array, given: Shown) -> tuple[EnvState, Array]:
    """States and observations of `[n]` episodes that begin with the observations given."""
    return jax.vmap(lambda key, given: _around(env, given).reset(jax.random.fold_in(key, 0)))(keys, given)


@jax.jit
def _step(env: Env, keys: Array, t: int, state: EnvState, action: Array, given: Shown) -> tuple[EnvState, TimeStep]:
    """States of `[n]` episodes and what the wrappers show after their step t, which has led to what is given."""

    def step(key: Array, state: EnvState, action: Array, given: Shown) -> tuple[EnvState, TimeStep]:
        return _around(env, given).step(jax.random.fold_in(key, t + 1), state, action)

    return jax.vmap(step)(keys, state, action, given)


class Wrappers:
    """The wrappers of our environment `env` around `[n]` episodes side by side; without any, all stays as it is.

    What is random about them follows from the episode's seed.
    """

    def __init__(self, env: Env, seeds: Sequence[int]) -> None:
        self._env = env
        self._around_nothing = not applied(env)
        self._keys = jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))
        self._state: EnvState = None
        self._t = 0
        n = len(seeds)
        self.given = Shown(np.zeros((n, env.obs_dim), np.float32), np.zeros(n), np.zeros(n, bool), np.zeros(n, bool))
        """what Gymnasium shows, NumPy arrays to be filled in; its rewards in float64"""

    def begin(self) -> np.ndarray:
        """The first observations that are shown `[n, obs_dim]`, of those given."""
        if self._around_nothing:
            return self.given.obs
        self._state, obs = _begin(self._env, self._keys, self._now())
        return np.asarray(obs)

    def control(self, actions: np.ndarray) -> np.ndarray:
        """The actions that reach Gymnasium."""
        if self._around_nothing:
            return actions
        state, _ = _step(self._env, self._keys, self._t, self._state, actions, self._now())
        parts = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, Reached))
        (reached,) = (part for part in parts if isinstance(part, Reached))
        return np.asarray(reached.action)

    def judge(self, actions: np.ndarray) -> Shown:
        """What is shown of the steps with these actions, which have led to what is given."""
        if self._around_nothing:
            return self.given
        self._state, shown = _step(self._env, self._keys, self._t, self._state, actions, self._now())
        self._t += 1
        return Shown(*map(np.asarray, shown))

    def _now(self) -> Shown:
        """What is given now. JAX may go on reading the very memory, into which the next step is written."""
        return Shown(*map(np.copy, self.given))


# --- Episodes ---------------------------------------------------------------------------------------------------------


def play(env_id: str, like: Env, act: Act, seeds: Sequence[int]) -> Played:
    """Play complete episodes. Each begins with the seed of Gymnasium's that is given for it.

    Raises:
        OutsideError: as `make`; or an episode does not end within the time limit of `like`.
    """
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), np.int32)
    outside = [make(env_id, like) for _ in range(min(len(seeds), SIDE_BY_SIDE))]
    for first in range(0, len(seeds), len(outside)):
        chunk_seeds = [int(seed) for seed in seeds[first : first + len(outside)]]
        # Always as many, so that programs are compiled for one number of episodes.
        wrappers = Wrappers(like, chunk_seeds + [0] * (len(outside) - len(chunk_seeds)))
        for i, seed in enumerate(chunk_seeds):
            wrappers.given.obs[i] = np.ravel(outside[i].reset(seed=seed)[0])
        going_on, obs, t = list(range(len(chunk_seeds))), wrappers.begin(), 0
        while going_on:
            check_time(env_id, like, t)
            actions = act(obs, t)
            reaching = wrappers.control(actions)
            for i in going_on:
                advance(outside[i], reaching[i], wrappers.given, i)
            obs, reward, terminated, truncated = wrappers.judge(actions)
            for i in going_on:
                returns[first + i] += reward[i]
                lengths[first + i] += 1
            going_on, t = [i for i in going_on if not (terminated[i] or truncated[i])], t + 1
    for one in outside:
        one.close()
    return Played(returns, lengths)


def advance(outside: Any, action: np.ndarray, given: Shown, i: int) -> None:
    """One step of one environment, whose result is written into row i."""
    obs, given.reward[i], given.terminated[i], given.truncated[i], _ = outside.step(plain(action))
    given.obs[i] = np.ravel(obs)


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
        wrappers = Wrappers(like, [seed])
        wrappers.given.obs[0] = np.ravel(outside.reset(seed=seed)[0])
        obs, over, t = wrappers.begin(), False, 0
        yield draw()
        while not over:
            check_time(env_id, like, t)
            actions = act(obs, t)
            advance(outside, wrappers.control(actions)[0], wrappers.given, 0)
            obs, _, terminated, truncated = wrappers.judge(actions)
            over, t = bool(terminated[0] or truncated[0]), t + 1
            if t % every == 0:
                yield draw()
        outside.close()

    return Film(frames(), steps_per_second / every)
