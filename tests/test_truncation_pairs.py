"""Truncation is not termination, for every pair of a registered environment and a registered algorithm.

Compiling each algorithm together with each simulator would take hours. So the real environment is recorded
(tests/recorded.py) and its record is played to the real algorithm by `Tape`: an adapter that confuses the two flags or
resets by itself is seen in the record, and whatever stands between the environment and the parameters (automatic reset,
buffer, returns, losses) is seen in what the algorithm learns. Pairs of equal shapes share one compiled program.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from offline_data import imitates
from recorded import FIRST, LIMIT, marks, rollout

import envs
from envs import datasets
from envs.core import Box, Space, TimeStep
from envs.datasets import Dataset, Records
from rlsuite import algorithms
from rlsuite.core import Task
from rlsuite.errors import UserError
from rlsuite.training import train

Array = jax.Array

# `make test` tries two learners, one of each kind, on every environment that compiles quickly; `make learning` tries
# the others on two environments; `make exhaustive` tries the rest, probes among them.
EVERYWHERE = frozenset({"ppo", "sac"})
FOR_ALL = frozenset({"gymnax/CartPole-v1", "gymnax/Pendulum-v1"})
assert set(algorithms.names()) >= EVERYWHERE and set(envs.registered()) >= FOR_ALL


def pair(name: str, env_id: str) -> Any:
    """The parameters and marks of one test."""
    later = []
    if env_id.startswith("probe/") or (name not in EVERYWHERE and env_id not in FOR_ALL):
        later = [pytest.mark.exhaustive]
    elif name not in EVERYWHERE:
        later = [pytest.mark.slow]
    return pytest.param(name, env_id, marks=[*marks(env_id), *later])


# Which pairs fit is known once every environment is built, half a minute in every worker: so here are all of them.
# Who only imitates reads neither flag nor next observation, and has nothing to confuse.
LEARNERS = [name for name in algorithms.registered() if not imitates(name)]
PAIRS = [pair(name, env_id) for env_id in envs.registered() for name in LEARNERS]


@struct.dataclass
class Tape:
    """One episode that an environment has shown, played again and again whatever the action. An `Env`."""

    start: Array
    """`[obs_dim]` after the reset"""
    shown: TimeStep
    """leading axis `[LIMIT]`; what comes after the end of the episode is never played"""
    action_space: Space = struct.field(pytree_node=False)
    id: str = struct.field(pytree_node=False, default="tape")
    max_episode_steps: int = struct.field(pytree_node=False, kw_only=True)

    @property
    def obs_dim(self) -> int:
        return self.start.shape[0]

    def reset(self, key: Array) -> tuple[Array, Array]:
        return jnp.int32(0), self.start

    def step(self, key: Array, state: Array, action: Array) -> tuple[Array, TimeStep]:
        return state + 1, jax.tree.map(lambda rows: rows[state], self.shown)


def truncated_tape(env_id: str) -> Tape:
    """The record of this environment up to its first end, which on the tape is a truncation."""
    roll = rollout(env_id)
    start, space = np.asarray(roll.obs)[FIRST], roll.env.action_space
    shown = jax.tree.map(lambda *rows: np.stack([np.asarray(row)[FIRST] for row in rows]), *roll.shown)
    last = int(np.argmax(shown.terminated | shown.truncated))
    # Most probes end by themselves before any limit, some where they began. A limit in that place, and an end that can
    # be told from the start, test their pairs all the same.
    if np.array_equal(shown.obs[last], start):
        shown.obs[last] += 1.0
    at_last = np.arange(LIMIT) == last
    shown = shown._replace(terminated=np.zeros(LIMIT, bool), truncated=at_last)
    return Tape(start, shown, space, max_episode_steps=last + 1)


def read_as_terminated(tape: Tape) -> Tape:
    """The bug, on the tape: what was a truncation is a termination."""
    return tape.replace(shown=tape.shown._replace(terminated=tape.shown.truncated, truncated=tape.shown.terminated))


def read_after_reset(tape: Tape) -> Tape:
    """The bug, on the tape: the last observation is that of the next episode."""
    return tape.replace(
        shown=tape.shown._replace(obs=np.where(tape.shown.truncated[:, None], tape.start, tape.shown.obs))
    )


COPIES = 8


def dataset_of(tape: Tape) -> Dataset:
    """The tape as an offline learner is given it: the episode a few times, under actions drawn from the box."""
    assert isinstance(tape.action_space, Box)
    length = tape.max_episode_steps
    shown: Any = jax.tree.map(lambda rows: np.concatenate([rows[:length]] * COPIES), tape.shown)
    obs = np.concatenate([np.stack([tape.start, *tape.shown.obs])[:length]] * COPIES)
    low, high = np.asarray(tape.action_space.low), np.asarray(tape.action_space.high)
    action = np.random.default_rng(0).uniform(low, high, (len(obs), len(low)))
    episode = np.arange(COPIES).repeat(length)
    records = Records(
        obs=obs,
        action=action,
        reward=shown.reward,
        next_obs=shown.obs,
        next_action=np.roll(action, -1, axis=0),
        terminated=shown.terminated,
        truncated=shown.truncated,
        episode=episode,
        episode_return=np.bincount(episode, weights=shown.reward),
        complete=np.ones(episode[-1] + 1, bool),
    )
    # The checksum would make every tape another program.
    dataset = datasets.build("tape", records, tape.action_space, source="a tape")
    return dataclasses.replace(dataset, checksum="")


@functools.cache
def learner(name: str) -> Any:
    """jit: (task, observations `[n, obs_dim]`) -> (what was learned of these observations, whether it is finite)."""
    trial = algorithms.get(name).trial
    algorithm = algorithms.get(name).make(trial.config)
    updates = jnp.int32(trial.updates // 10)  # enough to learn something, warm-up included; right values need more
    learned_of = algorithm.value or algorithm.act

    def learn(task: Task, observations: Array) -> tuple[Array, Array]:
        seed = jnp.uint32(0)
        zero = jnp.int32(0)
        learning = train.init(algorithm, task, seed, trial.hypers)
        learning = train.segment(algorithm, task, learning, seed, trial.hypers, zero, updates, updates, zero)
        key = jax.random.key(0)
        learned = jax.vmap(lambda obs: learned_of(key, task, learning.state, obs))(observations)
        return learned, train.is_finite(learning)

    return jax.jit(learn, compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize(("name", "env_id"), PAIRS)
def test_truncation_is_neither_a_termination_nor_a_reset(name: str, env_id: str) -> None:
    # The environment: at its limit it shows what it would have shown without one, but for `truncated`.
    roll = rollout(env_id)
    at_limit, unlimited = roll.shown[-1], roll.unlimited[1]
    assert np.all(at_limit.truncated) and not np.any(unlimited.truncated)
    np.testing.assert_array_equal(at_limit.terminated, unlimited.terminated)
    np.testing.assert_array_equal(at_limit.obs, unlimited.obs)

    tape = truncated_tape(env_id)
    if type(tape.action_space) not in algorithms.get(name).action_spaces:
        with pytest.raises(UserError, match=re.escape(f"'{name}' needs")):
            algorithms.check_actions(name, envs.make(env_id))
        return

    # The algorithm: one program on three tapes that differ by the bug alone, and on the first of them twice, since a
    # difference means nothing where the same does not give the same.
    offline = algorithms.get(name).offline
    observations = np.stack([tape.start, *tape.shown.obs])

    def task_of(played: Tape) -> Task:
        return Task(played, algorithms.get(name).prepare(dataset_of(played)) if offline else None)

    learned, again, terminated, after_reset = (
        learner(name)(task_of(played), observations)
        for played in (tape, tape, read_as_terminated(tape), read_after_reset(tape))
    )
    assert all(finite for _, finite in (learned, again, terminated, after_reset))
    np.testing.assert_array_equal(learned[0], again[0])
    assert not np.array_equal(learned[0], terminated[0]), "`truncated` is read as `terminated`"
    assert not np.array_equal(learned[0], after_reset[0]), "`next_obs` is the observation after the reset"
