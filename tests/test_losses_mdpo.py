"""On-policy MDPO against an independent reference in NumPy and float64: losses, whole gradients, whole updates.

The reference is written from the specification of the method (Tomar et al. 2020, arXiv 2005.09814) and the details
listed in `mdpo.py`. The divergences are held against their definitions as sums and integrals.
"""

from __future__ import annotations

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy_nets import (
    Adam,
    FloatArray,
    Toy,
    Tree,
    assert_close,
    assert_moved,
    cast,
    clipped,
    exact,
    normal,
    perceptron,
)
from numpy_on_policy import (
    BATCH,
    HIDDEN,
    NUM_ENVS,
    NUM_STEPS,
    OBS_DIM,
    SEEDS,
    SPACES,
    Policy,
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
from reference import assert_metrics, computing, grad, log_sum_exp, precisions, value_and_grad
from scipy.special import softmax

from envs.core import Box, Discrete
from rlsuite.algorithms.on_policy import mdpo
from rlsuite.core import Clock, Task
from rlsuite.errors import UserError
from rlsuite.pieces import tsallis
from rlsuite.pieces.actor_critic import Networks
from rlsuite.pieces.on_policy import Batch
from rlsuite.pieces.trained import Trained

HYPERS = mdpo.Hypers(clip_epsilon=0.2)
KL_WEIGHT = 2.5
DIVERGENCES: dict[str, float | None] = {"kl": None, "order 1": 1.0, "order 0.6": 0.6, "order 1.7": 1.7}
every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES)


def kl(dist: tuple[FloatArray, ...], old: tuple[FloatArray, ...]) -> FloatArray:
    """KL(new || old) in closed form, `[batch]`."""
    if len(dist) == 2:
        (mean, log_std), (old_mean, old_log_std) = dist, old
        var, old_var = np.exp(2.0 * log_std), np.exp(2.0 * old_log_std)
        return np.sum(old_log_std - log_std + (var + (mean - old_mean) ** 2) / (2.0 * old_var) - 0.5, axis=1)
    log_p, log_old = (logits - log_sum_exp(logits, axis=1)[:, None] for logits in (dist[0], old[0]))
    return np.sum(np.exp(log_p) * (log_p - log_old), axis=1)


def tsallis_divergence(log_prob: FloatArray, old_log_prob: FloatArray, q: float) -> FloatArray:
    """The sampled divergence of order q, `[batch]`."""
    ratio = np.exp(log_prob - old_log_prob)
    if q == 1.0:
        return ratio * np.log(ratio) - ratio + 1.0
    scale = np.maximum(np.exp(old_log_prob), 1e-6) ** (q - 1.0)
    return scale * (ratio**q - 1.0 - q * (ratio - 1.0)) / (q - 1.0)


def divergence_of(now: Policy, batch: Batch, q: float | None) -> FloatArray:
    """From the policy that collected, `[batch]`; `q` None is KL in closed form."""
    return kl(now.dist, batch.dist) if q is None else tsallis_divergence(now.log_prob, batch.log_prob, q)


def actor_reference(actor: Tree, batch: Batch, kl_weight: float, q: float | None) -> dict[str, Any]:
    """The policy's metrics, with its loss."""
    now = policy_at(actor, batch.obs, batch.action)
    ratio, divergence = np.exp(now.log_prob - batch.log_prob), np.mean(divergence_of(now, batch, q))
    # The loss is minimised: it is the negative of the objective.
    loss = -(np.mean(ratio * batch.advantage) - kl_weight * divergence)
    return {"policy_loss": loss, "divergence": divergence, "entropy": np.mean(now.entropy)}


def actor_gradient(actor: Tree, batch: Batch, kl_weight: float, q: float | None) -> Tree:
    return grad(lambda a: actor_reference(a, batch, kl_weight, q)["policy_loss"], actor)


def random_params(rng: np.random.Generator, space: Discrete | Box) -> tuple[Tree, Tree]:
    """(actor, critic)"""
    net = random_net(rng, space)
    return net, {"critic": net.pop("critic")}


