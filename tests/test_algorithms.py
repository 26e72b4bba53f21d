"""The learning contract, on every registered algorithm: a new one is covered by its line in the registry, or by the
entry point of its package.

Each (algorithm, probe) compiles one small program, `train_probe`, that the assertions share.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from offline_data import probe_task

import envs
from envs import probes
from envs.core import Discrete
from rlsuite import algorithms
from rlsuite.core import Algorithm, Task
from rlsuite.training import batch, train

Array = jax.Array
RUNS = 3
NAMES = list(algorithms.registered())
"""those of other installed packages too"""
LEVEL = "xla_backend_optimization_level"
AS_USERS_DO: Any = {LEVEL: 3}
"""XLA's own default, whatever `make test` has set."""


def applies(name: str, env_id: str) -> bool:
    return type(envs.make(env_id).action_space) in algorithms.get(name).action_spaces


QUICK = frozenset({"ppo"})
"""`make test` trains these on the probes, and `make learning` all others."""


def marks(name: str, env_id: str) -> list[pytest.MarkDecorator]:
    """Each pair on one xdist worker; all pairs of an offline learner, whose program is the same for all probes."""
    group = name if algorithms.get(name).offline else f"{name} {env_id}"
    return [pytest.mark.xdist_group(group), *([] if name in QUICK else [pytest.mark.slow])]


def pairs(family: str) -> list[Any]:
    """Every (algorithm, environment of this family) whose actions fit."""
    return [
        pytest.param(name, env_id, marks=marks(name, env_id))
        for name in NAMES
        for env_id in envs.registered()
        if env_id.startswith(family) and applies(name, env_id)
    ]


def discount_of(name: str) -> float:
    """The trial's discount. Who knows no values has none; any will do for him."""
    return float(algorithms.get(name).trial.hypers._asdict().get("discount", 0.5))


class Trained(NamedTuple):
    """What a trial ends with; arrays have a leading axis `[RUNS]`."""

    values: Array
    """`[RUNS, observations]`, in the order of `probes.values`"""
    actions: Array
    """`[RUNS, observations, ...]`"""
    finite: Array


@functools.cache
def train_probe(name: str, env_id: str) -> Trained:
    trial = algorithms.get(name).trial
    algorithm = algorithms.get(name).make(trial.config)
    observations = jnp.asarray([obs for obs, _ in probes.values(env_id, discount_of(name))])

    def run(task: Task, seed: Array) -> Trained:
        zero, updates = jnp.int32(0), jnp.int32(trial.updates)
        learning = train.init(algorithm, task, seed, trial.hypers)
        learning = train.segment(algorithm, task, learning, seed, trial.hypers, zero, updates, updates, zero)
        state = learning.state
        keys = jax.random.split(jax.random.key(seed), len(observations))
        value = algorithm.value or (lambda key, task, state, obs: jnp.nan)
        in_axes = (0, None, None, 0)
        return Trained(
            jax.vmap(value, in_axes)(keys, task, state, observations),
            jax.vmap(algorithm.act, in_axes)(keys, task, state, observations),
            train.is_finite(learning),
        )

    task = probe_task(name, env_id)
    # Small programs that run for a second: compiled in half the time.
    quick: Any = {LEVEL: 0}
    return jax.jit(jax.vmap(run, in_axes=(None, 0)), compiler_options=quick)(task, jnp.arange(RUNS, dtype=jnp.uint32))


@pytest.mark.parametrize(("name", "env_id"), pairs("probe/"))
def test_reaches_the_known_value_of_every_probe(name: str, env_id: str) -> None:
    trained = train_probe(name, env_id)
    assert trained.finite.all()
    if algorithms.get(name).make(algorithms.get(name).trial.config).value is None:
        return
    known = [value for _, value in probes.values(env_id, discount_of(name))]
    # A twentieth of the distance between the values that a named bug and a right learner would give, 1 or more.
    np.testing.assert_allclose(trained.values, np.tile(known, (RUNS, 1)), atol=0.05)


@pytest.mark.parametrize(("name", "env_id"), pairs("probe/action/"))
def test_finds_the_best_action(name: str, env_id: str) -> None:
    actions = train_probe(name, env_id).actions
    known = [probes.optimal_action(env_id, obs) for obs, _ in probes.values(env_id, discount_of(name))]
    # The continuous reward falls by 0.01 at a distance of 0.1 from the best action.
    np.testing.assert_allclose(actions, np.stack([known] * RUNS), atol=0.1)


def task_for(name: str) -> Task:
    """The probe that exercises most of this algorithm: a continuous action if it can take one."""
    continuous = applies(name, "probe/action/continuous")
    return probe_task(name, "probe/action/continuous" if continuous else "probe/action/discrete")


class Setup(NamedTuple):
    """A trial on `task_for(name)`: compiled for runs with seeds 0, 1, ... and their hypers."""

    algorithm: Algorithm
    programs: train.Programs
    runs: Any


