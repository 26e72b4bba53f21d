"""DSAC-T against an independent reference in NumPy and float64: its losses, their whole gradients, whole updates.

The reference is written from the equations in `docs/algorithms/dsac_t.md`, with every derivative by hand. A central
difference guards those derivatives; for the critics, whose loss holds factors that pass no gradient, with these fixed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
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
    WIDE,
    Batch,
    Experience,
    Valued,
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
from numpy_nets import Adam, FloatArray, Toy, Tree, assert_close, cast, dot, exact, normal, slope
from trained_states import params_of, with_adam

from rlsuite.algorithms.off_policy import dsac_t
from rlsuite.core import Clock, Task, Transition
from rlsuite.errors import UserError
from rlsuite.pieces import off_policy, return_distributions

HYPERS = dsac_t.Hypers(
    actor_learning_rate=0.003,
    critic_learning_rate=0.005,
    alpha_learning_rate=0.02,
    discount=0.93,
    tau=0.1,
    tau_b=0.3,
    bound_scale=2.9,
    initial_alpha=0.4,
    target_entropy_scale=0.7,
)
either_loss = pytest.mark.parametrize("huber", [False, True], ids=["published", "huber"])


class Nets(NamedTuple):
    """What gradient steps change."""

    actor: Tree
    target_actor: Tree
    critics: Tree
    """both critics, stacked on a leading axis of 2"""
    target_critics: Tree
    b: FloatArray
    """`[2]`, negative before the first gradient step"""
    log_alpha: FloatArray


def both_valued(critics: Tree, obs: FloatArray, action: FloatArray) -> tuple[Valued, Valued]:
    """The distributions by the two critics."""
    first, second = (jax.tree.map(lambda x, i=i: x[i], critics["params"]) for i in range(2))
    return valued(first, obs, action), valued(second, obs, action)


class Targets(NamedTuple):
    """What the critics are to learn."""

    first_smaller: Any
    """`[batch]`: whose next mean is the smaller one"""
    target: FloatArray
    """`[batch]`"""
    clipped: FloatArray
    """`[2, batch]`"""
    b: FloatArray
    """`[2]`"""


def targets_of(nets: Nets, batch: Batch, noise: FloatArray, z: FloatArray) -> Targets:
    """y, C and the new b."""
    then = sampled(nets.target_actor, batch.next_obs, noise)
    one, two = both_valued(nets.target_critics, batch.next_obs, then.action)
    first_smaller = one.mean < two.mean
    cut = np.minimum(np.maximum(z, -3.0), 3.0)
    mean = np.where(first_smaller, one.mean, two.mean)
    sample = np.where(first_smaller, one.mean + cut[0] * one.std, two.mean + cut[1] * two.std)
    # Running out of time ends nothing: only `terminated` cuts the bootstrap.
    going_on = HYPERS.discount * (1.0 - batch.terminated)
    entropy_part = np.exp(nets.log_alpha) * then.log_prob
    target = batch.reward + going_on * (mean - entropy_part)
    noisy_target = batch.reward + going_on * (sample - entropy_part)

    clipped, new_b = [], []
    for value, old in zip(both_valued(nets.critics, batch.obs, batch.action), nets.b, strict=True):
        now = value.std.mean()
        b = now if old < 0.0 else (1.0 - HYPERS.tau_b) * old + HYPERS.tau_b * now
        error = noisy_target - value.mean
        clipped.append(value.mean + np.sign(error) * np.minimum(np.abs(error), HYPERS.bound_scale * b))
        new_b.append(b)
    return Targets(first_smaller, target, np.stack(clipped), np.asarray(new_b))


def huber(x: FloatArray) -> FloatArray:
    """x^2 / 2 up to 50, and then on with its slope there."""
    return np.where(np.abs(x) <= 50.0, x**2 / 2.0, 50.0 * np.abs(x) - 1250.0)


def published_slopes(
    mean: FloatArray, std: FloatArray, target: FloatArray, clipped: FloatArray, b: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """d loss / d mean and d loss / d std of each sample."""
    omega = b**2 + 0.1
    return -omega * (target - mean) / (std**2 + 0.1), -omega * ((mean - clipped) ** 2 - std**2) / (std**3 + 0.1)


def huber_slopes(
    mean: FloatArray, std: FloatArray, target: FloatArray, clipped: FloatArray, b: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """The same for the loss of 2025."""
    ratio = np.minimum(np.maximum(b**2 / (std**2 + 0.1), 0.1), 10.0)
    inside = np.minimum(np.maximum(mean - target, -50.0), 50.0)
    return ratio * inside, -ratio * (huber(mean - clipped) - std**2) / (std + 0.1)


def critics_reference(
    nets: Nets, batch: Batch, noise: FloatArray, z: FloatArray, use_huber: bool
) -> tuple[float, Tree, FloatArray, Callable[[Tree], float]]:
    """The critics' loss, its gradient, the new b, and the loss of other critics if all factors stay what they are."""
    _, target, clipped, b = targets_of(nets, batch, noise, z)
    values = both_valued(nets.critics, batch.obs, batch.action)
    slopes = huber_slopes if use_huber else published_slopes
    parts = [
        slopes(value.mean, value.std, target, clipped_i, b_i)
        for value, clipped_i, b_i in zip(values, clipped, b, strict=True)
    ]

    def loss(critics: Tree) -> float:
        total = 0.0
        for old, new, (d_mean, d_std), b_i in zip(
            values, both_valued(critics, batch.obs, batch.action), parts, b, strict=True
        ):
            of_mean = d_mean * new.mean
            if use_huber:
                of_mean = np.clip(b_i**2 / (old.std**2 + 0.1), 0.1, 10.0) * huber(new.mean - target)
            total += np.mean(of_mean + d_std * new.std)
        return total

    grads = []
    for i, (value, (d_mean, d_std)) in enumerate(zip(values, parts, strict=True)):
        net = jax.tree.map(lambda x, i=i: x[i], nets.critics["params"])
        grads.append(critic_gradient(net, value, d_mean / len(target), d_std / len(target))[0])
    return loss(nets.critics), {"params": jax.tree.map(lambda x, y: np.stack([x, y]), *grads)}, b, loss


