"""A2PR against an independent reference in NumPy and float64: its five losses, their whole gradients, whole updates.

The reference is written from the five steps of the authors' code as the specification lists them, with every derivative
by hand, the one of the actor through the VAE's encoder and decoder included. A central difference of the reference's
own losses guards those derivatives.
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
from trained_states import params_of, with_adam

from envs import datasets
from envs.datasets import STD_FLOOR, Dataset, Records
from rlsuite import algorithms
from rlsuite.algorithms.offline import a2pr
from rlsuite.core import Clock, Task
from rlsuite.errors import UserError
from rlsuite.pieces import offline_td3
from rlsuite.pieces.critics import first_q
from rlsuite.pieces.networks import MLP
from rlsuite.pieces.offline_td3 import smoothed_action as smoothed

OBS_DIM = ACTION_DIM = 3
LATENT_DIM = 2 * ACTION_DIM
BATCH = 64
ACTOR, CRITIC, VALUE, VAE = (8, 7), (7, 9), (6, 8), (9, 10)
SIZES: dict[str, Any] = {
    "hidden_sizes": ACTOR,
    "critic_hidden_sizes": CRITIC,
    "value_hidden_sizes": VALUE,
    "vae_hidden_sizes": VAE,
}
FORMS = {
    "authors' code": a2pr.Config(**SIZES),
    "detached": a2pr.Config(**SIZES, detach_reconstruction=True),
    "sampled": a2pr.Config(**SIZES, sample_candidates=True),
}
HYPERS = a2pr.Hypers(
    actor_learning_rate=0.003,
    critic_learning_rate=0.005,
    value_learning_rate=0.05,  # so that V(s) before and after its step differ in what is better than it
    vae_learning_rate=0.002,
    discount=0.93,
    tau=0.1,
    alpha=1.7,
    mask=0.8,
    vae_weight=1.3,
    target_noise=0.4,
    target_noise_clip=0.5,
)
TASK = Task(Toy())
# These programs run a few times: compile them in half the time.
QUICK_TO_COMPILE: Any = {"xla_backend_optimization_level": 0}


class Batch(NamedTuple):
    """A minibatch, `[batch, ...]`, with actions in units of the box."""

    obs: FloatArray
    action: FloatArray
    reward: FloatArray
    next_obs: FloatArray
    next_action: FloatArray
    terminated: Any
    truncated: Any


class Nets(NamedTuple):
    """What gradient steps change."""

    actor: Tree
    critics: Tree
    """both, stacked on a leading axis"""
    value: Tree
    vae: Tree
    target_actor: Tree
    target_critics: Tree


class Noises(NamedTuple):
    """Standard normal: of the smoothed target action, of the VAE's loss and of the candidate."""

    target: FloatArray
    vae: FloatArray
    candidate: FloatArray


# The networks.


def chosen(actor: Tree, obs: FloatArray) -> tuple[FloatArray, list[FloatArray]]:
    out, inputs = forward(actor["params"], obs, "relu")
    return np.tanh(out), inputs


def critic(critics: Tree, i: int) -> Tree:
    return jax.tree.map(lambda x: x[i], critics["params"])


def q_values(critics: Tree, obs: FloatArray, action: FloatArray) -> FloatArray:
    """`[2, batch]`"""
    inputs = np.concatenate([obs, action], axis=1)
    return np.stack([forward(critic(critics, i), inputs, "relu")[0][:, 0] for i in range(2)])


def state_value(value: Tree, obs: FloatArray) -> FloatArray:
    return forward(value["params"], obs, "relu")[0][:, 0]


class Coded(NamedTuple):
    """A pass through the VAE and all that its derivative needs."""

    action: FloatArray
    mean: FloatArray
    raw_log_std: FloatArray
    log_std: FloatArray
    noise: FloatArray
    encoder_inputs: list[FloatArray]
    decoder_inputs: list[FloatArray]


