"""Many runs in one program: the only vmap over runs, and the only sharding over devices.

The run axis is flat (seeds x hyperparameters). It is split over the devices of a one-dimensional mesh, and each device
runs the same program on its own runs: `shard_map` without a collective, so no device ever waits for another one, and
what a run computes depends on how many runs share its device, not on how many devices there are. (One device alone is
the exception: XLA compiles for it otherwise, which changes the order of sums.)
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from envs.mujoco_c import WithC
from rlsuite.core import Algorithm, Task
from rlsuite.training import host, memory, train
from rlsuite.training.evaluate import check_ended

Array = jax.Array

RUNS = "runs"
"""The mesh's one axis."""


class Memory(NamedTuple):
    """What the programs of a batch take on one device, in bytes, by the compiler's own account."""

    learning: int
    """the runs' state, which stays between two segments"""
    peak: int
    """the most in use while any of the programs runs, the state included"""


class Compiled(NamedTuple):
    """The programs of a batch and what they cost."""

    programs: train.Programs
    learning: train.Learning
    """the shapes of the runs' state, `[width, ...]`"""
    memory: Memory
    compile_seconds: float
    segment: Any
    """the training segment as JAX compiled it, for inspecting the program"""


class Layout(NamedTuple):
    """Where arrays lie."""

    mesh: Mesh
    """the devices"""

    @property
    def split(self) -> NamedSharding:
        """Of what each run has: on each device for its own runs."""
        return NamedSharding(self.mesh, PartitionSpec(RUNS))

    @property
    def everywhere(self) -> NamedSharding:
        """Of what runs share: a copy on each device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def split_shape(self, dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        """An argument with a leading axis of runs."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self.split)

    def shared_shape(self, dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        """An argument that runs share."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self.everywhere)

    def counts(self, *values: int) -> Any:
        """Update counts on the devices, int32 `[]` each."""
        return jax.device_put([np.int32(value) for value in values], self.everywhere)


class Inputs(NamedTuple):
    """Shapes of what the programs are given; the task itself."""

    task: Task
    learning: train.Learning
    seed: Any
    hyper: Any
    count: Any
    frozen: Any


def stack_hypers(hypers: Sequence[Any]) -> Any:
    """One NamedTuple of floats per run -> one NamedTuple of float32 arrays `[runs]`."""
    return jax.tree.map(lambda *values: np.asarray(values, np.float32), *hypers)


def over_runs(function: Any, mesh: Mesh, axes: tuple[int | None, ...], **jit_options: Any) -> Any:
    """Over the runs of a device, on every device; axis 0 for what each run owns, None for what they share."""
    per_device = jax.vmap(function, in_axes=axes)
    specs = tuple(PartitionSpec() if axis is None else PartitionSpec(RUNS) for axis in axes)
    sharded = jax.shard_map(per_device, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(RUNS), check_vma=False)
    return jax.jit(sharded, **jit_options)


def traced_once(algorithm: Algorithm) -> Algorithm:
    """The algorithm, its update traced once for all that ask: `learning_bytes` and initialisation for the shapes of
    its metrics, training for itself."""
    return algorithm._replace(update=jax.jit(algorithm.update, inline=True))


def total_bytes(shapes: Any) -> int:
    """Bytes of all leaves of a pytree of arrays, or of their shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))


def place(task: Task, devices: Sequence[jax.Device]) -> Task:
    """The task on these devices, one copy on each, which every run there reads. What lies there already stays."""
    placed: Task = jax.device_put(task, NamedSharding(Mesh(np.asarray(devices), (RUNS,)), PartitionSpec()))
    return placed


def has_the_fault() -> bool:
    """Whether this jaxlib may crash where a program is split over devices."""
    return tuple(map(int, jaxlib.__version__.split(".")[:2])) >= (0, 11)


@contextlib.contextmanager
def sound_partitioner() -> Iterator[None]:
    """Lower and compile with GSPMD, where Shardy is at fault.

    Shardy of jaxlib 0.11.2 reads memory that is not its own (ManualComputationUnusedInputsPattern) when it drops unused
    inputs of a `shard_map` around a step of MJX, and the process dies. What each device computes is written out in our
    programs, so there is nothing to partition, and both say the same.
    """
    before = jax.config.values["jax_use_shardy_partitioner"]
    jax.config.update("jax_use_shardy_partitioner", before and not has_the_fault())
    try:
        yield
    finally:
        jax.config.update("jax_use_shardy_partitioner", before)


