"""Wrappers: what each does to an episode that can be computed by hand, and what an id makes of them."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

import envs
from envs import wrappers
from envs.core import Array, Box, Discrete, EpisodeState, Reference, Space, TimeStep
from rlsuite.pieces import rollout
from rlsuite.sweeping import job, sweep
from rlsuite.sweeping.entry import POLICIES

KEY = jax.random.key(0)


@struct.dataclass
class Counter:
    """Step t = 1, 2, ... pays t, shows (t, the action that arrived) and terminates at t = `ends`; `physics` is t."""

    ends: int = struct.field(pytree_node=False, default=100)
    max_episode_steps: int = struct.field(pytree_node=False, default=5)
    action_space: Space = struct.field(pytree_node=False, default=Box((-2.0,), (6.0,)))
    id: str = struct.field(pytree_node=False, default="test/Counter")
    obs_dim: int = struct.field(pytree_node=False, default=2)

    def reset(self, key: Array) -> tuple[EpisodeState, Array]:
        return EpisodeState(jnp.float32(0), jnp.int32(0)), jnp.zeros(2)

    def step(self, key: Array, state: EpisodeState, action: Array) -> tuple[EpisodeState, TimeStep]:
        t, steps = state.physics + 1, state.steps + 1
        obs = jnp.stack([t, action[0]])
        return EpisodeState(t, steps), TimeStep(obs, t, t >= self.ends, steps >= self.max_episode_steps)


@struct.dataclass
class Dice:
    """Every observation is drawn with the key as it comes, and is the whole state."""

    max_episode_steps: int = struct.field(pytree_node=False, default=5)
    action_space: Space = struct.field(pytree_node=False, default=Discrete(2))
    id: str = struct.field(pytree_node=False, default="test/Dice")
    obs_dim: int = struct.field(pytree_node=False, default=2)

    def reset(self, key: Array) -> tuple[EpisodeState, Array]:
        obs = jax.random.normal(key, (2,))
        return EpisodeState(obs, jnp.int32(0)), obs

    def step(self, key: Array, state: EpisodeState, action: Array) -> tuple[EpisodeState, TimeStep]:
        obs, steps = jax.random.normal(key, (2,)), state.steps + 1
        return EpisodeState(obs, steps), TimeStep(obs, jnp.float32(0), jnp.bool_(False), steps >= 5)


class Episode(NamedTuple):
    """What a learner saw, as lists; `obs` begins with the reset's."""

    obs: list[list[float]]
    rewards: list[float]
    terminated: list[bool]
    truncated: list[bool]


def play(env: Any, actions: list[float]) -> Episode:
    """One action after the other, whatever the environment says of its end."""
    state, obs = env.reset(KEY)
    episode = Episode([obs.tolist()], [], [], [])
    for t, action in enumerate(actions):
        state, shown = env.step(jax.random.key(t), state, jnp.array([action]))
        for values, value in zip(episode, shown, strict=True):
            values.append(value.tolist())
    return episode


def test_actions_are_clipped_into_the_box() -> None:
    env = wrappers.clip_actions(Counter())
    assert env.action_space == Box((-2.0,), (6.0,))
    episode = play(env, [-5.0, -2.0, 0.5, 6.0, 9.0])
    assert episode.obs == [[0, 0], [1, -2], [2, -2], [3, 0.5], [4, 6], [5, 6]]
    assert episode[1:] == play(Counter(), [0.0] * 5)[1:]


def test_actions_are_scaled_from_the_unit_box() -> None:
    env = wrappers.scale_actions(Counter())
    assert env.action_space == Box((-1.0,), (1.0,))
    episode = play(env, [-1.0, 0.0, 1.0, 0.5, -0.25])
    assert episode.obs == [[0, 0], [1, -2], [2, 2], [3, 6], [4, 4], [5, 1]]
    assert episode[1:] == play(Counter(), [0.0] * 5)[1:]


