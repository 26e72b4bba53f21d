"""AWAC against an independent reference in NumPy and float64: losses, their whole gradients, whole updates.

The reference is written from the paper (Nair et al. 2020, arXiv 2006.09359) and the details listed in
`awac.py`, with every derivative by hand. A central difference of the reference's own losses guards
those derivatives.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_critics import ACTION_DIM, BATCH, OBS_DIM, q_values, random_batch
from numpy_nets import (
    Adam,
    FloatArray,
    Tree,
    assert_close,
    assert_moved,
    backward,
    cast,
    dot,
    exact,
    forward,
    mlp,
    normal,
    slope,
)
from numpy_offline import HIDDEN, Batch, drawn, in_box, moved, records, rows_of, shown, squared_errors, task, twins
from trained_states import params_of, with_adam

from envs import datasets
from rlsuite.algorithms.offline import awac
from rlsuite.core import AlgorithmSpec, Clock
from rlsuite.errors import UserError
from rlsuite.pieces import offline_td3
from rlsuite.pieces.networks import MLP

HYPERS = awac.Hypers(
    actor_learning_rate=0.003,
    critic_learning_rate=0.005,
    discount=0.93,
    tau=0.1,
    temperature=0.4,
    max_weight=2.5,
    reward_shift=-0.4,
)


class Nets(NamedTuple):
    """What gradient steps change."""

    actor: awac.Actor
    critics: Tree
    """both critics, stacked on a leading axis"""
    target_critics: Tree


def deviation(actor: awac.Actor) -> FloatArray:
    """Of the policy's actions before they are clipped: `[action_dim]`."""
    return np.exp(np.minimum(np.maximum(actor.log_std, -20.0), 2.0))


def played(actor: awac.Actor, obs: FloatArray, noise: FloatArray) -> FloatArray:
    """The policy's draws before they are clipped."""
    return forward(actor.net["params"], obs, "relu")[0] + deviation(actor) * noise


def smaller(critics: Tree, obs: FloatArray, action: FloatArray) -> FloatArray:
    """The smaller critic: `[batch]`."""
    return np.min(q_values(critics, obs, action), axis=0)


def clipped(action: FloatArray) -> FloatArray:
    return np.minimum(np.maximum(action, -1.0), 1.0)


def critic_reference(nets: Nets, batch: Batch, noise: FloatArray, discount: float) -> tuple[float, Tree]:
    """The critics' loss and its gradient. Only `terminated` cuts the bootstrap."""
    next_action = clipped(played(nets.actor, batch.next_obs, noise))
    next_q = smaller(nets.target_critics, batch.next_obs, next_action)
    return squared_errors(nets.critics, batch, batch.reward + discount * (1.0 - batch.terminated) * next_q)


def advantages(nets: Nets, batch: Batch, noise: FloatArray) -> FloatArray:
    """Of the dataset's action over the policy's: `[batch]`."""
    own = clipped(played(nets.actor, batch.obs, noise))
    return smaller(nets.critics, batch.obs, batch.action) - smaller(nets.critics, batch.obs, own)


def actor_reference(
    actor: awac.Actor, advantage: FloatArray, batch: Batch, hypers: awac.Hypers
) -> tuple[float, awac.Actor]:
    """The policy's loss for constant advantages `[batch]`, and its gradient."""
    n = len(advantage)
    weight = np.minimum(np.exp(advantage / hypers.temperature), hypers.max_weight)[:, None]
    mean, inputs = forward(actor.net["params"], batch.obs, "relu")
    away, variance = mean - batch.action, deviation(actor) ** 2
    surprise = 0.5 * away**2 / variance + np.log(deviation(actor)) + 0.5 * math.log(2.0 * math.pi)
    # Beyond its bounds the log standard deviation does not count, and so has no gradient.
    inside = (actor.log_std > -20.0) & (actor.log_std < 2.0)
    d_log_std = inside * np.sum(weight * (1.0 - away**2 / variance), axis=0) / n
    net = backward(actor.net["params"], inputs, weight * away / variance / n, "relu")[0]
    return float(np.sum(weight * surprise) / n), awac.Actor({"params": net}, d_log_std)


