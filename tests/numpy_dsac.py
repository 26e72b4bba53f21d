"""What the reference tests of DSAC and DSAC-T share, in NumPy and float64: policy, distribution of returns, updates.

Written from the mathematics and sharing no code with `rlsuite`, as `numpy_nets.py` is. Records of networks have the
fields `actor`, `target_actor`, `critics`, `target_critics` and `log_alpha`; the critics may be one or a stack.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_critics import ACTION_DIM, CENTER, HALF_WIDTH, OBS_DIM, endings, polyak, random_transitions
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
    cast,
    exact,
    mlp,
    normal,
    perceptron,
    toy_transition,
)
from numpy_squashed import SquashedGaussian, outputs
from numpy_squashed import actor_reference as sac_actor_reference
from numpy_squashed import alpha_reference as sac_alpha_reference
from reference import computing, softplus
from trained_states import params_of

from envs.core import EpisodeState
from rlsuite.core import Algorithm, Clock, Task, Transition
from rlsuite.pieces import off_policy, replay
from rlsuite.pieces.rollout import EnvCarry

HIDDEN = (6, 5)
SEEDS = range(5)
TARGET_ENTROPY = -0.7 * ACTION_DIM
WIDE = (-19.9, 0.4, -1.0)
"""Where the actor's three log standard deviations lie: around the lower bound, around the upper one, between them."""
MODERATE = (-2.0, 0.4, -1.0)
"""The same for float32, where mean + exp(-20) noise rounds to the mean, so that no such comparison has a meaning."""
every_precision = pytest.mark.parametrize(
    ("log_stds", "dtype", "tolerance"),
    [(MODERATE, np.float64, 1e-11), (WIDE, np.float64, 1e-11), (MODERATE, np.float32, 1e-5)],
    ids=["float64", "float64-wide", "float32"],
)


POLICY = SquashedGaussian(-20.0, 0.5, CENTER, HALF_WIDTH, functools.partial(outputs, activation="gelu"))


