"""`rlsuite import`: curves of other programs as a label that everything shows as imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from written import contents, ramp, write_shard

from analysis import foreign, load, manifests, score, tuning
from rlsuite.commands import cli

TASK = "gymnax/CartPole-v1"
LABEL = "PPO (CleanRL)"
SHOWN = "PPO (CleanRL) (imported)"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results" / "quick"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def imported(results: Path, *files: Path, **options: Any) -> pd.DataFrame:
    """Rows of the imported label: step by run."""
    foreign.import_curves(files, results, label=LABEL, environment=TASK, **options)
    frame = load(results)
    return frame[frame["label"].str.endswith(SHOWN)].pivot(index="step", columns="run", values="return_mean")


def long_table(path: Path) -> Path:
    """Two runs, in no order, whose records lie elsewhere than anybody's steps."""
    return write(
        path,
        "run,step,return\na,100,1\na,300,3\nb,50,10\na,200,2\nb,400,30\na,400,5\nb,390,20\n",
    )


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["import", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0].removeprefix("rlsuite: ")


# --- Numbers ----------------------------------------------------------------------------------------------------------


def test_each_step_has_the_mean_since_the_step_before(results: Path, tmp_path: Path) -> None:
    found = imported(results, long_table(tmp_path / "curves.csv"), points=2)
    # Of `b`, nothing lies in (0, 200] but 10; of `a`, 1 and 2.
    assert found.to_dict() == {0: {200: 1.5, 400: 4.0}, 1: {200: 10.0, 400: 25.0}}


def test_a_step_since_which_nothing_was_recorded_has_the_last_value(results: Path, tmp_path: Path) -> None:
    found = imported(results, long_table(tmp_path / "curves.csv"), points=4)
    assert found[1].to_dict() == {100: 10.0, 200: 10.0, 300: 10.0, 400: 25.0}


def test_an_evaluation_is_the_last_one_and_no_mean(results: Path, tmp_path: Path) -> None:
    found = imported(results, long_table(tmp_path / "curves.csv"), points=2, kind="evaluation")
    assert found.to_dict() == {0: {200: 2.0, 400: 5.0}, 1: {200: 10.0, 400: 30.0}}


def test_several_episodes_at_one_step_are_averaged(results: Path, tmp_path: Path) -> None:
    text = "step,return\n0,1\n10,2\n10,4\n20,8\n"
    for kind in foreign.KINDS:
        file = write(tmp_path / "a.csv", text)
        assert imported(results, file, points=2, kind=kind, replace=True)[0].tolist() == [3.0, 8.0]


def test_steps_are_those_of_our_results_on_the_task(results: Path, tmp_path: Path) -> None:
    write_shard(results, "ppo", TASK, ramp(3), steps=(0, 90, 350))
    write_shard(results, "ppo", "other", ramp(3), steps=(0, 100, 200))
    found = imported(results, write(tmp_path / "a.csv", "step,return\n0,1\n90,2\n91,3\n200,5\n400,7\n"))
    assert found[0].to_dict() == {0: 1.0, 90: 2.0, 350: 4.0}
    later = imported(results, write(tmp_path / "a.csv", "step,return\n60,1\n91,3\n400,7\n"), replace=True)
    assert later[0].to_dict() == {90: 1.0, 350: 3.0}, "no step before the first record"


