"""The CDSA-style reconstruction against an independent reference in NumPy and float64: losses, their whole gradients,
the correction of an action, and whole updates.

The reference is written from the equations in docs/algorithms/cdsa.md.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from numpy_critics import ACTION_DIM, BATCH, CENTER, HALF_WIDTH, OBS_DIM
from numpy_nets import (
    HIGH,
    LOW,
    Adam,
    FloatArray,
    Toy,
    Tree,
    assert_close,
    assert_moved,
    cast,
    exact,
    mlp,
    normal,
    perceptron,
)
from reference import computing, precisions, value_and_grad
from trained_states import params_of, with_adam

from envs import datasets
from envs.datasets import Dataset, Records
from rlsuite import algorithms
from rlsuite.algorithms.offline import bc, cdsa
from rlsuite.core import Algorithm, Clock, Task
from rlsuite.pieces import denoisers, dynamics, offline
from rlsuite.pieces.networks import MLP

SCORE_HIDDEN, DYNAMICS_HIDDEN = (8, 7), (9, 8)
DIM = OBS_DIM + ACTION_DIM
SEEDS = range(5)
# Half the time to compile, for programs that run for a moment.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
NETWORKS = cdsa.Networks(MLP((*SCORE_HIDDEN, DIM), nn.silu), dynamics.Dynamics.of(DYNAMICS_HIDDEN, OBS_DIM, ACTION_DIM))
HYPERS = cdsa.Hypers(
    score_learning_rate=0.003,
    dynamics_learning_rate=0.005,
    sigma_min=0.1,
    sigma_max=0.9,
    score_ema=0.9,
    sigma_eval=0.4,
    action_coef=0.3,
    state_coef=0.4,
    state_eta=0.5,
)


class Samples(NamedTuple):
    """A batch, `[batch, ...]`; observations are normalised, actions in units of the box."""

    obs: FloatArray
    action: FloatArray
    next_obs: FloatArray
    sigma: FloatArray
    noise: FloatArray


class Nets(NamedTuple):
    """What acts and what gradient steps change."""

    score: Tree
    score_ema: Tree
    dynamics: Tree


def score_reference(score: Tree, samples: Samples) -> tuple[float, Tree]:
    """E |sigma S(x + sigma eps, sigma) + eps|^2 with S = -net / sigma: what is left of eps after the net's guess."""
    sigma = samples.sigma[:, None]
    x = np.concatenate([samples.obs, samples.action], axis=1) + sigma * samples.noise
    inputs = np.concatenate([x, np.log(sigma)], axis=1)

    def loss(score: Tree) -> Any:
        return np.mean(np.sum((samples.noise - perceptron(score["params"], inputs, "silu")) ** 2, axis=1))

    return value_and_grad(loss, score)


def inverted(dynamics: Tree, obs: FloatArray, change: FloatArray) -> FloatArray:
    """The action that leads to this change of the observation."""
    return np.tanh(perceptron(dynamics["inverse"]["params"], np.concatenate([obs, change], axis=1), "relu"))


def predicted(dynamics: Tree, obs: FloatArray, action: FloatArray) -> FloatArray:
    """The change of the observation by the forward model."""
    return perceptron(dynamics["forward"]["params"], np.concatenate([obs, action], axis=1), "relu")


def dynamics_reference(dynamics: Tree, samples: Samples) -> tuple[float, Tree]:
    """The inverse dynamics' loss, plus the forward model's if there is one, and the gradient of the sum."""
    change = samples.next_obs - samples.obs

    def loss(dynamics: Tree) -> Any:
        total = np.mean((inverted(dynamics, samples.obs, change) - samples.action) ** 2)
        if "forward" in dynamics:
            total += np.mean((predicted(dynamics, samples.obs, samples.action) - change) ** 2)
        return total

    return value_and_grad(loss, dynamics)


