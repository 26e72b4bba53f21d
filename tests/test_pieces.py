"""The small shared pieces against slow loops, SciPy and numeric derivatives."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from numpy_nets import Toy, cast

from envs.core import Box, Discrete
from rlsuite.algorithms.off_policy import sac
from rlsuite.core import Task, Transition
from rlsuite.pieces import distributions, networks, normalize, replay, returns
from rlsuite.pieces.actor_critic import Networks

Array = jax.Array

# rlsuite/pieces/returns.py


def test_gae_in_every_combination_of_endings() -> None:
    """Four steps, each of which may terminate, be truncated, both or neither: all 256 columns."""
    ends = np.array(list(itertools.product([(False, False), (True, False), (False, True), (True, True)], repeat=4)))
    terminated, truncated = ends[:, :, 0].T, ends[:, :, 1].T
    # The next values are no shifted values: at an episode's end they are not, and gae must never take the one for the
    # other.
    reward, value, next_value = np.random.default_rng(0).normal(size=(3, *terminated.shape))
    discount, gae_lambda = 0.9, 0.7
    with jax.enable_x64(True):
        got = jax.jit(returns.gae)(reward, value, next_value, terminated, truncated, discount, gae_lambda)

    for column in range(256):
        for start in range(4):
            want, weight = 0.0, 1.0
            for t in range(start, 4):
                at = t, column
                future = 0.0 if terminated[at] else discount * next_value[at]
                want += weight * (reward[at] + future - value[at])
                weight *= discount * gae_lambda
                if terminated[at] or truncated[at]:
                    break
            assert float(got[start, column]) == pytest.approx(want, rel=1e-12, abs=1e-12)


# rlsuite/pieces/normalize.py


def test_running_statistics_equal_those_of_all_batches_together() -> None:
    rng = np.random.default_rng(0)
    batches = [rng.normal(mean, std, size=(n, 3)) for n, mean, std in ((50, 3.0, 2.0), (7, -20.0, 0.1), (200, 0, 5))]
    update = jax.jit(normalize.update)
    with jax.enable_x64(True):
        first = batches[0]
        stats = normalize.RunningStats(*cast((first.mean(axis=0), first.var(axis=0), float(len(first))), jnp.float64))
        for batch in batches[1:]:
            stats = update(stats, batch)
    together = np.concatenate(batches)
    np.testing.assert_allclose(stats.mean, together.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(stats.var, together.var(axis=0), rtol=1e-12)
    assert float(stats.weight) == len(together)


def test_first_batch_replaces_the_initial_statistics() -> None:
    batch = np.random.default_rng(1).normal(5.0, 0.5, size=(100, 3)).astype(np.float32)
    initial = normalize.init((3,))
    np.testing.assert_array_equal(initial.mean, np.zeros(3))
    np.testing.assert_array_equal(initial.var, np.ones(3))
    stats = jax.jit(normalize.update)(initial, batch)
    # A weight of 1e-4 at 0, so 1e-6 of the whole, five units (ten standard deviations) away.
    np.testing.assert_allclose(stats.mean, batch.mean(axis=0), rtol=3e-6)
    np.testing.assert_allclose(stats.var, batch.var(axis=0), rtol=3e-4)


def test_running_variance_survives_a_large_mean_in_float32() -> None:
    """At a mean of 1000 and a variance of 1 a sum of squares would leave no digit of the variance."""
    rng = np.random.default_rng(2)
    batches = rng.normal(1000.0, 1.0, size=(100, 64)).astype(np.float32)
    stats = normalize.init()
    update = jax.jit(normalize.update)
    for batch in batches:
        stats = update(stats, batch)
    # The initial weight of 1e-4 at 0 adds 1e-4 / 6400 * 1000^2 to the variance, which is the initialisation's doing.
    everything = np.append(batches.astype(np.float64), 0.0)
    weights = np.append(np.ones(batches.size), 1e-4)
    mean = np.average(everything, weights=weights)
    var = np.average((everything - mean) ** 2 + np.append(np.zeros(batches.size), 1.0), weights=weights)
    assert float(stats.mean) == pytest.approx(mean, rel=1e-6)
    assert float(stats.var) == pytest.approx(var, rel=1e-3)


def test_observations_are_centred_and_rewards_are_only_scaled() -> None:
    stats = normalize.RunningStats(jnp.float32(3.0), jnp.float32(4.0), jnp.float32(10.0))
    x = jnp.array([3.0, 5.0, -1.0, 22.0, 24.0, -16.0, -18.0, 1e9])
    np.testing.assert_allclose(
        normalize.standardize(x, stats), [0.0, 1.0, -2.0, 9.5, 10.0, -9.5, -10.0, 10.0], rtol=1e-6
    )
    np.testing.assert_allclose(normalize.rescale(x, stats), [1.5, 2.5, -0.5, 10.0, 10.0, -8.0, -9.0, 10.0], rtol=1e-6)
    constant = normalize.RunningStats(jnp.float32(1.0), jnp.float32(0.0), jnp.float32(10.0))
    assert float(normalize.standardize(jnp.float32(1.0), constant)) == 0.0


def test_discounted_returns_start_again_after_an_ending_and_carry_over() -> None:
    rng = np.random.default_rng(3)
    reward, done = rng.normal(size=(12, 5)), rng.random((12, 5)) < 0.3
    running = rng.normal(size=5)
    discounted_returns = jax.jit(normalize.discounted_returns)
    with jax.enable_x64(True):
        # In two calls: what the first returns is what the second starts from.
        carried, first = discounted_returns(running, reward[:7], done[:7], 0.8)
        carried, second = discounted_returns(carried, reward[7:], done[7:], 0.8)
    got = np.concatenate([first, second])
    for env in range(5):
        total = running[env]
        for t in range(12):
            total = 0.8 * total + reward[t, env]
            assert got[t, env] == pytest.approx(total, rel=1e-12)
            total = 0.0 if done[t, env] else total
        assert float(carried[env]) == pytest.approx(total, rel=1e-12)


# rlsuite/pieces/distributions.py


def test_gaussian_against_scipy() -> None:
    x, mean, log_std = np.random.default_rng(4).normal(size=(3, 20, 4))
    with jax.enable_x64(True):
        log_prob = jax.jit(distributions.gaussian_log_prob)(x, mean, log_std)
        entropy = jax.jit(distributions.gaussian_entropy)(log_std)
    normal = scipy.stats.norm(mean, np.exp(log_std))
    np.testing.assert_allclose(log_prob, normal.logpdf(x).sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(entropy, normal.entropy().sum(axis=1), rtol=1e-12)


def test_categorical_against_scipy() -> None:
    rng = np.random.default_rng(5)
    logits, action = 3.0 * rng.normal(size=(20, 6)), rng.integers(6, size=20)
    with jax.enable_x64(True):
        log_prob = jax.jit(distributions.categorical_log_prob)(logits, action)
        entropy = jax.jit(distributions.categorical_entropy)(logits)
    p = scipy.special.softmax(logits, axis=1)
    one_hot = np.eye(6, dtype=int)[action]
    np.testing.assert_allclose(log_prob, scipy.stats.multinomial.logpmf(one_hot, 1, p), rtol=1e-12)
    np.testing.assert_allclose(entropy, scipy.stats.entropy(p, axis=1), rtol=1e-12)


def test_a_certain_categorical_is_finite() -> None:
    logits = jnp.array([1000.0, 0.0, -1000.0])
    entropy, slope = jax.jit(jax.value_and_grad(distributions.categorical_entropy))(logits)
    assert float(entropy) == 0.0
    np.testing.assert_array_equal(slope, np.zeros(3))
    log_prob = jax.jit(distributions.categorical_log_prob)(logits, jnp.int32(2))
    assert float(log_prob) == -2000.0


LOW, HIGH = np.array([-2.0, 0.5, -1.0]), np.array([1.0, 2.0, 3.0])


def test_tanh_squash_fills_the_box_and_its_determinant_is_that_of_the_numeric_jacobian() -> None:
    u = np.random.default_rng(6).normal(size=(10, 3))
    step = 1e-6
    with jax.enable_x64(True):
        squash = jax.jit(distributions.tanh_squash)
        ahead, behind = squash(u + step, LOW, HIGH)[0], squash(u - step, LOW, HIGH)[0]
        action, log_det = (np.asarray(x) for x in squash(u, LOW, HIGH))
        ends = np.asarray(squash(np.array([[-50.0] * 3, [0.0] * 3, [50.0] * 3]), LOW, HIGH)[0])
    numeric = np.log((np.asarray(ahead) - np.asarray(behind)) / (2.0 * step)).sum(axis=1)
    np.testing.assert_allclose(log_det, numeric, rtol=1e-8, atol=1e-8)
    assert np.all((action > LOW) & (action < HIGH))
    np.testing.assert_allclose(ends, [LOW, (LOW + HIGH) / 2.0, HIGH], rtol=1e-12)


@pytest.mark.parametrize("x64", [False, True])
def test_tanh_squash_in_saturation(x64: bool) -> None:
    """The log-determinant tends to 2 (log 2 - |u|) + log half width, with slope -2 sign(u), and never to -inf."""
    u = np.array([-200.0, -20.0, 20.0, 200.0])
    with jax.enable_x64(x64):
        log_dets, slopes = [], []
        log_det_of = jax.jit(
            jax.value_and_grad(lambda u: distributions.tanh_squash(u, jnp.array([-2.0]), jnp.array([4.0]))[1])
        )
        for each in u:
            log_det, slope = log_det_of(jnp.array([each]))
            log_dets.append(float(log_det))
            slopes.append(float(slope[0]))
    np.testing.assert_allclose(log_dets, 2.0 * (np.log(2.0) - np.abs(u)) + np.log(3.0), rtol=1e-6)
    np.testing.assert_allclose(slopes, -2.0 * np.sign(u), rtol=1e-6)


# rlsuite/pieces/replay.py


def random_episodes(
    rng: np.random.Generator, steps: int, num_envs: int, action_dim: int, limit: int
) -> tuple[Transition, Any]:
    """`steps` random steps of every environment and what the policy sees after each: `[steps, num_envs, ...]`.

    Episodes terminate at random and are truncated after `limit` steps; `action_dim` 0 means discrete actions.
    """

    def normal(*shape: int) -> np.ndarray[Any, Any]:
        return rng.normal(size=(steps, num_envs, *shape)).astype(np.float32)

    terminated = rng.random((steps, num_envs)) < 0.2
    truncated = np.zeros_like(terminated)
    clock = rng.integers(limit, size=num_envs)
    for t in range(steps):
        clock += 1
        truncated[t] = clock >= limit
        clock[terminated[t] | truncated[t]] = 0
    action = normal(action_dim) if action_dim else rng.integers(1000, size=(steps, num_envs), dtype=np.int32)
    next_obs = normal(4)
    after_reset = np.where((terminated | truncated)[..., None], normal(4), next_obs)
    obs = np.concatenate([normal(4)[:1], after_reset[:-1]])
    return Transition(obs, action, normal(), next_obs, terminated, truncated), after_reset


# (steps of each environment that are kept, time limit): windows of whole blocks of the limit, longer or shorter ones by
# a step or two, limits beyond the window, and the least of each.
WINDOWS = [(1, 1), (1, 5), (2, 2), (5, 1), (6, 2), (7, 2), (8, 3), (6, 4), (5, 9)]


@pytest.mark.parametrize(("time", "limit"), WINDOWS)
@pytest.mark.parametrize(("num_envs", "action_dim"), [(1, 0), (3, 2)])
def test_the_compact_buffer_returns_what_a_plain_ring_does(
    time: int, limit: int, num_envs: int, action_dim: int
) -> None:
    """The ring keeps whole transitions; only where one terminated may the buffer give another `next_obs`."""
    layout, capacity, steps = replay.Layout(4, action_dim, limit), time * num_envs, 12 * (time + limit)
    transitions, after_reset = random_episodes(np.random.default_rng(time), steps, num_envs, action_dim, limit)

    def step(buffer: replay.Replay, inputs: Any) -> tuple[replay.Replay, Any]:
        t, key, transition, obs = inputs
        buffer = replay.add(buffer, layout, transition, obs, t)
        shape = (8, 4 * capacity)
        # The places that are drawn in the ring.
        index = jax.random.randint(key, shape, 0, jnp.minimum((t + 1) * num_envs, capacity))
        return buffer, (index, replay.sample(key, buffer, layout, t + 1, shape))

    def whole(transitions: Transition, after_reset: Array) -> Any:
        # Whatever was never written must not be read.
        empty = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), replay.init(layout, num_envs, capacity))
        keys = jax.random.split(jax.random.key(0), steps)
        return jax.lax.scan(step, empty, (jnp.arange(steps), keys, transitions, after_reset))[1]

    # Compiling is the cost: half the time, and nothing here is computed but places.
    quick_to_compile = jax.jit(whole, compiler_options={"xla_backend_optimization_level": 0})
    indices, drawn = jax.tree.map(np.asarray, quick_to_compile(transitions, after_reset))

    ring = jax.tree.map(lambda x: np.zeros((capacity, *x.shape[2:]), x.dtype), transitions)
    seen = np.zeros(3, int)
    for t in range(steps):
        for column, values in zip(ring, transitions, strict=True):
            column[(t * num_envs + np.arange(num_envs)) % capacity] = values[t]
        got, want = (jax.tree.map(lambda x, at=at: x[at], tree) for tree, at in ((drawn, t), (ring, indices[t])))
        exact = ~want.terminated | want.truncated
        seen += [exact.sum(), want.truncated.sum(), want.terminated.sum()]
        for name, a, b in zip(Transition._fields, got, want, strict=True):
            assert a.dtype == b.dtype, name
            a, b = (a[exact], b[exact]) if name == "next_obs" else (a, b)
            np.testing.assert_array_equal(a, b, err_msg=f"{name} at step {t}")
        # Where a terminated transition led to is a known observation all the same, which a target can mask.
        assert np.all(np.isfinite(got.next_obs))
    assert np.all(seen > 0)


def test_the_buffer_stores_each_observation_once() -> None:
    layout = replay.Layout(obs_dim=11, action_dim=3, max_episode_steps=1000)
    buffer = replay.init(layout, num_envs=4, capacity=40_000)
    floats = sum(leaf.size for leaf in jax.tree.leaves(buffer))
    # One slot behind the newest, and where the truncated led to: one in a thousand and the block in two parts.
    assert floats == 40_000 * (11 + 3 + 2) + 4 * (11 + 3 + 2) + 4 * 11 * (10 + 1)


@pytest.mark.parametrize(("steps", "filled"), [(1, 2), (2, 4), (5, 10), (6, 12), (7, 12), (500, 12)])
def test_sampling_is_uniform_over_all_that_is_filled(steps: int, filled: int) -> None:
    layout = replay.Layout(obs_dim=1, action_dim=0, max_episode_steps=100)
    # Seven slots of two environments, numbered from 0 to 13.
    buffer = replay.init(layout, num_envs=2, capacity=12)
    buffer = buffer._replace(rows=jnp.full((7, 2, layout.width), jnp.arange(14.0).reshape(7, 2, 1)))
    sample = jax.jit(replay.sample, static_argnums=(2, 4))
    batch = sample(jax.random.key(0), buffer, layout, jnp.int32(steps), (40, 60))
    assert batch.obs.shape == (40, 60, 1)
    assert batch.reward.shape == (40, 60)
    index = np.asarray(batch.reward).astype(int).ravel()
    np.testing.assert_array_equal(np.asarray(batch.obs)[..., 0].ravel(), index)
    counts = np.bincount(index, minlength=14)
    # Of the slots, the one behind the newest has no transition yet, or no longer.
    newest = [2 * (step % 7) + env for step in range(max(steps - 6, 0), steps) for env in range(2)]
    assert len(newest) == filled
    assert np.all(np.delete(counts, newest) == 0)
    assert scipy.stats.chisquare(counts[newest]).pvalue > 1e-3


# rlsuite/pieces/networks.py


def params_of(sizes: tuple[int, ...], gains: tuple[float, ...] | None) -> Any:
    net = networks.MLP(sizes, gains=gains)
    return jax.jit(net.init)(jax.random.key(0), jnp.zeros(9))["params"]


def test_default_initialisation_is_that_of_pytorch() -> None:
    """Weights and biases are uniform on +-1/sqrt(fan_in) (`torch.nn.Linear.reset_parameters`)."""
    params = params_of((400, 900), None)
    for layer, fan_in in (("Dense_0", 9), ("Dense_1", 400)):
        for name in ("kernel", "bias"):
            x = np.asarray(params[layer][name]).ravel()
            bound = 1.0 / np.sqrt(fan_in)
            assert np.max(np.abs(x)) <= bound
            assert scipy.stats.kstest(x, scipy.stats.uniform(-bound, 2.0 * bound).cdf).pvalue > 1e-3, (layer, name)


def test_orthogonal_initialisation() -> None:
    gains = (2.0, 0.5, 0.01)
    params = params_of((16, 5, 5), gains)
    for i, gain in enumerate(gains):
        kernel = np.asarray(params[f"Dense_{i}"]["kernel"], np.float64)
        # The shorter side holds orthogonal vectors of length `gain`.
        gram = kernel @ kernel.T if kernel.shape[0] <= kernel.shape[1] else kernel.T @ kernel
        np.testing.assert_allclose(gram, gain**2 * np.eye(len(gram)), atol=1e-6 * gain**2)
        np.testing.assert_array_equal(params[f"Dense_{i}"]["bias"], np.zeros(kernel.shape[1]))


@pytest.mark.parametrize("space", [Discrete(3), Box((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))])
def test_ppo_starts_with_the_published_gains(space: Discrete | Box) -> None:
    """sqrt 2 in hidden layers, 0.01 at the policy's output, 1 at the value; log std 0 (CleanRL)."""
    net = Networks((16, 16), space)
    params = jax.jit(net.init)(jax.random.key(0), jnp.zeros(9))["params"]
    for head, last in (("policy", 0.01), ("critic", 1.0)):
        for i, gain in enumerate((2.0**0.5, 2.0**0.5, last)):
            # The largest singular value of an orthogonal matrix is its gain.
            assert np.linalg.norm(params[head][f"Dense_{i}"]["kernel"], 2) == pytest.approx(gain, rel=1e-5)
    assert not np.allclose(params["policy"]["Dense_0"]["kernel"], params["critic"]["Dense_0"]["kernel"])
    if isinstance(space, Box):
        np.testing.assert_array_equal(params["log_std"], np.zeros(3))
    else:
        assert "log_std" not in params


def test_sac_starts_with_two_critics_that_differ_from_each_other_but_not_from_their_targets() -> None:
    algorithm = sac.make(sac.Config(hidden_sizes=(8,), buffer_size=4))
    init = jax.jit(lambda key: algorithm.init(key, Task(Toy()), sac.Hypers(initial_alpha=0.3)).learner)
    learner = init(jax.random.key(0))
    for online, target in zip(
        jax.tree.leaves(learner.critics.params), jax.tree.leaves(learner.target_critics), strict=True
    ):
        assert online.shape[0] == 2
        assert not np.any(online[0] == online[1])
        np.testing.assert_array_equal(online, target)
    assert float(learner.log_alpha.params) == pytest.approx(np.log(0.3), rel=1e-6)
