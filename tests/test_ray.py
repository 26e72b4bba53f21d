"""A real Ray cluster of three nodes on loopback: rows are those of this machine alone, also where a node dies."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cluster_sweep
import numpy as np
import pytest
import ray
from cluster_sweep import SETTINGS, check_equal, jobs
from ray._private import ray_constants
from ray.cluster_utils import Cluster

from rlsuite.errors import UserError
from rlsuite.sweeping import cluster, worker
from rlsuite.sweeping.ray_pool import RayPool, Resources
from rlsuite.sweeping.store import Store

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.exhaustive]

NODE = {"include_dashboard": False, "node_ip_address": "127.0.0.1", "object_store_memory": 100 * 1024**2}
TESTS = str(Path(__file__).parent)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A head without workers, where the driver is, and two nodes of one core."""
    paths = [TESTS, str(Path(TESTS).parent), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Ray would take this machine's other address for 127.0.0.1: here, and in the processes that it starts.
        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        head = {**NODE, "num_cpus": 0, "_system_config": {"local_fs_capacity_threshold": 0.0001}}
        made = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            made.add_node(**NODE, num_cpus=1)
        yield made
        made.shutdown()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    cluster_sweep.in_a_process(folder)
    return folder


def sweep(folder: Path, nodes: Cluster) -> None:
    store = Store(folder)
    cluster.run(jobs(), store, SETTINGS, RayPool(store.folder, nodes.address, Resources()))


def test_rows_are_those_of_the_local_executor(tmp_path: Path, nodes: Cluster, expected: Path) -> None:
    sweep(tmp_path, nodes)
    check_equal(tmp_path, expected)
    manifests = Store(tmp_path).manifests().values()
    assert all(manifest["sessions"][-1]["nodes"] for manifest in manifests)


def test_a_node_dies_and_nobody_sees_the_results_folder(
    tmp_path: Path, nodes: Cluster, expected: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(RayPool, "_seen", lambda self, folder: False)
    doomed = next(iter(nodes.worker_nodes))
    killed = threading.Event()

    def kill_once_rows_are_there() -> None:
        while not list(tmp_path.glob("*.partial/*.parquet")):
            time.sleep(0.05)
        nodes.remove_node(doomed, allow_graceful=False)
        killed.set()

    thread = threading.Thread(target=kill_once_rows_are_there)
    thread.start()
    sweep(tmp_path, nodes)
    thread.join()
    assert killed.is_set()
    nodes.add_node(**NODE, num_cpus=1)
    check_equal(tmp_path, expected)


def test_what_no_node_has_is_one_line(tmp_path: Path, nodes: Cluster) -> None:
    with pytest.raises(UserError, match="no node of the Ray cluster has 64 CPUs and 0 GPUs for a worker; the most are"):
        RayPool(tmp_path, nodes.address, Resources(cpus=64))


def test_a_node_on_which_something_is_wrong_gets_no_more_work(tmp_path: Path, nodes: Cluster) -> None:
    """Such as a full disk: the second of two nodes that say so ends the sweep."""
    pool = RayPool(tmp_path, nodes.address, Resources())
    full = worker.Failed("the disk is full", elsewhere=True)
    first, second = (node["NodeID"] for node in pool._nodes() if pool._fitting(node))
    assert pool._avoiding(first, worker.Done()) == worker.Done() and pool.workers() == 2
    assert pool._avoiding(first, full) == full and pool.workers() == 1
    entry = Store(tmp_path).open(jobs()[0])
    for ticket in range(3):
        pool.submit(ticket, worker.Measure(jobs()[0], SETTINGS.limits, 1, {}), entry, None)  # another code's: refused
    assert {ray.get(next(task))[0] for task in pool._tasks.values()} == {second}
    assert pool._avoiding(second, full) == full._replace(elsewhere=False)
    pool.close()


def test_an_object_store_that_is_too_small_is_one_line(tmp_path: Path, nodes: Cluster) -> None:
    """Ray may not use this machine's disk in its place here, see `nodes`."""
    pool = RayPool(tmp_path, nodes.address, Resources())
    with pytest.raises(UserError, match=r"object store cannot take a dataset .*--object-store-memory"):
        pool.share(np.zeros(150 * 1024**2, np.uint8))  # type: ignore[arg-type]
    pool.close()
