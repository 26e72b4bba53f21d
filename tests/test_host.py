"""Evaluation on C MuJoCo: the episodes are those of Gymnasium's own environments, whatever runs are evaluated beside
them and on however many threads."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from envs import mujoco_c, wrappers
from envs.core import Box
from rlsuite.core import Algorithm, Task
from rlsuite.errors import UserError
from rlsuite.sweeping import job
from rlsuite.sweeping.sweep import Cell
from rlsuite.training import batch, host, memory, train

pytestmark = pytest.mark.xdist_group("host")

Array = jax.Array

RUNS, EPISODES, LIMIT = 3, 2, 60


def act(key: Array, task: Task, state: dict[str, Array], obs: Array) -> Array:
    space = task.env.action_space
    assert isinstance(space, Box)
    return jnp.clip(state["weights"] @ obs, jnp.float32(space.low), jnp.float32(space.high))


def init(key: Array, task: Task, hypers: tuple[float, ...]) -> dict[str, Array]:
    space = task.env.action_space
    assert isinstance(space, Box)
    return {"weights": 0.2 * jax.random.normal(key, (space.dim, task.env.obs_dim))}


def update(key: Array, task: Task, state: dict[str, Array], hypers: Any, clock: Any) -> Any:
    """Learns nothing, so that no program simulates anything on the device; the second update breaks the first seed."""
    seed_is_5 = jnp.all(key == train.stream_key(jnp.uint32(5), train.UPDATE_STREAM, 1))
    weights = jnp.where(seed_is_5, jnp.nan, state["weights"])
    return {"weights": weights}, {"largest": jnp.max(jnp.abs(state["weights"]))}


LINEAR = Algorithm(init, update, act, steps_per_update=1)
SEEDS = (5, 6, 7)


def c_env(env_id: str) -> mujoco_c.WithC:
    return mujoco_c.with_c(envs.make(env_id, max_episode_steps=LIMIT))


@functools.cache
def programs(env_id: str, threads: int = 2) -> train.Programs:
    compile_one = jax.stages.Lowered.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "num_cores", lambda: threads)
        quick = {"xla_backend_optimization_level": 0}
        patch.setattr(jax.stages.Lowered, "compile", lambda lowered: compile_one(lowered, quick))
        task = Task(c_env(env_id))
        return batch.compile_programs(LINEAR, task, (), RUNS, EPISODES, jax.local_devices()[:1]).programs


def checkup(env_id: str, frozen: tuple[bool, ...] = (False, False, False), threads: int = 2) -> train.Checkup:
    compiled = programs(env_id, threads)
    runs = compiled.runs(SEEDS, [()] * RUNS)
    checked = compiled.checkup(runs, compiled.init(runs), 0, 0, np.asarray(frozen))
    return jax.tree.map(np.asarray, checked)


class Recorder:
    """Notes what each environment was started from and stepped with."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.states: list[tuple[np.ndarray, np.ndarray]] = []
        self.controls: dict[int, list[np.ndarray]] = {i: [] for i in range(RUNS * EPISODES)}
        reset, step = mujoco_c.Simulator.reset, mujoco_c.Simulator.step

        def noted_reset(simulator: Any, qpos: np.ndarray, qvel: np.ndarray, which: np.ndarray) -> None:
            self.states = list(zip(qpos.copy(), qvel.copy(), strict=True))
            reset(simulator, qpos, qvel, which)

        def noted_step(simulator: Any, ctrl: np.ndarray, which: np.ndarray) -> None:
            for i in np.flatnonzero(which):
                self.controls[i].append(ctrl[i].copy())
            step(simulator, ctrl, which)

        patch.setattr(mujoco_c.Simulator, "reset", noted_reset)
        patch.setattr(mujoco_c.Simulator, "step", noted_step)


def in_gymnasium(env_id: str, state: tuple[np.ndarray, np.ndarray], actions: list[np.ndarray]) -> tuple[float, int]:
    """Return and length of the episode in Gymnasium's own environment, which must not end before the actions do."""
    real: Any = gymnasium.make(env_id.removeprefix("mujoco/"), max_episode_steps=LIMIT)
    real.reset(seed=0)
    real.unwrapped.set_state(*map(np.float64, state))
    total, over = 0.0, False
    for length, action in enumerate(actions):
        assert not over, length
        _, reward, terminated, truncated, _ = real.step(action)
        total, over = total + reward, terminated or truncated
    assert over
    return total, len(actions)


