"""CQL against an independent reference in NumPy and float64: losses, their whole gradients, whole updates.

The reference is written from the paper (Kumar et al. 2020, arXiv 2006.04779) and the details listed in `cql.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy_critics import (
    ACTION_DIM,
    bellman,
    endings,
    polyak,
    q_values,
    random_batch,
    random_critics,
    smallest,
    squared_errors,
)
from numpy_nets import Adam, FloatArray, Toy, Tree, assert_close, assert_moved, cast, exact, normal
from numpy_offline import SOMEWHERE, assert_evaluates, compiled, drawn, reward_scale, rows_of
from numpy_offline import task as toy_task
from numpy_squashed import SquashedGaussian, actor_reference, alpha_reference, outputs, random_actor
from reference import assert_reached, computing, grad, log_sum_exp, precisions, value_and_grad
from trained_states import params_of, with_adam

from envs.datasets import Batch
from rlsuite.algorithms.offline import cql
from rlsuite.core import Clock, Task
from rlsuite.errors import UserError
from rlsuite.pieces import soft_maximum
from rlsuite.pieces import squashed as squashed_policy
from rlsuite.pieces.trained import Trained

HIDDEN = (6, 5)
BATCH, NUM_ACTIONS, UPDATE_BATCH = 48, 3, 16
SEEDS = range(5)
WIDE = (-19.0, 2.8, 0.2)
"""Where the policy's raw log standard deviations lie: after scale and offset around the lower bound, around the upper
one, between them."""
MODERATE = (-1.5, 2.8, 0.2)
"""The same for float32, where mean + exp(-20) noise rounds to the mean."""
HYPERS = cql.Hypers(
    actor_learning_rate=0.003,
    critic_learning_rate=0.005,
    alpha_learning_rate=0.02,
    discount=0.93,
    tau=0.1,
    cql_alpha=1.7,
    temperature=0.6,
    initial_alpha=0.4,
    target_entropy_scale=0.6,
    target_gap=0.9,
    multiplier_learning_rate=0.03,
    min_difference=2.75,
    reward_scale=1.4,
    reward_bias=-0.3,
)
TARGET_ENTROPY = -0.6 * ACTION_DIM
PLAIN = cql.Config(
    batch_size=UPDATE_BATCH, num_actions=NUM_ACTIONS, actor_hidden_sizes=HIDDEN, critic_hidden_sizes=HIDDEN
)
FLAGS = dataclasses.replace(
    PLAIN,
    learn_alpha=False,
    lagrange=True,
    clip_difference=True,
    max_target_backup=True,
    normalize_obs=False,
    normalize_reward=True,
)
CONFIGS = {"plain": PLAIN, "all flags": FLAGS}
by_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


class Nets(NamedTuple):
    """What gradient steps change."""

    actor: Tree
    critics: Tree
    target_critics: Tree
    log_alpha: FloatArray
    log_multiplier: FloatArray


def scaled_outputs(actor: Tree, obs: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean, and log standard deviation after scale and offset."""
    parts = actor["params"]
    mean, log_std = outputs({"params": {**parts["MLP_0"], "Dense_2": parts["Dense_0"]}}, obs)
    return mean, parts["log_std_scale"] * log_std + parts["log_std_offset"]


POLICY = SquashedGaussian(-20.0, 2.0, outputs=scaled_outputs)


class Candidates(NamedTuple):
    """Actions of the soft maximum at s, `[actions, batch, ...]`."""

    action: FloatArray
    log_density: FloatArray


def candidates_of(nets: Nets, batch: Batch, random: cql.Random) -> Candidates:
    """Uniform ones, those of the policy at s, and those of the policy at s', which are tried at s all the same."""
    drawn = [(action, np.full(len(action), ACTION_DIM * np.log(0.5))) for action in random.drawn.uniform]
    drawn += [POLICY.sample(nets.actor, batch.obs, noise) for noise in random.drawn.current]
    drawn += [POLICY.sample(nets.actor, batch.next_obs, noise) for noise in random.drawn.following]
    return Candidates(*map(np.stack, zip(*drawn, strict=True)))


def differences(critics: Tree, batch: Batch, candidates: Candidates) -> FloatArray:
    """T log sum exp((Q - log density) / T) - Q(s, a) of both critics, `[2, batch]`, before its bound."""
    obs = np.tile(batch.obs, (len(candidates.action), 1))
    q = q_values(critics, obs, np.concatenate(candidates.action)).reshape(2, *candidates.log_density.shape)
    soft_max = log_sum_exp((q - candidates.log_density) / HYPERS.temperature, axis=1)
    return HYPERS.temperature * soft_max - q_values(critics, batch.obs, batch.action)


