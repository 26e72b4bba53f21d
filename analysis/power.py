"""How many seeds a comparison needs: simulated from the runs of a pilot.

A comparison of n runs a side is drawn from the pilot's runs with replacement, one side is shifted so that the true
difference is the one that is to be seen, and the interval that the report would show is computed. The share of such
comparisons whose interval excludes no difference on the right side is the power: how often the comparison will see the
difference, if it is there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import norm

from analysis import bootstrap, win_rate
from analysis.bootstrap import Tasks
from analysis.scores import Array, ResultsError, Scores, load, manifests, score

SIMULATIONS = 500
"""Simulated comparisons for each number of runs: the power's standard error is 2.2 % or less."""
REPETITIONS = 200
"""Resamples for each interval in a simulation. Fewer than in a report: that makes the bounds noisier, not narrower."""
BLOCK_ELEMENTS = 1 << 21
"""Counts held at once, which bounds the memory."""
MOST_VALUES = 64
"""A pilot of more runs on a task is drawn from by so many of its quantiles, so that the time stays bounded."""
STEPS = (0.5, 0.7, 0.85, 1.0, 1.2, 1.4)
"""Numbers of runs that are tried, as shares of what the normal approximation asks for."""
LEAST = bootstrap.FEWEST_RUNS
"""runs a side, with fewer of which a report has no interval that could exclude anything"""
MOST = 100_000
"""runs a side, beyond which the answer is that seeds will not do"""
FEW = 10
"""Runs of a pilot below which its spread is hardly known."""


class Row(NamedTuple):
    """The power of one number of runs."""

    runs: int
    """of each label on each task"""
    iqm: float
    """share of the comparisons where the interval of the difference of IQMs excludes 0, on the right side"""
    improvement: float
    """share where the interval of the probability of improvement excludes 1/2, on the right side"""


class Pilot(NamedTuple):
    """Runs to draw from, shifted so that their true difference is the one to see."""

    x: Tasks
    y: Tasks
    difference: float
    """IQM of `x` less IQM of `y`"""
    notes: tuple[str, ...] = ()
    """what a reader must know about it"""
    copy: bool = False
    """`y` has the very runs of `x`, unshifted."""


def error(power: float) -> float:
    """The Monte Carlo standard error of a simulated power."""
    return math.sqrt(power * (1.0 - power) / SIMULATIONS)


