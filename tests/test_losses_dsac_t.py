"""DSAC-T against an independent reference in NumPy and float64: its losses, their whole gradients, whole updates.

The reference is written from the equations in `docs/algorithms/dsac_t.md`.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_critics import ACTION_DIM, BATCH, bellman, endings, stacked
from numpy_dsac import (
    HIDDEN,
    MODERATE,
    POLICY,
    SEEDS,
    SIZES,
    UPDATE_BATCH,
    WIDE,
    Student,
    actor_reference,
    assert_learns_as,
    every_precision,
    random_batch,
    random_critic,
    valued,
)
from numpy_nets import FloatArray, Toy, Tree, assert_close, cast, exact, normal
from numpy_squashed import random_actor
from reference import absolute, assert_reached, computing, held, value_and_grad
from trained_states import params_of, with_adam

from rlsuite.algorithms.off_policy import dsac_t
from rlsuite.core import Task, Transition
from rlsuite.errors import UserError
from rlsuite.pieces import return_distributions

HYPERS = dsac_t.Hypers(
    actor_learning_rate=0.003,
    critic_learning_rate=0.005,
    alpha_learning_rate=0.02,
    discount=0.93,
    tau=0.1,
    tau_b=0.3,
    bound_scale=2.9,
    initial_alpha=0.4,
    target_entropy_scale=0.7,
)
either_loss = pytest.mark.parametrize("huber", [False, True], ids=["published", "huber"])


class Nets(NamedTuple):
    """What gradient steps change."""

    actor: Tree
    target_actor: Tree
    critics: Tree
    """both critics, stacked on a leading axis of 2"""
    target_critics: Tree
    b: FloatArray
    """`[2]`, negative before the first gradient step"""
    log_alpha: FloatArray


class Targets(NamedTuple):
    """What the critics are to learn."""

    first_smaller: Any
    """`[batch]`: whose next mean is the smaller one"""
    target: FloatArray
    """`[batch]`"""
    clipped: FloatArray
    """`[2, batch]`"""
    b: FloatArray
    """`[2]`"""


def targets_of(nets: Nets, batch: Transition, noise: FloatArray, z: FloatArray) -> Targets:
    """y, C and the new b."""
    action, log_prob = POLICY.sample(nets.target_actor, batch.next_obs, noise)
    next_mean, next_std = valued(nets.target_critics, batch.next_obs, action)
    first_smaller = next_mean[0] < next_mean[1]
    samples = next_mean + np.minimum(np.maximum(z, -3.0), 3.0) * next_std
    entropy_part = np.exp(nets.log_alpha) * log_prob
    target, noisy_target = (
        bellman(batch, HYPERS.discount, np.where(first_smaller, *pair) - entropy_part) for pair in (next_mean, samples)
    )
    mean, std = valued(nets.critics, batch.obs, batch.action)
    now = np.mean(std, axis=1)
    b = np.where(nets.b < 0.0, now, (1.0 - HYPERS.tau_b) * nets.b + HYPERS.tau_b * now)
    bound = HYPERS.bound_scale * b[:, None]
    return Targets(first_smaller, target, mean + np.clip(noisy_target - mean, -bound, bound), b)


def huber(x: FloatArray) -> FloatArray:
    """x^2 / 2 up to 50, and then on with its slope there."""
    return np.where(absolute(x) <= 50.0, x**2 / 2.0, 50.0 * absolute(x) - 1250.0)


def published_slopes(
    mean: FloatArray, std: FloatArray, target: FloatArray, clipped: FloatArray, b: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """d loss / d mean and d loss / d std of each sample."""
    omega = b**2 + 0.1
    return -omega * (target - mean) / (std**2 + 0.1), -omega * ((mean - clipped) ** 2 - std**2) / (std**3 + 0.1)


def ratio_of(std: FloatArray, b: FloatArray) -> FloatArray:
    """The weight of the loss of 2025."""
    return np.minimum(np.maximum(b**2 / (std**2 + 0.1), 0.1), 10.0)


def huber_slopes(
    mean: FloatArray, std: FloatArray, target: FloatArray, clipped: FloatArray, b: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """The same for the loss of 2025."""
    ratio, inside = ratio_of(std, b), np.minimum(np.maximum(mean - target, -50.0), 50.0)
    return ratio * inside, -ratio * (huber(mean - clipped) - std**2) / (std + 0.1)


def critics_reference(
    nets: Nets, batch: Transition, noise: FloatArray, z: FloatArray, use_huber: bool
) -> tuple[float, Tree, FloatArray]:
    """The critics' loss, its gradient, and the new b. All factors of mean and std pass no gradient."""
    _, target, clipped, b = targets_of(nets, batch, noise, z)

    def loss(critics: Tree) -> Any:
        mean, std = valued(critics, batch.obs, batch.action)
        slopes = huber_slopes if use_huber else published_slopes
        mean_slope, std_slope = held(slopes(mean, std, target, clipped, b[:, None]))
        mean_part = held(ratio_of(std, b[:, None])) * huber(mean - target) if use_huber else mean_slope * mean
        return np.sum(np.mean(mean_part + std_slope * std, axis=1))

    return *value_and_grad(loss, nets.critics), b


