"""A job is resolved once, travels as plain values, and any range of its runs may be trained by another executor."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_sweep import MadeUp, at_once, long_shard, made_up, rows_of, undisturbed

from envs.core import Box
from rlsuite import algorithms
from rlsuite.sweeping import catalogue, chunk, job, local
from rlsuite.sweeping.job import Job
from rlsuite.sweeping.store import Store
from rlsuite.sweeping.sweep import Cell
from rlsuite.training import plan
from rlsuite.training.checkpoint import Snapshot
from rlsuite.training.train import Evaluation, Pause, Training

__all__ = ["made_up", "undisturbed"]  # fixtures

METHODS = [*algorithms.registered(), "td3_bc+cdsa", "iql+cdsa"]
HYPERS = 2
"""settings of each job"""


def of(name: str) -> Job:
    spec = algorithms.get(name)
    settings = tuple(spec.hypers()._replace(**{spec.hypers._fields[0]: 0.5 / (1 + i)}) for i in range(HYPERS))
    environment = "gymnax/Pendulum-v1" if Box in spec.action_spaces else "gymnax/CartPole-v1"
    dataset = "gymnax/Pendulum-v1/medium" if spec.offline else None
    return job.resolve("mine", Cell(name, environment, 20_000, seeds=3, hypers=settings, dataset=dataset))


@pytest.mark.parametrize("name", METHODS)
def test_a_job_comes_back_from_plain_values(name: str) -> None:
    """Built-in types and our own records of them alone: the classes of `+cdsa` cannot be pickled."""
    one = of(name)
    packed = pickle.dumps(one)
    assert pickle.loads(packed) == one
    assert pickle.loads(packed).describe() == one.describe()
    assert pickle.loads(packed).runs == one.runs and len(one.runs) == 3 * HYPERS
    spec = algorithms.get(name)
    for settings in (spec.config, spec.hypers):
        assert settings.__qualname__.encode() not in packed.replace(b"_from_plain", b"")


def test_another_process_knows_the_job_by_its_name() -> None:
    program = "import pickle, sys; print(pickle.load(sys.stdin.buffer).name)"
    packed = pickle.dumps(of("td3_bc+cdsa"))
    there = subprocess.run([sys.executable, "-c", program], input=packed, capture_output=True, check=True)
    assert there.stdout.decode().strip() == of("td3_bc+cdsa").name


def test_resolving_reads_no_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a dataset is read")

    monkeypatch.setattr(catalogue.Found, "read", read)
    assert of("bc").cell.dataset is not None


class Remote:
    """A sink that gives nothing to a disk: what comes is packed, as if it went to another machine."""

    save_policies = False

    def __init__(self, save_at: int | None = None) -> None:
        self.sent: list[bytes] = []
        self.snapshot: bytes | None = None
        self._save_at = save_at

    def write_rows(self, first: int, evaluation: Evaluation) -> None:
        self.sent.append(pickle.dumps((first, evaluation)))

    def write_policies(self, *arguments: Any) -> None:
        raise AssertionError("policies were not asked for")

    def paused(self, pause: Pause) -> bool:
        return pause.training.update == self._save_at

    def save(self, snapshot: Snapshot) -> None:
        """The worker dies after this."""
        learning = {name: np.array(leaf) for name, leaf in snapshot.training.learning.state.items()}
        sums = {name: np.array(leaf) for name, leaf in snapshot.training.learning.sums.items()}
        learned = snapshot.training.learning._replace(state=learning, sums=sums)
        self.snapshot = pickle.dumps(snapshot.training._replace(learning=learned))
        raise ConnectionError("the node has died")


def worker(packed: bytes, first: int, stop: int, sink: Remote, resumed: Training | None = None) -> None:
    """A machine that has nothing but the job."""
    one = pickle.loads(packed)
    work = chunk.work_of(one, chunk.given_to(one))
    compiled = plan.compile_for(work, 3, 1)
    chunk.run(one, work, compiled.programs, first, stop, sink, resumed)


def results(sinks: list[Remote]) -> Iterator[tuple[int, Evaluation]]:
    for sink in sinks:
        for sent in sink.sent:
            yield pickle.loads(sent)


def test_a_second_executor_needs_neither_training_nor_store(
    tmp_path: Path, made_up: MadeUp, undisturbed: list[dict[str, Any]]
) -> None:
    """Chunks go to workers as a job and a range; the driver keeps the rows. One worker dies, and another goes on."""
    one, store = long_shard(), Store(tmp_path / "results")
    packed = pickle.dumps(one)
    sinks = [Remote(), Remote(save_at=8), Remote()]
    worker(packed, 3, 5, sinks[0])
    with pytest.raises(ConnectionError):
        worker(packed, 0, 3, sinks[1])
    assert sinks[1].snapshot is not None
    worker(packed, 0, 3, sinks[2], pickle.loads(sinks[1].snapshot))
    entry = store.open(one)
    with entry.claim() as ours:
        assert ours
        entry.write_manifest({"total_updates": one.total_updates})
        for first, evaluation in results(sinks):
            entry.write_rows(first, evaluation)
        entry.finish(one.points)
    assert rows_of(store, one) == [{k: v for k, v in row.items() if k != "wall_seconds"} for row in undisturbed]
    local.run([one], store, at_once(2))
    assert made_up.started[-1] == (0, 1, 2), "what the other executor has finished is kept"
