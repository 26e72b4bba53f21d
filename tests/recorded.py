"""A few real steps of any environment, for every test that looks at one: recorded once in each worker, since compiling
an environment is what these tests cost. Tests that record the same environment have the marks `marks(env_id)`."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from envs.core import Discrete, Env, EpisodeState, TimeStep

Array = jax.Array

LIMIT = 3
# Four copies of each environment. Two are alike, one starts from another key, one has other physics.
FIRST, AGAIN, OTHER_KEY, OTHER_PHYSICS = range(4)

# These backends, and observations of hundreds of numbers, compile for long. `make test` covers some of them, which
# differ in kind, and `make exhaustive` all others.
LONG_TO_COMPILE = frozenset({"MJX", "brax spring", "brax positional", "brax generalized"})
QUICK = frozenset(
    {
        "brax/hopper/spring",
        "brax/inverted_pendulum/spring",
        "gymnax/Breakout-MinAtar",
        "mujoco/InvertedPendulum-v5",
        "playground/CartpoleBalance",
    }
)
assert set(envs.registered()) >= QUICK


def marks(env_id: str) -> list[pytest.MarkDecorator]:
    """Those of a test that records `env_id`: its xdist group, and `exhaustive` where it compiles for long."""
    info = envs.info(env_id)
    long = (info.backend in LONG_TO_COMPILE or info.obs_dim >= 100) and env_id not in QUICK
    return [pytest.mark.xdist_group(env_id), *([pytest.mark.exhaustive] if long else [])]


class Rollout(NamedTuple):
    """`LIMIT` steps of four copies of one environment; every array has a leading axis of 4.

    Assertions on them compute with NumPy: each JAX operation on a new shape would be one more program to compile.
    """

    env: Env
    """batched"""
    reset: Any
    """jit(vmap(env.reset)): (env, key)"""
    step: Any
    """jit(vmap(env.step)): (env, key, state, action)"""
    keys: Array
    action: Array
    states: list[EpisodeState]
    """after the reset and after each step"""
    obs: Array
    """`[4, obs_dim]` after the reset"""
    shown: list[TimeStep]
    unlimited: tuple[EpisodeState, TimeStep]
    """what the last step gives, from the same state, if the clock is set back so that it reaches no time limit"""
    num_programs: int
    """that all these steps were compiled to"""


@functools.cache
def rollout(env_id: str) -> Rollout:
    """The environment's first `LIMIT` steps under a constant action, with a time limit of `LIMIT`."""
    env = envs.make(env_id, max_episode_steps=LIMIT)

    def copies(path: Any, leaf: Array) -> Array:
        four = np.stack([np.asarray(leaf)] * 4)
        # A quaternion of length 0.9 is no rotation.
        if np.issubdtype(four.dtype, np.floating) and "quat" not in jax.tree_util.keystr(path):
            four[OTHER_PHYSICS] *= 0.9
        return jnp.asarray(four)

    batched = jax.tree_util.tree_map_with_path(copies, env)
    # Compiling is the cost, and each program runs a few times only: half the time, the same mathematics.
    quick_to_compile = {"xla_backend_optimization_level": 0}
    reset = jax.jit(jax.vmap(lambda env, key: env.reset(key)), compiler_options=quick_to_compile)
    step = jax.jit(
        jax.vmap(lambda env, key, state, action: env.step(key, state, action)), compiler_options=quick_to_compile
    )
    keys = jax.random.split(jax.random.key(0), 2)[jnp.array([0, 0, 1, 0])]
    space = env.action_space
    if isinstance(space, Discrete):
        action = jnp.full(4, space.n - 1, jnp.int32)
    else:
        low, high = np.float32(space.low), np.float32(space.high)
        action = jnp.asarray(np.tile(low + np.float32(0.75) * (high - low), (4, 1)))
    state, obs = reset(batched, keys)
    states, shown = [state], []
    for _ in range(LIMIT):
        state, time_step = step(batched, keys, state, action)
        states.append(state)
        shown.append(time_step)
    clock_set_back = states[-2]._replace(steps=jnp.zeros(4, jnp.int32))
    unlimited = step(batched, keys, clock_set_back, action)
    return Rollout(batched, reset, step, keys, action, states, obs, shown, unlimited, step._cache_size())
