"""`rlsuite check --speed`: has training become slower, or does it take more memory, than when the references were made?

Seconds of two machines have nothing to do with each other, so speed is measured against a calibrating program that
does the same on every machine: a loop of small matrix products, timed in turns with the training. On a processor it is
the seconds that the process has computed that count, not those that have passed, in which others compute too; and the
fastest of several repeats, which they disturb least. What is compared between machines is the quotient, and by a
generous factor, since processors differ in more than one number. Memory is
the compiler's own account, which is exact; between versions of JAX and kinds of device it may differ, so it is compared
where both are those of the reference.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlsuite.errors import UserError
from rlsuite.sweeping import chunk
from rlsuite.sweeping.job import Job
from rlsuite.training import batch, memory
from rlsuite.training.progress import quantity, say

WIDTH = 8
"""Runs at once, on one device."""
REPEATS = 7
SEGMENT_SECONDS = 0.3
SLOWDOWN = 2.0
"""Training that is this many times slower than the reference fails."""
GROWTH = 1.25
"""So does a program that takes this many times its memory."""


class Speed(NamedTuple):
    """What is kept with a reference."""

    relative: float
    """run-updates in the time of one round of the calibrating program"""
    peak_bytes: int
    """of the programs for `WIDTH` runs on one device, by the compiler's account"""
    device: str
    jax: str


def measure(job: Job) -> Speed:
    """Compile the job's programs and time them in turns with the calibrating program, in this process.

    Raises:
        UserError: as `chunk.given_to` and `chunk.work_of`.
    """
    work = chunk.work_of(job, chunk.given_to(job))
    hypers, total = work.hypers, work.total_updates
    device = jax.local_devices()[0]
    task = batch.place(work.task, [device])
    compiled = batch.compile_programs(work.algorithm, task, hypers, WIDTH, work.num_episodes, [device])
    programs = compiled.programs
    runs = programs.runs(range(WIDTH), [hypers] * WIDTH)
    learning = programs.init(runs)

    def train(count: int) -> None:
        nonlocal learning
        # Always the same updates, in the middle of the budget, where every learner learns.
        learning = programs.segment(runs, learning, total // 2, total // 2 + count, total, 0)
        jax.block_until_ready(learning)

    updates, rounds = fitting(train), fitting(calibrate)
    repeats = [
        (seconds(train, updates) / (WIDTH * updates), seconds(calibrate, rounds) / rounds) for _ in range(REPEATS)
    ]
    training_seconds, calibrating_seconds = map(min, zip(*repeats, strict=True))
    return Speed(calibrating_seconds / training_seconds, compiled.memory.peak, device.device_kind, jax.__version__)


def calibrate(count: int) -> None:
    """So many rounds of the program that all is measured against: products as small as those of small networks."""
    jax.block_until_ready(_products(jnp.ones((WIDTH, 64, 64)), count))


@jax.jit
def _products(matrices: jax.Array, count: int) -> jax.Array:
    def step(_: Any, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ matrices / 64.0)

    return jax.lax.fori_loop(0, 100 * count, step, matrices)


def seconds(work: Callable[[int], None], count: int) -> float:
    """How long it takes: on a processor the time that it computes, on all cores together."""
    clock = time.process_time if memory.on_processor() else time.perf_counter
    began = clock()
    work(count)
    return clock() - began


def fitting(work: Callable[[int], None]) -> int:
    """The count that takes about `SEGMENT_SECONDS`."""
    count = 1
    work(count)  # the first compiles, or touches memory that was never used
    while (took := seconds(work, count)) < SEGMENT_SECONDS / 4:
        count *= 4
    return max(1, round(count * SEGMENT_SECONDS / took))


def compare(shards: Mapping[str, Job], references: Mapping[str, Mapping[str, Any]]) -> int:
    """Measure each cell, print it next to its reference, and give the exit code: 0, or 1 if any has become worse.

    Raises:
        UserError: a reference without speed, or as `measure`.
    """
    failed = []
    say(f"{'':40} {'speed':>8} {'was':>8} {'quotient':>9} {'memory':>8} {'was':>8}")
    for name, shard in shards.items():
        if "speed" not in references[name]:
            raise UserError(f"the reference of {name} has no speed; refresh it")
        was, now = Speed(**references[name]["speed"]), measure(shard)
        slower = was.relative > SLOWDOWN * now.relative
        comparable = (was.device, was.jax) == (now.device, now.jax)
        larger = comparable and now.peak_bytes > GROWTH * was.peak_bytes
        verdict = ", ".join(["slower"] * slower + ["more memory"] * larger) or "PASS"
        say(
            f"{name:40} {now.relative:8.3g} {was.relative:8.3g} {now.relative / was.relative:8.2f}x "
            f"{quantity(now.peak_bytes):>7}B {quantity(was.peak_bytes):>7}B  {verdict}"
            + ("" if comparable else f" (memory not compared: made on {was.device}, jax {was.jax})")
        )
        if verdict != "PASS":
            failed.append(name)
    say("Speed: run-updates in the time of one round of a calibrating program, timed in turns with them.")
    say(
        f"FAIL: {', '.join(failed)}"
        if failed
        else f"PASS: none is {SLOWDOWN:g}x slower or takes {GROWTH:g}x the memory"
    )
    return int(bool(failed))
