"""Two contracts of every registered method, on its traced program: no dead field, and reduces to.

No dead field: every number of `Hypers` is read by the program, and every field of `Config`, when it is changed, changes
the program. A setting that is accepted and ignored is an error, unless `AlgorithmSpec.read_with` names the settings
with which it is read. Nothing is compiled for it. Reduces to: with the settings of `AlgorithmSpec.reduces_to`, a
variant learns the bits of its base.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax.interpreters.partial_eval import dce_jaxpr

import envs
from envs import datasets
from envs.core import Box, Env, EpisodeState, Space, TimeStep
from envs.datasets import Batch, Dataset, Records
from rlsuite import algorithms
from rlsuite.algorithms.offline import td3_bc
from rlsuite.core import Algorithm, AlgorithmSpec, Clock, Metrics, Reduction, Task
from rlsuite.errors import UserError
from rlsuite.pieces import offline_td3

Array = jax.Array

NAMES = list(algorithms.registered())
REDUCED = [name for name in NAMES if algorithms.get(name).reduces_to]
UPDATES = 24
"""of a comparison: in all trials, learning starts long before"""
OBSERVATIONS = 8
EPISODES, STEPS = 64, 20


@struct.dataclass
class Drift:
    """A point that two forces of unlike bounds push about: cheap to compile, and every action counts.

    Small, so that what is traced is the method and not the environment.
    """

    id: str = struct.field(pytree_node=False, default="drift")
    max_episode_steps: int = struct.field(pytree_node=False, default=STEPS)

    @property
    def obs_dim(self) -> int:
        return 3

    @property
    def action_space(self) -> Space:
        return Box((-1.0, -2.0), (1.0, 3.0))

    def reset(self, key: Array) -> tuple[EpisodeState, Array]:
        physics = jax.random.normal(key, (3,))
        return EpisodeState(physics, jnp.int32(0)), physics

    def step(self, key: Array, state: EpisodeState, action: Array) -> tuple[EpisodeState, TimeStep]:
        physics = 0.9 * state.physics + 0.1 * jnp.stack([action[0], action[1], action[0] * action[1]])
        steps, reward = state.steps + 1, -jnp.sum(physics**2)
        shown = TimeStep(physics, reward, jnp.abs(physics[0]) > 2.0, steps >= self.max_episode_steps)
        return EpisodeState(physics, steps), shown


@functools.cache
def random_data() -> Dataset:
    """Transitions of random numbers. No two observations are equal."""
    env, rng, n = Drift(), np.random.default_rng(0), EPISODES * STEPS
    space = env.action_space
    assert isinstance(space, Box)
    action = rng.uniform(space.low, space.high, (n, space.dim))
    reward, last = rng.normal(size=n), np.arange(n) % STEPS == STEPS - 1
    terminated = last & (rng.random(n) < 0.5)
    records = Records(
        obs=rng.normal(size=(n, env.obs_dim)),
        action=action,
        reward=reward,
        next_obs=rng.normal(size=(n, env.obs_dim)),
        next_action=np.where(last[:, None], action, np.roll(action, -1, axis=0)),
        terminated=terminated,
        truncated=last & ~terminated,
        episode=np.arange(n) // STEPS,
        episode_return=reward.reshape(EPISODES, STEPS).sum(axis=1),
        complete=np.ones(EPISODES, bool),
    )
    return datasets.build(env.id, records, space, source="random numbers")


def task_of(spec: AlgorithmSpec) -> Task:
    """A continuous task where the method takes one, with data where it needs them."""
    env: Env = Drift() if Box in spec.action_spaces else envs.make("probe/action/discrete")
    return Task(env, spec.prepare(random_data()) if spec.offline else None)


# --- No dead field ----------------------------------------------------------------------------------------------------


def clock_at(number: Array) -> Clock:
    return Clock(number, number.astype(jnp.float32) / UPDATES)


def run_of(algorithm: Algorithm) -> Any:
    """A whole run: all that is ever seen of it, which is metrics, and what is read of its last state.

    The state itself is no output. A number that is kept there counts as read where something reads it there, in the
    scan over the updates too.
    """

    def run(hypers: Any, task: Task, key: Array, obs: Array) -> Any:
        def update(state: Any, number: Array) -> tuple[Any, Metrics]:
            return algorithm.update(key, task, state, hypers, clock_at(number))

        state, metrics = jax.lax.scan(update, algorithm.init(key, task, hypers), jnp.arange(UPDATES))
        reads = [algorithm.act, algorithm.value, algorithm.explore]
        report = algorithm.report and algorithm.report(key, task, state, hypers)
        return metrics, [read and read(key, task, state, obs) for read in reads], report

    return run


def inputs_of(spec: AlgorithmSpec) -> tuple[Any, Task, Array, Array]:
    """What `run_of` takes."""
    task = task_of(spec)
    hypers = jax.tree.map(jnp.float32, spec.trial.hypers)
    return hypers, task, jax.random.key(0), jnp.zeros(task.env.obs_dim)


def with_settings(spec: AlgorithmSpec, field: str) -> Any:
    """The trial's config, with the settings with which this field is read."""
    return dataclasses.replace(spec.trial.config, **spec.read_with.get(field, {}))


