"""ReBRAC against an independent reference in NumPy and float64: losses, their whole gradients, whole updates.

The reference is written from the paper (Tarasov et al. 2023, arXiv 2305.09836) and the details listed in
`rebrac.py`, with every derivative by hand, that of a layer norm included. A central difference of
the reference's own losses guards those derivatives.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_critics import ACTION_DIM, BATCH, OBS_DIM, critic, random_batch
from numpy_nets import Adam, FloatArray, Tree, assert_close, assert_moved, cast, dot, exact, mlp, normal, slope
from numpy_offline import Batch, dataset, drawn, in_box, moved, rows_of, shown, task
from test_losses_td3_bc import SOMEWHERE, Nets, smoothing
from trained_states import params_of, with_adam

from envs import datasets
from rlsuite.algorithms.offline import rebrac
from rlsuite.core import Clock, Task
from rlsuite.errors import UserError
from rlsuite.pieces import offline_td3
from rlsuite.pieces.networks import MLP

HIDDEN = (16, 12)
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


# Networks: Dense, ReLU, and LayerNorm where there are any.


def with_norms(rng: np.random.Generator, net: Tree) -> Tree:
    """Add layer norms with any scale and shift."""
    for i, size in enumerate(HIDDEN):
        net[f"LayerNorm_{i}"] = {"scale": exact(1.0 + 0.3 * normal(rng, size)), "bias": exact(0.3 * normal(rng, size))}
    return net


def forward(net: Tree, x: FloatArray) -> tuple[FloatArray, list[Any]]:
    """`[batch, in]` -> the output `[batch, out]`, and what the backward pass needs of every layer."""
    layers = []
    for i in range(len(HIDDEN) + 1):
        dense, norm = net[f"Dense_{i}"], net.get(f"LayerNorm_{i}")
        out = x @ dense["kernel"] + dense["bias"]
        kept: dict[str, Any] = {"in": x, "pre": out}
        if i < len(HIDDEN):
            out = np.where(out > 0.0, out, 0.0)
            if norm is not None:
                centred = out - np.mean(out, axis=1, keepdims=True)
                kept["deviation"] = np.sqrt(np.mean(centred**2, axis=1, keepdims=True) + 1e-5)
                kept["standard"] = centred / kept["deviation"]
                out = norm["scale"] * kept["standard"] + norm["bias"]
        layers.append(kept)
        x = out
    return x, layers


def backward(net: Tree, layers: list[Any], d: FloatArray) -> tuple[Tree, FloatArray]:
    """d loss / d output `[batch, out]` -> the gradient of all weights, and d loss / d x `[batch, in]`."""
    grads = {}
    for i in reversed(range(len(HIDDEN) + 1)):
        kept = layers[i]
        if i < len(HIDDEN):
            if f"LayerNorm_{i}" in net:
                z = kept["standard"]
                grads[f"LayerNorm_{i}"] = {"scale": np.sum(d * z, axis=0), "bias": np.sum(d, axis=0)}
                d = d * net[f"LayerNorm_{i}"]["scale"]
                # z is free of its mean and of its size: so is what flows through it.
                d = d - np.mean(d, axis=1, keepdims=True) - z * np.mean(d * z, axis=1, keepdims=True)
                d = d / kept["deviation"]
            d = d * (kept["pre"] > 0.0)
        grads[f"Dense_{i}"] = {"kernel": kept["in"].T @ d, "bias": np.sum(d, axis=0)}
        d = d @ net[f"Dense_{i}"]["kernel"].T
    return grads, d


def squashed(actor: Tree, obs: FloatArray) -> tuple[FloatArray, list[Any]]:
    out, layers = forward(actor["params"], obs)
    return np.tanh(out), layers


def q_values(critics: Tree, obs: FloatArray, action: FloatArray) -> FloatArray:
    """`[2, batch]`"""
    inputs = np.concatenate([obs, action], axis=1)
    return np.stack([forward(critic(critics, i), inputs)[0][:, 0] for i in range(2)])


# Losses.


def critic_reference(nets: Nets, batch: Batch, noise: FloatArray) -> tuple[float, Tree]:
    """The critics' loss and its gradient."""
    n = len(batch.obs)
    free = squashed(nets.target_actor, batch.next_obs)[0] + smoothing(noise, HYPERS)
    next_action = np.minimum(np.maximum(free, -1.0), 1.0)
    away = np.zeros(n)
    for i, j in itertools.product(range(n), range(ACTION_DIM)):
        # Where time ran out, the record has no next action.
        away[i] += 0.0 if batch.truncated[i] else (next_action[i, j] - batch.next_action[i, j]) ** 2
    next_q = np.min(q_values(nets.target_critics, batch.next_obs, next_action), axis=0)
    bootstrap = (1.0 - batch.terminated) * (next_q - HYPERS.critic_penalty * away)
    target = batch.reward + HYPERS.reward_shift + HYPERS.discount * bootstrap
    loss, grads = 0.0, []
    for i in range(2):
        net = critic(nets.critics, i)
        q, layers = forward(net, np.concatenate([batch.obs, batch.action], axis=1))
        error = q[:, 0] - target
        loss += np.mean(error**2)
        grads.append(backward(net, layers, 2.0 * error[:, None] / n)[0])
    return loss, {"params": jax.tree.map(lambda *of_each: np.stack(of_each), *grads)}


