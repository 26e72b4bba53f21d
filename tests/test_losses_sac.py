"""SAC against an independent reference in NumPy and float64: the three losses, their whole gradients, whole updates.

The reference is written from the paper (Haarnoja et al. 2018, arXiv 1812.05905) and the details listed in
`sac.py`, with every derivative by hand. A central difference of the reference's own losses guards
those derivatives.
"""

from __future__ import annotations

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
from rlsuite.algorithms.off_policy import sac
from rlsuite.core import Clock, Task, Transition
from rlsuite.pieces import off_policy, replay
from rlsuite.pieces.rollout import EnvCarry

HIDDEN = (8, 7)
OBS_DIM = ACTION_DIM = 3
BATCH = 64
DISCOUNT = 0.93
CONFIG = sac.Config(hidden_sizes=HIDDEN)
WIDE = (-19.9, 1.9, -1.0)
"""Where the actor's three log standard deviations lie: around the lower bound, around the upper one, between them."""
MODERATE = (-2.0, 1.9, -1.0)
"""The same for float32, where mean + exp(-20) noise rounds to the mean, so that no such comparison has a meaning."""


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
    """both critics, stacked on a leading axis of 2"""
    target_critics: Tree
    log_alpha: FloatArray


class Drawn(NamedTuple):
    """A sampled action and all that its derivative needs."""

    action: FloatArray
    log_prob: FloatArray
    u: FloatArray
    """before squashing"""
    noise_part: FloatArray
    """std * noise"""
    raw_log_std: FloatArray
    inputs: list[FloatArray]


def sampled(actor: Tree, obs: FloatArray, noise: FloatArray) -> Drawn:
    """A tanh-squashed Gaussian action in the box, and its log-probability by the change of variables."""
    out, inputs = forward(actor["params"], obs, "relu")
    mean, raw_log_std = out[:, :ACTION_DIM], out[:, ACTION_DIM:]
    log_std = np.minimum(np.maximum(raw_log_std, -20.0), 2.0)
    u = mean + np.exp(log_std) * noise
    action = (HIGH + LOW) / 2.0 + (HIGH - LOW) / 2.0 * np.tanh(u)
    # d action / d u = half width / cosh(u)^2, with the logarithm of cosh written so that it cannot overflow.
    log_slope = np.log((HIGH - LOW) / 2.0) - 2.0 * (np.logaddexp(u, -u) - np.log(2.0))
    log_density = -0.5 * noise**2 - log_std - 0.5 * np.log(2.0 * np.pi)
    return Drawn(action, (log_density - log_slope).sum(1), u, np.exp(log_std) * noise, raw_log_std, inputs)


def critic(critics: Tree, i: int) -> Tree:
    """One of the two."""
    return jax.tree.map(lambda x: x[i], critics["params"])


def q_values(critics: Tree, obs: FloatArray, action: FloatArray) -> FloatArray:
    """`[2, batch]`"""
    inputs = np.concatenate([obs, action], axis=1)
    return np.stack([forward(critic(critics, i), inputs, "relu")[0][:, 0] for i in range(2)])


def critic_reference(nets: Nets, batch: Batch, noise: FloatArray, discount: float) -> tuple[float, Tree]:
    """The critics' loss and its gradient."""
    n = len(batch.obs)
    following = sampled(nets.actor, batch.next_obs, noise)
    q_1, q_2 = q_values(nets.target_critics, batch.next_obs, following.action)
    soft_value = np.minimum(q_1, q_2) - np.exp(nets.log_alpha) * following.log_prob
    # Running out of time ends nothing: only `terminated` cuts the bootstrap.
    target = batch.reward + discount * (1.0 - batch.terminated) * soft_value
    loss, grads = 0.0, []
    for i in range(2):
        net = critic(nets.critics, i)
        q, inputs = forward(net, np.concatenate([batch.obs, batch.action], axis=1), "relu")
        error = q[:, 0] - target
        loss += np.mean(error**2)
        grads.append(backward(net, inputs, 2.0 * error[:, None] / n, "relu")[0])
    return loss, {"params": jax.tree.map(lambda a, b: np.stack([a, b]), *grads)}


