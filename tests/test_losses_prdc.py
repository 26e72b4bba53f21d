"""PRDC against an independent reference in NumPy and float64: losses, their whole gradients, whole updates.

The reference is written from the paper (Ran et al. 2023, arXiv 2306.06569) and the details listed in
`prdc.py`. What PRDC shares with TD3+BC has the reference of `test_losses_td3_bc.py`, derivatives by
hand; the anchors are looked for here by computing every distance.
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
from numpy_critics import ACTION_DIM, BATCH, q_values, random_batch
from numpy_nets import Adam, FloatArray, Tree, assert_close, assert_moved, cast, dot, normal, slope
from numpy_offline import HIDDEN, Batch, dataset, drawn, in_box, moved, records, rows_of, shown, task, unit
from test_losses_td3_bc import NETWORKS, SOMEWHERE, Nets, actor_reference, learner, pull, random_nets, squashed
from test_losses_td3_bc import critic_reference as td3_bc_critic_reference
from trained_states import params_of

from envs import datasets
from rlsuite.algorithms.offline import prdc
from rlsuite.core import Clock, Task
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


def critic_reference(nets: Nets, batch: Batch, noise: FloatArray, hypers: Any = HYPERS) -> tuple[float, Tree]:
    """That of TD3, on 2.5 r - 0.4."""
    reward = hypers.reward_scale * batch.reward + hypers.reward_shift
    return td3_bc_critic_reference(nets, batch._replace(reward=reward), noise, hypers)


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


@jax.jit
def jax_losses(state: Any, batch: datasets.Batch, noise: Any, anchor: Any, hypers: prdc.Hypers) -> Any:
    """Both losses and their gradients, the gradient of the critics' loss by the targets, and the metrics."""
    params = params_of(state)
    (critic_loss, metrics), critic_grads = jax.value_and_grad(prdc.critic_loss, has_aux=True)(
        params.critics, NETWORKS, state, batch, noise, hypers
    )

    def by_targets(target_actor: Tree, target_critics: Tree) -> Any:
        other = state._replace(target_actor=target_actor, target_critics=target_critics)
        return prdc.critic_loss(params.critics, NETWORKS, other, batch, noise, hypers)[0]

    target_grads = jax.grad(by_targets, (0, 1))(state.target_actor, state.target_critics)
    actor = jax.value_and_grad(offline_td3.actor_loss)(
        params.actor, NETWORKS, params.critics, batch.obs, anchor, hypers
    )
    return (critic_loss, critic_grads), actor, target_grads, metrics


def compare(seed: int, dtype: Any, tolerance: float) -> None:
    nets, batch, noise, anchor = problem(seed)
    of_critics = critic_reference(nets, batch, noise)
    want = (
        of_critics,
        actor_reference(nets, batch._replace(action=anchor), pull(nets, batch, HYPERS.alpha)),
        jax.tree.map(np.zeros_like, (nets.target_actor, nets.target_critics)),
        {"critic_loss": of_critics[0], "q": np.mean(q_values(nets.critics, batch.obs, batch.action))},
    )
    samples = datasets.Batch(*cast(tuple(batch), dtype))
    with jax.default_matmul_precision("highest"):
        got = jax_losses(learner(nets, dtype), samples, *cast((noise, anchor, HYPERS), dtype))
    assert_close(got, want, tolerance, dtype)


def test_losses_and_gradients_in_float64() -> None:
    with jax.enable_x64(True):
        for seed in range(5):
            compare(seed, jnp.float64, 1e-12)


def test_losses_and_gradients_in_float32() -> None:
    for seed in range(5):
        compare(seed, jnp.float32, 1e-5)


def test_the_reference_has_the_gradient_of_its_own_losses() -> None:
    nets, batch, noise, anchor = problem(7)
    rng = np.random.default_rng(8)
    weight = pull(nets, batch, HYPERS.alpha)
    losses: list[tuple[Any, Tree]] = [
        (lambda tree: critic_reference(nets._replace(critics=tree), batch, noise), nets.critics),
        (lambda tree: actor_reference(nets._replace(actor=tree), batch._replace(action=anchor), weight), nets.actor),
    ]
    for reference, tree in losses:
        for _ in range(5):
            direction = jax.tree.map(lambda x: rng.normal(size=x.shape), tree)
            numeric = slope(lambda moved, reference=reference: reference(moved)[0], tree, direction, step=1e-7)
            assert numeric == pytest.approx(dot(reference(tree)[1], direction), rel=1e-6)


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

