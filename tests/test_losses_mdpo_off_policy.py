"""Off-policy MDPO against an independent reference in NumPy and float64: losses, whole gradients, whole updates.

The reference is written from the specification of the method (Tomar et al. 2020, arXiv 2005.09814) and the details
listed in `mdpo_off_policy.py`, with every derivative by hand. A central difference of the
reference's own losses guards those derivatives.
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
from rlsuite.algorithms.off_policy import mdpo_off_policy as mdpo
from rlsuite.core import Clock, Task, Transition
from rlsuite.errors import UserError
from rlsuite.pieces import off_policy, replay
from rlsuite.pieces.rollout import EnvCarry

HIDDEN = (8, 7)
OBS_DIM = ACTION_DIM = 3
BATCH = 64
CONFIG = mdpo.Config(hidden_sizes=HIDDEN)
HYPERS = mdpo.Hypers(discount=0.93, entropy_coef=0.3, regularization=0.05)
KL_WEIGHT = 1.4
WIDE = (-19.9, 1.9, -1.0)
"""Where the actor's three log standard deviations lie: around the lower bound, around the upper one, between them."""
MODERATE = (-1.3, 1.9, -1.0)
"""The same for float32, where mean + exp(-20) noise rounds to the mean, so that no such comparison has a meaning."""
ORDERS = (1.0, 0.7, 1.3)
SEEDS = range(5)


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
    old_actor: Tree
    critics: Tree
    """both Q functions, stacked on a leading axis of 2"""
    value: Tree
    target_value: Tree


class Outputs(NamedTuple):
    """What a policy network says."""

    mean: FloatArray
    log_std: FloatArray
    inside: Any
    """where clipping has not stopped the log standard deviation"""
    inputs: list[FloatArray]


def outputs(actor: Tree, obs: FloatArray) -> Outputs:
    out, inputs = forward(actor["params"], obs, "relu")
    raw = out[:, ACTION_DIM:]
    return Outputs(out[:, :ACTION_DIM], np.minimum(np.maximum(raw, -20.0), 2.0), (raw > -20.0) & (raw < 2.0), inputs)


def squashed(u: FloatArray) -> FloatArray:
    return (HIGH + LOW) / 2.0 + (HIGH - LOW) / 2.0 * np.tanh(u)


def log_density(z: FloatArray, log_std: FloatArray, u: FloatArray) -> FloatArray:
    """Of each component of tanh(u), whose slope 1 / cosh^2 is raised by 1e-6."""
    return -0.5 * z**2 - log_std - 0.5 * np.log(2.0 * np.pi) - np.log(1.0 / np.cosh(u) ** 2 + 1e-6)


def d_log_slope(u: FloatArray) -> FloatArray:
    """d -log(1 / cosh^2 + 1e-6) / du"""
    return np.asarray(2.0 * np.tanh(u) / (1.0 + 1e-6 * np.cosh(u) ** 2))


def log_q(log_x: FloatArray, q: float) -> tuple[FloatArray, FloatArray]:
    """Of x or 1e-6, whichever is more: the value, and its derivative by log x."""
    x = np.maximum(np.exp(log_x), 1e-6)
    above = np.exp(log_x) > 1e-6
    if q == 1.0:
        return np.log(x), above.astype(np.float64)
    return (x ** (q - 1.0) - 1.0) / (q - 1.0), above * x ** (q - 1.0)


def net_of(stacked: Tree, i: int) -> Tree:
    """One of the two Q functions."""
    return jax.tree.map(lambda x: x[i], stacked["params"])


def q_values(critics: Tree, obs: FloatArray, action: FloatArray) -> FloatArray:
    """`[2, batch]`"""
    inputs = np.concatenate([obs, action], axis=1)
    return np.stack([forward(net_of(critics, i), inputs, "relu")[0][:, 0] for i in range(2)])


def critic_reference(nets: Nets, batch: Batch, discount: float) -> tuple[float, Tree]:
    """The Q functions' loss and its gradient."""
    n = len(batch.obs)
    following = forward(nets.target_value["params"], batch.next_obs, "relu")[0][:, 0]
    # Running out of time ends nothing: only `terminated` cuts the bootstrap.
    target = batch.reward + discount * (1.0 - batch.terminated) * following
    loss, grads = 0.0, []
    for i in range(2):
        net = net_of(nets.critics, i)
        q, inputs = forward(net, np.concatenate([batch.obs, batch.action], axis=1), "relu")
        error = q[:, 0] - target
        loss += 0.5 * np.mean(error**2)
        grads.append(backward(net, inputs, error[:, None] / n, "relu")[0])
    return loss, {"params": jax.tree.map(lambda a, b: np.stack([a, b]), *grads)}


