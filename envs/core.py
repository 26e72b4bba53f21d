"""The environment contract: what an adapter must show, and nothing else.

Every environment here is a frozen pytree (`flax.struct.dataclass`): its physics parameters are leaves, so they may be
traced and batched, and its sizes are static, so they may shape a program. All arrays below are those of ONE
environment; batching is the caller's (`pieces/rollout.py` over environments, `training/batch.py` over runs).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Array: TypeAlias = jax.Array
EnvState: TypeAlias = Any
"""The adapter's own state: any pytree of arrays, of the same shapes, dtypes and (strong) types after reset and step."""


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Actions `0 .. n-1`, an int32 scalar."""

    n: int


@dataclasses.dataclass(frozen=True)
class Box:
    """Actions in a box of float32, `[action_dim]`.

    `low` and `high` are tuples, not arrays, so that a space is hashable and static.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.low) != len(self.high) or not self.low:
            raise ValueError(f"a Box needs low and high of one equal length >= 1, got {self.low} and {self.high}")
        if not all(lo < hi for lo, hi in zip(self.low, self.high, strict=True)):
            raise ValueError(f"a Box needs low < high in every dimension, got {self.low} and {self.high}")

    @property
    def dim(self) -> int:
        """Number of action dimensions."""
        return len(self.low)


Space: TypeAlias = Discrete | Box


class TimeStep(NamedTuple):
    """What one step shows, BEFORE any reset."""

    obs: Array
    """`[obs_dim]` float32: the observation the action led to, also at the end of an episode."""
    reward: Array
    """`[]` float32, undiscounted."""
    terminated: Array
    """`[]` bool: the MDP ended; the value of `obs` is 0."""
    truncated: Array
    """`[]` bool: time ran out; the value of `obs` is V(obs). Both may be true at once; then the episode terminated."""


class Env(Protocol):
    """One task. Implementations are frozen pytrees; see the module docstring."""

    @property
    def id(self) -> str:
        """The canonical name that `envs.make` takes, for example `brax/hopper/spring`."""
        ...

    @property
    def obs_dim(self) -> int:
        """Length of the flat observation vector."""
        ...

    @property
    def action_space(self) -> Space:
        """`Discrete` or `Box`. A caller passes actions inside it; adapters do not clip."""
        ...

    @property
    def max_episode_steps(self) -> int:
        """Steps after which `truncated` becomes true. No episode is longer, and nothing else truncates one."""
        ...

    def reset(self, key: Array) -> tuple[EnvState, Array]:
        """A fresh initial state and its observation `[obs_dim]`; other keys give other states."""
        ...

    def step(self, key: Array, state: EnvState, action: Array) -> tuple[EnvState, TimeStep]:
        """One step; never resets by itself. Stepping past the end of an episode is undefined, and nobody does."""
        ...


class Reference(NamedTuple):
    """The two returns that a normalised score is measured between: (return - low) / (high - low)."""

    low: float
    """in units of the return"""
    high: float
    """in units of the return, above `low`"""
    low_source: str
    """where `low` is from, in words"""
    high_source: str
    """where `high` is from, in words"""


class TaskInfo(NamedTuple):
    """What the registry knows of a task before anything is imported or built."""

    summary: str
    """One line for people."""
    max_episode_steps: int
    """The default time limit."""
    obs_dim: int
    """Length of the flat observation vector."""
    num_actions: int
    """How many actions there are to choose from, or the number of dimensions of a continuous one."""
    discrete: bool
    """Whether actions are `Discrete`; otherwise they are a `Box`."""
    backend: str
    """What simulates it, such as `MJX` or `brax spring`."""
    starts: Literal["continuous", "discrete", "fixed"] = "continuous"
    """What a reset draws from: a continuum, a finite set of states, or one state that it gives whatever the key."""
    reference: Reference | None = None
    """For normalised scores, where there are returns with a source."""


class EpisodeState(NamedTuple):
    """The `EnvState` of every adapter in this package: the time limit is ours, whatever the library beneath counts."""

    physics: Any
    """The simulator's own state, any pytree of arrays."""
    steps: Array
    """`[]` int32: steps taken since the reset."""


Tree = TypeVar("Tree")


def strong(tree: Tree) -> Tree:
    """The same pytree with every leaf a strongly typed array.

    Libraries mix Python numbers, weakly typed and strongly typed arrays between reset and step; to jit these are
    different types, so that the second call of a program would compile it again.
    """
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, jnp.result_type(leaf)), tree)


def parameters(tree: Tree) -> Tree:
    """A simulator's model as the leaves of an environment: strongly typed arrays that are tied to no device.

    Simulators place their models on a device explicitly. What a program computes from such "committed" arrays is
    committed too, so that a step's state would differ in this from a reset's, and the second step would compile again.
    """
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, jnp.result_type(leaf))), tree)