def unread_hypers(spec: AlgorithmSpec) -> list[str]:
    """The fields of `Hypers` that no output depends on."""
    inputs = inputs_of(spec)
    fields = spec.hypers._fields

    @functools.cache
    def read(config: Any) -> dict[str, bool]:
        program = jax.make_jaxpr(run_of(spec.make(config)))(*inputs).jaxpr
        _, used = dce_jaxpr(program, [True] * len(program.outvars))
        return dict(zip(fields, used, strict=False))

    return [field for field in fields if not read(with_settings(spec, field))[field]]


def others(value: Any) -> Iterator[Any]:
    """Other values for a setting, of which one should be valid."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (2 * value, value + 1, value // 2) if value else (1,)
    elif isinstance(value, tuple):
        yield from ((*value, value[-1]), value[:-1])
    elif isinstance(value, float):
        yield from (2.0 * value, 0.5 * value) if value else (1.0,)
    else:
        raise TypeError(f"expected a bool, a number or sizes, got {value!r}: say here what else it may be")


def changed(spec: AlgorithmSpec, config: Any, field: str) -> Any:
    """The config with another valid value of this field."""
    for value in others(getattr(config, field)):
        other = dataclasses.replace(config, **{field: value})
        try:
            spec.make(other)
        except UserError:
            continue
        return other
    raise ValueError(f"no other valid value of {field}={getattr(config, field)!r}: let the trial have one that has")


NUM_PARTS = 7


def parts(algorithm: Algorithm, inputs: tuple[Any, Task, Array, Array]) -> Iterator[Any]:
    """The program of a method, the cheap parts first."""
    hypers, task, key, obs = inputs
    yield algorithm.steps_per_update
    program, state = jax.make_jaxpr(algorithm.init, return_shape=True)(key, task, hypers)
    yield fingerprint(program)
    clock = clock_at(jnp.int32(0))
    yield fingerprint(jax.make_jaxpr(algorithm.update)(key, task, state, hypers, clock))
    for read in (algorithm.act, algorithm.value, algorithm.explore):
        yield read and fingerprint(jax.make_jaxpr(read)(key, task, state, obs))
    yield algorithm.report and fingerprint(jax.make_jaxpr(algorithm.report)(key, task, state, hypers))


def fingerprint(program: Any) -> tuple[Any, ...]:
    """Equal for equal programs. Addresses are left out: they differ from trace to trace and would pass for a change."""
    constants = [x for x in program.consts if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
    return re.sub(r"0x[0-9a-f]+", "", str(program)), *(np.asarray(x).tobytes() for x in constants)


def inert_settings(spec: AlgorithmSpec) -> list[str]:
    """The fields of `Config` whose change leaves the program and the steps of an update as they are."""
    inputs = inputs_of(spec)
    known: dict[Any, tuple[list[Any], Iterator[Any]]] = {}

    def part(config: Any, number: int) -> Any:
        """Made when it is first asked for: most changes show in the first parts."""
        made, rest = known.setdefault(config, ([], parts(spec.make(config), inputs)))
        while len(made) <= number:
            made.append(next(rest))
        return made[number]

    def is_inert(field: str) -> bool:
        config = with_settings(spec, field)
        other = changed(spec, config, field)
        return all(part(config, number) == part(other, number) for number in range(NUM_PARTS))

    return [field.name for field in dataclasses.fields(spec.config) if is_inert(field.name)]


@pytest.mark.parametrize("name", NAMES)
def test_every_hyperparameter_is_read(name: str) -> None:
    assert unread_hypers(algorithms.get(name)) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_changes_the_program(name: str) -> None:
    assert inert_settings(algorithms.get(name)) == []


@pytest.mark.parametrize("name", NAMES)
def test_read_with_names_fields(name: str) -> None:
    spec = algorithms.get(name)
    settings = {field.name for field in dataclasses.fields(spec.config)}
    assert set(spec.read_with) <= settings | set(spec.hypers._fields)
    assert all(set(needed) <= settings for needed in spec.read_with.values())


# --- Reduces to -------------------------------------------------------------------------------------------------------


def settings_of_both(spec: AlgorithmSpec, base: AlgorithmSpec) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """(config, hypers) of a variant in its reduction, and of its base there."""
    reduction = spec.reduces_to
    assert reduction is not None
    config = dataclasses.replace(spec.trial.config, **reduction.config)
    hypers = spec.trial.hypers._replace(**reduction.hypers)
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    names = {field.name for field in dataclasses.fields(base.config)}
    shared = {name: value for name, value in values.items() if name in names}
    shared_hypers = {name: value for name, value in hypers._asdict().items() if name in base.hypers._fields}
    base_config = base.config(**{**shared, **reduction.base_config})
    return (config, hypers), (base_config, base.hypers(**{**shared_hypers, **reduction.base_hypers}))


def learned(algorithm: Algorithm, task: Task, hypers: Any, key: Array) -> dict[str, Array]:
    """Name -> what a run shows and holds after `UPDATES`: actions, values, metrics of all updates, and the leaves of
    its state by their path. Not the states of optimisers, which act through parameters alone."""

    def update(state: Any, number: Array) -> tuple[Any, Metrics]:
        return algorithm.update(jax.random.fold_in(key, number), task, state, hypers, clock_at(number))

    state, metrics = jax.lax.scan(update, algorithm.init(key, task, hypers), jnp.arange(UPDATES))
    obs = jax.random.normal(key, (OBSERVATIONS, task.env.obs_dim))
    found = {f"metric {name}": values for name, values in metrics.items()}
    for name, read in {"action": algorithm.act, "value": algorithm.value}.items():
        if read is not None:
            found[name] = jax.vmap(read, (None, None, None, 0))(key, task, state, obs)
    leaves, _ = jax.tree.flatten_with_path(state)
    paths = {f"state{jax.tree_util.keystr(path)}": leaf for path, leaf in leaves}
    return found | {path: leaf for path, leaf in paths.items() if "opt_state" not in path}


def differences(spec: AlgorithmSpec, base: AlgorithmSpec) -> list[str]:
    """What both have and is not the same in both, to the bit. One small program runs both."""
    task = task_of(spec)
    given = settings_of_both(spec, base)
    makers = (spec.make, base.make)

    def run(task: Task, hypers: Any, key: Array) -> list[dict[str, Array]]:
        methods = zip(makers, given, hypers, strict=True)
        return [learned(make(config), task, numbers, key) for make, (config, _), numbers in methods]

    quick: Any = {"xla_backend_optimization_level": 0}
    # As arguments: a 0 that the compiler knows would be another program.
    hypers = jax.tree.map(jnp.float32, [numbers for _, numbers in given])
    spec_numbers, base_numbers = jax.jit(run, compiler_options=quick)(task, hypers, jax.random.key(0))
    shared = [name for name in spec_numbers if name in base_numbers]
    assert "action" in shared
    return [name for name in shared if not np.array_equal(spec_numbers[name], base_numbers[name])]


@pytest.mark.parametrize("name", REDUCED)
def test_a_variant_reduces_to_its_base(name: str) -> None:
    spec = algorithms.get(name)
    assert spec.reduces_to is not None
    assert differences(spec, algorithms.get(spec.reduces_to.base)) == []


# --- Planted faults ---------------------------------------------------------------------------------------------------


def with_field(spec: AlgorithmSpec, deliver: Any) -> AlgorithmSpec:
    """The method with a number `decay`, which `deliver(decay, metrics)` may use.

    It also travels into a compiled function and a branch that have no use for it.
    """
    fields = (*spec.hypers._fields, "decay")
    hypers_class: Any = collections.namedtuple("HypersWithDecay", fields, defaults=(*spec.hypers(), 0.5))  # type: ignore[misc]

    def make(config: Any) -> Algorithm:
        algorithm = spec.make(config)

        def init(key: Array, task: Task, hypers: Any) -> Any:
            # Kept in the state for nobody.
            return algorithm.init(key, task, spec.hypers(*hypers[:-1])), hypers.decay

        def update(key: Array, task: Task, state: Any, hypers: Any, clock: Clock) -> tuple[Any, Metrics]:
            new, metrics = algorithm.update(key, task, state[0], spec.hypers(*hypers[:-1]), clock)
            ignoring = jax.jit(lambda metrics, decay: metrics)
            metrics = jax.lax.cond(clock.update > 0, ignoring, ignoring, metrics, hypers.decay)
            return (new, state[1] * hypers.decay), deliver(hypers.decay, metrics)

        def state_reader(read: Any) -> Any:
            return read and (lambda key, task, state, obs: read(key, task, state[0], obs))

        reads = {name: state_reader(getattr(algorithm, name)) for name in ("act", "value", "explore")}
        return algorithm._replace(init=init, update=update, report=None, **reads)

    trial = spec.trial._replace(hypers=hypers_class(*spec.trial.hypers, 0.5))
    return dataclasses.replace(spec, hypers=hypers_class, make=make, trial=trial)


@pytest.mark.parametrize("name", ["td3_bc", "rebrac"])
def test_a_planted_dead_number_is_found(name: str) -> None:
    """In a base and in a variant."""
    dead = with_field(algorithms.get(name), lambda decay, metrics: metrics)
    assert unread_hypers(dead) == ["decay"]
    alive = with_field(algorithms.get(name), lambda decay, metrics: {**metrics, "decay": decay})
    assert unread_hypers(alive) == []


@pytest.mark.parametrize("name", ["td3_bc", "rebrac"])
def test_a_planted_dead_setting_is_found(name: str) -> None:
    """In a base and in a variant."""
    spec = algorithms.get(name)
    planted: Any = dataclasses.make_dataclass("Planted", [("twin", bool, False)], bases=(spec.config,), frozen=True)
    config = planted(**dataclasses.asdict(spec.trial.config))
    trial = spec.trial._replace(config=config)
    assert inert_settings(dataclasses.replace(spec, config=planted, trial=trial)) == ["twin"]


def test_a_number_that_is_read_with_a_setting_alone_must_say_so() -> None:
    spec = algorithms.get("mdpo")
    assert spec.read_with["tsallis_q"] == {"tsallis": True}
    assert unread_hypers(dataclasses.replace(spec, read_with={})) == ["tsallis_q"]


def test_a_planted_wrong_reduction_of_a_base_is_found() -> None:
    """TD3+BC that imitates actions a little nearer to the middle of the box."""

    def anchor(config: Any, task: Task, recorded: Batch, action: Array, hypers: Any) -> Array:
        return 0.999 * recorded.action

    method = offline_td3.METHOD._replace(anchor=anchor)
    planted = dataclasses.replace(
        td3_bc.SPEC, make=lambda config: offline_td3.make(config, method), reduces_to=Reduction("td3_bc")
    )
    assert "action" in differences(planted, td3_bc.SPEC)


@pytest.mark.parametrize(
    ("name", "forgotten"),
    [("rebrac", "actor_learning_rate"), ("prdc", "beta"), ("ros", "ros_step_size"), ("td3_bc+cdsa", "state_coef")],
)
def test_a_planted_wrong_reduction_of_a_variant_is_found(name: str, forgotten: str) -> None:
    """One number of the reduction has its usual value."""
    spec = algorithms.get(name)
    assert spec.reduces_to is not None
    usual = {**spec.reduces_to.hypers, forgotten: getattr(spec.trial.hypers, forgotten)}
    planted = dataclasses.replace(spec, reduces_to=spec.reduces_to._replace(hypers=usual))
    assert "action" in differences(planted, algorithms.get(spec.reduces_to.base))
