"""CQL against an independent reference in NumPy and float64: losses, their whole gradients, whole updates.

The reference is written from the paper (Kumar et al. 2020, arXiv 2006.04779) and the details listed in
`cql.py`, with every derivative by hand. A central difference of the reference's own losses guards
those derivatives.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_nets import (
    HIGH,
    LOW,
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
)
from numpy_squashed import (
    ACTION_DIM,
    OBS_DIM,
    Batch,
    Squashed,
    alpha_reference,
    critic,
    normalized,
    q_values,
    random_batch,
    random_critics,
    squashed,
    squashed_backward,
    stacked,
    through_the_smallest,
    toy_dataset,
)
from trained_states import params_of, with_adam

from envs import datasets
from rlsuite.algorithms.offline import cql
from rlsuite.core import Clock, Task
from rlsuite.errors import UserError
from rlsuite.pieces import offline_td3
from rlsuite.pieces.networks import MLP

HIDDEN = (8, 7)
BATCH, NUM_ACTIONS, UPDATE_BATCH = 48, 3, 16
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


class Drawn(NamedTuple):
    """Sampled actions and all that their derivative needs."""

    squashed: Squashed
    raw: FloatArray
    shifted: FloatArray
    """the log standard deviation before its bounds"""
    inputs: list[FloatArray]


def as_mlp(actor: Tree) -> Tree:
    """Its four parts as one network."""
    parts = actor["params"]
    return {**parts["MLP_0"], "Dense_2": parts["Dense_0"]}


def sampled(actor: Tree, obs: FloatArray, noise: FloatArray) -> Drawn:
    out, inputs = forward(as_mlp(actor), obs, "relu")
    mean, raw = out[:, :ACTION_DIM], out[:, ACTION_DIM:]
    shifted = actor["params"]["log_std_scale"] * raw + actor["params"]["log_std_offset"]
    return Drawn(squashed(mean, np.minimum(np.maximum(shifted, -20.0), 2.0), noise), raw, shifted, inputs)


def actor_reference(nets: Nets, obs: FloatArray, noise: FloatArray) -> tuple[float, Tree]:
    """The policy's loss and its gradient."""
    n, alpha, scale = len(obs), np.exp(nets.log_alpha), nets.actor["params"]["log_std_scale"]
    d = sampled(nets.actor, obs, noise)
    q, d_action = through_the_smallest(nets.critics, obs, d.squashed.action)
    d_mean, d_log_std = squashed_backward(d.squashed, -d_action / n, alpha / n)
    d_shifted = np.where((d.shifted > -20.0) & (d.shifted < 2.0), d_log_std, 0.0)
    grads = backward(as_mlp(nets.actor), d.inputs, np.concatenate([d_mean, scale * d_shifted], axis=1), "relu")[0]
    tree = {
        "MLP_0": {name: grads[name] for name in ("Dense_0", "Dense_1")},
        "Dense_0": grads["Dense_2"],
        "log_std_scale": np.sum(d_shifted * d.raw),
        "log_std_offset": np.sum(d_shifted),
    }
    return float(np.mean(alpha * d.squashed.log_prob - q)), {"params": tree}


class Term(NamedTuple):
    """The conservative term of one critic, and its derivatives."""

    difference: FloatArray
    """`[batch]`, before its bound"""
    mean: float
    """after it"""
    grads: Tree
    """of that mean"""


