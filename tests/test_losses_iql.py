"""IQL against an independent reference in NumPy and float64: losses, their whole gradients, whole updates.

The reference is written from the paper (Kostrikov et al. 2021, arXiv 2110.06169) and the details listed in `iql.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_critics import (
    ACTION_DIM,
    BATCH,
    OBS_DIM,
    assert_different,
    bellman,
    endings,
    polyak,
    q_values,
    random_batch,
    smallest,
    squared_errors,
    state_value,
)
from numpy_nets import Adam, FloatArray, Tree, assert_close, assert_moved, cast, exact, mlp, perceptron
from numpy_offline import (
    HIDDEN,
    SOMEWHERE,
    assert_evaluates,
    compiled,
    dataset,
    drawn,
    records,
    reward_scale,
    rows_of,
    task,
    twins,
)
from reference import assert_reached, computing, precisions, value_and_grad
from trained_states import params_of, with_adam

from envs import datasets
from envs.core import Box
from envs.datasets import Batch
from rlsuite.algorithms.offline import iql
from rlsuite.core import AlgorithmSpec, Clock, Task
from rlsuite.errors import UserError
from rlsuite.pieces import offline, offline_td3
from rlsuite.pieces.critics import min_q
from rlsuite.pieces.networks import MLP

HYPERS = iql.Hypers(
    actor_learning_rate=0.003,
    critic_learning_rate=0.005,
    value_learning_rate=0.004,
    discount=0.93,
    tau=0.1,
    expectile=0.8,
    beta=2.0,
    max_weight=6.0,
    reward_shift=-0.4,
)
SEEDS = range(5)


class Nets(NamedTuple):
    """What gradient steps change."""

    actor: iql.Actor
    critics: Tree
    """both critics, stacked on a leading axis"""
    target_critics: Tree
    value: Tree


def advantages(nets: Nets, batch: Batch) -> FloatArray:
    """The smaller target critic at the dataset's action, less V: `[batch]`."""
    return smallest(nets.target_critics, batch.obs, batch.action) - state_value(nets.value, batch.obs)


def value_reference(value: Tree, q: FloatArray, batch: Batch, expectile: float) -> tuple[float, Tree]:
    """V's loss for constant q `[batch]`, and its gradient."""

    def loss(value: Tree) -> Any:
        u = q - state_value(value, batch.obs)
        return np.mean(np.where(u < 0.0, 1.0 - expectile, expectile) * u**2)

    return value_and_grad(loss, value)


def critic_reference(nets: Nets, batch: Batch, discount: float) -> tuple[float, Tree]:
    """The critics' loss, averaged over the two, and its gradient."""
    target = bellman(batch, discount, state_value(nets.value, batch.next_obs))
    return value_and_grad(lambda critics: squared_errors(critics, batch, target) / 2.0, nets.critics)


def actor_reference(
    actor: iql.Actor, advantage: FloatArray, batch: Batch, hypers: iql.Hypers, deterministic: bool
) -> tuple[float, iql.Actor]:
    """The policy's loss for constant advantages `[batch]`, and its gradient."""
    weight = np.minimum(np.exp(hypers.beta * advantage), hypers.max_weight)

    def loss(actor: iql.Actor) -> Any:
        square = (np.tanh(perceptron(actor.net["params"], batch.obs, "relu")) - batch.action) ** 2
        if deterministic:
            return np.mean(weight * np.sum(square, axis=1))
        log_std = np.minimum(np.maximum(actor.log_std, -20.0), 2.0)
        surprise = 0.5 * square / np.exp(2.0 * log_std) + log_std + 0.5 * math.log(2.0 * math.pi)
        return np.mean(weight * np.sum(surprise, axis=1))

    return value_and_grad(loss, actor)


def random_nets(rng: np.random.Generator) -> Nets:
    # The last dimension's log standard deviation is beyond its bound.
    actor = iql.Actor({"params": mlp(rng, OBS_DIM, *HIDDEN, ACTION_DIM)}, exact(np.array([-0.4, 0.3, 2.5])))
    value = mlp(rng, OBS_DIM, *HIDDEN, 1)
    value["Dense_2"]["bias"] += 0.5  # near the critics, so that advantages of both signs occur
    return Nets(actor, twins(rng), twins(rng), {"params": value})


def problem(seed: int) -> tuple[Nets, Batch]:
    rng = np.random.default_rng(seed)
    return random_nets(rng), random_batch(rng)


NETWORKS = offline_td3.Networks(MLP((*HIDDEN, ACTION_DIM)), MLP((*HIDDEN, 1)))