def pull(nets: Nets, batch: Batch) -> float:
    """The weight of the critics in the actor's loss, which is no function of the actor."""
    q = np.min(q_values(nets.critics, batch.obs, squashed(nets.actor, batch.obs)[0]), axis=0)
    return 1.0 / float(np.mean(np.abs(q)))


def actor_reference(nets: Nets, batch: Batch, weight: float) -> tuple[float, Tree]:
    """The actor's loss at this weight of the smaller critic, and its gradient."""
    n = len(batch.obs)
    action, of_actor = squashed(nets.actor, batch.obs)
    inputs = np.concatenate([batch.obs, action], axis=1)
    q = q_values(nets.critics, batch.obs, action)
    away = action - batch.action
    loss = HYPERS.actor_penalty * np.sum(away**2) / n - weight * np.mean(np.min(q, axis=0))
    d_action = HYPERS.actor_penalty * 2.0 * away / n
    for i in range(2):
        net = critic(nets.critics, i)
        smaller = (q[i] < q[1 - i])[:, None]
        d_action = d_action + backward(net, forward(net, inputs)[1], -weight / n * smaller)[1][:, OBS_DIM:]
    return loss, {"params": backward(nets.actor["params"], of_actor, d_action * (1.0 - action**2))[0]}


def random_nets(rng: np.random.Generator, name: str) -> Nets:
    of_actor, of_critics = FLAGS[name]

    def actor() -> Tree:
        net = mlp(rng, OBS_DIM, *HIDDEN, ACTION_DIM)
        return {"params": with_norms(rng, net) if of_actor else net}

    def twins(mean: float) -> Tree:
        both = [mlp(rng, OBS_DIM + ACTION_DIM, *HIDDEN, 1) for _ in range(2)]
        somewhere = np.concatenate([rng.normal(size=(99, OBS_DIM)), rng.uniform(-1.0, 1.0, (99, ACTION_DIM))], axis=1)
        for net in both:
            if of_critics:
                with_norms(rng, net)
            # Around the same on average, so that each is the smaller one somewhere.
            net["Dense_2"]["bias"] += exact(mean - np.mean(forward(net, somewhere)[0]))
        return {"params": jax.tree.map(lambda *of_each: exact(np.stack(of_each)), *both)}

    # The critics on both sides of 0, so that a mean of sizes is not the size of a mean.
    return Nets(actor(), twins(0.5), actor(), twins(1.0))


def problem(seed: int, name: str) -> tuple[Nets, Batch, FloatArray]:
    rng = np.random.default_rng(seed)
    return random_nets(rng, name), random_batch(rng), normal(rng, BATCH, ACTION_DIM)


