"""TD3+BC and BC against an independent reference in NumPy and float64: losses, their whole gradients, whole updates.

The reference is written from the papers (Fujimoto & Gu 2021, arXiv 2106.06860; Fujimoto et al. 2018, arXiv 1802.09477)
and the details listed in `td3_bc.py` and `bc.py`, with every derivative by hand. A central
difference of the reference's own losses guards those derivatives.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_critics import ACTION_DIM, BATCH, OBS_DIM, critic, q_values, random_batch
from numpy_nets import (
    Adam,
    FloatArray,
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
from numpy_offline import HIDDEN, Batch, drawn, in_box, moved, records, rows_of, shown, squared_errors, task, twins
from trained_states import params_of, with_adam

from envs import datasets
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


class Nets(NamedTuple):
    """What gradient steps change."""

    actor: Tree
    critics: Tree
    """both critics, stacked on a leading axis"""
    target_actor: Tree
    target_critics: Tree


def squashed(actor: Tree, obs: FloatArray) -> tuple[FloatArray, list[FloatArray]]:
    """The policy's action in units of the box, and the inputs of its layers."""
    out, inputs = forward(actor["params"], obs, "relu")
    return np.tanh(out), inputs


def smoothing(noise: FloatArray, hypers: td3_bc.Hypers) -> FloatArray:
    scaled, bound = hypers.target_noise * noise, hypers.target_noise_clip
    return np.where(np.abs(scaled) > bound, np.sign(scaled) * bound, scaled)


def critic_reference(nets: Nets, batch: Batch, noise: FloatArray, hypers: td3_bc.Hypers) -> tuple[float, Tree]:
    """The critics' loss and its gradient."""
    free = squashed(nets.target_actor, batch.next_obs)[0] + smoothing(noise, hypers)
    next_q = np.min(q_values(nets.target_critics, batch.next_obs, np.minimum(np.maximum(free, -1.0), 1.0)), axis=0)
    # Running out of time ends nothing: only `terminated` cuts the bootstrap.
    return squared_errors(nets.critics, batch, batch.reward + hypers.discount * (1.0 - batch.terminated) * next_q)


def pull(nets: Nets, batch: Batch, alpha: float) -> float:
    """The weight of the critic in the actor's loss, which is no function of the actor."""
    return alpha / float(np.mean(np.abs(q_values(nets.critics, batch.obs, squashed(nets.actor, batch.obs)[0])[0])))


def actor_reference(nets: Nets, batch: Batch, weight: float) -> tuple[float, Tree]:
    """The actor's loss at this weight of the first critic, and its gradient."""
    n = len(batch.obs)
    action, inputs = squashed(nets.actor, batch.obs)
    first = critic(nets.critics, 0)
    q, of_critic = forward(first, np.concatenate([batch.obs, action], axis=1), "relu")
    away = action - batch.action
    loss = -weight * np.mean(q) + np.sum(away**2) / (n * ACTION_DIM)
    d_action = backward(first, of_critic, np.full((n, 1), -weight / n), "relu")[1][:, OBS_DIM:]
    d_action = d_action + 2.0 * away / (n * ACTION_DIM)
    # The derivative of tanh is 1 - tanh^2.
    return loss, {"params": backward(nets.actor["params"], inputs, d_action * (1.0 - action**2), "relu")[0]}


def imitation_reference(actor: Tree, batch: Batch) -> tuple[float, Tree]:
    """The loss of BC and its gradient."""
    action, inputs = squashed(actor, batch.obs)
    away = action - batch.action
    d_out = 2.0 * away / away.size * (1.0 - action**2)
    return float(np.sum(away**2)) / away.size, {"params": backward(actor["params"], inputs, d_out, "relu")[0]}


def random_nets(rng: np.random.Generator) -> Nets:
    def actor() -> Tree:
        net = mlp(rng, OBS_DIM, *HIDDEN, ACTION_DIM)
        net["Dense_2"]["kernel"] *= 2.0  # so that many actions lie near the edges of the box
        return {"params": net}

    nets = Nets(actor(), twins(rng), actor(), twins(rng))
    # On both sides of 0, so that a mean of sizes is not the size of a mean.
    nets.critics["params"]["Dense_2"]["bias"] -= 0.75
    return nets


def problem(seed: int) -> tuple[Nets, Batch, FloatArray]:
    rng = np.random.default_rng(seed)
    return random_nets(rng), random_batch(rng), normal(rng, BATCH, ACTION_DIM)


def learner(nets: Nets, dtype: Any) -> offline_td3.State:
    """The learner's state with these networks and fresh optimisers."""
    return with_adam(offline_td3.State(*cast(tuple(nets), dtype)))


ACTOR, CRITIC = MLP((*HIDDEN, ACTION_DIM)), MLP((*HIDDEN, 1))
NETWORKS = offline_td3.Networks(ACTOR, CRITIC)