def corrected_reference(
    nets: Nets, policy: Any, obs: FloatArray, action: FloatArray, hypers: Any, steps: int = 1
) -> FloatArray:
    """The corrected action in units of the box, `[batch, ...]`; `policy` is of normalised observations."""
    sigma = hypers.sigma_eval

    def score(obs: FloatArray, action: FloatArray) -> FloatArray:
        inputs = np.concatenate([obs, action, np.full((len(obs), 1), np.log(sigma))], axis=1)
        return -perceptron(nets.score_ema["params"], inputs, "silu") / sigma

    def invert(change: FloatArray) -> FloatArray:
        return inverted(nets.dynamics, obs, change)

    for _ in range(steps):
        both = score(obs, action)
        if "forward" in nets.dynamics:
            change = predicted(nets.dynamics, obs, action)
            next_obs = obs + change
            state_score = score(next_obs, policy(next_obs))[:, :OBS_DIM]
            steered = invert(change + hypers.state_eta * state_score) - invert(change)
        else:
            steered = invert(hypers.state_eta * both[:, :OBS_DIM])
        moved = action + hypers.action_coef * sigma**2 * both[:, OBS_DIM:] + hypers.state_coef * steered
        action = np.minimum(np.maximum(moved, -1.0), 1.0)
    return action


def random_nets(rng: np.random.Generator, forward_model: bool) -> Nets:
    def score() -> Tree:
        return {"params": mlp(rng, DIM + 1, *SCORE_HIDDEN, DIM)}

    dynamics = {"inverse": {"params": mlp(rng, 2 * OBS_DIM, *DYNAMICS_HIDDEN, ACTION_DIM)}}
    if forward_model:
        dynamics["forward"] = {"params": mlp(rng, DIM, *DYNAMICS_HIDDEN, OBS_DIM)}
    return Nets(score(), score(), dynamics)


def random_samples(rng: np.random.Generator) -> Samples:
    return Samples(
        obs=normal(rng, BATCH, OBS_DIM),
        action=exact(rng.uniform(-1.0, 1.0, size=(BATCH, ACTION_DIM))),
        next_obs=normal(rng, BATCH, OBS_DIM),
        sigma=exact(rng.uniform(0.1, 0.9, size=BATCH)),
        noise=normal(rng, BATCH, DIM),
    )


def problem(seed: int, forward_model: bool) -> tuple[Nets, Samples]:
    rng = np.random.default_rng(seed)
    return random_nets(rng, forward_model), random_samples(rng)


@jit
def jax_losses(nets: Any, samples: Any) -> tuple[tuple[Any, Tree], tuple[Any, Tree]]:
    """The two losses of the learner and their gradients."""
    empty = jnp.zeros(BATCH)
    batch = datasets.Batch(samples.obs, samples.action, empty, samples.next_obs, samples.action, empty, empty)
    x = jnp.concatenate([samples.obs, samples.action], axis=-1)
    score_loss, score_grads = jax.value_and_grad(denoisers.score_loss)(
        nets.score, NETWORKS.score, x, samples.sigma, samples.noise
    )
    (loss, _), grads = jax.value_and_grad(dynamics.loss, has_aux=True)(nets.dynamics, NETWORKS.dynamics, batch)
    return (score_loss, score_grads), (loss, grads)


@functools.cache
def want_losses(seed: int, forward_model: bool) -> Any:
    nets, samples = problem(seed, forward_model)
    return score_reference(nets.score, samples), dynamics_reference(nets.dynamics, samples)


@pytest.mark.parametrize("forward_model", [True, False])
@precisions(in_float64=1e-12)
def test_losses_and_gradients(forward_model: bool, dtype: Any, tolerance: float) -> None:
    for seed in SEEDS:
        with computing(dtype):
            got = jax_losses(*cast(problem(seed, forward_model), dtype))
        assert_close(got, want_losses(seed, forward_model), tolerance, dtype)


def test_the_best_score_of_noise_is_the_gradient_of_its_log_density() -> None:
    """What the loss means, by hand: of x = 0 with noise of sigma, the score -x / sigma^2 leaves nothing of the loss."""
    sigma, noise = jnp.asarray([0.2, 0.7]), jnp.asarray([[1.0, -2.0], [0.5, 3.0]])

    class Right(nn.Module):
        @nn.compact
        def __call__(self, inputs: Any) -> Any:
            return inputs[..., :-1] / jnp.exp(inputs[..., -1:])  # x / sigma, which `score` divides by -sigma

    x = jnp.asarray([[0.3, -0.1], [0.2, 0.9]])
    np.testing.assert_allclose(denoisers.score(Right(), {}, x, sigma), -x / sigma[:, None] ** 2, rtol=1e-6)
    assert float(denoisers.score_loss({}, Right(), jnp.zeros((2, 2)), sigma, noise)) == pytest.approx(0.0, abs=1e-6)


