"""DSAC against an independent reference in NumPy and float64: the three losses, their whole gradients, whole updates.

The reference is written from the equations in `docs/algorithms/dsac.md`, with every derivative by hand. A central
difference guards those derivatives; for the critic, whose loss holds factors that pass no gradient, with these fixed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_dsac import (
    ACTION_DIM,
    BATCH,
    BUFFER_STEPS,
    HIDDEN,
    MODERATE,
    NUM_ENVS,
    NUM_STEPS,
    OBS_DIM,
    WIDE,
    Batch,
    Experience,
    actor_gradient,
    alpha_reference,
    critic_gradient,
    endings,
    moves,
    polyak,
    random_actor,
    random_batch,
    random_critic,
    sampled,
    valued,
)
from numpy_nets import (
    TIME_LIMIT,
    Adam,
    FloatArray,
    Toy,
    Tree,
    assert_close,
    cast,
    dot,
    exact,
    normal,
    slope,
)
from trained_states import params_of, with_adam

from rlsuite.algorithms.off_policy import dsac
from rlsuite.core import Clock, Task, Transition
from rlsuite.errors import UserError
from rlsuite.pieces import off_policy, replay, return_distributions, squashed

HYPERS = dsac.Hypers(
    actor_learning_rate=0.003,
    critic_learning_rate=0.005,
    alpha_learning_rate=0.02,
    discount=0.93,
    tau=0.1,
    td_bound=5.0,
    initial_alpha=0.4,
    target_entropy_scale=0.7,
)


class Nets(NamedTuple):
    """What gradient steps change."""

    actor: Tree
    target_actor: Tree
    critic: Tree
    target_critic: Tree
    log_alpha: FloatArray


class Targets(NamedTuple):
    """What the critic is to learn, `[batch]`."""

    following: FloatArray
    """sample of the next return"""
    target: FloatArray
    clipped: FloatArray


def targets_of(nets: Nets, batch: Batch, noise: FloatArray, z: FloatArray) -> Targets:
    """y and C."""
    then = sampled(nets.target_actor, batch.next_obs, noise)
    next_value = valued(nets.target_critic["params"], batch.next_obs, then.action)
    following = next_value.mean + np.minimum(np.maximum(z, -3.0), 3.0) * next_value.std
    # Running out of time ends nothing: only `terminated` cuts the bootstrap.
    soft = following - np.exp(nets.log_alpha) * then.log_prob
    target = batch.reward + HYPERS.discount * (1.0 - batch.terminated) * soft
    mean = valued(nets.critic["params"], batch.obs, batch.action).mean
    error = target - mean
    clipped = mean + np.sign(error) * np.minimum(np.abs(error), HYPERS.td_bound)
    return Targets(following, target, clipped)


def critic_reference(nets: Nets, batch: Batch, noise: FloatArray, z: FloatArray) -> tuple[float, Tree, Any]:
    """The critic's loss, its gradient, and the factors of mean and std in it, which pass no gradient."""
    _, target, clipped = targets_of(nets, batch, noise, z)
    net = nets.critic["params"]
    value = valued(net, batch.obs, batch.action)
    of_mean = -(target - value.mean) / (value.std**2 + 0.1)
    of_std = -((value.mean - clipped) ** 2 - value.std**2) / (value.std**3 + 0.1)
    loss = np.mean(of_mean * value.mean + of_std * value.std)
    grads, _ = critic_gradient(net, value, of_mean / len(z), of_std / len(z))
    return loss, {"params": grads}, (of_mean, of_std)


def actor_reference(nets: Nets, obs: FloatArray, noise: FloatArray) -> tuple[float, Tree, FloatArray]:
    """The actor's loss, its gradient, and the log-probabilities `[batch]`."""
    n, alpha, net = len(obs), np.exp(nets.log_alpha), nets.critic["params"]
    drawn = sampled(nets.actor, obs, noise)
    value = valued(net, obs, drawn.action)
    loss = np.mean(alpha * drawn.log_prob - value.mean)
    _, d_action = critic_gradient(net, value, np.full(n, -1.0 / n), np.zeros(n))
    return loss, actor_gradient(nets.actor, drawn, d_action, alpha), drawn.log_prob


def random_nets(rng: np.random.Generator, log_stds: tuple[float, ...]) -> Nets:
    critic, target = ({"params": random_critic(rng)} for _ in range(2))
    return Nets(random_actor(rng, log_stds), random_actor(rng, log_stds), critic, target, exact(np.log(0.4)))


