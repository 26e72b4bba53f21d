"""The report states the evidence level of every method, and calls levels C and D a reconstruction where they show."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from written import ramp, read, write_shard

import analysis.evidence
import rlsuite.evidence
from analysis import load, manifests, power, score, tuning
from analysis.__main__ import main
from analysis.evidence import named
from analysis.tables import summarise

LEVELS = {"plain": "A", "third": "B", "recalled": "C", "guess": "D"}
SHOWN = {"plain": "plain", "third": "third", "recalled": "recalled (reconstruction)", "guess": "guess (reconstruction)"}
NOTE = (
    "evidence: A (the official code was read) for 'plain'; B (third-party code or the paper's equations were read) for "
    "'third'; C (written from the abstract or from memory) for 'recalled (reconstruction)'; D (a reconstruction) for "
    "'guess (reconstruction)'"
)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for seed, (label, level) in enumerate(LEVELS.items()):
        for task in ("a", "b"):
            metric = {"metric/loss": 1.0}
            write_shard(tmp_path / "one", label, task, ramp(8, seed=seed), evidence=level, cell=seed, extra=metric)
    return tmp_path / "one"


def document(folder: Path) -> dict:
    page = (folder / "report.html").read_text()
    (data,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)
    return json.loads(data)


def test_the_words_are_those_of_rlsuite() -> None:
    assert rlsuite.evidence.EVIDENCE == analysis.evidence.EVIDENCE
    assert set(analysis.evidence.EVIDENCE) > analysis.evidence.RECONSTRUCTED == {"C", "D"}


def test_tables_files_and_page_call_a_reconstruction_one(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(results), "--repetitions", "40", "--metric", "loss"]) == 0
    printed = capsys.readouterr().out
    for text in (" ".join(each.split()) for each in (printed, (results / "report.tex").read_text())):
        for label in ("recalled", "guess"):
            assert set(re.findall(rf"\b{label}\b( \(reconstruction\))?", text)) == {" (reconstruction)"}
        assert "plain (" not in text and "third (" not in text
        assert NOTE in text
    assert printed.count("Note: evidence") == 2  # of the returns, and of the metric
    for name in ("report.csv", "metric_loss.csv"):
        table = pd.read_csv(results / name)
        assert set(table["label"]) == set(SHOWN.values())
        assert {label: set(rows["evidence"]) for label, rows in table.groupby("label")} == {
            SHOWN[label]: {level} for label, level in LEVELS.items()
        }
    page = document(results)
    assert [label["name"] for label in page["labels"]] == list(SHOWN.values())
    assert NOTE in page["notes"]
    assert {shard["label"] for shard in page["manifests"]["shards"]} == set(SHOWN.values())


def test_labels_are_chosen_by_their_own_names(results: Path) -> None:
    assert main([str(results), "--repetitions", "40", "--labels", "plain", "guess"]) == 0
    assert [label["name"] for label in document(results)["labels"]] == ["plain", "guess (reconstruction)"]


def test_results_from_before_levels_were_recorded_show_none(tmp_path: Path) -> None:
    write_shard(tmp_path / "one", "old", "a", ramp(8))
    write_shard(tmp_path / "one", "other", "a", ramp(8), evidence=None)  # of another package that states no source
    scores = read(tmp_path / "one")
    assert scores.evidence == {"old": "", "other": ""} and not any("evidence" in note for note in scores.notes)
    assert set(summarise(scores, repetitions=40)["evidence"]) == {""}
    write_shard(tmp_path / "one", "new", "a", ramp(8), evidence="A")
    (note,) = (note for note in read(tmp_path / "one").notes if "evidence" in note)
    assert note == "evidence: A (the official code was read) for 'new'; - for 'old', 'other'"


def test_old_and_new_shards_of_a_label_stay_one(tmp_path: Path) -> None:
    for experiment in ("one", "two"):
        write_shard(tmp_path / experiment, "x", "a", ramp(8), shard="x-old")
        write_shard(tmp_path / experiment, "x", "a", ramp(8), shard="x-new", seeds=range(8, 16), evidence="D")
    scores = score(*named(load(tmp_path / "one"), manifests(tmp_path / "one")))
    assert scores.labels == ["x (reconstruction)"] and scores.tasks["x (reconstruction)", "a"].runs == 16
    frame, shard_manifests = named(load(tmp_path), manifests(tmp_path))
    assert score(frame, shard_manifests).labels == ["one/x (reconstruction)", "two/x (reconstruction)"]
    assert {manifest["label"] for manifest in shard_manifests} == {"x (reconstruction)"}


def test_a_label_that_says_so_is_left_as_it_is() -> None:
    label_levels = {"dpo-style reconstruction": "D", "pooled": "A, C", "plain": "A"}
    shown = [analysis.evidence.shown(label, label_levels) for label in label_levels]
    assert shown == ["dpo-style reconstruction", "pooled (reconstruction)", "plain"]


def test_a_choice_of_settings_and_a_pilot_say_so_too(tmp_path: Path) -> None:
    for rate in (0.1, 0.2):
        extra = {"hyper/rate": rate}
        write_shard(tmp_path / "one", "x", "a", ramp(8), shard=f"x-{rate}", extra=extra, evidence="D")
    choice = tuning.choose(
        load(tmp_path / "one"), manifests(tmp_path / "one"), selection_seeds=range(4), repetitions=40
    )
    assert list(choice.table["label"]) == ["x (reconstruction)"]
    pilot = power.make_pilot(tmp_path / "one", "x", difference=0.1)
    assert "evidence: D (a reconstruction) for 'x'" in pilot.notes