def actor_reference(nets: Nets, obs: FloatArray, noise: FloatArray) -> tuple[float, Tree, FloatArray]:
    """The actor's loss, its gradient, and the log-probabilities `[batch]`."""
    n, alpha = len(obs), np.exp(nets.log_alpha)
    drawn = sampled(nets.actor, obs, noise)
    values = both_valued(nets.critics, obs, drawn.action)
    loss = np.mean(alpha * drawn.log_prob - np.minimum(values[0].mean, values[1].mean))
    d_action = np.zeros_like(drawn.action)
    for i in range(2):
        net = jax.tree.map(lambda x, i=i: x[i], nets.critics["params"])
        smaller = (values[i].mean < values[1 - i].mean).astype(np.float64)
        d_action += critic_gradient(net, values[i], -smaller / n, np.zeros(n))[1]
    return loss, actor_gradient(nets.actor, drawn, d_action, alpha), drawn.log_prob


def random_nets(rng: np.random.Generator, log_stds: tuple[float, ...]) -> Nets:
    """b is small for one critic and so large for the other that the far ends of all bounds are reached."""

    def critics() -> Tree:
        return {"params": jax.tree.map(lambda x, y: np.stack([x, y]), random_critic(rng), random_critic(rng))}

    actor, target_actor = random_actor(rng, log_stds), random_actor(rng, log_stds)
    return Nets(actor, target_actor, critics(), critics(), exact([0.5, 25.0]), exact(np.log(0.4)))


def problem(seed: int, log_stds: tuple[float, ...] = WIDE) -> tuple[Nets, Batch, FloatArray, FloatArray]:
    """Networks, a minibatch, noise for actions and, well beyond where it is cut off, noise for returns."""
    rng = np.random.default_rng(seed)
    nets, batch = random_nets(rng, log_stds), random_batch(rng, BATCH)
    return nets, batch, normal(rng, BATCH, ACTION_DIM), exact(3.0 * normal(rng, 2, BATCH))


def learner(nets: Nets, dtype: Any) -> dsac_t.Learner:
    """The learner's state with these networks and fresh optimisers."""
    return with_adam(dsac_t.Learner(*cast(tuple(nets), dtype)))


Results = tuple[tuple[Any, Tree, Any], tuple[Any, Tree, Any]]


@functools.partial(jax.jit, static_argnames="use_huber")
def jax_losses(state: dsac_t.Learner, batch: Transition, noise: Any, z: Any, hypers: Any, use_huber: bool) -> Results:
    """The losses of critics and actor, and their gradients."""
    networks, params = return_distributions.networks_of(HIDDEN, Toy()), params_of(state)
    (critic_loss, (b, _)), critic_grads = jax.value_and_grad(dsac_t.critic_loss, has_aux=True)(
        params.critics, networks, state, batch, noise, z, hypers, use_huber
    )
    (actor_loss, log_prob), actor_grads = jax.value_and_grad(dsac_t.actor_loss, has_aux=True)(
        params.actor, networks, params.critics, params.log_alpha, batch.obs, noise
    )
    return (critic_loss, critic_grads, b), (actor_loss, actor_grads, log_prob)


