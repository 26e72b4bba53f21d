"""What results mean: the store, the scores, bootstrap intervals against rliable and a plain loop, the report."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import scipy.stats
from rich.console import Console
from rliable import library as rly
from rliable import metrics
from written import REFERENCE, STEPS, ramp, read, write_shard

from analysis import ResultsError, Scores, bootstrap, curves, load, manifests, plots, power, score, tuning
from analysis import __main__ as command
from analysis import scores as reading
from analysis.__main__ import main
from analysis.report import document
from analysis.scores import matrix
from analysis.tables import AGGREGATES, render, summarise

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ("aggregate_intervals", "performance_profile", "sample_efficiency")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "quick"


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what the command prints: drawing takes seconds."""
    monkeypatch.setattr(command, "FIGURES", ())


@pytest.fixture
def two_labels(folder: Path) -> Path:
    """Two labels; tasks `a` and `b` of both with other numbers of runs, `c` of one only, `d` without a reference."""
    for index, (label, environment, runs) in enumerate(
        [("ppo", "a", 8), ("ppo", "b", 9), ("sac", "a", 8), ("sac", "b", 8), ("sac", "c", 8), ("ppo", "d", 8)]
    ):
        reference = None if environment == "d" else REFERENCE
        write_shard(folder, label, environment, ramp(runs, 70 + index, index), reference=reference)
    write_shard(folder, "sac", "d", ramp(8), reference=None)
    return folder


# --- Reading ----------------------------------------------------------------------------------------------------------


def test_load_joins_shards_with_different_columns(folder: Path) -> None:
    write_shard(folder, "ppo", "a", ramp(2), extra={"hyper/clip": 0.2, "metric/kl": 0.01})
    write_shard(folder, "sac", "a", ramp(3), extra={"hyper/tau": 0.005})
    frame = load(folder)
    assert len(frame) == (2 + 3) * 3
    assert frame.groupby("label")["run"].nunique().to_dict() == {"ppo": 2, "sac": 3}
    assert frame.loc[frame["label"] == "sac", "hyper/clip"].isna().all()
    assert (frame.loc[frame["label"] == "sac", "hyper/tau"] == 0.005).all()
    assert "episode_returns" not in frame
    assert list(load(folder, episodes=True)["episode_returns"].iloc[0]) == pytest.approx([ramp(2)[0, 0]] * 2)


def test_labels_come_from_the_manifest_and_tell_experiments_apart(tmp_path: Path) -> None:
    write_shard(tmp_path / "one", "ppo", "a", ramp(2))
    write_shard(tmp_path / "two", "ppo", "a", ramp(3))
    manifest = tmp_path / "one" / "ppo-a.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "label": "ppo, wide"}))
    assert sorted(load(tmp_path)["label"].unique()) == ["one/ppo, wide", "two/ppo"]
    assert list(load(tmp_path / "one")["label"].unique()) == ["ppo, wide"]


def test_a_running_shard_is_read_until_the_finished_one_is_there(folder: Path) -> None:
    shard = write_shard(folder, "ppo", "a", ramp(4), running=[3, 2, 1, 0], extra={"metric/kl": 0.01})
    parts = folder / f"{shard}.partial"
    (parts / "lock").touch()
    (parts / "snapshot").mkdir()
    for other in ("snapshot/x.parquet", ".runs000000-000001.update000000000009.parquet.77.tmp", "snapshot.parquet"):
        (parts / other).write_bytes(b"not Parquet")
    frame = load(folder, episodes=True)
    assert frame["partial"].all()
    assert len(manifests(folder)) == 1
    order = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)]
    assert list(zip(frame["update"], frame["run"], strict=True)) == order
    assert frame["return_mean"].tolist() == [ramp(4)[run, update] for update, run in order]
    assert frame["metric/kl"].isna().tolist() == [True] * 3 + [False] * 3
    write_shard(folder, "ppo", "a", ramp(4))
    frame = load(folder)
    assert len(frame) == 4 * 3 and not frame["partial"].any()
    assert len(manifests(folder)) == 1
    assert read(folder).notes == ()


def test_a_shard_without_an_evaluation_is_not_there_yet(folder: Path) -> None:
    shard = write_shard(folder, "ppo", "a", ramp(4), running=[0] * 4)
    (folder / f"{shard}.json").unlink()  # it may be written last
    with pytest.raises(ResultsError, match=r"no evaluation in the results of .* yet"):
        load(folder)
    assert manifests(folder) == []
    write_shard(folder, "sac", "a", ramp(2))
    write_shard(folder, "sac", "b", ramp(2), running=[1, 0])
    assert list(read(folder).tasks) == [("sac", "a"), ("sac", "b")]
    # The same from the folder above.
    assert list(read(folder.parent).tasks) == [("sac", "a"), ("sac", "b")]


def finish(folder: Path) -> None:
    write_shard(folder, "ppo", "a", ramp(4))
    shutil.rmtree(folder / "ppo-a.partial")


def add_parts(folder: Path) -> None:
    write_shard(folder, "ppo", "a", ramp(4), running=[2] * 4)


@pytest.mark.parametrize(("change", "rows"), [(finish, 4 * 3), (add_parts, 4)])
@pytest.mark.parametrize("part", range(2))
@pytest.mark.parametrize("before", [True, False])
def test_a_shard_that_goes_on_while_it_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], rows: int, part: int, before: bool
) -> None:
    write_shard(folder, "ppo", "a", ramp(4), running=[1] * 4)
    real, reads = reading._read_table, []

    def meanwhile(*arguments: Any) -> pa.Table:
        reads.append(arguments)
        if before and len(reads) == part + 1:
            change(folder)
        table = real(*arguments)
        if not before and len(reads) == part + 1:
            change(folder)
        return table

    monkeypatch.setattr(reading, "_read_table", meanwhile)
    frame = load(folder)
    assert len(frame) == rows
    assert frame["partial"].all() == (change is add_parts)


def test_a_shard_that_never_rests_is_an_error_and_no_endless_loop(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(folder, "ppo", "a", ramp(4), running=[1] * 4)

    def gone(*arguments: Any) -> pa.Table:
        raise FileNotFoundError

    monkeypatch.setattr(reading, "_read_table", gone)
    with pytest.raises(ResultsError, match=r"ppo-a.parquet' changed \d+ times while they were read; try again"):
        load(folder)


def break_parquet(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def foreign_parquet(file: Path) -> None:
    pq.write_table(pa.table({"x": [1.0]}), file)


def other_environment(file: Path) -> None:
    table = pq.read_table(file)
    column = table.column_names.index("environment")
    pq.write_table(table.set_column(column, "environment", pa.array(["other"] * len(table))), file)


def doubled_rows(file: Path) -> None:
    table = pq.read_table(file)
    pq.write_table(pa.concat_tables([table, table]), file)


@pytest.mark.parametrize(
    ("damage", "ending", "message"),
    [
        (break_parquet, "parquet", "cannot read results"),
        (foreign_parquet, "parquet", "not a result shard of rlsuite, it has no column 'experiment'"),
        (other_environment, "parquet", "environment 'other', but its manifest says 'a'"),
        (doubled_rows, "parquet", "two evaluations at one step"),
        (lambda file: file.unlink(), "json", "is missing"),
        (lambda file: file.write_text('{"format": 1, "sha'), "json", "cannot read manifest"),
        (lambda file: file.write_text("[1, 2]"), "json", "not a manifest of rlsuite"),
        (lambda file: file.write_bytes(b"\xff\xfe\x00"), "json", "cannot read manifest"),
        (lambda file: file.write_text(file.read_text().replace('"format": 1', '"format": 9')), "json", "format 9"),
        (lambda file: file.write_text(file.read_text().replace("100.0", '"x"')), "json", "expected numbers"),
    ],
)
def test_damaged_files_are_named_with_a_remedy(
    folder: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], ending: str, message: str
) -> None:
    file = folder / f"{write_shard(folder, 'ppo', 'a', ramp(2))}.{ending}"
    damage(file)
    with pytest.raises(ResultsError) as caught:
        load(folder)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)
    assert "again" in str(caught.value)
    assert main([str(folder)]) == 2
    assert capsys.readouterr().err == f"rlsuite: {caught.value}\n"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_parquet, "cannot read results"),
        (foreign_parquet, "not a result shard of rlsuite, it has no column 'experiment'"),
        (doubled_rows, "two evaluations at one step"),
    ],
)
def test_a_damaged_part_is_named_with_a_remedy(
    folder: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], message: str
) -> None:
    shard = write_shard(folder, "ppo", "a", ramp(4), running=[2] * 4)
    file = folder / f"{shard}.partial" / "runs000002-000003.update000000000001.parquet"
    damage(file)
    assert main([str(folder)]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1
    assert (str(file.parent) if damage is doubled_rows else str(file)) in printed
    assert printed.endswith("; run the same command again, which trains its runs anew\n")


@pytest.mark.parametrize("running", [None, [2, 2]])
def test_a_copy_of_results_beside_them_is_an_error(
    folder: Path, capsys: pytest.CaptureFixture[str], running: list[int] | None
) -> None:
    write_shard(folder, "sac", "a", ramp(2))
    write_shard(folder, "ppo", "a", ramp(2), running=running)
    copy = folder.parent / "quick_old"
    shutil.copytree(folder, copy)
    (copy / "sac-a.parquet").unlink()
    # The original may have gone on meanwhile.
    write_shard(folder, "ppo", "a", ramp(2))
    with pytest.raises(ResultsError) as caught:
        load(folder.parent)
    message = str(caught.value)
    for named in ("shard 'ppo-a' of experiment 'quick'", str(folder / "ppo-a.json"), str(copy / "ppo-a.json")):
        assert named in message
    assert f"give the folder of one of them, or move one out of '{folder.parent}'" in message
    assert main([str(folder.parent)]) == 2
    assert message in capsys.readouterr().err
    assert list(load(folder)["shard"].unique()) == ["ppo-a", "sac-a"]
    # Within one folder too.
    for ending in ("json", "parquet"):
        shutil.copy(folder / f"ppo-a.{ending}", folder / f"b.{ending}")
    with pytest.raises(ResultsError, match=r"is there twice: '.*quick/b\.json' and '.*quick/ppo-a\.json'"):
        load(folder)


def test_folders_without_results(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="no such results folder"):
        load(tmp_path / "none")
    with pytest.raises(ResultsError, match="no results in"):
        load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="is a file"):
        load(tmp_path / "file")
    write_shard(tmp_path, "ppo", "a", np.zeros((0, 3)))
    with pytest.raises(ResultsError, match="no evaluation"):
        load(tmp_path)


