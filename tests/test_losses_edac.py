"""EDAC and SAC-N against an independent reference in NumPy and float64: losses, their whole gradients, whole updates.

The reference is written from the paper (An et al. 2021, arXiv 2110.01548) and the details listed in
`edac.py`, with every derivative by hand, that of the diversity term included, which is a second one.
A central difference of the reference's own losses guards those derivatives.
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
)
from numpy_squashed import (
    ACTION_DIM,
    OBS_DIM,
    Batch,
    Squashed,
    alpha_reference,
    count,
    critic,
    normalized,
    q_values,
    random_batch,
    random_critics,
    squashed,
    squashed_backward,
    stacked,
    through_the_smallest,
    toy_dataset,
)
from trained_states import params_of, with_adam

from envs import datasets
from rlsuite.algorithms.offline import edac
from rlsuite.core import Clock, Task
from rlsuite.errors import UserError
from rlsuite.pieces import offline_td3
from rlsuite.pieces.networks import MLP
from rlsuite.pieces.squashed import alpha_loss

HIDDEN = (8, 7)
BATCH = 64
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


class Nets(NamedTuple):
    """What gradient steps change."""

    actor: Tree
    critics: Tree
    target_critics: Tree
    log_alpha: FloatArray


class Drawn(NamedTuple):
    """A sampled action and all that its derivative needs."""

    squashed: Squashed
    raw_log_std: FloatArray
    inputs: list[FloatArray]


def sampled(actor: Tree, obs: FloatArray, noise: FloatArray) -> Drawn:
    out, inputs = forward(actor["params"], obs, "relu")
    mean, raw_log_std = out[:, :ACTION_DIM], out[:, ACTION_DIM:]
    return Drawn(squashed(mean, np.minimum(np.maximum(raw_log_std, -5.0), 2.0), noise), raw_log_std, inputs)


def diversity_reference(critics: Tree, obs: FloatArray, action: FloatArray) -> tuple[float, Tree]:
    """The cosines of all pairs, summed one by one, and the gradient of that sum."""
    n, num_critics, inputs = len(obs), count(critics), np.concatenate([obs, action], axis=1)
    nets = [critic(critics, i) for i in range(num_critics)]
    seen = [forward(net, inputs, "relu")[1] for net in nets]
    gradients = [backward(net, h, np.ones((n, 1)), "relu")[1][:, OBS_DIM:] for net, h in zip(nets, seen, strict=True)]
    lengths = [np.sqrt(np.sum(g**2, axis=1, keepdims=True)) for g in gradients]
    units = [np.divide(g, w, out=np.zeros_like(g), where=w > 0) for g, w in zip(gradients, lengths, strict=True)]
    weight = 1.0 / (n * (num_critics - 1))
    loss, grads = 0.0, []
    for i in range(num_critics):
        others = np.zeros_like(action)
        for j in range(num_critics):
            if i != j:
                loss += weight * np.sum(units[i] * units[j])
                others += units[j]
        # Each pair counts twice. Only what is at right angles to a vector turns it, the less the longer it is.
        d_unit = 2.0 * weight * others
        turn = d_unit - units[i] * np.sum(units[i] * d_unit, axis=1, keepdims=True)
        d_gradient = np.divide(turn, lengths[i], out=np.zeros_like(turn), where=lengths[i] > 0)
        grads.append(gradient_of_slope(nets[i], seen[i], d_gradient))
    return loss, stacked(grads)


def gradient_of_slope(net: Tree, inputs: list[FloatArray], along: FloatArray) -> Tree:
    """The gradient by all weights of sum over the batch of (dQ/da . along): with its ReLUs as they stand the network is
    a product of matrices, and that sum is what the product makes of (0, along), without biases."""
    ahead = [np.concatenate([np.zeros((len(along), OBS_DIM)), along], axis=1)]
    for i in range(len(net) - 1):
        ahead.append((ahead[-1] @ net[f"Dense_{i}"]["kernel"]) * (inputs[i + 1] > 0.0))
    grads, back = {}, np.ones((len(along), 1))
    for i in reversed(range(len(net))):
        layer = net[f"Dense_{i}"]
        grads[f"Dense_{i}"] = {"kernel": ahead[i].T @ back, "bias": np.zeros_like(layer["bias"])}
        back = (back @ layer["kernel"].T) * (inputs[i] > 0.0)
    return grads


def critic_reference(nets: Nets, batch: Batch, noise: FloatArray, diversity: bool) -> tuple[float, Tree]:
    """The critics' loss and its gradient."""
    n, following = len(batch.obs), sampled(nets.actor, batch.next_obs, noise).squashed
    soft_value = np.min(q_values(nets.target_critics, batch.next_obs, following.action), axis=0)
    soft_value = soft_value - np.exp(nets.log_alpha) * following.log_prob
    # Running out of time ends nothing: only `terminated` cuts the bootstrap.
    target = batch.reward + HYPERS.discount * (1.0 - batch.terminated) * soft_value
    loss, each = 0.0, []
    for i in range(count(nets.critics)):
        net = critic(nets.critics, i)
        q, inputs = forward(net, np.concatenate([batch.obs, batch.action], axis=1), "relu")
        error = q[:, 0] - target
        loss += np.mean(error**2)
        each.append(backward(net, inputs, 2.0 * error[:, None] / n, "relu")[0])
    grads = stacked(each)
    if diversity:
        of_pairs, pair_grads = diversity_reference(nets.critics, batch.obs, batch.action)
        loss += HYPERS.eta * of_pairs
        grads = jax.tree.map(lambda a, b: a + HYPERS.eta * b, grads, pair_grads)
    return loss, grads


