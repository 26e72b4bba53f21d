"""A branch that is not taken costs nothing, inside a batch of runs too.

`lax.cond` on anything that differs between the runs of a batch becomes a select, for which every run computes both
sides. So branches hang on the `Clock`, which no run owns; here the programs are read for it.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from offline_data import probe_task

import envs
from envs.core import Discrete
from rlsuite import algorithms
from rlsuite.core import Clock, Task
from rlsuite.training import batch

RUNS = 4
# Programs here are read and never run: compile them in half the time. Conditionals are there or not all the same.
QUICK_TO_COMPILE: Any = {"xla_backend_optimization_level": 0}


def count_conditionals(compiled: jax.stages.Compiled) -> int:
    """Instructions of a compiled program that run one of several branches."""
    return len(re.findall(r"\bconditional\(", str(compiled.as_text())))


def update_of_runs(name: str, config: Any, clock_axis: int | None) -> tuple[Any, tuple[Any, ...]]:
    """(one update of `RUNS` runs side by side, its arguments); `clock_axis` 0 gives each run a clock of its own."""
    spec = algorithms.get(name)
    algorithm = spec.make(config)
    discrete = Discrete in spec.action_spaces
    task = probe_task(name, "probe/action/discrete" if discrete else "probe/action/continuous")
    keys = jax.random.split(jax.random.key(0), RUNS)
    hypers = batch.stack_hypers([spec.trial.hypers] * RUNS)
    state = jax.eval_shape(jax.vmap(algorithm.init, (0, None, 0)), keys, task, hypers)
    shape = () if clock_axis is None else (RUNS,)
    clock = Clock(jnp.zeros(shape, jnp.int32), jnp.zeros(shape))
    return jax.vmap(algorithm.update, (0, None, 0, 0, clock_axis)), (keys, task, state, hypers, clock)


# SAC with all its branches: in the warm-up it acts otherwise and does not learn, and then its actor is delayed.
SAC = algorithms.get("sac")
DELAYED = dataclasses.replace(SAC.trial.config, policy_delay=2)
BRANCHES = 3


@pytest.mark.xdist_group("conditionals")
def test_warmup_and_delay_of_sac_are_conditionals_in_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the very programs that `batch.compile_programs` makes, which keeps them to itself."""
    compiled: list[jax.stages.Compiled] = []
    compile_one = jax.stages.Lowered.compile

    def compile_and_note(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
        program = compile_one(lowered, QUICK_TO_COMPILE)
        compiled.append(program)
        return program

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_and_note)
    task = Task(envs.make("probe/action/continuous"))
    one_device = jax.local_devices()[:1]
    batch.compile_programs(SAC.make(DELAYED), task, SAC.trial.hypers, RUNS, num_episodes=1, devices=one_device)
    # Initialisation, segment and evaluation, which compile side by side.
    assert sorted(map(count_conditionals, compiled)) == [0, 0, BRANCHES]


@pytest.mark.xdist_group("conditionals")
def test_a_clock_for_each_run_would_turn_them_into_selects() -> None:
    """What the test above guards against: without this contrast it might count something else."""
    update, arguments = update_of_runs("sac", DELAYED, clock_axis=0)
    assert count_conditionals(jax.jit(update).lower(*arguments).compile(QUICK_TO_COMPILE)) == 0


@pytest.mark.parametrize("name", algorithms.registered())
def test_no_algorithm_branches_on_what_a_run_computes(name: str) -> None:
    """Batching leaves every conditional of one run a conditional. Traced only, which is enough to see it and fast."""
    config = algorithms.get(name).trial.config
    update, (keys, task, state, hypers, clock) = update_of_runs(name, config, clock_axis=None)
    first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), (keys, state, hypers))
    alone = jax.make_jaxpr(algorithms.get(name).make(config).update)(first[0], task, first[1], first[2], clock)
    batched = jax.make_jaxpr(update)(keys, task, state, hypers, clock)
    count_alone, count_batched = (len(re.findall(r"\bcond\[", str(jaxpr))) for jaxpr in (alone, batched))
    assert count_batched == count_alone
