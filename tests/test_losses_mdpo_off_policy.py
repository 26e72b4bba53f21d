"""Off-policy MDPO against an independent reference in NumPy and float64: losses, whole gradients, whole updates.

The reference is written from the specification of the method (Tomar et al. 2020, arXiv 2005.09814) and the details
listed in `mdpo_off_policy.py`.
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
    OBS_DIM,
    bellman,
    endings,
    polyak,
    q_values,
    random_critics,
    random_transitions,
    smallest,
    squared_errors,
    state_value,
)
from numpy_nets import (
    HIGH,
    LOW,
    Adam,
    FloatArray,
    Toy,
    Tree,
    assert_close,
    assert_moved,
    cast,
    exact,
    mlp,
    normal,
)
from numpy_off_policy import CAPACITY, NUM_ENVS, UPDATES_DONE, past, policy_noise, stepped
from numpy_squashed import SquashedGaussian, random_actor
from reference import assert_metrics, assert_reached, computing, grad
from trained_states import params_of, with_adam

from rlsuite.algorithms.off_policy import mdpo_off_policy as mdpo
from rlsuite.core import Clock, Task, Transition
from rlsuite.errors import UserError

HIDDEN = (6, 5)
CONFIG = mdpo.Config(hidden_sizes=HIDDEN)
HYPERS = mdpo.Hypers(discount=0.93, entropy_coef=0.3, regularization=0.05)
KL_WEIGHT = 1.4
POLICY = SquashedGaussian(-20.0, 2.0, CENTER, HALF_WIDTH)
WIDE = (-19.9, 1.9, -1.0)
"""Where the actor's three log standard deviations lie: around the lower bound, around the upper one, between them."""
MODERATE = (-1.3, 1.9, -1.0)
"""The same for float32, where mean + exp(-20) noise rounds to the mean, so that no such comparison has a meaning."""
ORDERS = (1.0, 0.7, 1.3)
SEEDS = range(5)


class Nets(NamedTuple):
    """What gradient steps change."""

    actor: Tree
    old_actor: Tree
    critics: Tree
    """both Q functions, stacked on a leading axis of 2"""
    value: Tree
    target_value: Tree


def log_density(z: FloatArray, log_std: FloatArray, u: FloatArray) -> FloatArray:
    """Of each component of tanh(u), whose slope 1 / cosh^2 is raised by 1e-6."""
    return -0.5 * z**2 - log_std - 0.5 * np.log(2.0 * np.pi) - np.log(1.0 / np.cosh(u) ** 2 + 1e-6)


def log_q(log_density: FloatArray, q: float) -> FloatArray:
    """Sum over the components of the logarithm of order q of their densities, or of 1e-6 where that is more."""
    x = np.maximum(np.exp(log_density), 1e-6)
    return np.sum(np.log(x) if q == 1.0 else (x ** (q - 1.0) - 1.0) / (q - 1.0), axis=1)


def critic_loss(critics: Tree, nets: Nets, batch: Transition, discount: float) -> Any:
    target = bellman(batch, discount, state_value(nets.target_value, batch.next_obs))
    return 0.5 * squared_errors(critics, batch, target)


def value_loss(value: Tree, nets: Nets, obs: FloatArray, noise: FloatArray, hypers: mdpo.Hypers) -> Any:
    mean, log_std = POLICY.distribution(nets.actor, obs)
    u = mean + np.exp(log_std) * noise
    log_prob = log_q(log_density(noise, log_std, u), hypers.tsallis_q)
    target = smallest(nets.critics, obs, POLICY.squashed(u)) - hypers.entropy_coef * log_prob
    return 0.5 * np.mean((state_value(value, obs) - target) ** 2)


def actor_reference(
    actor: Tree, nets: Nets, obs: FloatArray, noise: FloatArray, kl_weight: float, hypers: mdpo.Hypers
) -> tuple[Any, Any]:
    """The policy's loss, and the mean of log_q pi - log_q pi_old."""
    (mean, log_std), (old_mean, old_log_std) = POLICY.distribution(actor, obs), POLICY.distribution(nets.old_actor, obs)
    q, u = hypers.tsallis_q, mean + np.exp(log_std) * noise
    log_prob = log_q(log_density(noise, log_std, u), q)
    # The old policy stands still, but the action at which it is asked moves.
    old_log_prob = log_q(log_density((u - old_mean) / np.exp(old_log_std), old_log_std, u), q)
    first_q = q_values(nets.critics, obs, POLICY.squashed(u))[0]
    loss = np.mean(kl_weight * log_prob + q * (hypers.entropy_coef - kl_weight) * old_log_prob - first_q)
    loss += hypers.regularization * (np.mean(mean**2) + np.mean(log_std**2))
    return loss, np.mean(log_prob - old_log_prob)


