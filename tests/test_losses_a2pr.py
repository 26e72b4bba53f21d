"""A2PR against an independent reference in NumPy and float64: its five losses, their whole gradients, whole updates.

The reference is written from the five steps of the authors' code as the specification lists them. Its gradients, the
one of the actor through the VAE's encoder and decoder included, are complex steps.
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
    assert_different,
    bellman,
    endings,
    polyak,
    q_values,
    random_batch,
    random_critics,
    smallest,
    squared_errors,
    state_value,
)
from numpy_nets import Adam, FloatArray, Toy, Tree, assert_close, assert_moved, cast, exact, mlp, normal, perceptron
from numpy_offline import SOMEWHERE, assert_evaluates, compiled, drawn, rows_of
from reference import absolute, assert_reached, computing, held, precisions, value_and_grad
from trained_states import params_of, with_adam

from envs.datasets import Batch
from rlsuite import algorithms
from rlsuite.algorithms.offline import a2pr
from rlsuite.core import Clock, Task
from rlsuite.errors import UserError
from rlsuite.pieces import deterministic
from rlsuite.pieces import vae as vaes
from rlsuite.pieces.critics import first_q
from rlsuite.pieces.deterministic import smoothed_action as smoothed
from rlsuite.pieces.networks import MLP

LATENT_DIM = 2 * ACTION_DIM
ACTOR, CRITIC, VALUE, VAE = (6, 5), (5, 7), (4, 6), (7, 8)
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
SEEDS = range(5)
# These programs run a few times: compile them in half the time.
QUICK_TO_COMPILE: Any = {"xla_backend_optimization_level": 0}


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


# The five losses.


def chosen(actor: Tree, obs: FloatArray) -> FloatArray:
    return np.tanh(perceptron(actor["params"], obs, "relu"))


class Coded(NamedTuple):
    """A pass through the VAE."""

    action: FloatArray
    mean: FloatArray
    log_std: FloatArray
    free_log_std: FloatArray
    """before its bounds"""


def decoded(vae: Tree, obs: FloatArray, latent: FloatArray) -> FloatArray:
    return np.tanh(perceptron(vae["decoder"]["params"], np.concatenate([obs, latent], axis=1), "relu"))


def coded(vae: Tree, obs: FloatArray, action: FloatArray, noise: FloatArray) -> Coded:
    out = perceptron(vae["encoder"]["params"], np.concatenate([obs, action], axis=1), "relu")
    mean, free = out[:, :LATENT_DIM], out[:, LATENT_DIM:]
    log_std = np.minimum(np.maximum(free, -4.0), 15.0)
    return Coded(decoded(vae, obs, mean + np.exp(log_std) * noise), mean, log_std, free)


def smoothed_action(nets: Nets, batch: Batch, noise: FloatArray) -> FloatArray:
    scaled, bound = HYPERS.target_noise * noise, HYPERS.target_noise_clip
    cut = np.where(np.abs(scaled) > bound, np.sign(scaled) * bound, scaled)
    return np.minimum(np.maximum(chosen(nets.target_actor, batch.next_obs) + cut, -1.0), 1.0)


def targets(nets: Nets, batch: Batch, noise: FloatArray) -> tuple[FloatArray, FloatArray]:
    """What the target critics and the critics themselves make of the same next action, both `[batch]`."""
    next_action = smoothed_action(nets, batch, noise)
    by_targets, online = (
        bellman(batch, HYPERS.discount, smallest(critics, batch.next_obs, next_action))
        for critics in (nets.target_critics, nets.critics)
    )
    return by_targets, online


def value_loss(value: Tree, batch: Batch, target: FloatArray) -> Any:
    return np.mean((state_value(value, batch.obs) - target) ** 2)


def vae_parts(vae: Tree, batch: Batch, noise: FloatArray, weight: FloatArray) -> tuple[Any, Any]:
    """The fourth and the fifth loss: reconstruction and divergence."""
    c = coded(vae, batch.obs, batch.action, noise)
    variance = np.exp(2.0 * c.log_std)
    kl = -0.5 * np.mean(1.0 + np.log(variance) - c.mean**2 - variance)
    return np.mean(weight[:, None] * (c.action - batch.action) ** 2), kl


def vae_loss(vae: Tree, batch: Batch, noise: FloatArray, weight: FloatArray) -> Any:
    reconstruction, kl = vae_parts(vae, batch, noise, weight)
    return reconstruction + 0.5 * kl


def candidate(form: str, actor: Tree, vae: Tree, obs: FloatArray, noise: FloatArray) -> FloatArray:
    """The VAE's alternative to the action of the data."""
    if form == "sampled":
        return decoded(vae, obs, np.minimum(np.maximum(noise, -0.5), 0.5))
    reconstruction = coded(vae, obs, chosen(actor, obs), noise).action
    return held(reconstruction) if form == "detached" else reconstruction