def value_reference(nets: Nets, obs: FloatArray, noise: FloatArray, hypers: mdpo.Hypers) -> tuple[float, Tree]:
    """V's loss and its gradient."""
    policy = outputs(nets.actor, obs)
    u = policy.mean + np.exp(policy.log_std) * noise
    q_1, q_2 = q_values(nets.critics, obs, squashed(u))
    log_prob = log_q(log_density(noise, policy.log_std, u), hypers.tsallis_q)[0].sum(1)
    target = np.minimum(q_1, q_2) - hypers.entropy_coef * log_prob
    out, inputs = forward(nets.value["params"], obs, "relu")
    error = out[:, 0] - target
    grads, _ = backward(nets.value["params"], inputs, error[:, None] / len(obs), "relu")
    return float(0.5 * np.mean(error**2)), {"params": grads}


def actor_reference(
    nets: Nets, obs: FloatArray, noise: FloatArray, kl_weight: float, hypers: mdpo.Hypers
) -> tuple[float, Tree, float]:
    """The policy's loss, its gradient, and the mean of log_q pi - log_q pi_old."""
    n, q = len(obs), hypers.tsallis_q
    policy, old = outputs(nets.actor, obs), outputs(nets.old_actor, obs)
    std = np.exp(policy.log_std)
    u = policy.mean + std * noise
    action, old_z = squashed(u), (u - old.mean) / np.exp(old.log_std)
    log_prob, d_present = log_q(log_density(noise, policy.log_std, u), q)
    old_log_prob, d_old = log_q(log_density(old_z, old.log_std, u), q)
    net = net_of(nets.critics, 0)
    first_q, inputs = forward(net, np.concatenate([obs, action], axis=1), "relu")
    of_old = q * (hypers.entropy_coef - kl_weight)
    loss = np.mean(kl_weight * log_prob.sum(1) + of_old * old_log_prob.sum(1) - first_q[:, 0])
    loss += hypers.regularization * (np.mean(policy.mean**2) + np.mean(policy.log_std**2))

    d_present, d_old = kl_weight / n * d_present, of_old / n * d_old
    d_action = backward(net, inputs, np.full((n, 1), -1.0 / n), "relu")[1][:, OBS_DIM:]
    # The old policy stands still, but the action at which it is asked moves; it pulls the action towards its mean.
    d_u = (
        d_action * (HIGH - LOW) / 2.0 / np.cosh(u) ** 2
        + (d_present + d_old) * d_log_slope(u)
        - d_old * old_z / np.exp(old.log_std)
    )
    penalty = 2.0 * hypers.regularization / policy.mean.size
    d_mean = d_u + penalty * policy.mean
    # u moves with log std by std * noise; the log-density also holds -log std. Clipping stops both, and the penalty.
    d_log_std = np.where(policy.inside, d_u * std * noise - d_present + penalty * policy.log_std, 0.0)
    d_out = np.concatenate([d_mean, d_log_std], axis=1)
    grads, _ = backward(nets.actor["params"], policy.inputs, d_out, "relu")
    return float(loss), {"params": grads}, float(np.mean(log_prob.sum(1) - old_log_prob.sum(1)))


def random_nets(rng: np.random.Generator, log_stds: tuple[float, ...]) -> Nets:
    critics = [mlp(rng, OBS_DIM + ACTION_DIM, *HIDDEN, 1) for _ in range(2)]
    somewhere = np.concatenate([rng.normal(size=(99, OBS_DIM)), rng.uniform(LOW, HIGH, (99, ACTION_DIM))], axis=1)
    for net in critics:
        # Around 0 on average, so that each of the two is the smaller one somewhere.
        net["Dense_2"]["bias"] -= exact(np.mean(forward(net, somewhere, "relu")[0]))
    actor = mlp(rng, OBS_DIM, *HIDDEN, 2 * ACTION_DIM)
    actor["Dense_2"]["kernel"][:, ACTION_DIM:] *= 4.0
    actor["Dense_2"]["bias"][ACTION_DIM:] = log_stds
    # The old policy is a little off, and wide enough that some actions of the new one are likely under it. Nowhere is
    # it so narrow that (u - mean) / std turns the last digits of a float32 mean into the loss's.
    old_actor = jax.tree.map(lambda x: x + 0.05 * normal(rng, *x.shape), actor)
    old_actor["Dense_2"]["kernel"][:, ACTION_DIM:] /= 4.0
    old_actor["Dense_2"]["bias"][ACTION_DIM:] = np.maximum(log_stds, -1.0)
    value, target_value = (mlp(rng, OBS_DIM, *HIDDEN, 1) for _ in range(2))
    nets = Nets(actor, old_actor, jax.tree.map(lambda a, b: np.stack([a, b]), *critics), value, target_value)
    return Nets(*({"params": jax.tree.map(exact, net)} for net in nets))


