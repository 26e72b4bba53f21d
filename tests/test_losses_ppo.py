"""PPO against an independent reference in NumPy and float64: the loss, its whole gradient, and one whole update.

The reference is written from the paper (Schulman et al. 2017) and the details listed in `ppo.py`,
with every derivative by hand. A central difference of the reference's own loss guards those derivatives.
"""

from __future__ import annotations

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
    backward,
    cast,
    dot,
    exact,
    forward,
    mlp,
    normal,
    slope,
    toy_transition,
)

from envs.core import Box, Discrete, EpisodeState
from rlsuite.algorithms.on_policy import ppo
from rlsuite.core import Clock, Task
from rlsuite.pieces import on_policy
from rlsuite.pieces.actor_critic import Networks
from rlsuite.pieces.normalize import RunningStats
from rlsuite.pieces.rollout import EnvCarry
from rlsuite.pieces.trained import Trained

HIDDEN = (8, 7)
OBS_DIM = 3
BATCH = 64
SPACES: dict[str, Discrete | Box] = {"discrete": Discrete(4), "continuous": Toy().action_space}
HYPERS = ppo.Hypers(entropy_coef=0.03, value_coef=0.7, clip_epsilon=0.2)

every_space = pytest.mark.parametrize("space", SPACES)
every_flag = pytest.mark.parametrize(
    ("clip_value", "normalize_advantage"), [(True, True), (True, False), (False, True), (False, False)]
)


class Samples(NamedTuple):
    """A minibatch, `[batch, ...]`."""

    obs: FloatArray
    action: Any
    log_prob: FloatArray
    value: FloatArray
    advantage: FloatArray
    target: FloatArray


class Reference(NamedTuple):
    loss: float
    grads: Tree
    metrics: dict[str, float]
    ratio: FloatArray
    """`[batch]`"""
    advantage: FloatArray
    """`[batch]` as it enters the objective"""
    value_move: FloatArray
    """`[batch]` the new value minus the old one"""


def policy_terms(net: Tree, obs: FloatArray, action: Any) -> tuple[FloatArray, FloatArray, Any]:
    """log pi(action) and entropy, both `[batch]`, and a function that turns d loss / d of each into gradients."""
    out, inputs = forward(net["policy"], obs, "tanh")
    if "log_std" in net:
        std = np.exp(net["log_std"])
        z = (action - out) / std
        log_prob = np.sum(-0.5 * z**2 - np.log(std * np.sqrt(2.0 * np.pi)), axis=1)
        entropy = np.full(len(obs), np.sum(0.5 * np.log(2.0 * np.pi * np.e * std**2)))

        def gradient(d_log_prob: FloatArray, d_entropy: FloatArray) -> Tree:
            policy, _ = backward(net["policy"], inputs, d_log_prob[:, None] * z / std, "tanh")
            # d log pi / d log std = z^2 - 1, d entropy / d log std = 1
            log_std = np.sum(d_log_prob[:, None] * (z**2 - 1.0) + d_entropy[:, None], axis=0)
            return {"policy": policy, "log_std": log_std}

        return log_prob, entropy, gradient

    weights = np.exp(out - out.max(axis=1, keepdims=True))
    p = weights / weights.sum(axis=1, keepdims=True)
    entropy = -np.sum(p * np.log(p), axis=1)
    chosen = np.eye(out.shape[1])[action]

    def gradient_of_logits(d_log_prob: FloatArray, d_entropy: FloatArray) -> Tree:
        # d log p_a / d logits = 1_a - p, d entropy / d logits = -p (log p + entropy)
        d_logits = d_log_prob[:, None] * (chosen - p) - d_entropy[:, None] * p * (np.log(p) + entropy[:, None])
        return {"policy": backward(net["policy"], inputs, d_logits, "tanh")[0]}

    return np.log(np.sum(chosen * p, axis=1)), entropy, gradient_of_logits