def target_values(nets: Nets, batch: Batch, random: cql.Random) -> FloatArray:
    """The smaller target critic at each action drawn at s': `[actions, batch]`."""
    actions = [POLICY.sample(nets.actor, batch.next_obs, noise)[0] for noise in random.target]
    return np.stack([smallest(nets.target_critics, batch.next_obs, action) for action in actions])


def critic_reference(
    nets: Nets, batch: Batch, random: cql.Random, config: cql.Config
) -> tuple[float, Tree, FloatArray]:
    """The critics' loss, its gradient, and the mean difference of each critic."""
    # There is no entropy in the target.
    target = bellman(batch, HYPERS.discount, np.max(target_values(nets, batch, random), axis=0))
    candidates, weight, gap = candidates_of(nets, batch, random), HYPERS.cql_alpha, 0.0
    if config.lagrange:
        weight, gap = weight * min(float(np.exp(nets.log_multiplier)), 1e6), HYPERS.target_gap

    def means(critics: Tree) -> FloatArray:
        difference = differences(critics, batch, candidates)
        return np.mean(np.maximum(difference, HYPERS.min_difference) if config.clip_difference else difference, axis=1)

    def loss(critics: Tree) -> Any:
        return squared_errors(critics, batch, target) + weight * np.sum(means(critics) - gap)

    return *value_and_grad(loss, nets.critics), means(nets.critics)


def multiplier_loss(log_multiplier: FloatArray, means: FloatArray) -> Any:
    """The multiplier's loss: too large a difference must raise it."""
    pull = 0.5 * HYPERS.cql_alpha * np.sum(means - HYPERS.target_gap)
    return -np.minimum(np.exp(log_multiplier), 1e6) * pull


def gradients(nets: Nets, batch: Batch, noise: FloatArray, random: cql.Random, config: cql.Config) -> Nets:
    """All gradients at the same networks; that of the target critics is empty."""
    _, critic_grads, means = critic_reference(nets, batch, random, config)
    return Nets(
        actor=actor_reference(POLICY, nets, batch.obs, noise)[1],
        critics=critic_grads,
        target_critics={},
        log_alpha=alpha_reference(POLICY, nets, batch.obs, noise, TARGET_ENTROPY)[1],
        log_multiplier=grad(lambda x: multiplier_loss(x, means), nets.log_multiplier),
    )


def random_nets(rng: np.random.Generator, log_stds: tuple[float, ...]) -> Nets:
    net = random_actor(rng, HIDDEN, log_stds, 2.0)["params"]
    actor = {
        "MLP_0": {name: net[name] for name in ("Dense_0", "Dense_1")},
        "Dense_0": net["Dense_2"],
        "log_std_scale": np.float64(1.125),
        "log_std_offset": np.float64(-0.75),
    }
    critics, targets = (random_critics(rng, 2, HIDDEN, mean=0.0) for _ in range(2))
    return Nets({"params": jax.tree.map(exact, actor)}, critics, targets, exact(np.log(0.4)), exact(0.3))


def random_numbers(rng: np.random.Generator, size: int, config: cql.Config) -> cql.Random:
    shape = NUM_ACTIONS, size, ACTION_DIM
    uniform: Any = exact(rng.uniform(-1.0, 1.0, size=shape))
    current, following, target = normal(rng, *shape), normal(rng, *shape), normal(rng, *shape)
    drawn = soft_maximum.Random(uniform, current, following)
    return cql.Random(drawn, target[: len(target) if config.max_target_backup else 1])


class Problem(NamedTuple):
    """What one comparison is about."""

    nets: Nets
    batch: Batch
    noise: FloatArray
    random: cql.Random


def problem(seed: int, config: cql.Config, log_stds: tuple[float, ...] = WIDE) -> Problem:
    rng = np.random.default_rng(seed)
    nets, batch, noise = random_nets(rng, log_stds), random_batch(rng, BATCH), normal(rng, BATCH, ACTION_DIM)
    return Problem(nets, batch, noise, random_numbers(rng, BATCH, config))


def state_of(nets: Nets, dtype: Any) -> cql.State:
    """The learner's state with these networks and fresh optimisers."""
    *networks, log_multiplier = cast(tuple(nets), dtype)
    return with_adam(cql.State(*networks, own=Trained.start(log_multiplier, optax.adam(0.0))))


@functools.partial(jax.jit, static_argnames="config")
def jax_losses(state: cql.State, batch: Any, noise: Any, random: cql.Random, hypers: Any, config: cql.Config) -> Any:
    """The losses of the learner and their gradients."""
    params, networks = params_of(state), cql.networks_of(config, ACTION_DIM)
    (critic_loss, (difference, _)), critic_grads = jax.value_and_grad(cql.critic_loss, has_aux=True)(
        params.critics, networks, state, batch, random, config, hypers
    )
    (actor_loss, log_prob), actor_grads = jax.value_and_grad(squashed_policy.actor_loss, has_aux=True)(
        params.actor, *networks, params.critics, params.log_alpha, batch.obs, noise
    )
    multiplier = jax.value_and_grad(cql.multiplier_loss)(params.own, difference, hypers)
    return (critic_loss, critic_grads, difference), (actor_loss, actor_grads, log_prob), multiplier