def test_each_dimension_is_scaled_to_its_own_bounds() -> None:
    env: Any = wrappers.scale_actions(Counter(action_space=Box((-0.3, 0.1), (0.7, 0.2))))
    assert env.action_space == Box((-1.0, -1.0), (1.0, 1.0))
    arrived: list[Array] = []

    class Inside(NamedTuple):
        def step(self, key: Array, state: Any, action: Array) -> None:
            arrived.append(action)

    for action in ([-1.0, 1.0], [1.0, -1.0], [0.0, 0.0]):
        env.replace(env=Inside()).step(KEY, None, jnp.array(action))
    # The ends are the bounds themselves, to the bit.
    np.testing.assert_array_equal(arrived[:2], np.float32([[-0.3, 0.2], [0.7, 0.1]]))
    np.testing.assert_allclose(arrived[2], [0.2, 0.15], rtol=1e-6)


def test_scaled_actions_that_are_clipped_never_leave_the_box() -> None:
    env = wrappers.clip_actions(wrappers.scale_actions(Counter()))
    assert play(env, [-3.0, 3.0]).obs == [[0, 0], [1, -2], [2, 6]]
    assert env.id == "test/Counter+scale_actions+clip_actions"


def test_observations_come_late_and_everything_else_at_once() -> None:
    actions = [0.0, 1.0, 2.0, 3.0, 4.0]
    for ends in (100, 4):
        plain = play(Counter(ends), actions)
        assert plain.obs == [[0, 0], [1, 0], [2, 1], [3, 2], [4, 3], [5, 4]]
        one, three = (play(wrappers.observation_delay(Counter(ends), delay), actions) for delay in (1, 3))
        assert one.obs == [plain.obs[0], *plain.obs[:5]]
        assert three.obs == [plain.obs[0]] * 4 + plain.obs[1:3]
        assert one[1:] == three[1:] == plain[1:]


def test_delays_add_up() -> None:
    twice = wrappers.observation_delay(wrappers.observation_delay(Counter(), 1), 2)
    actions = [0.0, 1.0, 2.0, 3.0, 4.0]
    assert play(twice, actions) == play(wrappers.observation_delay(Counter(), 3), actions)


def test_rewards_are_scaled() -> None:
    plain, scaled = play(Counter(4), [0.0] * 5), play(wrappers.reward_scale(Counter(4), 0.5), [0.0] * 5)
    assert plain.rewards == [1, 2, 3, 4, 5]
    assert scaled == plain._replace(rewards=[0.5, 1, 1.5, 2, 2.5])


@pytest.mark.parametrize(
    ("interval", "ends", "paid"),
    [
        (2, 100, [0, 3, 0, 7, 5]),  # the fifth step is the time limit
        (3, 100, [0, 0, 6, 0, 9]),
        (5, 100, [0, 0, 0, 0, 15]),
        (1000, 100, [0, 0, 0, 0, 15]),
        (1000, 4, [0, 0, 0, 10]),
        (3, 4, [0, 0, 6, 4]),
        (2, 4, [0, 3, 0, 7]),
    ],
)
def test_rewards_are_paid_at_intervals_and_at_the_end(interval: int, ends: int, paid: list[float]) -> None:
    actions = [0.0] * len(paid)
    plain, sparse = play(Counter(ends), actions), play(wrappers.sparse_reward(Counter(ends), interval), actions)
    assert sparse == plain._replace(rewards=paid)
    assert sum(paid) == sum(plain.rewards)


