"""Jobs of submitit, whose local executor stands in for Slurm: rows are those of this machine alone, also where a job is
preempted or dies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cluster_sweep
import pytest
from cluster_sweep import SETTINGS, check_equal, jobs

from rlsuite.errors import Stopped, UserError
from rlsuite.sweeping import cluster, slurm_pool, worker
from rlsuite.sweeping.cluster import Lost
from rlsuite.sweeping.slurm_pool import Demand, SlurmPool
from rlsuite.sweeping.store import Store
from rlsuite.sweeping.worker import Message

pytestmark = pytest.mark.xdist_group("slurm")

DEMAND = Demand(cpus=1, gpus=0, partition=None, minutes=5, memory_gb=None, more=[])
UPDATES, SEEDS = 600, 6


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    cluster_sweep.in_a_process(folder, UPDATES, SEEDS)
    return folder


@pytest.fixture(autouse=True)
def paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs find the modules of these tests."""
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]))


class Disturbed(SlurmPool):
    """The first job that has begun a chunk is sent submitit's signal of preemption; the second one is killed."""

    disturbed = 0

    def messages(self, seconds: float) -> Iterator[tuple[int, Message | Lost]]:
        for ticket, message in super().messages(min(seconds, 0.05)):
            if isinstance(message, worker.Began) and self.disturbed < 2:
                job = self._jobs[ticket]
                job._interrupt() if self.disturbed == 0 else job._process.kill()
                self.disturbed += 1
            yield ticket, message


def sweep(folder: Path, pool: SlurmPool) -> None:
    cluster.run(jobs(UPDATES, SEEDS), Store(folder), SETTINGS, pool)


def test_rows_are_those_of_the_local_executor_whatever_becomes_of_jobs(tmp_path: Path, expected: Path) -> None:
    pool = Disturbed(Store(tmp_path).folder, DEMAND)
    sweep(tmp_path, pool)
    assert pool.disturbed >= 1
    check_equal(tmp_path, expected)


class Interrupted(SlurmPool):
    """As if Ctrl-C came while the first job trains."""

    def messages(self, seconds: float) -> Iterator[tuple[int, Message | Lost]]:
        for ticket, message in super().messages(min(seconds, 0.05)):
            yield ticket, message
            if isinstance(message, worker.Began) and not (self._folder / "leave").exists():
                raise Stopped(2)


def test_ctrl_c_lets_jobs_save_and_the_same_command_goes_on(tmp_path: Path, expected: Path) -> None:
    with pytest.raises(Stopped):
        sweep(tmp_path, Interrupted(Store(tmp_path).folder, DEMAND))
    assert not (tmp_path / slurm_pool.FOLDER).exists()
    sweep(tmp_path, SlurmPool(Store(tmp_path).folder, DEMAND))
    check_equal(tmp_path, expected)


@pytest.mark.parametrize("option", ["account", "=mine"])
def test_an_option_without_a_value_is_one_line(tmp_path: Path, option: str) -> None:
    with pytest.raises(UserError, match="must be NAME=VALUE, such as account=mine"):
        SlurmPool(tmp_path, DEMAND._replace(more=[option]))


def test_what_comes_at_once_is_one_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's parameters, as submitit writes them."""
    monkeypatch.setattr(slurm_pool.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("submitit.slurm.slurm.SlurmExecutor.affinity", lambda *arguments: 2)
    pool = SlurmPool(tmp_path, Demand(4, 1, "gpu", 90, 16.0, ["account=mine"]), workers=3)
    parameters: dict[str, Any] = pool._executor._executor.parameters
    assert parameters["partition"] == "gpu" and parameters["time"] == 90 and parameters["array_parallelism"] == 3
    assert parameters["gpus_per_node"] == 1 and parameters["cpus_per_task"] == 4 and parameters["mem"] == "16GB"
    assert parameters["additional_parameters"] == {"account": "mine"}
