"""The report in figures: one tidy frame, which is the CSV file, and the same frame as tables in a terminal."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from analysis import bootstrap, evidence
from analysis.bootstrap import Interval, Statistic
from analysis.scores import KINDS, Array, Scores, TaskScores

CONFIDENCE = 0.95
AGGREGATES: dict[str, Statistic] = {
    "iqm": bootstrap.iqm,
    "mean": bootstrap.mean,
    "median": bootstrap.median,
    "optimality_gap": bootstrap.optimality_gap,
}
TITLES = {"iqm": "IQM", "mean": "mean", "median": "median", "optimality_gap": "optimality gap"}
COLUMNS = (
    *("section", "environment", "label", "against", "score", "statistic", "estimate", "low", "high", "confidence"),
    *("no_interval", "runs", "planned_runs", "diverged", "first_final_step", "last_final_step", "steps_per_second"),
    *("setting", "tasks", "evidence", "p_value", "p_holm"),
)
MARKS = {bootstrap.FEW_RUNS: "*", bootstrap.NO_SPREAD: "="}
"""What stands behind an estimate without interval, by the reason."""
MEANINGS = {
    bootstrap.FEW_RUNS: f"no interval, fewer than {bootstrap.FEWEST_RUNS} runs on a task (for P(X > Y) than "
    f"{bootstrap.FEWEST_TO_COMPARE} of a label), or of means than {bootstrap.FEWEST_FOR_A_MEAN} on all: too few",
    bootstrap.NO_SPREAD: "no interval, all resamples are alike, as runs are equal",
}
SURVIVES = "†"
"""What stands behind a probability of improvement that `survives`."""
LAST = 5
"""Evaluations at the end of which the mean is reported too, beside the score of the last one."""
WIDTH = 100
"""Columns of the printed text where the output is not a terminal, which would tell its own width."""
UNLIMITED = 1_000_000
"""Columns that no table needs."""
MISSING = "-"
LISTED = "; "
"""Between the names of the CSV file's `tasks`."""
MOST_SETTINGS = 10
"""Settings of a label on a task that are printed; report.csv has all."""


