"""The plan: memory first, then speed, and what happens where the device says no."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from offline_data import probe_dataset

import envs
from rlsuite import algorithms
from rlsuite.algorithms.on_policy import ppo
from rlsuite.core import Task
from rlsuite.errors import UserError
from rlsuite.sweeping import local
from rlsuite.sweeping.job import resolve
from rlsuite.sweeping.settings import Settings
from rlsuite.sweeping.store import Store
from rlsuite.sweeping.sweep import Cell
from rlsuite.training import batch, memory, plan
from rlsuite.training.plan import Limits, Work, balanced, choose

MIB = 2**20


def work(num_runs: int, total_updates: int = 10**9) -> Work:
    """Runs of PPO's trial that would take for ever, unless said otherwise."""
    spec = algorithms.get("ppo")
    config = spec.trial.config
    task = Task(envs.make("probe/action/discrete"))
    return Work("ppo", config, spec.make(config), task, spec.trial.hypers, num_runs, total_updates, 2)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[int]]:
    """Stand-ins for compiling and measuring.

    (speed of a width, bytes of a width, free bytes, seconds of compiling) -> widths compiled
    """

    def describe(
        speed: Callable[[int], float],
        bytes_: Callable[[int], int] = lambda width: width * MIB,
        free: int = 10**6 * MIB,
        seconds: float = 1.0,
    ) -> list[int]:
        widths: list[int] = []

        def compile_for(work: Work, width: int, devices: int) -> batch.Compiled:
            widths.append(width)
            return batch.Compiled(width, None, batch.Memory(0, bytes_(width)), seconds, None)  # type: ignore[arg-type]

        monkeypatch.setattr(plan, "compile_for", compile_for)
        monkeypatch.setattr(plan, "measure", lambda work, compiled: speed(compiled.programs))
        monkeypatch.setattr(memory, "free_bytes", lambda devices: free // devices)
        return widths

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return describe


ONE_DEVICE = Limits(devices=1)


@pytest.mark.parametrize("num_runs", [1, 2, 7, 8, 9, 63, 100, 4096])
@pytest.mark.parametrize("devices", [1, 3, 4])
@pytest.mark.parametrize("width", [1, 8, 64])
def test_balanced_widths_take_no_more_chunks_and_little_padding(num_runs: int, devices: int, width: int) -> None:
    narrow = balanced(width, num_runs, devices)
    chunks = -(-num_runs // (width * devices))
    assert 1 <= narrow <= width and narrow * devices * chunks >= num_runs
    assert narrow * devices * chunks - num_runs < chunks * devices


@pytest.mark.parametrize("best", [1, 2, 8, 32, 2048, 4096])
def test_the_fastest_width_wins(machine: Callable[..., list[int]], best: int) -> None:
    machine(lambda width: 1000.0 / (1 + abs(width.bit_length() - best.bit_length())))
    assert choose(work(4096), ONE_DEVICE).width == best


def test_the_search_stops_where_it_gets_slower(machine: Callable[..., list[int]]) -> None:
    compiled = machine(lambda width: {8: 100.0, 32: 90.0, 2: 50.0}[width])
    assert choose(work(4096), ONE_DEVICE).width == 8
    assert compiled == [8, 32, 2]


def test_a_narrow_optimum_is_found_behind_a_dip(machine: Callable[..., list[int]]) -> None:
    """Measured of SAC with 256-256 networks on two cores."""
    machine(lambda width: {1: 166.0, 2: 186.0, 8: 108.0, 32: 111.0, 128: 101.0}[width])
    assert choose(work(4096), ONE_DEVICE).width == 2


def test_short_training_is_not_held_up_by_measuring(machine: Callable[..., list[int]]) -> None:
    compiled = machine(lambda width: 1000.0)
    choose(work(64, total_updates=10), ONE_DEVICE)
    assert compiled == [8]


def test_measurements_are_kept_for_the_next_time(machine: Callable[..., list[int]], tmp_path: Path) -> None:
    machine(lambda width: float(width))
    first = choose(work(512), ONE_DEVICE)
    compiled = machine(lambda width: pytest.fail("measured again"))
    again = choose(work(512), ONE_DEVICE)
    assert (again.width, compiled) == (first.width, [first.width]) == (512, [512])
    (kept,) = (tmp_path / "rlsuite" / "speed").iterdir()
    assert json.loads(kept.read_text()) == {str(width): [width, 1.0] for width in (2, 8, 32, 128, 512)}
    # Damaged, or as an earlier version wrote it: measured anew.
    for text in ("{", '{"8": 8.0}'):
        kept.write_text(text)
        machine(lambda width: float(width))
        assert choose(work(512), ONE_DEVICE).width == 512


def test_what_is_known_of_one_width_makes_no_other_one_cheap(machine: Callable[..., list[int]]) -> None:
    """A short shard has measured the first width; a longer one trains for less than ten times as long as compiling."""
    machine(lambda width: 1000.0, seconds=60.0)
    choose(work(64, total_updates=10), ONE_DEVICE)
    for total_updates, widths in ((9_000, [8]), (10_000, [32, 2, 8])):  # 576 and 640 seconds of training
        compiled = machine(lambda width: 500.0, seconds=60.0)
        assert choose(work(64, total_updates), ONE_DEVICE).width == 8
        assert compiled == widths


def test_speeds_are_those_on_one_dataset() -> None:
    small = probe_dataset("probe/action/continuous")
    large = dataclasses.replace(small, rows=np.tile(np.asarray(small.rows), (2, 1)))
    other = dataclasses.replace(small, id="other")
    probe_work = work(64)
    tasks = [probe_work.task._replace(dataset=dataset) for dataset in (None, small, large, other)]
    paths = [plan.speeds_path(probe_work._replace(task=task), 1) for task in tasks]
    assert len(set(paths)) == 4
    assert plan.speeds_path(probe_work._replace(task=tasks[1]), 1) == paths[1]


def test_a_width_that_takes_too_much_memory_is_not_chosen(machine: Callable[..., list[int]]) -> None:
    """Only the compiled program tells: it takes a MiB a run, and 100 MiB are free, of which three quarters are used."""
    machine(float, free=100 * MIB)
    chosen = choose(work(512), ONE_DEVICE)
    assert chosen.width == 32
    assert choose(work(512), Limits(devices=1, memory_share=0.25)).width == 8


def test_not_even_one_run_fits(machine: Callable[..., list[int]]) -> None:
    machine(float, free=1000)
    with pytest.raises(UserError, match=r"one run takes .*B a device, but 75% of the free memory .*--memory-share"):
        choose(work(4), ONE_DEVICE)


def test_a_width_by_hand_is_kept_or_refused(machine: Callable[..., list[int]]) -> None:
    compiled = machine(lambda width: pytest.fail("measured"))
    assert choose(work(100), Limits(width=40, devices=1)).width == 34  # three chunks of 34 waste less than of 40
    assert compiled == [34]
    machine(float, free=10 * plan.least_bytes(work(1), devices=1))
    with pytest.raises(UserError, match=r"width=40 takes at least .* choose at most 7"):
        choose(work(100), Limits(width=40, devices=1))


def test_devices_are_no_more_than_there_are_and_than_runs() -> None:
    there = jax.local_device_count()
    assert plan.num_devices(1, None) == 1
    assert plan.num_devices(1000, None) == there
    with pytest.raises(UserError, match=rf"devices={there + 1}, but this machine shows {there}"):
        plan.num_devices(1000, there + 1)


GROUPS: dict[str, tuple[str, dict[str, str], int]] = {
    # name: (/proc/self/cgroup, files below /sys/fs/cgroup, MiB that are free)
    "the root's": ("0::/", {"memory.max": "50", "memory.current": "20"}, 30),
    "its own": ("0::/job/7", {"job/7/memory.max": "50", "job/7/memory.current": "20"}, 30),
    "an ancestor's is less": (
        "0::/job/step/7",
        {
            "job/step/7/memory.max": "50",
            "job/step/7/memory.current": "20",
            "job/memory.max": "60",
            "job/memory.current": "40",
        },
        20,
    ),
    "no limit inside": (
        "0::/job/7",
        {"job/7/memory.max": "max", "job/7/memory.current": "5", "job/memory.max": "45", "job/memory.current": "20"},
        25,
    ),
    "a limit that slows down": (
        "0::/job",
        {"job/memory.max": "80", "job/memory.high": "40", "job/memory.current": "20"},
        20,
    ),
    "files in memory can go": (
        "0::/job",
        {"job/memory.max": "50", "job/memory.current": "49", "job/memory.stat": "anon 20\ninactive_file 12"},
        13,
    ),
    "more is used than allowed": ("0::/job", {"job/memory.max": "50", "job/memory.current": "60"}, 0),
    "a neighbour's does not count": (
        "0::/job/7",
        {"job/8/memory.max": "1", "job/8/memory.current": "1", "job/memory.max": "50", "job/memory.current": "20"},
        30,
    ),
    "a path that the container cannot see": (
        "0::/docker/abc",
        {"memory.max": "50", "memory.current": "20"},
        30,
    ),
    "a path outside of its view": ("0::/../../7", {"memory.max": "50", "memory.current": "20"}, 30),
    "version 1": (
        "9:name=systemd:/user\n4:cpu,memory:/job/7\n0::/",
        {
            "memory/job/7/memory.limit_in_bytes": "50",
            "memory/job/7/memory.usage_in_bytes": "49",
            "memory/job/7/memory.stat": "cache 9\ntotal_inactive_file 12",
            "memory/job/memory.limit_in_bytes": "30",
            "memory/job/memory.usage_in_bytes": "20",
            "memory/memory.limit_in_bytes": str(2**43),
            "memory/memory.usage_in_bytes": "60",
        },
        10,
    ),
    "none": ("0::/", {}, 100),
    "nothing that can be read": ("?", {"memory.max": "much", "memory.current": "?"}, 100),
}


@pytest.mark.parametrize("name", GROUPS)
def test_free_memory_is_below_every_limit_of_the_process_s_control_groups(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a tree like the kernel's, of a machine with 100 MiB."""
    own, files, free = GROUPS[name]
    for path, text in (
        ("proc/meminfo", f"MemTotal: 9 kB\nMemAvailable: {100 * 1024} kB"),
        ("proc/self/cgroup", own),
        *(
            (f"sys/fs/cgroup/{file}", re.sub(r"\d+$", lambda found: str(int(found[0]) * MIB), text, flags=re.MULTILINE))
            for file, text in files.items()
        ),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text + "\n")
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    assert memory.free_host_bytes() == free * MIB


def test_this_machine_has_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.free_host_bytes() > 0
    monkeypatch.setattr(memory, "ROOT", tmp_path)  # as where there is no such file at all
    assert memory.free_host_bytes() > MIB


# --- Where the device refuses -----------------------------------------------------------------------------------------


SMALL = ppo.Config(num_envs=2, num_steps=8, num_epochs=1, num_minibatches=2, hidden_sizes=(4,))
CELL = Cell("ppo", "probe/action/discrete", 16 * 6, seeds=7, config=SMALL, evaluations=3, eval_episodes=2)


def refuse_above(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that has memory for programs of at most this width, and says so when it should train."""
    real = batch.compile_programs

    def compile_programs(*arguments: Any) -> batch.Compiled:
        compiled = real(*arguments)
        if compiled.programs.width <= width:
            return compiled

        def segment(*arguments: Any) -> Any:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes")

        return compiled._replace(programs=compiled.programs._replace(segment=segment))

    monkeypatch.setattr(batch, "compile_programs", compile_programs)


@pytest.mark.xdist_group("batch")
def test_a_refused_chunk_is_halved_and_no_row_is_lost_or_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse_above(2, monkeypatch)
    store, sharded = Store(tmp_path / "halved"), resolve("halved", CELL)
    local.run([sharded], store, Settings(Limits(width=4, devices=1)))
    printed = capsys.readouterr().out
    assert "the device refused 4 runs at once; going on with 2" in printed
    table = pq.read_table(store.open(sharded).path)
    pairs = list(zip(table["update"].to_pylist(), table["run"].to_pylist(), strict=True))
    assert pairs == [(update, run) for update in (0, 2, 4, 6) for run in range(7)]


@pytest.mark.xdist_group("batch")
def test_a_device_without_memory_for_one_run_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_above(0, monkeypatch)
    with pytest.raises(UserError, match="no memory for even one run") as raised:
        local.run([resolve("none", CELL)], Store(tmp_path / "none"), Settings(Limits(width=1, devices=1)))
    assert "\n" not in str(raised.value)
