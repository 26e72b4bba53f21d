"""`rlsuite report FOLDER`, and without the rest of rlsuite `python -m analysis FOLDER`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

import pandas as pd
from rich.console import Console

from analysis import Manifest, Scores, load, manifests, metric_frame, score, select
from analysis.curves import performance_profiles, sample_efficiency_curves
from analysis.evidence import named
from analysis.plots import aggregate_intervals, performance_profile, sample_efficiency
from analysis.report import document, write
from analysis.tables import latex, make_console, render, render_metric, summarise

DESCRIPTION = """Compare the results in a folder: print the tables; write them as report.csv and report.tex, the page
report.html, and the figures sample_efficiency, aggregate_intervals and performance_profile as PNG and PDF."""
FIGURES = (".png", ".pdf")
MINIMUM_REPETITIONS = 40
MAXIMUM_REPETITIONS = 1_000_000
"""With fewer resamples not even one lies outside each end of a 95 % interval."""


class _UsageError(ValueError):
    """The command line cannot be understood."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message} (see '{self.prog} --help')")


def main(argv: list[str], shards: Sequence[str] | None = None) -> int:
    """Report on a folder of results.

    Args:
        argv: the arguments, without the program's name.
        shards: names of those to report on, where not all that lie there are meant.

    Returns:
        The exit code: 0, or 2 after one line on standard error that says what is wrong and what to do.
    """
    try:
        arguments = _parser().parse_args(argv)
        out = arguments.out or arguments.results
        chosen = {"labels": arguments.labels, "tasks": arguments.tasks, "shards": shards}
        report(arguments.results, out, arguments.repetitions, arguments.seed, arguments.metric, **chosen)
    except (ValueError, OSError) as error:  # ResultsError and _UsageError are ValueErrors
        print(f"rlsuite: {error}", file=sys.stderr)
        return 2
    return 0


def report(
    results: Path,
    out: Path,
    repetitions: int,
    seed: int,
    metrics: Sequence[str] = (),
    *,
    labels: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    shards: Sequence[str] | None = None,
) -> None:
    """Print the tables and the paths of the files; write them into `out`, with a table and a figure of each of these
    training metrics.

    Raises:
        ResultsError: the results cannot be read, or lack one of the chosen `labels` or `tasks`.
        OSError: `out` cannot be written.
    """
    frame, shard_manifests = named(
        *select(load(results), manifests(results), labels=labels, tasks=tasks, shards=shards)
    )
    scores = score(frame, shard_manifests)
    # A metric's curves are like those of the return, but no metric has reference values.
    without_reference = [{**manifest, "reference": None} for manifest in shard_manifests]
    scores_by_metric = {name: score(metric_frame(frame, name), without_reference) for name in metrics}
    _check_writable(out)  # before the minutes that thousands of runs may take
    console = make_console()
    _report_returns(scores, frame, shard_manifests, out, repetitions, seed, console)
    for name, metric_scores in scores_by_metric.items():
        _report_metric(metric_scores, name, out, repetitions, seed, console)


def _report_returns(
    scores: Scores,
    frame: pd.DataFrame,
    shards: Sequence[Manifest],
    out: Path,
    repetitions: int,
    seed: int,
    console: Console,
) -> None:
    summary = summarise(scores, repetitions=repetitions, seed=seed)
    render(scores, summary, console)
    curves = sample_efficiency_curves(scores, repetitions=repetitions, seed=seed)
    profiles = performance_profiles(scores, repetitions=repetitions, seed=seed)
    figures: dict[str, Callable[..., None]] = {"sample_efficiency": partial(sample_efficiency, scores, curves=curves)}
    if profiles:
        figures["aggregate_intervals"] = partial(aggregate_intervals, scores, summary)
        figures["performance_profile"] = partial(performance_profile, scores, profiles["final"])
    page = document(scores, frame, shards, summary, curves, profiles, repetitions=repetitions, seed=seed)

    _write([out / "report.csv"], lambda file: summary.to_csv(file, index=False))
    _write([out / "report.tex"], lambda file: file.write_text(latex(scores, summary), encoding="utf-8"))
    for name, draw in figures.items():
        _write([out / f"{name}{ending}" for ending in FIGURES], draw)
    _write([out / "report.html"], lambda file: write(page, file))
    # Not wrapped to the console's width: the paths are there to be copied.
    console.print(f"\nTables:  {out / 'report.csv'} and .tex", soft_wrap=True)
    console.print(f"Figures: {out / ', '.join(figures)}; each {' and '.join(FIGURES)}", soft_wrap=True)
    console.print(f"Report:  {out / 'report.html'}", soft_wrap=True)


def _report_metric(scores: Scores, name: str, out: Path, repetitions: int, seed: int, console: Console) -> None:
    # Whether more of a metric is better, and on which scale, nobody can say.
    summary = summarise(scores, repetitions=repetitions, seed=seed, tasks_alone=True)
    render_metric(scores, summary, name, console)
    table, plots = out / f"metric_{name}.csv", [out / f"metric_{name}{ending}" for ending in FIGURES]
    _write([table], lambda file: summary.to_csv(file, index=False))
    _write(plots, partial(sample_efficiency, scores, repetitions=repetitions, seed=seed, quantity=name))
    console.print(f"\nTable: {table}", soft_wrap=True)
    console.print(f"Plot:  {plots[0]} and {FIGURES[1]}", soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="rlsuite report", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument(
        "results", metavar="RESULTS", type=_path, help="an experiment's folder, or a folder of experiments"
    )
    parser.add_argument("--labels", nargs="+", metavar="LABEL", help="only these labels (default: all)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these environments or datasets (default: all)")
    parser.add_argument("--out", type=_path, metavar="DIR", help="where to write (default: the results folder)")
    parser.add_argument(
        "--repetitions",
        type=_integer(MINIMUM_REPETITIONS, MAXIMUM_REPETITIONS),
        default=2000,
        metavar="N",
        help="bootstrap resamples for each interval (default: %(default)s)",
    )
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="also metric_NAME.csv and a figure of this training metric, such as value_bias; may be given again",
    )
    parser.add_argument(
        "--seed", type=_integer(0), default=0, metavar="N", help="of the bootstrap (default: %(default)s)"
    )
    return parser


def _path(text: str) -> Path:
    # Shells leave the `~` of `--out=~/page` as it is.
    return Path(os.path.expanduser(text))


def _integer(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least {minimum}")
        if maximum is not None and value > maximum:
            raise argparse.ArgumentTypeError(f"'{text}' must be at most {maximum}")
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


def _write(files: Sequence[Path], write: Callable[..., None]) -> None:
    """Write under temporary names and rename, so that a reader never finds half a file."""
    # The ending stays, which tells a figure's format.
    temporary = [file.with_name(f".{os.getpid()}.tmp.{file.name}") for file in files]
    try:
        write(*temporary)
        for draft, file in zip(temporary, files, strict=True):
            draft.replace(file)
    except OSError as error:
        raise OSError(
            f"cannot write '{files[0]}' ({error.strerror or error}); choose another folder with --out"
        ) from error
    finally:
        for draft in temporary:
            draft.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