def compare(seed: int, log_stds: tuple[float, ...], use_huber: bool, dtype: Any, tolerance: float) -> None:
    """All losses and gradients of the learner, computed in `dtype`, against the reference."""
    nets, batch, noise, z = problem(seed, log_stds)
    if seed == 0:
        nets = nets._replace(b=np.array([-1.0, -1.0]))
    want = critics_reference(nets, batch, noise, z, use_huber)[:3], actor_reference(nets, batch.obs, noise)
    samples = Transition(*cast(tuple(batch), dtype))
    with jax.default_matmul_precision("highest"):
        got = jax_losses(learner(nets, dtype), samples, *cast((noise, z, HYPERS), dtype), use_huber)
    assert_close(got, want, tolerance, dtype)


@either_loss
def test_losses_and_gradients_in_float64(huber: bool) -> None:
    with jax.enable_x64(True):
        for seed in range(5):
            compare(seed, MODERATE, huber, jnp.float64, 1e-11)
            compare(seed, WIDE, huber, jnp.float64, 1e-11)


@either_loss
def test_losses_and_gradients_in_float32(huber: bool) -> None:
    for seed in range(5):
        compare(seed, MODERATE, huber, jnp.float32, 1e-5)


def test_the_samples_reach_every_branch() -> None:
    reached: dict[str, int] = {}
    for seed in range(5):
        nets, batch, noise, z = problem(seed)
        drawn = sampled(nets.actor, batch.obs, noise)
        raw = drawn.raw_log_std
        one, two = both_valued(nets.critics, batch.obs, drawn.action)
        first_smaller, target, clipped, b = targets_of(nets, batch, noise, z)
        values = both_valued(nets.critics, batch.obs, batch.action)
        mean, std = np.stack([value.mean for value in values]), np.stack([value.std for value in values])
        ratio = b[:, None] ** 2 / (std**2 + 0.1)
        at_bound = np.isclose(np.abs(clipped - mean), HYPERS.bound_scale * b[:, None])
        cases = {
            "log std below its bound": raw < -20.0,
            "log std inside its bounds": (raw > -20.0) & (raw < 0.5),
            "log std above its bound": raw > 0.5,
            "first critic smaller": one.mean < two.mean,
            "second critic smaller": two.mean < one.mean,
            "first target smaller": first_smaller,
            "second target smaller": ~first_smaller,
            "z below its bound": z < -3.0,
            "z inside its bounds": np.abs(z) < 3.0,
            "z above its bound": z > 3.0,
            "first target below its bound": at_bound[0] & (clipped[0] < mean[0]),
            "first target above its bound": at_bound[0] & (clipped[0] > mean[0]),
            "first target inside its bounds": ~at_bound[0],
            "second target outside its bounds": at_bound[1],
            "second target inside its bounds": ~at_bound[1],
            "ratio below its bound": ratio < 0.1,
            "ratio inside its bounds": (ratio > 0.1) & (ratio < 10.0),
            "ratio above its bound": ratio > 10.0,
            "mean's error quadratic": np.abs(mean - target) < 50.0,
            "mean's error linear": np.abs(mean - target) > 50.0,
            "spread quadratic": np.abs(mean - clipped) < 50.0,
            "spread linear": np.abs(mean - clipped) > 50.0,
            **endings(batch),
        }
        for name, hits in cases.items():
            reached[name] = reached.get(name, 0) + int(np.sum(hits))
    assert min(reached.values()) >= 20, reached


@either_loss
def test_the_reference_has_the_gradient_of_its_own_losses(huber: bool) -> None:
    nets, batch, noise, z = problem(7, MODERATE)
    rng = np.random.default_rng(8)
    _, critic_grads, _, critic_loss = critics_reference(nets, batch, noise, z, huber)
    _, actor_grads, _ = actor_reference(nets, batch.obs, noise)
    for _ in range(5):
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), nets)
        numeric = slope(critic_loss, nets.critics, direction.critics)
        assert numeric == pytest.approx(dot(critic_grads, direction.critics), rel=1e-6)
        numeric = slope(
            lambda actor: actor_reference(nets._replace(actor=actor), batch.obs, noise)[0],
            nets.actor,
            direction.actor,
            step=1e-7,
        )
        assert numeric == pytest.approx(dot(actor_grads, direction.actor), rel=1e-6)


# The properties that the method is known for.