def random_nets(rng: np.random.Generator) -> Nets:
    net = mlp(rng, OBS_DIM, *HIDDEN, ACTION_DIM)
    # The last dimension's log standard deviation is beyond its bound.
    return Nets(awac.Actor({"params": net}, exact(np.array([-0.9, -0.3, 2.5]))), twins(rng), twins(rng))


def problem(seed: int) -> tuple[Nets, Batch, FloatArray, FloatArray]:
    rng = np.random.default_rng(seed)
    return random_nets(rng), random_batch(rng), normal(rng, BATCH, ACTION_DIM), normal(rng, BATCH, ACTION_DIM)


NETWORKS = offline_td3.Networks(MLP((*HIDDEN, ACTION_DIM)), MLP((*HIDDEN, 1)))


def state_of(nets: Nets, dtype: Any) -> awac.State:
    """The learner's state with these networks and fresh optimisers."""
    return with_adam(awac.State(*(cast(part, dtype) for part in nets)))


@jax.jit
def jax_losses(state: awac.State, batch: datasets.Batch, noise: Any, own_noise: Any, hypers: awac.Hypers) -> Any:
    """Both losses with gradients and metrics, and the gradients by what should be constant in them."""
    params = params_of(state)
    (of_critics, critic_metrics), critic_grads = jax.value_and_grad(awac.critic_loss, has_aux=True)(
        params.critics, NETWORKS, state, batch, noise, hypers
    )

    def by_targets(actor: Tree, target_critics: Tree) -> Any:
        other = state._replace(actor=state.actor._replace(params=actor), target_critics=target_critics)
        return awac.critic_loss(params.critics, NETWORKS, other, batch, noise, hypers)[0]

    target_grads = jax.grad(by_targets, (0, 1))(params.actor, params.target_critics)
    (of_actor, actor_metrics), actor_grads = jax.value_and_grad(awac.actor_loss, (0, 2), has_aux=True)(
        params.actor, NETWORKS, params.critics, batch, own_noise, hypers
    )
    return (of_critics, critic_grads), target_grads, (of_actor, actor_grads), critic_metrics | actor_metrics


def compare(seed: int, dtype: Any, tolerance: float) -> None:
    """All losses and gradients of the learner, computed in `dtype`, against the reference."""
    nets, batch, noise, own_noise = problem(seed)
    of_critics = critic_reference(nets, batch, noise, HYPERS.discount)
    advantage = advantages(nets, batch, own_noise)
    of_actor, actor_grads = actor_reference(nets.actor, advantage, batch, HYPERS)
    nothing = jax.tree.map(np.zeros_like, nets)
    metrics = {
        "critic_loss": of_critics[0],
        "q": np.mean(q_values(nets.critics, batch.obs, batch.action)),
        "actor_loss": of_actor,
        "advantage": np.mean(advantage),
    }
    want = of_critics, (nothing.actor, nothing.target_critics), (of_actor, (actor_grads, nothing.critics)), metrics
    with jax.default_matmul_precision("highest"):
        samples = datasets.Batch(*cast(tuple(batch), dtype))
        got = jax_losses(state_of(nets, dtype), samples, *cast((noise, own_noise, HYPERS), dtype))
    assert_close(got, want, tolerance, dtype)


def test_losses_and_gradients_in_float64() -> None:
    with jax.enable_x64(True):
        for seed in range(5):
            compare(seed, jnp.float64, 1e-12)


def test_losses_and_gradients_in_float32() -> None:
    for seed in range(5):
        compare(seed, jnp.float32, 1e-5)


