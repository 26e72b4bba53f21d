"""The sampling error against closed forms, and that PROPS and ROS lower it while the target policy stays as it is."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from envs.core import Box, Discrete
from rlsuite.algorithms.on_policy import buffered_ppo, props, ros
from rlsuite.core import Task
from rlsuite.pieces import distributions
from rlsuite.pieces.actor_critic import Networks, actor_of
from rlsuite.pieces.sampling_error import learns_in_fit, sampling_error, within_bounds
from rlsuite.training import train

fit = functools.partial(sampling_error, num_steps=1500, learning_rate=5e-3)


def test_of_a_bandit_is_the_divergence_of_the_frequencies() -> None:
    counts, logits = np.array([30, 50, 20]), np.array([0.2, -0.1, 0.4])
    action = np.repeat(np.arange(3), counts)
    policy = np.exp(logits) / np.exp(logits).sum()
    frequency = counts / counts.sum()
    want = np.sum(frequency * np.log(frequency / policy))
    # As many rows again that do not count.
    rows = jnp.asarray(np.concatenate([action, np.zeros(100, int)]))
    got = fit(
        lambda logits: distributions.categorical_log_prob(jnp.tile(logits, (200, 1)), rows),
        jnp.asarray(logits, jnp.float32),
        True,
        jnp.arange(200) < 100,
    )
    assert float(got) == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize("learns_spread", [True, False])
def test_of_a_gaussian_has_a_closed_form(learns_spread: bool) -> None:
    rng = np.random.default_rng(0)
    action = rng.normal(0.3, 1.3, size=100).astype(np.float32)

    def log_prob(params: Any) -> Any:
        mean, log_std = params["mean"], params["log_std"]
        return distributions.gaussian_log_prob(jnp.asarray(action)[:, None], mean[None], log_std[None])

    params = {"mean": jnp.zeros(1), "log_std": jnp.zeros(1)}
    got = fit(log_prob, params, {"mean": True, "log_std": learns_spread}, jnp.ones(100, bool))
    spread = action.std() if learns_spread else 1.0
    best = -np.log(spread) - 0.5 * np.mean(((action - action.mean()) / spread) ** 2)
    assert float(got) == pytest.approx(best + 0.5 * np.mean(action**2), rel=1e-3)


def test_the_fit_keeps_to_its_bounds() -> None:
    action = jnp.full((50, 1), 0.5)

    def log_prob(params: Any) -> Any:
        return distributions.gaussian_log_prob(action, params["mean"][None], params["log_std"][None])

    params = {"mean": jnp.full(1, 0.5), "log_std": jnp.zeros(1)}
    got = fit(
        log_prob,
        params,
        {"mean": True, "log_std": True},
        jnp.ones(50, bool),
        project=lambda params: {**params, "log_std": jnp.clip(params["log_std"], -1.0, 1.0)},
    )
    # log N(0.5; 0.5, s^2) grows by 1 as log s falls from 0 to its bound.
    assert float(got) == pytest.approx(1.0, rel=1e-3)


def test_of_an_actor_the_hidden_layers_stay_and_its_spread_is_bounded() -> None:
    for space in (Discrete(2), Box((-1.0,) * 3, (1.0,) * 3)):
        actor = actor_of(Networks((4, 5), space).init(jax.random.key(0), jnp.zeros(2)))
        learns = learns_in_fit(actor)
        moving = {jax.tree_util.keystr(path) for path, moves in jax.tree.leaves_with_path(learns) if moves}
        spread = {"['log_std']"} if isinstance(space, Box) else set()
        assert moving == {"['policy']['Dense_2']['kernel']", "['policy']['Dense_2']['bias']"} | spread
    np.testing.assert_array_equal(
        within_bounds({**actor, "log_std": jnp.asarray([-5.0, 0.5, 2.0])})["log_std"], [-3.0, 0.5, 1.0]
    )
    assert "log_std" not in within_bounds({"policy": actor["policy"]})


# --- With a target policy that stays as it is -------------------------------------------------------------------------

RUNS, UPDATES = 64, 8
CONFIG = props.Config(
    num_envs=4,
    num_steps=16,
    behavior_steps=2,
    buffer_batches=4,
    num_epochs=1,
    num_minibatches=4,
    behavior_epochs=8,
    behavior_minibatches=4,
    hidden_sizes=(8,),
    normalize_obs=False,
    normalize_reward=False,
)
HYPERS = props.Hypers(learning_rate=0.0, behavior_learning_rate=1e-2, behavior_kl_coef=0.1)
ROS_HYPERS = ros.Hypers(learning_rate=0.0)
STEP_SIZES = {"probe/action/discrete": 5.0, "probe/action/continuous": 1.0}


class Trained(NamedTuple):
    """What some runs end with; arrays have leading axes `[settings, RUNS]`."""

    start: Any
    """the target's parameters before the first update"""
    state: buffered_ppo.State
    sums: Any
    """of the metrics, over all updates"""


