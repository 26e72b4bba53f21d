"""DSAC against an independent reference in NumPy and float64: the three losses, their whole gradients, whole updates.

The reference is written from the equations in `docs/algorithms/dsac.md`.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_critics import ACTION_DIM, BATCH, OBS_DIM, bellman, endings
from numpy_dsac import (
    HIDDEN,
    MODERATE,
    NUM_ENVS,
    POLICY,
    SEEDS,
    SIZES,
    TARGET_ENTROPY,
    UPDATE_BATCH,
    WIDE,
    Student,
    actor_reference,
    alpha_reference,
    assert_learns_as,
    every_precision,
    random_batch,
    random_critic,
    valued,
)
from numpy_nets import TIME_LIMIT, FloatArray, Toy, Tree, assert_close, cast, exact, normal
from numpy_squashed import random_actor
from reference import assert_reached, computing, held, value_and_grad
from trained_states import params_of, with_adam

from rlsuite.algorithms.off_policy import dsac
from rlsuite.core import Transition
from rlsuite.errors import UserError
from rlsuite.pieces import replay, return_distributions, squashed

HYPERS = dsac.Hypers(
    actor_learning_rate=0.003,
    critic_learning_rate=0.005,
    alpha_learning_rate=0.02,
    discount=0.93,
    tau=0.1,
    td_bound=5.0,
    initial_alpha=0.4,
    target_entropy_scale=0.7,
)


class Nets(NamedTuple):
    """What gradient steps change."""

    actor: Tree
    target_actor: Tree
    critics: Tree
    """the only one"""
    target_critics: Tree
    log_alpha: FloatArray


def target_of(nets: Nets, batch: Transition, noise: FloatArray, z: FloatArray) -> FloatArray:
    """The soft return that the critic is to learn, `[batch]`."""
    action, log_prob = POLICY.sample(nets.target_actor, batch.next_obs, noise)
    mean, std = valued(nets.target_critics, batch.next_obs, action)
    sample = mean + np.minimum(np.maximum(z, -3.0), 3.0) * std
    return bellman(batch, HYPERS.discount, sample - np.exp(nets.log_alpha) * log_prob)


def critic_reference(nets: Nets, batch: Transition, noise: FloatArray, z: FloatArray) -> tuple[float, Tree]:
    """The critic's loss and its gradient."""
    target = target_of(nets, batch, noise, z)

    def loss(critic: Tree) -> Any:
        mean, std = valued(critic, batch.obs, batch.action)
        clipped = mean + np.clip(target - mean, -HYPERS.td_bound, HYPERS.td_bound)
        mean_slope = -(target - mean) / (std**2 + 0.1)
        std_slope = -((mean - clipped) ** 2 - std**2) / (std**3 + 0.1)
        return np.mean(held(mean_slope) * mean + held(std_slope) * std)

    return value_and_grad(loss, nets.critics)


def random_nets(rng: np.random.Generator, log_stds: tuple[float, ...]) -> Nets:
    actor, target_actor = (random_actor(rng, HIDDEN, log_stds) for _ in range(2))
    critic, target = ({"params": random_critic(rng)} for _ in range(2))
    return Nets(actor, target_actor, critic, target, exact(np.log(0.4)))


def problem(seed: int, log_stds: tuple[float, ...] = WIDE) -> tuple[Nets, Transition, FloatArray, FloatArray]:
    """Networks, a minibatch, noise for actions and, well beyond where it is cut off, noise for returns."""
    rng = np.random.default_rng(seed)
    nets, batch = random_nets(rng, log_stds), random_batch(rng, BATCH)
    return nets, batch, normal(rng, BATCH, ACTION_DIM), exact(3.0 * normal(rng, BATCH))


def learner(nets: Nets, dtype: Any) -> dsac.Learner:
    """The learner's state with these networks and fresh optimisers."""
    return with_adam(dsac.Learner(*cast(tuple(nets), dtype)))


Results = tuple[tuple[Any, Tree], tuple[Any, Tree, Any], tuple[Any, Any]]


@jax.jit
def jax_losses(state: dsac.Learner, batch: Transition, noise: Any, z: Any, hypers: Any, target_entropy: Any) -> Results:
    """The three losses of the learner and their gradients."""
    networks, params = return_distributions.networks_of(HIDDEN, Toy()), params_of(state)
    (critic_loss, _), critic_grads = jax.value_and_grad(dsac.critic_loss, has_aux=True)(
        params.critic, networks, state, batch, noise, z, hypers
    )
    (actor_loss, log_prob), actor_grads = jax.value_and_grad(dsac.actor_loss, has_aux=True)(
        params.actor, networks, params.critic, params.log_alpha, batch.obs, noise
    )
    alpha = jax.value_and_grad(squashed.alpha_loss)(params.log_alpha, log_prob, target_entropy)
    return (critic_loss, critic_grads), (actor_loss, actor_grads, log_prob), alpha