def learner(nets: Nets, dtype: Any) -> offline_td3.State:
    """The learner's state with these networks and fresh optimisers."""
    return with_adam(offline_td3.State(*cast(tuple(nets), dtype)))


@functools.cache
def jax_losses(name: str) -> Any:
    """jit of both losses and their gradients, the gradient of the critics' loss by the targets, and the metrics."""
    of_actor, of_critics = FLAGS[name]
    networks = offline_td3.Networks(
        MLP((*HIDDEN, ACTION_DIM), layer_norm=of_actor), MLP((*HIDDEN, 1), layer_norm=of_critics)
    )

    def losses(state: Any, batch: Any, noise: Any, hypers: Any) -> Any:
        params = params_of(state)
        (critic_loss, metrics), critic_grads = jax.value_and_grad(rebrac.critic_loss, has_aux=True)(
            params.critics, networks, state, batch, noise, hypers
        )

        def by_targets(target_actor: Tree, target_critics: Tree) -> Any:
            other = state._replace(target_actor=target_actor, target_critics=target_critics)
            return rebrac.critic_loss(params.critics, networks, other, batch, noise, hypers)[0]

        target_grads = jax.grad(by_targets, (0, 1))(state.target_actor, state.target_critics)
        actor = jax.value_and_grad(rebrac.actor_loss)(
            params.actor, networks, params.critics, batch.obs, batch.action, hypers
        )
        return (critic_loss, critic_grads), actor, target_grads, metrics

    return jax.jit(losses)


def compare(seed: int, name: str, dtype: Any, tolerance: float) -> None:
    nets, batch, noise = problem(seed, name)
    of_critics = critic_reference(nets, batch, noise)
    want = (
        of_critics,
        actor_reference(nets, batch, pull(nets, batch)),
        jax.tree.map(np.zeros_like, (nets.target_actor, nets.target_critics)),
        {"critic_loss": of_critics[0], "q": np.mean(q_values(nets.critics, batch.obs, batch.action))},
    )
    samples = datasets.Batch(*cast(tuple(batch), dtype))
    with jax.default_matmul_precision("highest"):
        got = jax_losses(name)(learner(nets, dtype), samples, *cast((noise, HYPERS), dtype))
    assert_close(got, want, tolerance, dtype)


@pytest.mark.parametrize("name", FLAGS)
def test_losses_and_gradients_in_float64(name: str) -> None:
    with jax.enable_x64(True):
        for seed in range(5):
            compare(seed, name, jnp.float64, 1e-12)


@pytest.mark.parametrize("name", FLAGS)
def test_losses_and_gradients_in_float32(name: str) -> None:
    for seed in range(5):
        compare(seed, name, jnp.float32, 1e-5)


