"""Classic control and MinAtar from gymnax 1.x (Lange, "gymnax: A JAX-based Reinforcement Learning Environment Library",
2022).

We call gymnax' raw `reset_env` and `step_env`: its `step` resets by itself. The time limit is ours; gymnax' own
`max_steps_in_episode` has no effect. `tests/test_envs.py` steps classic control next to Gymnasium's from equal states:
observations, rewards and terminations agree in float32, with one deviation that we keep, since the name says gymnax:

- MountainCarContinuous-v0: at the left wall Gymnasium sets a negative velocity to 0 and gymnax keeps it, so that the
  car needs longer to leave the wall.

Two properties that a reader may wonder about agree with Gymnasium: Acrobot's torque has no noise, and both
mountain cars start at rest between -0.6 and -0.4.

MinAtar's games (Young and Tian 2019, arXiv 1903.03176, github.com/kenjyoung/MinAtar) show their 10 x 10 cells as one
vector, the channels of a cell side by side; their actions are the minimal set of each game. gymnax deviates from
MinAtar's own code, and again we keep that:

- No action is ever repeated in place of the chosen one; MinAtar repeats one in ten by default.
- MinAtar's games have no time limit but Freeway's, after whose 2500 frames it terminates. Here 1000 frames, or
  Freeway's 2500, truncate.
- A newcomer in Asterix looks for a free row in seven of the eight, drawn at random, and empties one of them if none is
  free. MinAtar looks in all, and leaves them as they are.
- Seaquest ends one frame sooner once the oxygen is used up, and an enemy submarine that leaves the screen or is hit
  does not fire in that frame.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from envs.core import Array, Box, Discrete, EpisodeState, Space, TaskInfo, TimeStep, parameters, strong

PACKAGE = "gymnax"
INSTALL = "pip install rlsuite"

TASKS: dict[str, TaskInfo] = {
    "gymnax/CartPole-v1": TaskInfo("keep a pole upright on a cart", 500, 4, 2, True, "JAX"),
    "gymnax/Acrobot-v1": TaskInfo("swing a two-link arm above a line", 500, 6, 3, True, "JAX"),
    "gymnax/MountainCar-v0": TaskInfo("rock a weak car up a hill", 200, 2, 3, True, "JAX"),
    "gymnax/MountainCarContinuous-v0": TaskInfo("rock a weak car up a hill", 999, 2, 1, False, "JAX"),
    "gymnax/Pendulum-v1": TaskInfo("swing a pendulum up and hold it", 200, 3, 1, False, "JAX"),
    "gymnax/Asterix-MinAtar": TaskInfo("pick up treasure and avoid enemies", 1000, 400, 5, True, "JAX", "fixed"),
    "gymnax/Breakout-MinAtar": TaskInfo("break bricks with a ball", 1000, 400, 3, True, "JAX", "discrete"),
    "gymnax/Freeway-MinAtar": TaskInfo("cross a road with traffic", 2500, 700, 3, True, "JAX", "discrete"),
    "gymnax/Seaquest-MinAtar": TaskInfo("shoot enemies and rescue divers", 1000, 1000, 6, True, "JAX", "fixed"),
    "gymnax/SpaceInvaders-MinAtar": TaskInfo("shoot approaching aliens", 1000, 600, 4, True, "JAX", "fixed"),
}


@struct.dataclass
class Gymnax:
    """A gymnax task; `params` (masses, lengths, gravity, thresholds, intervals, ...) are the leaves."""

    params: Any
    template: Any = struct.field(pytree_node=False)
    id: str = struct.field(pytree_node=False)
    obs_dim: int = struct.field(pytree_node=False)
    action_space: Space = struct.field(pytree_node=False)
    max_episode_steps: int = struct.field(pytree_node=False)

    def reset(self, key: Array) -> tuple[EpisodeState, Array]:
        obs, state = self.template.reset_env(key, self.params)
        return strong(EpisodeState(state, jnp.int32(0))), jnp.float32(obs).ravel()

    def step(self, key: Array, state: EpisodeState, action: Array) -> tuple[EpisodeState, TimeStep]:
        # gymnax' continuous tasks have one action dimension and compute with a scalar.
        scalar_action = action[0] if isinstance(self.action_space, Box) else action
        obs, physics, reward, terminated, _ = self.template.step_env(key, state.physics, scalar_action, self.params)
        steps = state.steps + 1
        shown = TimeStep(
            jnp.float32(obs).ravel(), jnp.float32(reward), jnp.bool_(terminated), steps >= self.max_episode_steps
        )
        return strong(EpisodeState(physics, steps)), shown


def build(env_id: str, max_episode_steps: int) -> Gymnax:
    """The task `env_id`, a key of `TASKS`, with gymnax' default parameters."""
    gymnax = _import()  # Late, so that listing environments imports no simulator.
    with jax.ensure_compile_time_eval():
        template, params = gymnax.make(env_id.removeprefix("gymnax/"))
        params = parameters(params)
        space = template.action_space(params)
        action_space = (
            Discrete(space.n)
            if isinstance(space, gymnax.environments.spaces.Discrete)
            else Box((float(space.low),), (float(space.high),))
        )
    return Gymnax(
        params=params,
        template=template,
        id=env_id,
        obs_dim=jax.eval_shape(template.reset_env, jax.random.key(0), params)[0].size,
        action_space=action_space,
        max_episode_steps=max_episode_steps,
    )


class _Later(ModuleType):
    """Stands for a module until one of its names is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if f"{self.__name__}.{name}" in sys.modules:
            return sys.modules[f"{self.__name__}.{name}"]
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def _import() -> Any:
    """gymnax, without loading the plotting libraries that it imports for its pictures: they take 2 seconds."""
    plotting = ("matplotlib", "matplotlib.colors", "matplotlib.pyplot", "seaborn")
    stand_ins = {name: _Later(name) for name in plotting if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module("gymnax")
    finally:
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
