"""Gymnasium's MuJoCo tasks (`envs/mujoco_tasks.py`) on MJX, MuJoCo's engine in JAX, with Gymnasium's own model files.

The physics are MuJoCo 4.0's, also where MJX 3.17 departs from it: `runge_kutta` and `mujocos_contacts` below fix
three differences that we found. `docs/parity.md` shows the error of one step of every task. What is left:

- Programs compute in float32, MuJoCo in float64.
- Humanoid and HumanoidStandup ask for the PGS solver, which MJX lacks: Newton takes its place. It converges further.
- MuJoCo puts a simulation that has blown up back to its initial state, in the middle of an episode. Ours shows NaN.

An action with a NaN applies no force at all, as in MuJoCo, but spoils the reward that charges for it. Actions outside
the box are charged in full and clipped by the motors, as in Gymnasium.

Accuracy may be traded for speed, for example by `mujoco/Hopper-v5+solver_iterations=4`; see `WRAPPERS`. MJX' other
implementation, for GPUs, is `mujoco/Hopper-v5+implementation=warp`; see `envs/mujoco_warp.py`.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import functools
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from envs import mujoco_warp
from envs.core import Array, Box, EpisodeState, Space, TaskInfo, TimeStep, parameters, strong
from envs.mujoco_tasks import SPECS, Physics, Rules
from envs.wrappers import Argument, Value, Wrapper, WrapperError, whole_number, wrapped_id

PACKAGE = "gymnasium"
INSTALL = "pip install rlsuite"


TASKS: dict[str, TaskInfo] = {f"mujoco/{name}": spec.info for name, spec in SPECS.items()}


class Template:
    """What no program traces of a task; equal only to itself."""

    def __init__(self, mj_model: Any, rules: Rules, frame_skip: int) -> None:
        self.mj_model = mj_model
        """MuJoCo's own model, as Gymnasium loads it"""
        self.rules = rules
        self.frame_skip = frame_skip
        self.dt: float = mj_model.opt.timestep * frame_skip
        """seconds of a step"""


class Simulation(NamedTuple):
    """The state of MJX between two steps. All else follows from it."""

    qpos: Array
    """`[nq]`"""
    qvel: Array
    """`[nv]`"""
    qacc_warmstart: Array
    """`[nv]` where the solver begins"""
    position: Array
    """`[]` m, see `Rules.position`"""