@functools.cache
def want_losses(seed: int, log_stds: tuple[float, ...]) -> Any:
    nets, batch, noise, z = problem(seed, log_stds)
    return (
        critic_reference(nets, batch, noise, z),
        (*actor_reference(nets, batch.obs, noise), POLICY.sample(nets.actor, batch.obs, noise)[1]),
        alpha_reference(nets, batch.obs, noise),
    )


@every_precision
def test_losses_and_gradients(log_stds: tuple[float, ...], dtype: Any, tolerance: float) -> None:
    for seed in SEEDS:
        nets, *rest = problem(seed, log_stds)
        with computing(dtype):
            got = jax_losses(learner(nets, dtype), *cast((*rest, HYPERS, TARGET_ENTROPY), dtype))
        assert_close(got, want_losses(seed, log_stds), tolerance, dtype)


def cases_of(seed: int) -> dict[str, Any]:
    """Which samples of a problem reach which branch."""
    nets, batch, noise, z = problem(seed)
    error = target_of(nets, batch, noise, z) - valued(nets.critics, batch.obs, batch.action)[0]
    return {
        **POLICY.cases(nets.actor, batch.obs),
        "z below its bound": z < -3.0,
        "z inside its bounds": np.abs(z) < 3.0,
        "z above its bound": z > 3.0,
        "target below its bound": error < -HYPERS.td_bound,
        "target inside its bounds": np.abs(error) < HYPERS.td_bound,
        "target above its bound": error > HYPERS.td_bound,
        **endings(batch),
    }


def test_the_samples_reach_every_branch() -> None:
    assert_reached(map(cases_of, SEEDS), 20)


def test_a_gaussian_return_is_a_fixed_point_of_the_loss() -> None:
    """At the true mean and standard deviation of its targets, the critic's gradient is that of sampling noise."""
    target = 4.0 + 2.0 * np.random.default_rng(0).normal(size=100_000)
    grads = jax.grad(
        lambda mean, std: jnp.mean(
            return_distributions.gaussian_loss(mean, std, target, return_distributions.clip_target(mean, target, 1e9))
        ),
        (0, 1),
    )
    assert np.allclose(grads(4.0, 2.0), 0.0, atol=0.01)
    # Too low a mean must rise and too large a standard deviation must fall, and the other way round.
    assert grads(3.0, 2.0)[0] < -0.1 and grads(5.0, 2.0)[0] > 0.1
    assert grads(4.0, 3.0)[1] > 0.1 and grads(4.0, 1.0)[1] < -0.1


def critic_step(nets: Nets, batch: Transition, noise: FloatArray, z_key: jax.Array) -> tuple[Tree, dict[str, Any]]:
    """The critic's gradient in a whole update."""
    return critic_reference(nets, batch, noise, np.asarray(jax.random.normal(z_key, (UPDATE_BATCH,))))[1], {}


@pytest.mark.parametrize(("gradient_steps", "learn_alpha"), [(3, True), (1, False)])
def test_whole_updates_from_the_warm_up_on(gradient_steps: int, learn_alpha: bool) -> None:
    """Three gradient steps an update with a delay of two: the delayed ones lie elsewhere in every update."""
    config = dsac.Config(**SIZES, gradient_steps=gradient_steps, learn_alpha=learn_alpha)
    rng = np.random.default_rng(0)
    student = Student(random_nets(rng, MODERATE), config, HYPERS, critic_step)
    assert_learns_as(student, dsac.make(config), learner, rng)


def test_a_rollout_is_stored_step_by_step() -> None:
    """Longer than the buffer, and beginning in the middle of it."""
    rng = np.random.default_rng(0)
    layout = replay.Layout(OBS_DIM, ACTION_DIM, TIME_LIMIT)
    time, first = 9, 4
    steps = [random_batch(rng, NUM_ENVS) for _ in range(time)]
    rollout = Transition(*cast(tuple(np.stack(column) for column in zip(*steps, strict=True)), jnp.float32))
    after = jnp.asarray(normal(rng, NUM_ENVS, OBS_DIM), jnp.float32)
    empty = replay.init(layout, NUM_ENVS, NUM_ENVS * 5)
    got = jax.jit(replay.add_rollout, static_argnums=1)(empty, layout, rollout, after, jnp.int32(first))
    want = empty
    for i in range(time):
        following = after if i == time - 1 else rollout.obs[i + 1]
        want = replay.add(want, layout, jax.tree.map(lambda x, i=i: x[i], rollout), following, jnp.int32(first + i))
    chex.assert_trees_all_equal(got, want)


def test_a_buffer_that_does_not_hold_whole_steps_is_refused() -> None:
    with pytest.raises(UserError, match="buffer_size=10 is not a multiple of num_envs=3"):
        dsac.make(dsac.Config(num_envs=3, buffer_size=10))
    with pytest.raises(UserError, match="num_steps=0 must be at least 1"):
        dsac.make(dsac.Config(num_steps=0))


def test_the_buffer_fits_the_budget() -> None:
    """Whole updates, since a budget is rounded up to them."""
    config = dsac.Config(num_envs=3, num_steps=4, buffer_size=3000)
    assert dsac.fit(config, 100).buffer_size == 108
    assert dsac.fit(config, 1_000_000).buffer_size == 3000