def test_no_step_lies_after_the_end_of_any_run(results: Path, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{end}.csv", f"step,return\n10,1\n{end},2\n") for end in (1000, 400)]
    assert imported(results, *files, points=4).index.tolist() == [100, 200, 300, 400]
    [manifest] = manifests(results)
    assert manifest["steps"] == 400 and manifest["seeds"] == [0, 1]


# --- Tables -----------------------------------------------------------------------------------------------------------


def test_a_table_of_cleanrl_and_openrlbenchmark(results: Path, tmp_path: Path) -> None:
    """`global_step`, `charts/episodic_return`, a run a seed; other metrics leave empty cells."""
    text = (
        "_runtime,global_step,charts/episodic_return,losses/value_loss,seed\n"
        "1,100,20,,1\n1,110,,0.5,1\n2,200,40,,1\n1,100,10,,2\n2,200,30,,2\n"
    )
    assert imported(results, write(tmp_path / "a.csv", text), points=2).to_dict() == {
        0: {100: 20.0, 200: 40.0},
        1: {100: 10.0, 200: 30.0},
    }
    [manifest] = manifests(results)
    assert manifest["foreign"]["runs"] == ["1", "2"]
    assert "'charts/episodic_return', run: 'seed'" in manifest["foreign"]["table"]


def test_a_table_of_the_wandb_site(results: Path, tmp_path: Path) -> None:
    """A column a run, twice again for its band."""
    name = "ppo__1 - charts/episodic_return"
    text = (
        f'"Step","{name}","{name}__MIN","{name}__MAX","ppo__2 - charts/episodic_return"\n'
        '"0","5","1","9",""\n"100","6","1","9","7"\n"200","","","","8"\n"300","9","1","9","9"\n'
    )
    assert imported(results, write(tmp_path / "a.csv", text), points=3).to_dict() == {
        0: {100: 6.0, 200: 6.0, 300: 9.0},
        1: {100: 7.0, 200: 8.0, 300: 9.0},
    }
    [manifest] = manifests(results)
    assert manifest["foreign"]["runs"] == ["ppo__1", "ppo__2"]


def test_parquet_and_columns_by_name(results: Path, tmp_path: Path) -> None:
    frame = pd.DataFrame({"frames": [4, 8, 4, 8], "score": [1, 2, 3, 4], "id": ["x", "x", "y", "y"], "step": 0})
    frame.to_parquet(tmp_path / "a.parquet")
    names = {"step": "frames", "return": "score", "run": "id"}
    found = imported(results, tmp_path / "a.parquet", points=2, columns=names)
    assert found.to_dict() == {0: {4: 1.0, 8: 2.0}, 1: {4: 3.0, 8: 4.0}}


def test_runs_of_several_files_are_different_ones(results: Path, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.csv", f"seed,step,return\n1,1,{name}\n1,2,{name}\n") for name in "34"]
    assert imported(results, *files, points=2).loc[2].tolist() == [3.0, 4.0]


# --- The mark ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def both(results: Path, tmp_path: Path) -> Path:
    """Six runs of ours and four imported ones."""
    write_shard(results, "ppo", TASK, ramp(6))
    rows = [f"{run},{step},{run + step / 100}" for run in range(4) for step in (0, 250, 500, 1000)]
    file = write(tmp_path / "curves.csv", "\n".join(["run,step,return", *rows]))
    foreign.import_curves([file], results, label=LABEL, environment=TASK, source="a paper")
    return results


def test_every_table_and_page_shows_the_mark(both: Path, tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["report", str(both), "--out", str(tmp_path / "out"), "--repetitions", "50"]) == 0
    printed = capsys.readouterr().out
    note = "imported from a paper ('"
    assert SHOWN in printed and note in " ".join(printed.split())
    table = pd.read_csv(tmp_path / "out/report.csv")
    assert set(table["label"].dropna()) == {"ppo", SHOWN}
    for name in ("report.tex", "report.html"):
        text = (tmp_path / "out" / name).read_text()
        assert text.count(SHOWN) == text.count(LABEL) > 0, name
    found = score(load(both), manifests(both))
    assert any(note in line and "training returns of another program" in line for line in found.notes)
    assert found.tasks[SHOWN, TASK].final.tolist() == [10.0, 11.0, 12.0, 13.0]
    assert not any("of 2 shards" in line for line in found.notes), "which code computed them is asked of ours alone"


def test_other_commands_take_the_folder(both: Path, tmp_path: Path, capsys: Any) -> None:
    asked = ["power", str(both), "--label", "ppo", "--against", SHOWN, "--runs", "8"]
    assert cli.main(asked) == 0
    assert SHOWN in capsys.readouterr().out
    write_shard(both, "sac", TASK, ramp(9))
    write_shard(both, "ppo", TASK, ramp(9))
    choice = tuning.choose(load(both), manifests(both), selection_seeds=range(4))
    assert choice.table["label"].tolist() == ["ppo", "sac"]
    assert cli.main(["export", str(both), "--tensorboard", str(tmp_path / "board")]) == 0
    assert len(list((tmp_path / "board" / SHOWN).rglob("seed *"))) == 4


# --- Again, and what is wrong -----------------------------------------------------------------------------------------


def test_the_same_files_are_kept_and_others_refused(results: Path, tmp_path: Path, capsys: Any) -> None:
    file = long_table(tmp_path / "curves.csv")
    arguments = [str(file), "--to", str(results), "--label", LABEL, "--env", TASK]
    assert cli.main(["import", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "2 runs of 1 files: a row a record (step: 'step', return: 'return', run: 'run')" in printed
    assert f"{SHOWN} on {TASK}: 16 steps from 100 to 400, at each the mean of the training returns" in printed
    before = contents(results)
    assert cli.main(["import", *arguments]) == 0
    assert "imported before, kept" in capsys.readouterr().out and contents(results) == before
    assert "--replace, or another --label" in refusal([*arguments, "--points", "3"], capsys)
    file.write_text(file.read_text() + "b,410,7\n")
    assert f"has other curves of '{SHOWN}'" in refusal(arguments, capsys)
    assert contents(results) == before
    assert cli.main(["import", *arguments, "--replace"]) == 0
    assert contents(results) != before and len(list(results.iterdir())) == 2


def test_an_environment_of_no_other_result_is_told(results: Path, tmp_path: Path, capsys: Any) -> None:
    """It may be misspelt."""
    write_shard(results, "ppo", TASK, ramp(3))
    file = str(long_table(tmp_path / "curves.csv"))
    for environment in (TASK, "CartPole-v1"):
        assert cli.main(["import", file, "--to", str(results), "--label", LABEL, "--env", environment]) == 0
        told = f"no other result there is on CartPole-v1; they are on {TASK}" in capsys.readouterr().out
        assert told == (environment != TASK)


def test_labels_and_tasks_are_shards_of_their_own(results: Path, tmp_path: Path) -> None:
    file = long_table(tmp_path / "curves.csv")
    for label, environment in (("a", TASK), ("a/b", TASK), ("a b", TASK), ("a", "other")):
        foreign.import_curves([file], results, label=label, environment=environment)
    assert len(manifests(results)) == 4


WRONG = {
    "step,reward\n1,2\n": "no column that is known to be the return; it has 'step', 'reward'; name the right one with",
    "frames,return\n1,2\n": "no column that is known to be the step",
    "step,return\n1,two\n2,3\n": "has 'two' in column 'return' of row 1, expected a finite number",
    "step,return\n1,2\n2,inf\n": "has 'inf' in column 'return' of row 2",
    "step,return\n1,2\n": "run '0' of '{file}' has returns at 1 steps, a curve needs two",
    "step,return\n1,2\n1,3\n": "has returns at 1 steps",
    "step,return\n-1,2\n1,3\n": "has a return at step -1, expected a whole number from 0",
    "step,return\n1.5,2\n2,3\n": "has a return at step 1.5",
    "step,return\n1,2\n9223372036854775808,3\n": "step 9.22337e+18, expected a whole number from 0 to 1e+15",
    "run,step,return\na,1,2\n,2,3\n": "has no run in column 'run' of row 2; name the run",
    "step,return\n,2\n2,3\n": "has a return at step nan",
    "step,return\n": "has no rows",
    "": "cannot read '{file}' (No columns to parse from file)",
    "run,step,return\na,1,1\na,2,1\nb,3,1\nb,4,1\n": "the latest begins at 3, and the first one ends at 2; leave out",
    "Step,a - x,b - y\n1,2,3\n2,3,4\n": "has several metrics (x, y)",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    text: str, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "curves.csv", text)
    message = refusal([str(file), "--to", str(results), "--label", LABEL, "--env", TASK], capsys)
    assert WRONG[text].format(file=file) in message
    assert not results.exists()


def test_files_that_cannot_be_read(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rest = ["--to", str(results), "--label", LABEL, "--env", TASK]
    assert "no such file" in refusal([str(tmp_path / "none.csv"), *rest], capsys)
    assert "expected .csv or .parquet" in refusal([str(write(tmp_path / "a.txt", "x")), *rest], capsys)
    assert "cannot read" in refusal([str(write(tmp_path / "a.parquet", "x")), *rest], capsys)
    (tmp_path / "folder.csv").mkdir()
    assert "cannot read" in refusal([str(tmp_path / "folder.csv"), *rest], capsys)
    file = str(long_table(tmp_path / "a.csv"))
    assert "named twice" in refusal([file, file, *rest], capsys)
    assert "has no column 'x'" in refusal([file, *rest, "--columns", "step=x"], capsys)
    assert "must be step=NAME" in refusal([file, *rest, "--columns", "steps=x"], capsys)
    assert "whole number from 2" in refusal([file, *rest, "--points", "1"], capsys)
    assert "--label is empty" in refusal([file, "--to", str(results), "--label", " ", "--env", TASK], capsys)


def test_a_disk_that_cannot_be_written_leaves_what_was_there(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = long_table(tmp_path / "curves.csv")
    imported(results, file)
    before = contents(results)

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(foreign.pq, "write_table", full)
    message = refusal([str(file), "--to", str(results), "--label", LABEL, "--env", TASK, "--replace"], capsys)
    assert "(No space left on device); give another folder" in message and contents(results) == before


def test_a_random_table_is_what_a_loop_makes_of_it(results: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"run": random.integers(3, size=300), "step": random.integers(1000, size=300)})
    frame["return"] = random.normal(size=300)
    frame.to_csv(tmp_path / "a.csv", index=False)
    found = imported(results, tmp_path / "a.csv", points=10)
    [manifest] = manifests(results)
    for run, name in enumerate(manifest["foreign"]["runs"]):
        records = frame[frame["run"] == int(name)]
        low = 0
        for step in found.index:
            window = records[(records["step"] > low) & (records["step"] <= step)]["return"]
            assert found.loc[step, run] == pytest.approx(window.mean(), abs=1e-12)
            low = step
