"""What the reference tests of off-policy methods share: a run in the middle of training, and its next step.

Five steps of the eight that the buffer keeps are filled, and whoever reads another one reads NaN. One environment
terminated before, one ran out of time and is about to do so again. All of it only inside `jax.enable_x64(True)`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy_critics import ACTION_DIM, random_transitions
from numpy_nets import START, TIME_LIMIT, FloatArray, Toy, cast, exact, normal, toy_transition

from envs.core import EpisodeState
from rlsuite.core import Transition
from rlsuite.pieces import off_policy, replay
from rlsuite.pieces.rollout import EnvCarry

NUM_ENVS, CAPACITY, UPDATES_DONE = 2, 16, 5
LAYOUT = replay.Layout.of(Toy())


class Past(NamedTuple):
    """A run after `UPDATES_DONE` updates of one step of both environments."""

    rows: Transition
    """all that it has seen"""
    obs: FloatArray
    steps: Any
    buffer: replay.Replay

    def state(self, learner: Any) -> off_policy.State:
        """The learner's state, which the environments and the buffer belong to."""
        obs = jnp.asarray(self.obs)
        return off_policy.State(
            learner, self.buffer, EnvCarry(EpisodeState(obs, jnp.asarray(self.steps, jnp.int32)), obs)
        )


def add(buffer: replay.Replay, rows: Transition, obs: FloatArray, step: int) -> replay.Replay:
    """One step of both environments into the buffer."""
    return jax.jit(replay.add, static_argnums=1)(
        buffer, LAYOUT, cast(rows, jnp.float64), jnp.asarray(obs), jnp.int32(step)
    )


def past(rng: np.random.Generator) -> Past:
    stored = UPDATES_DONE * NUM_ENVS
    rows = random_transitions(rng, stored)
    rows = rows._replace(terminated=np.isin(np.arange(stored), [2, 8]), truncated=np.arange(stored) == 5)
    obs, steps = np.stack([START, normal(rng, 3)]), np.array([0, TIME_LIMIT - 1])
    follows = np.concatenate([rows.obs[NUM_ENVS:], obs])
    ended = (rows.terminated | rows.truncated)[:, None]
    rows = rows._replace(next_obs=np.where(ended, rows.next_obs, follows))
    buffer = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan), replay.init(LAYOUT, NUM_ENVS, CAPACITY))
    for step in range(UPDATES_DONE):
        now = slice(step * NUM_ENVS, (step + 1) * NUM_ENVS)
        buffer = add(buffer, Transition(*(column[now] for column in rows)), follows[now], step)
    return Past(rows, obs, steps, buffer)


def policy_noise(collect_key: jax.Array) -> FloatArray:
    """What the policy draws in the update's one step, by the learner's own key schedule."""
    policy_key, _ = jax.random.split(jax.random.split(collect_key, 1)[0])
    return np.asarray(jax.random.normal(policy_key, (NUM_ENVS, ACTION_DIM)))


class Present(NamedTuple):
    """The run after one more step."""

    rows: Transition
    obs: FloatArray
    buffer: replay.Replay

    def minibatches(self, key: jax.Array, gradient_steps: int, size: int) -> list[Transition]:
        """All that an update draws from the buffer, by the learner's own key."""
        index = np.asarray(jax.random.randint(key, (gradient_steps, size), 0, jnp.int32(len(self.rows.obs))))
        assert np.any(index >= UPDATES_DONE * NUM_ENVS)
        return [Transition(*(column[drawn] for column in self.rows)) for drawn in index]

    def assert_is(self, state: off_policy.State) -> None:
        """The learner's state has the same buffer and stands where this one does."""
        for got, want in zip(state.buffer, self.buffer, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-6)  # NaN where NaN is expected, too
        np.testing.assert_allclose(state.envs.obs, self.obs, rtol=1e-12)


def stepped(before: Past, action: FloatArray) -> Present:
    """One step of both environments with these actions."""
    next_obs, reward, terminated = toy_transition(before.obs, action)
    truncated = before.steps + 1 >= TIME_LIMIT
    done = terminated | truncated
    assert done[1]
    obs = np.where(done[:, None], START, next_obs)
    # The buffer keeps actions in float32.
    new = Transition(before.obs, exact(action), reward, next_obs, terminated, truncated)  # type: ignore[arg-type]
    rows = Transition(*(np.concatenate(pair) for pair in zip(before.rows, new, strict=True)))
    return Present(rows, obs, add(before.buffer, new, obs, UPDATES_DONE))
