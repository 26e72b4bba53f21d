"""On-policy MDPO against an independent reference in NumPy and float64: losses, whole gradients, whole updates.

The reference is written from the specification of the method (Tomar et al. 2020, arXiv 2005.09814) and the details
listed in `mdpo.py`, with every derivative by hand. A central difference of the reference's own
losses guards those derivatives, and the divergences are held against their definitions as sums and integrals.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
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
from rlsuite.algorithms.on_policy import mdpo
from rlsuite.core import Clock, Task
from rlsuite.errors import UserError
from rlsuite.pieces import on_policy, tsallis
from rlsuite.pieces.actor_critic import Networks
from rlsuite.pieces.normalize import RunningStats
from rlsuite.pieces.rollout import EnvCarry
from rlsuite.pieces.trained import Trained

HIDDEN = (8, 7)
OBS_DIM = 3
BATCH = 64
SPACES: dict[str, Discrete | Box] = {"discrete": Discrete(4), "continuous": Toy().action_space}
HYPERS = mdpo.Hypers(clip_epsilon=0.2)
KL_WEIGHT = 2.5
SEEDS = range(5)

every_space = pytest.mark.parametrize("space", SPACES)
DIVERGENCES: dict[str, float | None] = {"kl": None, "order 1": 1.0, "order 0.6": 0.6, "order 1.7": 1.7}
every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES)


class Samples(NamedTuple):
    """A minibatch, `[batch, ...]`."""

    obs: FloatArray
    action: Any
    dist: tuple[FloatArray, ...]
    log_prob: FloatArray
    value: FloatArray
    advantage: FloatArray
    target: FloatArray


class Policy(NamedTuple):
    """A policy at some observations, and how to turn derivatives of its outputs into gradients."""

    dist: tuple[FloatArray, ...]
    log_prob: FloatArray
    """`[batch]` of the actions"""
    d_log_prob: tuple[FloatArray, ...]
    """d log_prob / d each output of `dist`, `[batch, n]`"""
    entropy: FloatArray
    gradient: Any
    """(d loss / d each output of `dist`) -> the gradient of the parameters"""


def policy_at(actor: Tree, obs: FloatArray, action: Any) -> Policy:
    out, inputs = forward(actor["policy"], obs, "tanh")
    if "log_std" in actor:
        log_std = np.tile(actor["log_std"], (len(obs), 1))
        z = (action - out) / np.exp(log_std)

        def gradient(d_mean: FloatArray, d_log_std: FloatArray) -> Tree:
            return {"policy": backward(actor["policy"], inputs, d_mean, "tanh")[0], "log_std": d_log_std.sum(axis=0)}

        return Policy(
            dist=(out, log_std),
            log_prob=np.sum(-0.5 * z**2 - log_std - 0.5 * np.log(2.0 * np.pi), axis=1),
            d_log_prob=(z / np.exp(log_std), z**2 - 1.0),
            entropy=np.sum(log_std + 0.5 * np.log(2.0 * np.pi * np.e), axis=1),
            gradient=gradient,
        )
    p = probabilities(out)
    chosen = np.eye(out.shape[1])[action]
    return Policy(
        dist=(out,),
        log_prob=np.log(np.sum(chosen * p, axis=1)),
        d_log_prob=(chosen - p,),
        entropy=-np.sum(p * np.log(p), axis=1),
        gradient=lambda d_logits: {"policy": backward(actor["policy"], inputs, d_logits, "tanh")[0]},
    )


def probabilities(logits: FloatArray) -> FloatArray:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def kl_reference(
    dist: tuple[FloatArray, ...], old: tuple[FloatArray, ...]
) -> tuple[FloatArray, tuple[FloatArray, ...]]:
    """KL(new || old) `[batch]`, and its derivative by each output of the new policy."""
    if len(dist) == 2:
        (mean, log_std), (old_mean, old_log_std) = dist, old
        var, old_var = np.exp(2.0 * log_std), np.exp(2.0 * old_log_std)
        terms = old_log_std - log_std + (var + (mean - old_mean) ** 2) / (2.0 * old_var) - 0.5
        return terms.sum(axis=1), ((mean - old_mean) / old_var, var / old_var - 1.0)
    p, old_p = probabilities(dist[0]), probabilities(old[0])
    value = np.sum(p * np.log(p / old_p), axis=1)
    return value, (p * (np.log(p / old_p) - value[:, None]),)


def tsallis_reference(log_prob: FloatArray, old_log_prob: FloatArray, q: float) -> tuple[FloatArray, FloatArray]:
    """The sampled divergence `[batch]` and its derivative by log_prob."""
    ratio = np.exp(log_prob - old_log_prob)
    if q == 1.0:
        return ratio * np.log(ratio) - ratio + 1.0, ratio * np.log(ratio)
    scale = np.maximum(np.exp(old_log_prob), 1e-6) ** (q - 1.0)
    value = scale * (ratio**q - 1.0 - q * (ratio - 1.0)) / (q - 1.0)
    return value, scale * q * (ratio**q - ratio) / (q - 1.0)


class ActorReference(NamedTuple):
    loss: float
    grads: Tree
    metrics: dict[str, float]


def actor_reference(actor: Tree, samples: Samples, kl_weight: float, q: float | None) -> ActorReference:
    """The policy's loss, gradient and metrics; `q` None penalises KL in closed form."""
    n = len(samples.obs)
    now = policy_at(actor, samples.obs, samples.action)
    ratio = np.exp(now.log_prob - samples.log_prob)
    d_log_prob = -ratio * samples.advantage / n
    if q is None:
        divergence, d_dist = kl_reference(now.dist, samples.dist)
        d_dist = tuple(kl_weight / n * d for d in d_dist)
    else:
        divergence, d_divergence = tsallis_reference(now.log_prob, samples.log_prob, q)
        d_log_prob = d_log_prob + kl_weight / n * d_divergence
        d_dist = tuple(np.zeros_like(x) for x in now.dist)
    # The loss is minimised: it is the negative of the objective.
    loss = -(np.mean(ratio * samples.advantage) - kl_weight * np.mean(divergence))
    d_out = [d + d_log_prob[:, None] * by for d, by in zip(d_dist, now.d_log_prob, strict=True)]
    metrics = {"policy_loss": loss, "divergence": np.mean(divergence), "entropy": np.mean(now.entropy)}
    return ActorReference(loss, now.gradient(*d_out), metrics)


