"""C MuJoCo for the tasks of `envs/mujoco.py`: Gymnasium's own physics, in float64, on the host.

No compiled program can call it, so it serves between two of them, where on a processor it is many times as fast as MJX.
It simulates many environments on a pool of threads, since MuJoCo lets go of Python's lock while it steps. All else is
computed by the very functions that judge the task on MJX, in float32: initial states, wrappers, observations, rewards,
terminations. Settings of the MJX solver do not matter here; the physics are always those of Gymnasium's model file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs.core import Array, Env, EnvState, EpisodeState, TimeStep, strong
from envs.mujoco import Mujoco, Template, controls
from envs.mujoco_tasks import Physics
from envs.wrappers import Wrapped, innermost, with_innermost

Views = list[tuple[np.ndarray, np.ndarray]]
"""(field of an MjData, the array `[num_envs, ...]` that it is copied to)"""


class NoPhysicsError(ValueError):
    """C MuJoCo does not simulate this environment."""


class Simulator:
    """Environments of one task side by side. What they compute does not depend on the number of threads."""

    def __init__(self, template: Template, num_envs: int, num_threads: int) -> None:
        import mujoco

        self._mujoco = mujoco
        self._model = template.mj_model
        self._frame_skip = template.frame_skip
        self._charges_contacts = "cfrc_ext" in template.rules.reads
        self._all_of_it = int(mujoco.mjtState.mjSTATE_INTEGRATION)
        # Between two steps an environment is no more than this, so that thousands of them share a few MjData.
        self._states = np.zeros((num_envs, mujoco.mj_stateSize(self._model, self._all_of_it)))
        self._data = [mujoco.MjData(self._model) for _ in range(num_threads)]
        self.physics = blank(template, num_envs)
        """`[num_envs, ...]` NumPy float32 of what the task reads, as of the last call for that environment"""
        arrays = {name: array for name, array in self.physics._asdict().items() if array is not None}
        self._views: list[Views] = [
            [(getattr(data, name), array) for name, array in arrays.items()] for data in self._data
        ]
        self._pool = ThreadPoolExecutor(num_threads)

    def reset(self, qpos: np.ndarray, qvel: np.ndarray, which: np.ndarray) -> None:
        """Start those of `which` `[num_envs]` bool from `[num_envs, nq]` and `[num_envs, nv]`, as `set_state` does."""

        def start(data: Any, i: int) -> None:
            self._mujoco.mj_resetData(self._model, data)
            data.qpos[:] = qpos[i]
            data.qvel[:] = qvel[i]
            self._mujoco.mj_forward(self._model, data)

        self._share_out(start, which)

    def step(self, ctrl: np.ndarray, which: np.ndarray) -> None:
        """Step those of `which` `[num_envs]` bool with these controls `[num_envs, nu]`."""

        def step(data: Any, i: int) -> None:
            self._mujoco.mj_setState(self._model, data, self._states[i], self._all_of_it)
            data.ctrl[:] = ctrl[i]
            self._mujoco.mj_step(self._model, data, nstep=self._frame_skip)
            if self._charges_contacts:
                self._mujoco.mj_rnePostConstraint(self._model, data)

        self._share_out(step, which)

    def _share_out(self, work: Callable[[Any, int], None], which: np.ndarray) -> None:
        """Do the work for the environments of `which`, contiguous shares of them on each thread."""

        def do(data: Any, views: Views, share: Sequence[int]) -> None:
            for i in share:
                work(data, i)
                self._mujoco.mj_getState(self._model, data, self._states[i], self._all_of_it)
                for field, copies in views:
                    copies[i] = field

        shares = [share.tolist() for share in np.array_split(np.flatnonzero(which), len(self._data)) if share.size]
        if len(shares) == 1:
            do(self._data[0], self._views[0], shares[0])
        else:
            for done in [
                self._pool.submit(do, *inputs) for inputs in zip(self._data, self._views, shares, strict=False)
            ]:
                done.result()


class Link(NamedTuple):
    """Between the task and its simulator; the innermost part of an environment's state, whatever wraps it."""

    qpos: Array
    """`[nq]` where the episode begins"""
    qvel: Array
    """`[nv]`"""
    ctrl: Array
    """`[nu]` what the motors were given last"""
    position: Array
    """`[]` m, see `Rules.position`"""