class Gradients(NamedTuple):
    """Of the three losses, at the same networks."""

    critics: Tree
    value: Tree
    actor: Tree


def gradients(nets: Nets, batch: Transition, noise: FloatArray, kl_weight: float, hypers: mdpo.Hypers) -> Gradients:
    return Gradients(
        grad(lambda critics: critic_loss(critics, nets, batch, hypers.discount), nets.critics),
        grad(lambda value: value_loss(value, nets, batch.obs, noise, hypers), nets.value),
        grad(lambda actor: actor_reference(actor, nets, batch.obs, noise, kl_weight, hypers)[0], nets.actor),
    )


def random_nets(rng: np.random.Generator, log_stds: tuple[float, ...]) -> Nets:
    critics = random_critics(rng, 2, HIDDEN, 0.0, LOW, HIGH)
    actor = random_actor(rng, HIDDEN, log_stds)
    # The old policy is a little off, and wide enough that some actions of the new one are likely under it. Nowhere is
    # it so narrow that (u - mean) / std turns the last digits of a float32 mean into the loss's.
    old_actor = jax.tree.map(lambda x: x + 0.05 * normal(rng, *x.shape), actor)
    old_actor["params"]["Dense_2"]["kernel"][:, ACTION_DIM:] /= 4.0
    old_actor["params"]["Dense_2"]["bias"][ACTION_DIM:] = np.maximum(log_stds, -1.0)
    value, target_value = ({"params": mlp(rng, OBS_DIM, *HIDDEN, 1)} for _ in range(2))
    return Nets(actor, jax.tree.map(exact, old_actor), critics, value, target_value)


def problem(seed: int, log_stds: tuple[float, ...]) -> tuple[Nets, Transition, FloatArray]:
    rng = np.random.default_rng(seed)
    # Some noise is so far out that the floor of the present policy's density counts, too.
    noise = normal(rng, BATCH, ACTION_DIM) * np.where(np.arange(BATCH) % 4 == 0, 3.5, 1.0)[:, None]
    return random_nets(rng, log_stds), random_transitions(rng), noise


def learner(nets: Nets, dtype: Any) -> mdpo.Learner:
    """These networks with fresh optimisers."""
    return with_adam(mdpo.Learner(*cast(tuple(nets), dtype)))


@jax.jit
def jax_losses(state: mdpo.Learner, batch: Transition, noise: Any, kl_weight: Any, hypers: mdpo.Hypers) -> Any:
    """The three losses of the learner, their gradients and metrics."""
    networks, params = mdpo.networks_of(CONFIG, Toy()), params_of(state)
    critic_results = jax.value_and_grad(mdpo.critic_loss, has_aux=True)(
        params.critics, networks, state.target_value, batch, hypers.discount
    )
    value_results = jax.value_and_grad(mdpo.value_loss, has_aux=True)(
        params.value, networks, state, batch.obs, noise, hypers
    )
    actor_results = jax.value_and_grad(mdpo.actor_loss, has_aux=True)(
        params.actor, networks, state, batch.obs, noise, kl_weight, hypers
    )
    return critic_results, value_results, actor_results


@functools.cache
def want_losses(seed: int, q: float, log_stds: tuple[float, ...]) -> tuple[dict[str, Any], Gradients]:
    nets, batch, noise = problem(seed, log_stds)
    hypers = HYPERS._replace(tsallis_q=q)
    actor_error, log_ratio = actor_reference(nets.actor, nets, batch.obs, noise, KL_WEIGHT, hypers)
    metrics = {
        "critic_loss": critic_loss(nets.critics, nets, batch, hypers.discount),
        "q": np.mean(q_values(nets.critics, batch.obs, batch.action)),
        "value_loss": value_loss(nets.value, nets, batch.obs, noise, hypers),
        "policy_loss": actor_error,
        "log_ratio": log_ratio,
    }
    return metrics, gradients(nets, batch, noise, KL_WEIGHT, hypers)


