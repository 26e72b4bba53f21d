"""EDAC and SAC-N against an independent reference in NumPy and float64: losses, their whole gradients, whole updates.

The reference is written from the paper (An et al. 2021, arXiv 2110.01548) and the details listed in `edac.py`.
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
    OBS_DIM,
    endings,
    polyak,
    q_values,
    random_batch,
    random_critics,
    smallest,
    squared_errors,
)
from numpy_nets import Adam, FloatArray, Toy, Tree, assert_close, assert_moved, cast, exact, normal
from numpy_offline import SOMEWHERE, compiled, drawn, in_box, rows_of, shown
from numpy_offline import task as toy_task
from numpy_squashed import SquashedGaussian, actor_reference, alpha_reference, random_actor, soft_target
from reference import assert_reached, computing, precisions, value_and_grad
from trained_states import params_of, with_adam

from envs.datasets import Batch
from rlsuite.algorithms.offline import edac
from rlsuite.core import Clock, Task
from rlsuite.errors import UserError
from rlsuite.pieces import squashed as squashed_policy

HIDDEN = (6, 5)
SEEDS = range(5)
POLICY = SquashedGaussian(-5.0, 2.0)
LOG_STDS = (-4.9, 1.9, -1.0)
"""Where the actor's three log standard deviations lie: around the lower bound, around the upper one, between them."""
HYPERS = edac.Hypers(
    actor_learning_rate=0.003,
    critic_learning_rate=0.005,
    alpha_learning_rate=0.02,
    discount=0.93,
    tau=0.1,
    eta=0.7,
    initial_alpha=0.4,
    target_entropy_scale=0.6,
)
TARGET_ENTROPY = -0.6 * ACTION_DIM


class Nets(NamedTuple):
    """What gradient steps change."""

    actor: Tree
    critics: Tree
    target_critics: Tree
    log_alpha: FloatArray


def action_slopes(critics: Tree, obs: FloatArray, action: FloatArray) -> FloatArray:
    """dQ/da `[num_critics, batch, action_dim]`: with its ReLUs as they stand a network is a product of matrices."""
    net, x, product = critics["params"], np.concatenate([obs, action], axis=1), np.eye(OBS_DIM + ACTION_DIM)
    for i in range(len(net)):
        x = x @ net[f"Dense_{i}"]["kernel"] + net[f"Dense_{i}"]["bias"][:, None]
        product = product @ net[f"Dense_{i}"]["kernel"][:, None]
        if i + 1 < len(net):
            x, product = np.maximum(x, 0.0), product * (x > 0.0)[:, :, None]
    return product[:, :, OBS_DIM:, 0]


def unit_slopes(critics: Tree, batch: Batch) -> FloatArray:
    """Directions of dQ/da, and 0 where a critic is flat, `[num_critics, batch, action_dim]`."""
    slopes = action_slopes(critics, batch.obs, batch.action)
    flat = np.all(slopes == 0.0, axis=2, keepdims=True)
    return slopes / np.sqrt(np.where(flat, 1.0, np.sum(slopes**2, axis=2, keepdims=True)))


def diversity_loss(critics: Tree, batch: Batch) -> Any:
    """The cosines of all pairs, summed one by one."""
    units = unit_slopes(critics, batch)
    pairs = [np.sum(one * other) for i, one in enumerate(units) for j, other in enumerate(units) if i != j]
    return np.sum(pairs) / (len(batch.obs) * (len(units) - 1))


def critic_reference(nets: Nets, batch: Batch, noise: FloatArray, diversity: bool) -> tuple[float, Tree]:
    """The critics' loss and its gradient."""
    target = soft_target(POLICY, nets, batch, noise, HYPERS.discount)

    def loss(critics: Tree) -> Any:
        alike = HYPERS.eta * diversity_loss(critics, batch) if diversity else 0.0
        return squared_errors(critics, batch, target) + alike

    return value_and_grad(loss, nets.critics)


def random_nets(rng: np.random.Generator, num_critics: int) -> Nets:
    critics, targets = (random_critics(rng, num_critics, HIDDEN, mean=0.0) for _ in range(2))
    return Nets(random_actor(rng, HIDDEN, LOG_STDS, 3.0), critics, targets, exact(np.log(0.4)))


def problem(seed: int, num_critics: int) -> tuple[Nets, Batch, FloatArray]:
    rng = np.random.default_rng(seed)
    return random_nets(rng, num_critics), random_batch(rng, BATCH), normal(rng, BATCH, ACTION_DIM)