def critic_reference(critic: Tree, samples: Samples, epsilon: float, clip: bool) -> tuple[float, Tree]:
    """The value's loss and gradient."""
    n = len(samples.obs)
    out, inputs = forward(critic["critic"], samples.obs, "tanh")
    value = out[:, 0]
    error = value - samples.target
    square, d_value = error**2, error
    if clip:
        move = value - samples.value
        stopped = samples.value + np.sign(move) * np.minimum(np.abs(move), epsilon) - samples.target
        worse = np.abs(stopped) > np.abs(error)
        square, d_value = np.where(worse, stopped**2, square), np.where(worse, 0.0, error)
    grads, _ = backward(critic["critic"], inputs, d_value[:, None] / n, "tanh")
    return float(np.mean(square) / 2.0), {"critic": grads}


def random_params(rng: np.random.Generator, space: Discrete | Box) -> tuple[Tree, Tree]:
    """(actor, critic)"""
    outputs = space.n if isinstance(space, Discrete) else space.dim
    actor = {"policy": mlp(rng, OBS_DIM, *HIDDEN, outputs)}
    if isinstance(space, Box):
        actor["log_std"] = exact(0.4 * normal(rng, outputs))
    critic = {"critic": mlp(rng, OBS_DIM, *HIDDEN, 1)}
    return actor, critic


def problem(seed: int, space: Discrete | Box) -> tuple[Tree, Tree, Samples]:
    """Actor, critic, and samples of an old policy and an old value that are a little off the present ones."""
    rng = np.random.default_rng(seed)
    actor, critic = random_params(rng, space)
    old_actor = jax.tree.map(lambda x: exact(x + 0.05 * normal(rng, *x.shape)), actor)
    obs = normal(rng, BATCH, OBS_DIM)
    action: Any
    if isinstance(space, Discrete):
        action = rng.integers(space.n, size=BATCH)
    else:
        # As the old policy takes them, but some so unlikely that the floor of the density counts.
        noise = normal(rng, BATCH, space.dim) * np.where(np.arange(BATCH) % 8 == 0, 3.0, 1.0)[:, None]
        mean = forward(old_actor["policy"], obs, "tanh")[0]
        action = exact(mean + np.exp(old_actor["log_std"]) * noise)
    old = policy_at(old_actor, obs, action)
    value = forward(critic["critic"], obs, "tanh")[0][:, 0]
    old_value = exact(value + 0.3 * normal(rng, BATCH))
    samples = Samples(
        obs=obs,
        action=action,
        dist=tuple(exact(x) for x in old.dist),
        log_prob=exact(old.log_prob),
        value=old_value,
        advantage=exact(0.5 + 2.0 * normal(rng, BATCH)),
        target=exact(old_value + 0.6 * normal(rng, BATCH)),
    )
    return actor, critic, samples


