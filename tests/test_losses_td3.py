"""TD3 and DDPG against an independent reference in NumPy and float64: losses, their whole gradients, whole updates.

The reference is written from the papers (Fujimoto et al. 2018, arXiv 1802.09477; Lillicrap et al. 2015, arXiv
1509.02971) and the details listed in `td3.py`, with every derivative by hand. A central difference
of the reference's own losses guards those derivatives.
"""

from __future__ import annotations

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
from trained_states import params_of, with_adam

from envs.core import EpisodeState
from rlsuite.algorithms.off_policy import ddpg, td3
from rlsuite.core import Algorithm, Clock, Task, Transition
from rlsuite.errors import UserError
from rlsuite.pieces import off_policy, replay
from rlsuite.pieces.rollout import EnvCarry

HIDDEN = (8, 7)
OBS_DIM = ACTION_DIM = 3
BATCH = 64
HALF_WIDTH = (HIGH - LOW) / 2.0
HYPERS = td3.Hypers(
    actor_learning_rate=0.003,
    critic_learning_rate=0.005,
    discount=0.93,
    tau=0.1,
    exploration_noise=0.3,
    target_noise=0.4,
    target_noise_clip=0.5,
)


class Batch(NamedTuple):
    """A minibatch, `[batch, ...]`."""

    obs: FloatArray
    action: FloatArray
    reward: FloatArray
    next_obs: FloatArray
    terminated: Any
    truncated: Any


class Nets(NamedTuple):
    """What gradient steps change."""

    actor: Tree
    critics: Tree
    """the critics, stacked on a leading axis"""
    target_actor: Tree
    target_critics: Tree


class Chosen(NamedTuple):
    """The actor's action and all that its derivative needs."""

    action: FloatArray
    squashed: FloatArray
    """in (-1, 1)"""
    inputs: list[FloatArray]


def chosen(actor: Tree, obs: FloatArray) -> Chosen:
    """The centre of the box plus a share tanh(.) of half its width."""
    out, inputs = forward(actor["params"], obs, "relu")
    return Chosen((HIGH + LOW) / 2.0 + HALF_WIDTH * np.tanh(out), np.tanh(out), inputs)


def into_box(action: FloatArray) -> FloatArray:
    return np.minimum(np.maximum(action, LOW), HIGH)


def smoothing(noise: FloatArray, hypers: td3.Hypers) -> FloatArray:
    """What is added to the target actor's action, before the box cuts it off."""
    scaled, bound = hypers.target_noise * noise, hypers.target_noise_clip
    return HALF_WIDTH * np.where(np.abs(scaled) > bound, np.sign(scaled) * bound, scaled)


def critic(critics: Tree, i: int) -> Tree:
    """One of them."""
    return jax.tree.map(lambda x: x[i], critics["params"])


def count(critics: Tree) -> int:
    """How many there are."""
    return len(critics["params"]["Dense_0"]["bias"])


def q_values(critics: Tree, obs: FloatArray, action: FloatArray) -> FloatArray:
    """`[num_critics, batch]`"""
    inputs = np.concatenate([obs, action], axis=1)
    return np.stack([forward(critic(critics, i), inputs, "relu")[0][:, 0] for i in range(count(critics))])


def critic_reference(nets: Nets, batch: Batch, noise: FloatArray, hypers: td3.Hypers) -> tuple[float, Tree]:
    """The critics' loss and its gradient."""
    n = len(batch.obs)
    next_action = into_box(chosen(nets.target_actor, batch.next_obs).action + smoothing(noise, hypers))
    next_q = np.min(q_values(nets.target_critics, batch.next_obs, next_action), axis=0)
    # Running out of time ends nothing: only `terminated` cuts the bootstrap.
    target = batch.reward + hypers.discount * (1.0 - batch.terminated) * next_q
    loss, grads = 0.0, []
    for i in range(count(nets.critics)):
        net = critic(nets.critics, i)
        q, inputs = forward(net, np.concatenate([batch.obs, batch.action], axis=1), "relu")
        error = q[:, 0] - target
        loss += np.mean(error**2)
        grads.append(backward(net, inputs, 2.0 * error[:, None] / n, "relu")[0])
    return loss, {"params": jax.tree.map(lambda *of_each: np.stack(of_each), *grads)}


