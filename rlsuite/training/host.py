"""Complete episodes whose physics a simulator on the host computes: `evaluate.py` once more, cut in two.

Each step of all episodes of all runs is one call of the simulator and one of a compiled program, which judges that step
and chooses the next action. Keys are those of `evaluate`, so that episodes begin where they would on the device.

The first half is ONE run, as pure functions; `rlsuite/training/batch.py` compiles them for many runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.core import EnvState
from envs.mujoco_c import Simulator, WithC
from rlsuite.core import Algorithm, State, Task
from rlsuite.training.evaluate import Episodes, no_episodes
from rlsuite.training.train import EVALUATION_STREAM, stream_key

Array = jax.Array


class Playing(NamedTuple):
    """The episodes of one run, before the simulator takes a step; leading axis `[num_episodes]`."""

    env_state: EnvState
    action: Array
    """chosen for that step"""
    episodes: Episodes
    """so far"""


def env_of(task: Task) -> WithC:
    """The task's environment, which has its physics on the host."""
    assert isinstance(task.env, WithC), "compile_programs looks at it before it comes here"
    return task.env


def keys_of_evaluation(seed: Array, index: Array) -> Array:
    """Those of `evaluate` in the evaluation after `index` updates: for resets, and for the steps."""
    return jax.random.split(stream_key(seed, EVALUATION_STREAM, index))


def draw(task: Task, seed: Array, index: Array, num_episodes: int) -> tuple[Array, Array]:
    """qpos `[num_episodes, nq]` and qvel `[num_episodes, nv]` where the episodes begin."""
    reset_key, _ = keys_of_evaluation(seed, index)
    return jax.vmap(env_of(task).draw)(jax.random.split(reset_key, num_episodes))


def start(
    algorithm: Algorithm, task: Task, state: State, seed: Array, index: Array, physics: Any, skip: Array
) -> tuple[Playing, Array]:
    """The first actions from the measured `physics` `[num_episodes, ...]`, and the controls `[num_episodes, nu]`.

    Where `skip` `[]` bool is true, all episodes are over and of length 0.
    """
    num_episodes = physics.qpos.shape[0]
    reset_key, loop_key = keys_of_evaluation(seed, index)
    env_state, obs = jax.vmap(env_of(task).start)(jax.random.split(reset_key, num_episodes), physics)
    return choose(algorithm, task, state, loop_key, jnp.int32(0), env_state, obs, no_episodes(num_episodes, skip))


def go_on(
    algorithm: Algorithm,
    task: Task,
    state: State,
    seed: Array,
    index: Array,
    t: Array,
    playing: Playing,
    physics: Any,
) -> tuple[Playing, Array]:
    """Judge step `t` `[]` int32, which has led to `physics`, and choose the next one, as `start` does."""
    env_state, action, episodes = playing
    over = episodes.ended
    _, loop_key = keys_of_evaluation(seed, index)
    _, step_keys = keys_of_step(loop_key, t, over.shape[0])
    env_state, shown = jax.vmap(env_of(task).judge)(step_keys, env_state, action, physics)
    # What is over is not simulated any more; nothing that it shows counts.
    returns = episodes.returns + jnp.where(over, 0.0, shown.reward)
    lengths = episodes.lengths + jnp.where(over, 0, 1)
    over = over | shown.terminated | shown.truncated
    played = Episodes(returns, lengths, over, episodes.seen)
    return choose(algorithm, task, state, loop_key, t + 1, env_state, shown.obs, played)


def choose(
    algorithm: Algorithm,
    task: Task,
    state: State,
    loop_key: Array,
    t: Array,
    env_state: EnvState,
    obs: Array,
    episodes: Episodes,
) -> tuple[Playing, Array]:
    """The actions of step `t` and the controls that they become."""
    act_keys, step_keys = keys_of_step(loop_key, t, episodes.ended.shape[0])
    action = jax.vmap(algorithm.act, in_axes=(0, None, None, 0))(act_keys, task, state, obs)
    control = jax.vmap(env_of(task).control)(step_keys, env_state, action)
    return Playing(env_state, action, episodes), control


def keys_of_step(loop_key: Array, t: Array, num_episodes: int) -> Array:
    """Those of `evaluate` for step `t`: to act with and to step with, `[2, num_episodes]`."""
    return jax.random.split(jax.random.fold_in(loop_key, t), (2, num_episodes))


# --- On the host ------------------------------------------------------------------------------------------------------


class Programs(NamedTuple):
    """The functions above for the runs of one evaluation, compiled; leading axes `[width, num_episodes]`."""

    draw: Callable[[], tuple[Array, Array]]
    start: Callable[[Any], tuple[Playing, Array]]
    """physics -> (playing, control)"""
    go_on: Callable[[int, Playing, Any], tuple[Playing, Array]]
    """(t, playing, physics) -> (playing, control)"""


def play(simulator: Simulator, programs: Programs, skip: np.ndarray, max_episode_steps: int) -> Episodes:
    """Play all episodes to their end: `[width, num_episodes]`. The simulator has one environment for each.

    None is longer than `max_episode_steps`, and `ended` says which did not end by then. Those whose physics were finite
    all along have `seen` nothing else: an observation is made of nothing but them.

    None are played of the runs where `skip` `[width]` bool is true.
    """

    def flat(array: Array) -> np.ndarray:
        whole = np.asarray(array)
        return whole.reshape(-1, *whole.shape[2:])

    def measured(shape: tuple[int, ...]) -> Any:
        """A copy, since a processor computes with the memory that it is given and the simulator goes on in its own."""
        return jax.tree.map(lambda array: array.reshape(*shape, *array.shape[1:]).copy(), simulator.physics)

    qpos, qvel = programs.draw()
    shape = qpos.shape[:2]
    simulator.reset(flat(qpos), flat(qvel), np.repeat(~skip, shape[1]))
    playing, control = programs.start(measured(shape))
    t, finite = 0, finite_physics(simulator)
    while t < max_episode_steps and not (over := flat(playing.episodes.ended)).all():
        simulator.step(flat(control), ~over)
        finite &= over | finite_physics(simulator)
        playing, control = programs.go_on(t, playing, measured(shape))
        t += 1
    return playing.episodes._replace(seen=jnp.asarray(finite.reshape(shape)))


def finite_physics(simulator: Simulator) -> np.ndarray:
    """`[environments]` bool"""
    finite_arrays = [np.isfinite(x).reshape(len(x), -1).all(axis=1) for x in jax.tree.leaves(simulator.physics)]
    finite: np.ndarray = np.logical_and.reduce(finite_arrays)
    return finite
