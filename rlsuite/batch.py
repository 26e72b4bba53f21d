"""Many runs in one program: the only vmap over runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlsuite import train
from rlsuite.core import Algorithm, Task

Array = jax.Array


def stack_hypers(hypers: Sequence[Any]) -> Any:
    """One NamedTuple of floats per run -> one NamedTuple of float32 arrays `[runs]`."""
    return jax.tree.map(lambda *values: jnp.asarray(values, jnp.float32), *hypers)


def compile_programs(
    algorithm: Algorithm, task: Task, seeds: Sequence[int], hypers: Sequence[Any], num_episodes: int
) -> tuple[train.Programs, float]:
    """Compile initialisation, training segment and evaluation for these runs, and say how many seconds that took.

    `seeds` and `hypers` give one value a run; run i depends on seeds[i] and hypers[i] alone. The update counters are
    arguments that no run owns, so conditionals on them stay conditionals.
    """
    began = time.perf_counter()
    seed_axis = jnp.asarray(np.asarray(seeds, np.uint32))
    hyper_axis = stack_hypers(hypers)
    count = jax.ShapeDtypeStruct((), jnp.int32)

    init = jax.jit(jax.vmap(partial(train.init, algorithm), in_axes=(None, 0, 0)))
    segment = jax.jit(
        jax.vmap(partial(train.segment, algorithm), in_axes=(None, 0, 0, 0, None, None, None)), donate_argnums=1
    )
    evaluate = jax.jit(
        jax.vmap(partial(train.evaluation, algorithm, num_episodes=num_episodes), in_axes=(None, 0, 0, None))
    )

    state = jax.eval_shape(init, task, seed_axis, hyper_axis)
    compiled_init = init.lower(task, seed_axis, hyper_axis).compile()
    compiled_segment = segment.lower(task, state, seed_axis, hyper_axis, count, count, count).compile()
    compiled_evaluate = evaluate.lower(task, state, seed_axis, count).compile()

    programs = train.Programs(
        init=lambda: compiled_init(task, seed_axis, hyper_axis),
        segment=lambda state, start, stop, total: compiled_segment(
            task, state, seed_axis, hyper_axis, jnp.int32(start), jnp.int32(stop), jnp.int32(total)
        ),
        evaluate=lambda state, index: compiled_evaluate(task, state, seed_axis, jnp.int32(index)),
        steps_per_update=algorithm.steps_per_update,
    )
    return programs, time.perf_counter() - began
