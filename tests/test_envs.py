"""The environment contract, on everything that is registered: a new environment is covered by its line in the registry.

Each environment compiles two small programs, one for reset and one for step, which all assertions share. They are
batched over copies of the ENVIRONMENT, so that every physics parameter is a batched argument of the program.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded import AGAIN, FIRST, LIMIT, OTHER_KEY, OTHER_PHYSICS, marks, rollout

import envs
from envs import probes
from envs.core import Box, Discrete, Env, EpisodeState, TimeStep
from rlsuite.pieces import rollout as batched

Array = jax.Array


def each(env_ids: Iterable[str]) -> pytest.MarkDecorator:
    """One test for each of these environments."""
    return pytest.mark.parametrize("env_id", [pytest.param(env_id, marks=marks(env_id)) for env_id in env_ids])


every_env = each(envs.registered())
GYMNAX = [env_id for env_id in envs.registered() if env_id.startswith("gymnax/")]
MINATAR = [env_id for env_id in GYMNAX if env_id.endswith("-MinAtar")]
PLAYGROUND = [env_id for env_id in envs.registered() if env_id.startswith("playground/")]


def avals(tree: Any) -> tuple[Any, list[tuple[Any, ...]]]:
    """All that jit looks at to decide whether it has compiled a program already."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in leaves]


def copy_of(tree: Any, index: int) -> list[np.ndarray]:
    """The leaves of one of the four copies."""
    return [np.asarray(leaf)[index] for leaf in jax.tree.leaves(tree)]


def assert_equal(actual: Any, expected: Any) -> None:
    """The same leaves, to the last bit."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


@every_env
def test_types_are_those_of_the_contract(env_id: str) -> None:
    roll = rollout(env_id)
    expected_obs = ((4, roll.env.obs_dim), jnp.float32, False)
    assert avals(roll.obs)[1] == [expected_obs]
    for shown in roll.shown:
        assert avals(shown)[1] == [
            expected_obs, ((4,), jnp.float32, False), ((4,), jnp.bool_, False), ((4,), jnp.bool_, False)
        ]  # fmt: skip


@every_env
def test_state_keeps_its_type_so_that_nothing_compiles_twice(env_id: str) -> None:
    roll = rollout(env_id)
    for state in roll.states[1:]:
        assert avals(state) == avals(roll.states[0])
    env = envs.make(env_id, max_episode_steps=LIMIT)
    assert not any(weak for _, _, weak in avals((env, roll.states[0]))[1])
    # Committed parameters would give a step's state another type to jit than a reset's.
    assert not any(leaf.committed for leaf in jax.tree.leaves(env))
    assert roll.num_programs == 1


@every_env
def test_reset_depends_on_the_key_and_on_nothing_else(env_id: str) -> None:
    roll = rollout(env_id)
    start = (roll.states[0], roll.obs)
    assert_equal(copy_of(start, FIRST), copy_of(start, AGAIN))
    if envs.info(env_id).starts == "continuous":
        assert np.any(np.asarray(roll.obs)[FIRST] != np.asarray(roll.obs)[OTHER_KEY])


@every_env
def test_a_thousand_resets_repeat_no_start_of_a_continuum(env_id: str) -> None:
    roll = rollout(env_id)
    starts = set()
    for keys in jax.random.split(jax.random.key(1), (334, 4)):
        obs = np.asarray(roll.reset(roll.env, keys)[1])[:OTHER_PHYSICS]
        starts |= {start.tobytes() for start in obs}
    if envs.info(env_id).starts == "continuous":
        assert len(starts) == 334 * 3
    else:
        assert (len(starts) > 1) == (envs.info(env_id).starts == "discrete")


def test_automatic_resets_draw_fresh_starts() -> None:
    """All of them are made by pieces/rollout.py: what it gives the policy after each episode's end is a new start."""
    env = envs.make("gymnax/CartPole-v1", max_episode_steps=1)
    key = jax.random.key(0)
    carry = batched.start(key, env, 4)
    _, transitions, _ = batched.collect(key, env, carry, lambda key, obs: (jnp.zeros(4, jnp.int32), None), 251)
    assert np.all(transitions.truncated)
    starts = {obs.tobytes() for obs in np.asarray(transitions.obs)[1:].reshape(1000, 4)}
    assert len(starts) == 1000