def problem(seed: int, log_stds: tuple[float, ...] = WIDE) -> tuple[Nets, Batch, FloatArray, FloatArray]:
    """Networks, a minibatch, noise for actions and, well beyond where it is cut off, noise for returns."""
    rng = np.random.default_rng(seed)
    nets, batch = random_nets(rng, log_stds), random_batch(rng, BATCH)
    return nets, batch, normal(rng, BATCH, ACTION_DIM), exact(3.0 * normal(rng, BATCH))


def learner(nets: Nets, dtype: Any) -> dsac.Learner:
    """The learner's state with these networks and fresh optimisers."""
    return with_adam(dsac.Learner(*cast(tuple(nets), dtype)))


Results = tuple[tuple[Any, Tree], tuple[Any, Tree, Any], tuple[Any, Any]]


@jax.jit
def jax_losses(state: dsac.Learner, batch: Transition, noise: Any, z: Any, hypers: Any, target_entropy: Any) -> Results:
    """The three losses of the learner and their gradients."""
    networks, params = return_distributions.networks_of(HIDDEN, Toy()), params_of(state)
    (critic_loss, _), critic_grads = jax.value_and_grad(dsac.critic_loss, has_aux=True)(
        params.critic, networks, state, batch, noise, z, hypers
    )
    (actor_loss, log_prob), actor_grads = jax.value_and_grad(dsac.actor_loss, has_aux=True)(
        params.actor, networks, params.critic, params.log_alpha, batch.obs, noise
    )
    alpha = jax.value_and_grad(squashed.alpha_loss)(params.log_alpha, log_prob, target_entropy)
    return (critic_loss, critic_grads), (actor_loss, actor_grads, log_prob), alpha


def compare(seed: int, log_stds: tuple[float, ...], dtype: Any, tolerance: float) -> None:
    """All losses and gradients of the learner, computed in `dtype`, against the reference."""
    nets, batch, noise, z = problem(seed, log_stds)
    target_entropy = -0.7 * ACTION_DIM
    of_actor = actor_reference(nets, batch.obs, noise)
    want = (
        critic_reference(nets, batch, noise, z)[:2],
        of_actor,
        alpha_reference(nets.log_alpha, of_actor[2], target_entropy),
    )
    samples = Transition(*cast(tuple(batch), dtype))
    with jax.default_matmul_precision("highest"):
        got = jax_losses(learner(nets, dtype), samples, *cast((noise, z, HYPERS, target_entropy), dtype))
    assert_close(got, want, tolerance, dtype)


def test_losses_and_gradients_in_float64() -> None:
    with jax.enable_x64(True):
        for seed in range(5):
            compare(seed, MODERATE, jnp.float64, 1e-11)
            compare(seed, WIDE, jnp.float64, 1e-11)


def test_losses_and_gradients_in_float32() -> None:
    for seed in range(5):
        compare(seed, MODERATE, jnp.float32, 1e-5)


def test_the_samples_reach_every_branch() -> None:
    reached: dict[str, int] = {}
    for seed in range(5):
        nets, batch, noise, z = problem(seed)
        raw = sampled(nets.actor, batch.obs, noise).raw_log_std
        target = targets_of(nets, batch, noise, z).target
        error = target - valued(nets.critic["params"], batch.obs, batch.action).mean
        cases = {
            "log std below its bound": raw < -20.0,
            "log std inside its bounds": (raw > -20.0) & (raw < 0.5),
            "log std above its bound": raw > 0.5,
            "z below its bound": z < -3.0,
            "z inside its bounds": np.abs(z) < 3.0,
            "z above its bound": z > 3.0,
            "target below its bound": error < -HYPERS.td_bound,
            "target inside its bounds": np.abs(error) < HYPERS.td_bound,
            "target above its bound": error > HYPERS.td_bound,
            **endings(batch),
        }
        for name, hits in cases.items():
            reached[name] = reached.get(name, 0) + int(np.sum(hits))
    assert min(reached.values()) >= 20, reached


