"""The options that say how runs are executed, of the commands that train."""

from __future__ import annotations

from typing import Any

from rlsuite.commands.options import Parser, flag
from rlsuite.sweeping.settings import Settings, check_settings
from rlsuite.training.plan import Limits


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


def execution_settings(options: dict[str, Any]) -> Settings:
    """The settings that these options name. Raises UserError for one that is out of range."""
    limits = Limits(options["width"], options["devices"], options["memory_share"])
    settings = Settings(limits, options["save_every"], options["save_policies"], options.get("retrain", False))
    check_settings(settings, flag)
    return settings