def actor_reference(nets: Nets, obs: FloatArray, noise: FloatArray) -> tuple[float, Tree]:
    """The actor's loss and its gradient."""
    n, alpha = len(obs), np.exp(nets.log_alpha)
    d = sampled(nets.actor, obs, noise)
    q, d_action = through_the_smallest(nets.critics, obs, d.squashed.action)
    d_mean, d_log_std = squashed_backward(d.squashed, -d_action / n, alpha / n)
    inside = (d.raw_log_std > -5.0) & (d.raw_log_std < 2.0)
    d_out = np.concatenate([d_mean, np.where(inside, d_log_std, 0.0)], axis=1)
    grads = backward(nets.actor["params"], d.inputs, d_out, "relu")[0]
    return float(np.mean(alpha * d.squashed.log_prob - q)), {"params": grads}


def random_nets(rng: np.random.Generator, num_critics: int) -> Nets:
    actor = mlp(rng, OBS_DIM, *HIDDEN, 2 * ACTION_DIM)
    actor["Dense_2"]["kernel"][:, ACTION_DIM:] *= 2.0
    actor["Dense_2"]["bias"][ACTION_DIM:] = LOG_STDS
    critics, targets = (random_critics(rng, num_critics, HIDDEN) for _ in range(2))
    return Nets({"params": jax.tree.map(exact, actor)}, critics, targets, exact(np.log(0.4)))


def problem(seed: int, num_critics: int) -> tuple[Nets, Batch, FloatArray]:
    rng = np.random.default_rng(seed)
    return random_nets(rng, num_critics), random_batch(rng, BATCH), normal(rng, BATCH, ACTION_DIM)


def state_of(nets: Nets, dtype: Any) -> edac.State:
    """The learner's state with these networks and fresh optimisers."""
    return with_adam(edac.State(*cast(tuple(nets), dtype)))


NETWORKS = offline_td3.Networks(MLP((*HIDDEN, 2 * ACTION_DIM)), MLP((*HIDDEN, 1)))