@struct.dataclass
class Mujoco:
    """A task on MJX; `model`, the MJX model (masses, lengths, friction, ...), is the leaves."""

    model: Any
    template: Template = struct.field(pytree_node=False)
    id: str = struct.field(pytree_node=False)
    obs_dim: int = struct.field(pytree_node=False)
    action_space: Space = struct.field(pytree_node=False)
    max_episode_steps: int = struct.field(pytree_node=False)
    warp: bool = struct.field(pytree_node=False, default=False)
    """whether steps are simulated by MuJoCo Warp, with the parameters and options of `model`"""

    def reset(self, key: Array) -> tuple[EpisodeState, Array]:
        rules = self.template.rules
        qpos, qvel = rules.reset(key, self.model.qpos0, self.model.nv)
        physics = self.at_rest(qpos, qvel)
        simulation = Simulation(physics.qpos, physics.qvel, jnp.zeros_like(physics.qvel), rules.position(physics))
        return strong(EpisodeState(simulation, jnp.int32(0))), jnp.float32(rules.observe(physics))

    def step(self, key: Array, state: EpisodeState, action: Array) -> tuple[EpisodeState, TimeStep]:
        physics, qacc_warmstart = self.simulate(state.physics, action)
        position, shown = self.judge(physics, state.physics.position, state.steps + 1, action)
        simulation = Simulation(physics.qpos, physics.qvel, qacc_warmstart, position)
        return strong(EpisodeState(simulation, state.steps + 1)), shown

    def judge(self, physics: Physics, position: Array, steps: Array, action: Array) -> tuple[Array, TimeStep]:
        """The new position and what the step shows that began at `position` and was number `steps` of its episode."""
        rules = self.template.rules
        new_position = rules.position(physics)
        velocity = (new_position - position) / self.template.dt
        reward, terminated = rules.judge(physics, velocity, action)
        obs, truncated = jnp.float32(rules.observe(physics)), steps >= self.max_episode_steps
        return new_position, TimeStep(obs, jnp.float32(reward), terminated, truncated)

    def at_rest(self, qpos: Array, qvel: Array) -> Physics:
        """What there is to see of these positions and velocities before anything has moved."""
        from mujoco import mjx
        from mujoco.mjx._src import smooth  # the velocities of bodies have no public name

        model = self.model
        data = mjx.make_data(model, impl="jax").replace(qpos=qpos, qvel=qvel)
        if self.template.rules.reads:
            with levels_apart():
                data = smooth.com_vel(model, mjx.com_pos(model, mjx.kinematics(model, data)))
        # No contact has been computed, no motor is on, and no task begins at the limit of a joint.
        return read(data, self.template.rules.reads)

    @jax.jit  # traced once, though training and evaluation are two programs
    def simulate(self, simulation: Simulation, action: Array) -> tuple[Physics, Array]:
        """The substeps of one step, and where the solver begins the next."""
        from mujoco import mjx

        if not self.warp:
            return self.substeps(self.model, mjx.make_data(self.model, impl="jax"), simulation, action)

        def on_warp(number: int, env: Mujoco, simulation: Simulation, action: Array) -> tuple[Physics, Array]:
            mj_model = for_mjx(env.template.mj_model)
            model, data = mujoco_warp.model_like(mj_model, env.model), mujoco_warp.make_data(mj_model, number)
            return env.substeps(model, data, simulation, action)

        found: tuple[Physics, Array] = mujoco_warp.knowing_how_many(on_warp, self, simulation, action)
        return found

    def substeps(self, model: Any, data: Any, simulation: Simulation, action: Array) -> tuple[Physics, Array]:
        """`simulate` with this model and data of one of MJX' implementations."""
        from mujoco import mjx

        data = data.replace(
            qpos=simulation.qpos, qvel=simulation.qvel, qacc_warmstart=simulation.qacc_warmstart, ctrl=controls(action)
        )

        substep = runge_kutta if model.opt.integrator == mjx.IntegratorType.RK4 else mjx.step

        def body(_: Any, before: Any) -> Any:
            return typed_as(before, substep(model, before))

        with mujocos_contacts(), levels_apart():
            data = jax.lax.fori_loop(0, self.template.frame_skip, body, strong(data))
        if "cfrc_ext" in self.template.rules.reads and not self.warp:  # which has done it
            data = mjx.rne_postconstraint(model, data)
        return read(data, self.template.rules.reads), data.qacc_warmstart


def typed_as(before: Any, after: Any) -> Any:
    """`after` in the types of `before`: MJX changes those of some indices on its way where JAX computes in 64 bits."""
    return jax.tree.map(lambda new, old: new.astype(old.dtype), after, before)


def controls(action: Array) -> Array:
    """What the motors make of an action `[nu]`: MuJoCo ignores all of it where one entry is not a number."""
    return jnp.where(jnp.any(jnp.isnan(action)), 0.0, action)