def random_batch(rng: np.random.Generator, size: int) -> Batch:
    return Batch(
        obs=normal(rng, size, OBS_DIM),
        action=exact(rng.uniform(LOW, HIGH, size=(size, ACTION_DIM))),
        reward=normal(rng, size),
        next_obs=normal(rng, size, OBS_DIM),
        terminated=rng.random(size) < 0.4,
        truncated=rng.random(size) < 0.4,
    )


def problem(seed: int, log_stds: tuple[float, ...]) -> tuple[Nets, Batch, FloatArray]:
    rng = np.random.default_rng(seed)
    # Some noise is so far out that the floor of the present policy's density counts, too.
    noise = normal(rng, BATCH, ACTION_DIM) * np.where(np.arange(BATCH) % 4 == 0, 3.5, 1.0)[:, None]
    return random_nets(rng, log_stds), random_batch(rng, BATCH), noise


def learner(nets: Nets, dtype: Any) -> mdpo.Learner:
    """These networks with fresh optimisers."""
    return with_adam(mdpo.Learner(*cast(tuple(nets), dtype)))


@jax.jit
def jax_losses(state: mdpo.Learner, batch: Transition, noise: Any, kl_weight: Any, hypers: mdpo.Hypers) -> Any:
    """The three losses of the learner, their gradients and metrics."""
    networks, params = mdpo.networks_of(CONFIG, Toy()), params_of(state)
    of_critics = jax.value_and_grad(mdpo.critic_loss, has_aux=True)(
        params.critics, networks, state.target_value, batch, hypers.discount
    )
    of_value = jax.value_and_grad(mdpo.value_loss, has_aux=True)(
        params.value, networks, state, batch.obs, noise, hypers
    )
    of_actor = jax.value_and_grad(mdpo.actor_loss, has_aux=True)(
        params.actor, networks, state, batch.obs, noise, kl_weight, hypers
    )
    return of_critics, of_value, of_actor


def compare(seed: int, q: float, log_stds: tuple[float, ...], dtype: Any, tolerance: float) -> None:
    """All losses and gradients of the learner, computed in `dtype`, against the reference."""
    nets, batch, noise = problem(seed, log_stds)
    hypers = HYPERS._replace(tsallis_q=q)
    critic_loss, critic_grads = critic_reference(nets, batch, hypers.discount)
    value_loss, value_grads = value_reference(nets, batch.obs, noise, hypers)
    actor_loss, actor_grads, log_ratio = actor_reference(nets, batch.obs, noise, KL_WEIGHT, hypers)
    samples = Transition(*cast(tuple(batch), dtype))
    with jax.default_matmul_precision("highest"):
        of_critics, of_value, of_actor = jax_losses(
            learner(nets, dtype), samples, *cast((noise, KL_WEIGHT, hypers), dtype)
        )
    want_q = np.mean(q_values(nets.critics, batch.obs, batch.action))
    assert_close(of_critics[1], critic_grads, tolerance, dtype)
    assert_close(of_value[1], value_grads, tolerance, dtype)
    assert_close(of_actor[1], actor_grads, tolerance, dtype)
    got = {"loss of actor": of_actor[0][0], **of_critics[0][1], **of_value[0][1], **of_actor[0][1]}
    want = {
        "loss of actor": actor_loss,
        "critic_loss": critic_loss,
        "q": want_q,
        "value_loss": value_loss,
        "policy_loss": actor_loss,
        "log_ratio": log_ratio,
    }
    # The mean Q is one of terms of order 1 that cancel.
    assert {name: float(x) for name, x in got.items()} == pytest.approx(want, rel=tolerance, abs=tolerance)
    assert float(of_critics[0][0]) == pytest.approx(critic_loss, rel=tolerance)
    assert float(of_value[0][0]) == pytest.approx(value_loss, rel=tolerance)