@pytest.mark.parametrize("env_id", ["mujoco/InvertedPendulum-v5", "mujoco/Hopper-v5", "mujoco/Ant-v5"])
def test_episodes_are_those_of_gymnasium(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same states with the same actions. Fed back, float32 observations would lead Ant elsewhere."""
    recorder = Recorder(monkeypatch)
    episodes = checkup(env_id).episodes
    played = [in_gymnasium(env_id, recorder.states[i], actions) for i, actions in recorder.controls.items()]
    returns, lengths = zip(*played, strict=True)
    assert episodes.lengths.ravel().tolist() == list(lengths)
    np.testing.assert_allclose(episodes.returns.ravel(), returns, rtol=1e-4)
    assert len({state[0].tobytes() for state in recorder.states}) == RUNS * EPISODES


def test_episodes_begin_where_they_would_on_the_device() -> None:
    """What is drawn is what the task draws from the keys that `evaluate` resets with."""
    env = c_env("mujoco/InvertedPendulum-v5")
    seed, index = jnp.uint32(3), jnp.int32(5)
    qpos, qvel = host.draw(Task(env), seed, index, EPISODES)
    key = train.stream_key(seed, train.EVALUATION_STREAM, index)
    reset_keys = jax.random.split(jax.random.split(key)[0], EPISODES)
    task = mujoco_c.base(env)
    drawn = [task.template.rules.reset(reset_key, task.model.qpos0, task.model.nv) for reset_key in reset_keys]
    np.testing.assert_array_equal(qpos, np.stack([state[0] for state in drawn]))
    np.testing.assert_array_equal(qvel, np.stack([state[1] for state in drawn]))


def test_the_number_of_threads_changes_nothing() -> None:
    one, two = checkup("mujoco/Hopper-v5", threads=1), checkup("mujoco/Hopper-v5", threads=2)
    np.testing.assert_array_equal(one.episodes.returns, two.episodes.returns)
    np.testing.assert_array_equal(one.episodes.lengths, two.episodes.lengths)


def test_an_episode_begins_with_no_trace_of_the_one_before() -> None:
    """In contacts, forces and the solver's start, all of which MuJoCo keeps unless it is told not to."""
    env = c_env("mujoco/Ant-v5")
    simulator, it = env.simulator(1, 1), np.asarray([True])
    state = [np.asarray([part]) for part in env.draw(jax.random.key(0))]
    seen = []
    for _ in range(2):
        simulator.reset(*state, it)
        seen += [field.copy() for field in jax.tree.leaves(simulator.physics)]
        for _ in range(20):
            simulator.step(np.full((1, 8), 0.9), it)
        seen += [field.copy() for field in jax.tree.leaves(simulator.physics)]
    assert simulator.physics.cfrc_ext is not None and np.abs(simulator.physics.cfrc_ext).max() > 0
    for first, second in zip(seen[: len(seen) // 2], seen[len(seen) // 2 :], strict=True):
        np.testing.assert_array_equal(first, second)


def test_frozen_runs_play_nothing_and_leave_the_others_alone() -> None:
    every, some = checkup("mujoco/Hopper-v5"), checkup("mujoco/Hopper-v5", (False, True, False))
    assert some.episodes.lengths[1].tolist() == [0] * EPISODES
    assert some.episodes.returns[1].tolist() == [0.0] * EPISODES
    for run in (0, 2):
        np.testing.assert_array_equal(some.episodes.returns[run], every.episodes.returns[run])
    assert checkup("mujoco/Hopper-v5", (True, True, True)).episodes.lengths.sum() == 0


def test_training_sees_health_metrics_and_freezing_as_ever() -> None:
    """The run of seed 5 turns into NaN at its second update. MuJoCo takes NaN for no control at all, silently."""
    compiled = programs("mujoco/Hopper-v5")
    pauses = train.train(compiled, SEEDS, [()] * RUNS, 3, [0, 1, 2, 3])
    evaluations = [pause.training.evaluation for pause in pauses if pause.evaluated]
    assert [e.diverged.tolist() for e in evaluations] == [[False] * 3, [False] * 3, *[[True, False, False]] * 2]
    assert np.isfinite(evaluations[-1].returns).all()
    np.testing.assert_array_equal(evaluations[3].returns[0], evaluations[1].returns[0])
    np.testing.assert_array_equal(evaluations[3].metrics["largest"][1:], evaluations[1].metrics["largest"][1:])
    assert not np.array_equal(evaluations[3].returns[1], evaluations[1].returns[1])


# --- Wrappers ---------------------------------------------------------------------------------------------------------


def test_wrappers_have_their_part() -> None:
    """Actions reach the motors as a wrapper changes them; rewards and observations come as wrappers show them."""
    plain = mujoco_c.base(c_env("mujoco/InvertedPendulum-v5"))
    box = plain.action_space
    assert isinstance(box, Box)
    scaled: Any = wrappers.reward_scale(wrappers.scale_actions(wrappers.observation_delay(plain, 1)), 0.5)
    env = mujoco_c.with_c(scaled)
    key, action = jax.random.key(0), jnp.asarray([0.5])
    simulator = env.simulator(1, 1)

    def measured() -> Any:
        return jax.tree.map(lambda array: jnp.asarray(array[0].copy()), simulator.physics)

    qpos, qvel = env.draw(key)
    simulator.reset(np.asarray([qpos]), np.asarray([qvel]), np.asarray([True]))
    state, first = env.start(key, measured())
    control = env.control(key, state, action)
    np.testing.assert_allclose(control, 0.5 * np.float32(box.high))
    simulator.step(np.asarray([control]), np.asarray([True]))
    state, shown = env.judge(key, state, action, measured())
    assert float(shown.reward) == 0.5
    np.testing.assert_array_equal(shown.obs, first)
    state, later = env.judge(key, state, action, measured())
    assert not np.array_equal(later.obs, first)


def test_nan_is_no_control_at_all_and_infinity_the_end_of_the_box(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MuJoCo does the same, but would write a log file to the folder that the user works in."""
    monkeypatch.chdir(tmp_path)
    env = c_env("mujoco/Hopper-v5")
    simulator = env.simulator(1, 1)
    qpos, qvel = env.draw(jax.random.key(0))

    def after(bad: float) -> tuple[Any, Any]:
        """Where the action leads, and its reward."""
        simulator.reset(np.asarray([qpos]), np.asarray([qvel]), np.asarray([True]))
        physics = jax.tree.map(lambda array: jnp.asarray(array[0].copy()), simulator.physics)
        state, _ = env.start(jax.random.key(0), physics)
        action = jnp.asarray([0.5, bad, 0.5])
        simulator.step(np.asarray([env.control(jax.random.key(0), state, action)]), np.asarray([True]))
        physics = jax.tree.map(lambda array: jnp.asarray(array[0].copy()), simulator.physics)
        return physics.qpos, env.judge(jax.random.key(0), state, action, physics)[1].reward

    state, _ = env.start(jax.random.key(0), jax.tree.map(lambda array: jnp.asarray(array[0]), simulator.physics))
    assert env.control(jax.random.key(0), state, jnp.asarray([0.5, jnp.nan, 0.5])).tolist() == [0.0, 0.0, 0.0]
    assert np.isnan(after(np.nan)[1])
    highest, _ = after(1.0)
    for bad in (np.inf, 1e11):
        reached, reward = after(bad)
        np.testing.assert_array_equal(reached, highest)
        assert reward < -1e10
    assert list(tmp_path.iterdir()) == []


# --- The setting ------------------------------------------------------------------------------------------------------

CELL = Cell("ppo", "mujoco/InvertedPendulum-v5", 2048, seeds=1)


def test_the_setting_is_part_of_the_identity_but_for_its_default() -> None:
    """Results that are there keep their names: this one is of the version before there was such a setting."""
    old = Cell("ppo", "gymnax/CartPole-v1", 2048, seeds=1)
    assert job.resolve("e", old).name == "ppo__gymnax-CartPole-v1__10b21acb"
    own, other = (job.resolve("e", dataclasses.replace(CELL, evaluation_physics=name)) for name in ("own", "mujoco"))
    assert other.name != own.name


@pytest.mark.parametrize(
    ("environment", "physics", "said"),
    [
        ("gymnax/CartPole-v1", "mujoco", ["'gymnax/CartPole-v1'", "no physics in C MuJoCo", "'mujoco/'"]),
        ("mujoco/InvertedPendulum-v5", "bullet", ["evaluation_physics='bullet'", "own, mujoco"]),
    ],
)
def test_what_cannot_be_is_refused(environment: str, physics: Any, said: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        job.resolve("e", dataclasses.replace(CELL, environment=environment, evaluation_physics=physics))
    assert "\n" not in str(raised.value)
    assert [part for part in said if part not in str(raised.value)] == []


def test_mjx_can_be_split_over_devices() -> None:
    """In jaxlib 0.11.2 this ended the process, see `batch.sound_partitioner`."""
    task = Task(envs.make("mujoco/InvertedPendulum-v5", max_episode_steps=3))
    compiled = batch.compile_programs(LINEAR, task, (), 2, 1, jax.local_devices()[:2]).programs
    runs = compiled.runs(SEEDS[1:], [()] * 2)
    episodes = compiled.checkup(runs, compiled.init(runs), 0, 0, np.zeros(2, bool)).episodes
    np.testing.assert_array_equal(episodes.lengths, [[3], [3]])
