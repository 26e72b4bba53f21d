"""The MuJoCo tasks against Gymnasium's: what the rules make of a state, and what MJX makes of an action.

The rules are cheap and are compared for every task. Compiling MJX is not: pieces of physics are compared on tiny
models, and whole steps for two tasks here, for all others in `make exhaustive` and docs/parity.md.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from mujoco import mjx

import envs
from envs import gymnasium as from_gymnasium
from envs import mujoco as adapter
from envs import mujoco_warp
from envs.core import Box, EpisodeState
from envs.mujoco_tasks import D4RL, THRESHOLD, Physics
from envs.wrappers import WrapperError

IDS = sorted(adapter.TASKS)
QUICK_TO_COMPILE: Any = {"xla_backend_optimization_level": 0}
QUICK = ("mujoco/InvertedPendulum-v5", "mujoco/Hopper-v5")
"""what `make test` compiles whole steps and resets of; of the others `make exhaustive` does"""
every_task = pytest.mark.parametrize("env_id", IDS)
every_task_compiled = pytest.mark.parametrize(
    "env_id",
    [
        pytest.param(
            env_id, marks=[pytest.mark.xdist_group(env_id), *([] if env_id in QUICK else [pytest.mark.exhaustive])]
        )
        for env_id in IDS
    ],
)


def gym_env(env_id: str) -> Any:
    """Gymnasium's task behind an id, without its time limit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # version 4
        return gymnasium.make(env_id.removeprefix("mujoco/")).unwrapped


def shown_by(data: Any, reads: tuple[str, ...]) -> Physics:
    """What MuJoCo's own data show, in float64."""
    fields = {name: np.array(getattr(data, name)) for name in reads}
    return Physics(np.array(data.qpos), np.array(data.qvel), **fields)  # type: ignore[arg-type]


def random_actions(env: Any, number: int) -> np.ndarray:
    low, high = np.float64(env.action_space.low), np.float64(env.action_space.high)
    return np.random.default_rng(0).uniform(low, high, (number, len(low))).astype(np.float32)


def start(env: Any, env_id: str, seed: int) -> tuple[Physics, Any]:
    """Put Gymnasium's task into an initial state drawn by ours; returns what it shows there and our rules."""
    template = envs.make(env_id).template  # type: ignore[attr-defined]
    qpos, qvel = template.rules.reset(jax.random.key(seed), jnp.asarray(template.mj_model.qpos0), template.mj_model.nv)
    mujoco.mj_resetData(env.model, env.data)
    env.set_state(np.float64(qpos), np.float64(qvel))
    return shown_by(env.data, template.rules.reads), template


# --- The rules --------------------------------------------------------------------------------------------------------


@every_task
def test_sizes_bounds_and_limits_are_gymnasiums(env_id: str) -> None:
    env, theirs = envs.make(env_id), gymnasium.spec(env_id.removeprefix("mujoco/"))
    unwrapped = gym_env(env_id)
    assert env.obs_dim == unwrapped.observation_space.shape[0]
    space = env.action_space
    assert isinstance(space, Box)
    np.testing.assert_allclose(space.low, unwrapped.action_space.low, rtol=1e-6)
    np.testing.assert_allclose(space.high, unwrapped.action_space.high, rtol=1e-6)
    assert env.max_episode_steps == theirs.max_episode_steps
    template = env.template  # type: ignore[attr-defined]
    assert template.dt == unwrapped.dt


def test_a_task_is_built_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """MuJoCo's compiler has advice for the author of HalfCheetah's model, and would leave it in a file."""
    monkeypatch.chdir(tmp_path)
    env = adapter.build("mujoco/HalfCheetah-v5", 1000)
    from_gymnasium.make("HalfCheetah-v5", env).close()
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@every_task
def test_reference_returns_have_their_source(env_id: str) -> None:
    reference, theirs = envs.info(env_id).reference, gymnasium.spec(env_id.removeprefix("mujoco/"))
    if reference is None:
        assert theirs.reward_threshold is None
        return
    assert reference.low < reference.high
    if reference.high_source == THRESHOLD:
        assert reference.high == theirs.reward_threshold
    # as the specification of datasets gives them, from ml-jku/OfflineRL, d4rl_results/loader.py
    returns = {"Hopper": (-20.272305, 3234.3), "HalfCheetah": (-280.178953, 12135.0), "Walker2d": (1.629008, 4592.3)}
    name = env_id.removeprefix("mujoco/").split("-")[0]
    if name in returns:
        assert (reference.low, reference.high, reference.low_source) == (*returns[name], D4RL)