@jax.jit
def jax_losses(state: offline_td3.State, batch: datasets.Batch, noise: Any, hypers: td3_bc.Hypers) -> Any:
    """All losses and their gradients, the gradient of the critics' loss by the targets, and the metrics."""
    params = params_of(state)
    (critic_loss, metrics), critic_grads = jax.value_and_grad(offline_td3.critic_loss, has_aux=True)(
        params.critics, NETWORKS, state, batch, noise, hypers
    )

    def by_targets(target_actor: Tree, target_critics: Tree) -> Any:
        other = state._replace(target_actor=target_actor, target_critics=target_critics)
        return offline_td3.critic_loss(params.critics, NETWORKS, other, batch, noise, hypers)[0]

    target_grads = jax.grad(by_targets, (0, 1))(state.target_actor, state.target_critics)
    actor = jax.value_and_grad(offline_td3.actor_loss)(
        params.actor, NETWORKS, params.critics, batch.obs, batch.action, hypers
    )
    imitation = jax.value_and_grad(bc.loss)(params.actor, ACTOR, batch)
    return (critic_loss, critic_grads), actor, imitation, target_grads, metrics


def compare(seed: int, dtype: Any, tolerance: float) -> None:
    """All losses and gradients of the learners, computed in `dtype`, against the reference."""
    nets, batch, noise = problem(seed)
    of_critics = critic_reference(nets, batch, noise, HYPERS)
    nothing = jax.tree.map(np.zeros_like, (nets.target_actor, nets.target_critics))
    want = (
        of_critics,
        actor_reference(nets, batch, pull(nets, batch, HYPERS.alpha)),
        imitation_reference(nets.actor, batch),
        nothing,
        {"critic_loss": of_critics[0], "q": np.mean(q_values(nets.critics, batch.obs, batch.action))},
    )
    with jax.default_matmul_precision("highest"):
        got = jax_losses(
            learner(nets, dtype), datasets.Batch(*cast(tuple(batch), dtype)), *cast((noise, HYPERS), dtype)
        )
    assert_close(got, want, tolerance, dtype)


def test_losses_and_gradients_in_float64() -> None:
    with jax.enable_x64(True):
        for seed in range(5):
            compare(seed, jnp.float64, 1e-12)


def test_losses_and_gradients_in_float32() -> None:
    for seed in range(5):
        compare(seed, jnp.float32, 1e-5)


def test_the_samples_reach_every_branch() -> None:
    reached: dict[str, int] = {}
    for seed in range(5):
        nets, batch, noise = problem(seed)
        scaled, bound = HYPERS.target_noise * noise, HYPERS.target_noise_clip
        free = squashed(nets.target_actor, batch.next_obs)[0] + smoothing(noise, HYPERS)
        q_1, q_2 = q_values(nets.critics, batch.obs, squashed(nets.actor, batch.obs)[0])
        next_q_1, next_q_2 = q_values(nets.target_critics, batch.next_obs, np.clip(free, -1.0, 1.0))
        cases = {
            "noise below its bound": scaled < -bound,
            "noise inside its bounds": np.abs(scaled) < bound,
            "noise above its bound": scaled > bound,
            "smoothed action below the box": free < -1.0,
            "smoothed action inside the box": np.abs(free) < 1.0,
            "smoothed action above the box": free > 1.0,
            "first critic positive": q_1 > 0.0,
            "first critic negative": q_1 < 0.0,
            "first critic smaller": q_1 < q_2,
            "second critic smaller": q_2 < q_1,
            "first target smaller": next_q_1 < next_q_2,
            "second target smaller": next_q_2 < next_q_1,
            "terminated only": batch.terminated & ~batch.truncated,
            "truncated only": batch.truncated & ~batch.terminated,
            "terminated and truncated": batch.terminated & batch.truncated,
            "neither": ~batch.terminated & ~batch.truncated,
        }
        for name, hits in cases.items():
            reached[name] = reached.get(name, 0) + int(np.sum(hits))
    assert min(reached.values()) >= 20, reached


def test_the_reference_has_the_gradient_of_its_own_losses() -> None:
    nets, batch, noise = problem(7)
    rng = np.random.default_rng(8)
    weight = pull(nets, batch, HYPERS.alpha)
    losses: list[tuple[Any, Tree]] = [
        (lambda tree: critic_reference(nets._replace(critics=tree), batch, noise, HYPERS), nets.critics),
        (lambda tree: actor_reference(nets._replace(actor=tree), batch, weight), nets.actor),
        (lambda tree: imitation_reference(tree, batch), nets.actor),
    ]
    for reference, tree in losses:
        for _ in range(5):
            direction = jax.tree.map(lambda x: rng.normal(size=x.shape), tree)
            numeric = slope(lambda moved, reference=reference: reference(moved)[0], tree, direction, step=1e-7)
            assert numeric == pytest.approx(dot(reference(tree)[1], direction), rel=1e-6)


# Whole updates, with everything that surrounds the losses.

UPDATE_BATCH = 16
CONFIGS = {
    "delay 3": td3_bc.Config(batch_size=UPDATE_BATCH, hidden_sizes=HIDDEN, policy_delay=3),
    "no delay, observations as they are": td3_bc.Config(
        batch_size=UPDATE_BATCH, hidden_sizes=HIDDEN, policy_delay=1, normalize_obs=False
    ),
}
SOMEWHERE = np.array([1.5, -4.0, 2.0])
"""an observation of the environment"""