@functools.partial(jax.jit, static_argnames="diversity")
def jax_losses(state: edac.State, batch: Any, noise: Any, hypers: Any, diversity: bool) -> Any:
    """The losses of the learner and their gradients, and the gradient of the critics' loss by all else."""
    batch, params = datasets.Batch(*batch), params_of(state)

    def of_critics(critics: Tree, others: edac.State) -> Any:
        return edac.critic_loss(critics, NETWORKS, others, batch, noise, diversity, hypers)

    (critic_loss, _), critic_grads = jax.value_and_grad(of_critics, has_aux=True)(params.critics, state)
    actor = jax.value_and_grad(edac.actor_loss)(
        params.actor, NETWORKS, params.critics, params.log_alpha, batch.obs, noise
    )

    def of_alpha(log_alpha: Any, actor: Tree) -> Any:
        _, log_prob = edac.draw(NETWORKS, actor, batch.obs, noise)
        return alpha_loss(log_alpha, log_prob, -hypers.target_entropy_scale * ACTION_DIM)

    alpha, by_actor = jax.value_and_grad(of_alpha, (0, 1))(params.log_alpha, params.actor)
    constant = jax.grad(
        lambda actor, targets, log_alpha: of_critics(
            params.critics,
            state._replace(
                actor=state.actor._replace(params=actor),
                target_critics=targets,
                log_alpha=state.log_alpha._replace(params=log_alpha),
            ),
        )[0],
        (0, 1, 2),
    )(params.actor, params.target_critics, params.log_alpha)
    return (critic_loss, critic_grads), actor, (alpha, by_actor[0]), (*constant, by_actor[1])


def compare(seed: int, num_critics: int, diversity: bool, dtype: Any, tolerance: float) -> None:
    """All losses and gradients of the learner, computed in `dtype`, against the reference."""
    nets, batch, noise = problem(seed, num_critics)
    log_prob = sampled(nets.actor, batch.obs, noise).squashed.log_prob
    constant = (nets.actor, nets.target_critics, nets.log_alpha, nets.actor)
    want = (
        critic_reference(nets, batch, noise, diversity),
        actor_reference(nets, batch.obs, noise),
        alpha_reference(nets.log_alpha, log_prob, -HYPERS.target_entropy_scale * ACTION_DIM),
        jax.tree.map(np.zeros_like, constant),
    )
    with jax.default_matmul_precision("highest"):
        arguments = cast((tuple(batch), noise, HYPERS), dtype)
        got = jax_losses(state_of(nets, dtype), *arguments, diversity=diversity)
    assert_close(got, want, tolerance, dtype)


CASES = pytest.mark.parametrize(("num_critics", "diversity"), [(4, True), (3, False)])


@CASES
def test_losses_and_gradients_in_float64(num_critics: int, diversity: bool) -> None:
    with jax.enable_x64(True):
        for seed in range(5):
            compare(seed, num_critics, diversity, jnp.float64, 1e-11)


@CASES
def test_losses_and_gradients_in_float32(num_critics: int, diversity: bool) -> None:
    for seed in range(5):
        compare(seed, num_critics, diversity, jnp.float32, 1e-5)


def test_the_samples_reach_every_branch() -> None:
    reached: dict[str, int] = {}
    for seed in range(5):
        nets, batch, noise = problem(seed, 4)
        now, following = (sampled(nets.actor, obs, noise) for obs in (batch.obs, batch.next_obs))
        raw = now.raw_log_std
        smallest = np.argmin(q_values(nets.critics, batch.obs, now.squashed.action), axis=0)
        next_smallest = np.argmin(q_values(nets.target_critics, batch.next_obs, following.squashed.action), axis=0)
        cases = {
            "log std below its bound": raw < -5.0,
            "log std inside its bounds": (raw > -5.0) & (raw < 2.0),
            "log std above its bound": raw > 2.0,
            "terminated only": batch.terminated & ~batch.truncated,
            "truncated only": batch.truncated & ~batch.terminated,
            "terminated and truncated": batch.terminated & batch.truncated,
            "neither": ~batch.terminated & ~batch.truncated,
            **{f"critic {i} smallest": smallest == i for i in range(4)},
            **{f"target {i} smallest": next_smallest == i for i in range(4)},
        }
        for name, hits in cases.items():
            reached[name] = reached.get(name, 0) + int(np.sum(hits))
    assert min(reached.values()) >= 20, reached


