"""Where the time of a training segment goes, and how much of the device's arithmetic it uses: two tables.

    python benchmarks/where_time_goes.py [--runs 2] [NAME ...]

Each learner is compiled as `rlsuite run` compiles it, timed, and then traced by JAX's profiler, which gives every
operation of the compiled program its time. An operation belongs to the part of the suite whose line made it: the
innermost file of its stack that is named in `PARTS`; a matrix product that lost its stack belongs to the networks.
Operations are counted from the program's text: two for each multiplication of a matrix product, and the bytes of every
operand and result. The peaks are measured on this device: the product of two large matrices, and a copy. Tracing slows
small operations down: parts are shares of the traced time, rates are of the time without tracing, and the first table's
last column is how many times as long the traced time is. Where it is far above 1, as with PRDC's search of many small
operations, the share of large operations in truth is about theirs in the table times that number.
"""

from __future__ import annotations

import argparse
import math
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from peers.suite import still_task

import envs
from rlsuite import algorithms
from rlsuite.algorithms.off_policy import dsac_t, sac
from rlsuite.algorithms.offline import iql, prdc, td3_bc
from rlsuite.algorithms.on_policy import ppo
from rlsuite.commands.bench_row import fitting_count, segments_of
from rlsuite.core import Task
from rlsuite.training import batch, memory
from rlsuite.training.device import describe_device, prepare_jax

SMALL: dict[str, Any] = {"batch_size": 64, "hidden_sizes": (64, 64)}
LEARNERS: dict[str, tuple[str, str | None, Any]] = {
    "PPO": ("ppo", "gymnax/CartPole-v1", ppo.Config()),
    "SAC": ("sac", "gymnax/Pendulum-v1", sac.Config(buffer_size=10_000)),
    "SAC 64-64": ("sac", "gymnax/Pendulum-v1", sac.Config(buffer_size=10_000, **SMALL)),
    "DSAC-T": ("dsac_t", "gymnax/Pendulum-v1", dsac_t.Config(buffer_size=10_000)),
    "TD3+BC": ("td3_bc", None, td3_bc.Config()),
    "TD3+BC 64-64": ("td3_bc", None, td3_bc.Config(**SMALL)),
    "IQL": ("iql", None, iql.Config()),
    "PRDC": ("prdc", None, prdc.Config()),
}
"""name -> (algorithm, environment or None for a dataset of smooth transitions, Config)"""
ROWS = 100_000
"""transitions of that dataset"""
PARTS = {
    "networks": ("flax/", "rlsuite/pieces/networks.py"),
    "optimiser and targets": ("optax/",),
    "search": ("rlsuite/pieces/nearest.py",),
    "replay and dataset": ("rlsuite/pieces/replay.py", "rlsuite/pieces/offline.py", "envs/datasets.py"),
    "environment": ("envs/", "rlsuite/pieces/rollout.py", "gymnax/", "brax/"),
}
"""part -> what a file's path contains; the first that fits, of the innermost file of a stack that is named here"""
RANDOM = re.compile(r"jit\((_normal|_uniform|_randint|_shuffle|_gumbel|permutation)|threefry|random_bits|fold_in")
"""names of jax.random's functions, which have no file of their own in a stack"""
COLUMNS = (*PARTS, "random numbers", "rest")
CONTAINERS = ("while", "conditional", "call")
"""what they contain is traced itself"""
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "u8": 1, "s8": 1, "s64": 8, "u64": 8, "f64": 8}
MATRIX, COPIED, REPEATED = 2048, 1 << 26, 8


class Line(NamedTuple):
    """An instruction as a program's text has it."""

    name: str
    shape: str
    opcode: str
    rest: str
    """of the line, behind the bracket that opens the operands"""

    @property
    def operands(self) -> list[str]:
        """Their names."""
        return re.findall(r"%([\w.\-]+)", self.rest.split("), ")[0])

    @property
    def calls(self) -> str | None:
        """The computation that was fused into it."""
        found = re.search(r"calls=%?([\w.\-]+)", self.rest)
        return found and found.group(1)


class Instruction(NamedTuple):
    """One operation of a compiled program."""

    opcode: str
    part: str
    operations: int
    """of its matrix products"""
    bytes: int
    """of operands and results"""

    @property
    def is_product(self) -> bool:
        """Whether there is a matrix product in it."""
        return self.operations > 0


