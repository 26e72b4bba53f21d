"""TD3 and DDPG against an independent reference in NumPy and float64: losses, their whole gradients, whole updates.

The reference is written from the papers (Fujimoto et al. 2018, arXiv 1802.09477; Lillicrap et al. 2015, arXiv
1509.02971) and the details listed in `td3.py`.
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
    assert_different,
    bellman,
    endings,
    polyak,
    q_values,
    random_critics,
    random_transitions,
    smallest,
    squared_errors,
)
from numpy_nets import HIGH, LOW, Adam, FloatArray, Toy, Tree, assert_close, assert_moved, cast, mlp, normal, perceptron
from numpy_off_policy import CAPACITY, NUM_ENVS, UPDATES_DONE, past, policy_noise, stepped
from reference import assert_reached, computing, precisions, value_and_grad
from trained_states import params_of, with_adam

from rlsuite.algorithms.off_policy import ddpg, td3
from rlsuite.core import Algorithm, Clock, Task, Transition
from rlsuite.errors import UserError

HIDDEN = (6, 5)
SEEDS = range(5)
HYPERS = td3.Hypers(
    actor_learning_rate=0.003,
    critic_learning_rate=0.005,
    discount=0.93,
    tau=0.1,
    exploration_noise=0.3,
    target_noise=0.4,
    target_noise_clip=0.5,
)


class Nets(NamedTuple):
    """What gradient steps change."""

    actor: Tree
    critics: Tree
    """the critics, stacked on a leading axis"""
    target_actor: Tree
    target_critics: Tree


def chosen(actor: Tree, obs: FloatArray) -> FloatArray:
    """The centre of the box plus a share tanh(.) of half its width."""
    return CENTER + HALF_WIDTH * np.tanh(perceptron(actor["params"], obs, "relu"))


def into_box(action: FloatArray) -> FloatArray:
    return np.minimum(np.maximum(action, LOW), HIGH)


def smoothing(noise: FloatArray, hypers: td3.Hypers) -> FloatArray:
    """What is added to the target actor's action, before the box cuts it off."""
    scaled, bound = hypers.target_noise * noise, hypers.target_noise_clip
    return HALF_WIDTH * np.where(np.abs(scaled) > bound, np.sign(scaled) * bound, scaled)


def critic_reference(nets: Nets, batch: Transition, noise: FloatArray, hypers: td3.Hypers) -> tuple[float, Tree]:
    """The critics' loss and its gradient."""
    next_action = into_box(chosen(nets.target_actor, batch.next_obs) + smoothing(noise, hypers))
    target = bellman(batch, hypers.discount, smallest(nets.target_critics, batch.next_obs, next_action))
    return value_and_grad(lambda critics: squared_errors(critics, batch, target), nets.critics)


def actor_reference(nets: Nets, obs: FloatArray) -> tuple[float, Tree]:
    """The actor's loss and its gradient, through the first critic alone."""
    return value_and_grad(lambda actor: -np.mean(q_values(nets.critics, obs, chosen(actor, obs))[0]), nets.actor)


def random_nets(rng: np.random.Generator, num_critics: int) -> Nets:
    def critics() -> Tree:
        # No mean of them is near 0.
        return random_critics(rng, num_critics, HIDDEN, 1.0, LOW, HIGH)

    def actor() -> Tree:
        net = mlp(rng, OBS_DIM, *HIDDEN, ACTION_DIM)
        net["Dense_2"]["kernel"] *= 2.0  # so that many actions lie near the edges of the box
        return {"params": net}

    return Nets(actor(), critics(), actor(), critics())


def problem(seed: int, num_critics: int) -> tuple[Nets, Transition, FloatArray]:
    rng = np.random.default_rng(seed)
    return random_nets(rng, num_critics), random_transitions(rng), normal(rng, BATCH, ACTION_DIM)


def learner(nets: Nets, dtype: Any) -> td3.Learner:
    """The learner's state with these networks and fresh optimisers."""
    return with_adam(td3.Learner(*cast(tuple(nets), dtype)))


Results = tuple[tuple[Any, Tree], tuple[Any, Tree], Tree]


@jax.jit
def jax_losses(state: td3.Learner, batch: Transition, noise: Any, hypers: td3.Hypers) -> Results:
    """The two losses of the learner and their gradients, and the gradient of the critics' loss by the targets."""
    networks, params = td3.networks_of(td3.Config(hidden_sizes=HIDDEN), Toy()), params_of(state)
    (critic_loss, _), critic_grads = jax.value_and_grad(td3.critic_loss, has_aux=True)(
        params.critics, networks, state, batch, noise, hypers
    )

    def by_targets(target_actor: Tree, target_critics: Tree) -> Any:
        moved = state._replace(target_actor=target_actor, target_critics=target_critics)
        return td3.critic_loss(params.critics, networks, moved, batch, noise, hypers)[0]

    target_grads = jax.grad(by_targets, (0, 1))(state.target_actor, state.target_critics)
    actor = jax.value_and_grad(td3.actor_loss)(params.actor, networks, params.critics, batch.obs)
    return (critic_loss, critic_grads), actor, target_grads


