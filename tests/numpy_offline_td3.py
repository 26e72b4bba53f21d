"""What the reference tests of TD3+BC, ReBRAC and PRDC share, in NumPy and float64: networks, losses' gradients by JAX,
and whole updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_critics import ACTION_DIM, endings, polyak, q_values
from numpy_nets import Adam, FloatArray, Tree, assert_moved, cast, perceptron
from numpy_offline import SOMEWHERE, assert_evaluates, compiled, drawn, rows_of, task
from reference import computing
from trained_states import params_of, with_adam

from envs.datasets import Batch
from rlsuite.core import Algorithm, Clock
from rlsuite.pieces import offline_td3

UPDATE_BATCH = 16


class Nets(NamedTuple):
    """What gradient steps change."""

    actor: Tree
    critics: Tree
    """both critics, stacked on a leading axis"""
    target_actor: Tree
    target_critics: Tree


def chosen(actor: Tree, obs: FloatArray) -> FloatArray:
    """The policy's action in units of the box."""
    return np.tanh(perceptron(actor["params"], obs, "relu"))


def smoothing(noise: FloatArray, hypers: Any) -> FloatArray:
    """What is added to the target actor's action, before the box cuts it off."""
    scaled, bound = hypers.target_noise * noise, hypers.target_noise_clip
    return np.where(np.abs(scaled) > bound, np.sign(scaled) * bound, scaled)


def smoothed(nets: Nets, batch: Batch, noise: FloatArray, hypers: Any) -> FloatArray:
    """The next action."""
    return np.minimum(np.maximum(chosen(nets.target_actor, batch.next_obs) + smoothing(noise, hypers), -1.0), 1.0)


def cases_of(nets: Nets, batch: Batch, noise: FloatArray, hypers: Any) -> dict[str, Any]:
    """Which samples reach which branch."""
    scaled, bound = hypers.target_noise * noise, hypers.target_noise_clip
    free = chosen(nets.target_actor, batch.next_obs) + smoothing(noise, hypers)
    q = q_values(nets.critics, batch.obs, chosen(nets.actor, batch.obs))
    next_q = q_values(nets.target_critics, batch.next_obs, np.clip(free, -1.0, 1.0))
    return {
        "noise below its bound": scaled < -bound,
        "noise inside its bounds": np.abs(scaled) < bound,
        "noise above its bound": scaled > bound,
        "smoothed action below the box": free < -1.0,
        "smoothed action inside the box": np.abs(free) < 1.0,
        "smoothed action above the box": free > 1.0,
        "first critic positive": q[0] > 0.0,
        "first critic negative": q[0] < 0.0,
        "smaller critic positive": np.min(q, axis=0) > 0.0,
        "smaller critic negative": np.min(q, axis=0) < 0.0,
        "first critic smaller": q[0] < q[1],
        "second critic smaller": q[1] < q[0],
        "first target smaller": next_q[0] < next_q[1],
        "second target smaller": next_q[1] < next_q[0],
        **endings(batch),
    }


# The learners.


def learner(nets: Nets, dtype: Any) -> offline_td3.State:
    """The state with these networks and fresh optimisers."""
    return with_adam(offline_td3.State(*cast(tuple(nets), dtype)))


def jax_losses(networks: offline_td3.Networks, critic_loss: Any, actor_loss: Any) -> Any:
    """jit of both losses and their gradients, the gradient of the critics' loss by the targets, and the metrics."""

    def losses(state: Any, batch: Batch, noise: Any, goal: Any, hypers: Any) -> Any:
        params = params_of(state)
        (critic_error, metrics), critic_grads = jax.value_and_grad(critic_loss, has_aux=True)(
            params.critics, networks, state, batch, noise, hypers
        )

        def by_targets(target_actor: Tree, target_critics: Tree) -> Any:
            other = state._replace(target_actor=target_actor, target_critics=target_critics)
            return critic_loss(params.critics, networks, other, batch, noise, hypers)[0]

        target_grads = jax.grad(by_targets, (0, 1))(state.target_actor, state.target_critics)
        actor = jax.value_and_grad(actor_loss)(params.actor, networks, params.critics, batch.obs, goal, hypers)
        return (critic_error, critic_grads), actor, target_grads, metrics

    return jax.jit(losses)


def want_losses(nets: Nets, batch: Batch, critics: tuple[float, Tree], actor: tuple[float, Tree]) -> Any:
    """What these are, from the two losses and gradients of a reference. Targets have no gradient."""
    nothing = jax.tree.map(np.zeros_like, (nets.target_actor, nets.target_critics))
    q = np.mean(q_values(nets.critics, batch.obs, batch.action))
    return critics, actor, nothing, {"critic_loss": critics[0], "q": q}


CriticReference = Callable[[Nets, Batch, FloatArray], tuple[float, Tree]]
"""(networks, minibatch, noise) -> loss and gradient"""
ActorReference = Callable[[Nets, Batch, Any], tuple[float, Tree]]
"""(networks, minibatch, its rows of the dataset) -> loss and gradient"""


def assert_learns_as(
    nets: Nets,
    critic_reference: CriticReference,
    actor_reference: ActorReference,
    algorithm: Algorithm,
    config: Any,
    hypers: Any,
    given: Any = task,
) -> None:
    """Whole updates and evaluation are those of the reference."""
    start, (actor_adam, critic_adam) = nets, (Adam(nets.actor), Adam(nets.critics))
    with computing(np.float64):
        update, evaluate = compiled(algorithm, hypers, given)
        state = learner(nets, jnp.float64)
        chex.assert_trees_all_equal_structs(jax.eval_shape(algorithm.init, jax.random.key(0), task(), hypers), state)
        for done in range(5, 9):  # 6 is due where the delay is 3
            key = jax.random.key(done)
            batch_key, noise_key = jax.random.split(key)
            rows = rows_of(batch_key, UPDATE_BATCH)
            batch = drawn(rows, config.normalize_obs)
            noise = np.asarray(jax.random.normal(noise_key, (UPDATE_BATCH, ACTION_DIM)))
            last, q = state, np.mean(q_values(nets.critics, batch.obs, batch.action))
            state, metrics = update(key, state, Clock(jnp.int32(done), jnp.asarray(0.5)))

            loss, grads = critic_reference(nets, batch, noise)
            nets = nets._replace(critics=critic_adam.step(nets.critics, grads, hypers.critic_learning_rate))
            if done % config.policy_delay == 0:
                # By the critics as they are after their step.
                grads = actor_reference(nets, batch, rows)[1]
                nets = nets._replace(actor=actor_adam.step(nets.actor, grads, hypers.actor_learning_rate))
                nets = nets._replace(
                    target_actor=polyak(nets.target_actor, nets.actor, hypers.tau),
                    target_critics=polyak(nets.target_critics, nets.critics, hypers.tau),
                )
            else:
                still = ("actor", "target_actor", "target_critics")
                chex.assert_trees_all_equal(*([getattr(s, field) for field in still] for s in (state, last)))
            assert float(metrics["critic_loss"]) == pytest.approx(loss, rel=1e-9)
            assert float(metrics["q"]) == pytest.approx(q, rel=1e-9)
        evaluated = evaluate(state, jnp.asarray(SOMEWHERE))
    assert_moved(Nets(*params_of(state)), nets, start, 1e-8)
    # Evaluation plays the actor without noise.
    assert_evaluates(evaluated, lambda obs: chosen(nets.actor, obs), nets.critics, config.normalize_obs)
