"""What a report covers and in which order: labels and tasks that are chosen, pairs on what they share, settings."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rliable import metrics
from written import REFERENCE, ramp, read, write_shard

from analysis import __main__ as command
from analysis import bootstrap, tables
from analysis.__main__ import main
from analysis.tables import summarise

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "FIGURES", ())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "quick"


def noisy(seed: int, top: float = 60.0, runs: int = 12) -> np.ndarray:
    """Runs whose scores overlap with those of other labels."""
    return ramp(runs, top, seed) + 10 * np.random.default_rng(seed).normal(size=(runs, 1))


# --- Pairs ------------------------------------------------------------------------------------------------------------


def test_each_pair_is_compared_on_the_tasks_that_it_shares(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = {"ppo": "ab", "sac": "bc", "td3": "c", "ddpg": "d"}
    for seed, (label, environments) in enumerate(ran.items()):
        for environment in environments:
            write_shard(folder, label, environment, noisy(seed), reference=None if environment == "c" else REFERENCE)
    assert main([str(folder), "--repetitions", "40"]) == 0
    printed = capsys.readouterr().out
    csv = pd.read_csv(folder / "report.csv")
    final = csv[(csv["section"] == "improvement") & (csv["score"] == "final")]
    found = {(row["label"], row["against"]): row for _, row in final.iterrows()}
    assert {pair: row["tasks"] for pair, row in found.items()} == {("ppo", "sac"): "b", ("sac", "td3"): "c"}
    scores = read(folder)
    for (x, y), row in found.items():
        runs = [scores.tasks[label, row["tasks"]].final[:, None] for label in (x, y)]
        assert row["estimate"] == pytest.approx(metrics.probability_of_improvement(*runs))
        assert row["low"] < row["estimate"] < row["high"]
    assert "P(X > Y) is over the tasks that both labels ran:\n" in printed
    assert "\nb: ppo > sac.\n" in printed and "\nc: sac > td3.\n" in printed
    assert re.search(r"^none in common: .*ddpg", printed, re.M)
    assert "No aggregate over tasks" in printed and "needs a task that every label ran; `--labels`" in printed


def test_pairs_that_survive_the_correction_for_their_number_are_marked(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`far` is above all; of the others one pair differs by itself, and no longer among six."""
    rng = np.random.default_rng(3)
    labels = {"far": 100.0, "a": 50.0, "b": 52.4, "c": 51.5}
    for label, top in labels.items():
        curves = np.tile([10.0, 20.0, top], (12, 1))
        curves[:, 2] += np.linspace(-3, 3, 12) + 0.01 * rng.normal(size=12)
        write_shard(folder, label, "t", curves)
    assert main([str(folder), "--repetitions", "40"]) == 0
    printed = capsys.readouterr().out
    csv = pd.read_csv(folder / "report.csv")
    final = csv[(csv["section"] == "improvement") & (csv["score"] == "final")]
    assert len(final) == 6 and final["p_holm"].tolist() == pytest.approx(bootstrap.holm(final["p_value"]).tolist())
    far = (final["label"] == "far") | (final["against"] == "far")
    assert (final[far]["p_holm"] < 0.05).all() and (final[~far]["p_holm"] > 0.05).all()
    assert (final[~far]["p_value"] < 0.05).sum() == 1
    assert csv.loc[csv["section"] != "improvement", ["p_value", "p_holm"]].isna().all(axis=None)
    table = printed[printed.index("Probability of improvement") :]
    marked = {line.strip().rpartition("  ")[0].strip() for line in table.splitlines() if line.rstrip().endswith("†")}
    assert marked == {f"{row['label']} > {row['against']}" for _, row in final[far].iterrows()}
    assert "† leaves out one half after Holm's correction for 6 pairs too." in printed
    document = json.loads(re.findall(r'id="data">(.*?)</script>', (folder / "report.html").read_text())[0])
    shown = [cell for row in document["improvements"]["final"] for cell in row if cell]
    assert sum(cell[4] for cell in shown) == 2 * far.sum()