class Choice(NamedTuple):
    """By what the actor's goal is chosen, `[batch]`."""

    takes_offered: Any
    q_offered: FloatArray
    weight: FloatArray


def choice(nets: Nets, batch: Batch, v: FloatArray, offered: FloatArray) -> Choice:
    q_data, q_offered = (q_values(nets.critics, batch.obs, action)[0] for action in (batch.action, offered))
    some = (q_offered >= v) | (q_data > v)
    return Choice(q_offered - v >= q_data - v, q_offered, HYPERS.mask * some)


def actor_loss(actor: Tree, form: str, nets: Nets, batch: Batch, v: FloatArray, noise: FloatArray) -> Any:
    action = chosen(actor, batch.obs)
    q = q_values(nets.critics, batch.obs, action)[0]
    scale = HYPERS.alpha / held(np.mean(absolute(q)))
    offered = candidate(form, actor, nets.vae, batch.obs, noise)
    made = choice(nets, batch, v, held(offered))
    distance = action - np.where(made.takes_offered[:, None], offered, batch.action)
    return -scale * np.mean(q) + np.mean(made.weight[:, None] * distance**2)


# Problems.


def random_nets(rng: np.random.Generator) -> Nets:
    def critics() -> Tree:
        # V is on both sides of both, and no mean of them is near 0.
        return random_critics(rng, 2, CRITIC, mean=1.0)

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
    value = mlp(rng, OBS_DIM, *VALUE, 1)
    value["Dense_2"]["bias"] += 1.0 - np.mean(perceptron(value, rng.normal(size=(99, OBS_DIM)), "relu"))
    return Nets(actor(), critics(), {"params": jax.tree.map(exact, value)}, vae, actor(), critics())


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
        deterministic.Networks(MLP((*ACTOR, ACTION_DIM)), MLP((*CRITIC, 1))),
        MLP((*VALUE, 1)),
        vaes.VAE(MLP((*VAE, 2 * LATENT_DIM)), MLP((*VAE, ACTION_DIM))),
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
def jax_losses(state: a2pr.State, batch: Batch, noises: Noises, hypers: a2pr.Hypers) -> Any:
    """All losses of the learner and their gradients, with both targets as the last entry."""
    nets, params = networks(), params_of(state)
    next_action = smoothed(nets.td3, state.target_actor, batch.next_obs, noises.target, hypers)
    target = a2pr.q_target(nets, state.target_critics, batch, next_action, hypers)
    online = a2pr.q_target(nets, params.critics, batch, next_action, hypers)
    with_aux = functools.partial(jax.value_and_grad, has_aux=True)
    (critic_loss, _), critic_grads = with_aux(a2pr.critic_loss)(params.critics, nets, batch, target)
    (value_loss, v), value_grads = with_aux(a2pr.value_loss)(params.value, nets, batch, jnp.minimum(online, target))
    q_data = first_q(nets.td3.critic, params.critics, batch.obs, batch.action)
    weight = hypers.vae_weight * (q_data > v)
    (vae_loss, _), vae_grads = with_aux(vaes.loss)(params.vae, nets.vae, batch.obs, batch.action, noises.vae, weight)
    actor_losses = {
        form: jax.value_and_grad(a2pr.actor_loss)(
            params.actor, config, nets, state, batch, q_data, v, noises.candidate, hypers
        )
        for form, config in FORMS.items()
    }
    return (critic_loss, critic_grads), (value_loss, value_grads), (vae_loss, vae_grads), actor_losses, (target, online)


