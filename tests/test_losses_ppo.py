"""PPO against an independent reference in NumPy and float64: the loss, its whole gradient, and one whole update.

The reference is written from the paper (Schulman et al. 2017) and the details listed in `ppo.py`.
"""

from __future__ import annotations

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_nets import Adam, FloatArray, Toy, Tree, assert_close, assert_moved, cast, clipped, exact, normal
from numpy_on_policy import (
    BATCH,
    HIDDEN,
    NUM_ENVS,
    NUM_STEPS,
    OBS_DIM,
    SEEDS,
    SPACES,
    Statistics,
    assert_value_reaches_every_branch,
    every_space,
    policy_at,
    random_net,
    random_statistics,
    rollout,
    starting_state,
    state_value,
    value_loss,
)
from reference import absolute, assert_metrics, computing, grad, precisions

from envs.core import Box, Discrete
from rlsuite.algorithms.on_policy import ppo
from rlsuite.core import Clock, Task
from rlsuite.pieces.actor_critic import Networks
from rlsuite.pieces.on_policy import Batch
from rlsuite.pieces.trained import Trained

HYPERS = ppo.Hypers(entropy_coef=0.03, value_coef=0.7, clip_epsilon=0.2)
every_flag = pytest.mark.parametrize(
    ("clip_value", "normalize_advantage"), [(True, True), (True, False), (False, True), (False, False)]
)


def advantage_of(batch: Batch, config: ppo.Config) -> FloatArray:
    """As it enters the objective, `[batch]`."""
    if not config.normalize_advantage:
        return batch.advantage
    centered = batch.advantage - batch.advantage.mean()
    return centered / (np.sqrt(np.sum(centered**2) / (len(centered) - 1)) + 1e-8)


def reference(params: Tree, batch: Batch, config: ppo.Config, hypers: ppo.Hypers) -> tuple[Any, dict[str, Any]]:
    """Loss and metrics of one minibatch."""
    net, epsilon = params["params"], float(hypers.clip_epsilon)
    now, advantage = policy_at(net, batch.obs, batch.action), advantage_of(batch, config)
    ratio = np.exp(now.log_prob - batch.log_prob)
    # The objective is flat where moving on would gain from a ratio that is already too far from 1.
    flat = np.where(advantage > 0.0, ratio > 1.0 + epsilon, ratio < 1.0 - epsilon)
    bound = np.where(advantage > 0.0, 1.0 + epsilon, 1.0 - epsilon)
    metrics = {
        "policy_loss": -np.mean(np.where(flat, bound, ratio) * advantage),
        "value_loss": value_loss(net, batch, epsilon, config.clip_value),
        "entropy": np.mean(now.entropy),
        "approx_kl": np.mean(ratio - 1.0 - np.log(ratio)),
        "clip_fraction": np.mean(absolute(ratio - 1.0) > epsilon),
    }
    loss = metrics["policy_loss"] + float(hypers.value_coef) * metrics["value_loss"]
    return loss - float(hypers.entropy_coef) * metrics["entropy"], metrics


def gradient(params: Tree, batch: Batch, config: ppo.Config, hypers: ppo.Hypers) -> Tree:
    """Of the loss, by all parameters."""
    return grad(lambda p: reference(p, batch, config, hypers)[0], params)


def random_params(rng: np.random.Generator, space: Discrete | Box) -> Tree:
    return {"params": random_net(rng, space)}


def problem(seed: int, space: Discrete | Box) -> tuple[Tree, Batch]:
    """Parameters, and samples whose old log-probabilities and values are a little off the present ones."""
    rng = np.random.default_rng(seed)
    params, obs = random_params(rng, space), normal(rng, BATCH, OBS_DIM)
    action: Any = rng.integers(space.n, size=BATCH) if isinstance(space, Discrete) else normal(rng, BATCH, space.dim)
    old_value = state_value(params["params"], obs) + 0.3 * normal(rng, BATCH)
    return params, Batch(
        obs=obs,
        action=action,
        dist=(),
        log_prob=exact(policy_at(params["params"], obs, action).log_prob + 0.3 * normal(rng, BATCH)),
        value=exact(old_value),
        advantage=exact(0.5 + 2.0 * normal(rng, BATCH)),
        target=exact(old_value + 0.6 * normal(rng, BATCH)),
    )


@functools.cache
def want_loss(seed: int, space: str, config: ppo.Config) -> tuple[dict[str, Any], Tree]:
    params, batch = problem(seed, SPACES[space])
    loss, metrics = reference(params, batch, config, HYPERS)
    return {"loss": loss, **metrics}, gradient(params, batch, config, HYPERS)