def summarise(scores: Scores, *, repetitions: int = 2000, seed: int = 0, tasks_alone: bool = False) -> pd.DataFrame:
    """Every figure of the report, one row per estimate.

    Args:
        scores: from `analysis.score`.
        repetitions: resamples for each interval.
        seed: of the bootstrap.
        tasks_alone: only the section `task`.

    Returns:
        The columns `COLUMNS`. `section` is one of
        `task` (statistics `untrained_iqm`, `final_iqm`, `last_iqm` of the mean over the last `LAST` evaluations, and
        `auc_iqm`, in episode return, for each label on each task. They are those of the `runs` that count, see
        `TaskScores`, of which `diverged` did; they are fewer than `planned_runs` while a shard is running. They stop
        between `first_final_step` and `last_final_step`, which differ if shards of other lengths are pooled),
        `aggregate` (`iqm`, `mean`, `median`, `optimality_gap` of normalised scores, over the tasks that
        `Scores.comparable` gives), and `improvement` (probability that a run of `label` beats one of `against` on
        the `tasks` that the two share, and on those that lack nothing but a reference), each for both `KINDS` of
        `score`, and `setting` (`setting_iqm`, the final IQM in episode return of each `setting` of a label that pools
        several, the best first). Where an estimate has no interval, `low` and `high` are NaN and `no_interval` says
        why, a key of `MEANINGS`. `p_value` is that of a probability of improvement of 1/2, and `p_holm` the same,
        corrected for the number of pairs of labels. `evidence` is the level of the label's method, as
        `Scores.evidence` has it.
    """
    rows: list[dict[str, object]] = []

    def add(section: str, label: str, statistic: str, found: Interval, why: str, **more: object) -> None:
        bounds = {"estimate": found.estimate, "low": found.low, "high": found.high, "confidence": CONFIDENCE}
        rows.append({"section": section, "label": label, "statistic": statistic, **bounds, "no_interval": why, **more})

    # By task, and on each in the order of the labels.
    for (label, environment), task in sorted(scores.tasks.items(), key=lambda item: item[0][1]):
        final_steps = task.last_steps[task.counted]
        facts = {
            "environment": environment,
            "runs": int(task.counted.sum()),
            "planned_runs": task.planned,
            "diverged": int(task.diverged[task.counted].sum()),
            "first_final_step": int(final_steps.min()),
            "last_final_step": int(final_steps.max()),
            "steps_per_second": task.steps_per_second,
        }
        for statistic, values in (
            ("untrained", task.untrained),
            ("final", task.final),
            ("last", task.mean_of_last(LAST)),
            ("auc", task.auc),
        ):
            found = _task_interval(values, f"{label} {environment}", repetitions, seed)
            add("task", label, f"{statistic}_iqm", found, _why(found, [values.size]), **facts)

    environments, _ = scores.comparable()
    pairs = scores.pairs()
    for kind in () if tasks_alone else KINDS:
        normalised = scores.normalised(environments, kind) if environments else {}
        for statistic, function in AGGREGATES.items() if environments else ():
            intervals = bootstrap.interval(
                normalised, function, repetitions=repetitions, seed=seed, confidence=CONFIDENCE
            )
            for label, found in intervals.items():
                sizes = [task.size for task in normalised[label]]
                why = bootstrap.why_no_interval(found, sizes, function)
                add("aggregate", label, statistic, found, why, score=kind, tasks=LISTED.join(environments))
        for (label, against), shared in pairs.items():
            if not shared:
                continue
            x, y = ([scores.tasks[each, task].scores(kind) for task in shared] for each in (label, against))
            found = bootstrap.improvement(x, y, repetitions=repetitions, seed=seed, confidence=CONFIDENCE)
            sizes = [task.size for task in (*x, *y)]
            p_value = bootstrap.improvement_p_value(x, y)
            facts = {"against": against, "score": kind, "tasks": LISTED.join(shared), "p_value": p_value}
            add("improvement", label, "probability_of_improvement", found, _why(found, sizes), **facts)

    for (label, environment), task in () if tasks_alone else scores.tasks.items():
        for row in _settings(task, repetitions, seed):
            add("setting", label, "setting_iqm", environment=environment, **row)

    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    frame["evidence"] = frame["label"].map(scores.evidence)
    for kind in KINDS:
        pairs_rows = (frame["section"] == "improvement") & (frame["score"] == kind)
        frame.loc[pairs_rows, "p_holm"] = bootstrap.holm(frame.loc[pairs_rows, "p_value"].astype(float).tolist())
    counts = ["runs", "planned_runs", "diverged", "first_final_step", "last_final_step"]
    frame[counts] = frame[counts].astype("Int64")  # whole numbers in the CSV, although some rows have none
    return frame


def render(scores: Scores, summary: pd.DataFrame, console: Console) -> None:
    """Print the report: a table of the tasks, the aggregates with the tasks they cover, and the notes.

    Args:
        scores, summary: from `analysis.score` and `summarise`.
        console: where to; see `make_console` (markup must be off, for names may hold brackets).
    """
    tasks = summary[summary["section"] == "task"]
    offline = any(task.offline for task in scores.tasks.values())
    _print_tasks(console, tasks, offline=offline)
    console.print(
        "\nEpisode return, untrained and final: IQM over runs, which is the mean of their middle half.\n"
        + (f"Last {LAST}: the same of each run's mean over its last {LAST} evaluations.\n" if offline else "")
        + f"In brackets: {CONFIDENCE:.0%} interval, stratified bootstrap over runs (of P(X > Y) a score interval).\n"
        "A diverged run counts with its last finite score, else with the environment's floor."
    )
    environments, left_out = scores.comparable()
    final_rows = summary[summary["score"] == "final"]
    improvements = final_rows[final_rows["section"] == "improvement"]
    if environments:
        _print_aggregates(console, final_rows[final_rows["section"] == "aggregate"])
    if len(improvements):
        _print_improvements(console, improvements)
        _print_shared(console, scores.pairs(), environments)
    _print_settings(console, summary[summary["section"] == "setting"])
    _print_marks(console, summary)
    if environments:
        returns = [
            f"{environment} ({scores.references[environment].low:g} to {scores.references[environment].high:g})"
            for environment in environments
        ]
        console.print(f"\nOptimality gap: lower is better. Scores 0 and 1 stand for the returns {', '.join(returns)}.")
    else:
        console.print("\nNo aggregate over tasks: all are left out.")
        if len(scores.labels) > 1 and any(environment in scores.references for environment in left_out):
            console.print("It needs a task that every label ran; `--labels` and `--tasks` choose what is compared.")
    for environment, reason in left_out.items():
        console.print(f"Left out of the aggregate: {environment}, {reason}.")
    for note in scores.notes:
        console.print(f"Note: {note}.")