def actor_reference(nets: Nets, obs: FloatArray, noise: FloatArray) -> tuple[float, Tree, FloatArray]:
    """The actor's loss, its gradient, and the log-probabilities `[batch]`."""
    n, alpha = len(obs), np.exp(nets.log_alpha)
    d = sampled(nets.actor, obs, noise)
    q = q_values(nets.critics, obs, d.action)
    loss = np.mean(alpha * d.log_prob - np.where(q[0] < q[1], q[0], q[1]))

    # Through the smaller critic into the action ...
    d_action = np.zeros_like(d.action)
    for i in range(2):
        net = critic(nets.critics, i)
        _, inputs = forward(net, np.concatenate([obs, d.action], axis=1), "relu")
        smaller = (q[i] < q[1 - i]).astype(np.float64)
        d_action += backward(net, inputs, -smaller[:, None] / n, "relu")[1][:, OBS_DIM:]
    # ... and through the squashing; log pi falls by the log slope, whose derivative is -2 tanh(u).
    d_u = d_action * (HIGH - LOW) / 2.0 / np.cosh(d.u) ** 2 + alpha / n * 2.0 * np.tanh(d.u)
    # u moves with the mean by 1 and with log std by std * noise; log pi also holds -log std. Clipping stops the latter.
    inside = (d.raw_log_std > -20.0) & (d.raw_log_std < 2.0)
    d_log_std = np.where(inside, d_u * d.noise_part - alpha / n, 0.0)
    grads = backward(nets.actor["params"], d.inputs, np.concatenate([d_u, d_log_std], axis=1), "relu")[0]
    return loss, {"params": grads}, d.log_prob


def alpha_reference(log_alpha: FloatArray, log_prob: FloatArray, target_entropy: float) -> tuple[float, FloatArray]:
    """The temperature's loss and its derivative by log alpha: too little entropy must raise alpha."""
    slack = np.mean(-log_prob) - target_entropy
    return float(log_alpha * slack), np.asarray(slack)


def random_nets(rng: np.random.Generator, log_stds: tuple[float, ...]) -> Nets:
    def critics() -> Tree:
        both = [mlp(rng, OBS_DIM + ACTION_DIM, *HIDDEN, 1) for _ in range(2)]
        somewhere = np.concatenate([rng.normal(size=(99, OBS_DIM)), rng.uniform(LOW, HIGH, (99, ACTION_DIM))], axis=1)
        for net in both:
            # Around 0 on average, so that each of the two is the smaller one somewhere.
            net["Dense_2"]["bias"] -= exact(np.mean(forward(net, somewhere, "relu")[0]))
        return {"params": jax.tree.map(lambda a, b: exact(np.stack([a, b])), *both)}

    actor = mlp(rng, OBS_DIM, *HIDDEN, 2 * ACTION_DIM)
    actor["Dense_2"]["kernel"][:, ACTION_DIM:] *= 4.0
    actor["Dense_2"]["bias"][ACTION_DIM:] = log_stds
    return Nets({"params": jax.tree.map(exact, actor)}, critics(), critics(), exact(np.log(0.4)))


def random_batch(rng: np.random.Generator, size: int) -> Batch:
    return Batch(
        obs=normal(rng, size, OBS_DIM),
        action=exact(rng.uniform(LOW, HIGH, size=(size, ACTION_DIM))),
        reward=normal(rng, size),
        next_obs=normal(rng, size, OBS_DIM),
        terminated=rng.random(size) < 0.4,
        truncated=rng.random(size) < 0.4,
    )


def problem(seed: int, log_stds: tuple[float, ...] = WIDE) -> tuple[Nets, Batch, FloatArray]:
    rng = np.random.default_rng(seed)
    return random_nets(rng, log_stds), random_batch(rng, BATCH), normal(rng, BATCH, ACTION_DIM)


def learner(nets: Nets, dtype: Any) -> sac.Learner:
    """The learner's state with these networks and fresh optimisers."""
    return with_adam(sac.Learner(*cast(tuple(nets), dtype)))


Results = tuple[tuple[Any, Tree], tuple[Any, Tree, Any], tuple[Any, Any]]


@jax.jit
def jax_losses(state: sac.Learner, batch: Transition, noise: Any, discount: Any, target_entropy: Any) -> Results:
    """The three losses of the learner and their gradients."""
    networks, params = sac.networks_of(CONFIG, Toy()), params_of(state)
    (critic_loss, _), critic_grads = jax.value_and_grad(sac.critic_loss, has_aux=True)(
        params.critics, networks, state, batch, noise, discount
    )
    (actor_loss, log_prob), actor_grads = jax.value_and_grad(sac.actor_loss, has_aux=True)(
        params.actor, networks, params.critics, params.log_alpha, batch.obs, noise
    )
    alpha = jax.value_and_grad(sac.alpha_loss)(params.log_alpha, log_prob, target_entropy)
    return (critic_loss, critic_grads), (actor_loss, actor_grads, log_prob), alpha


def compare(seed: int, log_stds: tuple[float, ...], dtype: Any, tolerance: float) -> None:
    """All losses and gradients of the learner, computed in `dtype`, against the reference."""
    nets, batch, noise = problem(seed, log_stds)
    target_entropy = -0.7 * ACTION_DIM
    of_actor = actor_reference(nets, batch.obs, noise)
    want = (
        critic_reference(nets, batch, noise, DISCOUNT),
        of_actor,
        alpha_reference(nets.log_alpha, of_actor[2], target_entropy),
    )
    samples = Transition(*cast(tuple(batch), dtype))
    with jax.default_matmul_precision("highest"):
        got = jax_losses(learner(nets, dtype), samples, *cast((noise, DISCOUNT, target_entropy), dtype))
    assert_close(got, want, tolerance, dtype)