def actor_reference(nets: Nets, obs: FloatArray) -> tuple[float, Tree]:
    """The actor's loss and its gradient, through the first critic alone."""
    n, c = len(obs), chosen(nets.actor, obs)
    first = critic(nets.critics, 0)
    q, inputs = forward(first, np.concatenate([obs, c.action], axis=1), "relu")
    d_action = backward(first, inputs, np.full((n, 1), -1.0 / n), "relu")[1][:, OBS_DIM:]
    # The derivative of tanh is 1 - tanh^2.
    grads = backward(nets.actor["params"], c.inputs, d_action * HALF_WIDTH * (1.0 - c.squashed**2), "relu")[0]
    return -np.mean(q), {"params": grads}


def random_nets(rng: np.random.Generator, num_critics: int) -> Nets:
    def critics() -> Tree:
        all_of_them = [mlp(rng, OBS_DIM + ACTION_DIM, *HIDDEN, 1) for _ in range(num_critics)]
        somewhere = np.concatenate([rng.normal(size=(99, OBS_DIM)), rng.uniform(LOW, HIGH, (99, ACTION_DIM))], axis=1)
        for net in all_of_them:
            # Around 1 on average, so that each is the smallest one somewhere, and no mean of them is near 0.
            net["Dense_2"]["bias"] += exact(1.0 - np.mean(forward(net, somewhere, "relu")[0]))
        return {"params": jax.tree.map(lambda *of_each: exact(np.stack(of_each)), *all_of_them)}

    def actor() -> Tree:
        net = mlp(rng, OBS_DIM, *HIDDEN, ACTION_DIM)
        net["Dense_2"]["kernel"] *= 2.0  # so that many actions lie near the edges of the box
        return {"params": net}

    return Nets(actor(), critics(), actor(), critics())


def random_batch(rng: np.random.Generator, size: int) -> Batch:
    return Batch(
        obs=normal(rng, size, OBS_DIM),
        action=exact(rng.uniform(LOW, HIGH, size=(size, ACTION_DIM))),
        reward=normal(rng, size),
        next_obs=normal(rng, size, OBS_DIM),
        terminated=rng.random(size) < 0.4,
        truncated=rng.random(size) < 0.4,
    )


def problem(seed: int, num_critics: int) -> tuple[Nets, Batch, FloatArray]:
    rng = np.random.default_rng(seed)
    return random_nets(rng, num_critics), random_batch(rng, BATCH), normal(rng, BATCH, ACTION_DIM)


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


def compare(seed: int, num_critics: int, dtype: Any, tolerance: float) -> None:
    """All losses and gradients of the learner, computed in `dtype`, against the reference."""
    nets, batch, noise = problem(seed, num_critics)
    nothing = jax.tree.map(np.zeros_like, (nets.target_actor, nets.target_critics))
    want = critic_reference(nets, batch, noise, HYPERS), actor_reference(nets, batch.obs), nothing
    samples = Transition(*cast(tuple(batch), dtype))
    with jax.default_matmul_precision("highest"):
        got = jax_losses(learner(nets, dtype), samples, *cast((noise, HYPERS), dtype))
    assert_close(got, want, tolerance, dtype)


@pytest.mark.parametrize("num_critics", [1, 2])
def test_losses_and_gradients_in_float64(num_critics: int) -> None:
    with jax.enable_x64(True):
        for seed in range(5):
            compare(seed, num_critics, jnp.float64, 1e-12)


@pytest.mark.parametrize("num_critics", [1, 2])
def test_losses_and_gradients_in_float32(num_critics: int) -> None:
    for seed in range(5):
        compare(seed, num_critics, jnp.float32, 1e-5)


