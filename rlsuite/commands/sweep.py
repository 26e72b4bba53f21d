"""`rlsuite sweep FILE`: run every cell of an experiment that has no results yet, then report."""

from __future__ import annotations

from pathlib import Path

from rlsuite.commands import report
from rlsuite.commands.execution import (
    add_cluster_options,
    add_execution_options,
    add_retrain_option,
    execution_settings,
    pool_of,
)
from rlsuite.commands.options import Parser, add_results_option, path
from rlsuite.sweeping import cluster, extend, job, local, sweep
from rlsuite.sweeping.store import Store
from rlsuite.training.device import prepare_jax

MOST_NAMES = 5
"""Shards that one line names."""


def main(arguments: list[str]) -> int:
    """Run an experiment, name the shards of its folder that are not its own, and report on those that are."""
    parser = Parser(prog="rlsuite sweep", description="Run every cell of an experiment that has no results yet.")
    parser.add_argument(
        "experiment",
        type=path,
        help="a Python file that defines EXPERIMENT, or file.py:NAME for one that it calls NAME",
    )
    add_results_option(parser)
    add_execution_options(parser)
    add_retrain_option(parser)
    add_cluster_options(parser)
    options = parser.parse_args(arguments)
    settings = execution_settings(vars(options))
    prepare_jax()
    experiment = sweep.load(options.experiment)
    wanted = job.resolve_all(experiment)  # before there is a folder
    store = Store(Path(options.results) / experiment.name)
    shards = extend.extending(wanted, store)
    print(f"{experiment.name}: {experiment.description}", flush=True)
    pool = pool_of(vars(options), store.folder)
    if pool is None:
        local.run(shards, store, settings)
    else:
        cluster.run(shards, store, settings, pool)
    if others := store.others(shards):
        names = ", ".join([*others[:MOST_NAMES], *(["..."] if len(others) > MOST_NAMES else [])])
        print(
            f"rlsuite: shards in '{store.folder}' that are not in '{options.experiment}', nor in the report: "
            f"{len(others)} ({names}); `rlsuite report {store.folder}` is of all",
            flush=True,
        )
    return report.report_after(store.folder, [shard.name for shard in shards])
