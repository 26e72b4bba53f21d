"""A ring of transitions, one packed row each, so that a minibatch is one gather."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from envs.core import Box, Env
from rlsuite.core import Transition

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a transition's parts lie in its row."""

    obs_dim: int
    action_dim: int
    """0 for a discrete action, which takes one column."""

    @classmethod
    def of(cls, env: Env) -> Layout:
        """The layout of this environment's transitions."""
        space = env.action_space
        return cls(env.obs_dim, space.dim if isinstance(space, Box) else 0)

    @property
    def width(self) -> int:
        """Columns of a row."""
        return 2 * self.obs_dim + max(self.action_dim, 1) + 3

    def pack(self, transition: Transition) -> Array:
        """Transitions with leading axes `[...]` -> rows `[..., width]` float32."""
        action = transition.action if self.action_dim else transition.action[..., None]
        flags = jnp.stack([transition.reward, transition.terminated, transition.truncated], axis=-1)
        return jnp.concatenate([transition.obs, transition.next_obs, action.astype(jnp.float32), flags], axis=-1)

    def unpack(self, rows: Array) -> Transition:
        """The inverse of `pack`."""
        first, second = self.obs_dim, 2 * self.obs_dim
        action = rows[..., second:-3]
        return Transition(
            obs=rows[..., :first],
            action=action if self.action_dim else action[..., 0].astype(jnp.int32),
            reward=rows[..., -3],
            next_obs=rows[..., first:second],
            terminated=rows[..., -2] > 0.5,
            truncated=rows[..., -1] > 0.5,
        )


def init(layout: Layout, capacity: int) -> Array:
    """An empty ring `[capacity, width]`."""
    return jnp.zeros((capacity, layout.width), jnp.float32)


def add(ring: Array, layout: Layout, transitions: Transition, added: Array) -> Array:
    """Write transitions `[n, ...]` over the oldest ones.

    `added` `[]` int32 is how many transitions came before. It must be a multiple of n, n must divide the capacity, and
    it must not be batched over runs (count it on the Clock): then this is a slice written in place, not a scatter.
    """
    rows = layout.pack(transitions)
    return jax.lax.dynamic_update_slice_in_dim(ring, rows, added % ring.shape[0], axis=0)


def sample(key: Array, ring: Array, layout: Layout, added: Array, batch_shape: tuple[int, ...]) -> Transition:
    """Uniform with replacement over the filled part: a Transition with leading axes `batch_shape`.

    `added` `[]` int32 is how many transitions were ever added, at least 1.
    """
    index = jax.random.randint(key, batch_shape, 0, jnp.minimum(added, ring.shape[0]))
    return layout.unpack(ring[index])