def stacks(text: str) -> dict[int, list[str]]:
    """Number of a stack -> its files, innermost first, from the tables at a program's head."""

    def table(title: str, pattern: str) -> dict[int, tuple[str, ...]]:
        body = re.search(rf"^{title}\n((?:\d+ .*\n)+)", text, re.MULTILINE)
        lines = body.group(1).splitlines() if body else []
        found = [re.match(rf"(\d+) {pattern}", line) for line in lines]
        return {int(match.group(1)): match.groups()[1:] for match in found if match}

    names = table("FileNames", '"(.*)"')
    locations = table("FileLocations", r"\{file_name_id=(\d+)")
    frames = table("StackFrames", r"\{file_location_id=(\d+)(?: parent_frame_id=(\d+))?")

    def files(frame: int) -> list[str]:
        found: list[str] = []
        while frame in frames and len(found) < 200:
            location, parent = frames[frame]
            found.append(names[int(locations[int(location)][0])][0])
            frame = int(parent or 0) - 1  # written as one more than it is
        return found

    return {frame: files(frame) for frame in frames}


def part_of(files: list[str], name: str) -> str:
    """The part that an operation belongs to, by its stack and by the name JAX gave it."""
    if RANDOM.search(name):
        return "random numbers"
    for file in files:
        for part, places in PARTS.items():
            if any(place in file for place in places):
                return part
    return "rest"


def sizes(shape: str) -> int:
    """Bytes of a shape as the program's text writes it, tuples included."""
    return sum(
        BYTES.get(dtype, 0) * math.prod(int(n) for n in dims.split(",") if n)
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape)
    )


