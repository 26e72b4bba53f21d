"""What a GPU would run, without one: the kernels in a training segment's loops, and the bytes that they move.

    pip install --no-deps --target DIR jax-cuda13-plugin==VERSION jax-cuda13-pjrt==VERSION    # VERSION of jax here
    XLA_FLAGS=--xla_gpu_cuda_data_dir=/usr/local/cuda PYTHONPATH=DIR python benchmarks/gpu_kernels.py --runs 300 ppo

XLA compiles for a device that it is told of in words, here an H200; CUDA's ptxas has to be there. It tunes no kernel
that way, so what it would choose by measuring may differ on a real device. Every instruction of an optimised program
that is not bookkeeping is a kernel. Bytes are those of operands and results, where only a slice is touched those of the
slice; at the device's bandwidth they take the time in the last column, which no kernel can undercut. Small
batches are bound by the number of kernels instead: launching one takes a few microseconds.

The benchmarks are those of peers/compare.py, for a learner and its environment.
"""

from __future__ import annotations

import argparse
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from peers.compare import BENCHMARKS
from where_time_goes import Line, lines_of, sizes

import envs
from rlsuite import algorithms
from rlsuite.core import Task
from rlsuite.training import batch, train

BANDWIDTH = 4.8e12
"""bytes per second of the memory of an H200, by its maker"""
DEVICE = f"""
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  memory_bandwidth: {BANDWIDTH:.0f}
  device_memory_size: 151397597184
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "H200"
"""
"""in the words of XLA's GpuTargetConfigProto; numbers as its maker and CUDA give them"""
NO_KERNELS = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call")


def segment_text(name: str, runs: int) -> str:
    """The training segment of a benchmark at so many runs, compiled for `DEVICE`."""
    benchmark = BENCHMARKS[name]
    spec = algorithms.get(benchmark.algorithm)
    algorithm = spec.make(spec.config(**benchmark.config))
    task = Task(envs.make(f"gymnax/{benchmark.environment}"))
    # Several devices would stand for several hosts; this is one of one.
    topology: Any = topologies.get_topology_desc("H200", "cuda", target_config=DEVICE, topology="1x1x1")
    mesh = Mesh(np.asarray(topology.devices[:1]), (batch.RUNS,))

    def argument(spec: PartitionSpec, dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    split, whole = PartitionSpec(batch.RUNS), PartitionSpec()
    shared = jax.tree.map(lambda x: argument(whole, jnp.asarray(x).dtype, *jnp.shape(x)), task)
    seed = argument(split, jnp.uint32, runs)
    hypers = jax.tree.map(lambda _: argument(split, jnp.float32, runs), spec.hypers(**benchmark.hypers))
    init = batch.over_runs(partial(train.init, algorithm), mesh, (None, 0, 0))
    shapes = jax.eval_shape(init, shared, seed, hypers)
    learning = jax.tree.map(lambda x: argument(split, x.dtype, *x.shape), shapes)
    segment = batch.over_runs(partial(train.segment, algorithm), mesh, (None, 0, 0, 0, *[None] * 4), donate_argnums=1)
    count = argument(whole, jnp.int32)
    return str(segment.lower(shared, learning, seed, hypers, *[count] * 4).compile().as_text())


def loops(found: dict[str, list[Line]]) -> list[tuple[str, str, int]]:
    """(where it stands, its body, how often it turns) of every loop; 0 where only the program's input says."""
    whiles = [(where, line.rest) for where, lines in found.items() for line in lines if line.opcode == "while"]
    turns = [re.search(r'known_trip_count":\{"n":"(\d+)"', rest) for _, rest in whiles]
    bodies = [re.search(r"body=%?([\w.\-]+)", rest) for _, rest in whiles]
    return [
        (where, body.group(1), int(count.group(1)) if count else 0)
        for (where, _), body, count in zip(whiles, bodies, turns, strict=True)
        if body
    ]


def touched(lines: list[Line]) -> int:
    """Bytes that a fused computation reads and writes: of an operand that is only sliced, the slices; of a result that
    is another array with a slice replaced, that slice."""
    by_name = {line.name: line for line in lines}
    users: dict[str, list[Line]] = {}
    for line in lines:
        for name in line.operands:
            users.setdefault(name, []).append(line)

    def read(name: str) -> int:
        through = users.get(name, [])
        if len(through) == 1 and through[0].opcode == "bitcast":
            return read(through[0].name)
        if through and all(user.opcode == "dynamic-slice" for user in through):
            return sum(sizes(user.shape) for user in through)
        if through and all(user.opcode == "dynamic-update-slice" and user.operands[0] == name for user in through):
            return 0
        return sizes(by_name[name].shape)

    def written(name: str) -> int:
        line = by_name[name]
        if line.opcode == "tuple":
            return sum(written(each) for each in line.operands)
        if line.opcode == "bitcast":
            return written(line.operands[0])
        return sizes(by_name[line.operands[1]].shape if line.opcode == "dynamic-update-slice" else line.shape)

    parameters = [line.name for line in lines if line.opcode == "parameter"]
    return sum(read(name) for name in parameters) + written(lines[-1].name)


def kernels(found: dict[str, list[Line]], computation: str) -> list[int]:
    """Bytes that each kernel of a computation moves; kernels of loops within are not among them."""
    shapes = {line.name: line.shape for line in found[computation]}
    moved = []
    for line in found[computation]:
        if line.opcode in NO_KERNELS or line.opcode.endswith("-done"):  # what was begun is counted where it began
            continue
        if line.calls:
            moved.append(touched(found[line.calls]))
        else:
            moved.append(sizes(line.shape) + sum(sizes(shapes[each]) for each in line.operands if each in shapes))
    return moved


def main() -> None:
    """Print a line for each loop."""
    parser = argparse.ArgumentParser(description="Kernels and bytes of a training segment on a GPU, without one.")
    online = [name for name, benchmark in BENCHMARKS.items() if benchmark.environment]
    parser.add_argument("benchmark", choices=online)
    parser.add_argument("--runs", type=int, nargs="+", default=[300, 4096])
    given = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # or JAX looks for the device
    print(
        "| runs | loop | inside of | turns | kernels a turn | MB a turn | at the memory's bandwidth |\n|---"
        + "|---" * 6
    )
    for runs in given.runs:
        found = lines_of(segment_text(given.benchmark, runs))
        names = {body: number for number, (_, body, _) in enumerate(loops(found), 1)}
        for where, body, turns in loops(found):
            moved = kernels(found, body)
            print(
                f"| {runs} | {names[body]} | {names.get(where, '')} | {turns or 'updates'} | {len(moved)} "
                f"| {sum(moved) / 1e6:.3g} | {1e6 * sum(moved) / BANDWIDTH:.3g} us |"
            )


if __name__ == "__main__":
    main()