@pytest.mark.parametrize(("ends", "paid"), [(100, [0, 0, 6, 0, 9] * 2), (4, [0, 0, 6, 4] * 2)])
def test_an_automatic_reset_owes_and_delays_nothing(ends: int, paid: list[float]) -> None:
    env = wrappers.observation_delay(wrappers.sparse_reward(Counter(ends), 3), 2)
    carry = rollout.start(KEY, env, 2)
    _, seen, _ = rollout.collect(KEY, env, carry, lambda key, obs: (jnp.zeros((2, 1)), None), len(paid))
    np.testing.assert_array_equal(seen.reward, np.transpose([paid] * 2))
    length = len(paid) // 2
    shown = [0, 0, 0, 1, 2][:length]  # what the policy sees before each step
    np.testing.assert_array_equal(seen.obs[:, 0, 0], shown * 2)
    np.testing.assert_array_equal(seen.next_obs[:, 0, 0], [*shown[1:], length - 2] * 2)


def test_noise_is_gaussian_and_independent_of_all_that_the_simulator_draws() -> None:
    env = wrappers.observation_noise(Dice(), 0.5)

    def errors(key: Array) -> tuple[Array, Array]:
        """(noise, true observation), both `[1 + steps, obs_dim]`"""
        reset_key, *step_keys = jax.random.split(key, 6)
        state, obs = env.reset(reset_key)
        noise, true = [obs - state.physics], [state.physics]
        for step_key in step_keys:  # the last one is the last of the episode
            state, shown = env.step(step_key, state, jnp.int32(0))
            noise.append(shown.obs - state.physics)
            true.append(state.physics)
        return jnp.stack(noise), jnp.stack(true)

    count = 4000
    noise, true = jax.jit(jax.vmap(errors))(jax.random.split(KEY, count))
    # `[24, count]`: the noise of every step and entry, and what the simulator drew for it.
    together = np.concatenate([np.asarray(noise), np.asarray(true)], axis=1).reshape(count, -1).T
    noise_std = together[:12].std(axis=1)
    np.testing.assert_allclose(noise_std, 0.5, rtol=5 / np.sqrt(2 * count))
    np.testing.assert_allclose(together[:12].mean(axis=1), 0.0, atol=5 * 0.5 / np.sqrt(count))
    # Gaussian: the kurtosis is 3; that of a uniform distribution would be 1.8.
    np.testing.assert_allclose((together[:12] ** 4).mean() / (together[:12] ** 2).mean() ** 2, 3.0, atol=0.1)
    correlation = np.corrcoef(together) - np.eye(24)
    assert np.abs(correlation).max() < 5 / np.sqrt(count)


def test_noise_does_not_disturb_the_simulator() -> None:
    plain, noisy = play(Counter(4), [1.0] * 5), play(wrappers.observation_noise(Counter(4), 0.1), [1.0] * 5)
    assert noisy[1:] == plain[1:]
    off = np.array(noisy.obs) - np.array(plain.obs)
    assert np.all(off != 0.0) and np.all(np.abs(off) < 0.6)


def test_one_batch_holds_many_amounts_of_noise_and_scales() -> None:
    env: Any = wrappers.reward_scale(wrappers.observation_noise(Counter(), 1.0), 1.0)
    std, factor = jnp.array([0.0, 1.0, 10.0]), jnp.array([1.0, 2.0, 3.0])
    batched = env.replace(factor=factor, env=env.env.replace(std=std))

    def first_step(env: Any) -> TimeStep:
        state, _ = env.reset(KEY)
        shown: TimeStep = env.step(KEY, state, jnp.array([2.0]))[1]
        return shown

    shown = jax.vmap(first_step)(batched)
    np.testing.assert_array_equal(shown.reward, [1, 2, 3])
    off = np.asarray(shown.obs) - [1.0, 2.0]
    np.testing.assert_array_equal(off[0], 0.0)
    np.testing.assert_allclose(off[2], 10 * off[1], rtol=1e-4)


# What an id makes of them.