@pytest.mark.parametrize("q", ORDERS)
@pytest.mark.parametrize(
    ("log_stds", "dtype", "tolerance"),
    [(MODERATE, np.float64, 1e-11), (WIDE, np.float64, 1e-9), (MODERATE, np.float32, 1e-5)],
    ids=["float64", "float64-wide", "float32"],
)
def test_losses_and_gradients(q: float, log_stds: tuple[float, ...], dtype: Any, tolerance: float) -> None:
    for seed in SEEDS:
        nets, *rest = problem(seed, log_stds)
        want, want_grads = want_losses(seed, q, log_stds)
        with computing(dtype):
            critics, value, actor = jax_losses(
                learner(nets, dtype), *cast((*rest, KL_WEIGHT, HYPERS._replace(tsallis_q=q)), dtype)
            )
        assert_close(Gradients(critics[1], value[1], actor[1]), want_grads, tolerance, dtype)
        assert_metrics({**critics[0][1], **value[0][1], **actor[0][1]}, want, tolerance)
        for (loss, _), name in ((critics[0], "critic_loss"), (value[0], "value_loss"), (actor[0], "policy_loss")):
            assert float(loss) == pytest.approx(float(want[name]), rel=tolerance)


def cases_of(seed: int, log_stds: tuple[float, ...]) -> dict[str, Any]:
    """Which samples of a problem reach which branch."""
    nets, batch, noise = problem(seed, log_stds)
    (mean, log_std), (old_mean, old_log_std) = (
        POLICY.distribution(actor, batch.obs) for actor in (nets.actor, nets.old_actor)
    )
    u = mean + np.exp(log_std) * noise
    present = log_density(noise, log_std, u)
    before = log_density((u - old_mean) / np.exp(old_log_std), old_log_std, u)
    q_1, q_2 = q_values(nets.critics, batch.obs, POLICY.squashed(u))
    cases, old_cases = (POLICY.cases(actor, batch.obs) for actor in (nets.actor, nets.old_actor))
    if log_stds is MODERATE:
        del cases["log std below its bound"]
    return {
        **cases,
        "first Q smaller": q_1 < q_2,
        "second Q smaller": q_2 < q_1,
        "present density below its floor": present < np.log(1e-6),
        "present density above its floor": present > np.log(1e-6),
        "old density below its floor": before < np.log(1e-6),
        "old density above its floor": before > np.log(1e-6),
        "old log std inside its bounds": old_cases["log std inside its bounds"],
        "old log std outside its bounds": ~old_cases["log std inside its bounds"],
        "slope of the squashing near 1e-6": np.cosh(u) ** -2.0 < 1e-5,
        **endings(batch),
    }


@pytest.mark.parametrize("log_stds", [WIDE, MODERATE], ids=["wide", "moderate"])
def test_the_samples_reach_every_branch(log_stds: tuple[float, ...]) -> None:
    assert_reached((cases_of(seed, log_stds) for seed in SEEDS), 10)


def test_the_old_policy_is_renewed_at_every_so_many_environment_steps() -> None:
    for num_envs, sgd_steps in ((1, 1), (1, 7), (4, 16), (3, 7), (5, 2)):
        config = mdpo.Config(num_envs=num_envs, sgd_steps=sgd_steps)
        due = jax.vmap(lambda update, config=config: mdpo.is_due(update, config))(jnp.arange(50))
        steps = np.arange(50 * num_envs).reshape(50, num_envs)
        np.testing.assert_array_equal(due, np.any(steps % sgd_steps == 0, axis=1))


def test_a_config_that_cannot_work_is_refused() -> None:
    with pytest.raises(UserError, match="buffer_size=10 is not a multiple of num_envs=4"):
        mdpo.make(mdpo.Config(num_envs=4, buffer_size=10))
    with pytest.raises(UserError, match="sgd_steps=0 must be at least 1"):
        mdpo.make(mdpo.Config(sgd_steps=0))


def test_the_buffer_is_no_larger_than_the_budget() -> None:
    assert mdpo.fit(mdpo.Config(num_envs=4), 1_001).buffer_size == 1_004
    assert mdpo.fit(mdpo.Config(), 2_000_000).buffer_size == 1_000_000


# Whole updates, with everything that surrounds the losses.

GRADIENT_STEPS, UPDATE_BATCH = 3, 16
PROGRESS = 0.25
UPDATE_HYPERS = HYPERS._replace(actor_learning_rate=0.003, critic_learning_rate=0.005, tau=0.1, kl_coef=KL_WEIGHT)


def learned(nets: Nets, batches: list[Transition], noise_key: jax.Array, kl_weight: float, hypers: mdpo.Hypers) -> Nets:
    """The networks after the gradient steps of one update, from fresh optimisers.

    Random numbers come from JAX by the learner's own key schedule: they are the only thing that the two share.
    """
    adams = Adam(nets.actor), Adam(nets.critics), Adam(nets.value)
    for batch, key in zip(batches, jax.random.split(noise_key, len(batches)), strict=True):
        noise = np.asarray(jax.random.normal(key, (UPDATE_BATCH, ACTION_DIM)))
        # All gradients first, then all steps, then the target.
        grads = gradients(nets, batch, noise, kl_weight, hypers)
        value = adams[2].step(nets.value, grads.value, hypers.critic_learning_rate)
        nets = Nets(
            actor=adams[0].step(nets.actor, grads.actor, hypers.actor_learning_rate),
            old_actor=nets.old_actor,
            critics=adams[1].step(nets.critics, grads.critics, hypers.critic_learning_rate),
            value=value,
            target_value=polyak(nets.target_value, value, hypers.tau),
        )
    return nets