@pytest.mark.parametrize("q", ORDERS)
def test_losses_and_gradients_in_float64(q: float) -> None:
    with jax.enable_x64(True):
        for seed in SEEDS:
            compare(seed, q, MODERATE, jnp.float64, 1e-11)
            compare(seed, q, WIDE, jnp.float64, 1e-9)


@pytest.mark.parametrize("q", ORDERS)
def test_losses_and_gradients_in_float32(q: float) -> None:
    for seed in SEEDS:
        compare(seed, q, MODERATE, jnp.float32, 1e-5)


def test_the_samples_reach_every_branch() -> None:
    for log_stds, reachable in ((WIDE, True), (MODERATE, False)):
        reached: dict[str, int] = {}
        for seed in SEEDS:
            nets, batch, noise = problem(seed, log_stds)
            raw = forward(nets.actor["params"], batch.obs, "relu")[0][:, ACTION_DIM:]
            policy, old = outputs(nets.actor, batch.obs), outputs(nets.old_actor, batch.obs)
            u = policy.mean + np.exp(policy.log_std) * noise
            present = log_density(noise, policy.log_std, u)
            past = log_density((u - old.mean) / np.exp(old.log_std), old.log_std, u)
            q_1, q_2 = q_values(nets.critics, batch.obs, squashed(u))
            cases = {
                "log std inside its bounds": (raw > -20.0) & (raw < 2.0),
                "log std above its bound": raw > 2.0,
                "first Q smaller": q_1 < q_2,
                "second Q smaller": q_2 < q_1,
                "present density below its floor": present < np.log(1e-6),
                "present density above its floor": present > np.log(1e-6),
                "old density below its floor": past < np.log(1e-6),
                "old density above its floor": past > np.log(1e-6),
                "old log std inside its bounds": old.inside,
                "old log std outside its bounds": ~old.inside,
                "slope of the squashing beside 1e-6": np.cosh(u) ** -2.0 < 1e-5,
                "terminated only": batch.terminated & ~batch.truncated,
                "truncated only": batch.truncated & ~batch.terminated,
                "terminated and truncated": batch.terminated & batch.truncated,
                "neither": ~batch.terminated & ~batch.truncated,
            }
            if reachable:
                cases["log std below its bound"] = raw < -20.0
            for name, hits in cases.items():
                reached[name] = reached.get(name, 0) + int(np.sum(hits))
        assert min(reached.values()) >= 10, reached


@pytest.mark.parametrize("q", ORDERS)
def test_the_reference_has_the_gradient_of_its_own_losses(q: float) -> None:
    nets, batch, noise = problem(7, MODERATE)
    hypers = HYPERS._replace(tsallis_q=q)
    rng = np.random.default_rng(8)
    critic_grads = critic_reference(nets, batch, hypers.discount)[1]
    value_grads = value_reference(nets, batch.obs, noise, hypers)[1]
    actor_grads = actor_reference(nets, batch.obs, noise, KL_WEIGHT, hypers)[1]
    for _ in range(5):
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), nets)
        for name, grads, loss in (
            ("critics", critic_grads, lambda nets: critic_reference(nets, batch, hypers.discount)[0]),
            ("value", value_grads, lambda nets: value_reference(nets, batch.obs, noise, hypers)[0]),
            ("actor", actor_grads, lambda nets: actor_reference(nets, batch.obs, noise, KL_WEIGHT, hypers)[0]),
        ):
            along = nets._asdict()[name], direction._asdict()[name]
            numeric = slope(lambda x, name=name, loss=loss: loss(nets._replace(**{name: x})), *along, step=1e-7)
            assert numeric == pytest.approx(dot(grads, along[1]), rel=1e-6)


def test_the_old_policy_is_renewed_at_every_so_many_environment_steps() -> None:
    for num_envs, sgd_steps in ((1, 1), (1, 7), (4, 16), (3, 7), (5, 2)):
        config = mdpo.Config(num_envs=num_envs, sgd_steps=sgd_steps)
        due = jax.vmap(lambda update, config=config: mdpo.is_due(update, config))(jnp.arange(50))
        steps = np.arange(50 * num_envs).reshape(50, num_envs)
        np.testing.assert_array_equal(due, np.any(steps % sgd_steps == 0, axis=1))


def test_a_config_that_cannot_work_is_refused() -> None:
    with pytest.raises(UserError, match="buffer_size=10 is not a multiple of num_envs=4"):
        mdpo.make(mdpo.Config(num_envs=4, buffer_size=10))
    with pytest.raises(UserError, match="sgd_steps=0 must be at least 1"):
        mdpo.make(mdpo.Config(sgd_steps=0))


