"""Runs side by side: what a run computes depends on its seed and hyperparameters, not on where it stands."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import envs
from rlsuite import algorithms
from rlsuite.algorithms.on_policy import ppo
from rlsuite.core import Task
from rlsuite.sweeping import local
from rlsuite.sweeping.entry import Entry
from rlsuite.sweeping.job import resolve
from rlsuite.sweeping.settings import Settings
from rlsuite.sweeping.store import Store
from rlsuite.sweeping.sweep import Cell
from rlsuite.training import batch
from rlsuite.training.plan import Limits
from rlsuite.training.train import Evaluation, evaluation_points, train

pytestmark = pytest.mark.xdist_group("batch")

TRIAL = algorithms.get("ppo").trial
UPDATES = 12
POINTS = evaluation_points(UPDATES, 2)
COLLECTIVES = r"all-reduce|all-gather|all-to-all|reduce-scatter|collective"

compiled_texts: list[str] = []


@functools.cache
def compiled(width: int, devices: int) -> batch.Compiled:
    """PPO's trial on the probe in which actions matter, as `rlsuite` compiles it."""
    compile_one = jax.stages.Lowered.compile

    def compile_and_note(lowered: Any) -> Any:
        program = compile_one(lowered, {"xla_backend_optimization_level": 0})
        compiled_texts.append(program.as_text() or "")
        return program

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.stages.Lowered, "compile", compile_and_note)
        task = Task(envs.make("probe/action/continuous"))
        return batch.compile_programs(
            algorithms.get("ppo").make(TRIAL.config), task, TRIAL.hypers, width, 2, jax.local_devices()[:devices]
        )


def curves(width: int, devices: int, seeds: range, hypers: list[ppo.Hypers] | None = None) -> list[Evaluation]:
    """The evaluations of these runs, in as many chunks as they need."""
    hypers = hypers or [TRIAL.hypers] * len(seeds)
    chunks = []
    for first in range(0, len(seeds), width):
        chunk = slice(first, first + width)
        pauses = train(compiled(width, devices).programs, seeds[chunk], hypers[chunk], UPDATES, POINTS)
        chunks.append([pause.training.evaluation for pause in pauses if pause.evaluated])
    return [
        jax.tree.map(lambda *parts: np.concatenate(parts) if np.ndim(parts[0]) else parts[0], *point_chunks)
        for point_chunks in zip(*chunks, strict=True)
    ]


def assert_same(a: list[Evaluation], b: list[Evaluation], rtol: float = 0.0) -> None:
    for x, y in zip(a, b, strict=True):
        assert (x.update, x.step) == (y.update, y.step)
        for name in ("returns", "lengths", "diverged"):
            np.testing.assert_allclose(getattr(x, name), getattr(y, name), rtol=rtol, atol=rtol, err_msg=name)
        assert x.metrics.keys() == y.metrics.keys()
        for name in x.metrics:
            np.testing.assert_allclose(x.metrics[name], y.metrics[name], rtol=rtol, atol=rtol, err_msg=name)


def test_runs_are_the_same_on_two_devices_and_on_four() -> None:
    """Bit for bit, since two runs share a device in both."""
    assert_same(curves(4, 2, range(8)), curves(8, 4, range(8)))


def test_one_device_alone_changes_no_more_than_the_order_of_sums() -> None:
    """XLA compiles for one device otherwise than for one of several."""
    assert_same(curves(2, 1, range(8)), curves(4, 2, range(8)), rtol=2e-3)


def test_runs_are_the_same_in_chunks_and_beside_padding() -> None:
    """Eight at once, or five and three with padding behind: bit for bit."""
    all_at_once = curves(8, 4, range(8))
    first, second = curves(8, 4, range(5)), curves(8, 4, range(5, 8))
    assert [len(e.returns) for e in first] == [5] * len(POINTS)
    joined = [
        jax.tree.map(lambda *parts: np.concatenate(parts) if np.ndim(parts[0]) else parts[0], a, b)
        for a, b in zip(first, second, strict=True)
    ]
    assert_same(joined, all_at_once)


def test_another_width_changes_no_more_than_the_order_of_sums() -> None:
    """Other widths are other programs: docs/scaling.md has how far curves drift, and why."""
    assert_same(curves(1, 1, range(3)), curves(2, 1, range(3)), rtol=2e-3)