def test_the_samples_reach_every_branch() -> None:
    reached: dict[str, int] = {}
    for seed in range(5):
        nets, batch, noise = problem(seed, "as the authors")
        free = squashed(nets.target_actor, batch.next_obs)[0] + smoothing(noise, HYPERS)
        q_1, q_2 = q_values(nets.critics, batch.obs, squashed(nets.actor, batch.obs)[0])
        next_q_1, next_q_2 = q_values(nets.target_critics, batch.next_obs, np.clip(free, -1.0, 1.0))
        cases = {
            "smoothed action outside of the box": np.abs(free) > 1.0,
            "smoothed action inside the box": np.abs(free) < 1.0,
            "smaller critic positive": np.minimum(q_1, q_2) > 0.0,
            "smaller critic negative": np.minimum(q_1, q_2) < 0.0,
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


@pytest.mark.parametrize("name", FLAGS)
def test_the_reference_has_the_gradient_of_its_own_losses(name: str) -> None:
    nets, batch, noise = problem(7, name)
    rng = np.random.default_rng(8)
    weight = pull(nets, batch)
    losses: list[tuple[Any, Tree]] = [
        (lambda tree: critic_reference(nets._replace(critics=tree), batch, noise), nets.critics),
        (lambda tree: actor_reference(nets._replace(actor=tree), batch, weight), nets.actor),
    ]
    for reference, tree in losses:
        for _ in range(5):
            direction = jax.tree.map(lambda x: rng.normal(size=x.shape), tree)
            numeric = slope(lambda moved, reference=reference: reference(moved)[0], tree, direction, step=1e-7)
            assert numeric == pytest.approx(dot(reference(tree)[1], direction), rel=1e-6)


# Whole updates, with everything that surrounds the losses.

UPDATE_BATCH = 16
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


@functools.cache
def programs(name: str) -> tuple[Any, Any]:
    """jit of the update and of (act, value)."""
    algorithm = rebrac.make(CONFIGS[name])
    assert algorithm.value is not None

    def judge(state: Any, obs: Any) -> Any:
        return tuple(f(jax.random.key(0), task(), state, obs) for f in (algorithm.act, algorithm.value))

    hypers = cast(HYPERS, jnp.float64)
    update = jax.jit(lambda key, state, clock: algorithm.update(key, task(), state, hypers, clock))
    return update, jax.jit(judge)


@pytest.mark.parametrize("name", CONFIGS)
def test_whole_updates(name: str) -> None:
    config = CONFIGS[name]
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        update, judge = programs(name)
        nets = start = random_nets(np.random.default_rng(0), name)
        state = learner(nets, jnp.float64)
        fresh = jax.eval_shape(rebrac.make(config).init, jax.random.key(0), task(), HYPERS)
        chex.assert_trees_all_equal_structs(fresh, state)
        actor_adam, critic_adam = Adam(nets.actor), Adam(nets.critics)
        for done in range(5, 9):  # 6 is due where the delay is 3
            key = jax.random.key(done)
            batch_key, noise_key = jax.random.split(key)
            batch = drawn(rows_of(batch_key, UPDATE_BATCH), config.normalize_obs)
            noise = np.asarray(jax.random.normal(noise_key, (UPDATE_BATCH, ACTION_DIM)))
            last = state
            state, metrics = update(key, state, Clock(jnp.int32(done), jnp.asarray(0.5)))

            loss, grads = critic_reference(nets, batch, noise)
            nets = nets._replace(critics=critic_adam.step(nets.critics, grads, HYPERS.critic_learning_rate))
            if done % config.policy_delay == 0:
                # By the critics as they are after their step.
                grads = actor_reference(nets, batch, pull(nets, batch))[1]
                nets = nets._replace(actor=actor_adam.step(nets.actor, grads, HYPERS.actor_learning_rate))
                nets = nets._replace(
                    target_actor=moved(nets.target_actor, nets.actor, HYPERS.tau),
                    target_critics=moved(nets.target_critics, nets.critics, HYPERS.tau),
                )
            else:
                still = ("actor", "target_actor", "target_critics")
                chex.assert_trees_all_equal(*([getattr(s, field) for field in still] for s in (state, last)))
            assert float(metrics["critic_loss"]) == pytest.approx(loss, rel=1e-9)
        act, value = judge(state, jnp.asarray(SOMEWHERE))
    assert_moved(Nets(*params_of(state)), nets, start, 1e-8)
    # Evaluation plays the actor without noise, and values it by the smaller critic.
    obs = shown(SOMEWHERE[None], config.normalize_obs)
    best = squashed(nets.actor, obs)[0]
    np.testing.assert_allclose(act, in_box(best)[0], rtol=1e-8)
    assert float(value) == pytest.approx(float(np.min(q_values(nets.critics, obs, best))), rel=1e-8)


# Around the updates.


def test_starts_with_critics_that_differ_and_with_targets_that_do_not() -> None:
    algorithm = rebrac.make(CONFIGS["as the authors"])
    with jax.enable_x64(True):
        env = task().env
    state = jax.jit(lambda key: algorithm.init(key, Task(env, dataset()), HYPERS))(jax.random.key(0))
    state = params_of(state)
    for path, leaf in jax.tree.leaves_with_path(state.critics):
        starts_equal = "LayerNorm" in jax.tree_util.keystr(path)
        assert leaf.shape[0] == 2 and (np.all(leaf[0] == leaf[1]) if starts_equal else not np.any(leaf[0] == leaf[1]))
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