def state_of(nets: Nets, dtype: Any) -> edac.State:
    """The learner's state with these networks and fresh optimisers."""
    return with_adam(edac.State(*cast(tuple(nets), dtype)))


NETWORKS = edac.networks_of(edac.Config(hidden_sizes=HIDDEN), ACTION_DIM)


@functools.partial(jax.jit, static_argnames="diversity")
def jax_losses(state: edac.State, batch: Any, noise: Any, hypers: Any, diversity: bool) -> Any:
    """The losses of the learner and their gradients, and the gradient of the critics' loss by all else."""
    params = params_of(state)

    def loss_by_critics(critics: Tree, others: edac.State) -> Any:
        return edac.critic_loss(critics, NETWORKS, others, batch, noise, diversity, hypers)

    (critic_loss, _), critic_grads = jax.value_and_grad(loss_by_critics, has_aux=True)(params.critics, state)
    (actor_loss, _), actor_grads = jax.value_and_grad(squashed_policy.actor_loss, has_aux=True)(
        params.actor, *NETWORKS, params.critics, params.log_alpha, batch.obs, noise
    )

    def loss_by_alpha(log_alpha: Any, actor: Tree) -> Any:
        _, log_prob = NETWORKS.policy.draw(actor, batch.obs, noise)
        return squashed_policy.alpha_loss(log_alpha, log_prob, -hypers.target_entropy_scale * ACTION_DIM)

    alpha, by_actor = jax.value_and_grad(loss_by_alpha, (0, 1))(params.log_alpha, params.actor)
    constant = jax.grad(
        lambda actor, targets, log_alpha: loss_by_critics(
            params.critics,
            state._replace(
                actor=state.actor._replace(params=actor),
                target_critics=targets,
                log_alpha=state.log_alpha._replace(params=log_alpha),
            ),
        )[0],
        (0, 1, 2),
    )(params.actor, params.target_critics, params.log_alpha)
    return (critic_loss, critic_grads), (actor_loss, actor_grads), (alpha, by_actor[0]), (*constant, by_actor[1])


@functools.cache
def want_losses(seed: int, num_critics: int, diversity: bool) -> Any:
    nets, batch, noise = problem(seed, num_critics)
    constant = (nets.actor, nets.target_critics, nets.log_alpha, nets.actor)
    return (
        critic_reference(nets, batch, noise, diversity),
        actor_reference(POLICY, nets, batch.obs, noise),
        alpha_reference(POLICY, nets, batch.obs, noise, TARGET_ENTROPY),
        jax.tree.map(np.zeros_like, constant),
    )


@pytest.mark.parametrize(("num_critics", "diversity"), [(4, True), (3, False)])
@precisions(in_float64=1e-11)
def test_losses_and_gradients(num_critics: int, diversity: bool, dtype: Any, tolerance: float) -> None:
    for seed in SEEDS:
        nets, *rest = problem(seed, num_critics)
        with computing(dtype):
            got = jax_losses(state_of(nets, dtype), *cast((*rest, HYPERS), dtype), diversity=diversity)
        assert_close(got, want_losses(seed, num_critics, diversity), tolerance, dtype)


def cases_of(seed: int) -> dict[str, Any]:
    """Which samples of a problem reach which branch."""
    nets, batch, noise = problem(seed, 4)
    now, following = (POLICY.sample(nets.actor, obs, noise)[0] for obs in (batch.obs, batch.next_obs))
    least = np.argmin(q_values(nets.critics, batch.obs, now), axis=0)
    next_least = np.argmin(q_values(nets.target_critics, batch.next_obs, following), axis=0)
    return {
        **POLICY.cases(nets.actor, batch.obs),
        **endings(batch),
        **{f"critic {i} smallest": least == i for i in range(4)},
        **{f"target {i} smallest": next_least == i for i in range(4)},
    }


def test_the_samples_reach_every_branch() -> None:
    assert_reached(map(cases_of, SEEDS), 20)


# The diversity term.


@jax.jit
def diversity_and_gradient(critics: Tree, obs: Any, action: Any) -> Any:
    return jax.value_and_grad(edac.diversity_loss)(critics, NETWORKS, obs, action)


