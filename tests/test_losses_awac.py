"""AWAC against an independent reference in NumPy and float64: losses, their whole gradients, whole updates.

The reference is written from the paper (Nair et al. 2020, arXiv 2006.09359) and the details listed in `awac.py`.
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
)
from numpy_nets import Adam, FloatArray, Tree, assert_close, assert_moved, cast, exact, mlp, normal, perceptron
from numpy_offline import (
    HIDDEN,
    SOMEWHERE,
    assert_evaluates,
    compiled,
    drawn,
    records,
    rows_of,
    shown,
    task,
    twins,
)
from reference import assert_reached, computing, precisions, value_and_grad
from trained_states import params_of, with_adam

from envs.datasets import Batch
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
    max_weight=2.0,
    reward_shift=-0.4,
)
SEEDS = range(5)


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
    return perceptron(actor.net["params"], obs, "relu") + deviation(actor) * noise


def clipped(action: FloatArray) -> FloatArray:
    return np.minimum(np.maximum(action, -1.0), 1.0)


def critic_reference(nets: Nets, batch: Batch, noise: FloatArray, discount: float) -> tuple[float, Tree]:
    """The critics' loss and its gradient."""
    next_action = clipped(played(nets.actor, batch.next_obs, noise))
    target = bellman(batch, discount, smallest(nets.target_critics, batch.next_obs, next_action))
    return value_and_grad(lambda critics: squared_errors(critics, batch, target), nets.critics)


def advantages(nets: Nets, batch: Batch, noise: FloatArray) -> FloatArray:
    """Of the dataset's action over the policy's: `[batch]`."""
    own = clipped(played(nets.actor, batch.obs, noise))
    return smallest(nets.critics, batch.obs, batch.action) - smallest(nets.critics, batch.obs, own)


def actor_reference(
    actor: awac.Actor, advantage: FloatArray, batch: Batch, hypers: awac.Hypers
) -> tuple[float, awac.Actor]:
    """The policy's loss for constant advantages `[batch]`, and its gradient."""
    weight = np.minimum(np.exp(advantage / hypers.temperature), hypers.max_weight)

    def loss(actor: awac.Actor) -> Any:
        std = deviation(actor)
        z = (perceptron(actor.net["params"], batch.obs, "relu") - batch.action) / std
        return np.mean(weight * np.sum(0.5 * z**2 + np.log(std) + 0.5 * math.log(2.0 * math.pi), axis=1))

    return value_and_grad(loss, actor)


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
def jax_losses(state: awac.State, batch: Batch, noise: Any, own_noise: Any, hypers: awac.Hypers) -> Any:
    """Both losses with gradients and metrics, and the gradients by what should be constant in them."""
    params = params_of(state)
    (critic_loss, critic_metrics), critic_grads = jax.value_and_grad(awac.critic_loss, has_aux=True)(
        params.critics, NETWORKS, state, batch, noise, hypers
    )

    def by_targets(actor: Tree, target_critics: Tree) -> Any:
        other = state._replace(actor=state.actor._replace(params=actor), target_critics=target_critics)
        return awac.critic_loss(params.critics, NETWORKS, other, batch, noise, hypers)[0]

    target_grads = jax.grad(by_targets, (0, 1))(params.actor, params.target_critics)
    (actor_loss, actor_metrics), actor_grads = jax.value_and_grad(awac.actor_loss, (0, 2), has_aux=True)(
        params.actor, NETWORKS, params.critics, batch, own_noise, hypers
    )
    return (critic_loss, critic_grads), target_grads, (actor_loss, actor_grads), critic_metrics | actor_metrics


@functools.cache
def want_losses(seed: int) -> Any:
    nets, batch, noise, own_noise = problem(seed)
    critics, advantage = critic_reference(nets, batch, noise, HYPERS.discount), advantages(nets, batch, own_noise)
    actor_error, actor_grads = actor_reference(nets.actor, advantage, batch, HYPERS)
    nothing = jax.tree.map(np.zeros_like, nets)
    metrics = {
        "critic_loss": critics[0],
        "q": np.mean(q_values(nets.critics, batch.obs, batch.action)),
        "actor_loss": actor_error,
        "advantage": np.mean(advantage),
    }
    return critics, (nothing.actor, nothing.target_critics), (actor_error, (actor_grads, nothing.critics)), metrics