# --- Scores -----------------------------------------------------------------------------------------------------------


def test_final_auc_and_untrained(folder: Path) -> None:
    write_shard(folder, "ppo", "a", [[1.0, 20.0, 40.0], [3.0, 10.0, 50.0]])
    task = read(folder).tasks["ppo", "a"]
    assert task.final.tolist() == [40.0, 50.0]
    assert task.auc.tolist() == [30.0, 30.0]
    assert task.untrained.tolist() == [1.0, 3.0]
    assert task.steps.tolist() == [0, 500, 1000]
    assert task.steps_per_second == 2 * 1000 / 4.0
    assert read(folder).normalised(["a"])["ppo"][0].tolist() == [0.4, 0.5]
    assert read(folder).normalised(["a"], "auc")["ppo"][0].tolist() == [0.3, 0.3]
    with pytest.raises(ValueError, match="unknown kind of score 'best'"):
        read(folder).normalised(["a"], "best")


def test_shards_of_one_label_are_pooled_although_they_stop_at_different_steps(folder: Path) -> None:
    write_shard(folder, "ppo", "a", [[1.0, 20.0, 40.0]], shard="first", seeds=range(0, 1))
    write_shard(folder, "ppo", "a", [[3.0, 10.0]], shard="second", seeds=range(1, 2))
    scores = read(folder)
    task = scores.tasks["ppo", "a"]
    assert task.final.tolist() == [40.0, 10.0]
    assert task.last_steps.tolist() == [1000, 500]
    assert task.evaluated.tolist() == [[True, True, True], [True, True, False]]
    assert task.steps_per_second == (1000 + 500) / (4.0 + 2.0)
    assert scores.notes == (
        "'ppo' on a: 1 of 2 runs end before the budget of 1,000 steps; "
        "their final score is that of their last evaluation",
    )
    assert task.counted.all() and task.planned == 2


def test_runs_of_a_running_shard_count_once_they_have_come_farthest(
    folder: Path, capsys: pytest.CaptureFixture[str], no_figures: None
) -> None:
    returns = [[1.0, 20.0, 40.0], [3.0, 10.0, np.nan], [5.0, 90.0, 90.0], [7.0, 95.0, 95.0], [9.0] * 3, [9.0] * 3]
    write_shard(folder, "ppo", "a", returns, running=[3, 3, 2, 1, 0, 0], diverged=np.isnan(returns))
    write_shard(folder, "sac", "a", ramp(3))
    scores = read(folder)
    task = scores.tasks["ppo", "a"]
    assert (task.runs, task.planned) == (4, 6)
    assert task.last_steps.tolist() == [1000, 1000, 500, 0]
    # A run that diverged has come as far as the others, and keeps its last finite score.
    assert task.counted.tolist() == [True, True, False, False]
    assert task.final.tolist() == [40.0, 10.0]
    assert task.auc.tolist() == [30.0, 10.0]
    assert task.untrained.tolist() == [1.0, 3.0]
    assert scores.normalised(["a"])["ppo"][0].tolist() == [0.4, 0.1]
    assert task.steps_per_second == (1000 + 1000 + 500) / (4.0 + 2.0)  # the second chunk trained for two seconds so far
    assert scores.notes == (
        "'ppo' on a: still running, or interrupted; 2 of 6 runs have come to step 1,000 of 1,000; "
        "final scores and aggregates are theirs alone",
    )
    assert main([str(folder), "--repetitions", "40"]) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["a", "ppo", "2/6", "1", "2.00", "25.00", "*"] in [line[:7] for line in printed]
    assert ["sac", "3", "0"] in [line[:3] for line in printed]
    csv = pd.read_csv(folder / "report.csv")
    final = csv[csv["statistic"] == "final_iqm"].set_index("label")
    assert final.loc["ppo", ["runs", "planned_runs", "diverged", "estimate"]].tolist() == [2, 6, 1, 25.0]
    assert final.loc["ppo", ["first_final_step", "last_final_step"]].tolist() == [1000, 1000]
    assert final.loc["sac", ["runs", "planned_runs"]].tolist() == [3, 3]


def test_before_any_run_is_finished_those_that_came_farthest_count(folder: Path) -> None:
    write_shard(folder, "ppo", "a", ramp(6), running=[2, 2, 1, 1, 1, 1])
    task = read(folder).tasks["ppo", "a"]
    assert task.counted.tolist() == [True] * 2 + [False] * 4
    assert task.final.tolist() == ramp(6)[:2, 1].tolist()
    assert "2 of 6 runs have come to step 500 of 1,000" in read(folder).notes[0]
    # Runs of a finished shard of the same label came farther, so that none of the running one counts.
    write_shard(folder, "ppo", "a", ramp(2), shard="finished", seeds=range(6, 8))
    task = read(folder).tasks["ppo", "a"]
    assert (task.runs, task.planned) == (8, 8)
    assert task.final.tolist() == ramp(2)[:, 2].tolist()