UPDATE_BATCH = 16
CONFIGS = {
    "delay 3": prdc.Config(batch_size=UPDATE_BATCH, hidden_sizes=HIDDEN, policy_delay=3),
    "no delay, second neighbour, observations as they are": prdc.Config(
        batch_size=UPDATE_BATCH, hidden_sizes=HIDDEN, policy_delay=1, k=2, normalize_obs=False
    ),
}


@functools.cache
def programs(name: str) -> tuple[Any, Any]:
    """jit of the update and of (act, value)."""
    algorithm = prdc.make(CONFIGS[name])
    assert algorithm.value is not None

    def judge(state: Any, obs: Any) -> Any:
        return tuple(f(jax.random.key(0), task(), state, obs) for f in (algorithm.act, algorithm.value))

    hypers = cast(HYPERS, jnp.float64)
    update = jax.jit(lambda key, state, clock: algorithm.update(key, with_blocks(), state, hypers, clock))
    return update, jax.jit(judge)


@pytest.mark.parametrize("name", CONFIGS)
def test_whole_updates(name: str) -> None:
    config = CONFIGS[name]
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        update, judge = programs(name)
        nets = start = random_nets(np.random.default_rng(0))
        state = learner(nets, jnp.float64)
        fresh = jax.eval_shape(prdc.make(config).init, jax.random.key(0), task(), HYPERS)
        chex.assert_trees_all_equal_structs(fresh, state)
        actor_adam, critic_adam = Adam(nets.actor), Adam(nets.critics)
        for done in range(5, 9):  # 6 is due where the delay is 3
            key = jax.random.key(done)
            batch_key, noise_key = jax.random.split(key)
            rows = rows_of(batch_key, UPDATE_BATCH)
            batch = drawn(rows, config.normalize_obs)
            noise = np.asarray(jax.random.normal(noise_key, (UPDATE_BATCH, ACTION_DIM)))
            last = state
            state, metrics = update(key, state, Clock(jnp.int32(done), jnp.asarray(0.5)))

            loss, grads = critic_reference(nets, batch, noise)
            nets = nets._replace(critics=critic_adam.step(nets.critics, grads, HYPERS.critic_learning_rate))
            if done % config.policy_delay == 0:
                # Anchors of the actor before its step, by the critics after theirs.
                action = squashed(nets.actor, batch.obs)[0]
                near = anchor_rows(records().obs[rows], action, HYPERS.beta, config.k, config.normalize_obs)
                assert np.any(near != rows)
                anchored = batch._replace(action=unit(records().action)[near])
                grads = actor_reference(nets, anchored, pull(nets, batch, HYPERS.alpha))[1]
                nets = nets._replace(actor=actor_adam.step(nets.actor, grads, HYPERS.actor_learning_rate))
                nets = nets._replace(
                    target_actor=moved(nets.target_actor, nets.actor, HYPERS.tau),
                    target_critics=moved(nets.target_critics, nets.critics, HYPERS.tau),
                )
            else:
                still = ("actor", "target_actor", "target_critics")
                chex.assert_trees_all_equal(*([getattr(s, field) for field in still] for s in (state, last)))
            assert float(metrics["critic_loss"]) == pytest.approx(loss, rel=1e-9)
        act, value = judge(state, jnp.asarray(SOMEWHERE))
    assert_moved(Nets(*params_of(state)), nets, start, 1e-8)
    # Evaluation plays the actor without noise, and values it by the smaller critic.
    obs = shown(SOMEWHERE[None], config.normalize_obs)
    best = squashed(nets.actor, obs)[0]
    np.testing.assert_allclose(act, in_box(best)[0], rtol=1e-8)
    assert float(value) == pytest.approx(float(np.min(q_values(nets.critics, obs, best))), rel=1e-8)


# Around the updates.


def test_starts_with_critics_that_differ_and_with_targets_that_do_not() -> None:
    algorithm = prdc.make(CONFIGS["delay 3"])
    state = jax.jit(lambda key: algorithm.init(key, Task(task_env(), dataset()), HYPERS))(jax.random.key(0))
    state = params_of(state)
    for leaf in jax.tree.leaves(state.critics):
        assert leaf.shape[0] == 2 and not np.any(leaf[0] == leaf[1])
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