EVERY = [
    "gymnax/Pendulum-v1+clip_actions",
    "gymnax/Pendulum-v1+scale_actions",
    "gymnax/Pendulum-v1+observation_noise=0.1",
    "gymnax/Pendulum-v1+observation_delay=2",
    "gymnax/Pendulum-v1+reward_scale=0.01",
    "gymnax/Pendulum-v1+sparse_reward=10",
    "probe/truncation/discrete+sparse_reward=2+reward_scale=3+observation_delay=1+observation_noise=0.5",
    "probe/action/continuous+scale_actions+clip_actions+reward_scale=2",
]


def test_every_wrapper_is_among_these() -> None:
    assert {name for env_id in EVERY for name in re.findall(r"\+(\w+)", env_id)} == set(wrappers.WRAPPERS)


def types(tree: Any) -> Any:
    """All that jit looks at."""
    return jax.tree.structure(tree), [(x.shape, x.dtype, x.weak_type, x.committed) for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize("env_id", EVERY)
def test_a_wrapped_environment_keeps_the_contract(env_id: str) -> None:
    env = envs.make(env_id, max_episode_steps=3)
    assert (env.id, env.max_episode_steps) == (env_id, 3)
    assert env is envs.make(env_id, max_episode_steps=3)
    hash(jax.tree.structure(env))
    reset, step = jax.jit(lambda env, key: env.reset(key)), jax.jit(lambda env, *arguments: env.step(*arguments))
    state, obs = reset(env, KEY)
    expected = types(state)
    assert not any(weak or committed for _, _, weak, committed in types((env, state))[1])
    space = env.action_space
    action = jnp.int32(0) if isinstance(space, Discrete) else jnp.array(space.low)
    for t in range(3):
        assert (obs.shape, obs.dtype, obs.weak_type) == ((env.obs_dim,), jnp.float32, False)
        state, shown = step(env, jax.random.key(t), state, action)
        obs = shown.obs
        assert types(state) == expected
        assert [(x.shape, x.dtype, x.weak_type) for x in shown[1:]] == [
            ((), jnp.float32, False), ((), jnp.bool_, False), ((), jnp.bool_, False)
        ]  # fmt: skip
        assert bool(shown.truncated) == (t == 2)
    assert step._cache_size() == 1


@pytest.mark.parametrize("name", ["constant", "truncation"])  # the one terminates, the other does not
def test_wrappers_pass_the_end_of_an_episode_through(name: str) -> None:
    plain = envs.make(f"probe/{name}/continuous", max_episode_steps=2)
    suffix = "+clip_actions+scale_actions+observation_noise=1+observation_delay=1+reward_scale=2+sparse_reward=9"
    wrapped = envs.make(f"probe/{name}/continuous{suffix}", max_episode_steps=2)
    ends = [play(env, [0.0, 0.0])[2:] for env in (plain, wrapped)]
    assert ends[0] == ends[1] == ([name == "constant"] * 2, [False, True])


@pytest.mark.parametrize(
    ("typed", "canonical"),
    [
        ("gymnax/Pendulum-v1+observation_noise=0.10", "gymnax/Pendulum-v1+observation_noise=0.1"),
        ("gymnax/Pendulum-v1+observation_noise=1e-1", "gymnax/Pendulum-v1+observation_noise=0.1"),
        ("gymnax/Pendulum-v1+reward_scale=2.0", "gymnax/Pendulum-v1+reward_scale=2"),
        ("gymnax/Pendulum-v1+reward_scale=.00001", "gymnax/Pendulum-v1+reward_scale=1e-05"),
        ("gymnax/Pendulum-v1+reward_scale=1e20", "gymnax/Pendulum-v1+reward_scale=1e20"),
        ("gymnax/Pendulum-v1+observation_delay=+2", None),
        ("gymnax/Pendulum-v1+observation_delay=02", "gymnax/Pendulum-v1+observation_delay=2"),
        ("brax/hopper+reward_scale=2", "brax/hopper/spring+reward_scale=2"),
        (
            "gymnax/Pendulum-v1+reward_scale=2+clip_actions+sparse_reward=5",
            "gymnax/Pendulum-v1+reward_scale=2+clip_actions+sparse_reward=5",
        ),
    ],
)
def test_an_id_is_normalised(typed: str, canonical: str | None) -> None:
    if canonical is None:  # A plus sign begins a wrapper.
        with pytest.raises(envs.WrapperError):
            envs.make(typed)
        return
    env = envs.make(typed)
    assert env.id == canonical
    assert env is envs.make(canonical)


def test_wrappers_are_applied_in_the_order_of_the_id() -> None:
    env: Any = envs.make("gymnax/Pendulum-v1+reward_scale=2+observation_delay=3")
    assert isinstance(env, wrappers.ObservationDelay)
    assert isinstance(env.env, wrappers.RewardScale)
    assert (float(env.env.factor), env.delay) == (2.0, 3)
    # What is inside is the same object as the plain task, so that no simulator is loaded twice.
    assert env.env.env is envs.make("gymnax/Pendulum-v1")


def test_make_inside_a_traced_function_keeps_no_tracer() -> None:
    env_id = "gymnax/Pendulum-v1+observation_noise=0.3+reward_scale=0.3"
    jax.jit(lambda: envs.make(env_id, max_episode_steps=78).reset(KEY))()
    leaves = jax.tree.leaves(envs.make(env_id, max_episode_steps=78))
    assert not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def test_reference_returns_are_kept_where_they_still_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    task = envs.info("gymnax/Pendulum-v1")._replace(reference=Reference(-1200.0, -150.0, "here", "there"))
    monkeypatch.setitem(envs.gymnax.TASKS, "gymnax/Pendulum-v1", task)
    for suffix in ("", "+clip_actions", "+scale_actions+clip_actions"):
        assert envs.info(f"gymnax/Pendulum-v1{suffix}") == task
    without = task._replace(reference=None)
    for suffix in ("observation_noise=0.1", "observation_delay=2", "reward_scale=2", "sparse_reward=2"):
        assert envs.info(f"gymnax/Pendulum-v1+clip_actions+{suffix}") == without


PENDULUM = "'gymnax/Pendulum-v1'"
NAMES = ", ".join(wrappers.WRAPPERS)
ABOVE_ZERO = "needs a number above 0, such as 0.1"
LONG = f"+reward_scale=0.{'1' * 16}+observation_noise=0.{'1' * 16}+clip_actions+scale_actions+observation_delay=1"
LONG += "+sparse_reward=10"

ERRORS = {
    "+observation_nois=0.1": f"unknown wrapper 'observation_nois' for {PENDULUM}; did you mean 'observation_noise'?",
    "+max_steps=9": f"unknown wrapper 'max_steps' for {PENDULUM}; there are: {NAMES}",
    "+": f"unknown wrapper '' for {PENDULUM}; there are: {NAMES}",
    "+clip_actions=2": "wrapper 'clip_actions' takes no value, got '2'; write '+clip_actions'",
    "+clip_actions=": "wrapper 'clip_actions' takes no value, got ''; write '+clip_actions'",
    "+observation_noise": (
        "wrapper 'observation_noise' needs a value; write '+observation_noise=STD' with a number above 0, such as 0.1"
    ),
    "+observation_noise=": f"wrapper observation_noise='' {ABOVE_ZERO}",
    "+observation_noise=much": f"wrapper observation_noise='much' {ABOVE_ZERO}",
    "+observation_noise=-0.1": f"wrapper observation_noise='-0.1' {ABOVE_ZERO}",
    "+observation_noise=0": f"wrapper observation_noise='0' {ABOVE_ZERO}",
    "+observation_noise=nan": f"wrapper observation_noise='nan' {ABOVE_ZERO}",
    "+observation_noise=1=2": f"wrapper observation_noise='1=2' {ABOVE_ZERO}",
    "+reward_scale=inf": f"wrapper reward_scale='inf' {ABOVE_ZERO}",
    "+reward_scale=1e39": f"wrapper reward_scale='1e39' {ABOVE_ZERO}",  # infinite in float32
    "+reward_scale=1e-50": f"wrapper reward_scale='1e-50' {ABOVE_ZERO}",  # 0 in float32
    "+observation_delay=0": "wrapper observation_delay='0' needs a whole number of at least 1, such as 2",
    "+observation_delay=1.5": "wrapper observation_delay='1.5' needs a whole number of at least 1, such as 2",
    "+observation_delay=200": (
        f"wrapper observation_delay=200 must be below the time limit of {PENDULUM}, which is 200 steps; "
        "choose a smaller delay"
    ),
    "+sparse_reward=1": "wrapper sparse_reward='1' needs a whole number of at least 2, such as 10",
    f"+sparse_reward={2**31}": (f"wrapper sparse_reward='{2**31}' needs a whole number of at least 2, such as 10"),
    "+reward_scale=2+clip_actions+reward_scale=3": (
        f"wrapper 'reward_scale' is there twice for {PENDULUM}; leave one out"
    ),
    LONG: (
        f"environment 'gymnax/Pendulum-v1{LONG}' has 151 characters, and file names have room for 150; "
        "use fewer wrappers or shorter numbers"
    ),
}


@pytest.mark.parametrize("suffix", ERRORS)
def test_what_makes_no_sense_is_refused(suffix: str) -> None:
    with pytest.raises(envs.WrapperError) as error:
        envs.make(f"gymnax/Pendulum-v1{suffix}")
    assert str(error.value) == ERRORS[suffix]


@pytest.mark.parametrize("name", ["clip_actions", "scale_actions"])
def test_action_wrappers_are_for_boxes(name: str) -> None:
    with pytest.raises(envs.WrapperError) as error:
        envs.make(f"gymnax/CartPole-v1+{name}")
    assert str(error.value) == (
        f"wrapper {name!r} needs Box actions, but 'gymnax/CartPole-v1' has Discrete actions; leave it out"
    )


def test_actions_without_bounds_are_not_scaled() -> None:
    with pytest.raises(envs.WrapperError, match=r"'scale_actions' needs bounded actions, but those of 'test/Counter'"):
        wrappers.scale_actions(Counter(action_space=Box((-1.0,), (float("inf"),))))


def test_an_unknown_task_is_named_without_its_wrappers() -> None:
    with pytest.raises(envs.UnknownEnvironmentError, match=r"unknown environment 'gymnax/Pendulm-v1'; did you mean"):
        envs.make("gymnax/Pendulm-v1+reward_scale=2")


# What else the id reaches.


def shard_of(environment: str, label: str | None = None) -> job.Job:
    return job.resolve("name", sweep.Cell("ppo", environment, 100, seeds=1, label=label))


def test_a_shard_of_a_wrapped_environment_has_a_name_of_its_own() -> None:
    shard = shard_of("probe/constant/discrete+reward_scale=2.00+observation_noise=1e-2")
    assert shard.environment == "probe/constant/discrete+reward_scale=2+observation_noise=0.01"
    name = r"ppo__probe-constant-discrete\+reward_scale=2\+observation_noise=0\.01__[0-9a-f]{8}"
    assert re.fullmatch(name, shard.name)
    assert shard.describe()["environment"] == shard.environment
    others = ["probe/constant/discrete", "probe/constant/discrete+reward_scale=2"]
    assert len({shard.name.split("__")[-1], *(shard_of(other).name.split("__")[-1] for other in others)}) == 3


def test_the_longest_id_fits_into_a_file_name() -> None:
    name = job.name_of("x" * 80, "x" * wrappers.MAX_ID_LENGTH, [])
    assert len(name) == job.MAX_NAME
    # The longest name in the store, see rlsuite/sweeping/entry.py.
    assert len(f"{name}{POLICIES}") == 255