def random_nets(rng: np.random.Generator, log_stds: tuple[float, ...]) -> Nets:
    """b is small for one critic and so large for the other that the far ends of all bounds are reached."""

    critics, targets = (stacked([random_critic(rng), random_critic(rng)]) for _ in range(2))
    actor, target_actor = random_actor(rng, HIDDEN, log_stds), random_actor(rng, HIDDEN, log_stds)
    return Nets(actor, target_actor, critics, targets, exact([0.5, 25.0]), exact(np.log(0.4)))


def problem(seed: int, log_stds: tuple[float, ...] = WIDE) -> tuple[Nets, Transition, FloatArray, FloatArray]:
    """Networks, a minibatch, noise for actions and, well beyond where it is cut off, noise for returns."""
    rng = np.random.default_rng(seed)
    nets, batch = random_nets(rng, log_stds), random_batch(rng, BATCH)
    return nets, batch, normal(rng, BATCH, ACTION_DIM), exact(3.0 * normal(rng, 2, BATCH))


def first_or_later(seed: int, log_stds: tuple[float, ...]) -> tuple[Nets, Transition, FloatArray, FloatArray]:
    """The same, before the first gradient step where the seed is 0."""
    nets, *rest = problem(seed, log_stds)
    return nets._replace(b=np.array([-1.0, -1.0])) if seed == 0 else nets, *rest


def learner(nets: Nets, dtype: Any) -> dsac_t.Learner:
    """The learner's state with these networks and fresh optimisers."""
    return with_adam(dsac_t.Learner(*cast(tuple(nets), dtype)))


Results = tuple[tuple[Any, Tree, Any], tuple[Any, Tree, Any]]


@functools.partial(jax.jit, static_argnames="use_huber")
def jax_losses(state: dsac_t.Learner, batch: Transition, noise: Any, z: Any, hypers: Any, use_huber: bool) -> Results:
    """The losses of critics and actor, and their gradients."""
    networks, params = return_distributions.networks_of(HIDDEN, Toy()), params_of(state)
    (critic_loss, (b, _)), critic_grads = jax.value_and_grad(dsac_t.critic_loss, has_aux=True)(
        params.critics, networks, state, batch, noise, z, hypers, use_huber
    )
    (actor_loss, log_prob), actor_grads = jax.value_and_grad(dsac_t.actor_loss, has_aux=True)(
        params.actor, networks, params.critics, params.log_alpha, batch.obs, noise
    )
    return (critic_loss, critic_grads, b), (actor_loss, actor_grads, log_prob)


@functools.cache
def want_losses(seed: int, log_stds: tuple[float, ...], huber: bool) -> Any:
    nets, batch, noise, z = first_or_later(seed, log_stds)
    actor = (*actor_reference(nets, batch.obs, noise), POLICY.sample(nets.actor, batch.obs, noise)[1])
    return critics_reference(nets, batch, noise, z, huber), actor


