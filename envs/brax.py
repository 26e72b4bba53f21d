"""Brax' locomotion and control tasks (Freeman et al., "Brax - A Differentiable Physics Engine for Large Scale Rigid
Body Simulation", 2021) with three of its physics backends: `spring` (cheapest), `positional` and `generalized`.

We step the raw environment: brax' wrappers reset by themselves and replay one cached initial state. Brax' `done` is a
fall or the like, so it is `terminated`; also in inverted_pendulum, which names its falls "time_out" for brax' own PPO.
Time limits are those of Gymnasium's registered tasks: 1000 steps everywhere, but 50 for reacher and 100 for pusher
(brax itself has none: its trainers set one, 1000 by default).

Physics that blow up show as NaN or very large observations; nothing here hides them.

Brax says that its environments are no longer maintained. Left out: swimmer, which fails on current JAX, and, for now,
humanoid.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from envs.core import Array, Box, EpisodeState, Space, TaskInfo, TimeStep, parameters, strong

PACKAGE = "brax"
INSTALL = "pip install rlsuite"

_TASKS: dict[str, tuple[str, int, int, int]] = {
    # name: (summary, time limit, obs_dim, action dimensions)
    "ant": ("run with four legs", 1000, 27, 8),
    "halfcheetah": ("run with two legs in a plane", 1000, 17, 6),
    "hopper": ("hop on one leg in a plane", 1000, 11, 3),
    "inverted_double_pendulum": ("keep two linked poles upright on a cart", 1000, 8, 1),
    "inverted_pendulum": ("keep a pole upright on a cart", 1000, 4, 1),
    "pusher": ("push an object to a goal with an arm", 100, 23, 7),
    "reacher": ("reach a target with a two-link arm", 50, 11, 2),
    "walker2d": ("walk on two legs in a plane", 1000, 17, 6),
}
_BACKENDS = ("spring", "positional", "generalized")

TASKS: dict[str, TaskInfo] = {
    f"brax/{name}/{backend}": TaskInfo(summary, limit, obs_dim, num_actions, False, f"brax {backend}")
    for name, (summary, limit, obs_dim, num_actions) in _TASKS.items()
    for backend in _BACKENDS
}
ALIASES: dict[str, str] = {f"brax/{name}": f"brax/{name}/spring" for name in _TASKS}


@struct.dataclass
class Brax:
    """A brax task; `sys`, brax' description of the bodies, joints, actuators and forces, is the leaves."""

    sys: Any
    template: Any = struct.field(pytree_node=False)
    id: str = struct.field(pytree_node=False)
    obs_dim: int = struct.field(pytree_node=False)
    action_space: Space = struct.field(pytree_node=False)
    max_episode_steps: int = struct.field(pytree_node=False)

    @jax.jit  # traced once, though training, evaluation and initialisation are three programs
    def reset(self, key: Array) -> tuple[EpisodeState, Array]:
        state = self._with_sys().reset(key)
        return strong(EpisodeState(state.pipeline_state, jnp.int32(0))), jnp.float32(state.obs)

    @jax.jit
    def step(self, key: Array, state: EpisodeState, action: Array) -> tuple[EpisodeState, TimeStep]:
        from brax.envs.base import State

        # A fresh State each step: brax writes into its metrics dict. The tasks without a fall pass `done` through.
        zero = jnp.float32(0)
        before = State(state.physics, jnp.zeros(self.obs_dim), zero, zero, metrics={}, info={"time_out": zero})
        after = self._with_sys().step(before, action)
        steps = state.steps + 1
        shown = TimeStep(
            jnp.float32(after.obs), jnp.float32(after.reward), jnp.bool_(after.done), steps >= self.max_episode_steps
        )
        return strong(EpisodeState(after.pipeline_state, steps)), shown

    def _with_sys(self) -> Any:
        """Brax keeps its physics in an attribute; give a copy ours, which may be traced and batched."""
        task = copy.copy(self.template)
        task.sys = self.sys
        return task


def build(env_id: str, max_episode_steps: int) -> Brax:
    """The task `env_id`, a key of `TASKS`, with brax' default physics."""
    import brax.envs  # Late, so that listing environments imports no simulator.

    _, name, backend = env_id.split("/")
    with jax.ensure_compile_time_eval(), warnings.catch_warnings():
        # Said once for all in this module's docstring.
        warnings.filterwarnings("ignore", message="Brax System, piplines and environments are not actively")
        template = brax.envs.get_environment(name, backend=backend)
        sys = parameters(template.sys)
    action_size = template.action_size
    return Brax(
        sys=sys,
        template=template,
        id=env_id,
        obs_dim=jax.eval_shape(template.reset, jax.random.key(0)).obs.shape[0],
        action_space=Box((-1.0,) * action_size, (1.0,) * action_size),
        max_episode_steps=max_episode_steps,
    )