def test_the_reference_has_the_gradient_of_its_own_losses() -> None:
    nets, batch, noise = problem(7, 4)
    rng = np.random.default_rng(8)
    of_critics = critic_reference(nets, batch, noise, True)[1]
    of_diversity = diversity_reference(nets.critics, batch.obs, batch.action)[1]
    of_actor = actor_reference(nets, batch.obs, noise)[1]
    for _ in range(5):
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), nets)
        pairs: list[tuple[Any, Tree, Tree, Tree]] = [
            (
                lambda c: critic_reference(nets._replace(critics=c), batch, noise, True)[0],
                *nets[1:2],
                direction[1],
                of_critics,
            ),
            (lambda c: diversity_reference(c, batch.obs, batch.action)[0], *nets[1:2], direction[1], of_diversity),
            (lambda a: actor_reference(nets._replace(actor=a), batch.obs, noise)[0], *nets[:1], direction[0], of_actor),
        ]
        for function, at, along, grads in pairs:
            assert slope(function, at, along, step=1e-7) == pytest.approx(dot(grads, along), rel=1e-6)
    log_prob = sampled(nets.actor, batch.obs, noise).squashed.log_prob
    numeric = slope(lambda x: alpha_reference(x, log_prob, -2.0)[0], nets.log_alpha, np.ones(()))
    assert numeric == pytest.approx(float(alpha_reference(nets.log_alpha, log_prob, -2.0)[1]), rel=1e-6)


# The diversity term.


@jax.jit
def diversity_and_gradient(critics: Tree, obs: Any, action: Any) -> Any:
    return jax.value_and_grad(edac.diversity_loss)(critics, NETWORKS, obs, action)


def test_a_critic_that_is_flat_has_no_direction_and_breaks_nothing() -> None:
    nets, batch, _ = problem(9, 4)
    nets.critics["params"]["Dense_1"]["bias"][2] = -100.0  # no unit of the third critic's second layer is ever active
    with jax.enable_x64(True):
        got = diversity_and_gradient(*cast((nets.critics, batch.obs, batch.action), jnp.float64))
        assert_close(got, diversity_reference(nets.critics, batch.obs, batch.action), 1e-11)
    assert all(not np.any(leaf[2]) for leaf in jax.tree.leaves(got[1]))


def test_equal_critics_are_as_alike_as_can_be() -> None:
    nets, batch, _ = problem(10, 4)
    alike = jax.tree.map(lambda x: np.stack([x[0]] * 4), nets.critics)
    with jax.enable_x64(True):
        value, grads = diversity_and_gradient(*cast((alike, batch.obs, batch.action), jnp.float64))
    # Every ordered pair has a cosine of 1, and none can turn to a higher one; but where the slope is 0.
    flat = np.mean(np.all(backward_of(critic(alike, 0), batch) == 0.0, axis=1))
    assert float(value) == pytest.approx(4.0 * (1.0 - flat), rel=1e-9)
    assert max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(grads)) < 1e-9


def backward_of(net: Tree, batch: Batch) -> FloatArray:
    """dQ/da `[batch, action_dim]`."""
    inputs = forward(net, np.concatenate([batch.obs, batch.action], axis=1), "relu")[1]
    return backward(net, inputs, np.ones((len(batch.obs), 1)), "relu")[1][:, OBS_DIM:]


# Whole updates, with everything that surrounds the losses.

UPDATES, UPDATE_BATCH, STORED = 3, 16, 24


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