def lines_of(text: str) -> dict[str, list[Line]]:
    """Computation -> its instructions in order, the last of which is its result, of a program's text."""
    found: dict[str, list[Line]] = {}
    computation = ""
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if head := re.match(r"\s*(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            computation = head.group(1)
            found[computation] = []
        elif parts := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ((?:\([^=]*?\)|\S+)) ([\w\-]+)\((.*)", line):
            found[computation].append(Line(*parts.groups()))
    return found


def instructions(text: str) -> dict[str, Instruction]:
    """Name -> instruction, of all computations of a program's text."""
    frame_stacks = stacks(text)
    inside = lines_of(text)
    lines = {line.name: line for computation in inside.values() for line in computation}

    def dims(name: str) -> list[int]:
        found = re.search(r"\[([\d,]*)\]", lines[name].shape)
        return [int(n) for n in found.group(1).split(",") if n] if found else []

    def products(name: str) -> int:
        line = lines[name]
        if line.opcode == "dot":
            contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.rest)
            assert contracted
            depth = math.prod(dims(line.operands[0])[int(i)] for i in contracted.group(1).split(",") if i)
            return 2 * math.prod(dims(name)) * depth
        return sum(products(each.name) for each in inside.get(line.calls, [])) if line.calls else 0

    found = {}
    for name, line in lines.items():
        frame = re.search(r"stack_frame_id=(\d+)", line.rest)
        title = re.search(r'op_name="([^"]*)"', line.rest)
        part = part_of(frame_stacks.get(int(frame.group(1)), []) if frame else [], title.group(1) if title else "")
        count = products(name)
        moved = sizes(line.shape) + sum(sizes(lines[each].shape) for each in line.operands if each in lines)
        if part == "rest" and count:
            part = "networks"
        found[name] = Instruction(line.opcode, part, count, moved)
    return found


def peaks() -> tuple[float, float]:
    """Of this machine, all devices together: operations per second of a matrix product, bytes per second of a copy."""
    devices = jax.local_devices()

    def best(function: Callable[[Any], Any], *arrays: jax.Array) -> float:
        """Seconds of one call on every device at once."""
        split = jax.pmap(function)
        jax.block_until_ready(split(*arrays))
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            jax.block_until_ready(split(*arrays))
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    square = jnp.eye(MATRIX)[None].repeat(len(devices), 0)
    long = jnp.ones((len(devices), COPIED // 4))

    def again(step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Several in one call: the first touches memory that the system has not given yet."""
        return lambda x: jax.lax.fori_loop(0, REPEATED, lambda _, x: step(x), x)

    products = len(devices) * REPEATED * 2 * MATRIX**3 / best(again(lambda x: x @ x), square)
    return products, len(devices) * REPEATED * 2 * COPIED / best(again(lambda x: x + 1.0), long)


class Profile(NamedTuple):
    """What was found of one learner."""

    rate: float
    """run-updates per second, all devices together"""
    shares: dict[str, float]
    """part -> its share of the traced time"""
    in_products: float
    """share of the traced time in matrix products"""
    slowdown: float
    """traced time, as a multiple of the time without tracing"""
    operations: float
    """of matrix products, in one update of one run"""
    bytes: float
    """operands and results of everything, in one update of one run"""


def profile(name: str, runs: int, rows: int) -> Profile:
    """Time and trace one learner with so many runs at once, over all devices."""
    algorithm, environment, config = LEARNERS[name]
    spec = algorithms.get(algorithm)
    task = Task(envs.make(environment)) if environment else still_task(spec, rows)
    compiled = batch.compile_programs(spec.make(config), task, spec.hypers(), runs, 1)
    segment = segments_of(compiled.programs, spec.hypers(), runs)
    count = 2 * max(1, round(fitting_count(segment) / 2))  # as many with a delayed actor step as without
    rate = runs * count / min(segment(count) for _ in range(5))
    traced = 2 * max(1, min(count // 4, 20) // 2)  # reading a long trace takes minutes
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            segment(traced)
        (file,) = Path(folder).rglob("*.xplane.pb")  # the JSON beside it ends after a million events
        trace = jax.profiler.ProfileData.from_file(str(file))
    found = instructions(compiled.segment.as_text())
    seconds: Counter[str] = Counter()
    products, operations, moved = 0.0, 0, 0
    for event in (event for plane in trace.planes for line in plane.lines for event in line.events):
        operation = found.get(str(dict(event.stats).get("hlo_op", "")))
        if operation is None or operation.opcode in CONTAINERS:
            continue
        seconds[operation.part] += event.duration_ns / 1e9
        products += operation.is_product * event.duration_ns / 1e9
        operations += operation.operations
        moved += operation.bytes
    total = sum(seconds.values())
    each = runs * traced
    slowdown = total / jax.local_device_count() * rate / each
    shares = {part: seconds[part] / total for part in COLUMNS}
    return Profile(rate, shares, products / total, slowdown, operations / each, moved / each)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="Where the time of training goes.")
    parser.add_argument("learners", nargs="*", metavar="NAME", help=f"of {', '.join(LEARNERS)} (all)")
    parser.add_argument("--runs", type=int, default=memory.num_cores(), help="at once, over all devices")
    parser.add_argument("--rows", type=int, default=ROWS, help="transitions of the dataset of offline learners")
    given = parser.parse_args()
    if unknown := set(given.learners) - set(LEARNERS):
        parser.error(f"unknown learner {unknown.pop()!r}; choose from {', '.join(LEARNERS)}")
    prepare_jax()
    product, copied = peaks()
    print(
        f"{describe_device()}, {memory.num_cores()} cores; jax {jax.__version__}; {given.runs} runs at once on "
        f"{jax.local_device_count()} devices; a matrix product takes {product / 1e9:.0f} GFLOP/s, a copy "
        f"{copied / 1e9:.1f} GB/s"
    )
    found = {name: profile(name, given.runs, given.rows) for name in given.learners or LEARNERS}
    print("\n| | " + " | ".join(COLUMNS) + " | of it in matrix products | slowed down by |")
    print("|---" * (len(COLUMNS) + 3) + "|")
    for name, row in found.items():
        print(f"| {name} | " + " | ".join(f"{100 * row.shares[part]:.0f} %" for part in COLUMNS), end="")
        print(f" | {100 * row.in_products:.0f} % | {row.slowdown:.2g}x |")
    print("\n| | run-updates/s | GFLOP an update | share of the peak | MB an update | share of the copy's rate |")
    print("|---" * 6 + "|")
    for name, row in found.items():
        print(
            f"| {name} | {row.rate:.3g} | {row.operations / 1e9:.4g} | "
            f"{100 * row.rate * row.operations / product:.0f} % | "
            f"{row.bytes / 1e6:.3g} | {100 * row.rate * row.bytes / copied:.0f} % |"
        )


if __name__ == "__main__":
    main()
