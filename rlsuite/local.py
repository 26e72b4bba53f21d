"""The executor that runs shards one after another in this process."""

from __future__ import annotations

import datetime
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import envs
import rlsuite
from rlsuite import algorithms, batch
from rlsuite.core import Task
from rlsuite.progress import duration, evaluation_line, quantity, say
from rlsuite.store import Store, rows
from rlsuite.sweep import Shard
from rlsuite.train import train

PACKAGES = ("jax", "jaxlib", "flax", "optax", "brax", "mujoco", "mujoco-mjx", "gymnax", "numpy")


def run(shards: Sequence[Shard], store: Store) -> None:
    """Run the shards that the store does not hold yet, writing every evaluation as it comes.

    Raises:
        UserError: the store cannot be written any more; evaluations written before stay.
    """
    began = time.perf_counter()
    for i, shard in enumerate(shards, start=1):
        title = f"[{i}/{len(shards)}] {shard.label} on {shard.environment}, {len(shard.runs)} runs"
        if store.has(shard):
            say(f"{title}: done before, kept")
            continue
        say(f"{title} x {quantity(shard.cell.steps)} steps")
        run_shard(shard, store)
    say(f"{len(shards)} of {len(shards)} shards in {store.folder} after {duration(time.perf_counter() - began)}")


def run_shard(shard: Shard, store: Store) -> None:
    """Train all runs of one shard and write its rows and its manifest."""
    cell = shard.cell
    spec = algorithms.get(cell.algorithm)
    algorithm = spec.make(spec.fit(shard.config, cell.steps))
    task = Task(envs.make(shard.environment, max_episode_steps=cell.max_episode_steps))
    total_updates = -(-cell.steps // algorithm.steps_per_update)
    seeds, hypers = zip(*shard.runs, strict=True)
    programs, compile_seconds = batch.compile_programs(algorithm, task, seeds, hypers, cell.eval_episodes)
    say(f"  compiled in {duration(compile_seconds)}")

    tables = []
    facts = {
        "total_updates": total_updates,
        "steps_per_update": algorithm.steps_per_update,
        "compile_seconds": compile_seconds,
        "device": describe_device(),
        "matmul_precision": str(jax.config.values["jax_default_matmul_precision"] or "default"),
        "versions": versions(),
        "git_revision": git_revision(),
        "command": sys.argv,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    for evaluation in train(programs, total_updates, cell.evaluations):
        tables.append(rows(shard, evaluation))
        progress = {"run_seconds": evaluation.wall_seconds, "peak_memory_bytes": peak_memory_bytes()}
        # The manifest goes first, so that no rows are ever without one.
        store.write_manifest(shard, {**facts, **progress, "diverged": int(evaluation.diverged.sum())})
        store.write_partial(shard, tables)
        say(evaluation_line(shard, evaluation, total_updates * algorithm.steps_per_update))
    store.finish(shard)


def describe_device() -> str:
    """The accelerators or the processor, in words."""
    devices = jax.local_devices()
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"


def peak_memory_bytes() -> int:
    """The most memory in use so far: of the first accelerator, or of this process where there is none."""
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return int(stats["peak_bytes_in_use"])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def versions() -> dict[str, str]:
    """Python's and the packages' versions, those that are installed."""
    found: dict[str, str] = {"python": sys.version.split()[0], "rlsuite": rlsuite.__version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """The commit this code is at, with a + if the tree has changes; None outside a checkout."""
    here = Path(__file__).parent

    def git(*args: str) -> Any:
        return subprocess.run(("git", "-C", here, *args), capture_output=True, text=True, check=False)

    try:
        revision = git("rev-parse", "--short=12", "HEAD")
        if revision.returncode:
            return None
        return revision.stdout.strip() + ("+" if git("status", "--porcelain").stdout.strip() else "")
    except OSError:
        return None
