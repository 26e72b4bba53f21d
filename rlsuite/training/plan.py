"""The plan of a shard: how many runs train at once, on how many devices, within how much memory.

Wider is not always faster: on a processor the states of many runs leave its caches, on an accelerator narrow programs
leave it idle. So a few widths are tried on the real program, beginning with a good guess and going on in each direction
while it pays, as long as trying costs little against the training ahead. Both directions, because a processor may be at
its best twice, before a cache is full and when all caches are. What was measured is kept for the next time.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax

import rlsuite
from rlsuite.core import Algorithm, Task
from rlsuite.errors import UserError
from rlsuite.training import batch, memory
from rlsuite.training.progress import quantity

WIDTHS = (1, 2, 8, 32, 128, 512, 2048, 8192)
"""Runs per device that are worth a try."""
FIRST_ON_CPU = 8
BYTES_OF_STEP = 40
"""Bytes of a step without its observation, at least: keys to reset, act and step with, return, length, reward."""
MEASURED_SECONDS = 0.5
"""How long one speed is measured."""
WORTH_TRYING = 10
"""Another width is compiled and tried if training takes at least this many times as long as compiling."""


class Limits(NamedTuple):
    """What the user says about how a shard may run."""

    width: int | None = None
    """runs at once on each device; None chooses by measuring"""
    devices: int | None = None
    """local devices to use; None uses all"""
    memory_share: float = 0.75
    """share of the memory that is free now which the runs may take"""


class Plan(NamedTuple):
    """How a shard runs, and its compiled programs."""

    width: int
    """runs at once on each device"""
    devices: int
    compiled: batch.Compiled
    rates: dict[int, float]
    """width -> run-updates per second of all devices together, where measured now or before"""
    peak_memory: int
    """bytes in use at the most, on each device; of the whole process where devices are processor cores"""

    @property
    def lanes(self) -> int:
        """Runs at once, on all devices."""
        return self.width * self.devices

    def describe(self, num_runs: int) -> str:
        """The plan on one line."""
        chunks = -(-num_runs // self.lanes)
        text = f"{min(self.lanes, num_runs)} runs at once"
        if self.devices > 1:
            text += f" on {self.devices} devices"
        if chunks > 1:
            text += f", {chunks} chunks"
        text += f"; peak memory {quantity(self.peak_memory)}B planned"
        if len(self.rates) > 1:
            rates = ", ".join(f"{width}: {quantity(rate)}" for width, rate in sorted(self.rates.items()))
            text += f"; run-updates/s by width {rates}"
        return text


class Speed(NamedTuple):
    """What is known of the programs of one width."""

    rate: float
    """run-updates per second of all devices together; 0 if they take too much memory"""
    compile_seconds: float


class Work(NamedTuple):
    """What there is to do, as far as its speed and memory go."""

    name: str
    """of the algorithm"""
    config: Any
    algorithm: Algorithm
    task: Task
    hypers: Any
    """an example"""
    num_runs: int
    total_updates: int
    num_episodes: int


def balanced(width: int, num_runs: int, devices: int) -> int:
    """The narrowest program that does the runs in as many chunks as this width: the last chunk is nearly full."""
    chunks = -(-num_runs // (width * devices))
    return -(-num_runs // (chunks * devices))


def compile_for(work: Work, width: int, devices: int) -> batch.Compiled:
    """The programs for `width` runs on each of the first `devices` devices."""
    return batch.compile_programs(
        work.algorithm, work.task, work.hypers, width * devices, work.num_episodes, jax.local_devices()[:devices]
    )


def choose(work: Work, limits: Limits) -> Plan:
    """Choose by memory first, then by speed.

    Raises:
        UserError: not even one run fits, or a limit that cannot be kept.
    """
    work = work._replace(algorithm=batch.traced_once(work.algorithm))
    devices = num_devices(work.num_runs, limits.devices)
    free = memory.free_bytes(devices)
    budget = int(limits.memory_share * free)
    shared, needed = batch.total_bytes(work.task.dataset), least_bytes(work, devices)
    if shared + needed > budget:
        raise UserError(
            f"one run takes {quantity(needed)}B a device"
            + (f" next to {quantity(shared)}B of its dataset" if shared else "")
            + f", but {limits.memory_share:.0%} of the free memory are {quantity(budget)}B; "
            "make its buffer, networks, steps or evaluation episodes smaller, or raise --memory-share"
        )
    # Here, so that however many widths are tried, there is one copy.
    work = work._replace(task=batch.place(work.task, jax.local_devices()[:devices]))
    if limits.width is not None:
        width = balanced(limits.width, work.num_runs, devices)
        if shared + width * needed > budget:
            raise UserError(
                f"width={limits.width} takes at least {quantity(shared + width * needed)}B a device, but "
                f"{limits.memory_share:.0%} of the free memory are {quantity(budget)}B; "
                f"choose at most {(budget - shared) // needed}"
            )
        return plan_of(work, width, devices, compile_for(work, width, devices), {})

    most = min((budget - shared) // needed, -(-work.num_runs // devices))
    widths = sorted({balanced(min(width, most), work.num_runs, devices) for width in (*WIDTHS, most)})
    known = {width: measured for width, measured in load_speeds(work, devices).items() if width in widths}
    tried: dict[int, batch.Compiled] = {}

    def rate(width: int) -> float:
        """Run-updates per second, 0 if it takes too much memory."""
        if width not in known:
            compiled = tried[width] = compile_for(work, width, devices)
            if bytes_of(compiled) > budget:
                known[width] = Speed(0.0, compiled.compile_seconds)
            elif len(widths) > 1:
                known[width] = Speed(measure(work, compiled), compiled.compile_seconds)
                save_speeds(work, devices, known)
            else:
                known[width] = Speed(1.0, compiled.compile_seconds)
        return known[width].rate

    def worth_trying(width: int, best: int) -> bool:
        if width in known:
            return True
        rate, compile_seconds = known[best]
        return rate == 0.0 or work.num_runs * work.total_updates / rate > WORTH_TRYING * compile_seconds

    most_at_first = FIRST_ON_CPU if memory.on_processor() else most
    best = first = max((i for i in range(len(widths)) if widths[i] <= most_at_first), default=0)
    rate(widths[best])
    for step in (1, -1):
        i = first + step
        while 0 <= i < len(widths) and worth_trying(widths[i], widths[best]):
            if rate(widths[i]) <= rate(widths[best]):
                break
            best, i = i, i + step
    # The best may not fit: where nothing that was tried did, or where its speed is known from a time with more memory.
    compiled = tried.get(widths[best]) or compile_for(work, widths[best], devices)
    while (widths[best] in known and rate(widths[best]) == 0.0) or bytes_of(compiled) > budget:
        if best == 0:
            raise UserError(
                f"{widths[0]} run(s) a device take {quantity(bytes_of(compiled))}B, but {limits.memory_share:.0%} of "
                f"the free memory are {quantity(budget)}B; make the buffer or networks smaller, or raise --memory-share"
            )
        best -= 1
        compiled = tried.get(widths[best]) or compile_for(work, widths[best], devices)
    width = widths[best]
    return plan_of(work, width, devices, compiled, {w: each.rate for w, each in known.items() if len(widths) > 1})


def plan_of(work: Work, width: int, devices: int, compiled: batch.Compiled, rates: dict[int, float]) -> Plan:
    """The plan for programs that are compiled."""
    return Plan(width, devices, compiled, rates, memory.peak_with(bytes_of(compiled), devices))


def num_devices(num_runs: int, wanted: int | None) -> int:
    """How many local devices are used: no more than there are runs."""
    there = jax.local_device_count()
    if wanted is not None and not 1 <= wanted <= there:
        raise UserError(f"devices={wanted}, but this machine shows {there}; choose 1 to {there}")
    return min(wanted or there, num_runs)


def least_bytes(work: Work, devices: int) -> int:
    """What one run takes on its device before anything is compiled: its state, and the copy that a snapshot makes, with
    the episodes of an evaluation or the steps of an update, whichever is more."""
    state_bytes = batch.learning_bytes(work.algorithm, work.task, work.hypers, jax.local_devices()[:devices])
    # Billions of them would keep the compiler busy for minutes before it could say so.
    steps = work.algorithm.steps_per_update if work.task.dataset is None else 0
    step_bytes = 4 * work.task.env.obs_dim + BYTES_OF_STEP
    return state_bytes * (1 + memory.copies()) + max(work.num_episodes, steps) * step_bytes


def bytes_of(compiled: batch.Compiled) -> int:
    """What the programs take on each device, with the copy that a snapshot makes."""
    return compiled.memory.peak + memory.copies() * compiled.memory.learning


def measure(work: Work, compiled: batch.Compiled) -> float:
    """Run-updates per second of all devices together, in the middle of the budget, where every learner learns.

    0 if the device refuses the memory.
    """
    try:
        return time_segments(work, compiled)
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not memory.is_out_of_memory(error):
            raise
        return 0.0


def time_segments(work: Work, compiled: batch.Compiled) -> float:
    """What `measure` returns, where there is memory for it."""
    programs = compiled.programs
    runs = programs.runs([0] * programs.width, [work.hypers] * programs.width)
    learning = programs.init(runs)
    middle, total = work.total_updates // 2, work.total_updates
    count, seconds = 1, 0.0
    learning = jax.block_until_ready(programs.segment(runs, learning, middle, middle + 1, total, 0))
    while seconds < MEASURED_SECONDS:
        count = max(count, min(8 * count, int(count * 1.2 * MEASURED_SECONDS / seconds)) if seconds else count)
        began = time.perf_counter()
        learning = jax.block_until_ready(programs.segment(runs, learning, middle, middle + count, total, 0))
        seconds = time.perf_counter() - began
    return programs.width * count / seconds


# --- What was measured before -----------------------------------------------------------------------------------------


def speeds_path(work: Work, devices: int) -> Path:
    """The file of this program's speeds on this machine."""
    device, dataset = jax.local_devices()[0], work.task.dataset
    key = [
        [platform.node(), device.platform, device.device_kind, devices, memory.num_cores()],
        [jax.__version__, rlsuite.__version__],
        [work.name, repr(work.config), work.task.env.id, work.task.env.max_episode_steps],
    ]
    if dataset is not None:  # PRDC looks for near transitions among all
        key.append([dataset.id, dataset.size])
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    return cache_folder() / "speed" / f"{work.name}-{digest}.json"


def cache_folder() -> Path:
    """Where measurements and compiled programs are kept for this user, if it can be written."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rlsuite"
    except RuntimeError:  # a user without a home, as in containers; no folder can be where a device is
        return Path(os.devnull) / "rlsuite"


def load_speeds(work: Work, devices: int) -> dict[int, Speed]:
    """By width; empty where nothing can be read."""
    try:
        kept = json.loads(speeds_path(work, devices).read_text())
        return {int(width): Speed(float(rate), float(seconds)) for width, (rate, seconds) in kept.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def save_speeds(work: Work, devices: int, speeds: dict[int, Speed]) -> None:
    """Keep them, if that is possible; training goes on without."""
    path = speeds_path(work, devices)
    merged = load_speeds(work, devices) | {width: speed for width, speed in speeds.items() if speed.rate > 0}
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({str(width): speed for width, speed in sorted(merged.items())}))
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
