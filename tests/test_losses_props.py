"""PROPS, ROS and PPO-Buffer against an independent reference in NumPy and float64: losses, gradients, whole updates.

The reference is written from the specification of the two papers (arXiv 2311.08290, 2111.14552). Whole updates are
traced in the order of the paper, in which the behaviour update ends a round; `props.py` begins the next one with it.
PPO's loss and gradient come from `test_losses_ppo.py`.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_nets import (
    HIGH,
    LOW,
    START,
    TIME_LIMIT,
    Adam,
    FloatArray,
    Toy,
    Tree,
    assert_close,
    assert_moved,
    cast,
    clipped,
    exact,
    normal,
    perceptron,
    toy_transition,
)
from numpy_on_policy import (
    BATCH,
    HIDDEN,
    OBS_DIM,
    SEEDS,
    SPACES,
    Moments,
    every_space,
    merged,
    policy_at,
    scaled,
    standardized,
    state_value,
)
from reference import computing, grad, precisions
from test_losses_ppo import gradient as ppo_gradient
from test_losses_ppo import random_params, reference

from envs.core import Box, Discrete
from rlsuite.algorithms.on_policy import buffered_ppo, ppo, ppo_buffer, props, ros
from rlsuite.core import Algorithm, Clock, Task, Transition
from rlsuite.errors import UserError
from rlsuite.pieces import rollout_buffer
from rlsuite.pieces.actor_critic import Networks, actor_of
from rlsuite.pieces.minibatches import shuffle
from rlsuite.pieces.on_policy import Batch

HYPERS = props.Hypers(behavior_clip_epsilon=0.3, behavior_kl_coef=0.6)

# Its results are the same up to rounding.
QUICK_TO_COMPILE: Any = {"xla_backend_optimization_level": 0}

every_weight = pytest.mark.parametrize("weighted", [False, True])


class Rows(NamedTuple):
    """What a behaviour update sees, `[batch, ...]`."""

    obs: FloatArray
    action: Any
    dist: tuple[FloatArray, ...]
    """of the target policy"""
    log_prob: FloatArray
    weight: FloatArray | None


class Behavior(NamedTuple):
    loss: Any
    approx_kl: Any
    ratio: FloatArray


def behavior_reference(actor: Tree, rows: Rows, valid: Any, hypers: props.Hypers) -> Behavior:
    """Loss and divergence of PROPS over the valid rows."""
    epsilon, share = float(hypers.behavior_clip_epsilon), valid / np.sum(valid)
    now = policy_at(actor, rows.obs, rows.action)
    log_ratio = now.log_prob - rows.log_prob
    ratio = np.exp(log_ratio)
    weight = np.ones(len(ratio)) if rows.weight is None else rows.weight
    # There is nothing to gain where the probability is already low enough.
    loss = np.sum(share * weight * np.maximum(ratio, 1.0 - epsilon))
    if len(rows.dist) == 2:
        (mean, log_std), (target_mean, target_log_std) = now.dist, rows.dist
        spread = np.exp(2.0 * log_std) + (mean - target_mean) ** 2
        kl = target_log_std - log_std + spread / (2.0 * np.exp(2.0 * target_log_std)) - 0.5
        loss += float(hypers.behavior_kl_coef) * np.sum(share * np.mean(kl, axis=1))
    return Behavior(loss, np.sum(share * (ratio - 1.0 - log_ratio)), ratio)


def behavior_gradient(actor: Tree, rows: Rows, valid: Any, hypers: props.Hypers) -> Tree:
    return grad(lambda a: behavior_reference(a, rows, valid, hypers).loss, actor)


def log_likelihood(actor: Tree, rows: Rows, valid: Any) -> Any:
    """The mean of log pi over the valid rows."""
    return np.mean(policy_at(actor, rows.obs, rows.action).log_prob[valid])


def ros_reference(actor: Tree, rows: Rows, valid: Any, step_size: float) -> Tree:
    """Down the mean gradient of log pi over the valid rows."""
    gradient = grad(lambda a: log_likelihood(a, rows, valid), actor)
    return jax.tree.map(lambda theta, g: theta - step_size * g, actor, gradient)


def problem(seed: int, space: Discrete | Box, weighted: bool) -> tuple[Tree, Rows, Any]:
    """An actor, rows of a target policy a little away from it, and which of the rows count."""
    rng = np.random.default_rng(seed)
    actor = actor_of(random_params(rng, space))
    obs = normal(rng, BATCH, OBS_DIM)
    action: Any = rng.integers(space.n, size=BATCH) if isinstance(space, Discrete) else normal(rng, BATCH, space.dim)
    out = exact(perceptron(actor["policy"], obs, "tanh") + 0.3 * normal(rng, BATCH, space_dim(space)))
    dist = (out,)
    if isinstance(space, Box):
        dist = (out, exact(actor["log_std"] + 0.3 * normal(rng, BATCH, space.dim)))
    log_prob = exact(policy_at(actor, obs, action).log_prob + 0.4 * normal(rng, BATCH))
    weight = np.abs(normal(rng, BATCH)) if weighted else None
    return actor, Rows(obs, action, dist, log_prob, weight), rng.random(BATCH) < 0.7


def space_dim(space: Discrete | Box) -> int:
    return space.n if isinstance(space, Discrete) else space.dim


jax_loss = jax.jit(jax.value_and_grad(props.behavior_loss, has_aux=True), static_argnums=1)
jax_ros = jax.jit(ros.ros_actor, static_argnums=1)


def rows_of(past: props.Past) -> Batch:
    """The same rows as ROS is given them, which reads no more than observations and actions."""
    nothing = jnp.zeros(len(past.log_prob))
    return Batch(past.obs, past.action, past.dist, past.log_prob, nothing, nothing, nothing)


@functools.cache
def want_behavior(seed: int, space: str, weighted: bool) -> tuple[Behavior, Tree, Tree]:
    """The loss of PROPS and its gradient, and the step of ROS."""
    actor, rows, valid = problem(seed, SPACES[space], weighted)
    arguments = actor, rows, valid, HYPERS
    return behavior_reference(*arguments), behavior_gradient(*arguments), ros_reference(actor, rows, valid, 64.0)


@every_space
@every_weight
@precisions(in_float64=1e-11)
def test_losses_and_gradients(space: str, weighted: bool, dtype: Any, tolerance: float) -> None:
    networks = Networks(HIDDEN, SPACES[space])
    for seed in SEEDS:
        actor, rows, valid = problem(seed, SPACES[space], weighted)
        want, want_grads, want_step = want_behavior(seed, space, weighted)
        with computing(dtype):
            past = props.Past(*cast(tuple(rows), dtype))
            (loss, metrics), grads = jax_loss(cast(actor, dtype), networks, past, valid, cast(HYPERS, dtype))
            stepped, likelihood = jax_ros(cast(actor, dtype), networks, rows_of(past), valid, 64.0)
        assert loss.dtype == dtype
        assert_close(grads, want_grads, tolerance, dtype)
        assert float(loss) == float(metrics["loss"]) == pytest.approx(want.loss, rel=tolerance)
        # A mean of differences between numbers of order 1.
        assert float(metrics["approx_kl"]) == pytest.approx(want.approx_kl, rel=tolerance, abs=tolerance)
        assert_moved(stepped, want_step, actor, tolerance)
        assert float(likelihood) == pytest.approx(log_likelihood(actor, rows, valid), rel=tolerance)


@every_space
def test_the_samples_reach_every_branch(space: str) -> None:
    for seed in SEEDS:
        actor, rows, valid = problem(seed, SPACES[space], True)
        ratio = behavior_reference(actor, rows, valid, HYPERS).ratio
        for case in (ratio < 0.7, (ratio > 0.7) & (ratio < 1.3), ratio > 1.3):
            assert np.sum(case & valid) >= 2
        assert np.sum(~valid) >= 2


@every_space
def test_ros_and_props_make_what_is_there_less_likely(space: str) -> None:
    """The sign, without any reference: a small step of either lowers the likelihood of the data."""
    actor, rows, valid = problem(3, SPACES[space], False)
    networks = Networks(HIDDEN, SPACES[space])
    # From the target policy itself, where the ratio is 1 and the divergence 0.
    now = policy_at(actor, rows.obs, rows.action)
    rows = rows._replace(dist=now.dist, log_prob=now.log_prob)
    past = props.Past(*cast(tuple(rows), jnp.float32))
    before = log_likelihood(actor, rows, valid)
    stepped, _ = jax_ros(cast(actor, jnp.float32), networks, rows_of(past), valid, 1e-3)
    assert log_likelihood(cast(stepped, np.float32), rows, valid) < before - 1e-5
    _, grads = jax_loss(cast(actor, jnp.float32), networks, past, valid, HYPERS)
    stepped = jax.tree.map(lambda x, g: x - 1e-3 * np.asarray(g), actor, grads)
    assert log_likelihood(stepped, rows, valid) < before - 1e-5


def test_the_buffer_is_a_plain_ring() -> None:
    rng = np.random.default_rng(0)
    ring: collections.deque[Any] = collections.deque([np.zeros((2, 3))] * 6, maxlen=6)
    buffer = {"obs": jnp.zeros((6, 2, 3)), "end": jnp.zeros((6, 2), bool)}
    ends: collections.deque[Any] = collections.deque([np.zeros(2, bool)] * 6, maxlen=6)
    for _ in range(5):
        new, new_ends = normal(rng, 2, 2, 3), rng.random((2, 2)) < 0.5
        ring.extend(new)
        ends.extend(new_ends)
        buffer = rollout_buffer.store(buffer, {"obs": jnp.asarray(new, jnp.float32), "end": jnp.asarray(new_ends)})  # type: ignore[arg-type]
        np.testing.assert_array_equal(buffer["obs"], np.stack(ring))
        np.testing.assert_array_equal(buffer["end"], np.stack(ends))


# --- Whole updates ----------------------------------------------------------------------------------------------------

UPDATES = 3
CONFIG = props.Config(
    num_envs=2,
    num_steps=4,
    behavior_steps=2,
    buffer_batches=2,
    num_epochs=2,
    num_minibatches=4,
    behavior_epochs=2,
    behavior_minibatches=2,
    hidden_sizes=HIDDEN,
)
KEPT = 8
"""steps of each environment in the buffer"""
UPDATE_HYPERS = props.Hypers(
    learning_rate=0.01,
    discount=0.9,
    gae_lambda=0.8,
    entropy_coef=0.03,
    value_coef=0.7,
    max_grad_norm=0.4,
    target_kl=0.02,
    behavior_learning_rate=0.02,
    behavior_clip_epsilon=0.05,
    behavior_target_kl=0.012,
    behavior_kl_coef=0.4,
)


class Case(NamedTuple):
    """A method on the buffer, and what its reference is told."""

    algorithm: Algorithm
    hypers: Any
    behavior_steps: int
    """steps of each environment in one round"""
    behavior: str
    """whose policy collects: of props, of ros, or the target"""
    stale_reference: bool = False
    advantage_weighting: bool = False

    @property
    def rounds(self) -> int:
        """In one update."""
        return CONFIG.num_steps // self.behavior_steps


def fields_of(kind: Any, given: Any) -> dict[str, Any]:
    """Those of the given settings that the other kind has, too."""
    names = kind._fields if hasattr(kind, "_fields") else [field.name for field in dataclasses.fields(kind)]
    values = given._asdict() if hasattr(given, "_asdict") else dataclasses.asdict(given)
    return {name: values[name] for name in names if name in values}


FLAGS = {"stale_reference": True, "advantage_weighting": True}
CASES = {
    "props": Case(props.make(CONFIG), UPDATE_HYPERS, 2, "props"),
    "stale and weighted": Case(props.make(dataclasses.replace(CONFIG, **FLAGS)), UPDATE_HYPERS, 2, "props", **FLAGS),
    "ros": Case(
        ros.make(ros.Config(**fields_of(ros.Config, CONFIG))),
        ros.Hypers(**fields_of(ros.Hypers, UPDATE_HYPERS), ros_step_size=0.3),
        2,
        "ros",
    ),
    "target": Case(
        ppo_buffer.make(ppo_buffer.Config(**fields_of(ppo_buffer.Config, CONFIG))),
        ppo_buffer.Hypers(**fields_of(ppo_buffer.Hypers, UPDATE_HYPERS)),
        4,
        "target",
    ),
}


class Numbers(NamedTuple):
    """A state's numbers."""

    params: Tree
    obs_stats: Moments
    return_stats: Moments
    discounted_return: FloatArray
    buffer: Transition