@every_task
def test_observation_reward_and_end_are_gymnasiums(env_id: str) -> None:
    """Along a random episode of Gymnasium's, which is never cut: tasks with a fall are followed beyond it."""
    env = gym_env(env_id)
    physics, template = start(env, env_id, seed=1)
    rules = template.rules

    @jax.jit
    def ours(physics: Physics, before: Any, action: Any) -> Any:
        position = rules.position(physics)
        return rules.observe(physics), position, *rules.judge(physics, (position - before) / template.dt, action)

    zero = jnp.zeros(len(env.action_space.low))
    obs, position, *_ = ours(physics, 0.0, zero)
    np.testing.assert_allclose(obs, env._get_obs(), rtol=1e-5, atol=1e-5)
    ends = set()
    for action in random_actions(env, 40):
        theirs, reward, terminated, _, _ = env.step(action)
        obs, position, our_reward, our_end = ours(shown_by(env.data, rules.reads), position, action)
        np.testing.assert_allclose(obs, theirs, rtol=1e-5, atol=1e-5)
        # A velocity is the difference of two float32 positions, divided by the 8 ms or more of a step.
        np.testing.assert_allclose(our_reward, float(reward), rtol=1e-5, atol=1e-4)
        assert bool(our_end) == terminated
        ends.add(terminated)
    assert False in ends


@every_task_compiled
def test_initial_states_have_gymnasiums_distribution(env_id: str) -> None:
    """Mean, standard deviation and range of every position and velocity, over 4000 resets of each."""
    number = 4000
    template = envs.make(env_id).template  # type: ignore[attr-defined]
    keys = jax.random.split(jax.random.key(0), number)
    qpos0, nv = jnp.asarray(template.mj_model.qpos0), template.mj_model.nv
    ours = np.concatenate(jax.jit(jax.vmap(lambda key: template.rules.reset(key, qpos0, nv)))(keys), axis=1)
    env = gym_env(env_id)
    rows = []
    env.set_state = lambda qpos, qvel: rows.append(np.concatenate([qpos, qvel]))  # what it draws, not what follows
    for seed in range(number):
        env.np_random = np.random.default_rng(seed)
        env.reset_model()
    theirs = np.array(rows)
    spread = theirs.std(axis=0)
    tolerance = 5 * spread / np.sqrt(number)  # of a mean of either: 3.5 standard errors of their difference
    np.testing.assert_array_less(np.abs(ours.mean(axis=0) - theirs.mean(axis=0)), tolerance + 1e-6)
    np.testing.assert_allclose(ours.std(axis=0), spread, rtol=0.08, atol=1e-6)
    uniform = np.ptp(theirs, axis=0) < 4 * spread  # 3.46 standard deviations; a normal one has 7 or so
    np.testing.assert_allclose(np.ptp(ours, axis=0)[uniform], np.ptp(theirs, axis=0)[uniform], rtol=0.02, atol=1e-6)


def test_reacher_and_pusher_begin_where_gymnasium_lets_them() -> None:
    keys = jax.random.split(jax.random.key(0), 4000)
    for name, columns in (("Reacher-v5", slice(2, 4)), ("Pusher-v5", slice(7, 9))):
        template = envs.make(f"mujoco/{name}").template  # type: ignore[attr-defined]
        qpos0, nv = jnp.asarray(template.mj_model.qpos0), template.mj_model.nv
        qpos, _ = jax.jit(jax.vmap(lambda key, t=template, q=qpos0, n=nv: t.rules.reset(key, q, n)))(keys)
        distance = np.linalg.norm(np.asarray(qpos)[:, columns], axis=1)
        assert (distance.max() <= 0.2) if name == "Reacher-v5" else (distance.min() > 0.17)


