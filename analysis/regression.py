"""The regression gate: are new learning curves as good as the reference curves of the same cells?

A *cell* is an algorithm with its settings on a task. Each makes three claims, of which all must pass:

final      IQM over runs of each run's mean over its last five evaluations, which is far less noisy than the last one
area       IQM over runs of each run's mean over all evaluations but the untrained one: the area under its curve
diverged   the share of runs that became non-finite; their scores alone would not show it, since the IQM cuts them off

Scores are compared as shares of what the reference has learned: a difference of -0.1 is a tenth of the way from the
untrained policy down from the reference's IQM. Then a claim is

PASS           if the lower bound of the difference, new less reference, is above minus the margin: non-inferiority;
               for `diverged`, if no larger share has diverged
FAIL           if the difference is at or below minus the margin, and is below 0 beyond chance, by Holm's procedure
               over all claims of all cells; for `diverged`, if more have diverged beyond chance (Fisher's exact test)
INCONCLUSIVE   otherwise. Not significant is no pass: it needs more runs.

`ALPHA` bounds the probability that anything fails where nothing has changed, and for each claim that it passes although
the score has dropped by the margin. Both hold over all looks at the growing data together: each look has its share.

The two sides are taken as independent. New runs have seeds of the reference, and the same program on the same kind of
machine repeats their curves to the last bit, which passes at once; but a sum in another order is enough for curves of
one seed to part for good, so that nothing is left to be paired.

Bounds are the difference less a multiple of its bootstrap standard error, the multiple from Student's t at one degree
of freedom less than the smaller side has runs. Percentiles of the bootstrap would have to be read so far out in the
tail that it takes a hundred thousand resamples to have any there, and of some dozen runs they know nothing out there.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from rich.console import Console
from scipy import stats

from analysis import bootstrap
from analysis.bootstrap import Interval
from analysis.plots import sample_efficiency
from analysis.scores import Array, Manifest, ResultsError, Scores, TaskScores, load, manifests, score
from analysis.tables import LAST, print_table

ALPHA = 0.01
MARGIN = 0.05
"""Share of what the reference has learned that the final score may lose. The area may lose twice that: it is moved by
the moment at which a run takes off, so that it differs more from run to run."""
MINIMUM_RUNS = 8
"""Fewer show too little of their spread for any verdict."""
REPETITIONS = 2000
SAME = (
    *("algorithm", "environment", "label", "config_hash", "hypers", "steps", "evaluations", "eval_episodes"),
    *("max_episode_steps", "dataset", "sampling", "dataset_checksum", "evaluation_physics"),
)
"""What a cell's manifest and its reference's must agree on."""
FOUND_OUT = ("dataset_checksum", "evaluation_physics")
"""Of these, what is known only once a cell runs, and references may be too old to say: compared where both say it."""


class Verdict(enum.Enum):
    """The value is the exit code of `rlsuite check`; 2 is that of an error of its user."""

    PASS = 0
    FAIL = 1
    INCONCLUSIVE = 3


class Claim(NamedTuple):
    """One measure of one cell, before the other cells are looked at."""

    measure: str
    reference: float
    """IQM of the reference; the share of its runs, for `diverged`"""
    new: float
    difference: float
    """new less reference; for scores as a share of what the reference has learned"""
    error: float
    """its standard error in the same unit; NaN for `diverged`"""
    margin: float
    """that may be lost, in the same unit"""
    runs: int
    """of the smaller side"""
    worse: float
    """p-value of the hypothesis that the new runs are no worse"""

    def low(self, looks: int) -> float:
        """Lower bound of the difference, where so many looks at the data are planned."""
        if not self.error > 0:
            return self.difference
        return self.difference - float(stats.t.ppf(1 - ALPHA / looks, self.runs - 1)) * self.error

    def passes(self, looks: int) -> bool:
        """No worse than the reference by the margin, whatever the other cells do."""
        if self.measure == "diverged":
            return self.difference <= 0
        return self.runs >= MINIMUM_RUNS and self.low(looks) > -self.margin


class Judged(NamedTuple):
    """A cell and what has come of its claims."""

    name: str
    """of its reference"""
    reference: TaskScores
    new: TaskScores
    identical: bool
    """the new curves are the reference's, to the last bit"""
    claims: tuple[Claim, ...]
    verdicts: tuple[Verdict, ...]
    """of each claim"""

    @property
    def verdict(self) -> Verdict:
        """The cell's."""
        return worst(self.verdicts)


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """FAIL if there is one, else INCONCLUSIVE if there is one, else PASS."""
    return next(v for v in (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS) if v in verdicts or v is Verdict.PASS)


# --- Statistics -------------------------------------------------------------------------------------------------------