@sound_partitioner()
def learning_bytes(algorithm: Algorithm, task: Task, hypers: Any, devices: Sequence[jax.Device]) -> int:
    """Bytes that one run with these `Hypers` keeps between two segments. Nothing is compiled."""
    # Just as `compile_programs` calls it: what is traced here is not traced again there.
    init = over_runs(partial(train.init, algorithm), Mesh(np.asarray(devices), (RUNS,)), (None, 0, 0))
    seed = jax.ShapeDtypeStruct((len(devices),), jnp.uint32)
    hyper = jax.tree.map(lambda _: jax.ShapeDtypeStruct((len(devices),), jnp.float32), hypers)
    return total_bytes(jax.eval_shape(init, task, seed, hyper)) // len(devices)


@sound_partitioner()
def compile_programs(
    algorithm: Algorithm,
    task: Task,
    hypers: Any,
    width: int,
    num_episodes: int,
    devices: Sequence[jax.Device] | None = None,
) -> Compiled:
    """Compile initialisation, training segment and evaluation for `width` runs at once.

    Args:
        algorithm: what is trained.
        task: what on; copied to every device, not to every run.
        hypers: an example of the runs' `Hypers`; only its structure counts.
        width: runs in the program, a multiple of the number of devices.
        num_episodes: episodes of each run in each evaluation.
        devices: which to use; all local ones if None.

    The update counters are arguments that no run owns, so conditionals on them stay conditionals.
    """
    began = time.perf_counter()
    mesh = Mesh(np.asarray(jax.local_devices() if devices is None else devices), (RUNS,))
    layout = Layout(mesh)
    init = over_runs(partial(train.init, algorithm), mesh, (None, 0, 0))
    segment = over_runs(partial(train.segment, algorithm), mesh, (None, 0, 0, 0, *[None] * 4), donate_argnums=1)

    seed, count = layout.split_shape(jnp.uint32, width), layout.shared_shape(jnp.int32)
    hyper = jax.tree.map(lambda _: layout.split_shape(jnp.float32, width), hypers)
    task = place(task, mesh.devices.ravel().tolist())
    learning = jax.tree.map(lambda x: layout.split_shape(x.dtype, *x.shape), jax.eval_shape(init, task, seed, hyper))
    inputs = Inputs(task, learning, seed, hyper, count, layout.split_shape(jnp.bool_, width))
    with ThreadPoolExecutor() as pool:

        def compiling(function: Any, *arguments: Any) -> Future[Any]:
            """Tracing holds Python's lock and compiling does not: the next is traced while this one is compiled."""
            return pool.submit(function.lower(*arguments).compile)

        pending = [compiling(init, task, seed, hyper), compiling(segment, task, learning, seed, hyper, *[count] * 4)]
        evaluation = evaluation_on_host if isinstance(task.env, WithC) else evaluation_on_device
        evaluations, checkup_by = evaluation(algorithm, inputs, num_episodes, layout, compiling)
        compiled_init, compiled_segment = (each.result() for each in pending)
        compiled_evaluations = [each.result() for each in evaluations]
    run_unchecked = checkup_by(*compiled_evaluations)

    def runs(seeds: Sequence[int], hypers: Sequence[Any]) -> tuple[Array, Any]:
        """Padding repeats the last run: it computes what that one does, and nobody reads it."""
        padded = [min(i, len(seeds) - 1) for i in range(width)]
        seed_axis = np.asarray([seeds[i] for i in padded], np.uint32)
        return jax.device_put((seed_axis, stack_hypers([hypers[i] for i in padded])), layout.split)

    def run_checkup(runs: Any, learning: train.Learning, index: int, updates: int, frozen: np.ndarray) -> train.Checkup:
        checked: train.Checkup = run_unchecked(runs, learning, *layout.counts(index, updates), frozen)
        check_ended(checked.episodes.ended, task.env)
        return checked

    programs = train.Programs(
        width=width,
        runs=runs,
        init=lambda runs: compiled_init(task, *runs),
        segment=lambda runs, learning, *range_: compiled_segment(task, learning, *runs, *layout.counts(*range_)),
        checkup=run_checkup,
        place=lambda learning: jax.device_put(learning, layout.split),
        steps_per_update=algorithm.steps_per_update,
    )
    every = [compiled_init, compiled_segment, *compiled_evaluations]
    return Compiled(
        programs, learning, memory_of(every, learning, mesh.size), time.perf_counter() - began, compiled_segment
    )