@functools.cache
def want_losses(seed: int) -> Any:
    nets, batch, noises = problem(seed)
    target, online = targets(nets, batch, noises.target)
    v, weight = state_value(nets.value, batch.obs), weight_of(nets, batch)
    return (
        value_and_grad(lambda critics: squared_errors(critics, batch, target), nets.critics),
        value_and_grad(lambda value: value_loss(value, batch, np.minimum(target, online)), nets.value),
        value_and_grad(lambda vae: vae_loss(vae, batch, noises.vae, weight), nets.vae),
        {
            form: value_and_grad(lambda a, form=form: actor_loss(a, form, nets, batch, v, noises.candidate), nets.actor)
            for form in FORMS
        },
        (target, online),
    )


@precisions(in_float64=1e-11)
def test_losses_and_gradients(dtype: Any, tolerance: float) -> None:
    for seed in SEEDS:
        nets, batch, noises = problem(seed)
        with computing(dtype):
            got = jax_losses(learner(nets, dtype), *cast((batch, noises, HYPERS), dtype))
        assert_close(got, want_losses(seed), tolerance, dtype)


def test_the_three_forms_differ_where_they_should() -> None:
    form_losses = want_losses(0)[3]
    loss = {form: form_losses[form][0] for form in FORMS}
    grads = {form: form_losses[form][1]["params"]["Dense_0"]["kernel"] for form in FORMS}
    assert loss["detached"] == loss["authors' code"] != loss["sampled"]
    size = np.max(np.abs(grads["detached"]))
    for a, b in (("detached", "authors' code"), ("detached", "sampled"), ("authors' code", "sampled")):
        assert np.max(np.abs(grads[a] - grads[b])) > 0.01 * size, (a, b)


def cases_of(seed: int) -> dict[str, Any]:
    """Which samples of a problem reach which branch."""
    nets, batch, noises = problem(seed)
    scaled, bound = HYPERS.target_noise * noises.target, HYPERS.target_noise_clip
    free = chosen(nets.target_actor, batch.next_obs) + np.clip(scaled, -bound, bound)
    target, online = targets(nets, batch, noises.target)
    next_1, next_2 = q_values(nets.target_critics, batch.next_obs, smoothed_action(nets, batch, noises.target))
    v, q_data = state_value(nets.value, batch.obs), q_values(nets.critics, batch.obs, batch.action)[0]
    free_log_std = coded(nets.vae, batch.obs, chosen(nets.actor, batch.obs), noises.candidate).free_log_std
    cases = {
        "noise outside of its bounds": np.abs(scaled) > bound,
        "smoothed action outside of the box": np.abs(free) > 1.0,
        "first target smaller": next_1 < next_2,
        "second target smaller": next_2 < next_1,
        "online target smaller": online < target,
        "target of targets smaller": target < online,
        "log standard deviation below its bound": free_log_std < -4.0,
        "log standard deviation inside": free_log_std > -4.0,
        **endings(batch),
    }
    for form in FORMS:
        made = choice(nets, batch, v, candidate(form, nets.actor, nets.vae, batch.obs, noises.candidate))
        cases |= {
            f"{form}: takes what is offered": made.takes_offered,
            f"{form}: only the data are better than the value": (made.q_offered < v) & (q_data > v),
            f"{form}: only what is offered is": (made.q_offered > v) & (q_data < v),
            f"{form}: both are, data better": (made.q_offered > v) & (q_data > v) & ~made.takes_offered,
            f"{form}: neither is": made.weight == 0.0,
        }
    return cases


def test_the_samples_reach_every_branch() -> None:
    assert_reached(map(cases_of, SEEDS), 10)