def runge_kutta(model: Any, data: Any) -> Any:
    """One substep of the classical Runge-Kutta method, as MuJoCo 4.0 takes it; for models without activations.

    MJX' own adds angular velocities of different orientations as if they were vectors of one space, which costs the
    orientation of a free joint two orders of accuracy. MuJoCo 4.0 carries them over first, with the inverse of the
    exponential map's derivative (Munthe-Kaas, "High order Runge-Kutta methods on manifolds", 1999). Besides, one
    evaluation of the forces in a loop compiles in half the time of MJX' four.
    """
    from mujoco import mjx

    timestep, qpos, qvel = model.opt.timestep, data.qpos, data.qvel

    def stage(carry: Any, weights: tuple[Array, Array]) -> tuple[Any, None]:
        data, speed, sum_speed, sum_qacc = carry
        reach, weight = weights
        moved = reach * timestep * speed
        data = data.replace(qpos=integrate(model, qpos, moved), qvel=qvel + reach * timestep * data.qacc)
        data = typed_as(data, mjx.forward(model, data))
        speed = carried_over(model, moved, data.qvel)
        return (data, speed, sum_speed + weight * speed, sum_qacc + weight * data.qacc), None

    reaches, weights = jnp.asarray([0.0, 0.5, 0.5, 1.0]), jnp.asarray([1 / 6, 1 / 3, 1 / 3, 1 / 6])
    zero = jnp.zeros_like(qvel)
    (data, _, speed, qacc), _ = jax.lax.scan(
        stage, (data.replace(qacc=zero), zero, zero, zero), (reaches.astype(qvel.dtype), weights.astype(qvel.dtype))
    )
    return data.replace(
        qpos=integrate(model, qpos, timestep * speed), qvel=qvel + timestep * qacc, qacc_warmstart=data.qacc
    )


def has_free_joint(model: Any) -> bool:
    """Whether the first joint is a free one; in these models no other joint has a quaternion."""
    from mujoco import mjx

    return bool(model.jnt_type[0] == mjx.JointType.FREE)


def integrate(model: Any, qpos: Array, moved: Array) -> Array:
    """qpos `[nq]` after a movement `[nv]` in the directions of qvel."""
    if not has_free_joint(model):
        return qpos + moved
    turn = moved[3:6]
    angle = jnp.linalg.norm(turn)
    w1, x1, y1, z1 = qpos[3:7]
    # sin(angle / 2) / angle, also at 0
    x2, y2, z2 = turn * 0.5 * jnp.sinc(angle / (2 * jnp.pi))
    w2 = jnp.cos(0.5 * angle)
    quat = jnp.stack(
        [
            w1 * w2 - x1 * x2 - y1 * y2 - z1 * z2,
            w1 * x2 + x1 * w2 + y1 * z2 - z1 * y2,
            w1 * y2 - x1 * z2 + y1 * w2 + z1 * x2,
            w1 * z2 + x1 * y2 - y1 * x2 + z1 * w2,
        ]
    )
    return jnp.concatenate([qpos[:3] + moved[:3], quat / jnp.linalg.norm(quat), qpos[7:] + moved[6:]])


def carried_over(model: Any, moved: Array, qvel: Array) -> Array:
    """qvel `[nv]` after the movement `moved` `[nv]`, expressed where the movement began."""
    if not has_free_joint(model):
        return qvel
    turn, spin = moved[3:6], qvel[3:6]
    angle2 = jnp.sum(turn**2)
    across = jnp.cross(turn, spin)
    # The series of (1 - angle / 2 / tan(angle / 2)) / angle^2: enough terms for any angle of a substep in float64.
    factor = 1 / 12 + angle2 * (1 / 720 + angle2 * (1 / 30240 + angle2 * (1 / 1209600 + angle2 / 47900160)))
    return qvel.at[3:6].set(spin + 0.5 * across + factor * jnp.cross(turn, across))


@contextlib.contextmanager
def _switched_on(switch: contextvars.ContextVar[bool]) -> Iterator[None]:
    token = switch.set(True)
    try:
        yield
    finally:
        switch.reset(token)


_AS_MUJOCO = contextvars.ContextVar("contacts as MuJoCo has them", default=False)
NO_CONTACT = 1e3
"""metres between two that shall not touch"""
BISECTIONS = {jnp.dtype("float32"): 30, jnp.dtype("float64"): 60}
"""halvings of a capsule's axis until a nearer point is no other number"""