@jax.jit
def jax_losses(nets: Nets, batch: datasets.Batch, hypers: iql.Hypers) -> Any:
    """Every loss and its gradient, with the gradient by what should be constant beside it, and the advantage."""
    q = min_q(NETWORKS.critic, nets.target_critics, batch.obs, batch.action)
    (value_loss, advantage), value_grads = jax.value_and_grad(iql.value_loss, (0, 2), has_aux=True)(
        nets.value, NETWORKS, q, batch, hypers
    )
    next_value = iql.state_value(NETWORKS, nets.value, batch.next_obs)
    (critic_loss, metrics), critic_grads = jax.value_and_grad(iql.critic_loss, (0, 2), has_aux=True)(
        nets.critics, NETWORKS, next_value, batch, hypers
    )
    actor_losses = [
        jax.value_and_grad(iql.actor_loss, (0, 2))(nets.actor, NETWORKS, advantage, batch, hypers, deterministic)
        for deterministic in (False, True)
    ]
    return advantage, (value_loss, value_grads), (critic_loss, critic_grads), actor_losses, metrics


@functools.cache
def want_losses(seed: int) -> Any:
    nets, batch = problem(seed)
    advantage, nothing = advantages(nets, batch), np.zeros(BATCH)
    q = advantage + state_value(nets.value, batch.obs)

    def with_nothing(loss_and_grads: tuple[float, Tree]) -> tuple[float, tuple[Tree, FloatArray]]:
        return loss_and_grads[0], (loss_and_grads[1], nothing)

    critics = critic_reference(nets, batch, HYPERS.discount)
    return (
        advantage,
        with_nothing(value_reference(nets.value, q, batch, HYPERS.expectile)),
        with_nothing(critics),
        [with_nothing(actor_reference(nets.actor, advantage, batch, HYPERS, kind)) for kind in (False, True)],
        {"critic_loss": critics[0], "q": np.mean(q_values(nets.critics, batch.obs, batch.action))},
    )


@precisions(in_float64=1e-12)
def test_losses_and_gradients(dtype: Any, tolerance: float) -> None:
    for seed in SEEDS:
        with computing(dtype):
            got = jax_losses(*cast((*problem(seed), HYPERS), dtype))
        assert_close(got, want_losses(seed), tolerance, dtype)


def cases_of(seed: int) -> dict[str, Any]:
    """Which samples of a problem reach which branch."""
    nets, batch = problem(seed)
    u, weight = advantages(nets, batch), np.exp(HYPERS.beta * advantages(nets, batch))
    q_1, q_2 = q_values(nets.target_critics, batch.obs, batch.action)
    return {
        "advantage positive": u > 0.0,
        "advantage negative": u < 0.0,
        "weight at its bound": weight > HYPERS.max_weight,
        "weight between 1 and its bound": (u > 0.0) & (weight < HYPERS.max_weight),
        "first target smaller": q_1 < q_2,
        "second target smaller": q_2 < q_1,
        **endings(batch),
    }


def test_the_samples_reach_every_branch() -> None:
    assert_reached(map(cases_of, SEEDS), 20)


def test_the_expectile_of_constant_values_is_that_of_the_textbook() -> None:
    """The minimum of V's loss over one number m solves sum |expectile - [q < m]| (q - m) = 0 (Newey & Powell 1987)."""
    q = np.random.default_rng(0).normal(size=50)
    batch = random_batch(np.random.default_rng(1), 50)
    net = jax.tree.map(np.zeros_like, mlp(np.random.default_rng(2), OBS_DIM, *HIDDEN, 1))
    for expectile in (0.3, 0.5, 0.9):
        low, high = float(np.min(q)), float(np.max(q))
        for _ in range(60):
            m = (low + high) / 2.0
            pull = np.sum(np.where(q < m, 1.0 - expectile, expectile) * (q - m))
            low, high = (m, high) if pull > 0.0 else (low, m)
        net["Dense_2"]["bias"][:] = m
        grads = value_reference({"params": net}, q, batch, expectile)[1]
        assert abs(grads["params"]["Dense_2"]["bias"][0]) < 1e-12
    assert math.isclose(float(np.mean(q)), 0.0, abs_tol=0.5) and m > np.mean(q)


# Whole updates, with everything that surrounds the losses.

UPDATE_BATCH = 16
PROGRESS = 0.3
CONFIGS = {
    "gaussian": iql.Config(batch_size=UPDATE_BATCH, hidden_sizes=HIDDEN),
    "deterministic, rewards normalised, observations not": iql.Config(
        batch_size=UPDATE_BATCH,
        hidden_sizes=HIDDEN,
        deterministic=True,
        normalize_obs=False,
        normalize_reward=True,
    ),
}


def state_of(nets: Nets) -> iql.State:
    """The learner's state with these networks and fresh optimisers."""
    return with_adam(iql.State(*(cast(part, jnp.float64) for part in nets)))