def coded(vae: Tree, obs: FloatArray, action: FloatArray, noise: FloatArray) -> Coded:
    out, encoder_inputs = forward(vae["encoder"]["params"], np.concatenate([obs, action], axis=1), "relu")
    mean, raw = out[:, :LATENT_DIM], out[:, LATENT_DIM:]
    log_std = np.minimum(np.maximum(raw, -4.0), 15.0)
    latent = mean + np.exp(log_std) * noise
    out, decoder_inputs = forward(vae["decoder"]["params"], np.concatenate([obs, latent], axis=1), "relu")
    return Coded(np.tanh(out), mean, raw, log_std, noise, encoder_inputs, decoder_inputs)


def coded_backward(
    vae: Tree, c: Coded, d_action: FloatArray, d_mean: FloatArray | float = 0.0, d_log_std: FloatArray | float = 0.0
) -> tuple[Tree, FloatArray]:
    """d loss / d reconstruction, and what else depends on the latent's mean and log standard deviation, -> the
    gradient of the VAE's weights and d loss / d the action that was encoded."""
    decoder, d_inputs = backward(vae["decoder"]["params"], c.decoder_inputs, d_action * (1.0 - c.action**2), "relu")
    d_latent = d_inputs[:, OBS_DIM:]
    d_mean = d_mean + d_latent
    inside = (c.raw_log_std > -4.0) & (c.raw_log_std < 15.0)
    d_raw = (d_log_std + d_latent * np.exp(c.log_std) * c.noise) * inside
    encoder, d_inputs = backward(
        vae["encoder"]["params"], c.encoder_inputs, np.concatenate([d_mean, d_raw], axis=1), "relu"
    )
    return {"encoder": {"params": encoder}, "decoder": {"params": decoder}}, d_inputs[:, OBS_DIM:]


# The five losses.


def smoothed_action(nets: Nets, batch: Batch, noise: FloatArray) -> FloatArray:
    scaled, bound = HYPERS.target_noise * noise, HYPERS.target_noise_clip
    cut = np.where(np.abs(scaled) > bound, np.sign(scaled) * bound, scaled)
    return np.minimum(np.maximum(chosen(nets.target_actor, batch.next_obs)[0] + cut, -1.0), 1.0)


def bellman(critics: Tree, batch: Batch, next_action: FloatArray) -> FloatArray:
    # Running out of time ends nothing: only `terminated` cuts the bootstrap.
    next_q = np.min(q_values(critics, batch.next_obs, next_action), axis=0)
    return batch.reward + HYPERS.discount * (1.0 - batch.terminated) * next_q


def critic_reference(critics: Tree, batch: Batch, target: FloatArray) -> tuple[float, Tree]:
    loss, grads = 0.0, []
    for i in range(2):
        q, inputs = forward(critic(critics, i), np.concatenate([batch.obs, batch.action], axis=1), "relu")
        error = q[:, 0] - target
        loss += np.mean(error**2)
        grads.append(backward(critic(critics, i), inputs, 2.0 * error[:, None] / len(error), "relu")[0])
    return loss, {"params": jax.tree.map(lambda *of_each: np.stack(of_each), *grads)}


def value_reference(value: Tree, batch: Batch, target: FloatArray) -> tuple[float, Tree]:
    v, inputs = forward(value["params"], batch.obs, "relu")
    error = v[:, 0] - target
    grads = backward(value["params"], inputs, 2.0 * error[:, None] / len(error), "relu")[0]
    return np.mean(error**2), {"params": grads}


def vae_reference(vae: Tree, batch: Batch, noise: FloatArray, weight: FloatArray) -> tuple[float, Tree]:
    """The fourth and the fifth loss, reconstruction and divergence, in their sum."""
    c = coded(vae, batch.obs, batch.action, noise)
    error, per_sample = c.action - batch.action, weight[:, None]
    variance = np.exp(2.0 * c.log_std)
    kl = -0.5 * np.mean(1.0 + np.log(variance) - c.mean**2 - variance)
    grads, _ = coded_backward(
        vae,
        c,
        d_action=2.0 * per_sample * error / error.size,
        d_mean=0.5 * c.mean / c.mean.size,
        d_log_std=0.5 * (variance - 1.0) / c.mean.size,
    )
    return np.mean(per_sample * error**2) + 0.5 * kl, grads