@either_loss
def test_the_gradient_by_mean_and_std_is_the_closed_form(huber: bool) -> None:
    rng = np.random.default_rng(3)
    mean, std, target, clipped = 30.0 * rng.normal(size=(4, 2, 500))
    std, b = np.exp(std / 30.0), np.array([0.3, 4.0])
    loss = dsac_t.huber_loss if huber else dsac_t.published_loss
    with jax.enable_x64(True):
        got = jax.grad(lambda mean, std: jnp.sum(loss(mean, std, *map(jnp.asarray, (target, clipped, b)))), (0, 1))(
            jnp.asarray(mean), jnp.asarray(std)
        )
    want = (huber_slopes if huber else published_slopes)(mean, std, target, clipped, b[:, None])
    assert_close(got, want, 1e-12)


def test_with_a_constant_std_and_a_wide_bound_the_mean_learns_plain_td_errors() -> None:
    """Sample by sample, d loss / d mean is proportional to y - Q, however wild the sampled return."""
    nets, batch, noise, z = problem(4, MODERATE)
    for critics in (nets.critics, nets.target_critics):
        critics["params"]["Dense_2"]["kernel"][:, :, 1] = 0.0
    nets = nets._replace(b=np.array([1e6, 1e6]))

    def grads_of_last_bias(state: dsac_t.Learner, sample: Transition, noise: Any, z: Any) -> Any:
        networks = return_distributions.networks_of(HIDDEN, Toy())
        sample = jax.tree.map(lambda x: x[None], sample)
        hypers = HYPERS._replace(tau_b=0.0)
        grads, _ = jax.grad(dsac_t.critic_loss, has_aux=True)(
            params_of(state).critics, networks, state, sample, noise[None], z[:, None], hypers, False
        )
        return grads["params"]["Dense_2"]["bias"]

    with jax.enable_x64(True):
        of_samples = jax.jit(jax.vmap(grads_of_last_bias, (None, 0, 0, 1)))
        samples = Transition(*cast(tuple(batch), jnp.float64))
        got = np.asarray(of_samples(learner(nets, jnp.float64), samples, *cast((noise, z), jnp.float64)))
    target = targets_of(nets, batch, noise, z).target
    for i, value in enumerate(both_valued(nets.critics, batch.obs, batch.action)):
        assert np.ptp(value.std) == 0.0
        factor = -(1e12 + 0.1) / (value.std[0] ** 2 + 0.1)
        np.testing.assert_allclose(got[:, i, 0], factor * (target - value.mean), rtol=1e-9)


def test_b_is_set_by_the_first_minibatch_and_follows_the_next_ones() -> None:
    minibatches = np.array([[[1.0, 3.0], [4.0, 4.0]], [[0.0, 0.0], [8.0, 4.0]], [[5.0, 7.0], [0.0, 2.0]]])
    b, trace = jnp.full(2, dsac_t.UNSET), []
    for std in minibatches:
        b = dsac_t.running_std(b, jnp.asarray(std), 0.25)
        trace.append(b)
    # 2; 3/4 of it; 3/4 of that and 1/4 of 6. 4; 3 and 6/4; 3/4 of 4.5 and 1/4.
    np.testing.assert_allclose(trace, [[2.0, 4.0], [1.5, 4.5], [2.625, 3.625]], rtol=1e-6)
    grad = jax.grad(lambda std: jnp.sum(dsac_t.running_std(b, std, 0.25)))(jnp.ones((2, 3)))
    np.testing.assert_array_equal(grad, 0.0)


def test_starts_with_two_critics_that_differ_from_each_other_but_not_from_their_targets() -> None:
    algorithm = dsac_t.make(dsac_t.Config(hidden_sizes=(8,), buffer_size=4))
    state = jax.jit(lambda key: algorithm.init(key, Task(Toy()), dsac_t.Hypers()))(jax.random.key(0)).learner
    state = params_of(state)
    chex.assert_trees_all_equal(state.critics, state.target_critics)
    chex.assert_trees_all_equal(state.actor, state.target_actor)
    assert not np.array_equal(*state.critics["params"]["Dense_0"]["kernel"])
    np.testing.assert_array_equal(state.b, [dsac_t.UNSET] * 2)
    assert float(state.log_alpha) == pytest.approx(1.0, rel=1e-6)


# Whole updates, with everything that surrounds the losses.

UPDATE_BATCH, WARMUP_UPDATES = 16, 2