def mujocos_contacts() -> contextlib.AbstractContextManager[None]:
    """While a program is traced in here, two kinds of contact are MuJoCo's.

    Plane and capsule: MuJoCo lays the first tangent along the capsule. MJX does so too, but takes a fixed axis for a
    capsule that stands at more than 60 degrees to the plane (google-deepmind/mujoco#2774). With a friction pyramid,
    whose edges lie along the tangents, that is another force: it made MJX' Ant and Humanoid leave MuJoCo's way at their
    first contact.

    Capsule and cylinder: MuJoCo has one contact, where the two are nearest to each other. MJX looks for it by a few
    steps of gradient descent from two points, and may find two: it made Pusher leave MuJoCo's way.
    """
    _replace_colliders()
    return _switched_on(_AS_MUJOCO)


@functools.cache
def _replace_colliders() -> None:
    """Put our colliders before MJX' own, which go on serving every other environment."""
    from mujoco.mjx._src import collision_driver, types

    def replace(one: str, other: str, ours: Callable[..., tuple[Array, Array, Array]]) -> None:
        pair = (types.GeomType[one], types.GeomType[other])
        own = collision_driver._COLLISION_FUNC[pair]

        def collide(model: Any, data: Any, key: Any, geom: Array) -> tuple[Array, Array, Array]:
            found: Callable[[], tuple[Array, Array, Array]] = functools.partial(own, model, data, key, geom)
            return ours(model, data, geom, found) if _AS_MUJOCO.get() else found()

        collide.ncon = own.ncon  # type: ignore[attr-defined]
        collision_driver._COLLISION_FUNC[pair] = collide

    replace("PLANE", "CAPSULE", _plane_and_capsule)
    replace("CAPSULE", "CYLINDER", _capsule_and_cylinder)


def _plane_and_capsule(
    model: Any, data: Any, geom: Array, found: Callable[[], tuple[Array, Array, Array]]
) -> tuple[Array, Array, Array]:
    """MJX' contacts, two a pair, with the first tangent along the capsule."""
    dist, pos, frame = found()
    normal, axis = (data.geom_xmat[geoms][:, :, 2] for geoms in geom.T)
    across = axis - normal * jnp.sum(normal * axis, axis=1, keepdims=True)
    length = jnp.linalg.norm(across, axis=1, keepdims=True)
    tangent = across / jnp.maximum(length, 1e-15)
    aligned = jnp.repeat(jnp.stack([normal, tangent, jnp.cross(normal, tangent)], axis=1), 2, axis=0)
    return dist, pos, jnp.where(jnp.repeat(length, 2, axis=0)[:, :, None] < 1e-15, frame, aligned)


