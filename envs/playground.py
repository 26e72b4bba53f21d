"""DeepMind Control Suite tasks from MuJoCo Playground (Zakka et al., "MuJoCo Playground", 2025), an extra.

We step the raw environment, with MJX' JAX implementation in place of the default, warp. Control Suite tasks end only by
the clock: 1000 steps, which is `truncated`. Their one other flag is set when positions or velocities become NaN; we
pass it on as `terminated`, with the NaN observation that it came with.
"""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from envs.core import Array, Box, EpisodeState, Space, TaskInfo, TimeStep, parameters, strong

PACKAGE = "mujoco_playground"
INSTALL = "pip install 'rlsuite[playground]'"

TASKS: dict[str, TaskInfo] = {
    "playground/CartpoleBalance": TaskInfo("keep a pole upright on a cart; 1 continuous action; MJX physics", 1000),
    "playground/CheetahRun": TaskInfo("run with two legs in a plane; 6 continuous actions; MJX physics", 1000),
}


@struct.dataclass
class Playground:
    """A Playground task; `model`, the MJX model, is the leaves."""

    model: Any
    template: Any = struct.field(pytree_node=False)
    id: str = struct.field(pytree_node=False)
    obs_dim: int = struct.field(pytree_node=False)
    action_space: Space = struct.field(pytree_node=False)
    max_episode_steps: int = struct.field(pytree_node=False)

    def reset(self, key: Array) -> tuple[EpisodeState, Array]:
        state = self._with_model().reset(key)
        return strong(EpisodeState(state.data, jnp.int32(0))), jnp.float32(state.obs)

    def step(self, key: Array, state: EpisodeState, action: Array) -> tuple[EpisodeState, TimeStep]:
        from mujoco_playground import State

        # A fresh State each step: the tasks write into the metrics dict.
        zero = jnp.float32(0)
        info = {"rng": key, "time_out": zero}
        before = State(state.physics, jnp.zeros(self.obs_dim), zero, zero, metrics={}, info=info)
        after = self._with_model().step(before, action)
        steps = state.steps + 1
        shown = TimeStep(
            jnp.float32(after.obs), jnp.float32(after.reward), jnp.bool_(after.done), steps >= self.max_episode_steps
        )
        return strong(EpisodeState(after.data, steps)), shown

    def _with_model(self) -> Any:
        """Playground keeps its physics in this attribute, which its own domain randomisation sets in the same way."""
        task = copy.copy(self.template)
        task._mjx_model = self.model
        return task


def build(env_id: str, max_episode_steps: int) -> Playground:
    """The task `env_id`, a key of `TASKS`, with Playground's default configuration but for the MJX implementation."""
    from mujoco_playground import dm_control_suite  # Late, so that listing environments imports no simulator.

    with jax.ensure_compile_time_eval():
        template = dm_control_suite.load(env_id.removeprefix("playground/"), config_overrides={"impl": "jax"})
        model = parameters(template.mjx_model)
    low, high = template.mj_model.actuator_ctrlrange.T
    return Playground(
        model=model,
        template=template,
        id=env_id,
        obs_dim=jax.eval_shape(template.reset, jax.random.key(0)).obs.shape[0],
        action_space=Box(tuple(map(float, low)), tuple(map(float, high))),
        max_episode_steps=max_episode_steps,
    )