def reference(params: Tree, samples: Samples, config: ppo.Config, hypers: ppo.Hypers) -> Reference:
    """Loss, gradient and metrics of one minibatch."""
    net, n, epsilon = params["params"], len(samples.obs), float(hypers.clip_epsilon)
    log_prob, entropy, policy_gradient = policy_terms(net, samples.obs, samples.action)
    value, critic_inputs = forward(net["critic"], samples.obs, "tanh")
    value = value[:, 0]

    advantage = samples.advantage
    if config.normalize_advantage:
        deviation = np.sqrt(np.sum((advantage - advantage.mean()) ** 2) / (n - 1))
        advantage = (advantage - advantage.mean()) / (deviation + 1e-8)

    # The objective is flat where moving on would gain from a ratio that is already too far from 1.
    ratio = np.exp(log_prob - samples.log_prob)
    flat = np.where(advantage > 0.0, ratio > 1.0 + epsilon, ratio < 1.0 - epsilon)
    bound = np.where(advantage > 0.0, 1.0 + epsilon, 1.0 - epsilon)
    policy_loss = -np.mean(np.where(flat, bound, ratio) * advantage)
    d_log_prob = np.where(flat, 0.0, -ratio * advantage) / n

    error = value - samples.target
    d_value, square = error, error**2
    move = value - samples.value
    if config.clip_value:
        stopped = samples.value + np.sign(move) * np.minimum(np.abs(move), epsilon) - samples.target
        worse = np.abs(stopped) > np.abs(error)
        square = np.where(worse, stopped**2, error**2)
        d_value = np.where(worse, 0.0, error)
    value_loss = np.mean(square) / 2.0

    d_entropy = np.full(n, -float(hypers.entropy_coef) / n)
    d_critic = float(hypers.value_coef) * d_value[:, None] / n
    grads = policy_gradient(d_log_prob, d_entropy)
    grads["critic"] = backward(net["critic"], critic_inputs, d_critic, "tanh")[0]
    loss = policy_loss + float(hypers.value_coef) * value_loss - float(hypers.entropy_coef) * entropy.mean()
    metrics = {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy.mean(),
        "approx_kl": np.mean(ratio - 1.0 - np.log(ratio)),
        "clip_fraction": np.mean(np.abs(ratio - 1.0) > epsilon),
    }
    return Reference(loss, {"params": grads}, metrics, ratio, advantage, move)


def random_params(rng: np.random.Generator, space: Discrete | Box) -> Tree:
    outputs = space.n if isinstance(space, Discrete) else space.dim
    params = {"policy": mlp(rng, OBS_DIM, *HIDDEN, outputs), "critic": mlp(rng, OBS_DIM, *HIDDEN, 1)}
    if isinstance(space, Box):
        params["log_std"] = 0.4 * normal(rng, outputs)
    return {"params": jax.tree.map(exact, params)}


def problem(seed: int, space: Discrete | Box) -> tuple[Tree, Samples]:
    """Parameters, and samples whose old log-probabilities and values are a little off the present ones."""
    rng = np.random.default_rng(seed)
    params, obs = random_params(rng, space), normal(rng, BATCH, OBS_DIM)
    action: Any = rng.integers(space.n, size=BATCH) if isinstance(space, Discrete) else normal(rng, BATCH, space.dim)
    log_prob, _, _ = policy_terms(params["params"], obs, action)
    value = forward(params["params"]["critic"], obs, "tanh")[0][:, 0]
    old_value = value + 0.3 * normal(rng, BATCH)
    samples = Samples(
        obs=obs,
        action=action,
        log_prob=exact(log_prob + 0.3 * normal(rng, BATCH)),
        value=exact(old_value),
        advantage=exact(0.5 + 2.0 * normal(rng, BATCH)),
        target=exact(old_value + 0.6 * normal(rng, BATCH)),
    )
    return params, samples


jax_loss = jax.jit(jax.value_and_grad(ppo.loss, has_aux=True), static_argnums=(1, 3))


def compare(seed: int, space_name: str, config: ppo.Config, dtype: Any, tolerance: float) -> None:
    """Loss, metrics and gradient of the learner, computed in `dtype`, against the reference."""
    space = SPACES[space_name]
    params, samples = problem(seed, space)
    want = reference(params, samples, config, HYPERS)
    networks = Networks(HIDDEN, space)
    with jax.default_matmul_precision("highest"):
        (loss, metrics), grads = jax_loss(
            cast(params, dtype),
            networks,
            on_policy.Batch(dist=(), **cast(samples, dtype)._asdict()),
            config,
            cast(HYPERS, dtype),
        )
    assert loss.dtype == dtype
    assert_close(grads, want.grads, tolerance, dtype)
    # These are means of terms of order 1 that may cancel, so the tolerance is absolute as well as relative.
    got = {"loss": loss, **metrics}
    assert {name: float(x) for name, x in got.items()} == pytest.approx(
        {"loss": want.loss, **want.metrics}, rel=tolerance, abs=tolerance
    )


@every_space
@every_flag
def test_loss_and_gradient_in_float64(space: str, clip_value: bool, normalize_advantage: bool) -> None:
    config = ppo.Config(hidden_sizes=HIDDEN, clip_value=clip_value, normalize_advantage=normalize_advantage)
    with jax.enable_x64(True):
        for seed in range(5):
            compare(seed, space, config, jnp.float64, 1e-11)


