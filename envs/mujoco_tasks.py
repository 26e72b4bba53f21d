"""Gymnasium's MuJoCo tasks (Towers et al., "Gymnasium: A Standard Interface for Reinforcement Learning Environments",
2024) as functions of what a simulator shows: initial states, observations, rewards and terminations. Version 5, and of
version 4 the tasks that D4RL's datasets were scored on. `envs/mujoco.py` plays them on MJX, `envs/mujoco_c.py` on
MuJoCo.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs.core import Array, Reference, TaskInfo


class Physics(NamedTuple):
    """What a task is judged by, after the last substep of a step. Fields that a task does not read may be None.

    As in MuJoCo, all but `qpos` and `qvel` are those of the integrator's last evaluation of the forces, which lies
    up to one substep back.
    """

    qpos: Array
    """`[nq]`"""
    qvel: Array
    """`[nv]`"""
    xpos: Array | None = None
    """`[nbody, 3]` positions of the bodies' frames"""
    xipos: Array | None = None
    """`[nbody, 3]` positions of the bodies' centres of mass"""
    site_xpos: Array | None = None
    """`[nsite, 3]`"""
    cinert: Array | None = None
    """`[nbody, 10]` inertias about the centre of mass of the whole tree"""
    cvel: Array | None = None
    """`[nbody, 6]` velocities"""
    qfrc_actuator: Array | None = None
    """`[nv]` forces of the motors"""
    qfrc_constraint: Array | None = None
    """`[nv]` forces of limits and contacts"""
    cfrc_ext: Array | None = None
    """`[nbody, 6]` torques and forces of contacts; 0 after a reset"""


class Rules(NamedTuple):
    """A task as functions of one `Physics` of JAX or NumPy arrays."""

    reads: tuple[str, ...]
    """the fields of `Physics` it needs besides qpos and qvel"""
    reset: Callable[[Array, Array, int], tuple[Array, Array]]
    """(key, qpos0 `[nq]`, nv) -> initial qpos `[nq]` and qvel `[nv]`"""
    observe: Callable[[Physics], Array]
    """-> `[obs_dim]`"""
    position: Callable[[Physics], Array]
    """-> `[]` the position in m whose velocity is rewarded; 0 where none is"""
    judge: Callable[[Physics, Array, Array], tuple[Array, Array]]
    """(physics, velocity `[]` in m/s, action `[action_dim]`) -> (reward `[]`, terminated `[]` bool)"""


def noisy_reset(scale: float, normal_velocity: bool = False) -> Callable[[Array, Array, int], tuple[Array, Array]]:
    """Uniform noise of +-scale on positions, and the same or normal noise of that scale on velocities."""

    def reset(key: Array, qpos0: Array, nv: int) -> tuple[Array, Array]:
        qpos_key, qvel_key = jax.random.split(key)
        qpos = qpos0 + jax.random.uniform(qpos_key, qpos0.shape, minval=-scale, maxval=scale)
        if normal_velocity:
            return qpos, scale * jax.random.normal(qvel_key, (nv,))
        return qpos, jax.random.uniform(qvel_key, (nv,), minval=-scale, maxval=scale)

    return reset


def always(physics: Physics) -> Array:
    """Nothing ends this task but the clock."""
    return jnp.bool_(True)


def no_position(physics: Physics) -> Array:
    """No velocity is rewarded."""
    return jnp.zeros_like(physics.qpos[0])


def runner(
    hidden: int,
    reset: Callable[[Array, Array, int], tuple[Array, Array]],
    control_cost: float,
    healthy: Callable[[Physics], Array] | None = None,
    max_speed: float | None = None,
    bonus_when_fallen: bool = False,
) -> Rules:
    """Move along x: reward is the velocity, less the control cost, plus 1 while healthy where one can fall.

    The first `hidden` positions are not observed; `max_speed` clips observed velocities. Version 4 paid the bonus for
    the step of the fall too (`bonus_when_fallen`).
    """

    def observe(physics: Physics) -> Array:
        qvel = physics.qvel if max_speed is None else jnp.clip(physics.qvel, -max_speed, max_speed)
        return jnp.concatenate([physics.qpos[hidden:], qvel])

    def judge(physics: Physics, velocity: Array, action: Array) -> tuple[Array, Array]:
        reward = velocity - control_cost * jnp.sum(action**2)
        if healthy is None:
            return reward, jnp.bool_(False)
        well = healthy(physics)
        return reward + (1.0 if bonus_when_fallen else well), ~well

    return Rules((), reset, observe, lambda physics: physics.qpos[0], judge)