@functools.cache
def want_losses(seed: int, config: cql.Config, log_stds: tuple[float, ...]) -> Any:
    nets, batch, noise, random = problem(seed, config, log_stds)
    critics = critic_reference(nets, batch, random, config)
    return (
        critics,
        (*actor_reference(POLICY, nets, batch.obs, noise), POLICY.sample(nets.actor, batch.obs, noise)[1]),
        value_and_grad(lambda x: multiplier_loss(x, critics[2]), nets.log_multiplier),
    )


@by_config
@precisions(in_float64=1e-10)
def test_losses_and_gradients(config: cql.Config, dtype: Any, tolerance: float) -> None:
    # Where the policy is narrow its density is high, and its actions weigh nothing in the soft maximum.
    for log_stds in (MODERATE, WIDE) if dtype is np.float64 else (MODERATE,):
        for seed in SEEDS:
            nets, *rest = problem(seed, config, log_stds)
            with computing(dtype):
                got = jax_losses(state_of(nets, dtype), *cast((*rest, HYPERS), dtype), config=config)
            assert_close(got, want_losses(seed, config, log_stds), tolerance, dtype)


def cases_of(seed: int) -> dict[str, Any]:
    """Which samples of a problem reach which branch."""
    nets, batch, noise, random = problem(seed, FLAGS)
    q = q_values(nets.critics, batch.obs, POLICY.sample(nets.actor, batch.obs, noise)[0])
    difference = differences(nets.critics, batch, candidates_of(nets, batch, random))
    best = np.argmax(target_values(nets, batch, random), axis=0)
    return {
        **POLICY.cases(nets.actor, batch.obs),
        "first critic smaller": q[0] < q[1],
        "second critic smaller": q[1] < q[0],
        "difference below its bound": difference < HYPERS.min_difference,
        "difference above its bound": difference > HYPERS.min_difference,
        **endings(batch),
        **{f"action {k} the best of the next": best == k for k in range(NUM_ACTIONS)},
    }


def test_the_samples_reach_every_branch() -> None:
    assert_reached(map(cases_of, SEEDS), 20)


def test_the_multiplier_is_bounded() -> None:
    means = np.array([1.3, 2.1])
    for size in (13.5, 14.5):  # the logarithm of 1e6 is 13.8
        with computing(np.float64):
            got = jax.value_and_grad(cql.multiplier_loss)(jnp.asarray(size), jnp.asarray(means), HYPERS)
        assert_close(got, value_and_grad(lambda x: multiplier_loss(x, means), np.asarray(size)), 1e-12)


# Whole updates, with everything that surrounds the losses.

UPDATES = 3


def updated(nets: Nets, keys: Any, config: cql.Config) -> Nets:
    """The networks after one update for each key, from fresh optimisers.

    Random numbers come from JAX by the learner's own key schedule: they are the only thing that the two share.
    """
    adams = Nets(*map(Adam, nets))
    for key in keys:
        batch_key, actor_key, critic_key = jax.random.split(key, 3)
        noise = np.asarray(jax.random.normal(actor_key, (UPDATE_BATCH, ACTION_DIM)))
        uniform_key, current_key, following_key, target_key = jax.random.split(critic_key, 4)
        many = NUM_ACTIONS, UPDATE_BATCH, ACTION_DIM
        candidates = soft_maximum.Random(
            -1.0 + 2.0 * jax.random.uniform(uniform_key, many),
            jax.random.normal(current_key, many),
            jax.random.normal(following_key, many),
        )
        target = jax.random.normal(target_key, many if config.max_target_backup else (1, *many[1:]))
        random = jax.tree.map(np.asarray, cql.Random(candidates, target))
        batch = drawn(rows_of(batch_key, UPDATE_BATCH), config.normalize_obs)
        reward = batch.reward * reward_scale(config.normalize_reward)
        batch = batch._replace(reward=HYPERS.reward_scale * reward + HYPERS.reward_bias)

        # All gradients where the last update left off.
        grads = gradients(nets, batch, noise, random, config)
        critics = adams.critics.step(nets.critics, grads.critics, HYPERS.critic_learning_rate)
        nets = Nets(
            actor=adams.actor.step(nets.actor, grads.actor, HYPERS.actor_learning_rate),
            critics=critics,
            target_critics=polyak(nets.target_critics, critics, HYPERS.tau),
            log_alpha=adams.log_alpha.step(nets.log_alpha, grads.log_alpha, HYPERS.alpha_learning_rate)
            if config.learn_alpha
            else nets.log_alpha,
            log_multiplier=adams.log_multiplier.step(
                nets.log_multiplier, grads.log_multiplier, HYPERS.multiplier_learning_rate
            )
            if config.lagrange
            else nets.log_multiplier,
        )
    return nets