@functools.cache
def setup(name: str, runs: int) -> Setup:
    spec = algorithms.get(name)
    algorithm = spec.make(spec.trial.config)
    # More than one setting of the hyperparameters, so that they are really batched.
    hypers = [type(spec.trial.hypers)(*(h * (1.0 - 0.001 * i) for h in spec.trial.hypers)) for i in range(runs)]
    one_device = jax.local_devices()[:1]
    compile_one = jax.stages.Lowered.compile
    with pytest.MonkeyPatch.context() as patch:
        # How far a run drifts with the runs beside it depends on how sums are vectorised.
        patch.setattr(jax.stages.Lowered, "compile", lambda lowered: compile_one(lowered, AS_USERS_DO))
        compiled = batch.compile_programs(algorithm, task_for(name), hypers[0], runs, 2, one_device)
    assert compiled.compile_seconds > 0.0
    return Setup(algorithm, compiled.programs, compiled.programs.runs(range(runs), hypers))


BATCHED = frozenset({"ppo", "sac", "td3_bc"})
"""`make test` compiles batches of these, one of each kind, `make learning` of the others that learn online, and
`make exhaustive` of the others that learn offline: half a minute each."""


def group(name: str) -> Any:
    later = pytest.mark.exhaustive if algorithms.get(name).offline else pytest.mark.slow
    return pytest.param(name, marks=[pytest.mark.xdist_group(f"{name} batch"), *([] if name in BATCHED else [later])])


by_name = pytest.mark.parametrize("name", [group(name) for name in NAMES])
UPDATES = 24
MANY = 64
"""Each learner compiles two programs: of one run, and of so many."""


def final_learning(name: str, evaluations: list[int]) -> Any:
    """Train MANY runs to UPDATES, evaluating at these update counts."""
    _, programs, runs = setup(name, MANY)
    learning, done = programs.init(runs), 0
    for point in [*evaluations, UPDATES]:
        learning = programs.segment(runs, learning, done, point, UPDATES, done)
        programs.checkup(runs, learning, point, point - done, np.zeros(MANY, bool))
        done = point
    return learning


@by_name
def test_evaluating_more_often_leaves_everything_bit_identical(name: str) -> None:
    seldom, often = final_learning(name, []), final_learning(name, [5, 12, 13])
    for a, b in zip(jax.tree.leaves(seldom.state), jax.tree.leaves(often.state), strict=True):
        np.testing.assert_array_equal(a, b)


@by_name
def test_a_run_alone_is_the_run_inside_a_batch(name: str) -> None:
    """Identical at the start, and after each update equal up to the order of float32 sums.

    Both begin each update in the state of the batch: an error of rounding that a threshold (of KL, of clipping)
    has turned into another decision is not carried into the updates after it."""
    (_, alone, one), (_, many, all_runs) = setup(name, 1), setup(name, MANY)
    alone_learning, batch_learning = alone.init(one), many.init(all_runs)
    for a, b in zip(jax.tree.leaves(alone_learning), jax.tree.leaves(batch_learning), strict=True):
        np.testing.assert_array_equal(a[0], b[0])
    for done in range(UPDATES):
        first = jax.tree.map(lambda x: jnp.array(x[:1]), batch_learning)
        alone_learning = alone.segment(one, first, done, done + 1, 100, 0)
        batch_learning = many.segment(all_runs, batch_learning, done, done + 1, 100, 0)
        for a, b in zip(jax.tree.leaves(alone_learning), jax.tree.leaves(batch_learning), strict=True):
            np.testing.assert_allclose(a[0], b[0], rtol=1e-3, atol=1e-4)


@by_name
def test_runs_of_a_batch_differ_by_their_seed_and_hypers(name: str) -> None:
    learning = final_learning(name, [])
    differing = [x for x in jax.tree.leaves(learning) if not np.array_equal(x[0], x[1])]
    assert differing
    # Untrained: policies that have learned the same best actions earn the same.
    _, programs, runs = setup(name, MANY)
    checked = programs.checkup(runs, programs.init(runs), 0, 0, np.zeros(MANY, bool))
    returns = np.asarray(checked.episodes.returns)
    assert len({run_returns.tobytes() for run_returns in returns}) > 1


@by_name
def test_nothing_compiles_twice(name: str) -> None:
    """The state after an update has the types of the state before it, weak types included."""
    spec = algorithms.get(name)
    algorithm = setup(name, 1).algorithm
    task = task_for(name)
    hypers = jax.tree.map(jnp.float32, spec.trial.hypers)
    zero = jnp.int32(0)
    before = jax.eval_shape(functools.partial(train.init, algorithm), task, jnp.uint32(0), hypers)
    after = jax.eval_shape(
        functools.partial(train.segment, algorithm), task, before, jnp.uint32(0), hypers, zero, zero, zero, zero
    )
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)


@by_name
def test_acts_inside_the_action_space(name: str) -> None:
    setting = setup(name, MANY)
    task = task_for(name)
    states = jax.tree.map(lambda x: x[:3], setting.programs.init(setting.runs).state)
    obs = jnp.asarray([[-1e6], [0.0], [1e6]])
    act = jax.vmap(setting.algorithm.act, (0, None, 0, 0))
    action = act(jax.random.split(jax.random.key(0), 3), task, states, obs)
    space = task.env.action_space
    low, high = (0, space.n - 1) if isinstance(space, Discrete) else (np.array(space.low), np.array(space.high))
    assert ((action >= low) & (action <= high)).all()
