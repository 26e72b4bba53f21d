"""ReBRAC against an independent reference in NumPy and float64: losses, their whole gradients, whole updates.

The reference is written from the paper (Tarasov et al. 2023, arXiv 2305.09836) and the details listed in `rebrac.py`.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import chex
import jax
import numpy as np
import pytest
from numpy_critics import (
    ACTION_DIM,
    BATCH,
    OBS_DIM,
    assert_different,
    bellman,
    random_batch,
    smallest,
    squared_errors,
    stacked,
)
from numpy_nets import FloatArray, Tree, assert_close, cast, exact, mlp, normal, perceptron
from numpy_offline import dataset, task
from numpy_offline_td3 import (
    UPDATE_BATCH,
    Nets,
    assert_learns_as,
    cases_of,
    chosen,
    jax_losses,
    learner,
    smoothed,
    want_losses,
)
from reference import absolute, assert_reached, computing, held, precisions, value_and_grad
from trained_states import params_of

from envs.datasets import Batch
from rlsuite.algorithms.offline import rebrac
from rlsuite.core import Task
from rlsuite.errors import UserError
from rlsuite.pieces import offline_td3
from rlsuite.pieces.networks import MLP

HIDDEN = (8, 7)
SEEDS = range(5)
HYPERS = rebrac.Hypers(
    actor_learning_rate=0.003,
    critic_learning_rate=0.005,
    discount=0.93,
    tau=0.1,
    actor_penalty=0.3,
    critic_penalty=0.2,
    target_noise=0.4,
    target_noise_clip=0.5,
    reward_shift=-0.4,
)
FLAGS = {"as the authors": (False, True), "norms in the actor alone": (True, False)}
"""layer norms in the actor, in the critics"""


def with_norms(rng: np.random.Generator, net: Tree) -> Tree:
    """Add layer norms with any scale and shift."""
    for i, size in enumerate(HIDDEN):
        net[f"LayerNorm_{i}"] = {"scale": exact(1.0 + 0.3 * normal(rng, size)), "bias": exact(0.3 * normal(rng, size))}
    return net


def critic_reference(nets: Nets, batch: Batch, noise: FloatArray) -> tuple[float, Tree]:
    """The critics' loss and its gradient."""
    next_action = smoothed(nets, batch, noise, HYPERS)
    away = np.zeros(len(batch.obs))
    for i, j in itertools.product(range(len(batch.obs)), range(ACTION_DIM)):
        # Where time ran out, the record has no next action.
        away[i] += 0.0 if batch.truncated[i] else (next_action[i, j] - batch.next_action[i, j]) ** 2
    next_value = smallest(nets.target_critics, batch.next_obs, next_action) - HYPERS.critic_penalty * away
    target = bellman(batch._replace(reward=batch.reward + HYPERS.reward_shift), HYPERS.discount, next_value)
    return value_and_grad(lambda critics: squared_errors(critics, batch, target), nets.critics)


def actor_reference(nets: Nets, batch: Batch, rows: Any = None) -> tuple[float, Tree]:
    """The actor's loss and its gradient; the weight of the critics in it is no function of the actor."""

    def loss(actor: Tree) -> Any:
        action = chosen(actor, batch.obs)
        q = smallest(nets.critics, batch.obs, action)
        penalty = HYPERS.actor_penalty * np.mean(np.sum((action - batch.action) ** 2, axis=1))
        return penalty - np.mean(q) / held(np.mean(absolute(q)))

    return value_and_grad(loss, nets.actor)


def random_nets(rng: np.random.Generator, name: str) -> Nets:
    in_actor, in_critics = FLAGS[name]

    def actor() -> Tree:
        net = mlp(rng, OBS_DIM, *HIDDEN, ACTION_DIM)
        return {"params": with_norms(rng, net) if in_actor else net}

    def twins(mean: float) -> Tree:
        both = [mlp(rng, OBS_DIM + ACTION_DIM, *HIDDEN, 1) for _ in range(2)]
        somewhere = np.concatenate([rng.normal(size=(99, OBS_DIM)), rng.uniform(-1.0, 1.0, (99, ACTION_DIM))], axis=1)
        for net in both:
            if in_critics:
                with_norms(rng, net)
            # Around the same on average, so that each is the smaller one somewhere.
            net["Dense_2"]["bias"] += exact(mean - np.mean(perceptron(net, somewhere, "relu")))
        return stacked(jax.tree.map(exact, both))

    # The critics on both sides of 0, so that a mean of sizes is not the size of a mean.
    return Nets(actor(), twins(0.5), actor(), twins(1.0))