jax_loss = jax.jit(jax.value_and_grad(ppo.loss, has_aux=True), static_argnums=(1, 3))


@every_space
@every_flag
@precisions(in_float64=1e-11)
def test_loss_and_gradient(
    space: str, clip_value: bool, normalize_advantage: bool, dtype: Any, tolerance: float
) -> None:
    config = ppo.Config(hidden_sizes=HIDDEN, clip_value=clip_value, normalize_advantage=normalize_advantage)
    networks = Networks(HIDDEN, SPACES[space])
    for seed in SEEDS:
        params, batch = problem(seed, SPACES[space])
        want_metrics, want_grads = want_loss(seed, space, config)
        with computing(dtype):
            (loss, metrics), grads = jax_loss(
                cast(params, dtype), networks, cast(batch, dtype), config, cast(HYPERS, dtype)
            )
        assert loss.dtype == dtype
        assert_close(grads, want_grads, tolerance, dtype)
        assert_metrics({"loss": loss, **metrics}, want_metrics, tolerance)


@every_space
def test_the_samples_reach_every_branch(space: str) -> None:
    for seed in SEEDS:
        params, batch = problem(seed, SPACES[space])
        advantage = advantage_of(batch, ppo.Config())
        ratio = np.exp(policy_at(params["params"], batch.obs, batch.action).log_prob - batch.log_prob)
        for gains in (advantage > 0.0, advantage < 0.0):
            for side in (ratio > 1.2, ratio < 0.8, np.abs(ratio - 1.0) < 0.2):
                assert np.sum(gains & side) >= 2
        assert_value_reaches_every_branch(params["params"], batch, 0.2)


# One whole update, with everything that surrounds the loss.

EPOCHS, MINIBATCHES, PROGRESS = 2, 2, 0.25
UPDATE_CONFIG = ppo.Config(NUM_ENVS, NUM_STEPS, EPOCHS, MINIBATCHES, HIDDEN)


def updated(
    key: jax.Array, params: Tree, statistics: Statistics, hypers: ppo.Hypers
) -> tuple[Tree, Statistics, list[float]]:
    """Parameters and statistics after one update from fresh episodes, and the gradient norms on the way."""
    collect_key, learn_key = jax.random.split(key)
    rows, statistics = rollout(collect_key, params["params"], statistics, hypers)
    adam, norms = Adam(params, eps=1e-5), []
    for epoch_key in jax.random.split(learn_key, EPOCHS):
        order = np.asarray(jax.random.permutation(epoch_key, NUM_ENVS * NUM_STEPS))
        for chosen in np.split(order, MINIBATCHES):
            minibatch = jax.tree.map(lambda x, chosen=chosen: x[chosen], rows)
            grads, norm = clipped(gradient(params, minibatch, UPDATE_CONFIG, hypers), hypers.max_grad_norm)
            norms.append(norm)
            params = adam.step(params, grads, hypers.learning_rate * (1.0 - PROGRESS))
    return params, statistics, norms


def test_one_whole_update() -> None:
    rng = np.random.default_rng(0)
    params, statistics = random_params(rng, SPACES["continuous"]), random_statistics(rng)
    algorithm, task = ppo.make(UPDATE_CONFIG), Task(Toy())
    too_long = []
    with computing(np.float64):
        update = jax.jit(algorithm.update)
        for seed, max_grad_norm in enumerate((0.3, 0.5, 100.0)):
            hypers = HYPERS._replace(learning_rate=0.01, discount=0.9, gae_lambda=0.8, max_grad_norm=max_grad_norm)
            start = cast(params, jnp.float64)
            learner = Trained(start, jax.jit(ppo.optimizer(hypers, 0.0).init)(start))
            state = starting_state(learner, statistics)
            key, clock = jax.random.key(seed), Clock(jnp.int32(3), jnp.asarray(PROGRESS))
            fresh = jax.eval_shape(algorithm.init, key, task, hypers)
            chex.assert_trees_all_equal_structs(fresh, state)
            new, _ = update(key, task, state, cast(hypers, jnp.float64), clock)
            want_params, want_statistics, norms = updated(key, params, statistics, hypers)
            too_long += [norm > max_grad_norm for norm in norms]

            assert_moved(new.learner.params, want_params, params, 1e-8)
            got = Statistics(tuple(new.obs_stats), tuple(new.return_stats), new.discounted_return)
            assert_close(got, want_statistics, 1e-11)
    assert any(too_long) and not all(too_long)
