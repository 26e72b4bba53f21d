"""TD3+BC and BC against an independent reference in NumPy and float64: losses, their whole gradients, whole updates.

The reference is written from the papers (Fujimoto & Gu 2021, arXiv 2106.06860; Fujimoto et al. 2018, arXiv 1802.09477)
and the details listed in `td3_bc.py` and `bc.py`.
"""

from __future__ import annotations

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_critics import (
    ACTION_DIM,
    BATCH,
    OBS_DIM,
    assert_different,
    bellman,
    q_values,
    random_batch,
    smallest,
    squared_errors,
)
from numpy_nets import Adam, FloatArray, Tree, assert_close, assert_moved, cast, exact, mlp, normal
from numpy_offline import HIDDEN, SOMEWHERE, compiled, drawn, in_box, records, rows_of, shown, task, twins
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
from trained_states import params_of, with_adam

from envs.datasets import Batch
from rlsuite.algorithms.offline import bc, td3_bc
from rlsuite.core import Clock
from rlsuite.errors import UserError
from rlsuite.pieces import offline_td3
from rlsuite.pieces.networks import MLP

HYPERS = td3_bc.Hypers(
    actor_learning_rate=0.003,
    critic_learning_rate=0.005,
    discount=0.93,
    tau=0.1,
    alpha=1.7,
    target_noise=0.4,
    target_noise_clip=0.5,
)


SEEDS = range(5)


def critic_reference(nets: Nets, batch: Batch, noise: FloatArray, hypers: Any = HYPERS) -> tuple[float, Tree]:
    """The critics' loss and its gradient."""
    next_value = smallest(nets.target_critics, batch.next_obs, smoothed(nets, batch, noise, hypers))
    target = bellman(batch, hypers.discount, next_value)
    return value_and_grad(lambda critics: squared_errors(critics, batch, target), nets.critics)


def actor_reference(nets: Nets, batch: Batch, rows: Any = None, alpha: float = HYPERS.alpha) -> tuple[float, Tree]:
    """The actor's loss and its gradient; the weight of the critic in it is no function of the actor."""

    def loss(actor: Tree) -> Any:
        action = chosen(actor, batch.obs)
        q = q_values(nets.critics, batch.obs, action)[0]
        return -alpha / held(np.mean(absolute(q))) * np.mean(q) + np.mean((action - batch.action) ** 2)

    return value_and_grad(loss, nets.actor)


def imitation_reference(actor: Tree, batch: Batch) -> tuple[float, Tree]:
    """The loss of BC and its gradient."""
    return value_and_grad(lambda actor: np.mean((chosen(actor, batch.obs) - batch.action) ** 2), actor)


def random_nets(rng: np.random.Generator) -> Nets:
    def actor() -> Tree:
        net = mlp(rng, OBS_DIM, *HIDDEN, ACTION_DIM)
        net["Dense_2"]["kernel"] *= 2.0  # so that many actions lie near the edges of the box
        return {"params": net}

    nets = Nets(actor(), twins(rng), actor(), twins(rng))
    # On both sides of 0, so that a mean of sizes is not the size of a mean.
    nets.critics["params"]["Dense_2"]["bias"] -= 0.9375
    return nets


def problem(seed: int) -> tuple[Nets, Batch, FloatArray]:
    rng = np.random.default_rng(seed)
    return random_nets(rng), random_batch(rng), normal(rng, BATCH, ACTION_DIM)


ACTOR, CRITIC = MLP((*HIDDEN, ACTION_DIM)), MLP((*HIDDEN, 1))
NETWORKS = offline_td3.Networks(ACTOR, CRITIC)
LOSSES = jax_losses(NETWORKS, offline_td3.critic_loss, offline_td3.actor_loss)
IMITATION = jax.jit(lambda actor, batch: jax.value_and_grad(bc.loss)(actor, ACTOR, batch))


@functools.cache
def want(seed: int) -> Any:
    nets, batch, noise = problem(seed)
    td3_bc = want_losses(nets, batch, critic_reference(nets, batch, noise), actor_reference(nets, batch))
    return td3_bc, imitation_reference(nets.actor, batch)