class Choice(NamedTuple):
    """What the actor is drawn to, and by what it was chosen."""

    coded: Coded | None
    """None where the candidate is a sample"""
    offered: FloatArray
    takes_offered: Any
    """`[batch]` bool"""
    q_offered: FloatArray
    weight: FloatArray


def choice(form: str, nets: Nets, batch: Batch, v: FloatArray, noise: FloatArray) -> Choice:
    if form == "sampled":
        latent = np.minimum(np.maximum(noise, -0.5), 0.5)
        inputs = np.concatenate([batch.obs, latent], axis=1)
        c, offered = None, np.tanh(forward(nets.vae["decoder"]["params"], inputs, "relu")[0])
    else:
        c = coded(nets.vae, batch.obs, chosen(nets.actor, batch.obs)[0], noise)
        offered = c.action
    q_data, q_offered = (q_values(nets.critics, batch.obs, action)[0] for action in (batch.action, offered))
    some = (q_offered >= v) | (q_data > v)
    return Choice(c, offered, q_offered - v >= q_data - v, q_offered, HYPERS.mask * some)


def actor_reference(
    form: str, nets: Nets, batch: Batch, v: FloatArray, noise: FloatArray, held: tuple[float, Choice] | None = None
) -> tuple[float, Tree]:
    """The actor's loss and its gradient. `held` is (lambda, choice) from elsewhere, where those are to be constants."""
    action, actor_inputs = chosen(nets.actor, batch.obs)
    first = critic(nets.critics, 0)
    q, critic_inputs = forward(first, np.concatenate([batch.obs, action], axis=1), "relu")
    scale, made = held or (HYPERS.alpha / np.mean(np.abs(q)), choice(form, nets, batch, v, noise))
    offered = made.offered
    if held is not None and form == "authors' code":  # the comparison is held, the reconstruction moves
        offered = choice(form, nets, batch, v, noise).offered
    taken = made.takes_offered[:, None]
    distance = action - np.where(taken, offered, batch.action)
    loss = -scale * np.mean(q) + np.mean(made.weight[:, None] * distance**2)

    d_action = backward(first, critic_inputs, np.full_like(q, -scale / len(q)), "relu")[1][:, OBS_DIM:]
    d_distance = 2.0 * made.weight[:, None] * distance / distance.size
    d_action = d_action + d_distance
    if form == "authors' code":
        assert made.coded is not None
        d_action = d_action + coded_backward(nets.vae, made.coded, -d_distance * taken)[1]
    grads = backward(nets.actor["params"], actor_inputs, d_action * (1.0 - action**2), "relu")[0]
    return loss, {"params": grads}


# Problems.


def random_nets(rng: np.random.Generator) -> Nets:
    everywhere = rng.normal(size=(99, OBS_DIM)), rng.uniform(-1.0, 1.0, (99, ACTION_DIM))

    def around_one(net: Tree, *inputs: FloatArray) -> Tree:
        # Each critic is the smaller one somewhere, V is on both sides of both, and no mean of them is near 0.
        net["Dense_2"]["bias"] += exact(1.0 - np.mean(forward(net, np.concatenate(inputs, axis=1), "relu")[0]))
        return jax.tree.map(exact, net)

    def critics() -> Tree:
        both = [around_one(mlp(rng, OBS_DIM + ACTION_DIM, *CRITIC, 1), *everywhere) for _ in range(2)]
        return {"params": jax.tree.map(lambda *of_each: exact(np.stack(of_each)), *both)}

    def actor() -> Tree:
        net = mlp(rng, OBS_DIM, *ACTOR, ACTION_DIM)
        net["Dense_2"]["kernel"] *= 2.0  # so that many actions lie near the edges of the box
        return {"params": net}

    encoder = mlp(rng, OBS_DIM + ACTION_DIM, *VAE, 2 * LATENT_DIM)
    encoder["Dense_2"]["bias"][LATENT_DIM:] -= 2.5  # so that some log standard deviations are cut off from below
    encoder["Dense_2"]["kernel"][:, LATENT_DIM:] *= 2.0
    vae = {
        "encoder": {"params": jax.tree.map(exact, encoder)},
        "decoder": {"params": mlp(rng, OBS_DIM + LATENT_DIM, *VAE, ACTION_DIM)},
    }
    value = {"params": around_one(mlp(rng, OBS_DIM, *VALUE, 1), everywhere[0])}
    return Nets(actor(), critics(), value, vae, actor(), critics())