def valued(critics: Tree, obs: FloatArray, action: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of the return, `[batch]` each by one critic and `[n, batch]` by a stack."""
    out = perceptron(critics["params"], np.concatenate([obs, action], axis=1), "gelu")
    return out[..., 0], softplus(out[..., 1])


def smallest_mean(critics: Tree, obs: FloatArray, action: FloatArray) -> FloatArray:
    """`[batch]`"""
    return np.min(np.atleast_2d(valued(critics, obs, action)[0]), axis=0)


def actor_reference(nets: Any, obs: FloatArray, noise: FloatArray) -> tuple[float, Tree]:
    """The actor's loss and its gradient."""
    return sac_actor_reference(POLICY, nets, obs, noise, smallest_mean)


def alpha_reference(nets: Any, obs: FloatArray, noise: FloatArray) -> tuple[float, FloatArray]:
    """The temperature's loss and its derivative."""
    return sac_alpha_reference(POLICY, nets, obs, noise, TARGET_ENTROPY)


# Random problems.


def random_critic(rng: np.random.Generator) -> Tree:
    """Layers of one critic, whose mean is around 0 and whose standard deviation spreads around 0.7."""
    net = mlp(rng, OBS_DIM + ACTION_DIM, *HIDDEN, 2)
    net["Dense_2"]["kernel"][:, 1] *= 6.0
    somewhere = np.concatenate([rng.normal(size=(99, OBS_DIM)), rng.uniform(LOW, HIGH, (99, ACTION_DIM))], axis=1)
    net["Dense_2"]["bias"] -= np.mean(perceptron(net, somewhere, "gelu"), axis=0)
    return jax.tree.map(exact, net)


def random_batch(rng: np.random.Generator, size: int) -> Transition:
    """Some rewards are so large that every bound on a temporal difference is exceeded somewhere."""
    batch = random_transitions(rng, size)
    return batch._replace(reward=exact(batch.reward * rng.choice([1.0, 100.0], size)))


# The collecting half of an update.

NUM_ENVS, NUM_STEPS = 2, 2
BUFFER_STEPS = 7
"""No multiple of `NUM_STEPS`, so that a rollout is written around the buffer's end."""


class Experience:
    """All transitions that two toy environments have shown, `NUM_STEPS` more of each at every `collect`."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.obs, self.steps = normal(rng, NUM_ENVS, OBS_DIM), np.zeros(NUM_ENVS, int)
        self.obs[0, 0] = 2.0  # terminates at once; episodes from `START` mostly run out of time
        self.rows: list[Transition] = []

    def carry(self) -> EnvCarry:
        """The environments, for the learner; call it inside `jax.enable_x64(True)`."""
        obs = jnp.asarray(self.obs)
        return EnvCarry(EpisodeState(obs, jnp.asarray(self.steps, jnp.int32)), obs)

    def buffer(self) -> replay.Replay:
        """An empty buffer for the learner, in which what was never written is NaN."""
        layout = replay.Layout(OBS_DIM, ACTION_DIM, TIME_LIMIT)
        empty = replay.init(layout, NUM_ENVS, NUM_ENVS * BUFFER_STEPS)
        return cast(jax.tree.map(lambda x: np.full(x.shape, np.nan), empty), jnp.float64)

    def collect(self, key: jax.Array, policy: Callable[[FloatArray, FloatArray], FloatArray]) -> None:
        """Step with `policy(obs, noise)`. Random numbers come from JAX by the learner's own key schedule."""
        for step_key in jax.random.split(key, NUM_STEPS):
            policy_key, _ = jax.random.split(step_key)
            action = policy(self.obs, np.asarray(jax.random.normal(policy_key, (NUM_ENVS, ACTION_DIM))))
            next_obs, reward, terminated = toy_transition(self.obs, action)
            truncated = self.steps + 1 >= TIME_LIMIT
            # The buffer keeps actions in float32.
            self.rows.append(Transition(self.obs, exact(action), reward, next_obs, terminated, truncated))
            done = terminated | truncated
            self.obs = np.where(done[:, None], START, next_obs)
            self.steps = np.where(done, 0, self.steps + 1)

    def sample(self, key: jax.Array, shape: tuple[int, int]) -> list[Transition]:
        """The minibatches of the newest `BUFFER_STEPS` steps."""
        filled = min(len(self.rows), BUFFER_STEPS)
        places = np.asarray(jax.random.randint(key, shape, 0, jnp.int32(filled * NUM_ENVS)))
        newest_in = {step % BUFFER_STEPS: row for step, row in enumerate(self.rows)}
        return [
            Transition(
                *(
                    np.stack([newest_in[place // NUM_ENVS][column][place % NUM_ENVS] for place in chosen])
                    for column in range(len(Transition._fields))
                )
            )
            for chosen in places
        ]


# Whole updates.

UPDATE_BATCH, WARMUP_UPDATES = 16, 2
SIZES: dict[str, Any] = {
    "num_envs": NUM_ENVS,
    "num_steps": NUM_STEPS,
    "batch_size": UPDATE_BATCH,
    "buffer_size": NUM_ENVS * BUFFER_STEPS,
    "warmup_steps": WARMUP_UPDATES * NUM_ENVS * NUM_STEPS - 1,  # rounded up to whole updates
    "hidden_sizes": HIDDEN,
}
CriticStep = Callable[[Any, Transition, FloatArray, jax.Array], tuple[Tree, dict[str, Any]]]
"""(networks, minibatch, noise of actions, key of that of returns) -> gradient of the critics, and what else moves"""


class Student:
    """The learner of the reference: networks, optimisers, and how many gradient steps it has made."""

    def __init__(self, nets: Any, config: Any, hypers: Any, critic_step: CriticStep) -> None:
        self.nets, self.config, self.hypers, self.critic_step, self.steps = nets, config, hypers, critic_step, 0
        self.actor_adam, self.critic_adam, self.alpha_adam = map(Adam, (nets.actor, nets.critics, nets.log_alpha))

    def learn(self, batch: Transition, key: jax.Array) -> None:
        """One gradient step. Random numbers come from JAX by the learner's own key schedule."""
        noise_key, z_key, actor_key = jax.random.split(key, 3)
        old, hypers = self.nets, self.hypers
        noise = np.asarray(jax.random.normal(noise_key, (UPDATE_BATCH, ACTION_DIM)))
        critic_grads, others = self.critic_step(old, batch, noise, z_key)
        # Everything is differentiated before anything moves.
        noise = np.asarray(jax.random.normal(actor_key, (UPDATE_BATCH, ACTION_DIM)))
        actor_grads = actor_reference(old, batch.obs, noise)[1]
        alpha_grad = alpha_reference(old, batch.obs, noise)[1]

        critics = self.critic_adam.step(old.critics, critic_grads, hypers.critic_learning_rate)
        self.nets = old._replace(critics=critics, **others)
        if self.steps % self.config.policy_delay == 0:
            actor = self.actor_adam.step(old.actor, actor_grads, hypers.actor_learning_rate)
            self.nets = self.nets._replace(
                actor=actor,
                target_actor=polyak(old.target_actor, actor, hypers.tau),
                target_critics=polyak(old.target_critics, critics, hypers.tau),
            )
            if self.config.learn_alpha:
                log_alpha = self.alpha_adam.step(old.log_alpha, alpha_grad, hypers.alpha_learning_rate)
                self.nets = self.nets._replace(log_alpha=log_alpha)
        self.steps += 1


def assert_learns_as(student: Student, algorithm: Algorithm, learner: Callable[[Any, Any], Any], rng: Any) -> None:
    """The learner's whole updates from the warm-up on are those of the student."""
    task, config, kind = Task(Toy()), student.config, type(student.nets)
    gradient_steps, always_move = config.gradient_steps, {"critics", "b"} & set(kind._fields)
    experience, seen = Experience(rng), set()
    with computing(np.float64):
        state = off_policy.State(learner(student.nets, jnp.float64), experience.buffer(), experience.carry())
        fresh = jax.eval_shape(algorithm.init, jax.random.key(0), task, student.hypers)
        chex.assert_trees_all_equal_structs(fresh, state)
        update, hypers = jax.jit(algorithm.update), cast(student.hypers, jnp.float64)
        for i in range(WARMUP_UPDATES + 3):
            key, clock = jax.random.key(i), Clock(jnp.int32(i), jnp.asarray(0.5))
            before, old_nets, first_step = state, student.nets, student.steps
            state, metrics = update(key, task, state, hypers, clock)
            collect_key, batch_key, learn_key = jax.random.split(key, 3)
            experience.collect(collect_key, lambda obs, noise, nets=old_nets: POLICY.sample(nets.actor, obs, noise)[0])
            np.testing.assert_allclose(state.envs.obs, experience.obs, rtol=1e-9)
            if i < WARMUP_UPDATES:
                chex.assert_trees_all_equal(state.learner, before.learner)
                continue
            batches = experience.sample(batch_key, (gradient_steps, UPDATE_BATCH))
            for batch, step_key in zip(batches, jax.random.split(learn_key, gradient_steps), strict=True):
                student.learn(batch, step_key)
                seen |= {name for name, hits in endings(batch).items() if np.any(hits)}
            got, got_before = (kind(*params_of(each.learner)) for each in (state, before))
            assert_close(moves(got, got_before), moves(student.nets, old_nets), 1e-7)
            assert float(metrics["alpha"]) == pytest.approx(np.exp(student.nets.log_alpha), rel=1e-9)
            if gradient_steps == 1:
                if "b" in metrics:
                    assert float(metrics["b"]) == pytest.approx(np.mean(student.nets.b), rel=1e-9)
                if first_step % config.policy_delay:
                    # Between the delayed steps nothing else moves.
                    still = [nets._replace(**dict.fromkeys(always_move)) for nets in (got, got_before)]
                    chex.assert_trees_all_equal(*still)
    assert seen >= {"terminated only", "truncated only"}


def moves(after: Tree, before: Tree) -> Tree:
    """What changed: updates are small compared with parameters, and would hide there."""
    return jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), after, before)