def latex(scores: Scores, summary: pd.DataFrame) -> str:
    """Two tables for a paper, which need the package booktabs: what each label reached on each task, and the aggregates
    over the tasks that can be compared, if there are any. They are bare `tabular`s, to be put where they fit.

    Args:
        scores, summary: from `analysis.score` and `summarise`.
    """
    task_rows = [row for _, row in summary[summary["section"] == "task"].iterrows()]
    by_cell: dict[tuple[str, str], dict[str, pd.Series]] = {}
    for row in task_rows:
        by_cell.setdefault((row["environment"], row["label"]), {})[row["statistic"]] = row
    lines = [
        r"% Needs \usepackage{booktabs}.",
        f"% IQM over runs with its {100 * CONFIDENCE:.0f} % stratified-bootstrap interval, in episode return;",
        "% AUC is the mean over the evaluations after step 0.",
        *(f"% {meaning}." for meaning in _marks(summary)),
        *(f"% {_one_line(note)}." for note in evidence.notes(scores.evidence)),
        r"\begin{tabular}{llrll}",
        r"\toprule",
        r"Task & Label & Runs & Final & AUC \\",
    ]
    previous = None
    for (environment, label), found in by_cell.items():
        if environment != previous:
            lines.append(r"\midrule")
        final, auc = found["final_iqm"], found["auc_iqm"]
        cells = [
            _escape(environment) if environment != previous else "",
            _escape(label),
            str(final["runs"]),
            *(_latex_interval(each, _decimals(each["estimate"], each["high"] - each["low"])) for each in (final, auc)),
        ]
        lines.append(" & ".join(cells) + r" \\")
        previous = environment
    lines += [r"\bottomrule", r"\end{tabular}", ""]
    environments, _ = scores.comparable()
    if environments:
        aggregates = summary[summary["section"] == "aggregate"].set_index(["score", "label", "statistic"])
        lines += [
            f"% Normalised scores over {len(environments)} tasks: {_one_line(', '.join(environments))}.",
            r"\begin{tabular}{ll" + "l" * len(AGGREGATES) + "}",
            r"\toprule",
            " & ".join(["Score", "Label", *(title.capitalize().replace("Iqm", "IQM") for title in TITLES.values())])
            + r" \\",
        ]
        for kind, title in (("final", "Final"), ("auc", "AUC")):
            lines.append(r"\midrule")
            for label in scores.labels:
                cells = [_latex_interval(aggregates.loc[(kind, label, statistic)], 3) for statistic in AGGREGATES]
                lines.append(" & ".join([title, _escape(label), *cells]) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(lines)


def render_metric(scores: Scores, summary: pd.DataFrame, metric: str, console: Console) -> None:
    """Print the table of a training metric.

    Args:
        scores, summary: as for `render`, of `analysis.metric_frame`.
        metric: its name.
        console: where to; see `make_console`.
    """
    _print_tasks(console, summary[summary["section"] == "task"], f"Metric {metric} at the last evaluation")
    console.print(f"\nIQM over runs of {metric}, with its {CONFIDENCE:.0%} interval, stratified bootstrap over runs.")
    _print_marks(console, summary)
    for note in scores.notes:
        console.print(f"Note: {note}.")


def render_choice(table: pd.DataFrame, kind: str, console: Console) -> None:
    """Print which setting of each label did best on some seeds, and what it scores on others.

    Args:
        table: of `analysis.tuning.choose`, whose intervals have the confidence `CONFIDENCE`.
        kind: what a run scored, of `KINDS`.
        console: where to; see `make_console`.
    """
    apart = "environment" in table
    groups = []
    for _, task_rows in table.groupby("environment", sort=False) if apart else [("", table)]:
        group: list[list[str]] = []
        for _, row in task_rows.iterrows():
            decimals = _decimals(row["estimate"], row["high"] - row["low"])
            varied = row.filter(like="hyper/").dropna()
            setting = " ".join(f"{name.removeprefix('hyper/')}={value:g}" for name, value in varied.items())
            group.append(
                [
                    *(["" if group else row["environment"]] if apart else []),
                    row["label"],
                    setting or "the only one",
                    str(row["settings"]),
                    str(row["selection_runs"]),
                    _number(row["selection"], decimals),
                    str(row["runs"]),
                    _interval(row, decimals),
                    _number(row["optimism"], decimals),
                ]
            )
        groups.append(group)
    numbers = ["of", "runs", "selection IQM", "runs", f"reported IQM [{CONFIDENCE:.0%}]", "optimism"]
    names = [*(["environment"] if apart else []), "label", "best setting"]
    print_table(console, f"Best settings by {KINDS[kind]}", names, numbers, groups)
    console.print(
        "\nThe setting is chosen by the selection's runs and reported by the others. Optimism: what its score on the "
        f"selection claims too much.{'' if apart else ' Scores are normalised, over all compared tasks.'}"
    )
    _print_marks(console, table)


def make_console() -> Console:
    """A console for standard output: plain when piped, and text then `WIDTH` wide."""
    # Names of labels and tasks are text: brackets and colons in them are not rich's markup.
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, no_color=True, width=WIDTH)
    return console