def random_batch(rng: np.random.Generator, size: int) -> Batch:
    return Batch(
        obs=normal(rng, size, OBS_DIM),
        action=exact(rng.uniform(-1.0, 1.0, size=(size, ACTION_DIM))),
        reward=normal(rng, size),
        next_obs=normal(rng, size, OBS_DIM),
        next_action=exact(rng.uniform(-1.0, 1.0, size=(size, ACTION_DIM))),
        terminated=rng.random(size) < 0.4,
        truncated=rng.random(size) < 0.4,
    )


def problem(seed: int) -> tuple[Nets, Batch, Noises]:
    rng = np.random.default_rng(seed)
    noises = Noises(*(normal(rng, BATCH, dim) for dim in (ACTION_DIM, LATENT_DIM, LATENT_DIM)))
    return random_nets(rng), random_batch(rng, BATCH), noises


def weight_of(nets: Nets, batch: Batch) -> FloatArray:
    """Of the VAE's reconstruction, `[batch]`."""
    q = q_values(nets.critics, batch.obs, batch.action)[0]
    weight: FloatArray = np.where(q > state_value(nets.value, batch.obs), HYPERS.vae_weight, 0.0)
    return weight


def networks() -> a2pr.Networks:
    return a2pr.Networks(
        offline_td3.Networks(MLP((*ACTOR, ACTION_DIM)), MLP((*CRITIC, 1))),
        MLP((*VALUE, 1)),
        MLP((*VAE, 2 * LATENT_DIM)),
        MLP((*VAE, ACTION_DIM)),
    )


@functools.cache
def fresh_state() -> a2pr.State:
    """A state whose optimisers fit the networks above."""
    state: a2pr.State = jax.jit(lambda key: a2pr.make(FORMS["authors' code"]).init(key, TASK, HYPERS))(
        jax.random.key(0)
    )
    return state


def learner(nets: Nets, dtype: Any) -> a2pr.State:
    """The learner's state with these networks and fresh optimisers."""
    return with_adam(a2pr.State(**cast(nets._asdict(), dtype)))


# Losses and gradients.


@functools.partial(jax.jit, compiler_options=QUICK_TO_COMPILE)
def jax_losses(state: a2pr.State, batch: datasets.Batch, noises: Noises, hypers: a2pr.Hypers) -> Any:
    """All losses of the learner and their gradients, with both targets as the last entry."""
    nets, params = networks(), params_of(state)
    next_action = smoothed(nets.td3, state.target_actor, batch.next_obs, noises.target, hypers)
    target = a2pr.q_target(nets, state.target_critics, batch, next_action, hypers)
    online = a2pr.q_target(nets, params.critics, batch, next_action, hypers)
    with_aux = functools.partial(jax.value_and_grad, has_aux=True)
    (of_critic, _), critic_grads = with_aux(a2pr.critic_loss)(params.critics, nets, batch, target)
    (of_value, v), value_grads = with_aux(a2pr.value_loss)(params.value, nets, batch, jnp.minimum(online, target))
    q_data = first_q(nets.td3.critic, params.critics, batch.obs, batch.action)
    weight = hypers.vae_weight * (q_data > v)
    (of_vae, _), vae_grads = with_aux(a2pr.vae_loss)(params.vae, nets, batch, noises.vae, weight)
    of_actor = {
        form: jax.value_and_grad(a2pr.actor_loss)(
            params.actor, config, nets, state, batch, q_data, v, noises.candidate, hypers
        )
        for form, config in FORMS.items()
    }
    return (of_critic, critic_grads), (of_value, value_grads), (of_vae, vae_grads), of_actor, (target, online)