@either_loss
@every_precision
def test_losses_and_gradients(huber: bool, log_stds: tuple[float, ...], dtype: Any, tolerance: float) -> None:
    for seed in SEEDS:
        nets, *rest = first_or_later(seed, log_stds)
        with computing(dtype):
            got = jax_losses(learner(nets, dtype), *cast((*rest, HYPERS), dtype), huber)
        assert_close(got, want_losses(seed, log_stds, huber), tolerance, dtype)


def cases_of(seed: int) -> dict[str, Any]:
    """Which samples of a problem reach which branch."""
    nets, batch, noise, z = problem(seed)
    one, two = valued(nets.critics, batch.obs, POLICY.sample(nets.actor, batch.obs, noise)[0])[0]
    first_smaller, target, clipped, b = targets_of(nets, batch, noise, z)
    mean, std = valued(nets.critics, batch.obs, batch.action)
    ratio = b[:, None] ** 2 / (std**2 + 0.1)
    at_bound = np.isclose(np.abs(clipped - mean), HYPERS.bound_scale * b[:, None])
    return {
        **POLICY.cases(nets.actor, batch.obs),
        "first critic smaller": one < two,
        "second critic smaller": two < one,
        "first target smaller": first_smaller,
        "second target smaller": ~first_smaller,
        "z below its bound": z < -3.0,
        "z inside its bounds": np.abs(z) < 3.0,
        "z above its bound": z > 3.0,
        "first target below its bound": at_bound[0] & (clipped[0] < mean[0]),
        "first target above its bound": at_bound[0] & (clipped[0] > mean[0]),
        "first target inside its bounds": ~at_bound[0],
        "second target outside its bounds": at_bound[1],
        "second target inside its bounds": ~at_bound[1],
        "ratio below its bound": ratio < 0.1,
        "ratio inside its bounds": (ratio > 0.1) & (ratio < 10.0),
        "ratio above its bound": ratio > 10.0,
        "mean's error quadratic": np.abs(mean - target) < 50.0,
        "mean's error linear": np.abs(mean - target) > 50.0,
        "spread quadratic": np.abs(mean - clipped) < 50.0,
        "spread linear": np.abs(mean - clipped) > 50.0,
        **endings(batch),
    }


def test_the_samples_reach_every_branch() -> None:
    assert_reached(map(cases_of, SEEDS), 20)


# The properties that the method is known for.


@either_loss
def test_the_gradient_by_mean_and_std_is_the_closed_form(huber: bool) -> None:
    rng = np.random.default_rng(3)
    mean, std, target, clipped = 30.0 * rng.normal(size=(4, 2, 500))
    std, b = np.exp(std / 30.0), np.array([0.3, 4.0])
    loss = dsac_t.huber_loss if huber else dsac_t.published_loss
    with jax.enable_x64(True):
        got = jax.grad(lambda mean, std: jnp.sum(loss(mean, std, *map(jnp.asarray, (target, clipped, b)))), (0, 1))(
            jnp.asarray(mean), jnp.asarray(std)
        )
    want = (huber_slopes if huber else published_slopes)(mean, std, target, clipped, b[:, None])
    assert_close(got, want, 1e-12)


def test_with_a_constant_std_and_a_wide_bound_the_mean_learns_plain_td_errors() -> None:
    """Sample by sample, d loss / d mean is proportional to y - Q, however wild the sampled return."""
    nets, batch, noise, z = problem(4, MODERATE)
    for critics in (nets.critics, nets.target_critics):
        critics["params"]["Dense_2"]["kernel"][:, :, 1] = 0.0
    nets = nets._replace(b=np.array([1e6, 1e6]))

    def grads_of_last_bias(state: dsac_t.Learner, sample: Transition, noise: Any, z: Any) -> Any:
        networks = return_distributions.networks_of(HIDDEN, Toy())
        sample = jax.tree.map(lambda x: x[None], sample)
        hypers = HYPERS._replace(tau_b=0.0)
        grads, _ = jax.grad(dsac_t.critic_loss, has_aux=True)(
            params_of(state).critics, networks, state, sample, noise[None], z[:, None], hypers, False
        )
        return grads["params"]["Dense_2"]["bias"]

    with computing(np.float64):
        sample_grads = jax.jit(jax.vmap(grads_of_last_bias, (None, 0, 0, 1)))
        samples = cast(batch, jnp.float64)
        got = np.asarray(sample_grads(learner(nets, jnp.float64), samples, *cast((noise, z), jnp.float64)))
    target = targets_of(nets, batch, noise, z).target
    mean, std = valued(nets.critics, batch.obs, batch.action)
    assert np.all(np.ptp(std, axis=1) == 0.0)
    np.testing.assert_allclose(got[:, :, 0].T, -(1e12 + 0.1) / (std**2 + 0.1) * (target - mean), rtol=1e-9)