class Trace(NamedTuple):
    numbers: Numbers
    ppo_steps: list[int]
    """minibatch steps taken in every PPO update"""
    behavior_steps: list[int]
    """the same in every behaviour update"""


def descended(
    key: jax.Array,
    gradient: Callable[[Tree, Any], tuple[Tree, float]],
    params: Tree,
    adam: Adam,
    learning_rate: float,
    size: int,
    count: int,
    max_kl: float,
    epochs: int,
    minibatches: int,
) -> tuple[Tree, int]:
    """Epochs over shuffled rows until the divergence is too large: parameters, and steps taken."""
    steps, each = 0, size // minibatches
    for epoch_key in jax.random.split(key, epochs):
        order = np.asarray(shuffle(epoch_key, size, count))[:count] - (size - count)
        for first in range(0, count, each):
            grads, kl = gradient(params, order[first : first + each])
            if kl > max_kl:
                return params, steps
            params = adam.step(params, clipped(grads, UPDATE_HYPERS.max_grad_norm)[0], learning_rate)
            steps += 1
    return params, steps


def traced(seed: int, params: Tree, case: Case) -> Trace:
    """All updates in the order of the paper: collect, judge, perhaps PPO, then a new behaviour policy.

    Random numbers come from JAX by the learner's own key schedule: they are the only thing that the two share.
    """
    config, hypers, rounds = CONFIG, UPDATE_HYPERS, case.rounds
    round_keys, learn_keys = [], []
    for update in range(UPDATES):
        rounds_key, learn_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), update))
        round_keys += [jax.random.split(key) for key in jax.random.split(rounds_key, rounds)]
        learn_keys.append(learn_key)

    # The first weight is next to nothing, but no more than float32 holds of it: ROS makes much of small differences.
    obs_stats = (np.zeros(3), np.ones(3), float(exact(1e-4)))
    return_stats = (np.zeros(()), np.ones(()), float(exact(1e-4)))
    obs, steps, running = np.tile(START, (config.num_envs, 1)), np.zeros(config.num_envs), np.zeros(config.num_envs)
    past: list[Transition] = []
    behavior = actor_of(params)
    ppo_adam, behavior_adam = Adam(params, eps=1e-5), Adam(behavior, eps=1e-5)
    ppo_steps, behavior_steps = [], []

    def seen(obs: FloatArray) -> FloatArray:
        return standardized(obs, obs_stats)

    def judged() -> Batch:
        """The buffer as the target policy sees it, rows of whole steps from the oldest to the newest."""
        net, recent = params["params"], past[-KEPT:]
        values = [state_value(net, seen(t.obs)) for t in recent]
        advantage = np.zeros((len(recent), config.num_envs))
        for i in reversed(range(len(recent))):
            t = recent[i]
            # Time running out leaves the future its value; only the sum over later steps ends.
            future = np.where(t.terminated, 0.0, state_value(net, seen(t.next_obs)))
            later = advantage[i + 1] if i + 1 < len(recent) else np.zeros(config.num_envs)
            later = np.where(t.terminated | t.truncated, 0.0, later)
            delta = scaled(t.reward, return_stats) + hypers.discount * future - values[i]
            advantage[i] = delta + hypers.discount * hypers.gae_lambda * later
        flat, value = advantage.reshape(-1), np.concatenate(values)
        obs, action = np.concatenate([seen(t.obs) for t in recent]), np.concatenate([t.action for t in recent])
        now = policy_at(net, obs, action)
        return Batch(obs, action, now.dist, now.log_prob, value, flat, flat + value)

    for index, (_, collect_key) in enumerate(round_keys):
        update, round_of_update = divmod(index, rounds)
        # Collect with the behaviour policy.
        visited, sums = [], []
        for step_key in jax.random.split(collect_key, case.behavior_steps):
            policy_key, _ = jax.random.split(step_key)
            noise = np.asarray(jax.random.normal(policy_key, (config.num_envs, 3)))
            action = perceptron(behavior["policy"], seen(obs), "tanh") + np.exp(behavior["log_std"]) * noise
            next_obs, reward, terminated = toy_transition(obs, np.clip(action, LOW, HIGH))
            steps = steps + 1
            truncated = steps >= TIME_LIMIT
            running = hypers.discount * running + reward
            past.append(Transition(obs, action, reward, next_obs, terminated, truncated))  # type: ignore[arg-type]
            visited.append(obs)
            sums.append(running)
            done = terminated | truncated
            running = np.where(done, 0.0, running)
            obs, steps = np.where(done[:, None], START, next_obs), np.where(done, 0, steps)
        obs_stats = merged(obs_stats, np.concatenate(visited))
        return_stats = merged(return_stats, np.concatenate(sums))

        now = judged()
        if round_of_update == rounds - 1:

            def ppo_step(params: Tree, chosen: Any, now: Batch = now) -> tuple[Tree, float]:
                arguments = params, jax.tree.map(lambda x: x[chosen], now), ppo.Config(), hypers
                return ppo_gradient(*arguments), reference(*arguments)[1]["approx_kl"]  # type: ignore[arg-type]

            params, taken = descended(
                learn_keys[update],
                ppo_step,
                params,
                ppo_adam,
                hypers.learning_rate * (1.0 - update / UPDATES),
                KEPT * config.num_envs,
                len(now.obs),
                hypers.target_kl,
                config.num_epochs,
                config.num_minibatches,
            )
            ppo_steps.append(taken)
        if index + 1 == len(round_keys):
            break

        # A new behaviour policy, for the next round. What that will push out of the buffer does not count.
        behavior = actor_of(params)
        if case.behavior == "target":
            continue
        if not case.stale_reference:
            now = judged()
        oldest = case.behavior_steps * config.num_envs if len(past) >= KEPT else 0
        now = jax.tree.map(lambda x, oldest=oldest: x[oldest:], now)
        weight = np.abs(now.advantage) / (np.std(now.advantage) + 1e-8) if case.advantage_weighting else None
        rows = Rows(now.obs, now.action, now.dist, now.log_prob, weight)
        everywhere = np.ones(len(rows.obs), bool)
        if case.behavior == "ros":
            behavior = ros_reference(behavior, rows, everywhere, case.hypers.ros_step_size)
            continue

        def behavior_step(actor: Tree, chosen: Any, rows: Rows = rows) -> tuple[Tree, float]:
            arguments = actor, jax.tree.map(lambda x: x[chosen], rows), np.ones(len(chosen), bool), hypers
            return behavior_gradient(*arguments), behavior_reference(*arguments).approx_kl

        behavior, taken = descended(
            round_keys[index + 1][0],
            behavior_step,
            behavior,
            behavior_adam,
            hypers.behavior_learning_rate,
            (KEPT - case.behavior_steps) * config.num_envs,
            len(rows.obs),
            hypers.behavior_target_kl,
            config.behavior_epochs,
            config.behavior_minibatches,
        )
        behavior_steps.append(taken)

    buffer = Transition(*(np.stack(column) for column in zip(*past[-KEPT:], strict=True)))  # type: ignore[arg-type]
    return Trace(Numbers(params, obs_stats, return_stats, running, buffer), ppo_steps, behavior_steps)