def hopper(bonus_when_fallen: bool = False) -> Rules:
    """One leg: it has fallen below 0.7 m, beyond 0.2 rad, or with any other number beyond 100."""

    def healthy(physics: Physics) -> Array:
        rest = jnp.concatenate([physics.qpos[2:], physics.qvel])
        return (physics.qpos[1] > 0.7) & (jnp.abs(physics.qpos[2]) < 0.2) & jnp.all(jnp.abs(rest) < 100.0)

    return runner(1, noisy_reset(5e-3), 1e-3, healthy, 10.0, bonus_when_fallen)


def walker2d(bonus_when_fallen: bool = False) -> Rules:
    """Two legs in a plane: it has fallen outside of 0.8 m to 2 m, or beyond 1 rad."""

    def healthy(physics: Physics) -> Array:
        height = physics.qpos[1]
        return (height > 0.8) & (height < 2.0) & (jnp.abs(physics.qpos[2]) < 1.0)

    return runner(1, noisy_reset(5e-3), 1e-3, healthy, 10.0, bonus_when_fallen)


def half_cheetah() -> Rules:
    """Two legs and a spine; it never falls."""
    return runner(1, noisy_reset(0.1, normal_velocity=True), 0.1)


def swimmer() -> Rules:
    """Three links in a viscous fluid."""
    return runner(2, noisy_reset(0.1), 1e-4)


def ant(contacts: bool = True, bonus_when_fallen: bool = False) -> Rules:
    """Four legs: it has fallen outside of 0.2 m to 1 m. Version 5 observes contact forces and charges for them."""

    def healthy(physics: Physics) -> Array:
        height = physics.qpos[2]
        finite = jnp.all(jnp.isfinite(physics.qpos)) & jnp.all(jnp.isfinite(physics.qvel))
        return finite & (height >= 0.2) & (height <= 1.0)

    legs = runner(2, noisy_reset(0.1, normal_velocity=True), 0.5, healthy, None, bonus_when_fallen)
    torso = legs._replace(reads=("xpos",), position=lambda physics: field(physics.xpos)[1, 0])
    if not contacts:
        return torso

    def forces(physics: Physics) -> Array:
        return jnp.clip(field(physics.cfrc_ext), -1.0, 1.0)

    def observe(physics: Physics) -> Array:
        return jnp.concatenate([legs.observe(physics), forces(physics)[1:].ravel()])

    def judge(physics: Physics, velocity: Array, action: Array) -> tuple[Array, Array]:
        reward, terminated = legs.judge(physics, velocity, action)
        return reward - 5e-4 * jnp.sum(forces(physics) ** 2), terminated

    return torso._replace(reads=("xpos", "cfrc_ext"), observe=observe, judge=judge)


HUMANOID_READS = ("xipos", "cinert", "cvel", "qfrc_actuator", "cfrc_ext")


def observe_humanoid(physics: Physics) -> Array:
    """Both humanoids: positions but x and y, velocities, and the dynamics of every body."""
    parts = (
        physics.qpos[2:],
        physics.qvel,
        field(physics.cinert)[1:],
        field(physics.cvel)[1:],
        field(physics.qfrc_actuator)[6:],
        field(physics.cfrc_ext)[1:],
    )
    return jnp.concatenate([part.ravel() for part in parts])


def humanoid(body_mass: Array) -> Rules:
    """Walk: reward is 1.25 times the velocity of the centre of mass, plus 5 while it stands between 1 m and 2 m."""
    share = body_mass / body_mass.sum()

    def judge(physics: Physics, velocity: Array, action: Array) -> tuple[Array, Array]:
        healthy = (physics.qpos[2] > 1.0) & (physics.qpos[2] < 2.0)
        contact_cost = jnp.minimum(5e-7 * jnp.sum(field(physics.cfrc_ext) ** 2), 10.0)
        return 1.25 * velocity + 5.0 * healthy - 0.1 * jnp.sum(action**2) - contact_cost, ~healthy

    return Rules(
        HUMANOID_READS,
        noisy_reset(0.01),
        observe_humanoid,
        lambda physics: jnp.sum(share * field(physics.xipos)[:, 0]),
        judge,
    )


def humanoid_standup(timestep: float) -> Rules:
    """Rise: reward is the height divided by the length of a substep, plus 1."""

    def judge(physics: Physics, velocity: Array, action: Array) -> tuple[Array, Array]:
        contact_cost = jnp.minimum(0.5e-6 * jnp.sum(field(physics.cfrc_ext) ** 2), 10.0)
        reward = physics.qpos[2] / timestep - 0.1 * jnp.sum(action**2) - contact_cost + 1.0
        return reward, jnp.bool_(False)

    return Rules(HUMANOID_READS, noisy_reset(0.01), observe_humanoid, no_position, judge)