def claims(
    reference: TaskScores, new: TaskScores, margin: float = MARGIN, *, repetitions: int = REPETITIONS, seed: int = 0
) -> tuple[Claim, ...]:
    """The three claims of a cell.

    Args:
        reference, new: curves of the same cell, see `check_curves`.
        margin: share of what the reference has learned that the final score may lose, see `MARGIN`.
        repetitions, seed: of the bootstrap.

    Raises:
        ResultsError: the reference is no better than its untrained policy, so that there is no scale.
    """
    found = []
    runs = min(reference.runs, new.runs)
    untrained = bootstrap.estimate([reference.untrained], bootstrap.iqm)
    for measure, allowed in (("final", margin), ("area", 2 * margin)):
        reference_scores, new_scores = (_scores(task, measure) for task in (reference, new))
        level = bootstrap.estimate([reference_scores], bootstrap.iqm)
        learned = level - untrained
        if not learned > 0:
            raise ResultsError(
                f"the reference of '{reference.label}' on {reference.environment} has an IQM of {level:g} ({measure}), "
                f"untrained {untrained:g}: it has learned nothing that could be lost; give the cell more steps"
            )
        # Where no new run has a finite score, each has the reference's lowest.
        new_scores = np.where(np.isfinite(new_scores), new_scores, reference.curves.min())
        found_difference = bootstrap.difference(
            [new_scores],
            [reference_scores],
            bootstrap.iqm,
            repetitions=repetitions,
            seed=seed,
            confidence=0.95,
            withhold=False,  # no interval is shown: their spread is the standard error
        )
        difference = found_difference.estimate / learned
        error = (found_difference.high - found_difference.low) / (2 * stats.norm.ppf(0.975)) / learned
        found.append(
            Claim(
                measure,
                level,
                bootstrap.estimate([new_scores], bootstrap.iqm),
                difference,
                error,
                allowed,
                runs,
                _worse(difference, error, runs),
            )
        )
    return (*found, _diverged(reference, new, runs))


def _scores(task: TaskScores, measure: str) -> Array:
    return task.mean_of_last(LAST) if measure == "final" else task.auc


def _worse(difference: float, error: float, runs: int) -> float:
    """p-value of a difference of at least 0, from its standard error; 1 where too few runs were made for one."""
    if runs < MINIMUM_RUNS:
        return 1.0
    if error == 0:  # all runs of either side score the same
        return float(difference >= 0)
    return float(stats.t.cdf(difference / error, runs - 1))


def _diverged(reference: TaskScores, new: TaskScores, runs: int) -> Claim:
    counts = [[int(task.diverged.sum()), int((~task.diverged).sum())] for task in (new, reference)]
    new_share, reference_share = (float(task.diverged.mean()) for task in (new, reference))
    p_value = float(stats.fisher_exact(counts, alternative="greater").pvalue)
    return Claim("diverged", reference_share, new_share, new_share - reference_share, math.nan, 0.0, runs, p_value)


def decide(cells: Sequence[Sequence[Claim]], looks: int) -> list[tuple[Verdict, ...]]:
    """The verdict of each claim of each cell.

    Args:
        cells: the claims of every cell of the gate, also of those that are decided.
        looks: how often the data are looked at, at the most; this is one of them.
    """
    together = [claim for cell_claims in cells for claim in cell_claims]
    below = holm([claim.worse for claim in together], ALPHA / looks)
    verdicts = []
    for claim, is_below in zip(together, below, strict=True):
        if is_below and (claim.measure == "diverged" or claim.difference <= -claim.margin):
            verdicts.append(Verdict.FAIL)
        else:
            verdicts.append(Verdict.PASS if claim.passes(looks) else Verdict.INCONCLUSIVE)
    ends = np.cumsum([len(cell_claims) for cell_claims in cells])
    return [tuple(verdicts[end - len(cell_claims) : end]) for cell_claims, end in zip(cells, ends, strict=True)]


def holm(p_values: Sequence[float], alpha: float) -> list[bool]:
    """Which hypotheses are rejected, with a probability of at most alpha that any of them is true (Holm, 1979)."""
    rejected = [False] * len(p_values)
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[index] > alpha / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected


def check_curves(reference: TaskScores, new: TaskScores) -> None:
    """Raise ResultsError unless both were evaluated at the same steps, every run at each."""
    where = f"'{new.label}' on {new.environment}"
    for task, which in ((reference, "reference"), (new, "new")):
        if not task.evaluated.all():
            raise ResultsError(
                f"{where}: {int((~task.evaluated).any(axis=1).sum())} of {task.runs} {which} runs lack evaluations; "
                + ("refresh the reference" if which == "reference" else "run the same command again")
            )
    if not np.isfinite(reference.curves).all():
        raise ResultsError(f"{where}: the reference has runs without any finite score; refresh it")
    if list(reference.steps) != list(new.steps):
        raise ResultsError(
            f"{where}: evaluated at steps {_steps(new)}, but its reference at {_steps(reference)}; "
            "refresh the reference"
        )