def test_the_buffer_is_no_larger_than_the_budget() -> None:
    assert mdpo.fit(mdpo.Config(num_envs=4), 1_001).buffer_size == 1_004
    assert mdpo.fit(mdpo.Config(), 2_000_000).buffer_size == 1_000_000


# Whole updates, with everything that surrounds the losses.

NUM_ENVS, GRADIENT_STEPS, UPDATE_BATCH, CAPACITY, UPDATES_DONE = 2, 3, 16, 16, 5
PROGRESS = 0.25
UPDATE_HYPERS = HYPERS._replace(actor_learning_rate=0.003, critic_learning_rate=0.005, tau=0.1, kl_coef=KL_WEIGHT)


def learned(nets: Nets, batches: list[Batch], noise_key: jax.Array, kl_weight: float, hypers: mdpo.Hypers) -> Nets:
    """The networks after the gradient steps of one update, from fresh optimisers.

    Random numbers come from JAX by the learner's own key schedule: they are the only thing that the two share.
    """
    adams = Adam(nets.actor), Adam(nets.critics), Adam(nets.value)
    for batch, key in zip(batches, jax.random.split(noise_key, len(batches)), strict=True):
        noise = np.asarray(jax.random.normal(key, (UPDATE_BATCH, ACTION_DIM)))
        # All gradients first, then all steps, then the target.
        actor_grads = actor_reference(nets, batch.obs, noise, kl_weight, hypers)[1]
        critic_grads = critic_reference(nets, batch, hypers.discount)[1]
        value_grads = value_reference(nets, batch.obs, noise, hypers)[1]
        value = adams[2].step(nets.value, value_grads, hypers.critic_learning_rate)
        nets = Nets(
            actor=adams[0].step(nets.actor, actor_grads, hypers.actor_learning_rate),
            old_actor=nets.old_actor,
            critics=adams[1].step(nets.critics, critic_grads, hypers.critic_learning_rate),
            value=value,
            target_value=jax.tree.map(
                lambda old, new: (1.0 - hypers.tau) * old + hypers.tau * new, nets.target_value, value
            ),
        )
    return nets