def want_losses(nets: Nets, batch: Batch, noises: Noises) -> Any:
    next_action = smoothed_action(nets, batch, noises.target)
    target, online = (bellman(critics, batch, next_action) for critics in (nets.target_critics, nets.critics))
    v = state_value(nets.value, batch.obs)
    return (
        critic_reference(nets.critics, batch, target),
        value_reference(nets.value, batch, np.minimum(target, online)),
        vae_reference(nets.vae, batch, noises.vae, weight_of(nets, batch)),
        {form: actor_reference(form, nets, batch, v, noises.candidate) for form in FORMS},
        (target, online),
    )


def compare(seed: int, dtype: Any, tolerance: float) -> None:
    """All losses and gradients of the learner, computed in `dtype`, against the reference."""
    nets, batch, noises = problem(seed)
    inputs = datasets.Batch(*cast(tuple(batch), dtype)), Noises(*cast(tuple(noises), dtype)), cast(HYPERS, dtype)
    with jax.default_matmul_precision("highest"):
        got = jax_losses(learner(nets, dtype), *inputs)
    assert_close(got, want_losses(nets, batch, noises), tolerance, dtype)


def test_losses_and_gradients_in_float64() -> None:
    with jax.enable_x64(True):
        for seed in range(5):
            compare(seed, jnp.float64, 1e-11)


def test_losses_and_gradients_in_float32() -> None:
    for seed in range(5):
        compare(seed, jnp.float32, 1e-5)


def test_the_three_forms_differ_where_they_should() -> None:
    nets, batch, noises = problem(0)
    v = state_value(nets.value, batch.obs)
    loss, grads = {}, {}
    for form in FORMS:
        loss[form], of_form = actor_reference(form, nets, batch, v, noises.candidate)
        grads[form] = of_form["params"]["Dense_0"]["kernel"]
    assert loss["detached"] == loss["authors' code"] != loss["sampled"]
    size = np.max(np.abs(grads["detached"]))
    for a, b in (("detached", "authors' code"), ("detached", "sampled"), ("authors' code", "sampled")):
        assert np.max(np.abs(grads[a] - grads[b])) > 0.01 * size, (a, b)


def test_the_samples_reach_every_branch() -> None:
    reached: dict[str, int] = {}
    for seed in range(5):
        nets, batch, noises = problem(seed)
        scaled, bound = HYPERS.target_noise * noises.target, HYPERS.target_noise_clip
        free = chosen(nets.target_actor, batch.next_obs)[0] + np.clip(scaled, -bound, bound)
        next_action = smoothed_action(nets, batch, noises.target)
        target, online = (bellman(critics, batch, next_action) for critics in (nets.target_critics, nets.critics))
        next_1, next_2 = q_values(nets.target_critics, batch.next_obs, next_action)
        v, q_data = state_value(nets.value, batch.obs), q_values(nets.critics, batch.obs, batch.action)[0]
        cases: dict[str, Any] = {
            "noise outside of its bounds": np.abs(scaled) > bound,
            "smoothed action outside of the box": np.abs(free) > 1.0,
            "first target smaller": next_1 < next_2,
            "second target smaller": next_2 < next_1,
            "online target smaller": online < target,
            "target of targets smaller": target < online,
            "terminated only": batch.terminated & ~batch.truncated,
            "truncated only": batch.truncated & ~batch.terminated,
        }
        for form in FORMS:
            made = choice(form, nets, batch, v, noises.candidate)
            cases |= {
                f"{form}: takes what is offered": made.takes_offered,
                f"{form}: only the data are better than the value": (made.q_offered < v) & (q_data > v),
                f"{form}: only what is offered is": (made.q_offered > v) & (q_data < v),
                f"{form}: both are, data better": (made.q_offered > v) & (q_data > v) & ~made.takes_offered,
                f"{form}: neither is": made.weight == 0.0,
            }
            if made.coded is not None:
                cases |= {
                    f"{form}: log standard deviation below its bound": made.coded.raw_log_std < -4.0,
                    f"{form}: log standard deviation inside": made.coded.raw_log_std > -4.0,
                }
        for name, hits in cases.items():
            reached[name] = reached.get(name, 0) + int(np.sum(hits))
    assert min(reached.values()) >= 10, reached