jax_actor_loss = jax.jit(jax.value_and_grad(mdpo.actor_loss, has_aux=True), static_argnums=(1, 5))
jax_critic_loss = jax.jit(jax.value_and_grad(mdpo.critic_loss, has_aux=True), static_argnums=(1, 4))


def close(got: dict[str, Any], want: dict[str, float], tolerance: float) -> None:
    """Means of terms of order 1 that may cancel, so the tolerance is absolute as well as relative."""
    assert {name: float(x) for name, x in got.items()} == pytest.approx(want, rel=tolerance, abs=tolerance)


def compare_actor(space_name: str, divergence: str, dtype: Any, tolerance: float) -> None:
    """Loss, metrics and gradient of the learner, computed in `dtype`, against the reference."""
    space, q = SPACES[space_name], DIVERGENCES[divergence]
    config = mdpo.Config(hidden_sizes=HIDDEN, tsallis=q is not None)
    hypers = HYPERS if q is None else HYPERS._replace(tsallis_q=q)
    for seed in SEEDS:
        actor, critic, samples = problem(seed, space)
        want = actor_reference(actor, samples, KL_WEIGHT, q)
        with jax.default_matmul_precision("highest"):
            (loss, metrics), grads = jax_actor_loss(
                cast(actor, dtype),
                Networks(HIDDEN, space),
                cast(critic, dtype),
                on_policy.Batch(*cast(tuple(samples), dtype)),
                cast(KL_WEIGHT, dtype),
                config,
                cast(hypers, dtype),
            )
        assert loss.dtype == dtype
        assert_close(grads, want.grads, tolerance, dtype)
        close({"loss": loss, **metrics}, {"loss": want.loss, **want.metrics}, tolerance)


def compare_critic(clip: bool, dtype: Any, tolerance: float) -> None:
    space = SPACES["continuous"]
    config = mdpo.Config(hidden_sizes=HIDDEN, clip_value=clip)
    for seed in SEEDS:
        actor, critic, samples = problem(seed, space)
        want_loss, want_grads = critic_reference(critic, samples, 0.2, clip)
        with jax.default_matmul_precision("highest"):
            (loss, metrics), grads = jax_critic_loss(
                cast(critic, dtype),
                Networks(HIDDEN, space),
                cast(actor, dtype),
                on_policy.Batch(*cast(tuple(samples), dtype)),
                config,
                cast(HYPERS, dtype),
            )
        assert_close(grads, want_grads, tolerance, dtype)
        close({"loss": loss, **metrics}, {"loss": want_loss, "value_loss": want_loss}, tolerance)


@every_space
@every_divergence
def test_policy_loss_and_gradient_in_float64(space: str, divergence: str) -> None:
    with jax.enable_x64(True):
        compare_actor(space, divergence, jnp.float64, 1e-11)


@every_space
@every_divergence
def test_policy_loss_and_gradient_in_float32(space: str, divergence: str) -> None:
    compare_actor(space, divergence, jnp.float32, 1e-5)


@pytest.mark.parametrize("clip", [True, False])
def test_value_loss_and_gradient(clip: bool) -> None:
    compare_critic(clip, jnp.float32, 1e-5)
    with jax.enable_x64(True):
        compare_critic(clip, jnp.float64, 1e-11)