def _task_interval(values: Array, name: str, repetitions: int, seed: int) -> Interval:
    # Nothing to estimate where no run was evaluated untrained, or where every run of a task without reference diverged.
    if values.size == 0 or not np.isfinite(values).all():
        return Interval(math.nan, math.nan, math.nan)
    return bootstrap.interval(
        [values],
        bootstrap.iqm,
        repetitions=repetitions,
        seed=seed,
        confidence=CONFIDENCE,
        name=name,
    )


def _why(found: Interval, sizes: Sequence[int]) -> str:
    """Of an IQM or a P(X > Y)."""
    return bootstrap.why_no_interval(found, sizes, bootstrap.iqm)


def _settings(task: TaskScores, repetitions: int, seed: int) -> list[dict[str, Any]]:
    """The settings of a label on a task that pools several, the best first."""
    hypers = task.hypers[task.counted].reset_index(drop=True)
    varied = [name for name in hypers if hypers[name].nunique(dropna=False) > 1]
    if not varied or not np.isfinite(task.final).all():
        return []
    found = []
    for values, setting_hypers in hypers.groupby(varied, sort=True, dropna=False):
        setting = ", ".join(f"{name} {value:g}" for name, value in zip(varied, values, strict=True))
        scores = task.final[setting_hypers.index]
        interval = Interval(bootstrap.estimate([scores], bootstrap.iqm), math.nan, math.nan)
        # Thousands of settings with a run or two each have none.
        if scores.size >= bootstrap.FEWEST_RUNS:
            name = f"{task.label} {task.environment}, {setting}"
            interval = _task_interval(scores, name, repetitions, seed)
        found.append({"found": interval, "why": _why(interval, [scores.size]), "setting": setting, "runs": scores.size})
    return sorted(found, key=lambda row: -row["found"].estimate)


def _print_settings(console: Console, settings: pd.DataFrame) -> None:
    """Where labels pool settings, each of these by itself."""
    groups, left_out = [], []
    for (environment, label), rows in settings.groupby(["environment", "label"], sort=False):
        group: list[list[str]] = []
        for _, row in rows.iloc[:MOST_SETTINGS].iterrows():
            names = ["", ""] if group else [environment, label]
            shown = _interval(row, _decimals(row["estimate"], row["high"] - row["low"]))
            group.append([*names, row["setting"], str(row["runs"]), shown])
        groups.append(group)
        if len(rows) > MOST_SETTINGS:
            left_out.append(f"{len(rows) - MOST_SETTINGS} of '{label}' on {environment}")
    if not groups:
        return
    numbers = ["runs", f"final IQM [{CONFIDENCE:.0%}]"]
    print_table(console, "By setting, best first", ["task", "label", "setting"], numbers, groups)
    if left_out:
        console.print(f"\nSettings not shown, which are in report.csv: {', '.join(left_out)}.")
    console.print("\nThe best of several settings is in part the luckiest: report it on seeds it was not chosen by.")