@pytest.mark.parametrize(
    ("q", "sgd_steps", "renewed", "sample_actions", "anneal_kl"),
    # Ten environment steps are done, so this update takes the steps 10 and 11.
    [(1.0, 6, False, False, False), (0.8, 11, True, True, True)],
)
def test_one_whole_update(q: float, sgd_steps: int, renewed: bool, sample_actions: bool, anneal_kl: bool) -> None:
    config = mdpo.Config(
        num_envs=NUM_ENVS,
        gradient_steps=GRADIENT_STEPS,
        batch_size=UPDATE_BATCH,
        buffer_size=CAPACITY,
        warmup_steps=UPDATES_DONE * NUM_ENVS,
        hidden_sizes=HIDDEN,
        sgd_steps=sgd_steps,
        sample_actions=sample_actions,
        anneal_kl=anneal_kl,
    )
    rng = np.random.default_rng(0)
    nets = random_nets(rng, MODERATE)
    algorithm, task, hypers = mdpo.make(config), Task(Toy()), UPDATE_HYPERS._replace(tsallis_q=q)
    with computing(np.float64):
        before = past(rng)
        state = before.state(learner(nets, jnp.float64))
        fresh = jax.eval_shape(algorithm.init, jax.random.key(0), task, hypers)
        chex.assert_trees_all_equal_structs(fresh, state)
        key = jax.random.key(1)
        clock = Clock(jnp.int32(UPDATES_DONE), jnp.asarray(PROGRESS))
        new, metrics = jax.jit(algorithm.update)(key, task, state, cast(hypers, jnp.float64), clock)

        collect_key, batch_key, noise_key = jax.random.split(key, 3)
        mean, log_std = POLICY.distribution(nets.actor, before.obs)
        noise = policy_noise(collect_key) if sample_actions else 0.0
        present = stepped(before, POLICY.squashed(mean + np.exp(log_std) * noise))
        kl_weight = KL_WEIGHT / (1.0 - PROGRESS) if anneal_kl else KL_WEIGHT
        batches = present.minibatches(batch_key, GRADIENT_STEPS, UPDATE_BATCH)
        want = learned(nets, batches, noise_key, kl_weight, hypers)

    got = Nets(*params_of(new.learner))
    if renewed:
        chex.assert_trees_all_equal(got.old_actor, got.actor)
    else:
        chex.assert_trees_all_equal(got.old_actor, jax.tree.map(np.asarray, nets.old_actor))
    assert_moved(got._replace(old_actor={}), want._replace(old_actor={}), nets._replace(old_actor={}), 1e-8)
    assert all(np.isfinite(float(x)) for x in metrics.values())
    present.assert_is(new)


def test_nothing_is_learned_in_the_warmup() -> None:
    config = mdpo.Config(num_envs=2, batch_size=4, buffer_size=16, warmup_steps=9, hidden_sizes=(4,), sgd_steps=1)
    algorithm, task = mdpo.make(config), Task(Toy())
    state = jax.jit(algorithm.init)(jax.random.key(0), task, mdpo.Hypers())
    update = jax.jit(algorithm.update)
    for index in range(5):
        before = state.learner
        key = jax.random.fold_in(jax.random.key(1), index)
        state, _ = update(key, task, state, mdpo.Hypers(), Clock(jnp.int32(index), jnp.float32(0.0)))
        chex.assert_trees_all_equal(state.learner, before)
    # Uniform in the box, where a policy without noise would repeat itself at the same observation.
    actions = np.asarray(state.buffer.rows)[:5, :, OBS_DIM : OBS_DIM + ACTION_DIM].reshape(-1, ACTION_DIM)
    assert np.all((actions > LOW) & (actions < HIGH))
    assert np.all(np.ptp(actions, axis=0) > 0.4 * (HIGH - LOW))
    state, _ = update(jax.random.key(2), task, state, mdpo.Hypers(), Clock(jnp.int32(5), jnp.float32(0.0)))
    assert not np.array_equal(
        state.learner.value.params["params"]["Dense_0"]["bias"], before.value.params["params"]["Dense_0"]["bias"]
    )