def test_b_is_set_by_the_first_minibatch_and_follows_the_next_ones() -> None:
    minibatches = np.array([[[1.0, 3.0], [4.0, 4.0]], [[0.0, 0.0], [8.0, 4.0]], [[5.0, 7.0], [0.0, 2.0]]])
    b, trace = jnp.full(2, dsac_t.UNSET), []
    for std in minibatches:
        b = dsac_t.running_std(b, jnp.asarray(std), 0.25)
        trace.append(b)
    # 2; 3/4 of it; 3/4 of that and 1/4 of 6. 4; 3 and 6/4; 3/4 of 4.5 and 1/4.
    np.testing.assert_allclose(trace, [[2.0, 4.0], [1.5, 4.5], [2.625, 3.625]], rtol=1e-6)
    grad = jax.grad(lambda std: jnp.sum(dsac_t.running_std(b, std, 0.25)))(jnp.ones((2, 3)))
    np.testing.assert_array_equal(grad, 0.0)


def test_starts_with_two_critics_that_differ_from_each_other_but_not_from_their_targets() -> None:
    algorithm = dsac_t.make(dsac_t.Config(hidden_sizes=(8,), buffer_size=4))
    state = jax.jit(lambda key: algorithm.init(key, Task(Toy()), dsac_t.Hypers()))(jax.random.key(0)).learner
    state = params_of(state)
    chex.assert_trees_all_equal(state.critics, state.target_critics)
    chex.assert_trees_all_equal(state.actor, state.target_actor)
    assert not np.array_equal(*state.critics["params"]["Dense_0"]["kernel"])
    np.testing.assert_array_equal(state.b, [dsac_t.UNSET] * 2)
    assert float(state.log_alpha) == pytest.approx(1.0, rel=1e-6)


# Whole updates, with everything that surrounds the losses.


@pytest.mark.parametrize(
    ("gradient_steps", "learn_alpha", "huber"), [(3, True, False), (1, False, True)], ids=["published", "huber"]
)
def test_whole_updates_from_the_warm_up_on(gradient_steps: int, learn_alpha: bool, huber: bool) -> None:
    """Three gradient steps an update with a delay of two: the delayed ones lie elsewhere in every update."""

    def critic_step(nets: Nets, batch: Transition, noise: FloatArray, z_key: jax.Array) -> tuple[Tree, dict[str, Any]]:
        z = np.asarray(jax.random.normal(z_key, (2, UPDATE_BATCH)))
        _, grads, b = critics_reference(nets, batch, noise, z, huber)
        return grads, {"b": b}

    config = dsac_t.Config(**SIZES, gradient_steps=gradient_steps, learn_alpha=learn_alpha, huber=huber)
    rng = np.random.default_rng(1)
    nets = random_nets(rng, MODERATE)._replace(b=np.array([-1.0, -1.0]))
    assert_learns_as(Student(nets, config, HYPERS, critic_step), dsac_t.make(config), learner, rng)


def test_a_buffer_that_does_not_hold_whole_steps_is_refused() -> None:
    with pytest.raises(UserError, match="buffer_size=10 is not a multiple of num_envs=3"):
        dsac_t.make(dsac_t.Config(num_envs=3, buffer_size=10))
    with pytest.raises(UserError, match="num_steps=0 must be at least 1"):
        dsac_t.make(dsac_t.Config(num_steps=0))


def test_the_buffer_fits_the_budget() -> None:
    """Whole updates, since a budget is rounded up to them."""
    config = dsac_t.Config(num_envs=3, num_steps=4, buffer_size=3000)
    assert dsac_t.fit(config, 100).buffer_size == 108
    assert dsac_t.fit(config, 1_000_000).buffer_size == 3000
