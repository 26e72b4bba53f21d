"""SAC against an independent reference in NumPy and float64: the three losses, their whole gradients, whole updates.

The reference is written from the paper (Haarnoja et al. 2018, arXiv 1812.05905) and the details listed in `sac.py`.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_critics import (
    ACTION_DIM,
    BATCH,
    CENTER,
    HALF_WIDTH,
    endings,
    polyak,
    q_values,
    random_critics,
    random_transitions,
    squared_errors,
)
from numpy_nets import HIGH, LOW, Adam, FloatArray, Toy, Tree, assert_close, assert_moved, cast, exact, normal
from numpy_off_policy import CAPACITY, NUM_ENVS, UPDATES_DONE, past, policy_noise, stepped
from numpy_squashed import SquashedGaussian, actor_reference, alpha_reference, random_actor, soft_target
from reference import assert_reached, computing, value_and_grad
from trained_states import params_of, with_adam

from rlsuite.algorithms.off_policy import sac
from rlsuite.core import Clock, Task, Transition
from rlsuite.pieces import squashed as squashed_policy

HIDDEN = (6, 5)
SEEDS = range(5)
DISCOUNT = 0.93
TARGET_ENTROPY = -0.7 * ACTION_DIM
CONFIG = sac.Config(hidden_sizes=HIDDEN)
POLICY = SquashedGaussian(-20.0, 2.0, CENTER, HALF_WIDTH)
WIDE = (-19.9, 1.9, -1.0)
"""Where the actor's three log standard deviations lie: around the lower bound, around the upper one, between them."""
MODERATE = (-2.0, 1.9, -1.0)
"""The same for float32, where mean + exp(-20) noise rounds to the mean, so that no such comparison has a meaning."""


class Nets(NamedTuple):
    """What gradient steps change."""

    actor: Tree
    critics: Tree
    """both critics, stacked on a leading axis of 2"""
    target_critics: Tree
    log_alpha: FloatArray


def critic_reference(nets: Nets, batch: Transition, noise: FloatArray) -> tuple[float, Tree]:
    """The critics' loss and its gradient."""
    target = soft_target(POLICY, nets, batch, noise, DISCOUNT)
    return value_and_grad(lambda critics: squared_errors(critics, batch, target), nets.critics)


def random_nets(rng: np.random.Generator, log_stds: tuple[float, ...]) -> Nets:
    critics, targets = (random_critics(rng, 2, HIDDEN, 0.0, LOW, HIGH) for _ in range(2))
    return Nets(random_actor(rng, HIDDEN, log_stds), critics, targets, exact(np.log(0.4)))


def problem(seed: int, log_stds: tuple[float, ...] = WIDE) -> tuple[Nets, Transition, FloatArray]:
    rng = np.random.default_rng(seed)
    return random_nets(rng, log_stds), random_transitions(rng), normal(rng, BATCH, ACTION_DIM)


def learner(nets: Nets, dtype: Any) -> sac.Learner:
    """The learner's state with these networks and fresh optimisers."""
    return with_adam(sac.Learner(*cast(tuple(nets), dtype)))


Results = tuple[tuple[Any, Tree], tuple[Any, Tree, Any], tuple[Any, Any]]


@jax.jit
def jax_losses(state: sac.Learner, batch: Transition, noise: Any, discount: Any, target_entropy: Any) -> Results:
    """The three losses of the learner and their gradients."""
    networks, params = sac.networks_of(CONFIG, Toy()), params_of(state)
    (critic_loss, _), critic_grads = jax.value_and_grad(sac.critic_loss, has_aux=True)(
        params.critics, networks, state, batch, noise, discount
    )
    (actor_loss, log_prob), actor_grads = jax.value_and_grad(squashed_policy.actor_loss, has_aux=True)(
        params.actor, *networks, params.critics, params.log_alpha, batch.obs, noise
    )
    alpha = jax.value_and_grad(sac.alpha_loss)(params.log_alpha, log_prob, target_entropy)
    return (critic_loss, critic_grads), (actor_loss, actor_grads, log_prob), alpha


@functools.cache
def want_losses(seed: int, log_stds: tuple[float, ...]) -> Any:
    nets, batch, noise = problem(seed, log_stds)
    log_prob = POLICY.sample(nets.actor, batch.obs, noise)[1]
    return (
        critic_reference(nets, batch, noise),
        (*actor_reference(POLICY, nets, batch.obs, noise), log_prob),
        alpha_reference(POLICY, nets, batch.obs, noise, TARGET_ENTROPY),
    )


@pytest.mark.parametrize(
    ("log_stds", "dtype", "tolerance"),
    # The learner forms (u - mean) / std, which at std = exp(-20) has 8 digits fewer than float64.
    [(MODERATE, np.float64, 1e-11), (WIDE, np.float64, 1e-6), (MODERATE, np.float32, 1e-5)],
    ids=["float64", "float64-wide", "float32"],
)
def test_losses_and_gradients(log_stds: tuple[float, ...], dtype: Any, tolerance: float) -> None:
    for seed in SEEDS:
        nets, *rest = problem(seed, log_stds)
        with computing(dtype):
            got = jax_losses(learner(nets, dtype), *cast((*rest, DISCOUNT, TARGET_ENTROPY), dtype))
        assert_close(got, want_losses(seed, log_stds), tolerance, dtype)


