"""PRDC against an independent reference in NumPy and float64: losses, their whole gradients, whole updates.

The reference is written from the paper (Ran et al. 2023, arXiv 2306.06569) and the details listed in
`prdc.py`. What PRDC shares with TD3+BC has the reference of `test_losses_td3_bc.py`; the anchors are looked for here by
computing every distance.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_critics import ACTION_DIM, BATCH, assert_different, random_batch
from numpy_nets import FloatArray, Tree, assert_close, cast, normal
from numpy_offline import HIDDEN, dataset, records, shown, task, unit
from numpy_offline_td3 import UPDATE_BATCH, Nets, assert_learns_as, chosen, jax_losses, learner, want_losses
from reference import computing, precisions
from test_losses_td3_bc import NETWORKS, random_nets
from test_losses_td3_bc import actor_reference as td3_bc_actor_reference
from test_losses_td3_bc import critic_reference as td3_bc_critic_reference
from trained_states import params_of

from envs import datasets
from envs.datasets import Batch
from rlsuite.algorithms.offline import prdc
from rlsuite.core import Task
from rlsuite.errors import UserError
from rlsuite.pieces import offline_td3

HYPERS = prdc.Hypers(
    actor_learning_rate=0.003,
    critic_learning_rate=0.005,
    discount=0.93,
    tau=0.1,
    alpha=1.7,
    beta=0.4,
    target_noise=0.4,
    target_noise_clip=0.5,
    reward_scale=2.5,
    reward_shift=-0.4,
)


SEEDS = range(5)


def critic_reference(nets: Nets, batch: Batch, noise: FloatArray) -> tuple[float, Tree]:
    """That of TD3, on 2.5 r - 0.4."""
    reward = HYPERS.reward_scale * batch.reward + HYPERS.reward_shift
    return td3_bc_critic_reference(nets, batch._replace(reward=reward), noise, HYPERS)


def actor_reference(nets: Nets, batch: Batch, anchor: FloatArray) -> tuple[float, Tree]:
    """That of TD3+BC, with anchors in place of the batch's actions."""
    return td3_bc_actor_reference(nets, batch._replace(action=anchor), alpha=HYPERS.alpha)


def all_distances(obs: FloatArray, action: FloatArray, beta: float, normalize: bool) -> FloatArray:
    """From each recorded observation `[batch, obs_dim]` and action in units to each transition: `[batch, n]`."""
    there = np.concatenate([beta * shown(records().obs, normalize), unit(records().action)], axis=1)
    query = np.concatenate([beta * shown(obs, normalize), action], axis=1)
    return np.sqrt(np.sum((query[:, None] - there[None]) ** 2, axis=-1))


def anchor_rows(obs: FloatArray, action: FloatArray, beta: float, k: int, normalize: bool) -> Any:
    """Which transition each anchor is from."""
    distances = all_distances(obs, action, beta, normalize)
    ranked = np.sort(distances, axis=1)
    # None is so close to the next one that float32 could take the other.
    assert np.min(np.diff(ranked[:, : k + 2], axis=1)) > 1e-5
    return np.argsort(distances, axis=1)[:, k - 1]


def with_blocks() -> Task:
    """The task of `numpy_offline` with its dataset prepared; distances stay in float32."""
    with jax.ensure_compile_time_eval():
        return task()._replace(
            dataset=dataclasses.replace(task().dataset, blocks=datasets.with_blocks(dataset()).blocks)
        )


# Losses.


def problem(seed: int) -> tuple[Nets, Batch, FloatArray, FloatArray]:
    """Networks, a batch, noise and anchors that are not the actions of the batch."""
    rng = np.random.default_rng(seed)
    nets, batch = random_nets(rng), random_batch(rng)
    return nets, batch, normal(rng, BATCH, ACTION_DIM), np.clip(normal(rng, BATCH, ACTION_DIM), -1.0, 1.0)


LOSSES = jax_losses(NETWORKS, prdc.critic_loss, offline_td3.actor_loss)


@functools.cache
def want(seed: int) -> Any:
    nets, batch, noise, anchor = problem(seed)
    return want_losses(nets, batch, critic_reference(nets, batch, noise), actor_reference(nets, batch, anchor))


@precisions(in_float64=1e-12)
def test_losses_and_gradients(dtype: Any, tolerance: float) -> None:
    for seed in SEEDS:
        nets, *rest = problem(seed)
        with computing(dtype):
            got = LOSSES(learner(nets, dtype), *cast((*rest, HYPERS), dtype))
        assert_close(got, want(seed), tolerance, dtype)


# Anchors.


def anchors(of: datasets.Dataset, obs: Any, action: Any, hypers: prdc.Hypers, config: prdc.Config) -> Any:
    """Those of transitions with these recorded observations and these actions of the actor."""
    rest = {name: jnp.zeros(len(obs)) for name in datasets.Batch._fields if name not in ("obs", "action")}
    recorded = datasets.Batch(obs=obs, action=jnp.zeros_like(action), **rest)
    return prdc.anchors(config, Task(task_env(), of), recorded, action, hypers)