def test_the_log_standard_deviation_is_bounded_on_both_sides() -> None:
    nets, batch, _ = problem(0)
    encoder = nets.vae["encoder"]["params"]
    encoder["Dense_2"]["bias"][LATENT_DIM:] = [-99.0, -4.1, -3.9, 14.9, 15.1, 99.0]
    encoder["Dense_2"]["kernel"][:, LATENT_DIM:] = 0.0
    encode = jax.jit(networks().vae.encode)
    _, log_std = encode(cast(nets.vae, jnp.float32), *cast((batch.obs, batch.action), jnp.float32))
    np.testing.assert_allclose(log_std, np.tile([-4.0, -4.0, -3.9, 14.9, 15.0, 15.0], (BATCH, 1)), rtol=1e-6)


# Whole updates, with everything that surrounds the losses.

UPDATE_BATCH = 16
UPDATES = (3, 4, 5, 6)


class Case(NamedTuple):
    form: str
    policy_delay: int
    normalize_obs: bool


CASES = {
    "authors' code": Case("authors' code", 2, True),
    "detached": Case("detached", 3, True),
    "sampled": Case("sampled", 2, False),
}


class Trace:
    """The reference's own training: networks, optimisers, and the order of the five steps."""

    def __init__(self, nets: Nets, case: Case) -> None:
        self.nets, self.case = nets, case
        self.adams = {name: Adam(getattr(nets, name)) for name in ("critics", "value", "vae", "actor")}

    def step(self, name: str, loss: Any, learning_rate: float) -> float:
        """One step of these networks; returns their loss before it."""
        error, grads = value_and_grad(loss, getattr(self.nets, name))
        moved = self.adams[name].step(getattr(self.nets, name), grads, learning_rate)
        self.nets = self.nets._replace(**{name: moved})
        return error

    def update(self, batch: Batch, noises: Noises, index: int) -> dict[str, float]:
        """One gradient step; returns what the learner must report."""
        # (1) the critics
        y, _ = targets(self.nets, batch, noises.target)
        metrics = {
            "q": float(np.mean(q_values(self.nets.critics, batch.obs, batch.action))),
            "critic_loss": self.step("critics", lambda x: squared_errors(x, batch, y), HYPERS.critic_learning_rate),
        }
        # (2) the value, with the new critics and the same action; its estimates from before serve below
        _, t = targets(self.nets, batch, noises.target)
        v, weight = state_value(self.nets.value, batch.obs), weight_of(self.nets, batch)
        metrics["value_loss"] = self.step(
            "value", lambda x: value_loss(x, batch, np.minimum(t, y)), HYPERS.value_learning_rate
        )
        # (3) the VAE
        reconstruction, kl = vae_parts(self.nets.vae, batch, noises.vae, weight)
        self.step("vae", lambda x: vae_loss(x, batch, noises.vae, weight), HYPERS.vae_learning_rate)
        # (4) the actor, with all that is new, and (5) the targets
        if index % self.case.policy_delay == 0:
            nets, form = self.nets, self.case.form
            self.step(
                "actor",
                lambda x: actor_loss(x, form, nets, batch, v, noises.candidate),
                HYPERS.actor_learning_rate,
            )
            self.nets = self.nets._replace(
                target_actor=polyak(self.nets.target_actor, self.nets.actor, HYPERS.tau),
                target_critics=polyak(self.nets.target_critics, self.nets.critics, HYPERS.tau),
            )
        return metrics | {
            "reconstruction_loss": float(reconstruction),
            "kl": float(kl),
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
    algorithm, normalize = a2pr.make(config), case.normalize_obs
    nets = random_nets(np.random.default_rng(3))
    with computing(np.float64):
        state, (update, evaluate) = learner(nets, np.float64), compiled(algorithm, HYPERS)
        trace = Trace(nets, case)
        for index in UPDATES:
            key = jax.random.key(index)
            batch_key, *noise_keys = jax.random.split(key, 4)
            batch = drawn(rows_of(batch_key, UPDATE_BATCH), normalize)
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

        evaluated = evaluate(state, jnp.asarray(SOMEWHERE))

    # Evaluation plays the actor's action, and values it by the smaller critic.
    assert_evaluates(evaluated, lambda obs: chosen(trace.nets.actor, obs), trace.nets.critics, normalize)


# Around the updates.


def test_starts_with_critics_that_differ_and_with_targets_that_do_not() -> None:
    state = params_of(fresh_state())
    assert_different(state.critics)
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
