"""Choosing hyperparameters on other seeds than the reported ones, and what a tuning budget buys."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_analysis import REFERENCE, write_shard

from analysis import ResultsError, bootstrap, load, manifests, score, tuning
from rlsuite.commands import cli

RATES = (0.1, 0.2, 0.3)
SEEDS = 16


def write_settings(folder: Path, environment: str, means: tuple[float, ...], seed: int, **more: Any) -> np.ndarray:
    """A shard with a setting for each mean, every one at the same seeds. Gives the final scores `[settings, seeds]`."""
    rng = np.random.default_rng(seed)
    final = np.array(means)[:, None] + rng.normal(size=(len(means), SEEDS))
    returns = np.stack([np.zeros(final.size), final.ravel() / 2, final.ravel()], axis=1)
    # Evaluations outside, runs inside, as in the store; runs are ordered by setting, then by seed.
    rates = np.tile(np.repeat(RATES[: len(means)], SEEDS), 3)
    extra: Any = {"hyper/rate": rates, "hyper/discount": 0.9}
    seeds: Any = [*range(SEEDS)] * len(means)
    write_shard(folder, "ppo", environment, returns, seeds=seeds, extra=extra, **more)
    return final


def test_the_best_setting_by_some_seeds_is_reported_on_the_others(tmp_path: Path) -> None:
    final = write_settings(tmp_path / "quick", "a", (50.0, 50.2, 40.0), seed=3)
    frame, shards = load(tmp_path / "quick"), manifests(tmp_path / "quick")
    for selection in (range(8), range(8, 16), [0, 3, 5, 9, 11, 12]):
        on = np.isin(np.arange(SEEDS), list(selection))
        iqms = [bootstrap.estimate([scores[on]], bootstrap.iqm) for scores in final]
        best = int(np.argmax(iqms))
        choice = tuning.choose(frame, shards, selection_seeds=selection, repetitions=50)
        row = choice.table.iloc[0]
        assert (row["label"], row["environment"], row["settings"]) == ("ppo", "a", 3)
        assert row["hyper/rate"] == RATES[best] and "hyper/discount" not in row
        assert row["selection"] == pytest.approx(iqms[best])
        expected = bootstrap.estimate([final[best][~on]], bootstrap.iqm)
        assert row["estimate"] == pytest.approx(expected)
        assert row["optimism"] == pytest.approx(iqms[best] - expected)
        assert row["low"] < row["estimate"] < row["high"]
        # The chosen runs are scores like any others, and nothing is pooled any more.
        chosen = score(choice.frame, choice.manifests)
        task = chosen.tasks["ppo", "a"]
        assert task.final.tolist() == pytest.approx(final[best][~on].tolist())
        assert task.planned == task.runs == (~on).sum()
        assert chosen.notes == ()
    pooled = score(frame, shards).notes
    assert any("differ in 'rate'; `analysis.tuning.choose` takes" in note for note in pooled)


def test_one_setting_for_all_tasks_is_chosen_by_normalised_scores(tmp_path: Path) -> None:
    # By returns the second setting is the best; but a point on `b` is worth a hundred times as much as one on `a`.
    write_settings(tmp_path / "quick", "a", (500.0, 600.0), 0, reference={**REFERENCE, "high": 1000.0})
    write_settings(tmp_path / "quick", "b", (60.0, 50.0), 1, reference={**REFERENCE, "high": 10.0})
    frame, shards = load(tmp_path / "quick"), manifests(tmp_path / "quick")
    apart = tuning.choose(frame, shards, selection_seeds=range(8), repetitions=50).table
    assert apart.set_index("environment")["hyper/rate"].to_dict() == {"a": 0.2, "b": 0.1}
    together = tuning.choose(frame, shards, selection_seeds=range(8), over_tasks=True, repetitions=50)
    assert together.table["hyper/rate"].tolist() == [0.1]
    assert together.table["runs"].tolist() == [2 * 8]
    assert set(together.frame["environment"]) == {"a", "b"}


def test_by_area_and_by_final_score_another_setting_may_be_best(tmp_path: Path) -> None:
    early, late = np.full((8, 3), [0.0, 60.0, 60.0]), np.full((8, 3), [0.0, 10.0, 70.0])
    extra: Any = {"hyper/rate": np.tile(np.repeat([0.1, 0.2], 8), 3)}
    seeds: Any = [*range(8)] * 2
    write_shard(tmp_path / "quick", "ppo", "a", np.concatenate([early, late]), seeds=seeds, extra=extra)
    frame, shards = load(tmp_path / "quick"), manifests(tmp_path / "quick")
    for kind, best in (("final", 0.2), ("auc", 0.1)):
        choice = tuning.choose(frame, shards, selection_seeds=range(4), kind=kind, repetitions=50)
        assert choice.table["hyper/rate"].tolist() == [best]
    with pytest.raises(ValueError, match="unknown kind of score 'best'"):
        tuning.choose(frame, shards, selection_seeds=range(4), kind="best")


def test_of_settings_that_tie_the_one_with_the_higher_mean_is_taken(tmp_path: Path) -> None:
    # The IQM of eight runs cuts two from each end, where these differ.
    first, second = [0, 0, 5, 5, 5, 5, 9, 9], [4, 4, 5, 5, 5, 5, 9, 9]
    returns = np.repeat(np.array([*first * 2, *second * 2], float)[:, None], 3, axis=1)
    extra: Any = {"hyper/rate": np.tile(np.repeat([0.1, 0.2], SEEDS), 3)}
    seeds: Any = [*range(SEEDS)] * 2
    write_shard(tmp_path / "quick", "ppo", "a", returns, seeds=seeds, extra=extra)
    frame, shards = load(tmp_path / "quick"), manifests(tmp_path / "quick")
    assert tuning.choose(frame, shards, selection_seeds=range(8)).table["hyper/rate"].tolist() == [0.2]


def test_a_choice_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    write_settings(tmp_path / "quick", "a", (50.0, 60.0), 0)
    frame, shards = load(tmp_path / "quick"), manifests(tmp_path / "quick")
    for selection, message in (
        (range(3), "'ppo' on a: a setting has 3 runs at the 3 selection seeds, .* select by more seeds"),
        (range(100, 104), "a setting has 0 runs at the 4 selection seeds"),
        (
            range(13),
            "the best setting has 3 runs at other seeds than the 13 of the selection, .* select by fewer",
        ),
    ):
        with pytest.raises(ResultsError, match=message):
            tuning.choose(frame, shards, selection_seeds=selection)
    frame.loc[frame["run"] == 0, "config_hash"] = "other"
    with pytest.raises(ResultsError, match="pools runs of several configurations"):
        tuning.choose(frame, shards, selection_seeds=range(8))


def test_settings_that_differ_between_tasks_have_no_common_best(tmp_path: Path) -> None:
    write_settings(tmp_path / "quick", "a", (50.0, 60.0), 0)
    write_settings(tmp_path / "quick", "b", (50.0, 60.0, 70.0), 1)
    frame, shards = load(tmp_path / "quick"), manifests(tmp_path / "quick")
    with pytest.raises(ResultsError, match="'ppo' on a, b: the settings differ between tasks"):
        tuning.choose(frame, shards, selection_seeds=range(8), over_tasks=True)


def test_the_command_prints_what_choose_gives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "quick"
    final = write_settings(folder, "a", (50.0, 50.2, 40.0), seed=3)
    write_settings(folder, "b", (60.0, 50.0, 40.0), seed=4, reference={**REFERENCE, "high": 10.0})
    chosen, reported, out = [0, 1, 2, 3, 4, 5, 9], [6, 8, 10, 11, 12, 13, 14, 15], [7]
    assert sorted([*chosen, *reported, *out]) == list(range(SEEDS))
    assert cli.main(["tune", str(folder), "--select", "0-5,9", "--report", "6,8,10-15"]) == 0
    shown = capsys.readouterr().out
    best = int(np.argmax([bootstrap.estimate([scores[chosen]], bootstrap.iqm) for scores in final]))
    selection, estimate = (bootstrap.estimate([final[best][at]], bootstrap.iqm) for at in (chosen, reported))
    frame, shards = load(folder), manifests(folder)
    row = tuning.choose(frame, shards, selection_seeds=chosen, report_seeds=reported).table.iloc[0]
    assert row["estimate"] == pytest.approx(estimate)
    (line,) = (line.split() for line in shown.splitlines() if line.startswith("a "))
    assert line == [
        *("a", "ppo", f"rate={RATES[best]:g}", "3", "7", f"{selection:.1f}", "8", f"{estimate:.1f}"),
        *(f"[{row['low']:.1f},", f"{row['high']:.1f}]", f"{selection - estimate:.1f}"),
    ]
    # Without --report all other seeds report.
    assert cli.main(["tune", str(folder), "--select", "0-6,9", "--over-tasks", "--kind", "auc"]) == 0
    shown = capsys.readouterr().out
    (line,) = (line.split() for line in shown.splitlines() if line.startswith("ppo "))
    assert line[1:3] == ["rate=0.1", "3"] and line[5] == str(2 * 8)
    assert "area under the curve" in shown and "Scores are normalised" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --select"),
        (["--select", "7-0"], "'7-0' must be seeds, .* such as 0-7 or 0-3,8"),
        (["--select", "0,,3"], "'0,,3' must be seeds"),
        (["--select", "0-99999999999"], "'0-99999999999' must be seeds, 1000000 of them or fewer"),
        (["--select", "0-7", "--report", "x"], "'x' must be seeds"),
        (["--select", "0-7", "--report", "7-15"], "seed 7 selects and reports"),
        (["--select", "20-27", "--report", "30-37"], "no run at these seeds, expected some of 0 to 15"),
        (["--select", "0-2", "--report", "8-15"], "a setting has 3 runs at the 3 selection seeds"),
        (["--select", "0-7", "--report", "8-10"], "the best setting has 3 runs at other seeds"),
    ],
)
def test_a_command_that_cannot_be_done_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    write_settings(tmp_path / "quick", "a", (50.0, 60.0), 0)
    assert cli.main(["tune", str(tmp_path / "quick"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error), error


@pytest.mark.parametrize("selection", [[3.0, 1.0, 2.0, 5.0, 4.0], [1.0, 2.0, 2.0, 2.0, 0.0], [7.0, 7.0, 7.0]])
def test_the_expected_best_is_the_mean_over_all_sets_of_settings(selection: list[float]) -> None:
    by = np.array(selection)
    reported = np.random.default_rng(0).normal(size=by.size)
    for k in range(1, by.size + 1):
        sets = [list(each) for each in itertools.combinations(range(by.size), k)]
        assert tuning.expected_best(by)[k - 1] == pytest.approx(np.mean([by[each].max() for each in sets]))
        # Of those that tie, each is as likely to be taken.
        taken = [reported[each][by[each] == by[each].max()].mean() for each in sets]
        assert tuning.expected_best(by, reported)[k - 1] == pytest.approx(np.mean(taken))


def test_the_expected_best_of_many_settings() -> None:
    # The largest of k draws from a uniform distribution is k / (k + 1) on average.
    settings = (np.arange(1024) + 0.5) / 1024
    k = np.arange(1, 1025)
    np.testing.assert_allclose(tuning.expected_best(settings), k / (k + 1), atol=2e-3)


def test_impossible_expectations_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \[settings\] twice"):
        tuning.expected_best(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="not finite"):
        tuning.expected_best(np.array([1.0, np.nan]))