def conservative(nets: Nets, i: int, batch: Batch, random: cql.Random, clip: bool) -> Term:
    """T log sum exp((Q - log density) / T) - Q(s, a) of the i-th critic, over actions taken one after another."""
    net, n, obs = critic(nets.critics, i), len(batch.obs), batch.obs
    values, seen = [], []
    for k in range(NUM_ACTIONS):
        current = sampled(nets.actor, obs, random.current[k]).squashed
        following = sampled(nets.actor, batch.next_obs, random.following[k]).squashed
        for action, log_density in (
            (random.uniform[k], ACTION_DIM * np.log(0.5)),
            (current.action, current.log_prob),
            (following.action, following.log_prob),
        ):
            # Whatever an action was drawn for, it is tried at s.
            q, inputs = forward(net, np.concatenate([obs, action], axis=1), "relu")
            values.append((q[:, 0] - log_density) / HYPERS.temperature)
            seen.append(inputs)
    log_sum = np.logaddexp.reduce(values, axis=0)
    of_data, data_inputs = forward(net, np.concatenate([obs, batch.action], axis=1), "relu")
    difference = HYPERS.temperature * log_sum - of_data[:, 0]
    counts = np.where(difference > HYPERS.min_difference, 1.0, 0.0) if clip else np.ones(n)
    grads = backward(net, data_inputs, -counts[:, None] / n, "relu")[0]
    for value, inputs in zip(values, seen, strict=True):
        share = np.exp(value - log_sum)
        more = backward(net, inputs, (counts * share / n)[:, None], "relu")[0]
        grads = jax.tree.map(np.add, grads, more)
    mean = np.mean(np.where(counts > 0.0, difference, HYPERS.min_difference))
    return Term(difference, float(mean), grads)


def target_values(nets: Nets, batch: Batch, random: cql.Random) -> FloatArray:
    """The smaller target critic at each action drawn at s': `[actions, batch]`."""
    actions = [sampled(nets.actor, batch.next_obs, noise).squashed.action for noise in random.target]
    return np.stack([np.min(q_values(nets.target_critics, batch.next_obs, action), axis=0) for action in actions])


def critic_reference(
    nets: Nets, batch: Batch, random: cql.Random, config: cql.Config
) -> tuple[float, Tree, FloatArray]:
    """The critics' loss, its gradient, and the mean difference of each critic."""
    n = len(batch.obs)
    # Running out of time ends nothing: only `terminated` cuts the bootstrap. There is no entropy in it.
    next_value = np.max(target_values(nets, batch, random), axis=0)
    target = batch.reward + HYPERS.discount * (1.0 - batch.terminated) * next_value
    weight, gap = HYPERS.cql_alpha, 0.0
    if config.lagrange:
        weight, gap = weight * min(float(np.exp(nets.log_multiplier)), 1e6), HYPERS.target_gap
    loss, grads, means = 0.0, [], []
    for i in range(2):
        net = critic(nets.critics, i)
        q, inputs = forward(net, np.concatenate([batch.obs, batch.action], axis=1), "relu")
        error = q[:, 0] - target
        term = conservative(nets, i, batch, random, config.clip_difference)
        loss += np.mean(error**2) + weight * (term.mean - gap)
        of_error = backward(net, inputs, 2.0 * error[:, None] / n, "relu")[0]
        grads.append(jax.tree.map(lambda a, b: a + weight * b, of_error, term.grads))
        means.append(term.mean)
    return loss, stacked(grads), np.array(means)


def multiplier_reference(log_multiplier: FloatArray, means: FloatArray) -> tuple[float, FloatArray]:
    """The multiplier's loss and its derivative by its logarithm: too large a difference must raise it."""
    pull = 0.5 * HYPERS.cql_alpha * np.sum(means - HYPERS.target_gap)
    size = np.exp(log_multiplier)
    return -float(min(size, 1e6) * pull), np.asarray(-size * pull if size < 1e6 else 0.0)


def random_nets(rng: np.random.Generator, log_stds: tuple[float, ...]) -> Nets:
    net = mlp(rng, OBS_DIM, *HIDDEN, 2 * ACTION_DIM)
    net["Dense_2"]["kernel"][:, ACTION_DIM:] *= 2.0
    net["Dense_2"]["bias"][ACTION_DIM:] = log_stds
    actor = {
        "MLP_0": {name: net[name] for name in ("Dense_0", "Dense_1")},
        "Dense_0": net["Dense_2"],
        "log_std_scale": np.float64(1.125),
        "log_std_offset": np.float64(-0.75),
    }
    critics, targets = (random_critics(rng, 2, HIDDEN) for _ in range(2))
    return Nets({"params": jax.tree.map(exact, actor)}, critics, targets, exact(np.log(0.4)), exact(0.3))