def test_losses_and_gradients_in_float64() -> None:
    with jax.enable_x64(True):
        for seed in range(5):
            # The learner forms (u - mean) / std, which at std = exp(-20) has 8 digits fewer than float64.
            compare(seed, MODERATE, jnp.float64, 1e-11)
            compare(seed, WIDE, jnp.float64, 1e-6)


def test_losses_and_gradients_in_float32() -> None:
    for seed in range(5):
        compare(seed, MODERATE, jnp.float32, 1e-5)


def test_the_samples_reach_every_branch() -> None:
    reached: dict[str, int] = {}
    for seed in range(5):
        nets, batch, noise = problem(seed)
        now, following = (sampled(nets.actor, obs, noise) for obs in (batch.obs, batch.next_obs))
        raw = now.raw_log_std
        q_1, q_2 = q_values(nets.critics, batch.obs, now.action)
        next_q_1, next_q_2 = q_values(nets.target_critics, batch.next_obs, following.action)
        cases = {
            "log std below its bound": raw < -20.0,
            "log std inside its bounds": (raw > -20.0) & (raw < 2.0),
            "log std above its bound": raw > 2.0,
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
    nets, batch, noise = problem(7, MODERATE)
    rng = np.random.default_rng(8)
    critic_grads = critic_reference(nets, batch, noise, DISCOUNT)[1]
    _, actor_grads, log_prob = actor_reference(nets, batch.obs, noise)
    for _ in range(5):
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), nets)
        numeric = slope(
            lambda critics: critic_reference(nets._replace(critics=critics), batch, noise, DISCOUNT)[0],
            nets.critics,
            direction.critics,
            step=1e-7,
        )
        assert numeric == pytest.approx(dot(critic_grads, direction.critics), rel=1e-6)
        numeric = slope(
            lambda actor: actor_reference(nets._replace(actor=actor), batch.obs, noise)[0],
            nets.actor,
            direction.actor,
            step=1e-7,
        )
        assert numeric == pytest.approx(dot(actor_grads, direction.actor), rel=1e-6)
    numeric = slope(lambda x: alpha_reference(x, log_prob, -2.0)[0], nets.log_alpha, np.ones(()))
    assert numeric == pytest.approx(float(alpha_reference(nets.log_alpha, log_prob, -2.0)[1]), rel=1e-6)


# Whole updates, with everything that surrounds the losses.

NUM_ENVS, GRADIENT_STEPS, UPDATE_BATCH, CAPACITY = 2, 4, 16, 16
HYPERS = sac.Hypers(
    actor_learning_rate=0.003,
    critic_learning_rate=0.005,
    alpha_learning_rate=0.02,
    discount=DISCOUNT,
    tau=0.1,
    initial_alpha=0.4,
    target_entropy_scale=0.7,
)


def learned(nets: Nets, batches: list[Batch], noise_key: jax.Array, policy_delay: int, learn_alpha: bool) -> Nets:
    """The networks after the gradient steps of one update, from fresh optimisers.

    Random numbers come from JAX by the learner's own key schedule: they are the only thing that the two share.
    """
    critic_adam, actor_adam, alpha_adam = Adam(nets.critics), Adam(nets.actor), Adam(nets.log_alpha)
    keys = jax.random.split(noise_key, len(batches))
    for i, (batch, key) in enumerate(zip(batches, keys, strict=True)):
        critic_key, actor_key = jax.random.split(key)
        noise = np.asarray(jax.random.normal(critic_key, (UPDATE_BATCH, ACTION_DIM)))
        grads = critic_reference(nets, batch, noise, HYPERS.discount)[1]
        critics = critic_adam.step(nets.critics, grads, HYPERS.critic_learning_rate)
        nets = nets._replace(critics=critics)

        if i % policy_delay == 0:
            for noise in np.asarray(jax.random.normal(actor_key, (policy_delay, UPDATE_BATCH, ACTION_DIM))):
                _, grads, log_prob = actor_reference(nets, batch.obs, noise)
                nets = nets._replace(actor=actor_adam.step(nets.actor, grads, HYPERS.actor_learning_rate))
                if learn_alpha:
                    target_entropy = -HYPERS.target_entropy_scale * ACTION_DIM
                    grad = alpha_reference(nets.log_alpha, log_prob, target_entropy)[1]
                    log_alpha = alpha_adam.step(nets.log_alpha, grad, HYPERS.alpha_learning_rate)
                    nets = nets._replace(log_alpha=log_alpha)

        moved = jax.tree.map(lambda old, new: (1.0 - HYPERS.tau) * old + HYPERS.tau * new, nets.target_critics, critics)
        nets = nets._replace(target_critics=moved)
    return nets