@functools.cache
def trained(env_id: str, config: props.Config | ros.Config, step_sizes: tuple[float, ...] = (0.0,)) -> Trained:
    """64 runs of each of these step sizes, which ROS alone has, with learning rate 0, in one program."""
    algorithm = ros.make(config) if isinstance(config, ros.Config) else props.make(config)
    task = Task(envs.make(env_id))

    def run(step_size: Any, seed: Any) -> Trained:
        hypers = ROS_HYPERS._replace(ros_step_size=step_size) if isinstance(config, ros.Config) else HYPERS
        zero, updates = jnp.int32(0), jnp.int32(UPDATES)
        before = train.init(algorithm, task, seed, hypers)
        after = train.segment(algorithm, task, before, seed, hypers, zero, updates, updates, zero)
        return Trained(before.state.learner.params, after.state, after.sums)

    all_runs = jax.vmap(jax.vmap(run, (None, 0)), (0, None))
    return jax.jit(all_runs)(jnp.asarray(step_sizes, jnp.float32), jnp.arange(RUNS, dtype=jnp.uint32))


def with_ros(env_id: str) -> Trained:
    """Step sizes of 0, which is on-policy sampling, of ROS, and of a reversed sign, which is small lest it diverge.

    Errors are measured at updates 0 and 7.
    """
    shared = {f.name: getattr(CONFIG, f.name) for f in dataclasses.fields(ros.Config)}
    config = ros.Config(**shared | {"sampling_error_epochs": 600, "sampling_error_interval": 7})
    alpha = STEP_SIZES[env_id]
    return trained(env_id, config, (0.0, alpha, -0.2 * alpha))


def exact_errors(env_id: str, trained: Trained) -> np.ndarray[Any, Any]:
    """The sampling error of every buffer, `[settings, RUNS]`: obs is -1 or 1, so that tables are the best fit."""
    buffer = trained.state.memory.buffer
    shape = np.shape(buffer.reward)[:2]
    obs, action = (np.asarray(x, np.float64).reshape(*shape, -1) for x in (buffer.obs, buffer.action))
    networks = Networks(CONFIG.hidden_sizes, envs.make(env_id).action_space)
    both = jax.vmap(jax.vmap(lambda params: networks.apply(params, jnp.asarray([[-1.0], [1.0]]))[0]))
    dists = [np.asarray(x, np.float64) for x in both(trained.state.learner.params)]
    errors = np.zeros(shape)
    for run in np.ndindex(*shape):
        side = (obs[run] > 0).astype(int)
        if len(dists) == 1:
            policy = np.exp(dists[0][run]) / np.exp(dists[0][run]).sum(axis=1, keepdims=True)
            counts = np.zeros((2, 2))
            np.add.at(counts, (side, action[run].astype(int)), 1)
            frequency = counts / counts.sum(axis=1, keepdims=True)
            errors[run] = np.sum(counts * np.log(np.maximum(frequency, 1e-12) / policy)) / counts.sum()
        else:
            mean, log_std = dists[0][run][:, 0], dists[1][run][0, 0]
            own = np.array([action[run][side == i].mean() for i in range(2)])
            spread = np.sqrt(np.mean((action[run] - own[side]) ** 2))
            z = (action[run] - mean[side]) / np.exp(log_std)
            errors[run] = np.mean(0.5 * z**2) + log_std - 0.5 - np.log(spread)
    return errors


def assert_target_stayed(trained: Trained) -> None:
    for before, after in zip(
        jax.tree.leaves(trained.start), jax.tree.leaves(trained.state.learner.params), strict=True
    ):
        np.testing.assert_array_equal(before, after)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", STEP_SIZES)
def test_ros_lowers_it_and_its_reverse_raises_it(env_id: str) -> None:
    ros_runs = with_ros(env_id)
    assert_target_stayed(ros_runs)
    target, ros, reverse = exact_errors(env_id, ros_runs).mean(axis=1)
    # The target's own error is about parameters / (2 transitions), with a standard error of an eighth or less.
    assert ros < 0.75 * target
    assert reverse > 1.25 * target


@pytest.mark.slow
@pytest.mark.parametrize("env_id", STEP_SIZES)
def test_props_lowers_it(env_id: str) -> None:
    props_runs = trained(env_id, CONFIG)
    assert_target_stayed(props_runs)
    target = exact_errors(env_id, with_ros(env_id))[0].mean()
    assert exact_errors(env_id, props_runs).mean() < 0.75 * target


@pytest.mark.parametrize("env_id", STEP_SIZES)
def test_the_metric_is_the_exact_error_and_is_held_between_measurements(env_id: str) -> None:
    ros_runs = with_ros(env_id)
    last = np.asarray(ros_runs.state.sampling_error)
    np.testing.assert_allclose(last[:2], exact_errors(env_id, ros_runs)[:2], rtol=0.1, atol=5e-4)
    # The first value counts seven times. It is four times the last on average, from 64 of then 256 transitions.
    first = (np.asarray(ros_runs.sums["sampling_error"]) - last)[0] / 7
    assert 2.0 < np.mean(first) / np.mean(last[0]) < 8.0


def test_there_is_no_such_metric_unless_asked_for() -> None:
    props_runs = trained("probe/action/discrete", CONFIG)
    assert props_runs.state.sampling_error is None
    assert "sampling_error" not in props_runs.sums