@pytest.mark.parametrize(("k", "normalize"), [(1, True), (3, False)])
def test_anchors_are_the_actions_of_the_nearest_transitions(k: int, normalize: bool) -> None:
    rng = np.random.default_rng(0)
    config = prdc.Config(k=k, normalize_obs=normalize)
    prepared = datasets.with_blocks(dataset())
    own = rng.integers(len(records().obs), size=200)
    obs, action = records().obs[own], np.clip(0.7 * normal(rng, 200, ACTION_DIM), -1.0, 1.0)
    found = jax.jit(anchors, static_argnums=4)
    rows = []
    for beta in (0.1, 2.0):
        rows.append(anchor_rows(obs, action, beta, k, normalize))
        got = found(prepared, *cast((obs, action, HYPERS._replace(beta=beta)), jnp.float32), config)
        np.testing.assert_array_equal(got, unit(records().action)[rows[-1]].astype(np.float32))
    # They depend on beta, and are often not the action that was taken.
    assert np.mean(rows[0] != rows[1]) > 0.2 and np.mean(rows[0] != own) > 0.5


def test_anchors_carry_no_gradient() -> None:
    prepared = jax.tree.map(jnp.asarray, datasets.with_blocks(dataset()))
    obs = jnp.asarray(records().obs, jnp.float32)
    action = jnp.zeros((len(obs), ACTION_DIM))
    hypers = cast(HYPERS, jnp.float32)
    moved_by = jax.grad(lambda action: jnp.sum(anchors(prepared, obs, action, hypers, prdc.Config())))(action)
    assert not np.any(moved_by)


def test_a_dataset_that_was_not_prepared_is_refused() -> None:
    with pytest.raises(AssertionError, match="was not prepared"):
        anchors(dataset(), jnp.zeros((1, 3)), jnp.zeros((1, ACTION_DIM)), prdc.Hypers(), prdc.Config())


# Whole updates, with everything that surrounds the losses.

CONFIGS = {
    "delay 3": prdc.Config(batch_size=UPDATE_BATCH, hidden_sizes=HIDDEN, policy_delay=3),
    "no delay, second neighbour, observations as they are": prdc.Config(
        batch_size=UPDATE_BATCH, hidden_sizes=HIDDEN, policy_delay=1, k=2, normalize_obs=False
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_whole_updates(name: str) -> None:
    nets, config = random_nets(np.random.default_rng(0)), CONFIGS[name]

    def anchored(nets: Nets, batch: Batch, rows: Any) -> tuple[float, Tree]:
        # Anchors of the actor before its step, by the critics after theirs.
        action = chosen(nets.actor, batch.obs)
        near = anchor_rows(records().obs[rows], action, HYPERS.beta, config.k, config.normalize_obs)
        assert np.any(near != rows)
        return actor_reference(nets, batch, unit(records().action)[near])

    assert_learns_as(nets, critic_reference, anchored, prdc.make(config), config, HYPERS, with_blocks)


# Around the updates.


def test_starts_with_critics_that_differ_and_with_targets_that_do_not() -> None:
    algorithm = prdc.make(CONFIGS["delay 3"])
    state = jax.jit(lambda key: algorithm.init(key, Task(task_env(), dataset()), HYPERS))(jax.random.key(0))
    state = params_of(state)
    assert_different(state.critics)
    chex.assert_trees_all_equal((state.actor, state.critics), (state.target_actor, state.target_critics))


def task_env() -> Any:
    with jax.enable_x64(True):
        return task().env


def test_settings_are_those_of_the_authors() -> None:
    assert prdc.Config() == prdc.Config(256, (256, 256), 2, True, 1)
    assert prdc.Hypers() == (3e-4, 3e-4, 0.99, 0.005, 2.5, 2.0, 0.2, 0.5, 1.0, 0.0)
    assert {name: preset.hypers[4] for name, preset in prdc.PRESETS.items() if name.endswith("medium")} == {
        "halfcheetah-medium": 40.0,
        "hopper-medium": 2.5,
        "walker2d-medium": 2.5,
    }
    maze = prdc.PRESETS["antmaze-large-play"].hypers
    assert (maze.alpha, maze.beta, maze.reward_scale, maze.reward_shift) == (7.5, 7.5, 10000.0, -1.0)
    assert len(prdc.PRESETS) == 18


def test_what_cannot_work_is_refused_by_name() -> None:
    for name in ("batch_size", "policy_delay", "k"):
        with pytest.raises(UserError, match=f"^{name}=0 must be at least 1"):
            prdc.make(prdc.Config(**{name: 0}))
    algorithm, few = prdc.make(prdc.Config(k=35)), Task(task_env(), dataset())
    with pytest.raises(UserError, match=r"^k=35 is more than the 34 transitions of the dataset; choose a smaller one"):
        jax.eval_shape(algorithm.init, jax.random.key(0), few, HYPERS)