def _print_shared(console: Console, pairs: Mapping[tuple[str, str], list[str]], environments: list[str]) -> None:
    """Which tasks labels were compared on run by run, where the table of the aggregates does not say it."""
    groups = by_tasks(pairs)
    if [tasks for tasks, _ in groups] == [environments]:
        return
    if len(groups) == 1 and len(groups[0][1]) == len(pairs):
        console.print(f"\nP(X > Y) needs no reference returns: it is over {', '.join(groups[0][0])}.")
        return
    console.print("\nP(X > Y) is over the tasks that both labels ran:")
    for tasks, names in groups:
        console.print(f"{', '.join(tasks) or 'none in common'}: {'; '.join(f'{x} > {y}' for x, y in names)}.")


def by_tasks(pairs: Mapping[tuple[str, str], list[str]]) -> list[tuple[list[str], list[tuple[str, str]]]]:
    """`Scores.pairs` the other way round: tasks, and the pairs of labels that share just these."""
    groups: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for pair, tasks in pairs.items():
        groups.setdefault(tuple(tasks), []).append(pair)
    return [(list(tasks), names) for tasks, names in groups.items()]


def _marks(summary: pd.DataFrame) -> list[str]:
    """What the marks mean that stand behind estimates of this summary."""
    reasons = set(summary["no_interval"])
    return [f"{MARKS[reason]} {meaning}" for reason, meaning in MEANINGS.items() if reason in reasons]


def _print_marks(console: Console, summary: pd.DataFrame) -> None:
    if meanings := _marks(summary):
        console.print("\n" + "\n".join(f"{meaning}." for meaning in meanings))


