"""No false interval: where it cannot hold there is a mark and a sentence, in every place that shows one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from written import read, write_shard

from analysis import __main__ as command
from analysis import bootstrap, plots, power
from analysis import report as pages
from analysis.__main__ import main
from analysis.bootstrap import FEW_RUNS, FEWEST_FOR_A_MEAN, FEWEST_RUNS, FEWEST_TO_COMPARE, NO_SPREAD
from analysis.curves import performance_profiles, sample_efficiency_curves
from analysis.power import Pilot
from analysis.tables import AGGREGATES, summarise

DOCS = Path(__file__).resolve().parent.parent / "docs"

BOUNDS = r"\[-?[\d.]+, -?[\d.]+\]"


def final(runs: int, top: float, spread: float = 5.0) -> np.ndarray:
    """`[runs, 3]` curves; without spread all runs are equal."""
    noise = spread * np.random.default_rng(int(top)).normal(size=(runs, 3))
    return np.array([10.0, (10 + top) / 2, top]) + noise


def write(folder: Path, runs: int, spread: float = 5.0) -> Path:
    """Two labels on a task, whose runs overlap unless they have no spread."""
    for label, top in (("ppo", 50.0), ("sac", 52.0)):
        curves = final(runs, top, spread)
        write_shard(folder, label, "a", curves, extra={"metric/kl": curves.T.ravel()})
    return folder


def touch(*arguments: Any, **settings: Any) -> None:
    """In the place of a figure, which takes seconds."""
    for file in arguments:
        if isinstance(file, Path):
            file.touch()


@pytest.mark.parametrize(
    ("runs", "spread", "mark", "reason"), [(2, 5.0, "*", FEW_RUNS), (4, 5.0, "*", FEW_RUNS), (30, 0.0, "=", NO_SPREAD)]
)
def test_no_interval_is_shown_that_cannot_hold(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    runs: int,
    spread: float,
    mark: str,
    reason: str,
) -> None:
    for figure in ("sample_efficiency", "aggregate_intervals", "performance_profile"):
        monkeypatch.setattr(command, figure, touch)
    folder = write(tmp_path / "x", runs, spread)
    documents: list[Any] = []
    monkeypatch.setattr(command, "write", lambda document, file: (documents.append(document), file.touch()))
    assert main([str(folder), "--repetitions", "40", "--metric", "kl"]) == 0
    printed = capsys.readouterr().out
    compared = runs >= FEWEST_TO_COMPARE  # P(X > Y) has its interval, whatever the scores are
    assert len(re.findall(BOUNDS, printed)) == compared
    assert printed.count(f" {mark}") >= 2 * (1 + len(AGGREGATES)) + (not compared)
    # Under the tables and under those of the metric.
    assert len(re.findall(rf"^{re.escape(mark)} no interval", printed, re.M)) == 2
    for file in ("report.csv", "metric_kl.csv"):
        csv = pd.read_csv(folder / file)
        assert len(csv) and csv["estimate"].notna().all()
        pairs = csv["section"] == "improvement"
        assert csv.loc[pairs, "low"].notna().all() if compared else csv.loc[pairs, "low"].isna().all()
        others = csv[~pairs | (not compared)]
        assert others[["low", "high"]].isna().all(axis=None) and set(others["no_interval"]) == {reason}
    tex = (folder / "report.tex").read_text()
    assert not re.search(BOUNDS, tex) and f" {mark}}}" in tex and f"% {mark} no interval" in tex
    (document,) = documents
    shown = [row[name] for row in document["table"] for name in ("untrained", "final", "last", "auc")]
    shown += [each for labels in document["aggregates"].values() for found in labels.values() for each in found]
    pairs = [matrix[x][1 - x] for matrix in document["improvements"].values() for x in range(2)]
    if compared:
        assert all(None not in pair and pair[3] == "" for pair in pairs)
    else:
        shown += pairs
    assert all(each[1:4] == [None, None, mark] and not any(each[4:]) for each in shown)
    assert [each["mark"] for each in document["marks"] if each["used"]] == [mark]
    bands = [*document["cells"], *(band for profile in document["profiles"].values() for band in profile["bands"])]
    for band in bands:
        assert all(set(band[name]) == {None} for name in ("low", "high", "simultaneous_low", "simultaneous_high"))


def test_figures_without_intervals_draw_none_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captions: list[str] = []
    bars: list[Any] = []
    monkeypatch.setattr(plots.Figure, "savefig", lambda self, file, **settings: bars.extend(self.axes[0].lines))
    monkeypatch.setattr(plots.Figure, "supxlabel", lambda self, text, **settings: captions.append(text))
    for runs, expected in ((FEWEST_RUNS - 1, 3), (FEWEST_FOR_A_MEAN, 0)):
        captions.clear()
        scores = read(write(tmp_path / str(runs), runs))
        settings: dict[str, Any] = {"repetitions": 40, "seed": 0}
        plots.sample_efficiency(scores, tmp_path / "x.png", **settings)
        profile = performance_profiles(scores, **settings)["final"]
        plots.performance_profile(scores, profile, tmp_path / "x.png")
        bars.clear()
        plots.aggregate_intervals(scores, summarise(scores, **settings), tmp_path / "x.png")
        assert sum("Without a bar or band" in caption for caption in captions) == expected
        # A marker for each label, and a bar where there is an interval.
        assert len(bars) == (2 if expected else 4)


def test_a_mean_needs_more_runs_than_an_iqm(tmp_path: Path) -> None:
    def reasons(folder: Path) -> dict[str, str]:
        found = summarise(read(folder), repetitions=40)
        ppo_rows = found[(found["section"] == "aggregate") & (found["label"] == "ppo") & (found["score"] == "final")]
        assert (ppo_rows["low"].isna() == (ppo_rows["no_interval"] != "")).all()
        return dict(zip(ppo_rows["statistic"], ppo_rows["no_interval"], strict=True))

    mean_statistics = {name for name in AGGREGATES if name != "iqm"}
    assert reasons(write(tmp_path / "few", FEWEST_RUNS)) == {"iqm": ""} | dict.fromkeys(mean_statistics, FEW_RUNS)
    assert set(reasons(write(tmp_path / "enough", FEWEST_FOR_A_MEAN)).values()) == {""}
    # On all tasks together.
    for label in ("ppo", "sac"):
        for task in "bcde":
            write_shard(tmp_path / "tasks", label, task, final(FEWEST_RUNS, 60.0))
    assert set(reasons(tmp_path / "tasks").values()) == {""}


def test_a_label_that_always_wins_has_an_interval(tmp_path: Path) -> None:
    """Resamples are all alike there; a run that loses may come next all the same."""
    for label, top in (("ppo", 30.0), ("sac", 80.0)):
        write_shard(tmp_path / "x", label, "a", final(20, top, 1.0))
    scores = read(tmp_path / "x")
    summary = summarise(scores, repetitions=40)
    better = summary[(summary["section"] == "improvement") & (summary["score"] == "final")].iloc[0]
    assert (better["estimate"], better["low"], better["no_interval"]) == (0.0, 0.0, "") and 0.01 < better["high"] < 0.2
    x, y = [np.arange(20.0)], [np.arange(20.0) + 50]
    assert np.isnan(bootstrap.improvement(x, y, method="percentile", repetitions=50).low)


def test_equal_scores_have_no_interval_whatever_rounding_makes_of_them() -> None:
    rng = np.random.default_rng(0)
    for score in (500.0, 0.3, -1e-9, 1e12 / 3, 0.0):
        tasks = [np.full(31, score), np.full(40, score)]
        for statistic in AGGREGATES.values():
            assert np.isnan(bootstrap.interval(tasks, statistic, repetitions=50).low)
            assert np.isnan(bootstrap.difference(tasks, tasks, statistic, repetitions=50).low)
        assert np.isnan(bootstrap.improvement(tasks, tasks, method="percentile", repetitions=50).low)
    found = bootstrap.interval([1e12 + rng.normal(size=40)], bootstrap.mean, repetitions=50, withhold=False)
    assert found.low < found.estimate < found.high


def test_the_fewest_runs_are_those_of_the_tables_of_coverages() -> None:
    text = (DOCS / "statistics.md").read_text("utf-8")
    rows = re.findall(r"^\| (.+?) \| (\d+) \| (.*%.*) \|$", text, re.M)
    held = [(name, int(runs), [float(share) for share in re.findall(r"([\d.]+)%", row)]) for name, runs, row in rows]
    single = [row for row in held if len(row[2]) == 7]
    pairs = [row for row in held if len(row[2]) == 2]
    assert len(single) == 40 and len(pairs) == 48

    def enough(found: list[tuple[str, int, list[float]]], columns: list[int], least: float) -> list[int]:
        counts = sorted({runs for _, runs, _ in found})
        return [n for n in counts if min(row[c] for _, runs, row in found if runs == n for c in columns) >= least]

    def counts_from(fewest: int) -> list[int]:
        return [runs for runs in sorted({runs for _, runs, _ in held}) if runs >= fewest]

    # Five or six runs of ten that may fail are too often all of one kind, as the page says.
    some_fail = [row for row in single if "fail" in row[0] and row[1] in (5, 6)]
    assert [row[2][3] for row in some_fail] == [pytest.approx(88.3), pytest.approx(90.5)]
    iqms = [row for row in single if row not in some_fail]
    assert enough(iqms, [3], 93.0) == counts_from(FEWEST_RUNS)
    assert enough(single, [5, 6], 93.0) == counts_from(FEWEST_RUNS)
    assert set(counts_from(FEWEST_FOR_A_MEAN)) <= set(enough(single, [1], 92.0))
    assert enough(pairs, [1], 91.0) == counts_from(FEWEST_TO_COMPARE)


def test_power_proposes_no_fewer_runs_than_an_interval_needs() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=12)
    pilot = Pilot([x + 10.0], [x], 10.0)  # which three runs would show
    assert power.approximate_runs(pilot, 0.8, 0.95) == power.LEAST == FEWEST_RUNS


def test_the_page_explains_its_marks(tmp_path: Path) -> None:
    scores = read(write(tmp_path / "x", 3))
    from analysis import load, manifests

    settings: dict[str, Any] = {"repetitions": 40, "seed": 0}
    document = pages.document(
        scores,
        load(tmp_path / "x"),
        manifests(tmp_path / "x"),
        summarise(scores, **settings),
        sample_efficiency_curves(scores, **settings),
        performance_profiles(scores, **settings),
        **settings,
    )
    (used,) = (each for each in document["marks"] if each["used"])
    assert used["mark"] == "*" and f"fewer than {FEWEST_RUNS} runs" in used["meaning"]