@every_env
def test_registry_tells_the_sizes_of_what_it_builds(env_id: str) -> None:
    env, info = envs.make(env_id, max_episode_steps=LIMIT), envs.info(env_id)
    discrete = isinstance(env.action_space, Discrete)
    num_actions = env.action_space.n if isinstance(env.action_space, Discrete) else env.action_space.dim
    assert (info.obs_dim, info.num_actions, info.discrete) == (env.obs_dim, num_actions, discrete)
    assert envs.make(env_id).max_episode_steps == info.max_episode_steps


@every_env
def test_observations_and_rewards_are_finite(env_id: str) -> None:
    roll = rollout(env_id)
    going_on = np.ones(4, bool)  # after its end a step means nothing
    for shown in map(jax.device_get, roll.shown):
        assert np.isfinite(shown.obs[going_on]).all()
        assert np.isfinite(shown.reward[going_on]).all()
        going_on &= ~shown.terminated


@every_env
def test_truncated_exactly_at_the_limit_and_not_terminated_by_it(env_id: str) -> None:
    """The same step from the same state, once as the last that the limit allows and once with the clock set back."""
    roll = rollout(env_id)
    assert [shown.truncated.tolist() for shown in roll.shown] == [[False] * 4] * (LIMIT - 1) + [[True] * 4]

    state, shown = roll.unlimited
    assert shown.truncated.tolist() == [False] * 4
    # All else is equal: what the limit shows is where the action led, not what a reset gives, and no termination.
    assert_equal(shown._replace(truncated=roll.shown[-1].truncated), roll.shown[-1])
    assert_equal(state.physics, roll.states[-1].physics)
    assert state.steps.tolist() == [1] * 4