def test_the_reference_has_the_gradient_of_its_own_losses() -> None:
    nets, batch, noise, z = problem(7, MODERATE)
    rng = np.random.default_rng(8)
    _, critic_grads, (of_mean, of_std) = critic_reference(nets, batch, noise, z)
    _, actor_grads, log_prob = actor_reference(nets, batch.obs, noise)

    def critic_loss(critic: Tree) -> float:
        value = valued(critic["params"], batch.obs, batch.action)
        return float(np.mean(of_mean * value.mean + of_std * value.std))

    for _ in range(5):
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), nets)
        numeric = slope(critic_loss, nets.critic, direction.critic)
        assert numeric == pytest.approx(dot(critic_grads, direction.critic), rel=1e-6)
        numeric = slope(
            lambda actor: actor_reference(nets._replace(actor=actor), batch.obs, noise)[0],
            nets.actor,
            direction.actor,
            step=1e-7,
        )
        assert numeric == pytest.approx(dot(actor_grads, direction.actor), rel=1e-6)
    numeric = slope(lambda x: alpha_reference(x, log_prob, -2.0)[0], nets.log_alpha, np.ones(()))
    assert numeric == pytest.approx(float(alpha_reference(nets.log_alpha, log_prob, -2.0)[1]), rel=1e-6)


def test_a_gaussian_return_is_a_fixed_point_of_the_loss() -> None:
    """At the true mean and standard deviation of its targets, the critic's gradient is that of sampling noise."""
    target = 4.0 + 2.0 * np.random.default_rng(0).normal(size=100_000)
    grads = jax.grad(
        lambda mean, std: jnp.mean(
            return_distributions.gaussian_loss(mean, std, target, return_distributions.clip_target(mean, target, 1e9))
        ),
        (0, 1),
    )
    assert np.allclose(grads(4.0, 2.0), 0.0, atol=0.01)
    # Too low a mean must rise and too large a standard deviation must fall, and the other way round.
    assert grads(3.0, 2.0)[0] < -0.1 and grads(5.0, 2.0)[0] > 0.1
    assert grads(4.0, 3.0)[1] > 0.1 and grads(4.0, 1.0)[1] < -0.1


# Whole updates, with everything that surrounds the losses.

UPDATE_BATCH, WARMUP_UPDATES = 16, 2


class Student:
    """The learner of the reference: networks, optimisers, and how many gradient steps it has made."""

    def __init__(self, nets: Nets) -> None:
        self.nets, self.steps = nets, 0
        self.actor_adam, self.critic_adam, self.alpha_adam = map(Adam, (nets.actor, nets.critic, nets.log_alpha))

    def learn(self, batch: Batch, key: jax.Array, policy_delay: int, learn_alpha: bool) -> None:
        """One gradient step. Random numbers come from JAX by the learner's own key schedule."""
        noise_key, z_key, actor_key = jax.random.split(key, 3)
        noise = np.asarray(jax.random.normal(noise_key, (UPDATE_BATCH, ACTION_DIM)))
        z = np.asarray(jax.random.normal(z_key, (UPDATE_BATCH,)))
        old = self.nets
        critic_grads = critic_reference(old, batch, noise, z)[1]
        # Everything is differentiated before anything moves.
        noise = np.asarray(jax.random.normal(actor_key, (UPDATE_BATCH, ACTION_DIM)))
        _, actor_grads, log_prob = actor_reference(old, batch.obs, noise)
        alpha_grad = alpha_reference(old.log_alpha, log_prob, -HYPERS.target_entropy_scale * ACTION_DIM)[1]

        critic = self.critic_adam.step(old.critic, critic_grads, HYPERS.critic_learning_rate)
        self.nets = old._replace(critic=critic)
        if self.steps % policy_delay == 0:
            actor = self.actor_adam.step(old.actor, actor_grads, HYPERS.actor_learning_rate)
            self.nets = self.nets._replace(
                actor=actor,
                target_actor=polyak(old.target_actor, actor, HYPERS.tau),
                target_critic=polyak(old.target_critic, critic, HYPERS.tau),
            )
            if learn_alpha:
                log_alpha = self.alpha_adam.step(old.log_alpha, alpha_grad, HYPERS.alpha_learning_rate)
                self.nets = self.nets._replace(log_alpha=log_alpha)
        self.steps += 1