@by_config
def test_whole_updates(config: cql.Config) -> None:
    algorithm, nets = cql.make(config), random_nets(np.random.default_rng(0), MODERATE)
    with computing(np.float64):
        update, evaluate = compiled(algorithm, HYPERS)
        state = state_of(nets, jnp.float64)
        fresh = jax.eval_shape(algorithm.init, jax.random.key(0), toy_task(), HYPERS)
        chex.assert_trees_all_equal_structs(fresh, state)
        keys = jax.random.split(jax.random.key(1), UPDATES)
        for i, key in enumerate(keys):
            state, metrics = update(key, state, Clock(jnp.int32(i), jnp.asarray(0.5)))
        want = updated(nets, keys, config)
        evaluated = evaluate(state, jnp.asarray(SOMEWHERE))
    state = params_of(state)
    assert_moved(Nets(*state), want, nets, 1e-8)
    assert (float(state.log_alpha) != float(nets.log_alpha)) == config.learn_alpha
    assert (float(state.own) != float(nets.log_multiplier)) == config.lagrange
    assert float(metrics["alpha"]) == pytest.approx(np.exp(want.log_alpha), rel=1e-12)
    if config.lagrange:
        assert float(metrics["multiplier"]) == pytest.approx(np.exp(want.log_multiplier), rel=1e-12)
    # Evaluation plays the mean, and values it in the units of the recorded rewards.
    assert_evaluates(
        evaluated,
        lambda obs: np.tanh(POLICY.distribution(want.actor, obs)[0]),
        want.critics,
        config.normalize_obs,
        value_scale=1.0 / reward_scale(config.normalize_reward),
    )


# Around the updates.


def test_starts_as_corl_does() -> None:
    config = dataclasses.replace(PLAIN, actor_hidden_sizes=(64, 64), critic_hidden_sizes=(64, 64))
    algorithm, task = cql.make(config), Task(Toy())
    state = jax.jit(lambda key: algorithm.init(key, task, HYPERS))(jax.random.key(0))
    state = params_of(state)
    chex.assert_trees_all_equal(state.critics, state.target_critics)
    assert float(state.log_alpha) == pytest.approx(np.log(HYPERS.initial_alpha))
    assert float(state.own) == 1.0
    layers = state.critics["params"]
    assert all(not np.any(layer["bias"]) for layer in layers.values())
    for kernel in np.asarray(layers["Dense_1"]["kernel"]):
        np.testing.assert_allclose(kernel.T @ kernel, 2.0 * np.eye(64), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(layers["Dense_2"]["kernel"], axis=(1, 2)), 0.01, rtol=1e-5)
    assert not np.any(layers["Dense_1"]["kernel"][0] == layers["Dense_1"]["kernel"][1])
    policy = state.actor["params"]
    assert (float(policy["log_std_scale"]), float(policy["log_std_offset"])) == (1.0, -1.0)
    bound = 0.01 * np.sqrt(6.0 / (64 + 2 * ACTION_DIM))
    assert 0.9 * bound < np.max(np.abs(policy["Dense_0"]["kernel"])) <= bound
    assert not np.any(policy["Dense_0"]["bias"])
    assert 0.9 < np.max(np.abs(policy["MLP_0"]["Dense_1"]["kernel"])) * 8.0 <= 1.0


def test_presets_are_those_of_corl() -> None:
    assert {name for name, preset in cql.PRESETS.items() if preset.config.normalize_reward} == {"hopper-medium"}
    for name, preset in cql.PRESETS.items():
        maze = name.startswith("antmaze")
        flags = preset.config.lagrange, preset.config.clip_difference, preset.config.max_target_backup
        assert flags == (maze, maze, maze)
        assert preset.config.normalize_obs is not maze
        assert len(preset.config.critic_hidden_sizes) == (5 if maze else 3)
        hypers = preset.hypers
        assert (hypers.cql_alpha, hypers.actor_learning_rate) == ((5.0, 1e-4) if maze else (10.0, 3e-5))
        assert hypers.alpha_learning_rate == hypers.actor_learning_rate
        assert (hypers.reward_scale, hypers.reward_bias) == ((10.0, -5.0) if maze else (1.0, 0.0))
    assert len(cql.PRESETS) == 15


def test_what_cannot_work_is_refused_by_name() -> None:
    for name in ("batch_size", "num_actions"):
        with pytest.raises(UserError, match=f"^{name}=0 must be at least 1"):
            cql.make(cql.Config(**{name: 0}))