@precisions(in_float64=1e-12)
def test_losses_and_gradients(dtype: Any, tolerance: float) -> None:
    for seed in SEEDS:
        nets, *rest = problem(seed)
        with computing(dtype):
            got = jax_losses(state_of(nets, dtype), *cast((*rest, HYPERS), dtype))
        assert_close(got, want_losses(seed), tolerance, dtype)


def cases_of(seed: int) -> dict[str, Any]:
    """Which samples of a problem reach which branch."""
    nets, batch, noise, own_noise = problem(seed)
    u = advantages(nets, batch, own_noise)
    weight = np.exp(u / HYPERS.temperature)
    free, own = played(nets.actor, batch.next_obs, noise), played(nets.actor, batch.obs, own_noise)
    values = {
        "the dataset's": q_values(nets.critics, batch.obs, batch.action),
        "the policy's": q_values(nets.critics, batch.obs, clipped(own)),
        "the next": q_values(nets.target_critics, batch.next_obs, clipped(free)),
    }
    cases = {
        "advantage positive": u > 0.0,
        "advantage negative": u < 0.0,
        "weight at its bound": weight > HYPERS.max_weight,
        "weight between 1 and its bound": (u > 0.0) & (weight < HYPERS.max_weight),
        **endings(batch),
    }
    for name, action in (("action", own), ("next action", free)):
        cases[f"{name} below the box"] = action < -1.0
        cases[f"{name} inside the box"] = np.abs(action) < 1.0
        cases[f"{name} above the box"] = action > 1.0
    for name, q in values.items():
        cases[f"first smaller of {name}"], cases[f"second smaller of {name}"] = q[0] < q[1], q[1] < q[0]
    return cases


def test_the_samples_reach_every_branch() -> None:
    assert_reached(map(cases_of, SEEDS), 20)


# Whole updates, with everything that surrounds the losses.

UPDATE_BATCH = 16
CONFIGS = {
    name: awac.Config(batch_size=UPDATE_BATCH, hidden_sizes=HIDDEN, normalize_obs=normalize)
    for name, normalize in (("observations normalised", True), ("observations as they are", False))
}


@pytest.mark.parametrize("name", CONFIGS)
def test_whole_updates(name: str) -> None:
    config = CONFIGS[name]
    algorithm = awac.make(config)
    with computing(np.float64):
        update, evaluate = compiled(algorithm, HYPERS)
        nets = start = random_nets(np.random.default_rng(0))
        state = state_of(nets, jnp.float64)
        chex.assert_trees_all_equal_structs(jax.eval_shape(algorithm.init, jax.random.key(0), task(), HYPERS), state)
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
            critic_error, grads = critic_reference(nets, batch, noise, HYPERS.discount)
            nets = nets._replace(critics=critic_adam.step(nets.critics, grads, HYPERS.critic_learning_rate))
            # Advantages are those of the critics after their step.
            u = advantages(nets, batch, own_noise)
            actor_error, grads = actor_reference(nets.actor, u, batch, HYPERS)
            nets = nets._replace(
                actor=actor_adam.step(nets.actor, grads, HYPERS.actor_learning_rate),
                target_critics=polyak(nets.target_critics, nets.critics, HYPERS.tau),
            )
            want = {"critic_loss": critic_error, "q": q, "actor_loss": actor_error, "advantage": np.mean(u)}
            assert set(metrics) == set(want)
            for metric, number in want.items():
                assert float(metrics[metric]) == pytest.approx(float(number), rel=1e-9), metric
        places = SOMEWHERE, 20.0 * SOMEWHERE
        evaluated = [evaluate(state, jnp.asarray(place)) for place in places]
    assert ends >= {(False, False), (True, False), (False, True)}
    assert_moved(Nets(*params_of(state)), nets, start, 1e-8)

    def best(obs: FloatArray) -> FloatArray:
        return clipped(perceptron(nets.actor.net["params"], obs, "relu"))

    # Evaluation plays the mean, clipped to the box.
    for place, evaluation in zip(places, evaluated, strict=True):
        assert_evaluates(evaluation, best, nets.critics, config.normalize_obs, place)
    assert np.any(np.abs(best(shown(places[1][None], config.normalize_obs))) == 1.0)


# Around the updates.


def test_starts_with_critics_that_differ_and_with_targets_that_do_not() -> None:
    algorithm = awac.make(CONFIGS["observations normalised"])
    state = jax.jit(lambda key: algorithm.init(key, task(), HYPERS))(jax.random.key(0))
    state = params_of(state)
    assert_different(state.critics)
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
