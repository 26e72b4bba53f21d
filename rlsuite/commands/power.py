"""`rlsuite power FOLDER --label A`: how many seeds a comparison needs, from the runs of a pilot."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rlsuite.commands.options import Parser, path, sizes
from rlsuite.commands.report import missing_extra
from rlsuite.errors import UserError


def main(arguments: list[str]) -> int:
    """Simulate the comparison at several numbers of runs and print how often it sees the difference."""
    try:
        from analysis import ResultsError, power
        from analysis.scores import KINDS
        from analysis.tables import make_console
    except ImportError as error:
        raise missing_extra(error) from error

    options = parser_of(tuple(KINDS)).parse_args(arguments)
    if options.seed < 0:
        raise UserError(f"--seed {options.seed} must be 0 or more")
    if options.runs and min(options.runs) < power.LEAST:
        raise UserError(f"--runs {min(options.runs)} must be at least {power.LEAST}")
    if options.runs and max(options.runs) > power.MOST:
        raise UserError(f"--runs {max(options.runs)} must be at most {power.MOST}")
    try:
        pilot = power.make_pilot(
            options.results,
            options.label,
            options.against,
            difference=options.difference,
            return_difference=options.return_difference,
            environment=options.env,
            kind=options.kind,
        )
        power.report(
            pilot,
            f"{options.label} and {options.against or 'a copy of it'}",
            options.power,
            make_console(),
            options.runs,
            confidence=options.confidence,
            seed=options.seed,
        )
    except ResultsError as error:
        raise UserError(str(error)) from error
    return 0


def parser_of(kinds: Sequence[str]) -> Parser:
    """The parser; `kinds` are the scores that a run can have."""
    parser = Parser(
        prog="rlsuite power",
        description="How many seeds a comparison needs to see a difference, simulated from the runs of a pilot.",
    )
    parser.add_argument("results", metavar="RESULTS", type=path, help="the pilot's folder, such as results/quick")
    parser.add_argument("--label", required=True, metavar="A", help="what is compared, as it is called in the report")
    parser.add_argument("--against", metavar="B", help="with what (with a copy of A)")
    differences = parser.add_mutually_exclusive_group()
    differences.add_argument(
        "--difference",
        type=float,
        metavar="X",
        help="IQM of A less that of B, as a share of the range of the reference returns (what the pilot shows)",
    )
    differences.add_argument("--return-difference", type=float, metavar="X", help="instead, in episode return")
    parser.add_argument("--env", metavar="ENV", help="on this task, or dataset, alone (on all that can be compared)")
    parser.add_argument(
        "--kind",
        choices=kinds,
        default="final",
        help="a run's score: its last evaluation, or the mean of all after step 0 (%(default)s)",
    )
    parser.add_argument("--power", type=share, metavar="X", default=0.8, help="how often to see it (%(default)s)")
    parser.add_argument("--confidence", type=share, metavar="X", default=0.95, help="of the intervals (%(default)s)")
    parser.add_argument("--runs", type=sizes, metavar="LIST", default=(), help="numbers of runs to try (chosen)")
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="of the simulation (%(default)s)")
    return parser


def share(text: str) -> float:
    """The reader of a share between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' must be a share between 0 and 1, such as 0.8")
    return value