def reacher(fingertip: int, target: int) -> Rules:
    """Bring the fingertip of a two-link arm to a random target: reward is less for distance and for control."""

    def to_target(physics: Physics) -> Array:
        return field(physics.xpos)[fingertip] - field(physics.xpos)[target]

    def reset(key: Array, qpos0: Array, nv: int) -> tuple[Array, Array]:
        qpos_key, qvel_key, radius_key, angle_key = jax.random.split(key, 4)
        qpos = qpos0 + jax.random.uniform(qpos_key, qpos0.shape, minval=-0.1, maxval=0.1)
        # Uniform in a disc of 0.2 m; Gymnasium draws from the square around it until the point lies inside.
        radius = 0.2 * jnp.sqrt(jax.random.uniform(radius_key))
        angle = jax.random.uniform(angle_key, maxval=2 * jnp.pi)
        goal = radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        qvel = jax.random.uniform(qvel_key, (nv,), minval=-0.005, maxval=0.005)
        return qpos.at[-2:].set(goal), qvel.at[-2:].set(0.0)

    def observe(physics: Physics) -> Array:
        angles = physics.qpos[:2]
        parts = (jnp.cos(angles), jnp.sin(angles), physics.qpos[2:], physics.qvel[:2], to_target(physics)[:2])
        return jnp.concatenate(parts)

    def judge(physics: Physics, velocity: Array, action: Array) -> tuple[Array, Array]:
        reward = -jnp.linalg.norm(to_target(physics)) - jnp.sum(action**2)
        return reward, jnp.bool_(False)

    return Rules(("xpos",), reset, observe, no_position, judge)


def pusher(tip: int, cylinder: int, goal: int) -> Rules:
    """Push a cylinder to a goal: reward is less for both distances and for control."""

    def reset(key: Array, qpos0: Array, nv: int) -> tuple[Array, Array]:
        place_key, qvel_key = jax.random.split(key)
        # Uniform in x from -0.3 to 0 and y from -0.2 to 0.2, but farther than 0.17 from the goal, as Gymnasium rejects
        # the others. Of 32 candidates the first that is far enough; that none is has a probability below 1e-13.
        low, high = jnp.asarray([-0.3, -0.2]), jnp.asarray([0.0, 0.2])
        places = jax.random.uniform(place_key, (32, 2), minval=low, maxval=high)
        place = places[jnp.argmax(jnp.linalg.norm(places, axis=1) > 0.17)]
        qvel = jax.random.uniform(qvel_key, (nv,), minval=-0.005, maxval=0.005)
        return qpos0.at[-4:-2].set(place).at[-2:].set(0.0), qvel.at[-4:].set(0.0)

    def observe(physics: Physics) -> Array:
        xpos = field(physics.xpos)
        return jnp.concatenate([physics.qpos[:7], physics.qvel[:7], xpos[tip], xpos[cylinder], xpos[goal]])

    def judge(physics: Physics, velocity: Array, action: Array) -> tuple[Array, Array]:
        xpos = field(physics.xpos)
        near = jnp.linalg.norm(xpos[cylinder] - xpos[tip])
        left = jnp.linalg.norm(xpos[cylinder] - xpos[goal])
        return -left - 0.1 * jnp.sum(action**2) - 0.5 * near, jnp.bool_(False)

    return Rules(("xpos",), reset, observe, no_position, judge)


def inverted_pendulum() -> Rules:
    """A pole on a cart: reward 1 until it has fallen beyond 0.2 rad."""

    def observe(physics: Physics) -> Array:
        return jnp.concatenate([physics.qpos, physics.qvel])

    def judge(physics: Physics, velocity: Array, action: Array) -> tuple[Array, Array]:
        terminated = ~jnp.all(jnp.isfinite(observe(physics))) | (jnp.abs(physics.qpos[1]) > 0.2)
        return jnp.where(terminated, 0.0, 1.0), terminated

    return Rules((), noisy_reset(0.01), observe, no_position, judge)


def inverted_double_pendulum() -> Rules:
    """Two linked poles on a cart: 10 while the tip is above 1 m, less for its distance from the top and for speed."""

    def observe(physics: Physics) -> Array:
        qpos = physics.qpos
        qvel, force = jnp.clip(physics.qvel, -10, 10), jnp.clip(field(physics.qfrc_constraint), -10, 10)
        return jnp.concatenate([qpos[:1], jnp.sin(qpos[1:]), jnp.cos(qpos[1:]), qvel, force[:1]])

    def judge(physics: Physics, velocity: Array, action: Array) -> tuple[Array, Array]:
        x, _, height = field(physics.site_xpos)[0]
        terminated = height <= 1.0
        distance = 0.01 * x**2 + (height - 2.0) ** 2
        speed = 1e-3 * physics.qvel[1] ** 2 + 5e-3 * physics.qvel[2] ** 2
        return 10.0 * ~terminated - distance - speed, terminated

    reads = ("site_xpos", "qfrc_constraint")
    return Rules(reads, noisy_reset(0.1, normal_velocity=True), observe, no_position, judge)