def test_a_critic_that_is_flat_has_no_direction_and_breaks_nothing() -> None:
    nets, batch, _ = problem(9, 4)
    nets.critics["params"]["Dense_1"]["bias"][2] = -100.0  # no unit of the third critic's second layer is ever active
    with jax.enable_x64(True):
        got = diversity_and_gradient(*cast((nets.critics, batch.obs, batch.action), jnp.float64))
    assert_close(got, value_and_grad(lambda critics: diversity_loss(critics, batch), nets.critics), 1e-11)
    assert all(not np.any(leaf[2]) for leaf in jax.tree.leaves(got[1]))


def test_equal_critics_are_as_alike_as_can_be() -> None:
    nets, batch, _ = problem(10, 4)
    alike = jax.tree.map(lambda x: np.stack([x[0]] * 4), nets.critics)
    with jax.enable_x64(True):
        value, grads = diversity_and_gradient(*cast((alike, batch.obs, batch.action), jnp.float64))
    # Every ordered pair has a cosine of 1, and none can turn to a higher one; but where the slope is 0.
    flat = np.mean(np.all(unit_slopes(alike, batch)[0] == 0.0, axis=1))
    assert float(value) == pytest.approx(4.0 * (1.0 - flat), rel=1e-9)
    assert max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(grads)) < 1e-9


# Whole updates, with everything that surrounds the losses.

UPDATES, UPDATE_BATCH = 3, 16


class Case(NamedTuple):
    """Flags of a learner."""

    num_critics: int
    diversity: bool
    learn_alpha: bool
    normalize_obs: bool

    @property
    def config(self) -> edac.Config:
        return edac.Config(batch_size=UPDATE_BATCH, hidden_sizes=HIDDEN, **self._asdict())


UPDATE_CASES = {"edac": Case(4, True, True, False), "sac-n": Case(3, False, False, True)}


def updated(nets: Nets, keys: Any, case: Case) -> Nets:
    """The networks after one update for each key, from fresh optimisers.

    Random numbers come from JAX by the learner's own key schedule: they are the only thing that the two share.
    """
    actor_adam, critic_adam, alpha_adam = Adam(nets.actor), Adam(nets.critics), Adam(nets.log_alpha)
    for key in keys:
        batch_key, *noise_keys = jax.random.split(key, 4)
        alpha_noise, actor_noise, critic_noise = (
            np.asarray(jax.random.normal(noise_key, (UPDATE_BATCH, ACTION_DIM))) for noise_key in noise_keys
        )
        batch = drawn(rows_of(batch_key, UPDATE_BATCH), case.normalize_obs)
        # Each of the three sees what the ones before it have learned.
        if case.learn_alpha:
            grads = alpha_reference(POLICY, nets, batch.obs, alpha_noise, TARGET_ENTROPY)[1]
            nets = nets._replace(log_alpha=alpha_adam.step(nets.log_alpha, grads, HYPERS.alpha_learning_rate))
        grads = actor_reference(POLICY, nets, batch.obs, actor_noise)[1]
        nets = nets._replace(actor=actor_adam.step(nets.actor, grads, HYPERS.actor_learning_rate))
        grads = critic_reference(nets, batch, critic_noise, case.diversity)[1]
        critics = critic_adam.step(nets.critics, grads, HYPERS.critic_learning_rate)
        nets = nets._replace(critics=critics, target_critics=polyak(nets.target_critics, critics, HYPERS.tau))
    return nets


@pytest.mark.parametrize("name", UPDATE_CASES)
def test_whole_updates(name: str) -> None:
    case = UPDATE_CASES[name]
    algorithm, nets = edac.make(case.config), random_nets(np.random.default_rng(0), case.num_critics)
    with computing(np.float64):
        update, evaluate = compiled(algorithm, HYPERS)
        state = state_of(nets, jnp.float64)
        fresh = jax.eval_shape(algorithm.init, jax.random.key(0), toy_task(), HYPERS)
        chex.assert_trees_all_equal_structs(fresh, state)
        keys = jax.random.split(jax.random.key(1), UPDATES)
        for i, key in enumerate(keys):
            state, metrics = update(key, state, Clock(jnp.int32(i), jnp.asarray(0.5)))
        want = updated(nets, keys, case)
        act, value = evaluate(state, jnp.asarray(SOMEWHERE))
        noise = np.asarray(jax.random.normal(jax.random.key(0), (1, ACTION_DIM)))
    state = params_of(state)
    assert_moved(Nets(*state[:4]), want, nets, 1e-8)
    assert (float(state.log_alpha) != float(nets.log_alpha)) == case.learn_alpha
    assert float(metrics["alpha"]) == pytest.approx(np.exp(want.log_alpha), rel=1e-12)
    assert ("diversity_loss" in metrics) == case.diversity
    # Evaluation plays the mean; the value is that of a sampled action, entropy included.
    obs = shown(SOMEWHERE[None], case.normalize_obs)
    mean, _ = POLICY.distribution(want.actor, obs)
    np.testing.assert_allclose(act, in_box(np.tanh(mean))[0], rtol=1e-8)
    action, log_prob = POLICY.sample(want.actor, obs, noise)
    soft = smallest(want.critics, obs, action) - np.exp(want.log_alpha) * log_prob
    assert float(value) == pytest.approx(float(soft[0]), rel=1e-8)