@every_space
@every_flag
def test_loss_and_gradient_in_float32(space: str, clip_value: bool, normalize_advantage: bool) -> None:
    config = ppo.Config(hidden_sizes=HIDDEN, clip_value=clip_value, normalize_advantage=normalize_advantage)
    for seed in range(5):
        compare(seed, space, config, jnp.float32, 1e-5)


@every_space
def test_the_samples_reach_every_branch(space: str) -> None:
    for seed in range(5):
        params, samples = problem(seed, SPACES[space])
        got = reference(params, samples, ppo.Config(hidden_sizes=HIDDEN), HYPERS)
        for gains in (got.advantage > 0.0, got.advantage < 0.0):
            for side in (got.ratio > 1.2, got.ratio < 0.8, np.abs(got.ratio - 1.0) < 0.2):
                assert np.sum(gains & side) >= 2
        away = np.sign(got.value_move) == np.sign(samples.value + got.value_move - samples.target)
        far = np.abs(got.value_move) > 0.2
        for case in (far & away, far & ~away, ~far):
            assert np.sum(case) >= 2


@every_space
@every_flag
def test_the_reference_has_the_gradient_of_its_own_loss(
    space: str, clip_value: bool, normalize_advantage: bool
) -> None:
    config = ppo.Config(hidden_sizes=HIDDEN, clip_value=clip_value, normalize_advantage=normalize_advantage)
    params, samples = problem(7, SPACES[space])
    rng = np.random.default_rng(8)
    grads = reference(params, samples, config, HYPERS).grads
    for _ in range(5):
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
        numeric = slope(lambda p: reference(p, samples, config, HYPERS).loss, params, direction)
        assert numeric == pytest.approx(dot(grads, direction), rel=1e-6, abs=1e-8)


# One whole update, with everything that surrounds the loss.

NUM_ENVS, NUM_STEPS, EPOCHS, MINIBATCHES = 4, 8, 2, 2
UPDATE_CONFIG = ppo.Config(NUM_ENVS, NUM_STEPS, EPOCHS, MINIBATCHES, HIDDEN)


class Numbers(NamedTuple):
    """A state's numbers."""

    params: Tree
    obs_stats: tuple[FloatArray, FloatArray, float]
    """mean, variance, weight"""
    return_stats: tuple[FloatArray, FloatArray, float]
    discounted_return: FloatArray


def merged(stats: tuple[FloatArray, FloatArray, float], batch: FloatArray) -> tuple[FloatArray, FloatArray, float]:
    """Mean, variance and weight with `batch` added, by way of the first two raw moments."""
    mean, var, weight = stats
    total = weight + len(batch)
    new_mean = (weight * mean + batch.sum(axis=0)) / total
    second = (weight * (var + mean**2) + (batch**2).sum(axis=0)) / total
    return new_mean, second - new_mean**2, total