Evaluating: TypeAlias = tuple[list[Future[Any]], Callable[..., Callable[..., train.Checkup]]]
"""Programs on their way, and a function that makes of them, once they are compiled, what `train.Programs.checkup` does;
that one takes the runs, what they have learned, the counters on the device, and which runs are frozen"""


def evaluation_on_device(
    algorithm: Algorithm, inputs: Inputs, num_episodes: int, layout: Layout, compiling: Callable[..., Future[Any]]
) -> Evaluating:
    """Episodes and health of all runs in one program."""
    task, learning, seed, hyper, count, frozen = inputs
    evaluate = partial(train.checkup, algorithm, num_episodes=num_episodes)
    checkup = over_runs(evaluate, layout.mesh, (None, 0, 0, 0, None, None, 0))

    def checkup_by(compiled: Any) -> Callable[..., train.Checkup]:
        def run(runs: Any, learning: Any, at: Array, since: Array, frozen: np.ndarray) -> train.Checkup:
            checked: train.Checkup = compiled(task, learning, *runs, at, since, jax.device_put(frozen, layout.split))
            return checked

        return run

    return [compiling(checkup, task, learning, seed, hyper, count, count, frozen)], checkup_by


def evaluation_on_host(
    algorithm: Algorithm, inputs: Inputs, num_episodes: int, layout: Layout, compiling: Callable[..., Future[Any]]
) -> Evaluating:
    """Episodes on C MuJoCo, whose steps the host takes, between programs for what the policy does."""
    task, learning, seed, hyper, count, frozen = inputs
    assert isinstance(task.env, WithC)
    simulator = task.env.simulator(seed.shape[0] * num_episodes, memory.num_cores())
    physics = jax.tree.map(
        lambda x: layout.split_shape(x.dtype, seed.shape[0], num_episodes, *x.shape[1:]), simulator.physics
    )
    health = over_runs(partial(train.health, algorithm), layout.mesh, (None, 0, 0, 0, None, None))
    draw = over_runs(partial(host.draw, num_episodes=num_episodes), layout.mesh, (None, 0, None))
    start = over_runs(partial(host.start, algorithm), layout.mesh, (None, 0, 0, None, 0, 0))
    go_on = over_runs(partial(host.go_on, algorithm), layout.mesh, (None, 0, 0, None, None, 0, 0))
    acting = (task, learning.state, seed, count)
    playing, _ = jax.eval_shape(start, *acting, physics, frozen)
    playing = jax.tree.map(lambda x: layout.split_shape(x.dtype, *x.shape), playing)

    def checkup_by(health: Any, draw: Any, start: Any, go_on: Any) -> Callable[..., train.Checkup]:
        def run(runs: Any, learning: Any, at: Array, since: Array, frozen: np.ndarray) -> train.Checkup:
            (seeds, hypers), skip = runs, jax.device_put(frozen, layout.split)
            acting = (task, learning.state, seeds, at)
            steps = host.Programs(
                lambda: draw(task, seeds, at),
                lambda physics: start(*acting, jax.device_put(physics, layout.split), skip),
                lambda t, playing, physics: go_on(
                    *acting, *layout.counts(t), playing, jax.device_put(physics, layout.split)
                ),
            )
            return train.Checkup(
                host.play(simulator, steps, frozen, task.env.max_episode_steps),
                *health(task, learning, seeds, hypers, at, since),
            )

        return run

    pending = [
        compiling(health, task, learning, seed, hyper, count, count),
        compiling(draw, task, seed, count),
        compiling(start, *acting, physics, frozen),
        compiling(go_on, *acting, count, playing, physics),
    ]
    return pending, checkup_by


def memory_of(compiled: Sequence[Any], learning: Any, num_devices: int) -> Memory:
    """What these compiled programs take on one device."""
    peaks = []
    for program in compiled:
        stats = program.memory_analysis()
        # Donated arguments are counted with the arguments and with the outputs, but are one buffer.
        both = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
        peaks.append(both + stats.temp_size_in_bytes)
    return Memory(learning=total_bytes(learning) // num_devices, peak=max(peaks))