def test_the_reference_has_the_gradient_of_its_own_losses() -> None:
    nets, batch, noises = problem(7)
    rng = np.random.default_rng(8)
    target, v, weight = normal(rng, BATCH), state_value(nets.value, batch.obs), weight_of(nets, batch)
    scale = HYPERS.alpha / np.mean(np.abs(q_values(nets.critics, batch.obs, chosen(nets.actor, batch.obs)[0])[0]))

    def of_actor(form: str) -> Any:
        # lambda and the comparisons are constants of the gradient, so they are of the difference.
        held = scale, choice(form, nets, batch, v, noises.candidate)
        return lambda actor: actor_reference(form, nets._replace(actor=actor), batch, v, noises.candidate, held)

    references: dict[str, tuple[Any, Tree]] = {
        "critics": (lambda critics: critic_reference(critics, batch, target), nets.critics),
        "value": (lambda value: value_reference(value, batch, target), nets.value),
        "vae": (lambda vae: vae_reference(vae, batch, noises.vae, weight), nets.vae),
        **{form: (of_actor(form), nets.actor) for form in FORMS},
    }
    for name, (reference, params) in references.items():
        grads = reference(params)[1]
        for _ in range(5):
            direction = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
            numeric = slope(lambda tree, of=reference: of(tree)[0], params, direction, step=1e-7)
            assert numeric == pytest.approx(dot(grads, direction), rel=1e-5), name


def test_the_log_standard_deviation_is_bounded_on_both_sides() -> None:
    nets, batch, _ = problem(0)
    encoder = nets.vae["encoder"]["params"]
    encoder["Dense_2"]["bias"][LATENT_DIM:] = [-99.0, -4.1, -3.9, 14.9, 15.1, 99.0]
    encoder["Dense_2"]["kernel"][:, LATENT_DIM:] = 0.0
    encode = jax.jit(functools.partial(a2pr.encode, networks()))
    _, log_std = encode(cast(nets.vae, jnp.float32), *cast((batch.obs, batch.action), jnp.float32))
    np.testing.assert_allclose(log_std, np.tile([-4.0, -4.0, -3.9, 14.9, 15.0, 15.0], (BATCH, 1)), rtol=1e-6)


# Whole updates, with everything that surrounds the losses.

ROWS, UPDATE_BATCH = 24, 16
UPDATES = (3, 4, 5, 6)


def records(rng: np.random.Generator) -> Records:
    """Six episodes of four transitions, which terminate, are truncated, or neither."""
    batch = random_batch(rng, ROWS)
    last = np.arange(ROWS) % 4 == 3
    return Records(
        obs=2.0 * batch.obs + 0.7,
        action=LOW + (HIGH - LOW) * rng.uniform(size=(ROWS, ACTION_DIM)),
        reward=batch.reward,
        next_obs=batch.next_obs,
        next_action=LOW + (HIGH - LOW) * rng.uniform(size=(ROWS, ACTION_DIM)),
        terminated=last & (np.arange(ROWS) < 12),
        truncated=last & (np.arange(ROWS) >= 12),
        episode=np.arange(ROWS) // 4,
        episode_return=np.zeros(6),
        complete=np.ones(6, bool),
    )


class Case(NamedTuple):
    form: str
    policy_delay: int
    normalize_obs: bool


CASES = {
    "authors' code": Case("authors' code", 2, True),
    "detached": Case("detached", 3, True),
    "sampled": Case("sampled", 2, False),
}


def table(dataset: Dataset, normalize_obs: bool) -> Batch:
    """The dataset's columns in float64."""
    rows = np.asarray(dataset.rows, np.float64)
    obs, action, reward, next_obs, next_action, ends = np.split(rows, np.cumsum([3, 3, 1, 3, 3]), axis=1)
    if normalize_obs:
        mean, std = np.asarray(dataset.obs_mean, np.float64), np.asarray(dataset.obs_std, np.float64)
        obs, next_obs = (obs - mean) / (std + STD_FLOOR), (next_obs - mean) / (std + STD_FLOOR)
    return Batch(obs, action, reward[:, 0], next_obs, next_action, ends[:, 0] > 0.5, ends[:, 1] > 0.5)


