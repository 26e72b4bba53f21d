"""A replay buffer that stores each observation once: a ring of time steps, one packed row for every environment.

The observation that a step led to is the one that the same environment's next row begins with. At the end of an episode
that row begins with the observation of a reset, and there:

- A truncated transition, which bootstraps with the value of where it led to, has that observation stored separately.
  Only the time limit truncates, so two truncations of one environment are at least `max_episode_steps` steps apart, and
  one place for every block of `max_episode_steps` steps holds them all.
- A terminated transition has the reset's observation for its `next_obs`, which is NOT where it led to. A target masks
  its value, by `where`. A learner that reads `next_obs` for anything else, such as a model of the dynamics, must leave
  out terminated transitions (those that were truncated by the same step are exact too).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from envs.core import Box, Env
from rlsuite.core import Transition
from rlsuite.errors import UserError

Array = jax.Array
Fitted = TypeVar("Fitted", bound=Any)
"""a `Config` with a `buffer_size`"""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a transition's parts lie in its row: obs, action, reward, and how its episode ended."""

    obs_dim: int
    action_dim: int
    """0 for a discrete action, which takes one column."""
    max_episode_steps: int
    """The least number of steps between two truncations of one environment."""

    @classmethod
    def of(cls, env: Env) -> Layout:
        """The layout of this environment's transitions."""
        space = env.action_space
        return cls(env.obs_dim, space.dim if isinstance(space, Box) else 0, env.max_episode_steps)

    @property
    def width(self) -> int:
        """Columns of a row."""
        return self.obs_dim + max(self.action_dim, 1) + 2

    def pack(self, transition: Transition) -> Array:
        """Transitions with leading axes `[...]` -> rows `[..., width]` float32, without `next_obs`."""
        action = transition.action if self.action_dim else transition.action[..., None]
        end = transition.terminated + 2.0 * transition.truncated
        columns = [action.astype(jnp.float32), transition.reward[..., None], end[..., None]]
        return jnp.concatenate([transition.obs, *columns], axis=-1)

    def unpack(self, rows: Array, next_obs: Array) -> Transition:
        """The inverse of `pack`."""
        action, end = rows[..., self.obs_dim : -2], rows[..., -1]
        return Transition(
            obs=rows[..., : self.obs_dim],
            action=action if self.action_dim else action[..., 0].astype(jnp.int32),
            reward=rows[..., -2],
            next_obs=next_obs,
            terminated=end % 2.0 > 0.5,
            truncated=end > 1.5,
        )


class Replay(NamedTuple):
    """The buffer of one run."""

    rows: Array
    """`[time + 1, num_envs, width]`: step s lies at s % (time + 1). Of the row after the newest only obs is valid."""
    finals: Array
    """`[blocks, num_envs, obs_dim]`: where the truncated transition of a block of `max_episode_steps`, if any, led."""


def check_capacity(buffer_size: int, num_envs: int) -> None:
    """Raise UserError unless the buffer holds whole steps of all environments."""
    if buffer_size % num_envs:
        raise UserError(f"buffer_size={buffer_size} is not a multiple of num_envs={num_envs}; round it to one")


def fitted(config: Fitted, total_steps: int, steps_per_update: int) -> Fitted:
    """The same training with no more buffer than the budget fills: results are identical, memory is not."""
    whole = -(-total_steps // steps_per_update) * steps_per_update
    return dataclasses.replace(config, buffer_size=min(config.buffer_size, whole))


def init(layout: Layout, num_envs: int, capacity: int) -> Replay:
    """An empty buffer for `capacity` transitions, a multiple of `num_envs`."""
    time = capacity // num_envs
    # The most blocks that a window of `time` steps can overlap: a block is overwritten after it has left the window.
    blocks = 1 + -(-(time - 1) // layout.max_episode_steps)
    rows = jnp.zeros((time + 1, num_envs, layout.width), jnp.float32)
    return Replay(rows, jnp.zeros((blocks, num_envs, layout.obs_dim), jnp.float32))


def add(replay: Replay, layout: Layout, transitions: Transition, obs: Array, step: Array) -> Replay:
    """Write one step of all environments, `[num_envs, ...]`, over the oldest one.

    `obs` `[num_envs, obs_dim]` is what the policy sees next, after any reset. `step` `[]` int32 counts the steps
    before this one and must not be batched over runs (it is the Clock's): then all of this is slices written in place,
    not scatters.
    """
    rows, finals = replay
    rows = jax.lax.dynamic_update_index_in_dim(rows, layout.pack(transitions), step % rows.shape[0], axis=0)
    # The next row begins with what is seen next: its first columns only, which the next call writes again.
    rows = jax.lax.dynamic_update_index_in_dim(rows, obs, (step + 1) % rows.shape[0], axis=0)
    block = step // layout.max_episode_steps % finals.shape[0]
    kept = jax.lax.dynamic_index_in_dim(finals, block, keepdims=False)
    kept = jnp.where(transitions.truncated[:, None], transitions.next_obs, kept)
    return Replay(rows, jax.lax.dynamic_update_index_in_dim(finals, kept, block, axis=0))


def add_rollout(replay: Replay, layout: Layout, transitions: Transition, obs: Array, step: Array) -> Replay:
    """Write a rollout `[time, num_envs, ...]`, one step after the other.

    `obs` `[num_envs, obs_dim]` is what the policy sees after the last step; `step` `[]` int32 counts the steps of each
    environment before the first one.
    """
    following = jnp.concatenate([transitions.obs[1:], obs[None]])

    def write(replay: Replay, inputs: tuple[Transition, Array, Array]) -> tuple[Replay, None]:
        return add(replay, layout, *inputs), None

    steps = step + jnp.arange(len(following), dtype=jnp.int32)
    return jax.lax.scan(write, replay, (transitions, following, steps))[0]


def sample(key: Array, replay: Replay, layout: Layout, steps: Array, batch_shape: tuple[int, ...]) -> Transition:
    """Uniform with replacement over the newest `capacity` transitions: a Transition with leading axes `batch_shape`.

    `steps` `[]` int32 is how many steps were ever added, at least 1. The module's docstring says what `next_obs` is.
    """
    slots, num_envs, _ = replay.rows.shape
    time = slots - 1
    index = jax.random.randint(key, batch_shape, 0, jnp.minimum(steps, time) * num_envs)
    # The newest of the steps that a ring of `time` slots would hold in this place.
    env, step = index % num_envs, steps - 1 - (steps - 1 - index // num_envs) % time
    rows = replay.rows[step % slots, env]
    following = replay.rows[(step + 1) % slots, env, : layout.obs_dim]
    finals = replay.finals[step // layout.max_episode_steps % replay.finals.shape[0], env]
    drawn = layout.unpack(rows, following)
    return drawn._replace(next_obs=jnp.where(drawn.truncated[..., None], finals, following))