def in_float64(state: buffered_ppo.State, params: Tree, case: Case) -> buffered_ppo.State:
    """A fresh state with these parameters. Only inside `jax.enable_x64(True)`."""
    state, params = cast(state, jnp.float64), cast(params, jnp.float64)
    if case.stale_reference:
        state = state._replace(carry=state.carry._replace(stale_params=params))
    return state._replace(learner=state.learner._replace(params=params))


@pytest.mark.parametrize(
    "name",
    [name if name == "props" else pytest.param(name, marks=pytest.mark.slow) for name in CASES],
)
def test_whole_updates_in_the_order_of_the_paper(name: str) -> None:
    case, config = CASES[name], CONFIG
    algorithm, task = case.algorithm, Task(Toy())
    stops: list[bool] = []
    ends: list[tuple[Any, Any]] = []
    with computing(np.float64):
        update = jax.jit(algorithm.update, compiler_options=QUICK_TO_COMPILE)
        start = jax.jit(algorithm.init)(jax.random.key(0), task, case.hypers)
        for seed in range(3):
            params = random_params(np.random.default_rng(seed), SPACES["continuous"])
            state, shares = in_float64(start, params, case), []
            for i in range(UPDATES):
                key = jax.random.fold_in(jax.random.key(seed), i)
                clock = Clock(jnp.int32(i), jnp.asarray(i / UPDATES))
                state, metrics = update(key, task, state, cast(case.hypers, jnp.float64), clock)
                shares.append((float(metrics["steps_taken"]), float(metrics.get("behavior_steps_taken", math.nan))))
            want = traced(seed, params, case)

            assert_moved(state.learner.params, want.numbers.params, params, 1e-7)
            memory = state.memory
            ends.append((want.numbers.buffer.terminated, want.numbers.buffer.truncated))
            got = (tuple(memory.obs_stats), tuple(memory.return_stats), memory.discounted_return)
            assert_close(got, tuple(want.numbers[1:4]), 1e-8)
            for got_column, column in zip(memory.buffer, want.numbers.buffer, strict=True):
                np.testing.assert_allclose(got_column, column, rtol=1e-7, atol=1e-9)
            # At first half of the buffer is there, and before the first update of the behaviour policy none.
            possible = [config.num_epochs * n for n in (2, 4, 4)]
            assert [share for share, _ in shares] == pytest.approx(
                [taken / of for taken, of in zip(want.ppo_steps, possible, strict=True)]
            )
            stops += [taken < of for taken, of in zip(want.ppo_steps, possible, strict=True)]
            if case.behavior == "props":
                round_shares = [0.0] + [
                    taken / (config.behavior_epochs * n)
                    for taken, n in zip(want.behavior_steps, (1, 2, 2, 2, 2), strict=True)
                ]
                assert [share for _, share in shares] == pytest.approx(
                    np.reshape(round_shares, (-1, case.rounds)).mean(axis=1)
                )
                stops += [0.0 < share < 1.0 for share in round_shares[1:]]
    assert any(stops) and not all(stops)
    terminated, truncated = np.array(ends).swapaxes(0, 1)
    for ended in (terminated & ~truncated, truncated & ~terminated, ~terminated & ~truncated):
        assert np.any(ended[:, :-1]), "no such end before the last step"