def compiled(algorithm: Any, hypers: Any) -> tuple[Any, Any]:
    """jit of the update and of (act, value); value is 0 where there is none."""

    def judge(state: Any, obs: Any) -> Any:
        value = algorithm.value or (lambda *_: jnp.zeros(()))
        return tuple(f(jax.random.key(0), task(), state, obs) for f in (algorithm.act, value))

    update = jax.jit(lambda key, state, clock: algorithm.update(key, task(), state, cast(hypers, jnp.float64), clock))
    return update, jax.jit(judge)


@functools.cache
def td3_bc_programs(name: str) -> tuple[Any, Any]:
    return compiled(td3_bc.make(CONFIGS[name]), HYPERS)


@pytest.mark.parametrize("name", CONFIGS)
def test_whole_updates(name: str) -> None:
    config = CONFIGS[name]
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        update, judge = td3_bc_programs(name)
        nets = start = random_nets(np.random.default_rng(0))
        state = learner(nets, jnp.float64)
        fresh = jax.eval_shape(td3_bc.make(config).init, jax.random.key(0), task(), HYPERS)
        chex.assert_trees_all_equal_structs(fresh, state)
        actor_adam, critic_adam = Adam(nets.actor), Adam(nets.critics)
        for done in range(5, 9):  # 6 is due where the delay is 3
            key = jax.random.key(done)
            batch_key, noise_key = jax.random.split(key)
            batch = drawn(rows_of(batch_key, UPDATE_BATCH), config.normalize_obs)
            noise = np.asarray(jax.random.normal(noise_key, (UPDATE_BATCH, ACTION_DIM)))
            last, before = state, nets
            state, metrics = update(key, state, Clock(jnp.int32(done), jnp.asarray(0.5)))

            loss, grads = critic_reference(nets, batch, noise, HYPERS)
            nets = nets._replace(critics=critic_adam.step(nets.critics, grads, HYPERS.critic_learning_rate))
            if done % config.policy_delay == 0:
                # By the critics as they are after their step.
                grads = actor_reference(nets, batch, pull(nets, batch, HYPERS.alpha))[1]
                nets = nets._replace(actor=actor_adam.step(nets.actor, grads, HYPERS.actor_learning_rate))
                nets = nets._replace(
                    target_actor=moved(nets.target_actor, nets.actor, HYPERS.tau),
                    target_critics=moved(nets.target_critics, nets.critics, HYPERS.tau),
                )
            else:
                still = ("actor", "target_actor", "target_critics")
                chex.assert_trees_all_equal(*([getattr(s, field) for field in still] for s in (state, last)))
            assert float(metrics["critic_loss"]) == pytest.approx(loss, rel=1e-9)
            assert float(metrics["q"]) == pytest.approx(
                float(np.mean(q_values(before.critics, batch.obs, batch.action))), rel=1e-9
            )
        act, value = judge(state, jnp.asarray(SOMEWHERE))
    assert_moved(Nets(*params_of(state)), nets, start, 1e-8)
    # Evaluation plays the actor without noise, and values it by the smaller critic.
    obs = shown(SOMEWHERE[None], config.normalize_obs)
    best = squashed(nets.actor, obs)[0]
    np.testing.assert_allclose(act, in_box(best)[0], rtol=1e-8)
    assert float(value) == pytest.approx(float(np.min(q_values(nets.critics, obs, best))), rel=1e-8)


@pytest.mark.parametrize("normalize", [True, False])
def test_whole_updates_of_bc(normalize: bool) -> None:
    algorithm = bc.make(bc.Config(batch_size=UPDATE_BATCH, hidden_sizes=HIDDEN, normalize_obs=normalize))
    assert algorithm.value is None
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        update, judge = compiled(algorithm, bc.Hypers(learning_rate=0.003))
        actor = start = random_nets(np.random.default_rng(0)).actor
        adam, params = Adam(actor), cast(actor, jnp.float64)
        state = with_adam(bc.State(params))
        for done in range(3):
            key = jax.random.key(done)
            loss, grads = imitation_reference(actor, drawn(rows_of(key, UPDATE_BATCH), normalize))
            state, metrics = update(key, state, Clock(jnp.int32(done), jnp.asarray(0.5)))
            actor = adam.step(actor, grads, 0.003)
            assert float(metrics["actor_loss"]) == pytest.approx(loss, rel=1e-9)
        act, _ = judge(state, jnp.asarray(SOMEWHERE))
    assert_moved(state.actor.params, actor, start, 1e-8)
    np.testing.assert_allclose(act, in_box(squashed(actor, shown(SOMEWHERE[None], normalize))[0])[0], rtol=1e-8)


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
    for leaf in jax.tree.leaves(state.critics):
        assert leaf.shape[0] == 2 and not np.any(leaf[0] == leaf[1])
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