def field(array: Array | None) -> Array:
    """A field of `Physics` that the task is known to read."""
    assert array is not None, "a task must name in Rules.reads what it reads"
    return array


class Spec(NamedTuple):
    """One task: its files and numbers."""

    file: str
    """among Gymnasium's model files"""
    frame_skip: int
    """substeps of physics for each step"""
    rules: Callable[[Any], Rules]
    """from the MjModel"""
    info: TaskInfo


UNIFORM = "the uniform policy in Gymnasium, mean of 200 episodes (benchmarks/random_returns.py)"
THRESHOLD = "the reward threshold that Gymnasium registers the task with"
D4RL = "D4RL's reference return, measured in version 2 of the task"


def _info(
    summary: str, limit: int, obs_dim: int, num_actions: int, low: float, high: float | None, source: str = THRESHOLD
) -> TaskInfo:
    """`low` is the uniform policy's return or D4RL's; without a `high` that has a source, scores are not normalised."""
    reference = None if high is None else Reference(low, high, D4RL if source == D4RL else UNIFORM, source)
    return TaskInfo(summary, limit, obs_dim, num_actions, discrete=False, backend="MJX", reference=reference)


SPECS: dict[str, Spec] = {
    "Ant-v5": Spec("ant.xml", 5, lambda model: ant(), _info("run with four legs", 1000, 105, 8, -50.7, 6000.0)),
    "Ant-v4": Spec(
        "ant.xml", 5, lambda model: ant(False, True), _info("run with four legs", 1000, 27, 8, -49.6, 6000.0)
    ),
    "HalfCheetah-v5": Spec(
        "half_cheetah.xml",
        5,
        lambda model: half_cheetah(),
        _info("run with two legs in a plane", 1000, 17, 6, -280.178953, 12135.0, D4RL),
    ),
    "HalfCheetah-v4": Spec(
        "half_cheetah.xml",
        5,
        lambda model: half_cheetah(),
        _info("run with two legs in a plane", 1000, 17, 6, -280.178953, 12135.0, D4RL),
    ),
    "Hopper-v5": Spec(
        "hopper.xml",
        4,
        lambda model: hopper(),
        _info("hop on one leg in a plane", 1000, 11, 3, -20.272305, 3234.3, D4RL),
    ),
    "Hopper-v4": Spec(
        "hopper.xml",
        4,
        lambda model: hopper(True),
        _info("hop on one leg in a plane", 1000, 11, 3, -20.272305, 3234.3, D4RL),
    ),
    "Humanoid-v5": Spec(
        "humanoid.xml",
        5,
        lambda model: humanoid(model.body_mass),
        _info("walk like a person", 1000, 348, 17, 112.4, None),
    ),
    "HumanoidStandup-v5": Spec(
        "humanoidstandup.xml",
        5,
        lambda model: humanoid_standup(model.opt.timestep),
        _info("stand up from lying", 1000, 348, 17, 33519.1, None),
    ),
    "InvertedDoublePendulum-v5": Spec(
        "inverted_double_pendulum.xml",
        5,
        lambda model: inverted_double_pendulum(),
        _info("keep two linked poles upright on a cart", 1000, 9, 1, 49.7, 9100.0),
    ),
    "InvertedPendulum-v5": Spec(
        "inverted_pendulum.xml",
        2,
        lambda model: inverted_pendulum(),
        _info("keep a pole upright on a cart", 1000, 4, 1, 5.1, 1000.0, "a point for each step upright"),
    ),
    "Pusher-v5": Spec(
        "pusher_v5.xml",
        5,
        lambda model: pusher(model.body("tips_arm").id, model.body("object").id, model.body("goal").id),
        _info("push an object to a goal with an arm", 100, 23, 7, -149.7, 0.0),
    ),
    "Reacher-v5": Spec(
        "reacher.xml",
        2,
        lambda model: reacher(model.body("fingertip").id, model.body("target").id),
        _info("reach a target with a two-link arm", 50, 10, 2, -42.9, -3.75),
    ),
    "Swimmer-v5": Spec(
        "swimmer.xml", 4, lambda model: swimmer(), _info("swim with three links in a plane", 1000, 8, 2, 0.6, 360.0)
    ),
    "Walker2d-v5": Spec(
        "walker2d_v5.xml",
        4,
        lambda model: walker2d(),
        _info("walk on two legs in a plane", 1000, 17, 6, 1.629008, 4592.3, D4RL),
    ),
    "Walker2d-v4": Spec(
        "walker2d.xml",
        4,
        lambda model: walker2d(True),
        _info("walk on two legs in a plane", 1000, 17, 6, 1.629008, 4592.3, D4RL),
    ),
}