def test_levels_of_noise_are_log_uniform() -> None:
    uniform = jnp.asarray([0.0, 0.25, 0.5, 1.0])
    got = denoisers.noise_levels(uniform, 0.01, 1.0)
    np.testing.assert_allclose(got, [0.01, 10**-1.5, 0.1, 1.0], rtol=1e-6)
    np.testing.assert_allclose(denoisers.noise_levels(uniform, 0.3, 0.3), 0.3, rtol=1e-6)


# Whole updates, and acting, around a base whose every step can be seen.

SIZE = 40
UPDATE_BATCH = 16


def dataset() -> Dataset:
    """Of the toy environment's shapes; observations far from normalised, and every kind of ending."""
    rng = np.random.default_rng(3)
    obs, next_obs = (normal(rng, SIZE, OBS_DIM) * [2.0, 0.5, 1.0] + [0.5, -1.0, 0.3] for _ in range(2))
    action = rng.uniform(LOW, HIGH, size=(SIZE, ACTION_DIM))
    last = np.arange(SIZE) % 4 == 3
    return datasets.build(
        "toy",
        Records(
            obs=obs,
            action=action,
            reward=normal(rng, SIZE),
            next_obs=next_obs,
            next_action=action,
            terminated=last & (np.arange(SIZE) % 8 == 3),
            truncated=last & (np.arange(SIZE) % 8 == 7),
            episode=np.arange(SIZE) // 4,
            episode_return=np.zeros(SIZE // 4),
            complete=np.ones(SIZE // 4, bool),
        ),
        Toy().action_space,
        source="a test",
    )


class Case(NamedTuple):
    """Flags, and the learner with them around BC without normalised observations."""

    forward_model: bool
    correction_steps: int
    algorithm: Algorithm
    hypers: Any


def case(forward_model: bool, correction_steps: int) -> Case:
    spec = algorithms.get("bc+cdsa")
    config = spec.config(
        batch_size=8,
        hidden_sizes=(6,),
        normalize_obs=False,
        model_batch_size=UPDATE_BATCH,
        score_hidden_sizes=SCORE_HIDDEN,
        dynamics_hidden_sizes=DYNAMICS_HIDDEN,
        forward_model=forward_model,
        correction_steps=correction_steps,
    )
    return Case(forward_model, correction_steps, spec.make(config), spec.hypers(0.01, *HYPERS))


CASES = {"forward model, two steps": case(True, 2), "no forward model": case(False, 1)}


@functools.cache
def programs(name: str) -> tuple[Any, Any]:
    """jit of the whole update, and of acting at `[n, obs_dim]`."""
    algorithm, hypers = CASES[name].algorithm, cast(CASES[name].hypers, jnp.float64)

    def update(key: Any, task: Task, state: cdsa.State, clock: Clock) -> Any:
        return algorithm.update(key, task, state, hypers, clock)

    def act(task: Task, state: cdsa.State, obs: Any) -> Any:
        return jax.vmap(lambda obs: algorithm.act(jax.random.key(0), task, state, obs))(obs)

    return jit(update), jit(act)


@jit
def drawn(key: Any, task: Task) -> Any:
    """The random numbers of one update by the learner's key schedule, the only thing that the two share."""
    batch_key, sigma_key, noise_key = jax.random.split(jax.random.fold_in(key, 0xCD5A), 3)
    return (
        offline.indices(batch_key, task.dataset, (UPDATE_BATCH,)),
        jax.random.uniform(sigma_key, (UPDATE_BATCH,)),
        jax.random.normal(noise_key, (UPDATE_BATCH, DIM)),
    )


def start(name: str, nets: Nets, actor: Tree, task: Task) -> cdsa.State:
    """The learner's state with these networks and fresh optimisers. Only inside `jax.enable_x64(True)`."""
    trees = cast(({"params": actor}, nets.score, nets.dynamics), jnp.float64)
    given = (HYPERS.sigma_eval, HYPERS.action_coef, HYPERS.state_coef, HYPERS.state_eta)
    state = cdsa.State(
        base=with_adam(bc.State(trees[0])),
        models=with_adam(cdsa.Models(trees[1], cast(nets.score_ema, jnp.float64), trees[2])),
        guidance=cdsa.Guidance(*(jnp.asarray(x) for x in given)),
    )
    fresh = jax.eval_shape(CASES[name].algorithm.init, jax.random.key(0), task, CASES[name].hypers)
    chex.assert_trees_all_equal_structs(fresh, state)
    return state


@pytest.mark.parametrize("name", CASES)
def test_two_whole_updates(name: str) -> None:
    rng = np.random.default_rng(0)
    nets, actor = random_nets(rng, CASES[name].forward_model), mlp(rng, OBS_DIM, 6, ACTION_DIM)
    want, score_adam, dynamics_adam = nets, Adam(nets.score), Adam(nets.dynamics)
    with computing(np.float64):
        task = Task(Toy(), cast(dataset(), jnp.float64))
        state = start(name, nets, actor, task)
        every = np.asarray(task.dataset.rows)
        mean, std = np.asarray(task.dataset.obs_mean), np.asarray(task.dataset.obs_std)
        for update, key in enumerate(jax.random.split(jax.random.key(1), 2)):
            clock = Clock(jnp.int32(update), jnp.asarray(0.5))
            state, metrics = programs(name)[0](key, task, state, clock)

            rows, uniform, noise = (np.asarray(x) for x in drawn(key, task))
            samples = Samples(
                obs=(every[rows, :3] - mean) / (std + 1e-3),
                action=every[rows, 3:6],
                next_obs=(every[rows, 7:10] - mean) / (std + 1e-3),  # after the reward
                sigma=HYPERS.sigma_min * (HYPERS.sigma_max / HYPERS.sigma_min) ** uniform,
                noise=noise,
            )
            score_loss, grads = score_reference(want.score, samples)
            score = score_adam.step(want.score, grads, HYPERS.score_learning_rate)
            dynamics_loss, grads = dynamics_reference(want.dynamics, samples)
            dynamics = dynamics_adam.step(want.dynamics, grads, HYPERS.dynamics_learning_rate)
            kept = HYPERS.score_ema
            ema = jax.tree.map(lambda old, new: kept * old + (1.0 - kept) * new, want.score_ema, score)  # noqa: B023
            want = Nets(score, ema, dynamics)

            assert float(metrics["score_loss"]) == pytest.approx(score_loss, rel=1e-8)
            model_losses = [metrics[name] for name in ("inverse_loss", "forward_loss") if name in metrics]
            assert float(sum(model_losses)) == pytest.approx(dynamics_loss, rel=1e-8)
            assert len(model_losses) == 1 + CASES[name].forward_model
    assert_moved(Nets(*params_of(state.models)), want, nets, 1e-8)


@pytest.mark.parametrize("name", CASES)
def test_actions_are_corrected_in_units_of_the_box_and_stay_inside(name: str) -> None:
    rng = np.random.default_rng(10)
    nets, actor = random_nets(rng, CASES[name].forward_model), mlp(rng, OBS_DIM, 6, ACTION_DIM)
    actor["Dense_1"]["kernel"] *= 3.0  # so that many actions lie near the edges of the box
    with computing(np.float64):
        task = Task(Toy(), cast(dataset(), jnp.float64))
        mean, std = np.asarray(task.dataset.obs_mean), np.asarray(task.dataset.obs_std) + 1e-3
        obs = normal(rng, BATCH, OBS_DIM) * std + mean
        got = np.asarray(programs(name)[1](task, start(name, nets, actor, task), jnp.asarray(obs)))

    def policy(normalized: FloatArray) -> FloatArray:
        return np.tanh(perceptron(actor, normalized * std + mean, "relu"))  # of raw observations

    normalized = (obs - mean) / std
    unit = corrected_reference(nets, policy, normalized, policy(normalized), HYPERS, CASES[name].correction_steps)
    np.testing.assert_allclose(got, CENTER + HALF_WIDTH * unit, rtol=1e-6, atol=1e-6)  # the box is in float32
    reached = [np.sum(unit == 1.0), np.sum(unit == -1.0), np.sum(np.abs(unit) < 1.0)]
    assert min(*reached, np.sum(np.abs(unit - policy(normalized)) > 0.1)) >= 10, reached