class Student:
    """The learner of the reference: networks, optimisers, and how many gradient steps it has made."""

    def __init__(self, nets: Nets) -> None:
        self.nets, self.steps = nets, 0
        self.actor_adam, self.critic_adam, self.alpha_adam = map(Adam, (nets.actor, nets.critics, nets.log_alpha))

    def learn(self, batch: Batch, key: jax.Array, config: dsac_t.Config) -> None:
        """One gradient step. Random numbers come from JAX by the learner's own key schedule."""
        noise_key, z_key, actor_key = jax.random.split(key, 3)
        noise = np.asarray(jax.random.normal(noise_key, (UPDATE_BATCH, ACTION_DIM)))
        z = np.asarray(jax.random.normal(z_key, (2, UPDATE_BATCH)))
        old = self.nets
        _, critic_grads, b, _ = critics_reference(old, batch, noise, z, config.huber)
        # Everything is differentiated before anything moves.
        noise = np.asarray(jax.random.normal(actor_key, (UPDATE_BATCH, ACTION_DIM)))
        _, actor_grads, log_prob = actor_reference(old, batch.obs, noise)
        alpha_grad = alpha_reference(old.log_alpha, log_prob, -HYPERS.target_entropy_scale * ACTION_DIM)[1]

        critics = self.critic_adam.step(old.critics, critic_grads, HYPERS.critic_learning_rate)
        self.nets = old._replace(critics=critics, b=b)
        if self.steps % config.policy_delay == 0:
            actor = self.actor_adam.step(old.actor, actor_grads, HYPERS.actor_learning_rate)
            self.nets = self.nets._replace(
                actor=actor,
                target_actor=polyak(old.target_actor, actor, HYPERS.tau),
                target_critics=polyak(old.target_critics, critics, HYPERS.tau),
            )
            if config.learn_alpha:
                log_alpha = self.alpha_adam.step(old.log_alpha, alpha_grad, HYPERS.alpha_learning_rate)
                self.nets = self.nets._replace(log_alpha=log_alpha)
        self.steps += 1


@pytest.mark.parametrize(
    ("gradient_steps", "learn_alpha", "huber"), [(3, True, False), (1, False, True)], ids=["published", "huber"]
)
def test_whole_updates_from_the_warm_up_on(gradient_steps: int, learn_alpha: bool, huber: bool) -> None:
    """Three gradient steps an update with a delay of two: the delayed ones lie elsewhere in every update."""
    config = dsac_t.Config(
        num_envs=NUM_ENVS,
        num_steps=NUM_STEPS,
        gradient_steps=gradient_steps,
        batch_size=UPDATE_BATCH,
        buffer_size=NUM_ENVS * BUFFER_STEPS,
        warmup_steps=WARMUP_UPDATES * NUM_ENVS * NUM_STEPS - 1,  # rounded up to whole updates
        hidden_sizes=HIDDEN,
        learn_alpha=learn_alpha,
        huber=huber,
    )
    rng = np.random.default_rng(1)
    student = Student(random_nets(rng, MODERATE)._replace(b=np.array([-1.0, -1.0])))
    experience = Experience(rng)
    algorithm, task, hypers = dsac_t.make(config), Task(Toy()), HYPERS
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
                student.learn(batch, step_key, config)
                seen |= {name for name, hits in endings(batch).items() if np.any(hits)}
            got, got_before = (Nets(*params_of(of.learner)) for of in (state, before))
            assert_close(moves(got, got_before), moves(student.nets, old_nets), 1e-7)
            assert float(metrics["alpha"]) == pytest.approx(np.exp(student.nets.log_alpha), rel=1e-9)
            if gradient_steps == 1:
                assert float(metrics["b"]) == pytest.approx(np.mean(student.nets.b), rel=1e-9)
                if first_step % config.policy_delay:
                    # Between the delayed steps nothing but the critics and b moves.
                    same = [x._replace(critics=None, b=None) for x in (got, got_before)]
                    chex.assert_trees_all_equal(*same)
    assert seen >= {"terminated only", "truncated only"}


def test_a_buffer_that_does_not_hold_whole_steps_is_refused() -> None:
    with pytest.raises(UserError, match="buffer_size=10 is not a multiple of num_envs=3"):
        dsac_t.make(dsac_t.Config(num_envs=3, buffer_size=10))
    with pytest.raises(UserError, match="num_steps=0 must be at least 1"):
        dsac_t.make(dsac_t.Config(num_steps=0))


def test_the_buffer_fits_the_budget() -> None:
    """Whole updates, since a budget is rounded up to them."""
    config = dsac_t.Config(num_envs=3, num_steps=4, buffer_size=3000)
    assert dsac_t.fit(config, 100).buffer_size == 108
    assert dsac_t.fit(config, 1_000_000).buffer_size == 3000