def _steps(task: TaskScores) -> str:
    return f"{', '.join(map(str, task.steps[:3]))}, ... {task.steps[-1]}"


def are_identical(reference: TaskScores, new: TaskScores) -> bool:
    """Whether each new run is, to the last bit, the reference's run of its seed."""
    places = {int(seed): place for place, seed in enumerate(reference.seeds)}
    if not all(int(seed) in places for seed in new.seeds):
        return False
    same = [places[int(seed)] for seed in new.seeds]
    return np.array_equal(reference.curves[same], new.curves) and np.array_equal(reference.diverged[same], new.diverged)


def judge(
    references: Mapping[str, TaskScores],
    new: Mapping[str, TaskScores],
    margins: Mapping[str, float],
    looks: int,
    *,
    repetitions: int = REPETITIONS,
    seed: int = 0,
) -> list[Judged]:
    """Every cell of `new` against its reference.

    Args:
        references: name -> curves, of these cells at least.
        new: the cells of the gate, in the order of what is returned.
        margins: of the cells whose margin is not `MARGIN`.
        looks: as in `decide`.
        repetitions, seed: of the bootstrap.

    Raises:
        ResultsError: as `check_curves` and `claims`.
    """
    found = []
    for name, task in new.items():
        check_curves(references[name], task)
        margin = margins.get(name, MARGIN)
        found.append(claims(references[name], task, margin, repetitions=repetitions, seed=seed))
    identical = [are_identical(references[name], task) for name, task in new.items()]
    decided = [
        (Verdict.PASS,) * len(cell_claims) if same else verdicts
        for cell_claims, same, verdicts in zip(found, identical, decide(found, looks), strict=True)
    ]
    return [
        Judged(name, references[name], new[name], same, cell_claims, verdicts)
        for name, same, cell_claims, verdicts in zip(new, identical, found, decided, strict=True)
    ]


# --- From files -------------------------------------------------------------------------------------------------------


def read(folder: str | Path, shards: Mapping[str, Sequence[str]]) -> dict[str, TaskScores]:
    """The curves of cells in a folder of results or of references.

    Args:
        folder: where the shards lie.
        shards: name of a cell -> names of its shards, whose runs are taken together.

    Raises:
        ResultsError: as `analysis.load`; a shard is not there.
    """
    frame, facts = load(folder), manifests(folder)
    cells = {}
    for name, cell_shards in shards.items():
        if missing := set(cell_shards) - set(frame["shard"]):
            raise ResultsError(f"no results of {', '.join(sorted(missing))} in '{folder}'; run the same command again")
        scores = score(
            frame[frame["shard"].isin(cell_shards)],
            [manifest for manifest in facts if manifest["shard"] in cell_shards],
        )
        (cells[name],) = scores.tasks.values()
    return cells


def from_files(
    references: Path, results: Path, shards: Mapping[str, Sequence[str]], margins: Mapping[str, float], looks: int
) -> list[Judged]:
    """`judge` what lies in two folders.

    Args:
        references: the folder of the references.
        results: the folder of the new runs.
        shards: name of a reference -> names of the shards of new runs.
        margins, looks: as in `judge`.

    Raises:
        ResultsError: as `read`, `check_same` and `judge`.
    """
    reference_manifests = {manifest["shard"]: manifest for manifest in manifests(references)}
    new_manifests = {manifest["shard"]: manifest for manifest in manifests(results)}
    new, old = read(results, shards), read(references, {name: [name] for name in shards})
    for name, cell_shards in shards.items():
        for shard in cell_shards:
            check_same(reference_manifests[name], new_manifests[shard], "refresh it")
    return judge(old, new, margins, looks)


def check_same(reference: Manifest, new: Manifest, remedy: str) -> None:
    """Raise ResultsError, naming the remedy, unless the two manifests are of the same cell.

    Which seeds were run is no part of it, nor where and when.
    """
    for name in SAME:
        was, now = reference.get(name), new.get(name)
        if was != now and not (name in FOUND_OUT and None in (was, now)):
            raise ResultsError(
                f"the reference of '{new['label']}' on {new.get('dataset') or new['environment']} is of another cell: "
                f"its {name} is {was!r}, now {now!r}; {remedy}"
            )


# --- What it tells ----------------------------------------------------------------------------------------------------

COLUMNS = (
    *("name", "label", "task", "verdict", "identical", "measure", "claim", "reference", "new", "difference", "low"),
    *("margin", "p_worse", "improvement", "improvement_low", "improvement_high", "runs", "reference_runs", "diverged"),
)


