"""A small sweep of two shards and 48 runs, as tests of clusters run it: in processes of their own."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rlsuite.algorithms.on_policy import ppo
from rlsuite.sweeping import job, local
from rlsuite.sweeping.job import Job
from rlsuite.sweeping.settings import Settings
from rlsuite.sweeping.store import Store
from rlsuite.sweeping.sweep import Cell
from rlsuite.training.plan import Limits

CONFIG = ppo.Config(num_envs=2, num_steps=8, num_epochs=1, num_minibatches=2, hidden_sizes=(4,))
SETTINGS = Settings(Limits(width=6), save_every=0.0)
"""Four chunks a shard, and a snapshot at every pause."""


def jobs(updates: int = 600, seeds: int = 24) -> list[Job]:
    """Two shards of equal programs, of so many runs each."""
    cell = Cell(
        "ppo", "probe/action/discrete", 16 * updates, seeds=seeds, config=CONFIG, evaluations=4, eval_episodes=2
    )
    other = Cell(
        "ppo", "probe/action/continuous", 16 * updates, seeds=seeds, config=CONFIG, evaluations=4, eval_episodes=2
    )
    return [job.resolve("cluster", one) for one in (cell, other)]


def undisturbed(folder: Path, updates: int = 600, seeds: int = 24) -> None:
    """The same sweep by the local executor on one device."""
    settings = SETTINGS._replace(limits=SETTINGS.limits._replace(devices=1), save_every=300.0)
    local.run(jobs(updates, seeds), Store(folder), settings)


def in_a_process(folder: Path, updates: int = 600, seeds: int = 24) -> None:
    """`undisturbed`, where JAX begins anew."""
    process = multiprocessing.get_context("spawn").Process(target=undisturbed, args=(folder, updates, seeds))
    process.start()
    process.join()
    assert process.exitcode == 0


def rows(folder: Path) -> dict[str, pa.Table]:
    """Shard -> all columns but the clock's. Asserts that nothing but finished shards is left."""
    left = sorted(path.name for path in folder.iterdir() if path.suffix not in (".parquet", ".json"))
    assert not left, left
    return {path.stem: pq.read_table(path).drop_columns(["wall_seconds"]) for path in folder.glob("*.parquet")}


def check_equal(found: Path, expected: Path) -> None:
    """Raise AssertionError where a row differs, is lost or is there twice."""
    here, there = rows(found), rows(expected)
    assert here.keys() == there.keys() and len(here) == 2
    for name, table in here.items():
        assert table.equals(there[name]), f"{name} differs from the undisturbed sweep"