def random_numbers(rng: np.random.Generator, size: int, config: cql.Config) -> cql.Random:
    shape = NUM_ACTIONS, size, ACTION_DIM
    uniform: Any = exact(rng.uniform(-1.0, 1.0, size=shape))
    current, following, target = normal(rng, *shape), normal(rng, *shape), normal(rng, *shape)
    return cql.Random(uniform, current, following, target[: len(target) if config.max_target_backup else 1])


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
    return with_adam(cql.State(*cast(tuple(nets), dtype)))


NETWORKS = offline_td3.Networks(cql.Policy(HIDDEN, ACTION_DIM), MLP((*HIDDEN, 1)))


@functools.partial(jax.jit, static_argnames="config")
def jax_losses(state: cql.State, batch: Any, noise: Any, random: cql.Random, hypers: Any, config: cql.Config) -> Any:
    """The losses of the learner and their gradients."""
    batch, params = datasets.Batch(*batch), params_of(state)
    (critic_loss, (difference, _)), critic_grads = jax.value_and_grad(cql.critic_loss, has_aux=True)(
        params.critics, NETWORKS, state, batch, random, config, hypers
    )
    (actor_loss, log_prob), actor_grads = jax.value_and_grad(cql.actor_loss, has_aux=True)(
        params.actor, NETWORKS, params.critics, params.log_alpha, batch.obs, noise
    )
    multiplier = jax.value_and_grad(cql.multiplier_loss)(params.log_multiplier, difference, hypers)
    return (critic_loss, critic_grads, difference), (actor_loss, actor_grads, log_prob), multiplier


def compare(seed: int, config: cql.Config, log_stds: tuple[float, ...], dtype: Any, tolerance: float) -> None:
    """All losses and gradients of the learner, computed in `dtype`, against the reference."""
    nets, batch, noise, random = problem(seed, config, log_stds)
    of_critics = critic_reference(nets, batch, random, config)
    log_prob = sampled(nets.actor, batch.obs, noise).squashed.log_prob
    want = (
        of_critics,
        (*actor_reference(nets, batch.obs, noise), log_prob),
        multiplier_reference(nets.log_multiplier, of_critics[2]),
    )
    with jax.default_matmul_precision("highest"):
        arguments = cast((tuple(batch), noise, random, HYPERS), dtype)
        got = jax_losses(state_of(nets, dtype), *arguments, config=config)
    assert_close(got, want, tolerance, dtype)


@by_config
def test_losses_and_gradients_in_float64(config: cql.Config) -> None:
    with jax.enable_x64(True):
        for seed in range(5):
            # Where the policy is narrow its density is high, and its actions weigh nothing in the soft maximum.
            compare(seed, config, WIDE, jnp.float64, 1e-10)
            compare(seed, config, MODERATE, jnp.float64, 1e-10)


@by_config
def test_losses_and_gradients_in_float32(config: cql.Config) -> None:
    for seed in range(5):
        compare(seed, config, MODERATE, jnp.float32, 1e-5)


def test_the_samples_reach_every_branch() -> None:
    reached: dict[str, int] = {}
    for seed in range(5):
        nets, batch, noise, random = problem(seed, FLAGS)
        now = sampled(nets.actor, batch.obs, noise)
        q = q_values(nets.critics, batch.obs, now.squashed.action)
        difference = np.stack([conservative(nets, i, batch, random, True).difference for i in range(2)])
        best = np.argmax(target_values(nets, batch, random), axis=0)
        cases = {
            "log std below its bound": now.shifted < -20.0,
            "log std inside its bounds": (now.shifted > -20.0) & (now.shifted < 2.0),
            "log std above its bound": now.shifted > 2.0,
            "first critic smaller": q[0] < q[1],
            "second critic smaller": q[1] < q[0],
            "difference below its bound": difference < HYPERS.min_difference,
            "difference above its bound": difference > HYPERS.min_difference,
            "terminated only": batch.terminated & ~batch.truncated,
            "truncated only": batch.truncated & ~batch.terminated,
            "terminated and truncated": batch.terminated & batch.truncated,
            "neither": ~batch.terminated & ~batch.truncated,
            **{f"action {k} the best of the next": best == k for k in range(NUM_ACTIONS)},
        }
        for name, hits in cases.items():
            reached[name] = reached.get(name, 0) + int(np.sum(hits))
    assert min(reached.values()) >= 20, reached