def updated(key: jax.Array, numbers: Numbers, hypers: ppo.Hypers, progress: float) -> tuple[Numbers, list[float]]:
    """The numbers after one update from fresh episodes, and the gradient norms on the way.

    Random numbers come from JAX by the learner's own key schedule: they are the only thing that the two share.
    """
    net = numbers.params["params"]
    std = np.exp(net["log_std"])
    collect_key, learn_key = jax.random.split(key)

    def seen(obs: FloatArray) -> FloatArray:
        mean, var, _ = numbers.obs_stats
        return np.clip((obs - mean) / np.sqrt(var + 1e-8), -10.0, 10.0)

    def values(obs: FloatArray) -> FloatArray:
        return forward(net["critic"], seen(obs), "tanh")[0][:, 0]

    # Collect: lists over time of [num_envs, ...].
    obs, steps, running = np.tile(START, (NUM_ENVS, 1)), np.zeros(NUM_ENVS), numbers.discounted_return
    seen_obs, raw_obs, actions, log_probs, value, next_value = [], [], [], [], [], []
    rewards, terminations, dones, sums = [], [], [], []
    for step_key in jax.random.split(collect_key, NUM_STEPS):
        policy_key, _ = jax.random.split(step_key)
        noise = np.asarray(jax.random.normal(policy_key, (NUM_ENVS, 3)))
        action = forward(net["policy"], seen(obs), "tanh")[0] + std * noise
        next_obs, reward, terminated = toy_transition(obs, np.clip(action, LOW, HIGH))
        steps = steps + 1
        done = terminated | (steps >= TIME_LIMIT)
        running = hypers.discount * running + reward
        raw_obs.append(obs)
        seen_obs.append(seen(obs))
        actions.append(action)
        log_probs.append(policy_terms(net, seen(obs), action)[0])
        value.append(values(obs))
        next_value.append(values(next_obs))
        rewards.append(reward)
        terminations.append(terminated)
        dones.append(done)
        sums.append(running)
        running = np.where(done, 0.0, running)
        obs, steps = np.where(done[:, None], START, next_obs), np.where(done, 0, steps)
    assert np.any(terminations) and np.any(np.array(dones) & ~np.array(terminations))
    assert np.any(np.array(actions) < LOW) and np.any(np.array(actions) > HIGH)

    # Rewards are scaled by statistics that include this rollout.
    return_stats = merged(numbers.return_stats, np.concatenate(sums))
    reward_array = np.clip(np.array(rewards) / np.sqrt(return_stats[1] + 1e-8), -10.0, 10.0)

    # A_t is the sum over k of (discount lambda)^k delta_{t+k}, as far as the end of the episode.
    bootstrap = np.where(terminations, 0.0, next_value)
    delta = reward_array + hypers.discount * bootstrap - np.array(value)
    advantage = np.zeros((NUM_STEPS, NUM_ENVS))
    for t in range(NUM_STEPS):
        for env in range(NUM_ENVS):
            for k in range(t, NUM_STEPS):
                advantage[t, env] += (hypers.discount * hypers.gae_lambda) ** (k - t) * delta[k, env]
                if dones[k][env]:
                    break

    columns = (seen_obs, actions, log_probs, value, advantage, advantage + np.array(value))
    rows = Samples(*(np.concatenate(list(column)) for column in columns))

    learning_rate = hypers.learning_rate * (1.0 - progress)
    params, adam, norms = numbers.params, Adam(numbers.params, eps=1e-5), []
    for epoch_key in jax.random.split(learn_key, EPOCHS):
        order = np.asarray(jax.random.permutation(epoch_key, NUM_ENVS * NUM_STEPS))
        for chosen in np.split(order, MINIBATCHES):
            grads = reference(params, Samples(*(x[chosen] for x in rows)), UPDATE_CONFIG, hypers).grads
            norms.append(np.sqrt(dot(grads, grads)))
            if norms[-1] > hypers.max_grad_norm:
                grads = jax.tree.map(
                    np.multiply, grads, jax.tree.map(lambda _: hypers.max_grad_norm / norms[-1], grads)
                )
            params = adam.step(params, grads, learning_rate)
    return Numbers(params, merged(numbers.obs_stats, np.concatenate(raw_obs)), return_stats, running), norms


def test_one_whole_update() -> None:
    rng = np.random.default_rng(0)
    space = SPACES["continuous"]
    # The statistics are far from the identity, and narrow enough that some observations are clipped.
    numbers = Numbers(
        params=random_params(rng, space),
        obs_stats=(np.array([0.2, -0.1, 0.4]), np.array([0.5, 2.0, 0.001]), 20.0),
        return_stats=(np.array(-0.3), np.array(0.8), 11.0),
        discounted_return=normal(rng, NUM_ENVS),
    )
    progress = 0.25
    algorithm, task = ppo.make(UPDATE_CONFIG), Task(Toy())
    clipped = []
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        update = jax.jit(algorithm.update)
        for seed, max_grad_norm in enumerate((0.3, 0.5, 100.0)):
            hypers = HYPERS._replace(learning_rate=0.01, discount=0.9, gae_lambda=0.8, max_grad_norm=max_grad_norm)
            params, obs_stats, return_stats, discounted_return = cast(tuple(numbers), jnp.float64)
            start, steps = cast((np.tile(START, (NUM_ENVS, 1)), np.zeros(NUM_ENVS, np.int32)), jnp.float64)
            state = on_policy.State(
                learner=Trained(params, jax.jit(ppo.optimizer(hypers, 0.0).init)(params)),
                obs_stats=RunningStats(*obs_stats),
                return_stats=RunningStats(*return_stats),
                discounted_return=discounted_return,
                envs=EnvCarry(EpisodeState(start, steps), start),
            )
            key, clock = jax.random.key(seed), Clock(jnp.int32(3), jnp.asarray(progress))
            fresh = jax.eval_shape(algorithm.init, key, task, hypers)
            chex.assert_trees_all_equal_structs(fresh, state)
            new, _ = update(key, task, state, cast(hypers, jnp.float64), clock)
            want, norms = updated(key, numbers, hypers, progress)
            clipped += [norm > max_grad_norm for norm in norms]

            got = Numbers(new.learner.params, tuple(new.obs_stats), tuple(new.return_stats), new.discounted_return)
            assert_moved(got.params, want.params, numbers.params, 1e-8)
            assert_close(got[1:], want[1:], 1e-11)
    assert any(clipped) and not all(clipped)
