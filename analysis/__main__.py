"""`python -m analysis <results folder>`: print the comparison, write `report.csv` and `sample_efficiency.png`, and for
each `--metric NAME` also `metric_NAME.csv` and `metric_NAME.png`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import pandas as pd

from analysis import Scores, load, manifests, of_metric, score
from analysis.plots import sample_efficiency
from analysis.tables import make_console, render, render_metric, summarise

MINIMUM_REPETITIONS = 40
"""With fewer resamples not even one lies outside each end of a 95 % interval."""


class _UsageError(ValueError):
    """The command line cannot be understood."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message}; see `{self.prog} --help`")


def main(argv: list[str]) -> int:
    """Report on a folder of results.

    Args:
        argv: the arguments, without the program's name.

    Returns:
        The exit code: 0, or 2 after one line on standard error that says what is wrong and what to do.
    """
    try:
        arguments = _parser().parse_args(argv)
        out = arguments.out or arguments.results
        report(arguments.results, out, arguments.repetitions, arguments.seed, arguments.metric)
    except (ValueError, OSError) as error:  # ResultsError and _UsageError are ValueErrors
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def report(results: Path, out: Path, repetitions: int, seed: int, metrics: Sequence[str] = ()) -> None:
    """Print the tables and the paths of the files; write `report.csv` and `sample_efficiency.png` into `out`, and a
    table and a plot of each of these training metrics.

    Raises:
        ResultsError: the results cannot be read.
        OSError: `out` cannot be written.
    """
    frame, shards = load(results), manifests(results)
    scores = score(frame, shards)
    # A metric's curves are like those of the return, but no metric has reference values.
    without_reference = [{**manifest, "reference": None} for manifest in shards]
    of_metrics = {name: score(of_metric(frame, name), without_reference) for name in metrics}
    _check_writable(out)  # before the minutes that thousands of runs may take
    console = make_console()

    def write(of: Scores, quantity: str, table: Path, plot: Path) -> pd.DataFrame:
        summary = summarise(of, repetitions=repetitions, seed=seed)
        _write(table, lambda file: summary.to_csv(file, index=False))
        _write(plot, lambda file: sample_efficiency(of, file, repetitions=repetitions, seed=seed, quantity=quantity))
        return summary

    def show_paths(table: Path, plot: Path) -> None:
        # Not wrapped to the console's width: the path is there to be copied.
        console.print(f"\nTable: {table}", soft_wrap=True)
        console.print(f"Plot:  {plot}", soft_wrap=True)

    files = out / "report.csv", out / "sample_efficiency.png"
    render(scores, write(scores, "episode return", *files), console)
    show_paths(*files)
    for name, found in of_metrics.items():
        files = out / f"metric_{name}.csv", out / f"metric_{name}.png"
        render_metric(found, write(found, name, *files), name, console)
        show_paths(*files)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m analysis", description=__doc__, allow_abbrev=False)
    parser.add_argument("results", type=Path, help="an experiment's folder, or a folder of experiments")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: the results folder)")
    parser.add_argument(
        "--repetitions",
        type=_integer(MINIMUM_REPETITIONS),
        default=2000,
        metavar="N",
        help="bootstrap resamples for each interval (default: %(default)s)",
    )
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="also a table and a plot of this training metric, such as value_bias; may be given again",
    )
    parser.add_argument(
        "--seed", type=_integer(0), default=0, metavar="N", help="of the bootstrap (default: %(default)s)"
    )
    return parser


def _integer(minimum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least {minimum}")
        return value

    return parse


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write into '{folder}' ({error.strerror or error}); choose another folder with --out"
        ) from error


def _write(file: Path, write: Callable[[Path], None]) -> None:
    """Write under a temporary name and rename, so that a reader never finds half a file."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(file)
    except OSError as error:
        raise OSError(f"cannot write '{file}' ({error.strerror or error}); choose another folder with --out") from error
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