@precisions(in_float64=1e-12)
def test_losses_and_gradients(dtype: Any, tolerance: float) -> None:
    for seed in SEEDS:
        nets, *rest = problem(seed)
        with computing(dtype):
            batch, noise, hypers = cast((*rest, HYPERS), dtype)
            got = LOSSES(learner(nets, dtype), batch, noise, batch.action, hypers)
            imitation = IMITATION(cast(nets.actor, dtype), batch)
        assert_close((got, imitation), want(seed), tolerance, dtype)


def test_the_samples_reach_every_branch() -> None:
    assert_reached((cases_of(*problem(seed), HYPERS) for seed in SEEDS), 20)


# Whole updates, with everything that surrounds the losses.

CONFIGS = {
    "delay 3": td3_bc.Config(batch_size=UPDATE_BATCH, hidden_sizes=HIDDEN, policy_delay=3),
    "no delay, observations as they are": td3_bc.Config(
        batch_size=UPDATE_BATCH, hidden_sizes=HIDDEN, policy_delay=1, normalize_obs=False
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_whole_updates(name: str) -> None:
    nets, config = random_nets(np.random.default_rng(0)), CONFIGS[name]
    assert_learns_as(nets, critic_reference, actor_reference, td3_bc.make(config), config, HYPERS)


@pytest.mark.parametrize("normalize", [True, False])
def test_whole_updates_of_bc(normalize: bool) -> None:
    algorithm = bc.make(bc.Config(batch_size=UPDATE_BATCH, hidden_sizes=HIDDEN, normalize_obs=normalize))
    assert algorithm.value is None
    with computing(np.float64):
        update, evaluate = compiled(algorithm, bc.Hypers(learning_rate=0.003))
        actor = start = random_nets(np.random.default_rng(0)).actor
        adam, params = Adam(actor), cast(actor, jnp.float64)
        state = with_adam(bc.State(params))
        for done in range(3):
            key = jax.random.key(done)
            loss, grads = imitation_reference(actor, drawn(rows_of(key, UPDATE_BATCH), normalize))
            state, metrics = update(key, state, Clock(jnp.int32(done), jnp.asarray(0.5)))
            actor = adam.step(actor, grads, 0.003)
            assert float(metrics["actor_loss"]) == pytest.approx(loss, rel=1e-9)
        act, _ = evaluate(state, jnp.asarray(SOMEWHERE))
    assert_moved(state.actor.params, actor, start, 1e-8)
    np.testing.assert_allclose(act, in_box(chosen(actor, shown(SOMEWHERE[None], normalize)))[0], rtol=1e-8)


def test_the_batches_hold_every_kind_of_end() -> None:
    """Else a whole update would not show how they are treated."""
    with jax.enable_x64(True):
        rows = [rows_of(jax.random.split(jax.random.key(done))[0], UPDATE_BATCH) for done in range(5, 9)]
    index = np.concatenate(rows)
    assert np.any(records().terminated[index]) and np.any(records().truncated[index])


# Around the updates.


def test_starts_with_critics_that_differ_and_with_targets_that_do_not() -> None:
    algorithm = td3_bc.make(CONFIGS["delay 3"])
    state = jax.jit(lambda key: algorithm.init(key, task(), HYPERS))(jax.random.key(0))
    state = params_of(state)
    assert_different(state.critics)
    chex.assert_trees_all_equal((state.actor, state.critics), (state.target_actor, state.target_critics))


def test_defaults_are_those_of_the_authors() -> None:
    assert td3_bc.Config() == td3_bc.Config(256, (256, 256), 2, True)
    assert td3_bc.Hypers() == (3e-4, 3e-4, 0.99, 0.005, 2.5, 0.2, 0.5)
    assert bc.Config() == bc.Config(256, (256, 256), True) and bc.Hypers() == (3e-4,)


def test_what_cannot_work_is_refused_by_name() -> None:
    for name in ("batch_size", "policy_delay"):
        with pytest.raises(UserError, match=f"^{name}=0 must be at least 1"):
            td3_bc.make(td3_bc.Config(**{name: 0}))
    with pytest.raises(UserError, match=r"^batch_size=0 must be at least 1"):
        bc.make(bc.Config(batch_size=0))


def test_exactness_of_the_records() -> None:
    """The reference of whole updates starts from numbers that the dataset holds without rounding."""
    r = records()
    for field in (r.obs, r.reward, r.next_obs, r.action):
        np.testing.assert_array_equal(field, exact(field))