@functools.cache
def want_losses(seed: int, num_critics: int) -> Any:
    nets, batch, noise = problem(seed, num_critics)
    nothing = jax.tree.map(np.zeros_like, (nets.target_actor, nets.target_critics))
    return critic_reference(nets, batch, noise, HYPERS), actor_reference(nets, batch.obs), nothing


@pytest.mark.parametrize("num_critics", [1, 2])
@precisions(in_float64=1e-12)
def test_losses_and_gradients(num_critics: int, dtype: Any, tolerance: float) -> None:
    for seed in SEEDS:
        nets, *rest = problem(seed, num_critics)
        with computing(dtype):
            got = jax_losses(learner(nets, dtype), *cast((*rest, HYPERS), dtype))
        assert_close(got, want_losses(seed, num_critics), tolerance, dtype)


def cases_of(seed: int) -> dict[str, Any]:
    """Which samples of a problem reach which branch."""
    nets, batch, noise = problem(seed, 2)
    scaled, bound = HYPERS.target_noise * noise, HYPERS.target_noise_clip
    free = chosen(nets.target_actor, batch.next_obs) + smoothing(noise, HYPERS)
    q_1, q_2 = q_values(nets.critics, batch.obs, chosen(nets.actor, batch.obs))
    next_q_1, next_q_2 = q_values(nets.target_critics, batch.next_obs, into_box(free))
    return {
        "noise below its bound": scaled < -bound,
        "noise inside its bounds": np.abs(scaled) < bound,
        "noise above its bound": scaled > bound,
        "smoothed action below the box": free < LOW,
        "smoothed action inside the box": (free > LOW) & (free < HIGH),
        "smoothed action above the box": free > HIGH,
        "first critic smaller": q_1 < q_2,
        "second critic smaller": q_2 < q_1,
        "first target smaller": next_q_1 < next_q_2,
        "second target smaller": next_q_2 < next_q_1,
        **endings(batch),
    }


def test_the_samples_reach_every_branch() -> None:
    assert_reached(map(cases_of, SEEDS), 20)


# Whole updates, with everything that surrounds the losses.

GRADIENT_STEPS, UPDATE_BATCH = 5, 16
WARMUP_UPDATES = 2
SIZES: dict[str, Any] = {
    "num_envs": NUM_ENVS,
    "gradient_steps": GRADIENT_STEPS,
    "batch_size": UPDATE_BATCH,
    "buffer_size": CAPACITY,
    "warmup_steps": (WARMUP_UPDATES - 1) * NUM_ENVS + 1,  # not a whole step of all environments
    "hidden_sizes": HIDDEN,
}


class Case(NamedTuple):
    """A learner, and what the reference has to know of it."""

    algorithm: Algorithm
    hypers: Any
    num_critics: int
    policy_delay: int
    meaning: td3.Hypers
    """what its hypers say in the terms of TD3"""


CASES = {
    "td3": Case(td3.make(td3.Config(**SIZES)), HYPERS, 2, 2, HYPERS),
    "td3, one critic, delay 3": Case(
        td3.make(td3.Config(**SIZES, num_critics=1, policy_delay=3)), HYPERS, 1, 3, HYPERS
    ),
    "ddpg": Case(
        ddpg.make(ddpg.Config(**SIZES)),
        ddpg.Hypers(
            actor_learning_rate=0.003, critic_learning_rate=0.005, discount=0.93, tau=0.1, exploration_noise=0.3
        ),
        1,
        1,
        HYPERS._replace(target_noise=0.0, target_noise_clip=0.0),
    ),
}
TASK = Task(Toy())


@functools.cache
def update_of(name: str) -> Any:
    """jit of the whole update, shared by the tests below."""
    case = CASES[name]
    hypers = cast(case.hypers, jnp.float64)
    return jax.jit(lambda key, state, clock: case.algorithm.update(key, TASK, state, hypers, clock))


def learned(nets: Nets, batches: list[Transition], noise_key: jax.Array, case: Case) -> Nets:
    """The networks after the gradient steps of one update, from fresh optimisers.

    Random numbers come from JAX by the learner's own key schedule: they are the only thing that the two share.
    """
    critic_adam, actor_adam, hypers = Adam(nets.critics), Adam(nets.actor), case.meaning

    keys = jax.random.split(noise_key, len(batches))
    for i, (batch, key) in enumerate(zip(batches, keys, strict=True)):
        noise = np.asarray(jax.random.normal(key, (UPDATE_BATCH, ACTION_DIM)))
        grads = critic_reference(nets, batch, noise, hypers)[1]
        nets = nets._replace(critics=critic_adam.step(nets.critics, grads, hypers.critic_learning_rate))
        # Gradient steps are counted through all updates, not from 0 in each.
        if (UPDATES_DONE * GRADIENT_STEPS + i) % case.policy_delay == 0:
            grads = actor_reference(nets, batch.obs)[1]
            nets = nets._replace(actor=actor_adam.step(nets.actor, grads, hypers.actor_learning_rate))
            nets = nets._replace(
                target_actor=polyak(nets.target_actor, nets.actor, hypers.tau),
                target_critics=polyak(nets.target_critics, nets.critics, hypers.tau),
            )
    return nets