@pytest.mark.parametrize(("policy_delay", "learn_alpha"), [(1, True), (2, False)])
def test_one_whole_update(policy_delay: int, learn_alpha: bool) -> None:
    config = sac.Config(
        num_envs=NUM_ENVS,
        gradient_steps=GRADIENT_STEPS,
        batch_size=UPDATE_BATCH,
        buffer_size=CAPACITY,
        warmup_steps=2 * NUM_ENVS,
        hidden_sizes=HIDDEN,
        policy_delay=policy_delay,
        learn_alpha=learn_alpha,
    )
    rng = np.random.default_rng(0)
    nets = random_nets(rng, MODERATE)
    # Five steps of the eight that are kept are filled; whoever reads another one reads NaN. One environment terminated
    # before, one ran out of time and is about to do so again.
    updates_done = 5
    stored = updates_done * NUM_ENVS
    past = random_batch(rng, stored)
    past.terminated[:] = np.isin(np.arange(stored), [2, 8])
    past.truncated[:] = np.arange(stored) == 5
    obs, steps = np.stack([START, normal(rng, 3)]), np.array([0, TIME_LIMIT - 1])
    follows = np.concatenate([past.obs[NUM_ENVS:], obs])
    ended = (past.terminated | past.truncated)[:, None]
    past = past._replace(next_obs=np.where(ended, past.next_obs, follows))

    algorithm, task, hypers = sac.make(config), Task(Toy()), HYPERS
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        layout = replay.Layout.of(task.env)
        add = jax.jit(lambda buffer, batch, obs, step: replay.add(buffer, layout, Transition(*batch), obs, step))
        buffer = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan), replay.init(layout, NUM_ENVS, CAPACITY))
        for step in range(updates_done):
            now = slice(step * NUM_ENVS, (step + 1) * NUM_ENVS)
            batch = cast(tuple(column[now] for column in past), jnp.float64)
            buffer = add(buffer, batch, jnp.asarray(follows[now]), jnp.int32(step))
        carry = EnvCarry(EpisodeState(jnp.asarray(obs), jnp.asarray(steps, jnp.int32)), jnp.asarray(obs))
        state = off_policy.State(learner(nets, jnp.float64), buffer, carry)
        fresh = jax.eval_shape(algorithm.init, jax.random.key(0), task, hypers)
        chex.assert_trees_all_equal_structs(fresh, state)

        key = jax.random.key(1)
        clock = Clock(jnp.int32(updates_done), jnp.asarray(0.5))
        new, metrics = jax.jit(algorithm.update)(key, task, state, cast(hypers, jnp.float64), clock)

        # One step of both environments ...
        collect_key, batch_key, noise_key = jax.random.split(key, 3)
        policy_key, _ = jax.random.split(jax.random.split(collect_key, 1)[0])
        action = sampled(nets.actor, obs, np.asarray(jax.random.normal(policy_key, (NUM_ENVS, ACTION_DIM)))).action
        next_obs, reward, terminated = toy_transition(obs, action)
        truncated = steps + 1 >= TIME_LIMIT
        done = terminated | truncated
        assert done[1]
        seen_next = np.where(done[:, None], START, next_obs)
        # ... goes into the buffer, where actions are float32 ...
        present = Batch(obs, exact(action), reward, next_obs, terminated, truncated)
        want_buffer = add(buffer, cast(tuple(present), jnp.float64), jnp.asarray(seen_next), jnp.int32(updates_done))
        rows = Batch(*(np.concatenate(pair) for pair in zip(past, present, strict=True)))
        # ... from which all minibatches are drawn.
        index = np.asarray(
            jax.random.randint(batch_key, (GRADIENT_STEPS, UPDATE_BATCH), 0, jnp.int32(stored + NUM_ENVS))
        )
        assert np.any(index >= stored)
        batches = [Batch(*(x[chosen] for x in rows)) for chosen in index]
        want = learned(nets, batches, noise_key, policy_delay, learn_alpha)

    got = Nets(*params_of(new.learner))
    assert_moved(got, want, nets, 1e-8)
    assert float(metrics["alpha"]) == pytest.approx(np.exp(want.log_alpha), rel=1e-12)
    for got_part, want_part in zip(new.buffer, want_buffer, strict=True):
        np.testing.assert_allclose(got_part, want_part, rtol=1e-6)  # NaN where NaN is expected, too
    np.testing.assert_allclose(new.envs.obs, seen_next, rtol=1e-12)
