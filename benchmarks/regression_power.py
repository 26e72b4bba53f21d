"""How often the regression gate is wrong, simulated from real curves: prints the table in docs/regression.md.

    python benchmarks/regression_power.py --replications 1000 --out results/regression_power.csv

The runs of the references stand for all runs that their cells could make. From them a new reference and new runs are
drawn, with replacement and independently, as many as `experiments/check.py` has; the whole gate judges them, rounds of
more seeds included. Then the same where one cell has lost a tenth of what its reference has learned, the others
nothing, in two ways: every run loses as much, at each evaluation; or some runs learn nothing at all, so many that the
IQM of the final scores is a tenth lower, and the others are as before.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import bootstrap, regression, tables
from analysis.regression import Claim, Verdict
from analysis.scores import TaskScores
from rlsuite.commands import check as checking

LOSS = 0.1
REPETITIONS = 500
"""Resamples for each standard error; the gate itself takes more, which makes it a little more exact."""
NEW_SEEDS = 1_000_000
"""Where the seeds of new runs begin: none of them is the reference's."""

Change = Callable[[TaskScores, np.random.Generator], TaskScores]


def draw(task: TaskScores, runs: int, rng: np.random.Generator) -> TaskScores:
    """So many runs of those that there are, with replacement."""
    drawn = task.select_runs(rng.integers(task.runs, size=runs))
    return dataclasses.replace(drawn, seeds=np.arange(NEW_SEEDS, NEW_SEEDS + runs))


def untrained(task: TaskScores) -> float:
    """IQM before the first update."""
    return bootstrap.estimate([task.untrained], bootstrap.iqm)


def all_lose(pilot: TaskScores) -> Change:
    """Every run loses as much, and keeps its distance from the others."""
    learned = [bootstrap.estimate([curve], bootstrap.iqm) - untrained(pilot) for curve in pilot.curves.T]
    lost = LOSS * np.where(pilot.steps > 0, learned, 0.0)
    return lambda task, rng: dataclasses.replace(task, curves=task.curves - lost)


def failing(pilot: TaskScores) -> float:
    """The share of runs that learn nothing where the IQM of the final scores is lower by `LOSS`."""
    final, floor = pilot.mean_of_last(tables.LAST), untrained(pilot)
    target = floor + (1 - LOSS) * (bootstrap.estimate([final], bootstrap.iqm) - floor)
    # Many times over, so that the share need not be one of so many runs; spread evenly over good and bad ones.
    many = np.repeat(np.sort(final), 40)
    for share in np.arange(0.0, 1.0, 1 / 200):
        lost = np.floor(np.arange(1, many.size + 1) * share) > np.floor(np.arange(many.size) * share)
        if bootstrap.estimate([np.where(lost, floor, many)], bootstrap.iqm) <= target:
            return float(share)
    raise ValueError("no share of failing runs lowers the IQM so far")


def some_fail(pilot: TaskScores) -> Change:
    """A share of the runs stays where it began."""
    share, floor = failing(pilot), untrained(pilot)

    def change(task: TaskScores, rng: np.random.Generator) -> TaskScores:
        lost = rng.random((task.runs, 1)) < share
        return dataclasses.replace(task, curves=np.where(lost, floor, task.curves))

    return change


def play(
    pilots: dict[str, TaskScores],
    seeds: dict[str, int],
    check: checking.Check,
    changes: dict[str, Change],
    rng: np.random.Generator,
) -> tuple[dict[str, Verdict], int]:
    """The verdict of each cell at the end, and the runs that it took."""
    references = {name: draw(pilot, check.reference_seeds, rng) for name, pilot in pilots.items()}
    # All that may be needed; a round looks at the first of them.
    new = {name: draw(pilot, seeds[name] * check.rounds, rng) for name, pilot in pilots.items()}
    new = {name: changes[name](task, rng) if name in changes else task for name, task in new.items()}
    runs: dict[str, int] = {name: 0 for name in pilots}
    claims: dict[str, tuple[Claim, ...]] = {}
    waiting, found = list(pilots), {}
    for _ in range(check.rounds):
        for name in waiting:
            runs[name] += seeds[name]
            claims[name] = regression.claims(
                references[name],
                new[name].select_runs(slice(runs[name])),
                check.margins.get(name, regression.MARGIN),
                repetitions=REPETITIONS,
                seed=int(rng.integers(1 << 31)),
            )
        decided = regression.decide([claims[name] for name in pilots], check.rounds)
        found = {name: regression.worst(verdicts) for name, verdicts in zip(pilots, decided, strict=True)}
        waiting = [name for name in pilots if found[name] is Verdict.INCONCLUSIVE]
        if not waiting:
            break
    return found, sum(runs.values())


def main() -> None:
    """Print a row for each thing that may have happened, and write them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", default=checking.FILE)
    parser.add_argument("--references", type=Path, default=Path("experiments/references/check"))
    parser.add_argument("--replications", type=int, default=1000, help="without a change; a third with each change")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the table there too, as CSV")
    options = parser.parse_args()
    check = checking.load(options.check)
    seeds = {name: shard.cell.seeds for name, shard in checking.round_jobs(check, 0).items()}
    pilots = regression.read(options.references, {name: [name] for name in seeds})
    cases: list[tuple[str, str, dict[str, Change]]] = [("nothing", "", {})]
    for name, pilot in pilots.items():
        cases.append((name, "every run", {name: all_lose(pilot)}))
        cases.append((name, f"{failing(pilot):.0%} of the runs", {name: some_fail(pilot)}))
    print(
        f"{options.replications} replications without a change, {options.replications // 3} with each, "
        f"seed {options.seed}"
    )
    print(f"reference of {check.reference_seeds} runs, new ones in up to {check.rounds} rounds of {seeds}")
    print("| lost a tenth | lost by | FAIL | INCONCLUSIVE | PASS | runs |\n|---|---|---|---|---|---|")
    rows = []
    for number, (name, by, changes) in enumerate(cases):
        rng = np.random.default_rng([options.seed, number])
        count = options.replications // (3 if changes else 1)
        played = [play(pilots, seeds, check, changes, rng) for _ in range(count)]
        whole = [regression.worst(list(found.values())) for found, _ in played]
        shares = {verdict: whole.count(verdict) / count for verdict in Verdict}
        # What counts is that the right cell is named.
        right = [found[name] is Verdict.FAIL for found, _ in played] if changes else []
        runs = float(np.mean([taken for _, taken in played]))
        rows.append(
            {
                "lost": name,
                "by": by,
                **{verdict.name: share for verdict, share in shares.items()},
                "cell_named": np.mean(right) if right else np.nan,
                "replications": count,
                "mean_runs": runs,
            }
        )
        print(
            f"| {name} | {by} | {shares[Verdict.FAIL]:.1%} | {shares[Verdict.INCONCLUSIVE]:.1%} | "
            f"{shares[Verdict.PASS]:.1%} | {runs:.0f} |",
            flush=True,
        )
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