@pytest.mark.parametrize("name", CONFIGS)
def test_whole_updates(name: str) -> None:
    config = CONFIGS[name]
    algorithm = iql.make(config)
    with computing(np.float64):
        update, evaluate = compiled(algorithm, HYPERS)
        nets = start = random_nets(np.random.default_rng(0))
        state = state_of(nets)
        chex.assert_trees_all_equal_structs(jax.eval_shape(algorithm.init, jax.random.key(0), task(), HYPERS), state)
        actor_adam, critic_adam, value_adam = Adam(nets.actor), Adam(nets.critics), Adam(nets.value)
        ends = set()
        for done in range(3):
            key = jax.random.key(done)
            index = rows_of(key, UPDATE_BATCH)
            ends |= {(bool(records().terminated[i]), bool(records().truncated[i])) for i in index}
            batch = drawn(index, config.normalize_obs)
            batch = batch._replace(reward=reward_scale(config.normalize_reward) * batch.reward + HYPERS.reward_shift)
            progress = done * PROGRESS
            state, metrics = update(key, state, Clock(jnp.int32(done), jnp.asarray(progress)))

            # Everything is of the networks as they were before the step; the targets follow the critics after it.
            u = advantages(nets, batch)
            q = u + state_value(nets.value, batch.obs)
            value_error, value_grads = value_reference(nets.value, q, batch, HYPERS.expectile)
            critic_error, critic_grads = critic_reference(nets, batch, HYPERS.discount)
            actor_error, actor_grads = actor_reference(nets.actor, u, batch, HYPERS, config.deterministic)
            want = {
                "value_loss": value_error,
                "critic_loss": critic_error,
                "actor_loss": actor_error,
                "advantage": np.mean(u),
                "q": np.mean(q_values(nets.critics, batch.obs, batch.action)),
            }
            assert set(metrics) == set(want)
            for metric, number in want.items():
                assert float(metrics[metric]) == pytest.approx(float(number), rel=1e-9), metric
            critics = critic_adam.step(nets.critics, critic_grads, HYPERS.critic_learning_rate)
            annealed = HYPERS.actor_learning_rate * (1.0 + math.cos(math.pi * progress)) / 2.0
            nets = Nets(
                actor_adam.step(nets.actor, actor_grads, annealed),
                critics,
                polyak(nets.target_critics, critics, HYPERS.tau),
                value_adam.step(nets.value, value_grads, HYPERS.value_learning_rate),
            )
        evaluated = evaluate(state, jnp.asarray(SOMEWHERE))
    assert ends >= {(False, False), (True, False), (False, True)}
    assert_moved(Nets(*params_of(state)), nets, start, 1e-8)
    # Evaluation plays the mean, and values it in the units of the recorded rewards.
    assert_evaluates(
        evaluated,
        lambda obs: np.tanh(perceptron(nets.actor.net["params"], obs, "relu")),
        nets.critics,
        config.normalize_obs,
        value_scale=1.0 / reward_scale(config.normalize_reward),
    )


# Around the updates.


def test_starts_with_critics_that_differ_and_with_targets_that_do_not() -> None:
    algorithm = iql.make(CONFIGS["gaussian"])
    state = jax.jit(lambda key: algorithm.init(key, task(), HYPERS))(jax.random.key(0))
    state = params_of(state)
    assert_different(state.critics)
    chex.assert_trees_all_equal(state.critics, state.target_critics)
    np.testing.assert_array_equal(state.actor.log_std, np.zeros(ACTION_DIM))
    # V has no part in common with a critic.
    last = [tree["params"]["Dense_2"]["kernel"] for tree in (state.value, state.critics)]
    assert not np.any(last[0] == last[1][0]) and not np.any(last[0] == last[1][1])


def test_rewards_of_equal_returns_are_left_as_they_are() -> None:
    equal = records()._replace(episode_return=np.full(5, 2.0))
    space = Box((-2.0, 0.5, -1.0), (1.0, 2.0, 3.0))
    task_of_equal = Task(task().env, datasets.build("toy", equal, space, source="a test"))
    assert float(offline.reward_scale(task_of_equal)) == 1.0
    assert float(offline.reward_scale(Task(task().env, dataset()))) == pytest.approx(
        1000.0 / (np.max(records().episode_return) - np.min(records().episode_return)), rel=1e-5
    )


def test_settings_are_those_of_corl() -> None:
    assert iql.Config() == iql.Config(256, (256, 256), False, True, False)
    assert iql.Hypers() == (3e-4, 3e-4, 3e-4, 0.99, 0.005, 0.7, 3.0, 100.0, 0.0)
    spec = AlgorithmSpec(iql.Config, iql.Hypers, iql.make, iql.TRIAL, presets=iql.PRESETS, offline=True)
    hopper_config = dataclasses.replace(iql.Config(), deterministic=True, normalize_reward=True)
    for dataset_id in ("mujoco/hopper/medium-v0", "hopper_medium-v2.hdf5", "hopper_medium_replay-v2.hdf5"):
        assert spec.preset("", dataset_id)[:2] == (hopper_config, iql.Hypers(tau=0.001))
    assert spec.preset("", "hopper_medium_expert-v2.hdf5")[:2] == (iql.Config(), iql.Hypers(expectile=0.5, beta=6.0))
    antmaze = iql.Hypers(expectile=0.9, beta=10.0, reward_shift=-1.0)
    assert spec.preset("", "D4RL/antmaze/large-diverse-v1")[:2] == (iql.Config(), antmaze)
    assert spec.preset("", "walker2d_medium-v2.hdf5") == (iql.Config(), iql.Hypers(), "defaults")


def test_what_cannot_work_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"^batch_size=0 must be at least 1"):
        iql.make(iql.Config(batch_size=0))