def updated(nets: Nets, rows: Batch, dataset: Any, keys: Any, case: Case) -> Nets:
    """The networks after one update for each key, from fresh optimisers.

    Random numbers come from JAX by the learner's own key schedule: they are the only thing that the two share.
    """
    actor_adam, critic_adam, alpha_adam = Adam(nets.actor), Adam(nets.critics), Adam(nets.log_alpha)
    for key in keys:
        batch_key, *noise_keys = jax.random.split(key, 4)
        index = np.asarray(jax.random.randint(batch_key, (UPDATE_BATCH,), 0, STORED))
        of_alpha, of_actor, of_critics = (
            np.asarray(jax.random.normal(noise_key, (UPDATE_BATCH, ACTION_DIM))) for noise_key in noise_keys
        )
        batch = Batch(*(x[index] for x in rows))
        if case.normalize_obs:
            batch = batch._replace(obs=normalized(dataset, batch.obs), next_obs=normalized(dataset, batch.next_obs))
        # Each of the three sees what the ones before it have learned.
        if case.learn_alpha:
            log_prob = sampled(nets.actor, batch.obs, of_alpha).squashed.log_prob
            grad = alpha_reference(nets.log_alpha, log_prob, -HYPERS.target_entropy_scale * ACTION_DIM)[1]
            nets = nets._replace(log_alpha=alpha_adam.step(nets.log_alpha, grad, HYPERS.alpha_learning_rate))
        grads = actor_reference(nets, batch.obs, of_actor)[1]
        nets = nets._replace(actor=actor_adam.step(nets.actor, grads, HYPERS.actor_learning_rate))
        grads = critic_reference(nets, batch, of_critics, case.diversity)[1]
        critics = critic_adam.step(nets.critics, grads, HYPERS.critic_learning_rate)
        moved = jax.tree.map(lambda old, new: (1.0 - HYPERS.tau) * old + HYPERS.tau * new, nets.target_critics, critics)
        nets = nets._replace(critics=critics, target_critics=moved)
    return nets


@pytest.mark.parametrize("name", UPDATE_CASES)
def test_whole_updates(name: str) -> None:
    case = UPDATE_CASES[name]
    algorithm, rng = edac.make(case.config), np.random.default_rng(0)
    nets = random_nets(rng, case.num_critics)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        dataset, rows = toy_dataset(rng, STORED)
        task, hypers = Task(Toy(), dataset), cast(HYPERS, jnp.float64)
        state = state_of(nets, jnp.float64)
        fresh = jax.eval_shape(algorithm.init, jax.random.key(0), task, HYPERS)
        chex.assert_trees_all_equal_structs(fresh, state)
        update = jax.jit(algorithm.update)
        keys = jax.random.split(jax.random.key(1), UPDATES)
        for i, key in enumerate(keys):
            state, metrics = update(key, task, state, hypers, Clock(jnp.int32(i), jnp.asarray(0.5)))
        want = updated(nets, rows, dataset, keys, case)

        # Evaluation plays the mean; the value is that of a sampled action, entropy included.
        obs = normal(rng, 1, OBS_DIM)
        act, value = jax.jit(
            lambda state, obs: tuple(f(jax.random.key(2), task, state, obs) for f in (algorithm.act, algorithm.value))
        )(state, jnp.asarray(obs[0]))
        seen = normalized(dataset, obs) if case.normalize_obs else obs
        noise = np.asarray(jax.random.normal(jax.random.key(2), (ACTION_DIM,)))
    state = params_of(state)
    assert_moved(Nets(*state), want, nets, 1e-8)
    assert (float(state.log_alpha) != float(nets.log_alpha)) == case.learn_alpha
    assert float(metrics["alpha"]) == pytest.approx(np.exp(want.log_alpha), rel=1e-12)
    assert ("diversity_loss" in metrics) == case.diversity
    mean = forward(want.actor["params"], seen, "relu")[0][0, :ACTION_DIM]
    np.testing.assert_allclose(act, (LOW + HIGH) / 2.0 + (HIGH - LOW) / 2.0 * np.tanh(mean), rtol=1e-8)
    drawn = sampled(want.actor, seen, noise[None]).squashed
    soft = np.min(q_values(want.critics, seen, drawn.action), axis=0) - np.exp(want.log_alpha) * drawn.log_prob
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
    arguments = cast((tuple(batch), noise, HYPERS._replace(eta=0.0)), jnp.float32)
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