class Trace:
    """The reference's own training: networks, optimisers, and the order of the five steps."""

    def __init__(self, nets: Nets, case: Case) -> None:
        self.nets, self.case = nets, case
        self.adams = {name: Adam(getattr(nets, name)) for name in ("critics", "value", "vae", "actor")}

    def step(self, name: str, grads: Tree, learning_rate: float) -> None:
        moved = self.adams[name].step(getattr(self.nets, name), grads, learning_rate)
        self.nets = self.nets._replace(**{name: moved})

    def update(self, batch: Batch, noises: Noises, index: int) -> dict[str, float]:
        """One gradient step; returns what the learner must report."""
        # (1) the critics
        next_action = smoothed_action(self.nets, batch, noises.target)
        y = bellman(self.nets.target_critics, batch, next_action)
        q = float(np.mean(q_values(self.nets.critics, batch.obs, batch.action)))
        of_critics, grads = critic_reference(self.nets.critics, batch, y)
        self.step("critics", grads, HYPERS.critic_learning_rate)
        # (2) the value, with the new critics and the same action; its estimates from before serve below
        t = bellman(self.nets.critics, batch, next_action)
        v = state_value(self.nets.value, batch.obs)
        weight = weight_of(self.nets, batch)
        of_value, grads = value_reference(self.nets.value, batch, np.minimum(t, y))
        self.step("value", grads, HYPERS.value_learning_rate)
        # (3) the VAE
        c = coded(self.nets.vae, batch.obs, batch.action, noises.vae)
        of_vae, grads = vae_reference(self.nets.vae, batch, noises.vae, weight)
        reconstruction = float(np.mean(weight[:, None] * (c.action - batch.action) ** 2))
        self.step("vae", grads, HYPERS.vae_learning_rate)
        # (4) the actor, with all that is new, and (5) the targets
        if index % self.case.policy_delay == 0:
            grads = actor_reference(self.case.form, self.nets, batch, v, noises.candidate)[1]
            self.step("actor", grads, HYPERS.actor_learning_rate)
            for target, online in (("target_actor", self.nets.actor), ("target_critics", self.nets.critics)):
                old = getattr(self.nets, target)
                mixed = jax.tree.map(lambda x, y: (1.0 - HYPERS.tau) * x + HYPERS.tau * y, old, online)
                self.nets = self.nets._replace(**{target: mixed})
        return {
            "critic_loss": of_critics,
            "q": q,
            "value_loss": of_value,
            "reconstruction_loss": reconstruction,
            "kl": (of_vae - reconstruction) / 0.5,
            "better_than_value": float(np.mean(weight > 0.0)),
        }


@pytest.mark.parametrize("name", CASES)
def test_whole_updates(name: str) -> None:
    case = CASES[name]
    config = a2pr.Config(
        **SIZES,
        batch_size=UPDATE_BATCH,
        policy_delay=case.policy_delay,
        normalize_obs=case.normalize_obs,
        detach_reconstruction=case.form == "detached",
        sample_candidates=case.form == "sampled",
    )
    algorithm = a2pr.make(config)
    rng = np.random.default_rng(3)
    nets, recorded = random_nets(rng), records(rng)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        built = datasets.build("toy", recorded, TASK.env.action_space, source="a test")
        task = Task(Toy(), cast(built, jnp.float64))  # so that nothing is computed in float32
        state = learner(nets, jnp.float64)
        hypers = cast(HYPERS, jnp.float64)
        update = jax.jit(
            lambda key, state, clock: algorithm.update(key, task, state, hypers, clock),
            compiler_options=QUICK_TO_COMPILE,
        )
        trace = Trace(nets, case)
        for index in UPDATES:
            key = jax.random.key(index)
            batch_key, *noise_keys = jax.random.split(key, 4)
            drawn = np.asarray(jax.random.randint(batch_key, (UPDATE_BATCH,), 0, ROWS))
            batch = Batch(*(column[drawn] for column in table(built, case.normalize_obs)))
            dims = (ACTION_DIM, LATENT_DIM, LATENT_DIM)
            draws = zip(noise_keys, dims, strict=True)
            noises = Noises(*(np.asarray(jax.random.normal(key, (UPDATE_BATCH, dim))) for key, dim in draws))
            want_metrics = trace.update(batch, noises, index)
            state, metrics = update(key, state, Clock(jnp.int32(index), jnp.asarray(0.5)))
            moved_to = params_of(state)
            got = Nets(*(getattr(moved_to, field) for field in Nets._fields))
            assert_moved(got, trace.nets, nets, 1e-7)
            assert set(metrics) == set(want_metrics)
            for metric, want in want_metrics.items():
                assert float(metrics[metric]) == pytest.approx(want, rel=1e-8), metric

        obs = jnp.asarray(recorded.obs[0])
        act, value = jax.jit(
            lambda state, obs: tuple(f(key, task, state, obs) for f in (algorithm.act, algorithm.value))
        )(state, obs)

    # Evaluation plays the actor's action in the environment's units, and values it by the smaller critic.
    seen = table(built, case.normalize_obs).obs[:1]
    best = chosen(trace.nets.actor, seen)[0]
    np.testing.assert_allclose(act, LOW + (HIGH - LOW) * (best[0] + 1.0) / 2.0, rtol=1e-6)
    smaller = float(np.min(q_values(trace.nets.critics, seen, best)))
    assert float(value) == pytest.approx(smaller, rel=1e-6)