# Around the updates.


def test_starts_as_the_authors_do() -> None:
    task = Task(Toy())
    algorithm = edac.make(edac.Config(num_critics=3, hidden_sizes=(64, 64)))
    state = jax.jit(lambda key: algorithm.init(key, task, HYPERS))(jax.random.key(0))
    state = params_of(state)
    chex.assert_trees_all_equal(state.critics, state.target_critics)
    assert float(state.log_alpha) == pytest.approx(np.log(HYPERS.initial_alpha))
    for params, fan_in, bound in ((state.actor, OBS_DIM, 1e-3), (state.critics, OBS_DIM + ACTION_DIM, 3e-3)):
        layers = params["params"]
        for name, inputs in (("Dense_0", fan_in), ("Dense_1", 64)):
            np.testing.assert_array_equal(layers[name]["bias"], np.float32(0.1))
            assert 0.9 < np.max(np.abs(layers[name]["kernel"])) * np.sqrt(inputs) <= 1.0
        assert 0.9 * bound < np.max(np.abs(layers["Dense_2"]["kernel"])) <= bound
        assert np.max(np.abs(layers["Dense_2"]["bias"])) <= bound
    kernels = state.critics["params"]["Dense_1"]["kernel"]
    assert kernels.shape == (3, 64, 64) and not np.any(kernels[0] == kernels[1])


def test_sac_n_does_not_pay_for_the_diversity_term() -> None:
    """It is left out of the program, not multiplied by 0."""
    nets, batch, noise = problem(0, 4)
    arguments = cast((batch, noise, HYPERS._replace(eta=0.0)), jnp.float32)
    state = state_of(nets, jnp.float32)

    def products(diversity: bool) -> int:
        jaxpr = jax.make_jaxpr(functools.partial(jax_losses, diversity=diversity))(state, *arguments)
        return str(jaxpr).count("dot_general")

    assert products(False) < products(True)
    without, with_0 = (jax_losses(state, *arguments, diversity=diversity) for diversity in (False, True))
    chex.assert_trees_all_close(without, with_0, rtol=1e-6)


def test_one_action_dimension_leaves_nothing_to_turn() -> None:
    """Unit gradients are 1 or -1, whatever the parameters: the docs say that the term then teaches nothing."""
    rng = np.random.default_rng(0)
    obs, action = (jnp.asarray(rng.normal(size=(16, 1)), jnp.float32) for _ in range(2))
    critics = jax.vmap(lambda key: NETWORKS.critic.init(key, jnp.zeros(2)))(jax.random.split(jax.random.key(0), 3))
    _, grads = diversity_and_gradient(critics, obs, action)
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(grads)) < 1e-5


def test_presets_are_those_of_corl() -> None:
    def shown(name: str) -> tuple[int, float]:
        preset = edac.PRESETS[name]
        return preset.config.num_critics, preset.hypers.eta

    assert {shown(name) for name in edac.PRESETS if name.startswith("hopper")} == {(50, 1.0)}
    assert shown("halfcheetah-medium-expert") == shown("walker2d-medium-expert") == (10, 5.0)
    assert shown("halfcheetah-medium") == shown("walker2d-medium-replay") == (10, 1.0)
    assert len(edac.PRESETS) == 9


def test_what_cannot_work_is_refused_by_name() -> None:
    for name in ("batch_size", "num_critics"):
        with pytest.raises(UserError, match=f"^{name}=0 must be at least 1"):
            edac.make(edac.Config(**{name: 0}))
    with pytest.raises(UserError, match=r"^num_critics=1 cannot be kept apart; take 2 or more, or diversity=False$"):
        edac.make(edac.Config(num_critics=1))
    edac.make(edac.Config(num_critics=1, diversity=False))