def table(judged: Sequence[Judged], looks: int) -> pd.DataFrame:
    """One row a claim, with the columns `COLUMNS`.

    `verdict` is the cell's and `claim` the claim's; `difference`, its lower bound `low` and `margin` are shares of what
    the reference has learned; `improvement` is the probability that a new run scores higher than one of the reference,
    with its 95 % interval.
    """
    rows = []
    for one in judged:
        for claim, verdict in zip(one.claims, one.verdicts, strict=True):
            better = Interval(math.nan, math.nan, math.nan)
            if claim.measure != "diverged":
                scores = [_scores(task, claim.measure) for task in (one.new, one.reference)]
                scores[0] = np.where(np.isfinite(scores[0]), scores[0], one.reference.curves.min())
                better = bootstrap.improvement(scores[:1], scores[1:])
            rows.append(
                (
                    *(
                        one.name,
                        one.new.label,
                        one.new.environment,
                        one.verdict.name,
                        one.identical,
                        claim.measure,
                        verdict.name,
                    ),
                    *(claim.reference, claim.new, claim.difference, claim.low(looks), claim.margin, claim.worse),
                    *(*better, one.new.runs, one.reference.runs, int(one.new.diverged.sum())),
                )
            )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def render(rows: pd.DataFrame, console: Console) -> None:
    """Print what `table` gave; see `analysis.tables.make_console`."""
    groups = []
    for _, cell_rows in rows.groupby("name", sort=False):
        group = []
        for row in cell_rows.to_dict("records"):
            is_score, first = row["measure"] != "diverged", row["measure"] == "final"
            group.append(
                [
                    f"{row['label']}\n{row['task']}" if first else "",
                    row["measure"],
                    f"{row['runs']}/{row['reference_runs']}" if first else "",
                    f"{row['reference']:.1f}" if is_score else f"{row['reference']:.1%}",
                    f"{row['new']:.1f}" if is_score else f"{row['new']:.1%}",
                    f"{-row['difference']:.1%}" if is_score else "",
                    f"{-row['low']:.1%}" if is_score else "",
                    f"{row['improvement']:.2f}" if is_score else "",
                    "identical" if row["identical"] else row["claim"],
                ]
            )
        groups.append(group)
    numbers = ["runs", "reference", "new", "lost", "at most", "P(X > Y)", "verdict"]
    print_table(console, "New runs against the reference", ["cell", "measure"], numbers, groups)
    margins = ", ".join(
        f"{measure} {' or '.join(f'{margin:.0%}' for margin in sorted(set(measure_rows['margin'])))}"
        for measure, measure_rows in rows[rows["measure"] != "diverged"].groupby("measure", sort=False)
    )
    console.print(
        "Runs: new/reference. Lost: the reference's IQM less the new one, as a share of what the reference\n"
        "has learned, and the most that it may be in truth. A claim passes if that is below its margin\n"
        f"({margins}); it fails if as much as the margin is lost, and something\n"
        "beyond chance. P(X > Y): a new run scores higher than one of the reference."
    )


def draw(one: Judged, file: Path) -> None:
    """Write the curves of a cell, reference and new, as PNG. Raises OSError: the file cannot be written."""
    title = f"{one.new.label} on {one.new.environment}"
    sides = {"reference": one.reference, f"new: {one.verdict.name}": one.new}
    tasks = {(label, title): dataclasses.replace(task, label=label, environment=title) for label, task in sides.items()}
    sample_efficiency(Scores(tasks, {}, {title: int(one.reference.steps[-1])}, ()), file)


def report(judged: Sequence[Judged], folder: Path, looks: int, console: Console) -> Verdict:
    """Print the table and the verdict, and write `check.csv` and the figure of each cell that does not pass.

    Raises:
        OSError: `folder` cannot be written.
    """
    rows = table(judged, looks)
    rows.to_csv(folder / "check.csv", index=False)
    render(rows, console)
    console.print(f"\nTable: {folder / 'check.csv'}", soft_wrap=True)
    for one in judged:
        file = folder / f"{one.name}.png"
        file.unlink(missing_ok=True)
        if one.verdict is not Verdict.PASS:
            draw(one, file)
            console.print(f"Plot:  {file}", soft_wrap=True)
    verdict = worst([one.verdict for one in judged])
    names = {of: [one.name for one in judged if one.verdict is of] for of in Verdict}
    console.print(f"\n{verdict.name}", style="bold", end="")
    if verdict is Verdict.PASS:
        console.print(f": none of {len(judged)} cells has lost more than its margin.")
    if names[Verdict.FAIL]:
        console.print(f": {', '.join(names[Verdict.FAIL])} lost more than may be lost.", soft_wrap=True)
    if verdict is Verdict.INCONCLUSIVE:
        console.print(
            f": {', '.join(names[verdict])} may or may not be as good as before, after all seeds that were planned. "
            "This is no pass: look at the figures, and give the cell more seeds or rounds.",
            soft_wrap=True,
        )
    return verdict