def test_the_samples_reach_every_branch() -> None:
    reached: dict[str, int] = {}
    for seed in range(5):
        nets, batch, noise = problem(seed, 2)
        scaled, bound = HYPERS.target_noise * noise, HYPERS.target_noise_clip
        free = chosen(nets.target_actor, batch.next_obs).action + smoothing(noise, HYPERS)
        q_1, q_2 = q_values(nets.critics, batch.obs, chosen(nets.actor, batch.obs).action)
        next_q_1, next_q_2 = q_values(nets.target_critics, batch.next_obs, into_box(free))
        cases = {
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
            "terminated only": batch.terminated & ~batch.truncated,
            "truncated only": batch.truncated & ~batch.terminated,
            "terminated and truncated": batch.terminated & batch.truncated,
            "neither": ~batch.terminated & ~batch.truncated,
        }
        for name, hits in cases.items():
            reached[name] = reached.get(name, 0) + int(np.sum(hits))
    assert min(reached.values()) >= 20, reached


def test_the_reference_has_the_gradient_of_its_own_losses() -> None:
    nets, batch, noise = problem(7, 2)
    rng = np.random.default_rng(8)
    critic_grads = critic_reference(nets, batch, noise, HYPERS)[1]
    actor_grads = actor_reference(nets, batch.obs)[1]
    for _ in range(5):
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), nets)
        numeric = slope(
            lambda critics: critic_reference(nets._replace(critics=critics), batch, noise, HYPERS)[0],
            nets.critics,
            direction.critics,
            step=1e-7,
        )
        assert numeric == pytest.approx(dot(critic_grads, direction.critics), rel=1e-6)
        numeric = slope(
            lambda actor: actor_reference(nets._replace(actor=actor), batch.obs)[0],
            nets.actor,
            direction.actor,
            step=1e-7,
        )
        assert numeric == pytest.approx(dot(actor_grads, direction.actor), rel=1e-6)


# Whole updates, with everything that surrounds the losses.

NUM_ENVS, GRADIENT_STEPS, UPDATE_BATCH, CAPACITY = 2, 5, 16, 16
UPDATES_DONE = 5
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


def learned(nets: Nets, batches: list[Batch], noise_key: jax.Array, case: Case) -> Nets:
    """The networks after the gradient steps of one update, from fresh optimisers.

    Random numbers come from JAX by the learner's own key schedule: they are the only thing that the two share.
    """
    critic_adam, actor_adam, hypers = Adam(nets.critics), Adam(nets.actor), case.meaning

    def moved(old: Tree, new: Tree) -> Tree:
        return jax.tree.map(lambda x, y: (1.0 - hypers.tau) * x + hypers.tau * y, old, new)

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
                target_actor=moved(nets.target_actor, nets.actor),
                target_critics=moved(nets.target_critics, nets.critics),
            )
    return nets


class Past(NamedTuple):
    """What a run looks like after `UPDATES_DONE` updates: five steps of the eight that are kept are filled, and whoever
    reads another one reads NaN. One environment terminated before, one ran out of time and is about to do so again."""

    nets: Nets
    rows: Batch
    obs: FloatArray
    steps: Any
    state: off_policy.State


def add(buffer: replay.Replay, rows: Batch, obs: FloatArray, step: int) -> replay.Replay:
    """One step of both environments into the buffer."""
    layout = replay.Layout.of(TASK.env)
    transitions = Transition(*cast(tuple(rows), jnp.float64))
    return jax.jit(replay.add, static_argnums=1)(buffer, layout, transitions, jnp.asarray(obs), jnp.int32(step))