def test_the_samples_reach_every_branch() -> None:
    reached: dict[str, int] = {}
    for seed in range(5):
        nets, batch, noise, own_noise = problem(seed)
        u = advantages(nets, batch, own_noise)
        free = played(nets.actor, batch.next_obs, noise)
        own = played(nets.actor, batch.obs, own_noise)
        of_data = q_values(nets.critics, batch.obs, batch.action)
        of_own = q_values(nets.critics, batch.obs, clipped(own))
        of_next = q_values(nets.target_critics, batch.next_obs, clipped(free))
        cases = {
            "advantage positive": u > 0.0,
            "advantage negative": u < 0.0,
            "weight at its bound": np.exp(u / HYPERS.temperature) > HYPERS.max_weight,
            "weight between 1 and its bound": (u > 0.0) & (np.exp(u / HYPERS.temperature) < HYPERS.max_weight),
            **{
                f"{whose} {where}": hits
                for whose, action in (("action", own), ("next action", free))
                for where, hits in (
                    ("below the box", action < -1.0),
                    ("inside the box", np.abs(action) < 1.0),
                    ("above the box", action > 1.0),
                )
            },
            **{
                f"{which} smaller of {whose}": (q[0] < q[1]) == (which == "first")
                for whose, q in (("the dataset's", of_data), ("the policy's", of_own), ("the next", of_next))
                for which in ("first", "second")
            },
            "terminated only": batch.terminated & ~batch.truncated,
            "truncated only": batch.truncated & ~batch.terminated,
            "terminated and truncated": batch.terminated & batch.truncated,
            "neither": ~batch.terminated & ~batch.truncated,
        }
        for name, hits in cases.items():
            reached[name] = reached.get(name, 0) + int(np.sum(hits))
    assert min(reached.values()) >= 20, reached


def test_the_reference_has_the_gradient_of_its_own_losses() -> None:
    nets, batch, noise, own_noise = problem(7)
    rng = np.random.default_rng(8)
    advantage = advantages(nets, batch, own_noise)
    losses: list[tuple[Any, Tree]] = [
        (lambda tree: critic_reference(nets._replace(critics=tree), batch, noise, 0.93), nets.critics),
        (lambda tree: actor_reference(tree, advantage, batch, HYPERS), nets.actor),
    ]
    for reference, tree in losses:
        for _ in range(5):
            direction = jax.tree.map(lambda x: rng.normal(size=x.shape), tree)
            numeric = slope(lambda moved, reference=reference: reference(moved)[0], tree, direction, step=1e-7)
            assert numeric == pytest.approx(dot(reference(tree)[1], direction), rel=1e-6)


# Whole updates, with everything that surrounds the losses.

UPDATE_BATCH = 16
CONFIGS = {
    name: awac.Config(batch_size=UPDATE_BATCH, hidden_sizes=HIDDEN, normalize_obs=normalize)
    for name, normalize in (("observations normalised", True), ("observations as they are", False))
}
SOMEWHERE = np.array([1.5, -4.0, 2.0])
"""an observation of the environment"""


@functools.cache
def programs(name: str) -> tuple[Any, Any]:
    """jit of the update and of (act, value)."""
    algorithm = awac.make(CONFIGS[name])
    update = jax.jit(lambda key, state, clock: algorithm.update(key, task(), state, cast(HYPERS, jnp.float64), clock))

    def judge(state: Any, obs: Any) -> Any:
        return tuple(f(jax.random.key(0), task(), state, obs) for f in (algorithm.act, algorithm.value))

    return update, jax.jit(judge)