@every_space
def test_the_samples_reach_every_branch(space: str) -> None:
    floored = 0
    for seed in SEEDS:
        actor, critic, samples = problem(seed, SPACES[space])
        ratio = np.exp(policy_at(actor, samples.obs, samples.action).log_prob - samples.log_prob)
        for gains in (samples.advantage > 0.0, samples.advantage < 0.0):
            for side in (ratio > 1.05, ratio < 0.95):
                assert np.sum(gains & side) >= 2
        move = forward(critic["critic"], samples.obs, "tanh")[0][:, 0] - samples.value
        away = np.sign(move) == np.sign(samples.value + move - samples.target)
        for case in (away & (np.abs(move) > 0.2), ~away & (np.abs(move) > 0.2), np.abs(move) < 0.2):
            assert np.sum(case) >= 2
        floored += int(np.sum(samples.log_prob < np.log(1e-6)))
    assert floored >= 5 or space == "discrete"


@every_space
@every_divergence
def test_the_reference_has_the_gradient_of_its_own_losses(space: str, divergence: str) -> None:
    actor, critic, samples = problem(7, SPACES[space])
    q = DIVERGENCES[divergence]
    rng = np.random.default_rng(8)
    grads = actor_reference(actor, samples, KL_WEIGHT, q).grads
    of_value = critic_reference(critic, samples, 0.2, True)[1]
    for _ in range(5):
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), actor)
        numeric = slope(lambda a: actor_reference(a, samples, KL_WEIGHT, q).loss, actor, direction)
        assert numeric == pytest.approx(dot(grads, direction), rel=1e-6, abs=1e-8)
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), critic)
        numeric = slope(lambda c: critic_reference(c, samples, 0.2, True)[0], critic, direction)
        assert numeric == pytest.approx(dot(of_value, direction), rel=1e-6, abs=1e-8)


# The divergences, against their definitions.