def _capsule_and_cylinder(
    model: Any, data: Any, geom: Array, found: Callable[[], tuple[Array, Array, Array]]
) -> tuple[Array, Array, Array]:
    """Where each pair is nearest, and a second contact that is none, since MJX has room for two.

    The signed distance from a cylinder is convex, so that along the capsule's axis its slope changes sign once.
    """
    from mujoco.mjx._src import math

    def pair_contacts(capsule: Array, cylinder: Array) -> tuple[Array, Array, Array]:
        (thick, length, _), (radius, height, _) = model.geom_size[capsule], model.geom_size[cylinder]
        to_world = data.geom_xmat[cylinder]
        middle = to_world.T @ (data.geom_xpos[capsule] - data.geom_xpos[cylinder])
        axis = to_world.T @ data.geom_xmat[capsule][:, 2]

        def distance(point: Array) -> tuple[Array, Array]:
            """Of a point from the cylinder, negative inside, and its gradient."""
            from_axis = jnp.linalg.norm(point[:2])
            outwards = jnp.append(point[:2] / jnp.maximum(from_axis, 1e-15), 0.0)
            upwards = jnp.zeros(3).at[2].set(jnp.sign(point[2]))
            side, top = from_axis - radius, jnp.abs(point[2]) - height
            apart = jnp.hypot(jnp.maximum(side, 0.0), jnp.maximum(top, 0.0))
            edge = (jnp.maximum(side, 0.0) * outwards + jnp.maximum(top, 0.0) * upwards) / jnp.maximum(apart, 1e-15)
            inside = jnp.maximum(side, top)
            face = jnp.where(side > top, outwards, upwards)
            return jnp.where(inside > 0.0, apart, inside), jnp.where(inside > 0.0, edge, face)

        def halve(_: Any, between: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = between
            at = (low + high) / 2
            rising = distance(middle + at * axis)[1] @ axis > 0.0
            return jnp.where(rising, low, at), jnp.where(rising, at, high)

        low, high = jax.lax.fori_loop(0, BISECTIONS[middle.dtype], halve, (-length, length))
        nearest = middle + (low + high) / 2 * axis
        apart, away = distance(nearest)
        dist = apart - thick
        pos = nearest - (thick + dist / 2) * away
        frame = math.make_frame(to_world @ -away)
        return (
            jnp.stack([dist, jnp.full_like(dist, NO_CONTACT)]),
            jnp.tile(to_world @ pos + data.geom_xpos[cylinder], (2, 1)),
            jnp.tile(frame, (2, 1, 1)),
        )

    return jax.tree.map(jnp.concatenate, jax.vmap(pair_contacts)(*geom.T))


_APART = contextvars.ContextVar("apart", default=False)


def levels_apart() -> contextlib.AbstractContextManager[None]:
    """While a program is traced in here, the levels of a tree of bodies are computed one after the other.

    XLA merges chains of small operations on a processor, and what several of them need, each computes again. Along an
    arm this doubles with every joint: the positions of four of Pusher's, seven joints long, took half a second, and
    take a millisecond like this. No number depends on it but by rounding.
    """
    _replace_body_tree()
    return _switched_on(_APART)


@functools.cache
def _replace_body_tree() -> None:
    """Put our scan over a tree of bodies in the place of MJX' own, which goes on serving every other environment."""
    from mujoco.mjx._src import scan

    own = scan.body_tree

    def body_tree(model: Any, function: Any, *arguments: Any, **options: Any) -> Any:
        if not _APART.get():
            return own(model, function, *arguments, **options)
        return own(model, lambda *level: jax.lax.optimization_barrier(function(*level)), *arguments, **options)

    scan.body_tree = body_tree


IMPL_FIELDS = ("cinert", "cfrc_ext")
"""fields of `Physics` that MJX keeps apart, because its implementations differ in them"""


def read(data: Any, fields: tuple[str, ...]) -> Physics:
    """These fields of an mjx.Data, with qpos and qvel."""
    found = {name: getattr(data._impl if name in IMPL_FIELDS else data, name) for name in fields}
    return Physics(data.qpos, data.qvel, **found)


def model_folder() -> Path:
    """Where Gymnasium keeps its model files, found without importing it."""
    found = importlib.util.find_spec("gymnasium")
    assert found is not None and found.origin is not None, "the registry has imported it"
    return Path(found.origin).parent / "envs" / "mujoco" / "assets"


@contextlib.contextmanager
def without_advice() -> Iterator[None]:
    """What MuJoCo's compiler thinks of the style of Gymnasium's model files, it neither prints nor writes to a file."""
    import mujoco

    listener = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(listener)


def for_mjx(mj_model: Any) -> Any:
    """The same model with what MJX lacks replaced: Newton's solver for PGS."""
    import mujoco

    model = copy.copy(mj_model)
    if model.opt.solver == mujoco.mjtSolver.mjSOL_PGS:
        model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
    return model


def build(env_id: str, max_episode_steps: int) -> Mujoco:
    """The task `env_id`, a key of `TASKS`, with Gymnasium's physics."""
    import mujoco  # Late, so that listing environments imports no simulator.
    from mujoco import mjx

    spec = SPECS[env_id.removeprefix("mujoco/")]
    with without_advice():
        mj_model = mujoco.MjModel.from_xml_path(str(model_folder() / spec.file))
    low, high = mj_model.actuator_ctrlrange.T
    with jax.ensure_compile_time_eval():
        model = parameters(mjx.put_model(for_mjx(mj_model), impl="jax"))
    return Mujoco(
        model=model,
        template=Template(mj_model, spec.rules(mj_model), spec.frame_skip),
        id=env_id,
        obs_dim=spec.info.obs_dim,
        action_space=Box(tuple(map(float, low)), tuple(map(float, high))),
        max_episode_steps=max_episode_steps,
    )


# --- Settings of MJX --------------------------------------------------------------------------------------------------


def with_options(env: Mujoco, name: str, value: Value, **options: Any) -> Mujoco:
    """`env` with other options of the solver; MuJoCo's own model, and all that is made with it, stays as it is."""
    model = env.model.replace(opt=env.model.opt.replace(**options))
    return env.replace(model=model, id=wrapped_id(env.id, name, value))  # type: ignore[attr-defined]


def solver_iterations(env: Mujoco, number: int) -> Mujoco:
    """`env` with at most `iterations` iterations of the constraint solver in each evaluation of the forces."""
    return with_options(env, "solver_iterations", number, iterations=number)


def linesearch_iterations(env: Mujoco, number: int) -> Mujoco:
    """`env` with at most this many steps of the line search in each of them."""
    return with_options(env, "linesearch_iterations", number, ls_iterations=number)


def solver(env: Mujoco, name: str) -> Mujoco:
    """`env` with another constraint solver."""
    from mujoco import mjx

    return with_options(env, "solver", name, solver=mjx.SolverType[name.upper()])


def integrator(env: Mujoco, name: str) -> Mujoco:
    """`env` with another integrator."""
    from mujoco import mjx

    return with_options(env, "integrator", name, integrator=mjx.IntegratorType[name.upper()])


def implementation(env: Mujoco, name: str) -> Mujoco:
    """`env` simulated by another implementation of MJX. Raises WrapperError where it cannot run."""
    if name == "warp" and (reason := mujoco_warp.unavailable()) is not None:
        raise WrapperError(f"{env.id!r} cannot be simulated with 'implementation=warp': {reason}, or leave it out")
    changed: Mujoco = env.replace(  # type: ignore[attr-defined]
        warp=name == "warp", id=wrapped_id(env.id, "implementation", name)
    )
    return changed


def one_of(*names: str) -> Callable[[str], str]:
    """The reader of one of these words; it raises ValueError for any other text."""

    def reader(text: str) -> str:
        if text not in names:
            raise ValueError(text)
        return text

    return reader


WRAPPERS: dict[str, Wrapper] = {
    "solver_iterations": Wrapper(
        "at most N iterations of MJX' constraint solver",
        solver_iterations,
        Argument("N", whole_number(1), "a whole number of at least 1, such as 4"),
        keeps_reference=True,
    ),
    "linesearch_iterations": Wrapper(
        "at most N steps of its line search",
        linesearch_iterations,
        Argument("N", whole_number(1), "a whole number of at least 1, such as 4"),
        keeps_reference=True,
    ),
    "solver": Wrapper(
        "MJX' constraint solver", solver, Argument("NAME", one_of("newton", "cg"), "newton or cg"), keeps_reference=True
    ),
    "integrator": Wrapper(
        "MJX' integrator", integrator, Argument("NAME", one_of("euler", "rk4"), "euler or rk4"), keeps_reference=True
    ),
    "implementation": Wrapper(
        "what MJX is made of; warp is for GPUs",
        implementation,
        Argument("NAME", one_of("jax", "warp"), "jax or warp"),
        keeps_reference=True,
    ),
}
"""What trades accuracy for speed; `docs/parity.md` shows what each costs. Gymnasium's model files set the defaults."""