@pytest.mark.parametrize("name", CONFIGS)
def test_whole_updates(name: str) -> None:
    config = CONFIGS[name]
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        update, judge = programs(name)
        nets = start = random_nets(np.random.default_rng(0))
        state = state_of(nets, jnp.float64)
        chex.assert_trees_all_equal_structs(
            jax.eval_shape(awac.make(config).init, jax.random.key(0), task(), HYPERS), state
        )
        actor_adam, critic_adam = Adam(nets.actor), Adam(nets.critics)
        ends = set()
        for done in range(3):
            key = jax.random.key(done)
            batch_key, *noise_keys = jax.random.split(key, 3)
            index = rows_of(batch_key, UPDATE_BATCH)
            ends |= {(bool(records().terminated[i]), bool(records().truncated[i])) for i in index}
            batch = drawn(index, config.normalize_obs)
            batch = batch._replace(reward=batch.reward + HYPERS.reward_shift)
            noise, own_noise = (np.asarray(jax.random.normal(k, (UPDATE_BATCH, ACTION_DIM))) for k in noise_keys)
            state, metrics = update(key, state, Clock(jnp.int32(done), jnp.asarray(0.5)))

            q = np.mean(q_values(nets.critics, batch.obs, batch.action))
            of_critics, grads = critic_reference(nets, batch, noise, HYPERS.discount)
            nets = nets._replace(critics=critic_adam.step(nets.critics, grads, HYPERS.critic_learning_rate))
            # Advantages are those of the critics after their step.
            u = advantages(nets, batch, own_noise)
            of_actor, grads = actor_reference(nets.actor, u, batch, HYPERS)
            nets = nets._replace(
                actor=actor_adam.step(nets.actor, grads, HYPERS.actor_learning_rate),
                target_critics=moved(nets.target_critics, nets.critics, HYPERS.tau),
            )
            want = {"critic_loss": of_critics, "q": q, "actor_loss": of_actor, "advantage": np.mean(u)}
            assert set(metrics) == set(want)
            for metric, number in want.items():
                assert float(metrics[metric]) == pytest.approx(float(number), rel=1e-9), metric
        judged = [judge(state, jnp.asarray(place)) for place in (SOMEWHERE, 20.0 * SOMEWHERE)]
    assert ends >= {(False, False), (True, False), (False, True)}
    assert_moved(Nets(*params_of(state)), nets, start, 1e-8)
    # Evaluation plays the mean, clipped to the box, and values it by the smaller critic.
    for (act, value), place in zip(judged, (SOMEWHERE, 20.0 * SOMEWHERE), strict=True):
        obs = shown(place[None], config.normalize_obs)
        best = clipped(forward(nets.actor.net["params"], obs, "relu")[0])
        np.testing.assert_allclose(act, in_box(best)[0], rtol=1e-8)
        assert float(value) == pytest.approx(float(smaller(nets.critics, obs, best)[0]), rel=1e-8)
    assert np.any(np.abs(best) == 1.0)


# Around the updates.


def test_starts_with_critics_that_differ_and_with_targets_that_do_not() -> None:
    algorithm = awac.make(CONFIGS["observations normalised"])
    state = jax.jit(lambda key: algorithm.init(key, task(), HYPERS))(jax.random.key(0))
    state = params_of(state)
    for leaf in jax.tree.leaves(state.critics):
        assert leaf.shape[0] == 2 and not np.any(leaf[0] == leaf[1])
    chex.assert_trees_all_equal(state.critics, state.target_critics)
    np.testing.assert_array_equal(state.actor.log_std, np.zeros(ACTION_DIM))


def test_settings_are_those_of_corl() -> None:
    assert awac.Config() == awac.Config(256, (256, 256, 256), True)
    assert awac.Hypers() == (3e-4, 3e-4, 0.99, 0.005, 0.3333, 100.0, 0.0)
    spec = AlgorithmSpec(awac.Config, awac.Hypers, awac.make, awac.TRIAL, presets=awac.PRESETS, offline=True)
    antmaze = awac.Hypers(temperature=0.1, reward_shift=-1.0)
    assert spec.preset("", "D4RL/antmaze/umaze-diverse-v1")[:2] == (awac.Config(), antmaze)
    assert spec.preset("", "hopper_medium-v2.hdf5") == (awac.Config(), awac.Hypers(), "defaults")


def test_what_cannot_work_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"^batch_size=0 must be at least 1"):
        awac.make(awac.Config(batch_size=0))