# Scripted edge cases: (task, change of qpos, change of qvel, does it end there). Indices are those of qpos and qvel.
EDGES: dict[str, tuple[str, dict[int, float], dict[int, float], bool]] = {
    "hopper stands": ("Hopper-v5", {}, {}, False),
    "hopper has fallen": ("Hopper-v5", {1: 0.5}, {}, True),
    "hopper leans forward": ("Hopper-v5", {2: 0.3}, {}, True),
    "hopper leans backward": ("Hopper-v5", {2: -0.3}, {}, True),
    "hopper spins beyond 100": ("Hopper-v5", {}, {5: 5000.0}, True),
    "walker stands": ("Walker2d-v5", {}, {}, False),
    "walker has fallen": ("Walker2d-v5", {1: 0.6}, {}, True),
    "walker flies": ("Walker2d-v5", {1: 2.5}, {}, True),
    "walker flips": ("Walker2d-v5", {2: 3.1}, {}, True),
    "ant stands": ("Ant-v5", {}, {}, False),
    "ant flies": ("Ant-v5", {2: 1.5}, {}, True),
    "ant on its back ends by height alone": ("Ant-v5", {2: 0.5, 3: 0.0, 4: 1.0}, {}, False),
    "humanoid stands": ("Humanoid-v5", {}, {}, False),
    "humanoid has fallen": ("Humanoid-v5", {2: 0.8}, {}, True),
    "humanoid jumps": ("Humanoid-v5", {2: 2.2}, {}, True),
    "cheetah on its back goes on": ("HalfCheetah-v5", {2: 3.1}, {}, False),
    "pendulum stands": ("InvertedPendulum-v5", {}, {}, False),
    "pendulum has fallen": ("InvertedPendulum-v5", {1: 0.3}, {}, True),
    "double pendulum stands": ("InvertedDoublePendulum-v5", {}, {}, False),
    "double pendulum has fallen": ("InvertedDoublePendulum-v5", {1: 1.6}, {}, True),
    "version 4 pays for the fall": ("Hopper-v4", {1: 0.5}, {}, True),
}


def by_hand(name: str, before: np.ndarray, data: Any, action: np.ndarray) -> tuple[float, bool]:
    """Reward and end, written down once more from Gymnasium's documentation, in NumPy, step by step."""
    task, version = name.split("-")
    qpos, qvel = data.qpos, data.qvel
    charge = float(np.dot(action.astype(np.float64), action.astype(np.float64)))
    if task in ("Hopper", "Walker2d"):
        speed = (qpos[0] - before[0]) / 0.008
        if task == "Hopper":
            others = [*qpos[2:], *qvel]
            fine = qpos[1] > 0.7 and -0.2 < qpos[2] < 0.2 and all(-100 < number < 100 for number in others)
        else:
            fine = 0.8 < qpos[1] < 2.0 and -1.0 < qpos[2] < 1.0
        bonus = 1.0 if fine or version == "v4" else 0.0
        return speed + bonus - 0.001 * charge, not fine
    if task == "HalfCheetah":
        return (qpos[0] - before[0]) / 0.05 - 0.1 * charge, False
    if task == "Ant":
        fine = 0.2 <= qpos[2] <= 1.0
        touch = sum(min(1.0, max(-1.0, force)) ** 2 for force in data.cfrc_ext.ravel())
        return (data.xpos[1][0] - before[0]) / 0.05 + fine - 0.5 * charge - 0.0005 * touch, not fine
    if task == "Humanoid":
        fine = 1.0 < qpos[2] < 2.0
        touch = min(10.0, 5e-7 * sum(force**2 for force in data.cfrc_ext.ravel()))
        return 1.25 * (before[1] - before[0]) / 0.015 + 5.0 * fine - 0.1 * charge - touch, not fine
    if task == "InvertedPendulum":
        return (1.0, False) if abs(qpos[1]) <= 0.2 else (0.0, True)
    x, _, height = data.site_xpos[0]
    fallen = height <= 1.0
    return (
        (0.0 if fallen else 10.0) - (0.01 * x**2 + (height - 2.0) ** 2) - (0.001 * qvel[1] ** 2 + 0.005 * qvel[2] ** 2),
        fallen,
    )