def cases_of(seed: int) -> dict[str, Any]:
    """Which samples of a problem reach which branch."""
    nets, batch, noise = problem(seed)
    q_1, q_2 = q_values(nets.critics, batch.obs, POLICY.sample(nets.actor, batch.obs, noise)[0])
    next_action = POLICY.sample(nets.actor, batch.next_obs, noise)[0]
    next_q_1, next_q_2 = q_values(nets.target_critics, batch.next_obs, next_action)
    return {
        **POLICY.cases(nets.actor, batch.obs),
        "first critic smaller": q_1 < q_2,
        "second critic smaller": q_2 < q_1,
        "first target smaller": next_q_1 < next_q_2,
        "second target smaller": next_q_2 < next_q_1,
        **endings(batch),
    }


def test_the_samples_reach_every_branch() -> None:
    assert_reached(map(cases_of, SEEDS), 20)


# Whole updates, with everything that surrounds the losses.

GRADIENT_STEPS, UPDATE_BATCH = 4, 16
HYPERS = sac.Hypers(
    actor_learning_rate=0.003,
    critic_learning_rate=0.005,
    alpha_learning_rate=0.02,
    discount=DISCOUNT,
    tau=0.1,
    initial_alpha=0.4,
    target_entropy_scale=0.7,
)


def learned(nets: Nets, batches: list[Transition], noise_key: jax.Array, policy_delay: int, learn_alpha: bool) -> Nets:
    """The networks after the gradient steps of one update, from fresh optimisers.

    Random numbers come from JAX by the learner's own key schedule: they are the only thing that the two share.
    """
    critic_adam, actor_adam, alpha_adam = Adam(nets.critics), Adam(nets.actor), Adam(nets.log_alpha)
    keys = jax.random.split(noise_key, len(batches))
    for i, (batch, key) in enumerate(zip(batches, keys, strict=True)):
        critic_key, actor_key = jax.random.split(key)
        noise = np.asarray(jax.random.normal(critic_key, (UPDATE_BATCH, ACTION_DIM)))
        grads = critic_reference(nets, batch, noise)[1]
        critics = critic_adam.step(nets.critics, grads, HYPERS.critic_learning_rate)
        nets = nets._replace(critics=critics)

        if i % policy_delay == 0:
            for noise in np.asarray(jax.random.normal(actor_key, (policy_delay, UPDATE_BATCH, ACTION_DIM))):
                grads = actor_reference(POLICY, nets, batch.obs, noise)[1]
                grad = alpha_reference(POLICY, nets, batch.obs, noise, TARGET_ENTROPY)[1]
                nets = nets._replace(actor=actor_adam.step(nets.actor, grads, HYPERS.actor_learning_rate))
                if learn_alpha:
                    log_alpha = alpha_adam.step(nets.log_alpha, grad, HYPERS.alpha_learning_rate)
                    nets = nets._replace(log_alpha=log_alpha)

        nets = nets._replace(target_critics=polyak(nets.target_critics, critics, HYPERS.tau))
    return nets


@pytest.mark.parametrize(("policy_delay", "learn_alpha"), [(1, True), (2, False)])
def test_one_whole_update(policy_delay: int, learn_alpha: bool) -> None:
    config = sac.Config(
        num_envs=NUM_ENVS,
        gradient_steps=GRADIENT_STEPS,
        batch_size=UPDATE_BATCH,
        buffer_size=CAPACITY,
        warmup_steps=2 * NUM_ENVS,
        hidden_sizes=HIDDEN,
        policy_delay=policy_delay,
        learn_alpha=learn_alpha,
    )
    rng = np.random.default_rng(0)
    nets = random_nets(rng, MODERATE)
    algorithm, task, hypers = sac.make(config), Task(Toy()), HYPERS
    with computing(np.float64):
        before = past(rng)
        state = before.state(learner(nets, jnp.float64))
        fresh = jax.eval_shape(algorithm.init, jax.random.key(0), task, hypers)
        chex.assert_trees_all_equal_structs(fresh, state)
        key = jax.random.key(1)
        clock = Clock(jnp.int32(UPDATES_DONE), jnp.asarray(0.5))
        new, metrics = jax.jit(algorithm.update)(key, task, state, cast(hypers, jnp.float64), clock)

        collect_key, batch_key, noise_key = jax.random.split(key, 3)
        present = stepped(before, POLICY.sample(nets.actor, before.obs, policy_noise(collect_key))[0])
        batches = present.minibatches(batch_key, GRADIENT_STEPS, UPDATE_BATCH)
        want = learned(nets, batches, noise_key, policy_delay, learn_alpha)

    got = Nets(*params_of(new.learner))
    assert_moved(got, want, nets, 1e-8)
    assert float(metrics["alpha"]) == pytest.approx(np.exp(want.log_alpha), rel=1e-12)
    present.assert_is(new)
