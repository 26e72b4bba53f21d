"""`rlsuite tune RESULTS --select SEEDS`: the best setting by some seeds, and what it scores on others."""

from __future__ import annotations

import argparse
import re

from rlsuite.commands.options import Parser, path
from rlsuite.commands.report import missing_extra
from rlsuite.errors import UserError

MOST_SEEDS = 1_000_000
"""that one option names"""


def main(arguments: list[str]) -> int:
    """Choose by some seeds and print what the choice scores on others."""
    try:
        from analysis import ResultsError, load, manifests, tuning
        from analysis.scores import KINDS
        from analysis.tables import make_console, render_choice
    except ImportError as error:
        raise missing_extra(error) from error

    parser = Parser(
        prog="rlsuite tune",
        description="Choose the best setting of each label by IQM on some seeds, and report it on others.",
    )
    parser.add_argument(
        "results", metavar="RESULTS", type=path, help="an experiment's folder, or a folder of experiments"
    )
    parser.add_argument("--select", type=seeds, required=True, metavar="SEEDS", help="to choose by, such as 0-7")
    parser.add_argument("--report", type=seeds, metavar="SEEDS", help="to report on, such as 8-15,20 (all others)")
    parser.add_argument(
        "--kind",
        choices=tuple(KINDS),
        default="final",
        help="a run's score: its last evaluation, or the mean of all after step 0 (%(default)s)",
    )
    parser.add_argument(
        "--over-tasks", action="store_true", help="one setting for all tasks, by normalised scores (one for each)"
    )
    options = parser.parse_args(arguments)
    try:
        choice = tuning.choose(
            load(options.results),
            manifests(options.results),
            selection_seeds=options.select,
            report_seeds=options.report,
            kind=options.kind,
            over_tasks=options.over_tasks,
        )
    except ResultsError as error:
        raise UserError(str(error)) from error
    render_choice(choice.table, options.kind, make_console())
    return 0


def seeds(text: str) -> list[int]:
    """The reader of seeds: `0-7`, or `0-3,8`."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part, re.ASCII)
        here = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
        if not 0 < len(here) <= MOST_SEEDS - len(found):
            raise argparse.ArgumentTypeError(
                f"'{text}' must be seeds, {MOST_SEEDS} of them or fewer, such as 0-7 or 0-3,8"
            )
        found += here
    return found