def test_devices_never_talk() -> None:
    compiled(8, 4)
    assert len(compiled_texts) >= 3
    assert not [text for text in compiled_texts if re.search(COLLECTIVES, text)]
    # The pattern is the compiler's: a program that does talk is found.
    mesh = jax.sharding.Mesh(np.asarray(jax.local_devices()), ("x",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    total = jax.jit(lambda x: x.sum(), in_shardings=spread)
    assert re.search(COLLECTIVES, total.lower(np.ones(8, np.float32)).compile().as_text() or "")


def test_memory_of_the_programs_grows_with_the_runs_of_a_device() -> None:
    one, two, four_devices = (compiled(*layout).memory for layout in ((1, 1), (2, 1), (8, 4)))
    task = Task(envs.make("probe/action/continuous"))
    algorithm, devices = algorithms.get("ppo").make(TRIAL.config), jax.local_devices()
    (per_run,) = {batch.learning_bytes(algorithm, task, TRIAL.hypers, devices[:n]) for n in (1, 4)}
    assert (one.learning, two.learning, four_devices.learning) == (per_run, 2 * per_run, 2 * per_run)
    assert one.learning < one.peak < two.peak
    assert four_devices.peak == pytest.approx(two.peak, rel=0.2)


def test_an_update_is_traced_once_for_all_that_a_plan_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing is most of a start whose programs are in the cache."""
    sizes = dict.fromkeys(("argument", "output", "alias", "temp"), 0)
    stats = SimpleNamespace(**{f"{name}_size_in_bytes": size for name, size in sizes.items()})
    program = SimpleNamespace(memory_analysis=lambda: stats)
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda lowered: program)
    algorithm = algorithms.get("ppo").make(TRIAL.config)
    traced = []

    def update(*arguments: Any) -> Any:
        traced.append(arguments)
        return algorithm.update(*arguments)

    task, devices = Task(envs.make("probe/action/continuous")), jax.local_devices()
    once = batch.traced_once(algorithm._replace(update=update))
    batch.learning_bytes(once, task, TRIAL.hypers, devices)
    batch.compile_programs(once, task, TRIAL.hypers, 2 * len(devices), 2, devices)
    assert len(traced) == 1


# --- Divergence -------------------------------------------------------------------------------------------------------


def test_a_run_that_diverges_is_frozen_and_leaves_its_neighbours_alone() -> None:
    healthy = curves(2, 1, range(2))
    wild = [TRIAL.hypers._replace(learning_rate=1e38), TRIAL.hypers]
    broken = curves(2, 1, range(2), wild)
    assert [e.diverged.tolist() for e in broken] == [[False, False], [True, False], [True, False]]
    for name in ("returns", "lengths"):
        for evaluation in broken:
            np.testing.assert_array_equal(getattr(evaluation, name)[0], getattr(broken[0], name)[0])
    assert all(np.isnan(metric[0]) for e in broken for metric in e.metrics.values())
    for a, b in zip(healthy, broken, strict=True):
        np.testing.assert_array_equal(a.returns[1], b.returns[1])
        for name in a.metrics:
            np.testing.assert_array_equal(a.metrics[name][1], b.metrics[name][1])


# --- Compiling --------------------------------------------------------------------------------------------------------


def test_one_compile_however_many_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven runs in four chunks. Nothing at all is compiled once the first evaluation is written."""
    config = ppo.Config(num_envs=2, num_steps=8, num_epochs=1, num_minibatches=2, hidden_sizes=(4,))
    cell = Cell("ppo", "probe/action/discrete", 16 * 6, seeds=7, config=config, evaluations=3, eval_episodes=2)
    sharded = resolve("chunks", cell)
    events: list[str] = []
    write = Entry.write_rows

    def write_rows(entry: Entry, *arguments: Any) -> None:
        write(entry, *arguments)
        events.append("rows")

    def compiles(event: str, seconds: float, **facts: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append("compile")

    monkeypatch.setattr(Entry, "write_rows", write_rows)
    jax.monitoring.register_event_duration_secs_listener(compiles)
    store = Store(tmp_path / "chunks")
    local.run([sharded], store, Settings(Limits(width=2, devices=1)))
    assert events.count("rows") == 4 * 4
    assert events.count("compile") >= 3, "the event has another name in this version of JAX"
    assert "compile" not in events[events.index("rows") :]
