"""Kill nodes of a real Ray cluster on loopback, and drivers, at random moments; compare the rows of every sweep.

    PYTHONPATH=. python tests/ray_soak.py --kills 20 --seed 1

Two shards, 48 runs, a head and two nodes of one core each. A node that dies is replaced by a new one. In every second
sweep nobody sees the results folder. `tests/test_ray.py` does the same with one kill.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from cluster_sweep import SETTINGS, check_equal, in_a_process, jobs

UPDATES = 6000
NODE = {"include_dashboard": False, "node_ip_address": "127.0.0.1", "object_store_memory": 100 * 1024**2}


def drive(folder: Path, address: str, seen: bool) -> None:
    """The driver, in a process of its own."""
    with open(folder.with_suffix(".log"), "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    on_loopback()
    from rlsuite.sweeping import cluster
    from rlsuite.sweeping.ray_pool import RayPool, Resources
    from rlsuite.sweeping.store import Store

    if not seen:
        RayPool._seen = lambda self, folder: False  # type: ignore[method-assign]
    store = Store(folder)
    cluster.run(jobs(UPDATES), store, SETTINGS, RayPool(store.folder, address, Resources()))


def on_loopback() -> None:
    """Ray would take this machine's other address for 127.0.0.1: here, and in the processes that it starts."""
    os.environ.update(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", RAY_USAGE_STATS_ENABLED="0")


def soak(kills: int, chance: random.Random, folder: Path, seconds: float) -> tuple[int, int, int]:
    """(kills of nodes, of drivers, sweeps compared)."""
    from ray.cluster_utils import Cluster

    spawn = multiprocessing.get_context("spawn")
    nodes = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0})
    for _ in range(2):
        nodes.add_node(**NODE, num_cpus=1)
    in_a_process(folder / "undisturbed", UPDATES)
    node_kills = driver_kills = sweeps = 0
    while node_kills < kills:
        results, seen = folder / f"killed{sweeps}", sweeps % 2 == 0
        results.mkdir()
        arguments = (results, nodes.address, seen)
        driver: Any = spawn.Process(target=drive, args=arguments)
        driver.start()
        while driver.is_alive():
            driver.join(chance.uniform(0.2, 2 * seconds))
            if not driver.is_alive():
                break
            if chance.random() < 0.25:
                driver.kill()
                driver.join()
                driver_kills += 1
                driver = spawn.Process(target=drive, args=arguments)
                driver.start()
            elif node_kills < kills:
                nodes.remove_node(chance.choice(list(nodes.worker_nodes)), allow_graceful=False)
                nodes.add_node(**NODE, num_cpus=1)
                node_kills += 1
        log = results.with_suffix(".log").read_text()
        assert driver.exitcode == 0, log
        check_equal(results, folder / "undisturbed")
        sweeps += 1
        print(
            f"sweep {sweeps}, results {'seen' if seen else 'through the driver'}: {node_kills} nodes and "
            f"{driver_kills} drivers killed so far; {log.count('another worker goes on')} chunks lost; rows are equal",
            flush=True,
        )
    nodes.shutdown()
    return node_kills, driver_kills, sweeps


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many nodes to kill (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="between two kills, on average (%(default)s)")
    options = parser.parse_args()
    on_loopback()
    here = Path(__file__).resolve().parent
    os.environ["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parent)])
    with tempfile.TemporaryDirectory() as folder:
        node_kills, driver_kills, sweeps = soak(
            options.kills, random.Random(options.seed), Path(folder), options.seconds
        )
    print(
        f"{node_kills} nodes and {driver_kills} drivers killed in {sweeps} sweeps: rows are those of the local executor"
    )


if __name__ == "__main__":
    sys.exit(main())