# Around the updates.


def test_starts_with_critics_that_differ_and_with_targets_that_do_not() -> None:
    state = params_of(fresh_state())
    for leaf in jax.tree.leaves(state.critics):
        assert leaf.shape[0] == 2 and not np.any(leaf[0] == leaf[1])
    chex.assert_trees_all_equal((state.actor, state.critics), (state.target_actor, state.target_critics))


def test_the_networks_have_the_sizes_of_the_config() -> None:
    def sizes(net: Tree) -> list[tuple[int, ...]]:
        return [layer["kernel"].shape[-2:] for layer in net["params"].values()]

    shapes = jax.eval_shape(lambda key: a2pr.make(a2pr.Config()).init(key, TASK, HYPERS), jax.random.key(0))
    shapes = params_of(shapes)
    assert sizes(shapes.actor) == [(3, 256), (256, 256), (256, 256), (256, 3)]
    assert sizes(shapes.critics) == [(6, 256), *[(256, 256)] * 3, (256, 1)]
    assert sizes(shapes.value) == [(3, 256), *[(256, 256)] * 3, (256, 1)]
    # Mean and log standard deviation of a latent of twice as many dimensions as the action has.
    assert sizes(shapes.vae["encoder"]) == [(6, 750), (750, 750), (750, 12)]
    assert sizes(shapes.vae["decoder"]) == [(9, 750), (750, 750), (750, 3)]


def test_what_cannot_work_is_refused_by_name() -> None:
    for name in ("batch_size", "policy_delay"):
        with pytest.raises(UserError, match=f"^{name}=0 must be at least 1"):
            a2pr.make(a2pr.Config(**{name: 0}))


def test_the_authors_settings_are_those_of_three_datasets_alone() -> None:
    spec = algorithms.get("a2pr")
    published = {
        "mujoco/halfcheetah/medium-v0": (40.0, 1.0, 1.0, 0.99),
        "hopper_medium-v2.hdf5": (2.5, 1.0, 0.4, 0.995),
        "mujoco/walker2d/medium-v0": (2.5, 1.5, 1.0, 0.99),
    }
    for dataset_id, (alpha, vae_weight, mask, discount) in published.items():
        preset = spec.preset("mujoco/Hopper-v5", dataset_id)
        want = a2pr.Hypers(alpha=alpha, vae_weight=vae_weight, mask=mask, discount=discount)
        assert (preset.config, preset.hypers) == (a2pr.Config(), want)
        assert "ltlhuuu/A2PR" in preset.source
    for dataset_id in ("mujoco/hopper/medium-replay-v0", "D4RL/antmaze/umaze-v2", "gymnax/Pendulum-v1/medium"):
        assert spec.preset("mujoco/Hopper-v5", dataset_id).source == "defaults"