@by_config
def test_the_reference_has_the_gradient_of_its_own_losses(config: cql.Config) -> None:
    nets, batch, noise, random = problem(7, config, MODERATE)
    rng = np.random.default_rng(8)
    _, of_critics, means = critic_reference(nets, batch, random, config)
    of_actor = actor_reference(nets, batch.obs, noise)[1]
    for _ in range(3):
        along = jax.tree.map(lambda x: rng.normal(size=x.shape), nets)
        numeric = slope(
            lambda critics: critic_reference(nets._replace(critics=critics), batch, random, config)[0],
            nets.critics,
            along.critics,
            step=1e-7,
        )
        assert numeric == pytest.approx(dot(of_critics, along.critics), rel=1e-6)
        numeric = slope(
            lambda actor: actor_reference(nets._replace(actor=actor), batch.obs, noise)[0],
            nets.actor,
            along.actor,
            step=1e-7,
        )
        assert numeric == pytest.approx(dot(of_actor, along.actor), rel=1e-6)
    numeric = slope(lambda x: multiplier_reference(x, means)[0], nets.log_multiplier, np.ones(()))
    assert numeric == pytest.approx(float(multiplier_reference(nets.log_multiplier, means)[1]), rel=1e-6)


def test_the_multiplier_is_bounded() -> None:
    means = np.array([1.3, 2.1])
    with jax.enable_x64(True):
        for size in (13.5, 14.5):  # the logarithm of 1e6 is 13.8
            of_learner = jax.value_and_grad(cql.multiplier_loss)(jnp.asarray(size), jnp.asarray(means), HYPERS)
            assert_close(of_learner, multiplier_reference(np.asarray(size), means), 1e-12)


# Whole updates, with everything that surrounds the losses.

UPDATES, STORED = 3, 24


def updated(nets: Nets, rows: Batch, dataset: Any, keys: Any, config: cql.Config) -> Nets:
    """The networks after one update for each key, from fresh optimisers.

    Random numbers come from JAX by the learner's own key schedule: they are the only thing that the two share.
    """
    adams = Nets(*map(Adam, nets))
    returns = np.asarray(dataset.episode_return)
    for key in keys:
        batch_key, actor_key, critic_key = jax.random.split(key, 3)
        index = np.asarray(jax.random.randint(batch_key, (UPDATE_BATCH,), 0, STORED))
        noise = np.asarray(jax.random.normal(actor_key, (UPDATE_BATCH, ACTION_DIM)))
        uniform_key, current_key, following_key, target_key = jax.random.split(critic_key, 4)
        many = NUM_ACTIONS, UPDATE_BATCH, ACTION_DIM
        random = cql.Random(
            -1.0 + 2.0 * jax.random.uniform(uniform_key, many),
            jax.random.normal(current_key, many),
            jax.random.normal(following_key, many),
            jax.random.normal(target_key, many if config.max_target_backup else (1, *many[1:])),
        )
        random = cql.Random(*map(np.asarray, random))
        batch = Batch(*(x[index] for x in rows))
        if config.normalize_obs:
            batch = batch._replace(obs=normalized(dataset, batch.obs), next_obs=normalized(dataset, batch.next_obs))
        size = reward_size(returns, config)
        batch = batch._replace(reward=HYPERS.reward_scale * (batch.reward * size) + HYPERS.reward_bias)

        # All gradients where the last update left off.
        _, of_critics, means = critic_reference(nets, batch, random, config)
        of_actor = actor_reference(nets, batch.obs, noise)[1]
        log_prob = sampled(nets.actor, batch.obs, noise).squashed.log_prob
        of_alpha = alpha_reference(nets.log_alpha, log_prob, -HYPERS.target_entropy_scale * ACTION_DIM)[1]
        of_multiplier = multiplier_reference(nets.log_multiplier, means)[1]
        critics = adams.critics.step(nets.critics, of_critics, HYPERS.critic_learning_rate)
        targets = jax.tree.map(
            lambda old, new: (1.0 - HYPERS.tau) * old + HYPERS.tau * new, nets.target_critics, critics
        )
        nets = Nets(
            actor=adams.actor.step(nets.actor, of_actor, HYPERS.actor_learning_rate),
            critics=critics,
            target_critics=targets,
            log_alpha=adams.log_alpha.step(nets.log_alpha, of_alpha, HYPERS.alpha_learning_rate)
            if config.learn_alpha
            else nets.log_alpha,
            log_multiplier=adams.log_multiplier.step(
                nets.log_multiplier, of_multiplier, HYPERS.multiplier_learning_rate
            )
            if config.lagrange
            else nets.log_multiplier,
        )
    return nets