def past(name: str) -> Past:
    """Only inside `jax.enable_x64(True)`."""
    rng = np.random.default_rng(0)
    nets = random_nets(rng, CASES[name].num_critics)
    stored = UPDATES_DONE * NUM_ENVS
    rows = random_batch(rng, stored)
    rows.terminated[:] = np.isin(np.arange(stored), [2, 8])
    rows.truncated[:] = np.arange(stored) == 5
    obs, steps = np.stack([START, normal(rng, 3)]), np.array([0, TIME_LIMIT - 1])
    follows = np.concatenate([rows.obs[NUM_ENVS:], obs])
    ended = (rows.terminated | rows.truncated)[:, None]
    rows = rows._replace(next_obs=np.where(ended, rows.next_obs, follows))

    empty = replay.init(replay.Layout.of(TASK.env), NUM_ENVS, CAPACITY)
    buffer = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan), empty)
    for step in range(UPDATES_DONE):
        now = slice(step * NUM_ENVS, (step + 1) * NUM_ENVS)
        buffer = add(buffer, Batch(*(column[now] for column in rows)), follows[now], step)
    carry = EnvCarry(EpisodeState(jnp.asarray(obs), jnp.asarray(steps, jnp.int32)), jnp.asarray(obs))
    return Past(nets, rows, obs, steps, off_policy.State(learner(nets, jnp.float64), buffer, carry))


@pytest.mark.parametrize("name", CASES)
def test_one_whole_update(name: str) -> None:
    case = CASES[name]
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        nets, rows, obs, steps, state = past(name)
        fresh = jax.eval_shape(case.algorithm.init, jax.random.key(0), TASK, case.hypers)
        chex.assert_trees_all_equal_structs(fresh, state)
        key = jax.random.key(1)
        new, metrics = update_of(name)(key, state, Clock(jnp.int32(UPDATES_DONE), jnp.asarray(0.5)))

        # One step of both environments ...
        collect_key, batch_key, noise_key = jax.random.split(key, 3)
        policy_key, _ = jax.random.split(jax.random.split(collect_key, 1)[0])
        noise = np.asarray(jax.random.normal(policy_key, (NUM_ENVS, ACTION_DIM)))
        action = into_box(chosen(nets.actor, obs).action + HYPERS.exploration_noise * HALF_WIDTH * noise)
        next_obs, reward, terminated = toy_transition(obs, action)
        truncated = steps + 1 >= TIME_LIMIT
        done = terminated | truncated
        assert done[1]
        seen_next = np.where(done[:, None], START, next_obs)
        # ... goes into the buffer, where actions are float32 ...
        present = Batch(obs, exact(action), reward, next_obs, terminated, truncated)
        want_buffer = add(state.buffer, present, seen_next, UPDATES_DONE)
        rows = Batch(*(np.concatenate(pair) for pair in zip(rows, present, strict=True)))
        # ... from which all minibatches are drawn.
        shape = GRADIENT_STEPS, UPDATE_BATCH
        index = np.asarray(jax.random.randint(batch_key, shape, 0, jnp.int32(len(rows.obs))))
        assert np.any(index >= UPDATES_DONE * NUM_ENVS)
        want = learned(nets, [Batch(*(x[drawn] for x in rows)) for drawn in index], noise_key, case)

        act, value = jax.jit(
            lambda state, obs: tuple(f(key, TASK, state, obs) for f in (case.algorithm.act, case.algorithm.value))
        )(new, jnp.asarray(obs[1]))

    assert_moved(Nets(*params_of(new.learner)), want, nets, 1e-8)
    assert np.isfinite(metrics["critic_loss"]) and np.isfinite(metrics["q"])
    for got_part, want_part in zip(new.buffer, want_buffer, strict=True):
        np.testing.assert_allclose(got_part, want_part, rtol=1e-6)  # NaN where NaN is expected, too
    np.testing.assert_allclose(new.envs.obs, seen_next, rtol=1e-12)
    # Evaluation plays the actor without noise, and values it by the smallest critic.
    best = chosen(want.actor, obs[1:]).action
    np.testing.assert_allclose(act, best[0], rtol=1e-8)
    assert float(value) == pytest.approx(float(np.min(q_values(want.critics, obs[1:], best))), rel=1e-8)


@pytest.mark.parametrize("name", ["td3", "ddpg"])
def test_warmup_acts_uniformly_and_learns_nothing(name: str) -> None:
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):  # the settings of the program compiled above
        state, key = past(name).state, jax.random.key(1)
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
    for leaf in jax.tree.leaves(state.critics):
        assert leaf.shape[0] == case.num_critics
        assert all(not np.any(leaf[0] == other) for other in leaf[1:])
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