@every_env
def test_physics_are_batched_leaves_that_matter(env_id: str) -> None:
    roll = rollout(env_id)
    obs = np.asarray(roll.shown[0].obs)
    np.testing.assert_array_equal(obs[FIRST], obs[AGAIN])
    # MinAtar's parameters are integers, which the other copy shares.
    floats = [leaf for leaf in jax.tree.leaves(roll.env) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert np.any(obs[FIRST] != obs[OTHER_PHYSICS]) == bool(floats)


def four_of_the_first(tree: Any) -> Any:
    """FIRST in place of all four copies."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.stack([np.asarray(leaf)[FIRST]] * 4)), tree)


@pytest.mark.xdist_group("gymnax/Pendulum-v1")
def test_each_pendulum_of_a_batch_has_its_own_gravity() -> None:
    roll = rollout("gymnax/Pendulum-v1")
    env, start = four_of_the_first((roll.env, roll.states[0]))
    gravity = np.array([5.0, 10.0, 15.0, 20.0], np.float32)
    env = env.replace(params=env.params.replace(g=jnp.asarray(gravity)))
    _, shown = roll.step(env, roll.keys, start, jnp.zeros((4, 1)))
    theta, theta_dot = np.asarray(start.physics.theta), np.asarray(start.physics.theta_dot)
    np.testing.assert_allclose(shown.obs[:, 2], theta_dot + 0.05 * 1.5 * gravity * np.sin(theta), rtol=1e-5)


@pytest.mark.xdist_group("brax/hopper/spring")
def test_each_brax_hopper_of_a_batch_has_its_own_gravity() -> None:
    roll = rollout("brax/hopper/spring")
    env, start = four_of_the_first((roll.env, roll.states[0]))
    gravity = np.zeros((4, 3), np.float32)
    gravity[:, 2] = [10.0, 20.0, 40.0, 80.0]  # upwards, away from the floor
    env = env.replace(sys=env.sys.replace(gravity=jnp.asarray(gravity)))
    _, shown = roll.step(env, roll.keys, start, jnp.zeros((4, 3)))
    height_velocity = np.asarray(shown.obs)[:, 6]
    seconds = float(env.template.dt)
    np.testing.assert_allclose(np.diff(height_velocity), np.diff(gravity[:, 2]) * seconds, rtol=0.01)


@every_env
def test_env_is_a_pytree_with_a_hashable_static_part(env_id: str) -> None:
    env = envs.make(env_id, max_episode_steps=LIMIT)
    leaves, structure = jax.tree.flatten(env)
    rebuilt = jax.tree.unflatten(structure, leaves)
    assert hash(structure) == hash(jax.tree.structure(rebuilt))
    assert avals(rebuilt) == avals(env)
    assert rebuilt.id == env.id == env_id
    assert (rebuilt.obs_dim, rebuilt.action_space, rebuilt.max_episode_steps) == (
        env.obs_dim, env.action_space, LIMIT
    )  # fmt: skip
    if isinstance(env.action_space, Box):
        assert np.isfinite([env.action_space.low, env.action_space.high]).all()


# Probes: the closed forms against the sums of discounted rewards that the environments pay.


@pytest.mark.parametrize("env_id", [env_id for env_id in envs.registered() if env_id.startswith("probe/")])
def test_probe_values_are_what_the_probe_pays(env_id: str) -> None:
    discount, horizon = 0.7, 60  # 0.7^60 / 0.3 is below float32 resolution
    env = envs.make(env_id, max_episode_steps=horizon)
    for obs, value in probes.values(env_id, discount):
        action: Any = 0 if isinstance(env.action_space, Discrete) else (0.3,)
        if env_id.startswith("probe/action/"):
            action = probes.optimal_action(env_id, obs)
        # A probe's observation is its whole physics, so every observation can be started from.
        state = EpisodeState(jnp.array(obs), jnp.int32(0))
        paid = 0.0
        for t in range(horizon):
            state, shown = env.step(jax.random.key(t), state, jnp.asarray(action))
            paid += discount**t * float(shown.reward)
            if shown.terminated:
                break
        assert paid == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("env_id", [env_id for env_id in envs.registered() if env_id.startswith("probe/")])
def test_probe_values_name_the_observations_that_occur(env_id: str) -> None:
    env = envs.make(env_id)
    seen = set()
    for seed in range(16):
        state, obs = env.reset(jax.random.key(seed))
        terminated = False
        while not terminated and state.steps < env.max_episode_steps:
            seen.add((float(obs[0]),))
            state, shown = env.step(jax.random.key(0), state, env_action(env))
            obs, terminated = shown.obs, bool(shown.terminated)
    assert seen == {obs for obs, _ in probes.values(env_id, 0.9)}


def env_action(env: Env) -> Array:
    return jnp.int32(0) if isinstance(env.action_space, Discrete) else jnp.array(env.action_space.low)


def test_action_probe_pays_less_for_other_actions() -> None:
    discrete, continuous = envs.make("probe/action/discrete"), envs.make("probe/action/continuous")
    for x in (-1.0, 1.0):
        state = EpisodeState(jnp.array([x]), jnp.int32(0))
        wrong = jnp.int32(1 - probes.optimal_action("probe/action/discrete", [x]))  # type: ignore[operator]
        assert discrete.step(jax.random.key(0), state, wrong)[1].reward == 0.0
        off = jnp.array([0.5 * x + 0.5])
        assert continuous.step(jax.random.key(0), state, off)[1].reward == 0.75


def test_truncation_probe_runs_five_steps_and_never_terminates() -> None:
    env = envs.make("probe/truncation/discrete")
    state, _ = env.reset(jax.random.key(0))
    flags = []
    for _ in range(5):
        state, shown = env.step(jax.random.key(0), state, jnp.int32(0))
        flags.append((bool(shown.terminated), bool(shown.truncated)))
    assert flags == [(False, False)] * 4 + [(False, True)]


@pytest.mark.parametrize("discount", [-0.1, 1.0, float("nan")])
def test_probe_values_reject_a_discount_without_finite_values(discount: float) -> None:
    with pytest.raises(ValueError, match=r"discount must be in \[0, 1\)"):
        probes.values("probe/truncation/discrete", discount)


def test_probe_functions_reject_other_environments() -> None:
    with pytest.raises(ValueError, match="'gymnax/CartPole-v1' is not a probe; expected one of probe/constant/"):
        probes.values("gymnax/CartPole-v1", 0.9)
    with pytest.raises(ValueError, match="every action is optimal in 'probe/constant/discrete'"):
        probes.optimal_action("probe/constant/discrete", [0.0])


# gymnax: beside gymnax' own step, and beside Gymnasium's environments.


def random_states(env_id: str, num: int) -> np.ndarray:
    """`[num, 4 or 2]` physical states, wide enough to reach terminations, walls and speed limits."""
    rng = np.random.default_rng(0)
    low, high = {
        "gymnax/CartPole-v1": ([-2.5, -3.0, -0.25, -3.0], [2.5, 3.0, 0.25, 3.0]),
        "gymnax/Acrobot-v1": ([-3.1, -3.1, -12.0, -28.0], [3.1, 3.1, 12.0, 28.0]),
        "gymnax/MountainCar-v0": ([-1.2, -0.07], [0.6, 0.07]),
        "gymnax/MountainCarContinuous-v0": ([-1.1, -0.07], [0.45, 0.07]),
        "gymnax/Pendulum-v1": ([-7.0, -8.0], [7.0, 8.0]),
    }[env_id]
    return rng.uniform(low, high, (num, len(low))).astype(np.float32)


STATE_FIELDS = {
    "gymnax/CartPole-v1": ("x", "x_dot", "theta", "theta_dot"),
    "gymnax/Acrobot-v1": ("joint_angle1", "joint_angle2", "velocity_1", "velocity_2"),
    "gymnax/MountainCar-v0": ("position", "velocity"),
    "gymnax/MountainCarContinuous-v0": ("position", "velocity"),
    "gymnax/Pendulum-v1": ("theta", "theta_dot"),
}


def gymnax_steps(env_id: str, start: np.ndarray, action: np.ndarray) -> tuple[EpisodeState, Array, TimeStep]:
    """(the states `start` as our adapter holds them, the keys, what one step from them shows), each `[num, ...]`."""
    env = envs.make(env_id)
    keys = jax.random.split(jax.random.key(0), len(start))
    state, _ = jax.vmap(env.reset)(keys)
    fields = {name: jnp.array(start[:, i]) for i, name in enumerate(STATE_FIELDS[env_id])}
    state = state._replace(physics=state.physics.replace(**fields))
    return state, keys, jax.jit(jax.vmap(env.step))(keys, state, action)[1]


def random_actions(env_id: str, num: int) -> np.ndarray:
    space = envs.make(env_id).action_space
    rng = np.random.default_rng(1)
    if isinstance(space, Discrete):
        return rng.integers(0, space.n, num).astype(np.int32)
    return rng.uniform(space.low, space.high, (num, space.dim)).astype(np.float32)


@each(GYMNAX)
def test_gymnax_own_time_limit_has_no_effect(env_id: str) -> None:
    roll = rollout(env_id)
    late = jnp.asarray(np.full(4, 10**6, np.int32))
    state = roll.states[0]._replace(physics=roll.states[0].physics.replace(time=late))
    assert_equal(roll.step(roll.env, roll.keys, state, roll.action)[1], roll.shown[0])


@each(STATE_FIELDS)
def test_gymnax_step_is_gymnax_own_without_its_reset(env_id: str) -> None:
    env: Any = envs.make(env_id)
    action = random_actions(env_id, 256)
    start = random_states(env_id, 256)
    state, keys, _ = gymnax_steps(env_id, start, action)
    own_keys = jax.vmap(lambda key: jax.random.split(key)[0])(keys)  # gymnax keeps the other half for its reset
    shown = jax.jit(jax.vmap(env.step))(own_keys, state, action)[1]
    _, _, reward, terminated, _, extra = jax.vmap(env.template.step, in_axes=(0, 0, 0, None))(
        keys, state.physics, action if action.ndim == 1 else action[:, 0], env.params
    )
    np.testing.assert_array_equal(shown.terminated, terminated)
    np.testing.assert_allclose(shown.reward, reward, rtol=1e-6)
    # Two programs may round apart; Acrobot's velocities go up to 28, where one float32 step is 2e-6.
    np.testing.assert_allclose(shown.obs, extra["final_observation"], rtol=1e-6, atol=2e-5)


@each(STATE_FIELDS)
def test_gymnax_agrees_with_gymnasium(env_id: str) -> None:
    start, action = random_states(env_id, 256), random_actions(env_id, 256)
    if env_id == "gymnax/CartPole-v1":  # Neither defines a step from a state that has ended already.
        start = start[(np.abs(start[:, 0]) <= 2.4) & (np.abs(start[:, 2]) <= 0.2)]
        action = action[: len(start)]
    _, _, shown = gymnax_steps(env_id, start, action)
    reference = gymnasium.make(env_id.removeprefix("gymnax/")).unwrapped
    terminations = 0
    for i in range(len(start)):
        reference.reset(seed=0)
        reference.state = start[i].astype(np.float64)  # type: ignore[attr-defined]
        obs, reward, terminated, _, _ = reference.step(action[i])
        assert bool(shown.terminated[i]) == terminated
        # What rounding leaves of one number is relative to those it is computed from: Acrobot's velocities go up to 28.
        np.testing.assert_allclose(shown.obs[i], obs, rtol=2e-4, atol=2e-5 * max(1.0, float(np.abs(obs).max())))
        np.testing.assert_allclose(shown.reward[i], float(reward), rtol=1e-4, atol=1e-5)
        terminations += terminated
    assert (terminations > 0) == (env_id != "gymnax/Pendulum-v1")
    space, reference_space = envs.make(env_id).action_space, reference.action_space
    if isinstance(space, Box):
        assert isinstance(reference_space, gymnasium.spaces.Box)
        assert (space.low, space.high) == (tuple(reference_space.low), tuple(reference_space.high))
    spec = gymnasium.spec(env_id.removeprefix("gymnax/"))
    assert envs.info(env_id).max_episode_steps == spec.max_episode_steps


def test_the_known_deviation_of_mountain_car_continuous() -> None:
    """If this fails, gymnax has changed: take the deviation out of the docstring of envs/gymnax.py."""
    start, action = np.array([[-1.2, -0.05]], np.float32), np.array([[-1.0]], np.float32)
    _, _, shown = gymnax_steps("gymnax/MountainCarContinuous-v0", start, action)
    reference = gymnasium.make("MountainCarContinuous-v0").unwrapped
    reference.reset(seed=0)
    reference.state = start[0].astype(np.float64)  # type: ignore[attr-defined]
    obs, *_ = reference.step(action[0])
    assert shown.obs[0, 0] == obs[0]  # both stand at the wall
    assert obs[1] == 0.0
    assert shown.obs[0, 1] < -0.04


@each(MINATAR)
def test_minatar_step_is_gymnax_own_without_its_reset(env_id: str) -> None:
    roll, env = rollout(env_id), envs.make(env_id)
    template, params = env.template, env.params  # type: ignore[attr-defined]
    own_step = jax.jit(jax.vmap(lambda key, state, action: template.step(key, state, action, params)))
    keys = jax.random.split(jax.random.key(0), (60, 4))
    # gymnax keeps the other half for its reset
    step_keys = jax.vmap(jax.vmap(lambda key: jax.random.split(key)[0]))(keys)
    actions = jnp.asarray(np.random.default_rng(0).integers(0, envs.info(env_id).num_actions, (60, 4), np.int32))
    state = roll.states[0]
    for step_key, key, action in zip(step_keys, keys, actions, strict=True):
        _, _, reward, terminated, _, extra = own_step(key, state.physics, action)
        state, shown = roll.step(roll.env, step_key, state, action)
        np.testing.assert_array_equal(shown.obs, np.asarray(extra["final_observation"]).reshape(4, -1))
        np.testing.assert_array_equal(shown.reward, reward)
        np.testing.assert_array_equal(shown.terminated, terminated)


def step_from(env_id: str, **physics: Any) -> tuple[EpisodeState, TimeStep]:
    """One step of all four copies from a start with these fields of gymnax' state in place of its own."""
    roll = rollout(env_id)
    start = roll.states[0]
    fields = {
        name: jnp.asarray(np.broadcast_to(np.int32(value), getattr(start.physics, name).shape))
        for name, value in physics.items()
    }
    state, shown = roll.step(roll.env, roll.keys, start._replace(physics=start.physics.replace(**fields)), roll.action)
    return state, shown


@each(["gymnax/Asterix-MinAtar"])
def test_the_known_deviation_of_asterix(env_id: str) -> None:
    """If this fails, gymnax has changed: take the deviation out of the docstring of envs/gymnax.py."""
    full = [[0, row, 1, 0, 1] for row in range(1, 9)]  # column, row, to the right, no treasure, there
    state, _ = step_from(env_id, entities=full, spawn_timer=0, move_timer=3)
    assert np.asarray(state.physics.entities)[:, :, 4].sum(axis=1).tolist() == [7] * 4


@each(["gymnax/Seaquest-MinAtar"])
def test_the_known_deviation_of_seaquest(env_id: str) -> None:
    """If this fails, gymnax has changed: take the deviation out of the docstring of envs/gymnax.py."""
    assert step_from(env_id, oxygen=0, sub_y=4)[1].terminated.tolist() == [True] * 4
    assert step_from(env_id, oxygen=1, sub_y=4)[1].terminated.tolist() == [False] * 4


# Playground: beside its own step, and the deviations from DeepMind's Control Suite that its docstring names.


@each(PLAYGROUND)
def test_playground_step_is_playgrounds_own(env_id: str) -> None:
    """Our state is a part of Playground's; nothing that a step needs may be missing."""
    roll, env = rollout(env_id), envs.make(env_id, max_episode_steps=LIMIT)
    template = env.template  # type: ignore[attr-defined]
    quick_to_compile = {"xla_backend_optimization_level": 0}
    own = jax.jit(template.reset, compiler_options=quick_to_compile)(roll.keys[FIRST])
    own_step = jax.jit(template.step, compiler_options=quick_to_compile)
    np.testing.assert_allclose(roll.obs[FIRST], own.obs, rtol=1e-4, atol=1e-5)
    for shown in roll.shown:
        own = own_step(own, roll.action[FIRST])
        np.testing.assert_allclose(shown.obs[FIRST], own.obs, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(shown.reward[FIRST], own.reward, rtol=1e-3, atol=1e-4)
        assert 0.0 <= own.reward <= 1.0


@each(["playground/CartpoleBalance"])
def test_playground_shows_old_angles_with_new_positions(env_id: str) -> None:
    """If this fails, Playground has changed: take the deviation out of the docstring of envs/playground.py."""
    roll = rollout(env_id)
    before, after = np.asarray(roll.obs)[FIRST], np.asarray(roll.shown[0].obs)[FIRST]
    np.testing.assert_allclose(after[1:3], before[1:3], rtol=1e-6)  # cosine and sine of the pole's angle
    assert abs(after[0] - before[0]) > 1e-5  # the cart's position


@each(["playground/ReacherEasy", "playground/ReacherHard"])
def test_playground_reset_shows_a_target_elsewhere(env_id: str) -> None:
    """If this fails, Playground has changed: take the deviation out of the docstring of envs/playground.py."""
    roll = rollout(env_id)

    def target(obs: Array) -> np.ndarray:
        """`[4, 2]` where the observation says that the target is, from two links of 0.12 m."""
        shoulder, wrist, *to_target = np.asarray(obs).T[:4]
        finger = [sum(f(angle) for angle in (shoulder, shoulder + wrist)) * 0.12 for f in (np.cos, np.sin)]
        return np.stack(finger, axis=1) + np.stack(to_target, axis=1)

    drawn = np.asarray(roll.states[0].physics)[:, -3:-1]
    assert np.abs(target(roll.obs) - drawn)[FIRST].max() > 0.02
    for shown, state in zip(roll.shown, roll.states[1:], strict=True):
        np.testing.assert_array_equal(np.asarray(state.physics)[:, -3:-1], drawn)
        np.testing.assert_allclose(target(shown.obs)[FIRST], drawn[FIRST], atol=0.02)


@each(["playground/WalkerStand"])
def test_playground_walker_observes_no_height(env_id: str) -> None:
    """If this fails, Playground has changed: take the deviation out of the docstring of envs/playground.py."""
    obs = np.asarray(rollout(env_id).obs)
    np.testing.assert_allclose(obs[:, 14], obs[:, 0], atol=1e-5)  # the cosine of the torso's angle, twice


# The registry.


def test_same_arguments_give_the_same_object() -> None:
    assert envs.make("gymnax/CartPole-v1") is envs.make("gymnax/CartPole-v1", max_episode_steps=500)
    assert envs.make("gymnax/CartPole-v1") is not envs.make("gymnax/CartPole-v1", max_episode_steps=499)


@pytest.mark.xdist_group("brax/reacher/spring")
def test_brax_alias_is_the_spring_backend() -> None:
    assert envs.make("brax/reacher") is envs.make("brax/reacher/spring")
    assert envs.info("brax/reacher") == envs.info("brax/reacher/spring")
    assert "brax/reacher" not in envs.registered()


def test_make_inside_a_traced_function_caches_no_tracer() -> None:
    jax.jit(lambda: envs.make("gymnax/Pendulum-v1", max_episode_steps=77).reset(jax.random.key(0)))()
    assert all(isinstance(leaf, Array) and not isinstance(leaf, jax.core.Tracer)
               for leaf in jax.tree.leaves(envs.make("gymnax/Pendulum-v1", max_episode_steps=77)))  # fmt: skip


def test_listing_imports_no_simulator_and_describes_every_environment_in_one_line() -> None:
    program = """
import sys, envs
for env_id in envs.registered():
    line = envs.info(env_id).summary
    assert line and "\\n" not in line, line
assert list(envs.registered()) == sorted(set(envs.registered())), envs.registered()
print(sorted({"brax", "gymnax", "mujoco", "mujoco_playground"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("env_id", "hint"),
    [
        ("gymnax/CartPol-v1", "did you mean 'gymnax/CartPole-v1'?"),
        ("brax/hoper", "did you mean 'brax/hopper'?"),
        ("zzz", "`rlsuite list` shows all environments"),
    ],
)
def test_unknown_environment_names_the_nearest_or_the_list(env_id: str, hint: str) -> None:
    for function in (envs.make, envs.info):
        with pytest.raises(envs.UnknownEnvironmentError) as error:
            function(env_id)
        assert str(error.value) == f"unknown environment {env_id!r}; {hint}"


@pytest.mark.parametrize("limit", [0, -5])
def test_time_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match=f"max_episode_steps must be at least 1, got {limit}"):
        envs.make("gymnax/CartPole-v1", max_episode_steps=limit)


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco_playground", None)  # what Python itself does to block an import
    with pytest.raises(envs.MissingPackageError, match=r"pip install 'rlsuite\[playground\]'") as error:
        envs.make("playground/CheetahRun", max_episode_steps=12345)
    assert "\n" not in str(error.value)