@pytest.mark.parametrize(
    ("q", "sgd_steps", "renewed", "sample_actions", "anneal_kl"),
    # Ten environment steps are done, so this update takes the steps 10 and 11.
    [(1.0, 6, False, False, False), (0.8, 11, True, True, True)],
)
def test_one_whole_update(q: float, sgd_steps: int, renewed: bool, sample_actions: bool, anneal_kl: bool) -> None:
    config = mdpo.Config(
        num_envs=NUM_ENVS,
        gradient_steps=GRADIENT_STEPS,
        batch_size=UPDATE_BATCH,
        buffer_size=CAPACITY,
        warmup_steps=UPDATES_DONE * NUM_ENVS,
        hidden_sizes=HIDDEN,
        sgd_steps=sgd_steps,
        sample_actions=sample_actions,
        anneal_kl=anneal_kl,
    )
    rng = np.random.default_rng(0)
    nets = random_nets(rng, MODERATE)
    # Five steps of the eight that are kept are filled; whoever reads another one reads NaN. One environment terminated
    # before, one ran out of time and is about to do so again.
    stored = UPDATES_DONE * NUM_ENVS
    past = random_batch(rng, stored)
    past.terminated[:] = np.isin(np.arange(stored), [2, 8])
    past.truncated[:] = np.arange(stored) == 5
    obs, steps = np.stack([START, normal(rng, 3)]), np.array([0, TIME_LIMIT - 1])
    follows = np.concatenate([past.obs[NUM_ENVS:], obs])
    ended = (past.terminated | past.truncated)[:, None]
    past = past._replace(next_obs=np.where(ended, past.next_obs, follows))

    algorithm, task, hypers = mdpo.make(config), Task(Toy()), UPDATE_HYPERS._replace(tsallis_q=q)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        layout = replay.Layout.of(task.env)
        add = jax.jit(lambda buffer, batch, obs, step: replay.add(buffer, layout, Transition(*batch), obs, step))
        buffer = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan), replay.init(layout, NUM_ENVS, CAPACITY))
        for step in range(UPDATES_DONE):
            now = slice(step * NUM_ENVS, (step + 1) * NUM_ENVS)
            batch = cast(tuple(column[now] for column in past), jnp.float64)
            buffer = add(buffer, batch, jnp.asarray(follows[now]), jnp.int32(step))
        carry = EnvCarry(EpisodeState(jnp.asarray(obs), jnp.asarray(steps, jnp.int32)), jnp.asarray(obs))
        state = off_policy.State(learner(nets, jnp.float64), buffer, carry)
        fresh = jax.eval_shape(algorithm.init, jax.random.key(0), task, hypers)
        chex.assert_trees_all_equal_structs(fresh, state)

        key = jax.random.key(1)
        clock = Clock(jnp.int32(UPDATES_DONE), jnp.asarray(PROGRESS))
        new, metrics = jax.jit(algorithm.update)(key, task, state, cast(hypers, jnp.float64), clock)

        # One step of both environments ...
        collect_key, batch_key, noise_key = jax.random.split(key, 3)
        policy_key, _ = jax.random.split(jax.random.split(collect_key, 1)[0])
        policy = outputs(nets.actor, obs)
        noise = np.asarray(jax.random.normal(policy_key, (NUM_ENVS, ACTION_DIM))) if sample_actions else 0.0
        action = squashed(policy.mean + np.exp(policy.log_std) * noise)
        next_obs, reward, terminated = toy_transition(obs, action)
        truncated = steps + 1 >= TIME_LIMIT
        done = terminated | truncated
        assert done[1]
        seen_next = np.where(done[:, None], START, next_obs)
        # ... goes into the buffer, where actions are float32 ...
        present = Batch(obs, exact(action), reward, next_obs, terminated, truncated)
        want_buffer = add(buffer, cast(tuple(present), jnp.float64), jnp.asarray(seen_next), jnp.int32(UPDATES_DONE))
        rows = Batch(*(np.concatenate(pair) for pair in zip(past, present, strict=True)))
        # ... from which all minibatches are drawn.
        index = np.asarray(
            jax.random.randint(batch_key, (GRADIENT_STEPS, UPDATE_BATCH), 0, jnp.int32(stored + NUM_ENVS))
        )
        assert np.any(index >= stored)
        batches = [Batch(*(x[chosen] for x in rows)) for chosen in index]
        kl_weight = KL_WEIGHT / (1.0 - PROGRESS) if anneal_kl else KL_WEIGHT
        want = learned(nets, batches, noise_key, kl_weight, hypers)

    got = Nets(*params_of(new.learner))
    if renewed:
        chex.assert_trees_all_equal(got.old_actor, got.actor)
    else:
        chex.assert_trees_all_equal(got.old_actor, jax.tree.map(np.asarray, nets.old_actor))
    assert_moved(got._replace(old_actor={}), want._replace(old_actor={}), nets._replace(old_actor={}), 1e-8)
    assert all(np.isfinite(float(x)) for x in metrics.values())
    for got_part, want_part in zip(new.buffer, want_buffer, strict=True):
        np.testing.assert_allclose(got_part, want_part, rtol=1e-6)  # NaN where NaN is expected, too
    np.testing.assert_allclose(new.envs.obs, seen_next, rtol=1e-12)


def test_nothing_is_learned_in_the_warmup() -> None:
    config = mdpo.Config(num_envs=2, batch_size=4, buffer_size=16, warmup_steps=9, hidden_sizes=(4,), sgd_steps=1)
    algorithm, task = mdpo.make(config), Task(Toy())
    state = jax.jit(algorithm.init)(jax.random.key(0), task, mdpo.Hypers())
    update = jax.jit(algorithm.update)
    for index in range(5):
        before = state.learner
        key = jax.random.fold_in(jax.random.key(1), index)
        state, _ = update(key, task, state, mdpo.Hypers(), Clock(jnp.int32(index), jnp.float32(0.0)))
        chex.assert_trees_all_equal(state.learner, before)
    # Uniform in the box, where a policy without noise would repeat itself at the same observation.
    actions = np.asarray(state.buffer.rows)[:5, :, OBS_DIM : OBS_DIM + ACTION_DIM].reshape(-1, ACTION_DIM)
    assert np.all((actions > LOW) & (actions < HIGH))
    assert np.all(np.ptp(actions, axis=0) > 0.4 * (HIGH - LOW))
    state, _ = update(jax.random.key(2), task, state, mdpo.Hypers(), Clock(jnp.int32(5), jnp.float32(0.0)))
    assert not np.array_equal(
        state.learner.value.params["params"]["Dense_0"]["bias"], before.value.params["params"]["Dense_0"]["bias"]
    )