def test_ppo_buffer_is_ros_without_a_step() -> None:
    """To the bit, where ROS has one round an update."""
    shared = fields_of(ppo_buffer.Config, CONFIG) | {"num_steps": 2, "buffer_batches": 2, "num_minibatches": 4}
    pair = [
        (ppo_buffer.make(ppo_buffer.Config(**shared)), ppo_buffer.Hypers(learning_rate=0.02, target_kl=0.5)),
        (
            ros.make(ros.Config(**shared, behavior_steps=2)),
            ros.Hypers(learning_rate=0.02, target_kl=0.5, ros_step_size=0.0),
        ),
    ]
    ends = []
    for algorithm, hypers in pair:
        task, update = Task(Toy()), jax.jit(algorithm.update, compiler_options=QUICK_TO_COMPILE)
        state = jax.jit(algorithm.init)(jax.random.key(0), task, hypers)
        for i in range(2):
            state, _ = update(jax.random.key(i), task, state, hypers, Clock(jnp.int32(i), jnp.float32(0.5 * i)))
        ends.append((state.learner, state.memory, state.envs))
    chex.assert_trees_all_equal(*ends)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"behavior_steps": 3}, "behavior_steps=3 does not divide num_steps=4"),
        ({"num_minibatches": 5}, "num_minibatches=5 must be a multiple of buffer_batches=2"),
        ({"num_minibatches": 6}, "num_minibatches=6 .* divide the whole buffer, .* = 16"),
        ({"num_minibatches": 16}, "num_minibatches=16 leaves minibatches of one sample"),
        ({"behavior_minibatches": 5}, "behavior_minibatches=5 does not divide the 12 transitions"),
        ({"buffer_batches": 1, "behavior_steps": 4}, "behavior_steps=4 replaces the whole buffer"),
        ({"sampling_error_epochs": -1}, "sampling_error_epochs=-1 must be at least 0"),
        ({"sampling_error_interval": 0}, "sampling_error_interval=0 must be at least 1"),
        ({"buffer_batches": 0}, "buffer_batches=0 must be at least 1"),
    ],
)
def test_a_config_that_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    changed = dataclasses.replace(CONFIG, **changes)
    with pytest.raises(UserError, match=message):
        props.make(changed)
    # What ROS shares with it is refused alike.
    if "behavior_minibatches" not in changes:
        with pytest.raises(UserError, match=message):
            ros.make(ros.Config(**fields_of(ros.Config, changed)))


@pytest.mark.parametrize("module", [props, ppo_buffer])
def test_every_preset_can_be_made(module: Any) -> None:
    assert len(module.PRESETS) == 6
    for preset in module.PRESETS.values():
        assert module.make(preset.config).steps_per_update == preset.config.num_steps