@struct.dataclass
class Judged(Wrapped):
    """A task as far as it is no simulation: what its steps lead to, `physics`, is measured elsewhere."""

    physics: Physics

    def reset(self, key: Array) -> tuple[EpisodeState, Array]:
        task = base(self.env)
        rules = task.template.rules
        qpos, qvel = rules.reset(key, task.model.qpos0, task.model.nv)
        link = Link(qpos, qvel, jnp.zeros(task.model.nu), rules.position(self.physics))
        return strong(EpisodeState(link, jnp.int32(0))), jnp.float32(rules.observe(self.physics))

    def step(self, key: Array, state: EpisodeState, action: Array) -> tuple[EpisodeState, TimeStep]:
        position, shown = base(self.env).judge(self.physics, state.physics.position, state.steps + 1, action)
        # MuJoCo would do the same to a NaN, and say so in a log file.
        link = state.physics._replace(ctrl=controls(action), position=position)
        return strong(EpisodeState(link, state.steps + 1)), shown


@struct.dataclass
class WithC(Wrapped):
    """`env` on MJX as it is, and next to it the same task with its physics computed by a `Simulator`.

    An episode there: `draw`, simulate that, `start`; then again and again `control`, simulate that, `judge`. All four
    are pure functions of one environment, wrappers included.
    """

    @property
    def backend(self) -> str:
        """The simulator, for people."""
        return f"C MuJoCo {metadata.version('mujoco')}"

    def simulator(self, num_envs: int, num_threads: int) -> Simulator:
        """`num_envs` environments, on `num_threads` threads."""
        return Simulator(base(self.env).template, num_envs, num_threads)

    def draw(self, key: Array) -> tuple[Array, Array]:
        """qpos `[nq]` and qvel `[nv]` where an episode begins; on MJX the same key gives the same."""
        link = link_of(self._judged(None).reset(key)[0])
        return link.qpos, link.qvel

    def start(self, key: Array, physics: Physics) -> tuple[EnvState, Array]:
        """State and observation `[obs_dim]` of the episode that was drawn with the same key."""
        return self._judged(physics).reset(key)

    def control(self, key: Array, state: EnvState, action: Array) -> Array:
        """What reaches the motors `[nu]`."""
        return link_of(self._judged(None).step(key, state, action)[0]).ctrl

    def judge(self, key: Array, state: EnvState, action: Array, physics: Physics) -> tuple[EnvState, TimeStep]:
        """What the step shows that was controlled with the same key, and has led to this physics."""
        return self._judged(physics).step(key, state, action)

    def _judged(self, physics: Physics | None) -> Env:
        """The task and its wrappers; without physics, for what does not depend on them, these are zeros."""
        task = base(self.env)
        if physics is None:
            physics = jax.tree.map(jnp.asarray, blank(task.template))
        return with_innermost(self.env, Judged(task, task.id, physics))


def with_c(env: Env) -> WithC:
    """`env`, for evaluations on C MuJoCo.

    Raises:
        NoPhysicsError: it is none of the tasks of `envs/mujoco.py`, wrapped or not.
    """
    base(env)
    return WithC(env, env.id)


def base(env: Env) -> Mujoco:
    """The task that all wrappers are around. Raises NoPhysicsError if it is none of MuJoCo's."""
    inner = innermost(env)
    if not isinstance(inner, Mujoco):
        raise NoPhysicsError(
            f"environment {env.id!r} has no physics in C MuJoCo; those whose id begins with 'mujoco/' have, "
            "all others are evaluated on their own"
        )
    return inner


def link_of(state: EnvState) -> Link:
    """The `Link` in the state of `Judged`, whatever states of wrappers are around it."""
    parts = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, Link))
    (link,) = (part for part in parts if isinstance(part, Link))
    return link


def blank(template: Template, *leading: int) -> Physics:
    """NumPy zeros `[*leading, ...]` float32 for what the task reads."""
    import mujoco

    data = mujoco.MjData(template.mj_model)
    names = ("qpos", "qvel", *template.rules.reads)
    zeros: Any = {name: np.zeros((*leading, *getattr(data, name).shape), np.float32) for name in names}
    return Physics(**zeros)