def test_several_tasks_in_common_are_averaged_and_named(folder: Path) -> None:
    for label, environments in (("ppo", "abc"), ("sac", "ab"), ("td3", "abc")):
        for environment in environments:
            write_shard(folder, label, environment, noisy(len(label) + ord(environment) + ord(label[0])))
    scores = read(folder)
    assert scores.pairs() == {("ppo", "sac"): ["a", "b"], ("ppo", "td3"): ["a", "b", "c"], ("sac", "td3"): ["a", "b"]}
    summary = summarise(scores, repetitions=40)
    pair = summary[(summary["against"] == "td3") & (summary["label"] == "ppo") & (summary["score"] == "auc")].iloc[0]
    x, y = ([scores.tasks[label, each].auc for each in "abc"] for label in ("ppo", "td3"))
    assert pair["estimate"] == bootstrap.improvement(x, y, repetitions=40).estimate
    assert pair["tasks"] == "a; b; c"
    # Aggregates stay on what all have in common, and say so.
    assert set(summary.loc[summary["section"] == "aggregate", "tasks"]) == {"a; b"}


# --- What is chosen ---------------------------------------------------------------------------------------------------


@pytest.fixture
def three(folder: Path) -> Path:
    """Three labels on two tasks, offline the second one."""
    for seed, label in enumerate(("ppo", "sac", "td3")):
        write_shard(folder, label, "a", noisy(seed))
        write_shard(folder, label, "b", noisy(seed), dataset="b/medium", extra={"dataset": "b/medium"})
    return folder


@pytest.mark.parametrize(
    ("options", "labels", "tasks"),
    [
        (["--labels", "sac", "ppo"], {"ppo", "sac"}, {"a", "b/medium"}),
        (["--tasks", "b/medium"], {"ppo", "sac", "td3"}, {"b/medium"}),
        (["--labels", "td3", "--tasks", "a"], {"td3"}, {"a"}),
    ],
)
def test_labels_and_tasks_are_chosen(three: Path, options: list[str], labels: set[str], tasks: set[str]) -> None:
    assert main([str(three), "--repetitions", "40", *options]) == 0
    csv = pd.read_csv(three / "report.csv")
    assert set(csv["label"]) == labels and set(csv["environment"].dropna()) == tasks
    page = (three / "report.html").read_text()
    shards = set(re.findall(r'"shard":"(\w+-\w+)"', page))
    assert shards == {f"{label}-{task[0]}" for label in labels for task in tasks}, "the manifests too"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels", "sac", "dqn"], "no label 'dqn' in the results; there are: ppo, sac, td3"),
        (["--tasks", "b"], "no task 'b' in the results; there are: a, b/medium"),
    ],
)
def test_names_that_are_not_there_are_one_line(
    three: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main([str(three), *options]) == 2
    assert capsys.readouterr().err == f"rlsuite: {message}\n"


def test_only_the_named_shards_are_reported(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(three), "--repetitions", "40"], ["ppo-a", "sac-a", "not-yet"]) == 0
    csv = pd.read_csv(three / "report.csv")
    assert set(csv["label"]) == {"ppo", "sac"} and set(csv["environment"].dropna()) == {"a"}
    assert main([str(three)], ["not-yet"]) == 2
    assert "none of the experiment's shards has results yet" in capsys.readouterr().err


# --- Order and notes --------------------------------------------------------------------------------------------------