def problem(seed: int, space: Discrete | Box) -> tuple[Tree, Tree, Batch]:
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
        mean = perceptron(old_actor["policy"], obs, "tanh")
        action = exact(mean + np.exp(old_actor["log_std"]) * noise)
    old = policy_at(old_actor, obs, action)
    old_value = exact(state_value(critic, obs) + 0.3 * normal(rng, BATCH))
    return (
        actor,
        critic,
        Batch(
            obs=obs,
            action=action,
            dist=tuple(exact(x) for x in old.dist),
            log_prob=exact(old.log_prob),
            value=old_value,
            advantage=exact(0.5 + 2.0 * normal(rng, BATCH)),
            target=exact(old_value + 0.6 * normal(rng, BATCH)),
        ),
    )


jax_actor_loss = jax.jit(jax.value_and_grad(mdpo.actor_loss, has_aux=True), static_argnums=(1, 5))
jax_critic_loss = jax.jit(jax.value_and_grad(mdpo.critic_loss, has_aux=True), static_argnums=(1, 4))


@functools.cache
def want_actor(seed: int, space: str, divergence: str) -> tuple[dict[str, Any], Tree]:
    actor, _, batch = problem(seed, SPACES[space])
    arguments = actor, batch, KL_WEIGHT, DIVERGENCES[divergence]
    return actor_reference(*arguments), actor_gradient(*arguments)


@every_space
@every_divergence
@precisions(in_float64=1e-11)
def test_policy_loss_and_gradient(space: str, divergence: str, dtype: Any, tolerance: float) -> None:
    q = DIVERGENCES[divergence]
    config = mdpo.Config(hidden_sizes=HIDDEN, tsallis=q is not None)
    hypers = HYPERS if q is None else HYPERS._replace(tsallis_q=q)
    for seed in SEEDS:
        actor, critic, batch = problem(seed, SPACES[space])
        want_metrics, want_grads = want_actor(seed, space, divergence)
        with computing(dtype):
            (loss, metrics), grads = jax_actor_loss(
                cast(actor, dtype),
                Networks(HIDDEN, SPACES[space]),
                cast(critic, dtype),
                cast(batch, dtype),
                cast(KL_WEIGHT, dtype),
                config,
                cast(hypers, dtype),
            )
        assert loss.dtype == dtype
        assert_close(grads, want_grads, tolerance, dtype)
        assert_metrics({"loss": loss, **metrics}, {"loss": want_metrics["policy_loss"], **want_metrics}, tolerance)


@pytest.mark.parametrize("clip", [True, False])
@precisions(in_float64=1e-11)
def test_value_loss_and_gradient(clip: bool, dtype: Any, tolerance: float) -> None:
    space = SPACES["continuous"]
    for seed in SEEDS:
        actor, critic, batch = problem(seed, space)
        want_loss, want_grads = value_and_grad(lambda c, b=batch: value_loss(c, b, 0.2, clip), critic)
        with computing(dtype):
            (loss, metrics), grads = jax_critic_loss(
                cast(critic, dtype),
                Networks(HIDDEN, space),
                cast(actor, dtype),
                cast(batch, dtype),
                mdpo.Config(hidden_sizes=HIDDEN, clip_value=clip),
                cast(HYPERS, dtype),
            )
        assert_close(grads, want_grads, tolerance, dtype)
        assert_metrics({"loss": loss, **metrics}, {"loss": want_loss, "value_loss": want_loss}, tolerance)


@every_space
def test_the_samples_reach_every_branch(space: str) -> None:
    floored = 0
    for seed in SEEDS:
        actor, critic, batch = problem(seed, SPACES[space])
        ratio = np.exp(policy_at(actor, batch.obs, batch.action).log_prob - batch.log_prob)
        for gains in (batch.advantage > 0.0, batch.advantage < 0.0):
            for side in (ratio > 1.05, ratio < 0.95):
                assert np.sum(gains & side) >= 2
        assert_value_reaches_every_branch(critic, batch, 0.2)
        floored += int(np.sum(batch.log_prob < np.log(1e-6)))
    assert floored >= 5 or space == "discrete"


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
    p, old = softmax(logits), softmax(old_logits)
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

SGD_STEPS, EPOCHS, MINIBATCHES = 3, 2, 2
PROGRESS = 0.25