def problem(seed: int, name: str) -> tuple[Nets, Batch, FloatArray]:
    rng = np.random.default_rng(seed)
    return random_nets(rng, name), random_batch(rng), normal(rng, BATCH, ACTION_DIM)


@functools.cache
def losses(name: str) -> Any:
    in_actor, in_critics = FLAGS[name]
    networks = offline_td3.Networks(
        MLP((*HIDDEN, ACTION_DIM), layer_norm=in_actor), MLP((*HIDDEN, 1), layer_norm=in_critics)
    )
    return jax_losses(networks, rebrac.critic_loss, rebrac.actor_loss)


@functools.cache
def want(seed: int, name: str) -> Any:
    nets, batch, noise = problem(seed, name)
    return want_losses(nets, batch, critic_reference(nets, batch, noise), actor_reference(nets, batch))


@pytest.mark.parametrize("name", FLAGS)
@precisions(in_float64=1e-12)
def test_losses_and_gradients(name: str, dtype: Any, tolerance: float) -> None:
    for seed in SEEDS:
        nets, *rest = problem(seed, name)
        with computing(dtype):
            batch, noise, hypers = cast((*rest, HYPERS), dtype)
            got = losses(name)(learner(nets, dtype), batch, noise, batch.action, hypers)
        assert_close(got, want(seed, name), tolerance, dtype)


def test_the_samples_reach_every_branch() -> None:
    assert_reached((cases_of(*problem(seed, "as the authors"), HYPERS) for seed in SEEDS), 20)


# Whole updates, with everything that surrounds the losses.

CONFIGS = {
    "as the authors": rebrac.Config(batch_size=UPDATE_BATCH, hidden_sizes=HIDDEN, policy_delay=3),
    "norms in the actor alone": rebrac.Config(
        batch_size=UPDATE_BATCH,
        hidden_sizes=HIDDEN,
        policy_delay=1,
        normalize_obs=True,
        actor_layer_norm=True,
        critic_layer_norm=False,
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_whole_updates(name: str) -> None:
    nets, config = random_nets(np.random.default_rng(0), name), CONFIGS[name]
    assert_learns_as(nets, critic_reference, actor_reference, rebrac.make(config), config, HYPERS)


# Around the updates.


def test_starts_with_critics_that_differ_and_with_targets_that_do_not() -> None:
    algorithm = rebrac.make(CONFIGS["as the authors"])
    with jax.enable_x64(True):
        env = task().env
    state = jax.jit(lambda key: algorithm.init(key, Task(env, dataset()), HYPERS))(jax.random.key(0))
    state = params_of(state)
    assert_different(state.critics)
    chex.assert_trees_all_equal((state.actor, state.critics), (state.target_actor, state.target_critics))


def test_settings_are_those_of_the_authors() -> None:
    assert rebrac.Config() == rebrac.Config(1024, (256, 256, 256), 2, False, False, True)
    assert rebrac.Hypers()[:4] == (1e-3, 1e-3, 0.99, 0.005) and rebrac.Hypers()[6:] == (0.2, 0.5, 0.0)
    assert len(rebrac.PRESETS) == 24
    cheetah, maze = rebrac.PRESETS["halfcheetah-medium"], rebrac.PRESETS["antmaze-large-play"]
    assert cheetah.config == rebrac.Config() and maze.config == rebrac.Config(batch_size=256)
    assert cheetah.hypers == rebrac.Hypers(actor_penalty=0.001, critic_penalty=0.01)
    assert maze.hypers == (3e-4, 5e-5, 0.999, 0.005, 0.002, 0.001, 0.2, 0.5, -1.0)


def test_what_cannot_work_is_refused_by_name() -> None:
    for name in ("batch_size", "policy_delay"):
        with pytest.raises(UserError, match=f"^{name}=0 must be at least 1"):
            rebrac.make(rebrac.Config(**{name: 0}))
