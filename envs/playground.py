"""DeepMind Control Suite tasks from MuJoCo Playground (Zakka et al., "MuJoCo Playground", 2025), an extra.

We step the raw environment, with MJX' JAX implementation in place of the default, warp. Control Suite tasks end only by
the clock: 1000 steps, which is `truncated`. Their one other flag is set when positions or velocities become NaN; we
pass it on as `terminated`, with the NaN observation that it came with. A reward lies between 0 and 1.

What a reward measures by (sizes of targets) and the ranges that a reset draws from are read from the MuJoCo model when
the task is built: they do not follow a changed `model`.

Playground deviates from DeepMind's own suite (Tassa et al. 2018, github.com/google-deepmind/dm_control), beyond the
model files that it simplifies for speed (see the README next to them). We keep that, since the name says playground:

- Observations and rewards mix two moments. Positions and velocities of joints are those at the end of a step; what is
  derived from them (positions and orientations of bodies, sensors) is one simulator step older. In Acrobot, Cartpole,
  Cheetah and PointMass that is the whole control step.
- BallInCup and the Humanoids start from one state, whatever the key; Finger may start in collision. DeepMind draws
  states until one is free of collisions. PendulumSwingup draws from the half circle of positive angles.
- Some starts draw two numbers with one key: in Cartpole the first velocity follows from a position, and in Finger the
  spinner's angle from the finger's.
- FingerTurn, FishSwim, Reacher and Swimmer: the observation of a reset shows the target where the model file has it,
  from the first step on it is where the reset has put it.
- Walker observes the uprightness of its torso in place of its height.
"""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from envs.core import Array, Box, EpisodeState, Reference, Space, TaskInfo, TimeStep, parameters, strong

PACKAGE = "mujoco_playground"
INSTALL = "pip install 'rlsuite[playground]'"

_REFERENCE = Reference(
    low=0.0,
    high=1000.0,
    low_source="no step pays less than 0",
    high_source="none of the 1000 steps pays more than 1: the scale of the Control Suite (Tassa et al. 2018)",
)
_FIXED_START = ("BallInCup", "HumanoidRun", "HumanoidStand", "HumanoidWalk")

TASKS: dict[str, TaskInfo] = {
    f"playground/{name}": TaskInfo(
        summary,
        max_episode_steps=1000,
        obs_dim=obs_dim,
        num_actions=num_actions,
        discrete=False,
        backend="MJX",
        starts="fixed" if name in _FIXED_START else "continuous",
        reference=_REFERENCE,
    )
    for name, summary, obs_dim, num_actions in (
        ("AcrobotSwingup", "swing a two-link arm up by its elbow and hold it", 6, 1),
        ("AcrobotSwingupSparse", "swing a two-link arm up by its elbow and hold it; sparse reward", 6, 1),
        ("BallInCup", "swing a ball on a string into a cup", 8, 2),
        ("CartpoleBalance", "keep a pole upright on a cart", 5, 1),
        ("CartpoleBalanceSparse", "keep a pole upright on a cart; sparse reward", 5, 1),
        ("CartpoleSwingup", "swing a pole on a cart up and hold it", 5, 1),
        ("CartpoleSwingupSparse", "swing a pole on a cart up and hold it; sparse reward", 5, 1),
        ("CheetahRun", "run with two legs in a plane", 17, 6),
        ("FingerSpin", "spin a body with a finger", 9, 2),
        ("FingerTurnEasy", "turn a body to a target with a finger", 12, 2),
        ("FingerTurnHard", "turn a body to a small target with a finger", 12, 2),
        ("FishSwim", "swim to a target", 24, 5),
        ("HopperHop", "hop on one leg in a plane", 15, 4),
        ("HopperStand", "stand on one leg in a plane", 15, 4),
        ("HumanoidRun", "run like a person", 67, 21),
        ("HumanoidStand", "stand like a person", 67, 21),
        ("HumanoidWalk", "walk like a person", 67, 21),
        ("PendulumSwingup", "swing a pendulum up and hold it; sparse reward", 3, 1),
        ("PointMass", "bring a point to rest on a target in a plane", 4, 2),
        ("ReacherEasy", "reach a target with a two-link arm", 6, 2),
        ("ReacherHard", "reach a small target with a two-link arm", 6, 2),
        ("SwimmerSwimmer6", "swim to a target with six links in a plane", 25, 5),
        ("WalkerRun", "run on two legs in a plane", 24, 6),
        ("WalkerStand", "stand on two legs in a plane", 24, 6),
        ("WalkerWalk", "walk on two legs in a plane", 24, 6),
    )
}


@struct.dataclass
class Playground:
    """A Playground task; `model`, the MJX model, is the leaves.

    The state's physics are one vector: what MuJoCo needs of its state to go on, see `_state_parts`.
    """

    model: Any
    template: Any = struct.field(pytree_node=False)
    id: str = struct.field(pytree_node=False)
    obs_dim: int = struct.field(pytree_node=False)
    action_space: Space = struct.field(pytree_node=False)
    max_episode_steps: int = struct.field(pytree_node=False)

    @jax.jit  # traced once, though training, evaluation and initialisation are three programs
    def reset(self, key: Array) -> tuple[EpisodeState, Array]:
        from mujoco import mjx

        first = self._with_model().reset(key)
        physics = mjx.get_state(self.model, first.data, _state_parts())
        return strong(EpisodeState(physics, jnp.int32(0))), jnp.float32(first.obs)

    @jax.jit
    def step(self, key: Array, state: EpisodeState, action: Array) -> tuple[EpisodeState, TimeStep]:
        from mujoco import mjx
        from mujoco_playground import State

        data = mjx.make_data(self.template.mj_model, impl="jax")
        data = mjx.set_state(self.model, data, state.physics, _state_parts())
        # The tasks read none of what else a State holds, and write into the metrics dict: a fresh one each step.
        zero = jnp.float32(0)
        before = State(data, jnp.zeros(self.obs_dim), zero, zero, metrics={}, info={})
        after = self._with_model().step(before, action)
        steps = state.steps + 1
        shown = TimeStep(
            jnp.float32(after.obs), jnp.float32(after.reward), jnp.bool_(after.done), steps >= self.max_episode_steps
        )
        physics = mjx.get_state(self.model, after.data, _state_parts())
        return strong(EpisodeState(physics, steps)), shown

    def _with_model(self) -> Any:
        """Playground keeps its physics in this attribute, which its own domain randomisation sets in the same way."""
        task = copy.copy(self.template)
        task._mjx_model = self.model
        return task


def _state_parts() -> int:
    """What one step leaves for the next: positions, velocities, activations, the solver's first guess, a target."""
    from mujoco import mjtState

    parts = mjtState.mjSTATE_QPOS | mjtState.mjSTATE_QVEL | mjtState.mjSTATE_ACT
    return int(parts | mjtState.mjSTATE_WARMSTART | mjtState.mjSTATE_MOCAP_POS)


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