def updated(
    key: jax.Array, actor: Tree, critic: Tree, statistics: Statistics, config: mdpo.Config, hypers: mdpo.Hypers
) -> tuple[Tree, Tree, Statistics, dict[str, float], list[float]]:
    """Actor, critic and statistics after one update, its metrics, and the policy's gradient norms on the way."""
    collect_key, learn_key = jax.random.split(key)
    rows, statistics = rollout(collect_key, {**actor, **critic}, statistics, hypers)
    if config.normalize_advantage:
        centered = rows.advantage - rows.advantage.mean()
        rows = rows._replace(advantage=centered / (np.sqrt(np.mean(centered**2)) + 1e-8))
    learning_rate = hypers.learning_rate * ((1.0 - PROGRESS) if config.anneal_learning_rate else 1.0)
    kl_weight = hypers.kl_coef / (1.0 - PROGRESS) if config.anneal_kl else hypers.kl_coef
    metrics: dict[str, list[float]] = {}
    norms = []

    def note(new: dict[str, float]) -> None:
        for name, x in new.items():
            metrics.setdefault(name, []).append(x)

    # All of the policy's steps see the whole rollout and stay close to the policy that collected it.
    adam = Adam(actor, eps=1e-5)
    for _ in range(SGD_STEPS):
        arguments = actor, rows, kl_weight, hypers.tsallis_q if config.tsallis else None
        note(actor_reference(*arguments))
        grads, norm = clipped(actor_gradient(*arguments), hypers.max_grad_norm)
        norms.append(norm)
        actor = adam.step(actor, grads, learning_rate)

    adam = Adam(critic)
    for epoch_key in jax.random.split(learn_key, EPOCHS):
        order = np.asarray(jax.random.permutation(epoch_key, NUM_ENVS * NUM_STEPS))
        for chosen in np.split(order, MINIBATCHES):
            minibatch = jax.tree.map(lambda x, chosen=chosen: x[chosen], rows)
            loss, grads = value_and_grad(
                lambda c, b=minibatch: value_loss(c, b, hypers.clip_epsilon, config.clip_value), critic
            )
            note({"value_loss": loss})
            critic = adam.step(critic, grads, learning_rate)
    return actor, critic, statistics, {name: float(np.mean(x)) for name, x in metrics.items()}, norms


@pytest.mark.parametrize("changes", [{}, {"tsallis": True, "anneal_kl": False, "anneal_learning_rate": True}])
def test_one_whole_update(changes: dict[str, bool]) -> None:
    config = mdpo.Config(NUM_ENVS, NUM_STEPS, SGD_STEPS, EPOCHS, MINIBATCHES, HIDDEN, **changes)
    rng = np.random.default_rng(0)
    (actor, critic), statistics = random_params(rng, SPACES["continuous"]), random_statistics(rng)
    algorithm, task = mdpo.make(config), Task(Toy())
    too_long = []
    with computing(np.float64):
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
            start = cast((actor, critic), jnp.float64)
            learner = mdpo.Learner(
                Trained(start[0], jax.jit(mdpo.actor_optimizer(hypers, 0.0).init)(start[0])),
                Trained(start[1], jax.jit(optax.adam(0.0).init)(start[1])),
            )
            state = starting_state(learner, statistics)
            key, clock = jax.random.key(seed), Clock(jnp.int32(3), jnp.asarray(PROGRESS))
            fresh = jax.eval_shape(algorithm.init, key, task, hypers)
            chex.assert_trees_all_equal_structs(fresh, state)
            new, metrics = update(key, task, state, cast(hypers, jnp.float64), clock)
            want_actor, want_critic, want_statistics, want_metrics, norms = updated(
                key, actor, critic, statistics, config, hypers
            )
            too_long += [norm > max_grad_norm for norm in norms]

            assert_moved(new.learner.actor.params, want_actor, actor, 1e-8)
            assert_moved(new.learner.critic.params, want_critic, critic, 1e-8)
            got = Statistics(tuple(new.obs_stats), tuple(new.return_stats), new.discounted_return)
            assert_close(got, want_statistics, 1e-11)
            assert_metrics(metrics, want_metrics, 1e-9)
    assert any(too_long) and not all(too_long)
