"""docs/python.md and README.md: their programs run as they stand, and do what the pages say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import rlsuite

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "python.md"


def programs(page: Path) -> list[str]:
    """The page's blocks of Python."""
    found: list[str] = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    return found


def names_after(program: str, page: Path, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a program has defined once it has run, where others were defined before."""
    names = dict(before or {})
    # As its own text: the module here says how annotations are read.
    exec(compile(program, str(page), "exec", dont_inherit=True), names)
    return names


def test_the_program_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    short, _, _, low = programs(PAGE)
    above = names_after(short, PAGE)
    assert above["page"] == Path("results/mine/report.html") and above["page"].exists()
    assert int(above["action"]) in (0, 1)
    # CartPole pays 1 a step.
    assert above["episodes"].returns.tolist() == above["episodes"].lengths.tolist()
    capsys.readouterr()

    (tmp_path / "results" / "mine" / "report.html").unlink()
    names = names_after(low, PAGE)
    frame, final, episodes = names["frame"], names["final"], names["episodes"]
    assert names["mine"].name == Path(frame["shard"].iloc[0]).stem and set(frame["seed"]) == set(range(8))
    # Both programs are of one shard, which is trained once.
    assert above["run"].shards == (names["mine"].name,) and above["table"].equals(frame)
    # Every evaluation of every run, the untrained one included; and it has learned something.
    assert len(frame) == 8 * 5
    np.testing.assert_allclose(final, frame[frame["step"] == frame["step"].max()]["return_mean"])
    assert final.mean() > 2 * frame[frame["step"] == 0]["return_mean"].mean()
    assert int(names["action"]) in (0, 1)
    assert episodes.returns.tolist() == episodes.lengths.tolist() and len(episodes.returns) == 3
    assert (tmp_path / "results" / "mine" / "report.html").exists()
    assert "Final evaluation" in capsys.readouterr().out


def test_the_programs_with_callbacks_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    _, logging_program, thread_program, _ = programs(PAGE)
    with caplog.at_level("INFO", "mine"):
        names = names_after(logging_program, PAGE)
    table = pd.read_parquet(next((tmp_path / "results" / "logged").glob("*.parquet")))
    assert len(caplog.messages) == len(table) == 8 * 5
    said = {
        f"run {run}, seed {seed}: {value:.1f} after {step} steps"
        for run, seed, value, step in table[["run", "seed", "return_mean", "step"]].itertuples(index=False)
    }
    assert set(caplog.messages) == said
    assert "all is saved" not in capsys.readouterr().out
    assert not names_after(thread_program, PAGE, names)["thread"].is_alive()
    assert capsys.readouterr().out.endswith("all is saved, the same call goes on\n")
    assert len(list((tmp_path / "results" / "stopped").glob("*/runs*.parquet"))) == 1


def test_the_program_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands, but for the size: it names 128 runs of 80,000 steps."""
    whole = rlsuite.run
    config = {"num_envs": 2, "num_steps": 4, "num_epochs": 1, "num_minibatches": 1, "hidden_sizes": (4,)}
    limits = rlsuite.Settings(rlsuite.Limits(width=4, devices=1))

    def small(algorithm: str, environment: str, *, steps: int, seeds: int, hypers: Any) -> rlsuite.Run:
        assert (steps, seeds) == (80_000, 64)
        given = {"config": config, "settings": limits, "evaluations": 1, "eval_episodes": 1}
        return whole(algorithm, environment, steps=16, seeds=2, hypers=hypers, **given)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rlsuite, "run", small)
    [program] = programs(ROOT / "README.md")
    names = names_after(program, ROOT / "README.md")
    assert len(names["run"].table()) == 2 * 2 * 2  # settings, seeds, evaluations
    out = capsys.readouterr().out
    assert "hyper/learning_rate" in out and out.endswith("results/run/report.html\n")