@pytest.mark.parametrize("name", CASES)
def test_one_whole_update(name: str) -> None:
    case = CASES[name]
    rng = np.random.default_rng(0)
    nets = random_nets(rng, case.num_critics)
    with computing(np.float64):
        before = past(rng)
        state = before.state(learner(nets, jnp.float64))
        fresh = jax.eval_shape(case.algorithm.init, jax.random.key(0), TASK, case.hypers)
        chex.assert_trees_all_equal_structs(fresh, state)
        key = jax.random.key(1)
        new, metrics = update_of(name)(key, state, Clock(jnp.int32(UPDATES_DONE), jnp.asarray(0.5)))

        collect_key, batch_key, noise_key = jax.random.split(key, 3)
        noise = HYPERS.exploration_noise * HALF_WIDTH * policy_noise(collect_key)
        present = stepped(before, into_box(chosen(nets.actor, before.obs) + noise))
        want = learned(nets, present.minibatches(batch_key, GRADIENT_STEPS, UPDATE_BATCH), noise_key, case)

        obs = before.obs
        act, value = jax.jit(
            lambda state, obs: tuple(f(key, TASK, state, obs) for f in (case.algorithm.act, case.algorithm.value))
        )(new, jnp.asarray(obs[1]))

    assert_moved(Nets(*params_of(new.learner)), want, nets, 1e-8)
    assert np.isfinite(metrics["critic_loss"]) and np.isfinite(metrics["q"])
    present.assert_is(new)
    # Evaluation plays the actor without noise, and values it by the smallest critic.
    best = chosen(want.actor, obs[1:])
    np.testing.assert_allclose(act, best[0], rtol=1e-8)
    assert float(value) == pytest.approx(float(smallest(want.critics, obs[1:], best)[0]), rel=1e-8)


@pytest.mark.parametrize("name", ["td3", "ddpg"])
def test_warmup_acts_uniformly_and_learns_nothing(name: str) -> None:
    rng, key = np.random.default_rng(0), jax.random.key(1)
    nets = random_nets(rng, CASES[name].num_critics)
    with computing(np.float64):  # the settings of the program compiled above
        state = past(rng).state(learner(nets, jnp.float64))
        last, first = (
            update_of(name)(key, state, Clock(jnp.int32(update), jnp.asarray(0.5)))
            for update in (WARMUP_UPDATES - 1, WARMUP_UPDATES)
        )
        policy_key, _ = jax.random.split(jax.random.split(jax.random.split(key, 3)[0], 1)[0])
        uniform = LOW + (HIGH - LOW) * np.asarray(jax.random.uniform(policy_key, (NUM_ENVS, ACTION_DIM)))
    chex.assert_trees_all_equal(last[0].learner, state.learner)
    assert not np.any(last[1]["critic_loss"]) and not np.any(last[1]["q"])
    columns = slice(OBS_DIM, OBS_DIM + ACTION_DIM)
    np.testing.assert_allclose(last[0].buffer.rows[WARMUP_UPDATES - 1][:, columns], uniform, rtol=1e-6)
    assert not np.any(np.isclose(first[0].buffer.rows[WARMUP_UPDATES][:, columns], uniform))
    for old, new in zip(jax.tree.leaves(state.learner.critics), jax.tree.leaves(first[0].learner.critics), strict=True):
        assert not np.array_equal(old, new)


# Around the updates.


@pytest.mark.parametrize("name", CASES)
def test_starts_with_critics_that_differ_and_with_targets_that_do_not(name: str) -> None:
    case = CASES[name]
    state = jax.jit(lambda key: case.algorithm.init(key, TASK, case.hypers).learner)(jax.random.key(0))
    state = params_of(state)
    assert_different(state.critics, case.num_critics)
    chex.assert_trees_all_equal((state.actor, state.critics), (state.target_actor, state.target_critics))


@pytest.mark.parametrize("module", [td3, ddpg])
def test_what_cannot_work_is_refused_by_name(module: Any) -> None:
    names = ["num_envs", "gradient_steps", "batch_size", "buffer_size", "warmup_steps"]
    for name in [*names, "num_critics", "policy_delay"] if module is td3 else names:
        with pytest.raises(UserError, match=f"^{name}=0 must be at least 1"):
            module.make(module.Config(**{name: 0}))
    with pytest.raises(UserError, match=r"^buffer_size=10 is not a multiple of num_envs=4; round it to one$"):
        module.make(module.Config(num_envs=4, buffer_size=10))


@pytest.mark.parametrize("module", [td3, ddpg])
def test_the_buffer_is_no_larger_than_the_budget(module: Any) -> None:
    config = module.Config(num_envs=4, buffer_size=100)
    assert module.fit(config, 41) == module.Config(num_envs=4, buffer_size=44)
    assert module.fit(config, 1000) == config