def test_kl_of_gaussians_is_its_integral() -> None:
    rng = np.random.default_rng(0)
    x = np.linspace(-40.0, 40.0, 200_001)

    def log_density(mean: float, log_std: float) -> FloatArray:
        return np.asarray(-0.5 * ((x - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2.0 * np.pi))

    with jax.enable_x64(True):
        for _ in range(3):
            mean, log_std, old_mean, old_log_std = rng.normal(size=(4, 2))
            want = 0.0
            for i in range(2):
                new, old = log_density(mean[i], log_std[i]), log_density(old_mean[i], old_log_std[i])
                want += np.sum(np.exp(new) * (new - old)) * (x[1] - x[0])
            got = mdpo.gaussian_kl(*map(jnp.asarray, (mean, log_std, old_mean, old_log_std)))
            assert float(got) == pytest.approx(want, rel=1e-8)


def test_sampled_divergence_is_that_of_tsallis_on_average() -> None:
    """Over all actions, each as often as the old policy takes it: a Bregman divergence, for q = 1 the KL divergence."""
    rng = np.random.default_rng(0)
    logits, old_logits = rng.normal(size=(2, 5))
    p, old = probabilities(logits), probabilities(old_logits)
    with jax.enable_x64(True):
        kl = float(mdpo.categorical_kl(jnp.asarray(logits), jnp.asarray(old_logits)))
        for q in (0.4, 1.0, 1.0 + 1e-9, 1.5, 2.0):
            terms = np.asarray(tsallis.tsallis_divergence(jnp.log(p), jnp.log(old), q))
            assert np.all(terms >= 0.0)
            got = np.sum(old * terms)
            if abs(q - 1.0) < 1e-6:
                assert got == pytest.approx(kl, rel=1e-7)
                assert kl == pytest.approx(np.sum(p * np.log(p / old)), rel=1e-12)
                continue

            def potential(x: FloatArray, q: float = q) -> float:
                return float(np.sum((x**q - x) / (q - 1.0)))

            slopes = (q * old ** (q - 1.0) - 1.0) / (q - 1.0)
            want = potential(p) - potential(old) - np.sum(slopes * (p - old))
            assert got == pytest.approx(want, rel=1e-10)


def test_no_order_makes_a_gradient_of_nothing() -> None:
    """Where the two policies are one, the divergence and its gradient are 0; the order 1 is no hole."""
    for q in (0.5, 1.0, 2.0):
        value, grad = jax.value_and_grad(tsallis.tsallis_divergence)(
            jnp.float32(-1.3), jnp.float32(-1.3), jnp.float32(q)
        )
        assert (float(value), float(grad)) == (0.0, 0.0)


def test_weight_of_the_divergence_stays_finite() -> None:
    weights = [float(tsallis.annealed(2.0, jnp.float32(progress))) for progress in (0.0, 0.5, 0.75, 1.0)]
    assert weights == pytest.approx([2.0, 4.0, 8.0, 2.0 / tsallis.MIN_STEP_SIZE])


def test_a_rollout_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(UserError, match="num_minibatches=3 does not divide num_envs \\* num_steps = 32"):
        mdpo.make(mdpo.Config(num_envs=4, num_steps=8, num_minibatches=3))
    with pytest.raises(UserError, match="sgd_steps=0 must be at least 1"):
        mdpo.make(mdpo.Config(sgd_steps=0))


# Whole updates, with everything that surrounds the losses.

NUM_ENVS, NUM_STEPS, SGD_STEPS, EPOCHS, MINIBATCHES = 4, 8, 3, 2, 2
PROGRESS = 0.25


class Numbers(NamedTuple):
    """A state's numbers."""

    actor: Tree
    critic: Tree
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


def updated(
    key: jax.Array, numbers: Numbers, config: mdpo.Config, hypers: mdpo.Hypers
) -> tuple[Numbers, dict[str, float], list[float]]:
    """The numbers after one update from fresh episodes, its metrics, and the policy's gradient norms on the way.

    Random numbers come from JAX by the learner's own key schedule: they are the only thing that the two share.
    """
    collect_key, learn_key = jax.random.split(key)

    def seen(obs: FloatArray) -> FloatArray:
        mean, var, _ = numbers.obs_stats
        return np.clip((obs - mean) / np.sqrt(var + 1e-8), -10.0, 10.0)

    def values(obs: FloatArray) -> FloatArray:
        return forward(numbers.critic["critic"], seen(obs), "tanh")[0][:, 0]

    # Collect: lists over time of [num_envs, ...].
    obs, steps, running = np.tile(START, (NUM_ENVS, 1)), np.zeros(NUM_ENVS), numbers.discounted_return
    seen_obs, raw_obs, actions, means, log_stds, log_probs, value, next_value = [], [], [], [], [], [], [], []
    rewards, terminations, dones, sums = [], [], [], []
    for step_key in jax.random.split(collect_key, NUM_STEPS):
        policy_key, _ = jax.random.split(step_key)
        noise = np.asarray(jax.random.normal(policy_key, (NUM_ENVS, 3)))
        mean = forward(numbers.actor["policy"], seen(obs), "tanh")[0]
        action = mean + np.exp(numbers.actor["log_std"]) * noise
        next_obs, reward, terminated = toy_transition(obs, np.clip(action, LOW, HIGH))
        steps = steps + 1
        done = terminated | (steps >= TIME_LIMIT)
        running = hypers.discount * running + reward
        raw_obs.append(obs)
        seen_obs.append(seen(obs))
        actions.append(action)
        means.append(mean)
        log_stds.append(np.tile(numbers.actor["log_std"], (NUM_ENVS, 1)))
        log_probs.append(policy_at(numbers.actor, seen(obs), action).log_prob)
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
    standardized = advantage
    if config.normalize_advantage:
        variance = np.mean((advantage - advantage.mean()) ** 2)
        standardized = (advantage - advantage.mean()) / (np.sqrt(variance) + 1e-8)

    def flat(column: Any) -> FloatArray:
        return np.concatenate(list(column))

    rows = Samples(
        obs=flat(seen_obs),
        action=flat(actions),
        dist=(flat(means), flat(log_stds)),
        log_prob=flat(log_probs),
        value=flat(value),
        advantage=flat(standardized),
        target=flat(advantage + np.array(value)),
    )

    learning_rate = hypers.learning_rate * ((1.0 - PROGRESS) if config.anneal_learning_rate else 1.0)
    kl_weight = hypers.kl_coef / (1.0 - PROGRESS) if config.anneal_kl else hypers.kl_coef
    metrics: dict[str, list[float]] = {}
    norms = []

    def note(new: dict[str, float]) -> None:
        for name, x in new.items():
            metrics.setdefault(name, []).append(x)

    # All of the policy's steps see the whole rollout and stay beside the policy that collected it.
    actor, adam = numbers.actor, Adam(numbers.actor, eps=1e-5)
    for _ in range(SGD_STEPS):
        _, grads, noted = actor_reference(actor, rows, kl_weight, hypers.tsallis_q if config.tsallis else None)
        note(noted)
        norm = np.sqrt(dot(grads, grads))
        norms.append(norm)
        shrink = min(1.0, hypers.max_grad_norm / norm)
        actor = adam.step(actor, jax.tree.map(lambda g, by=shrink: by * g, grads), learning_rate)

    critic, adam = numbers.critic, Adam(numbers.critic)
    for epoch_key in jax.random.split(learn_key, EPOCHS):
        order = np.asarray(jax.random.permutation(epoch_key, NUM_ENVS * NUM_STEPS))
        for chosen in np.split(order, MINIBATCHES):
            minibatch = jax.tree.map(lambda x, chosen=chosen: x[chosen], rows)
            loss, grads = critic_reference(critic, minibatch, hypers.clip_epsilon, config.clip_value)
            note({"value_loss": loss})
            critic = adam.step(critic, grads, learning_rate)

    obs_stats = merged(numbers.obs_stats, np.concatenate(raw_obs))
    after = Numbers(actor, critic, obs_stats, return_stats, running)
    return after, {name: float(np.mean(x)) for name, x in metrics.items()}, norms


@pytest.mark.parametrize("changes", [{}, {"tsallis": True, "anneal_kl": False, "anneal_learning_rate": True}])
def test_one_whole_update(changes: dict[str, bool]) -> None:
    config = mdpo.Config(NUM_ENVS, NUM_STEPS, SGD_STEPS, EPOCHS, MINIBATCHES, HIDDEN, **changes)
    rng = np.random.default_rng(0)
    actor, critic = random_params(rng, SPACES["continuous"])
    # The statistics are far from the identity, and narrow enough that some observations are clipped.
    numbers = Numbers(
        actor=actor,
        critic=critic,
        obs_stats=(np.array([0.2, -0.1, 0.4]), np.array([0.5, 2.0, 0.001]), 20.0),
        return_stats=(np.array(-0.3), np.array(0.8), 11.0),
        discounted_return=normal(rng, NUM_ENVS),
    )
    algorithm, task = mdpo.make(config), Task(Toy())
    clipped = []
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        update = jax.jit(algorithm.update)
        for seed, max_grad_norm in enumerate((0.3, 0.5, 100.0)):
            hypers = HYPERS._replace(
                learning_rate=0.01,
                discount=0.9,
                gae_lambda=0.8,
                kl_coef=1.7,
                tsallis_q=1.3,
                max_grad_norm=max_grad_norm,
            )
            actor, critic, obs_stats, return_stats, discounted_return = cast(tuple(numbers), jnp.float64)
            start, steps = cast((np.tile(START, (NUM_ENVS, 1)), np.zeros(NUM_ENVS, np.int32)), jnp.float64)
            state = on_policy.State(
                learner=mdpo.Learner(
                    Trained(actor, jax.jit(mdpo.actor_optimizer(hypers, 0.0).init)(actor)),
                    Trained(critic, jax.jit(optax.adam(0.0).init)(critic)),
                ),
                obs_stats=RunningStats(*obs_stats),
                return_stats=RunningStats(*return_stats),
                discounted_return=discounted_return,
                envs=EnvCarry(EpisodeState(start, steps), start),
            )
            key, clock = jax.random.key(seed), Clock(jnp.int32(3), jnp.asarray(PROGRESS))
            fresh = jax.eval_shape(algorithm.init, key, task, hypers)
            chex.assert_trees_all_equal_structs(fresh, state)
            new, metrics = update(key, task, state, cast(hypers, jnp.float64), clock)
            want, want_metrics, norms = updated(key, numbers, config, hypers)
            clipped += [norm > max_grad_norm for norm in norms]

            assert_moved(new.learner.actor.params, want.actor, numbers.actor, 1e-8)
            assert_moved(new.learner.critic.params, want.critic, numbers.critic, 1e-8)
            rest = (tuple(new.obs_stats), tuple(new.return_stats), new.discounted_return)
            assert_close(rest, tuple(want[2:]), 1e-11)
            close(metrics, want_metrics, 1e-9)
    assert any(clipped) and not all(clipped)