def reward_size(returns: FloatArray, config: cql.Config) -> float:
    """What normalised rewards are multiplied by."""
    return float(1000.0 / (returns.max() - returns.min())) if config.normalize_reward else 1.0


@by_config
def test_whole_updates(config: cql.Config) -> None:
    algorithm, rng = cql.make(config), np.random.default_rng(0)
    nets = random_nets(rng, MODERATE)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        dataset, rows = toy_dataset(rng, STORED)
        task, hypers = Task(Toy(), dataset), cast(HYPERS, jnp.float64)
        state = state_of(nets, jnp.float64)
        fresh = jax.eval_shape(algorithm.init, jax.random.key(0), task, HYPERS)
        chex.assert_trees_all_equal_structs(fresh, state)
        update = jax.jit(algorithm.update)
        keys = jax.random.split(jax.random.key(1), UPDATES)
        for i, key in enumerate(keys):
            state, metrics = update(key, task, state, hypers, Clock(jnp.int32(i), jnp.asarray(0.5)))
        want = updated(nets, rows, dataset, keys, config)

        # Evaluation plays the mean, and the value is that of this action.
        obs = normal(rng, 1, OBS_DIM)
        act, value = jax.jit(
            lambda state, obs: tuple(f(jax.random.key(2), task, state, obs) for f in (algorithm.act, algorithm.value))
        )(state, jnp.asarray(obs[0]))
        seen = normalized(dataset, obs) if config.normalize_obs else obs
    state = params_of(state)
    assert_moved(Nets(*state), want, nets, 1e-8)
    assert (float(state.log_alpha) != float(nets.log_alpha)) == config.learn_alpha
    assert (float(state.log_multiplier) != float(nets.log_multiplier)) == config.lagrange
    assert float(metrics["alpha"]) == pytest.approx(np.exp(want.log_alpha), rel=1e-12)
    if config.lagrange:
        assert float(metrics["multiplier"]) == pytest.approx(np.exp(want.log_multiplier), rel=1e-12)
    best = np.tanh(forward(as_mlp(want.actor), seen, "relu")[0][:, :ACTION_DIM])
    np.testing.assert_allclose(act, ((LOW + HIGH) / 2.0 + (HIGH - LOW) / 2.0 * best)[0], rtol=1e-8)
    # Of the rewards that the dataset holds: their normalisation is undone.
    smaller = float(np.min(q_values(want.critics, seen, best)))
    assert float(value) == pytest.approx(smaller / reward_size(np.asarray(dataset.episode_return), config), rel=1e-8)


# Around the updates.


def test_starts_as_corl_does() -> None:
    config = dataclasses.replace(PLAIN, actor_hidden_sizes=(64, 64), critic_hidden_sizes=(64, 64))
    algorithm, task = cql.make(config), Task(Toy())
    state = jax.jit(lambda key: algorithm.init(key, task, HYPERS))(jax.random.key(0))
    state = params_of(state)
    chex.assert_trees_all_equal(state.critics, state.target_critics)
    assert float(state.log_alpha) == pytest.approx(np.log(HYPERS.initial_alpha))
    assert float(state.log_multiplier) == 1.0
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
