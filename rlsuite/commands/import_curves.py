"""`rlsuite import FILE ... --to RESULTS`: curves of other programs, as a label next to ours."""

from __future__ import annotations

import argparse

from rlsuite.commands.options import Parser, path
from rlsuite.commands.report import missing_extra
from rlsuite.errors import UserError


def main(arguments: list[str]) -> int:
    """Read the files, write the shard, and say what was done to the numbers."""
    try:
        from analysis import ResultsError, foreign
    except ImportError as error:
        raise missing_extra(error) from error

    parser = Parser(
        prog="rlsuite import",
        description="Put curves of other programs into a results folder, as a label that is marked as imported.",
    )
    parser.add_argument("files", metavar="FILE", nargs="+", type=path, help="CSV or Parquet files, see docs/import.md")
    parser.add_argument("--to", metavar="RESULTS", type=path, required=True, help="an experiment's folder")
    parser.add_argument("--label", required=True, help="what the curves are called")
    parser.add_argument("--env", required=True, help="the environment, by the id that our results have")
    parser.add_argument("--dataset", help="the dataset's id, of methods that learn offline")
    parser.add_argument(
        "--columns",
        type=columns,
        default={},
        metavar="WHAT=NAME,...",
        help="columns of other names, such as step=frames,return=score,run=id",
    )
    parser.add_argument(
        "--returns",
        choices=tuple(foreign.KINDS),
        default="training",
        help="whether they are of training episodes, or evaluations of a policy (%(default)s)",
    )
    parser.add_argument(
        "--points", type=count, help="evenly spaced steps of each curve (those of our results on this task, else 20)"
    )
    parser.add_argument("--source", help="where the curves are from, for the manifest and the report")
    parser.add_argument("--replace", action="store_true", help="take the place of other curves of this label")
    options = parser.parse_args(arguments)
    if not options.label.strip():
        raise UserError("--label is empty; name the curves, such as 'PPO (CleanRL)'")
    try:
        done = foreign.import_curves(
            options.files,
            options.to,
            label=options.label.strip(),
            environment=options.env,
            dataset=options.dataset,
            columns=options.columns,
            kind=options.returns,
            points=options.points,
            source=options.source,
            replace=options.replace,
        )
    except ResultsError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"cannot write to '{options.to}' ({error.strerror or error}); give another folder") from error
    if done.kept:
        print(f"{done.label} on {options.env}: imported before, kept")
        return 0
    ends = [int(curve.steps[-1]) for curve in done.curves]
    print(f"{len(done.curves)} runs of {len(options.files)} files: {done.table}")
    if max(ends) > min(ends):
        print(f"runs end between step {min(ends):,} and {max(ends):,}; what comes after {done.steps[-1]:,} is left out")
    print(
        f"{done.label} on {options.env}: {len(done.steps)} steps from {done.steps[0]:,} to {done.steps[-1]:,}, at each "
        f"the {foreign.KINDS[options.returns]}"
    )
    if done.environments and options.env not in done.environments:
        print(f"no other result there is on {options.env}; they are on {', '.join(done.environments)}")
    print(done.path)
    return 0


def columns(text: str) -> dict[str, str]:
    """The reader of `step=frames,run=id`."""
    pairs = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    if len(pairs) < text.count(",") + 1 or not all(pairs.values()) or not pairs.keys() <= {"step", "return", "run"}:
        raise argparse.ArgumentTypeError(f"'{text}' must be step=NAME, return=NAME and run=NAME, with commas between")
    return pairs


def count(text: str) -> int:
    """The reader of a number of points."""
    if not (text.isdecimal() and 2 <= int(text) <= 100_000):
        raise argparse.ArgumentTypeError(f"'{text}' must be a whole number from 2 to 100000")
    return int(text)
