"""`rlsuite demo`: what it says, what it leaves, and when it opens the page. Its comparison is a smaller one here."""

from __future__ import annotations

import dataclasses
import webbrowser
from pathlib import Path

import pytest
from test_docs import faulty_commands

from rlsuite.algorithms.on_policy import ppo
from rlsuite.commands import cli, demo, report
from rlsuite.sweeping import job, local
from rlsuite.sweeping.sweep import Experiment

CONFIG = ppo.Config(num_envs=2, num_steps=4, num_epochs=1, num_minibatches=1, hidden_sizes=(4,))
OPENED = "There is no display or no browser here; the page is "


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the demo has two cells of two runs; gives it."""
    change = {"environment": "probe/constant/discrete", "steps": 16, "seeds": 2, "config": CONFIG, "evaluations": 1}
    cells = tuple(dataclasses.replace(cell, **change) for cell in demo.EXPERIMENT.cells[:2])  # type: ignore[arg-type]
    monkeypatch.setattr(demo, "EXPERIMENT", Experiment("demo", "What is compared.", cells))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_compares_reports_and_says_how_to_go_on(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo"]) == 0
    out = capsys.readouterr().out
    parts = ["half a minute", "[2/2] ppo lr 0.001 on", "Final evaluation", "Probability of improvement"]
    parts += ["Report:  results/demo/report.html\n", "What to try next:\n"]
    found = [out.find(part) for part in parts]
    assert out.startswith("What is compared.\n") and -1 not in found and found == sorted(found)
    assert OPENED not in out and (small / "results" / "demo" / "report.html").exists()
    commands = out.partition(parts[-1])[2].replace("  rlsuite", "rlsuite")
    assert commands.count("rlsuite ") == 3 and faulty_commands(f"```\n{commands}```") == []

    monkeypatch.setattr(report, "report_after", lambda folder, shards: 0)
    assert cli.main(["demo", "--results", "results"]) == 0
    assert capsys.readouterr().out.count(": done before, kept") == 2


@pytest.mark.parametrize("display", ["DISPLAY", "WAYLAND_DISPLAY", None])
@pytest.mark.parametrize("browser", [True, False])
def test_a_page_is_opened_where_there_is_a_display_and_a_browser(
    display: str | None,
    browser: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = []
    monkeypatch.setattr(webbrowser, "open", lambda url: asked.append(url) or browser)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    if display:
        monkeypatch.setenv(display, ":0")
    demo.open_page(tmp_path / "a page.html")
    assert asked == ([f"file://{tmp_path}/a%20page.html"] if display else [])
    assert (f"{OPENED}{tmp_path}/a page.html\n" in capsys.readouterr().out) == (not (display and browser))


def test_the_option_opens_the_page_of_the_report(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    monkeypatch.setattr(demo, "open_page", opened.append)
    monkeypatch.setattr(local, "run", lambda jobs, store, settings: None)
    monkeypatch.setattr(report, "report_after", lambda folder, shards: 0)
    assert cli.main(["demo", "--open"]) == 0
    assert opened == [small / "results" / "demo" / "report.html"]


def test_its_comparison_is_of_enough_seeds_for_an_interval() -> None:
    jobs = job.resolve_all(demo.EXPERIMENT)
    assert len(jobs) >= 2 and min(len(one.runs) for one in jobs) >= 16
