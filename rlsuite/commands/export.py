"""`rlsuite export RESULTS --tensorboard DIR`: curves for a dashboard, once or for as long as a sweep runs."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rlsuite.commands.options import Parser, path
from rlsuite.commands.report import missing_extra
from rlsuite.errors import UserError

if TYPE_CHECKING:
    from analysis.export import Sent, Target

TARGETS = ("tensorboard", "wandb", "mlflow")
"""Options, which are the names of extras too."""


def main(arguments: list[str]) -> int:
    """Send what is new, and with --follow what will be."""
    options = parser().parse_args(arguments)
    results, places = Path(options.results), {name: getattr(options, name) for name in TARGETS}
    [(name, place)] = [(name, place) for name, place in places.items() if place is not None]
    try:
        from analysis import ResultsError, export
    except ImportError as error:
        raise missing_extra(error) from error
    try:
        target = target_of(name, place, results)
        try:
            if options.follow:
                for sent in export.follow(results, target, runs=options.runs, seconds=options.every):
                    tell(sent, place)
            else:
                tell(export.export(export.look(results, runs=options.runs), target), place, nothing=True)
        finally:
            target.close()
    except ResultsError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"cannot write to '{place}' ({error.strerror or error}); export to another place") from error
    except KeyboardInterrupt:
        print("rlsuite: interrupted; the same command goes on with what is not sent yet", file=sys.stderr)
        return 130
    return 0


def parser() -> Parser:
    """The parser of this command."""
    found = Parser(
        prog="rlsuite export",
        description="Send curves of runs, and of their IQM, to a dashboard. The same command again adds what is new.",
    )
    found.add_argument(
        "results", metavar="RESULTS", type=path, help="an experiment's folder, or a folder of experiments"
    )
    targets = found.add_mutually_exclusive_group(required=True)
    targets.add_argument("--tensorboard", metavar="DIR", type=path, help="files in this folder")
    targets.add_argument("--wandb", metavar="PROJECT", help="this project; with WANDB_MODE=offline, files in ./wandb")
    targets.add_argument(
        "--mlflow", metavar="PLACE", type=path, help="a folder, or the URI of a tracking server or database"
    )
    found.add_argument(
        "--no-runs", dest="runs", action="store_false", help="send the IQM of each label and task alone, no single run"
    )
    found.add_argument("--follow", action="store_true", help="go on until every shard is finished")
    found.add_argument(
        "--every", type=seconds, metavar="SECONDS", default=30.0, help="with --follow: time between two looks (30)"
    )
    return found


def seconds(text: str) -> float:
    """The reader of a time."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"'{text}' must be seconds above 0, such as 30")
    return value


def target_of(name: str, place: str, results: Path) -> Target:
    """Where the option of this name sends to. Raises UserError where its package is missing."""
    try:
        if name == "tensorboard":
            from analysis.to_tensorboard import TensorBoard

            return TensorBoard(Path(place))
        if name == "wandb":
            from analysis.to_wandb import Wandb

            return Wandb(place)
        from analysis.to_mlflow import Mlflow

        return Mlflow(place, results)
    except ImportError as error:
        raise UserError(f"--{name} needs a package ({error.name} is missing): pip install 'rlsuite[{name}]'") from error


def tell(sent: Sent, place: str, nothing: bool = False) -> None:
    """Say what was sent; where that is nothing, only if it is wanted."""
    if sent.runs or sent.aggregates:
        print(f"{place}: {sent.points:,} points (runs: {sent.runs:,}, aggregates: {sent.aggregates:,})", flush=True)
    elif nothing:
        print(f"{place}: nothing new", flush=True)