def power(pilot: Pilot, runs: int, *, confidence: float = 0.95, seed: int = 0) -> Row:
    """Simulate `SIMULATIONS` comparisons with this number of runs of each side on each task.

    A comparison, and each resample of it, is how often it has each run of the pilot: multinomial counts. Their number
    is that of the pilot's runs, whatever that of the comparison.

    Args:
        pilot: what to draw from.
        runs: of each side on each task.
        confidence: of the intervals.
        seed: of the simulation.
    """
    sides = [[_thinned(task) for task in tasks] for tasks in (pilot.x, pilot.y)]
    x_iqm, y_iqm = (_iqm(tasks, runs) for tasks in sides)
    wins = [(x[:, None] > y) + (x[:, None] == y) / 2 for x, y in zip(*sides, strict=True)]
    if pilot.copy:
        # Shifted, every run would beat itself, however small the shift; no two real runs are one.
        for task_wins in wins:
            np.fill_diagonal(task_wins, 0.5)
    block = max(1, BLOCK_ELEMENTS // (REPETITIONS * sum(task.size for tasks in sides for task in tasks)))
    tail = (1.0 - confidence) / 2
    seen = np.zeros(2)
    for first in range(0, SIMULATIONS, block):
        rng = np.random.default_rng([seed, runs, first])
        comparisons = min(block, SIMULATIONS - first)
        drawn = [[_draws(rng, task.size, runs, comparisons) for task in tasks] for tasks in sides]
        in_x, in_y = ([_resamples(rng, counts, runs) for counts in side] for side in drawn)
        # Unlike the default method, this one cuts a share of `tail` on average, however few resamples there are.
        low, high = np.quantile(x_iqm(in_x) - y_iqm(in_y), [tail, 1.0 - tail], axis=1, method="weibull")
        seen[0] += np.sum(low > 0.0) if pilot.difference > 0 else np.sum(high < 0.0)
        rates = [win_rate.from_counts(w, x, y) for w, x, y in zip(wins, *drawn, strict=True)]
        estimates, variances = (np.stack(each, axis=-1) for each in zip(*rates, strict=True))
        sizes = np.full(len(wins), runs)
        found = win_rate.excludes(win_rate.WinRate(estimates, variances, sizes, sizes), 0.5, confidence)
        seen[1] += np.sum(found == np.sign(pilot.difference))
    return Row(runs, *(seen / SIMULATIONS).tolist())


def _thinned(task: Array) -> Array:
    if task.size <= MOST_VALUES:
        return task
    return np.quantile(task, (np.arange(MOST_VALUES) + 0.5) / MOST_VALUES)


def _draws(rng: np.random.Generator, values: int, runs: int, comparisons: int) -> Array:
    """`[comparisons, values]`: how many runs of each comparison have each value."""
    return rng.multinomial(runs, np.full(values, 1.0 / values), size=comparisons).astype(np.float64)


def _resamples(rng: np.random.Generator, drawn: Array, runs: int) -> Array:
    """`[comparisons, REPETITIONS, values]`: the same of each resample of each comparison."""
    shares = drawn[:, None, :] / runs
    return rng.multinomial(runs, shares, size=(len(drawn), REPETITIONS)).astype(np.float64)


def _iqm(tasks: Tasks, runs: int) -> Callable[[Sequence[Array]], Array]:
    """Counts `[..., values]` of each task, `runs` altogether -> `[...]`: as `bootstrap.iqm` of the runs drawn."""
    pooled = np.concatenate(tasks)
    order = np.argsort(pooled)
    total = runs * len(tasks)
    cut = total // 4

    def from_counts(counts: Sequence[Array]) -> Array:
        edges = np.clip(np.cumsum(np.concatenate(counts, axis=-1)[..., order], axis=-1), cut, total - cut)
        kept: Array = np.diff(edges, axis=-1, prepend=cut) @ pooled[order]
        return kept / (total - 2 * cut)

    return from_counts


def approximate_runs(pilot: Pilot, wanted: float, confidence: float) -> int:
    """Runs of each side that the normal approximation asks for: (z of the confidence + z of the power)^2 times the
    variance of a run's share in the difference, over the difference squared.

    Raises:
        ResultsError: more than `MOST`.
    """
    # The spread of an IQM shrinks as one over the root of the runs: the bootstrap gives it at the pilot's number.
    variance = 0.0
    for tasks in (pilot.x, pilot.y):
        found = bootstrap.interval(tasks, bootstrap.iqm, confidence=0.6827, method="percentile", withhold=False)
        variance += ((found.high - found.low) / 2) ** 2 * float(np.mean([task.size for task in tasks]))
    z = norm.ppf((1 + confidence) / 2) + norm.ppf(wanted)
    runs = z**2 * variance / pilot.difference**2
    if runs > MOST:
        raise ResultsError(
            f"a difference of {pilot.difference:g} would need about {runs:,.0f} runs of each label, and the simulation "
            f"ends at {MOST:,}; look for a larger difference, or for a measure that varies less"
        )
    return max(LEAST, math.ceil(runs))


def tasks_of(scores: Scores, environment: str | None, return_difference: float | None) -> list[str]:
    """The tasks of a pilot: the one that is named, or all that can be compared together.

    Raises:
        ResultsError: there is none, several where a difference in returns wants one, or one whose runs differ.
    """
    environments, left_out = scores.comparable()
    if environment is not None:
        environments = [environment]
    elif return_difference is not None:
        environments = scores.environments
        if len(environments) > 1:
            raise ResultsError(
                f"a difference in returns needs one task of {', '.join(environments)}; choose it with --env, "
                "or give the difference in normalised scores"
            )
    if not environments:
        reasons = "; ".join(f"{environment}: {reason}" for environment, reason in left_out.items())
        raise ResultsError(f"no task can be compared ({reasons}); choose one with --env and give --return-difference")
    if return_difference is None and any(each not in scores.references for each in environments):
        raise ResultsError(f"{environments[0]} has no reference returns; give the difference as --return-difference")

    for each in environments:
        if each in scores.unequal:
            raise ResultsError(
                f"runs on {each} differ in {scores.unequal[each]}; give a folder with runs of one kind alone"
            )
    return environments


def make_pilot(
    path: str | Path,
    label: str,
    against: str | None = None,
    *,
    difference: float | None = None,
    return_difference: float | None = None,
    environment: str | None = None,
    kind: str = "final",
) -> Pilot:
    """The runs of results to draw from.

    Args:
        path: of the results.
        label, against: what is compared. Without `against`, the label is compared with a copy of itself.
        difference: IQM of `label` less that of `against` that is to be seen, in normalised scores, which are shares of
            the range between the two reference returns. By default the one that the pilot shows.
        return_difference: instead, in episode return on a single task.
        environment: the task; by default all that can be compared together.
        kind: what a run scores, `final` or `auc`.

    Raises:
        ResultsError: the results cannot be read, have no such label or task, or too few runs; no difference is given
            and none to be seen, or it is given twice or in returns of several tasks.
    """
    frame, shard_manifests = load(path), manifests(path)
    everything = score(frame, shard_manifests)
    for name in (label, against):
        if name is not None and name not in everything.labels:
            raise ResultsError(f"no label '{name}' in '{path}'; there are: {', '.join(everything.labels)}")
    if environment is not None and environment not in everything.environments:
        raise ResultsError(f"no task '{environment}' in '{path}'; there are: {', '.join(everything.environments)}")
    if difference is not None and return_difference is not None:
        raise ResultsError("a difference in normalised scores and one in returns are given; give one of the two")
    if against is None and difference is None and return_difference is None:
        raise ResultsError(
            f"'{label}' alone shows no difference; give the one to be seen, such as --difference 0.05, or --against"
        )
    # Only what these two ran matters for which tasks can be compared.
    scores = score(frame[frame["label"].isin([label, against or label])], shard_manifests)
    environments = tasks_of(scores, environment, return_difference)

    def runs_of(name: str) -> list[Array]:
        tasks = []
        for each in environments:
            if (name, each) not in scores.tasks:
                raise ResultsError(f"no run of '{name}' on {each}; choose another task with --env")
            found = scores.tasks[name, each].scores(kind)
            if found.size < 2 or not np.isfinite(found).all():
                raise ResultsError(
                    f"'{name}' on {each} has {found.size} runs with scores, a pilot needs two or more, all finite; "
                    "train more seeds"
                )
            tasks.append(found if return_difference is not None else scores.references[each].normalise(found))
        return tasks

    x, y = runs_of(label), runs_of(against or label)
    observed = bootstrap.estimate(x, bootstrap.iqm) - bootstrap.estimate(y, bootstrap.iqm)
    wanted = difference if difference is not None else return_difference
    if wanted is not None:
        # As the IQM moves with its scores, shifting all of X by what lacks makes the difference the wanted one.
        x = [task + (wanted - observed) for task in x]
    true = observed if wanted is None else wanted
    if true == 0 or not math.isfinite(true):
        raise ResultsError(f"a difference of {true:g} cannot be seen; give one with --difference, such as 0.05")
    if max(np.ptp(task) for task in (*x, *y)) == 0:
        raise ResultsError(
            "all runs of the pilot score the same, which says nothing about their spread; use --kind auc"
        )
    fewest = min(task.size for task in (*x, *y))
    notes = [note for note in scores.notes if "pools runs" in note or note.startswith("evidence")]
    if fewest < FEW:
        notes.append(f"the pilot has {fewest} runs on a task: with so few its spread is hardly known, nor the power")
    ties = sum(task.size - np.unique(task).size for task in x)
    if wanted is not None and ties:
        notes.append(
            f"{ties} runs of '{label}' score the same as another one, perhaps the most that there is; shifted, they "
            "all win over such of the other side, so that the power by P(X > Y) is too high; --kind auc may part them"
        )
    return Pilot(x, y, true, tuple(notes), copy=against is None)


def report(
    pilot: Pilot, what: str, wanted: float, console: Console, runs: Sequence[int] = (), *, confidence: float, seed: int
) -> None:
    """Print the table of powers, and the smallest number of runs that has the wanted one.

    Args:
        pilot: from `make_pilot`.
        what: is compared, in words.
        wanted: power, a share.
        console: where to, see `analysis.tables.make_console`.
        runs: numbers of runs to try; by default those around what the normal approximation asks for.
        confidence: of the intervals.
        seed: of the simulation.
    """
    if not runs:
        about = approximate_runs(pilot, wanted, confidence)
        runs = sorted({max(LEAST, round(step * about)) for step in STEPS})
    rows = [power(pilot, each, confidence=confidence, seed=seed) for each in runs]
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for header in ("runs of each label", "IQM", "P(X > Y)"):
        shown.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        shown.add_row(str(row.runs), *(f"{each:.1%} ± {error(each):.1%}" for each in (row.iqm, row.improvement)))
    console.print(f"\nPower to see a difference of {pilot.difference:.4g} in IQM: {what}\n", style="bold")
    console.print(shown)
    console.print(
        f"\nShare of {SIMULATIONS} comparisons, simulated from the pilot's runs, whose {confidence:.0%} interval "
        "excludes no difference on the right side; ±: Monte Carlo standard error."
    )
    for name, powers in (("IQM", [row.iqm for row in rows]), ("P(X > Y)", [row.improvement for row in rows])):
        enough = [row.runs for row, each in zip(rows, powers, strict=True) if each >= wanted]
        answer = f"{min(enough)} runs of each label on each task" if enough else f"more than {max(runs)} runs"
        console.print(f"Smallest number tried with a power of {wanted:.0%}, by {name}: {answer}.")
    for note in pilot.notes:
        console.print(f"Note: {note}.")