@pytest.mark.parametrize(("gradient_steps", "learn_alpha"), [(3, True), (1, False)])
def test_whole_updates_from_the_warm_up_on(gradient_steps: int, learn_alpha: bool) -> None:
    """Three gradient steps an update with a delay of two: the delayed ones lie elsewhere in every update."""
    config = dsac.Config(
        num_envs=NUM_ENVS,
        num_steps=NUM_STEPS,
        gradient_steps=gradient_steps,
        batch_size=UPDATE_BATCH,
        buffer_size=NUM_ENVS * BUFFER_STEPS,
        warmup_steps=WARMUP_UPDATES * NUM_ENVS * NUM_STEPS - 1,  # rounded up to whole updates
        hidden_sizes=HIDDEN,
        learn_alpha=learn_alpha,
    )
    rng = np.random.default_rng(1)
    student, experience = Student(random_nets(rng, MODERATE)), Experience(rng)
    algorithm, task, hypers = dsac.make(config), Task(Toy()), HYPERS
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        state = off_policy.State(learner(student.nets, jnp.float64), experience.buffer(), experience.carry())
        fresh = jax.eval_shape(algorithm.init, jax.random.key(0), task, hypers)
        chex.assert_trees_all_equal_structs(fresh, state)
        update = jax.jit(algorithm.update)
        seen: set[str] = set()
        for i in range(WARMUP_UPDATES + 3):
            key = jax.random.key(i)
            before, old_nets = state, student.nets
            state, metrics = update(key, task, state, cast(hypers, jnp.float64), Clock(jnp.int32(i), jnp.asarray(0.5)))

            collect_key, batch_key, learn_key = jax.random.split(key, 3)
            experience.collect(collect_key, lambda obs, noise, nets=old_nets: sampled(nets.actor, obs, noise).action)
            np.testing.assert_allclose(state.envs.obs, experience.obs, rtol=1e-9)
            if i < WARMUP_UPDATES:
                chex.assert_trees_all_equal(state.learner, before.learner)
                continue
            first_step = student.steps
            batches = experience.sample(batch_key, (gradient_steps, UPDATE_BATCH))
            for batch, step_key in zip(batches, jax.random.split(learn_key, gradient_steps), strict=True):
                student.learn(batch, step_key, config.policy_delay, learn_alpha)
                seen |= {name for name, hits in endings(batch).items() if np.any(hits)}
            got, got_before = (Nets(*params_of(of.learner)) for of in (state, before))
            assert_close(moves(got, got_before), moves(student.nets, old_nets), 1e-7)
            assert float(metrics["alpha"]) == pytest.approx(np.exp(student.nets.log_alpha), rel=1e-9)
            if gradient_steps == 1 and first_step % config.policy_delay:
                # Between the delayed steps nothing but the critic moves.
                chex.assert_trees_all_equal(got._replace(critic=None), got_before._replace(critic=None))
    assert seen >= {"terminated only", "truncated only"}


def test_a_rollout_is_stored_step_by_step() -> None:
    """Longer than the buffer, and beginning in the middle of it."""
    rng = np.random.default_rng(2)
    layout = replay.Layout(OBS_DIM, ACTION_DIM, TIME_LIMIT)
    time, first = 9, 4
    steps = [random_batch(rng, NUM_ENVS) for _ in range(time)]
    rollout = Transition(*cast(tuple(np.stack(column) for column in zip(*steps, strict=True)), jnp.float32))
    after = jnp.asarray(normal(rng, NUM_ENVS, OBS_DIM), jnp.float32)
    empty = replay.init(layout, NUM_ENVS, NUM_ENVS * 5)
    got = jax.jit(replay.add_rollout, static_argnums=1)(empty, layout, rollout, after, jnp.int32(first))
    want = empty
    for i in range(time):
        following = after if i == time - 1 else rollout.obs[i + 1]
        want = replay.add(want, layout, jax.tree.map(lambda x, i=i: x[i], rollout), following, jnp.int32(first + i))
    chex.assert_trees_all_equal(got, want)


def test_a_buffer_that_does_not_hold_whole_steps_is_refused() -> None:
    with pytest.raises(UserError, match="buffer_size=10 is not a multiple of num_envs=3"):
        dsac.make(dsac.Config(num_envs=3, buffer_size=10))
    with pytest.raises(UserError, match="num_steps=0 must be at least 1"):
        dsac.make(dsac.Config(num_steps=0))


def test_the_buffer_fits_the_budget() -> None:
    """Whole updates, since a budget is rounded up to them."""
    config = dsac.Config(num_envs=3, num_steps=4, buffer_size=3000)
    assert dsac.fit(config, 100).buffer_size == 108
    assert dsac.fit(config, 1_000_000).buffer_size == 3000
