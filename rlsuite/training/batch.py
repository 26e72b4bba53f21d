"""Many runs in one program: the only vmap over runs, and the only sharding over devices.

The run axis is flat (seeds x hyperparameters). It is split over the devices of a one-dimensional mesh, and each device
runs the same program on its own runs: `shard_map` without a collective, so no device ever waits for another one, and
what a run computes depends on how many runs share its device, not on how many devices there are. (One device alone is
the exception: XLA compiles for it otherwise, which changes the order of sums.)
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

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
    """the training segment as JAX compiled it, for who wants to read the program"""


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
    on_split, on_all = NamedSharding(mesh, PartitionSpec(RUNS)), NamedSharding(mesh, PartitionSpec())
    batched = partial(over_runs, mesh=mesh)

    init = batched(partial(train.init, algorithm), axes=(None, 0, 0))
    segment = batched(partial(train.segment, algorithm), axes=(None, 0, 0, 0, *[None] * 4), donate_argnums=1)

    def argument(sharding: NamedSharding, dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    seed = argument(on_split, jnp.uint32, width)
    hyper = jax.tree.map(lambda _: argument(on_split, jnp.float32, width), hypers)
    count = argument(on_all, jnp.int32)
    frozen = argument(on_split, jnp.bool_, width)
    task = place(task, mesh.devices.ravel().tolist())
    learning = jax.tree.map(lambda x: argument(on_split, x.dtype, *x.shape), jax.eval_shape(init, task, seed, hyper))
    with ThreadPoolExecutor() as pool:

        def compiling(function: Any, *arguments: Any) -> Future[Any]:
            """Tracing holds Python's lock and compiling does not: the next is traced while this one is compiled."""
            return pool.submit(function.lower(*arguments).compile)

        pending = [compiling(init, task, seed, hyper), compiling(segment, task, learning, seed, hyper, *[count] * 4)]
        simulator = None
        if isinstance(task.env, WithC):
            simulator = task.env.simulator(width * num_episodes, memory.num_cores())
            physics = jax.tree.map(
                lambda x: argument(on_split, x.dtype, width, num_episodes, *x.shape[1:]), simulator.physics
            )

            health = batched(partial(train.health, algorithm), axes=(None, 0, 0, 0, None, None))
            draw = batched(partial(host.draw, num_episodes=num_episodes), axes=(None, 0, None))
            start = batched(partial(host.start, algorithm), axes=(None, 0, 0, None, 0, 0))
            go_on = batched(partial(host.go_on, algorithm), axes=(None, 0, 0, None, None, 0, 0))
            of_runs = (task, learning.state, seed, count)
            playing, _ = jax.eval_shape(start, *of_runs, physics, frozen)
            playing = jax.tree.map(lambda x: argument(on_split, x.dtype, *x.shape), playing)
            pending += [
                compiling(health, task, learning, seed, hyper, count, count),
                compiling(draw, task, seed, count),
                compiling(start, *of_runs, physics, frozen),
                compiling(go_on, *of_runs, count, playing, physics),
            ]
        else:
            checkup = batched(
                partial(train.checkup, algorithm, num_episodes=num_episodes), axes=(None, 0, 0, 0, None, None, 0)
            )
            pending.append(compiling(checkup, task, learning, seed, hyper, count, count, frozen))
        compiled = [each.result() for each in pending]
    compiled_init, compiled_segment, *compiled_evaluation = compiled

    def runs(seeds: Sequence[int], hypers: Sequence[Any]) -> tuple[Array, Any]:
        """Padding repeats the last run: it computes what that one does, and nobody reads it."""
        padded = [min(i, len(seeds) - 1) for i in range(width)]
        seed_axis = np.asarray([seeds[i] for i in padded], np.uint32)
        return jax.device_put((seed_axis, stack_hypers([hypers[i] for i in padded])), on_split)

    def counts(*values: int) -> Any:
        return jax.device_put([np.int32(value) for value in values], on_all)

    def run_checkup(runs: Any, learning: train.Learning, index: int, updates: int, frozen: np.ndarray) -> train.Checkup:
        checked = run_unchecked(runs, learning, index, updates, frozen)
        check_ended(checked.episodes.ended, task.env)
        return checked

    def run_unchecked(
        runs: Any, learning: train.Learning, index: int, updates: int, frozen: np.ndarray
    ) -> train.Checkup:
        (seeds, hypers), (at, since), skip = runs, counts(index, updates), jax.device_put(frozen, on_split)
        if simulator is None:
            (compiled_checkup,) = compiled_evaluation
            checked: train.Checkup = compiled_checkup(task, learning, seeds, hypers, at, since, skip)
            return checked
        compiled_health, compiled_draw, compiled_start, compiled_go_on = compiled_evaluation
        of_runs = (task, learning.state, seeds, at)
        steps = host.Programs(
            lambda: compiled_draw(task, seeds, at),
            lambda physics: compiled_start(*of_runs, jax.device_put(physics, on_split), skip),
            lambda t, playing, physics: compiled_go_on(
                *of_runs, *counts(t), playing, jax.device_put(physics, on_split)
            ),
        )
        return train.Checkup(
            host.play(simulator, steps, frozen, task.env.max_episode_steps),
            *compiled_health(task, learning, seeds, hypers, at, since),
        )

    programs = train.Programs(
        width=width,
        runs=runs,
        init=lambda runs: compiled_init(task, *runs),
        segment=lambda runs, learning, *range_: compiled_segment(task, learning, *runs, *counts(*range_)),
        checkup=run_checkup,
        place=lambda learning: jax.device_put(learning, on_split),
        steps_per_update=algorithm.steps_per_update,
    )
    return Compiled(
        programs, learning, memory_of(compiled, learning, mesh.size), time.perf_counter() - began, compiled_segment
    )


def memory_of(compiled: Sequence[Any], learning: Any, num_devices: int) -> Memory:
    """What these compiled programs take on one device."""
    peaks = []
    for program in compiled:
        stats = program.memory_analysis()
        # Donated arguments are counted with the arguments and with the outputs, but are one buffer.
        both = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
        peaks.append(both + stats.temp_size_in_bytes)
    return Memory(learning=total_bytes(learning) // num_devices, peak=max(peaks))