def print_table(
    console: Console,
    title: str,
    names: Sequence[str],
    numbers: Sequence[str],
    groups: Sequence[Sequence[Sequence[str]]],
) -> None:
    """Print a table in which no name and no number is cut, whatever the width.

    Where it is wider than a terminal, it becomes several tables below each other, each with the names and as many of
    the numbers as fit. Into a file or a pipe it is one table, as wide as it needs.

    Args:
        console: see `make_console`.
        title: above the table.
        names: headings of the first columns. In a terminal, names that take more than half of it are folded.
        numbers: headings of the other columns.
        groups: rows, each the texts of all columns, in groups that are set apart from each other.
    """
    width = console.width if console.is_terminal else UNLIMITED
    needed = [max(cell_len(text) for text in column) for column in zip(names, *itertools.chain(*groups), strict=False)]
    limits = _shared(needed, width // 2)

    def part(first: int, end: int) -> Table:
        """With these of the numbers."""
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for name, limit in zip(names, limits, strict=True):
            table.add_column(name, overflow="fold", max_width=max(limit, cell_len(name)))
        for number in numbers[first:end]:
            table.add_column(number, justify="right", no_wrap=True)
        for group in groups:
            for row in group:
                table.add_row(*row[: len(names)], *row[len(names) :][first:end])
            table.add_section()
        # Told its width, a table keeps it where the console is narrower.
        table.width = console.measure(table, options=console.options.update(max_width=UNLIMITED)).maximum
        return table

    console.print(f"\n{title}", style="bold")
    first = 0
    while first < len(numbers):
        ends = range(first + 1, len(numbers) + 1)
        fitting = [end for end in ends if (part(first, end).width or 0) <= width]
        end = max(fitting, default=first + 1)
        if first:
            console.print()
        console.print(part(first, end), crop=False)
        first = end


def _shared(needed: Sequence[int], total: int) -> list[int]:
    """How much of the total each gets: no more than it needs, and what some leave goes to the others."""
    shares = [0] * len(needed)
    for taken, index in enumerate(sorted(range(len(needed)), key=needed.__getitem__)):
        shares[index] = min(needed[index], total // (len(needed) - taken))
        total -= shares[index]
    return shares


def _print_tasks(console: Console, tasks: pd.DataFrame, title: str = "Final evaluation", offline: bool = False) -> None:
    last_columns = [f"last {LAST}"] if offline else []
    groups = []
    for environment, task_rows in tasks.groupby("environment", sort=False):
        group: list[list[str]] = []
        for label, rows in task_rows.groupby("label", sort=False):
            by_statistic = rows.set_index("statistic")
            final = by_statistic.loc["final_iqm"]
            first, last = int(final["first_final_step"]), int(final["last_final_step"])
            decimals = _decimals(final["estimate"], final["high"] - final["low"])
            group.append(
                [
                    "" if group else environment,
                    label,
                    str(final["runs"]) + (f"/{final['planned_runs']}" if final["runs"] < final["planned_runs"] else ""),
                    str(final["diverged"]),
                    _number(by_statistic.loc["untrained_iqm", "estimate"], decimals),
                    _interval(final, decimals),
                    *([_number(by_statistic.loc["last_iqm", "estimate"], decimals)] if offline else []),
                    _short(last) if first == last else f"{_short(first)} to {_short(last)}",
                    _short(final["steps_per_second"]),
                ]
            )
        groups.append(group)
    interval = f"final IQM [{CONFIDENCE:.0%}]"
    numbers = ["runs", "diverged", "untrained", interval, *last_columns, "at step", "steps/s"]
    print_table(console, title, ["dataset" if offline else "environment", "label"], numbers, groups)


def _print_aggregates(console: Console, aggregates: pd.DataFrame) -> None:
    group = []
    for label, rows in aggregates.groupby("label", sort=False):
        by_statistic = rows.set_index("statistic")
        group.append([label, *(_interval(by_statistic.loc[statistic], 3) for statistic in AGGREGATES)])
    print_table(console, "Normalised final scores over all compared tasks", ["label"], list(TITLES.values()), [group])


def survives(row: pd.Series) -> bool:
    """Whether a probability of improvement differs from one half, corrected for the number of pairs."""
    return bool(row["p_holm"] < 1 - CONFIDENCE)


def _print_improvements(console: Console, improvements: pd.DataFrame) -> None:
    group = [
        [f"{row['label']} > {row['against']}", _interval(row, 3) + (f" {SURVIVES}" if survives(row) else "")]
        for _, row in improvements.iterrows()
    ]
    print_table(console, "Probability of improvement", ["P(X > Y)"], [f"[{CONFIDENCE:.0%} interval]"], [group])
    if len(group) > 1 and any(SURVIVES in found for _, found in group):
        console.print(f"{SURVIVES} leaves out one half after Holm's correction for {len(group)} pairs too.")


LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: "\\" + character for character in "&%$#_{}"},
}


def _escape(name: str) -> str:
    """As LaTeX text; what neither LaTeX nor a reader can make anything of, such as a line break, as a space."""
    return "".join(LATEX.get(character, character if character.isprintable() else " ") for character in name)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _latex_interval(row: pd.Series, decimals: int) -> str:
    # A bracket at the start of a row would be taken for an argument of the row before; braces keep it apart.
    return "{" + _interval(row, decimals).replace("-", "$-$") + "}"


def _interval(row: pd.Series, decimals: int) -> str:
    estimate, low, high = (_number(row[column], decimals) for column in ("estimate", "low", "high"))
    if low != MISSING:
        return f"{estimate} [{low}, {high}]"
    return f"{estimate} {MARKS[row['no_interval']]}" if row["no_interval"] else estimate


def _number(value: float, decimals: int) -> str:
    return MISSING if math.isnan(value) else f"{value:.{decimals}f}"


def _decimals(estimate: float, width: float) -> int:
    """Decimals that show two figures of the interval's width, but no more than four of the estimate."""
    # Python's max keeps its first argument when the other is NaN: no interval, or no estimate.
    shown = max(abs(estimate) * 1e-2, width)
    return min(4, max(0, 1 - math.floor(math.log10(shown)))) if shown > 0 else 1


def _short(value: float) -> str:
    """1234567 -> 1.23M"""
    if math.isnan(value):
        return MISSING
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{suffix}" if value < 999.5 * size else f"{value / size:.0f}{suffix}"
    return f"{value:.3g}"