@pytest.mark.parametrize("case", EDGES)
@pytest.mark.parametrize("effort", [0.0, 0.7, 3.0], ids=["idle", "in bounds", "out of bounds"])
def test_edge_cases_three_ways(case: str, effort: float) -> None:
    """Gymnasium, our rules and `by_hand` see the same reward and the same end."""
    name, qpos_change, qvel_change, ends = EDGES[case]
    env_id = f"mujoco/{name}"
    env = gym_env(env_id)
    template = envs.make(env_id).template  # type: ignore[attr-defined]
    rules = template.rules
    qpos, qvel = template.mj_model.qpos0.copy(), np.zeros(template.mj_model.nv)
    for index, value in qpos_change.items():
        qpos[index] = value
    for index, value in qvel_change.items():
        qvel[index] = value
    mujoco.mj_resetData(env.model, env.data)
    env.set_state(qpos, qvel)
    before = rules.position(shown_by(env.data, rules.reads))
    noted = env.data.qpos.copy()
    if name == "Humanoid-v5":
        mass = env.model.body_mass[:, None]
        noted[0] = (mass * env.data.xipos).sum(0)[0] / mass.sum()
    action = effort * np.float64(env.action_space.high)  # in float32, Gymnasium would charge for it in float32
    _, reward, terminated, _, _ = env.step(action)
    if name == "Humanoid-v5":
        noted[1] = (mass * env.data.xipos).sum(0)[0] / mass.sum()
    physics = shown_by(env.data, rules.reads)
    with jax.enable_x64(True):
        position = rules.position(physics)
        our_reward, our_end = rules.judge(physics, (position - np.float64(before)) / template.dt, np.float64(action))
    hand_reward, hand_end = by_hand(name, noted, env.data, action)
    assert terminated == ends == bool(our_end) == hand_end
    np.testing.assert_allclose(hand_reward, float(reward), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(float(our_reward), float(reward), rtol=1e-4, atol=1e-4)


# --- MJX --------------------------------------------------------------------------------------------------------------

SPINNING = """<mujoco><option integrator="RK4" timestep="0.05"/><worldbody><body pos="0 0 1"><freejoint/>
<geom type="box" size=".1 .2 .3" mass="1"/></body></worldbody></mujoco>"""

LEANING = """<mujoco><worldbody><geom type="plane" size="5 5 1"/><body pos="0 0 0.5"><freejoint/>
<geom type="capsule" size=".05 .5"/></body></worldbody></mujoco>"""


def test_runge_kutta_turns_a_free_body_as_mujoco_does() -> None:
    model = mujoco.MjModel.from_xml_string(SPINNING)
    data = mujoco.MjData(model)
    data.qvel[:] = [0.1, 0.2, 0.3, 3.0, 5.0, -4.0]
    ours = mjx.put_data(model, data)
    on_mjx = mjx.put_model(model, impl="jax")
    for _ in range(3):
        mujoco.mj_step(model, data)
    step = jax.jit(adapter.runge_kutta, compiler_options=QUICK_TO_COMPILE)
    for _ in range(3):
        ours = step(on_mjx, ours)
    # MJX' own method is off by 1e-3 here.
    np.testing.assert_allclose(ours.qpos, data.qpos, atol=2e-6)
    np.testing.assert_allclose(ours.qvel, data.qvel, atol=2e-5)


@functools.cache
def frames(aligned: bool) -> Any:
    """jit: qpos of LEANING -> distances and frames of MJX' contacts."""
    model = mjx.put_model(mujoco.MjModel.from_xml_string(LEANING), impl="jax")

    def collide(qpos: jax.Array) -> tuple[jax.Array, jax.Array]:
        with adapter.mujocos_contacts() if aligned else contextlib.nullcontext():
            data = mjx.make_data(model, impl="jax").replace(qpos=qpos)
            contact = mjx.collision(model, mjx.kinematics(model, data))._impl.contact
        return contact.dist, contact.frame

    return jax.jit(collide, compiler_options=QUICK_TO_COMPILE)


@pytest.mark.xdist_group("contacts")
@pytest.mark.parametrize("degrees", [10.0, 25.0, 35.0, 80.0])
def test_contacts_of_a_leaning_capsule_have_mujocos_frames(degrees: float) -> None:
    model = mujoco.MjModel.from_xml_string(LEANING)
    data = mujoco.MjData(model)
    half = np.radians(degrees) / 2
    data.qpos[3:] = [np.cos(half), 0.6 * np.sin(half), 0.8 * np.sin(half), 0.0]
    data.qpos[2] = 0.5 * np.cos(2 * half)  # the lower end touches
    mujoco.mj_forward(model, data)
    assert data.ncon >= 1
    distance, frame = frames(True)(data.qpos)
    touching = int(np.argmin(distance))
    np.testing.assert_allclose(frame[touching].ravel(), data.contact.frame[0], atol=1e-6)
    # Outside, MJX is as it comes: if this fails, it has been mended, and `mujocos_contacts` can go.
    own = frames(False)(data.qpos)[1]
    assert np.allclose(own[touching].ravel(), data.contact.frame[0], atol=1e-6) == (degrees > 30)


ACROSS = """
<mujoco>
  <option gravity="0 0 0" ccd_tolerance="1e-12" ccd_iterations="500"/>
  <worldbody>
    <body><freejoint/><geom type="capsule" size="0.02 0.1"/></body>
    <body><freejoint/><geom type="cylinder" size="0.05 0.05"/></body>
  </worldbody>
</mujoco>
"""


def touching_poses(count: int) -> Iterator[tuple[np.ndarray, Any]]:
    """(qpos, the contact in MuJoCo) of random poses in which the capsule's axis stays outside of the cylinder."""
    model = mujoco.MjModel.from_xml_string(ACROSS)
    data = mujoco.MjData(model)
    rng = np.random.default_rng(0)
    while count:
        turns = rng.normal(size=(2, 4))
        turns /= np.linalg.norm(turns, axis=1, keepdims=True)
        data.qpos[:] = np.concatenate([rng.normal(size=3) * 0.08, turns[0], np.zeros(3), turns[1]])
        mujoco.mj_forward(model, data)
        # Two are what MuJoCo makes of a capsule that lies along a face.
        if data.ncon == 1 and data.contact.dist[0] > -0.02:
            count -= 1
            yield data.qpos.copy(), data.contact


@pytest.mark.xdist_group("contacts")
def test_a_capsule_touches_a_cylinder_where_mujoco_has_it() -> None:
    model = mjx.put_model(mujoco.MjModel.from_xml_string(ACROSS), impl="jax")

    def collide(ours: bool, qpos: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        with adapter.mujocos_contacts() if ours else contextlib.nullcontext():
            data = mjx.make_data(model, impl="jax").replace(qpos=qpos)
            contact = mjx.collision(model, mjx.kinematics(model, data))._impl.contact
        return contact.dist, contact.pos, contact.frame[:, 0]

    mended, own = (
        jax.jit(functools.partial(collide, ours), compiler_options=QUICK_TO_COMPILE) for ours in (True, False)
    )
    missed = 0
    for qpos, contact in touching_poses(50):
        dist, pos, normal = mended(qpos)
        np.testing.assert_allclose(dist[0], contact.dist[0], atol=1e-6)
        np.testing.assert_allclose(pos[0], contact.pos[0], atol=1e-5)
        np.testing.assert_allclose(normal[0], contact.frame[0, :3], atol=1e-4)
        assert dist[1] > 1.0  # no second one
        missed += abs(float(own(qpos)[0].min()) - contact.dist[0]) > 1e-4
    # Outside, MJX is as it comes: if this fails, it has been mended, and our collider can go.
    assert missed > 25


@pytest.mark.slow
def test_nothing_along_an_arm_is_computed_once_more_for_each_joint() -> None:
    """The compiler merges operations, but makes hardly more of them; without `levels_apart` it makes four times as many
    of Pusher's, in which the same ones are done over and over."""
    env: Any = envs.make("mujoco/Pusher-v5")

    def positions(qpos: jax.Array) -> jax.Array:
        with adapter.levels_apart():
            data = mjx.make_data(env.model, impl="jax").replace(qpos=qpos)
            xpos: jax.Array = mjx.kinematics(env.model, data).xpos
            return xpos

    lowered = jax.jit(jax.vmap(positions)).lower(jnp.tile(env.model.qpos0, (4, 1)))
    assert lowered.compile().cost_analysis()["flops"] < 2.0 * lowered.cost_analysis()["flops"]


@functools.cache
def compiled_step(env_id: str) -> Any:
    """jit: (simulation, steps taken, action) -> what the next step shows."""
    env: Any = envs.make(env_id)

    def step(simulation: adapter.Simulation, taken: int, action: Any) -> Any:
        return env.step(jax.random.key(0), EpisodeState(simulation, jnp.int32(taken)), action)[1]

    return jax.jit(step, compiler_options=QUICK_TO_COMPILE)


@every_task_compiled
def test_one_step_of_mjx_is_gymnasiums(env_id: str) -> None:
    """From Gymnasium's states, along its random episode: what float32 leaves of one step."""
    env = gym_env(env_id)
    _, template = start(env, env_id, seed=2)
    step = compiled_step(env_id)
    humanoid = "Humanoid" in env_id  # Newton's solver in place of PGS
    for action in random_actions(env, 25):
        simulation = adapter.Simulation(
            jnp.float32(env.data.qpos),
            jnp.float32(env.data.qvel),
            jnp.float32(env.data.qacc_warmstart),
            jnp.float32(template.rules.position(shown_by(env.data, template.rules.reads))),
        )
        theirs, reward, terminated, _, _ = env.step(action)
        shown = step(simulation, 0, action)
        error = np.abs(np.float64(shown.obs) - theirs) / (1 + np.abs(theirs))
        assert np.median(error) < 1e-4
        assert error.max() < (0.1 if humanoid else 0.02), env_id
        np.testing.assert_allclose(shown.reward, float(reward), atol=2e-2 if humanoid else 2e-3)
        assert bool(shown.terminated) == terminated
        if terminated:
            env.reset(seed=3)


@pytest.mark.xdist_group("mujoco/InvertedPendulum-v5")
def test_a_fall_on_the_last_step_is_a_termination_and_a_truncation() -> None:
    env = envs.make("mujoco/InvertedPendulum-v5")
    fallen = adapter.Simulation(jnp.float32([0.0, 0.3]), jnp.zeros(2), jnp.zeros(2), jnp.float32(0))
    step = compiled_step(env.id)
    for taken, limit in ((env.max_episode_steps - 1, True), (5, False)):
        shown = step(fallen, taken, np.zeros(1, np.float32))
        assert (bool(shown.terminated), bool(shown.truncated)) == (True, limit)


@pytest.mark.xdist_group("mujoco/Hopper-v5")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_senseless_action_acts_as_in_mujoco(bad: float) -> None:
    env = gym_env("mujoco/Hopper-v5")
    start(env, "mujoco/Hopper-v5", seed=0)
    action = np.float32([0.5, bad, 0.5])
    simulation = adapter.Simulation(
        jnp.float32(env.data.qpos), jnp.float32(env.data.qvel), jnp.zeros(6), jnp.float32(env.data.qpos[0])
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MuJoCo says that it ignores the controls
        theirs, reward, terminated, _, _ = env.step(action)
    shown = compiled_step("mujoco/Hopper-v5")(simulation, 0, action)
    np.testing.assert_allclose(shown.obs, theirs, atol=1e-4)
    assert np.isfinite(shown.reward) == np.isfinite(reward)
    assert bool(shown.terminated) == terminated


def test_solver_settings_change_mjx_alone() -> None:
    plain: Any = envs.make("mujoco/Hopper-v5")
    relaxed: Any = envs.make("mujoco/Hopper-v5+solver_iterations=4+linesearch_iterations=6+solver=cg+integrator=euler")
    option = relaxed.model.opt
    assert (option.iterations, option.ls_iterations) == (4, 6)
    assert (option.solver, option.integrator) == (mjx.SolverType.CG, mjx.IntegratorType.EULER)
    assert relaxed.template is plain.template
    assert plain.model.opt.integrator == mjx.IntegratorType.RK4
    with pytest.raises(ValueError, match="newton or cg"):
        envs.make("mujoco/Hopper-v5+solver=pgs")


# --- MuJoCo Warp ------------------------------------------------------------------------------------------------------


def test_how_many_are_computed_at_once_is_known_on_every_level() -> None:
    def one(number: int, scale: Any, pair: Any) -> Any:
        return jnp.int32(number), scale * pair["x"] + pair["y"]

    def function(scale: Any, x: Any, y: Any) -> Any:
        return mujoco_warp.knowing_how_many(one, scale, {"x": x, "y": y})

    rng = np.random.default_rng(0)
    scale, x, y = rng.normal(size=()), rng.normal(size=(2, 3, 5)), rng.normal(size=(4, 2))
    number, found = function(scale, x[0, 0], y[0, 0])
    assert number == 1
    np.testing.assert_allclose(found, scale * x[0, 0] + y[0, 0], rtol=1e-6)
    # x is batched in the inner levels, y in the outer ones; between them is one that batches both.
    everything = jax.vmap(jax.vmap(jax.vmap(function, (None, 0, None)), (None, 0, 0)), (None, None, 0))
    for of in (everything, jax.jit(everything)):
        number, found = of(scale, x, y)
        assert number.shape == (4, 2, 3) and np.all(number == 4 * 2 * 3)
        np.testing.assert_allclose(found, scale * x[None] + y[:, :, None, None], rtol=1e-5)


@every_task
def test_warp_has_the_parameters_of_mjx_and_room_for_all_contacts(env_id: str) -> None:
    env: Any = envs.make(env_id)
    mj_model = adapter.for_mjx(env.template.mj_model)
    own = mjx.put_model(mj_model, impl="warp")
    for ours, theirs in ((env.model, own), (env.model.opt, own.opt)):
        shared = mujoco_warp.shared(theirs, ours)
        assert len(shared) > 10
        for name, value in shared.items():
            np.testing.assert_allclose(value, vars(theirs)[name], rtol=1e-6, atol=1e-7, err_msg=name)
    heavier = env.model.replace(body_mass=2.0 * env.model.body_mass)
    heavier = heavier.replace(opt=heavier.opt.replace(iterations=3, solver=mjx.SolverType.CG))
    changed = mujoco_warp.model_like(mj_model, heavier)
    np.testing.assert_allclose(changed.body_mass, 2.0 * mj_model.body_mass, rtol=1e-6)
    np.testing.assert_allclose(changed.body_inertia, mj_model.body_inertia, rtol=1e-6)
    assert (changed.opt.iterations, changed.opt.solver) == (3, mjx.SolverType.CG)

    # What MJX in JAX has room for is every contact there can be.
    in_jax = mjx.make_data(mj_model, impl="jax")
    contacts, rows = mujoco_warp.most_contacts(mj_model)
    assert contacts >= in_jax._impl.ncon
    assert rows >= in_jax._impl.nefc


@pytest.mark.slow
def test_warp_frames_the_contacts_of_a_leaning_capsule_as_mujoco_does() -> None:
    mj_model = mujoco.MjModel.from_xml_string(LEANING)
    model = mujoco_warp.model_like(mj_model, mjx.put_model(mj_model, impl="jax"))
    qpos, frames_of = [], []
    for degrees in (10.0, 25.0, 35.0, 80.0):
        data = mujoco.MjData(mj_model)
        half = np.radians(degrees) / 2
        data.qpos[3:] = [np.cos(half), 0.6 * np.sin(half), 0.8 * np.sin(half), 0.0]
        data.qpos[2] = 0.5 * np.cos(2 * half)  # the lower end touches
        mujoco.mj_forward(mj_model, data)
        qpos.append(data.qpos.copy())
        frames_of.append(data.contact.frame[0].reshape(3, 3))

    def collide(number: int, qpos: Any) -> tuple[Any, Any, Any]:
        data = mjx.forward(model, mujoco_warp.make_data(mj_model, number).replace(qpos=qpos))
        return data._impl.contact__frame, data._impl.contact__worldid, data._impl.nacon

    found = jax.jit(jax.vmap(lambda qpos: mujoco_warp.knowing_how_many(collide, qpos)))(jnp.float32(qpos))
    frame, world, number = (np.asarray(array)[0] for array in found)  # the same for every capsule
    seen = set()
    for which in range(int(number.ravel()[0])):
        np.testing.assert_allclose(frame[which], frames_of[world[which]], atol=1e-5)
        seen.add(int(world[which]))
    assert seen == {0, 1, 2, 3}


def on_warp(env_id: str, masses: Any, states: Any, actions: Any) -> Any:
    """What a step on Warp shows, `[masses, states, ...]`: body masses are those of the model times `masses`."""
    env: Any = envs.make(f"{env_id}+implementation=warp")

    @jax.jit
    def steps(model: Any, masses: Any, states: Any, actions: Any) -> Any:
        def with_mass(mass: Any) -> Any:
            changed = env.replace(model=model.replace(body_mass=mass * model.body_mass))

            def step(simulation: adapter.Simulation, action: Any) -> Any:
                return changed.step(jax.random.key(0), EpisodeState(simulation, jnp.int32(0)), action)[1]

            return jax.vmap(step)(states, actions)

        return jax.vmap(with_mass)(masses)

    return steps(env.model, masses, states, actions)


@pytest.mark.parametrize(
    "env_id",
    [pytest.param(env_id, marks=[] if env_id == "mujoco/Hopper-v5" else [pytest.mark.exhaustive]) for env_id in IDS],
)
def test_one_step_of_warp_is_gymnasiums(env_id: str) -> None:
    """Also with other masses, in batches of batches: what float32 leaves of one step, from Gymnasium's states."""
    env = gym_env(env_id)
    _, template = start(env, env_id, seed=2)
    masses, actions = np.float32([1.0, 1.3]), random_actions(env, 16)
    states, shown = [], []
    for action in actions:
        kept = np.empty(mujoco.mj_stateSize(env.model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(env.model, env.data, kept, mujoco.mjtState.mjSTATE_INTEGRATION)
        state = (env.data.qpos.copy(), env.data.qvel.copy(), env.data.qacc_warmstart.copy())
        found = []
        for mass in masses[::-1]:  # the episode goes on with the model's own
            mujoco.mj_setState(env.model, env.data, kept, mujoco.mjtState.mjSTATE_INTEGRATION)
            env.model.body_mass[:] = mass * template.mj_model.body_mass
            mujoco.mj_forward(env.model, env.data)
            env.data.qacc_warmstart[:] = state[2]
            position = template.rules.position(shown_by(env.data, template.rules.reads))
            found.append(env.step(action)[:3])
        states.append((*state, position))
        shown.append(found[::-1])
    batch = adapter.Simulation(*(np.float32(column) for column in zip(*states, strict=True)))
    ours = jax.device_get(on_warp(env_id, masses, batch, actions))
    humanoid = "Humanoid" in env_id  # Newton's solver in place of PGS
    for number, found in enumerate(shown):
        for which, (obs, reward, terminated) in enumerate(found):
            error = np.abs(np.float64(ours.obs[which, number]) - obs) / (1 + np.abs(obs))
            assert np.median(error) < 1e-4
            assert error.max() < (0.1 if humanoid else 0.02)
            np.testing.assert_allclose(ours.reward[which, number], float(reward), atol=2e-2 if humanoid else 2e-3)
            assert bool(ours.terminated[which, number]) == terminated
    assert not np.allclose(ours.obs[0], ours.obs[1], atol=1e-5)


def test_warp_is_refused_in_one_line_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    envs.make("mujoco/Swimmer-v5")  # which is kept, in float32
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "tpu")
        with pytest.raises(WrapperError, match="needs a CUDA GPU or a processor, and JAX runs on 'tpu'") as refused:
            envs.make("mujoco/Swimmer-v5+implementation=warp")
        assert "\n" not in str(refused.value)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "warp", None)
        with pytest.raises(WrapperError, match="pip install warp-lang"):
            envs.make("mujoco/Swimmer-v5+implementation=warp")
    with pytest.raises(WrapperError, match="float32 alone"), jax.enable_x64(True):
        envs.make("mujoco/Swimmer-v5+implementation=warp")
    with pytest.raises(WrapperError, match="jax or warp"):
        envs.make("mujoco/Swimmer-v5+implementation=cuda")