def test_labels_are_in_the_order_of_the_cells(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # `td3` is the first and the last cell; the manifest of `a2c` is from before there was an order.
    cells = [("td3", "a", 0), ("sac", "a", 1), ("ppo", "a", 2), ("sac", "b", 3), ("ppo", "b", 4), ("td3", "b", 5)]
    for label, environment, cell in cells:
        write_shard(folder, label, environment, noisy(cell), cell=cell)
    for environment in "ab":
        write_shard(folder, "a2c", environment, noisy(9))
    expected = ["td3", "sac", "ppo", "a2c"]
    scores = read(folder)
    assert scores.labels == expected
    assert list(scores.tasks) == [(label, environment) for label in expected for environment in "ab"]
    assert main([str(folder), "--repetitions", "40"]) == 0
    printed = capsys.readouterr().out
    rows = re.findall(r"^\w? +(td3|sac|ppo|a2c) +12 ", printed, re.M)
    assert rows == expected * 2
    assert re.findall(r"^(\w+) > (\w+) ", printed, re.M)[0] == ("td3", "sac")
    document = (folder / "report.html").read_text()
    assert re.findall(r'"name":"(\w+)","colour"', document) == expected


def test_labels_of_several_experiments_stay_together(tmp_path: Path) -> None:
    for experiment in ("one", "two"):
        for cell, label in enumerate(("sac", "ppo")):
            write_shard(tmp_path / experiment, label, "a", noisy(cell), cell=cell)
    assert read(tmp_path).labels == ["one/sac", "one/ppo", "two/sac", "two/ppo"]


def test_notes_name_the_budget_of_the_label_itself(folder: Path) -> None:
    write_shard(folder, "ppo", "a", noisy(0), budget=1000)
    write_shard(folder, "sac", "a", noisy(1), budget=2000, steps=(0, 1000, 2000))
    write_shard(folder, "td3", "a", noisy(2), budget=1500, running=[2] * 12)
    write_shard(folder, "dqn", "a", noisy(3), budget=1200)
    notes = "\n".join(read(folder).notes)
    assert "'ppo' on a: 12 of 12 runs end before" not in notes
    assert "'ppo' on a: its budget is 1,000 steps, that of another label 2,000" in notes
    assert "'dqn' on a: 12 of 12 runs end before the budget of 1,200 steps" in notes
    assert "have come to step 500 of 1,500" in notes and "'sac' on a" not in notes


# --- Settings ---------------------------------------------------------------------------------------------------------


def test_a_label_with_several_settings_has_a_table_of_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates, discounts = np.repeat([0.1, 0.2, 0.3], 8), np.full(24, 0.9)
    returns = noisy(0, runs=24)
    returns[:, 2] += np.repeat([0.0, 20.0, 10.0], 8)
    seeds = range(24)
    extra = {"hyper/lr": np.tile(rates, 3), "hyper/discount": np.tile(discounts, 3)}
    write_shard(folder, "ppo", "a", returns, seeds=seeds, extra=extra)
    write_shard(folder, "sac", "a", noisy(1), extra={"hyper/tau": 0.1})
    assert main([str(folder), "--repetitions", "40"]) == 0
    printed = capsys.readouterr().out
    csv = pd.read_csv(folder / "report.csv")
    setting_rows = csv[csv["section"] == "setting"]
    assert setting_rows["setting"].tolist() == ["lr 0.2", "lr 0.3", "lr 0.1"], "the best first; what varies alone"
    for _, row in setting_rows.iterrows():
        runs = returns[rates == float(row["setting"].split()[1]), 2]
        assert row["estimate"] == pytest.approx(metrics.aggregate_iqm(runs[:, None]))
        assert row["runs"] == 8 and row["low"] < row["estimate"] < row["high"]
        (shown,) = re.findall(rf"{row['setting']} +8 +([\d.]+) \[([\d.]+), ([\d.]+)\]", printed)
        assert [float(each) for each in shown] == pytest.approx(row[["estimate", "low", "high"]].tolist(), abs=0.51)
    assert "By setting, best first" in printed and "in part the luckiest" in printed
    assert set(csv.loc[csv["statistic"] == "final_iqm", "section"]) == {"task"}


def test_the_printed_settings_are_bounded_and_count_the_others(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = np.arange(12) / 100
    write_shard(folder, "ppo", "a", noisy(0), extra={"hyper/lr": np.tile(rates, 3)})
    monkeypatch.setattr(tables, "MOST_SETTINGS", 5)
    assert main([str(folder), "--repetitions", "40"]) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"lr 0\.?\d* +1 +[\d.]+ \*", printed)) == 5
    assert "Settings not shown, which are in report.csv: 7 of 'ppo' on a." in printed
    csv = pd.read_csv(folder / "report.csv")
    setting_rows = csv[csv["section"] == "setting"]
    assert len(setting_rows) == 12 and setting_rows["estimate"].is_monotonic_decreasing
    assert setting_rows["low"].isna().all() and set(setting_rows["no_interval"]) == {bootstrap.FEW_RUNS}
