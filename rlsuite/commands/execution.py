"""The options that say how runs are executed, of the commands that train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlsuite.commands.options import Parser, flag
from rlsuite.errors import UserError
from rlsuite.sweeping.cluster import Pool
from rlsuite.sweeping.settings import Settings, check_settings
from rlsuite.training.plan import Limits

BOUNDS = {"workers": (1, 100_000), "cpus": (1, 4096), "gpus": (0, 1024), "time": (1, 525_600), "mem": (0.1, 1e6)}
"""Option of clusters -> the least and the most that it may be: more is a slip, which a cluster would wait for."""


def add_execution_options(parser: Parser) -> None:
    """How runs are executed; nothing here changes what they compute, but for the order of floating-point sums."""
    group = parser.add_argument_group("execution")
    group.add_argument("--width", type=int, metavar="N", help="runs at once on each device (chosen by measuring)")
    group.add_argument("--devices", type=int, metavar="N", help="devices, or processor cores without one (all)")
    group.add_argument(
        "--memory-share", type=float, metavar="X", default=0.75, help="share of the free memory to take (%(default)s)"
    )
    group.add_argument(
        "--save-every", type=float, metavar="SECONDS", default=300.0, help="time between two snapshots (%(default)s)"
    )
    group.add_argument(
        "--no-save-policies",
        dest="save_policies",
        action="store_false",
        help="do not keep what each run has learned, for 'rlsuite evaluate' (kept: 4 bytes a parameter of the policy)",
    )


def add_retrain_option(parser: Parser) -> None:
    """To train again what is finished."""
    parser.add_argument(
        "--retrain",
        action="store_true",
        help="train finished runs again, and start over those that other code has begun; earlier files go to .before/",
    )


def add_cluster_options(parser: Parser) -> None:
    """Where chunks of runs are trained, if not in this process."""
    group = parser.add_argument_group("clusters (docs/clusters.md)")
    group.add_argument(
        "--executor",
        choices=("local", "ray", "slurm"),
        default="local",
        help="what trains the runs: this process, or workers of a Ray or a Slurm cluster (%(default)s)",
    )
    group.add_argument("--workers", type=int, metavar="N", help="workers at once, at most (all that there is room for)")
    group.add_argument("--cpus", type=int, metavar="N", default=1, help="processor cores of each worker (%(default)s)")
    group.add_argument("--gpus", type=int, metavar="N", default=0, help="GPUs of each worker (%(default)s)")
    group.add_argument("--address", help="ray: of its head, or 'auto' (started on this machine)")
    group.add_argument("--partition", help="slurm: where jobs go")
    group.add_argument("--time", type=int, metavar="MINUTES", default=60, help="slurm: of each job (%(default)s)")
    group.add_argument("--mem", type=float, metavar="GB", help="slurm: memory of each job")
    group.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="slurm: any other option of sbatch, such as account=mine; may be given several times",
    )


def pool_of(options: dict[str, Any], folder: Path) -> Pool | None:
    """The workers that these options name, for results in a folder; None to train in this process.

    Raises:
        UserError: an option that is out of range or of another executor, a missing package, or no such cluster.
    """
    executor = options["executor"]
    for name, (least, most) in BOUNDS.items():
        if options[name] is not None and not least <= options[name] <= most:
            raise UserError(f"{flag(name)} {options[name]} must be from {least} to {most}")
    for name, of in (("address", "ray"), ("partition", "slurm"), ("mem", "slurm"), ("slurm", "slurm")):
        if options[name] and executor != of:
            raise UserError(f"{flag(name)} is for --executor {of}, not for {executor}; add that, or leave it out")
    if executor == "local":
        return None
    if options["devices"] is not None:
        raise UserError("--devices is for this process; workers use the --cpus or --gpus that each asks for")
    try:
        if executor == "ray":
            from rlsuite.sweeping.ray_pool import RayPool, Resources

            resources = Resources(options["cpus"], options["gpus"])
            return RayPool(folder, options["address"], resources, options["workers"])
        from rlsuite.sweeping.slurm_pool import Demand, SlurmPool

        demand = Demand(
            options["cpus"], options["gpus"], options["partition"], options["time"], options["mem"], options["slurm"]
        )
        return SlurmPool(folder, demand, options["workers"])
    except ModuleNotFoundError as error:
        if error.name not in ("ray", "submitit"):
            raise
        raise UserError(
            f"--executor {executor} needs the package '{error.name}'; install it with pip install 'rlsuite[{executor}]'"
        ) from error


def execution_settings(options: dict[str, Any]) -> Settings:
    """The settings that these options name. Raises UserError for one that is out of range."""
    limits = Limits(options["width"], options["devices"], options["memory_share"])
    settings = Settings(limits, options["save_every"], options["save_policies"], options.get("retrain", False))
    check_settings(settings, flag)
    return settings
