"""The `analysis` API as docs/analysis_api.md shows it, and what is said of a statistic that is none."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from written import ramp, write_shard

from analysis import bootstrap

DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_the_page_runs_from_its_first_block_to_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, label in enumerate(("ppo", "sac", "td3")):
        for task in "ab":
            returns = ramp(4, 60, seed) + 5 * np.random.default_rng(seed).normal(size=(4, 1))
            write_shard(tmp_path / "results" / "quick", label, task, returns, extra={"metric/value_loss": 0.5})
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / "analysis_api.md").read_text("utf-8"), re.M | re.S)
    assert len(blocks) >= 7
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/analysis_api.md", "exec"), names)
    printed = capsys.readouterr().out
    assert printed.startswith("['ppo', 'sac'] ['a', 'b']\n") and "no interval: few runs" in printed
    assert {file.name for file in tmp_path.iterdir()} == {
        *("results", "curves.pdf", "curves.png", "intervals.pdf", "profile.pdf")
    }
    assert names["losses"].tasks["ppo", "a"].final.tolist() == [0.5] * 4


STATISTICS: list[Callable[..., Any]] = [
    np.mean,
    np.max,
    lambda tasks: 3.0,
    lambda scores: scores.mean(),
    lambda scores: scores[:, 0],
]


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("runs", [(9, 9), (9, 12)])
def test_a_plain_function_is_told_what_is_expected(statistic: Callable[..., Any], runs: tuple[int, int]) -> None:
    tasks = [np.arange(float(count)) for count in runs]
    calls: list[Callable[[], object]] = [
        lambda: bootstrap.estimate(tasks, statistic),
        lambda: bootstrap.interval(tasks, statistic),
        lambda: bootstrap.interval({"ppo": tasks}, statistic),
        lambda: bootstrap.difference(tasks, tasks, statistic),
        lambda: bootstrap.curve([np.stack([task, task], axis=1) for task in tasks], statistic),
    ]
    for call in calls:
        with pytest.raises(
            ValueError, match=r"expected mean, median, iqm or .*, from_function\(f\) of a plain"
        ) as raised:
            call()
        assert "\n" not in str(raised.value)


def test_a_plain_function_of_runs_is_averaged_over_tasks_and_resampled() -> None:
    rng = np.random.default_rng(0)
    tasks = [rng.normal(size=24), rng.normal(2.0, 3.0, size=30)]
    found = bootstrap.interval(tasks, bootstrap.from_function(np.mean), repetitions=200)
    assert found == pytest.approx(bootstrap.interval(tasks, bootstrap.mean, repetitions=200))
    assert bootstrap.estimate(tasks, bootstrap.from_function(np.max)) == np.mean([task.max() for task in tasks])
    spread = bootstrap.interval(tasks, bootstrap.from_function(np.std), repetitions=200)
    assert spread.low < spread.estimate < spread.high