@pytest.mark.parametrize("missing", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("flagged", [True, False])
def test_what_is_not_finite_keeps_its_last_finite_score_or_gets_the_floor(
    folder: Path, missing: float, flagged: bool
) -> None:
    """Whether or not the trainer says that the run has diverged, which nobody else does."""
    returns = [[10.0, 50.0, 90.0], [12.0, 60.0, missing], [14.0, missing, missing], [missing] * 3]
    diverged = ~np.isfinite(returns) & flagged
    write_shard(folder, "ppo", "a", returns, diverged=diverged, reference={**REFERENCE, "low": -5.0})
    write_shard(folder, "ppo", "b", returns, diverged=diverged, reference=None)
    write_shard(folder, "sac", "b", [[-3.0, 0.0, 1.0]], reference=None)
    scores = read(folder)
    assert scores.tasks["ppo", "a"].final.tolist() == [90.0, 60.0, 14.0, -5.0]
    assert scores.tasks["ppo", "a"].diverged.tolist() == [False, flagged, flagged, flagged]
    # Without a reference the floor is the lowest score that any label has on the task.
    assert scores.tasks["ppo", "b"].final.tolist() == [90.0, 60.0, 14.0, -3.0]
    assert scores.tasks["ppo", "b"].auc.tolist() == [70.0, 60.0, 14.0, -3.0]
    summary = summarise(scores, repetitions=40, tasks_alone=True).set_index(["environment", "label", "statistic"])
    assert summary.loc[("a", "ppo", "final_iqm"), "diverged"] == 3 * flagged
    assert summary.loc[("a", "ppo", "final_iqm"), "runs"] == 4


def test_a_run_that_diverged_with_finite_returns_is_counted(folder: Path) -> None:
    write_shard(folder, "ppo", "a", [[1.0, 2.0, 2.0]] * 3, diverged=[[False, True, True], [False] * 3, [False] * 3])
    task = read(folder).tasks["ppo", "a"]
    assert task.diverged.tolist() == [True, False, False]
    assert task.final.tolist() == [2.0, 2.0, 2.0]


def test_a_task_without_any_finite_score_is_shown_and_left_out(
    folder: Path, capsys: pytest.CaptureFixture[str], no_figures: None
) -> None:
    write_shard(folder, "ppo", "a", np.full((3, 3), np.nan), reference=None, diverged=np.ones((3, 3), bool))
    write_shard(folder, "ppo", "b", ramp(3))
    scores = read(folder)
    assert scores.comparable()[0] == ["b"]
    assert np.isnan(scores.tasks["ppo", "a"].final).all() and scores.tasks["ppo", "a"].diverged.all()
    assert main([str(folder), "--repetitions", "40"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["a", "ppo", "3", "3", "-", "-", "1k", "750"] in rows


def test_comparable_tasks_are_those_of_every_label_with_a_reference(two_labels: Path) -> None:
    scores = read(two_labels)
    environments, left_out = scores.comparable()
    assert environments == ["a", "b"]
    assert left_out == {"c": "no run of 'ppo'", "d": "no reference returns in its manifests"}
    normalised = scores.normalised(environments)
    assert [task.size for task in normalised["ppo"]] == [8, 9]
    assert matrix(normalised["sac"]).shape == (8, 2)
    with pytest.raises(ValueError, match=r"\[8, 9\] runs"):
        matrix(normalised["ppo"])


def test_what_a_reader_must_know_is_noted(folder: Path) -> None:
    write_shard(folder, "ppo", "a", ramp(2), shard="first", extra={"hyper/lr": 0.1}, created="2025-01-01")
    write_shard(folder, "ppo", "a", ramp(2), shard="second", extra={"hyper/lr": 0.2}, created="2025-01-02",
                config_hash="other", reference={**REFERENCE, "high": 200.0})  # fmt: skip
    write_shard(folder, "ppo", "b", ramp(2), shard="third")
    write_shard(folder, "ppo", "b", ramp(2), shard="fourth", reference={**REFERENCE, "high": 0.0})
    scores = read(folder)
    notes = "\n".join(scores.notes)
    assert "'ppo' on a: pools runs of 2 configurations" in notes
    assert "'ppo' on a: pools runs that differ in 'lr'" in notes
    assert "a: shards disagree on the reference returns" in notes
    assert scores.references["a"].high == 200.0
    assert "'ppo' on b: 2 runs repeat the seed and settings of another one" in notes
    assert "b: reference low 0, high 0 is unusable" in notes
    assert "'ppo' on a: 2 runs repeat" not in notes


@pytest.mark.parametrize(
    ("key", "values", "words"),
    [
        ("max_episode_steps", (None, 50), "time limit (the task's own and 50)"),
        ("evaluation_physics", ("MJX", "MuJoCo 3.3"), "evaluation physics (MJX and MuJoCo 3.3)"),
        ("dataset_checksum", ("0abc", "1def"), "checksum of the dataset (0abc and 1def)"),
    ],
)
def test_runs_under_other_conditions_are_not_compared(
    folder: Path, key: str, values: tuple[Any, Any], words: str
) -> None:
    dataset: dict[str, Any] = {"extra": {"dataset": "a"}, "dataset": "a"} if key == "dataset_checksum" else {}
    for label, value in zip(("ppo", "sac"), values, strict=True):
        write_shard(folder, label, "a", ramp(2), **dataset, **{key: value})
        write_shard(folder, label, "b", ramp(2), **{key: values[0]})
    write_shard(folder, "sac", "b", ramp(2), shard="of-a-version-that-did-not-say", seeds=range(2, 4))
    scores = read(folder)
    assert scores.comparable() == (["b"], {"a": f"its runs differ in {words}"})
    notes = "\n".join(scores.notes)
    assert f"a: runs differ in {words}; their scores are not of one task" in notes
    assert "b: runs differ" not in notes and "pools" not in notes
    # Nor are they seeds of one label.
    write_shard(folder, "ppo", "a", ramp(2), shard="again", **dataset, **{key: values[1]})
    notes = "\n".join(read(folder).notes)
    assert f"'ppo' on a: pools runs that differ in {words.split(' (')[0]} (" in notes
    assert "repeat" not in notes
    write_shard(folder, "ppo", "a", ramp(2), shard="once more", **dataset, **{key: values[1]})
    assert any("'ppo' on a: 2 runs repeat the seed and settings" in note for note in read(folder).notes)
    with pytest.raises(ResultsError, match=r"runs on a differ in .* give a folder with runs of one kind alone"):
        power.make_pilot(folder, "ppo", difference=0.1, environment="a")


# --- What identifies a task -------------------------------------------------------------------------------------------


def write_offline(folder: Path, label: str, dataset: str, checksum: str | None, environment: str, **more: Any) -> None:
    """Two runs of an offline learner."""
    recorded = {} if checksum is None else {"dataset_checksum": checksum}
    shard = f"{label}-{dataset}-{environment}-{checksum}".replace("/", "-")
    given = {"shard": shard, "extra": {"dataset": dataset}, "dataset": dataset, "returns": ramp(2), **recorded, **more}
    write_shard(folder, label, environment, **given)


def test_one_dataset_on_two_environments_is_two_tasks(folder: Path) -> None:
    for environment, level in (("cheetah", -1400.0), ("walker", -130.0)):
        write_offline(folder, "bc", "walker/medium", "0abc", environment)
        write_shard(folder, "bc", environment, np.full((2, 3), level), shard=f"bc-{environment}",
                    extra={"dataset": "walker/medium"}, dataset="walker/medium", dataset_checksum="0abc",
                    seeds=range(2, 4))  # fmt: skip
    write_offline(folder, "iql", "walker/expert", "1def", "walker")
    scores = read(folder)
    tasks = ["walker/medium (cheetah)", "walker/medium (walker)"]
    assert list(scores.tasks) == [("bc", task) for task in tasks] + [("iql", "walker/expert")]
    for task, level in zip(tasks, (-1400.0, -130.0), strict=True):
        assert level in scores.tasks["bc", task].final and scores.tasks["bc", task].runs == 4
    assert scores.budgets.keys() == scores.references.keys() == {*tasks, "walker/expert"}


def test_one_dataset_under_several_ids_is_one_task(folder: Path) -> None:
    write_offline(folder, "bc", "/data/walker-medium.hdf5", "0abc", "walker")
    write_offline(folder, "iql", "walker/medium", "0abc", "walker")
    write_offline(folder, "cql", "walker/medium", None, "walker")  # of a version that did not say
    scores = read(folder)
    assert list(scores.tasks) == [(label, "walker/medium") for label in ("bc", "cql", "iql")]
    assert scores.comparable() == (["walker/medium"], {})


def test_datasets_of_one_name_are_told_apart(folder: Path) -> None:
    """And stay one name, which is not compared."""
    write_offline(folder, "bc", "medium", "0abc", "walker")
    write_offline(folder, "bc", "medium", "1def", "walker")
    write_offline(folder, "bc", "medium", "0abc", "hopper")
    scores = read(folder)
    assert list(scores.tasks) == [("bc", "medium (hopper)"), ("bc", "medium (walker)")]
    assert scores.comparable()[0] == ["medium (hopper)"]
    assert "checksum of the dataset (0abc and 1def)" in scores.unequal["medium (walker)"]
    assert any("'bc' on medium (walker): pools runs that differ in checksum" in note for note in scores.notes)
    # Runs of one seed on other data do not repeat each other.
    assert scores.tasks["bc", "medium (walker)"].runs == 4


def test_a_dataset_and_an_environment_of_one_name_are_two_tasks(folder: Path) -> None:
    write_offline(folder, "bc", "walker", "0abc", "hopper")
    write_shard(folder, "ppo", "walker", ramp(2))
    assert list(read(folder).tasks) == [("bc", "walker (hopper)"), ("ppo", "walker")]


def test_a_choice_is_made_on_each_environment_of_a_dataset(folder: Path) -> None:
    for environment, good in (("cheetah", 0.1), ("walker", 0.2)):
        for rate in (0.1, 0.2):
            more = {"extra": {"dataset": "d", "hyper/rate": rate}, "shard": f"{environment}-{rate}"}
            write_offline(folder, "bc", "d", "0abc", environment, returns=ramp(8, 90 if rate == good else 20), **more)
    choice = tuning.choose(load(folder), manifests(folder), selection_seeds=range(4), repetitions=50)
    chosen = choice.table.set_index("environment")["hyper/rate"].to_dict()
    assert chosen == {"d (cheetah)": 0.1, "d (walker)": 0.2}
    assert sorted(score(choice.frame, choice.manifests).tasks) == [("bc", "d (cheetah)"), ("bc", "d (walker)")]


# --- Each run once ----------------------------------------------------------------------------------------------------


def flat(*values: float) -> np.ndarray:
    """`[runs, 3]` runs that score the same all along."""
    return np.repeat(np.array(values)[:, None], 3, axis=1)


def test_a_seed_that_is_there_twice_counts_once(folder: Path) -> None:
    write_shard(folder, "ppo", "a", flat(*range(8)), created="2025-01-01", shard="eight")
    write_shard(folder, "ppo", "a", flat(*range(4)), created="2025-01-02", shard="four")
    scores = read(folder)
    task = scores.tasks["ppo", "a"]
    assert (task.runs, task.planned, sorted(task.final)) == (8, 8, list(range(8)))
    [note] = [note for note in scores.notes if "repeat" in note]
    assert note.startswith("'ppo' on a: 4 runs repeat the seed and settings of another one and are left out")
    summary = summarise(scores, repetitions=50)
    assert summary["runs"].dropna().tolist() == [8] * 4
    page = document(scores, load(folder), manifests(folder), summary, *curves_of(scores), repetitions=50, seed=0)
    assert [cell["run_count"] for cell in page["cells"]] == [8]
    assert note in page["notes"]


def curves_of(scores: Scores) -> tuple[Any, Any]:
    settings = {"repetitions": 50, "seed": 0}
    return curves.sample_efficiency_curves(scores, **settings), curves.performance_profiles(scores, **settings)


def test_of_repeated_runs_the_farthest_and_then_the_newest_counts(folder: Path) -> None:
    write_shard(folder, "ppo", "a", flat(1, 1), created="2025-01-02", shard="newest", seeds=range(2))
    write_shard(folder, "ppo", "a", flat(2, 2), created="2025-01-01", shard="older", seeds=range(2))
    write_shard(folder, "ppo", "a", flat(3, 3, 3, 3), running=[2, 2, 2, 2], created="2025-01-03", shard="running")
    task = read(folder).tasks["ppo", "a"]
    assert sorted(zip(task.seeds, task.curves[:, 0], strict=True)) == [(0, 1), (1, 1), (2, 3), (3, 3)]
    assert (task.runs, task.planned) == (4, 4)


@pytest.mark.parametrize(
    "other",
    [
        {"config_hash": "other"},
        {"extra": {"hyper/lr": 0.2}},
        {"budget": 2000},
        {"max_episode_steps": 50},
        {"evaluation_physics": "MuJoCo"},
        {"seeds": range(2, 4)},
    ],
    ids=str,
)
def test_what_is_no_repetition_counts(folder: Path, other: dict[str, Any]) -> None:
    given = {"extra": {"hyper/lr": 0.1}, "max_episode_steps": None, "evaluation_physics": "MJX", **other}
    write_shard(folder, "ppo", "a", ramp(2), shard="one", extra={"hyper/lr": 0.1}, max_episode_steps=None,
                evaluation_physics="MJX")  # fmt: skip
    write_shard(folder, "ppo", "a", ramp(2), shard="two", **given)
    scores = read(folder)
    assert scores.tasks["ppo", "a"].runs == 4
    assert not any("left out" in note for note in scores.notes)


def test_a_run_by_path_and_by_id_counts_once(folder: Path) -> None:
    write_offline(folder, "bc", "/data/medium.hdf5", "0abc", "walker")
    write_offline(folder, "bc", "medium", "0abc", "walker")
    assert read(folder).tasks["bc", "medium"].runs == 2


def test_a_choice_counts_each_run_once(folder: Path) -> None:
    for rate in (0.1, 0.2):
        for name in ("one", "again"):
            write_shard(folder, "ppo", "a", ramp(8, 100 * rate), extra={"hyper/rate": rate}, shard=f"{rate} {name}")
    choice = tuning.choose(load(folder), manifests(folder), selection_seeds=range(4), repetitions=50)
    assert choice.table[["selection_runs", "runs"]].to_numpy().tolist() == [[4, 4]]


# --- Which code computed ----------------------------------------------------------------------------------------------


def code(rlsuite: str = "1.0", sources: str = "5eed", jax: str = "2.0") -> dict[str, str]:
    return {"rlsuite": rlsuite, "rlsuite_sources": sources, "jax": jax}


def package(version: str = "0.1", sources: str = "1abc") -> dict[str, dict[str, str]]:
    return {"algorithm": {"name": "mine", "version": version, "sources": sources}}


DIFFERENT: dict[str, tuple[dict[str, Any], str, tuple[str, str]]] = {
    "version": ({"sessions": [code("1.1")]}, "rlsuite", ("1.0 of sources 5eed", "1.1 of sources 5eed")),
    "sources": ({"sessions": [code(sources="0ld")]}, "rlsuite", ("1.0 of sources 5eed", "1.0 of sources 0ld")),
    "JAX": ({"sessions": [code(jax="2.1")]}, "JAX", ("2.0", "2.1")),
    "package": ({"packages": package("0.2")}, "the package 'mine'", ("0.1 of sources 1abc", "0.2 of sources 1abc")),
    "its sources": (
        {"packages": package(sources="2d")},
        "the package 'mine'",
        ("0.1 of sources 1abc", "0.1 of sources 2d"),
    ),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_results_of_other_code_are_named(
    what: str, folder: Path, no_figures: None, capsys: pytest.CaptureFixture[str]
) -> None:
    other, name, (usual, unusual) = DIFFERENT[what]
    same = {"packages": package()}
    write_shard(folder, "ppo", "a", ramp(4), **same)
    write_shard(folder, "ppo", "b", ramp(4), **same)
    assert read(folder).notes == ()
    write_shard(folder, "sac", "b", ramp(4), **{**same, **other})
    both = sorted([(usual, "'ppo'"), (unusual, "'sac'")])
    compared = " and ".join(f"{version} for {label}" for version, label in both)
    assert read(folder).notes == (f"results of several versions of {name} are compared: {compared}",)
    # Pooled into one label.
    write_shard(folder, "ppo", "a", ramp(4), shard="more", seeds=range(4, 8), **{**same, **other})
    pooled = f"'ppo' on a: pools runs of several versions of {name} ({' and '.join(sorted((usual, unusual)))})"
    assert read(folder).notes[0] == pooled
    assert main([str(folder), "--repetitions", "40"]) == 0
    assert f"Note: {pooled}."[:60] in " ".join(capsys.readouterr().out.split())
    assert json.dumps(pooled) in (folder / "report.html").read_text()


def test_a_curve_of_two_versions_is_named(folder: Path) -> None:
    write_shard(folder, "ppo", "a", ramp(4), sessions=[code(), code(sources="0ld"), code()])
    [pooled, compared] = read(folder).notes
    assert pooled == (
        "'ppo' on a: pools runs of several versions of rlsuite (1.0 of sources 0ld and 1.0 of sources 5eed); a shard "
        "was interrupted between them, so that one curve may be of both"
    )
    assert compared.startswith("results of several versions of rlsuite are compared")


@pytest.mark.parametrize("lacking", [{"sessions": []}, {"sessions": [{"created": "2025"}, code()]}, {"packages": None}])
def test_what_was_not_recorded_is_said(folder: Path, lacking: dict[str, Any]) -> None:
    write_shard(folder, "ppo", "a", ramp(4), versions={"jax": "2.0"})
    shard = write_shard(folder, "sac", "a", ramp(4), versions={"jax": "2.0"}, **lacking)
    if "packages" in lacking:
        file = folder / f"{shard}.json"
        manifest = json.loads(file.read_text())
        del manifest["packages"]
        file.write_text(json.dumps(manifest))
    assert read(folder).notes == (
        "which sources of rlsuite, and of other packages, computed 1 of 2 shards is not recorded; whether they are all "
        "of one version cannot be told",
    )


def test_a_finished_shard_with_a_hole_is_an_error(folder: Path) -> None:
    shard = write_shard(folder, "ppo", "a", ramp(4), evaluations=2, total_updates=9)
    file = folder / f"{shard}.parquet"
    whole = pq.read_table(file)
    for rows, there in ((whole.slice(1), 11), (whole.filter(pc.field("step") != 500), 8)):
        pq.write_table(rows, file)
        with pytest.raises(ResultsError, match=rf"lacks evaluations \(it has {there} rows, expected 12\); delete it"):
            load(folder)


def test_what_was_set_aside_is_not_reported(folder: Path) -> None:
    write_shard(folder / ".before", "ppo", "a", ramp(2))
    with pytest.raises(ResultsError, match="no results in"):
        load(folder)
    write_shard(folder, "ppo", "a", ramp(4))
    assert len(load(folder)) == len(load(folder.parent)) == 4 * 3


# --- Bootstrap --------------------------------------------------------------------------------------------------------

RLIABLE = {
    "iqm": metrics.aggregate_iqm,
    "mean": metrics.aggregate_mean,
    "median": metrics.aggregate_median,
    "optimality_gap": metrics.aggregate_optimality_gap,
}


@pytest.mark.parametrize("name", AGGREGATES)
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (3, 1), (3, 2), (5, 3), (32, 1), (10, 7)])
def test_point_estimates_equal_rliable(name: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(shape))
    for scores in (rng.normal(0.8, 0.5, shape), rng.integers(0, 3, shape) / 2.0):
        assert bootstrap.estimate(scores, AGGREGATES[name]) == pytest.approx(RLIABLE[name](scores), rel=1e-12)


@pytest.mark.parametrize("runs", [(1, 1), (5, 5), (4, 9), (32, 20)])
def test_probability_of_improvement_equals_rliable(runs: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(runs))
    for draw in (rng.normal, lambda size: rng.integers(0, 4, size).astype(float)):
        x, y = draw(size=(runs[0], 3)), draw(size=(runs[1], 3))
        found = bootstrap.improvement(x, y, repetitions=50)
        assert found.estimate == pytest.approx(metrics.probability_of_improvement(x, y), rel=1e-12)
        assert bootstrap.improvement(x, x, repetitions=50).estimate == 0.5


@pytest.mark.parametrize("name", AGGREGATES)
def test_tasks_weigh_the_same_whatever_their_number_of_runs(name: str) -> None:
    rng = np.random.default_rng(0)
    # Repeating all runs of one task must change nothing: that task says the same as before.
    matrix_scores = rng.normal(0.5, 0.4, (8, 3))
    ragged = [matrix_scores[:, 0], matrix_scores[:, 1], np.tile(matrix_scores[:, 2], 4)]
    # 8 * 3 and 8 + 8 + 32 runs are both divisible by 4, so that the same share is cut.
    assert bootstrap.estimate(ragged, AGGREGATES[name]) == pytest.approx(RLIABLE[name](matrix_scores), rel=1e-12)


@pytest.mark.parametrize("name", AGGREGATES)
def test_every_resample_equals_the_statistic_of_the_runs_drawn(name: str) -> None:
    scores = np.random.default_rng(1).normal(0.8, 0.5, (7, 3))
    drawn = np.random.default_rng(2).integers(7, size=(50, 7, 3))
    counts = [np.stack([np.bincount(draw[:, task], minlength=7) for draw in drawn]) for task in range(3)]
    found = AGGREGATES[name](list(scores.T))(counts)
    plain = [RLIABLE[name](np.take_along_axis(scores, draw, axis=0)) for draw in drawn]
    np.testing.assert_allclose(found, plain, rtol=1e-12)


def test_every_resampled_probability_equals_that_of_the_runs_drawn() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 5, 6).astype(float), rng.integers(0, 5, 9).astype(float)
    in_x, in_y = rng.integers(6, size=(40, 6)), rng.integers(9, size=(40, 9))
    counts = [np.stack([np.bincount(d, minlength=n) for d in draws]) for draws, n in ((in_x, 6), (in_y, 9))]
    found = bootstrap._win_rate([x], [y])(counts)
    plain = [metrics.probability_of_improvement(x[i][:, None], y[j][:, None]) for i, j in zip(in_x, in_y, strict=True)]
    np.testing.assert_allclose(found, plain, rtol=1e-12)


@pytest.mark.parametrize("name", AGGREGATES)
def test_intervals_agree_with_a_plain_loop(name: str) -> None:
    scores = np.random.default_rng(4).normal(0.8, 0.5, (12, 3))
    rng = np.random.default_rng(5)
    repetitions = 4000
    plain = [
        RLIABLE[name](np.stack([rng.choice(scores[:, task], 12) for task in range(3)], axis=1))
        for _ in range(repetitions)
    ]
    found = bootstrap.interval(scores, AGGREGATES[name], method="percentile", repetitions=repetitions)
    # The standard error of a 2.5 % quantile is sqrt(p(1-p)/n) / density; for a normal that is 2.67 sd / sqrt(n). Two
    # quantiles that are independent differ by less than 4 * sqrt(2) of it.
    tolerance = 4 * np.sqrt(2) * 2.67 * np.std(plain) / np.sqrt(repetitions)
    np.testing.assert_allclose(found[1:], np.quantile(plain, [0.025, 0.975]), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", AGGREGATES)
def test_intervals_agree_with_rliable(name: str) -> None:
    scores = np.random.default_rng(17).normal(0.8, 0.5, (20, 3))
    repetitions = 2000
    np.random.seed(0)  # rliable draws from NumPy's global generator, whatever random state it is given
    _, expected = rly.get_interval_estimates(
        {"ppo": scores}, lambda of: np.array([RLIABLE[name](of)]), reps=repetitions
    )
    found = bootstrap.interval(scores, AGGREGATES[name], method="percentile", repetitions=repetitions)
    # As above: four standard errors of the difference of two quantiles, of a normal with this interval.
    tolerance = 4 * np.sqrt(2) * 2.67 * np.ptp(expected["ppo"]) / 3.92 / np.sqrt(repetitions)
    np.testing.assert_allclose(found[1:], expected["ppo"][:, 0], rtol=0, atol=tolerance)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(6)
    datasets, runs = 1000, 64
    covered = 0
    for index in range(datasets):
        found = bootstrap.interval([rng.normal(3.0, 2.0, runs)], bootstrap.iqm, repetitions=400, seed=index)
        covered += found.low <= 3.0 <= found.high
    # 1000 trials at 95 % have a standard deviation of 0.7 %; the percentile method is known to fall short by about 1 %.
    assert 0.92 <= covered / datasets <= 0.97


def test_intervals_are_reproducible_to_the_bit_whatever_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "BLOCK_ELEMENTS", 1000)  # several blocks
    rng = np.random.default_rng(7)
    ragged = [rng.normal(size=17), rng.normal(size=40)]
    curves = [rng.normal(size=(17, 3)), rng.normal(size=(40, 3))]

    def everything(seed: int) -> list[float]:
        found = [bootstrap.interval(ragged, f, repetitions=101, seed=seed) for f in AGGREGATES.values()]
        found += [bootstrap.improvement(ragged, ragged[::-1], repetitions=101, seed=seed)]
        band = bootstrap.curve(curves, bootstrap.iqm, repetitions=101, seed=seed)
        return np.ravel(found).tolist() + np.ravel(band).tolist()

    first = everything(seed=1)
    assert everything(seed=1) == first
    assert everything(seed=2) != first
    for threads in (1, 3):
        monkeypatch.setattr("os.cpu_count", lambda threads=threads: threads)
        assert everything(seed=1) == first
    for elements in (1, 100, 10**9):  # one row at a time, a few, all
        monkeypatch.setattr(bootstrap, "SLICE_ELEMENTS", elements)
        assert everything(seed=1) == first


def test_blocks_bound_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, repetitions = [100, 1000, 3000], 500
    monkeypatch.setattr(bootstrap, "BLOCK_ELEMENTS", 20_000)
    blocks: list[bootstrap.Counts] = []

    def keep(counts: bootstrap.Counts) -> np.ndarray:
        blocks.append(counts)
        return np.zeros(len(counts[0]))

    assert bootstrap._resample(keep, sizes, repetitions, 0, "").shape == (repetitions,)
    assert max(sum(counts.size for counts in block) for block in blocks) <= 20_000
    for block in blocks:
        assert [counts.sum(axis=1).tolist() for counts in block] == [[size] * len(block[0]) for size in sizes]


@pytest.mark.parametrize("runs", [bootstrap.MANY_RUNS - 1, bootstrap.MANY_RUNS, 1001])
def test_counts_are_those_of_draws_with_replacement(runs: int) -> None:
    rows = 4000
    counts = bootstrap._draw(np.random.default_rng(14), rows, runs)
    assert (counts.sum(axis=1) == runs).all()
    # How often a given run is drawn: binomial. Counts of one row are nearly independent.
    expected = scipy.stats.binom(runs, 1 / runs).pmf(np.arange(7))
    found = np.bincount(counts.ravel(), minlength=7)[:7] / counts.size
    np.testing.assert_array_less(np.abs(found - expected), 5 * np.sqrt(expected / counts.size))
    # How many draws fall into the first third of the runs: binomial too, which no dependence within a row survives.
    third = counts[:, : runs // 3].sum(axis=1)
    share = (runs // 3) / runs
    assert third.mean() == pytest.approx(share * runs, abs=5 * np.sqrt(share * runs / rows))
    assert third.var() == pytest.approx(share * (1 - share) * runs, rel=5 * np.sqrt(2 / rows))


def test_table_and_rest_together_are_the_poisson_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    rate, counts = 0.9, np.arange(40)
    table, rest = bootstrap._poisson_table(rate)
    undecided = np.mean(table == bootstrap.UNDECIDED)
    shares = [np.mean(table == count) for count in counts] + undecided * np.diff(rest, prepend=0.0)
    np.testing.assert_allclose(shares, scipy.stats.poisson(rate).pmf(counts), rtol=1e-9, atol=1e-12)
    # The few numbers that decide nothing are too rare to be seen in counts: here they are seven of ten.
    coarse = np.where(np.arange(2**16) < 0.3 * 2**16, np.uint8(1), np.uint8(bootstrap.UNDECIDED))
    decided = np.where(counts == 1, np.mean(coarse == 1), 0.0)
    others = np.cumsum(scipy.stats.poisson(rate).pmf(counts) - decided)
    monkeypatch.setattr(bootstrap, "_poisson_table", lambda _: (coarse, others / others[-1]))
    found = bootstrap._draw(np.random.default_rng(16), 1000, 1600)
    assert (found.sum(axis=1) == 1600).all()
    expected = scipy.stats.binom(1600, 1 / 1600).pmf(np.arange(7))
    shares = np.bincount(found.ravel(), minlength=7)[:7] / found.size
    np.testing.assert_array_less(np.abs(shares - expected), 5 * np.sqrt(expected / found.size))


def test_rows_with_too_many_draws_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.full(2**16, 3, np.uint8)
    monkeypatch.setattr(bootstrap, "_poisson_table", lambda rate: (table, np.array([1.0])))
    counts = bootstrap._draw(np.random.default_rng(15), 3, 400)
    assert (counts.sum(axis=1) == 400).all() and counts.max() < 12


def test_a_curve_is_the_interval_of_every_point() -> None:
    curves = [np.random.default_rng(8).normal(size=(9, 4)), np.random.default_rng(9).normal(size=(8, 4))]
    band = bootstrap.curve(curves, bootstrap.iqm, repetitions=200, name="ppo")
    for point in range(4):
        alone = bootstrap.interval([c[:, point] for c in curves], bootstrap.iqm, repetitions=200, name="ppo")
        assert alone == (band.estimate[point], band.low[point], band.high[point])


def test_a_simultaneous_band_holds_the_whole_curve_as_often_as_it_says() -> None:
    rng = np.random.default_rng(11)
    truth, datasets = np.linspace(0.0, 3.0, 8), 300
    whole = pointwise = 0
    for index in range(datasets):
        band = bootstrap.curve([truth + rng.normal(size=(64, 8))], bootstrap.iqm, repetitions=400, seed=index)
        whole += np.all((band.simultaneous_low <= truth) & (truth <= band.simultaneous_high))
        pointwise += np.all((band.low <= truth) & (truth <= band.high))
        assert np.all(band.simultaneous_low <= band.low) and np.all(band.high <= band.simultaneous_high)
    # 300 trials at 95 % have a standard deviation of 1.3 %. Eight independent points are all inside in 0.95^8 = 66 %.
    assert 0.91 <= whole / datasets <= 0.985
    assert pointwise / datasets < 0.75


def test_where_all_runs_agree_a_curve_has_no_band() -> None:
    curves = np.stack([np.full(31, 0.3), np.arange(31.0)], axis=1)
    band = bootstrap.curve([curves], bootstrap.mean, repetitions=200)
    assert band.estimate == pytest.approx([0.3, 15.0])
    assert all(np.isnan(bound[0]) for bound in band[1:])
    assert band.simultaneous_low[1] <= band.low[1] < 15.0 < band.high[1] <= band.simultaneous_high[1]


def test_points_of_a_curve_must_be_the_same_for_all_tasks() -> None:
    with pytest.raises(ValueError, match=r"the tasks have \[4, 3\] points"):
        bootstrap.curve([np.zeros((5, 4)), np.zeros((5, 3))], bootstrap.mean)


def test_performance_profile_equals_rliable() -> None:
    thresholds = np.arange(-5, 21) / 10
    scores = np.random.default_rng(12).choice(thresholds, (10, 3))  # some lie on a threshold, which is not above it
    expected, _ = rly.create_performance_profile({"ppo": scores}, thresholds, reps=1)
    found = bootstrap.profile(list(scores.T), thresholds, repetitions=100)
    np.testing.assert_allclose(found.estimate, expected["ppo"], rtol=1e-12)
    # Where all runs are on one side of a threshold, no resample differs.
    within = (found.estimate > 0) & (found.estimate < 1)
    assert np.isfinite(found.low).tolist() == within.tolist() and not within.all()
    assert np.all((found.simultaneous_low <= found.low)[within] & (found.low <= found.estimate)[within])


def test_difference_of_pairs_is_narrower_where_runs_have_luck_in_common() -> None:
    rng = np.random.default_rng(13)
    luck = rng.normal(size=(40, 2))
    x, y = luck + 0.1 * rng.normal(size=(40, 2)) + 0.2, luck + 0.1 * rng.normal(size=(40, 2))
    paired = bootstrap.difference(x, y, bootstrap.mean, paired=True)
    apart = bootstrap.difference(x, y, bootstrap.mean)
    assert paired.estimate == apart.estimate == pytest.approx(x.mean() - y.mean())
    assert paired.low > 0 > apart.low
    # For the mean the spread of the resamples is known: that of the differences, or those of both added up.
    for found, variance in ((paired, (x - y).var(axis=0).sum()), (apart, (x.var(axis=0) + y.var(axis=0)).sum())):
        expected = 2 * 1.96 * np.sqrt(variance / 40) / 2
        assert found.high - found.low == pytest.approx(expected, rel=0.1)
    assert bootstrap.difference(x, y, bootstrap.mean, seed=1) != apart


def test_improvement_of_pairs_counts_pairs() -> None:
    x, y = [np.array([1.0, 2.0, 3.0, 4.0])], [np.array([0.0, 2.0, 5.0, 3.0])]
    assert bootstrap.improvement(x, y, paired=True).estimate == (1 + 0.5 + 0 + 1) / 4
    assert bootstrap.improvement(x, y).estimate == pytest.approx(
        metrics.probability_of_improvement(x[0][:, None], y[0][:, None])
    )
    with pytest.raises(ValueError, match=r"X has \[4\] runs and Y has \[3\]"):
        bootstrap.difference(x, [y[0][:3]], bootstrap.mean, paired=True)


def test_pairs_are_runs_of_one_seed(folder: Path) -> None:
    write_shard(folder, "ppo", "a", [[10, 20, s] for s in (50, 51, 52, 53)], seeds=range(2, 6))
    write_shard(folder, "sac", "a", [[10, 20, s] for s in (60, 61, 62)], seeds=range(0, 3))
    write_shard(folder, "sac", "b", [[10, 20, 80]], seeds=range(7, 8))
    write_shard(folder, "ppo", "b", [[10, 20, 80], [10, 20, 90]], seeds=range(7, 9))
    x, y = read(folder).paired("ppo", "sac", ["a", "b"])
    assert [each.tolist() for each in x] == [[0.5], [0.8]]
    assert [each.tolist() for each in y] == [[0.62], [0.8]]


def test_what_cannot_be_paired_is_refused(folder: Path) -> None:
    write_shard(folder, "ppo", "a", ramp(3), seeds=range(2, 5))
    write_shard(folder, "sac", "a", ramp(2))
    with pytest.raises(ValueError, match="no seed in common on a"):
        read(folder).paired("ppo", "sac", ["a"])
    write_shard(folder, "sac", "a", ramp(2), seeds=range(1, 3), shard="again", config_hash="other")
    with pytest.raises(ValueError, match="'sac' on a has several runs of one seed"):
        read(folder).paired("ppo", "sac", ["a"])


def test_labels_are_resampled_independently_of_each_other() -> None:
    scores = np.random.default_rng(10).normal(size=(20, 2))
    both = bootstrap.interval({"ppo": scores, "sac": scores}, bootstrap.mean, repetitions=200)
    assert both["ppo"] != both["sac"]
    assert bootstrap.interval({"sac": scores}, bootstrap.mean, repetitions=200)["sac"] == both["sac"]
    # Were X and Y drawn together, the same scores on both sides would never give anything but one half.
    found = bootstrap.improvement(scores, scores, repetitions=200)
    assert found.low < 0.5 < found.high


def test_one_run_has_an_estimate_and_no_interval() -> None:
    found = bootstrap.interval([np.array([2.0]), np.arange(8.0)], bootstrap.mean, repetitions=50)
    assert found.estimate == 2.75
    assert np.isnan(found.low) and np.isnan(found.high)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": [np.array([1.0, np.nan])]}, "1 scores that are not finite"),
        ({"scores": []}, "no task"),
        ({"scores": [np.array([])]}, "runs >= 1"),
        ({"scores": np.zeros(3)}, r"expected \[runs, tasks\]"),
        ({"repetitions": 0}, "repetitions is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"confidence": 95}, "confidence is 95"),
    ],
)
def test_impossible_bootstraps_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap.interval(**{"scores": np.zeros((3, 2)), "statistic": bootstrap.mean, **arguments})


def test_improvement_needs_the_same_tasks() -> None:
    with pytest.raises(ValueError, match="X has 2 tasks and Y has 3"):
        bootstrap.improvement(np.zeros((3, 2)), np.zeros((3, 3)))


# --- The report -------------------------------------------------------------------------------------------------------


def test_report_prints_the_table_and_writes_csv_and_plot(two_labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(two_labels), "--repetitions", "100"]) == 0
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith(str(two_labels / "report.html"))
    for figure in FIGURES:
        assert figure in printed
        assert (two_labels / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert (two_labels / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
    assert "\x1b" not in printed, "colours in a pipe"
    assert max(len(line) for line in printed.splitlines() if str(two_labels) not in line) <= 100
    assert "Left out of the aggregate: c, no run of 'ppo'." in printed
    assert "Left out of the aggregate: d, no reference returns in its manifests." in printed
    assert "ppo > sac" in printed

    csv = pd.read_csv(two_labels / "report.csv")
    assert csv["section"].value_counts().to_dict() == {"task": 7 * 4, "aggregate": 2 * 2 * 4, "improvement": 2}
    scores = read(two_labels)
    final = csv[csv["statistic"] == "final_iqm"].set_index(["label", "environment"])
    for key, task in scores.tasks.items():
        row = final.loc[key]
        assert row["estimate"] == pytest.approx(metrics.aggregate_iqm(task.final[:, None]))
        assert row["low"] < row["estimate"] < row["high"]
        assert row["runs"] == task.runs
    for kind in ("auc", "final"):
        sac_rows = csv[(csv["section"] == "aggregate") & (csv["label"] == "sac") & (csv["score"] == kind)]
        sac = sac_rows.set_index("statistic")["estimate"]
        sac_matrix = matrix(scores.normalised(["a", "b"], kind)["sac"])
        assert sac.to_dict() == pytest.approx({name: estimator(sac_matrix) for name, estimator in RLIABLE.items()})
    # Which of two runs is higher needs no scale: task `d` without a reference counts too.
    assert "P(X > Y) needs no reference returns: it is over a, b, d." in printed
    ppo, sac_ragged = (scores.returns(["a", "b", "d"])[label] for label in ("ppo", "sac"))
    per_task = [
        metrics.probability_of_improvement(x[:, None], y[:, None]) for x, y in zip(ppo, sac_ragged, strict=True)
    ]
    improvement = csv[(csv["section"] == "improvement") & (csv["score"] == "final")].iloc[0]
    assert (improvement["label"], improvement["against"]) == ("ppo", "sac")
    assert improvement["estimate"] == pytest.approx(np.mean(per_task)) != 0.5
    # The printed figures are those of the file.
    assert f"{sac['iqm']:.3f} [" in printed


def test_report_of_a_metric_is_of_its_values(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    curves = {"ppo": rng.normal(size=(5, 3)), "sac": 3.0 + rng.normal(size=(5, 3))}
    for label, curve in curves.items():
        curve[:, 0] = np.nan  # before the first update there is none
        write_shard(folder, label, "a", ramp(5), extra={"metric/kl": curve.T.ravel()})
    write_shard(folder, "td3", "a", ramp(5))  # does not report it
    assert main([str(folder), "--repetitions", "100", "--metric", "kl"]) == 0
    printed = capsys.readouterr().out
    assert "Metric kl at the last evaluation" in printed
    assert printed.rstrip().endswith(f"{folder / 'metric_kl.png'} and .pdf")
    assert (folder / "metric_kl.png").read_bytes().startswith(b"\x89PNG")
    csv = pd.read_csv(folder / "metric_kl.csv")
    assert set(csv["section"]) == {"task"}
    final = csv[csv["statistic"] == "final_iqm"].set_index("label")
    assert set(final.index) == set(curves)
    for label, curve in curves.items():
        assert final.loc[label, "estimate"] == pytest.approx(metrics.aggregate_iqm(curve[:, -1:]))
    # The report of the returns is what it is without.
    assert set(pd.read_csv(folder / "report.csv")["label"].dropna()) == {"ppo", "sac", "td3"}


def test_report_is_the_same_for_the_same_seed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shard(folder, "ppo", "a", ramp(8))
    write_shard(folder, "sac", "a", ramp(8))

    def files(name: str, seed: int) -> dict[str, bytes]:
        out = tmp_path / name
        assert main([str(folder), "--repetitions", "50", "--seed", str(seed), "--out", str(out)]) == 0
        return {file.name: file.read_bytes() for file in out.iterdir()}

    found = files("x", 3)
    figures = [f"{name}.{ending}" for name in FIGURES for ending in ("png", "pdf")]
    assert set(found) == {"report.csv", "report.html", "report.tex", *figures}
    assert files("y", 3) == found
    monkeypatch.setattr(command, "FIGURES", ())
    assert all(content != found[name] for name, content in files("z", 4).items())


def write_long_names(folder: Path) -> tuple[list[str], list[str]]:
    """Two labels on two tasks, all with long names and high scores; gives the names and the words of all numbers."""
    tasks, labels = ["suite/a-task-with-a-very-long-name-v0", "suite/b"], ["ppo-with-many-many-words", "sac"]
    for task, label in itertools.product(tasks, labels):
        write_shard(folder, label, task, 1e4 * ramp(15, seed=len(label)))
    summary = summarise(read(folder), repetitions=40)
    shown = summary[(summary["score"] != "auc") & ~summary["statistic"].isin(["last_iqm", "auc_iqm"])]
    numbers = []
    for row in shown.to_dict("records"):
        decimals = 0 if row["section"] == "task" else 3
        numbers.append(f"{row['estimate']:.{decimals}f}")
        if row["statistic"] != "untrained_iqm":
            bounds = f"[{row['low']:.{decimals}f}, {row['high']:.{decimals}f}]"
            # Scores above 1 all fall short of it by nothing.
            numbers[-1] += " =" if row["statistic"] == "optimality_gap" else f" {bounds}"
    return [*tasks, *labels], numbers


def test_into_a_pipe_tables_are_as_wide_as_they_need(
    folder: Path, capsys: pytest.CaptureFixture[str], no_figures: None
) -> None:
    names, numbers = write_long_names(folder)
    assert main([str(folder), "--repetitions", "40"]) == 0
    lines = capsys.readouterr().out.splitlines()
    words = ["environment", "label", "runs", "diverged", "untrained", "final", "IQM", "[95%]", "at", "step", "steps/s"]
    assert words in [line.split() for line in lines]
    for text in (*names, *numbers):
        assert any(text in line for line in lines), text
    assert any(line.split()[:2] == names[::2] and line.split()[-1] == "3.75k" for line in lines)


@pytest.mark.parametrize("width", [200, 100, 80, 40, 20])
def test_no_number_is_cut_and_every_label_is_there_in_a_terminal_of_any_width(folder: Path, width: int) -> None:
    names, numbers = write_long_names(folder)
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None, markup=False)
    scores = read(folder)
    render(scores, summarise(scores, repetitions=40), console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    for number in numbers:
        assert any(number in line for line in lines), number
    rules = [index for index, line in enumerate(lines) if set(line) == {"\N{BOX DRAWINGS LIGHT HORIZONTAL}"}]
    assert len(rules) == 3 if width == 200 else len(rules) > 3
    for rule in rules:
        rows = itertools.takewhile(bool, lines[rule + 1 :])
        in_names = "".join(row[: len(names[0] + names[2]) + 4] for row in rows).replace(" ", "")
        assert "sac" in in_names and "ppo" in in_names
    # An interval with the narrowest names may be wider than the terminal.
    assert max(map(len, lines)) <= max(width, 64)


@pytest.mark.parametrize(
    "title",
    [
        "",
        "gymnax/Pendulum-v1",
        "brax/inverted_pendulum/spring+reward_scale=0.01+observation_noise=0.1",
        "data-of/" + 90 * "x" + "/expert",
    ],
)
def test_titles_are_folded_to_the_width_of_a_panel(title: str) -> None:
    lines = plots._folded(title).split("\n")
    assert "".join(lines) == title
    assert max(map(len, lines)) <= plots.TITLE_LETTERS
    assert len(lines) <= 1 + len(title) // (plots.TITLE_LETTERS // 2)


def test_plot_draws_the_iqm_of_the_runs_that_were_evaluated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for environment, budget in (("a", 1000), ("b", 2000)):
        steps = tuple(step * budget // 1000 for step in STEPS)
        reference = {**REFERENCE, "high": 100.0 if environment == "a" else 200.0}
        first, second = [[0.0, 50.0, 80.0]] * 2, [[20.0, 70.0]] * 2
        common: dict[str, Any] = {"steps": steps, "budget": budget, "reference": reference}
        write_shard(folder, "ppo", environment, first, shard=f"{environment}-1", seeds=range(2), **common)
        write_shard(folder, "ppo", environment, second, shard=f"{environment}-2", seeds=range(2, 4), **common)
    lines = []
    monkeypatch.setattr(plots, "_line", lambda axis, x, values, complete, look: lines.append((x, values[0], complete)))
    plots.sample_efficiency(read(folder), folder / "plot.png", repetitions=40)
    assert len(lines) == 3, "two tasks and the aggregate"
    for (x, iqm, complete), budget in zip(lines, (1000, 2000), strict=False):
        assert x.tolist() == [0, budget / 2, budget]
        assert iqm.tolist() == [10.0, 60.0, 80.0]
        assert complete.tolist() == [True, True, False]
    shares, normalised, aggregate_complete = lines[2]
    # All runs came half way: on a from 0.0 to 0.5 and 0.2 to 0.7, normalised; on b to half of that. All are pooled.
    assert shares[[0, -1]].tolist() == [0.0, 0.5]
    ends = [np.array([0, 0, 0.2, 0.2, 0, 0, 0.1, 0.1]), np.array([0.5, 0.5, 0.7, 0.7, 0.25, 0.25, 0.35, 0.35])]
    assert normalised[[0, -1]] == pytest.approx([metrics.aggregate_iqm(end[:, None]) for end in ends])
    assert aggregate_complete.all()
    half_way = (ends[0] + ends[1]) / 2
    assert normalised[shares.tolist().index(0.25)] == pytest.approx(metrics.aggregate_iqm(half_way[:, None]))


def test_plot_of_running_shards_is_dashed_where_runs_are_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    returns = [[0.0, 50.0, 80.0]] * 2 + [[20.0, 70.0, 90.0]] * 2
    write_shard(folder, "ppo", "a", returns, running=[3, 3, 2, 2])
    write_shard(folder, "ppo", "b", returns, running=[2, 2, 0, 0])
    write_shard(folder, "ppo", "c", returns)
    lines, looks = [], []
    monkeypatch.setattr(plots, "_line", lambda axis, x, values, complete, look: lines.append((x, values[0], complete)))
    monkeypatch.setattr(plots.Figure, "supxlabel", lambda self, text, **settings: looks.append(text))
    scores = read(folder)
    plots.sample_efficiency(scores, folder / "plot.png", repetitions=40)
    a, b, c, aggregate = lines
    assert (a[0].tolist(), a[1].tolist(), a[2].tolist()) == ([0, 500, 1000], [10, 60, 80], [True, True, False])
    assert (b[0].tolist(), b[1].tolist(), b[2].tolist()) == ([0, 500], [0, 50], [False, False])
    assert c[1].tolist() == [10, 60, 85] and c[2].all()
    # Of a and of b the first two runs, which came farthest; only half way, as far as those of b came; all runs of c.
    shares, normalised, complete = aggregate
    assert shares[[0, -1]].tolist() == [0.0, 0.5] and not complete.any()
    ends = [np.array([0, 0, 0, 0, 0, 0, 0.2, 0.2]), np.array([0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.7, 0.7])]
    assert scores.tasks["ppo", "c"].counted.all()
    tasks = [[end[:2], end[2:4], end[4:]] for end in ends]
    assert normalised[[0, -1]] == pytest.approx([bootstrap.estimate(task, bootstrap.iqm) for task in tasks])
    assert "Dashed" in looks[0]
    assert plots._runs(scores, "ppo") == "8 of 12 runs"


@pytest.mark.parametrize("runs", [1, bootstrap.FEWEST_RUNS])
def test_report_on_one_label_without_a_reference(
    folder: Path, capsys: pytest.CaptureFixture[str], no_figures: None, runs: int
) -> None:
    write_shard(folder, "ppo [wide]", "a", ramp(runs), reference=None)
    assert main([str(folder), "--repetitions", "40"]) == 0
    printed = capsys.readouterr().out
    assert "No aggregate over tasks" in printed
    assert "ppo [wide]" in printed, "labels are text, not markup"
    csv = pd.read_csv(folder / "report.csv")
    assert set(csv["section"]) == {"task"}
    assert csv["low"].isna().all() == (runs == 1)


def test_labels_on_a_task_without_a_reference_are_compared_run_by_run(
    folder: Path, capsys: pytest.CaptureFixture[str], no_figures: None
) -> None:
    for label, top in (("ppo", 70.0), ("sac", 72.0)):
        write_shard(folder, label, "a", ramp(9, top, int(top)), reference=None)
    assert main([str(folder), "--repetitions", "40"]) == 0
    printed = capsys.readouterr().out
    csv = pd.read_csv(folder / "report.csv")
    found = csv[csv["section"] == "improvement"].set_index("score").loc["final"]
    tasks = read(folder).tasks
    expected = metrics.probability_of_improvement(*(tasks[label, "a"].final[:, None] for label in ("ppo", "sac")))
    assert found["estimate"] == pytest.approx(expected) and found["low"] < expected < found["high"]
    assert f"ppo > sac  {expected:.3f} [" in printed
    assert "No aggregate over tasks: all are left out" in printed and "it is over a." in printed
    assert set(csv["section"]) == {"task", "improvement"}


def test_report_on_a_shard_that_has_only_begun(folder: Path, no_figures: None) -> None:
    write_shard(folder, "ppo", "a", ramp(4))
    write_shard(folder, "sac", "a", ramp(4), running=[1] * 4)
    assert main([str(folder), "--repetitions", "40"]) == 0
    csv = pd.read_csv(folder / "report.csv")
    csv = csv[csv["section"] == "task"].set_index(["label", "statistic"])
    sac = csv.loc[("sac", "final_iqm")]
    assert (sac["first_final_step"], sac["last_final_step"]) == (0, 0)
    assert np.isnan(sac["steps_per_second"])
    assert sac["estimate"] == csv.loc[("sac", "auc_iqm"), "estimate"] == csv.loc[("sac", "untrained_iqm"), "estimate"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "no such results folder 'none'"),
        ([], "required: RESULTS (see 'rlsuite report --help')"),
        (["{results}", "--repetitions", "ten"], "'ten' is not a whole number of at least 40"),
        (["{results}", "--repetitions", "5"], "'5' is not a whole number of at least 40"),
        (["{results}", "--seed", "-1"], "'-1' is not a whole number of at least 0"),
        (["{results}", "--out", "{results}/ppo-a.json"], "cannot write into"),
        (["{results}", "--out", "{results}/ppo-a.json/below"], "cannot write into"),
        (["{results}", "--metric", "kl"], "no evaluation has a metric 'kl'; there are: none"),
        (["{results}", "--nosuch"], "unrecognized arguments: --nosuch"),
    ],
)
def test_command_line_errors_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    write_shard(folder, "ppo", "a", ramp(2))
    before = sorted(folder.iterdir())
    assert main([argument.replace("{results}", str(folder)) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("rlsuite: ") and message in captured.err
    assert captured.err.count("\n") == 1
    assert sorted(folder.iterdir()) == before, "something half-written"


def test_the_command_is_called_what_its_user_typed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    printed = capsys.readouterr().out
    assert left.value.code == 0
    assert printed.startswith("usage: rlsuite report [-h]") and "RESULTS" in printed and "python" not in printed


def test_module_runs_without_the_rest_of_the_suite(folder: Path) -> None:
    """As a command, in a process where importing `rlsuite`, `envs` or JAX fails."""
    write_shard(folder, "ppo", "a", ramp(4))
    program = (
        "import runpy, sys\n"
        "for name in ('rlsuite', 'envs', 'experiments', 'jax'): sys.modules[name] = None\n"
        f"sys.argv = ['analysis', {str(folder)!r}, '--repetitions', '40']\n"
        "runpy.run_module('analysis', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.rstrip().endswith("report.html")
